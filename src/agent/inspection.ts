/**
 * The looking into connections, as the engine uses it: worker threads, each started when the first policy of its sandboxes needs it.
 *
 * Holds always: a sandbox's connections are one thread's, by its slot, and the kernel sends them to a port where that thread listens; a
 * policy that sends connections to the agent takes force only after the thread knows it; with a swap the thread has the new policy first,
 * so that in between both must allow. Main thread only.
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

/** Where a sandbox's connections are taken, as bpf/intercept.h has it. */
const PORTS = Array.from({ length: AbiLimit.INTERCEPTED_PORTS }, (_, i) => AbiLimit.INTERCEPTED_PORT + i);

export interface InspectionOptions extends Pick<StartTls, "hostNetnsFd" | "sandboxNet6" | "runDirectory"> {
  readonly listen: Omit<StartTls["listen"], "ports">;
  /** At most; 1 to INTERCEPTED_PORTS. */
  readonly threads: number;
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

/** Of all threads together. */
export interface InspectionStats extends TlsStats {
  /** That run. */
  readonly threads: number;
}

export class Inspection {
  readonly #options: InspectionOptions;
  readonly #served = new Map<number, number>();
  /** By number of the thread; null: not started. */
  readonly #clients: (Promise<TlsClient> | null)[];

  constructor(options: InspectionOptions) {
    this.#options = options;
    this.#clients = Array.from({ length: options.threads }, () => null);
  }

  /** Whether anybody's connections are looked into. */
  get active(): boolean { return this.#running.length > 0; }

  /** Hands the sandbox's thread a policy that was staged. Nothing happens where neither it nor a former one needs a look. @throws EnforcerError E_TLS. */
  async serve({ name, slot, generation, tables, policy, compiled, floor, compiledFloor }: Inspected): Promise<void> {
    const known = this.#served.get(slot) === generation;
    if (!known && !compiled.intercepts && compiledFloor?.intercepts !== true && policy.secrets.length === 0) return;
    const client = await this.#started(slot);
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
    await (await this.#started(slot)).ask({ kind: "removeSandbox", slot, generation });
  }

  async setGroups(groups: PackedGroups): Promise<void> { await Promise.all(this.#running.map(async (client) => (await client).ask({ kind: "groups", groups }))); }

  /** null: nothing is looked into. */
  async stats(): Promise<InspectionStats | null> {
    if (!this.active) return null;
    const all = await Promise.all(this.#running.map(async (client) => (await client).ask({ kind: "stats" })));
    return {
      threads: all.length, strangers: all.reduce((sum, one) => sum + one.strangers, 0), pumpFailing: all.some((one) => one.pumpFailing), pumpFailures: all.reduce((sum, one) => sum + one.pumpFailures, 0),
      sandboxes: all.flatMap((one) => one.sandboxes),
    };
  }

  async stop(): Promise<void> { await Promise.all(this.#running.map(async (client) => (await client).stop())); }

  get #running(): Promise<TlsClient>[] { return this.#clients.filter((client) => client !== null); }

  #started(slot: number): Promise<TlsClient> {
    const thread = this.#threadOf(slot % PORTS.length);
    return (this.#clients[thread] ??= this.#start(thread).catch((error: unknown) => {
      this.#clients[thread] = null;
      throw error;
    }));
  }

  /** That listens at a port, by the port's place among them. */
  #threadOf(port: number): number { return port % this.#options.threads; }

  async #start(thread: number): Promise<TlsClient> {
    const { listen, threads, hostNetnsFd, sandboxNet6, runDirectory, resolver, groups, onDenied, onTerminate, onNotice, onFailure } = this.#options;
    const { port1, port2 } = new MessageChannel();
    await resolver.ask({ kind: "connect", port: port1 }, [port1]);
    const client = new TlsClient({ onDenied, onTerminate, onNotice, onFailure });
    try {
      await client.ask({ kind: "start", listen: { ...listen, ports: PORTS.filter((_, port) => this.#threadOf(port) === thread) }, threads, hostNetnsFd, sandboxNet6, groups: packGroups(groups()), port: port2, runDirectory }, [port2]);
    } catch (error) {
      await client.stop();
      throw error;
    }
    return client;
  }
}
