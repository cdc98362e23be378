/**
 * How many far sides of one sandbox may be about to be verified. Verifying is done in one go, on the thread of all sandboxes, and a
 * far side says what it costs: by certificates with keys of slow kinds some forty milliseconds instead of one, and it can hold them
 * back until many connections have them to read at once.
 *
 * Holds always: a bounded number has a place; the place of one that was verified is free at once, that of one that was not, for
 * whatever reason, only in its turn, so many a second; who waits has the next place in the order of coming.
 * Does not verify anything, and knows no names.
 */

/** Far sides of one sandbox that shake hands at one time. */
export const FAR_SIDES = 32;
/** Places of those that failed come back one by one, ms apart. */
const RETURN_MS = 125;

/** @param verified whether the far side was. To be called once. */
export type Leave = (verified: boolean) => void;

export class FarSides {
  readonly #waiting = new Set<() => void>();
  #free: number;
  /** When the last failed one's place comes back, ms of the monotonic clock. */
  #last = -Infinity;

  constructor(readonly places = FAR_SIDES, private readonly returnMs = RETURN_MS) { this.#free = places; }

  /** Of those, what is taken: by far sides that shake hands, and by such as have failed. */
  get taken(): number { return this.places - this.#free; }
  get waiting(): number { return this.#waiting.size; }

  /** Waits for a place. @param limitMs null is what comes of waiting for longer. */
  enter(limitMs: number): Promise<Leave | null> {
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve(this.#leave());
    }
    return new Promise((resolve) => {
      const begin = (): void => {
        clearTimeout(timer);
        resolve(this.#leave());
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(begin);
        resolve(null);
      }, limitMs);
      this.#waiting.add(begin);
    });
  }

  #leave(): Leave {
    let left = false;
    return (verified) => {
      if (left) return;
      left = true;
      if (verified) {
        this.#giveBack();
        return;
      }
      const now = performance.now();
      this.#last = Math.max(now, this.#last + this.returnMs);
      setTimeout(() => this.#giveBack(), this.#last - now).unref();
    };
  }

  #giveBack(): void {
    const [next] = this.#waiting;
    if (next === undefined) {
      this.#free++;
      return;
    }
    this.#waiting.delete(next);
    next();
  }
}
