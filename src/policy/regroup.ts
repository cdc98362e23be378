/**
 * A rule's prefix opens only addresses of the group that holds all of it (coverage.ts), by the address groups of the moment. The
 * host's own network changes them: a prefix that was public lies on a link of the host from now on.
 *
 * Holds always: pure; nothing but those groups differs, and the same object comes back where none does.
 */
import { type GroupTable, groupOfPrefix } from "../addresses/groups.js";
import type { Policy, Rule } from "./types.js";

export function regroup(policy: Policy, table: GroupTable): Policy {
  let changed = false;
  const rules = policy.rules.map((rule): Rule => {
    const { destination } = rule;
    if (destination.kind !== "prefix") return rule;
    const group = groupOfPrefix(table, destination.prefix);
    if (group === destination.group) return rule;
    changed = true;
    return { ...rule, destination: { ...destination, group } };
  });
  return changed ? { ...policy, rules } : policy;
}
