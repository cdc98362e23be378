// Makes docs/REASONS.md, docs/ERRORS.md, docs/METRICS.md, docs/KERNELS.md and docs/agent.schema.json from their sources, so that they cannot say
// something else. Needs a build; run by hand after a change (node scripts/gen-docs.mjs), and compared by scripts/check-docs.mjs
// and test/unit/docs.test.ts.
//
// Holds always: a reason, outcome or error without its text here or in its source stops the run with the name of what is
// missing. Pure but for the last lines.
import { readFileSync, realpathSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { results, table as kernelTable } from "../test/kernels/run.mjs";

export const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** What each reason means, where its name in bpf/abi.h needs no comment there. */
const meanings = {
  "default-metadata": "default denies; destination in group metadata",
  "default-loopback": "default denies; destination in group loopback",
  "default-private": "default denies; destination in group private",
  "default-link-local": "default denies; destination in group link-local",
  "default-multicast": "default denies; destination in group multicast",
  "default-reserved": "default denies; destination in group reserved",
  "default-public": "default denies; destination in group public, or an address pinned to a name under other ports",
  "source-mac": "the frame's source MAC is not the guest's",
  "source-address": "the packet's source address is not the guest's",
  vlan: "802.1Q or 802.1ad tag",
  ethertype: "an EtherType other than IPv4, IPv6 and ARP, or one that disagrees with the packet's metadata",
  "ip-options": "IPv4 header with options",
  "flow-table-full": "the sandbox has as many living flows as its limit allows",
  "fragment-table-full": "a first fragment could not be remembered",
  "redirect-table-full": "too many DNS conversations, or connections that the agent looks into, of this sandbox at one time, or begun in one second",
};

const nothing = "Nothing.";
const notPolicy = "No rule can allow it. Look for what in the guest sends it.";
const faulty = "Report it with the output of `enforcer doctor`. Nothing was let through.";

/** What a person does about it. */
const advice = {
  "rule-allow": nothing,
  "default-allow": "Nothing, or write `default_egress: deny` (or `default_ingress: deny`) and name what may pass.",
  established: nothing,
  neighbour: nothing,
  dhcp: nothing,
  "icmp-related": nothing,
  "fragment-follows": nothing,
  "dns-redirect": nothing,
  "dns-answer": nothing,
  intercepted: nothing,
  "intercept-answer": nothing,
  refusal: nothing,
  "rule-deny": "The line names the rule. Change it, or put an allow rule before it.",
  "default-host": "Allow it by its address (`allow: 192.0.2.1`) or by `allow: host`. Names and `allow: any` do not open the host.",
  "default-metadata": "Leave it. If the guest must have it, allow that address alone (`allow: 169.254.169.254`).",
  "default-loopback": "Leave it: such packets have no business outside the guest.",
  "default-private": "Allow the prefix (`allow: 10.1.2.0/24`) or `allow: private`. Networks on a link of the host count as private, public addresses too.",
  "default-link-local": "Allow the address or `allow: link-local`.",
  "default-multicast": "Allow the address or `allow: multicast`.",
  "default-reserved": "Leave it: no public host can own the address. Allow the address if your network uses it.",
  "default-public": "Allow the address, its prefix, or the name under these ports.",
  "no-pin": "Allow the address, or let the guest resolve the name through its own resolver: an address counts only after this sandbox was told it in an answer.",
  "pin-expired": "The guest kept the address longer than the answer allowed. Let it ask again, or allow the address.",
  "ingress-default": "Add a rule with `direction: ingress` that names the guest's port.",
  "policy-changed": "The flow ends; the new policy forbids it, or its address has become another's, such as the host's. Change the policy if that was not meant.",
  floor: "The operator's floor forbids it, and a sandbox's policy cannot widen that: change the floor in the agent's configuration.",
  quic: "Nothing: clients fall back to TCP at once. Names cannot be looked at in QUIC; allow the address instead of the name if it must pass.",
  "name-service": "Let the guest use ordinary DNS on port 53. No rule opens these ports outward.",
  "icmp-type": "No rule can allow it: of ICMP only echo, its reply, and errors for the guest's own flows pass.",
  protocol: "Add a rule with the protocol's number, such as `proto: 47`.",
  "source-mac": "Give the guest's real MAC with `--guest-mac`, or attach again if the guest's device has changed.",
  "source-address": "Name every address of the guest with `--guest-ip`, or attach again if its address has changed.",
  "address-unknown": "Name the guest's address with `--guest-ip`.",
  "arp-spoof": "Look at what runs in the guest: it speaks for an address that is not its own.",
  "arp-target": "Add a rule that lets the guest reach the address, or leave it.",
  "nd-spoof": "Look at what runs in the guest: it speaks for an address that is not its own.",
  "router-message": notPolicy,
  "dhcp-server": notPolicy,
  "not-for-guest": "Name every address of the guest with `--guest-ip`. Broadcasts on a bridge end here too and are harmless.",
  vlan: notPolicy,
  ethertype: notPolicy,
  truncated: notPolicy,
  length: notPolicy,
  "ip-options": notPolicy,
  "extension-header": notPolicy,
  "mapped-address": notPolicy,
  fragment: "Let the guest send smaller datagrams. Fragments whose first one was not seen, and DNS in fragments, never pass.",
  "checksum-offload": "Look at the guest: no ordinary network driver sends it.",
  "tcp-flags": notPolicy,
  gso: "Look at the guest: no ordinary network driver sends it.",
  "flow-table-full": "Raise `limits.flows`, or look at what in the guest opens so many connections.",
  "fragment-table-full": faulty,
  "redirect-table-full": "Look at what in the guest asks so much: 512 questions and 2,048 connections that the agent looks into can be open at a time; how many may begin a second, and do, is in `enforcer_begun`.",
  "address-table-full": "Give the guest fewer addresses, or raise `limits.guest_addresses`. An address that the guest sends nothing from for two minutes makes room. An address that the host has is never the guest's.",
  "agent-gone": "Start the agent, or attach again. Until then names are not resolved, and connections by name that it would look into are refused.",
  "not-enforced": "Attach the tap. Until then it passes nothing through these programs.",
  "map-missing": faulty,
  rewrite: faulty,
  "unsolicited-answer": "Nothing, if there are few: an answer that came too late for its question.",
};

/** Outcomes of a DNS query that are shown as refusals, and what a person does about them. */
const refusals = {
  denied: "Allow the name, or `allow: public` if every name may be resolved.",
  blocked: "Take the name off the block list. Names of the host, of metadata endpoints and of private ranges need a rule that names them exactly.",
  unmatchable: "Look at what in the guest asks: a label with a dot, blank, backslash or an octet outside printable ASCII.",
  rebind: "If the name may have that address, say so under `dns.allow_private`, or allow the address by a rule without ports.",
  target: "Allow the name that the answer leads to, or take it off the block list.",
};

/** Reasons of bpf/abi.h in order: {name, comment}. Lower case with dashes, as everywhere outside the kernel. */
export function reasonsOf(abi) {
  const body = /enum reason \{([\s\S]*?)\n\};/.exec(abi)?.[1];
  if (body === undefined) throw new Error("bpf/abi.h has no enum reason");
  return [...body.matchAll(/^\s*REASON_(\w+)\s*(?:=\s*\d+\s*)?,\s*(?:\/\*\s*(.*?)\s*\*\/)?\s*$/gm)]
    .map(([, name, comment]) => ({ name: name.toLowerCase().replaceAll("_", "-"), comment: comment ?? null }))
    .filter(({ name }) => name !== "unknown" && name !== "max");
}

/** Elements of the array `outcomes` in src/dns/metrics.ts with their comments. */
export function outcomesOf(source) {
  const body = /export const outcomes = \[([\s\S]*?)\] as const/.exec(source)?.[1];
  if (body === undefined) throw new Error("src/dns/metrics.ts has no outcomes");
  return [...body.matchAll(/"([\w-]+)",(?:\s*\/\/\s*(.*))?/g)].map(([, name, comment]) => ({ name, comment: comment?.trim() ?? null }));
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}`.replace(/([^.])$/, "$1.");
const cell = (text) => text.replaceAll("|", "\\|");
const table = (head, rows) => [`| ${head.join(" | ")} |`, `|${head.map(() => "---").join("|")}|`, ...rows.map((row) => `| ${row.map(cell).join(" | ")} |`)].join("\n");
const generated = (what) => `<!-- Generated by scripts/gen-docs.mjs from ${what}. Edit that and run it again. -->`;

function complete(kind, names, texts) {
  const missing = names.filter((name) => !Object.hasOwn(texts, name));
  const surplus = Object.keys(texts).filter((name) => !names.includes(name));
  if (missing.length > 0) throw new Error(`scripts/gen-docs.mjs has no text for ${kind}: ${missing.join(", ")}`);
  if (surplus.length > 0) throw new Error(`scripts/gen-docs.mjs has a text for what is no ${kind}: ${surplus.join(", ")}`);
}

/** @param verdictOf name of a reason → allow, deny or redirect; as the agent counts it. */
export function reasonsPage({ abi, outcomes, verdictOf, connectionOutcomes, httpReasons }) {
  const reasons = reasonsOf(abi);
  const names = reasons.map(({ name }) => name);
  complete("reason", names, advice);
  complete("reason without a comment", reasons.filter(({ comment }) => comment === null).map(({ name }) => name), meanings);
  const known = outcomesOf(outcomes);
  const shown = Object.keys(refusals).map((name) => known.find((outcome) => outcome.name === name) ?? { name, comment: null });
  complete("outcome", shown.filter(({ comment }) => comment !== null).map(({ name }) => name), refusals);
  const rows = (wanted) => reasons.filter(({ name }) => (verdictOf(name) === "deny") === wanted)
    .map(({ name, comment }) => [`\`${name}\``, verdictOf(name), sentence(comment ?? meanings[name]), advice[name]]);
  return `# Reasons

${generated("enum reason of bpf/abi.h, src/dns/metrics.ts, src/tls/reasons.ts and src/tls/http/refusal.ts")}

Every packet is counted under one reason. The same word stands in the line that \`enforcer attach\` prints for a denial, in
its JSON (\`reason\`), and in the label \`reason\` of the metric \`enforcer_packets_total\`.

## Denied

${table(["reason", "verdict", "meaning", "what to do"], rows(true))}

## Allowed or redirected

${table(["reason", "verdict", "meaning", "what to do"], rows(false))}

## Lookups that are refused

These stand in lines that begin with \`refused dns\` (JSON: event \`dns-denied\`), and as label \`outcome\` in
\`enforcer_dns_queries_total\`. All outcomes are listed in [METRICS.md](METRICS.md); what each is answered with, in [DNS.md](DNS.md).

${table(["outcome", "meaning", "what to do"], shown.map(({ name, comment }) => [`\`${name}\``, sentence(comment), refusals[name]]))}

## Connections that are looked into

What comes of a connection whose name must be looked at ([TLS.md](TLS.md)): label \`outcome\` of \`enforcer_tls_connections_total\`.
Refusals stand in lines that begin with \`refused connection\` (JSON: event \`tls-denied\`).

${table(["outcome", "meaning"], Object.entries(connectionOutcomes).map(([name, text]) => [`\`${name}\``, sentence(text)]))}

## Requests that are refused

Label \`reason\` of \`enforcer_http_refused_total\`; the guest gets an answer that says the same.

${table(["reason", "meaning"], Object.entries(httpReasons).map(([name, text]) => [`\`${name}\``, sentence(text)]))}
`;
}

export function errorsPage({ errorKinds, exitStatuses }) {
  const nameOf = (status) => Object.entries(exitStatuses).find(([, number]) => number === status)?.[0] ?? String(status);
  const words = {
    ok: "All is well, or it was ended by a signal; \`enforcer attach\` has then detached", failed: "The command ran and its answer is no",
    usage: "The command line is wrong", data: "A policy or a name given is wrong", unavailable: "Something that is needed is not there or is taken",
    software: "A fault of the program itself; please report it", osError: "The kernel refused something", noPermission: "Not root",
    config: "The machine or the configuration must be changed first",
  };
  complete("exit status", Object.keys(exitStatuses), words);
  return `# Errors

${generated("src/errors.ts")}

An error is one message on standard error, with its remedy and code:

\`\`\`text
enforcer: there is no device tap9 in this network namespace
  remedy: create the tap first: ip tuntap add tap9 mode tap [E_TAP_MISSING]
\`\`\`

With \`--json\` the same is one object on standard output: \`{"event":"error","code":…,"message":…,"remedy":…}\`. The message
names the place; a more exact remedy may stand in place of the one below. Codes are stable.

${table(["code", "exit status", "remedy"], Object.entries(errorKinds).map(([code, { exit, remedy }]) => [`\`${code}\``, `${exit} ${nameOf(exit)}`, sentence(remedy)]))}

## Exit statuses

${table(["status", "name", "meaning"], Object.entries(exitStatuses).map(([name, number]) => [String(number), name, sentence(words[name])]))}
`;
}

/** @param registry metrics as prom-client holds them: name, help, type, labelNames. */
export function metricsPage({ metrics, outcomes }) {
  const known = outcomesOf(outcomes);
  const text = (outcome) => outcome.comment ?? {
    "upstream-failed": "no upstream gave a usable answer", "rate-limit": "over the queries a second", "in-flight-limit": "over the queries in flight", "not-implemented": "opcode that is not served",
  }[outcome.name];
  const silent = known.filter((outcome) => text(outcome) === undefined).map(({ name }) => name);
  if (silent.length > 0) throw new Error(`src/dns/metrics.ts has outcomes without a comment: ${silent.join(", ")}`);
  const page = `# Metrics

${generated("src/agent/metrics.ts and src/dns/metrics.ts")}

The agent, and \`enforcer attach\` without one, serve Prometheus metrics at \`http://127.0.0.1:9469/metrics\`. The key \`metrics\` of the
agent's configuration and \`--metrics\` name another address, or \`off\`. Numbers are read from the kernel and the resolver when somebody asks. No label is ever a domain name or an address.

${table(["metric", "type", "labels", "meaning"], metrics.map(({ name, type, labelNames, help }) => [`\`${name}\``, type, labelNames.length === 0 ? "none" : labelNames.map((label) => `\`${label}\``).join(" "), help]))}

## Labels

| label | values |
|---|---|
| \`sandbox\` | the name of the sandbox: its tap's, unless it was given another |
| \`direction\` | \`egress\` (guest to world) or \`ingress\` (world to guest) |
| \`verdict\` | \`allow\`, \`deny\` or \`redirect\` |
| \`reason\` | of packets and of requests, see [REASONS.md](REASONS.md) |
| \`outcome\` | of DNS queries, see below; of connections, see [REASONS.md](REASONS.md#connections-that-are-looked-into) |
| \`map\` | \`flows\`, \`pins\`, \`fragments\`; \`addresses\`: what the guest uses of its prefixes, where it has any; \`redirects\`: DNS conversations; \`intercepted\`: connections that the agent looks into, where the policy has any |
| \`kind\` | of pins: \`name\`, \`address\`, or \`address-of-a-name\`: of the name that has most; of what a guest begins: \`query\` (over UDP), \`dns-connection\`, or \`connection\` that the agent looks into |
| \`bound\` | \`names\`, \`addresses\`, \`addresses-per-name\` or \`rules-per-address\` |
| \`source\` | who did not report: \`kernel\`, \`resolver\` or \`tls\` |
| \`secret\` | the name of the secret, which is that of the guest's environment variable |
| \`event\` | of a secret: \`injected\`, \`blocked\`, \`logged\`, \`passed\` (on, with the placeholder), \`scrubbed\` (out of an answer), \`stopped\` (an answer that cannot be scrubbed), \`unavailable\` |
| \`result\` | of a certificate: \`issued\`, \`hits\`, \`evicted\`; of a query to an upstream: \`sent\`, \`answered\`, \`timeouts\`, \`mismatched\` (answers that match no question), \`malformed\`, \`tcp\`, \`errors\` (response codes), \`failed\` (questions that nobody answered) |
| \`le\` | upper edge of a latency bucket, in seconds |

## Outcomes of DNS queries

${table(["outcome", "meaning"], known.map((outcome) => [`\`${outcome.name}\``, sentence(text(outcome))]))}
`;
  const unsaid = [...new Set(metrics.flatMap(({ labelNames }) => labelNames))].filter((label) => !page.includes(`\n| \`${label}\` |`));
  if (unsaid.length > 0) throw new Error(`scripts/gen-docs.mjs has no text for label: ${unsaid.join(", ")}`);
  return page;
}

export const sources = () => ({ abi: readFileSync(join(root, "bpf/abi.h"), "utf8"), outcomes: readFileSync(join(root, "src/dns/metrics.ts"), "utf8") });

/** Stands for an enforcer that has nothing: whatever is asked of it is empty. */
const empty = new Proxy(() => empty, {
  get: (_, key) => (key === "then" ? undefined : key === Symbol.iterator ? function* () { /* nothing */ } : key === Symbol.toPrimitive ? () => 0 : empty),
  apply: () => empty,
});

/** Name, help, type and labels of every metric. */
async function metricsOf(registry) {
  return Promise.all(registry.getMetricsAsArray().map(async (metric) => {
    // One that prom-client did not make says its help and type only when it is asked.
    const { help, type } = metric.help === undefined ? await metric.get() : { help: metric.help, type: metric.constructor.name.toLowerCase() };
    return { name: metric.name, help, type, labelNames: [...(metric.labelNames ?? []), ...(type === "histogram" ? ["le"] : [])] };
  }));
}

/** Page name → text. @param from the modules, from src/ in tests and from dist/ here. */
export async function pages({ errors, counters, Reason, metrics, config, tlsReasons, httpRefusal }) {
  const { abi, outcomes } = sources();
  const verdictOf = (name) => counters.verdictOf(Reason[`REASON_${name.toUpperCase().replaceAll("-", "_")}`]);
  return {
    "docs/REASONS.md": reasonsPage({ abi, outcomes, verdictOf, connectionOutcomes: tlsReasons.connectionOutcomes, httpReasons: httpRefusal.httpReasons }),
    "docs/ERRORS.md": errorsPage({ errorKinds: errors.errorKinds, exitStatuses: errors.ExitStatus }),
    "docs/METRICS.md": metricsPage({ metrics: await metricsOf(metrics.enforcerRegistry(empty)), outcomes }),
    "docs/KERNELS.md": kernelsPage(),
    "docs/agent.schema.json": `${JSON.stringify(config.agentConfigJsonSchema(), null, 2)}\n`,
  };
}

/** What make test-kernels gave. */
const kernelsPage = () => `# Kernels

<!-- Generated by scripts/gen-docs.mjs from test/kernels/results.json. Run make test-kernels and it again. -->

The same programs run on every kernel from Linux 6.1 on. From 6.6 on they are TCX links at the head of the chain; before that they
are clsact filters with handle 1 and priority 1, and a clsact filter that stands there already is not taken over.

\`make test-kernels\` boots Debian's kernels in QEMU, without KVM, on a disk made of this machine's own programs and the built tree,
loads the programs there, and runs the tests named below: kernel programs by test run, and namespaces with a real tap. The last
column is the machine that it ran on. Kernels with PREEMPT_RT (\`-rt\`) are tried when they are named
(\`node test/kernels/run.mjs 6.12-rt\`). A part that is not all green is bold; "not run" means what it says.

${kernelTable(results())}

\`node test/kernels/run.mjs 6.1 --part load\` runs one part on one kernel; another file, such as another
\`bpf/build/enforcer.bpf.o\`, can be put into the guest's tree; see the head of \`test/kernels/run.mjs\`.
`;

/** The modules that were built. */
export async function built() {
  const [errors, counters, layout, metrics, config, tlsReasons, httpRefusal] = await Promise.all(["errors", "kernel/counters", "kernel/layout.gen", "agent/metrics", "config/agent-config", "tls/reasons", "tls/http/refusal"].map((name) => import(new URL(`../dist/${name}.js`, import.meta.url).href)));
  return { errors, counters, Reason: layout.Reason, metrics, config, tlsReasons, httpRefusal };
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  for (const [name, text] of Object.entries(await pages(await built()))) writeFileSync(join(root, name), text);
}
