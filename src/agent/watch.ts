/**
 * Who watches: live verdicts and changes, each to the watchers that asked for them.
 *
 * Holds always: a watcher that does not read is told how much it missed and never held in memory without bound; no more than a bounded
 * number of events waits for what is looked up for them, and those over it are missed in the same way; without watchers nothing is looked up; a filter that could never match is refused. Denials come from the kernel's events; allowed flows are seen in
 * its flow table, each once, and of those that came and went between two looks the number is told (daemon.ts).
 */
import { formatAddress, parseAddress, parsePrefix, prefixContains, type Prefix } from "../addresses/address.js";
import type { WatchQuery } from "../api/schema.js";
import { outcomes } from "../dns/metrics.js";
import { EnforcerError } from "../errors.js";
import { reasonNames, verdictOf } from "../kernel/counters.js";
import { suggest } from "../policy/diagnostics.js";
import { matchesPattern, parsePattern } from "../policy/names.js";
import { httpReasons } from "../tls/http/refusal.js";
import { connectionOutcomes } from "../tls/reasons.js";

/** An event as it is written: one JSON object a line. */
export interface WatchEvent {
  readonly event: string;
  readonly time: string;
  readonly sandbox?: string;
  readonly [field: string]: unknown;
}

export interface Watcher {
  readonly query: WatchQuery;
  /** Returns false when the watcher is full and the event was not taken. */
  readonly send: (event: WatchEvent) => boolean;
}

interface Seat { readonly watcher: Watcher; readonly wants: (event: WatchEvent) => boolean; readonly flows: boolean; lost: number }

/** Reasons that a flow that is let through may carry (describeAllowed), and those of denials. */
const ALLOWED: readonly string[] = ["rule-allow", "default-allow", "intercepted"];
const SERVED: readonly string[] = ["answered", "no-data", "absent", "any", "ignored", "spliced", "intercepted", "plain-http", "dot"];
const DENIED: readonly string[] = [...new Set([...reasonNames.filter((_, i) => verdictOf(i + 1) === "deny"), ...outcomes, ...Object.keys(connectionOutcomes), ...Object.keys(httpReasons)])].filter((reason) => !SERVED.includes(reason));

/** Watchers at one time. */
export const WATCHERS = 64;
/** Events that wait for what is looked up for them, over all sandboxes. */
export const EVENTS_WAITING = 16_384;

export class WatchHub {
  readonly #seats = new Set<Seat>();
  #line: Promise<void> = Promise.resolve();
  #waiting = 0;

  get size(): number { return this.#seats.size; }

  /** Whether anybody wants to see flows of the sandbox that are let through. */
  wantsFlows(sandbox: string): boolean { return [...this.#seats].some(({ flows, watcher: { query } }) => flows && (query.sandbox ?? sandbox) === sandbox); }

  /** Whether anybody wants to see what is denied to the sandbox. */
  wantsDenials(sandbox: string): boolean { return [...this.#seats].some(({ flows, watcher: { query } }) => !flows && (query.sandbox ?? sandbox) === sandbox); }

  /** @returns what ends it, and whether it wants flows that are let through; null when there are too many. @throws EnforcerError E_REQUEST when nothing could ever match. */
  add(watcher: Watcher): { readonly end: () => void; readonly flows: boolean } | null {
    const { wants, verdict } = filterOf(watcher.query);
    if (this.#seats.size >= WATCHERS) return null;
    const seat: Seat = { watcher, wants, flows: verdict === "allow", lost: 0 };
    this.#seats.add(seat);
    return { end: () => { this.#seats.delete(seat); }, flows: seat.flows };
  }

  /**
   * Tells events whose description takes a while, in their order. Over the bound they are missed, by all who see events of their kind.
   * @param verdict of all of them. @param describe must not reject; null: there is nothing to tell any more.
   */
  tellLater<E>(verdict: "allow" | "deny", events: readonly E[], describe: (event: E) => Promise<WatchEvent | null>): void {
    const taken = events.slice(0, EVENTS_WAITING - this.#waiting);
    if (taken.length < events.length) for (const seat of this.#seats) if (seat.flows === (verdict === "allow")) seat.lost += events.length - taken.length;
    if (taken.length === 0) return;
    this.#waiting += taken.length;
    this.#line = this.#line.then(async () => {
      for (const event of await Promise.all(taken.map(describe))) if (event !== null) this.tell(event);
      this.#waiting -= taken.length;
    });
  }

  tell(event: WatchEvent): void {
    for (const seat of this.#seats) {
      if (!seat.wants(event)) continue;
      if (seat.lost > 0 && seat.watcher.send({ event: "lost", time: event.time, count: seat.lost })) seat.lost = 0;
      if (seat.lost > 0 || !seat.watcher.send(event)) seat.lost++;
    }
  }
}

/** Events that are no verdict (attached, detached, policy, notice) go to all who did not narrow to verdicts. */
function filterOf({ sandbox, verdict, reason, destination }: WatchQuery): { readonly wants: (event: WatchEvent) => boolean; readonly verdict: "allow" | "deny" } {
  const narrowed = verdict !== undefined || reason !== undefined || destination !== undefined;
  // Flows that are let through are told only to those who ask for them: there are many.
  const wanted = verdict ?? (reason !== undefined && ALLOWED.includes(reason) ? "allow" : "deny");
  if (reason !== undefined && !(wanted === "allow" ? ALLOWED : DENIED).includes(reason)) throw new EnforcerError("E_REQUEST", `${reason} is no reason for which anything is ${wanted === "allow" ? "let through" : "denied"}`, { remedy: `${suggest(reason, wanted === "allow" ? ALLOWED : DENIED)}; see docs/REASONS.md` });
  const matches = destination === undefined ? null : destinationFilter(destination);
  return {
    verdict: wanted,
    wants: (event) => {
      if (sandbox !== undefined && event.sandbox !== sandbox) return false;
      // Flows that nobody saw may have been any.
      if (event.event === "unseen") return wanted === "allow";
      const shown = shownVerdict(event);
      if (shown === null) return !narrowed;
      if (shown !== wanted) return false;
      if (reason !== undefined && event.reason !== reason) return false;
      return matches === null || matches(event);
    },
  };
}

function shownVerdict({ event }: WatchEvent): "allow" | "deny" | null {
  return event === "allowed" ? "allow" : event === "denied" || event === "dns-denied" || event === "tls-denied" ? "deny" : null;
}

/** @throws EnforcerError E_REQUEST. */
function destinationFilter(written: string): (event: WatchEvent) => boolean {
  const text = /^\[.*\]$/.test(written) ? written.slice(1, -1) : written;
  const address = parseAddress(text);
  const prefix: Prefix | null = address === null ? parsePrefix(text) : null;
  const far = (event: WatchEvent): string | null => (event.direction === "ingress" ? event.source : (event.destination ?? event.address)) as string | null;
  if (address !== null) return (event) => far(event) === formatAddress(address);
  if (prefix !== null) {
    return (event) => {
      const there = parseAddress(far(event) ?? "");
      return there !== null && prefixContains(prefix, there);
    };
  }
  const pattern = parsePattern(text);
  if (!pattern.ok) throw new EnforcerError("E_REQUEST", `destination: ${pattern.refusal.message}`, { remedy: "name an address, a prefix, a name, or *.name for what is below it" });
  return ({ name }) => typeof name === "string" && matchesPattern(pattern.value, name.toLowerCase().split("."));
}
