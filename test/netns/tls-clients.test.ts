/**
 * Clients as guests have them, behind a real tap, finding names by DNS and trusting the sandbox's CA and nothing else: test 12 of TLS.
 * What they do in detail is in test/unit/http-clients.test.ts; browsers and rustls are in test/browsers.
 */
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { goClient } from "../lib/clients.js";
import { type Enforcer, type Service, type World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks
import { byDns, openWorld } from "./tls-world.js";

const NAME = "shop.example", URL = `https://${NAME}/c`, SERVED = `origin ${NAME} /c`;
const CLIENTS = path.join(import.meta.dirname, "../clients");
let world: World, origin: Service, enforcer: Enforcer, ca: string, go: string;
beforeAll(async () => {
  [{ world, origin }, go] = await Promise.all([openWorld(), goClient()]);
  enforcer = await world.enforce({ policy: `rules: [{allow: ${NAME}}]\ntls: {intercept: true, upstream_ca: [root.pem]}\n` });
  ca = path.join(world.runDir, "tap0.ca.pem");
});
afterAll(async () => {
  await enforcer?.stop();
  await world?.close();
});

/** @param clock what the guest's clock is off by, as faketime has it. */
async function guest(command: readonly string[], { input = "", clock = null as string | null } = {}): Promise<{ status: number | null; stdout: string; stderr: string }> {
  return world.guest.run(byDns(world, clock === null ? command : ["faketime", "-f", clock, ...command]), { input, timeoutMs: 60_000 });
}
const request = `GET /c HTTP/1.1\r\nHost: ${NAME}\r\nConnection: close\r\n\r\n`;
const python = (trusted: string): string[] => ["python3", "-c", `
import ssl, sys, urllib.request
c = ssl.create_default_context(cafile=sys.argv[1])
c.verify_flags |= ssl.VERIFY_X509_STRICT
print(urllib.request.urlopen(sys.argv[2], context=c).read().decode(), end="")`, trusted, URL];
const node = (trusted: string): string[] => [process.execPath, "-e", `
  const [ca, url] = process.argv.slice(1);
  require("node:https").get(url, { ca: require("node:fs").readFileSync(ca) }, (answer) => answer.pipe(process.stdout));`, trusted, URL];
const curl = (trusted: string, ...more: string[]): string[] => ["curl", "-sS", "--max-time", "30", "--cacert", trusted, ...more, URL];
const openssl = (trusted: string, version: string): string[] => ["openssl", "s_client", "-connect", `${NAME}:443`, "-servername", NAME, "-CAfile", trusted, "-verify_return_error", "-verify_hostname", NAME, "-x509_strict", "-quiet", "-ign_eof", version];
const gnutls = (trusted: string, version: string): string[] => ["gnutls-cli", "--x509cafile", trusted, "--no-ocsp", "--priority", `NORMAL:-VERS-ALL:+VERS-TLS${version}`, "--alpn", "http/1.1", NAME];
const wget = (trusted: string): string[] => ["wget", "-q", "-O", "-", "--tries=1", `--ca-certificate=${trusted}`, URL];

describe.each<[string, (trusted: string) => string[], string?]>([
  ["curl, HTTP/1.1", (trusted) => curl(trusted, "--http1.1")],
  ["curl, HTTP/2", (trusted) => curl(trusted, "--http2")],
  ["openssl s_client, TLS 1.2", (trusted) => openssl(trusted, "-tls1_2"), request],
  ["openssl s_client, TLS 1.3", (trusted) => openssl(trusted, "-tls1_3"), request],
  ["gnutls-cli, TLS 1.2", (trusted) => gnutls(trusted, "1.2"), request],
  ["gnutls-cli, TLS 1.3", (trusted) => gnutls(trusted, "1.3"), request],
  ["wget", wget],
  ["python3, strict", python],
  ["Node", node],
])("%s", (_client, command, input = "") => {
  test("TLS test 12: is served, and refuses what another CA has signed", async () => {
    const { stdout, stderr } = await guest(command(ca), { input });
    expect([stdout, stderr].join("\n")).toContain(SERVED);
    const before = origin.lines.length;
    const other = await guest(command(path.join(world.dir, "root.pem")), { input });
    expect([other.stdout, other.stderr].join("\n")).not.toContain(SERVED);
    expect(origin.lines.length).toBe(before);
  });
  // Certificates begin a day before they are made and end seven days after.
  test.each(["-5m", "-12h", "+6d"])("TLS test 12: is served by a guest whose clock is off by %s", async (clock) => {
    const { stdout, stderr } = await guest(command(ca), { input, clock });
    expect([stdout, stderr].join("\n")).toContain(SERVED);
  });
});

test.each(["-2d", "+9d"])("TLS test 12: control: a clock that is off by %s is seen by curl and by python3", async (clock) => {
  for (const command of [curl(ca), python(ca)]) expect((await guest(command, { clock })).stderr).toMatch(/expired|not yet valid/i);
});

/** Some name the port in Host as their URL does. */
const lines = (text: string): string[] => text.trim().replaceAll(":443", "").split("\n");
test.each([["h1", "HTTP/1.1"], ["h2", "HTTP/2.0"]])("TLS test 12: Go, %s", async (what, version) => {
  const { stdout, stderr } = await guest([go, NAME, "443", ca, what]);
  expect(stderr).toBe("");
  expect(lines(stdout)).toEqual([...[0, 1, 2].map((i) => `${version} 200 origin ${NAME} /${i}`), `up 200 origin ${NAME} /up trailer`]);
});

test.each(["HTTP_1_1", "HTTP_2"])("TLS test 12: Java, %s", async (version) => {
  const { stdout, stderr } = await guest(["java", path.join(CLIENTS, "Client.java"), NAME, "443", ca, version]);
  expect(stderr).toBe("");
  expect(lines(stdout)).toEqual([0, 1, 2].map((i) => `${version} 200 origin ${NAME} /${i}`));
});
