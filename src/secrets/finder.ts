/**
 * Finding placeholders and values in octets, in every form in which they are likely to be written.
 *
 * Forms: as they are; percent escapes, once or twice; JSON escapes, also inside percent escapes and the other way round; base64 and
 * base64url at any of the three alignments, inside longer base64 too, and with escapes over it; values also as JSON and the usual
 * HTML templates write their special characters, and as forms write blanks.
 *
 * Holds always: cost of octets without escapes is a few native searches; only the neighbourhood of an escape is decoded. What
 * must be kept of what went before is bounded (`reach` of pending). Values under eight octets are not looked for: they would be found by
 * chance. Pure.
 * Does not find: other encodings (hexadecimal, compression, encryption, base64 broken into lines, one octet at a time).
 */
import { escapes, identity, jsonDecoded, type Mapped, percentDecoded, percentPlain } from "./escapes.js";
import { Scanner } from "./scanner.js";
import type { Form } from "./types.js";

/** Shortest value that is looked for, octets. */
export const FOUND_FROM = 8;
/** Source octets for one octet: `%25%36%37`. */
const STRETCH = 9;
/** The same at most: the six of a JSON escape, each written so. */
const STRETCH_MAX = 6 * STRETCH;
const PERCENT = 0x25, BACKSLASH = 0x5c;
/** The short escapes alone are written out in the needles. */
const JSON_ESCAPE = Buffer.from("\\u");

export interface Wanted {
  readonly secret: string;
  readonly what: "placeholder" | "value";
  readonly octets: Buffer;
}

export interface Hit {
  /** In the octets that were searched. */
  readonly start: number;
  readonly end: number;
  readonly wanted: Wanted;
  readonly form: Form;
}

interface Needle { readonly octets: Buffer; readonly wanted: Wanted; readonly form: Form }
type Found = { start: number; end: number; needle: Needle };

export class Finder {
  /** Octets around an escape within which all is that belongs to a match with it. */
  readonly #reach: number;
  readonly #longest: number;
  /** Needles by their first octet. */
  readonly #byFirst: Buffer[][] = [];
  readonly #marked: readonly Needle[];
  readonly #plain: readonly Needle[];
  /** For the values' needles, and behind them the markers: one of these stands wherever a placeholder does. */
  readonly #scanner: Scanner;

  /** @param marker in every placeholder; null: there are none. */
  constructor(wanted: readonly Wanted[], marker: string | null) {
    const needles = wanted.filter(({ what, octets }) => what === "placeholder" || octets.length >= FOUND_FROM).flatMap(needlesOf);
    this.#marked = needles.filter((needle) => needle.wanted.what === "placeholder");
    this.#plain = needles.filter((needle) => needle.wanted.what === "value");
    const markers = marker === null || this.#marked.length === 0 ? [] : [Buffer.from(marker, "latin1"), ...[0, 1, 2].map((shift) => base64Of(Buffer.from(marker, "latin1"), shift))];
    this.#scanner = new Scanner([...this.#plain.map(({ octets }) => octets), ...markers]);
    this.#longest = needles.reduce((longest, { octets }) => Math.max(longest, octets.length), 0);
    this.#reach = STRETCH * this.#longest;
    for (const { octets } of needles) (this.#byFirst[octets[0] as number] ??= []).push(octets);
  }

  get empty(): boolean { return this.#marked.length === 0 && this.#plain.length === 0; }

  /** Every match, none in another, by place. */
  find(octets: Buffer): Hit[] {
    if (this.empty || octets.length === 0) return [];
    const found: Found[] = [];
    this.#search(octets, (start, end, needle) => found.push({ start, end, needle }));
    this.#searchEscaped(octets, found);
    if (found.length === 0) return [];
    // The first, and of those that begin together the longest.
    found.sort((a, b) => a.start - b.start || b.end - a.end);
    const hits: Hit[] = [];
    for (const { start, end, needle } of found) {
      if (start >= (hits.at(-1)?.end ?? 0)) hits.push({ start, end, wanted: needle.wanted, form: needle.form });
    }
    return hits;
  }

  /**
   * How many of the last octets may be the beginning of a match that is not there yet; how many decoded octets of it those
   * are: few may be chance; and how many of the past a match may begin in (`reach`).
   */
  pending(octets: Buffer): { readonly octets: number; readonly matched: number; readonly reach: number } {
    // Where escapes stand close together, what they say is less than the longest that is wanted: further back, then.
    for (let reach = this.#reach; ; reach *= 2) {
      const tail = octets.subarray(Math.max(0, octets.length - reach)), base = octets.length - tail.length;
      const written = escapes(tail, 0).length > 0 ? views(identity(tail, base)) : [];
      // What is cut at the front of the tail may say more there than it does.
      const enough = this.#longest + STRETCH_MAX;
      if (base === 0 || reach >= STRETCH_MAX * this.#longest || written.every(([, view]) => view.octets.length >= enough)) return { ...this.#pendingIn(octets, tail, written), reach };
    }
  }

  #pendingIn(octets: Buffer, tail: Buffer, written: readonly [Form, Mapped][]): { readonly octets: number; readonly matched: number } {
    let matched = this.#overlap(tail), begins = octets.length - matched;
    for (const [, view] of written) {
      const overlap = this.#overlap(view.octets);
      const begin = overlap > 0 ? (view.from[view.octets.length - overlap] as number) : (view.unfinished ?? octets.length);
      const count = overlap + (view.unfinished === null ? 0 : 1);
      if (count > 0 && begin < begins) begins = begin;
      matched = Math.max(matched, count);
    }
    return { octets: octets.length - begins, matched };
  }

  #search(octets: Buffer, found: (start: number, end: number, needle: Needle) => void): void {
    let marked = false;
    this.#scanner.scan(octets, (start, index) => {
      const needle = this.#plain[index];
      if (needle === undefined) marked = true;
      else found(start, start + needle.octets.length, needle);
      return false;
    });
    if (marked) each(this.#marked, octets, found);
  }

  #searchEscaped(octets: Buffer, found: Found[]): void {
    const at = escapes(octets, 0);
    for (let i = 0; i < at.length;) {
      const start = Math.max(0, (at[i] as number) - this.#reach);
      let end = (at[i] as number) + this.#reach;
      while (++i < at.length && (at[i] as number) - this.#reach <= end) end = (at[i] as number) + this.#reach;
      const around = octets.subarray(start, end);
      if (!this.#suspicious(around)) continue;
      for (const [written, view] of views(identity(around, start))) {
        this.#search(view.octets, (first, last, needle) => {
          const form = needle.form === "raw" ? written : needle.form;
          found.push({ start: view.from[first] as number, end: view.to[last - 1] as number, needle: { ...needle, form } });
        });
      }
    }
  }

  /** Whether a view of the octets, other than themselves, may hold something: a look that tells no places. */
  #suspicious(octets: Buffer): boolean {
    if (octets.includes(JSON_ESCAPE)) {
      const json = jsonDecoded(identity(octets, 0)).octets;
      if (this.#scanner.any(json) || (json.includes(PERCENT) && this.#scanner.any(percentPlain(json)))) return true;
    }
    if (!octets.includes(PERCENT)) return false;
    const once = percentPlain(octets), twice = once.includes(PERCENT) ? percentPlain(once) : once;
    return this.#scanner.any(once) || (twice !== once && this.#scanner.any(twice))
      || [once, twice].some((view) => view.includes(JSON_ESCAPE) && this.#scanner.any(jsonDecoded(identity(view, 0)).octets));
  }

  /** The longest end of the octets that is the beginning of something wanted and not all of it. */
  #overlap(octets: Buffer): number {
    const { length } = octets;
    for (let i = Math.max(0, length - this.#longest + 1); i < length; i++) {
      for (const needle of this.#byFirst[octets[i] as number] ?? []) {
        if (needle.length > length - i && octets.compare(needle, 0, length - i, i, length) === 0) return length - i;
      }
    }
    return 0;
  }
}

/** What the octets say with escapes undone; of each way of writing only where there are such escapes. */
function views(source: Mapped): [Form, Mapped][] {
  const all: [Form, Mapped][] = [];
  if (source.octets.includes(PERCENT)) {
    const once = percentDecoded(source);
    all.push(["percent", once]);
    const twice = once.octets.includes(PERCENT) ? percentDecoded(once) : null;
    if (twice !== null) all.push(["percent", twice]);
    for (const view of [once, twice]) if (view?.octets.includes(BACKSLASH) === true) all.push(["json", jsonDecoded(view)]);
  }
  if (source.octets.includes(BACKSLASH)) {
    const json = jsonDecoded(source);
    all.push(["json", json]);
    if (json.octets.includes(PERCENT)) all.push(["json", percentDecoded(json)]);
  }
  return all;
}

function each(needles: readonly Needle[], octets: Buffer, found: (start: number, end: number, needle: Needle) => void): void {
  for (const needle of needles) {
    for (let i = octets.indexOf(needle.octets); i >= 0; i = octets.indexOf(needle.octets, i + 1)) found(i, i + needle.octets.length, needle);
  }
}

function needlesOf(wanted: Wanted): Needle[] {
  const { octets, what } = wanted;
  const needles: Needle[] = [{ octets, wanted, form: "raw" }];
  const add = (form: Form, written: Buffer): void => {
    if (!needles.some((known) => known.octets.equals(written))) needles.push({ octets: written, wanted, form });
  };
  for (const shift of [0, 1, 2]) {
    const standard = base64Of(octets, shift);
    add("base64", standard);
    add("base64", Buffer.from(standard.toString("latin1").replaceAll("+", "-").replaceAll("/", "_"), "latin1"));
  }
  if (what === "value") {
    const text = octets.toString("latin1");
    for (const written of [text.replace(/["\\]/g, "\\$&"), text.replace(/["\\/]/g, "\\$&")]) add("json", Buffer.from(written, "latin1"));
    for (const map of htmlEscapes) add("raw", Buffer.from([...text].map((char) => map[char] ?? htmlBasic[char] ?? char).join(""), "latin1"));
    // A form's blank: its other escapes are undone where they stand.
    add("percent", Buffer.from(text.replaceAll(" ", "+"), "latin1"));
  }
  return needles;
}

const htmlBasic: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
/** As templates and libraries write them: the least; PHP; Ruby and Mustache's kin; Java; Python; Go; Handlebars; mustache.js. */
const htmlEscapes: readonly Readonly<Record<string, string>>[] = [
  {}, { '"': "&quot;" }, { '"': "&quot;", "'": "&#39;" }, { '"': "&#34;", "'": "&#39;" }, { '"': "&quot;", "'": "&#x27;" }, { '"': "&#34;", "'": "&#39;", "+": "&#43;" },
  { '"': "&quot;", "'": "&#x27;", "`": "&#x60;", "=": "&#x3D;" }, { '"': "&quot;", "'": "&#39;", "/": "&#x2F;", "`": "&#x60;", "=": "&#x3D;" },
];

/** The base64 digits that the octets alone decide when `shift` octets of something else (0 to 2) stand before them in their group. */
function base64Of(octets: Buffer, shift: number): Buffer {
  const digits = Buffer.concat([Buffer.alloc(shift), octets]).toString("base64").replace(/=+$/, "");
  const first = shift === 0 ? 0 : shift + 1;
  // The last digit of an unfinished group is shared with what follows.
  const whole = (octets.length + shift) % 3 === 0 ? digits.length : digits.length - 1;
  return Buffer.from(digits.slice(first, whole), "latin1");
}
