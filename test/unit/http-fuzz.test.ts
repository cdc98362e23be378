/** Octets of all kinds from both ends (A49, A54): whatever comes, connections end and the process goes on. */
import fc from "fast-check";
import { performServerHandshake, type ServerHttp2Stream } from "node:http2";
import type { TLSSocket } from "node:tls";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { NAME, until, World } from "./http-world.js";

const worlds: World[] = [];
const thrown: unknown[] = [];
const caught = (error: unknown): void => { thrown.push(error); };
beforeEach(() => { process.on("uncaughtException", caught); });
afterEach(async () => {
  for (const world of worlds.splice(0)) await world.stop();
  process.off("uncaughtException", caught);
  expect(thrown.splice(0)).toEqual([]);
});
const RUNS = { numRuns: 60, seed: 20_261_126 } as const;
const SLOW = 120_000;

/** A well-formed message with octets changed, left out and put in. */
const mutated = (message: string) => fc.array(fc.record({ at: fc.nat(message.length), kind: fc.constantFrom("change", "remove", "insert"), octet: fc.oneof(fc.nat(255), fc.constantFrom(0, 9, 10, 13, 32, 44, 58, 127, 128, 255)) }), { minLength: 1, maxLength: 4 }).map((edits) => {
  let text = message;
  for (const { at, kind, octet } of edits) {
    const i = Math.min(at, text.length), c = String.fromCharCode(octet);
    text = kind === "insert" ? text.slice(0, i) + c + text.slice(i) : text.slice(0, i) + (kind === "change" ? c : "") + text.slice(i + 1);
  }
  return text;
});

const REQUEST = `POST /a?b HTTP/1.1\r\nHost: ${NAME}\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\nTE: trailers\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n`;
const RESPONSE = "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\nSet-Cookie: a=b\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n";

describe("HTTP/1.1", () => {
  it("requests of all kinds: the far side sees well-formed requests for its own host only", async () => {
    const w = new World({ limits: { headMs: 100, stallMs: 100, idleMs: 100 } });
    worlds.push(w);
    await w.start();
    await fc.assert(fc.asyncProperty(mutated(REQUEST), async (request) => {
      const guest = await w.guest();
      guest.write(request);
      await until(() => guest.got !== "" || guest.socket.destroyed || w.watch.size === 0 || (w.seen.at(-1) ?? "").endsWith("\r\n\r\n"));
      guest.socket.destroy();
    }), RUNS);
    for (const seen of w.seen) {
      if (seen === "") continue;
      expect(seen).toMatch(/^[A-Z-]+ [\x21-\x7e]+ HTTP\/1\.1\r\n/);
      expect(seen.match(/^host: .*$/gim)).toEqual([expect.stringMatching(/^host: origin\.test(:443)?$/i)]);
      expect(seen.slice(0, seen.indexOf("\r\n\r\n"))).not.toMatch(/[^\r]\n|\r[^\n]|\0/);
    }
  }, SLOW);
  it("answers of all kinds", async () => {
    let answer = "";
    const w = new World({ limits: { silenceMs: 100, stallMs: 100, idleMs: 100 }, onOrigin: (socket) => { socket.once("data", () => socket.end(answer, "latin1")); } });
    worlds.push(w);
    await w.start();
    await fc.assert(fc.asyncProperty(mutated(RESPONSE), async (text) => {
      answer = text;
      const guest = await w.guest();
      guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
      await guest.all();
      guest.socket.destroy();
      // A head that the guest gets is one line after the other.
      for (const head of guest.got.split("\r\n\r\n").filter((part) => part.startsWith("HTTP/"))) expect(head).not.toMatch(/[^\r]\n|\r[^\n]|\0/);
    }), RUNS);
  }, SLOW);
  it("a phrase and fields that Node would not write are no way to end the process", async () => {
    for (const answer of ["HTTP/1.1 200 \x01\x02\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 O\x7fK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nX-\xff: a\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nX: \x01\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: \x01\r\n\r\n", "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 000 Odd\r\n\r\n"]) {
      const w = new World({ limits: { silenceMs: 100, idleMs: 100 }, onOrigin: (socket) => { socket.once("data", () => socket.end(answer, "latin1")); } });
      worlds.push(w);
      await w.start();
      const guest = await w.guest();
      guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
      expect(await guest.all()).toMatch(/^(HTTP\/1\.1 (200|502|999) |$)/);
    }
  }, SLOW);
});

describe("HTTP/2", () => {
  it("frames of all kinds from the guest, and from the far side", async () => {
    const frames = fc.array(fc.record({ type: fc.nat(12), flags: fc.nat(255), stream: fc.oneof(fc.nat(9), fc.constant(0x7fff_ffff)), payload: fc.uint8Array({ maxLength: 40 }) }), { minLength: 1, maxLength: 8 }).map((list) => Buffer.concat(list.map(({ type, flags, stream, payload }) => {
      const head = Buffer.alloc(9);
      head.writeUIntBE(payload.length, 0, 3);
      head[3] = type;
      head[4] = flags;
      head.writeUInt32BE(stream, 5);
      return Buffer.concat([head, payload]);
    })));
    const preface = Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Buffer.from("000000040000000000", "hex")]);
    const settings = Buffer.from("000000040000000000", "hex");
    // :method GET, :scheme https, :path /, :authority origin.test as a literal
    const get = Buffer.concat([Buffer.from("000010010500000001", "hex"), Buffer.from([0x82, 0x87, 0x84, 0x01, NAME.length]), Buffer.from(NAME)]);
    let rubbish: Buffer | null = null;
    const w = new World({
      alpn: ["h2"], origin: { ALPNProtocols: ["h2"] }, limits: { silenceMs: 100, stallMs: 100, idleMs: 100 },
      onOrigin: (socket: TLSSocket) => {
        if (rubbish !== null) {
          socket.write(settings);
          const octets = rubbish;
          socket.once("data", () => socket.end(octets));
          return;
        }
        const session = performServerHandshake(socket);
        session.on("error", () => undefined);
        (session as unknown as NodeJS.EventEmitter).on("stream", (stream: ServerHttp2Stream) => {
          stream.on("error", () => undefined);
          stream.respond({ ":status": 200 });
          stream.end("ok");
        });
      },
    });
    worlds.push(w);
    await w.start();
    await fc.assert(fc.asyncProperty(frames, fc.boolean(), async (octets, fromGuest) => {
      rubbish = fromGuest ? null : octets;
      const guest = await w.guest({ allowHalfOpen: false } as object);
      guest.socket.write(Buffer.concat([preface, get]));
      if (fromGuest) guest.socket.write(octets);
      await Promise.race([guest.closed, new Promise((resolve) => setTimeout(resolve, 60))]);
      guest.socket.destroy();
    }), RUNS);
    await until(() => w.watch.size === 0);
  }, SLOW);
});
