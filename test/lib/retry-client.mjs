/**
 * A TLS 1.3 client that is asked for another key share and names another server when it says its hello again, which no library
 * does: RFC 8446, P-256, AES-128-GCM, nothing verified.
 *
 *   node retry-client.mjs ADDRESS PORT FIRST-NAME SECOND-NAME [browser]
 *
 * browser: its hellos begin as browsers' do, with what pushes the name far back: a GREASE extension, a GREASE Encrypted Client Hello,
 * and in the first one a share for X25519MLKEM768, which no server of the tests knows.
 * Finishes the handshake whatever the server's certificate says, sends one request for the second name, and prints as JSON what
 * came of it: {retried, finished, answer, end}.
 */
import { createCipheriv, createDecipheriv, createECDH, createHash, createHmac, randomBytes } from "node:crypto";
import { connect } from "node:net";

const [address, port, first, second, kind] = /** @type {[string, string, string, string, string?]} */ (/** @type {unknown} */ (process.argv.slice(2)));
const HANDSHAKE = 22, DATA = 23, FINISHED = 20;
const RETRY = Buffer.from("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c", "hex");

const u16 = (/** @type {number} */ n) => Buffer.of(n >> 8, n & 255);
const vector8 = (/** @type {Buffer} */ content) => Buffer.concat([Buffer.of(content.length), content]);
const vector16 = (/** @type {Buffer} */ content) => Buffer.concat([u16(content.length), content]);
const sha = (/** @type {readonly Buffer[]} */ parts) => createHash("sha256").update(Buffer.concat(parts)).digest();
const hmac = (/** @type {Buffer} */ key, /** @type {Buffer} */ data) => createHmac("sha256", key).update(data).digest();
/** HKDF-Expand-Label for up to 32 octets. @param {Buffer} secret @param {string} label @param {Buffer} context @param {number} length */
const expand = (secret, label, context, length) => hmac(secret, Buffer.concat([u16(length), vector8(Buffer.from(`tls13 ${label}`)), vector8(context), Buffer.of(1)])).subarray(0, length);
const derive = (/** @type {Buffer} */ secret, /** @type {string} */ label, /** @type {readonly Buffer[]} */ messages) => expand(secret, label, sha(messages), 32);

const ecdh = createECDH("prime256v1"), point = ecdh.generateKeys(), random = randomBytes(32), session = randomBytes(32);
const MLKEM = 0x11ec, outer = randomBytes(250);
/** @param {string} name @param {Buffer} shares */
function hello(name, shares) {
  const browser = /** @type {(readonly [number, Buffer])[]} */ (kind === "browser" ? [[0x0a0a, Buffer.alloc(0)], [0xfe0d, outer]] : []);
  const groups = kind === "browser" ? Buffer.concat([u16(MLKEM), u16(23)]) : u16(23);
  const share = /** @type {const} */ ([51, vector16(shares)]);
  const extensions = /** @type {(readonly [number, Buffer])[]} */ ([...browser, ...(kind === "browser" ? [share] : []), [0, vector16(Buffer.concat([Buffer.of(0), vector16(Buffer.from(name))]))], [43, vector8(Buffer.of(3, 4))], [10, vector16(groups)], [13, vector16(Buffer.of(4, 3, 8, 4, 4, 1))], ...(kind === "browser" ? [] : [share])]);
  const body = Buffer.concat([Buffer.of(3, 3), random, vector8(session), vector16(Buffer.of(0x13, 1)), vector8(Buffer.of(0)), vector16(Buffer.concat(extensions.map(([type, content]) => Buffer.concat([u16(type), vector16(content)]))))]);
  return Buffer.concat([Buffer.of(1, 0), u16(body.length), body]);
}

/** Keys of one direction. */
class Keys {
  #at = 0;
  /** @param {Buffer} secret */
  constructor(secret) {
    this.key = expand(secret, "key", Buffer.alloc(0), 16);
    this.iv = expand(secret, "iv", Buffer.alloc(0), 12);
  }
  #nonce() {
    const nonce = Buffer.from(this.iv);
    nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ this.#at++) >>> 0, 8);
    return nonce;
  }
  /** @param {number} type @param {Buffer} content */
  seal(type, content) {
    const head = Buffer.concat([Buffer.of(DATA, 3, 3), u16(content.length + 17)]), cipher = createCipheriv("aes-128-gcm", this.key, this.#nonce()).setAAD(head);
    return Buffer.concat([head, cipher.update(Buffer.concat([content, Buffer.of(type)])), cipher.final(), cipher.getAuthTag()]);
  }
  /** @param {Buffer} record @returns {{type: number, content: Buffer}} */
  open(record) {
    const decipher = createDecipheriv("aes-128-gcm", this.key, this.#nonce()).setAAD(record.subarray(0, 5)).setAuthTag(record.subarray(-16));
    const plain = Buffer.concat([decipher.update(record.subarray(5, -16)), decipher.final()]);
    let end = plain.length - 1;
    while (end > 0 && plain[end] === 0) end--;
    return { type: /** @type {number} */ (plain[end]), content: plain.subarray(0, end) };
  }
}

const told = { retried: false, finished: false, answer: "", end: "" };
const socket = connect(Number(port), address);
const one = hello(first, kind === "browser" ? Buffer.concat([u16(MLKEM), vector16(randomBytes(1216))]) : Buffer.alloc(0));
/** @type {Buffer[]} */
let transcript = [one];
/** @type {Keys | null} */
let reading = null;
let handshake = Buffer.alloc(0), held = Buffer.alloc(0), shared = Buffer.alloc(0), clientSecret = Buffer.alloc(0), serverSecret = Buffer.alloc(0);
socket.write(Buffer.concat([Buffer.of(HANDSHAKE, 3, 1), vector16(one)]));

/** @param {Buffer} message */
function take(message) {
  if (message[0] === 2 && message.subarray(6, 38).equals(RETRY)) {
    told.retried = true;
    const again = hello(second, Buffer.concat([u16(23), vector16(point)]));
    transcript = [Buffer.concat([Buffer.of(254, 0, 0, 32), sha([one])]), message, again];
    socket.write(Buffer.concat([Buffer.of(HANDSHAKE, 3, 3), vector16(again)]));
    return;
  }
  transcript.push(message);
  if (message[0] === 2) {
    // The server's point stands in the only extension that has one.
    const at = message.indexOf(Buffer.concat([u16(51), u16(69), u16(23), u16(65)]));
    const early = hmac(Buffer.alloc(32), Buffer.alloc(32));
    shared = hmac(derive(early, "derived", []), ecdh.computeSecret(message.subarray(at + 8, at + 73)));
    clientSecret = derive(shared, "c hs traffic", transcript);
    serverSecret = derive(shared, "s hs traffic", transcript);
    reading = new Keys(serverSecret);
  } else if (message[0] === FINISHED) {
    const main = hmac(derive(shared, "derived", []), Buffer.alloc(32)), mine = hmac(expand(clientSecret, "finished", Buffer.alloc(0), 32), sha(transcript));
    reading = new Keys(derive(main, "s ap traffic", transcript));
    const sending = new Keys(derive(main, "c ap traffic", transcript));
    told.finished = true;
    socket.write(Buffer.concat([new Keys(clientSecret).seal(HANDSHAKE, Buffer.concat([Buffer.of(FINISHED, 0, 0, 32), mine])), sending.seal(DATA, Buffer.from(`GET /again HTTP/1.1\r\nhost: ${second}\r\nconnection: close\r\n\r\n`))]));
  }
}

socket.on("data", (chunk) => {
  held = Buffer.concat([held, chunk]);
  while (held.length >= 5 && held.length >= 5 + held.readUInt16BE(3)) {
    const record = held.subarray(0, 5 + held.readUInt16BE(3));
    held = held.subarray(record.length);
    if (record[0] === 20) continue;
    const { type, content } = record[0] === DATA && reading !== null ? reading.open(record) : { type: record[0], content: record.subarray(5) };
    if (type === DATA) told.answer += content.toString("latin1");
    if (type === 21) told.end = `alert ${content[1]}`;
    if (type !== HANDSHAKE || told.finished) continue;
    handshake = Buffer.concat([handshake, content]);
    while (handshake.length >= 4 && handshake.length >= 4 + handshake.readUIntBE(1, 3)) {
      const message = handshake.subarray(0, 4 + handshake.readUIntBE(1, 3));
      handshake = handshake.subarray(message.length);
      take(message);
    }
  }
});
socket.on("error", (error) => { told.end = /** @type {NodeJS.ErrnoException} */ (error).code ?? "error"; });
socket.on("close", () => { console.log(JSON.stringify(told)); });
