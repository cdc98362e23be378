/**
 * The DNS worker seen from the main thread. A worker that dies takes the agent with it through onFailure: without a resolver
 * new names fail closed, and nobody would notice.
 */
import type { DeniedQuery, FromWorker, Replies, Request } from "../dns/protocol.js";
import { WorkerClient } from "./worker-client.js";

export interface ResolverEvents {
  readonly onDenied: (queries: readonly DeniedQuery[]) => void;
  /** The host's resolvers changed; an empty list: names cannot be resolved until there are some. */
  readonly onResolvers: (servers: readonly string[]) => void;
  readonly onFailure: (error: Error) => void;
}

type Told = Exclude<FromWorker, { kind: "reply" }>;

export class ResolverClient extends WorkerClient<Request, Replies, Told> {
  constructor(events: ResolverEvents) {
    super({
      url: new URL("../dns/worker.js", import.meta.url), what: "the DNS worker", error: "E_RESOLVER", onFailure: events.onFailure,
      onTold: (message) => { if (message.kind === "denied") events.onDenied(message.queries); else events.onResolvers(message.servers); },
    });
  }
}
