/**
 * How the process's descriptors are shared out among what guests make it open.
 *
 * Holds always: the parts leave an eighth for everything else: attaching, the host's addresses, the API, files.
 */
import { readFileSync } from "node:fs";

/** Connections that are looked into, with their far sides; connections to port 53; connections to upstream servers. */
export const DESCRIPTOR_PARTS = { lookedInto: 3 / 4, dns: 1 / 16, upstream: 1 / 16 } as const;

/** RLIMIT_NOFILE of the process (proc(5)), which Node has raised as far as it may; where it cannot be read, what a process has without being given more. */
export function descriptorLimit(): number {
  try {
    const [, soft] = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync("/proc/self/limits", "latin1")) ?? [];
    return soft === undefined ? 1_024 : soft === "unlimited" ? Infinity : Number(soft);
  } catch {
    return 1_024;
  }
}

/**
 * What one of several may have now of room for all. Half of it is whoever's comes; of the other half each has its share for sure.
 * @param taken by all of them. @param most that one may have at any time.
 */
export function fairShare(room: number, taken: number, several: number, most: number): number {
  const half = room / 2;
  return taken < half ? most : Math.min(most, Math.max(1, Math.floor(half / Math.max(1, several))));
}
