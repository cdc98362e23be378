/** Secrets for tests: specifications, what must hold of them, and a search that nothing of a value has stayed anywhere. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { parsePattern } from "../../src/policy/names.js";
import type { NamePattern, SecretSpec } from "../../src/policy/types.js";

export function pattern(text: string): NamePattern {
  const parsed = parsePattern(text);
  if (!parsed.ok) throw new Error(parsed.refusal.message);
  return parsed.value;
}

export function secretSpec(name: string, parts: Partial<SecretSpec> = {}): SecretSpec {
  return {
    name, from: { kind: "env", variable: name }, allowedHosts: [pattern("origin.test")], ports: [443], ttl: null, failureTtl: null,
    placeholder: { prefix: "", sameLength: false, jwt: false }, inject: { headers: null, query: false, body: false, path: false }, onViolation: { action: "block", hosts: [] },
    place: { file: "policy.yaml", line: 1, rule: null }, ...parts,
  };
}

/** The forms in which a value would be found by someone who looks for it. */
export function tracesOf(value: string): Buffer[] {
  const octets = Buffer.from(value, "utf8");
  return [
    octets, Buffer.from(encodeURIComponent(value)), Buffer.from(JSON.stringify(value).slice(1, -1), "utf8"), Buffer.from(octets.toString("hex")), Buffer.from(octets.toString("hex").toUpperCase()),
    ...[0, 1, 2].flatMap((shift) => (["base64", "base64url"] as const).map((alphabet) => {
      const digits = Buffer.concat([Buffer.alloc(shift), octets]).toString(alphabet).replace(/=+$/, "");
      return Buffer.from(digits.slice(shift === 0 ? 0 : shift + 1, -1));
    })),
    Buffer.from(value, "utf16le"),
  ];
}

/** Files (folders: everything in them) and texts hold nothing of the value (A59). @throws with where it was found, never with it. */
export function assertNowhere(value: string, places: { readonly files?: readonly string[]; readonly texts?: Readonly<Record<string, string | Buffer>> }): void {
  const traces = tracesOf(value);
  const look = (where: string, octets: Buffer): void => { if (traces.some((trace) => octets.includes(trace))) throw new Error(`the value of a secret is in ${where}`); };
  const walk = (path: string): void => {
    const facts = statSync(path, { throwIfNoEntry: false });
    if (facts === undefined) return;
    if (facts.isDirectory()) for (const name of readdirSync(path)) walk(join(path, name));
    else if (facts.isFile()) look(path, readFileSync(path));
  };
  for (const file of places.files ?? []) walk(file);
  for (const [where, text] of Object.entries(places.texts ?? {})) look(where, Buffer.isBuffer(text) ? text : Buffer.from(text, "utf8"));
}
