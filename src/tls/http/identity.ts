/**
 * Whom a request is for: Host, :authority and absolute targets, held to the name that was judged for the connection.
 *
 * Holds always: a host is read strictly (RFC 9110 section 7.2, RFC 3986 section 3.2.2 without the forms that no name has) and
 * never repaired but for case and one final dot; equal means equal label by label. Every request is looked at, not the first
 * of a connection (A42, A48, A50).
 * Does not resolve anything, and does not judge names by policy.
 */
import { formatAddress, isV4, parseAddress } from "../../addresses/address.js";
import { refuse, type Refusal } from "./refusal.js";

export interface HostField {
  /** lower case, without final dot. */
  readonly name: string;
  /** null: not written. */
  readonly port: number | null;
}

/**
 * `name[:port]` as in Host and :authority; null for everything else: userinfo, lists, brackets, zones, white space, empty
 * labels, escapes, anything outside ASCII, an address.
 */
export function parseHost(value: string): HostField | null {
  const match = /^([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?(?::([0-9]{1,5}))?$/.exec(value);
  if (match === null) return null;
  const name = (match[1] as string).toLowerCase();
  if (name.length > 253 || name.split(".").some((label) => label.length > 63)) return null;
  // What inet_aton would read as an address: it has no name, and readers differ about it.
  if (/(^|\.)([0-9]+|0x[0-9a-f]*)$/.test(name)) return null;
  const port = match[2] === undefined ? null : Number(match[2]);
  if (port !== null && (port === 0 || port > 65_535)) return null;
  return { name, port };
}

/**
 * The receiver of a request over plain HTTP, where no name was judged before: a host, or the address that the guest dialled,
 * as URLs write it. null: neither.
 * @returns canonical name, or the address as text.
 */
export function plainHost(value: string, address: string, port: number): string | null {
  const host = parseHost(value);
  if (host !== null) return host.name;
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?$/.exec(value);
  if (match === null) return null;
  const said = parseAddress((match[1] ?? match[2]) as string);
  if (said === null || (match[1] === undefined) !== isV4(said) || formatAddress(said) !== address) return null;
  return match[3] === undefined || Number(match[3]) === port ? address : null;
}

/**
 * What a request says of its receiver, against the connection's.
 * @param values every Host or :authority of the request, as written. @param name judged, canonical. @param port the original destination's.
 */
export function checkHosts(values: readonly string[], name: string, port: number): Refusal | null {
  if (values.length === 0) return refuse(400, "host-missing");
  for (const value of values) {
    if (value === name) continue;
    const host = parseHost(value);
    if (host === null) return refuse(400, "host-malformed");
    if (host.name !== name) return refuse(421, "host-mismatch", `this connection is to ${name}: a request on it cannot be for another host`);
    if (host.port !== null && host.port !== port) return refuse(421, "host-mismatch", `this connection is to port ${port}: a request on it cannot be for another port`);
  }
  return null;
}

export type Target =
  | { readonly kind: "origin"; readonly path: string }
  /** `*`, of OPTIONS. */
  | { readonly kind: "asterisk" }
  | { readonly kind: "absolute"; readonly scheme: string; readonly authority: string; readonly path: string };

/** A request target (RFC 9112 section 3.2) in visible ASCII without a fragment; null for every other form. */
export function parseTarget(method: string, target: string): Target | null {
  if (!/^[\x21\x22\x24-\x7e]+$/.test(target)) return null;
  if (target.startsWith("/")) return { kind: "origin", path: target };
  if (target === "*") return method === "OPTIONS" ? { kind: "asterisk" } : null;
  const absolute = /^([a-z][a-z0-9+.-]*):\/\/([^/?]*)([/?].*)?$/i.exec(target);
  if (absolute === null) return null;
  const rest = absolute[3] ?? "/";
  return { kind: "absolute", scheme: (absolute[1] as string).toLowerCase(), authority: absolute[2] as string, path: rest.startsWith("/") ? rest : `/${rest}` };
}

/**
 * The path of a request in the one form that a rule about paths is held against and that is passed on; null when readers
 * could differ: segments of dots, doubled slashes, backslashes, escapes that hide a slash, a dot, a percent sign or a control
 * character, or that are not escapes.
 * @param target origin form, query included. @returns the path without the query.
 */
export function plainPath(target: string): string | null {
  const [path] = target.split("?", 1) as [string];
  if (!path.startsWith("/") || path.includes("//") || path.includes("\\") || path.includes(";")) return null;
  if (/%(?![0-9a-fA-F]{2})/.test(path) || /%(2[ef5]|5c|3b|[01][0-9a-f]|7f)/i.test(path)) return null;
  // With blanks around them too, as file systems of Windows read them.
  if (path.includes(".") && path.split("/").some((segment) => /^(?:\.|%20)+$/.test(segment) && segment.includes("."))) return null;
  // A dot or a slash in more octets than it has (RFC 3629 section 3), which lenient readers take for one.
  if (/%(?:c[01]|e0%[89]|f0%8)/i.test(path)) return null;
  // An escape of what needs none is another spelling of the same path.
  if (/%(4[1-9a-f]|5[0-9a]|6[1-9a-f]|7[0-9a]|3[0-9]|2d|5f|7e)/i.test(path)) return null;
  return path;
}
