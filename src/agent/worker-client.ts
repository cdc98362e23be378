/**
 * A worker thread seen from the main thread: requests that return promises, and what it tells on its own.
 *
 * Holds always: a request ends, with the worker's reply or with an error when the worker has gone. A worker that dies is told
 * once through onFailure: without it what it served fails closed, and nobody would notice.
 */
import { type TransferListItem, Worker } from "node:worker_threads";
import { EnforcerError, type ErrorCode } from "../errors.js";

interface Waiting { readonly resolve: (value: never) => void; readonly reject: (error: Error) => void }
type Reply = { readonly kind: "reply"; readonly id: number; readonly ok: true; readonly value: unknown } | { readonly kind: "reply"; readonly id: number; readonly ok: false; readonly code: string; readonly message: string };

export interface WorkerOptions<Told> {
  readonly url: URL;
  /** What it is, in messages: "the DNS worker". */
  readonly what: string;
  readonly error: ErrorCode;
  readonly onTold: (message: Told) => void;
  readonly onFailure: (error: Error) => void;
}

export class WorkerClient<Request extends { readonly kind: string }, Replies extends Record<Request["kind"], unknown>, Told extends { readonly kind: string }> {
  readonly #worker: Worker;
  readonly #options: WorkerOptions<Told>;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;
  #ended = false;

  constructor(options: WorkerOptions<Told>) {
    this.#options = options;
    this.#worker = new Worker(options.url);
    this.#worker.on("message", (message: Reply | Told) => this.#receive(message));
    this.#worker.on("error", (error: Error) => this.#end(error));
    this.#worker.on("exit", (code) => this.#end(new Error(`${options.what} ended with status ${code}`)));
  }

  async ask<K extends Request["kind"]>(request: Extract<Request, { kind: K }>, transfer: readonly TransferListItem[] = []): Promise<Replies[K]> {
    if (this.#ended) throw new EnforcerError(this.#options.error, `${this.#options.what} has ended`);
    const id = this.#next++;
    return new Promise<Replies[K]>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (value: never) => void, reject });
      this.#worker.postMessage({ id, request }, [...transfer]);
    });
  }

  /** Ends the worker; what it listens on closes first. */
  async stop(): Promise<void> {
    if (!this.#ended) {
      try {
        await this.ask({ kind: "stop" } as Extract<Request, { kind: "stop" }>);
      } catch {
        // Ending is what was wanted.
      }
    }
    this.#ended = true;
    await this.#worker.terminate();
  }

  #receive(message: Reply | Told): void {
    if (message.kind !== "reply") return this.#options.onTold(message as Told);
    const reply = message as Reply;
    const waiting = this.#waiting.get(reply.id);
    if (waiting === undefined) return;
    this.#waiting.delete(reply.id);
    if (reply.ok) waiting.resolve(reply.value as never);
    // What a person can mend keeps its code.
    else waiting.reject(reply.code === "E_SECRET" || reply.code === "E_CA" ? new EnforcerError(reply.code, reply.message) : new EnforcerError(this.#options.error, `${this.#options.what} refused: ${reply.message}`));
  }

  #end(error: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    this.#options.onFailure(error);
  }
}
