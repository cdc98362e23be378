/**
 * Answers in wire form: the records of one resolved question encoded once, and whole messages to a guest made from them.
 *
 * Holds always: the encoded records fit behind any spelling of the same question (its length is the same, and owner names
 * point to it), so that the guest's own spelling is echoed by copying its octets; a message over the guest's size carries
 * TC and no records; OPT stands in an answer only when the guest sent one (RFC 6891 section 7).
 * Does not: know sandboxes or time; TTLs are aged and capped by numbers given.
 */
import { HEADER, Flag, Rcode, Type, Writer, type Name, type Record } from "./wire.js";
import { edeOption, type EdeInfo } from "./ede.js";
import { UDP_SIZE } from "./message.js";
import type { Edns } from "./question.js";
import { answerFlags, flagsOf } from "./question.js";

/** Records behind the question of one name, ready to copy. */
export interface WireAnswer {
  readonly rcode: number;
  readonly authentic: boolean;
  readonly body: Uint8Array;
  readonly answerCount: number;
  readonly authorityCount: number;
  /** where TTLs stand in body, octets. */
  readonly ttlAt: Uint16Array;
  /** the TTLs as they came, seconds. */
  readonly ttls: Uint32Array;
}

const compressible = new Set<number>([Type.NS, Type.CNAME, Type.PTR]);

/** Encodes records to stand behind a question for `name`; null when they would not fit into a DNS message. */
export function encodeAnswer(
  name: Name, rcode: number, authentic: boolean, answers: readonly Record[], authority: readonly Record[],
): WireAnswer | null {
  let size = HEADER + name.wire.length + 4;
  const start = size;
  for (const section of [answers, authority]) for (const r of section) size += r.owner.wire.length + 10 + r.data.length;
  const w = new Writer(size);
  w.length = start;
  w.remember(name, HEADER);
  const ttlAt: number[] = [];
  const ttls: number[] = [];
  for (const section of [answers, authority]) {
    for (const r of section) {
      w.name(r.owner);
      w.u16(r.type);
      w.u16(r.class);
      ttlAt.push(w.length - start);
      ttls.push(r.ttl);
      w.u32(r.ttl);
      const lengthAt = w.length;
      w.u16(0);
      if (r.target !== null && compressible.has(r.type)) w.name(r.target);
      else w.bytes(r.data);
      w.buffer.writeUInt16BE(w.length - lengthAt - 2, lengthAt);
    }
  }
  // Room for OPT with EDE beside the largest message.
  if (w.length > 65_535 - 256) return null;
  return {
    rcode, authentic, body: new Uint8Array(w.buffer.subarray(start, w.length)),
    answerCount: answers.length, authorityCount: authority.length,
    ttlAt: Uint16Array.from(ttlAt), ttls: Uint32Array.from(ttls),
  };
}

const optionCache = new Map<EdeInfo, Uint8Array>();
function optionOf(info: EdeInfo): Uint8Array {
  let option = optionCache.get(info);
  if (option === undefined) {
    option = edeOption(info);
    if (optionCache.size < 256) optionCache.set(info, option);
  }
  return option;
}

/** Largest answer for a guest, octets: what its OPT offers within our bounds, 512 without (RFC 1035), 65,535 over TCP. */
export function sizeLimit(edns: Edns | null, stream: boolean): number {
  if (stream) return 65_535;
  return edns === null ? 512 : Math.max(512, Math.min(UDP_SIZE, edns.size));
}

/** Where the last message built by buildMessage was cut short. */
export interface Built { length: number; truncated: boolean }
const built: Built = { length: 0, truncated: false };

/**
 * Writes a whole answer into out at 0, with the query's id.
 * @param questionEnd 0 when no question is echoed; -1 when not even the query's flags were there.
 * @param age seconds to subtract from TTLs, @param cap most that a TTL shows, seconds.
 * @returns one object used again by the next call.
 */
export function buildMessage(
  out: Buffer, query: Uint8Array, offset: number, questionEnd: number, rcode: number, answer: WireAnswer | null,
  age: number, cap: number, edns: Edns | null, ede: EdeInfo | null, limit: number,
): Readonly<Built> {
  const queryFlags = questionEnd < 0 ? 0 : flagsOf(query, offset);
  let flags = answerFlags(queryFlags, rcode);
  const option = edns !== null && ede !== null ? optionOf(ede) : null;
  const optLength = edns === null ? 0 : 11 + (option === null ? 0 : option.length);
  const head = questionEnd <= 0 ? HEADER : questionEnd;
  const truncated = answer !== null && head + answer.body.length + optLength > limit;
  if (truncated) {
    flags |= Flag.TC;
    answer = null;
  }
  if (answer !== null && answer.authentic && ((queryFlags & Flag.AD) !== 0 || edns?.dnssec === true)) flags |= Flag.AD;
  out[0] = query[offset]!;
  out[1] = query[offset + 1]!;
  out[2] = flags >> 8;
  out[3] = flags & 255;
  out[4] = 0;
  out[5] = questionEnd <= 0 ? 0 : 1;
  out[6] = 0;
  out[7] = 0;
  out[8] = 0;
  out[9] = 0;
  out[10] = 0;
  out[11] = edns === null ? 0 : 1;
  for (let i = HEADER; i < questionEnd; i++) out[i] = query[offset + i]!;
  let n = head;
  if (answer !== null) {
    out[6] = answer.answerCount >> 8;
    out[7] = answer.answerCount & 255;
    out[8] = answer.authorityCount >> 8;
    out[9] = answer.authorityCount & 255;
    out.set(answer.body, n);
    patchTtls(out, n, answer, age, cap);
    n += answer.body.length;
  }
  if (edns !== null) {
    out[n] = 0;
    out[n + 1] = 0;
    out[n + 2] = Type.OPT;
    out[n + 3] = UDP_SIZE >> 8;
    out[n + 4] = UDP_SIZE & 255;
    out[n + 5] = rcode >> 4;
    out[n + 6] = 0;
    out[n + 7] = edns.dnssec ? 0x80 : 0;
    out[n + 8] = 0;
    out[n + 9] = 0;
    out[n + 10] = 0;
    n += 11;
    if (option !== null) {
      out[n - 2] = option.length >> 8;
      out[n - 1] = option.length & 255;
      out.set(option, n);
      n += option.length;
    }
  }
  built.length = n;
  built.truncated = truncated;
  return built;
}

/** Writes TTLs less age, and not above cap, into the records that were copied to `at`. */
export function patchTtls(out: Uint8Array, at: number, answer: WireAnswer, age: number, cap: number): void {
  for (let i = 0; i < answer.ttlAt.length; i++) {
    const ttl = Math.max(0, Math.min(answer.ttls[i]! - age, cap));
    const p = at + answer.ttlAt[i]!;
    out[p] = ttl >>> 24;
    out[p + 1] = (ttl >>> 16) & 255;
    out[p + 2] = (ttl >>> 8) & 255;
    out[p + 3] = ttl & 255;
  }
}

/** Seconds that a refusal by policy may be kept by the guest: short, so that a policy change is soon seen. */
export const DENIED_TTL = 15;

const deniedSoa = (() => {
  const data = Buffer.concat([Buffer.from("\x08enforcer\x07invalid\0\x0ahostmaster\x08enforcer\x07invalid\0", "latin1"), Buffer.alloc(20)]);
  const numbers = [1, 3_600, 600, 86_400, DENIED_TTL]; // serial, refresh, retry, expire, minimum
  numbers.forEach((value, i) => data.writeUInt32BE(value, data.length - 20 + 4 * i));
  return new Uint8Array(data);
})();

/**
 * The negative SOA of a refusal. The zone cut is not known (nobody was asked), so the question's own name stands as the
 * zone: nothing above it is said to be absent.
 */
export function deniedAnswer(name: Name, rcode: number): WireAnswer {
  const soa: Record = { owner: name, type: Type.SOA, class: 1, ttl: DENIED_TTL, data: deniedSoa, target: null };
  return encodeAnswer(name, rcode, false, [], [soa])!;
}

const anyData = new Uint8Array(Buffer.from("\x07RFC8482\0", "latin1"));

/** RFC 8482 section 4.2: the answer to ANY. */
export function anyAnswer(name: Name): WireAnswer {
  const hinfo: Record = { owner: name, type: Type.HINFO, class: 1, ttl: 3_600, data: anyData, target: null };
  return encodeAnswer(name, Rcode.NOERROR, false, [hinfo], [])!;
}
