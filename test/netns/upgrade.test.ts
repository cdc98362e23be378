/**
 * Another version of the programs: it takes over what has the same maps, without a gap, and refuses what has not, before it
 * touches anything.
 */
import { readdirSync, unlinkSync } from "node:fs";
import path from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { EnforcerError } from "../../src/errors.js";
import { inForce, Instance, removePins } from "../../src/kernel/instance.js";
import { slotKey } from "../../src/kernel/sandbox-tables.js";
import { attachHooks, chainOf, hooksInPlace, TAP_HOOKS } from "../../src/kernel/tap-link.js";
import { inNewNamespace, native, withBpffs } from "../native/fixture.js";

inNewNamespace();
const bpffs = withBpffs();
let tap: InstanceType<typeof native.Tap>;
let directory: string;
const open = (): Instance => Instance.open({ directory, sandboxes: 4 });
const maps = (): string => path.join(directory, readdirSync(directory).find((name) => name.startsWith("maps-"))!);
const refusal = (): string => {
  try {
    open().close();
    return "none";
  } catch (error) {
    return error instanceof EnforcerError ? `${error.code} ${error.message}` : String(error);
  }
};

beforeEach(() => {
  tap = new native.Tap("upgrade0");
  directory = path.join(bpffs.path, "one");
  const first = open();
  attachHooks(first, tap.ifindex, "upgrade0", TAP_HOOKS);
  first.map("sandboxes").update(slotKey(2), Buffer.alloc(first.map("sandboxes").info.valueSize, 1));
  first.close();
});
afterEach(() => {
  removePins(directory);
  tap.close();
});

test("programs are replaced through the pinned link: one program on the hook before and after, and none of the maps is new", () => {
  const second = open();
  expect(second.adopted).toBe(true);
  expect(hooksInPlace(second, tap.ifindex, TAP_HOOKS)).toBe(false);
  expect(chainOf(second, tap.ifindex, TAP_HOOKS[0]!).programs).toEqual(["from_guest"]);
  attachHooks(second, tap.ifindex, "upgrade0", TAP_HOOKS);
  expect(hooksInPlace(second, tap.ifindex, TAP_HOOKS)).toBe(true);
  expect(chainOf(second, tap.ifindex, TAP_HOOKS[0]!).programs).toEqual(["from_guest"]);
  expect(second.map("sandboxes").lookup(slotKey(2))![0]).toBe(1);
  second.destroy();
});

test("a map less, or a map of another layout, with sandboxes in force: refused, and all stays as it was", () => {
  unlinkSync(path.join(maps(), "event_limits"));
  const before = readdirSync(maps());
  expect(refusal()).toMatch(/^E_UPGRADE .*event_limits/);
  const other = native.BpfMap.create({ type: "array", name: "event_limits", keySize: 4, valueSize: 8, maxEntries: 5, flags: 0 });
  other.pin(path.join(maps(), "event_limits"));
  other.close();
  expect(refusal()).toMatch(/^E_UPGRADE .*event_limits/);
  expect(readdirSync(maps()).sort()).toEqual([...before, "event_limits"].sort());
  expect(readdirSync(path.join(directory, "links")).length).toBe(2);
  expect(inForce(maps())).toBe(true);

  // Nothing in force: what a start that died left is made anew.
  unlinkSync(path.join(maps(), "event_limits"));
  const sandboxes = native.BpfMap.fromPin(path.join(maps(), "sandboxes"));
  sandboxes.update(slotKey(2), Buffer.alloc(sandboxes.info.valueSize));
  sandboxes.close();
  const fresh = open();
  expect(fresh.adopted).toBe(false);
  fresh.destroy();
});
