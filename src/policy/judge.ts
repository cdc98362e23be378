/**
 * The verdict on a name: may this sandbox resolve it, and which rule bits do its addresses get?
 *
 * Holds always: cost does not grow with the number of rules or blocked names; labels are compared, never joined text that could
 * be read two ways; the block list wins over every allow; names that stand for the host, its network or a metadata endpoint
 * are refused unless a rule names them.
 * Does not look at addresses.
 */
import { type Prefix, fromV4 } from "../addresses/address.js";
import { type GroupTable, groupOfPrefix, staticGroups } from "../addresses/groups.js";
import { metadataNames } from "../addresses/tables.gen.js";
import { type BitMap, assignBits } from "./bits.js";
import { BlockJudge } from "./blocklist.js";
import { decidesEveryName, patternsOf, plainLabel } from "./coverage.js";
import { endsIn } from "./names.js";
import type { NamePattern, Policy, Rule } from "./types.js";

export interface NameVerdict {
  readonly allowed: boolean;
  /** Bits of every domain rule that covers the name, allow and deny, with and without ports, ascending: a pin of it carries them. */
  readonly bits: readonly number[];
  /** Index of the rule that decided; null when a default or the block list did. */
  readonly rule: number | null;
  /** rule: a rule by name (or a deny of everything); open: an allow of `public` or `any`; blocked: the block list. */
  readonly reason: "rule" | "open" | "default" | "blocked";
  /** With reason rule: a deny of everything, which speaks of this name no more than a default does. */
  readonly everything?: true;
  /** Why a name was refused that an open rule or default would have let pass. */
  readonly special?: "metadata" | "local" | "reverse" | "malformed";
}

interface NameRule { readonly index: number; readonly rule: Rule; readonly pattern: NamePattern }
/** A name that needs a rule of its own: exact says that only an exact rule will do, else one with at least `labels` labels. */
interface Special { readonly kind: "metadata" | "local" | "reverse"; readonly exact: boolean; readonly labels: number }

/** Metadata names by their last label, so that an ordinary name is compared with none or few. */
const metadataLabels = new Map<string, (readonly string[])[]>();
for (const name of metadataNames) {
  const labels = name.split(".");
  const last = labels.at(-1) as string;
  metadataLabels.set(last, [...(metadataLabels.get(last) ?? []), labels]);
}

/** Does a metadata name cover this one? A leading `*` is one or more labels, a later one exactly one. */
function coveredBy(pattern: readonly string[], labels: readonly string[]): boolean {
  const open = pattern[0] === "*";
  const offset = labels.length - pattern.length;
  if (offset < 0 || (!open && offset > 0)) return false;
  return pattern.every((label, i) => (i === 0 && open) || label === "*" || label === labels[offset + i]);
}

const hexDigits = "0123456789abcdef";

/** The prefix that the last `count` labels of a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5) stand for. */
function reversePrefix(labels: readonly string[], family: 4 | 6, count: number): Prefix | null {
  const digits = labels.slice(labels.length - count, labels.length - 2).reverse();
  if (family === 4) {
    const octets = digits.map((digit) => (/^(0|[1-9]\d{0,2})$/.test(digit) ? Number(digit) : 256));
    if (octets.length > 4 || octets.some((octet) => octet > 255)) return null;
    const [a = 0, b = 0, c = 0, d = 0] = octets;
    return { bytes: fromV4(a, b, c, d), length: 96 + 8 * octets.length, family };
  }
  if (digits.length > 32 || digits.some((digit) => digit.length !== 1 || !hexDigits.includes(digit))) return null;
  const bytes = new Uint8Array(16);
  digits.forEach((digit, i) => { bytes[i >> 1] = (bytes[i >> 1] as number) | (hexDigits.indexOf(digit) << (i % 2 === 0 ? 4 : 0)); });
  return { bytes, length: 4 * digits.length, family };
}

function special(labels: readonly string[], localSuffixes: readonly (readonly string[])[], table: GroupTable): Special | null {
  const last = labels.at(-1);
  for (const pattern of metadataLabels.get(last ?? "") ?? []) {
    if (coveredBy(pattern, labels)) return { kind: "metadata", exact: pattern[0] !== "*", labels: pattern.length - (pattern[0] === "*" ? 1 : 0) };
  }
  if (labels.length === 1) return { kind: "local", exact: true, labels: 1 };
  if (last === "localhost" || last === "local") return { kind: "local", exact: last === "localhost", labels: 1 };
  const suffix = localSuffixes.find((base) => endsIn(labels, base));
  if (suffix !== undefined) return { kind: "local", exact: false, labels: suffix.length };
  if (last === "arpa" && labels.length > 2) {
    const family = labels.at(-2) === "in-addr" ? 4 : labels.at(-2) === "ip6" ? 6 : null;
    if (family === null) return null;
    for (let count = 3; count <= labels.length; count++) {
      const prefix = reversePrefix(labels, family, count);
      // What is no address names nothing (RFC 2317 zones hang below whole octets and were judged there).
      if (prefix === null) return null;
      if (groupOfPrefix(table, prefix) !== "public") return { kind: "reverse", exact: false, labels: count };
    }
  }
  return null;
}

/** Judges names for one policy. Building it costs time in proportion to the rules; judging takes some microseconds. */
export class NameJudge {
  readonly #rules = { exact: new Map<string, NameRule[]>(), below: new Map<string, NameRule[]>(), suffix: new Map<string, NameRule[]>() };
  readonly #block: BlockJudge;
  readonly #bits: BitMap;
  readonly #policy: Policy;
  /** First egress rule that decides about every name. */
  readonly #open: Rule | null;
  readonly #localSuffixes: () => readonly (readonly string[])[];
  readonly #table: () => GroupTable;

  /**
   * @param options.localSuffixes domains of the host's own search list at the moment: names in them are refused unless a rule
   *   lies in them.
   * @param options.groups the address groups of the moment, for reverse names; without it, those without a host.
   */
  constructor(policy: Policy, options: { localSuffixes?: () => readonly (readonly string[])[]; groups?: GroupTable | (() => GroupTable) } = {}) {
    this.#policy = policy;
    const { groups = staticGroups } = options;
    this.#table = typeof groups === "function" ? groups : () => groups;
    this.#bits = assignBits(policy);
    this.#block = new BlockJudge(policy.dns.block);
    this.#localSuffixes = options.localSuffixes ?? (() => []);
    this.#open = policy.rules.find(decidesEveryName) ?? null;
    for (const rule of policy.rules) {
      const { index } = rule;
      for (const pattern of patternsOf(rule)) {
        const map = this.#rules[pattern.kind];
        const key = pattern.labels.join(".");
        const list = map.get(key);
        if (list === undefined) map.set(key, [{ index, rule, pattern }]);
        else list.push({ index, rule, pattern });
      }
    }
  }

  /** @param labels of the name asked, lower case, root excluded. */
  judge(labels: readonly string[]): NameVerdict {
    if (this.#policy.noNet) return { allowed: false, bits: [], rule: null, reason: "default" };
    // A label that holds a dot, NUL, backslash or a byte outside printable ASCII never matches a rule, and nothing else lets it pass.
    if (!labels.every(plainLabel)) return { allowed: false, bits: [], rule: null, reason: "default", special: "malformed" };
    const matches = this.#matches(labels);
    const bitsOf = (some: readonly NameRule[]): number[] => [...new Set(some.map(({ index }) => this.#bits.bitOf[index] as number))].sort((a, b) => a - b);
    // What is refused whatever the rules allow is opened by none of them, but those that deny it hold all the same.
    const denying = (): number[] => bitsOf(matches.filter(({ rule }) => rule.action === "deny"));
    if (this.#block.blocks(labels)) return { allowed: false, bits: denying(), rule: null, reason: "blocked" };
    const bits = bitsOf(matches);
    const guarded = special(labels, this.#localSuffixes(), this.#table());
    // A name that needs a rule of its own is not opened by a rule for everything, so the rules behind that one still speak.
    const end = this.#open === null || (guarded !== null && this.#open.action === "allow") ? Infinity : this.#open.index;
    for (const { index, rule, pattern } of matches) {
      if (rule.direction !== "egress" || index > end) continue;
      if (rule.action === "deny") {
        if (rule.ports === null && rule.protos === null) return { allowed: false, bits, rule: index, reason: "rule" };
      } else if (guarded === null || names(pattern, guarded)) {
        return { allowed: true, bits, rule: index, reason: "rule" };
      }
    }
    if (guarded !== null) return { allowed: false, bits: denying(), rule: null, reason: "default", special: guarded.kind };
    if (this.#open === null) return { allowed: this.#policy.defaultEgress === "allow", bits, rule: null, reason: "default" };
    const allowed = this.#open.action === "allow";
    return allowed ? { allowed, bits, rule: this.#open.index, reason: "open" } : { allowed, bits, rule: this.#open.index, reason: "rule", everything: true };
  }

  /** Rules by name that cover these labels, in order; a rule once. */
  #matches(labels: readonly string[]): NameRule[] {
    const found: NameRule[] = [];
    let suffix = "";
    for (let i = labels.length - 1; i >= 0; i--) {
      suffix = suffix === "" ? (labels[i] as string) : `${labels[i] as string}.${suffix}`;
      for (const rules of [this.#rules.suffix.get(suffix), (i === 0 ? this.#rules.exact : this.#rules.below).get(suffix)]) if (rules !== undefined) found.push(...rules);
    }
    return found.sort((a, b) => a.index - b.index);
  }
}

/** Whether a rule's pattern names the special name itself, rather than a wider space that happens to hold it. */
function names(pattern: NamePattern, guarded: Special): boolean {
  return guarded.exact ? pattern.kind === "exact" : pattern.labels.length >= guarded.labels;
}
