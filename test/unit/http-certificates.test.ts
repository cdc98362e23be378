/** Certificates of a sandbox (TLS.md tests 12, 13, 14, 15; A22, A43): what strict verifiers say, the store, bounds, renewal, tickets. */
import { execFileSync, spawnSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect as netConnect, createServer as createNetServer, type AddressInfo, type Server as NetServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as tlsConnect, type ConnectionOptions, type TLSSocket } from "node:tls";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { parseAddress, type Address } from "../../src/addresses/address.js";
import { AUTHORITY_MS, CertificateAuthority, LEAF_MS, type LeafSubject } from "../../src/tls/certificates/authority.js";
import { children, oid, readElement, time, unsigned } from "../../src/tls/certificates/der.js";
import { serverHandshake } from "../../src/tls/certificates/handshake.js";
import { SandboxCertificates } from "../../src/tls/certificates/leaves.js";
import { forgetAuthority, keptAuthority, keptCertificate, operatorAuthority } from "../../src/tls/certificates/store.js";
import { helloRecords } from "../lib/hello.js";

const DAY = 86_400_000;
const name = (text: string): LeafSubject => ({ kind: "name", labels: text.split(".") });
const address = (text: string): LeafSubject => ({ kind: "address", address: parseAddress(text) as Address });
let directory: string;
beforeEach(() => { directory = mkdtempSync(join(tmpdir(), "enforcer-ca-")); });
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function file(name: string, content: string): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

describe("DER", () => {
  it("writes minimal integers, object identifiers and times", () => {
    expect(unsigned(Buffer.of(0, 0, 0x80)).toString("hex")).toBe("02020080");
    expect(unsigned(Buffer.of(0)).toString("hex")).toBe("020100");
    expect(oid("1.2.840.113549.1.1.11").toString("hex")).toBe("06092a864886f70d01010b");
    expect(time(Date.UTC(2049, 11, 31, 23, 59, 59)).toString("latin1", 2)).toBe("491231235959Z");
    expect(time(Date.UTC(2050, 0, 1)).toString("latin1", 2)).toBe("20500101000000Z");
  });
  it.each(["", "30", "3080", "308101", "30820001", "3003020101ff".slice(0, 8), "1f8101"])("refuses %j", (hex) => {
    expect(() => children(readElement(Buffer.from(hex, "hex"), 0))).toThrow(RangeError);
  });
});

describe("12: leaves under strict verifiers", () => {
  const subjects: [string, LeafSubject, string[]][] = [
    ["a name", name("api.example.com"), ["-verify_hostname", "api.example.com"]],
    ["an underscore", name("under_score.example.com"), ["-verify_hostname", "under_score.example.com"]],
    ["a name of 253 octets", name([...Array.from({ length: 3 }, (_, i) => `${i}`.repeat(63)), "a".repeat(61)].join(".")), []],
    ["an IPv4 address", address("192.0.2.1"), ["-verify_ip", "192.0.2.1"]],
    ["an IPv6 address", address("2001:db8::1"), ["-verify_ip", "2001:db8::1"]],
  ];
  it.each(subjects)("openssl verify -x509_strict accepts %s, now and with a clock 12 hours behind", (_, subject, options) => {
    const authority = CertificateAuthority.generate("box", Date.now());
    const leaf = authority.issue(subject, Date.now());
    const [ca, cert] = [file("ca.pem", authority.certificate), file("leaf.pem", leaf.certificate)];
    for (const clock of [0, -12 * 3600, 6 * 86_400]) {
      const at = Math.floor(Date.now() / 1000) + clock;
      const out = execFileSync("openssl", ["verify", "-x509_strict", "-purpose", "sslserver", "-attime", String(at), "-CAfile", ca, ...options, cert], { encoding: "utf8" });
      expect(out).toContain("OK");
    }
  });
  it("has one SAN, is no CA, and two leaves never share a serial number", () => {
    const authority = CertificateAuthority.generate("box", Date.now());
    const [one, two] = [authority.issue(name("a.example"), Date.now()), authority.issue(name("a.example"), Date.now())].map((leaf) => new X509Certificate(leaf.certificate)) as [X509Certificate, X509Certificate];
    expect(one.subjectAltName).toBe("DNS:a.example");
    expect(one.ca).toBe(false);
    expect(one.serialNumber).not.toBe(two.serialNumber);
    expect(one.verify(new X509Certificate(authority.certificate).publicKey)).toBe(true);
  });
  it("the CA of one sandbox does not vouch for another's leaves", () => {
    const [mine, other] = [CertificateAuthority.generate("a", Date.now()), CertificateAuthority.generate("b", Date.now())];
    const out = spawnSync("openssl", ["verify", "-CAfile", file("ca.pem", mine.certificate), file("leaf.pem", other.issue(name("a.example"), Date.now()).certificate)], { encoding: "utf8" });
    expect(out.status).not.toBe(0);
  });
});

describe("the store", () => {
  it("keeps key and certificate, the key 0600, and gives the same CA again", () => {
    const first = keptAuthority(directory, "tap/0");
    expect(readdirSync(directory).sort()).toEqual(["tap%2F0.ca.key", "tap%2F0.ca.pem"]);
    expect(statSync(join(directory, "tap%2F0.ca.key")).mode & 0o777).toBe(0o600);
    expect(keptAuthority(directory, "tap/0").certificate).toBe(first.certificate);
    expect(keptCertificate(directory, "tap/0")).toBe(first.certificate);
    forgetAuthority(directory, "tap/0");
    expect(readdirSync(directory)).toEqual([]);
    expect(keptAuthority(directory, "tap/0").certificate).not.toBe(first.certificate);
  });
  it.each(["ca.key", "ca.pem"])("makes a new one of a torn %s", (torn) => {
    const first = keptAuthority(directory, "box");
    writeFileSync(join(directory, `box.${torn}`), "-----BEGIN");
    const second = keptAuthority(directory, "box");
    expect(second.certificate).not.toBe(first.certificate);
    expect(keptAuthority(directory, "box").certificate).toBe(second.certificate);
  });
  it("40: a certificate that is another key's is replaced", () => {
    keptAuthority(directory, "box");
    const other = CertificateAuthority.generate("x", Date.now());
    writeFileSync(join(directory, "box.ca.pem"), other.certificate);
    expect(keptAuthority(directory, "box").certificate).not.toBe(other.certificate);
  });
  it("renews the certificate with the same key and name while there is time", () => {
    const now = Date.now();
    const first = keptAuthority(directory, "box", now);
    const later = now + AUTHORITY_MS * 0.8;
    const second = keptAuthority(directory, "box", later);
    expect(second.certificate).not.toBe(first.certificate);
    const leaf = file("leaf.pem", second.issue(name("a.example"), later).certificate);
    for (const ca of [first, second]) {
      const out = execFileSync("openssl", ["verify", "-x509_strict", "-attime", String(Math.floor(later / 1000)), "-CAfile", file("ca.pem", ca.certificate), leaf], { encoding: "utf8" });
      expect(out).toContain("OK");
    }
  });
});

describe("an operator's CA", () => {
  const make = (key: string[], extra: string[] = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]): [string, string] => {
    const [cert, secret] = [join(directory, "op.pem"), join(directory, "op.key")];
    execFileSync("openssl", ["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=op", ...key, ...extra, "-keyout", secret, "-out", cert], { stdio: "pipe" });
    return [cert, secret];
  };
  it.each([["P-256", ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]], ["P-384", ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]], ["RSA", ["-newkey", "rsa:2048"]], ["Ed25519", ["-newkey", "ed25519"]]])("of kind %s issues leaves that verify", (_, key) => {
    const [cert, secret] = make(key);
    const authority = operatorAuthority({ certificate: cert, key: secret });
    const out = execFileSync("openssl", ["verify", "-x509_strict", "-CAfile", cert, file("leaf.pem", authority.issue(name("a.example"), Date.now()).certificate)], { encoding: "utf8" });
    expect(out).toContain("OK");
  });
  it("that is an intermediate sends its chain", () => {
    const [cert, secret] = make(["-newkey", "rsa:2048"]);
    const [csr, sub, subKey] = [join(directory, "sub.csr"), join(directory, "sub.pem"), join(directory, "sub.key")];
    execFileSync("openssl", ["req", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=sub", "-keyout", subKey, "-out", csr], { stdio: "pipe" });
    execFileSync("openssl", ["x509", "-req", "-in", csr, "-CA", cert, "-CAkey", secret, "-days", "3", "-out", sub, "-extfile", file("ext", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n")], { stdio: "pipe" });
    writeFileSync(sub, readFileSync(sub, "utf8") + readFileSync(cert, "utf8"));
    const leaf = operatorAuthority({ certificate: sub, key: subKey }).issue(name("a.example"), Date.now());
    expect(leaf.certificate.match(/BEGIN CERT/g)).toHaveLength(2);
    const path = file("leaf.pem", leaf.certificate);
    expect(execFileSync("openssl", ["verify", "-x509_strict", "-CAfile", cert, "-untrusted", path, path], { encoding: "utf8" })).toContain("OK");
    expect(leaf.notAfter).toBeLessThan(Date.now() + 4 * DAY); // not longer than its issuer
  });
  it("that may not issue, is not valid, or is another key's is refused without its content", () => {
    const [cert, secret] = make(["-newkey", "rsa:2048"], ["-addext", "basicConstraints=critical,CA:FALSE"]);
    expect(() => operatorAuthority({ certificate: cert, key: secret })).toThrow(/may issue/);
    const [good, key] = make(["-newkey", "rsa:2048"]);
    expect(() => operatorAuthority({ certificate: good, key: key }, Date.now() + 40 * DAY)).toThrow(/not valid now/);
    expect(() => operatorAuthority({ certificate: good, key: file("k", CertificateAuthority.generate("x", Date.now()).exportKey()) })).toThrow(/not the key/);
    const junk = file("k", `-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n`);
    expect(() => operatorAuthority({ certificate: good, key: junk })).toThrow(expect.not.objectContaining({ message: expect.stringContaining("SECRET") }) as Error);
    expect(() => operatorAuthority({ certificate: join(directory, "none"), key })).toThrow(/none/);
    const [weak, weakKey] = make(["-newkey", "rsa:1024"]);
    expect(() => operatorAuthority({ certificate: weak, key: weakKey })).toThrow(/not supported/);
  });
});

describe("13, 14: leaves kept", () => {
  it("holds a bounded number and drops the least recently used", () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("box", Date.now()), 8);
    const first = certificates.server(name("a.example"), ["http/1.1"]);
    for (let i = 0; i < 7; i++) certificates.server(name(`n${i}.example`), []);
    expect(certificates.server(name("a.example"), ["http/1.1"])).toBe(first);
    for (let i = 7; i < 100; i++) certificates.server(name(`n${i}.example`), []);
    expect(certificates.size).toBe(8);
    expect(certificates.server(name("a.example"), ["http/1.1"])).not.toBe(first);
    expect(certificates.counters).toEqual({ issued: 102, hits: 1, evicted: 94 });
  });
  it("makes a leaf anew before it ends (fake clock)", () => {
    let now = Date.now();
    const certificates = new SandboxCertificates(CertificateAuthority.generate("box", now), 8, () => now);
    const first = certificates.server(name("a.example"), []);
    now += LEAF_MS / 2;
    expect(certificates.server(name("a.example"), [])).toBe(first);
    now += LEAF_MS / 3;
    expect(certificates.server(name("a.example"), [])).not.toBe(first);
  });
});

describe("handshakes with the guest", () => {
  const open: { close(): void }[] = [];
  afterEach(() => { for (const one of open.splice(0)) one.close(); });

  /** A listener whose connections shake hands as `subject` with what `certificates` has. */
  async function gate(certificates: SandboxCertificates, judged: () => string | null, alpn: string[] = [], limit = 60_000): Promise<{ port: number; outcomes: string[] }> {
    const outcomes: string[] = [];
    const server: NetServer = createNetServer({ allowHalfOpen: true }, (raw) => {
      const said = judged();
      serverHandshake(raw, certificates.server(said === null ? address("127.0.0.1") : name(said), alpn), said, limit).then((socket) => {
        outcomes.push(`ok ${String(socket.alpnProtocol)}${socket.isSessionReused() ? " resumed" : ""}`);
        socket.on("end", () => socket.end());
        socket.end("hello");
        socket.resume();
      }, (error: { reason: string }) => outcomes.push(error.reason));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    open.push(server);
    return { port: (server.address() as AddressInfo).port, outcomes };
  }
  function visit(port: number, options: ConnectionOptions): Promise<{ error: string | null; session: Buffer | undefined; reused: boolean; peer: string }> {
    return new Promise((resolve) => {
      let session: Buffer | undefined, peer = "", reused = false;
      const socket: TLSSocket = tlsConnect({ host: "127.0.0.1", port, ...options });
      socket.on("session", (kept: Buffer) => { session = kept; });
      socket.on("secureConnect", () => {
        peer = socket.getPeerX509Certificate()?.subjectAltName ?? "";
        reused = socket.isSessionReused();
      });
      socket.on("error", (error: NodeJS.ErrnoException) => resolve({ error: error.code ?? error.message, session, reused, peer }));
      socket.on("close", () => resolve({ error: null, session, reused, peer }));
      socket.resume();
    });
  }

  it.each(["TLSv1.2", "TLSv1.3"] as const)("15: a %s ticket is good for the same name only, and for the same sandbox only", async (version) => {
    const one = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const two = new SandboxCertificates(CertificateAuthority.generate("b", Date.now()));
    let judged = "x.test", certificates = one;
    const outcomes: string[] = [];
    const server = createNetServer((raw) => {
      serverHandshake(raw, certificates.server(name(judged), []), judged, 60_000).then((socket) => {
        outcomes.push(socket.isSessionReused() ? "resumed" : "full");
        socket.end("hello");
        socket.resume();
      }, (error: { reason: string }) => outcomes.push(error.reason));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    open.push(server);
    const { port } = server.address() as AddressInfo;
    const base = { minVersion: version, maxVersion: version, rejectUnauthorized: false } as const;
    const first = await visit(port, { ...base, servername: "x.test" });
    expect(first.session).toBeInstanceOf(Buffer);
    const again = await visit(port, { ...base, servername: "x.test", session: first.session as Buffer });
    expect(again).toMatchObject({ error: null, reused: true });
    judged = "y.test";
    expect(await visit(port, { ...base, servername: "y.test", session: first.session as Buffer })).toMatchObject({ error: null, reused: false, peer: "DNS:y.test" });
    judged = "x.test";
    certificates = two;
    expect(await visit(port, { ...base, servername: "x.test", session: first.session as Buffer })).toMatchObject({ error: null, reused: false });
    expect(outcomes).toEqual(["full", "resumed", "full", "full"]);
  });
  it("a hello that names another server than the judged one ends the connection (8)", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port, outcomes } = await gate(certificates, () => "a.example");
    await visit(port, { servername: "b.example", rejectUnauthorized: false });
    expect(outcomes).toEqual(["name-changed"]);
  });
  it("10: a guest that offers only what is not chosen gets alert 120; one without ALPN is served", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port, outcomes } = await gate(certificates, () => "a.example", ["http/1.1"]);
    const refused = await visit(port, { servername: "a.example", rejectUnauthorized: false, ALPNProtocols: ["h2"] });
    expect(refused.error).toMatch(/NO_APPLICATION_PROTOCOL/);
    expect((await visit(port, { servername: "a.example", ca: certificates.certificate })).error).toBeNull();
    expect(outcomes).toEqual(["protocol", "ok false"]);
  });
  it("a guest that does not trust the CA is told apart", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port, outcomes } = await gate(certificates, () => "a.example");
    expect((await visit(port, { servername: "a.example" })).error).toMatch(/UNABLE|SELF|VERIFY/);
    await visit(port, { servername: "a.example", maxVersion: "TLSv1.1", minVersion: "TLSv1" });
    expect(outcomes.length).toBe(2);
    expect(outcomes[1]).toBe("protocol");
  });
  it("a hello that never ends is cut by the total limit", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port, outcomes } = await gate(certificates, () => "a.example", [], 100);
    const socket = netConnect(port, "127.0.0.1");
    socket.write(Buffer.from([0x16, 3, 1, 0, 200]));
    await new Promise((resolve) => socket.once("close", resolve));
    expect(outcomes).toEqual(["timeout"]);
  });
  it("A43: keys are exchanged in curves only: a guest chooses nothing that costs a hundred times as much", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port, outcomes } = await gate(certificates, () => "a.example");
    const base = { servername: "a.example", ca: certificates.certificate };
    for (const ecdhCurve of ["X25519", "P-256", "P-384", "P-521", "ffdhe8192:P-256"]) expect([ecdhCurve, (await visit(port, { ...base, ecdhCurve })).error]).toEqual([ecdhCurve, null]);
    for (const ecdhCurve of ["ffdhe2048", "ffdhe8192", "ffdhe8192:ffdhe2048"]) expect((await visit(port, { ...base, ecdhCurve })).error).toMatch(/HANDSHAKE_FAILURE/);
    expect((await visit(port, { ...base, maxVersion: "TLSv1.2", ciphers: "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384" })).error).toMatch(/HANDSHAKE_FAILURE/);
    expect(outcomes.filter((outcome) => outcome === "protocol")).toHaveLength(4);
  });
  it("a guest that ends its sending within its handshake has gone; one that does so afterwards is answered", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port, outcomes } = await gate(certificates, () => "a.example");
    for (const octets of [Buffer.alloc(0), Buffer.from([0x16, 3, 1, 0, 200]), helloRecords({ names: ["a.example"], retry: true })]) {
      const socket = netConnect({ port, host: "127.0.0.1", allowHalfOpen: true });
      socket.resume();
      socket.end(octets);
      await new Promise((resolve) => socket.once("close", resolve));
    }
    expect(outcomes).toEqual(["closed", "closed", "closed"]);
    const raw = netConnect({ port, host: "127.0.0.1", allowHalfOpen: true });
    const guest = tlsConnect({ socket: raw, servername: "a.example", ca: certificates.certificate });
    let heard = "";
    guest.on("data", (data: Buffer) => { heard += data.toString(); });
    guest.on("secureConnect", () => guest.end());
    await new Promise((resolve) => guest.once("close", resolve));
    expect(heard).toBe("hello");
  });
  it("12: python3 verifies name and chain, strictly", async () => {
    const certificates = new SandboxCertificates(CertificateAuthority.generate("a", Date.now()));
    const { port } = await gate(certificates, () => "a.example");
    const script = `
import socket, ssl
c = ssl.create_default_context(cafile=${JSON.stringify(file("ca.pem", certificates.certificate))})
c.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
s = c.wrap_socket(socket.create_connection(("127.0.0.1", ${port})), server_hostname="a.example")
print(s.recv(5).decode(), s.version())`;
    const { spawn } = await import("node:child_process");
    const python = spawn("python3", ["-c", script]);
    let out = "";
    for (const stream of [python.stdout, python.stderr]) stream.on("data", (chunk: Buffer) => { out += chunk.toString(); });
    await new Promise((resolve) => python.once("close", resolve));
    expect(out.trim()).toBe("hello TLSv1.3");
  });
});
