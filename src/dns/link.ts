/**
 * The asking side of a port to the DNS worker (`connect` of protocol.ts): what was a sandbox told, and what is the answer to
 * its question?
 *
 * Holds always: every promise is fulfilled, never rejected; when the worker or the port has gone, nothing is pinned and there
 * is no answer. Does not: keep anything; an answer is good for the moment it was given in.
 */
import type { MessagePort } from "node:worker_threads";
import type { NamedPlaceholder } from "../secrets/names.js";
import type { LinkReply, LinkRequest, PlaceholderAsked } from "./protocol.js";

export class ResolverLink {
  private readonly waiting = new Map<number, (reply: LinkReply | null) => void>();
  private next = 1;
  private closed = false;

  /** @param port its other end went to the DNS worker with `connect`. @param onPlaceholder told of questions that held one. */
  constructor(private readonly port: MessagePort, onPlaceholder: (asked: PlaceholderAsked) => void = () => undefined) {
    port.on("message", (reply: LinkReply | PlaceholderAsked) => {
      if ("kind" in reply) {
        onPlaceholder(reply);
        return;
      }
      const done = this.waiting.get(reply.id);
      this.waiting.delete(reply.id);
      done?.(reply);
    });
    port.on("close", () => this.end());
  }

  /**
   * Whether this sandbox was told that exactly this name is at this address, and that still holds (lease or grace).
   * @param address 16 octets, @param labels of the name, root excluded; letter case does not matter.
   */
  async pinned(slot: number, generation: number, address: Uint8Array, labels: readonly string[]): Promise<boolean> {
    const reply = await this.ask((id) => ({ id, kind: "pinned", slot, generation, address, labels }));
    return reply !== null && "pinned" in reply && reply.pinned;
  }

  /**
   * The answer to one DNS message of the guest, judged and counted like one over TCP on port 53.
   * @returns null when nothing is to be sent: the message was no question, or the sandbox has gone. Comes within 6 s.
   */
  async answer(slot: number, generation: number, message: Uint8Array): Promise<Uint8Array | null> {
    const reply = await this.ask((id) => ({ id, kind: "answer", slot, generation, message }));
    return reply !== null && "message" in reply ? reply.message : null;
  }

  /** Questions for names that hold one of these are violations from when this is fulfilled with true; false: the sandbox is not there. */
  async placeholders(slot: number, generation: number, placeholders: readonly NamedPlaceholder[]): Promise<boolean> {
    const reply = await this.ask((id) => ({ id, kind: "placeholders", slot, generation, placeholders }));
    return reply !== null && "known" in reply && reply.known;
  }

  /** What is still open ends as if the worker had gone. */
  close(): void {
    this.port.close();
    this.end();
  }

  private ask(request: (id: number) => LinkRequest): Promise<LinkReply | null> {
    if (this.closed) return Promise.resolve(null);
    const id = this.next++;
    return new Promise((resolve) => {
      this.waiting.set(id, resolve);
      this.port.postMessage(request(id));
    });
  }

  private end(): void {
    this.closed = true;
    for (const done of this.waiting.values()) done(null);
    this.waiting.clear();
  }
}
