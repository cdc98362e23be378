/**
 * The agent's configuration file: YAML to settings, strictly.
 *
 * Holds always: an unknown key, a value of the wrong kind, an alias or a second document is an error with file, line and key;
 * all errors are told together and nothing of a bad file is used. Files named in it are relative to its directory and are read
 * with it, so that a policy that cannot be read is an error of the configuration.
 * Does not: put anything in force (src/agent/daemon.ts).
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, resolve } from "node:path";
import { LineCounter, isMap, isScalar, isSeq, visit, type Document, type Node } from "yaml";
import { z } from "zod";
import { parseAddress, parsePrefix } from "../addresses/address.js";
import { groupTable } from "../addresses/groups.js";
import type { Listen } from "../agent/metrics.js";
import { faultText } from "../api/faults.js";
import { EnforcerError } from "../errors.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import { suggest } from "../policy/diagnostics.js";
import { FILE_OCTETS, parsePolicyText, parseUpstream, readPolicyFile } from "../policy/parse.js";
import { limitKinds, type Limits, type Upstream } from "../policy/types.js";
import { readYaml } from "../policy/yaml.js";

export const DEFAULT_CONFIG = "/etc/enforcer/agent.yaml";
export const DEFAULT_RUN_DIRECTORY = "/run/enforcer";
export const DEFAULT_BPFFS = "/sys/fs/bpf";
export const DEFAULT_METRICS = "127.0.0.1:9469";
const DEFAULT_SANDBOXES = 1024;

// The same forms as regular expressions, for whoever checks a file by the JSON schema: parseAddress's, parsePrefix's and so on.
const OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const V4 = `${OCTET}(\\.${OCTET}){3}`;
const HEX = "[0-9A-Fa-f]{1,4}";
const LAST = `(${HEX}:${HEX}|${V4})`;
const V6 = `((${HEX}:){6}${LAST}|::(${HEX}:){5}${LAST}|(${HEX})?::(${HEX}:){4}${LAST}|${[1, 2, 3, 4].map((most) => `((${HEX}:){0,${most}}${HEX})?::${most === 4 ? "" : most === 3 ? `${HEX}:` : `(${HEX}:){${4 - most}}`}${LAST}`).join("|")}|((${HEX}:){0,5}${HEX})?::${HEX}|((${HEX}:){0,6}${HEX})?::)`;
const PORT = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|0{0,4}[0-9]|0{0,3}[1-9][0-9]|0{0,2}[1-9][0-9]{2}|0?[1-9][0-9]{3})";
const PREFIX = `^(${V4}(/(3[0-2]|[12]?[0-9]))?|${V6}(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$`;
const LISTEN = `^(off|(${V4}|\\[(${V6}|${V4})\\]):${PORT})$`;
const UPSTREAM = `^(${V6}|(\\[${V6}\\]|${V4})(:${PORT})?)$`;
const NAT64 = `^${V6}/(32|40|48|56|64|96)$`;

const prefixes = z.array(z.string().refine((text) => parseAddress(text) !== null || parsePrefix(text) !== null, "an address or a prefix is wanted, such as 192.0.2.7/32").meta({ pattern: PREFIX }));
const path = z.string().min(1).max(4096);
const upstream = z.string().refine((text) => parseUpstream(text).ok, "an address, with a port where it is not 53, is wanted: 192.0.2.53 or \"192.0.2.53:5353\"").meta({ pattern: UPSTREAM });

const groupNames = ["host", "metadata", "loopback", "private", "link-local", "multicast", "reserved"] as const;

/** What the file may hold; the JSON schema in docs/agent.schema.json is made from it. */
export const agentConfigSchema = z.strictObject({
  run_dir: path.optional().describe("Directory for the socket, locks and state. Default /run/enforcer. Takes effect at a start."),
  bpffs: path.optional().describe("Where the BPF file system is mounted, or a directory in it. Default /sys/fs/bpf. Takes effect at a start."),
  metrics: z.string().refine((text) => text === "off" || parseListen(text) !== null, "ADDR:PORT or off is wanted").meta({ pattern: LISTEN }).optional().describe("Where Prometheus metrics are served, ADDR:PORT, or off. Default 127.0.0.1:9469."),
  expedite_rcu: z.boolean().optional().describe("Whether attaching and detaching may have the kernel end RCU grace periods early, by interrupts to all CPUs for about a millisecond (/sys/kernel/rcu_expedited), as it does itself when a network device is deleted. An attach takes several times as long without. Default true."),
  sandboxes: z.int().min(1).max(4096).optional().describe("Sandboxes at one time. Default 1024. Takes effect when nothing of a former agent is in force."),
  tls_threads: z.int().min(1).max(AbiLimit.INTERCEPTED_PORTS).optional().describe("Threads that look into connections, at most: each sandbox has one of them. Default half of the CPUs, between 1 and 4. Takes effect at a start."),
  groups: z.partialRecord(z.enum(groupNames), prefixes).optional().describe("Prefixes that are added to an address group; bits beyond the length are 0, and IPv4 is not written as IPv6."),
  nat64_prefixes: z.array(z.string().meta({ pattern: NAT64 })).optional().describe("Prefixes of this network's NAT64 translators (RFC 6052)."),
  policy: path.optional().describe("Policy file of sandboxes that are attached without one. Default: the built-in policy."),
  floor: path.optional().describe("Policy file that is judged with every sandbox's policy: both must allow. Its limits are the most a policy may ask for."),
  limits: z.strictObject(Object.fromEntries(Object.values(limitKinds).map(({ key, min, max }) => [key, z.int().min(min).max(max).optional()]))).optional().describe("Limits of sandboxes whose policy does not say otherwise."),
  upstreams: z.array(upstream).min(1).optional().describe("Resolvers of sandboxes whose policy names none. Default: the host's, followed when they change."),
  attach: z.array(z.strictObject({
    match: z.string().min(1).max(64).describe("Name of the tap, * for any letters, ? for one."),
    policy: path.optional().describe("Policy file. Default: the agent's own."),
    netns: path.optional().describe("Network namespace of the taps: a name as of ip netns, or a path. Default: the agent's own."),
  })).optional().describe("Taps that are attached by themselves as soon as they exist; the first pattern that matches counts."),
}).describe("Configuration of enforcer agent.");

type Written = z.infer<typeof agentConfigSchema>;

/** A policy file as it was read with the configuration. */
export interface PolicyText { readonly path: string; readonly text: string }

export interface AttachPattern { readonly match: string; readonly pattern: RegExp; readonly policy: PolicyText | null; readonly netns: string | null }

export interface AgentConfig {
  /** null: built-in settings, no file. */
  readonly file: string | null;
  readonly runDirectory: string;
  readonly bpffs: string;
  readonly metrics: Listen | null;
  readonly expediteRcu: boolean;
  readonly sandboxes: number;
  readonly tlsThreads: number;
  readonly groups: NonNullable<Written["groups"]>;
  readonly nat64Prefixes: readonly string[];
  readonly policy: PolicyText | null;
  readonly floor: PolicyText | null;
  readonly limits: Partial<Limits>;
  readonly upstreams: readonly Upstream[];
  readonly attach: readonly AttachPattern[];
}

/**
 * @param file null: the default file where it exists, else built-in settings.
 * @throws EnforcerError E_CONFIG, E_GROUPS.
 */
export function readAgentConfig(file: string | null): AgentConfig {
  const name = file ?? (existsSync(DEFAULT_CONFIG) ? DEFAULT_CONFIG : null);
  if (name === null) return settle({}, null, () => "");
  let text: string;
  try {
    requireFile(name);
    text = new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(name));
  } catch (cause) {
    throw new EnforcerError("E_CONFIG", `the configuration ${name} cannot be read: ${(cause as Error).message}`, { cause, remedy: "name a readable YAML or JSON file with --config" });
  }
  return parseAgentConfig(text, resolve(name));
}

/** @throws EnforcerError E_CONFIG, E_GROUPS. */
export function parseAgentConfig(text: string, file: string): AgentConfig {
  const lines = new LineCounter();
  const document = parsedOf(text, file, { lineCounter: lines, strict: true, uniqueKeys: true, schema: "core", version: "1.2", merge: false, stringKeys: true, prettyErrors: false });
  const faults = [...document.errors, ...document.warnings].map(({ pos, message }) => `${file}:${lines.linePos(pos[0]).line}: not valid YAML: ${message.split("\n")[0]}`);
  visit(document, { Alias: (_, { range }) => { faults.push(`${file}:${lines.linePos(range?.[0] ?? 0).line}: an alias: write the value out`); } });
  if (faults.length > 0) throw new EnforcerError("E_CONFIG", faults.join("\n"));
  const parsed = agentConfigSchema.safeParse(document.contents === null || (isScalar(document.contents) && document.contents.value === null) ? {} : document.toJS());
  if (!parsed.success) {
    throw new EnforcerError("E_CONFIG", parsed.error.issues.map((issue) => {
      const where = issue.path.map(String);
      const keys = issue.code === "unrecognized_keys" ? issue.keys : [null];
      return keys.map((key) => {
        const at = key === null ? where : [...where, key];
        const what = key === null ? faultText(issue) : `unknown key; ${suggest(key, keysAt(where))}`;
        return `${file}${lineOf(document, lines, at)}: ${at.length === 0 ? "the file" : at.join(".")}: ${what}`;
      }).join("\n");
    }).join("\n"));
  }
  return settle(parsed.data, file, (...at) => `${file}${lineOf(document, lines, at)}: `);
}

/** Device number of /dev/null (null(4)), which stands for an empty file. */
const NULL_DEVICE = 0x103;

/** A pipe would be waited for, a device read without end, and the agent reads them again while it serves. */
function requireFile(path: string): void {
  const facts = statSync(path);
  if (facts.isCharacterDevice() && facts.rdev === NULL_DEVICE) return;
  if (facts.isDirectory()) throw new Error("it is a directory");
  if (!facts.isFile()) throw new Error("it is no ordinary file");
  if (facts.size > FILE_OCTETS) throw new Error(`it is larger than ${FILE_OCTETS / 1024 / 1024} MiB`);
}

function parsedOf(text: string, file: string, options: Parameters<typeof readYaml>[1]): Document.Parsed {
  try {
    return readYaml(text, options);
  } catch (cause) {
    throw new EnforcerError("E_CONFIG", `${file}: not valid YAML: ${(cause as Error).message}`, { cause });
  }
}

/** Keys that the schema has at a path. */
function keysAt(where: readonly string[]): string[] {
  if (where[0] === "limits") return Object.values(limitKinds).map(({ key }) => key);
  if (where[0] === "attach") return ["match", "policy", "netns"];
  if (where[0] === "groups") return [...groupNames];
  return Object.keys(agentConfigSchema.shape);
}

function lineOf(document: Document.Parsed, lines: LineCounter, path: readonly string[]): string {
  let node: unknown = document.contents;
  let place: Node | null = isMap(node) || isSeq(node) ? node : null;
  for (const step of path) {
    if (isMap(node)) {
      const pair = node.items.find(({ key }) => isScalar(key) && String(key.value) === step);
      if (pair === undefined) break;
      place = pair.key as Node;
      node = pair.value;
    } else if (isSeq(node)) {
      node = node.items[Number(step)];
      if (node === undefined) break;
      place = node as Node;
    } else {
      break;
    }
  }
  const offset = place?.range?.[0];
  return offset === undefined ? "" : `:${lines.linePos(offset).line}`;
}

/**
 * Defaults filled in, files read, and what only the parts themselves can check.
 * @param at where a key stands, as messages begin with it.
 */
function settle(written: Written, file: string | null, at: (...path: string[]) => string): AgentConfig {
  const policy = (name: string | undefined, ...key: string[]): PolicyText | null => {
    if (name === undefined) return null;
    const path = resolve(file === null ? "." : dirname(file), name);
    try {
      requireFile(path);
    } catch (cause) {
      throw new EnforcerError("E_CONFIG", `${at(...key)}${key.join(".")}: policy ${path} cannot be read: ${(cause as Error).message}`, { cause });
    }
    try {
      const text = readPolicyFile(path);
      const { secrets } = parsePolicyText(text, path);
      if (key[0] === "floor" && secrets.length > 0) throw new EnforcerError("E_CONFIG", `${path}: a floor puts no secrets into requests`, { remedy: "name them in the policies of the sandboxes that are to have them; what the floor allows is as far as they can go" });
      return { path, text };
    } catch (cause) {
      if (!(cause instanceof EnforcerError)) throw cause;
      throw new EnforcerError("E_CONFIG", `${at(...key)}${key.join(".")}: ${cause.message}`, { cause, ...(cause.code === "E_CONFIG" ? { remedy: cause.remedy } : {}) });
    }
  };
  const upstreams = (written.upstreams ?? []).map((text) => {
    const parsed = parseUpstream(text);
    if (!parsed.ok) throw new EnforcerError("E_CONFIG", `upstreams: ${parsed.refusal.message}`, { remedy: parsed.refusal.remedy });
    return parsed.value;
  });
  const groups = written.groups ?? {};
  const nat64Prefixes = written.nat64_prefixes ?? [];
  try {
    groupTable({ extra: groups, nat64Prefixes });
  } catch (cause) {
    if (!(cause instanceof EnforcerError)) throw cause;
    const key = cause.message.startsWith("nat64_prefixes") ? "nat64_prefixes" : "groups";
    throw new EnforcerError(cause.code, `${at(key)}${cause.message}`, { remedy: cause.remedy, cause });
  }
  const limits: { -readonly [K in keyof Limits]?: Limits[K] } = {};
  for (const [name, { key }] of Object.entries(limitKinds) as [keyof Limits, { key: string }][]) {
    const value = (written.limits as Record<string, number | undefined> | undefined)?.[key];
    if (value !== undefined) limits[name] = value;
  }
  return {
    file, runDirectory: written.run_dir ?? DEFAULT_RUN_DIRECTORY, bpffs: written.bpffs ?? DEFAULT_BPFFS,
    metrics: written.metrics === "off" ? null : parseListen(written.metrics ?? DEFAULT_METRICS), expediteRcu: written.expedite_rcu ?? true, sandboxes: written.sandboxes ?? DEFAULT_SANDBOXES,
    tlsThreads: written.tls_threads ?? Math.max(1, Math.min(4, availableParallelism() >> 1)),
    groups, nat64Prefixes, policy: policy(written.policy, "policy"), floor: policy(written.floor, "floor"), limits, upstreams,
    attach: (written.attach ?? []).map(({ match, policy: own, netns }, i) => ({ match, pattern: globPattern(match), policy: policy(own, "attach", String(i), "policy"), netns: netns ?? null })),
  };
}

/** ADDR:PORT, an IPv6 address in brackets. null when it is not. */
export function parseListen(text: string): Listen | null {
  const match = /^(?:\[([0-9a-f:.]+)\]|([0-9.]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2], port = Number(match?.[3]);
  return host === undefined || parseAddress(host) === null || port > 65535 ? null : { host, port };
}

function globPattern(match: string): RegExp {
  return new RegExp(`^${[...match].map((letter) => (letter === "*" ? "[^/]*" : letter === "?" ? "[^/]" : letter.replace(/[\\^$.|+()[\]{}]/, "\\$&"))).join("")}$`, "u");
}

/** The JSON schema of the file, as docs/agent.schema.json has it. */
export function agentConfigJsonSchema(): object {
  const { $schema, ...schema } = z.toJSONSchema(agentConfigSchema) as Record<string, unknown>;
  return { $schema, title: "enforcer agent", ...schema };
}
