/**
 * Octets that pass by in pieces: looked through, and rewritten where the rewriting says so.
 *
 * Holds always: a match is found however it is split. What may be the beginning of one is held back until more comes; three
 * octets or fewer may be chance and are let go after a moment, so that a conversation does not stall on them. What is kept is
 * bounded by the finder's reach. Each piece is looked through for what is sought when it comes. After an error nothing more
 * comes out. Each look costs time for all that is kept, so sandboxes take turns with them, and what comes meanwhile is looked through in one.
 */
import { Transform, type TransformCallback } from "node:stream";
import type { Finder, Hit } from "./finder.js";
import { looks } from "./looks.js";

/** Beginnings of a match up to this length may be chance. */
const CHANCE = 3;
/** How long such a beginning is held, ms. */
const CHANCE_MS = 50;
const NOTHING = Buffer.alloc(0);

/** What becomes of a match: itself (null), something else, or an error that ends the stream. `begun`: some of it has left already. */
export type OnHit = (hit: Hit, octets: Buffer, begun: boolean) => Buffer | null | Error;

/** What is looked for at the moment: values may come anew while octets pass. */
export interface Sought { readonly finder: Finder }

/** The pure part of a pass: pieces in, pieces out. */
export class Pass {
  readonly #sought: Sought;
  readonly #onHit: OnHit;
  readonly #rewrites: boolean;
  /** What has left and may still be the beginning of a match, then what has not. */
  #held: Buffer = NOTHING;
  #left = 0;
  /** Octets of the past that a match may begin in. */
  #reach = 0;

  /** @param rewrites matches must be whole when they are met, so their beginnings are held back from the first octet on. */
  constructor(sought: Sought, rewrites: boolean, onHit: OnHit) {
    this.#sought = sought;
    this.#onHit = onHit;
    this.#rewrites = rewrites;
  }

  /** Whether something is held back that may be chance only. */
  loose = false;
  /** Decoded octets at the end that may be the beginning of a match. */
  matched = 0;
  /** In how many of the last octets that beginning is. */
  pending = 0;

  /** @param last nothing follows. @throws what onHit gave. */
  push(chunk: Buffer, last: boolean): Buffer[] {
    const window = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    const out: Buffer[] = [];
    const { finder } = this.#sought;
    let place = this.#left, barrier = 0;
    for (const hit of finder.find(window)) {
      const became = this.#onHit(hit, window.subarray(hit.start, hit.end), hit.start < place);
      if (became instanceof Error) throw became;
      if (became !== null) {
        if (hit.start > place) out.push(window.subarray(place, hit.start));
        out.push(became);
        place = Math.max(place, hit.end);
      }
      barrier = hit.end;
    }
    const rest = window.subarray(barrier);
    const pending = last ? { octets: 0, matched: 0, reach: 0 } : finder.pending(rest);
    this.matched = pending.matched;
    this.pending = pending.octets;
    this.#reach = pending.reach;
    const chance = pending.matched <= CHANCE;
    this.loose = this.#rewrites && chance && pending.octets > 0;
    const held = chance && !this.#rewrites ? 0 : pending.octets;
    this.#release(window, Math.max(place, window.length - held), place, barrier, out);
    return out;
  }

  /** Octets that are kept. */
  get kept(): number { return this.#held.length; }

  /** What went before is no part of what comes. */
  reset(): void {
    this.#held = NOTHING;
    this.#left = this.matched = this.pending = 0;
    this.loose = false;
  }

  /** Lets go what may be chance. */
  letGo(): Buffer[] {
    if (!this.loose) return [];
    this.loose = false;
    const out: Buffer[] = [];
    this.#release(this.#held, this.#held.length, this.#left, 0, out);
    return out;
  }

  #release(window: Buffer, until: number, place: number, barrier: number, out: Buffer[]): void {
    if (until > place) out.push(window.subarray(place, until));
    const keep = Math.max(barrier, until - this.#reach, 0);
    // A copy: a slice would keep whole chunks alive.
    this.#held = Buffer.from(window.subarray(keep));
    this.#left = until - keep;
  }
}

/** A stream whose pieces are gathered while it waits for its sandbox's turn. */
export abstract class TakingTurns extends Transform {
  readonly #owner: object;

  /** @param owner the sandbox. */
  constructor(owner: object) {
    super({ highWaterMark: 65_536 });
    this.#owner = owner;
  }

  override _writev(pieces: { readonly chunk: Buffer }[], done: (error?: Error | null) => void): void { this._write(Buffer.concat(pieces.map(({ chunk }) => chunk)), "binary", done); }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void { this.inTurn(() => this.takePiece(chunk, done), done); }

  override _flush(done: TransformCallback): void { this.inTurn(() => this.takeEnd(done), done); }

  protected abstract takePiece(chunk: Buffer, done: TransformCallback): void;
  protected abstract takeEnd(done: TransformCallback): void;

  /** @param look not called when the stream has ended meanwhile; what it throws ends the stream. */
  protected inTurn(look: () => void, failed: (error: Error) => void): void {
    void looks.look(this.#owner, () => {
      if (this.destroyed) return;
      try {
        look();
      } catch (error) {
        failed(error as Error);
      }
    });
  }
}

/** A Pass as a stream. */
export class PassStream extends TakingTurns {
  readonly #pass: Pass;
  #timer: NodeJS.Timeout | null = null;

  constructor(pass: Pass, owner: object) {
    super(owner);
    this.#pass = pass;
  }

  get kept(): number { return this.readableLength + this.writableLength + this.#pass.kept; }

  protected override takePiece(chunk: Buffer, done: TransformCallback): void { this.#through(chunk, false, done); }

  protected override takeEnd(done: TransformCallback): void { this.#through(NOTHING, true, done); }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    done(error);
  }

  #through(chunk: Buffer, last: boolean, done: TransformCallback): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    // One piece in, one piece out: on the wire each may become a chunk or a frame.
    const pieces = this.#pass.push(chunk, last);
    if (pieces.length > 0) this.push(pieces.length === 1 ? pieces[0] : Buffer.concat(pieces));
    if (this.#pass.loose && !last) {
      this.#timer = setTimeout(() => {
        this.#timer = null;
        if (!this.destroyed && !this.writableFinished) for (const piece of this.#pass.letGo()) this.push(piece);
      }, CHANCE_MS);
    }
    done();
  }
}
