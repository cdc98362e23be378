/**
 * What a former process left in force, until it is taken over, cleared or kept as it is.
 *
 * Holds always: what is in force is never taken away because a file about it is missing; a slot is taken over for the device
 * that still carries this instance's programs, and for no other that got its number. Main thread only.
 */
import type { Globals } from "../kernel/globals.js";
import type { Instance } from "../kernel/instance.js";
import { floorUid, SandboxTables } from "../kernel/sandbox-tables.js";
import { detachHooks, hooksHeld, linkedDevices, TAP_HOOKS, type Programs } from "../kernel/tap-link.js";
import { findLinkByIndex } from "../net/links.js";
import { compilePolicy, type CompiledPolicy } from "../policy/compile.js";
import type { Policy } from "../policy/types.js";
import type { Inside, Parts } from "./parts.js";
import type { SandboxState } from "./run-directory.js";
import { digestOf, type UpstreamAddress } from "./sandbox.js";
import type { Slots } from "./slots.js";

/** Sandboxes that are taken over at the same time. */
const SERVED_TOGETHER = 64;

/** A sandbox that a former process may have left in force, as its state file tells of it. */
export interface Adoptable {
  readonly state: SandboxState;
  /** The policy that is in force, made from its source. @throws EnforcerError. */
  readonly build: (source: unknown) => { readonly policy: Policy; readonly floor: Policy | null; readonly upstreams: readonly UpstreamAddress[] };
}

/** What the workers know already of a sandbox that is not attached again yet. */
export interface Served { readonly generation: number; readonly uid: bigint; readonly digest: string; readonly compiled: CompiledPolicy; readonly compiledFloor: CompiledPolicy | null }

export class Predecessor {
  readonly #instance: Instance;
  readonly #programs: Programs;
  readonly #inside: Inside;
  /** Slots with their devices. */
  readonly #left = new Map<number, number>();
  /** Of those, the ones that the workers serve already. */
  readonly #served = new Map<number, Served>();

  constructor({ instance, programs, place, globals, slots, inside, fresh }: {
    instance: Instance; globals: Globals; slots: Slots; inside: Inside;
    /** Of the namespace, and its number. */ programs: Programs; place: number;
    /** The instance was made just now: nothing can be half done. */ fresh: boolean;
  }) {
    this.#instance = instance;
    this.#programs = programs;
    this.#inside = inside;
    // Pins of links whose device has gone hold nothing; a resolver's device goes with the process that made it.
    inside(() => {
      for (const ifindex of linkedDevices(programs)) if (findLinkByIndex(ifindex) === null) detachHooks(programs, ifindex, TAP_HOOKS);
      for (const { slot, ifindex, place: where } of slots.inForce()) {
        if (where !== place) continue;
        if (findLinkByIndex(ifindex) !== null) {
          this.#left.set(slot, ifindex);
          continue;
        }
        SandboxTables.clearSlot(instance, slot);
        globals.clearTap(ifindex, place);
      }
      // Those of all namespaces, and nothing is attached yet.
      if (!fresh && place === 0) SandboxTables.clearUnfinished(instance);
    });
  }

  /** Slots that wait to be taken over. */
  get slots(): Iterable<number> { return this.#left.keys(); }

  /** The slot in force for this device, with our programs still on its hooks; null: none. */
  tablesOf(ifindex: number): SandboxTables | null {
    if (!this.#inside(() => hooksHeld(this.#programs, ifindex, TAP_HOOKS))) return null;
    for (const [slot, device] of this.#left) {
      if (device !== ifindex) continue;
      const tables = SandboxTables.adopt(this.#instance, slot);
      if (tables !== null && tables.uid !== 0n) return tables;
    }
    return null;
  }

  /** What the workers know of the slot, when it is this policy. */
  servedAs(slot: number, { generation, uid, digest }: Pick<Served, "generation" | "uid" | "digest">): Served | null {
    const served = this.#served.get(slot);
    return served !== undefined && served.generation === generation && served.uid === uid && served.digest === digest ? served : null;
  }

  /** The slot is another's now: that of a sandbox of this process. */
  takenOver(slot: number): void {
    this.#left.delete(slot);
    this.#served.delete(slot);
  }

  /** The slots of a device that has gone, whose number another got, are emptied. */
  async clearOf(ifindex: number, parts: Pick<Parts, "workers" | "kept">): Promise<void> {
    for (const [slot, device] of this.#left) if (device === ifindex) await this.clear(slot, parts);
  }

  async clear(slot: number, parts: Pick<Parts, "workers" | "kept">): Promise<void> {
    await this.forgetInWorkers(slot, parts);
    SandboxTables.clearSlot(this.#instance, slot);
    this.#left.delete(slot);
  }

  /** A kept sandbox is known to the resolver as one that may resolve nothing; one that was served at the start may be another by now. */
  async forgetInWorkers(slot: number, { workers, kept }: Pick<Parts, "workers" | "kept">): Promise<void> {
    const generations = [...kept.values()].filter((one) => one.slot === slot).map(({ generation }) => generation);
    const served = this.#served.get(slot);
    this.#served.delete(slot);
    if (served !== undefined) generations.push(served.generation);
    for (const generation of generations) await workers.remove(slot, generation).catch(() => undefined);
  }

  /**
   * Tells the workers of every sandbox that is in force as its state file says, before the kernel sends them anything: what a
   * client asked while there was no agent is answered when it asks again, in whichever sandbox. What differs is left to attach().
   */
  async serve(adoptable: Iterable<Adoptable>, parts: Pick<Parts, "workers" | "kept" | "regrouped">): Promise<void> {
    const waiting = [...adoptable];
    while (waiting.length > 0) await Promise.all(waiting.splice(0, SERVED_TOGETHER).map((one) => this.#serveOne(one, parts)));
  }

  async #serveOne({ state, build }: Adoptable, parts: Pick<Parts, "workers" | "kept" | "regrouped">): Promise<void> {
    const tables = this.tablesOf(state.ifindex);
    if (tables === null || tables.slot !== state.slot || tables.generation !== state.generation) return;
    const { slot, generation, uid } = tables;
    const inForce = state.next?.uid === uid.toString() ? state.next : state.policy;
    if (inForce.uid !== uid.toString() || this.#served.has(slot)) return;
    try {
      const { upstreams, ...built } = build(inForce.source);
      const [policy, floor] = parts.regrouped(built.policy, built.floor);
      const digest = digestOf(policy, floor);
      if (digest !== inForce.digest) return;
      const compiled = compiledAs(uid, policy, floor);
      const pins = tables.pins(), floorPins = floor === null ? null : tables.pins("floor");
      if (pins === null || (floor !== null && floorPins === null)) {
        pins?.close();
        return;
      }
      this.#served.set(slot, { generation, uid, digest, ...compiled });
      await parts.workers.add({ name: state.name, slot, generation, tables, policy, floor, upstreams, ...compiled }, { pins, floorPins }, "in the maps");
    } catch {
      // attach() says why.
      await this.forgetInWorkers(slot, parts);
    }
  }
}

/** A policy and its floor as the kernel is to have them under one uid. */
export function compiledAs(uid: bigint, policy: Policy, floor: Policy | null): Pick<Served, "compiled" | "compiledFloor"> {
  return {
    compiled: compilePolicy(policy, { uid, floor: floor !== null, inspect: true }),
    compiledFloor: floor === null ? null : compilePolicy(floor, { uid: floorUid(uid), inspect: true }),
  };
}
