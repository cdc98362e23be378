/**
 * The routing socket: rtnetlink requests to the kernel, in the network namespace of the calling thread.
 *
 * Holds always: synchronous; a refusal is an EnforcerError E_NETLINK that says what was tried and the kernel's errno and
 * words; a dump is one state of the table, or fails with EINTR. Does not: follow changes (host-watch.ts).
 */
import { closeFd, netlinkRequest, openNetns, setNetns, type NativeError } from "../../native/index.js";
import { EnforcerError } from "../errors.js";

/** errno name of a failed system call, else null. */
export function errnoOf(error: unknown): string | null {
  const cause = error instanceof EnforcerError ? error.cause : error;
  const code = cause instanceof Error ? (cause as Partial<NativeError>).code : undefined;
  return typeof code === "string" && /^E[A-Z0-9]+$/.test(code) ? code : null;
}

/**
 * Sends one request and returns its answers, acknowledgement left out.
 * @param doing what is being tried, for the error: "delete enf0".
 * @throws EnforcerError E_NETLINK; errnoOf() gives the kernel's errno.
 */
export function request(message: Uint8Array, doing: string): Buffer[] {
  try {
    return netlinkRequest(message);
  } catch (cause) {
    throw new EnforcerError("E_NETLINK", `cannot ${doing}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** Like request, but null when the kernel answers with the given errno. */
export function requestUnless(message: Uint8Array, errno: string | readonly string[], doing: string): Buffer[] | null {
  try {
    return request(message, doing);
  } catch (error) {
    const code = errnoOf(error);
    if (code !== null && (typeof errno === "string" ? errno === code : errno.includes(code))) return null;
    throw error;
  }
}

/** Sends a dump request and returns what decode makes of each message, nulls left out. */
export function dump<T>(message: Uint8Array, decode: (message: Buffer) => T | null, doing: string): T[] {
  const found: T[] = [];
  for (const answer of request(message, doing)) {
    const decoded = decode(answer);
    if (decoded !== null) found.push(decoded);
  }
  return found;
}

/**
 * Runs a synchronous function with the calling thread in another network namespace, and comes back.
 * @throws what the function throws. If the way back fails the process ends: a thread in the wrong namespace would
 *   configure the wrong host.
 */
export function inNetns<T>(fd: number, work: () => T): T {
  const home = openNetns();
  try {
    setNetns(fd);
    try {
      return work();
    } finally {
      try {
        setNetns(home);
      } catch (error) {
        process.stderr.write(`cannot return to the network namespace of the agent: ${String(error)}\n`);
        process.abort();
      }
    }
  } finally {
    closeFd(home);
  }
}
