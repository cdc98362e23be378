/**
 * The kernel's tables of one sandbox: making, filling, swapping and emptying them.
 *
 * Holds always: a slot is in force only after every table it needs is in place, and is out of force before any is taken
 * away; a policy takes force by one 8-byte write, and its own tables are there before. Inner maps are made anew at every
 * attach: nothing of a former sandbox in the same slot can be seen.
 */
import { BpfMap } from "../../native/index.js";
import type { Address, Prefix } from "../addresses/address.js";
import { isV4 } from "../addresses/address.js";
import type { CompiledPolicy } from "../policy/compile.js";
import { EnforcerError } from "../errors.js";
import type { Instance, MapName } from "./instance.js";
import { AbiLimit, layouts, SandboxFlag, SandboxState } from "./layout.gen.js";

const field = layouts.sandbox.fields;

export interface Identity {
  readonly ifindex: number;
  /** Number of the tap's namespace (place.ts); absent or 0: the agent's own. */
  readonly place?: number;
  readonly tapMac: Uint8Array;
  /** null: learned from the first frame. */
  readonly mac: Uint8Array | null;
  /** Guest's addresses or prefixes; empty for a family: learned inside learnPrefixes. At most GUEST_ADDRS a family. */
  readonly guest: readonly Prefix[];
  /** At most LEARN_PREFIXES a family count. */
  readonly learnPrefixes: readonly Prefix[];
  /** Addresses of the guest's gateway, link-local ones included; knownGateways() of them count. */
  readonly gateways: readonly Address[];
  readonly dhcp: boolean;
}

export interface TableSizes {
  readonly flows: number;
  readonly pins: number;
  readonly eventsPerSecond: number;
  /** Queries over UDP, and begins of connections that are looked into, that the kernel lets through to the agent a second. */
  readonly queriesPerSecond: number;
  readonly connectionsPerSecond: number;
  /** Addresses of the guest's prefixes that it may have in use at one time. */
  readonly addresses: number;
}

/** See POLICY_FLOOR_UID in bpf/abi.h. */
const FLOOR_UID = 1n << 63n;
/** Inner maps by slot that every sandbox has, and those that belong to one policy. */
const OF_SLOT = ["flows", "fragments", "redirects", "counters"] as const;
const OF_POLICY = ["policies", "prefixes4", "prefixes6", "pins"] as const;
/** Those that only some have. */
const OPTIONAL = ["intercepted", "addresses"] as const;
export type SlotMap = (typeof OF_SLOT)[number] | (typeof OPTIONAL)[number];

/** The uid that a floor is compiled with, beside the policy with this uid. */
export function floorUid(uid: bigint): bigint { return uid | FLOOR_UID; }

export class SandboxTables {
  readonly slot: number;
  readonly generation: number;
  readonly #instance: Instance;
  readonly #record = Buffer.alloc(layouts.sandbox.size);
  #uid = 0n;
  /** Whether DNS over TLS goes to the agent: under the staged policy, and under the one in force. */
  #stagedDot = false;
  #dot = false;

  private constructor(instance: Instance, slot: number, generation: number) {
    this.#instance = instance;
    this.slot = slot;
    this.generation = generation;
  }

  /**
   * Makes the tables of a slot; nothing is in force yet. On an error nothing stays.
   * @param generation not 0, another than the slot's last.
   */
  static make(instance: Instance, slot: number, generation: number, identity: Identity, sizes: TableSizes): SandboxTables {
    const tables = new SandboxTables(instance, slot, generation);
    try {
      tables.clear();
      const key = slotKey(slot);
      tables.#install("flows", slot, sizes.flows);
      tables.#install("fragments", slot, AbiLimit.FRAGMENTS_DEFAULT);
      tables.#install("redirects", slot, AbiLimit.REDIRECTS);
      tables.#install("counters", slot, null);
      instance.map("learned").update(key, Buffer.alloc(layouts.learned.size));
      instance.map("event_limits").update(key, Buffer.alloc(layouts.event_limit.size));
      tables.#placeAddresses(identity, sizes);
      tables.#describe(identity, sizes);
    } catch (error) {
      tables.clear();
      throw error;
    }
    return tables;
  }

  /** Takes over a slot that a former process left in force. null when there is nothing of the kind. */
  static adopt(instance: Instance, slot: number): SandboxTables | null {
    const record = instance.map("sandboxes").lookup(slotKey(slot));
    if (record === null || record.readUInt32LE(field.state.offset) !== SandboxState.SANDBOX_ENFORCED) return null;
    const tables = new SandboxTables(instance, slot, record.readUInt32LE(field.generation.offset));
    record.copy(tables.#record);
    tables.#uid = record.readBigUInt64LE(field.policy.offset);
    tables.#dot = tables.#stagedDot = (record.readUInt32LE(field.flags.offset) & SandboxFlag.SANDBOX_REDIRECT_DOT) !== 0;
    for (const name of OF_SLOT) if (!tables.#has(name, slot)) return null;
    return tables;
  }

  /** Takes a slot out of force, if it is, and empties it, whatever a former process left there. */
  static clearSlot(instance: Instance, slot: number): void { new SandboxTables(instance, slot, 0).clear(); }

  /**
   * Empties the slots that are not in force and still have tables: a process was killed within an attach, or between a detach's
   * two steps. They grant nothing, and would take up memory until the slot is used again. The numbers of those slots.
   * For a start, before anything is attached.
   */
  static clearUnfinished(instance: Instance): number[] {
    const cleared: number[] = [];
    for (let slot = 0; slot < instance.sandboxes; slot++) {
      const record = instance.map("sandboxes").lookup(slotKey(slot));
      if (record?.readUInt32LE(field.state.offset) === SandboxState.SANDBOX_ENFORCED) continue;
      const tables = new SandboxTables(instance, slot, 0);
      const ofPolicy = [0, 1, 2, 3].map((part) => slot * 4 + part);
      if (![...OF_SLOT, ...OPTIONAL].some((name) => tables.#has(name, slot)) && !OF_POLICY.some((name) => ofPolicy.some((index) => tables.#has(name, index)))) continue;
      tables.clear();
      cleared.push(slot);
    }
    return cleared;
  }

  get uid(): bigint { return this.#uid; }

  /** Next uid: larger than the last, other parity. */
  nextUid(): bigint { return this.#uid + 1n; }

  /**
   * Puts a policy's tables beside the one in force and returns its map for pins, empty. commit() puts it in force,
   * discard() takes it away.
   */
  stage(compiled: CompiledPolicy, uid: bigint, pins: number): BpfMap {
    if (compiled.intercepts && !this.#has("intercepted", this.slot)) this.#install("intercepted", this.slot, null);
    this.#stagedDot = compiled.dot;
    return this.#stage(compiled, uid, pins);
  }

  /**
   * Puts the operator's floor beside the policy that was staged with this uid, which was compiled with `floor`; the floor is
   * compiled with floorUid(uid). Returns its map for pins.
   */
  stageFloor(compiled: CompiledPolicy, uid: bigint, pins: number): BpfMap {
    if (compiled.intercepts && !this.#has("intercepted", this.slot)) this.#install("intercepted", this.slot, null);
    return this.#stage(compiled, floorUid(uid), pins);
  }

  #stage(compiled: CompiledPolicy, uid: bigint, pins: number): BpfMap {
    if (compiled.uid !== uid) throw new RangeError("a policy is staged under the uid that it was compiled with");
    const index = this.#index(uid);
    const policy = this.#create("policies", compiled.pages.length / AbiLimit.POLICY_PAGE);
    try {
      const pages = compiled.pages.length / AbiLimit.POLICY_PAGE;
      const keys = Buffer.alloc(pages * 4);
      for (let page = 0; page < pages; page++) keys.writeUInt32LE(page, page * 4);
      policy.updateBatch(keys, compiled.pages, pages);
      this.#instance.map("policies").updateInner(index, policy);
    } finally {
      policy.close();
    }
    for (const [name, entries] of [["prefixes4", compiled.prefixes4], ["prefixes6", compiled.prefixes6]] as const) {
      if (entries.count === 0) {
        this.#instance.map(name).delete(slotKey(index));
        continue;
      }
      const trie = this.#create(name, entries.count);
      try {
        trie.updateBatch(entries.keys, entries.values, entries.count);
        this.#instance.map(name).updateInner(index, trie);
      } finally {
        trie.close();
      }
    }
    const pinned = this.#create("pins", pins);
    this.#instance.map("pins").updateInner(index, pinned);
    return pinned;
  }

  /** Whether the kernel holds every table of a policy, or of its floor, compiled under its uid. A process that died may have left it without some. */
  holds(compiled: CompiledPolicy): boolean {
    const index = this.#index(compiled.uid);
    return this.#has("policies", index) && this.#has("pins", index) && (!compiled.intercepts || this.#has("intercepted", this.slot))
      && [["prefixes4", compiled.prefixes4] as const, ["prefixes6", compiled.prefixes6] as const].every(([name, { count }]) => count === 0 || this.#has(name, index));
  }

  /** From this write on packets are judged by the staged policy; flows of the former one are judged again. */
  commit(uid: bigint): void {
    const former = this.#uid;
    this.#record.writeBigUInt64LE(uid, field.policy.offset);
    this.#dot = this.#stagedDot;
    this.#writeDot();
    this.#write();
    this.#uid = uid;
    if (former !== 0n && (former & 1n) !== (uid & 1n)) this.discard(former);
  }

  /** Frees the tables of a policy that is not in force. */
  discard(uid: bigint): void {
    for (const tables of [uid, floorUid(uid)]) for (const name of OF_POLICY) this.#instance.map(name).delete(slotKey(this.#index(tables)));
  }

  /** Identity may be given anew (an address added on the tap); counters, flows and pins stay. */
  describe(identity: Identity, sizes: TableSizes): void {
    this.#placeAddresses(identity, sizes);
    this.#describe(identity, sizes);
    this.#write();
    if (!hasPrefix(identity)) this.#instance.map("addresses").delete(slotKey(this.slot));
  }

  /** Puts the sandbox in force; needs a committed policy. */
  enforce(): void {
    if (this.#uid === 0n) throw new Error("a sandbox without a policy cannot be put in force");
    this.#record.writeUInt32LE(SandboxState.SANDBOX_ENFORCED, field.state.offset);
    this.#write();
  }

  /** The inner map in the slot; the caller closes it. null when there is none. */
  inner(name: SlotMap): BpfMap | null {
    const id = this.#instance.map(name).lookup(slotKey(this.slot));
    return id === null ? null : BpfMap.fromId(id.readUInt32LE(0));
  }

  /** The map of pins of the policy in force, or of its floor; the caller closes it. null when there is none. */
  pins(of: "policy" | "floor" = "policy"): BpfMap | null {
    const id = this.#instance.map("pins").lookup(slotKey(this.#index(of === "policy" ? this.#uid : floorUid(this.#uid))));
    return id === null ? null : BpfMap.fromId(id.readUInt32LE(0));
  }

  /** Kernel memory of the slot's tables in octets, as the kernel counts it. */
  memory(): number {
    let sum = 0;
    const add = (name: MapName, index: number): void => {
      const id = this.#instance.map(name).lookup(slotKey(index));
      if (id === null) return;
      const map = BpfMap.fromId(id.readUInt32LE(0));
      sum += map.memory();
      map.close();
    };
    for (const name of [...OF_SLOT, ...OPTIONAL]) add(name, this.slot);
    for (const name of OF_POLICY) for (const uid of [0n, 1n]) for (const tables of [uid, floorUid(uid)]) add(name, this.#index(tables));
    return sum + layouts.sandbox.size + layouts.learned.size + layouts.event_limit.size;
  }

  /** Out of force first, then everything away. */
  clear(): void {
    const key = slotKey(this.slot);
    this.#instance.map("sandboxes").update(key, Buffer.alloc(layouts.sandbox.size));
    for (const name of [...OF_SLOT, ...OPTIONAL]) this.#instance.map(name).delete(key);
    for (const half of [0n, 1n]) this.discard(half);
    this.#uid = 0n;
  }

  #write(): void { this.#instance.map("sandboxes").update(slotKey(this.slot), this.#record); }

  /** policy_index() of bpf/maps.h. */
  #index(uid: bigint): number { return this.slot * 4 + Number(uid >> 63n) * 2 + Number(uid & 1n); }

  #has(outer: MapName, index: number): boolean { return this.#instance.map(outer).lookup(slotKey(index)) !== null; }

  #writeDot(): void {
    const flags = this.#record.readUInt32LE(field.flags.offset) & ~SandboxFlag.SANDBOX_REDIRECT_DOT;
    this.#record.writeUInt32LE((flags | (this.#dot ? SandboxFlag.SANDBOX_REDIRECT_DOT : 0)) >>> 0, field.flags.offset);
  }

  #create(outer: MapName, entries: number | null): BpfMap {
    const { type, keySize, valueSize, maxEntries, flags } = this.#instance.innerTemplate(outer);
    return BpfMap.create({ type, name: outer.slice(0, 15), keySize, valueSize, maxEntries: entries ?? maxEntries, flags });
  }

  #install(outer: SlotMap, index: number, entries: number | null): void {
    const map = this.#create(outer, entries);
    try {
      this.#instance.map(outer).updateInner(index, map);
    } finally {
      map.close();
    }
  }

  /** The table of what the guest uses of its prefixes, of this size; one of another size begins anew. */
  #placeAddresses(identity: Identity, sizes: TableSizes): void {
    if (!hasPrefix(identity)) return;
    const former = this.inner("addresses"), size = former?.info.maxEntries;
    former?.close();
    if (size !== sizes.addresses) this.#install("addresses", this.slot, sizes.addresses);
  }

  #describe(identity: Identity, sizes: TableSizes): void {
    const record = this.#record;
    const state = record.readUInt32LE(field.state.offset), policy = record.readBigUInt64LE(field.policy.offset);
    record.fill(0);
    record.writeUInt32LE(state, field.state.offset);
    record.writeBigUInt64LE(policy, field.policy.offset);
    record.writeUInt32LE(this.generation, field.generation.offset);
    record.writeUInt32LE(sizes.eventsPerSecond, field.event_rate.offset);
    record.writeUInt32LE(sizes.queriesPerSecond, field.query_rate.offset);
    record.writeUInt32LE(sizes.connectionsPerSecond, field.connection_rate.offset);
    record.writeUInt32LE(identity.ifindex, field.ifindex.offset);
    record.writeUInt32LE(identity.place ?? 0, field.place.offset);
    record.set(identity.tapMac, field.tap_mac.offset);
    if (identity.mac !== null) record.set(identity.mac, field.mac.offset);

    const guest4 = identity.guest.filter((prefix) => prefix.family === 4), guest6 = identity.guest.filter((prefix) => prefix.family === 6);
    for (const [family, list] of [["IPv4", guest4], ["IPv6", guest6]] as const) {
      if (list.length > AbiLimit.GUEST_ADDRS) throw new EnforcerError("E_LIMIT", `${list.length} ${family} addresses for one guest; ${AbiLimit.GUEST_ADDRS} can be held`, { remedy: "give a prefix instead of single addresses" });
    }
    writePrefixes4(record, field.guest4.offset, guest4);
    writePrefixes6(record, field.guest6.offset, guest6);
    const learn4 = identity.learnPrefixes.filter((prefix) => prefix.family === 4), learn6 = identity.learnPrefixes.filter((prefix) => prefix.family === 6);
    writePrefixes4(record, field.learn4.offset, learn4.slice(0, AbiLimit.LEARN_PREFIXES));
    writePrefixes6(record, field.learn6.offset, learn6.slice(0, AbiLimit.LEARN_PREFIXES));
    const gateways = knownGateways(identity.gateways);
    gateways.filter(isV4).forEach((address, i) => record.set(address.subarray(12), field.gateway4.offset + 4 * i));
    gateways.filter((address) => !isV4(address)).forEach((address, i) => record.set(address, field.gateway6.offset + 16 * i));

    const hasLinkLocal = guest6.some(({ bytes }) => isLinkLocal(bytes));
    let flags = SandboxFlag.SANDBOX_REDIRECT_DNS as number;
    if (identity.mac === null) flags |= SandboxFlag.SANDBOX_LEARN_MAC;
    if (guest4.length === 0) flags |= SandboxFlag.SANDBOX_LEARN_4;
    if (guest6.every(({ bytes }) => isLinkLocal(bytes))) flags |= SandboxFlag.SANDBOX_LEARN_6;
    if (!hasLinkLocal) flags |= SandboxFlag.SANDBOX_LEARN_LL;
    if (identity.dhcp) flags |= SandboxFlag.SANDBOX_DHCP;
    if (hasPrefix(identity)) flags |= SandboxFlag.SANDBOX_PREFIXES;
    record.writeUInt32LE(flags, field.flags.offset);
    this.#writeDot();
  }
}

function isLinkLocal(bytes: Uint8Array): boolean { return bytes[0] === 0xfe && (bytes[1]! & 0xc0) === 0x80; }

/** Those that the kernel knows: the first GATEWAYS of each family, but of IPv6 a link-local one in any case, which most guests use. */
export function knownGateways(all: readonly Address[]): readonly Address[] {
  const six = all.filter((address) => !isV4(address)), linkLocal = six.filter(isLinkLocal).slice(0, 1);
  const others = six.filter((address) => !linkLocal.includes(address)).slice(0, AbiLimit.GATEWAYS - linkLocal.length);
  return [...all.filter(isV4).slice(0, AbiLimit.GATEWAYS), ...others, ...linkLocal];
}

/** Whether some of the guest's addresses is a prefix, of which it may have many. */
function hasPrefix({ guest }: Identity): boolean { return guest.some(({ length }) => length < 128); }

export function slotKey(index: number): Buffer {
  const key = Buffer.alloc(4);
  key.writeUInt32LE(index);
  return key;
}

function maskOf(bits: number, octets: number): Uint8Array {
  const mask = new Uint8Array(octets);
  for (let bit = 0; bit < bits; bit++) mask[bit >> 3]! |= 0x80 >> (bit & 7);
  return mask;
}

function writePrefixes4(record: Buffer, offset: number, prefixes: readonly Prefix[]): void {
  prefixes.forEach(({ bytes, length }, i) => {
    const mask = maskOf(length - 96, 4);
    for (let octet = 0; octet < 4; octet++) record[offset + 8 * i + octet] = bytes[12 + octet]! & mask[octet]!;
    record.set(mask, offset + 8 * i + 4);
  });
}

function writePrefixes6(record: Buffer, offset: number, prefixes: readonly Prefix[]): void {
  prefixes.forEach(({ bytes, length }, i) => {
    const mask = maskOf(length, 16);
    for (let octet = 0; octet < 16; octet++) record[offset + 32 * i + octet] = bytes[octet]! & mask[octet]!;
    record.set(mask, offset + 32 * i + 16);
  });
}
