/**
 * Names of taps from which only judged frames come in (net/base-drop.ts), and who has a claim to each: a sandbox, somebody who
 * waits for a tap of that name, or one whose tap was deleted under its policy.
 *
 * Holds always: a name is let go only when nobody has a claim to it. Where nftables is missing nothing is held, and open() says
 * so. Main thread only.
 */
import { BaseDrop } from "../net/base-drop.js";
import type { Inside, Step } from "./parts.js";

/** Names of deleted taps that are held on; beyond it the oldest is let go. */
const GONE_TAPS = 1024;

export interface HeldNamesOptions {
  readonly instance: string;
  /** Of taps that will be attached when they appear. See BaseDrop.holdPatterns. */
  readonly patterns: readonly string[];
  readonly inside: Inside;
  /** Whether a sandbox has the tap of this name. */
  readonly claimed: (tap: string) => boolean;
}

export class HeldNames {
  readonly #base: BaseDrop | null;
  readonly #inside: Inside;
  readonly #claimed: (tap: string) => boolean;
  readonly #awaited = new Set<string>();
  readonly #gone = new Set<string>();

  private constructor(base: BaseDrop | null, { inside, claimed }: HeldNamesOptions) {
    this.#base = base;
    this.#inside = inside;
    this.#claimed = claimed;
    // A former process held them: by its sandboxes, which are attached again, or for taps that had gone.
    for (const name of base?.names ?? []) this.#gone.add(name);
  }

  /** @returns what cannot be held, with the reason; null: all can. */
  static open(options: HeldNamesOptions): { readonly held: HeldNames; readonly missing: string | null } {
    const { base, missing } = options.inside(() => BaseDrop.open(options.instance, options.patterns));
    return { held: new HeldNames(base, options), missing };
  }

  /** Names that are held. */
  get names(): ReadonlySet<string> { return this.#base?.names ?? new Set(); }
  /** Names of taps that are waited for. */
  get awaited(): ReadonlySet<string> { return this.#awaited; }

  /** Nothing comes in from a tap of this name from now on, although there is none yet. @throws EnforcerError E_ATTACH. */
  await(tap: string): void {
    this.#inside(() => this.#base?.add(tap));
    this.#awaited.add(tap);
  }

  /** Nobody waits for the tap any more, nor is it held because one of its name was deleted. @throws EnforcerError E_ATTACH. */
  forget(tap: string): void {
    this.#awaited.delete(tap);
    this.#gone.delete(tap);
    this.release(tap);
  }

  /** For a tap that is about to be put under a policy, also when it was freed from a pattern before. @throws EnforcerError E_ATTACH. */
  hold(tap: string, undo: Step[]): void {
    if (this.#base === null) return;
    const base = this.#base;
    this.#inside(() => base.unfree(tap));
    if (base.names.has(tap)) return;
    this.#inside(() => base.add(tap));
    undo.push(() => this.release(tap));
  }

  /** A sandbox has the tap of this name: its claim is the one that counts, not that of one that was deleted. @throws EnforcerError E_ATTACH. */
  claim(tap: string): void {
    this.#inside(() => this.#base?.add(tap));
    this.#gone.delete(tap);
  }

  /** The tap that was waited for, or that had gone, is there and under its policy. */
  arrived(tap: string): void {
    this.#awaited.delete(tap);
    this.#gone.delete(tap);
  }

  /** Lets the name go, unless somebody has a claim to it. @throws EnforcerError E_ATTACH. */
  release(tap: string): void {
    if (this.#awaited.has(tap) || this.#gone.has(tap) || this.#claimed(tap)) return;
    this.#inside(() => this.#base?.remove(tap));
  }

  /** The tap was taken out from under its policy by somebody who meant it: it is free, also where a pattern holds its name. @throws EnforcerError E_ATTACH. */
  free(tap: string): void {
    this.release(tap);
    this.#inside(() => this.#base?.free(tap));
  }

  /** A device of this name has gone; the next of it is another's, and a pattern holds it like any other. @throws EnforcerError E_ATTACH. */
  unfree(tap: string): void { this.#inside(() => this.#base?.unfree(tap)); }

  /** The device was deleted under its policy: who makes one of this name again finds it closed. @throws EnforcerError E_ATTACH. */
  keep(tap: string): void {
    this.#gone.delete(tap);
    this.#gone.add(tap);
    for (const oldest of this.#gone) {
      if (this.#gone.size <= GONE_TAPS) return;
      this.#gone.delete(oldest);
      this.release(oldest);
    }
  }

  /** Instead of the patterns of before. @throws EnforcerError E_ATTACH; then those hold. */
  holdPatterns(patterns: readonly string[]): void { this.#inside(() => this.#base?.holdPatterns(patterns)); }

  /** Frames that came from a tap of a held name and that no program had judged. */
  async unjudged(): Promise<number> { return this.#inside(() => this.#base?.dropped()) ?? 0; }

  /** Nothing is held any more. */
  close(): void { this.#inside(() => this.#base?.close()); }
}
