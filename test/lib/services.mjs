// @ts-check
/**
 * What answers in a namespace of a test world: HTTP (GET says who answers, /octets/N sends N octets, PUT counts what it gets),
 * TCP and UDP on given ports of every address there, and a scripted DNS server. Run as `node services.mjs CONFIG`, CONFIG being JSON (see the type below).
 *
 * Prints {"event":"ready"} and then one JSON line for everything that arrives, with the address it arrived at. A line of
 * JSON on standard input changes the DNS zone: {"zone": {...}} adds or replaces names, {"reset": true} restarts sequences.
 * It serves tests only: no limits, no strictness.
 */
import dgram from "node:dgram";
import http from "node:http";
import net from "node:net";
import os from "node:os";
import { createInterface } from "node:readline";
import * as dns from "./dns-message.mjs";

/**
 * What a name answers. A list is a sequence: each further question of the same type gets the next, the last one stays.
 * Names: lower case, without the last dot; "*.d" stands for everything below d.
 * @typedef {object} Entry
 * @property {string[]} [A]
 * @property {string[]} [AAAA]
 * @property {string} [CNAME] followed through the zone, as a recursive server does
 * @property {string[]} [TXT]
 * @property {string[]} [HTTPS] rdata, hexadecimal
 * @property {number} [ttl]
 * @property {number} [rcode]
 * @property {import("./dns-message.mjs").Record_[]} [answer] instead of the above
 * @property {import("./dns-message.mjs").Record_[]} [authority]
 * @property {import("./dns-message.mjs").Record_[]} [additional]
 * @property {string} [raw] whole message after its id, hexadecimal; instead of everything
 * @property {boolean} [truncate] over UDP: TC without records
 * @property {number} [delayMs]
 * @property {boolean} [silent] no answer
 * @property {{from?: string, port?: number, wrongId?: boolean, question?: string, A: string[]}[]} [forgeries] UDP messages sent before the true answer
 *
 * @typedef {object} Config
 * @property {string} label
 * @property {number[]} [http]
 * @property {number[]} [tcp] accepts, says nothing
 * @property {number[]} [udp] answers "LABEL ADDRESS" from the address that was asked
 * @property {{addresses: string[], zone: Record<string, Entry | Entry[]>}} [dns]
 */

const config = /** @type {Config} */ (JSON.parse(process.argv[2] ?? "{}"));
/** @param {Record<string, unknown>} fields */
const log = (fields) => process.stdout.write(`${JSON.stringify(fields)}\n`);
/** @param {string | undefined} address */
const plain = (address) => (address ?? "").replace(/^::ffff:(?=\d+\.)/, "").replace(/%.*/, "");

/** @type {Promise<unknown>[]} */
const starting = [];
/** @param {import("node:events").EventEmitter} emitter @param {string} event */
const once = (emitter, event) => starting.push(new Promise((resolve, reject) => { emitter.once(event, resolve); emitter.once("error", reject); }));

for (const port of config.http ?? []) {
  const server = http.createServer((request, response) => {
    const to = plain(request.socket.localAddress);
    log({ event: "http", to, port, from: plain(request.socket.remoteAddress), host: request.headers.host ?? null, method: request.method, path: request.url });
    response.setHeader("Connection", "close");
    if (request.method === "PUT") {
      let octets = 0;
      request.on("data", (/** @type {Buffer} */ data) => { octets += data.length; }).on("end", () => response.end(`${octets}\n`));
      return;
    }
    const wanted = /^\/octets\/(\d+)$/.exec(request.url ?? "");
    response.end(wanted ? Buffer.alloc(Number(wanted[1]), 0x61) : `${config.label} ${to}\n`);
  });
  once(server.listen(port, "::"), "listening");
}

for (const port of config.tcp ?? []) {
  const server = net.createServer((socket) => {
    log({ event: "tcp", to: plain(socket.localAddress), port, from: plain(socket.remoteAddress) });
    socket.on("error", () => undefined).on("data", (data) => log({ event: "tcp-data", to: plain(socket.localAddress), port, hex: data.toString("hex") }));
  });
  once(server.listen(port, "::"), "listening");
}

const addresses = Object.entries(os.networkInterfaces()).flatMap(([device, list]) =>
  (list ?? []).map((entry) => (entry.family === "IPv6" && entry.address.startsWith("fe80") ? `${entry.address}%${device}` : entry.address)));
for (const port of config.udp ?? []) {
  for (const address of addresses) {
    // One socket per address, so that the answer comes from the address that was asked.
    const socket = dgram.createSocket(address.includes(":") ? "udp6" : "udp4");
    socket.on("message", (data, from) => {
      log({ event: "udp", to: plain(address), port, from: plain(from.address), fromPort: from.port, text: data.toString("latin1") });
      socket.send(`${config.label} ${plain(address)}`, from.port, from.address);
    });
    once(socket, "listening");
    socket.bind(port, address);
  }
}

/* ---- DNS ------------------------------------------------------------------------------------------------------- */

const zone = new Map(Object.entries(config.dns?.zone ?? {}));
/** How often a name was asked for a type. @type {Map<string, number>} */
const asked = new Map();

/** @param {string} name @param {number} type @param {boolean} count @returns {Entry | null} */
function find(name, type, count) {
  let entry = zone.get(name);
  for (let at = name.indexOf("."); entry === undefined && at >= 0; at = name.indexOf(".", at + 1)) entry = zone.get(`*${name.slice(at)}`);
  if (entry === undefined) return null;
  if (!Array.isArray(entry)) return entry;
  const key = `${name}/${type}`;
  const turn = asked.get(key) ?? 0;
  if (count) asked.set(key, turn + 1);
  return entry[Math.min(turn, entry.length - 1)] ?? null;
}

/** @param {string} name @param {number} type @param {number} [links] @returns {{rcode: number, answer: import("./dns-message.mjs").Record_[]}} */
function resolve(name, type, links = 0) {
  const entry = find(name.toLowerCase(), type, true);
  if (entry === null) return { rcode: 3, answer: [] };
  const ttl = entry.ttl ?? 300;
  if (entry.CNAME !== undefined && links < 16) {
    const rest = type === dns.TYPES.CNAME ? { rcode: 0, answer: [] } : resolve(entry.CNAME.replace(/\.$/, ""), type, links + 1);
    return { rcode: rest.rcode, answer: [{ name, type: "CNAME", ttl, data: entry.CNAME }, ...rest.answer] };
  }
  const key = dns.typeName(type);
  const data = key === "A" ? entry.A : key === "AAAA" ? entry.AAAA : key === "TXT" ? entry.TXT : key === "HTTPS" ? entry.HTTPS : undefined;
  return { rcode: entry.rcode ?? 0, answer: (data ?? []).map((value) => ({ name, type: key, ttl, data: value })) };
}

/**
 * @param {Buffer} query @param {"udp" | "tcp"} transport
 * @returns {{reply: Buffer | null, delayMs: number, forged: {from?: string | undefined, port?: number | undefined, data: Buffer}[]}}
 */
function answer(query, transport) {
  const question = dns.readQuestion(query);
  if (question === null) return { reply: null, delayMs: 0, forged: [] };
  const name = question.name.toLowerCase();
  const entry = find(name, question.type, false);
  const found = resolve(question.name, question.type); // always, so that a sequence goes on
  const edns = question.additional > 0;
  const base = { id: question.id, question: question.wire, edns };
  const forged = (transport === "udp" ? entry?.forgeries ?? [] : []).map((forgery) => ({
    from: forgery.from, port: forgery.port,
    data: dns.message({
      ...base, id: forgery.wrongId ? question.id ^ 0x55 : question.id,
      question: forgery.question === undefined ? question.wire : Buffer.concat([dns.nameBytes(forgery.question), question.wire.subarray(-4)]),
      answer: forgery.A.map((data) => ({ name: forgery.question ?? question.name, type: "A", data })),
    }),
  }));
  const delayMs = entry?.delayMs ?? 0;
  if (entry?.silent) return { reply: null, delayMs, forged };
  if (entry?.raw !== undefined) return { reply: Buffer.concat([query.subarray(0, 2), Buffer.from(entry.raw, "hex")]), delayMs, forged };
  if (entry?.truncate && transport === "udp") return { reply: dns.message({ ...base, flags: 0x8380 }), delayMs, forged };
  const records = entry?.answer ?? found.answer;
  const rcode = entry?.rcode ?? found.rcode;
  const authority = entry?.authority ?? (records.length === 0 ? [dns.soa(name.split(".").slice(-1)[0] || "test")] : []);
  const reply = dns.message({ ...base, rcode, answer: records, authority, additional: entry?.additional ?? [] });
  if (transport === "udp" && reply.length > 1232) return { reply: dns.message({ ...base, flags: 0x8380 }), delayMs, forged };
  return { reply, delayMs, forged };
}

/** @param {Buffer} query @param {"udp" | "tcp"} transport @param {string} server @param {string} client */
function logQuery(query, transport, server, client) {
  const question = dns.readQuestion(query);
  log({
    event: "dns", transport, server, client: plain(client), name: question?.name ?? null, type: question ? dns.typeName(question.type) : null, hex: query.toString("hex"),
  });
}

for (const server of config.dns?.addresses ?? []) {
  const family = server.includes(":") ? "udp6" : "udp4";
  const socket = dgram.createSocket(family);
  socket.on("message", (query, from) => {
    logQuery(query, "udp", server, from.address);
    const { reply, delayMs, forged } = answer(query, "udp");
    for (const one of forged) {
      if (one.from === undefined && one.port === undefined) {
        socket.send(one.data, from.port, from.address);
        continue;
      }
      const other = dgram.createSocket(family);
      other.bind(one.port ?? 53, one.from ?? server, () => other.send(one.data, from.port, from.address, () => other.close()));
      other.on("error", (error) => log({ event: "error", text: String(error) }));
    }
    if (reply !== null) setTimeout(() => socket.send(reply, from.port, from.address), forged.length > 0 ? Math.max(delayMs, 50) : delayMs);
  });
  once(socket, "listening");
  socket.bind(53, server);

  const listener = net.createServer((stream) => {
    let waiting = Buffer.alloc(0);
    stream.on("error", () => undefined).on("data", (data) => {
      waiting = Buffer.concat([waiting, data]);
      while (waiting.length >= 2 && waiting.length >= 2 + waiting.readUInt16BE(0)) {
        const query = waiting.subarray(2, 2 + waiting.readUInt16BE(0));
        waiting = waiting.subarray(2 + query.length);
        logQuery(query, "tcp", server, stream.remoteAddress ?? "");
        const { reply, delayMs } = answer(query, "tcp");
        if (reply !== null) setTimeout(() => stream.write(Buffer.concat([Buffer.of(reply.length >> 8, reply.length & 255), reply])), delayMs);
      }
    });
  });
  once(listener.listen(53, server), "listening");
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const change = JSON.parse(line);
  for (const [name, entry] of Object.entries(change.zone ?? {})) {
    zone.set(name, /** @type {Entry | Entry[]} */ (entry));
    for (const key of asked.keys()) if (key.startsWith(`${name}/`)) asked.delete(key);
  }
  if (change.reset) asked.clear();
  log({ event: "changed" });
}).on("close", () => process.exit(0));

await Promise.all(starting);
log({ event: "ready" });
