/**
 * Whose handshake begins next: sandboxes take turns, whatever number of connections each of them has waiting.
 *
 * Holds always: the oldest waiting one of each sandbox begins before the second of any; of one sandbox a bounded number is
 * under way; a few begin in one turn of the event loop, so that what is under way is read in between. Where nobody waits a
 * handshake begins at once. Does not: know time; what waits too long leaves by itself.
 */

/** Handshakes of one sandbox under way at one time. */
export const UNDER_WAY = 128;
/** Handshakes that begin in one turn of the event loop: each costs a millisecond or so. */
const PER_TURN = 4;

interface Line {
  readonly waiting: Set<() => Promise<void>>;
  underWay: number;
}

export class Turns<K> {
  /** Those that have something waiting or under way, in the order of their turns. */
  readonly #lines = new Map<K, Line>();
  readonly #underWay: number;
  #begun = 0;
  #planned = false;

  constructor(underWay = UNDER_WAY) { this.#underWay = underWay; }

  /**
   * @param begin called once, in its turn; over when what it returns is settled.
   * @returns takes it out of the line; does nothing once it has begun.
   */
  enter(key: K, begin: () => Promise<void>): () => void {
    let line = this.#lines.get(key);
    if (line === undefined) this.#lines.set(key, (line = { waiting: new Set(), underWay: 0 }));
    const once = (): Promise<void> => begin();
    line.waiting.add(once);
    this.#go();
    return () => {
      line.waiting.delete(once);
      this.#tidy(key, line);
    };
  }

  /** Of one sandbox. */
  of(key: K): { readonly waiting: number; readonly underWay: number } {
    const line = this.#lines.get(key);
    return line === undefined ? { waiting: 0, underWay: 0 } : { waiting: line.waiting.size, underWay: line.underWay };
  }

  #go(): void {
    for (let found = true; found && this.#begun < PER_TURN;) {
      found = false;
      for (const [key, line] of [...this.#lines]) {
        const [next] = line.waiting;
        if (next === undefined || line.underWay >= this.#underWay) continue;
        found = true;
        // Behind the others, whoever they are.
        this.#lines.delete(key);
        this.#lines.set(key, line);
        this.#begin(key, line, next);
        if (this.#begun >= PER_TURN) break;
      }
    }
    this.#plan();
  }

  #begin(key: K, line: Line, next: () => Promise<void>): void {
    line.waiting.delete(next);
    line.underWay++;
    this.#begun++;
    const over = (): void => {
      line.underWay--;
      this.#tidy(key, line);
      this.#go();
    };
    next().then(over, over);
  }

  #plan(): void {
    if (this.#planned || this.#begun === 0) return;
    this.#planned = true;
    setImmediate(() => {
      this.#planned = false;
      this.#begun = 0;
      this.#go();
    });
  }

  #tidy(key: K, line: Line): void {
    if (line.waiting.size === 0 && line.underWay === 0 && this.#lines.get(key) === line) this.#lines.delete(key);
  }
}
