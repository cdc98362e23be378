/**
 * Whether this machine can enforce: facts, each with a remedy. What `enforcer doctor` prints.
 *
 * Holds always: looks and changes nothing; a fact that cannot be found out is not "yes". Does not: print, or exit.
 */
import { spawnSync } from "node:child_process";
import { accessSync, constants, readFileSync, statSync } from "node:fs";
import { release } from "node:os";

import { BpfProgram, effectiveCapabilities, fsType, queryTcx, type TcHook } from "../../native/index.js";
import { formatAddress } from "../addresses/address.js";
import { EnforcerError, errorKinds } from "../errors.js";
import { findLink, isTap, listFilters } from "./links.js";
import { errnoOf } from "./request.js";
import { parseResolvConf } from "./resolv-conf.js";
import { readGlobalSysctl } from "./sysctl.js";

export interface Finding {
  readonly check: string;
  /** "warn": works, with less than it could; "no": enforcing will not work. */
  readonly ok: "yes" | "warn" | "no";
  readonly detail: string;
  /** What to do; null when there is nothing to do. */
  readonly remedy: string | null;
}

export interface DoctorOptions {
  /** The bpffs folder, or one inside it. */
  readonly bpffs: string;
  /** Taps to look at for programs of others. */
  readonly taps?: readonly string[];
  /** Default /etc/resolv.conf. */
  readonly resolvConf?: string;
}

const BPF_FS_MAGIC = 0xcafe4a11;
const LEAST_KERNEL = [6, 1] as const;
/** linux/capability.h */
const CAPABILITIES = { CAP_NET_ADMIN: 12n, CAP_SYS_ADMIN: 21n, CAP_PERFMON: 38n, CAP_BPF: 39n } as const;
/** Names of our own programs at a tap. */
const OWN_PROGRAMS = new Set(["from_guest", "to_guest"]);

/** The facts in the order in which one would mend them. Does not throw for anything that it finds. */
export function runDoctor(options: DoctorOptions): Finding[] {
  return [
    kernel(release()), capabilities(), btf(), bpffs(options.bpffs), jit(), settings(), unprivilegedBpf(), hook(), nftables(), tun(),
    resolvers(options.resolvConf ?? "/etc/resolv.conf"), forwarding("IPv4", "ipv4/ip_forward"), forwarding("IPv6", "ipv6/conf/all/forwarding"),
    ...(options.taps ?? []).flatMap(tapFindings),
  ];
}

const yes = (check: string, detail: string): Finding => ({ check, ok: "yes", detail, remedy: null });
const warn = (check: string, detail: string, remedy: string): Finding => ({ check, ok: "warn", detail, remedy });
const no = (check: string, detail: string, remedy: string): Finding => ({ check, ok: "no", detail, remedy });

/** @param version as uname -r has it. */
export function kernel(version: string): Finding {
  const match = /^(\d+)\.(\d+)/.exec(version);
  if (match === null) return no("kernel", `release ${version} cannot be read`, errorKinds.E_KERNEL.remedy);
  const major = Number(match[1]), minor = Number(match[2]);
  const enough = major > LEAST_KERNEL[0] || (major === LEAST_KERNEL[0] && minor >= LEAST_KERNEL[1]);
  return enough ? yes("kernel", version) : no("kernel", `${version} is older than ${LEAST_KERNEL.join(".")}`, errorKinds.E_KERNEL.remedy);
}

function capabilities(): Finding {
  const held = effectiveCapabilities();
  const missing = Object.entries(CAPABILITIES).filter(([, bit]) => ((held >> bit) & 1n) === 0n).map(([name]) => name);
  return missing.length === 0 ? yes("capabilities", Object.keys(CAPABILITIES).join(", ")) : no("capabilities", `${missing.join(", ")} missing`, errorKinds.E_NOT_ROOT.remedy);
}

function btf(): Finding {
  const path = "/sys/kernel/btf/vmlinux";
  try {
    return yes("BTF", `${path}, ${Math.round(statSync(path).size / 1024)} KiB`);
  } catch {
    return no("BTF", `${path} is missing`, errorKinds.E_KERNEL.remedy);
  }
}

function bpffs(path: string): Finding {
  let type: number | null = null;
  try {
    type = fsType(path);
  } catch (error) {
    if (errnoOf(error) !== "ENOENT") return no("bpffs", `${path}: ${errnoOf(error) ?? String(error)}`, errorKinds.E_BPFFS.remedy);
  }
  if (type === BPF_FS_MAGIC) return readOnly(path) ? no("bpffs", `${path} is mounted read-only`, `mount -o remount,rw ${path}`) : yes("bpffs", path);
  return type === null
    ? no("bpffs", `${path} does not exist`, `make it and mount it: mkdir -p ${path} && mount -t bpf bpf ${path}`)
    : no("bpffs", `${path} is not on a bpf file system`, `mount it: mount -t bpf bpf ${path}, or name another with --bpffs`);
}

function jit(): Finding {
  const value = readGlobalSysctl("core/bpf_jit_enable");
  if (value === "1") return yes("JIT", "on");
  if (value === null) return warn("JIT", "net.core.bpf_jit_enable cannot be found out in this network namespace", "look in the host's own: sysctl net.core.bpf_jit_enable");
  return warn("JIT", value === "0" ? "off: programs are interpreted, several times slower" : `net.core.bpf_jit_enable is ${value}`, "sysctl -w net.core.bpf_jit_enable=1");
}

function settings(): Finding {
  const path = "/proc/sys/net";
  // A setting, not the directory: that nobody may write to.
  if (!readOnly(`${path}/ipv4/conf/default/rp_filter`)) return yes("settings", `${path} can be written to`);
  return no("settings", `${path} is mounted read-only: the settings of taps and of the resolver's device cannot be made`, "mount -o remount,rw /proc/sys; a container needs it mounted so");
}

function readOnly(path: string): boolean {
  try {
    accessSync(path, constants.W_OK);
    return false;
  } catch (error) {
    return errnoOf(error) === "EROFS";
  }
}

function unprivilegedBpf(): Finding {
  let value: string;
  try {
    value = readFileSync("/proc/sys/kernel/unprivileged_bpf_disabled", "latin1").trim();
  } catch {
    return warn("unprivileged BPF", "cannot be found out", "mount /proc");
  }
  return value === "0" ? warn("unprivileged BPF", "any user may load programs", "sysctl -w kernel.unprivileged_bpf_disabled=1") : yes("unprivileged BPF", "off");
}

function hook(): Finding {
  try {
    const loopback = findLink("lo");
    if (loopback === null) return no("TC hook", "there is no device lo to ask", "run it in an ordinary network namespace");
    queryTcx(loopback.ifindex, "ingress");
    return yes("TC hook", "TCX");
  } catch (error) {
    // Before Linux 6.6 the query is unknown and clsact is used.
    if (errnoOf(error) === "EINVAL") return yes("TC hook", "clsact: this kernel has no TCX (Linux 6.6)");
    return no("TC hook", `TCX cannot be asked: ${message(error)}`, errorKinds.E_NOT_ROOT.remedy);
  }
}

function nftables(): Finding {
  const { status, stderr, error } = spawnSync("nft", ["list", "tables"], { encoding: "utf8" });
  if (status === 0) return yes("nftables", "holds taps that are deleted and made again");
  const missing = (error as NodeJS.ErrnoException | undefined)?.code === "ENOENT";
  const why = missing ? "nft is not installed" : `nft list tables: ${stderr?.trim().split("\n")[0] || error?.message || `it ended with ${status}`}`;
  const remedy = missing ? "apt-get install nftables" : process.geteuid?.() === 0 ? "see to it that nft can be run, and that the kernel has nf_tables (modprobe nf_tables)" : errorKinds.E_NOT_ROOT.remedy;
  return warn("nftables", `${why}: a tap that is deleted and made again carries packets until it is attached again`, remedy);
}

function tun(): Finding {
  try {
    accessSync("/dev/net/tun", constants.R_OK | constants.W_OK);
    return yes("TUN", "/dev/net/tun");
  } catch (error) {
    return warn("TUN", `/dev/net/tun: ${errnoOf(error) ?? String(error)}`, "modprobe tun; in a container pass /dev/net/tun in");
  }
}

function resolvers(path: string): Finding {
  const remedy = errorKinds.E_NO_UPSTREAM.remedy;
  let text: string;
  try {
    text = readFileSync(path, "latin1");
  } catch (error) {
    return warn("resolvers", `${path}: ${errnoOf(error) ?? String(error)}`, remedy);
  }
  const { nameservers, ignored } = parseResolvConf(text);
  const list = nameservers.map(formatAddress).join(", ");
  if (nameservers.length === 0) return warn("resolvers", [`${path} names none`, ...ignored].join("; "), remedy);
  return ignored.length === 0 ? yes("resolvers", `${list} (${path})`) : warn("resolvers", [`${list} (${path})`, ...ignored].join("; "), `mend ${path}`);
}

function forwarding(family: string, setting: string): Finding {
  const check = `${family} forwarding`;
  const value = readGlobalSysctl(setting);
  if (value === "1") return yes(check, "on");
  return warn(check, value === "0" ? "off: guests on routed taps reach this host's own addresses only" : "not in this kernel", `if taps are routed: sysctl -w net.${setting.replaceAll("/", ".")}=1`);
}

function tapFindings(name: string): Finding[] {
  const check = `tap ${name}`;
  try {
    const link = findLink(name);
    if (link === null) return [no(check, "does not exist", errorKinds.E_TAP_MISSING.remedy)];
    if (!isTap(link)) return [no(check, "is not a tap", errorKinds.E_TAP_KIND.remedy)];
    const programs = (["ingress", "egress"] as const).flatMap((direction) => [...tcxPrograms(link.ifindex, direction), ...clsactPrograms(link.ifindex, direction)]);
    const findings: Finding[] = [];
    if (link.xdp !== null) findings.push(warn(check, `an XDP program${link.xdp.programId === null ? "" : ` (id ${link.xdp.programId})`} sees the guest's frames before the enforcer`, `if it is not yours: ip link set dev ${name} xdp off`));
    const foreign = programs.filter((program) => !OWN_PROGRAMS.has(program.name));
    if (foreign.length > 0) findings.push(warn(check, `programs of others at TC: ${foreign.map((program) => `${program.name} (${program.place})`).join(", ")}`, "detach them, or make sure that they leave every packet to the next program"));
    if (findings.length === 0) findings.push(yes(check, programs.length === 0 ? "no programs" : "enforced: only the enforcer's programs"));
    return findings;
  } catch (error) {
    return [no(check, message(error), error instanceof EnforcerError ? error.remedy : errorKinds.E_NETLINK.remedy)];
  }
}

interface ProgramAtTap { readonly name: string; readonly place: string }

function tcxPrograms(ifindex: number, direction: TcHook): ProgramAtTap[] {
  let ids: number[];
  try {
    ids = queryTcx(ifindex, direction).map(({ programId }) => programId);
  } catch (error) {
    if (errnoOf(error) === "EINVAL") return [];
    throw error;
  }
  return ids.map((id) => ({ name: programName(id), place: `TCX ${direction}, id ${id}` }));
}

function clsactPrograms(ifindex: number, direction: TcHook): ProgramAtTap[] {
  return listFilters(ifindex, direction).map(({ kind, programId, name }) => ({
    name: programId === null ? kind : programName(programId), place: `clsact ${direction}${programId === null ? "" : `, id ${programId}${name === null ? "" : ` ${name}`}`}`,
  }));
}

function programName(id: number): string {
  try {
    const program = BpfProgram.fromId(id);
    try {
      return program.info.name || "a program without name";
    } finally {
      program.close();
    }
  } catch {
    // Gone since it was listed, or not readable: still somebody's.
    return "a program without name";
  }
}

function message(error: unknown): string { return error instanceof Error ? error.message : String(error); }
