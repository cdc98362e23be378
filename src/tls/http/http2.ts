/**
 * HTTP/2 between one guest session and its one upstream session: a stream there for each stream here.
 *
 * Holds always: nghttp2 reads both sides; every stream's :authority (and host) is the judged name and its scheme https; streams
 * are judged one by one when they begin. Header tables, windows and settings belong to one session, so nothing is shared
 * between guests. Resets, trailers, interim answers and GOAWAY go through in both directions; pushes and ALTSVC and ORIGIN
 * frames do not. A field that a secret was put into is sent as never indexed. The guest may have as many streams as the far
 * side grants, and no more than the limit; memory is bounded by windows.
 * Does not: translate to or from HTTP/1.1; judge policy or know secrets (passage.ts).
 */
import type { EventEmitter } from "node:events";
import { connect, constants, performServerHandshake, sensitiveHeaders, type ClientHttp2Session, type ClientHttp2Stream, type Http2Session, type IncomingHttpHeaders, type OutgoingHttpHeaders, type ServerHttp2Session, type ServerHttp2Stream, type SessionOptions, type Settings } from "node:http2";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import { stopOf } from "../../secrets/exchange.js";
import { passing } from "./buffers.js";
import { hasLookalike, plainTrailers, requestFields, responseFields, tokensOf, valuesOf, type Fields } from "./fields.js";
import { FIELDS_MAX, HEAD_MAX, type Body } from "./framing.js";
import { checkHosts, parseHost, type HostField } from "./identity.js";
import { type HttpLimits, STREAM_OCTETS } from "./limits.js";
import { countRefusal, isRefusal, type ExchangeFilter, type Passage, type RequestFacts } from "./passage.js";
import { refusalBody, refuse, type Refusal } from "./refusal.js";
import { describe, UpstreamError } from "./upstream.js";
import type { Watched } from "./watch.js";

const { NGHTTP2_CANCEL, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_FLAG_END_STREAM, NGHTTP2_INTERNAL_ERROR, NGHTTP2_NO_ERROR, NGHTTP2_REFUSED_STREAM } = constants;

/** Megabytes that one session may hold in queues and tables. */
const SESSION_MEMORY = 16;
/** Octets of heads and trailers that one side of a session may leave untaken: a few octets on the wire may say 64 KiB, and nobody else counts them. */
const UNTAKEN_MAX = SESSION_MEMORY * 1024 * 1024;
/** What nghttp2 keeps beside the fields of one. */
const FRAME_OCTETS = 256;
/** Of those, how many are remembered before it is looked which of them have gone. */
const UNTAKEN_FRAMES = 1_024;
/** SETTINGS frames of one session: peers send one or two. */
const SETTINGS_MAX = 32;
/** PING frames of one session between two looks at it: gRPC's bandwidth probes are some a second. */
const PINGS_MAX = 256;
/**
 * Streams of one session that the guest takes back: so many at once, and so many a second after that (CVE-2023-44487). Below nghttp2's own bound
 * (1,000 and 33): it answers more with a GOAWAY that Node is not told of, and the session would stand, deaf, until it had been idle for long.
 */
const RESETS_MAX = 500;
const RESETS_PER_MS = 0.03;
/** Fields that say who asks: never indexed, whether a secret was put into them or not. */
const sensitive = new Set(["authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "proxy-authorization"]);

function sessionOptions(limits: HttpLimits, settings: Settings): SessionOptions {
  return {
    settings: { enablePush: false, initialWindowSize: limits.streamWindow, maxHeaderListSize: HEAD_MAX, ...settings },
    maxSessionMemory: SESSION_MEMORY, maxHeaderListPairs: FIELDS_MAX, maxOutstandingPings: 10, maxSettings: 32,
  };
}

/**
 * The upstream's half, once it has said its settings.
 * @param socket verified; h2 was chosen. @throws UpstreamError when it does not speak HTTP/2 in time.
 */
export function openHttp2(socket: TLSSocket, name: string, limits: HttpLimits): Promise<ClientHttp2Session> {
  return new Promise((resolve, reject) => {
    const session = connect(`https://${name}`, { ...sessionOptions(limits, {}), createConnection: () => socket });
    const fail = (error: unknown): void => {
      clearTimeout(timer);
      session.destroy();
      reject(describe(name, error));
    };
    const timer = setTimeout(() => fail({ code: "ETIMEDOUT" }), limits.upstreamMs);
    session.on("error", fail);
    session.once("close", () => fail({ code: "ECONNRESET" }));
    session.once("connect", () => session.setLocalWindowSize(limits.window));
    endsWith(session, socket);
    session.once("remoteSettings", () => {
      clearTimeout(timer);
      resolve(session);
    });
  });
}

/**
 * Serves a guest's session until it ends.
 * @param guest decrypted; h2 was chosen. @param raw the connection under it.
 * @param upstream from openHttp2; an error: there is none, every request is answered 502 with it.
 */
export function serveHttp2(guest: TLSSocket, raw: Socket, passage: Passage, upstream: ClientHttp2Session | UpstreamError): void { new Http2Leg(guest, raw, passage, upstream); }

/** Heads and trailers that were given to a session for its peer, which may not take them: nghttp2 keeps them, also those of streams that have ended meanwhile. */
class Untaken {
  /** Octets of each, in the order in which they go out. */
  #sizes: number[] = [];
  #sum = 0;

  constructor(private readonly session: Http2Session) {}

  get octets(): number {
    if (this.#sum === 0) return 0;
    // The last ones wait, and no more of them than frames do.
    const waiting = this.session.destroyed ? 0 : (this.session.state.outboundQueueSize ?? 0), gone = Math.max(0, this.#sizes.length - waiting);
    for (let i = 0; i < gone; i++) this.#sum -= this.#sizes[i] as number;
    if (gone > 0) this.#sizes = this.#sizes.slice(gone);
    return this.#sum;
  }

  /** @param fields given already. @returns whether it is too much. */
  add(fields: Fields): boolean {
    const size = FRAME_OCTETS + sizeOf(fields);
    this.#sizes.push(size);
    this.#sum += size;
    // What has gone is looked for only where it matters: each look costs a microsecond.
    return (this.#sum > UNTAKEN_MAX || this.#sizes.length > UNTAKEN_FRAMES) && this.octets > UNTAKEN_MAX;
  }
}

class Http2Leg implements Watched {
  readonly #guest: ServerHttp2Session;
  readonly #toGuest: Untaken;
  readonly #toUpstream: Untaken | null;
  readonly #upstream: ClientHttp2Session | UpstreamError;
  /** guest streams and theirs upstream, null while there is none yet. */
  readonly #streams = new Map<ServerHttp2Stream, ClientHttp2Stream | null>();
  /** of streams that were well formed, for events. */
  readonly #methods = new WeakMap<ServerHttp2Stream, string>();
  /** octets of heads, and of bodies that are gathered before they go on. */
  readonly #kept = new WeakMap<ServerHttp2Stream, number>();
  /** What streams pass through. */
  readonly #filters = new WeakMap<ServerHttp2Stream, ExchangeFilter>();
  /** of requests whose trailers have come: they may stand right behind the head, before the request is judged. */
  readonly #trailers = new WeakMap<ServerHttp2Stream, Fields>();
  #refused = 0;
  /** No further stream is taken. */
  #ending = false;
  #closed = false;
  #moved = 0;
  #movedAt = performance.now();
  #streamAt = performance.now();
  #settings = 0;
  #pings = 0;
  #resets = 0;
  #resetsAt = 0;
  /** Streams that were reset from here: not by the guest. */
  readonly #cut = new WeakSet<ServerHttp2Stream>();
  /** Those that wait for the last octet of their answer to leave, and then are to end with all that the guest still sends. */
  readonly #answered = new Set<ServerHttp2Stream>();
  #answeredTimer: NodeJS.Timeout | undefined;

  constructor(socket: TLSSocket, private readonly raw: Socket, private readonly passage: Passage, upstream: ClientHttp2Session | UpstreamError) {
    const { limits } = passage;
    this.#upstream = upstream;
    const remote = upstream instanceof UpstreamError ? {} : upstream.remoteSettings;
    this.#guest = performServerHandshake(socket, sessionOptions(limits, {
      maxConcurrentStreams: Math.min(remote.maxConcurrentStreams ?? limits.streams, limits.streams), ...(remote.enableConnectProtocol === true ? { enableConnectProtocol: true } : {}),
    }));
    const guest = this.#guest;
    this.#toGuest = new Untaken(guest);
    this.#toUpstream = upstream instanceof UpstreamError ? null : new Untaken(upstream);
    guest.setLocalWindowSize(limits.window);
    endsWith(guest, socket);
    // The fourth argument is documented, and missing in the types.
    (guest as EventEmitter).on("stream", (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, flags: number, raw: string[]) => this.#take(stream, headers, flags, raw));
    // Node and nghttp2 answer these at once, and bound only what they could not send yet.
    guest.on("remoteSettings", () => { if (++this.#settings > SETTINGS_MAX) this.#calm(); });
    guest.on("ping", () => { if (++this.#pings > PINGS_MAX) this.#calm(); });
    guest.on("error", () => guest.destroy());
    guest.once("close", () => this.#end());
    raw.once("close", () => this.#end());
    if (!(upstream instanceof UpstreamError)) {
      upstream.removeAllListeners("error");
      upstream.removeAllListeners("close");
      upstream.on("error", () => upstream.destroy());
      upstream.once("close", () => this.#drain());
      upstream.on("goaway", (code, last) => this.#goaway(code, last));
      if (upstream.closed || upstream.destroyed) this.#drain();
    }
    passage.watch.add(this);
    passage.holds(() => this.#held());
  }

  /** Octets that one side has sent and the other has not taken, as far as they are seen from here, and what is kept of streams. */
  #held(): number {
    let sum = this.raw.writableLength + this.#toGuest.octets + (this.#toUpstream?.octets ?? 0);
    for (const [stream, up] of this.#streams) {
      sum += STREAM_OCTETS + stream.readableLength + stream.writableLength + (this.#kept.get(stream) ?? 0) + (this.#filters.get(stream)?.held?.() ?? 0);
      if (up !== null) sum += up.readableLength + up.writableLength;
    }
    return sum;
  }

  look(now: number): void {
    const { limits } = this.passage;
    this.#pings = 0;
    if (this.#guest.destroyed) {
      // A destroyed session waits for what it cannot write any more.
      this.raw.destroy();
      return;
    }
    if (this.#resets > RESETS_MAX) {
      this.#guest.destroy();
      return;
    }
    if (this.#streams.size > 0) this.#streamAt = now;
    else if (now - this.#streamAt > limits.idleMs) {
      this.#drain();
      if (now - this.#streamAt > 2 * limits.idleMs) this.#guest.destroy();
      return;
    }
    const upstream = this.#upstream instanceof UpstreamError ? 0 : octets(this.#upstream);
    const moved = octets(this.#guest) + upstream;
    if (moved !== this.#moved) {
      this.#moved = moved;
      this.#movedAt = now;
    }
    const still = now - this.#movedAt;
    if (still <= Math.min(limits.stallMs, limits.silenceMs)) return;
    const guestOwes = [...this.#streams.keys()].some((stream) => stream.writableNeedDrain || !stream.readableEnded);
    if (still > (guestOwes ? limits.stallMs : limits.silenceMs)) this.#guest.destroy();
  }

  #take(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, flags: number, raw: Fields): void {
    stream.on("error", () => undefined); // its close tells
    if (this.#ending) {
      this.#cutOff(stream, NGHTTP2_REFUSED_STREAM);
      return;
    }
    this.#streams.set(stream, null);
    this.#kept.set(stream, sizeOf(raw));
    stream.once("close", () => this.#over(stream));
    (stream as EventEmitter).once("trailers", (received: IncomingHttpHeaders, _flags: number, raw: string[]) => {
      const trailers = flat(received, raw);
      this.#trailers.set(stream, trailers);
      this.#kept.set(stream, (this.#kept.get(stream) ?? 0) + sizeOf(trailers));
    });
    this.passage.counters.requests++;
    this.#handle(stream, headers, flags, raw).catch((error: unknown) => this.#failed(stream, error));
  }

  async #handle(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, flags: number, raw: Fields): Promise<void> {
    const { passage } = this;
    const ended = (flags & NGHTTP2_FLAG_END_STREAM) !== 0;
    const read = readStream(raw, ended, passage);
    if ("status" in read) {
      this.#refuse(stream, read);
      return;
    }
    const { facts, protocol } = read;
    this.#methods.set(stream, facts.method);
    const upstream = this.#upstream;
    if (protocol !== null && (protocol !== "websocket" || upstream instanceof UpstreamError || upstream.remoteSettings.enableConnectProtocol !== true)) {
      this.#refuse(stream, refuse(405, "method", "CONNECT is not passed on"));
      return;
    }
    const judged = passage.judge(facts);
    const refusal = judged instanceof Promise ? await judged : judged;
    if (refusal !== null) {
      this.#refuse(stream, refusal);
      return;
    }
    // Nothing is put into a request that has nowhere to go.
    if (upstream instanceof UpstreamError) throw upstream;
    const filtered = passage.filter(facts);
    const filter = filtered instanceof Promise ? await filtered : filtered;
    if (isRefusal(filter)) {
      this.#refuse(stream, filter);
      return;
    }
    if (filter !== null) this.#filters.set(stream, filter);
    if (stream.closed || stream.destroyed) {
      filter?.done();
      return;
    }
    if (upstream.closed || upstream.destroyed) {
      filter?.done();
      this.#cutOff(stream, NGHTTP2_REFUSED_STREAM);
      return;
    }
    let whole: Buffer | null = null;
    if (filter?.whole) {
      // The far side cannot be asked whether it wants the body before its length is known.
      if (tokensOf(valuesOf(facts.fields, "expect")).length > 0 && open(stream)) stream.additionalHeaders({ ":status": 100 });
      let got;
      if (facts.body.kind === "length") this.#kept.set(stream, (this.#kept.get(stream) ?? 0) + facts.body.octets);
      try {
        got = await filter.whole(stream);
      } catch {
        filter.done();
        return; // its close tells
      }
      if (isRefusal(got)) {
        filter.done();
        this.#refuse(stream, got);
        return;
      }
      whole = got;
      if (!open(stream) || upstream.closed || upstream.destroyed) {
        filter.done();
        if (open(stream)) this.#cutOff(stream, NGHTTP2_REFUSED_STREAM);
        return;
      }
    }
    const come = this.#trailers.get(stream), trailers = come === undefined ? null : checkedTrailers(come, filter);
    if (isRefusal(trailers)) {
      filter?.done();
      this.#refuse(stream, trailers);
      return;
    }
    this.#forward(stream, upstream, facts, filter, whole, trailers, protocol, ended, (headers as { [sensitiveHeaders]?: string[] })[sensitiveHeaders] ?? []);
  }

  /** @param trailers of the request, when they have come. */
  #forward(stream: ServerHttp2Stream, session: ClientHttp2Session, facts: RequestFacts, filter: ExchangeFilter | null, whole: Buffer | null, trailers: Fields | null, protocol: string | null, ended: boolean, guestSensitive: readonly string[]): void {
    const fields = (filter?.fields ?? facts.fields).filter((_, i, all) => whole === null || (all[i - i % 2] as string).toLowerCase() !== "expect");
    const length = whole !== null ? whole.length : facts.body.kind === "length" ? (filter === null || filter.body === null ? facts.body.octets : filter.bodyLength) : null;
    const outgoing = objectOf([":method", facts.method, ...(protocol === null ? [] : [":protocol", protocol]), ":scheme", "https", ":authority", hostOf(facts), ":path", filter?.target ?? facts.target,
      ...withoutHost(fields), ...(length === null ? [] : ["content-length", String(length)])]);
    const secret = secretNames(facts.fields, fields, guestSensitive);
    if (secret.length > 0) (outgoing as { [sensitiveHeaders]?: string[] })[sensitiveHeaders] = secret;
    const up = session.request(outgoing, ended ? { endStream: true } : { endStream: false, waitForTrailers: true });
    this.#streams.set(stream, up);
    if (this.#toUpstream?.add(fields) === true) this.#cutAll();
    up.on("error", () => undefined); // its close tells
    up.once("close", () => {
      filter?.done();
      this.#upstreamOver(stream, up);
    });
    if (whole !== null) {
      up.once("wantTrailers", () => this.#guard(stream, up, () => { if (!up.destroyed) up.sendTrailers(objectOf(trailers ?? [])); }));
      up.end(whole);
    } else if (!ended) this.#pumpRequest(stream, up, filter, trailers);
    up.on("continue", () => this.#guard(stream, up, () => { if (open(stream) && !stream.headersSent) stream.additionalHeaders({ ":status": 100 }); }));
    (up as EventEmitter).on("headers", (interim: IncomingHttpHeaders, _flags: number, raw: string[]) => this.#guard(stream, up, () => {
      const status = Number(interim[":status"]);
      if (!open(stream) || stream.headersSent || status < 102 || status > 199) return;
      const plain = responseFields(flat(interim, raw));
      const passed = filter === null ? plain : filter.responseHead(status, "", plain)?.fields;
      if (passed === undefined) return;
      stream.additionalHeaders({ ":status": status, ...objectOf(passed) });
      this.#given(passed);
    }));
    (up as EventEmitter).once("response", (incoming: IncomingHttpHeaders, flags: number, raw: string[]) => this.#guard(stream, up, () => this.#answer(stream, up, incoming, raw, flags, filter)));
  }

  #pumpRequest(stream: ServerHttp2Stream, up: ClientHttp2Stream, filter: ExchangeFilter | null, come: Fields | null): void {
    let trailers = come;
    if (come === null) (stream as EventEmitter).once("trailers", (received: IncomingHttpHeaders, _flags: number, raw: string[]) => {
      const checked = checkedTrailers(flat(received, raw), filter);
      if (!isRefusal(checked)) trailers = checked;
      else {
        up.close(NGHTTP2_CANCEL);
        this.#refuse(stream, checked);
      }
    });
    up.once("wantTrailers", () => this.#guard(stream, up, () => { if (!up.destroyed) up.sendTrailers(objectOf(trailers ?? [])); }));
    const body: Duplex | null = filter?.body ?? null;
    stream.on("data", passing);
    if (body === null) stream.pipe(up);
    else {
      body.on("error", (error) => {
        up.close(NGHTTP2_CANCEL);
        this.#refuse(stream, stopOf(error));
      });
      stream.pipe(body).pipe(up);
    }
  }

  #answer(stream: ServerHttp2Stream, up: ClientHttp2Stream, incoming: IncomingHttpHeaders, raw: Fields, flags: number, filter: ExchangeFilter | null): void {
    if (!open(stream) || stream.headersSent) {
      up.close(NGHTTP2_CANCEL);
      return;
    }
    const status = Number(incoming[":status"]);
    let fields = responseFields(flat(incoming, raw));
    const refusal = this.passage.judgeAnswer?.(fields) ?? null;
    if (refusal !== null) {
      up.close(NGHTTP2_CANCEL);
      this.#refuse(stream, refusal);
      return;
    }
    let scrub: { readonly transform: Duplex; readonly changesLength: boolean } | null = null;
    const ended = (flags & NGHTTP2_FLAG_END_STREAM) !== 0;
    if (filter !== null) {
      const scrubbed = filter.responseHead(status, "", fields);
      if (scrubbed === null) {
        up.close(NGHTTP2_CANCEL);
        this.#failed(stream, new UpstreamError("secret", "the answer held a secret where it could not be taken out"));
        return;
      }
      fields = scrubbed.fields;
      scrub = ended ? null : filter.responseBody();
      if (scrub?.changesLength === true) fields = removed(fields, "content-length");
    }
    const options = ended ? { endStream: true, sendDate: false } : { waitForTrailers: true, sendDate: false };
    let trailers: OutgoingHttpHeaders = {};
    if (!ended) {
      (up as EventEmitter).once("trailers", (received: IncomingHttpHeaders, _flags: number, said: string[]) => {
        const plain = plainTrailers(flat(received, said));
        const checked = filter === null ? plain : filter.responseTrailers(plain);
        if (checked !== null) {
          trailers = objectOf(checked);
          this.#given(checked);
        } else {
          up.close(NGHTTP2_CANCEL);
          this.#cutOff(stream, NGHTTP2_INTERNAL_ERROR);
        }
      });
      stream.once("wantTrailers", () => this.#guard(stream, up, () => {
        if (stream.destroyed) return;
        stream.sendTrailers(trailers);
        if (up.closed || up.destroyed) this.#enough(stream);
      }));
    }
    stream.respond({ ":status": status, ...objectOf(fields) }, options);
    this.#given(fields);
    if (ended || !open(stream) || stream.writableEnded) return;
    up.on("data", passing);
    if (scrub === null) up.pipe(stream);
    else {
      scrub.transform.on("error", () => this.#cutOff(stream, NGHTTP2_INTERNAL_ERROR));
      up.pipe(scrub.transform).pipe(stream);
    }
  }

  /** What Node refuses to write, of whoever's making, ends this stream and nothing else. */
  #guard(stream: ServerHttp2Stream, up: ClientHttp2Stream, work: () => void): void {
    try {
      work();
    } catch {
      if (!up.destroyed) up.close(NGHTTP2_CANCEL);
      if (!open(stream)) return;
      if (stream.headersSent) this.#cutOff(stream, NGHTTP2_INTERNAL_ERROR);
      else this.#failed(stream, new UpstreamError("upstream-framing", "the message cannot be written anew"));
    }
  }

  #refuse(stream: ServerHttp2Stream, refusal: Refusal): void {
    countRefusal(this.passage.counters, refusal.reason);
    this.passage.refused(refusal, { method: this.#methods.get(stream) ?? "", host: this.passage.name });
    if (open(stream)) {
      if (stream.headersSent) this.#cutOff(stream, NGHTTP2_INTERNAL_ERROR);
      else {
        const body = refusalBody(refusal);
        stream.respond({ ":status": refusal.status, "content-type": "application/json", "content-length": String(body.length) }, { sendDate: false } as object);
        stream.end(body);
        // What of its body still comes is not wanted.
        stream.resume();
      }
    }
    this.#refused++;
    if (this.#refused === this.passage.limits.refusedStreams) this.#calm();
  }

  #cutOff(stream: ServerHttp2Stream, code: number): void {
    this.#cut.add(stream);
    stream.close(code);
  }

  /** The guest took a stream back. The session that does it too often is told so, and is cut at the next look at it. */
  #countReset(): void {
    if (this.#resets > RESETS_MAX) return;
    const now = performance.now();
    this.#resets = Math.max(0, this.#resets - (now - this.#resetsAt) * RESETS_PER_MS) + 1;
    this.#resetsAt = now;
    if (this.#resets > RESETS_MAX) this.#calm();
  }

  #given(fields: Fields): void { if (this.#toGuest.add(fields)) this.#cutAll(); }

  /** A side does not take what it is told: it would not take a word about that either. */
  #cutAll(): void {
    if (this.#guest.destroyed) return;
    countRefusal(this.passage.counters, "limit");
    this.#guest.destroy();
    this.raw.destroy();
  }

  /** Too much of something: what is under way ends, and so does the session. */
  #calm(): void {
    if (this.#closed || this.#guest.destroyed) return;
    if (this.#ending) {
      this.#guest.destroy();
      return;
    }
    countRefusal(this.passage.counters, "limit");
    this.#ending = true;
    this.#guest.goaway(NGHTTP2_ENHANCE_YOUR_CALM);
    this.#guest.close();
  }

  /** Upstream could not be had, or something in passing a stream on did not work. */
  #failed(stream: ServerHttp2Stream, error: unknown): void {
    const known = error instanceof UpstreamError ? error : describe(this.passage.name ?? "the far side", error);
    this.#refuse(stream, refuse(502, known.reason, known.message));
  }

  /** A guest's stream is over: so is what it had upstream. */
  #over(stream: ServerHttp2Stream): void {
    const up = this.#streams.get(stream);
    this.#streams.delete(stream);
    this.#filters.get(stream)?.release?.();
    this.#streamAt = performance.now();
    const code = stream.rstCode ?? NGHTTP2_NO_ERROR;
    if (code !== NGHTTP2_NO_ERROR && !this.#cut.has(stream)) this.#countReset();
    if (up === undefined || up === null || up.closed || up.destroyed) return;
    up.close(code === NGHTTP2_NO_ERROR ? NGHTTP2_CANCEL : code);
  }

  #upstreamOver(stream: ServerHttp2Stream, up: ClientHttp2Stream): void {
    if (!open(stream)) return;
    const code = up.rstCode ?? NGHTTP2_NO_ERROR;
    if (code !== NGHTTP2_NO_ERROR) {
      if (stream.headersSent || this.#upstreamAlive()) this.#cutOff(stream, code);
      else this.#failed(stream, new UpstreamError("upstream-failed", "the far side broke off"));
    } else if (!stream.headersSent) this.#failed(stream, new UpstreamError("upstream-failed", "the far side gave no answer"));
    else this.#enough(stream);
  }

  /** The far side has answered and takes no more of the request (RFC 9113 section 8.1): nor do we, else the guest sends until its windows are full, and waits. */
  #enough(stream: ServerHttp2Stream): void {
    this.#answered.add(stream);
    this.#endAnswered(1);
  }

  /** @param ms until it is looked again; doubles up to a second, for a guest that does not read. */
  #endAnswered(ms: number): void {
    clearTimeout(this.#answeredTimer);
    for (const stream of this.#answered) {
      // A reset overtakes what is not on the wire yet, and with it the end of the answer.
      if (open(stream) && stream.state.localClose !== 1) continue;
      this.#answered.delete(stream);
      if (open(stream)) this.#cutOff(stream, NGHTTP2_NO_ERROR);
    }
    if (this.#answered.size > 0 && !this.#closed) this.#answeredTimer = setTimeout(() => this.#endAnswered(Math.min(2 * ms, 1_000)), ms).unref();
  }

  #upstreamAlive(): boolean { return !(this.#upstream instanceof UpstreamError) && !this.#upstream.destroyed; }

  /** The far side takes no further streams: neither do we; those beyond its last one are refused, for the guest to try again. */
  #goaway(code: number, last: number): void {
    let lastHere = 0;
    for (const [stream, up] of this.#streams) {
      if (up !== null && up.id !== undefined && up.id <= last) lastHere = Math.max(lastHere, stream.id ?? 0);
    }
    this.#ending = true;
    if (!this.#guest.destroyed) this.#guest.goaway(code, lastHere === 0 ? undefined : lastHere);
    if (code !== NGHTTP2_NO_ERROR) this.#guest.close();
    else this.#drain();
  }

  #drain(): void {
    this.#ending = true;
    if (!this.#guest.closed && !this.#guest.destroyed) this.#guest.close();
  }

  #end(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.passage.watch.delete(this);
    clearTimeout(this.#answeredTimer);
    if (!(this.#upstream instanceof UpstreamError)) this.#upstream.destroy();
    if (!this.#guest.destroyed) this.#guest.destroy();
    this.raw.destroy();
  }
}

/** A stream's beginning, or why it is refused. Connection-specific fields, doubled pseudo fields and the like nghttp2 has reset. */
function readStream(raw: Fields, ended: boolean, passage: Passage): { readonly facts: RequestFacts; readonly protocol: string | null } | Refusal {
  const pseudo: Record<string, string> = {};
  const plain: string[] = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i] as string, value = raw[i + 1] as string;
    if (name.startsWith(":")) pseudo[name] = value;
    else plain.push(name, value);
  }
  if (raw.length > 2 * FIELDS_MAX) return refuse(431, "head-too-large");
  const method = pseudo[":method"] ?? "", authority = pseudo[":authority"], path = pseudo[":path"] ?? "", protocol = pseudo[":protocol"] ?? null;
  if (authority === undefined) return refuse(400, "host-missing", "a request without :authority");
  const wrong = checkHosts([authority, ...valuesOf(plain, "host")], passage.name as string, passage.port);
  if (wrong !== null) return wrong;
  if (pseudo[":scheme"] !== undefined && pseudo[":scheme"] !== "https") return refuse(421, "host-mismatch", "this connection speaks https");
  if (method === "TRACE" || method === "TRACK" || (method === "CONNECT" && protocol === null)) return refuse(405, "method", `${method} is not passed on`);
  if (!/^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$/.test(method) || (method !== "CONNECT" && protocol !== null)) return refuse(400, "malformed");
  if (!/^[\x21\x22\x24-\x7e]+$/.test(path) || !(path.startsWith("/") || (path === "*" && method === "OPTIONS"))) return refuse(400, "malformed", "the path is not in origin form");
  if (hasLookalike(plain)) return refuse(400, "framing", "a field name that looks like one that frames messages");
  if (valuesOf(plain, "authorization").length > 1) return refuse(400, "framing", "more than one Authorization");
  const expect = tokensOf(valuesOf(plain, "expect"));
  if (expect.length > 0 && expect.join() !== "100-continue") return refuse(417, "expectation");
  const lengths = valuesOf(plain, "content-length");
  if (lengths.length > 1 || (lengths.length === 1 && !/^[0-9]{1,15}$/.test(lengths[0] as string))) return refuse(400, "framing");
  const body: Body = ended ? { kind: "none" } : lengths.length === 1 ? { kind: "length", octets: Number(lengths[0]) } : { kind: "chunked" };
  // What was checked is what goes out: without a final dot, in lower case.
  const { name, port } = parseHost(authority) as HostField, host = port === null ? name : `${name}:${port}`;
  const fields = requestFields(plain, host);
  if (fields === null) return refuse(400, "framing");
  if (expect.length > 0) fields.push("expect", "100-continue");
  return { facts: { host: passage.name as string, method, target: path, fields: removed(fields, "host").concat(["host", host]), body }, protocol };
}

function checkedTrailers(fields: Fields, filter: ExchangeFilter | null): Fields | Refusal {
  if (plainTrailers(fields).length !== fields.length) return refuse(400, "framing", "a trailer field that frames, routes or authorises a message");
  return filter === null ? fields : filter.requestTrailers(fields);
}

/** :authority as it goes out: what was checked. */
function hostOf(facts: RequestFacts): string { return valuesOf(facts.fields, "host")[0] ?? facts.host; }

function withoutHost(fields: Fields): string[] { return removed(fields, "host"); }

function sizeOf(fields: Fields): number { return fields.reduce((sum, field) => sum + field.length, 0); }

function removed(fields: Fields, name: string): string[] {
  const out: string[] = [];
  for (let i = 0; i < fields.length; i += 2) if ((fields[i] as string).toLowerCase() !== name) out.push(fields[i] as string, fields[i + 1] as string);
  return out;
}

/** @param raw as they came, which Node gives as a further argument that its types lack. Of a field that may stand only once, the first counts, as for Node. */
function flat(headers: IncomingHttpHeaders, raw: Fields): string[] {
  const out: string[] = [];
  const first = new Map<string, string>();
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i] as string, value = raw[i + 1] as string;
    if (name.startsWith(":")) continue;
    const had = first.get(name);
    if (had === undefined) first.set(name, value);
    // What Node joins is longer than its first.
    else if (headers[name] === had) continue;
    out.push(name, value);
  }
  return out;
}

function objectOf(fields: Fields): OutgoingHttpHeaders {
  // Without what objects have by themselves: `constructor` is the name of a field like any other.
  const out = Object.create(null) as Record<string, string | string[]>;
  for (let i = 0; i < fields.length; i += 2) {
    const name = (fields[i] as string).toLowerCase(), value = fields[i + 1] as string, had = out[name];
    if (had === undefined) out[name] = value;
    else if (Array.isArray(had)) had.push(value);
    else out[name] = [had, value];
  }
  return out;
}

/** Names whose values a secret went into, or that the guest itself marked, or that say who asks. */
function secretNames(before: Fields, after: Fields, marked: readonly string[]): string[] {
  const names = new Set<string>();
  for (let i = 0; i < after.length; i += 2) {
    const name = (after[i] as string).toLowerCase();
    if (sensitive.has(name) || after[i + 1] !== before[i + 1] || marked.includes(name)) names.add(name);
  }
  return [...names];
}

/** A side that closes its half has no more to say in HTTP/2; sessions of half-open sockets do not notice by themselves. */
function endsWith(session: Http2Session, socket: TLSSocket): void {
  socket.once("end", () => {
    if (!session.destroyed) session.destroy();
  });
}

function open(stream: ServerHttp2Stream): boolean { return !stream.closed && !stream.destroyed; }

function octets(session: Http2Session): number {
  const { socket } = session;
  try {
    return socket === undefined ? 0 : socket.bytesRead + socket.bytesWritten;
  } catch {
    return 0; // the session has let go of its socket
  }
}
