// @ts-check
/**
 * Just enough of DNS messages (RFC 1035) for a scripted server: reading one question, writing any answer, also wrong ones.
 *
 * It is not strict and must not be used to judge anything; names are written without compression unless given as raw octets.
 */
import { isIPv4, isIPv6 } from "node:net";

/** @type {Record<string, number>} */
export const TYPES = { A: 1, NS: 2, CNAME: 5, SOA: 6, PTR: 12, MX: 15, TXT: 16, AAAA: 28, SRV: 33, OPT: 41, SVCB: 64, HTTPS: 65, ANY: 255 };

/**
 * `data`: address text for A and AAAA, a name for CNAME, NS and PTR, text for TXT, otherwise hexadecimal octets.
 * @typedef {{name: string, type: string | number, ttl?: number, data: string, class?: number}} Record_
 */

/** @param {string} text @returns {Buffer} */
export function addressBytes(text) {
  if (isIPv4(text)) return Buffer.from(text.split(".").map(Number));
  if (!isIPv6(text)) throw new TypeError(`not an address: ${text}`);
  let plain = text;
  const quad = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(text);
  if (quad) {
    const last = addressBytes(/** @type {string} */ (quad[2]));
    plain = `${quad[1]}${last.readUInt16BE(0).toString(16)}:${last.readUInt16BE(2).toString(16)}`;
  }
  const [left = "", right] = plain.split("::");
  const groups = (/** @type {string | undefined} */ part) => (part ? part.split(":").map((group) => parseInt(group, 16)) : []);
  const head = groups(left);
  const tail = groups(right);
  const all = right === undefined ? head : [...head, ...new Array(8 - head.length - tail.length).fill(0), ...tail];
  const out = Buffer.alloc(16);
  all.forEach((group, index) => out.writeUInt16BE(group, index * 2));
  return out;
}

/**
 * A name in wire form; `\ddd` stands for any octet (RFC 1035 section 5.1), and the root is "" or ".".
 * @param {string} name
 */
export function nameBytes(name) {
  /** @type {Buffer[]} */
  const out = [];
  for (const label of name.replace(/\.$/, "").split(".").filter((part) => part !== "")) {
    const octets = Buffer.from(label.replace(/\\(\d{3})/g, (_, code) => String.fromCharCode(Number(code))), "latin1");
    out.push(Buffer.of(octets.length), octets);
  }
  return Buffer.concat([...out, Buffer.of(0)]);
}

/** @param {string | number} type */
export function typeNumber(type) {
  const number = typeof type === "number" ? type : TYPES[type];
  if (number === undefined) throw new TypeError(`unknown type: ${type}`);
  return number;
}

/** @param {number} number */
export function typeName(number) {
  return Object.keys(TYPES).find((name) => TYPES[name] === number) ?? `TYPE${number}`;
}

/** @param {Record_} record */
export function recordBytes(record) {
  const type = typeNumber(record.type);
  /** @type {Buffer} */
  let data;
  if (type === 1 || type === 28) data = addressBytes(record.data);
  else if (type === 5 || type === 2 || type === 12) data = nameBytes(record.data);
  else if (type === 16) data = Buffer.concat([Buffer.of(Buffer.byteLength(record.data)), Buffer.from(record.data)]);
  else data = Buffer.from(record.data, "hex");
  const fixed = Buffer.alloc(10);
  fixed.writeUInt16BE(type, 0);
  fixed.writeUInt16BE(record.class ?? 1, 2);
  fixed.writeUInt32BE(record.ttl ?? 300, 4);
  fixed.writeUInt16BE(data.length, 8);
  return Buffer.concat([nameBytes(record.name), fixed, data]);
}

/** SOA of a made-up zone, for negative answers. @param {string} zone @param {number} [ttl] @returns {Record_} */
export function soa(zone, ttl = 300) {
  const numbers = Buffer.alloc(20);
  [1, 7200, 900, 86400, ttl].forEach((value, index) => numbers.writeUInt32BE(value, index * 4));
  return { name: zone, type: "SOA", ttl, data: Buffer.concat([nameBytes(`ns.${zone}`), nameBytes(`hostmaster.${zone}`), numbers]).toString("hex") };
}

/**
 * HTTPS or SVCB rdata (RFC 9460) as hexadecimal octets.
 * @param {{priority?: number, target?: string, alpn?: string[], ipv4hint?: string[], ipv6hint?: string[], ech?: string, port?: number}} fields ech: hexadecimal
 */
export function svcb(fields) {
  /** @type {[number, Buffer][]} */
  const parameters = [];
  if (fields.alpn) parameters.push([1, Buffer.concat(fields.alpn.flatMap((id) => [Buffer.of(id.length), Buffer.from(id)]))]);
  if (fields.port !== undefined) parameters.push([3, Buffer.of(fields.port >> 8, fields.port & 255)]);
  if (fields.ipv4hint) parameters.push([4, Buffer.concat(fields.ipv4hint.map(addressBytes))]);
  if (fields.ech !== undefined) parameters.push([5, Buffer.from(fields.ech, "hex")]);
  if (fields.ipv6hint) parameters.push([6, Buffer.concat(fields.ipv6hint.map(addressBytes))]);
  const priority = fields.priority ?? 1;
  return Buffer.concat([
    Buffer.of(priority >> 8, priority & 255), nameBytes(fields.target ?? "."),
    ...parameters.map(([key, value]) => Buffer.concat([Buffer.of(0, key, value.length >> 8, value.length & 255), value])),
  ]).toString("hex");
}

/**
 * The first question of a query; null where there is none to read.
 * @param {Buffer} message
 */
export function readQuestion(message) {
  if (message.length < 12) return null;
  /** @type {string[]} */
  const labels = [];
  let at = 12;
  for (;;) {
    const length = message[at];
    if (length === undefined || length > 63 || at + 1 + length > message.length) return null;
    at++;
    if (length === 0) break;
    labels.push(message.toString("latin1", at, at + length));
    at += length;
  }
  if (at + 4 > message.length) return null;
  return {
    id: message.readUInt16BE(0), flags: message.readUInt16BE(2), name: labels.join("."), type: message.readUInt16BE(at), class: message.readUInt16BE(at + 2),
    /** the question section as it came */
    wire: message.subarray(12, at + 4), end: at + 4, questions: message.readUInt16BE(4), additional: message.readUInt16BE(10),
  };
}

/**
 * @param {{id: number, flags?: number, rcode?: number, question?: Buffer, questions?: number, answer?: Record_[], authority?: Record_[], additional?: Record_[], edns?: boolean}} fields
 *   flags default: QR, RD, RA
 */
export function message(fields) {
  const sections = [fields.answer ?? [], fields.authority ?? [], fields.additional ?? []];
  const header = Buffer.alloc(12);
  header.writeUInt16BE(fields.id, 0);
  header.writeUInt16BE((fields.flags ?? 0x8180) | (fields.rcode ?? 0), 2);
  header.writeUInt16BE(fields.questions ?? (fields.question ? 1 : 0), 4);
  sections.forEach((records, index) => header.writeUInt16BE(records.length + (index === 2 && fields.edns ? 1 : 0), 6 + 2 * index));
  return Buffer.concat([
    header, fields.question ?? Buffer.alloc(0), ...sections.flat().map(recordBytes),
    fields.edns ? Buffer.from([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]) : Buffer.alloc(0),
  ]);
}
