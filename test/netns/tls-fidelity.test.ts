/**
 * What a guest on a real tap sees of an intercepted origin is what the origin says: against the same question asked without the
 * agent between. TLS tests 27, 28 and 30; in detail in test/unit/http1.test.ts and http2.test.ts.
 */
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Enforcer, type Service, until, type World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

/** Answers as the path says, over HTTP/1.1 and HTTP/2; tells each request, and when its body has begun. Of the paths of events, each waits to be let go. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  const held = [];
  let asked = 0;
  const answer = (request, response, expected) => {
    const one = request.httpVersion === "1.1", path = request.url, id = ++asked;
    console.log(JSON.stringify({ id, method: request.method, path, expect: request.headers.expect ?? null }));
    request.once("data", () => console.log(JSON.stringify({ id, body: true })));
    const say = (status, headers, body) => { response.writeHead(status, headers); response.end(body); };
    if (expected === true && path === "/100") { setTimeout(() => { console.log(JSON.stringify({ id, continued: true })); response.writeContinue(); }, 300); }
    if (/^\\/4\\d\\d$/.test(path)) { say(+path.slice(1), { "content-type": "text/plain" }, "no"); return; }
    if (path === "/early") { response.writeEarlyHints({ link: ["</a.css>; rel=preload; as=style", "</b.js>; rel=preload"], "x-hint": "yes" }); setTimeout(() => say(200, { "x-a": "b" }, "early"), 50); return; }
    if (path === "/events") { response.writeHead(200, { "content-type": "text/event-stream" }); response.flushHeaders(); held.push(response); return; }
    if (path === "/204") { say(204, { "x-a": "b", etag: '"e"' }); return; }
    if (path === "/304") { say(304, { etag: '"e"', "cache-control": "max-age=5" }); return; }
    if (path === "/length") { say(200, { "content-length": "5", "X-Order": ["1", "2"], "set-cookie": ["a=b", "c=d"], "www-authenticate": ["Basic realm=\\"a\\"", "Bearer"] }, request.method === "HEAD" ? "" : "12345"); return; }
    if (path === "/nothing") { say(200, { "content-length": "0" }); return; }
    if (path === "/trailers") { if (request.method === "HEAD") { say(200, { "x-a": "b" }); return; } response.writeHead(200, { trailer: "X-Sum, X-More" }); response.write("one "); setTimeout(() => { response.write("two"); response.addTrailers({ "X-Sum": "7", "X-More": "a b" }); response.end(); }, 30); return; }
    if (path === "/elsewhere") { if (!one) { request.stream.session.altsvc('h3=":443"', "https://shop.example"); request.stream.session.origin("https://tenant.example"); } say(200, { "alt-svc": 'h3=":443"; ma=3600, h3-29=":443"', "alternate-protocol": "443:quic" }, "here"); return; }
    if (path === "/enough") { say(413, {}, "enough"); response.on("finish", () => request.stream.close(0)); return; }
    request.resume();
    request.on("end", () => say(200, {}, "all of it"));
  };
  process.stdin.on("data", (text) => { for (const line of text.toString().trim().split("\\n")) for (const response of held) if (line === "end") response.end(); else response.write("data: " + line + "\\n\\n"); });
  const server = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem"), allowHTTP1: true }, answer);
  server.on("checkContinue", (request, response) => answer(request, response, true));
  server.on("sessionError", () => {});
  // Of a WebSocket each message comes back in a frame of its own, and at the end how many frames of each size of length there were.
  server.on("upgrade", (request, socket) => {
    const accept = require("node:crypto").createHash("sha1").update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
    socket.on("error", () => {});
    socket.write("HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + accept + "\\r\\n\\r\\n");
    let held = Buffer.alloc(0);
    const sizes = { 7: 0, 16: 0, 64: 0 };
    const frame = (first, body) => {
      const head = body.length < 126 ? Buffer.of(first, body.length) : body.length < 65536 ? Buffer.of(first, 126, body.length >> 8, body.length & 255) : Buffer.concat([Buffer.of(first, 127, 0, 0, 0, 0), Buffer.from(body.length.toString(16).padStart(8, "0"), "hex")]);
      socket.write(Buffer.concat([head, body]));
    };
    socket.on("data", (data) => {
      held = Buffer.concat([held, data]);
      for (;;) {
        if (held.length < 14) return;
        let length = held[1] & 127, at = 2;
        sizes[length === 126 ? 16 : length === 127 ? 64 : 7]++;
        if (length === 126) { length = held.readUInt16BE(2); at = 4; } else if (length === 127) { length = Number(held.readBigUInt64BE(2)); at = 10; }
        if (held.length < at + 4 + length) { sizes[at === 4 ? 16 : at === 10 ? 64 : 7]--; return; }
        const mask = held.subarray(at, at + 4), body = Buffer.from(held.subarray(at + 4, at + 4 + length)).map((octet, i) => octet ^ mask[i & 3]);
        frame(held[0], body);
        held = held.subarray(at + 4 + length);
      }
    });
    socket.on("end", () => { frame(0x81, Buffer.from(JSON.stringify(sizes))); setTimeout(() => socket.end(), 100); });
  });
  server.listen({ host: "::", port: 443 }, () => console.log("ready"));`;

let world: World, origin: Service, enforcer: Enforcer, ca: string, root: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN }));
  enforcer = await world.enforce({ policy: "rules:\n  - allow: shop.example\ntls: {intercept: true, upstream_ca: [root.pem]}\n" });
  await tell(world, "shop.example");
  [ca, root] = [path.join(world.runDir, "tap0.ca.pem"), path.join(world.dir, "root.pem")];
});
afterAll(async () => {
  await enforcer?.stop();
  await world?.close();
});

const VERSIONS = ["--http1.1", "--http2"] as const;
const AT = ["--resolve", `shop.example:443:${ADDRESS.site4}`];
const curl = (...args: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> => world.guest.run(["curl", "-sS", "--max-time", "50", "--cacert", ca, ...AT, ...args], { timeoutMs: 60_000 });
/** The same without the agent between. */
const direct = (...args: string[]): Promise<{ stdout: string }> => world.host.run(["curl", "-sS", "--max-time", "50", "--cacert", root, ...AT, ...args], { timeoutMs: 60_000 });
/** What the origin told since. */
const told = (): (() => Record<string, unknown>[]) => {
  const before = origin.lines.length;
  return () => origin.lines.slice(before).map((line) => JSON.parse(line) as Record<string, unknown>);
};
/** Heads as they came, apart from what belongs to one hop and the time. */
const endToEnd = (heads: string): string[] => heads.split("\r\n").filter((line) => !/^(date|connection|keep-alive|transfer-encoding|alt-svc|alternate-protocol):/i.test(line));

test.each(VERSIONS.flatMap((version) => [417, 401].map((status) => [version, status] as const)))("TLS test 27: a body that the origin does not want is not sent (%s, %i)", async (version, status) => {
  const since = told();
  const { stdout } = await curl(version, "-H", "Expect: 100-continue", "--expect100-timeout", "30", "--data-binary", "secret body", "-o", "/dev/null", "-w", "%{http_code}", `https://shop.example/${status}`);
  expect(stdout).toBe(String(status));
  expect(since().filter(({ expect: expected }) => expected === "100-continue").length).toBeGreaterThan(0);
  // curl asks again without it where it got 417.
  const ids = since().filter(({ expect: expected }) => expected === "100-continue").map(({ id }) => id);
  expect(since().filter(({ id, body }) => body === true && ids.includes(id))).toEqual([]);
});

/** Tells in order what it hears, and sends its body when it is told to go on. */
const EXPECTING = `
  const [ca, version] = process.argv.slice(1);
  const tls = () => require("node:tls").connect({ host: "${ADDRESS.site4}", port: 443, servername: "shop.example", ca: require("node:fs").readFileSync(ca), ALPNProtocols: [version === "--http2" ? "h2" : "http/1.1"] });
  const path = process.argv[3];
  const over = (status) => { console.log("answer", status); process.exit(); };
  if (version === "--http2") {
    const session = require("node:http2").connect("https://shop.example", { createConnection: tls });
    const stream = session.request({ ":path": path, ":method": "POST", expect: "100-continue" });
    stream.on("continue", () => { console.log("continue"); stream.end("body"); });
    stream.on("response", (head) => { over(head[":status"]); });
    if (path === "/silent") setTimeout(() => stream.end("body"), 1000);
  } else {
    const request = require("node:https").request({ createConnection: tls, host: "shop.example", path, method: "POST", headers: { host: "shop.example", expect: "100-continue", "content-length": 4 } });
    request.on("continue", () => { console.log("continue"); request.end("body"); });
    request.on("response", (response) => { over(response.statusCode); });
    request.flushHeaders();
    if (path === "/silent") setTimeout(() => request.end("body"), 1000);
  }`;
test.each(VERSIONS)("TLS test 27: 100 Continue is the origin's and comes when it says so; where it says nothing the guest hears nothing (%s)", async (version) => {
  const since = told();
  const waited = await world.guest.run([process.execPath, "-e", EXPECTING, ca, version, "/100"], { timeoutMs: 20_000 });
  expect(waited).toMatchObject({ stderr: "", stdout: "continue\nanswer 200\n" });
  expect(since().map(({ continued, body, expect: expected }) => (continued === true ? "continued" : body === true ? "body" : expected))).toEqual(["100-continue", "continued", "body"]);
  const silent = await world.guest.run([process.execPath, "-e", EXPECTING, ca, version, "/silent"], { timeoutMs: 20_000 });
  expect(silent).toMatchObject({ stderr: "", stdout: "answer 200\n" });
});

test.each(VERSIONS.flatMap((version) => ["/early", "/length", "/nothing", "/204", "/304", "/trailers"].flatMap((target) => ["GET", "HEAD"].map((method) => [version, method, target] as const))))("TLS test 28: heads, bodies and trailers are as the origin said them (%s %s %s)", async (version, method, target) => {
  const args = [version, ...(method === "HEAD" ? ["-I"] : []), "-i", `https://shop.example${target}`];
  const [here, there] = [await curl(...args), await direct(...args)];
  expect(here).toMatchObject({ status: 0, stderr: "" });
  expect(there.stdout).toMatch(/^HTTP\/[12]/);
  expect(endToEnd(here.stdout)).toEqual(endToEnd(there.stdout));
  if (target === "/early") expect(here.stdout).toMatch(/^HTTP\/\S+ 103 /);
  if (target === "/trailers" && method === "GET") expect(here.stdout).toMatch(/x-sum: 7/i);
});

test.each(VERSIONS)("TLS test 28: each event comes before the origin sends the next (%s)", async (version) => {
  const client = world.own(world.guest.start(["curl", "-sSN", version, "--max-time", "60", "--cacert", ca, ...AT, "-D", "-", "https://shop.example/events"]));
  await client.line((line) => /text\/event-stream/i.test(line));
  for (let i = 0; i < 20; i++) {
    origin.write(`event ${version} ${i}`);
    await client.line((line) => line === `data: event ${version} ${i}`);
  }
  origin.write("end");
  await until("the end of it", () => client.ended !== null);
  expect(client.ended?.status).toBe(0);
});

test("TLS test 28: an upload that is answered before its end ends, with that answer (HTTP/2)", async () => {
  const { stdout } = await world.guest.run(["sh", "-c", `yes | curl -sS --http2 --max-time 50 --cacert ${ca} ${AT.join(" ")} -T - -w ' %{http_code}' https://shop.example/enough`], { timeoutMs: 60_000 });
  expect(stdout).toBe("enough 413");
});

test("TLS test 24: messages of a WebSocket pass in frames of every length, and the side that has ended its sending hears the rest", async () => {
  const client = `
    const [ca] = process.argv.slice(1);
    const socket = require("node:tls").connect({ host: "${ADDRESS.site4}", port: 443, servername: "shop.example", ca: require("node:fs").readFileSync(ca), ALPNProtocols: ["http/1.1"], allowHalfOpen: true });
    let held = Buffer.alloc(0), open = false, over = 0;
    const said = [10, 2000, 200000, 1000000].map((size) => Buffer.alloc(size, "abcdefghij")), heard = [];
    const frame = (body) => {
      const head = body.length < 126 ? Buffer.of(0x82, 128 | body.length) : body.length < 65536 ? Buffer.of(0x82, 254, body.length >> 8, body.length & 255) : Buffer.concat([Buffer.of(0x82, 255, 0, 0, 0, 0), Buffer.from(body.length.toString(16).padStart(8, "0"), "hex")]);
      const mask = Buffer.of(1, 2, 3, 4);
      socket.write(Buffer.concat([head, mask, body.map((octet, i) => octet ^ mask[i & 3])]));
    };
    socket.write("GET /ws HTTP/1.1\\r\\nHost: shop.example\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n");
    socket.on("data", (data) => {
      held = Buffer.concat([held, data]);
      const end = held.indexOf("\\r\\n\\r\\n");
      if (!open && end >= 0) { open = true; console.log(held.subarray(9, 12).toString()); held = held.subarray(end + 4); for (const body of said) frame(body); socket.end(); }
      while (open && held.length >= 2) {
        let length = held[1], at = 2;
        if (length === 126) { if (held.length < 4) return; length = held.readUInt16BE(2); at = 4; } else if (length === 127) { if (held.length < 10) return; length = Number(held.readBigUInt64BE(2)); at = 10; }
        if (held.length < at + length) return;
        heard.push(held.subarray(at, at + length));
        held = held.subarray(at + length);
      }
    });
    socket.on("end", () => { console.log(heard.slice(0, -1).map((body, i) => body.equals(said[i])).join(), heard.at(-1).toString()); process.exit(); });
    socket.on("error", (error) => { console.error(error); process.exit(1); });`;
  expect(await world.guest.run([process.execPath, "-e", client, ca], { timeoutMs: 30_000 })).toMatchObject({ stderr: "", stdout: '101\ntrue,true,true,true {"7":1,"16":1,"64":2}\n' });
});

test.each(VERSIONS)("TLS test 30: neither fields nor frames tell the guest of other ways to the origin (%s)", async (version) => {
  expect((await direct(version, "-i", "https://shop.example/elsewhere")).stdout.toLowerCase()).toContain("alt-svc");
  const { stdout } = await curl(version, "-i", "https://shop.example/elsewhere");
  expect(stdout).toMatch(/here$/);
  expect(stdout.toLowerCase()).not.toMatch(/alt-svc|alternate-protocol|h3/);
});

test("TLS test 30: HTTP/3 is refused at once, by ICMP, and the origin is reached by TCP", async () => {
  // What a client of HTTP/3 has of it: its socket is connected, and the refusal comes to that. Real ones: docs/TLS.md.
  const quic = `import socket, sys
for family, address in ((socket.AF_INET, "${ADDRESS.site4}"), (socket.AF_INET6, "${ADDRESS.site6}")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(30)
    s.connect((address, 443))
    s.send(bytes([0xC3, 0, 0, 0, 1, 8]) + bytes(1194))
    try:
        print("answered", s.recv(1500))
    except ConnectionRefusedError:
        print("refused")`;
  expect(await world.guest.run(["python3", "-c", quic], { timeoutMs: 70_000 })).toMatchObject({ stderr: "", stdout: "refused\nrefused\n" });
  expect((await curl("-o", "/dev/null", "-w", "%{http_code}", "https://shop.example/length")).stdout).toBe("200");
});

test("TLS test 30: no ALTSVC and no ORIGIN frame either", async () => {
  const frames = `
    const [ca] = process.argv.slice(1), seen = [];
    const session = require("node:http2").connect("https://shop.example", { createConnection: () => require("node:tls").connect({ host: "${ADDRESS.site4}", port: 443, servername: "shop.example", ca: require("node:fs").readFileSync(ca), ALPNProtocols: ["h2"] }) });
    session.on("altsvc", () => seen.push("altsvc"));
    session.on("origin", () => seen.push("origin"));
    const stream = session.request({ ":path": "/elsewhere" });
    stream.resume();
    stream.on("close", () => setTimeout(() => { console.log(JSON.stringify(seen)); process.exit(); }, 100));`;
  expect((await world.host.run([process.execPath, "-e", frames, root], { timeoutMs: 20_000 })).stdout.trim()).toBe('["altsvc","origin"]');
  expect((await world.guest.run([process.execPath, "-e", frames, ca], { timeoutMs: 20_000 })).stdout.trim()).toBe("[]");
});
