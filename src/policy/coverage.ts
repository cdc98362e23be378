/**
 * Which addresses a rule speaks of, by group: what the compiler, the warnings and the rebind check agree on.
 *
 * Holds always: deny rules and rules of direction ingress cover all that they name. An allow of direction egress never widens
 * by accident: `any` leaves out host, metadata and loopback, and a prefix counts only for addresses whose group is the prefix's
 * own group. So 0.0.0.0/0 opens the public part alone, 10.0.0.0/8 opens private addresses but not the host's own among
 * them, 169.254.0.0/16 does not open a metadata endpoint. A single address is an explicit decision and always counts.
 */
import { type Address, type Prefix, prefixContains } from "../addresses/address.js";
import { type Group, type GroupTable, classify, staticGroups } from "../addresses/groups.js";
import { dohNames, dohPrefixes } from "../addresses/tables.gen.js";
import { matchesPattern, parsePattern } from "./names.js";
import { parsePolicyPrefix } from "./rules.js";
import type { NamePattern, Policy, Rule } from "./types.js";

/** Groups that `allow: any` of direction egress leaves out. */
export const explicitGroups: readonly Group[] = ["host", "metadata", "loopback"];

const dohList: readonly Prefix[] = dohPrefixes.map((text) => {
  const prefix = parsePolicyPrefix(text);
  if (!prefix.ok) throw new Error(`data/doh.tsv: ${prefix.refusal.message}`);
  return prefix.value;
});

const dohPatterns: readonly NamePattern[] = dohNames.map((text) => {
  const pattern = parsePattern(text);
  if (!pattern.ok) throw new Error(`data/doh.tsv: ${pattern.refusal.message}`);
  return pattern.value;
});

/** Names that a rule names: its own pattern, or those of `doh`. */
export function patternsOf({ destination }: Pick<Rule, "destination">): readonly NamePattern[] {
  if (destination.kind === "name") return [destination.pattern];
  return destination.kind === "doh" ? dohPatterns : [];
}

/** Whether a label is one that rules may match: a dot, NUL, backslash or an octet outside printable ASCII never is. */
export function plainLabel(label: string): boolean { return /^[!-\-/-[\]-~]+$/.test(label); }

/** Whether a rule covers the name: its labels, lower case, root excluded. */
export function coversName(rule: Pick<Rule, "destination">, labels: readonly string[]): boolean {
  return labels.every(plainLabel) && patternsOf(rule).some((pattern) => matchesPattern(pattern, labels));
}

/** Prefixes that a rule names: its own, or those of `doh`. */
export function prefixesOf(rule: Rule): readonly Prefix[] {
  if (rule.destination.kind === "prefix") return [rule.destination.prefix];
  return rule.destination.kind === "doh" ? dohList : [];
}

/** Whether a rule by group or `any` covers the addresses of a group. */
export function coversGroup(rule: Rule, group: Group): boolean {
  if (rule.destination.kind === "group") return rule.destination.group === group;
  if (rule.destination.kind !== "any") return false;
  return rule.action === "deny" || rule.direction === "ingress" || !explicitGroups.includes(group);
}

/** The only group whose addresses the prefixes of this rule cover, or null when they cover those of every group. */
export function onlyGroup({ action, direction, destination }: Rule): Group | null {
  if (action === "deny" || direction === "ingress") return null;
  if (destination.kind === "doh") return "public";
  return destination.kind === "prefix" && destination.prefix.length < 128 ? destination.group : null;
}

/** Whether a rule covers an address of this group by group or prefix; names are not asked. */
export function coversAddress(rule: Rule, address: Address, group: Group): boolean {
  if (coversGroup(rule, group)) return true;
  const only = onlyGroup(rule);
  return (only === null || only === group) && prefixesOf(rule).some((prefix) => prefixContains(prefix, address));
}

/**
 * Whether the rule makes every name resolvable, or refuses every name: an allow of `public`, `any` or a whole family, whatever
 * the ports; a deny of `public` or `any` without ports and protocol.
 */
export function decidesEveryName({ action, direction, destination, ports, protos }: Rule): boolean {
  if (direction === "ingress") return false;
  const everything = destination.kind === "any" || (destination.kind === "group" && destination.group === "public");
  if (action === "deny") return everything && ports === null && protos === null;
  return everything || (destination.kind === "prefix" && destination.prefix.length === (destination.prefix.family === 4 ? 96 : 0));
}

/** Whether the rule says anything about looking names up. A deny with ports or protocol does not. */
export function decidesNames(rule: Rule): boolean {
  const byName = rule.destination.kind === "name" || rule.destination.kind === "doh";
  if (!byName || rule.direction === "ingress") return decidesEveryName(rule);
  return rule.action === "allow" || (rule.ports === null && rule.protos === null);
}

/**
 * Whether the policy says, by address or group and without ports and protocol, that this address may be reached: rebind
 * protection lets such an address pass in an answer. The first such rule that covers it decides. An allow of `any` does not count:
 * whoever writes it speaks of where the guest may go, not of what strangers may put into answers.
 * @param table the address groups of the moment; without it, those without a host.
 */
export function addressAllowedByRule(policy: Policy, address: Address, table: GroupTable = staticGroups): boolean {
  const group = classify(table, address);
  const decisive = policy.rules.find((rule) => rule.direction === "egress" && rule.ports === null && rule.protos === null
    && !(rule.action === "allow" && rule.destination.kind === "any") && coversAddress(rule, address, group));
  return decisive?.action === "allow";
}
