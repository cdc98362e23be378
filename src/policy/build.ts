/**
 * One policy from a file, the tokens of the command line and its flags.
 *
 * Holds always: tokens come before the file's rules, in order, so that the command line can override a file; flags win over
 * the file's defaults. Without a file the built-in policy holds: both defaults deny, one rule `allow public`; tokens with a rule
 * of direction egress replace that rule, so that `--rule allow@api.example.com` alone allows nothing else.
 */
import { type GroupTable, groupOfPrefix, staticGroups } from "../addresses/groups.js";
import { emptyBlockList } from "./blocklist.js";
import { type Diagnostic, Report } from "./diagnostics.js";
import { type PolicySource, readPolicyFile, readPolicyText } from "./parse.js";
import { type UnplacedRule, readRuleToken } from "./rules.js";
import { findWarnings } from "./shadow.js";
import { type Action, type Limits, type Policy, type Rule, limitKinds } from "./types.js";

export interface PolicyInput {
  /** Path of a policy file, or one already parsed. */
  readonly file?: string | PolicySource;
  /** --rule, in order. */
  readonly tokens?: readonly string[];
  /** --net-default-egress */
  readonly defaultEgress?: Action;
  /** --net-default-ingress */
  readonly defaultIngress?: Action;
  /** --no-net: nothing passes, whatever else is said. */
  readonly noNet?: boolean;
  /** --no-dns-rebind-protection */
  readonly noRebind?: boolean;
  /** Address groups of the moment: tells which group holds a rule's prefix. Without it, those without a host. */
  readonly groups?: GroupTable;
}

const builtIn: UnplacedRule = {
  action: "allow", direction: "egress", destination: { kind: "group", group: "public" }, protos: null, ports: null,
  place: { file: "built-in policy", line: null, rule: 1 },
};

const standardLimits = Object.fromEntries(Object.entries(limitKinds).map(([name, { standard }]) => [name, standard])) as unknown as Limits;

/** A rule of the command line. Throws PolicyError. @param number its place there, from 1. */
export function parseRuleToken(token: string, number: number): UnplacedRule {
  const report = new Report();
  const rule = readRuleToken(token, number, report);
  report.throwIfFailed();
  return rule as UnplacedRule;
}

/** Throws PolicyError with every error of file and tokens, E_POLICY_FILE, or E_LIMIT. */
export function buildPolicy(input: PolicyInput): { policy: Policy; warnings: readonly Diagnostic[] } {
  const report = new Report();
  const file = typeof input.file === "string" ? readPolicyText(readPolicyFile(input.file), input.file, report) : input.file;
  const tokenRules = (input.tokens ?? []).map((token, i) => readRuleToken(token, i + 1, report)).filter((rule) => rule !== null);
  report.throwIfFailed();

  const noNet = input.noNet === true;
  const fileRules = file?.rules ?? (tokenRules.some((rule) => rule.direction === "egress") ? [] : [builtIn]);
  const table = input.groups ?? staticGroups;
  const rules: Rule[] = (noNet ? [] : [...tokenRules, ...fileRules]).map(({ destination, ...rule }, index) => ({
    ...rule,
    index,
    destination: destination.kind === "prefix" ? { ...destination, group: groupOfPrefix(table, destination.prefix) } : destination,
  }));
  const policy: Policy = {
    defaultEgress: noNet ? "deny" : (input.defaultEgress ?? file?.defaultEgress ?? "deny"),
    defaultIngress: noNet ? "deny" : (input.defaultIngress ?? file?.defaultIngress ?? "deny"),
    rules,
    noNet,
    dns: {
      upstreams: file?.dns.upstreams ?? null,
      rebindProtection: input.noRebind === true ? false : (file?.dns.rebindProtection ?? true),
      allowPrivate: file?.dns.allowPrivate ?? [],
      onBlocked: file?.dns.onBlocked ?? "nxdomain",
      onRebind: file?.dns.onRebind ?? "refused",
      block: file?.dns.block ?? emptyBlockList(),
    },
    limits: { ...standardLimits, ...file?.limits },
  };
  const read = typeof input.file === "object" ? input.file.warnings : [];
  const defaultsFile = input.defaultEgress !== undefined ? "--net-default-egress" : (file?.file ?? "command line");
  findWarnings(policy, { defaults: { file: defaultsFile, line: null, rule: null } }, report);
  return { policy, warnings: [...read, ...report.warnings] };
}
