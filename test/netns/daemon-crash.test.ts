/**
 * The agent's end, by signal and by kill, and what its successor finds: nothing is open in between, and everything is taken over.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, ENFORCER, type World } from "../lib/world.mjs";
import { agentWithTaps, type TestAgent } from "./daemon.js";

// A port whose connections nobody looks into: those that the agent looks into fail closed while there is none.
const policy = { rules: ["allow@site.example:tcp:8080", "allow@site.example:tcp:7777"] };
const TAPS = Array.from({ length: 24 }, (_, i) => `many${i}`);

describe("A05 an agent that ends", () => {
  let world: World;
  let agent: TestAgent;
  beforeAll(async () => {
    ({ world, agent } = await agentWithTaps(TAPS));
  });
  afterEach(async () => {
    if (agent.service.ended !== null) await agent.restart();
    for (const name of await agent.names()) await agent.client.detach(name);
  });
  afterAll(async () => {
    await agent?.stop();
    await world?.close();
  });

  const state = (name: string): string => path.join(world.runDir, "agent", `${name}.json`);
  const edit = (name: string, change: (state: Record<string, unknown>) => void): void => {
    const content = JSON.parse(readFileSync(state(name), "utf8")) as Record<string, unknown>;
    change(content);
    writeFileSync(state(name), JSON.stringify(content));
  };
  const pinned = async (name = "site.example"): Promise<boolean> => (await world.guest.probe(["fetch", "8.8.8.8", name, "8080", "/", "A"], 3000)).ok;
  const reach = async (address: string): Promise<boolean> => (await world.guest.probe(["http", address, address.startsWith("169.") ? "80" : "8080", "site.example", "/"], 1500)).ok;
  const held = async (): Promise<void> => {
    expect(await reach(ADDRESS.metadata4)).toBe(false);
    expect(await reach(ADDRESS.site4b)).toBe(false);
    expect((await world.sibling!.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 400)).ok).toBe(false);
  };

  test("kill -9: the kernel goes on with policies, pins and flows; a successor takes all of many sandboxes over", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    await Promise.all(TAPS.map((tap) => agent.client.attach({ tap, policy: { rules: [`allow@${tap}.example:tcp:443`] } })));
    expect(await pinned()).toBe(true);
    const before = Object.fromEntries(await Promise.all((await agent.names()).map(async (name) => {
      const { slot, generation, hooks, policy: { uid } = { uid: "" } } = await agent.client.sandbox(name) as never as { slot: number; generation: number; hooks: unknown[]; policy: { uid: string } };
      return [name, { slot, generation, uid, hooks: hooks.length }];
    })));
    const pinsFile = path.join(world.runDir, "agent", "tap0.pins");
    const server = world.internet.start([process.execPath, "-e", 'require("node:net").createServer((socket) => socket.pipe(socket)).listen(7777, () => console.log("ready"))']);
    await server.line((line) => line === "ready");
    const client = world.guest.start([process.execPath, "-e", `
      const socket = require("node:net").connect(7777, "${ADDRESS.site4}", () => console.log("ready"));
      socket.on("data", (data) => console.log("echo " + data.toString().trim()));
      socket.on("error", (error) => console.log("error " + error.message));
      process.stdin.pipe(socket);`]);
    await client.line((line) => line === "ready");
    const echoes = async (text: string): Promise<void> => {
      client.write(text);
      await client.line((line) => line === `echo ${text}`);
    };
    await echoes("before");
    // Names of pins are written down every few seconds; a kill before that forgets the names, and not the pins.
    await expect.poll(() => existsSync(pinsFile) && readFileSync(pinsFile, "utf8").includes("example"), { timeout: 60_000 }).toBe(true);
    await agent.kill();
    await echoes("while nobody serves");
    expect(await reach(ADDRESS.site4)).toBe(true);
    await held();
    expect(await pinned("other.example")).toBe(false);

    await agent.restart();
    await echoes("after");
    await client.stop("SIGKILL");
    await server.stop("SIGKILL");
    expect(await agent.states()).toEqual(Object.fromEntries(["tap0", "tap1", ...TAPS].map((name) => [name, "enforced"])));
    for (const [name, was] of Object.entries<object>(before)) {
      const now = await agent.client.sandbox(name);
      expect({ slot: now.slot, generation: now.generation, uid: now.policy?.uid, hooks: now.hooks.filter(({ position }) => position === 0).length, adopted: now.adopted }, name).toEqual({ ...was, adopted: true });
    }
    expect((await agent.client.policy("many7")).request).toEqual({ rules: ["allow@many7.example:tcp:443"] });
    expect((await agent.client.pins("tap0")).pins.map(({ name }) => name)).toContain("site.example");
    expect(await reach(ADDRESS.site4)).toBe(true);
    await held();
    expect(await pinned()).toBe(true);
  });

  test("kill -9 at any moment of attaching, swapping and detaching: what is half made is completed or removed, and nothing is open", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "many10" });
    const storm = world.guest.start([process.execPath, "-e", `
      const socket = require("node:dgram").createSocket("udp4");
      const send = () => { for (const target of ["${ADDRESS.metadata4}", "${ADDRESS.lan4}", "10.0.0.1"]) socket.send("storm", 9999, target, () => {}); setTimeout(send, 1); };
      socket.bind(() => { console.log("ready"); send(); });`]);
    await storm.line((line) => line === "ready");
    const escaped = await world.watch(async () => {
      for (let round = 0; round < 4; round++) {
        const work = [
          ...TAPS.slice(0, 6).map((tap, i) => (i % 2 === round % 2 ? agent.client.attach({ tap }) : agent.client.detach(tap))),
          agent.client.setPolicy("tap0", round % 2 === 0 ? policy : { rules: ["allow@other.example:tcp:8080"] }),
          agent.client.setPolicy("many10", { rules: [`allow@round${round}.example`] }),
        ].map((one) => one.catch(() => undefined));
        await new Promise((resolve) => setTimeout(resolve, 3 + 37 * round));
        await agent.kill();
        await Promise.all(work);
        await agent.restart();
      }
    });
    await storm.stop("SIGKILL");
    expect([...escaped.uplink, ...escaped.lan].filter((frame) => Buffer.from(frame).includes("storm")).length).toBe(0);
    const states = await agent.states();
    expect(states).toMatchObject({ tap0: "enforced", many10: "enforced" });
    expect(Object.values(states).every((one) => one === "enforced")).toBe(true);
    // Every hook is as the agent says, and no hook holds what it does not know.
    const links = existsSync(path.join(world.bpffs, "enforcer/agent-of-the-host/links")) ? readdirSync(path.join(world.bpffs, "enforcer/agent-of-the-host/links")) : null;
    const known = await agent.client.list();
    if (links !== null && known.every(({ mechanism }) => mechanism === "tcx")) expect(links.filter((name) => !/^\d+-ingress$/.test(name) || known.some(({ ifindex }) => name.startsWith(`${ifindex}-`))).length).toBe(2 * known.length);
    expect(await reach(ADDRESS.metadata4)).toBe(false);
  });

  test("kill -9 at any moment of a reload: the successor has every sandbox under the new floor, and nothing is open", async () => {
    const floor = path.join(world.dir, "floor.yaml");
    const names = ["other.example", "site.example"];
    await agent.client.attach({ tap: "tap0", policy: { rules: ["allow@site.example:tcp:8080", "allow@other.example:tcp:8080"] } });
    await Promise.all(TAPS.slice(0, 12).map((tap) => agent.client.attach({ tap, policy: { rules: [`allow@${tap}.example:tcp:443`] } })));
    try {
      for (let round = 0; round < 5; round++) {
        const [denied, other] = round % 2 === 0 ? names : [...names].reverse();
        writeFileSync(floor, `default_ingress: allow\nrules: [{deny: ${denied}}, {allow: public}]\n`);
        agent.configure(`floor: ${floor}\n`);
        const reloading = agent.client.reload().catch(() => undefined);
        await new Promise((resolve) => setTimeout(resolve, 2 + 23 * round));
        await agent.kill();
        await reloading;
        expect(await reach(ADDRESS.metadata4)).toBe(false);
        await agent.restart();
        const states = await agent.states();
        expect(Object.keys(states).length).toBe(13);
        expect(Object.values(states).every((one) => one === "enforced"), JSON.stringify(states)).toBe(true);
        // A start takes the configuration as it is.
        expect(await pinned(denied), `${denied} under a floor that denies it`).toBe(false);
        expect(await pinned(other), `${other} under a floor that allows it`).toBe(true);
        expect(await reach(ADDRESS.metadata4)).toBe(false);
      }
    } finally {
      agent.configure("");
    }
    await agent.client.reload();
    expect(await pinned("site.example")).toBe(true);
  });

  test("A06 killed while it gave up taps that were deleted: their names stay held, and who waits is attached when it is there again", async () => {
    await agent.client.attach({ tap: "many20", wait: true });
    await agent.client.attach({ tap: "many21" });
    const heldNames = async (): Promise<string> => world.host.must(["nft", "list", "ruleset"]);
    await agent.kill();
    // As the file is while the end of a deleted device is under way.
    for (const name of ["many20", "many21"]) edit(name, (file) => { file.phase = "gone"; });
    writeFileSync(path.join(world.runDir, "agent", "many21.ca.pem"), "of the former one");
    const again = (n: number): Promise<string> => world.host.ip(`link del many${n}\ntuntap add many${n} mode tap\nlink set many${n} up\naddr add 10.77.${n}.1/30 dev many${n}`);
    await again(20);
    await again(21);
    for (const name of ["many20", "many21"]) expect(await heldNames()).toContain(`"${name}"`);
    await agent.restart();
    expect(await agent.states()).toEqual({ many20: "enforced" });
    for (const name of ["many20", "many21"]) expect(await heldNames()).toContain(`"${name}"`);
    expect(existsSync(path.join(world.runDir, "agent", "many21.ca.pem"))).toBe(false);
    await agent.client.detach("many21");
    expect(await heldNames()).not.toContain('"many21"');
  });

  test("SIGTERM leaves the kernel enforcing, so that a restart is an upgrade; detach frees", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    expect(await pinned()).toBe(true);
    const watching = world.own(world.host.start([ENFORCER, "watch", "--json", "--run-dir", world.runDir]));
    await watching.line((line) => line.includes('"watching"'));
    expect(await agent.stop()).toBe(0);
    await expect.poll(() => watching.ended?.status, { timeout: 15_000 }).toBe(69);
    await held();
    expect(await reach(ADDRESS.site4)).toBe(true);
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "enforced", tap1: "enforced" });
    expect(await pinned()).toBe(true);
    await agent.client.detach("tap0");
    expect(await reach(ADDRESS.metadata4)).toBe(true);
    expect((await world.sibling!.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 400)).ok).toBe(false);
  });

  test("a state file that is torn or missing: kept as it is in the kernel, and attached again with a policy", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    expect(await pinned()).toBe(true);
    await agent.kill();
    writeFileSync(state("tap0"), readFileSync(state("tap0"), "utf8").slice(0, 60));
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "kept", tap1: "enforced" });
    await agent.notice(/tap0: its state file in .* is torn/);
    expect((await agent.client.sandbox("tap0")).note).toMatch(/state file is not regarded: it is (missing|torn)/);
    expect(await reach(ADDRESS.site4)).toBe(true);
    await held();
    expect(await pinned("other.example")).toBe(false);
    await expect(agent.client.setPolicy("tap0", policy)).rejects.toMatchObject({ code: "E_NO_SANDBOX" });
    // A second start keeps it as well.
    await agent.kill();
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "kept", tap1: "enforced" });
    await agent.client.attach({ tap: "tap0", policy: { rules: ["allow@other.example:tcp:8080"] } });
    expect(await agent.client.sandbox("tap0")).toMatchObject({ state: "enforced", adopted: true });
    expect(await pinned("other.example")).toBe(true);
    expect(await reach(ADDRESS.site4)).toBe(false);
  });

  test("what was being attached or detached is completed", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    await agent.client.attach({ tap: "many0" });
    await agent.kill();
    edit("many0", (one) => { one.phase = "detaching"; });
    edit("tap0", (one) => { one.phase = "attaching"; });
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "enforced", tap1: "enforced" });
    expect((await world.host.must(["cat", "/proc/sys/net/ipv4/conf/many0/rp_filter"])).trim()).toBe("0");
    expect(existsSync(state("many0"))).toBe(false);
    await held();
  });

  test("taps that changed names with each other while nobody served keep their policies; so does one whose name another got", async () => {
    const before: Record<string, number> = {};
    for (const tap of ["many3", "many4", "many5"]) {
      await agent.client.attach({ tap, policy: { rules: [`allow@${tap}.example:tcp:443`] } });
      before[tap] = (await agent.client.sandbox(tap)).ifindex!;
    }
    await agent.kill();
    await world.host.ip("link set many3 name swap3\nlink set many4 name many3\nlink set swap3 name many4\nlink set many5 name other5\ntuntap add many5 mode tap\nlink set many5 up");
    await agent.restart();
    for (const [name, tap] of [["many3", "many4"], ["many4", "many3"], ["many5", "other5"]] as const) {
      expect(await agent.client.sandbox(name)).toMatchObject({ tap, ifindex: before[name], adopted: true, state: "enforced" });
      expect((await agent.client.policy(name)).request).toEqual({ rules: [`allow@${name}.example:tcp:443`] });
    }
    // The new device of the name carries nothing before it is attached.
    const ruleset = await world.host.must(["nft", "list", "ruleset"]);
    for (const name of ["many3", "many4", "many5", "other5"]) expect(ruleset).toContain(`"${name}"`);
    for (const name of ["many3", "many4", "many5", "many5"]) await agent.client.detach(name);
    expect(await world.host.must(["nft", "list", "ruleset"])).not.toMatch(/"(many|other)/);
    await world.host.ip("link set many3 name swap3\nlink set many4 name many3\nlink set swap3 name many4\nlink del many5\nlink set other5 name many5");
  });

  test("taps that went or came under another name while nobody served", async () => {
    await agent.client.attach({ tap: "many0" });
    await agent.client.attach({ tap: "many1", wait: true });
    await agent.client.attach({ tap: "many2" });
    await agent.kill();
    await world.host.ip("link del many0\nlink del many1\nlink set many2 name renamed2");
    await agent.restart();
    expect(await agent.states()).toEqual({ many1: "waiting", many2: "enforced" });
    expect((await agent.client.sandbox("many2")).tap).toBe("renamed2");
    await world.host.ip("tuntap add many1 mode tap\ntuntap add many0 mode tap\nlink set renamed2 name many2");
    await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ many1: "enforced", many2: "enforced" });
  });

  test("a configuration that is wrong at a start: it does not start, and the kernel goes on", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    await agent.kill();
    agent.configure("polcy: x\n");
    const failed = agent.launch();
    await expect(failed.line((line) => line.includes('"ready"'))).rejects.toThrow(/E_CONFIG/);
    await held();
    agent.configure("");
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "enforced", tap1: "enforced" });
  });

  test("an agent whose DNS worker dies ends, and the guests stay under their policies", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    await agent.stop();
    const preload = path.join(world.dir, "end-workers.cjs");
    writeFileSync(preload, `
      const threads = require("node:worker_threads");
      if (threads.isMainThread) {
        const all = [];
        threads.Worker = class extends threads.Worker { constructor(...args) { super(...args); all.push(this); } };
        require("node:module").syncBuiltinESMExports();
        process.on("SIGUSR2", () => { for (const worker of all) worker.terminate(); });
      }`);
    process.env.NODE_OPTIONS = `--require ${preload}`;
    try {
      await agent.restart();
    } finally {
      delete process.env.NODE_OPTIONS;
    }
    expect(await agent.service.stop("SIGUSR2")).toBe(71);
    await held();
    await agent.restart();
    expect(await agent.states()).toEqual({ tap0: "enforced", tap1: "enforced" });
  });
});
