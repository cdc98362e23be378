/**
 * Another version of the programs: it takes over what has the same maps, without a gap, and refuses what has not, before it
 * touches anything.
 */
import { readdirSync, renameSync, unlinkSync } from "node:fs";
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

/** What another version's process leaves: programs that are not of this object file. */
const ofAnotherVersion = (): void => { for (const name of readdirSync(directory)) if (name.startsWith("programs-")) renameSync(path.join(directory, name), path.join(directory, "programs-0123456789abcdef")); };

test("a process of the same version takes the programs that stand, and loads none", () => {
  const pins = readdirSync(directory).filter((name) => name.startsWith("programs-"));
  expect(pins.length).toBe(1);
  const second = open();
  expect(second.adopted).toBe(true);
  expect(hooksInPlace(second, tap.ifindex, TAP_HOOKS)).toBe(true);
  attachHooks(second, tap.ifindex, "upgrade0", TAP_HOOKS);
  expect(hooksInPlace(second, tap.ifindex, TAP_HOOKS)).toBe(true);
  expect(second.program("from_guest").info.mapIds).toContain(second.map("sandboxes").info.id);
  expect(second.program("sweep").testRun({ data: new Uint8Array(64) }).returnValue).toBe(0);
  second.close();

  // One of them lacks: all are loaded anew.
  unlinkSync(path.join(directory, pins[0]!, "sweep"));
  const third = open();
  expect(hooksInPlace(third, tap.ifindex, TAP_HOOKS)).toBe(false);
  attachHooks(third, tap.ifindex, "upgrade0", TAP_HOOKS);
  expect(hooksInPlace(third, tap.ifindex, TAP_HOOKS)).toBe(true);
  expect(readdirSync(path.join(directory, pins[0]!)).sort()).toEqual(["from_guest", "from_resolver", "nudge", "sweep", "taken", "to_guest"]);
  third.close();

  // Programs over other maps are not taken, whatever they are called.
  for (const entry of readdirSync(maps())) unlinkSync(path.join(maps(), entry));
  const fourth = open();
  expect(fourth.adopted).toBe(false);
  expect(fourth.program("from_guest").info.mapIds).toContain(fourth.map("sandboxes").info.id);
  fourth.close();
});

test("programs are replaced through the pinned link: one program on the hook before and after, and none of the maps is new", () => {
  ofAnotherVersion();
  const second = open();
  expect(second.adopted).toBe(true);
  expect(readdirSync(directory).filter((name) => name.startsWith("programs-"))).toHaveLength(1);
  expect(readdirSync(directory)).not.toContain("programs-0123456789abcdef");
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
