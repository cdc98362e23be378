/**
 * One secret's value over time: read again when it is due, replaced, remembered for a while after.
 *
 * Holds always: one reading at a time, whoever asks; a value whose source fails serves on for `failure_ttl` and then no more;
 * a former value stays known for the grace time, so that it is found wherever it turns up, and is overwritten after it.
 */
import type { SecretSpec } from "../policy/types.js";
import { readValue, type SourceOptions, versionOf } from "./source.js";

/** How long former values are looked for, ms: longer than answers of a far side that still has one are likely to come. */
export const GRACE_MS = 3_600_000;
/** Between two looks whether a file has changed, ms. */
const LOOK_MS = 1_000;
/** Between two readings after a failed one, ms. */
const RETRY_MS = 5_000;

export interface Clock { now(): number }
/** Milliseconds that only go forward. */
export const monotonic: Clock = { now: () => performance.now() };

export class LiveSecret {
  /** Counts changes of what `values` gives. */
  version = 0;
  readonly #options: SourceOptions;
  readonly #clock: Clock;
  #value: Buffer | null = null;
  #source: string | null = null;
  #readAt = 0;
  #triedAt = 0;
  /** Since when the source fails; null: it does not. */
  #failingSince: number | null = null;
  #reading: Promise<void> | null = null;
  #former: { readonly value: Buffer; readonly until: number }[] = [];

  constructor(public spec: SecretSpec, options: SourceOptions, clock: Clock) {
    this.#options = options;
    this.#clock = clock;
  }

  /** The first reading. @throws EnforcerError E_SECRET. */
  async load(): Promise<void> {
    const { value, version } = await readValue(this.spec.name, this.spec.from, this.#options);
    this.#take(value, version);
  }

  /** Instead of a first reading that did not work: the source is asked again when the value is needed. */
  fail(): void {
    this.#failingSince = -Infinity;
    this.#triedAt = -Infinity;
  }

  /** What is to be put in now; null: nothing can be had. At once, unless the source has to be asked. */
  current(): Buffer | null | Promise<Buffer | null> {
    return this.#reading !== null || this.#due() ? this.#refresh().then(() => this.#usable()) : this.#usable();
  }

  /** The value and former ones. They belong to this object. */
  values(): readonly Buffer[] {
    this.#forget();
    const former = this.#former.map(({ value }) => value);
    return this.#value === null ? former : [this.#value, ...former];
  }

  /** Octets of the value; null: there is none. */
  get length(): number | null { return this.#value?.length ?? null; }

  get failing(): boolean { return this.#failingSince !== null; }

  /** It is no longer to be put in; it is still looked for. */
  retire(): void {
    if (this.#value === null) return;
    this.#former.push({ value: this.#value, until: this.#clock.now() + GRACE_MS });
    this.#value = null;
    this.version++;
  }

  /** Overwrites what is held, as far as that can be done. */
  wipe(): void {
    this.#value?.fill(0);
    this.#value = null;
    for (const { value } of this.#former) value.fill(0);
    this.#former = [];
    this.version++;
  }

  #due(): boolean {
    const now = this.#clock.now();
    const { ttl, from } = this.spec;
    if (this.#failingSince !== null) return now - this.#triedAt >= RETRY_MS;
    if (ttl !== null) return now - this.#readAt >= ttl * 1_000;
    return (from.kind === "file" || from.kind === "credential") && now - this.#triedAt >= LOOK_MS;
  }

  #usable(): Buffer | null {
    const { failureTtl } = this.spec;
    if (this.#failingSince !== null && failureTtl !== null && this.#clock.now() - this.#failingSince >= failureTtl * 1_000) return null;
    return this.#value;
  }

  #refresh(): Promise<void> {
    return (this.#reading ??= this.#read().finally(() => { this.#reading = null; }));
  }

  async #read(): Promise<void> {
    this.#triedAt = this.#clock.now();
    try {
      if (this.spec.ttl === null && this.#failingSince === null && this.#source !== null && await versionOf(this.spec.from, this.#options) === this.#source) return;
      const { value, version } = await readValue(this.spec.name, this.spec.from, this.#options);
      this.#take(value, version);
    } catch {
      this.#failingSince ??= this.#clock.now();
    }
  }

  #take(value: Buffer, source: string | null): void {
    this.#readAt = this.#triedAt = this.#clock.now();
    this.#failingSince = null;
    this.#source = source;
    if (this.#value?.equals(value) === true) {
      value.fill(0);
      return;
    }
    this.retire();
    this.#value = value;
    this.version++;
  }

  #forget(): void {
    const now = this.#clock.now();
    if (!this.#former.some(({ until }) => until <= now)) return;
    for (const { value, until } of this.#former) if (until <= now) value.fill(0);
    this.#former = this.#former.filter(({ until }) => until > now);
    this.version++;
  }
}
