/**
 * What the resolver counts: queries by outcome and sandbox, the cache, upstreams, pins. Plain numbers, sent on request.
 *
 * Holds always: labels are bounded (outcomes and slots), never a name or an address; counters only grow.
 */

/** How a query ended. Append only: the index is what counters are kept by. */
export const outcomes = [
  "answered", // NOERROR with records
  "no-data", // NOERROR without
  "absent", // NXDOMAIN of the upstream's
  "denied", // no rule allows the name, or a rule denies it
  "blocked", // block list, or a name that is always refused
  "unmatchable", // a label that no rule can match
  "rebind", // an address that the sandbox may not have
  "target", // led to a name that is refused
  "excess", // chain or addresses over the bound
  "upstream-failed",
  "pin-failed", // the kernel did not take the pin
  "pin-limit", // over a bound of the pin book
  "rate-limit",
  "in-flight-limit",
  "malformed", // FORMERR and BADVERS
  "not-implemented",
  "refused-kind", // class or type that is not served
  "any", // RFC 8482
  "ignored", // not a query
  "secret", // a secret's placeholder in the name
] as const;
export type Outcome = (typeof outcomes)[number];

export const outcomeIndex = Object.fromEntries(outcomes.map((name, i) => [name, i])) as { readonly [K in Outcome]: number };

/** Upper edges of the upstream latency histogram, seconds. */
export const latencyBuckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5] as const;

export class Histogram {
  /** one more than edges: the last counts what is above all of them. */
  readonly counts = new Array<number>(latencyBuckets.length + 1).fill(0);
  sum = 0;

  observe(seconds: number): void {
    let i = 0;
    while (i < latencyBuckets.length && seconds > latencyBuckets[i]!) i++;
    this.counts[i]!++;
    this.sum += seconds;
  }
}

/** Counters of one sandbox. */
export class SandboxCounters {
  readonly queries = new Array<number>(outcomes.length).fill(0);
  cacheHits = 0;
  cacheMisses = 0;
  coalesced = 0;
  truncated = 0;
  tcpConnections = 0;
  tcpRefused = 0;
}

/** Counters of the upstream client. */
export class UpstreamCounters {
  sent = 0;
  answered = 0;
  timeouts = 0;
  /** answers that matched no question: wrong server, port, id, question or letter case. */
  mismatched = 0;
  malformed = 0;
  tcp = 0;
  /** response codes other than NOERROR and NXDOMAIN. */
  errors = 0;
  failed = 0;
  readonly latency = new Histogram();
}
