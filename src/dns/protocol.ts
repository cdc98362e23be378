/**
 * What the agent's main thread and the DNS worker say to each other: plain data by structured clone.
 *
 * Holds always: every request has an id and gets exactly one reply with it, in the order of the requests; descriptors are
 * numbers valid in the whole process: namespace descriptors stay the sender's, map descriptors are duplicated by the
 * worker before it replies. Requests that name a sandbox name its generation, and one that has gone gets an error.
 *
 * A sandbox is judged by its own policy and, where the operator has set one, by the floor: a name must be allowed by both,
 * an exception to rebind protection must stand in both, and pins are written to the map of each with its own bits.
 *
 * A policy swap: `swapPolicy` (worker judges every pin again, fills the new maps, from then on writes every pin to old and
 * new and lets a name through only when old and new policies allow it) → reply → main thread puts the new ones in force in
 * the kernel → `confirmSwap` (only they count) or `abortSwap` (the old ones stay; the new maps are let go). The floor is
 * changed by a swap of each sandbox.
 *
 * Another thread that must know what a sandbox was told (TLS) gets a port of its own by `connect`, with questions (LinkRequest)
 * and little power: nothing on it changes what is pinned or grants anything; it names texts whose questions are refused.
 */
import type { MessagePort } from "node:worker_threads";
import type { GroupTable, PackedGroups } from "../addresses/groups.js";
import type { Policy } from "../policy/types.js";
import type { NamedPlaceholder } from "../secrets/names.js";
import type { Form } from "../secrets/types.js";
import type { Outcome } from "./metrics.js";
import type { PinCounters } from "./pins.js";

export interface StartMessage {
  readonly kind: "start";
  readonly listen: {
    /** namespace to listen in; null: the thread's own. */
    readonly netnsFd: number | null;
    readonly address4: string | null;
    readonly address6: string | null;
    /** UDP and TCP; 0 for any (tests). */
    readonly port: number;
    /** device to bind the UDP sockets to. */
    readonly device?: string;
    /** SO_RCVBUFFORCE of the UDP sockets, octets. */
    readonly receiveBuffer?: number;
  };
  /** namespace for upstream sockets; null: the thread's own. Must be given when listen.netnsFd is. */
  readonly hostNetnsFd: number | null;
  /** 16 octets: the /96 whose last 32 bits are slot + SANDBOX_ADDR_OFFSET; null: no IPv6. */
  readonly sandboxNet6: Uint8Array | null;
  readonly groups: PackedGroups;
  /** resolv.conf to follow for sandboxes without upstreams of their own; null: none. */
  readonly resolvConf: string | null;
  /** denials a second and sandbox that are told; the rest are counted. */
  readonly eventsPerSecond?: number;
}

export interface UpstreamSetting {
  /** 16 octets. */
  readonly address: Uint8Array;
  readonly port: number;
}

export interface AddSandboxMessage {
  readonly kind: "addSandbox";
  readonly slot: number;
  readonly generation: number;
  readonly name: string;
  readonly policy: Policy;
  /** the operator's; null: none. */
  readonly floor: Policy | null;
  /** what reverse names are judged by; null: the groups of the moment. */
  readonly compiledGroups: GroupTable | null;
  /** inner map of `pins` in force. */
  readonly pinsFd: number;
  /** the floor's map of the same kind; null exactly when there is no floor. */
  readonly floorPinsFd: number | null;
  /** map `pin_epochs`; null: none (tests). */
  readonly pinEpochsFd: number | null;
  /** inner map of `flows`, read only, to see which pins are in use; null: pins get no grace. */
  readonly flowsFd: number | null;
  /** null: those of policy and floor (src/policy/floor.ts), or else the host's. */
  readonly upstreams: readonly UpstreamSetting[] | null;
}

export interface SwapPolicyMessage {
  readonly kind: "swapPolicy";
  readonly slot: number;
  readonly generation: number;
  readonly policy: Policy;
  readonly floor: Policy | null;
  readonly compiledGroups: GroupTable | null;
  /** the new policy's inner map of `pins`, empty. */
  readonly pinsFd: number;
  /** the new floor's, empty; null exactly when there is no floor. */
  readonly floorPinsFd: number | null;
  readonly pinEpochsFd: number | null;
  readonly upstreams: readonly UpstreamSetting[] | null;
}

/**
 * Right after addSandbox, for one that a former process served: what that one wrote down is pinned again, by name and under
 * the policy given. With pinsFd (the map of addSandbox, when it was taken over with its content): what the map holds and
 * nobody wrote down is kept as it is, under a name that nobody can ask for, until it expires.
 */
export interface RestorePinsMessage {
  readonly kind: "restorePins";
  readonly slot: number;
  readonly generation: number;
  readonly pins: readonly { readonly labels: readonly string[]; readonly address: Uint8Array; /** CLOCK_MONOTONIC seconds. */ readonly expires: number }[];
  readonly pinsFd: number | null;
  /** the floor's map of addSandbox, likewise. */
  readonly floorPinsFd: number | null;
}

export type Request =
  | StartMessage
  | AddSandboxMessage
  | SwapPolicyMessage
  | { readonly kind: "confirmSwap"; readonly slot: number; readonly generation: number }
  | { readonly kind: "abortSwap"; readonly slot: number; readonly generation: number }
  | { readonly kind: "removeSandbox"; readonly slot: number; readonly generation: number }
  /** the host's addresses or routes changed. */
  | { readonly kind: "groups"; readonly groups: PackedGroups }
  /** see RestorePinsMessage. */
  | RestorePinsMessage
  /** read resolv.conf again now. */
  | { readonly kind: "reloadResolvers" }
  | { readonly kind: "stats" }
  | { readonly kind: "pins"; readonly slot: number; readonly generation: number }
  /** the same as the text of a JSON array, a row [labels, address as 32 hex digits, end of the lease in seconds] for each: a thousand objects less for the asking thread. */
  | { readonly kind: "pinRecords"; readonly slot: number; readonly generation: number }
  /** pins whose lease ran out lately, a bounded number. */
  | { readonly kind: "formerPins"; readonly slot: number; readonly generation: number }
  /** names that this sandbox was told the address (16 octets) for. */
  | { readonly kind: "namesOf"; readonly slot: number; readonly generation: number; readonly address: Uint8Array }
  | { readonly kind: "flushCache" }
  /** serve this port, which is among the message's transferred objects, with what LinkRequest says. */
  | { readonly kind: "connect"; readonly port: MessagePort }
  | { readonly kind: "stop" };

/** What is asked on a port given by `connect`; see link.ts for the asking side. Each gets one LinkReply, not always in order. */
export type LinkRequest =
  /** Was this sandbox told that exactly this name is at this address (16 octets), and does that still hold (lease or grace)? */
  | { readonly id: number; readonly kind: "pinned"; readonly slot: number; readonly generation: number; readonly address: Uint8Array; readonly labels: readonly string[] }
  /** A question of this sandbox by way of a stream (DNS over TLS), judged, counted and answered like one over TCP on port 53. */
  | { readonly id: number; readonly kind: "answer"; readonly slot: number; readonly generation: number; readonly message: Uint8Array }
  /** Placeholders of this sandbox's secrets: a question for a name that holds one is a violation. In the place of what was said before; kept until the sandbox goes. */
  | { readonly id: number; readonly kind: "placeholders"; readonly slot: number; readonly generation: number; readonly placeholders: readonly NamedPlaceholder[] };

export type LinkReply =
  | { readonly id: number; readonly pinned: boolean }
  /** false: there is no such sandbox. */
  | { readonly id: number; readonly known: boolean }
  /** null: there is nothing to say (the message is no question, or the sandbox has gone). */
  | { readonly id: number; readonly message: Uint8Array | null };

/** Unasked, on the same port: a question held a placeholder, and what `on_violation` says of it has been done. */
export interface PlaceholderAsked {
  readonly kind: "placeholderAsked";
  readonly slot: number;
  readonly generation: number;
  readonly labels: readonly string[];
  readonly secret: string;
  readonly form: Form;
}

export interface SandboxStats {
  readonly slot: number;
  readonly generation: number;
  /** by outcome. */
  readonly queries: { readonly [K in Outcome]: number };
  readonly cacheHits: number;
  readonly cacheMisses: number;
  readonly coalesced: number;
  readonly truncated: number;
  readonly tcpConnections: number;
  readonly tcpRefused: number;
  /** gauges. */
  readonly inFlight: number;
  readonly connections: number;
  /** queries that are answered at once before the rate refuses one. */
  readonly queriesLeft: number;
  /** most addresses that one name has. */
  readonly addressesPerName: number;
  readonly pins: PinCounters;
  /** bounds that the gauges are held to. */
  readonly limits: {
    readonly queriesPerSecond: number; readonly inFlight: number; readonly connections: number;
    readonly names: number; readonly addresses: number; readonly addressesPerName: number;
  };
  /** denials that were not told, over the rate. */
  readonly eventsLost: number;
}

export interface Stats {
  readonly sandboxes: readonly SandboxStats[];
  readonly upstream: {
    readonly sent: number; readonly answered: number; readonly timeouts: number; readonly mismatched: number;
    readonly malformed: number; readonly tcp: number; readonly errors: number; readonly failed: number; readonly inFlight: number;
    /** upper edges in seconds; counts has one more for what is above all. */
    readonly latency: { readonly buckets: readonly number[]; readonly counts: readonly number[]; readonly sum: number };
    readonly servers: readonly { readonly server: string; readonly down: boolean; readonly timeouts: number }[];
  };
  readonly cache: { readonly entries: number; readonly octets: number; readonly evicted: number };
  /** datagrams from no known sandbox, and answers that a full socket did not take. */
  readonly strangers: number;
  /** messages that met a bug of the resolver's, and the last one's stack: to be reported. */
  readonly faults: number;
  readonly lastFault: string | null;
  readonly dropped: number;
}

export interface PinRow {
  /** presentation form (RFC 1035), lower case, without the final dot. */
  readonly name: string;
  readonly labels: readonly string[];
  readonly address: Uint8Array;
  /** CLOCK_MONOTONIC seconds. */
  readonly expires: number;
  /** rule bits under its own policy. */
  readonly bits: readonly number[];
  /** rule bits under the floor; empty without one. Both empty: told under open policies, held in memory only. */
  readonly floorBits: readonly number[];
}

/** A pin whose lease is over. */
export interface FormerPinRow { readonly name: string; readonly address: Uint8Array; /** CLOCK_MONOTONIC seconds. */ readonly expired: number }

export interface Replies {
  start: { readonly port: number; /** where the resolvers came from had none */ readonly noUpstream: boolean };
  addSandbox: null;
  swapPolicy: { readonly written: number; /** pins that the new policy has no place for */ readonly left: number };
  confirmSwap: null;
  abortSwap: null;
  removeSandbox: null;
  groups: null;
  reloadResolvers: { readonly servers: readonly string[] };
  stats: Stats;
  restorePins: { readonly restored: number; /** names refused now, or over a bound */ readonly left: number; /** addresses whose names are not known */ readonly unknown: number };
  pins: readonly PinRow[];
  pinRecords: string;
  formerPins: readonly FormerPinRow[];
  namesOf: readonly string[];
  flushCache: null;
  connect: null;
  stop: null;
}

export type Envelope = { readonly id: number; readonly request: Request };

/** One denied query. */
export interface DeniedQuery {
  readonly slot: number;
  readonly generation: number;
  /** presentation form, escaped. */
  readonly name: string;
  readonly type: number;
  readonly outcome: Outcome;
  /** 16 octets: the address that was refused, for outcome "rebind". */
  readonly address: Uint8Array | null;
  /** CLOCK_REALTIME, ms. */
  readonly timeMs: number;
}

export type FromWorker =
  | { readonly kind: "reply"; readonly id: number; readonly ok: true; readonly value: Replies[keyof Replies] }
  | { readonly kind: "reply"; readonly id: number; readonly ok: false; readonly code: string; readonly message: string }
  | { readonly kind: "denied"; readonly queries: readonly DeniedQuery[] }
  /** the host's resolvers changed; an empty list: queries fail until there are some. */
  | { readonly kind: "resolvers"; readonly servers: readonly string[] };
