/**
 * What becomes of a connection that the kernel sent to the agent: real sockets on loopback, a real TLS server as far side. Only
 * where a connection comes from and the kernel's table are made up here; test/netns/tls*.test.ts has the real ones.
 */
import { createServer as createNetServer, connect as netConnect, type AddressInfo, type Server, type Socket } from "node:net";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as tlsConnect, createServer as createTlsServer, type ConnectionOptions, type TLSSocket } from "node:tls";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { BpfMap } from "../../native/index.js";
import { parseAddress } from "../../src/addresses/address.js";
import { groupTable } from "../../src/addresses/groups.js";
import { AbiLimit, layouts, RedirectState } from "../../src/kernel/layout.gen.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import type { Policy } from "../../src/policy/types.js";
import { keptCertificate } from "../../src/tls/certificates/store.js";
import { Pump } from "../../src/tls/pump.js";
import type { TlsDenial } from "../../src/tls/protocol.js";
import { keptEnvironment } from "../../src/secrets/placeholder.js";
import { CONNECTIONS, HELLO_OCTETS, HELLOS, TlsService } from "../../src/tls/service.js";
import { UNDER_WAY } from "../../src/tls/turns.js";
import { helloRecords } from "../lib/hello.js";
import { originAuthority, until } from "./http-world.js";

const groups = groupTable({ hostAddresses: [], connectedPrefixes: [] });
const policyOf = (text: string, file = "test.yaml"): Policy => buildPolicy({ file: parsePolicyText(text, file), groups }).policy;
const REMOTE = parseAddress("93.184.216.34")!;
const SLOT = 3, GENERATION = 7;
const SHOP = policyOf("rules:\n  - allow: shop.example\n  - allow: tenant.example\n");
const NONE = policyOf("rules:\n  - allow: elsewhere.example\n");

/** The kernel's table: the entry of a port says which port the guest aimed at. */
function table(portOf: (port: number) => number | null): BpfMap {
  const field = layouts.redirect.fields;
  return {
    lookup(key: Buffer) {
      const wanted = portOf(key.readUInt32LE(0) + AbiLimit.INTERCEPTED_PORT_BASE);
      if (wanted === null) return null;
      const entry = Buffer.alloc(layouts.redirect.size);
      entry.writeUInt32LE(RedirectState.REDIRECT_LIVE, field.state.offset);
      entry.set(REMOTE, field.remote.offset);
      entry.writeUInt16BE(wanted, field.remote_port.offset);
      return entry;
    },
    close: () => undefined,
  } as unknown as BpfMap;
}

let service: TlsService, listener: Server, origin: Server, tlsServer: Server;
let denials: TlsDenial[], dialled: { address: string; port: number }[], servers: Socket[], clients: Socket[];
let pumps: Pump[], withPump: boolean, notices: string[];
let pinned: (labels: readonly string[]) => boolean;
let answered: (message: Uint8Array) => Uint8Array;
let from: string, remotePort: number | null;
let dir: string;
/** What the far side got, encrypted. */
let wire: Buffer[];

const listening = (server: Server): Promise<number> => new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port)));

beforeEach(async () => {
  [denials, dialled, servers, clients, wire] = [[], [], [], [], []];
  [pumps, withPump, notices] = [[], true, []];
  [pinned, from, remotePort] = [(labels) => labels.join(".") === "shop.example", `240.0.1.${SLOT}`, 443];
  answered = (message) => Uint8Array.from(message).reverse();
  dir = mkdtempSync(join(tmpdir(), "enf-tls-"));
  const { key, certificate } = originAuthority.issue({ kind: "name", labels: ["shop", "example"] }, Date.now());
  const secure = createTlsServer({ key, cert: certificate, ecdhCurve: "P-384", allowHalfOpen: true }, (socket) => {
    socket.on("error", () => undefined);
    socket.on("data", (data: Buffer) => socket.write(data));
    socket.on("end", () => socket.end("bye"));
  });
  secure.on("tlsClientError", () => undefined);
  secure.on("connection", (socket: Socket) => servers.push(socket));
  const securePort = await listening(secure);
  tlsServer = secure;
  origin = createNetServer({ allowHalfOpen: true }, (socket) => {
    const inner = netConnect({ port: securePort, host: "127.0.0.1", allowHalfOpen: true });
    servers.push(socket, inner);
    for (const each of [socket, inner]) each.on("error", () => { socket.destroy(); inner.destroy(); });
    socket.on("data", (data) => wire.push(data));
    socket.pipe(inner).pipe(socket);
  });
  const originPort = await listening(origin);
  service = new TlsService({
    groups, sandboxNet6: parseAddress("fd00:1::"), runDirectory: dir, onTerminate: () => undefined, onDenied: (denial) => denials.push(denial),
    startPump: () => {
      if (!withPump) throw new Error("pthread_create: EAGAIN");
      const pump = Pump.start();
      pumps.push(pump);
      return pump;
    },
    onNotice: (notice) => notices.push(notice),
    resolver: { pinned: async (_slot, _generation, _address, labels) => pinned(labels), answer: async (_slot, _generation, message) => answered(message), placeholders: async () => true },
    dial: (address, port) => {
      dialled.push({ address: [...address.slice(12)].join("."), port });
      return netConnect({ port: originPort, host: "127.0.0.1", allowHalfOpen: true });
    },
  });
  service.add(SLOT, GENERATION, "box", SHOP, null, table(() => remotePort));
  listener = createNetServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    // Every connection has a place in the table; the port that loopback gave it need not be one.
    const peer = { address: from, family: from.includes(":") ? "IPv6" : "IPv4", port: AbiLimit.INTERCEPTED_PORT_BASE + (clients.length % AbiLimit.INTERCEPTED) };
    const { _handle: handle } = socket as unknown as { _handle: { getpeername: (out: object) => number } };
    handle.getpeername = (out) => { Object.assign(out, peer); return 0; };
    service.accept(socket);
  });
  await listening(listener);
});
afterEach(async () => {
  vi.useRealTimers();
  vi.restoreAllMocks();
  service.close();
  for (const socket of [...clients, ...servers]) socket.destroy();
  await Promise.all([listener, origin, tlsServer].map((server) => new Promise((done) => server.close(done))));
  rmSync(dir, { recursive: true });
});

interface Heard { readonly socket: Socket; readonly octets: () => Buffer; readonly end: Promise<"end" | "reset"> }
async function knock(octets?: Buffer): Promise<Heard> {
  const socket = netConnect({ port: (listener.address() as AddressInfo).port, host: "127.0.0.1", noDelay: true, allowHalfOpen: true });
  clients.push(socket);
  const heard: Buffer[] = [];
  socket.on("data", (data) => heard.push(data));
  const end = new Promise<"end" | "reset">((resolve) => {
    socket.once("error", () => resolve("reset"));
    socket.once("end", () => resolve("end"));
    socket.once("close", (failed) => resolve(failed ? "reset" : "end"));
  });
  socket.once("end", () => socket.end());
  await Promise.race([end, new Promise((resolve) => socket.once("connect", resolve))]);
  if (octets !== undefined) socket.write(octets);
  return { socket, octets: () => Buffer.concat(heard), end };
}
async function secure(options: ConnectionOptions = {}): Promise<TLSSocket> {
  const { socket } = await knock();
  const stream = tlsConnect({ socket, servername: "shop.example", ca: originAuthority.certificate, ...options });
  await new Promise<void>((resolve, reject) => {
    stream.once("secureConnect", resolve);
    stream.once("error", reject);
    stream.once("close", () => reject(new Error("closed")));
  });
  stream.on("error", () => undefined);
  stream.once("end", () => stream.end());
  return stream;
}
/** However slow the machine is. */
const seen = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 60_000, interval: 10 });
const said = (stream: Socket): Promise<string> => new Promise((resolve) => stream.once("data", (data: Buffer) => resolve(data.toString())));
const closed = (stream: Socket): Promise<void> => new Promise((resolve) => { stream.resume(); if (stream.destroyed) resolve(); else stream.once("close", () => resolve()); });
const row = (): ReturnType<TlsService["stats"]>["sandboxes"][number] => service.stats().sandboxes[0]!;
const reasons = (): string[] => denials.map(({ reason }) => reason);
const ALERT = (code: number): Buffer => Buffer.of(21, 3, 1, 0, 2, 2, code);

describe("passed on", () => {
  test("to exactly the address that was judged, in both directions, half-close kept, octets counted", async () => {
    const stream = await secure();
    expect(dialled).toEqual([{ address: "93.184.216.34", port: 443 }]);
    stream.write("hello");
    expect(await said(stream)).toBe("hello");
    stream.end();
    expect(await said(stream)).toBe("bye");
    await closed(stream);
    await seen(() => expect(row()).toMatchObject({ connections: 0, outcomes: { spliced: 1 } }));
    expect(row().bytesUp).toBe(Buffer.concat(wire).length);
    expect(row().bytesDown).toBeGreaterThan(500);
  });

  describe.each([true, false])("by the splicing thread: %s", (thread) => {
    beforeEach(() => { withPump = thread; });
    const inThread = (): number => pumps.reduce((sum, { size }) => sum + size, 0);

    test("large bodies both ways, counted; nothing is left when it is over", async () => {
      const stream = await secure();
      const octets = randomBytes(24 << 20), back: Buffer[] = [];
      stream.on("data", (chunk: Buffer) => {
        back.push(chunk);
        if (Math.random() < 0.02) {
          stream.pause();
          setTimeout(() => stream.resume(), 3);
        }
      });
      for (let at = 0; at < octets.length; at += 777_777) if (!stream.write(octets.subarray(at, at + 777_777))) await new Promise((resolve) => stream.once("drain", resolve));
      await seen(() => expect(back.reduce((sum, { length }) => sum + length, 0)).toBe(octets.length));
      expect(Buffer.concat(back).equals(octets)).toBe(true);
      expect(inThread()).toBe(thread ? 1 : 0);
      expect(row().connections).toBe(1);
      expect(row().bytesDown).toBeGreaterThan(octets.length);
      stream.end();
      await closed(stream);
      await seen(() => expect(row()).toMatchObject({ connections: 0, bytesUp: Buffer.concat(wire).length }));
      expect(inThread()).toBe(0);
    });

    /** A connection past its hellos between sockets that do nothing by themselves. */
    async function passing(): Promise<{ guest: Heard; far: Socket }> {
      const serverHello = Buffer.alloc(127);
      serverHello.set([22, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3]);
      const accepted = new Promise<Socket>((resolve) => origin.removeAllListeners("connection").on("connection", (socket: Socket) => {
        servers.push(socket);
        socket.on("error", () => undefined).once("data", () => socket.write(serverHello));
        resolve(socket);
      }));
      const guest = await knock(helloRecords({ names: ["shop.example"] }));
      const far = await accepted;
      await seen(() => expect(guest.octets().equals(serverHello)).toBe(true));
      return { guest, far };
    }

    test("each octet is counted once, at once, and never less than before", async () => {
      const { guest, far } = await passing();
      const hello = helloRecords({ names: ["shop.example"] }).length;
      let last = { bytesUp: 0, bytesDown: 0 };
      const now = (): { bytesUp: number; bytesDown: number } => {
        const { bytesUp, bytesDown } = row();
        expect(bytesUp >= last.bytesUp && bytesDown >= last.bytesDown).toBe(true);
        return (last = { bytesUp, bytesDown });
      };
      await seen(() => expect(now()).toEqual({ bytesUp: hello, bytesDown: 127 }));
      expect(inThread()).toBe(thread ? 1 : 0);
      const got: Buffer[] = [];
      far.on("data", (chunk: Buffer) => got.push(chunk));
      guest.socket.write(Buffer.alloc(3_000_000));
      far.write(Buffer.alloc(5_000_000));
      await seen(() => {
        now();
        expect([Buffer.concat(got).length, guest.octets().length]).toEqual([3_000_000, 5_000_127]);
      });
      await seen(() => expect(now()).toEqual({ bytesUp: hello + 3_000_000, bytesDown: 5_000_127 }));
      far.resetAndDestroy();
      await seen(() => expect(row().connections).toBe(0));
      expect(now()).toEqual({ bytesUp: hello + 3_000_000, bytesDown: 5_000_127 });
    });

    test("a side that resets resets the other", async () => {
      for (const who of ["guest", "far"]) {
        const { guest, far } = await passing();
        expect(inThread()).toBe(thread ? 1 : 0);
        const [from, other] = who === "guest" ? [guest.socket, far] : [far, guest.socket];
        const failed = new Promise<boolean>((resolve) => other.once("close", resolve));
        from.resetAndDestroy();
        expect(await failed).toBe(true);
        await seen(() => expect(row().connections).toBe(0));
        expect(inThread()).toBe(0);
      }
    });

    test("a policy that forbids it, and a sandbox that goes, end it", async () => {
      for (const end of [() => service.setPolicy(SLOT, GENERATION, NONE, null, table(() => remotePort)), async () => service.remove(SLOT, GENERATION)]) {
        await service.setPolicy(SLOT, GENERATION, SHOP, null, table(() => remotePort));
        const streams = [await secure(), await secure()];
        expect(inThread()).toBe(thread ? 2 : 0);
        const gone = streams.map(closed);
        await end();
        await Promise.all(gone);
        await seen(() => expect(inThread()).toBe(0));
      }
    });

    test("octets that it keeps are counted", async () => {
      const { guest, far } = await passing();
      guest.socket.pause();
      far.write(randomBytes(32 << 20));
      await seen(() => expect(row().buffered).toBeGreaterThan(0));
      expect(row()).toMatchObject({ connections: 1, outcomes: { spliced: 1 } });
    });
  });

  test("while it has no descriptors for what it is given, that is said once and tried again, one at a time, and then has what is open, too", async () => {
    const { take } = Pump.prototype;
    let given = 0, why: Error | false | null = new Error("EMFILE");
    vi.spyOn(Pump.prototype, "take").mockImplementation(function (this: Pump, ...parts) {
      given++;
      return why === null ? take.apply(this, parts) : { up: parts[3], down: parts[4], again: why };
    });
    const early = [await secure(), await secure()];
    const echoed = async (stream: TLSSocket, text: string): Promise<void> => {
      stream.write(text);
      expect(await said(stream)).toBe(text);
    };
    for (const stream of [...early, ...early]) await echoed(stream, "without");
    expect(given).toBe(1);
    expect(service.stats()).toMatchObject({ pumpFailing: true, pumpFailures: 1 });
    expect(notices).toEqual([expect.stringMatching(/EMFILE$/)]);
    const now = performance.now.bind(performance);
    let later = 5_001;
    vi.spyOn(performance, "now").mockImplementation(() => now() + later);
    for (const stream of [...early, ...early]) await echoed(stream, "still without");
    expect([given, notices.length, service.stats().pumpFailures]).toEqual([2, 1, 2]);
    why = null;
    later *= 2;
    for (const stream of [...early, await secure()]) await echoed(stream, "with");
    expect(pumps.map(({ size }) => size)).toEqual([3]);
    expect(service.stats()).toMatchObject({ pumpFailing: false, pumpFailures: 2 });
    expect(notices.slice(1)).toEqual([expect.stringMatching(/splicing thread runs/)]);
    // What fails for another reason fails again.
    [why, given] = [false, 0];
    const odd = await secure();
    for (let i = 0; i < 3; i++) await echoed(odd, "without");
    expect([given, service.stats().pumpFailing, notices.length]).toEqual([1, false, 2]);
  });

  test("while no splicing thread can be made it is said once and tried again, and then has what is open, too", async () => {
    withPump = false;
    const early = [await secure(), await secure()];
    const echoed = async (stream: TLSSocket, text: string): Promise<void> => {
      stream.write(text);
      expect(await said(stream)).toBe(text);
    };
    for (const stream of early) await echoed(stream, "without");
    expect(service.stats()).toMatchObject({ pumpFailing: true, pumpFailures: 1 });
    expect(notices).toEqual([expect.stringMatching(/splicing thread cannot be made .*; it is tried again: pthread_create: EAGAIN$/)]);
    const now = performance.now.bind(performance);
    let later = 5_001;
    vi.spyOn(performance, "now").mockImplementation(() => now() + later);
    for (let i = 0; i < 3; i++) await echoed(early[0] as TLSSocket, "still without");
    expect(service.stats()).toMatchObject({ pumpFailing: true, pumpFailures: 2 });
    expect(notices).toHaveLength(1);
    withPump = true;
    later *= 2;
    for (const stream of [...early, await secure()]) await echoed(stream, "with");
    expect(pumps.map(({ size }) => size)).toEqual([3]);
    expect(service.stats()).toMatchObject({ pumpFailing: false, pumpFailures: 2 });
    expect(notices.slice(1)).toEqual([expect.stringMatching(/splicing thread runs/)]);
  });

  test("TLS test 16: the far side sees the guest's hello octet by octet", async () => {
    const hello = helloRecords({ names: ["shop.example"], padding: 3_000, ech: true }, [700, 1, 16_000]);
    await knock(hello);
    await seen(() => expect(Buffer.concat(wire).equals(hello)).toBe(true));
  });

  test("a retry of the handshake with the same name goes through (P-384 only at the far side)", async () => {
    const stream = await secure({ ecdhCurve: "X25519:P-384", minVersion: "TLSv1.3" });
    stream.write("again");
    expect(await said(stream)).toBe("again");
    expect(reasons()).toEqual([]);
  });

  test("a far side that does not take the connection: the guest's is reset", async () => {
    service.close();
    service = new TlsService({ groups, sandboxNet6: null, runDirectory: dir, onTerminate: () => undefined, onNotice: () => undefined, onDenied: () => undefined, resolver: { pinned: async () => true, answer: async () => null, placeholders: async () => true }, dial: () => netConnect({ port: 1, host: "127.0.0.1" }) });
    service.add(SLOT, GENERATION, "box", SHOP, null, table(() => 443));
    expect(await (await knock(helloRecords({ names: ["shop.example"] }))).end).toBe("reset");
    expect(row().outcomes).toEqual({ "no-upstream": 1 });
  });
});

describe("refused, and the far side never hears of it", () => {
  test.each<[string, Buffer, string, number | null]>([
    ["A40, TLS test 5: no name", helloRecords({}), "no-name", 112],
    ["A40: a name that is not allowed", helloRecords({ names: ["other.example"] }), "name-denied", 112],
    ["A40, TLS test 7: an allowed name that was not told for the address", helloRecords({ names: ["tenant.example"] }), "not-pinned", 112],
    ["A41: a name that is none", helloRecords({ names: ["shop.example."] }), "name-unreadable", 112],
    ["TLS test 9: an encrypted hello under an outer name that is not allowed", helloRecords({ names: ["cloudflare-ech.com"], ech: true }), "name-denied", 112],
    ["A45: not TLS", Buffer.from("SSH-2.0-x\r\n"), "not-tls", null],
    ["a hello that cannot be read", Buffer.of(22, 3, 1, 0, 4, 1, 0, 0, 0), "malformed", 50],
    ["TLS test 4: a hello that is too large", Buffer.of(22, 3, 1, 0, 5, 1, 1, 0, 0, 0), "too-large", 50],
  ])("%s", async (_what, octets, reason, alert) => {
    const { octets: got, end } = await knock(octets);
    expect(await end).toBe(alert === null ? "reset" : "end");
    if (alert !== null) expect(got().equals(ALERT(alert))).toBe(true);
    expect(reasons()).toEqual([reason]);
    expect(dialled).toEqual([]);
    await seen(() => expect(row()).toMatchObject({ connections: 0, hellos: 0, helloOctets: 0 }));
  });

  test("A43, TLS test 8: another name in the hello after a HelloRetryRequest", async () => {
    const { socket, end } = await knock(helloRecords({ names: ["shop.example"], retry: true }));
    await new Promise((resolve) => socket.once("data", resolve)); // the retry
    const before = Buffer.concat(wire).length;
    socket.write(helloRecords({ names: ["other.example"] }));
    expect(await end).toBe("reset");
    expect(reasons()).toEqual(["name-changed"]);
    expect(Buffer.concat(wire).length).toBe(before);
  });

  test("A43: the same, sent in the first segment without waiting for the far side", async () => {
    const first = helloRecords({ names: ["shop.example"], retry: true });
    const { end } = await knock(Buffer.concat([first, helloRecords({ names: ["other.example"] })]));
    expect(await end).toBe("reset");
    expect(reasons()).toEqual(["name-changed"]);
    expect(Buffer.concat(wire).length).toBeLessThanOrEqual(first.length);
  });

  test("A39, TLS test 3: a hello that does not come, or comes by the octet, ends at the deadline", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const silent = await knock(), slow = await knock(helloRecords({ names: ["shop.example"] }).subarray(0, 60));
    const more = await new Promise<boolean>((resolve) => slow.socket.write(Buffer.of(0), () => resolve(true)));
    expect(more).toBe(true);
    while (row().helloOctets < 61) await new Promise((resolve) => setImmediate(resolve));
    vi.advanceTimersByTime(10_001);
    expect([await silent.end, await slow.end]).toEqual(["reset", "reset"]);
    expect(reasons()).toEqual(["timeout", "timeout"]);
    expect(row()).toMatchObject({ hellos: 0, helloOctets: 0 });
  });

  test("a guest that ends its sending within its hello is let go of", async () => {
    const { socket, end } = await knock(helloRecords({ names: ["shop.example"] }).subarray(0, 60));
    socket.end();
    await end;
    await seen(() => expect(row()).toMatchObject({ connections: 0, hellos: 0, helloOctets: 0 }));
    expect(dialled).toEqual([]);
  });
});

describe("A52: whose it is", () => {
  test.each([["a sandbox that is not there", "240.0.1.9"], ["an address outside the range", "127.0.0.1"], ["the near end", "240.0.0.1"], ["another IPv6 network", "fd00:2::103"]])("%s: reset", async (_what, address) => {
    from = address;
    expect(await (await knock(helloRecords({ names: ["shop.example"] }))).end).toBe("reset");
    expect(service.stats().strangers).toBe(1);
    expect(dialled).toEqual([]);
  });

  test("no entry in the sandbox's table: reset", async () => {
    remotePort = null;
    expect(await (await knock(helloRecords({ names: ["shop.example"] }))).end).toBe("reset");
    expect(service.stats().strangers).toBe(1);
  });

  test("IPv6 leads to the same sandbox", async () => {
    from = `fd00:1::0.0.1.${SLOT}`;
    await secure();
    expect(row().outcomes).toEqual({ spliced: 1 });
  });
});

describe("bounds of one sandbox", () => {
  test("for one more hello that is not whole the oldest makes room", async () => {
    const first = await knock(Buffer.of(22));
    await seen(() => expect(row().helloOctets).toBe(1));
    for (let i = 1; i < HELLOS; i++) await knock();
    await seen(() => expect(row().hellos).toBe(HELLOS));
    const stream = await secure();
    expect(await first.end).toBe("reset");
    expect(reasons()).toEqual(["hello-limit"]);
    stream.write("x");
    expect(await said(stream)).toBe("x");
  });

  test("octets kept of hellos", async () => {
    const part = Buffer.alloc(16_000, 0);
    part.set([22, 3, 1, 0x40, 0, 1, 0, 0xf0, 0]);
    const waiting: Heard[] = [];
    const needed = Math.ceil(HELLO_OCTETS / part.length);
    for (let i = 0; i <= needed; i++) waiting.push(await knock(part));
    await seen(() => expect(reasons()).toContain("hello-limit"));
    await seen(() => expect(row().helloOctets).toBeLessThanOrEqual(HELLO_OCTETS));
    service.remove(SLOT, GENERATION);
    await Promise.all(waiting.map(({ end }) => end));
  });

  test("refusals that are told", async () => {
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - allow: shop.example\nlimits: {events_per_second: 2}\n"), null, table(() => remotePort));
    vi.useFakeTimers({ toFake: ["performance"] });
    for (let i = 0; i < 5; i++) await (await knock(helloRecords({}))).end;
    expect(reasons()).toEqual(["no-name", "no-name"]);
    expect(row()).toMatchObject({ outcomes: { "no-name": 5 }, eventsLost: 3 });
    vi.advanceTimersByTime(1_000);
    await (await knock(helloRecords({}))).end;
    expect(reasons()).toHaveLength(3);
  });

  test("requests that wait, however short: what is kept of them counts, and the connection that keeps the most ends", async () => {
    remotePort = 80;
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - allow: shop.example\nlimits: {buffered_kib: 2048}\n"), null, table(() => remotePort));
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => { servers.push(socket); socket.resume(); });
    const request = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";
    const few = await knock(Buffer.from(request.repeat(100)));
    await seen(() => expect(row().buffered).toBeGreaterThan(99 * 4_096));
    // Some sixty kilobytes, of which megabytes are kept.
    const many = await knock(Buffer.from(request.repeat(1_500)));
    expect(await many.end).toBe("reset");
    await seen(() => expect(row()).toMatchObject({ connections: 1, outcomes: { "buffer-limit": 1 } }));
    expect(few.socket.destroyed).toBe(false);
  });

  test("events of secrets that are let pass, however many a body holds; each is counted", async () => {
    process.env["ENFORCER_TEST_TOKEN"] = "a-value-of-a-secret";
    remotePort = 80;
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - allow: shop.example\ntls: {intercept: true}\nlimits: {events_per_second: 2}\nsecrets:\n  TOKEN: {from: {env: ENFORCER_TEST_TOKEN}, allowed_hosts: [other.example], on_violation: log}\n"), null, table(() => remotePort));
    delete process.env["ENFORCER_TEST_TOKEN"];
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => { servers.push(socket); socket.on("data", (data: Buffer) => wire.push(data)); });
    vi.useFakeTimers({ toFake: ["performance"] });
    const [placeholder] = Object.values(keptEnvironment(dir, "box")), body = Array.from({ length: 100 }, () => placeholder).join();
    const heard = (): string => Buffer.concat(wire).toString();
    await knock(Buffer.from(`POST / HTTP/1.1\r\nhost: shop.example\r\ncontent-length: ${body.length}\r\n\r\n${body}`));
    await seen(() => expect(heard().endsWith(body)).toBe(true));
    expect(denials.filter(({ reason }) => reason === "secret").map(({ text }) => text)).toEqual(Array.from({ length: 2 }, () => expect.stringMatching(/TOKEN, in the body .*: let pass, as the policy says$/) as string));
    expect(row()).toMatchObject({ eventsLost: 98, secrets: { TOKEN: { logged: 100 } } });
  });

  test("connections", async () => {
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - allow: shop.example\nlimits: {connections_per_second: 10000}\n"), null, table(() => remotePort));
    remotePort = 80;
    for (let i = 0; i < CONNECTIONS; i++) await knock();
    await seen(() => expect(row().connections).toBe(CONNECTIONS));
    expect(await (await knock()).end).toBe("reset");
    expect(row().outcomes.limit).toBe(1);
    expect(row().connections).toBe(CONNECTIONS);
  });
});

describe("sandboxes beside each other", () => {
  const BESIDE = 4, INTERCEPTED = policyOf("rules:\n  - allow: shop.example\ntls: {intercept: true}\nlimits: {connections_per_second: 10000}\n");
  const beside = (): ReturnType<TlsService["stats"]>["sandboxes"][number] => service.stats().sandboxes[1]!;
  beforeEach(async () => { await service.add(BESIDE, GENERATION, "beside", INTERCEPTED, null, table(() => remotePort)); });
  /** From the other one. */
  const fromBeside = async <T>(work: () => Promise<T>): Promise<T> => {
    from = `240.0.1.${BESIDE}`;
    try {
      return await work();
    } finally {
      from = `240.0.1.${SLOT}`;
    }
  };
  const hello = (): Buffer => helloRecords({ names: ["shop.example"] });

  test("where descriptors are few, one that takes all it can leaves the other its share, and has more again when there is room", async () => {
    service.close();
    // 24 connections in all: 12 for whoever comes, 6 for each of the two for sure.
    service = new TlsService({ groups, sandboxNet6: null, runDirectory: dir, descriptors: 64, onTerminate: () => undefined, onNotice: () => undefined, onDenied: () => undefined, resolver: { pinned: async () => true, answer: async () => null, placeholders: async () => true }, dial: () => netConnect({ port: 1, host: "127.0.0.1" }) });
    remotePort = 80;
    for (const slot of [SLOT, BESIDE]) await service.add(slot, GENERATION, `box${slot}`, SHOP, null, table(() => remotePort));
    const first: Heard[] = [];
    for (let i = 0; i < 20; i++) first.push(await knock());
    await seen(() => expect(row()).toMatchObject({ connections: 12, limit: 6, outcomes: { limit: 8 } }));
    await fromBeside(async () => { for (let i = 0; i < 8; i++) await knock(); });
    await seen(() => expect(beside()).toMatchObject({ connections: 6, outcomes: { limit: 2 } }));
    for (const { socket } of first) socket.destroy();
    await seen(() => expect(row()).toMatchObject({ connections: 0, limit: CONNECTIONS }));
    await fromBeside(() => knock());
    await seen(() => expect(beside().connections).toBe(7));
  });

  test("connections a second: what is over is reset with its reason, another sandbox has its own", async () => {
    vi.useFakeTimers({ toFake: ["performance"] }); // so that none comes back meanwhile
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - allow: shop.example\nlimits: {connections_per_second: 1}\n"), null, table(() => remotePort));
    expect(row().connectionTokens).toBe(10);
    for (let i = 0; i < 10; i++) await (await knock(helloRecords({}))).end;
    expect(row()).toMatchObject({ connectionTokens: 0, outcomes: { "no-name": 10 } });
    expect(await (await knock(hello())).end).toBe("reset");
    expect(row().outcomes).toEqual({ "no-name": 10, rate: 1 });
    expect(reasons().at(-1)).toBe("rate");
    await fromBeside(() => knock(hello()));
    await until(() => beside().outcomes.intercepted === 1);
    vi.advanceTimersByTime(1_000);
    expect(row().connectionTokens).toBe(1);
    await secure();
    expect(row().outcomes).toMatchObject({ rate: 1, spliced: 1 });
  });

  test("handshakes that do not end: so many are under way, the rest wait and are refused in the end; another sandbox's are over at once", async () => {
    // A far side that takes connections and says nothing.
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => { servers.push(socket); socket.on("error", () => undefined); });
    await service.setPolicy(SLOT, GENERATION, INTERCEPTED, null, table(() => remotePort));
    const flood: Heard[] = [];
    for (let i = 0; i < UNDER_WAY + 20; i++) flood.push(await knock(hello()));
    await seen(() => expect(row()).toMatchObject({ handshakes: UNDER_WAY, handshakesWaiting: 20 }));
    await fromBeside(() => knock(hello()));
    await seen(() => expect(beside()).toMatchObject({ handshakes: 1, handshakesWaiting: 0 }));
    // One that is over makes room for the next.
    flood[0]!.socket.resetAndDestroy();
    servers[0]!.destroy();
    await seen(() => expect(row()).toMatchObject({ handshakes: UNDER_WAY, handshakesWaiting: 19 }));
    service.remove(SLOT, GENERATION);
    await Promise.all(flood.slice(1).map(({ end }) => end));
    expect(beside()).toBe(undefined);
    expect(service.stats().sandboxes[0]).toMatchObject({ slot: BESIDE, handshakes: 1 });
  });

  test("what waits for its turn for ten seconds is refused", async () => {
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => { servers.push(socket); socket.on("error", () => undefined); });
    await service.setPolicy(SLOT, GENERATION, INTERCEPTED, null, table(() => remotePort));
    for (let i = 0; i < UNDER_WAY; i++) await knock(hello());
    await seen(() => expect(row().handshakes).toBe(UNDER_WAY));
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const { end } = await knock(hello());
    while (row().handshakesWaiting < 1) await new Promise((resolve) => setImmediate(resolve));
    vi.advanceTimersByTime(10_001);
    expect(await end).toBe("reset");
    expect(reasons()).toEqual(["handshake-limit"]);
    expect(row().handshakesWaiting).toBe(0);
  });

  test("octets under way: what keeps the most of them ends, the rest and another sandbox go on", async () => {
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - allow: shop.example\nlimits: {buffered_kib: 1024}\n"), null, table(() => remotePort));
    const quiet = await secure();
    const other = await fromBeside(() => { void service.setPolicy(BESIDE, GENERATION, SHOP, null, table(() => remotePort)); return secure(); });
    // A far side that sends without end to guests that do not read.
    tlsServer.removeAllListeners("secureConnection");
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => {
      servers.push(socket);
      const more = (): void => { while (!socket.destroyed && socket.write(Buffer.alloc(65_536))); };
      socket.on("error", () => undefined).on("drain", more);
      more();
    });
    const greedy: Heard[] = [];
    for (let i = 0; i < 40; i++) {
      const heard = await knock(hello());
      heard.socket.pause();
      greedy.push(heard);
    }
    await seen(() => expect(row().outcomes["buffer-limit"]).toBeGreaterThan(0));
    await seen(() => expect(row().buffered).toBeLessThanOrEqual(row().bufferedLimit));
    expect(reasons()).toContain("buffer-limit");
    for (const stream of [quiet, other]) {
      stream.removeAllListeners("data");
      expect(stream.destroyed).toBe(false);
    }
    expect(beside().outcomes).toEqual({ spliced: 1 });
  });
});

describe("another policy, another sandbox", () => {
  const swap = (policy: Policy): Promise<void> => service.setPolicy(SLOT, GENERATION, policy, null, table(() => remotePort));

  test("what the new policy would not have let through ends, the rest goes on", async () => {
    const stream = await secure();
    pinned = () => false; // a pin that has lapsed since ends no connection
    await swap(policyOf("rules:\n  - allow: shop.example\n"));
    stream.write("on");
    expect(await said(stream)).toBe("on");
    await swap(NONE);
    await closed(stream);
    expect(reasons()).toEqual(["policy-changed"]);
    await seen(() => expect(servers.every(({ destroyed }) => destroyed)).toBe(true));
  });

  test("a connection that is passed on ends when the policy begins to intercept, one to a bypassed name goes on", async () => {
    const stream = await secure();
    await swap(policyOf("rules:\n  - allow: shop.example\ntls: {intercept: true, bypass: [shop.example]}\n"));
    stream.write("on");
    expect(await said(stream)).toBe("on");
    await swap(policyOf("rules:\n  - allow: shop.example\ntls: {intercept: true}\n"));
    await closed(stream);
    expect(reasons()).toEqual(["policy-changed"]);
  });

  test("a floor that looks into requests does so whatever the policy says of TLS, and holds them to its rules", async () => {
    writeFileSync(join(dir, "root.pem"), originAuthority.certificate);
    const floor = policyOf("rules:\n  - {allow: shop.example, proto: tcp, ports: [443], methods: [GET]}\ntls: {intercept: true, upstream_ca: [root.pem]}\n", join(dir, "floor.yaml"));
    const under = (text: string): Promise<void> => service.setPolicy(SLOT, GENERATION, policyOf(text, join(dir, "policy.yaml")), floor, table(() => remotePort));
    const passedOn = await secure();
    await under("rules: [{allow: shop.example}]");
    // What was passed on as it is was not looked into.
    await closed(passedOn);
    for (const policy of ["rules: [{allow: shop.example}]", "rules: [{allow: public}]", "tls: {verify_names: false}\nrules: [{allow: shop.example}]", "tls: {intercept: true, bypass: [shop.example], upstream_ca: [root.pem]}\nrules: [{allow: shop.example}]"]) {
      await under(policy);
      // With the far side's own certificate nothing is seen.
      await expect(secure(), policy).rejects.toThrow();
      const stream = await secure({ ca: keptCertificate(dir, "box")!, ALPNProtocols: ["http/1.1"] });
      stream.write("POST /everything HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 0\r\n\r\n");
      expect(await said(stream), policy).toMatch(/^HTTP\/1\.1 403 [\s\S]*rule 1 does not allow this method/);
      stream.destroy();
    }
    // Who both pass on is passed on.
    await service.setPolicy(SLOT, GENERATION, policyOf("tls: {intercept: true, bypass: [shop.example]}\nrules: [{allow: shop.example}]"), policyOf("tls: {intercept: true, bypass: [shop.example]}\nrules: [{allow: shop.example}]"), table(() => remotePort));
    const through = await secure();
    through.write("on");
    expect(await said(through)).toBe("on");
  });

  test("an intercepted connection ends when its far side may have a secret from then on: what is under way is not looked through for it", async () => {
    const tls = "rules:\n  - allow: shop.example\ntls: {intercept: true}\n", secret = (host: string): string => `${tls}secrets:\n  TOKEN: {from: {env: ENFORCER_TEST_TOKEN}, allowed_hosts: [${host}]}\n`;
    process.env["ENFORCER_TEST_TOKEN"] = "a-value-of-a-secret";
    // A far side that says nothing: its handshake is under way as long as the test.
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => servers.push(socket));
    await swap(policyOf(tls));
    const { end } = await knock(helloRecords({ names: ["shop.example"] }));
    await seen(() => expect(row().outcomes.intercepted).toBe(1));
    await swap(policyOf(secret("other.example")));
    expect(row().connections).toBe(1);
    await swap(policyOf(secret("shop.example")));
    expect(await end).toBe("reset");
    expect(reasons()).toEqual(["policy-changed"]);
    delete process.env["ENFORCER_TEST_TOKEN"];
  });

  test("plain HTTP goes by what was asked last", async () => {
    remotePort = 80;
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => { servers.push(socket); socket.on("data", () => socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")); });
    const idle = await knock(), asked = await knock(Buffer.from("GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n"));
    await seen(() => expect(asked.octets().toString()).toContain("ok"));
    await swap(NONE);
    expect(await asked.end).toBe("reset");
    expect(idle.socket.destroyed).toBe(false);
    await seen(() => expect(row().connections).toBe(1));
  });

  test.each([
    ["a DNS message as an answer", "GET /dns-query?%64ns=%41AABAAABAAAAAAAAA3d3dwdleGFtcGxl", "application/dns-message", "dns-message"],
    ["an answer in JSON", "GET /resolve?name=a.example", "application/dns-json; charset=utf-8", "dns-message"],
    ["another answer", "GET /resolve?name=a.example", "application/json", null],
    ["another method by a field", "POST /a\r\nX-HTTP_Method-Override: delete", "text/plain", "rule-method"],
    ["another method by a form", "POST /a\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 14\r\n\r\n_method=delete", "text/plain", "rule-method"],
    ["the same method by a form", "POST /a\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 12\r\n\r\n_method=post", "text/plain", null],
    ["another target by a field", "GET /resolve\r\nx-original-url: /admin", "text/plain", "path-ambiguous"],
  ])("%s, where the policy says something of that", async (_what, request, type, reason) => {
    remotePort = 80;
    origin.removeAllListeners("connection").on("connection", (socket: Socket) => { servers.push(socket); socket.on("data", () => socket.write(`HTTP/1.1 200 OK\r\ncontent-type: ${type}\r\ncontent-length: 2\r\n\r\nok`)); });
    await service.setPolicy(SLOT, GENERATION, policyOf("rules:\n  - {allow: shop.example, methods: [GET], paths: [/dns-query, /resolve]}\n  - {allow: shop.example, methods: [POST], paths: [/a]}\ntls: {intercept: true, deny_doh: true}\n"), null, table(() => remotePort));
    const [head, body = ""] = request.split("\r\n\r\n") as [string, string?], [line, ...fields] = head.split("\r\n");
    const asked = await knock(Buffer.from(`${[`${line} HTTP/1.1`, "host: shop.example", ...fields].join("\r\n")}\r\n\r\n${body}`));
    await seen(() => expect(asked.octets().toString()).toMatch(reason === null ? /ok$/ : `"reason":"${reason}"`));
    expect(reasons()).toEqual(reason === null ? [] : [reason]);
  });

  test("a hello that is judged while the policy changes is judged by the new one", async () => {
    let go = (): void => undefined;
    const held = new Promise<void>((resolve) => { go = resolve; });
    service.close();
    service = new TlsService({ groups, sandboxNet6: null, runDirectory: dir, onTerminate: () => undefined, onNotice: () => undefined, onDenied: (denial) => denials.push(denial), resolver: { pinned: async () => { await held; return true; }, answer: async () => null, placeholders: async () => true }, dial: () => { throw new Error("dialled"); } });
    service.add(SLOT, GENERATION, "box", SHOP, null, table(() => 443));
    const { end } = await knock(helloRecords({ names: ["shop.example"] }));
    await seen(() => expect(row().connections).toBe(1));
    await swap(NONE);
    go();
    expect(await end).toBe("end");
    expect(reasons()).toEqual(["name-denied"]);
  });

  test("a sandbox that goes takes its connections along", async () => {
    const stream = await secure(), waiting = await knock();
    // The far side may not have done with its handshake yet, and one that is reset within it stays open there for long.
    stream.write("here");
    await said(stream);
    await seen(() => expect(row().connections).toBe(2));
    service.remove(SLOT, GENERATION - 1);
    expect(row().connections).toBe(2);
    service.remove(SLOT, GENERATION);
    await closed(stream);
    expect(await waiting.end).toBe("reset");
    expect(await (await knock(helloRecords({ names: ["shop.example"] }))).end).toBe("reset");
    await seen(() => expect(servers.every(({ destroyed }) => destroyed)).toBe(true));
  });
});

describe("DNS over TLS, TLS test 31", () => {
  const framed = (text: string): Buffer => Buffer.concat([Buffer.of(0, text.length), Buffer.from(text)]);
  const dot = async (tls: string, options: ConnectionOptions): Promise<TLSSocket> => {
    remotePort = 853;
    await service.setPolicy(SLOT, GENERATION, policyOf(`rules:\n  - allow: shop.example\ntls: ${tls}\n`), null, table(() => remotePort));
    return secure({ rejectUnauthorized: false, ...options });
  };

  test.each([["by name", { servername: "dns.example" }], ["by address", { servername: "" }]])("%s: questions in one piece or in octets are answered, in frames", async (_what, options) => {
    const stream = await dot("{intercept: true}", { ...options, ALPNProtocols: ["dot"] });
    expect(stream.alpnProtocol).toBe("dot");
    const got: Buffer[] = [];
    stream.on("data", (data) => got.push(data));
    stream.write(Buffer.concat([framed("question one"), framed("question two!")]));
    for (const octet of framed("question three")) stream.write(Buffer.of(octet));
    const wanted = ["question one", "question two!", "question three"].map((text) => framed([...text].reverse().join("")));
    await seen(() => expect(Buffer.concat(got).equals(Buffer.concat(wanted))).toBe(true));
    stream.end();
    await closed(stream);
    expect(row().outcomes.dot).toBe(1);
    expect(dialled).toEqual([]);
  });

  test("a frame that can hold no question ends it", async () => {
    const stream = await dot("{intercept: true}", {});
    stream.write(framed("short"));
    await closed(stream);
  });

  test("a guest that asks and does not read is asked for no more, what it holds is counted, and when it reads it gets every answer", async () => {
    const QUESTIONS = 1_500, ANSWER = 65_000;
    let asked = 0;
    answered = () => { asked++; return new Uint8Array(ANSWER); };
    const stream = await dot("{intercept: true}", {});
    stream.pause();
    stream.write(Buffer.concat(Array.from({ length: QUESTIONS }, () => framed("question one"))));
    // What the sockets take, both ends' buffers, and the 64 questions that were open; the same count twice: it stands.
    await seen(() => expect(row().buffered).toBeGreaterThan(0));
    let before = -1;
    for (; before !== asked; await new Promise((resolve) => setTimeout(resolve, 500))) before = asked;
    expect(asked).toBeLessThan(QUESTIONS / 2);
    expect(row().buffered).toBeGreaterThan(QUESTIONS);
    let octets = 0;
    stream.on("data", (data: Buffer) => { octets += data.length; });
    stream.resume();
    await seen(() => expect(octets).toBe(QUESTIONS * (ANSWER + 2)));
    expect(asked).toBe(QUESTIONS);
  });

  test("over the sandbox's rate questions wait, over all its connections, instead of being asked and refused as fast as the guest can", async () => {
    const answers = [0, 0];
    vi.useFakeTimers({ toFake: ["performance"] }); // so that none comes back meanwhile
    answered = (question) => question;
    const streams = [await dot("{intercept: true}\nlimits: {queries_per_second: 1}", {}), await secure({ rejectUnauthorized: false })];
    for (const [i, stream] of streams.entries()) {
      stream.on("data", (data: Buffer) => { answers[i]! += data.length / framed("question one").length; });
      stream.write(Buffer.concat(Array.from({ length: 1_500 }, () => framed("question one"))));
    }
    const asked = (): number => answers[0]! + answers[1]!;
    await seen(() => expect(asked()).toBe(2_000));
    // Both look whether they may go on, again and again.
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(asked()).toBe(2_000);
    vi.advanceTimersByTime(3_000);
    await seen(() => expect(asked()).toBe(2_003));
  });

  test("where it is not terminated it is reset", async () => {
    await expect(dot("{intercept: true, dot: block}", {})).rejects.toThrow();
  });
});
