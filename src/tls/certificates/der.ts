/**
 * DER (X.690 section 10): writing what certificates are made of, and reading just enough to take a name and a key identifier
 * out of an operator's CA certificate.
 *
 * Holds always: what is written is minimal and definite in length; reading refuses what is not, and never looks past its buffer.
 * Does not know certificates (authority.ts); parses nothing that a guest or an upstream sent.
 */

/** Universal tags (X.680 section 8.4), constructed bit included where the type is. */
export const Tag = {
  boolean: 0x01, integer: 0x02, bitString: 0x03, octetString: 0x04, null: 0x05, oid: 0x06,
  utf8String: 0x0c, utcTime: 0x17, generalizedTime: 0x18, sequence: 0x30, set: 0x31,
} as const;

export function tlv(tag: number, ...contents: readonly Uint8Array[]): Buffer {
  const body = contents.length === 1 ? contents[0] as Uint8Array : Buffer.concat(contents);
  const n = body.length;
  const head = n < 0x80 ? [tag, n] : n < 0x100 ? [tag, 0x81, n] : n < 0x10000 ? [tag, 0x82, n >> 8, n & 255] : [tag, 0x83, n >> 16, (n >> 8) & 255, n & 255];
  return Buffer.concat([Buffer.from(head), body]);
}

export function sequence(...contents: readonly Uint8Array[]): Buffer { return tlv(Tag.sequence, ...contents); }

export function octetString(bytes: Uint8Array): Buffer { return tlv(Tag.octetString, bytes); }

export function utf8String(text: string): Buffer { return tlv(Tag.utf8String, Buffer.from(text, "utf8")); }

export function boolean(value: boolean): Buffer { return Buffer.from([Tag.boolean, 1, value ? 0xff : 0]); }

/** A non-negative integer of any length. */
export function unsigned(bytes: Uint8Array): Buffer {
  let start = 0;
  while (start < bytes.length - 1 && bytes[start] === 0) start++;
  const rest = bytes.subarray(start);
  return (rest[0] ?? 0) >= 0x80 ? tlv(Tag.integer, Buffer.of(0), rest) : tlv(Tag.integer, rest.length === 0 ? Buffer.of(0) : rest);
}

/** @param unused bits at the end of the last octet, 0..7. */
export function bitString(bytes: Uint8Array, unused = 0): Buffer { return tlv(Tag.bitString, Buffer.of(unused), bytes); }

export function oid(dotted: string): Buffer {
  const [first, second, ...rest] = dotted.split(".").map(Number) as [number, number, ...number[]];
  const octets: number[] = [];
  for (const arc of [first * 40 + second, ...rest]) {
    const groups = [arc & 0x7f];
    for (let left = arc >>> 7; left > 0; left >>>= 7) groups.unshift((left & 0x7f) | 0x80);
    octets.push(...groups);
  }
  return tlv(Tag.oid, Buffer.from(octets));
}

/** UTCTime up to 2049, GeneralizedTime after (RFC 5280 section 4.1.2.5); whole seconds, UTC. */
export function time(ms: number): Buffer {
  const digits = new Date(Math.floor(ms / 1000) * 1000).toISOString().replace(/[-:T]/g, "").replace(/\.\d+Z$/, "Z");
  const late = Number(digits.slice(0, 4)) >= 2050;
  return tlv(late ? Tag.generalizedTime : Tag.utcTime, Buffer.from(late ? digits : digits.slice(2), "latin1"));
}

/** [n] EXPLICIT or constructed. */
export function context(n: number, ...contents: readonly Uint8Array[]): Buffer { return tlv(0xa0 | n, ...contents); }

/** [n] IMPLICIT of a primitive type. */
export function implicit(n: number, bytes: Uint8Array): Buffer { return tlv(0x80 | n, bytes); }

export interface Element {
  readonly tag: number;
  /** whole: tag, length and content. */
  readonly raw: Buffer;
  readonly content: Buffer;
  /** offset behind it. */
  readonly end: number;
}

/** The element at an offset. @throws RangeError when it is not DER or reaches past the buffer. */
export function readElement(b: Buffer, at: number): Element {
  const tag = b[at], first = b[at + 1];
  if (tag === undefined || first === undefined || (tag & 0x1f) === 0x1f) throw new RangeError("not DER: no short tag and length");
  let length = first, start = at + 2;
  if (first >= 0x80) {
    const octets = first & 0x7f;
    if (octets === 0 || octets > 3 || start + octets > b.length) throw new RangeError("not DER: length");
    length = b.readUIntBE(start, octets);
    if (length < 0x80 || (octets > 1 && length < 1 << (8 * (octets - 1)))) throw new RangeError("not DER: length not minimal");
    start += octets;
  }
  if (start + length > b.length) throw new RangeError("not DER: past the end");
  return { tag, raw: b.subarray(at, start + length), content: b.subarray(start, start + length), end: start + length };
}

/** The elements within a constructed one. @throws RangeError. */
export function children(element: Element): Element[] {
  const found: Element[] = [];
  for (let at = 0; at < element.content.length;) {
    const child = readElement(element.content, at);
    found.push(child);
    at = child.end;
  }
  return found;
}
