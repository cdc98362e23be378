/**
 * From a policy as it was asked for to a policy as understood, with the agent's own limits and floor.
 *
 * Holds always: the text is kept as it was given, so that a restart builds the same policy when the file has been changed or has
 * gone since; block lists and other files that it names are read again. Limits of the floor are the most that a policy may ask for.
 */
import type { PolicyRequest } from "../api/schema.js";
import type { GroupTable } from "../addresses/groups.js";
import type { PolicyText } from "../config/agent-config.js";
import { buildPolicy } from "../policy/build.js";
import { formatDiagnostic } from "../policy/diagnostics.js";
import { parsePolicyText, type PolicySource } from "../policy/parse.js";
import { limitKinds, type Limits, type Policy } from "../policy/types.js";

export interface Built { readonly policy: Policy; readonly warnings: readonly string[] }

export interface Floor { readonly file: string; readonly policy: Policy; readonly limits: Partial<Limits> }

/** @throws EnforcerError E_POLICY, E_LIMIT. */
export function buildRequested(request: PolicyRequest, groups: GroupTable, standard: Partial<Limits>, floor: Floor | null): Built {
  const file: PolicySource | null = request.file === undefined ? null : parsePolicyText(request.file.text, request.file.path);
  const { policy, warnings } = buildPolicy({
    groups, tokens: request.rules ?? [], noNet: request.no_net === true, noRebind: request.no_dns_rebind_protection === true,
    ...(file === null ? {} : { file }),
    ...(request.default_egress === undefined ? {} : { defaultEgress: request.default_egress }),
    ...(request.default_ingress === undefined ? {} : { defaultIngress: request.default_ingress }),
  });
  const limits: { -readonly [K in keyof Limits]: Limits[K] } = { ...policy.limits, ...standard, ...file?.limits };
  for (const name of Object.keys(limitKinds) as (keyof Limits)[]) limits[name] = Math.min(limits[name], floor?.limits[name] ?? Infinity);
  return { policy: { ...policy, limits }, warnings: warnings.map(formatDiagnostic) };
}

/** @throws EnforcerError E_POLICY, E_LIMIT. */
export function buildFloor({ path, text }: PolicyText, groups: GroupTable): Floor {
  const source = parsePolicyText(text, path);
  return { file: path, policy: buildPolicy({ file: source, groups }).policy, limits: source.limits };
}

export function requestOfText({ path, text }: PolicyText): PolicyRequest { return { file: { path, text } }; }
