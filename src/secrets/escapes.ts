/**
 * Text with its percent or JSON escapes undone, each octet with where it came from.
 *
 * Holds always: what is not a whole escape stays as it is; an escape that the text ends in the middle of is told apart, since more
 * text may complete it. Pure.
 */

/** Octets with the places (first, end) of the source that each came from. */
export interface Mapped {
  readonly octets: Buffer;
  readonly from: Int32Array;
  readonly to: Int32Array;
  /** Where in the source the last, unfinished escape begins; null: there is none. Its octets are not in `octets`. */
  readonly unfinished: number | null;
}

const PERCENT = 0x25, BACKSLASH = 0x5c, U = 0x75;
const hex = new Int8Array(256).fill(-1);
for (const [i, digit] of [..."0123456789abcdef"].entries()) hex[digit.charCodeAt(0)] = hex[digit.toUpperCase().charCodeAt(0)] = i;

/** @param base added to every place of the source. */
export function identity(octets: Buffer, base: number): Mapped {
  const from = new Int32Array(octets.length), to = new Int32Array(octets.length);
  for (let i = 0; i < octets.length; i++) {
    from[i] = base + i;
    to[i] = base + i + 1;
  }
  return { octets, from, to, unfinished: null };
}

export function percentDecoded(source: Mapped): Mapped {
  return decoded(source, (octets, i) => {
    if (octets[i] !== PERCENT) return 0;
    const a = octets[i + 1], b = octets[i + 2];
    if (a === undefined) return -1;
    const high = hex[a] as number;
    if (high < 0) return 0;
    if (b === undefined) return -1;
    const low = hex[b] as number;
    if (low < 0) return 0;
    scratch[0] = high << 4 | low;
    written = 1;
    return 3;
  });
}

/** The same without places: many times faster, for a first look. An unfinished escape stays as it is. */
export function percentPlain(octets: Buffer): Buffer {
  const out = Buffer.allocUnsafe(octets.length), { length } = octets;
  let to = 0;
  for (let i = 0; i < length; i++) {
    const octet = octets[i] as number;
    if (octet === PERCENT && i + 2 < length) {
      const high = hex[octets[i + 1] as number] as number, low = hex[octets[i + 2] as number] as number;
      if (high >= 0 && low >= 0) {
        out[to++] = high << 4 | low;
        i += 2;
        continue;
      }
    }
    out[to++] = octet;
  }
  return out.subarray(0, to);
}

/** `\uXXXX` as UTF-8, also two of them for what is beyond the basic plane (a surrogate alone stays as it is), and the short escapes. */
export function jsonDecoded(source: Mapped): Mapped {
  return decoded(source, (octets, i) => {
    if (octets[i] !== BACKSLASH) return 0;
    const kind = octets[i + 1];
    if (kind === undefined) return -1;
    if (kind === 0x2f || kind === 0x22 || kind === BACKSLASH) {
      scratch[0] = kind;
      written = 1;
      return 2;
    }
    if (kind !== U) return 0;
    let code = fourDigits(octets, i + 2), taken = 6;
    if (code < 0) return code === UNFINISHED ? -1 : 0;
    if (code >= 0xd800 && code < 0xe000) {
      if (code >= 0xdc00) return 0;
      if (octets[i + 6] === undefined) return -1;
      if (octets[i + 6] !== BACKSLASH) return 0;
      if (octets[i + 7] === undefined) return -1;
      if (octets[i + 7] !== U) return 0;
      const low = fourDigits(octets, i + 8);
      if (low === UNFINISHED) return -1;
      if (low < 0xdc00 || low >= 0xe000) return 0;
      code = 0x10000 + ((code & 0x3ff) << 10 | (low & 0x3ff));
      taken = 12;
    }
    if (code < 0x80) {
      scratch[0] = code;
      written = 1;
    } else if (code < 0x800) {
      scratch[0] = 0xc0 | code >> 6;
      scratch[1] = 0x80 | (code & 63);
      written = 2;
    } else if (code < 0x10000) {
      scratch[0] = 0xe0 | code >> 12;
      scratch[1] = 0x80 | (code >> 6 & 63);
      scratch[2] = 0x80 | (code & 63);
      written = 3;
    } else {
      scratch[0] = 0xf0 | code >> 18;
      scratch[1] = 0x80 | (code >> 12 & 63);
      scratch[2] = 0x80 | (code >> 6 & 63);
      scratch[3] = 0x80 | (code & 63);
      written = 4;
    }
    return taken;
  });
}

/** Fewer than four digits, and the text's end. */
const UNFINISHED = -2;

/** What four hexadecimal digits say; -1: they are none. */
function fourDigits(octets: Buffer, start: number): number {
  let code = 0;
  for (let k = start; k < start + 4; k++) {
    const digit = octets[k];
    if (digit === undefined) return UNFINISHED;
    const value = hex[digit] as number;
    if (value < 0) return -1;
    code = code << 4 | value;
  }
  return code;
}

const scratch = Buffer.alloc(4);
let written = 0;

/** @param at octets of the escape at a place, its meaning put into `scratch`; 0: none; -1: one that is not finished. */
function decoded(source: Mapped, at: (octets: Buffer, place: number) => number): Mapped {
  const { octets } = source;
  const out = Buffer.allocUnsafe(octets.length), from = new Int32Array(octets.length), to = new Int32Array(octets.length);
  let length = 0, i = 0, { unfinished } = source;
  while (i < octets.length) {
    const taken = at(octets, i);
    if (taken < 0) {
      unfinished = source.from[i] as number;
      break;
    }
    if (taken === 0) {
      out[length] = octets[i] as number;
      from[length] = source.from[i] as number;
      to[length++] = source.to[i] as number;
      i++;
      continue;
    }
    for (let k = 0; k < written; k++) {
      out[length] = scratch[k] as number;
      from[length] = source.from[i] as number;
      to[length++] = source.to[i + taken - 1] as number;
    }
    i += taken;
  }
  return { octets: out.subarray(0, length), from: from.subarray(0, length), to: to.subarray(0, length), unfinished };
}

/** Places of whole or unfinished escapes from `start` on, ascending. */
export function escapes(octets: Buffer, start: number): number[] {
  const found: number[] = [];
  for (let i = octets.indexOf(PERCENT, start); i >= 0; i = octets.indexOf(PERCENT, i + 1)) {
    const a = octets[i + 1], b = octets[i + 2];
    if (a === undefined || ((hex[a] as number) >= 0 && (b === undefined || (hex[b] as number) >= 0))) found.push(i);
  }
  const percents = found.length;
  for (let i = octets.indexOf(BACKSLASH, start); i >= 0; i = octets.indexOf(BACKSLASH, i + 1)) {
    const kind = octets[i + 1];
    if (kind === undefined || kind === U) found.push(i);
  }
  return percents === 0 || percents === found.length ? found : found.sort((a, b) => a - b);
}
