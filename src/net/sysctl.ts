/**
 * Per-device network settings under /proc/sys/net, in the network namespace of the calling thread.
 *
 * Holds always: a device name is one path component, taken literally (dots and all) and checked before use; what a write
 * changed is returned as data, so that it can be kept over a restart and taken back. Does not: choose values.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";

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

function readText(file: string): string | null {
  try {
    return readFileSync(file, "latin1").trim();
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    throw new EnforcerError("E_NETLINK", `cannot read ${file}: ${errnoOf(error) ?? String(error)}`, { cause: error });
  }
}

/**
 * Sets it and reads it back.
 * @returns the change, or null when the value was there already or the kernel has no such setting.
 * @throws EnforcerError E_NETLINK, also where /proc/sys is read-only.
 */
export function writeSysctl(family: SysctlFamily, device: string, setting: string, value: string): SysctlChange | null {
  const file = deviceFile(family, device, setting);
  const before = readText(file);
  if (before === null || before === value) return null;
  writeText(file, value);
  return { family, setting, before, after: value };
}

function writeText(file: string, value: string): void {
  try {
    writeFileSync(file, value);
  } catch (error) {
    throw new EnforcerError("E_NETLINK", `cannot set ${file} to ${value}: ${errnoOf(error) ?? String(error)}`,
      { cause: error, remedy: "make /proc/sys writable for the enforcer (a container needs it mounted read-write)" });
  }
  const now = readText(file);
  if (now !== value) throw new EnforcerError("E_NETLINK", `${file} was set to ${value} and reads ${now ?? "nothing"}`);
}

/** Takes changes back, last first. A setting that somebody changed since, or that is gone, is left as it is. */
export function revertSysctls(device: string, changes: readonly SysctlChange[]): void {
  for (const { family, setting, before, after } of [...changes].reverse()) {
    const file = deviceFile(family, device, setting);
    if (readText(file) === after) writeText(file, before);
  }
}
