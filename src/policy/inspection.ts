/**
 * Which connections a policy needs a look at: behind an address that many share, the name on the wire says who is spoken to.
 *
 * Holds always: pure. With interception all that is allowed outward to the inspected ports is looked into; without it what a
 * name allows, and what something else allows behind a name that is denied.
 */
import { patternsOf } from "./coverage.js";
import { type Policy, Proto, type Rule, protosOf } from "./types.js";

export interface InspectionPlan {
  /** Indexes of the rules whose connections are looked into. */
  readonly rules: ReadonlySet<number>;
  /** So is what the default allows. */
  readonly byDefault: boolean;
  /** TCP ports, ascending; UDP to them is refused where TCP would be looked into. Empty: nothing is. */
  readonly ports: readonly number[];
  /** DNS over TLS is answered by the agent. */
  readonly dot: boolean;
}

const HTTP_PORT = 80;
const nothing: InspectionPlan = { rules: new Set(), byDefault: false, ports: [], dot: false };

export function inspectionOf(policy: Policy): InspectionPlan {
  const { intercept, verifyNames, ports: tlsPorts, dot } = policy.tls;
  if ((!intercept && !verifyNames) || policy.noNet) return nothing;
  const ports = [...new Set([...tlsPorts, HTTP_PORT])].sort((a, b) => a - b);
  const rules = new Set<number>();
  let nameDenied = false;
  for (const rule of policy.rules) {
    if (!speaks(rule, ports)) continue;
    const byName = patternsOf(rule).length > 0;
    if (rule.action === "deny") nameDenied ||= byName;
    else if (intercept || byName || nameDenied) rules.add(rule.index);
  }
  return { rules, byDefault: policy.defaultEgress === "allow" && (intercept || nameDenied), ports, dot: intercept && dot === "terminate" };
}

function speaks(rule: Rule, ports: readonly number[]): boolean {
  const protos = protosOf(rule);
  return rule.direction === "egress" && (protos.includes(Proto.tcp) || protos.includes(Proto.udp))
    && (rule.ports === null || rule.ports.some(({ first, last }) => ports.some((port) => first <= port && port <= last)));
}
