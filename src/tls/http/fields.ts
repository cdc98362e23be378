/**
 * Header fields on their way: flat lists as Node's rawHeaders (name, value, name, value, …), order, case and doubles kept.
 *
 * Holds always: what belongs to one hop is not passed to the next (RFC 9110 section 7.6.1), Connection's own list included;
 * names that differ from a framing field by an underscore only are refused, since some servers take them for it.
 * Does not know secrets.
 */

export type Fields = readonly string[];

/** Of one hop. TE is looked at apart: `trailers` is the one coding that is passed on. */
const hop = new Set(["connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "transfer-encoding", "upgrade", "http2-settings"]);
/** What a response tells of other ways to the same host, and of a host's wishes that an interceptor cannot keep. */
const elsewhere = new Set(["alt-svc", "alternate-protocol"]);
/** With an underscore for a hyphen, a reader after CGI's manner takes them for the field that frames or routes a message. */
const framing = new Set(["content-length", "transfer-encoding", "http-host", "host", "connection", "upgrade", "expect", "trailer"]);

export function valuesOf(fields: Fields, name: string): string[] {
  const found: string[] = [];
  for (let i = 0; i < fields.length; i += 2) {
    const field = fields[i] as string;
    if (field.length === name.length && field.toLowerCase() === name) found.push(fields[i + 1] as string);
  }
  return found;
}

export function hasLookalike(fields: Fields): boolean {
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string;
    if (name.includes("_") && framing.has(name.toLowerCase().replaceAll("_", "-"))) return true;
  }
  return false;
}

/** Tokens of a comma-separated list, lower case. */
export function tokensOf(values: readonly string[]): string[] {
  if (values.length === 0) return [];
  return values.flatMap((value) => value.split(",")).map((token) => token.trim().toLowerCase()).filter((token) => token !== "");
}

/** Fields that Connection may not take away: without them the message is another one. */
const endToEnd = new Set(["host", "content-length", "content-type", "content-encoding", "authorization", "cookie", "expect"]);

/**
 * A request's fields for the next hop. Host is replaced by what was checked; framing fields are left out, whoever sends them
 * writes them anew.
 * @returns null when Connection names a field that is not of one hop.
 */
export function requestFields(fields: Fields, host: string): string[] | null {
  const named = connectionTokens(fields);
  for (const token of named) if (endToEnd.has(token)) return null;
  const out: string[] = [];
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i] as string, value = fields[i + 1] as string, lower = name.toLowerCase();
    if (lower === "host") out.push(name, host);
    else if (lower === "te") {
      if (tokensOf([value]).includes("trailers")) out.push(name, "trailers");
    } else if (lower !== "content-length" && lower !== "expect" && !hop.has(lower) && !named.has(lower)) out.push(name, value);
  }
  return out;
}

/** A response's fields for the guest: none of one hop, none that lead elsewhere. Content-Length is kept. */
export function responseFields(fields: Fields): string[] {
  const named = connectionTokens(fields);
  const out: string[] = [];
  for (let i = 0; i < fields.length; i += 2) {
    const lower = (fields[i] as string).toLowerCase();
    if (!hop.has(lower) && !elsewhere.has(lower) && (!named.has(lower) || endToEnd.has(lower))) out.push(fields[i] as string, fields[i + 1] as string);
  }
  return out;
}

/** Trailer fields that would frame, route or authorise a message (RFC 9110 section 6.5.1). */
const noTrailers = new Set(["content-length", "transfer-encoding", "host", "trailer", "te", "connection", "authorization", "content-encoding", "content-type", "content-range", "expect", "cookie", "set-cookie"]);

/** Trailers without those. A request that has them is refused, an answer goes on without them. */
export function plainTrailers(fields: Fields): string[] {
  const out: string[] = [];
  for (let i = 0; i < fields.length; i += 2) if (!noTrailers.has((fields[i] as string).toLowerCase())) out.push(fields[i] as string, fields[i + 1] as string);
  return out;
}

function connectionTokens(fields: Fields): Set<string> {
  const values = valuesOf(fields, "connection");
  return new Set(values.length === 0 ? [] : tokensOf(values));
}

/** Media types of DNS over HTTPS: RFC 8484's and its drafts', Google's and Cloudflare's JSON, RFC 9230's. */
const dnsTypes = new Set(["application/dns-message", "application/dns-udpwireformat", "application/dns-json", "application/oblivious-dns-message"]);

/** Whether a message is one of DNS over HTTPS by its fields: an answer, or a question that says what it holds or asks for. */
export function isDnsContent(fields: Fields): boolean {
  return tokensOf([...valuesOf(fields, "content-type"), ...valuesOf(fields, "accept")]).some((type) => dnsTypes.has((type.split(";", 1)[0] as string).trim()));
}

/** Whether a request is a DNS query over HTTPS (RFC 8484 section 4.1). */
export function isDnsMessage(fields: Fields, target: string): boolean {
  const mark = target.indexOf("?");
  if (isDnsContent(fields)) return true;
  if (mark < 0) return false;
  const query = new URLSearchParams(target.slice(mark + 1));
  return query.getAll("dns").some((value) => /^[A-Za-z0-9_-]{16,}/.test(value)) || query.getAll("ct").some((type) => dnsTypes.has(type.toLowerCase()));
}

/** Whether a field of that name is read as `_method`. PHP leaves out blanks in front, ends a name at a NUL, and takes `.`, `[` and a blank for `_`. */
export function namesMethod(name: string): boolean { return /^ *[_.[]method(?:\0|$)/.test(name); }
