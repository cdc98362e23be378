/**
 * Bodies in a content coding: looked through as what they decode to.
 *
 * Holds always: what cannot be decoded, is cut short, or grows beyond all measure ends the stream with an error; backpressure
 * reaches the decoder, so a bomb holds no memory.
 */
import { Transform, type TransformCallback } from "node:stream";
import { createBrotliDecompress, createGunzip, createInflate, type BrotliDecompress, type Gunzip, type Inflate } from "node:zlib";
import type { Pass } from "./stream.js";

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

function decoderOf(coding: Coding): Gunzip | Inflate | BrotliDecompress {
  switch (coding) {
    case "gzip": return createGunzip();
    case "deflate": return createInflate();
    case "br": return createBrotliDecompress();
  }
}

/** Common to both ways: feeds a decoder and counts what comes out of it. */
abstract class Decoding extends Transform {
  protected readonly decoder: Gunzip | Inflate | BrotliDecompress;
  #in = 0;
  #out = 0;

  constructor(coding: Coding) {
    super({ highWaterMark: 65_536 });
    this.decoder = decoderOf(coding);
    this.decoder.on("error", (error) => this.destroy(error));
    this.decoder.on("data", (chunk: Buffer) => {
      this.#out += chunk.length;
      try {
        if (this.#out > GROWN && this.#out > GROWTH * this.#in) throw new Error("the body grows beyond measure when it is decoded");
        this.decoded(chunk);
      } catch (error) {
        this.destroy(error as Error);
      }
    });
  }

  protected abstract decoded(chunk: Buffer): void;

  protected feed(chunk: Buffer, done: () => void): void {
    this.#in += chunk.length;
    this.decoder.write(chunk, (error) => { if (error === null || error === undefined) done(); });
  }

  protected finish(done: () => void): void {
    this.decoder.once("end", done);
    this.decoder.end();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.decoder.destroy();
    done(error);
  }
}

/** Goes on as what it decodes to, through a pass. */
export class DecodedStream extends Decoding {
  readonly #pass: Pass;

  constructor(coding: Coding, pass: Pass) {
    super(coding);
    this.#pass = pass;
  }

  protected override decoded(chunk: Buffer): void {
    const pieces = this.#pass.push(chunk, false);
    if (pieces.length > 0 && !this.push(Buffer.concat(pieces))) this.decoder.pause();
  }

  override _read(size: number): void {
    this.decoder.resume();
    super._read(size);
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void { this.feed(chunk, () => done()); }

  override _flush(done: TransformCallback): void {
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

/** Goes on as it came, each piece after what it decodes to has been looked through; the last piece after all of it has. */
export class InspectedStream extends Decoding {
  readonly #pass: Pass;
  #last: Buffer | null = null;

  constructor(coding: Coding, pass: Pass) {
    super(coding);
    this.#pass = pass;
  }

  protected override decoded(chunk: Buffer): void { this.#pass.push(chunk, false); }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    this.feed(chunk, () => {
      if (this.#last !== null) this.push(this.#last);
      this.#last = chunk;
      done();
    });
  }

  override _flush(done: TransformCallback): void {
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
