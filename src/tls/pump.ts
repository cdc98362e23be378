/**
 * Connections that only pass, moved out of JavaScript: to the addon's splicing thread.
 *
 * Holds always: a connection is handed over as a whole or stays as it was: octets that Node has read go first, none that it
 * still has to write are left behind, and its sockets are closed here without a word to either side. What is handed over can be
 * counted, asked for what it keeps, and ended at any time. While no thread can be made all stays in JavaScript, somebody is told, and it
 * is tried again.
 */
import type { Socket } from "node:net";
import { type SpliceCounters, SplicePump } from "../../native/index.js";

/** A connection that the thread has. */
export interface Pumped {
  /** Of the guest beyond those that were read of it before, and to the guest, since it was handed over. They only grow, and stay when it is over. */
  octets(): { readonly up: number; readonly down: number };
  /** Octets that one side has sent and the other has not taken. */
  held(): number;
  /** Resets both sides. */
  end(): void;
}

/** They could not be handed over and stand as they stood, but for what was read besides: all of it is to be passed on. */
export interface NotPumped {
  readonly up: Buffer;
  readonly down: Buffer;
  /** Another time it may do: true: as soon as nothing waits to be written; an error: the host had no descriptors for them. */
  readonly again: boolean | Error;
}

export function isPumped(taken: Pumped | NotPumped): taken is Pumped { return "end" in taken; }

export class Pump {
  readonly #native: SplicePump;
  readonly #running = new Map<number, { last: SpliceCounters | null; readonly over: () => void }>();

  private constructor() {
    this.#native = new SplicePump((ended) => {
      // Whoever is told that one is over may ask for the others of the batch.
      for (const { over } of this.#keep(ended)) over();
    });
  }

  #keep(ended: readonly ({ readonly id: number } & SpliceCounters)[]): { readonly over: () => void }[] {
    return ended.flatMap((last) => {
      const one = this.#running.get(last.id);
      if (one === undefined) return [];
      this.#running.delete(last.id);
      one.last = last;
      return [one];
    });
  }

  /** @throws NativeError the host gives no thread (EAGAIN), or no descriptors for it (EMFILE, ENFILE), or no memory. */
  static start(): Pump { return new Pump(); }

  get size(): number { return this.#running.size; }

  /**
   * @param owner whose share of the thread and its pipes it takes: the sandbox's slot.
   * @param guest and far: connected. @param up octets read of the guest and not passed on, `down` of the far side.
   * @param over called once, when both directions have ended or either side broke.
   */
  take(owner: number, guest: Socket, far: Socket, up: Buffer, down: Buffer, over: () => void): Pumped | NotPumped {
    if (!handedOut(guest) || !handedOut(far)) return { up, down, again: true };
    const sides = [guest, far].map((socket) => ({ socket, listeners: socket.listeners("data") as ((chunk: Buffer) => void)[] }));
    for (const { socket } of sides) socket.removeAllListeners("data");
    // All within one turn of the event loop: nothing more is read of either until its descriptor is closed.
    const first = { up: all(guest, up), down: all(far, down) };
    let id: number;
    try {
      id = this.#native.add(owner, descriptorOf(guest), descriptorOf(far), first.up, first.down);
    } catch (error) {
      for (const { socket, listeners } of sides) for (const listener of listeners) socket.on("data", listener);
      return { ...first, again: error instanceof Error && "code" in error && (error.code === "EMFILE" || error.code === "ENFILE") ? error : false };
    }
    for (const { socket } of sides) {
      socket.removeAllListeners();
      socket.on("error", () => undefined);
      socket.destroy(); // closes its own descriptor; the connection is the thread's
    }
    const state: { last: SpliceCounters | null; readonly over: () => void } = { last: null, over };
    this.#running.set(id, state);
    const firstUp = first.up.length;
    return {
      octets: () => {
        const { forth, back } = (state.last ?? this.#native.counters(id)) as SpliceCounters;
        return { up: Math.max(0, forth - firstUp), down: back };
      },
      held: () => (state.last === null ? this.#native.counters(id)?.held ?? 0 : 0),
      end: () => this.#native.end(id),
    };
  }

  /** What it has is reset, keeps its octets, and is not told to be over. */
  close(): void { this.#keep(this.#native.close()); }
}

/** Between two attempts to make the thread, or to give it a connection after one that it could not have, ms: what fails for want of descriptors or threads costs some system calls each time. */
export const RETRY_MS = 5_000;

export interface PumpHolderOptions {
  /** @throws what says why there is none. */
  readonly start: () => Pump;
  /** It could not be made, or not be given a connection (once until it can), or (null) can again after that. */
  readonly onChange: (failure: Error | null) => void;
  /** ms, only forward. */
  readonly now?: () => number;
}

/** The one pump of a thread: made when it is first needed, and while it cannot be made or take anything tried again, at most once in RETRY_MS. */
export class PumpHolder {
  /** Attempts that failed, to make it or to give it a connection. They only grow. */
  failures = 0;
  readonly #options: PumpHolderOptions;
  #pump: Pump | null = null;
  /** Of the last attempt that failed; null: the last one did not. */
  #failedAt: number | null = null;
  #closed = false;

  constructor(options: PumpHolderOptions) { this.#options = options; }

  /** It was wanted and could not be had, the last time. */
  get failing(): boolean { return this.#failedAt !== null; }

  /** null: not to be had now. Never throws. */
  get(): Pump | null {
    if (this.#closed) return null;
    if (this.#failedAt !== null && this.#now() - this.#failedAt < RETRY_MS) return null;
    if (this.#pump !== null) return this.#pump;
    try {
      this.#pump = this.#options.start();
    } catch (error) {
      this.failed(error instanceof Error ? error : new Error(String(error)));
      return null;
    }
    this.worked();
    return this.#pump;
  }

  /** It could not be made, or could not be given a connection: for whatever is next too, and so not before some time has passed. */
  failed(why: Error): void {
    const again = this.failing;
    this.#failedAt = this.#now();
    this.failures++;
    if (!again) this.#options.onChange(why);
  }

  /** It was made, or has taken a connection. */
  worked(): void {
    if (!this.failing) return;
    this.#failedAt = null;
    this.#options.onChange(null);
  }

  #now(): number { return (this.#options.now ?? performance.now.bind(performance))(); }

  /** Ends the pump; none is made any more. */
  close(): void {
    this.#closed = true;
    this.#pump?.close();
    this.#pump = null;
  }
}

/** Of a node:net socket; there is no public way to it. */
function descriptorOf(socket: Socket): number { return (socket as unknown as { _handle: { fd: number } })._handle.fd; }

/** Nothing is left to write, nor has it been said that nothing more will be. */
function handedOut(socket: Socket): boolean { return socket.writableLength === 0 && !socket.destroyed && !socket.writableEnded && socket.errored === null; }

function all(socket: Socket, before: Buffer): Buffer {
  const read: Buffer[] = [before];
  for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) read.push(chunk);
  return read.length === 1 ? before : Buffer.concat(read);
}
