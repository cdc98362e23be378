/**
 * Placeholders in names: of servers, and of DNS questions, which carry data out by themselves.
 *
 * Holds always: letter case and the places of the dots do not matter, since a name has no case and a text longer than a label
 * must be cut; looked for as it is, in hexadecimal, in base32 of both alphabets and in base64url at any alignment. Never throws.
 * Pure; knows placeholders only, no values, so that the thread that answers DNS may have it.
 * Does not find: other encodings, encryption, what is cut over several questions.
 */
import { matchesPattern } from "../policy/names.js";
import type { SecretSpec } from "../policy/types.js";
import type { Form, Violation } from "./types.js";

/** One placeholder, and what its secret says of finding it elsewhere. */
export interface NamedPlaceholder {
  readonly secret: string;
  readonly placeholder: string;
  readonly onViolation: SecretSpec["onViolation"];
}

interface Needle { readonly text: string; readonly form: Form; readonly of: NamedPlaceholder }

export interface NameHit { readonly of: NamedPlaceholder; readonly form: Form }

/** What a secret's `on_violation` means for something that is for this name; the real value never goes on, whatever it says. */
export function actionOf({ action, hosts }: SecretSpec["onViolation"], what: Violation["what"], labels: readonly string[]): Violation["action"] {
  if (action === "terminate") return "terminate";
  if (what === "value") return "block";
  if (action !== "pass") return action;
  return labels.length > 0 && hosts.some((pattern) => matchesPattern(pattern, labels)) ? "pass" : "block";
}

export class NameFinder {
  readonly #needles: readonly Needle[];

  constructor(placeholders: readonly NamedPlaceholder[]) {
    this.#needles = placeholders.flatMap((of) => {
      const octets = Buffer.from(of.placeholder, "latin1");
      const written: [Form, string][] = [["raw", of.placeholder], ["hex", octets.toString("hex")]];
      for (const alphabet of ["abcdefghijklmnopqrstuvwxyz234567", "0123456789abcdefghijklmnopqrstuv"]) for (let shift = 0; shift < 5; shift++) written.push(["base32", inner(octets, shift, 5, 8, (whole) => base32(whole, alphabet))]);
      for (let shift = 0; shift < 3; shift++) written.push(["base64", inner(octets, shift, 3, 4, (whole) => whole.toString("base64url"))]);
      return written.map(([form, text]) => ({ form, text: joined(text), of }));
    });
  }

  /** @param labels of the name. null: nothing of these is in it. */
  find(labels: readonly string[]): NameHit | null {
    if (this.#needles.length === 0) return null;
    const text = joined(labels.join(""));
    for (const { text: needle, of, form } of this.#needles) if (text.includes(needle)) return { of, form };
    return null;
  }
}

/** As it is compared: placeholders may hold dots, and encoders may write hyphens into long labels. */
function joined(text: string): string { return text.toLowerCase().replaceAll(".", "").replaceAll("-", "").replaceAll("_", ""); }

/** The digits that the octets alone decide when `shift` octets of something else stand before them in their group. */
function inner(octets: Buffer, shift: number, group: number, digits: number, encode: (whole: Buffer) => string): string {
  const bits = 8 / digits * group; // of a digit
  const all = encode(Buffer.concat([Buffer.alloc(shift), octets])).replace(/=+$/, "");
  return all.slice(Math.ceil(8 * shift / bits), Math.floor(8 * (shift + octets.length) / bits));
}

function base32(octets: Buffer, alphabet: string): string {
  let out = "", held = 0, bits = 0;
  for (const octet of octets) {
    held = ((held << 8) | octet) & 0xfff;
    for (bits += 8; bits >= 5; bits -= 5) out += alphabet[(held >> (bits - 5)) & 31];
  }
  return bits === 0 ? out : out + (alphabet[(held << (5 - bits)) & 31] as string);
}
