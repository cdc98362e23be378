/**
 * DNS over TCP for guests (RFC 7766): frames, pipelining, back-pressure.
 *
 * Holds always: each message of a stream is judged alone and answered as soon as it can be; a length that lies ends in an
 * idle close, never in a wait without end; a connection stops reading while its answers are not taken or too many of its
 * questions are open, and while the sandbox has asked all that it may: refusing as fast as a guest can ask would cost the others; connections
 * per sandbox are bounded. A frame without room for an id closes the connection.
 * Does not: know what a question is.
 */
import type { Socket } from "node:net";
import type { Client, Sandbox } from "./resolver.js";

/** A connection without traffic is closed after this, ms (RFC 7766 section 6.2.3 leaves the time to the server). */
export const IDLE_MS = 10_000;
/** A frame that has begun must be whole within this, ms: a dribbling guest does not hold a connection for ever. */
export const FRAME_MS = 10_000;
/** Questions of one connection that may be open before it stops reading. */
export const OPEN_QUESTIONS = 64;
/** Nothing of a connection has moved for so long, ms: what waits because of the bounds is handled all the same. */
const STALL_MS = 400;
/** A connection that waits because of the sandbox's rate looks again after this at the earliest, ms. */
const PACE_MS = 20;
/** Octets of answers not yet taken before it stops reading. */
const HIGH_WATER = 64 << 10;
/** Frames handled in one turn of the loop, so that one connection does not hold up the rest. */
const FRAMES_PER_TURN = 32;

export type Handle = (sandbox: Sandbox, b: Buffer, offset: number, length: number, client: Client) => void;

export class TcpConnection implements Client {
  readonly stream = true;
  private buffered: Buffer = Buffer.alloc(0);
  private open = 0;
  private frameTimer: NodeJS.Timeout | null = null;
  private stallTimer: NodeJS.Timeout | null = null;
  private paceTimer: NodeJS.Timeout | null = null;
  private stalled = false;
  /** performance.now() since which whole frames wait; 0: none do. */
  private waitingSince = 0;
  waited = 0;
  private scheduled = false;
  /** frames of this turn of the loop: they leave in one write. */
  private unsent: Buffer[] = [];
  private unsentOctets = 0;
  private working = false;
  private ended = false;
  private closed = false;

  /** Counts itself among the sandbox's connections until it is closed. @param nowMs the time of the sandbox's bucket. */
  constructor(private readonly socket: Socket, private readonly sandbox: Sandbox, private readonly handle: Handle, private readonly nowMs: () => number) {
    sandbox.connections++;
    sandbox.counters.tcpConnections++;
    socket.setNoDelay(true);
    socket.setTimeout(IDLE_MS, () => socket.destroy());
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      this.closed = true;
      sandbox.connections--;
      if (this.frameTimer !== null) clearTimeout(this.frameTimer);
      if (this.stallTimer !== null) clearTimeout(this.stallTimer);
      if (this.paceTimer !== null) clearTimeout(this.paceTimer);
    });
    socket.on("data", (chunk: Buffer) => {
      this.buffered = this.buffered.length === 0 ? chunk : Buffer.concat([this.buffered, chunk]);
      this.work();
    });
    socket.on("drain", () => this.work());
    // A guest may close its side after its last question and still read (RFC 7766 section 6.2.4).
    socket.on("end", () => {
      this.ended = true;
      this.work();
    });
  }

  send(message: Buffer, length: number): void {
    this.open--;
    if (this.closed) return;
    const frame = Buffer.allocUnsafe(2 + length);
    frame[0] = length >> 8;
    frame[1] = length & 255;
    message.copy(frame, 2, 0, length);
    this.unsent.push(frame);
    this.unsentOctets += frame.length;
    // After the answers of this turn; never inside handle, which would nest as deep as the pipeline is long.
    if (!this.working) this.later();
  }

  private later(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    setImmediate(() => {
      this.scheduled = false;
      this.flush();
      this.work();
    });
  }

  private flush(): void {
    if (this.unsent.length === 0) return;
    const octets = this.unsent.length === 1 ? this.unsent[0]! : Buffer.concat(this.unsent, this.unsentOctets);
    this.unsent = [];
    this.unsentOctets = 0;
    if (!this.socket.destroyed) this.socket.write(octets);
  }

  retain(): Client {
    return this;
  }

  private work(): void {
    if (this.closed) return;
    this.working = true;
    this.read();
    this.working = false;
    this.flush();
    if (this.ended && this.open <= 0 && !this.whole()) this.socket.end();
  }

  private read(): void {
    let at = 0;
    let frames = 0;
    const b = this.buffered;
    this.waited = this.waitingSince === 0 ? 0 : performance.now() - this.waitingSince;
    while (b.length - at >= 2) {
      if (this.backlog() > HIGH_WATER || frames >= FRAMES_PER_TURN) break;
      // At its bounds the stream waits for its open questions rather than having the next ones refused.
      if (!this.stalled && (this.open >= OPEN_QUESTIONS || (this.open > 0 && this.sandbox.inFlight >= this.sandbox.limits.inFlight) || this.pace())) break;
      const length = b.readUInt16BE(at);
      if (length < 2 || this.sandbox.closed) {
        this.flush();
        this.socket.destroy();
        return;
      }
      if (b.length - at < 2 + length) break;
      frames++;
      const isAnswer = length > 2 && (b[at + 4]! & 0x80) !== 0;
      if (!isAnswer) this.open++; // an answer from a guest gets none
      this.handle(this.sandbox, b, at + 2, length, this);
      at += 2 + length;
    }
    if (at > 0) this.buffered = at === b.length ? Buffer.alloc(0) : b.subarray(at);
    const whole = this.whole();
    // So many at a time, also of those that are handled all the same.
    if (frames >= FRAMES_PER_TURN) this.stalled = false;
    if (at > 0) this.clock(false);
    this.clock(this.buffered.length > 0 && !whole);
    if ((at > 0 || !whole) && this.stallTimer !== null) {
      clearTimeout(this.stallTimer);
      this.stallTimer = null;
    }
    if (!whole) {
      this.waitingSince = 0;
      this.stalled = false;
    } else {
      if (this.waitingSince === 0) this.waitingSince = performance.now();
      this.stallTimer ??= setTimeout(() => {
        this.stallTimer = null;
        this.stalled = true;
        this.work();
      }, STALL_MS);
    }
    if (whole) {
      this.socket.pause();
      if (frames >= FRAMES_PER_TURN) this.later();
    } else if (this.open >= OPEN_QUESTIONS || this.backlog() > HIGH_WATER) this.socket.pause();
    else this.socket.resume();
  }

  /** Whether the sandbox has asked all that it may for now; then it goes on by itself. */
  private pace(): boolean {
    const wait = this.sandbox.bucket.wait(this.nowMs());
    if (wait === 0) return false;
    this.paceTimer ??= setTimeout(() => {
      this.paceTimer = null;
      this.work();
    }, Math.max(PACE_MS, wait));
    return true;
  }

  /** Whether a whole frame waits to be handled. */
  private whole(): boolean {
    return this.buffered.length >= 2 && this.buffered.length >= 2 + this.buffered.readUInt16BE(0);
  }

  /** Octets of answers that the guest has not taken. */
  private backlog(): number {
    return this.socket.writableLength + this.unsentOctets;
  }

  /** Runs while a frame is begun and not whole, from its first octet. */
  private clock(partial: boolean): void {
    if (!partial) {
      if (this.frameTimer !== null) clearTimeout(this.frameTimer);
      this.frameTimer = null;
    } else this.frameTimer ??= setTimeout(() => this.socket.destroy(), FRAME_MS);
  }
}
