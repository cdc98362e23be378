/**
 * HTTP/1.1 between one guest connection and its one upstream connection.
 *
 * Holds always: llhttp in strict mode reads both sides, framing.ts refuses what it lets through and readers could take
 * differently, and every message is written anew from what was read: no octet of a head is copied. Requests go one after the
 * other in their order, each judged when its turn comes; after a refusal that ends the connection nothing behind it is read.
 * Nothing upstream sends outlives its exchange: octets that nobody asked for end the connection. One upstream connection per
 * guest connection: when either ends, so does the other. No redirect is followed, nothing is decoded, nothing is kept.
 * Does not: judge policy or know secrets (passage.ts), speak TLS.
 */
import { createHash } from "node:crypto";
import { Agent, createServer, request as httpRequest, validateHeaderValue, type ClientRequest, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Duplex, Readable } from "node:stream";
import { stopOf } from "../../secrets/exchange.js";
import { passing } from "./buffers.js";
import { plainTrailers, requestFields, responseFields, tokensOf, valuesOf, type Fields } from "./fields.js";
import { HEAD_MAX, readRequestHead, responseBodyOf, type Body, type RequestHead } from "./framing.js";
import { checkHosts, parseHost, plainHost } from "./identity.js";
import { WAITING_OCTETS } from "./limits.js";
import { countRefusal, isRefusal, type ExchangeFilter, type Passage, type RequestFacts } from "./passage.js";
import { phraseOf, rawRefusal, refusalBody, refuse, type Refusal } from "./refusal.js";
import { describe, UpstreamError } from "./upstream.js";
import type { Watched } from "./watch.js";

/**
 * Serves a guest's connection until it ends.
 * @param guest decrypted, or plain; its octets unread. @param upstream the far side's, verified when it is one over TLS; or what
 * dials it when it is first needed; or why there is none.
 */
export function serveHttp1(guest: Socket, passage: Passage, upstream: Socket | UpstreamError | (() => Promise<Socket>)): void {
  const leg = new Http1Leg(guest, passage, upstream);
  legs.set(guest, leg);
  sharedServer().emit("connection", guest);
}

const legs = new WeakMap<Socket, Http1Leg>();
let shared: Server | null = null;

/** One parser set-up for all guests; it never listens, so its own time limits do not run (watch.ts). */
function sharedServer(): Server {
  if (shared !== null) return shared;
  const server = createServer({ insecureHTTPParser: false, maxHeaderSize: HEAD_MAX, requireHostHeader: false, keepAliveTimeout: 0, headersTimeout: 0, requestTimeout: 0, highWaterMark: 65_536 });
  // Fields beyond the bound would be dropped unseen; framing.ts counts them.
  server.maxHeadersCount = 0;
  server.timeout = 0;
  // A guest that has sent its last request may close its side and still read.
  (server as Server & { httpAllowHalfOpen: boolean }).httpAllowHalfOpen = true;
  const legOf = (socket: Socket): Http1Leg | undefined => {
    const leg = legs.get(socket);
    if (leg === undefined) socket.destroy();
    return leg;
  };
  server.on("request", (request, response) => legOf(request.socket)?.take(request, response, "plain"));
  // Node takes it for this one as soon as its name stands anywhere in the field.
  server.on("checkContinue", (request, response) => legOf(request.socket)?.take(request, response, tokensOf(valuesOf(request.rawHeaders, "expect")).join() === "100-continue" ? "continue" : "unknown"));
  server.on("checkExpectation", (request, response) => legOf(request.socket)?.take(request, response, "unknown"));
  server.on("upgrade", (request, socket: Socket, head: Buffer) => legOf(socket)?.takeUpgrade(request, head));
  server.on("connect", (request, socket: Socket) => legOf(socket)?.takeUpgrade(request, Buffer.alloc(0)));
  server.on("clientError", (error: NodeJS.ErrnoException, socket: Socket) => legOf(socket)?.unreadable(error));
  shared = server;
  return server;
}

type Expectation = "plain" | "continue" | "unknown";

interface Turn {
  readonly request: IncomingMessage;
  /** null: an upgrade, whose answer is written by hand. */
  readonly response: ServerResponse | null;
  readonly expectation: Expectation;
  /** octets that came behind an upgrade's head. */
  readonly early: Buffer;
}

/** The agent of one upstream connection: it has one to give. */
class OneConnection extends Agent {
  socket: Socket | null = null;

  constructor() { super({ keepAlive: true, maxSockets: 1, maxFreeSockets: 1 }); }

  // Node calls this from the socket's own close too, for a request that waits for the one before it: an exception would be nobody's.
  override createConnection(_options: object, done?: (error: Error | null, socket: Duplex) => void): Socket | undefined {
    const socket = this.socket;
    this.socket = null;
    if (socket !== null && !socket.destroyed) return socket;
    process.nextTick(() => done?.(Object.assign(new Error("the upstream connection has ended"), { code: "ECONNRESET" }), undefined as never));
    return undefined;
  }

  // There is one far side, and its connection is looked after elsewhere: nothing is to be told apart, timed or set while it rests.
  override getName(): string { return "upstream"; }
  override keepSocketAlive(): boolean { return true; }
}

class Http1Leg implements Watched {
  readonly #queue: Turn[] = [];
  readonly #agent = new OneConnection();
  #upstream: Socket | null = null;
  #failure: UpstreamError | null = null;
  /** requests that went upstream. */
  #served = 0;
  #active: Turn | null = null;
  #outgoing: ClientRequest | null = null;
  #incoming: IncomingMessage | null = null;
  /** What the exchange under way passes through. */
  #filter: ExchangeFilter | null = null;
  /** Octets of a body that is gathered before it goes on: what it will have. */
  #whole = 0;
  /** No further request is taken. */
  #deaf = false;
  /** The answer under way is the last one. */
  #ending = false;
  /** The octets behind what is being answered cannot be read. */
  #unreadable: Refusal | null = null;
  #tunnel = false;
  #paused = false;
  #closed = false;
  // What watch.ts looks at.
  #moved = 0;
  #movedAt = performance.now();
  #headAt = 0;
  #readAtIdle = 0;

  readonly #dial: (() => Promise<Socket>) | null;

  constructor(readonly guest: Socket, private readonly passage: Passage, upstream: Socket | UpstreamError | (() => Promise<Socket>)) {
    guest.on("error", () => guest.destroy());
    guest.once("close", () => this.#end());
    this.#readAtIdle = guest.bytesRead;
    passage.watch.add(this);
    passage.holds(() => this.#held());
    this.#dial = typeof upstream === "function" ? upstream : null;
    if (upstream instanceof UpstreamError) this.#failure = upstream;
    else if (typeof upstream !== "function") this.#take(upstream);
  }

  take(request: IncomingMessage, response: ServerResponse, expectation: Expectation): void {
    response.sendDate = false;
    response.on("error", () => this.guest.destroy());
    request.on("error", () => undefined); // the connection's own events tell
    response.once("close", () => this.#over(response));
    this.#enqueue({ request, response, expectation, early: NOTHING });
  }

  takeUpgrade(request: IncomingMessage, early: Buffer): void {
    this.guest.on("error", () => this.guest.destroy());
    this.#enqueue({ request, response: null, expectation: "plain", early });
  }

  /** The guest's octets are not HTTP/1.1: what is being answered is answered, then that. */
  unreadable(error: NodeJS.ErrnoException): void {
    if (this.#unreadable !== null || this.#ending || this.#closed) return;
    if (error.code === "ECONNRESET" || error.code === "EPIPE" || !this.guest.writable) {
      this.guest.destroy();
      return;
    }
    this.#unreadable = error.code === "HPE_HEADER_OVERFLOW" ? refuse(431, "head-too-large") : refuse(400, "malformed");
    this.#deaf = true;
    const active = this.#active;
    if (active === null) this.#sayUnreadable();
    else if (!active.request.complete) {
      // Its body broke off: what upstream has of it must stay without an end.
      this.#outgoing?.destroy();
      if (active.response?.headersSent === false) this.#sayUnreadable();
      else this.guest.destroy();
    }
  }

  look(now: number): void {
    const { limits } = this.passage;
    const moved = this.guest.bytesRead + this.guest.bytesWritten + (this.#upstream === null ? 0 : this.#upstream.bytesRead + this.#upstream.bytesWritten);
    if (moved !== this.#moved) {
      this.#moved = moved;
      this.#movedAt = now;
    }
    const still = now - this.#movedAt;
    if (this.#tunnel) {
      if (still > limits.silenceMs) this.guest.destroy();
    } else if (this.#active === null) {
      if (this.guest.bytesRead !== this.#readAtIdle) {
        if (this.#headAt === 0) this.#headAt = now;
        else if (now - this.#headAt > limits.headMs) this.#late();
      } else if (still > limits.idleMs) this.guest.end();
      if (still > 2 * limits.idleMs) this.guest.destroy();
    } else {
      const guestOwes = !this.#active.request.complete || (this.#active.response?.writableNeedDrain ?? false);
      if (still > (guestOwes ? limits.stallMs : limits.silenceMs)) this.guest.destroy();
    }
  }

  /** Octets that one side has sent and the other has not taken, as far as they are seen from here, and what is kept of requests that wait: a packet may hold thousands. */
  #held(): number {
    const { guest } = this, upstream = this.#upstream, turn = this.#active;
    let sum = guest.readableLength + guest.writableLength + this.#whole + (this.#filter?.held?.() ?? 0);
    // A head that is not whole is in the parser.
    if (turn === null) sum += Math.min(HEAD_MAX, guest.bytesRead - this.#readAtIdle);
    for (const { request } of this.#queue) sum += WAITING_OCTETS + request.rawHeaders.reduce((octets, field) => octets + field.length, request.readableLength);
    if (upstream !== null) sum += upstream.readableLength + upstream.writableLength;
    if (turn !== null) sum += turn.request.readableLength + (turn.response?.writableLength ?? 0) + (this.#incoming?.readableLength ?? 0);
    return sum;
  }

  #late(): void {
    this.#unreadable = refuse(408, "timeout");
    this.#sayUnreadable();
  }

  #enqueue(turn: Turn): void {
    if (this.#deaf || this.#ending || this.#closed) return;
    this.#queue.push(turn);
    if (this.#queue.length > this.passage.limits.pipelined && !this.#paused) {
      this.#paused = true;
      this.guest.pause();
    }
    this.#next();
  }

  #next(): void {
    if (this.#active !== null || this.#closed) return;
    if (this.#ending) this.#queue.length = 0;
    const turn = this.#queue.shift();
    if (turn === undefined) {
      if (this.#ending || (this.#deaf && this.#unreadable === null)) this.#close();
      else if (this.#unreadable !== null) this.#sayUnreadable();
      else {
        this.#readAtIdle = this.guest.bytesRead;
        this.#headAt = 0;
      }
      return;
    }
    if (this.#paused && this.#queue.length === 0) {
      this.#paused = false;
      this.guest.resume();
    }
    this.#active = turn;
    this.#handle(turn).catch((error: unknown) => this.#failed(turn, error));
  }

  /** An answer has been written or has broken off. */
  #over(response: ServerResponse): void {
    const turn = this.#active;
    if (turn?.response !== response) return;
    if (response.writableFinished && !turn.request.complete && !this.#ending && !this.#closed) {
      // Answered before all of the request was there: its rest belongs to it.
      turn.request.once("end", () => this.#over(response));
      return;
    }
    this.#active = null;
    const outgoing = this.#outgoing;
    this.#outgoing = this.#incoming = this.#filter = null;
    this.#whole = 0;
    if (!response.writableFinished) {
      outgoing?.destroy();
      this.guest.destroy();
      return;
    }
    // The far side ended its half while it answered: there is no next one.
    if (this.#upstream?.readableEnded === true) this.#ending = true;
    this.#next();
  }

  async #handle(turn: Turn): Promise<void> {
    const { request } = turn;
    const { passage } = this;
    passage.counters.requests++;
    const read = readRequestHead(request.method ?? "", request.url ?? "", request.httpVersion, request.rawHeaders);
    if (!read.ok) {
      this.#refuse(turn, read.refusal);
      return;
    }
    const head = read.value;
    if (turn.expectation === "unknown") {
      this.#refuse(turn, refuse(417, "expectation"));
      return;
    }
    const facts = this.#facts(request, head);
    if ("status" in facts) {
      this.#refuse(turn, facts);
      return;
    }
    if (turn.response === null) {
      const upgrade = checkUpgrade(request, head);
      if (upgrade !== null) {
        this.#refuse(turn, upgrade);
        return;
      }
    }
    const judged = passage.judge(facts);
    const refusal = judged instanceof Promise ? await judged : judged;
    if (refusal !== null) {
      this.#refuse(turn, refusal, facts.host);
      return;
    }
    // Nothing is put into a request that has nowhere to go.
    if (this.#failure !== null && this.#served === 0) throw this.#failure;
    const filtered = passage.filter(facts);
    const filter = filtered instanceof Promise ? await filtered : filtered;
    if (isRefusal(filter)) {
      this.#refuse(turn, filter, facts.host);
      return;
    }
    if (this.#closed) {
      filter?.done();
      return;
    }
    this.#filter = filter;
    if (this.#upstream === null && this.#dial !== null) {
      try {
        this.#take(await this.#dial());
      } catch (error) {
        filter?.done();
        throw error;
      }
    }
    if (this.#closed || this.#failure !== null || this.#upstream?.destroyed !== false) {
      filter?.done();
      if (this.#served === 0) throw this.#failure ?? new UpstreamError("upstream-failed", `${facts.host} broke off`);
      this.guest.destroy();
      return;
    }
    if (turn.response === null) {
      this.#served++;
      this.#upgrade(turn, facts, filter);
      return;
    }
    let whole: Buffer | null = null;
    if (filter?.whole) {
      // The far side cannot be asked whether it wants the body before its length is known.
      if (turn.expectation === "continue") turn.response.writeContinue();
      let got;
      this.#whole = facts.body.kind === "length" ? facts.body.octets : 0;
      try {
        got = await filter.whole(request);
      } catch {
        // It broke off: what was wrong with it is told, if anything can be told.
        filter.done();
        if (!this.#closed && this.#unreadable === null) this.guest.destroy();
        return;
      }
      if (isRefusal(got)) {
        filter.done();
        this.#refuse(turn, { ...got, close: got.close || !request.complete }, facts.host);
        return;
      }
      whole = got;
      if (this.#closed || this.#active !== turn || this.#upstream?.destroyed !== false) {
        filter.done();
        this.guest.destroy();
        return;
      }
    }
    this.#served++;
    this.#forward(turn, turn.response, head, facts, filter, whole);
  }

  /** What the rest asks about, or why it is refused. */
  #facts(request: IncomingMessage, head: RequestHead): RequestFacts | Refusal {
    const { passage } = this;
    const { target } = head;
    const hosts = target.kind === "absolute" ? [...head.hosts, target.authority] : head.hosts;
    if (target.kind === "absolute" && target.scheme !== passage.scheme) return refuse(421, "host-mismatch", `this connection speaks ${passage.scheme}`);
    const written = hosts[0] as string;
    const name = passage.name ?? (passage.address === null ? null : plainHost(written, passage.address, passage.port));
    if (name === null) return refuse(400, "host-malformed");
    let out = written;
    if (name === passage.address) {
      // Said twice, it must be said alike.
      if (hosts.some((host) => host !== written)) return refuse(421, "host-mismatch");
    } else {
      const wrong = checkHosts(hosts, name, passage.port);
      if (wrong !== null) return wrong;
      const port = written === name ? null : (parseHost(written)?.port ?? null);
      out = port === null ? name : `${name}:${port}`;
    }
    const fields = requestFields(request.rawHeaders, out);
    if (fields === null) return refuse(400, "framing", "Connection names a field that is not of one hop");
    return { host: name, method: request.method as string, target: target.kind === "asterisk" ? "*" : target.path, fields, body: head.body };
  }

  /** From here on the upstream connection is the guest's. */
  #take(upstream: Socket): void {
    this.#upstream = upstream;
    this.#agent.socket = upstream;
    upstream.on("error", (error) => {
      this.#failure ??= describe(this.passage.name ?? "the far side", error);
      upstream.destroy();
    });
    // An answer under way ends by it or breaks off (Node's client sees to that); between two, the connection is over, also for a request that
    // waits for the end of one that was answered before.
    upstream.once("end", () => { if (this.#outgoing?.socket !== upstream) upstream.destroy(); });
    upstream.on("data", () => { if (this.#outgoing === null) this.#unasked(); });
    upstream.once("close", () => {
      // What is still buffered is lost; Node's client would meet it without its parser (an assertion in 20.20).
      upstream.removeAllListeners("data");
      // An exchange under way tells the guest by its own events, and then comes here again.
      if (this.#active !== null) this.#ending = true;
      else if (this.#served > 0) this.#close();
      // Else the guest's first request is told why there is no far side.
    });
    if (this.#closed) upstream.destroy();
    else if (upstream.destroyed || upstream.readableEnded) this.#failure = describe(this.passage.name ?? "the far side", upstream.errored);
  }

  /** Upstream sent octets that answer nothing: they must not become the next request's answer. */
  #unasked(): void {
    if (this.#served === 0) this.#failure ??= new UpstreamError("upstream-framing", `${this.passage.name ?? "the far side"} spoke before it was asked`);
    else this.#ending = true;
    this.#upstream?.destroy();
  }

  #send(turn: Turn, facts: RequestFacts, filter: ExchangeFilter | null, framing: readonly string[]): ClientRequest {
    const outgoing = httpRequest({
      agent: this.#agent, method: facts.method, path: filter?.target ?? facts.target, headers: [...(filter?.fields ?? facts.fields), ...framing], setHost: false,
      // What the agent knows the connection by: the same for every request, whatever its Host.
      host: "upstream", port: this.passage.port, insecureHTTPParser: false, maxHeaderSize: HEAD_MAX,
    });
    outgoing.maxHeadersCount = 0;
    this.#outgoing = outgoing;
    outgoing.once("close", () => filter?.done());
    outgoing.on("error", (error: NodeJS.ErrnoException) => this.#failed(turn, error));
    return outgoing;
  }

  /** @param whole the body as it goes out, when all of it is there already. */
  #forward(turn: Turn, answer: ServerResponse, head: RequestHead, facts: RequestFacts, filter: ExchangeFilter | null, whole: Buffer | null): void {
    const { request } = turn;
    const expects = turn.expectation === "continue" && whole === null;
    const framing = whole === null ? framingOf(facts, filter) : ["Content-Length", String(whole.length)];
    const last = !answer.shouldKeepAlive;
    const outgoing = this.#send(turn, facts, filter, [...framing, ...(expects ? ["Expect", "100-continue"] : []), "Connection", last ? "close" : "keep-alive"]);
    let begun = false, answered = false;
    const begin = (): void => {
      if (begun || outgoing.destroyed) return;
      begun = true;
      if (whole !== null || facts.body.kind === "none") {
        outgoing.end(whole ?? undefined);
        return;
      }
      const body = filter?.body ?? null;
      const source = body === null ? request : request.pipe(body);
      if (this.#upstream !== null) gathered(source, this.#upstream);
      body?.on("error", (error) => this.#refuseLate(turn, stopOf(error)));
      source.pipe(outgoing, { end: false });
      source.once("end", () => this.#guard(turn, () => {
        const trailers = request.rawTrailers;
        if (trailers.length > 0) {
          const checked = this.#requestTrailers(trailers, filter);
          if (!Array.isArray(checked)) {
            this.#refuseLate(turn, checked);
            return;
          }
          if (framing[0] === "Transfer-Encoding") outgoing.addTrailers(pairs(checked));
        }
        outgoing.end();
      }));
      // The far side may answer to the head alone.
      setImmediate(() => { if (!outgoing.destroyed && !outgoing.writableEnded) outgoing.flushHeaders(); });
    };
    if (!expects) begin();
    else {
      outgoing.flushHeaders();
      outgoing.once("continue", () => this.#guard(turn, () => {
        if (!answered && !answer.destroyed) answer.writeContinue();
        begin();
      }));
      // A guest that does not wait any longer (RFC 9110 section 10.1.1).
      request.once("readable", () => this.#guard(turn, () => { if (!answered) begin(); }));
    }
    outgoing.on("information", (interim) => this.#guard(turn, () => {
      // 100 has its own event, 101 too.
      if (interim.statusCode < 102 || answered || head.version !== "1.1" || answer.headersSent || this.guest.destroyed) return;
      const plain = without(responseFields(interim.rawHeaders), "content-length");
      const passed = filter === null ? { phrase: interim.statusMessage, fields: plain } : filter.responseHead(interim.statusCode, interim.statusMessage, plain);
      if (passed !== null) this.guest.write(headOf(interim.statusCode, passed.phrase, passed.fields), "latin1");
    }));
    outgoing.once("response", (incoming) => this.#guard(turn, () => {
      answered = true;
      this.#answer(turn, answer, head, outgoing, incoming, filter, expects && !begun);
    }));
    // A 101 that nobody asked for.
    outgoing.once("upgrade", (_incoming, socket) => {
      socket.destroy();
      this.#failed(turn, new UpstreamError("upstream-framing", `${facts.host} switched protocols unasked`));
    });
  }

  #answer(turn: Turn, answer: ServerResponse, head: RequestHead, outgoing: ClientRequest, incoming: IncomingMessage, filter: ExchangeFilter | null, bodyUnsent: boolean): void {
    this.#incoming = incoming;
    const status = incoming.statusCode ?? 0;
    const body = responseBodyOf(incoming.httpVersion, incoming.rawHeaders);
    if (body === null || status < 200 || status > 999 || (incoming.httpVersion !== "1.1" && incoming.httpVersion !== "1.0")) {
      this.#failed(turn, new UpstreamError("upstream-framing", "the answer can be taken for different ones"));
      return;
    }
    if (answer.headersSent || answer.destroyed) {
      incoming.destroy();
      return;
    }
    const refusal = this.passage.judgeAnswer?.(incoming.rawHeaders) ?? null;
    if (refusal !== null) {
      this.#refuseLate(turn, refusal);
      return;
    }
    let phrase = incoming.statusMessage ?? "", fields = responseFields(incoming.rawHeaders);
    let scrub: { readonly transform: NodeJS.ReadWriteStream; readonly changesLength: boolean } | null = null;
    if (filter !== null) {
      const scrubbed = filter.responseHead(status, phrase, fields);
      if (scrubbed === null) {
        this.#failed(turn, new UpstreamError("secret", "the answer held a secret where it could not be taken out"));
        return;
      }
      ({ phrase, fields } = scrubbed);
      const empty = head.method === "HEAD" || status === 204 || status === 304;
      scrub = empty ? null : filter.responseBody();
      if (scrub?.changesLength === true) fields = without(fields, "content-length");
    }
    if (body.kind === "chunked" && head.version === "1.1") fields.push("Transfer-Encoding", "chunked");
    const last = this.#ending || bodyUnsent || endsConnection(incoming, body, head.method, status);
    if (last) {
      this.#ending = true;
      fields.push("Connection", "close");
    }
    answer.writeHead(status, phrase, fields);
    const source = scrub === null ? incoming : incoming.pipe(scrub.transform as NodeJS.ReadWriteStream);
    gathered(source as Readable, this.guest);
    source.pipe(answer, { end: false });
    const broke = (): void => {
      // The guest must not take a part for the whole.
      if (!answer.writableEnded) this.guest.destroy();
    };
    incoming.once("error", broke);
    incoming.once("aborted", broke);
    const upstream = this.#upstream;
    incoming.once("end", () => {
      if (turn.request.complete || upstream === null) return;
      // Node's client stops listening for this once the answer is whole, and the rest of the request would wait for ever.
      const more = (): void => { outgoing.emit("drain"); };
      upstream.on("drain", more);
      outgoing.once("finish", () => upstream.off("drain", more));
      if (!upstream.writableNeedDrain) more();
    });
    if (scrub !== null) scrub.transform.on("error", broke);
    source.once("end", () => this.#guard(turn, () => {
      if (!incoming.complete) {
        broke();
        return;
      }
      if (incoming.rawTrailers.length > 0 && body.kind === "chunked") {
        const trailers = plainTrailers(incoming.rawTrailers);
        const checked = filter === null ? trailers : filter.responseTrailers(trailers);
        if (checked === null) {
          broke();
          return;
        }
        if (checked.length > 0) answer.addTrailers(pairs(checked));
      }
      answer.end();
      if (bodyUnsent) outgoing.destroy();
    }));
    // What streams must not wait for its first octet.
    if (body.kind !== "length") setImmediate(() => { if (!answer.destroyed && !answer.writableEnded) answer.flushHeaders(); });
  }

  #requestTrailers(trailers: Fields, filter: ExchangeFilter | null): string[] | Refusal {
    if (plainTrailers(trailers).length !== trailers.length) return refuse(400, "framing", "a trailer field that frames, routes or authorises a message");
    return filter === null ? [...trailers] : filter.requestTrailers(trailers);
  }

  #upgrade(turn: Turn, facts: RequestFacts, filter: ExchangeFilter | null): void {
    const { guest } = this;
    const key = valuesOf(facts.fields, "sec-websocket-key")[0] as string;
    const outgoing = this.#send(turn, facts, filter, ["Connection", "Upgrade", "Upgrade", "websocket"]);
    // The guest's octets wait for the far side's consent.
    guest.pause();
    outgoing.once("upgrade", (incoming, upstream: Socket, head) => this.#guard(turn, () => {
      const accepted = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
      const scrubbed = filter === null ? { phrase: incoming.statusMessage ?? "", fields: responseFields(incoming.rawHeaders) } : filter.responseHead(101, incoming.statusMessage ?? "", responseFields(incoming.rawHeaders));
      if (incoming.statusCode !== 101 || tokensOf(valuesOf(incoming.rawHeaders, "upgrade")).join() !== "websocket" || valuesOf(incoming.rawHeaders, "sec-websocket-accept").join() !== accepted || scrubbed === null) {
        upstream.destroy();
        this.#failed(turn, new UpstreamError("upstream-framing", `${facts.host} did not answer as a WebSocket does`));
        return;
      }
      this.passage.counters.upgrades++;
      this.#tunnel = true;
      const lines = [`HTTP/1.1 101 ${scrubbed.phrase}`, "Connection: Upgrade", "Upgrade: websocket"];
      for (let i = 0; i < scrubbed.fields.length; i += 2) lines.push(`${scrubbed.fields[i]}: ${scrubbed.fields[i + 1]}`);
      guest.write(`${lines.join("\r\n")}\r\n\r\n`, "latin1");
      // Octets that came with the heads are looked at like those that follow.
      if (head.length > 0) upstream.unshift(head);
      if (turn.early.length > 0) guest.unshift(turn.early);
      upstream.once("close", () => guest.destroySoon());
      const tunnel = filter?.tunnel?.() ?? null;
      const through = (from: Socket, by: Duplex | null, to: Socket): void => {
        by?.on("error", (error) => {
          this.#count(stopOf(error), turn);
          upstream.destroy();
          guest.destroy();
        });
        (by === null ? from : from.pipe(by)).pipe(to);
      };
      through(guest, tunnel?.fromGuest ?? null, upstream);
      through(upstream, tunnel?.toGuest ?? null, guest);
    }));
    outgoing.once("response", (incoming) => this.#guard(turn, () => this.#plainAnswer(turn, incoming, filter)));
    outgoing.end();
  }

  /** To an upgrade that was not agreed to. The connection ends with it: nobody can tell what the guest's next octets mean. */
  #plainAnswer(turn: Turn, incoming: IncomingMessage, filter: ExchangeFilter | null): void {
    const { guest } = this;
    const refusal = this.passage.judgeAnswer?.(incoming.rawHeaders) ?? null;
    if (refusal !== null) {
      this.#refuseLate(turn, refusal);
      return;
    }
    const fields = responseFields(incoming.rawHeaders);
    const head = filter === null ? { phrase: incoming.statusMessage ?? "", fields } : filter.responseHead(incoming.statusCode ?? 502, incoming.statusMessage ?? "", fields);
    if (head === null || turn.early.length > 0) {
      // It spoke the other protocol before the far side agreed: it will not read an answer.
      incoming.destroy();
      if (turn.early.length > 0) this.#count(refuse(400, "early-octets"), turn);
      guest.destroy();
      return;
    }
    const scrub = filter?.responseBody() ?? null;
    const lines = [`HTTP/1.1 ${incoming.statusCode} ${head.phrase}`];
    for (let i = 0; i < head.fields.length; i += 2) if (scrub === null || (head.fields[i] as string).toLowerCase() !== "content-length") lines.push(`${head.fields[i]}: ${head.fields[i + 1]}`);
    guest.write(`${lines.join("\r\n")}\r\nConnection: close\r\n\r\n`, "latin1");
    incoming.once("aborted", () => guest.destroy());
    if (scrub !== null) {
      scrub.transform.on("error", () => guest.destroy());
      incoming.pipe(scrub.transform).pipe(guest);
    } else incoming.pipe(guest);
    guest.once("finish", () => guest.destroySoon());
  }

  #refuse(turn: Turn, refusal: Refusal, host: string | null = null): void {
    this.#count(refusal, turn, host);
    if (refusal.close) this.#ending = true;
    const { response } = turn;
    if (response === null) {
      this.guest.end(rawRefusal(refusal));
      this.guest.once("finish", () => this.guest.destroySoon());
      return;
    }
    if (response.headersSent || response.destroyed) {
      this.guest.destroy();
      return;
    }
    if (refusal.close && !turn.request.complete) {
      this.#linger(turn.request, refusal);
      return;
    }
    const body = refusalBody(refusal);
    response.writeHead(refusal.status, phraseOf(refusal.status), ["Content-Type", "application/json", "Content-Length", String(body.length), ...(refusal.close ? ["Connection", "close"] : [])]);
    response.end(body);
  }

  /**
   * Answers a request that is still coming, and ends the connection. What nobody has read by then would reset it, and the guest might never see the
   * answer: for a while the rest is read and let go (RFC 9112 section 9.6).
   */
  #linger(request: IncomingMessage, refusal: Refusal): void {
    this.guest.end(rawRefusal(refusal));
    request.unpipe();
    request.resume();
    this.guest.resume();
    setTimeout(() => this.guest.destroy(), this.passage.limits.lingerMs).unref();
  }

  /** A refusal after part of the request has gone: what upstream has stays without an end. */
  #refuseLate(turn: Turn, refusal: Refusal): void {
    this.#outgoing?.destroy();
    this.#refuse(turn, { ...refusal, close: true });
  }

  /** What Node refuses to write, of whoever's making, ends this exchange and nothing else. */
  #guard(turn: Turn, work: () => void): void {
    try {
      work();
    } catch {
      this.#failed(turn, new UpstreamError("upstream-framing", "the message cannot be written anew"));
    }
  }

  /** Upstream could not be had, broke off, or answered what cannot be passed on. */
  #failed(turn: Turn, error: unknown): void {
    if (this.#active !== turn) return;
    this.#outgoing?.destroy();
    if (turn.response?.writableEnded === true) {
      // It has its answer; what still comes of the request is read and let go, and then the connection ends.
      this.#deaf = true;
      turn.request.unpipe();
      turn.request.resume();
      return;
    }
    const known = error instanceof UpstreamError ? error : describe(this.passage.name ?? "the far side", error);
    const { response } = turn;
    if (response !== null && (response.headersSent || response.destroyed)) {
      this.guest.destroy();
      return;
    }
    // A kept connection that upstream closed under a request: the guest sees what it would see without us, and tries again.
    if (response !== null && this.#outgoing?.reusedSocket === true && !(error instanceof UpstreamError)) {
      this.guest.destroy();
      return;
    }
    this.#refuse(turn, refuse(502, known.reason, known.message));
  }

  #count(refusal: Refusal, turn: Turn | null, host: string | null = null): void {
    countRefusal(this.passage.counters, refusal.reason);
    this.passage.refused(refusal, { method: turn?.request.method ?? "", host: host ?? this.passage.name });
  }

  #sayUnreadable(): void {
    const refusal = this.#unreadable as Refusal;
    this.#count(refusal, null);
    if (!this.guest.writable) {
      this.guest.destroy();
      return;
    }
    this.guest.end(rawRefusal(refusal));
    this.guest.once("finish", () => this.guest.destroySoon());
    this.#close();
  }

  /** Both sides end after what has been written. */
  #close(): void {
    this.#ending = true;
    if (!this.guest.destroyed) this.guest.end();
  }

  #end(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#ending = true;
    this.passage.watch.delete(this);
    this.#filter?.release?.();
    this.#outgoing?.destroy();
    this.#upstream?.destroy();
    this.#agent.destroy();
    this.#queue.length = 0;
  }
}

const NOTHING = Buffer.alloc(0);

/** Pieces that are read in one turn of the event loop go out in one write: TLS gives them record by record. */
function gathered(source: Readable, to: Socket): void {
  let corked = false;
  source.on("data", (chunk: Buffer) => {
    passing(chunk);
    if (corked) return;
    corked = true;
    to.cork();
    setImmediate(() => {
      corked = false;
      to.uncork();
    });
  });
}

/** What tells upstream the length of a request's body. */
function framingOf(facts: RequestFacts, filter: ExchangeFilter | null): string[] {
  if (facts.body.kind === "chunked") return ["Transfer-Encoding", "chunked"];
  if (facts.body.kind === "length") {
    if (filter === null || filter.body === null) return ["Content-Length", String(facts.body.octets)];
    return filter.bodyLength === null ? ["Transfer-Encoding", "chunked"] : ["Content-Length", String(filter.bodyLength)];
  }
  // RFC 9110 section 8.6: where the method means a body, its absence is said; Node would write an empty chunked one.
  return facts.method === "POST" || facts.method === "PUT" || facts.method === "PATCH" ? ["Content-Length", "0"] : [];
}

/** null: a WebSocket (RFC 6455 section 4.2.1); everything else is refused. */
function checkUpgrade(request: IncomingMessage, head: RequestHead): Refusal | null {
  const fields = request.rawHeaders;
  const key = valuesOf(fields, "sec-websocket-key");
  if (tokensOf(valuesOf(fields, "upgrade")).join() !== "websocket" || head.method !== "GET" || head.version !== "1.1" || head.body.kind !== "none"
    || key.length !== 1 || valuesOf(fields, "sec-websocket-version").join() !== "13") return refuse(400, "upgrade");
  return null;
}

/** Whether the upstream connection ends with this response. */
function endsConnection(incoming: IncomingMessage, body: Body, method: string, status: number): boolean {
  const tokens = tokensOf(valuesOf(incoming.rawHeaders, "connection"));
  const bodiless = method === "HEAD" || status === 204 || status === 304;
  return tokens.includes("close") || (incoming.httpVersion === "1.0" && !tokens.includes("keep-alive")) || (body.kind === "none" && !bodiless);
}

/** An interim answer (RFC 9110 section 15.2), as it goes out. Node writes but two of them, and 103 only with a Link that its own expression takes. */
function headOf(status: number, phrase: string, fields: Fields): string {
  validateHeaderValue("phrase", phrase);
  const lines = [`HTTP/1.1 ${status} ${phrase}`];
  for (let i = 0; i < fields.length; i += 2) {
    validateHeaderValue(fields[i] as string, fields[i + 1] as string);
    lines.push(`${fields[i]}: ${fields[i + 1]}`);
  }
  return `${lines.join("\r\n")}\r\n\r\n`;
}

function pairs(fields: Fields): [string, string][] {
  const out: [string, string][] = [];
  for (let i = 0; i < fields.length; i += 2) out.push([fields[i] as string, fields[i + 1] as string]);
  return out;
}

function without(fields: Fields, name: string): string[] {
  const out: string[] = [];
  for (let i = 0; i < fields.length; i += 2) if ((fields[i] as string).toLowerCase() !== name) out.push(fields[i] as string, fields[i + 1] as string);
  return out;
}
