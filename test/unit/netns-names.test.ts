/** Names of network namespaces that come and go: that it is told of, and what becomes of a directory that is not there. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { NetnsNames } from "../../src/agent/netns-names.js";

let folder: string, names: NetnsNames | null = null;
beforeEach(() => { folder = mkdtempSync(path.join(tmpdir(), "netns-names-")); });
afterEach(() => {
  names?.close();
  rmSync(folder, { recursive: true, force: true });
});

const told = (directory: string): { count: number } => {
  const calls = { count: 0 };
  names = new NetnsNames(() => { calls.count++; }, directory);
  return calls;
};

test("a name that comes and one that goes are told, each more than once: what is named may come after the name", async () => {
  const calls = told(folder);
  writeFileSync(path.join(folder, "a"), "");
  await expect.poll(() => calls.count, { timeout: 10_000 }).toBeGreaterThanOrEqual(3);
  const before = calls.count;
  rmSync(path.join(folder, "a"));
  await expect.poll(() => calls.count, { timeout: 10_000 }).toBeGreaterThanOrEqual(before + 3);
});

test("changes without end put off the last call only", async () => {
  const calls = told(folder);
  for (let i = 0; calls.count < 4; i++) {
    writeFileSync(path.join(folder, String(i)), "");
    await new Promise((resolve) => { setTimeout(resolve, 1); });
  }
});

test("a directory that is made later, or anew, is watched from the next beginning on; a closed watch tells nothing", async () => {
  const directory = path.join(folder, "netns"), calls = told(directory);
  for (let round = 1; round <= 2; round++) {
    const before = calls.count;
    mkdirSync(directory);
    names!.begin();
    writeFileSync(path.join(directory, "a"), "");
    await expect.poll(() => calls.count, { timeout: 10_000 }).toBeGreaterThanOrEqual(before + 3);
    rmSync(directory, { recursive: true });
    await expect.poll(() => calls.count, { timeout: 10_000 }).toBeGreaterThanOrEqual(before + 6);
  }
  names!.close();
  names!.close();
});
