/**
 * gRPC and HTTP/2 streams of a guest on a real tap, intercepted: gRPC's own library at both ends, and streams that either side
 * takes back. TLS test 26; in detail in test/unit/http2.test.ts.
 */
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { httpLimits } from "../../src/tls/http/limits.js";
import { ADDRESS, type Enforcer, type Service, until, type World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const CALLS = path.join(import.meta.dirname, "../clients/grpc_calls.py"), STREAMS = 20;

/** At the IPv6 address: HTTP/2 streams whose paths say how they are to end. Tells how each ended for it. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  const server = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem") });
  server.on("sessionError", () => {});
  server.on("stream", (stream, headers) => {
    const [, how, code] = headers[":path"].split("/");
    stream.on("error", () => {});
    stream.on("close", () => console.log(JSON.stringify({ path: headers[":path"], code: stream.rstCode })));
    if (how === "reset") stream.close(+code);
    // Node ends what it takes back, where no trailers are to come.
    else if (how === "break") { stream.respond({ ":status": 200 }, { waitForTrailers: true }); stream.write("part"); setTimeout(() => stream.close(+code), 50); }
    else if (how === "enough") { stream.respond({ ":status": 200 }); stream.end("enough"); stream.on("finish", () => stream.close(0)); }
    else if (how === "open") { stream.respond({ ":status": 200 }); stream.write("open"); }
    else if (how === "plain") { stream.respond({ ":status": 200 }); stream.end("plain"); }
  });
  server.listen({ host: "${ADDRESS.site6}", port: 443 }, () => console.log("ready"));`;

/** One session; each argument is a path, and what is to be done with its stream: nothing, sending without end, or taking it back with a code. */
const STREAM = `
  const [ca, host, ...asked] = process.argv.slice(1);
  const session = require("node:http2").connect("https://shop.example", { createConnection: () => require("node:tls").connect({ port: 443, host, servername: "shop.example", ca: require("node:fs").readFileSync(ca), ALPNProtocols: ["h2"] }) });
  session.on("error", (error) => { console.log(JSON.stringify({ error: error.code })); process.exit(); });
  const ask = (path, what) => new Promise((resolve) => {
    const stream = session.request({ ":path": path, ":method": what === "" ? "GET" : "POST" });
    let status = null, heard = "";
    stream.on("response", (head) => { status = head[":status"]; });
    stream.on("data", (data) => { heard += data; if (/^\\d+$/.test(what)) stream.close(+what); });
    stream.on("error", () => {});
    stream.on("close", () => resolve([status, heard, stream.rstCode]));
    if (what === "endless") { const more = () => { while (!stream.destroyed && !stream.closed && stream.write(Buffer.alloc(65536))); }; stream.on("drain", more); more(); }
    else if (what === "") stream.end();
  });
  session.on("remoteSettings", async () => {
    const said = [];
    for (const one of asked) said.push(await ask(...one.split(" ")));
    console.log(JSON.stringify({ limit: session.remoteSettings.maxConcurrentStreams, said }));
    process.exit();
  });`;

let world: World, origin: Service, server: Service, enforcer: Enforcer, ca: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN }));
  // Debian's own Python, which has its packages.
  server = world.own(world.internet.start(["/usr/bin/python3", CALLS, "serve", `${ADDRESS.site4}:443`, world.dir, String(STREAMS)]));
  await server.line((line) => line === "ready");
  enforcer = await world.enforce({ policy: "rules:\n  - allow: shop.example\ntls: {intercept: true, upstream_ca: [root.pem]}\n" });
  await tell(world, "shop.example");
  ca = path.join(world.runDir, "tap0.ca.pem");
});
afterAll(async () => {
  await enforcer?.stop();
  await world?.close();
});

async function calls(what: string): Promise<unknown> {
  const { stdout, stderr } = await world.guest.run(["/usr/bin/python3", CALLS, "call", `ipv4:${ADDRESS.site4}:443`, "shop.example", ca, what], { timeoutMs: 120_000 });
  expect(stderr).toBe("");
  return JSON.parse(stdout);
}
async function streams(address: string, ...asked: string[]): Promise<{ limit: number; said: [number | null, string, number][] }> {
  const { stdout, stderr } = await world.guest.run([process.execPath, "-e", STREAM, ca, address, ...asked], { timeoutMs: 60_000 });
  expect(stderr).toBe("");
  return JSON.parse(stdout) as never;
}

test("TLS test 26: a call in both directions, each message answered before the next is sent; its status and trailers come last", async () => {
  expect(await calls("both")).toEqual({ messages: [0, 1, 2, 3, 4].map((i) => `echo message ${i}`), rest: [], code: "OK", trailers: { "x-count": "5", "x-octets-bin": "b'\\x00\\xff'" } });
});

test("TLS test 26: a status before the client has ended its sending ends the call, also a dozen times; the connection serves the next", async () => {
  expect(await calls("early")).toEqual({ calls: Array.from({ length: 12 }, () => ["first xxxxx", "OUT_OF_RANGE", "enough"]), after: "after" });
});

test("TLS test 26: an answer of trailers alone, and messages of 20 MB", async () => {
  expect(await calls("nothing")).toEqual({ code: "NOT_FOUND", details: "no such thing: \u00fc%", head: 0 });
  expect(await calls("large")).toEqual({ same: true });
});

test("TLS test 26: a call that the client takes back, or that is over its deadline, ends at the server; others go on", async () => {
  expect(await calls("cancel")).toEqual({ first: "one", code: "CANCELLED", second: "two", late: "DEADLINE_EXCEEDED", after: "after" });
  for (const name of ["cancelled", "late"]) await server.line((line) => line === `ended ${name}`);
});

test("TLS test 26: a thousand calls at once keep to the server's bound of streams, which the guest is told", async () => {
  expect(await calls("many")).toEqual({ calls: 1000, most: expect.toSatisfy((most: number) => most > 1 && most <= STREAMS) as number });
  expect((await streams(ADDRESS.site4)).limit).toBe(STREAMS);
  // The origin at the other address has none; the agent has.
  expect((await streams(ADDRESS.site6)).limit).toBe(httpLimits.streams);
});

test("TLS test 26: resets pass in both directions with their codes, and the session goes on", async () => {
  const before = origin.lines.length;
  const codes = [8, 7, 2, 11];
  const { said } = await streams(ADDRESS.site6, ...codes.flatMap((code) => [`/reset/${code} `, `/break/${code} `, `/open/${code} ${code}`]), "/plain ");
  expect(said).toEqual([...codes.flatMap((code) => [[null, "", code], [200, "part", code], [200, "open", code]]), [200, "plain", 0]]);
  for (const code of codes) await until(`reset ${code} at the origin`, () => origin.lines.slice(before).includes(JSON.stringify({ path: `/open/${code}`, code })));
});

test("TLS test 26: an answer that is whole before the request is ends the request: what the origin takes back without a fault the guest need not send", async () => {
  const { said } = await streams(ADDRESS.site6, ...Array.from({ length: 30 }, () => "/enough endless"), "/plain ");
  expect(said).toEqual([...Array.from({ length: 30 }, () => [200, "enough", 0]), [200, "plain", 0]]);
});
