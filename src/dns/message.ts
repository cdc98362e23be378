/**
 * Whole messages between the agent and its upstreams: the query encoded anew, the reply read strictly.
 *
 * Holds always: a query upstream has one question in lower case, RD, and an OPT with payload size and DO, and nothing
 * else; a reply is taken only when every octet of it parses and none is left over. Never throws on a reply.
 * Does not: match a reply to its query by server and port (upstream.ts), or follow chains (chain.ts).
 */
import { Class, Flag, HEADER, MessageNames, Type, readName, readRecord, type Name, type Record } from "./wire.js";

/** UDP payload size offered to upstreams and the most that a guest gets over UDP, octets: fits every path's MTU. */
export const UDP_SIZE = 1232;
/** Records in one reply that are read; a reply with more counts as malformed. */
export const MAX_RECORDS = 4096;
/** Octets that the names of a reply may come to for each of its own, and besides; more counts as malformed: it costs what it costs. */
const NAME_OCTETS = 6;
const NAME_OCTETS_BESIDES = 8_192;

/** Octets of an upstream query, id 0 in the first two. @param edns false asks without OPT, for servers that refuse it. */
export function encodeQuery(name: Name, type: number, dnssec: boolean, edns = true): Buffer {
  const question = name.wire.length + 4;
  const out = Buffer.allocUnsafe(HEADER + question + (edns ? 11 : 0)).fill(0);
  out.writeUInt16BE(Flag.RD, 2);
  out.writeUInt16BE(1, 4);
  out.write(name.wire, HEADER, "latin1");
  out.writeUInt16BE(type, HEADER + name.wire.length);
  out.writeUInt16BE(Class.IN, HEADER + name.wire.length + 2);
  if (edns) {
    out.writeUInt16BE(1, 10);
    const opt = HEADER + question;
    out.writeUInt16BE(Type.OPT, opt + 1);
    out.writeUInt16BE(UDP_SIZE, opt + 3);
    if (dnssec) out[opt + 7] = 0x80;
  }
  return out;
}

/**
 * true when octets 4..5 and the question section of the reply are exactly those of the query, octet by octet: an answer
 * in another case answers something that was not asked.
 */
export function questionMatches(query: Uint8Array, questionEnd: number, reply: Uint8Array, offset: number, length: number): boolean {
  if (length < questionEnd || reply[offset + 4] !== 0 || reply[offset + 5] !== 1) return false;
  for (let i = HEADER; i < questionEnd; i++) if (reply[offset + i] !== query[i]) return false;
  return true;
}

export interface Reply {
  readonly flags: number;
  /** with the OPT's upper bits (RFC 6891 section 6.1.3). */
  readonly rcode: number;
  readonly answers: readonly Record[];
  readonly authority: readonly Record[];
  readonly additional: readonly Record[];
}

/** Reads a reply; null when it is malformed in any octet or is no reply. */
export function parseReply(b: Uint8Array, offset: number, length: number): Reply | null {
  if (length < HEADER) return null;
  const end = offset + length;
  const word = (at: number): number => (b[offset + at]! << 8) | b[offset + at + 1]!;
  const flags = word(2);
  if ((flags & Flag.QR) === 0 || (flags & 0x7800) !== 0 || word(4) !== 1) return null;
  if (word(6) + word(8) + word(10) > MAX_RECORDS) return null;
  const question = readName(b, offset, offset + HEADER, end, false);
  if (question === null || question.next + 4 > end) return null;
  let at = question.next + 4;
  let rcode = flags & 15;
  let opts = 0;
  const sections: Record[][] = [[], [], []];
  const names = new MessageNames();
  const most = NAME_OCTETS * length + NAME_OCTETS_BESIDES;
  for (let section = 0; section < 3; section++) {
    for (let i = word(6 + 2 * section); i > 0; i--) {
      const read = readRecord(b, offset, at, end, names);
      if (read === null || names.octets > most) return null;
      at = read.next;
      if (read.record.type === Type.OPT) {
        if (section !== 2 || read.record.owner.wire !== "\0" || ++opts > 1) return null;
        rcode |= (read.record.ttl >>> 24) << 4;
      } else sections[section]!.push(read.record);
    }
  }
  if (at !== end) return null;
  return { flags, rcode, answers: sections[0]!, authority: sections[1]!, additional: sections[2]! };
}
