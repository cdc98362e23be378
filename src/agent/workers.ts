/**
 * The two worker threads as the engine uses them: the resolver, and the looking into connections that is started when the first
 * policy needs it (inspection.ts).
 *
 * Holds always: a sandbox is known to both or to neither; of a policy that takes force they know before the kernel does. Main
 * thread only.
 */
import { formatAddress } from "../addresses/address.js";
import { packGroups, type GroupTable } from "../addresses/groups.js";
import type { BpfMap } from "../../native/index.js";
import type { DeniedQuery } from "../dns/protocol.js";
import type { Instance } from "../kernel/instance.js";
import type { ResolverLink } from "../net/resolver-link.js";
import { Inspection, type Inspected, type InspectionOptions } from "./inspection.js";
import { quietly } from "./parts.js";
import { ResolverClient } from "./resolver-client.js";
import type { RunDirectory } from "./run-directory.js";
import type { UpstreamAddress } from "./sandbox.js";

export interface WorkersOptions extends Pick<InspectionOptions, "groups" | "onDenied" | "onTerminate" | "onNotice" | "onFailure"> {
  readonly run: RunDirectory;
  readonly instance: Instance;
  readonly link: ResolverLink;
  readonly agentNetnsFd: number;
  readonly hostNetnsFd: number;
  readonly resolvConf: string | null;
  /** Of the looking into connections, at most. 1 to INTERCEPTED_PORTS. */
  readonly tlsThreads: number;
  readonly onQueries: (queries: readonly DeniedQuery[]) => void;
}

/** A sandbox and a policy of it, as the workers are told of both. */
export interface Told extends Inspected {
  /** Instead of the policy's or the host's resolvers; empty: those. */
  readonly upstreams: readonly UpstreamAddress[];
}

/** The kernel's tables of the policy, and of its floor, that the resolver writes pins to. */
export interface PinMaps { readonly pins: BpfMap; readonly floorPins: BpfMap | null }

/** What a former process's pins are to the sandbox: none; names of them are written down; the maps hold them too, under this same policy. */
export type FormerPins = "none" | "written" | "in the maps";

export class Workers {
  readonly #options: WorkersOptions;
  readonly resolver: ResolverClient;
  readonly inspection: Inspection;

  /** Starts nothing yet. */
  constructor(options: WorkersOptions) {
    this.#options = options;
    const { run, link, agentNetnsFd, hostNetnsFd, tlsThreads, groups, onQueries, onDenied, onTerminate, onNotice, onFailure } = options;
    this.resolver = new ResolverClient({
      onDenied: onQueries, onFailure,
      onResolvers: (servers) => onNotice(servers.length === 0 ? "no resolver is configured on the host: names fail until there is one" : `resolvers are now ${servers.join(", ")}`),
    });
    this.inspection = new Inspection({
      threads: tlsThreads,
      listen: { netnsFd: agentNetnsFd, address4: formatAddress(link.addr4), address6: link.ipv6 ? formatAddress(link.addr6) : null },
      hostNetnsFd, sandboxNet6: link.ipv6 ? link.net6.bytes : null, runDirectory: run.path, resolver: this.resolver, groups, onDenied, onTerminate, onNotice, onFailure,
    });
  }

  /** The resolver listens when this resolves; groups that are set meanwhile come after it. @throws EnforcerError E_RESOLVER. */
  async start(): Promise<void> {
    const { link, agentNetnsFd, hostNetnsFd, resolvConf, groups, onNotice } = this.#options;
    const { noUpstream } = await this.resolver.ask({
      kind: "start",
      listen: { netnsFd: agentNetnsFd, address4: formatAddress(link.addr4), address6: link.ipv6 ? formatAddress(link.addr6) : null, port: 53, receiveBuffer: 4 << 20 },
      hostNetnsFd, sandboxNet6: link.ipv6 ? link.net6.bytes : null, groups: packGroups(groups()), resolvConf,
    });
    if (noUpstream && resolvConf !== null) onNotice(`${resolvConf} names no resolver: names fail unless the policy or --upstream names one`);
  }

  async stop(): Promise<void> {
    await quietly(() => this.inspection.stop());
    await this.resolver.stop();
  }

  /**
   * Tells both of a sandbox that they do not know. Closes the maps, before the first answer is waited for at the earliest.
   * @throws EnforcerError; then neither knows it.
   */
  async add(told: Told, { pins, floorPins }: PinMaps, former: FormerPins): Promise<void> {
    const { name, slot, generation, policy, floor, upstreams, tables } = told;
    const flows = tables.inner("flows");
    try {
      await this.resolver.ask({
        kind: "addSandbox", slot, generation, name, policy, floor, compiledGroups: null,
        pinsFd: pins.fd, floorPinsFd: floorPins?.fd ?? null, flowsFd: flows?.fd ?? null, pinEpochsFd: this.#pinEpochsFd, upstreams: orNull(upstreams),
      });
      await this.#takingBack(slot, generation, async () => {
        if (former !== "none") await this.#restore(told, former === "in the maps" ? { pins, floorPins } : null);
        await this.inspection.serve(told);
      });
    } finally {
      pins.close();
      floorPins?.close();
      flows?.close();
    }
  }

  /** Tells the resolver of a sandbox that may resolve nothing. Closes the map. @throws EnforcerError E_RESOLVER. */
  async addSilent({ name, slot, generation, policy }: Pick<Told, "name" | "slot" | "generation" | "policy">, pins: BpfMap): Promise<void> {
    try {
      await this.resolver.ask({ kind: "addSandbox", slot, generation, name, policy, floor: null, compiledGroups: null, pinsFd: pins.fd, floorPinsFd: null, flowsFd: null, pinEpochsFd: null, upstreams: null });
    } finally {
      pins.close();
    }
  }

  /** No error where they do not know it. @throws EnforcerError when a worker does not answer. */
  async remove(slot: number, generation: number): Promise<void> {
    try {
      await this.resolver.ask({ kind: "removeSandbox", slot, generation });
    } finally {
      await this.inspection.remove(slot, generation);
    }
  }

  /**
   * The resolver writes pins to both policies' maps from now on, and both workers ask both policies. Closes the maps.
   * @returns pins written for the new policy, and pins that it has no place for. @throws EnforcerError; then they know the former one only.
   * @param former the policy in force.
   */
  async beginSwap(told: Told, { pins, floorPins }: PinMaps, former: Told): Promise<{ written: number; left: number }> {
    const { slot, generation, policy, floor, upstreams } = told;
    let counts: { written: number; left: number };
    try {
      counts = await this.resolver.ask({
        kind: "swapPolicy", slot, generation, policy, floor, compiledGroups: null, pinsFd: pins.fd, floorPinsFd: floorPins?.fd ?? null, pinEpochsFd: this.#pinEpochsFd, upstreams: orNull(upstreams),
      });
    } finally {
      pins.close();
      floorPins?.close();
    }
    try {
      await this.inspection.serve(told);
    } catch (error) {
      await this.abortSwap(former);
      throw error;
    }
    return counts;
  }

  /** The new policy did not take force. Does not throw. */
  async abortSwap(former: Told): Promise<void> {
    const { slot, generation } = former;
    await quietly(() => this.inspection.serve(former));
    await quietly(() => this.resolver.ask({ kind: "abortSwap", slot, generation }).then(() => undefined));
  }

  /** The new policy is in force. @throws EnforcerError E_RESOLVER. */
  async confirmSwap(slot: number, generation: number): Promise<void> { await this.resolver.ask({ kind: "confirmSwap", slot, generation }); }

  /** Does not wait: what a worker is asked after this is answered by these groups. */
  setGroups(groups: GroupTable): void {
    const packed = packGroups(groups);
    this.inspection.setGroups(packed).catch((error: unknown) => this.#options.onFailure(error as Error));
    this.resolver.ask({ kind: "groups", groups: packed }).catch((error: unknown) => this.#options.onFailure(error as Error));
  }

  get #pinEpochsFd(): number { return this.#options.instance.map("pin_epochs").fd; }

  async #restore({ name, slot, generation }: Told, maps: PinMaps | null): Promise<void> {
    const book = this.#options.run.readPins(name);
    await this.resolver.ask({
      kind: "restorePins", slot, generation, pinsFd: maps?.pins.fd ?? null, floorPinsFd: maps?.floorPins?.fd ?? null,
      pins: book === null || book.generation !== generation ? [] : book.pins.map(([labels, address, expires]) => ({ labels, address: Uint8Array.from(Buffer.from(address, "hex")), expires })),
    });
  }

  async #takingBack(slot: number, generation: number, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      await quietly(() => this.remove(slot, generation));
      throw error;
    }
  }
}

function orNull(upstreams: readonly UpstreamAddress[]): readonly UpstreamAddress[] | null { return upstreams.length > 0 ? upstreams : null; }
