/**
 * The block list: up to a million names, held as sorted 64-bit hashes, 8 octets a name.
 *
 * Holds always: an entry covers exactly what its form says (name, `*.name`, `suffix:name`). Two names with one hash would be
 * taken for one another; with a million entries the chance that any given name off the list is refused by mistake is about
 * 10^6 / 2^64, and a mistake can only refuse. The arrays are over shared memory, so passing a list to another thread copies
 * nothing.
 * Whatever a file is, reading it takes bounded time and memory. Does not fetch lists.
 */
import { readBounded } from "../bounded-file.js";
import { parseAddress } from "../addresses/address.js";
import type { Report } from "./diagnostics.js";
import { parsePattern } from "./names.js";
import type { NamePattern, Place } from "./types.js";

/** Most names one policy may block (its own and its files' together). */
export const BLOCK_NAMES = 1_000_000;
/** Largest block file, in octets. */
const FILE_OCTETS = 256 * 1024 * 1024;
/** Octets of all files of one policy, and words read in them, names that repeat among them: whoever is behind them waits. */
const ALL_OCTETS = 4 * FILE_OCTETS, WORDS = 10 * BLOCK_NAMES;
/** Errors told of one file; more are counted, until nobody can mean it for a list. */
const FILE_ERRORS = 10, FILE_ERRORS_COUNTED = 1_000;
/** Octets of a line, comments aside. */
const LINE_OCTETS = 65_536;

/** Hashes by kind of entry, each sorted ascending. */
export interface BlockList {
  readonly exact: BigUint64Array;
  readonly below: BigUint64Array;
  readonly suffix: BigUint64Array;
}

const littleEndian = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;
const LOW = littleEndian ? 0 : 1;
const HIGH = 1 - LOW;

/**
 * Running hash over a name from its last octet to its first, so that every suffix of a name is hashed on the way.
 * Two 32-bit lanes of multiply and xor-shift, finished as in MurmurHash3.
 */
class NameHash {
  #a = 0x9e3779b9 | 0;
  #b = 0x85ebca6b | 0;
  low = 0;
  high = 0;

  reset(): void {
    this.#a = 0x9e3779b9 | 0;
    this.#b = 0x85ebca6b | 0;
  }

  add(octet: number): void {
    const a = Math.imul(this.#a ^ octet, 0x9e3779b1);
    const b = Math.imul(this.#b ^ octet, 0x85ebca77);
    this.#a = a ^ (a >>> 15);
    this.#b = b ^ (b >>> 13);
  }

  /** Sets low and high to the hash of what was added so far. */
  finish(): void {
    let a = this.#a ^ Math.imul(this.#b, 0x27d4eb2f);
    let b = this.#b ^ Math.imul(this.#a, 0x165667b1);
    a = Math.imul(a ^ (a >>> 16), 0x85ebca6b);
    a = Math.imul(a ^ (a >>> 13), 0xc2b2ae35);
    b = Math.imul(b ^ (b >>> 16), 0xc2b2ae35);
    b = Math.imul(b ^ (b >>> 13), 0x85ebca6b);
    this.low = (a ^ (a >>> 16)) >>> 0;
    this.high = (b ^ (b >>> 16)) >>> 0;
  }

  /** Adds a label, right to left. */
  addLabel(label: string): void {
    for (let i = label.length - 1; i >= 0; i--) this.add(label.charCodeAt(i));
  }
}

const DOT = 46;
const HASH = 35;

function contains(sorted: Uint32Array, low: number, high: number): boolean {
  let from = 0;
  let to = sorted.length >> 1;
  while (from < to) {
    const middle = (from + to) >>> 1;
    const difference = (sorted[2 * middle + HIGH] as number) - high || (sorted[2 * middle + LOW] as number) - low;
    if (difference === 0) return true;
    if (difference < 0) from = middle + 1;
    else to = middle;
  }
  return false;
}

/** Answers whether a name is on a list; about a microsecond per label. */
export class BlockJudge {
  readonly #exact: Uint32Array;
  readonly #below: Uint32Array;
  readonly #suffix: Uint32Array;
  readonly #hash = new NameHash();

  constructor(list: BlockList) {
    const words = (array: BigUint64Array): Uint32Array => new Uint32Array(array.buffer, array.byteOffset, array.length * 2);
    this.#exact = words(list.exact);
    this.#below = words(list.below);
    this.#suffix = words(list.suffix);
  }

  /** @param labels lower case, root excluded. */
  blocks(labels: readonly string[]): boolean {
    if (this.#exact.length + this.#below.length + this.#suffix.length === 0) return false;
    const hash = this.#hash;
    hash.reset();
    for (let i = labels.length - 1; i >= 0; i--) {
      if (i < labels.length - 1) hash.add(DOT);
      hash.addLabel(labels[i] as string);
      hash.finish();
      if (contains(this.#suffix, hash.low, hash.high)) return true;
      if (contains(i === 0 ? this.#exact : this.#below, hash.low, hash.high)) return true;
    }
    return false;
  }
}

/** Growing array of hashes. */
class HashSetBuilder {
  #words = new Uint32Array(2048);
  #count = 0;

  get count(): number {
    return this.#count;
  }

  add(hash: NameHash): void {
    if (2 * this.#count === this.#words.length) {
      const larger = new Uint32Array(this.#words.length * 2);
      larger.set(this.#words);
      this.#words = larger;
    }
    this.#words[2 * this.#count + LOW] = hash.low;
    this.#words[2 * this.#count + HIGH] = hash.high;
    this.#count++;
  }

  /** Sorts and removes repetitions in place; what is left is counted. */
  settle(): void {
    const sorted = new BigUint64Array(this.#words.buffer, 0, this.#count).sort();
    const words = this.#words;
    let kept = 0;
    for (let i = 0; i < sorted.length; i++) {
      if (kept > 0 && words[2 * i] === words[2 * kept - 2] && words[2 * i + 1] === words[2 * kept - 1]) continue;
      words[2 * kept] = words[2 * i] as number;
      words[2 * kept + 1] = words[2 * i + 1] as number;
      kept++;
    }
    this.#count = kept;
  }

  finish(): BigUint64Array {
    const shared = new BigUint64Array(new SharedArrayBuffer(8 * this.#count));
    shared.set(new BigUint64Array(this.#words.buffer, 0, this.#count));
    return shared;
  }
}

/** Gathers a policy's block list. */
export class BlockListBuilder {
  readonly #kinds = { exact: new HashSetBuilder(), below: new HashSetBuilder(), suffix: new HashSetBuilder() };
  readonly #hash = new NameHash();
  readonly #report: Report;
  #roomAt = BLOCK_NAMES;
  #octets = 0;
  #words = 0;
  /** Nothing more is read. */
  #full = false;

  constructor(report: Report) {
    this.#report = report;
  }

  add(pattern: NamePattern, place: Place): void {
    this.#hash.reset();
    for (let i = pattern.labels.length - 1; i >= 0; i--) {
      if (i < pattern.labels.length - 1) this.#hash.add(DOT);
      this.#hash.addLabel(pattern.labels[i] as string);
    }
    this.#keep(this.#kinds[pattern.kind], place);
  }

  #keep(kind: HashSetBuilder, place: Place): void {
    if (this.#full || !this.#another(place)) return;
    this.#hash.finish();
    kind.add(this.#hash);
    const { exact, below, suffix } = this.#kinds;
    if (exact.count + below.count + suffix.count <= this.#roomAt) return;
    // Repetitions do not count: several lists name the same trackers.
    for (const each of [exact, below, suffix]) each.settle();
    const distinct = exact.count + below.count + suffix.count;
    // Settle again only after so many more entries that sorting stays a small part of the work.
    this.#roomAt = Math.max(BLOCK_NAMES, distinct + BLOCK_NAMES / 8);
    if (distinct > BLOCK_NAMES) this.#overflow(place);
  }

  /** Whether one more word may be read. */
  #another(place: Place): boolean {
    if (++this.#words <= WORDS) return true;
    this.#full = true;
    this.#report.error(place, `the block lists have more than ${WORDS.toLocaleString("en")} entries, names that repeat among them`, "leave lists out, or make one of them that names each once");
    return false;
  }

  #overflow(place: Place): void {
    this.#full = true;
    this.#report.error(place, `the block list holds more than ${BLOCK_NAMES.toLocaleString("en")} names`, "leave names out; `suffix:` entries stand for many");
  }

  /**
   * A file of names: one a line, `*.name` and `suffix:name` too, or lines of a hosts file (an address, then names; names of
   * one label there are the machine's own and left out). `#` begins a comment.
   */
  addFile(path: string, place: Place): void {
    if (this.#full) return;
    let text: Uint8Array;
    try {
      text = readBounded(path, FILE_OCTETS);
    } catch (error) {
      this.#report.error(place, `block list ${path} cannot be read: ${(error as Error).message}`, "name a readable file; a relative path starts at the policy file's directory");
      return;
    }
    this.#octets += text.length;
    if (this.#octets > ALL_OCTETS) {
      if (!this.#full) this.#report.error(place, `block lists have more than ${ALL_OCTETS / 1024 / 1024} MiB together`, "leave some out");
      this.#full = true;
    }
    this.addText(text, path);
  }

  /** The same from its octets; `file` is for messages. */
  addText(text: Uint8Array, file: string): void {
    let errors = 0;
    const failed = (line: number, message: string, remedy: string): void => {
      errors++;
      if (errors <= FILE_ERRORS) this.#report.error({ file, line, rule: null }, message, remedy);
    };
    const latin = new TextDecoder("latin1");
    const utf8 = new TextDecoder("utf-8", { fatal: true });
    let line = 0;
    for (let start = text.length >= 3 && text[0] === 0xef && text[1] === 0xbb && text[2] === 0xbf ? 3 : 0; start < text.length && !this.#full && errors < FILE_ERRORS_COUNTED;) {
      let end = text.indexOf(10, start);
      if (end < 0) end = text.length;
      line++;
      const empty = end === start || text[start] === HASH || (end === start + 1 && text[start] === 13);
      if (!empty && end - start > LINE_OCTETS) failed(line, `the line has more than ${LINE_OCTETS.toLocaleString("en")} octets`, "name a list: one name a line, or a hosts file");
      else if (!empty && !this.#addPlain(text, afterNullAddress(text, start, end), end, file, line)) {
        const octets = text.subarray(start, end);
        let content = "";
        try {
          content = octets.every((octet) => octet < 128) ? latin.decode(octets) : utf8.decode(octets);
        } catch {
          failed(line, "the line is not UTF-8", "save the list as UTF-8");
        }
        this.#addLine(content, file, line, failed);
      }
      start = end + 1;
    }
    if (errors >= FILE_ERRORS_COUNTED) this.#report.error({ file, line, rule: null }, `it is not read further: ${FILE_ERRORS_COUNTED.toLocaleString("en")} lines are not understood`, "name a list: one name a line, or a hosts file");
    else if (errors > FILE_ERRORS) this.#report.error({ file, line: null, rule: null }, `${errors - FILE_ERRORS} more lines are not understood`, "mend these first; the format is one name a line, or a hosts file");
  }

  /** The common case without making strings: one name of several labels in plain lower-case letters. */
  #addPlain(text: Uint8Array, start: number, end: number, file: string, line: number): boolean {
    let stop = end;
    if (stop > start && text[stop - 1] === 13) stop--;
    let dots = 0;
    let label = 0;
    const hash = this.#hash;
    hash.reset();
    let letters = false;
    for (let i = stop - 1; i >= start; i--) {
      const octet = text[i] as number;
      if (octet === DOT) {
        // The last label must hold a letter, or the line could be an address; xn-- labels are checked on the slow path.
        if (label === 0 || (dots === 0 && !letters)) return false;
        dots++;
        label = 0;
      } else if ((octet >= 97 && octet <= 122) || (octet >= 48 && octet <= 57) || octet === 95 || octet === 45) {
        if (octet === 45 && i > start && text[i - 1] === 45) return false;
        if (octet >= 97) letters = true;
        label++;
        if (label > 63) return false;
      } else {
        return false;
      }
      hash.add(octet);
    }
    if (label === 0 || dots === 0 || stop - start > 253) return false;
    this.#keep(this.#kinds.exact, { file, line, rule: null });
    return true;
  }

  #addLine(content: string, file: string, line: number, failed: (line: number, message: string, remedy: string) => void): void {
    const hash = content.indexOf("#");
    const words = (hash < 0 ? content : content.slice(0, hash)).trim().split(/\s+/);
    const [first] = words as [string, ...string[]];
    if (first === "") return;
    const place: Place = { file, line, rule: null };
    const isHosts = words.length > 1 && parseAddress(first.replace(/%.*$/, "")) !== null;
    if (words.length > 1 && !isHosts) return failed(line, `more than one word: ${JSON.stringify(content.trim().slice(0, 80))}`, "write one name a line, or lines of a hosts file");
    for (const word of isHosts ? words.slice(1) : words) {
      if (isHosts && (!word.replace(/\.$/, "").includes(".") || parseAddress(word) !== null)) {
        if (!this.#another(place)) return;
        continue;
      }
      const pattern = parsePattern(word);
      if (pattern.ok) this.add(pattern.value, place);
      else failed(line, pattern.refusal.message, /^(\|\||@@|\/)/.test(word) ? "use the list's plain or hosts edition; filter syntax is not read" : pattern.refusal.remedy);
    }
  }

  finish(): BlockList {
    const { exact, below, suffix } = this.#kinds;
    for (const each of [exact, below, suffix]) each.settle();
    if (!this.#full && exact.count + below.count + suffix.count > BLOCK_NAMES) this.#overflow({ file: "dns.block", line: null, rule: null });
    return { exact: exact.finish(), below: below.finish(), suffix: suffix.finish() };
  }
}

/** What hosts files that block begin their lines with. */
const nullAddresses = ["0.0.0.0", "127.0.0.1", "::", "::1"].map((text) => new TextEncoder().encode(text));

/** Start of what follows a null address and white space; `start` itself when the line does not begin so. */
function afterNullAddress(text: Uint8Array, start: number, end: number): number {
  for (const address of nullAddresses) {
    let at = start + address.length;
    if (at >= end || !address.every((octet, i) => text[start + i] === octet)) continue;
    const blank = at;
    while (at < end && (text[at] === 32 || text[at] === 9)) at++;
    if (at > blank) return at;
  }
  return start;
}

/** Entries of a list. */
export function blockCount(list: BlockList): number {
  return list.exact.length + list.below.length + list.suffix.length;
}

/** A list without names. */
export function emptyBlockList(): BlockList {
  return { exact: new BigUint64Array(0), below: new BigUint64Array(0), suffix: new BigUint64Array(0) };
}
