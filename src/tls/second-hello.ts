/**
 * What passes on a connection that is spliced, until it is certain that no second ClientHello follows: after a HelloRetryRequest
 * the client says everything again (RFC 8446 section 4.1.4), and might name another server.
 *
 * Holds always: octets of the guest are given on only as far as they were looked at; a second hello that does not name the
 * same server, or another handshake message in its place, ends the connection before the far side sees it. What is kept is one hello or a record's head; what it costs grows
 * with the octets, not with their pieces. Looks at record headers and hellos, decrypts nothing.
 */
import { HelloReader } from "./hello.js";

const HANDSHAKE = 22, CHANGE_CIPHER_SPEC = 20, APPLICATION_DATA = 23;
const CLIENT_HELLO = 1, SERVER_HELLO = 2;
const RECORD_MAX = 16_384 + 256;
/** Of the far side's first octets: record header, message header, version, random. */
const SERVER_HEAD = 43;
/** Of a record, what says what it is: its header and the first octet of its content. */
const RECORD_HEAD = 6;
/** SHA-256 of "HelloRetryRequest": the random of a ServerHello that is one. */
const RETRY = Buffer.from("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c", "hex");

/** What a chunk of the guest may do: pass (as far as given), or end the connection. */
export type Passed = { readonly pass: Buffer } | "refuse";

export class SecondHello {
  /** Nothing has to be looked at any more. */
  done = false;
  #server: Buffer = Buffer.alloc(0);
  /** It asks for a second hello, for certain. */
  #retry = false;
  /** First octets of a record that is not known yet, fewer than RECORD_HEAD. */
  #head: Buffer = Buffer.alloc(0);
  /** Octets of a known record that pass unlooked. */
  #left = 0;
  #reader: HelloReader | null = null;

  /** @param name of the first hello, labels joined by dots. */
  constructor(private readonly name: string) {}

  /** Octets of the far side, in order; they always pass. */
  fromServer(chunk: Buffer): void {
    if (this.done || this.#reader !== null || this.#server.length >= SERVER_HEAD) return;
    this.#server = Buffer.concat([this.#server, chunk.subarray(0, SERVER_HEAD)]).subarray(0, SERVER_HEAD);
    const head = this.#server;
    if (head.length < SERVER_HEAD) return;
    // A ServerHello cut into small records is taken for a retry: the guest is looked at for longer, and nothing else changes.
    const whole = head[0] === HANDSHAKE && head[5] === SERVER_HELLO && head.readUInt16BE(3) >= SERVER_HEAD - 5;
    if (!whole) return;
    this.#retry = head.subarray(11, SERVER_HEAD).equals(RETRY);
    this.done = !this.#retry;
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
      if (type === HANDSHAKE && octets[at + 5] === CLIENT_HELLO) {
        this.#head = Buffer.alloc(0);
        const passed = this.#hello((this.#reader = new HelloReader()), octets.subarray(at));
        return passed === "refuse" ? passed : { pass: at === 0 ? passed.pass : Buffer.concat([octets.subarray(0, at), passed.pass]) };
      }
      if (type === HANDSHAKE) {
        // Nothing but a hello may answer a retry, and nothing comes before an answer: a hello may stand behind it.
        if (this.#retry || this.#server.length < SERVER_HEAD) return "refuse";
        this.done = true; // TLS 1.2 goes on with its key exchange
        break;
      }
      const end = Math.min(at + 5 + length, octets.length);
      this.#left = at + 5 + length - end;
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
