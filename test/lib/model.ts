/**
 * The policy in plain TypeScript, written from the specification rule by rule: what the compiled tables and the kernel program
 * are held to.
 *
 * Holds always: knows nothing of bits, pages or classes; reads the rules in order and takes the first that matches. Only the
 * classification of addresses is shared with the product (it has its own tests).
 */
import { type Address, isV4, parsePrefix } from "../../src/addresses/address.js";
import { type Group, type GroupTable, classify } from "../../src/addresses/groups.js";
import { dohNames, dohPrefixes } from "../../src/addresses/tables.gen.js";
import type { Direction, NamePattern, Policy, Rule } from "../../src/policy/types.js";

export interface ModelPin {
  readonly address: Address;
  /** Labels of the name whose answer made the pin, lower case. */
  readonly name: readonly string[];
  readonly expired: boolean;
}

export interface PacketFacts {
  readonly direction: Direction;
  /** The far side. */
  readonly remote: Address;
  /** IP version of the packet; by default that of the address. */
  readonly family?: 4 | 6;
  /** IP protocol; ICMP and ICMPv6 mean echo. */
  readonly proto: number;
  /** Destination port for egress, the guest's for ingress; ignored for protocols without ports. */
  readonly port: number;
  readonly pins: readonly ModelPin[];
}

export interface ModelVerdict {
  readonly verdict: "allow" | "deny";
  /** Index of the rule that decided, null for a default. */
  readonly rule: number | null;
  readonly group: Group;
}

const TCP = 6;
const UDP = 17;
const ICMP = 1;
const ICMPV6 = 58;

const doh = dohPrefixes.map((text) => parsePrefix(text)).filter((prefix) => prefix !== null);

export function referenceVerdict(policy: Policy, table: GroupTable, packet: PacketFacts): ModelVerdict {
  const family = packet.family ?? (isV4(packet.remote) ? 4 : 6);
  const group = classify(table, packet.remote, family);
  const denied: ModelVerdict = { verdict: "deny", rule: null, group };
  // ICMP is IPv4's, ICMPv6 is IPv6's.
  if (packet.proto === (family === 4 ? ICMPV6 : ICMP)) return denied;
  if (policy.noNet) return denied;
  for (const rule of policy.rules) {
    if (rule.direction === packet.direction && speaksOfProtocol(rule, packet) && namesAddress(rule, packet, family, group)) return { verdict: rule.action, rule: rule.index, group };
  }
  const byDefault = packet.direction === "egress" ? policy.defaultEgress : policy.defaultIngress;
  // A protocol that is neither TCP, UDP nor ICMP passes only where a rule names its number.
  return [TCP, UDP, ICMP, ICMPV6].includes(packet.proto) ? { verdict: byDefault, rule: null, group } : denied;
}

function speaksOfProtocol(rule: Rule, { proto, port }: PacketFacts): boolean {
  if (rule.ports !== null) {
    const named = rule.protos ?? [TCP, UDP];
    return (proto === TCP || proto === UDP) && named.includes(proto) && rule.ports.some(({ first, last }) => port >= first && port <= last);
  }
  return rule.protos === null ? [TCP, UDP, ICMP, ICMPV6].includes(proto) : rule.protos.includes(proto);
}

function namesAddress(rule: Rule, packet: PacketFacts, family: 4 | 6, group: Group): boolean {
  const widening = rule.action === "allow" && rule.direction === "egress";
  const { destination } = rule;
  switch (destination.kind) {
    case "any":
      return !(widening && ["host", "metadata", "loopback"].includes(group));
    case "group":
      return destination.group === group;
    case "prefix": {
      const { bytes, length } = destination.prefix;
      if (destination.prefix.family !== family || !startsWith(packet.remote, bytes, length)) return false;
      return !widening || length === 128 || destination.group === group;
    }
    case "name":
      return pinnedUnder([destination.pattern], packet);
    case "doh": {
      const listed = doh.some((prefix) => prefix.family === family && startsWith(packet.remote, prefix.bytes, prefix.length));
      return (listed && (!widening || group === "public")) || pinnedUnder(dohNames.map(asPattern), packet);
    }
  }
}

function startsWith(address: Address, prefix: Uint8Array, length: number): boolean {
  for (let bit = 0; bit < length; bit++) {
    const place = 7 - (bit % 8);
    if ((((address[bit >> 3] as number) ^ (prefix[bit >> 3] as number)) >> place) & 1) return false;
  }
  return true;
}

function asPattern(text: string): NamePattern {
  return text.startsWith("*.") ? { kind: "below", labels: text.slice(2).split(".") } : { kind: "exact", labels: text.split(".") };
}

function pinnedUnder(patterns: readonly NamePattern[], packet: PacketFacts): boolean {
  return packet.pins.some((pin) => !pin.expired && pin.address.every((octet, i) => octet === packet.remote[i]) && patterns.some((pattern) => covers(pattern, pin.name)));
}

/** Exact: that name only. below: one or more labels under it. suffix: both. */
export function covers(pattern: NamePattern, name: readonly string[]): boolean {
  const tail = name.slice(Math.max(0, name.length - pattern.labels.length));
  if (tail.length !== pattern.labels.length || tail.some((label, i) => label !== pattern.labels[i])) return false;
  switch (pattern.kind) {
    case "exact": return name.length === pattern.labels.length;
    case "below": return name.length > pattern.labels.length;
    case "suffix": return true;
  }
}

export interface ModelName { readonly allowed: boolean; readonly rule: number | null }

/**
 * May this name be resolved? Rules of direction egress in order: a rule by name that covers it decides (allow; deny without ports
 * and protocol; another deny says nothing about the lookup); allow of public, any or a whole family opens every name; deny of public or any without
 * ports and protocol refuses every name. Not for names that stand for the host or a metadata endpoint, and without the block list.
 */
export function referenceName(policy: Policy, name: readonly string[]): ModelName {
  if (policy.noNet) return { allowed: false, rule: null };
  for (const rule of policy.rules) {
    if (rule.direction !== "egress") continue;
    const { destination } = rule;
    const whole = destination.kind === "prefix" && destination.prefix.length === (destination.prefix.family === 4 ? 96 : 0);
    const everything = destination.kind === "any" || (destination.kind === "group" && destination.group === "public");
    const named = destination.kind === "name" ? covers(destination.pattern, name) : destination.kind === "doh" && dohNames.some((text) => covers(asPattern(text), name));
    if (rule.action === "allow" && (named || everything || whole)) return { allowed: true, rule: rule.index };
    if (rule.action === "deny" && (named || everything) && rule.ports === null && rule.protos === null) return { allowed: false, rule: rule.index };
  }
  return { allowed: policy.defaultEgress === "allow", rule: null };
}
