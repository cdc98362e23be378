/**
 * Reads a policy's text in a thread of its own, so that the thread that serves everything else goes on meanwhile.
 *
 * Holds always: one text at a time, however many are asked for; a text that takes more memory than a policy of the largest size
 * needs is refused, and the process goes on.
 */
import { Worker } from "node:worker_threads";
import { EnforcerError } from "../errors.js";
import { PolicyError } from "./diagnostics.js";
import type { PolicySource } from "./parse.js";
import type { ReadPolicy, ToRead } from "./read-worker.js";

/** MiB of the thread's heap: some fifty times the largest file. */
const HEAP = 1024;

let queue: Promise<unknown> = Promise.resolve();

/** As parsePolicyText. */
export function readPolicyApart(path: string, text: string): Promise<PolicySource> {
  const done = queue.then(() => read({ path, text }));
  queue = done.catch(() => undefined);
  return done;
}

async function read(toRead: ToRead): Promise<PolicySource> {
  const worker = new Worker(new URL("./read-worker.js", import.meta.url), { workerData: toRead, resourceLimits: { maxOldGenerationSizeMb: HEAP } });
  const answer = await new Promise<ReadPolicy>((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", (error: NodeJS.ErrnoException) => {
      reject(error.code === "ERR_WORKER_OUT_OF_MEMORY" ? new EnforcerError("E_LIMIT", `${toRead.path}: reading it takes more than ${HEAP} MiB of memory`, { remedy: "make the policy smaller" }) : error);
    });
    worker.once("exit", (status) => reject(new Error(`the thread that reads a policy ended with status ${status}`)));
  });
  await worker.terminate();
  if (answer.kind === "source") return answer.source;
  throw answer.kind === "refused" ? new PolicyError(answer.diagnostics) : new EnforcerError(answer.code, answer.message, { remedy: answer.remedy });
}
