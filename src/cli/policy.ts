/** The policy that a command line names, for the engine and for the API; and `enforcer policy …`: show, set, check, diff. */
import { resolve } from "node:path";
import type { PolicyRequest } from "../api/schema.js";
import { EnforcerError } from "../errors.js";
import { buildPolicy } from "../policy/build.js";
import { policyReport, policyText, type PolicyReport } from "../policy/check.js";
import { readPolicyFile } from "../policy/parse.js";
import type { PolicyFlags } from "./arguments.js";
import { agentAt } from "./connection.js";
import { printJson } from "./table.js";

export interface PolicyArguments {
  readonly file: string | null;
  readonly rules: readonly string[];
  readonly defaultEgress: "allow" | "deny" | null;
  readonly defaultIngress: "allow" | "deny" | null;
  readonly noNet: boolean;
  readonly noRebindProtection: boolean;
}

/** @throws EnforcerError E_USAGE: two files. */
export function policyArguments(file: string | null, flags: PolicyFlags): PolicyArguments {
  if (file !== null && flags.policy !== undefined) throw new EnforcerError("E_USAGE", `two policy files: ${file}, and ${flags.policy} as --policy`, { remedy: "name one" });
  return {
    file: file ?? flags.policy ?? null, rules: flags.rule ?? [], defaultEgress: flags.netDefaultEgress ?? null, defaultIngress: flags.netDefaultIngress ?? null,
    noNet: !flags.net, noRebindProtection: !flags.dnsRebindProtection,
  };
}

export function policyInput({ file, rules, defaultEgress, defaultIngress, noNet, noRebindProtection }: PolicyArguments): Parameters<typeof buildPolicy>[0] {
  return {
    ...(file === null ? {} : { file }), tokens: rules,
    ...(defaultEgress === null ? {} : { defaultEgress }), ...(defaultIngress === null ? {} : { defaultIngress }),
    noNet, noRebind: noRebindProtection,
  };
}

/** null: none is named. @throws EnforcerError E_POLICY_FILE. */
export function policyRequestOf({ file, rules, defaultEgress, defaultIngress, noNet, noRebindProtection }: PolicyArguments): PolicyRequest | null {
  const request: PolicyRequest = {
    ...(file === null ? {} : { file: { path: resolve(file), text: readPolicyFile(file) } }), ...(rules.length === 0 ? {} : { rules: [...rules] }),
    ...(defaultEgress === null ? {} : { default_egress: defaultEgress }), ...(defaultIngress === null ? {} : { default_ingress: defaultIngress }),
    ...(noNet ? { no_net: true } : {}), ...(noRebindProtection ? { no_dns_rebind_protection: true } : {}),
  };
  return Object.keys(request).length === 0 ? null : request;
}

/** `policy check`: what a policy was understood as. Exit status 0, or 65 with every error named. @throws EnforcerError E_POLICY, E_POLICY_FILE, E_LIMIT. */
export function checkPolicy(policy: PolicyArguments, json: boolean): void {
  const built = buildPolicy(policyInput(policy));
  const report = policyReport(built.policy, built.warnings);
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : policyText(report));
}

/** `policy show`: the policy in force, as understood. */
export async function showPolicy(name: string, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const { request, report } = await (await agentAt(runDir)).policy(name);
  if (json) return printJson({ request, report });
  process.stdout.write(policyText(report as PolicyReport));
}

/** `policy set`. */
export async function setPolicy(name: string, policy: PolicyArguments, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const answer = await (await agentAt(runDir)).setPolicy(name, needed(policy));
  if (json) return printJson(answer);
  for (const warning of answer.warnings) process.stderr.write(`enforcer: ${warning}\n`);
  if (answer.uid === "0") return void process.stdout.write(`policy of ${name} is noted, for when its tap is there\n`);
  process.stdout.write(`policy of ${name} is in force (${answer.pins.kept} pin${answer.pins.kept === 1 ? "" : "s"} kept${answer.pins.left > 0 ? `, ${answer.pins.left} found no place` : ""})\n`);
}

/** `policy diff`: exit status 0 when both are the same, else 1. */
export async function diffPolicy(name: string, policy: PolicyArguments, { json, runDir }: { json: boolean; runDir: string }): Promise<boolean> {
  const diff = await (await agentAt(runDir)).diffPolicy(name, needed(policy));
  if (json) printJson(diff);
  else if (!diff.same) for (const line of diff.lines) process.stdout.write(`${line}\n`);
  return diff.same;
}

function needed(policy: PolicyArguments): PolicyRequest {
  const request = policyRequestOf(policy);
  if (request === null) throw new EnforcerError("E_USAGE", "no policy is named", { remedy: "name a file, or rules with --rule" });
  return request;
}
