/**
 * Connections that are looked into, in one agent with two sandboxes: another policy, detaching, an agent that is killed, and a
 * sandbox beside one that knocks without end. TLS tests 3 and 40, row A40.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Namespace, type Service, until, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const SHOP = { rules: ["allow@shop.example:tcp:443"] }, BOTH = { rules: ["allow@shop.example:tcp:443", "allow@tenant.example"] }, OTHER = { rules: ["allow@other.example"] };
const METRICS = "127.0.0.1:9471";
let world: World, origin: Service, agent: TestAgent;

beforeAll(async () => {
  ({ world, origin } = await openWorld({ sibling: true }));
  agent = await TestAgent.start(world, `metrics: ${METRICS}\ntls_threads: 1\n`);
  await agent.client.attach({ tap: "tap0", policy: SHOP });
  await agent.client.attach({ tap: "tap1", policy: SHOP });
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

const TALKER = `
  const socket = require("node:tls").connect({ port: 443, host: "${ADDRESS.site4}", servername: process.argv[2], ca: require("node:fs").readFileSync(process.argv[1]), ALPNProtocols: ["http/1.1"] }, () => console.log("secure"));
  socket.on("data", (data) => console.log("heard " + data.toString().split("\\r\\n\\r\\n").at(-1)));
  socket.on("error", (error) => console.log("error " + (error.code ?? error.message)));
  socket.on("close", () => { console.log("closed"); process.exit(); });
  process.stdin.on("data", (data) => socket.write("GET /" + data.toString().trim() + " HTTP/1.1\\r\\nhost: " + process.argv[2] + "\\r\\n\\r\\n"));`;

/** A connection that stays open and asks when it is told to. */
async function talker(guest: Namespace, name = "shop.example"): Promise<Service> {
  const service = world.own(guest.start([process.execPath, "-e", TALKER, path.join(world.dir, "root.pem"), name]));
  await service.line((line) => line === "secure");
  return service;
}
async function asks(service: Service, what: string): Promise<void> {
  service.write(what);
  await service.line((line) => line.startsWith("heard") && line.endsWith(`/${what}`));
}
const curl = async (guest: Namespace, name: string): Promise<string> =>
  (await guest.run(["curl", "-sS", "--max-time", "10", "--cacert", path.join(world.dir, "root.pem"), "--resolve", `${name}:443:${ADDRESS.site4}`, `https://${name}/c`], { timeoutMs: 20_000 })).stdout;

test("another policy: what it allows goes on, what it does not ends, and only in its sandbox", async () => {
  await tell(world, "shop.example");
  await tell(world, "shop.example", world.sibling!);
  const mine = await talker(world.guest), sibling = await talker(world.sibling!);
  await asks(mine, "one");
  await agent.client.setPolicy("tap0", BOTH);
  await asks(mine, "two");
  await agent.client.setPolicy("tap0", OTHER);
  await mine.line((line) => line === "closed");
  await asks(sibling, "three");
  expect(await curl(world.guest, "shop.example")).toBe("");
});

test("A40: a name that one sandbox was told opens nothing for another", async () => {
  await agent.client.setPolicy("tap0", BOTH);
  await tell(world, "tenant.example");
  await agent.client.setPolicy("tap1", BOTH);
  expect(await curl(world.guest, "tenant.example")).toBe("origin tenant.example /c");
  const before = origin.lines.length;
  expect(await curl(world.sibling!, "tenant.example")).toBe("");
  expect(origin.lines.length).toBe(before);
});

test("TLS test 3: a thousand connections that say nothing leave the sandbox beside them as it was", async () => {
  const knocking = world.own(world.guest.start([process.execPath, "-e", `
    // One that makes room for another may be reset before it is told that it was taken.
    let left = 1000;
    const taken = () => { if (--left === 0) console.log("taken"); };
    for (let i = 0; i < 1000; i++) {
      const socket = require("node:net").connect(443, "${ADDRESS.site4}");
      let told = false;
      for (const event of ["connect", "error"]) socket.on(event, () => {
        if (!told) taken();
        told = true;
      });
    }`]));
  await knocking.line((line) => line === "taken", { ms: 30_000 });
  const sibling = await talker(world.sibling!);
  for (let i = 0; i < 20; i++) await asks(sibling, `beside${i}`);
  // They were in the agent: for those over the bound of hellos the oldest made room.
  expect((await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout).toMatch(/^enforcer_tls_connections_total\{sandbox="tap0",outcome="hello-limit"\} [1-9]/m);
  await knocking.stop();
});

test("a flood of handshakes of one sandbox, and what is over its rate, leave the sandbox beside it as it was", async () => {
  const policy = (limits: string) => ({ file: { path: path.join(world.dir, "policy.yaml"), text: `rules:\n  - {allow: shop.example, proto: tcp, ports: [443]}\ntls: {intercept: true, upstream_ca: [root.pem]}\n${limits}` } });
  await agent.client.setPolicy("tap1", policy(""));
  const ca = path.join(world.runDir, "agent", "tap1.ca.pem");
  /** A connection of its own each. */
  const beside = async (): Promise<void> => {
    const { stdout } = await world.sibling!.run(["curl", "-sS", "--max-time", "100", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "https://shop.example/beside"], { timeoutMs: 110_000 });
    expect(stdout).toBe("origin shop.example /beside");
  };
  const flood = (count: number): Service => world.own(world.guest.start([process.execPath, "-e", `
    let begun = 0, over = 0, good = 0;
    const more = () => {
      while (begun < ${count} && begun - over < 200) {
        begun++;
        const socket = require("node:tls").connect({ port: 443, host: "${ADDRESS.site4}", servername: "shop.example", rejectUnauthorized: false, ALPNProtocols: ["http/1.1"] }, () => { good++; socket.destroy(); });
        socket.on("error", () => undefined);
        socket.on("close", () => {
          if (++over === 50) console.log("flooding");
          if (over === ${count}) console.log("over " + good);
          else more();
        });
      }
    };
    more();`]));
  await tell(world, "shop.example");
  await tell(world, "shop.example", world.sibling!);
  for (const [limits, count] of [["limits: {connections_per_second: 10000}\n", 600], ["limits: {connections_per_second: 1}\n", 60]] as const) {
    await agent.client.setPolicy("tap0", policy(limits));
    const flooding = flood(count);
    await flooding.line((line) => line === "flooding", { ms: 500_000 });
    for (let i = 0; i < 5; i++) await beside();
    await flooding.line((line) => line.startsWith("over"), { ms: 500_000 });
    await beside();
    await flooding.stop();
  }
  const metrics = (await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout;
  expect(metrics).toMatch(/enforcer_tls_connections_total\{sandbox="tap0",outcome="rate"\} [1-9]/);
  expect(metrics).not.toMatch(/enforcer_tls_connections_total\{sandbox="tap1",outcome="(rate|limit|handshake-limit)"\}/);
  expect(metrics).toMatch(/enforcer_tls_connections_left\{sandbox="tap0"\} \d/);
  await agent.client.setPolicy("tap0", SHOP);
  await agent.client.setPolicy("tap1", SHOP);
}, 900_000);

test("tls.ca: the guest sees leaves of the operator's CA, through a swap and a restart; one that does not hold is refused, and the policy before stays", async () => {
  const file = (name: string): string => path.join(world.dir, name);
  for (const name of ["own", "other"]) execFileSync("openssl", ["req", "-x509", "-nodes", "-days", "3", "-subj", `/CN=${name}`, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign", "-keyout", file(`${name}.key`), "-out", file(`${name}.pem`)], { stdio: "pipe" });
  const policy = (ca: string) => ({ file: { path: file("policy.yaml"), text: `rules:\n  - {allow: shop.example, proto: tcp, ports: [443]}\ntls: {intercept: true, upstream_ca: [root.pem]${ca}}\n` } });
  const asked = async (ca: string): Promise<string> => (await world.guest.run(["curl", "-sS", "--max-time", "20", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "https://shop.example/own"], { timeoutMs: 30_000 })).stdout;
  const said = "origin shop.example /own", kept = path.join(world.runDir, "agent", "tap0.ca");
  await agent.client.setPolicy("tap0", policy(", ca: {certificate: own.pem, key: own.key}"));
  await tell(world, "shop.example");
  expect(await asked(file("own.pem"))).toBe(said);
  expect(await agent.client.ca("tap0")).toBe(readFileSync(file("own.pem"), "utf8"));
  expect(existsSync(`${kept}.key`)).toBe(false);
  for (const [ca, words] of [["{certificate: own.pem, key: other.key}", /not the key/], ["{certificate: own.pem, key: none.key}", /none\.key/], ["{certificate: root.pem, key: own.key}", /tls\.ca/]] as const) {
    await expect(agent.client.setPolicy("tap0", policy(`, ca: ${ca}`))).rejects.toMatchObject({ code: "E_CA", message: expect.stringMatching(words) });
    expect(await asked(file("own.pem"))).toBe(said);
  }
  await expect(agent.client.setPolicy("tap0", policy(", ca: {certificate: own.pem}"))).rejects.toMatchObject({ code: "E_POLICY", message: expect.stringMatching(/no key/) });
  await agent.kill();
  await agent.restart();
  expect(await asked(file("own.pem"))).toBe(said);
  await agent.client.setPolicy("tap0", policy(", ca: {certificate: other.pem, key: other.key}"));
  expect([await asked(file("own.pem")), await asked(file("other.pem"))]).toEqual(["", said]);
  await agent.client.setPolicy("tap0", policy(""));
  expect([await asked(file("other.pem")), await asked(`${kept}.pem`)]).toEqual(["", said]);
  await agent.client.setPolicy("tap0", policy(", ca: {certificate: own.pem, key: own.key}"));
  expect(await asked(file("own.pem"))).toBe(said);
  // A policy between that has no use for a CA.
  await agent.client.setPolicy("tap0", SHOP);
  await agent.client.setPolicy("tap0", policy(""));
  expect([await asked(file("own.pem")), await asked(`${kept}.pem`)]).toEqual(["", said]);
  await agent.client.setPolicy("tap0", SHOP);
});

test("TLS test 40: an agent that is killed lets nothing pass uninspected; its successor begins where it stood", async () => {
  await tell(world, "shop.example");
  const before = await talker(world.guest);
  await asks(before, "alive");
  await agent.kill();
  await before.line((line) => line === "closed");
  const seen = origin.lines.length;
  expect(await curl(world.guest, "shop.example")).toBe("");
  expect(await curl(world.guest, "other.example")).toBe("");
  expect(origin.lines.length).toBe(seen);
  await agent.restart();
  await until("the name passes again", async () => (await curl(world.guest, "shop.example")) === "origin shop.example /c", 20_000);
  expect(await curl(world.guest, "other.example")).toBe("");
});

test("tls_threads: sandboxes on threads of their own are told, judged and counted as on one, and the number takes effect at a start", async () => {
  const metrics = async (): Promise<string> => (await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout;
  agent.configure(`metrics: ${METRICS}\ntls_threads: 2\n`);
  expect((await agent.client.reload()).restart).toEqual(["tls_threads"]);
  expect(await metrics()).toMatch(/^enforcer_tls_threads 1$/m);
  await agent.kill();
  await agent.restart();
  expect(await metrics()).toMatch(/^enforcer_tls_threads 2$/m);
  const guests = [world.guest, world.sibling!] as const;
  for (const guest of guests) await tell(world, "shop.example", guest);
  const [mine, sibling] = await Promise.all(guests.map(async (guest) => talker(guest))) as [Service, Service];
  await asks(mine, "one");
  await asks(sibling, "two");
  const counted = await metrics();
  for (const tap of ["tap0", "tap1"]) expect(counted).toMatch(new RegExp(`^enforcer_tls_connections\\{sandbox="${tap}"\\} 1$`, "m"));
  await agent.client.setPolicy("tap1", OTHER);
  await sibling.line((line) => line === "closed");
  await asks(mine, "three");
  expect(await curl(world.sibling!, "shop.example")).toBe("");
  await agent.client.setPolicy("tap1", SHOP);
  expect(await curl(world.sibling!, "shop.example")).toBe("origin shop.example /c");
  await mine.stop();
});

test("detaching ends what the agent passed on", async () => {
  const last = await talker(world.sibling!);
  await agent.client.detach("tap1");
  await last.line((line) => line === "closed");
  expect(await agent.names()).toEqual(["tap0"]);
});
