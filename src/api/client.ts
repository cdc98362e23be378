/**
 * A typed client of the agent's API.
 *
 * Holds always: an error of the agent's is thrown as the EnforcerError that it was there, with its code, remedy and exit status; an
 * agent that is not there is E_NO_AGENT. A promise for each request; watch() is an async iteration that ends with its signal.
 */
import { request as httpRequest, type IncomingMessage } from "node:http";
import { createInterface } from "node:readline";
import type { WatchEvent } from "../agent/watch.js";
import { EnforcerError, errorKinds, type ErrorCode } from "../errors.js";
import type { Explanation } from "../explain/explain.js";
import type {
  AgentStatus, ApiError, AttachAnswer, AttachRequest, CaAnswer, ExplainQuery, FlowsAnswer, PinsAnswer, PolicyAnswer, PolicyDiff, PolicyRequest, ReloadAnswer, SandboxStatus, SandboxSummary, SecretsAnswer,
  SetPolicyAnswer, VersionAnswer, WatchQuery,
} from "./schema.js";

export const DEFAULT_SOCKET = "/run/enforcer/agent.sock";

export class AgentClient {
  readonly socket: string;

  /** @param socket path of the agent's socket. Nothing is connected yet. */
  constructor(socket: string = DEFAULT_SOCKET) { this.socket = socket; }

  version(): Promise<VersionAnswer> { return this.#ask("GET", "/v1/version"); }
  status(): Promise<AgentStatus> { return this.#ask("GET", "/v1/status"); }
  async list(): Promise<readonly SandboxSummary[]> { return (await this.#ask<{ sandboxes: SandboxSummary[] }>("GET", "/v1/sandboxes")).sandboxes; }
  attach(request: AttachRequest): Promise<AttachAnswer> { return this.#ask("POST", "/v1/sandboxes", request); }
  sandbox(name: string): Promise<SandboxStatus> { return this.#ask("GET", at(name)); }
  async detach(name: string): Promise<void> { await this.#ask("DELETE", at(name)); }
  policy(name: string): Promise<PolicyAnswer> { return this.#ask("GET", at(name, "policy")); }
  setPolicy(name: string, policy: PolicyRequest): Promise<SetPolicyAnswer> { return this.#ask("PUT", at(name, "policy"), policy); }
  diffPolicy(name: string, policy: PolicyRequest): Promise<PolicyDiff> { return this.#ask("POST", at(name, "policy/diff"), policy); }
  checkPolicy(policy: PolicyRequest): Promise<PolicyAnswer> { return this.#ask("POST", "/v1/policy/check", policy); }
  async ca(name: string): Promise<string> { return (await this.#ask<CaAnswer>("GET", at(name, "ca"))).certificate; }
  secrets(name: string): Promise<SecretsAnswer> { return this.#ask("GET", at(name, "secrets")); }
  pins(name: string): Promise<PinsAnswer> { return this.#ask("GET", at(name, "pins")); }
  flows(name: string, limit?: number): Promise<FlowsAnswer> { return this.#ask("GET", at(name, "flows", limit === undefined ? {} : { limit: String(limit) })); }
  explain(name: string, query: ExplainQuery): Promise<Explanation> { return this.#ask("GET", at(name, "explain", textOf(query))); }
  reload(): Promise<ReloadAnswer> { return this.#ask("POST", "/v1/reload"); }

  /** Live events, until the signal or the agent ends it. @throws EnforcerError. */
  async *watch(query: WatchQuery = {}, signal?: AbortSignal): AsyncGenerator<WatchEvent> {
    const response = await this.#send("GET", `/v1/watch?${new URLSearchParams(textOf(query)).toString()}`, undefined, signal);
    if (response.statusCode !== 200) throw errorOf(await textFrom(response), response.statusCode ?? 0);
    try {
      for await (const line of createInterface({ input: response, crlfDelay: Infinity })) if (line !== "") yield JSON.parse(line) as WatchEvent;
    } catch (cause) {
      if (signal?.aborted !== true) throw new EnforcerError("E_NO_AGENT", `the agent at ${this.socket} has ended: ${(cause as Error).message}`, { cause });
    } finally {
      response.destroy();
    }
  }

  async #ask<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.#send(method, path, body);
    const text = await textFrom(response);
    if ((response.statusCode ?? 0) >= 300) throw errorOf(text, response.statusCode ?? 0);
    return JSON.parse(text) as T;
  }

  #send(method: string, path: string, body: unknown, signal?: AbortSignal): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const text = body === undefined ? null : Buffer.from(JSON.stringify(body));
      const request = httpRequest({
        socketPath: this.socket, method, path, agent: false, ...(signal === undefined ? {} : { signal }),
        headers: text === null ? {} : { "content-type": "application/json", "content-length": text.length },
      }, resolve);
      request.on("error", (cause: NodeJS.ErrnoException) => {
        if (cause.code === "EACCES" || cause.code === "EPERM") reject(new EnforcerError("E_NOT_ROOT", `${this.socket} is root's`, { cause, remedy: "run it as root" }));
        else reject(new EnforcerError("E_NO_AGENT", `no agent answers at ${this.socket}: ${cause.message}`, { cause }));
      });
      request.end(text ?? undefined);
    });
  }
}

function at(name: string, what = "", query: Record<string, string> = {}): string {
  const parameters = new URLSearchParams(query).toString();
  return `/v1/sandboxes/${encodeURIComponent(name)}${what === "" ? "" : `/${what}`}${parameters === "" ? "" : `?${parameters}`}`;
}

function textOf(query: object): Record<string, string> {
  return Object.fromEntries(Object.entries(query).filter(([, value]) => value !== undefined).map(([key, value]) => [key, String(value)]));
}

async function textFrom(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of response) chunks.push(chunk as Buffer);
  } catch (cause) {
    throw new EnforcerError("E_NO_AGENT", `the agent ended before it had answered: ${(cause as Error).message}`, { cause });
  }
  return Buffer.concat(chunks).toString();
}

function errorOf(text: string, status: number): EnforcerError {
  try {
    const { code, message, remedy } = JSON.parse(text) as ApiError;
    if (Object.hasOwn(errorKinds, code)) return new EnforcerError(code as ErrorCode, message, { remedy });
    return new EnforcerError("E_REQUEST", `${message} [${code}]`, { remedy });
  } catch {
    return new EnforcerError("E_REQUEST", `the agent answered with status ${status} and no error`);
  }
}
