/**
 * One sandbox in force, as the engine holds it: what was asked for, what was found, what the kernel was given.
 *
 * Holds always: slot and generation never change while it lives; policy and identity may. Plain data but for `tables`.
 */
import { createHash } from "node:crypto";
import { formatAddress, formatPrefix, hasHostBits, isV4, maskPrefix, type Address, type Prefix } from "../addresses/address.js";
import { dnsLimits } from "../dns/sandbox-policy.js";
import { EnforcerError } from "../errors.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import { knownGateways, type Identity, type SandboxTables, type TableSizes } from "../kernel/sandbox-tables.js";
import type { Mechanism } from "../kernel/tap-link.js";
import type { TapFacts, TapPreparation } from "../net/tap.js";
import type { CompiledPolicy } from "../policy/compile.js";
import { CONNECTION_BURST, type Policy } from "../policy/types.js";
import type { OwnFrames } from "./run-directory.js";

export interface UpstreamAddress { readonly address: Address; readonly port: number }

export interface AttachOptions {
  /** Unique in this engine; metrics, events and state go by it. */
  readonly name: string;
  readonly tap: string;
  readonly policy: Policy;
  /** The operator's, which must allow as well; absent or null: none. */
  readonly floor?: Policy | null;
  /** What the policy was made from; kept in the state file as it is. */
  readonly source: unknown;
  /** What else was asked for; kept in the state file as it is. */
  readonly spec: unknown;
  /** Instead of the addresses found on the tap or its bridge; empty: those. */
  readonly gateways: readonly Address[];
  /** Empty: learned. */
  readonly guest: readonly Prefix[];
  readonly mac: Uint8Array | null;
  /** Instead of the policy's or the host's resolvers; empty: those. */
  readonly upstreams: readonly UpstreamAddress[];
  /** A tap without gateway or subnet is taken too: nothing passes until the host gives it an address. */
  readonly incomplete: boolean;
}

export interface Sandbox {
  readonly name: string;
  readonly slot: number;
  readonly generation: number;
  /** As given at attach, with the policy of the moment. */
  options: AttachOptions;
  facts: TapFacts;
  identity: Identity;
  policy: Policy;
  compiled: CompiledPolicy;
  floor: Policy | null;
  compiledFloor: CompiledPolicy | null;
  /** The policy before, so that events that were on their way can be told. */
  former: CompiledPolicy | null;
  readonly mechanism: Mechanism;
  /** Programs that run before ours on the tap's hooks. */
  readonly before: readonly string[];
  readonly preparation: TapPreparation;
  readonly tables: SandboxTables;
  /** Tables of a former process were taken over. */
  readonly adopted: boolean;
  /** What self-tests left in its counters. */
  readonly tests: OwnFrames;
  /** CLOCK_REALTIME, ms. */
  readonly since: number;
}

/** In force in the kernel, and this process does not know its policy: what passed goes on passing, and no name is resolved. */
export interface KeptSandbox {
  readonly name: string;
  readonly slot: number;
  readonly generation: number;
  readonly ifindex: number;
  /** The tap's name when it was taken over. */
  readonly device: string;
  readonly tables: SandboxTables;
  readonly reason: string;
}

/** @param place number of the tap's namespace (kernel/place.ts). @throws EnforcerError E_GATEWAY_UNKNOWN, E_LIMIT, E_USAGE. */
export function identityOf(facts: TapFacts, { gateways: given, guest, mac, incomplete }: Pick<AttachOptions, "gateways" | "guest" | "mac" | "incomplete">, place = 0): Identity {
  const tap = facts.name;
  for (const gateway of given) {
    const fault = addressFault(gateway, 128);
    if (fault !== null) throw new EnforcerError("E_USAGE", `--gateway ${formatAddress(gateway)} ${fault}`, { remedy: "name the host's own address on the tap or its bridge" });
  }
  for (const [family, named] of familiesOf(given)) {
    if (named.length > AbiLimit.GATEWAYS) throw new EnforcerError("E_LIMIT", `${named.length} ${family} gateways for one guest; ${AbiLimit.GATEWAYS} can be held`, { remedy: "name those that the guest uses" });
  }
  for (const prefix of guest) {
    const fault = guestFault(prefix);
    if (fault !== null) throw new EnforcerError("E_USAGE", `--guest-ip ${formatPrefix(prefix)} ${fault.message}`, { remedy: fault.remedy });
  }
  if (mac !== null && (mac[0]! & 1 || mac.every((octet) => octet === 0))) throw new EnforcerError("E_USAGE", "the guest's MAC is that of a group or of nobody", { remedy: "name the MAC of the guest's own device" });
  const gateways = given.length > 0 ? given : [...facts.gateways, ...facts.routers];
  if (gateways.length === 0 && !incomplete) throw new EnforcerError("E_GATEWAY_UNKNOWN", `${tap} ${facts.bridge === null ? "has no address" : `and its bridge ${facts.bridge.name} have no address`}`);
  for (const prefix of guest) {
    if (prefix.length === 128 && gateways.some((gateway) => formatAddress(gateway) === formatAddress(prefix.bytes))) throw new EnforcerError("E_USAGE", `--guest-ip ${formatAddress(prefix.bytes)} is the gateway of ${tap}`, { remedy: "name the guest's own address" });
  }
  if (guest.length === 0 && facts.learnPrefixes.length === 0 && !incomplete) throw new EnforcerError("E_USAGE", `the guest of ${tap} has no address that could be learned: no subnet or route leads to the tap`, { remedy: "name it with --guest-ip ADDR" });
  return { ifindex: facts.ifindex, place, tapMac: facts.bridge?.mac ?? facts.mac, mac, guest, learnPrefixes: facts.learnPrefixes, gateways, dhcp: true };
}

function familiesOf(addresses: readonly Address[]): (readonly [string, readonly Address[]])[] {
  return [["IPv4", addresses.filter(isV4)], ["IPv6", addresses.filter((address) => !isV4(address))]];
}

/** What to say where the tap has more gateways than the kernel can know: the guest asks in vain for the others. null: it knows all. */
export function gatewaysLeftOut(tap: string, { gateways }: Identity): string | null {
  const held = knownGateways(gateways);
  const left = familiesOf(gateways).flatMap(([family, all]) => (all.length <= AbiLimit.GATEWAYS ? [] : [`${all.length} ${family} addresses could be the guest's gateway, and ${AbiLimit.GATEWAYS} can be held: not ${all.filter((address) => !held.includes(address)).map(formatAddress).join(", ")}`]));
  return left.length === 0 ? null : `${tap}: ${left.join("; ")}. --gateway names those that the guest uses`;
}

/** Why no single host has an address in this prefix, or null. @param length of the 16 octets. */
function addressFault(bytes: Uint8Array, length: number): string | null {
  const first = isV4(bytes) ? bytes[12]! : bytes[0]!;
  const rest = bytes.subarray(isV4(bytes) ? 12 : 0);
  if (length === 128 && rest.every((octet) => octet === 0)) return "is nobody's address";
  if (isV4(bytes)) return first === 0 ? "is nobody's address" : first === 127 ? "is a loopback address" : first >= 224 ? "is no host's address" : null;
  if (first === 0xff) return "is the address of a group";
  return length === 128 && rest.subarray(0, 15).every((octet) => octet === 0) && rest[15] === 1 ? "is a loopback address" : null;
}

/** Why a prefix cannot be what a guest sends from, or null. */
function guestFault(prefix: Prefix): { message: string; remedy: string } | null {
  const { bytes, length, family } = prefix;
  if (family === 6 && length >= 96 && isV4(bytes)) return { message: "is an IPv4-mapped address, which no packet carries", remedy: `write ${formatPrefix({ ...prefix, family: 4 })}` };
  // `ip addr` shows an address with the length of its subnet: taken for a prefix, that would be everybody's in it.
  if (hasHostBits(prefix)) return { message: "has bits set behind its length", remedy: `write ${formatAddress(bytes)} for that address alone, or ${formatPrefix(maskPrefix(prefix))} if all of it is the guest's` };
  if (length === (family === 4 ? 96 : 0)) return { message: "is every address", remedy: "name the guest's own addresses" };
  const fault = addressFault(bytes, length);
  return fault === null ? null : { message: fault, remedy: "name the guest's own address" };
}

/** Equal for equal identities. */
export function identityKey({ ifindex, tapMac, mac, guest, learnPrefixes, gateways }: Identity): string {
  return JSON.stringify([ifindex, [...tapMac], mac === null ? null : [...mac], guest.map(formatPrefix), learnPrefixes.map(formatPrefix), gateways.map(formatAddress)]);
}

/** Of policy and floor as understood: the same rules written otherwise are the same policy. */
export function digestOf(policy: Policy, floor: Policy | null): string {
  const plain = JSON.stringify(floor === null ? policy : [policy, floor], (_, value: unknown) => (value instanceof Uint8Array || ArrayBuffer.isView(value) ? Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") : typeof value === "bigint" ? value.toString() : value));
  return createHash("sha256").update(plain).digest("hex");
}

/** The kernel lets through the most that the agent serves in any one second: within that, the agent refuses by its own rates, with a reason. */
export function sizesOf(policy: Policy): TableSizes {
  const { limits } = policy, { queriesPerSecond, burst } = dnsLimits(policy);
  return {
    flows: limits.flows, pins: limits.pins, eventsPerSecond: limits.eventsPerSecond,
    queriesPerSecond: burst + queriesPerSecond, connectionsPerSecond: (CONNECTION_BURST + 1) * limits.connectionsPerSecond,
    addresses: limits.guestAddresses,
  };
}

/** What a guest begins and the agent has to serve, by kind: queries over UDP, connections to port 53, connections that are looked into. */
export const begunKinds = ["query", "dns-connection", "connection"] as const;
export type Begun = Readonly<Record<(typeof begunKinds)[number], number>>;

/** As much of it as the kernel lets through a second. */
export function begunLimits(policy: Policy): Begun {
  const { queriesPerSecond, connectionsPerSecond } = sizesOf(policy);
  return { query: queriesPerSecond, "dns-connection": AbiLimit.DNS_CONNECTIONS, connection: connectionsPerSecond };
}

/** What the kernel counts beside packets; see Enforcer.limitCounters. */
export interface LimitCounters { readonly eventsLost: number; readonly events: number; readonly dnsWaiting: number; readonly begun: Begun }
