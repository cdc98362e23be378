/**
 * The engine of one network namespace: loaded programs, the resolver, the watch over the host, and the sandboxes it holds.
 *
 * Order of an attach: facts of the tap → state says so → drop beneath the tap's name → tables of the sandbox → resolver knows
 * it → device → hooks on the tap → self-test on the tap → state says it is done. Each step that fails takes back what came
 * before it. Order of a detach: settings of the tap, then the reverse. Order of a policy swap: tables beside those in force → resolver writes pins to both → state names both → one
 * 8-byte write puts it in force → resolver drops the old one → state names the new one. A process that dies anywhere in
 * between leaves either policy whole, and its successor reads in the kernel which.
 *
 * Order of a start: address groups → resolver listens → it knows every sandbox that is in force as its file says → the kernel
 * sends queries and connections to it, of all of them at once → the caller attaches them again, one by one.
 *
 * Holds always: address groups are in the kernel before any tap is; a change of the host's addresses reaches the kernel in
 * the same turn in which it is read; what a former process left in force is never taken away because a file about it is
 * missing. Main thread only; callers do one operation at a time (agent.ts).
 */
import { existsSync, readdirSync, rmdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { BpfMap, clockMonotonicCoarse, closeFd, createNetns, openNetns, type RingBuffer } from "../../native/index.js";
import { formatAddress, formatPrefix, type Address } from "../addresses/address.js";
import { groupTable, packGroups, type Group, type GroupTable } from "../addresses/groups.js";
import type { DeniedQuery, FormerPinRow, PinRow, Stats } from "../dns/protocol.js";
import { forgetPlaceholders, keptEnvironment } from "../secrets/placeholder.js";
import type { Violation } from "../secrets/types.js";
import { forgetAuthority } from "../tls/certificates/store.js";
import type { TlsDenial, TlsStats } from "../tls/protocol.js";
import { EnforcerError } from "../errors.js";
import { readCounters, type Count } from "../kernel/counters.js";
import { followEvents, type PacketEvent } from "../kernel/events.js";
import { formerTcp, type FlowRow } from "../kernel/flows.js";
import { Globals } from "../kernel/globals.js";
import { forgottenExpedite } from "../kernel/grace-period.js";
import { inForce, Instance, instanceDirectory, refuseForeign, removePins } from "../kernel/instance.js";
import { layouts, SandboxState as State } from "../kernel/layout.gen.js";
import { nudgeFlows } from "../kernel/nudge.js";
import { floorUid, SandboxTables, slotKey } from "../kernel/sandbox-tables.js";
import { countsOfGuest, isAsTapTest, selfTest, selfTestTap } from "../kernel/self-test.js";
import { attachHooks, chainOf, detachHooks, hooksHeld, linkedDevices, RESOLVER_HOOKS, TAP_HOOKS } from "../kernel/tap-link.js";
import { BaseDrop } from "../net/base-drop.js";
import type { HostView } from "../net/host-view.js";
import { HostWatch, type LinkEvent } from "../net/host-watch.js";
import { findLinkByIndex } from "../net/links.js";
import { inNetns } from "../net/request.js";
import { createResolverLink, removeResolverLink, type ResolverLink } from "../net/resolver-link.js";
import { plannedChanges, prepareTap, restoreTap, tapFacts } from "../net/tap.js";
import { compilePolicy, type CompiledPolicy } from "../policy/compile.js";
import { buildPolicy } from "../policy/build.js";
import { judgeFlow } from "../policy/flow-judge.js";
import { regroup } from "../policy/regroup.js";
import { Proto, type Policy } from "../policy/types.js";
import { Inspection } from "./inspection.js";
import { ReaderClient } from "./reader-client.js";
import { ResolverClient } from "./resolver-client.js";
import type { Slices } from "./slices.js";
import type { OwnFrames, PolicyState, RunDirectory, SandboxState } from "./run-directory.js";
import { digestOf, identityKey, identityOf, type AttachOptions, type KeptSandbox, type Sandbox, type UpstreamAddress } from "./sandbox.js";

export type { AttachOptions, KeptSandbox, Sandbox } from "./sandbox.js";

/** How often expired flows are freed, ms. The kernel counts their time itself; this only gives back the memory. */
const SWEEP = 5_000, SWEEP_PARTS = 32;
/** How often pins that were added are written down, ms: what a crash may forget the names of, not the pins. */
const WRITE_PINS = 10_000;
/** Names of deleted taps that are held on; beyond it the oldest is let go. */
const GONE_TAPS = 1024;
/** Offset of mark in struct __sk_buff (linux/bpf.h). */
const SKB_MARK = 8, SKB_SIZE = 192;
/** For how long an end that was meant is not told to guests, ms: twice the five seconds after which a client asks again. */
const SUCCESSOR_WITHIN = 10_000;
/** After a swap, ms: when silent connections are looked for. Busy ones have ended by then; all have before a second is over. */
const NUDGE_AFTER = [200, 800];
/** Silent connections that are told at one time. */
const NUDGES = 4096;
/** Sandboxes that are taken over at the same time. */
const SERVED_TOGETHER = 64;
/** Generations begin here; 1 is the self-test's. */
const FIRST_GENERATION = 2;

export interface EnforcerOptions {
  /** Where the state files are; the caller holds its lock. */
  readonly run: RunDirectory;
  /** Where bpffs is mounted, or a directory in it. */
  readonly bpffs: string;
  /** Name of this instance in it. */
  readonly instance: string;
  readonly sandboxes: number;
  /** Name of the resolver's near device; unique in the namespace, at most 15 octets. */
  readonly resolverDevice: string;
  readonly resolvConf: string | null;
  /** Namespace of the taps; the caller keeps it open. null: the process's own. */
  readonly netnsFd: number | null;
  /** The host's own view, where the taps' namespace is another: its addresses are the host's there too. */
  readonly outer: (() => HostView) | null;
  readonly extraGroups: Partial<Record<Group, readonly string[]>>;
  readonly nat64Prefixes: readonly string[];
  /** Names of taps that will be attached when they appear: nothing comes in from them before. See BaseDrop.holdPatterns. */
  readonly heldPatterns: readonly string[];
  /** Sandboxes that a former process may have left in force. */
  readonly adoptable: (groups: GroupTable) => Iterable<Adoptable>;
  readonly onPackets: (events: readonly PacketEvent[]) => void;
  readonly onQueries: (queries: readonly DeniedQuery[]) => void;
  /** Connections and requests that were refused because of whom they were for. */
  readonly onDenials: (denials: readonly TlsDenial[]) => void;
  /** A sandbox sent a secret's placeholder where it must not be, and the policy wants it cut off: it is to get a policy that denies all. */
  readonly onTerminate: (sandbox: string, violation: Violation) => void;
  readonly onLink: (event: LinkEvent) => void;
  /** The host's addresses or routes changed and are in force; regroup() is due. */
  readonly onView: () => void;
  /** Something a person should know, and enforcement goes on. */
  readonly onNotice: (text: string) => void;
  /** It cannot go on serving; what is in the kernel stays in force. */
  readonly onFailure: (error: Error) => void;
}

/** A sandbox that a former process may have left in force, as its state file tells of it. */
export interface Adoptable {
  readonly state: SandboxState;
  /** The policy that is in force, made from its source. @throws EnforcerError. */
  readonly build: (source: unknown) => { readonly policy: Policy; readonly floor: Policy | null; readonly upstreams: readonly UpstreamAddress[] };
}

/** What the workers know already of a sandbox that is not attached again yet. */
interface Served { readonly generation: number; readonly uid: bigint; readonly digest: string; readonly compiled: CompiledPolicy; readonly compiledFloor: CompiledPolicy | null }

export class Enforcer {
  readonly #options: EnforcerOptions;
  readonly #run: RunDirectory;
  readonly #sandboxes = new Map<string, Sandbox>();
  readonly #bySlot = new Map<number, Sandbox>();
  readonly #kept = new Map<string, KeptSandbox>();
  /** Slots that a former process left in force, with their devices, until they are taken over or cleared. */
  readonly #left = new Map<number, number>();
  /** Of those, the ones that the workers serve already. */
  readonly #served = new Map<number, Served>();
  readonly #cleanup: (() => void | Promise<void>)[] = [];
  /** Pins ever written by sandbox, when they were last put down. */
  readonly #written = new Map<string, number>();
  #extraGroups: Partial<Record<Group, readonly string[]>>;
  #nat64Prefixes: readonly string[];
  #instance!: Instance;
  #globals!: Globals;
  #resolver!: ResolverClient;
  #inspection!: Inspection;
  #link!: ResolverLink;
  /** null: nftables is not there. */
  #base: BaseDrop | null = null;
  /** Names that are held although no sandbox has them: taps that are waited for, and taps that were deleted under their policy. */
  readonly #awaited = new Set<string>();
  readonly #gone = new Set<string>();
  #watch!: HostWatch;
  #groups!: GroupTable;
  /** Devices of which something was told since the last reading. */
  readonly #stale = new Set<number>();
  #events: RingBuffer | null = null;
  /** Self-tests that the kernel told of, and whose event has not come yet. */
  readonly #ownEvents: { readonly slot: number; readonly generation: number; readonly from: bigint; readonly until: bigint }[] = [];
  #pendingGateways: readonly Address[] = [];
  #generation = 0;
  #sweeps = 0;
  #started = false;
  #stopped = false;
  /** A former process's enforcement is still in force and this process could not take it over: it stays. */
  #leaveInForce = false;

  private constructor(options: EnforcerOptions) {
    this.#options = options;
    this.#run = options.run;
    this.#extraGroups = options.extraGroups;
    this.#nat64Prefixes = options.nat64Prefixes;
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
  /** The one that a worker means; null when it has gone. */
  sandboxAt(slot: number, generation: number): Sandbox | null {
    const sandbox = this.#bySlot.get(slot);
    return sandbox?.generation === generation ? sandbox : null;
  }
  get kept(): ReadonlyMap<string, KeptSandbox> { return this.#kept; }
  get view(): HostView { return this.#watch.view; }
  get links(): HostWatch["links"] { return this.#watch.links; }
  get slots(): number { return this.#instance.sandboxes; }

  /** Runs with the thread in the taps' namespace. */
  inside<T>(work: () => T): T { return this.#options.netnsFd === null ? work() : inNetns(this.#options.netnsFd, work); }

  async #start(): Promise<void> {
    const { bpffs, instance, resolverDevice, netnsFd } = this.#options;
    const directory = instanceDirectory(bpffs, instance);
    const fresh = !existsSync(directory);
    for (const folder of [dirname(directory), directory]) refuseForeign(folder);
    refuseOtherLayout(directory);
    forgottenExpedite();
    this.#instance = Instance.open({ directory, sandboxes: this.#options.sandboxes });
    this.#cleanup.push(() => (fresh && !this.#started ? this.#instance.destroy() : this.#instance.close()));
    this.#globals = new Globals(this.#instance);
    this.#generation = this.#lastGeneration();
    // Pins of links whose device has gone hold nothing; a resolver's device goes with the process that made it.
    this.inside(() => {
      for (const ifindex of linkedDevices(this.#instance)) if (findLinkByIndex(ifindex) === null) detachHooks(this.#instance, ifindex, TAP_HOOKS);
      for (const { slot, ifindex } of this.#slotsInForce()) {
        if (findLinkByIndex(ifindex) !== null) {
          this.#left.set(slot, ifindex);
          continue;
        }
        SandboxTables.clearSlot(this.#instance, slot);
        this.#globals.clearTap(ifindex);
      }
      if (!fresh) SandboxTables.clearUnfinished(this.#instance);
    });

    const { base, missing } = this.inside(() => BaseDrop.open(instance, this.#options.heldPatterns));
    this.#base = base;
    // A former process held them: by its sandboxes, which are attached again, or for taps that had gone.
    for (const name of base?.names ?? []) this.#gone.add(name);
    this.#cleanup.push(() => { if (fresh && !this.#started) this.inside(() => base?.close()); });
    if (missing !== null) this.#options.onNotice(`a tap that is deleted and made again carries packets until it is attached again, because nftables cannot hold them: ${missing}`);

    const agentNetns = createNetns();
    const hostNetns = openNetns();
    this.#cleanup.push(() => { closeFd(agentNetns); closeFd(hostNetns); });
    this.#link = this.inside(() => createResolverLink({ agentNetnsFd: agentNetns, names: { near: resolverDevice, far: "enf1" } }));
    this.#cleanup.push(() => { this.inside(() => removeResolverLink(resolverDevice)); });
    this.inside(() => attachHooks(this.#instance, this.#link.nearIfindex, resolverDevice, RESOLVER_HOOKS));
    this.#cleanup.push(() => this.inside(() => detachHooks(this.#instance, this.#link.nearIfindex, RESOLVER_HOOKS)));

    this.#watch = new HostWatch({
      ...(netnsFd === null ? {} : { netnsFd }),
      onView: () => this.#viewChanged(), onRead: (changed) => this.#refreshStale(changed),
      onLink: (event) => {
        // One of this name that comes next is another's.
        if (event.type === "removed") this.#quietlyHeld(event.link.name);
        this.#stale.add(event.link.ifindex);
        this.#options.onLink(event);
      },
      apart: (fd, devices, ended) => new ReaderClient(fd, devices, (error) => {
        ended();
        this.#options.onNotice(`the host's network is read by the main thread again: ${text(error)}`);
      }),
      onError: (error) => this.#options.onNotice(`a change of the host's addresses is not in force yet and is tried again: ${text(error)}`),
    });
    this.#cleanup.push(() => this.#watch.close());
    this.#groups = this.#readGroups();
    this.#globals.setGroups(this.#groups);

    this.#resolver = new ResolverClient({
      onDenied: (queries) => this.#options.onQueries(queries),
      onResolvers: (servers) => this.#options.onNotice(servers.length === 0 ? "no resolver is configured on the host: names fail until there is one" : `resolvers are now ${servers.join(", ")}`),
      onFailure: (error) => this.#failed(error),
    });
    this.#cleanup.push(() => this.#resolver.stop());
    const { noUpstream } = await this.#resolver.ask({
      kind: "start",
      listen: { netnsFd: agentNetns, address4: formatAddress(this.#link.addr4), address6: this.#link.ipv6 ? formatAddress(this.#link.addr6) : null, port: 53, receiveBuffer: 4 << 20 },
      hostNetnsFd: hostNetns,
      sandboxNet6: this.#link.ipv6 ? this.#link.net6.bytes : null,
      groups: packGroups(this.#groups),
      resolvConf: this.#options.resolvConf,
    });
    this.#inspection = new Inspection({
      listen: { netnsFd: agentNetns, address4: formatAddress(this.#link.addr4), address6: this.#link.ipv6 ? formatAddress(this.#link.addr6) : null },
      hostNetnsFd: hostNetns, sandboxNet6: this.#link.ipv6 ? this.#link.net6.bytes : null, runDirectory: this.#run.path, resolver: this.#resolver, groups: () => this.#groups,
      onDenied: (denials) => this.#options.onDenials(denials),
      onTerminate: (slot, generation, violation) => {
        const sandbox = this.sandboxAt(slot, generation);
        if (sandbox !== null) this.#options.onTerminate(sandbox.name, violation);
      },
      onNotice: (notice) => this.#options.onNotice(notice),
      onFailure: (error) => this.#failed(error),
    });
    this.#cleanup.push(() => this.#inspection.stop());
    if (noUpstream && this.#options.resolvConf !== null) this.#options.onNotice(`${this.#options.resolvConf} names no resolver: names fail unless the policy or --upstream names one`);

    await this.#serveLeft();
    this.#globals.setResolver(this.#link);
    this.inside(() => selfTest(this.#instance, this.#globals, this.#link.nearIfindex));

    const timers = [setInterval(() => this.#sweep(), SWEEP / SWEEP_PARTS), setInterval(() => { this.writePins().catch((error: unknown) => this.#options.onNotice(`pins could not be written down: ${text(error)}`)); }, WRITE_PINS)];
    for (const timer of timers) timer.unref();
    this.#started = true;
    this.#cleanup.push(() => { for (const timer of timers) clearInterval(timer); });
  }

  // ---- attach and detach --------------------------------------------------------------------------------------------

  /**
   * Puts a tap under its policy; what a former process left in force on it is taken over without a gap.
   * @throws EnforcerError; then the tap is as it was.
   */
  async attach(options: AttachOptions): Promise<Sandbox> {
    const { name, tap } = options;
    const facts = this.inside(() => tapFacts(tap));
    for (const other of this.#sandboxes.values()) {
      if (other.name === name || other.facts.ifindex === facts.ifindex) throw new EnforcerError("E_TAP_TAKEN", `${other.name} is attached already (device ${other.facts.name})`, { remedy: "detach it first, or change its policy with enforcer policy set" });
    }
    if (facts.xdp !== null) this.#options.onNotice(`${tap}: an XDP program (id ${facts.xdp.programId ?? "unknown"}) sees the guest's frames before the enforcer does`);
    const identity = identityOf(facts, options);
    this.#pendingGateways = options.gateways;
    if (options.gateways.length > 0) this.#hostChanged();
    const [policy, floor] = this.#regrouped(options.policy, options.floor ?? null);
    const sizes = sizesOf(policy);
    const digest = digestOf(policy, floor);
    const file = this.#run.read(name);
    const former = file?.ifindex === facts.ifindex ? file : null;

    const undo: (() => void | Promise<void>)[] = [];
    let survived = false;
    try {
      const left = this.inside(() => this.#leftInForce(facts.ifindex));
      survived = left !== null;
      // The number was another device's, which has gone.
      if (left === null) for (const [slot, ifindex] of this.#left) if (ifindex === facts.ifindex) await this.#clearLeft(slot);
      const slot = left?.slot ?? this.#freeSlot();
      const generation = left?.generation ?? this.#nextGeneration();
      const tested = left !== null && former?.slot === slot && former.generation === generation && former.tests !== undefined ? former.tests : { denied: 0, lost: 0 };
      // A new sandbox tells nothing before its test is over; one that is taken over tells of the frame, or it is one of those that it may not tell.
      const tests: OwnFrames = { denied: tested.denied + 1, lost: tested.lost + (left === null ? 1 : 0) };
      const target: PolicyState = { uid: "0", digest, source: options.source };
      const state = { version: 1, name, device: tap, ifindex: facts.ifindex, slot, generation, next: null, spec: options.spec } as const;
      const planned = this.inside(() => plannedChanges(facts.name));
      if (left === null) {
        this.#run.write({ ...state, phase: "attaching", policy: target, changes: mergeChanges(former?.changes ?? [], planned) });
        undo.push(() => { this.#run.remove(name); });
      }
      // From here on only what our programs have marked comes in by this name, also when the device is another one.
      this.inside(() => this.#hold(tap, undo));
      // Before a former process's settings are lost: they are what restoring means.
      const preparation = this.inside(() => prepareTap(facts, planned));
      const changes = former === null ? preparation.changes : mergeChanges(former.changes, preparation.changes);
      undo.push(() => { this.inside(() => restoreTap({ ifindex: facts.ifindex, name: tap, changes })); });
      const inForce = left === null || former === null ? null : former.next !== null && former.next.uid === left.uid.toString() ? former.next : former.policy;
      const tables = left ?? SandboxTables.make(this.#instance, slot, generation, identity, { ...sizes, eventsPerSecond: 0 });
      if (left === null) undo.push(() => tables.clear());
      const compileAs = (uid: bigint): Pick<Served, "compiled" | "compiledFloor"> => this.#servedAs(slot, generation, uid, digest) ?? {
        compiled: compilePolicy(policy, { uid, floor: floor !== null, inspect: true }), compiledFloor: floor === null ? null : compilePolicy(floor, { uid: floorUid(uid), inspect: true }),
      };
      const standing = left !== null && inForce !== null && inForce.uid === left.uid.toString() && inForce.digest === digest ? compileAs(left.uid) : null;
      const samePolicy = standing !== null && [standing.compiled, standing.compiledFloor].every((one) => one === null || tables.holds(one));
      const uid = samePolicy ? tables.uid : tables.nextUid();
      const served = samePolicy ? this.#servedAs(slot, generation, uid, digest) : null;
      const { compiled, compiledFloor } = samePolicy ? standing : compileAs(uid);
      const pins = samePolicy ? tables.pins() : tables.stage(compiled, uid, sizes.pins);
      const floorPins = compiledFloor === null ? null : samePolicy ? tables.pins("floor") : tables.stageFloor(compiledFloor, uid, sizes.pins);
      if (pins === null || (floor !== null && floorPins === null)) throw new EnforcerError("E_ATTACH", `${tap}: the map of pins is missing`);
      if (served === null) {
        await this.#forgetInWorkers(slot);
        await this.#serve({ name, slot, generation, policy, floor, upstreams: options.upstreams, pins, floorPins, tables, adopt: samePolicy, restore: left !== null });
      } else {
        pins.close();
        floorPins?.close();
      }
      undo.push(() => this.#resolver.ask({ kind: "removeSandbox", slot, generation }).then(() => undefined));
      this.#served.delete(slot);
      if (served === null) await this.#inspection.serve({ name, slot, generation, tables, policy, compiled, floor, compiledFloor });
      undo.push(() => this.#inspection.remove(slot, generation));
      if (left !== null && !samePolicy) this.#run.write({ ...state, phase: "enforced", policy: inForce ?? { ...target, uid: left.uid.toString(), digest: "" }, next: { ...target, uid: uid.toString() }, changes, tests: tested });
      if (!samePolicy) tables.commit(uid);
      if (left === null) tables.enforce();
      const { mechanism, before } = this.inside(() => {
        this.#globals.setTap(facts.ifindex, slot, generation);
        if (left === null) undo.push(() => this.#globals.clearTap(facts.ifindex));
        const attachment = attachHooks(this.#instance, facts.ifindex, tap, TAP_HOOKS);
        if (left === null) undo.push(() => this.inside(() => detachHooks(this.#instance, facts.ifindex, TAP_HOOKS)));
        this.#selfTestTap(slot, generation, facts);
        return attachment;
      });
      tables.describe(identity, sizes);
      this.#run.write({ ...state, phase: "enforced", policy: { ...target, uid: uid.toString() }, changes, tests });
      this.#events ??= followEvents(this.#instance, (events) => this.#options.onPackets(this.#ofGuests(events)));
      const sandbox: Sandbox = {
        name, slot, generation, options, facts, identity, policy, compiled, floor, compiledFloor, former: null, mechanism, before: before.map(({ hook, program }) => `${program} (${hook})`),
        preparation: { ...preparation, changes }, tables, adopted: left !== null, tests, since: Date.now(),
      };
      for (const kept of this.#kept.values()) if (kept.slot === slot) this.#kept.delete(kept.name);
      this.#sandboxes.set(name, sandbox);
      this.#bySlot.set(slot, sandbox);
      this.#left.delete(slot);
      this.#awaited.delete(tap);
      this.#gone.delete(tap);
      return sandbox;
    } catch (error) {
      if (survived) this.#leaveInForce = true;
      for (const step of undo.reverse()) await quietly(step);
      throw error;
    } finally {
      this.#pendingGateways = [];
    }
  }

  /** Where the sandbox may tell of denials, as one that is taken over, it tells of this frame: that is known, and left out once. */
  #selfTestTap(slot: number, generation: number, { ifindex, name }: Sandbox["facts"]): void {
    const lost = (): bigint | undefined => this.#instance.map("event_limits").lookup(slotKey(slot))?.readBigUInt64LE(layouts.event_limit.fields.lost.offset);
    const before = lost(), from = clockMonotonicCoarse();
    selfTestTap(this.#instance, slot, ifindex, name);
    // Had it not been told, it would be counted as lost.
    if (lost() === before) this.#ownEvents.push({ slot, generation, from, until: clockMonotonicCoarse() });
  }

  /** Of events that are as that of a self-test, at its time, one is left out for each that was told: a guest's that is the same is not. */
  #ofGuests(events: readonly PacketEvent[]): readonly PacketEvent[] {
    if (this.#ownEvents.length === 0) return events;
    return events.filter((event) => {
      const own = isAsTapTest(event) ? this.#ownEvents.findIndex(({ slot, generation, from, until }) => slot === event.slot && generation === event.generation && from <= event.timeNs && event.timeNs <= until) : -1;
      if (own >= 0) this.#ownEvents.splice(own, 1);
      return own < 0;
    });
  }

  /** Tells the resolver of a sandbox, with the pins that a former process wrote down. Closes `pins`. */
  async #serve({ name, slot, generation, policy, floor, upstreams, pins, floorPins, tables, adopt, restore }: {
    name: string; slot: number; generation: number; policy: Policy; floor: Policy | null; upstreams: readonly UpstreamAddress[]; pins: BpfMap; floorPins: BpfMap | null; tables: SandboxTables;
    /** the map of pins has the former process's content, under this same policy */ adopt: boolean; restore: boolean;
  }): Promise<void> {
    const flows = tables.inner("flows");
    try {
      await this.#resolver.ask({
        kind: "addSandbox", slot, generation, name, policy, floor, compiledGroups: null,
        pinsFd: pins.fd, floorPinsFd: floorPins?.fd ?? null, flowsFd: flows?.fd ?? null, pinEpochsFd: this.#instance.map("pin_epochs").fd,
        upstreams: upstreams.length > 0 ? upstreams : null,
      });
      if (!restore) return;
      const book = this.#run.readPins(name);
      await this.#resolver.ask({
        kind: "restorePins", slot, generation, pinsFd: adopt ? pins.fd : null, floorPinsFd: adopt ? (floorPins?.fd ?? null) : null,
        pins: book === null || book.generation !== generation ? [] : book.pins.map(([labels, address, expires]) => ({ labels, address: Uint8Array.from(Buffer.from(address, "hex")), expires })),
      }).catch(async (error: unknown) => {
        await this.#resolver.ask({ kind: "removeSandbox", slot, generation });
        throw error;
      });
    } finally {
      pins.close();
      floorPins?.close();
      flows?.close();
    }
  }

  /** A kept sandbox is known to the resolver as one that may resolve nothing; one that was served at the start may be another by now. */
  async #forgetInWorkers(slot: number): Promise<void> {
    const generations = [...this.#kept.values()].filter((kept) => kept.slot === slot).map(({ generation }) => generation);
    const served = this.#served.get(slot);
    this.#served.delete(slot);
    if (served !== undefined) generations.push(served.generation);
    for (const generation of generations) {
      await this.#resolver.ask({ kind: "removeSandbox", slot, generation }).catch(() => undefined);
      await this.#inspection.remove(slot, generation).catch(() => undefined);
    }
  }

  #servedAs(slot: number, generation: number, uid: bigint, digest: string): Served | null {
    const served = this.#served.get(slot);
    return served !== undefined && served.generation === generation && served.uid === uid && served.digest === digest ? served : null;
  }

  /**
   * Tells the workers of every sandbox that is in force as its state file says, before the kernel sends them anything: what a
   * client asked while there was no agent is answered when it asks again, in whichever sandbox. What differs is left to attach().
   */
  async #serveLeft(): Promise<void> {
    const waiting = [...this.#options.adoptable(this.#groups)];
    while (waiting.length > 0) await Promise.all(waiting.splice(0, SERVED_TOGETHER).map((one) => this.#serveAdopted(one)));
  }

  async #serveAdopted({ state, build }: Adoptable): Promise<void> {
    const { name, ifindex } = state;
    const tables = this.inside(() => this.#leftInForce(ifindex));
    if (tables === null || tables.slot !== state.slot || tables.generation !== state.generation) return;
    const { slot, generation, uid } = tables;
    const inForce = state.next?.uid === uid.toString() ? state.next : state.policy;
    if (inForce.uid !== uid.toString() || this.#served.has(slot)) return;
    try {
      const built = build(inForce.source);
      const [policy, floor] = this.#regrouped(built.policy, built.floor);
      const digest = digestOf(policy, floor);
      if (digest !== inForce.digest) return;
      const compiled = compilePolicy(policy, { uid, floor: floor !== null, inspect: true });
      const compiledFloor = floor === null ? null : compilePolicy(floor, { uid: floorUid(uid), inspect: true });
      const pins = tables.pins(), floorPins = floor === null ? null : tables.pins("floor");
      if (pins === null || (floor !== null && floorPins === null)) {
        pins?.close();
        return;
      }
      this.#served.set(slot, { generation, uid, digest, compiled, compiledFloor });
      await this.#serve({ name, slot, generation, policy, floor, upstreams: built.upstreams, pins, floorPins, tables, adopt: true, restore: true });
      await this.#inspection.serve({ name, slot, generation, tables, policy, compiled, floor, compiledFloor });
    } catch {
      // attach() says why.
      await this.#forgetInWorkers(slot);
    }
  }

  /**
   * Nothing comes in from a tap of this name from now on, although there is none yet, until it is attached and its policy lets it.
   * @throws EnforcerError E_ATTACH.
   */
  awaitTap(tap: string): void {
    this.inside(() => this.#base?.add(tap));
    this.#awaited.add(tap);
  }

  /** Instead of those of the start. @throws EnforcerError E_ATTACH; then those of before hold. */
  holdPatterns(patterns: readonly string[]): void { this.inside(() => this.#base?.holdPatterns(patterns)); }

  #quietlyHeld(tap: string): void {
    try {
      this.inside(() => this.#base?.unfree(tap));
    } catch (error) {
      this.#options.onNotice(text(error));
    }
  }

  /** The tap is not waited for any more, or not held any more although it was deleted while it was attached. */
  forgetTap(tap: string): void {
    this.#awaited.delete(tap);
    this.#gone.delete(tap);
    this.inside(() => this.#release(tap));
  }

  /** Names from which only judged frames come in: those of sandboxes, those that are waited for, and those of taps that were deleted under their policy. */
  get heldTaps(): ReadonlySet<string> { return this.#base?.names ?? new Set(); }

  /** Whether the device carries this instance's programs: one that only got the number of a device that did does not. */
  carries(ifindex: number): boolean { return this.inside(() => hooksHeld(this.#instance, ifindex, TAP_HOOKS)); }

  /** Names of taps that are waited for. */
  get awaited(): ReadonlySet<string> { return this.#awaited; }

  /** Frames that came from a tap of a held name and that no program had judged. */
  async unjudged(): Promise<number> { return this.inside(() => this.#base?.dropped()) ?? 0; }

  #hold(tap: string, undo: (() => void)[]): void {
    if (this.#base === null) return;
    this.#base.unfree(tap);
    if (this.#base.names.has(tap)) return;
    this.#base.add(tap);
    undo.push(() => { this.inside(() => this.#release(tap)); });
  }

  /** Unless another has a claim to it. */
  #release(tap: string): void {
    if (this.#awaited.has(tap) || this.#gone.has(tap) || [...this.#sandboxes.values()].some(({ facts }) => facts.name === tap) || [...this.#kept.values()].some(({ device }) => device === tap)) return;
    this.#base?.remove(tap);
  }

  /** The device was deleted: who makes one of this name again finds it closed. */
  #keepHeld(tap: string): void {
    this.#gone.delete(tap);
    this.#gone.add(tap);
    for (const oldest of this.#gone) {
      if (this.#gone.size <= GONE_TAPS) return;
      this.#gone.delete(oldest);
      this.#release(oldest);
    }
  }

  /**
   * Takes a tap out from under its policy and frees what was its. A tap that has gone is no error.
   * @param gone it was deleted; its name is held on, until a tap of this name is attached or forgotten (forgetTap).
   * @param awaited its state file stays, for the caller to put another in its place at once: no kill in between forgets what waits.
   */
  async detach(name: string, { gone = false, awaited = false } = {}): Promise<void> {
    const sandbox = this.#sandboxes.get(name) ?? this.#kept.get(name);
    if (sandbox === undefined) return;
    const known = "facts" in sandbox ? sandbox : null;
    const ifindex = known?.facts.ifindex ?? (sandbox as KeptSandbox).ifindex;
    const state = this.#run.read(name);
    if (state !== null) this.#run.write({ ...state, phase: gone ? "gone" : "detaching" });
    this.#sandboxes.delete(name);
    this.#bySlot.delete(sandbox.slot);
    this.#kept.delete(name);
    this.#written.delete(name);
    // While our programs still show that it is the same device: its number may be another's by now, which is left alone.
    if (this.carries(ifindex)) this.inside(() => restoreTap({ ifindex, changes: known?.preparation.changes ?? state?.changes ?? [] }));
    this.inside(() => detachHooks(this.#instance, ifindex, TAP_HOOKS));
    this.#globals.clearTap(ifindex);
    await this.#resolver.ask({ kind: "removeSandbox", slot: sandbox.slot, generation: sandbox.generation }).catch((error: unknown) => { if (known !== null) throw error; });
    await this.#inspection.remove(sandbox.slot, sandbox.generation);
    forgetAuthority(this.#run.path, name);
    forgetPlaceholders(this.#run.path, name);
    sandbox.tables.clear();
    this.#left.delete(sandbox.slot);
    const tap = known?.facts.name ?? state?.device ?? name;
    this.inside(() => {
      if (gone) return this.#keepHeld(tap);
      this.#release(tap);
      this.#base?.free(tap);
    });
    // Last: while there is a state file a successor completes this.
    if (!awaited) this.#run.remove(name);
    if (known !== null && known.options.gateways.length > 0) this.#hostChanged();
  }

  // ---- policy swap --------------------------------------------------------------------------------------------------

  /**
   * Puts another policy in force, whole and at once: no packet is judged by parts of both. Flows are judged again, pins live
   * on as far as the new policy knows their names. @throws EnforcerError; then the old policy is in force as before.
   * @param floor of the operator; null: none.
   * @returns pins written for the new policy, and pins that it has no place for.
   */
  async setPolicy(name: string, asked: Policy, source: unknown, askedFloor: Policy | null = null): Promise<{ uid: bigint; written: number; left: number }> {
    const [policy, floor] = this.#regrouped(asked, askedFloor);
    const sandbox = this.#sandboxes.get(name);
    if (sandbox === undefined) throw new EnforcerError("E_NO_SANDBOX", `no sandbox ${name} is in force`);
    const { tables, slot, generation, options } = sandbox;
    const uid = tables.nextUid();
    const compiled = compilePolicy(policy, { uid, floor: floor !== null, inspect: true });
    const compiledFloor = floor === null ? null : compilePolicy(floor, { uid: floorUid(uid), inspect: true });
    const sizes = sizesOf(policy);
    const state = this.#run.read(name) ?? this.#stateOf(sandbox);
    const next: PolicyState = { uid: uid.toString(), digest: digestOf(policy, floor), source };
    let begun = false;
    let written = 0, left = 0;
    try {
      const pins = tables.stage(compiled, uid, sizes.pins);
      let floorPins: BpfMap | null = null;
      try {
        if (compiledFloor !== null) floorPins = tables.stageFloor(compiledFloor, uid, sizes.pins);
        ({ written, left } = await this.#resolver.ask({
          kind: "swapPolicy", slot, generation, policy, floor, compiledGroups: null, pinsFd: pins.fd, floorPinsFd: floorPins?.fd ?? null, pinEpochsFd: this.#instance.map("pin_epochs").fd,
          upstreams: options.upstreams.length > 0 ? options.upstreams : null,
        }));
        begun = true;
      } finally {
        pins.close();
        floorPins?.close();
      }
      await this.#inspection.serve({ name, slot, generation, tables, policy, compiled, floor, compiledFloor });
      this.#run.write({ ...state, next });
      tables.commit(uid);
    } catch (error) {
      if (begun) await quietly(() => this.#inspection.serve(sandbox));
      if (begun) await quietly(() => this.#resolver.ask({ kind: "abortSwap", slot, generation }).then(() => undefined));
      if (tables.uid !== uid) await quietly(() => tables.discard(uid));
      await quietly(() => this.#run.write(state));
      throw error;
    }
    sandbox.former = sandbox.compiled;
    sandbox.compiled = compiled;
    sandbox.policy = policy;
    sandbox.floor = floor;
    sandbox.compiledFloor = compiledFloor;
    sandbox.options = { ...options, policy, source, floor };
    await this.#resolver.ask({ kind: "confirmSwap", slot, generation });
    tables.describe(sandbox.identity, sizes);
    this.#run.write({ ...state, policy: next, next: null });
    await this.#writePins(sandbox).catch(() => undefined);
    for (const [turn, after] of NUDGE_AFTER.entries()) setTimeout(() => { this.#nudge(sandbox, uid, turn).catch((error: unknown) => { if (!this.#stopped) this.#options.onNotice(`${name}: silent connections that the policy forbids stand until they speak: ${text(error)}`); }); }, after).unref();
    return { uid, written, left };
  }

  /** Connections that nothing has passed since the swap, and that it forbids, end as busy ones do: both ends are told. */
  async #nudge(sandbox: Sandbox, uid: bigint, turn: number): Promise<void> {
    const current = (): boolean => !this.#stopped && this.#sandboxes.get(sandbox.name) === sandbox && sandbox.compiled.uid === uid;
    if (!current()) return;
    const names = new Map<string, (readonly string[])[]>();
    for (const { address, labels } of await this.pins(sandbox)) {
      const key = formatAddress(address);
      names.set(key, [...(names.get(key) ?? []), labels]);
    }
    const policies = [sandbox.policy, ...(sandbox.floor === null ? [] : [sandbox.floor])];
    const forbidden = ({ direction, remote, remotePort, guestPort, inspected }: FlowRow): boolean => {
      const port = direction === "egress" ? remotePort : guestPort;
      const judged = policies.map((policy) => judgeFlow(policy, this.#groups, { direction, address: remote, protocol: Proto.tcp, port, names: names.get(formatAddress(remote)) ?? [], inspect: true }));
      // One that the agent has to look into from now on, or no more, ends as well.
      return judged.some(({ verdict }) => verdict === "deny") || judged.some((one) => one.inspected) !== inspected;
    };
    let left = NUDGES;
    for (const former of formerTcp(sandbox.tables, uid)) {
      // Others have their turn between the parts of a large table; and the policy, the sandbox or the device may be another after it.
      await nextTurn();
      if (!current()) return;
      const { identity: { ifindex, tapMac, guest, mac } } = sandbox, learned = this.learned(sandbox);
      const known = mac ?? learned.mac;
      if (known === null || !this.carries(ifindex)) return;
      const told = former.filter(forbidden).slice(0, left);
      left -= this.inside(() => nudgeFlows(this.#instance, { ifindex, tapMac, mac: known, guest, learned }, told, turn));
      if (left === 0) return;
    }
  }

  /** Policies whose prefixes lie in other groups since the host's network changed are put in force anew. One operation, as attach is. */
  async regroup(): Promise<void> {
    for (const { name, policy, floor, options } of [...this.#sandboxes.values()]) {
      const [now, floorNow] = this.#regrouped(policy, floor);
      if (now !== policy || floorNow !== floor) await this.setPolicy(name, now, options.source, floorNow);
    }
  }

  #regrouped(policy: Policy, floor: Policy | null): [Policy, Policy | null] { return [regroup(policy, this.#groups), floor === null ? null : regroup(floor, this.#groups)]; }

  // ---- what a former process left -----------------------------------------------------------------------------------

  /** Slot in force for this device, with our programs still on its hooks. */
  #leftInForce(ifindex: number): SandboxTables | null {
    if (!hooksHeld(this.#instance, ifindex, TAP_HOOKS)) return null;
    for (const [slot, device] of this.#left) {
      if (device !== ifindex) continue;
      const tables = SandboxTables.adopt(this.#instance, slot);
      if (tables !== null && tables.uid !== 0n) return tables;
    }
    return null;
  }

  async #clearLeft(slot: number): Promise<void> {
    await this.#forgetInWorkers(slot);
    SandboxTables.clearSlot(this.#instance, slot);
    this.#left.delete(slot);
  }

  #slotsInForce(): { slot: number; ifindex: number; generation: number }[] {
    const { keys, values, count } = this.#instance.map("sandboxes").entries();
    const field = layouts.sandbox.fields;
    const found: { slot: number; ifindex: number; generation: number }[] = [];
    for (let i = 0; i < count; i++) {
      const at = i * layouts.sandbox.size;
      if (values.readUInt32LE(at + field.state.offset) !== State.SANDBOX_ENFORCED) continue;
      const slot = keys.readUInt32LE(i * 4);
      if (slot !== this.#instance.spareSlot) found.push({ slot, ifindex: values.readUInt32LE(at + field.ifindex.offset), generation: values.readUInt32LE(at + field.generation.offset) });
    }
    return found;
  }

  /**
   * After everything that is known has been attached again: what else the kernel holds. A slot whose tap still carries our
   * programs goes on being enforced, and is listed as kept; what leads nowhere is removed.
   * @param nameOf a device's sandbox, where a state file tells it.
   */
  async settle(nameOf: (ifindex: number) => string | null): Promise<void> {
    const known = new Set([...this.#sandboxes.values(), ...this.#kept.values()].map(({ slot }) => slot));
    for (const { slot, ifindex, generation } of this.#slotsInForce()) {
      if (known.has(slot)) continue;
      // An attach that was killed just before it took the hooks, and has been done again since: the device has another slot by now.
      if ([...this.#sandboxes.values()].some(({ facts }) => facts.ifindex === ifindex) || [...this.#kept.values()].some((kept) => kept.ifindex === ifindex)) {
        await this.#clearLeft(slot);
        continue;
      }
      const link = this.inside(() => findLinkByIndex(ifindex));
      const tables = link === null ? null : this.inside(() => this.#leftInForce(ifindex));
      if (link === null || tables === null || tables.slot !== slot) {
        await this.#clearLeft(slot);
        this.#globals.clearTap(ifindex);
        continue;
      }
      await this.#forgetInWorkers(slot);
      const name = nameOf(ifindex) ?? link.name;
      const fault = this.#run.fault(name);
      const reason = fault === null ? "its policy could not be built again" : `its state file is not regarded: ${fault}`;
      this.inside(() => attachHooks(this.#instance, ifindex, link.name, TAP_HOOKS));
      this.#globals.setTap(ifindex, slot, generation);
      const nothing = tables.pins();
      if (nothing !== null) {
        const { policy } = buildPolicy({ noNet: true });
        await this.#resolver.ask({ kind: "addSandbox", slot, generation, name, policy, floor: null, compiledGroups: null, pinsFd: nothing.fd, floorPinsFd: null, flowsFd: null, pinEpochsFd: null, upstreams: null }).finally(() => nothing.close());
      }
      this.#kept.set(name, { name, slot, generation, ifindex, device: link.name, tables, reason });
      this.inside(() => this.#base?.add(link.name));
      this.#gone.delete(link.name);
      this.#options.onNotice(`${name}: kept in force as a former process left it, because ${reason}; names are not resolved. Attach it again to give it a policy`);
    }
    const held = new Set([...this.#sandboxes.values()].map(({ facts }) => facts.ifindex));
    for (const { ifindex } of this.#kept.values()) held.add(ifindex);
    held.add(this.#link.nearIfindex);
    this.inside(() => { for (const ifindex of linkedDevices(this.#instance)) if (!held.has(ifindex)) detachHooks(this.#instance, ifindex, TAP_HOOKS); });
    this.#events ??= followEvents(this.#instance, (events) => this.#options.onPackets(this.#ofGuests(events)));
  }

  // ---- the end ------------------------------------------------------------------------------------------------------

  /** Detaches everything and leaves nothing behind. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    if (this.#leaveInForce) return this.#abandon();
    for (const name of [...this.#sandboxes.keys(), ...this.#kept.keys()]) await quietly(() => this.detach(name));
    // What a former process left in force and nobody has taken over: its pins are what holds that guest.
    if (this.#slotsInForce().some(({ ifindex }) => this.inside(() => hooksHeld(this.#instance, ifindex, TAP_HOOKS)))) return this.#abandon();
    this.#stopped = true;
    this.#events?.close();
    const directory = this.#instance.directory;
    for (const step of this.#cleanup.reverse()) await quietly(step);
    await quietly(() => this.inside(() => this.#base?.close()));
    if (directory !== null) {
      await quietly(() => removePins(directory));
      await quietly(() => removeIfEmpty(join(directory, "..")));
    }
  }

  /** Ends serving and leaves the kernel enforcing, for a successor to take over. */
  async release(): Promise<void> {
    if (this.#stopped) return;
    await quietly(() => this.writePins(true));
    await quietly(() => this.#globals.expectSuccessor(SUCCESSOR_WITHIN));
    await this.#abandon();
  }

  async #abandon(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#events?.close();
    for (const step of this.#cleanup.reverse()) await quietly(step);
  }

  // ---- what is known ------------------------------------------------------------------------------------------------

  /** Counters of a sandbox that are not zero, without what self-tests are known to have left there. */
  counters(sandbox: Sandbox | KeptSandbox): Count[] {
    const map = sandbox.tables.inner("counters");
    if (map === null) return [];
    try {
      const counts = readCounters(map);
      return "tests" in sandbox ? countsOfGuest(counts, sandbox.tests.denied) : counts;
    } finally {
      map.close();
    }
  }

  /** Packets that belonged to no sandbox. */
  orphans(): Count[] { return readCounters(this.#instance.map("orphans")); }

  /** Denial events: not told; told in the latest second that had one. And queries over UDP that the resolver has not answered yet. */
  limitCounters(sandbox: Sandbox): { eventsLost: number; events: number; dnsWaiting: number } {
    const { lost, sent, dns_waiting: waiting } = layouts.event_limit.fields;
    const record = this.#instance.map("event_limits").lookup(slotKey(sandbox.slot));
    if (record === null) return { eventsLost: 0, events: 0, dnsWaiting: 0 };
    return { eventsLost: Math.max(0, Number(record.readBigUInt64LE(lost.offset)) - sandbox.tests.lost), events: record.readUInt32LE(sent.offset), dnsWaiting: Math.max(0, record.readInt32LE(waiting.offset)) };
  }

  /** Entries now and at most, of the tables that can be full. A table of a million is counted in parts. */
  async fill(sandbox: Sandbox, slices: Slices): Promise<{ map: "flows" | "pins" | "fragments"; entries: number; limit: number }[]> {
    // All at once: after a pause the slot may be another sandbox's.
    const maps = [["flows", sandbox.tables.inner("flows")], ["pins", sandbox.tables.pins()], ["fragments", sandbox.tables.inner("fragments")]] as const;
    const rows: { map: "flows" | "pins" | "fragments"; entries: number; limit: number }[] = [];
    try {
      for (const [name, map] of maps) if (map !== null) rows.push({ map: name, entries: await countEntries(map, slices), limit: map.info.maxEntries });
    } finally {
      for (const [, map] of maps) map?.close();
    }
    return rows;
  }

  /** Where our programs stand on the tap's hooks, and which they are. */
  hooks(ifindex: number): { hook: "ingress" | "egress"; program: string; id: number; tag: string; position: number; chain: readonly string[] }[] {
    return this.inside(() => TAP_HOOKS.map((hook) => {
      const { id, tag } = this.#instance.program(hook.program).info;
      const { programs, position } = chainOf(this.#instance, ifindex, hook);
      return { hook: hook.hook, program: hook.program, id, tag, position, chain: programs };
    }));
  }

  /** What the kernel took from the guest's first frames; null: nothing yet. */
  learned(sandbox: Sandbox): { mac: Uint8Array | null; address4: Uint8Array | null; address6: Uint8Array | null } {
    const record = this.#instance.map("learned").lookup(slotKey(sandbox.slot));
    const { mac, addr4, state6, addr6 } = layouts.learned.fields;
    if (record === null) return { mac: null, address4: null, address6: null };
    const four = record.subarray(addr4.offset, addr4.offset + 4);
    const mapped = new Uint8Array(16);
    mapped.set([255, 255], 10);
    mapped.set(four, 12);
    return {
      mac: record[mac.offset + 6] === 1 ? Uint8Array.from(record.subarray(mac.offset, mac.offset + 6)) : null,
      address4: four.some((octet) => octet !== 0) ? mapped : null,
      address6: record.readUInt32LE(state6.offset) === 2 ? Uint8Array.from(record.subarray(addr6.offset, addr6.offset + 16)) : null,
    };
  }

  /** null: no policy needs a look into connections. */
  /** What the guest's environment is to hold for the secrets of its policy: placeholders. */
  secretsOf({ name }: Sandbox): Record<string, string> { return keptEnvironment(this.#run.path, name); }

  async tlsStats(): Promise<TlsStats | null> { return this.#inspection.stats(); }

  async resolverStats(): Promise<Stats> { return this.#resolver.ask({ kind: "stats" }); }

  async pins(sandbox: Sandbox): Promise<readonly PinRow[]> { return this.#resolver.ask({ kind: "pins", slot: sandbox.slot, generation: sandbox.generation }); }

  async formerPins(sandbox: Sandbox): Promise<readonly FormerPinRow[]> { return this.#resolver.ask({ kind: "formerPins", slot: sandbox.slot, generation: sandbox.generation }); }

  async namesOf(sandbox: Sandbox, address: Address): Promise<readonly string[]> {
    return this.#resolver.ask({ kind: "namesOf", slot: sandbox.slot, generation: sandbox.generation, address });
  }

  /** Resolvers of the host are read again. */
  async reloadResolvers(): Promise<readonly string[]> { return (await this.#resolver.ask({ kind: "reloadResolvers" })).servers; }

  /** Puts pins down for a successor; those of sandboxes that got some since, or all. */
  async writePins(all = false): Promise<void> {
    const { sandboxes } = await this.resolverStats();
    const rows = new Map(sandboxes.map((row) => [row.slot, row]));
    for (const sandbox of [...this.#sandboxes.values()]) {
      const row = rows.get(sandbox.slot);
      if (row?.generation !== sandbox.generation) continue;
      const count = row.pins.added + row.pins.renewed + row.pins.graceExtensions;
      if (!all && this.#written.get(sandbox.name) === count) continue;
      await this.#writePins(sandbox);
      this.#written.set(sandbox.name, count);
    }
  }

  async #writePins(sandbox: Sandbox): Promise<void> {
    const records = await this.#resolver.ask({ kind: "pinRecords", slot: sandbox.slot, generation: sandbox.generation });
    if (this.#sandboxes.get(sandbox.name) === sandbox) this.#run.writePins(sandbox.name, sandbox.generation, records);
  }

  // ---- the host -----------------------------------------------------------------------------------------------------

  /** Other prefixes for the groups, from the configuration. @throws EnforcerError E_GROUPS, E_LIMIT; then the former ones stay. */
  setExtraGroups(extra: Partial<Record<Group, readonly string[]>>, nat64Prefixes: readonly string[]): void {
    const former = [this.#extraGroups, this.#nat64Prefixes] as const;
    this.#extraGroups = extra;
    this.#nat64Prefixes = nat64Prefixes;
    try {
      this.#hostChanged();
    } catch (error) {
      [this.#extraGroups, this.#nat64Prefixes] = former;
      this.#hostChanged();
      throw error;
    }
  }

  /** The outer host's addresses changed. */
  hostChanged(): void { this.#viewChanged(); }

  #readGroups(): GroupTable {
    const outer = this.#options.outer?.() ?? null;
    const views = outer === null ? [this.#watch.view] : [this.#watch.view, outer];
    const gateways = [...this.#sandboxes.values()].flatMap(({ options }) => options.gateways);
    const { host = [], ...extra } = this.#extraGroups;
    return groupTable({
      hostAddresses: [...views.flatMap(({ addresses }) => addresses), ...gateways, ...this.#pendingGateways],
      connectedPrefixes: views.flatMap(({ connectedPrefixes }) => connectedPrefixes), broadcasts: views.flatMap(({ broadcasts }) => broadcasts),
      extra: { ...extra, host: [...host, ...views.flatMap(({ localPrefixes }) => localPrefixes.map((prefix) => formatPrefix(prefix)))] },
      nat64Prefixes: this.#nat64Prefixes,
    });
  }

  #viewChanged(): void {
    // A failure goes to the watch, which gives the view again.
    this.#hostChanged();
    this.#options.onView();
  }

  /** Sandboxes whose tap or bridge has changed (addresses, routes, MAC, master), or that still lack an address. */
  #refreshStale(changed: ReadonlySet<number>): void {
    for (const ifindex of changed) this.#stale.add(ifindex);
    for (const sandbox of this.#sandboxes.values()) {
      const { facts: { ifindex, bridge }, identity: { gateways, learnPrefixes } } = sandbox;
      if (this.#stale.has(ifindex) || (bridge !== null && this.#stale.has(bridge.ifindex)) || gateways.length === 0 || learnPrefixes.length === 0) this.#refresh(sandbox);
    }
    this.#stale.clear();
  }

  /** Gateways and subnets of the tap may have changed with the host's addresses. */
  #refresh(sandbox: Sandbox): void {
    try {
      const link = this.inside(() => findLinkByIndex(sandbox.facts.ifindex));
      if (link === null) return;
      const facts = this.inside(() => tapFacts(link.name));
      const identity = identityOf(facts, { ...sandbox.options, incomplete: true });
      sandbox.facts = facts;
      if (identityKey(identity) === identityKey(sandbox.identity)) return;
      sandbox.tables.describe(identity, sizesOf(sandbox.policy));
      sandbox.identity = identity;
    } catch (error) {
      this.#options.onNotice(`${sandbox.name}: its addresses could not be read again: ${text(error)}`);
    }
  }

  /** The tap has another name now; it is followed by its ifindex. */
  renamed(sandbox: Sandbox): void {
    const former = sandbox.facts.name;
    this.#refresh(sandbox);
    this.inside(() => {
      this.#base?.add(sandbox.facts.name);
      this.#release(former);
    });
    const state = this.#run.read(sandbox.name);
    if (state !== null) this.#run.write({ ...state, device: sandbox.facts.name });
  }

  /** A worker that is asked something after it was told to end says no: that is no failure. */
  #failed(error: Error): void { if (!this.#stopped) this.#options.onFailure(error); }

  #hostChanged(): void {
    const groups = this.#readGroups();
    this.#globals.setGroups(groups);
    this.#groups = groups;
    const packed = packGroups(groups);
    this.#inspection?.setGroups(packed).catch((error: unknown) => this.#failed(error as Error));
    this.#resolver?.ask({ kind: "groups", groups: packed }).catch((error: unknown) => this.#failed(error as Error));
  }

  // ---- slots --------------------------------------------------------------------------------------------------------

  #freeSlot(): number {
    const used = new Set([...this.#sandboxes.values(), ...this.#kept.values()].map(({ slot }) => slot));
    for (const slot of this.#left.keys()) used.add(slot);
    for (let slot = 0; slot < this.#instance.sandboxes; slot++) if (!used.has(slot)) return slot;
    throw new EnforcerError("E_LIMIT", `${this.#instance.sandboxes} sandboxes are attached already`, { remedy: "raise the number of sandboxes of this agent" });
  }

  /** The last generation given out stands, pinned like everything else, in pin_epochs at the slot that is no sandbox's. */
  #lastGeneration(): number {
    const stored = Number(this.#instance.map("pin_epochs").lookup(slotKey(this.#instance.spareSlot))?.readBigUInt64LE() ?? 0n);
    return Math.max(FIRST_GENERATION - 1, stored % 2 ** 32, ...this.#slotsInForce().map(({ generation }) => generation));
  }

  /** Never given out before in the life of these maps: entries of the packet path's caches name it. */
  #nextGeneration(): number {
    this.#generation = this.#generation >= 2 ** 32 - 1 ? FIRST_GENERATION : this.#generation + 1;
    const value = Buffer.alloc(8);
    value.writeBigUInt64LE(BigInt(this.#generation));
    this.#instance.map("pin_epochs").update(slotKey(this.#instance.spareSlot), value);
    return this.#generation;
  }

  /** A part of the sandboxes at a time: an attach must not wait for all of them. */
  #sweep(): void {
    const part = this.#sweeps++ % SWEEP_PARTS;
    for (const { slot } of this.#sandboxes.values()) {
      if (slot % SWEEP_PARTS !== part) continue;
      const context = Buffer.alloc(SKB_SIZE);
      context.writeUInt32LE(slot, SKB_MARK);
      this.#instance.program("sweep").testRun({ data: new Uint8Array(64), context });
    }
  }

  #stateOf({ name, facts, slot, generation, compiled, policy, floor, options, preparation, tests }: Sandbox): Parameters<RunDirectory["write"]>[0] {
    return {
      version: 1, name, phase: "enforced", device: facts.name, ifindex: facts.ifindex, slot, generation, next: null, changes: preparation.changes, spec: options.spec, tests,
      policy: { uid: compiled.uid.toString(), digest: digestOf(policy, floor), source: options.source },
    };
  }
}

function sizesOf({ limits }: Policy): { flows: number; pins: number; eventsPerSecond: number } {
  return { flows: limits.flows, pins: limits.pins, eventsPerSecond: limits.eventsPerSecond };
}

/** Entries that are counted without a pause; first few, because most tables are nearly empty and room is not free. */
const COUNTED_FIRST = 64, COUNTED_AT_ONCE = 4096;

async function countEntries(map: BpfMap, slices: Slices): Promise<number> {
  let sum = 0;
  for (let after: Buffer | null = null; ;) {
    const { count, next } = map.page(after, after === null ? COUNTED_FIRST : COUNTED_AT_ONCE);
    sum += count;
    if (next === null) return sum;
    after = next;
    await slices.pause();
  }
}

/** A setting's oldest value is the one to go back to. */
function mergeChanges<T extends { family: string; setting: string }>(former: readonly T[], now: readonly T[]): T[] {
  return [...former, ...now.filter((change) => !former.some(({ family, setting }) => family === change.family && setting === change.setting))];
}

/** @throws EnforcerError E_UPGRADE when sandboxes of another map layout are in force: they are not touched. */
function refuseOtherLayout(directory: string): void {
  if (!existsSync(directory)) return;
  const others = readdirSync(directory).filter((name) => name.startsWith("maps-v") && name !== `maps-v${Instance.layoutVersion}` && inForce(join(directory, name)));
  if (others.length === 0) return;
  throw new EnforcerError("E_UPGRADE", `${directory} holds sandboxes of another version (${others.join(", ")}) in force`);
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
