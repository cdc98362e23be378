/**
 * VRFs: what the enforcer has to know of them. Packets are judged at the tap, whatever VRF it is in; but sockets of the agent's own go by
 * one VRF's routes.
 */
import { readFileSync } from "node:fs";
import { EnforcerError } from "../errors.js";

/** The VRF in which `ip vrf exec` started a process, by its control groups as /proc/PID/cgroup has them; null: none. */
export function vrfOf(cgroups: string): string | null { return /^\d+:[^:]*:.*\/vrf\/([^/\n]+)$/m.exec(cgroups)?.[1] ?? null; }

/**
 * Sockets of a process that `ip vrf exec` started are bound to the VRF's device by its number, in whatever namespace they are made: in the
 * resolver's it is another's or nobody's. @throws EnforcerError E_RESOLVER.
 */
export function refuseOwnVrf(): void {
  let cgroups: string;
  try {
    cgroups = readFileSync("/proc/self/cgroup", "utf8");
  } catch {
    return; // without /proc there is no such thing either
  }
  const vrf = vrfOf(cgroups);
  if (vrf === null) return;
  throw new EnforcerError("E_RESOLVER", `the enforcer was started in VRF ${vrf} (ip vrf exec), and its resolver's sockets would be bound to that`, {
    remedy: `start it without ip vrf exec, and give the default VRF a way out: see "VRFs" in docs/PLATFORMS.md`,
  });
}
