/**
 * What `enforcer policy check` prints: the policy as it was understood, for people and as JSON.
 *
 * Holds always: shows canonical forms (what is enforced), never the text that was written; numbers rules as messages do.
 */
import { formatAddress, formatPrefix } from "../addresses/address.js";
import { RULE_BITS, assignBits } from "./bits.js";
import { BLOCK_NAMES, blockCount } from "./blocklist.js";
import { explicitGroups, onlyGroup } from "./coverage.js";
import { type Diagnostic, formatDiagnostic } from "./diagnostics.js";
import { formatPattern } from "./names.js";
import { formatDestination, formatPorts, formatProto } from "./rules.js";
import { type Limits, type Policy, type Rule, type Upstream, limitKinds } from "./types.js";

export interface PolicyReport {
  readonly default_egress: string;
  readonly default_ingress: string;
  readonly no_net: boolean;
  readonly rules: readonly {
    readonly number: number; readonly bit: number; readonly action: string; readonly direction: string; readonly destination: string;
    readonly kind: string; readonly proto: readonly string[] | null; readonly ports: string | null; readonly counts_for: string;
    readonly file: string; readonly line: number | null;
  }[];
  readonly bits: { readonly used: number; readonly available: number };
  readonly dns: {
    readonly upstreams: readonly string[] | null; readonly rebind_protection: boolean; readonly block: number; readonly on_blocked: string; readonly on_rebind: string;
    readonly allow_private: Readonly<Record<string, readonly string[]>>;
  };
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
    limits: Object.fromEntries(Object.entries(limitKinds).map(([name, { key }]) => [key, policy.limits[name as keyof Limits]])),
    warnings,
  };
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
    `upstreams   ${dns.upstreams?.join(", ") ?? "the host's resolvers, followed when they change"}`,
    `rebinding   ${dns.rebind_protection ? `refused (${dns.on_rebind.toUpperCase()})` : "NOT refused: names may have private addresses in answers"}`,
    `block list  ${dns.block === 0 ? "empty" : `${dns.block.toLocaleString("en")} of ${BLOCK_NAMES.toLocaleString("en")} names, answered ${dns.on_blocked.toUpperCase()}`}`,
    ...Object.entries(dns.allow_private).map(([name, prefixes]) => `private     ${name}: ${prefixes.join(", ")}`),
    `limits      ${Object.entries(report.limits).map(([key, value]) => `${key} ${value}`).join(", ")}`,
  );
  if (report.warnings.length > 0) lines.push("", ...report.warnings.map(formatDiagnostic));
  return `${lines.map((line) => line.trimEnd()).join("\n")}\n`;
}

function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => (row[column] as string).length))) ?? [];
  return rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column] as number)).join("  "));
}
