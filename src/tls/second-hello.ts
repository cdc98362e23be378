/**
 * What passes on a connection that is spliced, until it is certain that no second ClientHello follows: after a HelloRetryRequest
 * the client says everything again (RFC 8446 section 4.1.4), and might name another server.
 *
 * Holds always: octets of the guest are given on only as far as they were looked at; a second hello that does not name the
 * same server, or another handshake message in its place, ends the connection before the far side sees it, however the far side cuts
 * its answer into records. What is kept is one hello or a record's head; what it costs grows with the octets, not with their pieces. Looks at record headers and hellos, decrypts nothing.
 */
import { HelloReader } from "./hello.js";

const CHANGE_CIPHER_SPEC = 20, ALERT = 21, HANDSHAKE = 22, APPLICATION_DATA = 23;
const CLIENT_HELLO = 1, SERVER_HELLO = 2;
const RECORD_MAX = 16_384 + 256;
const RECORD_HEADER = 5;
/** Of the far side's first message: its header, version, random; and where the random begins. */
const SERVER_HEAD = 38, RANDOM = 6;
/** Octets in which that is: a record for each of its octets, and two warnings before. */
const SERVER_MOST = SERVER_HEAD * (RECORD_HEADER + 1) + 2 * (RECORD_HEADER + 2);
/** Of a record, what says what it is: its header and the first octet of its content. */
const RECORD_HEAD = 6;
/** SHA-256 of "HelloRetryRequest": the random of a ServerHello that is one. */
const RETRY = Buffer.from("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c", "hex");

/** What a chunk of the guest may do: pass (as far as given), or end the connection. */
export type Passed = { readonly pass: Buffer } | "refuse";

export class SecondHello {
  /** Nothing has to be looked at any more. */
  done = false;
  /** The far side's first octets, until it is known what they are. */
  #server: Buffer = Buffer.alloc(0);
  /** First octets of a record that is not known yet, fewer than RECORD_HEAD. */
  #head: Buffer = Buffer.alloc(0);
  /** Octets of a known record that pass unlooked. */
  #left = 0;
  #reader: HelloReader | null = null;

  /** @param name of the first hello, labels joined by dots. */
  constructor(private readonly name: string) {}

  /** Octets of the far side, in order; they always pass. */
  fromServer(chunk: Buffer): void {
    if (this.done || this.#server.length >= SERVER_MOST) return;
    this.#server = Buffer.concat([this.#server, chunk.subarray(0, SERVER_MOST)]).subarray(0, SERVER_MOST);
    const head = handshakeIn(this.#server).subarray(0, SERVER_HEAD);
    if (this.#reader === null && head.length === SERVER_HEAD && head[0] === SERVER_HELLO && !head.subarray(RANDOM).equals(RETRY)) this.done = true;
  }

  /** Octets of the guest after its first hello. */
  fromGuest(chunk: Buffer): Passed {
    if (this.#reader !== null) return this.#hello(this.#reader, chunk);
    const octets = this.#head.length === 0 ? chunk : Buffer.concat([this.#head, chunk]);
    let at = Math.min(this.#left, octets.length);
    this.#left -= at;
    while (!this.done && octets.length - at >= RECORD_HEAD) {
      const type = octets[at] as number, length = octets.readUInt16BE(at + 3);
      if (type < CHANGE_CIPHER_SPEC || type > APPLICATION_DATA || length === 0 || length > RECORD_MAX) return "refuse";
      if (type === HANDSHAKE && octets[at + RECORD_HEADER] === CLIENT_HELLO) {
        this.#head = Buffer.alloc(0);
        const passed = this.#hello((this.#reader = new HelloReader()), octets.subarray(at));
        return passed === "refuse" ? passed : { pass: at === 0 ? passed.pass : Buffer.concat([octets.subarray(0, at), passed.pass]) };
      }
      // It comes after a ServerHello that is none of these, and nothing is looked at then: a hello may stand behind it.
      if (type === HANDSHAKE) return "refuse";
      const end = Math.min(at + RECORD_HEADER + length, octets.length);
      this.#left = at + RECORD_HEADER + length - end;
      at = end;
    }
    if (this.done) at = octets.length;
    this.#head = octets.subarray(at);
    return { pass: octets.subarray(0, at) };
  }

  #hello(reader: HelloReader, chunk: Buffer): Passed {
    if (reader.push(chunk) === "more") return { pass: Buffer.alloc(0) };
    const named = reader.hello?.serverName;
    if (named?.kind !== "name" || named.labels.join(".") !== this.name) return "refuse";
    this.done = true;
    this.#reader = null;
    return { pass: reader.octets };
  }
}

/** What the handshake records at the beginning hold. Warnings may stand between them, as servers that know the name as another's send one; another record ends it. */
function handshakeIn(octets: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at + RECORD_HEADER <= octets.length && (octets[at] === HANDSHAKE || octets[at] === ALERT);) {
    const end = at + RECORD_HEADER + octets.readUInt16BE(at + 3);
    if (octets[at] === HANDSHAKE) parts.push(octets.subarray(at + RECORD_HEADER, end));
    at = end;
  }
  return Buffer.concat(parts);
}
