/**
 * The DNS worker's end of a port given to another thread (protocol.ts, LinkRequest).
 *
 * Holds always: every request gets one reply, within the time that every DNS question has; a sandbox that is not there (any
 * more) has no pins and gets no answers; a question asked here passes the same judgement, limits and counters as one over
 * TCP. Does not: trust what the guest wrote; the asking thread itself is ours.
 */
import type { MessagePort } from "node:worker_threads";
import { NameFinder } from "../secrets/names.js";
import type { LinkReply, LinkRequest, PlaceholderAsked } from "./protocol.js";
import type { Client } from "./resolver.js";
import type { DnsService } from "./server.js";
import { nameOf } from "./wire.js";

/** After this, ms, a question that found no end is answered with null: more than the resolver takes for any. */
const END_MS = 6_000;

/** One question on its way. */
class LinkClient implements Client {
  readonly stream = true;
  readonly waited = 0;
  private timer: NodeJS.Timeout | null = null;
  private done = false;

  constructor(private readonly tell: (message: Uint8Array | null) => void) {}

  send(message: Buffer, length: number): void {
    this.end(new Uint8Array(message.subarray(0, length)));
  }

  /** Asked upstream: the answer comes later, or, when the sandbox goes in the meantime, never. */
  retain(): Client {
    this.timer = setTimeout(() => this.end(null), END_MS);
    return this;
  }

  /** The resolver has returned: what was neither answered nor kept will not be. */
  returned(): void {
    if (this.timer === null) this.end(null);
  }

  private end(message: Uint8Array | null): void {
    if (this.done) return;
    this.done = true;
    if (this.timer !== null) clearTimeout(this.timer);
    this.tell(message);
  }
}

/** @param nowSeconds CLOCK_MONOTONIC. */
export function serveLink(port: MessagePort, service: DnsService, nowSeconds: () => number): void {
  const reply = (message: LinkReply): void => port.postMessage(message);
  port.on("message", (request: LinkRequest) => {
    const { id } = request;
    const sandbox = service.lookup(request.slot, request.generation);
    if (request.kind === "pinned") {
      const name = nameOf(request.labels);
      reply({ id, pinned: sandbox !== null && name !== null && request.address.length === 16 && sandbox.pins.pinned(name, request.address, nowSeconds()) });
      return;
    }
    if (request.kind === "placeholders") {
      const finder = request.placeholders.length === 0 ? null : new NameFinder(request.placeholders);
      sandbox?.setPlaceholders(finder, (labels, { of, form }) => port.postMessage({ kind: "placeholderAsked", slot: request.slot, generation: request.generation, labels, secret: of.secret, form } satisfies PlaceholderAsked));
      reply({ id, known: sandbox !== null });
      return;
    }
    const client = new LinkClient((message) => reply({ id, message }));
    const { message } = request;
    if (sandbox !== null) service.resolver.handle(sandbox, Buffer.from(message.buffer, message.byteOffset, message.length), 0, message.length, client);
    client.returned();
  });
}
