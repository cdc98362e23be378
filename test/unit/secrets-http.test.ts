/** Secrets through both HTTP legs, with real sockets at both ends (A47, A50, A55–A59, TLS.md tests 32–38). */
import { connect as h2connect, createSecureServer, type ClientHttp2Session, type IncomingHttpHeaders, type OutgoingHttpHeaders } from "node:http2";
import { createHash } from "node:crypto";
import type { TLSSocket } from "node:tls";
import { brotliCompressSync, constants, createDeflate, gzipSync, inflateSync } from "node:zlib";
import { brotliWindow } from "../../src/secrets/coding.js";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { SecretSpec } from "../../src/policy/types.js";
import { Finder } from "../../src/secrets/finder.js";
import { SandboxSecrets } from "../../src/secrets/sandbox-secrets.js";
import type { Gate, Violation } from "../../src/secrets/types.js";
import { assertNowhere, pattern, secretSpec } from "../lib/secrets.js";
import { answering, NAME, until, World, type WorldOptions } from "./http-world.js";

const VALUE = "sk-real-value-0123456789abcdef";
const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const worlds: World[] = [];
let secrets: SandboxSecrets, P = "", environment: NodeJS.ProcessEnv = {}, time = 0;
const passed: Violation[] = [];
async function open(spec: Partial<SecretSpec> = {}): Promise<void> {
  environment = { TOKEN: VALUE };
  time = 0;
  passed.length = 0;
  secrets = await SandboxSecrets.open([secretSpec("TOKEN", spec)], { path: null, environment, clock: { now: () => time }, onPassed: (violation) => passed.push(violation) });
  P = secrets.environment()["TOKEN"] as string;
}
beforeEach(() => open());
afterEach(async () => {
  vi.restoreAllMocks();
  for (const world of worlds.splice(0)) await world.stop();
});
async function world(gate: Partial<Gate> = {}, options: WorldOptions = {}): Promise<World> {
  const made = new World({ ...options, filter: (request) => secrets.exchange({ labels: NAME.split("."), port: 443, intercepted: true, verified: true, pinned: true, ...gate }, request) as never });
  worlds.push(made);
  return made.start();
}
/** The body of one chunked message. */
function dechunked(message: string): string {
  let at = message.indexOf("\r\n\r\n") + 4, body = "";
  for (;;) {
    const end = message.indexOf("\r\n", at), length = Number.parseInt(message.slice(at, end), 16);
    if (!(length > 0)) return body;
    body += message.slice(end + 2, end + 2 + length);
    at = end + 4 + length;
  }
}
const EVIL: Partial<Gate> = { labels: ["evil", "test"] };
const seen = (w: World): string => w.seen.join("");

describe("HTTP/1.1", () => {
  it("32: the far side sees the value once, order and case of the other fields intact; the guest sees nothing of it", async () => {
    const answers: string[] = [];
    const w = await world({}, { onOrigin: answering([OK], answers) });
    const guest = await w.guest();
    guest.write(`GET /a HTTP/1.1\r\nhOsT: ${NAME}\r\nX-b: 1\r\nAuthorization: Bearer ${P}\r\nx-A: 2\r\n\r\n`);
    await guest.until("ok");
    expect(answers.join("")).toBe(`GET /a HTTP/1.1\r\nhOsT: ${NAME}\r\nX-b: 1\r\nAuthorization: Bearer ${VALUE}\r\nx-A: 2\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n\r\n`);
    assertNowhere(VALUE, { texts: { guest: guest.got, counters: JSON.stringify(w.counters) } });
  });
  it("33: at another host nothing is sent, 403 says which secret and where, and the connection goes on", async () => {
    const answers: string[] = [];
    const w = await world(EVIL, { onOrigin: answering([OK], answers) });
    const guest = await w.guest();
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nX-Debug: ${P}\r\n\r\n`);
    await guest.until(/\r\n\r\n\{.*\}\n/);
    expect(guest.got).toMatch(/^HTTP\/1\.1 403 /);
    expect(JSON.parse(guest.got.split("\r\n\r\n")[1] as string)).toEqual({ error: "enforcer", reason: "secret", message: `the placeholder of secret TOKEN, in the field x-debug of a request to ${NAME}` });
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    await guest.until("ok");
    expect(answers.join("")).not.toContain(P);
    expect(w.refusals).toEqual(["secret"]);
  });
  it("A47: line ends in front, Host of another, a placeholder, in two writes: nothing leaves", async () => {
    const w = await world(EVIL);
    const guest = await w.guest();
    guest.write(`\r\n\r\nGET / HTTP/1.1\r\nHost: evil.example\r\nAuthori`);
    guest.write(`zation: Bearer ${P}\r\n\r\n`);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 421 /);
    expect(seen(w)).toBe("");
  });
  it("A50: a request that may pass, then a placeholder where it must not be, pipelined: the first alone", async () => {
    const answers: string[] = [];
    const w = await world({}, { onOrigin: answering([OK, OK], answers) });
    const guest = await w.guest();
    guest.write(`GET /1 HTTP/1.1\r\nHost: ${NAME}\r\nx-api-key: ${P}\r\n\r\nGET /2?k=${P} HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    await guest.until(/403[\s\S]*\}\n/);
    expect(answers.join("").match(/GET/g)).toHaveLength(1);
    assertNowhere(VALUE, { texts: { guest: guest.got } });
  });
  it("35: a body's Content-Length is that of what leaves; chunked stays chunked; nothing leaves of one that is refused", async () => {
    await open({ inject: { headers: null, query: false, body: true, path: false } });
    const w = await world({}, { onOrigin: undefined as never });
    const json = "Content-Type: application/json\r\n";
    let guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\n${json}Content-Length: ${P.length + 8}\r\n\r\n{"k":"${P.slice(0, 9)}`);
    await new Promise((resolve) => setImmediate(resolve));
    guest.write(`${P.slice(9)}"}`);
    await until(() => seen(w).endsWith('"}'));
    expect(seen(w)).toContain(`Content-Length: ${VALUE.length + 8}\r\n`);
    expect(seen(w)).toContain(`{"k":"${VALUE}"}`);
    guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\n${json}Transfer-Encoding: chunked\r\n\r\n6\r\n{"k":"\r\n5\r\n${P.slice(0, 5)}\r\n${(P.length - 5).toString(16)}\r\n${P.slice(5)}\r\n2\r\n"}\r\n0\r\n\r\n`);
    await until(() => (w.seen[1] ?? "").endsWith("0\r\n\r\n"));
    expect(w.seen[1]).toContain("Transfer-Encoding: chunked");
    expect(dechunked(w.seen[1] as string)).toBe(`{"k":"${VALUE}"}`);
    const gzip = gzipSync(`{"k":"${P}"}`).toString("latin1");
    guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\n${json}Content-Encoding: gzip\r\nContent-Length: ${gzip.length}\r\n\r\n${gzip}`);
    await guest.until(/403 /);
    expect(w.seen[2] ?? "").toBe("");
  });
  it("A56: a chunked body with the placeholder where it must not be never ends at the far side", async () => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n`);
    await until(() => seen(w).includes("hello"));
    guest.write(`${P.length.toString(16)}\r\n${P}\r\n0\r\n\r\n`);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 403 [\s\S]*secret TOKEN, in the body/);
    await until(() => w.origins[0]?.destroyed === true);
    expect(seen(w)).not.toContain(P);
    expect(seen(w)).not.toContain("\r\n0\r\n");
  });
  it("Expect: 100-continue with a body that is held is answered here, and goes out with its length", async () => {
    await open({ inject: { headers: null, query: false, body: true, path: false } });
    const answers: string[] = [];
    const w = await world({}, { onOrigin: answering([OK], answers) });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: ${P.length + 2}\r\n\r\n`);
    await guest.until("100 Continue");
    guest.write(`"${P}"`);
    await guest.until("ok");
    expect(answers.join("")).toContain(`Content-Length: ${VALUE.length + 2}\r\n`);
    expect(answers.join("")).not.toContain("Expect");
  });
  it("36: an echo in every part of an answer, split at every octet of it", async () => {
    const w = await world({}, { onOrigin: (socket: TLSSocket) => {
      socket.once("data", () => {
        const answer = `HTTP/1.1 200 Yes ${VALUE}\r\nX-Echo: Bearer ${VALUE}\r\nContent-Digest: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n`;
        socket.write(answer, "latin1");
        for (const octet of `<${VALUE}>`) socket.write(`1\r\n${octet}\r\n`);
        socket.write(`0\r\nX-T: ${VALUE}\r\n\r\n`);
      });
    } });
    const guest = await w.guest();
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nAuthorization: Bearer ${P}\r\n\r\n`);
    await guest.until("X-T: ");
    await guest.until(/X-T: .*\r\n\r\n$/);
    expect(guest.got).toContain(`HTTP/1.1 200 Yes ${P}`);
    expect(guest.got).toContain(`X-Echo: Bearer ${P}`);
    expect(guest.got).not.toContain("Digest");
    expect(dechunked(guest.got)).toBe(`<${P}>`);
    assertNowhere(VALUE, { texts: { guest: guest.got } });
  });
  it("36: an echo with a length, a coded one, one that breaks off in its coding, and a range", async () => {
    const coded = gzipSync(`<${VALUE}>`);
    const answers: [string | Buffer, (got: string, w: World) => void][] = [
      [`HTTP/1.1 200 OK\r\nContent-Length: ${VALUE.length}\r\n\r\n${VALUE}`, (got) => expect(got).toContain(P)],
      [Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: ${coded.length}\r\n\r\n`), coded]), (got) => { expect(dechunked(got)).toBe(`<${P}>`); expect(got).not.toMatch(/content-encoding/i); }],
      [Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n`), coded.subarray(0, 9)]), (got) => expect(got).not.toContain("0\r\n\r\n")],
      [`HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/30\r\n\r\ns`, (got) => expect(got).toMatch(/^HTTP\/1\.1 502 /)],
      [`HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nContent-Length: 1\r\n\r\ns`, (got) => expect(got).toMatch(/^HTTP\/1\.1 502 /)],
    ];
    for (const [answer, check] of answers) {
      const w = await world({}, { onOrigin: (socket: TLSSocket) => { socket.once("data", () => socket.end(answer)); } });
      const guest = await w.guest();
      guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nRange: bytes=0-0\r\n\r\n`);
      const got = await guest.all();
      check(got, w);
      assertNowhere(VALUE, { texts: { got } });
    }
  });
  it("37: a redirect goes to the guest, and the agent makes no request of its own", async () => {
    const answers: string[] = [];
    const w = await world({}, { onOrigin: answering(["HTTP/1.1 302 Found\r\nLocation: https://evil.test/?k=" + VALUE + "\r\nContent-Length: 0\r\n\r\n"], answers) });
    const guest = await w.guest();
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nAuthorization: ${P}\r\n\r\n`);
    await guest.until(/Location: .*\r\n/);
    expect(guest.got).toContain(`Location: https://evil.test/?k=${P}\r\n`);
    expect(answers.join("").match(/GET/g)).toHaveLength(1);
    expect(w.dialled).toBe(1);
  });
  it("A55: WebSocket frames of the guest are looked through, over masks and fragments; those of its own host for the value", async () => {
    const accept = (key: string): string => createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    const frame = (text: string, opcode: number, fin: boolean, mask: Buffer | null): Buffer => {
      const payload = Buffer.from(text);
      if (mask !== null) for (let i = 0; i < payload.length; i++) payload[i] = (payload[i] as number) ^ (mask[i & 3] as number);
      return Buffer.concat([Buffer.of((fin ? 0x80 : 0) | opcode, (mask === null ? 0 : 0x80) | payload.length), mask ?? Buffer.alloc(0), payload]);
    };
    const talk = async (gate: Partial<Gate>, fromGuest: readonly Buffer[], fromOrigin: readonly Buffer[]): Promise<{ w: World; got: string; origin: Buffer }> => {
      let origin = Buffer.alloc(0);
      const w = await world(gate, { onOrigin: (socket: TLSSocket) => {
        let open = false;
        socket.on("data", (chunk: Buffer) => {
          if (open) {
            origin = Buffer.concat([origin, chunk]);
            return;
          }
          open = true;
          expect(chunk.toString()).not.toMatch(/sec-websocket-extensions/i);
          const key = /sec-websocket-key: (.*)\r\n/i.exec(chunk.toString())?.[1] as string;
          socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept(key)}\r\n\r\n`);
          for (const one of fromOrigin) socket.write(one);
        });
      } });
      const guest = await w.guest();
      guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n`);
      await guest.until("101");
      for (const one of fromGuest) {
        guest.socket.write(one);
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      const got = await guest.all();
      return { w, got, origin };
    };
    const mask = Buffer.from("a1b2c3d4", "hex"), other = Buffer.from("00ff1122", "hex");
    const fragments = [frame("hello", 1, true, mask), frame(P.slice(0, 11), 1, false, mask), frame("ping", 9, true, other), frame(P.slice(11), 0, true, other)];
    const joined = Buffer.concat(fragments);
    for (const pieces of [fragments, [joined], [...joined].map((octet) => Buffer.of(octet))]) {
      const { origin } = await talk(EVIL, pieces, []);
      if (pieces.length > 1) expect(origin.includes(frame("hello", 1, true, mask))).toBe(true);
      expect(origin.length).toBeLessThan(joined.length);
      expect(secrets.counters()["TOKEN"]?.blocked).toBeGreaterThan(0);
    }
    const { got } = await talk({}, [], [frame("hi", 1, true, null), frame(`x${VALUE.slice(0, 12)}`, 1, false, null), frame(VALUE.slice(12), 0, true, null)]);
    expect(got).toContain("hi");
    assertNowhere(VALUE, { texts: { got } });
    expect(got).not.toContain(VALUE.slice(0, 12));
  });
  describe("A54: WebSocket messages that may go on as a secret", () => {
    /** A binary frame, not masked: nobody looks whether it is. */
    const frame = (payload: string, opcode: number, fin: boolean): Buffer => {
      const head = Buffer.alloc(10);
      head[0] = (fin ? 0x80 : 0) | opcode;
      head[1] = 127;
      head.writeBigUInt64BE(BigInt(payload.length), 2);
      return Buffer.concat([head, Buffer.from(payload)]);
    };
    const ping = Buffer.concat([Buffer.of(0x89, 100), Buffer.alloc(100, "p")]);
    async function upgraded(): Promise<{ w: World; guest: Awaited<ReturnType<World["guest"]>>; got: () => number }> {
      let got = -1;
      const w = await world(EVIL, { onOrigin: (socket: TLSSocket) => {
        socket.once("data", () => {
          got = 0;
          socket.on("data", (chunk: Buffer) => { got += chunk.length; });
          socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
        });
      } });
      const guest = await w.guest();
      guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`);
      await guest.until("101");
      return { w, guest, got: () => got };
    }
    it("pieces that each end in a beginning are held one at a time", async () => {
      const { w, guest, got } = await upgraded();
      let sent = 0;
      // Each in a TLS record of its own.
      for (let i = 0; i < 200; i++) {
        const piece = frame(`${"x".repeat(8_000)}${P.slice(0, 12)}`, i === 0 ? 2 : 0, false);
        guest.socket.write(piece);
        sent += piece.length;
        await until(() => got() >= sent - piece.length || w.held() > 4 * piece.length);
      }
      expect(w.held()).toBeLessThan(200_000);
      expect(got()).toBeGreaterThan(sent - 200_000);
    });
    it("other frames behind a beginning are held up to a bound, and then the connection ends", async () => {
      const { w, guest } = await upgraded();
      guest.socket.write(frame(P.slice(0, 12), 2, false));
      for (let i = 0; i < 100 && !guest.socket.destroyed; i++) {
        guest.socket.write(Buffer.concat(Array.from({ length: 300 }, () => ping)));
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await guest.closed;
      await until(() => w.watch.size === 0);
    });
    it("a whole message that ends in one, and a ping, go on at once; a control frame that is too long does not", async () => {
      const { w, guest, got } = await upgraded();
      const whole = Buffer.concat([frame(P.slice(0, 12), 2, true), Buffer.of(0x89, 12), Buffer.from(P.slice(0, 12))]);
      guest.socket.write(whole);
      await until(() => got() === whole.length);
      guest.socket.write(frame("x".repeat(126), 9, true));
      await guest.closed;
      await until(() => w.watch.size === 0);
      expect(got()).toBe(whole.length);
    });
  });
  it.each(["a chunked body", "a body coded piece by piece", "a WebSocket's fragments"])("A54: %s, in thousands of pieces full of escapes, is looked through in few looks, and all of it passes", async (what) => {
    // Each look goes over what is kept of a long placeholder in a hundred ways of writing it: ten thousand would take many seconds.
    await open({ placeholder: { prefix: "", sameLength: false, jwt: true } });
    const COUNT = 10_000, text = `${[...(P.split(".")[2] as string).slice(0, 12)].map((char) => `%${char.charCodeAt(0).toString(16)}`).join("")}\\u0061`.repeat(COUNT).slice(0, COUNT);
    const agree = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let got = Buffer.alloc(0);
    const w = await world(EVIL, { onOrigin: (socket: TLSSocket) => {
      if (what === "a WebSocket's fragments") socket.once("data", () => socket.write(agree));
      socket.on("data", (chunk: Buffer) => { got = Buffer.concat([got, chunk]); });
    } });
    const find = vi.spyOn(Finder.prototype, "find");
    const guest = await w.guest();
    const head = (...fields: string[]): void => guest.write(`${[`POST / HTTP/1.1`, `Host: ${NAME}`, ...fields].join("\r\n")}\r\n\r\n`);
    const chunked = (pieces: readonly Buffer[]): Buffer => Buffer.concat([...pieces.flatMap((piece) => [Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from("\r\n")]), Buffer.from("0\r\n\r\n")]);
    const octets = [...Buffer.from(text)].map((octet) => Buffer.of(octet));
    switch (what) {
      case "a chunked body": case "a body coded piece by piece": {
        let pieces: Buffer[] = octets;
        if (what !== "a chunked body") {
          // Each octet behind a flush: some six octets of its own.
          const deflate = createDeflate({ flush: constants.Z_SYNC_FLUSH }), coded: Buffer[] = [];
          deflate.on("data", (piece: Buffer) => coded.push(piece));
          for (const octet of octets.slice(0, COUNT / 2)) await new Promise<void>((resolve) => deflate.write(octet, () => resolve()));
          deflate.end();
          await new Promise((resolve) => deflate.once("end", resolve));
          pieces = coded;
        }
        head("Transfer-Encoding: chunked", ...(what === "a chunked body" ? [] : ["Content-Encoding: deflate"]));
        guest.socket.write(chunked(pieces));
        await until(() => got.subarray(-5).equals(Buffer.from("0\r\n\r\n")));
        if (what === "a chunked body") expect(dechunked(got.toString("latin1"))).toBe(text);
        else expect(inflateSync(Buffer.from(dechunked(got.toString("latin1")), "latin1")).toString()).toBe(text.slice(0, COUNT / 2));
        break;
      }
      default: {
        guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`);
        await guest.until("101");
        const frames = Buffer.concat(octets.map((octet, i) => Buffer.from([i === 0 ? 1 : i === COUNT - 1 ? 0x80 : 0, 0x81, 0, 0, 0, 0, ...octet])));
        guest.socket.write(frames);
        await until(() => got.subarray(-frames.length).equals(frames));
      }
    }
    expect(find.mock.calls.length).toBeLessThan(COUNT / 10);
  });
  it("A54: what a decoder keeps counts as kept, by some octets on the wire, until the request is over", async () => {
    for (let bits = 10; bits <= 24; bits++) expect(brotliWindow(brotliCompressSync("x".repeat(999), { params: { [constants.BROTLI_PARAM_LGWIN]: bits } })[0] as number)).toBe(1 << bits);
    const OCTETS = 48 << 20, coded = brotliCompressSync(Buffer.alloc(OCTETS, "a"), { params: { [constants.BROTLI_PARAM_LGWIN]: 24, [constants.BROTLI_PARAM_QUALITY]: 5 } });
    expect(coded.length).toBeLessThan(100);
    const w = await world(EVIL);
    const guest = await w.guest(), find = vi.spyOn(Finder.prototype, "find");
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n${coded.length.toString(16)}\r\n${coded.toString("latin1")}\r\n`);
    let looked = 0, at = 0;
    await until(() => {
      for (; at < find.mock.calls.length; at++) looked += find.mock.calls[at]?.[0].length ?? 0;
      return looked > OCTETS / 2;
    });
    expect(w.held()).toBeGreaterThan(16 << 20);
    await until(() => {
      for (; at < find.mock.calls.length; at++) looked += find.mock.calls[at]?.[0].length ?? 0;
      return looked >= OCTETS;
    });
    guest.write("0\r\n\r\n");
    await until(() => seen(w).endsWith("0\r\n\r\n"));
    expect(w.held()).toBeLessThan(1 << 20);
  });
  it("38: a rotation counts for the next request of an open connection, a removal too", async () => {
    await open({ ttl: 60 });
    const answers: string[] = [];
    const w = await world({}, { onOrigin: answering([OK, OK, OK], answers) });
    const guest = await w.guest();
    const ask = (): void => guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nAuthorization: ${P}\r\n\r\n`);
    ask();
    await guest.until(/ok\r\n0\r\n\r\n$/);
    environment["TOKEN"] = "rotated-value-2";
    time += 60_000;
    guest.got = "";
    ask();
    await guest.until(/ok\r\n0\r\n\r\n$/);
    await secrets.replace([]);
    guest.got = "";
    ask();
    await guest.until(/403/);
    expect(answers.join("").match(/Authorization: .*/g)).toEqual([`Authorization: ${VALUE}`, "Authorization: rotated-value-2"]);
    expect(w.dialled).toBe(1);
  });
  it("A57: over plain HTTP a placeholder goes nowhere", async () => {
    const w = await world({ port: 80, intercepted: false, verified: false });
    const guest = await w.guest();
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nAuthorization: Bearer ${P}\r\n\r\n`);
    await guest.until(/403 /);
    expect(seen(w)).toBe("");
  });
  it("A58: a far side that is not trusted sees no octet of the request", async () => {
    const w = await world({}, { trusted: [] });
    const guest = await w.guest();
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nAuthorization: Bearer ${P}\r\n\r\n`);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 502 /);
    expect(seen(w)).toBe("");
    expect(secrets.counters()["TOKEN"]?.injected).toBe(0);
  });
  it("pass: a transcript with the placeholder reaches the host that is named, unmodified", async () => {
    await open({ onViolation: { action: "pass", hosts: [pattern("evil.test")] } });
    const answers: string[] = [];
    const w = await world(EVIL, { onOrigin: answering([OK], answers) });
    const guest = await w.guest();
    const body = `{"env":"TOKEN=${P}"}`;
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    await until(() => answers.join("").endsWith(body));
    expect(passed).toMatchObject([{ action: "pass", place: "body" }]);
  });
});

describe("HTTP/2", () => {
  const sessions: { close(): void; destroy(): void }[] = [];
  afterEach(() => { for (const session of sessions.splice(0)) session.destroy(); });
  interface Seen { headers: IncomingHttpHeaders; raw: readonly string[]; body: string; sensitive: readonly string[] }

  async function h2(gate: Partial<Gate>, answer: (stream: import("node:http2").ServerHttp2Stream) => void = (stream) => { stream.respond({ ":status": 200 }); stream.end("ok"); }): Promise<{ session: ClientHttp2Session; requests: Seen[]; w: World }> {
    const requests: Seen[] = [];
    const server = createSecureServer({});
    server.on("error", () => undefined);
    const w = await world(gate, { alpn: ["h2"], origin: { ALPNProtocols: ["h2"] }, onOrigin: (socket) => {
      const { performServerHandshake, sensitiveHeaders } = h2module;
      const session = performServerHandshake(socket as never);
      (session as unknown as NodeJS.EventEmitter).on("stream", (stream: import("node:http2").ServerHttp2Stream, headers: IncomingHttpHeaders, _flags: number, raw: string[]) => {
        const one: Seen = { headers, raw, body: "", sensitive: (headers as { [sensitiveHeaders]?: string[] })[sensitiveHeaders] ?? [] };
        requests.push(one);
        stream.setEncoding("latin1").on("data", (chunk: string) => { one.body += chunk; });
        stream.on("error", () => undefined);
        answer(stream);
      });
      session.on("error", () => undefined);
    } });
    const guest = await w.guest({ ALPNProtocols: ["h2"] });
    guest.socket.removeAllListeners("data");
    const session = h2connect(`https://${NAME}`, { createConnection: () => guest.socket as never });
    sessions.push(session);
    session.on("error", () => undefined);
    return { session, requests, w };
  }
  async function ask(session: ClientHttp2Session, headers: OutgoingHttpHeaders, body: readonly (string | Buffer)[] = []): Promise<{ headers: IncomingHttpHeaders; body: string; trailers: IncomingHttpHeaders; code: number }> {
    const stream = session.request({ ":path": "/", ":authority": NAME, ...headers }, { endStream: body.length === 0 });
    stream.on("error", () => undefined);
    for (const piece of body) stream.write(piece);
    if (body.length > 0) stream.end();
    let got = "", answer: IncomingHttpHeaders = {}, trailers: IncomingHttpHeaders = {};
    stream.on("response", (received) => { answer = received; });
    stream.on("trailers", (received) => { trailers = received; });
    stream.setEncoding("latin1").on("data", (chunk: string) => { got += chunk; });
    await new Promise((resolve) => stream.once("close", resolve));
    return { headers: answer, body: got, trailers, code: stream.rstCode };
  }

  it("32: the value goes in, as a literal that is never indexed", async () => {
    const { session, requests } = await h2({});
    const answer = await ask(session, { authorization: `Bearer ${P}`, "x-other": "1" });
    expect(answer).toMatchObject({ headers: { ":status": 200 }, body: "ok" });
    expect(requests[0]?.headers["authorization"]).toBe(`Bearer ${VALUE}`);
    expect(requests[0]?.sensitive).toContain("authorization");
    expect(requests[0]?.headers["accept-encoding"]).toBe("identity");
  });
  it("33, 34: elsewhere the stream is refused and the others live; bodies over DATA frames too", async () => {
    const { session, requests } = await h2(EVIL);
    const [bad, good] = await Promise.all([ask(session, { authorization: P }), ask(session, { "x-other": "1" })]);
    expect(bad.headers[":status"]).toBe(403);
    expect(bad.body).toContain("secret TOKEN");
    expect(good.headers[":status"]).toBe(200);
    const body = await ask(session, { ":method": "POST" }, [`{"k":"${P.slice(0, 7)}`, P.slice(7), '"}']);
    expect(Number(body.headers[":status"]) === 403 || body.code !== 0).toBe(true);
    expect(requests.map((one) => JSON.stringify(one)).join("")).not.toContain(P);
  });
  it("35: a body with a length has the right one; without it streams", async () => {
    await open({ inject: { headers: null, query: false, body: true, path: false } });
    const { session, requests } = await h2({});
    const text = `{"k":"${P}"}`;
    await ask(session, { ":method": "POST", "content-type": "application/json", "content-length": String(text.length) }, [text.slice(0, 12), text.slice(12)]);
    expect(requests[0]).toMatchObject({ headers: { "content-length": String(VALUE.length + 8) }, body: `{"k":"${VALUE}"}` });
    await ask(session, { ":method": "POST", "content-type": "application/json" }, [text.slice(0, 12), text.slice(12)]);
    expect(requests[1]?.headers["content-length"]).toBeUndefined();
    expect(requests[1]?.body).toBe(`{"k":"${VALUE}"}`);
  });
  it("36: echoes in fields, DATA frames and trailers", async () => {
    const { session } = await h2({}, (stream) => {
      stream.respond({ ":status": 200, "x-echo": VALUE }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "x-t": VALUE, "grpc-status": "0" }));
      for (const octet of `<${VALUE}>`) stream.write(octet);
      stream.end();
    });
    const answer = await ask(session, { authorization: P });
    expect(answer.headers["x-echo"]).toBe(P);
    expect(answer.body).toBe(`<${P}>`);
    expect(answer.trailers).toMatchObject({ "x-t": P, "grpc-status": "0" });
  });
  it("38: rotation and removal on an open connection", async () => {
    await open({ ttl: 60 });
    const { session, requests } = await h2({});
    await ask(session, { authorization: P });
    environment["TOKEN"] = "rotated-value-2";
    time += 60_000;
    await ask(session, { authorization: P });
    await secrets.replace([]);
    expect((await ask(session, { authorization: P })).headers[":status"]).toBe(403);
    expect(requests.map(({ headers }) => headers["authorization"])).toEqual([VALUE, "rotated-value-2"]);
  });
});
const h2module = await import("node:http2");
