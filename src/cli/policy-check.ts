/** `enforcer policy check`: what a policy was understood as. Exit status 0, or 65 with every error named. */
import { buildPolicy } from "../policy/build.js";
import { policyReport, policyText } from "../policy/check.js";

export interface CheckArguments {
  readonly file: string | null;
  readonly rules: readonly string[];
  readonly defaultEgress: "allow" | "deny" | null;
  readonly defaultIngress: "allow" | "deny" | null;
  readonly noNet: boolean;
  readonly noRebindProtection: boolean;
  readonly json: boolean;
}

/** @throws EnforcerError E_POLICY, E_POLICY_FILE, E_LIMIT. */
export function checkPolicy(options: CheckArguments): void {
  const { policy, warnings } = buildPolicy(policyInput(options));
  const report = policyReport(policy, warnings);
  process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : policyText(report));
}

/** The policy that a command line names. */
export function policyInput({ file, rules, defaultEgress, defaultIngress, noNet, noRebindProtection }: Omit<CheckArguments, "json">): Parameters<typeof buildPolicy>[0] {
  return {
    ...(file === null ? {} : { file }), tokens: rules,
    ...(defaultEgress === null ? {} : { defaultEgress }), ...(defaultIngress === null ? {} : { defaultIngress }),
    noNet, noRebind: noRebindProtection,
  };
}
