/** Bounds of one intercepted connection: times and numbers. Times are held by watch.ts, a second or so late at most. */
export interface HttpLimits {
  /** the guest's TLS handshake, ms, in all. */
  readonly handshakeMs: number;
  /** connecting to the far side and verifying it, ms, in all. */
  readonly upstreamMs: number;
  /** from the first octet of a request's head to its last, ms. */
  readonly headMs: number;
  /** between two requests, ms. */
  readonly idleMs: number;
  /** without one octet while the guest owes some of its body or does not read, ms. */
  readonly stallMs: number;
  /** without one octet while the far side owes an answer, or of a WebSocket, ms. */
  readonly silenceMs: number;
  /** for which the rest of a request that was refused is read and let go, ms. */
  readonly lingerMs: number;
  /** requests of one HTTP/1.1 connection that wait for their turn before it is read no further. */
  readonly pipelined: number;
  /** streams of one HTTP/2 connection at one time; the far side's own bound holds too. */
  readonly streams: number;
  /** refused requests of one HTTP/2 connection, after which it ends. */
  readonly refusedStreams: number;
  /** octets under way to and from the far side in one HTTP/2 connection, each direction. */
  readonly window: number;
  /** of one HTTP/2 stream. */
  readonly streamWindow: number;
}

export const httpLimits: HttpLimits = {
  handshakeMs: 10_000, upstreamMs: 15_000, headMs: 10_000, idleMs: 300_000, stallMs: 300_000, silenceMs: 3_600_000, lingerMs: 2_000,
  pipelined: 32, streams: 128, refusedStreams: 32, window: 8 << 20, streamWindow: 1 << 20,
};

/** What a request that waits, or a stream, counts for among the octets that a connection keeps: about what Node keeps of one. */
export const WAITING_OCTETS = 4_096, STREAM_OCTETS = 8_192;
