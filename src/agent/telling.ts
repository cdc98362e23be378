/**
 * What an agent tells of its sandboxes to whoever watches: denials, flows that are let through, changes, and notices.
 *
 * Holds always: packets come in the order in which they were refused, and flows in that in which they were found, although names are looked up
 * in another thread; what is of no sandbox any more is not told. Does not: decide who may watch, or how much is kept for a watcher (watch.ts).
 */
import type { DeniedQuery } from "../dns/protocol.js";
import type { PacketEvent } from "../kernel/events.js";
import type { TlsDenial } from "../tls/protocol.js";
import type { Enforcer } from "./enforcer.js";
import { FlowWatch, type Watched } from "./flow-watch.js";
import { describeAllowed, describeConnection, describePacket, describeQuery, type RefusedConnection, type RefusedQuery } from "./verdicts.js";
import { WatchHub, type Watcher } from "./watch.js";

export interface TellingOptions {
  /** Sandboxes in force. */
  readonly known: () => readonly Watched[];
  /** That knows which sandbox is meant, of whatever namespace. */
  readonly enforcer: () => Enforcer;
  /** For whoever runs the agent. */
  readonly onNotice: (text: string) => void;
}

export class Telling {
  readonly watchers = new WatchHub();
  readonly #options: TellingOptions;
  readonly #flows: FlowWatch;

  constructor(options: TellingOptions) {
    this.#options = options;
    this.#flows = new FlowWatch({
      known: options.known,
      wanted: (name) => this.watchers.wantsFlows(name),
      onAllowed: ({ engine, sandbox }, row) => {
        const rule = row.rule === null ? null : (sandbox.compiled.bits[row.rule]?.text ?? null);
        this.watchers.tellLater("allow", [row], async () => ({ ...describeAllowed(sandbox.name, row, await engine.enforcer.namesOf(sandbox, row.remote).catch(() => []), rule) }));
      },
      onUnseen: (name, count) => this.watchers.tellLater("allow", [name], async () => ({ event: "unseen", time: now(), sandbox: name, count })),
      onError: (name, error) => this.notice(`${name}: flows that are let through could not be read, and are tried again: ${error instanceof Error ? error.message : String(error)}`),
    });
  }

  /** Flows are looked at from now on, while somebody watches them. */
  start(): void { this.#flows.start(); }
  stop(): void { this.#flows.stop(); }
  /** Its flows are none any more. */
  forget(sandbox: string): void { this.#flows.forget(sandbox); }

  /** One of the agent's own doings. */
  change(event: string, fields: Readonly<Record<string, unknown>> = {}): void { this.watchers.tell({ event, time: now(), ...fields }); }

  notice(notice: string): void {
    this.#options.onNotice(notice);
    this.change("notice", { text: notice });
  }

  /** As Agent.watch. */
  watch(watcher: Watcher): { readonly end: () => void; readonly begun: Promise<void> } | null {
    const seat = this.watchers.add(watcher);
    return seat === null ? null : { end: seat.end, begun: seat.flows ? this.#flows.joined() : Promise.resolve() };
  }

  packets(events: readonly PacketEvent[]): void {
    if (this.watchers.size === 0) return;
    const enforcer = this.#options.enforcer();
    const monotonic = process.hrtime.bigint();
    const wanted = events.filter(({ slot, generation }) => {
      const sandbox = enforcer.sandboxAt(slot, generation);
      return sandbox !== null && this.watchers.wantsDenials(sandbox.name);
    });
    this.watchers.tellLater("deny", wanted, async (event) => {
      const sandbox = enforcer.sandboxAt(event.slot, event.generation);
      if (sandbox === null) return null;
      const names = await enforcer.namesOf(sandbox, event.direction === "egress" ? event.destination : event.source).catch(() => []);
      const compiled = [sandbox.compiled, sandbox.former].find((one) => one?.uid === event.policy);
      const rule = event.rule === null ? null : (compiled?.bits[event.rule]?.text ?? null);
      return { ...describePacket(sandbox.name, event, names, rule, monotonic) };
    });
  }

  connections(denials: readonly TlsDenial[]): void { this.#each(denials, describeConnection); }
  queries(queries: readonly DeniedQuery[]): void { this.#each(queries, describeQuery); }

  #each<Denied extends { readonly slot: number; readonly generation: number }>(all: readonly Denied[], describe: (sandbox: string, denied: Denied) => RefusedQuery | RefusedConnection): void {
    if (this.watchers.size === 0) return;
    for (const denied of all) {
      const sandbox = this.#options.enforcer().sandboxAt(denied.slot, denied.generation);
      if (sandbox !== null) this.watchers.tell({ ...describe(sandbox.name, denied) });
    }
  }
}

function now(): string { return new Date().toISOString(); }
