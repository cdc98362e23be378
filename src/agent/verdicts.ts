/**
 * What the CLI prints while it enforces: one line per denial, for a person or as JSON.
 *
 * Holds always: one event is one line; nothing of a packet's payload is shown; names are escaped as in zone files.
 */
import { formatAddress } from "../addresses/address.js";
import type { DeniedQuery } from "../dns/protocol.js";
import type { PacketEvent } from "../kernel/events.js";
import type { FlowRow } from "../kernel/flows.js";
import type { TlsDenial } from "../tls/protocol.js";

const PROTOCOLS: Readonly<Record<number, string>> = { 1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 58: "icmpv6", 132: "sctp" };
const TYPES: Readonly<Record<number, string>> = { 1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 43: "DS", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA" };
const ETHERTYPES: Readonly<Record<number, string>> = { 0x0800: "ipv4", 0x0806: "arp", 0x86dd: "ipv6", 0x8100: "vlan", 0x88a8: "vlan" };

export interface Denial {
  readonly event: "denied";
  readonly time: string;
  readonly sandbox: string;
  readonly direction: "egress" | "ingress";
  readonly protocol: string;
  readonly source: string | null;
  readonly source_port: number | null;
  readonly destination: string | null;
  readonly port: number | null;
  readonly name: string | null;
  readonly reason: string;
  /** Text of the rule that matched; null: the default, or no rule was asked. */
  readonly rule: string | null;
  readonly length: number;
}

export interface Allowed {
  readonly event: "allowed";
  readonly time: string;
  readonly sandbox: string;
  readonly direction: "egress" | "ingress";
  readonly protocol: string;
  readonly guest_port: number | null;
  readonly destination: string | null;
  readonly source: string | null;
  /** The far side's. */
  readonly port: number | null;
  readonly name: string | null;
  readonly reason: string;
  readonly rule: string | null;
}

export interface RefusedQuery {
  readonly event: "dns-denied";
  readonly time: string;
  readonly sandbox: string;
  readonly name: string;
  readonly type: string;
  readonly outcome: string;
  readonly reason: string;
  readonly address: string | null;
}

/** A connection or a request that was refused because of whom it was for. */
export interface RefusedConnection {
  readonly event: "tls-denied";
  readonly time: string;
  readonly sandbox: string;
  readonly name: string | null;
  readonly destination: string;
  readonly port: number;
  readonly method: string | null;
  readonly reason: string;
  readonly text: string;
  /** By name; never its value nor its placeholder. */
  readonly secret?: { readonly name: string; readonly what: string; readonly place: string; readonly field: string | null; readonly form: string; readonly action: string };
}

/** @param names that the sandbox was told for the far address. @param monotonicNow CLOCK_MONOTONIC, ns, read now. */
export function describePacket(sandbox: string, event: PacketEvent, names: readonly string[], rule: string | null, monotonicNow: bigint): Denial {
  const ip = event.etherType === 0x0800 || event.etherType === 0x86dd;
  const ports = event.proto === 6 || event.proto === 17;
  const hasAddresses = ip || event.etherType === 0x0806;
  return {
    event: "denied",
    time: new Date(Date.now() - Number((monotonicNow - event.timeNs) / 1_000_000n)).toISOString(),
    sandbox,
    direction: event.direction,
    protocol: ip && event.proto !== 0 ? protocolName(event.proto) : (ETHERTYPES[event.etherType] ?? (event.etherType === 0 ? "frame" : `ethertype-0x${event.etherType.toString(16).padStart(4, "0")}`)),
    source: hasAddresses ? formatAddress(event.source) : null,
    source_port: ports ? event.sourcePort : null,
    destination: hasAddresses ? formatAddress(event.destination) : null,
    port: ports ? event.destinationPort : null,
    name: names[0] ?? null,
    reason: event.reason,
    rule,
    length: event.length,
  };
}

/** A flow that the kernel's table has: it was let through. */
export function describeAllowed(sandbox: string, flow: FlowRow, names: readonly string[], rule: string | null): Allowed {
  const ports = flow.protocol === 6 || flow.protocol === 17;
  const remote = formatAddress(flow.remote);
  return {
    event: "allowed", time: new Date().toISOString(), sandbox, direction: flow.direction, protocol: protocolName(flow.protocol),
    guest_port: ports ? flow.guestPort : null, destination: flow.direction === "egress" ? remote : null, source: flow.direction === "ingress" ? remote : null,
    port: ports ? flow.remotePort : null, name: names[0] ?? null, reason: flow.intercepted ? "intercepted" : rule === null ? "default-allow" : "rule-allow", rule,
  };
}

/** As in rules, where it has a name there. */
export function protocolName(protocol: number): string { return PROTOCOLS[protocol] ?? `protocol-${protocol}`; }

export function describeQuery(sandbox: string, query: DeniedQuery): RefusedQuery {
  return {
    event: "dns-denied",
    time: new Date(query.timeMs).toISOString(),
    sandbox,
    name: query.name === "" ? "." : query.name,
    type: TYPES[query.type] ?? `TYPE${query.type}`,
    outcome: query.outcome,
    reason: query.outcome,
    address: query.address === null ? null : formatAddress(query.address),
  };
}

export function describeConnection(sandbox: string, { time, name, address, port, method, reason, text, violation }: TlsDenial): RefusedConnection {
  const told = { event: "tls-denied" as const, time: new Date(time).toISOString(), sandbox, name, destination: formatAddress(address), port, method, reason, text };
  if (violation === undefined) return told;
  const { secret, what, place, field, form, action } = violation;
  return { ...told, secret: { name: secret, what, place, field, form, action } };
}

export function connectionLine({ time, sandbox, name, destination, port, method, reason, text }: RefusedConnection): string {
  const end = destination.includes(":") ? `[${destination}]:${port}` : `${destination}:${port}`;
  return `${clock(time)} ${sandbox} refused ${method === null ? "connection" : `request ${method}`} → ${end}${name === null ? "" : ` (${name})`}: ${reason}, ${text}`;
}

export function packetLine(denial: Denial): string {
  const end = (address: string | null, port: number | null): string => (address === null ? "-" : port === null ? address : address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);
  const name = denial.name === null ? "" : ` (${denial.name})`;
  const rule = denial.rule === null ? "" : `, ${denial.rule}`;
  return `${clock(denial.time)} ${denial.sandbox} denied ${denial.direction} ${denial.protocol} ${end(denial.source, denial.source_port)} → ${end(denial.destination, denial.port)}${name}: ${denial.reason}${rule}`;
}

export function allowedLine(flow: Allowed): string {
  const far = flow.direction === "egress" ? flow.destination : flow.source;
  const name = flow.name === null ? "" : ` (${flow.name})`;
  return `${clock(flow.time)} ${flow.sandbox} allowed ${flow.direction} ${flow.protocol} ${flow.guest_port === null ? "" : `:${flow.guest_port} `}${flow.direction === "egress" ? "→" : "←"} ${far!.includes(":") ? `[${far}]` : far}${flow.port === null ? "" : `:${flow.port}`}${name}: ${flow.rule ?? flow.reason}`;
}

export function queryLine({ time, sandbox, name, type, outcome, address }: RefusedQuery): string {
  return `${clock(time)} ${sandbox} refused dns ${name} ${type}: ${outcome}${address === null ? "" : ` (${address})`}`;
}

/** Time of day, UTC, to the millisecond. */
export function clock(time: string): string { return time.slice(11, 23); }
