/**
 * Short RCU grace periods while links are changed. Putting a TCX link on a device, taking it off and committing an nftables
 * transaction wait in the kernel until every CPU has passed through a quiet state: 12 to 16 ms each at HZ=250, and an attach
 * waits three times. The kernel can ask the CPUs by interrupt instead (Documentation/admin-guide/kernel-parameters.txt,
 * rcupdate.rcu_expedited), which takes some 0.1 ms, and does so by itself whenever a network device is deleted
 * (synchronize_net() under the RTNL lock): what this adds to a host is what deleting one tap costs it.
 *
 * Holds always: it is on for the time of one call that does not return to the event loop; a value that somebody else set is
 * left alone, and so is rcu_normal, which the kernel puts above it. The number that is written says who wrote it: one that a
 * killed process left behind is known and taken back by forgottenExpedite().
 * Does not: fail. Where /sys is read-only the wait is as long as it always was.
 */
import { closeSync, openSync, readSync, writeSync } from "node:fs";

let path = "/sys/kernel/rcu_expedited";
/** "enf" in ASCII. The kernel takes any number other than 0 as "yes". */
export const MARK = 0x656e66;

let allowed = true;
let depth = 0;
/** Stays open once it was opened: an attach writes four times. */
let descriptor: number | null = null;
const text = Buffer.alloc(32);

/** Whether grace periods may be shortened; the agent's configuration says so (expedite_rcu). */
export function allowExpedite(yes: boolean): void { allowed = yes; }

/** Another file in the place of the kernel's: for tests. */
export function useSwitch(file: string): void {
  path = file;
  if (descriptor !== null) closeSync(descriptor);
  descriptor = null;
}

/** Runs what waits for grace periods in the kernel, with short ones. Its result and errors are passed on. */
export function expedited<T>(work: () => T): T {
  if (!allowed) return work();
  const ours = depth > 0 || set(MARK, [0, MARK]);
  if (!ours) return work();
  depth++;
  try {
    return work();
  } finally {
    if (--depth === 0) set(0, [MARK]);
  }
}

/** Takes back what a killed process left switched on. True when there was something. */
export function forgottenExpedite(): boolean { return depth === 0 && set(0, [MARK]); }

/** Writes the value where one of these is in force. False: it is not ours to change, or cannot be. */
function set(value: number, instead: readonly number[]): boolean {
  try {
    descriptor ??= openSync(path, "r+");
    if (!instead.includes(Number.parseInt(text.toString("latin1", 0, readSync(descriptor, text, 0, text.length, 0))))) return false;
    writeSync(descriptor, `${value}\n`, 0);
    return true;
  } catch {
    return false;
  }
}
