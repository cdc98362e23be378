/**
 * Who may be spoken to on a connection whose address the kernel allowed: the name it carries, judged by the sandbox's policy and
 * by the operator's floor.
 *
 * Holds always: pure; both must allow; a name opens an address only where the sandbox was told that the name is there (its pin),
 * while a name that is denied is denied wherever it is said to be, and no rule by name opens one on the block list; no name, no way,
 * unless nothing in the policy is about names.
 */
import type { Address } from "../addresses/address.js";
import type { GroupTable } from "../addresses/groups.js";
import { BlockJudge } from "../policy/blocklist.js";
import { coversName, patternsOf } from "../policy/coverage.js";
import { authorityOf, decryptsName, trustOf } from "../policy/floor.js";
import { judgeFlow, speaksOf } from "../policy/flow-judge.js";
import { type CaFiles, type Policy, Proto, type Rule, type TlsPolicy } from "../policy/types.js";
import { namesMethod, type Fields } from "./http/fields.js";
import { plainPath } from "./http/identity.js";
import type { RequestFacts } from "./http/passage.js";

export interface NameQuestion {
  readonly address: Address;
  readonly port: number;
  readonly labels: readonly string[];
  /** Whether this sandbox was told that the name is at the address. */
  readonly pinned: boolean;
}

export type NameReason = "allowed" | "name-denied" | "not-pinned";

export interface NameAnswer { readonly reason: NameReason; readonly rule: Rule | null }

/** One policy (or floor), made ready. */
class View {
  readonly #unpinned: Policy;
  readonly #block: BlockJudge;

  constructor(readonly policy: Policy) {
    this.#block = new BlockJudge(policy.dns.block);
    // A name that was not told opens nothing, and what it is denied it stays denied.
    this.#unpinned = { ...policy, rules: policy.rules.filter((rule) => rule.action === "deny" || patternsOf(rule).length === 0) };
  }

  judge(groups: GroupTable, { address, port, labels, pinned }: NameQuestion): NameAnswer {
    const names = [labels];
    // What was told before the name came to be on the block list opens nothing any more.
    const guarded = this.#block.blocks(labels) ? names : [];
    const question = { direction: "egress", address, protocol: Proto.tcp, port, names, guarded } as const;
    const { verdict, rule } = judgeFlow(pinned ? this.policy : this.#unpinned, groups, question);
    const found = rule === null ? null : (this.policy.rules[rule] as Rule);
    if (verdict === "allow") return { reason: "allowed", rule: found };
    if (!pinned && judgeFlow(this.policy, groups, question).verdict === "allow") return { reason: "not-pinned", rule: null };
    return { reason: "name-denied", rule: found };
  }
}

export class ConnectionJudge {
  readonly #views: readonly View[];

  constructor(policy: Policy, floor: Policy | null) {
    this.#views = [new View(policy), ...(floor === null ? [] : [new View(floor)])];
  }

  /** The sandbox's own policy. */
  get policy(): Policy { return (this.#views[0] as View).policy; }

  judge(groups: GroupTable, question: NameQuestion): NameAnswer {
    let answer: NameAnswer = { reason: "name-denied", rule: null };
    for (const [index, view] of this.#views.entries()) {
      const own = view.judge(groups, question);
      if (own.reason !== "allowed") return own;
      if (index === 0) answer = own;
    }
    return answer;
  }

  /** Whether TLS is ended anywhere: a floor that looks into requests does so whatever the policy says. */
  get intercepts(): boolean { return this.#views.some(({ policy: { tls } }) => tls.intercept); }

  /** Whether TLS to this name is ended here; where it is not, it is passed on as it is. Only names that all pass on who intercept are. */
  decrypts(labels: readonly string[]): boolean { return this.#views.some(({ policy }) => decryptsName(policy, labels)); }

  get deniesDoh(): boolean { return this.#views.some(({ policy: { tls } }) => tls.intercept && tls.denyDoh); }

  /** Who may vouch for the far side where TLS to this name is ended. */
  trust(labels: readonly string[]): Pick<TlsPolicy, "upstreamCa" | "trustHostCas"> { return trustOf(this.policy, this.#views[1]?.policy ?? null, labels); }

  /** Whose leaves the guest sees where TLS is ended; null: of a CA that is made for the sandbox. */
  get authority(): CaFiles | null { return authorityOf(this.policy, this.#views[1]?.policy ?? null); }

  /** Whether a rule for this name and port says which methods there may be. */
  speaksOfMethods({ port, labels }: Pick<NameQuestion, "port" | "labels">): boolean {
    return this.#views.some(({ policy }) => policy.rules.some((rule) => rule.http?.methods != null && rule.direction === "egress" && speaksOf(rule, Proto.tcp, port) && coversName(rule, labels)));
  }

  /**
   * Which rule stops a request, where rules by name speak of methods and paths: of the rules that cover the name and port, the
   * first that also covers the request decides. null: none stops it. `ambiguous`: its path can be read in two ways.
   */
  request(question: NameQuestion, request: JudgedRequest): { readonly rule: Rule; readonly why: "rule-method" | "rule-path" | "path-ambiguous" } | null {
    for (const { policy } of this.#views) {
      let stopped: { rule: Rule; why: "rule-method" | "rule-path" | "path-ambiguous" } | null = null;
      for (const rule of policy.rules) {
        if (rule.direction !== "egress" || !speaksOf(rule, Proto.tcp, question.port) || !coversName(rule, question.labels)) continue;
        if (rule.http === undefined) {
          stopped = rule.action === "allow" ? null : stopped;
          break;
        }
        const why = outside(rule, request);
        if (why === null) {
          stopped = null;
          break;
        }
        stopped ??= { rule, why };
      }
      if (stopped !== null) return stopped;
    }
    return null;
  }
}

export interface JudgedRequest extends Pick<RequestFacts, "method" | "target" | "fields"> {
  /** Methods that its body names. */
  readonly asked?: readonly string[];
}

/** What common frameworks and servers take for the method or the target instead of the request's own (Rack, Symfony, Express, IIS); `_` is read as `-` by CGI. */
const methodFields = new Set(["x-http-method-override", "x-http-method", "x-method-override"]);
const targetFields = new Set(["x-original-url", "x-rewrite-url"]);

/** Why a request is not one that the rule means, or may be taken for another one; null: it is. */
function outside({ http }: Rule, { method, target, fields, asked = [] }: JudgedRequest): "rule-method" | "rule-path" | "path-ambiguous" | null {
  const methods = http?.methods ?? null;
  if (methods !== null && ![method, ...asked, ...otherMethods(target, fields)].every((one) => methods.includes(one))) return "rule-method";
  if (http?.paths == null) return null;
  const path = plainPath(target);
  if (path === null || said(fields, targetFields).length > 0) return "path-ambiguous";
  return http.paths.some((pattern) => pathMatches(pattern, path)) ? null : "rule-path";
}

/** As a server may read them that takes another method than the request's own from a field or the query. */
function otherMethods(target: string, fields: Fields): string[] {
  const mark = target.indexOf("?");
  // Some split queries at `;` as well.
  const asked = mark < 0 ? [] : [...new URLSearchParams(target.slice(mark + 1).replaceAll(";", "&"))].filter(([name]) => namesMethod(name)).map(([, value]) => value);
  return [...said(fields, methodFields).flatMap((value) => value.split(",")), ...asked].map((value) => value.trim().toUpperCase());
}

function said(fields: Fields, names: ReadonlySet<string>): string[] {
  return fields.filter((_, i) => i % 2 === 1 && names.has((fields[i - 1] as string).toLowerCase().replaceAll("_", "-")));
}

/** `*` is a part of one segment, `/**` at the end is the path itself and all below. */
export function pathMatches(pattern: string, path: string): boolean {
  const below = pattern.endsWith("/**");
  const wanted = (below ? pattern.slice(0, -3) : pattern).split("/"), given = path.split("/");
  if (below ? given.length < wanted.length : given.length !== wanted.length) return false;
  return wanted.every((segment, i) => segmentMatches(segment, given[i] as string));
}

/** Glob of one segment in linear time: `*` greedily, with one place to come back to. */
function segmentMatches(pattern: string, text: string): boolean {
  let p = 0, t = 0, star = -1, mark = 0;
  while (t < text.length) {
    if (pattern[p] === "*") {
      star = p++;
      mark = t;
    } else if (pattern[p] === text[t]) {
      p++;
      t++;
    } else if (star >= 0) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (pattern[p] === "*") p++;
  return p === pattern.length;
}
