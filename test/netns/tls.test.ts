/**
 * The name on the wire is the name that was allowed: from a guest on a real tap, with curl, openssl and Node as clients and
 * real servers in the internet. Rows A37, A39–A42, A45, A46 of docs/THREATS.md.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Enforcer, type Service, type World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks
import { dialled, openWorld, tell } from "./tls-world.js";

interface Got { status: number | null; out: string; err: string }
async function curl(world: World, ...args: string[]): Promise<Got> {
  const { status, stdout, stderr } = await world.guest.run(["curl", "-sS", "--max-time", "10", ...args], { timeoutMs: 20_000 });
  return { status, out: stdout, err: stderr };
}
const at = (name: string, address: string, port = 443): string => `${name}:${port}:${address.includes(":") ? `[${address}]` : address}`;
const families = [["IPv4", ADDRESS.site4], ["IPv6", ADDRESS.site6]] as const;

describe("names verified, nothing decrypted", () => {
  let world: World, origin: Service, enforcer: Enforcer;
  let ca: string;

  beforeAll(async () => {
    ({ world, origin } = await openWorld());
    ca = path.join(world.dir, "root.pem");
    enforcer = await world.enforce({ policy: "rules:\n  - {allow: shop.example, proto: tcp, ports: [80, 443, 8081]}\n  - {allow: tenant.example}\n" });
    await tell(world, "shop.example");
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });
  const fromEnforcer = (reason: string): Promise<unknown> => enforcer.service.line((line) => line.includes(`"reason":"${reason}"`));

  test.each(families)("an allowed name passes, with HTTP/2 and HTTP/1.1, and is answered by the origin itself (%s)", async (_family, address) => {
    for (const version of ["--http1.1", "--http2"]) {
      const got = await curl(world, version, "--cacert", ca, "--resolve", at("shop.example", address), "https://shop.example/x");
      expect(got).toMatchObject({ status: 0, out: "origin shop.example /x" });
    }
  });

  test.each(families)("A40 the name of another tenant on the pinned address is refused (%s)", async (_family, address) => {
    const before = origin.lines.length;
    const got = await curl(world, "-k", "--resolve", at("other.example", address), "https://other.example/");
    expect(got.status).toBe(35);
    expect(got.err).toMatch(/unrecognized name/i);
    await fromEnforcer("name-denied");
    expect(origin.lines.length).toBe(before);
  });

  test.each(families)("A40, TLS test 7: an allowed name that was not told for the address is refused, and the far side is not even dialled (%s)", async (_family, address) => {
    const before = await dialled(world);
    const got = await curl(world, "-k", "--resolve", at("tenant.example", address), "https://tenant.example/");
    expect(got.status).toBe(35);
    await fromEnforcer("not-pinned");
    expect(await dialled(world)).toBe(before);
  });

  test("A40, TLS test 5: no server name, and A45 no TLS at all, are refused", async () => {
    const silent = await world.guest.run(["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-noservername"], { input: "", timeoutMs: 15_000 });
    expect(silent.stderr + silent.stdout).toMatch(/alert number 112|unrecognized/i);
    await fromEnforcer("no-name");
    const plain = await world.guest.run([process.execPath, "-e", `
      const socket = require("node:net").connect(443, "${ADDRESS.site4}", () => socket.write("SSH-2.0-x\\r\\n"));
      socket.on("error", (error) => console.log(error.code)); socket.on("end", () => console.log("end")); socket.on("data", (data) => console.log("data"));`], { timeoutMs: 15_000 });
    expect(plain.stdout.trim()).toBe("ECONNRESET");
    await fromEnforcer("not-tls");
  });

  test("A39 a hello in one-octet segments is the same hello", async () => {
    const script = `
      const tls = require("node:tls"), net = require("node:net"), { Duplex } = require("node:stream");
      const raw = net.connect({ port: 443, host: "${ADDRESS.site4}", noDelay: true });
      let slow = true;
      const stream = new Duplex({
        read() {}, async write(chunk, _, done) { if (!slow) return raw.write(chunk, done); slow = false; for (const octet of chunk) await new Promise((next) => raw.write(Buffer.of(octet), () => setImmediate(next))); done(); },
      });
      raw.on("data", (chunk) => stream.push(chunk)); raw.on("end", () => stream.push(null)); raw.on("error", (error) => { console.log(error.code); process.exit(); });
      const socket = tls.connect({ socket: stream, servername: process.argv[1], ca: require("node:fs").readFileSync("${ca}"), checkServerIdentity: () => undefined }, () => { console.log("secure"); process.exit(); });
      socket.on("error", (error) => { console.log(error.code ?? error.message); process.exit(); });`;
    expect((await world.guest.run([process.execPath, "-e", script, "shop.example"], { timeoutMs: 20_000 })).stdout.trim()).toBe("secure");
    expect((await world.guest.run([process.execPath, "-e", script, "other.example"], { timeoutMs: 20_000 })).stdout.trim()).not.toBe("secure");
  });

  test.each(families)("plain HTTP goes by Host, each request of a connection (%s)", async (_family, address) => {
    const host = address.includes(":") ? `[${address}]` : address;
    const allowed = await curl(world, "--resolve", at("shop.example", address, 80), "http://shop.example/");
    expect(allowed).toMatchObject({ status: 0 });
    expect(allowed.out).toContain("internet");
    const other = await curl(world, "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: other.example", `http://${host}/`);
    expect(other.out).toBe("421");
    await fromEnforcer("host-denied");
  });

  test("ports that nobody looks into pass by address alone, untouched", async () => {
    expect((await curl(world, "--resolve", at("shop.example", ADDRESS.site4, 8081), "http://shop.example:8081/y")).out).toBe("origin shop.example:8081 /y");
  });

  test.each(families)("A46 QUIC is refused at once (%s)", async (_family, address) => {
    expect((await world.guest.probe(["udp", address, "443", "quic"], 3000)).saw).toMatch(/refused/i);
    await fromEnforcer("quic");
  });

  test("half-close and a large transfer pass through", async () => {
    const got = await curl(world, "--http1.1", "--cacert", ca, "--resolve", at("shop.example", ADDRESS.site4), "--data-binary", `@${process.execPath}`, "https://shop.example/up");
    expect(got.out).toBe("origin shop.example /up");
    const { octets } = JSON.parse(origin.lines.at(-1) as string) as { octets: number };
    expect(octets).toBe(readFileSync(process.execPath).length);
  });
});

describe("interception", () => {
  let world: World, origin: Service, enforcer: Enforcer;
  let ca: string;

  beforeAll(async () => {
    ({ world, origin } = await openWorld());
    enforcer = await world.enforce({ policy: `
rules:
  - {allow: shop.example, methods: [GET, PUT], paths: [/public/**, /x]}
  - allow: tenant.example
  - allow: bank.example
  - allow: under_score.example
tls: {intercept: true, upstream_ca: [root.pem], bypass: [bank.example]}
` });
    for (const name of ["shop.example", "tenant.example", "bank.example", "under_score.example"]) await tell(world, name);
    ca = path.join(world.runDir, "tap0.ca.pem");
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });

  test.each(families)("requests go through, over HTTP/2 and HTTP/1.1, with the sandbox's own certificate (%s)", async (_family, address) => {
    for (const version of ["--http1.1", "--http2"]) {
      const got = await curl(world, version, "-D", "-", "--cacert", ca, "--resolve", at("shop.example", address), "https://shop.example/x");
      expect(got).toMatchObject({ status: 0 });
      expect(got.out).toContain("origin shop.example /x");
      expect(got.out.toLowerCase()).not.toContain("alt-svc");
    }
  });

  test("TLS test 6: a name with an underscore, in upper case, and with a final dot, has a certificate that clients take", async () => {
    for (const [host, sni] of [["under_score.example", "under_score.example"], ["Under_Score.example", "under_score.example"], ["under_score.example.", "under_score.example"]] as const) {
      const got = await curl(world, "--cacert", ca, "--resolve", at(host, ADDRESS.site4), `https://${host}/u`);
      expect([host, got.err, got.out]).toEqual([host, "", expect.stringMatching(/^origin under_score\.example\.? \/u$/i)]);
      const python = `import socket, ssl
c = ssl.create_default_context(cafile=${JSON.stringify(ca)})
c.verify_flags |= ssl.VERIFY_X509_STRICT
print(c.wrap_socket(socket.create_connection(("${ADDRESS.site4}", 443)), server_hostname="${sni}").getpeercert()["subjectAltName"])`;
      expect((await world.guest.run(["python3", "-c", python], { timeoutMs: 20_000 })).stdout).toBe("(('DNS', 'under_score.example'),)\n");
    }
  });

  test("TLS test 5: no server name is refused, and the far side is not dialled", async () => {
    const before = await dialled(world);
    const silent = await world.guest.run(["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-noservername"], { input: "", timeoutMs: 15_000 });
    expect(silent.stderr + silent.stdout).toMatch(/alert number 112/);
    expect(await dialled(world)).toBe(before);
  });

  test("A42 another Host under an allowed server name is refused, and nothing reaches the origin", async () => {
    for (const version of ["--http1.1", "--http2"]) {
      const before = origin.lines.length;
      const got = await curl(world, version, "--cacert", ca, "--resolve", at("shop.example", ADDRESS.site4), "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: tenant.example", "https://shop.example/x");
      expect(got.out).toBe("421");
      expect(origin.lines.length).toBe(before);
    }
  });

  test("methods and paths are held to the rule, which the answer names", async () => {
    const got = await curl(world, "--cacert", ca, "--resolve", at("shop.example", ADDRESS.site4), "-X", "POST", "-d", "a", "https://shop.example/x");
    expect(got.out).toMatch(/rule 1 .*method/);
    for (const [target, status] of [["/public/a/b", "200"], ["/private", "403"], ["/public/%2e%2e/private", "400"]] as const) {
      expect((await curl(world, "--path-as-is", "--cacert", ca, "--resolve", at("shop.example", ADDRESS.site4), "-o", "/dev/null", "-w", "%{http_code}", `https://shop.example${target}`)).out).toBe(status);
    }
    // A47: by the body of a form, as common frameworks take it.
    const before = origin.lines.length;
    for (const version of ["--http1.1", "--http2"]) {
      const put = (...body: string[]): ReturnType<typeof curl> => curl(world, version, "--cacert", ca, "--resolve", at("shop.example", ADDRESS.site4), "-X", "PUT", ...body, "https://shop.example/x");
      for (const body of [["-d", "a=b&_method=DELETE"], ["-F", "a=b", "-F", "_method=DELETE"], ["-H", "content-type: application/json", "-d", '{"_method":"DELETE"}']]) expect((await put(...body)).out).toMatch(/rule 1 .*method/);
    }
    expect(origin.lines.length).toBe(before);
    expect((await curl(world, "--cacert", ca, "--resolve", at("shop.example", ADDRESS.site4), "-X", "PUT", "-F", "_method=get", "https://shop.example/x")).out).toContain("origin shop.example /x");
  });

  test("a bypassed name shows the origin's own certificate", async () => {
    expect((await curl(world, "--cacert", path.join(world.dir, "root.pem"), "--resolve", at("bank.example", ADDRESS.site4), "https://bank.example/")).out).toBe("origin bank.example /");
    expect((await curl(world, "--cacert", ca, "--resolve", at("bank.example", ADDRESS.site4), "https://bank.example/")).status).toBe(60);
  });

  test("A44 an origin whose certificate does not hold gets no request; the guest gets a 502", async () => {
    await enforcer.stop();
    enforcer = await world.enforce({ policy: "rules: [{allow: shop.example}]\ntls: {intercept: true}\n" });
    await tell(world, "shop.example");
    const before = origin.lines.length;
    const got = await curl(world, "-k", "--resolve", at("shop.example", ADDRESS.site4), "-o", "/dev/null", "-w", "%{http_code}", "https://shop.example/x");
    expect(got.out).toBe("502");
    expect(origin.lines.length).toBe(before);
  });
});
