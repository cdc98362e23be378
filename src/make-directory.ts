/**
 * Makes a directory and those above it, as mkdir -p does.
 *
 * Holds always: it ends. Node's own (mkdirSync with `recursive`) asks again and again, on the main thread and for ever, where a file
 * system says of a new directory that it does not exist although the one above it does: sysfs does, so the place where the BPF file
 * system is to be mounted does, and so does proc.
 */
import { existsSync, mkdirSync, statSync } from "node:fs";
import { dirname } from "node:path";

/** @param mode of each that is made. @throws the system's error; those above it that were made stay. */
export function makeDirectories(path: string, mode = 0o700): void {
  if (made(path, mode)) return;
  const above = dirname(path);
  if (above === path || existsSync(above)) mkdirSync(path, { mode });
  makeDirectories(above, mode);
  if (!made(path, mode)) mkdirSync(path, { mode });
}

/** Whether it is there now; false: one above it is missing. */
function made(path: string, mode: number): boolean {
  try {
    mkdirSync(path, { mode });
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return false;
    if (code === "EEXIST" && statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return true;
    throw error;
  }
}
