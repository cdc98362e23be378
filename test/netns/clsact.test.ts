/**
 * The older hook, clsact, as Linux before 6.6 has it alone: whose filter it is, taking over, and what is left behind. On a
 * kernel that has TCX the older one is asked for.
 */
import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { EnforcerError } from "../../src/errors.js";
import { Instance, removePins } from "../../src/kernel/instance.js";
import { attachHooks, detachHooks, hooksHeld, hooksInPlace, linkedDevices, TAP_HOOKS, useMechanism } from "../../src/kernel/tap-link.js";
import { inNewNamespace, native, withBpffs } from "../native/fixture.js";

inNewNamespace();
const bpffs = withBpffs();
let tap: InstanceType<typeof native.Tap>;
let opened: Instance[] = [];

function open(name: string): Instance {
  const instance = Instance.open({ directory: path.join(bpffs.path, name), sandboxes: 4, measuring: true });
  opened.push(instance);
  return instance;
}

const tc = (...words: string[]): string => execFileSync("tc", words, { encoding: "utf8" });
const attach = (instance: Instance): void => void attachHooks(instance, tap.ifindex, "clsact0", TAP_HOOKS);
function refusal(action: () => void): string | null {
  try {
    action();
    return null;
  } catch (error) {
    return error instanceof EnforcerError ? `${error.code}: ${error.message}` : String(error);
  }
}

beforeAll(() => useMechanism("clsact"));
afterAll(() => useMechanism(null));
beforeEach(() => { tap = new native.Tap("clsact0"); });
afterEach(() => {
  for (const instance of opened) instance.destroy();
  opened = [];
  tap.close();
});

test("attached, held, and gone with its qdisc", () => {
  const instance = open("one");
  expect(linkedDevices(instance)).toEqual([]);
  attach(instance);
  expect(hooksInPlace(instance, tap.ifindex, TAP_HOOKS)).toBe(true);
  expect(linkedDevices(instance)).toEqual([tap.ifindex]);
  expect(tc("qdisc", "show", "dev", "clsact0")).toContain("clsact");
  detachHooks(instance, tap.ifindex, TAP_HOOKS);
  expect(tc("qdisc", "show", "dev", "clsact0")).not.toContain("clsact");
  expect(hooksHeld(instance, tap.ifindex, TAP_HOOKS)).toBe(false);
  detachHooks(instance, tap.ifindex, TAP_HOOKS);
});

test("a second enforcer does not take a tap that another one holds, nor its filters away", () => {
  const one = open("one"), other = open("other");
  attach(one);
  expect(refusal(() => attach(other))).toMatch(/^E_TAP_TAKEN: clsact0: another enforcer's program from_guest/);
  expect(hooksHeld(other, tap.ifindex, TAP_HOOKS)).toBe(false);
  expect(linkedDevices(other)).toEqual([]);
  detachHooks(other, tap.ifindex, TAP_HOOKS);
  expect(hooksInPlace(one, tap.ifindex, TAP_HOOKS)).toBe(true);
});

test("a filter of somebody else in our place is not taken", () => {
  const foreign = open("one");
  native.attachClsact(foreign.program("empty"), tap.ifindex, "egress");
  const other = open("other");
  expect(refusal(() => attach(other))).toMatch(/^E_TAP_TAKEN: clsact0: somebody's program empty/);
  expect(native.queryClsact(tap.ifindex, "ingress"), "no hook is left attached alone").toBeNull();
  expect(native.queryClsact(tap.ifindex, "egress")?.programId).toBe(foreign.program("empty").info.id);
});

test("a new process with the same maps takes over, and replaces the programs", () => {
  const former = open("one");
  attach(former);
  const old = native.queryClsact(tap.ifindex, "ingress")?.programId;
  former.close();
  opened = [];
  // Of another version: one of the same takes the programs as they stand.
  const again = open("one");
  attach(again);
  expect(native.queryClsact(tap.ifindex, "ingress")?.programId).toBe(old);
  again.close();
  opened = [];
  const folder = path.join(bpffs.path, "one");
  for (const entry of readdirSync(folder)) if (entry.startsWith("programs-")) removePins(path.join(folder, entry));
  const next = open("one");
  expect(next.adopted).toBe(true);
  expect(hooksHeld(next, tap.ifindex, TAP_HOOKS)).toBe(true);
  expect(linkedDevices(next)).toEqual([tap.ifindex]);
  attach(next);
  expect(hooksInPlace(next, tap.ifindex, TAP_HOOKS)).toBe(true);
  expect(native.queryClsact(tap.ifindex, "ingress")?.programId).not.toBe(old);
  detachHooks(next, tap.ifindex, TAP_HOOKS);
});

test("the qdisc stays while somebody else's filter is on it", () => {
  const instance = open("one");
  attach(instance);
  native.attachClsact(instance.program("empty"), tap.ifindex, "ingress", { handle: 7, priority: 9 });
  detachHooks(instance, tap.ifindex, TAP_HOOKS);
  expect(tc("qdisc", "show", "dev", "clsact0")).toContain("clsact");
  expect(native.queryClsact(tap.ifindex, "ingress")).toBeNull();
  expect(native.queryClsact(tap.ifindex, "ingress", { handle: 7, priority: 9 })).not.toBeNull();
});
