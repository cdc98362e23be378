/**
 * What the API speaks: requests as strict schemas, answers as types. docs/API.md describes each.
 *
 * Holds always: an unknown field is refused, not ignored; addresses, names and numbers are text and JSON numbers in the forms
 * that the command line takes; what an answer may gain later is more fields, within one version never fewer.
 */
import { z } from "zod";
import { parseAddress, parsePrefix } from "../addresses/address.js";
import { FILE_OCTETS, parseUpstream } from "../policy/parse.js";

export const API_VERSION = 1;
/** Octets of a request's body at most: a policy file of the largest size, as JSON. */
export const BODY_OCTETS = 48 * 1024 * 1024;

const action = z.enum(["allow", "deny"]);
const address = z.string().max(64).refine((text) => parseAddress(text) !== null, "an IPv4 or IPv6 address is wanted, such as 172.30.0.1 or fd00::1");
const addressOrPrefix = z.string().max(64).refine((text) => parseAddress(text) !== null || parsePrefix(text) !== null, "an address or a prefix is wanted, such as 172.30.0.2 or fd00:1::/64");

/** A policy as one asks for it: a file's text, rules before it, flags that win over it. */
export const policyRequest = z.strictObject({
  file: z.strictObject({
    /** Absolute: names the file in messages, and files named in it are relative to its directory. */
    path: z.string().min(1).max(4096).startsWith("/", "an absolute path is wanted"),
    text: z.string().max(FILE_OCTETS),
  }).optional(),
  rules: z.array(z.string().max(1024)).max(10_000).optional(),
  default_egress: action.optional(),
  default_ingress: action.optional(),
  no_net: z.boolean().optional(),
  no_dns_rebind_protection: z.boolean().optional(),
});
export type PolicyRequest = z.infer<typeof policyRequest>;

/** Octets of a sandbox's name as it stands in names of files, which have 255 with their endings. */
const NAME_OCTETS = 230;

/** Printable, no slash but between namespace and tap. */
export const sandboxName = z.string().min(1).max(120).regex(/^[^\p{Cc}\p{Cf}\p{Cs}\p{Z}/]+(?:\/[^\p{Cc}\p{Cf}\p{Cs}\p{Z}/]+)?$/u, "a name of letters that can be seen, and with one slash at most between two parts, is wanted")
  // In a URL these are not names: the sandbox could not be asked for.
  .refine((name) => name !== "." && name !== "..", "a name other than . and .. is wanted")
  // Files are named after it; half a surrogate pair has no such form, and was refused above.
  .refine((name) => /\p{Cs}/u.test(name) || encodeURIComponent(name).length <= NAME_OCTETS, "a shorter name is wanted");

export const attachRequest = z.strictObject({
  tap: z.string().min(1).max(15),
  /** Default: the tap's name, behind the namespace's where one is given. */
  name: sandboxName.optional(),
  /** As of ip netns, or a path. Default: the agent's own namespace. */
  netns: z.string().min(1).max(200).optional(),
  /** A tap that is not there is waited for, also when it goes and comes again. */
  wait: z.boolean().optional(),
  /** Default: the agent's default policy. */
  policy: policyRequest.optional(),
  gateways: z.array(address).max(8).optional(),
  guest: z.array(addressOrPrefix).max(8).optional(),
  mac: z.string().regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i, "six octets are wanted, such as 02:fc:00:00:00:05").optional(),
  upstreams: z.array(z.string().max(64).refine((text) => parseUpstream(text).ok, "ADDR or ADDR:PORT is wanted")).max(16).optional(),
});
export type AttachRequest = z.infer<typeof attachRequest>;

/** Of a query: digits only. */
const digits = (min: number, max: number) => z.string().refine((text) => /^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max, `a whole number from ${min} to ${max} is wanted`).transform(Number).optional();

export const flowsQuery = z.strictObject({ limit: digits(1, 1_048_576) });
export const watchQuery = z.strictObject({
  sandbox: sandboxName.optional(),
  verdict: z.enum(["allow", "deny"]).optional(),
  reason: z.string().max(64).optional(),
  /** Address, prefix, or name: equal, or `*.name` below it. */
  destination: z.string().max(256).optional(),
});
export type WatchQuery = z.infer<typeof watchQuery>;
export const explainQuery = z.strictObject({
  destination: z.string().min(1).max(2048),
  protocol: z.string().max(16).optional(),
  port: digits(0, 65535),
  direction: z.enum(["egress", "ingress"]).optional(),
});
export type ExplainQuery = z.infer<typeof explainQuery>;
export const noQuery = z.strictObject({});

// ---- answers ---------------------------------------------------------------------------------------------------------

export interface ApiError { readonly code: string; readonly message: string; readonly remedy: string }

export interface AgentStatus {
  readonly version: string;
  readonly api: number;
  readonly pid: number;
  /** ISO 8601. */
  readonly since: string;
  readonly config: string | null;
  readonly run_dir: string;
  readonly bpffs: string;
  readonly metrics: string | null;
  readonly mechanism: string;
  readonly abi: number;
  readonly sandboxes: { readonly enforced: number; readonly kept: number; readonly waiting: number; readonly most: number };
  readonly floor: string | null;
  readonly watchers: number;
}

export interface SandboxSummary {
  readonly name: string;
  readonly tap: string;
  readonly netns: string | null;
  /** enforced; kept: in force as a former agent left it, with no policy known; waiting: there is no tap. */
  readonly state: "enforced" | "kept" | "waiting";
  readonly ifindex: number | null;
  readonly mechanism: string | null;
  readonly rules: number | null;
  readonly since: string | null;
  /** Taken over from a former process. */
  readonly adopted: boolean;
  readonly origin: "request" | "pattern" | null;
  /** Why it is kept. */
  readonly note: string | null;
}

export interface SandboxStatus extends SandboxSummary {
  readonly slot: number | null;
  readonly generation: number | null;
  readonly bridge: string | null;
  readonly gateways: readonly string[];
  readonly guest: { readonly given: readonly string[]; readonly mac: string | null; readonly learned: { readonly mac: string | null; readonly address4: string | null; readonly address6: string | null } | null };
  readonly policy: { readonly uid: string; readonly file: string | null; readonly floor: string | null } | null;
  readonly hooks: readonly { readonly hook: string; readonly program: string; readonly id: number; readonly tag: string; readonly position: number; readonly chain: readonly string[] }[];
  readonly settings: readonly { readonly family: string; readonly setting: string; readonly before: string; readonly after: string; readonly why: string }[];
  readonly notes: readonly string[];
  readonly counters: readonly { readonly direction: string; readonly verdict: string; readonly reason: string; readonly packets: number; readonly bytes: number }[];
  readonly limits: readonly { readonly what: string; readonly used: number; readonly limit: number }[];
  readonly events_lost: number;
  /** Questions of the guest by outcome. */
  readonly queries: Readonly<Record<string, number>>;
  /** Connections that the agent looked into, by outcome. */
  readonly connections: Readonly<Record<string, number>>;
}

export interface AttachAnswer { readonly sandbox: SandboxStatus; readonly warnings: readonly string[] }

export interface PolicyAnswer { readonly request: PolicyRequest | null; readonly report: object; readonly warnings: readonly string[] }

export interface SetPolicyAnswer {
  readonly uid: string;
  readonly pins: { readonly kept: number; readonly left: number };
  readonly warnings: readonly string[];
}

export interface PolicyDiff {
  readonly same: boolean;
  /** Lines of the policy as understood, `-` in force, `+` asked for, ` ` both. */
  readonly lines: readonly string[];
}

export interface PinsAnswer {
  readonly pins: readonly { readonly name: string; readonly address: string; /** seconds left */ readonly left: number; readonly rules: readonly string[] }[];
  /** Whose lease ran out lately. */
  readonly former: readonly { readonly name: string; readonly address: string; /** seconds ago */ readonly expired: number }[];
}

/** By secret: what the guest's environment is to hold. Never a value. */
export interface SecretsAnswer { readonly environment: Readonly<Record<string, string>> }

/** PEM, without its key. */
export interface CaAnswer { readonly certificate: string }

export interface FlowsAnswer {
  readonly total: number;
  readonly flows: readonly { readonly direction: string; readonly protocol: string; readonly guest_port: number; readonly remote: string; readonly remote_port: number; readonly name: string | null; readonly rule: string | null; /** seconds from the first packet to the last; null: not known */ readonly lasted: number | null; /** through the agent, which looks who is meant */ readonly intercepted: boolean }[];
}

export interface ReloadAnswer {
  readonly config: string | null;
  /** What changed and is in force now. */
  readonly changed: readonly string[];
  /** Settings that take effect at the next start. */
  readonly restart: readonly string[];
  /** What could not be put in force for one sandbox; its former policy stays. */
  readonly failed: readonly { readonly sandbox: string; readonly message: string }[];
}

export interface VersionAnswer { readonly version: string; readonly api: number; readonly abi: number; readonly libbpf: string; readonly node: string }
