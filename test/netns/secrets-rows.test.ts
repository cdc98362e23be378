/**
 * Requests by the octet where secrets are at stake, from a guest on a real tap: what rows A47, A50, A51, A55, A56 and A58 of
 * docs/THREATS.md have that no ordinary client says. In detail in test/unit/http1.test.ts and secrets-*.test.ts.
 */
import { createHash } from "node:crypto";
import { rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { assertNowhere } from "../lib/secrets.js";
import { ADDRESS, type Service, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, type Said, sayOver, tell } from "./tls-world.js";

const VALUE = "sk-realvalue-3333333333-rowsabcdefghijklmnopqrs";

/** Tells each request with all that belongs to it when it is whole, and that one has begun; what comes over a WebSocket it tells as it comes. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  const server = require("node:https").createServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem") }, (request, response) => {
    console.log(JSON.stringify({ begun: request.method + " " + request.url, headers: request.rawHeaders }));
    let body = "";
    request.setEncoding("latin1");
    request.on("data", (data) => { body += data; console.log(JSON.stringify({ piece: data.slice(0, 200) })); });
    request.on("end", () => { console.log(JSON.stringify({ whole: request.method + " " + request.url, octets: body.length, trailers: request.rawTrailers })); response.end("ok"); });
    request.on("error", () => {});
  });
  server.on("upgrade", (request, socket, head) => {
    console.log(JSON.stringify({ begun: "upgrade " + request.url, headers: request.rawHeaders }));
    const accept = require("node:crypto").createHash("sha1").update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
    socket.on("error", () => {});
    socket.on("data", (data) => console.log(JSON.stringify({ frames: data.toString("latin1") })));
    socket.write("HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + (request.url === "/fake" ? "none" : accept) + "\\r\\n\\r\\n");
  });
  server.listen({ host: "::", port: 443 }, () => console.log("ready"));`;

let world: World, origin: Service, agent: TestAgent, ca: string, placeholder: string;
const NAMES = ["shop.example", "tenant.example", "odd.example"];
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN }));
  writeFileSync(path.join(world.dir, "token"), VALUE, { mode: 0o600 });
  agent = await TestAgent.start(world);
  await agent.client.attach({ tap: "tap0", policy: { file: { path: path.join(world.dir, "policy.yaml"), text: `
rules:
  - allow: shop.example
  - allow: tenant.example
  - {allow: odd.example, methods: [GET], paths: [/public/**]}
tls: {intercept: true, upstream_ca: [root.pem]}
secrets:
  KEY: {from: {file: token}, allowed_hosts: [shop.example], inject: {body: true}}
` } } });
  for (const name of NAMES) await tell(world, name);
  ca = path.join(world.runDir, "agent", "tap0.ca.pem");
  placeholder = (await agent.client.secrets("tap0")).environment["KEY"] as string;
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

const say = (name: string, ...parts: string[]): Promise<Said> => sayOver(world, ca, name, parts);
const head = (line: string, ...fields: string[]): string => `${[line, ...fields].join("\r\n")}\r\n\r\n`;
const since = (): (() => string[]) => {
  const before = origin.lines.length;
  return () => origin.lines.slice(before);
};
/** What began at the origin. */
const begun = (lines: readonly string[]): string[] => lines.map((line) => JSON.parse(line) as { begun?: string }).flatMap((one) => one.begun ?? []);
const AUTH = (): string => `Authorization: Bearer ${placeholder}`;
const WEBSOCKET = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", `Sec-WebSocket-Key: ${createHash("md5").update("key").digest("base64")}`];
/** A text frame of a client, masked with nothing. */
const frame = (text: string): string => String.fromCharCode(0x81, 0x80 | text.length, 0, 0, 0, 0) + text;

test("A47: empty lines before a request for another host, split in the middle of its Host, with the placeholder: blocked; for its own host they change nothing", async () => {
  const lines = since();
  const evil = await say("shop.example", "\r\n", `\r\nGET /a HTTP/1.1\r\nHost: ten`, `ant.example\r\n${AUTH()}\r\n\r\n`);
  expect(evil.statuses).toEqual([421]);
  expect(evil.end).not.toBe("silence");
  const there = await say("tenant.example", "\r\n\r\n", `GET /a HTTP/1.1\r\nHost: tenant.example\r\nConnection: close\r\n${AUTH()}\r\n\r\n`);
  expect(there.statuses).toEqual([403]);
  expect(lines()).toEqual([]);
  expect((await say("shop.example", "\r\n", `\r\nGET /own HTTP/1.1\r\nHost: sh`, `op.example\r\nConnection: close\r\n${AUTH()}\r\n\r\n`)).statuses).toEqual([200]);
  expect(lines()[0]).toContain(`Bearer ${VALUE}`);
});

test("A50: on one connection an allowed request, one for another host, one for another host with the placeholder: the first alone is served", async () => {
  const lines = since();
  const { statuses, end } = await say("shop.example", head("GET /one HTTP/1.1", "Host: shop.example"), head("GET /two HTTP/1.1", "Host: tenant.example"), head("GET /three HTTP/1.1", "Host: tenant.example", AUTH()));
  expect(statuses).toEqual([200, 421]);
  expect(end).not.toBe("silence");
  expect(begun(lines())).toEqual(["GET /one"]);
});

test("A51: a 101 that is none, a WebSocket where the rule allows none, and HTTP/2's preface behind a request make no tunnel", async () => {
  const lines = since(), raw = head("GET /raw HTTP/1.1", "Host: tenant.example", AUTH());
  expect((await say("shop.example", head("GET /fake HTTP/1.1", "Host: shop.example", ...WEBSOCKET), raw)).statuses[0] ?? 502).toBe(502);
  expect((await say("odd.example", head("GET /private HTTP/1.1", "Host: odd.example", ...WEBSOCKET), raw)).statuses[0]).toBe(403);
  const preface = await say("shop.example", head("GET /before HTTP/1.1", "Host: shop.example"), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\x04\0\0\0\0\0");
  expect(preface.statuses[0]).toBe(200);
  expect([400, 405, 505]).toContain(preface.statuses[1]);
  expect(begun(lines())).toEqual(["upgrade /fake", "GET /before"]);
  expect(lines().join()).not.toContain("/raw");
});

test("A51: HTTP/2 without being asked for over plain HTTP reaches nobody", async () => {
  const before = world.services.internet.seen("http").length;
  const { status } = await world.guest.run(["curl", "-sS", "--max-time", "10", "--http2-prior-knowledge", "--resolve", `shop.example:80:${ADDRESS.site4}`, "http://shop.example/"], { timeoutMs: 20_000 });
  expect(status).not.toBe(0);
  expect(world.services.internet.seen("http").length).toBe(before);
});

const twice = (text: string): string => [...Buffer.from(text)].map((octet) => `%25${octet.toString(16).padStart(2, "0")}`).join("");
const chunked = (body: string, trailer = ""): string => `${body.length.toString(16)}\r\n${body}\r\n0\r\n${trailer}\r\n`;
/** Each with the host to whom it goes; said in parts, so that records part it where they end. */
const places: Record<string, (host: string) => string[]> = {
  "in the method": (host) => [head(`${placeholder} /a HTTP/1.1`, `Host: ${host}`)],
  "as the name of a field": (host) => [head("GET /a HTTP/1.1", `Host: ${host}`, "Connection: close", `${placeholder}: a`)],
  "in the query, in percent signs twice": (host) => [head(`GET /a?b=${twice(placeholder)} HTTP/1.1`, `Host: ${host}`, "Connection: close")],
  "in a cookie": (host) => [head("GET /a HTTP/1.1", `Host: ${host}`, "Connection: close", `Cookie: a=${placeholder}`)],
  "split over three records": (host) => [`GET /a HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\nX-A: ${placeholder.slice(0, 10)}`, placeholder.slice(10, 20), `${placeholder.slice(20)}\r\n\r\n`],
  "in a trailer": (host) => [head("POST /a HTTP/1.1", `Host: ${host}`, "Transfer-Encoding: chunked", "Trailer: X-A") + chunked("body", `X-A: ${placeholder}\r\n`)],
  "in a message of a WebSocket": (host) => [head("GET /public/ws HTTP/1.1", `Host: ${host}`, ...WEBSOCKET), frame("hello"), frame(placeholder.slice(0, 9)), frame(`all: ${placeholder}`)],
};
test.each(Object.keys(places))("A55, A56: the placeholder %s: stopped on the way to another host, and on the way to its own, where nothing says that it may stand there; never half put in", async (place) => {
  for (const host of ["tenant.example", "shop.example"]) {
    const lines = since();
    const { heard, statuses, end } = await say(host, ...(places[place] as (host: string) => string[])(host));
    // A WebSocket was agreed to before; its connection ends. What is refused before its body is whole has no answer at times.
    if (place.includes("WebSocket")) {
      // Another message of such a connection passes.
      expect(begun(lines())).toEqual(["upgrade /public/ws"]);
      await say(host, head("GET /public/ws HTTP/1.1", `Host: ${host}`, ...WEBSOCKET), frame("hello"));
      expect(lines().join("\n")).toContain("hello");
    } else for (const status of statuses) expect([400, 403, 405, 501]).toContain(status);
    expect(heard !== "" || end !== "silence").toBe(true);
    expect(lines().filter((line) => line.includes('"whole"'))).toEqual([]);
    for (const text of [placeholder, placeholder.slice(0, 20), VALUE, VALUE.slice(0, 20), twice(placeholder).slice(0, 60)]) expect(lines().join("\n")).not.toContain(text);
  }
});

test("A55: the placeholder as a server name: refused, told as a violation, and nobody hears of it", async () => {
  const watcher = await agent.watch(), lines = since();
  for (const name of [`${placeholder}.tenant.example`, `${placeholder.slice(0, 12)}.${placeholder.slice(12)}.tenant.example`]) expect(await say(name, head("GET / HTTP/1.1", `Host: ${name}`))).toMatchObject({ heard: "" });
  await watcher.seen({ event: "tls-denied", reason: "secret" });
  expect(JSON.stringify(watcher.events).toLowerCase()).not.toContain(placeholder.toLowerCase());
  await watcher.end().catch(() => undefined);
  expect(lines()).toEqual([]);
});

test("A56: in a body to its own host, cut in the middle of the placeholder, the value stands where it may, whole, and the length is that of what left", async () => {
  const lines = since(), body = `{"a":"${placeholder}"}`, cut = body.indexOf(placeholder) + 15;
  const { statuses } = await say("shop.example", head("POST /body HTTP/1.1", "Host: shop.example", "Connection: close", "Content-Type: application/json", `Content-Length: ${body.length}`) + body.slice(0, cut), body.slice(cut));
  expect(statuses).toEqual([200]);
  const said = lines().map((line) => JSON.parse(line) as { piece?: string; octets?: number; headers?: string[] });
  expect(said.map(({ piece }) => piece ?? "").join("")).toBe(`{"a":"${VALUE}"}`);
  expect(said[0]?.headers?.join(" ")).toContain(`Content-Length ${VALUE.length + 8}`);
});

test.each([
  ["over what can be held, and of another length than the value", 413, () => { const body = `{"a":"${placeholder}","b":"${"x".repeat(1_100_000)}"}`; return [head("POST /large HTTP/1.1", "Host: shop.example", "Content-Type: application/json", `Content-Length: ${body.length}`), body]; }],
  ["in a coding that nobody here reads", 415, () => [head("POST /coded HTTP/1.1", "Host: shop.example", "Connection: close", "Content-Encoding: zstd", `Content-Length: ${placeholder.length}`) + placeholder]],
] as const)("A58: a body with the placeholder %s: %i, and its end does not leave", async (_what, status, parts) => {
  const lines = since();
  expect((await say("shop.example", ...parts())).statuses[0]).toBe(status);
  expect(lines().filter((line) => line.includes('"whole"'))).toEqual([]);
  expect(lines().join("\n")).not.toContain(VALUE);
});

test("A58: with no value to be had after a restart: 503, and nothing leaves; not even an empty field", async () => {
  rmSync(path.join(world.dir, "token"));
  await agent.kill();
  await agent.restart();
  await tell(world, "shop.example");
  const lines = since();
  expect((await say("shop.example", head("GET /none HTTP/1.1", "Host: shop.example", "Connection: close", AUTH()))).statuses).toEqual([503]);
  expect(lines()).toEqual([]);
  // What needs no value is served.
  expect((await say("shop.example", head("GET /plain HTTP/1.1", "Host: shop.example", "Connection: close"))).statuses).toEqual([200]);
  assertNowhere(VALUE, { files: [world.runDir], texts: { log: agent.service.report() } });
});
