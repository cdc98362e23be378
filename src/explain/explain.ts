/**
 * Why a sandbox may or may not reach something: the verdict, every fact that it hangs on, and what would have to change.
 *
 * Holds always: pure; the verdict on a flow is that of judgeFlow, which is held to the kernel program, so that the explanation and
 * the kernel cannot say different things; the floor is judged beside the policy, and both must allow. For a name without an address
 * the verdict is that of its lookup, and then of a flow to a public address that this name would be pinned to.
 * Does not: look at packets (identity, form, limits), or ask a resolver anything.
 */
import { type Address, type Prefix, compareBytes, formatAddress, formatPrefix, isV4, parseAddress, parsePrefix, prefixContains } from "../addresses/address.js";
import { type Group, type GroupTable, classify, place } from "../addresses/groups.js";
import { metadataPrefixes, specialPurpose } from "../addresses/tables.gen.js";
import { protocolName } from "../agent/verdicts.js";
import { ruleText } from "../policy/bits.js";
import { BlockJudge } from "../policy/blocklist.js";
import { coversAddress, coversName, explicitGroups, patternsOf } from "../policy/coverage.js";
import { judgeFlow, speaksOf, type FlowVerdict } from "../policy/flow-judge.js";
import { inspectionOf } from "../policy/inspection.js";
import { NameJudge, type NameVerdict } from "../policy/judge.js";
import { formatPorts } from "../policy/rules.js";
import { type Direction, isForeign, type Policy, Proto, type Rule } from "../policy/types.js";
import { ConnectionJudge } from "../tls/judge.js";

/** What a sandbox was told of an address or a name. */
export interface PinFact { readonly labels: readonly string[]; readonly address: Address; /** Seconds that are left; negative or 0: expired that long ago. */ readonly left: number }

export interface ExplainFacts {
  readonly sandbox: string;
  readonly policy: Policy;
  readonly floor: Policy | null;
  readonly groups: GroupTable;
  readonly pins: readonly PinFact[];
  /** Other sandboxes that were told the address, and for which name. */
  readonly others: readonly { readonly sandbox: string; readonly name: string }[];
  /** Prefixes that the operator added to groups. */
  readonly configured: Partial<Record<Group, readonly string[]>>;
  /** Addresses that the host owns. */
  readonly hostAddresses: readonly Address[];
  /** Domains of the host's search list, as the resolver has them. */
  readonly localSuffixes: readonly (readonly string[])[];
}

export interface ExplainQuestion {
  readonly direction: Direction;
  /** One of both at least. */
  readonly address: Address | null;
  readonly name: readonly string[] | null;
  readonly protocol: number;
  readonly port: number;
}

export interface RuleFact { readonly number: number; readonly text: string; readonly file: string; readonly line: number | null }

/** One policy's word on one flow. */
export interface Judgement {
  readonly policy: "policy" | "floor";
  readonly verdict: "allow" | "deny";
  readonly reason: string;
  /** null: a default. */
  readonly rule: RuleFact | null;
}

export type PinState = "live" | "expired" | "other-name" | "other-sandbox" | "never-asked";

/** A name that was told, and that no allow of a policy opens: on its block list, or of a kind that needs a rule of its own. */
interface Barred { readonly labels: readonly string[]; readonly verdict: NameVerdict }

export interface FlowExplanation {
  readonly address: string;
  readonly group: Group;
  /** What put it into its group. */
  readonly group_source: string;
  readonly verdict: "allow" | "deny" | "redirect";
  readonly reason: string;
  readonly judged: readonly Judgement[];
  /** Where the agent looks who is meant: what comes of a connection that carries the name asked about; null: no name was, or it does not look. */
  readonly connection: "allowed" | "name-denied" | "not-pinned" | null;
  readonly pin: PinState;
  readonly pins: readonly { readonly name: string; readonly left: number; readonly counts: boolean }[];
}

export interface Explanation {
  readonly sandbox: string;
  readonly question: { readonly direction: Direction; readonly name: string | null; readonly address: string | null; readonly protocol: string; readonly port: number | null };
  readonly verdict: "allow" | "deny" | "redirect";
  readonly reason: string;
  /** For a name: may it be looked up, by each policy? */
  readonly lookup: { readonly allowed: boolean; readonly judged: readonly { readonly policy: "policy" | "floor"; readonly allowed: boolean; readonly reason: string; readonly rule: RuleFact | null }[] } | null;
  readonly flows: readonly FlowExplanation[];
  /** Sentences, in order. */
  readonly why: readonly string[];
  /** What would have to change for the other verdict. */
  readonly change: readonly string[];
}

export function explain(facts: ExplainFacts, question: ExplainQuestion): Explanation {
  const { name, address, direction, protocol, port } = question;
  const ported = protocol === Proto.tcp || protocol === Proto.udp;
  const why: string[] = [], change: string[] = [];
  const lookup = name === null || direction === "ingress" ? null : lookUp(facts, name, why, change);

  // An echo request of one IP version goes to the addresses of that version only.
  const sendable = (one: Address): boolean => protocol !== (isV4(one) ? Proto.icmpv6 : Proto.icmp);
  const addresses = address !== null ? [address] : unique(facts.pins.filter((pin) => pin.left > 0 && same(pin.labels, name!) && sendable(pin.address)).map((pin) => pin.address));
  const flows = addresses.map((one) => explainFlow(facts, question, one, why, change));
  let verdict: Explanation["verdict"], reason: string;
  if (lookup !== null && !lookup.allowed && address === null) {
    [verdict, reason] = ["deny", "lookup"];
  } else if (flows.length > 0) {
    // Of several addresses one that is denied is what the guest will meet.
    [verdict, reason] = outcome(flows.find((flow) => outcome(flow)[0] === "deny") ?? flows[0]!);
  } else {
    const told = facts.pins.filter((pin) => same(pin.labels, name!) && sendable(pin.address)), other = facts.pins.some((pin) => pin.left > 0 && same(pin.labels, name!));
    why.push(told.length === 0 ? other ? `this sandbox was told no ${protocol === Proto.icmp ? "IPv4" : "IPv6"} address of ${display(name!)}` : `${display(name!)} was never asked for by this sandbox, so no address of it is known here` : `${display(name!)} was told ${told.map(({ address: one, left }) => `${formatAddress(one)} until ${seconds(-left)} ago`).join(", ")}`);
    const assumed = { ...facts, pins: [{ labels: name!, address: publicAddress(facts, sendable), left: 60 }] };
    const advice: string[] = [];
    const flow = explainFlow(assumed, question, assumed.pins[0]!.address, [], advice);
    // Of the address that stands for any, nothing is advised.
    change.push(...advice.filter((one) => !one.includes(formatAddress(assumed.pins[0]!.address))));
    [verdict, reason] = outcome(flow);
    const deciding = flow.judged.find((judged) => judged.verdict === (verdict === "deny" ? "deny" : "allow")) ?? flow.judged[0];
    why.push(`a public address that it has would be ${verdict === "deny" ? "denied" : "allowed"} under that name: ${deciding?.rule === null || deciding === undefined || reason === "quic" ? reasonText(reason) : ruleWords(deciding.rule)}${flow.connection === null ? "" : ", and the agent looks at the name that the connection carries"}`);
  }
  if (verdict !== "deny") change.length = 0;
  return {
    sandbox: facts.sandbox, question: { direction, name: name === null ? null : display(name), address: address === null ? null : formatAddress(address), protocol: protocolName(protocol), port: ported ? port : null },
    verdict, reason, lookup, flows, why, change: [...new Set(change)],
  };
}

/** What the guest meets: behind the packet path's word, the agent's own where it looks who is meant. */
function outcome({ verdict, reason, connection }: FlowExplanation): [Explanation["verdict"], string] {
  if (reason !== "intercepted" || connection === null) return [verdict, reason];
  return connection === "allowed" ? ["allow", "intercepted"] : ["deny", connection];
}

/** One flow, in both policies. Its verdict and reason are those of the kernel program. */
export function explainFlow(facts: ExplainFacts, question: ExplainQuestion, address: Address, why: string[] = [], change: string[] = []): FlowExplanation {
  const { policy, floor, groups, pins } = facts;
  const { direction, protocol, port, name } = question;
  const placing = place(groups, address);
  const { group } = placing;
  const here = pins.filter((pin) => compareBytes(pin.address, address) === 0);
  const live = here.filter(({ left }) => left > 0), expired = here.filter(({ left }) => left <= 0);
  const ask = { direction, address, protocol, port, names: live.map(({ labels }) => labels), expired: expired.map(({ labels }) => labels) };
  const where = `${formatAddress(address)}${protocol === Proto.tcp || protocol === Proto.udp ? ` ${protocolName(protocol)} ${port}` : ` ${protocolName(protocol)}`}`;
  const source = groupSource(facts, address, placing);
  why.push(`${formatAddress(address)} is in group ${group}: ${source}`);

  const judgements: { readonly judged: Judgement; readonly flow: FlowVerdict; readonly of: Policy; readonly barred: readonly Barred[] }[] = [];
  for (const [which, of] of [["policy", policy], ["floor", floor]] as const) {
    if (of === null) continue;
    const judge = new NameJudge(of, { groups, localSuffixes: () => facts.localSuffixes });
    const barred = [...ask.names, ...ask.expired].map((labels) => ({ labels, verdict: judge.judge(labels) })).filter(({ verdict: { allowed, reason, special } }) => !allowed && (reason === "blocked" || special !== undefined));
    const flow = judgeFlow(of, groups, { ...ask, guarded: barred.map(({ labels }) => labels), inspect: true });
    judgements.push({ of, flow, barred, judged: { policy: which, verdict: flow.verdict, reason: flow.reason, rule: flow.rule === null ? null : ruleFact(of.rules[flow.rule]!) } });
  }
  const own = judgements[0]!;
  const pin: PinState = name !== null && live.some(({ labels }) => same(labels, name)) ? "live" : name === null && live.length > 0 ? "live"
    : live.length > 0 ? "other-name" : expired.length > 0 ? "expired" : facts.others.length > 0 ? "other-sandbox" : "never-asked";
  let connection: FlowExplanation["connection"] = null;
  const answer = (verdict: FlowExplanation["verdict"], reason: string): FlowExplanation => ({
    address: formatAddress(address), group, group_source: source, verdict, reason, judged: judgements.map(({ judged }) => judged), connection, pin,
    pins: here.map(({ labels, left }) => ({ name: display(labels), left, counts: left > 0 && own.flow.counted.some((one) => same(one, labels)) && !explicitGroups.includes(group) })),
  });

  if (direction === "egress" && port === 53 && (protocol === Proto.tcp || protocol === Proto.udp) && unicast(address)) {
    why.push("port 53 goes to the agent's resolver, whatever address is aimed at");
    return answer("redirect", "dns-redirect");
  }
  if (direction === "egress" && port === 853 && protocol === Proto.tcp && unicast(address) && inspectionOf(policy).dot) {
    why.push("DNS over TLS is ended by the agent, which answers it itself, whatever address is aimed at");
    return answer("redirect", "intercepted");
  }
  if (direction === "egress" && protocol === Proto.udp && (port === 67 && (group === "host" || formatAddress(address) === "255.255.255.255") || port === 547 && formatAddress(address) === "ff02::1:2")) {
    why.push(`a DHCP client (from port ${port === 67 ? 68 : 546}) reaches ${port === 67 ? "its gateway and the broadcast address" : "it"} whatever the rules say; what follows is of other packets`);
  }
  const matters = (direction === "egress" || live.length > 0) && [policy, floor].some((one) => one !== null && one.rules.some((rule) => patternsOf(rule).length > 0));
  if (matters) pinSentences(facts, question, address, { live, expired, pin, group }, why);
  for (const { judged, flow, of, barred } of judgements) {
    const whose = judged.policy === "floor" ? "the floor" : "the policy";
    if (judged.reason === "quic") why.push(`${whose} denies ${where}: ${reasonText("quic")}`);
    else if (judged.rule !== null) why.push(`${whose} ${judged.verdict === "allow" ? "allows" : "denies"} ${where} by ${ruleWords(judged.rule)}`);
    else why.push(`${whose} ${judged.verdict === "allow" ? "allows" : "denies"} ${where}: ${reasonText(judged.reason)}`);
    if (judged.verdict !== "deny") continue;
    for (const { labels, verdict } of barred) why.push(`what was told for ${display(labels)} opens nothing: ${lookupWords(verdict)}${judged.policy === "floor" ? " (the floor)" : ""}`);
    changes(of, judged, flow, question, address, group, { live, expired, pin, barred }, why, change);
  }
  // Where the policy allows and the floor does not, the packet path says so and no more.
  const refusing = own.judged.verdict === "allow" ? judgements.find(({ judged }) => judged.verdict === "deny") : undefined;
  if (refusing !== undefined) return answer("deny", refusing.judged.reason === "quic" ? "quic" : "floor");
  if (own.judged.verdict === "deny" || !judgements.some(({ flow }) => flow.inspected)) return answer(own.judged.verdict, own.judged.reason);
  const plain = port === 80 && !policy.tls.ports.includes(80);
  why.push(`the agent looks at ${plain ? "the Host of each request" : "the server name of the TLS handshake"}: it must be allowed, and told to this sandbox for that address`);
  if (name !== null) {
    const judge = new ConnectionJudge(policy, floor), spoken = judge.judge(groups, { address, port, labels: name, pinned: live.some(({ labels }) => same(labels, name)) });
    connection = spoken.reason;
    const blocking = ([["", policy], ["in the floor, ", floor]] as const).flatMap(([whose, of]) => (of !== null && new BlockJudge(of.dns.block).blocks(name) ? [whose] : []));
    why.push(`a connection that names ${display(name)} ${spoken.reason === "allowed" ? `is let through${spoken.rule === null ? "" : ` by ${ruleWords(ruleFact(spoken.rule))}`}` : spoken.reason === "not-pinned" ? "is refused: this sandbox was not told that the name is there" : `is refused${spoken.rule === null ? blocking.length > 0 ? ": the name is on the block list" : ": no rule allows the name" : ` by ${ruleWords(ruleFact(spoken.rule))}`}`}`);
    if (spoken.reason === "not-pinned") change.push(`let the guest look ${display(name)} up and use the address that it is told`);
    else if (spoken.reason === "name-denied" && blocking.length > 0) change.push(...blocking.map((whose) => `${whose}take ${display(name)} off the block list`));
    else if (spoken.reason === "name-denied") change.push(spoken.rule === null ? `allow the name: \`allow: ${display(name)}\`` : `change ${ruleWords(ruleFact(spoken.rule))}`);
    else if (judge.intercepts && !plain) why.push(judge.decrypts(name) ? `its TLS is ended by the agent and begun again toward the server (tls.intercept${policy.tls.intercept ? "" : " of the floor"})` : "its TLS is passed on as it is (tls.bypass)");
    for (const { rules } of [policy, ...(floor === null ? [] : [floor])]) {
      const shaped = rules.find((rule) => rule.http !== undefined && rule.direction === "egress" && coversName(rule, name) && speaksOf(rule, protocol, port));
      if (shaped !== undefined && spoken.reason === "allowed") why.push(`requests are also held to ${ruleWords(ruleFact(shaped))}`);
    }
  } else {
    const told = live.filter(({ labels }) => new ConnectionJudge(policy, floor).judge(groups, { address, port, labels, pinned: true }).reason === "allowed");
    why.push(told.length === 0 ? "no name that this sandbox was told for the address would be let through" : `let through is what names ${told.map(({ labels }) => display(labels)).join(" or ")}`);
  }
  return answer("redirect", "intercepted");
}

function lookUp(facts: ExplainFacts, name: readonly string[], why: string[], change: string[]): Explanation["lookup"] {
  const judged: { policy: "policy" | "floor"; allowed: boolean; reason: string; rule: RuleFact | null }[] = [];
  for (const [which, of] of [["policy", facts.policy], ["floor", facts.floor]] as const) {
    if (of === null) continue;
    const verdict = new NameJudge(of, { groups: facts.groups, localSuffixes: () => facts.localSuffixes }).judge(name);
    const rule = verdict.rule === null ? null : ruleFact(of.rules[verdict.rule]!);
    judged.push({ policy: which, allowed: verdict.allowed, reason: verdict.special ?? verdict.reason, rule });
    const whose = which === "floor" ? "the floor" : "the policy";
    why.push(`${whose} ${verdict.allowed ? "lets" : "does not let"} ${display(name)} be looked up: ${rule === null ? lookupWords(verdict) : ruleWords(rule)}`);
    if (verdict.allowed) continue;
    const place = which === "floor" ? "in the floor, " : "";
    if (verdict.reason === "blocked") change.push(`${place}take ${display(name)} off the block list`);
    else if (of.noNet) change.push(`${place}attach it without --no-net`);
    else if (rule !== null) change.push(`${place}change ${ruleWords(rule)}, or put \`allow: ${display(name)}\` before it`);
    else change.push(`${place}add \`allow: ${display(name)}\`${verdict.special === undefined ? " (or `allow: public` for every name)" : ": a name of this kind needs a rule of its own"}`);
  }
  return { allowed: judged.every(({ allowed }) => allowed), judged };
}

function lookupWords({ reason, special, allowed }: NameVerdict): string {
  if (special === "metadata") return "it names a metadata endpoint, and no rule names it";
  if (special === "local") return "it names the host or its network, and no rule names it";
  if (special === "reverse") return "it asks for the name of an address that is not public, and no rule names it";
  if (special === "malformed") return "it has a label that no rule can match";
  if (reason === "blocked") return "it is on the block list";
  return allowed ? "the default allows" : "no rule names it, and the default denies";
}

function pinSentences({ others, sandbox }: ExplainFacts, { name }: ExplainQuestion, address: Address, { live, expired, pin, group }: { live: readonly PinFact[]; expired: readonly PinFact[]; pin: PinState; group: Group }, why: string[]): void {
  const text = formatAddress(address);
  for (const { labels, left } of live) why.push(`${text} is pinned as ${display(labels)} for another ${seconds(left)}`);
  for (const { labels, left } of expired) why.push(`its pin as ${display(labels)} expired ${seconds(-left)} ago: new flows need a new answer, established ones go on`);
  if (pin === "other-name") why.push(`${sandbox} was not told ${text} as ${display(name!)}: it is pinned under another name`);
  if (pin === "never-asked" && (group === "public" || name !== null)) why.push(`${sandbox} was never told ${text} in an answer${name === null ? "" : ` for ${display(name)}`}`);
  if (live.length === 0 && others.length > 0) why.push(`${text} was told to ${others.slice(0, 3).map((other) => `${other.sandbox} (${other.name})`).join(", ")}: that grants ${sandbox} nothing`);
  if (live.length > 0 && explicitGroups.includes(group)) why.push(`names never open addresses of group ${group}: a rule must name the address or the group`);
}

/** What in one policy would have to change; also rules that come near. */
function changes(policy: Policy, judged: Judgement, flow: FlowVerdict, question: ExplainQuestion, address: Address, group: Group, { live, expired, pin, barred }: { live: readonly PinFact[]; expired: readonly PinFact[]; pin: PinState; barred: readonly Barred[] }, why: string[], change: string[]): void {
  const { direction, protocol, port, name } = question;
  const place = judged.policy === "floor" ? "in the floor, " : "";
  const ported = protocol === Proto.tcp || protocol === Proto.udp;
  const allowing = (what: string): string => ruleOf(what, question);
  if (policy.noNet) return void change.push(`${place}attach it without --no-net`);
  if (judged.reason === "name-service") return void change.push("nothing opens this port: let the guest use ordinary DNS on port 53");
  if (judged.reason === "dhcp-server") return void change.push("nothing opens this port: a guest speaks DHCP as a client only");
  if (judged.reason === "quic") return void change.push("nothing opens QUIC where names are looked at: clients fall back to TCP by themselves");
  if (judged.reason === "extension-header") return void change.push("nothing: such a number names no protocol in an IPv6 packet");
  if (judged.reason === "protocol") {
    change.push(isForeign(protocol, isV4(address) ? 4 : 6) ? "nothing: the protocol is of the other IP version" : `${place}add a rule that names the protocol: ${allowing(formatAddress(address))}`);
    return;
  }
  if (flow.rule !== null) {
    const later = policy.rules.slice(flow.rule + 1).find((rule) => rule.action === "allow" && rule.direction === direction && speaksOf(rule, protocol, port) && (coversAddress(rule, address, group) || flow.counted.some((one) => coversName(rule, one))));
    change.push(`${place}change ${ruleWords(judged.rule!)}${later === undefined ? ", or put an allow rule before it" : `, or put ${ruleWords(ruleFact(later))} before it`}`);
    return;
  }
  for (const rule of policy.rules) {
    if (rule.action !== "allow" || rule.direction !== direction || speaksOf(rule, protocol, port)) continue;
    if (!coversAddress(rule, address, group) && !live.some(({ labels }) => coversName(rule, labels)) && !(name !== null && coversName(rule, name))) continue;
    why.push(`${ruleWords(ruleFact(rule))} speaks of ${rule.ports === null ? (rule.protos ?? []).map(protocolName).join(", ") : `${rule.ports.length === 1 && rule.ports[0]!.first === rule.ports[0]!.last ? "port" : "ports"} ${formatPorts(rule.ports)}${rule.protos === null ? "" : ` of ${rule.protos.map(protocolName).join(", ")}`}`}`);
    const otherProtocol = rule.protos?.includes(protocol) === false, otherPort = rule.ports?.every(({ first, last }) => port < first || port > last) === true;
    // A rule with ports never speaks of what has none.
    if (!ported && rule.ports !== null) continue;
    change.push(`${place}add ${otherProtocol && otherPort && ported ? `${protocolName(protocol)} and port ${port}` : ported && otherPort ? `${protocolName(protocol)} port ${port}` : protocolName(protocol)} to ${ruleWords(ruleFact(rule))}`);
  }
  if (direction === "ingress") return void change.push(`${place}add ${allowing(formatAddress(address))}`);
  if (explicitGroups.includes(group)) return void change.push(`${place}allow the address itself: ${allowing(formatAddress(address))}${group === "metadata" ? "; leave it, unless the guest must have the host's credentials" : ""}`);
  const known = name ?? live[0]?.labels ?? expired[0]?.labels ?? null;
  const naming = policy.rules.find((rule) => rule.action === "allow" && rule.direction === "egress" && speaksOf(rule, protocol, port) && known !== null && coversName(rule, known));
  const bar = known === null ? undefined : barred.find(({ labels }) => same(labels, known));
  if (bar?.verdict.reason === "blocked") change.push(`${place}take ${display(known!)} off the block list`);
  else if (bar !== undefined) change.push(`${place}allow the name: ${allowing(display(known!))}`);
  else if (naming !== undefined && pin === "expired") change.push(`let the guest look ${display(known!)} up again: the old answer has expired`);
  else if (naming !== undefined && (pin === "never-asked" || pin === "other-name" || pin === "other-sandbox")) change.push(`let the guest look ${display(known!)} up through its own resolver and use the address that it is told`);
  else if (known !== null) change.push(`${place}allow the name: ${allowing(display(known))}`);
  if (group === "private" || group === "link-local" || group === "multicast" || group === "reserved" || known === null || bar !== undefined || naming === undefined) change.push(`${place}allow the address: ${allowing(formatAddress(address))}`);
}

/** A rule as one may copy it into the list of a policy file. */
function ruleOf(what: string, { direction, protocol, port }: ExplainQuestion): string {
  // A colon ends a key, also within an address.
  const keys = [`allow: ${what.includes(":") ? `"${what}"` : what}`, ...(direction === "ingress" ? ["direction: ingress"] : []), `proto: ${([Proto.tcp, Proto.udp, Proto.icmp, Proto.icmpv6] as readonly number[]).includes(protocol) ? protocolName(protocol) : protocol}`, ...(protocol === Proto.tcp || protocol === Proto.udp ? [`ports: [${port}]`] : [])];
  return `\`{${keys.join(", ")}}\``;
}

/** In words: what put an address into its group. */
function groupSource({ configured, hostAddresses, groups }: ExplainFacts, address: Address, { group, prefix, embedded }: { group: Group; prefix: Prefix; embedded: Address | null }): string {
  const inside = embedded ?? address;
  const by = embedded === null ? "" : `it embeds ${formatAddress(embedded)}, which is in that group: `;
  const added = (configured[group] ?? []).find((text) => holds(text, inside));
  if (added !== undefined) return `${by}the agent's configuration adds ${added} (groups.${group})`;
  if (group === "host" && hostAddresses.some((own) => compareBytes(own, inside) === 0)) return `${by}an address of the host`;
  if (group === "host") return `${by}${formatPrefix(prefix)} is the host's own, or a gateway that was given`;
  const metadata = group === "metadata" ? metadataPrefixes.find(({ prefix: text }) => holds(text, inside)) : undefined;
  if (metadata !== undefined) return `${by}${metadata.prefix}, ${metadata.name} (data/metadata_endpoints.tsv)`;
  const special = specialPurpose.filter((entry) => entry.group === group && holds(entry.prefix, inside)).at(-1);
  if (special !== undefined) return `${by}${special.prefix}, ${special.name} (data/special_purpose.tsv)`;
  if (group === "public") return "no other group holds it";
  if (group === "private") return `${by}${formatPrefix(prefix)} is on a link of the host, or routed by one`;
  if (group === "multicast") return `${by}the broadcast address of a tap's subnet`;
  return classify(groups, inside) === group && !isV4(inside) && (inside[0]! & 0xe0) !== 0x20 ? `${by}outside 2000::/3, which alone holds public IPv6 addresses` : `${by}${formatPrefix(prefix)}`;
}

function holds(text: string, address: Address): boolean {
  const single = parseAddress(text);
  if (single !== null) return compareBytes(single, address) === 0;
  const prefix = parsePrefix(text);
  return prefix !== null && prefixContains(prefix, address);
}

/** Where the packet path sends port 53 to the resolver. */
function unicast(address: Address): boolean {
  if (isV4(address)) return address[12]! > 0 && address[12]! < 224;
  return address[0] !== 0xff && address.some((octet) => octet !== 0);
}

/** A public address that no rule names by prefix, if there is one among these. */
function publicAddress({ policy, floor, groups }: ExplainFacts, sendable: (one: Address) => boolean): Address {
  const rules = [...policy.rules, ...(floor?.rules ?? [])].filter((rule) => rule.destination.kind === "prefix" || rule.destination.kind === "doh");
  const candidates = ["93.184.216.34", "198.41.0.4", "151.101.1.1", "2606:2800:220:1::1", "104.16.0.1", "13.107.4.50", "2a04:4e42::1", "5.9.0.1", "62.4.16.1", "81.200.64.1"].map((text) => parseAddress(text)!).filter(sendable);
  return candidates.find((one) => classify(groups, one) === "public" && !rules.some((rule) => coversAddress(rule, one, "public"))) ?? candidates[0]!;
}

const defaults: Readonly<Record<string, string>> = {
  "default-allow": "no rule matches, and the default allows",
  "no-pin": "no rule matches, the default denies, and this sandbox was not told the address under a name that a rule opens",
  "pin-expired": "no rule matches now, the default denies, and the pin that may have allowed it has expired",
  "ingress-default": "no rule of direction ingress matches, and the default denies",
  "name-service": "the port carries another name service, which would let a guest hear names that nobody judged",
  "dhcp-server": "only a DHCP server speaks to this port, and a guest is none",
  protocol: "no rule names the protocol",
  "extension-header": "the number is that of a header of IPv6 itself, behind which a protocol stands",
  quic: "UDP to a port where the agent looks who is meant, which QUIC does not show it",
};

function reasonText(reason: string): string { return defaults[reason] ?? (reason.startsWith("default-") ? `no rule matches, and the default denies (group ${reason.slice(8)})` : reason); }

function ruleFact(rule: Rule): RuleFact { return { number: (rule.place.rule ?? rule.index + 1), text: ruleText(rule), file: rule.place.file, line: rule.place.line }; }

function ruleWords({ number, text, file, line }: RuleFact): string { return `rule ${number} (${text}; ${file}${line === null ? "" : `:${line}`})`; }

function display(labels: readonly string[]): string { return labels.length === 0 ? "." : labels.map((label) => label.replace(/[.\\]/g, "\\$&").replace(/[^!-~]/g, (letter) => `\\${String(letter.charCodeAt(0)).padStart(3, "0")}`)).join("."); }

function seconds(count: number): string { return count < 120 ? `${count} s` : count < 7200 ? `${Math.round(count / 60)} min` : `${Math.round(count / 3600)} h`; }

function same(a: readonly string[], b: readonly string[]): boolean { return a.length === b.length && a.every((label, i) => label === b[i]); }

function unique(addresses: readonly Address[]): Address[] { return [...new Map(addresses.map((address) => [formatAddress(address), address])).values()]; }

/** The question as one reads it. */
export function questionText({ question: { direction, name, address, protocol, port } }: Explanation): string {
  const host = name ?? address!;
  return `${direction === "egress" ? "→" : "←"} ${host.includes(":") ? `[${host}]` : host}${port === null ? "" : `:${port}`} ${protocol}`;
}
