/**
 * An agent that is killed in the middle of transfers, with secrets under way, and started again; and a sandbox's CA from its first to
 * its last day. From guests on real taps: TLS test 40.
 */
import { copyFileSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Capture } from "../lib/capture.js";
import { ADDRESS, type Namespace, type Service, until, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const VALUE = "sk-realvalue-5555555555-lifecycleabcdefghijkl";

/** Gives and takes without end, and tells when a transfer has come to a megabyte; of other requests the name and the key. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  const answer = (request, response) => {
    const host = request.headers.host ?? request.headers[":authority"], what = request.url.slice(1);
    if (!what.startsWith("flow")) {
      console.log(JSON.stringify({ host, key: request.headers["x-api-key"] ?? null }));
      response.end("ok");
      return;
    }
    let octets = 0;
    const count = (more) => { const was = octets; octets += more; if (was < 1e6 && octets >= 1e6) console.log("flows " + what); };
    request.on("data", (chunk) => count(chunk.length));
    if (request.method === "GET") {
      const block = Buffer.alloc(65536, "x");
      const more = () => { while (!response.destroyed) { count(block.length); if (!response.write(block)) break; } };
      response.on("drain", more);
      more();
    }
  };
  const server = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem"), allowHTTP1: true }, answer);
  server.on("sessionError", () => {});
  server.listen({ host: "::", port: 443 }, () => console.log("ready"));`;

/** Knocks without pause, in turn for the allowed name with the placeholder and for one that is not allowed, until it is told to end; tells what it got. */
const KNOCK = `
  const [ca, placeholder] = process.argv.slice(1), got = {};
  let going = true;
  process.stdin.on("data", () => { going = false; });
  const once = (name) => new Promise((resolve) => {
    const socket = require("node:tls").connect({ port: 443, host: "${ADDRESS.site4}", servername: name, ca: require("node:fs").readFileSync(ca), rejectUnauthorized: name === "shop.example", ALPNProtocols: ["http/1.1"] });
    const over = (word) => { got[name + " " + word] = (got[name + " " + word] ?? 0) + 1; socket.destroy(); resolve(word); };
    socket.setTimeout(20000, () => over("silence"));
    socket.on("error", (error) => over(error.code));
    socket.on("close", () => over("closed"));
    socket.on("data", (data) => { const word = data.toString().split(" ")[1]; if (word === "200" && name === "shop.example" && got["shop.example 200"] === undefined) console.log("served"); over(word); });
    socket.on("secureConnect", () => socket.write("GET /knock HTTP/1.1\\r\\nhost: " + name + "\\r\\nx-api-key: " + placeholder + "\\r\\nconnection: close\\r\\n\\r\\n"));
  });
  (async () => {
    console.log("knocking");
    while (going) { await once("shop.example"); await once("other.example"); await new Promise((resolve) => setTimeout(resolve, 5)); }
    console.log(JSON.stringify(got));
    process.exit();
  })();`;

let world: World, origin: Service, agent: TestAgent, placeholder: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN, sibling: true }));
  writeFileSync(path.join(world.dir, "token"), VALUE, { mode: 0o600 });
  agent = await TestAgent.start(world);
  const text = `
rules:
  - allow: shop.example
  - allow: bank.example
tls: {intercept: true, upstream_ca: [root.pem], bypass: [bank.example]}
secrets:
  KEY: {from: {file: token}, allowed_hosts: [shop.example]}
`;
  for (const [tap, guest] of [["tap0", world.guest], ["tap1", world.sibling!]] as const) {
    await agent.client.attach({ tap, policy: { file: { path: path.join(world.dir, "policy.yaml"), text } } });
    for (const name of ["shop.example", "bank.example"]) await tell(world, name, guest);
  }
  placeholder = (await agent.client.secrets("tap0")).environment["KEY"] as string;
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

const kept = (tap: string, ending: "key" | "pem"): string => path.join(world.runDir, "agent", `${tap}.ca.${ending}`);
const curl = (guest: Namespace, ca: string): Promise<{ status: number | null; stdout: string }> => guest.run(["curl", "-sS", "--max-time", "20", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "-H", `x-api-key: ${placeholder}`, "https://shop.example/plain"], { timeoutMs: 30_000 });

test("TLS test 40: transfers of a killed agent are reset at both ends; nothing of the guest goes out by itself, and no successor lets anything pass before it judges", async () => {
  const direct = await Capture.start(world, world.host, "up0", `host ${ADDRESS.guest4}`);
  const transfers = ([["shop.example", "--http1.1"], ["shop.example", "--http2"], ["bank.example", "--http1.1"]] as const).flatMap(([name, version]) => ["down", "up"].map((way) => {
    const what = `flow-${name}-${version}-${way}`, ca = name === "bank.example" ? path.join(world.dir, "root.pem") : kept("tap0", "pem");
    const command = `exec curl -sS ${version} --max-time 500 --cacert ${ca} --resolve ${name}:443:${ADDRESS.site4} -o /dev/null ${way === "up" ? "-T -" : ""} https://${name}/${what} ${way === "up" ? "< /dev/zero" : ""}`;
    return { what, client: world.own(world.guest.start(["sh", "-c", command])) };
  }));
  for (const { what } of transfers) await origin.line((line) => line === `flows ${what}`);
  const before = origin.lines.length;
  const knock = world.own(world.guest.start([process.execPath, "-e", KNOCK, kept("tap0", "pem"), placeholder]));
  await knock.line((line) => line === "served");
  const names = path.join(world.runDir, "agent", "tap0.pins");
  // What is at an address by which name is written down now and then; without it names are asked for anew.
  await until("the names in the run directory", () => existsSync(names) && /bank/.test(readFileSync(names, "latin1")));
  await agent.kill();
  for (const { what, client } of transfers) {
    // Long before its own time limit.
    await until(`the end of ${what}`, () => client.ended !== null);
    expect([what, client.ended?.status]).not.toEqual([what, 0]);
  }
  // By the kernel's word: when Node tells that a session of HTTP/2 with much to say has ended is its own affair.
  await until("the end of all at the origin", async () => (await world.internet.run(["ss", "-Htn", "state", "established", "sport = :443"])).stdout === "");
  expect((await curl(world.guest, kept("tap0", "pem"))).status).toBe(7);
  const silent = origin.lines.length;
  await agent.restart();
  await until("the name is served again", () => origin.lines.length > silent, 60_000);
  knock.write("enough");
  const got = JSON.parse(await knock.line((line) => line.startsWith("{"))) as Record<string, number>;
  expect(got["shop.example 200"]).toBeGreaterThan(1);
  expect(got["other.example 200"]).toBeUndefined();
  // Every request that came through came for the allowed name, and with the value in the placeholder's place.
  const asked = origin.lines.slice(before).filter((line) => line.startsWith("{"));
  expect([...new Set(asked)].map((line) => JSON.parse(line) as object)).toEqual([{ host: "shop.example", key: VALUE }]);
  expect(direct.said(GUEST)).toEqual(new Map());
  // What nobody looks into does go out by itself: so it is seen.
  expect((await world.guest.probe(["http", ADDRESS.site4, "8080", "x", "/"], 3_000)).ok).toBe(true);
  await until("a direct packet", () => direct.said(GUEST).size > 0);
  await direct.stop();
});
const GUEST = Buffer.from(ADDRESS.guest4.split(".").map(Number)).toString("hex");

test("TLS test 40: a CA is one sandbox's: another's guest does not accept what it vouches for, and gets its own", async () => {
  for (const guest of [world.guest, world.sibling!]) await tell(world, "shop.example", guest);
  expect((await curl(world.sibling!, kept("tap0", "pem"))).status).toBe(60);
  expect(await curl(world.guest, kept("tap1", "pem"))).toMatchObject({ status: 60, stdout: "" });
  expect((await curl(world.guest, kept("tap0", "pem"))).stdout).toBe("ok");
  for (const tap of ["tap0", "tap1"]) {
    const { mode, uid } = statSync(kept(tap, "key"));
    expect([mode & 0o777, uid]).toEqual([0o600, 0]);
  }
  expect(statSync(path.join(world.runDir, "agent")).mode & 0o077).toBe(0);
});

const CHANGES: Record<string, () => void> = {
  "whose certificate is another's": () => copyFileSync(kept("tap1", "pem"), kept("tap0", "pem")),
  "without a key": () => rmSync(kept("tap0", "key")),
};
test.each(Object.keys(CHANGES))("TLS test 40: a CA %s is found out at the next start and replaced, before anything is signed with half of it", async (what) => {
  const before = readFileSync(kept("tap0", "pem"), "utf8"), aside = path.join(world.dir, "former.pem");
  writeFileSync(aside, before);
  await agent.kill();
  (CHANGES[what] as () => void)();
  await agent.restart();
  await agent.notice(/tap0 has another CA than before/);
  await tell(world, "shop.example");
  expect((await curl(world.guest, kept("tap0", "pem"))).stdout).toBe("ok");
  const now = await agent.client.ca("tap0");
  expect(now).toBe(readFileSync(kept("tap0", "pem"), "utf8"));
  expect([before, readFileSync(kept("tap1", "pem"), "utf8")]).not.toContain(now);
  for (const other of [aside, kept("tap1", "pem")]) expect((await curl(world.guest, other)).status).toBe(60);
  expect(statSync(kept("tap0", "key")).mode & 0o777).toBe(0o600);
});

test("TLS test 40: with the sandbox its CA goes, key and certificate, also where an agent was killed meanwhile; the next one of its name has another", async () => {
  const before = readFileSync(kept("tap0", "pem"), "utf8"), policy = (await agent.client.policy("tap0")).request;
  await agent.kill();
  await agent.restart();
  await agent.client.detach("tap0");
  expect(readdirSync(path.join(world.runDir, "agent")).filter((name) => name.startsWith("tap0."))).toEqual([]);
  expect(existsSync(kept("tap1", "key"))).toBe(true);
  await agent.client.attach({ tap: "tap0", policy: policy! });
  expect(readFileSync(kept("tap0", "pem"), "utf8")).not.toBe(before);
  // Nor has it the pins or the placeholder of the former one.
  expect((await world.guest.probe(["tcp", ADDRESS.site4, "443"])).ok).toBe(false);
  await tell(world, "shop.example");
  const lines = origin.lines.length;
  await curl(world.guest, kept("tap0", "pem"));
  expect(origin.lines.slice(lines).join()).not.toContain(VALUE);
});
