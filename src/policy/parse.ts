/**
 * Policy files: YAML (JSON is YAML) to a policy source, strictly.
 *
 * Holds always: an unknown key, a repeated key, a value of the wrong kind, an alias, a tag or a second document is an error
 * with file, line, rule and remedy; all errors are gathered before anything is thrown. Nothing is guessed from near misses.
 * Does not put sources together (build.ts).
 */
import { dirname, resolve } from "node:path";
import { LineCounter, type Node, type Pair, type ParsedNode, isAlias, isMap, isScalar, isSeq } from "yaml";
import { readBounded } from "../bounded-file.js";
import { EnforcerError } from "../errors.js";
import { parseAddress } from "../addresses/address.js";
import type { Prefix } from "../addresses/address.js";
import { BlockListBuilder } from "./blocklist.js";
import { type Diagnostic, Report, suggest } from "./diagnostics.js";
import { type Parsed, accepted, refused } from "./names.js";
import { type UnplacedRule, assembleRule, parseDestination, parsePolicyPrefix, parsePorts, parseProto, parseRulePattern } from "./rules.js";
import { type TlsSource, readMethods, readPaths, readSecrets, readTls, scopeOf } from "./parse-tls.js";
import { type Action, type DnsPolicy, type Limits, type NamePattern, type Place, type PortRange, type SecretSpec, type Upstream, limitKinds } from "./types.js";
import { readYaml } from "./yaml.js";

/** One file as written; null or absent: not written. */
export interface PolicySource {
  readonly file: string;
  readonly defaultEgress: Action | null;
  readonly defaultIngress: Action | null;
  readonly rules: readonly UnplacedRule[];
  readonly dns: Partial<DnsPolicy>;
  readonly tls: TlsSource;
  readonly secrets: readonly SecretSpec[];
  readonly limits: Partial<Limits>;
  readonly warnings: readonly Diagnostic[];
}

/** Largest policy file, in octets; the block list has files of its own. */
export const FILE_OCTETS = 4 * 1024 * 1024;
/** YAML errors told of one file: what follows the first few is mostly their consequence. */
const YAML_ERRORS = 3;

/** Reads and parses a file. Throws E_POLICY_FILE when it cannot be read, PolicyError (E_POLICY) with every error in it. */
export function parsePolicyFile(path: string): PolicySource {
  return parsePolicyText(readPolicyFile(path), path);
}

/** Throws PolicyError. Files named in it are relative to the directory of `fileName`. */
export function parsePolicyText(text: string, fileName: string): PolicySource {
  const report = new Report();
  const source = readPolicyText(text, fileName, report);
  report.throwIfFailed();
  return source;
}

/** Text of a policy file, or of a pipe, which is waited for. Throws E_POLICY_FILE. */
export function readPolicyFile(path: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readBounded(path, FILE_OCTETS, { pipe: true }));
  } catch (error) {
    throw new EnforcerError("E_POLICY_FILE", `policy ${path} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

/** Parses text; what is wrong goes to the report, and what could be read is returned. */
export function readPolicyText(text: string, fileName: string, report: Report): PolicySource {
  return new Reader(text, fileName, report).policy();
}

/** Every way to write a limit, by its key in the file. */
const limitNames = Object.fromEntries(Object.entries(limitKinds).map(([name, { key }]) => [key, name as keyof Limits]));

/** What sections with files of their own read with. */
export interface YamlReader {
  /** The policy file; relative paths are relative to its directory. */
  readonly file: string;
  /** Errors so far. */
  readonly errors: number;
  place(node: Node): Place;
  /** Reports, and gives null. */
  error(node: Node, message: string, remedy: string): null;
  map(node: Node, what: string, fields: Fields): void;
  oneOrMore(node: Node, what: string, item: (value: Node) => void): void;
  text(node: Node, what: string): string | null;
  boolean(node: Node, what: string): boolean | null;
  integer(node: Node, what: string, min: number, max: number): number | null;
  choice<T extends string>(node: Node, what: string, choices: readonly T[]): T | null;
  /** A name or pattern that something is granted to. */
  pattern(node: Node, what: string): NamePattern | null;
}

type Fields = Readonly<Record<string, (value: Node, key: Node) => void>>;

/** Walks one document. A class for its state: the report, the file, the rule it is in. */
class Reader {
  readonly #file: string;
  readonly #text: string;
  readonly #report: Report;
  readonly #lines = new LineCounter();
  readonly #block: BlockListBuilder;
  #rule: number | null = null;

  constructor(text: string, file: string, report: Report) {
    this.#text = text;
    this.#file = file;
    this.#report = report;
    this.#block = new BlockListBuilder(report);
  }

  policy(): PolicySource {
    let defaultEgress: Action | null = null;
    let defaultIngress: Action | null = null;
    const rules: UnplacedRule[] = [];
    const limits: { -readonly [K in keyof Limits]?: Limits[K] } = {};
    let dns: Partial<DnsPolicy> = {};
    let tls: TlsSource = {};
    let secrets: readonly SecretSpec[] = [];
    const root = this.#document();
    if (root !== null) {
      this.#map(root, "the policy", {
        default_egress: (node) => { defaultEgress = this.#choice(node, "default_egress", ["allow", "deny"]); },
        default_ingress: (node) => { defaultIngress = this.#choice(node, "default_ingress", ["allow", "deny"]); },
        rules: (node) => {
          this.#list(node, "rules", (item, index) => {
            this.#rule = index + 1;
            const rule = this.#readRule(item);
            if (rule !== null) rules.push(rule);
            this.#rule = null;
          });
        },
        dns: (node) => { dns = this.#dns(node); },
        tls: (node) => { tls = readTls(this.#reader(), node); },
        secrets: (node) => { secrets = this.#plain(node, "secrets") ? readSecrets(this.#reader(), node) : []; },
        limits: (node) => {
          this.#map(node, "limits", Object.fromEntries(Object.entries(limitNames).map(([key, name]) => [key, (value: Node) => {
            const { min, max } = limitKinds[name];
            const number = this.#integer(value, key, min, max);
            if (number !== null) limits[name] = number;
          }])));
        },
      });
    }
    return { file: this.#file, defaultEgress, defaultIngress, rules, dns: { ...dns, block: this.#block.finish() }, tls, secrets, limits, warnings: this.#report.warnings };
  }

  #document(): ParsedNode | null {
    let document;
    try {
      document = readYaml(this.#text, { lineCounter: this.#lines, strict: true, uniqueKeys: true, schema: "core", version: "1.2", merge: false, stringKeys: false, prettyErrors: false });
    } catch (error) {
      this.#report.error({ file: this.#file, line: null, rule: null }, `the file cannot be parsed: ${(error as Error).message}`, "write a policy as in the documentation; it nests four levels deep at most");
      return null;
    }
    for (const problem of [...document.errors, ...document.warnings].slice(0, YAML_ERRORS)) {
      const line = this.#lines.linePos(problem.pos[0]).line;
      const remedy = problem.code === "DUPLICATE_KEY" ? "remove one of the two"
        : problem.code === "MULTIPLE_DOCS" ? "keep one document in the file"
          : problem.code === "TAB_AS_INDENT" ? "indent with spaces" : "mend the YAML; names that begin with `*` need quotes";
      this.#report.error({ file: this.#file, line, rule: null }, `not valid YAML: ${problem.message.split("\n")[0] as string}`, remedy);
    }
    if (document.errors.length + document.warnings.length > 0) return null;
    return isScalar(document.contents) && document.contents.value === null ? null : document.contents;
  }

  #place(node: Node): Place {
    const offset = node.range?.[0];
    return { file: this.#file, line: offset === undefined ? null : this.#lines.linePos(offset).line, rule: this.#rule };
  }

  #error(node: Node, message: string, remedy: string): null {
    this.#report.error(this.#place(node), message, remedy);
    return null;
  }

  /** Refuses aliases and tags; true when the node may be looked at. */
  #plain(node: Node, what: string): boolean {
    if (isAlias(node)) {
      this.#error(node, `${what} is a YAML alias`, node.source.startsWith(".") || node.source === "" ? `put quotes around it: "*${node.source}"` : "write the value itself; aliases are not read");
      return false;
    }
    if (node.tag !== undefined) {
      this.#error(node, `${what} has a YAML tag`, "remove the tag");
      return false;
    }
    return true;
  }

  #map(node: Node, what: string, fields: Fields): void {
    if (!this.#plain(node, what)) return;
    if (!isMap(node)) {
      this.#error(node, `${what} must be a mapping of keys to values`, `its keys are: ${Object.keys(fields).join(", ")}`);
      return;
    }
    for (const { key, value } of node.items as Pair<Node, Node | null>[]) {
      const name = isScalar(key) ? String(key.value) : "";
      if (!this.#plain(key, "a key")) continue;
      const field = Object.hasOwn(fields, name) ? fields[name] : undefined;
      if (field === undefined) this.#error(key, `unknown key ${JSON.stringify(name)} in ${what}`, suggest(name, Object.keys(fields)));
      else if (value === null) this.#error(key, `${name} has no value`, "write one, or remove the key");
      else field(value, key);
    }
  }

  #list(node: Node, what: string, item: (value: Node, index: number) => void): void {
    if (!this.#plain(node, what) || isNull(node)) return;
    if (!isSeq(node)) {
      this.#error(node, `${what} must be a list`, `write ${what}: [ … ]`);
      return;
    }
    (node.items as Node[]).forEach((value, index) => item(value, index));
  }

  /** A list, or a single value instead of a list of one. */
  #oneOrMore(node: Node, what: string, item: (value: Node) => void): void {
    if (isScalar(node) && !isNull(node)) {
      item(node);
      return;
    }
    if (isNull(node) || (isSeq(node) && node.items.length === 0)) {
      this.#error(node, `${what} is empty`, `name at least one, or remove \`${what}\``);
      return;
    }
    this.#list(node, what, item);
  }

  #text1(node: Node, what: string): string | null {
    if (!this.#plain(node, what)) return null;
    if (isScalar(node) && typeof node.value === "string") return node.value;
    if (isScalar(node) && typeof node.value === "number" && node.source !== undefined) return this.#error(node, `${what} must be text, not a number`, `put quotes around it: "${node.source}"`);
    return this.#error(node, `${what} must be text`, "write one value; a list of them needs one rule (or entry) each");
  }

  #boolean(node: Node, what: string): boolean | null {
    if (!this.#plain(node, what)) return null;
    return isScalar(node) && typeof node.value === "boolean" ? node.value : this.#error(node, `${what} must be true or false`, "write true or false");
  }

  #integer(node: Node, what: string, min: number, max: number): number | null {
    if (!this.#plain(node, what)) return null;
    if (isScalar(node) && typeof node.value === "number" && /^(0|[1-9]\d*)$/.test(node.source ?? "") && node.value >= min && node.value <= max) return node.value;
    return this.#error(node, `${what} must be a whole number from ${min} to ${max}`, `write ${what}: ${Math.min(max, Math.max(min, isScalar(node) && typeof node.value === "number" ? Math.round(node.value) : min))}`);
  }

  #choice<T extends string>(node: Node, what: string, choices: readonly T[]): T | null {
    if (!this.#plain(node, what)) return null;
    const value = isScalar(node) ? String(node.value) : "";
    const found = choices.find((choice) => choice === value);
    return found ?? this.#error(node, `${what} must be ${choices.join(" or ")}, not ${JSON.stringify(value)}`, suggest(value, choices));
  }

  #readRule(node: Node): UnplacedRule | null {
    const before = this.#report.errorCount;
    const destinations: { action: Action; text: string; node: Node }[] = [];
    let direction: "egress" | "ingress" = "egress";
    let protos: number[] | null = null;
    let ports: PortRange[] | null = null;
    const destination = (action: Action) => (value: Node): void => {
      const text = this.#text1(value, action);
      if (text !== null) destinations.push({ action, text, node: value });
    };
    let methods: string[] | null = null;
    let paths: string[] | null = null;
    this.#map(node, "a rule", {
      allow: destination("allow"),
      deny: destination("deny"),
      direction: (value) => { direction = this.#choice(value, "direction", ["egress", "ingress"]) ?? "egress"; },
      proto: (value) => {
        const list: number[] = [];
        this.#oneOrMore(value, "proto", (item) => {
          const proto = this.#plain(item, "proto") ? readProto(item) : null;
          if (proto?.ok === true) list.push(proto.value);
          else if (proto !== null) this.#error(item, proto.refusal.message, proto.refusal.remedy);
        });
        protos = list;
      },
      ports: (value) => {
        const list: PortRange[] = [];
        this.#oneOrMore(value, "ports", (item) => {
          const range = this.#plain(item, "ports") ? readPorts(item) : null;
          if (range?.ok === true) list.push(range.value);
          else if (range !== null) this.#error(item, range.refusal.message, range.refusal.remedy);
        });
        ports = list;
      },
      methods: (value) => { methods = readMethods(this.#reader(), value); },
      paths: (value) => { paths = readPaths(this.#reader(), value); },
    });
    const place = this.#place(node);
    if (this.#report.errorCount > before) return null;
    const [first, second] = destinations;
    if (first === undefined) return this.#error(node, "the rule says neither allow nor deny", "write `allow: DESTINATION` or `deny: DESTINATION`");
    if (second !== undefined) return this.#error(second.node, "the rule says allow and deny", "make two rules; the first that matches wins");
    const parsed = parseDestination(first.text, first.action, this.#place(first.node), this.#report);
    if (parsed === null) return null;
    const http = scopeOf(methods, paths);
    if (http !== undefined && (first.action !== "allow" || direction !== "egress" || parsed.kind !== "name")) {
      return this.#error(node, "methods and paths belong to rules that allow a name outward", "write them in a rule such as `allow: api.example.com`");
    }
    const rule = assembleRule({ action: first.action, direction, destination: parsed, protos, ports }, place, this.#report);
    return rule === null || http === undefined ? rule : { ...rule, http };
  }

  #dns(node: Node): Partial<DnsPolicy> {
    const dns: { -readonly [K in keyof DnsPolicy]?: DnsPolicy[K] } = {};
    this.#map(node, "dns", {
      upstreams: (value) => {
        const upstreams: Upstream[] = [];
        this.#oneOrMore(value, "upstreams", (item) => {
          const text = this.#text1(item, "an upstream");
          const upstream = text === null ? null : parseUpstream(text);
          if (upstream?.ok === true) upstreams.push(upstream.value);
          else if (upstream !== null) this.#error(item, upstream.refusal.message, upstream.refusal.remedy);
        });
        if (upstreams.length > 0) dns.upstreams = upstreams;
      },
      block: (value) => this.#list(value, "block", (item) => this.#blockEntry(item)),
      rebind_protection: (value) => {
        const on = this.#boolean(value, "rebind_protection");
        if (on !== null) dns.rebindProtection = on;
      },
      allow_private: (value) => { dns.allowPrivate = this.#allowPrivate(value); },
      on_blocked: (value) => {
        const answer = this.#choice(value, "on_blocked", ["nxdomain", "refused"]);
        if (answer !== null) dns.onBlocked = answer;
      },
      on_rebind: (value) => {
        const answer = this.#choice(value, "on_rebind", ["refused", "nxdomain"]);
        if (answer !== null) dns.onRebind = answer;
      },
    });
    return dns;
  }

  #blockEntry(node: Node): void {
    if (isMap(node)) {
      this.#map(node, "a block list entry", {
        file: (value) => {
          const path = this.#text1(value, "file");
          if (path !== null) this.#block.addFile(resolve(dirname(this.#file), path), this.#place(value));
        },
      });
      return;
    }
    const text = this.#text1(node, "a block list entry");
    const pattern = text === null ? null : parseRulePattern(text, "deny", this.#place(node), this.#report);
    if (pattern !== null) this.#block.add(pattern, this.#place(node));
  }

  #allowPrivate(node: Node): { pattern: NamePattern; prefixes: Prefix[] }[] {
    const entries: { pattern: NamePattern; prefixes: Prefix[] }[] = [];
    if (!this.#plain(node, "allow_private")) return entries;
    if (!isMap(node)) {
      this.#error(node, "allow_private must be a mapping of names to prefixes", 'write allow_private: {"*.corp.example": [10.0.0.0/8]}');
      return entries;
    }
    for (const { key, value } of node.items as Pair<Node, Node | null>[]) {
      const text = this.#text1(key, "a name of allow_private");
      const pattern = text === null ? null : parseRulePattern(text, "allow", this.#place(key), this.#report);
      const prefixes: Prefix[] = [];
      if (value === null) this.#error(key, "allow_private: the name has no prefixes", "write the prefixes its addresses may have");
      else {
        this.#oneOrMore(value, "allow_private", (item) => {
          const prefixText = this.#text1(item, "a prefix of allow_private");
          const prefix = prefixText === null ? null : parsePolicyPrefix(prefixText);
          if (prefix?.ok === true) prefixes.push(prefix.value);
          else if (prefix !== null) this.#error(item, prefix.refusal.message, prefix.refusal.remedy);
        });
      }
      if (pattern !== null) entries.push({ pattern, prefixes });
    }
    return entries;
  }

  #reader(): YamlReader {
    const report = this.#report;
    return {
      file: this.#file,
      get errors() { return report.errorCount; },
      place: (node) => this.#place(node),
      error: (node, message, remedy) => this.#error(node, message, remedy),
      map: (node, what, fields) => this.#map(node, what, fields),
      oneOrMore: (node, what, item) => this.#oneOrMore(node, what, item),
      text: (node, what) => this.#text1(node, what),
      boolean: (node, what) => this.#boolean(node, what),
      integer: (node, what, min, max) => this.#integer(node, what, min, max),
      choice: (node, what, choices) => this.#choice(node, what, choices),
      pattern: (node, what) => {
        const text = this.#text1(node, what);
        return text === null ? null : parseRulePattern(text, "allow", this.#place(node), report);
      },
    };
  }
}

function isNull(node: Node): boolean {
  return isScalar(node) && node.value === null;
}

function readProto(node: Node): Parsed<number> {
  if (!isScalar(node)) return refused("a protocol must be a name or a number", "write tcp, udp, icmp, icmpv6 or a number");
  if (typeof node.value === "number" && /^\d+$/.test(node.source ?? "")) return parseProto(node.value);
  return parseProto(String(node.value));
}

function readPorts(node: Node): Parsed<PortRange> {
  if (!isScalar(node)) return refused("a port must be a number or a range", "write a port from 1 to 65535, or a range such as 8000-8999");
  // The source, not the value: 0x50, 080 and 1e3 are numbers in YAML, but not how ports are written.
  return parsePorts(typeof node.value === "number" ? (node.source ?? "") : String(node.value));
}

/** `ADDR`, `ADDR:PORT`, `[ADDR6]:PORT` or `ADDR6`; the port is 53 when not written. */
export function parseUpstream(text: string): Parsed<Upstream> {
  const remedy = "write an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53";
  const bare = parseAddress(text);
  if (bare !== null) return usable(bare, 53, text);
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const address = match === null ? null : parseAddress((match[1] ?? match[2]) as string);
  if (match === null || address === null || (match[1] !== undefined && !match[1].includes(":"))) return refused(`${JSON.stringify(text)} is not the address of a resolver`, remedy);
  const port = Number(match[3] ?? 53);
  if (port < 1 || port > 65535) return refused(`${JSON.stringify(text)}: no such port`, remedy);
  return usable(address, port, text);
}

function usable(address: Uint8Array, port: number, text: string): Parsed<Upstream> {
  const v6 = address[0] === 0xff || address.every((octet) => octet === 0);
  const v4 = address[10] === 0xff && address[11] === 0xff && ((address[12] as number) >= 224 || address[12] === 0) && address.subarray(0, 10).every((octet) => octet === 0);
  if (v6 || v4) return refused(`${JSON.stringify(text)} is no host's address`, "write the address of a resolver");
  return accepted({ address, port });
}
