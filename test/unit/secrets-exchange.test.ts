/** What is put into a request, what stops it, and what is taken out of the answer (A55–A58, TLS.md tests 32–37): tables, without sockets. */
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Duplex, Readable } from "node:stream";
import { brotliCompressSync, brotliDecompressSync, deflateSync, gunzipSync, gzipSync } from "node:zlib";
import { beforeEach, describe, expect, it } from "vitest";
import type { SecretSpec } from "../../src/policy/types.js";
import { GRACE_MS } from "../../src/secrets/live-secret.js";
import { SandboxSecrets } from "../../src/secrets/sandbox-secrets.js";
import type { Gate, Violation } from "../../src/secrets/types.js";
import type { ExchangeFilter, RequestFacts } from "../../src/tls/http/passage.js";
import type { Refusal } from "../../src/tls/http/refusal.js";
import { assertNowhere, pattern, secretSpec } from "../lib/secrets.js";

const VALUE = 'real"value/of+the&secret 1';
const OTHER = "other-real-value-2";
const ORIGIN: Gate = { labels: ["origin", "test"], port: 443, intercepted: true, verified: true, pinned: true };
const EVIL: Gate = { ...ORIGIN, labels: ["evil", "test"] };

let secrets: SandboxSecrets, P = "", Q = "", passed: Violation[] = [], cut: Violation[] = [];
const environment: NodeJS.ProcessEnv = {};
async function open(...specs: SecretSpec[]): Promise<void> {
  environment["TOKEN"] = VALUE;
  environment["OTHER"] = OTHER;
  passed = [];
  cut = [];
  secrets = await SandboxSecrets.open(specs, { path: null, environment, onPassed: (violation) => passed.push(violation), onTerminate: (violation) => cut.push(violation) });
  P = secrets.environment()["TOKEN"] as string;
  Q = secrets.environment()["OTHER"] ?? "";
}
const inject = (parts: Partial<SecretSpec["inject"]>): Partial<SecretSpec> => ({ inject: { headers: null, query: false, body: false, path: false, ...parts } });
beforeEach(() => open(secretSpec("TOKEN"), secretSpec("OTHER")));

const request = (parts: Partial<RequestFacts> = {}): RequestFacts => ({ host: "origin.test", method: "GET", target: "/", fields: ["Host", "origin.test"], body: { kind: "none" }, ...parts });
const withFields = (...fields: string[]): RequestFacts => request({ fields: ["Host", "origin.test", "X-First", "1", ...fields, "X-Last", "2"] });
const withBody = (octets: Buffer | string, ...fields: string[]): [RequestFacts, Buffer] => {
  const body = Buffer.from(octets);
  return [request({ method: "POST", fields: ["Host", "origin.test", ...fields], body: { kind: "length", octets: body.length } }), body];
};
async function asked(gate: Gate, facts: RequestFacts): Promise<ExchangeFilter | Refusal | null> { return secrets.exchange(gate, facts); }
async function passing(gate: Gate, facts: RequestFacts): Promise<ExchangeFilter> {
  const answer = await asked(gate, facts);
  expect(answer).not.toBeNull();
  expect(answer).not.toHaveProperty("status");
  return answer as ExchangeFilter;
}
async function stopped(gate: Gate, facts: RequestFacts): Promise<Refusal> {
  const answer = await asked(gate, facts);
  expect(answer).toHaveProperty("status");
  assertNowhere(VALUE, { texts: { refusal: JSON.stringify(answer) } });
  expect(JSON.stringify(answer)).not.toContain(P);
  return answer as Refusal;
}
/** The body as it leaves, or why it does not. */
async function body(filter: ExchangeFilter, octets: Buffer, split = octets.length): Promise<Buffer | Refusal> {
  const pieces: Buffer[] = [];
  for (let at = 0; at < octets.length; at += split) pieces.push(octets.subarray(at, at + split));
  const source = Readable.from(pieces);
  if (filter.whole) return filter.whole(source);
  const { body: through } = filter;
  if (through === null) return octets;
  const out: Buffer[] = [];
  return new Promise((resolve) => {
    through.on("data", (piece: Buffer) => out.push(piece));
    through.once("end", () => resolve(Buffer.concat(out)));
    through.once("error", (error: Error & { refusal?: Refusal }) => resolve(error.refusal ?? { status: 0, reason: "secret", message: error.message, close: true }));
    source.pipe(through);
  });
}
async function answered(filter: ExchangeFilter, pieces: readonly (Buffer | string)[]): Promise<string> {
  const scrub = filter.responseBody();
  if (scrub === null) return Buffer.concat(pieces.map((piece) => Buffer.from(piece))).toString("latin1");
  const out: Buffer[] = [];
  return new Promise((resolve, reject) => {
    scrub.transform.on("data", (piece: Buffer) => out.push(piece));
    scrub.transform.once("end", () => resolve(Buffer.concat(out).toString("latin1")));
    scrub.transform.once("error", reject);
    Readable.from(pieces.map((piece) => Buffer.from(piece))).pipe(scrub.transform);
  });
}

describe("A56, test 32: at its own host", () => {
  for (const name of ["authorization", "x-api-key", "api-key", "X-Goog-Api-Key"]) {
    for (const [around, write] of [["alone", (text: string) => text], ["behind a scheme", (text: string) => `Bearer ${text}`], ["amid text", (text: string) => `a=${text};b`]] as const) {
      it(`${name}, ${around}: the value, once, nothing else changed`, async () => {
        const filter = await passing(ORIGIN, withFields(name, write(P)));
        const { fields } = filter;
        expect(fields.slice(0, 8)).toEqual(["Host", "origin.test", "X-First", "1", name, write(VALUE), "X-Last", "2"]);
        expect(fields.slice(8)).toEqual(["Accept-Encoding", "identity"]);
        expect(secrets.counters()["TOKEN"]).toMatchObject({ injected: 1, blocked: 0 });
      });
    }
  }
  it("Basic credentials, as user, as password, and both secrets in one", async () => {
    const basic = (text: string): string => `Basic ${Buffer.from(text).toString("base64")}`;
    for (const [sent, meant] of [[`${P}:`, `${VALUE}:`], [`user:${P}`, `user:${VALUE}`], [`${Q}:${P}`, `${OTHER}:${VALUE}`]] as const) {
      const filter = await passing(ORIGIN, withFields("Authorization", basic(sent)));
      expect(filter.fields).toContain(basic(meant));
    }
    // Another alphabet or no padding is read as the same octets.
    const filter = await passing(ORIGIN, withFields("Authorization", `basic ${Buffer.from(`user:${P}`).toString("base64url")}`));
    expect(filter.fields).toContain(`basic ${Buffer.from(`user:${VALUE}`).toString("base64")}`);
  });
  it("other fields, query and path only where the policy says so, written as those are", async () => {
    await open(secretSpec("TOKEN", inject({ headers: ["x-debug", "cookie"], query: true, path: true })));
    const escaped = "real%22value%2Fof%2Bthe%26secret%201";
    const percent = [...P].map((char) => `%${char.charCodeAt(0).toString(16)}`).join("");
    for (const written of [P, percent]) {
      expect((await passing(ORIGIN, request({ target: `/a/${written}/b?x=1&key=${written}&y` }))).target).toBe(`/a/${escaped}/b?x=1&key=${escaped}&y`);
    }
    expect((await passing(ORIGIN, withFields("X-Debug", P, "Cookie", `a=b; t=${P}`))).fields).toEqual(expect.arrayContaining([VALUE, `a=b; t=${VALUE}`]));
    // The list takes the place of the standard one.
    await stopped(ORIGIN, withFields("Authorization", `Bearer ${P}`));
  });
  const elsewhere: [string, () => RequestFacts, Partial<Violation>][] = [
    ["another field", () => withFields("X-Debug", P), { place: "field", field: "x-debug" }],
    ["a cookie", () => withFields("Cookie", `t=${P}`), { place: "field", field: "cookie" }],
    ["User-Agent", () => withFields("User-Agent", P), { place: "field", field: "user-agent" }],
    ["the name of a field", () => withFields(P, "1"), { place: "field-name" }],
    ["the query", () => request({ target: `/?k=${P}` }), { place: "query" }],
    ["the path", () => request({ target: `/${P}` }), { place: "path" }],
    ["the method", () => request({ method: P }), { place: "method" }],
    ["a standard field in percent escapes", () => withFields("x-api-key", `%${P.charCodeAt(0).toString(16)}${P.slice(1)}`), { place: "field", form: "percent" }],
    ["a standard field in JSON escapes", () => withFields("x-api-key", `\\u00${P.charCodeAt(0).toString(16)}${P.slice(1)}`), { place: "field", form: "json" }],
    ["a standard field in base64", () => withFields("authorization", `Bearer ${Buffer.from(P).toString("base64")}`), { place: "field", form: "base64" }],
    ["Basic credentials in percent escapes", () => withFields("authorization", `Basic ${Buffer.from(`u:%${P.charCodeAt(0).toString(16)}${P.slice(1)}`).toString("base64")}`), { place: "field" }],
  ];
  for (const [what, facts, expected] of elsewhere) {
    it(`in ${what}: refused whole, also with one that is where it belongs`, async () => {
      const refusal = await stopped(ORIGIN, facts());
      expect(refusal).toMatchObject({ status: 403, reason: "secret", violation: { secret: "TOKEN", what: "placeholder", action: "block", host: "origin.test", ...expected } });
      const both = facts();
      await stopped(ORIGIN, { ...both, fields: ["Authorization", `Bearer ${P}`, ...both.fields] });
      expect(secrets.counters()["TOKEN"]).toMatchObject({ injected: 0 });
    });
  }
  it("twice the same field, and a signature over the placeholder", async () => {
    expect(await stopped(ORIGIN, withFields("x-api-key", P, "X-Api-Key", "2"))).toMatchObject({ status: 403 });
    expect((await stopped(ORIGIN, withFields("authorization", `AWS4-HMAC-SHA256 Credential=${P}/20260101/eu/s3/aws4_request, SignedHeaders=host, Signature=00`))).message).toContain("signed");
  });
  it("no value to be had: 503, not an empty field", async () => {
    let time = 0;
    environment["TOKEN"] = VALUE;
    secrets = await SandboxSecrets.open([secretSpec("TOKEN", { ttl: 1, failureTtl: 0 })], { path: null, environment, clock: { now: () => time } });
    P = secrets.environment()["TOKEN"] as string;
    delete environment["TOKEN"];
    time = 2_000;
    expect(await stopped(ORIGIN, withFields("authorization", P))).toMatchObject({ status: 503 });
    expect(secrets.counters()["TOKEN"]).toMatchObject({ unavailable: 1, injected: 0 });
  });
});

describe("A55, A57, test 33: anywhere else", () => {
  const gates: [string, Gate][] = [
    ["another host", EVIL], ["a sibling of its host", { ...ORIGIN, labels: ["x", "origin", "test"] }], ["a host that ends like it", { ...ORIGIN, labels: ["evilorigin", "test"] }],
    ["another port", { ...ORIGIN, port: 8443 }], ["an address that was not told for the name", { ...ORIGIN, pinned: false }], ["a far side that is not verified", { ...ORIGIN, verified: false }],
    ["plain HTTP", { ...ORIGIN, port: 80, intercepted: false, verified: false }], ["an address", { ...ORIGIN, labels: [] }],
  ];
  const places: [string, () => RequestFacts][] = [
    ["authorization", () => withFields("Authorization", `Bearer ${P}`)], ["Basic", () => withFields("Authorization", `Basic ${Buffer.from(`a:${P}`).toString("base64")}`)], ["x-api-key", () => withFields("x-api-key", P)],
    ["path", () => request({ target: `/${P}` })], ["query", () => request({ target: `/?${P}` })], ["query, percent twice", () => request({ target: `/?${[...P].map((char) => `%25${char.charCodeAt(0).toString(16)}`).join("")}` })],
    ["cookie", () => withFields("cookie", P)], ["method", () => request({ method: P })],
  ];
  for (const [where, gate] of gates) {
    it(`${where}: stopped in every place, told by name`, async () => {
      for (const [place, facts] of places) {
        const refusal = await stopped(gate, facts());
        expect(refusal, place).toMatchObject({ status: 403, violation: { secret: "TOKEN", what: "placeholder" } });
      }
      const [facts, octets] = withBody(`{"k":"${P}"}`, "Content-Type", "application/json");
      expect(await body(await passing(gate, facts), octets)).toMatchObject({ status: 403, violation: { place: "body" } });
      expect((await passing(gate, facts)).requestTrailers(["X-Sum", P])).toMatchObject({ status: 403, violation: { place: "trailer" } });
      expect(secrets.counters()["TOKEN"]).toMatchObject({ injected: 0, blocked: places.length + 2 });
    });
  }
  it("a wildcard covers what is below, no sibling", async () => {
    await open(secretSpec("TOKEN", { allowedHosts: [pattern("*.origin.test")] }));
    for (const labels of [["a", "origin", "test"], ["b", "a", "origin", "test"]]) await passing({ ...ORIGIN, labels }, withFields("authorization", P));
    for (const labels of [["origin", "test"], ["xorigin", "test"], ["origin", "test", "evil"]]) await stopped({ ...ORIGIN, labels }, withFields("authorization", P));
  });
  it("a value that the guest got hold of stops every request, whatever is said of placeholders, and is not told", async () => {
    for (const action of ["block", "log", "pass"] as const) {
      await open(secretSpec("TOKEN", { onViolation: { action, hosts: [pattern("evil.test")] } }));
      for (const gate of [EVIL, ORIGIN]) {
        for (const field of [VALUE, encodeURIComponent(VALUE), Buffer.from(`x${VALUE}`).toString("base64"), Buffer.from(JSON.stringify(VALUE)).toString("latin1")]) {
          expect(await stopped(gate, withFields("x-any", field))).toMatchObject({ status: 403, violation: { what: "value", action: "block" } });
        }
        const [facts, octets] = withBody(`k=${encodeURIComponent(VALUE)}`, "Content-Type", "application/x-www-form-urlencoded");
        expect(await body(await passing(gate, facts), octets)).toMatchObject({ status: 403, violation: { what: "value" } });
      }
    }
  });
  it("on_violation: log lets it pass as it is and tells; pass only at the hosts named; terminate asks for the end", async () => {
    await open(secretSpec("TOKEN", { onViolation: { action: "log", hosts: [] } }));
    expect((await passing(EVIL, withFields("authorization", P))).fields).toContain(P);
    expect(passed).toMatchObject([{ action: "log", place: "field", field: "authorization" }]);
    await open(secretSpec("TOKEN", { onViolation: { action: "pass", hosts: [pattern("llm.test")] } }));
    const [facts, octets] = withBody(`{"transcript":"TOKEN=${P}"}`, "Content-Type", "application/json");
    expect(await body(await passing({ ...ORIGIN, labels: ["llm", "test"] }, facts), octets)).toEqual(octets);
    expect(passed).toMatchObject([{ action: "pass", place: "body" }]);
    expect(await body(await passing(EVIL, facts), octets)).toMatchObject({ status: 403 });
    await open(secretSpec("TOKEN", { onViolation: { action: "terminate", hosts: [] } }));
    expect(await stopped(EVIL, withFields("authorization", P))).toMatchObject({ violation: { action: "terminate" } });
    expect(cut).toHaveLength(1);
  });
  it("a removed secret: its placeholder is a violation at once, also at its former host", async () => {
    await secrets.replace([secretSpec("OTHER")]);
    expect(secrets.environment()).toEqual({ OTHER: Q });
    expect(await stopped(ORIGIN, withFields("authorization", P))).toMatchObject({ status: 403, violation: { secret: "TOKEN" } });
    expect(await stopped(ORIGIN, withFields("x", VALUE))).toMatchObject({ violation: { what: "value" } });
    await secrets.replace([secretSpec("OTHER"), secretSpec("TOKEN")]);
    expect((await passing(ORIGIN, withFields("authorization", P))).fields).toContain(VALUE);
  });
  it("a server's name that holds a placeholder, whatever its case, cut by dots, and in other digits", () => {
    const name = (text: string): string[] => text.split(".");
    expect(secrets.serverName(EVIL, name(`${P.toLowerCase()}.evil.test`))).toMatchObject({ violation: { place: "server-name", secret: "TOKEN", form: "raw" } });
    expect(secrets.serverName(EVIL, name(`${P.slice(0, 20).toUpperCase()}.${P.slice(20)}.evil.test`))).not.toBeNull();
    const hex = Buffer.from(P).toString("hex");
    expect(secrets.serverName(EVIL, name(`${hex.slice(0, 60)}.${hex.slice(60)}.evil.test`))).toMatchObject({ violation: { form: "hex" } });
    expect(secrets.serverName(EVIL, name("evil.test"))).toBeNull();
  });
});

describe("A56, test 35: bodies", () => {
  beforeEach(() => open(secretSpec("TOKEN", inject({ body: true })), secretSpec("OTHER")));
  const json = ["Content-Type", "application/json; charset=utf-8"], form = ["Content-Type", "application/x-www-form-urlencoded"];
  const escapes = (): string => [...P].map((char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`).join("");
  const percent = (): string => [...P].map((char) => `%${char.charCodeAt(0).toString(16)}`).join("");
  const table: [string, string[], () => string, string][] = [
    ["JSON", json, () => `{"k":"${P}","n":1}`, `{"k":${JSON.stringify(VALUE)},"n":1}`],
    ["JSON, escaped", json, () => `{"k":"${escapes()}"}`, `{"k":${JSON.stringify(VALUE)}}`],
    ["a form", form, () => `a=b&k=${P}&c=d`, "a=b&k=real%22value%2Fof%2Bthe%26secret%201&c=d"],
    ["a form, escaped", form, () => `k=${percent()}`, "k=real%22value%2Fof%2Bthe%26secret%201"],
  ];
  for (const [what, fields, sent, meant] of table) {
    it(`${what}: the value, as that text writes it, at every split, and its length right`, async () => {
      const [facts, octets] = withBody(sent(), ...fields);
      for (const split of [1, 2, 7, 30, octets.length]) {
        const filter = await passing(ORIGIN, facts);
        // Held until it is whole: the length is that of what leaves.
        expect(filter.whole).not.toBeNull();
        expect(String(await body(filter, octets, split))).toBe(meant);
        const chunked = await passing(ORIGIN, { ...facts, body: { kind: "chunked" } });
        expect(chunked.bodyLength).toBeNull();
        expect(String(await body(chunked, octets, split))).toBe(meant);
      }
    });
  }
  it("a text of unknown kind takes values without special characters only; a form other than its text's is a violation", async () => {
    const [facts, octets] = withBody(`<k>${P}</k>`, "Content-Type", "text/xml");
    expect((await body(await passing(ORIGIN, facts), octets) as Refusal).message).toContain("characters");
    for (const [fields, sent] of [[json, percent()], [form, escapes()], [["Content-Type", "text/plain"], percent()], [json, Buffer.from(P).toString("base64")]] as const) {
      const [wrong, text] = withBody(sent, ...fields);
      expect(await body(await passing(ORIGIN, wrong), text)).toMatchObject({ status: 403, violation: { place: "body" } });
    }
    await open(secretSpec("TOKEN", { ...inject({ body: true }), from: { kind: "env", variable: "OTHER" } }));
    const [plain, text] = withBody(`--x\r\n\r\n${P}\r\n--x--`, "Content-Type", "multipart/form-data; boundary=x");
    expect(String(await body(await passing(ORIGIN, plain), text))).toBe(`--x\r\n\r\n${OTHER}\r\n--x--`);
  });
  it("a secret without body, in the same body: refused whole", async () => {
    const [facts, octets] = withBody(`{"a":"${P}","b":"${Q}"}`, ...json);
    expect(await body(await passing(ORIGIN, facts), octets)).toMatchObject({ status: 403, violation: { secret: "OTHER" } });
  });
  it("beyond 1 MiB with a length: 413 where the length would change, put in where it does not, untouched without a placeholder", async () => {
    const filler = "x".repeat(2 << 20);
    const [facts, octets] = withBody(`{"f":"${filler}","k":"${P}"}`, ...json);
    expect(await body(await passing(ORIGIN, facts), octets, 60_000)).toMatchObject({ status: 413 });
    const [without, clean] = withBody(`{"f":"${filler}"}`, ...json);
    expect(clean.equals(await body(await passing(ORIGIN, without), clean, 60_000) as Buffer)).toBe(true);
  });
  it("same_length: put in beyond 1 MiB too", async () => {
    environment["LONG"] = "v".repeat(60);
    await open(secretSpec("TOKEN", { ...inject({ body: true }), from: { kind: "env", variable: "LONG" }, placeholder: { prefix: "", sameLength: true, jwt: false } }));
    const [facts, octets] = withBody(`${"x".repeat(2 << 20)}${P}`, ...json);
    const filter = await passing(ORIGIN, facts);
    expect(filter.bodyLength).toBe(octets.length);
    expect((await body(filter, octets, 60_000) as Buffer).subarray(-60).toString()).toBe("v".repeat(60));
  });
  it("a coded body with a placeholder is refused, also at its own host; without one it passes unchanged; one that does not decode is refused", async () => {
    for (const [coding, encode] of [["gzip", gzipSync], ["x-gzip", gzipSync], ["deflate", deflateSync], ["br", brotliCompressSync]] as const) {
      for (const framing of ["length", "chunked"] as const) {
        for (const size of [10, 300_000]) {
          const noise = Buffer.from(Array.from({ length: size }, (_, i) => String.fromCharCode(33 + (i * i * 31 + i * 7) % 90)).join(""));
          const send = async (text: Buffer): Promise<[Buffer, Buffer | Refusal]> => {
            const [facts, octets] = withBody(text, ...json, "Content-Encoding", coding);
            return [octets, await body(await passing(ORIGIN, framing === "length" ? facts : { ...facts, body: { kind: "chunked" } }), octets, 1000)];
          };
          expect((await send(encode(Buffer.concat([noise, Buffer.from(P), noise]))))[1]).toMatchObject({ status: 403, violation: { place: "body" } });
          const [octets, through] = await send(encode(noise));
          expect(octets.equals(through as Buffer)).toBe(true);
          const cut = encode(noise);
          expect((await send(cut.subarray(0, cut.length - 5)))[1]).toHaveProperty("status");
        }
      }
    }
  });
  it("octets behind a coded body are refused, in whatever pieces they come: no decoder looks at them", async () => {
    for (const [coding, encode] of [["gzip", gzipSync], ["deflate", deflateSync], ["br", brotliCompressSync]] as const) {
      const whole = encode(Buffer.from("harmless"));
      for (const behind of [Buffer.from(P), Buffer.from(`\0${P}`), Buffer.of(0), Buffer.concat([Buffer.of(0), encode(Buffer.from(P))]), ...(coding === "gzip" ? [] : [encode(Buffer.from("more"))])]) {
        for (const framing of ["length", "chunked"] as const) {
          for (const split of [1, whole.length, whole.length + 1, 1_000]) {
            for (const gate of [ORIGIN, EVIL]) {
              const [facts, octets] = withBody(Buffer.concat([whole, behind]), "Content-Encoding", coding);
              expect(await body(await passing(gate, framing === "length" ? facts : { ...facts, body: { kind: "chunked" } }), octets, split)).toHaveProperty("status");
            }
          }
        }
      }
    }
    // gzip may have several members, and each is looked through.
    const members = (last: string): [RequestFacts, Buffer] => withBody(Buffer.concat([gzipSync("one"), gzipSync(last)]), "Content-Encoding", "gzip");
    for (const split of [1, 23, 1_000]) {
      expect((await body(await passing(EVIL, members("two")[0]), members("two")[1], split) as Buffer).equals(members("two")[1])).toBe(true);
      expect(await body(await passing(EVIL, members(P)[0]), members(P)[1], split)).toMatchObject({ status: 403, violation: { place: "body" } });
    }
  });
  it("what stands in a coded body and is not in what it decodes to is looked through as well", async () => {
    const gzip = gzipSync("harmless");
    // RFC 1952 section 2.3: a file name behind the head.
    const inName = Buffer.concat([gzip.subarray(0, 3), Buffer.of(8), gzip.subarray(4, 10), Buffer.from(`${P}\0`), gzip.subarray(10)]);
    // RFC 7932 section 9.2: a metadata block of up to 256 octets, then one that is last and empty.
    const inMetadata = Buffer.concat([Buffer.of(0x2c | ((P.length - 1) & 1) << 7, (P.length - 1) >> 1), Buffer.from(P), Buffer.of(3)]);
    expect([gunzipSync(inName).toString(), brotliDecompressSync(inMetadata).toString()]).toEqual(["harmless", ""]);
    for (const [coding, coded] of [["gzip", inName], ["br", inMetadata]] as const) {
      for (const split of [1, 1_000]) {
        const [facts, octets] = withBody(coded, "Content-Encoding", coding);
        expect(await body(await passing(EVIL, facts), octets, split)).toMatchObject({ status: 403, violation: { place: "body" } });
      }
    }
  });
  it("let pass in a block that is not compressed, it is told as often as it stands there", async () => {
    for (const onViolation of [{ action: "log", hosts: [] }, { action: "pass", hosts: [pattern("evil.test")] }] as const) {
      for (const encode of [gzipSync, deflateSync]) {
        for (const level of [0, 9]) {
          for (const split of [1, 1_000]) {
            await open(secretSpec("TOKEN", { onViolation }));
            const [facts, octets] = withBody(encode(`a ${P} b ${P} c ${Buffer.from(P).toString("base64")}`, { level }), "Content-Encoding", encode === gzipSync ? "gzip" : "deflate");
            expect((await body(await passing(EVIL, facts), octets, split) as Buffer).equals(octets)).toBe(true);
            expect(passed.map(({ form }) => form)).toEqual(["raw", "raw", "base64"]);
          }
        }
      }
      // What only one of the two holds is told as well; a policy that changes meanwhile holds for the next.
      await open(secretSpec("TOKEN", { onViolation }));
      const gzip = gzipSync(P, { level: 9 }), named = Buffer.concat([gzip.subarray(0, 3), Buffer.of(8), gzip.subarray(4, 10), Buffer.from(`${P}\0`), gzip.subarray(10)]);
      const [facts] = withBody(named, "Content-Encoding", "gzip");
      const through = (await passing(EVIL, { ...facts, body: { kind: "chunked" } })).body as Duplex;
      const failed = new Promise((resolve) => through.once("error", resolve));
      through.write(named.subarray(0, 11 + P.length));
      await new Promise((resolve) => setImmediate(resolve));
      expect(passed).toHaveLength(1);
      await secrets.replace([secretSpec("TOKEN")]);
      through.end(named.subarray(11 + P.length));
      expect(await failed).toMatchObject({ refusal: { status: 403 } });
    }
  });
  it("an empty body is one in every coding", async () => {
    for (const coding of ["gzip", "deflate", "br"]) {
      const [facts, octets] = withBody("", "Content-Encoding", coding);
      expect(await body(await passing(EVIL, facts), octets)).toEqual(octets);
    }
  });
  it("A58, 35: a body that nobody can look through, at a host where something may be put in: refused before anything leaves; elsewhere only what is seen in it", async () => {
    for (const fields of [["Content-Encoding", "zstd"], ["Content-Encoding", "gzip, br"], ["Content-Type", "application/grpc", "grpc-encoding", "gzip"]]) {
      const [facts] = withBody(Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), ...fields);
      for (const framing of [facts, { ...facts, body: { kind: "chunked" } as const }]) expect(await stopped(ORIGIN, framing)).toMatchObject({ status: 415, reason: "secret" });
      // Nothing is put in there.
      const [elsewhere, octets] = withBody("opaque", ...fields);
      expect(String(await body(await passing(EVIL, elsewhere), octets))).toBe("opaque");
      const [plain, seen] = withBody(P, ...fields);
      expect(await body(await passing(EVIL, plain), seen)).toMatchObject({ status: 403 });
    }
    expect(secrets.counters()["TOKEN"]?.blocked).toBeGreaterThanOrEqual(6);
    const [identity, octets] = withBody("open", "Content-Type", "application/grpc", "grpc-encoding", "identity");
    expect(String(await body(await passing(ORIGIN, identity), octets))).toBe("open");
  });
  it("gRPC: a message keeps its length, or the call is refused", async () => {
    const message = (text: string): Buffer => {
      const head = Buffer.alloc(5);
      head.writeUInt32BE(text.length, 1);
      return Buffer.concat([head, Buffer.from(text)]);
    };
    const [facts] = withBody("", "Content-Type", "application/grpc+proto");
    const call = { ...facts, body: { kind: "chunked" } as const };
    expect(await body(await passing(ORIGIN, call), message(`k=${P}`))).toMatchObject({ status: 403, message: expect.stringContaining(VALUE.length === P.length ? "" : "characters") as string });
    environment["LONG"] = "v".repeat(60);
    await open(secretSpec("TOKEN", { ...inject({ body: true }), from: { kind: "env", variable: "LONG" } }));
    expect(await body(await passing(ORIGIN, call), message(`k=${P}`))).toMatchObject({ status: 403, message: expect.stringContaining("gRPC") as string });
    const filter = await passing(ORIGIN, request());
    filter.responseHead(200, "OK", ["Content-Type", "application/grpc"]);
    expect(filter.responseBody()?.changesLength).toBe(false);
    expect(await answered(filter, [message("v".repeat(60))])).toBe(message("X".repeat(60)).toString("latin1"));
    await open(secretSpec("TOKEN", { ...inject({ body: true }), from: { kind: "env", variable: "LONG" }, placeholder: { prefix: "", sameLength: true, jwt: false } }));
    expect((await body(await passing(ORIGIN, call), message(`k=${P}`), 7) as Buffer).equals(message(`k=${"v".repeat(60)}`))).toBe(true);
  });
  it("a bomb ends", async () => {
    const bomb = gzipSync(Buffer.alloc(200 << 20));
    const [facts, octets] = withBody(bomb, "Content-Encoding", "gzip");
    expect(await body(await passing(EVIL, facts), octets, 10_000)).toHaveProperty("status");
  });
  it("a body that is signed or has a digest is not changed", async () => {
    for (const fields of [["Content-Digest", "sha-256=:x:"], ["Digest", "x"], ["Content-MD5", "x"], ["x-amz-content-sha256", "00"], ["Signature-Input", "sig1=()"], ["Authorization", "AWS4-HMAC-SHA256 Credential=a"]]) {
      const [facts, octets] = withBody(`{"k":"${P}"}`, ...json, ...fields);
      expect((await body(await passing(ORIGIN, facts), octets) as Refusal).message).toMatch(/signed/);
    }
    const [facts, octets] = withBody(`{"k":"${P}"}`, ...json, "x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    expect(String(await body(await passing(ORIGIN, facts), octets))).toContain("real");
  });
  it("trailers never", async () => {
    const filter = await passing(ORIGIN, request({ method: "POST", body: { kind: "chunked" } }));
    expect(filter.requestTrailers(["X-Sum", `a ${P}`])).toMatchObject({ status: 403 });
    expect(filter.requestTrailers(["X-Sum", "a"])).toEqual(["X-Sum", "a"]);
  });
});

describe("test 36: what comes back from a host that may have it", () => {
  const forms = (): [string, string][] => [
    ["raw", VALUE], ["percent", encodeURIComponent(VALUE)], ["JSON", JSON.stringify(VALUE).slice(1, -1)], ["JSON with \\/", JSON.stringify(VALUE).slice(1, -1).replaceAll("/", "\\/")], ["JSON, all", [...VALUE].map((char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`).join("")],
    ["HTML", VALUE.replaceAll("&", "&amp;").replaceAll('"', "&quot;")], ["HTML, Go", VALUE.replaceAll("&", "&amp;").replaceAll('"', "&#34;").replaceAll("+", "&#43;")], ["HTML, mustache.js", VALUE.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("/", "&#x2F;")],
    ["form", new URLSearchParams({ k: VALUE }).toString().slice(2)], ["form, twice", encodeURIComponent(new URLSearchParams({ k: VALUE }).toString().slice(2))], ["blanks of a form alone", VALUE.replaceAll(" ", "+")], ["base64", Buffer.from(VALUE).toString("base64")], ["base64, 1 before", Buffer.from(`x${VALUE}`).toString("base64")], ["base64, 2 before", Buffer.from(`xy${VALUE}zz`).toString("base64url")],
  ];
  it("answers are asked for whole and in the clear", async () => {
    const { fields } = await passing(ORIGIN, withFields("Accept-Encoding", "gzip, br", "Range", "bytes=0-0", "If-Range", "x", "grpc-accept-encoding", "gzip"));
    expect(fields).toEqual(["Host", "origin.test", "X-First", "1", "X-Last", "2", "Accept-Encoding", "identity", "grpc-accept-encoding", "identity"]);
    const elsewhere = await passing(EVIL, withFields("Accept-Encoding", "gzip", "Range", "bytes=0-0"));
    expect(elsewhere.fields).toContain("bytes=0-0");
    expect(elsewhere.responseBody()).toBeNull();
  });
  it("status text, fields, interim answers, trailers: the placeholder instead; digests go", async () => {
    const filter = await passing(ORIGIN, request());
    const head = filter.responseHead(401, `no ${VALUE}`, ["Location", `https://x/?k=${encodeURIComponent(VALUE)}`, "Set-Cookie", `t=${VALUE}`, "Content-Digest", "x", "Digest", "x", "Accept-Ranges", "bytes", "Content-Length", "5"]);
    expect(head).toEqual({ phrase: `no ${P}`, fields: ["Location", `https://x/?k=${P}`, "Set-Cookie", `t=${P}`, "Content-Length", "5"] });
    expect(filter.responseHead(103, "Early Hints", ["Link", `<${VALUE}>`])).toEqual({ phrase: "Early Hints", fields: ["Link", `<${P}>`] });
    expect(filter.responseTrailers(["X-T", VALUE, "X-U", "u"])).toEqual(["X-T", P, "X-U", "u"]);
    expect(filter.responseHead(200, "OK", [VALUE.replaceAll(/[^a-z]/g, ""), "1"])).not.toBeNull();
    for (const [form, text] of forms()) assertNowhere(VALUE, { texts: { [form]: JSON.stringify(filter.responseHead(200, text, ["X", text])) } });
  });
  it("bodies, in every form, at every split; also of an answer to a request without the secret", async () => {
    for (const [form, text] of forms()) {
      const whole = Buffer.from(`{"a":"${text}"}`);
      for (let at = 1; at < whole.length; at++) {
        const filter = await passing(ORIGIN, request());
        expect(filter.responseHead(200, "OK", [])).not.toBeNull();
        const got = await answered(filter, [whole.subarray(0, at), whole.subarray(at)]);
        assertNowhere(VALUE, { texts: { [`${form} at ${at}`]: got } });
        expect(got.startsWith('{"a":"')).toBe(true);
        expect(got.endsWith('"}')).toBe(true);
        if (!form.startsWith("base64")) expect(got).toBe(`{"a":"${P}"}`);
        else expect(got.length).toBe(whole.length);
      }
    }
  });
  it("coded answers are decoded; what cannot be looked through is stopped", async () => {
    for (const [coding, encode] of [["gzip", gzipSync], ["deflate", deflateSync], ["br", brotliCompressSync]] as const) {
      const filter = await passing(ORIGIN, request());
      expect(filter.responseHead(200, "OK", ["Content-Encoding", coding, "X", "y"])?.fields).toEqual(["X", "y"]);
      expect(filter.responseBody()?.changesLength).toBe(true);
      const coded = encode(Buffer.from(`a ${VALUE} b`));
      expect(await answered(filter, [coded.subarray(0, 7), coded.subarray(7)])).toBe(`a ${P} b`);
      for (const broken of [coded.subarray(0, -6), Buffer.from("not coded at all, but long enough to be noticed")]) {
        const again = await passing(ORIGIN, request());
        again.responseHead(200, "OK", ["Content-Encoding", coding]);
        await expect(answered(again, [broken])).rejects.toThrow();
      }
    }
    // What stands behind is left out, and the answer ends: some far sides pad.
    for (const [coding, encode] of [["gzip", gzipSync], ["deflate", deflateSync], ["br", brotliCompressSync]] as const) {
      const coded = encode(Buffer.from(`a ${VALUE} b`));
      for (const pieces of [[coded, Buffer.alloc(3), Buffer.alloc(3)], [Buffer.concat([coded, Buffer.alloc(3)])], []]) {
        const padded = await passing(ORIGIN, request());
        padded.responseHead(200, "OK", ["Content-Encoding", coding]);
        expect(await answered(padded, pieces)).toBe(pieces.length === 0 ? "" : `a ${P} b`);
      }
    }
    const filter = await passing(ORIGIN, request());
    for (const fields of [["Content-Encoding", "zstd"], ["Content-Encoding", "gzip, gzip"], ["grpc-encoding", "gzip"]]) expect(filter.responseHead(200, "OK", fields)).toBeNull();
    expect(filter.responseHead(206, "Partial Content", [])).toBeNull();
    expect(filter.responseHead(304, "Not Modified", ["Content-Encoding", "zstd"])).not.toBeNull();
    expect(secrets.counters()["TOKEN"]?.stopped).toBe(4);
  });
  it("a bomb ends", async () => {
    const filter = await passing(ORIGIN, request());
    filter.responseHead(200, "OK", ["Content-Encoding", "gzip"]);
    await expect(answered(filter, [gzipSync(Buffer.alloc(200 << 20))])).rejects.toThrow(/measure/);
  });
  it("with placeholders of the same length, lengths stay", async () => {
    environment["LONG"] = "v/&%".repeat(15);
    await open(secretSpec("TOKEN", { from: { kind: "env", variable: "LONG" }, placeholder: { prefix: "", sameLength: true, jwt: false } }));
    const value = environment["LONG"];
    for (const text of [value, encodeURIComponent(value), Buffer.from(value).toString("base64")]) {
      const filter = await passing(ORIGIN, request());
      filter.responseHead(200, "OK", []);
      expect(filter.responseBody()?.changesLength).toBe(false);
      const got = await answered(filter, [`<${text}>`]);
      expect(got.length).toBe(text.length + 2);
      assertNowhere(value, { texts: { got } });
    }
  });
  it("test 38: former values too, for the grace time", async () => {
    let time = 0;
    environment["TOKEN"] = "former-value-3";
    const clock = { now: () => time };
    secrets = await SandboxSecrets.open([secretSpec("TOKEN", { ttl: 1 })], { path: null, environment, clock });
    P = secrets.environment()["TOKEN"] as string;
    environment["TOKEN"] = "new-value-number-4";
    time = 1_000;
    expect((await passing(ORIGIN, withFields("authorization", P))).fields).toContain("new-value-number-4");
    expect(secrets.environment()["TOKEN"]).toBe(P);
    expect(await answered(await passing(ORIGIN, request()), ["former-value-3 new-value-number-4"])).toBe(`${P} ${P}`);
  });
  it("test 38: a value that came while the answer was under way", async () => {
    let time = 0;
    environment["TOKEN"] = "former-value-3";
    secrets = await SandboxSecrets.open([secretSpec("TOKEN", { ttl: 1 })], { path: null, environment, clock: { now: () => time } });
    P = secrets.environment()["TOKEN"] as string;
    const filter = await passing(ORIGIN, request()), head = await passing(ORIGIN, request()), socket = await passing(ORIGIN, withFields("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="));
    filter.responseHead(200, "OK", []);
    const { transform } = filter.responseBody() as { transform: Duplex };
    const { toGuest } = socket.tunnel?.() as { toGuest: Duplex };
    const frame = (text: string): Buffer => Buffer.concat([Buffer.of(0x81, text.length), Buffer.from(text)]);
    let got = "", framed = "";
    transform.on("data", (piece: Buffer) => { got += piece.toString("latin1"); });
    toGuest.on("data", (piece: Buffer) => { framed += piece.toString("latin1"); });
    transform.write("one former-value-3 two ");
    toGuest.write(frame("hello"));
    environment["TOKEN"] = "new-value-number-4";
    time = 1_000;
    expect((await passing(ORIGIN, withFields("authorization", P))).fields).toContain("new-value-number-4");
    const over = [new Promise((resolve) => transform.once("end", resolve)), new Promise((resolve) => toGuest.once("error", resolve))];
    transform.end("three new-value-number-4");
    toGuest.end(frame("new-value-number-4"));
    await Promise.all(over);
    expect(got).toBe(`one ${P} two three ${P}`);
    expect(framed).toContain("hello");
    expect(framed).not.toContain("new-value");
    expect(head.responseHead(200, "OK", ["X-Echo", "new-value-number-4"])?.fields).toEqual(["X-Echo", P]);
  });
  it("of a secret that was removed, for the grace time", async () => {
    let time = 0;
    environment["TOKEN"] = "removed-value-3";
    secrets = await SandboxSecrets.open([secretSpec("TOKEN")], { path: null, environment, clock: { now: () => time } });
    P = secrets.environment()["TOKEN"] as string;
    await secrets.replace([]);
    expect(await answered(await passing(ORIGIN, request()), ["<removed-value-3>"])).toBe(`<${P}>`);
    expect(await answered(await passing(EVIL, request()), ["<removed-value-3>"])).toBe("<removed-value-3>");
    time = GRACE_MS + 1;
    expect(await answered(await passing(ORIGIN, request()), ["<removed-value-3>"])).toBe("<removed-value-3>");
  });
  it("of a host that had it once: a policy that allows fewer hosts or other ports takes nothing back of what they know", async () => {
    const hosts = (...names: string[]): Partial<SecretSpec> => ({ allowedHosts: names.map(pattern) });
    await open(secretSpec("TOKEN", hosts("origin.test", "former.test")));
    const former: Gate = { ...ORIGIN, labels: ["former", "test"] };
    expect((await passing(former, withFields("authorization", P))).fields).toContain(VALUE);
    for (const narrowed of [[secretSpec("TOKEN", hosts("origin.test"))], [secretSpec("TOKEN", { ...hosts("former.test"), ports: [8443] })], [], [secretSpec("TOKEN", hosts("origin.test"))]]) {
      await secrets.replace(narrowed);
      expect(await stopped(former, withFields("authorization", P))).toMatchObject({ status: 403 });
      const filter = await passing(former, request());
      expect(filter.fields).toEqual([...request().fields, "Accept-Encoding", "identity"]);
      expect(await answered(filter, [`<${VALUE}>`])).toBe(`<${P}>`);
      expect(filter.responseHead(200, "OK", ["X-Echo", VALUE])?.fields).toEqual(["X-Echo", P]);
    }
    expect(await answered(await passing(EVIL, request()), [`<${VALUE}>`])).toBe(`<${VALUE}>`);
    expect(await answered(await passing({ ...former, port: 444 }, request()), [`<${VALUE}>`])).toBe(`<${VALUE}>`);
  });
  it("of a host that had it under a former agent too; one whose value nobody knows any more is asked and answered as any other", async () => {
    const folder = mkdtempSync(join(tmpdir(), "enforcer-secrets-")), path = join(folder, "t.placeholders");
    let time = 0;
    const begin = (...specs: SecretSpec[]): Promise<SandboxSecrets> => SandboxSecrets.open(specs, { path, environment: { TOKEN: VALUE }, clock: { now: () => time } });
    const spec = (name: string): SecretSpec => secretSpec("TOKEN", { allowedHosts: [pattern(name)] });
    const ranged = request({ fields: ["Host", "origin.test", "Range", "bytes=0-9"] });
    try {
      for (const former of [ORIGIN, { ...ORIGIN, labels: ["a", "wild", "test"] }]) {
        // One agent, a policy that moves the secret, another agent with that policy, which takes it away for a while.
        secrets = await begin(spec(former === ORIGIN ? "origin.test" : "*.wild.test"));
        await secrets.replace([spec("evil.test")]);
        secrets = await begin(spec("evil.test"));
        P = secrets.environment()["TOKEN"] as string;
        expect(await answered(await passing(former, request()), [`<${VALUE}>`])).toBe(`<${P}>`);
        expect(await answered(await passing({ ...former, port: 444 }, request()), [`<${VALUE}>`])).toBe(`<${VALUE}>`);
        await secrets.replace([]);
        time += GRACE_MS + 1;
        expect((await passing(former, ranged)).fields).toContain("bytes=0-9");
        secrets = await begin();
        expect((await passing(former, ranged)).fields).toContain("bytes=0-9");
        await secrets.replace([spec("evil.test")]);
        expect((await passing(former, ranged)).fields).not.toContain("bytes=0-9");
        expect(await answered(await passing(former, request()), [`<${VALUE}>`])).toBe(`<${P}>`);
      }
      assertNowhere(VALUE, { files: [folder] });
      expect(statSync(path).mode & 0o777).toBe(0o600);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
  it("a CONNECT that is refused: what is said is no WebSocket's octets", async () => {
    const connect = (): Promise<ExchangeFilter> => passing(ORIGIN, request({ method: "CONNECT", body: { kind: "chunked" } }));
    const refused = await connect();
    refused.responseHead(403, "", []);
    expect(await answered(refused, [`\n\u0003no ${OTHER} here`])).toBe(`\n\u0003no ${Q} here`);
    const agreed = await connect();
    agreed.responseHead(200, "", []);
    await expect(answered(agreed, [`no ${OTHER} here`])).rejects.toThrow("WebSocket");
  });
});

describe("without secrets", () => {
  it("nothing is done", async () => {
    const none = await SandboxSecrets.open([], { path: null });
    expect(none.exchange(ORIGIN, request())).toBeNull();
  });
});
