/** The agent: what its verbs do, over a real tap. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";

const only = (name: string): string => `rules: [{allow: ${name}, proto: tcp, ports: [80]}]`;

describe("an agent", () => {
  let world: World;
  let agent: TestAgent;
  beforeAll(async () => {
    world = await World.create({ sibling: true, zone: { "site.example": { A: [ADDRESS.site4] }, "other.example": { A: [ADDRESS.site4b] } } });
    agent = await TestAgent.start(world);
  });
  afterAll(async () => {
    await agent?.stop();
    await world?.close();
  });

  test("attaches, shows and detaches", async () => {
    const attached = await agent.run("attach", "tap0", "--rule", "allow@site.example:tcp:80");
    expect(attached).toMatchObject({ status: 0 });
    console.log(attached.out, attached.err);
    for (const args of [["list"], ["status"], ["status", "tap0"], ["policy", "show", "tap0"], ["pins", "tap0"], ["flows", "tap0"], ["version"], ["explain", "tap0", "site.example"], ["explain", "tap0", "http://site.example/x"], ["explain", "tap0", ADDRESS.metadata4], ["reload"]]) {
      const ran = await agent.run(...args);
      console.log(args.join(" "), ran.status, "\n" + ran.out, ran.err);
    }
    expect((await world.guest.probe(["fetch", "8.8.8.8", "site.example", "80", "/", "A"], 3000)).ok).toBe(true);
    for (const args of [["pins", "tap0"], ["flows", "tap0"], ["explain", "tap0", "http://site.example/x"], ["explain", "tap0", ADDRESS.site4, "tcp", "443"], ["detach", "tap0"], ["list"]]) {
      const ran = await agent.run(...args);
      console.log(args.join(" "), ran.status, "\n" + ran.out, ran.err);
    }
  });
});
