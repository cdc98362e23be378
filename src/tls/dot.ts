/**
 * DNS over TLS for a guest (RFC 7858): frames inside a decrypted connection.
 *
 * Holds always: each message goes to the resolver as one over TCP on port 53 would; answers come in the order in which they are
 * ready; a frame that dribbles, an idle connection and too many open questions are bounded. Does not: know what a question is.
 */
import type { TLSSocket } from "node:tls";

const IDLE_MS = 10_000, FRAME_MS = 10_000, OPEN_QUESTIONS = 64;

export function serveDot(stream: TLSSocket, answer: (message: Uint8Array) => Promise<Uint8Array | null>): void {
  let buffered: Buffer = Buffer.alloc(0);
  let open = 0;
  let frame: NodeJS.Timeout | null = null;
  const work = (): void => {
    while (open < OPEN_QUESTIONS && buffered.length >= 2) {
      const length = buffered.readUInt16BE(0);
      if (length < 12) {
        stream.destroy();
        return;
      }
      if (buffered.length < 2 + length) break;
      const message = Uint8Array.from(buffered.subarray(2, 2 + length));
      buffered = buffered.subarray(2 + length);
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
    if (open >= OPEN_QUESTIONS || stream.writableNeedDrain) stream.pause();
    else stream.resume();
    if (buffered.length === 0 && frame !== null) {
      clearTimeout(frame);
      frame = null;
    } else if (buffered.length > 0 && open < OPEN_QUESTIONS) {
      frame ??= setTimeout(() => stream.destroy(), FRAME_MS);
    }
    if (ended && open === 0) stream.end();
  };
  let ended = false;
  stream.setTimeout(IDLE_MS, () => stream.destroy());
  stream.on("error", () => stream.destroy());
  stream.on("drain", work);
  stream.on("close", () => { if (frame !== null) clearTimeout(frame); });
  stream.on("data", (chunk: Buffer) => {
    buffered = buffered.length === 0 ? chunk : Buffer.concat([buffered, chunk]);
    work();
  });
  stream.on("end", () => {
    ended = true;
    work();
  });
}
