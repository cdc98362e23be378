/**
 * While no agent runs: what needs one is refused at once instead of being left to wait, and what does not need one goes on. An
 * end that was meant (an upgrade) is not told for a while, so that a client's next attempt finds the successor.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks

const policy = { rules: ["allow@site.example:tcp:443", "allow@site.example:tcp:80", "allow@public:tcp:22"] };
/** Long enough for an answer that comes, however slow the machine is; a refusal ends it at once. */
const LONG = 20_000;

describe.each([["routed", false], ["bridged", true]] as const)("A05 while no agent runs, %s", (_name, bridged) => {
  let world: World;
  let agent: TestAgent;
  beforeAll(async () => {
    world = await World.create({ bridged, sibling: true, zone: { "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] } } });
    agent = await TestAgent.start(world);
  });
  afterEach(async () => {
    if (agent.service.ended !== null) await agent.restart();
    for (const name of await agent.names()) await agent.client.detach(name);
  });
  afterAll(async () => {
    await agent?.stop();
    await world?.close();
  });

  const resolve = async (type: "A" | "AAAA"): Promise<boolean> => (await world.guest.probe(["dns", "udp", "8.8.8.8", "site.example", type], LONG)).ok;
  let lost = 0;
  const refused = async (...args: string[]): Promise<void> => {
    let { saw } = await world.guest.probe(args, 3_000);
    // One that is on its way at the moment at which the dead agent's device goes is lost: who asks again is told.
    if (saw === "no answer" && ++lost === 1) ({ saw } = await world.guest.probe(args, LONG));
    expect(saw, args.join(" ")).toMatch(/refused/i);
  };
  const devices = async (): Promise<string[]> => (JSON.parse(await world.host.must(["ip", "-j", "link"])) as { ifname: string }[]).map(({ ifname }) => ifname).filter((name) => name.startsWith("enf"));

  test("kill -9: queries over UDP and TCP, and connections that the agent would look into, are refused at once", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    for (const type of ["A", "AAAA"] as const) expect(await resolve(type)).toBe(true);
    expect((await world.guest.probe(["tcp", ADDRESS.site4, "443"], LONG)).ok).toBe(true);
    await agent.kill();
    lost = 0;
    for (const [resolver, site] of [["8.8.8.8", ADDRESS.site4], ["2001:4860:4860::8888", ADDRESS.site6]] as const) {
      await refused("dns", "udp", resolver, "site.example", "A");
      await refused("dns", "tcp", resolver, "site.example", "A");
      await refused("dns", "udp", resolver, "never-asked.example", "A");
      await refused("tcp", site, "443");
      await refused("tcp", site, "80");
      await refused("tcp", site, "853");
    }
    // What needs nobody goes on, what is forbidden is forbidden, and nothing of the dead agent's is left but what is pinned.
    expect((await world.guest.probe(["tcp", ADDRESS.site4b, "22"], LONG)).ok).toBe(true);
    expect((await world.guest.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 400)).ok).toBe(false);
    await expect.poll(devices, { timeout: 60_000 }).toEqual([]);

    await agent.restart();
    const { counters } = await agent.client.sandbox("tap0");
    expect(counters.find(({ reason }) => reason === "agent-gone")?.packets).toBeGreaterThan(0);
    expect(await resolve("A")).toBe(true);
    expect((await world.guest.probe(["tcp", ADDRESS.site4, "443"], LONG)).ok).toBe(true);
    expect((await devices()).length).toBe(1);
  });

  test("an orderly end: nobody is told, and a query that is asked again is answered by the successor", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    expect(await resolve("A")).toBe(true);
    expect(await agent.stop()).toBe(0);
    expect((await world.guest.probe(["dns", "udp", "8.8.8.8", "site.example", "A"], 300)).saw).not.toMatch(/refused/i);
    expect((await world.guest.probe(["tcp", ADDRESS.site4, "443"], 300)).saw).not.toMatch(/refused/i);
    await agent.restart();
    expect(await resolve("AAAA")).toBe(true);
    // The successor's own end is told again.
    await agent.kill();
    await refused("dns", "udp", "8.8.8.8", "site.example", "A");
  });
});
