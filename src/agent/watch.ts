/**
 * Who watches: live verdicts and changes, each to the watchers that asked for them.
 *
 * Holds always: a watcher that does not read is told how much it missed and never held in memory without bound; without watchers
 * nothing is looked up. Denials come from the kernel's events; allowed flows are seen in its flow table, each once.
 */
import { formatAddress, parseAddress, parsePrefix, prefixContains, type Prefix } from "../addresses/address.js";
import type { WatchQuery } from "../api/schema.js";

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

interface Seat { readonly watcher: Watcher; readonly wants: (event: WatchEvent) => boolean; lost: number }

/** Watchers at one time. */
export const WATCHERS = 64;

export class WatchHub {
  readonly #seats = new Set<Seat>();

  get size(): number { return this.#seats.size; }

  /** Whether anybody wants to see flows that are let through. */
  get wantsFlows(): boolean { return [...this.#seats].some(({ watcher: { query } }) => query.verdict === "allow"); }

  /** @returns what ends it; null when there are too many. */
  add(watcher: Watcher): (() => void) | null {
    if (this.#seats.size >= WATCHERS) return null;
    const seat: Seat = { watcher, wants: filterOf(watcher.query), lost: 0 };
    this.#seats.add(seat);
    return () => { this.#seats.delete(seat); };
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
function filterOf({ sandbox, verdict, reason, destination }: WatchQuery): (event: WatchEvent) => boolean {
  const narrowed = verdict !== undefined || reason !== undefined || destination !== undefined;
  const matches = destination === undefined ? null : destinationFilter(destination);
  return (event) => {
    if (sandbox !== undefined && event.sandbox !== sandbox) return false;
    const shown = verdictOf(event);
    if (shown === null) return !narrowed;
    // Flows that are let through are told only to those who ask for them: there are many.
    if (shown !== (verdict ?? "deny")) return false;
    if (reason !== undefined && event.reason !== reason) return false;
    return matches === null || matches(event);
  };
}

function verdictOf({ event }: WatchEvent): "allow" | "deny" | null {
  return event === "allowed" ? "allow" : event === "denied" || event === "dns-denied" || event === "tls-denied" ? "deny" : null;
}

function destinationFilter(text: string): (event: WatchEvent) => boolean {
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
  const name = text.toLowerCase();
  return ({ name: seen }) => typeof seen === "string" && (name.startsWith("*.") ? seen.toLowerCase().endsWith(name.slice(1)) : seen.toLowerCase() === name);
}
