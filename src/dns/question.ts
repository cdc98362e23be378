/**
 * The guest's message, read strictly: exactly one question, at most one OPT, not an octet more (RFC 1035, RFC 6891).
 *
 * Holds always: parseQuery never throws and allocates only for what it accepts; a message that is an answer, or too short
 * to have an id, is to be ignored (never answer answers: that is how reflection loops start); every other fault has a
 * response code, and the question is echoed only when it was read whole.
 * Does not: judge the name.
 */
import { Class, Flag, HEADER, Rcode, Type, readName, type Name } from "./wire.js";

export interface Edns {
  /** the guest's UDP payload size as sent, octets. */
  readonly size: number;
  readonly version: number;
  /** DNSSEC OK. */
  readonly dnssec: boolean;
  /** it carries options; none is answered, but cookies and padding make every message differ. */
  readonly options: boolean;
}

export interface Question {
  readonly name: Name;
  readonly type: number;
  readonly class: number;
  /** position just after the question, relative to the message. */
  readonly end: number;
}

export type Query =
  | { readonly kind: "ignore"; readonly why: "short" | "response" }
  | { readonly kind: "fault"; readonly rcode: Rcode; readonly why: string; readonly question: Question | null; readonly edns: Edns | null }
  | { readonly kind: "question"; readonly question: Question; readonly edns: Edns | null };

const SHORT: Query = { kind: "ignore", why: "short" };
const RESPONSE: Query = { kind: "ignore", why: "response" };

function fault(rcode: Rcode, why: string, question: Question | null = null, edns: Edns | null = null): Query {
  return { kind: "fault", rcode, why, question, edns };
}

/** Records that a query may carry in its additional section; more is nothing a resolver's client sends. */
const MAX_ADDITIONAL = 4;

/** Reads length octets of b at offset as one query. */
export function parseQuery(b: Uint8Array, offset: number, length: number): Query {
  if (length < 2) return SHORT;
  if (length >= 3 && (b[offset + 2]! & 0x80) !== 0) return RESPONSE;
  if (length < HEADER) return fault(Rcode.FORMERR, "header");
  const end = offset + length;
  if ((b[offset + 2]! & 0x78) !== 0) return fault(Rcode.NOTIMP, "opcode");
  const count = (at: number): number => (b[offset + at]! << 8) | b[offset + at + 1]!;
  if (count(4) !== 1) return fault(Rcode.FORMERR, "question-count");
  if (count(6) !== 0 || count(8) !== 0) return fault(Rcode.FORMERR, "section-count");
  const additional = count(10);
  if (additional > MAX_ADDITIONAL) return fault(Rcode.FORMERR, "section-count");
  const read = readName(b, offset, offset + HEADER, end, false);
  if (read === null || read.next + 4 > end) return fault(Rcode.FORMERR, "question");
  let at = read.next + 4;
  const question: Question = {
    name: read.name, end: at - offset,
    type: (b[read.next]! << 8) | b[read.next + 1]!, class: (b[read.next + 2]! << 8) | b[read.next + 3]!,
  };
  let edns: Edns | null = null;
  for (let i = 0; i < additional; i++) {
    const owner = readName(b, offset, at, end);
    if (owner === null || owner.next + 10 > end) return fault(Rcode.FORMERR, "additional", question, edns);
    const p = owner.next;
    const dataLength = (b[p + 8]! << 8) | b[p + 9]!;
    const data = p + 10;
    at = data + dataLength;
    if (at > end) return fault(Rcode.FORMERR, "additional", question, edns);
    if (((b[p]! << 8) | b[p + 1]!) !== Type.OPT) continue;
    if (edns !== null || owner.name.wire !== "\0") return fault(Rcode.FORMERR, "opt", question, null);
    for (let o = data; o < at; ) {
      if (o + 4 > at) return fault(Rcode.FORMERR, "opt", question, null);
      o += 4 + ((b[o + 2]! << 8) | b[o + 3]!);
      if (o > at) return fault(Rcode.FORMERR, "opt", question, null);
    }
    edns = { size: (b[p + 2]! << 8) | b[p + 3]!, version: b[p + 5]!, dnssec: (b[p + 6]! & 0x80) !== 0, options: dataLength > 0 };
  }
  if (at !== end) return fault(Rcode.FORMERR, "trailing", question, edns);
  if (edns !== null && edns.version !== 0) return fault(Rcode.BADVERS, "edns-version", question, edns);
  if (question.class !== Class.IN) return fault(Rcode.REFUSED, "class", question, edns);
  if (question.type === Type.OPT || question.type === 0) return fault(Rcode.FORMERR, "type", question, edns);
  // 128..255 are meta types and query types (RFC 6895 section 3.1); of them only ANY has an answer here.
  if (question.type >= 128 && question.type < 255) return fault(Rcode.REFUSED, "type", question, edns);
  return { kind: "question", question, edns };
}

/** Header flags that a query had, as one number; see Flag. */
export function flagsOf(b: Uint8Array, offset: number): number {
  return (b[offset + 2]! << 8) | b[offset + 3]!;
}

/** Flags of every answer the agent gives: QR, RA, the query's opcode and RD; CD is not taken over. */
export function answerFlags(queryFlags: number, rcode: Rcode): number {
  return Flag.QR | Flag.RA | (queryFlags & (0x7800 | Flag.RD)) | (rcode & 15);
}
