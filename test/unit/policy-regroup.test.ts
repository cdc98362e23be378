/** Which group a rule's prefix lies in follows the host's network. */
import { expect, test } from "vitest";
import { parsePrefix } from "../../src/addresses/address.js";
import { groupTable, staticGroups } from "../../src/addresses/groups.js";
import { buildPolicy } from "../../src/policy/build.js";
import { regroup } from "../../src/policy/regroup.js";

const linked = groupTable({ connectedPrefixes: [parsePrefix("45.10.0.0/16")!, parsePrefix("2a0b:1::/32")!] });
const tokens = ["allow@45.10.1.0/24:tcp:443", "allow@[2a0b:1::]/48", "deny@10.0.0.0/8", "allow@public", "allow@api.example.com"];

test("a prefix on a link of the host is of another group, as if the policy were built now; the rest stays", () => {
  const before = buildPolicy({ tokens, groups: staticGroups }).policy;
  const after = regroup(before, linked);
  expect(after.rules.map(({ destination }) => (destination.kind === "prefix" ? destination.group : destination.kind))).toEqual(["private", "private", "private", "group", "name"]);
  expect(after).toEqual(buildPolicy({ tokens, groups: linked }).policy);
  expect(regroup(after, staticGroups)).toEqual(before);
});

test("where nothing differs the same policy comes back", () => {
  const { policy } = buildPolicy({ tokens, groups: linked });
  expect(regroup(policy, linked)).toBe(policy);
  const names = buildPolicy({ tokens: ["allow@public"] }).policy;
  expect(regroup(names, linked)).toBe(names);
});
