/**
 * Passing octets on between guest and far side, both ways, unaltered.
 *
 * Holds always: each side is read only as fast as the other takes it; a side that ends its sending ends only that direction; an
 * error on either side resets both. Keeps no octets but those a SecondHello holds back. When that has seen enough, the
 * connection goes to the splicing thread (pump.ts), at the first moment at which there is one and nothing waits to be written.
 */
import type { Socket } from "node:net";
import { isPumped, type PumpHolder, type Pumped } from "./pump.js";
import type { SecondHello } from "./second-hello.js";

const NOTHING: Buffer = Buffer.alloc(0);

export interface Spliced {
  /** paused. */
  readonly guest: Socket;
  /** connected. */
  readonly upstream: Socket;
  /** What was read of the guest and looked at, and what was read of it besides. */
  readonly hello: Buffer;
  readonly after: Buffer;
  /** Looks at what passes after the hello, until it is done. */
  readonly watch: SecondHello;
  /** Called when the watch ends the connection. */
  readonly refused: () => void;
  /** Whose share of the thread it takes. */
  readonly owner: number;
  /** While it has none, all of the connection stays in JavaScript. */
  readonly pump: Pick<PumpHolder, "get" | "failed" | "worked">;
  /** Called when the thread has taken it over: neither socket tells anything from then on. */
  readonly pumped: (pumped: Pumped) => void;
  /** Called when the thread is done with it. */
  readonly over: () => void;
}

export function splice({ guest, upstream, hello, after, watch, refused, owner, pump, pumped, over }: Spliced): void {
  const reset = (): void => {
    guest.resetAndDestroy();
    upstream.resetAndDestroy();
  };
  let watching = true, mayPump = true;
  /** Octets of the guest and of the far side, in one go. */
  const pass = (up: Buffer, down: Buffer): void => {
    let rest = { up, down };
    const thread = mayPump && !watching ? pump.get() : null;
    if (thread !== null) {
      const taken = thread.take(owner, guest, upstream, up, down, over);
      if (isPumped(taken)) {
        pumped(taken);
        pump.worked();
        return;
      }
      mayPump = taken.again !== false;
      if (taken.again instanceof Error) pump.failed(taken.again);
      rest = taken;
    }
    if (rest.up.length > 0 && !upstream.write(rest.up)) guest.pause();
    if (rest.down.length > 0 && !guest.write(rest.down)) upstream.pause();
  };
  const fromGuest = (chunk: Buffer): void => {
    let up = chunk;
    if (watching) {
      const passed = watch.fromGuest(chunk);
      if (passed === "refuse") {
        refused();
        reset();
        return;
      }
      up = passed.pass;
      watching = !watch.done;
    }
    pass(up, NOTHING);
  };
  upstream.write(hello);
  if (after.length > 0) fromGuest(after);
  if (guest.destroyed) return;
  guest.on("data", fromGuest);
  upstream.on("data", (chunk: Buffer) => {
    let up = NOTHING;
    if (watching) {
      watch.fromServer(chunk);
      watching = !watch.done;
      // What it held back of the guest, not knowing what it was.
      const passed = watching ? null : watch.fromGuest(NOTHING);
      if (passed !== null && passed !== "refuse") up = passed.pass;
    }
    pass(up, chunk);
  });
  for (const [from, to] of [[guest, upstream], [upstream, guest]] as const) {
    to.on("drain", () => from.resume());
    from.on("end", () => to.end());
    from.on("error", reset);
    from.on("close", (failed) => { if (failed) to.resetAndDestroy(); else if (!to.writableEnded) to.end(); });
    from.resume();
  }
}
