/**
 * The sections `tls` and `secrets` of a policy file, and what a rule says of HTTP.
 *
 * Holds always: strict, as parse.ts is: what is wrong is reported with its place and remedy and gives nothing. A secret's value
 * is never read here: only where it comes from. Certificates that a policy names are read with the policy, so that a swap is
 * all or nothing.
 */
import { X509Certificate } from "node:crypto";
import { dirname, resolve } from "node:path";
import { type Node, type Pair, isMap, isScalar } from "yaml";
import { readBounded } from "../bounded-file.js";
import { formatPattern, publicSuffix } from "./names.js";
import { suggest } from "./diagnostics.js";
import type { YamlReader } from "./parse.js";
import type { HttpScope, NamePattern, SecretSource, SecretSpec, TlsPolicy } from "./types.js";

/** Ports of one policy that TLS may be looked for on; the kernel keeps 80 beside them (INSPECT_PORTS). */
const TLS_PORTS = 15;
const CA_OCTETS = 1024 * 1024;
const NAME = /^[A-Za-z_][A-Za-z0-9_]{0,127}$/;
/** RFC 9110 section 5.6.2 */
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}$/;

/** As written; what is absent was not. */
export type TlsSource = { -readonly [K in keyof TlsPolicy]?: TlsPolicy[K] };

export function readTls(reader: YamlReader, node: Node): TlsSource {
  const tls: TlsSource = {};
  const flag = (key: string, set: (value: boolean) => void) => (value: Node): void => {
    const on = reader.boolean(value, key);
    if (on !== null) set(on);
  };
  reader.map(node, "tls", {
    intercept: flag("intercept", (on) => { tls.intercept = on; }),
    verify_names: flag("verify_names", (on) => { tls.verifyNames = on; }),
    trust_host_cas: flag("trust_host_cas", (on) => { tls.trustHostCas = on; }),
    deny_doh: flag("deny_doh", (on) => { tls.denyDoh = on; }),
    ports: (value) => {
      const ports = new Set<number>();
      reader.oneOrMore(value, "ports", (item) => {
        const port = reader.integer(item, "a port of tls", 1, 65535);
        if (port === 53 || port === 853) reader.error(item, `port ${port} is the resolver's`, "name ports on which TLS servers are reached");
        else if (port !== null) ports.add(port);
      });
      if (ports.size > TLS_PORTS - 1) reader.error(value, `${ports.size} ports; ${TLS_PORTS - 1} can be held beside 443`, "name fewer ports");
      tls.ports = [...ports.add(443)].sort((a, b) => a - b);
    },
    bypass: (value) => { tls.bypass = patterns(reader, value, "bypass"); },
    upstream_ca: (value) => {
      const authorities: { hosts: readonly NamePattern[] | null; pem: string }[] = [];
      reader.oneOrMore(value, "upstream_ca", (item) => {
        let file: Node | null = null, hosts: NamePattern[] | null = null;
        if (isMap(item)) {
          reader.map(item, "an entry of upstream_ca", { file: (path) => { file = path; }, hosts: (list) => { hosts = patterns(reader, list, "hosts"); } });
          if (file === null) reader.error(item, "the entry names no file", "write {file: corp-root.pem, hosts: [git.corp.example]}");
        } else {
          file = item;
        }
        const pem = file === null ? null : certificates(reader, file);
        if (pem !== null) authorities.push({ hosts, pem });
      });
      tls.upstreamCa = authorities;
    },
    ca: (value) => {
      const files: Partial<Record<"certificate" | "key", string>> = {};
      const path = (key: "certificate" | "key") => (item: Node): void => {
        const text = reader.text(item, `${key} of ca`);
        if (text !== null) files[key] = resolve(dirname(reader.file), text);
      };
      const before = reader.errors;
      reader.map(value, "ca", { certificate: path("certificate"), key: path("key") });
      const { certificate, key } = files;
      if (certificate !== undefined && key !== undefined) tls.ca = { certificate, key };
      else if (reader.errors === before) reader.error(value, "ca names no certificate, or no key", "write ca: {certificate: ca.pem, key: ca.key}");
    },
    dot: (value) => {
      const what = reader.choice(value, "dot", ["terminate", "refuse"]);
      if (what !== null) tls.dot = what;
    },
  });
  return tls;
}

function patterns(reader: YamlReader, node: Node, what: string): NamePattern[] {
  const list: NamePattern[] = [];
  reader.oneOrMore(node, what, (item) => {
    const pattern = reader.pattern(item, `a name of ${what}`);
    if (pattern !== null) list.push(pattern);
  });
  return list;
}

function certificates(reader: YamlReader, node: Node): string | null {
  const path = reader.text(node, "a file of certificates");
  if (path === null) return null;
  const remedy = "name a file with certificates in PEM form";
  try {
    const file = resolve(dirname(reader.file), path);
    // No hyphen within: from each beginning no further than to the next line of hyphens.
    const pem = readBounded(file, CA_OCTETS).toString("latin1").match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    if (pem.length === 0) return reader.error(node, `${path} holds no certificate`, remedy);
    for (const one of pem) if (!new X509Certificate(one).ca) return reader.error(node, `${path} holds a certificate that is no authority's`, "name the authority's certificate, not the server's");
    return `${pem.join("\n")}\n`;
  } catch (error) {
    return reader.error(node, `${path} cannot be read: ${(error as Error).message}`, remedy);
  }
}

/** `methods` of a rule. */
export function readMethods(reader: YamlReader, node: Node): string[] {
  const methods: string[] = [];
  reader.oneOrMore(node, "methods", (item) => {
    const text = reader.text(item, "a method");
    if (text === null) return;
    if (!TOKEN.test(text)) reader.error(item, `${JSON.stringify(text)} is no method`, "write GET, POST and the like");
    else if (text !== text.toUpperCase()) reader.error(item, `methods are upper case: ${text}`, `write ${text.toUpperCase()}`);
    else if (["CONNECT", "TRACE", "TRACK"].includes(text)) reader.error(item, `${text} never passes`, "remove it");
    else methods.push(text);
  });
  return methods;
}

/** `paths` of a rule: absolute, `*` for part of a segment, `**` at the end for everything below. */
export function readPaths(reader: YamlReader, node: Node): string[] {
  const paths: string[] = [];
  reader.oneOrMore(node, "paths", (item) => {
    const text = reader.text(item, "a path");
    if (text === null) return;
    if (!/^\/[\x21-\x7e]*$/.test(text) || /[?#%\\]/.test(text)) reader.error(item, `${JSON.stringify(text)} is no path pattern`, "write it from the first `/`, decoded and without query, such as /repos/**");
    else if (/\/\.{1,2}(\/|$)/.test(text) || text.includes("//")) reader.error(item, `${JSON.stringify(text)} is not in normal form`, "leave out empty, `.` and `..` segments");
    else if (text.includes("**") && !/^[^*]*(\*[^*]+)*\/\*\*$/.test(text)) reader.error(item, `${JSON.stringify(text)}: \`**\` stands for all that is below, at the end only`, "write /repos/** or /repos/*/issues");
    else paths.push(text);
  });
  return paths;
}

export function scopeOf(methods: readonly string[] | null, paths: readonly string[] | null): HttpScope | undefined {
  return methods === null && paths === null ? undefined : { methods, paths };
}

export function readSecrets(reader: YamlReader, node: Node): SecretSpec[] {
  const specs: SecretSpec[] = [];
  if (isScalar(node) && node.value === null) return specs;
  if (!isMap(node)) {
    reader.error(node, "secrets must be a mapping of names to secrets", "write secrets: {GITHUB_TOKEN: {from: {env: GITHUB_TOKEN}, allowed_hosts: [api.github.com]}}");
    return specs;
  }
  for (const { key, value } of node.items as Pair<Node, Node | null>[]) {
    const name = isScalar(key) ? String(key.value) : "";
    if (!NAME.test(name)) reader.error(key, `${JSON.stringify(name)} is no name of a secret`, "use letters, digits and underscores: it is an environment variable in the guest");
    else if (value === null) reader.error(key, `the secret ${name} says nothing`, "write from and allowed_hosts");
    else {
      const spec = readSecret(reader, name, value);
      if (spec !== null) specs.push(spec);
    }
  }
  return specs;
}

function readSecret(reader: YamlReader, name: string, node: Node): SecretSpec | null {
  const before = reader.errors;
  let from: SecretSource | null = null;
  let allowedHosts: NamePattern[] | null = null;
  const ports = new Set([443]);
  let ttl: number | null = null, failureTtl: number | null = null;
  let placeholder: SecretSpec["placeholder"] = { prefix: "", sameLength: false, jwt: false };
  let inject: SecretSpec["inject"] = { headers: null, query: false, body: false, path: false };
  let onViolation: SecretSpec["onViolation"] = { action: "block", hosts: [] };
  reader.map(node, `the secret ${name}`, {
    from: (value) => { from = readSource(reader, value); },
    allowed_hosts: (value) => {
      allowedHosts = patterns(reader, value, "allowed_hosts");
      for (const pattern of allowedHosts) if (publicSuffix(pattern) !== null) reader.error(value, `${formatPattern(pattern)}: others can register names there, and would get the secret ${name}`, "name the hosts themselves");
    },
    ports: (value) => {
      ports.clear();
      reader.oneOrMore(value, "ports", (item) => {
        const port = reader.integer(item, "a port of a secret", 1, 65535);
        if (port === 80) reader.error(item, "a secret never goes out in the clear", "name a port of TLS");
        else if (port !== null) ports.add(port);
      });
    },
    ttl: (value) => { ttl = reader.integer(value, "ttl", 1, 31_536_000); },
    failure_ttl: (value) => { failureTtl = reader.integer(value, "failure_ttl", 0, 31_536_000); },
    placeholder: (value) => {
      let prefix = "", sameLength = false, jwt = false;
      reader.map(value, "placeholder", {
        prefix: (item) => {
          const text = reader.text(item, "prefix");
          if (text !== null && !/^[A-Za-z0-9_-]{0,64}$/.test(text)) reader.error(item, "a prefix has letters, digits, `_` and `-`, 64 at most", "write what real values begin with, such as ghp_");
          else prefix = text ?? "";
        },
        same_length: (item) => { sameLength = reader.boolean(item, "same_length") ?? false; },
        jwt: (item) => { jwt = reader.boolean(item, "jwt") ?? false; },
      });
      if (jwt && (prefix !== "" || sameLength)) reader.error(value, "a placeholder in the form of a JWT has neither prefix nor length of its own", "keep one of them");
      placeholder = { prefix, sameLength, jwt };
    },
    inject: (value) => {
      let headers: string[] | null = null, query = false, body = false, path = false;
      reader.map(value, "inject", {
        headers: (item) => {
          const list: string[] = [];
          reader.oneOrMore(item, "headers", (one) => {
            const text = reader.text(one, "a header")?.toLowerCase();
            if (text === undefined) return;
            if (!TOKEN.test(text)) reader.error(one, `${JSON.stringify(text)} is no name of a header`, "write its name, such as x-api-key");
            else if (["host", "content-length", "transfer-encoding", "connection", "trailer", "te", "upgrade", "expect"].includes(text)) reader.error(one, `a secret cannot go into ${text}`, "name a header of the application's");
            else list.push(text);
          });
          headers = list;
        },
        query: (item) => { query = reader.boolean(item, "query") ?? false; },
        body: (item) => { body = reader.boolean(item, "body") ?? false; },
        path: (item) => { path = reader.boolean(item, "path") ?? false; },
      });
      inject = { headers, query, body, path };
    },
    on_violation: (value) => {
      if (isMap(value)) {
        let hosts: NamePattern[] | null = null;
        reader.map(value, "on_violation", { pass: (list) => { hosts = patterns(reader, list, "pass"); } });
        if (hosts === null) reader.error(value, "on_violation names no hosts", "write {pass: [api.example.com]}, or block, log or terminate");
        else onViolation = { action: "pass", hosts };
        return;
      }
      const action = reader.choice(value, "on_violation", ["block", "log", "terminate"]);
      if (action !== null) onViolation = { action, hosts: [] };
    },
  });
  const place = reader.place(node);
  if (reader.errors === before) {
    if (from === null) reader.error(node, `the secret ${name} does not say where its value comes from`, "write from: {file: PATH}, {env: NAME}, {credential: NAME} or {command: [ARGV]}");
    if (allowedHosts === null) reader.error(node, `the secret ${name} has no allowed_hosts`, "name the hosts that may get it");
  }
  if (reader.errors > before || from === null || allowedHosts === null) return null;
  return { name, from, allowedHosts, ports: [...ports].sort((a, b) => a - b), ttl, failureTtl, placeholder, inject, onViolation, place };
}

function readSource(reader: YamlReader, node: Node): SecretSource | null {
  let found: SecretSource | null = null, count = 0;
  const take = (source: SecretSource | null): void => {
    count++;
    found = source;
  };
  reader.map(node, "from", {
    env: (value) => {
      const text = reader.text(value, "env");
      if (text !== null && !NAME.test(text)) reader.error(value, `${JSON.stringify(text)} is no environment variable`, "name one of the agent's environment");
      take(text === null ? null : { kind: "env", variable: text });
    },
    file: (value) => {
      const text = reader.text(value, "file");
      take(text === null ? null : { kind: "file", path: resolve(dirname(reader.file), text) });
    },
    credential: (value) => {
      const text = reader.text(value, "credential");
      if (text !== null && !/^[A-Za-z0-9_.-]{1,255}$/.test(text)) reader.error(value, `${JSON.stringify(text)} is no name of a credential`, "name one that LoadCredential= of the unit gives");
      take(text === null ? null : { kind: "credential", name: text });
    },
    command: (value) => {
      const argv: string[] = [];
      reader.oneOrMore(value, "command", (item) => {
        const text = reader.text(item, "an argument of the command");
        if (text !== null) argv.push(text);
      });
      if (argv.length > 0 && !(argv[0] as string).startsWith("/")) reader.error(value, "the command is not named by an absolute path", "write [/usr/bin/pass, show, token]; there is no shell and no search path");
      take(argv.length === 0 ? null : { kind: "command", argv });
    },
  });
  if (count > 1) reader.error(node, "the secret has more than one source", `keep one; ${suggest("", ["env", "file", "credential", "command"])}`);
  return found;
}
