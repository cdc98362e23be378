/**
 * Passing octets on between guest and far side, both ways, unaltered.
 *
 * Holds always: each side is read only as fast as the other takes it; a side that ends its sending ends only that direction; an
 * error on either side resets both. Counts octets, keeps none.
 */
import type { Socket } from "node:net";
import type { SecondHello } from "./second-hello.js";

export interface SpliceCounters { bytesUp: number; bytesDown: number }

/**
 * @param guest paused, with what was read of it in `head`. @param upstream connected.
 * @param watch looks at what passes until it is done; null: nothing is looked at. @param refused called when it ends the connection.
 */
export function splice(guest: Socket, upstream: Socket, head: readonly Buffer[], counters: SpliceCounters, watch: SecondHello | null, refused: () => void): void {
  const reset = (): void => {
    guest.resetAndDestroy();
    upstream.resetAndDestroy();
  };
  for (const chunk of head) {
    counters.bytesUp += chunk.length;
    upstream.write(chunk);
  }
  for (const [from, to, key] of [[guest, upstream, "bytesUp"], [upstream, guest, "bytesDown"]] as const) {
    from.on("data", (chunk: Buffer) => {
      let pass = chunk;
      if (watch !== null && !watch.done) {
        if (from === guest) {
          const passed = watch.fromGuest(chunk);
          if (passed === "refuse") {
            refused();
            reset();
            return;
          }
          pass = passed.pass;
        } else {
          watch.fromServer(chunk);
        }
      } else if (watch !== null && from === guest) {
        pass = (watch.fromGuest(chunk) as { pass: Buffer }).pass; // what was still held goes first
      }
      if (pass.length === 0) return;
      counters[key] += pass.length;
      if (!to.write(pass)) from.pause();
    });
    to.on("drain", () => from.resume());
    from.on("end", () => to.end());
    from.on("error", reset);
    from.on("close", (failed) => { if (failed) to.resetAndDestroy(); else if (!to.writableEnded) to.end(); });
  }
  guest.resume();
  upstream.resume();
}
