/**
 * What the addon's tests share: the probe object compiled on the spot, a network namespace for the whole file, a bpffs.
 *
 * Holds always: the thread is in a namespace of its own before a test makes a device or a socket, and everything made here
 * is gone afterwards. Needs root and clang; without them the tests fail and say so, they are not skipped.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll } from "vitest";
import * as native from "../../native/index.js";

export { native };

export const addonUrl = new URL("../../native/index.js", import.meta.url).href;

/** A folder that is removed after the file's last test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "native-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Compiles probe.bpf.c into the folder; returns the object's path. */
export function compileProbe(folder: string, ...defines: string[]): string {
  const out = join(folder, `probe${defines.map((name) => `-${name}`).join("")}.o`);
  const source = fileURLToPath(new URL("probe.bpf.c", import.meta.url));
  const architecture = { x64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" }[process.arch as string] ?? "";
  execFileSync("clang-19", ["-target", "bpf", "-O2", "-g", "-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
    `-I/usr/include/${architecture}`, ...defines.map((name) => `-D${name}`), "-c", source, "-o", out]);
  return out;
}

/** Puts the thread into a new network namespace (lo up) for the file's tests. */
export function inNewNamespace(): void {
  let before = -1;
  let made = -1;
  beforeAll(() => {
    before = native.openNetns();
    made = native.createNetns();
    native.setNetns(made);
    ip("link", "set", "lo", "up");
  });
  afterAll(() => {
    native.setNetns(before);
    native.closeFd(made);
    native.closeFd(before);
  });
}

/** A bpffs of the file's own; its path is in the returned object once tests run. */
export function withBpffs(): { path: string } {
  const place = { path: "" };
  beforeAll(() => {
    place.path = mkdtempSync(join(tmpdir(), "native-bpffs-"));
    native.mountBpffs(place.path);
  });
  afterAll(() => {
    execFileSync("umount", [place.path]);
    rmSync(place.path, { recursive: true });
  });
  return place;
}

/** ip(8) in the thread's namespace. */
export function ip(...args: string[]): string {
  return execFileSync("ip", args, { encoding: "utf8" });
}

export function u32(...values: number[]): Buffer {
  const out = Buffer.alloc(4 * values.length);
  values.forEach((value, i) => out.writeUInt32LE(value, 4 * i));
  return out;
}

export function u64(...values: number[]): Buffer {
  const out = Buffer.alloc(8 * values.length);
  values.forEach((value, i) => out.writeBigUInt64LE(BigInt(value), 8 * i));
  return out;
}

/** The error that the call throws. */
export function thrownBy(call: () => unknown): native.NativeError {
  try {
    call();
  } catch (error) {
    return error as native.NativeError;
  }
  throw new Error("nothing was thrown");
}

/** Number of open descriptors of this process. */
export function openDescriptors(): number {
  return readdirSync("/proc/self/fd").length;
}

export interface Finished { status: number | null; signal: string | null; stdout: string; stderr: string }

/** Resolves when the check holds; asked on every turn of the loop, so that it waits for an event and not for a time. */
export async function until(check: () => boolean): Promise<void> {
  while (!check()) await new Promise((resolve) => setImmediate(resolve));
}
