/**
 * Denied queries on their way to the main thread: gathered for a moment, at most so many a second and sandbox.
 *
 * Holds always: what is over the rate is counted per sandbox, never told; a guest that asks without end costs the main
 * thread a bounded number of messages. Does not: decide what is a denial.
 */
import type { DeniedQuery } from "./protocol.js";
import type { DenialEvent } from "./resolver.js";
import { showName } from "./wire.js";

export const EVENTS_PER_SECOND = 20;
const GATHER_MS = 50;

export class DenialReport {
  private readonly told = new Map<number, { second: number; count: number; lost: number; generation: number }>();
  private waiting: DeniedQuery[] = [];
  private timer: NodeJS.Timeout | null = null;

  constructor(private readonly rate: number, private readonly nowSeconds: () => number, private readonly tell: (queries: DeniedQuery[]) => void) {}

  add(event: DenialEvent): void {
    const second = this.nowSeconds();
    let state = this.told.get(event.slot);
    if (state === undefined || state.generation !== event.generation) {
      this.told.set(event.slot, (state = { second, count: 0, lost: 0, generation: event.generation }));
    }
    if (state.second !== second) {
      state.second = second;
      state.count = 0;
    }
    if (state.count >= this.rate) {
      state.lost++;
      return;
    }
    state.count++;
    this.waiting.push({
      slot: event.slot, generation: event.generation, name: showName(event.name), type: event.type, outcome: event.outcome,
      address: event.address?.slice() ?? null, timeMs: Date.now(),
    });
    this.timer ??= setTimeout(() => this.flush(), GATHER_MS);
  }

  lost(slot: number, generation: number): number {
    const state = this.told.get(slot);
    return state === undefined || state.generation !== generation ? 0 : state.lost;
  }

  flush(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
    if (this.waiting.length === 0) return;
    const queries = this.waiting;
    this.waiting = [];
    this.tell(queries);
  }
}
