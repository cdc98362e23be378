/**
 * Passing octets on between guest and far side, both ways, unaltered.
 *
 * Holds always: each side is read only as fast as the other takes it; a side that ends its sending ends only that direction; an
 * error on either side resets both. Keeps no octets but those a SecondHello holds back.
 */
import type { Socket } from "node:net";
import type { SecondHello } from "./second-hello.js";

/**
 * @param guest paused. @param upstream connected. @param hello what was read of the guest and looked at. @param after what was
 * read of it besides. @param watch looks at what passes after the hello, until it is done. @param refused called when it ends the
 * connection.
 */
export function splice(guest: Socket, upstream: Socket, hello: Buffer, after: Buffer, watch: SecondHello, refused: () => void): void {
  const reset = (): void => {
    guest.resetAndDestroy();
    upstream.resetAndDestroy();
  };
  let watching = true;
  const fromGuest = (chunk: Buffer): void => {
    let pass = chunk;
    if (watching) {
      const passed = watch.fromGuest(chunk);
      if (passed === "refuse") {
        refused();
        reset();
        return;
      }
      pass = passed.pass;
      watching = !watch.done;
    }
    if (pass.length > 0 && !upstream.write(pass)) guest.pause();
  };
  upstream.write(hello);
  if (after.length > 0) fromGuest(after);
  if (guest.destroyed) return;
  guest.on("data", fromGuest);
  upstream.on("data", (chunk: Buffer) => {
    if (watching) watch.fromServer(chunk);
    if (!guest.write(chunk)) upstream.pause();
  });
  for (const [from, to] of [[guest, upstream], [upstream, guest]] as const) {
    to.on("drain", () => from.resume());
    from.on("end", () => to.end());
    from.on("error", reset);
    from.on("close", (failed) => { if (failed) to.resetAndDestroy(); else if (!to.writableEnded) to.end(); });
    from.resume();
  }
}
