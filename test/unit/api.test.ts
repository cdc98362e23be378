/**
 * Server and client of the API, without a kernel: an agent that is made up answers. What a real one does is in
 * test/netns/daemon.test.ts.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { Agent } from "../../src/agent/daemon.js";
import { EVENTS_WAITING, WatchHub, type Watcher, type WatchEvent } from "../../src/agent/watch.js";
import { attachRequest, type WatchQuery } from "../../src/api/schema.js";
import { errorKinds, type ErrorCode } from "../../src/errors.js";
import { AgentClient, EnforcerError } from "../../src/index.js";
import { parseStrictJson } from "../../src/api/json.js";
import { serveApi, type ApiServer } from "../../src/api/server.js";

const folder = mkdtempSync(path.join(tmpdir(), "enforcer-api-"));
const socket = path.join(folder, "run", "agent.sock");
const asked: unknown[] = [];
const watchers = new WatchHub();
const agent = {
  watchers,
  watch: (watcher: Watcher) => {
    const seat = watchers.add(watcher);
    return seat === null ? null : { end: seat.end, begun: Promise.resolve() };
  },
  known: () => [],
  need: (name: string) => { throw new EnforcerError("E_NO_SANDBOX", `there is no sandbox ${name}`); },
  enforced: (name: string) => { throw new EnforcerError("E_NO_SANDBOX", `there is no sandbox ${name}`); },
  attach: (request: unknown) => {
    asked.push(request);
    return Promise.reject(new EnforcerError("E_TAP_TAKEN", "tap0: another enforcer serves it", { remedy: "end the other one" }));
  },
  detach: (name: string) => name.startsWith("E_") ? Promise.reject(new EnforcerError(name as ErrorCode, "as asked for")) : Promise.resolve(asked.push(name)),
  setPolicy: (_: string, request: unknown) => {
    asked.push(request);
    return Promise.resolve({ uid: "7", written: 2, left: 1, warnings: [] });
  },
  reload: () => Promise.reject(new TypeError("of the program")),
} as unknown as Agent;

let server: ApiServer;
const client = new AgentClient(socket);
beforeAll(async () => { server = await serveApi(agent, socket); });
afterAll(async () => {
  await server.close();
  rmSync(folder, { recursive: true, force: true });
});

it("the package's entry loads no addon", () => {
  const script = `process.dlopen = () => { throw new Error("an addon is loaded"); }; import(${JSON.stringify(path.resolve("dist/index.js"))}).then(({ AgentClient }) => console.log(typeof AgentClient));`;
  expect(execFileSync(process.execPath, ["-e", script], { encoding: "utf8" }).trim()).toBe("function");
});

describe("the API", () => {
  it("listens for root alone, and takes the place of a socket that a dead agent left", async () => {
    expect(statSync(socket).mode & 0o777).toBe(0o600);
    expect(statSync(path.dirname(socket)).mode & 0o777).toBe(0o700);
    const left = path.join(folder, "left", "agent.sock");
    mkdirSync(path.dirname(left), { mode: 0o755 });
    writeFileSync(left, "");
    const other = await serveApi(agent, left);
    expect(statSync(path.dirname(left)).mode & 0o777).toBe(0o700);
    await other.close();
    // A directory that others may write to could have its socket exchanged.
    const open = path.join(folder, "open", "agent.sock");
    mkdirSync(path.dirname(open));
    chmodSync(path.dirname(open), 0o777);
    await expect(serveApi(agent, open)).rejects.toMatchObject({ code: "E_STATE" });
  });

  it.skipIf(process.geteuid?.() !== 0)("refuses whoever is not root", () => {
    chmodSync(folder, 0o755);
    // As nobody; the directory alone already says no.
    const script = `const s = require("node:net").connect(${JSON.stringify(socket)}); s.on("connect", () => console.log("connected")); s.on("error", (e) => console.log(e.code));`;
    expect(execFileSync("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups", process.execPath, "-e", script], { encoding: "utf8" }).trim()).toBe("EACCES");
  });

  it("gives errors as they were thrown: code, message, remedy, exit status", async () => {
    const error = await client.attach({ tap: "tap0" }).then(() => null, (thrown: EnforcerError) => thrown);
    expect(error).toBeInstanceOf(EnforcerError);
    expect(error).toMatchObject({ code: "E_TAP_TAKEN", message: "tap0: another enforcer serves it", remedy: "end the other one", exit: 69 });
    await expect(client.sandbox("no one/here %")).rejects.toMatchObject({ code: "E_NO_SANDBOX", message: "there is no sandbox no one/here %" });
    await expect(new AgentClient(path.join(folder, "nobody.sock")).list()).rejects.toMatchObject({ code: "E_NO_AGENT" });
  });

  it("answers each code with the status that docs/API.md says", async () => {
    const rows = [...readFileSync("docs/API.md", "utf8").matchAll(/^\| (\d{3}) \| (.*) \|$/gm)];
    const said = new Map(rows.flatMap(([, status, codes]) => [...codes!.matchAll(/`(E_\w+)`/g)].map(([, code]): [string, number] => [code!, Number(status)])));
    for (const code of Object.keys(errorKinds)) {
      const status = await new Promise((resolve, reject) => { request({ socketPath: socket, method: "DELETE", path: `/v1/sandboxes/${code}` }, (response) => resolve(response.resume().statusCode)).on("error", reject).end(); });
      expect([code, status]).toEqual([code, said.get(code) ?? 500]);
    }
    // What was asked for wrongly is not the program's fault.
    for (const code of ["E_CA", "E_SECRET"]) expect(said.get(code)).toBe(422);
  });

  it("tells a fault of the program as one, without its inside", async () => {
    const error = await client.reload().then(() => null, (thrown: EnforcerError) => thrown);
    expect(error?.message).toMatch(/fault of the program/);
    expect(error?.message).not.toMatch(/of the program$|TypeError/);
  });

  it("hands on what was asked, as it was asked", async () => {
    asked.length = 0;
    const policy = { file: { path: "/etc/p.yaml", text: "rules: []\n" }, rules: ["allow@public"], default_egress: "deny" as const };
    expect(await client.setPolicy("tap0", policy)).toEqual({ uid: "7", pins: { kept: 2, left: 1 }, warnings: [] });
    await client.detach("a/b c");
    expect(asked).toEqual([policy, "a/b c"]);
  });

  it.each([
    [{ tap: "" }], [{ tap: "x".repeat(16) }], [{ tap: "tap0", name: "a b" }], [{ tap: "tap0", name: "a/b/c" }], [{ tap: "tap0", name: "a\nb" }], [{ tap: "tap0", name: ".." }], [{ tap: "tap0", name: "." }], [{ tap: "tap0", name: "a\u202eb" }], [{ tap: "tap0", name: "a\u00a0b" }], [{ tap: "tap0", gateways: ["10.0.0.300"] }],
    [{ tap: "tap0", guest: ["here"] }], [{ tap: "tap0", mac: "02:fc" }], [{ tap: "tap0", upstreams: ["dns.example"] }], [{ tap: "tap0", wait: "yes" }], [{ tap: "tap0", policy: { file: { path: "relative.yaml", text: "" } } }],
    [{ tap: "tap0", policy: { file: { path: "/x" } } }], [{ tap: "tap0", policy: { default_egress: "maybe" } }], [{ tap: "tap0", extra: 1 }], [{}], [[]], ["tap0"], [null],
  ])("refuses %j", async (request) => {
    asked.length = 0;
    await expect(client.attach(request as never)).rejects.toMatchObject({ code: "E_REQUEST" });
    expect(asked).toEqual([]);
  });

  it.each([
    ["\u0016\u0003\u0001", /400[\s\S]*E_REQUEST/], ["GET http://[ HTTP/1.1\r\nhost: x", /400[\s\S]*E_REQUEST/], ["GET //[ HTTP/1.1\r\nhost: x", /400[\s\S]*E_REQUEST/],
    [`GET /v1/version HTTP/1.1\r\nhost: x\r\nx: ${"a".repeat(20_000)}`, /431[\s\S]*E_REQUEST/], [`GET /${"a".repeat(20_000)} HTTP/1.1\r\nhost: x`, /431[\s\S]*E_REQUEST/], ["GET /v1/sandboxes/%ff HTTP/1.1\r\nhost: x", /400[\s\S]*E_REQUEST/],
    ["GET /v2/version HTTP/1.1\r\nhost: x", /404[\s\S]*version 1/], ["GET /v1/nothing HTTP/1.1\r\nconnection: close", /404[\s\S]*there is no/], ["HEAD /v1/version HTTP/1.1\r\nhost: x", /^HTTP\/1.1 405/], ["DELETE /v1/version HTTP/1.1\r\nhost: x", /405[\s\S]*takes GET/], ["GET /v1/version?x=1 HTTP/1.1\r\nhost: x", /400[\s\S]*unknown: x/],
    ["GET /v1/version?__proto__=1 HTTP/1.1\r\nhost: x", /400[\s\S]*unknown: __proto__/], ["GET /v1/sandboxes/a/flows?limit=1&limit=2 HTTP/1.1\r\nhost: x", /400[\s\S]*twice/],
    ...["", "0", "-1", "1e3", "0x10", "%201", "1.5", "99999999999"].map((limit): [string, RegExp] => [`GET /v1/sandboxes/a/flows?limit=${limit} HTTP/1.1\r\nhost: x`, /400[\s\S]*parameter limit/]),
    ["GET /v1/sandboxes/a/explain?destination=b&port= HTTP/1.1\r\nhost: x", /400[\s\S]*parameter port/], ["GET /v1/sandboxes/a/flows?limit=7 HTTP/1.1\r\nhost: x", /404[\s\S]*E_NO_SANDBOX/],
  ])("%j is answered with an error that says so", async (request, answer) => {
    const raw = connect(socket);
    let text = "";
    raw.on("error", () => undefined).setEncoding("utf8").on("data", (chunk: string) => { text += chunk; });
    raw.write(`${request}${request.includes("host: x") ? "\r\nconnection: close" : ""}\r\n\r\n`);
    await new Promise<void>((resolve) => raw.on("close", () => resolve()));
    expect(text).toMatch(answer);
    expect(text).not.toMatch(/E_FAULT/);
    await expect(client.sandbox("tap0")).rejects.toMatchObject({ code: "E_NO_SANDBOX" });
  });

  it("a request that does not come whole is told so in time; one whose sender goes away is no fault of the program", async () => {
    const quick = path.join(folder, "quick", "agent.sock");
    const other = await serveApi(agent, quick, 300);
    const errors = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    try {
      const begun = "POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
      const said = await Promise.all(["GET /v1/ver", begun].map((text) => new Promise<string>((resolve) => {
        let heard = "";
        connect(quick).on("data", (chunk: Buffer) => { heard += chunk.toString(); }).on("error", () => undefined).on("close", () => resolve(heard)).write(text);
      })));
      for (const one of said) expect(one).toMatch(/^HTTP\/1\.1 408 [\s\S]*E_REQUEST.*had not come whole within 0\.3 s/);
      const gone = connect(quick);
      gone.write(begun);
      await expect.poll(() => gone.bytesWritten).toBe(begun.length);
      await new AgentClient(quick).list();
      gone.destroy();
      await new Promise<void>((resolve) => gone.once("close", () => resolve()));
      // Its end has been seen when a later one is served.
      for (let i = 0; i < 3; i++) await new AgentClient(quick).list();
      expect(errors.mock.calls.map(([text]) => String(text))).toEqual([]);
    } finally {
      errors.mockRestore();
      await other.close();
    }
  });

  it("refuses bodies beyond its bound, and goes on serving", async () => {
    const raw = connect(socket);
    raw.on("error", () => undefined);
    let text = "";
    raw.setEncoding("utf8").on("data", (chunk: string) => { text += chunk; });
    const ended = new Promise<void>((resolve) => raw.on("close", () => resolve()));
    const octets = 50 * 1024 * 1024;
    raw.write(`POST /v1/sandboxes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${octets}\r\n\r\n`);
    for (let sent = 0; sent < octets && !raw.destroyed; sent += 1 << 20) if (!raw.write(Buffer.alloc(1 << 20, 32))) await Promise.race([new Promise<void>((resolve) => raw.once("drain", resolve)), ended]);
    await ended;
    expect(text).toMatch(/422[\s\S]*E_LIMIT/);
    await expect(client.sandbox("tap0")).rejects.toMatchObject({ code: "E_NO_SANDBOX" });
  });

  it("streams to watchers what they asked for, and tells those that do not read how much they missed", async () => {
    const time = new Date().toISOString();
    const denied = (reason: string, more: object = {}): WatchEvent => ({ event: "denied", time, sandbox: "tap0", direction: "egress", reason, destination: "10.0.0.1", ...more });
    const ending = new AbortController();
    const seen: WatchEvent[] = [];
    const done = (async () => { for await (const event of client.watch({ reason: "no-pin", destination: "10.0.0.0/8" }, ending.signal)) seen.push(event); })();
    await expect.poll(() => watchers.size).toBe(1);
    watchers.tell(denied("no-pin"));
    watchers.tell(denied("rule-deny"));
    watchers.tell(denied("no-pin", { destination: "192.0.2.1" }));
    watchers.tell({ event: "attached", time, sandbox: "tap1" });
    watchers.tell(denied("no-pin", { destination: "10.9.9.9" }));
    await expect.poll(() => seen.length).toBe(3);
    expect(seen.map(({ event, destination }) => destination ?? event)).toEqual(["watching", "10.0.0.1", "10.9.9.9"]);
    ending.abort();
    await done;
    await expect.poll(() => watchers.size).toBe(0);

    // One that does not read.
    const slow = connect(socket);
    slow.pause();
    slow.write("GET /v1/watch HTTP/1.1\r\nhost: x\r\n\r\n");
    await expect.poll(() => watchers.size).toBe(1);
    for (let i = 0; i < 40; i++) {
      for (let j = 0; j < 100; j++) watchers.tell(denied("no-pin", { name: "x".repeat(1000) }));
      await new Promise((resolve) => setImmediate(resolve));
    }
    let text = "";
    slow.setEncoding("utf8").on("data", (chunk: string) => { text += chunk; });
    slow.resume();
    await expect.poll(() => {
      watchers.tell(denied("no-pin", { name: "later" }));
      return /"event":"lost","time":"[^"]*","count":[1-9]/.test(text);
    }).toBe(true);
    slow.destroy();
    await expect.poll(() => watchers.size).toBe(0);
  });

  it.each<[WatchQuery, RegExp | null]>([
    [{ reason: "no-pinn" }, /did you mean no-pin\?/], [{ reason: "rule-allow" }, null], [{ reason: "blocked" }, null], [{ reason: "name-denied" }, null], [{ reason: "intercepted", verdict: "deny" }, /intercepted is no reason for which anything is denied/],
    [{ reason: "established" }, /no reason/], [{ destination: "a/b" }, /destination/], [{ destination: "[2606:4700::1]" }, null], [{ destination: "*.b\u00fccher.example" }, null], [{ destination: "suffix:example.com" }, null],
  ])("a filter is read when it is asked for: %j", (query, words) => {
    const hub = new WatchHub();
    const add = (): unknown => hub.add({ query, send: () => true });
    if (words === null) expect(add()).not.toBeNull();
    else expect(add).toThrow(expect.objectContaining({ code: "E_REQUEST" }) as Error);
    if (words !== null) {
      let text = "";
      try {
        add();
      } catch (error) {
        text = `${(error as EnforcerError).message}; ${(error as EnforcerError).remedy}`;
      }
      expect(text).toMatch(words);
    }
    expect(hub.wantsFlows("tap0")).toBe(query.reason === "rule-allow");
  });

  it("names in other letters and below a pattern are found", () => {
    const hub = new WatchHub();
    const seen: unknown[] = [];
    hub.add({ query: { destination: "*.B\u00fccher.example" }, send: (event) => Boolean(seen.push(event.name)) });
    for (const name of ["xn--bcher-kva.example", "www.xn--bcher-kva.example", "www.XN--BCHER-KVA.example", "www.other.example"]) hub.tell({ event: "dns-denied", time: "", sandbox: "tap0", name, reason: "denied" });
    expect(seen).toEqual(["www.xn--bcher-kva.example", "www.XN--BCHER-KVA.example"]);
  });

  it("events whose names are slow to come wait in a bounded number; what is over it is missed, and told as a number, and then it goes on", async () => {
    const hub = new WatchHub(), seen: WatchEvent[] = [], other: WatchEvent[] = [];
    hub.add({ query: { sandbox: "tap0" }, send: (event) => Boolean(seen.push(event)) });
    hub.add({ query: { verdict: "allow" }, send: (event) => Boolean(other.push(event)) });
    expect([hub.wantsDenials("tap0"), hub.wantsDenials("tap1")]).toEqual([true, false]);
    let begun = 0, come = (): void => undefined;
    const names = new Promise<void>((resolve) => { come = resolve; });
    const describe = async (n: number): Promise<WatchEvent> => {
      begun++;
      await names;
      return { event: "denied", time: "", sandbox: "tap0", n };
    };
    // In pieces that do not fit, as a ring buffer gives them.
    const PIECE = 1_000, PIECES = 100;
    for (let i = 0; i < PIECES; i++) hub.tellLater("deny", Array.from({ length: PIECE }, (_, k) => i * PIECE + k), describe);
    come();
    await expect.poll(() => seen.length).toBe(EVENTS_WAITING + 1);
    expect(begun).toBe(EVENTS_WAITING);
    expect(seen[0]).toEqual({ event: "lost", time: "", count: PIECE * PIECES - EVENTS_WAITING });
    expect(seen.slice(1).map(({ n }) => n)).toEqual(Array.from({ length: EVENTS_WAITING }, (_, k) => k));
    hub.tellLater("deny", [-1], describe);
    await expect.poll(() => seen.at(-1)).toMatchObject({ event: "denied", n: -1 });
    hub.tellLater("allow", [7], async () => ({ event: "allowed", time: "", sandbox: "tap0" }));
    await expect.poll(() => other).toEqual([{ event: "allowed", time: "", sandbox: "tap0" }]);
  });

  it("has room for a bounded number of watchers", async () => {
    const endings = Array.from({ length: 64 }, () => new AbortController());
    const running = endings.map(async ({ signal }) => { for await (const _ of client.watch({}, signal)) void _; });
    await expect.poll(() => watchers.size).toBe(64);
    await expect((async () => { for await (const _ of client.watch()) void _; })()).rejects.toMatchObject({ code: "E_LIMIT" });
    for (const ending of endings) ending.abort();
    await Promise.all(running);
    await expect.poll(() => watchers.size).toBe(0);
  });
});

describe("JSON of a request", () => {
  it.each(["{}", "[]", "null", '"a"', '{"a":{"a":[{"a":1},{"a":2}],"b":"{\\"a\\":1,\\"a\\":2}"},"b":{"a":1}}', '[{"a":1},{"a":1}]', '{"":1,"\\\\":"\\\\","\\"":"\\\\\\""}', '{"__proto__":1,"a":"__proto__"}', ' { "a" : [ "a" , "a" ] , "b" : "a" } '])("%s is read as it stands", (text) => {
    expect(parseStrictJson(text)).toEqual(JSON.parse(text));
  });

  it.each(['{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '[0,{"x":{"a":[],"b":{},"a":0}}]', '{"":1,"":2}', '{"a\\"":1,"a\\"":2}', '{"x":"\\\\","a":1,"a":2}', '{"__proto__":1,"__proto__":2}', '{"x":{"a":1},"b":[{"a":1}],"x":1}'])("%s is refused: a key is there twice", (text) => {
    JSON.parse(text);
    expect(() => parseStrictJson(text)).toThrow(/is there twice/);
  });

  it("what random objects are written as is read", () => {
    fc.assert(fc.property(fc.json(), (text) => { expect(parseStrictJson(text)).toEqual(JSON.parse(text)); }), { numRuns: 2_000 });
  });

  it("is refused with the request", async () => {
    asked.length = 0;
    const answer = await new Promise<string>((resolve, reject) => {
      request({ socketPath: socket, method: "POST", path: "/v1/sandboxes", headers: { "content-type": "application/json" } }, (response) => { response.setEncoding("utf8").on("data", resolve); }).on("error", reject).end('{"tap":"tap0","tap":"tap1"}');
    });
    expect(answer).toMatch(/E_REQUEST.*\\"tap\\" is there twice/);
    expect(asked).toEqual([]);
  });
});

it("a sandbox's name that no file can be named after is refused with the request, not met as a fault later", () => {
  const named = (name: string): boolean => attachRequest.safeParse({ tap: "tap0", name }).success;
  expect(["box", "ns/tap0", "../x", "%d", "ä b".replace(" ", "_"), "é".repeat(38), "a".repeat(120)].map(named)).toEqual(Array(7).fill(true));
  expect(["", "a b", "a/b/c", "/a", "a\0", "half \ud83d".replace(" ", ""), "\udc00", "é".repeat(39), "😀".repeat(60), "a".repeat(121)].map(named)).toEqual(Array(10).fill(false));
});
