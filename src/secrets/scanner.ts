/**
 * Searching for many short texts in one pass (Wu and Manber, 1994): most octets are stepped over, however many texts there are.
 *
 * Holds always: every place where a text stands is told, ascending. Texts have two octets at least. Pure.
 */

export class Scanner {
  readonly #texts: readonly Buffer[];
  /** Of the texts, that many first octets are looked at. */
  readonly #window: number;
  /** By two octets: how far the window may move on when it ends in them. */
  readonly #shift: Uint8Array;
  /** By two octets: the texts whose window ends in them. */
  readonly #ending = new Map<number, number[]>();

  constructor(texts: readonly Buffer[]) {
    this.#texts = texts;
    this.#window = Math.min(255, ...texts.map(({ length }) => length));
    this.#shift = new Uint8Array(texts.length === 0 ? 0 : 65_536).fill(Math.max(0, this.#window - 1));
    texts.forEach((text, index) => {
      for (let end = 1; end < this.#window; end++) {
        const block = (text[end - 1] as number) << 8 | (text[end] as number), shift = this.#window - 1 - end;
        if (shift < (this.#shift[block] as number)) this.#shift[block] = shift;
        if (shift === 0) this.#ending.set(block, [...(this.#ending.get(block) ?? []), index]);
      }
    });
  }

  /** @param found told each place and the text's index; true ends the search. */
  scan(octets: Buffer, found: (start: number, index: number) => boolean): void {
    if (this.#texts.length === 0) return;
    const shifts = this.#shift, { length } = octets;
    for (let end = this.#window - 1; end < length;) {
      const block = (octets[end - 1] as number) << 8 | (octets[end] as number), shift = shifts[block] as number;
      if (shift > 0) {
        end += shift;
        continue;
      }
      const start = end - this.#window + 1;
      for (const index of this.#ending.get(block) as number[]) {
        const text = this.#texts[index] as Buffer;
        if (start + text.length <= length && octets.compare(text, 0, text.length, start, start + text.length) === 0 && found(start, index)) return;
      }
      end++;
    }
  }

  any(octets: Buffer): boolean {
    let any = false;
    this.scan(octets, () => (any = true));
    return any;
  }
}
