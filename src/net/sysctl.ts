/**
 * Per-device network settings under /proc/sys/net, in the network namespace of the calling thread.
 *
 * Holds always: a device name is one path component, taken literally (dots and all) and checked before use; what a write
 * changed is returned as data, so that it can be kept over a restart and taken back. Does not: choose values.
 */
import { closeSync, existsSync, openSync, readSync, writeSync } from "node:fs";

import { EnforcerError } from "../errors.js";
import { interfaceNameFault } from "./links.js";
import { errnoOf } from "./request.js";

export type SysctlFamily = "ipv4" | "ipv6";

/** One setting of one device. `before` and `after` are the file's text without the newline. */
export interface SysctlChange {
  readonly family: SysctlFamily;
  readonly setting: string;
  readonly before: string;
  readonly after: string;
}

function deviceFile(family: SysctlFamily, device: string, setting: string): string {
  if (device !== "all" && device !== "default") {
    const fault = interfaceNameFault(device);
    if (fault !== null) throw new EnforcerError("E_USAGE", `interface name ${JSON.stringify(device)} ${fault}`);
  }
  return `/proc/sys/net/${family}/conf/${device}/${setting}`;
}

export function kernelHasIpv6(): boolean { return existsSync("/proc/sys/net/ipv6/conf"); }

/** Null when this kernel, or this device by now, has no such setting. @param device or "all", "default". */
export function readSysctl(family: SysctlFamily, device: string, setting: string): string | null {
  return readText(deviceFile(family, device, setting));
}

/** A setting that is not per device, such as "core/bpf_jit_enable" or "ipv4/ip_forward"; null when there is none. */
export function readGlobalSysctl(path: string): string | null { return readText(`/proc/sys/net/${path}`); }

/** A setting's text is a number or a few. */
const SETTING_OCTETS = 256;
const scratch = Buffer.alloc(SETTING_OCTETS);

/** By single system calls at the file's start: an attach reads a dozen settings, and readFileSync takes five calls for each. */
function textOf(fd: number): string { return scratch.toString("latin1", 0, readSync(fd, scratch, 0, SETTING_OCTETS, 0)).trim(); }

function withFile<T>(file: string, flags: "r" | "r+", work: (fd: number) => T): T {
  const fd = openSync(file, flags);
  try {
    return work(fd);
  } finally {
    closeSync(fd);
  }
}

function readText(file: string): string | null {
  try {
    return withFile(file, "r", textOf);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    throw new EnforcerError("E_NETLINK", `cannot read ${file}: ${errnoOf(error) ?? String(error)}`, { cause: error });
  }
}

/** What setting it would change now; null when the value is there already or the kernel has no such setting. */
export function plannedSysctl(family: SysctlFamily, device: string, setting: string, value: string): SysctlChange | null {
  const before = readSysctl(family, device, setting);
  return before === null || before === value ? null : { family, setting, before, after: value };
}

/**
 * Sets it as planned and reads it back.
 * @throws EnforcerError E_NETLINK, also where /proc/sys is read-only.
 */
export function applySysctl(device: string, { family, setting, after }: SysctlChange): void { writeText(deviceFile(family, device, setting), after); }

/**
 * Sets it and reads it back.
 * @returns the change, or null when the value was there already or the kernel has no such setting.
 * @throws EnforcerError E_NETLINK, as applySysctl.
 */
export function writeSysctl(family: SysctlFamily, device: string, setting: string, value: string): SysctlChange | null {
  const change = plannedSysctl(family, device, setting, value);
  if (change !== null) applySysctl(device, change);
  return change;
}

function writeText(file: string, value: string): void {
  let now: string;
  try {
    now = withFile(file, "r+", (fd) => {
      writeSync(fd, value, 0);
      return textOf(fd);
    });
  } catch (error) {
    throw new EnforcerError("E_NETLINK", `cannot set ${file} to ${value}: ${errnoOf(error) ?? String(error)}`,
      { cause: error, remedy: "make /proc/sys writable for the enforcer (a container needs it mounted read-write)" });
  }
  if (now !== value) throw new EnforcerError("E_NETLINK", `${file} was set to ${value} and reads ${now === "" ? "nothing" : now}`);
}

/** Takes changes back, last first. A setting that somebody changed since, or that is gone, is left as it is. */
export function revertSysctls(device: string, changes: readonly SysctlChange[]): void {
  for (const { family, setting, before, after } of [...changes].reverse()) {
    const file = deviceFile(family, device, setting);
    if (readText(file) === after) writeText(file, before);
  }
}
