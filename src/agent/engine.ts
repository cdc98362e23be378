/**
 * The engines of an agent: one for its own network namespace, and one for each other that has a sandbox's tap. They share programs,
 * tables and threads (common.ts).
 *
 * Holds always: a namespace has one engine at most, known by its inode, whatever name it was asked by; its place on the BPF file
 * system (kernel/place.ts) names it and its inode, so that a new agent finds it again without a state file, and never takes another
 * one for it that has got its name since.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { closeFd, fsType, netnsInode, openNetns } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { inForce, removePins } from "../kernel/instance.js";
import { placeCarried, type FormerPlace } from "../kernel/place.js";
import { SandboxTables } from "../kernel/sandbox-tables.js";
import { inNetns } from "../net/request.js";
import type { Common } from "./common.js";
import { Enforcer, type EnforcerOptions } from "./enforcer.js";

/** Longer than any tap's name: no `enforcer attach` in the foreground can have an instance of this name. */
const INSTANCE = "agent-of-the-host";

export interface Engine {
  /** null: the agent's own namespace. */
  readonly netns: string | null;
  readonly inode: number;
  /** Where it was found last. */
  at: string | null;
  readonly enforcer: Enforcer;
  /** Ends an engine that holds nothing any more, or releases one that does. */
  readonly close: () => void;
}

export type EngineOptions = Omit<EnforcerOptions, "instance" | "resolverDevice" | "netnsFd" | "beside">;

/** Path of a namespace given by name or path. @throws EnforcerError E_NETNS. */
export function netnsPath(netns: string): string {
  if (netns.startsWith("/")) return netns;
  if (netns.includes("/")) throw new EnforcerError("E_NETNS", `${netns} is neither a name nor an absolute path`);
  return `/run/netns/${netns}`;
}

/** File system of namespaces (linux/magic.h). */
const NSFS_MAGIC = 0x6e736673;

/** @throws EnforcerError E_NETNS; the caller closes it. */
export function openNamespace(netns: string): number {
  const path = netnsPath(netns);
  try {
    // Not opened before it is known to be one: a pipe would be waited for.
    if (fsType(path) >>> 0 !== NSFS_MAGIC) throw new Error("it is no namespace");
    return openNetns(path);
  } catch (cause) {
    throw new EnforcerError("E_NETNS", `the network namespace ${path} cannot be opened: ${(cause as Error).message}`, { cause });
  }
}

export function inodeOf(netns: string | null): number {
  const fd = netns === null ? openNetns() : openNamespace(netns);
  try {
    return netnsInode(fd);
  } finally {
    closeFd(fd);
  }
}

/** null: there is none of that name now. */
export function inodeNamed(netns: string | null): number | null {
  try {
    return inodeOf(netns);
  } catch {
    return null;
  }
}

/** Paths by which namespaces can be opened, by their inodes: names, and processes other than this one. */
export function namespacePaths(): ReadonlyMap<number, string> {
  const list = (folder: string): string[] => {
    try {
      return readdirSync(folder);
    } catch {
      return [];
    }
  };
  const found = new Map<number, string>();
  for (const path of [...list("/run/netns").map((name) => `/run/netns/${name}`), ...list("/proc").filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid).map((pid) => `/proc/${pid}/ns/net`)]) {
    try {
      const { ino } = statSync(path);
      if (!found.has(ino)) found.set(ino, path);
    } catch {
      // It has ended meanwhile, or is not to be looked at.
    }
  }
  return found;
}

/** null: as far as can be seen nobody is in it. */
export function findNamespace(inode: number, paths = namespacePaths()): string | null {
  const path = paths.get(inode);
  return path !== undefined && inodeNamed(path) === inode ? path : null;
}

/**
 * @param netns as it was asked for; it is what the engine is called by.
 * @param at where the namespace is found, which may be elsewhere by now.
 * @param common of the agent's own namespace's engine; null: this is it.
 * @throws EnforcerError.
 */
export async function startEngine(netns: string | null, at: string | null, options: EngineOptions, common: Common | null): Promise<Engine> {
  const fd = at === null ? null : openNamespace(at);
  try {
    if (fd !== null) requireNetwork(fd, netnsPath(at!));
    const inode = fd === null ? inodeOf(null) : netnsInode(fd);
    const instance = netns === null ? INSTANCE : `${INSTANCE}@${encodeURIComponent(netnsPath(netns))}@${inode}`;
    const device = `enf-${createHash("sha256").update(options.run.path).digest("hex").slice(0, 8)}`;
    const enforcer = await Enforcer.start({ ...options, instance, resolverDevice: device, netnsFd: fd, beside: common === null || netns === null ? null : { common, netns, inode } });
    return { netns, inode, at, enforcer, close: () => { if (fd !== null) closeFd(fd); } };
  } catch (error) {
    if (fd !== null) closeFd(fd);
    throw error;
  }
}

/** Refuses another kind of namespace. @throws EnforcerError E_NETNS. */
export function requireNetwork(fd: number, path: string): void {
  try {
    inNetns(fd, () => undefined);
  } catch (cause) {
    throw new EnforcerError("E_NETNS", `${path} is no network namespace: ${(cause as Error).message}`, { cause });
  }
}

/**
 * Up to version 3 of the tables each namespace had an instance of its own. What is left of those that nothing is in force of is removed.
 * @throws EnforcerError E_UPGRADE when one of them is: it is not touched.
 */
export function removeFormerInstances(bpffs: string): void {
  const folder = join(bpffs, "enforcer");
  for (const entry of existsSync(folder) ? readdirSync(folder) : []) {
    if (!entry.startsWith(`${INSTANCE}@`)) continue;
    const directory = join(folder, entry);
    if (readdirSync(directory).some((name) => name.startsWith("maps-v") && inForce(join(directory, name)))) throw new EnforcerError("E_UPGRADE", `${directory} holds sandboxes of another version in force`);
    removePins(directory);
  }
}

/** Removes what an agent left of a namespace that has gone. @returns false: its programs are on a device still, and all of it stays. */
export function removeFormer(common: Common, former: FormerPlace): boolean {
  const { instance, globals, slots } = common;
  if (placeCarried(former)) return false;
  for (const { slot, place } of slots.inForce()) if (place === former.number) SandboxTables.clearSlot(instance, slot);
  globals.clearPlace(former.number);
  common.givenUp(former.number);
  removePins(former.directory);
  return true;
}
