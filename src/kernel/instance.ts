/**
 * One loaded set of kernel programs and its maps, pinned under a directory of bpffs so that it outlives the process.
 *
 * Holds always: layouts compiled in are those of the object's BTF, or nothing is loaded; maps that a former process pinned
 * with the same ABI version are taken over with their content, those of another version are not touched by open(). Programs are
 * pinned under the digest of the object file: a process of the same version takes them as they stand, and spares the verifier's
 * seconds; one of another version loads its own, which then take the place of the former ones on each link.
 * Does not: know sandboxes (sandbox-tables.ts), attach (tap-link.ts), or decide anything.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmdirSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { BpfMap, BpfObject, BpfProgram, fsType } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { makeDirectories } from "../make-directory.js";
import { AbiLimit, layouts, Within } from "./layout.gen.js";
import { directoryFault } from "./ownership.js";
import type { Programs } from "./tap-link.js";

const BPFFS_MAGIC = 0xcafe4a11;
const OBJECT = fileURLToPath(new URL("../../bpf/build/enforcer.bpf.o", import.meta.url));
/** Maps sized by the number of sandboxes, and by four times that: two policies and two floors. */
const PER_SANDBOX = ["sandboxes", "learned", "event_limits", "flows", "fragments", "redirects", "intercepted", "addresses", "counters", "pin_epochs"] as const;
const PER_POLICY = ["policies", "prefixes4", "prefixes6", "pins"] as const;
/** Power of two, twice the sandboxes at least. */
const TAPS = ["taps", "taps_more", "taps_within"] as const;
const SHARED = ["globals", "groups4", "groups6", "orphans", "events", "places", "within"] as const;
const PINNED = [...PER_SANDBOX, ...PER_POLICY, ...TAPS, ...SHARED] as const;

export type MapName = (typeof PINNED)[number];
/** What serving needs; the rest is for tests and benchmarks, and would be verified at each start for nothing. */
const SERVING = ["from_guest", "to_guest", "from_resolver", "sweep", "taken", "nudge"] as const;
const MEASURING = ["from_guest_long", "empty"] as const;
/** Loaded with the first tap in another network namespace. */
const WITHIN = ["from_guest_in", "to_guest_in", "from_agent_in", "to_place"] as const;
const ENTERED: Partial<Record<(typeof WITHIN)[number], number>> = { from_guest_in: Within.WITHIN_FROM_GUEST, to_guest_in: Within.WITHIN_TO_GUEST, from_agent_in: Within.WITHIN_FROM_RESOLVER };
export type ProgramName = (typeof SERVING)[number] | (typeof MEASURING)[number] | (typeof WITHIN)[number];

export interface InstanceOptions {
  /** Directory on bpffs for this instance; made when it is not there. null: nothing is pinned (tests, benchmarks). */
  readonly directory: string | null;
  /** Slots; 1..MAX_SANDBOXES. Taken from the pinned maps where there are some. */
  readonly sandboxes: number;
  /** Also what only tests and benchmarks run. Default: where nothing is pinned. */
  readonly measuring?: boolean;
}

export class Instance implements Programs {
  readonly directory: string | null;
  /** Whether maps of a former process were taken over. */
  readonly adopted: boolean;
  readonly #object: BpfObject;
  #servesWithin = false;
  readonly #maps = new Map<string, BpfMap>();
  readonly #programs = new Map<string, BpfProgram>();
  readonly #programIds = new Map<string, number>();
  #sandboxes: number | null = null;
  /** Version of the maps that this build makes and takes over. */
  static readonly layoutVersion: number = AbiLimit.ABI_VERSION;

  private constructor(object: BpfObject, directory: string | null, adopted: boolean) {
    this.#object = object;
    this.directory = directory;
    this.adopted = adopted;
  }

  /** @throws EnforcerError E_BPFFS, E_LOAD, E_DATA. */
  static open({ directory, sandboxes, measuring = directory === null }: InstanceOptions): Instance {
    if (!existsSync(OBJECT)) throw new EnforcerError("E_DATA", `the kernel programs are missing: ${OBJECT}`, { remedy: "run make build" });
    const pins = directory === null ? null : mapDirectory(directory);
    const fresh = directory !== null && !existsSync(directory);
    if (pins !== null) makeDirectory(pins);
    const found = pins === null ? [] : PINNED.filter((name) => existsSync(join(pins, name)));
    // A former start that died half-way left some of the maps: nothing can be in force on them. Another version has others.
    if (pins !== null && found.length < PINNED.length && inForce(pins)) throw new EnforcerError("E_UPGRADE", `${pins} holds sandboxes of another version in force: it lacks ${PINNED.filter((name) => !found.includes(name)).join(", ")}`);
    const former = pins !== null && found.length === PINNED.length ? formerSizes(pins) : null;
    const adopted = former !== null;
    if (!adopted && pins !== null) for (const name of found) unlinkSync(join(pins, name));

    const maxEntries: Record<string, number> = {};
    for (const name of PER_SANDBOX) maxEntries[name] = sandboxes + SPARE_SLOTS;
    for (const name of PER_POLICY) maxEntries[name] = 4 * (sandboxes + SPARE_SLOTS);
    for (const name of TAPS) maxEntries[name] = 2 ** Math.ceil(Math.log2(2 * (sandboxes + SPARE_SLOTS)));
    const programs = directory === null ? null : programDirectory(directory);
    const standing = adopted && pins !== null && programs !== null ? standingPrograms(programs, pins, SERVING) : null;
    const disabledPrograms = [...NOT_LOADED, ...WITHIN, ...(measuring ? [] : MEASURING), ...(standing === null ? [] : SERVING)];
    let object: BpfObject;
    try {
      object = BpfObject.load(OBJECT, adopted && pins !== null
        ? { maxEntries: former, pinnedMaps: Object.fromEntries(PINNED.map((name) => [name, join(pins, name)])), disabledPrograms }
        : { maxEntries, disabledPrograms });
    } catch (cause) {
      for (const program of standing?.values() ?? []) program.close();
      if (fresh) removePins(directory);
      // A map of another layout under the same version: the object was refused before anything was changed.
      if (adopted && (cause as { syscall?: string }).syscall === "bpf_map__reuse_fd") throw new EnforcerError("E_UPGRADE", `${pins} holds sandboxes of another version in force: ${describe(cause)}`, { cause });
      throw new EnforcerError("E_LOAD", `the kernel refused the programs: ${describe(cause)}`, { cause });
    }
    const instance = new Instance(object, directory, adopted);
    try {
      for (const [name, program] of standing ?? []) instance.#programs.set(name, program);
      checkLayouts(object);
      if (pins !== null && !adopted) for (const name of PINNED) instance.map(name).pin(join(pins, name));
      if (directory !== null && programs !== null && standing === null) instance.#pinPrograms(directory, programs);
    } catch (error) {
      if (pins !== null && !adopted) for (const name of PINNED) if (existsSync(join(pins, name))) unlinkSync(join(pins, name));
      instance.close();
      if (fresh) removePins(directory);
      throw error;
    }
    return instance;
  }

  map(name: MapName): BpfMap {
    let map = this.#maps.get(name);
    if (map === undefined) this.#maps.set(name, (map = this.#object.map(name)));
    return map;
  }

  program(name: ProgramName): BpfProgram {
    let program = this.#programs.get(name);
    if (program === undefined) this.#programs.set(name, (program = this.#object.program(name)));
    return program;
  }

  /**
   * Makes the programs of other namespaces' devices go on in those of this version; the first time they are loaded, which takes a second.
   * @throws EnforcerError E_LOAD.
   */
  serveWithin(): void {
    const { directory } = this;
    if (this.#servesWithin || directory === null) return;
    const programs = programDirectory(directory), pins = mapDirectory(directory);
    for (const [name, program] of standingPrograms(programs, pins, WITHIN) ?? loadWithin(programs, pins)) this.#programs.set(name, program);
    for (const [name, index] of Object.entries(ENTERED)) {
      const key = Buffer.alloc(4), fd = Buffer.alloc(4);
      key.writeUInt32LE(index);
      fd.writeInt32LE(this.program(name as ProgramName).fd);
      this.map("within").update(key, fd);
    }
    this.#servesWithin = true;
  }

  /** Those of another version go: the links hold what they still need. */
  #pinPrograms(directory: string, programs: string): void {
    for (const name of readdirSync(directory)) if (name.startsWith(PROGRAMS)) removePins(join(directory, name));
    makeDirectories(programs);
    for (const name of SERVING) this.program(name).pin(join(programs, name));
  }

  /** The kernel's number of a program, which stays as long as this object. */
  programId(name: ProgramName): number {
    let id = this.#programIds.get(name);
    if (id === undefined) this.#programIds.set(name, (id = this.program(name).info.id));
    return id;
  }

  innerTemplate(outer: MapName): ReturnType<BpfObject["innerTemplate"]> { return this.#object.innerTemplate(outer); }

  /** Slots for sandboxes; one more is there for the self-test. */
  get sandboxes(): number { return (this.#sandboxes ??= this.map("sandboxes").info.maxEntries - SPARE_SLOTS); }

  /** Slot that belongs to no sandbox. */
  get spareSlot(): number { return this.sandboxes; }

  judging(name: ProgramName): BpfProgram { return this.program(name); }

  /** Whether these maps are those of one of its programs. */
  owns(mapIds: readonly number[]): boolean { return mapIds.includes(this.map("sandboxes").info.id); }

  /** Directory for the pins of links. */
  get linkDirectory(): string | null { return this.directory === null ? null : join(this.directory, "links"); }

  /** Closes descriptors; what is pinned stays in the kernel. */
  close(): void {
    for (const map of this.#maps.values()) map.close();
    this.#maps.clear();
    for (const program of this.#programs.values()) program.close();
    this.#programs.clear();
    this.#object.close();
  }

  /** Closes and removes every pin: the kernel frees it all once no link holds it. */
  destroy(): void {
    this.close();
    if (this.directory !== null) removePins(this.directory);
  }
}

/** Folder of an instance on the BPF file system, where a name may hold no dot. */
export function instanceDirectory(bpffs: string, instance: string): string { return join(bpffs, "enforcer", bpffsName(instance)); }

/** A name as it can stand on the BPF file system. */
export function bpffsName(name: string): string { return name.replaceAll("%", "%25").replaceAll(".", "%2E"); }

const SPARE_SLOTS = 1;
/** Names types for the BTF; see bpf/enforcer.bpf.c. */
const NOT_LOADED = ["abi_types"];

const PROGRAMS = "programs-";

/** Where programs of exactly this object file are pinned. A kernel that is booted anew has an empty BPF file system. */
function programDirectory(directory: string): string { return join(directory, `${PROGRAMS}${createHash("sha256").update(readFileSync(OBJECT)).digest("hex").slice(0, 32)}`); }

/** Programs that a process of this version left, over the maps that are taken over; null: not all of them. */
function standingPrograms(programs: string, pins: string, names: readonly ProgramName[]): Map<ProgramName, BpfProgram> | null {
  const found = new Map<ProgramName, BpfProgram>();
  const sandboxes = BpfMap.fromPin(join(pins, "sandboxes"));
  try {
    for (const name of names) {
      const path = join(programs, name);
      if (!existsSync(path)) break;
      const program = BpfProgram.fromPin(path);
      found.set(name, program);
      // Maps that were made anew have programs of their own. Those that are never attached know only some of them, or none.
      if (program.info.name !== name || (name !== "sweep" && name !== "nudge" && !program.info.mapIds.includes(sandboxes.info.id))) break;
      if (found.size === names.length) return found;
    }
  } catch {
    // Then they are loaded.
  } finally {
    sandboxes.close();
  }
  for (const program of found.values()) program.close();
  return null;
}

/** Loads the programs of other namespaces' devices over the pinned maps, and pins them. @throws EnforcerError E_LOAD. */
function loadWithin(programs: string, pins: string): Map<ProgramName, BpfProgram> {
  let object: BpfObject;
  try {
    object = BpfObject.load(OBJECT, {
      maxEntries: formerSizes(pins), pinnedMaps: Object.fromEntries(PINNED.map((name) => [name, join(pins, name)])), disabledPrograms: [...NOT_LOADED, ...MEASURING, ...SERVING],
    });
  } catch (cause) {
    throw new EnforcerError("E_LOAD", `the kernel refused the programs: ${describe(cause)}`, { cause });
  }
  const found = new Map<ProgramName, BpfProgram>();
  try {
    for (const name of WITHIN) {
      const program = object.program(name), pin = join(programs, name);
      found.set(name, program);
      if (existsSync(pin)) unlinkSync(pin);
      program.pin(pin);
    }
    return found;
  } catch (error) {
    for (const program of found.values()) program.close();
    throw error;
  } finally {
    object.close();
  }
}

/** Removes an instance's directory with every pin in it. A pinned link that goes away detaches its program. */
export function removePins(directory: string): void {
  if (!existsSync(directory)) return;
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) removePins(path);
    else unlinkSync(path);
  }
  rmdirSync(directory);
}

/** Whether a record of a sandbox, of whatever version, stands in the maps pinned here. */
export function inForce(pins: string): boolean {
  const path = join(pins, "sandboxes");
  if (!existsSync(path)) return false;
  const map = pinnedMap(path);
  try {
    return map.entries().values.some((octet) => octet !== 0);
  } finally {
    map.close();
  }
}

/** @throws EnforcerError E_BPFFS when what lies there is no map. */
function pinnedMap(path: string): BpfMap {
  try {
    return BpfMap.fromPin(path);
  } catch (cause) {
    throw new EnforcerError("E_BPFFS", `${path} is no map of the enforcer's: ${describe(cause)}`, { remedy: `look at what put it there; the kernel goes on enforcing. When no sandbox of this host is in force, remove ${join(path, "../..")}`, cause });
  }
}

/** Entries of the pinned maps by name: what a former process chose stays. */
function formerSizes(pins: string): Record<string, number> {
  return Object.fromEntries(PINNED.map((name) => {
    const map = pinnedMap(join(pins, name));
    try {
      return [name, map.info.maxEntries];
    } finally {
      map.close();
    }
  }));
}

function mapDirectory(directory: string): string { return join(directory, `maps-v${AbiLimit.ABI_VERSION}`); }

function makeDirectory(path: string): void {
  if (!onBpffs(path)) throw new EnforcerError("E_BPFFS", `${nearestExisting(path)} is not on a BPF file system`);
  try {
    makeDirectories(path);
  } catch (cause) {
    const readOnly = (cause as NodeJS.ErrnoException).code === "EROFS";
    throw new EnforcerError("E_BPFFS", `${path} cannot be made: ${describe(cause)}`, { cause, ...(readOnly ? { remedy: `mount it so that it can be written to: mount -o remount,rw ${nearestExisting(path)}` } : {}) });
  }
}

/** Whether a path, or what is there of it, is on a BPF file system. @throws EnforcerError E_BPFFS. */
export function onBpffs(path: string): boolean {
  const there = nearestExisting(path);
  try {
    return fsType(there) >>> 0 === BPFFS_MAGIC;
  } catch (cause) {
    throw new EnforcerError("E_BPFFS", `${there} cannot be read: ${describe(cause)}`, { cause });
  }
}

/** A BPF file system that is mounted without a mode lets everybody make directories in it. @throws EnforcerError E_BPFFS */
export function refuseForeign(folder: string): void {
  let fault: string | null;
  try {
    fault = directoryFault(folder);
  } catch (cause) {
    throw new EnforcerError("E_BPFFS", `${folder} cannot be looked at: ${describe(cause)}`, { cause });
  }
  if (fault !== null) throw new EnforcerError("E_BPFFS", `${folder} is not root's alone: ${fault}`, { remedy: `look at what is in it and who put it there; then chown root ${folder} and chmod 700 ${folder}, or name another with --bpffs` });
}

function nearestExisting(path: string): string {
  while (!existsSync(path)) path = join(path, "..");
  return path;
}

function checkLayouts(object: BpfObject): void {
  for (const [name, expected] of Object.entries(layouts)) {
    const actual = object.layout(name);
    let fault = actual.size === expected.size ? null : `${name} has ${actual.size} octets, ${expected.size} expected`;
    for (const [field, { offset, size }] of Object.entries(expected.fields)) {
      const there = actual.fields[field];
      if (there === undefined || there.offset !== offset || there.size !== size) fault ??= `${name}.${field} lies elsewhere`;
    }
    if (fault !== null) throw new EnforcerError("E_DATA", `kernel programs and agent do not fit together: ${fault}`, { remedy: "run make build: both must come from the same source" });
  }
}

function describe(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  const verifier = (cause as { verifier?: string }).verifier;
  return verifier === undefined ? cause.message : `${cause.message}; verifier: ${verifier}`;
}
