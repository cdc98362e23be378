/**
 * Far sides that do not speak what the guest does, whose certificates do not hold, or that want one of the guest: from a guest on a
 * real tap. Tests 10, 11 and 17 of TLS, row A44 of docs/THREATS.md; each kind in detail is in test/unit/http-upstream.test.ts.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Service, until, type World } from "../lib/world.mjs";
import { ODD_KINDS, OddRoot } from "../lib/odd-certificates.js";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { byDns, openWorld, type Origin, ORIGINS } from "./tls-world.js";

const VALUE = "sk-realvalue-0123456789-abcdefghijklmnopqrstuv";
const ODDS = ODD_KINDS.map((kind, i) => ({ kind, name: `odd${i}.example` }));
const MUTUAL = (["TLSv1.2", "TLSv1.3"] as const).map((version) => ({ version, name: `mutual-${version === "TLSv1.2" ? 12 : 13}.example` }));
/** By name, what of ALPN it speaks; null: it does not answer. */
const SPEAKS = { "h1.example": ["http/1.1"], "none.example": null, "h2.example": ["h2"], "both.example": ["h2", "http/1.1"] } as const;
const OPAQUE = "opaque.example", LATE = "late.example", BYPASSED = "bypassed.example";
const names = [...ODDS.map(({ name }) => name), ...MUTUAL.map(({ name }) => name), ...Object.keys(SPEAKS), OPAQUE, LATE, BYPASSED];
const addressOf = (name: string): string => `93.184.216.${100 + names.indexOf(name)}`;

let world: World, origin: Service, agent: TestAgent, watcher: Awaited<ReturnType<TestAgent["watch"]>>, ca: string, own: string, placeholder: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld({
    script: ORIGINS, internet: names.map(addressOf), zone: Object.fromEntries(names.map((name) => [name, { A: [addressOf(name)] }])),
    prepare: (dir) => {
      const root = new OddRoot(dir);
      const at = (name: string, tls: object, alpn?: readonly string[]): Origin => ({ name, address: addressOf(name), ...(alpn === undefined ? {} : { alpn }), tls });
      const mutual = (name: string, version: string): Origin => at(name, { ...root.good(name), requestCert: true, rejectUnauthorized: true, ca: root.certificate, minVersion: version, maxVersion: version }, ["h2", "http/1.1"]);
      const guests = root.good("guest.example");
      writeFileSync(path.join(dir, "guest.pem"), guests.cert);
      writeFileSync(path.join(dir, "guest.key"), guests.key, { mode: 0o600 });
      writeFileSync(path.join(dir, "origins.json"), JSON.stringify([
        ...ODDS.map(({ kind, name }) => at(name, { ...root.odd(kind, name), ciphers: "DEFAULT:@SECLEVEL=0" }, ["h2", "http/1.1"])),
        ...MUTUAL.map(({ name, version }) => mutual(name, version)), mutual(BYPASSED, "TLSv1.3"),
        ...Object.entries(SPEAKS).map(([name, alpn]) => at(name, root.good(name), alpn ?? undefined)),
        { ...at(LATE, { ...root.good(LATE), ca: root.certificate, maxVersion: "TLSv1.2" }, ["http/1.1"]), renegotiates: true },
        at(OPAQUE, root.good(OPAQUE), ["acme-tls/1"]),
      ] satisfies Origin[]));
    },
  }));
  own = path.join(world.dir, "odd-root.pem");
  writeFileSync(path.join(world.dir, "token"), `${VALUE}\n`, { mode: 0o600 });
  agent = await TestAgent.start(world);
  watcher = await agent.watch();
  const text = `
rules:
${names.map((name) => `  - allow: ${name}`).join("\n")}
tls: {intercept: true, upstream_ca: [odd-root.pem], bypass: [${OPAQUE}, ${BYPASSED}]}
secrets:
  KEY: {from: {file: token}, allowed_hosts: [${names.join(", ")}]}
`;
  await agent.client.attach({ tap: "tap0", policy: { file: { path: path.join(world.dir, "policy.yaml"), text } } });
  ca = path.join(world.runDir, "agent", "tap0.ca.pem");
  placeholder = (await agent.client.secrets("tap0")).environment["KEY"] as string;
});
afterAll(async () => {
  await watcher?.end().catch(() => undefined);
  await agent?.service.stop();
  await world?.close();
});

interface Said { event: string; name: string; version?: string; alpn?: string; headers?: Record<string, string> }
/** What the origin of this name saw. */
const saw = (name: string): Said[] => origin.lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Said).filter((said) => said.name === name);
async function guest(command: readonly string[], input?: string): Promise<{ status: number | null; stdout: string; stderr: string }> {
  return world.guest.run(byDns(world, command), { timeoutMs: 60_000, ...(input === undefined ? {} : { input }) });
}
const curl = (...args: string[]): ReturnType<typeof guest> => guest(["curl", "-sS", "--max-time", "30", "--cacert", ca, ...args]);
/** That a refusal was told in these words. */
const told = (name: string, reason: string, words: string | RegExp): Promise<unknown> =>
  until(`${reason} ${words} in ${JSON.stringify(watcher.events)}`, () => watcher.events.find((event) => event.event === "tls-denied" && event["name"] === name && event["reason"] === reason && String(event["text"]).search(words) !== -1));

test.each(["h1.example", "none.example"])("TLS test 10: a client of HTTP/2 alone at %s, which speaks HTTP/1.1 alone: alert 120, and it is told why", async (name) => {
  const { stdout, stderr } = await guest(["openssl", "s_client", "-connect", `${name}:443`, "-servername", name, "-CAfile", ca, "-alpn", "h2"], "");
  expect(stdout + stderr).toMatch(/alert number 120/);
  const nghttp = await guest(["nghttp", `https://${name}/`]);
  expect(nghttp.stdout + nghttp.stderr).not.toContain("origin");
  expect(saw(name).filter(({ event }) => event === "request")).toEqual([]);
  await told(name, "upstream-alpn", "speaks none of the protocols that the client offered");
});

test.each([["h1.example", "1.1"], ["none.example", "1.1"], ["h2.example", "2"], ["both.example", "2"]])("TLS test 10: a client of both at %s: HTTP/%s from end to end", async (name, version) => {
  const { stdout, stderr } = await curl("--http2", "-w", " %{http_version}", `https://${name}/v`);
  expect([stderr, stdout]).toEqual(["", `origin ${name} ${version === "2" ? "2.0" : version} /v ${version}`]);
});

test("TLS test 10: a client of HTTP/1.1 alone, or without ALPN, at a server of HTTP/2 alone gets no translation", async () => {
  const both = saw("both.example").length;
  for (const args of [["--http1.1"], ["--no-alpn"]]) expect((await curl(...args, "-w", " %{http_version}", "https://both.example/v")).stdout).toBe("origin both.example 1.1 /v 1.1");
  expect(saw("both.example").length).toBeGreaterThan(both);
  const { stdout, stderr } = await guest(["openssl", "s_client", "-connect", "h2.example:443", "-servername", "h2.example", "-CAfile", ca, "-alpn", "http/1.1"], "");
  expect(stdout + stderr).toMatch(/alert number 120/);
  expect(saw("h2.example").filter(({ event, version }) => event === "request" && version !== "2.0")).toEqual([]);
});

test("TLS test 10: acme-tls/1 alone is refused without a word to the server, and passes where the host is in bypass", async () => {
  const alpn = (name: string, trusted: string): ReturnType<typeof guest> => guest(["openssl", "s_client", "-connect", `${name}:443`, "-servername", name, "-CAfile", trusted, "-verify_return_error", "-alpn", "acme-tls/1"], "");
  for (const name of ["h1.example", "both.example"]) {
    const before = saw(name).length;
    const { stdout, stderr } = await alpn(name, ca);
    expect(stdout + stderr).toMatch(/alert number 120/);
    expect(saw(name).length).toBe(before);
    await told(name, "upstream-alpn", /offers neither h2 nor http\/1\.1.* under tls\.bypass/);
  }
  expect((await alpn(OPAQUE, own)).stdout).toMatch(/ALPN protocol: acme-tls\/1/);
  await until("the origin's own handshake", () => saw(OPAQUE).some(({ event, alpn: chosen }) => event === "secure" && chosen === "acme-tls/1"));
});

test.each(ODDS)("A44, TLS test 11: a certificate that does not hold ($kind): 502 with the reason, no request, and no secret leaves", async ({ name }) => {
  for (const version of ["--http1.1", "--http2"]) {
    const { stdout } = await curl(version, "-w", "%{http_code}", "-H", `Authorization: Bearer ${placeholder}`, `https://${name}/key`);
    expect(stdout).toMatch(/upstream-untrusted[^]*502$/);
    expect(stdout).toContain(name);
  }
  await told(name, "upstream-untrusted", `the certificate of ${name} does not hold`);
  const events = saw(name).map(({ event }) => event);
  expect(events).toContain("connection");
  expect(events.filter((event) => event === "secure" || event === "request")).toEqual([]);
});

test("TLS test 11: the same root's good certificate gets the request with the secret; there is no way to do without verification", async () => {
  expect((await curl("-H", `Authorization: Bearer ${placeholder}`, "https://h1.example/key")).stdout).toContain("origin h1.example");
  expect(saw("h1.example").at(-1)?.headers?.["authorization"]).toBe(`Bearer ${VALUE}`);
  for (const key of ["verify_upstream: false", "insecure: [h1.example]", "verify: false"]) {
    const text = `rules: [{allow: h1.example}]\ntls: {intercept: true, ${key}}\n`;
    await expect(agent.client.setPolicy("tap0", { file: { path: path.join(world.dir, "policy.yaml"), text } })).rejects.toMatchObject({ code: expect.stringMatching(/^E_/) as unknown });
  }
});

test.each(MUTUAL)("TLS test 17: a server that wants a client's certificate ($version): 502 that names tls.bypass, and no request is answered", async ({ name }) => {
  for (const version of ["--http1.1", "--http2"]) {
    const { stdout } = await curl(version, "-w", "%{http_code}", "-H", `Authorization: Bearer ${placeholder}`, "--cert", path.join(world.dir, "guest.pem"), "--key", path.join(world.dir, "guest.key"), `https://${name}/key`);
    expect(stdout).toMatch(/client certificate[^]*tls\.bypass[^]*502$/);
  }
  await told(name, "upstream-failed", /client certificate.*tls\.bypass/);
  expect(saw(name).filter(({ event }) => event === "secure" || event === "request")).toEqual([]);
});

test("A43, TLS test 17: a server that wants it by renegotiation gets none: 502 that names tls.bypass", async () => {
  const { stdout } = await curl("-w", "%{http_code}", `https://${LATE}/key`);
  expect(stdout).toMatch(/client certificate[^]*tls\.bypass[^]*502$/);
  await told(LATE, "upstream-failed", /client certificate.*tls\.bypass/);
  expect(saw(LATE).map(({ event }) => event)).not.toContain("renegotiated");
});

test("TLS test 17: where it is in bypass the guest's certificate arrives, and without one the server's own refusal", async () => {
  const pair = ["--cert", path.join(world.dir, "guest.pem"), "--key", path.join(world.dir, "guest.key")];
  expect((await guest(["curl", "-sS", "--max-time", "30", "--cacert", own, ...pair, `https://${BYPASSED}/m`])).stdout).toBe(`origin ${BYPASSED} 2.0 /m`);
  // It says nothing by itself, so that the alert is what it gets and not the reset of what was on its way.
  const refused = await guest(["openssl", "s_client", "-connect", `${BYPASSED}:443`, "-servername", BYPASSED, "-CAfile", own, "-ign_eof"], "");
  expect(refused.stdout + refused.stderr).toMatch(/alert number 116/);
});
