/**
 * One running enforcer: loaded programs, the resolver, the watch over the host, and the sandboxes it holds.
 *
 * Order of an attach: facts of the tap → programs and self-test → tables of the sandbox → resolver knows it → device → hooks
 * on the tap → self-test on the tap. Each step that fails takes back what came before it. Order of a detach: the reverse.
 *
 * Holds always: address groups are in the kernel before any tap is; a change of the host's addresses reaches the kernel in
 * the same turn in which it is read. Main thread only.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { BpfMap, closeFd, createNetns, openNetns, type RingBuffer } from "../../native/index.js";
import { formatAddress, formatPrefix, type Address, type Prefix } from "../addresses/address.js";
import { groupTable, type GroupTable } from "../addresses/groups.js";
import type { DeniedQuery, PinRow, Stats } from "../dns/protocol.js";
import { EnforcerError } from "../errors.js";
import { readCounters, type Count } from "../kernel/counters.js";
import { followEvents, type PacketEvent } from "../kernel/events.js";
import { Globals } from "../kernel/globals.js";
import { Instance, removePins } from "../kernel/instance.js";
import { layouts } from "../kernel/layout.gen.js";
import { SandboxTables, slotKey, type Identity } from "../kernel/sandbox-tables.js";
import { selfTest, selfTestTap } from "../kernel/self-test.js";
import { attachHooks, detachHooks, hooksInPlace, RESOLVER_HOOKS, TAP_HOOKS, type Mechanism } from "../kernel/tap-link.js";
import { HostWatch, type LinkEvent } from "../net/host-watch.js";
import { createResolverLink, removeResolverLink, type ResolverLink } from "../net/resolver-link.js";
import { prepareTap, restoreTap, tapFacts, type TapFacts, type TapPreparation } from "../net/tap.js";
import { compilePolicy, type CompiledPolicy } from "../policy/compile.js";
import type { Policy } from "../policy/types.js";
import { ResolverClient } from "./resolver-client.js";
import { RunDirectory } from "./run-directory.js";

/** How often expired flows are freed, ms. The kernel counts their time itself; this only gives back the memory. */
const SWEEP = 5_000;
/** Offset of mark in struct __sk_buff (linux/bpf.h). */
const SKB_MARK = 8, SKB_SIZE = 192;

export interface EnforcerOptions {
  readonly runDirectory: string;
  /** Where bpffs is mounted, or a directory in it. */
  readonly bpffs: string;
  /** Name of this instance in both; the tap's, for an enforcer that serves one tap in the foreground. */
  readonly instance: string;
  readonly sandboxes: number;
  /** Name of the resolver's near device; unique in the namespace, at most 15 octets. */
  readonly resolverDevice: string;
  readonly resolvConf: string | null;
  readonly onPackets: (events: readonly PacketEvent[]) => void;
  readonly onQueries: (queries: readonly DeniedQuery[]) => void;
  readonly onLink: (event: LinkEvent) => void;
  /** Something a person should know, and enforcement goes on. */
  readonly onNotice: (text: string) => void;
  /** It cannot go on serving; what is in the kernel stays in force. */
  readonly onFailure: (error: Error) => void;
}

export interface AttachOptions {
  readonly tap: string;
  readonly policy: Policy;
  /** Instead of the addresses found on the tap or its bridge; empty: those. */
  readonly gateways: readonly Address[];
  /** Empty: learned. */
  readonly guest: readonly Prefix[];
  readonly mac: Uint8Array | null;
  /** Instead of the policy's or the host's resolvers; empty: those. */
  readonly upstreams: readonly { readonly address: Address; readonly port: number }[];
}

export interface Sandbox {
  readonly name: string;
  readonly slot: number;
  readonly generation: number;
  readonly facts: TapFacts;
  readonly policy: Policy;
  readonly compiled: CompiledPolicy;
  readonly mechanism: Mechanism;
  /** Programs that run before ours on the tap's hooks. */
  readonly before: readonly string[];
  readonly preparation: TapPreparation;
  readonly tables: SandboxTables;
  /** Tables of a former process were taken over. */
  readonly adopted: boolean;
}

export class Enforcer {
  readonly #options: EnforcerOptions;
  readonly #run: RunDirectory;
  readonly #unlock: () => void;
  readonly #sandboxes = new Map<string, Sandbox>();
  readonly #cleanup: (() => void | Promise<void>)[] = [];
  #instance!: Instance;
  #globals!: Globals;
  #resolver!: ResolverClient;
  #link!: ResolverLink;
  #watch!: HostWatch;
  #groups!: GroupTable;
  #events: RingBuffer | null = null;
  #extraGateways: readonly Address[] = [];
  #stopped = false;
  /** A former process's enforcement is still in force and this process could not take it over: it stays. */
  #leaveInForce = false;

  private constructor(options: EnforcerOptions) {
    this.#options = options;
    this.#run = new RunDirectory(options.runDirectory);
    this.#unlock = this.#run.lock(options.instance);
  }

  /**
   * Loads, makes the resolver's device and namespace, fills the address groups, tests itself. No tap is touched yet.
   * @throws EnforcerError; nothing is left behind, but what a former process left in force stays in force.
   */
  static async start(options: EnforcerOptions): Promise<Enforcer> {
    const enforcer = new Enforcer(options);
    try {
      await enforcer.#start();
      return enforcer;
    } catch (error) {
      await enforcer.#abandon();
      throw error;
    }
  }

  get groups(): GroupTable { return this.#groups; }
  get sandboxes(): ReadonlyMap<string, Sandbox> { return this.#sandboxes; }

  async #start(): Promise<void> {
    const { bpffs, instance, resolverDevice } = this.#options;
    const directory = join(bpffs, "enforcer", instance);
    const fresh = !existsSync(directory);
    this.#instance = Instance.open({ directory, sandboxes: this.#options.sandboxes });
    this.#cleanup.push(() => (fresh ? this.#instance.destroy() : this.#instance.close()));
    this.#globals = new Globals(this.#instance);

    const agentNetns = createNetns();
    const hostNetns = openNetns();
    this.#cleanup.push(() => { closeFd(agentNetns); closeFd(hostNetns); });
    this.#link = createResolverLink({ agentNetnsFd: agentNetns, names: { near: resolverDevice, far: "enf1" } });
    this.#cleanup.push(() => { removeResolverLink(resolverDevice); });
    attachHooks(this.#instance, this.#link.nearIfindex, resolverDevice, RESOLVER_HOOKS);
    this.#cleanup.push(() => detachHooks(this.#instance, this.#link.nearIfindex, RESOLVER_HOOKS));

    this.#watch = new HostWatch({ onView: () => this.#hostChanged(), onLink: (event) => this.#options.onLink(event), onError: (error) => this.#options.onNotice(`a change of the host's addresses is not in force yet and is tried again: ${text(error)}`) });
    this.#cleanup.push(() => this.#watch.close());
    this.#groups = this.#readGroups();
    this.#globals.setGroups(this.#groups);
    this.#globals.setResolver(this.#link);
    selfTest(this.#instance, this.#globals, this.#link.nearIfindex);

    this.#resolver = new ResolverClient({
      onDenied: (queries) => this.#options.onQueries(queries),
      onResolvers: (servers) => this.#options.onNotice(servers.length === 0 ? "no resolver is configured on the host: names fail until there is one" : `resolvers are now ${servers.join(", ")}`),
      onFailure: (error) => this.#options.onFailure(error),
    });
    this.#cleanup.push(() => this.#resolver.stop());
    const { noUpstream } = await this.#resolver.ask({
      kind: "start",
      listen: { netnsFd: agentNetns, address4: formatAddress(this.#link.addr4), address6: this.#link.ipv6 ? formatAddress(this.#link.addr6) : null, port: 53, receiveBuffer: 4 << 20 },
      hostNetnsFd: hostNetns,
      sandboxNet6: this.#link.ipv6 ? this.#link.net6.bytes : null,
      groups: this.#groups,
      resolvConf: this.#options.resolvConf,
    });
    if (noUpstream && this.#options.resolvConf !== null) this.#options.onNotice(`${this.#options.resolvConf} names no resolver: names fail unless the policy or --upstream names one`);

    const sweeper = setInterval(() => this.#sweep(), SWEEP);
    sweeper.unref();
    this.#cleanup.push(() => clearInterval(sweeper));
  }

  /**
   * Puts a tap under its policy. @throws EnforcerError; then the tap is as it was.
   */
  async attach(options: AttachOptions): Promise<Sandbox> {
    const { tap, policy } = options;
    const facts = tapFacts(tap);
    if (facts.xdp !== null) this.#options.onNotice(`${tap}: an XDP program (id ${facts.xdp.programId ?? "unknown"}) sees the guest's frames before the enforcer does`);
    const gateways = options.gateways.length > 0 ? options.gateways : [...facts.gateways, ...facts.routers];
    if (gateways.length === 0) throw new EnforcerError("E_GATEWAY_UNKNOWN", `${tap} ${facts.bridge === null ? "has no address" : `and its bridge ${facts.bridge.name} have no address`}`);
    this.#extraGateways = options.gateways;
    if (options.gateways.length > 0) this.#hostChanged();
    const identity: Identity = {
      ifindex: facts.ifindex, tapMac: facts.bridge?.mac ?? facts.mac, mac: options.mac, guest: options.guest,
      learnPrefixes: facts.learnPrefixes, gateways, dhcp: true,
    };
    checkIdentity(identity, tap);
    const sizes = { flows: policy.limits.flows, pins: policy.limits.pins, eventsPerSecond: policy.limits.eventsPerSecond };
    const digest = digestOf(policy);
    const former = this.#run.readState(tap);

    const undo: (() => void | Promise<void>)[] = [];
    let survived = false;
    try {
      const slot = this.#freeSlot();
      const survivor = former?.ifindex === facts.ifindex && hooksPinned(this.#instance, facts.ifindex) ? SandboxTables.adopt(this.#instance, slot) : null;
      survived = survivor !== null;
      // Before a former process's settings are lost: they are what restoring means.
      const preparation = prepareTap(tap);
      const changes = former?.ifindex === facts.ifindex ? former.changes : preparation.changes;
      undo.push(() => { restoreTap({ ifindex: facts.ifindex, changes }); });
      const samePolicy = survivor !== null && former?.policy === digest;
      const tables = survivor ?? SandboxTables.make(this.#instance, slot, nextGeneration(this.#instance, slot), identity, { ...sizes, eventsPerSecond: 0 });
      if (survivor === null) undo.push(() => tables.clear());
      const uid = samePolicy ? tables.uid : tables.nextUid();
      const compiled = compilePolicy(policy, { uid });
      const pins = samePolicy ? tables.pins() : tables.stage(compiled, uid, sizes.pins);
      if (pins === null) throw new EnforcerError("E_ATTACH", `${tap}: the map of pins is missing`);
      const flows = tables.inner("flows");
      try {
        await this.#resolver.ask({
          kind: "addSandbox", slot, generation: tables.generation, name: tap, policy, compiledGroups: this.#groups,
          pinsFd: pins.fd, flowsFd: flows?.fd ?? null, pinEpochsFd: this.#instance.map("pin_epochs").fd,
          upstreams: options.upstreams.length > 0 ? options.upstreams : null,
        });
      } finally {
        pins.close();
        flows?.close();
      }
      undo.push(() => this.#resolver.ask({ kind: "removeSandbox", slot, generation: tables.generation }).then(() => undefined));
      if (!samePolicy) tables.commit(uid);
      if (survivor === null) tables.enforce();
      this.#globals.setTap(facts.ifindex, slot, tables.generation);
      if (survivor === null) undo.push(() => this.#globals.clearTap(facts.ifindex));
      const { mechanism, before } = attachHooks(this.#instance, facts.ifindex, tap, TAP_HOOKS);
      if (survivor === null) undo.push(() => detachHooks(this.#instance, facts.ifindex, TAP_HOOKS));
      if (!hooksInPlace(this.#instance, facts.ifindex, TAP_HOOKS)) throw new EnforcerError("E_ATTACH", `${tap}: the kernel does not show the programs on its hooks`);
      selfTestTap(this.#instance, slot, facts.ifindex, tap);
      tables.describe(identity, sizes);
      this.#run.writeState(tap, { ifindex: facts.ifindex, policy: digest, changes });
      this.#events ??= followEvents(this.#instance, (events) => this.#options.onPackets(events));
      const sandbox: Sandbox = {
        name: tap, slot, generation: tables.generation, facts, policy, compiled, mechanism, before: before.map(({ hook, program }) => `${program} (${hook})`),
        preparation: { ...preparation, changes }, tables, adopted: survivor !== null,
      };
      this.#sandboxes.set(tap, sandbox);
      return sandbox;
    } catch (error) {
      if (survived) this.#leaveInForce = true;
      for (const step of undo.reverse()) await quietly(step);
      throw error;
    }
  }

  /** Takes a tap out from under its policy and frees what was its. A tap that has gone is no error. */
  async detach(name: string): Promise<void> {
    const sandbox = this.#sandboxes.get(name);
    if (sandbox === undefined) return;
    this.#sandboxes.delete(name);
    const { facts, slot, generation, tables, preparation } = sandbox;
    detachHooks(this.#instance, facts.ifindex, TAP_HOOKS);
    this.#globals.clearTap(facts.ifindex);
    await this.#resolver.ask({ kind: "removeSandbox", slot, generation });
    tables.clear();
    restoreTap({ ifindex: facts.ifindex, changes: preparation.changes });
    this.#run.removeState(name);
  }

  /** Detaches everything and leaves nothing behind. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    if (this.#leaveInForce) return this.#abandon();
    this.#stopped = true;
    for (const name of [...this.#sandboxes.keys()]) await quietly(() => this.detach(name));
    this.#events?.close();
    const directory = this.#instance.directory;
    for (const step of this.#cleanup.reverse()) await quietly(step);
    if (directory !== null) {
      await quietly(() => removePins(directory));
      await quietly(() => removeIfEmpty(join(directory, "..")));
    }
    this.#unlock();
  }

  async #abandon(): Promise<void> {
    this.#stopped = true;
    for (const step of this.#cleanup.reverse()) await quietly(step);
    this.#unlock();
  }

  /** Counters of a sandbox that are not zero. */
  counters(sandbox: Sandbox): Count[] {
    const map = sandbox.tables.inner("counters");
    if (map === null) return [];
    try {
      return readCounters(map);
    } finally {
      map.close();
    }
  }

  /** Packets that belonged to no sandbox. */
  orphans(): Count[] { return readCounters(this.#instance.map("orphans")); }

  /** Denial events that the kernel did not tell. */
  eventsLost(sandbox: Sandbox): bigint {
    return this.#instance.map("event_limits").lookup(slotKey(sandbox.slot))?.readBigUInt64LE(layouts.event_limit.fields.lost.offset) ?? 0n;
  }

  /** Entries now and at most, of the tables that can be full. */
  fill(sandbox: Sandbox): { map: "flows" | "pins"; entries: number; limit: number }[] {
    const rows: { map: "flows" | "pins"; entries: number; limit: number }[] = [];
    for (const [name, map] of [["flows", sandbox.tables.inner("flows")], ["pins", sandbox.tables.pins()]] as const) {
      if (map === null) continue;
      rows.push({ map: name, entries: countEntries(map), limit: map.info.maxEntries });
      map.close();
    }
    return rows;
  }

  async resolverStats(): Promise<Stats> { return this.#resolver.ask({ kind: "stats" }); }

  async pins(sandbox: Sandbox): Promise<readonly PinRow[]> { return this.#resolver.ask({ kind: "pins", slot: sandbox.slot, generation: sandbox.generation }); }

  async namesOf(sandbox: Sandbox, address: Address): Promise<readonly string[]> {
    return this.#resolver.ask({ kind: "namesOf", slot: sandbox.slot, generation: sandbox.generation, address });
  }

  /** Resolvers of the host are read again. */
  async reloadResolvers(): Promise<readonly string[]> { return (await this.#resolver.ask({ kind: "reloadResolvers" })).servers; }

  #readGroups(): GroupTable {
    const { addresses, localPrefixes, connectedPrefixes, broadcasts } = this.#watch.view;
    return groupTable({
      hostAddresses: [...addresses, ...this.#extraGateways], connectedPrefixes, broadcasts,
      extra: { host: localPrefixes.map((prefix) => formatPrefix(prefix)) },
    });
  }

  #hostChanged(): void {
    this.#groups = this.#readGroups();
    // A failure goes to the watch, which gives the view again.
    this.#globals.setGroups(this.#groups);
    this.#resolver?.ask({ kind: "groups", groups: this.#groups }).catch((error: unknown) => this.#options.onFailure(error as Error));
  }

  #freeSlot(): number {
    const used = new Set([...this.#sandboxes.values()].map(({ slot }) => slot));
    for (let slot = 0; slot < this.#instance.sandboxes; slot++) if (!used.has(slot)) return slot;
    throw new EnforcerError("E_LIMIT", `${this.#instance.sandboxes} sandboxes are attached already`, { remedy: "raise the number of sandboxes of this agent" });
  }

  #sweep(): void {
    for (const { slot } of this.#sandboxes.values()) {
      const context = Buffer.alloc(SKB_SIZE);
      context.writeUInt32LE(slot, SKB_MARK);
      this.#instance.program("sweep").testRun({ data: new Uint8Array(64), context });
    }
  }
}

function countEntries(map: BpfMap): number { return map.entries().count; }

function hooksPinned(instance: Instance, ifindex: number): boolean {
  const directory = instance.linkDirectory;
  return directory !== null && TAP_HOOKS.every(({ hook }) => existsSync(join(directory, `${ifindex}-${hook}`)));
}

/** Never 0 and never the slot's last: entries of the packet path's caches name it. */
function nextGeneration(instance: Instance, slot: number): number {
  const last = instance.map("sandboxes").lookup(slotKey(slot))?.readUInt32LE(layouts.sandbox.fields.generation.offset) ?? 0;
  const drawn = createHash("sha256").update(`${last} ${slot} ${process.pid} ${process.hrtime.bigint()}`).digest().readUInt32LE();
  return drawn === 0 || drawn === last ? last + 1 : drawn;
}

function checkIdentity({ guest, learnPrefixes, gateways }: Identity, tap: string): void {
  for (const prefix of guest) {
    const single = prefix.length === 128;
    if (single && gateways.some((gateway) => formatAddress(gateway) === formatAddress(prefix.bytes))) throw new EnforcerError("E_USAGE", `--guest-ip ${formatAddress(prefix.bytes)} is the gateway of ${tap}`, { remedy: "name the guest's own address" });
  }
  if (guest.length === 0 && learnPrefixes.length === 0) throw new EnforcerError("E_USAGE", `the guest of ${tap} has no address that could be learned: no subnet or route leads to the tap`, { remedy: "name it with --guest-ip ADDR" });
}

/** Of the policy as understood: the same rules written otherwise are the same policy. */
function digestOf(policy: Policy): string {
  const plain = JSON.stringify(policy, (_, value: unknown) => (value instanceof Uint8Array || ArrayBuffer.isView(value) ? Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") : typeof value === "bigint" ? value.toString() : value));
  return createHash("sha256").update(plain).digest("hex");
}

function removeIfEmpty(path: string): void { if (existsSync(path) && readdirSync(path).length === 0) rmdirSync(path); }

async function quietly(step: () => void | Promise<void>): Promise<void> {
  try {
    await step();
  } catch (error) {
    process.stderr.write(`enforcer: while taking back: ${text(error)}\n`);
  }
}

function text(error: unknown): string { return error instanceof Error ? error.message : String(error); }
