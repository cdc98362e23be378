/**
 * WebSocket frames on their way (RFC 6455 section 5): payloads are looked through, octets go on as they are.
 *
 * Holds always: a match is found over frames, fragments and masks; the piece that completes one never goes on, nor does one that
 * ends in what is probably its beginning, before it is known not to be. Compression was not agreed to (the offer is taken out of
 * the handshake); a frame that claims it ends the stream.
 */
import type { TransformCallback } from "node:stream";
import { type Pass, TakingTurns } from "./stream.js";

/** Beginnings up to this length go on. */
const CHANCE = 3;

export class FrameStream extends TakingTurns {
  readonly #data: Pass;
  readonly #control: () => Pass;
  #head: Buffer = Buffer.alloc(0);
  /** Payload octets of the present frame that are still to come. */
  #left = 0n;
  #mask: Buffer | null = null;
  #maskAt = 0;
  #isControl: Pass | null = null;
  readonly #held: Buffer[] = [];
  /** Payload of the present message that is not looked through yet. */
  #pieces: Buffer[] = [];

  /** @param data for messages, which may be split over frames. @param control makes one for a control frame's payload. @param owner the sandbox. */
  constructor(data: Pass, control: () => Pass, owner: object) {
    super(owner);
    this.#data = data;
    this.#control = control;
  }

  protected override takePiece(chunk: Buffer, done: TransformCallback): void {
    this.#read(chunk);
    this.#lookAtPieces();
    this.#held.push(chunk);
    if (this.#data.matched <= CHANCE && (this.#isControl?.matched ?? 0) <= CHANCE) for (const held of this.#held.splice(0)) this.push(held);
    done();
  }

  protected override takeEnd(done: TransformCallback): void {
    for (const held of this.#held.splice(0)) this.push(held);
    done();
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
    // A new message is not the continuation of the one before.
    if (opcode === 1 || opcode === 2) {
      this.#lookAtPieces();
      this.#data.reset();
    }
    this.#isControl = opcode >= 8 ? this.#control() : null;
  }

  #look(piece: Buffer): void {
    const plain = Buffer.from(piece);
    const mask = this.#mask;
    if (mask !== null) for (let i = 0; i < plain.length; i++) plain[i] = (plain[i] as number) ^ (mask[this.#maskAt++ & 3] as number);
    if (this.#isControl !== null) this.#isControl.push(plain, false);
    else this.#pieces.push(plain);
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
