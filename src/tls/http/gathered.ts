/** A body that is looked through whole before anything of it goes on. */
import type { Duplex, Readable } from "node:stream";
import type { Refusal } from "./refusal.js";

/**
 * All that a body becomes on its way through a stream, or why it is refused.
 * @param refusalOf what the stream's error means; null: it is none of ours.
 * Rejects when the body breaks off, and with an error that means nothing.
 */
export function gathered(source: Readable, through: Duplex, refusalOf: (error: unknown) => Refusal | null): Promise<Buffer | Refusal> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    through.on("data", (piece: Buffer) => pieces.push(piece));
    through.once("end", () => resolve(Buffer.concat(pieces)));
    through.once("error", (error) => {
      source.unpipe(through);
      source.resume();
      const refusal = refusalOf(error);
      if (refusal === null) reject(error);
      else resolve(refusal);
    });
    const gone = (): void => {
      through.destroy();
      reject(new Error("the request broke off"));
    };
    source.once("aborted", gone);
    source.once("error", gone);
    source.once("close", () => { if (!source.readableEnded) gone(); });
    source.pipe(through);
  });
}
