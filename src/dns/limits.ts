/**
 * What one sandbox may use of the resolver: queries a second, queries in flight, TCP connections, pins.
 *
 * Holds always: the numbers are per sandbox; reaching one is answered (SERVFAIL with a reason) and counted, and costs no
 * other sandbox anything.
 */

export interface DnsLimits {
  /** queries a second, sustained. */
  readonly queriesPerSecond: number;
  /** queries that may come at once. */
  readonly burst: number;
  /** queries waiting for an upstream at one time. */
  readonly inFlight: number;
  /** TCP connections to port 53 at one time. */
  readonly connections: number;
  /** names with pins at one time. */
  readonly names: number;
  /** addresses with pins at one time; not more than the kernel's map holds. */
  readonly addresses: number;
  /** addresses pinned to one name at one time. */
  readonly addressesPerName: number;
  /** names without a rule of their own that are remembered to explain events. */
  readonly shownNames: number;
}

export const defaultLimits: DnsLimits = {
  queriesPerSecond: 5_000, burst: 5_000, inFlight: 256, connections: 32,
  names: 1_024, addresses: 1_024, addressesPerName: 256, shownNames: 1_024,
};

/** Tokens arrive at a steady rate up to a burst; each query takes one. */
export class TokenBucket {
  private tokens: number;
  private last: number;

  /** @param rate tokens a second, @param burst most that wait, @param nowMs any monotonic milliseconds. */
  constructor(private readonly rate: number, private readonly burst: number, nowMs: number) {
    this.tokens = burst;
    this.last = nowMs;
  }

  /** Whole tokens that are there. */
  left(nowMs: number): number {
    if (nowMs > this.last) {
      this.tokens = Math.min(this.burst, this.tokens + ((nowMs - this.last) * this.rate) / 1000);
      this.last = nowMs;
    }
    return Math.floor(this.tokens);
  }

  /** ms until a token is there; 0: one is. */
  wait(nowMs: number): number {
    this.left(nowMs);
    return this.tokens >= 1 ? 0 : ((1 - this.tokens) * 1000) / this.rate;
  }

  /** true and one token fewer, or false when there is none. */
  take(nowMs: number): boolean {
    this.left(nowMs);
    if (this.tokens < 1) return false;
    this.tokens -= 1;
    return true;
  }
}
