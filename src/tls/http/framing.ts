/**
 * The head of an HTTP/1 message, after llhttp (strict) has read it: what llhttp takes and two readers could take differently.
 *
 * Holds always: a request passes with at most one way to tell its length, an exact one, and exactly one Host; a response
 * likewise. Refused here (A48, A49): codings other than `chunked`, chunked in HTTP/1.0, doubled or listed lengths, names that
 * look like framing, HTTP/0.9 and versions beyond 1.1, a target that is not in origin, asterisk or absolute form.
 * Does not see octets: messages are written anew from what was read.
 */
import { hasLookalike, valuesOf, type Fields } from "./fields.js";
import { parseTarget, type Target } from "./identity.js";
import { refuse, type Refusal } from "./refusal.js";

/** Header fields of one message. */
export const FIELDS_MAX = 256;
/** Octets of a message's head. */
export const HEAD_MAX = 65_536;

export type Body = { readonly kind: "none" } | { readonly kind: "length"; readonly octets: number } | { readonly kind: "chunked" };

export interface RequestHead {
  readonly method: string;
  readonly target: Target;
  readonly hosts: readonly string[];
  readonly body: Body;
  readonly version: "1.0" | "1.1";
}

export type Read<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly refusal: Refusal };

const no = (refusal: Refusal): { readonly ok: false; readonly refusal: Refusal } => ({ ok: false, refusal });

/** @param version as Node tells it, "major.minor". */
export function readRequestHead(method: string, url: string, version: string, fields: Fields): Read<RequestHead> {
  if (version !== "1.1" && version !== "1.0") return no(refuse(400, "malformed", "HTTP/1.1 or HTTP/1.0"));
  if (fields.length > 2 * FIELDS_MAX) return no(refuse(431, "head-too-large"));
  if (hasLookalike(fields)) return no(refuse(400, "framing", "a field name that looks like one that frames messages"));
  const hosts = valuesOf(fields, "host");
  if (hosts.length !== 1) return no(refuse(400, "host-missing"));
  if (method === "TRACE" || method === "TRACK" || method === "CONNECT") return no(refuse(405, "method", `${method} is not passed on`));
  const target = parseTarget(method, url);
  if (target === null) return no(refuse(400, "malformed", "the request target is not one of RFC 9112 section 3.2"));
  const body = bodyOf(fields);
  if (body === null || (body.kind === "chunked" && version === "1.0")) return no(refuse(400, "framing"));
  return { ok: true, value: { method, target, hosts, body, version } };
}

/** null: lengths that contradict each other, or a coding other than chunked. */
export function bodyOf(fields: Fields): Body | null {
  const codings = valuesOf(fields, "transfer-encoding"), lengths = valuesOf(fields, "content-length");
  if (codings.length > 0) return codings.length === 1 && lengths.length === 0 && (codings[0] as string).toLowerCase() === "chunked" ? { kind: "chunked" } : null;
  if (lengths.length === 0) return { kind: "none" };
  const [length] = lengths as [string];
  if (lengths.length > 1 || !/^[0-9]{1,15}$/.test(length)) return null;
  return { kind: "length", octets: Number(length) };
}

/** How a response's body ends: by its fields, or `none` by the end of the connection. null: refused. */
export function responseBodyOf(version: string, fields: Fields): Body | null {
  const body = bodyOf(fields);
  return body?.kind === "chunked" && version !== "1.1" ? null : body;
}
