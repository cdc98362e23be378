/**
 * A parsed policy as the resolver's seam (judge.ts) wants it.
 *
 * Holds always: names and addresses are judged by src/policy; nothing of a rule is read here. Does not: keep state but the
 * judge's own tables.
 */
import { prefixContains } from "../addresses/address.js";
import type { GroupTable } from "../addresses/groups.js";
import { addressAllowedByRule } from "../policy/coverage.js";
import { NameJudge } from "../policy/judge.js";
import { matchesPattern } from "../policy/names.js";
import type { Policy } from "../policy/types.js";
import type { SandboxPolicy } from "./judge.js";
import { defaultLimits, type DnsLimits } from "./limits.js";
import { Rcode } from "./wire.js";

/** What is true of the host at the moment: asked at every use. */
export interface HostFacts {
  groupTable(): GroupTable;
  /** domains of its search list, as labels. */
  localSuffixes(): readonly (readonly string[])[];
}

/**
 * @param compiled the group table to judge reverse names by; null: the host's at the moment.
 */
export function sandboxPolicy(policy: Policy, compiled: GroupTable | null, host: HostFacts): SandboxPolicy {
  const localSuffixes = (): readonly (readonly string[])[] => host.localSuffixes();
  const judge = new NameJudge(policy, { localSuffixes, groups: compiled ?? (() => host.groupTable()) });
  return {
    judge: (labels) => judge.judge(labels),
    rebindProtection: policy.dns.rebindProtection,
    privateAllowed: (labels, address) =>
      policy.dns.allowPrivate.some(({ pattern, prefixes }) => matchesPattern(pattern, labels) && prefixes.some((p) => prefixContains(p, address)))
      || addressAllowedByRule(policy, address, host.groupTable()),
    withoutQuic: policy.tls.intercept || policy.tls.verifyNames,
    deniedRcode: policy.dns.onBlocked === "refused" ? Rcode.REFUSED : Rcode.NXDOMAIN,
    rebindRcode: policy.dns.onRebind === "nxdomain" ? Rcode.NXDOMAIN : Rcode.REFUSED,
  };
}

/** The policy's limits with what it does not name. */
export function dnsLimits(policy: Policy): DnsLimits {
  const { limits } = policy;
  return {
    ...defaultLimits, queriesPerSecond: limits.queriesPerSecond, burst: Math.max(2_000, 2 * limits.queriesPerSecond),
    inFlight: limits.queriesInFlight, names: limits.names, addresses: limits.pins, addressesPerName: limits.addressesPerName,
  };
}
