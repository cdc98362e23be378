/**
 * The octets of DNS (RFC 1035 section 4): names and records read strictly, names written with compression.
 *
 * Holds always: a name inside is one latin1 string of its wire form, uncompressed, ASCII letters in lower case, with the
 * root octet ("\x03api\x06github\x03com\x00"); two names are equal exactly when these strings are. Reading never goes
 * outside [start, end), follows compression pointers only backwards, and reports a fault by a negative position or null,
 * never by throwing: what a guest sends is no exception. Labels are never joined with dots except to be shown.
 * Does not: judge names, keep state, touch sockets.
 */

export const Type = {
  A: 1, NS: 2, CNAME: 5, SOA: 6, MB: 7, MG: 8, MR: 9, WKS: 11, PTR: 12, HINFO: 13, MINFO: 14, MX: 15, TXT: 16, RP: 17,
  AFSDB: 18, RT: 21, SIG: 24, PX: 26, AAAA: 28, NXT: 30, SRV: 33, NAPTR: 35, KX: 36, A6: 38, DNAME: 39, OPT: 41, APL: 42,
  DS: 43, IPSECKEY: 45, RRSIG: 46, NSEC: 47, DNSKEY: 48, NSEC3: 50, SVCB: 64, HTTPS: 65, SPF: 99, TKEY: 249, TSIG: 250,
  IXFR: 251, AXFR: 252, ANY: 255, CAA: 257, AMTRELAY: 260,
} as const;

export const Class = { IN: 1, CH: 3, ANY: 255 } as const;

export const Rcode = { NOERROR: 0, FORMERR: 1, SERVFAIL: 2, NXDOMAIN: 3, NOTIMP: 4, REFUSED: 5, BADVERS: 16 } as const;
export type Rcode = number;

/** Header flag bits of octets 2 and 3 read as one big-endian number (RFC 1035 section 4.1.1, RFC 4035 section 3). */
export const Flag = { QR: 0x8000, AA: 0x0400, TC: 0x0200, RD: 0x0100, RA: 0x0080, AD: 0x0020, CD: 0x0010 } as const;

export const HEADER = 12;
export const MAX_NAME = 255;
export const MAX_LABEL = 63;

export interface Name {
  /** wire form, lower case, uncompressed, latin1. */
  readonly wire: string;
  /** false when a label holds a dot, NUL, backslash or an octet outside printable ASCII: such a name matches no rule. */
  readonly matchable: boolean;
}

export const ROOT: Name = { wire: "\0", matchable: true };

/** true for octets that may stand in a label that a rule can match: printable ASCII without dot and backslash. */
const matchableOctet = new Uint8Array(256);
/** ASCII lower case. */
const lower = new Uint8Array(256);
for (let i = 0; i < 256; i++) {
  matchableOctet[i] = i >= 0x20 && i <= 0x7e && i !== 0x2e && i !== 0x5c ? 1 : 0;
  lower[i] = i >= 0x41 && i <= 0x5a ? i + 32 : i;
}

const scratch = Buffer.alloc(MAX_NAME + 1);
/** Results of the last skipName or readName besides the position: this module runs on one thread and re-enters nowhere. */
let scratchLength = 0;
let scratchMatchable = true;

/**
 * Reads a name at `at` into the scratch buffer in lower case.
 * @param compression false where a pointer is a fault: in a question, and in record data that may not be compressed.
 * @returns the position after the name, or -1: outside [message, end), a label over 63 octets or of a reserved kind, a
 *   name over 255 octets, a pointer that does not go backwards.
 */
function scan(b: Uint8Array, message: number, at: number, end: number, compression: boolean): number {
  let after = -1;
  let floor = at; // a pointer must aim below everything read so far of this name: this bounds the walk
  let n = 0;
  scratchMatchable = true;
  for (;;) {
    if (at >= end) return -1;
    const length = b[at]!;
    if (length === 0) {
      if (n + 1 > MAX_NAME) return -1;
      scratch[n++] = 0;
      scratchLength = n;
      return after < 0 ? at + 1 : after;
    }
    if (length <= MAX_LABEL) {
      if (at + 1 + length > end || n + 1 + length + 1 > MAX_NAME) return -1;
      scratch[n++] = length;
      for (let i = at + 1, last = at + length; i <= last; i++) {
        const octet = b[i]!;
        if (matchableOctet[octet] === 0) scratchMatchable = false;
        scratch[n++] = lower[octet]!;
      }
      at += 1 + length;
      continue;
    }
    if (!compression || length < 0xc0 || at + 2 > end) return -1;
    const target = message + (((length & 0x3f) << 8) | b[at + 1]!);
    if (target >= floor || target < message + HEADER) return -1;
    if (after < 0) after = at + 2;
    floor = target;
    at = target;
  }
}

/** The name that scan() left behind. */
function scanned(): Name {
  return { wire: scratch.toString("latin1", 0, scratchLength), matchable: scratchMatchable };
}

/** A position and the name before it; see scan() for the faults that give null. */
export function readName(b: Uint8Array, message: number, at: number, end: number, compression = true): { name: Name; next: number } | null {
  const next = scan(b, message, at, end, compression);
  return next < 0 ? null : { name: scanned(), next };
}

/** Labels of a name in order, root excluded; octets as latin1 characters, letters in lower case. */
export function labelsOf(name: Name): string[] {
  const labels: string[] = [];
  const wire = name.wire;
  for (let at = 0; at < wire.length; ) {
    const length = wire.charCodeAt(at);
    if (length === 0) break;
    labels.push(wire.slice(at + 1, at + 1 + length));
    at += 1 + length;
  }
  return labels;
}

/**
 * The name of these labels, or null when a label is empty or over 63 octets, a character is no octet, or the whole is
 * over 255 octets.
 */
export function nameOf(labels: readonly string[]): Name | null {
  let wire = "";
  let matchable = true;
  for (const label of labels) {
    if (label.length === 0 || label.length > MAX_LABEL) return null;
    let text = "";
    for (let i = 0; i < label.length; i++) {
      const code = label.charCodeAt(i);
      if (code > 255) return null;
      if (matchableOctet[code] === 0) matchable = false;
      text += String.fromCharCode(lower[code]!);
    }
    wire += String.fromCharCode(label.length) + text;
  }
  wire += "\0";
  return wire.length > MAX_NAME ? null : { wire, matchable };
}

/** Presentation form (RFC 1035 section 5.1) for people: dots and backslashes inside labels as \X, other octets as \DDD. */
export function showName(name: Name): string {
  const labels = labelsOf(name);
  if (labels.length === 0) return ".";
  return labels.map((label) => {
    let text = "";
    for (let i = 0; i < label.length; i++) {
      const code = label.charCodeAt(i);
      if (code === 0x2e || code === 0x5c) text += "\\" + label[i]!;
      else if (code <= 0x20 || code >= 0x7f) text += "\\" + String(code).padStart(3, "0");
      else text += label[i]!;
    }
    return text;
  }).join(".");
}

/** true when `name` is `ancestor` or lies below it. */
export function isWithin(name: Name, ancestor: Name): boolean {
  const wire = name.wire;
  const cut = wire.length - ancestor.wire.length;
  if (cut < 0 || !wire.endsWith(ancestor.wire)) return false;
  for (let at = 0; at <= cut; at += 1 + wire.charCodeAt(at)) if (at === cut) return true;
  return false;
}

export interface Record {
  readonly owner: Name;
  readonly type: number;
  readonly class: number;
  /** seconds; a value with the top bit set counts as 0 (RFC 2181 section 8). */
  readonly ttl: number;
  /** record data with its names uncompressed, a copy of its own. */
  readonly data: Uint8Array;
  /** the name in the data of CNAME, DNAME, NS, PTR, and the target of SVCB and HTTPS; null for other types. */
  readonly target: Name | null;
}

/** What a record's data is made of, for the types whose names may be compressed (RFC 3597 section 4) or must be checked. */
type Part = number | "name" | "plain-name" | "exact-name" | "text" | "texts" | "rest";
const shapes = new Map<number, readonly Part[]>([
  [Type.A, [4]], [Type.AAAA, [16]],
  [Type.NS, ["name"]], [Type.CNAME, ["name"]], [Type.PTR, ["name"]], [Type.DNAME, ["name"]],
  [Type.MB, ["name"]], [Type.MG, ["name"]], [Type.MR, ["name"]],
  [Type.SOA, ["name", "name", 20]], [Type.MINFO, ["name", "name"]], [Type.RP, ["name", "name"]],
  [Type.MX, [2, "name"]], [Type.AFSDB, [2, "name"]], [Type.RT, [2, "name"]], [Type.KX, [2, "name"]],
  [Type.PX, [2, "name", "name"]], [Type.SRV, [6, "name"]],
  [Type.NAPTR, [4, "text", "text", "text", "name"]],
  [Type.SIG, [18, "name", "rest"]], [Type.RRSIG, [18, "name", "rest"]],
  [Type.NXT, ["name", "rest"]], [Type.NSEC, ["exact-name", "rest"]],
  [Type.SVCB, [2, "plain-name", "rest"]], [Type.HTTPS, [2, "plain-name", "rest"]],
  [Type.HINFO, ["text", "text"]], [Type.TXT, ["texts"]], [Type.SPF, ["texts"]],
  [Type.DS, [4, "rest"]], [Type.DNSKEY, [4, "rest"]], [Type.CAA, [1, "text", "rest"]],
]);

const targetTypes = new Set<number>([Type.CNAME, Type.DNAME, Type.NS, Type.PTR, Type.SVCB, Type.HTTPS]);

const dataScratch = Buffer.alloc(65535 + 2 * MAX_NAME);

/**
 * Names of one message, all of whose records end at the same place: owners that point to where another one did are read once.
 * Counts the octets that names came to, for two octets of the message can stand for 255.
 */
export class MessageNames {
  octets = 0;
  private readonly owners = new Map<number, Name>();

  /** The owner at `at`, see scan(), and the position after it in `next`; null where there is none. */
  owner(b: Uint8Array, message: number, at: number, end: number): Name | null {
    const target = at + 2 <= end && b[at]! >= 0xc0 ? ((b[at]! & 0x3f) << 8) | b[at + 1]! : -1;
    const known = target < 0 ? undefined : this.owners.get(target);
    this.next = known === undefined ? scan(b, message, at, end, true) : at + 2;
    if (known !== undefined) return known;
    if (this.next < 0) return null;
    this.octets += scratchLength;
    const name = scanned();
    if (target >= 0) this.owners.set(target, name);
    return name;
  }
  next = 0;
}

/**
 * Reads the record at `at`.
 * @returns null when anything does not fit exactly: lengths, names, character strings, data that is shorter or longer than
 *   its type says. Types not known here are taken as opaque octets (RFC 3597).
 */
export function readRecord(b: Uint8Array, message: number, at: number, end: number, names: MessageNames): { record: Record; next: number } | null {
  const owner = names.owner(b, message, at, end);
  const afterOwner = names.next;
  if (owner === null || afterOwner + 10 > end) return null;
  const type = (b[afterOwner]! << 8) | b[afterOwner + 1]!;
  const cls = (b[afterOwner + 2]! << 8) | b[afterOwner + 3]!;
  let ttl = ((b[afterOwner + 4]! << 24) | (b[afterOwner + 5]! << 16) | (b[afterOwner + 6]! << 8) | b[afterOwner + 7]!);
  if (ttl < 0) ttl = type === Type.OPT ? ttl >>> 0 : 0;
  const length = (b[afterOwner + 8]! << 8) | b[afterOwner + 9]!;
  const start = afterOwner + 10;
  const stop = start + length;
  if (stop > end) return null;
  const shape = shapes.get(type);
  if (shape === undefined || cls !== Class.IN) {
    return { record: { owner, type, class: cls, ttl, data: copy(b, start, stop), target: null }, next: stop };
  }
  let target: Name | null = null;
  let position = start;
  let n = 0;
  const take = (count: number): boolean => {
    if (position + count > stop) return false;
    for (let i = 0; i < count; i++) dataScratch[n++] = b[position++]!;
    return true;
  };
  for (const part of shape) {
    if (typeof part === "number") {
      if (!take(part)) return null;
    } else if (part === "rest") {
      if (!take(stop - position)) return null;
    } else if (part === "text") {
      if (position >= stop || !take(1 + b[position]!)) return null;
    } else if (part === "texts") {
      if (position >= stop) return null;
      while (position < stop) if (!take(1 + b[position]!)) return null;
    } else {
      // Names may point anywhere back into the message, but their own octets end where the record's data ends.
      const next = scan(b, message, position, stop, part === "name");
      if (next < 0) return null;
      names.octets += scratchLength;
      if (targetTypes.has(type)) target = scanned();
      if (part === "name") {
        for (let i = 0; i < scratchLength; i++) dataScratch[n++] = scratch[i]!;
        position = next;
      } else if (!take(next - position)) return null; // case kept: signatures cover it (RFC 6840 section 5.1)
    }
  }
  if (position !== stop) return null;
  return { record: { owner, type, class: cls, ttl, data: copy(dataScratch, 0, n), target }, next: stop };
}

function copy(b: Uint8Array, start: number, stop: number): Uint8Array {
  const out = new Uint8Array(stop - start);
  for (let i = start; i < stop; i++) out[i - start] = b[i]!;
  return out;
}

/** Writes one message into a buffer of its own size limit; names compress to what was written before (RFC 1035 section 4.1.4). */
export class Writer {
  readonly buffer: Buffer;
  length = 0;
  /** position of each name suffix already written; made when first needed, for most answers repeat the question's name only. */
  private seen: Map<string, number> | null = null;
  private question = "";
  private questionAt = 0;

  /** @param limit octets; a write beyond it throws RangeError (a bug of the caller: sizes are judged before). */
  constructor(limit: number) {
    this.buffer = Buffer.allocUnsafe(limit);
  }

  u8(value: number): void {
    this.need(1);
    this.buffer[this.length++] = value;
  }

  u16(value: number): void {
    this.need(2);
    this.buffer[this.length++] = (value >>> 8) & 255;
    this.buffer[this.length++] = value & 255;
  }

  u32(value: number): void {
    this.u16((value >>> 16) & 0xffff);
    this.u16(value & 0xffff);
  }

  bytes(value: Uint8Array): void {
    this.need(value.length);
    this.buffer.set(value, this.length);
    this.length += value.length;
  }

  /** Writes the name, compressed where a suffix was written before, and remembers its suffixes. */
  name(name: Name): void {
    const wire = name.wire;
    if (wire === this.question && wire.length > 1) {
      this.u16(0xc000 | this.questionAt);
      return;
    }
    const seen = (this.seen ??= this.suffixes(this.question, this.questionAt));
    for (let at = 0; ;) {
      const length = wire.charCodeAt(at);
      if (length === 0) {
        this.u8(0);
        return;
      }
      const suffix = wire.slice(at);
      const position = seen.get(suffix);
      if (position !== undefined) {
        this.u16(0xc000 | position);
        return;
      }
      if (this.length < 0x4000) seen.set(suffix, this.length);
      this.need(1 + length);
      this.buffer.write(wire.slice(at, at + 1 + length), this.length, 1 + length, "latin1");
      this.length += 1 + length;
      at += 1 + length;
    }
  }

  /** Says that somebody else writes this name at `position` (the question's); before the first name is written. */
  remember(name: Name, position: number): void {
    this.question = name.wire;
    this.questionAt = position;
  }

  private suffixes(wire: string, position: number): Map<string, number> {
    const seen = new Map<string, number>();
    for (let at = 0; at < wire.length && wire.charCodeAt(at) !== 0; at += 1 + wire.charCodeAt(at)) seen.set(wire.slice(at), position + at);
    return seen;
  }

  private need(count: number): void {
    if (this.length + count > this.buffer.length) throw new RangeError(`DNS message over ${this.buffer.length} octets`);
  }
}
