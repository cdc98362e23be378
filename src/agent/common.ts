/**
 * What the engines of one agent share, each of which serves one network namespace: the loaded programs and their tables, the address
 * groups, the worker threads, and what is told of packets.
 *
 * Holds always: groups are those of all namespaces together: what is the host's own in one of them is so for every guest. A slot is
 * one sandbox's, whatever namespace its tap is in. Main thread only.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { closeFd, createNetns, openNetns, type RingBuffer } from "../../native/index.js";
import { formatPrefix, type Address } from "../addresses/address.js";
import { groupTable, type Group, type GroupTable } from "../addresses/groups.js";
import { followEvents, type PacketEvent } from "../kernel/events.js";
import { Globals } from "../kernel/globals.js";
import { Instance, removePins } from "../kernel/instance.js";
import { formerPlaces } from "../kernel/place.js";
import { attachHooks, detachHooks, FAR_HOOKS } from "../kernel/tap-link.js";
import type { HostView } from "../net/host-view.js";
import { inNetns } from "../net/request.js";
import type { ResolverLink } from "../net/resolver-link.js";
import { refuseOwnVrf } from "../net/vrf.js";
import type { Step } from "./parts.js";
import type { RunDirectory } from "./run-directory.js";
import type { Sandbox } from "./sandbox.js";
import { Slots } from "./slots.js";
import { TapTests } from "./tap-tests.js";
import { Workers, type WorkersOptions } from "./workers.js";

export interface CommonOptions extends Pick<WorkersOptions, "resolvConf" | "tlsThreads" | "onQueries" | "onDenied" | "onTerminate" | "onNotice" | "onFailure"> {
  readonly run: RunDirectory;
  /** The instance's folder on the BPF file system. */
  readonly directory: string;
  readonly sandboxes: number;
  readonly extraGroups: Partial<Record<Group, readonly string[]>>;
  readonly nat64Prefixes: readonly string[];
  readonly onPackets: (events: readonly PacketEvent[]) => void;
}

/** An engine, as the others see it. */
export interface Member {
  /** Of its namespace; 0: the first. */
  readonly place: number;
  readonly view: HostView;
  /** The host's own for its guests, although no device of the namespace has them. */
  readonly gateways: readonly Address[];
}

export class Common {
  readonly instance: Instance;
  readonly globals: Globals;
  readonly slots: Slots;
  readonly tapTests: TapTests;
  /** Where the resolver listens. */
  readonly agentNetnsFd: number;
  readonly #options: CommonOptions;
  readonly #hostNetnsFd: number;
  readonly #members = new Set<Member>();
  readonly #bySlot = new Map<number, Sandbox>();
  readonly #farHooks: Step[] = [];
  /** Slots in force in namespaces that no engine serves, with their places. */
  readonly #left = new Map<number, number>();
  #extraGroups: Partial<Record<Group, readonly string[]>>;
  #nat64Prefixes: readonly string[];
  #groups!: GroupTable;
  /** Whether they are those of all namespaces. */
  #all = true;
  #link: ResolverLink | null = null;
  #farEnds = 1;
  /** null until they are made: groups that changed before are theirs from the start. */
  #workers: Workers | null = null;
  #events: RingBuffer | null = null;

  /** @throws EnforcerError E_BPFFS, E_LOAD, E_DATA, E_UPGRADE, E_RESOLVER; nothing is left behind. */
  constructor(options: CommonOptions) {
    refuseOwnVrf();
    this.#options = options;
    this.#extraGroups = options.extraGroups;
    this.#nat64Prefixes = options.nat64Prefixes;
    const fresh = !existsSync(options.directory);
    this.instance = Instance.open({ directory: options.directory, sandboxes: options.sandboxes });
    const fds: number[] = [];
    try {
      this.globals = new Globals(this.instance);
      this.slots = new Slots(this.instance);
      this.tapTests = new TapTests(this.instance);
      fds.push(this.agentNetnsFd = createNetns());
      fds.push(this.#hostNetnsFd = openNetns());
      // Of a former process's device, which has gone with it.
      removePins(farLinks(options.directory));
    } catch (error) {
      for (const fd of fds) closeFd(fd);
      if (fresh) this.instance.destroy();
      else this.instance.close();
      throw error;
    }
    for (const { slot, place } of this.slots.inForce()) if (place !== 0) this.#left.set(slot, place);
    this.slots.addUser(() => this.#left.keys());
  }

  /** Whether an engine serves every namespace that has programs. */
  get complete(): boolean { return this.#all; }
  get groups(): GroupTable { return this.#groups; }
  /** @throws Error before they are started. */
  get workers(): Workers {
    if (this.#workers === null) throw new Error("the workers have not been started");
    return this.#workers;
  }
  /** The resolver's device and addresses. */
  get link(): ResolverLink {
    if (this.#link === null) throw new Error("the resolver has no device yet");
    return this.#link;
  }

  // ---- engines and their sandboxes -----------------------------------------------------------------------------------

  /** In force by this process's doing, in all namespaces. */
  get sandboxes(): Iterable<Sandbox> { return this.#bySlot.values(); }

  /** What the host of this engine has counts from now on. @throws EnforcerError E_LIMIT; then it does not. */
  join(member: Member): void {
    this.#members.add(member);
    try {
      this.refreshGroups();
    } catch (error) {
      this.#members.delete(member);
      throw error;
    }
    this.givenUp(member.place);
  }

  /** What is in force there is an engine's now, or nobody's any more. */
  givenUp(place: number): void { for (const [slot, where] of this.#left) if (where === place) this.#left.delete(slot); }

  /** In force, and nobody's: its place is not given to another. */
  leaveInForce(slot: number, place: number): void { this.#left.set(slot, place); }

  /** @throws EnforcerError E_LIMIT. */
  leave(member: Member): void { if (this.#members.delete(member) && this.#members.size > 0) this.refreshGroups(); }

  admit(sandbox: Sandbox): void { this.#bySlot.set(sandbox.slot, sandbox); }
  dismiss({ slot, generation }: Pick<Sandbox, "slot" | "generation">): void { if (this.#bySlot.get(slot)?.generation === generation) this.#bySlot.delete(slot); }

  /** The one that a worker or the kernel means; null when it has gone. */
  sandboxAt(slot: number, generation: number): Sandbox | null {
    const sandbox = this.#bySlot.get(slot);
    return sandbox?.generation === generation ? sandbox : null;
  }

  // ---- the resolver ---------------------------------------------------------------------------------------------------

  /** The name of one more pair's far end; the first pair has the resolver's addresses. */
  nextFarEnd(): string { return `enf${this.#farEnds++}`; }

  /** Starts the threads behind the first pair. @throws EnforcerError E_RESOLVER. */
  async serve(link: ResolverLink): Promise<void> {
    const { run, resolvConf, tlsThreads, onQueries, onDenied, onTerminate, onNotice, onFailure } = this.#options;
    this.#link = link;
    this.#workers = new Workers({
      run, instance: this.instance, link, agentNetnsFd: this.agentNetnsFd, hostNetnsFd: this.#hostNetnsFd, resolvConf, tlsThreads, groups: () => this.#groups, onQueries, onDenied, onTerminate, onNotice, onFailure,
    });
    await this.#workers.start();
  }

  /** What is answered finds its way to all pairs from now on. @throws EnforcerError E_ATTACH. */
  leadToPlaces(): void {
    if (this.#farHooks.length > 0) return;
    const { link, instance } = this;
    // Pinned: it goes with the device, which is there for a moment longer than a process that is killed. Its namespace has numbers of its own.
    const linkDirectory = farLinks(this.#options.directory);
    const programs = { program: instance.program.bind(instance), judging: instance.program.bind(instance), programId: instance.programId.bind(instance), owns: instance.owns.bind(instance), linkDirectory };
    inNetns(this.agentNetnsFd, () => { attachHooks(programs, link.farIfindex, link.farName, FAR_HOOKS); });
    this.#farHooks.push(() => { inNetns(this.agentNetnsFd, () => { detachHooks(programs, link.farIfindex, FAR_HOOKS); }); });
  }

  // ---- groups -----------------------------------------------------------------------------------------------------------

  /** Other prefixes for the groups, from the configuration. @throws EnforcerError E_GROUPS, E_LIMIT; then the former ones stay. */
  setExtraGroups(extra: Partial<Record<Group, readonly string[]>>, nat64Prefixes: readonly string[]): void {
    const former = [this.#extraGroups, this.#nat64Prefixes] as const;
    this.#extraGroups = extra;
    this.#nat64Prefixes = nat64Prefixes;
    try {
      this.refreshGroups();
    } catch (error) {
      [this.#extraGroups, this.#nat64Prefixes] = former;
      this.refreshGroups();
      throw error;
    }
  }

  /**
   * A view or a gateway has changed. Before an engine has joined for every namespace that has programs, none of the addresses that are in force is given up: they may be
   * those of one that has not. @returns whether the groups have. @throws EnforcerError E_LIMIT; then what was in force stays, or became stricter.
   */
  refreshGroups(): boolean {
    if (this.#members.size === 0) return false;
    const joined = new Set([...this.#members].map(({ place }) => place));
    const all = formerPlaces(this.instance).every(({ number }) => joined.has(number));
    const views = [...this.#members].map(({ view }) => view), gateways = [...this.#members].flatMap((member) => member.gateways);
    const { host = [], ...extra } = this.#extraGroups;
    const groups = groupTable({
      hostAddresses: [...views.flatMap(({ addresses }) => addresses), ...gateways],
      connectedPrefixes: views.flatMap(({ connectedPrefixes }) => connectedPrefixes), broadcasts: views.flatMap(({ broadcasts }) => broadcasts),
      extra: { ...extra, host: [...host, ...views.flatMap(({ localPrefixes }) => localPrefixes.map((prefix) => formatPrefix(prefix)))] },
      nat64Prefixes: this.#nat64Prefixes,
    });
    const changed = this.globals.setGroups(groups, all ? "all" : "stricter") > 0;
    this.#groups = groups;
    // Who has just come knows only some of what is in force.
    if (changed || all !== this.#all) this.#workers?.setGroups(groups);
    this.#all = all;
    return changed;
  }

  // ---- events ------------------------------------------------------------------------------------------------------------

  followEvents(): void { this.#events ??= followEvents(this.instance, (events) => this.#options.onPackets(this.tapTests.withoutOwn(events))); }

  stopEvents(): void { this.#events?.close(); }

  // ---- the end ------------------------------------------------------------------------------------------------------------

  async stopWorkers(): Promise<void> { await this.#workers?.stop(); }

  /** After stopWorkers. @param destroy the pins go as well, and with them all that no link holds. */
  close(destroy: boolean): void {
    for (const step of this.#farHooks) void step();
    closeFd(this.agentNetnsFd);
    closeFd(this.#hostNetnsFd);
    if (destroy) this.instance.destroy();
    else this.instance.close();
  }
}

/** Where the link of the resolver's own end is pinned. */
function farLinks(directory: string): string { return join(directory, "far"); }
