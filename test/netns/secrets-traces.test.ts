/**
 * Where a secret must not turn up: at the end of a redirect that a guest's client follows (row A57, TLS test 37), and in anything that
 * is left of the agent or passes its host's devices (row A59, TLS test 39). From a guest on a real tap, with curl, Python's requests and Node's fetch.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Capture } from "../lib/capture.js";
import { assertNowhere } from "../lib/secrets.js";
import { ADDRESS, ENFORCER, type Service, until, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const VALUE = "sk-realvalue-9876543210-zyxwvutsrqponmlkjihgfe", METRICS = "127.0.0.1:9472";

/** Sends those who ask on, as the path says, or breaks off with the credential in what it says last. Tells each request. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  const places = { other: "https://tenant.example/taken", relative: "//tenant.example/taken", user: "https://a:b@tenant.example/taken", plain: "http://shop.example/taken", port: "https://shop.example:8443/taken", back: "https://shop.example/landed" };
  const answer = (request, response) => {
    const host = request.headers.host ?? request.headers[":authority"], [, what, code, place] = request.url.split("/");
    const key = request.headers["x-api-key"] ?? "";
    console.log(JSON.stringify({ host, url: request.url, method: request.method, key }));
    request.resume();
    if (what === "go") { response.writeHead(+code, { location: places[place] }); response.end(); }
    else if (what === "refresh") { response.writeHead(200, { refresh: "0; url=https://tenant.example/taken" }); response.end("<meta http-equiv=refresh content='0; url=https://tenant.example/taken'>"); }
    else if (what === "garbage") request.socket.end("HTTP/1.1 200 OK\\r\\nbad header " + key + "\\r\\nContent-Length: 3, 4\\r\\n\\r\\n" + key);
    else if (what === "odd") request.socket.end("HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\nX: " + key + "\\r\\n\\r\\n" + key);
    else if (what === "short") { response.writeHead(200, { "content-length": "100000", "x-echo": key }); response.write(key); setTimeout(() => request.socket.resetAndDestroy(), 100); }
    else if (what === "coded") { response.writeHead(200, { "content-encoding": "gzip" }); response.end("no gzip: " + key); }
    else response.end("landed");
  };
  const server = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem"), allowHTTP1: true }, answer);
  server.on("sessionError", () => {});
  require("node:net").createServer((socket) => server.emit("connection", socket)).listen({ host: "::", port: 8443 }, () => server.listen({ host: "::", port: 443 }, () => console.log("ready")));`;

let world: World, origin: Service, agent: TestAgent, watcher: Awaited<ReturnType<TestAgent["watch"]>>, ca: string, placeholder: string, keylog: string, hosts: string;
const captures: Capture[] = [];
/** All that guests' programs said. */
const answers: string[] = [];
const policy = (): { file: { path: string; text: string } } => ({ file: { path: path.join(world.dir, "policy.yaml"), text: `
rules:
  - allow: shop.example
  - allow: tenant.example
tls: {intercept: true, upstream_ca: [root.pem], ports: [8443]}
secrets:
  KEY: {from: {file: token}, allowed_hosts: [shop.example], inject: {headers: [authorization, x-api-key], query: true}}
` } });

beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN }));
  writeFileSync(path.join(world.dir, "token"), `${VALUE}\n`, { mode: 0o600 });
  keylog = path.join(world.dir, "keylog");
  for (const [namespace, device] of [[world.guest, "eth0"], [world.host, "tap0"], [world.host, "up0"]] as const) captures.push(await Capture.start(world, namespace, device, "tcp or udp"));
  // For the agent; programs that are run here have it as well, and none of them writes one.
  process.env["SSLKEYLOGFILE"] = keylog;
  agent = await TestAgent.start(world, `metrics: ${METRICS}\n`);
  delete process.env["SSLKEYLOGFILE"];
  watcher = await agent.watch();
  await agent.client.attach({ tap: "tap0", policy: policy() });
  for (const name of ["shop.example", "tenant.example"]) await tell(world, name);
  ca = path.join(world.runDir, "agent", "tap0.ca.pem");
  placeholder = (await agent.client.secrets("tap0")).environment["KEY"] as string;
  hosts = path.join(world.dir, "hosts");
  writeFileSync(hosts, `${ADDRESS.site4} shop.example tenant.example\n`);
});
afterAll(async () => {
  await watcher?.end().catch(() => undefined);
  await agent?.service.stop();
  await world?.close();
});

interface Arrived { readonly host: string; readonly url: string; readonly method: string; readonly key: string }
const arrivals = (): (() => Arrived[]) => {
  const before = origin.lines.length;
  return () => origin.lines.slice(before).filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Arrived);
};

/** Requests that follow redirects, with the placeholder in a field that clients take along to another host; for each the last status, and how many they followed. */
const clients: Record<string, (urls: string[]) => string[]> = {
  curl: (urls) => ["curl", "-sS", "-L", "--max-time", "20", "--cacert", ca, "-H", `x-api-key: ${placeholder}`, "-w", "status %{http_code} %{num_redirects}\n", ...urls],
  // Debian's own Python, which has its packages.
  requests: (urls) => ["/usr/bin/python3", "-c", `import requests, sys
for url in sys.argv[3:]:
    answer = requests.get(url, headers={"x-api-key": sys.argv[1]}, verify=sys.argv[2], timeout=20)
    print("status %d %d" % (answer.status_code, len(answer.history)))`, placeholder, ca, ...urls],
  fetch: (urls) => ["env", `NODE_EXTRA_CA_CERTS=${ca}`, process.execPath, "-e", `(async () => { for (const url of process.argv.slice(2)) { const answer = await fetch(url, { headers: { "x-api-key": process.argv[1] } }); console.log("status " + answer.status + " " + (answer.redirected ? 1 : 0)); } })();`, placeholder, ...urls],
};
async function follow(client: string, urls: string[]): Promise<string[]> {
  const { stdout, stderr } = await world.guest.run(["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, ...(clients[client] as (urls: string[]) => string[])(urls)], { timeoutMs: 60_000 });
  answers.push(stdout, stderr);
  expect(stderr).toBe("");
  return [...stdout.matchAll(/status (\d+ \d+)$/gm)].map((match) => match[1] as string);
}

test.each(Object.keys(clients))("A57, TLS test 37: %s follows redirects to another host, also without a scheme and with userinfo, to plain HTTP and to another port: stopped there, and the agent makes no request of its own", async (client) => {
  // fetch itself follows none with userinfo.
  const targets = [301, 302, 303, 307, 308].map((code) => `/go/${code}/other`).concat(["relative", ...(client === "fetch" ? [] : ["user"]), "plain", "port"].map((place) => `/go/302/${place}`));
  const arrived = arrivals(), plain = world.services.internet.seen("http").length;
  expect(await follow(client, targets.map((target) => `https://shop.example${target}`))).toEqual(targets.map(() => "403 1"));
  expect(arrived()).toEqual(targets.map((url) => ({ host: "shop.example", url, method: "GET", key: VALUE })));
  expect(world.services.internet.seen("http").length).toBe(plain);
});

test.each(Object.keys(clients))("A57: each hop is judged: %s comes back to the secret's own host with the value put in anew, and not by way of another", async (client) => {
  const arrived = arrivals();
  expect(await follow(client, ["https://shop.example/go/307/back", "https://tenant.example/go/307/back"])).toEqual(["200 1", "403 0"]);
  expect(arrived().map(({ host, url, key }) => [host, url, key])).toEqual([["shop.example", "/go/307/back", VALUE], ["shop.example", "/landed", VALUE]]);
});

test("A57: what asks the guest to go on in other ways comes to it as it is, and the agent does not", async () => {
  const arrived = arrivals();
  const { stdout } = await world.guest.run(["curl", "-sSi", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "-H", `x-api-key: ${placeholder}`, "https://shop.example/refresh"], { timeoutMs: 20_000 });
  expect(stdout).toMatch(/^refresh: 0; url=https:\/\/tenant\.example\/taken\r$/m);
  expect(arrived().map(({ host, url }) => host + url)).toEqual(["shop.example/refresh"]);
});

test.each(["garbage", "odd", "short", "coded"])("TLS test 39: an answer that breaks with the value in it (%s) is told without it, to the guest and to who watches", async (way) => {
  for (const version of ["--http1.1", "--http2"]) {
    const arrived = arrivals();
    const { stdout, stderr } = await world.guest.run(["curl", "-sSi", version, "--max-time", "20", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "-H", `x-api-key: ${placeholder}`, `https://shop.example/${way}?k=${placeholder}`], { timeoutMs: 30_000 });
    answers.push(stdout, stderr);
    expect(arrived().map(({ key }) => key)).toEqual([VALUE]);
    expect(stdout).not.toContain(VALUE.slice(0, 20));
  }
});

test("TLS test 39: SIGUSR1 opens no inspector, in which everybody on the host could read the agent's memory", async () => {
  const open = async (): Promise<string> => (await world.host.run(["ss", "-Hltn"])).stdout;
  const before = await open();
  process.kill(agent.service.pid as number, "SIGUSR1");
  // It goes on, and answers: what the signal does is done.
  for (let i = 0; i < 20; i++) await agent.client.status();
  expect(await open()).toBe(before);
  expect(agent.service.errors.join("\n")).not.toMatch(/debugger/i);
});

test("TLS test 39: an agent with NODE_DEBUG=http2, which prints headers, serves no secret, and says so", async () => {
  const file = path.join(world.dir, "leaky.yaml");
  writeFileSync(file, policy().file.text);
  const { status, stderr, stdout } = await world.host.run(["env", "NODE_DEBUG=http2", ENFORCER, "attach", "tap0", "--policy", file, "--run-dir", path.join(world.dir, "leaky"), "--bpffs", world.bpffs, "--metrics", "off", "--upstream", ADDRESS.resolver4], { timeoutMs: 60_000 });
  expect(status).not.toBe(0);
  expect(stderr + stdout).toContain("secrets cannot be served while NODE_DEBUG is set");
});

test("A59, TLS test 39: nothing on the guest's device, the tap or the uplink, no key log, no report, no core: the value and its base64 are nowhere", async () => {
  // In plain text, so that what is searched is seen to be there.
  await world.guest.run(["curl", "-sS", "--resolve", `shop.example:80:${ADDRESS.site4}`, "http://shop.example/seen-in-the-capture"], { timeoutMs: 20_000 });
  for (const capture of captures) {
    await until(`the mark in ${capture.file}`, () => readFileSync(capture.file).includes("/seen-in-the-capture"));
    await capture.stop();
  }
  const metrics = (await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout;
  expect(metrics).toMatch(/enforcer_secrets_total\{sandbox="tap0",secret="KEY",event="injected"\} [1-9]/);
  const texts: Record<string, string> = { guest: answers.join("\n"), log: agent.service.report(), events: JSON.stringify(watcher.events), metrics, status: JSON.stringify(await agent.client.sandbox("tap0")) };
  await watcher.end().catch(() => undefined);
  // As after a fault of the runtime itself.
  expect(readFileSync(`/proc/${agent.service.pid}/limits`, "latin1")).toMatch(/core file size +0 +0/);
  process.kill(agent.service.pid as number, "SIGABRT");
  await until("the agent's end", () => agent.service.ended !== null);
  texts["last words"] = agent.service.report();
  expect(agent.service.ended?.signal ?? "SIGABRT").toBe("SIGABRT");
  const left = readdirSync(world.dir).filter((name) => !["token", "bpffs"].includes(name));
  expect(left).not.toContain("keylog");
  assertNowhere(VALUE, { files: left.map((name) => path.join(world.dir, name)), texts });
  for (const folder of [process.cwd(), world.dir]) expect(readdirSync(folder).filter((name) => /^core(\.|$)|^report\.|\.heapsnapshot$/.test(name))).toEqual([]);
});
