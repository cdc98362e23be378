/**
 * Name patterns: reading them strictly and matching them label by label.
 *
 * Holds always: a pattern is A-labels in lower case; text that two readers could take for different names (mapped characters,
 * alternative dots, percent signs, number-like names) is refused, never repaired. A pattern that covers a public suffix of the
 * ICANN section is refused.
 */
import { domainToASCII, domainToUnicode } from "node:url";
import { parse as parsePublicSuffix } from "tldts";
import { parseAddress } from "../addresses/address.js";
import { suffixHolders } from "./suffixes.gen.js";
import type { NamePattern } from "./types.js";

/** A reading that failed: what is wrong and what to write instead. */
export interface Refusal { readonly message: string; readonly remedy: string }

export type Parsed<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly refusal: Refusal };

export function accepted<T>(value: T): Parsed<T> {
  return { ok: true, value };
}

export function refused(message: string, remedy: string): { readonly ok: false; readonly refusal: Refusal } {
  return { ok: false, refusal: { message, remedy } };
}

const LABEL_OCTETS = 63;
const NAME_OCTETS = 253; // RFC 1035 section 2.3.4: 255 on the wire

/** A domain name as labels. Underscores are labels' business (RFC 8552), hyphens anywhere too. */
export function parseName(text: string): Parsed<readonly string[]> {
  const quoted = JSON.stringify(text);
  const name = text.endsWith(".") ? text.slice(0, -1) : text;
  if (name === "") return refused(`${quoted} is not a name`, "write a domain name such as api.example.com");
  if (/[\s\p{Cc}]/u.test(name)) return refused(`${quoted} has white space or control characters`, "write the name alone");
  if (name.includes("*")) return refused(`${quoted}: \`*\` stands only at the front, as a whole label`, "write *.example.com (below the name), or suffix:example.com (the name too)");
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(name) || name.includes("/")) return refused(`${quoted} is not a name`, "write the host's name alone, without scheme, path or port");
  if (/:\d*$/.test(name)) return refused(`${quoted} is not a name`, "write the port under `ports` (in a token: NAME:tcp:PORT)");
  let ascii = name.toLowerCase();
  if (!/^[\x21-\x7e]+$/.test(name)) {
    ascii = domainToASCII(name);
    // Exactly the characters that were written must come back, but for case; else a mapping took place (full width, ligature,
    // soft hyphen, another kind of dot, a letter that only looks Latin such as the Kelvin sign).
    if (ascii === "" || name.normalize("NFC") !== name || domainToUnicode(ascii) !== name.toLowerCase()) {
      return refused(`${quoted} is ambiguous as an internationalised name`, ascii === "" ? "write its A-label (xn--…)" : `write ${ascii} if that is the name you mean`);
    }
  }
  const labels = ascii.split(".");
  for (const label of labels) {
    if (label === "") return refused(`${quoted} has an empty label`, "remove the doubled, leading or second trailing dot");
    if (label.length > LABEL_OCTETS) return refused(`${quoted} has a label longer than ${LABEL_OCTETS} octets`, "write the name as it is in DNS");
    if (!/^[a-z0-9_-]+$/.test(label)) return refused(`${quoted} has characters that no host name has`, "write letters, digits, hyphens and underscores");
    if (label.startsWith("xn--") && domainToASCII(domainToUnicode(label)) !== label) return refused(`${quoted}: ${label} is not a valid A-label`, "write the name as it is in DNS");
  }
  if (ascii.length > NAME_OCTETS) return refused(`${quoted} is longer than ${NAME_OCTETS} octets`, "write the name as it is in DNS");
  // What inet_aton or a URL parser would take for an IPv4 address: a last label of digits only, or hexadecimal.
  if (/^(\d+|0x[0-9a-f]*)$/.test(labels.at(-1) as string)) return refused(`${quoted} looks like an address, but is not a well-formed one`, "write four decimal parts without leading zeros");
  return accepted(labels);
}

/** A pattern: `name`, `*.name` or `suffix:name`. Whether it covers a public suffix is publicSuffix's question. */
export function parsePattern(text: string): Parsed<NamePattern> {
  if (text === "*") return refused("`*` is every name", "write the group `public` (or `any`) instead");
  const kind = text.startsWith("*.") ? "below" : text.startsWith("suffix:") ? "suffix" : "exact";
  const base = kind === "below" ? text.slice(2) : kind === "suffix" ? text.slice(7) : text;
  if (parseAddress(base) !== null) return refused(`${JSON.stringify(text)} is an address, not a name`, "write the address alone, in a rule");
  const labels = parseName(base);
  return labels.ok ? accepted({ kind, labels: labels.value }) : labels;
}

/**
 * Whether a pattern covers a public suffix, or names under different owners right below it: "icann" (`*.com`, `*.co.uk`,
 * `suffix:com`, and `*.za`, which is none itself), "private" (`*.github.io`, `*.amazonaws.com`: section PRIVATE of the public
 * suffix list), or null. A top-level label that the list does not know (`*.lan`) is nobody's public suffix.
 */
export function publicSuffix(pattern: NamePattern): "icann" | "private" | null {
  if (pattern.kind === "exact") return null;
  const base = pattern.labels.join(".");
  for (const name of [base, `x.${base}`]) {
    const found = parsePublicSuffix(name, { allowPrivateDomains: true, extractHostname: false, validateHostname: false, detectIp: false });
    if (found.publicSuffix !== name) continue;
    if (found.isIcann === true) return "icann";
    if (found.isPrivate === true) return "private";
  }
  return suffixBelow(pattern)?.section ?? null;
}

/** A public suffix that lies deeper below a pattern's name, which is none itself; null: none does, or the pattern is a name. */
export function suffixBelow({ kind, labels }: NamePattern): { readonly section: "icann" | "private"; readonly name: string } | null {
  const base = labels.join(".");
  for (const section of kind === "exact" ? [] : ["icann", "private"] as const) {
    if (Object.hasOwn(suffixHolders[section], base)) return { section, name: suffixHolders[section][base] as string };
  }
  return null;
}

export function formatPattern(pattern: NamePattern): string {
  const name = pattern.labels.join(".");
  return pattern.kind === "exact" ? name : pattern.kind === "below" ? `*.${name}` : `suffix:${name}`;
}

/** Whether the labels of `name` end in those of `base`. */
export function endsIn(name: readonly string[], base: readonly string[]): boolean {
  const offset = name.length - base.length;
  return offset >= 0 && base.every((label, i) => name[offset + i] === label);
}

/** Whether the pattern covers the name. Names are compared label by label, in lower case. */
export function matchesPattern(pattern: NamePattern, name: readonly string[]): boolean {
  if (!endsIn(name, pattern.labels)) return false;
  const below = name.length - pattern.labels.length;
  return pattern.kind === "suffix" || (pattern.kind === "exact" ? below === 0 : below > 0);
}
