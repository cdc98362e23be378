/**
 * What both protocol legs ask about a request on its way: whether it may pass, and what becomes of its octets.
 *
 * Holds always: every request is asked about, not the first of a connection, so a policy or a secret that changed holds for the
 * next one. A refusal is an answer; an exception of these functions ends the request too, unpassed.
 */
import type { Duplex, Readable } from "node:stream";
import type { Body } from "./framing.js";
import type { Fields } from "./fields.js";
import type { HttpLimits } from "./limits.js";
import type { HttpReason, Refusal } from "./refusal.js";
import type { Watch } from "./watch.js";

/** A request that is well formed and for the right host. */
export interface RequestFacts {
  /** canonical. */
  readonly host: string;
  readonly method: string;
  /** origin or asterisk form. */
  readonly target: string;
  /** of one hop left out; no Content-Length. */
  readonly fields: string[];
  readonly body: Body;
}

/** What becomes of one exchange's octets; absent parts pass as they are. */
export interface ExchangeFilter {
  readonly target: string;
  readonly fields: string[];
  /** What the request's body goes through, null: nothing. */
  readonly body: Duplex | null;
  /** Length of the body afterwards; null: known when it has ended. */
  readonly bodyLength: number | null;
  /** Instead of `body`: the body must be had whole before anything of the request leaves, and this makes of it what is to leave. Rejects when it breaks off. */
  readonly whole?: ((source: Readable) => Promise<Buffer | Refusal>) | null;
  requestTrailers(fields: Fields): string[] | Refusal;
  /** Interim and final responses. null stands for a response that must not reach the guest. */
  responseHead(status: number, phrase: string, fields: Fields): { readonly phrase: string; readonly fields: string[] } | null;
  /** For the final response, after responseHead. changes: whether the length may differ. */
  responseBody(): { readonly transform: Duplex; readonly changesLength: boolean } | null;
  responseTrailers(fields: Fields): string[] | null;
  /** What a WebSocket's octets go through in each direction; null: nothing. */
  tunnel?(): { readonly fromGuest: Duplex; readonly toGuest: Duplex | null } | null;
  /** Octets that it keeps; absent: none to speak of. */
  held?(): number;
  /** Nothing of it passes any more, whatever was under way. */
  release?(): void;
  /** The exchange is over, well or not. */
  done(): void;
}

export interface HttpCounters {
  requests: number;
  readonly refused: { [K in HttpReason]?: number };
  upgrades: number;
}

export interface Passage {
  readonly scheme: "https" | "http";
  /** canonical name that every request must be for; null: plain HTTP, where each request's Host is judged. */
  readonly name: string | null;
  /** of the original destination. */
  readonly port: number;
  /** Plain HTTP: the original destination's address as text, which Host may say instead of a name; else null. */
  readonly address: string | null;
  readonly limits: HttpLimits;
  readonly counters: HttpCounters;
  readonly watch: Watch;
  /** Told once how to ask for the octets that one side has sent and the other has not taken. */
  holds(held: () => number): void;
  /** Whether policy lets a request pass now. */
  judge(request: RequestFacts): Refusal | null | Promise<Refusal | null>;
  /** Whether its answer may; by the fields. Absent: any. */
  judgeAnswer?(fields: Fields): Refusal | null;
  /** What becomes of it; null: nothing. */
  filter(request: RequestFacts): ExchangeFilter | Refusal | null | Promise<ExchangeFilter | Refusal | null>;
  /** Told of every refusal, for events. */
  refused(refusal: Refusal, request: { readonly method: string; readonly host: string | null }): void;
}

export function isRefusal(value: object | null): value is Refusal { return value !== null && "status" in value && "reason" in value; }

export function countRefusal(counters: HttpCounters, reason: HttpReason): void { counters.refused[reason] = (counters.refused[reason] ?? 0) + 1; }
