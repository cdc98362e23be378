/**
 * What the service manager is told (sd_notify(3)): that the agent is ready, reloads, ends.
 *
 * Holds always: without NOTIFY_SOCKET it does nothing; a manager that does not listen is no reason to fail.
 */
import { clockMonotonicCoarse, notifySocket } from "../../native/index.js";

function tell(text: string): void {
  const path = process.env.NOTIFY_SOCKET;
  if (path === undefined || path === "") return;
  try {
    notifySocket(path, text);
  } catch (error) {
    process.stderr.write(`enforcer: the service manager at ${path} could not be told: ${error instanceof Error ? error.message : String(error)}\n`);
  }
}

/** @param status one line that the manager shows. */
export function notifyReady(status: string): void { tell(`READY=1\nSTATUS=${status}`); }

export function notifyStatus(status: string): void { tell(`STATUS=${status}`); }

/** With Type=notify-reload the manager wants the moment of the reload; READY=1 ends it. */
export function notifyReloading(): void { tell(`RELOADING=1\nMONOTONIC_USEC=${clockMonotonicCoarse() / 1000n}`); }

export function notifyStopping(): void { tell("STOPPING=1"); }
