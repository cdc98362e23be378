/** Namespaces, descriptors, locks and the single facts. */
import { execFileSync } from "node:child_process";
import { statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ip, native, openDescriptors, temporaryFolder, thrownBy, withBpffs } from "./fixture.js";

const folder = temporaryFolder();
const bpffs = withBpffs();

describe("network namespaces", () => {
  it("makes one and stays where it was", () => {
    const before = native.openNetns();
    const made = native.createNetns();
    const after = native.openNetns();
    expect(native.netnsInode(after)).toBe(native.netnsInode(before));
    expect(native.netnsInode(made)).not.toBe(native.netnsInode(before));
    native.setNetns(made);
    const names = (JSON.parse(ip("-j", "link", "show")) as { ifname: string }[]).map((link) => link.ifname);
    const inside = native.openNetns();
    native.setNetns(before);
    expect(names).toEqual(["lo"]);
    expect(native.netnsInode(inside)).toBe(native.netnsInode(made));
    [before, made, after, inside].forEach((fd) => native.closeFd(fd));
  });

  it("opens one by its file", () => {
    const own = native.openNetns("/proc/self/ns/net");
    const same = native.openNetns();
    expect(native.netnsInode(own)).toBe(native.netnsInode(same));
    native.closeFd(own);
    native.closeFd(same);
    expect(thrownBy(() => native.openNetns("/nowhere/net"))).toMatchObject({ code: "ENOENT", syscall: "open", path: "/nowhere/net" });
  });

  it("refuses what is no namespace", () => {
    const other = native.openNetns("/proc/self/ns/uts");
    expect(thrownBy(() => native.setNetns(other))).toMatchObject({ code: "EINVAL", syscall: "setns" });
    native.closeFd(other);
    expect(thrownBy(() => native.closeFd(other))).toMatchObject({ code: "EBADF", syscall: "close" });
    expect(thrownBy(() => native.netnsInode(other))).toMatchObject({ code: "EBADF", syscall: "fstat" });
    expect(() => native.setNetns(-1)).toThrow(RangeError);
    expect(() => native.closeFd(1.5)).toThrow(RangeError);
    expect(() => native.closeFd("3" as never)).toThrow(TypeError);
  });
});

describe("a lock", () => {
  it("is held until its descriptor is closed", () => {
    const path = join(folder, "lock");
    const held = native.lockFile(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const before = openDescriptors();
    expect(thrownBy(() => native.lockFile(path))).toMatchObject({ code: "EWOULDBLOCK", syscall: "flock", path });
    expect(openDescriptors()).toBe(before);
    native.closeFd(held);
    native.closeFd(native.lockFile(path));
    expect(thrownBy(() => native.lockFile(join(folder, "no", "lock")))).toMatchObject({ code: "ENOENT", syscall: "open" });
  });
});

describe("facts", () => {
  it("mounts bpffs for root alone", () => {
    expect(native.fsType(bpffs.path)).toBe(0xcafe4a11);
    expect(statSync(bpffs.path).mode & 0o777).toBe(0o700);
    expect(native.fsType("/proc")).toBe(0x9fa0);
    expect(thrownBy(() => native.fsType("/nowhere"))).toMatchObject({ code: "ENOENT", syscall: "statfs", path: "/nowhere" });
    expect(thrownBy(() => native.mountBpffs("/nowhere"))).toMatchObject({ code: "ENOENT", syscall: "mount", path: "/nowhere" });
  });

  it("knows the clock, the CPUs, libbpf and the capabilities", () => {
    const first = native.clockMonotonicCoarse();
    expect(native.clockMonotonicCoarse()).toBeGreaterThanOrEqual(first);
    const fine = process.hrtime.bigint();
    expect(native.clockMonotonicCoarse()).toBeLessThanOrEqual(process.hrtime.bigint());
    expect(fine - first).toBeGreaterThanOrEqual(0n);
    expect(1e9 / native.tickNanoseconds()).toBeGreaterThan(99); // CONFIG_HZ is 100 to 1000
    expect(1e9 / native.tickNanoseconds()).toBeLessThan(1025);
    expect(native.possibleCpus()).toBeGreaterThanOrEqual(1);
    expect(native.libbpfVersion()).toMatch(/^v\d+\.\d+/);
    const line = execFileSync("grep", ["CapEff", "/proc/self/status"], { encoding: "utf8" });
    expect(native.effectiveCapabilities()).toBe(BigInt(`0x${line.split(":")[1]!.trim()}`));
  });
});
