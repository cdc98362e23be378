/**
 * Whole answers of one sandbox by the very octets of its question: a repeated question costs a look-up and a copy.
 *
 * Holds always: an entry answers only a message that is equal in every octet but the id; it belongs to one sandbox and one
 * epoch of its policy; a full table forgets, never grows past its octets. Pure.
 * Does not: age, pin or count; the resolver does at each hit.
 */
import type { Outcome } from "./metrics.js";
import type { WireAnswer } from "./answer.js";
import type { Told } from "./chain.js";
import type { ViewBits } from "./pins.js";
import type { Name } from "./wire.js";

export interface FastEntry {
  readonly hash: number;
  /** the query from octet 2 on. */
  readonly query: Uint8Array;
  /** the whole answer; octets 0 and 1 are the id and are written at each use. */
  readonly response: Buffer;
  readonly epoch: number;
  readonly outcome: Outcome;
  readonly name: Name;
  readonly type: number;
  /** CLOCK_MONOTONIC seconds from which it is not used. */
  readonly expires: number;
  /** what TTLs and pins are worked out from; null for answers the agent made itself. */
  readonly source: { readonly wire: WireAnswer; readonly told: Told; readonly born: number; readonly at: number } | null;
  /** of its pins; every view there was when it was made. */
  readonly bits: ViewBits;
  readonly truncated: boolean;
  /** second whose TTLs stand in response. */
  patched: number;
  /** end of the lease that was written last. */
  leaseEnd: number;
}

const WAYS = 4;
/** Octets of objects around an entry, estimated. */
const OVERHEAD = 400;

export class FastTable {
  private slots: (FastEntry | null)[] = new Array<FastEntry | null>(64).fill(null);
  private count = 0;
  private turn = 0;
  octets = 0;

  /** FNV-1a over the message without its id. */
  static hash(b: Uint8Array, offset: number, length: number): number {
    let h = 0x811c9dc5;
    for (let i = offset + 2, end = offset + length; i < end; i++) h = Math.imul(h ^ b[i]!, 0x01000193);
    return h >>> 0;
  }

  find(b: Uint8Array, offset: number, length: number, hash: number): FastEntry | null {
    const base = (hash & (this.slots.length - 1)) & ~(WAYS - 1);
    for (let way = 0; way < WAYS; way++) {
      const entry = this.slots[base + way]!;
      if (entry === null || entry.hash !== hash || entry.query.length !== length - 2) continue;
      const query = entry.query;
      let i = 0;
      while (i < query.length && query[i] === b[offset + 2 + i]) i++;
      if (i === query.length) return entry;
    }
    return null;
  }

  /** @param limit octets that the table may take; over it, it is emptied first. */
  insert(entry: FastEntry, limit: number): void {
    const size = OVERHEAD + entry.query.length + entry.response.length;
    if (size > limit) return;
    if (this.octets + size > limit) this.clear();
    if (this.count * 2 > this.slots.length) this.grow();
    this.place(entry);
  }

  remove(entry: FastEntry): void {
    const base = (entry.hash & (this.slots.length - 1)) & ~(WAYS - 1);
    for (let way = 0; way < WAYS; way++) if (this.slots[base + way] === entry) this.put(base + way, null);
  }

  clear(): void {
    this.slots = new Array<FastEntry | null>(64).fill(null);
    this.count = 0;
    this.octets = 0;
  }

  private grow(): void {
    const old = this.slots;
    this.slots = new Array<FastEntry | null>(old.length * 2).fill(null);
    this.count = 0;
    this.octets = 0;
    for (const entry of old) if (entry !== null) this.place(entry);
  }

  private place(entry: FastEntry): void {
    const base = (entry.hash & (this.slots.length - 1)) & ~(WAYS - 1);
    let free = -1;
    for (let way = 0; way < WAYS; way++) {
      const other = this.slots[base + way]!;
      if (other === null) free = free < 0 ? base + way : free;
      else if (other.hash === entry.hash && sameOctets(other.query, entry.query)) return this.put(base + way, entry);
    }
    this.put(free >= 0 ? free : base + (this.turn++ & (WAYS - 1)), entry);
  }

  private put(at: number, entry: FastEntry | null): void {
    const old = this.slots[at]!;
    if (old !== null) {
      this.count--;
      this.octets -= OVERHEAD + old.query.length + old.response.length;
    }
    this.slots[at] = entry;
    if (entry === null) return;
    this.count++;
    this.octets += OVERHEAD + entry.query.length + entry.response.length;
  }
}

function sameOctets(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
