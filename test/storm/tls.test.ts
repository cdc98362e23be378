/**
 * Two guests that never rest behind connections that are looked into, on two threads, while their policies change between interception,
 * names that are verified and names that are not allowed, and the agent is killed and started again. No answer is another's, and
 * nothing is left when the guests have gone.
 *
 * STORM_SECONDS makes it longer; STORM_SEED repeats the choices of policies, though not the timing.
 */
import { readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { PATIENCE } from "../lib/processes.mjs";
import { Seeded } from "../lib/random.js";
import { ADDRESS, type Service, until, type World } from "../lib/world.mjs";
import { TestAgent } from "../netns/daemon.js";
import { openWorld, tell } from "../netns/tls-world.js";

const SECONDS = Number(process.env.STORM_SECONDS ?? 10);
const METRICS = "127.0.0.1:9471";
const RULES = "rules: [{allow: shop.example}, {allow: bank.example}]\nlimits: {connections_per_second: 10000}\n";
const POLICIES = [
  `${RULES}tls: {intercept: true, upstream_ca: [root.pem]}\n`, RULES, `${RULES}tls: {intercept: true, upstream_ca: [root.pem], bypass: [bank.example]}\n`,
  "rules: [{allow: bank.example}]\n",
];
/** Descriptors of the splicing threads and the pipes that they keep. */
const KEPT = 64;

vi.setConfig({ testTimeout: (SECONDS * 10 + 240) * 1000 * PATIENCE, hookTimeout: 120_000 * PATIENCE });

let world: World, agent: TestAgent;
beforeAll(async () => {
  ({ world } = await openWorld({ sibling: true }));
  agent = await TestAgent.start(world, `metrics: ${METRICS}\ntls_threads: 2\n`);
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

test(`two restless guests under changing policies, ${SECONDS} s`, async () => {
  const random = new Seeded("STORM_SEED", 1);
  const guests = [world.guest, world.sibling!], policy = (text: string) => ({ file: { path: path.join(world.dir, "policy.yaml"), text } });
  const told = async (): Promise<void> => { for (const guest of guests) for (const name of ["shop.example", "bank.example"]) await tell(world, name, guest); };
  for (const tap of ["tap0", "tap1"]) await agent.client.attach({ tap, policy: policy(POLICIES[0]!) });
  await told();
  const clients: Service[] = guests.map((guest) => world.own(guest.start([process.execPath, fileURLToPath(new URL("../clients/restless.mjs", import.meta.url)), ADDRESS.site4, "shop.example", "bank.example"])));
  const descriptors = (): number => readdirSync(`/proc/${agent.service.pid}/fd`).length;
  const before = descriptors();
  const end = Date.now() + SECONDS * 1000;
  for (let turn = 1; Date.now() < end; turn++) {
    await new Promise((resolve) => { setTimeout(resolve, 100 + random.below(900)); });
    await agent.client.setPolicy(`tap${random.below(2)}`, policy(POLICIES[random.below(POLICIES.length)]!));
    if (turn % 8 === 0) {
      await agent.kill();
      await agent.restart();
    }
  }
  // Under a policy that lets them, both get what they ask for.
  for (const tap of ["tap0", "tap1"]) await agent.client.setPolicy(tap, policy(POLICIES[0]!));
  await told();
  const right = (client: Service): number => Number(/"right":(\d+)/.exec(client.lines.findLast((line) => line.startsWith("seen")) ?? "")?.[1] ?? 0);
  for (const client of clients) {
    const so = right(client);
    await until(`more right answers of ${client.report()}`, () => right(client) > so, 60_000);
  }
  for (const client of clients) {
    await client.stop("SIGKILL");
    expect(client.lines.filter((line) => line.startsWith("wrong"))).toEqual([]);
  }
  const metrics = async (): Promise<string> => (await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout;
  for (const gauge of ["connections", "hellos", "handshakes", "handshakes_waiting", "buffered_bytes"]) {
    await expect.poll(async () => (await metrics()).match(new RegExp(`^enforcer_tls_${gauge}\\{.*$`, "gm")), { timeout: 60_000 }).toEqual(["tap0", "tap1"].map((tap) => `enforcer_tls_${gauge}{sandbox="${tap}"} 0`));
  }
  expect(await metrics()).toMatch(/^enforcer_tls_strangers_total 0$/m);
  expect(descriptors()).toBeLessThan(before + KEPT);
  expect(agent.service.ended).toBe(null);
});
