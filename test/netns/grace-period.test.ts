/** The kernel takes the number by which the switch for short grace periods is known as ours, and gives it back. */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { expedited, MARK } from "../../src/kernel/grace-period.js";

it("is seen in the kernel's own file during the call", () => {
  // Other tests attach taps at the same time and put it back to 0 in between.
  let seen = 0;
  for (let attempt = 0; attempt < 10_000 && seen !== MARK; attempt++) seen = expedited(() => Number(readFileSync("/sys/kernel/rcu_expedited", "latin1")));
  expect(seen).toBe(MARK);
});
