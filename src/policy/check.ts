/**
 * What `enforcer policy check` prints: the policy as it was understood, for people and as JSON.
 *
 * Holds always: shows canonical forms (what is enforced), never the text that was written; numbers rules as messages do.
 */
import { formatAddress, formatPrefix } from "../addresses/address.js";
import { RULE_BITS, assignBits } from "./bits.js";
import { BLOCK_NAMES, blockCount } from "./blocklist.js";
import { explicitGroups, onlyGroup } from "./coverage.js";
import { visibleLine } from "../errors.js";
import { type Diagnostic, formatDiagnostic } from "./diagnostics.js";
import { formatPattern } from "./names.js";
import { formatDestination, formatPorts, formatProto } from "./rules.js";
import { type Limits, type Policy, type Rule, type SecretSource, type Upstream, limitKinds } from "./types.js";

export interface PolicyReport {
  readonly default_egress: string;
  readonly default_ingress: string;
  readonly no_net: boolean;
  readonly rules: readonly {
    readonly number: number; readonly bit: number; readonly action: string; readonly direction: string; readonly destination: string;
    readonly kind: string; readonly proto: readonly string[] | null; readonly ports: string | null; readonly counts_for: string;
    readonly methods: readonly string[] | null; readonly paths: readonly string[] | null;
    readonly file: string; readonly line: number | null;
  }[];
  readonly bits: { readonly used: number; readonly available: number };
  readonly dns: {
    readonly upstreams: readonly string[] | null; readonly rebind_protection: boolean; readonly block: number; readonly on_blocked: string; readonly on_rebind: string;
    readonly allow_private: Readonly<Record<string, readonly string[]>>;
  };
  readonly tls: {
    readonly intercept: boolean; readonly verify_names: boolean; readonly ports: readonly number[]; readonly bypass: readonly string[]; readonly upstream_ca: number; readonly ca: string | null;
    readonly trust_host_cas: boolean; readonly dot: string; readonly deny_doh: boolean;
  };
  readonly secrets: readonly { readonly name: string; readonly from: string; readonly allowed_hosts: readonly string[]; readonly ports: readonly number[]; readonly on_violation: string }[];
  readonly limits: Readonly<Record<string, number>>;
  readonly warnings: readonly Diagnostic[];
}

/** The report as data: what --json prints. */
export function policyReport(policy: Policy, warnings: readonly Diagnostic[]): PolicyReport {
  const { bits, bitOf } = assignBits(policy);
  const allowPrivate: Record<string, string[]> = {};
  for (const { pattern, prefixes } of policy.dns.allowPrivate) (allowPrivate[formatPattern(pattern)] ??= []).push(...prefixes.map(formatPrefix));
  return {
    default_egress: policy.defaultEgress,
    default_ingress: policy.defaultIngress,
    no_net: policy.noNet,
    rules: policy.rules.map((rule) => ({
      number: rule.index + 1,
      bit: bitOf[rule.index] as number,
      action: rule.action,
      direction: rule.direction,
      destination: formatDestination(rule.destination),
      kind: rule.destination.kind,
      proto: rule.protos?.map(formatProto) ?? null,
      ports: rule.ports === null ? null : formatPorts(rule.ports),
      counts_for: countsFor(rule),
      methods: rule.http?.methods ?? null,
      paths: rule.http?.paths ?? null,
      file: rule.place.file,
      line: rule.place.line,
    })),
    bits: { used: bits.length, available: RULE_BITS },
    dns: {
      upstreams: policy.dns.upstreams?.map(formatUpstream) ?? null,
      rebind_protection: policy.dns.rebindProtection,
      block: blockCount(policy.dns.block),
      on_blocked: policy.dns.onBlocked,
      on_rebind: policy.dns.onRebind,
      allow_private: allowPrivate,
    },
    tls: {
      intercept: policy.tls.intercept, verify_names: policy.tls.verifyNames, ports: policy.tls.ports, bypass: policy.tls.bypass.map(formatPattern), upstream_ca: policy.tls.upstreamCa.length, ca: policy.tls.ca?.certificate ?? null,
      trust_host_cas: policy.tls.trustHostCas, dot: policy.tls.intercept ? policy.tls.dot : "refuse", deny_doh: policy.tls.denyDoh,
    },
    secrets: policy.secrets.map(({ name, from, allowedHosts, ports, onViolation }) => ({
      name, from: formatSource(from), allowed_hosts: allowedHosts.map(formatPattern), ports,
      on_violation: onViolation.action === "pass" ? `pass to ${onViolation.hosts.map(formatPattern).join(", ")}, else block` : onViolation.action,
    })),
    limits: Object.fromEntries(Object.entries(limitKinds).map(([name, { key }]) => [key, policy.limits[name as keyof Limits]])),
    warnings,
  };
}

/** Where a secret's value comes from; never the value. */
function formatSource(source: SecretSource): string {
  switch (source.kind) {
    case "env": return `env ${source.variable}`;
    case "file": return `file ${source.path}`;
    case "credential": return `credential ${source.name}`;
    case "command": return `command ${source.argv[0]}`;
  }
}

/** Which addresses the rule's destination stands for, where that is less than it seems. */
function countsFor(rule: Rule): string {
  const { destination } = rule;
  if (destination.kind === "any") {
    return rule.action === "allow" && rule.direction === "egress" ? `all addresses but ${explicitGroups.join(", ")}` : "all addresses";
  }
  if (destination.kind === "name") return "addresses this sandbox got for the name";
  const only = onlyGroup(rule);
  return only === null ? "" : `${only} addresses in it`;
}

/** `192.0.2.53:53`, `[2001:db8::53]:53`. */
export function formatUpstream({ address, port }: Upstream): string {
  const text = formatAddress(address);
  return `${text.includes(":") ? `[${text}]` : text}:${port}`;
}

/** The report for people, without colour; lines end in a newline. */
export function policyText(report: PolicyReport): string {
  const lines: string[] = [];
  if (report.no_net) lines.push("no network: nothing passes in either direction and no name is resolved");
  lines.push(`default egress   ${report.default_egress}`, `default ingress  ${report.default_ingress}`, "");
  if (report.rules.length === 0) lines.push("no rules");
  else {
    lines.push(...columns([
      ["rule", "direction", "action", "destination", "protocol", "ports", "covers"],
      ...report.rules.map((rule) => [
        String(rule.number), rule.direction, rule.action, rule.destination,
        rule.proto?.join(",") ?? (rule.ports === null ? "tcp,udp,ping" : "tcp,udp"), rule.ports ?? "any", rule.counts_for,
      ]),
    ]));
  }
  const { dns } = report;
  lines.push(
    "",
    `rule bits   ${report.bits.used} of ${report.bits.available}`,
    `upstreams   ${dns.upstreams?.join(", ") ?? "none named: the agent's, or else the host's, followed when they change"}`,
    `rebinding   ${dns.rebind_protection ? `refused (${dns.on_rebind.toUpperCase()})` : "NOT refused: names may have private addresses in answers"}`,
    `block list  ${dns.block === 0 ? "empty" : `${dns.block.toLocaleString("en")} of ${BLOCK_NAMES.toLocaleString("en")} names, answered ${dns.on_blocked.toUpperCase()}`}`,
    ...Object.entries(dns.allow_private).map(([name, prefixes]) => `private     ${name}: ${prefixes.join(", ")}`),
    `tls         ${tlsText(report.tls)}`,
    ...report.secrets.map((secret) => `secret      ${secret.name} from ${secret.from}, to ${secret.allowed_hosts.join(", ")} port ${secret.ports.join(", ")}; elsewhere: ${secret.on_violation}`),
    `limits      ${Object.entries(report.limits).map(([key, value]) => `${key} ${value}`).join(", ")}`,
  );
  if (report.warnings.length > 0) lines.push("", ...report.warnings.map(formatDiagnostic));
  return `${lines.map((line) => visibleLine(line.trimEnd())).join("\n")}\n`;
}

function tlsText(tls: PolicyReport["tls"]): string {
  if (!tls.intercept && !tls.verify_names) return "not looked into";
  const what = tls.intercept ? `intercepted${tls.bypass.length > 0 ? `, but not ${tls.bypass.join(", ")}` : ""}; DNS over TLS ${tls.dot === "terminate" ? "answered here" : "refused"}` : "names verified, nothing decrypted";
  return `${what}; ports ${tls.ports.join(", ")}, and 80 for plain HTTP`;
}

function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => (row[column] as string).length))) ?? [];
  return rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column] as number)).join("  "));
}
