/**
 * A request that is not passed on: its status, its reason, and the few octets that the guest is told.
 *
 * Holds always: what the guest is told says what was wrong and never repeats what it sent beyond names and methods that were
 * found well formed; it holds no secret. A reason is one of a fixed list, for counters and events.
 * Does not write to a connection (http1.ts, http2.ts).
 */
import type { Violation } from "../../secrets/types.js";

/** Why a request or a connection was refused; labels of counters, listed in docs/REASONS.md. */
export const httpReasons = {
  "host-missing": "no Host, or more than one",
  "host-malformed": "a Host that is not a host name and a port",
  "host-mismatch": "Host or :authority is not the name that was judged for the connection",
  "host-denied": "plain HTTP: the policy does not allow this host at this address",
  "framing": "two readers could take this message for different ones",
  "malformed": "not HTTP/1.1 as RFC 9112 writes it",
  "head-too-large": "a head of more than 64 KiB or 256 fields",
  "method": "TRACE, TRACK or CONNECT",
  "upgrade": "an upgrade to something other than WebSocket",
  "early-octets": "octets for a protocol that the far side has not agreed to",
  "expectation": "an Expect other than 100-continue",
  "policy": "the policy no longer allows this connection",
  "rule-method": "the rule does not allow this method",
  "rule-path": "the rule does not allow this path",
  "path-ambiguous": "a path that two readers could take for different ones, where a rule speaks of paths",
  "dns-message": "a DNS query over HTTPS",
  "secret": "a placeholder where it must not be, or a secret that cannot be had",
  "upstream-unreachable": "the far side did not accept the connection",
  "upstream-untrusted": "the far side's certificate does not hold",
  "upstream-alpn": "the far side and the guest have no protocol in common",
  "upstream-failed": "the far side broke off, or its answer is not HTTP",
  "upstream-framing": "two readers could take the answer for different ones",
  "timeout": "the guest did not finish its request in time",
  "limit": "too many refused or reset requests on one connection",
} as const;

export type HttpReason = keyof typeof httpReasons;

export interface Refusal {
  readonly status: number;
  readonly reason: HttpReason;
  /** For people; no secret, nothing unescaped of the guest's. */
  readonly message: string;
  /** Whether the connection ends with it: what follows cannot be told apart, or is not wanted. */
  readonly close: boolean;
  /** What a secret had to do with it. */
  readonly violation?: Violation;
}

export function refuse(status: number, reason: HttpReason, message: string = httpReasons[reason], close = status !== 403): Refusal {
  return { status, reason, message, close };
}

/** The body of an answer to a refused request. */
export function refusalBody(refusal: Refusal): Buffer {
  return Buffer.from(`${JSON.stringify({ error: "enforcer", reason: refusal.reason, message: refusal.message })}\n`, "utf8");
}

const phrases: Readonly<Record<number, string>> = {
  400: "Bad Request", 403: "Forbidden", 405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large", 415: "Unsupported Media Type", 417: "Expectation Failed", 421: "Misdirected Request",
  431: "Request Header Fields Too Large", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
};

export function phraseOf(status: number): string { return phrases[status] ?? "Refused"; }

/** A whole HTTP/1.1 answer, after which the connection ends. */
export function rawRefusal(refusal: Refusal): Buffer {
  const body = refusalBody(refusal);
  return Buffer.concat([Buffer.from(`HTTP/1.1 ${refusal.status} ${phraseOf(refusal.status)}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n`, "latin1"), body]);
}
