/** DNS over TCP (A25, A26, A30): frames, pipelining, back-pressure, bounds; real sockets on loopback, the resolver behind them. */
import { createSocket } from "node:dgram";
import { connect, createServer, type Server, type Socket } from "node:net";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { parseAddress } from "../../src/addresses/address.js";
import { openDatagram } from "./datagram.js";
import { upstreamServer } from "../../src/dns/host-resolvers.js";
import { UpstreamCounters } from "../../src/dns/metrics.js";
import { OPEN_QUESTIONS, TcpConnection } from "../../src/dns/tcp.js";
import { UpstreamClient } from "../../src/dns/upstream.js";
import { nameOf } from "../../src/dns/wire.js";
import { a, query, replyTo, see, u16, World, type Seen, type WorldOptions } from "./dns-world.js";

const PUBLIC = "93.184.216.34";
const frame = (b: Buffer): Buffer => Buffer.concat([u16(b.length), b]);
const open: { server: Server; sockets: Socket[] }[] = [];

afterEach(async () => {
  vi.useRealTimers();
  for (const { server, sockets } of open.splice(0)) {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  }
});

interface Guest { readonly world: World; readonly socket: Socket; readonly answers: Seen[]; closed: Promise<void>; until(n: number): Promise<void> }

async function dial(options: WorldOptions = {}, given?: World): Promise<Guest> {
  const world = given ?? new World({
    tokens: ["allow@allowed.example:tcp:443", "allow@*.wild.example:tcp:443"],
    upstream: (q, send) => send(replyTo(q, { answers: q.toString("latin1").includes("allowed") ? [a("allowed.example", PUBLIC)] : [] })), ...options,
  });
  const sockets: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket);
    new TcpConnection(socket, world.sandbox, (s, b, offset, length, client) => world.service.resolver.handle(s, b, offset, length, client), () => world.ms);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  open.push({ server, sockets });
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  sockets.push(socket);
  await new Promise((resolve) => socket.once("connect", resolve));
  const answers: Seen[] = [];
  let held = Buffer.alloc(0);
  let wake = (): void => undefined;
  socket.on("data", (chunk) => {
    held = Buffer.concat([held, chunk]);
    while (held.length >= 2 && held.length >= 2 + held.readUInt16BE(0)) {
      const n = held.readUInt16BE(0);
      answers.push(see(held.subarray(2, 2 + n)));
      held = held.subarray(2 + n);
    }
    wake();
  });
  socket.on("error", () => undefined);
  const closed = new Promise<void>((resolve) => socket.once("close", () => { wake(); resolve(); }));
  return { world, socket, answers, closed, until: async (n) => { while (answers.length < n && !socket.destroyed) await new Promise<void>((resolve) => { wake = resolve; }); } };
}

describe("A23: bounds", () => {
  it("where the process may have few descriptors, each sandbox has its share of those for DNS, and what is over it is closed and counted", async () => {
    // 16 of them, 8 for each.
    const world = new World({ tokens: ["allow@allowed.example"], descriptors: 256 }), other = world.add({ tokens: ["allow@allowed.example"] });
    let from = 0;
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      Object.defineProperties(socket, { remoteAddress: { value: `240.0.1.${from}` }, remoteFamily: { value: "IPv4" } });
      world.service.accept(socket);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const sockets: Socket[] = [];
    open.push({ server, sockets });
    const { port } = server.address() as AddressInfo;
    /** How many of so many stay open: the others are closed before anything is said. */
    const knock = async (slot: number, times: number): Promise<void> => {
      from = slot;
      for (let i = 0; i < times; i++) {
        const socket = connect(port, "127.0.0.1"), accepted = new Promise((resolve) => server.once("connection", resolve));
        socket.on("error", () => undefined);
        sockets.push(socket);
        await accepted;
      }
    };
    expect([world.sandbox, other].map((sandbox) => world.service.connectionLimit(sandbox))).toEqual([8, 8]);
    await knock(world.sandbox.slot, 20);
    await knock(other.slot, 9);
    expect([world.sandbox, other].map(({ connections, counters }) => [connections, counters.tcpRefused])).toEqual([[8, 12], [8, 1]]);
    await world.service.close();
  });
});

describe("A26: frames", () => {
  it("two messages in one segment are judged each alone; the denied one goes nowhere", async () => {
    const guest = await dial();
    guest.socket.write(Buffer.concat([frame(query("allowed.example", 1, { id: 1 })), frame(query("denied.example", 1, { id: 2 }))]));
    await guest.until(2);
    expect(guest.answers.map((s) => [s.id, s.rcode]).sort()).toEqual([[1, 0], [2, 3]]);
    expect(guest.world.asked.map((x) => x.name)).toEqual(["allowed.example"]);
  });

  it("a message octet by octet is one message", async () => {
    const guest = await dial();
    for (const octet of frame(query("allowed.example", 1, { id: 3 }))) {
      guest.socket.write(Buffer.from([octet]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await guest.until(1);
    expect(guest.answers[0]!.id).toBe(3);
  });

  it("wherever the stream is cut into segments, each message is judged alone and answered once", async () => {
    const names = ["allowed.example", "denied.example", "a.wild.example", "evil.allowed"];
    await fc.assert(fc.asyncProperty(fc.array(fc.nat(5), { minLength: 1, maxLength: 40 }), fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 12 }), async (kinds, cuts) => {
      const guest = await dial();
      const frames = kinds.map((kind, id) => frame(kind < 4 ? query(names[kind]!, 1, { id, edns: {} }) : kind === 4 ? Buffer.concat([u16(id), Buffer.alloc(9)]) : query("allowed.example", 1, { id, extra: Buffer.of(1) })));
      const stream = Buffer.concat(frames);
      for (let at = 0, i = 0; at < stream.length; i++) {
        const length = cuts[i % cuts.length]!;
        guest.socket.write(stream.subarray(at, at + length));
        at += length;
        await new Promise((resolve) => setImmediate(resolve));
      }
      await guest.until(kinds.length);
      const got = new Map(guest.answers.map((s) => [s.id, s.rcode]));
      expect(guest.answers).toHaveLength(kinds.length);
      expect(kinds.map((_, id) => got.get(id))).toEqual(kinds.map((kind) => [0, 3, 0, 3, 1, 1][kind]));
      expect(guest.world.asked.every((x) => x.name === "allowed.example" || x.name === "a.wild.example")).toBe(true);
      guest.socket.destroy();
    }), { numRuns: 25 });
  });

  it("1000 pipelined questions are all answered, never more open than the bound, none refused for being many", async () => {
    let peak = 0;
    const guest = await dial({
      limits: { inFlight: 40 },
      upstream: (q, send) => {
        peak = Math.max(peak, guest.world.sandbox.inFlight);
        setImmediate(() => send(replyTo(q)));
      },
    });
    guest.socket.write(Buffer.concat(Array.from({ length: 1_000 }, (_, id) => frame(query(id % 2 === 0 ? `n${id}.wild.example` : `n${id}.evil.example`, 1, { id })))));
    await guest.until(1_000);
    expect(new Set(guest.answers.map((s) => s.id)).size).toBe(1_000);
    expect(guest.answers.every((s) => s.rcode === (s.id % 2 === 0 ? 0 : 3))).toBe(true);
    expect(guest.world.asked).toHaveLength(500);
    expect(guest.world.asked.every((x) => x.name.endsWith(".wild.example"))).toBe(true);
    expect(peak).toBeLessThanOrEqual(Math.min(40, OPEN_QUESTIONS));
  });

  it("a slow question does not hold up the next one", async () => {
    const guest = await dial({ upstream: (q, send) => { if (!q.toString("latin1").includes("slow")) send(replyTo(q)); } });
    guest.socket.write(Buffer.concat([frame(query("slow.wild.example", 1, { id: 1 })), frame(query("quick.wild.example", 1, { id: 2 }))]));
    await guest.until(1);
    expect(guest.answers[0]!.id).toBe(2);
  });

  it("hanging names, more than the bounds hold, delay no other question and are refused in time", async () => {
    const guest = await dial({ limits: { inFlight: 80 }, upstream: (q, send) => { if (!q.toString("latin1").includes("hang")) send(replyTo(q)); } });
    const ids = Array.from({ length: 300 }, (_, id) => id);
    guest.socket.write(Buffer.concat(ids.map((id) => frame(query(id === 299 ? "denied.example" : `hang${id}.wild.example`, 1, { id })))));
    await guest.until(220);
    expect(guest.answers.find((s) => s.id === 299)!.rcode).toBe(3);
    expect(guest.answers.filter((s) => s.rcode === 2)).toHaveLength(219);
    expect(guest.world.count("in-flight-limit")).toBe(219);
    guest.world.service.upstream.close();
    await guest.until(300);
  });

  it("a length that says less leaves the rest to be the next frame; one that says more waits, and the first is answered", async () => {
    const guest = await dial();
    const q = query("allowed.example", 1, { id: 5 });
    guest.socket.write(Buffer.concat([u16(20), q]));
    await guest.until(1);
    expect([guest.answers[0]!.rcode, guest.answers[0]!.id]).toEqual([1, 5]);
    expect(guest.world.asked).toEqual([]);
    const more = await dial();
    more.socket.write(Buffer.concat([frame(q), u16(0xffff), q]));
    await more.until(1);
    expect(more.answers).toHaveLength(1);
    expect(more.world.sandbox.connections).toBe(1);
  });

  it("A30: malformed gets FORMERR over TCP too; frames without an id close the connection", async () => {
    const guest = await dial();
    guest.socket.write(Buffer.concat([frame(query("allowed.example", 1, { id: 6, extra: Buffer.from([0]) })), frame(Buffer.from([0, 7])), frame(query("allowed.example", 1, { id: 8 }))]));
    await guest.until(3);
    expect(guest.answers.map((s) => [s.id, s.rcode])).toEqual([[6, 1], [7, 1], [8, 0]]);
    for (const bad of [Buffer.alloc(2), Buffer.from([0, 1, 9])]) {
      const short = await dial();
      short.socket.write(bad);
      await short.closed;
      expect(short.world.sandbox.connections).toBe(0);
    }
  });

  it("an answer from the guest is passed over, and what follows is served", async () => {
    const guest = await dial();
    guest.socket.write(Buffer.concat([...Array.from({ length: 40 }, () => frame(query("allowed.example", 1, { id: 1, flags: 0x8180 }))), frame(query("allowed.example", 1, { id: 2 }))]));
    await guest.until(1);
    expect(guest.answers[0]!.id).toBe(2);
  });

  it("over the sandbox's rate a stream waits: its questions are not refused as fast as it asks them, and few of them when nothing moves", async () => {
    const guest = await dial({ limits: { queriesPerSecond: 100, burst: 40 } }), { world } = guest;
    const turns = async (): Promise<void> => { for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve)); };
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    // What gets no answer takes its part: a half of them.
    guest.socket.write(Buffer.concat(Array.from({ length: 200 }, (_, id) => [frame(query("allowed.example", 1, { id, flags: 0x8180 })), frame(query("allowed.example", 1, { id }))]).flat()));
    for (let answers = 20; answers <= 100; answers += 20) {
      await guest.until(answers);
      await turns();
      expect([guest.answers.length, world.count("answered"), world.count("ignored")]).toEqual([answers, answers, answers]);
      world.ms += 400;
      vi.advanceTimersByTime(20);
    }
    await guest.until(120);
    await turns();
    vi.advanceTimersByTime(400);
    await guest.until(136);
    await turns();
    expect([guest.answers.length, world.count("answered"), world.count("rate-limit")]).toEqual([136, 120, 16]);
  });

  it("a guest that closes its side after asking still gets its answers, and then the end", async () => {
    const guest = await dial();
    guest.socket.end(Buffer.concat([frame(query("allowed.example", 1, { id: 1 })), frame(query("n1.wild.example", 1, { id: 2 }))]));
    await guest.until(2);
    await guest.closed;
    expect(guest.answers).toHaveLength(2);
    expect(guest.world.sandbox.connections).toBe(0);
  });

  it("a guest that does not read makes the connection stop reading", async () => {
    const world = new World({
      tokens: ["allow@allowed.example:tcp:443"], limits: { queriesPerSecond: 1e9, burst: 1e9 },
      upstream: (q, send) => send(replyTo(q, { answers: Array.from({ length: 64 }, (_, i) => a("allowed.example", `93.184.216.${i + 1}`)) })),
    });
    const guest = await dial({}, world);
    guest.socket.pause();
    const many = Buffer.concat(Array.from({ length: 200 }, (_, id) => frame(query("allowed.example", 1, { id }))));
    for (let i = 0; i < 400; i++) guest.socket.write(many);
    let before = -1;
    for (let i = 0; i < 100 && world.count("answered") !== before; i++) {
      before = world.count("answered");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(world.count("answered")).toBe(before);
    expect(before).toBeLessThan(80_000);
    guest.socket.destroy();
  });

  it("gives large answers whole", async () => {
    const guest = await dial({ tcp: (q, send) => send(replyTo(q, { answers: Array.from({ length: 250 }, (_, i) => ({ name: "allowed.example", type: 16, data: Buffer.concat([Buffer.from([200]), Buffer.alloc(200, i)]) })) })), upstream: (q, send) => send(replyTo(q, { flags: 0x8380 })) });
    guest.socket.write(frame(query("allowed.example", 16)));
    await guest.until(1);
    expect(guest.answers[0]!.counts[1]).toBe(250);
  });
});

describe("connections to upstream servers", () => {
  it("answered or not, they end by a reset, so that none holds a port of the host's after its end", async () => {
    const ends: string[] = [];
    let asked = 0;
    let wake = (): void => undefined;
    const until = async (done: () => boolean): Promise<void> => { while (!done()) await new Promise<void>((resolve) => { wake = resolve; }); };
    const sockets: Socket[] = [];
    const server = createServer((socket) => {
      sockets.push(socket);
      socket.on("data", (chunk: Buffer) => {
        asked++;
        if (!chunk.includes("hang")) socket.write(frame(replyTo(chunk.subarray(2))));
        wake();
      });
      socket.on("end", () => ends.push("end"));
      socket.on("error", (error: NodeJS.ErrnoException) => ends.push(error.code ?? ""));
      socket.on("close", () => wake());
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    open.push({ server, sockets });
    const { port } = server.address() as AddressInfo;
    const udp = createSocket("udp4");
    udp.on("message", (q, from) => udp.send(replyTo(q, { flags: 0x8380 }), from.port, from.address));
    await new Promise<void>((resolve) => udp.bind(0, "127.0.0.1", resolve));
    const client = new UpstreamClient({
      createSocket: (family, onBatch) => openDatagram(family, "127.0.0.1", 0, onBatch), connect: ({ host }) => connect({ host, port }), nowMs: () => performance.now(), onFault: (error) => { throw error; },
    }, new UpstreamCounters());
    try {
      const servers = [upstreamServer(parseAddress("127.0.0.1")!, udp.address().port)];
      const outcomes: unknown[] = [];
      for (const name of ["one", "two", "hang"]) client.ask(nameOf([name, "test"])!, 16, false, servers, 0, (outcome) => { outcomes.push(typeof outcome === "string" ? outcome : outcome.rcode); wake(); });
      await until(() => asked === 3 && outcomes.length === 2 && ends.length === 2);
      client.close();
      await until(() => ends.length === 3);
      expect([outcomes, ends]).toEqual([[0, 0, "no-server"], ["ECONNRESET", "ECONNRESET", "ECONNRESET"]]);
    } finally {
      client.close();
      await new Promise<void>((resolve) => udp.close(() => resolve()));
    }
  });
});
