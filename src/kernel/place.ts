/**
 * A network namespace other than the agent's own, as the kernel programs know it: a number, and programs for its devices that say it
 * and go on in those that serve all namespaces (bpf/abi.h, struct tap_key).
 *
 * Holds always: a number is one namespace's as long as its folder lies on the BPF file system, which names the namespace and its inode,
 * so that a new agent finds it again without a state file, and takes no other one for it that has got its name since.
 * Does not: know sandboxes, attach (tap-link.ts), or open namespaces.
 */
import { existsSync, readdirSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { BpfLink, BpfProgram } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { makeDirectories } from "../make-directory.js";
import { bpffsName, removePins, type Instance } from "./instance.js";
import { AbiLimit, Within } from "./layout.gen.js";
import type { HookProgram, Programs } from "./tap-link.js";

/** TC code for a device whose namespace has no program to go on in. */
const DROP = 2;

const ENTRIES = { from_guest: Within.WITHIN_FROM_GUEST, to_guest: Within.WITHIN_TO_GUEST, from_resolver: Within.WITHIN_FROM_RESOLVER } as const;

/** Which program each of them goes on in. */
const JUDGING = { from_guest: "from_guest_in", to_guest: "to_guest_in", from_resolver: "from_agent_in" } as const;

/** A place that an agent left on the BPF file system. */
export interface FormerPlace {
  readonly number: number;
  /** Name or path by which the namespace was asked for when it was given its number. */
  readonly netns: string;
  readonly inode: number;
  readonly directory: string;
}

export class Place implements Programs {
  readonly number: number;
  readonly directory: string;
  /** No former agent had it. */
  readonly fresh: boolean;
  readonly #instance: Instance;
  readonly #within: number;
  readonly #programs: ReadonlyMap<HookProgram, BpfProgram>;
  readonly #ids = new Map<HookProgram, number>();

  private constructor({ number, directory, fresh }: Pick<Place, "number" | "directory" | "fresh">, instance: Instance, within: number, programs: ReadonlyMap<HookProgram, BpfProgram>) {
    this.number = number;
    this.directory = directory;
    this.fresh = fresh;
    this.#instance = instance;
    this.#within = within;
    this.#programs = programs;
  }

  /**
   * The place of a namespace, with the number that it had under a former agent.
   * @param netns name or path by which it was asked for; an inode alone may be another namespace's by the time that it is looked at.
   * @throws EnforcerError E_LIMIT, E_LOAD, E_BPFFS.
   */
  static open(instance: Instance, netns: string, inode: number): Place {
    const folder = folderOf(instance);
    instance.serveWithin();
    const all = formerPlaces(instance), former = all.find((one) => one.inode === inode && one.netns === netns);
    const number = former?.number ?? freeNumber(new Set(all.map((one) => one.number)));
    const directory = former?.directory ?? join(folder, bpffsName(`${number}@${encodeURIComponent(netns)}@${inode}`));
    const within = instance.map("within");
    const programs = new Map<HookProgram, BpfProgram>();
    try {
      makeDirectories(directory);
      for (const [name, index] of Object.entries(ENTRIES) as [HookProgram, number][]) {
        const pin = join(directory, name);
        const standing = standingProgram(pin, within.info.id);
        const program = standing ?? BpfProgram.tailCall({ name, mark: number, programsFd: within.fd, index, otherwise: DROP });
        programs.set(name, program);
        if (standing === null) program.pin(pin);
      }
      return new Place({ number, directory, fresh: former === undefined }, instance, within.info.id, programs);
    } catch (cause) {
      for (const program of programs.values()) program.close();
      if (former === undefined) removePins(directory);
      throw new EnforcerError("E_LOAD", `the programs for ${netns} could not be made: ${(cause as Error).message}`, { cause });
    }
  }

  program(name: HookProgram): BpfProgram { return this.#programs.get(name)!; }

  programId(name: HookProgram): number {
    let id = this.#ids.get(name);
    if (id === undefined) this.#ids.set(name, (id = this.program(name).info.id));
    return id;
  }

  judging(name: HookProgram): BpfProgram { return this.#instance.program(JUDGING[name as keyof typeof JUDGING]); }

  get linkDirectory(): string { return join(this.directory, "links"); }

  owns(mapIds: readonly number[]): boolean { return mapIds.includes(this.#within); }

  /** Closes descriptors; what is pinned stays in the kernel. */
  close(): void { for (const program of this.#programs.values()) program.close(); }

  /** Closes it and gives the number back. */
  remove(): void {
    this.close();
    removePins(this.directory);
  }
}

/** One that a former agent left, over the maps that are there now. What else lies there goes. */
function standingProgram(pin: string, within: number): BpfProgram | null {
  if (!existsSync(pin)) return null;
  const program = BpfProgram.fromPin(pin);
  if (program.info.mapIds.includes(within)) return program;
  program.close();
  unlinkSync(pin);
  return null;
}

function folderOf({ directory }: Instance): string {
  if (directory === null) throw new Error("an instance without a folder serves no other namespace");
  return join(directory, "places");
}

/** @throws EnforcerError E_LIMIT. */
function freeNumber(used: ReadonlySet<number>): number {
  for (let number = 1; number < AbiLimit.MAX_PLACES; number++) if (!used.has(number)) return number;
  throw new EnforcerError("E_LIMIT", `${AbiLimit.MAX_PLACES - 1} network namespaces have taps already`, { remedy: "detach the sandboxes of one of them" });
}

/** Places that an agent left, or that this one has. */
export function formerPlaces(instance: Instance): FormerPlace[] {
  const folder = folderOf(instance);
  if (!existsSync(folder)) return [];
  const found: FormerPlace[] = [];
  for (const entry of readdirSync(folder)) {
    try {
      const [number, netns, inode] = entry.replaceAll("%2E", ".").replaceAll("%25", "%").split("@");
      if (number !== undefined && netns !== undefined && /^[1-9]\d*$/.test(number) && inode !== undefined && /^\d+$/.test(inode)) found.push({ number: Number(number), netns: decodeURIComponent(netns), inode: Number(inode), directory: join(folder, entry) });
    } catch {
      // Not one that this program made.
    }
  }
  return found;
}

/** Whether programs of the place are on a device still: its links hold some. */
export function placeCarried({ directory }: Pick<FormerPlace, "directory">): boolean {
  const links = join(directory, "links");
  return (existsSync(links) ? readdirSync(links) : []).some((name) => {
    const link = BpfLink.fromPin(join(links, name));
    try {
      return link.info.ifindex !== 0;
    } finally {
      link.close();
    }
  });
}
