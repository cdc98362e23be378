/**
 * The DNS service of one thread: listeners, sandboxes, upstream sets, pins, sweeping; everything but the message port.
 *
 * Holds always: a datagram or connection is a sandbox's by its source address alone, which the kernel program writes and
 * nobody else can reach the listeners with; one from no known sandbox gets no answer and is counted. What goes away
 * (sandbox, swap) lets go of its descriptors.
 * Does not: know how its settings arrive (worker.ts).
 */
import { createServer, type Server, type Socket } from "node:net";
import { parseAddress } from "../addresses/address.js";
import { classify, type Group, type GroupTable } from "../addresses/groups.js";
import { DESCRIPTOR_PARTS, descriptorLimit } from "../descriptors.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import type { SandboxPolicy } from "./judge.js";
import type { DnsLimits } from "./limits.js";
import { UpstreamCounters } from "./metrics.js";
import { PEER, type DatagramSocket, type OnBatch } from "./peer.js";
import { PinBook, type AddressWriter } from "./pins.js";
import { AnswerCache } from "./cache.js";
import { Resolver, Sandbox, upstreamSet, type Client, type DenialEvent, type UpstreamSet } from "./resolver.js";
import { TcpConnection } from "./tcp.js";
import { UpstreamClient, type UpstreamIo, type UpstreamServer } from "./upstream.js";
import { labelsOf, type Name } from "./wire.js";

/** Octets of a guest's datagram that are looked at: the largest question with a generous OPT; a longer one is FORMERR. */
export const GUEST_CELL = 2_048;
/** Every sandbox's pins are looked at about so often, ms; in parts, so that no turn of the loop is long. */
const SWEEP_MS = 5_000;
const SWEEP_PART_MS = 250;
/** Pins looked at in one part, at least; reading a flow table counts as so many. */
const SWEEP_PART = 2_048;
const LOOK_COST = 512;
/** TCP connections over all sandboxes, where the process may have descriptors for so many; each has its share, so that none can take all. */
const MAX_CONNECTIONS = 8_192;
/** Names told under open policies that are remembered, over all sandboxes. */
const SHOWN_TOTAL = 131_072;

export interface ServiceIo extends Omit<UpstreamIo, "onFault" | "descriptors"> {
  /** How many descriptors the process may have; default: what its limit says. */
  readonly descriptors?: number;
  nowSeconds(): number;
  onDenied(event: DenialEvent): void;
}

/** One UDP listener as a client: the datagram being handled, without an object per datagram. */
class UdpClient implements Client {
  readonly stream = false;
  readonly waited = 0;
  peers: Buffer = Buffer.alloc(PEER);
  index = 0;

  constructor(readonly listener: UdpListener) {}

  send(message: Buffer, length: number): void {
    this.listener.socket!.send(message, 0, length, this.peers, this.index);
  }

  retain(): Client {
    const { listener } = this;
    const peer = Buffer.from(this.peers.subarray(this.index * PEER, (this.index + 1) * PEER));
    return {
      stream: false,
      waited: 0,
      send: (message, length) => listener.later(message, length, peer),
      retain() { return this; },
    };
  }
}

class UdpListener {
  socket: DatagramSocket | null = null;
  private flushing = false;
  readonly client = new UdpClient(this);

  /** Sends outside a batch; one flush for all of this turn of the loop, after every socket that was ready. */
  later(message: Buffer, length: number, peer: Buffer): void {
    if (this.socket === null) return;
    this.socket.send(message, 0, length, peer, 0);
    if (this.flushing) return;
    this.flushing = true;
    setImmediate(() => {
      this.flushing = false;
      this.socket?.flush();
    });
  }
}

interface Held {
  readonly sandbox: Sandbox;
  /** its own resolvers; null: the host's. */
  own: readonly UpstreamServer[] | null;
  readonly inUse: (() => (address: Uint8Array) => boolean) | null;
  disposeWriter: () => void;
  readonly dispose: () => void;
  swap: { readonly own: readonly UpstreamServer[] | null; readonly disposeWriter: () => void } | null;
}

export interface NewSandbox {
  readonly slot: number;
  readonly generation: number;
  /** its own, then the operator's floor if there is one: each must allow. */
  readonly policies: readonly SandboxPolicy[];
  readonly limits: DnsLimits;
  /** where pins are written: one for each of the policies. */
  readonly writers: readonly AddressWriter[];
  /** null: the host's resolvers. */
  readonly upstreams: readonly UpstreamServer[] | null;
  /** takes a look at the sandbox's flows and says of addresses whether they are in use; null: no grace. */
  readonly inUse: (() => (address: Uint8Array) => boolean) | null;
  /** lets go of the writers' maps, and of the rest. */
  readonly disposeWriter: () => void;
  readonly dispose: () => void;
}

export class DnsService {
  readonly upstreamCounters = new UpstreamCounters();
  readonly upstream: UpstreamClient;
  readonly resolver: Resolver;
  strangers = 0;
  /** messages that met a bug of ours, and what the last one was. */
  faults = 0;
  lastFault: unknown = null;
  private readonly bySlot: (Held | undefined)[] = [];
  private readonly sets = new Map<string, UpstreamSet>();
  private hostServers: readonly UpstreamServer[] = [];
  private readonly listeners: UdpListener[] = [];
  private readonly servers: Server[] = [];
  private readonly sockets = new Set<Socket>();
  private owners = 0;
  private setNumber = 0;
  private readonly cache = new AnswerCache();
  private readonly sweeper: NodeJS.Timeout;
  /** the slot that the sweep has come to (-1: it rests), what it may look at in one part, and when it began, ms. */
  private sweep = { slot: -1, part: SWEEP_PART, began: -SWEEP_MS };
  /** TCP connections of all sandboxes at one time, and of one. */
  private readonly connectionRoom: number;
  private connectionShare: number;
  private net6: Uint8Array | null = null;
  private suffixes: readonly (readonly string[])[] = [];

  constructor(private readonly io: ServiceIo, private groups: GroupTable) {
    const onFault = (error: unknown): void => {
      this.faults++;
      this.lastFault = error;
    };
    const descriptors = io.descriptors ?? descriptorLimit();
    this.connectionShare = this.connectionRoom = Math.max(1, Math.min(MAX_CONNECTIONS, Math.floor(descriptors * DESCRIPTOR_PARTS.dns)));
    this.upstream = new UpstreamClient({ ...io, descriptors, onFault }, this.upstreamCounters);
    this.resolver = new Resolver(this.upstream, (address) => classify(this.groups, address), { ...io, onFault });
    this.sweeper = setInterval(() => this.sweepPart(), SWEEP_PART_MS);
    this.sweeper.unref();
  }

  groupTable(): GroupTable { return this.groups; }

  /** Domains of the host's search list. */
  localSuffixes(): readonly (readonly string[])[] { return this.suffixes; }

  setSandboxNet6(net6: Uint8Array | null): void { this.net6 = net6; }

  /** The host's addresses or routes changed. */
  setGroups(groups: GroupTable): void {
    this.groups = groups;
    const known = new Map<string, Group>();
    const group = (address: Uint8Array): Group => {
      const key = String.fromCharCode(...address);
      let found = known.get(key);
      if (found === undefined) known.set(key, (found = classify(groups, address)));
      return found;
    };
    for (const held of this.bySlot) if (held !== undefined) this.resolver.groupsChanged(held.sandbox, group);
  }

  /** The host's resolvers, for sandboxes without their own. */
  setHostResolvers(servers: readonly UpstreamServer[], searchDomains: readonly Name[]): void {
    this.hostServers = servers;
    this.resolver.searchDomains = searchDomains;
    this.suffixes = searchDomains.map(labelsOf);
    for (const held of this.bySlot) {
      if (held === undefined) continue;
      this.point(held);
      held.sandbox.epoch++; // search domains are part of every judgement
    }
    this.dropUnused();
  }

  private set(servers: readonly UpstreamServer[]): UpstreamSet {
    const key = servers.map((s) => `${s.host}#${s.port}`).join(" ");
    let set = this.sets.get(key);
    if (set === undefined) this.sets.set(key, (set = upstreamSet(servers, this.cache, this.setNumber++)));
    return set;
  }

  /** Gives the sandbox the set of its resolvers; another one makes kept answers void. */
  private point(held: Held): void {
    const set = this.set(held.own ?? this.hostServers);
    if (held.sandbox.upstreams === set) return;
    held.sandbox.upstreams = set;
    held.sandbox.epoch++;
  }

  private dropUnused(): void {
    const used = new Set<UpstreamSet>();
    for (const held of this.bySlot) if (held !== undefined) used.add(held.sandbox.upstreams);
    for (const [key, set] of this.sets) if (!used.has(set)) this.sets.delete(key);
  }

  /** @throws Error when the slot is taken. */
  add(options: NewSandbox): Sandbox {
    if (this.bySlot[options.slot] !== undefined) throw new Error(`slot ${options.slot} has a sandbox`);
    const pins = new PinBook(options.writers, options.limits);
    const sandbox = new Sandbox(
      options.slot, options.generation, this.owners++, options.policies, options.limits, pins,
      this.set(options.upstreams ?? this.hostServers), this.io.nowMs(),
    );
    this.bySlot[options.slot] = { sandbox, own: options.upstreams, inUse: options.inUse, disposeWriter: options.disposeWriter, dispose: options.dispose, swap: null };
    this.share();
    return sandbox;
  }

  /** @throws Error when there is no such sandbox (any more). */
  find(slot: number, generation: number): Sandbox {
    return this.held(slot, generation).sandbox;
  }

  /** The sandbox, or null when there is no such one (any more). */
  lookup(slot: number, generation: number): Sandbox | null {
    const sandbox = this.bySlot[slot]?.sandbox;
    return sandbox === undefined || sandbox.generation !== generation ? null : sandbox;
  }

  private held(slot: number, generation: number): Held {
    const held = this.bySlot[slot];
    if (held === undefined || held.sandbox.generation !== generation) throw new Error(`no sandbox of generation ${generation} in slot ${slot}`);
    return held;
  }

  remove(slot: number, generation: number): void {
    const held = this.held(slot, generation);
    this.bySlot[slot] = undefined;
    held.sandbox.closed = true;
    held.sandbox.fast.clear();
    held.swap?.disposeWriter();
    held.disposeWriter();
    held.dispose();
    this.dropUnused();
    this.share();
  }

  /** See protocol.ts. @throws when a swap is under way, or what the writer throws (the swap is then off). */
  beginSwap(
    slot: number, generation: number, policies: readonly SandboxPolicy[], writers: readonly AddressWriter[], upstreams: readonly UpstreamServer[] | null, disposeWriter: () => void,
  ): { written: number; left: number } {
    const held = this.held(slot, generation);
    if (held.swap !== null) throw new Error(`slot ${slot}: a policy swap is under way`);
    const result = held.sandbox.pins.beginSwap(writers, (name) => this.resolver.bitsUnder(policies, name));
    held.sandbox.beginSwap(policies);
    held.swap = { own: upstreams, disposeWriter };
    return result;
  }

  confirmSwap(slot: number, generation: number, limits: DnsLimits): void {
    const held = this.held(slot, generation);
    if (held.swap === null) throw new Error(`slot ${slot}: no policy swap is under way`);
    held.sandbox.pins.confirmSwap();
    held.sandbox.endSwap(true);
    held.sandbox.setLimits(limits, this.io.nowMs());
    held.own = held.swap.own;
    held.disposeWriter();
    held.disposeWriter = held.swap.disposeWriter;
    held.swap = null;
    this.point(held);
    this.dropUnused();
  }

  abortSwap(slot: number, generation: number): void {
    const held = this.held(slot, generation);
    if (held.swap === null) throw new Error(`slot ${slot}: no policy swap is under way`);
    held.sandbox.pins.abortSwap();
    held.sandbox.endSwap(false);
    held.swap.disposeWriter();
    held.swap = null;
  }

  sandboxes(): Sandbox[] {
    return this.bySlot.flatMap((held) => (held === undefined ? [] : [held.sandbox]));
  }

  /** After one came or went: what each may keep. */
  private share(): void {
    const count = Math.max(1, this.count());
    this.resolver.share(count);
    this.upstream.owners = count;
    this.connectionShare = Math.max(1, Math.floor(this.connectionRoom / count));
    for (const { pins } of this.sandboxes()) pins.shownShare = Math.max(16, Math.floor(SHOWN_TOTAL / count));
  }

  private count(): number {
    return this.bySlot.reduce((sum, held) => sum + (held === undefined ? 0 : 1), 0);
  }

  cacheStats(): { entries: number; octets: number; evicted: number } {
    return { entries: this.cache.size, octets: this.cache.octets, evicted: this.cache.evicted };
  }

  flushCache(): void {
    this.cache.clear();
    for (const held of this.bySlot) if (held !== undefined) held.sandbox.epoch++;
  }

  droppedAnswers(): number {
    return this.listeners.reduce((sum, { socket }) => sum + (socket?.dropped ?? 0), 0);
  }

  /**
   * Opens a UDP listener in the calling thread's namespace of the moment.
   * @param open makes the socket.
   */
  listenUdp<S extends DatagramSocket>(open: (onBatch: OnBatch) => S): S {
    const listener = new UdpListener();
    const { client } = listener;
    const socket = open((count, data, lengths, peers) => {
      client.peers = peers;
      for (let i = 0; i < count; i++) {
        const held = this.bySlot[this.slotOf(peers, i * PEER)];
        if (held === undefined) {
          this.strangers++;
          continue;
        }
        client.index = i;
        // A datagram over the cell was cut: its header still says whose it is, and what is left does not parse.
        this.resolver.handle(held.sandbox, data, i * GUEST_CELL, Math.min(lengths[i]!, GUEST_CELL), client);
      }
    });
    listener.socket = socket;
    this.listeners.push(listener);
    return socket;
  }

  /** Opens a TCP listener in the calling thread's namespace; the namespace must not change before this resolves. */
  listenTcp(address: string, port: number): Promise<number> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: false }, (socket) => this.accept(socket));
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: address, port, exclusive: true }, () => {
        server.off("error", reject);
        server.on("error", () => undefined);
        this.servers.push(server);
        const bound = server.address();
        resolve(typeof bound === "object" && bound !== null ? bound.port : port);
      });
    });
  }

  /** TCP connections that a sandbox may have at one time. */
  connectionLimit({ limits }: Sandbox): number { return Math.min(limits.connections, this.connectionShare); }

  /** A connection at one of the listeners. */
  accept(socket: Socket): void {
    const address = socket.remoteAddress === undefined ? null : parseAddress(socket.remoteAddress);
    const slot = address === null ? -1 : this.slotOfAddress(address, 0, socket.remoteFamily === "IPv4");
    const held = slot < 0 ? undefined : this.bySlot[slot];
    if (held === undefined) {
      this.strangers++;
      socket.destroy();
      return;
    }
    const { sandbox } = held;
    if (sandbox.connections >= this.connectionLimit(sandbox) || this.sockets.size >= this.connectionRoom) {
      sandbox.counters.tcpRefused++;
      socket.destroy();
      return;
    }
    this.sockets.add(socket);
    socket.on("close", () => this.sockets.delete(socket));
    new TcpConnection(socket, sandbox, (s, b, offset, length, client) => this.resolver.handle(s, b, offset, length, client), () => this.io.nowMs());
  }

  private slotOf(peers: Uint8Array, at: number): number {
    return this.slotOfAddress(peers, at + 4, peers[at] === 4);
  }

  /** The slot that a source address stands for, -1 for an address that is no sandbox's. */
  private slotOfAddress(b: Uint8Array, at: number, v4: boolean): number {
    let n = ((b[at + 12]! << 24) | (b[at + 13]! << 16) | (b[at + 14]! << 8) | b[at + 15]!) >>> 0;
    if (v4) {
      if (n >>> 28 !== 15) return -1;
      n &= 0x0fffffff;
    } else {
      if (this.net6 === null) return -1;
      for (let i = 0; i < 12; i++) if (b[at + i] !== this.net6[i]) return -1;
    }
    return n < AbiLimit.SANDBOX_ADDR_OFFSET ? -1 : n - AbiLimit.SANDBOX_ADDR_OFFSET;
  }

  /** Expired pins and answers go, a part of them at a time; runs by itself every SWEEP_PART_MS. */
  sweepPart(): void {
    const nowMs = this.io.nowMs();
    const now = this.io.nowSeconds();
    const { sweep } = this;
    this.cache.sweep(now, 1_024);
    if (sweep.slot < 0) {
      if (nowMs - sweep.began < SWEEP_MS) return;
      sweep.began = nowMs;
      sweep.slot = 0;
      const total = this.sandboxes().reduce((sum, { pins }) => sum + pins.counters.addresses + pins.counters.names + pins.counters.shownNames, 0);
      sweep.part = Math.max(SWEEP_PART, Math.ceil((2 * total * SWEEP_PART_MS) / SWEEP_MS));
    }
    let left = sweep.part;
    while (left > 0 && sweep.slot < this.bySlot.length) {
      const held = this.bySlot[sweep.slot];
      if (held === undefined) {
        sweep.slot++;
        continue;
      }
      // The flow table is read at most once in each part, and only when a pin is near its end.
      let look: ((address: Uint8Array) => boolean) | null = null;
      left = held.sandbox.pins.sweepSome(now, (address) => {
        look ??= held.inUse === null ? () => false : held.inUse();
        return look(address);
      }, left) - (look === null ? 0 : LOOK_COST);
      if (!held.sandbox.pins.sweeping) sweep.slot++;
    }
    if (sweep.slot >= this.bySlot.length) sweep.slot = -1;
  }

  async close(): Promise<void> {
    clearInterval(this.sweeper);
    this.upstream.close();
    for (const listener of this.listeners) {
      listener.socket?.close();
      listener.socket = null;
    }
    for (const socket of this.sockets) socket.destroy();
    await Promise.all(this.servers.map((server) => new Promise((resolve) => server.close(resolve))));
    for (const held of this.bySlot) if (held !== undefined) this.remove(held.sandbox.slot, held.sandbox.generation);
  }
}

