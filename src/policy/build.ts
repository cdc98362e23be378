/**
 * One policy from a file, the tokens of the command line and its flags.
 *
 * Holds always: tokens come before the file's rules, in order, so that the command line can override a file; flags win over
 * the file's defaults. Without a file the built-in policy holds: both defaults deny, one rule `allow public`; tokens with a rule
 * of direction egress replace that rule, so that `--rule allow@api.example.com` alone allows nothing else.
 */
import { type GroupTable, groupOfPrefix, staticGroups } from "../addresses/groups.js";
import { assignBits } from "./bits.js";
import { emptyBlockList } from "./blocklist.js";
import { type Diagnostic, Report } from "./diagnostics.js";
import type { TlsSource } from "./parse-tls.js";
import { formatPattern, matchesPattern } from "./names.js";
import { type PolicySource, readPolicyFile, readPolicyText } from "./parse.js";
import { type UnplacedRule, formatPorts, formatProto, mergePorts, readRuleToken } from "./rules.js";
import { findWarnings } from "./shadow.js";
import { type Action, type Limits, type Policy, Proto, type Rule, type TlsPolicy, limitKinds } from "./types.js";

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

/** Names are verified wherever rules are by name, unless the file says otherwise. */
function tlsOf(source: TlsSource, rules: readonly Rule[]): TlsPolicy {
  const intercept = source.intercept ?? false;
  const byName = rules.some(({ direction, destination }) => direction === "egress" && (destination.kind === "name" || destination.kind === "doh"));
  return {
    intercept,
    verifyNames: source.verifyNames ?? (intercept || byName),
    ports: source.ports ?? [443],
    bypass: source.bypass ?? [],
    upstreamCa: source.upstreamCa ?? [],
    trustHostCas: source.trustHostCas ?? false,
    ca: source.ca ?? null,
    dot: source.dot ?? "terminate",
    denyDoh: source.denyDoh ?? false,
  };
}

/**
 * A rule about requests means the ports on which they are seen, and no others: what it allowed elsewhere nobody would hold to it.
 * @param tlsPorts on which TLS is expected.
 */
function onSeenPorts<T extends Pick<Rule, "http" | "protos" | "ports" | "place">>(rule: T, tlsPorts: readonly number[], report: Report): T {
  if (rule.http === undefined) return rule;
  const seen = mergePorts([...tlsPorts, 80].map((port) => ({ first: port, last: port })));
  const others = (rule.protos ?? []).filter((proto) => proto !== Proto.tcp);
  if (others.length > 0) report.error(rule.place, `methods and paths are those of TCP connections, not of ${others.map(formatProto).join(", ")}`, "write `proto: tcp`, and another rule for the rest");
  const beyond = (rule.ports ?? []).filter(({ first, last }) => !seen.some((range) => range.first <= first && last <= range.last));
  if (beyond.length > 0) report.error(rule.place, `methods and paths are not seen on port ${formatPorts(beyond)}`, `name ports where TLS is expected under tls.ports; seen are ${formatPorts(seen)}`);
  return { ...rule, protos: [Proto.tcp], ports: rule.ports ?? seen };
}

/** What needs interception and does not have it. */
function checkTls({ tls, rules, secrets, noNet }: Policy, file: PolicySource, report: Report): void {
  const source = file.tls, whole = { file: file.file, line: null, rule: null };
  const remedy = "write `tls: {intercept: true}` in the policy";
  if (tls.intercept && source.verifyNames === false) report.error(whole, "verify_names: false contradicts intercept: true", "remove one of the two");
  for (const { place, name, allowedHosts } of tls.intercept ? secrets : []) {
    const passed = allowedHosts.find((pattern) => pattern.kind === "exact" && tls.bypass.some((bypass) => matchesPattern(bypass, pattern.labels)));
    if (passed !== undefined) report.warn(place, `the secret ${name} never reaches ${formatPattern(passed)}, which is passed on without interception`, "take it out of tls.bypass, or out of allowed_hosts");
  }
  for (const { place, http, destination } of tls.intercept ? rules : []) {
    if (http === undefined || destination.kind !== "name" || destination.pattern.kind !== "exact") continue;
    const { labels } = destination.pattern;
    if (tls.bypass.some((bypass) => matchesPattern(bypass, labels))) report.warn(place, `methods and paths of ${formatPattern(destination.pattern)} are not seen: it is passed on without interception`, "take it out of tls.bypass, or methods and paths out of the rule");
  }
  if (tls.intercept || noNet) return;
  for (const { place, http } of rules) if (http !== undefined) report.error(place, "methods and paths can be seen only where TLS is intercepted", remedy);
  for (const { place, name } of secrets) report.error(place, `the secret ${name} can be put in only where TLS is intercepted`, remedy);
  const idle = (["bypass", "upstreamCa", "trustHostCas", "ca", "dot", "denyDoh"] as const).filter((key) => source[key] !== undefined);
  if (idle.length > 0) report.warn(whole, "parts of the tls section have no effect while intercept is false", "remove them until you need them");
}

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
    ...onSeenPorts(rule, file?.tls.ports ?? [443], report),
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
    tls: tlsOf(file?.tls ?? {}, rules),
    secrets: file?.secrets ?? [],
    limits: { ...standardLimits, ...file?.limits },
  };
  if (file !== undefined) checkTls(policy, file, report);
  report.throwIfFailed();
  assignBits(policy); // what has no place in the kernel need not be looked at any further
  const read = typeof input.file === "object" ? input.file.warnings : [];
  const defaultsFile = input.defaultEgress !== undefined ? "--net-default-egress" : (file?.file ?? "command line");
  findWarnings(policy, { defaults: { file: defaultsFile, line: null, rule: null } }, report);
  return { policy, warnings: [...read, ...report.warnings] };
}
