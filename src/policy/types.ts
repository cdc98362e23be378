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
}

export interface Policy {
  readonly defaultEgress: Action;
  readonly defaultIngress: Action;
  readonly rules: readonly Rule[];
  /** --no-net: nothing passes in either direction and no name is resolved. */
  readonly noNet: boolean;
  readonly dns: DnsPolicy;
  readonly limits: Limits;
}

export const Proto = { icmp: 1, tcp: 6, udp: 17, icmpv6: 58 } as const;

/** Protocols a rule speaks of: what is written, or TCP and UDP (with ports), or those and ICMP echo. */
export function protosOf(rule: Pick<Rule, "protos" | "ports">): readonly number[] {
  if (rule.protos !== null) return rule.protos;
  return rule.ports === null ? [Proto.tcp, Proto.udp, Proto.icmp, Proto.icmpv6] : [Proto.tcp, Proto.udp];
}

interface LimitKind { readonly key: string; readonly min: number; readonly max: number; readonly standard: number }

/** Names in the file, ranges and defaults of the limits. */
export const limitKinds: Readonly<Record<keyof Limits, LimitKind>> = {
  flows: { key: "flows", min: 16, max: 1_048_576, standard: 2048 },
  pins: { key: "pins", min: 16, max: 262_144, standard: 1024 },
  names: { key: "names", min: 16, max: 65_536, standard: 1024 },
  addressesPerName: { key: "addresses_per_name", min: 1, max: 256, standard: 64 },
  queriesInFlight: { key: "queries_in_flight", min: 1, max: 4096, standard: 128 },
  queriesPerSecond: { key: "queries_per_second", min: 1, max: 100_000, standard: 500 },
  eventsPerSecond: { key: "events_per_second", min: 0, max: 10_000, standard: 100 },
};
