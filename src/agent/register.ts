/**
 * The sandboxes of an agent by name, over its engines: those in force, those kept as a former agent left them, and those that
 * wait for their tap.
 *
 * Holds always: it keeps nothing of its own but who waits; what is in force is what the engines say at that moment.
 * Does not: change anything.
 */
import { z } from "zod";
import { attachRequest, policyRequest, type AttachRequest } from "../api/schema.js";
import { EnforcerError } from "../errors.js";
import type { Engine } from "./engine.js";
import type { KeptSandbox, Sandbox } from "./sandbox.js";

/** What is kept of a request in the state file, beside the policy. */
export const storedSpec = attachRequest.omit({ policy: true }).extend({
  origin: z.enum(["request", "pattern"]),
  /** Of the tap's namespace, where that is another than the agent's own: its name may be another's when this is read. */
  inode: z.int().optional(),
});
export type Spec = z.infer<typeof storedSpec>;

/** Where a policy came from; its text is kept for a successor that has another configuration. */
export const storedSource = z.strictObject({ from: z.enum(["request", "default", "pattern"]), request: policyRequest });
export type Source = z.infer<typeof storedSource>;

export interface Waiting { readonly name: string; readonly spec: Spec; readonly source: Source; readonly since: number }

export type Enforced = { readonly state: "enforced"; readonly name: string; readonly engine: Engine; readonly sandbox: Sandbox; readonly spec: Spec; readonly source: Source };

/** One sandbox as the agent knows it. */
export type Known =
  | Enforced
  | { readonly state: "kept"; readonly name: string; readonly engine: Engine; readonly kept: KeptSandbox }
  | { readonly state: "waiting"; readonly name: string; readonly waiting: Waiting };

/** A sandbox's name: as given, or its tap's, behind the namespace's. */
export function nameOf({ name, tap, netns }: Pick<AttachRequest, "name" | "tap" | "netns">): string {
  return name ?? (netns === undefined ? tap : `${netns.split("/").filter((part) => part !== "").at(-1) ?? "netns"}/${tap}`);
}

/** The name of one whose tap is in an engine's namespace. */
export function nameIn(netns: string | null | undefined, tap: string): string { return nameOf({ tap, ...(netns == null ? {} : { netns }) }); }

export class Register {
  readonly waiting = new Map<string, Waiting>();

  /** @param engines of the moment. */
  constructor(private readonly engines: () => Iterable<Engine>) {}

  /** In the order of their names. */
  all(): Known[] {
    const all: Known[] = [];
    for (const engine of this.engines()) {
      for (const sandbox of engine.enforcer.sandboxes.values()) all.push(enforced(engine, sandbox));
      for (const kept of engine.enforcer.kept.values()) all.push({ state: "kept", name: kept.name, engine, kept });
    }
    for (const waiting of this.waiting.values()) all.push({ state: "waiting", name: waiting.name, waiting });
    return all.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  find(name: string): Known | null {
    for (const engine of this.engines()) {
      const sandbox = engine.enforcer.sandboxes.get(name);
      if (sandbox !== undefined) return enforced(engine, sandbox);
      const kept = engine.enforcer.kept.get(name);
      if (kept !== undefined) return { state: "kept", name, engine, kept };
    }
    const waiting = this.waiting.get(name);
    return waiting === undefined ? null : { state: "waiting", name, waiting };
  }

  /** @throws EnforcerError E_NO_SANDBOX. */
  need(name: string): Known {
    const known = this.find(name);
    if (known !== null) return known;
    const owner = this.#ownerOf(name);
    if (owner !== null) throw new EnforcerError("E_NO_SANDBOX", `there is no sandbox ${name}: the device is that of the sandbox ${owner}`, { remedy: `name ${owner}` });
    if (this.holderOf(name) !== null) throw new EnforcerError("E_NO_SANDBOX", `there is no sandbox ${name}, and nothing comes in from a tap of that name: one was deleted under its policy, or could not be taken over`, { remedy: `attach it, or open the name with enforcer detach ${name}` });
    throw new EnforcerError("E_NO_SANDBOX", `there is no sandbox ${name}`);
  }

  /** One that is in force under a policy that is known. @throws EnforcerError E_NO_SANDBOX. */
  enforced(name: string): Enforced {
    const known = this.need(name);
    if (known.state === "enforced") return known;
    throw new EnforcerError("E_NO_SANDBOX", known.state === "kept" ? `${name} is kept as a former agent left it, and its policy is not known` : `${name} waits for its tap and is not in force`, {
      remedy: known.state === "kept" ? "attach it again, with its policy" : "create the tap",
    });
  }

  /** The engine that holds a name although no sandbox has it, nor a tap that is called so. */
  holderOf(name: string): Engine | null {
    if (this.find(name) !== null || this.#ownerOf(name) !== null) return null;
    return [...this.engines()].find(({ netns, enforcer }) => [...enforcer.heldTaps].some((tap) => nameIn(netns, tap) === name)) ?? null;
  }

  /** The sandbox whose tap is called so, or waited for by that name, while it is called otherwise itself. */
  #ownerOf(name: string): string | null {
    return this.all().find((known) => (known.state === "enforced" ? nameIn(known.engine.netns, known.sandbox.facts.name) === name : known.state === "waiting" && nameIn(known.waiting.spec.netns, known.waiting.spec.tap) === name))?.name ?? null;
  }
}

function enforced(engine: Engine, sandbox: Sandbox): Enforced {
  return { state: "enforced", name: sandbox.name, engine, sandbox, spec: sandbox.options.spec as Spec, source: sandbox.options.source as Source };
}
