/**
 * Warnings about a policy that is valid but says less, or more, than its author may think.
 *
 * Holds always: a rule is called unmatchable only when no packet and no name can reach it, whatever the host's addresses are;
 * the time grows with the rules times the depth of their names and prefixes and the rule bits there are, not with their square.
 */
import { type Prefix, formatPrefix, mask, maskPrefix, prefixWithin } from "../addresses/address.js";
import { type Group, groups, staticGroups } from "../addresses/groups.js";
import { BlockJudge } from "./blocklist.js";
import { decidesEveryName, decidesNames, explicitGroups, onlyGroup } from "./coverage.js";
import type { Report } from "./diagnostics.js";
import { formatPorts, formatProto } from "./rules.js";
import { isForeign, type Place, type Policy, type PortRange, Proto, type Rule, protosOf } from "./types.js";

/** Egress ports that never reach the rules: DNS is answered by the agent, other name services are refused. */
const ownPorts: Readonly<Record<number, readonly number[]>> = { [Proto.tcp]: [53, 853, 5355], [Proto.udp]: [53, 137, 853, 5353, 5355] };

const ALL_PORTS: PortRange = { first: 0, last: 65535 };

/** What remains of `ranges` without `taken`; both sorted, each without overlaps. */
function without(ranges: readonly PortRange[], taken: readonly PortRange[]): PortRange[] {
  const left: PortRange[] = [];
  let next = 0;
  for (const { first, last } of ranges) {
    let from = first;
    while (next < taken.length && (taken[next] as PortRange).last < from) next++;
    // The last one looked at may reach into the next range.
    for (let i = next; i < taken.length && (taken[i] as PortRange).first <= last; i++) {
      const gone = taken[i] as PortRange;
      if (from < gone.first) left.push({ first: from, last: gone.first - 1 });
      from = gone.last + 1;
      next = i;
    }
    if (from <= last) left.push({ first: from, last });
  }
  return left;
}

/** Octets as letters: it is made for every rule and every length of prefix that rules have. */
function prefixKey({ family, length, bytes }: Prefix): string {
  return `prefix ${family} ${length} ${String.fromCharCode(...bytes)}`;
}

/**
 * Keys under which an earlier rule that covers everything this one names would stand.
 * @param lengths prefix lengths that earlier rules have: only those are looked for.
 */
function coveringKeys(rule: Rule, lengths: ReadonlySet<number>): string[] {
  const { destination } = rule;
  const widest = ["deny any"];
  // An allow of any of direction ingress covers every address; of direction egress all but three groups.
  if (rule.direction === "ingress") widest.push("allow any");
  switch (destination.kind) {
    case "any":
      return rule.action === "allow" ? [...widest, "allow any"] : widest;
    case "group":
      return [...widest, ...(explicitGroups.includes(destination.group) ? [] : ["allow any"]), `group ${destination.group}`];
    case "doh":
      return [...widest, "doh"];
    case "name": {
      const { kind, labels } = destination.pattern;
      // Not an allow of any: a pinned address may be the host's own, which that leaves out.
      const keys = [...widest];
      if (kind !== "suffix") keys.push(`${kind} ${labels.join(".")}`);
      for (let i = 0; i < labels.length; i++) {
        const base = labels.slice(i).join(".");
        keys.push(`suffix ${base}`);
        // `*.x` covers what lies below x: an exact name or subtree that starts deeper.
        if (i > 0) keys.push(`below ${base}`);
      }
      return keys;
    }
    case "prefix": {
      const { prefix } = destination;
      const keys = [...widest];
      const only = onlyGroup(rule);
      // What counts in one group only is covered by a rule for that group.
      if (only !== null) keys.push(`group ${only}`, ...(explicitGroups.includes(only) ? [] : ["allow any"]));
      for (const length of lengths) {
        if (length <= prefix.length) keys.push(prefixKey({ bytes: mask(prefix.bytes, length), length, family: prefix.family }));
      }
      return keys;
    }
  }
}

/** The key under which later rules find this one. */
function ownKey(rule: Rule): string {
  const { destination, action } = rule;
  switch (destination.kind) {
    case "any": return `${action} any`;
    case "group": return `group ${destination.group}`;
    case "doh": return "doh";
    case "name": return `${destination.pattern.kind} ${destination.pattern.labels.join(".")}`;
    case "prefix": return prefixKey(maskPrefix(destination.prefix));
  }
}

/** Whether an earlier rule's prefixes, where they cover a later one's, count wherever the later one counts. */
function countsWhere(earlier: Rule, later: Rule): boolean {
  const only = onlyGroup(earlier);
  return only === null || only === onlyGroup(later);
}

/** Covering rules named in a warning. */
const NAMED = 3;

/** How a warning in `from` names another rule: its number there, or where it stands. */
function nameOf(place: Place, from: Place): string {
  if (place.file === from.file) return `rule ${place.rule}`;
  return place.line === null ? place.file : `rule ${place.rule} of ${place.file}`;
}

/**
 * Adds the warnings to the report.
 * @param places where the defaults were written.
 */
export function findWarnings(policy: Policy, places: { defaults: Place }, report: Report): void {
  const earlier = new Map<string, Rule[]>();
  const lengths = new Set<number>();
  const open = policy.rules.find(decidesEveryName);
  const block = new BlockJudge(policy.dns.block);
  for (const rule of policy.rules) {
    warnNarrow(rule, report);
    if (warnUnreachable(rule, block, report)) continue;
    const covering = shadowedBy(rule, coveringKeys(rule, lengths)
      .flatMap((key) => earlier.get(`${rule.direction} ${key}`) ?? []).filter((other) => countsWhere(other, rule)).sort((a, b) => a.index - b.index));
    if (covering !== null) {
      const shown = covering.sort((a, b) => a.index - b.index).slice(0, NAMED).map((other) => nameOf(other.place, rule.place));
      const more = covering.length > NAMED ? ` and ${covering.length - NAMED} more` : "";
      report.warn(rule.place, `the rule can never match: ${shown.join(", ")}${more} ${covering.length === 1 ? "covers" : "cover"} all of it`, `remove it, or move it before ${covering.length === 1 ? "that one" : "those"}`);
      // What covers it covers all that it covers, so nobody looks at it again, however often it is repeated.
      continue;
    }
    if (open !== undefined && open.index < rule.index && open.action !== rule.action && decidesNames(rule) && !decidesEveryName(rule)) {
      report.warn(rule.place, `the rule comes too late for lookups: ${nameOf(open.place, rule.place)} before it ${open.action === "allow" ? "lets every name be resolved" : "refuses every name"}`, "move it before that one");
    }
    const key = `${rule.direction} ${ownKey(rule)}`;
    const list = earlier.get(key);
    if (list === undefined) earlier.set(key, [rule]);
    else list.push(rule);
    if (rule.destination.kind === "prefix") lengths.add(rule.destination.prefix.length);
  }
  warnDefaults(policy, places.defaults, report);
}

/** The earlier rules that leave nothing of this one, or null. */
function shadowedBy(rule: Rule, candidates: readonly Rule[]): Rule[] | null {
  const used = new Set<Rule>();
  for (const proto of protosOf(rule)) {
    let left: PortRange[] = [...(rule.ports ?? [ALL_PORTS])];
    for (const other of candidates) {
      if (!protosOf(other).includes(proto)) continue;
      const rest = without(left, other.ports ?? [ALL_PORTS]);
      if (rest.length !== left.length || rest.some((range, i) => range.first !== left[i]?.first || range.last !== left[i]?.last)) used.add(other);
      left = rest;
      if (left.length === 0) break;
    }
    if (left.length > 0) return null;
  }
  // What the rule says about lookups must have been decided before it as well.
  if (decidesNames(rule) && !candidates.some(decidesNames)) return null;
  return [...used];
}

/** Rules that no packet satisfies, whatever stands before them. */
function warnUnreachable(rule: Rule, block: BlockJudge, report: Report): boolean {
  const { destination } = rule;
  if (destination.kind === "name" && rule.action === "allow") {
    const { kind, labels } = destination.pattern;
    // No name has a label of this letter: what covers it covers all names there.
    const blocked = (kind === "below" || block.blocks(labels)) && (kind === "exact" || block.blocks(["*", ...labels]));
    if (blocked) {
      report.warn(rule.place, `the rule can never match: dns.block holds ${kind === "exact" ? "the name" : "every name that it covers"}`, "remove the rule, or take the entry off the block list, which wins over every allow");
      return true;
    }
  }
  const protos = protosOf(rule);
  if (destination.kind === "prefix" && rule.protos !== null) {
    const { family } = destination.prefix, ping = protos.includes(family === 4 ? Proto.icmpv6 : Proto.icmp);
    if (protos.every((proto) => isForeign(proto, family))) {
      report.warn(rule.place, `the rule can never match: ${protos.map(formatProto).join(", ")} ${protos.length === 1 ? "is" : "are"} not spoken over IPv${family}`, ping ? `write ${family === 4 ? "icmp" : "icmpv6"}` : "remove it; these are headers of IPv6 itself, which the protocol stands behind");
      return true;
    }
  }
  if (rule.direction === "egress" && rule.ports !== null) {
    const { ports } = rule;
    const idle = protos.every((proto) => without(ports, (ownPorts[proto] ?? []).map((port) => ({ first: port, last: port }))).length === 0);
    if (idle) {
      report.warn(rule.place, `the rule can never match: DNS and other name services (port ${formatPorts(ports)}) never reach the rules`, "remove it; port 53 is answered by the agent whatever resolver is asked, and needs no rule");
      return true;
    }
  }
  return false;
}

/** Rules that cover less than they seem to. */
function warnNarrow(rule: Rule, report: Report): void {
  const { destination } = rule;
  if (destination.kind === "name" && rule.direction === "ingress") {
    report.warn(rule.place, "a name in a rule of direction ingress stands only for addresses that the guest itself has resolved", "name the addresses or a group if others may connect");
  }
  if (destination.kind !== "prefix" || onlyGroup(rule) !== "public") return;
  const { prefix } = destination;
  const table = prefix.family === 4 ? staticGroups.v4 : staticGroups.v6;
  if (table.some((entry) => entry.group !== "public" && prefixWithin(entry.prefix, prefix))) {
    report.warn(rule.place, `${formatPrefix(prefix)} covers only the public addresses in it`, "allow private, metadata or other groups by rules of their own, if they are meant");
  }
}

/** A default that allows opens what `allow: any` does not; one that denies with no allow is a sandbox without a network. */
function warnDefaults(policy: Policy, place: Place, report: Report): void {
  if (policy.defaultEgress !== "allow") {
    if (!policy.noNet && !policy.rules.some((rule) => rule.direction === "egress" && rule.action === "allow")) {
      report.warn(place, "nothing is allowed outward: no rule of direction egress allows and the default denies", "add rules, such as `allow: public`, or say --no-net if that is meant");
    }
    return;
  }
  const open: readonly Group[] = groups.filter((group) => explicitGroups.includes(group) && !policy.rules.some((rule) =>
    rule.direction === "egress" && rule.action === "deny" && rule.protos === null && rule.ports === null
    && (rule.destination.kind === "any" || (rule.destination.kind === "group" && rule.destination.group === group))));
  if (open.length > 0) {
    report.warn(place, `default_egress: allow opens ${open.join(", ")} as well`, `put ${open.map((group) => `\`deny: ${group}\``).join(", ")} before it, or use the rule \`allow: any\` with default_egress: deny`);
  }
}
