/**
 * What is let through, for who watches it: each new flow of the kernel's tables once, and the number of those that nobody saw.
 *
 * Holds always: a table is read in slices, however large, and no second reading begins before one is over; nothing is read while
 * nobody watches; what cannot be read of one sandbox does not hide the others. What is kept of a table are the flows of its last moments, not all of them: which are new is told by the tick at
 * which the kernel opened them. The kernel counts each flow that it opens, so that those which came and went between two readings,
 * or were too many to be told, are known as a number.
 */
import type { FlowRow } from "../kernel/flows.js";
import { flowParts, interceptedOf } from "../kernel/flows.js";
import type { Engine } from "./engine.js";
import type { Sandbox } from "./sandbox.js";
import { Slices } from "./slices.js";

/** How often the tables are read, ms. */
const EVERY = 500;
/** And at most this part of the time goes into it: one in so many. */
const SHARE = 4;
/** Flows of one sandbox that are told of one reading. */
const TOLD = 1000;

export interface Watched { readonly engine: Engine; readonly sandbox: Sandbox }

export interface FlowWatchOptions {
  /** Sandboxes in force. */
  readonly known: () => readonly Watched[];
  readonly wanted: (sandbox: string) => boolean;
  readonly onAllowed: (watched: Watched, row: FlowRow) => void;
  /** So many more flows were let through. */
  readonly onUnseen: (sandbox: string, count: number) => void;
  /** A sandbox's tables could not be read; they are tried again, and it is told once until they can. */
  readonly onError: (sandbox: string, error: unknown) => void;
}

/** How far a sandbox's flows are told. */
interface Mark {
  readonly generation: number;
  /** What the kernel opened before this tick is told, or is past. */
  readonly from: bigint;
  /** The latest tick that was seen. */
  readonly newest: bigint;
  /** Of those from then on, and of those whose tick is not known: what was told, or was there before anybody watched. */
  readonly keys: ReadonlySet<string>;
  /** Flows that are accounted for: told, or told of as a number. */
  readonly accounted: number;
}

const keyOf = ({ protocol, guestPort, remotePort, remote, opened }: FlowRow): string => `${protocol} ${guestPort} ${remotePort} ${Buffer.from(remote).toString("hex")} ${opened ?? ""}`;

export class FlowWatch {
  readonly #options: FlowWatchOptions;
  readonly #marks = new Map<string, Mark>();
  readonly #failing = new Set<string>();
  /** Sandboxes whose tables are to be looked at for who has just begun to watch: nothing of them is told before. */
  readonly #joining = new Map<string, Watched>();
  #joined: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | null = null;
  #stopped = false;

  constructor(options: FlowWatchOptions) { this.#options = options; }

  start(): void { this.#later(EVERY); }

  stop(): void {
    this.#stopped = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  forget(name: string): void { this.#marks.delete(name); }

  /**
   * Somebody has just begun to watch: what the tables of sandboxes hold that nobody watched so far is not told. Resolves when what
   * each holds is known: all that is opened from then on is told.
   */
  joined(): Promise<void> {
    for (const watched of this.#options.known()) {
      const { name } = watched.sandbox;
      if (this.#options.wanted(name) && !this.#marks.has(name)) this.#joining.set(name, watched);
    }
    return this.#joined = this.#joined.then(() => this.#join());
  }

  async #join(): Promise<void> {
    const slices = new Slices();
    for (const [name, { engine, sandbox }] of this.#joining) {
      if (this.#stopped) return;
      try {
        // After a pause it may be another sandbox, all of which is told; or whoever wanted it may have gone.
        if (engine.enforcer.sandboxAt(sandbox.slot, sandbox.generation) !== null && this.#options.wanted(name)) this.#marks.set(name, markNow(engine, sandbox));
      } catch (error) {
        this.#failed(name, error);
      }
      this.#joining.delete(name);
      await slices.pause();
    }
  }

  #failed(name: string, error: unknown): void {
    if (this.#failing.has(name)) return;
    this.#failing.add(name);
    this.#options.onError(name, error);
  }

  #later(delay: number): void {
    this.#timer = setTimeout(() => {
      const began = performance.now();
      void this.#read().finally(() => { if (!this.#stopped) this.#later(Math.max(EVERY, SHARE * (performance.now() - began))); });
    }, delay);
    this.#timer.unref();
  }

  async #read(): Promise<void> {
    const all = this.#options.known(), names = new Set(all.map(({ sandbox }) => sandbox.name)), slices = new Slices();
    for (const name of this.#marks.keys()) if (!names.has(name) || !this.#options.wanted(name)) this.#marks.delete(name);
    for (const name of this.#failing) if (!names.has(name)) this.#failing.delete(name);
    for (const watched of all) {
      const { engine: { enforcer }, sandbox } = watched, { name, slot, generation } = sandbox;
      const current = (): boolean => !this.#stopped && enforcer.sandboxAt(slot, generation) !== null && this.#options.wanted(name) && !this.#joining.has(name);
      try {
        if (current()) {
          await this.#readOne(watched, current, slices);
          this.#failing.delete(name);
        }
      } catch (error) {
        this.#failed(name, error);
      }
      await slices.pause();
    }
  }

  async #readOne(watched: Watched, current: () => boolean, slices: Slices): Promise<void> {
    const { engine, sandbox } = watched, { name, generation } = sandbox;
    const held = this.#marks.get(name);
    // One that came while somebody watches has told nothing yet; one that a former agent left has told all that it shows.
    const before = held?.generation === generation ? held : sandbox.adopted ? markNow(engine, sandbox) : { from: 0n, newest: 0n, keys: new Set<string>(), accounted: 0 };
    // Before the table: what comes in between is counted at the next reading.
    const opened = openedBy(engine, sandbox);
    const seen = new Map<string, bigint | null>();
    let found: { readonly key: string; readonly row: FlowRow }[] = [], first: bigint | null = null, newest = before.newest;
    for (const part of flowParts(sandbox.tables, (tick) => tick === null || tick >= before.from)) {
      first ??= part.newest;
      if (part.newest > newest) newest = part.newest;
      for (const row of part.rows) {
        const key = keyOf(row);
        if (before.keys.has(key)) seen.set(key, row.opened);
        else found.push({ key, row });
      }
      if (found.length > 2 * TOLD) found = latest(found);
      await slices.pause();
      if (!current()) return;
    }
    // No more are new than the kernel has opened: of a table that was there before, the latest.
    let room = openedBy(engine, sandbox) - before.accounted;
    const told = latest(found).filter(({ row }) => row.inspected || room-- > 0).reverse();
    for (const { key, row } of told) {
      seen.set(key, row.opened);
      this.#options.onAllowed(watched, row);
    }
    const total = before.accounted + told.filter(({ row }) => !row.inspected).length;
    if (opened > total) this.#options.onUnseen(name, opened - total);
    // What came in behind the reading was opened after its first part, and after all that was seen the time before. Where there were
    // too many, the others are a number, and are not told later.
    const from = told.length === TOLD ? newest + 1n : first !== null && first > before.newest ? first : before.newest;
    this.#marks.set(name, { generation, from, newest, keys: new Set([...seen].filter(([, tick]) => tick === null || tick >= from).map(([key]) => key)), accounted: Math.max(opened, total) });
  }
}

/** As many as are told at one time, the latest first. */
function latest<T extends { readonly row: FlowRow }>(found: readonly T[]): T[] {
  const at = ({ row: { opened } }: T): bigint => opened ?? (1n << 64n);
  return [...found].sort((a, b) => (at(a) > at(b) ? -1 : at(a) < at(b) ? 1 : 0)).slice(0, TOLD);
}

/** Flows that the kernel opened so far, of those that it does not send to the agent. */
function openedBy({ enforcer }: Engine, sandbox: Sandbox): number {
  return enforcer.counters(sandbox).reduce((sum, { reason, packets }) => (reason === "rule-allow" || reason === "default-allow" ? sum + Number(packets) : sum), 0);
}

/** All that is there now is told. Of a large table only a part is looked at; see where `room` is counted. */
function markNow(engine: Engine, sandbox: Sandbox): Mark {
  const accounted = openedBy(engine, sandbox), keys = new Set(interceptedOf(sandbox.tables).map(keyOf));
  let from = 0n;
  for (const { rows, newest } of flowParts(sandbox.tables, () => true)) {
    for (const row of rows) if (row.opened === newest) keys.add(keyOf(row));
    from = newest;
    break;
  }
  return { generation: sandbox.generation, from, newest: from, keys, accounted };
}
