/**
 * The engines of an agent: one for its own network namespace, and one for each other that has a sandbox's tap.
 *
 * Holds always: a namespace has one engine at most, known by its inode, whatever name it was asked by; an engine of another
 * namespace takes the host's own addresses for its host's too; its instance on the BPF file system names the namespace and its
 * inode, so that a new agent finds it again without a state file, and never takes another one for it that has got its name since.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { BpfLink, closeFd, fsType, netnsInode, openNetns } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { instanceDirectory, removePins } from "../kernel/instance.js";
import { inNetns } from "../net/request.js";
import { Enforcer, type EnforcerOptions } from "./enforcer.js";

/** Longer than any tap's name: no `enforcer attach` in the foreground can have an instance of this name. */
const INSTANCE = "agent-of-the-host";

export interface Engine {
  /** null: the agent's own namespace. */
  readonly netns: string | null;
  readonly inode: number;
  /** Where it was found last. */
  at: string | null;
  /** Its folder on the BPF file system. */
  readonly directory: string;
  readonly enforcer: Enforcer;
  /** Ends an engine that holds nothing any more, or releases one that does. */
  readonly close: () => void;
}

export type EngineOptions = Omit<EnforcerOptions, "instance" | "resolverDevice" | "netnsFd" | "outer">;

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
 * @throws EnforcerError.
 */
export async function startEngine(netns: string | null, at: string | null, options: EngineOptions, outer: EnforcerOptions["outer"]): Promise<Engine> {
  const fd = at === null ? null : openNamespace(at);
  try {
    if (fd !== null) requireNetwork(fd, netnsPath(at!));
    const inode = fd === null ? inodeOf(null) : netnsInode(fd);
    const instance = instanceOf(options.bpffs, netns, inode);
    const device = `enf-${createHash("sha256").update(options.run.path).digest("hex").slice(0, 8)}`;
    const enforcer = await Enforcer.start({ ...options, instance, resolverDevice: device, netnsFd: fd, outer: netns === null ? null : outer });
    return { netns, inode, at, directory: instanceDirectory(options.bpffs, instance), enforcer, close: () => { if (fd !== null) closeFd(fd); } };
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

/** An agent that wrote no inode into it was of this version's beginnings: its folder goes on being used. */
function instanceOf(bpffs: string, netns: string | null, inode: number): string {
  if (netns === null) return INSTANCE;
  const named = `${INSTANCE}@${encodeURIComponent(netnsPath(netns))}`;
  return existsSync(instanceDirectory(bpffs, named)) ? named : `${named}@${inode}`;
}

export interface FormerNamespace {
  readonly netns: string;
  /** null: not known. */
  readonly inode: number | null;
  /** On the BPF file system. */
  readonly directory: string;
}

/** Other namespaces of which an agent left an instance on the BPF file system. */
export function formerNamespaces(bpffs: string): FormerNamespace[] {
  const folder = join(bpffs, "enforcer");
  if (!existsSync(folder)) return [];
  const found: FormerNamespace[] = [];
  for (const entry of readdirSync(folder)) {
    try {
      // Enforcer.start encodes dots and percent signs, which may not stand there.
      const [instance, netns, inode] = entry.replaceAll("%2E", ".").replaceAll("%25", "%").split("@");
      if (instance === INSTANCE && netns !== undefined) found.push({ netns: decodeURIComponent(netns), inode: inode === undefined ? null : Number(inode), directory: join(folder, entry) });
    } catch {
      // Not one that this program made.
    }
  }
  return found;
}

/** Removes what an agent left of a namespace that has gone. @returns false: its programs are on a device still, and all of it stays. */
export function removeFormer({ directory }: FormerNamespace): boolean {
  const links = join(directory, "links");
  for (const name of existsSync(links) ? readdirSync(links) : []) {
    const link = BpfLink.fromPin(join(links, name));
    try {
      if (link.info.ifindex !== 0) return false;
    } finally {
      link.close();
    }
  }
  removePins(directory);
  return true;
}
