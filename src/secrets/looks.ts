/**
 * Whose octets are looked through next: sandboxes take turns with what takes long.
 *
 * Holds always: in one turn of the event loop a bounded time is spent, and the look that was under way when it was over; where that
 * is not over and nobody waits a look is had at once. Of those that wait the oldest of each sandbox is had before the second of any.
 * What one guest sends in the smallest pieces, or full of escapes, so costs others a few milliseconds at a time.
 * Does not: know what is looked for; drop a look, which must find out by itself that nobody needs it any more. One thread.
 */

/** Time of one turn of the event loop, ms. */
export const PER_TURN_MS = 4;

export class Looks {
  /** By sandbox, in the order of their turns. */
  readonly #waiting = new Map<object, (() => void)[]>();
  readonly #now: () => number;
  #spent = 0;
  #planned = false;

  /** @param now ms, only forward. */
  constructor(now: () => number = performance.now.bind(performance)) { this.#now = now; }

  /** @param owner the sandbox. @returns what the look gives: at once, or when its turn has come. */
  look<T>(owner: object, look: () => T): T | Promise<Awaited<T>> {
    if (this.#spent < PER_TURN_MS && this.#waiting.size === 0) return this.#timed(look);
    return new Promise((resolve, reject) => {
      const waiting = this.#waiting.get(owner) ?? [];
      waiting.push(() => {
        try {
          resolve(look() as Awaited<T>);
        } catch (error) {
          reject(error as Error);
        }
      });
      this.#waiting.set(owner, waiting);
      this.#plan();
    });
  }

  #timed<T>(look: () => T): T {
    const begun = this.#now();
    try {
      return look();
    } finally {
      this.#spent += this.#now() - begun;
      this.#plan();
    }
  }

  #plan(): void {
    if (this.#planned) return;
    this.#planned = true;
    setImmediate(() => {
      this.#planned = false;
      this.#spent = 0;
      for (const [owner, waiting] of this.#waiting) {
        if (this.#spent >= PER_TURN_MS) break;
        this.#waiting.delete(owner);
        const next = waiting.shift() as () => void;
        // Behind the others, which this loop comes to first.
        if (waiting.length > 0) this.#waiting.set(owner, waiting);
        this.#timed(next);
      }
      if (this.#waiting.size > 0) this.#plan();
    });
  }
}

/** Of the thread. */
export const looks = new Looks();
