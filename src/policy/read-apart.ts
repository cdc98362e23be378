/**
 * Reads a policy's text in a thread of its own, so that the thread that serves everything else goes on meanwhile; or whatever else
 * may be as long.
 *
 * Holds always: one text at a time, however many are asked for; a text that takes more memory than a policy of the largest size
 * needs is refused, and the process goes on.
 */
import { parentPort, Worker } from "node:worker_threads";
import { EnforcerError, type ErrorCode } from "../errors.js";
import { type Diagnostic, PolicyError } from "./diagnostics.js";
import type { PolicySource } from "./parse.js";
import type { ToRead } from "./read-worker.js";

/** MiB of the thread's heap: some fifty times the largest file. */
const HEAP = 1024;

/** What such a thread says, once. */
type Answer<T> =
  | { readonly kind: "value"; readonly value: T }
  | { readonly kind: "refused"; readonly diagnostics: readonly Diagnostic[] }
  | { readonly kind: "error"; readonly code: ErrorCode; readonly message: string; readonly remedy: string };

let queue: Promise<unknown> = Promise.resolve();

/** As parsePolicyText. */
export function readPolicyApart(path: string, text: string): Promise<PolicySource> {
  return readApart<PolicySource>({ url: new URL("./read-worker.js", import.meta.url), what: path, data: { path, text } satisfies ToRead });
}

/**
 * What the thread of this program gives or throws; it calls answer(). Plain data.
 * @param what is read, for messages.
 * @throws EnforcerError E_LIMIT, and what the reading throws.
 */
export function readApart<T>(reading: { readonly url: URL; readonly what: string; readonly data: unknown }): Promise<T> {
  const done = queue.then(() => read<T>(reading));
  queue = done.catch(() => undefined);
  return done;
}

async function read<T>({ url, what, data }: { readonly url: URL; readonly what: string; readonly data: unknown }): Promise<T> {
  const worker = new Worker(url, { workerData: data, resourceLimits: { maxOldGenerationSizeMb: HEAP } });
  const answer = await new Promise<Answer<T>>((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", (error: NodeJS.ErrnoException) => {
      reject(error.code === "ERR_WORKER_OUT_OF_MEMORY" ? new EnforcerError("E_LIMIT", `${what}: reading it takes more than ${HEAP} MiB of memory`, { remedy: "make the file smaller" }) : error);
    });
    worker.once("exit", (status) => reject(new Error(`the thread that reads ${what} ended with status ${status}`)));
  });
  await worker.terminate();
  if (answer.kind === "value") return answer.value;
  throw answer.kind === "refused" ? new PolicyError(answer.diagnostics) : new EnforcerError(answer.code, answer.message, { remedy: answer.remedy });
}

/** In such a thread: reads, and says what came of it. */
export function answer(read: () => unknown): void { parentPort?.postMessage(answerOf(read)); }

function answerOf(read: () => unknown): Answer<unknown> {
  try {
    return { kind: "value", value: read() };
  } catch (error) {
    if (error instanceof PolicyError) return { kind: "refused", diagnostics: error.diagnostics };
    if (error instanceof EnforcerError) return { kind: "error", code: error.code, message: error.message, remedy: error.remedy };
    throw error;
  }
}
