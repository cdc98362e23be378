/** The switch for short grace periods: on during the call only, never another's, and what a killed process left is taken back. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, it } from "vitest";
import { allowExpedite, expedited, forgottenExpedite, MARK, useSwitch } from "../../src/kernel/grace-period.js";

const directory = mkdtempSync(join(tmpdir(), "grace-"));
const file = join(directory, "rcu_expedited");
const value = (): number => Number.parseInt(readFileSync(file, "latin1"));

beforeEach(() => {
  writeFileSync(file, "0\n");
  useSwitch(file);
  allowExpedite(true);
});
afterAll(() => {
  rmSync(directory, { recursive: true });
  useSwitch("/sys/kernel/rcu_expedited");
});

it("is on during the call, also a nested one, and off after it", () => {
  expect(expedited(() => [value(), expedited(value), value()])).toEqual([MARK, MARK, MARK]);
  expect(value()).toBe(0);
});

it("is off after an error, which is passed on", () => {
  expect(() => expedited(() => { throw new Error("EBUSY"); })).toThrow("EBUSY");
  expect(value()).toBe(0);
});

it("leaves a value alone that somebody else set", () => {
  writeFileSync(file, "1\n");
  expect(expedited(value)).toBe(1);
  expect(forgottenExpedite()).toBe(false);
  expect(value()).toBe(1);
});

it("is not touched where the configuration forbids it", () => {
  allowExpedite(false);
  expect(expedited(value)).toBe(0);
});

it("works on where the file cannot be written", () => {
  useSwitch(join(directory, "missing", "rcu_expedited"));
  expect(expedited(() => "done")).toBe("done");
});

it("what a killed process left is known by its value and taken back", () => {
  writeFileSync(file, `${MARK}\n`);
  expect(forgottenExpedite()).toBe(true);
  expect(value()).toBe(0);
  expect(forgottenExpedite()).toBe(false);
});
