/** Placeholders in names (src/secrets/names.ts): A55. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { actionOf, NameFinder } from "../../src/secrets/names.js";
import { pattern } from "../lib/secrets.js";

const BLOCK = { action: "block" as const, hosts: [] };
const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const placeholder = fc.string({ unit: fc.constantFrom(...letters), minLength: 22, maxLength: 60 });
const finderOf = (...texts: string[]): NameFinder => new NameFinder(texts.map((text, i) => ({ secret: `S${i}`, placeholder: text, onViolation: BLOCK })));

function base32(octets: Buffer, alphabet: string): string {
  let bits = "";
  for (const octet of octets) bits += octet.toString(2).padStart(8, "0");
  while (bits.length % 5 !== 0) bits += "0";
  return (bits.match(/.{5}/g) ?? []).map((five) => alphabet[parseInt(five, 2)]).join("");
}

describe("NameFinder", () => {
  const encodings: Record<string, [string, (octets: Buffer) => string]> = {
    "as it is": ["raw", (octets) => octets.toString("latin1")], hexadecimal: ["hex", (octets) => octets.toString("hex")],
    base32: ["base32", (octets) => base32(octets, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")], base32hex: ["base32", (octets) => base32(octets, "0123456789ABCDEFGHIJKLMNOPQRSTUV")],
    base64url: ["base64", (octets) => octets.toString("base64url")],
  };
  it.each(Object.keys(encodings))("%s: found at any place of any text, in any case, cut anywhere", (which) => {
    const [form, encode] = encodings[which]!;
    fc.assert(fc.property(placeholder, fc.uint8Array({ maxLength: 12 }), fc.uint8Array({ maxLength: 12 }), fc.array(fc.integer({ min: 1, max: 63 }), { minLength: 1 }), fc.boolean(), (text, before, after, cuts, upper) => {
      const plain = which === "as it is" ? (octets: Uint8Array): Buffer => Buffer.from(Buffer.from(octets).toString("hex")) : (octets: Uint8Array): Buffer => Buffer.from(octets);
      const written = encode(Buffer.concat([plain(before), Buffer.from(text), plain(after)]));
      const labels: string[] = [];
      for (let at = 0, i = 0; at < written.length; i++) labels.push(written.slice(at, (at += cuts[i % cuts.length]!)));
      const cased = labels.map((label) => (upper ? label.toUpperCase() : label.toLowerCase()));
      expect(finderOf("another".padEnd(24, "z"), text).find([...cased, "evil", "example"])).toMatchObject({ form, of: { secret: "S1" } });
    }));
  });

  it("nothing where there is nothing", () => {
    fc.assert(fc.property(placeholder, fc.array(fc.domain(), { maxLength: 3 }), (text, names) => {
      expect(finderOf(text).find(names.flatMap((name) => name.split(".")))).toBeNull();
      expect(finderOf(text).find([text.slice(1), "example"])).toBeNull();
      expect(finderOf().find([text])).toBeNull();
    }));
  });
});

it.each([
  [{ action: "block", hosts: [] }, "placeholder", "block"], [{ action: "log", hosts: [] }, "placeholder", "log"], [{ action: "log", hosts: [] }, "value", "block"],
  [{ action: "terminate", hosts: [] }, "value", "terminate"], [{ action: "pass", hosts: ["*.llm.test"] }, "placeholder", "pass"], [{ action: "pass", hosts: ["other.test"] }, "placeholder", "block"],
] as const)("%j of a %s: %s", (rule, what, action) => {
  expect(actionOf({ action: rule.action, hosts: rule.hosts.map(pattern) }, what, ["api", "llm", "test"])).toBe(action);
});
