/**
 * Places in the kernel's tables, and the numbers that tell one tenant of a place from the next.
 *
 * Holds always: a generation is never given out twice in the life of the maps, whatever process asks: entries of the packet path's
 * caches name it.
 */
import { EnforcerError } from "../errors.js";
import type { Instance } from "../kernel/instance.js";
import { layouts, SandboxState } from "../kernel/layout.gen.js";
import { slotKey } from "../kernel/sandbox-tables.js";

/** Generations begin here; 1 is the self-test's. */
const FIRST_GENERATION = 2;

export interface SlotInForce {
  readonly slot: number;
  readonly ifindex: number;
  /** Of the device's namespace; 0: the agent's own. */
  readonly place: number;
  readonly generation: number;
}

export class Slots {
  readonly #instance: Instance;
  readonly #users = new Set<() => Iterable<number>>();
  #generation: number;

  constructor(instance: Instance) {
    this.#instance = instance;
    // The last one given out stands, pinned like everything else, in pin_epochs at the slot that is no sandbox's.
    const stored = Number(this.#lastGiven() % 2n ** 32n);
    this.#generation = Math.max(FIRST_GENERATION - 1, stored, ...this.inForce().map(({ generation }) => generation));
  }

  get count(): number { return this.#instance.sandboxes; }

  /** As the kernel holds them, the self-test's left out. */
  inForce(): SlotInForce[] {
    const { keys, values, count } = this.#instance.map("sandboxes").entries();
    const field = layouts.sandbox.fields;
    const found: SlotInForce[] = [];
    for (let i = 0; i < count; i++) {
      const at = i * layouts.sandbox.size;
      if (values.readUInt32LE(at + field.state.offset) !== SandboxState.SANDBOX_ENFORCED) continue;
      const slot = keys.readUInt32LE(i * 4);
      if (slot !== this.#instance.spareSlot) found.push({ slot, ifindex: values.readUInt32LE(at + field.ifindex.offset), place: values.readUInt32LE(at + field.place.offset), generation: values.readUInt32LE(at + field.generation.offset) });
    }
    return found;
  }

  /** What an engine holds is not given to another. */
  addUser(used: () => Iterable<number>): void { this.#users.add(used); }
  removeUser(used: () => Iterable<number>): void { this.#users.delete(used); }

  /** The first that nobody uses. @throws EnforcerError E_LIMIT. */
  free(): number {
    const used = new Set<number>();
    for (const user of this.#users) for (const slot of user()) used.add(slot);
    for (let slot = 0; slot < this.count; slot++) if (!used.has(slot)) return slot;
    throw new EnforcerError("E_LIMIT", `${this.count} sandboxes are attached already`, { remedy: "raise the number of sandboxes of this agent" });
  }

  nextGeneration(): number {
    this.#generation = this.#generation >= 2 ** 32 - 1 ? FIRST_GENERATION : this.#generation + 1;
    const value = Buffer.alloc(8);
    value.writeBigUInt64LE(BigInt(this.#generation));
    this.#instance.map("pin_epochs").update(slotKey(this.#instance.spareSlot), value);
    return this.#generation;
  }

  #lastGiven(): bigint { return this.#instance.map("pin_epochs").lookup(slotKey(this.#instance.spareSlot))?.readBigUInt64LE() ?? 0n; }
}
