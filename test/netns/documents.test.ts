/**
 * The commands of docs/OPERATIONS.md, and of docs/PLATFORMS.md where no virtual machine monitor is needed, run as they stand there in a network namespace of their own, and what they print: the
 * lines for people, the settings of the tap, the metrics of docs/METRICS.md.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { tcpFrame } from "../lib/frames.js";
import { buildTools, ENFORCER, FramesGuest, must, Namespace, ROOT, type Service, until } from "../lib/world.mjs";

const text = (name: string): string => readFileSync(path.join(ROOT, name), "utf8");

/** Commands of one block of shell commands behind a heading, the first unless told, without sudo. */
function commands(document: string, heading: string, nth = 0): string[] {
  const section = text(document).split(`\n${heading}\n`)[1]?.split("\n## ")[0] ?? "";
  const block = [...section.matchAll(/```sh\n([\s\S]*?)```/g)][nth]?.[1] ?? "";
  return block.split("\n").filter((line) => line !== "").map((line) => line.replace(/^sudo /, ""));
}

/** The first policy of the README. */
const policy = /```yaml\n([\s\S]*?)```/.exec(text("README.md"))?.[1] ?? "";

describe("docs/OPERATIONS.md", () => {
  let directory: string;
  let host: Namespace;
  let used = 0;
  const running: Service[] = [];

  beforeAll(async () => {
    await buildTools();
    directory = mkdtempSync(path.join(os.tmpdir(), `enf-w${process.pid}-docs-`));
    writeFileSync(path.join(directory, "policy.yaml"), policy);
  });
  afterAll(async () => {
    await end();
    rmSync(directory, { recursive: true, force: true });
  });

  async function fresh(): Promise<void> {
    await end();
    host = new Namespace(`enf-w${process.pid}-docs${++used}`);
    await must(["ip", "netns", "add", host.name]);
    await host.ip("link set lo up");
  }
  async function end(): Promise<void> {
    for (const service of running.splice(0)) await service.stop();
    if (used > 0) await remove(host);
  }
  /** A namespace that a test, or a command of a document, has made or not come to. */
  async function remove(namespace: Namespace): Promise<void> {
    if (existsSync(`/run/netns/${namespace.name}`)) await must(["ip", "netns", "del", namespace.name]);
  }

  /** Runs a command as it stands; `enforcer attach` is left running. A BPF file system is mounted for it where the document says so. */
  async function perform(command: string): Promise<Service | null> {
    const mount = "mount -t bpf bpf /sys/fs/bpf";
    expect(text("docs/OPERATIONS.md")).toContain(`sudo ${mount}`);
    if (!command.startsWith("enforcer attach ")) {
      await host.must(["sh", "-c", command]);
      return null;
    }
    const service = host.start(["sh", "-c", `${mount} && cd ${directory} && exec ${command.replace(/^enforcer/, ENFORCER)} --run-dir ${directory}/run`]);
    running.push(service);
    await service.line((line) => line.startsWith("enforcing "), { what: "enforcing", ms: 30_000 });
    return service;
  }

  async function knock(): Promise<void> {
    const guest = new FramesGuest(host, "tap0", false);
    running.push(guest.service);
    await guest.ready();
    await guest.send(tcpFrame({ sourceMac: "02:fc:00:00:00:02", destinationMac: "02:fc:00:00:00:01", source: "172.30.0.2", destination: "169.254.169.254" }, { sourcePort: 40112, destinationPort: 80 }));
  }

  test("a routed tap: every command, the lines, the settings, the metrics, the end", async () => {
    await fresh();
    let service: Service | null = null;
    for (const command of commands("docs/OPERATIONS.md", "## A routed tap")) service = (await perform(command)) ?? service;
    if (service === null) throw new Error("the document attaches nothing");
    expect(service.lines[0]).toMatch(/^enforcing tap0 \(routed, (tcx|clsact), 2 rules\)$/);
    await until("the line about metrics", () => service.errors.includes("enforcer: metrics on http://127.0.0.1:9469/metrics"));
    const settings = service.errors.flatMap((line) => { const match = /^enforcer: set (net\.\S+) \S+ → (\S+): (.*)$/.exec(line); return match === null ? [] : [`| \`${match[1]!.replace(".tap0.", ".TAP.")}\` | ${match[2]!} | ${match[3]!} |`]; });
    expect(settings.length).toBeGreaterThan(3);
    for (const row of settings) expect(text("docs/OPERATIONS.md")).toContain(row);

    await knock();
    const line = await service.line((one) => one.includes("denied egress tcp"));
    expect(line.slice(13)).toBe("tap0 denied egress tcp 172.30.0.2:40112 → 169.254.169.254:80: default-metadata");
    expect(text("docs/OPERATIONS.md")).toContain(line.slice(13));

    const [curl] = commands("docs/OPERATIONS.md", "## When something does not work");
    const page = await host.must(["sh", "-c", curl!]);
    const served = [...page.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map((match) => `| \`${match[1]!}\` | ${match[2]!} |`);
    expect(served.length).toBeGreaterThan(15);
    for (const row of served) expect(text("docs/METRICS.md")).toContain(row);
    expect([...text("docs/METRICS.md").matchAll(/^\| `enforcer_/gm)].length).toBe(served.length);
    expect(page).toMatch(/^enforcer_packets_total\{sandbox="tap0",direction="egress",verdict="deny",reason="default-metadata"\} 1$/m);

    expect((await host.run([ENFORCER, "doctor", "tap0"])).stdout).toMatch(/tap tap0 +enforced: only the enforcer's programs/);
    // Whoever asks it, instead of an agent, is told so: an agent that is started now would not have the tap.
    for (const verb of [["list"], ["status", "tap0"], ["explain", "tap0", "site.example"], ["watch"]]) {
      expect(await host.run([ENFORCER, ...verb, "--run-dir", path.join(directory, "run")])).toMatchObject({ status: 69, stderr: expect.stringMatching(/: tap0 is held by enforcer attach alone, which answers no questions\n {2}remedy: .*attach again \[E_NO_AGENT\]/) });
    }
    expect(await service.stop()).toBe(0);
    expect(service.errors.at(-1)).toBe("enforcer: detached from tap0");
  });

  test("a bridged tap: every command", async () => {
    await fresh();
    const bridged = commands("docs/OPERATIONS.md", "## A bridged tap");
    await perform(commands("docs/OPERATIONS.md", "## A routed tap")[0]!);
    let service: Service | null = null;
    for (const command of bridged) service = (await perform(command)) ?? service;
    expect(service?.lines[0]).toMatch(/^enforcing tap0 \(port of bridge br0, (tcx|clsact), 1 rule\)$/);
  });

  test("several at once: every command", async () => {
    await fresh();
    for (let tap = 0; tap < 3; tap++) await host.ip(`tuntap add tap${tap} mode tap\naddr add 172.30.${tap}.1/30 dev tap${tap}\nlink set tap${tap} up`);
    const attach = commands("docs/OPERATIONS.md", "## Several at once");
    expect(attach.length).toBe(3);
    for (const command of attach) await perform(command);
    expect(running.filter((service) => service.ended === null).length).toBe(3);
  });

  test("PLATFORMS: Firecracker's tap is the routed tap; a tap in a namespace of its own, every command; taken off, nothing holds it", async () => {
    const firecracker = commands("docs/PLATFORMS.md", "## Firecracker");
    expect(firecracker.length).toBe(4);
    expect(commands("docs/OPERATIONS.md", "## A routed tap")).toEqual(expect.arrayContaining(firecracker));

    await fresh();
    const vm = new Namespace(`${host.name}-vm`), bpffs = path.join(directory, "bpffs"), run = path.join(directory, "run-agent"), config = path.join(directory, "agent.yaml");
    writeFileSync(config, `run_dir: ${run}\nbpffs: ${bpffs}\nmetrics: off\nupstreams: [192.0.2.1]\n`);
    mkdirSync(bpffs);
    await must(["mount", "-t", "bpf", "bpf", bpffs]);
    try {
      const agent = host.start([ENFORCER, "agent", "--config", config, "--json"]);
      running.push(agent);
      await agent.line((line) => line.includes('"event":"ready"'), { what: "the agent", ms: 30_000 });
      const ask = (...args: string[]): Promise<string> => must([ENFORCER, ...args, "--run-dir", run], { timeoutMs: 60_000 });
      for (const command of commands("docs/PLATFORMS.md", "## The jailer, and other network namespaces")) {
        const here = command.replace(/(?<=netns add |-n |--netns )vm1\b/, vm.name).replace("policy.yaml", path.join(directory, "policy.yaml"));
        await (here.startsWith("enforcer ") ? ask(...here.split(" ").slice(1)) : must(["sh", "-c", here]));
      }
      expect(await ask("list")).toMatch(/^vm1 +tap0 .* enforced/m);
      const doctor = async (): Promise<string> => (await vm.run([ENFORCER, "doctor", "tap0"])).stdout;
      expect(await doctor()).toMatch(/tap tap0 +enforced: only the enforcer's programs/);
      // As the page says: ending the agent lifts nothing, detaching does, and the folders may go then.
      await ask("detach", "vm1");
      expect(await agent.stop()).toBe(0);
      const [removal] = commands("docs/PLATFORMS.md", "## Taking it off", 1);
      await must(["sh", "-c", removal!.replace("/sys/fs/bpf", bpffs).replace("/run/enforcer", run)]);
      expect(await doctor()).toMatch(/tap tap0 +no programs/);
    } finally {
      await end();
      await must(["umount", bpffs]);
      await remove(vm);
    }
  });
});
