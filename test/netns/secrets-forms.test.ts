/**
 * In which forms a secret's placeholder leaves a guest on a real tap, and its value could come back: rows A55–A58 of docs/THREATS.md
 * and tests 34–37 of TLS, with curl and with octets of our own. Each form in detail is in test/unit/secrets-*.test.ts.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Service, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const VALUE = "sk-realvalue-0123456789-abcdefghijklmnopqrstuv";

/** Tells what came, and gives the credentials and the body back in the way that the path names. */
const ECHO = `
  const { readFileSync } = require("node:fs"), { gzipSync, brotliCompressSync } = require("node:zlib");
  let stored = "";
  const answer = (request, response) => {
    const body = [];
    request.on("data", (chunk) => body.push(chunk));
    request.on("end", () => {
      const octets = Buffer.concat(body), { authorization = "", "x-api-key": key = "" } = request.headers;
      console.log(JSON.stringify({ host: request.headers.host ?? request.headers[":authority"], url: request.url, headers: request.headers, body: octets.toString("base64") }));
      const said = authorization + " " + key + " " + octets.toString("latin1"), path = request.url.split("?")[0];
      if (path === "/header") { response.setHeader("x-echo", said.trim()); response.end("header"); }
      else if (path === "/cookie") { response.setHeader("set-cookie", "a=" + encodeURIComponent(said)); response.end("cookie"); }
      else if (path === "/location") { response.writeHead(302, { location: "https://tenant.example/?a=" + encodeURIComponent(said) }); response.end(); }
      else if (path === "/redirect") { response.writeHead(307, { location: "https://tenant.example/taken" }); response.end(); }
      else if (path === "/gzip") { response.setHeader("content-encoding", "gzip"); response.end(gzipSync(said)); }
      else if (path === "/br") { response.setHeader("content-encoding", "br"); response.end(brotliCompressSync(said)); }
      else if (path === "/json") { response.setHeader("content-type", "application/json"); response.end(JSON.stringify({ said })); }
      else if (path === "/base64") response.end(Buffer.from(authorization.replace(/^Bearer /, "")).toString("base64"));
      else if (path === "/range") { response.writeHead(206, { "content-range": "bytes 0-" + (said.length - 1) + "/" + said.length }); response.end(said); }
      else if (path === "/error") { response.writeHead(500); response.end("no such key: " + said); }
      else if (path === "/events") { response.setHeader("content-type", "text/event-stream"); response.write("data: " + said.slice(0, 30)); setTimeout(() => response.end(said.slice(30) + "\\n\\n"), 50); }
      else if (path === "/split") { const half = said.length >> 1; response.write(said.slice(0, half)); setTimeout(() => response.end(said.slice(half)), 50); }
      else if (path === "/store") { stored = said; response.end("stored"); }
      else if (path === "/stored") response.end(stored);
      else response.end(said);
    });
  };
  const server = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem"), allowHTTP1: true }, answer);
  server.on("sessionError", () => {});
  server.listen({ host: "::", port: 443 }, () => console.log("ready"));`;

let world: World, origin: Service, agent: TestAgent, ca: string, placeholder: string;

beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ECHO }));
  writeFileSync(path.join(world.dir, "token"), `${VALUE}\n`, { mode: 0o600 });
  agent = await TestAgent.start(world);
  const text = `
rules:
  - allow: shop.example
  - allow: tenant.example
tls: {intercept: true, upstream_ca: [root.pem]}
secrets:
  KEY:
    from: {file: token}
    allowed_hosts: [shop.example]
    inject: {headers: [authorization, x-api-key], query: true, body: true}
`;
  await agent.client.attach({ tap: "tap0", policy: { file: { path: path.join(world.dir, "policy.yaml"), text } } });
  for (const name of ["shop.example", "tenant.example"]) await tell(world, name);
  ca = path.join(world.runDir, "agent", "tap0.ca.pem");
  placeholder = (await agent.client.secrets("tap0")).environment["KEY"] as string;
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

async function curl(name: string, ...args: string[]): Promise<{ out: string; status: string }> {
  const { stdout } = await world.guest.run(["curl", "-sS", "--max-time", "10", "--cacert", ca, "--resolve", `${name}:443:${ADDRESS.site4}`, "-w", "\n%{http_code}", ...args], { timeoutMs: 20_000 });
  const at = stdout.lastIndexOf("\n");
  return { out: stdout.slice(0, at), status: stdout.slice(at + 1) };
}
interface Arrived { readonly host: string; readonly url: string; readonly headers: Record<string, string>; readonly body: string }
const arrivals = (): (() => Arrived[]) => {
  const before = origin.lines.length;
  return () => origin.lines.slice(before).filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Arrived);
};
const percent = (text: string): string => [...Buffer.from(text)].map((octet) => `%${octet.toString(16).padStart(2, "0")}`).join("");
const escaped = (text: string): string => [...text].map((letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`).join("");
const basic = (text: string): string => Buffer.from(`user:${text}`).toString("base64");
/** A file that curl sends as it is. */
const file = (name: string, octets: string | Buffer): string => {
  const at = path.join(world.dir, name);
  writeFileSync(at, octets);
  return `@${at}`;
};

const wrong: [string, () => string[]][] = [
  ["in the query, with percent signs", () => [`https://tenant.example/?a=${percent(placeholder)}`]],
  ["in the path", () => [`https://tenant.example/${placeholder}/a`]],
  ["in a Basic credential", () => ["-H", `Authorization: Basic ${basic(placeholder)}`, "https://tenant.example/"]],
  ["in a cookie", () => ["-H", `Cookie: a=${placeholder}`, "https://tenant.example/"]],
  ["in JSON escapes", () => ["-H", "content-type: application/json", "-d", `{"a":"${escaped(placeholder)}"}`, "https://tenant.example/"]],
  ["in base64, within a body", () => ["-d", `a=${Buffer.from(`some text, ${placeholder}, more`).toString("base64")}`, "https://tenant.example/"]],
  ["in a body of chunks", () => ["-H", "transfer-encoding: chunked", "--data-binary", file("chunks", "a".repeat(40_000) + placeholder + "b".repeat(40_000)), "https://tenant.example/"]],
  ["in a gzipped body", () => ["-H", "content-encoding: gzip", "--data-binary", file("gzip", gzipSync(placeholder)), "https://tenant.example/"]],
  ["in a form's part", () => ["-F", `a=${placeholder}`, "https://tenant.example/"]],
];
test.each(wrong)("A55, TLS test 34: a placeholder to another host, %s: stopped, and nothing of it arrives", async (_what, args) => {
  for (const version of ["--http1.1", "--http2"]) {
    const arrived = arrivals();
    const { status, out } = await curl("tenant.example", version, ...args());
    expect(["403", "000"], out).toContain(status);
    for (const { url, headers, body } of arrived()) expect(JSON.stringify([url, headers, Buffer.from(body, "base64").toString("latin1")])).not.toContain(placeholder);
    expect(arrived().every(({ body }) => !Buffer.from(body, "base64").includes(VALUE))).toBe(true);
  }
});

test.each(["--http1.1", "--http2"])("TLS tests 34, 35: to its own host the value arrives where it may, in the form of the place, and the length is right (%s)", async (version) => {
  const arrived = arrivals();
  const json = `{"a":"${placeholder}","b":1}`;
  await curl("shop.example", version, `https://shop.example/?a=${placeholder}`);
  await curl("shop.example", version, "-H", `Authorization: Basic ${basic(placeholder)}`, "https://shop.example/");
  await curl("shop.example", version, "-H", "content-type: application/json", "-d", json, "https://shop.example/");
  await curl("shop.example", version, "-H", "transfer-encoding: chunked", "--data-binary", file("own", "a".repeat(40_000) + placeholder), "https://shop.example/");
  const [query, credential, body, chunks] = arrived();
  expect(decodeURIComponent(query!.url)).toBe(`/?a=${VALUE}`);
  expect(Buffer.from(credential!.headers["authorization"]!.slice(6), "base64").toString()).toBe(`user:${VALUE}`);
  expect(JSON.parse(Buffer.from(body!.body, "base64").toString())).toEqual({ a: VALUE, b: 1 });
  if (body!.headers["content-length"] !== undefined) expect(Number(body!.headers["content-length"])).toBe(Buffer.from(body!.body, "base64").length);
  expect(Buffer.from(chunks!.body, "base64").toString()).toBe("a".repeat(40_000) + VALUE);
});

test("TLS test 35: a gzipped body with a placeholder is stopped at its own host too", async () => {
  const arrived = arrivals();
  expect(["403", "000"]).toContain((await curl("shop.example", "-H", "content-encoding: gzip", "--data-binary", file("own.gz", gzipSync(`{"a":"${placeholder}"}`)), "https://shop.example/")).status);
  expect(arrived().filter(({ body }) => body !== "")).toEqual([]);
});

test.each(["header", "cookie", "location", "gzip", "br", "json", "base64", "range", "error", "events", "split", "body"])("A58, TLS test 36: a value that the origin gives back (%s) does not come to the guest", async (way) => {
  for (const version of ["--http1.1", "--http2"]) {
    const arrived = arrivals();
    const { stdout } = await world.guest.run(["curl", "-sS", "--compressed", "-D", "-", "--max-time", "10", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, version, "-H", `Authorization: Bearer ${placeholder}`, "-d", `key=${placeholder}`, `https://shop.example/${way}`], { timeoutMs: 20_000 });
    expect(arrived().some(({ headers }) => headers["authorization"] === `Bearer ${VALUE}`)).toBe(true);
    for (const form of [VALUE, encodeURIComponent(VALUE), Buffer.from(VALUE).toString("base64").slice(0, -4), VALUE.slice(0, 30)]) expect(stdout).not.toContain(form);
  }
});

test("A58, TLS test 36: one that was kept comes to no later request either", async () => {
  await curl("shop.example", "-H", `Authorization: Bearer ${placeholder}`, "https://shop.example/store");
  const { out, status } = await curl("shop.example", "https://shop.example/stored");
  expect(status).toBe("200");
  expect(out).toContain(placeholder);
  expect(out).not.toContain(VALUE);
});

test("A57, TLS test 37: a redirect to another host is the guest's to follow, and there the placeholder is stopped", async () => {
  const arrived = arrivals();
  expect((await curl("shop.example", "-H", `Authorization: Bearer ${placeholder}`, "https://shop.example/redirect")).status).toBe("307");
  expect(arrived().map(({ host, url }) => host + url)).toEqual(["shop.example/redirect"]);
  const followed = await curl("shop.example", "--resolve", `tenant.example:443:${ADDRESS.site4}`, "--location-trusted", "-H", `Authorization: Bearer ${placeholder}`, "https://shop.example/redirect");
  expect(followed.status).toBe("403");
  expect(arrived().filter(({ host }) => host === "tenant.example")).toEqual([]);
});
