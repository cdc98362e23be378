/**
 * The first thing a TLS client says, read from octets as they come: RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2.
 *
 * Holds always: a hello in one-octet records or one-octet segments reads as the same hello in one piece; nothing is decided
 * before it is whole; any octets give a result and never an exception; no more than 64 KiB are kept. The name is canonical
 * or it is no name: one host_name, in lower case, letters, digits, hyphens and underscores, no dot at its end, no address.
 * Does not: judge the name, read what comes after the hello, or keep time.
 */
import { parseAddress } from "../addresses/address.js";

/** Largest ClientHello, with its header, octets; post-quantum ones are some 2 KiB. */
export const HELLO_MAX = 65_536;
/** Largest record, with what TLS 1.2 allowed beyond 2^14 (RFC 5246 section 6.2.3). */
const RECORD_MAX = 16_384 + 256;
/** Largest ClientHello as it comes: in records of one octet each. */
export const RAW_MAX = 6 * HELLO_MAX;
const HANDSHAKE = 22, CLIENT_HELLO = 1;
const EXTENSION = { serverName: 0, alpn: 16, earlyData: 42, supportedVersions: 43, ech: 0xfe0d } as const;

export type ServerName =
  | { readonly kind: "name"; readonly labels: readonly string[] }
  | { readonly kind: "absent" }
  /** There is one, and it is not a name: several, an address, odd octets. */
  | { readonly kind: "unreadable" };

export interface ClientHello {
  readonly serverName: ServerName;
  /** Protocol names as they are, in the client's order; empty: no ALPN. */
  readonly alpn: readonly string[];
  /** An outer Encrypted Client Hello, or a GREASE one: they cannot be told apart. */
  readonly ech: boolean;
  readonly earlyData: boolean;
  /** TLS 1.2 or later is offered. */
  readonly modern: boolean;
}

export type HelloState = "more" | "hello" | "not-tls" | "malformed" | "too-large";

/** Collects one ClientHello. Feed it until `state` is not "more". What it costs grows with the octets, not with their pieces. */
export class HelloReader {
  state: HelloState = "more";
  hello: ClientHello | null = null;
  readonly #raw = new Gathered();
  readonly #body = new Gathered();
  /** Of `raw`: records before this are in `body`. */
  #at = 0;

  push(chunk: Buffer): HelloState {
    this.#raw.add(chunk);
    if (this.state === "more") this.state = this.#read();
    return this.state;
  }

  /** All octets fed: they belong to whoever takes the connection over. */
  get octets(): Buffer { return this.#raw.octets; }
  /** Of those, what is the hello's own records; all that was looked at. */
  get read(): Buffer { return this.#raw.octets.subarray(0, this.#at); }
  /** What came after them and was not looked at. */
  get after(): Buffer { return this.#raw.octets.subarray(this.#at); }

  #read(): HelloState {
    const raw = this.#raw.octets;
    for (;;) {
      const at = this.#at, length = raw.length - at;
      const first = this.#body.octets.length === 0;
      if (length > 0 && raw[at] !== HANDSHAKE) return first ? "not-tls" : "malformed";
      if (length > 1 && raw[at + 1] !== 3) return first ? "not-tls" : "malformed";
      // One-octet records make 6 octets of 1: what is kept is bounded as well as what is read.
      if (raw.length > RAW_MAX) return "too-large";
      if (length < 5) return "more";
      const record = raw.readUInt16BE(at + 3);
      if (record === 0) return "malformed";
      if (record > RECORD_MAX) return "too-large";
      if (length > 5 && first && raw[at + 5] !== CLIENT_HELLO) return "malformed";
      if (length < 5 + record) return "more";
      this.#body.add(raw.subarray(at + 5, at + 5 + record));
      this.#at = at + 5 + record;
      const body = this.#body.octets;
      if (body.length < 4) continue;
      const size = body.readUIntBE(1, 3) + 4;
      if (size > HELLO_MAX) return "too-large";
      if (body.length < size) continue;
      // A hello ends its record (RFC 8446 section 5.1).
      if (body.length > size) return "malformed";
      this.hello = parseClientHello(body.subarray(4, size));
      return this.hello === null ? "malformed" : "hello";
    }
  }
}

/** Octets in one piece, however many pieces they came in; the first is kept as it is. */
class Gathered {
  octets: Buffer = Buffer.alloc(0);
  #room: Buffer = this.octets;

  add(chunk: Buffer): void {
    const length = this.octets.length + chunk.length;
    if (this.octets.length === 0) {
      this.octets = chunk;
      return;
    }
    if (length > this.#room.length) {
      this.#room = Buffer.alloc(2 * length);
      this.octets.copy(this.#room);
    }
    chunk.copy(this.#room, this.octets.length);
    this.octets = this.#room.subarray(0, length);
  }
}

/** Reads length-prefixed parts; a part that is longer than what is left makes everything after it null. */
class Cursor {
  #at = 0;
  failed = false;
  constructor(private readonly octets: Buffer) {}

  get done(): boolean { return this.#at === this.octets.length; }

  take(n: number): Buffer {
    if (this.failed || this.#at + n > this.octets.length) {
      this.failed = true;
      return Buffer.alloc(n);
    }
    return this.octets.subarray(this.#at, (this.#at += n));
  }

  number(octets: 1 | 2 | 3): number { return this.take(octets).readUIntBE(0, octets); }
  vector(lengthOctets: 1 | 2 | 3): Buffer {
    const length = this.number(lengthOctets);
    return this.failed ? Buffer.alloc(0) : this.take(length);
  }
}

/** @param body of the handshake message, without its header. null: malformed. */
export function parseClientHello(body: Buffer): ClientHello | null {
  const cursor = new Cursor(body);
  const legacyVersion = cursor.number(2);
  cursor.take(32);
  const session = cursor.vector(1), ciphers = cursor.vector(2), compressions = cursor.vector(1);
  if (cursor.failed || session.length > 32 || ciphers.length < 2 || ciphers.length % 2 !== 0 || compressions.length === 0) return null;
  const extensions = new Map<number, Buffer>();
  if (!cursor.done) {
    const list = new Cursor(cursor.vector(2));
    if (cursor.failed || !cursor.done) return null;
    while (!list.done) {
      const type = list.number(2), content = list.vector(2);
      if (list.failed || extensions.has(type)) return null; // each at most once (RFC 8446 section 4.2)
      extensions.set(type, content);
    }
  }
  const alpn = alpnOf(extensions.get(EXTENSION.alpn));
  if (alpn === null) return null;
  const versions = extensions.get(EXTENSION.supportedVersions);
  return {
    serverName: serverNameOf(extensions.get(EXTENSION.serverName)),
    alpn,
    ech: extensions.has(EXTENSION.ech),
    earlyData: extensions.has(EXTENSION.earlyData),
    modern: legacyVersion >= 0x0303 || versions !== undefined,
  };
}

function alpnOf(content: Buffer | undefined): string[] | null {
  if (content === undefined) return [];
  const outer = new Cursor(content);
  const list = new Cursor(outer.vector(2));
  if (outer.failed || !outer.done) return null;
  const protocols: string[] = [];
  while (!list.done) {
    const protocol = list.vector(1);
    if (list.failed || protocol.length === 0) return null;
    protocols.push(protocol.toString("latin1"));
  }
  return protocols.length === 0 ? null : protocols;
}

/** RFC 6066 section 3. */
function serverNameOf(content: Buffer | undefined): ServerName {
  if (content === undefined) return { kind: "absent" };
  const outer = new Cursor(content);
  const list = new Cursor(outer.vector(2));
  const type = list.number(1), name = list.vector(2);
  if (outer.failed || !outer.done || list.failed || !list.done || type !== 0) return { kind: "unreadable" };
  const labels = canonicalLabels(name.toString("latin1"));
  return labels === null ? { kind: "unreadable" } : { kind: "name", labels };
}

/** Labels of a host name as TLS and HTTP write it, lower case; null: it is none. */
export function canonicalLabels(text: string): string[] | null {
  if (text.length === 0 || text.length > 253) return null;
  // Before it is put into lower case: there are letters beyond ASCII whose lower case is within.
  if (!text.split(".").every((label) => /^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$/.test(label))) return null;
  const labels = text.toLowerCase().split(".");
  // A last label of digits is read as an address by some (WHATWG URL), and no such domain exists.
  if (/^(?:\d+|0x[0-9a-f]*)$/.test(labels.at(-1) as string) || parseAddress(text) !== null) return null;
  return labels;
}
