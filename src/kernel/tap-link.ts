/**
 * Programs on a device's TC hooks: TCX links at the head of the chain where the kernel has them (≥ 6.6), clsact filters
 * with a fixed handle and priority below that.
 *
 * Holds always: a TCX link is pinned before attach() returns, so that it outlives the process; whoever stands before us
 * in the chain is reported; a device is never left with only one of its hooks attached. A clsact filter has no pin: it is
 * an instance's own when its program uses that instance's maps, so that no crash can leave one that nobody knows.
 */
import { existsSync, readdirSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { attachClsact, BpfLink, BpfProgram, detachClsact, queryClsact, queryTcx, removeClsact, type TcHook } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { makeDirectories } from "../make-directory.js";
import { listLinks } from "../net/links.js";
import { expedited } from "./grace-period.js";

export type Mechanism = "tcx" | "clsact";

/** Programs of one namespace's devices. */
export type HookProgram = "from_guest" | "to_guest" | "from_resolver" | "to_place";

/** The programs of one namespace's devices, and how they are known again. */
export interface Programs {
  program(name: HookProgram): BpfProgram;
  /** The one that judges: a program may go on in another. */
  judging(name: HookProgram): BpfProgram;
  /** The kernel's number of a program. */
  programId(name: HookProgram): number;
  /** Folder for the pins of links; null: they live as long as the process. */
  readonly linkDirectory: string | null;
  /** Whether a program that uses these maps is one of them, of this process or a former one. */
  owns(mapIds: readonly number[]): boolean;
}

export interface Hook { readonly hook: TcHook; readonly program: HookProgram }

export const TAP_HOOKS: readonly Hook[] = [{ hook: "ingress", program: "from_guest" }, { hook: "egress", program: "to_guest" }];
/** On the far end, in the resolver's namespace, once other namespaces have taps. */
export const FAR_HOOKS: readonly Hook[] = [{ hook: "egress", program: "to_place" }];
export const RESOLVER_HOOKS: readonly Hook[] = [{ hook: "ingress", program: "from_resolver" }];

/** Names of the programs that this product attaches, to know its own. */
const OWN = new Set<string>(["from_guest", "to_guest", "from_resolver", "to_place"]);

let mechanism: Mechanism | null = null;

/** Takes the older mechanism on a kernel that has both: for tests. null: what the kernel offers. */
export function useMechanism(wanted: Mechanism | null): void { mechanism = wanted; }

/** What this kernel offers. */
export function tcMechanism(): Mechanism {
  if (mechanism === null) {
    try {
      queryTcx(1, "ingress");
      mechanism = "tcx";
    } catch {
      mechanism = "clsact";
    }
  }
  return mechanism;
}

export interface Attachment {
  readonly mechanism: Mechanism;
  /** Names of programs that run before ours, by hook; they can pass what ours would drop only by ending the chain. */
  readonly before: readonly { readonly hook: TcHook; readonly program: string }[];
}

function pinPath(directory: string, ifindex: number, hook: TcHook): string { return join(directory, `${ifindex}-${hook}`); }

/**
 * Attaches, or replaces the program of a link that a former process pinned for this device, without a gap.
 * @param name of the device, for messages.
 * @throws EnforcerError E_TAP_TAKEN when another instance's program is there, E_ATTACH; nothing is left behind.
 */
export function attachHooks(programs: Programs, ifindex: number, name: string, hooks: readonly Hook[]): Attachment {
  const fresh: Hook[] = [];
  const kind = tcMechanism();
  try {
    expedited(() => {
      for (const hook of hooks) if (attachOne(programs, ifindex, name, hook, kind)) fresh.push(hook);
    });
    return { mechanism: kind, before: hooks.flatMap((hook) => standingBefore(programs, ifindex, name, hook)) };
  } catch (error) {
    expedited(() => { for (const { hook } of fresh) detachOne(programs, ifindex, hook, kind); });
    if (error instanceof EnforcerError) throw error;
    throw new EnforcerError("E_ATTACH", `${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

/** True when it was attached anew, false when a pinned link was taken over. */
function attachOne(programs: Programs, ifindex: number, name: string, { hook, program }: Hook, kind: Mechanism): boolean {
  const own = programs.program(program);
  if (kind === "clsact") {
    const there = queryClsact(ifindex, hook);
    if (there !== null && !isOneOf(programs, there.programId)) throw taken(name, hook, there.programId);
    attachClsact(own, ifindex, hook, { replace: there !== null });
    return there === null;
  }
  const directory = programs.linkDirectory;
  const path = directory === null ? null : pinPath(directory, ifindex, hook);
  if (path !== null && existsSync(path)) {
    const link = BpfLink.fromPin(path);
    try {
      if (link.info.ifindex === ifindex) {
        if (link.info.programId !== own.info.id) link.update(own);
        return false;
      }
    } finally {
      link.close();
    }
    // The device it was made for is gone and the number belongs to another: the link holds nothing any more.
    unlinkSync(path);
  }
  for (const { programId } of queryTcx(ifindex, hook)) if (isOurs(programId)) throw taken(name, hook, programId);
  const link = BpfLink.attachTcx(own, ifindex, hook);
  try {
    if (path !== null && directory !== null) {
      makeDirectories(directory);
      link.pin(path);
      link.close();
    } else {
      unpinned.set(`${ifindex}-${hook}`, link);
    }
  } catch (error) {
    link.detach();
    link.close();
    throw error;
  }
  return true;
}

/** Links of instances without a directory: they live as long as the process. */
const unpinned = new Map<string, BpfLink>();

/** Detaches; a hook on which nothing of ours is left is no error. */
export function detachHooks(programs: Programs, ifindex: number, hooks: readonly Hook[]): void {
  expedited(() => { for (const { hook } of hooks) detachOne(programs, ifindex, hook, tcMechanism()); });
}

function detachOne(programs: Programs, ifindex: number, hook: TcHook, kind: Mechanism): void {
  if (kind === "clsact") {
    try {
      const there = queryClsact(ifindex, hook);
      // The number may be another device's by now.
      if (there !== null && !isOneOf(programs, there.programId)) return;
      if (there !== null) detachClsact(ifindex, hook);
      // The qdisc goes with its last filter; an empty one that somebody else made is not told from ours.
      removeClsact(ifindex);
    } catch (error) {
      if (!isGone(error)) throw error;
    }
    return;
  }
  const directory = programs.linkDirectory;
  if (directory === null) {
    const link = unpinned.get(`${ifindex}-${hook}`);
    link?.detach();
    link?.close();
    unpinned.delete(`${ifindex}-${hook}`);
    return;
  }
  const path = pinPath(directory, ifindex, hook);
  if (!existsSync(path)) return;
  const link = BpfLink.fromPin(path);
  try {
    link.detach();
  } catch (error) {
    if (!isGone(error)) throw error;
  } finally {
    link.close();
    unlinkSync(path);
  }
}

/** Is our program on every hook of the device, by the kernel's own account? */
export function hooksInPlace(programs: Programs, ifindex: number, hooks: readonly Hook[]): boolean {
  try {
    return hooks.every(({ hook, program }) => programsOn(ifindex, hook).includes(programs.programId(program)));
  } catch {
    return false;
  }
}

/** Numbers of the programs on a hook in running order; of a clsact hook only the one in our place. */
function programsOn(ifindex: number, hook: TcHook): number[] {
  if (tcMechanism() === "tcx") return queryTcx(ifindex, hook).map(({ programId }) => programId);
  const there = queryClsact(ifindex, hook);
  return there === null ? [] : [there.programId];
}

/**
 * Whether a former process's programs are on every hook of the device, and nobody else's claim on it: for TCX by the pinned
 * links, for clsact by the filters.
 */
export function hooksHeld(programs: Programs, ifindex: number, hooks: readonly Hook[]): boolean {
  const directory = programs.linkDirectory;
  try {
    return hooks.every(({ hook }) => {
      if (tcMechanism() === "clsact") {
        const there = queryClsact(ifindex, hook);
        return there !== null && isOneOf(programs, there.programId);
      }
      if (directory === null || !existsSync(pinPath(directory, ifindex, hook))) return false;
      const link = BpfLink.fromPin(pinPath(directory, ifindex, hook));
      try {
        return link.info.ifindex === ifindex;
      } finally {
        link.close();
      }
    });
  } catch {
    return false;
  }
}

/** Devices that carry this instance's programs: for TCX by the names of the pins, whether or not the device still exists. */
export function linkedDevices(programs: Programs): number[] {
  if (tcMechanism() === "clsact") {
    return listLinks().map(({ ifindex }) => ifindex).filter((ifindex) => (["ingress", "egress"] as const).some((hook) => {
      const there = queryClsact(ifindex, hook);
      return there !== null && isOneOf(programs, there.programId);
    }));
  }
  const directory = programs.linkDirectory;
  if (directory === null || !existsSync(directory)) return [];
  return [...new Set(readdirSync(directory).map((name) => Number(/^(\d+)-(?:ingress|egress)$/.exec(name)?.[1] ?? 0)).filter((ifindex) => ifindex > 0))];
}

/** Programs on a hook in running order, by name, and which of them is ours (-1: none). Empty where there is no TCX. */
export function chainOf(programs: Programs, ifindex: number, { hook, program }: Hook): { readonly programs: readonly string[]; readonly position: number } {
  const ids = programsOn(ifindex, hook);
  return { programs: ids.map(programName), position: ids.indexOf(programs.programId(program)) };
}

/** Who runs before ours. @throws EnforcerError E_ATTACH when ours is not there by the kernel's own account. */
function standingBefore(programs: Programs, ifindex: number, name: string, { hook, program }: Hook): { hook: TcHook; program: string }[] {
  const ids = programsOn(ifindex, hook);
  const own = ids.indexOf(programs.programId(program));
  if (own < 0) throw new EnforcerError("E_ATTACH", `${name}: the kernel does not show ${program} on its ${hook} hook`);
  return ids.slice(0, own).map((id) => ({ hook, program: programName(id) }));
}

function programName(id: number): string {
  try {
    const program = BpfProgram.fromId(id);
    try {
      return program.info.name;
    } finally {
      program.close();
    }
  } catch {
    return `program ${id}`;
  }
}

/** Whether a program is one of these, of this process or a former one. */
function isOneOf(programs: Programs, programId: number): boolean {
  try {
    const program = BpfProgram.fromId(programId);
    try {
      return programs.owns(program.info.mapIds);
    } finally {
      program.close();
    }
  } catch (error) {
    if (isGone(error)) return false;
    throw error;
  }
}

function isOurs(programId: number): boolean { return OWN.has(programName(programId)); }

function taken(name: string, hook: TcHook, programId: number): EnforcerError {
  return new EnforcerError("E_TAP_TAKEN", `${name}: ${isOurs(programId) ? "another enforcer's" : "somebody's"} program ${programName(programId)} (id ${programId}) is on its ${hook} hook already`);
}

function isGone(error: unknown): boolean {
  const code = (error as { code?: string }).code;
  return code === "ENODEV" || code === "ENOENT" || code === "ENOLINK" || code === "EINVAL";
}
