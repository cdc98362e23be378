/**
 * What the main thread and the TLS worker say to each other.
 *
 * Holds always: every request gets one reply, in order; policies cross by structured clone, maps by descriptor (duplicated by
 * the worker, so the sender may close its own); no value of a secret is in any message.
 */
import type { MessagePort } from "node:worker_threads";
import type { PackedGroups } from "../addresses/groups.js";
import type { Policy } from "../policy/types.js";
import type { SecretCounters, Violation } from "../secrets/types.js";
import type { HttpReason } from "./http/refusal.js";
import type { ConnectionOutcome } from "./reasons.js";

export interface StartTls {
  readonly kind: "start";
  readonly listen: { readonly netnsFd: number; readonly address4: string; readonly address6: string | null; readonly ports: readonly number[] };
  /** How many threads do this, each for sandboxes of its own: each has its part of the process's descriptors. */
  readonly threads: number;
  /** Where far sides are dialled from. */
  readonly hostNetnsFd: number;
  /** 16 octets; null: no IPv6. */
  readonly sandboxNet6: Uint8Array | null;
  readonly groups: PackedGroups;
  /** To the DNS worker (`connect` of src/dns/protocol.ts). */
  readonly port: MessagePort;
  /** Where CAs are kept between two lives of the agent. */
  readonly runDirectory: string;
}

export interface TlsSandboxMessage {
  readonly kind: "addSandbox" | "setPolicy";
  readonly slot: number;
  readonly generation: number;
  readonly name: string;
  readonly policy: Policy;
  readonly floor: Policy | null;
  /** Map `intercepted` of the slot. */
  readonly interceptedFd: number;
}

export type TlsRequest =
  | StartTls
  | TlsSandboxMessage
  | { readonly kind: "removeSandbox"; readonly slot: number; readonly generation: number }
  | { readonly kind: "groups"; readonly groups: PackedGroups }
  | { readonly kind: "stats" }
  | { readonly kind: "stop" };

export interface TlsStats {
  readonly strangers: number;
  /** The splicing thread was wanted and could not be made, or not be given a connection, the last time; and how often that was so. */
  readonly pumpFailing: boolean;
  readonly pumpFailures: number;
  readonly sandboxes: readonly {
    readonly slot: number;
    readonly generation: number;
    readonly connections: number;
    readonly limit: number;
    /** Connections whose ClientHello is not whole yet, and the octets kept of them. */
    readonly hellos: number;
    readonly helloLimit: number;
    readonly helloOctets: number;
    readonly helloOctetsLimit: number;
    /** Intercepted connections whose handshakes are not over, and those that wait for their turn to begin. */
    readonly handshakes: number;
    readonly handshakeLimit: number;
    readonly handshakesWaiting: number;
    /** Places taken by far sides that are not verified yet, or failed lately. */
    readonly farSides: number;
    readonly farSideLimit: number;
    /** Connections that may begin before the rate counts, now. */
    readonly connectionTokens: number;
    /** Octets that one side has sent and the other has not taken, when they were last counted. */
    readonly buffered: number;
    readonly bufferedLimit: number;
    /** Refusals that were not told, over the sandbox's rate. */
    readonly eventsLost: number;
    readonly outcomes: { readonly [K in ConnectionOutcome]?: number };
    readonly requests: number;
    readonly refused: { readonly [K in HttpReason]?: number };
    /** From guests, and to them, of all these connections, encrypted as they came. */
    readonly bytesUp: number;
    readonly bytesDown: number;
    /** By name of the secret. */
    readonly secrets: Readonly<Record<string, SecretCounters & { readonly failing: boolean }>>;
    readonly leaves: { readonly issued: number; readonly hits: number; readonly evicted: number };
  }[];
}

/** A connection or request that was refused. */
export interface TlsDenial {
  readonly slot: number;
  readonly generation: number;
  /** CLOCK_REALTIME, ms. */
  readonly time: number;
  readonly reason: ConnectionOutcome | HttpReason;
  /** The name it was for; null: none. */
  readonly name: string | null;
  readonly address: Uint8Array;
  readonly port: number;
  /** Of a request. */
  readonly method: string | null;
  /** For people; no octet of the guest that was not found well formed, no secret. */
  readonly text: string;
  /** What a secret had to do with it; with action `log` or `pass` nothing was refused. */
  readonly violation?: Violation;
}

export interface TlsReplies {
  readonly start: null;
  readonly addSandbox: null;
  readonly setPolicy: null;
  readonly removeSandbox: null;
  readonly groups: null;
  readonly stats: TlsStats;
  readonly stop: null;
}

export interface TlsEnvelope { readonly id: number; readonly request: TlsRequest }
export type FromTls =
  | { readonly kind: "reply"; readonly id: number; readonly ok: true; readonly value: TlsReplies[keyof TlsReplies] }
  | { readonly kind: "reply"; readonly id: number; readonly ok: false; readonly code: string; readonly message: string }
  | { readonly kind: "denied"; readonly denials: readonly TlsDenial[] }
  | { readonly kind: "notice"; readonly text: string }
  | { readonly kind: "terminate"; readonly slot: number; readonly generation: number; readonly violation: Violation };
