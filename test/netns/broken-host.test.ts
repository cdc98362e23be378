/** Hosts that lack something: what the doctor says, and that agent and attach end at once, say what to do, and leave nothing. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { makeDirectories } from "../../src/make-directory.js";
import { ENFORCER, run } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks

let folder: string, bpffs: string, sys: string, runDir: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), "enf-host-"));
  [bpffs, sys, runDir] = [path.join(folder, "bpffs"), path.join(folder, "sys"), path.join(folder, "run")];
  for (const one of [bpffs, sys]) mkdirSync(one);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** In namespaces of its own, which end with it, with a tap0. */
const inside = (breaks: string, ...args: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> => run([
  "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", `ip link set lo up && ip tuntap add tap0 mode tap && ip addr add 10.9.0.1/30 dev tap0 && ${breaks} && "$@"; status=$?; ls -AR ${bpffs}; exit $status`, "sh", ENFORCER, ...args]);
const finding = async (breaks: string, check: string): Promise<unknown> => {
  const { stdout, stderr } = await inside(breaks, "doctor", "--json", "--bpffs", bpffs);
  expect(stdout, stderr).toMatch(/^\{/);
  return (JSON.parse(stdout.split("\n")[0]!) as { findings: { check: string }[] }).findings.find((one) => one.check === check);
};
const MOUNTED = "mount -t bpf bpf ", LOCKED = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys";

test("the doctor names what is mounted read-only", async () => {
  expect(await finding(`${MOUNTED}${bpffs}`, "bpffs")).toMatchObject({ ok: "yes" });
  expect(await finding(`${MOUNTED}${bpffs}`, "settings")).toMatchObject({ ok: "yes" });
  expect(await finding(`${MOUNTED}${bpffs} && mount -o remount,ro ${bpffs}`, "bpffs")).toMatchObject({ ok: "no", remedy: `mount -o remount,rw ${bpffs}` });
  expect(await finding(LOCKED, "settings")).toMatchObject({ ok: "no", remedy: expect.stringContaining("remount,rw /proc/sys") });
});

test.each([["agent", []], ["attach", ["tap0", "--foreground", "--metrics", "off"]]])("%s where no BPF file system is mounted", async (verb, more) => {
  const { status, stderr } = await inside(`mount -t sysfs sysfs ${sys}`, verb, ...more, "--bpffs", path.join(sys, "fs/bpf"), "--run-dir", runDir);
  expect(stderr).toMatch(/is not on a BPF file system\n {2}remedy: mount it.*E_BPFFS/);
  expect(status).toBe(78);
  expect((await inside("true", verb, ...more, "--bpffs", bpffs, "--run-dir", runDir)).status).toBe(78);
  expect(readdirSync(bpffs)).toEqual([]);
});

test("what cannot be put in force leaves no folder of its own", async () => {
  const { status, stdout, stderr } = await inside(`${MOUNTED}${bpffs} && mount -t tmpfs tmpfs /sys/kernel/btf`, "attach", "tap0", "--foreground", "--metrics", "off", "--bpffs", path.join(bpffs, "own"), "--run-dir", runDir);
  expect(stderr).toMatch(/E_LOAD/);
  expect({ status, stdout }).toEqual({ status: 71, stdout: expect.not.stringContaining("tap0") });
});

test("a directory that a file system refuses is refused", async () => {
  expect(() => makeDirectories("/proc/enforcer-test/a/b")).toThrow(/ENOENT/);
  const deep = path.join(folder, "a/b/c");
  makeDirectories(deep);
  makeDirectories(deep);
  expect(readdirSync(path.dirname(deep))).toEqual(["c"]);
  expect(() => makeDirectories("/proc/self/status/x")).toThrow(/ENOTDIR/);
  expect((await inside("true", "agent", "--bpffs", bpffs, "--run-dir", "/proc/enforcer-test")).stderr).toMatch(/cannot be made: ENOENT[\s\S]*E_STATE/);
});
