/**
 * A policy as understood: defaults, one ordered rule list, DNS settings, limits.
 *
 * Holds always: plain data, frozen in meaning once built; it crosses to a worker thread by structured clone. Names are label
 * arrays (A-labels, lower case, root excluded), addresses are bytes, ports and protocols are numbers.
 * Does not know how it was written (parse.ts) nor how the kernel holds it (compile.ts).
 */
import type { Address, Prefix } from "../addresses/address.js";
import type { Group } from "../addresses/groups.js";
import type { BlockList } from "./blocklist.js";

export type Action = "allow" | "deny";
export type Direction = "egress" | "ingress";

/** Where something was written: file and line, or the command line; `rule` counts from 1 in that file or command line. */
export interface Place {
  readonly file: string;
  readonly line: number | null;
  readonly rule: number | null;
}

/**
 * exact: the name itself. below: one or more labels below it (`*.x`). suffix: itself and everything below (`suffix:x`).
 */
export interface NamePattern {
  readonly kind: "exact" | "below" | "suffix";
  readonly labels: readonly string[];
}

/**
 * any, as allow of direction egress, leaves out host, metadata and loopback, which need a rule of their own; otherwise it
 * covers every address. doh stands for the names and prefixes of data/doh.tsv. prefix carries the group that holds the whole
 * of it, by the address groups known when the policy was built (`public` when it spans several).
 */
export type Destination =
  | { readonly kind: "group"; readonly group: Group }
  | { readonly kind: "any" }
  | { readonly kind: "doh" }
  | { readonly kind: "prefix"; readonly prefix: Prefix; readonly group: Group }
  | { readonly kind: "name"; readonly pattern: NamePattern };

/** Inclusive, 1..65535. */
export interface PortRange { readonly first: number; readonly last: number }

export interface Rule {
  /** Position in the policy, from 0: lower wins. */
  readonly index: number;
  readonly action: Action;
  readonly direction: Direction;
  /** The far side in both directions. */
  readonly destination: Destination;
  /** IP protocol numbers; null when not written: TCP, UDP and ICMP echo, or with ports TCP and UDP. */
  readonly protos: readonly number[] | null;
  /** Destination ports for egress, the guest's ports for ingress; null when not written: every port, and ICMP. Sorted, merged. */
  readonly ports: readonly PortRange[] | null;
  /** Which requests an allow rule by name means; absent: all. Only where TLS is intercepted. */
  readonly http?: HttpScope;
  readonly place: Place;
}

/** null: all. Methods are upper case; a path pattern has `*` for a part of a segment and `/**` at its end for all below. */
export interface HttpScope { readonly methods: readonly string[] | null; readonly paths: readonly string[] | null }

/** Paths from the root. The key is read where it is used, and is never part of a policy. */
export interface CaFiles { readonly certificate: string; readonly key: string }

/** What is looked into beyond addresses; see docs/TLS.md. */
export interface TlsPolicy {
  /** TLS is ended here and begun again toward the server. */
  readonly intercept: boolean;
  /** Server name and Host of connections that a name allows are checked. Follows from intercept and from rules by name unless written. */
  readonly verifyNames: boolean;
  /** TCP ports on which TLS is expected, ascending; 443 among them. Plain HTTP is expected on 80. */
  readonly ports: readonly number[];
  /** Names that are passed on without interception. */
  readonly bypass: readonly NamePattern[];
  /** Authorities that servers may have beside the built-in ones, PEM; hosts null: every server. */
  readonly upstreamCa: readonly { readonly hosts: readonly NamePattern[] | null; readonly pem: string }[];
  /** The host's own list of authorities counts too. */
  readonly trustHostCas: boolean;
  /** Files of the authority that issues what the guest sees; null: one is made for the sandbox. */
  readonly ca: CaFiles | null;
  /** DNS over TLS, where TLS is intercepted. Without interception it is refused. */
  readonly dot: "terminate" | "refuse";
  /** DNS over HTTPS is refused on intercepted hosts. */
  readonly denyDoh: boolean;
}

export type SecretSource =
  | { readonly kind: "env"; readonly variable: string }
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "credential"; readonly name: string }
  | { readonly kind: "command"; readonly argv: readonly string[] };

/** A secret as the policy describes it; the value is never part of a policy. */
export interface SecretSpec {
  readonly name: string;
  readonly from: SecretSource;
  readonly allowedHosts: readonly NamePattern[];
  readonly ports: readonly number[];
  /** Seconds after which the source is asked again; null: when the policy is read, and files when they change. */
  readonly ttl: number | null;
  /** Seconds for which a value is used after its source has failed; null: until it works again. */
  readonly failureTtl: number | null;
  readonly placeholder: { readonly prefix: string; readonly sameLength: boolean; readonly jwt: boolean };
  /** headers null: the standard ones (authorization, x-api-key, api-key, x-goog-api-key, and Basic credentials). */
  readonly inject: { readonly headers: readonly string[] | null; readonly query: boolean; readonly body: boolean; readonly path: boolean };
  /** hosts: where it passes as it is, with action pass; everywhere else it is blocked. */
  readonly onViolation: { readonly action: "block" | "log" | "terminate" | "pass"; readonly hosts: readonly NamePattern[] };
  readonly place: Place;
}

export interface Upstream { readonly address: Address; readonly port: number }

export interface DnsPolicy {
  /** null: the resolvers of the host, followed when they change. */
  readonly upstreams: readonly Upstream[] | null;
  readonly rebindProtection: boolean;
  /** Which addresses outside `public` names of a pattern may have. */
  readonly allowPrivate: readonly { readonly pattern: NamePattern; readonly prefixes: readonly Prefix[] }[];
  readonly onBlocked: "nxdomain" | "refused";
  readonly onRebind: "refused" | "nxdomain";
  readonly block: BlockList;
}

/** Per sandbox. */
export interface Limits {
  /** Flows at one time. */
  readonly flows: number;
  /** Pinned addresses at one time. */
  readonly pins: number;
  /** Names with pins at one time. */
  readonly names: number;
  readonly addressesPerName: number;
  readonly queriesInFlight: number;
  readonly queriesPerSecond: number;
  /** Denial events reported by the kernel. */
  readonly eventsPerSecond: number;
  /** Connections that are looked into, begun a second. */
  readonly connectionsPerSecond: number;
  /** KiB under way in such connections that one side has sent and the other has not taken. */
  readonly bufferedKib: number;
  /** Addresses of its prefixes in use at one time. */
  readonly guestAddresses: number;
}

export interface Policy {
  readonly defaultEgress: Action;
  readonly defaultIngress: Action;
  readonly rules: readonly Rule[];
  /** --no-net: nothing passes in either direction and no name is resolved. */
  readonly noNet: boolean;
  readonly dns: DnsPolicy;
  readonly tls: TlsPolicy;
  readonly secrets: readonly SecretSpec[];
  readonly limits: Limits;
}

export const Proto = { icmp: 1, tcp: 6, udp: 17, icmpv6: 58 } as const;

/** Protocol numbers that are not spoken over an IP version: the other one's ICMP, and of IPv6 the numbers of its own extension headers that are walked over (RFC 8200 section 4). */
export function isForeign(protocol: number, family: 4 | 6): boolean {
  return family === 4 ? protocol === Proto.icmpv6 : protocol === Proto.icmp || isExtensionHeader(protocol);
}

/** Hop-by-hop options, routing, fragment, destination options. */
export function isExtensionHeader(protocol: number): boolean { return protocol === 0 || protocol === 43 || protocol === 44 || protocol === 60; }

/** Protocols a rule speaks of: what is written, or TCP and UDP (with ports), or those and ICMP echo. */
export function protosOf(rule: Pick<Rule, "protos" | "ports">): readonly number[] {
  if (rule.protos !== null) return rule.protos;
  return rule.ports === null ? [Proto.tcp, Proto.udp, Proto.icmp, Proto.icmpv6] : [Proto.tcp, Proto.udp];
}

interface LimitKind { readonly key: string; readonly min: number; readonly max: number; readonly standard: number }

/** So many times the connections of a second may begin at once. */
export const CONNECTION_BURST = 10;

/** Names in the file, ranges and defaults of the limits. */
export const limitKinds: Readonly<Record<keyof Limits, LimitKind>> = {
  flows: { key: "flows", min: 16, max: 1_048_576, standard: 2048 },
  pins: { key: "pins", min: 16, max: 262_144, standard: 1024 },
  names: { key: "names", min: 16, max: 65_536, standard: 1024 },
  addressesPerName: { key: "addresses_per_name", min: 1, max: 256, standard: 64 },
  queriesInFlight: { key: "queries_in_flight", min: 1, max: 4096, standard: 128 },
  queriesPerSecond: { key: "queries_per_second", min: 1, max: 1_000_000, standard: 500 },
  eventsPerSecond: { key: "events_per_second", min: 0, max: 10_000, standard: 100 },
  connectionsPerSecond: { key: "connections_per_second", min: 1, max: 10_000, standard: 100 },
  bufferedKib: { key: "buffered_kib", min: 1_024, max: 4_194_304, standard: 65_536 },
  guestAddresses: { key: "guest_addresses", min: 1, max: 65_536, standard: 64 },
};
