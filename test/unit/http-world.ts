/** A guest, the interceptor and a far side on loopback: raw sockets at both ends, so that tests see every octet. */
import { connect as netConnect, createServer as createNetServer, type AddressInfo, type Server, type Socket } from "node:net";
import { connect as tlsConnect, createServer as createTlsServer, type ConnectionOptions, type TlsOptions, type TLSSocket } from "node:tls";
import { CertificateAuthority } from "../../src/tls/certificates/authority.js";
import { SandboxCertificates } from "../../src/tls/certificates/leaves.js";
import { FarSides } from "../../src/tls/http/far-sides.js";
import { interceptTls } from "../../src/tls/http/intercept.js";
import { httpLimits, type HttpLimits } from "../../src/tls/http/limits.js";
import type { ExchangeFilter, HttpCounters, Passage, RequestFacts } from "../../src/tls/http/passage.js";
import type { Refusal } from "../../src/tls/http/refusal.js";
import { trustContext } from "../../src/tls/http/trust.js";
import { Watch } from "../../src/tls/http/watch.js";

export const NAME = "origin.test";
export const originAuthority = CertificateAuthority.generate("origins", Date.now());
const sandboxAuthority = CertificateAuthority.generate("sandbox", Date.now());
export const sandboxCa = sandboxAuthority.certificate;

const leaf = (name: string): { key: string; cert: string } => {
  const issued = originAuthority.issue({ kind: "name", labels: name.split(".") }, Date.now());
  return { key: issued.key, cert: issued.certificate };
};

export interface WorldOptions {
  readonly limits?: Partial<HttpLimits>;
  readonly judge?: (request: RequestFacts) => Refusal | null | Promise<Refusal | null>;
  readonly judgeAnswer?: (fields: readonly string[]) => Refusal | null;
  readonly filter?: (request: RequestFacts) => ExchangeFilter | Refusal | null;
  /** what the guest's hello is taken to offer. */
  readonly alpn?: readonly string[];
  readonly origin?: TlsOptions;
  /** what becomes of a connection at the far side; default: its octets are kept in `seen`. */
  readonly onOrigin?: (socket: TLSSocket) => void;
  readonly trusted?: readonly string[];
  /** how many may shake hands at one time. */
  readonly farSides?: number;
  readonly watchMs?: number;
  readonly name?: string;
  /** requests are for the port that the gate listens on, as real clients say it. */
  readonly realPort?: boolean;
}

export class World {
  readonly counters: HttpCounters = { requests: 0, refused: {}, upgrades: 0 };
  readonly refusals: string[] = [];
  readonly handshakes: string[] = [];
  readonly watch: Watch;
  /** octets that the far side got, one string (latin1) a connection. */
  readonly seen: string[] = [];
  readonly origins: TLSSocket[] = [];
  /** those connections under TLS. */
  readonly raws: Socket[] = [];
  /** TCP connections of the far side, before TLS. */
  dialled = 0;
  readonly farSides: FarSides;
  readonly certificates = new SandboxCertificates(sandboxAuthority);
  readonly passage: Passage & { readonly name: string; port: number };
  /** Of the last connection, what is under way. */
  held: () => number = () => 0;
  port = 0;
  originPort = 0;
  readonly #servers: Server[] = [];
  readonly #sockets = new Set<Socket>();

  constructor(readonly options: WorldOptions = {}) {
    this.watch = new Watch(options.watchMs ?? 20);
    this.farSides = new FarSides(options.farSides);
    this.passage = {
      scheme: "https", name: options.name ?? NAME, port: 443, address: null, limits: { ...httpLimits, ...options.limits }, counters: this.counters, watch: this.watch, holds: (held) => { this.held = held; },
      judge: (request) => options.judge?.(request) ?? null,
      judgeAnswer: (fields) => options.judgeAnswer?.(fields) ?? null,
      filter: (request) => options.filter?.(request) ?? null,
      refused: (refusal) => { this.refusals.push(refusal.reason); },
    };
  }

  async start(): Promise<this> {
    const { options } = this;
    const origin = createTlsServer({ ...leaf(NAME), ALPNProtocols: ["http/1.1"], ...options.origin }, (socket) => {
      this.origins.push(socket);
      const at = this.seen.push("") - 1;
      socket.on("error", () => undefined);
      if (options.onOrigin !== undefined) options.onOrigin(socket);
      else socket.on("data", (chunk: Buffer) => { this.seen[at] += chunk.toString("latin1"); });
    });
    origin.on("connection", (socket: Socket) => {
      this.dialled++;
      this.raws.push(socket);
      this.#keep(socket);
    });
    origin.on("tlsClientError", () => undefined);
    this.originPort = await this.#listen(origin);
    const gate = createNetServer({ allowHalfOpen: true, pauseOnConnect: true }, (guest) => {
      this.#keep(guest);
      guest.setNoDelay(true);
      void interceptTls({
        guest, alpn: options.alpn ?? ["http/1.1"], labels: (options.name ?? NAME).split("."), certificates: this.certificates, passage: this.passage,
        context: trustContext({ hostCas: false, extra: options.trusted ?? [originAuthority.certificate] }), farSides: this.farSides, dial: () => this.dial(), handshakeFailed: (reason) => this.handshakes.push(reason),
      });
    });
    this.port = await this.#listen(gate);
    if (options.realPort === true) this.passage.port = this.port;
    return this;
  }

  dial(): Promise<Socket> {
    return new Promise((resolve, reject) => {
      const socket = netConnect({ port: this.originPort, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
      this.#keep(socket);
      socket.once("connect", () => {
        socket.off("error", reject);
        socket.on("error", () => undefined);
        resolve(socket);
      });
      socket.once("error", reject);
    });
  }

  /** A guest's connection, its handshake done. */
  async guest(options: ConnectionOptions = {}): Promise<Guest> {
    const socket = tlsConnect({ port: this.port, host: "127.0.0.1", servername: this.options.name ?? NAME, ca: sandboxCa, ALPNProtocols: [...(this.options.alpn ?? ["http/1.1"])], allowHalfOpen: true, ...options } as ConnectionOptions);
    this.#keep(socket);
    const guest = new Guest(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once("secureConnect", resolve);
      socket.once("error", reject);
    });
    return guest;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => undefined);
    socket.once("close", () => this.#sockets.delete(socket));
  }

  async #listen(server: Server): Promise<number> {
    this.#servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return (server.address() as AddressInfo).port;
  }
}

export class Guest {
  got = "";
  readonly closed: Promise<void>;
  #wake = (): void => undefined;

  constructor(readonly socket: TLSSocket | Socket) {
    socket.on("data", (chunk: Buffer) => {
      this.got += chunk.toString("latin1");
      this.#wake();
    });
    socket.on("error", () => undefined);
    this.closed = new Promise((resolve) => {
      socket.once("end", () => { this.#wake(); resolve(); });
      socket.once("close", () => { this.#wake(); resolve(); });
    });
  }

  write(text: string): void { this.socket.write(text, "latin1"); }

  /** Until what came matches, or the connection has ended. */
  async until(pattern: RegExp | string): Promise<string> {
    const matches = (): boolean => (typeof pattern === "string" ? this.got.includes(pattern) : pattern.test(this.got));
    let over = false;
    void this.closed.then(() => { over = true; this.#wake(); });
    while (!matches()) {
      if (over) throw new Error(`ended before ${String(pattern)} came; got ${JSON.stringify(this.got)}`);
      await new Promise<void>((resolve) => { this.#wake = resolve; });
    }
    return this.got;
  }

  /** All that came until the end. */
  async all(): Promise<string> {
    await this.closed;
    return this.got;
  }
}

/** Waits until a condition holds; the test's own time limit ends it otherwise. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

/** What a far side answers, per request head that ends in an empty line. */
export function answering(answers: readonly string[], seen?: string[]): (socket: TLSSocket) => void {
  let at = 0;
  return (socket) => {
    let held = "";
    socket.on("data", (chunk: Buffer) => {
      held += chunk.toString("latin1");
      seen?.push(chunk.toString("latin1"));
      while (held.includes("\r\n\r\n")) {
        held = held.slice(held.indexOf("\r\n\r\n") + 4);
        const answer = answers[at++];
        if (answer !== undefined) socket.write(answer, "latin1");
      }
    });
  };
}
