/**
 * A resolver without sockets: guests hand messages in, upstream servers are functions, the kernel is a Map, time is set.
 *
 * Holds always: what the resolver would send is recorded before anything answers it; nothing here checks what it is given.
 * Does not: judge; the tests do.
 */
import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import { parseAddress, formatAddress } from "../../src/addresses/address.js";
import { groupTable, type GroupInput } from "../../src/addresses/groups.js";
import { upstreamServer } from "../../src/dns/host-resolvers.js";
import type { SandboxPolicy } from "../../src/dns/judge.js";
import { defaultLimits, type DnsLimits } from "../../src/dns/limits.js";
import { outcomes, type Outcome } from "../../src/dns/metrics.js";
import { PEER, type DatagramSocket, type OnBatch } from "../../src/dns/peer.js";
import type { AddressWriter, PinEntry } from "../../src/dns/pins.js";
import type { Client, DenialEvent, Sandbox } from "../../src/dns/resolver.js";
import { sandboxPolicy } from "../../src/dns/sandbox-policy.js";
import { DnsService } from "../../src/dns/server.js";
import type { UpstreamServer } from "../../src/dns/upstream.js";
import { UPSTREAM_CELL } from "../../src/dns/upstream.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";

/* ---- octets ---- */

export const u16 = (n: number): Buffer => Buffer.from([(n >> 8) & 255, n & 255]);
export const u32 = (n: number): Buffer => Buffer.concat([u16(n >>> 16), u16(n & 0xffff)]);

/** "a.b" or labels, uncompressed. */
export function wireName(name: string | readonly (string | Buffer)[]): Buffer {
  const labels = typeof name === "string" ? (name === "" || name === "." ? [] : name.split(".")) : name;
  return Buffer.concat([...labels.map((label) => {
    const octets = typeof label === "string" ? Buffer.from(label, "latin1") : label;
    return Buffer.concat([Buffer.from([octets.length]), octets]);
  }), Buffer.from([0])]);
}

export interface Rr { readonly name: string; readonly type: number; readonly ttl?: number; readonly data: Buffer; readonly class?: number }

export const rr = (r: Rr): Buffer => Buffer.concat([wireName(r.name), u16(r.type), u16(r.class ?? 1), u32(r.ttl ?? 300), u16(r.data.length), r.data]);
export const ip = (text: string): Buffer => {
  const octets = parseAddress(text)!;
  return Buffer.from(text.includes(":") ? octets : octets.subarray(12));
};
export const a = (name: string, address: string, ttl = 300): Rr => ({ name, type: 1, ttl, data: ip(address) });
export const aaaa = (name: string, address: string, ttl = 300): Rr => ({ name, type: 28, ttl, data: ip(address) });
export const cname = (name: string, target: string, ttl = 300): Rr => ({ name, type: 5, ttl, data: wireName(target) });
export const soa = (name: string, minimum = 60, ttl = 300): Rr =>
  ({ name, type: 6, ttl, data: Buffer.concat([wireName("ns.test"), wireName("host.test"), u32(1), u32(2), u32(3), u32(4), u32(minimum)]) });

export interface OptOptions { readonly size?: number; readonly dnssec?: boolean; readonly version?: number; readonly options?: Buffer }
export const opt = (o: OptOptions = {}): Buffer =>
  Buffer.concat([Buffer.from([0]), u16(41), u16(o.size ?? 1232), Buffer.from([0, o.version ?? 0, o.dnssec ? 0x80 : 0, 0]), u16(o.options?.length ?? 0), o.options ?? Buffer.alloc(0)]);

export interface QueryOptions {
  readonly id?: number; readonly flags?: number; readonly class?: number; readonly edns?: OptOptions | null; readonly extra?: Buffer; readonly additional?: readonly Buffer[];
  readonly counts?: readonly [number, number, number, number];
}

export function query(name: string | readonly (string | Buffer)[], type = 1, o: QueryOptions = {}): Buffer {
  const additional = [...(o.edns === undefined || o.edns === null ? [] : [opt(o.edns)]), ...(o.additional ?? [])];
  const [qd, an, ns, ar] = o.counts ?? [1, 0, 0, additional.length];
  return Buffer.concat([
    u16(o.id ?? 0x1234), u16(o.flags ?? 0x0100), u16(qd), u16(an), u16(ns), u16(ar), wireName(name), u16(type), u16(o.class ?? 1), ...additional, o.extra ?? Buffer.alloc(0),
  ]);
}

export interface ReplyOptions {
  readonly rcode?: number; readonly flags?: number; readonly answers?: readonly Rr[]; readonly authority?: readonly Rr[]; readonly additional?: readonly Rr[]; readonly tail?: Buffer;
  readonly question?: Buffer; readonly id?: number; readonly opt?: boolean;
}

/** A reply to the octets of a query, with its id and question. */
export function replyTo(q: Buffer, o: ReplyOptions = {}): Buffer {
  let end = 12;
  while (q[end] !== 0) end += 1 + q[end]!;
  end += 5;
  const all = [o.answers ?? [], o.authority ?? [], o.additional ?? []];
  return Buffer.concat([
    o.id === undefined ? q.subarray(0, 2) : u16(o.id), u16((o.flags ?? 0x8180) | (o.rcode ?? 0)), u16(1), u16(all[0]!.length), u16(all[1]!.length),
    u16(all[2]!.length + (o.opt ? 1 : 0)), o.question ?? q.subarray(12, end), ...all.flat().map(rr), ...(o.opt ? [opt()] : []), o.tail ?? Buffer.alloc(0),
  ]);
}

/* ---- what came back, read without the code under test ---- */

export interface Seen {
  readonly id: number; readonly flags: number; readonly rcode: number; readonly counts: readonly number[]; readonly question: Buffer;
  readonly records: readonly { readonly section: number; readonly owner: string; readonly type: number; readonly class: number; readonly ttl: number; readonly data: Buffer }[];
  readonly edns: { readonly size: number; readonly flags: number; readonly ede: readonly { code: number; text: string }[] } | null;
  readonly raw: Buffer;
}

export function readName(b: Buffer, at: number): [string, number] {
  const labels: string[] = [];
  let next = -1;
  for (let hops = 0; hops < 200; hops++) {
    const n = b[at]!;
    if (n === 0) return [labels.join("."), next < 0 ? at + 1 : next];
    if (n >= 0xc0) {
      if (next < 0) next = at + 2;
      at = ((n & 63) << 8) | b[at + 1]!;
      continue;
    }
    labels.push(b.toString("latin1", at + 1, at + 1 + n));
    at += 1 + n;
  }
  throw new Error("test: name without end");
}

export function see(b: Buffer): Seen {
  const counts = [4, 6, 8, 10].map((at) => b.readUInt16BE(at));
  let at = 12;
  for (let i = 0; i < counts[0]!; i++) at = readName(b, at)[1] + 4;
  const question = b.subarray(12, at);
  let rcode = b.readUInt16BE(2) & 15;
  let edns: Seen["edns"] = null;
  const records: Seen["records"][number][] = [];
  for (let section = 1; section <= 3; section++) {
    for (let i = 0; i < counts[section]!; i++) {
      const [owner, p] = readName(b, at);
      const type = b.readUInt16BE(p);
      const length = b.readUInt16BE(p + 8);
      const data = b.subarray(p + 10, p + 10 + length);
      if (type === 41) {
        rcode |= b[p + 4]! << 4;
        const ede: { code: number; text: string }[] = [];
        for (let o = 0; o < data.length; o += 4 + data.readUInt16BE(o + 2)) {
          if (data.readUInt16BE(o) === 15) ede.push({ code: data.readUInt16BE(o + 4), text: data.toString("utf8", o + 6, o + 4 + data.readUInt16BE(o + 2)) });
        }
        edns = { size: b.readUInt16BE(p + 2), flags: b.readUInt16BE(p + 6), ede };
      } else records.push({ section, owner, type, class: b.readUInt16BE(p + 2), ttl: b.readUInt32BE(p + 4), data });
      at = p + 10 + length;
    }
  }
  if (at !== b.length) throw new Error(`test: ${b.length - at} octets behind the answer`);
  return { id: b.readUInt16BE(0), flags: b.readUInt16BE(2), rcode, counts, question, records, edns, raw: b };
}

export const addressesOf = (s: Seen): string[] => s.records.filter((r) => r.section === 1 && (r.type === 1 || r.type === 28))
  .map((r) => formatAddress(r.type === 1 ? Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), r.data]) : r.data));

/* ---- the world ---- */

/** @param send gives an answer, by default from the server asked to the port that asked. */
export type Upstream = (q: Buffer, send: (b: Buffer, from?: string, port?: number) => void, server: string) => void;

export class KernelPins implements AddressWriter {
  readonly entries = new Map<string, readonly PinEntry[]>();
  writes = 0;
  fail: (() => boolean) | null = null;
  write(address: Uint8Array, entries: readonly PinEntry[]): void {
    if (this.fail?.()) throw Object.assign(new Error("map is full"), { code: "E2BIG" });
    this.writes++;
    this.entries.set(formatAddress(address), entries.map((e) => ({ ...e })));
  }
  remove(address: Uint8Array): void { this.entries.delete(formatAddress(address)); }
}

/** A TCP stream to an upstream, served by the same function as UDP. */
class FakeStream extends EventEmitter {
  destroyed = false;
  connecting = true;
  constructor(private readonly serve: (q: Buffer, send: (b: Buffer) => void) => void) {
    super();
    setImmediate(() => {
      this.connecting = false;
      if (!this.destroyed) this.emit("connect");
    });
  }
  resetAndDestroy(): void { this.destroy(); }
  setNoDelay(): void {}
  setTimeout(): void {}
  write(frame: Buffer): void {
    this.serve(Buffer.from(frame.subarray(2)), (b) => setImmediate(() => { if (!this.destroyed) this.emit("data", Buffer.concat([u16(b.length), b])); }));
  }
  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    setImmediate(() => this.emit("close"));
  }
}

export interface WorldOptions {
  readonly tokens?: readonly string[]; readonly yaml?: string; readonly defaultEgress?: "allow" | "deny"; readonly noRebind?: boolean;
  readonly policy?: SandboxPolicy; readonly limits?: Partial<DnsLimits>; readonly upstream?: Upstream; readonly servers?: readonly string[]; readonly groups?: GroupInput;
  readonly tcp?: Upstream;
  /** that the process may have; default: enough. */
  readonly descriptors?: number;
  /** the operator's policy beside the sandbox's own. */
  readonly floor?: WorldOptions;
}

/** The sandbox's own policy, and the floor's when there is one. */
export function policiesOf(world: { service: DnsService }, o: WorldOptions): SandboxPolicy[] {
  return [policyOf(world, o), ...(o.floor === undefined ? [] : [policyOf(world, o.floor)])];
}

export function policyOf(world: { service: DnsService }, o: WorldOptions): SandboxPolicy {
  if (o.policy !== undefined) return o.policy;
  const { policy } = buildPolicy({
    ...(o.yaml === undefined ? {} : { file: parsePolicyText(o.yaml, "test.yaml") }), ...(o.tokens === undefined ? {} : { tokens: o.tokens }),
    ...(o.defaultEgress === undefined ? {} : { defaultEgress: o.defaultEgress }), ...(o.noRebind === undefined ? {} : { noRebind: o.noRebind }),
  });
  return sandboxPolicy(policy, null, world.service);
}

export class World {
  seconds = 1_000;
  ms = 1_000_000;
  upstream: Upstream;
  tcp: Upstream | null;
  readonly asked: { name: string; type: number; raw: Buffer; server: string; tcp: boolean }[] = [];
  readonly denied: DenialEvent[] = [];
  readonly service: DnsService;
  readonly kernel = new KernelPins();
  readonly floorKernel = new KernelPins();
  sandbox!: Sandbox;
  sockets = 0;
  private ports = 40_000;
  private slots = 0;

  constructor(private readonly options: WorldOptions = {}) {
    this.upstream = options.upstream ?? (() => undefined);
    this.tcp = options.tcp ?? null;
    const record = (raw: Buffer, server: string, tcp: boolean): void => {
      const [name, at] = readName(raw, 12);
      this.asked.push({ name, type: raw.readUInt16BE(at), raw, server, tcp });
    };
    this.service = new DnsService({
      nowMs: () => this.ms,
      descriptors: options.descriptors ?? 1 << 20,
      nowSeconds: () => this.seconds,
      onDenied: (event) => this.denied.push(event),
      createSocket: (_family, onBatch) => this.socket(onBatch, record),
      connect: (server: UpstreamServer) => new FakeStream((q, send) => {
        record(q, server.host, true);
        (this.tcp ?? this.upstream)(q, send, server.host);
      }) as unknown as Socket,
    }, groupTable(options.groups ?? {}));
    this.sandbox = this.add(options, this.kernel, this.floorKernel);
  }

  add(o: WorldOptions, writer: KernelPins = new KernelPins(), floorWriter: KernelPins = new KernelPins()): Sandbox {
    const policies = policiesOf(this, o);
    return this.service.add({
      slot: this.slots++, generation: 1, policies, limits: { ...defaultLimits, ...o.limits }, writers: [writer, floorWriter].slice(0, policies.length),
      upstreams: (o.servers ?? this.options.servers ?? ["192.0.2.53"]).map((text) => upstreamServer(parseAddress(text)!, 53)), inUse: null, disposeWriter: () => undefined, dispose: () => undefined,
    });
  }

  private socket(onBatch: OnBatch, record: (raw: Buffer, server: string, tcp: boolean) => void): DatagramSocket {
    this.sockets++;
    let closed = false;
    const port = this.ports++;
    const deliver = (b: Buffer, from: string, fromPort: number): void => {
      const cell = Buffer.alloc(UPSTREAM_CELL);
      b.copy(cell);
      const peer = Buffer.alloc(PEER);
      peer.writeUInt16LE(from.includes(":") ? 6 : 4, 0);
      peer.writeUInt16LE(fromPort, 2);
      peer.set(parseAddress(from)!, 4);
      setImmediate(() => { if (!closed) onBatch(1, cell, Uint32Array.of(b.length), peer); });
    };
    void port;
    return {
      dropped: 0,
      send: (data, offset, length, peers, index) => {
        const raw = Buffer.from(data.subarray(offset, offset + length));
        const server = formatAddress(peers.subarray(index * PEER + 4, index * PEER + 20));
        record(raw, server, false);
        this.upstream(raw, (b, from = server, fromPort = 53) => deliver(b, from, fromPort), server);
      },
      flush: () => undefined,
      close: () => { closed = true; },
    };
  }

  /** Seconds go by. */
  pass(seconds: number): void {
    this.seconds += seconds;
    this.ms += seconds * 1_000;
  }

  /** Hands a message in; null when nothing was answered by the time everything at hand has been done. */
  async send(b: Buffer, sandbox: Sandbox = this.sandbox, stream = false): Promise<Buffer | null> {
    return (await this.sendAll([b], sandbox, stream))[0] ?? null;
  }

  async sendAll(messages: readonly Buffer[], sandbox: Sandbox = this.sandbox, stream = false): Promise<Buffer[]> {
    const got: Buffer[] = [];
    const client: Client = {
      stream,
      waited: 0,
      send: (message, length) => { got.push(Buffer.from(message.subarray(0, length))); },
      retain() { return this; },
    };
    for (const b of messages) {
      // Between other octets, as a cell of a batch is.
      const cell = Buffer.concat([Buffer.from("\x55\xaa\x55\xaa", "latin1"), b, Buffer.from("\xaa\x55", "latin1")]);
      this.service.resolver.handle(sandbox, cell, 4, b.length, client);
    }
    for (let i = 0; i < 50 && got.length < messages.length; i++) await new Promise((resolve) => setImmediate(resolve));
    return got;
  }

  async ask(name: string | readonly (string | Buffer)[], type = 1, o: QueryOptions = {}, sandbox: Sandbox = this.sandbox, stream = false): Promise<Seen> {
    const got = await this.send(query(name, type, o), sandbox, stream);
    if (got === null) throw new Error("test: no answer");
    return see(got);
  }

  count(outcome: Outcome, sandbox: Sandbox = this.sandbox): number {
    return sandbox.counters.queries[outcomes.indexOf(outcome)]!;
  }
}

/** An upstream that answers every question alike. */
export const always = (o: ReplyOptions | ((q: Buffer) => ReplyOptions)): Upstream => (q, send) => send(replyTo(q, typeof o === "function" ? o(q) : o));
