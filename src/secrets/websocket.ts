/**
 * WebSocket frames on their way (RFC 6455 section 5): payloads are looked through, octets go on as they are.
 *
 * Holds always: a match is found over frames, fragments and masks; the piece that completes one never goes on, nor does one that
 * ends in what is probably its beginning, before it is known not to be; of pieces that went before that beginning none is held, and
 * no more than a bound of those behind it. Compression was not agreed to (the offer is taken out of
 * the handshake); a frame that claims it ends the stream.
 */
import type { TransformCallback } from "node:stream";
import { type Pass, TakingTurns } from "./stream.js";

/** Beginnings up to this length go on. */
const CHANCE = 3;
/** Payload of a control frame (RFC 6455 section 5.5), octets. */
const CONTROL_MAX = 125;
/** Octets that are held behind the beginning of a match, beside the piece that it is in: other frames may stand between its parts. */
const HELD_MAX = 1024 * 1024;

export class FrameStream extends TakingTurns {
  readonly #data: Pass;
  readonly #control: () => Pass;
  #head: Buffer = Buffer.alloc(0);
  /** Payload octets of the present frame that are still to come. */
  #left = 0n;
  #mask: Buffer | null = null;
  #maskAt = 0;
  #isControl: Pass | null = null;
  /** The present frame is the last of its message. */
  #final = false;
  #held: { readonly octets: Buffer; /** of messages. */ readonly payload: number }[] = [];
  #heldOctets = 0;
  /** Octets of messages so far. */
  #payload = 0;
  /** Payload of the present message that is not looked through yet. */
  #pieces: Buffer[] = [];

  /** @param data for messages, which may be split over frames. @param control makes one for a control frame's payload. @param owner the sandbox. */
  constructor(data: Pass, control: () => Pass, owner: object) {
    super(owner);
    this.#data = data;
    this.#control = control;
  }

  /** Octets that are kept. */
  get kept(): number { return this.readableLength + this.writableLength + this.#heldOctets; }

  protected override takePiece(chunk: Buffer, done: TransformCallback): void {
    const before = this.#payload;
    this.#read(chunk);
    this.#lookAtPieces();
    this.#held.push({ octets: chunk, payload: this.#payload - before });
    this.#heldOctets += chunk.length;
    // A control frame ends soon, and its octets with it.
    let from = (this.#isControl?.matched ?? 0) > CHANCE ? 0 : this.#held.length;
    if (this.#data.matched > CHANCE) for (let left = this.#data.pending; left > 0 && from > 0; from--) left -= (this.#held[from - 1] as { payload: number }).payload;
    this.#release(from);
    if (this.#heldOctets - chunk.length > HELD_MAX) throw new Error("a WebSocket message with pauses of too many octets in what may be a secret");
    done();
  }

  protected override takeEnd(done: TransformCallback): void {
    this.#release(this.#held.length);
    done();
  }

  /** The pieces before a place go on. */
  #release(until: number): void {
    for (const { octets } of this.#held.splice(0, until)) {
      this.#heldOctets -= octets.length;
      this.push(octets);
    }
  }

  #read(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#left === 0n) {
        // At most 14 octets of head are gathered here.
        const joined = Buffer.concat([this.#head, chunk.subarray(at, at + 14)]);
        const length = headLength(joined);
        if (length === null) {
          this.#head = joined;
          return;
        }
        at += length - this.#head.length;
        this.#head = Buffer.alloc(0);
        this.#begin(joined, length);
        continue;
      }
      const piece = chunk.subarray(at, at + Number(this.#left > BigInt(chunk.length) ? BigInt(chunk.length) : this.#left));
      at += piece.length;
      this.#left -= BigInt(piece.length);
      this.#look(piece);
      if (this.#left === 0n) this.#ended();
    }
  }

  #begin(head: Buffer, length: number): void {
    const first = head[0] as number, second = head[1] as number;
    if ((first & 0x70) !== 0) throw new Error("a WebSocket frame with an extension that was not agreed to");
    const short = second & 0x7f;
    this.#left = short < 126 ? BigInt(short) : short === 126 ? BigInt(head.readUInt16BE(2)) : head.readBigUInt64BE(2);
    this.#mask = (second & 0x80) === 0 ? null : Buffer.from(head.subarray(length - 4, length));
    this.#maskAt = 0;
    const opcode = first & 15;
    if (opcode >= 8 && this.#left > CONTROL_MAX) throw new Error("a WebSocket control frame of more than 125 octets");
    // A new message is not the continuation of the one before.
    if (opcode === 1 || opcode === 2) {
      this.#lookAtPieces();
      this.#data.reset();
    }
    this.#isControl = opcode >= 8 ? this.#control() : null;
    this.#final = opcode < 8 && (first & 0x80) !== 0;
    if (this.#left === 0n) this.#ended();
  }

  /** A frame is whole. What a control frame or a message ends in is the beginning of nothing. */
  #ended(): void {
    this.#isControl = null;
    if (!this.#final) return;
    this.#lookAtPieces();
    this.#data.reset();
  }

  #look(piece: Buffer): void {
    const plain = Buffer.from(piece);
    const mask = this.#mask;
    if (mask !== null) for (let i = 0; i < plain.length; i++) plain[i] = (plain[i] as number) ^ (mask[this.#maskAt++ & 3] as number);
    if (this.#isControl !== null) this.#isControl.push(plain, false);
    else {
      this.#pieces.push(plain);
      this.#payload += plain.length;
    }
  }

  #lookAtPieces(): void {
    if (this.#pieces.length === 0) return;
    this.#data.push(Buffer.concat(this.#pieces), false);
    this.#pieces = [];
  }
}

/** Octets of a frame's head; null: it is not all there. */
function headLength(octets: Buffer): number | null {
  if (octets.length < 2) return null;
  const second = octets[1] as number, short = second & 0x7f;
  const length = 2 + (short === 126 ? 2 : short === 127 ? 8 : 0) + ((second & 0x80) === 0 ? 0 : 4);
  return octets.length < length ? null : length;
}
