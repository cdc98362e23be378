/**
 * The engine of one network namespace: its interception device, the watch over its devices, and the sandboxes whose taps are in it.
 * What engines share is in common.ts.
 *
 * Order of an attach: attach.ts. Order of a detach: settings of the tap, then the reverse. Order of a policy swap: swap.ts.
 *
 * Order of a start: address groups → resolver listens (it does already, in another namespace than the agent's own) → it knows every sandbox that is in force as its file says → the kernel
 * sends queries and connections to it, of all of them at once → the caller attaches them again, one by one.
 *
 * Holds always: address groups are in the kernel before any tap is; a change of the host's addresses reaches the kernel in
 * the same turn in which it is read; what a former process left in force is never taken away because a file about it is
 * missing. Main thread only; callers do one operation at a time (agent.ts).
 */
import { existsSync, readdirSync, rmdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { BpfMap } from "../../native/index.js";
import type { Address } from "../addresses/address.js";
import type { Group, GroupTable } from "../addresses/groups.js";
import type { DeniedQuery, FormerPinRow, PinRow, Stats } from "../dns/protocol.js";
import { EnforcerError } from "../errors.js";
import { readCounters, type Count } from "../kernel/counters.js";
import type { PacketEvent } from "../kernel/events.js";
import { forgottenExpedite } from "../kernel/grace-period.js";
import { inForce, Instance, instanceDirectory, refuseForeign, removePins } from "../kernel/instance.js";
import { AbiLimit, layouts } from "../kernel/layout.gen.js";
import { Place } from "../kernel/place.js";
import { slotKey } from "../kernel/sandbox-tables.js";
import { countsOfGuest, selfTest } from "../kernel/self-test.js";
import { attachHooks, chainOf, detachHooks, hooksHeld, linkedDevices, RESOLVER_HOOKS, TAP_HOOKS, type Programs } from "../kernel/tap-link.js";
import type { HostView } from "../net/host-view.js";
import { HostWatch, type LinkEvent } from "../net/host-watch.js";
import { findLinkByIndex } from "../net/links.js";
import { inNetns } from "../net/request.js";
import { createResolverLink, removeResolverLink, type ResolverLink } from "../net/resolver-link.js";
import { restoreTap, tapFacts } from "../net/tap.js";
import { buildPolicy } from "../policy/build.js";
import { regroup } from "../policy/regroup.js";
import type { Policy } from "../policy/types.js";
import { forgetPlaceholders, keptEnvironment } from "../secrets/placeholder.js";
import type { Violation } from "../secrets/types.js";
import { forgetAuthority } from "../tls/certificates/store.js";
import type { InspectionStats } from "./inspection.js";
import type { TlsDenial } from "../tls/protocol.js";
import { attach } from "./attach.js";
import { Common, type Member } from "./common.js";
import { HeldNames } from "./held-names.js";
import { quietly, text, type Parts } from "./parts.js";
import { Predecessor, type Adoptable } from "./predecessor.js";
import { ReaderClient } from "./reader-client.js";
import type { RunDirectory } from "./run-directory.js";
import { gatewaysLeftOut, identityKey, identityOf, sizesOf, type AttachOptions, type KeptSandbox, type LimitCounters, type Sandbox } from "./sandbox.js";
import type { Slices } from "./slices.js";
import { nudge, swap, type Swapped } from "./swap.js";

export type { Adoptable } from "./predecessor.js";
export type { AttachOptions, KeptSandbox, Sandbox } from "./sandbox.js";

/** How often expired flows are freed, ms. The kernel counts their time itself; this only gives back the memory. */
const SWEEP = 5_000, SWEEP_PARTS = 32;
/** How often pins that were added are written down, ms: what a crash may forget the names of, not the pins. */
const WRITE_PINS = 10_000;
/** Offset of mark in struct __sk_buff (linux/bpf.h). */
const SKB_MARK = 8, SKB_SIZE = 192;
/** For how long an end that was meant is not told to guests, ms: twice the five seconds after which a client asks again. */
const SUCCESSOR_WITHIN = 10_000;
/** After a swap, ms: when silent connections are looked for. Busy ones have ended by then; all have before a second is over. */
const NUDGE_AFTER = [200, 800];
export interface EnforcerOptions {
  /** Where the state files are; the caller holds its lock. */
  readonly run: RunDirectory;
  /** Where bpffs is mounted, or a directory in it. */
  readonly bpffs: string;
  /** Name of this instance in it, and of what is held in nftables. */
  readonly instance: string;
  /** A namespace beside those that an agent serves already; null: the first, or the only one. */
  readonly beside: { readonly common: Common; readonly netns: string; readonly inode: number } | null;
  readonly sandboxes: number;
  /** Name of the resolver's near device; unique in the namespace, at most 15 octets. */
  readonly resolverDevice: string;
  readonly resolvConf: string | null;
  /** That look into connections, at most. 1 to INTERCEPTED_PORTS. */
  readonly tlsThreads: number;
  /** Namespace of the taps; the caller keeps it open. null: the process's own. */
  readonly netnsFd: number | null;
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

export class Enforcer implements Member {
  readonly #options: EnforcerOptions;
  readonly #run: RunDirectory;
  readonly #sandboxes = new Map<string, Sandbox>();
  readonly #kept = new Map<string, KeptSandbox>();
  readonly #cleanup: (() => void | Promise<void>)[] = [];
  /** Pins ever written by sandbox, when they were last put down. */
  readonly #written = new WeakMap<Sandbox, number>();
  #common!: Common;
  /** null: the namespace is the agent's own. */
  #place: Place | null = null;
  #programs!: Programs;
  #predecessor!: Predecessor;
  #held!: HeldNames;
  #link!: ResolverLink;
  #parts!: Parts;
  #watch!: HostWatch;
  /** Devices of which something was told since the last reading. */
  readonly #stale = new Set<number>();
  /** Why the host's network could not be read at the last try, which was told. */
  #readFault: string | null = null;
  /** Of the sandbox that is being attached. */
  #pendingGateways: readonly Address[] = [];
  #sweeps = 0;
  #started = false;
  #stopped = false;
  /** A former process's enforcement is still in force and this process could not take it over: it stays. */
  #leaveInForce = false;

  private constructor(options: EnforcerOptions) {
    this.#options = options;
    this.#run = options.run;
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

  get common(): Common { return this.#common; }
  get groups(): GroupTable { return this.#common.groups; }
  get sandboxes(): ReadonlyMap<string, Sandbox> { return this.#sandboxes; }
  /** The one that a worker means, in whatever namespace; null when it has gone. */
  sandboxAt(slot: number, generation: number): Sandbox | null { return this.#common.sandboxAt(slot, generation); }
  get kept(): ReadonlyMap<string, KeptSandbox> { return this.#kept; }
  get view(): HostView { return this.#watch.view; }
  get links(): HostWatch["links"] { return this.#watch.links; }
  /** Number of its namespace (kernel/place.ts); 0: the first. */
  get place(): number { return this.#place?.number ?? 0; }
  /** Of all namespaces. */
  get slots(): number { return this.#common.slots.count; }
  /** The host's own for the guests of this namespace, although no device of it has them. */
  get gateways(): readonly Address[] { return [...[...this.#sandboxes.values()].flatMap(({ options }) => options.gateways), ...this.#pendingGateways]; }

  /** Runs with the thread in the taps' namespace. */
  inside = <T>(work: () => T): T => (this.#options.netnsFd === null ? work() : inNetns(this.#options.netnsFd, work));

  async #start(): Promise<void> {
    const { instance, resolverDevice, netnsFd, beside } = this.#options;
    const fresh = beside === null ? this.#openFirst() : this.#openBeside(beside);
    const { common } = this;
    const { globals, slots, tapTests, agentNetnsFd } = common;
    const { place } = this;
    this.#programs = this.#place ?? common.instance;
    this.#predecessor = new Predecessor({ instance: common.instance, programs: this.#programs, place, globals, slots, inside: this.inside, fresh });
    const used = (): Iterable<number> => [...[...this.#sandboxes.values(), ...this.#kept.values()].map(({ slot }) => slot), ...this.#predecessor.slots];
    slots.addUser(used);
    this.#cleanup.push(() => slots.removeUser(used));

    const { held, missing } = HeldNames.open({ instance, patterns: this.#options.heldPatterns, inside: this.inside, claimed: (tap) => this.#claims(tap) });
    this.#held = held;
    this.#cleanup.push(() => { if (fresh && !this.#started) held.close(); });
    if (missing !== null) this.#options.onNotice(`a tap that is deleted and made again carries packets until it is attached again, because nftables cannot hold them: ${missing}`);

    this.#link = this.inside(() => createResolverLink({ agentNetnsFd, names: { near: resolverDevice, far: common.nextFarEnd() }, first: beside === null }));
    this.#cleanup.push(() => { this.inside(() => removeResolverLink(resolverDevice)); });
    this.inside(() => attachHooks(this.#programs, this.#link.nearIfindex, resolverDevice, RESOLVER_HOOKS));
    this.#cleanup.push(() => this.inside(() => detachHooks(this.#programs, this.#link.nearIfindex, RESOLVER_HOOKS)));

    this.#watch = new HostWatch({
      ...(netnsFd === null ? {} : { netnsFd }),
      onView: () => this.#viewChanged(),
      onRead: (changed) => {
        this.#readFault = null;
        this.#refreshStale(changed);
      },
      onLink: (event) => {
        // One of this name that comes next is another's.
        if (event.type === "removed") this.#unfree(event.link.name);
        this.#stale.add(event.link.ifindex);
        this.#options.onLink(event);
      },
      apart: (fd, devices, ended) => new ReaderClient(fd, devices, (error) => {
        ended();
        this.#options.onNotice(`the host's network is read by the main thread again: ${text(error)}`);
      }),
      onError: (error) => this.#unread(text(error)),
    });
    this.#cleanup.push(() => this.#watch.close());
    common.join(this);
    this.#cleanup.push(() => { if (!this.#started) common.leave(this); });
    if (beside === null) {
      this.#cleanup.push(() => common.stopWorkers());
      await common.serve(this.#link);
    } else {
      common.leadToPlaces();
    }
    this.#parts = {
      run: this.#run, instance: common.instance, programs: this.#programs, place, globals, workers: common.workers, held, slots, predecessor: this.#predecessor, tapTests,
      sandboxes: this.#sandboxes, kept: this.#kept, inside: this.inside, notice: (notice) => this.#options.onNotice(notice),
      expectGateways: (gateways) => this.#expectGateways(gateways), regrouped: (policy, floor) => this.#regrouped(policy, floor),
    };

    await this.#predecessor.serve(this.#options.adoptable(this.groups), this.#parts);
    if (this.#place === null) globals.setResolver(this.#link);
    else globals.setPlace(place, this.#link);
    if (common.complete) globals.successorArrived();
    this.inside(() => selfTest(common.instance, globals, this.#link.nearIfindex, this.#place));

    this.#started = true;
    if (this.#place !== null) return;
    // Of all namespaces.
    const timers = [setInterval(() => this.#sweep(), SWEEP / SWEEP_PARTS), setInterval(() => { this.writePins().catch((error: unknown) => this.#options.onNotice(`pins could not be written down: ${text(error)}`)); }, WRITE_PINS)];
    for (const timer of timers) timer.unref();
    this.#cleanup.push(() => { for (const timer of timers) clearInterval(timer); });
  }

  /** Programs, tables and threads, for this namespace and others beside it. @returns whether no former process left any. */
  #openFirst(): boolean {
    const { bpffs, instance, run, sandboxes, resolvConf, tlsThreads, extraGroups, nat64Prefixes, onPackets, onQueries, onDenials, onTerminate, onNotice } = this.#options;
    const directory = instanceDirectory(bpffs, instance);
    const fresh = !existsSync(directory);
    for (const folder of [dirname(directory), directory]) refuseForeign(folder);
    refuseOtherLayout(directory);
    forgottenExpedite();
    this.#common = new Common({
      run, directory, sandboxes, resolvConf, tlsThreads, extraGroups, nat64Prefixes, onPackets, onQueries, onNotice, onDenied: onDenials, onFailure: (error) => this.#failed(error),
      onTerminate: (slot, generation, violation) => {
        const sandbox = this.sandboxAt(slot, generation);
        if (sandbox !== null) onTerminate(sandbox.name, violation);
      },
    });
    this.#cleanup.push(() => this.#common.close(fresh && !this.#started));
    return fresh;
  }

  #openBeside({ common, netns, inode }: NonNullable<EnforcerOptions["beside"]>): boolean {
    this.#common = common;
    const place = this.#place = Place.open(common.instance, netns, inode);
    this.#cleanup.push(() => {
      common.globals.setPlace(place.number, null);
      if (place.fresh && !this.#started) place.remove();
      else place.close();
    });
    return place.fresh;
  }

  // ---- attach and detach --------------------------------------------------------------------------------------------

  /**
   * Puts a tap under its policy; what a former process left in force on it is taken over without a gap.
   * @throws EnforcerError; then the tap is as it was.
   */
  async attach(options: AttachOptions): Promise<Sandbox> {
    try {
      const sandbox = await attach(this.#parts, options, () => { this.#leaveInForce = true; });
      this.#common.followEvents();
      for (const kept of this.#kept.values()) if (kept.slot === sandbox.slot) this.#kept.delete(kept.name);
      this.#sandboxes.set(sandbox.name, sandbox);
      this.#common.admit(sandbox);
      this.#predecessor.takenOver(sandbox.slot);
      this.#held.arrived(options.tap);
      return sandbox;
    } finally {
      const expected = this.#pendingGateways;
      this.#pendingGateways = [];
      // Of one that could not be attached they are nobody's.
      if (expected.length > 0 && !this.#sandboxes.has(options.name)) this.#common.refreshGroups();
    }
  }

  #expectGateways(gateways: readonly Address[]): void {
    this.#pendingGateways = gateways;
    if (gateways.length > 0) this.#common.refreshGroups();
  }

  /**
   * Nothing comes in from a tap of this name from now on, although there is none yet, until it is attached and its policy lets it.
   * @throws EnforcerError E_ATTACH.
   */
  awaitTap(tap: string): void { this.#held.await(tap); }

  /** Instead of those of the start. @throws EnforcerError E_ATTACH; then those of before hold. */
  holdPatterns(patterns: readonly string[]): void { this.#held.holdPatterns(patterns); }

  #unfree(tap: string): void {
    try {
      this.#held.unfree(tap);
    } catch (error) {
      this.#options.onNotice(text(error));
    }
  }

  /** The tap is not waited for any more, or not held any more although it was deleted while it was attached. */
  forgetTap(tap: string): void { this.#held.forget(tap); }

  /** Names from which only judged frames come in: those of sandboxes, those that are waited for, and those of taps that were deleted under their policy. */
  get heldTaps(): ReadonlySet<string> { return this.#held.names; }

  /** Whether the device carries this instance's programs: one that only got the number of a device that did does not. */
  carries(ifindex: number): boolean { return this.inside(() => hooksHeld(this.#programs, ifindex, TAP_HOOKS)); }

  /** Names of taps that are waited for. */
  get awaited(): ReadonlySet<string> { return this.#held.awaited; }

  /** Frames that came from a tap of a held name and that no program had judged. */
  async unjudged(): Promise<number> { return this.#held.unjudged(); }

  /** Whether a sandbox has the tap of this name. */
  #claims(tap: string): boolean { return [...this.#sandboxes.values()].some(({ facts }) => facts.name === tap) || [...this.#kept.values()].some(({ device }) => device === tap); }

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
    this.#common.dismiss(sandbox);
    this.#kept.delete(name);
    // While our programs still show that it is the same device: its number may be another's by now, which is left alone.
    if (this.carries(ifindex)) this.inside(() => restoreTap({ ifindex, changes: known?.preparation.changes ?? state?.changes ?? [] }));
    this.inside(() => detachHooks(this.#programs, ifindex, TAP_HOOKS));
    this.#common.globals.clearTap(ifindex, this.place);
    await this.#parts.workers.remove(sandbox.slot, sandbox.generation).catch((error: unknown) => { if (known !== null) throw error; });
    forgetAuthority(this.#run.path, name);
    forgetPlaceholders(this.#run.path, name);
    sandbox.tables.clear();
    this.#predecessor.takenOver(sandbox.slot);
    const tap = known?.facts.name ?? state?.device ?? name;
    if (gone) this.#held.keep(tap);
    else this.#held.free(tap);
    // Last: while there is a state file a successor completes this.
    if (!awaited) this.#run.remove(name);
    if (known !== null && known.options.gateways.length > 0) this.#common.refreshGroups();
  }

  // ---- policy swap --------------------------------------------------------------------------------------------------

  /**
   * Puts another policy in force, whole and at once: no packet is judged by parts of both. Flows are judged again, pins live
   * on as far as the new policy knows their names. @throws EnforcerError; then the old policy is in force as before.
   * @param floor of the operator; null: none.
   * @returns pins written for the new policy, and pins that it has no place for.
   */
  async setPolicy(name: string, asked: Policy, source: unknown, askedFloor: Policy | null = null): Promise<Swapped> {
    const [policy, floor] = this.#regrouped(asked, askedFloor);
    const sandbox = this.#sandboxes.get(name);
    if (sandbox === undefined) throw new EnforcerError("E_NO_SANDBOX", `no sandbox ${name} is in force`);
    const swapped = await swap(this.#parts, sandbox, policy, floor, source);
    await this.#writePins(sandbox).catch(() => undefined);
    for (const [turn, after] of NUDGE_AFTER.entries()) setTimeout(() => { this.#nudge(sandbox, swapped.uid, turn); }, after).unref();
    return swapped;
  }

  #nudge(sandbox: Sandbox, uid: bigint, turn: number): void {
    const { name, identity: { ifindex } } = sandbox;
    nudge(this.#parts, sandbox, uid, {
      turn, groups: () => this.#common.groups, pins: () => this.pins(sandbox), learned: () => this.learned(sandbox), carries: () => this.carries(ifindex),
      current: () => !this.#stopped && this.#sandboxes.get(name) === sandbox && sandbox.compiled.uid === uid,
    }).catch((error: unknown) => { if (!this.#stopped) this.#options.onNotice(`${name}: silent connections that the policy forbids stand until they speak: ${text(error)}`); });
  }

  /** Policies whose prefixes lie in other groups since the host's network changed are put in force anew. One operation, as attach is. */
  async regroup(): Promise<void> {
    for (const { name, policy, floor, options } of [...this.#sandboxes.values()]) {
      const [now, floorNow] = this.#regrouped(policy, floor);
      if (now !== policy || floorNow !== floor) await this.setPolicy(name, now, options.source, floorNow);
    }
  }

  #regrouped(policy: Policy, floor: Policy | null): [Policy, Policy | null] { return [regroup(policy, this.#common.groups), floor === null ? null : regroup(floor, this.#common.groups)]; }

  // ---- what a former process left -----------------------------------------------------------------------------------

  /**
   * After everything that is known has been attached again: what else the kernel holds. A slot whose tap still carries our
   * programs goes on being enforced, and is listed as kept; what leads nowhere is removed.
   * @param nameOf a device's sandbox, which is unique among those of all namespaces.
   */
  async settle(nameOf: (ifindex: number, device: string) => string): Promise<void> {
    const known = new Set([...this.#sandboxes.values(), ...this.#kept.values()].map(({ slot }) => slot));
    for (const { slot, ifindex, place, generation } of this.#common.slots.inForce()) {
      if (place !== this.place || known.has(slot)) continue;
      // An attach that was killed just before it took the hooks, and has been done again since: the device has another slot by now.
      if ([...this.#sandboxes.values()].some(({ facts }) => facts.ifindex === ifindex) || [...this.#kept.values()].some((kept) => kept.ifindex === ifindex)) {
        await this.#predecessor.clear(slot, this.#parts);
        continue;
      }
      const link = this.inside(() => findLinkByIndex(ifindex));
      const tables = link === null ? null : this.#predecessor.tablesOf(ifindex);
      if (link === null || tables === null || tables.slot !== slot) {
        await this.#predecessor.clear(slot, this.#parts);
        this.#common.globals.clearTap(ifindex, this.place);
        continue;
      }
      await this.#predecessor.forgetInWorkers(slot, this.#parts);
      const name = nameOf(ifindex, link.name);
      const fault = this.#run.fault(name);
      const reason = fault === null ? "its policy could not be built again" : `its state file is not regarded: ${fault}`;
      this.inside(() => attachHooks(this.#programs, ifindex, link.name, TAP_HOOKS));
      this.#common.globals.setTap(ifindex, slot, generation, this.place);
      const nothing = tables.pins();
      if (nothing !== null) {
        await this.#parts.workers.addSilent({ name, slot, generation, policy: buildPolicy({ noNet: true }).policy }, nothing);
      }
      this.#kept.set(name, { name, slot, generation, ifindex, device: link.name, tables, reason });
      this.#held.claim(link.name);
      this.#options.onNotice(`${name}: kept in force as a former process left it, because ${reason}; names are not resolved. Attach it again to give it a policy`);
    }
    const held = new Set([...this.#sandboxes.values()].map(({ facts }) => facts.ifindex));
    for (const { ifindex } of this.#kept.values()) held.add(ifindex);
    held.add(this.#link.nearIfindex);
    this.inside(() => { for (const ifindex of linkedDevices(this.#programs)) if (!held.has(ifindex)) detachHooks(this.#programs, ifindex, TAP_HOOKS); });
    this.#common.followEvents();
  }

  // ---- the end ------------------------------------------------------------------------------------------------------

  /** Detaches everything and leaves nothing behind. */
  async stop(): Promise<void> {
    if (this.#stopped) return;
    if (this.#leaveInForce) return this.#abandon();
    for (const name of [...this.#sandboxes.keys(), ...this.#kept.keys()]) await quietly(() => this.detach(name));
    // What a former process left in force and nobody has taken over: its pins are what holds that guest.
    if (this.#common.slots.inForce().some(({ ifindex, place }) => place === this.place && this.inside(() => hooksHeld(this.#programs, ifindex, TAP_HOOKS)))) return this.#abandon();
    this.#stopped = true;
    if (this.#place === null) this.#common.stopEvents();
    for (const step of this.#cleanup.reverse()) await quietly(step);
    await quietly(() => this.#held.close());
    if (this.#place !== null) {
      await quietly(() => this.#place!.remove());
      await quietly(() => this.#common.leave(this));
      return;
    }
    const { directory } = this.#common.instance;
    if (directory !== null) {
      await quietly(() => removePins(directory));
      await quietly(() => removeIfEmpty(join(directory, "..")));
    }
  }

  /** Its namespace has gone: nobody serves it any more. What is on its devices is not touched. */
  async forget(): Promise<void> {
    for (const sandbox of [...this.#sandboxes.values(), ...this.#kept.values()]) {
      this.#common.dismiss(sandbox);
      this.#common.leaveInForce(sandbox.slot, this.place);
      await this.#parts.workers.remove(sandbox.slot, sandbox.generation).catch(() => undefined);
    }
    await this.#abandon();
  }

  /** For some seconds guests whose queries go nowhere are not told, in any namespace: they ask again, and find a successor. */
  expectSuccessor(): void { this.#common.globals.expectSuccessor(SUCCESSOR_WITHIN); }

  /** Ends serving and leaves the kernel enforcing, for a successor to take over. Of several engines the first one is the last. */
  async release(): Promise<void> {
    if (this.#stopped) return;
    if (this.#place === null) {
      await quietly(() => this.writePins(true));
      await quietly(() => this.expectSuccessor());
    }
    await this.#abandon();
  }

  async #abandon(): Promise<void> {
    if (this.#stopped) return;
    this.#stopped = true;
    if (this.#place === null && this.#common !== undefined) this.#common.stopEvents();
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
  orphans(): Count[] { return readCounters(this.#common.instance.map("orphans")); }

  /**
   * Denial events: not told; told in the latest second that had one. Queries over UDP that the resolver has not answered yet. And what
   * the guest began in the latest second that had something of it, and the agent had to serve.
   */
  limitCounters(sandbox: Sandbox): LimitCounters {
    const { lost, sent, dns_waiting: waiting, queries, dns_connections: dnsConnections, connections } = layouts.event_limit.fields;
    const record = this.#common.instance.map("event_limits").lookup(slotKey(sandbox.slot));
    if (record === null) return { eventsLost: 0, events: 0, dnsWaiting: 0, begun: { query: 0, "dns-connection": 0, connection: 0 } };
    return {
      eventsLost: Math.max(0, Number(record.readBigUInt64LE(lost.offset)) - sandbox.tests.lost), events: record.readUInt32LE(sent.offset), dnsWaiting: Math.max(0, record.readInt32LE(waiting.offset)),
      begun: { query: record.readUInt32LE(queries.offset), "dns-connection": record.readUInt32LE(dnsConnections.offset), connection: record.readUInt32LE(connections.offset) },
    };
  }

  /** Entries now and at most, of the tables that can be full. A table of a million is counted in parts. */
  async fill(sandbox: Sandbox, slices: Slices): Promise<Fill[]> {
    // All at once: after a pause the slot may be another sandbox's.
    const maps = [["flows", sandbox.tables.inner("flows")], ["pins", sandbox.tables.pins()], ["fragments", sandbox.tables.inner("fragments")], ["addresses", sandbox.tables.inner("addresses")]] as const;
    const places = this.#runOn("taken", sandbox.slot), intercepted = sandbox.tables.inner("intercepted");
    intercepted?.close();
    const rows: Fill[] = [{ map: "redirects", entries: places & 0xffff, limit: AbiLimit.REDIRECTS }];
    if (intercepted !== null) rows.push({ map: "intercepted", entries: places >>> 16, limit: AbiLimit.INTERCEPTED });
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
      const { id } = this.#programs.program(hook.program).info, { tag } = this.#programs.judging(hook.program).info;
      const { programs, position } = chainOf(this.#programs, ifindex, hook);
      return { hook: hook.hook, program: hook.program, id, tag, position, chain: programs };
    }));
  }

  /** What the kernel took from the guest's first frames; null: nothing yet. */
  learned(sandbox: Sandbox): { mac: Uint8Array | null; address4: Uint8Array | null; address6: Uint8Array | null } {
    const record = this.#common.instance.map("learned").lookup(slotKey(sandbox.slot));
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

  /** What the guest's environment is to hold for the secrets of its policy: placeholders. */
  secretsOf({ name }: Sandbox): Record<string, string> { return keptEnvironment(this.#run.path, name); }

  /** null: no policy needs a look into connections. */
  async tlsStats(): Promise<InspectionStats | null> { return this.#parts.workers.inspection.stats(); }

  async resolverStats(): Promise<Stats> { return this.#parts.workers.resolver.ask({ kind: "stats" }); }

  async pins(sandbox: Sandbox): Promise<readonly PinRow[]> { return this.#parts.workers.resolver.ask({ kind: "pins", slot: sandbox.slot, generation: sandbox.generation }); }

  async formerPins(sandbox: Sandbox): Promise<readonly FormerPinRow[]> { return this.#parts.workers.resolver.ask({ kind: "formerPins", slot: sandbox.slot, generation: sandbox.generation }); }

  async namesOf(sandbox: Sandbox, address: Address): Promise<readonly string[]> {
    return this.#parts.workers.resolver.ask({ kind: "namesOf", slot: sandbox.slot, generation: sandbox.generation, address });
  }

  /** Resolvers of the host are read again. */
  async reloadResolvers(): Promise<readonly string[]> { return (await this.#parts.workers.resolver.ask({ kind: "reloadResolvers" })).servers; }

  /** Puts pins down for a successor, in all namespaces; those of sandboxes that got some since, or all. */
  async writePins(all = false): Promise<void> {
    const { sandboxes } = await this.resolverStats();
    const rows = new Map(sandboxes.map((row) => [row.slot, row]));
    for (const sandbox of [...this.#common.sandboxes]) {
      const row = rows.get(sandbox.slot);
      if (row?.generation !== sandbox.generation) continue;
      const count = row.pins.added + row.pins.renewed + row.pins.graceExtensions;
      if (!all && this.#written.get(sandbox) === count) continue;
      await this.#writePins(sandbox);
      this.#written.set(sandbox, count);
    }
  }

  async #writePins(sandbox: Sandbox): Promise<void> {
    const records = await this.#parts.workers.resolver.ask({ kind: "pinRecords", slot: sandbox.slot, generation: sandbox.generation });
    if (this.sandboxAt(sandbox.slot, sandbox.generation) === sandbox) this.#run.writePins(sandbox.name, sandbox.generation, records);
  }

  // ---- the host -----------------------------------------------------------------------------------------------------

  #viewChanged(): void {
    // A failure goes to the watch, which gives the view again. A first view is read before the engine counts.
    this.#common.refreshGroups();
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
      const identity = identityOf(facts, { ...sandbox.options, incomplete: true }, this.place);
      sandbox.facts = facts;
      if (identityKey(identity) === identityKey(sandbox.identity)) return;
      const leftOut = gatewaysLeftOut(sandbox.name, identity);
      if (leftOut !== null && leftOut !== gatewaysLeftOut(sandbox.name, sandbox.identity)) this.#options.onNotice(leftOut);
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
    this.#held.claim(sandbox.facts.name);
    this.#held.release(former);
    const state = this.#run.read(sandbox.name);
    if (state !== null) this.#run.write({ ...state, device: sandbox.facts.name });
  }

  /** A worker that is asked something after it was told to end says no: that is no failure. */
  #failed(error: Error): void { if (!this.#stopped) this.#options.onFailure(error); }

  /** Tried again twice a second, and told once. */
  #unread(fault: string): void {
    if (fault === this.#readFault) return;
    this.#readFault = fault;
    this.#options.onNotice(`a change of the host's addresses is not in force yet and is tried again: ${fault}`);
  }

  /** A part of the sandboxes at a time: an attach must not wait for all of them. */
  #sweep(): void {
    const part = this.#sweeps++ % SWEEP_PARTS;
    for (const { slot } of this.#common.sandboxes) {
      if (slot % SWEEP_PARTS !== part) continue;
      this.#runOn("sweep", slot);
    }
  }

  /** What one of the programs that are never attached says of a slot. */
  #runOn(program: "sweep" | "taken", slot: number): number {
    const context = Buffer.alloc(SKB_SIZE);
    context.writeUInt32LE(slot, SKB_MARK);
    return this.#common.instance.program(program).testRun({ data: new Uint8Array(64), context }).returnValue;
  }
}

/** How full a table is. */
export interface Fill { readonly map: "flows" | "pins" | "fragments" | "addresses" | "redirects" | "intercepted"; readonly entries: number; readonly limit: number }

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

/** @throws EnforcerError E_UPGRADE when sandboxes of another map layout are in force: they are not touched. */
function refuseOtherLayout(directory: string): void {
  if (!existsSync(directory)) return;
  const others = readdirSync(directory).filter((name) => name.startsWith("maps-v") && name !== `maps-v${Instance.layoutVersion}` && inForce(join(directory, name)));
  if (others.length === 0) return;
  throw new EnforcerError("E_UPGRADE", `${directory} holds sandboxes of another version (${others.join(", ")}) in force`);
}

function removeIfEmpty(path: string): void { if (existsSync(path) && readdirSync(path).length === 0) rmdirSync(path); }
