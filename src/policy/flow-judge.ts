/**
 * The verdict on one new flow, rule by rule: what the kernel program says with its tables, said in a few lines of TypeScript.
 *
 * Holds always: pure; the first rule that matches decides; what cannot be said of a packet (another protocol than its IP version
 * has, a protocol that no rule names) is denied. It agrees with the kernel program on verdict, rule and reason
 * (test/prog/property.test.ts) and with the plain model (test/unit/policy-flow-judge.test.ts).
 * Begins where a packet has been parsed and belongs to its sandbox: identity, form (but for numbers that are headers of IPv6, no
 * protocols) and port 53, which goes to the resolver whatever the policy says, come before it.
 */
import { type Address, isV4 } from "../addresses/address.js";
import { type Group, type GroupTable, classify } from "../addresses/groups.js";
import type { reasonNames } from "../kernel/counters.js";
import { inspectionOf } from "./inspection.js";
import { coversAddress, coversName, explicitGroups, patternsOf } from "./coverage.js";
import { type Direction, isExtensionHeader, isForeign, type Policy, Proto, type Rule, protosOf } from "./types.js";

/** A reason of bpf/abi.h, by its name there. */
export type ReasonName = (typeof reasonNames)[number];

export interface FlowQuestion {
  readonly direction: Direction;
  /** The far side; IPv4-mapped is IPv4 (in an IPv6 packet it is dropped before). */
  readonly address: Address;
  /** IP protocol; ICMP and ICMPv6 mean echo. */
  readonly protocol: number;
  /** Destination port for egress, the guest's for ingress; ignored for protocols without ports. */
  readonly port: number;
  /** Names that count as pinned to the address, live: labels, lower case, root excluded. */
  readonly names: readonly (readonly string[])[];
  /** Of `names` and `expired`, those whose lookup is refused whatever the rules allow (block list, metadata, local names): only rules that deny count. */
  readonly guarded?: readonly (readonly string[])[];
  /** Names whose pin at the address has expired: they grant nothing, and say why, but where they are among `guarded`. */
  readonly expired?: readonly (readonly string[])[];
  /** The agent looks into connections (`inspect` of compile.ts); default: it does not. */
  readonly inspect?: boolean;
}

export interface FlowVerdict {
  readonly verdict: "allow" | "deny";
  /** Index of the rule that decided; null: a default, or no rule was asked. */
  readonly rule: number | null;
  readonly reason: ReasonName;
  readonly group: Group;
  /** The agent looks at the name on the wire before it passes. */
  readonly inspected: boolean;
  /** Of `names`, those that a rule of this policy covers; the others are as if they were not pinned. */
  readonly counted: readonly (readonly string[])[];
}

/** Protocols that pass without being named by number: TCP, UDP and echo. */
const ordinary: readonly number[] = [Proto.tcp, Proto.udp, Proto.icmp, Proto.icmpv6];

/** Ports of other name services (DoT, DoQ, mDNS, LLMNR, NetBIOS), which would let a guest hear names that nobody judged; and DNS to what is no host's address. */
export function isNameService(protocol: number, port: number): boolean {
  if (protocol === Proto.udp) return [53, 853, 5353, 5355, 137].includes(port);
  return protocol === Proto.tcp && [53, 853, 5355].includes(port);
}

/** Ports of DHCP and DHCPv6 clients: from a guest there is nothing to say to them but what a server says. */
function isDhcpAnswer(protocol: number, port: number, family: 4 | 6): boolean { return protocol === Proto.udp && port === (family === 4 ? 68 : 546); }

/** @param groups the address groups of the moment. */
export function judgeFlow(policy: Policy, groups: GroupTable, question: FlowQuestion): FlowVerdict {
  const { direction, address, protocol, port, names, guarded = [], expired = [], inspect = false } = question;
  const plan = inspect && direction === "egress" ? inspectionOf(policy) : null;
  const looked = (protocol === Proto.tcp || protocol === Proto.udp) && plan?.ports.includes(port) === true;
  const group = classify(groups, address);
  const opens = (rule: Rule, name: readonly string[]): boolean => coversName(rule, name) && (rule.action === "deny" || !guarded.includes(name));
  const counted = names.filter((name) => policy.rules.some((rule) => opens(rule, name)));
  const is = (verdict: "allow" | "deny", reason: ReasonName, rule: number | null = null): FlowVerdict => ({ verdict, rule, reason, group, counted, inspected: false });
  // What is allowed to such a port goes to the agent, which cannot look into QUIC.
  const allowed = (reason: ReasonName, rule: number | null, inspected: boolean): FlowVerdict => {
    if (!looked || !inspected) return is("allow", reason, rule);
    return protocol === Proto.udp ? is("deny", "quic", rule) : { ...is("allow", reason, rule), inspected: true };
  };

  if (isForeign(protocol, isV4(address) ? 4 : 6)) return is("deny", isExtensionHeader(protocol) ? "extension-header" : "protocol");
  if (direction === "egress" && isNameService(protocol, port)) return is("deny", "name-service");
  if (direction === "egress" && isDhcpAnswer(protocol, port, isV4(address) ? 4 : 6)) return is("deny", "dhcp-server");
  // What the host owns, its metadata and its loopback are never reached by name.
  const reaching = explicitGroups.includes(group) ? [] : counted;
  for (const rule of policy.rules) {
    if (rule.direction !== direction || !speaksOf(rule, protocol, port)) continue;
    if (!coversAddress(rule, address, group) && !reaching.some((name) => opens(rule, name))) continue;
    return rule.action === "allow" ? allowed("rule-allow", rule.index, plan?.rules.has(rule.index) === true) : is("deny", "rule-deny", rule.index);
  }
  if (!ordinary.includes(protocol)) return is("deny", "protocol");
  if ((direction === "egress" ? policy.defaultEgress : policy.defaultIngress) === "allow") return direction === "egress" ? allowed("default-allow", null, plan?.byDefault === true) : is("allow", "default-allow");
  if (direction === "ingress") return is("deny", "ingress-default");
  if (looked && protocol === Proto.udp && group === "public") return is("deny", "quic");
  const stale = counted.length === 0 && expired.some((name) => policy.rules.some((rule) => opens(rule, name)));
  if (stale) return is("deny", "pin-expired");
  if (group === "public" && counted.length === 0 && policy.rules.some((rule) => patternsOf(rule).length > 0)) return is("deny", "no-pin");
  return is("deny", `default-${group}`);
}

/** Whether a rule speaks of protocol and port. A rule with ports speaks of TCP and UDP only. */
export function speaksOf(rule: Rule, protocol: number, port: number): boolean {
  if (!protosOf(rule).includes(protocol)) return false;
  if (rule.ports === null) return true;
  return (protocol === Proto.tcp || protocol === Proto.udp) && rule.ports.some(({ first, last }) => port >= first && port <= last);
}
