/** Network namespaces of taps that come and go, as a jailer makes them: they go although the agent has them open, and are not taken for others. */
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { ADDRESS, MAC, must, Namespace, run, type Service, tool, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks

let world: World, agent: TestAgent, jail: Namespace;
beforeAll(async () => {
  world = await World.create({ guest: "none", quiet: true });
  agent = await TestAgent.start(world);
  jail = new Namespace(`${world.id}-jail`);
});
afterEach(async () => {
  if (agent.service.ended !== null) await agent.restart();
  for (const name of await agent.names()) await agent.client.detach(name);
  if (existsSync(`/run/netns/${jail.name}`)) await unmake();
});
afterAll(async () => {
  await agent?.stop();
  await world?.close();
});

const make = async (): Promise<void> => {
  await must(["ip", "netns", "add", jail.name]);
  await jail.ip("link set lo up\ntuntap add tap0 mode tap\naddr add 10.50.0.1/30 dev tap0\nlink set tap0 up");
};
const unmake = (): Promise<string> => must(["ip", "netns", "del", jail.name]);
const policy = { rules: ["allow@public:tcp:443"] };
/** Other namespaces on the BPF file system. */
const left = (): string[] => {
  const places = path.join(world.bpffs, "enforcer/agent-of-the-host/places");
  return existsSync(places) ? readdirSync(places) : [];
};
/** Somebody in the jail, who can be named by his number. */
const tenant = async (): Promise<{ service: Service; netns: string }> => {
  const service = world.own(jail.start(["sh", "-c", "echo ready; exec sleep 600"]));
  await service.line((line) => line === "ready");
  return { service, netns: `/proc/${service.pid}/ns/net` };
};

test("a namespace that was deleted goes, with all that was its; one of the same name can be attached at once", async () => {
  await make();
  const there = `${jail.name}/tap0`;
  await agent.client.attach({ tap: "tap0", netns: jail.name, policy });
  const { since } = await agent.client.sandbox(there);
  await unmake();
  await make();
  await agent.client.attach({ tap: "tap0", netns: jail.name, policy });
  const again = await agent.client.sandbox(there);
  expect(again.hooks.map(({ position }) => position)).toEqual([0, 0]);
  expect(again).toMatchObject({ adopted: false });
  expect(again.since).not.toBe(since);
  await unmake();
  await expect.poll(() => agent.names(), { timeout: 60_000 }).toEqual([]);
  await expect.poll(left, { timeout: 60_000 }).toEqual([]);
  expect(readdirSync(path.join(world.runDir, "agent")).filter((name) => name.endsWith(".json"))).toEqual([]);
  await agent.notice(/its network namespace .* has gone/);
});

test("attach --wait takes the tap of a namespace that is made anew, also one that is not there when the agent starts", async () => {
  await make();
  const there = `${jail.name}/tap0`;
  await agent.client.attach({ tap: "tap0", netns: jail.name, policy, wait: true });
  // Who waits in a namespace that has gone is in nobody's way.
  await world.host.ip("tuntap add tap0 mode tap");
  for (const restart of [false, true]) {
    await unmake();
    await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ [there]: "waiting" });
    await agent.client.attach({ tap: "tap0", wait: true });
    await world.host.ip("link del tap0\ntuntap add tap0 mode tap");
    await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ [there]: "waiting", tap0: "enforced" });
    await agent.client.detach("tap0");
    if (restart) {
      await agent.kill();
      await agent.restart();
      expect(await agent.states()).toEqual({ [there]: "waiting" });
    }
    await make();
    await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ [there]: "enforced" });
    expect((await agent.client.policy(there)).request).toEqual(policy);
  }
  await world.host.ip("link del tap0");
});

test("a namespace is known again after the process that it was named after has ended, and is not taken for one that has got its name", async () => {
  await make();
  const { service, netns } = await tenant(), stays = await tenant();
  await agent.client.attach({ tap: "tap0", netns, name: "by-number", policy });
  await service.stop("SIGKILL");
  // Another one gets the first one's name, while somebody is still in that.
  await unmake();
  await make();
  for (const end of ["SIGKILL", "SIGTERM"] as const) {
    await agent.service.stop(end);
    await agent.restart();
    expect(await agent.client.sandbox("by-number")).toMatchObject({ state: "enforced", adopted: true, hooks: [{ position: 0 }, { position: 0 }] });
    expect(await agent.states()).toEqual({ "by-number": "enforced" });
  }
  await agent.client.attach({ tap: "tap0", netns: jail.name });
  expect(await agent.client.sandbox(`${jail.name}/tap0`)).toMatchObject({ adopted: false, hooks: [{ position: 0 }, { position: 0 }] });
  expect(readFileSync(path.join(world.runDir, "agent", "by-number.json"), "utf8")).toContain(netns);
  await agent.client.detach("by-number");
  expect((await run(["nsenter", `--net=${stays.netns}`, "bpftool", "net"])).stdout).not.toContain("guest");
  await stays.service.stop("SIGKILL");
});

test("namespaces share programs and threads, and what is the host's in one is so for the guests of all, also between two agents", async () => {
  const site = (destination: string) => ({ destination, port: 443 });
  const groupFor = async (name: string, address: string): Promise<unknown> => (await agent.client.explain(name, site(address))).flows[0]?.group;
  const threads = (): number => readdirSync(`/proc/${agent.service.pid}/task`).length;
  /** As the kernel holds it, whoever runs. */
  const isHost = async (address: readonly number[]): Promise<boolean> => {
    const maps = path.join(world.bpffs, "enforcer/agent-of-the-host"), folder = readdirSync(maps).find((name) => name.startsWith("maps-"))!;
    const { stdout } = await run(["bpftool", "-j", "map", "lookup", "pinned", path.join(maps, folder, "groups4"), "key", "32", "0", "0", "0", ...address.map(String)]);
    return (JSON.parse(stdout) as { value?: string[] }).value?.[0] === "0x00";
  };
  await make();
  const second = new Namespace(`${world.id}-jail3`);
  await must(["ip", "netns", "add", second.name]);
  try {
    await second.ip("link set lo up\ntuntap add tap0 mode tap\naddr add 93.184.218.1/30 dev tap0\nlink set tap0 up");
    await world.host.ip("tuntap add tap0 mode tap\naddr add 10.60.0.1/30 dev tap0\nlink set tap0 up");
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap0", netns: jail.name, policy });
    const before = threads();
    await agent.client.attach({ tap: "tap0", netns: second.name, policy });
    await expect.poll(threads, { timeout: 30_000 }).toBeLessThanOrEqual(before);
    const tags = await Promise.all([jail, second].map(async ({ name }) => (await agent.client.sandbox(`${name}/tap0`)).hooks.map(({ program, position }) => [program, position])));
    expect(tags[0]).toEqual([["from_guest", 0], ["to_guest", 0]]);
    expect(tags[1]).toEqual(tags[0]);
    for (const name of ["tap0", `${jail.name}/tap0`]) expect(await groupFor(name, "93.184.218.1")).toBe("host");
    expect(await isHost([93, 184, 218, 1])).toBe(true);
    await agent.kill();
    expect(await isHost([93, 184, 218, 1])).toBe(true);
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "enforced", [`${jail.name}/tap0`]: "enforced", [`${second.name}/tap0`]: "enforced" });
    expect(await isHost([93, 184, 218, 1])).toBe(true);
    await agent.client.detach(`${second.name}/tap0`);
    expect(await isHost([93, 184, 218, 1])).toBe(false);
    expect(await groupFor(`${jail.name}/tap0`, "93.184.218.1")).toBe("public");
  } finally {
    await run(["ip", "netns", "del", second.name]);
    await world.host.ip("link del tap0");
  }
});

test("guests of two namespaces whose devices are alike in name, number and address: apart in what is refused, kept and attached again", async () => {
  await make();
  const second = new Namespace(`${world.id}-jail4`), guests = [new Namespace(`${world.id}-guest1`), new Namespace(`${world.id}-guest2`)] as const;
  const jails = [jail, second], names = jails.map(({ name }) => `${name}/tap0`);
  for (const { name } of [second, ...guests]) await must(["ip", "netns", "add", name]);
  const wires: Service[] = [];
  try {
    await jail.ip("link del tap0");
    for (const [i, at] of jails.entries()) {
      const wire = world.own(at.start([tool("tapwire"), "tap0", guests[i]!.name, "eth0"]));
      await wire.line((line) => line === "ready");
      wires.push(wire);
      await at.ip(`link set lo up\nlink set tap0 address ${MAC.tap0}\nlink set tap0 up\naddr add ${ADDRESS.gateway4}/30 dev tap0\naddr add 93.184.219.${i + 1}/32 dev lo`);
      await guests[i]!.ip(`link set eth0 address ${MAC.guest}\nlink set eth0 up\naddr add ${ADDRESS.guest4}/30 dev eth0\nroute add default via ${ADDRESS.gateway4}`);
      await agent.client.attach({ tap: "tap0", netns: at.name, policy: { rules: ["allow@public", "allow@site.example"] } });
    }
    const count = async (name: string, reason: string): Promise<number> => (await agent.client.sandbox(name)).counters.filter((row) => row.reason === reason).reduce((sum, { packets }) => sum + packets, 0);
    // The other namespace's own address, which is public by itself; a neighbour's address behind the resolver; metadata.
    for (const [address, reason] of [["93.184.219.2", "default-host"], ["240.0.1.1", "default-reserved"], ["169.254.169.254", "default-metadata"], [ADDRESS.gateway4, "default-host"]] as const) {
      const before = await Promise.all(names.map((name) => count(name, reason)));
      expect((await guests[0].probe(["tcp", address, "80"], 300)).ok).toBe(false);
      expect(await count(names[0]!, reason), address).toBeGreaterThan(before[0]!);
      expect(await count(names[1]!, reason), address).toBe(before[1]);
    }
    // Nobody serves them: both are told so, and at once. What is asked while the resolver's device is on its way out may go with it.
    const ask = async (guest: Namespace, family: string, ms = 8000): Promise<string> => (await guest.probe(["dns", family, "9.9.9.9", "other.example", "A"], ms)).saw;
    for (const guest of guests) expect(await ask(guest, "tcp")).toMatch(/SERVFAIL/);
    await agent.kill();
    for (const guest of guests) for (const family of ["udp", "tcp"]) await expect.poll(() => ask(guest, family, 2000), { timeout: 30_000 }).toMatch(/refused/i);
    // Their state has gone with it: each is kept as it was, by a name of its own, and can be attached again.
    for (const entry of readdirSync(path.join(world.runDir, "agent"))) if (entry.includes("jail")) rmSync(path.join(world.runDir, "agent", entry), { recursive: true });
    await agent.restart();
    expect(await agent.states()).toEqual({ [names[0]!]: "kept", [names[1]!]: "kept" });
    for (const guest of guests) {
      expect((await guest.probe(["tcp", "169.254.169.254", "80"], 300)).ok).toBe(false);
      expect(await ask(guest, "udp")).toMatch(/NXDOMAIN/i);
    }
    await agent.client.attach({ tap: "tap0", netns: second.name, policy: { rules: ["allow@site.example"] } });
    expect(await agent.states()).toEqual({ [names[0]!]: "kept", [names[1]!]: "enforced" });
    await agent.client.attach({ tap: "tap0", netns: jail.name, policy: { rules: ["allow@public"] } });
    expect([await ask(guests[0], "udp"), await ask(guests[1], "udp")]).toEqual([expect.stringMatching(/SERVFAIL/), expect.stringMatching(/NXDOMAIN/)]);
    for (const name of names) await agent.client.detach(name);
    for (const wire of wires) await wire.stop("SIGKILL");
  } finally {
    for (const { name } of [second, ...guests]) await run(["ip", "netns", "del", name]);
  }
});
