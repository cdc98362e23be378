/**
 * Address groups: the table that the kernel's tries hold, and the classification of one address by it.
 *
 * Holds always: groups are disjoint and the strictest one wins; a table entry is already the strictest of all prefixes that
 * cover it, so that one longest-prefix match decides; an address that embeds an IPv4 address is judged by that address as
 * well; IPv6 outside 2000::/3 is never public unless it is a configured NAT64 prefix. AS112 sinks count as reserved: they
 * are public servers, but nothing a sandbox needs lives there and their answers come from whoever is nearest.
 * Does not follow the host: whoever calls gives the host's addresses and routes of the moment.
 */
import { EnforcerError } from "../errors.js";
import {
  type Address, type Prefix, addressPrefix, comparePrefixes, encodeTrieKeys, formatPrefix, fromV4, hasHostBits, isV4, maskPrefix,
  parsePrefix, prefixBits, prefixContains, prefixWithin,
} from "./address.js";
import { Embed } from "../kernel/layout.gen.js";
import { metadataPrefixes, specialPurpose } from "./tables.gen.js";

/** Groups in the order of enum group (bpf/abi.h): strictest first, the index is the kernel's number. */
export const groups = ["host", "metadata", "loopback", "private", "link-local", "multicast", "reserved", "public"] as const;
export type Group = (typeof groups)[number];

/** Number of a group, as in enum group. */
export function groupNumber(group: Group): number {
  return groups.indexOf(group);
}

/** Where an IPv6 prefix carries an IPv4 address: enum embed (bpf/abi.h). */
export type Embed = (typeof Embed)[keyof typeof Embed];

/** One prefix of the table. `parent` is the index of the next wider entry that covers it, -1 for the widest. */
export interface GroupEntry {
  readonly prefix: Prefix;
  readonly group: Group;
  readonly embed: Embed;
  readonly parent: number;
}

/** Entries per family, sorted so that an entry follows those that cover it; 0.0.0.0/0 and ::/0 are always there. */
export interface GroupTable {
  readonly v4: readonly GroupEntry[];
  readonly v6: readonly GroupEntry[];
}

export interface GroupInput {
  /** Every address that the host owns on any interface, gateways of taps included. */
  readonly hostAddresses?: readonly Address[];
  /**
   * Prefixes that the host reaches without a gateway: what would be public there is `private`. A default route over a
   * device (length 0) is not a link and is left out.
   */
  readonly connectedPrefixes?: readonly Prefix[];
  /** Directed broadcast addresses of tap subnets. */
  readonly broadcasts?: readonly Address[];
  /** Prefixes that the operator adds to a group, as text; none can be added to `public`. */
  readonly extra?: Partial<Record<Group, readonly string[]>>;
  /** RFC 6052 prefixes (length 32, 40, 48, 56, 64 or 96) that a translator of this network uses, as text. */
  readonly nat64Prefixes?: readonly string[];
}

interface Source { readonly prefix: Prefix; readonly apply: (state: State) => void }
interface State { strictest: number; reserved: boolean; connected: boolean; embed: Embed }

const PUBLIC = groupNumber("public");

const embedding: readonly (readonly [string, Embed])[] = [
  ["::/96", Embed.EMBED_96], // IPv4-compatible, RFC 4291 section 2.5.5.1
  ["::ffff:0:0/96", Embed.EMBED_96], // IPv4-mapped, RFC 4291 section 2.5.5.2
  ["::ffff:0:0:0/96", Embed.EMBED_96], // IPv4-translated, RFC 2765
  ["64:ff9b::/96", Embed.EMBED_96], // RFC 6052
  ["64:ff9b:1::/48", Embed.EMBED_96], // RFC 8215; the length in use is the network's own choice, mostly /96
  ["2002::/16", Embed.EMBED_6TO4], // RFC 3056
  ["2001::/32", Embed.EMBED_TEREDO], // RFC 4380
];

const nat64Embedding = new Map<number, Embed>([
  [32, Embed.EMBED_32], [40, Embed.EMBED_40], [48, Embed.EMBED_48], [56, Embed.EMBED_56], [64, Embed.EMBED_64], [96, Embed.EMBED_96],
]);

function known(text: string): Prefix {
  const prefix = parsePrefix(text);
  if (prefix === null || hasHostBits(prefix)) throw new EnforcerError("E_DATA", `address table: not a prefix: ${text}`);
  return prefix;
}

/** A prefix from the operator's configuration. Throws E_GROUPS with the place and the corrected form. */
function configured(text: string, place: string): Prefix {
  const prefix = parsePrefix(text);
  if (prefix === null) throw new EnforcerError("E_GROUPS", `${place}: not an address or prefix: ${JSON.stringify(text)}`);
  if (prefix.family === 6 && isV4(prefix.bytes)) {
    throw new EnforcerError("E_GROUPS", `${place}: ${text} is IPv4-mapped`, { remedy: "write the IPv4 prefix itself" });
  }
  if (hasHostBits(prefix)) {
    throw new EnforcerError("E_GROUPS", `${place}: ${text} has bits set behind its length`, { remedy: `write ${formatPrefix(maskPrefix(prefix))}` });
  }
  return prefix;
}

function strictest(group: Group): (state: State) => void {
  const number = groupNumber(group);
  return (state) => { state.strictest = Math.min(state.strictest, number); };
}

const fixedSources: readonly Source[] = [
  { prefix: known("::/0"), apply: (state) => { state.reserved = true; } },
  { prefix: known("2000::/3"), apply: (state) => { state.reserved = false; } },
  { prefix: known("0.0.0.0/0"), apply: () => undefined },
  ...specialPurpose.map(({ prefix, group }) => ({
    prefix: known(prefix),
    apply: group === "reserved" ? (state: State): void => { state.reserved = true; } : strictest(group),
  })),
  ...metadataPrefixes.map(({ prefix }) => ({ prefix: known(prefix), apply: strictest("metadata") })),
  ...embedding.map(([text, embed]) => ({ prefix: known(text), apply: (state: State): void => { state.embed = embed; } })),
];

function nat64Source(text: string): Source {
  const prefix = configured(text, "nat64_prefixes");
  const embed = prefix.family === 6 ? nat64Embedding.get(prefix.length) : undefined;
  if (embed === undefined) {
    throw new EnforcerError("E_GROUPS", `nat64_prefixes: ${text} cannot carry an IPv4 address`, { remedy: "give an IPv6 prefix of length 32, 40, 48, 56, 64 or 96 (RFC 6052)" });
  }
  for (const [taken] of embedding) {
    const other = known(taken);
    if (taken.startsWith("64:ff9b:")) continue;
    if (prefixWithin(prefix, other) || prefixWithin(other, prefix)) {
      throw new EnforcerError("E_GROUPS", `nat64_prefixes: ${text} overlaps ${taken}, which embeds IPv4 addresses in another way`, { remedy: "give the translator a prefix of its own" });
    }
  }
  // The operator says that a translator answers here: what is reached is the embedded address, so the registry's
  // `reserved` ends; any other group the prefix lies in (fc00::/7 …) stays, because the stricter class wins.
  return { prefix, apply: (state) => { state.reserved = false; state.embed = embed; } };
}

/**
 * The table of the moment. Time grows with the number of prefixes only (sorting); a host with thousands of addresses is fine.
 * Throws E_GROUPS when the operator's prefixes are wrong.
 */
export function groupTable(input: GroupInput = {}): GroupTable {
  const sources: Source[] = [...fixedSources];
  for (const address of input.hostAddresses ?? []) sources.push({ prefix: addressPrefix(address), apply: strictest("host") });
  for (const address of input.broadcasts ?? []) sources.push({ prefix: addressPrefix(address), apply: strictest("multicast") });
  for (const prefix of input.connectedPrefixes ?? []) {
    if (prefixBits(prefix) > 0) sources.push({ prefix: maskPrefix(prefix), apply: (state) => { state.connected = true; } });
  }
  for (const [group, texts] of Object.entries(input.extra ?? {}) as [Group, readonly string[]][]) {
    if (group === "public" && texts.length > 0) {
      throw new EnforcerError("E_GROUPS", "groups: nothing can be added to `public`: it is what no other group holds", { remedy: "allow the prefix by a rule" });
    }
    for (const text of texts) sources.push({ prefix: configured(text, `groups.${group}`), apply: strictest(group) });
  }
  // Last, so that at the very same prefix the operator's word comes after the registry's.
  for (const text of input.nat64Prefixes ?? []) sources.push(nat64Source(text));
  return { v4: build(sources, 4), v6: build(sources, 6) };
}

function build(sources: readonly Source[], family: 4 | 6): GroupEntry[] {
  const sorted = sources.filter((source) => source.prefix.family === family).sort((a, b) => comparePrefixes(a.prefix, b.prefix));
  const entries: GroupEntry[] = [];
  const states: State[] = [];
  let parent = -1;
  for (let i = 0; i < sorted.length;) {
    const { prefix } = sorted[i] as Source;
    while (parent >= 0 && !prefixWithin(prefix, (entries[parent] as GroupEntry).prefix)) parent = (entries[parent] as GroupEntry).parent;
    const state: State = parent < 0 ? { strictest: PUBLIC, reserved: false, connected: false, embed: Embed.EMBED_NONE } : { ...(states[parent] as State) };
    for (; i < sorted.length && comparePrefixes((sorted[i] as Source).prefix, prefix) === 0; i++) (sorted[i] as Source).apply(state);
    entries.push({ prefix, group: settle(state), embed: state.embed, parent });
    states.push(state);
    parent = entries.length - 1;
  }
  return entries;
}

function settle(state: State): Group {
  const own = Math.min(state.strictest, state.reserved ? groupNumber("reserved") : PUBLIC);
  return groups[own === PUBLIC && state.connected ? groupNumber("private") : own] as Group;
}

/** The table without a host: special prefixes and metadata endpoints only. */
export const staticGroups: GroupTable = groupTable();

/** Most specific entry that holds the address: what the kernel's longest-prefix match finds. */
function lookup(entries: readonly GroupEntry[], address: Address, family: 4 | 6): GroupEntry {
  let low = 0;
  let high = entries.length;
  const key: Prefix = { bytes: address, length: 128, family };
  while (low < high) {
    const middle = (low + high) >> 1;
    if (comparePrefixes((entries[middle] as GroupEntry).prefix, key) <= 0) low = middle + 1;
    else high = middle;
  }
  let index = low - 1;
  while (index >= 0) {
    const entry = entries[index] as GroupEntry;
    if (prefixContains(entry.prefix, address, family)) return entry;
    index = entry.parent;
  }
  throw new EnforcerError("E_DATA", "address table without a default entry");
}

function v4At(address: Address, ...at: readonly [number, number, number, number]): Address {
  const [a, b, c, d] = at.map((i) => address[i] as number) as [number, number, number, number];
  return fromV4(a, b, c, d);
}

/** IPv4 addresses that an IPv6 address embeds under this kind. */
function embedded(address: Address, embed: Embed): Address[] {
  switch (embed) {
    case Embed.EMBED_NONE: return [];
    case Embed.EMBED_96: return [v4At(address, 12, 13, 14, 15)];
    case Embed.EMBED_6TO4: return [v4At(address, 2, 3, 4, 5)];
    case Embed.EMBED_TEREDO: return [v4At(address, 4, 5, 6, 7), v4At(address.map((octet) => octet ^ 255), 12, 13, 14, 15)];
    case Embed.EMBED_32: return [v4At(address, 4, 5, 6, 7)];
    case Embed.EMBED_40: return [v4At(address, 5, 6, 7, 9)];
    case Embed.EMBED_48: return [v4At(address, 6, 7, 9, 10)];
    case Embed.EMBED_56: return [v4At(address, 7, 9, 10, 11)];
    case Embed.EMBED_64: return [v4At(address, 9, 10, 11, 12)];
  }
}

/** ISATAP interface identifier (RFC 5214 section 6.1): [02]00:5efe, then the IPv4 address, under any prefix. */
function isIsatap(address: Address): boolean {
  return ((address[8] as number) & 0xfd) === 0 && address[9] === 0 && address[10] === 0x5e && address[11] === 0xfe;
}

/** Why an address is in its group: the table's entry, and the IPv4 address it was found by where one is embedded. */
export interface Placing { readonly group: Group; readonly prefix: Prefix; readonly embedded: Address | null }

/**
 * Group of an address, and the entry that says so: the reference for what the kernel does.
 * @param family 6 for an IPv4-mapped address that stands in an IPv6 packet (never public); by default mapped means IPv4.
 */
export function place(table: GroupTable, address: Address, family: 4 | 6 = isV4(address) ? 4 : 6): Placing {
  const own = lookup(family === 4 ? table.v4 : table.v6, address, family);
  let strictest: Placing = { group: own.group, prefix: own.prefix, embedded: null };
  if (family === 4) return strictest;
  const inner = embedded(address, own.embed);
  if (isIsatap(address)) inner.push(v4At(address, 12, 13, 14, 15));
  for (const v4 of inner) {
    const { group, prefix } = lookup(table.v4, v4, 4);
    if (groupNumber(group) < groupNumber(strictest.group)) strictest = { group, prefix, embedded: v4 };
  }
  return strictest;
}

/** Group of an address; see place(). */
export function classify(table: GroupTable, address: Address, family: 4 | 6 = isV4(address) ? 4 : 6): Group { return place(table, address, family).group; }

/** The group that holds the whole prefix: the strictest whose own prefixes cover it; `public` when none does or public addresses lie in it. */
export function groupOfPrefix(table: GroupTable, prefix: Prefix): Group {
  const entries = prefix.family === 4 ? table.v4 : table.v6;
  let entry: GroupEntry | undefined = lookup(entries, prefix.bytes, prefix.family);
  while (entry !== undefined && entry.prefix.length > prefix.length) entry = entries[entry.parent];
  if (entry === undefined || entry.group === "public" || entries.some((inner) => inner.group === "public" && prefixWithin(inner.prefix, prefix))) return "public";
  return entry.group;
}

/** Keys and values for the kernel maps `groups4` and `groups6` (struct lpm4/lpm6, struct group_entry). */
export function encodeGroups(table: GroupTable): Record<"groups4" | "groups6", { keys: Uint8Array; values: Uint8Array; count: number }> {
  const encode = (entries: readonly GroupEntry[], family: 4 | 6): { keys: Uint8Array; values: Uint8Array; count: number } => {
    const values = new Uint8Array(entries.length * 4);
    entries.forEach((entry, i) => values.set([groupNumber(entry.group), entry.embed], i * 4));
    return { keys: encodeTrieKeys(entries.map((entry) => entry.prefix), family), values, count: entries.length };
  };
  return { groups4: encode(table.v4, 4), groups6: encode(table.v6, 6) };
}

/** A table as octets, for another thread: a tenth of what cloning its thousands of entries takes. */
export interface PackedGroups { readonly v4: Uint8Array; readonly v6: Uint8Array }

/** 16 octets of the prefix, its length, group, embed, nothing, and the parent (32 bits). */
const PACKED_ENTRY = 24;

export function packGroups({ v4, v6 }: GroupTable): PackedGroups { return { v4: packEntries(v4), v6: packEntries(v6) }; }

export function unpackGroups({ v4, v6 }: PackedGroups): GroupTable { return { v4: unpackEntries(v4, 4), v6: unpackEntries(v6, 6) }; }

function packEntries(entries: readonly GroupEntry[]): Uint8Array {
  const out = new Uint8Array(entries.length * PACKED_ENTRY), parents = new Int32Array(out.buffer);
  entries.forEach(({ prefix, group, embed, parent }, i) => {
    const at = i * PACKED_ENTRY;
    out.set(prefix.bytes, at);
    out[at + 16] = prefix.length;
    out[at + 17] = groupNumber(group);
    out[at + 18] = embed;
    parents[at / 4 + 5] = parent;
  });
  return out;
}

function unpackEntries(packed: Uint8Array, family: 4 | 6): GroupEntry[] {
  const parents = new Int32Array(packed.buffer, packed.byteOffset, packed.length / 4);
  return Array.from({ length: packed.length / PACKED_ENTRY }, (_, i) => {
    const at = i * PACKED_ENTRY;
    return { prefix: { bytes: packed.subarray(at, at + 16), length: packed[at + 16]!, family }, group: groups[packed[at + 17]!]!, embed: packed[at + 18] as Embed, parent: parents[at / 4 + 5]! };
  });
}
