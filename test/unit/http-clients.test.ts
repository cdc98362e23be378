/** Real clients through the interceptor (TLS.md tests 12, 26, 28): curl, python3, Node, openssl, Go, GnuTLS, wget, Java and h2load. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { createServer as createHttp2Server, type Http2ServerRequest, type Http2ServerResponse } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { goClient } from "../lib/clients.js";
import { NAME, originAuthority, sandboxCa, until, World } from "./http-world.js";

let directory: string, ca: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "enforcer-clients-"));
  ca = join(directory, "ca.pem");
  writeFileSync(ca, sandboxCa);
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const worlds: World[] = [];
afterEach(async () => { for (const world of worlds.splice(0)) await world.stop(); });

function run(command: string, args: readonly string[], input?: string): Promise<{ status: number | null; out: string; err: string }> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"] });
    let out = "", err = "";
    child.stdout.on("data", (chunk: Buffer) => { out += chunk.toString("latin1"); });
    child.stderr.on("data", (chunk: Buffer) => { err += chunk.toString("latin1"); });
    child.stdin.on("error", () => undefined);
    if (input !== undefined) child.stdin.write(input);
    if (input === undefined) child.stdin.end();
    child.once("close", (status) => resolve({ status, out, err }));
  });
}

type Handler = (request: Http2ServerRequest, response: Http2ServerResponse) => void;
/** A far side that speaks what was chosen, by Node's own servers. */
async function serving(alpn: readonly string[], handler: Handler): Promise<World> {
  const http1 = createHttpServer(handler as never), http2 = createHttp2Server(handler);
  const world = new World({ alpn, realPort: true, origin: { ALPNProtocols: [...alpn] }, onOrigin: (socket) => { (socket.alpnProtocol === "h2" ? http2 : http1).emit("connection", socket); } });
  worlds.push(world);
  return world.start();
}
const echo: Handler = (request, response) => {
  const hash = createHash("sha256");
  let octets = 0;
  request.on("data", (chunk: Buffer) => {
    octets += chunk.length;
    hash.update(chunk);
  });
  request.on("end", () => {
    response.setHeader("x-version", request.httpVersion);
    response.end(`${request.method} ${request.url} ${octets} ${hash.digest("hex")}\n`);
  });
};

describe("curl", () => {
  const curl = (world: World, ...args: string[]) => run("curl", ["-sS", "--max-time", "60", "--cacert", ca, "--resolve", `${NAME}:${world.port}:127.0.0.1`, ...args]);
  it.each([["1.1", "--http1.1"], ["2", "--http2"]])("HTTP/%s: GET, and an upload of 3 MB", async (version, flag) => {
    const world = await serving(version === "2" ? ["h2", "http/1.1"] : ["http/1.1"], echo);
    const get = await curl(world, flag, "-w", "%{http_version} %{num_connects}", `https://${NAME}:${world.port}/a?b`);
    expect(get).toMatchObject({ status: 0, out: expect.stringContaining(`GET /a?b 0`) as string });
    expect(get.out).toMatch(new RegExp(`${version.replace(".", "\\.")} 1$`));
    const body = join(directory, "body");
    writeFileSync(body, Buffer.alloc(3_000_000, "abc"));
    const digest = createHash("sha256").update(readFileSync(body)).digest("hex");
    const post = await curl(world, flag, "--data-binary", `@${body}`, `https://${NAME}:${world.port}/up`);
    expect(post.out).toBe(`POST /up 3000000 ${digest}\n`); // Expect: 100-continue with HTTP/1.1
  });
  it("several requests of one connection, a HEAD, and a chunked upload", async () => {
    const world = await serving(["http/1.1"], echo);
    const url = `https://${NAME}:${world.port}`;
    const out = await curl(world, `${url}/1`, `${url}/2`, "-w", "%{num_connects} ");
    expect(out.out.match(/GET \/\d/g)).toEqual(["GET /1", "GET /2"]);
    expect(world.dialled).toBe(1);
    expect((await curl(world, "-I", `${url}/3`)).out).toMatch(/^HTTP\/1\.1 200 /);
    const chunked = await curl(world, "-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-d", "hello", `${url}/4`);
    expect(chunked.out).toContain("POST /4 5 ");
  });
  it("does not trust another sandbox's CA", async () => {
    const world = await serving(["http/1.1"], echo);
    const out = await run("curl", ["-sS", "--resolve", `${NAME}:${world.port}:127.0.0.1`, `https://${NAME}:${world.port}/`]);
    expect(out.status).toBe(60);
  });
  it("gets the reason of a refusal", async () => {
    const world = await serving(["http/1.1"], echo);
    const out = await curl(world, "-H", "Host: evil.test", "-w", "%{http_code}", `https://${NAME}:${world.port}/`);
    expect(out.out).toMatch(/host-mismatch[^]*421$/);
  });
});

describe("python3, Node and openssl", () => {
  it("python3's http.client and urllib", async () => {
    const world = await serving(["http/1.1"], echo);
    const script = `
import http.client, ssl, socket, hashlib
c = ssl.create_default_context(cafile=${JSON.stringify(ca)})
c.verify_flags |= ssl.VERIFY_X509_STRICT
class C(http.client.HTTPSConnection):
    def connect(self):
        self.sock = self._context.wrap_socket(socket.create_connection(("127.0.0.1", self.port)), server_hostname=self.host)
k = C("${NAME}", ${world.port}, context=c)
for i in range(3):
    k.request("POST", "/%d" % i, body=b"x" * i, headers={"X-A": "b"})
    r = k.getresponse()
    print(r.status, r.read().decode().split()[:3])
`;
    const out = await run("python3", ["-c", script]);
    expect(out).toMatchObject({ status: 0, err: "" });
    expect(out.out.trim().split("\n")).toEqual([0, 1, 2].map((i) => `200 ['POST', '/${i}', '${i}']`));
    expect(world.dialled).toBe(1);
  });
  it("Node's fetch", async () => {
    const world = await serving(["http/1.1"], echo);
    const script = `
      import { Agent, request } from "node:https";
      const agent = new Agent({ keepAlive: true, ca: ${JSON.stringify(sandboxCa)}, lookup: (h, o, done) => done(null, [{ address: "127.0.0.1", family: 4 }]) });
      for (const i of [1, 2]) await new Promise((resolve, reject) => request("https://${NAME}:${world.port}/" + i, { agent, method: "PUT" }, (r) => { r.on("data", (d) => process.stdout.write(d)); r.on("end", resolve); }).on("error", reject).end("body"));
      agent.destroy();`;
    const out = await run("node", ["--input-type=module", "-e", script]);
    expect(out.out.match(/PUT \/\d 4/g)).toEqual(["PUT /1 4", "PUT /2 4"]);
  });
  it("openssl s_client: TLS 1.2 and 1.3, the chain verified, renegotiation refused (A43)", async () => {
    const world = await serving(["http/1.1"], echo);
    for (const version of ["-tls1_2", "-tls1_3"]) {
      const out = await run("openssl", ["s_client", version, "-connect", `127.0.0.1:${world.port}`, "-servername", NAME, "-CAfile", ca, "-verify_return_error", "-verify_hostname", NAME, "-ign_eof", "-crlf", "-quiet"], `GET / HTTP/1.1\nHost: ${NAME}:${world.port}\nConnection: close\n\n`);
      expect(out.out).toContain("GET / 0 ");
    }
    // "R" at the beginning of a line asks for a renegotiation.
    const again = await run("openssl", ["s_client", "-tls1_2", "-connect", `127.0.0.1:${world.port}`, "-servername", NAME, "-CAfile", ca], "R\n");
    expect(again.err + again.out).toMatch(/no renegotiation|renegotiation|handshake failure/i);
  });
});

const sha = (octets: Buffer): string => createHash("sha256").update(octets).digest("hex");
const NOTHING = sha(Buffer.alloc(0));

describe("Go", () => {
  let client = "";
  beforeAll(async () => { client = await goClient(); });
  /** Says in a trailer what the request's trailer said. */
  const trailing: Handler = (request, response) => {
    const hash = createHash("sha256");
    request.on("data", (chunk: Buffer) => hash.update(chunk));
    request.on("end", () => {
      if (request.method === "POST") response.setHeader("Trailer", "X-Got");
      response.write(`${request.method} ${request.url} ${hash.digest("hex")}\n`);
      if (request.method === "POST") response.addTrailers({ "X-Got": String(request.trailers["x-sum"]) });
      response.end();
    });
  };
  it.each([["h1", "HTTP/1.1", ["http/1.1"]], ["h2", "HTTP/2.0", ["h2", "http/1.1"]]])("net/http over %s: kept connection, a streamed upload, trailers in both directions", async (what, version, alpn) => {
    const world = await serving(alpn, trailing);
    const { status, out, err } = await run(client, [NAME, String(world.port), ca, what, "127.0.0.1"]);
    expect(err).toBe("");
    const digest = sha(Buffer.from("abcdefghij".repeat(300_000)));
    expect(out.trim().split("\n")).toEqual([...[0, 1, 2].map((i) => `${version} 200 GET /${i} ${NOTHING}`), `up 200 POST /up ${digest} trailer ${digest}`]);
    expect(status).toBe(0);
    expect(world.dialled).toBe(1);
  });
  it("26: a gRPC call in both directions at once, each message answered before the next; its status is in the trailers", async () => {
    const world = await serving(["h2"], (request, response) => {
      response.writeHead(200, { "content-type": request.headers["content-type"] as string });
      (response as Http2ServerResponse & { flushHeaders(): void }).flushHeaders();
      response.addTrailers({ "grpc-status": "5", "grpc-message": "not found" });
      request.pipe(response);
    });
    const { out, err } = await run(client, [NAME, String(world.port), ca, "grpc", "127.0.0.1"]);
    expect(err).toBe("");
    expect(out.trim().split("\n")).toEqual(["HTTP/2.0 200", "message 0", "message 1", "message 2", "EOF 5 not found"]);
  });
  it("does not trust another sandbox's CA", async () => {
    const world = await serving(["http/1.1"], echo);
    const other = join(directory, "other.pem");
    writeFileSync(other, originAuthority.certificate);
    const { status, err } = await run(client, [NAME, String(world.port), other, "h1", "127.0.0.1"]);
    expect(status).toBe(1);
    expect(err).toContain("certificate signed by unknown authority");
    await until(() => world.handshakes.includes("untrusted"));
  });
});

/** A program for which the name is at 127.0.0.1, in a mount namespace of its own. */
const withHosts = (command: readonly string[]): [string, string[]] => {
  const hosts = join(directory, "hosts");
  writeFileSync(hosts, `127.0.0.1 ${NAME}\n`);
  return ["unshare", ["--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, ...command]];
};

describe("GnuTLS and wget", () => {
  it.each(["1.2", "1.3"])("gnutls-cli, TLS %s: the chain and the name verified", async (version) => {
    const world = await serving(["http/1.1"], echo);
    const out = await run("gnutls-cli", ["--x509cafile", ca, "--no-ocsp", "--priority", `NORMAL:-VERS-ALL:+VERS-TLS${version}`, "--alpn", "http/1.1", "--sni-hostname", NAME, "--verify-hostname", NAME, "--port", String(world.port), "127.0.0.1"], `GET /gnu HTTP/1.1\r\nHost: ${NAME}:${world.port}\r\nConnection: close\r\n\r\n`);
    expect(out.out).toContain("Status: The certificate is trusted.");
    expect(out.out).toContain("GET /gnu 0 ");
  });
  it("wget: a page, a form, several of one connection", async () => {
    const world = await serving(["http/1.1"], echo);
    const base = `https://${NAME}:${world.port}`;
    const get = await run(...withHosts(["wget", "-q", "-O", "-", "--tries=1", `--ca-certificate=${ca}`, `${base}/1`, `${base}/2`]));
    expect(get).toMatchObject({ status: 0, out: `GET /1 0 ${NOTHING}\nGET /2 0 ${NOTHING}\n` });
    expect(world.dialled).toBe(1);
    const post = await run(...withHosts(["wget", "-q", "-O", "-", "--tries=1", `--ca-certificate=${ca}`, "--post-data=a=b", `${base}/3`]));
    expect(post.out).toBe(`POST /3 3 ${sha(Buffer.from("a=b"))}\n`);
  });
});

describe("Java", () => {
  it.each(["HTTP_1_1", "HTTP_2"])("java.net.http, %s", async (version) => {
    const world = await serving(version === "HTTP_2" ? ["h2", "http/1.1"] : ["http/1.1"], echo);
    const hosts = join(directory, "java-hosts");
    writeFileSync(hosts, `127.0.0.1 ${NAME}\n`);
    const { out, err } = await run("java", [`-Djdk.net.hosts.file=${hosts}`, join(import.meta.dirname, "../clients/Client.java"), NAME, String(world.port), ca, version]);
    expect(err).toBe("");
    expect(out.trim().split("\n")).toEqual([0, 1, 2].map((i) => `${version} 200 POST /${i} ${100_000 * i} ${sha(Buffer.alloc(100_000 * i, "x"))}`));
    expect(world.dialled).toBe(1);
  });
});

describe("nghttp2's tools", () => {
  it("h2load: 2000 requests over 4 sessions of 50 streams", async () => {
    const world = await serving(["h2"], (_request, response) => { response.end("ok"); });
    const out = await run("h2load", ["-n", "2000", "-c", "4", "-m", "50", "--connect-to", `127.0.0.1:${world.port}`, `https://${NAME}:${world.port}/`]);
    expect(out.out).toMatch(/2000 succeeded, 0 failed, 0 errored/);
    expect(world.dialled).toBe(4);
  });
});
