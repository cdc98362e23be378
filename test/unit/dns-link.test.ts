/** The port by which another thread asks the resolver: pins of exactly one name, and answers as over TCP. */
import { MessageChannel } from "node:worker_threads";
import { afterEach, describe, expect, it } from "vitest";
import { parseAddress } from "../../src/addresses/address.js";
import { serveLink } from "../../src/dns/link-service.js";
import { ResolverLink } from "../../src/dns/link.js";
import { GRACE } from "../../src/dns/pins.js";
import type { PlaceholderAsked } from "../../src/dns/protocol.js";
import { pattern } from "../lib/secrets.js";
import { a, always, query, see, World, type WorldOptions } from "./dns-world.js";

const PUBLIC = "93.184.216.34";
const at = (text: string): Uint8Array => parseAddress(text)!;
const links: ResolverLink[] = [];
afterEach(() => links.splice(0).forEach((link) => link.close()));

function joined(options: WorldOptions = {}): { world: World; link: ResolverLink } {
  const world = new World({ tokens: ["allow@api.test:tcp:443"], upstream: always({ answers: [a("api.test", PUBLIC, 100)] }), ...options });
  const { port1, port2 } = new MessageChannel();
  serveLink(port2, world.service, () => world.seconds);
  const link = new ResolverLink(port1);
  links.push(link);
  return { world, link };
}

describe("pinned", () => {
  it("only the very name at the very address of the very sandbox, while it lasts", async () => {
    const { world, link } = joined();
    const pinned = (address = PUBLIC, name = "api.test", slot = 0, generation = 1) => link.pinned(slot, generation, at(address), name.split("."));
    expect(await pinned()).toBe(false);
    await world.ask("api.test");
    expect(await pinned()).toBe(true);
    expect(await pinned(PUBLIC, "API.Test")).toBe(true);
    expect(await pinned("93.184.216.35")).toBe(false);
    for (const other of ["test", "x.api.test", "api.test.x", "other.test"]) expect(await pinned(PUBLIC, other)).toBe(false);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api.test"])).toBe(false);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api", ""])).toBe(false);
    expect(await link.pinned(0, 1, at(PUBLIC), ["\u0130"])).toBe(false);
    expect(await pinned(PUBLIC, "api.test", 0, 2)).toBe(false);
    expect(await pinned(PUBLIC, "api.test", 1)).toBe(false);
    world.pass(101);
    expect(await pinned()).toBe(false);
  });

  it("within the grace of an address in use", async () => {
    const { world, link } = joined();
    await world.ask("api.test");
    world.pass(95);
    world.sandbox.pins.sweep(world.seconds, () => true);
    world.pass(10);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api", "test"])).toBe(true);
    world.pass(GRACE);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api", "test"])).toBe(false);
  });

  it("a name told under an open policy", async () => {
    const { world, link } = joined({ tokens: ["allow@public"] });
    await world.ask("api.test");
    expect(world.kernel.entries.size).toBe(0);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api", "test"])).toBe(true);
    expect(await link.pinned(0, 1, at(PUBLIC), ["other", "test"])).toBe(false);
    world.pass(101);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api", "test"])).toBe(false);
  });
});

describe("answer", () => {
  it("judges, pins, counts and answers like TCP", async () => {
    const { world, link } = joined();
    const allowed = see(Buffer.from((await link.answer(0, 1, query("api.test", 1, { id: 7 })))!));
    expect(allowed).toMatchObject({ id: 7, rcode: 0 });
    expect(world.kernel.entries.has(PUBLIC)).toBe(true);
    const denied = see(Buffer.from((await link.answer(0, 1, query("other.test")))!));
    expect(denied.rcode).toBe(3);
    expect(world.asked.map(({ name }) => name)).toEqual(["api.test"]);
    expect([world.count("answered"), world.count("denied")]).toEqual([1, 1]);
    const malformed = see(Buffer.from((await link.answer(0, 1, Buffer.alloc(12)))!));
    expect(malformed.rcode).toBe(1);
  });

  it("nothing for what is no question, or for a sandbox that has gone", async () => {
    const { world, link } = joined({ upstream: () => undefined });
    expect(await link.answer(0, 1, query("api.test", 1, { flags: 0x8180 }))).toBe(null);
    expect(await link.answer(0, 1, Buffer.of(1))).toBe(null);
    expect(await link.answer(0, 2, query("api.test"))).toBe(null);
    world.service.remove(0, 1);
    expect(await link.answer(0, 1, query("api.test"))).toBe(null);
  });

  it("what is open ends when the port closes", async () => {
    const { link } = joined({ upstream: () => undefined });
    const open = link.answer(0, 1, query("api.test"));
    link.close();
    expect(await open).toBe(null);
    expect(await link.pinned(0, 1, at(PUBLIC), ["api", "test"])).toBe(false);
  });
});

describe("placeholders", () => {
  const PLACEHOLDER = "ghp_Abcdefghijklmnopqrstuvwxyz0123456789";
  const rule = (action: "block" | "log" | "terminate" | "pass", hosts: readonly string[] = []) => [{ secret: "TOKEN", placeholder: PLACEHOLDER, onViolation: { action, hosts: hosts.map(pattern) } }];
  function watched(options: WorldOptions = {}): { world: World; link: ResolverLink; asked: PlaceholderAsked[] } {
    const world = new World({ tokens: ["allow@*.api.test:tcp:443"], upstream: always({ answers: [a("api.test", PUBLIC, 100)] }), ...options });
    const { port1, port2 } = new MessageChannel(), asked: PlaceholderAsked[] = [];
    serveLink(port2, world.service, () => world.seconds);
    const link = new ResolverLink(port1, (told) => asked.push(told));
    links.push(link);
    return { world, link, asked };
  }
  /** What was told before this is there now. */
  const settled = (link: ResolverLink): Promise<boolean> => link.pinned(0, 1, at(PUBLIC), ["x"]);

  it("a question for a name that holds one is refused before the rules, in any case and cut anywhere, each time anew, and told", async () => {
    const { world, link, asked } = watched();
    const lower = PLACEHOLDER.toLowerCase();
    expect((await world.ask(`${lower}.evil.test`)).rcode).toBe(3);
    expect(asked).toEqual([]);
    expect(await link.placeholders(0, 1, rule("block"))).toBe(true);
    for (const name of [`${lower}.evil.test`, `${lower}.evil.test`, `${PLACEHOLDER.toUpperCase()}.api.test`, `x${lower.slice(0, 9)}.${lower.slice(9)}y.api.test`]) {
      const seen = await world.ask(name, 1, { edns: {} });
      expect(seen).toMatchObject({ rcode: 3, edns: { ede: [{ code: 15 }] } });
    }
    expect((await world.ask("api.test")).rcode).toBe(3); // no rule has it: as before
    await settled(link);
    expect(asked.map(({ secret, form }) => [secret, form])).toEqual(Array(4).fill(["TOKEN", "raw"]));
    expect(world.count("secret")).toBe(4);
    expect(world.asked).toEqual([]);
    expect(world.denied.map(({ outcome }) => outcome)).toEqual(["denied", "denied"]);
  });

  it("log, and pass at its hosts: the question goes on and is told; elsewhere it ends", async () => {
    const { world, link, asked } = watched();
    const name = (host: string): string => `${PLACEHOLDER.toLowerCase()}.${host}`;
    await link.placeholders(0, 1, rule("log"));
    await world.ask(name("a.api.test"));
    await link.placeholders(0, 1, rule("pass", ["*.b.api.test"]));
    await world.ask(name("b.api.test"));
    expect(world.asked.map((ask) => ask.name)).toEqual([name("a.api.test"), name("b.api.test")]);
    expect((await world.ask(name("a.api.test"))).rcode).toBe(3);
    await link.placeholders(0, 1, rule("terminate"));
    expect((await world.ask(name("b.api.test"))).rcode).toBe(3);
    await settled(link);
    expect(asked).toHaveLength(4);
    await link.placeholders(0, 1, []);
    expect((await world.ask(name("b.api.test"))).rcode).toBe(0);
  });

  it("of another sandbox, or of one that has gone, nothing is kept", async () => {
    const { world, link } = watched();
    expect(await link.placeholders(0, 2, rule("block"))).toBe(false);
    expect(await link.placeholders(1, 1, rule("block"))).toBe(false);
    await world.ask(`${PLACEHOLDER.toLowerCase()}.api.test`);
    expect(world.count("secret")).toBe(0);
  });
});
