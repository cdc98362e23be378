/**
 * The looking into connections, as the engine uses it: a worker thread that is started when the first policy needs it.
 *
 * Holds always: a policy that sends connections to the agent takes force only after the worker knows it; with a swap the worker
 * has the new policy first, so that in between both must allow. Main thread only.
 */
import { MessageChannel } from "node:worker_threads";
import { packGroups, type GroupTable, type PackedGroups } from "../addresses/groups.js";
import { EnforcerError } from "../errors.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import type { SandboxTables } from "../kernel/sandbox-tables.js";
import type { CompiledPolicy } from "../policy/compile.js";
import type { Policy } from "../policy/types.js";
import type { Violation } from "../secrets/types.js";
import type { StartTls, TlsDenial, TlsStats } from "../tls/protocol.js";
import type { ResolverClient } from "./resolver-client.js";
import { TlsClient } from "./tls-client.js";

export interface InspectionOptions extends Pick<StartTls, "hostNetnsFd" | "sandboxNet6" | "runDirectory"> {
  readonly listen: Omit<StartTls["listen"], "port">;
  readonly resolver: ResolverClient;
  readonly groups: () => GroupTable;
  readonly onDenied: (denials: readonly TlsDenial[]) => void;
  readonly onTerminate: (slot: number, generation: number, violation: Violation) => void;
  readonly onNotice: (text: string) => void;
  readonly onFailure: (error: Error) => void;
}

/** A sandbox with the policy that is about to take force. */
export interface Inspected {
  readonly name: string;
  readonly slot: number;
  readonly generation: number;
  readonly tables: SandboxTables;
  readonly policy: Policy;
  readonly compiled: CompiledPolicy;
  /** Of the operator; null: none. */
  readonly floor: Policy | null;
  readonly compiledFloor: CompiledPolicy | null;
}

export class Inspection {
  readonly #options: InspectionOptions;
  readonly #served = new Map<number, number>();
  #client: Promise<TlsClient> | null = null;

  constructor(options: InspectionOptions) { this.#options = options; }

  /** Whether anybody's connections are looked into. */
  get active(): boolean { return this.#client !== null; }

  /** Hands the worker a policy that was staged. Nothing happens where neither it nor a former one needs a look. @throws EnforcerError E_TLS. */
  async serve({ name, slot, generation, tables, policy, compiled, floor, compiledFloor }: Inspected): Promise<void> {
    const known = this.#served.get(slot) === generation;
    if (!known && !compiled.intercepts && compiledFloor?.intercepts !== true && policy.secrets.length === 0) return;
    const client = await this.#started();
    const intercepted = tables.inner("intercepted");
    if (intercepted === null) throw new EnforcerError("E_TLS", `${name}: the table of intercepted connections is missing`);
    try {
      await client.ask({ kind: known ? "setPolicy" : "addSandbox", slot, generation, name, policy, floor, interceptedFd: intercepted.fd });
      this.#served.set(slot, generation);
    } finally {
      intercepted.close();
    }
  }

  /** Ends the sandbox's connections. */
  async remove(slot: number, generation: number): Promise<void> {
    if (this.#served.get(slot) !== generation) return;
    this.#served.delete(slot);
    await (await this.#started()).ask({ kind: "removeSandbox", slot, generation });
  }

  async setGroups(groups: PackedGroups): Promise<void> { if (this.#client !== null) await (await this.#client).ask({ kind: "groups", groups }); }

  /** null: nothing is looked into. */
  async stats(): Promise<TlsStats | null> { return this.#client === null ? null : (await this.#client).ask({ kind: "stats" }); }

  async stop(): Promise<void> { if (this.#client !== null) await (await this.#client).stop(); }

  #started(): Promise<TlsClient> {
    return (this.#client ??= this.#start().catch((error: unknown) => {
      this.#client = null;
      throw error;
    }));
  }

  async #start(): Promise<TlsClient> {
    const { listen, hostNetnsFd, sandboxNet6, runDirectory, resolver, groups, onDenied, onTerminate, onNotice, onFailure } = this.#options;
    const { port1, port2 } = new MessageChannel();
    await resolver.ask({ kind: "connect", port: port1 }, [port1]);
    const client = new TlsClient({ onDenied, onTerminate, onNotice, onFailure });
    try {
      await client.ask({ kind: "start", listen: { ...listen, port: AbiLimit.INTERCEPTED_PORT }, hostNetnsFd, sandboxNet6, groups: packGroups(groups()), port: port2, runDirectory }, [port2]);
    } catch (error) {
      await client.stop();
      throw error;
    }
    return client;
  }
}
