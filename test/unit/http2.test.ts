/** HTTP/2 through the interceptor (A42, A54, TLS.md tests 10, 21, 23, 26, 28, 29, 30): Node's client, and frames by hand. */
import { connect as h2connect, constants, performServerHandshake, sensitiveHeaders, type ClientHttp2Session, type ClientHttp2Stream, type Http2SecureServer, type IncomingHttpHeaders, type OutgoingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream, type SessionOptions } from "node:http2";
import type { TLSSocket } from "node:tls";
import { afterEach, describe, expect, it } from "vitest";
import type { ExchangeFilter, RequestFacts } from "../../src/tls/http/passage.js";
import { refuse } from "../../src/tls/http/refusal.js";
import { answering, NAME, until, World, type WorldOptions } from "./http-world.js";

const worlds: World[] = [];
const sessions: ClientHttp2Session[] = [];
afterEach(async () => {
  for (const session of sessions.splice(0)) session.destroy();
  for (const world of worlds.splice(0)) await world.stop();
});

type OnStream = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, raw: string[]) => void;
interface H2World { readonly world: World; readonly origins: ServerHttp2Session[]; client(options?: SessionOptions): Promise<ClientHttp2Session> }

async function h2(onStream: OnStream, options: WorldOptions & { settings?: SessionOptions } = {}): Promise<H2World> {
  const origins: ServerHttp2Session[] = [];
  const world = new World({
    alpn: ["h2"], origin: { ALPNProtocols: ["h2"] },
    onOrigin: (socket: TLSSocket) => {
      const session = performServerHandshake(socket, options.settings ?? {});
      origins.push(session);
      session.on("error", () => undefined);
      (session as unknown as Http2SecureServer).on("stream", ((stream: ServerHttp2Stream, headers: IncomingHttpHeaders, _flags: number, raw: string[]) => {
        stream.on("error", () => undefined);
        onStream(stream, headers, raw);
      }) as never);
    }, ...options,
  });
  worlds.push(world);
  await world.start();
  return {
    world, origins,
    async client(sessionOptions = {}) {
      const guest = await world.guest({ allowHalfOpen: false } as object);
      guest.socket.removeAllListeners("data");
      const session = h2connect(`https://${NAME}`, { ...sessionOptions, createConnection: () => guest.socket });
      session.on("error", () => undefined);
      sessions.push(session);
      await new Promise((resolve) => session.once("remoteSettings", resolve));
      return session;
    },
  };
}

interface Answer { status: number; headers: IncomingHttpHeaders; body: string; trailers: IncomingHttpHeaders | null; code: number; flags: number; interim: IncomingHttpHeaders[] }

function ask(session: ClientHttp2Session, headers: OutgoingHttpHeaders, body?: string): Promise<Answer> {
  return answerOf(session.request(headers, body === undefined ? {} : { endStream: false }), body);
}

function answerOf(stream: ClientHttp2Stream, body?: string): Promise<Answer> {
  return new Promise((resolve) => {
    const got: Answer = { status: 0, headers: {}, body: "", trailers: null, code: 0, flags: 0, interim: [] };
    stream.on("headers", (headers) => got.interim.push(headers));
    stream.on("response", (headers, flags) => Object.assign(got, { status: Number(headers[":status"]), headers, flags }));
    stream.on("data", (chunk: Buffer) => { got.body += chunk.toString("latin1"); });
    stream.on("trailers", (trailers: IncomingHttpHeaders) => { got.trailers = trailers; });
    stream.on("error", () => undefined);
    stream.on("close", () => {
      got.code = stream.rstCode ?? 0;
      resolve(got);
    });
    if (body !== undefined) stream.end(body);
  });
}

const ok: OnStream = (stream) => {
  stream.respond({ ":status": 200 });
  stream.end("ok");
};

describe("requests and answers", () => {
  it("fields, body and answer pass; there is one session upstream for one here", async () => {
    let raw: string[] = [], body = "";
    const w = await h2((stream, _, seen) => {
      raw = seen;
      stream.on("data", (chunk: Buffer) => { body += chunk.toString(); });
      stream.on("end", () => {
        stream.respond({ ":status": 201, "x-a": "1", "set-cookie": ["a", "b"] }, { sendDate: false } as object);
        stream.end("made");
      });
    });
    const session = await w.client();
    const answer = await ask(session, { ":method": "POST", ":authority": NAME, ":path": "/a?b", "x-b": "1", cookie: "a=b; c=d", te: "trailers", "content-length": 5 }, "hello");
    expect(answer).toMatchObject({ status: 201, body: "made", code: 0 });
    expect(answer.headers["set-cookie"]).toEqual(["a", "b"]);
    expect(answer.headers["date"]).toBeUndefined();
    expect(body).toBe("hello");
    expect(raw.slice(0, 8)).toEqual([":method", "POST", ":scheme", "https", ":authority", NAME, ":path", "/a?b"]);
    expect(raw).toContain("x-b");
    await ask(session, { ":path": "/2" });
    expect(w.world.dialled).toBe(1);
  });
  it("32: who asks is never indexed, and what the guest marked neither", async () => {
    let marked: string[] = [];
    const w = await h2((stream, headers) => {
      marked = (headers as { [sensitiveHeaders]?: string[] })[sensitiveHeaders] ?? [];
      ok(stream, headers, []);
    });
    await ask(await w.client(), { ":path": "/", authorization: "Bearer x", "x-own": "y", "x-plain": "z", [sensitiveHeaders]: ["x-own"] } as OutgoingHttpHeaders);
    expect(marked.sort()).toEqual(["authorization", "x-own"]);
  });
  it("26: gRPC: the answer begins before the request ends; trailers, and an answer of trailers only", async () => {
    const w = await h2((stream, headers) => {
      if (headers[":path"] === "/only") {
        stream.respond({ ":status": 200, "grpc-status": "5" }, { endStream: true });
        return;
      }
      stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", "grpc-message": "fine" }));
      stream.on("data", (chunk: Buffer) => stream.write(chunk));
      stream.on("end", () => stream.end());
    });
    const session = await w.client();
    const stream = session.request({ ":method": "POST", ":path": "/bidi", te: "trailers" }, { endStream: false });
    const done = answerOf(stream);
    for (let i = 0; i < 20; i++) {
      stream.write(`message ${i}`);
      await new Promise((resolve) => stream.once("data", resolve)); // each comes back before the next is sent
    }
    stream.end();
    expect(await done).toMatchObject({ status: 200, trailers: { "grpc-status": "0", "grpc-message": "fine" }, code: 0 });
    const only = await ask(session, { ":method": "POST", ":path": "/only" }, "");
    expect(only).toMatchObject({ status: 200, trailers: null, code: 0, body: "" });
    expect(only.headers["grpc-status"]).toBe("5");
    expect(only.flags & constants.NGHTTP2_FLAG_END_STREAM).toBe(constants.NGHTTP2_FLAG_END_STREAM);
  });
  it("request trailers pass", async () => {
    let trailers: IncomingHttpHeaders = {};
    const w = await h2((stream) => {
      stream.on("trailers", (got: IncomingHttpHeaders) => { trailers = got; });
      stream.resume();
      stream.on("end", () => { stream.respond({ ":status": 200 }); stream.end(); });
    });
    const stream = (await w.client()).request({ ":method": "POST", ":path": "/" }, { endStream: false, waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "x-sum": "7" }));
    await answerOf(stream, "hello");
    expect(trailers["x-sum"]).toBe("7");
  });
  it.each(["while it is judged", "while its body is gathered"])("request trailers that come %s pass, and are looked at", async (when) => {
    const seen: IncomingHttpHeaders[] = [];
    const later = async <T>(value: T): Promise<T> => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return value;
    };
    const filter = (request: RequestFacts): ExchangeFilter => ({
      target: request.target, fields: request.fields, body: null, bodyLength: null, responseHead: (_status, phrase, fields) => ({ phrase, fields: [...fields] }), responseBody: () => null, responseTrailers: (fields) => [...fields], done: () => undefined,
      requestTrailers: (fields) => (fields.includes("x-bad") ? refuse(403, "secret") : [...fields, "x-looked-at", "1"]),
      whole: async (source) => Buffer.concat(await source.toArray() as Buffer[]),
    });
    const w = await h2((stream) => {
      stream.on("trailers", (got: IncomingHttpHeaders) => seen.push(got));
      stream.resume();
      stream.on("end", () => { stream.respond({ ":status": 200 }); stream.end(); });
    }, when === "while it is judged" ? { judge: () => later(null) } : { filter });
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    const ask = (stream: number, name: string): void => {
      client.socket.write(Buffer.concat([frame(HEADERS, END_HEADERS, stream, block([[":method", "POST"], ...GOOD.slice(1)])), frame(0, 0, stream, Buffer.from("hello")), frame(HEADERS, END_STREAM | END_HEADERS, stream, block([[name, "7"]]))]));
    };
    ask(1, "x-sum");
    expect(await client.outcome(1)).toBe("200");
    expect(seen.map((trailers) => Object.keys(trailers).sort())).toEqual([when === "while it is judged" ? ["x-sum"] : ["x-looked-at", "x-sum"]]);
    ask(3, "authorization");
    expect(await client.outcome(3)).toBe("400");
    ask(5, "x-bad");
    expect(await client.outcome(5)).toBe(when === "while it is judged" ? "200" : "403");
    expect(w.world.refusals).toEqual(when === "while it is judged" ? ["framing"] : ["framing", "secret"]);
    expect(seen).toHaveLength(when === "while it is judged" ? 2 : 1);
  });
  it.each([["host", "evil.test"], ["authorization", "Bearer x"], ["content-type", "text/html"], ["cookie", "a=b"]])("A49: a request's trailer %s is refused and the request does not end; an answer's is left out", async (name, value) => {
    let ended = false, got: IncomingHttpHeaders = {};
    const w = await h2((stream, headers) => {
      stream.on("error", () => undefined);
      if (headers[":path"] === "/answer") {
        stream.respond({ ":status": 200 }, { waitForTrailers: true });
        stream.on("wantTrailers", () => stream.sendTrailers({ "x-sum": "7", [name]: value }));
        stream.end("x");
        return;
      }
      stream.on("trailers", (trailers: IncomingHttpHeaders) => { got = trailers; });
      stream.resume();
      stream.on("end", () => {
        if (stream.aborted) return;
        ended = true;
        stream.respond({ ":status": 200 });
        stream.end();
      });
    });
    const client = await w.client();
    const refused = client.request({ ":method": "POST", ":path": "/" }, { endStream: false, waitForTrailers: true });
    refused.on("wantTrailers", () => refused.sendTrailers({ [name]: value }));
    expect((await answerOf(refused, "hello")).status).toBe(400);
    expect([ended, got]).toEqual([false, {}]);
    const stream = client.request({ ":path": "/answer" });
    let trailers: IncomingHttpHeaders = {};
    stream.on("trailers", (all: IncomingHttpHeaders) => { trailers = all; });
    await answerOf(stream);
    expect([trailers["x-sum"], trailers[name]]).toEqual(["7", undefined]);
  });
  it("fields with names that objects of JavaScript have by themselves are fields like others", async () => {
    const seen: string[][] = [];
    const w = await h2((stream, _headers, raw) => {
      seen.push([...raw]);
      stream.respond(Object.assign(Object.create(null) as object, { ":status": 200, constructor: "c", ["__proto__"]: "p" }));
      stream.end();
    });
    const client = await w.client();
    const answer = await answerOf(client.request(Object.assign(Object.create(null) as object, { ":path": "/", constructor: "a", ["__proto__"]: "b", hasownproperty: "d" })));
    const fields = seen[0] as string[];
    expect(["constructor", "__proto__", "hasownproperty"].map((name) => fields.flatMap((field, i) => (i % 2 === 0 && field === name ? [fields[i + 1]] : [])))).toEqual([["a"], ["b"], ["d"]]);
    expect([answer.headers["constructor"], Object.getOwnPropertyDescriptor(answer.headers, "__proto__")?.value]).toEqual(["c", "p"]);
  });
  it("28: 103, HEAD, 204 and 304", async () => {
    const w = await h2((stream, headers) => {
      if (headers[":path"] === "/hints") stream.additionalHeaders({ ":status": 103, link: "</a>; rel=preload" });
      const status = Number(/\d+/.exec(headers[":path"] as string)?.[0] ?? 200);
      stream.respond({ ":status": status, ...(headers[":method"] === "HEAD" ? { "content-length": "99" } : {}) }, { endStream: true });
    });
    const session = await w.client();
    const hints = await ask(session, { ":path": "/hints" });
    expect(hints.interim).toEqual([expect.objectContaining({ ":status": 103, link: "</a>; rel=preload" })]);
    expect(await ask(session, { ":path": "/", ":method": "HEAD" })).toMatchObject({ status: 200, headers: { "content-length": "99" }, body: "" });
    for (const status of [204, 304]) expect(await ask(session, { ":path": `/${status}` })).toMatchObject({ status, body: "", code: 0 });
  });
  it("27: Expect: the far side's 100 is passed on", async () => {
    const w = await h2((stream) => {
      stream.additionalHeaders({ ":status": 100 });
      stream.resume();
      stream.on("end", () => { stream.respond({ ":status": 200 }); stream.end(); });
    });
    const stream = (await w.client()).request({ ":method": "POST", ":path": "/", expect: "100-continue" }, { endStream: false });
    await new Promise((resolve) => stream.once("continue", resolve));
    expect(await answerOf(stream, "hello")).toMatchObject({ status: 200 });
  });
  it("an answer that may not pass: 403 in its place, the far side's stream is reset, the session goes on", async () => {
    const codes: number[] = [];
    const w = await h2((stream, headers) => {
      stream.on("close", () => codes.push(stream.rstCode ?? 0));
      stream.respond({ ":status": 200, "content-type": headers[":path"] === "/bad" ? "application/dns-message" : "text/plain" });
      if (headers[":path"] === "/bad") stream.write("not told");
      else stream.end("ok");
    }, { judgeAnswer: (fields) => (fields.includes("application/dns-message") ? refuse(403, "dns-message") : null) });
    const session = await w.client(), bad = await ask(session, { ":path": "/bad" });
    expect([bad.status, JSON.parse(bad.body)]).toMatchObject([403, { reason: "dns-message" }]);
    expect(await ask(session, { ":path": "/" })).toMatchObject({ status: 200, body: "ok" });
    await until(() => codes.length === 2);
    expect(codes).toEqual([constants.NGHTTP2_CANCEL, 0]);
  });
  it("30: Alt-Svc and ALTSVC frames do not reach the guest", async () => {
    const w = await h2((stream) => {
      (stream.session as ServerHttp2Session).altsvc('h3=":443"', stream.id as number);
      stream.respond({ ":status": 200, "alt-svc": 'h3=":443"' });
      stream.end("ok");
    });
    const session = await w.client();
    let altsvc = 0;
    session.on("altsvc", () => { altsvc++; });
    const answer = await ask(session, { ":path": "/" });
    expect(answer.headers["alt-svc"]).toBeUndefined();
    expect(altsvc).toBe(0);
  });
  it("resets pass in both directions with their code", async () => {
    let atOrigin: number | null = null, began = false;
    const w = await h2((stream, headers) => {
      if (headers[":path"] === "/theirs") stream.close(constants.NGHTTP2_HTTP_1_1_REQUIRED);
      else {
        began = true;
        stream.on("close", () => { atOrigin = stream.rstCode ?? null; });
      }
    });
    const session = await w.client();
    expect((await ask(session, { ":path": "/theirs" })).code).toBe(constants.NGHTTP2_HTTP_1_1_REQUIRED);
    const mine = session.request({ ":path": "/mine" });
    mine.on("error", () => undefined);
    await until(() => began);
    mine.close(constants.NGHTTP2_CANCEL);
    await until(() => atOrigin !== null);
    expect(atOrigin).toBe(constants.NGHTTP2_CANCEL);
  });
  it("GOAWAY passes on: streams under way end well, then the session is over", async () => {
    const w = await h2((stream, headers) => {
      if (headers[":path"] === "/slow") stream.session?.goaway(constants.NGHTTP2_NO_ERROR, stream.id);
      setTimeout(() => ok(stream, headers, []), 50);
    });
    const session = await w.client();
    let goaway = 0;
    session.on("goaway", () => { goaway++; });
    expect(await ask(session, { ":path": "/slow" })).toMatchObject({ status: 200, body: "ok" });
    await until(() => session.closed || session.destroyed);
    expect(goaway).toBeGreaterThan(0);
  });
  it("a far side that breaks off: streams without an answer get 502 or a reset, the session ends", async () => {
    const w: H2World = await h2(() => { w.world.raws[0]?.destroy(); });
    const session = await w.client();
    const answer = await ask(session, { ":path": "/" });
    expect(answer.status === 502 || answer.code !== 0).toBe(true);
    await until(() => session.closed || session.destroyed);
    await until(() => w.world.watch.size === 0);
  });
  it("26: the far side's bound of streams is the guest's", async () => {
    const w = await h2(ok, { settings: { settings: { maxConcurrentStreams: 7 } } });
    expect((await w.client()).remoteSettings.maxConcurrentStreams).toBe(7);
    const wide = await h2(ok);
    expect((await wide.client()).remoteSettings).toMatchObject({ maxConcurrentStreams: 128, enablePush: false });
    const many = await wide.client();
    const answers = await Promise.all(Array.from({ length: 1000 }, (_, i) => ask(many, { ":path": `/${i}` })));
    expect(answers.every((answer) => answer.status === 200 && answer.body === "ok")).toBe(true);
  });
  it("16 MB each way, held back where the other side does not read", async () => {
    const SIZE = 16 << 20, block = Buffer.alloc(1 << 16, "x");
    let got = 0;
    const w = await h2((stream) => {
      stream.on("data", (chunk: Buffer) => { got += chunk.length; });
      stream.on("end", () => {
        stream.respond({ ":status": 200, "content-length": SIZE });
        let sent = 0;
        const more = (): void => {
          while (sent < SIZE) {
            sent += block.length;
            if (!stream.write(block)) {
              stream.once("drain", more);
              return;
            }
          }
          stream.end();
        };
        more();
      });
    });
    const stream = (await w.client()).request({ ":method": "POST", ":path": "/", "content-length": SIZE }, { endStream: false });
    let back = 0;
    stream.on("data", (chunk: Buffer) => { back += chunk.length; });
    for (let sent = 0; sent < SIZE; sent += block.length) if (!stream.write(block)) await new Promise((resolve) => stream.once("drain", resolve));
    stream.end();
    await new Promise((resolve) => stream.once("close", resolve));
    expect([got, back]).toEqual([SIZE, SIZE]);
  });
});

describe("10: protocols are mirrored", () => {
  it("a guest of h2 only, a far side of http/1.1 only: alert 120, and why is counted", async () => {
    const w = new World({ alpn: ["h2"], origin: { ALPNProtocols: ["http/1.1"] } });
    worlds.push(w);
    await w.start();
    await expect(w.guest()).rejects.toThrow(/no application protocol/);
    await until(() => w.refusals.length > 0);
    expect(w.refusals).toEqual(["upstream-alpn"]);
  });
  it("both offered, a far side of http/1.1 only: http/1.1 end to end", async () => {
    const w = new World({ alpn: ["h2", "http/1.1"], origin: { ALPNProtocols: ["http/1.1"] }, onOrigin: answering(["HTTP/1.1 204 No\r\n\r\n"]) });
    worlds.push(w);
    await w.start();
    const guest = await w.guest();
    expect((guest.socket as TLSSocket).alpnProtocol).toBe("http/1.1");
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    await guest.until("204");
  });
  it("a far side without ALPN: http/1.1 if it was offered", async () => {
    const w = new World({ alpn: ["h2", "http/1.1"], origin: { ALPNProtocols: [] } });
    worlds.push(w);
    await w.start();
    expect(((await w.guest()).socket as TLSSocket).alpnProtocol).toBe("http/1.1");
  });
  it("acme-tls/1 alone is refused, and nobody is dialled", async () => {
    const w = new World({ alpn: ["acme-tls/1"] });
    worlds.push(w);
    await w.start();
    await expect(w.guest()).rejects.toThrow(/no application protocol/);
    expect(w.dialled).toBe(0);
  });
  it("a far side that chose h2 and speaks something else: no stream passes", async () => {
    const w = new World({ alpn: ["h2"], origin: { ALPNProtocols: ["h2"] }, onOrigin: (socket) => socket.end("HTTP/1.1 400 Bad\r\n\r\n") });
    worlds.push(w);
    await w.start();
    const guest = await w.guest();
    guest.socket.removeAllListeners("data");
    const session = h2connect(`https://${NAME}`, { createConnection: () => guest.socket });
    sessions.push(session);
    session.on("error", () => undefined);
    expect(await ask(session, { ":path": "/" })).toMatchObject({ status: 502 });
  });
});

/** Frames by hand (RFC 9113 section 4.1): HPACK literals without indexing. */
const frame = (type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
};
const literal = (text: string): Buffer => {
  const bytes = Buffer.from(text, "latin1");
  if (bytes.length < 127) return Buffer.concat([Buffer.of(bytes.length), bytes]);
  const octets = [127];
  let left = bytes.length - 127;
  for (; left >= 128; left >>>= 7) octets.push((left & 127) | 128);
  return Buffer.concat([Buffer.from([...octets, left]), bytes]);
};
const block = (fields: readonly (readonly [string, string])[]): Buffer => Buffer.concat(fields.flatMap(([name, value]) => [Buffer.of(0), literal(name), literal(value)]));
const PREFACE = Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0)]);
const HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, CONTINUATION = 9, END_STREAM = 1, END_HEADERS = 4;

interface Frame { type: number; flags: number; stream: number; payload: Buffer }

class RawClient {
  readonly frames: Frame[] = [];
  closed = false;
  #held = Buffer.alloc(0);

  constructor(readonly socket: TLSSocket) {
    socket.removeAllListeners("data");
    socket.on("data", (chunk: Buffer) => {
      this.#held = Buffer.concat([this.#held, chunk]);
      while (this.#held.length >= 9) {
        const length = this.#held.readUIntBE(0, 3);
        if (this.#held.length < 9 + length) break;
        this.frames.push({ type: this.#held[3] as number, flags: this.#held[4] as number, stream: this.#held.readUInt32BE(5), payload: this.#held.subarray(9, 9 + length) });
        this.#held = this.#held.subarray(9 + length);
      }
    });
    socket.on("close", () => { this.closed = true; });
    socket.on("end", () => { this.closed = true; socket.end(); });
    socket.write(PREFACE);
  }

  ask(stream: number, fields: readonly (readonly [string, string])[], flags = END_STREAM | END_HEADERS): void { this.socket.write(frame(HEADERS, flags, stream, block(fields))); }

  /** How a stream was answered: first octet of its status by HPACK, or its reset, or the session's GOAWAY. */
  async outcome(stream: number): Promise<string> {
    const found = (): string | null => {
      const frames = this.frames.filter((one) => one.stream === stream);
      const reset = frames.find((one) => one.type === RST_STREAM);
      const headers = frames.find((one) => one.type === HEADERS);
      if (headers !== undefined) return statusOf(headers.payload);
      if (reset !== undefined) return `reset ${reset.payload.readUInt32BE(0)}`;
      const goaway = this.frames.find((one) => one.type === GOAWAY);
      if (goaway !== undefined) return `goaway ${goaway.payload.readUInt32BE(4)}`;
      return this.closed ? "closed" : null;
    };
    await until(() => found() !== null);
    return found() as string;
  }
}

/** Statuses as nghttp2 writes them: indexed (200, 204, 206, 304, 400, 404, 500), or a literal of three digits, Huffman or not. */
function statusOf(payload: Buffer): string {
  const first = payload[0] as number;
  const indexed: Record<number, string> = { 0x88: "200", 0x89: "204", 0x8a: "206", 0x8b: "304", 0x8c: "400", 0x8d: "404", 0x8e: "500" };
  if (first in indexed) return indexed[first] as string;
  const at = 1, length = (payload[at] as number) & 0x7f, raw = payload.subarray(at + 1, at + 1 + length);
  return ((payload[at] as number) & 0x80) === 0 ? raw.toString("latin1") : huffmanDigits(raw);
}

/** Digits of HPACK's Huffman code (RFC 7541 appendix B): 0, 1, 2 in five bits, 3 to 9 in six. */
function huffmanDigits(raw: Buffer): string {
  const bits = [...raw].map((octet) => octet.toString(2).padStart(8, "0")).join("");
  let text = "", at = 0;
  while (text.length < 3) {
    const five = Number.parseInt(bits.slice(at, at + 5), 2);
    if (five <= 2) {
      text += String(five);
      at += 5;
    } else {
      text += String(Number.parseInt(bits.slice(at, at + 6), 2) - 0x19 + 3);
      at += 6;
    }
  }
  return text;
}

const GOOD: readonly (readonly [string, string])[] = [[":method", "GET"], [":scheme", "https"], [":authority", NAME], [":path", "/"]];
const changed = (name: string, value: string): (readonly [string, string])[] => GOOD.map((field) => (field[0] === name ? [name, value] : field));
const left = (name: string): (readonly [string, string])[] => GOOD.filter((field) => field[0] !== name);

describe("A42, A54, 21, 23: a stream for another host or in an odd form is refused; the others of the session go on", () => {
  const rows: [string, (readonly [string, string])[], RegExp][] = [
    [":authority of another", changed(":authority", "evil.test"), /^421$/],
    [":authority in capitals is the same", changed(":authority", NAME.toUpperCase()), /^200$/],
    [":authority with the port is the same", changed(":authority", `${NAME}:443`), /^200$/],
    [":authority with another port", changed(":authority", `${NAME}:80`), /^421$/],
    [":authority with userinfo", changed(":authority", `a@${NAME}`), /^400$/],
    [":authority as a list", changed(":authority", `${NAME},evil.test`), /^400|reset/],
    ["an empty :authority", changed(":authority", ""), /^400|reset/],
    [":authority good, host another's", [...GOOD, ["host", "evil.test"]], /^421$/],
    [":authority good, two hosts", [...GOOD, ["host", NAME], ["host", NAME]], /reset|400/],
    ["host only", [...left(":authority"), ["host", NAME]], /^400$/],
    ["neither", left(":authority"), /reset|400/],
    ["two :authority", [...GOOD, [":authority", "evil.test"]], /reset/],
    [":scheme http", changed(":scheme", "http"), /^421$/],
    [":path absolute", changed(":path", "https://evil.test/"), /reset|400/],
    [":path empty", changed(":path", ""), /reset|400/],
    [":path with a space", changed(":path", "/a b"), /reset|400/],
    [":path with a fragment", changed(":path", "/#a"), /^400$/],
    [":method with a space", changed(":method", "GE T"), /reset|400/],
    ["TRACE", changed(":method", "TRACE"), /^405$/],
    ["CONNECT", [[":method", "CONNECT"], [":authority", NAME]], /^405$/],
    ["CONNECT of another", [[":method", "CONNECT"], [":authority", "evil.test:443"]], /^421$/],
    ["extended CONNECT where it was not announced", [...changed(":method", "CONNECT"), [":protocol", "websocket"]], /reset|405/],
    ["a field in capitals", [...GOOD, ["X-A", "b"]], /reset/],
    ["Connection", [...GOOD, ["connection", "close"]], /reset/],
    ["Transfer-Encoding", [...GOOD, ["transfer-encoding", "chunked"]], /reset/],
    ["TE other than trailers", [...GOOD, ["te", "gzip"]], /reset/],
    ["content_length", [...GOOD, ["content_length", "5"]], /^400$/],
    ["two Authorization", [...GOOD, ["authorization", "a"], ["authorization", "b"]], /^400$/],
    ["a pseudo field after others", [...GOOD, ["a", "b"], [":path", "/evil"]], /reset/],
    ["an unknown pseudo field", [...GOOD, [":x", "y"]], /reset/],
    ["an Expect of another kind", [...GOOD, ["expect", "x"]], /^417$/],
    ["a custom method", changed(":method", "PROPFIND"), /^200$/],
  ];
  it.each(rows)("%s", async (name, fields, outcome) => {
    const seen: string[] = [];
    const w = await h2((stream, headers) => {
      seen.push(`${headers[":authority"]} ${headers["host"] ?? ""} ${headers[":path"]} ${headers[":scheme"]}`);
      ok(stream, headers, []);
    });
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    client.ask(1, fields);
    expect(await client.outcome(1), name).toMatch(outcome);
    client.ask(3, GOOD);
    expect(await client.outcome(3)).toBe("200");
    expect(seen.join("\n")).not.toMatch(/evil|http$/);
  });
  it("a field with CR, LF or NUL does not reach the far side in any form", async () => {
    let raw: string[] = [];
    const w = await h2((stream, headers, seen) => { raw = seen; ok(stream, headers, []); });
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    client.ask(1, [...GOOD, ["x-a", "b\r\nhost: evil.test"]]);
    await client.outcome(1);
    client.ask(3, [...GOOD, ["x-a", "b\0c"]]);
    await client.outcome(3);
    expect(raw.join()).not.toMatch(/evil|\0/);
  });
  it("too many refused streams end the session", async () => {
    const w = await h2(ok, { limits: { refusedStreams: 5 } });
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    for (let i = 0; i < 10; i++) client.ask(1 + 2 * i, changed(":authority", "evil.test"));
    await until(() => client.frames.some((one) => one.type === GOAWAY));
    expect(client.frames.find((one) => one.type === GOAWAY)?.payload.readUInt32BE(4)).toBe(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    await until(() => client.closed);
    expect(w.world.counters.refused["limit"]).toBe(1);
  });
  it("what goes out is the checked form of the host, with its port if it was written", async () => {
    const w = await h2((stream, headers) => { stream.respond({ ":status": 200, "x-seen": `${headers[":authority"]} ${headers["host"] ?? "none"}` }, { endStream: true }); });
    const session = await w.client();
    expect((await ask(session, { ":path": "/", ":authority": "Origin.TEST.:443" })).headers["x-seen"]).toBe(`${NAME}:443 none`);
    expect((await ask(session, { ":path": "/", ":authority": NAME.toUpperCase(), host: NAME })).headers["x-seen"]).toBe(`${NAME} none`);
  });
  it("a policy that changed holds for the next stream, and a rule for its own", async () => {
    let denied = false;
    const w = await h2(ok, { judge: (request) => (denied ? refuse(403, "policy", undefined, true) : request.method === "DELETE" ? refuse(403, "rule-method") : null) });
    const session = await w.client();
    expect((await ask(session, { ":path": "/" })).status).toBe(200);
    expect(await ask(session, { ":path": "/", ":method": "DELETE" })).toMatchObject({ status: 403, body: expect.stringContaining("rule-method") as string });
    denied = true;
    expect((await ask(session, { ":path": "/" })).status).toBe(403);
  });
  it("23: extended CONNECT passes where the far side announces it", async () => {
    const w = await h2((stream, headers) => {
      stream.respond({ ":status": 200, "x-protocol": headers[":protocol"] as string });
      stream.on("data", (chunk: Buffer) => stream.write(chunk));
      stream.on("end", () => stream.end());
    }, { settings: { settings: { enableConnectProtocol: true } } });
    const session = await w.client();
    expect(session.remoteSettings.enableConnectProtocol).toBe(true);
    const stream = session.request({ ":method": "CONNECT", ":protocol": "websocket", ":path": "/chat", ":scheme": "https", ":authority": NAME }, { endStream: false });
    const done = answerOf(stream);
    stream.write("frame");
    await new Promise((resolve) => stream.once("data", resolve));
    stream.end();
    expect(await done).toMatchObject({ status: 200, body: "frame" });
  });
});

describe("A54, 29: floods end the session; another one goes on", () => {
  const floods: [string, (client: RawClient) => Promise<void>][] = [
    ["rapid reset", async (client) => {
      for (let i = 0; i < 10_000 && !client.closed; i++) {
        const stream = 1 + 2 * i;
        client.socket.write(Buffer.concat([frame(HEADERS, END_STREAM | END_HEADERS, stream, block(GOOD)), frame(RST_STREAM, 0, stream, Buffer.of(0, 0, 0, 8))]));
        if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
    }],
    ["CONTINUATION without an end", async (client) => {
      client.socket.write(frame(HEADERS, END_STREAM, 1, block(GOOD)));
      const more = frame(CONTINUATION, 0, 1, block(Array.from({ length: 100 }, (_, i) => [`x-${i}`, "a".repeat(100)] as const)));
      for (let i = 0; i < 2_000 && !client.closed; i++) {
        client.socket.write(more);
        await new Promise((resolve) => setImmediate(resolve));
      }
    }],
    ["SETTINGS", async (client) => {
      for (let i = 0; i < 300 && !client.closed; i++) {
        client.socket.write(Buffer.concat(Array.from({ length: 100 }, () => frame(SETTINGS, 0, 0, Buffer.of(0, 4, 0, 1, 0, 0)))));
        await new Promise((resolve) => setImmediate(resolve));
      }
    }],
    ["an HPACK bomb", async (client) => {
      // One large field in the table, then referred to thousands of times.
      const big = Buffer.concat([Buffer.of(0x40), literal("x-b"), literal("a".repeat(4000))]);
      client.socket.write(frame(HEADERS, END_STREAM | END_HEADERS, 1, Buffer.concat([block(GOOD), big, Buffer.alloc(16_000 - big.length, 0xbe)])));
      await client.outcome(1);
      client.socket.destroy();
    }],
  ];
  it.each(floods)("%s", async (_, flood) => {
    let streams = 0;
    const w = await h2((stream, headers) => { streams++; ok(stream, headers, []); });
    const sibling = await w.client();
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    await flood(client);
    await until(() => client.closed || client.socket.destroyed);
    expect(await ask(sibling, { ":path": "/" })).toMatchObject({ status: 200, body: "ok" });
    expect(streams).toBeLessThan(5_000);
  });
  it("a guest that takes streams back is told to calm down, and counted; a far side that resets them is not the guest's fault", async () => {
    const w = await h2((stream, headers) => {
      if (headers[":path"] === "/reset") stream.close(constants.NGHTTP2_CANCEL);
      else ok(stream, headers, []);
    }, { limits: { refusedStreams: 10_000 } });
    const session = await w.client();
    for (let i = 0; i < 600; i++) expect((await ask(session, { ":path": "/reset" })).code).toBe(constants.NGHTTP2_CANCEL);
    expect(await ask(session, { ":path": "/" })).toMatchObject({ status: 200 });
    expect(w.world.counters.refused["limit"]).toBeUndefined();
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    const taken = (stream: number): Buffer => Buffer.concat([frame(HEADERS, END_STREAM | END_HEADERS, stream, block(GOOD)), frame(RST_STREAM, 0, stream, Buffer.of(0, 0, 0, 8))]);
    client.socket.write(Buffer.concat(Array.from({ length: 900 }, (_, i) => taken(1 + 2 * i))));
    await until(() => client.closed);
    expect(client.frames.find((one) => one.type === GOAWAY)?.payload.readUInt32BE(4)).toBe(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    expect(w.world.counters.refused["limit"]).toBe(1);
  });
  it("interim answers, some octets on the wire and 60 KB each, that the guest does not take", async () => {
    // By hand: the far side says by PING that it has said all, and hears when all of that was read.
    let far: TLSSocket | null = null, asked = 0, pongs = 0;
    const status = Buffer.concat([Buffer.of(0x08), literal("103")]), again = Buffer.alloc(20, 0xbe), pings = frame(PING, 0, 0, Buffer.alloc(8));
    const w = await h2(ok, { onOrigin: (socket) => {
      far = socket;
      socket.on("error", () => undefined);
      socket.write(frame(SETTINGS, 0, 0));
      let held = Buffer.alloc(0), preface = 24;
      socket.on("data", (chunk: Buffer) => {
        held = Buffer.concat([held, chunk]);
        for (let length; held.length >= preface + 9 && held.length >= (length = preface + 9 + held.readUIntBE(preface, 3)); held = held.subarray(length), preface = 0) {
          const type = held[preface + 3] as number;
          if (type === HEADERS) asked++;
          if (type === PING) pongs++;
        }
      });
    } });
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    client.socket.pause();
    await until(() => w.world.watch.size === 1);
    const over = (): boolean => w.world.watch.size === 0;
    const told = async (frames: Buffer, more: number): Promise<void> => {
      const before = pongs;
      far?.write(Buffer.concat([...Array.from({ length: more }, () => frames), pings]));
      await until(() => pongs > before || over());
    };
    client.ask(1, GOOD);
    await until(() => asked === 1);
    // What the guest's socket takes without it goes first, in fields too large for a table: those behind it are some octets again there.
    await told(frame(HEADERS, END_HEADERS, 1, Buffer.concat([status, ...Array.from({ length: 3 }, () => [Buffer.of(0x10), literal("x-a"), literal("X".repeat(5_000))]).flat()])), 900);
    await told(frame(HEADERS, END_HEADERS, 1, Buffer.concat([status, Buffer.of(0x40), literal("x-b"), literal("a".repeat(3_000))])), 1);
    for (let i = 0; i < 10 && !over(); i++) await told(frame(HEADERS, END_HEADERS, 1, Buffer.concat([status, again])), 100);
    expect(w.world.counters.refused["limit"]).toBe(1);
    expect(over()).toBe(true);
  });
  it("PING without reading the answers", async () => {
    const w = await h2(ok);
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    client.socket.pause();
    for (let i = 0; i < 2_000 && !client.socket.destroyed; i++) {
      client.socket.write(Buffer.concat(Array.from({ length: 100 }, () => frame(PING, 0, 0, Buffer.alloc(8)))));
      await new Promise((resolve) => setImmediate(resolve));
      if (client.socket.writableLength > 8 << 20) break; // it reads no further: bounded as well
    }
    expect(await ask(await w.client(), { ":path": "/" })).toMatchObject({ status: 200 });
  });
  it("a header list over 64 KiB or 256 fields", async () => {
    const w = await h2(ok);
    const client = new RawClient((await w.world.guest()).socket as TLSSocket);
    client.ask(1, [...GOOD, ...Array.from({ length: 300 }, (_, i) => [`x-${i}`, "a"] as const)]);
    expect(await client.outcome(1)).toMatch(/431|reset|goaway/);
  });
  it("a window of nothing: the stream is cut at its own time limit", async () => {
    const w = await h2((stream) => { stream.respond({ ":status": 200 }); stream.end(Buffer.alloc(1 << 20)); }, { limits: { stallMs: 100 } });
    const session = await w.client({ settings: { initialWindowSize: 0 } });
    await new Promise((resolve) => setTimeout(resolve, 20));
    const answer = await ask(session, { ":path": "/" });
    expect(answer.body).toBe("");
    await until(() => w.world.watch.size === 0);
  });
  it("sessions without streams end when they are idle, and nothing is left", async () => {
    const w = await h2(ok, { limits: { idleMs: 50 } });
    const session = await w.client();
    await ask(session, { ":path": "/" });
    await until(() => session.closed || session.destroyed);
    await until(() => w.world.watch.size === 0 && w.origins.every((origin) => origin.destroyed));
  });
});
