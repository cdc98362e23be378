/**
 * Answers of upstreams, kept for as long as their TTLs say. One cache for all sets of upstreams, whose keys differ; sandboxes
 * with the same upstreams share what is in it.
 *
 * Holds always: an entry past its time is never given out; TTL 0 is never kept; each entry belongs to the sandbox whose
 * query brought it, and a sandbox that fills its share loses its own oldest entries, never another's. Pure: time is given.
 * Does not: judge who may see an entry; that is done at every use.
 */
import type { Told } from "./chain.js";
import type { WireAnswer } from "./answer.js";
import type { Name } from "./wire.js";

export interface CacheEntry {
  readonly key: string;
  readonly told: Told;
  readonly wire: WireAnswer;
  /** for sandboxes without QUIC; null: the same. */
  readonly quicless: WireAnswer | null;
  /** CLOCK_MONOTONIC seconds at which the TTLs were as they came. */
  readonly born: number;
  /** CLOCK_MONOTONIC seconds from which the entry is not used. */
  readonly expires: number;
  readonly owner: number;
  /** octets, estimated. */
  readonly size: number;
}

/** An entry in its owner's queue. A Set would do, but taking the oldest out of one again and again walks over all that is gone. */
interface Kept extends CacheEntry {
  older: Kept | null;
  newer: Kept | null;
  held: boolean;
}

export interface CacheLimits {
  /** octets in all. */
  readonly total: number;
  /** octets that entries brought by one sandbox may take. */
  readonly perOwner: number;
}

export const defaultCacheLimits: CacheLimits = { total: 32 << 20, perOwner: 8 << 20 };

/** name, type and DO as one string. */
export function cacheKey(name: Name, type: number, dnssec: boolean): string {
  return name.wire + String.fromCharCode(type, dnssec ? 1 : 0);
}

/** Estimated octets of memory of one entry: its wire form, its addresses and names, and the objects around them. */
function sizeOf(key: string, told: Told, wire: WireAnswer): number {
  return 640 + 2 * key.length + wire.body.length + 16 * wire.ttls.length
    + 128 * (told.addresses.length + told.others.length + told.targets.length);
}

/** What one owner's queries brought, oldest first. */
interface Share { octets: number; oldest: Kept | null; newest: Kept | null }

export class AnswerCache {
  private readonly entries = new Map<string, Kept>();
  private readonly shares = new Map<number, Share>();
  private total = 0;
  private walk: Iterator<Kept> | null = null;
  evicted = 0;

  constructor(private readonly limits: CacheLimits = defaultCacheLimits) {}

  get size(): number { return this.entries.size; }
  get octets(): number { return this.total; }

  /** The entry while it may be used, else undefined. @param now CLOCK_MONOTONIC seconds. */
  get(key: string, now: number): CacheEntry | undefined {
    const entry = this.entries.get(key);
    if (entry === undefined) return undefined;
    if (now >= entry.expires) {
      this.drop(entry);
      return undefined;
    }
    return entry;
  }

  /** Makes an entry and keeps it if its TTL and size allow; what is returned may be used once in any case. */
  put(key: string, told: Told, wire: WireAnswer, quicless: WireAnswer | null, owner: number, now: number): CacheEntry {
    const entry: Kept = {
      older: null, newer: null, held: false, key, told, wire, quicless, born: now, expires: now + told.ttl, owner, size: sizeOf(key, told, wire) + (quicless === null ? 0 : quicless.body.length + 16 * quicless.ttls.length),
    };
    const old = this.entries.get(key);
    if (old !== undefined) this.drop(old);
    if (told.ttl <= 0 || entry.size > this.limits.perOwner) return entry;
    let share = this.shares.get(owner);
    if (share === undefined) this.shares.set(owner, (share = { octets: 0, oldest: null, newest: null }));
    while (share.octets + entry.size > this.limits.perOwner) this.evict(share);
    while (this.total + entry.size > this.limits.total) this.evict(this.largest());
    // An eviction may have emptied the share and taken it off the list.
    this.shares.set(owner, share);
    this.entries.set(key, entry);
    entry.held = true;
    entry.older = share.newest;
    if (share.newest === null) share.oldest = entry;
    else share.newest.newer = entry;
    share.newest = entry;
    share.octets += entry.size;
    this.total += entry.size;
    return entry;
  }

  /** Drops what has expired, looking at `budget` entries at most and going on next time where it stopped. */
  sweep(now: number, budget: number): void {
    while (budget-- > 0) {
      this.walk ??= this.entries.values();
      const step = this.walk.next();
      if (step.done === true) {
        this.walk = null;
        break;
      }
      if (now >= step.value.expires) this.drop(step.value);
    }
  }

  clear(): void {
    this.entries.clear();
    this.shares.clear();
    this.walk = null;
    this.total = 0;
  }

  private largest(): Share {
    let found: Share | undefined;
    for (const share of this.shares.values()) if (found === undefined || share.octets > found.octets) found = share;
    return found!;
  }

  private evict(share: Share): void {
    if (share.oldest === null) return;
    this.drop(share.oldest);
    this.evicted++;
  }

  private drop(entry: Kept): void {
    if (!entry.held) return;
    entry.held = false;
    this.entries.delete(entry.key);
    const share = this.shares.get(entry.owner)!;
    if (entry.older === null) share.oldest = entry.newer;
    else entry.older.newer = entry.newer;
    if (entry.newer === null) share.newest = entry.older;
    else entry.newer.older = entry.older;
    entry.older = null;
    entry.newer = null;
    share.octets -= entry.size;
    this.total -= entry.size;
    if (share.oldest === null) this.shares.delete(entry.owner);
  }
}
