/**
 * Bodies in a content coding: looked through as what they decode to.
 *
 * Holds always: what cannot be decoded, is cut short, or grows beyond all measure ends the stream with an error, and so does, where it
 * would go on as it came, what stands behind the coded octets, which no decoder looks at; backpressure reaches the decoder, so a bomb
 * holds no memory. No octets at all are an empty body in every coding.
 */
import type { TransformCallback } from "node:stream";
import { createBrotliDecompress, createGunzip, createInflate, type BrotliDecompress, type Gunzip, type Inflate } from "node:zlib";
import { type Pass, TakingTurns } from "./stream.js";

export type Coding = "gzip" | "deflate" | "br";
/** Decoded octets beyond which a body must not be more than GROWTH times its size. */
const GROWN = 64 * 1024 * 1024;
const GROWTH = 200;

/** Tokens of Content-Encoding, lower case: none (null), one that can be decoded, or another. */
export function codingOf(tokens: readonly string[]): Coding | null | "unknown" {
  const named = tokens.filter((token) => token !== "identity");
  if (named.length === 0) return null;
  if (named.length > 1) return "unknown";
  switch (named[0]) {
    case "gzip": case "x-gzip": return "gzip";
    case "deflate": return "deflate";
    case "br": return "br";
    default: return "unknown";
  }
}

/** Octets of the past that a Brotli stream may refer to, and that its decoder so keeps (RFC 7932 section 9.1). @param first octet of the stream. */
export function brotliWindow(first: number): number {
  if ((first & 1) === 0) return 1 << 16;
  const above = first >> 1 & 7, below = first >> 4 & 7;
  return 1 << (above !== 0 ? 17 + above : below !== 0 ? 8 + below : 17);
}

/** What gzip's and deflate's decoder keeps, octets. */
const INFLATE_KEPT = 48 * 1024;

function decoderOf(coding: Coding): Gunzip | Inflate | BrotliDecompress {
  switch (coding) {
    case "gzip": return createGunzip();
    case "deflate": return createInflate();
    case "br": return createBrotliDecompress();
  }
}

/** Common to both ways: feeds a decoder and counts what comes out of it. */
abstract class Decoding extends TakingTurns {
  protected readonly decoder: Gunzip | Inflate | BrotliDecompress;
  #in = 0;
  #out = 0;
  #ended = false;
  #window: number | null = null;
  /** A piece that came out waits for its turn. */
  protected waits = false;
  /** What goes on when all that came out was looked through. */
  #then: (() => void) | null = null;

  /** @param strict nothing may stand behind the coded octets; else it is left out. */
  constructor(private readonly coding: Coding, owner: object, private readonly strict: boolean) {
    super(owner);
    this.decoder = decoderOf(coding);
    this.decoder.on("error", (error) => this.destroy(error));
    this.decoder.once("end", () => { this.#ended = true; });
    this.decoder.on("data", (chunk: Buffer) => {
      this.#out += chunk.length;
      let waited = false;
      this.waits = true;
      this.inTurn(() => {
        this.waits = false;
        if (waited) this.decoder.resume();
        if (this.#out > GROWN && this.#out > GROWTH * this.#in) throw new Error("the body grows beyond measure when it is decoded");
        this.decoded(chunk);
        if (this.#then !== null) this.#whenLookedThrough(this.#then);
      }, (error) => this.destroy(error));
      if (!this.waits) return;
      waited = true;
      this.decoder.pause();
    });
  }

  /** Octets that are kept for it. */
  get kept(): number {
    if (this.destroyed || this.#ended) return this.readableLength + this.writableLength;
    return this.readableLength + this.writableLength + this.decoder.readableLength + (this.coding === "br" ? Math.min(this.#out, this.#window ?? 0) : INFLATE_KEPT);
  }

  /** @param then called once, unless the stream ends before. */
  #whenLookedThrough(then: () => void): void {
    const all = !this.waits && this.decoder.readableLength === 0;
    this.#then = all ? null : then;
    if (all) then();
  }

  protected abstract decoded(chunk: Buffer): void;

  protected feed(chunk: Buffer, done: () => void): void {
    if (this.coding === "br" && chunk.length > 0) this.#window ??= brotliWindow(chunk[0] as number);
    this.#in += chunk.length;
    if (this.#ended) {
      if (this.strict) this.#more();
      else done();
      return;
    }
    this.decoder.write(chunk, (error) => {
      if (error !== null && error !== undefined) return;
      // What it took of it: the end of the coded octets is the last that it takes.
      if (this.strict && this.decoder.bytesWritten < this.#in) this.#more();
      else this.#whenLookedThrough(done);
    });
  }

  /** @param done all that it decodes to has come. */
  protected finish(done: () => void): void {
    if (this.#in === 0 || this.#ended) {
      done();
      return;
    }
    this.decoder.once("end", () => this.#whenLookedThrough(done));
    this.decoder.end();
  }

  #more(): void { this.destroy(new Error("octets behind the coded ones")); }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.decoder.destroy();
    done(error);
  }
}

/** Goes on as what it decodes to, through a pass. */
export class DecodedStream extends Decoding {
  readonly #pass: Pass;

  constructor(coding: Coding, pass: Pass, owner: object) {
    super(coding, owner, false);
    this.#pass = pass;
  }

  protected override decoded(chunk: Buffer): void {
    const pieces = this.#pass.push(chunk, false);
    if (pieces.length > 0 && !this.push(Buffer.concat(pieces))) this.decoder.pause();
  }

  override _read(size: number): void {
    if (!this.waits) this.decoder.resume();
    super._read(size);
  }

  protected override takePiece(chunk: Buffer, done: TransformCallback): void { this.feed(chunk, () => done()); }

  protected override takeEnd(done: TransformCallback): void {
    this.finish(() => {
      try {
        for (const piece of this.#pass.push(Buffer.alloc(0), true)) this.push(piece);
      } catch (error) {
        done(error as Error);
        return;
      }
      done();
    });
  }
}

/**
 * Goes on as it came, each piece after it and what it decodes to have been looked through; the last piece after all of it has. As it is
 * too: file names and comments of gzip, and metadata of Brotli, are not in what it decodes to.
 */
export class InspectedStream extends Decoding {
  readonly #pass: Pass;
  readonly #raw: Pass;
  #last: Buffer | null = null;

  /** @param pass what it decodes to, `raw` the octets themselves. */
  constructor(coding: Coding, pass: Pass, raw: Pass, owner: object) {
    super(coding, owner, true);
    this.#pass = pass;
    this.#raw = raw;
  }

  protected override decoded(chunk: Buffer): void { this.#pass.push(chunk, false); }

  protected override takePiece(chunk: Buffer, done: TransformCallback): void {
    this.#raw.push(chunk, false);
    this.feed(chunk, () => {
      if (this.#last !== null) this.push(this.#last);
      this.#last = chunk;
      done();
    });
  }

  protected override takeEnd(done: TransformCallback): void {
    this.finish(() => {
      try {
        this.#pass.push(Buffer.alloc(0), true);
      } catch (error) {
        done(error as Error);
        return;
      }
      if (this.#last !== null) this.push(this.#last);
      done();
    });
  }
}
