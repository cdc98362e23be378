/**
 * The agent's state in the API's words.
 *
 * Holds always: reads only; text forms as everywhere in the product; what cannot be read of one sandbox does not hide the others.
 */
import { clockMonotonicCoarse, libbpfVersion } from "../../native/index.js";
import { formatAddress, formatPrefix } from "../addresses/address.js";
import type { Agent } from "../agent/daemon.js";
import type { Known } from "../agent/register.js";
import { begunKinds, begunLimits } from "../agent/sandbox.js";
import { Slices } from "../agent/slices.js";
import { protocolName } from "../agent/verdicts.js";
import { flowParts, type FlowRow } from "../kernel/flows.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import { version } from "../version.js";
import { API_VERSION, type AgentStatus, type FlowsAnswer, type PinsAnswer, type SandboxStatus, type SandboxSummary, type VersionAnswer } from "./schema.js";

const iso = (ms: number): string => new Date(ms).toISOString();
const macText = (mac: Uint8Array): string => [...mac].map((octet) => octet.toString(16).padStart(2, "0")).join(":");

export function versionView(): VersionAnswer { return { version, api: API_VERSION, abi: AbiLimit.ABI_VERSION, libbpf: libbpfVersion(), node: process.version }; }

export function agentView(agent: Agent): AgentStatus {
  const { config } = agent;
  const count = (state: Known["state"]): number => agent.known().filter((known) => known.state === state).length;
  return {
    version, api: API_VERSION, pid: process.pid, since: iso(agent.since), config: config.file, run_dir: config.runDirectory, bpffs: config.bpffs,
    metrics: config.metrics === null ? null : `${config.metrics.host.includes(":") ? `[${config.metrics.host}]` : config.metrics.host}:${config.metrics.port}`,
    mechanism: agent.mechanism, abi: AbiLimit.ABI_VERSION,
    sandboxes: { enforced: count("enforced"), kept: count("kept"), waiting: count("waiting"), most: agent.own.enforcer.slots },
    floor: agent.floor?.file ?? null, watchers: agent.watchers.size,
  };
}

export function summaryView(known: Known): SandboxSummary {
  if (known.state === "waiting") {
    const { name, waiting: { spec, since } } = known;
    return { name, tap: spec.tap, netns: spec.netns ?? null, state: "waiting", ifindex: null, mechanism: null, rules: null, since: iso(since), adopted: false, origin: spec.origin, note: "its tap is not there" };
  }
  if (known.state === "kept") {
    const { name, engine, kept } = known;
    return { name, tap: engine.enforcer.links.get(kept.ifindex)?.name ?? name, netns: engine.netns, state: "kept", ifindex: kept.ifindex, mechanism: null, rules: null, since: null, adopted: true, origin: null, note: kept.reason };
  }
  const { name, engine, sandbox, spec } = known;
  return {
    name, tap: sandbox.facts.name, netns: engine.netns, state: "enforced", ifindex: sandbox.facts.ifindex, mechanism: sandbox.mechanism, rules: sandbox.policy.rules.length,
    since: iso(sandbox.since), adopted: sandbox.adopted, origin: spec.origin, note: null,
  };
}

/** What a guest begins, for people. */
const BEGUN = { query: "queries over UDP begun a second", "dns-connection": "DNS connections begun a second", connection: "connections looked into, begun a second" } as const;

export async function statusView(agent: Agent, known: Known): Promise<SandboxStatus> {
  const summary = summaryView(known);
  const nothing = { slot: null, generation: null, bridge: null, gateways: [], guest: { given: [], mac: null, learned: null }, policy: null, hooks: [], settings: [], notes: [], counters: [], limits: [], events_lost: 0, queries: {}, connections: {} } as const;
  if (known.state === "waiting") return { ...summary, ...nothing, guest: { given: known.waiting.spec.guest ?? [], mac: known.waiting.spec.mac ?? null, learned: null } };
  const { enforcer } = known.engine;
  const counters = (held: Parameters<typeof enforcer.counters>[0]): SandboxStatus["counters"] =>
    enforcer.counters(held).map(({ direction, verdict, reason, packets, bytes }) => ({ direction, verdict, reason, packets: Number(packets), bytes: Number(bytes) }));
  if (known.state === "kept") {
    const { kept } = known;
    return { ...summary, ...nothing, slot: kept.slot, generation: kept.generation, hooks: enforcer.hooks(kept.ifindex), counters: counters(kept), policy: { uid: kept.tables.uid.toString(), file: null, floor: null } };
  }
  const { sandbox, source } = known;
  const learned = enforcer.learned(sandbox), { eventsLost, events, dnsWaiting, begun } = enforcer.limitCounters(sandbox);
  const [dns, tls, fill] = await Promise.all([enforcer.resolverStats(), enforcer.tlsStats(), enforcer.fill(sandbox, new Slices())]);
  const own = ({ slot, generation }: { slot: number; generation: number }): boolean => slot === sandbox.slot && generation === sandbox.generation;
  const names = dns.sandboxes.find(own), looked = tls?.sandboxes.find(own);
  const some = (counts: object | undefined): Record<string, number> => Object.fromEntries(Object.entries((counts ?? {}) as Record<string, number>).filter(([, count]) => count > 0));
  return {
    ...summary, slot: sandbox.slot, generation: sandbox.generation, bridge: sandbox.facts.bridge?.name ?? null, gateways: sandbox.identity.gateways.map(formatAddress),
    guest: {
      given: sandbox.identity.guest.map((prefix) => (prefix.length === 128 ? formatAddress(prefix.bytes) : formatPrefix(prefix))), mac: sandbox.identity.mac === null ? null : macText(sandbox.identity.mac),
      learned: { mac: learned.mac === null ? null : macText(learned.mac), address4: learned.address4 === null ? null : formatAddress(learned.address4), address6: learned.address6 === null ? null : formatAddress(learned.address6) },
    },
    policy: { uid: sandbox.compiled.uid.toString(), file: source.request.file?.path ?? null, floor: agent.floor?.file ?? null },
    hooks: enforcer.hooks(sandbox.facts.ifindex),
    settings: sandbox.preparation.changes.map(({ family, setting, before, after, why }) => ({ family, setting, before, after, why })),
    notes: [...sandbox.preparation.notes, ...sandbox.before.map((program) => `${program} stands before the enforcer and may end the chain`)],
    counters: counters(sandbox),
    limits: [
      ...fill.map(({ map, entries, limit }) => ({ what: map, used: entries, limit })),
      ...(names === undefined ? [] : [
        { what: "names", used: names.pins.names, limit: names.limits.names }, { what: "addresses of one name", used: names.addressesPerName, limit: names.limits.addressesPerName },
        { what: "queries in flight", used: names.inFlight, limit: names.limits.inFlight }, { what: "DNS connections", used: names.connections, limit: names.limits.connections },
      ]),
      { what: "queries that the resolver has not answered", used: dnsWaiting, limit: AbiLimit.DNS_WAITING },
      ...begunKinds.map((kind) => ({ what: BEGUN[kind], used: begun[kind], limit: begunLimits(sandbox.policy)[kind] })),
      { what: "denials told a second", used: events, limit: sandbox.policy.limits.eventsPerSecond },
      ...(looked === undefined ? [] : [{ what: "connections looked into", used: looked.connections, limit: looked.limit }, { what: "octets kept for them", used: looked.buffered, limit: looked.bufferedLimit }]),
      { what: "rule bits", used: sandbox.compiled.bits.length, limit: AbiLimit.MAX_RULES },
    ],
    events_lost: eventsLost, queries: some(names?.queries), connections: some(looked?.outcomes),
  };
}

export async function pinsView(agent: Agent, name: string): Promise<PinsAnswer> {
  const { engine, sandbox } = agent.enforced(name);
  const now = Number(clockMonotonicCoarse() / 1_000_000_000n);
  const [pins, former] = await Promise.all([engine.enforcer.pins(sandbox), engine.enforcer.formerPins(sandbox)]);
  return {
    pins: pins.map((pin) => ({ name: pin.name, address: formatAddress(pin.address), left: pin.expires - now, rules: pin.bits.map((bit) => sandbox.compiled.bits[bit]?.text ?? `bit ${bit}`) })),
    former: former.map((pin) => ({ name: pin.name, address: formatAddress(pin.address), expired: now - pin.expired })),
  };
}

export async function flowsView(agent: Agent, name: string, limit: number): Promise<FlowsAnswer> {
  const { engine, sandbox } = agent.enforced(name);
  const rows: FlowRow[] = [], slices = new Slices();
  let total = 0, taken = 0;
  for (const part of flowParts(sandbox.tables, () => taken++ < limit)) {
    rows.push(...part.rows);
    total += part.count;
    await slices.pause();
  }
  const names = await Promise.all(rows.map(({ remote }) => engine.enforcer.namesOf(sandbox, remote).catch(() => [])));
  return {
    total,
    flows: rows.map((row, i) => ({
      direction: row.direction, protocol: protocolName(row.protocol), guest_port: row.guestPort, remote: formatAddress(row.remote), remote_port: row.remotePort, name: names[i]?.[0] ?? null,
      rule: row.rule === null ? null : row.policy === sandbox.compiled.uid ? (sandbox.compiled.bits[row.rule]?.text ?? null) : "a former policy's",
      lasted: row.lasted === null ? null : Math.round(row.lasted * 1000) / 1000, intercepted: row.intercepted,
    })),
  };
}
