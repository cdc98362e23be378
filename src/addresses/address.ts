/**
 * IP addresses and prefixes as bytes: parsing, formatting, containment.
 *
 * Holds always: an address is 16 octets in network order, an IPv4 address is IPv4-mapped (::ffff:a.b.c.d); parsing is
 * strict and never guesses (no octal, no short forms, no zone), so that two readers of one text cannot differ.
 * Does not resolve names and does not judge addresses (see groups.ts).
 */

/** 16 octets in network order; IPv4 as IPv4-mapped. */
export type Address = Uint8Array;

/** A prefix. `bytes` is masked or not as parsed; `length` counts bits of the 16 octets (IPv4: 96 + n). */
export interface Prefix {
  readonly bytes: Uint8Array;
  readonly length: number;
  readonly family: 4 | 6;
}

const MAPPED_BITS = 96;

/** Whether the address is IPv4 (IPv4-mapped, RFC 4291 section 2.5.5.2). */
export function isV4(address: Uint8Array): boolean {
  for (let i = 0; i < 10; i++) if (address[i] !== 0) return false;
  return address[10] === 0xff && address[11] === 0xff;
}

/** The address of four IPv4 octets. */
export function fromV4(a: number, b: number, c: number, d: number): Address {
  return Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d);
}

/**
 * Four decimal parts without leading zeros (RFC 6943 section 3.1.1 "strict"), or RFC 4291 section 2.2 text for IPv6. Null
 * for everything else, zones included.
 */
export function parseAddress(text: string): Address | null {
  return text.includes(":") ? parseV6(text) : parseV4(text);
}

function parseV4(text: string): Address | null {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (match === null) return null;
  const octets = match.slice(1);
  if (octets.some((octet) => Number(octet) > 255 || (octet.length > 1 && octet.startsWith("0")))) return null;
  const [a, b, c, d] = octets.map(Number) as [number, number, number, number];
  return fromV4(a, b, c, d);
}

function parseV6(text: string): Address | null {
  if (text.length > 45) return null;
  let head = text;
  let tail: Uint8Array | null = null;
  const lastColon = text.lastIndexOf(":");
  if (text.includes(".", lastColon)) {
    const embedded = parseV4(text.slice(lastColon + 1));
    if (embedded === null) return null;
    tail = embedded.subarray(12);
    // The dotted quad stands for two groups; a "::" directly before it keeps both colons.
    head = text.slice(0, lastColon + 1) + "0:0";
  }
  const halves = head.split("::");
  if (halves.length > 2) return null;
  const left = groupsOf(halves[0] as string);
  const right = halves.length === 2 ? groupsOf(halves[1] as string) : [];
  if (left === null || right === null) return null;
  const missing = 8 - left.length - right.length;
  if (halves.length === 2 ? missing < 1 : missing !== 0) return null;
  const words = [...left, ...new Array<number>(missing).fill(0), ...right];
  const bytes = new Uint8Array(16);
  words.forEach((word, i) => {
    bytes[2 * i] = word >> 8;
    bytes[2 * i + 1] = word & 255;
  });
  if (tail !== null) bytes.set(tail, 12);
  return bytes;
}

function groupsOf(text: string): number[] | null {
  if (text === "") return [];
  const parts = text.split(":");
  return parts.every((part) => /^[0-9a-fA-F]{1,4}$/.test(part)) ? parts.map((part) => Number.parseInt(part, 16)) : null;
}

/** RFC 5952 text; IPv4-mapped addresses as a dotted quad alone. */
export function formatAddress(bytes: Uint8Array): string {
  if (isV4(bytes)) return bytes.subarray(12, 16).join(".");
  const words = Array.from({ length: 8 }, (_, i) => ((bytes[2 * i] as number) << 8) | (bytes[2 * i + 1] as number));
  let start = -1;
  let length = 1; // a single zero group is not shortened (RFC 5952 section 4.2.2)
  for (let i = 0; i < 8; i++) {
    let end = i;
    while (end < 8 && words[end] === 0) end++;
    if (end - i > length) {
      start = i;
      length = end - i;
    }
    if (end > i) i = end;
  }
  const hex = words.map((word) => word.toString(16));
  if (start < 0) return hex.join(":");
  return `${hex.slice(0, start).join(":")}::${hex.slice(start + length).join(":")}`;
}

/**
 * `address/length`, or a bare address as a prefix of full length. The bits behind the length may be set: see hasHostBits.
 * The family is that of the text: `::ffff:10.0.0.0/104` is IPv6.
 */
export function parsePrefix(text: string): Prefix | null {
  const slash = text.indexOf("/");
  const bytes = parseAddress(slash < 0 ? text : text.slice(0, slash));
  if (bytes === null) return null;
  const family = text.includes(":") ? 6 : 4;
  const width = family === 4 ? 32 : 128;
  let length = width;
  if (slash >= 0) {
    const digits = text.slice(slash + 1);
    if (!/^(0|[1-9]\d{0,2})$/.test(digits)) return null;
    length = Number(digits);
    if (length > width) return null;
  }
  return { bytes, length: family === 4 ? MAPPED_BITS + length : length, family };
}

/** The prefix that holds one address. */
export function addressPrefix(address: Address): Prefix {
  return { bytes: address, length: 128, family: isV4(address) ? 4 : 6 };
}

/** Length as people write it: 0..32 for IPv4, 0..128 for IPv6. */
export function prefixBits(prefix: Prefix): number {
  return prefix.family === 4 ? prefix.length - MAPPED_BITS : prefix.length;
}

/** `address/length`; a prefix of full length without the length. */
export function formatPrefix(prefix: Prefix): string {
  const text = formatAddress(prefix.bytes);
  return prefix.length === 128 ? text : `${text}/${prefixBits(prefix)}`;
}

/** The first `length` bits of the address, the rest zero. */
export function mask(bytes: Uint8Array, length: number): Uint8Array {
  const masked = new Uint8Array(16);
  for (let i = 0; i < 16; i++) {
    const bits = Math.min(8, Math.max(0, length - 8 * i));
    masked[i] = (bytes[i] as number) & (0xff00 >> bits) & 0xff;
  }
  return masked;
}

/** The same prefix with the bits behind its length cleared. */
export function maskPrefix(prefix: Prefix): Prefix {
  return { ...prefix, bytes: mask(prefix.bytes, prefix.length) };
}

/** Whether bits behind the length are set: `10.0.0.1/8`. */
export function hasHostBits(prefix: Prefix): boolean {
  return compareBytes(prefix.bytes, mask(prefix.bytes, prefix.length)) !== 0;
}

/** Whether the first `length` bits are equal. */
export function sameBits(a: Uint8Array, b: Uint8Array, length: number): boolean {
  const whole = length >> 3;
  for (let i = 0; i < whole; i++) if (a[i] !== b[i]) return false;
  const rest = length & 7;
  return rest === 0 || (((a[whole] as number) ^ (b[whole] as number)) & (0xff00 >> rest) & 0xff) === 0;
}

/**
 * Whether the address lies in the prefix. An IPv4 address lies in IPv4 prefixes only, and only an address given as
 * family 6 (an IPv4-mapped destination inside an IPv6 packet) in IPv6 ones.
 */
export function prefixContains(prefix: Prefix, address: Address, family: 4 | 6 = isV4(address) ? 4 : 6): boolean {
  return prefix.family === family && sameBits(prefix.bytes, address, prefix.length);
}

/** Whether every address of `inner` lies in `outer`. */
export function prefixWithin(inner: Prefix, outer: Prefix): boolean {
  return inner.family === outer.family && inner.length >= outer.length && sameBits(inner.bytes, outer.bytes, outer.length);
}

/** Order of two byte strings of equal length. */
export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length; i++) {
    const difference = (a[i] as number) - (b[i] as number);
    if (difference !== 0) return difference;
  }
  return 0;
}

/** Order in which a prefix comes directly before everything it covers. */
export function comparePrefixes(a: Prefix, b: Prefix): number {
  return a.family - b.family || compareBytes(a.bytes, b.bytes) || a.length - b.length;
}

/** Keys of a kernel longest-prefix trie (struct lpm4, struct lpm6), one after another in the machine's byte order. */
export function encodeTrieKeys(prefixes: readonly Prefix[], family: 4 | 6): Uint8Array {
  const octets = family === 4 ? 4 : 16;
  const stride = 4 + octets;
  const keys = new Uint8Array(prefixes.length * stride);
  const lengths = new Uint32Array(keys.buffer);
  prefixes.forEach((prefix, i) => {
    lengths[(i * stride) / 4] = prefixBits(prefix);
    keys.set(prefix.bytes.subarray(16 - octets), i * stride + 4);
  });
  return keys;
}
