/**
 * The DNS worker seen from the main thread: requests that return promises, and what it tells on its own.
 *
 * Holds always: a request ends, with the worker's reply or with an error when the worker has gone. A worker that dies takes
 * the agent with it through onFailure: without a resolver new names fail closed, and nobody would notice.
 */
import { Worker } from "node:worker_threads";
import { EnforcerError } from "../errors.js";
import type { DeniedQuery, FromWorker, Replies, Request } from "../dns/protocol.js";

export interface ResolverEvents {
  readonly onDenied: (queries: readonly DeniedQuery[]) => void;
  /** The host's resolvers changed; an empty list: names cannot be resolved until there are some. */
  readonly onResolvers: (servers: readonly string[]) => void;
  readonly onFailure: (error: Error) => void;
}

interface Waiting { readonly resolve: (value: never) => void; readonly reject: (error: Error) => void }

export class ResolverClient {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;
  #ended = false;

  constructor(events: ResolverEvents) {
    this.#worker = new Worker(new URL("../dns/worker.js", import.meta.url));
    this.#worker.on("message", (message: FromWorker) => this.#receive(message, events));
    this.#worker.on("error", (error: Error) => this.#end(error, events));
    this.#worker.on("exit", (code) => this.#end(new Error(`the DNS worker ended with status ${code}`), events));
  }

  async ask<K extends Request["kind"]>(request: Extract<Request, { kind: K }>): Promise<Replies[K]> {
    if (this.#ended) throw new EnforcerError("E_RESOLVER", "the DNS worker has ended");
    const id = this.#next++;
    return new Promise<Replies[K]>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (value: never) => void, reject });
      this.#worker.postMessage({ id, request }, "port" in request ? [request.port] : []);
    });
  }

  /** Ends the worker; its listeners close first. */
  async stop(): Promise<void> {
    if (!this.#ended) {
      try {
        await this.ask({ kind: "stop" });
      } catch {
        // Ending is what was wanted.
      }
    }
    this.#ended = true;
    await this.#worker.terminate();
  }

  #receive(message: FromWorker, events: ResolverEvents): void {
    if (message.kind === "denied") return events.onDenied(message.queries);
    if (message.kind === "resolvers") return events.onResolvers(message.servers);
    const waiting = this.#waiting.get(message.id);
    if (waiting === undefined) return;
    this.#waiting.delete(message.id);
    if (message.ok) waiting.resolve(message.value as never);
    else waiting.reject(new EnforcerError("E_RESOLVER", `the resolver refused: ${message.message}`));
  }

  #end(error: Error, events: ResolverEvents): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    events.onFailure(error);
  }
}
