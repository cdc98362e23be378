/**
 * The run directory: one lock and one state file per instance, so that two enforcers never serve one tap and a new one
 * knows what a dead one set on the tap.
 *
 * Holds always: the state file is replaced whole (written beside, renamed); one that cannot be read counts as absent. The lock
 * is the kernel's (flock) and dies with the process.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { closeFd, lockFile } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import type { TapChange } from "../net/tap.js";

export interface TapState {
  readonly ifindex: number;
  /** SHA-256 of the policy as understood. */
  readonly policy: string;
  /** Settings of the tap that were changed, with their former values. */
  readonly changes: readonly TapChange[];
}

export class RunDirectory {
  readonly path: string;

  /** @throws EnforcerError E_STATE. */
  constructor(path: string) {
    this.path = path;
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 });
    } catch (cause) {
      throw new EnforcerError("E_STATE", `the run directory ${path} cannot be made: ${message(cause)}`, { cause });
    }
  }

  /** @returns what releases the lock. @throws EnforcerError E_TAP_TAKEN when another process holds it. */
  lock(tap: string): () => void {
    const path = join(this.path, `${tap}.lock`);
    let fd: number;
    try {
      fd = lockFile(path);
    } catch (cause) {
      const code = (cause as { code?: string }).code;
      if (code === "EWOULDBLOCK" || code === "EAGAIN") throw new EnforcerError("E_TAP_TAKEN", `${tap}: another enforcer serves it (lock ${path})`, { remedy: "end the other one, or choose another --run-dir if it is of another host namespace" });
      throw new EnforcerError("E_STATE", `${path}: ${message(cause)}`, { cause });
    }
    return () => {
      rmSync(path, { force: true });
      closeFd(fd);
    };
  }

  readState(tap: string): TapState | null {
    try {
      const state = JSON.parse(readFileSync(this.#statePath(tap), "utf8")) as Partial<TapState>;
      if (typeof state.ifindex !== "number" || typeof state.policy !== "string" || !Array.isArray(state.changes)) return null;
      return state as TapState;
    } catch {
      return null;
    }
  }

  writeState(tap: string, state: TapState): void {
    const path = this.#statePath(tap);
    writeFileSync(`${path}.new`, JSON.stringify(state), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }

  removeState(tap: string): void { rmSync(this.#statePath(tap), { force: true }); }

  #statePath(tap: string): string { return join(this.path, `${tap}.json`); }
}

function message(cause: unknown): string { return cause instanceof Error ? cause.message : String(cause); }
