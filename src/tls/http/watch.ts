/**
 * Time limits of all intercepted connections, held by one timer: Node's own run on listening servers only.
 *
 * Holds always: a connection is looked at about once a second from its beginning to its close, so a limit is kept to within
 * that; the timer runs only while there are connections, and keeps no process alive.
 */

/** How often a connection is looked at, ms. */
const EVERY_MS = 1_000;

export interface Watched {
  /** @param now performance.now() */
  look(now: number): void;
}

export class Watch {
  readonly #watched = new Set<Watched>();
  #timer: NodeJS.Timeout | null = null;

  constructor(private readonly everyMs = EVERY_MS) {}

  add(watched: Watched): void {
    this.#watched.add(watched);
    if (this.#timer === null) {
      this.#timer = setInterval(() => {
        const now = performance.now();
        for (const one of this.#watched) one.look(now);
      }, this.everyMs);
      this.#timer.unref();
    }
  }

  delete(watched: Watched): void {
    this.#watched.delete(watched);
    if (this.#watched.size === 0 && this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
  }

  get size(): number { return this.#watched.size; }
}
