/**
 * A laboratory for the kernel programs: one loaded instance with a few sandboxes in it, frames put through the programs by
 * BPF_PROG_TEST_RUN, and what came of each: TC code, reason as counted, event as told.
 *
 * Holds always: devices are taps in a network namespace of its own; nothing is attached and no packet leaves. Every run is
 * counted exactly once, in the counters of one sandbox or among the orphans, with the frame's octets: a run that is not, or
 * whose code does not agree with the verdict of its reason, throws. Runs do not overlap.
 */
import {
  type BpfMap, closeFd, clockMonotonicCoarse, createNetns, openNetns, possibleCpus, RingBuffer, setNetns, Tap, tickNanoseconds,
} from "../../native/index.js";
import { type Address, formatAddress, parseAddress, parsePrefix, type Prefix } from "../../src/addresses/address.js";
import { type GroupTable, groupTable } from "../../src/addresses/groups.js";
import { encodePin, PinEpoch } from "../../src/dns/kernel-pins.js";
import { reasonName, verdictOf, type VerdictName } from "../../src/kernel/counters.js";
import { decodeEvent, type PacketEvent } from "../../src/kernel/events.js";
import { Globals } from "../../src/kernel/globals.js";
import { Instance, type ProgramName } from "../../src/kernel/instance.js";
import { AbiLimit, layouts, Reason } from "../../src/kernel/layout.gen.js";
import { floorUid, type Identity, SandboxTables, slotKey } from "../../src/kernel/sandbox-tables.js";
import { buildPolicy } from "../../src/policy/build.js";
import { type CompiledPolicy, compilePolicy } from "../../src/policy/compile.js";
import { NameJudge } from "../../src/policy/judge.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import type { Policy } from "../../src/policy/types.js";
import { type Bytes, type Endpoints, ip, mac, multicastMac, TCP } from "../lib/frames.js";

/** TC codes (linux/pkt_cls.h): next program, TC_ACT_SHOT, TC_ACT_REDIRECT. */
export const CODE = { next: -1, drop: 2, redirect: 7 } as const;
/** Offsets in struct __sk_buff (linux/bpf.h). */
const SKB = { size: 192, mark: 8, ingressIfindex: 36, ifindex: 40, gsoSegs: 164, gsoSize: 176 } as const;

export const HOST = {
  /** The host's own: gateway of the taps, uplink. */
  gateway4: "10.0.0.1", gateway6: "fd00::1", uplink4: "203.0.114.1", uplink6: "2a00:1::1",
  tapMac: "02:00:00:00:01:01",
} as const;
export const GUEST = { mac: "02:00:00:00:00:02", v4: "10.0.0.2", v6: "fd00::2", linkLocal: "fe80::2" } as const;
/** Addresses of the internet. */
export const SITE = { v4: "93.184.216.34", v6: "2606:4700::34", other4: "151.101.1.69", other6: "2a04:4e42::69" } as const;
/** The agent's resolver, as the programs know it. */
export const RESOLVER = { near: 1 /* lo: it must be there */, v4: "240.0.0.1", v6: "fdee::1", farMac: "02:00:00:00:53:02", nearMac: "02:00:00:00:53:01", net4: "240.0.0.0", net6: "fdee::" } as const;

export const address = (text: string): Address => {
  const parsed = parseAddress(text);
  if (parsed === null) throw new Error(`test: not an address: ${text}`);
  return parsed;
};
export const prefix = (text: string): Prefix => {
  const parsed = parsePrefix(text);
  if (parsed === null) throw new Error(`test: not a prefix: ${text}`);
  return parsed;
};

/** The host of the tests: its addresses, and the networks it reaches without a gateway. */
export const hostGroups = (more: readonly string[] = [], connected: readonly string[] = []): GroupTable => groupTable({
  hostAddresses: [HOST.gateway4, HOST.gateway6, HOST.uplink4, HOST.uplink6, ...more].map(address),
  connectedPrefixes: ["10.0.0.0/24", "203.0.114.0/24", "2a00:1::/64", "fd00::/64", ...connected].map(prefix),
  broadcasts: ["10.0.0.255", "203.0.114.255"].map(address),
});

export interface RunOptions {
  /** Device the packet passes; default that of the first sandbox. */
  readonly ifindex?: number;
  /** Device it came in by (to_guest). */
  readonly ingressIfindex?: number;
  readonly mark?: number;
  readonly gsoSize?: number;
}

export interface Outcome {
  readonly code: number;
  readonly verdict: VerdictName;
  readonly reason: string;
  /** Sandbox in whose counters it was counted; null: orphans. */
  readonly slot: number | null;
  /** What the ring said, for a denial that was told. */
  readonly event: PacketEvent | null;
  /** The frame as the program left it. */
  readonly frame: Bytes;
}

export interface SandboxOptions {
  readonly policy?: string | Policy;
  readonly identity?: Partial<Identity>;
  readonly flows?: number;
  readonly pins?: number;
  readonly eventsPerSecond?: number;
  readonly queriesPerSecond?: number;
  readonly connectionsPerSecond?: number;
  /** Of its prefixes. */
  readonly addresses?: number;
  readonly generation?: number;
  /** There is somebody who looks into connections. */
  readonly inspect?: boolean;
  /** The operator's floor beside the policy. */
  readonly floor?: string | Policy;
}

export interface FlowEntry {
  readonly remote: Address;
  readonly remotePort: number;
  readonly guestPort: number;
  readonly proto: number;
  readonly guest: number;
  readonly policy: bigint;
  readonly rule: number;
  readonly origin: "egress" | "ingress";
  readonly replied: boolean;
  readonly closing: boolean;
  readonly lastSeen: bigint;
}

export interface RedirectEntry { readonly index: number; readonly state: number; readonly outstanding: number; readonly closing: boolean; readonly proto: number; readonly guestPort: number; readonly lastSeen: bigint }

export const policyOf = (text: string, groups?: GroupTable): Policy => buildPolicy({ file: parsePolicyText(text, "test.yaml"), ...(groups === undefined ? {} : { groups }) }).policy;

/** Seconds of CLOCK_MONOTONIC, as the programs read them. */
export const nowSeconds = (): number => Number(clockMonotonicCoarse() / 1_000_000_000n);
export const hz = Math.round(1e9 / tickNanoseconds());

/** Reasons whose packets are answered; see bpf/refuse.h. */
const REFUSED: ReadonlySet<string> = new Set(["quic", "name-service", "policy-changed", "agent-gone"]);

/** Whether what leaves is a refusal and nothing of the frame that was refused: no payload, and headers of our own. */
export function isRefusal(program: ProgramName, code: number, frame: Bytes, left: Bytes): boolean {
  const ip = left[12] === 0x86 ? 40 : 20, proto = left[14 + (ip === 40 ? 6 : 9)], l4 = 14 + ip;
  const toGuest = program === "from_resolver" || frame.subarray(6, 12).every((octet, i) => octet === left[i]);
  const tcp = proto === 6 && left.length === l4 + 20;
  if (code === CODE.redirect) return toGuest && (tcp ? (left[l4 + 13]! & TCP.rst) !== 0 : left.length === l4 + 8 + ip + 8 && (ip === 40 ? proto === 58 && left[l4] === 1 && left[l4 + 1] === 4 : proto === 1 && left[l4] === 3 && left[l4 + 1] === 3));
  return code === CODE.next && tcp && !toGuest && (program === "to_guest" ? left[l4 + 13] === TCP.ack : (left[l4 + 13]! & TCP.rst) !== 0);
}

export class Lab {
  readonly instance: Instance;
  readonly globals: Globals;
  readonly sandboxes = new Map<number, LabSandbox>();
  readonly #home: number;
  readonly #netns: number;
  readonly #devices: Tap[] = [];
  readonly #ring: RingBuffer;
  readonly #events: PacketEvent[] = [];
  #groups: GroupTable = hostGroups();
  #orphans: Buffer;
  #generation = 100;

  private constructor(slots: number) {
    this.#home = openNetns();
    this.#netns = createNetns();
    setNetns(this.#netns);
    this.instance = Instance.open({ directory: null, sandboxes: slots });
    this.globals = new Globals(this.instance);
    this.globals.setGroups(this.#groups);
    this.setResolver(true);
    this.#ring = new RingBuffer(this.instance.map("events"), (records) => this.#events.push(...records.map(decodeEvent)));
    this.#orphans = this.instance.map("orphans").entries().values;
  }

  /** @param slots sandboxes that there is room for. */
  static open(slots = 4): Lab { return new Lab(slots); }

  close(): void {
    const strays = this.#countedOrphans().length;
    for (const sandbox of [...this.sandboxes.values()]) sandbox.close();
    this.#ring.close();
    this.instance.close();
    for (const device of this.#devices) device.close();
    setNetns(this.#home);
    closeFd(this.#netns);
    closeFd(this.#home);
    if (strays > 0) throw new Error("a packet was counted in a sandbox and among the orphans");
  }

  get groups(): GroupTable { return this.#groups; }
  set groups(table: GroupTable) {
    this.#groups = table;
    this.globals.setGroups(table);
  }

  setResolver(there: boolean): void {
    this.globals.setResolver(there ? {
      nearName: "enf0", farName: "enf1", nearIfindex: RESOLVER.near, farIfindex: RESOLVER.near, nearMac: mac(RESOLVER.nearMac), farMac: mac(RESOLVER.farMac), addr4: address(RESOLVER.v4), addr6: address(RESOLVER.v6),
      net4: prefix(`${RESOLVER.net4}/4`), net6: prefix(`${RESOLVER.net6}/96`), ipv6: true,
    } : null);
  }

  /** How many ticks the programs take for a second; default: as many as there are. So many that none is over while a test runs: what is bounded by the second is so until the test says otherwise. */
  setSecond(ticks = hz): void {
    const map = this.instance.map("globals"), record = map.lookup(slotKey(0))!;
    record.writeUInt32LE(ticks, layouts.globals.fields.hz.offset);
    map.update(slotKey(0), record);
  }

  /** A device that exists and carries no sandbox; its index. */
  device(): number {
    const used = new Set([...this.sandboxes.values()].map(({ ifindex }) => ifindex));
    const idle = this.#devices.find(({ ifindex }) => !used.has(ifindex));
    if (idle !== undefined) return idle.ifindex;
    const tap = new Tap(`t${this.#devices.length}`);
    this.#devices.push(tap);
    return tap.ifindex;
  }

  nextGeneration(): number { return ++this.#generation; }

  /** A sandbox in force in the lowest free slot. */
  sandbox(options: SandboxOptions = {}): LabSandbox {
    let slot = 0;
    while (this.sandboxes.has(slot)) slot++;
    const sandbox = new LabSandbox(this, slot, options);
    this.sandboxes.set(slot, sandbox);
    return sandbox;
  }

  #countedOrphans(): { slot: null; index: number; packets: bigint; bytes: bigint }[] {
    const now = this.instance.map("orphans").entries().values;
    const rows = difference(this.#orphans, now).map((row) => ({ slot: null, ...row }));
    this.#orphans = now;
    return rows;
  }

  /** Puts one frame through one program. */
  run(program: ProgramName, frame: Bytes, options: RunOptions = {}): Outcome {
    const context = Buffer.alloc(SKB.size);
    const ifindex = options.ifindex ?? this.sandboxes.values().next().value?.ifindex ?? 1;
    context.writeUInt32LE(ifindex, SKB.ifindex);
    context.writeUInt32LE(options.ingressIfindex ?? 0, SKB.ingressIfindex);
    context.writeUInt32LE(options.mark ?? 0, SKB.mark);
    if (options.gsoSize !== undefined) {
      context.writeUInt32LE(options.gsoSize, SKB.gsoSize);
      context.writeUInt32LE(2, SKB.gsoSegs);
    }
    const { returnValue, data } = this.instance.program(program).testRun({ data: frame, context });
    const code = returnValue | 0;
    const counted: { slot: number | null; index: number; packets: bigint; bytes: bigint }[] = [];
    for (const sandbox of this.sandboxes.values()) counted.push(...sandbox.counted());
    // What wrongly went there besides shows at the next look.
    if (counted.length === 0) counted.push(...this.#countedOrphans());
    this.#ring.drain();
    const events = this.#events.splice(0);
    // What the agent answers is counted where it passes the tap.
    if (program === "from_resolver" && code === CODE.redirect && counted.length === 0) {
      return { code, verdict: "redirect", reason: frame[frame[12] === 0x86 ? 54 : 34]! * 256 + frame[frame[12] === 0x86 ? 55 : 35]! === 53 ? "dns-answer" : "intercept-answer", slot: null, event: null, frame: Uint8Array.from(data) };
    }
    const [row, ...more] = counted;
    if (row === undefined || more.length > 0 || row.packets !== 1n) throw new Error(`${program}: counted ${counted.length} times (code ${code})`);
    if (row.bytes !== BigInt(frame.length)) throw new Error(`${program}: counted ${row.bytes} octets of ${frame.length}`);
    const number = row.index % Reason.REASON_MAX;
    if (number === Reason.REASON_UNKNOWN) throw new Error(`${program}: a packet left without a reason (code ${code})`);
    const reason = reasonName(number), verdict = verdictOf(number);
    const expected = verdict === "deny" ? CODE.drop : verdict === "redirect" ? CODE.redirect : CODE.next;
    if (code !== expected && !(REFUSED.has(reason) && isRefusal(program, code, frame, data))) throw new Error(`${program}: code ${code} with reason ${reason}`);
    if (events.length > 1 || (verdict !== "deny" && events.length > 0)) throw new Error(`${program}: ${events.length} events for ${reason}`);
    const event = events[0] ?? null;
    if (event !== null && (event.reason !== reason || event.slot !== row.slot || event.length !== frame.length)) throw new Error(`${program}: the event says ${event.reason}, counted ${reason}`);
    return { code, verdict, reason, slot: row.slot, event, frame: Uint8Array.from(data) };
  }
}

export class LabSandbox {
  readonly slot: number;
  readonly ifindex: number;
  readonly tables: SandboxTables;
  readonly #lab: Lab;
  readonly #counters: BpfMap;
  readonly #options: SandboxOptions;
  #counts: Buffer;
  #policy!: Policy;
  #compiled!: CompiledPolicy;
  #judge!: NameJudge;
  #floor: Policy | null = null;

  constructor(lab: Lab, slot: number, options: SandboxOptions) {
    this.#lab = lab;
    this.slot = slot;
    this.#options = options;
    this.ifindex = options.identity?.ifindex ?? lab.device();
    const generation = options.generation ?? lab.nextGeneration();
    this.tables = SandboxTables.make(lab.instance, slot, generation, this.identity(options.identity), {
      flows: options.flows ?? 2048, pins: options.pins ?? 1024, eventsPerSecond: options.eventsPerSecond ?? 1_000_000_000,
      queriesPerSecond: options.queriesPerSecond ?? 1_000_000_000, connectionsPerSecond: options.connectionsPerSecond ?? 1_000_000_000, addresses: options.addresses ?? 64,
    });
    this.#counters = this.tables.inner("counters")!;
    this.#counts = this.#counters.entries().values;
    this.setPolicy(options.policy ?? "rules: [{allow: public}]");
    this.tables.enforce();
    lab.globals.setTap(this.ifindex, slot, generation);
  }

  get policy(): Policy { return this.#policy; }
  get compiled(): CompiledPolicy { return this.#compiled; }

  identity(more: Partial<Identity> = {}): Identity {
    return {
      ifindex: this.ifindex, tapMac: mac(HOST.tapMac), mac: mac(GUEST.mac), dhcp: true, learnPrefixes: [], gateways: [address(HOST.gateway4), address(HOST.gateway6)],
      guest: [`${GUEST.v4}/32`, `${GUEST.v6}/128`, `${GUEST.linkLocal}/128`].map(prefix), ...more,
    };
  }

  close(): void {
    this.#counters.close();
    this.#lab.globals.clearTap(this.ifindex);
    this.tables.clear();
    this.#lab.sandboxes.delete(this.slot);
  }

  /** A policy swap, as the agent does it. Pins are those given: the former policy's are gone. */
  setPolicy(policy: string | Policy, pins: readonly LabPin[] = []): void {
    this.#policy = typeof policy === "string" ? policyOf(policy, this.#lab.groups) : policy;
    this.#judge = new NameJudge(this.#policy);
    const uid = this.tables.nextUid();
    const { floor, inspect = false } = this.#options;
    this.#compiled = compilePolicy(this.#policy, { uid, inspect, floor: floor !== undefined });
    const map = this.tables.stage(this.#compiled, uid, this.#options.pins ?? 1024);
    try {
      for (const one of pins) this.#writePin(map, one);
    } finally {
      map.close();
    }
    if (floor !== undefined) {
      this.#floor = typeof floor === "string" ? policyOf(floor, this.#lab.groups) : floor;
      this.tables.stageFloor(compilePolicy(this.#floor, { uid: floorUid(uid), inspect }), uid, this.#options.pins ?? 1024).close();
    }
    this.tables.commit(uid);
  }

  /** The guest's addresses are learned anew. */
  unlearn(): void { this.#lab.instance.map("learned").update(slotKey(this.slot), Buffer.alloc(layouts.learned.size)); }

  /** As after an attach, but for what was learned: no flow, no fragment, no conversation with the resolver, no pin. */
  forget(): void {
    this.clearFlows();
    const fragments = this.tables.inner("fragments")!, redirects = this.tables.inner("redirects")!, pins = this.tables.pins()!;
    const there = fragments.entries();
    if (there.count > 0) fragments.deleteBatch(there.keys, there.count);
    for (const { index } of this.redirects()) redirects.update(slotKey(index), Buffer.alloc(layouts.redirect.size));
    const intercepted = this.tables.inner("intercepted");
    for (const { index } of this.redirects("intercepted")) intercepted?.update(slotKey(index), Buffer.alloc(layouts.redirect.size));
    intercepted?.close();
    const pinned = pins.entries();
    if (pinned.count > 0) pins.deleteBatch(pinned.keys, pinned.count);
    this.#advance();
    for (const map of [fragments, redirects, pins]) map.close();
    this.#lab.instance.map("event_limits").update(slotKey(this.slot), Buffer.alloc(layouts.event_limit.size));
  }

  /** Rule bits that a pin of this name carries. */
  bitsOf(name: string): readonly number[] { return this.#judge.judge(name.split(".")).bits; }

  /** Pins an address under names, as the DNS worker does; granted: tells the kernel's cache of denials. */
  pin(pin: LabPin, granted = true): void {
    for (const [of, policy] of [["policy", this.#policy], ["floor", this.#floor]] as const) {
      if (policy === null) continue;
      const map = this.tables.pins(of)!;
      try {
        this.#writePin(map, pin, new NameJudge(policy));
      } finally {
        map.close();
      }
    }
    if (granted) this.#advance();
  }

  /** Writes a pin as it lies in the map; expires: seconds of CLOCK_MONOTONIC. */
  pinBits(where: Address, entries: readonly { readonly bit: number; readonly expires: number }[], granted = true): void {
    const map = this.tables.pins()!;
    map.update(where, encodePin(where, entries));
    map.close();
    if (granted) this.#advance();
  }

  #advance(): void { new PinEpoch(this.#lab.instance.map("pin_epochs"), this.slot).advance(); }

  unpin(text: string): void {
    for (const of of ["policy", "floor"] as const) {
      const map = this.tables.pins(of);
      map?.delete(address(text));
      map?.close();
    }
  }

  #writePin(map: BpfMap, { address: where, names, seconds = 3600 }: LabPin, judge = this.#judge): void {
    const bits = [...new Set(names.flatMap((name) => judge.judge(name.split(".")).bits))];
    if (bits.length === 0) return;
    map.update(typeof where === "string" ? address(where) : where, encodePin(typeof where === "string" ? address(where) : where, bits.map((bit) => ({ bit, expires: nowSeconds() + seconds }))));
  }

  /* ---- frames ---- */

  /** From the guest to an address, by way of the gateway (or a group's MAC). */
  to(destination: string, more: Partial<Endpoints> = {}): Endpoints {
    const raw = ip(destination);
    const group = raw.length === 4 ? raw[0]! >= 224 && raw[0]! < 240 : raw[0] === 0xff;
    return {
      sourceMac: GUEST.mac, destinationMac: group ? multicastMac(raw) : HOST.tapMac,
      source: raw.length === 4 ? GUEST.v4 : raw[0] === 0xfe && (raw[1]! & 0xc0) === 0x80 ? GUEST.linkLocal : GUEST.v6, destination, ...more,
    };
  }

  /** To the guest from an address. */
  from(source: string, more: Partial<Endpoints> = {}): Endpoints {
    const { source: own } = this.to(source);
    return { sourceMac: HOST.tapMac, destinationMac: GUEST.mac, source, destination: own, ...more };
  }

  out(frame: Bytes, options: RunOptions = {}): Outcome { return this.#lab.run("from_guest", frame, { ifindex: this.ifindex, ...options }); }
  outLong(frame: Bytes, options: RunOptions = {}): Outcome { return this.#lab.run("from_guest_long", frame, { ifindex: this.ifindex, ...options }); }
  in(frame: Bytes, options: RunOptions = {}): Outcome { return this.#lab.run("to_guest", frame, { ifindex: this.ifindex, ...options }); }

  /* ---- tables ---- */

  flows(): FlowEntry[] {
    const map = this.tables.inner("flows")!;
    const { keys, values, count } = map.entries();
    map.close();
    const key = layouts.flow_key, flow = layouts.flow;
    return Array.from({ length: count }, (_, i): FlowEntry => {
      const k = i * key.size, v = i * flow.size;
      const flags = values[v + flow.fields.flags.offset]!;
      return {
        remote: Uint8Array.from(keys.subarray(k, k + 16)), remotePort: keys.readUInt16BE(k + key.fields.remote_port.offset), guestPort: keys.readUInt16BE(k + key.fields.guest_port.offset),
        proto: keys[k + key.fields.proto.offset]!, guest: keys[k + key.fields.guest.offset]!,
        policy: values.readBigUInt64LE(v + flow.fields.policy.offset), rule: values.readUInt16LE(v + flow.fields.rule.offset),
        origin: values[v + flow.fields.origin.offset] === 0 ? "egress" : "ingress", replied: (flags & 1) !== 0, closing: (flags & 2) !== 0,
        lastSeen: values.readBigUInt64LE(v + flow.fields.last_seen_ticks.offset),
      };
    });
  }

  /** Makes every entry older: as if so many seconds had gone by without a packet. */
  ageFlows(seconds: number): void {
    const map = this.tables.inner("flows")!;
    const { keys, values, count } = map.entries();
    const at = layouts.flow.fields.last_seen_ticks.offset;
    for (let i = 0; i < count; i++) {
      const value = values.subarray(i * layouts.flow.size, (i + 1) * layouts.flow.size);
      value.writeBigUInt64LE(value.readBigUInt64LE(at) - BigInt(seconds * hz), at);
      map.update(keys.subarray(i * layouts.flow_key.size, (i + 1) * layouts.flow_key.size), value);
    }
    map.close();
  }

  /** The rule in the entry of one flow: a bit, null for the default; undefined: there is no such flow. Ports as in the key. */
  flowRule(remote: Address, proto: number, remotePort: number, guestPort: number, guest: number): number | null | undefined {
    const key = Buffer.alloc(layouts.flow_key.size), { fields } = layouts.flow_key;
    key.set(remote, fields.remote.offset);
    key.writeUInt16BE(remotePort, fields.remote_port.offset);
    key.writeUInt16BE(guestPort, fields.guest_port.offset);
    key[fields.proto.offset] = proto;
    key[fields.guest.offset] = guest;
    const map = this.tables.inner("flows")!;
    const rule = map.lookup(key)?.readUInt16LE(layouts.flow.fields.rule.offset);
    map.close();
    return rule === undefined ? undefined : rule === AbiLimit.MAX_RULES ? null : rule;
  }

  clearFlows(): void {
    const map = this.tables.inner("flows")!;
    const { keys, count } = map.entries();
    if (count > 0) map.deleteBatch(keys, count);
    map.close();
  }

  redirects(of: "redirects" | "intercepted" = "redirects"): RedirectEntry[] {
    const map = this.tables.inner(of);
    if (map === null) return [];
    const { keys, values, count } = map.entries();
    map.close();
    const { size, fields } = layouts.redirect;
    return Array.from({ length: count }, (_, i): RedirectEntry => ({
      index: keys.readUInt32LE(i * 4), state: values.readUInt32LE(i * size + fields.state.offset), outstanding: values.readUInt32LE(i * size + fields.outstanding.offset),
      closing: values[i * size + fields.closing.offset] !== 0, proto: values[i * size + fields.proto.offset]!, guestPort: values.readUInt16BE(i * size + fields.guest_port.offset),
      lastSeen: values.readBigUInt64LE(i * size + fields.last_seen_ticks.offset),
    })).filter(({ state }) => state !== 0);
  }

  /** Addresses of its prefixes that it has in use, as the kernel has them. */
  addresses(): string[] {
    const map = this.tables.inner("addresses");
    if (map === null) return [];
    const { keys, count } = map.entries();
    map.close();
    return Array.from({ length: count }, (_, i) => formatAddress(Uint8Array.from(keys.subarray(i * 16, i * 16 + 16)))).sort();
  }

  /** As if so many seconds had gone by in which these, or all, sent nothing; and as if no room had been looked for lately. */
  ageAddresses(seconds: number, only: readonly string[] = this.addresses()): void {
    const map = this.tables.inner("addresses")!, limits = this.#lab.instance.map("event_limits"), record = limits.lookup(slotKey(this.slot))!;
    for (const text of only) {
      const value = map.lookup(address(text))!;
      value.writeBigUInt64LE(value.readBigUInt64LE(0) - BigInt(seconds * hz), 0); // struct address_use
      map.update(address(text), value);
    }
    map.close();
    record.writeUInt32LE(0, layouts.event_limit.fields.addresses_swept.offset);
    limits.update(slotKey(this.slot), record);
  }

  /** What the agent does every few seconds: flows and addresses that are over leave their places. */
  sweep(): void {
    const context = Buffer.alloc(SKB.size);
    context.writeUInt32LE(this.slot, SKB.mark);
    this.#lab.instance.program("sweep").testRun({ data: new Uint8Array(64), context });
  }

  /** Places that the kernel says are taken. */
  taken(): { redirects: number; intercepted: number } {
    const context = Buffer.alloc(SKB.size);
    context.writeUInt32LE(this.slot, SKB.mark);
    const { returnValue } = this.#lab.instance.program("taken").testRun({ data: new Uint8Array(64), context });
    return { redirects: returnValue & 0xffff, intercepted: returnValue >>> 16 };
  }

  /** The same for a table of conversations. */
  ageRedirects(seconds: number, of: "redirects" | "intercepted" = "redirects"): void {
    const map = this.tables.inner(of)!;
    const at = layouts.redirect.fields.last_seen_ticks.offset;
    for (const { index } of this.redirects(of)) {
      const value = map.lookup(slotKey(index))!;
      value.writeBigUInt64LE(value.readBigUInt64LE(at) - BigInt(seconds * hz), at);
      map.update(slotKey(index), value);
    }
    map.close();
  }

  /** As if a second had gone by since the guest last began something that the agent serves. */
  nextSecond(): void {
    const map = this.#lab.instance.map("event_limits"), record = map.lookup(slotKey(this.slot))!;
    record.writeBigUInt64LE(0n, layouts.event_limit.fields.begun_ticks.offset);
    map.update(slotKey(this.slot), record);
  }

  /** Counters that moved since the last call. */
  counted(): { slot: number; index: number; packets: bigint; bytes: bigint }[] {
    const now = this.#counters.entries().values;
    const rows = difference(this.#counts, now).map((row) => ({ slot: this.slot, ...row }));
    this.#counts = now;
    return rows;
  }
}

export interface LabPin {
  readonly address: string | Address;
  readonly names: readonly string[];
  /** Lease; negative: has expired. */
  readonly seconds?: number;
}

const cpus = possibleCpus();

function difference(before: Buffer, after: Buffer): { index: number; packets: bigint; bytes: bigint }[] {
  if (before.equals(after)) return [];
  const size = layouts.counter.size, rows: { index: number; packets: bigint; bytes: bigint }[] = [];
  for (let index = 0; index * cpus * size < after.length; index++) {
    let packets = 0n, bytes = 0n;
    for (let cpu = 0; cpu < cpus; cpu++) {
      const at = (index * cpus + cpu) * size;
      packets += after.readBigUInt64LE(at) - before.readBigUInt64LE(at);
      bytes += after.readBigUInt64LE(at + 8) - before.readBigUInt64LE(at + 8);
    }
    if (packets !== 0n || bytes !== 0n) rows.push({ index, packets, bytes });
  }
  return rows;
}
