/**
 * What holds for the whole host in the kernel: the settings record, the address groups, and which device is which sandbox's.
 *
 * Holds always: groups are changed entry by entry, never emptied on the way; the epoch changes after them, so that no
 * packet path cache outlives them. One writer: the agent's main thread.
 */
import { tickNanoseconds, type BpfMap } from "../../native/index.js";
import { encodeGroups, type GroupTable } from "../addresses/groups.js";
import { EnforcerError } from "../errors.js";
import { ALLOWED_MARK } from "../net/base-drop.js";
import type { ResolverLink } from "../net/resolver-link.js";
import type { Instance } from "./instance.js";
import { layouts } from "./layout.gen.js";
import { slotKey } from "./sandbox-tables.js";

const field = layouts.globals.fields;
const tapField = layouts.tap.fields;
const ONLY = slotKey(0);
const groupAt = layouts.group_entry.fields.group.offset;

export class Globals {
  readonly #instance: Instance;
  readonly #record = Buffer.alloc(layouts.globals.size);
  /** What the group maps hold, values by key as latin1: read once, since nobody else writes them. */
  readonly #known: Partial<Record<"groups4" | "groups6", Map<string, string>>> = {};

  /** Takes over what the map holds, and says how long a tick is and how large `taps` is. */
  constructor(instance: Instance) {
    this.#instance = instance;
    instance.map("globals").lookupInto(ONLY, this.#record);
    this.#record.writeUInt32LE(ticksASecond(), field.hz.offset);
    this.#record.writeUInt32LE(instance.map("taps").info.maxEntries - 1, field.tap_mask.offset);
    this.#record.writeUInt32LE(ALLOWED_MARK, field.mark.offset);
    this.#write();
  }

  /** From now on port 53 goes to this device; null: nowhere, and is refused. */
  setResolver(link: ResolverLink | null): void {
    const record = this.#record;
    record.writeUInt32LE(link?.nearIfindex ?? 0, field.resolver_ifindex.offset);
    if (link !== null) {
      record.set(link.addr4.subarray(12), field.resolver_addr4.offset);
      record.set(link.addr6, field.resolver_addr6.offset);
      record.set(link.farMac, field.resolver_mac.offset);
      record.set(link.nearMac, field.near_mac.offset);
      record.set(link.net4.bytes.subarray(12), field.sandbox_net4.offset);
      record.set(link.net6.bytes, field.sandbox_net6.offset);
    } else {
      record.writeBigUInt64LE(0n, field.silent_until_ns.offset);
    }
    this.#write();
  }

  /** The successor is here, for all namespaces: whoever's queries go nowhere from now on is told. */
  successorArrived(): void {
    this.#record.writeBigUInt64LE(0n, field.silent_until_ns.offset);
    this.#write();
  }

  /** Port 53 goes nowhere from now on, and for so long, ms, nobody is told: a successor is expected, and who hears nothing asks again. */
  expectSuccessor(within: number): void {
    this.#record.writeUInt32LE(0, field.resolver_ifindex.offset);
    this.#record.writeBigUInt64LE(process.hrtime.bigint() + BigInt(within) * 1_000_000n, field.silent_until_ns.offset);
    this.#write();
  }

  /**
   * Makes the kernel's groups those of the table. @param which stricter: an entry that would be weakened or taken away stays as it is. @returns entries changed. @throws EnforcerError E_LIMIT when they do not fit; then what was in force stays in force or became stricter.
   */
  setGroups(table: GroupTable, which: "all" | "stricter" = "all"): number {
    let changed = 0;
    const encoded = encodeGroups(table);
    for (const name of ["groups4", "groups6"] as const) {
      const { keys, values, count } = encoded[name];
      const map = this.#instance.map(name);
      const { keySize, maxEntries } = map.info;
      const valueSize = layouts.group_entry.size;
      if (count > maxEntries) throw new EnforcerError("E_LIMIT", `${count} prefixes in the address groups; ${maxEntries} can be held`, { remedy: "summarise the host's routes or the configured groups" });
      const wanted = new Map<string, number>();
      const texts = Buffer.from(keys.buffer, keys.byteOffset, keys.length);
      for (let i = 0; i < count; i++) wanted.set(texts.toString("latin1", i * keySize, (i + 1) * keySize), i);
      const known = (this.#known[name] ??= textsOf(map));
      const octets = Buffer.from(values.buffer, values.byteOffset, values.length);
      for (const [key, i] of wanted) {
        const value = octets.toString("latin1", i * valueSize, (i + 1) * valueSize);
        const there = known.get(key);
        if (there === value || (which === "stricter" && there !== undefined && there.charCodeAt(groupAt) < value.charCodeAt(groupAt))) continue;
        map.update(Buffer.from(key, "latin1"), octets.subarray(i * valueSize, (i + 1) * valueSize));
        known.set(key, value);
        changed++;
      }
      for (const key of [...known.keys()]) {
        if (wanted.has(key) || which === "stricter") continue;
        map.delete(Buffer.from(key, "latin1"));
        known.delete(key);
        changed++;
      }
    }
    if (changed > 0) {
      this.#record.writeBigUInt64LE(this.#record.readBigUInt64LE(field.groups_epoch.offset) + 1n, field.groups_epoch.offset);
      this.#write();
    }
    return changed;
  }

  /** From now on port 53 of a place's taps goes to this pair; null: nowhere, and is refused. */
  setPlace(number: number, link: Pick<ResolverLink, "nearIfindex" | "farIfindex"> | null): void {
    const value = Buffer.alloc(layouts.place.size);
    value.writeUInt32LE(link?.nearIfindex ?? 0, layouts.place.fields.resolver_ifindex.offset);
    value.writeUInt32LE(link?.farIfindex ?? 0, layouts.place.fields.far_ifindex.offset);
    this.#instance.map("places").update(slotKey(number), value);
  }

  /**
   * Says that a device carries the sandbox in a slot. Its own place in `taps` if that is free, else the hash beside it; devices of other
   * namespaces have one of their own.
   * @param place of the device's namespace; 0: the agent's own.
   */
  setTap(ifindex: number, slot: number, generation: number, place = 0): void {
    const value = Buffer.alloc(layouts.tap.size);
    value.writeUInt32LE(ifindex, tapField.ifindex.offset);
    value.writeUInt32LE(slot, tapField.slot.offset);
    value.writeUInt32LE(generation, tapField.generation.offset);
    if (place !== 0) {
      this.#instance.map("taps_within").update(tapKey(place, ifindex), value);
      return;
    }
    const at = this.#index(ifindex);
    const holder = this.#instance.map("taps").lookup(at)?.readUInt32LE(tapField.ifindex.offset) ?? 0;
    if (holder === 0 || holder === ifindex) this.#instance.map("taps").update(at, value);
    else this.#instance.map("taps_more").update(slotKey(ifindex), value);
  }

  /** Of a namespace that has gone. */
  clearPlace(number: number): void {
    const map = this.#instance.map("taps_within"), { keys, count } = map.entries();
    for (let i = 0; i < count; i++) {
      const key = keys.subarray(i * layouts.tap_key.size, (i + 1) * layouts.tap_key.size);
      if (key.readUInt32LE(layouts.tap_key.fields.place.offset) === number) map.delete(key);
    }
    this.setPlace(number, null);
  }

  /** From now on the device passes nothing through our programs. */
  clearTap(ifindex: number, place = 0): void {
    if (place !== 0) {
      this.#instance.map("taps_within").delete(tapKey(place, ifindex));
      return;
    }
    const at = this.#index(ifindex);
    if (this.#instance.map("taps").lookup(at)?.readUInt32LE(tapField.ifindex.offset) === ifindex) this.#instance.map("taps").update(at, Buffer.alloc(layouts.tap.size));
    this.#instance.map("taps_more").delete(slotKey(ifindex));
  }

  #index(ifindex: number): Buffer { return slotKey(ifindex & (this.#instance.map("taps").info.maxEntries - 1)); }

  #write(): void { this.#instance.map("globals").update(ONLY, this.#record); }
}

function tapKey(place: number, ifindex: number): Buffer {
  const key = Buffer.alloc(layouts.tap_key.size);
  key.writeUInt32LE(place, layouts.tap_key.fields.place.offset);
  key.writeUInt32LE(ifindex, layouts.tap_key.fields.ifindex.offset);
  return key;
}

function textsOf(map: BpfMap): Map<string, string> {
  const { keySize, valueSize } = map.info, { count, keys, values } = map.entries();
  return new Map(Array.from({ length: count }, (_, i) => [keys.toString("latin1", i * keySize, (i + 1) * keySize), values.toString("latin1", i * valueSize, (i + 1) * valueSize)]));
}

/** HZ of this kernel. */
function ticksASecond(): number {
  const hz = Math.round(1e9 / tickNanoseconds());
  if (hz < 24 || hz > 10_000) throw new EnforcerError("E_KERNEL", `a kernel tick of ${hz} Hz is not credible`);
  return hz;
}
