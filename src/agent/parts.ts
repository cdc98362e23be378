/**
 * What the engine of a namespace is made of, as its operations (attach, detach, swap, start) share it. Plain references; the
 * engine (enforcer.ts) makes them in its order and ends them.
 */
import type { Address } from "../addresses/address.js";
import type { Policy } from "../policy/types.js";
import type { Globals } from "../kernel/globals.js";
import type { Instance } from "../kernel/instance.js";
import type { Programs } from "../kernel/tap-link.js";
import type { HeldNames } from "./held-names.js";
import type { Predecessor } from "./predecessor.js";
import type { RunDirectory } from "./run-directory.js";
import type { KeptSandbox, Sandbox } from "./sandbox.js";
import type { Slots } from "./slots.js";
import type { TapTests } from "./tap-tests.js";
import type { Workers } from "./workers.js";

/** Runs with the thread in the taps' namespace. */
export type Inside = <T>(work: () => T) => T;

/** Takes back one thing; the latest is taken back first. */
export type Step = () => void | Promise<void>;

export interface Parts {
  readonly run: RunDirectory;
  readonly instance: Instance;
  /** Those of the taps' namespace. */
  readonly programs: Programs;
  /** Number of the taps' namespace (kernel/place.ts); 0: the agent's own. */
  readonly place: number;
  readonly globals: Globals;
  readonly workers: Workers;
  readonly held: HeldNames;
  readonly slots: Slots;
  readonly predecessor: Predecessor;
  readonly tapTests: TapTests;
  /** In force by this process's doing, by name. */
  readonly sandboxes: ReadonlyMap<string, Sandbox>;
  /** In force as a former process left them, by name. */
  readonly kept: ReadonlyMap<string, KeptSandbox>;
  readonly inside: Inside;
  /** Something a person should know, and enforcement goes on. */
  readonly notice: (text: string) => void;
  /** These count as the host's own addresses from now on, for the sandbox that is being attached. */
  readonly expectGateways: (gateways: readonly Address[]) => void;
  /** Policies with their prefixes in the groups of the host as it is now. */
  readonly regrouped: (policy: Policy, floor: Policy | null) => readonly [policy: Policy, floor: Policy | null];
}

/** For what is taken back after an error, which is the one to be told. */
export async function quietly(step: Step): Promise<void> {
  try {
    await step();
  } catch (error) {
    process.stderr.write(`enforcer: while taking back: ${text(error)}\n`);
  }
}

export function text(error: unknown): string { return error instanceof Error ? error.message : String(error); }
