/** Upstream verification (A44, TLS.md tests 11 and 17): who does not hold gets no octet of a request, the guest gets to know why. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TlsOptions } from "node:tls";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { CertificateAuthority } from "../../src/tls/certificates/authority.js";
import { trustContext } from "../../src/tls/http/trust.js";
import { answering, NAME, originAuthority, sandboxCa, until, World, type WorldOptions } from "./http-world.js";

const worlds: World[] = [];
afterEach(async () => { for (const world of worlds.splice(0)) await world.stop(); });
async function world(options: WorldOptions): Promise<World> {
  const made = new World(options);
  worlds.push(made);
  return made.start();
}
const PLACEHOLDER = "PLACEHOLDER-0123456789";
const GET = `GET / HTTP/1.1\r\nHost: ${NAME}\r\nAuthorization: Bearer ${PLACEHOLDER}\r\n\r\n`;
const DAY = 86_400_000;

let directory: string;
/** A root with odd leaves, by openssl. */
const odd = new Map<string, TlsOptions>();
let oddRoot = "";
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "enforcer-upstream-"));
  const at = (name: string): string => join(directory, name);
  const run = (...args: string[]): void => { execFileSync("openssl", args, { stdio: "pipe" }); };
  run("req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "30", "-subj", "/CN=odd root", "-addext", "keyUsage=critical,keyCertSign", "-keyout", at("root.key"), "-out", at("root.pem"));
  oddRoot = readFileSync(at("root.pem"), "utf8");
  const leaf = (name: string, extensions: string, options: { key?: string[]; days?: string; sign?: string[]; subject?: string } = {}): void => {
    run("req", "-nodes", "-newkey", ...(options.key ?? ["rsa:2048"]), "-subj", options.subject ?? "/CN=x", "-keyout", at("k"), "-out", at("csr"));
    writeFileSync(at("ext"), extensions);
    run("x509", "-req", "-in", at("csr"), "-CA", at("root.pem"), "-CAkey", at("root.key"), "-days", options.days ?? "10", "-extfile", at("ext"), "-out", at("c"), ...(options.sign ?? []));
    odd.set(name, { key: readFileSync(at("k"), "utf8"), cert: readFileSync(at("c"), "utf8") });
  };
  const san = `subjectAltName=DNS:${NAME}\n`;
  leaf("good", san);
  leaf("expired", san, { days: "-1" });
  leaf("client only", `${san}extendedKeyUsage=clientAuth\n`);
  leaf("code signing", `${san}extendedKeyUsage=codeSigning\n`);
  leaf("weak key", san, { key: ["rsa:1024"] });
  leaf("weak signature", san, { sign: ["-sha1"] });
  leaf("common name only", "basicConstraints=CA:FALSE\n", { subject: `/CN=${NAME}` });
  leaf("another name", "subjectAltName=DNS:evil.test\n");
  leaf("a name below", `subjectAltName=DNS:*.${NAME}\n`);
  leaf("a wildcard of the top", "subjectAltName=DNS:*.test\n");
  leaf("an address", "subjectAltName=IP:127.0.0.1\n", { subject: `/CN=${NAME}` });
  leaf("a NUL in the name", `subjectAltName=DNS:${NAME}.evil.test\n`);
  run("req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "30", "-subj", `/CN=${NAME}`, "-addext", `subjectAltName=DNS:${NAME}`, "-keyout", at("k"), "-out", at("c"));
  odd.set("self-signed", { key: readFileSync(at("k"), "utf8"), cert: readFileSync(at("c"), "utf8") });
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("A44, 11", () => {
  it("a good one of the same root passes", async () => {
    const w = await world({ trusted: [oddRoot], origin: { ...odd.get("good") } });
    const guest = await w.guest();
    guest.write(GET);
    await until(() => (w.seen[0] ?? "").includes(PLACEHOLDER));
  });
  it.each(["expired", "client only", "code signing", "weak key", "weak signature", "common name only", "another name", "a name below", "an address", "a NUL in the name", "self-signed"])("%s", async (kind) => {
    const w = await world({ trusted: [oddRoot], origin: { ...odd.get(kind), ciphers: "DEFAULT:@SECLEVEL=0" } });
    const guest = await w.guest();
    guest.write(GET);
    const got = await guest.all();
    expect(got).toMatch(/^HTTP\/1\.1 502 [^]*upstream-untrusted/);
    expect(got).toContain(NAME);
    expect(w.seen.join("")).toBe("");
    expect(w.refusals).toContain("upstream-untrusted");
  });
  it("an unknown CA, the sandbox's own CA, and one that the guest made", async () => {
    for (const authority of [CertificateAuthority.generate("stranger", Date.now()), CertificateAuthority.load(sandboxCa, w0().certificates.authority.exportKey(), Date.now())]) {
      const issued = authority.issue({ kind: "name", labels: NAME.split(".") }, Date.now());
      const w = await world({ origin: { key: issued.key, cert: issued.certificate } });
      const guest = await w.guest();
      guest.write(GET);
      expect(await guest.all()).toMatch(/upstream-untrusted/);
      expect(w.seen.join("")).toBe("");
    }
  });
  it("a leaf that is not valid yet", async () => {
    const issued = originAuthority.issue({ kind: "name", labels: NAME.split(".") }, Date.now() + 3 * DAY);
    const w = await world({ origin: { key: issued.key, cert: issued.certificate } });
    const guest = await w.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/upstream-untrusted/);
  });
  it("what environment variables say does not count", async () => {
    const before = process.env["NODE_TLS_REJECT_UNAUTHORIZED"];
    process.env["NODE_TLS_REJECT_UNAUTHORIZED"] = "0";
    try {
      const w = await world({ origin: { ...odd.get("self-signed") } });
      const guest = await w.guest();
      guest.write(GET);
      expect(await guest.all()).toMatch(/upstream-untrusted/);
      expect(w.seen.join("")).toBe("");
    } finally {
      if (before === undefined) delete process.env["NODE_TLS_REJECT_UNAUTHORIZED"];
      else process.env["NODE_TLS_REJECT_UNAUTHORIZED"] = before;
    }
  });
  it("the host's store counts only when it is asked for", () => {
    expect(trustContext({ hostCas: false, extra: [] })).not.toBe(trustContext({ hostCas: true, extra: [] }));
    expect(trustContext({ hostCas: false, extra: [] })).toBe(trustContext({ hostCas: false, extra: [] }));
    expect(() => trustContext({ hostCas: false, extra: ["rubbish"] })).toThrow(/no PEM/);
  });
  it("TLS 1.1 and SSL are not spoken", async () => {
    const w = await world({ origin: { maxVersion: "TLSv1.1", minVersion: "TLSv1", ciphers: "DEFAULT@SECLEVEL=0" } });
    const guest = await w.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/502/);
    expect(w.seen.join("")).toBe("");
  });
  it.each(["TLSv1.2", "TLSv1.3"] as const)("17: a far side that wants a client certificate is told apart (%s)", async (version) => {
    const w = await world({ origin: { requestCert: true, rejectUnauthorized: true, ca: oddRoot, minVersion: version, maxVersion: version } });
    const guest = await w.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/502 [^]*tls\.bypass/);
  });
  it("a far side that does not answer, and one that answers something else", async () => {
    const silent = await world({ limits: { upstreamMs: 100 } });
    silent.dial = () => new Promise(() => undefined);
    const guest = await silent.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/upstream-unreachable[^]*ETIMEDOUT/);
    const closed = await world({});
    closed.originPort = 1;
    const other = await closed.guest();
    other.write(GET);
    expect(await other.all()).toMatch(/upstream-unreachable[^]*ECONNREFUSED/);
  });
  it("a guest that speaks h2 only gets its 502 by HTTP/2", async () => {
    const w = await world({ alpn: ["h2"], origin: { ...odd.get("self-signed"), ALPNProtocols: ["h2"] } });
    const guest = await w.guest();
    guest.socket.removeAllListeners("data");
    const { connect } = await import("node:http2");
    const session = connect(`https://${NAME}`, { createConnection: () => guest.socket });
    const stream = session.request({ ":path": "/", authorization: PLACEHOLDER });
    const status = await new Promise((resolve) => stream.once("response", (headers) => resolve(headers[":status"])));
    expect(status).toBe(502);
    session.destroy();
    expect(w.seen.join("")).toBe("");
  });
  it("the guest's handshake begins only after the far side was verified", async () => {
    const w = await world({ onOrigin: answering([]) });
    let verified = false;
    const { dial } = w;
    w.dial = async () => {
      const socket = await dial.call(w);
      await new Promise((resolve) => setTimeout(resolve, 100));
      verified = true;
      return socket;
    };
    await w.guest();
    expect(verified).toBe(true);
  });
});

function w0(): World { return worlds[0] ?? new World(); }
