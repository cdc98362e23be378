/**
 * Streams from a guest on a real tap, whole: what is passed on undecrypted reaches the far side octet by octet, and a gigabyte
 * goes each way through what is passed on and what is intercepted. TLS test 16.
 */
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Capture } from "../lib/capture.js";
import { helloRecords } from "../lib/hello.js";
import { ADDRESS, type Enforcer, type Service, until, type World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const SIZE = 1 << 30;
/**
 * Tells the ClientHello of each connection as it came, then speaks HTTP: gives and takes streams of octets that are nowhere
 * the same, and says their digests. Behind the name odd.example is no HTTP: when it has heard the end it says how much came, and more.
 */
const ORIGIN = `
  const { readFileSync } = require("node:fs"), { createCipheriv, createHash } = require("node:crypto"), { Readable } = require("node:stream");
  const key = readFileSync(process.argv[1] + "/origin.key"), cert = readFileSync(process.argv[1] + "/origin.pem");
  const zeros = Buffer.alloc(1 << 18);
  const content = (size) => {
    const cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16), Buffer.alloc(16));
    let left = size;
    return new Readable({ highWaterMark: 1 << 19, read() { if (left === 0) return this.push(null); const part = zeros.subarray(0, Math.min(left, zeros.length)); left -= part.length; this.push(cipher.update(part)); } });
  };
  const answer = (request, response) => {
    if (request.method === "GET") { content(+request.url.slice(1)).pipe(response); return; }
    const hash = createHash("sha256");
    let octets = 0;
    request.on("data", (chunk) => { hash.update(chunk); octets += chunk.length; });
    request.on("end", () => response.end(octets + " " + hash.digest("hex")));
  };
  const server = require("node:http2").createSecureServer({ key, cert, allowHTTP1: true, settings: { initialWindowSize: 1 << 22 } }, answer);
  server.on("session", (session) => session.setLocalWindowSize(1 << 24));
  server.on("sessionError", () => {});
  const half = require("node:tls").createServer({ key, cert, allowHalfOpen: true }, (socket) => {
    let heard = 0;
    socket.on("error", () => {});
    socket.on("data", (chunk) => { heard += chunk.length; });
    socket.on("end", () => { socket.write("heard " + heard + "\\n"); setTimeout(() => socket.end(Buffer.alloc(100000, "z")), 300); });
  });
  require("node:net").createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {});
    let got = Buffer.alloc(0);
    const look = () => {
      for (let chunk; (chunk = socket.read()) !== null;) got = Buffer.concat([got, chunk]);
      let message = Buffer.alloc(0), at = 0;
      while (at + 5 <= got.length && at + 5 + got.readUInt16BE(at + 3) <= got.length) { const end = at + 5 + got.readUInt16BE(at + 3); message = Buffer.concat([message, got.subarray(at + 5, end)]); at = end; if (message.length >= 4 && message.length >= 4 + message.readUIntBE(1, 3)) break; }
      if (message.length < 4 || message.length < 4 + message.readUIntBE(1, 3)) return;
      socket.off("readable", look);
      console.log(JSON.stringify({ hello: got.subarray(0, at).toString("hex") }));
      socket.unshift(got);
      (got.includes("odd.example") ? half : server).emit("connection", socket);
    };
    socket.on("readable", look);
  }).listen({ host: "::", port: 443 }, () => console.log("ready"));`;

let world: World, origin: Service, enforcer: Enforcer, root: string, own: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN }));
  enforcer = await world.enforce({ policy: "rules:\n  - allow: shop.example\n  - allow: bank.example\n  - allow: odd.example\ntls: {intercept: true, upstream_ca: [root.pem], bypass: [bank.example, odd.example]}\n" });
  for (const name of ["shop.example", "bank.example", "odd.example"]) await tell(world, name);
  [root, own] = [path.join(world.dir, "root.pem"), path.join(world.runDir, "tap0.ca.pem")];
});
afterAll(async () => {
  await enforcer?.stop();
  await world?.close();
});

const hellos = (): (() => string[]) => {
  const before = origin.lines.length;
  return () => origin.lines.slice(before).filter((line) => line.startsWith("{")).map((line) => (JSON.parse(line) as { hello: string }).hello);
};

const clients: Record<string, () => string[]> = {
  "curl, HTTP/2": () => ["curl", "-sS", "--http2", "--cacert", root, "--resolve", `bank.example:443:${ADDRESS.site4}`, "-o", "/dev/null", "https://bank.example/1"],
  "openssl s_client, TLS 1.3": () => ["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-servername", "bank.example", "-CAfile", root, "-verify_return_error", "-tls1_3"],
  "openssl s_client, TLS 1.2": () => ["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-servername", "bank.example", "-CAfile", root, "-verify_return_error", "-tls1_2"],
  "gnutls-cli": () => ["gnutls-cli", "--x509cafile", root, "--no-ocsp", "--sni-hostname", "bank.example", "--verify-hostname", "bank.example", ADDRESS.site4],
  Python: () => ["python3", "-c", `import socket, ssl
ssl.create_default_context(cafile=${JSON.stringify(root)}).wrap_socket(socket.create_connection(("${ADDRESS.site4}", 443)), server_hostname="bank.example")`],
  Node: () => [process.execPath, "-e", `require("node:tls").connect({ host: "${ADDRESS.site4}", port: 443, servername: "bank.example", ca: require("node:fs").readFileSync(${JSON.stringify(root)}) }, () => process.exit()).on("error", (error) => { console.error(error); process.exit(1); })`],
};
test.each(Object.keys(clients))("TLS test 16: the origin of a bypassed name gets the guest's own ClientHello, octet by octet, and the guest the origin's own certificate (%s)", async (client) => {
  const capture = await Capture.start(world, world.guest, "eth0", "tcp port 443");
  const came = hellos();
  const { status, stderr } = await world.guest.run((clients[client] as () => string[])(), { input: "", timeoutMs: 20_000 });
  expect([status, stderr.includes("error")]).toEqual([0, false]);
  const hello = (await until("the hello", () => came()[0]));
  await until("the guest's own octets", () => [...capture.said(hexOf(ADDRESS.guest4)).values()].some((octets) => octets.length >= hello.length / 2));
  await capture.stop();
  const said = [...capture.said(hexOf(ADDRESS.guest4)).values()];
  expect(said).toHaveLength(1);
  expect(said[0]?.subarray(0, hello.length / 2).toString("hex")).toBe(hello);
});
const hexOf = (address: string): string => Buffer.from(address.split(".").map(Number)).toString("hex");

test("TLS test 16: so does one of 20 KB in many records, and the certificate is the origin's to the last octet", async () => {
  const hello = helloRecords({ names: ["bank.example"], padding: 20_000, more: [[0x1a1a, Buffer.alloc(9)]] }, [7, 1, 4_000]);
  const came = hellos();
  await world.guest.run([process.execPath, "-e", `const socket = require("node:net").connect(443, "${ADDRESS.site6}", () => socket.end(Buffer.from(process.argv[1], "hex"))); socket.on("error", () => {}); socket.resume();`, hello.toString("hex")], { timeoutMs: 20_000 });
  expect(await until("the hello", () => came()[0])).toBe(hello.toString("hex"));
  const { stdout } = await world.guest.run(["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-servername", "bank.example", "-showcerts"], { input: "", timeoutMs: 20_000 });
  const shown = new X509Certificate(/-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/.exec(stdout)?.[0] as string);
  expect(shown.fingerprint256).toBe(new X509Certificate(readFileSync(path.join(world.dir, "origin.pem"))).fingerprint256);
});

test("TLS test 16: the side that has ended its sending hears the other to the end", async () => {
  const { stdout, stderr } = await world.guest.run([process.execPath, "-e", `
    const socket = require("node:tls").connect({ host: "${ADDRESS.site4}", port: 443, servername: "odd.example", allowHalfOpen: true, ca: require("node:fs").readFileSync(${JSON.stringify(root)}) }, () => { socket.write(Buffer.alloc(3000000)); socket.end(); });
    let heard = "";
    socket.on("data", (data) => { heard += data; });
    socket.on("end", () => { console.log(heard.split("\\n")[0], heard.length); process.exit(); });
    socket.on("error", (error) => { console.error(error); process.exit(1); });`], { timeoutMs: 20_000 });
  expect(stderr).toBe("");
  expect(stdout.trim()).toBe(`heard 3000000 ${"heard 3000000\n".length + 100_000}`);
});

/** Octets that are nowhere the same, made without a file. */
const CONTENT = `head -c ${SIZE} /dev/zero | openssl enc -aes-128-ctr -K ${"0".repeat(32)} -iv ${"0".repeat(32)}`;
let digest = "";
test.each([
  ["bank.example", "--http1.1", "a bypassed name"],
  ["shop.example", "--http1.1", "an intercepted one, HTTP/1.1"],
  ["shop.example", "--http2", "an intercepted one, HTTP/2"],
] as const)("TLS test 16: a gigabyte comes and goes whole, by %s %s: %s", async (name, version, _what) => {
  if (digest === "") digest = (await world.host.must(["sh", "-c", `${CONTENT} | sha256sum`], { timeoutMs: 120_000 })).slice(0, 64);
  const curl = `curl -sS --max-time 500 ${version} --cacert ${name === "bank.example" ? root : own} --resolve ${name}:443:${ADDRESS.site4}`;
  const down = await world.guest.run(["sh", "-c", `${curl} https://${name}/${SIZE} | sha256sum`], { timeoutMs: 500_000 });
  expect(down).toMatchObject({ stderr: "", stdout: `${digest}  -\n` });
  const up = await world.guest.run(["sh", "-c", `${CONTENT} | ${curl} -T - https://${name}/up`], { timeoutMs: 500_000 });
  expect(up).toMatchObject({ stderr: "", stdout: `${SIZE} ${digest}` });
}, 1_100_000);
