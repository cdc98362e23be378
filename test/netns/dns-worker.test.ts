/**
 * The worker thread as it runs in the agent: listeners in one namespace, upstream sockets in another, pins in a real map,
 * dnsmasq as upstream, dig as guest. Needs root, the built addon, dnsmasq and dig; makes and removes its own namespaces.
 */
import { execFile, execFileSync, spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { MessageChannel, Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BpfMap as BpfMapClass } from "../../native/index.js";
import { formatAddress, parseAddress } from "../../src/addresses/address.js";
import { groupTable, packGroups, staticGroups } from "../../src/addresses/groups.js";
import { ResolverLink } from "../../src/dns/link.js";
import type { FromWorker, Replies, Request } from "../../src/dns/protocol.js";
import { layouts } from "../../src/kernel/layout.gen.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";

const run = promisify(execFile);
const repository = resolve(import.meta.dirname, "../..");
const have = (program: string): boolean => ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].some((folder) => existsSync(join(folder, program)));
const missing = process.getuid?.() !== 0 ? "root" : !existsSync(join(repository, "native/build/Release/enforcer_native.node")) ? "the built addon"
  : ["dnsmasq", "dig", "ip"].find((program) => !have(program));

const tag = `enf-dt-${process.pid % 100_000}`;
const space = (name: string): string => `${tag}-${name}`;
const ip = (...args: string[]): void => { execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"] }); };
const policyOf = (tokens: string[]) => buildPolicy({ tokens }).policy;

describe.skipIf(missing !== undefined)(`worker${missing === undefined ? "" : ` (skipped: needs ${missing})`}`, () => {
  let folder: string;
  let worker: Worker;
  let upstream: ChildProcess;
  let native: typeof import("../../native/index.js");
  const maps: BpfMapClass[] = [];
  const told: FromWorker[] = [];
  const waiting = new Map<number, (message: FromWorker) => void>();
  let next = 0;
  const fds: number[] = [];

  const ask = async <K extends Request["kind"]>(request: Extract<Request, { kind: K }>): Promise<Replies[K]> => {
    const message = await new Promise<FromWorker>((done) => {
      waiting.set(++next, done);
      worker.postMessage({ id: next, request });
    });
    if (message.kind !== "reply") throw new Error("test: not a reply");
    if (!message.ok) throw new Error(message.message);
    return message.value as Replies[K];
  };
  const pinsMap = (maxEntries = 64): BpfMapClass => {
    const map = native.BpfMap.create({ type: "hash", name: "test_pins", keySize: 16, valueSize: layouts.pin.size, maxEntries, flags: 1 });
    maps.push(map);
    return map;
  };
  const pinned = (map: BpfMapClass): string[] => {
    const { keys, count } = map.entries();
    return Array.from({ length: count }, (_, i) => formatAddress(keys.subarray(16 * i, 16 * i + 16))).sort();
  };
  /** dig in the guest's namespace: status and short answers. */
  const dig = async (...args: string[]): Promise<{ status: string; answers: string[]; text: string }> => {
    const { stdout } = await run("ip", ["netns", "exec", space("guest"), "dig", "+tries=1", "+time=6", ...args]);
    const section = /ANSWER SECTION:\n([^]*?)\n\n/.exec(stdout)?.[1] ?? "";
    return { status: /status: (\w+)/.exec(stdout)?.[1] ?? "none", answers: section.split("\n").filter((line) => line !== "").map((line) => line.split(/\s+/).slice(4).join(" ")), text: stdout };
  };

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "enforcer-dns-"));
    // Worker threads run JavaScript only.
    execFileSync(process.execPath, [join(repository, "node_modules/typescript/bin/tsc"), "-p", join(repository, "tsconfig.json"), "--outDir", join(folder, "dist"), "--noEmitOnError", "false", "--declaration", "false", "--sourceMap", "false"], { stdio: "pipe" });
    for (const name of ["native", "node_modules", "package.json", "data"]) symlinkSync(join(repository, name), join(folder, name));
    native = await import("../../native/index.js");
    for (const name of ["agent", "guest", "host"]) {
      ip("netns", "add", space(name));
      ip("-n", space(name), "link", "set", "lo", "up");
    }
    ip("link", "add", "g0", "netns", space("guest"), "type", "veth", "peer", "name", "a0", "netns", space("agent"));
    // Slots 0 and 1 by IPv4, slot 0 by IPv6, and an address that is no sandbox's.
    for (const address of ["240.0.1.0/4", "240.0.1.1/4", "240.0.0.7/4", "10.9.9.2/24"]) ip("-n", space("guest"), "addr", "add", address, "dev", "g0");
    for (const address of ["240.0.0.1/4", "10.9.9.1/24"]) ip("-n", space("agent"), "addr", "add", address, "dev", "a0");
    ip("-n", space("guest"), "addr", "add", "fd00:e::100/64", "dev", "g0", "nodad");
    ip("-n", space("agent"), "addr", "add", "fd00:e::1/64", "dev", "a0", "nodad");
    ip("-n", space("guest"), "link", "set", "g0", "up");
    ip("-n", space("agent"), "link", "set", "a0", "up");
    writeFileSync(join(folder, "hosts"), "93.184.216.34 allowed.example\n2606:4700::1 allowed.example\n93.184.216.35 two.example\n10.0.0.1 private.example\n93.184.216.36 mixed.example\n169.254.169.254 mixed.example\n"
      + Array.from({ length: 50 }, (_, i) => `93.184.217.${i + 1} many.example\n`).join(""));
    upstream = spawn("ip", ["netns", "exec", space("host"), "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", `--addn-hosts=${join(folder, "hosts")}`, "--listen-address=127.0.0.1", "--bind-interfaces",
      "--user=root", "--pid-file=", "--local-ttl=120", "--cname=alias.example,allowed.example", "--txt-record=allowed.example,hello", "--local=/example/", "--log-queries", "--log-facility=-"], { stdio: ["ignore", "ignore", "pipe"] });
    await new Promise<void>((done, fail) => {
      upstream.stderr!.on("data", (chunk: Buffer) => { if (chunk.toString().includes("started")) done(); });
      upstream.once("exit", (code) => fail(new Error(`dnsmasq ended with ${code}`)));
    });
    worker = new Worker(join(folder, "dist/dns/worker.js"));
    worker.on("message", (message: FromWorker) => {
      if (message.kind !== "reply") {
        told.push(message);
        return;
      }
      const done = waiting.get(message.id);
      waiting.delete(message.id);
      done?.(message);
    });
    for (const name of ["agent", "host"]) fds.push(native.openNetns(`/run/netns/${space(name)}`));
    const started = await ask<"start">({
      kind: "start", listen: { netnsFd: fds[0]!, address4: "240.0.0.1", address6: "fd00:e::1", port: 53 }, hostNetnsFd: fds[1]!,
      sandboxNet6: parseAddress("fd00:e::"), groups: packGroups(staticGroups), resolvConf: join(folder, "resolv.conf"),
    });
    expect(started).toEqual({ port: 53, noUpstream: true });
  }, 120_000);

  afterAll(async () => {
    await worker?.terminate();
    upstream?.kill();
    for (const map of maps) map.close();
    for (const fd of fds) native.closeFd(fd);
    for (const name of ["agent", "guest", "host"]) try { ip("netns", "del", space(name)); } catch { /* was not made */ }
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  });

  let pins: BpfMapClass;

  it("before its sandbox is there, a guest gets nothing", async () => {
    await expect(dig("+time=1", "@240.0.0.1", "allowed.example")).rejects.toThrow();
    expect((await ask<"stats">({ kind: "stats" })).strangers).toBeGreaterThan(0);
  });

  it("follows resolv.conf: none at first, then the host's stub on loopback", async () => {
    pins = pinsMap();
    await ask<"addSandbox">({
      kind: "addSandbox", slot: 0, generation: 3, name: "one", floor: null, floorPinsFd: null, compiledGroups: null, pinsFd: pins.fd, pinEpochsFd: null, flowsFd: null, upstreams: null,
      policy: policyOf(["allow@allowed.example:tcp:443", "allow@alias.example:tcp:443", "allow@private.example", "allow@mixed.example", "allow@many.example"]),
    });
    const before = await dig("@240.0.0.1", "allowed.example");
    expect(before.status).toBe("SERVFAIL");
    expect(before.text).toContain("EDE: 23");
    writeFileSync(join(folder, "resolv.conf.new"), "search corp.test\nnameserver 127.0.0.1\n");
    const { renameSync } = await import("node:fs");
    renameSync(join(folder, "resolv.conf.new"), join(folder, "resolv.conf"));
    while (!told.some((message) => message.kind === "resolvers" && message.servers.includes("127.0.0.1"))) await new Promise((done) => setTimeout(done, 20));
    expect((await dig("@240.0.0.1", "allowed.example")).answers).toEqual(["93.184.216.34"]);
  });

  it("UDP and TCP, IPv4 and IPv6, pins in the map when the answer is there", async () => {
    for (const args of [["@240.0.0.1"], ["+tcp", "@240.0.0.1"], ["@fd00:e::1"], ["+tcp", "@fd00:e::1"]]) {
      const { status, answers } = await dig(...args, "alias.example", "AAAA");
      expect([status, answers]).toEqual(["NOERROR", ["allowed.example.", "2606:4700::1"]]);
    }
    expect(pinned(pins)).toEqual(["2606:4700::1", "93.184.216.34"]);
    const value = pins.lookup(parseAddress("93.184.216.34")!)!;
    const expires = value.readUInt32LE(layouts.pin.fields.expires.offset);
    const now = process.hrtime()[0];
    expect(expires).toBeGreaterThan(now + 60);
    expect(expires).toBeLessThanOrEqual(now + 122);
    expect((await dig("@240.0.0.1", "allowed.example", "TXT")).answers).toEqual(['"hello"']);
  });

  it("refuses, with the kernel none the wiser", async () => {
    for (const [name, status] of [["denied.example", "NXDOMAIN"], ["private.example", "REFUSED"], ["mixed.example", "REFUSED"], ["localhost", "NXDOMAIN"]]) {
      for (const extra of [[], ["+tcp"]]) expect((await dig("@240.0.0.1", ...extra, name!)).status).toBe(status);
    }
    expect(pinned(pins)).toEqual(["2606:4700::1", "93.184.216.34"]);
    while (!told.some((message) => message.kind === "denied" && message.queries.some((q) => q.name === "mixed.example" && q.outcome === "rebind" && q.address !== null))) await new Promise((done) => setTimeout(done, 20));
  });

  it("what does not fit into the map is SERVFAIL, and what does not fit into UDP comes over TCP", async () => {
    const cut = await dig("+ignore", "+noedns", "@240.0.0.1", "many.example");
    expect(cut.text).toMatch(/flags:.* tc/);
    expect((await dig("@240.0.0.1", "many.example")).answers).toHaveLength(50);
    expect(pinned(pins)).toHaveLength(52);
    await ask<"addSandbox">({ kind: "addSandbox", slot: 1, generation: 1, name: "two", floor: null, floorPinsFd: null, compiledGroups: null, pinsFd: pinsMap(8).fd, pinEpochsFd: null, flowsFd: null, upstreams: null, policy: policyOf(["allow@many.example"]) });
    const full = await dig("-b", "240.0.1.1", "@240.0.0.1", "many.example");
    expect([full.status, full.answers]).toEqual(["SERVFAIL", []]);
    expect((await ask<"stats">({ kind: "stats" })).sandboxes[1]!.queries["pin-failed"]).toBe(1);
  });

  it("the source address alone says whose a query is", async () => {
    expect((await dig("-b", "240.0.1.1", "@240.0.0.1", "allowed.example")).status).toBe("NXDOMAIN");
    for (const stranger of ["240.0.0.7", "10.9.9.2"]) await expect(dig("+time=1", "-b", stranger, "@240.0.0.1", "allowed.example")).rejects.toThrow();
    await expect(dig("+time=1", "+tcp", "-b", "240.0.0.7", "@240.0.0.1", "allowed.example")).rejects.toThrow();
  });

  it("swaps policies: the new map is filled before the reply, and takes over when confirmed", async () => {
    const fresh = pinsMap();
    const swap = await ask<"swapPolicy">({ kind: "swapPolicy", slot: 0, generation: 3, floor: null, floorPinsFd: null, compiledGroups: null, pinsFd: fresh.fd, pinEpochsFd: null, upstreams: null, policy: policyOf(["allow@allowed.example:tcp:80", "allow@two.example"]) });
    expect(swap).toEqual({ written: 1, left: 0 }); // the AAAA was told for alias.example, which the new policy does not name
    expect(pinned(fresh)).toEqual(["93.184.216.34"]);
    expect((await dig("@240.0.0.1", "two.example")).status).toBe("NXDOMAIN");
    await ask<"confirmSwap">({ kind: "confirmSwap", slot: 0, generation: 3 });
    expect((await dig("@240.0.0.1", "two.example")).answers).toEqual(["93.184.216.35"]);
    expect((await dig("@240.0.0.1", "many.example")).status).toBe("NXDOMAIN");
    expect(pinned(fresh)).toContain("93.184.216.35");
    expect((await ask<"pins">({ kind: "pins", slot: 0, generation: 3 })).some((p) => p.name === "two.example" && p.bits.length === 1)).toBe(true);
    expect(await ask<"namesOf">({ kind: "namesOf", slot: 0, generation: 3, address: parseAddress("93.184.216.35")! })).toEqual(["two.example"]);
    await expect(ask<"confirmSwap">({ kind: "confirmSwap", slot: 0, generation: 3 })).rejects.toThrow("no policy swap");
  });

  it("follows the host's addresses", async () => {
    await ask<"groups">({ kind: "groups", groups: packGroups(groupTable({ hostAddresses: [parseAddress("93.184.216.35")!] })) });
    expect((await dig("@240.0.0.1", "two.example")).status).toBe("REFUSED");
    await ask<"groups">({ kind: "groups", groups: packGroups(staticGroups) });
    expect((await dig("@240.0.0.1", "two.example")).status).toBe("NOERROR");
  });

  it("a block list crosses to the thread", async () => {
    const { policy } = buildPolicy({ file: parsePolicyText("dns: {block: [two.example]}\nrules: [{allow: public}]", "test.yaml") });
    await ask<"addSandbox">({ kind: "addSandbox", slot: 7, generation: 1, name: "seven", floor: null, floorPinsFd: null, compiledGroups: null, pinsFd: pinsMap().fd, pinEpochsFd: null, flowsFd: null, upstreams: null, policy });
    ip("-n", space("guest"), "addr", "add", "240.0.1.7/4", "dev", "g0");
    expect((await dig("-b", "240.0.1.7", "@240.0.0.1", "two.example")).status).toBe("NXDOMAIN");
    expect((await dig("-b", "240.0.1.7", "@240.0.0.1", "allowed.example")).status).toBe("NOERROR");
    // resolv.conf has "search corp.test".
    const local = await dig("-b", "240.0.1.7", "@240.0.0.1", "db.corp.test");
    expect([local.status, /EDE: \d+/.exec(local.text)?.[0]]).toEqual(["NXDOMAIN", "EDE: 15"]);
  });

  it("with a floor, pins stand in both maps; another thread may ask what was pinned and have questions answered", async () => {
    const own = pinsMap();
    const floor = pinsMap();
    const message = { slot: 8, generation: 2, name: "eight", compiledGroups: null, pinEpochsFd: null, flowsFd: null, upstreams: null, policy: policyOf(["allow@allowed.example:tcp:443", "allow@two.example"]) } as const;
    await expect(ask<"addSandbox">({ kind: "addSandbox", ...message, floor: message.policy, pinsFd: own.fd, floorPinsFd: null })).rejects.toThrow("come together");
    await ask<"addSandbox">({ kind: "addSandbox", ...message, floor: policyOf(["deny@two.example", "allow@allowed.example"]), pinsFd: own.fd, floorPinsFd: floor.fd });
    ip("-n", space("guest"), "addr", "add", "240.0.1.8/4", "dev", "g0");
    expect((await dig("-b", "240.0.1.8", "@240.0.0.1", "two.example")).status).toBe("NXDOMAIN");
    expect((await dig("-b", "240.0.1.8", "@240.0.0.1", "allowed.example")).status).toBe("NOERROR");
    expect([pinned(own), pinned(floor)]).toEqual([["93.184.216.34"], ["93.184.216.34"]]);

    const { port1, port2 } = new MessageChannel();
    const id = ++next;
    const joined = new Promise((done) => waiting.set(id, done));
    worker.postMessage({ id, request: { kind: "connect", port: port2 } }, [port2]);
    await joined;
    const link = new ResolverLink(port1);
    const address = parseAddress("93.184.216.34")!;
    expect(await Promise.all([["allowed", "example"], ["two", "example"]].map((labels) => link.pinned(8, 2, address, labels)))).toEqual([true, false]);
    const question = Buffer.from("\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07allowed\x07example\0\0\x01\0\x01", "latin1");
    const answer = Buffer.from((await link.answer(8, 2, question))!);
    expect([answer.readUInt16BE(0), answer[3]! & 15, answer.readUInt16BE(6)]).toEqual([0x1234, 0, 1]);
    await ask<"removeSandbox">({ kind: "removeSandbox", slot: 8, generation: 2 });
    expect([await link.pinned(8, 2, address, ["allowed", "example"]), await link.answer(8, 2, question)]).toEqual([false, null]);
    link.close();
  });

  it("errors are replies: unknown sandbox, stale generation, taken slot, started twice", async () => {
    await expect(ask<"pins">({ kind: "pins", slot: 9, generation: 1 })).rejects.toThrow("slot 9");
    await expect(ask<"removeSandbox">({ kind: "removeSandbox", slot: 0, generation: 2 })).rejects.toThrow("generation 2");
    await expect(ask<"addSandbox">({ kind: "addSandbox", slot: 0, generation: 4, name: "x", floor: null, floorPinsFd: null, compiledGroups: null, pinsFd: pins.fd, pinEpochsFd: null, flowsFd: null, upstreams: null, policy: policyOf([]) })).rejects.toThrow("slot 0");
    await expect(ask<"addSandbox">({ kind: "addSandbox", slot: 2, generation: 4, name: "x", floor: null, floorPinsFd: null, compiledGroups: null, pinsFd: 999_999, pinEpochsFd: null, flowsFd: null, upstreams: null, policy: policyOf([]) })).rejects.toThrow();
  });

  it("a removed sandbox gets nothing; stopping ends the thread", async () => {
    await ask<"removeSandbox">({ kind: "removeSandbox", slot: 0, generation: 3 });
    await expect(dig("+time=1", "@240.0.0.1", "allowed.example")).rejects.toThrow();
    const stats = await ask<"stats">({ kind: "stats" });
    expect(stats.sandboxes.map((s) => s.slot)).toEqual([1, 7]);
    expect([stats.faults, stats.lastFault]).toEqual([0, null]);
    const ended = new Promise((done) => worker.once("exit", done));
    await ask<"stop">({ kind: "stop" });
    expect(await ended).toBe(0);
  });
});
