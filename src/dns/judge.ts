/**
 * The seam to the policy: what the resolver must know to judge a name for one sandbox, and the judgements that hold
 * whatever the policy says.
 *
 * Holds always: a name that no rule can match is refused before the policy is asked; the policy sees label arrays, never
 * text; a name that an answer leads to (CNAME, SVCB target) may be unknown to the policy but not refused by it. Pure.
 * Does not: know rules.
 */
import type { Group } from "../addresses/groups.js";
import type { ViewBits } from "./pins.js";
import { isWithin, labelsOf, type Name } from "./wire.js";

export interface NameVerdict {
  readonly allowed: boolean;
  /** domain-rule bits that a pin of this name carries, also where the name may not be looked up: it may have been told before. */
  readonly bits: readonly number[];
  /** index of the rule that decided, null when none did. */
  readonly rule: number | null;
  readonly reason: "rule" | "open" | "default" | "blocked";
  /** with reason rule: a deny of everything. */
  readonly everything?: true;
  /** set when the name is refused whatever the defaults say: metadata endpoints, local names, reverse names of our own. */
  readonly special?: string;
}

/** One sandbox's policy as the resolver sees it. */
export interface SandboxPolicy {
  judge(labels: readonly string[]): NameVerdict;
  readonly rebindProtection: boolean;
  /** allow_private for the name, or an address rule without ports, admits an address outside `public`. */
  privateAllowed(labels: readonly string[], address: Uint8Array): boolean;
  /** TLS is looked at, so QUIC is refused: the guest is told of no HTTP/3. */
  readonly withoutQuic: boolean;
  /** answer to refused names: NXDOMAIN unless the policy says REFUSED. */
  readonly deniedRcode: number;
  /** answer when an address is refused: REFUSED unless the policy says NXDOMAIN. */
  readonly rebindRcode: number;
}

export type Classify = (address: Uint8Array) => Group;

export type Refusal = "denied" | "blocked" | "unmatchable";

export interface Judgement {
  readonly refusal: Refusal | null;
  /** for each policy, in order; empty when refused. */
  readonly bits: ViewBits;
  readonly labels: readonly string[];
}

/**
 * Judges the name of a question: every policy must allow it.
 * @param policies the sandbox's own, the operator's floor if there is one, and those being swapped in.
 * @param classify for PTR names: the host's own addresses are known only here.
 */
export function judgeQuestion(policies: readonly SandboxPolicy[], name: Name, classify: Classify): Judgement {
  const labels = labelsOf(name);
  if (!name.matchable || policies.length === 0) return { refusal: "unmatchable", bits: [], labels };
  const address = addressOfReverse(labels);
  const own = (address !== null && classify(address) !== "public") || tellsOfResolvers(labels);
  const bits: (readonly number[])[] = [];
  for (const policy of policies) {
    const verdict = policy.judge(labels);
    if (!verdict.allowed) return { refusal: verdict.reason === "blocked" || verdict.special !== undefined ? "blocked" : "denied", bits: [], labels };
    if (own && verdict.reason !== "rule") return { refusal: "blocked", bits: [], labels };
    bits.push(verdict.bits);
  }
  return { refusal: null, bits, labels };
}

/**
 * Rule bits of a pin that there is already, in each policy by itself: what was told stays told, and the rules about the name count for
 * it, also those that would refuse its lookup now. null: no rule can match the name.
 */
export function bitsOfPin(policies: readonly SandboxPolicy[], name: Name, classify: Classify): ViewBits | null {
  const labels = labelsOf(name);
  if (!name.matchable || policies.length === 0) return null;
  const address = addressOfReverse(labels);
  const own = (address !== null && classify(address) !== "public") || tellsOfResolvers(labels);
  return policies.map((policy) => {
    const { reason, bits } = policy.judge(labels);
    return own && reason !== "rule" ? [] : bits;
  });
}

/**
 * Judges a name that an answer leads to. Refused: names on the block list or that need a rule of their own, names that a rule
 * by name denies, names no rule can match, single labels; all save where a rule allows the name itself. A name in the host's own
 * search domain may be led to from inside of it: the question's name had a rule of its own.
 */
export function targetRefused(policy: SandboxPolicy, question: Name, target: Name, searchDomains: readonly Name[]): boolean {
  if (!target.matchable) return true;
  const labels = labelsOf(target);
  const verdict = policy.judge(labels);
  if (verdict.allowed && verdict.reason === "rule") return false;
  if (verdict.reason === "blocked" || (!verdict.allowed && verdict.reason === "rule" && verdict.everything !== true) || labels.length < 2) return true;
  const domains = searchDomains.filter((domain) => isWithin(target, domain));
  if (domains.length > 0 && (verdict.special === undefined || verdict.special === "local")) return !domains.every((domain) => isWithin(question, domain));
  return verdict.special !== undefined;
}

/**
 * Names by which software finds another resolver than the one it asks, or decides to: resolver.arpa (RFC 9462 section 6.4:
 * not to be forwarded) and the name by which a network asks browsers not to go around its resolver.
 */
function tellsOfResolvers(labels: readonly string[]): boolean {
  const n = labels.length;
  return n >= 2 && ((labels[n - 1] === "arpa" && labels[n - 2] === "resolver") || (n === 2 && labels[1] === "net" && labels[0] === "use-application-dns"));
}

/** The address of a whole reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5), or null. */
export function addressOfReverse(labels: readonly string[]): Uint8Array | null {
  const n = labels.length;
  if (n < 3 || labels[n - 1] !== "arpa") return null;
  const out = new Uint8Array(16);
  if (labels[n - 2] === "in-addr" && n === 6) {
    out[10] = 255;
    out[11] = 255;
    for (let i = 0; i < 4; i++) {
      const text = labels[3 - i]!;
      if (!/^(0|[1-9][0-9]{0,2})$/.test(text) || Number(text) > 255) return null;
      out[12 + i] = Number(text);
    }
    return out;
  }
  if (labels[n - 2] === "ip6" && n === 34) {
    for (let i = 0; i < 32; i++) {
      const text = labels[31 - i]!;
      if (!/^[0-9a-f]$/.test(text)) return null;
      out[i >> 1]! |= parseInt(text, 16) << (i % 2 === 0 ? 4 : 0);
    }
    return out;
  }
  return null;
}
