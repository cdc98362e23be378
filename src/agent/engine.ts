/**
 * The engines of an agent: one for its own network namespace, and one for each other that has a sandbox's tap.
 *
 * Holds always: a namespace has one engine at most, known by its inode, whatever name it was asked by; an engine of another
 * namespace takes the host's own addresses for its host's too; its instance on the BPF file system names the namespace, so that a
 * new agent finds it again without a state file.
 */
import { existsSync, readdirSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { closeFd, fsType, netnsInode, openNetns } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { inNetns } from "../net/request.js";
import { Enforcer, type EnforcerOptions } from "./enforcer.js";

/** Longer than any tap's name: no `enforcer attach` in the foreground can have an instance of this name. */
const INSTANCE = "agent-of-the-host";

export interface Engine {
  /** null: the agent's own namespace. */
  readonly netns: string | null;
  readonly inode: number;
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

/** @throws EnforcerError. */
export async function startEngine(netns: string | null, options: EngineOptions, outer: EnforcerOptions["outer"]): Promise<Engine> {
  const fd = netns === null ? null : openNamespace(netns);
  try {
    if (fd !== null) requireNetwork(fd, netnsPath(netns!));
    const inode = inodeOf(netns);
    const device = `enf-${createHash("sha256").update(options.run.path).digest("hex").slice(0, 8)}`;
    const enforcer = await Enforcer.start({ ...options, instance: instanceOf(netns), resolverDevice: device, netnsFd: fd, outer: netns === null ? null : outer });
    return { netns, inode, enforcer, close: () => { if (fd !== null) closeFd(fd); } };
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

function instanceOf(netns: string | null): string { return netns === null ? INSTANCE : `${INSTANCE}@${encodeURIComponent(netnsPath(netns))}`; }

/** Other namespaces of which a former agent left an instance on the BPF file system. */
export function formerNamespaces(bpffs: string): string[] {
  const directory = join(bpffs, "enforcer");
  if (!existsSync(directory)) return [];
  const found: string[] = [];
  for (const entry of readdirSync(directory)) {
    try {
      // Enforcer.start encodes dots and percent signs, which may not stand there.
      const name = entry.replaceAll("%2E", ".").replaceAll("%25", "%");
      if (name.startsWith(`${INSTANCE}@`)) found.push(decodeURIComponent(name.slice(INSTANCE.length + 1)));
    } catch {
      // Not one that this program made.
    }
  }
  return found;
}
