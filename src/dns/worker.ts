/**
 * The DNS worker thread: takes requests (protocol.ts) from its port and runs the service.
 *
 * Holds always: requests are done one after the other; a failure is a reply, never the end of the thread; listeners stand
 * in the agent's namespace and everything else this thread opens in the host's; before `start` is done nothing listens.
 * Does not: parse policies, load programs, write anything to the kernel but pins.
 */
import { connect } from "node:net";
import { setFlagsFromString } from "node:v8";
import { parentPort, type MessagePort } from "node:worker_threads";
import { unpackGroups } from "../addresses/groups.js";
import { BpfMap, UdpBatch, setNetns } from "../../native/index.js";
import { upstreamsOf } from "../policy/floor.js";
import { DenialReport, EVENTS_PER_SECOND } from "./events.js";
import { followFile, readHostResolvers, upstreamServer } from "./host-resolvers.js";
import { decodePin, MapPinWriter, PinEpoch, addressesInUse } from "./kernel-pins.js";
import type { SandboxPolicy } from "./judge.js";
import type { DnsLimits } from "./limits.js";
import { serveLink } from "./link-service.js";
import { latencyBuckets, outcomes, type Outcome } from "./metrics.js";
import type { AddSandboxMessage, Envelope, FromWorker, PinRow, Replies, Request, RestorePinsMessage, StartMessage, Stats, SwapPolicyMessage } from "./protocol.js";
import { dnsLimits, sandboxPolicy } from "./sandbox-policy.js";
import { DnsService, GUEST_CELL } from "./server.js";
import { UPSTREAM_CELL, type UpstreamServer } from "./upstream.js";
import { labelsOf, nameOf, showName } from "./wire.js";

/** CLOCK_MONOTONIC, ms: performance.now() reads it without allocating, from the thread's own origin. */
const origin = (() => {
  const [seconds, ns] = process.hrtime();
  return seconds * 1_000 + ns / 1e6 - performance.now();
})();
const nowMs = (): number => origin + performance.now();
const nowSeconds = (): number => Math.floor(nowMs() / 1_000);

/**
 * How much more than what lives V8 lets the heap become before it collects, percent. Its own choice, up to four times, suits
 * programs alone on a machine: names that come and go would have this one keep hundreds of megabytes of what is gone.
 */
const HEAP_GROWTH = 15;

type PolicyMessage = AddSandboxMessage | SwapPolicyMessage;

interface Views {
  readonly policies: readonly SandboxPolicy[];
  readonly writers: readonly MapPinWriter[];
  /** lets go of the maps. */
  readonly close: () => void;
}

class Worker {
  private service: DnsService | null = null;
  private report: DenialReport | null = null;
  private stopFollowing: (() => void) | null = null;
  private resolvConf: string | null = null;
  private readonly swapLimits = new Map<number, DnsLimits>();
  private readonly links = new Set<MessagePort>();

  constructor(private readonly port: MessagePort) {}

  private post(message: FromWorker): void {
    this.port.postMessage(message);
  }

  async handle({ id, request }: Envelope): Promise<void> {
    try {
      const value = await this.perform(request);
      this.post({ kind: "reply", id, ok: true, value });
    } catch (error) {
      const code = error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "E_RESOLVER";
      this.post({ kind: "reply", id, ok: false, code, message: error instanceof Error ? error.message : String(error) });
    }
  }

  private started(): DnsService {
    if (this.service === null) throw new Error("the resolver is not started");
    return this.service;
  }

  private async perform(request: Request): Promise<Replies[keyof Replies]> {
    switch (request.kind) {
      case "start": return this.start(request);
      case "addSandbox": return this.addSandbox(request);
      case "swapPolicy": return this.swapPolicy(request);
      case "confirmSwap": {
        const limits = this.swapLimits.get(request.slot);
        if (limits === undefined) throw new Error(`slot ${request.slot}: no policy swap is under way`);
        this.started().confirmSwap(request.slot, request.generation, limits);
        this.swapLimits.delete(request.slot);
        return null;
      }
      case "abortSwap":
        this.started().abortSwap(request.slot, request.generation);
        this.swapLimits.delete(request.slot);
        return null;
      case "removeSandbox":
        this.started().remove(request.slot, request.generation);
        this.swapLimits.delete(request.slot);
        return null;
      case "groups":
        this.started().setGroups(unpackGroups(request.groups));
        return null;
      case "reloadResolvers": return { servers: this.readResolvers() };
      case "stats": return this.stats();
      case "restorePins": return this.restorePins(request);
      case "formerPins":
        return this.started().find(request.slot, request.generation).pins.formerPins().map(({ name, address, expired }) => ({ name: showName(name), address: address.slice(), expired }));
      case "pins": return this.pins(request.slot, request.generation);
      case "pinRecords": return this.pinRecords(request.slot, request.generation);
      case "namesOf": return this.started().find(request.slot, request.generation).pins.namesOf(request.address).map(showName);
      case "flushCache":
        this.started().flushCache();
        return null;
      case "connect": return this.connect(request.port);
      case "stop": return this.stop();
    }
  }

  private async start(message: StartMessage): Promise<Replies["start"]> {
    if (this.service !== null) throw new Error("the resolver is started already");
    const { listen } = message;
    if (listen.netnsFd !== null && message.hostNetnsFd === null) throw new Error("a namespace to listen in needs the host's to come back to");
    const report = new DenialReport(message.eventsPerSecond ?? EVENTS_PER_SECOND, nowSeconds, (queries) => this.post({ kind: "denied", queries }));
    const service = new DnsService({
      nowMs, nowSeconds,
      onDenied: (event) => report.add(event),
      createSocket: (family, onBatch) =>
        new UdpBatch({ address: family === 4 ? "0.0.0.0" : "::", port: 0, cellSize: UPSTREAM_CELL, batch: 32, receiveBuffer: 1 << 20 }, onBatch),
      connect: (server) => connect({ host: server.host, port: server.port }),
    }, unpackGroups(message.groups));
    service.setSandboxNet6(message.sandboxNet6);
    let port = listen.port;
    try {
      if (listen.netnsFd !== null) setNetns(listen.netnsFd);
      try {
        for (const address of [listen.address4, listen.address6]) {
          if (address === null) continue;
          const device = listen.device === undefined ? {} : { device: listen.device };
          const socket = service.listenUdp((onBatch) =>
            new UdpBatch({ address, port, cellSize: GUEST_CELL, receiveBuffer: listen.receiveBuffer ?? 4 << 20, ...device }, onBatch));
          port = socket.address.port;
          // node:net looks even a numeric address up before it binds, so the thread stays in this namespace until it listens.
          await service.listenTcp(address, port);
        }
      } finally {
        if (message.hostNetnsFd !== null) setNetns(message.hostNetnsFd);
      }
    } catch (error) {
      await service.close();
      throw error;
    }
    this.service = service;
    this.report = report;
    this.resolvConf = message.resolvConf;
    const servers = this.readResolvers();
    if (message.resolvConf !== null) {
      this.stopFollowing = followFile(message.resolvConf, () => this.post({ kind: "resolvers", servers: this.readResolvers() }));
    }
    return { port, noUpstream: servers.length === 0 };
  }

  private readResolvers(): string[] {
    const found = this.resolvConf === null ? { servers: [], searchDomains: [] } : readHostResolvers(this.resolvConf);
    this.started().setHostResolvers(found.servers, found.searchDomains);
    return found.servers.map((server) => server.host);
  }

  private upstreamsOf({ upstreams, floor, policy }: PolicyMessage): UpstreamServer[] | null {
    const chosen = upstreams ?? upstreamsOf(policy, floor);
    return chosen === null ? null : chosen.map(({ address, port }) => upstreamServer(address, port));
  }

  /** The policies of a message, its own first, each with the map that its pins go to. */
  private views(message: PolicyMessage): Views {
    const { policy, floor, pinsFd, floorPinsFd, pinEpochsFd, slot } = message;
    if ((floor === null) !== (floorPinsFd === null)) throw new Error("a floor and its map of pins come together");
    const policies: SandboxPolicy[] = [];
    const writers: MapPinWriter[] = [];
    const close = (): void => writers.forEach((writer) => writer.close());
    try {
      for (const [each, fd] of [[policy, pinsFd], [floor, floorPinsFd]] as const) {
        if (each === null || fd === null) continue;
        policies.push(sandboxPolicy(each, message.compiledGroups, this.started()));
        // One epoch for all: the kernel's memory of denials is the sandbox's.
        const epoch = writers.length > 0 || pinEpochsFd === null ? null : new PinEpoch(BpfMap.fromFd(pinEpochsFd), slot);
        writers.push(new MapPinWriter(BpfMap.fromFd(fd), epoch));
      }
    } catch (error) {
      close();
      throw error;
    }
    return { policies, writers, close };
  }

  private addSandbox(message: AddSandboxMessage): null {
    const service = this.started();
    const views = this.views(message);
    let flows: BpfMap | null = null;
    try {
      flows = message.flowsFd === null ? null : BpfMap.fromFd(message.flowsFd);
      const table = flows;
      service.add({
        slot: message.slot, generation: message.generation, policies: views.policies, limits: dnsLimits(message.policy), writers: views.writers,
        upstreams: this.upstreamsOf(message),
        inUse: table === null ? null : () => {
          const used = addressesInUse(table);
          return (address) => used.has(Buffer.from(address).toString("latin1"));
        },
        disposeWriter: views.close,
        dispose: () => table?.close(),
      });
    } catch (error) {
      views.close();
      flows?.close();
      throw error;
    }
    return null;
  }

  private restorePins({ slot, generation, pins, pinsFd, floorPinsFd }: RestorePinsMessage): Replies["restorePins"] {
    const service = this.started();
    const sandbox = service.find(slot, generation);
    const now = nowSeconds();
    let restored = 0, left = 0, unknown = 0;
    for (const { labels, address, expires } of pins) {
      const name = nameOf(labels);
      if (name === null || expires <= now) continue;
      const bits = service.resolver.bitsUnder(sandbox.judges, name);
      if (bits !== null && sandbox.pins.pin(name, bits, [address], expires, now) === "ok") restored++;
      else left++;
    }
    const fds = sandbox.judges.length > 1 ? [pinsFd, floorPinsFd] : [pinsFd];
    const maps = fds.map((fd) => (fd === null ? null : BpfMap.fromFd(fd)));
    try {
      const addresses = new Map<string, Buffer>();
      for (const map of maps) {
        if (map === null) continue;
        const { keys, count } = map.entries();
        for (let i = 0; i < count; i++) addresses.set(keys.toString("latin1", i * 16, i * 16 + 16), Buffer.from(keys.subarray(i * 16, i * 16 + 16)));
      }
      let count = 0;
      for (const address of addresses.values()) {
        if (sandbox.pins.holds(address)) continue;
        const entries = maps.map((map) => (map === null ? [] : decodePin(map.lookup(address)).filter(({ expires }) => expires > now)));
        const ends = new Set(entries.flat().map(({ expires }) => expires));
        let kept = ends.size > 0;
        if (kept) unknown++;
        for (const expires of ends) {
          const name = nameOf([`(unknown ${count++} ${expires})`])!;
          const bits = entries.map((list) => list.filter((entry) => entry.expires === expires).map(({ bit }) => bit));
          kept &&= sandbox.pins.pin(name, bits, [address], expires, now) === "ok";
        }
        if (!kept) for (const map of maps) map?.delete(address);
      }
    } finally {
      for (const map of maps) map?.close();
    }
    return { restored, left, unknown };
  }

  private swapPolicy(message: SwapPolicyMessage): Replies["swapPolicy"] {
    const service = this.started();
    const views = this.views(message);
    try {
      const result = service.beginSwap(message.slot, message.generation, views.policies, views.writers, this.upstreamsOf(message), views.close);
      this.swapLimits.set(message.slot, dnsLimits(message.policy));
      return result;
    } catch (error) {
      views.close();
      throw error;
    }
  }

  private pins(slot: number, generation: number): PinRow[] {
    return this.started().find(slot, generation).pins.list().map(({ name, address, expires, bits }) => (
      { name: showName(name), labels: labelsOf(name), address: address.slice(), expires, bits: bits[0] ?? [], floorBits: bits[1] ?? [] }
    ));
  }

  private pinRecords(slot: number, generation: number): string {
    return JSON.stringify(this.started().find(slot, generation).pins.list().map(({ name, address, expires }) => [labelsOf(name), Buffer.from(address).toString("hex"), expires]));
  }

  private stats(): Stats {
    const service = this.started();
    const { latency, sent, answered, timeouts, mismatched, malformed, tcp, errors, failed } = service.upstreamCounters;
    return {
      sandboxes: service.sandboxes().map((s) => ({
        slot: s.slot, generation: s.generation,
        queries: Object.fromEntries(outcomes.map((name, i) => [name, s.counters.queries[i]!])) as { [K in Outcome]: number },
        cacheHits: s.counters.cacheHits, cacheMisses: s.counters.cacheMisses, coalesced: s.counters.coalesced,
        truncated: s.counters.truncated, tcpConnections: s.counters.tcpConnections, tcpRefused: s.counters.tcpRefused,
        inFlight: s.inFlight, connections: s.connections, pins: { ...s.pins.counters },
        queriesLeft: s.bucket.left(nowMs()), addressesPerName: s.pins.largestName(),
        limits: {
          queriesPerSecond: s.limits.queriesPerSecond, inFlight: s.limits.inFlight, connections: service.connectionLimit(s),
          names: s.limits.names, addresses: s.limits.addresses, addressesPerName: s.limits.addressesPerName,
        },
        eventsLost: this.report?.lost(s.slot, s.generation) ?? 0,
      })),
      upstream: {
        sent, answered, timeouts, mismatched, malformed, tcp, errors, failed, inFlight: service.upstream.inFlight,
        latency: { buckets: latencyBuckets, counts: [...latency.counts], sum: latency.sum },
        servers: service.upstream.health(),
      },
      cache: service.cacheStats(),
      strangers: service.strangers, faults: service.faults,
      lastFault: service.lastFault === null ? null : service.lastFault instanceof Error ? service.lastFault.stack ?? String(service.lastFault) : String(service.lastFault),
      dropped: service.droppedAnswers(),
    };
  }

  private connect(port: MessagePort): null {
    const service = this.started();
    this.links.add(port);
    port.on("close", () => this.links.delete(port));
    serveLink(port, service, nowSeconds);
    return null;
  }

  private async stop(): Promise<null> {
    this.stopFollowing?.();
    for (const link of this.links) link.close();
    this.report?.flush();
    await this.service?.close();
    this.service = null;
    // The reply leaves first; with the port closed nothing keeps the thread.
    setImmediate(() => this.port.close());
    return null;
  }
}

if (parentPort !== null) {
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH}`);
  const port = parentPort;
  const worker = new Worker(port);
  let last: Promise<void> = Promise.resolve();
  port.on("message", (envelope: Envelope) => {
    last = last.then(() => worker.handle(envelope));
  });
}
