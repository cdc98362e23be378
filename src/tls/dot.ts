/**
 * DNS over TLS for a guest (RFC 7858): frames inside a decrypted connection.
 *
 * Holds always: each message goes to the resolver as one over TCP on port 53 would; answers come in the order in which they are
 * ready; a frame that dribbles, an idle connection and too many open questions are bounded. While the guest does not take its answers
 * no further question of it is asked, nor while its sandbox has asked all that it may. Does not: know what a question is.
 */
import type { TLSSocket } from "node:tls";
import type { TokenBucket } from "../dns/limits.js";

const IDLE_MS = 10_000, FRAME_MS = 10_000, OPEN_QUESTIONS = 64;
/** A connection that waits because of the sandbox's rate looks again after this at the earliest, ms: a sandbox may have many. */
const PACE_MS = 100;

/** @param bucket a question takes one; where there is none, it waits. @returns how many octets are under way: questions not asked yet, and answers that the guest has not taken. */
export function serveDot(stream: TLSSocket, bucket: () => TokenBucket, answer: (message: Uint8Array) => Promise<Uint8Array | null>): () => number {
  let buffered: Buffer = Buffer.alloc(0);
  let open = 0;
  let frame: NodeJS.Timeout | null = null;
  let pace: NodeJS.Timeout | null = null;
  const full = (): boolean => pace !== null || open >= OPEN_QUESTIONS || stream.writableNeedDrain;
  const clock = (runs: boolean): void => {
    if (runs) frame ??= setTimeout(() => stream.destroy(), FRAME_MS);
    else if (frame !== null) {
      clearTimeout(frame);
      frame = null;
    }
  };
  const work = (): void => {
    while (!full() && buffered.length >= 2) {
      const length = buffered.readUInt16BE(0);
      if (length < 12) {
        stream.destroy();
        return;
      }
      if (buffered.length < 2 + length) break;
      if (!bucket().take(performance.now())) {
        pace = setTimeout(() => {
          pace = null;
          work();
        }, Math.max(PACE_MS, bucket().wait(performance.now())));
        break;
      }
      const message = Uint8Array.from(buffered.subarray(2, 2 + length));
      buffered = buffered.subarray(2 + length);
      clock(false);
      open++;
      void answer(message).then((reply) => {
        open--;
        if (stream.destroyed) return;
        if (reply !== null) {
          const head = Buffer.alloc(2);
          head.writeUInt16BE(reply.length);
          stream.write(Buffer.concat([head, reply]));
        }
        work();
      });
    }
    const waits = full();
    if (waits) stream.pause();
    else stream.resume();
    // What is left is the beginning of a frame, unless it waits.
    clock(buffered.length > 0 && !waits);
    if (ended && open === 0 && !waits) stream.end();
  };
  let ended = false;
  stream.setTimeout(IDLE_MS, () => stream.destroy());
  stream.on("error", () => stream.destroy());
  stream.on("drain", work);
  stream.on("close", () => { for (const timer of [frame, pace]) if (timer !== null) clearTimeout(timer); });
  stream.on("data", (chunk: Buffer) => {
    buffered = buffered.length === 0 ? chunk : Buffer.concat([buffered, chunk]);
    work();
  });
  stream.on("end", () => {
    ended = true;
    work();
  });
  return () => buffered.length + stream.readableLength + stream.writableLength;
}
