/**
 * Facts of the machine that a figure depends on, and the state of the source. No host name, no person, no path.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import os from "node:os";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** @param {string} file @param {readonly string[]} args */
function said(file, args) {
  try {
    return execFileSync(file, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], cwd: ROOT });
  } catch {
    return null;
  }
}

/** @param {string} command @param {readonly string[]} args */
function version(command, args) {
  return /\d+\.\d+[\w.-]*/.exec(said(command, args) ?? "")?.[0] ?? null;
}

/** @param {string} path */
function fileText(path) {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return null;
  }
}

export function machine() {
  const info = fileText("/proc/cpuinfo") ?? "";
  return {
    cpu: os.cpus()[0]?.model.trim() ?? "unknown",
    cpus: os.availableParallelism(),
    virtual: /^flags\s*:.*\bhypervisor\b/m.test(info),
    memoryMiB: Math.round(os.totalmem() / 2 ** 20),
    kernel: os.release().split("-")[0],
    architecture: os.arch(),
    jit: fileText("/proc/sys/net/core/bpf_jit_enable") !== "0",
    jitHarden: Number(fileText("/proc/sys/net/core/bpf_jit_harden") ?? 0),
    node: process.versions.node,
    nftables: version("nft", ["--version"]),
    dnsmasq: version("dnsmasq", ["--version"]),
    dnsperf: version("sh", ["-c", "timeout 2 dnsperf -s 127.0.0.1 -p 1 -d /dev/null -n 1 2>&1 | head -2"]),
    iperf3: version("iperf3", ["--version"]),
    mitmproxy: version("mitmdump", ["--version"]),
  };
}

/** Commit, and whether the tree differs from it where it counts. */
export function git() {
  const commit = said("git", ["rev-parse", "--short=12", "HEAD"])?.trim() ?? null;
  const changed = (said("git", ["status", "--porcelain", "--", "bpf", "native", "src", "bench"]) ?? "").split("\n").filter((line) => line !== "" && !line.includes("bench/results/")).length > 0;
  return { commit, changed };
}
