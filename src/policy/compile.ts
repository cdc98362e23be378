/**
 * From a policy to the tables that the kernel reads: pages, prefix tries, and what each bit means. What the pages hold is
 * described in bpf/abi.h at enum policy_layout; numbers and offsets come from there.
 *
 * Holds always: pure, no effects; the same policy and uid give the same octets; vectors that are equal are stored once; what
 * does not fit is an error and never a smaller policy.
 */
import { EnforcerError } from "../errors.js";
import { type Prefix, comparePrefixes, encodeTrieKeys, maskPrefix, prefixWithin } from "../addresses/address.js";
import { groups } from "../addresses/groups.js";
import { AbiLimit, PolicyFlag, PolicyLayout, layouts } from "../kernel/layout.gen.js";
import { type BitInfo, assignBits } from "./bits.js";
import { coversGroup, prefixesOf } from "./coverage.js";
import { inspectionOf } from "./inspection.js";
import { type Policy, Proto, type Rule } from "./types.js";

/** Keys (struct lpm4 or lpm6) and values (struct prefix_entry), one after another. */
export interface PrefixTable { readonly keys: Uint8Array; readonly values: Uint8Array; readonly count: number }

export interface CompiledPolicy {
  readonly uid: bigint;
  /** Whole pages of 512 octets, in order of their numbers. */
  readonly pages: Uint8Array;
  readonly prefixes4: PrefixTable;
  readonly prefixes6: PrefixTable;
  readonly bits: readonly BitInfo[];
  /** Some connections go to the agent, which looks who is meant. */
  readonly intercepts: boolean;
  /** DNS over TLS goes to the agent too. */
  readonly dot: boolean;
}

const PAGE = AbiLimit.POLICY_PAGE;
const WORDS = AbiLimit.RULE_WORDS;
const VECTOR = 8 * WORDS;
const CELLS = PAGE / 2;
const LEAF = PolicyLayout.POLICY_LEAF;
const VECTORS_PER_PAGE = PAGE / VECTOR;
const header = layouts.policy_header.fields;

/** Rule bits, little-endian within a vector: bit i is word i / 64, bit i % 64. */
class Vector {
  readonly words = new BigUint64Array(WORDS);

  set(bit: number): void {
    this.words[bit >> 6] = (this.words[bit >> 6] as bigint) | (1n << BigInt(bit & 63));
  }

  flip(bit: number): void {
    this.words[bit >> 6] = (this.words[bit >> 6] as bigint) ^ (1n << BigInt(bit & 63));
  }

  copy(): Vector {
    const copy = new Vector();
    copy.words.set(this.words);
    return copy;
  }

  get key(): string {
    return this.words.join(" ");
  }
}

/** Distinct vectors, numbered from 0 (the empty one). */
class Classes {
  readonly #numbers = new Map<string, number>();
  readonly vectors: Vector[] = [];

  constructor() {
    this.number(new Vector());
  }

  /** A number that fits the cells of a port or protocol table. */
  cell(vector: Vector): number {
    const number = this.number(vector);
    if (number < LEAF) return number;
    throw new EnforcerError("E_LIMIT", `ports and protocols of the rules combine in more than ${LEAF} ways`, { remedy: "use fewer different port ranges" });
  }

  number(vector: Vector): number {
    const known = this.#numbers.get(vector.key);
    if (known !== undefined) return known;
    this.#numbers.set(vector.key, this.vectors.length);
    this.vectors.push(vector);
    return this.vectors.length - 1;
  }
}

/**
 * @param options.uid never 0, unique over the life of the pinned maps; see POLICY_FLOOR_UID in bpf/abi.h.
 * @param options.inspect there is somebody who looks into connections (src/tls/); without, policy.tls changes nothing.
 * @param options.floor a floor stands beside it, which must allow what this policy allows.
 * Throws E_LIMIT when the policy needs more bits or classes than there are, RangeError for a uid of 0.
 */
export function compilePolicy(policy: Policy, options: { uid: bigint; floor?: boolean; inspect?: boolean }): CompiledPolicy {
  if (options.uid <= 0n || options.uid >= 1n << 64n) throw new RangeError("uid must be from 1 to 2^64 - 1");
  const { bits, bitOf } = assignBits(policy);
  const classes = new Classes();

  const vectorOf = (holds: (bit: BitInfo) => boolean): Vector => {
    const vector = new Vector();
    for (const bit of bits) if (holds(bit)) vector.set(bit.bit);
    return vector;
  };
  const groupVectors = groups.map((group) => vectorOf((bit) => bit.rules.some((index) => coversGroup(policy.rules[index] as Rule, group))));
  const prefixGroupVectors = groups.map((group) => vectorOf((bit) => bit.onlyGroup === null || bit.onlyGroup === group));

  const plan = options.inspect === true ? inspectionOf(policy) : null;
  const inspectPorts = plan?.ports ?? [];
  if (inspectPorts.length > AbiLimit.INSPECT_PORTS) throw new EnforcerError("E_LIMIT", `${inspectPorts.length} ports whose connections are looked into; ${AbiLimit.INSPECT_PORTS} can be held`, { remedy: "name fewer ports in tls.ports" });

  // Page number → cells. Leaves come behind the fixed pages, class pages behind the leaves.
  const cells = new Map<number, Uint16Array>();
  const leaves = new Map<string, number>();
  for (const direction of ["egress", "ingress"] as const) {
    const ofDirection = bits.filter((bit) => bit.direction === direction);
    const base = direction === "egress" ? PolicyLayout.POLICY_PAGE_EGRESS : PolicyLayout.POLICY_PAGE_INGRESS;
    cells.set(base, portDirectory(ofDirection, Proto.tcp, classes, leaves, cells));
    cells.set(base + 1, portDirectory(ofDirection, Proto.udp, classes, leaves, cells));
    cells.set(base + 2, protocolTable(ofDirection, classes));
  }
  const prefixes4 = prefixTable(policy, bitOf, 4, classes);
  const prefixes6 = prefixTable(policy, bitOf, 6, classes);

  const classPage = PolicyLayout.POLICY_PAGE_FIRST_FREE + leaves.size;
  const pageCount = classPage + Math.ceil(classes.vectors.length / VECTORS_PER_PAGE);
  const pages = new Uint8Array(pageCount * PAGE);
  const words = new BigUint64Array(pages.buffer);
  const put = (offset: number, vector: Vector): void => words.set(vector.words, offset / 8);

  const numbers = new Uint32Array(pages.buffer, 0, PAGE / 4);
  words[header.uid.offset / 8] = options.uid;
  numbers[header.flags.offset / 4] = (policy.defaultEgress === "allow" ? PolicyFlag.POLICY_DEFAULT_ALLOW_EGRESS : 0)
    | (policy.defaultIngress === "allow" ? PolicyFlag.POLICY_DEFAULT_ALLOW_INGRESS : 0)
    | (prefixes4.count > 0 ? PolicyFlag.POLICY_HAS_PREFIXES4 : 0) | (prefixes6.count > 0 ? PolicyFlag.POLICY_HAS_PREFIXES6 : 0)
    | (bits.some((bit) => bit.domain) ? PolicyFlag.POLICY_HAS_PINS : 0)
    | (options.floor === true ? PolicyFlag.POLICY_HAS_FLOOR : 0) | (plan?.byDefault === true ? PolicyFlag.POLICY_INSPECT_DEFAULT : 0);
  numbers[header.class_page.offset / 4] = classPage;
  numbers[header.pages.offset / 4] = pageCount;
  numbers[header.classes.offset / 4] = classes.vectors.length;
  put(header.allow.offset, vectorOf((bit) => bit.action === "allow"));
  put(header.ingress.offset, vectorOf((bit) => bit.direction === "ingress"));
  put(header.domain.offset, vectorOf((bit) => bit.domain));
  put(header.inspect.offset, vectorOf((bit) => bit.rules.some((index) => plan?.rules.has(index) === true)));
  new Uint16Array(pages.buffer, header.inspect_ports.offset, AbiLimit.INSPECT_PORTS).set(inspectPorts);
  groupVectors.forEach((vector, group) => put(PolicyLayout.POLICY_PAGE_GROUPS * PAGE + group * VECTOR, vector));
  prefixGroupVectors.forEach((vector, group) => put(PolicyLayout.POLICY_PAGE_PREFIX_GROUPS * PAGE + group * VECTOR, vector));
  for (const [number, table] of cells) new Uint16Array(pages.buffer, number * PAGE, CELLS).set(table);
  classes.vectors.forEach((vector, number) => put(classPage * PAGE + number * VECTOR, vector));
  return { uid: options.uid, pages, prefixes4, prefixes6, bits, intercepts: plan !== null && (plan.rules.size > 0 || plan.byDefault || plan.dot), dot: plan?.dot ?? false };
}

/** Cells by the high octet of the port; where a high octet holds several classes, a leaf by the low octet. */
function portDirectory(bits: readonly BitInfo[], proto: number, classes: Classes, leaves: Map<string, number>, cells: Map<number, Uint16Array>): Uint16Array {
  const speaking = bits.filter((bit) => bit.protos.includes(proto));
  // Bits whose range starts or has ended at a port. A rule's ranges neither overlap nor adjoin, so each is one change.
  const changes = new Map<number, number[]>([[0, speaking.filter((bit) => bit.ports === null).map((bit) => bit.bit)]]);
  const change = (port: number, bit: number): void => {
    const there = changes.get(port);
    if (there === undefined) changes.set(port, [bit]);
    else there.push(bit);
  };
  for (const { bit, ports } of speaking) {
    for (const { first, last } of ports ?? []) {
      change(first, bit);
      if (last < 65535) change(last + 1, bit);
    }
  }
  // Runs of ports under one class, in order.
  const current = new Vector();
  const runs = [...changes].sort(([a], [b]) => a - b).map(([start, bits]) => {
    for (const bit of bits) current.flip(bit);
    return { start, cell: classes.cell(current.copy()) };
  });
  const directory = new Uint16Array(CELLS);
  let cell = 0;
  let next = 0;
  for (let high = 0; high < CELLS; high++) {
    const end = (high + 1) * CELLS;
    const leaf = new Map<number, number>();
    for (; next < runs.length && (runs[next] as { start: number }).start < end; next++) {
      const run = runs[next] as { start: number; cell: number };
      if (run.start === high * CELLS) cell = run.cell;
      else leaf.set(run.start - high * CELLS, run.cell);
    }
    directory[high] = leaf.size === 0 ? cell : LEAF | leafPage(cell, leaf, leaves, cells);
    cell = [...leaf.values()].at(-1) ?? cell;
  }
  return directory;
}

/** Number of the leaf whose cells are `first` up to the first change, and so on; equal leaves are one page. */
function leafPage(first: number, changes: ReadonlyMap<number, number>, leaves: Map<string, number>, cells: Map<number, Uint16Array>): number {
  const leaf = new Uint16Array(CELLS).fill(first);
  for (const [start, cell] of changes) leaf.fill(cell, start);
  const key = leaf.join(" ");
  let number = leaves.get(key);
  if (number === undefined) {
    number = PolicyLayout.POLICY_PAGE_FIRST_FREE + leaves.size;
    leaves.set(key, number);
    cells.set(number, leaf);
  }
  return number;
}

/** Cells by protocol number, of the rules without ports. TCP and UDP have their directories, so their cells stay empty. */
function protocolTable(bits: readonly BitInfo[], classes: Classes): Uint16Array {
  const table = new Uint16Array(CELLS);
  const vectors = new Map<number, Vector>();
  for (const bit of bits) {
    if (bit.ports !== null) continue;
    for (const proto of bit.protos) {
      if (proto === Proto.tcp || proto === Proto.udp) continue;
      const vector = vectors.get(proto) ?? new Vector();
      vector.set(bit.bit);
      vectors.set(proto, vector);
    }
  }
  for (const [proto, vector] of vectors) table[proto] = classes.cell(vector);
  return table;
}

/** Every distinct prefix of the rules, each with the class of all rules whose prefixes cover it. */
function prefixTable(policy: Policy, bitOf: readonly number[], family: 4 | 6, classes: Classes): PrefixTable {
  const named: { prefix: Prefix; bit: number }[] = [];
  for (const rule of policy.rules) {
    for (const prefix of prefixesOf(rule)) if (prefix.family === family) named.push({ prefix: maskPrefix(prefix), bit: bitOf[rule.index] as number });
  }
  named.sort((a, b) => comparePrefixes(a.prefix, b.prefix));
  const prefixes: Prefix[] = [];
  const values: number[] = [];
  const covering: { prefix: Prefix; vector: Vector }[] = [];
  for (let i = 0; i < named.length;) {
    const { prefix } = named[i] as { prefix: Prefix };
    while (covering.length > 0 && !prefixWithin(prefix, (covering.at(-1) as { prefix: Prefix }).prefix)) covering.pop();
    const vector = new Vector();
    vector.words.set(covering.at(-1)?.vector.words ?? []);
    for (; i < named.length && comparePrefixes((named[i] as { prefix: Prefix }).prefix, prefix) === 0; i++) vector.set((named[i] as { bit: number }).bit);
    covering.push({ prefix, vector });
    prefixes.push(prefix);
    values.push(classes.number(vector));
  }
  return { keys: encodeTrieKeys(prefixes, family), values: new Uint8Array(Uint32Array.from(values).buffer), count: prefixes.length };
}

