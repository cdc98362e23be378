/**
 * Certificates that an agent makes for guests, over many names and over time: tests 13, 14 and 15 of TLS, from two guests on real taps.
 * The agent's clock is put forward by libfaketime; its monotonic one is the machine's.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Namespace, until, type World } from "../lib/world.mjs";
import { LEAVES_KEPT } from "../../src/tls/certificates/leaves.js";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, resident, tell } from "./tls-world.js";

/** Names that are asked for, more than are kept; TLS_NAMES: more of them. */
const NAMES = Number(process.env["TLS_NAMES"] ?? "600");
/** What the certificates that are kept, and what of former ones is not collected yet, may come to, octets. */
const MEMORY = 128 << 20;
const METRICS = "127.0.0.1:9473";
const policy = `
rules:
  - {allow: shop.example}
  - {allow: tenant.example}
  - {allow: "*.many.example"}
tls: {intercept: true, upstream_ca: [root.pem]}
limits: {names: 65536, connections_per_second: 10000, queries_per_second: 1000000}
`;
let world: World, agent: TestAgent, clock: string, ca: string, cas: string;

beforeAll(async () => {
  ({ world } = await openWorld({ sibling: true }));
  clock = path.join(world.dir, "clock");
  writeFileSync(clock, "+0\n");
  agent = await TestAgent.start(world, `metrics: ${METRICS}\n`, null, {
    LD_PRELOAD: "/usr/$LIB/faketime/libfaketimeMT.so.1", FAKETIME_TIMESTAMP_FILE: clock, FAKETIME_CACHE_DURATION: "1", FAKETIME_DONT_FAKE_MONOTONIC: "1", NO_FAKE_STAT: "1",
  });
  for (const tap of ["tap0", "tap1"]) await agent.client.attach({ tap, policy: { file: { path: path.join(world.dir, "policy.yaml"), text: policy } } });
  for (const guest of [world.guest, world.sibling as Namespace]) for (const name of ["shop.example", "tenant.example"]) await tell(world, name, guest);
  [ca, cas] = ["tap0", "tap1"].map((tap) => path.join(world.runDir, "agent", `${tap}.ca.pem`)) as [string, string];
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

/** A request by openssl, whose answer must come; what it said of the handshake. */
async function connect(guest: Namespace, name: string, ...more: string[]): Promise<string> {
  const args = ["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-servername", name, "-alpn", "http/1.1", "-ign_eof", ...more];
  const { stdout, stderr } = await guest.run(args, { input: `GET /s HTTP/1.1\r\nhost: ${name}\r\nconnection: close\r\n\r\n`, timeoutMs: 20_000 });
  expect(stdout + stderr).toContain(`origin ${name} /s`);
  return stdout;
}
const verified = (file: string): string[] => ["-CAfile", file, "-verify_return_error"];
const VERSIONS = ["-tls1_2", "-tls1_3"] as const;
const session = (version: string): string => path.join(world.dir, `session${version}`);

test.each(VERSIONS)("A43, TLS test 15: a ticket of one sandbox is worth nothing in another, nor under another name; under its own it is taken (%s)", async (version) => {
  const file = session(version), sibling = world.sibling as Namespace;
  expect(await connect(world.guest, "shop.example", version, ...verified(ca), "-sess_out", file)).toMatch(/^New, TLS/m);
  expect(await connect(sibling, "shop.example", version, ...verified(cas), "-sess_in", file)).toMatch(/^New, TLS/m);
  expect(await connect(sibling, "tenant.example", version, ...verified(cas), "-sess_in", file)).toMatch(/^New, TLS/m);
  expect(await connect(world.guest, "tenant.example", version, ...verified(ca), "-sess_in", file)).toMatch(/^New, TLS/m);
  expect(await connect(world.guest, "shop.example", version, ...verified(ca), "-sess_in", file)).toMatch(/^Reused, TLS/m);
});

/** Value of a counter, over its labels. */
async function metric(pattern: RegExp): Promise<number> {
  const { stdout } = await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`]);
  return stdout.split("\n").filter((line) => pattern.test(line)).reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}

test(`TLS test 13: ${NAMES} names on one wildcard: a bounded number of certificates is kept, memory is bounded, and a sandbox beside it is served`, async () => {
  const pid = agent.service.pid as number;
  const client = world.own(world.guest.start([process.execPath, "-e", `
    const resolver = new (require("node:dns").promises.Resolver)(), tls = require("node:tls");
    resolver.setServers(["8.8.8.8"]);
    const ca = tls.createSecureContext({ ca: require("node:fs").readFileSync(process.argv[1]) });
    let next = 0, good = 0, bad = "";
    const one = async (name) => {
      const [host] = await resolver.resolve4(name);
      await new Promise((resolve, reject) => {
        const socket = tls.connect({ host, port: 443, servername: name, secureContext: ca, ALPNProtocols: ["http/1.1"] }, () => { socket.destroy(); resolve(); });
        socket.on("error", reject);
      });
      good++;
    };
    const worker = async () => { while (next < ${NAMES}) await one("n" + next++ + ".many.example").catch((error) => { bad = bad || String(error); }); };
    Promise.all(Array.from({ length: 16 }, worker)).then(() => console.log("end " + good + " " + bad));`, ca]));
  const before = resident(pid);
  let most = before, beside = 0;
  while (client.ended === null && !client.lines.some((line) => line.startsWith("end"))) {
    await connect(world.sibling as Namespace, "shop.example", ...verified(cas));
    beside++;
    most = Math.max(most, resident(pid));
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  expect(client.lines.at(-1)).toBe(`end ${NAMES} `);
  expect(beside).toBeGreaterThan(0);
  expect(most - before).toBeLessThan(MEMORY);
  expect(await metric(/^enforcer_tls_leaves_total\{sandbox="tap0",result="issued"/)).toBeGreaterThanOrEqual(NAMES);
  expect(await metric(/^enforcer_tls_leaves_total\{sandbox="tap0",result="evicted"/)).toBeGreaterThanOrEqual(NAMES - LEAVES_KEPT);
});

test("TLS test 14: eight days on, a sandbox has new certificates without a restart; tickets of the old ones are taken for none", async () => {
  const serial = (said: string): string => /Server certificate[^]*?-----BEGIN CERTIFICATE-----([^-]+)/.exec(said)?.[1] ?? "";
  const before = serial(await connect(world.guest, "shop.example", ...verified(ca)));
  expect(before).not.toBe("");
  for (const version of VERSIONS) await connect(world.guest, "shop.example", version, ...verified(ca), "-sess_out", session(version));
  writeFileSync(clock, "+8d\n");
  let after = before;
  await until("a new certificate", async () => (after = serial(await connect(world.guest, "shop.example"))) !== before);
  // The guest's clock is still where it was, so it does not look at the dates; what it kept is of the old certificate.
  for (const version of VERSIONS) {
    const said = await connect(world.guest, "shop.example", version, "-sess_in", session(version));
    expect(said).toMatch(/^New, TLS/m);
    expect(serial(said)).toBe(after);
  }
  // One whose clock has gone on as well verifies it.
  const { stdout, stderr } = await world.guest.run(["faketime", "-f", "+8d", "curl", "-sS", "--max-time", "30", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "https://shop.example/later"], { timeoutMs: 30_000 });
  expect([stderr, stdout]).toEqual(["", "origin shop.example /later"]);
  expect(agent.service.ended).toBeNull();
});
