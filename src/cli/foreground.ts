/**
 * `enforcer attach <tap>` where no agent runs: holds one guest to its policy in the foreground, until SIGINT or SIGTERM.
 *
 * Holds always: "enforcing" is printed only after enforcement is in force and tested; a signal detaches and leaves nothing behind;
 * a failure or a kill leaves the kernel enforcing: a fault that a guest can provoke frees no guest. A tap that is deleted is waited
 * for, and attached again when it comes back; meanwhile nothing comes in by its name.
 */
import { createHash } from "node:crypto";
import type { Server } from "node:http";
import { forbidCore } from "../../native/index.js";
import { formatAddress, type Address, type Prefix } from "../addresses/address.js";
import { Enforcer, type Sandbox } from "../agent/enforcer.js";
import { enforcerRegistry, serveMetrics, type Listen } from "../agent/metrics.js";
import { RunDirectory } from "../agent/run-directory.js";
import type { DeniedQuery } from "../dns/protocol.js";
import type { TlsDenial } from "../tls/protocol.js";
import { EnforcerError } from "../errors.js";
import type { PacketEvent } from "../kernel/events.js";
import type { LinkEvent } from "../net/host-watch.js";
import { checkInterfaceName, findLink, findTap } from "../net/links.js";
import { formatDiagnostic } from "../policy/diagnostics.js";
import { buildPolicy } from "../policy/build.js";
import type { Policy } from "../policy/types.js";
import { policyInput, type PolicyArguments } from "./policy.js";
import { describeViolation } from "../secrets/exchange.js";
import { connectionLine, describeConnection, describePacket, describeQuery, packetLine, queryLine } from "../agent/verdicts.js";

export interface AttachArguments extends PolicyArguments {
  readonly tap: string;
  readonly gateways: readonly Address[];
  readonly guest: readonly Prefix[];
  readonly mac: Uint8Array | null;
  readonly upstreams: readonly { address: Address; port: number }[];
  /** A tap that is not there is waited for. */
  readonly wait: boolean;
  /** null: off. */
  readonly metrics: Listen | null;
  /** Somebody named that address: then it is an error when it cannot be had. */
  readonly metricsAsked: boolean;
  readonly json: boolean;
  readonly runDirectory: string;
  readonly bpffs: string;
}

/** Resolves when a signal ended it. @throws EnforcerError. */
export async function attachForeground(options: AttachArguments): Promise<void> {
  forbidCore();
  checkInterfaceName(options.tap);
  const input = policyInput(options);
  const { policy: draft, warnings } = buildPolicy(input);
  const out = new Output(options.json);
  for (const warning of warnings) out.notice(formatDiagnostic(warning));
  // A device that is no tap will not become one by waiting.
  if (!options.wait || findLink(options.tap) !== null) findTap(options.tap);

  const run = new RunDirectory(options.runDirectory);
  const unlock = run.lock(options.tap);
  try {
    await serve(options, run, draft, input, out);
  } finally {
    unlock();
  }
}

async function serve(options: AttachArguments, run: RunDirectory, draft: Policy, input: Parameters<typeof buildPolicy>[0], out: Output): Promise<void> {
  const ended = new Ending();
  const { tap } = options;
  let guest: Guest | null = null;
  const enforcer = await Enforcer.start({
    run,
    bpffs: options.bpffs,
    instance: tap,
    sandboxes: 1,
    tlsThreads: 1,
    // Not by the ifindex, which is another after the tap was made again; and never that of another process.
    resolverDevice: `enf${createHash("sha256").update(`${run.path} ${tap}`).digest("hex").slice(0, 8)}`,
    resolvConf: options.upstreams.length > 0 || draft.dns.upstreams !== null ? null : "/etc/resolv.conf",
    netnsFd: null,
    beside: null,
    extraGroups: {},
    nat64Prefixes: [],
    heldPatterns: [],
    adoptable: (groups) => {
      const state = run.read(tap);
      return state === null ? [] : [{ state, build: () => ({ policy: buildPolicy({ ...input, groups }).policy, floor: null, upstreams: options.upstreams }) }];
    },
    onView: () => guest?.onView(),
    onPackets: (events) => { if (guest?.sandbox != null) out.packets(enforcer, guest.sandbox, events); },
    onQueries: (queries) => { if (guest?.sandbox != null) out.queries(guest.sandbox, queries); },
    onDenials: (denials) => { if (guest?.sandbox != null) out.connections(guest.sandbox, denials); },
    onTerminate: (name, violation) => {
      out.notice(`${name} is cut off: ${describeViolation(violation)}`);
      enforcer.setPolicy(name, buildPolicy({ noNet: true, groups: enforcer.groups }).policy, null).catch((error: unknown) => ended.fail(error as Error));
    },
    onLink: (event) => guest?.onLink(event),
    onNotice: (text) => out.notice(text),
    onFailure: (error) => ended.fail(new EnforcerError("E_RESOLVER", `it cannot go on serving ${tap}: ${error.message}`, { cause: error, remedy: "the kernel goes on enforcing, and no name is resolved: attach again to take it over, and report this" })),
  });
  let metrics: Server | null = null;
  try {
    metrics = await metricsOf(enforcer, options, out);
    guest = new Guest(enforcer, metrics === null ? { ...options, metrics: null } : options, input, out);
    await guest.begin();
    await ended.promise;
    await guest.end();
  } finally {
    metrics?.close();
    metrics?.closeAllConnections();
    if (ended.failed && guest !== null && guest.attached) await enforcer.release();
    else await enforcer.stop();
  }
  out.detached(tap);
}

/** By default the second guest of a host finds the address taken by the first: it is enforced all the same. @throws EnforcerError E_METRICS_LISTEN. */
async function metricsOf(enforcer: Enforcer, { metrics, metricsAsked }: AttachArguments, out: Output): Promise<Server | null> {
  if (metrics === null) return null;
  try {
    return await serveMetrics(enforcerRegistry(enforcer), metrics);
  } catch (error) {
    if (metricsAsked || !(error instanceof EnforcerError)) throw error;
    out.notice(`${error.message}: no metrics are served for this tap. --metrics names another address, or "off"; or run enforcer agent, which serves all taps at one`);
    return null;
  }
}

/** The tap's coming and going: one step at a time, in the order in which the kernel tells it. */
class Guest {
  sandbox: Sandbox | null = null;
  /** It was in force once: what is in the kernel is then worth keeping. */
  attached = false;
  readonly #enforcer: Enforcer;
  readonly #options: AttachArguments;
  readonly #input: Parameters<typeof buildPolicy>[0];
  readonly #out: Output;
  #steps: Promise<void> = Promise.resolve();
  #ended = false;

  constructor(enforcer: Enforcer, options: AttachArguments, input: Parameters<typeof buildPolicy>[0], out: Output) {
    this.#enforcer = enforcer;
    this.#options = options;
    this.#input = input;
    this.#out = out;
  }

  /** @throws EnforcerError when the tap is there and cannot be attached. */
  async begin(): Promise<void> {
    const { tap, wait } = this.#options;
    if (wait && findLink(tap) === null) {
      this.#enforcer.awaitTap(tap);
      this.#out.waiting(tap, null);
      return this.#step(() => this.#appeared());
    }
    await this.#attach(false);
  }

  onView(): void { void this.#step(() => this.#enforcer.regroup()); }

  onLink(event: LinkEvent): void {
    const { type, link } = event;
    if (type === "removed") void this.#step(() => this.#removed(link.ifindex, event.movedAway));
    else if (this.sandbox?.facts.ifindex === link.ifindex) {
      if (type === "changed" && event.before.name !== link.name) void this.#step(async () => { if (this.sandbox !== null) this.#enforcer.renamed(this.sandbox); });
    } else if (link.name === this.#options.tap) void this.#step(() => this.#appeared());
  }

  /** After the step that is under way. */
  async end(): Promise<void> {
    this.#ended = true;
    await this.#steps;
  }

  #step(work: () => Promise<void>): Promise<void> {
    return (this.#steps = this.#steps.then(async () => {
      if (this.#ended) return;
      try {
        await work();
      } catch (error) {
        this.#out.notice(`${this.#options.tap} is not attached, and nothing comes in from it: ${error instanceof Error ? error.message : String(error)}`);
      }
    }));
  }

  async #attach(incomplete: boolean): Promise<void> {
    const { tap, gateways, guest, mac, upstreams } = this.#options;
    // Once more, now that the host's own prefixes are known: they say which group a rule's prefix lies in.
    const { policy } = buildPolicy({ ...this.#input, groups: this.#enforcer.groups });
    this.sandbox = await this.#enforcer.attach({ name: tap, tap, policy, source: null, spec: null, incomplete, gateways, guest, mac, upstreams });
    this.attached = true;
    this.#out.enforcing(this.sandbox, this.#options);
    if (policy.secrets.length > 0) this.#out.notice(`the guest's environment for its secrets: enforcer secrets ${tap}`);
  }

  async #removed(ifindex: number, movedAway: boolean): Promise<void> {
    if (this.sandbox?.facts.ifindex !== ifindex) return;
    const { tap } = this.#options;
    this.sandbox = null;
    this.#enforcer.awaitTap(tap);
    await this.#enforcer.detach(tap, { gone: true });
    this.#out.waiting(tap, movedAway ? "moved to another network namespace" : "deleted");
    // It may be there again already: then its event came before this one was worked at.
    await this.#appeared();
  }

  async #appeared(): Promise<void> {
    const link = findLink(this.#options.tap);
    if (this.sandbox === null && link?.tunType === "tap") await this.#attach(true);
  }
}

/** A signal or a failure: whichever comes first. */
class Ending {
  readonly promise: Promise<void>;
  failed = false;
  #resolve!: () => void;
  #reject!: (error: Error) => void;

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Told again when awaited; without this an early failure would end the process before it has cleaned up.
    this.promise.catch(() => undefined);
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => this.#resolve());
  }

  /** It cannot go on serving, and the guest may be there: nothing is taken away. */
  fail(error: Error): void {
    this.failed = true;
    this.#reject(error);
  }
}

class Output {
  readonly #json: boolean;
  #order: Promise<void> = Promise.resolve();

  constructor(json: boolean) { this.#json = json; }

  notice(text: string): void {
    if (this.#json) this.#line({ event: "notice", time: new Date().toISOString(), text });
    else process.stderr.write(`enforcer: ${text}\n`);
  }

  enforcing(sandbox: Sandbox, { metrics }: AttachArguments): void {
    const { facts, mechanism, compiled, before, preparation, adopted } = sandbox;
    const where = facts.bridge === null ? "routed" : `port of bridge ${facts.bridge.name}`;
    const address = metrics === null ? null : `http://${metrics.host.includes(":") ? `[${metrics.host}]` : metrics.host}:${metrics.port}/metrics`;
    if (this.#json) {
      this.#line({
        event: "enforcing", time: new Date().toISOString(), sandbox: sandbox.name, ifindex: facts.ifindex, mechanism, bridge: facts.bridge?.name ?? null,
        gateways: facts.gateways.map(formatAddress), rules: compiled.bits.length, before, adopted, metrics: address,
        settings: preparation.changes.map(({ family, setting, before: former, after, why }) => ({ family, setting, before: former, after, why })),
      });
      return;
    }
    process.stdout.write(`enforcing ${sandbox.name} (${where}, ${mechanism}, ${compiled.bits.length} rule${compiled.bits.length === 1 ? "" : "s"}${adopted ? ", taken over from a former process" : ""})\n`);
    for (const { family, setting, before: former, after, why } of preparation.changes) process.stderr.write(`enforcer: set net.${family}.conf.${sandbox.name}.${setting} ${former} → ${after}: ${why}\n`);
    for (const note of preparation.notes) process.stderr.write(`enforcer: ${note}\n`);
    for (const program of before) process.stderr.write(`enforcer: ${program} stands before the enforcer on ${sandbox.name} and may end the chain\n`);
    if (address !== null) process.stderr.write(`enforcer: metrics on ${address}\n`);
  }

  /** @param why it is not there any more; null: it never was. */
  waiting(tap: string, why: string | null): void {
    if (this.#json) this.#line({ event: "waiting", time: new Date().toISOString(), sandbox: tap, why });
    else process.stdout.write(`waiting for ${tap}${why === null ? "" : `, which was ${why}`}\n`);
  }

  packets(enforcer: Enforcer, sandbox: Sandbox, events: readonly PacketEvent[]): void {
    const now = process.hrtime.bigint();
    // In order, although the names come from another thread.
    this.#order = this.#order.then(async () => {
      const mine = events.filter((event) => event.slot === sandbox.slot && event.generation === sandbox.generation);
      const names = await Promise.all(mine.map((event) => enforcer.namesOf(sandbox, event.direction === "egress" ? event.destination : event.source).catch(() => [])));
      mine.forEach((event, i) => {
        const rule = event.rule === null || event.policy !== sandbox.compiled.uid ? null : (sandbox.compiled.bits[event.rule]?.text ?? null);
        const denial = describePacket(sandbox.name, event, names[i]!, rule, now);
        if (this.#json) this.#line(denial);
        else process.stdout.write(`${packetLine(denial)}\n`);
      });
    });
  }

  connections(sandbox: Sandbox, denials: readonly TlsDenial[]): void {
    for (const denial of denials) {
      if (denial.slot !== sandbox.slot || denial.generation !== sandbox.generation) continue;
      const refused = describeConnection(sandbox.name, denial);
      if (this.#json) this.#line(refused);
      else process.stdout.write(`${connectionLine(refused)}\n`);
    }
  }

  queries(sandbox: Sandbox, queries: readonly DeniedQuery[]): void {
    for (const query of queries) {
      if (query.slot !== sandbox.slot || query.generation !== sandbox.generation) continue;
      const refused = describeQuery(sandbox.name, query);
      if (this.#json) this.#line(refused);
      else process.stdout.write(`${queryLine(refused)}\n`);
    }
  }

  detached(tap: string): void {
    if (this.#json) this.#line({ event: "detached", time: new Date().toISOString(), sandbox: tap });
    else process.stderr.write(`enforcer: detached from ${tap}\n`);
  }

  #line(value: object): void { process.stdout.write(`${JSON.stringify(value)}\n`); }
}

