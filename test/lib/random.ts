/** Numbers as if at random, the same ones for the same seed (xorshift). */
export class Seeded {
  #state: number;
  readonly seed: number;

  /** @param variable of the environment that names another seed. */
  constructor(variable: string, fallback: number) {
    this.seed = Number(process.env[variable] ?? fallback);
    this.#state = this.seed | 1;
  }

  /** 0..bound-1. */
  below(bound: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % bound;
  }

  pick<T>(list: readonly T[]): T { return list[this.below(list.length)]!; }
}
