/** Namespaces, descriptors, locks and the single facts. */
import { execFileSync, spawn } from "node:child_process";
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
    // A directory too: on a BPF file system there are no ordinary files.
    const directory = native.lockFile(bpffs.path);
    expect(thrownBy(() => native.lockFile(bpffs.path))).toMatchObject({ code: "EWOULDBLOCK" });
    native.closeFd(directory);
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

describe("what a service manager is told", () => {
  // Node has no datagram sockets of the family AF_UNIX: perl stands for the manager. One line for each datagram.
  const manager = async (path: string, work: () => void): Promise<string> => {
    const script = `use Socket; socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die; my $p = $ARGV[0]; $p =~ s/^@/\\0/; bind($s, pack_sockaddr_un($p)) or die $!; $| = 1; print "ready\n"; recv($s, my $m, 4096, 0); $m =~ s/\n/|/g; print "$m\n";`;
    const child = spawn("perl", ["-e", script, path], { stdio: ["ignore", "pipe", "inherit"] });
    let text = "";
    const done = new Promise<void>((resolve) => { child.on("close", () => resolve()); });
    await new Promise<void>((resolve) => child.stdout.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes("ready")) resolve();
    }));
    work();
    await done;
    return text;
  };

  it.each([["in the file system", () => join(folder, "notify.sock")], ["with an abstract name", () => `@enforcer-test-${process.pid}`]])("arrives as one datagram, %s", async (_, path) => {
    const text = "READY=1\nSTATUS=24 enforced";
    expect(await manager(path(), () => native.notifySocket(path(), text))).toContain("READY=1|STATUS=24 enforced");
  });

  it("says what is wrong where nobody listens", () => {
    expect(thrownBy(() => native.notifySocket(join(folder, "nobody.sock"), "READY=1"))).toMatchObject({ code: "ENOENT", syscall: "sendto" });
    expect(thrownBy(() => native.notifySocket(`/${"x".repeat(200)}`, "READY=1"))).toMatchObject({ code: "ENAMETOOLONG" });
  });
});
