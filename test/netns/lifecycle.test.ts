/**
 * How an enforcer begins and ends: bad input that changes nothing, a kill that opens nothing, a restart that takes over.
 */
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Enforcer, ENFORCER, until, World } from "../lib/world.mjs";

const OWN_FILES = new Set(["maps.debug", "progs.debug"]);

/** What an enforcer could leave behind, as seen from outside. */
async function traces(world: World): Promise<Record<string, unknown>> {
  const links = JSON.parse(await world.host.must(["ip", "-j", "link"])) as { ifname: string }[];
  return {
    links: links.map((link) => link.ifname).filter((name) => name.startsWith("enf")),
    qdiscs: (await world.host.must(["tc", "qdisc", "show", "dev", "tap0"])).includes("clsact"),
    pins: readdirSync(world.bpffs).filter((name) => !OWN_FILES.has(name)),
    state: existsSync(world.runDir) ? readdirSync(world.runDir) : [],
    sysctl: (await world.host.must(["cat", "/proc/sys/net/ipv4/conf/tap0/rp_filter", "/proc/sys/net/ipv6/conf/tap0/accept_ra", "/proc/sys/net/ipv4/conf/tap0/arp_ignore"])).trim(),
  };
}

describe("attach that fails", () => {
  let world: World;
  let clean: Record<string, unknown>;

  beforeAll(async () => {
    world = await World.create({ quiet: true, guest: "frames" });
    clean = await traces(world);
  });
  afterAll(async () => { await world?.close(); });

  async function attempt(...args: string[]): Promise<{ status: number | null; text: string }> { return attemptBy([], ...args); }

  async function attemptBy(wrapper: readonly string[], ...args: string[]): Promise<{ status: number | null; text: string }> {
    const base = [...wrapper, ENFORCER, "attach", ...args];
    if (!args.includes("--bpffs")) base.push("--bpffs", world.bpffs);
    if (!args.includes("--run-dir")) base.push("--run-dir", world.runDir);
    if (!args.includes("--metrics")) base.push("--metrics", "off");
    const { status, stderr } = await world.host.run(base, { timeoutMs: 20_000 });
    return { status, text: stderr };
  }

  async function refused(status: number, words: RegExp, ...args: string[]): Promise<void> {
    const result = await attempt(...args);
    expect(result.text).toMatch(words);
    expect(result.text).toMatch(/remedy: /);
    expect(result.status).toBe(status);
    expect(await traces(world)).toEqual(clean);
  }

  test("a missing tap, and a device that is no tap", async () => {
    await refused(69, /no device nothere.*E_TAP_MISSING/s, "nothere");
    await refused(65, /E_TAP_KIND/, "up0");
  });

  test("names and options that are nonsense", async () => {
    await refused(64, /E_USAGE|E_TAP/, "tap0", "--guest-mac", "01:00:5e:00:00:01");
    await refused(64, /E_USAGE/, "tap0", "--guest-ip", "172.30.0.300");
    await refused(64, /E_USAGE/, "tap0", "--guest-ip", ADDRESS.gateway4);
    await refused(64, /E_USAGE/, "tap0", "--metrics", "localhost");
    await refused(64, /E_USAGE.*/s, "tap0", "--polcy", "x");
  });

  test("a policy with errors names file, line, rule and remedy", async () => {
    const file = path.join(world.dir, "bad.yaml");
    writeFileSync(file, "rules:\n  - allow: public\n  - alow: any\n  - allow: \"*.com\"\n");
    await refused(65, /bad\.yaml.*3.*bad\.yaml.*4/s, "tap0", "--policy", file);
    await refused(65, /E_POLICY_FILE/, "tap0", "--policy", path.join(world.dir, "absent.yaml"));
    await refused(65, /rule/, "tap0", "--rule", "allow@nonsense:tcp:99999");
  });

  test("no bpffs", async () => {
    await refused(78, /E_BPFFS/, "tap0", "--bpffs", world.dir);
  });

  test("a setting of the tap that cannot be made, when the workers have been told of the sandbox already", async () => {
    const file = "/proc/sys/net/ipv4/conf/tap0/arp_announce";
    const readOnly = `mount --bind ${file} ${file} && mount -o remount,ro,bind ${file} && exec "$@"`;
    const { status, text } = await attemptBy(["unshare", "--mount", "sh", "-c", readOnly, "sh"], "tap0", "--gateway", "172.31.0.1");
    expect(text).toMatch(/arp_announce.*EROFS.*E_NETLINK/s);
    expect(status).toBe(71);
    expect(await traces(world)).toEqual(clean);
  });

  test("metrics on a port that is taken", async () => {
    // In the host's namespace: a listener of the test's own.
    const holder = world.host.start([process.execPath, "-e", 'require("node:net").createServer().listen(9469, "127.0.0.1", () => console.log("ready"))']);
    await holder.line((line) => line === "ready");
    await refused(69, /E_METRICS_LISTEN/, "tap0", "--metrics", "127.0.0.1:9469");
    // The default, which nobody asked for: the tap is held all the same.
    const second = world.own(world.host.start([ENFORCER, "attach", "tap0", "--run-dir", world.runDir, "--bpffs", world.bpffs, "--upstream", ADDRESS.resolver4]));
    await second.line((line) => line.startsWith("enforcing tap0"));
    await until("the notice", () => second.errors.find((line) => /no metrics are served for this tap.*--metrics/.test(line)));
    expect(second.errors.filter((line) => line.includes("metrics on http"))).toEqual([]);
    expect(await second.stop()).toBe(0);
    await holder.stop("SIGKILL");
  });

  test("a tap that is somebody's already", async () => {
    const first = await world.enforce();
    const second = await attempt("tap0");
    expect(second.text).toMatch(/E_TAP_TAKEN/);
    const elsewhere = await attempt("tap0", "--run-dir", path.join(world.dir, "run2"), "--bpffs", path.join(world.bpffs, "other"));
    expect(elsewhere.text).toMatch(/E_TAP_TAKEN/);
    expect(elsewhere.status).toBe(69);
    expect(first.service.ended).toBe(null);
    expect(await first.stop()).toBe(0);
    expect(await traces(world)).toEqual({ ...clean, pins: readdirSync(world.bpffs).filter((name) => !OWN_FILES.has(name)) });
  });
});

describe("an enforcer that is killed", () => {
  let world: World;
  let enforcer: Enforcer;
  const policy = "rules:\n  - allow: site.example\n    proto: tcp\n    ports: [8080, 7777]\n";

  beforeAll(async () => {
    world = await World.create({ zone: { "site.example": { A: [ADDRESS.site4] } } });
    enforcer = await world.enforce({ policy });
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });

  const reach = async (address: string): Promise<boolean> => (await world.guest.probe(["http", address, address === ADDRESS.metadata4 ? "80" : "8080", "site.example", "/"], 1500)).ok;

  test("A05 the kernel goes on enforcing, pins live on, new names fail closed, a new one takes over", async () => {
    expect((await world.guest.probe(["fetch", "8.8.8.8", "site.example", "8080", "/", "A"], 3000)).ok).toBe(true);
    await enforcer.service.stop("SIGKILL");
    const escaped = await world.watch(async () => {
      // pinned before: goes on
      expect(await reach(ADDRESS.site4)).toBe(true);
      expect(await reach(ADDRESS.site4b)).toBe(false);
      expect(await reach(ADDRESS.metadata4)).toBe(false);
      expect((await world.guest.probe(["dns", "udp", "8.8.8.8", "site.example", "A"], 700)).ok).toBe(false);
    });
    const forbidden = escaped.uplink.filter((frame) => Buffer.from(frame).includes(Buffer.from([169, 254, 169, 254])));
    expect(forbidden).toEqual([]);

    enforcer = await world.enforce({ policy });
    expect(enforcer.events.find((event) => event.event === "enforcing")).toMatchObject({ adopted: true });
    expect(await reach(ADDRESS.site4)).toBe(true);
    expect(await reach(ADDRESS.site4b)).toBe(false);
    expect((await world.guest.probe(["fetch", "1.1.1.1", "site.example", "8080", "/", "A"], 3000)).ok).toBe(true);
  });

  test("A05 a storm of forbidden frames through kill and restart: none gets out", async () => {
    const storm = world.guest.start([process.execPath, "-e", `
      const socket = require("node:dgram").createSocket("udp4");
      const targets = ["${ADDRESS.metadata4}", "${ADDRESS.lan4}", "10.0.0.1"];
      const send = () => { for (const target of targets) socket.send("storm", 9999, target, () => {}); setTimeout(send, 1); };
      socket.bind(() => { console.log("ready"); send(); });`]);
    await storm.line((line) => line === "ready");
    const escaped = await world.watch(async () => {
      for (let round = 0; round < 3; round++) {
        await enforcer.service.stop("SIGKILL");
        enforcer = await world.enforce({ policy });
      }
    });
    await storm.stop("SIGKILL");
    const storming = (frame: Uint8Array): boolean => Buffer.from(frame).includes("storm");
    expect([...escaped.uplink, ...escaped.lan].filter(storming).length).toBe(0);
  });

  test("A05 an established connection lives through kill and restart", async () => {
    expect((await world.guest.probe(["fetch", "8.8.8.8", "site.example", "8080", "/", "A"], 3000)).ok).toBe(true);
    const server = world.internet.start([process.execPath, "-e", 'require("node:net").createServer((socket) => socket.pipe(socket)).listen(7777, () => console.log("ready"))']);
    await server.line((line) => line === "ready");
    const client = world.guest.start([process.execPath, "-e", `
      const socket = require("node:net").connect(7777, "${ADDRESS.site4}", () => console.log("ready"));
      socket.on("data", (data) => console.log("echo " + data.toString().trim()));
      socket.on("error", (error) => console.log("error " + error.message));
      process.stdin.pipe(socket);`]);
    await client.line((line) => line === "ready");
    const echoes = async (text: string): Promise<string> => {
      client.write(text);
      return client.line((line) => line === `echo ${text}`);
    };
    await echoes("before");
    await enforcer.service.stop("SIGKILL");
    await echoes("while nobody serves");
    enforcer = await world.enforce({ policy });
    await echoes("after");
    await client.stop("SIGKILL");
    await server.stop("SIGKILL");
  });

  test("A05 an enforcer that cannot go on serving ends, and the guest stays under its policy", async () => {
    await enforcer.stop();
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
      enforcer = await world.enforce({ policy });
    } finally {
      delete process.env.NODE_OPTIONS;
    }
    expect(await reach(ADDRESS.metadata4)).toBe(false);
    expect(await enforcer.service.stop("SIGUSR2")).toBe(71);
    expect(enforcer.service.errors.join("\n")).toMatch(/goes on enforcing.*E_RESOLVER/);
    expect(await reach(ADDRESS.metadata4)).toBe(false);
    expect(await reach(ADDRESS.site4b)).toBe(false);

    // One that fails before it has taken over takes nothing away either.
    const holder = world.host.start([process.execPath, "-e", 'require("node:net").createServer().listen(9469, "127.0.0.1", () => console.log("ready"))']);
    await holder.line((line) => line === "ready");
    const failed = world.startEnforcer({ policy, args: ["--metrics", "127.0.0.1:9469"] });
    await expect(failed.ready()).rejects.toThrow(/E_METRICS_LISTEN/);
    await holder.stop("SIGKILL");
    expect(await reach(ADDRESS.metadata4)).toBe(false);

    enforcer = await world.enforce({ policy });
    expect(enforcer.events.find((event) => event.event === "enforcing")).toMatchObject({ adopted: true });
  });

  test("after all of that an end by signal leaves nothing", async () => {
    expect(await enforcer.stop()).toBe(0);
    const left = await traces(world);
    expect(left).toMatchObject({ links: [], qdiscs: false, pins: [], state: [] });
    expect(await reach(ADDRESS.metadata4)).toBe(true);
  });
});

