/**
 * The way of a query: parse → policy on the name → cache or upstream → check → pins into the kernel → answer.
 *
 * Holds always: nothing goes upstream for a name that the policy refuses; no address goes to a guest before the kernel
 * holds its pin, and if the kernel refuses, neither goes the answer; every question gets an answer or SERVFAIL; a message
 * that is no question gets none. The sandbox's own policy and the operator's floor must both allow, and during a policy
 * swap the new ones as well. One thread, no locks.
 * Does not: touch sockets (clients and the upstream client are given), know how the kernel holds pins.
 */
import { anyAnswer, buildMessage, deniedAnswer, encodeAnswer, patchTtls, sizeLimit, type WireAnswer } from "./answer.js";
import { AnswerCache, cacheKey, type CacheEntry } from "./cache.js";
import { followChain, type ChainFault, type Resolved } from "./chain.js";
import { Ede, type EdeInfo } from "./ede.js";
import { FastTable } from "./fast.js";
import { bitsOfPin, judgeQuestion, targetRefused, type Classify, type Judgement, type SandboxPolicy } from "./judge.js";
import { TokenBucket, type DnsLimits } from "./limits.js";
import { SandboxCounters, outcomeIndex, type Outcome } from "./metrics.js";
import type { PinBook, ViewBits } from "./pins.js";
import { grants, leaseOf } from "./pins.js";
import { parseQuery, type Edns, type Question } from "./question.js";
import { actionOf, type NameFinder, type NameHit } from "../secrets/names.js";
import { refusedAddress } from "./rebind.js";
import { MAX_ASKS, TOTAL_MS, type UpstreamClient, type UpstreamFault, type UpstreamServer } from "./upstream.js";
import { HEADER, Rcode, Type, labelsOf, type Name } from "./wire.js";

/** Where an answer goes. */
export interface Client {
  /** TCP: no size limit but DNS's own. */
  readonly stream: boolean;
  /** how long the question has waited already, ms: an answer is due within ANSWER_MS of its arrival. */
  readonly waited: number;
  /** Takes a copy of the first length octets of message. */
  send(message: Buffer, length: number): void;
  /** The same client for use after the call that gave it. */
  retain(): Client;
}

/** Resolvers asked in order, and what they answered. Sandboxes with the same resolvers share one. */
export interface UpstreamSet {
  readonly servers: readonly UpstreamServer[];
  readonly cache: AnswerCache;
  /** what its keys in the cache begin with. */
  readonly prefix: string;
  readonly pending: Map<string, Waiter[]>;
}

/** @param number one that no other set of this cache has had. */
export function upstreamSet(servers: readonly UpstreamServer[], cache: AnswerCache, number: number): UpstreamSet {
  return { servers, cache, prefix: `${number} `, pending: new Map() };
}

interface Waiter {
  readonly sandbox: Sandbox;
  /** the whole query, kept. */
  readonly query: Buffer;
  readonly question: Question;
  readonly edns: Edns | null;
  readonly client: Client;
  readonly judgement: Judgement;
  readonly epoch: number;
  /** when its answer is due, ms. */
  readonly due: number;
  /** for one that had waited before: ends it in time, whatever the upstream does. */
  timer: NodeJS.Timeout | null;
  done: boolean;
}

export interface DenialEvent {
  readonly slot: number;
  readonly generation: number;
  readonly name: Name;
  readonly type: number;
  readonly outcome: Outcome;
  /** the address that was refused, for outcome rebind. */
  readonly address: Uint8Array | null;
}

/** One sandbox as the resolver knows it. */
export class Sandbox {
  readonly counters = new SandboxCounters();
  readonly fast = new FastTable();
  bucket: TokenBucket;
  /** every policy that must allow: those in force, then those being swapped in. */
  judges: readonly SandboxPolicy[];
  private inForce: readonly SandboxPolicy[];
  /** changes whenever an earlier judgement may no longer hold. */
  epoch = 1;
  inFlight = 0;
  connections = 0;
  closed = false;
  /** null: it has no secrets. */
  private placeholders: NameFinder | null = null;
  private onPlaceholder: (labels: readonly string[], hit: NameHit) => void = () => undefined;

  /**
   * @param owner a number that no other sandbox of this process has had.
   * @param policies its own first, then the floor's if there is one.
   */
  constructor(
    readonly slot: number, readonly generation: number, readonly owner: number, policies: readonly SandboxPolicy[],
    public limits: DnsLimits, readonly pins: PinBook, public upstreams: UpstreamSet, nowMs: number,
  ) {
    this.inForce = policies;
    this.judges = policies;
    this.bucket = new TokenBucket(limits.queriesPerSecond, limits.burst, nowMs);
  }

  /** Its own policy: how refusals are told. */
  get policy(): SandboxPolicy { return this.inForce[0]!; }

  get swapping(): boolean { return this.judges.length > this.inForce.length; }

  /** From now on these must allow as well. */
  beginSwap(policies: readonly SandboxPolicy[]): void {
    this.judges = [...this.inForce, ...policies];
    this.epoch++;
  }

  /** The new ones alone, or the old ones alone. */
  endSwap(confirmed: boolean): void {
    if (confirmed) this.inForce = this.judges.slice(this.inForce.length);
    this.judges = this.inForce;
    this.epoch++;
  }

  /** Questions for names that hold one of these are violations from now on, each told. */
  setPlaceholders(finder: NameFinder | null, told: (labels: readonly string[], hit: NameHit) => void): void {
    this.placeholders = finder;
    this.onPlaceholder = told;
    this.epoch++;
  }

  holdsPlaceholder(name: Name): boolean { return this.placeholders?.find(labelsOf(name)) != null; }

  /** A question for a name with a placeholder in it is told. @returns whether it ends here. */
  violates(name: Name): boolean {
    if (this.placeholders === null) return false;
    const labels = labelsOf(name), hit = this.placeholders.find(labels);
    if (hit === null) return false;
    this.onPlaceholder(labels, hit);
    const action = actionOf(hit.of.onViolation, "placeholder", labels);
    return action === "block" || action === "terminate";
  }

  /** New bounds; what is over them stays until it ends. */
  setLimits(limits: DnsLimits, nowMs: number): void {
    if (limits.queriesPerSecond !== this.limits.queriesPerSecond || limits.burst !== this.limits.burst) {
      this.bucket = new TokenBucket(limits.queriesPerSecond, limits.burst, nowMs);
    }
    this.limits = limits;
    this.pins.limits = limits;
  }
}

export interface ResolverIo {
  nowMs(): number;
  /** CLOCK_MONOTONIC, whole seconds, rounded down. */
  nowSeconds(): number;
  onDenied(event: DenialEvent): void;
  /** A bug that one sandbox's message met: counted; the others are served on. */
  onFault(error: unknown): void;
}

const ede: { readonly [K in Outcome]?: EdeInfo } = {
  denied: { code: Ede.blocked, text: "no rule allows this name" },
  blocked: { code: Ede.blocked, text: "name is blocked" },
  unmatchable: { code: Ede.blocked, text: "name has octets that no rule can match" },
  rebind: { code: Ede.blocked, text: "answer holds an address that is not allowed (rebind protection)" },
  target: { code: Ede.blocked, text: "answer leads to a name that is not allowed" },
  excess: { code: Ede.invalidData, text: "answer holds too many links or addresses" },
  "upstream-failed": { code: Ede.noReachableAuthority, text: "no resolver gave a usable answer" },
  "pin-failed": { code: Ede.other, text: "address could not be pinned" },
  "pin-limit": { code: Ede.other, text: "too many names or addresses pinned" },
  "rate-limit": { code: Ede.prohibited, text: "too many queries a second" },
  "in-flight-limit": { code: Ede.prohibited, text: "too many queries in flight" },
  "refused-kind": { code: Ede.notSupported, text: "class or type is not served" },
  secret: { code: Ede.blocked, text: "name holds a secret's placeholder" },
};

const malformedAnswer: EdeInfo = { code: Ede.invalidData, text: "resolver's answer makes no sense" };
const networkDown: EdeInfo = { code: Ede.networkError, text: "no resolver is configured" };

/** Every question has its answer this long after its arrival, ms. */
const ANSWER_MS = 4_900;
/** After waiting this long, ms, it is not worth asking any more. */
const LATEST_MS = 3_900;
/** Octets of fast tables over all sandboxes, and the bounds of one sandbox's. */
const FAST_TOTAL = 32 << 20;
const FAST_MIN = 64 << 10;
const FAST_MAX = 4 << 20;
/** Questions and answers longer than this are not kept whole: octets. */
const FAST_QUERY = 512;
const FAST_RESPONSE = 1_232;
const NO_CAP = 0x7fffffff;

/**
 * Whether an answer of this size is worth keeping for the same octets: they may well come again (no cookies and the like),
 * and it is what UDP would carry too.
 */
function repeatable(length: number, edns: Edns | null, size: number): boolean {
  return edns?.options !== true && length <= FAST_QUERY && size <= FAST_RESPONSE && size <= sizeLimit(edns, false);
}

export class Resolver {
  private readonly out = Buffer.allocUnsafe(65_535 + 512);
  private fastLimit = FAST_MAX;
  private flightShare = MAX_ASKS;
  /** names of the host's own search list; see targetRefused. */
  searchDomains: readonly Name[] = [];

  constructor(private readonly upstream: UpstreamClient, public classify: Classify, private readonly io: ResolverIo) {}

  /** @param count sandboxes there are: what each may keep depends on it. */
  share(count: number): void {
    this.fastLimit = Math.max(FAST_MIN, Math.min(FAST_MAX, Math.floor(FAST_TOTAL / Math.max(1, count))));
    this.flightShare = Math.max(1, Math.floor(MAX_ASKS / Math.max(1, count)));
  }

  /** Bits of a name's pins under each of the policies; null when no rule can match it. */
  bitsUnder(policies: readonly SandboxPolicy[], name: Name): ViewBits | null { return bitsOfPin(policies, name, this.classify); }

  /**
   * The address groups have changed: nothing that was judged before counts any more, and pins on addresses that would be
   * refused today are taken back.
   * @param group of an address, remembered by the caller over many sandboxes.
   */
  groupsChanged(sandbox: Sandbox, group: Classify): void {
    sandbox.epoch++;
    sandbox.pins.revoke((address) => group(address) !== "public", (name, address) => {
      const labels = labelsOf(name);
      return sandbox.judges.some((policy) => policy.rebindProtection && !policy.privateAllowed(labels, address));
    });
  }

  /**
   * Answers one message of a sandbox, now or later. length octets of b at offset; nothing of b is kept. Never throws: a bug
   * that one guest's message meets must not end the service of the others; that message gets no answer.
   */
  handle(sandbox: Sandbox, b: Buffer, offset: number, length: number, client: Client): void {
    try {
      this.take(sandbox, b, offset, length, client);
    } catch (error) {
      this.io.onFault(error);
    }
  }

  private take(sandbox: Sandbox, b: Buffer, offset: number, length: number, client: Client): void {
    const counters = sandbox.counters;
    if (length < 2 || (length > 2 && (b[offset + 2]! & 0x80) !== 0)) {
      sandbox.bucket.take(this.io.nowMs()); // it costs as well
      counters.queries[outcomeIndex.ignored]!++;
      return;
    }
    if (!sandbox.bucket.take(this.io.nowMs())) return this.limited(sandbox, b, offset, length, client);
    const now = this.io.nowSeconds();
    if (length <= FAST_QUERY) {
      const hash = FastTable.hash(b, offset, length);
      const entry = sandbox.fast.find(b, offset, length, hash);
      if (entry !== null && !(client.stream && entry.truncated)) {
        if (entry.epoch === sandbox.epoch && now < entry.expires && this.renew(sandbox, entry, now)) {
          entry.response[0] = b[offset]!;
          entry.response[1] = b[offset + 1]!;
          counters.queries[outcomeIndex[entry.outcome]]!++;
          if (entry.source !== null) counters.cacheHits++;
          else if (entry.outcome !== "any") this.denied(sandbox, entry.name, entry.type, entry.outcome, null);
          if (entry.truncated) counters.truncated++;
          client.send(entry.response, entry.response.length);
          return;
        }
        sandbox.fast.remove(entry);
      }
    }
    this.slow(sandbox, b, offset, length, client, now);
  }

  /** Brings a kept answer up to this second: TTLs, and the lease of its pins. false when the pin could not be had. */
  private renew(sandbox: Sandbox, entry: NonNullable<ReturnType<FastTable["find"]>>, now: number): boolean {
    const source = entry.source;
    if (source === null || entry.patched === now) return true;
    const age = now - source.born;
    let cap = NO_CAP;
    if (source.told.addresses.length > 0) {
      const lease = leaseOf(source.told.ttl - age);
      if (grants(entry.bits)) cap = lease;
      const leaseEnd = now + 1 + lease;
      if (leaseEnd > entry.leaseEnd) {
        if (sandbox.pins.pin(entry.name, entry.bits, source.told.addresses, leaseEnd, now) !== "ok") return false;
        entry.leaseEnd = leaseEnd;
      }
    }
    if (!entry.truncated) patchTtls(entry.response, source.at, source.wire, age, cap);
    entry.patched = now;
    return true;
  }

  private slow(sandbox: Sandbox, b: Buffer, offset: number, length: number, client: Client, now: number): void {
    const query = parseQuery(b, offset, length);
    if (query.kind === "ignore") {
      sandbox.counters.queries[outcomeIndex.ignored]!++;
      return;
    }
    if (query.kind === "fault") {
      const outcome: Outcome = query.rcode === Rcode.NOTIMP ? "not-implemented" : query.rcode === Rcode.REFUSED ? "refused-kind" : "malformed";
      this.plain(sandbox, b, offset, query.question?.end ?? (length < HEADER ? -1 : 0), query.rcode, outcome, query.edns, client);
      return;
    }
    const { question, edns } = query;
    // Before the rules: what they refuse anyway is a violation all the same. Never from the table of known answers, so that each is told.
    if (sandbox.violates(question.name)) {
      this.plain(sandbox, b, offset, question.end, sandbox.policy.deniedRcode, "secret", edns, client);
      return;
    }
    const judgement = judgeQuestion(sandbox.judges, question.name, this.classify);
    const { refusal } = judgement;
    if (refusal !== null) {
      const answer = deniedAnswer(question.name, sandbox.policy.deniedRcode);
      this.own(sandbox, b, offset, length, question, edns, client, answer, refusal);
      this.denied(sandbox, question.name, question.type, refusal, null);
      return;
    }
    if (question.type === Type.ANY) {
      this.own(sandbox, b, offset, length, question, edns, client, anyAnswer(question.name), "any");
      return;
    }
    const set = sandbox.upstreams;
    const dnssec = edns?.dnssec === true;
    const key = set.prefix + cacheKey(question.name, question.type, dnssec);
    const entry = set.cache.get(key, now);
    if (entry !== undefined) {
      sandbox.counters.cacheHits++;
      this.deliver(sandbox, b, offset, length, question, edns, client, judgement, entry, now, true);
      return;
    }
    // Names without end stop here: neither the upstream servers nor what is kept of their answers is for them.
    if ((question.type === Type.A || question.type === Type.AAAA) && !sandbox.pins.takesName(question.name, judgement.bits, now)) {
      this.plain(sandbox, b, offset, question.end, Rcode.SERVFAIL, "pin-limit", edns, client);
      return;
    }
    if (sandbox.inFlight >= Math.min(sandbox.limits.inFlight, this.flightShare) || client.waited > LATEST_MS) {
      this.plain(sandbox, b, offset, question.end, Rcode.SERVFAIL, "in-flight-limit", edns, client);
      return;
    }
    sandbox.inFlight++;
    const waiter: Waiter = {
      sandbox, query: Buffer.from(b.subarray(offset, offset + length)), question, edns, client: client.retain(),
      judgement, epoch: sandbox.epoch, due: this.io.nowMs() + ANSWER_MS - client.waited, timer: null, done: false,
    };
    if (client.waited > ANSWER_MS - TOTAL_MS) this.endInTime(waiter);
    const waiting = set.pending.get(key);
    if (waiting !== undefined) {
      sandbox.counters.coalesced++;
      waiting.push(waiter);
      return;
    }
    sandbox.counters.cacheMisses++;
    set.pending.set(key, [waiter]);
    this.askFor(set, key, question, dnssec, sandbox.owner);
  }

  private askFor(set: UpstreamSet, key: string, question: Question, dnssec: boolean, owner: number): void {
    this.upstream.ask(question.name, question.type, dnssec, set.servers, owner, (outcome) => {
      if (outcome === "owner-busy" && this.handOver(set, key, question, dnssec, owner)) return;
      const result = typeof outcome === "string" ? outcome : followChain(outcome, question.name, question.type, dnssec);
      this.arrived(set, key, question.name, result, owner);
    });
  }

  /** The one in whose name was asked is at its bounds: that ends its own waits only, and it is asked again for the next who waits. */
  private handOver(set: UpstreamSet, key: string, question: Question, dnssec: boolean, owner: number): boolean {
    const waiters = set.pending.get(key) ?? [];
    const others = waiters.filter(({ sandbox, done }) => sandbox.owner !== owner && !done);
    const next = others[0];
    if (next === undefined) return false;
    set.pending.set(key, others);
    const now = this.io.nowSeconds();
    for (const waiter of waiters) if (waiter.sandbox.owner === owner) this.finish(waiter, null, "owner-busy", now);
    for (const waiter of others) this.endInTime(waiter);
    this.askFor(set, key, question, dnssec, next.sandbox.owner);
    return true;
  }

  /** For a wait that may last longer than the ask it waits for has left. */
  private endInTime(waiter: Waiter): void {
    waiter.timer ??= setTimeout(() => this.finish(waiter, null, "timeout", this.io.nowSeconds()), Math.max(0, waiter.due - this.io.nowMs()));
  }

  /** An ask has ended: the answer is kept, and each that waited gets it after its own checks. */
  private arrived(set: UpstreamSet, key: string, name: Name, result: Resolved | ChainFault | UpstreamFault, owner: number): void {
    const waiters = set.pending.get(key) ?? [];
    set.pending.delete(key);
    const now = this.io.nowSeconds();
    let entry: CacheEntry | null = null;
    let fault: ChainFault | UpstreamFault = "unusable";
    if (typeof result === "string") fault = result;
    else {
      const wire = encodeAnswer(name, result.rcode, result.authentic, result.answers, result.authority);
      if (wire === null) fault = "malformed";
      else {
        const { withoutQuic } = result;
        const quicless = withoutQuic === null ? null : encodeAnswer(name, result.rcode, withoutQuic.authentic, withoutQuic.answers, result.authority);
        entry = set.cache.put(key, result.told, wire, quicless, owner, now);
      }
    }
    for (const waiter of waiters) this.finish(waiter, entry, fault, now);
  }

  /** Ends one wait, once. */
  private finish(waiter: Waiter, entry: CacheEntry | null, fault: ChainFault | UpstreamFault, now: number): void {
    if (waiter.done) return;
    waiter.done = true;
    if (waiter.timer !== null) clearTimeout(waiter.timer);
    waiter.sandbox.inFlight--;
    try {
      this.conclude(waiter, entry, fault, now);
    } catch (error) {
      this.io.onFault(error);
    }
  }

  private conclude(waiter: Waiter, entry: CacheEntry | null, fault: ChainFault | UpstreamFault, now: number): void {
    const { sandbox, question, edns, client, query } = waiter;
    if (sandbox.closed) return;
    if (entry === null) {
      const excess = fault === "address-count" || fault === "chain-length" || fault === "chain-loop";
      const info = excess ? ede.excess! : fault === "malformed" ? malformedAnswer : fault === "no-server" ? networkDown : ede["upstream-failed"]!;
      this.plain(sandbox, query, 0, question.end, Rcode.SERVFAIL, excess ? "excess" : "upstream-failed", edns, client, info);
      return;
    }
    let { judgement } = waiter;
    if (waiter.epoch !== sandbox.epoch) {
      // The policy changed while the query was under way: what counts is what is in force now.
      judgement = judgeQuestion(sandbox.judges, question.name, this.classify);
      const { refusal } = judgement;
      if (refusal !== null) {
        this.own(sandbox, query, 0, query.length, question, edns, client, deniedAnswer(question.name, sandbox.policy.deniedRcode), refusal);
        this.denied(sandbox, question.name, question.type, refusal, null);
        return;
      }
    }
    this.deliver(sandbox, query, 0, query.length, question, edns, client, judgement, entry, now, false);
  }

  /**
   * Checks an answer for one sandbox, pins, and sends.
   * @param again the answer was known: somebody has asked before, so the whole message is worth keeping.
   */
  private deliver(
    sandbox: Sandbox, b: Buffer, offset: number, length: number, question: Question, edns: Edns | null, client: Client,
    judgement: Judgement, entry: CacheEntry, now: number, again: boolean,
  ): void {
    const { told } = entry;
    const wire = entry.quicless !== null && sandbox.judges.some((policy) => policy.withoutQuic) ? entry.quicless : entry.wire;
    for (const policy of sandbox.judges) {
      if (told.targets.some((target) => targetRefused(policy, question.name, target, this.searchDomains))) {
        this.plain(sandbox, b, offset, question.end, sandbox.policy.rebindRcode, "target", edns, client);
        this.denied(sandbox, question.name, question.type, "target", null);
        return;
      }
      const address = refusedAddress(policy, judgement.labels, told, this.classify);
      if (address !== null) {
        this.plain(sandbox, b, offset, question.end, sandbox.policy.rebindRcode, "rebind", edns, client);
        this.denied(sandbox, question.name, question.type, "rebind", address);
        return;
      }
    }
    const age = now - entry.born;
    const bits = judgement.bits;
    let cap = NO_CAP;
    let leaseEnd = 0;
    if (told.addresses.length > 0) {
      const lease = leaseOf(told.ttl - age);
      if (grants(bits)) cap = lease;
      leaseEnd = now + 1 + lease; // this second is partly over: the lease counts from its end
      const result = sandbox.pins.pin(question.name, bits, told.addresses, leaseEnd, now);
      if (result !== "ok") {
        this.plain(sandbox, b, offset, question.end, Rcode.SERVFAIL, result === "write" ? "pin-failed" : "pin-limit", edns, client);
        return;
      }
    }
    const outcome: Outcome = wire.rcode === Rcode.NXDOMAIN ? "absent" : wire.answerCount > 0 ? "answered" : "no-data";
    const { length: size, truncated } = buildMessage(
      this.out, b, offset, question.end, wire.rcode, wire, age, cap, edns, null, sizeLimit(edns, client.stream),
    );
    if (truncated) sandbox.counters.truncated++;
    sandbox.counters.queries[outcomeIndex[outcome]]!++;
    if (again && repeatable(length, edns, size) && now < entry.expires) {
      sandbox.fast.insert({
        hash: FastTable.hash(b, offset, length), query: Uint8Array.prototype.slice.call(b, offset + 2, offset + length),
        response: this.kept(size), epoch: sandbox.epoch, outcome, name: question.name, type: question.type,
        expires: entry.expires, source: { wire, told, born: entry.born, at: question.end }, bits, truncated,
        patched: now, leaseEnd,
      }, this.fastLimit);
    }
    client.send(this.out, size);
  }

  /** A copy of what was built, in memory of its own: a slice of the shared pool would hold all of the pool's block. */
  private kept(size: number): Buffer {
    const response = Buffer.allocUnsafeSlow(size);
    this.out.copy(response, 0, 0, size);
    return response;
  }

  /** Sends an answer that the agent made itself, and keeps it for the same octets. */
  private own(
    sandbox: Sandbox, b: Buffer, offset: number, length: number, question: Question, edns: Edns | null, client: Client,
    answer: WireAnswer, outcome: Outcome,
  ): void {
    const { length: size, truncated } = buildMessage(
      this.out, b, offset, question.end, answer.rcode, answer, 0, NO_CAP, edns, ede[outcome] ?? null, sizeLimit(edns, client.stream),
    );
    sandbox.counters.queries[outcomeIndex[outcome]]!++;
    if (repeatable(length, edns, size)) {
      sandbox.fast.insert({
        hash: FastTable.hash(b, offset, length), query: Uint8Array.prototype.slice.call(b, offset + 2, offset + length),
        response: this.kept(size), epoch: sandbox.epoch, outcome, name: question.name, type: question.type,
        expires: Number.MAX_SAFE_INTEGER, source: null, bits: [], truncated, patched: 0, leaseEnd: 0,
      }, this.fastLimit);
    }
    client.send(this.out, size);
  }

  /** Sends a response code without records. */
  private plain(
    sandbox: Sandbox, b: Buffer, offset: number, questionEnd: number, rcode: number, outcome: Outcome, edns: Edns | null, client: Client,
    info: EdeInfo | null = ede[outcome] ?? null,
  ): void {
    sandbox.counters.queries[outcomeIndex[outcome]]!++;
    // An extended code needs an OPT to stand in; BADVERS is only ever an answer to one.
    const { length } = buildMessage(this.out, b, offset, questionEnd, rcode, null, 0, 0, edns, info, 65_535);
    client.send(this.out, length);
  }

  private limited(sandbox: Sandbox, b: Buffer, offset: number, length: number, client: Client): void {
    const query = parseQuery(b, offset, length);
    if (query.kind === "ignore") return;
    const question = query.question;
    this.plain(sandbox, b, offset, question?.end ?? (length < HEADER ? -1 : 0), Rcode.SERVFAIL, "rate-limit", query.edns, client);
  }

  private denied(sandbox: Sandbox, name: Name, type: number, outcome: Outcome, address: Uint8Array | null): void {
    // Told already, without the name.
    if (sandbox.holdsPlaceholder(name)) return;
    this.io.onDenied({ slot: sandbox.slot, generation: sandbox.generation, name, type, outcome, address });
  }
}
