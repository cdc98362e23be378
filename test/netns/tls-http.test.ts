/**
 * Requests that no ordinary client sends, from a guest on a real tap, at the thread that intercepts: rows A42, A48–A51 of
 * docs/THREATS.md and tests 18–25 and 29 of TLS. Each form in detail is in test/unit/http-*.test.ts.
 */
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Enforcer, type Service, type World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, type Said, sayOver, tell } from "./tls-world.js";

/** Streams of HTTP/2, of which each pair of arguments is the headers and what is to be done with it. */
const STREAMS = `
  const [ca, ...asked] = process.argv.slice(1);
  const session = require("node:http2").connect("https://shop.example", { createConnection: () => require("node:tls").connect({ port: 443, host: "${ADDRESS.site4}", servername: "shop.example", ca: require("node:fs").readFileSync(ca), ALPNProtocols: ["h2"] }) });
  let ended = null;
  session.on("error", (error) => { ended = error.code; });
  session.on("goaway", (code) => { ended ??= "goaway " + code; });
  const ask = (headers) => new Promise((resolve) => {
    let status = null;
    const stream = session.request(headers);
    stream.on("response", (head) => { status = head[":status"]; });
    stream.on("error", () => undefined);
    stream.on("close", () => resolve(status ?? "reset " + stream.rstCode));
    stream.resume();
    stream.end();
  });
  session.on("connect", async () => {
    if (asked[0] === "reset") {
      for (let i = 0; i < +asked[1] && !session.destroyed; i++) {
        const stream = session.request({ ":path": "/reset" });
        stream.on("error", () => undefined);
        stream.close(8);
        if (i % 50 === 0) await new Promise(setImmediate);
      }
      await new Promise((resolve) => setTimeout(resolve, 2000));
      console.log(JSON.stringify({ ended, destroyed: session.destroyed }));
    } else {
      const said = [];
      for (const headers of asked) said.push(await ask(JSON.parse(headers)));
      console.log(JSON.stringify({ said, ended }));
    }
    process.exit();
  });`;

let world: World, origin: Service, enforcer: Enforcer, ca: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld());
  enforcer = await world.enforce({ policy: "rules:\n  - allow: shop.example\n  - allow: tenant.example\ntls: {intercept: true, upstream_ca: [root.pem]}\n" });
  for (const name of ["shop.example", "tenant.example"]) await tell(world, name);
  ca = path.join(world.runDir, "tap0.ca.pem");
});
afterAll(async () => {
  await enforcer?.stop();
  await world?.close();
});

const say = (...parts: string[]): Promise<Said> => sayOver(world, ca, "shop.example", parts);
async function streams(...asked: string[]): Promise<{ said?: (number | string)[]; ended: string | null; destroyed?: boolean }> {
  const { stdout, stderr } = await world.guest.run([process.execPath, "-e", STREAMS, ca, ...asked], { timeoutMs: 150_000 });
  expect(stderr).toBe("");
  return JSON.parse(stdout) as never;
}
/** What arrived at the origin since. */
const arrivals = (): (() => { method: string; url: string; host: string; octets: number }[]) => {
  const before = origin.lines.length;
  return () => origin.lines.slice(before).filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as never);
};
const head = (line: string, ...fields: string[]): string => `${[line, ...fields].join("\r\n")}\r\n\r\n`;
const SHOP = "Host: shop.example";

test.each([
  ["another host", head("GET /a HTTP/1.1", "Host: tenant.example")],
  ["two different hosts", head("GET /a HTTP/1.1", SHOP, "Host: tenant.example")],
  ["two equal hosts", head("GET /a HTTP/1.1", SHOP, SHOP)],
  ["userinfo", head("GET /a HTTP/1.1", "Host: a@shop.example")],
  ["userinfo that looks like the host", head("GET /a HTTP/1.1", "Host: shop.example@tenant.example")],
  ["another port", head("GET /a HTTP/1.1", "Host: shop.example:8443")],
  ["no host", head("GET /a HTTP/1.0")],
  ["an empty host", head("GET /a HTTP/1.1", "Host:")],
  ["an absolute target of another host", head("GET https://tenant.example/a HTTP/1.1", SHOP)],
  ["an absolute target of plain HTTP", head("GET http://shop.example/a HTTP/1.1", SHOP)],
  ["blanks before the colon", head("GET /a HTTP/1.1", "Host : shop.example")],
])("TLS tests 18, 19: %s is refused, and the connection ends", async (_what, request) => {
  const arrived = arrivals();
  const { statuses, end } = await say(request);
  expect(statuses).toHaveLength(1);
  expect([400, 421]).toContain(statuses[0]);
  expect(end).not.toBe("silence");
  expect(arrived()).toEqual([]);
});

test("TLS test 20: of two requests in one segment the first is served, and the second, for another host, is not", async () => {
  const arrived = arrivals();
  const { statuses } = await say(head("GET /one HTTP/1.1", SHOP) + head("GET /two HTTP/1.1", "Host: tenant.example"));
  expect(statuses[0]).toBe(200);
  expect(statuses.slice(1).every((status) => status === 421 || status === 400)).toBe(true);
  expect(arrived().map(({ url }) => url)).toEqual(["/one"]);
});

test("TLS test 21: HTTP/2 with another host beside the authority, another authority, or plain HTTP's scheme: the stream is refused, and others of the connection go on", async () => {
  const arrived = arrivals();
  const good = { ":path": "/good", ":authority": "shop.example" };
  const { said } = await streams(...[good, { ...good, host: "tenant.example" }, { ...good, ":authority": "tenant.example" }, { ...good, ":scheme": "http" }, good].map((headers) => JSON.stringify(headers)));
  expect(said?.[0]).toBe(200);
  for (const one of said?.slice(1, 4) ?? []) expect([421, 400, "reset 1"]).toContain(one);
  expect(said?.[4]).toBe(200);
  expect(arrived().map(({ url }) => url)).toEqual(["/good", "/good"]);
});

const INNER = head("GET /smuggled HTTP/1.1", SHOP);
test.each([
  ["a length and chunks", head("POST /a HTTP/1.1", SHOP, `Content-Length: ${INNER.length + 5}`, "Transfer-Encoding: chunked") + `0\r\n\r\n${INNER}`],
  ["chunks and a length", head("POST /a HTTP/1.1", SHOP, "Transfer-Encoding: chunked", "Content-Length: 4") + `0\r\n\r\n${INNER}`],
  ["two codings", head("POST /a HTTP/1.1", SHOP, "Transfer-Encoding: gzip, chunked") + `0\r\n\r\n${INNER}`],
  ["a coding of another name", head("POST /a HTTP/1.1", SHOP, "Transfer-Encoding: xchunked", `Content-Length: ${INNER.length}`) + INNER],
  ["chunks in HTTP/1.0", head("POST /a HTTP/1.0", SHOP, "Transfer-Encoding: chunked", "Connection: keep-alive") + `0\r\n\r\n${INNER}`],
  ["two lengths", head("POST /a HTTP/1.1", SHOP, "Content-Length: 0", `Content-Length: ${INNER.length}`) + INNER],
  ["a length with a sign", head("POST /a HTTP/1.1", SHOP, "Content-Length: +0") + INNER],
  ["a length that is none", head("POST /a HTTP/1.1", SHOP, "Content_Length: 0", `Content-Length: ${INNER.length}`) + INNER],
  ["a chunk's extension", head("POST /a HTTP/1.1", SHOP, "Transfer-Encoding: chunked") + `5;x="\r\n\r\n${INNER}\r\n0\r\n\r\n`],
  ["a folded field", head("POST /a HTTP/1.1", SHOP, "X-A: b", " Content-Length: 0") + INNER.slice(0, 10)],
  ["bare line feeds", `POST /a HTTP/1.1\n${SHOP}\nContent-Length: 0\n\n${INNER.slice(0, 10)}`],
  ["a bare carriage return", head("POST /a HTTP/1.1", SHOP, `X-A: b\rContent-Length: ${INNER.length}`, "Content-Length: 0") + INNER.slice(0, 10)],
  ["a trailer of chunks", head("POST /a HTTP/1.1", SHOP, "Transfer-Encoding: chunked") + `0\r\nHost: tenant.example\r\nContent-Length: 50\r\n\r\n`],
] as const)("TLS test 22: %s: the origin sees one request at most, and never what is in its body", async (_what, request) => {
  const arrived = arrivals();
  await say(request);
  // One that was read as two requests is two for both of us: then the second is a request of its own, by the guest's will.
  const seen = arrived();
  expect(seen.filter(({ host }) => host !== "shop.example")).toEqual([]);
  expect(seen.filter(({ url }) => url === "/a").length).toBeLessThanOrEqual(1);
  expect(seen.filter(({ url }) => url !== "/a")).toEqual([]);
});

test.each([
  ["CONNECT", head("CONNECT tenant.example:443 HTTP/1.1", "Host: tenant.example:443"), [400, 405, 421]],
  ["CONNECT to the host itself", head("CONNECT shop.example:443 HTTP/1.1", "Host: shop.example:443"), [400, 405, 421]],
  ["TRACE", head("TRACE /a HTTP/1.1", SHOP), [400, 405]],
  ["an upgrade to HTTP/2", head("GET /a HTTP/1.1", SHOP, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), [400, 405, 426, 501]],
  ["HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400, 405, 505]],
] as const)("TLS test 23: %s is refused", async (_what, request, statuses) => {
  const arrived = arrivals();
  const said = await say(request);
  expect(statuses).toContain(said.statuses[0]);
  expect(arrived()).toEqual([]);
});

test("TLS test 24: what is sent behind an upgrade that the origin does not take is no second request", async () => {
  const arrived = arrivals();
  await say(head("GET /ws HTTP/1.1", SHOP, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==") + INNER);
  expect(arrived().map(({ url }) => url).filter((url) => url !== "/ws")).toEqual([]);
});

test("TLS test 25: a head of 70 KB gets 431, and one that does not end is ended", async () => {
  const arrived = arrivals();
  const large = await say(head("GET /a HTTP/1.1", SHOP, `X-A: ${"a".repeat(70_000)}`));
  expect(large.statuses.length === 0 ? [431] : large.statuses).toEqual([431]);
  expect(large.end).not.toBe("silence");
  expect((await say("GET /a HTTP/1.1\r\nX-A: b")).end).not.toBe("silence");
  expect(arrived()).toEqual([]);
});

test("TLS test 29: streams that are reset as fast as they are opened cost the next connection nothing", async () => {
  // Whether the connection is ended depends on how many of them the client puts on the wire in a second: test/unit/http2.test.ts.
  await streams("reset", "20000");
  expect((await streams(JSON.stringify({ ":path": "/after", ":authority": "shop.example" }))).said).toEqual([200]);
});
