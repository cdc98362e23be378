/**
 * One request and its response, with regard to secrets: what is put in, what stops it, what is taken out of the answer.
 *
 * Holds always: a value goes in only where its secret allows it and every condition of the gate holds; a placeholder or a value
 * anywhere else is a violation, also on the way to the secret's own host; a request is stopped whole: nothing of a head leaves
 * before all of it was looked at, nor of a body that can be held, and of a longer one never its end. What answers from a host that
 * may have a secret passes through the scrubbers, whether the request carried it or not. An answer that cannot be looked
 * through is stopped.
 * Does not: keep values (sandbox-secrets.ts), write to connections (src/tls/http).
 */
import type { Duplex, Readable } from "node:stream";
import { matchesPattern } from "../policy/names.js";
import type { SecretSpec } from "../policy/types.js";
import { type Fields, tokensOf, valuesOf } from "../tls/http/fields.js";
import type { ExchangeFilter, RequestFacts } from "../tls/http/passage.js";
import { gathered } from "../tls/http/gathered.js";
import { refuse, type Refusal } from "../tls/http/refusal.js";
import { codingOf, DecodedStream, InspectedStream } from "./coding.js";
import { FOUND_FROM, Finder, type Hit } from "./finder.js";
import { type BodyKind, bodyKind, inBody, percentEncoded } from "./rendering.js";
import { actionOf } from "./names.js";
import type { KnownSecret, SecretSet } from "./sandbox-secrets.js";
import { Pass, PassStream, type Sought } from "./stream.js";
import type { Form, Gate, Place, Violation } from "./types.js";
import { FrameStream } from "./websocket.js";

/** Bodies up to this length are looked through before anything leaves. */
const HELD = 64 * 1024;
/** Bodies up to this length are held where something may be put in, so that their length can be told. */
const REWRITTEN = 1024 * 1024;
/** A request target or a field must stay below this after something was put in. */
const LINE = 60 * 1024;
const standardFields = new Set(["authorization", "x-api-key", "api-key", "x-goog-api-key"]);
/** Fields that speak for the body's octets. */
const digests = ["content-digest", "repr-digest", "digest", "content-md5", "x-amz-content-sha256", "signature-input", "signature"];
const answerDigests = new Set(["content-digest", "repr-digest", "digest", "content-md5", "want-content-digest", "accept-ranges"]);
/** Asked for anew where answers are scrubbed. */
const asked = new Set(["accept-encoding", "range", "if-range", "grpc-accept-encoding"]);

/** A stop in the middle of a stream. */
export class SecretStop extends Error {
  constructor(readonly refusal: Refusal) { super(refusal.message); }
}

type Part = Buffer | KnownSecret;

/** What a request's head becomes: literal octets and secrets between them. */
interface Draft {
  path: Part[];
  query: Part[] | null;
  fields: { readonly name: string; readonly value: readonly Part[] | string; readonly basic: string | null }[];
}

/**
 * @returns null: nothing of the sandbox's secrets concerns it. A promise only while a source is asked.
 */
export function openExchange(set: SecretSet, gate: Gate, request: RequestFacts): ExchangeFilter | Refusal | null | Promise<ExchangeFilter | Refusal | null> {
  return new Request(set, gate, request).open();
}

/** Reads one request. A class for its state: the first refusal, what it uses. */
class Request {
  readonly #set: SecretSet;
  readonly #request: RequestFacts;
  readonly #gate: Gate;
  readonly #open: ReadonlySet<KnownSecret>;
  readonly #used = new Set<KnownSecret>();
  #refusal: Refusal | null = null;

  constructor(set: SecretSet, gate: Gate, request: RequestFacts) {
    this.#set = set;
    this.#gate = gate;
    this.#request = request;
    const here = gate.intercepted ? set.secrets.filter(({ spec }) => isFor(spec, gate)) : [];
    this.#open = new Set(gate.verified && gate.pinned ? here : []);
    // What it had before the policy took it away, or let it go to fewer hosts, it may still tell; of a secret that is gone, as long as the value is known.
    this.#scrubbed = gate.intercepted ? set.secrets.filter((secret) => (secret.spec !== null || secret.values().length > 0) && secret.entrusted.some((hosts) => isFor(hosts, gate))) : [];
  }

  readonly #scrubbed: readonly KnownSecret[];

  open(): ExchangeFilter | Refusal | null | Promise<ExchangeFilter | Refusal | null> {
    const { fields, target } = this.#request;
    const draft = this.#suspicious() ? this.#read() : null;
    if (this.#refusal !== null) return this.#refusal;
    const bodySecrets = this.#request.body.kind === "none" ? [] : [...this.#open].filter(({ spec }) => spec?.inject.body === true);
    if (bodySecrets.length > 0 && this.#request.method !== "CONNECT" && opaque(fields)) {
      // A placeholder that is meant to be replaced may be in it, and nobody can tell.
      for (const { counters } of bodySecrets) counters.blocked++;
      return refuse(415, "secret", "the body may hold a placeholder and cannot be looked through: send it without compression, or in gzip, deflate or br as Content-Encoding says", false);
    }
    const needed = new Set([...this.#used, ...bodySecrets]);
    if (draft === null && needed.size === 0) return this.#filter(target, fields, new Map());
    const values = new Map<KnownSecret, Buffer | null>();
    const waiting: Promise<void>[] = [];
    for (const secret of needed) {
      const value = secret.current();
      if (value instanceof Promise) waiting.push(value.then((found) => { values.set(secret, found); }));
      else values.set(secret, value);
    }
    const finish = (): ExchangeFilter | Refusal => this.#render(draft, values);
    return waiting.length === 0 ? finish() : Promise.all(waiting).then(finish);
  }

  /** Whether any octet of the head deserves a closer look. */
  #suspicious(): boolean {
    const { method, target, fields } = this.#request;
    return this.#set.finder.find(Buffer.from(`${method}\n${target}\n${fields.join("\n")}`, "latin1")).length > 0 || fields.some((value, i) => i % 2 === 1 && isBasic(fields[i - 1] as string, value));
  }

  #read(): Draft {
    const { method, target, fields } = this.#request;
    this.#look(method, "method", null);
    const mark = target.indexOf("?");
    const draft: Draft = {
      path: this.#parts(mark < 0 ? target : target.slice(0, mark), "path", null, ({ spec }, form) => spec?.inject.path === true && (form === "raw" || form === "percent")),
      query: mark < 0 ? null : this.#parts(target.slice(mark + 1), "query", null, ({ spec }, form) => spec?.inject.query === true && (form === "raw" || form === "percent")),
      fields: [],
    };
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i] as string, value = fields[i + 1] as string, lower = name.toLowerCase();
      this.#look(name, "field-name", null);
      const allowed = ({ spec }: KnownSecret, form: Form): boolean => form === "raw" && (spec?.inject.headers === null ? standardFields.has(lower) : spec?.inject.headers.includes(lower) === true);
      if (isBasic(name, value)) {
        const credentials = Buffer.from(value.replace(/^basic\s+/i, ""), "base64");
        const parts = this.#parts(credentials.toString("latin1"), "field", lower, allowed, "basic");
        const put = parts.some((part) => !Buffer.isBuffer(part));
        if (put || this.#set.finder.find(credentials).length > 0) {
          draft.fields.push(put ? { name, value: parts, basic: `${value.slice(0, value.search(/\s/))} ` } : { name, value, basic: null });
          continue;
        }
      }
      const parts = this.#parts(value, "field", lower, allowed);
      draft.fields.push({ name, value: parts.every((part) => Buffer.isBuffer(part)) ? value : parts, basic: null });
      if (/^AWS4-/.test(value) && parts.some((part) => !Buffer.isBuffer(part))) this.#signed();
    }
    for (const { name, value } of draft.fields) {
      if (typeof value !== "string" && draft.fields.filter((other) => other.name.toLowerCase() === name.toLowerCase()).length > 1) this.#refusal ??= refuse(403, "secret", `the field ${name.toLowerCase()} stands there more than once, with a secret in it`);
    }
    return draft;
  }

  #signed(): void { this.#refusal ??= refuse(403, "secret", "the request is signed over a placeholder: with the secret in its place the signature would not hold"); }

  /** Text with what is to be put in; what must not be there is a violation. */
  #parts(text: string, place: Place, field: string | null, allowed: (secret: KnownSecret, form: Form) => boolean, written: Form | null = null): Part[] {
    const octets = Buffer.from(text, "latin1");
    const parts: Part[] = [];
    let at = 0;
    for (const hit of this.#set.finder.find(octets)) {
      const secret = this.#set.byName(hit.wanted.secret);
      if (hit.wanted.what === "placeholder" && secret !== null && secret.placeholder.equals(hit.wanted.octets) && this.#open.has(secret) && allowed(secret, hit.form)) {
        parts.push(octets.subarray(at, hit.start), secret);
        at = hit.end;
        this.#used.add(secret);
      } else this.#violation(hit, place, field, written ?? hit.form);
    }
    parts.push(octets.subarray(at));
    return parts;
  }

  #look(text: string, place: Place, field: string | null): void {
    for (const hit of this.#set.finder.find(Buffer.from(text, "latin1"))) this.#violation(hit, place, field, hit.form);
  }

  #violation(hit: Hit, place: Place, field: string | null, form: Form): void {
    const refusal = violate(this.#set, this.#gate, this.#request, hit, place, field, form);
    if (refusal !== null) this.#refusal ??= refusal;
  }

  #render(draft: Draft | null, values: ReadonlyMap<KnownSecret, Buffer | null>): ExchangeFilter | Refusal {
    for (const [secret, value] of values) {
      if (value !== null || !this.#used.has(secret)) continue;
      secret.counters.unavailable++;
      return refuse(503, "secret", `the secret ${secret.name} cannot be had at present`, false);
    }
    let { target, fields } = this.#request;
    if (draft !== null) {
      const write = (parts: readonly Part[], as: (value: Buffer) => Buffer): Buffer => Buffer.concat(parts.map((part) => (Buffer.isBuffer(part) ? part : as(values.get(part) as Buffer))));
      target = write(draft.path, percentEncoded).toString("latin1") + (draft.query === null ? "" : `?${write(draft.query, percentEncoded).toString("latin1")}`);
      fields = draft.fields.flatMap(({ name, value, basic }) => {
        if (typeof value === "string") return [name, value];
        const octets = write(value, (plain) => plain);
        return [name, basic === null ? octets.toString("latin1") : basic + octets.toString("base64")];
      });
      if (target.length > LINE || fields.some((field) => field.length > LINE)) return refuse(431, "head-too-large", "with the secret in it, the head would be too large");
      for (const secret of this.#used) secret.counters.injected++;
    }
    return this.#filter(target, fields, values) as ExchangeFilter;
  }

  #filter(target: string, fields: string[], values: ReadonlyMap<KnownSecret, Buffer | null>): ExchangeFilter | null {
    return new Exchange(this.#set, this.#gate, this.#request, target, fields, this.#used, values, this.#open, this.#scrubbed);
  }
}

/** Whether a request's body is coded in a way that cannot be undone: an unknown coding, or compressed messages within gRPC's own framing. */
function opaque(fields: Fields): boolean {
  return codingOf(tokensOf(valuesOf(fields, "content-encoding"))) === "unknown" || tokensOf(valuesOf(fields, "grpc-encoding")).some((token) => token !== "identity");
}

/** gRPC's messages say their lengths within the body. */
function isGrpc(fields: Fields): boolean { return valuesOf(fields, "content-type").some((type) => /^application\/grpc\b/i.test(type.trim())); }

/** What a violation leads to, told and counted; null: the request goes on. */
export function violate(set: SecretSet, gate: Gate, request: Pick<RequestFacts, "host" | "method">, hit: Pick<Hit, "wanted">, place: Place, field: string | null, form: Form): Refusal | null {
  const { secret: name, what } = hit.wanted;
  const action = actionFor(set, gate, hit);
  const violation: Violation = { secret: name, what, place, field: field === null || !/^[a-z0-9-]{1,40}$/.test(field) ? null : field, form, action, host: request.host, port: gate.port, method: /^[A-Z]{1,16}$/.test(request.method) ? request.method : "" };
  set.violated(violation);
  if (action === "log" || action === "pass") return null;
  return { ...refuse(403, "secret", describeViolation(violation)), violation };
}

function actionFor(set: SecretSet, { labels }: Gate, { wanted: { secret, what } }: Pick<Hit, "wanted">): Violation["action"] { return actionOf(set.byName(secret)?.spec?.onViolation ?? BLOCK, what, labels); }

/** For a secret that the policy has no more. */
export const BLOCK = { action: "block", hosts: [] } as const;

const places: Readonly<Record<Place, string>> = {
  method: "the method", path: "the path", query: "the query", "field-name": "the name of a field", field: "a field", body: "the body", trailer: "a trailer", websocket: "a WebSocket message", "server-name": "the server's name", "dns-name": "a name asked of the resolver",
};

/** `the placeholder of GITHUB_TOKEN in the field x-debug, to example.com`. */
export function describeViolation({ secret, what, place, field, form, host }: Violation): string {
  return `the ${what} of secret ${secret}${form === "raw" ? "" : `, in ${form === "basic" ? "Basic credentials" : form === "json" ? "JSON escapes" : form === "percent" ? "percent escapes" : form === "hex" ? "hexadecimal" : form}`}, in ${field === null ? places[place] : `the field ${field}`}${place === "dns-name" ? "" : ` of a request to ${host}`}`;
}

/** Whether the secret may go to this name and port. null: it is gone. */
export function isFor(spec: Pick<SecretSpec, "allowedHosts" | "ports"> | null, { labels, port }: Pick<Gate, "labels" | "port">): boolean {
  return spec !== null && labels.length > 0 && spec.ports.includes(port) && spec.allowedHosts.some((pattern) => matchesPattern(pattern, labels));
}

function isBasic(name: string, value: string): boolean { return name.toLowerCase() === "authorization" && /^basic\s+[A-Za-z0-9+/_=-]+\s*$/i.test(value); }

class Exchange implements ExchangeFilter {
  readonly target: string;
  readonly fields: string[];
  readonly body: Duplex | null;
  readonly bodyLength: number | null;
  readonly whole: ((source: Readable) => Promise<Buffer | Refusal>) | null;
  readonly #set: SecretSet;
  readonly #gate: Gate;
  readonly #request: RequestFacts;
  readonly #used: Set<KnownSecret>;
  readonly #values: ReadonlyMap<KnownSecret, Buffer | null>;
  readonly #open: ReadonlySet<KnownSecret>;
  /** What its host may have. */
  readonly #here: readonly KnownSecret[];
  readonly #kind: BodyKind;
  #coding: ReturnType<typeof codingOf> = null;
  /** The answer's length must stay. */
  #keeps = false;
  /** The answer is a WebSocket's octets. */
  #framed = false;
  /** What bodies and messages pass through. */
  readonly #streams: (PassStream | InspectedStream | DecodedStream | FrameStream)[] = [];

  constructor(set: SecretSet, gate: Gate, request: RequestFacts, target: string, fields: string[], used: Set<KnownSecret>, values: ReadonlyMap<KnownSecret, Buffer | null>, open: ReadonlySet<KnownSecret>, here: readonly KnownSecret[]) {
    this.#set = set;
    this.#gate = gate;
    this.#request = request;
    this.#used = used;
    this.#values = values;
    this.#open = open;
    this.#here = here;
    this.#kind = bodyKind(valuesOf(request.fields, "content-type"));
    this.target = target;
    this.fields = this.#askedFields(fields);
    const { body } = request;
    if (body.kind === "none" || set.finder.empty) {
      this.body = this.whole = this.bodyLength = null;
      return;
    }
    if (request.method === "CONNECT") {
      this.body = this.#frames();
      this.bodyLength = this.whole = null;
      return;
    }
    const coding = codingOf(tokensOf(valuesOf(request.fields, "content-encoding")));
    const rewrites = coding === null && [...open].some(({ spec }) => spec?.inject.body === true);
    const octets = body.kind === "length" ? body.octets : Infinity;
    const expects = valuesOf(request.fields, "expect").length > 0;
    this.whole = octets <= (rewrites ? REWRITTEN : expects ? 0 : HELD) ? (source) => this.#whole(source, coding, rewrites) : null;
    this.body = this.whole !== null ? null : this.#stream(coding, rewrites, body.kind === "length");
    this.bodyLength = body.kind === "length" ? body.octets : null;
  }

  /** What is taken out of answers now: an answer may go on for hours, and a value come anew meanwhile. */
  get #scrub(): ScrubSet | null { return this.#here.length === 0 ? null : this.#set.scrubSet(this.#here); }

  /** The same for a stream, which asks for each piece. */
  #sought(): Sought {
    const set = this.#set, here = this.#here;
    return { get finder() { return set.scrubSet(here).finder; } };
  }

  // ---- request ------------------------------------------------------------------------------------------------------

  /** Where answers are scrubbed, they are asked for whole and in the clear. */
  #askedFields(fields: string[]): string[] {
    const upgrade = valuesOf(fields, "sec-websocket-key").length > 0 || this.#request.method === "CONNECT";
    if (this.#scrub === null && !upgrade) return fields;
    const out: string[] = [];
    let grpc = false;
    for (let i = 0; i < fields.length; i += 2) {
      const lower = (fields[i] as string).toLowerCase();
      grpc ||= lower === "grpc-accept-encoding";
      if (lower === "sec-websocket-extensions" || (this.#scrub !== null && asked.has(lower))) continue;
      out.push(fields[i] as string, fields[i + 1] as string);
    }
    if (this.#scrub !== null && !upgrade) out.push("Accept-Encoding", "identity");
    if (this.#scrub !== null && grpc) out.push("grpc-accept-encoding", "identity");
    return out;
  }

  #stream(coding: ReturnType<typeof codingOf>, rewrites: boolean, sized: boolean): Duplex {
    if (coding === null || coding === "unknown") return this.#kept(new PassStream(this.#bodyPass(rewrites, sized), this.#set));
    // What stands in a block that is not compressed is found twice, as it comes and decoded: let pass, it is told once.
    const told = new Map<string, number>();
    return this.#kept(new InspectedStream(coding, this.#codedPass(told), this.#codedPass(told), this.#set));
  }

  #kept<T extends PassStream | InspectedStream | DecodedStream | FrameStream>(stream: T): T {
    this.#streams.push(stream);
    return stream;
  }

  /** Of a body in a coding one of two. @param told what either of them told, by secret and form: as often as the one that found it most often. */
  #codedPass(told: Map<string, number>): Pass {
    const found = new Map<string, number>();
    return new Pass(this.#set, false, (hit, octets, begun) => {
      const { secret, what } = hit.wanted, key = `${secret} ${what} ${hit.form}`, count = (found.get(key) ?? 0) + 1;
      found.set(key, count);
      if (count <= (told.get(key) ?? 0) && ["log", "pass"].includes(actionFor(this.#set, this.#gate, hit))) return null;
      told.set(key, count);
      return this.#inBody(hit, octets.length, begun, false, false);
    });
  }

  /** @param sized its length was told already, so it must not change. */
  #bodyPass(rewrites: boolean, sized: boolean): Pass {
    return new Pass(this.#set, rewrites, (hit, octets, begun) => this.#inBody(hit, octets.length, begun, rewrites, sized));
  }

  #inBody(hit: Hit, length: number, begun: boolean, rewrites: boolean, sized: boolean): Buffer | null | Error {
    const secret = this.#set.byName(hit.wanted.secret);
    const kind = this.#kind;
    const meant = rewrites && hit.wanted.what === "placeholder" && secret !== null && secret.placeholder.equals(hit.wanted.octets) && this.#open.has(secret) && secret.spec?.inject.body === true
      && (hit.form === "raw" || (hit.form === "json" && kind === "json") || (hit.form === "percent" && kind === "form"));
    if (!meant) {
      const refusal = violate(this.#set, this.#gate, this.#request, hit, "body", null, hit.form);
      return refusal === null ? null : new SecretStop(refusal);
    }
    const stop = (status: number, text: string): Error => {
      secret.counters.blocked++;
      return new SecretStop(refuse(status, "secret", text));
    };
    if (begun) return stop(403, "a placeholder in the body came in pieces with pauses between them");
    if (this.#signs()) return stop(403, "the request is signed over its body, or carries a digest of it: with the secret in it that would not hold");
    const value = this.#values.get(secret) ?? null;
    if (value === null) {
      secret.counters.unavailable++;
      return new SecretStop(refuse(503, "secret", `the secret ${secret.name} cannot be had at present`));
    }
    const rendered = inBody(value, kind);
    if (rendered === null) return stop(403, `the secret ${secret.name} has characters that cannot be put into a body of this Content-Type`);
    if (rendered.length !== length && isGrpc(this.#request.fields)) return stop(403, "a gRPC message cannot be made longer or shorter: give the placeholder the length of the value");
    if (sized && rendered.length !== length) return stop(413, `a body of more than ${REWRITTEN / 1024} KiB whose length was told cannot be made longer or shorter: send it chunked, or give the placeholder the length of the value`);
    if (!this.#used.has(secret)) {
      this.#used.add(secret);
      secret.counters.injected++;
    }
    return rendered;
  }

  #signs(): boolean {
    const { fields } = this.#request;
    return digests.some((name) => valuesOf(fields, name).some((value) => !(name === "x-amz-content-sha256" && value === "UNSIGNED-PAYLOAD"))) || valuesOf(fields, "authorization").some((value) => /^AWS4-/.test(value));
  }

  /** The whole body as it is to go out. */
  async #whole(source: Readable, coding: ReturnType<typeof codingOf>, rewrites: boolean): Promise<Buffer | Refusal> {
    return gathered(source, this.#stream(coding, rewrites, false), stopOf);
  }

  requestTrailers(fields: Fields): string[] | Refusal {
    for (let i = 0; i < fields.length; i++) {
      for (const hit of this.#set.finder.find(Buffer.from(fields[i] as string, "latin1"))) {
        const refusal = violate(this.#set, this.#gate, this.#request, hit, "trailer", null, hit.form);
        if (refusal !== null) return refusal;
      }
    }
    return [...fields];
  }

  /** What the guest's frames of a WebSocket pass through. */
  #frames(): Duplex {
    const make = (): Pass => new Pass(this.#set, false, (hit) => {
      const refusal = violate(this.#set, this.#gate, this.#request, hit, "websocket", null, hit.form);
      return refusal === null ? null : new SecretStop(refusal);
    });
    return this.#kept(new FrameStream(make(), make, this.#set));
  }

  tunnel(): { readonly fromGuest: Duplex; readonly toGuest: Duplex | null } {
    if (this.#scrub === null) return { fromGuest: this.#frames(), toGuest: null };
    const make = (): Pass => new Pass(this.#sought(), false, (hit) => this.#stopped(hit));
    return { fromGuest: this.#frames(), toGuest: this.#kept(new FrameStream(make(), make, this.#set)) };
  }

  // ---- response -----------------------------------------------------------------------------------------------------

  responseHead(status: number, phrase: string, fields: Fields): { readonly phrase: string; readonly fields: string[] } | null {
    const scrub = this.#scrub;
    if (scrub === null) return { phrase, fields: [...fields] };
    const bodiless = status < 200 || status === 204 || status === 304 || this.#request.method === "HEAD";
    if (status >= 200) {
      this.#coding = codingOf(tokensOf(valuesOf(fields, "content-encoding")));
      this.#framed = this.#request.method === "CONNECT" && status < 300;
    }
    const grpc = tokensOf(valuesOf(fields, "grpc-encoding"));
    this.#keeps = isGrpc(fields);
    if (status === 206 || (!bodiless && (this.#coding === "unknown" || grpc.some((token) => token !== "identity")))) return this.#unseen(scrub);
    const out: string[] = [];
    for (let i = 0; i < fields.length; i += 2) {
      const name = fields[i] as string, lower = name.toLowerCase();
      if (answerDigests.has(lower) || (lower === "content-encoding" && !bodiless && this.#coding !== null)) continue;
      if (scrub.finder.find(Buffer.from(name, "latin1")).length > 0) return this.#unseen(scrub);
      out.push(name, this.#scrubbed(scrub, fields[i + 1] as string));
    }
    return { phrase: this.#scrubbed(scrub, phrase), fields: out };
  }

  responseBody(): { readonly transform: Duplex; readonly changesLength: boolean } | null {
    const scrub = this.#scrub;
    if (scrub === null) return null;
    if (this.#framed) {
      const make = (): Pass => new Pass(this.#sought(), false, (hit) => this.#stopped(hit));
      return { transform: this.#kept(new FrameStream(make(), make, this.#set)), changesLength: false };
    }
    const coding = this.#coding === "unknown" ? null : this.#coding;
    const changesLength = coding !== null || (scrub.changesLength && !this.#keeps);
    const pass = new Pass(this.#sought(), true, (hit, octets) => {
      this.#count(hit);
      return scrub.replacement(hit, octets.length, this.#keeps || !changesLength);
    });
    return { transform: this.#kept(coding === null ? new PassStream(pass, this.#set) : new DecodedStream(coding, pass, this.#set)), changesLength };
  }

  responseTrailers(fields: Fields): string[] | null {
    const scrub = this.#scrub;
    if (scrub === null) return [...fields];
    const out: string[] = [];
    for (let i = 0; i < fields.length; i += 2) {
      if (answerDigests.has((fields[i] as string).toLowerCase())) continue;
      if (scrub.finder.find(Buffer.from(fields[i] as string, "latin1")).length > 0) return null;
      out.push(fields[i] as string, this.#scrubbed(scrub, fields[i + 1] as string));
    }
    return out;
  }

  held(): number { return this.#streams.reduce((sum, { kept }) => sum + kept, 0); }

  release(): void { for (const stream of this.#streams) stream.destroy(); }

  done(): void { /* nothing is held beyond the streams */ }

  #scrubbed(scrub: ScrubSet, text: string): string {
    const octets = Buffer.from(text, "latin1");
    const hits = scrub.finder.find(octets);
    if (hits.length === 0) return text;
    const out: Buffer[] = [];
    let at = 0;
    for (const hit of hits) {
      this.#count(hit);
      out.push(octets.subarray(at, hit.start), scrub.replacement(hit, hit.end - hit.start, false));
      at = hit.end;
    }
    out.push(octets.subarray(at));
    return Buffer.concat(out).toString("latin1");
  }

  #count(hit: Hit): void {
    const secret = this.#set.byName(hit.wanted.secret);
    if (secret !== null) secret.counters.scrubbed++;
  }

  #stopped(hit: Hit): Error {
    const secret = this.#set.byName(hit.wanted.secret);
    if (secret !== null) secret.counters.stopped++;
    return new Error("the far side sent a secret's value");
  }

  #unseen(scrub: ScrubSet): null {
    for (const { counters } of scrub.secrets) counters.stopped++;
    return null;
  }
}

/** What the guest is told when a stream was stopped. */
export function stopOf(error: unknown): Refusal { return error instanceof SecretStop ? error.refusal : refuse(403, "secret", "the body cannot be looked through: its Content-Encoding does not hold"); }

/** The values that are taken out of the answers of one host. */
export class ScrubSet {
  readonly finder: Finder;
  /** A value and what takes its place differ in length. */
  readonly changesLength: boolean;

  constructor(readonly secrets: readonly KnownSecret[]) {
    this.finder = new Finder(secrets.flatMap((secret) => secret.values().map((octets) => ({ secret: secret.name, what: "value" as const, octets }))), null);
    this.changesLength = secrets.some((secret) => secret.values().some(({ length }) => length >= FOUND_FROM && length !== secret.placeholder.length));
  }

  /** @param keeps the length must stay. */
  replacement(hit: Hit, length: number, keeps: boolean): Buffer {
    const secret = this.secrets.find(({ name }) => name === hit.wanted.secret);
    // Within base64, another text would shift what follows.
    if (secret === undefined || hit.form === "base64" || (keeps && secret.placeholder.length !== length)) return Buffer.alloc(length, "X");
    return secret.placeholder;
  }
}
