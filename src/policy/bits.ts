/**
 * Which bit of a rule vector stands for which rules.
 *
 * Holds always: bits keep the order of the rules, so that the lowest set bit is the first matching rule; rules share a bit only
 * where neither the verdict nor the rule that is named can differ: they have the same action, direction, protocols, ports and
 * way of finding addresses, and every bit between them speaks of other protocols or ports (or the other direction). So a
 * thousand names under the same ports cost one bit.
 */
import { EnforcerError } from "../errors.js";
import { formatPrefix } from "../addresses/address.js";
import type { Group } from "../addresses/groups.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import { onlyGroup } from "./coverage.js";
import { formatDestination, formatPorts, formatProto } from "./rules.js";
import { type Action, type Direction, type Place, type Policy, type PortRange, type Rule, protosOf } from "./types.js";

/** Bits of a rule vector. */
export const RULE_BITS = AbiLimit.MAX_RULES;

export interface BitInfo {
  readonly bit: number;
  readonly action: Action;
  readonly direction: Direction;
  readonly protos: readonly number[];
  readonly ports: readonly PortRange[] | null;
  /** Whether addresses come from pins (names, `doh`). */
  readonly domain: boolean;
  /** The one group whose addresses the prefixes of this bit count for; null: all. See coverage.ts. */
  readonly onlyGroup: Group | null;
  /** Indexes of the rules, ascending. */
  readonly rules: readonly number[];
  /** For people: `rule 3: allow api.github.com tcp 443`. */
  readonly text: string;
  /** Of the first rule. */
  readonly place: Place;
}

export interface BitMap {
  readonly bits: readonly BitInfo[];
  /** Rule index → bit. */
  readonly bitOf: readonly number[];
}

type Draft = Omit<BitInfo, "rules" | "text" | "bit"> & { readonly key: string; readonly members: number[] };

/** Both sorted, as PortRange lists of rules are. */
function portsOverlap(a: readonly PortRange[] | null, b: readonly PortRange[] | null): boolean {
  if (a === null || b === null) return true;
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    const x = a[i] as PortRange, y = b[j] as PortRange;
    if (x.last < y.first) i++;
    else if (y.last < x.first) j++;
    else return true;
  }
  return false;
}

/** Whether some packet can satisfy protocol and ports of both. */
function meet(a: Draft, b: Draft): boolean {
  return a.direction === b.direction && a.protos.some((proto) => b.protos.includes(proto)) && portsOverlap(a.ports, b.ports);
}

/** The same for the compiler and for the judge of names. Throws E_LIMIT when the rules need more bits than there are. */
export function assignBits(policy: Policy): BitMap {
  const drafts: Draft[] = [];
  const lastOfKey = new Map<string, number>();
  const bitOf: number[] = [];
  for (const rule of policy.rules) {
    const draft = draftOf(rule);
    const earlier = lastOfKey.get(draft.key);
    if (earlier !== undefined && !drafts.slice(earlier + 1).some((between) => meet(between, draft))) {
      (drafts[earlier] as Draft).members.push(rule.index);
      bitOf.push(earlier);
      continue;
    }
    lastOfKey.set(draft.key, drafts.length);
    bitOf.push(drafts.length);
    drafts.push(draft);
    if (drafts.length > RULE_BITS) {
      const { file, line } = rule.place;
      throw new EnforcerError("E_LIMIT", `${file}${line === null ? "" : `:${line}`}: the rules need more than ${RULE_BITS} bits`, {
        remedy: "put rules with the same action, protocols and ports next to each other: names (or addresses) in a row cost one bit",
      });
    }
  }
  const bits = drafts.map(({ key: _, members, ...draft }, bit) => ({ ...draft, bit, rules: members, text: describe(members, policy) }));
  return { bits, bitOf };
}

function draftOf(rule: Rule): Draft {
  const { action, direction, destination, ports } = rule;
  const protos = protosOf(rule);
  const only = onlyGroup(rule);
  // Group and single-group rules of different kinds never share a bit, because the mask by group works on whole bits.
  const way = destination.kind === "any" ? "group" : destination.kind;
  return {
    key: [action, direction, way, only ?? "", protos.join(","), ports === null ? "" : formatPorts(ports)].join(" "),
    action, direction, protos, ports, domain: way === "name" || way === "doh", onlyGroup: only, place: rule.place, members: [rule.index],
  };
}

/** A rule as one would say it: `allow *.example.com tcp 443`. */
export function ruleText(rule: Rule): string {
  const words = [rule.action, formatDestination(rule.destination)];
  if (rule.direction === "ingress") words.push("ingress");
  if (rule.protos !== null) words.push(rule.protos.map(formatProto).join(","));
  if (rule.ports !== null) words.push(`${rule.protos === null ? "tcp,udp " : ""}${formatPorts(rule.ports)}`);
  return words.join(" ");
}

const NAMED = 3;

function describe(members: readonly number[], policy: Policy): string {
  const rules = members.map((index) => policy.rules[index] as Rule);
  if (rules.length === 1) return `rule ${(members[0] as number) + 1}: ${ruleText(rules[0] as Rule)}`;
  const [first] = rules as [Rule, ...Rule[]];
  const names = rules.slice(0, NAMED).map((rule) => (rule.destination.kind === "prefix" ? formatPrefix(rule.destination.prefix) : formatDestination(rule.destination)));
  const rest = rules.length - names.length;
  const text = ruleText(first).replace(formatDestination(first.destination), () => `${names.join(", ")}${rest > 0 ? ` and ${rest} more` : ""}`);
  return `rules ${numbersText(members)}: ${text}`;
}

/** 1-based, runs shortened: `1-4, 7`. */
function numbersText(members: readonly number[]): string {
  const runs: [number, number][] = [];
  for (const index of members) {
    const run = runs.at(-1);
    if (run !== undefined && run[1] === index) run[1] = index + 1;
    else runs.push([index + 1, index + 1]);
  }
  const shown = runs.slice(0, 4).map(([from, to]) => (from === to ? String(from) : `${from}-${to}`));
  return runs.length > shown.length ? `${shown.join(", ")} …` : shown.join(", ");
}
