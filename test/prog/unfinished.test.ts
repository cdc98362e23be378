/** What a process that was killed in the middle of an attach or a detach left in the kernel's tables is found and emptied; what is in force stays. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { SandboxTables, slotKey } from "../../src/kernel/sandbox-tables.js";
import { Lab, type LabSandbox } from "./lab.js";

const OUTER = ["flows", "fragments", "redirects", "counters", "intercepted", "addresses"] as const, OF_POLICY = ["policies", "prefixes4", "prefixes6", "pins"] as const;
const SLOT = 2;
let lab: Lab, living: LabSandbox;
beforeAll(() => {
  lab = Lab.open(4);
  living = lab.sandbox();
});
afterAll(() => lab?.close());

/** Inner maps in a slot. */
function held(slot: number): string[] {
  const there = (name: (typeof OUTER)[number] | (typeof OF_POLICY)[number], index: number): boolean => lab.instance.map(name).lookup(slotKey(index)) !== null;
  return [...OUTER.filter((name) => there(name, slot)), ...OF_POLICY.flatMap((name) => [0, 1, 2, 3].filter((part) => there(name, slot * 4 + part)).map((part) => `${name} ${part}`))];
}

const make = (): void => { SandboxTables.make(lab.instance, SLOT, 7, living.identity(), { flows: 16, pins: 16, eventsPerSecond: 1, queriesPerSecond: 1, connectionsPerSecond: 1, addresses: 1 }); };

test.each<[string, () => void]>([
  ["an attach that has made tables", make],
  ["a detach that has begun to take tables away", () => {
    make();
    lab.instance.map("flows").delete(slotKey(SLOT));
  }],
])("%s", (_name, leave) => {
  const before = held(living.slot);
  expect(before).toContain("flows");
  leave();
  expect(held(SLOT)).not.toEqual([]);
  expect(SandboxTables.clearUnfinished(lab.instance)).toEqual([SLOT]);
  expect(held(SLOT)).toEqual([]);
  expect(held(living.slot)).toEqual(before);
  expect(SandboxTables.clearUnfinished(lab.instance)).toEqual([]);
});
