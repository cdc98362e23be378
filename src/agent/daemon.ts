/**
 * The host's one agent: what the API asks for, what the host's devices do, and the configuration, put in force one after the other.
 *
 * Holds always: one operation at a time, in the order in which they came; what is asked for is in a state file before it is in
 * force, so that a successor completes or removes what was half made; the end of the agent, by whatever way, leaves the kernel
 * enforcing: only detach takes a guest out from under its policy. A configuration that is wrong changes nothing.
 * Does not: speak HTTP (src/api/server.ts) or print (src/cli/agent.ts); find sandboxes by name (register.ts) and namespaces (namespaces.ts), or
 * tell what happens (telling.ts).
 */
import type { Server } from "node:http";
import { join } from "node:path";
import { closeFd, lockFile } from "../../native/index.js";
import { formatAddress, parseAddress, parsePrefix, type Address, type Prefix } from "../addresses/address.js";
import type { GroupTable } from "../addresses/groups.js";
import { sandboxName, type AttachRequest, type PolicyDiff, type PolicyRequest, type ReloadAnswer } from "../api/schema.js";
import { readAgentConfig, type AgentConfig, type AttachPattern } from "../config/agent-config.js";
import { readAgentConfigApart } from "../config/read-apart.js";
import { EnforcerError } from "../errors.js";
import { allowExpedite } from "../kernel/grace-period.js";
import { onBpffs, refuseForeign } from "../kernel/instance.js";
import { tcMechanism } from "../kernel/tap-link.js";
import { makeDirectories } from "../make-directory.js";
import { holdable } from "../net/base-drop.js";
import type { LinkEvent } from "../net/host-watch.js";
import { checkInterfaceName, findLink, findLinkByIndex, listLinks } from "../net/links.js";
import type { Link } from "../net/rtnetlink.js";
import { restoreTap } from "../net/tap.js";
import { compilePolicy } from "../policy/compile.js";
import { policyReport, policyText } from "../policy/check.js";
import { lineDiff } from "../policy/diff.js";
import { upstreamsOf } from "../policy/floor.js";
import { parseUpstream } from "../policy/parse.js";
import type { Policy } from "../policy/types.js";
import { inodeNamed, removeFormerInstances, type Engine, type EngineOptions } from "./engine.js";
import type { Adoptable } from "./enforcer.js";
import { describeViolation } from "../secrets/exchange.js";
import { forgetPlaceholders } from "../secrets/placeholder.js";
import type { Violation } from "../secrets/types.js";
import { forgetAuthority, keptCertificate } from "../tls/certificates/store.js";
import { enforcerRegistry, serveMetrics } from "./metrics.js";
import { buildFloor, buildRequested, isLong, readAhead, Readings, requestOfText, type Built, type Floor } from "./policy-source.js";
import { agentDirectory, RunDirectory } from "./run-directory.js";
import { Slices } from "./slices.js";
import type { Sandbox, UpstreamAddress } from "./sandbox.js";
import { Namespaces, sameInode, sameNamespace } from "./namespaces.js";
import { NetnsNames } from "./netns-names.js";
import { nameIn, nameOf, Register, storedSource, storedSpec, type Enforced, type Known, type Source, type Spec, type Waiting } from "./register.js";
import { Telling } from "./telling.js";
import type { WatchHub, Watcher } from "./watch.js";

export interface AgentOptions {
  readonly configFile: string | null;
  /** Of the command line, over the file's. */
  readonly runDirectory: string | null;
  readonly bpffs: string | null;
  /** Something a person should know, and it goes on. */
  readonly onNotice: (text: string) => void;
  /** It cannot go on serving; what is in the kernel stays in force. */
  readonly onFailure: (error: Error) => void;
}

export class Agent {
  readonly since = Date.now();
  readonly #options: AgentOptions;
  readonly #run: RunDirectory;
  readonly #namespaces = new Namespaces({
    engine: (netns, inode, engine) => this.#engineOptions(netns, inode, engine),
    onStarted: () => this.#regroup(),
    // For taps that a pattern names.
    watched: (engine) => this.#config.attach.some(({ netns }) => sameNamespace(netns, engine)),
    onNotice: (notice) => this.#telling.notice(notice),
  });
  readonly #register = new Register(() => this.#namespaces.engines);
  readonly #telling = new Telling({
    known: () => this.known().filter((known) => known.state === "enforced"),
    enforcer: () => this.own.enforcer,
    onNotice: (notice) => this.#options.onNotice(notice),
  });
  readonly #unlock: (() => void)[] = [];
  #config: AgentConfig;
  #floor: Floor | null = null;
  #metrics: Server | null = null;
  #queue: Promise<unknown> = Promise.resolve();
  #ended = false;
  /** It is due already. */
  #regrouping = false;
  #looking: NodeJS.Timeout | undefined;
  #names: NetnsNames | null = null;

  private constructor(options: AgentOptions, config: AgentConfig) {
    this.#options = options;
    this.#config = config;
    this.#run = new RunDirectory(agentDirectory(new RunDirectory(config.runDirectory).path));
  }

  /**
   * Takes over what a former agent left in force, then what the configuration's patterns name. Resolves when all of it is in force.
   * @throws EnforcerError E_CONFIG, E_AGENT_RUNS and those of Enforcer.start; what a former agent left stays in force.
   */
  static async start(options: AgentOptions): Promise<Agent> {
    const config = withOverrides(readAgentConfig(options.configFile), options);
    const agent = new Agent(options, config);
    try {
      agent.#lock();
      await agent.#start();
      return agent;
    } catch (error) {
      await agent.release();
      throw error;
    }
  }

  get config(): AgentConfig { return this.#config; }
  get floor(): Floor | null { return this.#floor; }
  /** Of the agent's own namespace. */
  get own(): Engine { return this.#namespaces.own; }
  get engines(): Iterable<Engine> { return this.#namespaces.engines; }
  get watchers(): WatchHub { return this.#telling.watchers; }

  /** Sandboxes in the order of their names. */
  known(): Known[] { return this.#register.all(); }
  /** @throws EnforcerError E_NO_SANDBOX. */
  need(name: string): Known { return this.#register.need(name); }
  /** One that is in force under a policy that is known. @throws EnforcerError E_NO_SANDBOX. */
  enforced(name: string): Enforced { return this.#register.enforced(name); }

  #lock(): void {
    const taken = (error: unknown): EnforcerError => new EnforcerError("E_AGENT_RUNS", `another agent runs: ${(error as Error).message}`, { cause: error });
    try {
      this.#unlock.push(this.#run.lock("agent", "it serves this run directory"));
    } catch (error) {
      throw error instanceof EnforcerError && error.code === "E_TAP_TAKEN" ? taken(error) : error;
    }
    // Another run directory is no excuse for two agents on the same maps: the instance's folder is a lock as well.
    const folder = join(this.#config.bpffs, "enforcer");
    try {
      if (!onBpffs(folder)) return; // Enforcer.start says so.
      makeDirectories(folder);
    } catch {
      return; // Enforcer.start says what is wrong with it.
    }
    refuseForeign(folder);
    try {
      const fd = lockFile(folder);
      this.#unlock.push(() => closeFd(fd));
    } catch (error) {
      if ((error as { code?: string }).code === "EWOULDBLOCK") throw taken(error);
      throw error;
    }
  }

  async #start(): Promise<void> {
    removeFormerInstances(this.#config.bpffs);
    await this.#namespaces.startOwn();
    allowExpedite(this.#config.expediteRcu);
    // First, so that what is adopted is judged by the groups of all namespaces.
    await this.#namespaces.findFormer();
    const ending: string[] = [];
    for (const name of this.#run.names()) {
      try {
        const state = this.#run.read(name);
        if (state?.phase === "detaching") ending.push(name);
        else if (state !== null) await this.#adopt(name);
        else this.#options.onNotice(`${name}: its state file in ${this.#run.path} is not regarded: ${this.#run.fault(name) ?? "it changed"}`);
      } catch (error) {
        this.#options.onNotice(`${name} could not be taken over and stays as it is: ${text(error)}`);
        this.#waitIfGone(name);
      }
    }
    for (const engine of this.#namespaces.engines) {
      // Another namespace's devices have the same numbers.
      const names = new Map<number, string>();
      for (const name of this.#run.names()) {
        const state = this.#run.read(name), spec = storedSpec.safeParse(state?.spec);
        if (state !== null && spec.success && isIn(spec.data, engine.inode)) names.set(state.ifindex, name);
      }
      await engine.enforcer.settle((ifindex, device) => names.get(ifindex) ?? nameIn(engine.netns, device));
    }
    for (const name of ending) await this.#finishDetach(name).catch((error: unknown) => this.#options.onNotice(`${name}: its detach was begun, and could not be completed: ${text(error)}`));
    await this.#namespaces.closeIdle();
    await this.#attachByPattern();
    if (this.#config.metrics !== null) this.#metrics = await this.#serveMetrics(this.#config);
    this.#telling.start();
    const look = (): void => { this.#exclusive(() => this.#lookForNamespaces()).catch((error: unknown) => { if (!this.#ended) this.#telling.notice(text(error)); }); };
    const names = this.#names = new NetnsNames(look);
    this.#looking = setInterval(() => {
      names.begin();
      look();
    }, LOOK_FOR_NAMESPACES);
    this.#looking.unref();
  }

  // ---- network namespaces ----------------------------------------------------------------------------------------------

  /** What is in namespaces that have gone is freed. Taps that are waited for in namespaces that have come are taken. */
  async #lookForNamespaces(): Promise<void> {
    for (const engine of this.#namespaces.takeGone()) await this.#namespaceGone(engine);
    this.#namespaces.removeFormer();
    const come = (netns: string | null): boolean => {
      const inode = netns === null ? null : inodeNamed(netns);
      return inode !== null && !this.#namespaces.has(inode);
    };
    for (const { name, spec } of [...this.#register.waiting.values()]) {
      if (!come(spec.netns ?? null)) continue;
      try {
        const engine = await this.#namespaces.engineOf(spec.netns!);
        engine.enforcer.awaitTap(spec.tap);
        const link = engine.enforcer.inside(() => findLink(spec.tap));
        if (link !== null) await this.#appeared(engine, link);
      } catch (error) {
        this.#telling.notice(`${name}: ${text(error)}`);
      }
    }
    for (const netns of new Set(this.#config.attach.map((pattern) => pattern.netns))) if (come(netns)) await this.#attachIn(netns);
  }

  async #namespaceGone(engine: Engine): Promise<void> {
    const known = [...engine.enforcer.sandboxes.values()].map(({ name, options }) => ({ name, options })), kept = [...engine.enforcer.kept.keys()];
    // Nothing is taken off the taps: were somebody there who cannot be seen, his guest would be free.
    await engine.enforcer.forget();
    engine.close();
    for (const name of kept) this.#run.remove(name);
    for (const { name, options } of known) this.#tapGone(name, options.spec as Spec, options.source as Source);
    for (const name of [...kept, ...known.map((one) => one.name)]) {
      this.#telling.forget(name);
      this.#telling.notice(`${name}: its network namespace ${engine.netns ?? ""} has gone`);
      this.#telling.change("detached", { sandbox: name, why: "deleted" });
    }
  }

  /** @param engine null until it is begun: what it says before is of a former agent's sandboxes, and nobody watches yet. */
  #engineOptions(netns: string | null, inode: number, engine: () => Engine | null): EngineOptions {
    const { bpffs, sandboxes, tlsThreads, groups, nat64Prefixes } = this.#config;
    const begun = <T>(tell: (one: T) => void) => (one: T): void => { if (engine() !== null) tell(one); };
    return {
      run: this.#run, bpffs, sandboxes, tlsThreads, resolvConf: "/etc/resolv.conf", extraGroups: groups, nat64Prefixes,
      adoptable: (table) => this.#adoptable(netns, inode, table), heldPatterns: this.#heldPatterns(inode),
      onPackets: begun((events) => this.#telling.packets(events)),
      onDenials: begun((denials) => this.#telling.connections(denials)),
      onQueries: begun((queries) => this.#telling.queries(queries)),
      onTerminate: (name, violation) => this.#cutOff(name, violation),
      onLink: begun((event) => this.#onLink(engine()!, event)),
      onView: () => { if (engine() !== null) this.#regroup(); },
      onNotice: (notice) => this.#telling.notice(notice),
      onFailure: (error) => this.#options.onFailure(error),
    };
  }

  // ---- operations ----------------------------------------------------------------------------------------------------

  /** Runs operations one after another. */
  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(() => {
      if (this.#ended) throw new EnforcerError("E_NO_AGENT", "the agent is ending");
      return work();
    });
    this.#queue = done.catch(() => undefined);
    return done;
  }

  /** @throws EnforcerError; then all is as it was. */
  async attach(request: AttachRequest): Promise<{ known: Known; warnings: readonly string[] }> {
    if (isLong(request.policy)) await readAhead(request.policy);
    return this.#exclusive(async () => {
      const { policy, ...rest } = request;
      checkInterfaceName(request.tap);
      const spec: Spec = { ...rest, origin: "request" };
      const named = sandboxName.safeParse(nameOf(spec));
      if (!named.success) throw new EnforcerError("E_REQUEST", `${nameOf(spec)} cannot be a sandbox's name: ${named.error.issues[0]?.message ?? ""}`, { remedy: "give it a name" });
      const source = policy === undefined ? this.#defaultSource(null) : { from: "request" as const, request: policy };
      return this.#attach(nameOf(spec), spec, source, spec.wait === true);
    });
  }

  async #attach(name: string, asked: Spec, source: Source, incomplete: boolean): Promise<{ known: Known; warnings: readonly string[] }> {
    if (asked.netns !== undefined && this.#register.find(name)?.state === "enforced") await this.#lookForNamespaces();
    const there = this.#register.find(name);
    if (there !== null && there.state !== "kept") throw new EnforcerError("E_NAME_TAKEN", there.state === "enforced" ? `${name} is attached already` : `${name} waits for its tap already`);
    const engine = await this.#namespaces.engineOf(asked.netns ?? null);
    const spec = asked.netns === undefined ? asked : { ...asked, inode: engine.inode };
    const { enforcer } = engine;
    try {
      if (isLong(source.request)) await readAhead(source.request);
      const built = this.#build(source, engine);
      if (spec.wait === true && enforcer.inside(() => findLink(spec.tap)) === null) {
        this.#wait(name, spec, source);
        return { known: this.need(name), warnings: built.warnings };
      }
      const unlock = engine === this.own ? this.#lockTap(spec.tap) : null;
      try {
        await enforcer.attach({ ...this.#engineRequest(spec, built.policy), name, policy: built.policy, floor: this.#floor?.policy ?? null, source, spec, incomplete });
      } finally {
        unlock?.();
      }
      this.#register.waiting.delete(name);
      this.#telling.change("attached", { sandbox: name });
      return { known: this.need(name), warnings: built.warnings };
    } finally {
      await this.#namespaces.closeIdle();
    }
  }

  /** An `enforcer attach` in the foreground that serves the tap holds this. */
  #lockTap(tap: string): () => void { return new RunDirectory(this.#config.runDirectory).lock(tap); }

  #wait(name: string, { inode: _former, ...spec }: Spec, source: Source): void {
    this.#run.write({ version: 1, name, phase: "waiting", device: spec.tap, ifindex: 0, slot: 0, generation: 0, policy: { uid: "0", digest: "", source }, next: null, changes: [], spec });
    this.#expect({ name, spec, source, since: Date.now() });
  }

  /** Nothing comes in by the tap's name until it is there and attached. */
  #expect(waiting: Waiting): void {
    this.#register.waiting.set(waiting.name, waiting);
    for (const engine of this.#namespaces.engines) if (sameNamespace(waiting.spec.netns ?? null, engine)) engine.enforcer.awaitTap(waiting.spec.tap);
  }

  #forget({ name, spec }: Waiting): void {
    this.#register.waiting.delete(name);
    for (const engine of this.#namespaces.engines) if (sameNamespace(spec.netns ?? null, engine)) engine.enforcer.forgetTap(spec.tap);
  }

  #engineRequest(spec: Spec, policy: Policy): { tap: string; gateways: Address[]; guest: Prefix[]; mac: Uint8Array | null; upstreams: readonly UpstreamAddress[] } {
    return {
      tap: spec.tap,
      gateways: (spec.gateways ?? []).map((gateway) => parseAddress(gateway)!),
      guest: (spec.guest ?? []).map((one) => parsePrefix(one) ?? { bytes: parseAddress(one)!, length: 128, family: one.includes(":") ? 6 : 4 }),
      mac: spec.mac === undefined ? null : Uint8Array.from(spec.mac.split(":"), (octet) => Number.parseInt(octet, 16)),
      upstreams: this.#upstreams(spec, policy),
    };
  }

  #upstreams(spec: Spec, policy: Policy): readonly UpstreamAddress[] {
    if (spec.upstreams !== undefined && spec.upstreams.length > 0) return spec.upstreams.map((one) => (parseUpstream(one) as { value: UpstreamAddress }).value);
    return upstreamsOf(policy, this.#floor?.policy ?? null) === null ? this.#config.upstreams : [];
  }

  /** Takes a sandbox out from under its policy, or gives up waiting for its tap. @throws EnforcerError E_NO_SANDBOX. */
  detach(name: string): Promise<void> {
    return this.#exclusive(async () => {
      const held = this.#register.holderOf(name);
      if (held !== null) {
        // Its tap was deleted under its policy, and what is left is the closed name; or it could not be taken over.
        held.enforcer.forgetTap(name.slice(name.lastIndexOf("/") + 1));
        await this.#finishDetach(name);
        return;
      }
      const known = this.need(name);
      if (known.state === "waiting") {
        this.#forget(known.waiting);
        this.#run.remove(name);
      } else {
        await known.engine.enforcer.detach(name);
        this.#telling.forget(name);
      }
      await this.#namespaces.closeIdle();
      this.#telling.change("detached", { sandbox: name });
    });
  }

  /** `uid` "0": its tap is waited for, and will be attached under it. @throws EnforcerError; then the former policy is in force. */
  async setPolicy(name: string, request: PolicyRequest): Promise<{ uid: string; written: number; left: number; warnings: readonly string[] }> {
    // Whether there is such a sandbox is known when it is this one's turn.
    if (isLong(request)) await readAhead(request);
    return this.#exclusive(async () => {
      const known = this.need(name);
      const source: Source = { from: "request", request };
      if (known.state === "waiting") {
        const built = this.#build(source, this.own);
        this.#wait(name, known.waiting.spec, source);
        return { uid: "0", written: 0, left: 0, warnings: built.warnings };
      }
      const { engine, sandbox, spec } = this.enforced(name);
      const built = this.#build(source, engine);
      const answer = await this.#swap(engine, sandbox, spec, source, built);
      return { ...answer, warnings: built.warnings };
    });
  }

  async #swap(engine: Engine, sandbox: Sandbox, spec: Spec, source: Source, { policy }: Built): Promise<{ uid: string; written: number; left: number }> {
    const former = sandbox.options;
    sandbox.options = { ...former, upstreams: this.#upstreams(spec, policy) };
    try {
      const { uid, written, left } = await engine.enforcer.setPolicy(sandbox.name, policy, source, this.#floor?.policy ?? null);
      this.#telling.change("policy", { sandbox: sandbox.name, uid: uid.toString() });
      return { uid: uid.toString(), written, left };
    } catch (error) {
      if (engine.enforcer.sandboxes.get(sandbox.name) === sandbox && sandbox.options.policy === former.policy) sandbox.options = former;
      throw error;
    }
  }

  #build(source: Source, engine: Engine, config = this.#config, floor = this.#floor): Built { return buildRequested(source.request, engine.enforcer.groups, config.limits, floor); }

  /** A policy as it would be understood for a sandbox; null: for any of the agent's own namespace. */
  async check(name: string | null, request: PolicyRequest): Promise<Built> {
    if (name !== null) this.need(name);
    if (isLong(request)) await readAhead(request);
    const known = name === null ? null : this.need(name);
    return buildRequested(request, (known === null || known.state === "waiting" ? this.own : known.engine).enforcer.groups, this.#config.limits, this.#floor);
  }

  /** What the guest must trust where its TLS is intercepted; null: it is not. */
  certificate(name: string): string | null {
    this.enforced(name);
    return keptCertificate(this.#run.path, name);
  }

  /** Against the policy in force, or the one that a tap is waited for under. */
  async diff(name: string, request: PolicyRequest): Promise<PolicyDiff> {
    if (this.need(name).state !== "waiting") this.enforced(name);
    const asked = await this.check(name, request);
    const known = this.need(name), former = known.state === "waiting" ? (await this.check(name, known.waiting.source.request)).policy : this.enforced(name).sandbox.policy;
    // The width of a column is no difference.
    const linesOf = (policy: Policy): string[] => policyText(policyReport(policy, [])).replaceAll(/ {2,}/g, "  ").split("\n").slice(0, -1);
    const lines = lineDiff(linesOf(former), linesOf(asked.policy));
    return { same: lines.every((line) => line.startsWith(" ")), lines };
  }

  // ---- configuration -------------------------------------------------------------------------------------------------

  #defaultSource(pattern: AttachPattern | null, config = this.#config): Source {
    if (pattern !== null && pattern.policy !== null) return { from: "pattern", request: requestOfText(pattern.policy) };
    return { from: "default", request: config.policy === null ? {} : requestOfText(config.policy) };
  }

  /** Reads the configuration again and puts it in force. @throws EnforcerError E_CONFIG, E_GROUPS …; then nothing has changed. */
  reload(): Promise<ReloadAnswer> {
    return this.#exclusive(async () => {
      const former = this.#config;
      const config = withOverrides(await readAgentConfigApart(this.#options.configFile), this.#options), readings = new Readings();
      const restart = (["runDirectory", "bpffs", "sandboxes", "tlsThreads"] as const).filter((key) => config[key] !== former[key]).map((key) => ({ runDirectory: "run_dir", bpffs: "bpffs", sandboxes: "sandboxes", tlsThreads: "tls_threads" })[key]);
      const floor = config.floor === null ? null : buildFloor(config.floor, this.own.enforcer.groups, await readings.source(config.floor));
      // Everything that can be wrong is found before anything is put in force.
      const next = new Map<string, { source: Source; built: Built }>();
      const slices = new Slices();
      for (const known of this.known()) {
        await slices.pause();
        if (known.state !== "enforced") continue;
        const source = this.#currentSource(known.spec, known.source, config);
        await readings.ahead(source.request);
        const built = this.#build(source, known.engine, config, floor);
        compilePolicy(built.policy, { uid: 1n });
        next.set(known.name, { source, built });
      }
      const changed: string[] = [];
      const differs = (what: string, one: unknown, other: unknown): boolean => {
        if (JSON.stringify(one) === JSON.stringify(other)) return false;
        changed.push(what);
        return true;
      };
      let metrics: Server | null | undefined;
      if (differs("metrics", former.metrics, config.metrics)) metrics = config.metrics === null ? null : await this.#serveMetrics(config);
      const groups = differs("groups", [former.groups, former.nat64Prefixes], [config.groups, config.nat64Prefixes]);
      try {
        if (groups) this.own.enforcer.common.setExtraGroups(config.groups, config.nat64Prefixes);
      } catch (error) {
        metrics?.close();
        throw error;
      }
      if (metrics !== undefined) {
        this.#closeMetrics();
        this.#metrics = metrics;
      }
      if (differs("expedite_rcu", former.expediteRcu, config.expediteRcu)) allowExpedite(config.expediteRcu);
      for (const [what, key] of [["floor", "floor"], ["policy", "policy"], ["limits", "limits"], ["upstreams", "upstreams"], ["attach", "attach"]] as const) differs(what, printed(former[key]), printed(config[key]));
      this.#config = { ...config, runDirectory: former.runDirectory, bpffs: former.bpffs, sandboxes: former.sandboxes, tlsThreads: former.tlsThreads };
      this.#floor = floor;
      const failed: { sandbox: string; message: string }[] = [];
      const all = groups || changed.some((what) => !["metrics", "attach", "expedite_rcu"].includes(what));
      for (const [name, { source, built }] of next) {
        const { engine, sandbox, spec, source: before } = this.enforced(name);
        if (!all && JSON.stringify(before) === JSON.stringify(source)) continue;
        try {
          // Once more where the groups changed: they say which group a rule's prefix lies in.
          if (groups) await readings.ahead(source.request);
          await this.#swap(engine, sandbox, spec, source, groups ? this.#build(source, engine) : built);
        } catch (error) {
          failed.push({ sandbox: name, message: text(error) });
        }
      }
      await this.own.enforcer.reloadResolvers();
      await this.#attachByPattern();
      this.#telling.change("reloaded");
      return { config: config.file, changed, restart, failed };
    });
  }

  /** A policy that came from the configuration is the configuration's of the moment. */
  #currentSource(spec: Spec, source: Source, config: AgentConfig): Source {
    if (source.from === "request") return source;
    const pattern = spec.origin === "pattern" ? config.attach.find((one) => matches(one, spec.netns ?? null, spec.tap)) : undefined;
    if (spec.origin === "pattern" && pattern === undefined) return source;
    return this.#defaultSource(pattern ?? null, config);
  }

  /** The host's network changed, in whichever namespace: what a rule's prefix opens may be another, for the guests of all. */
  #regroup(): void {
    if (this.#ended || this.#regrouping) return;
    this.#regrouping = true;
    this.#exclusive(async () => {
      this.#regrouping = false;
      for (const { enforcer } of [...this.#namespaces.engines]) await enforcer.regroup();
    }).catch((error: unknown) => { if (!this.#ended) this.#telling.notice(`policies are judged by the address groups of before: ${text(error)}`); });
  }

  // ---- taps that come and go -----------------------------------------------------------------------------------------

  #onLink(engine: Engine, event: LinkEvent): void {
    if (this.#ended) return;
    const work = async (): Promise<void> => {
      if (event.type === "removed") return this.#removed(engine, event.link, event.movedAway);
      const attached = [...engine.enforcer.sandboxes.values()].find(({ facts }) => facts.ifindex === event.link.ifindex);
      if (attached !== undefined) {
        if (event.type === "changed" && event.before.name !== event.link.name) engine.enforcer.renamed(attached);
        return;
      }
      await this.#appeared(engine, event.link);
    };
    this.#exclusive(work).catch((error: unknown) => { if (!this.#ended) this.#telling.notice(`${event.link.name}: ${text(error)}`); });
  }

  async #removed(engine: Engine, link: Link, movedAway: boolean): Promise<void> {
    const { enforcer } = engine;
    const sandbox = [...enforcer.sandboxes.values()].find(({ facts }) => facts.ifindex === link.ifindex);
    const kept = [...enforcer.kept.values()].find(({ ifindex }) => ifindex === link.ifindex);
    const name = sandbox?.name ?? kept?.name;
    if (name === undefined) return;
    const spec = sandbox?.options.spec as Spec | undefined;
    if (spec?.wait === true) enforcer.awaitTap(spec.tap);
    await enforcer.detach(name, { gone: true, awaited: spec?.wait === true });
    this.#telling.forget(name);
    this.#telling.notice(`${name}: its tap ${link.name} ${movedAway ? "was moved to another network namespace" : "was deleted"}`);
    this.#telling.change("detached", { sandbox: name, why: movedAway ? "moved" : "deleted" });
    if (spec?.wait === true) {
      this.#wait(name, spec, sandbox!.options.source as Source);
      // It may be there again already: then its event came before this one was worked at.
      const again = enforcer.inside(() => findLink(spec.tap));
      if (again !== null) await this.#appeared(engine, again);
    }
    await this.#namespaces.closeIdle();
  }

  /** A device that no sandbox has: one that is waited for, or that a pattern names. */
  async #appeared(engine: Engine, link: Link): Promise<void> {
    if (link.tunType !== "tap") return;
    // It may be gone, or have another name by now.
    const there = engine.enforcer.inside(() => findLinkByIndex(link.ifindex));
    if (there === null || [...engine.enforcer.sandboxes.values(), ...engine.enforcer.kept.values()].some((one) => ("facts" in one ? one.facts.ifindex : one.ifindex) === link.ifindex)) return;
    for (const waiting of this.#register.waiting.values()) {
      if (waiting.spec.tap !== there.name || !sameNamespace(waiting.spec.netns ?? null, engine)) continue;
      this.#register.waiting.delete(waiting.name);
      try {
        await this.#attach(waiting.name, waiting.spec, this.#currentSource(waiting.spec, waiting.source, this.#config), true);
        this.#telling.notice(`${waiting.name}: enforcing; its tap has appeared`);
      } catch (error) {
        this.#wait(waiting.name, waiting.spec, waiting.source);
        throw error;
      }
      return;
    }
    const pattern = this.#config.attach.find((one) => one.pattern.test(there.name) && sameNamespace(one.netns, engine));
    if (pattern === undefined || there.name.startsWith("enf")) return;
    const spec: Spec = { tap: there.name, origin: "pattern", ...(pattern.netns === null ? {} : { netns: pattern.netns }) };
    if (this.#register.find(nameOf(spec)) !== null) return;
    await this.#attach(nameOf(spec), spec, this.#defaultSource(pattern), true);
    this.#telling.notice(`${nameOf(spec)}: enforcing; ${pattern.match} names it`);
  }

  #heldPatterns(inode: number): string[] {
    return [...new Set(this.#config.attach.filter(({ match, netns }) => holdable(match) && sameInode(netns, inode)).map(({ match }) => match))].sort();
  }

  async #attachByPattern(): Promise<void> {
    for (const { match } of this.#config.attach) if (!holdable(match)) this.#telling.notice(`attach: a tap that ${match} names carries packets until it is attached: beneath it only a name, or the beginning of one and *, can be held`);
    for (const engine of this.#namespaces.engines) engine.enforcer.holdPatterns(this.#heldPatterns(engine.inode));
    for (const netns of new Set(this.#config.attach.map((pattern) => pattern.netns))) await this.#attachIn(netns);
  }

  /** Taps of a namespace that a pattern names. */
  async #attachIn(netns: string | null): Promise<void> {
    try {
      const engine = await this.#namespaces.engineOf(netns);
      for (const link of engine.enforcer.inside(listLinks)) await this.#appeared(engine, link).catch((error: unknown) => this.#telling.notice(`${link.name}: ${text(error)}`));
    } catch (error) {
      this.#telling.notice(`attach in ${netns ?? "the agent's namespace"}: ${text(error)}`);
    }
  }

  // ---- what a former agent left ----------------------------------------------------------------------------------------

  /** Sandboxes of a namespace that a former agent may have left in force. Called while its engine starts. */
  *#adoptable(netns: string | null, inode: number, groups: GroupTable): Iterable<Adoptable> {
    if (netns === null) this.#floor = this.#config.floor === null ? null : buildFloor(this.#config.floor, groups);
    for (const name of this.#run.names()) {
      const state = this.#run.read(name);
      const spec = storedSpec.safeParse(state?.spec);
      if (state === null || !spec.success || state.phase === "waiting" || state.phase === "detaching" || state.phase === "gone" || !isIn(spec.data, inode)) continue;
      yield {
        state,
        build: (source) => {
          const { policy } = buildRequested(storedSource.parse(source).request, groups, this.#config.limits, this.#floor);
          return { policy, floor: this.#floor?.policy ?? null, upstreams: this.#upstreams(spec.data, policy) };
        },
      };
    }
  }

  async #adopt(name: string): Promise<void> {
    const state = this.#run.read(name)!;
    const spec = storedSpec.safeParse(state.spec);
    const source = storedSource.safeParse(state.next?.source ?? state.policy.source);
    if (!spec.success || !source.success) return this.#telling.notice(`${name}: its state file is another version's`);
    if (state.phase === "waiting") {
      // Its namespace may come later as well.
      const engine = await this.#namespaces.engineOf(spec.data.netns ?? null).catch(() => null);
      this.#expect({ name, spec: spec.data, source: source.data, since: Date.now() });
      if (engine === null) return;
      const link = engine.enforcer.inside(() => findLink(spec.data.tap));
      return link === null ? undefined : this.#appeared(engine, link);
    }
    let engine: Engine;
    try {
      engine = await this.#namespaces.engineOf(spec.data.netns ?? null, spec.data.inode);
    } catch (error) {
      this.#tapGone(name, spec.data, source.data);
      return this.#telling.notice(`${name}: its network namespace has gone: ${text(error)}`);
    }
    // Its end was under way when the former agent was killed. The name is held: whoever made the tap again meanwhile finds it closed.
    if (state.phase === "gone") {
      const again = this.#tapGone(name, spec.data, source.data) ? engine.enforcer.inside(() => findLink(spec.data.tap)) : null;
      return again === null ? undefined : this.#appeared(engine, again);
    }
    // It may have been renamed while no agent ran, and its name given to another; or deleted, and made again under its name, or its
    // number given to another. What carries our programs is what the policy was put on, whatever it is called.
    const link = engine.enforcer.inside(() => findLinkByIndex(state.ifindex));
    const same = link !== null && link.tunType === "tap" && (link.name === state.device || engine.enforcer.carries(link.ifindex));
    const tap = same ? link.name : state.device;
    if (!same && engine.enforcer.inside(() => findLink(tap)) === null) {
      this.#tapGone(name, spec.data, source.data);
      return this.#telling.notice(`${name}: its tap ${tap} has gone`);
    }
    const current = this.#currentSource(spec.data, source.data, this.#config);
    const built = this.#build(current, engine);
    await engine.enforcer.attach({ ...this.#engineRequest(spec.data, built.policy), tap, name, policy: built.policy, floor: this.#floor?.policy ?? null, source: current, spec: spec.data, incomplete: true });
  }

  /** What a sandbox had goes with its tap; it waits for another one where that was asked for: true. */
  #tapGone(name: string, spec: Spec, source: Source): boolean {
    this.#forgetFiles(name);
    if (spec.wait === true) this.#wait(name, spec, source);
    else this.#run.remove(name);
    return spec.wait === true;
  }

  /** Its CA and the placeholders of its secrets. */
  #forgetFiles(name: string): void {
    forgetAuthority(this.#run.path, name);
    forgetPlaceholders(this.#run.path, name);
  }

  /** Its tap was deleted, or made again, while it was being taken over: nothing would attach it when it comes. */
  #waitIfGone(name: string): void {
    const state = this.#run.read(name);
    const spec = storedSpec.safeParse(state?.spec), source = storedSource.safeParse(state?.next?.source ?? state?.policy.source);
    if (!spec.success || !source.success || spec.data.wait !== true || this.#register.find(name) !== null) return;
    const engine = [...this.#namespaces.engines].find((one) => sameNamespace(spec.data.netns ?? null, one));
    if (engine === undefined || engine.enforcer.inside(() => findLinkByIndex(state!.ifindex)) !== null) return;
    this.#wait(name, spec.data, source.data);
    const again = engine.enforcer.inside(() => findLink(spec.data.tap));
    if (again !== null) this.#onLink(engine, { type: "added", link: again });
  }

  /** A detach that was begun: completed. */
  async #finishDetach(name: string): Promise<void> {
    const known = this.#register.find(name);
    if (known !== null && known.state !== "waiting") return known.engine.enforcer.detach(name);
    const state = this.#run.read(name);
    const spec = storedSpec.safeParse(state?.spec);
    if (state !== null && spec.success) {
      const engine = await this.#namespaces.engineOf(spec.data.netns ?? null, spec.data.inode).catch(() => null);
      engine?.enforcer.inside(() => restoreTap({ ifindex: state.ifindex, name: state.device, changes: state.changes }));
      engine?.enforcer.forgetTap(state.device);
    }
    this.#forgetFiles(name);
    this.#run.remove(name);
  }

  // ---- events --------------------------------------------------------------------------------------------------------

  /** `on_violation: terminate`. The guest stays behind its tap, with a policy that lets nothing through, also under a next agent. */
  #cutOff(name: string, violation: Violation): void {
    this.#telling.notice(`${name} is cut off: ${describeViolation(violation)}`);
    this.setPolicy(name, { no_net: true }).catch((error: unknown) => this.#telling.notice(`${name} could not be cut off: ${text(error)}`));
  }

  /**
   * @returns what ends it, and when it has begun; null when there are too many watchers. What is in the flow tables until then is not
   * told for certain: what comes later is.
   * @throws EnforcerError E_NO_SANDBOX, E_REQUEST.
   */
  watch(watcher: Watcher): { readonly end: () => void; readonly begun: Promise<void> } | null {
    if (watcher.query.sandbox !== undefined) this.need(watcher.query.sandbox);
    return this.#telling.watch(watcher);
  }

  // ---- metrics -------------------------------------------------------------------------------------------------------

  #serveMetrics(config: AgentConfig): Promise<Server> {
    return serveMetrics(enforcerRegistry(this.own.enforcer, () => [...this.#namespaces.engines].map(({ enforcer }) => enforcer)), config.metrics!);
  }

  #closeMetrics(): void {
    this.#metrics?.close();
    this.#metrics?.closeAllConnections();
    this.#metrics = null;
  }

  get mechanism(): string { return tcMechanism(); }

  // ---- the end -------------------------------------------------------------------------------------------------------

  /** Ends serving, after the operation that is under way; the kernel goes on enforcing, for a successor to take over. */
  async release(): Promise<void> {
    const queue = this.#queue;
    this.#ended = true;
    clearInterval(this.#looking);
    this.#names?.close();
    await queue;
    this.#telling.stop();
    this.#closeMetrics();
    await this.#namespaces.release();
    for (const unlock of this.#unlock.reverse()) unlock();
    this.#unlock.length = 0;
  }
}

/** How often namespaces that have gone, or come, are looked for, also where nothing told of them (netns-names.ts), ms. */
const LOOK_FOR_NAMESPACES = 5_000;

function withOverrides(config: AgentConfig, { runDirectory, bpffs }: AgentOptions): AgentConfig {
  return { ...config, runDirectory: runDirectory ?? config.runDirectory, bpffs: bpffs ?? config.bpffs };
}

/** Whether a sandbox's tap is in the namespace with this inode. */
function isIn(spec: Spec, inode: number): boolean { return spec.inode === undefined ? sameInode(spec.netns ?? null, inode) : spec.inode === inode; }

function matches(pattern: AttachPattern, netns: string | null, tap: string): boolean { return pattern.pattern.test(tap) && pattern.netns === netns; }

/** For comparing configurations: regular expressions say nothing in JSON. */
function printed(value: unknown): unknown { return JSON.parse(JSON.stringify(value, (_, one: unknown) => (one instanceof RegExp ? one.source : one instanceof Uint8Array ? formatAddress(one) : one))); }

function text(error: unknown): string { return error instanceof Error ? error.message : String(error); }
