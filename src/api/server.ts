/**
 * The agent's API: HTTP with JSON bodies on a Unix socket.
 *
 * Holds always: the socket's mode lets nobody but root connect, and its directory nobody but root look; every answer is JSON, an
 * error {code, message, remedy}; a path, method, parameter or field that is not known is refused; bodies, headers, connections and
 * watchers are bounded; a client that goes away does not end the operation that it asked for.
 * Does not: decide anything (src/agent/daemon.ts), or listen on a network.
 */
import { chmodSync, rmSync, statSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { dirname } from "node:path";
import { z } from "zod";
import type { Agent } from "../agent/daemon.js";
import { EnforcerError, type ErrorCode } from "../errors.js";
import { makeDirectories } from "../make-directory.js";
import { explainQuestion } from "../explain/ask.js";
import { policyReport } from "../policy/check.js";
import { faultText } from "./faults.js";
import { parseStrictJson } from "./json.js";
import { API_VERSION, attachRequest, BODY_OCTETS, explainQuery, flowsQuery, noQuery, policyRequest, watchQuery, type ApiError } from "./schema.js";
import { agentView, flowsView, pinsView, statusView, summaryView, versionView } from "./views.js";

/** Connections at one time, watchers among them. */
const CONNECTIONS = 256;
/** Milliseconds in which a request must have come whole; and how often that is looked at, by default half a minute. */
const REQUEST_WITHIN = 30_000, LOOK_EVERY = 1_000;
/** Octets that may wait for a watcher that does not read. */
const WATCH_BACKLOG = 1 << 20;
/** A line without meaning, so that both ends notice that the other has gone, ms. */
const WATCH_PULSE = 30_000;

const statuses: Partial<Record<ErrorCode, number>> = {
  E_NO_SANDBOX: 404, E_NAME_TAKEN: 409, E_TAP_TAKEN: 409, E_TAP_MISSING: 404, E_NO_AGENT: 503, E_REQUEST: 400,
  E_USAGE: 400, E_POLICY: 422, E_POLICY_FILE: 422, E_CONFIG: 422, E_GROUPS: 422, E_LIMIT: 422, E_TAP_KIND: 422, E_GATEWAY_UNKNOWN: 422, E_NETNS: 422, E_SECRET: 422, E_CA: 422,
};

interface Asked<Q, B> { readonly agent: Agent; readonly name: string; readonly query: Q; readonly body: B; readonly request: IncomingMessage; readonly response: ServerResponse }

interface Route { readonly method: string; readonly path: RegExp; readonly query: z.ZodType; readonly body: z.ZodType | null; readonly answer: (asked: Asked<unknown, unknown>) => unknown }

/** An answer that the route has written itself. */
const WRITTEN = Symbol("written");

function route<Q, B>(method: string, path: string, query: z.ZodType<Q>, body: z.ZodType<B> | null, answer: (asked: Asked<Q, B>) => unknown): Route {
  const pattern = new RegExp(`^/v${API_VERSION}${path.replace("{name}", "([^/]+)")}$`);
  return { method, path: pattern, query, body, answer: answer as Route["answer"] };
}

const routes: readonly Route[] = [
  route("GET", "/version", noQuery, null, () => versionView()),
  route("GET", "/status", noQuery, null, ({ agent }) => agentView(agent)),
  route("GET", "/sandboxes", noQuery, null, ({ agent }) => ({ sandboxes: agent.known().map(summaryView) })),
  route("POST", "/sandboxes", noQuery, attachRequest, async ({ agent, body, response }) => {
    const { known, warnings } = await agent.attach(body);
    response.statusCode = 201;
    return { sandbox: await statusView(agent, known), warnings };
  }),
  route("GET", "/sandboxes/{name}", noQuery, null, ({ agent, name }) => statusView(agent, agent.need(name))),
  route("DELETE", "/sandboxes/{name}", noQuery, null, async ({ agent, name }) => {
    await agent.detach(name);
    return { detached: name };
  }),
  route("GET", "/sandboxes/{name}/policy", noQuery, null, async ({ agent, name }) => {
    const known = agent.need(name);
    if (known.state === "waiting") return { request: known.waiting.source.request, report: policyReport((await agent.check(name, known.waiting.source.request)).policy, []), warnings: [] };
    const { sandbox, source } = agent.enforced(name);
    return { request: source.request, report: policyReport(sandbox.policy, []), warnings: [] };
  }),
  route("PUT", "/sandboxes/{name}/policy", noQuery, policyRequest, async ({ agent, name, body }) => {
    const { uid, written, left, warnings } = await agent.setPolicy(name, body);
    return { uid, pins: { kept: written, left }, warnings };
  }),
  route("POST", "/sandboxes/{name}/policy/diff", noQuery, policyRequest, ({ agent, name, body }) => agent.diff(name, body)),
  route("POST", "/policy/check", noQuery, policyRequest, async ({ agent, body }) => {
    const { policy, warnings } = await agent.check(null, body);
    return { request: body, report: policyReport(policy, []), warnings };
  }),
  route("GET", "/sandboxes/{name}/pins", noQuery, null, ({ agent, name }) => pinsView(agent, name)),
  route("GET", "/sandboxes/{name}/secrets", noQuery, null, ({ agent, name }) => {
    const { engine, sandbox } = agent.enforced(name);
    return { environment: engine.enforcer.secretsOf(sandbox) };
  }),
  route("GET", "/sandboxes/{name}/ca", noQuery, null, ({ agent, name }) => {
    const certificate = agent.certificate(name);
    if (certificate === null) throw new EnforcerError("E_CA", `${name} has no CA: its policy does not intercept TLS`, { remedy: "write `tls: {intercept: true}` in its policy" });
    return { certificate };
  }),
  route("GET", "/sandboxes/{name}/flows", flowsQuery, null, ({ agent, name, query }) => flowsView(agent, name, query.limit ?? 1000)),
  route("GET", "/sandboxes/{name}/explain", explainQuery, null, ({ agent, name, query }) => explainQuestion(agent, name, query)),
  route("GET", "/watch", watchQuery, null, async ({ agent, query, request, response }) => {
    // Nobody would be told that it ends.
    if (response.destroyed) return WRITTEN;
    let watching = false;
    const seat = agent.watch({
      query,
      send: (event) => {
        // What is told before it is said that it watches is of before.
        if (!watching) return true;
        if (response.writableLength > WATCH_BACKLOG) return false;
        response.write(`${JSON.stringify(event)}\n`);
        return true;
      },
    });
    if (seat === null) throw new EnforcerError("E_LIMIT", "there are as many watchers as the agent takes", { remedy: "end one of them" });
    response.on("close", seat.end);
    await seat.begun;
    if (response.destroyed) return WRITTEN;
    watching = true;
    response.writeHead(200, { "content-type": "application/x-ndjson", "cache-control": "no-store" });
    response.write(`${JSON.stringify({ event: "watching", time: new Date().toISOString() })}\n`);
    request.socket.setTimeout(0);
    const pulse = setInterval(() => response.write("\n"), WATCH_PULSE);
    response.on("close", () => clearInterval(pulse));
    return WRITTEN;
  }),
  route("POST", "/reload", noQuery, null, ({ agent }) => agent.reload()),
];

export interface ApiServer { readonly path: string; close(): Promise<void> }

/**
 * @param path of the socket; one that is left over there is replaced, so the caller holds the agent's lock.
 * @param within in which a request must have come whole, ms.
 * @throws EnforcerError E_STATE.
 */
export async function serveApi(agent: Agent, path: string, within = REQUEST_WITHIN): Promise<ApiServer> {
  const server = createServer({ requestTimeout: within, headersTimeout: within, connectionsCheckingInterval: Math.min(within, LOOK_EVERY), maxHeaderSize: 16_384, requireHostHeader: false }, (request, response) => {
    answer(agent, request, response).catch((error: unknown) => {
      // Whoever asked has gone, or been sent away, before the request had come whole: nobody is there to be told.
      if (!(error instanceof EnforcerError) && !request.complete && (error as NodeJS.ErrnoException | null)?.code === "ECONNRESET") return void response.destroy();
      fail(response, error);
    });
  });
  server.maxConnections = CONNECTIONS;
  // What is no request, or has not come whole in time; an answer that is under way is not written into.
  server.on("clientError", ({ code }: NodeJS.ErrnoException, socket) => {
    const under = ("_httpMessage" in socket ? socket._httpMessage : null) as ServerResponse<IncomingMessage> | null;
    if (!socket.writable || (under !== null && (under.headersSent || under.req.complete))) return void socket.destroy();
    const [status, message] = code === "ERR_HTTP_REQUEST_TIMEOUT" ? ["408 Request Timeout", `the request had not come whole within ${within / 1000} s`]
      : code === "HPE_HEADER_OVERFLOW" ? ["431 Request Header Fields Too Large", "path and header fields are too long"] : ["400 Bad Request", "it is no HTTP request that this agent takes"];
    const text = `${JSON.stringify(refusal(message))}\n`;
    socket.end(`HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`);
  });
  server.keepAliveTimeout = 5_000;
  await listen(server, path);
  return {
    path,
    close: () => new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    }),
  };
}

async function listen(server: Server, path: string): Promise<void> {
  try {
    makeDirectories(dirname(path));
    const facts = statSync(dirname(path));
    if ((facts.mode & 0o022) !== 0) throw new Error(`${dirname(path)} can be written by others than root`);
    chmodSync(dirname(path), 0o700);
    rmSync(path, { force: true });
    // From its first moment nobody else can connect: the mode of a socket is what the umask leaves.
    const former = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen({ path }, resolve);
      });
    } finally {
      process.umask(former);
    }
  } catch (cause) {
    throw new EnforcerError("E_STATE", `the API cannot listen on ${path}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

async function answer(agent: Agent, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const asked = request.url ?? "/";
  if (!URL.canParse(asked, "http://enforcer")) return send(response, 400, refusal("the path is none"));
  const url = new URL(asked, "http://enforcer");
  const matching = routes.filter(({ path }) => path.test(url.pathname));
  const found = matching.find(({ method }) => method === request.method);
  if (found === undefined) {
    const [status, message] = matching.length > 0 ? [405, `${url.pathname} takes ${matching.map(({ method }) => method).join(", ")}`]
      : [404, url.pathname.startsWith(`/v${API_VERSION}/`) ? `there is no ${url.pathname}` : `this agent speaks version ${API_VERSION}: paths begin with /v${API_VERSION}/`];
    return send(response, status, refusal(message));
  }
  let name = "";
  try {
    name = decodeURIComponent(found.path.exec(url.pathname)?.[1] ?? "");
  } catch {
    return send(response, 400, refusal("the sandbox's name is not percent-encoded UTF-8"));
  }
  const parameters = Object.create(null) as Record<string, string>;
  for (const [key, value] of url.searchParams) {
    if (Object.hasOwn(parameters, key)) return send(response, 400, refusal(`the parameter ${key} is there twice`));
    parameters[key] = value;
  }
  const query = checked(found.query, parameters, "parameter");
  const body = found.body === null ? await noBody(request) : checked(found.body, await jsonBody(request), "body");
  const value = await found.answer({ agent, name, query, body, request, response });
  if (value !== WRITTEN) send(response, response.statusCode, value);
}

/** @throws EnforcerError E_REQUEST with every fault. */
function checked<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new EnforcerError("E_REQUEST", parsed.error.issues.slice(0, 20).map((issue) => {
    const at = issue.path.map(String).join(".");
    return issue.code === "unrecognized_keys" ? `${what}${at === "" ? "" : ` ${at}`}: unknown: ${issue.keys.join(", ")}` : `${what}${at === "" ? "" : ` ${at}`}: ${faultText(issue)}`;
  }).join("; "));
}

async function noBody(request: IncomingMessage): Promise<undefined> {
  for await (const chunk of request) if ((chunk as Buffer).length > 0) throw new EnforcerError("E_REQUEST", `${request.method} takes no body here`);
  return undefined;
}

async function jsonBody(request: IncomingMessage): Promise<unknown> {
  if (!/^application\/json\b/i.test(request.headers["content-type"] ?? "")) throw new EnforcerError("E_REQUEST", "a body of content-type application/json is wanted");
  const chunks: Buffer[] = [];
  let octets = 0;
  for await (const chunk of request) {
    octets += (chunk as Buffer).length;
    if (octets > BODY_OCTETS) throw new EnforcerError("E_LIMIT", `the body has more than ${BODY_OCTETS} octets`, { remedy: "make the policy smaller" });
    chunks.push(chunk as Buffer);
  }
  try {
    return parseStrictJson(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks)));
  } catch (cause) {
    throw new EnforcerError("E_REQUEST", `the body is not JSON that is taken: ${(cause as Error).message}`, { cause });
  }
}

function refusal(message: string): ApiError {
  const { code, remedy } = new EnforcerError("E_REQUEST", message);
  return { code, message, remedy };
}

function fail(response: ServerResponse, error: unknown): void {
  if (error instanceof EnforcerError) return send(response, statuses[error.code] ?? 500, { code: error.code, message: error.message, remedy: error.remedy });
  process.stderr.write(`enforcer: a fault of the program itself: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  send(response, 500, { code: "E_FAULT", message: "a fault of the program itself; its log has more", remedy: "report it" });
}

function send(response: ServerResponse, status: number, value: unknown): void {
  if (response.headersSent || response.destroyed) return void response.end();
  const text = `${JSON.stringify(value)}\n`;
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text), "cache-control": "no-store" });
  response.end(text);
}
