/**
 * The run directory: locks, and one state file per sandbox, so that two enforcers never serve one tap and a new one knows
 * what a dead one did and was asked to do.
 *
 * Holds always: a file is replaced whole (written beside, renamed); one that cannot be read counts as absent, and what the
 * kernel holds stays in force all the same. The same goes for one that another user owns or can write, and a directory of that
 * kind is refused. The lock is the kernel's (flock) and dies with the process. Names become file names percent-encoded.
 */
import { readdirSync, readFileSync, renameSync, rmdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { closeFd, lockFile } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { directoryFault, readOwn } from "../kernel/ownership.js";
import { makeDirectories } from "../make-directory.js";
import type { TapChange } from "../net/tap.js";

/** A policy as a state file names it. */
export interface PolicyState {
  /** uid in the kernel; decimal. "0": none yet. */
  readonly uid: string;
  /** SHA-256 of the policy as understood. */
  readonly digest: string;
  /** What the policy was made from, as the caller gave it; null: the caller keeps it (foreground). */
  readonly source: unknown;
}

export interface SandboxState {
  readonly version: 1;
  readonly name: string;
  /**
   * attaching and detaching: begun and not known to be done. gone: the same of a detach that nobody asked for, because the device
   * was deleted or moved; its name stays held. waiting: there is no tap yet, or none any more.
   */
  readonly phase: "attaching" | "enforced" | "detaching" | "gone" | "waiting";
  /** The tap's name when this was written; it may have been renamed since. */
  readonly device: string;
  readonly ifindex: number;
  readonly slot: number;
  readonly generation: number;
  readonly policy: PolicyState;
  /** A policy that was about to take force: it has when the kernel shows its uid. */
  readonly next: PolicyState | null;
  /** Settings of the tap that were changed, with their former values. */
  readonly changes: readonly TapChange[];
  /** What the caller asked for besides the policy; null: the caller keeps it. */
  readonly spec: unknown;
  /** Frames of self-tests that the kernel counted in this sandbox, under this generation; absent: none that is known. */
  readonly tests?: OwnFrames;
}

/** Frames that no guest sent, in a sandbox's counters. */
export interface OwnFrames { /** Counted as denied by EtherType. */ readonly denied: number; /** Of those, not told, and counted as lost. */ readonly lost: number }

/** One name's pin: labels, address (hexadecimal), end of the lease in CLOCK_MONOTONIC seconds. */
export type PinRecord = readonly [labels: readonly string[], address: string, expires: number];

export interface PinFile { readonly generation: number; readonly pins: readonly PinRecord[] }

const STATE = ".json", PINS = ".pins", LOCK = ".lock";

/** Where, in its run directory, the agent has its lock ("agent") and state files. */
export function agentDirectory(runDirectory: string): string { return join(runDirectory, "agent"); }

/** Names of all state files in a directory, readable or torn; none where it cannot be read. */
export function stateNames(directory: string): string[] {
  const names: string[] = [];
  let files: string[];
  try {
    files = readdirSync(directory);
  } catch {
    return names;
  }
  for (const file of files) {
    if (!file.endsWith(STATE)) continue;
    try {
      names.push(decodeURIComponent(file.slice(0, -STATE.length)));
    } catch {
      // Not one that this program wrote.
    }
  }
  return names;
}

/**
 * Whether a process holds that lock, as /proc/locks (proc(5)) tells it. Does not take it for a moment to find out: who starts then
 * would be refused. False where it cannot be found out, as of a process in an outer PID namespace.
 */
export function lockHeld(directory: string, name: string): boolean {
  try {
    const { dev, ino } = statSync(lockPath(directory, name), { bigint: true });
    // As gnu_dev_major and gnu_dev_minor have it; printed %02x:%02x:%lu.
    const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn), minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
    const place = ` ${major.toString(16).padStart(2, "0")}:${minor.toString(16).padStart(2, "0")}:${ino} `;
    return readFileSync("/proc/locks", "latin1").split("\n").some((line) => line.includes(" FLOCK ") && line.includes(place) && !line.includes("->"));
  } catch {
    return false;
  }
}

/** Names of locks there, whether somebody holds them or not. */
export function lockNames(directory: string): string[] {
  try {
    return readdirSync(directory).filter((name) => name.endsWith(LOCK)).map((name) => decodeURIComponent(name.slice(0, -LOCK.length)));
  } catch {
    return [];
  }
}

function lockPath(directory: string, name: string): string { return join(directory, `${encodeURIComponent(name)}${LOCK}`); }

export class RunDirectory {
  readonly path: string;

  /** @throws EnforcerError E_STATE. */
  constructor(path: string) {
    this.path = path;
    try {
      makeDirectories(path);
    } catch (cause) {
      throw new EnforcerError("E_STATE", `the run directory ${path} cannot be made: ${message(cause)}`, { cause });
    }
    let fault: string | null;
    try {
      fault = directoryFault(path);
    } catch (cause) {
      throw new EnforcerError("E_STATE", `the run directory ${path} cannot be looked at: ${message(cause)}`, { cause });
    }
    if (fault !== null) throw new EnforcerError("E_STATE", `the run directory ${path} is not root's alone: ${fault}`, { remedy: `look at what is in it and who put it there; then chown root ${path} and chmod 700 ${path}, or name another` });
  }

  /** @param name of the lock file, without ending. @returns what releases the lock. @throws EnforcerError E_TAP_TAKEN when another process holds it. */
  lock(name: string, what = `${name}: another enforcer serves it`): () => void {
    const path = lockPath(this.path, name);
    let fd: number;
    try {
      fd = lockFile(path);
    } catch (cause) {
      const code = (cause as { code?: string }).code;
      if (code === "EWOULDBLOCK" || code === "EAGAIN") throw new EnforcerError("E_TAP_TAKEN", `${what} (lock ${path})`, { remedy: "end the other one, or choose another --run-dir if it is of another host namespace" });
      throw new EnforcerError("E_STATE", `${path}: ${message(cause)}`, { cause });
    }
    return () => {
      rmSync(path, { force: true });
      closeFd(fd);
    };
  }

  /** Names of all state files, readable or torn. */
  names(): string[] { return stateNames(this.path); }

  /** Why there is no state file that can be regarded; null: there is one. */
  fault(name: string): string | null {
    const read = readOwn(this.#path(name, STATE));
    if ("fault" in read) return read.fault;
    return this.read(name) === null ? "it is torn or another version's" : null;
  }

  /** null when there is none that can be regarded. */
  read(name: string): SandboxState | null {
    const state = this.#json(name, STATE) as Partial<SandboxState> | null;
    if (state === null || state.version !== 1 || state.name !== name || typeof state.ifindex !== "number" || typeof state.device !== "string" || typeof state.slot !== "number"
      || typeof state.generation !== "number" || !phases.has(state.phase as string) || !Array.isArray(state.changes) || !state.changes.every(isChange) || !isPolicy(state.policy) || (state.next !== null && !isPolicy(state.next)) || (state.tests !== undefined && !isOwnFrames(state.tests))) return null;
    return state as SandboxState;
  }

  write(state: SandboxState): void { this.#replace(state.name, STATE, JSON.stringify(state)); }

  remove(name: string): void {
    for (const ending of [STATE, PINS]) rmSync(this.#path(name, ending), { force: true });
  }

  /** Rows that cannot be read are left out: a pin without its name goes on until it expires. */
  readPins(name: string): PinFile | null {
    const file = this.#json(name, PINS) as Partial<PinFile> | null;
    if (file === null || typeof file.generation !== "number" || !Array.isArray(file.pins)) return null;
    return { generation: file.generation, pins: file.pins.filter(isPin) };
  }

  /** @param records the text of a JSON array of PinRecord. */
  writePins(name: string, generation: number, records: string): void { this.#replace(name, PINS, `{"generation":${generation},"pins":${records}}`); }

  /** Removes the directory if nothing is in it. */
  removeIfEmpty(): void {
    try {
      rmdirSync(this.path);
    } catch {
      // Something is in it, or it is gone.
    }
  }

  #json(name: string, ending: string): unknown {
    const read = readOwn(this.#path(name, ending));
    if ("fault" in read) return null;
    try {
      const value: unknown = JSON.parse(read.text);
      return typeof value === "object" ? value : null;
    } catch {
      return null;
    }
  }

  #replace(name: string, ending: string, content: string): void {
    const path = this.#path(name, ending);
    try {
      rmSync(`${path}.new`, { force: true });
      writeFileSync(`${path}.new`, content, { mode: 0o600, flag: "wx" });
      renameSync(`${path}.new`, path);
    } catch (cause) {
      throw new EnforcerError("E_STATE", `${path} cannot be written: ${message(cause)}`, { cause });
    }
  }

  #path(name: string, ending: string): string { return join(this.path, `${encodeURIComponent(name)}${ending}`); }
}

const phases: ReadonlySet<string> = new Set<SandboxState["phase"]>(["attaching", "enforced", "detaching", "gone", "waiting"]);

/** A setting names a file under a device's own directory, and nothing else. */
function isChange(change: unknown): change is TapChange {
  const { family, setting, before, after } = (change ?? {}) as Partial<TapChange>;
  return (family === "ipv4" || family === "ipv6") && typeof setting === "string" && /^[a-z0-9_]+$/.test(setting) && typeof before === "string" && typeof after === "string";
}

function isPin(row: unknown): row is PinRecord {
  if (!Array.isArray(row)) return false;
  const [labels, address, expires] = row as unknown[];
  return Array.isArray(labels) && labels.every((label) => typeof label === "string") && typeof address === "string" && /^[0-9a-f]{32}$/.test(address) && typeof expires === "number";
}

function isPolicy(policy: unknown): policy is PolicyState {
  const { uid, digest } = (policy ?? {}) as Partial<PolicyState>;
  return typeof uid === "string" && /^\d+$/.test(uid) && typeof digest === "string";
}

function isOwnFrames(tests: unknown): tests is OwnFrames {
  const { denied, lost } = (tests ?? {}) as Partial<OwnFrames>;
  return Number.isSafeInteger(denied) && Number.isSafeInteger(lost) && lost! >= 0 && denied! >= lost!;
}

function message(cause: unknown): string { return cause instanceof Error ? cause.message : String(cause); }
