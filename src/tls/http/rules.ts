/**
 * Whether the rules let one request pass: the name and address as for the connection, and then method and path.
 *
 * Holds always: pure; the policy given is asked anew for each request. The first rule that matches the connection decides. An
 * allow rule with `methods` or `paths` decides for the requests it means; for the others only further rules with `methods` or
 * `paths` are asked, and when none means the request it is refused: a broader rule behind does not open what such a rule left
 * out. A path that readers could take for different ones is refused where a rule speaks of paths; what matched is what is sent.
 * Does not see pins: the caller says which names count.
 */
import type { Address } from "../../addresses/address.js";
import { classify, type GroupTable } from "../../addresses/groups.js";
import { coversAddress, coversName } from "../../policy/coverage.js";
import { judgeFlow, speaksOf } from "../../policy/flow-judge.js";
import { formatPattern } from "../../policy/names.js";
import { Proto, type HttpScope, type Policy, type Rule } from "../../policy/types.js";
import { plainPath } from "./identity.js";
import { refuse, type Refusal } from "./refusal.js";

export interface RequestQuestion {
  /** original destination. */
  readonly address: Address;
  readonly port: number;
  /** what the request is for and is pinned to the address; null: the address itself (plain HTTP). */
  readonly labels: readonly string[] | null;
  readonly method: string;
  /** origin or asterisk form. */
  readonly target: string;
}

/** null: it passes. */
export function judgeRequest(policy: Policy, groups: GroupTable, question: RequestQuestion): Refusal | null {
  const { address, port, labels, method, target } = question;
  const flow = judgeFlow(policy, groups, { direction: "egress", address, protocol: Proto.tcp, port, names: labels === null ? [] : [labels] });
  if (flow.verdict === "deny") return refuse(403, "policy", "the policy does not allow this host at this address and port", true);
  if (flow.rule === null) return null;
  const first = policy.rules.find((rule) => rule.index === flow.rule) as Rule;
  if (first.http === undefined) return null;
  const group = classify(groups, address);
  let refused: Refusal | null = null;
  for (const rule of policy.rules) {
    if (rule.index < first.index || rule.direction !== "egress" || !speaksOf(rule, Proto.tcp, port)) continue;
    if (!(labels !== null && coversName(rule, labels)) && !coversAddress(rule, address, group)) continue;
    if (rule.action === "deny") break;
    if (rule.http === undefined) continue;
    const why = outside(rule, rule.http, method, target);
    if (why === null) return null;
    refused ??= why;
  }
  return refused;
}

/** Why a rule does not mean a request; null: it does. */
function outside(rule: Rule, scope: HttpScope, method: string, target: string): Refusal | null {
  if (scope.methods !== null && !scope.methods.includes(method)) return refuse(403, "rule-method", `${nameOf(rule)} does not allow ${/^[A-Z-]{1,32}$/.test(method) ? method : "this method"}`);
  if (scope.paths === null) return null;
  const path = plainPath(target);
  if (path === null) return refuse(403, "path-ambiguous");
  let decoded: string;
  try {
    decoded = decodeURIComponent(path);
  } catch {
    return refuse(403, "path-ambiguous");
  }
  return scope.paths.some((pattern) => matchesPath(pattern, decoded)) ? null : refuse(403, "rule-path", `${nameOf(rule)} does not allow this path`);
}

/** @param path decoded, without query. `*` stands for a part of a segment, `/**` at the end for all that is below. */
export function matchesPath(pattern: string, path: string): boolean {
  const below = pattern.endsWith("/**");
  const fixed = below ? pattern.slice(0, -2) : pattern;
  const parts = fixed.split("/"), given = path.split("/");
  if (below ? given.length < parts.length : given.length !== parts.length) return false;
  return parts.every((part, i) => (below && i === parts.length - 1) || matchesSegment(part, given[i] as string));
}

/** Greedy from the left: each piece between stars at its first place after the one before. */
function matchesSegment(pattern: string, segment: string): boolean {
  const pieces = pattern.split("*");
  if (pieces.length === 1) return pattern === segment;
  const first = pieces[0] as string, last = pieces.at(-1) as string;
  if (segment.length < first.length + last.length || !segment.startsWith(first) || !segment.endsWith(last)) return false;
  let at = first.length;
  const end = segment.length - last.length;
  for (const piece of pieces.slice(1, -1)) {
    const found = segment.indexOf(piece, at);
    if (found === -1 || found + piece.length > end) return false;
    at = found + piece.length;
  }
  return at <= end;
}

/** For the guest: where the rule is written is the host's business. */
function nameOf(rule: Rule): string {
  const { destination } = rule;
  return `rule ${rule.place.rule ?? rule.index + 1}${destination.kind === "name" ? ` (allow ${formatPattern(destination.pattern)})` : ""}`;
}
