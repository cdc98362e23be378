/**
 * Long work of the main thread in slices, with the event loop let in between: an attach must not wait until a thousand sandboxes are counted.
 *
 * Holds always: several pieces of work that share one Slices take no longer together than one would.
 */

/** Milliseconds. */
const SLICE = 4;

export class Slices {
  #since = performance.now();

  /** To be called between two steps, each of less than a millisecond. After it, the world may be another. */
  async pause(): Promise<void> {
    while (performance.now() - this.#since >= SLICE) {
      const before = this.#since;
      await new Promise<void>((resolve) => setImmediate(resolve));
      // The first that goes on opens the next slice; the others find what it has left of it.
      if (this.#since === before) this.#since = performance.now();
    }
  }
}
