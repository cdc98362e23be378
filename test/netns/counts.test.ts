/** What is shown of a sandbox's denials is the guest's: all of it, and nothing of the agent's own. */
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { ethernet } from "../lib/frames.js";
import { PATIENCE } from "../lib/processes.mjs";
import { ADDRESS, until, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";

vi.setConfig({ testTimeout: 240_000 * PATIENCE, hookTimeout: 120_000 * PATIENCE });

let world: World;
let agent: TestAgent;
beforeAll(async () => {
  world = await World.create({ guest: "frames", quiet: true });
  // A tap that is up may speak by itself: a host's own multicast is counted as what it is.
  agent = await TestAgent.start(world);
});
afterAll(async () => {
  await agent?.stop();
  await world?.close();
});

/** Denials by EtherType, and those that were not told, of a sandbox. */
const shown = async (name = "tap0"): Promise<{ packets: number; bytes: number; lost: number }> => {
  const { counters, events_lost: lost } = await agent.client.sandbox(name);
  const row = counters.find(({ direction, reason }) => direction === "egress" && reason === "ethertype");
  return { packets: row?.packets ?? 0, bytes: row?.bytes ?? 0, lost };
};
/** The very frame of the agent's self-test (src/kernel/self-test.ts). */
const same = ethernet({ destination: "02:00:00:00:00:01", source: "02:00:00:00:00:03", type: 0x88b5 }, new Uint8Array(46));

test("a fresh sandbox shows no denial of the agent's own; of what the guest sends, also the same frame, none is left out, through restarts, swaps and other sandboxes in its slot", async () => {
  await agent.client.attach({ tap: "tap0", guest: [ADDRESS.guest4], policy: { rules: ["allow@public"] } });
  expect(await shown()).toEqual({ packets: 0, bytes: 0, lost: 0 });
  expect((await agent.run("status", "tap0")).out).not.toMatch(/not reported|ethertype/);
  const watcher = await agent.watch();
  let sent = 0;
  const send = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i++) await world.frames.send(same);
    sent += count;
    await until(`${sent} denials are shown`, async () => (await shown()).packets === sent);
    expect(await shown()).toMatchObject({ packets: sent, bytes: sent * same.length });
  };
  await send(1);
  await watcher.seen({ event: "denied", reason: "ethertype" });
  await watcher.end();
  await send(2);
  await agent.client.setPolicy("tap0", { rules: ["allow@any"] });
  await send(1);
  const lost = (await shown()).lost;
  for (const how of ["kill", "stop", "kill"] as const) {
    await agent[how]();
    // While nobody serves, too.
    await world.frames.send(same);
    sent++;
    await agent.restart();
    expect(await shown()).toMatchObject({ packets: sent, bytes: sent * same.length });
    await send(1);
  }
  expect((await shown()).lost).toBe(lost);
  // Killed, and another policy put in force by the next attach: the tables are made anew within the slot.
  await agent.client.setPolicy("tap0", { rules: ["allow@public"] });
  await send(1);
  await agent.client.detach("tap0");
  sent = 0;
  await agent.client.attach({ tap: "tap0", guest: [ADDRESS.guest4] });
  expect(await shown()).toEqual({ packets: 0, bytes: 0, lost: 0 });
  await send(1);
});

test("A05 an attach that takes a tap over tells of no denial of its own, and of every one of the guest's", async () => {
  for (const name of await agent.names()) await agent.client.detach(name);
  await agent.stop();
  const args = ["--guest-ip", ADDRESS.guest4];
  let enforcer = await world.enforce({ args });
  for (let i = 0; i < 3; i++) {
    await enforcer.service.stop("SIGKILL");
    enforcer = await world.enforce({ args });
    for (let j = 0; j < 2; j++) await world.frames.send(same);
    await until("both are told", () => enforcer.denials({ reason: "ethertype" }).length >= 2);
    expect(enforcer.denials()).toHaveLength(2);
  }
  expect(await enforcer.stop()).toBe(0);
  await agent.restart();
});
