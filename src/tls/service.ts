/**
 * Connections that the kernel sent to the agent: whose they are, whom they are for, and what becomes of them.
 *
 * Holds always: a connection belongs to the sandbox whose address it comes from, which no guest can choose, and was meant for
 * what the kernel's table says; without an entry there it is reset. Nothing is dialled but the address that the guest chose, and
 * not before the name was judged. A refusal is told and ends the connection; waiting never turns into passing. One sandbox has
 * a bounded number of connections, of new ones a second, of hellos that are not whole, of octets kept of them, of handshakes
 * under way, and of octets under way; sandboxes take turns with their handshakes. When the policy changes, every connection is
 * judged again.
 * Does not: listen (worker.ts), read HTTP (http/), know what becomes of secrets (src/secrets).
 */
import { existsSync } from "node:fs";
import { connect, Socket, type TcpNetConnectOpts } from "node:net";
import type { BpfMap } from "../../native/index.js";
import { formatAddress, isV4, parseAddress } from "../addresses/address.js";
import type { GroupTable } from "../addresses/groups.js";
import { DESCRIPTOR_PARTS, descriptorLimit, fairShare } from "../descriptors.js";
import { TokenBucket } from "../dns/limits.js";
import { dnsLimits } from "../dns/sandbox-policy.js";
import type { ResolverLink } from "../dns/link.js";
import type { PlaceholderAsked } from "../dns/protocol.js";
import { AbiLimit } from "../kernel/layout.gen.js";
import { interceptedAt, type Intercepted } from "../kernel/intercepted.js";
import { CONNECTION_BURST, type Policy, type TlsPolicy } from "../policy/types.js";
import { describeViolation, isFor } from "../secrets/exchange.js";
import { placeholderPath } from "../secrets/placeholder.js";
import { SandboxSecrets } from "../secrets/sandbox-secrets.js";
import type { Violation } from "../secrets/types.js";
import { serverHandshake } from "./certificates/handshake.js";
import { SandboxCertificates } from "./certificates/leaves.js";
import type { CertificateAuthority } from "./certificates/authority.js";
import { keepOperators, keptAuthority, operatorAuthority } from "./certificates/store.js";
import { serveDot } from "./dot.js";
import { type ClientHello, canonicalLabels, HelloReader } from "./hello.js";
import { FarSides } from "./http/far-sides.js";
import { isDnsContent, isDnsMessage } from "./http/fields.js";
import { guardMethods } from "./http/form.js";
import { interceptTls } from "./http/intercept.js";
import { httpLimits } from "./http/limits.js";
import { isRefusal, type ExchangeFilter, type HttpCounters, type Passage, type RequestFacts } from "./http/passage.js";
import { proxyPlainHttp } from "./http/plain.js";
import { refuse, type HttpReason, type Refusal } from "./http/refusal.js";
import { trustContext } from "./http/trust.js";
import { Watch } from "./http/watch.js";
import { ConnectionJudge, type JudgedRequest, type NameQuestion } from "./judge.js";
import { matchesPattern } from "../policy/names.js";
import type { TlsDenial, TlsStats } from "./protocol.js";
import { type ConnectionOutcome, connectionOutcomes, refusedOutcomes } from "./reasons.js";
import { SecondHello } from "./second-hello.js";
import { Pump, PumpHolder } from "./pump.js";
import { splice } from "./splice.js";
import { Turns, UNDER_WAY } from "./turns.js";

/** Connections of one sandbox at one time: what the kernel's table has places for, less what its hash wastes. */
export const CONNECTIONS = 1_536;
/** Of those, whose hello is not whole yet; for one more the oldest makes room. */
export const HELLOS = 512;
/** Octets kept of those hellos. */
export const HELLO_OCTETS = 8 << 20;
/** How often what is under way is counted, ms. */
const COUNT_MS = 250;
/** A peer that has gone without a word is found out after some times this, ms. */
const KEEP_ALIVE_MS = 120_000;
/** The whole hello must be there after this, ms, however it comes. */
const HELLO_MS = 10_000;
/** The far side must have accepted by then, ms. */
const DIAL_MS = 10_000;
const HTTP_PORT = 80, DOT_PORT = 853;
/** TLS alerts, fatal (RFC 8446 section 6.2, RFC 6066 section 3). */
const ALERT = { accessDenied: 49, unrecognizedName: 112, decodeError: 50, protocolVersion: 70 } as const;

export interface ServiceOptions {
  readonly resolver: Pick<ResolverLink, "pinned" | "answer" | "placeholders">;
  readonly groups: GroupTable;
  /** 16 octets; null: no IPv6. */
  readonly sandboxNet6: Uint8Array | null;
  readonly runDirectory: string;
  /** How many services share the process's descriptors. Default 1. */
  readonly threads?: number;
  readonly onDenied: (denial: TlsDenial) => void;
  /** A secret's violation asks for the sandbox to be cut off; its connections have ended already. */
  readonly onTerminate: (slot: number, generation: number, violation: Violation) => void;
  /** For tests; default: a connection to exactly this address from the calling thread's namespace. */
  readonly dial?: (address: Uint8Array, port: number) => Socket;
  /** For whoever runs the agent: what it does worse than it should, and that it does not any more. */
  readonly onNotice: (text: string) => void;
  /** For tests; default: Pump.start. */
  readonly startPump?: () => Pump;
  /** For tests; default: how many descriptors the process may have. */
  readonly descriptors?: number;
}

interface Sandbox {
  readonly slot: number;
  readonly generation: number;
  readonly name: string;
  judge: ConnectionJudge;
  /** null: the policy never had any. */
  secrets: SandboxSecrets | null;
  /** A secret's `on_violation: terminate`: nothing is taken from it, until somebody gives it another policy than the one that cuts it off. */
  cutOff: boolean;
  intercepted: BpfMap;
  certificates: SandboxCertificates | null;
  readonly connections: Set<Connection>;
  readonly outcomes: { [K in ConnectionOutcome]?: number };
  readonly http: HttpCounters;
  readonly farSides: FarSides;
  /** Connections whose hello is not whole yet, oldest first. */
  readonly hellos: Set<Connection>;
  helloOctets: number;
  bucket: TokenBucket;
  /** Of questions over TLS: as many as the resolver would answer. */
  questions: TokenBucket;
  /** Octets under way when they were last counted. */
  buffered: number;
  readonly told: { second: number; count: number };
  eventsLost: number;
  /** Of connections that are over. */
  bytesUp: number;
  bytesDown: number;
}

interface Connection {
  /** One that is closed, when the splicing thread has the connection. */
  socket: Socket;
  readonly meant: Intercepted;
  /** What it was judged for; plain HTTP: what its last request was. null: nothing yet. */
  question: NameQuestion | null;
  /** Octets of it that one side has sent and the other has not taken. */
  held(): number;
  /** From the guest, and to it. */
  octets(): { readonly up: number; readonly down: number };
  end(): void;
}

export class TlsService {
  readonly #options: ServiceOptions;
  readonly #sandboxes = new Map<number, Sandbox>();
  readonly #watch = new Watch();
  readonly #turns = new Turns<Sandbox>();
  #counting: NodeJS.Timeout | null = null;
  readonly #pump: PumpHolder;
  /** Connections of all sandboxes at one time. */
  readonly #room: number;
  #groups: GroupTable;
  #strangers = 0;

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.#groups = options.groups;
    this.#room = Math.floor((options.descriptors ?? descriptorLimit()) * DESCRIPTOR_PARTS.lookedInto / 2 / (options.threads ?? 1));
    this.#pump = new PumpHolder({
      start: options.startPump ?? Pump.start,
      onChange: (failure) => options.onNotice(failure === null ? "the splicing thread runs: connections are passed on by it again" : `connections whose names were checked are passed on more slowly, because the splicing thread cannot be made or cannot have them; it is tried again: ${failure.message}`),
    });
  }

  /** @param intercepted belongs to the service from now on. @throws EnforcerError E_SECRET: a secret cannot be had; E_CA: the policy's CA cannot. */
  async add(slot: number, generation: number, name: string, policy: Policy, floor: Policy | null, intercepted: BpfMap): Promise<void> {
    const judge = new ConnectionJudge(policy, floor), own = ownAuthority(judge);
    const secrets = await this.#openSecrets(slot, generation, name, policy);
    if (secrets !== null) await this.#tellPlaceholders(slot, generation, secrets);
    this.remove(slot, null);
    this.#sandboxes.set(slot, {
      slot, generation, name, judge, intercepted, secrets, cutOff: false,
      certificates: judge.intercepts ? this.#certificates(name, own) : null,
      connections: new Set(), outcomes: {}, http: { requests: 0, refused: {}, upgrades: 0 }, farSides: new FarSides(), hellos: new Set(), helloOctets: 0, bucket: bucketOf(policy), questions: questionsOf(policy), buffered: 0, bytesUp: 0, bytesDown: 0, told: { second: 0, count: 0 }, eventsLost: 0,
    });
  }

  /** Open connections are judged again: what the new policy would not have let through ends. */
  async setPolicy(slot: number, generation: number, policy: Policy, floor: Policy | null, intercepted: BpfMap): Promise<void> {
    const sandbox = this.#sandboxes.get(slot);
    if (sandbox === undefined || sandbox.generation !== generation) throw new Error(`slot ${slot} holds no sandbox of generation ${generation}`);
    const judge = new ConnectionJudge(policy, floor), own = ownAuthority(judge);
    if (sandbox.secrets !== null) await sandbox.secrets.replace(policy.secrets);
    else if (policy.secrets.length > 0) sandbox.secrets = await this.#openSecrets(slot, generation, sandbox.name, policy);
    if (sandbox.secrets !== null) await this.#tellPlaceholders(slot, generation, sandbox.secrets);
    const former = sandbox.judge, { tls: before, secrets: secretsBefore } = former.policy;
    if (sandbox.judge.policy.limits.connectionsPerSecond !== policy.limits.connectionsPerSecond) sandbox.bucket = bucketOf(policy);
    if (sandbox.judge.policy.limits.queriesPerSecond !== policy.limits.queriesPerSecond) sandbox.questions = questionsOf(policy);
    // The policy under which nothing passes has come, and now another: somebody has given it. One that was on its way meanwhile ends nothing.
    if (former.policy.noNet) sandbox.cutOff = false;
    sandbox.judge = judge;
    sandbox.intercepted.close();
    sandbox.intercepted = intercepted;
    // Leaves of a CA that a policy names end with that policy, also where the next one has no use for a CA.
    if (own !== null || former.authority !== null) {
      sandbox.certificates?.clear();
      sandbox.certificates = null;
    }
    if (judge.intercepts) sandbox.certificates ??= this.#certificates(sandbox.name, own);
    const trustChanged = (labels: readonly string[]): boolean => !sameTrust(former.trust(labels), judge.trust(labels));
    for (const connection of [...sandbox.connections]) {
      const { question, meant } = connection;
      const decrypted = meant.remotePort !== HTTP_PORT && question !== null && former.decrypts(question.labels);
      const decrypts = meant.remotePort !== HTTP_PORT && question !== null && judge.decrypts(question.labels);
      // A far side that may have a secret from now on: what is under way was not asked for in a way that can be looked through.
      const entrusted = decrypted && policy.secrets.some((spec) => isFor(spec, question) && !secretsBefore.some((known) => known.name === spec.name && isFor(known, question)));
      // How it is looked into, and whom its far side was verified by, is decided at its beginning: a change of that ends it too.
      const same = meant.remotePort === DOT_PORT ? before.intercept === policy.tls.intercept && before.dot === policy.tls.dot : decrypted === decrypts && !(decrypted && trustChanged(question.labels)) && !entrusted;
      if (same && question === null) continue;
      if (same && question !== null) {
        // What was told when it began counts for as long as it lives, as it does for connections that nobody looks into.
        const pinned = question.pinned || await this.#pinned(sandbox, question);
        if (judge.judge(this.#groups, { ...question, pinned }).reason === "allowed") continue;
      }
      this.#count(sandbox, "policy-changed", meant, question?.labels ?? null);
      connection.end();
    }
  }

  /** Ends its connections. @param generation null: whatever is in the slot. */
  remove(slot: number, generation: number | null): void {
    const sandbox = this.#sandboxes.get(slot);
    if (sandbox === undefined || (generation !== null && sandbox.generation !== generation)) return;
    this.#sandboxes.delete(slot);
    for (const connection of [...sandbox.connections]) connection.end();
    sandbox.certificates?.clear();
    sandbox.secrets?.close();
    sandbox.intercepted.close();
  }

  setGroups(groups: GroupTable): void { this.#groups = groups; }

  close(): void {
    if (this.#counting !== null) clearInterval(this.#counting);
    for (const slot of [...this.#sandboxes.keys()]) this.remove(slot, null);
    this.#pump.close();
  }

  stats(): TlsStats {
    const limit = this.#limit();
    return {
      strangers: this.#strangers, pumpFailing: this.#pump.failing, pumpFailures: this.#pump.failures,
      sandboxes: [...this.#sandboxes.values()].map((sandbox) => ({ sandbox, turns: this.#turns.of(sandbox) })).map(({ sandbox: { slot, generation, connections, hellos, helloOctets, eventsLost, outcomes, http, bytesUp, bytesDown, certificates, secrets, bucket, buffered, judge, farSides }, turns }) => ({
        slot, generation, connections: connections.size, limit, outcomes: { ...outcomes }, requests: http.requests, refused: { ...http.refused },
        hellos: hellos.size, helloLimit: HELLOS, helloOctets, helloOctetsLimit: HELLO_OCTETS, eventsLost,
        handshakes: turns.underWay, handshakeLimit: UNDER_WAY, handshakesWaiting: turns.waiting, farSides: farSides.taken, farSideLimit: farSides.places, connectionTokens: bucket.left(performance.now()), buffered, bufferedLimit: judge.policy.limits.bufferedKib * 1024,
        ...octetsOf(connections, bytesUp, bytesDown),
        secrets: secrets?.counters() ?? {},
        leaves: certificates === null ? { issued: 0, hits: 0, evicted: 0 } : { ...certificates.counters },
      })),
    };
  }

  /** What a sandbox may have now. */
  #limit(): number {
    let taken = 0;
    for (const { connections } of this.#sandboxes.values()) taken += connections.size;
    return fairShare(this.#room, taken, this.#sandboxes.size, CONNECTIONS);
  }

  /** A connection at the listener, paused. */
  accept(socket: Socket): void {
    const sandbox = this.#sandboxOf(socket);
    const meant = sandbox === null ? null : interceptedAt(sandbox.intercepted, socket.remotePort ?? 0);
    if (sandbox === null || meant === null || sandbox.cutOff) {
      this.#strangers++;
      socket.resetAndDestroy();
      return;
    }
    if (sandbox.connections.size >= this.#limit()) {
      this.#count(sandbox, "limit", meant, null);
      socket.resetAndDestroy();
      return;
    }
    // Before anything is read of it: what is over the rate costs next to nothing.
    if (!sandbox.bucket.take(performance.now())) {
      this.#count(sandbox, "rate", meant, null);
      socket.resetAndDestroy();
      return;
    }
    const connection: Connection = { socket, meant, question: null, held: () => socket.readableLength + socket.writableLength, octets: () => ({ up: socket.bytesRead, down: socket.bytesWritten }), end: () => { socket.resetAndDestroy(); } };
    sandbox.connections.add(connection);
    this.#counting ??= setInterval(() => this.#countBuffered(), COUNT_MS).unref();
    socket.on("close", () => over(sandbox, connection));
    socket.on("error", () => socket.destroy());
    socket.setNoDelay(true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    if (meant.remotePort === HTTP_PORT) this.#plainHttp(sandbox, connection);
    else this.#readHello(sandbox, connection);
  }

  /** A sandbox that keeps more under way than it may loses those connections that keep the most of it. */
  #countBuffered(): void {
    let connections = 0;
    for (const sandbox of this.#sandboxes.values()) {
      connections += sandbox.connections.size;
      const limit = sandbox.judge.policy.limits.bufferedKib * 1024;
      sandbox.buffered = 0;
      for (const connection of sandbox.connections) sandbox.buffered += connection.held();
      if (sandbox.buffered <= limit) continue;
      const held = [...sandbox.connections].map((connection) => ({ connection, octets: connection.held() })).sort((a, b) => b.octets - a.octets);
      for (const { connection, octets } of held) {
        if (sandbox.buffered <= limit) break;
        sandbox.buffered -= octets;
        this.#count(sandbox, "buffer-limit", connection.meant, connection.question?.labels ?? null);
        connection.end();
      }
    }
    if (connections === 0 && this.#counting !== null) {
      clearInterval(this.#counting);
      this.#counting = null;
    }
  }

  #sandboxOf(socket: Socket): Sandbox | null {
    const address = parseAddress(socket.remoteAddress ?? "");
    if (address === null) return null;
    const view = new DataView(address.buffer, address.byteOffset, 16);
    let id = view.getUint32(12);
    if (isV4(address)) {
      if (id >>> 28 !== 15) return null;
      id &= 0x0fff_ffff;
    } else {
      const net = this.#options.sandboxNet6;
      if (net === null || !net.subarray(0, 12).every((octet, i) => octet === address[i])) return null;
    }
    return this.#sandboxes.get(id - AbiLimit.SANDBOX_ADDR_OFFSET) ?? null;
  }

  // ---- TLS ----------------------------------------------------------------------------------------------------------

  #readHello(sandbox: Sandbox, connection: Connection): void {
    const { socket, meant } = connection;
    const reader = new HelloReader();
    let kept = 0;
    const timer = setTimeout(() => this.#refuse(sandbox, connection, "timeout", null, null), HELLO_MS);
    const done = (): void => {
      clearTimeout(timer);
      sandbox.hellos.delete(connection);
      sandbox.helloOctets -= kept;
      kept = 0;
      socket.off("data", data);
      socket.off("close", done);
      socket.off("end", ended);
      socket.pause();
    };
    const ended = (): void => { socket.destroy(); };
    const data = (chunk: Buffer): void => {
      kept += chunk.length;
      sandbox.helloOctets += chunk.length;
      const state = reader.push(chunk);
      if (state === "more") {
        if (sandbox.helloOctets > HELLO_OCTETS) this.#refuse(sandbox, connection, "hello-limit", null, null);
        return;
      }
      done();
      if (state !== "hello") {
        this.#refuse(sandbox, connection, state, null, state === "not-tls" ? null : ALERT.decodeError);
        return;
      }
      connection.held = () => reader.octets.length + socket.writableLength;
      const serve = meant.remotePort === DOT_PORT ? this.#dot(sandbox, connection, reader) : this.#tls(sandbox, connection, reader);
      serve.catch(() => socket.resetAndDestroy());
    };
    socket.on("data", data);
    socket.on("close", done);
    socket.on("end", ended);
    // A guest that only knocks loses its own oldest, and its other connections go on.
    if (sandbox.hellos.size >= HELLOS) this.#refuse(sandbox, sandbox.hellos.values().next().value as Connection, "hello-limit", null, null);
    sandbox.hellos.add(connection);
    socket.resume();
  }

  async #tls(sandbox: Sandbox, connection: Connection, reader: HelloReader): Promise<void> {
    const { socket, meant } = connection;
    const hello = reader.hello as ClientHello;
    if (hello.serverName.kind !== "name") {
      this.#refuse(sandbox, connection, hello.serverName.kind === "absent" ? "no-name" : "name-unreadable", null, ALERT.unrecognizedName);
      return;
    }
    const { labels } = hello.serverName;
    const holds = sandbox.secrets?.serverName({ labels, port: meant.remotePort, intercepted: false, verified: false, pinned: false }, labels) ?? null;
    if (holds !== null) {
      this.#told(sandbox, meant, holds.reason, null, null, holds.message, holds.violation);
      this.#refuse(sandbox, connection, "secret-in-name", null, ALERT.unrecognizedName);
      return;
    }
    const question: NameQuestion = { address: meant.remote, port: meant.remotePort, labels, pinned: await this.#pinned(sandbox, { address: meant.remote, labels }) };
    if (socket.destroyed) return;
    // Judged and taken over in one turn: a policy that comes between finds it among the judged ones.
    const { reason } = sandbox.judge.judge(this.#groups, question);
    if (reason !== "allowed") {
      this.#refuse(sandbox, connection, reason, labels, ALERT.unrecognizedName);
      return;
    }
    connection.question = question;
    if (!sandbox.judge.decrypts(labels)) {
      this.#splice(sandbox, connection, labels, reader);
      return;
    }
    await this.#turn(sandbox, connection, () => this.#intercept(sandbox, connection, question, labels, hello, reader));
  }

  /** Waits for the sandbox's turn; what waits for too long, or is over meanwhile, does not begin. */
  #turn(sandbox: Sandbox, connection: Connection, begin: () => Promise<void>): Promise<void> {
    const { socket } = connection;
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        clearTimeout(timer);
        leaveLine();
        socket.off("close", leave);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#refuse(sandbox, connection, "handshake-limit", connection.question?.labels ?? null, null);
        leave();
      }, HELLO_MS);
      socket.once("close", leave);
      const leaveLine = this.#turns.enter(sandbox, async () => {
        clearTimeout(timer);
        socket.off("close", leave);
        const done = begin();
        done.then(resolve, reject);
        await done;
      });
    });
  }

  async #intercept(sandbox: Sandbox, connection: Connection, question: NameQuestion, labels: readonly string[], hello: ClientHello, reader: HelloReader): Promise<void> {
    const { socket, meant } = connection;
    const { upstreamCa, trustHostCas } = sandbox.judge.trust(labels);
    sandbox.certificates ??= this.#certificates(sandbox.name, ownAuthority(sandbox.judge));
    this.#bump(sandbox, "intercepted");
    socket.unshift(reader.octets);
    const extra = upstreamCa.filter(({ hosts }) => hosts === null || hosts.some((pattern) => matchesPattern(pattern, labels))).map(({ pem }) => pem);
    await interceptTls({
      guest: socket, alpn: hello.alpn, labels, certificates: sandbox.certificates, context: trustContext({ hostCas: trustHostCas, extra }), farSides: sandbox.farSides,
      dial: () => this.#dial(connection), passage: this.#passage(sandbox, connection, question), handshakeFailed: (why) => { if (why === "name-changed") this.#count(sandbox, "name-changed", meant, labels); },
    });
  }

  #splice(sandbox: Sandbox, connection: Connection, labels: readonly string[], reader: HelloReader): void {
    const { socket, meant } = connection;
    this.#dial(connection).then((upstream) => {
      if (socket.destroyed || connection.question === null) {
        upstream.destroy();
        return;
      }
      this.#bump(sandbox, "spliced");
      connection.end = () => {
        socket.resetAndDestroy();
        upstream.resetAndDestroy();
      };
      connection.held = () => socket.readableLength + socket.writableLength + upstream.readableLength + upstream.writableLength;
      splice({
        guest: socket, upstream, hello: reader.read, after: reader.after, watch: new SecondHello(labels.join(".")), refused: () => this.#count(sandbox, "name-changed", meant, labels),
        owner: sandbox.slot, pump: this.#pump,
        pumped: (pumped) => {
          const { bytesRead, bytesWritten } = socket;
          connection.socket = GONE;
          connection.held = pumped.held;
          connection.end = pumped.end;
          connection.octets = () => {
            const { up, down } = pumped.octets();
            return { up: bytesRead + up, down: bytesWritten + down };
          };
        },
        over: () => over(sandbox, connection),
      });
    }, () => {
      this.#bump(sandbox, "no-upstream");
      socket.resetAndDestroy();
    });
  }

  // ---- DNS over TLS -------------------------------------------------------------------------------------------------

  async #dot(sandbox: Sandbox, connection: Connection, reader: HelloReader): Promise<void> {
    const { socket, meant } = connection;
    const { tls } = sandbox.judge.policy;
    const { serverName, alpn } = reader.hello as ClientHello;
    if (!tls.intercept || tls.dot !== "terminate") {
      socket.resetAndDestroy();
      return;
    }
    if (serverName.kind === "unreadable") {
      this.#refuse(sandbox, connection, "name-unreadable", null, ALERT.unrecognizedName);
      return;
    }
    await this.#turn(sandbox, connection, async () => {
      sandbox.certificates ??= this.#certificates(sandbox.name, ownAuthority(sandbox.judge));
      socket.unshift(reader.octets);
      const name = serverName.kind === "name" ? serverName.labels : null;
      const server = sandbox.certificates.server(name === null ? { kind: "address", address: meant.remote } : { kind: "name", labels: name }, alpn.includes("dot") ? ["dot"] : []);
      const stream = await serverHandshake(socket, server, name === null ? null : name.join("."), httpLimits.handshakeMs);
      this.#bump(sandbox, "dot");
      const under = serveDot(stream, () => sandbox.questions, (message) => this.#options.resolver.answer(sandbox.slot, sandbox.generation, message));
      connection.held = () => under() + socket.readableLength + socket.writableLength;
    });
  }

  // ---- HTTP ---------------------------------------------------------------------------------------------------------

  #plainHttp(sandbox: Sandbox, connection: Connection): void {
    this.#bump(sandbox, "plain-http");
    proxyPlainHttp({ guest: connection.socket, passage: this.#passage(sandbox, connection, null), dial: () => this.#dial(connection) });
    connection.socket.resume(); // it came paused, and an HTTP server does not begin to read by itself
  }

  /** @param question what the connection was judged for; null: each request's Host is. */
  #passage(sandbox: Sandbox, connection: Connection, question: NameQuestion): Passage & { readonly name: string };
  #passage(sandbox: Sandbox, connection: Connection, question: null): Passage & { readonly name: null; readonly address: string };
  #passage(sandbox: Sandbox, connection: Connection, question: NameQuestion | null): Passage {
    const { meant } = connection;
    return {
      scheme: question === null ? "http" : "https", name: question === null ? null : question.labels.join("."), port: meant.remotePort, address: question === null ? formatAddress(meant.remote) : null,
      limits: httpLimits, counters: sandbox.http, watch: this.#watch, holds: (held) => { connection.held = held; },
      judge: async (request) => {
        const asked = question ?? await this.#questionOf(sandbox, meant, request);
        if (asked === null) return refuse(400, "host-malformed");
        connection.question = asked;
        return this.#judgeRequest(sandbox, asked, request, question === null ? "host-denied" : "policy");
      },
      judgeAnswer: (fields) => (sandbox.judge.deniesDoh && isDnsContent(fields) ? refuse(403, "dns-message") : null),
      filter: (request) => {
        const asked = question ?? connection.question;
        const filter = sandbox.secrets?.exchange({
          labels: asked?.labels ?? [], port: meant.remotePort, intercepted: question !== null, verified: question !== null, pinned: question?.pinned === true,
        }, request) ?? null;
        const mayBe = asked === null || !sandbox.judge.speaksOfMethods(asked) ? null : (method: string) => this.#judgeRule(sandbox, asked, { ...request, asked: [method] });
        const guarded = (found: ExchangeFilter | Refusal | null): ExchangeFilter | Refusal | null => (isRefusal(found) ? found : guardMethods(found, request, mayBe, sandbox));
        return filter instanceof Promise ? filter.then(guarded) : guarded(filter);
      },
      refused: (refusal, { method, host }) => this.#told(sandbox, meant, refusal.reason, host, method === "" ? null : method, refusal.message, refusal.violation),
    };
  }

  async #questionOf(sandbox: Sandbox, { remote, remotePort }: Intercepted, { host }: RequestFacts): Promise<NameQuestion | null> {
    // An address instead of a name: what address rules say of it.
    if (host === formatAddress(remote)) return { address: remote, port: remotePort, labels: [], pinned: false };
    const labels = canonicalLabels(host);
    return labels === null ? null : { address: remote, port: remotePort, labels, pinned: await this.#pinned(sandbox, { address: remote, labels }) };
  }

  #judgeRequest(sandbox: Sandbox, question: NameQuestion, request: RequestFacts, otherwise: HttpReason): Refusal | null {
    const { judge } = sandbox, { target, fields, host } = request;
    if (judge.judge(this.#groups, question).reason !== "allowed") return refuse(otherwise === "policy" ? 403 : 421, otherwise, `${host} is not allowed here`, true);
    if (judge.deniesDoh && isDnsMessage(fields, target)) return refuse(403, "dns-message");
    return this.#judgeRule(sandbox, question, request);
  }

  #judgeRule({ judge }: Sandbox, question: NameQuestion, request: JudgedRequest): Refusal | null {
    const stopped = judge.request(question, request);
    // By number: the guest is not told where the host keeps its policy.
    return stopped === null ? null : refuse(stopped.why === "path-ambiguous" ? 400 : 403, stopped.why, `rule ${stopped.rule.index + 1} does not allow this ${stopped.why === "rule-method" ? "method" : "path"}`);
  }

  // ---- common -------------------------------------------------------------------------------------------------------

  /** An address of a name rule that needs the pin; it is asked of the DNS worker, which wrote it. */
  #pinned(sandbox: Sandbox, { address, labels }: Pick<NameQuestion, "address" | "labels">): Promise<boolean> {
    return this.#options.resolver.pinned(sandbox.slot, sandbox.generation, address, labels);
  }

  #dial({ meant, socket }: Connection): Promise<Socket> {
    return new Promise((resolve, reject) => {
      if (socket.destroyed) {
        reject(new Error("the guest has gone"));
        return;
      }
      const upstream = this.#options.dial?.(meant.remote, meant.remotePort) ?? connect({ host: formatAddress(meant.remote), port: meant.remotePort, allowHalfOpen: true, readableHighWaterMark: 65_536 } as TcpNetConnectOpts);
      const timer = setTimeout(() => upstream.destroy(new Error("the far side did not accept the connection in time")), DIAL_MS);
      const gone = (): void => { upstream.destroy(new Error("the guest has gone")); };
      socket.once("close", gone);
      upstream.setNoDelay(true);
      upstream.setKeepAlive(true, KEEP_ALIVE_MS);
      upstream.once("connect", () => {
        clearTimeout(timer);
        socket.off("close", gone);
        upstream.off("error", failed);
        upstream.on("error", () => undefined); // whoever takes it over listens for itself; none may end the process
        resolve(upstream);
      });
      const failed = (error: Error): void => {
        clearTimeout(timer);
        socket.off("close", gone);
        reject(error);
      };
      upstream.once("error", failed);
    });
  }

  async #openSecrets(slot: number, generation: number, name: string, policy: Policy): Promise<SandboxSecrets | null> {
    const path = placeholderPath(this.#options.runDirectory, name);
    // Placeholders of a former policy may still be in the guest.
    if (policy.secrets.length === 0 && !existsSync(path)) return null;
    return SandboxSecrets.open(policy.secrets, {
      path,
      onPassed: (violation) => {
        const sandbox = this.#sandboxes.get(slot);
        if (sandbox?.generation !== generation) return;
        this.#told(sandbox, { remote: new Uint8Array(16), remotePort: violation.port }, "secret", violation.host, violation.method === "" ? null : violation.method, `${describeViolation(violation)}: let pass, as the policy says`, violation);
      },
      onTerminate: (violation) => this.#cutOff(slot, generation, violation),
    });
  }

  /** Names carry data out too: the resolver refuses those that hold a placeholder. Before any guest is told the placeholder. */
  async #tellPlaceholders(slot: number, generation: number, secrets: SandboxSecrets): Promise<void> {
    await this.#options.resolver.placeholders(slot, generation, secrets.placeholders());
  }

  /** The resolver was asked for a name with a placeholder in it. */
  placeholderAsked({ slot, generation, labels, secret, form }: PlaceholderAsked): void {
    const sandbox = this.#sandboxes.get(slot);
    if (sandbox === undefined || sandbox.generation !== generation) return;
    const refusal = sandbox.secrets?.askedName(labels, secret, form) ?? null;
    if (refusal !== null) this.#told(sandbox, { remote: new Uint8Array(16), remotePort: 53 }, refusal.reason, null, null, refusal.message, refusal.violation);
  }

  #cutOff(slot: number, generation: number, violation: Violation): void {
    const sandbox = this.#sandboxes.get(slot);
    if (sandbox === undefined || sandbox.generation !== generation || sandbox.cutOff) return;
    sandbox.cutOff = true;
    this.#options.onTerminate(slot, generation, violation);
    // After the answer that tells why.
    setImmediate(() => { for (const connection of [...sandbox.connections]) connection.end(); });
  }

  /** @param own what the policy names; null: the sandbox has one that was made for it. @throws EnforcerError E_STATE. */
  #certificates(name: string, own: CertificateAuthority | null): SandboxCertificates {
    if (own !== null) keepOperators(this.#options.runDirectory, name, own);
    return new SandboxCertificates(own ?? keptAuthority(this.#options.runDirectory, name, Date.now(), () => this.#options.onNotice(`${name} has another CA than before: its guest must be given that one (enforcer ca ${name})`)));
  }

  /** Tells the guest, as far as it can be told, and ends the connection. */
  #refuse(sandbox: Sandbox, { socket, meant }: Connection, outcome: ConnectionOutcome, labels: readonly string[] | null, alert: number | null): void {
    this.#count(sandbox, outcome, meant, labels);
    if (socket.destroyed) return;
    if (alert === null) {
      socket.resetAndDestroy();
      return;
    }
    socket.resume();
    socket.end(Buffer.of(0x15, 3, 1, 0, 2, 2, alert));
    setTimeout(() => socket.destroy(), 1_000).unref();
  }

  #bump(sandbox: Sandbox, outcome: ConnectionOutcome): void { sandbox.outcomes[outcome] = (sandbox.outcomes[outcome] ?? 0) + 1; }

  #count(sandbox: Sandbox, outcome: ConnectionOutcome, meant: Intercepted, labels: readonly string[] | null): void {
    this.#bump(sandbox, outcome);
    if (refusedOutcomes.has(outcome)) this.#told(sandbox, meant, outcome, labels?.join(".") ?? null, null, connectionOutcomes[outcome]);
  }

  /** At most as many a second as the sandbox's policy says: one that is refused without end hides no other's. */
  #told(sandbox: Sandbox, { remote, remotePort }: Pick<Intercepted, "remote" | "remotePort">, reason: ConnectionOutcome | HttpReason, name: string | null, method: string | null, text: string, violation?: Violation): void {
    const { slot, generation, told } = sandbox;
    const second = Math.floor(performance.now() / 1_000);
    if (told.second !== second) [told.second, told.count] = [second, 0];
    if (++told.count > sandbox.judge.policy.limits.eventsPerSecond) {
      sandbox.eventsLost++;
      return;
    }
    this.#options.onDenied({ slot, generation, time: Date.now(), reason, name, address: remote, port: remotePort, method, text, ...(violation === undefined ? {} : { violation }) });
  }
}

/** What a connection holds for its socket once the splicing thread has that. */
const GONE = new Socket().destroy();

function over(sandbox: Sandbox, connection: Connection): void {
  const { up, down } = connection.octets();
  sandbox.connections.delete(connection);
  sandbox.bytesUp += up;
  sandbox.bytesDown += down;
}

function octetsOf(connections: Iterable<Connection>, bytesUp: number, bytesDown: number): { bytesUp: number; bytesDown: number } {
  for (const connection of connections) {
    const { up, down } = connection.octets();
    bytesUp += up;
    bytesDown += down;
  }
  return { bytesUp, bytesDown };
}

function bucketOf({ limits: { connectionsPerSecond } }: Policy): TokenBucket { return new TokenBucket(connectionsPerSecond, CONNECTION_BURST * connectionsPerSecond, performance.now()); }

function questionsOf(policy: Policy): TokenBucket {
  const { queriesPerSecond, burst } = dnsLimits(policy);
  return new TokenBucket(queriesPerSecond, burst, performance.now());
}

/** The CA that the policy names, read anew; null: it names none, or has no use for one. @throws EnforcerError E_CA. */
function ownAuthority({ intercepts, authority }: ConnectionJudge): CertificateAuthority | null { return intercepts && authority !== null ? operatorAuthority(authority) : null; }

function sameTrust(one: Pick<TlsPolicy, "upstreamCa" | "trustHostCas">, other: Pick<TlsPolicy, "upstreamCa" | "trustHostCas">): boolean {
  return one === other || (one.trustHostCas === other.trustHostCas && JSON.stringify(one.upstreamCa) === JSON.stringify(other.upstreamCa));
}
