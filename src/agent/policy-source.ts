/**
 * From a policy as it was asked for to a policy as understood, with the agent's own limits and floor.
 *
 * Holds always: the text is kept as it was given, so that a restart builds the same policy when the file has been changed or has
 * gone since; block lists and other files that it names are read again. Limits of the floor are the most that a policy may ask for.
 * A long text, and one that may name files, is read in a thread of its own before it is built, whoever names it: a request, the
 * configuration, a state file.
 */
import type { PolicyRequest } from "../api/schema.js";
import type { GroupTable } from "../addresses/groups.js";
import type { PolicyText } from "../config/agent-config.js";
import { buildPolicy } from "../policy/build.js";
import { formatDiagnostic, type Diagnostic } from "../policy/diagnostics.js";
import { ownUpstreams } from "../policy/floor.js";
import { parsePolicyText, type PolicySource } from "../policy/parse.js";
import { readPolicyApart } from "../policy/read-apart.js";
import { limitKinds, type Limits, type Policy } from "../policy/types.js";

export interface Built { readonly policy: Policy; readonly warnings: readonly string[] }

export interface Floor { readonly file: string; readonly policy: Policy; readonly limits: Partial<Limits> }

/** Letters of a text that takes no longer than some ten milliseconds, read where it is wanted. */
const SHORT = 8 * 1024;

/**
 * Whether reading a text may take longer. Block lists and files of authorities are read with it; behind a backslash the words may
 * be written otherwise.
 */
function takesLong(text: string): boolean { return text.length > SHORT || text.includes("\\") || text.includes("upstream_ca") || (text.includes("block") && text.includes("file")); }

/** What was read ahead, until it is built, by the file as it was asked for. */
const ahead = new WeakMap<object, PolicySource>();

/** Reads a text in a thread of its own, for the next buildRequested of this very request. @throws EnforcerError E_POLICY, E_LIMIT. */
export async function readAhead({ file }: PolicyRequest): Promise<void> {
  if (file !== undefined && !ahead.has(file)) ahead.set(file, await readPolicyApart(file.path, file.text));
}

/** Whether a request is read ahead: a short one that names no files is not, and so takes its place among others at once. */
export function isLong(request: PolicyRequest | undefined): request is PolicyRequest { return takesLong(request?.file?.text ?? ""); }

/** What is read for many sandboxes at one time: each long text once, in a thread of its own. */
export class Readings {
  readonly #read = new Map<string, PolicySource>();

  /** For the next buildRequested of this very request. @throws EnforcerError E_POLICY, E_LIMIT. */
  async ahead(request: PolicyRequest): Promise<void> {
    if (isLong(request)) ahead.set(request.file!, await this.source(request.file!));
  }

  /** @throws EnforcerError E_POLICY, E_LIMIT. */
  async source({ path, text }: PolicyText): Promise<PolicySource> {
    if (!takesLong(text)) return parsePolicyText(text, path);
    const key = `${path}\0${text}`;
    const source = this.#read.get(key) ?? await readPolicyApart(path, text);
    this.#read.set(key, source);
    return source;
  }
}

/** Once: files that it names are read again the next time. */
function read(file: NonNullable<PolicyRequest["file"]>): PolicySource {
  const source = ahead.get(file) ?? parsePolicyText(file.text, file.path);
  ahead.delete(file);
  return source;
}

/** @throws EnforcerError E_POLICY, E_LIMIT. */
export function buildRequested(request: PolicyRequest, groups: GroupTable, standard: Partial<Limits>, floor: Floor | null): Built {
  const file: PolicySource | null = request.file === undefined ? null : read(request.file);
  const { policy, warnings } = buildPolicy({
    groups, tokens: request.rules ?? [], noNet: request.no_net === true, noRebind: request.no_dns_rebind_protection === true,
    ...(file === null ? {} : { file }),
    ...(request.default_egress === undefined ? {} : { defaultEgress: request.default_egress }),
    ...(request.default_ingress === undefined ? {} : { defaultIngress: request.default_ingress }),
  });
  const limits: { -readonly [K in keyof Limits]: Limits[K] } = { ...policy.limits, ...standard, ...file?.limits };
  for (const name of Object.keys(limitKinds) as (keyof Limits)[]) limits[name] = Math.min(limits[name], floor?.limits[name] ?? Infinity);
  return { policy: { ...policy, limits }, warnings: [...warnings, ...(floor === null ? [] : beneath(policy, floor, request.file?.path))].map(formatDiagnostic) };
}

/** What the policy says and the floor says alone. @param file null: there is none, and so nothing of that kind is said. */
function beneath({ dns, tls }: Policy, { file: name, policy: floor }: Floor, file: string | undefined): Diagnostic[] {
  if (file === undefined) return [];
  const warning = (message: string, remedy: string): Diagnostic => ({ severity: "warning", file, line: null, rule: null, message, remedy });
  const found: Diagnostic[] = [];
  if (dns.upstreams !== null && !ownUpstreams(floor)) found.push(warning(`dns.upstreams are not asked: ${floor.dns.upstreams === null ? "names open addresses under" : "others are named by"} the floor ${name}`, "name them in the floor or in the agent's configuration, or when the tap is attached (--upstream)"));
  if (tls.intercept && floor.tls.intercept && (tls.upstreamCa.length > 0 || tls.trustHostCas)) found.push(warning(`upstream_ca and trust_host_cas count only for names that the floor ${name} passes on`, "name the authorities in the floor"));
  return found;
}

/** @throws EnforcerError E_POLICY, E_LIMIT. */
export function buildFloor({ path, text }: PolicyText, groups: GroupTable, source = parsePolicyText(text, path)): Floor {
  return { file: path, policy: buildPolicy({ file: source, groups }).policy, limits: source.limits };
}

export function requestOfText({ path, text }: PolicyText): PolicyRequest { return { file: { path, text } }; }
