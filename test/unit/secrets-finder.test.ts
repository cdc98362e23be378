/** Finding placeholders and values (A55, TLS.md test 34): every form, every place where it can be split, and what it must not find. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Finder, type Wanted } from "../../src/secrets/finder.js";
import { PlaceholderBook } from "../../src/secrets/placeholder.js";
import { Scanner } from "../../src/secrets/scanner.js";
import { Pass } from "../../src/secrets/stream.js";
import { secretSpec } from "../lib/secrets.js";

const book = new PlaceholderBook(null);
const placeholder = book.take(secretSpec("TOKEN", { placeholder: { prefix: "ghp_", sameLength: false, jwt: false } }), 40);
const jwt = book.take(secretSpec("JWT", { placeholder: { prefix: "", sameLength: false, jwt: true } }), 40);
const value = 'p"w/\\+<&é r\u{1f600}al=1';
const wanted: Wanted[] = [
  { secret: "TOKEN", what: "placeholder", octets: Buffer.from(placeholder) },
  { secret: "JWT", what: "placeholder", octets: Buffer.from(jwt) },
  { secret: "TOKEN", what: "value", octets: Buffer.from(value, "utf8") },
];
const finder = new Finder(wanted, book.marker);
const percentAll = (octets: Buffer): string => [...octets].map((octet) => `%${octet.toString(16).padStart(2, "0")}`).join("");
const percentSome = (octets: Buffer): string => [...octets].map((octet, i) => (octet > 0x7e || octet < 0x21 || octet === 0x25 || i % 5 === 2 ? `%${octet.toString(16).toUpperCase().padStart(2, "0")}` : String.fromCharCode(octet))).join("");
/** As JSON's writers do: what is beyond the basic plane in two escapes. */
const jsonAll = (text: string): string => text.split("").map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`).join("");
const jsonSome = (text: string): string => text.split("").map((char, i) => (i % 7 === 0 || /["\\\ud800-\udfff]/.test(char) ? `\\u${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}` : char)).join("");
const base64 = (shift: number, octets: Buffer, alphabet: "base64" | "base64url"): string => Buffer.concat([Buffer.from("xyz".slice(0, shift)), octets, Buffer.from(":after")]).toString(alphabet);

/** Every form of a text, as octets. */
function formsOf(text: string): [string, Buffer][] {
  const octets = Buffer.from(text, "utf8");
  return [
    ["raw", octets],
    ["percent, all", Buffer.from(percentAll(octets))], ["percent, some", Buffer.from(percentSome(octets), "latin1")],
    ["percent twice, all", Buffer.from(percentAll(Buffer.from(percentAll(octets))))], ["percent twice, short", Buffer.from(percentAll(octets).replaceAll("%", "%25"))],
    ["JSON, all", Buffer.from(jsonAll(text))], ["JSON, some", Buffer.from(jsonSome(text), "utf8")], ["JSON.stringify", Buffer.from(JSON.stringify(text).slice(1, -1), "utf8")],
    ["percent over JSON", Buffer.from(jsonAll(text).replaceAll("\\", "%5C"))],
    ["JSON over percent", Buffer.from(percentAll(octets).replaceAll("%", "\\u0025"))],
    ["percent over all of JSON", Buffer.from(percentAll(Buffer.from(jsonAll(text))))], ["percent twice over all of JSON", Buffer.from(percentAll(Buffer.from(percentAll(Buffer.from(jsonAll(text))))))],
    ["JSON over all of percent", Buffer.from(jsonAll(percentAll(octets)))],
    ...([0, 1, 2] as const).flatMap((shift) => (["base64", "base64url"] as const).map((alphabet): [string, Buffer] => [`${alphabet}, ${shift} before`, Buffer.from(base64(shift, octets, alphabet))])),
    ["percent over base64", Buffer.from(encodeURIComponent(base64(1, octets, "base64")))],
  ];
}
const texts: [string, string][] = [["placeholder", placeholder], ["JWT placeholder", jwt], ["value", value]];

describe("A55, test 34: forms", () => {
  for (const [what, text] of texts) {
    for (const [form, octets] of formsOf(text)) {
      it(`${what}: ${form}, alone and amid other octets`, () => {
        for (const around of ["", "aaaa", "%zz\\x", "k=%41&", "\\u0041\\n", "ghp_ghp_", "\0\xff\xfe"]) {
          const hits = finder.find(Buffer.concat([Buffer.from(around, "latin1"), octets, Buffer.from(around, "latin1")]));
          // Base64 needs its own alignment; what stands before it shifts nothing when it is no digit of it, and it has its own shift in any case.
          expect(hits.length, `${around} ${form}`).toBe(1);
          expect(hits[0]?.wanted.secret).toBe(text === jwt ? "JWT" : "TOKEN");
        }
      });
    }
  }
  it("none of it is found in octets that have none, nor in a placeholder of another sandbox or a part of one", () => {
    const other = new PlaceholderBook(null).take(secretSpec("TOKEN"), 40);
    // Two octets less: base64 of one less is the same, by chance, where what follows begins with the same bits.
    for (const text of [other, placeholder.slice(0, -2), placeholder.slice(5), placeholder.toLowerCase(), `${placeholder.slice(0, 20)} ${placeholder.slice(20)}`, placeholder.split("").reverse().join("")]) {
      for (const [, octets] of formsOf(text)) expect(finder.find(octets)).toEqual([]);
    }
    fc.assert(fc.property(fc.uint8Array({ maxLength: 4096 }), (octets) => { expect(finder.find(Buffer.from(octets))).toEqual([]); }), { numRuns: 200 });
  });
  it("a short value is not looked for", () => {
    expect(new Finder([{ secret: "S", what: "value", octets: Buffer.from("1234567") }], null).find(Buffer.from("x1234567x"))).toEqual([]);
    expect(new Finder([{ secret: "S", what: "value", octets: Buffer.from("12345678") }], null).find(Buffer.from("x12345678x"))).toHaveLength(1);
  });
});

describe("the search for many texts", () => {
  it("tells every place that a search for each alone tells", () => {
    const letters = (least: number, most: number) => fc.array(fc.constantFrom(0x61, 0x62, 0x25), { minLength: least, maxLength: most }).map((octets) => Buffer.from(octets));
    fc.assert(fc.property(fc.array(letters(2, 9), { minLength: 1, maxLength: 5 }), letters(0, 200), (texts, octets) => {
      const found: string[] = [], expected: string[] = [];
      new Scanner(texts).scan(octets, (start, index) => { found.push(`${start} ${index}`); return false; });
      texts.forEach((text, index) => { for (let i = octets.indexOf(text); i >= 0; i = octets.indexOf(text, i + 1)) expected.push(`${i} ${index}`); });
      expect(found.sort()).toEqual(expected.sort());
    }), { numRuns: 500 });
  });
});

/** Pieces through a pass that stops at the first match. */
function stops(pieces: readonly Buffer[]): { stopped: boolean; out: Buffer } {
  const out: Buffer[] = [];
  const pass = new Pass({ finder }, false, () => new Error("found"));
  try {
    for (const piece of pieces) out.push(...pass.push(piece, false));
    out.push(...pass.push(Buffer.alloc(0), true));
    return { stopped: false, out: Buffer.concat(out) };
  } catch {
    return { stopped: true, out: Buffer.concat(out) };
  }
}

function rewritten(pieces: readonly Buffer[]): Buffer {
  const pass = new Pass({ finder }, true, (_hit, _octets, begun) => (begun ? new Error("begun") : Buffer.from("<>")));
  return Buffer.concat([...pieces.flatMap((piece) => pass.push(piece, false)), ...pass.push(Buffer.alloc(0), true)]);
}

describe("A55, test 34: split over writes", () => {
  const before = Buffer.from('{"a":"b%41 '), after = Buffer.from('"} \\u0042');
  for (const [what, text] of texts) {
    for (const [form, octets] of formsOf(text)) {
      it(`${what}: ${form}, at every place, octet by octet`, () => {
        const whole = Buffer.concat([before, octets, after]);
        // Of the longest every seventh, which meets all places within their escapes of 9, 18 and 54 octets.
        for (let at = 0; at <= whole.length; at += whole.length > 2000 ? 7 : 1) {
          const { stopped, out } = stops([whole.subarray(0, at), whole.subarray(at)]);
          expect(stopped, `split at ${at}`).toBe(true);
          expect(finder.find(out)).toEqual([]);
          const clean = rewritten([whole.subarray(0, at), whole.subarray(at)]);
          expect(finder.find(clean), `split at ${at}`).toEqual([]);
          expect(clean.subarray(0, before.length)).toEqual(before);
          expect(clean.subarray(-after.length)).toEqual(after);
        }
        const single = [...whole].map((octet) => Buffer.of(octet));
        expect(stops(single).stopped).toBe(true);
        expect(rewritten(single)).toEqual(rewritten([whole]));
      });
    }
  }
  it("any split of any mixture comes out as when it comes whole, and what holds nothing comes out as it went in", () => {
    const pieces = fc.array(fc.oneof(
      fc.constantFrom(...texts.flatMap(([, text]) => formsOf(text).map(([, octets]) => octets))),
      fc.uint8Array({ maxLength: 40 }).map((octets) => Buffer.from(octets)),
      fc.constantFrom("%", "%6", "%25", "\\", "\\u", "\\u00", "\\u0067", "g", "gh", "ghp_", placeholder.slice(0, 30), value.slice(0, 9), "Z2hw").map((text) => Buffer.from(text, "utf8")),
    ), { maxLength: 6 });
    fc.assert(fc.property(pieces, fc.array(fc.nat(), { maxLength: 8 }), (parts, cuts) => {
      const whole = Buffer.concat(parts);
      const places = [0, ...cuts.map((cut) => (whole.length === 0 ? 0 : cut % whole.length)).sort((a, b) => a - b), whole.length];
      const split = places.slice(1).map((end, i) => whole.subarray(places[i], end));
      expect(rewritten(split)).toEqual(rewritten([whole]));
      if (finder.find(whole).length === 0) expect(rewritten(split)).toEqual(whole);
      expect(stops(split).stopped).toBe(finder.find(whole).length > 0);
    }), { numRuns: 400 });
  });
  it("what is held back is bounded, and ordinary ends are not held back", () => {
    const pass = new Pass({ finder }, false, () => new Error("found"));
    for (const text of ["data: x\n\n", "g", "ghp", "100%", "a\\", "{}\r\n"]) expect(Buffer.concat(pass.push(Buffer.from(text), false)).toString(), text).toBe(text);
    expect(Buffer.concat(pass.push(Buffer.from(placeholder.slice(0, -1)), false)).length).toBe(0);
    expect(Buffer.concat(pass.push(Buffer.from("!"), false)).toString()).toBe(`${placeholder.slice(0, -1)}!`);
    const large = Buffer.alloc(1 << 20, "x");
    expect(Buffer.concat(pass.push(large, false)).length).toBe(large.length);
  });
  it("a beginning that may be chance is let go when it is asked for, and the rest is still found", () => {
    const pass = new Pass({ finder }, true, (_hit, _octets, begun) => (begun ? Buffer.from("[rest]") : Buffer.from("[all]")));
    expect(Buffer.concat(pass.push(Buffer.from("xg"), false)).toString()).toBe("x");
    expect(pass.loose).toBe(true);
    expect(Buffer.concat(pass.letGo()).toString()).toBe("g");
    expect(Buffer.concat(pass.push(Buffer.from(`${placeholder.slice(1)}y`), true)).toString()).toBe("[rest]y");
  });
});
