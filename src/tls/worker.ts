/**
 * The TLS worker thread: takes requests (protocol.ts) from its port and runs the service
 * for the sandboxes whose connections come to its ports.
 *
 * Holds always: the listeners stand in the agent's namespace, which only redirected packets reach, and everything else this
 * thread opens in the host's; requests are done one after the other; a failure is a reply, never the end of the thread.
 */
import { createServer, type Server } from "node:net";
import { setDefaultHighWaterMark } from "node:stream";
import { parentPort, type MessagePort } from "node:worker_threads";
import { BpfMap, setNetns } from "../../native/index.js";
import { unpackGroups } from "../addresses/groups.js";
import { ResolverLink } from "../dns/link.js";
import type { FromTls, StartTls, TlsDenial, TlsEnvelope, TlsReplies, TlsRequest } from "./protocol.js";
import { TlsService } from "./service.js";

class Worker {
  #service: TlsService | null = null;
  #resolver: ResolverLink | null = null;
  readonly #servers: Server[] = [];
  #denials: TlsDenial[] = [];

  constructor(private readonly port: MessagePort) {}

  async handle({ id, request }: TlsEnvelope): Promise<void> {
    try {
      this.#post({ kind: "reply", id, ok: true, value: await this.#perform(request) });
    } catch (error) {
      const code = error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "E_TLS";
      this.#post({ kind: "reply", id, ok: false, code, message: error instanceof Error ? error.message : String(error) });
    }
  }

  #post(message: FromTls): void { this.port.postMessage(message); }

  async #perform(request: TlsRequest): Promise<TlsReplies[keyof TlsReplies]> {
    switch (request.kind) {
      case "start": return this.#start(request);
      case "addSandbox": {
        const { slot, generation, name, policy, floor, interceptedFd } = request;
        await this.#started().add(slot, generation, name, policy, floor, BpfMap.fromFd(interceptedFd));
        return null;
      }
      case "setPolicy": {
        const { slot, generation, policy, floor, interceptedFd } = request;
        await this.#started().setPolicy(slot, generation, policy, floor, BpfMap.fromFd(interceptedFd));
        return null;
      }
      case "removeSandbox":
        this.#started().remove(request.slot, request.generation);
        return null;
      case "groups":
        this.#started().setGroups(unpackGroups(request.groups));
        return null;
      case "stats": return this.#started().stats();
      case "stop":
        for (const server of this.#servers) server.close();
        this.#service?.close();
        this.#resolver?.close();
        return null;
    }
  }

  #started(): TlsService {
    if (this.#service === null) throw new Error("the TLS service is not started");
    return this.#service;
  }

  async #start({ listen, threads, hostNetnsFd, sandboxNet6, groups, port, runDirectory }: StartTls): Promise<null> {
    if (this.#service !== null) throw new Error("the TLS service is started already");
    this.#resolver = new ResolverLink(port, (asked) => this.#service?.placeholderAsked(asked));
    const service = new TlsService({ resolver: this.#resolver, groups: unpackGroups(groups), sandboxNet6, runDirectory, threads, onDenied: (denial) => this.#deny(denial), onNotice: (text) => this.#post({ kind: "notice", text }), onTerminate: (slot, generation, violation) => this.#post({ kind: "terminate", slot, generation, violation }) });
    setNetns(listen.netnsFd);
    try {
      for (const address of [listen.address4, listen.address6]) if (address !== null) for (const at of listen.ports) await this.#listen(service, address, at);
    } finally {
      setNetns(hostNetnsFd);
    }
    this.#service = service;
    return null;
  }

  /** The thread stays in the namespace until it listens: node:net looks even a numeric address up before it binds. */
  #listen(service: TlsService, host: string, port: number): Promise<void> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, highWaterMark: 65_536 } as Parameters<typeof createServer>[0], (socket) => service.accept(socket));
    this.#servers.push(server);
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host, port, exclusive: true, backlog: 4096 }, () => {
        server.off("error", reject);
        server.on("error", () => undefined);
        resolve();
      });
    });
  }

  #deny(denial: TlsDenial): void {
    if (this.#denials.push(denial) === 1) {
      setImmediate(() => {
        this.#post({ kind: "denied", denials: this.#denials });
        this.#denials = [];
      });
    }
  }
}

if (parentPort !== null) {
  const port = parentPort;
  // Streams stop and start four times less often than with Node's 16 KiB; what a connection may keep is bounded by service.ts.
  setDefaultHighWaterMark(false, 65_536);
  const worker = new Worker(port);
  let order: Promise<void> = Promise.resolve();
  port.on("message", (envelope: TlsEnvelope) => { order = order.then(() => worker.handle(envelope)); });
}
