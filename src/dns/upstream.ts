/**
 * Asking the agent's own resolvers: UDP first, TCP when cut short, another server when one fails.
 *
 * Holds always: the source port and id of each query are random and new for each attempt; an answer counts only from the
 * server asked, at the port asked, on the socket used, with the id and the very octets of the question; every ask ends
 * within TOTAL_MS with a reply or a fault; a server that hangs is passed over while it does.
 * Does not: know sandboxes, names' verdicts or the cache.
 */
import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { DESCRIPTOR_PARTS, fairShare } from "../descriptors.js";
import { encodeQuery, parseReply, questionMatches, type Reply } from "./message.js";
import type { UpstreamCounters } from "./metrics.js";
import { encodePeer, samePeer, type DatagramSocket, type OnBatch } from "./peer.js";
import { Flag, HEADER, Rcode, type Name } from "./wire.js";

/** An ask ends after this, ms: the guest has its answer within 5 s. */
export const TOTAL_MS = 4_500;
/** Waits before the next server is tried, ms, by attempt. */
const ATTEMPT_MS = [800, 1_000, 1_000, 1_200] as const;
const TCP_MS = 2_500;
/** A socket takes no new query after this age or use, so that its port is not known for long. */
const SOCKET_AGE_MS = 10_000;
/**
 * How long an answer is still known after its ask has ended: a slow server is no forger, and shows that it is back. No shorter than a
 * socket takes queries: by names that are slow on purpose a guest would have everybody's questions asked over TCP.
 */
const LATE_MS = SOCKET_AGE_MS;
const SOCKET_USES = 1_024;
const SOCKETS = 4;
/** Asks at one time, over all sandboxes; the resolver gives each sandbox its share. */
export const MAX_ASKS = 32_768;
/** Connections to upstreams at one time, in all where the process may have descriptors for so many, and for the questions of one sandbox. */
const MAX_TCP = 1_024;
const OWNER_TCP = 64;
/** Consecutive time-outs after which a server is passed over, and for how long at first and at most, ms. */
const DOWN_AFTER = 2;
const DOWN_FIRST_MS = 1_000;
const DOWN_MAX_MS = 30_000;
/** Answers that match nothing after which a query's socket is taken to be under attack, and TCP is used. */
const FORGERIES = 64;
export const UPSTREAM_CELL = 4_096;

export interface UpstreamServer {
  readonly family: 4 | 6;
  /** 16 octets. */
  readonly address: Uint8Array;
  readonly port: number;
  /** for people and for net.connect. */
  readonly host: string;
}

/** owner-busy: the bounds of the one whose question it was, and perhaps of nobody else, left no way to a server. */
export type UpstreamFault = "no-server" | "busy" | "owner-busy" | "timeout" | "server-error" | "unusable";

/** The world outside, made in the host's network namespace. */
export interface UpstreamIo {
  createSocket(family: 4 | 6, onBatch: OnBatch): DatagramSocket;
  connect(server: UpstreamServer): Socket;
  nowMs(): number;
  /** How many descriptors the process may have; default: enough. */
  readonly descriptors?: number;
  /** A bug that a reply met: counted by whoever runs the service; the ask ends by its clock. */
  onFault(error: unknown): void;
}

interface Server extends UpstreamServer {
  readonly peer: Buffer;
  timeouts: number;
  downUntil: number;
  /** when it last answered anything, ms. */
  answered: number;
}

interface Attempt {
  readonly ask: Ask;
  readonly server: Server;
  readonly sentAt: number;
  readonly socket: PooledSocket | null;
  readonly id: number;
  stream: Socket | null;
  /** the server answered or gave up. */
  done: boolean;
}

class Ask {
  readonly attempts: Attempt[] = [];
  readonly errors = new Set<Server>();
  timer: NodeJS.Timeout | null = null;
  finished = false;
  /** a connection that it needed was beyond its owner's bound. */
  starved = false;
  tries = 0;
  order: readonly Server[] = [];
  edns = true;
  query: Buffer;
  readonly questionEnd: number;

  constructor(
    readonly name: Name, readonly type: number, readonly dnssec: boolean, readonly owner: number, readonly deadline: number,
    readonly done: (outcome: Reply | UpstreamFault) => void,
  ) {
    this.query = encodeQuery(name, type, dnssec);
    this.questionEnd = HEADER + name.wire.length + 4;
  }
}

/**
 * Ends a connection by a reset: all was read or nothing is wanted any more, and an orderly end would hold its port for a minute. A
 * sandbox whose answers all come over TCP would so use up all the ports that the host has towards a server.
 */
function drop(stream: Socket): void {
  if (stream.connecting || stream.destroyed) stream.destroy();
  else stream.resetAndDestroy();
}

/** The server is there. */
function heard(server: Server, now: number): void {
  server.timeouts = 0;
  server.downUntil = 0;
  server.answered = now;
}

const randomPool = Buffer.alloc(4_096);
let randomAt = randomPool.length;
/** A random number of 16 bits from the kernel's generator. */
function random16(): number {
  if (randomAt + 2 > randomPool.length) {
    randomBytes(randomPool.length).copy(randomPool);
    randomAt = 0;
  }
  randomAt += 2;
  return randomPool.readUInt16LE(randomAt - 2);
}

interface PooledSocket {
  readonly socket: DatagramSocket;
  readonly waiting: Map<number, Attempt>;
  readonly made: number;
  uses: number;
  forgeries: number;
  retired: boolean;
  closed: boolean;
}

/** Sockets on random ports, shared by all sets of upstreams; an attempt takes one at random. */
export class SocketPool {
  private readonly sockets: { 4: PooledSocket[]; 6: PooledSocket[] } = { 4: [], 6: [] };
  private readonly retired = new Set<PooledSocket>();
  private readonly dirty = new Set<PooledSocket>();
  private flushing = false;

  /** @param onReply gets what matched a waiting attempt; cut: the datagram was longer than its cell. */
  constructor(
    private readonly io: UpstreamIo, private readonly counters: UpstreamCounters,
    private readonly onReply: (attempt: Attempt, data: Buffer, offset: number, length: number, cut: boolean) => void,
  ) {}

  /** @throws what creating a socket throws. */
  take(family: 4 | 6): PooledSocket {
    const list = this.sockets[family];
    const now = this.io.nowMs();
    const place = random16() % SOCKETS;
    let pooled = list[place];
    if (pooled === undefined || pooled.uses >= SOCKET_USES || now - pooled.made > SOCKET_AGE_MS) {
      const fresh = this.open(family, now);
      if (pooled !== undefined) this.retire(pooled);
      list[place] = fresh;
      pooled = fresh;
    }
    pooled.uses++;
    return pooled;
  }

  /** Registers the attempt under a random id that is free on its socket; -1 when none was found. */
  freeId(pooled: PooledSocket): number {
    for (let i = 0; i < 16; i++) {
      const id = random16();
      if (!pooled.waiting.has(id)) return id;
    }
    return -1;
  }

  send(attempt: Attempt, query: Buffer): void {
    const pooled = attempt.socket!;
    pooled.waiting.set(attempt.id, attempt);
    query.writeUInt16BE(attempt.id, 0);
    pooled.socket.send(query, 0, query.length, attempt.server.peer, 0);
    this.counters.sent++;
    // One flush for all queries of this turn of the loop: setImmediate runs after every socket that was ready.
    this.dirty.add(pooled);
    if (this.flushing) return;
    this.flushing = true;
    setImmediate(() => {
      this.flushing = false;
      for (const each of this.dirty) if (!each.closed) each.socket.flush();
      this.dirty.clear();
    });
  }

  release(attempt: Attempt): void {
    const pooled = attempt.socket;
    if (pooled === null) return;
    if (pooled.waiting.get(attempt.id) === attempt) pooled.waiting.delete(attempt.id);
    if (pooled.retired && pooled.waiting.size === 0) this.shut(pooled);
  }

  close(): void {
    for (const list of [this.sockets[4], this.sockets[6]]) for (const pooled of list) if (pooled !== undefined) this.retired.add(pooled);
    for (const pooled of this.retired) {
      pooled.closed = true;
      pooled.socket.close();
    }
    this.retired.clear();
    this.sockets[4] = [];
    this.sockets[6] = [];
  }

  private open(family: 4 | 6, now: number): PooledSocket {
    const waiting = new Map<number, Attempt>();
    const pooled: PooledSocket = {
      waiting, made: now, uses: 0, forgeries: 0, retired: false, closed: false,
      socket: this.io.createSocket(family, (count, data, lengths, peers) => {
        for (let i = 0; i < count; i++) {
          try {
            this.receive(pooled, data, i * UPSTREAM_CELL, lengths[i]!, peers, i);
          } catch (error) {
            this.io.onFault(error);
          }
        }
      }),
    };
    return pooled;
  }

  private receive(pooled: PooledSocket, data: Buffer, offset: number, length: number, peers: Buffer, index: number): void {
    const cut = length > UPSTREAM_CELL;
    const held = cut ? UPSTREAM_CELL : length;
    const attempt = held < HEADER ? undefined : pooled.waiting.get((data[offset]! << 8) | data[offset + 1]!);
    if (attempt === undefined || (data[offset + 2]! & 0x80) === 0 || !samePeer(peers, index, attempt.server.peer, 0)
      || !questionMatches(attempt.ask.query, attempt.ask.questionEnd, data, offset, held)) {
      this.counters.mismatched++;
      pooled.forgeries++;
      return;
    }
    if (!attempt.ask.finished) return this.onReply(attempt, data, offset, held, cut);
    // After another server's answer, or another attempt's: all that it tells is that the server is there. No forgery.
    heard(attempt.server, this.io.nowMs());
    this.release(attempt);
  }

  private retire(pooled: PooledSocket): void {
    pooled.retired = true;
    if (pooled.waiting.size === 0) this.shut(pooled);
    else this.retired.add(pooled);
  }

  private shut(pooled: PooledSocket): void {
    this.retired.delete(pooled);
    // Not inside the socket's own callback.
    setImmediate(() => {
      if (pooled.closed) return;
      pooled.closed = true;
      pooled.socket.close();
    });
  }
}

/** Everything that asks: sets of upstreams are given per ask, health is kept per server. */
export class UpstreamClient {
  private readonly pool: SocketPool;
  private readonly servers = new Map<string, Server>();
  private readonly asks = new Set<Ask>();
  private streams = 0;
  /** by owner, those that have any. */
  private readonly streamsOf = new Map<number, number>();
  private readonly streamRoom: number;
  /** How many there are that ask. */
  owners = 1;
  private closed = false;

  constructor(private readonly io: UpstreamIo, private readonly counters: UpstreamCounters) {
    this.streamRoom = Math.max(1, Math.min(MAX_TCP, Math.floor((io.descriptors ?? Infinity) * DESCRIPTOR_PARTS.upstream)));
    this.pool = new SocketPool(io, counters, (attempt, data, offset, length, cut) => this.reply(attempt, data, offset, length, cut, false));
  }

  get inFlight(): number { return this.asks.size; }

  /** Servers asked so far and whether each is passed over now. */
  health(): { server: string; down: boolean; timeouts: number }[] {
    const now = this.io.nowMs();
    return [...this.servers].map(([server, s]) => ({ server, down: s.downUntil > now, timeouts: s.timeouts }));
  }

  /**
   * Asks for one name and type. done is called once, within TOTAL_MS; before ask returns when nothing could be sent.
   * @param servers in order of preference, @param owner whose question it is: bounds are per owner.
   */
  ask(name: Name, type: number, dnssec: boolean, servers: readonly UpstreamServer[], owner: number, done: (outcome: Reply | UpstreamFault) => void): void {
    const now = this.io.nowMs();
    const ask = new Ask(name, type, dnssec, owner, now + TOTAL_MS, done);
    this.asks.add(ask);
    if (this.closed || servers.length === 0) return this.finish(ask, "no-server");
    if (this.asks.size > MAX_ASKS) return this.finish(ask, "busy");
    const known = servers.map((server) => this.known(server));
    const healthy = known.filter((s) => s.timeouts < DOWN_AFTER);
    // Those that were passed over come last, and of them first the one that was heard of last: it may be names that hang, and not it.
    ask.order = [...healthy, ...known.filter((s) => s.timeouts >= DOWN_AFTER).sort((a, b) => b.answered - a.answered || a.downUntil - b.downUntil)];
    const probe = healthy.length > 0 ? ask.order.find((s) => s.timeouts >= DOWN_AFTER && s.downUntil <= now) : undefined;
    this.attempt(ask);
    if (probe !== undefined && !ask.finished) {
      // One query tries whether a server is back, beside the one that will be answered: nobody waits for the trial.
      probe.timeouts++; // set to 0 by its answer
      probe.downUntil = now + this.backOff(probe);
      this.sendUdp(ask, probe);
    }
  }

  close(): void {
    this.closed = true;
    for (const ask of [...this.asks]) this.finish(ask, "no-server");
    this.pool.close();
  }

  private known(server: UpstreamServer): Server {
    const key = `${server.host}#${server.port}`;
    let found = this.servers.get(key);
    if (found === undefined) {
      if (this.servers.size >= 1_024) this.servers.clear();
      found = { ...server, peer: encodePeer(server.family, server.address, server.port), timeouts: 0, downUntil: 0, answered: 0 };
      this.servers.set(key, found);
    }
    return found;
  }

  private backOff(server: Server): number {
    return Math.min(DOWN_MAX_MS, DOWN_FIRST_MS * 2 ** Math.min(10, Math.max(0, server.timeouts - DOWN_AFTER)));
  }

  /** Sends to the next server in order and sets the clock for the one after. */
  private attempt(ask: Ask): void {
    const usable = ask.order.filter((s) => !ask.errors.has(s));
    if (usable.length === 0) return this.finish(ask, ask.starved ? "owner-busy" : "server-error");
    const now = this.io.nowMs();
    const left = ask.deadline - now;
    if (left <= 0) return this.finish(ask, "timeout");
    const server = usable[ask.tries % usable.length]!;
    const wait = Math.min(left, ATTEMPT_MS[Math.min(ask.tries, ATTEMPT_MS.length - 1)]!);
    ask.tries++;
    const sent = this.sendUdp(ask, server);
    // No connection was left: the next server is being asked already, by a clock of its own.
    if (ask.finished || ask.timer !== null) return;
    if (!sent) ask.errors.add(server);
    ask.timer = setTimeout(() => {
      ask.timer = null;
      if (sent) this.missed(server);
      this.attempt(ask);
    }, sent ? wait : 0);
  }

  /** Goes on at once, because the current server answered uselessly. */
  private next(ask: Ask): void {
    if (ask.finished) return;
    if (ask.timer !== null) clearTimeout(ask.timer);
    ask.timer = null;
    // While another attempt may still bring the true answer, a useless one only hurries the next try.
    this.attempt(ask);
  }

  /** @returns false when the system could not send at all. */
  private sendUdp(ask: Ask, server: Server): boolean {
    try {
      const socket = this.pool.take(server.family);
      if (socket.forgeries >= FORGERIES) {
        this.sendTcp(ask, server);
        return true;
      }
      const id = this.pool.freeId(socket);
      if (id < 0) {
        this.sendTcp(ask, server);
        return true;
      }
      const attempt: Attempt = { ask, server, sentAt: this.io.nowMs(), socket, id, stream: null, done: false };
      ask.attempts.push(attempt);
      this.pool.send(attempt, ask.query);
      return true;
    } catch {
      return false;
    }
  }

  private sendTcp(ask: Ask, server: Server): void {
    const own = this.streamsOf.get(ask.owner) ?? 0;
    const most = fairShare(this.streamRoom, this.streams, this.owners, OWNER_TCP);
    if (this.streams >= this.streamRoom || own >= most) {
      ask.starved ||= own >= most;
      ask.errors.add(server);
      return this.next(ask);
    }
    const attempt: Attempt = { ask, server, sentAt: this.io.nowMs(), socket: null, id: random16(), stream: null, done: false };
    ask.attempts.push(attempt);
    this.counters.tcp++;
    this.streams++;
    this.streamsOf.set(ask.owner, own + 1);
    const stream = this.io.connect(server);
    attempt.stream = stream;
    const parts: Buffer[] = [];
    let held = 0;
    const fail = (): void => {
      if (attempt.done) return;
      attempt.done = true;
      drop(stream);
      if (ask.finished) return;
      ask.errors.add(server);
      this.next(ask);
    };
    stream.setNoDelay(true);
    stream.setTimeout(TCP_MS, fail);
    stream.on("error", fail);
    stream.on("end", fail);
    stream.on("close", () => {
      this.streams--;
      const left = (this.streamsOf.get(ask.owner) ?? 1) - 1;
      if (left > 0) this.streamsOf.set(ask.owner, left);
      else this.streamsOf.delete(ask.owner);
      fail();
    });
    stream.on("connect", () => {
      const frame = Buffer.alloc(2 + ask.query.length);
      frame.writeUInt16BE(ask.query.length, 0);
      frame.set(ask.query, 2);
      frame.writeUInt16BE(attempt.id, 2);
      stream.write(frame);
    });
    stream.on("data", (chunk: Buffer) => {
      if (attempt.done) return;
      parts.push(chunk);
      held += chunk.length;
      if (held < 2) return;
      const all = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
      parts.length = 0;
      parts.push(all);
      const length = all.readUInt16BE(0);
      if (held < 2 + length) return;
      if (length < HEADER || all.readUInt16BE(2) !== attempt.id || (all[4]! & 0x80) === 0
        || !questionMatches(ask.query, ask.questionEnd, all, 2, length)) {
        this.counters.mismatched++;
        return fail();
      }
      attempt.done = true;
      drop(stream);
      if (ask.finished) return;
      try {
        this.reply(attempt, all, 2, length, false, true);
      } catch (error) {
        this.io.onFault(error);
      }
    });
  }

  private reply(attempt: Attempt, data: Buffer, offset: number, length: number, cut: boolean, stream: boolean): void {
    const { ask, server } = attempt;
    this.pool.release(attempt);
    attempt.done = true;
    heard(server, this.io.nowMs());
    if (!stream && (cut || (data[offset + 2]! & (Flag.TC >> 8)) !== 0)) {
      // Cut short: nothing in it is used. The clock for the next server runs on, and TCP has its own end.
      if (ask.timer !== null) clearTimeout(ask.timer);
      ask.timer = setTimeout(() => {
        ask.timer = null;
        this.attempt(ask);
      }, Math.max(1, Math.min(TCP_MS, ask.deadline - this.io.nowMs())));
      return this.sendTcp(ask, server);
    }
    const rcode = data[offset + 3]! & 15;
    if (rcode === Rcode.FORMERR && ask.edns) {
      // A server from before EDNS (RFC 6891 section 7): the same question without OPT, to all that follow too.
      ask.edns = false;
      ask.query = encodeQuery(ask.name, ask.type, ask.dnssec, false);
      this.sendUdp(ask, server);
      return;
    }
    const reply = parseReply(data, offset, length);
    if (reply === null) {
      this.counters.malformed++;
      ask.errors.add(server);
      return this.next(ask);
    }
    if (reply.rcode !== Rcode.NOERROR && reply.rcode !== Rcode.NXDOMAIN) {
      this.counters.errors++;
      ask.errors.add(server);
      return this.next(ask);
    }
    this.counters.answered++;
    this.counters.latency.observe((this.io.nowMs() - attempt.sentAt) / 1000);
    this.finish(ask, reply);
  }

  private missed(server: Server): void {
    this.counters.timeouts++;
    // Many asks may miss at once: while a server is passed over, further misses say nothing new.
    const now = this.io.nowMs();
    if (server.timeouts >= DOWN_AFTER && server.downUntil > now) return;
    server.timeouts++;
    if (server.timeouts >= DOWN_AFTER) server.downUntil = now + this.backOff(server);
  }

  private finish(ask: Ask, outcome: Reply | UpstreamFault): void {
    if (ask.finished) return;
    ask.finished = true;
    this.asks.delete(ask);
    if (ask.timer !== null) clearTimeout(ask.timer);
    ask.timer = null;
    for (const attempt of ask.attempts) {
      if (attempt.socket === null || attempt.done || this.closed) this.pool.release(attempt);
      else setTimeout(() => this.pool.release(attempt), LATE_MS).unref();
      if (attempt.stream !== null) drop(attempt.stream);
    }
    if (typeof outcome === "string") this.counters.failed++;
    ask.done(outcome);
  }
}
