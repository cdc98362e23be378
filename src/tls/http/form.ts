/**
 * `_method` in a request's body: what common frameworks take for the method instead of the request's own (Rack, Symfony, Laravel,
 * Express).
 *
 * Holds always: read as the loosest of them reads it (PHP's names, blanks, escapes, folded lines), in a form, in a multipart body, and
 * at any depth of a JSON text; however the octets are split. A method that may not be is refused before the piece that completes it
 * goes on, so the far side gets no end of the request; what cannot be told within a bound is refused. What is kept is bounded.
 * Does not: look at bodies of other types, or into a JSON text in a content coding.
 */
import { Duplex, Readable, type Transform, type TransformCallback } from "node:stream";
import { SecretStop } from "../../secrets/exchange.js";
import { TakingTurns } from "../../secrets/stream.js";
import { namesMethod, tokensOf, valuesOf } from "./fields.js";
import { gathered } from "./gathered.js";
import { isRefusal, type ExchangeFilter, type RequestFacts } from "./passage.js";
import { refuse, type Refusal } from "./refusal.js";

/** Whether a request may have a method; null: it may. */
export type MayBe = (method: string) => Refusal | null;

/** Bodies up to this length are looked through before anything leaves. */
const HELD = 64 * 1024;
/** Octets of a form's field that may be one that is meant, and of its value. */
const FIELD = 512, VALUE = 256;
/** Octets from where a part of a multipart body says what it is to the end of its head. */
const PART = 16 * 1024;
/** Octets of white space between a JSON name and its value. */
const BLANKS = 4 * 1024;
/** In a JSON text other words are another protocol's methods. */
const known = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PURGE", "LINK", "UNLINK", "LOCK", "UNLOCK", "COPY", "MOVE", "MKCOL", "PROPFIND", "PROPPATCH"]);

/** One reading of one body, as latin1. */
abstract class Reading {
  /** What must be looked at again when more has come. */
  protected kept = "";

  constructor(protected readonly mayBe: MayBe) {}

  get octets(): number { return this.kept.length; }

  /** @param last nothing follows. @throws SecretStop. */
  push(text: string, last: boolean): void { this.kept = this.look(this.kept + text, last); }

  protected abstract look(text: string, last: boolean): string;

  protected judge(method: string): void {
    const name = method.trim().toUpperCase(), refusal = name === "" ? null : this.mayBe(name);
    if (refusal !== null) throw new SecretStop(refusal);
  }

  /** It cannot be told which method is meant. */
  protected unclear(): never { throw new SecretStop(this.mayBe("") ?? refuse(403, "rule-method")); }
}

class FormReading extends Reading {
  /** What comes belongs to a field of another name, up to the next one. */
  #passing = false;

  protected override look(octets: string, last: boolean): string {
    let text = octets;
    if (this.#passing) {
      const end = text.search(/[&;]/);
      if (end < 0) return "";
      text = text.slice(end + 1);
    }
    // The last field may not be whole.
    const tail = Math.max(text.lastIndexOf("&"), text.lastIndexOf(";")) + 1;
    for (const { index, 0: { length } } of text.slice(0, tail).matchAll(/(?:^|[&;])(?:\+|%20| )*(?=[_.[]|%5f|%2e|%5b)/gi)) {
      const field = text.slice(index + length, index + length + FIELD), end = field.search(/[&;]/);
      this.#field(end < 0 ? field : field.slice(0, end), end >= 0);
    }
    const field = text.slice(tail).replace(/^(?:\+|%20| )+/, "");
    this.#passing = !last && field.length > FIELD;
    if (!last && !this.#passing) return field;
    this.#field(field.slice(0, FIELD), field.length <= FIELD);
    return "";
  }

  #field(field: string, whole: boolean): void {
    const equals = field.indexOf("=");
    if (!namesMethod(unescaped(equals < 0 ? field : field.slice(0, equals)))) return;
    if (!whole) this.unclear();
    if (equals >= 0) this.judge(unescaped(field.slice(equals + 1)));
  }
}

function unescaped(text: string): string {
  return text.replaceAll("+", " ").replace(/%([0-9a-f]{2})/gi, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 16)));
}

/** Whatever the boundary is said to be: readers differ about it. */
class MultipartReading extends Reading {
  protected override look(text: string, last: boolean): string {
    const says = /content-disposition[ \t]{0,8}:/gi, empty = /\r?\n\r?\n/g;
    let end = empty.exec(text);
    for (let found = says.exec(text); found !== null; found = says.exec(text)) {
      const start = found.index;
      if (end !== null && end.index < start) {
        empty.lastIndex = start;
        end = empty.exec(text);
      }
      if (end === null || end.index > start + PART) {
        const long = text.length > start + PART;
        // A line of it in a file's text may be followed by anything.
        if (long && (start === 0 || text[start - 1] === "\n")) this.unclear();
        if (long) continue;
        if (last) return "";
        return text.slice(Math.max(0, start - 1));
      }
      says.lastIndex = end.index + 1;
      if (!partOfMethod(text.slice(start, end.index))) continue;
      const from = end.index + end[0].length, value = text.slice(from, from + VALUE), until = /\r?\n--/.exec(value);
      if (until === null && value.length === VALUE) this.unclear();
      if (until === null && !last) return text.slice(Math.max(0, start - 1));
      this.judge(until === null ? value : value.slice(0, until.index));
    }
    // The beginning of the words, with blanks before the colon, and the octet in front.
    return text.slice(-Math.max(1, /(?:^|[^])c[a-z-]{0,18}[ \t]{0,8}$/i.exec(text.slice(-28))?.[0].length ?? 0));
  }
}

function partOfMethod(head: string): boolean {
  // In one blank each, and in time that grows with the length.
  return /[;: ]name\*?\d?\*? ?= ?(?:[\w-]*'[^']*')?["']? ?(?:[_.[]|%5f)method(?=["'; \0[]|%00|$)/i.test(head.replaceAll("\\", "").replace(/(?:\s|%20)+/g, " "));
}

const spelled = [..."_method"].map((char) => `(?:${char}|\\\\u00${[...char.charCodeAt(0).toString(16)].map((digit) => (digit >= "a" ? `[${digit}${digit.toUpperCase()}]` : digit)).join("")})`).join("");

class JsonReading extends Reading {
  protected override look(text: string, last: boolean): string {
    const names = new RegExp(`"${spelled}"`, "g");
    for (let found = names.exec(text); found !== null; found = names.exec(text)) {
      const rest = text.slice(names.lastIndex, names.lastIndex + BLANKS);
      const before = /^[ \t\r\n]*(?::[ \t\r\n]*)?/.exec(rest)?.[0].length as number;
      if (before === rest.length) {
        if (rest.length === BLANKS) this.unclear();
        if (last) return "";
        return text.slice(found.index);
      }
      if (rest[before] !== '"' || !rest.slice(0, before).includes(":")) continue;
      const value = text.slice(names.lastIndex + before, names.lastIndex + before + VALUE), whole = /^"(?:[^"\\]|\\[^])*"/.exec(value)?.[0];
      if (whole === undefined) {
        if (value.length < VALUE && !last) return text.slice(found.index);
        continue;
      }
      const method = whole.slice(1, -1).replace(/\\u([0-9a-f]{4})/gi, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 16)));
      if (known.has(method.trim().toUpperCase())) this.judge(method);
    }
    return text.slice(-43);
  }
}

/** How a body is read, by its fields. A POST that does not say what it holds is a form to Rack. */
function readingsOf({ fields, method }: RequestFacts, mayBe: MayBe): Reading[] {
  const types = valuesOf(fields, "content-type").join().toLowerCase();
  const readings: Reading[] = [];
  if (types.includes("x-www-form-urlencoded") || (types.trim() === "" && method === "POST")) readings.push(new FormReading(mayBe));
  if (types.includes("multipart/")) readings.push(new MultipartReading(mayBe));
  if (types.includes("json")) readings.push(new JsonReading(mayBe));
  return readings;
}

class FormStream extends TakingTurns {
  constructor(private readonly readings: readonly Reading[], owner: object) { super(owner); }

  get kept(): number { return this.readings.reduce((sum, { octets }) => sum + octets, this.readableLength + this.writableLength); }

  protected override takePiece(chunk: Buffer, done: TransformCallback): void {
    for (const reading of this.readings) reading.push(chunk.toString("latin1"), false);
    done(null, chunk);
  }

  protected override takeEnd(done: TransformCallback): void {
    for (const reading of this.readings) reading.push("", true);
    done();
  }
}

/**
 * A filter behind which a body names no method that may not be.
 * @param filter what else becomes of the exchange. @param mayBe null: nothing is said of methods. @param owner the sandbox, which takes turns with others.
 */
export function guardMethods(filter: ExchangeFilter | null, request: RequestFacts, mayBe: MayBe | null, owner: object): ExchangeFilter | Refusal | null {
  const { body, fields } = request;
  const readings = mayBe === null || body.kind === "none" || request.method === "CONNECT" ? [] : readingsOf(request, mayBe);
  if (readings.length === 0) return filter;
  if (tokensOf(valuesOf(fields, "content-encoding")).some((token) => token !== "identity")) {
    if (readings.every((reading) => reading instanceof JsonReading)) return filter;
    filter?.done();
    return refuse(415, "rule-method", "a form in a content coding cannot be looked through for the method that it names");
  }
  const stream = new FormStream(readings, owner), inner = filter?.body ?? null, whole = filter?.whole ?? null;
  const holds = whole !== null || (inner === null && body.kind === "length" && body.octets <= HELD && valuesOf(fields, "expect").length === 0);
  return {
    target: filter?.target ?? request.target, fields: filter?.fields ?? [...fields],
    body: holds ? null : inner === null ? stream : joined(stream, inner),
    bodyLength: filter?.body ? filter.bodyLength : body.kind === "length" ? body.octets : null,
    whole: !holds ? null : async (source) => {
      const got = await gathered(source, stream, (error) => (error instanceof SecretStop ? error.refusal : null));
      return isRefusal(got) || whole === null ? got : whole(Readable.from(got.length === 0 ? [] : [got]));
    },
    requestTrailers: (trailers) => filter?.requestTrailers(trailers) ?? [...trailers],
    responseHead: (status, phrase, answer) => (filter === null ? { phrase, fields: [...answer] } : filter.responseHead(status, phrase, answer)),
    responseBody: () => filter?.responseBody() ?? null,
    responseTrailers: (trailers) => (filter === null ? [...trailers] : filter.responseTrailers(trailers)),
    tunnel: () => filter?.tunnel?.() ?? null,
    held: () => stream.kept + (filter?.held?.() ?? 0),
    release: () => filter?.release?.(),
    done: () => filter?.done(),
  };
}

/** Two streams as one. */
function joined(first: Transform, second: Duplex): Duplex {
  first.pipe(second);
  return Duplex.from({ writable: first, readable: second });
}
