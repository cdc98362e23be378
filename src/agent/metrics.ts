/**
 * What the enforcer counts, as Prometheus metrics over HTTP.
 *
 * Holds always: labels are bounded (sandbox, direction, verdict, reason, outcome, map), never a name or an address; numbers
 * are read from the kernel and the resolver when somebody asks, and counters there only grow. Read-only: GET /metrics.
 */
import { createServer, type Server } from "node:http";
import { Counter, Gauge, Registry, type Metric } from "prom-client";
import type { Stats } from "../dns/protocol.js";
import { EnforcerError } from "../errors.js";
import type { TlsStats } from "../tls/protocol.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import type { Count } from "../kernel/counters.js";
import type { Enforcer, Sandbox } from "./enforcer.js";
import { begunKinds, begunLimits, type LimitCounters } from "./sandbox.js";
import { Slices } from "./slices.js";

/** Default: 127.0.0.1:9469. */
export interface Listen { readonly host: string; readonly port: number }

/** @param engines all that share what this one has; the first of them. */
export function enforcerRegistry(enforcer: Enforcer, engines: () => readonly Enforcer[] = () => [enforcer]): Registry {
  const registry = new Registry();
  const registers = [registry];
  // Of all metrics of all scrapes together.
  const slices = new Slices();
  const sandboxes = (): Sandbox[] => engines().flatMap((engine) => [...engine.sandboxes.values()]);
  const sum = (of: (engine: Enforcer) => number): number => engines().reduce((all, engine) => all + of(engine), 0);
  const stats = shared(() => enforcer.resolverStats());
  const tls = shared(() => enforcer.tlsStats());
  const kernel = shared(() => readKernel(engines(), slices));
  /** Rows of a worker, with the name of the sandbox where it is still there. */
  const eachOf = async <R extends { readonly slot: number; readonly generation: number }>(rows: readonly R[], visit: (sandbox: string, row: R) => void): Promise<void> => {
    for (const row of rows) {
      await slices.pause();
      const sandbox = enforcer.sandboxAt(row.slot, row.generation);
      if (sandbox !== null) visit(sandbox.name, row);
    }
  };
  const eachKernel = async (visit: (row: KernelRow) => void): Promise<void> => {
    for (const row of await kernel()) {
      await slices.pause();
      visit(row);
    }
  };
  const eachDns = async (visit: (sandbox: string, row: Stats["sandboxes"][number]) => void): Promise<void> => eachOf((await stats()).sandboxes, visit);
  const eachTls = async (visit: (sandbox: string, row: TlsStats["sandboxes"][number]) => void): Promise<void> => eachOf((await tls())?.sandboxes ?? [], visit);
  const eachSandbox = async (visit: (sandbox: Sandbox) => void): Promise<void> => {
    for (const sandbox of sandboxes()) {
      await slices.pause();
      visit(sandbox);
    }
  };

  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[], read: (add: (labels: Record<L, string>, value: number) => void) => void | Promise<void>): void => {
    new Counter({
      name, help, labelNames: [...labelNames], registers,
      async collect() {
        this.reset();
        await read((labels, value) => this.inc(labels as never, value));
      },
    });
  };
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[], read: (set: (labels: Record<L, string>, value: number) => void) => void | Promise<void>): void => {
    new Gauge({
      name, help, labelNames: [...labelNames], registers,
      async collect() {
        this.reset();
        await read((labels, value) => this.set(labels as never, value));
      },
    });
  };
  const packetLabels = ["sandbox", "direction", "verdict", "reason"] as const;

  counter("enforcer_packets_total", "Frames judged at the tap; direction is the guest's (egress: guest to world).", packetLabels, (add) => eachKernel(({ name, counters }) => {
    for (const { direction, verdict, reason, packets } of counters) add({ sandbox: name, direction, verdict, reason }, Number(packets));
  }));
  counter("enforcer_bytes_total", "Octets of those frames.", packetLabels, (add) => eachKernel(({ name, counters }) => {
    for (const { direction, verdict, reason, bytes } of counters) add({ sandbox: name, direction, verdict, reason }, Number(bytes));
  }));
  counter("enforcer_orphan_packets_total", "Frames dropped that belonged to no sandbox.", ["direction", "reason"], (add) => {
    for (const { direction, reason, packets } of enforcer.orphans()) add({ direction, reason }, Number(packets));
  });
  counter("enforcer_unjudged_packets_total", "Frames dropped that came in by a held name without a verdict, such as from a tap that was made again.", [], async (add) => { for (const engine of engines()) add({}, await engine.unjudged()); });
  gauge("enforcer_events", "Denials that the kernel reported in the latest second that had one.", ["sandbox"], (set) => eachKernel(({ name, own }) => { if (own !== null) set({ sandbox: name }, own.events); }));
  gauge("enforcer_events_limit", "Denials that are reported a second at most.", ["sandbox"], (set) => eachSandbox(({ name, policy }) => set({ sandbox: name }, policy.limits.eventsPerSecond)));
  counter("enforcer_events_lost_total", "Denials that were not reported, over the sandbox's rate or with the ring full; they are counted in enforcer_packets_total all the same.", ["sandbox", "source"], async (add) => {
    await Promise.all([
      eachKernel(({ name, own }) => { if (own !== null) add({ sandbox: name, source: "kernel" }, own.eventsLost); }),
      eachDns((sandbox, { eventsLost }) => add({ sandbox, source: "resolver" }, eventsLost)),
      eachTls((sandbox, { eventsLost }) => add({ sandbox, source: "tls" }, eventsLost)),
    ]);
  });
  gauge("enforcer_map_entries", "Entries in a table that can be full.", ["sandbox", "map"], (set) => eachKernel(({ name, own }) => { for (const { map, entries } of own?.fill ?? []) set({ sandbox: name, map }, entries); }));
  gauge("enforcer_map_limit", "Entries that the table can hold.", ["sandbox", "map"], (set) => eachKernel(({ name, own }) => { for (const { map, limit } of own?.fill ?? []) set({ sandbox: name, map }, limit); }));
  gauge("enforcer_sandboxes", "Sandboxes in force.", [], (set) => set({}, sum((engine) => engine.sandboxes.size)));
  gauge("enforcer_sandboxes_kept", "Sandboxes in force as a former agent left them, whose policy is not known: they resolve no name until they are attached again.", [], (set) => set({}, sum((engine) => engine.kept.size)));
  gauge("enforcer_taps_awaited", "Taps that are waited for.", [], (set) => set({}, sum((engine) => engine.awaited.size)));
  gauge("enforcer_taps_held", "Names by which only judged frames come in: taps in force, awaited, and deleted under their policy.", [], (set) => set({}, sum((engine) => engine.heldTaps.size)));
  gauge("enforcer_sandbox_kernel_bytes", "Kernel memory of the sandbox's own tables.", ["sandbox"], (set) => eachKernel(({ name, own }) => { if (own !== null) set({ sandbox: name }, own.memory); }));

  counter("enforcer_dns_queries_total", "Queries of guests by outcome.", ["sandbox", "outcome"], (add) => eachDns((sandbox, { queries }) => {
    for (const [outcome, value] of Object.entries(queries)) if (value > 0) add({ sandbox, outcome }, value);
  }));
  counter("enforcer_dns_cache_hits_total", "Queries answered from the cache.", ["sandbox"], (add) => eachDns((sandbox, row) => add({ sandbox }, row.cacheHits)));
  counter("enforcer_dns_cache_misses_total", "Queries that an upstream was asked for.", ["sandbox"], (add) => eachDns((sandbox, row) => add({ sandbox }, row.cacheMisses)));
  counter("enforcer_dns_truncated_total", "UDP answers sent with TC=1.", ["sandbox"], (add) => eachDns((sandbox, row) => add({ sandbox }, row.truncated)));
  counter("enforcer_dns_rebind_refused_total", "Answers refused because of an address that the sandbox may not have.", ["sandbox"], (add) => eachDns((sandbox, row) => add({ sandbox }, row.queries.rebind)));
  gauge("enforcer_dns_in_flight", "Queries waiting for an upstream.", ["sandbox"], (set) => eachDns((sandbox, row) => set({ sandbox }, row.inFlight)));
  gauge("enforcer_dns_in_flight_limit", "Queries that may wait for an upstream at one time.", ["sandbox"], (set) => eachDns((sandbox, { limits }) => set({ sandbox }, limits.inFlight)));
  gauge("enforcer_dns_queries_left", "Queries that are answered at once before the sandbox's rate refuses one (outcome rate-limit).", ["sandbox"], (set) => eachDns((sandbox, row) => set({ sandbox }, row.queriesLeft)));
  gauge("enforcer_dns_queries_limit", "Queries that are answered a second.", ["sandbox"], (set) => eachDns((sandbox, { limits }) => set({ sandbox }, limits.queriesPerSecond)));
  gauge("enforcer_dns_tcp_connections", "DNS connections of the guest.", ["sandbox"], (set) => eachDns((sandbox, row) => set({ sandbox }, row.connections)));
  gauge("enforcer_dns_tcp_connections_limit", "DNS connections that the guest may have at one time.", ["sandbox"], (set) => eachDns((sandbox, { limits }) => set({ sandbox }, limits.connections)));
  counter("enforcer_dns_tcp_refused_total", "DNS connections closed because the guest had as many as it may have.", ["sandbox"], (add) => eachDns((sandbox, row) => add({ sandbox }, row.tcpRefused)));
  gauge("enforcer_dns_waiting", "UDP queries that the resolver has not answered yet; those over the limit are packets denied as redirect-table-full.", ["sandbox"], (set) => eachKernel(({ name, own }) => { if (own !== null) set({ sandbox: name }, own.dnsWaiting); }));
  gauge("enforcer_dns_waiting_limit", "UDP queries that may wait for the resolver at one time.", ["sandbox"], (set) => eachSandbox(({ name }) => set({ sandbox: name }, AbiLimit.DNS_WAITING)));
  gauge("enforcer_begun", "What the guest began in the latest second that had something of the kind, and the agent had to serve; what is over the limit are packets denied as redirect-table-full.", ["sandbox", "kind"], (set) => eachKernel(({ name, own }) => { if (own !== null) for (const kind of begunKinds) set({ sandbox: name, kind }, own.begun[kind]); }));
  gauge("enforcer_begun_limit", "As much of it as goes to the agent a second.", ["sandbox", "kind"], (set) => eachSandbox(({ name, policy }) => { for (const [kind, limit] of Object.entries(begunLimits(policy))) set({ sandbox: name, kind }, limit); }));
  gauge("enforcer_pins", "Pins now: names and addresses with a lease, and addresses of the name that has most.", ["sandbox", "kind"], (set) => eachDns((sandbox, { pins, addressesPerName }) => {
    set({ sandbox, kind: "name" }, pins.names);
    set({ sandbox, kind: "address" }, pins.addresses);
    set({ sandbox, kind: "address-of-a-name" }, addressesPerName);
  }));
  gauge("enforcer_pins_limit", "Pins that the sandbox may have.", ["sandbox", "kind"], (set) => eachDns((sandbox, { limits }) => {
    set({ sandbox, kind: "name" }, limits.names);
    set({ sandbox, kind: "address" }, limits.addresses);
    set({ sandbox, kind: "address-of-a-name" }, limits.addressesPerName);
  }));
  counter("enforcer_pins_added_total", "Pins written.", ["sandbox"], (add) => eachDns((sandbox, { pins }) => add({ sandbox }, pins.added)));
  counter("enforcer_pins_renewed_total", "Pins whose lease was made longer.", ["sandbox"], (add) => eachDns((sandbox, { pins }) => add({ sandbox }, pins.renewed)));
  counter("enforcer_pins_expired_total", "Pins whose lease ran out.", ["sandbox"], (add) => eachDns((sandbox, { pins }) => add({ sandbox }, pins.expired)));
  counter("enforcer_pins_refused_total", "Answers refused because a bound on pins was reached.", ["sandbox", "bound"], (add) => eachDns((sandbox, { pins }) => {
    add({ sandbox, bound: "names" }, pins.refusedNames);
    add({ sandbox, bound: "addresses" }, pins.refusedAddresses);
    add({ sandbox, bound: "addresses-per-name" }, pins.refusedAddressesPerName);
    add({ sandbox, bound: "rules-per-address" }, pins.refusedBits);
  }));
  counter("enforcer_tls_connections_total", "Connections that were looked into, by what came of them.", ["sandbox", "outcome"], (add) => eachTls((sandbox, { outcomes }) => {
    for (const [outcome, value] of Object.entries(outcomes)) add({ sandbox, outcome }, value);
  }));
  gauge("enforcer_tls_connections", "Such connections now.", ["sandbox"], (set) => eachTls((sandbox, { connections }) => set({ sandbox }, connections)));
  gauge("enforcer_tls_connections_limit", "Such connections that the sandbox may have at one time.", ["sandbox"], (set) => eachTls((sandbox, { limit }) => set({ sandbox }, limit)));
  gauge("enforcer_tls_hellos", "Connections whose ClientHello is not whole yet.", ["sandbox"], (set) => eachTls((sandbox, { hellos }) => set({ sandbox }, hellos)));
  gauge("enforcer_tls_hellos_limit", "Such connections that the sandbox may have at one time.", ["sandbox"], (set) => eachTls((sandbox, { helloLimit }) => set({ sandbox }, helloLimit)));
  gauge("enforcer_tls_hello_bytes", "Octets that are kept of those ClientHellos.", ["sandbox"], (set) => eachTls((sandbox, { helloOctets }) => set({ sandbox }, helloOctets)));
  gauge("enforcer_tls_hello_bytes_limit", "Octets that may be kept of them.", ["sandbox"], (set) => eachTls((sandbox, { helloOctetsLimit }) => set({ sandbox }, helloOctetsLimit)));
  gauge("enforcer_tls_handshakes", "Intercepted connections whose handshakes are not over.", ["sandbox"], (set) => eachTls((sandbox, { handshakes }) => set({ sandbox }, handshakes)));
  gauge("enforcer_tls_handshakes_limit", "Such connections that the sandbox may have at one time; others wait.", ["sandbox"], (set) => eachTls((sandbox, { handshakeLimit }) => set({ sandbox }, handshakeLimit)));
  gauge("enforcer_tls_handshakes_waiting", "Connections that wait for their turn to begin their handshakes.", ["sandbox"], (set) => eachTls((sandbox, { handshakesWaiting }) => set({ sandbox }, handshakesWaiting)));
  gauge("enforcer_tls_far_sides", "Servers of intercepted connections that are not verified yet, and those that failed lately.", ["sandbox"], (set) => eachTls((sandbox, { farSides }) => set({ sandbox }, farSides)));
  gauge("enforcer_tls_far_sides_limit", "Such servers at one time; others wait.", ["sandbox"], (set) => eachTls((sandbox, { farSideLimit }) => set({ sandbox }, farSideLimit)));
  gauge("enforcer_tls_connections_left", "Connections that may begin at once before the sandbox's rate refuses one.", ["sandbox"], (set) => eachTls((sandbox, { connectionTokens }) => set({ sandbox }, connectionTokens)));
  gauge("enforcer_tls_connections_rate_limit", "Connections that may begin a second.", ["sandbox"], (set) => eachSandbox(({ name, policy }) => set({ sandbox: name }, policy.limits.connectionsPerSecond)));
  gauge("enforcer_tls_buffered_bytes", "Octets that one side of such connections has sent and the other has not taken.", ["sandbox"], (set) => eachTls((sandbox, { buffered }) => set({ sandbox }, buffered)));
  gauge("enforcer_tls_buffered_bytes_limit", "Such octets that the sandbox may have.", ["sandbox"], (set) => eachTls((sandbox, { bufferedLimit }) => set({ sandbox }, bufferedLimit)));
  counter("enforcer_tls_bytes_total", "Octets of connections that were looked into, on the guest's side.", ["sandbox", "direction"], (add) => eachTls((sandbox, { bytesUp, bytesDown }) => {
    add({ sandbox, direction: "egress" }, bytesUp);
    add({ sandbox, direction: "ingress" }, bytesDown);
  }));
  counter("enforcer_http_requests_total", "Requests that were looked at.", ["sandbox"], (add) => eachTls((sandbox, { requests }) => add({ sandbox }, requests)));
  counter("enforcer_http_refused_total", "Requests that were refused.", ["sandbox", "reason"], (add) => eachTls((sandbox, { refused }) => {
    for (const [reason, value] of Object.entries(refused)) add({ sandbox, reason }, value);
  }));
  counter("enforcer_secrets_total", "What became of secrets, by secret.", ["sandbox", "secret", "event"], (add) => eachTls((sandbox, { secrets }) => {
    for (const [secret, { failing: _, ...events }] of Object.entries(secrets)) for (const [event, value] of Object.entries(events)) add({ sandbox, secret, event }, value);
  }));
  gauge("enforcer_secrets_failing", "1: the secret's source could not be read when it was last asked.", ["sandbox", "secret"], (set) => eachTls((sandbox, { secrets }) => {
    for (const [secret, { failing }] of Object.entries(secrets)) set({ sandbox, secret }, failing ? 1 : 0);
  }));
  counter("enforcer_tls_leaves_total", "Certificates for names, by whether one was there.", ["sandbox", "result"], (add) => eachTls((sandbox, { leaves }) => {
    for (const [result, value] of Object.entries(leaves)) add({ sandbox, result }, value);
  }));
  gauge("enforcer_tls_threads", "Threads that look into connections: started as sandboxes need them, tls_threads of the configuration at most.", [], async (set) => set({}, (await tls())?.threads ?? 0));
  counter("enforcer_tls_strangers_total", "Connections at the agent's listener that belonged to no redirected flow.", [], async (add) => add({}, (await tls())?.strangers ?? 0));
  gauge("enforcer_tls_pump_failing", "1: the splicing thread could not be made, or not be given a connection, when it was last wanted, and connections are passed on without it, more slowly.", [], async (set) => set({}, (await tls())?.pumpFailing === true ? 1 : 0));
  counter("enforcer_tls_pump_failures_total", "Attempts to make the splicing thread, or to give it a connection, that failed.", [], async (add) => add({}, (await tls())?.pumpFailures ?? 0));
  gauge("enforcer_dns_cache_entries", "Answers in the cache that all sandboxes share.", [], async (set) => set({}, (await stats()).cache.entries));
  gauge("enforcer_dns_cache_bytes", "Octets of those answers.", [], async (set) => set({}, (await stats()).cache.octets));
  counter("enforcer_dns_upstream_queries_total", "Queries to upstreams by result.", ["result"], async (add) => {
    const { upstream } = await stats();
    for (const result of ["sent", "answered", "timeouts", "mismatched", "malformed", "tcp", "errors", "failed"] as const) add({ result }, upstream[result]);
  });
  registry.registerMetric(latencyHistogram(stats) as unknown as Metric<string>);
  return registry;
}

/** One reading serves all metrics of one scrape: they ask for it at once, before any of them waits. */
function shared<T>(read: () => Promise<T>): () => Promise<T> {
  let current: Promise<T> | null = null;
  return () => (current ??= read().finally(() => setImmediate(() => { current = null; })));
}

/** What the kernel holds of one sandbox. `own` is null for one that a former agent left: its policy is not known. */
interface KernelRow {
  readonly name: string;
  readonly counters: readonly Count[];
  readonly own: { readonly fill: Awaited<ReturnType<Enforcer["fill"]>>; readonly memory: number } & LimitCounters | null;
}

/** Once for all metrics of a scrape. */
async function readKernel(engines: readonly Enforcer[], slices: Slices): Promise<readonly KernelRow[]> {
  const rows: KernelRow[] = [];
  for (const enforcer of engines) {
    for (const kept of [...enforcer.kept.values()]) {
      await slices.pause();
      if (enforcer.kept.get(kept.name) === kept) rows.push({ name: kept.name, counters: enforcer.counters(kept), own: null });
    }
    for (const sandbox of [...enforcer.sandboxes.values()]) {
      await slices.pause();
      const { name } = sandbox;
      if (enforcer.sandboxes.get(name) !== sandbox) continue;
      const counters = enforcer.counters(sandbox), memory = sandbox.tables.memory(), limits = enforcer.limitCounters(sandbox);
      rows.push({ name, counters, own: { ...limits, memory, fill: await enforcer.fill(sandbox, slices) } });
    }
  }
  return rows;
}

/** The worker keeps the buckets; prom-client's Histogram can only observe. */
function latencyHistogram(stats: () => Promise<Stats>): object {
  const name = "enforcer_dns_upstream_latency_seconds";
  return {
    name,
    async get() {
      const { latency } = (await stats()).upstream;
      let sum = 0;
      const values = latency.counts.map((count, i) => ({ metricName: `${name}_bucket`, value: (sum += count), labels: { le: latency.buckets[i] ?? "+Inf" } as Record<string, string | number> }));
      return { name, help: "Time until an upstream answered.", type: "histogram", aggregator: "sum", values: [...values, { metricName: `${name}_sum`, value: latency.sum, labels: {} }, { metricName: `${name}_count`, value: sum, labels: {} }] };
    },
    reset() { /* the worker's counters only grow */ },
  };
}

/** Connections to the metrics at one time, and how long one of them may rest, ms. */
const CONNECTIONS = 64, IDLE_MS = 60_000;

/** @throws EnforcerError E_METRICS_LISTEN. */
export async function serveMetrics(registry: Pick<Registry, "contentType" | "metrics">, { host, port }: Listen): Promise<Server> {
  // One at a time: every reading fills the same counters. Who asks meanwhile gets the next one, together with all others that do.
  let current: Promise<string> | null = null, next: Promise<string> | null = null;
  const read = (): Promise<string> => (current = registry.metrics().finally(() => { current = null; }));
  const scrape = (): Promise<string> => {
    if (current === null) return read();
    return (next ??= current.catch(() => "").then(() => {
      next = null;
      return read();
    }));
  };
  const server = createServer((request, response) => {
    if (request.url !== "/metrics" || (request.method !== "GET" && request.method !== "HEAD")) {
      response.writeHead(request.url === "/metrics" ? 405 : 404, { "content-type": "text/plain" }).end("metrics are at /metrics\n");
      return;
    }
    scrape().then(
      (text) => response.writeHead(200, { "content-type": registry.contentType }).end(text),
      (error: unknown) => response.writeHead(503, { "content-type": "text/plain" }).end(`${error instanceof Error ? error.message : String(error)}\n`),
    );
  });
  // Whoever is on the host may ask: connections that are held open take only so many of the agent's descriptors.
  server.maxConnections = CONNECTIONS;
  server.timeout = IDLE_MS;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => reject(new EnforcerError("E_METRICS_LISTEN", `metrics cannot be served on ${host}:${port}: ${cause.message}`, { cause })));
    server.listen({ host, port }, resolve);
  });
  return server;
}
