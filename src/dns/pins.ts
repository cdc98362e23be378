/**
 * The pin book of one sandbox: which names were told which addresses, until when, and what the kernel holds of it.
 *
 * A view is one policy that judges the sandbox's packets, with its own rule bits and its own map in the kernel: the
 * sandbox's own policy, the operator's floor, and, during a policy swap, the new ones of both beside those in force.
 *
 * Holds always: in each view, the kernel's entry for an address is, per rule bit, the latest expiry over all names that
 * carry the bit there; a lease is never shortened; a pin that grants something is refused when a bound is reached, never
 * put in another's place; after pin() returned "ok" the kernel holds every address in every view that has bits for it.
 * Times are CLOCK_MONOTONIC seconds. Effects only through the writers.
 * Does not: judge names; bits come with each pin, or from the judge given to a rebuild.
 */
import type { DnsLimits } from "./limits.js";
import type { Name } from "./wire.js";

/** Shortest and longest lease, seconds. */
export const LEASE_MIN = 60;
export const LEASE_MAX = 3_600;
/** Distinct rule bits that one address may carry in the kernel (PIN_SLOTS of bpf/abi.h). */
export const PIN_BITS = 8;
/** How long a pin in use is kept after its lease, seconds. */
export const GRACE = 600;
/** In use: its expiry is moved this far ahead at a time, seconds; longer than the time between two sweeps. */
const GRACE_STEP = 60;
const NEAR_END = 20;

/** Lease for a TTL, seconds. */
export function leaseOf(ttl: number): number {
  return ttl < LEASE_MIN ? LEASE_MIN : ttl > LEASE_MAX ? LEASE_MAX : ttl;
}

/** Rule bits of a name, one list for each view in order: those in force, then those being swapped in. */
export type ViewBits = readonly (readonly number[])[];

/** Whether a pin with these bits grants anything in any view. */
export function grants(bits: ViewBits): boolean {
  for (const list of bits) if (list.length > 0) return true;
  return false;
}

export interface PinEntry { readonly bit: number; readonly expires: number }

/** One inner map of `pins`. All throw when the kernel refuses. */
export interface AddressWriter {
  write(address: Uint8Array, entries: readonly PinEntry[]): void;
  /** After writes that grant what was not granted before: denials that the kernel remembers are void. */
  granted?(): void;
  remove(address: Uint8Array): void;
}

export type PinResult = "ok" | "names" | "addresses" | "addresses-per-name" | "bits" | "write";

/** Numbers of one pin book; counters but for the first three, which are gauges. */
export interface PinCounters {
  names: number;
  addresses: number;
  shownNames: number;
  added: number;
  renewed: number;
  expired: number;
  revoked: number;
  refusedNames: number;
  refusedAddresses: number;
  refusedAddressesPerName: number;
  refusedBits: number;
  writeErrors: number;
  graceExtensions: number;
}

interface PinnedName {
  readonly name: Name;
  bits: ViewBits;
  /** one per address; few, so that a list is both smaller and quicker than a map. */
  readonly leases: Lease[];
}

interface Lease {
  readonly address: PinnedAddress;
  /** end, grace not counted. */
  expires: number;
}

/** There may be very many: what can be worked out is not kept. */
interface PinnedAddress {
  /** its octets, see bytesOf. */
  readonly key: string;
  readonly names: PinnedName[];
  /** it was in use, so that no lease that runs, or runs in grace, ends before; 0 when it never was. See heldUntil. */
  graceUntil: number;
  /** what each view's map should hold: the latest expiry per bit, over all names; null while a single name says it all. */
  entries: Entry[][] | null;
  /** views whose map holds it, a bit each. */
  held: number;
}

interface Entry { readonly bit: number; expires: number }

export interface PinListing { readonly name: Name; readonly address: Uint8Array; readonly expires: number; /** in the views in force */ readonly bits: ViewBits }

/** A pin whose lease is over. */
export interface FormerPin { readonly name: Name; readonly address: Uint8Array; /** end of its lease. */ readonly expired: number }

/** Former pins that are remembered. */
const FORMER = 256;

const NO_BITS: readonly number[] = [];

/** The 16 octets as one string. */
function keyOf(a: Uint8Array): string {
  return String.fromCharCode(
    a[0]!, a[1]!, a[2]!, a[3]!, a[4]!, a[5]!, a[6]!, a[7]!, a[8]!, a[9]!, a[10]!, a[11]!, a[12]!, a[13]!, a[14]!, a[15]!,
  );
}

function bytesOf(key: string): Uint8Array {
  const bytes = new Uint8Array(16);
  for (let i = 0; i < 16; i++) bytes[i] = key.charCodeAt(i);
  return bytes;
}

function leaseFor(pinned: PinnedName, address: PinnedAddress): Lease | undefined {
  for (const lease of pinned.leases) if (lease.address === address) return lease;
  return undefined;
}

function endOf(pinned: PinnedName, address: PinnedAddress): number {
  return leaseFor(pinned, address)?.expires ?? 0;
}

/** Until when a lease is good that ends at `expires`: every name has its own grace, however long others lead to the address. */
function heldUntil(expires: number, address: PinnedAddress): number {
  return Math.max(expires, Math.min(address.graceUntil, expires + GRACE));
}

function sameBits(a: ViewBits, b: ViewBits): boolean {
  return a === b || (a.length === b.length && a.every((list, view) => list.length === b[view]!.length && list.every((bit, i) => bit === b[view]![i])));
}

/** Whether the entries and these bits together are no more than one address may carry. */
function fit(entries: readonly Entry[], bits: readonly number[]): boolean {
  let more = 0;
  for (const bit of bits) if (!entries.some((entry) => entry.bit === bit)) more++;
  return entries.length + more <= PIN_BITS;
}

/** Adds what the bits grant until then. */
function raise(entries: Entry[], bits: readonly number[], expires: number): void {
  for (const bit of bits) {
    const entry = entries.find((each) => each.bit === bit);
    if (entry === undefined) entries.push({ bit, expires });
    else if (entry.expires < expires) entry.expires = expires;
  }
}

/** A name told under open policies. */
interface Shown { readonly name: Name; addresses: { readonly key: string; expires: number }[] }

export class PinBook {
  private readonly names = new Map<string, PinnedName>();
  private readonly addresses = new Map<string, PinnedAddress>();
  /** names without bits: shown in events and lists only, oldest use first. */
  private readonly shown = new Map<string, Shown>();
  /** maps of the views, in order; the first `inForce` are in force. */
  private views: readonly AddressWriter[];
  private inForce: number;
  /** oldest first; to explain denials only. */
  private readonly former = new Map<string, FormerPin>();
  /** most shown names, when there are so many sandboxes that the limit alone is too much for all. */
  shownShare = Number.MAX_SAFE_INTEGER;
  /** something was granted and the kernel has not been told yet that its denials are void. */
  private grantOwed = false;
  /** second of the last whole sweep. */
  private swept = -1;
  /** see largestName; and what the sweep under way has seen. */
  private largest = 0;
  private largestSeen = 0;
  /** where a sweep in parts goes on. */
  private walk: Iterator<PinnedAddress> | null = null;
  readonly counters: PinCounters = {
    names: 0, addresses: 0, shownNames: 0, added: 0, renewed: 0, expired: 0, revoked: 0, refusedNames: 0, refusedAddresses: 0,
    refusedAddressesPerName: 0, refusedBits: 0, writeErrors: 0, graceExtensions: 0,
  };

  /** @param writers the maps of the views in force. */
  constructor(writers: readonly AddressWriter[], public limits: DnsLimits) {
    this.views = writers;
    this.inForce = writers.length;
  }

  /**
   * Records that the sandbox is about to be told `addresses` for `name`.
   * @param bits rule bits, for each view there is.
   * @param expires end of the lease. A longer lease that is already held stays.
   * @returns "ok" when the kernel holds all of it; otherwise the bound that was reached, or "write" when the kernel
   *   refused: the answer must then not be sent.
   */
  pin(name: Name, bits: ViewBits, addresses: readonly Uint8Array[], expires: number, now: number): PinResult {
    if (bits.length !== this.views.length) throw new Error(`bits for ${bits.length} views of ${this.views.length}`);
    if (!grants(bits)) {
      this.show(name, addresses, expires);
      return "ok";
    }
    const refused = this.room(name, bits, addresses, now);
    if (refused !== "ok") {
      if (refused === "names") this.counters.refusedNames++;
      else if (refused === "addresses") this.counters.refusedAddresses++;
      else if (refused === "addresses-per-name") this.counters.refusedAddressesPerName++;
      else this.counters.refusedBits++;
      return refused;
    }
    this.shown.delete(name.wire);
    let pinned = this.names.get(name.wire);
    if (pinned === undefined) this.names.set(name.wire, (pinned = { name, bits, leases: [] }));
    else if (!sameBits(pinned.bits, bits)) {
      pinned.bits = bits;
      for (const { address } of pinned.leases) this.recount(address);
    }
    let result: PinResult = "ok";
    for (const bytes of addresses) {
      const address = this.addressAt(bytes);
      const lease = leaseFor(pinned, address);
      const before = lease?.expires;
      if (before !== undefined && before >= expires) continue;
      if (lease !== undefined) lease.expires = expires;
      else {
        pinned.leases.push({ address, expires });
        address.names.push(pinned);
      }
      if (address.entries === null) this.recount(address);
      else for (let view = 0; view < bits.length; view++) raise(address.entries[view]!, bits[view]!, heldUntil(expires, address));
      try {
        this.flush(address);
        // This second counts as over: the kernel may have said no in it.
        if (before === undefined || before <= now + 1) this.grantOwed = true;
        if (before === undefined) this.counters.added++;
        else this.counters.renewed++;
      } catch {
        this.counters.writeErrors++;
        result = "write";
        if (lease === undefined || before === undefined) this.part(address, [pinned]);
        else {
          lease.expires = before;
          this.recount(address);
        }
        break;
      }
    }
    if (this.grantOwed) {
      try {
        for (const view of this.views) view.granted?.();
        this.grantOwed = false;
      } catch {
        this.counters.writeErrors++;
        result = "write";
      }
    }
    if (pinned.leases.length === 0) this.names.delete(name.wire);
    if (pinned.leases.length > this.largest) this.largest = pinned.leases.length;
    this.gauge();
    return result;
  }

  /** Whether the pin fits into every bound; expired pins are swept first when it does not. */
  private room(name: Name, bits: ViewBits, addresses: readonly Uint8Array[], now: number): PinResult {
    const first = this.fits(name, bits, addresses);
    // Once in a while is often enough: a guest at its bound must not make every query cost a sweep.
    if (first === "ok" || now - this.swept <= this.addresses.size >> 14) return first;
    this.sweep(now, () => false);
    return this.fits(name, bits, addresses);
  }

  /**
   * Whether one more name may be pinned, or this one is already: asked before upstream servers are, who need not hear what could
   * not be told anyway. A refusal is counted.
   */
  takesName(name: Name, bits: ViewBits, now: number): boolean {
    if (!grants(bits) || this.names.has(name.wire) || this.room(name, bits, [], now) !== "names") return true;
    this.counters.refusedNames++;
    return false;
  }

  private fits(name: Name, bits: ViewBits, addresses: readonly Uint8Array[]): PinResult {
    const pinned = this.names.get(name.wire);
    if (pinned === undefined && this.names.size >= this.limits.names) return "names";
    if (bits.some((list) => list.length > PIN_BITS)) return "bits";
    let fresh = 0;
    let freshForName = 0;
    const seen = addresses.length > 1 ? new Set<string>() : null;
    for (const bytes of addresses) {
      const key = keyOf(bytes);
      if (seen !== null) {
        if (seen.has(key)) continue;
        seen.add(key);
      }
      const address = this.addresses.get(key);
      if (address === undefined) fresh++;
      if (address === undefined || pinned === undefined || leaseFor(pinned, address) === undefined) freshForName++;
      if (address === undefined || (address.names.length === 1 && address.names[0] === pinned)) continue;
      for (let view = 0; view < bits.length; view++) if (!fit(this.entriesOf(address, view), bits[view]!)) return "bits";
    }
    if (this.addresses.size + fresh > this.limits.addresses) return "addresses";
    if ((pinned?.leases.length ?? 0) + freshForName > this.limits.addressesPerName) return "addresses-per-name";
    return "ok";
  }

  /**
   * Takes back what may no longer be had: the host's addresses have changed since it was told. Established flows are the
   * kernel's to judge.
   * @param suspect whether anything is to be asked about this address, @param refused whether this name may not (any more)
   *   lead to it.
   */
  revoke(suspect: (address: Uint8Array) => boolean, refused: (name: Name, address: Uint8Array) => boolean): void {
    for (const address of this.addresses.values()) {
      if (!suspect(bytesOf(address.key))) continue;
      const gone = address.names.filter(({ name }) => refused(name, bytesOf(address.key)));
      this.counters.revoked += gone.length;
      this.part(address, gone);
    }
    for (const each of this.shown.values()) each.addresses = each.addresses.filter(({ key }) => !suspect(bytesOf(key)) || !refused(each.name, bytesOf(key)));
    this.gauge();
  }

  /** Most addresses that one name has, or had when the last sweep came by. */
  largestName(): number { return this.largest; }

  /** Names now told this address, with rules first; for events. */
  namesOf(bytes: Uint8Array): Name[] {
    const key = keyOf(bytes);
    const found: Name[] = [];
    for (const pinned of this.addresses.get(key)?.names ?? []) found.push(pinned.name);
    if (found.length === 0) for (const each of this.shown.values()) if (each.addresses.some((told) => told.key === key)) found.push(each.name);
    return found;
  }

  /** Pins whose lease ran out lately. */
  formerPins(): FormerPin[] { return [...this.former.values()]; }

  private remember(pinned: PinnedName, address: PinnedAddress): void {
    const key = address.key + pinned.name.wire;
    this.former.delete(key);
    this.former.set(key, { name: pinned.name, address: bytesOf(address.key), expired: heldUntil(endOf(pinned, address), address) });
    if (this.former.size <= FORMER) return;
    const oldest = this.former.keys().next();
    if (oldest.done !== true) this.former.delete(oldest.value);
  }

  /**
   * Whether this very name is pinned to this address now: its lease runs, or is kept in grace. Names that were
   * told under an open policy count while their lease runs and they are remembered.
   */
  pinned(name: Name, bytes: Uint8Array, now: number): boolean {
    const key = keyOf(bytes);
    const address = this.addresses.get(key);
    const lease = address === undefined ? undefined : this.names.get(name.wire)?.leases.find((each) => each.address === address);
    if (address !== undefined && lease !== undefined) return heldUntil(lease.expires, address) > now;
    return (this.shown.get(name.wire)?.addresses.find((told) => told.key === key)?.expires ?? 0) > now;
  }

  /** Whether any pin of the book is on this address. */
  holds(bytes: Uint8Array): boolean { return this.addresses.has(keyOf(bytes)); }

  list(): PinListing[] {
    const listing: PinListing[] = [];
    for (const pinned of this.names.values()) {
      for (const { address, expires } of pinned.leases) {
        listing.push({ name: pinned.name, address: bytesOf(address.key), expires: heldUntil(expires, address), bits: pinned.bits.slice(0, this.inForce) });
      }
    }
    for (const each of this.shown.values()) {
      for (const { key, expires } of each.addresses) listing.push({ name: each.name, address: bytesOf(key), expires, bits: this.nothing(this.inForce) });
    }
    return listing;
  }

  /**
   * Takes expired pins out of the kernel and of memory, and keeps those in use a little longer.
   * @param inUse whether a flow of the sandbox uses the address now; asked only for pins near their end.
   */
  sweep(now: number, inUse: (address: Uint8Array) => boolean): void {
    this.walk = null;
    this.sweepSome(now, inUse, Number.MAX_SAFE_INTEGER);
    this.swept = now;
  }

  /** A sweep in parts has not come to its end. */
  get sweeping(): boolean { return this.walk !== null; }

  /**
   * A part of a sweep: looks at some more addresses, counting their names, and goes on next time where it stopped.
   * @returns how much of the budget is left.
   */
  sweepSome(now: number, inUse: (address: Uint8Array) => boolean, budget: number): number {
    this.walk ??= this.addresses.values();
    while (budget > 0) {
      const step = this.walk.next();
      if (step.done === true) {
        this.walk = null;
        this.largest = this.largestSeen;
        this.largestSeen = 0;
        for (const [key, each] of this.shown) {
          if (each.addresses.some(({ expires }) => expires <= now)) each.addresses = each.addresses.filter(({ expires }) => expires > now);
          if (each.addresses.length === 0) this.shown.delete(key);
        }
        this.gauge();
        return Math.max(0, budget - 1 - this.shown.size);
      }
      budget -= 1 + step.value.names.length;
      this.sweepOne(step.value, now, inUse);
    }
    this.gauge();
    return 0;
  }

  private sweepOne(address: PinnedAddress, now: number, inUse: (address: Uint8Array) => boolean): void {
    let near = false;
    let over = 0;
    for (const pinned of address.names) {
      if (pinned.leases.length > this.largestSeen) this.largestSeen = pinned.leases.length;
      const own = endOf(pinned, address);
      const held = heldUntil(own, address);
      if (held <= now) over++;
      else near ||= held <= now + NEAR_END && held < own + GRACE;
    }
    if (over === address.names.length) return this.expire(address, address.names);
    if (over > 0) this.expire(address, address.names.filter((pinned) => heldUntil(endOf(pinned, address), address) <= now));
    if (!near || !inUse(bytesOf(address.key))) return;
    address.graceUntil = now + GRACE_STEP;
    this.recount(address);
    if (this.tryFlush(address)) this.counters.graceExtensions++;
  }

  private expire(address: PinnedAddress, gone: readonly PinnedName[]): void {
    for (const pinned of gone.slice(-FORMER)) this.remember(pinned, address);
    this.counters.expired += gone.length;
    this.part(address, gone);
  }

  /** Takes names off an address; the last one takes the address off the kernel. */
  private part(address: PinnedAddress, gone: readonly PinnedName[]): void {
    if (gone.length === 0) return;
    for (const pinned of gone) {
      const at = pinned.leases.findIndex((lease) => lease.address === address);
      if (at >= 0) pinned.leases.splice(at, 1);
      if (pinned.leases.length === 0) this.names.delete(pinned.name.wire);
    }
    const left = gone === address.names ? [] : address.names.filter((pinned) => leaseFor(pinned, address) !== undefined);
    address.names.length = 0;
    for (const pinned of left) address.names.push(pinned);
    this.recount(address);
    if (left.length === 0) this.addresses.delete(address.key);
    // The kernel judges expiry by itself; what could not be removed only takes room until the slot is given back.
    this.tryFlush(address);
  }

  /**
   * Starts a policy swap: every pin is judged again and written to the new maps; from now on all views get every pin.
   * @param writers the maps of the new views, empty.
   * @param judge bits of a name in each of the new views, also where it may not be looked up any more; null: none can match it.
   * @returns pins written and pins left out, because a new policy gives an address too many bits.
   * @throws what a writer throws; the swap is then off and the old maps are as they were.
   */
  beginSwap(writers: readonly AddressWriter[], judge: (name: Name) => ViewBits | null): { written: number; left: number } {
    let written = 0;
    let left = 0;
    const before = this.nothing(this.inForce);
    const none = this.nothing(writers.length);
    this.views = [...this.views, ...writers];
    try {
      for (const pinned of this.names.values()) pinned.bits = [...pinned.bits, ...(judge(pinned.name) ?? none)];
      for (const address of this.addresses.values()) this.recount(address);
      for (const each of this.shown.values()) {
        // A name without a rule may get one: its addresses become pins, as far as there is room.
        const bits = [...before, ...(judge(each.name) ?? none)];
        if (!grants(bits)) continue;
        let promoted = this.names.get(each.name.wire);
        for (const { key, expires } of each.addresses) {
          const bytes = bytesOf(key);
          if (this.fits(each.name, bits, [bytes]) !== "ok") {
            left++;
            continue;
          }
          if (promoted === undefined) this.names.set(each.name.wire, (promoted = { name: each.name, bits, leases: [] }));
          const address = this.addressAt(bytes);
          const lease = leaseFor(promoted, address);
          if (lease !== undefined) lease.expires = Math.max(lease.expires, expires);
          else {
            promoted.leases.push({ address, expires });
            address.names.push(promoted);
          }
        }
      }
      for (const address of this.addresses.values()) {
        let some = false;
        let over = false;
        this.recount(address);
        for (let view = this.inForce; view < this.views.length; view++) {
          const { length } = this.entriesOf(address, view);
          if (length > PIN_BITS) over = true;
          else if (length > 0) {
            this.write(address, view);
            some = true;
          }
        }
        if (over) left++;
        else if (some) written++;
      }
    } catch (error) {
      this.abortSwap();
      this.counters.writeErrors++;
      throw error;
    }
    this.gauge();
    return { written, left };
  }

  /** The new policies are in force: their maps are the only ones, and names that they do not carry are forgotten or only shown. */
  confirmSwap(): void {
    if (this.views.length > this.inForce) this.settle(this.inForce, this.views.length);
  }

  /** The old policies stay. */
  abortSwap(): void {
    this.settle(0, this.inForce);
  }

  /** Only the views from `first` to before `end` live on, and are in force. */
  private settle(first: number, end: number): void {
    this.views = this.views.slice(first, end);
    this.inForce = this.views.length;
    for (const address of this.addresses.values()) address.held = (address.held >> first) & ((1 << this.inForce) - 1);
    for (const pinned of [...this.names.values()]) {
      pinned.bits = pinned.bits.slice(first, end);
      if (grants(pinned.bits)) {
        this.shown.delete(pinned.name.wire);
        continue;
      }
      this.names.delete(pinned.name.wire);
      for (const { address, expires } of pinned.leases) this.show(pinned.name, [bytesOf(address.key)], expires);
      pinned.leases.length = 0;
    }
    // No map in force ever had the bits of the names that go, so there is nothing to take out of the kernel.
    for (const address of this.addresses.values()) {
      const left = address.names.filter((pinned) => pinned.leases.length > 0);
      if (left.length < address.names.length) {
        address.names.length = 0;
        for (const pinned of left) address.names.push(pinned);
      }
      if (left.length === 0) this.addresses.delete(address.key);
      this.recount(address);
    }
    this.gauge();
  }

  private show(name: Name, addresses: readonly Uint8Array[], expires: number): void {
    let each = this.shown.get(name.wire);
    if (each === undefined) each = { name, addresses: [] };
    else this.shown.delete(name.wire); // to the end: most recently used
    this.shown.set(name.wire, each);
    for (const bytes of addresses) {
      const key = keyOf(bytes);
      const before = each.addresses.find((told) => told.key === key);
      if (before !== undefined) before.expires = Math.max(before.expires, expires);
      else {
        if (each.addresses.length >= this.limits.addressesPerName) each.addresses.shift();
        each.addresses.push({ key, expires });
      }
    }
    const most = Math.min(this.limits.shownNames, this.shownShare);
    for (const oldest of this.shown.keys()) {
      if (this.shown.size <= most) break;
      this.shown.delete(oldest);
    }
    this.counters.shownNames = this.shown.size;
  }

  /** No bits in so many views. */
  private nothing(views: number): ViewBits {
    return new Array<readonly number[]>(views).fill(NO_BITS);
  }

  /** The address of these octets, made when it is not there. */
  private addressAt(bytes: Uint8Array): PinnedAddress {
    const key = keyOf(bytes);
    let address = this.addresses.get(key);
    if (address === undefined) {
      this.addresses.set(key, (address = { key, names: [], graceUntil: 0, entries: null, held: 0 }));
    }
    return address;
  }

  /** Works the address's entries out afresh from its names; after anything but a longer lease. */
  private recount(address: PinnedAddress): void {
    if (address.names.length <= 1) {
      address.entries = null;
      return;
    }
    const entries: Entry[][] = this.views.map(() => []);
    for (const pinned of address.names) {
      const expires = heldUntil(endOf(pinned, address), address);
      for (let view = 0; view < entries.length; view++) raise(entries[view]!, pinned.bits[view]!, expires);
    }
    address.entries = entries;
  }

  private entriesOf(address: PinnedAddress, view: number): readonly Entry[] {
    if (address.entries !== null) return address.entries[view]!;
    const only = address.names[0];
    if (only === undefined) return [];
    const expires = heldUntil(endOf(only, address), address);
    return only.bits[view]!.map((bit) => ({ bit, expires }));
  }

  private write(address: PinnedAddress, view: number): void {
    this.views[view]!.write(bytesOf(address.key), this.entriesOf(address, view));
    address.held |= 1 << view;
  }

  private flush(address: PinnedAddress): void {
    for (let view = 0; view < this.views.length; view++) {
      if (this.entriesOf(address, view).length > 0) this.write(address, view);
      else if ((address.held & (1 << view)) !== 0) {
        this.views[view]!.remove(bytesOf(address.key));
        address.held &= ~(1 << view);
      }
    }
  }

  private tryFlush(address: PinnedAddress): boolean {
    try {
      this.flush(address);
      return true;
    } catch {
      this.counters.writeErrors++;
      return false;
    }
  }

  private gauge(): void {
    this.counters.names = this.names.size;
    this.counters.addresses = this.addresses.size;
    this.counters.shownNames = this.shown.size;
  }
}
