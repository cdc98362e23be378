/** Asking upstreams: what is taken for an answer (A31), failover, health, TCP, and what goes out. Time is the test's own. */
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Sandbox } from "../../src/dns/resolver.js";
import { TOTAL_MS } from "../../src/dns/upstream.js";
import { a, addressesOf, query, replyTo, see, soa, u16, wireName, World, type Seen, type Upstream, type WorldOptions } from "./dns-world.js";

const PUBLIC = "93.184.216.34";
const FORGED = "93.184.216.99";
const good = (q: Buffer): Buffer => replyTo(q, { answers: [a("allowed.example", PUBLIC)] });
const forged = (q: Buffer): Buffer => replyTo(q, { answers: [a("allowed.example", FORGED)] });

beforeEach(() => { vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] }); });
afterEach(() => { vi.useRealTimers(); });

const settle = async (): Promise<void> => { for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve)); };

/** Lets time go by in small steps, until the answer is there or `ms` are over. */
async function run(world: World, ms: number, until: () => boolean): Promise<void> {
  for (let t = 0; t < ms && !until(); t += 50) {
    world.ms += 50;
    world.seconds = Math.floor(world.ms / 1_000);
    vi.advanceTimersByTime(50);
    await settle();
  }
}

function make(options: WorldOptions): World {
  const world = new World({ tokens: ["allow@allowed.example:tcp:443", "allow@*.wild.example:tcp:443"], ...options });
  world.ms = 1_000_000;
  world.seconds = 1_000;
  return world;
}

async function answer(world: World, ms = TOTAL_MS + 500, name = "allowed.example"): Promise<Seen | null> {
  let seen: Seen | null = null;
  world.service.resolver.handle(world.sandbox, query(name, 1, { edns: {} }), 0, query(name, 1, { edns: {} }).length, {
    stream: false, waited: 0, send: (message, length) => { seen = see(Buffer.from(message.subarray(0, length))); }, retain() { return this; },
  });
  await settle();
  await run(world, ms, () => seen !== null);
  return seen;
}

describe("A31: what is not the answer is ignored, and the true answer wins", () => {
  const lies: [string, (q: Buffer, send: Parameters<Upstream>[1], server: string) => void][] = [
    ["another id", (q, send) => send(replyTo(q, { id: q.readUInt16BE(0) ^ 1, answers: [a("allowed.example", FORGED)] }))],
    ["another question", (q, send) => send(replyTo(q, { question: Buffer.concat([wireName("other.example"), u16(1), u16(1)]), answers: [a("allowed.example", FORGED)] }))],
    ["another type", (q, send) => send(replyTo(q, { question: Buffer.concat([wireName("allowed.example"), u16(28), u16(1)]) }))],
    ["another class", (q, send) => send(replyTo(q, { question: Buffer.concat([wireName("allowed.example"), u16(1), u16(3)]) }))],
    ["another case", (q, send) => send(replyTo(q, { question: Buffer.concat([wireName("Allowed.example"), u16(1), u16(1)]), answers: [a("allowed.example", FORGED)] }))],
    ["another server", (q, send) => send(forged(q), "192.0.2.99")],
    ["another port", (q, send) => send(forged(q), "192.0.2.53", 5353)],
    ["another family", (q, send) => send(forged(q), "::ffff:0:c000:235")],
    ["a query, not an answer", (q, send) => send(replyTo(q, { flags: 0x0100 }))],
    ["no question", (q, send) => send(Buffer.concat([q.subarray(0, 2), u16(0x8180), Buffer.alloc(8)]))],
    ["two questions", (q, send) => { const b = forged(q); b.writeUInt16BE(2, 4); send(b); }],
    ["a header", (q, send) => send(forged(q).subarray(0, 12))],
    ["an octet", (q, send) => send(forged(q).subarray(0, 1))],
    ["nothing", (_q, send) => send(Buffer.alloc(0))],
  ];
  it.each(lies)("%s", async (_what, lie) => {
    const world = make({ upstream: (q, send, server) => { lie(q, send, server); send(good(q)); } });
    const seen = (await answer(world))!;
    expect(addressesOf(seen)).toEqual([PUBLIC]);
    expect(world.service.upstreamCounters.mismatched).toBe(1);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
  });

  it("65,535 forged ids race the true answer and lose; the next query on that port goes over TCP", async () => {
    const world = make({
      upstream: (q, send) => {
        const id = q.readUInt16BE(0);
        for (let i = 1; i < 2_000; i++) send(replyTo(q, { id: (id + i) & 0xffff, answers: [a("allowed.example", FORGED)] }));
        send(good(q));
      },
      tcp: (q, send) => send(good(q)),
    });
    expect(addressesOf((await answer(world))!)).toEqual([PUBLIC]);
    expect(world.service.upstreamCounters.mismatched).toBe(1_999);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
  });

  it("ids and ports differ from query to query", async () => {
    const world = make({ upstream: (q, send) => send(replyTo(q)) });
    for (let i = 0; i < 64; i++) await world.ask(`n${i}.wild.example`);
    expect(new Set(world.asked.map((x) => x.raw.readUInt16BE(0))).size).toBeGreaterThan(60);
    expect(world.sockets).toBeGreaterThan(1);
    const before = world.sockets;
    world.pass(11);
    for (let i = 0; i < 32; i++) await world.ask(`m${i}.wild.example`);
    expect(world.sockets).toBeGreaterThan(before);
  });
});

describe("failure", () => {
  it("silence of the only server ends in SERVFAIL within 5 s, asked again meanwhile", async () => {
    const world = make({});
    const seen = (await answer(world))!;
    expect(seen.rcode).toBe(2);
    expect(seen.edns!.ede[0]!.code).toBe(22);
    expect(world.ms - 1_000_000).toBeLessThanOrEqual(5_000);
    expect(world.asked.length).toBeGreaterThan(2);
    expect(new Set(world.asked.map((x) => x.raw.readUInt16BE(0))).size).toBe(world.asked.length);
    expect(world.sandbox.inFlight).toBe(0);
    expect(world.service.upstream.inFlight).toBe(0);
  });

  it("silence of the first server: the second answers; after that the first is passed over, tried again later, and taken back", async () => {
    let dead = true;
    const world = make({ servers: ["192.0.2.1", "192.0.2.2"], upstream: (q, send, server) => { if (server !== "192.0.2.1" || !dead) send(replyTo(q, { authority: [soa("example", 0)] })); } });
    expect((await answer(world))!.rcode).toBe(0);
    await answer(world, 5_000, "n1.wild.example");
    world.asked.length = 0;
    const start = world.ms;
    await answer(world, 5_000, "n2.wild.example");
    expect(world.ms).toBe(start);
    expect(world.asked.map((x) => x.server)).toEqual(["192.0.2.2"]);
    world.pass(2);
    world.asked.length = 0;
    await answer(world, 5_000, "n3.wild.example");
    expect(world.asked.map((x) => x.server)).toEqual(["192.0.2.2", "192.0.2.1"]);
    dead = false;
    world.pass(10);
    await answer(world, 5_000, "n4.wild.example");
    await settle();
    world.asked.length = 0;
    await answer(world, 5_000, "n5.wild.example");
    expect(world.asked.map((x) => x.server)).toEqual(["192.0.2.1"]);
  });

  it("where names that hang have the one living server passed over, nobody waits for one that is gone", async () => {
    const world = make({
      servers: ["192.0.2.1", "192.0.2.2"], limits: { inFlight: 1_000 },
      upstream: (q, send, server) => { if (server === "192.0.2.2" && !q.toString("latin1").includes("hang")) send(replyTo(q, { authority: [soa("example", 0)] })); },
    });
    const other = world.add({ tokens: ["allow@*.wild.example"], servers: ["192.0.2.1", "192.0.2.2"] });
    const late: number[] = [];
    const ask = (sandbox: Sandbox, name: string, send: () => void): void => {
      const question = query(name);
      world.service.resolver.handle(sandbox, question, 0, question.length, { stream: false, waited: 0, send, retain() { return this; } });
    };
    // For 90 s one asks what hangs, ten times a second, and another what does not, twice.
    for (let i = 0; i < 900; i++) {
      ask(world.sandbox, `hang${i}.wild.example`, () => undefined);
      const start = world.ms;
      if (i % 5 === 0) ask(other, `n${i}.wild.example`, () => { if (i > 50 && world.ms > start) late.push(world.ms - start); });
      await settle();
      await run(world, 100, () => false);
    }
    expect(late).toEqual([]);
  });

  it.each([[2], [4], [5]])("rcode %i of the first goes on to the second at once", async (rcode) => {
    const world = make({ servers: ["192.0.2.1", "192.0.2.2"], upstream: (q, send, server) => send(server === "192.0.2.1" ? replyTo(q, { rcode }) : good(q)) });
    const seen = (await answer(world))!;
    expect([seen.rcode, world.ms]).toEqual([0, 1_000_000]);
  });

  it("an error of all is SERVFAIL at once, and NXDOMAIN is final", async () => {
    const all = make({ servers: ["192.0.2.1", "192.0.2.2"], upstream: (q, send) => send(replyTo(q, { rcode: 5, answers: [a("allowed.example", FORGED)] })) });
    const seen = (await answer(all))!;
    expect([seen.rcode, seen.records, all.ms, all.asked.length]).toEqual([2, [], 1_000_000, 2]);
    const absent = make({ servers: ["192.0.2.1", "192.0.2.2"], upstream: (q, send) => send(replyTo(q, { rcode: 3 })) });
    expect((await answer(absent))!.rcode).toBe(3);
    expect(absent.asked).toHaveLength(1);
  });

  it("a server from before EDNS is asked without it", async () => {
    const world = make({ upstream: (q, send) => send(q.readUInt16BE(10) > 0 ? replyTo(q, { rcode: 1 }) : good(q)) });
    expect(addressesOf((await answer(world))!)).toEqual([PUBLIC]);
    expect(world.asked.map((x) => x.raw.readUInt16BE(10))).toEqual([1, 0]);
  });

  it("no resolver at all: SERVFAIL at once", async () => {
    const world = make({ servers: [] });
    const seen = (await answer(world))!;
    expect([seen.rcode, seen.edns!.ede[0]!.code]).toEqual([2, 23]);
  });
});

describe("TCP", () => {
  const cut = (q: Buffer): Buffer => replyTo(q, { flags: 0x8380, answers: [a("allowed.example", FORGED)] });

  it("serves what was cut short; nothing of the short answer is used", async () => {
    const world = make({ upstream: (q, send) => send(cut(q)), tcp: (q, send) => send(good(q)) });
    expect(addressesOf((await answer(world))!)).toEqual([PUBLIC]);
    expect(world.asked.map((x) => x.tcp)).toEqual([false, true]);
    expect(world.asked[1]!.raw.subarray(2)).toEqual(world.asked[0]!.raw.subarray(2));
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
  });

  it.each<[string, (q: Buffer) => Buffer]>([
    ["another id", (q) => replyTo(q, { id: q.readUInt16BE(0) ^ 1 })],
    ["another question", (q) => replyTo(q, { question: Buffer.concat([wireName("x.example"), u16(1), u16(1)]) })],
    ["too short a frame", (q) => q.subarray(0, 5)],
  ])("%s over TCP is no answer: the next server is asked", async (_what, lie) => {
    const world = make({ servers: ["192.0.2.1", "192.0.2.2"], upstream: (q, send, server) => send(server === "192.0.2.1" ? cut(q) : good(q)), tcp: (q, send) => send(lie(q)) });
    expect(addressesOf((await answer(world))!)).toEqual([PUBLIC]);
  });

  it("a sandbox whose answers all come over TCP, and hang there, takes no other's connections", async () => {
    const cut = (q: Buffer): Buffer => replyTo(q, { flags: 0x8380 });
    const world = make({ limits: { inFlight: 1_000, queriesPerSecond: 10_000, burst: 10_000 }, upstream: (q, send) => send(cut(q)), tcp: (q, send) => { if (!q.toString("latin1").includes("hang")) send(good(q)); } });
    const other = world.add({ tokens: ["allow@allowed.example"] });
    const client = { stream: true, waited: 0, send: () => undefined, retain() { return this; } };
    for (let i = 0; i < 500; i++) {
      const question = query(`hang${i}.wild.example`);
      world.service.resolver.handle(world.sandbox, question, 0, question.length, client);
    }
    await settle();
    expect(world.asked.filter(({ tcp }) => tcp)).toHaveLength(64);
    expect(addressesOf(await world.ask("allowed.example", 1, {}, other))).toEqual([PUBLIC]);
  });

  it("nor do many of them together: from half of what there is on each has its share, and where the process may have few descriptors there is less", async () => {
    for (const [descriptors, room] of [[1 << 20, 1_024], [1_024, 64]] as const) {
      const world = make({ descriptors, limits: { inFlight: 1_000, queriesPerSecond: 10_000, burst: 10_000 }, upstream: (q, send) => send(cut(q)), tcp: (q, send) => { if (!q.toString("latin1").includes("hang")) send(good(q)); } });
      const hostile = [world.sandbox, ...Array.from({ length: 18 }, () => world.add({ tokens: ["allow@*.wild.example"] }))], other = world.add({ tokens: ["allow@allowed.example"] });
      const client = { stream: true, waited: 0, send: () => undefined, retain() { return this; } };
      for (const [n, sandbox] of hostile.entries()) for (let i = 0; i < 70; i++) {
        const question = query(`hang${n}x${i}.wild.example`);
        world.service.resolver.handle(sandbox, question, 0, question.length, client);
      }
      await settle();
      const taken = world.asked.filter(({ tcp }) => tcp).length;
      expect(taken).toBeLessThan(room);
      expect(taken).toBeGreaterThan(room / 2 - 1);
      expect(addressesOf(await world.ask("allowed.example", 1, {}, other))).toEqual([PUBLIC]);
    }
  });

  it("whose bound is reached ends its own question only: another sandbox that waits for the same answer gets it", async () => {
    const world = make({ limits: { inFlight: 1_000 }, upstream: (q, send) => send(cut(q)), tcp: (q, send) => { if (!q.toString("latin1").includes("hang")) send(good(q)); } });
    const other = world.add({ tokens: ["allow@allowed.example"] });
    const got: [string, Seen][] = [];
    const ask = (who: string, sandbox: Sandbox, name: string): void => {
      const question = query(name);
      world.service.resolver.handle(sandbox, question, 0, question.length, {
        stream: false, waited: 0, send: (message, length) => { got.push([who, see(Buffer.from(message.subarray(0, length)))]); }, retain() { return this; },
      });
    };
    for (let i = 0; i < 64; i++) ask("hostile", world.sandbox, `hang${i}.wild.example`);
    await settle();
    ask("hostile", world.sandbox, "allowed.example");
    ask("other", other, "allowed.example");
    ask("hostile", world.sandbox, "allowed.example");
    await settle();
    expect(got.map(([who, { rcode }]) => [who, rcode])).toEqual([["hostile", 2], ["hostile", 2], ["other", 0]]);
    expect(addressesOf(got[2]![1])).toEqual([PUBLIC]);
    await run(world, 6_000, () => false);
    expect([got.length, world.sandbox.inFlight, other.inFlight, world.service.upstream.inFlight]).toEqual([67, 0, 0, 0]);
  });

  it("and is answered in time where that hangs as well", async () => {
    const world = make({ limits: { inFlight: 1_000 }, tcp: () => undefined });
    const other = world.add({ tokens: ["allow@allowed.example"] });
    // Cut short, but late.
    world.upstream = (q, send) => { setTimeout(() => send(cut(q)), q.toString("latin1").includes("hang") ? 0 : 700); };
    let ended = 0;
    const ask = (sandbox: Sandbox, name: string, send: () => void): void => {
      const question = query(name);
      world.service.resolver.handle(sandbox, question, 0, question.length, { stream: false, waited: 0, send, retain() { return this; } });
    };
    ask(world.sandbox, "allowed.example", () => undefined);
    for (let i = 0; i < 64; i++) ask(world.sandbox, `hang${i}.wild.example`, () => undefined);
    ask(other, "allowed.example", () => { ended = world.ms; });
    await run(world, 8_000, () => ended > 0);
    expect(ended).toBeGreaterThan(1_004_500);
    expect(ended).toBeLessThanOrEqual(1_005_000);
  });

  it.each([3_000, 7_000])("answers that come after %i ms are no forgeries: other questions go on over UDP", async (late) => {
    const world = make({
      limits: { inFlight: 1_000 }, tcp: () => undefined,
      upstream: (q, send) => { if (q.toString("latin1").includes("hang")) setTimeout(() => send(good(q)), late); else send(good(q)); },
    });
    const client = { stream: true, waited: 0, send: () => undefined, retain() { return this; } };
    for (let i = 0; i < 300; i++) {
      const question = query(`hang${i}.wild.example`);
      world.service.resolver.handle(world.sandbox, question, 0, question.length, client);
    }
    for (let i = 0; i < 9; i++) {
      await run(world, 1_000, () => false);
      world.service.flushCache();
      expect(addressesOf(await world.ask("allowed.example"))).toEqual([PUBLIC]);
    }
    expect(world.service.upstreamCounters.tcp).toBe(0);
  });

  it("an ask that found no connection and was answered by the next server leaves nothing behind", async () => {
    const world = make({
      servers: ["192.0.2.1", "2001:db8::53"], limits: { inFlight: 1_000 }, tcp: () => undefined,
      upstream: (q, send, server) => {
        if (server !== "192.0.2.1") return send(good(q));
        // So many answers that match nothing that TCP is used from then on.
        for (let i = 1; i < 200; i++) send(replyTo(q, { id: (q.readUInt16BE(0) + i) & 0xffff }));
        send(cut(q));
      },
    });
    const client = { stream: true, waited: 0, send: () => undefined, retain() { return this; } };
    for (let i = 0; i < 100; i++) {
      const question = query(`hang${i}.wild.example`);
      world.service.resolver.handle(world.sandbox, question, 0, question.length, client);
      await settle();
    }
    expect(addressesOf(await world.ask("allowed.example"))).toEqual([PUBLIC]);
    await run(world, 700, () => false);
    world.asked.length = 0;
    await run(world, 500, () => false);
    expect(world.asked.filter(({ name }) => name === "allowed.example")).toEqual([]);
    await run(world, 6_000, () => false);
    expect([world.sandbox.inFlight, world.service.upstream.inFlight, vi.getTimerCount()]).toEqual([0, 0, 0]);
  });

  it("silence over TCP ends too", async () => {
    const world = make({ upstream: (q, send) => send(cut(q)), tcp: () => undefined });
    expect((await answer(world))!.rcode).toBe(2);
    expect(world.ms - 1_000_000).toBeLessThanOrEqual(5_000);
  });
});

describe("A30: malformed replies", () => {
  const rows: [string, (q: Buffer) => Buffer][] = [
    ["a trailing octet", (q) => replyTo(q, { answers: [a("allowed.example", PUBLIC)], tail: Buffer.from([0]) })],
    ["a record cut short", (q) => good(q).subarray(0, -2)],
    ["a count too high", (q) => { const b = good(q); b.writeUInt16BE(9, 6); return b; }],
    ["a count too low", (q) => { const b = replyTo(q, { answers: [a("allowed.example", PUBLIC), a("allowed.example", PUBLIC)] }); b.writeUInt16BE(1, 6); return b; }],
    ["an A of 5 octets", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 1, data: Buffer.alloc(5) }] })],
    ["an A of 3 octets", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 1, data: Buffer.alloc(3) }] })],
    ["a AAAA of 4 octets", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 28, data: Buffer.alloc(4) }] })],
    ["a CNAME whose name goes past its data", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 5, data: Buffer.from("\x09abc", "latin1") }] })],
    ["a CNAME with data behind its name", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 5, data: Buffer.concat([wireName("x.test"), Buffer.from([1])]) }] })],
    ["a pointer to itself", (q) => { const b = replyTo(q, { answers: [{ name: "allowed.example", type: 5, data: Buffer.from([0xc0, 0]) }] }); b.writeUInt16BE(0xc000 | (b.length - 2), b.length - 2); return b; }],
    ["a pointer forward", (q) => { const b = replyTo(q, { answers: [{ name: "allowed.example", type: 5, data: Buffer.from([0xff, 0xff]) }] }); return b; }],
    ["a pointer into the header", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 5, data: Buffer.from([0xc0, 4]) }] })],
    ["a reserved label kind", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 5, data: Buffer.from([0x41, 0x61, 0]) }] })],
    ["a TXT string past its data", (q) => replyTo(q, { answers: [{ name: "allowed.example", type: 16, data: Buffer.from([9, 1]) }] })],
    ["two OPT", (q) => { const b = replyTo(q, { answers: [a("allowed.example", PUBLIC)], opt: true }); const two = Buffer.concat([b, b.subarray(-11)]); two.writeUInt16BE(2, 10); return two; }],
    ["an opcode", (q) => replyTo(q, { flags: 0xa980, answers: [a("allowed.example", PUBLIC)] })],
  ];
  it.each(rows)("%s: SERVFAIL, no pin", async (_what, make_) => {
    const world = make({ upstream: (q, send) => send(make_(q)) });
    const seen = (await answer(world))!;
    expect(seen.rcode).toBe(2);
    expect(world.kernel.entries.size).toBe(0);
    expect(world.service.upstreamCounters.malformed).toBe(1);
  });

  it("a malformed reply of one server lets the next one answer", async () => {
    const world = make({ servers: ["192.0.2.1", "192.0.2.2"], upstream: (q, send, server) => send(server === "192.0.2.1" ? Buffer.concat([good(q), Buffer.from([7])]) : good(q)) });
    expect(addressesOf((await answer(world))!)).toEqual([PUBLIC]);
  });
});
