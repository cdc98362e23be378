/**
 * Whom to believe, which an operator's floor and a sandbox's policy cannot both decide: who answers for names, and who vouches for
 * servers.
 *
 * Holds always: pure; whoever writes the policy decides by neither where a name of the floor is. A policy that could name a resolver, or an
 * authority, of its own would say which address or server is the one that the floor allows by name.
 */
import { patternsOf } from "./coverage.js";
import { matchesPattern } from "./names.js";
import type { CaFiles, Policy, TlsPolicy, Upstream } from "./types.js";

/** Whether the policy's `dns.upstreams` count: the floor names none, and no address opens under it by a name. */
export function ownUpstreams(floor: Policy | null): boolean {
  return floor === null || (floor.dns.upstreams === null && !floor.rules.some((rule) => rule.action === "allow" && patternsOf(rule).length > 0));
}

/** Resolvers that policy and floor name; null: those of the agent's configuration, or the host's. */
export function upstreamsOf(policy: Policy, floor: Policy | null): readonly Upstream[] | null {
  return ownUpstreams(floor) ? policy.dns.upstreams : floor!.dns.upstreams;
}

/** Whether this policy ends the TLS of connections to the name. */
export function decryptsName({ tls }: Policy, labels: readonly string[]): boolean {
  return tls.intercept && !tls.bypass.some((pattern) => matchesPattern(pattern, labels));
}

/** Who may vouch for a server of the name, where its TLS is ended: the floor says it for whatever it looks into. */
export function trustOf(policy: Policy, floor: Policy | null, labels: readonly string[]): Pick<TlsPolicy, "upstreamCa" | "trustHostCas"> {
  return (floor !== null && decryptsName(floor, labels) ? floor : policy).tls;
}

/** Whose leaves the guest sees where TLS is ended: the floor says it where it names a CA. null: the sandbox's own, which is made for it. */
export function authorityOf(policy: Policy, floor: Policy | null): CaFiles | null { return floor?.tls.ca ?? policy.tls.ca; }
