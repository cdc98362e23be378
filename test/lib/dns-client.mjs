// @ts-check
/**
 * Sends DNS messages as they are given, well made or not, from inside a guest's namespace. Run as `node dns-client.mjs`.
 *
 * One JSON line in, one JSON line out, in any order, matched by id:
 *   {id, transport: "udp"|"tcp", server, port?, chunks: [hex...], expect, waitMs}
 *   {id, answers: [hex...], from: [address...], closed, error?}
 * UDP: each chunk is a datagram. TCP: the chunks are written one after the other, length prefixes being the caller's; the
 * answers come without theirs. It ends when `expect` answers are there, when the other side closes, or after waitMs.
 */
import dgram from "node:dgram";
import net from "node:net";
import { createInterface } from "node:readline";

/** @typedef {{id: number, transport: "udp" | "tcp", server: string, port?: number, chunks: string[], expect: number, waitMs: number}} Request */

/** @param {Request} request */
function udp(request) {
  return new Promise((resolve) => {
    const socket = dgram.createSocket(request.server.includes(":") ? "udp6" : "udp4");
    /** @type {string[]} */ const answers = [];
    /** @type {string[]} */ const from = [];
    const done = (/** @type {string | undefined} */ error) => {
      clearTimeout(timer);
      socket.close();
      resolve({ id: request.id, answers, from, closed: false, ...(error === undefined ? {} : { error }) });
    };
    const timer = setTimeout(() => done(undefined), request.waitMs);
    socket.on("error", (error) => done(String(error)));
    socket.on("message", (data, peer) => {
      answers.push(data.toString("hex"));
      from.push(peer.address);
      if (answers.length >= request.expect) done(undefined);
    });
    for (const chunk of request.chunks) socket.send(Buffer.from(chunk, "hex"), request.port ?? 53, request.server);
  });
}

/** @param {Request} request */
function tcp(request) {
  return new Promise((resolve) => {
    const socket = net.connect({ host: request.server, port: request.port ?? 53 });
    /** @type {string[]} */ const answers = [];
    let waiting = Buffer.alloc(0);
    let ended = false;
    const done = (/** @type {boolean} */ closed, /** @type {string | undefined} */ error) => {
      if (ended) return;
      ended = true;
      clearTimeout(timer);
      socket.destroy();
      resolve({ id: request.id, answers, from: answers.map(() => request.server), closed, ...(error === undefined ? {} : { error }) });
    };
    const timer = setTimeout(() => done(false, undefined), request.waitMs);
    socket.on("error", (error) => done(true, String(error)));
    socket.on("close", () => done(true, undefined));
    socket.on("data", (data) => {
      waiting = Buffer.concat([waiting, data]);
      while (waiting.length >= 2 && waiting.length >= 2 + waiting.readUInt16BE(0)) {
        answers.push(waiting.subarray(2, 2 + waiting.readUInt16BE(0)).toString("hex"));
        waiting = waiting.subarray(2 + waiting.readUInt16BE(0));
      }
      if (answers.length >= request.expect) done(false, undefined);
    });
    socket.setNoDelay(true);
    for (const chunk of request.chunks) socket.write(Buffer.from(chunk, "hex"));
  });
}

createInterface({ input: process.stdin }).on("line", async (line) => {
  const request = /** @type {Request} */ (JSON.parse(line));
  const result = await (request.transport === "udp" ? udp(request) : tcp(request));
  process.stdout.write(`${JSON.stringify(result)}\n`);
}).on("close", () => process.exit(0));
process.stdout.write('{"id":0}\n');
