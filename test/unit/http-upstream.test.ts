/** Upstream verification (A44, TLS.md tests 11 and 17): who does not hold gets no octet of a request, the guest gets to know why. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TlsOptions } from "node:tls";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { CertificateAuthority } from "../../src/tls/certificates/authority.js";
import { FarSides } from "../../src/tls/http/far-sides.js";
import { trustContext } from "../../src/tls/http/trust.js";
import { ODD_KINDS, OddRoot } from "../lib/odd-certificates.js";
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

let directory: string, root: OddRoot;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "enforcer-upstream-"));
  root = new OddRoot(directory);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("A44, 11", () => {
  it("a good one of the same root passes", async () => {
    const w = await world({ trusted: [root.certificate], origin: root.good(NAME) });
    const guest = await w.guest();
    guest.write(GET);
    await until(() => (w.seen[0] ?? "").includes(PLACEHOLDER));
  });
  it.each(ODD_KINDS)("%s", async (kind) => {
    const w = await world({ trusted: [root.certificate], origin: { ...root.odd(kind, NAME), ciphers: "DEFAULT:@SECLEVEL=0" } });
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
      const w = await world({ origin: root.odd("self-signed", NAME) });
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
  it.each<[string, TlsOptions]>([["a prime of its own", { maxVersion: "TLSv1.2", ciphers: "DHE-RSA-AES128-GCM-SHA256", dhparam: "auto" }], ["ffdhe8192", { minVersion: "TLSv1.3", ecdhCurve: "ffdhe8192" }]])("A43: a key exchange in finite fields (%s), which costs what the far side likes, is not done", async (_what, options) => {
    const w = await world({ trusted: [root.certificate], origin: { ...root.good(NAME, ["rsa:2048"]), ...options } });
    const guest = await w.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/502 [^]*upstream-failed/);
    expect(w.origins).toEqual([]);
  });
  it.each(["TLSv1.2", "TLSv1.3"] as const)("17: a far side that wants a client certificate is told apart (%s)", async (version) => {
    const w = await world({ origin: { requestCert: true, rejectUnauthorized: true, ca: root.certificate, minVersion: version, maxVersion: version } });
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
    const w = await world({ alpn: ["h2"], origin: { ...root.odd("self-signed", NAME), ALPNProtocols: ["h2"] } });
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

describe("A44: far sides that are not verified yet", () => {
  it("a bounded number has a place; the next waits for one that is verified, in the order of coming", async () => {
    const sides = new FarSides(2, 1_000_000), order: number[] = [];
    const [one, two] = await Promise.all([sides.enter(60_000), sides.enter(60_000)]);
    const three = sides.enter(60_000).then((leave) => { order.push(3); return leave; }), four = sides.enter(60_000).then((leave) => { order.push(4); return leave; });
    expect([sides.taken, sides.waiting]).toEqual([2, 2]);
    one?.(true);
    await three;
    two?.(true);
    await four;
    expect(order).toEqual([3, 4]);
    for (const leave of [await three, await four]) {
      leave?.(true);
      leave?.(true); // counts once
    }
    expect([sides.taken, sides.waiting]).toEqual([0, 0]);
  });
  it("places of those that failed come back one by one, and who waits for too long gets none", async () => {
    const never = new FarSides(1, 1_000_000);
    const failed = await never.enter(60_000);
    failed?.(true);
    (await never.enter(60_000))?.(false);
    // The first at once, for there was nothing before it.
    const next = await never.enter(60_000);
    expect(next).not.toBeNull();
    next?.(false);
    expect(await never.enter(50)).toBeNull();
    expect([never.taken, never.waiting]).toEqual([1, 0]);
    const soon = new FarSides(1, 20);
    for (let i = 0; i < 3; i++) (await soon.enter(60_000))?.(false);
    expect(await soon.enter(60_000)).not.toBeNull();
  });
  it("a connection that gets no place in time sends nothing, and the guest gets to know", async () => {
    const w = await world({ farSides: 0, limits: { upstreamMs: 100 } });
    const guest = await w.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/502 [^]*upstream-failed[^]*too many servers/);
    expect(w.seen.join("")).toBe("");
    expect(w.origins).toEqual([]);
  });
  it("one that is verified has no place any more, however long its connection lives", async () => {
    const good = await world({ trusted: [root.certificate], origin: root.good(NAME) });
    const guest = await good.guest();
    guest.write(GET);
    await until(() => (good.seen[0] ?? "").includes(PLACEHOLDER));
    expect(good.farSides.taken).toBe(0);
  });
});

function w0(): World { return worlds[0] ?? new World(); }
