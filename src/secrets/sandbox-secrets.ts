/**
 * The secrets of one sandbox: values, placeholders, counters, and what requests are asked about.
 *
 * Holds always: a policy's secrets take force all together or not at all; a value is looked up for each request, so a rotation
 * holds for the next one on an open connection; a removed secret is no longer put in from then on, its placeholder is a
 * violation, and its value is still looked for during the grace time; a host that was allowed once is one that may tell a value.
 * Values are in this object and in requests on their way, and
 * nowhere else.
 * Does not: know connections. One thread.
 */
import { EnforcerError } from "../errors.js";
import type { SecretSpec } from "../policy/types.js";
import type { ExchangeFilter, RequestFacts } from "../tls/http/passage.js";
import type { Refusal } from "../tls/http/refusal.js";
import { BLOCK, openExchange, ScrubSet, violate } from "./exchange.js";
import { Finder, type Wanted } from "./finder.js";
import { type Clock, LiveSecret, monotonic } from "./live-secret.js";
import { looks } from "./looks.js";
import { type NamedPlaceholder, NameFinder } from "./names.js";
import { type Entrusted, PlaceholderBook } from "./placeholder.js";
import type { SourceOptions } from "./source.js";
import { type Form, type Gate, noCounts, type Place, type SecretCounters, type Violation } from "./types.js";

/** A secret as a request meets it. */
export interface KnownSecret {
  readonly name: string;
  /** null: removed. */
  readonly spec: SecretSpec | null;
  /** Where the agent may have put it in: by the present policy, and by former ones with other hosts or ports. */
  readonly entrusted: readonly Entrusted[];
  readonly placeholder: Buffer;
  readonly counters: SecretCounters;
  /** To be put in; null: it cannot be had. */
  current(): Buffer | null | Promise<Buffer | null>;
  /** To be looked for. */
  values(): readonly Buffer[];
}

/** All of a sandbox's secrets at one moment. */
export interface SecretSet {
  readonly secrets: readonly KnownSecret[];
  /** Placeholders and values of all of them. */
  readonly finder: Finder;
  byName(name: string): KnownSecret | null;
  scrubSet(secrets: readonly KnownSecret[]): ScrubSet;
  violated(violation: Violation): void;
}

export interface SecretsOptions extends SourceOptions {
  /** Where placeholders are kept; null: nowhere. */
  readonly path: string | null;
  /** Told of violations that were let pass; those that stopped a request are in its refusal. */
  readonly onPassed?: (violation: Violation) => void;
  /** The sandbox is to be cut off. */
  readonly onTerminate?: (violation: Violation) => void;
  readonly clock?: Clock;
}

class Known implements KnownSecret {
  readonly counters = noCounts();
  /** Values of former sources. */
  readonly former: LiveSecret[] = [];
  spec: SecretSpec | null = null;
  live: LiveSecret | null = null;

  constructor(readonly name: string, public placeholder: Buffer, public entrusted: readonly Entrusted[]) {}

  /** What a policy says of it now. */
  give(spec: SecretSpec, placeholder: Buffer, live: LiveSecret, entrusted: readonly Entrusted[]): void {
    if (this.live !== null && this.live !== live) this.retire();
    this.spec = live.spec = spec;
    this.live = live;
    this.placeholder = placeholder;
    this.entrusted = [spec, ...entrusted];
  }

  current(): Buffer | null | Promise<Buffer | null> { return this.spec === null || this.live === null ? null : this.live.current(); }

  values(): readonly Buffer[] { return [...(this.live?.values() ?? []), ...this.former.flatMap((live) => live.values())]; }

  get version(): number { return (this.live?.version ?? 0) + this.former.reduce((sum, live) => sum + live.version, 0); }

  retire(): void {
    this.spec = null;
    if (this.live !== null) {
      this.live.retire();
      this.former.push(this.live);
    }
    this.live = null;
  }
}

/** Switches under which Node prints or gives away what it is sent. @throws EnforcerError E_SECRET. */
export function refuseLeaks(environment: NodeJS.ProcessEnv, options: readonly string[]): void {
  const refused = (what: string): never => {
    throw new EnforcerError("E_SECRET", `secrets cannot be served while ${what} is set`, { remedy: `start the agent without ${what}` });
  };
  if (/http|tls|net|stream|\*/i.test(environment["NODE_DEBUG"] ?? "")) refused("NODE_DEBUG");
  if ((environment["NODE_DEBUG_NATIVE"] ?? "") !== "") refused("NODE_DEBUG_NATIVE");
  if (environment["NODE_TLS_REJECT_UNAUTHORIZED"] === "0") refused("NODE_TLS_REJECT_UNAUTHORIZED");
  const option = options.find((one) => /^--(tls-keylog|inspect|trace-tls|heapsnapshot|heap-prof|report-|diagnostic-dir|trace-event)/.test(one));
  if (option !== undefined) refused(option.split("=", 1)[0] as string);
}

export class SandboxSecrets implements SecretSet {
  readonly #options: SecretsOptions;
  readonly #clock: Clock;
  readonly #book: PlaceholderBook;
  readonly #known = new Map<string, Known>();
  #epoch = 0;
  #built: { readonly version: number; readonly finder: Finder; readonly names: NameFinder; readonly scrubs: Map<string, ScrubSet> } | null = null;

  private constructor(options: SecretsOptions) {
    this.#options = options;
    this.#clock = options.clock ?? monotonic;
    this.#book = new PlaceholderBook(options.path);
    for (const { name, placeholder } of this.#book.all()) {
      if (!this.#known.has(name)) this.#known.set(name, new Known(name, Buffer.from(placeholder, "latin1"), this.#book.entrusted(name)));
    }
  }

  /**
   * A secret whose source fails now, but whose placeholder the guest has from a former agent, cannot be had until it works.
   * @throws EnforcerError E_SECRET, E_STATE.
   */
  static async open(specs: readonly SecretSpec[], options: SecretsOptions): Promise<SandboxSecrets> {
    if (specs.length > 0) refuseLeaks(process.env, [...process.execArgv, ...(process.env["NODE_OPTIONS"] ?? "").split(/\s+/)]);
    const secrets = new SandboxSecrets(options);
    await secrets.replace(specs);
    return secrets;
  }

  /** Another policy's secrets. @throws EnforcerError E_SECRET, E_STATE; nothing has changed then. */
  async replace(specs: readonly SecretSpec[]): Promise<void> {
    const lives = new Map<string, LiveSecret>();
    const kept = this.#book.environment();
    for (const spec of specs) {
      const known = this.#known.get(spec.name);
      if (known?.live !== undefined && known.live !== null && JSON.stringify(known.live.spec.from) === JSON.stringify(spec.from)) {
        lives.set(spec.name, known.live);
        continue;
      }
      const live = new LiveSecret(spec, this.#options, this.#clock);
      try {
        await live.load();
      } catch (error) {
        if (known?.live !== undefined && known.live !== null) throw error;
        if (kept[spec.name] === undefined || this.#epoch > 0) throw error;
        live.fail();
      }
      lives.set(spec.name, live);
    }
    const placeholders = new Map<string, Buffer>();
    // On disk before any of it holds: a guest may be told a placeholder as soon as it is there.
    this.#book.change(() => {
      for (const spec of specs) this.#book.entrust(spec);
      for (const spec of specs) placeholders.set(spec.name, Buffer.from(this.#book.take(spec, lives.get(spec.name)?.length ?? 0), "latin1"));
      for (const { name, spec } of this.#known.values()) if (spec !== null && !lives.has(name)) this.#book.remove(name);
    });
    for (const spec of specs) {
      const live = lives.get(spec.name) as LiveSecret, placeholder = placeholders.get(spec.name) as Buffer;
      const known = this.#known.get(spec.name) ?? new Known(spec.name, placeholder, []);
      this.#known.set(spec.name, known);
      known.give(spec, placeholder, live, this.#book.entrusted(spec.name));
    }
    for (const known of this.#known.values()) {
      if (known.spec !== null && !lives.has(known.name)) known.retire();
    }
    this.#epoch++;
  }

  /** What the guest's environment is to hold: placeholders only. */
  environment(): Record<string, string> { return this.#book.environment(); }

  /** Whether nothing is there to look for. */
  get idle(): boolean { return this.finder.empty; }

  get secrets(): readonly KnownSecret[] { return [...this.#known.values()]; }

  /** Of secrets that the policy has. */
  counters(): Record<string, SecretCounters & { readonly failing: boolean }> {
    return Object.fromEntries([...this.#known.values()].filter(({ spec, counters }) => spec !== null || counters.blocked > 0).map(({ name, counters, live }) => [name, { ...counters, failing: live?.failing ?? false }]));
  }

  get finder(): Finder { return this.#sets().finder; }

  byName(name: string): KnownSecret | null { return this.#known.get(name) ?? null; }

  scrubSet(secrets: readonly KnownSecret[]): ScrubSet {
    const { scrubs } = this.#sets();
    const key = secrets.map(({ name }) => name).join();
    let scrub = scrubs.get(key);
    if (scrub === undefined) scrubs.set(key, (scrub = new ScrubSet(secrets)));
    return scrub;
  }

  /** What becomes of a request. */
  exchange(gate: Gate, request: RequestFacts): ExchangeFilter | Refusal | null | Promise<ExchangeFilter | Refusal | null> {
    return this.idle ? null : looks.look(this, () => openExchange(this, gate, request));
  }

  /** A server's name that holds a placeholder. @returns what refuses the connection. */
  serverName(gate: Gate, labels: readonly string[]): Refusal | null {
    const { names } = this.#sets();
    const hit = names.find(labels);
    return hit === null ? null : this.#named(gate, hit.of.secret, "server-name", hit.form);
  }

  /** The resolver was asked for a name that holds a placeholder, and has done by `on_violation` already: it is told and counted here. */
  askedName(labels: readonly string[], secret: string, form: Form): Refusal | null {
    return this.#known.has(secret) ? this.#named({ labels, port: 53, intercepted: false, verified: false, pinned: false }, secret, "dns-name", form) : null;
  }

  /** What the resolver looks for in names. */
  placeholders(): NamedPlaceholder[] {
    return this.#book.all().map(({ name, placeholder }) => ({ secret: name, placeholder, onViolation: this.#known.get(name)?.spec?.onViolation ?? BLOCK }));
  }

  #named(gate: Gate, secret: string, place: Place, form: Form): Refusal | null {
    return violate(this, gate, { host: "a name that is not told", method: "" }, { wanted: { secret, what: "placeholder", octets: Buffer.alloc(0) } }, place, null, form);
  }

  violated(violation: Violation): void {
    const counters = this.#known.get(violation.secret)?.counters;
    if (counters !== undefined) {
      if (violation.action === "log") counters.logged++;
      else if (violation.action === "pass") counters.passed++;
      else counters.blocked++;
    }
    if (violation.action === "log" || violation.action === "pass") this.#options.onPassed?.(violation);
    if (violation.action === "terminate") this.#options.onTerminate?.(violation);
  }

  /** Overwrites the values. */
  close(): void {
    for (const known of this.#known.values()) {
      known.live?.wipe();
      for (const live of known.former) live.wipe();
    }
    this.#known.clear();
    this.#epoch++;
  }

  #sets(): { readonly version: number; readonly finder: Finder; readonly names: NameFinder; readonly scrubs: Map<string, ScrubSet> } {
    const wanted: Wanted[] = [];
    // Asking for values forgets those whose time is over.
    for (const known of this.#known.values()) for (const octets of known.values()) wanted.push({ secret: known.name, what: "value", octets });
    const version = [...this.#known.values()].reduce((sum, known) => sum + known.version, this.#epoch * 1e6);
    if (this.#built?.version === version) return this.#built;
    for (const { name, placeholder } of this.#book.all()) wanted.push({ secret: name, what: "placeholder", octets: Buffer.from(placeholder, "latin1") });
    return (this.#built = { version, finder: new Finder(wanted, this.#book.marker), names: new NameFinder(this.placeholders()), scrubs: new Map() });
  }
}
