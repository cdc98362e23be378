/** A world whose internet has one shared HTTPS address for several names, as a CDN has, with certificates of a root of its own. */
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { expect } from "vitest";
import { ADDRESS, must, type Namespace, type Service, World } from "../lib/world.mjs";

const NAMES = ["shop.example", "tenant.example", "other.example", "bank.example", "odd.example", "under_score.example"] as const;
/** Everything below one name. */
const WILD = ["*.many.example"] as const;
const ZONE = Object.fromEntries([...NAMES, ...WILD].map((name) => [name, { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] }]));

/** HTTPS and HTTP at the sites: one shared address for all names, as a CDN has. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  const answer = (request, response) => {
    const body = [];
    request.on("data", (chunk) => body.push(chunk));
    request.on("end", () => {
      console.log(JSON.stringify({ name: request.socket.servername ?? null, host: request.headers.host ?? request.headers[":authority"], method: request.method, url: request.url, headers: request.headers, octets: Buffer.concat(body).length }));
      response.setHeader("alt-svc", 'h3=":443"');
      response.end("origin " + (request.headers.host ?? request.headers[":authority"]) + " " + request.url);
    });
  };
  const server = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem"), allowHTTP1: true }, answer);
  server.on("sessionError", () => {});
  server.listen({ host: "::", port: 443 }, () => server.listening && require("node:http").createServer(answer).listen({ host: "::", port: 8081 }, () => console.log("ready")));`;

/** HTTPS servers with a name, an address and TLS settings of their own each, as `origins.json` has them (Origin[]); no "alpn": ALPN is not answered. */
export const ORIGINS = `
  const { readFileSync } = require("node:fs"), dir = process.argv[1];
  const origins = JSON.parse(readFileSync(dir + "/origins.json", "utf8"));
  const say = (what) => console.log(JSON.stringify(what));
  let open = 0;
  for (const { name, address, alpn, tls, renegotiates } of origins) {
    const answer = (request, response) => {
      request.resume();
      say({ event: "request", name, version: request.httpVersion, url: request.url, headers: request.headers });
      response.end("origin " + name + " " + request.httpVersion + " " + request.url);
    };
    const http1 = require("node:http").createServer(answer), http2 = require("node:http2").createServer(answer);
    const server = require("node:tls").createServer({ ...tls, ...(alpn === undefined ? {} : { ALPNProtocols: alpn }) }, (socket) => {
      say({ event: "secure", name, alpn: socket.alpnProtocol, version: socket.getProtocol() });
      socket.on("error", () => {});
      socket.on("data", () => {});
      if (renegotiates) socket.renegotiate({ requestCert: true, rejectUnauthorized: true }, (error) => say({ event: error ? "failed" : "renegotiated", name }));
      (socket.alpnProtocol === "h2" ? http2 : http1).emit("connection", socket);
    });
    http2.on("sessionError", () => {});
    server.on("connection", () => say({ event: "connection", name }));
    server.on("tlsClientError", (error) => say({ event: "failed", name, code: error.code }));
    server.listen({ host: address, port: 443 }, () => { if (++open === origins.length) console.log("ready"); });
  }`;
export interface Origin { readonly name: string; readonly address: string; readonly alpn?: readonly string[]; readonly tls: object; /** asks for a client's certificate after the handshake (TLS 1.2) */ readonly renegotiates?: boolean }

interface TlsWorldOptions extends Omit<Parameters<typeof World.create>[0] & object, "tls"> {
  /** of the origin, instead of ORIGIN; it says "ready" when it listens. */
  script?: string;
  /** before the origin starts. @param dir of the world. */
  prepare?: (dir: string) => void;
}

/** How long the origins' certificates are good for, days: longer than a clock in a test is put forward. */
const DAYS = "30";

export async function openWorld({ script = ORIGIN, prepare, zone, ...options }: TlsWorldOptions = {}): Promise<{ world: World; origin: Service }> {
  const world = await World.create({ zone: { ...ZONE, ...zone }, tls: true, ...options });
  const key = path.join(world.dir, "root.key"), root = path.join(world.dir, "root.pem");
  await must(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", root, "-days", DAYS, "-subj", "/CN=Test root", "-addext", "keyUsage=critical,keyCertSign"]);
  const request = path.join(world.dir, "origin.csr"), extensions = path.join(world.dir, "origin.ext");
  writeFileSync(extensions, `subjectAltName=${[...NAMES, ...WILD].map((name) => `DNS:${name}`).join(",")}\nextendedKeyUsage=serverAuth\n`);
  await must(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path.join(world.dir, "origin.key"), "-out", request, "-subj", "/CN=origin"]);
  await must(["openssl", "x509", "-req", "-in", request, "-CA", root, "-CAkey", key, "-days", DAYS, "-extfile", extensions, "-out", path.join(world.dir, "origin.pem")]);
  writeFileSync(path.join(world.dir, "resolv.conf"), "nameserver 8.8.8.8\n");
  writeFileSync(path.join(world.dir, "hosts"), "127.0.0.1 localhost\n");
  prepare?.(world.dir);
  const origin = world.internet.start([process.execPath, "-e", script, world.dir]);
  await origin.line((line) => line === "ready");
  return { world, origin };
}

/** A command that finds names as a guest's does, by DNS, whatever the machine's own files say. */
export const byDns = (world: World, command: readonly string[]): string[] =>
  ["sh", "-c", 'mount --bind "$0/resolv.conf" /etc/resolv.conf && mount --bind "$0/hosts" /etc/hosts && exec "$@"', world.dir, ...command];

/** TCP connections that the internet's servers were asked for, whatever became of them. */
export const dialled = async (world: World): Promise<number> => {
  const [names = [], values = []] = (await world.internet.must(["cat", "/proc/net/snmp"])).split("\n").filter((line) => line.startsWith("Tcp:")).map((line) => line.split(" "));
  return Number(values[names.indexOf("PassiveOpens")]);
};

/** Resident memory of a process, octets. */
export const resident = (pid: number): number => 1024 * Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]);

/** The guest asks for a name and is told where it is. */
export const tell = async (world: World, name: string, guest: Namespace = world.guest): Promise<void> => {
  for (const type of ["A", "AAAA"]) expect((await guest.probe(["dns", "udp", "8.8.8.8", name, type], 3000)).ok).toBe(true);
};

/** Says octets over TLS, the parts one after another in records of their own, and tells what came until the other side ended it or was silent. */
const SAY = `
  const [ca, servername] = process.argv.slice(1), parts = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const socket = require("node:tls").connect({ port: 443, host: "${ADDRESS.site4}", servername, ca: require("node:fs").readFileSync(ca), ALPNProtocols: ["http/1.1"] });
  let heard = "", quiet;
  const tell = (end) => { console.log(JSON.stringify({ heard, end })); process.exit(); };
  const rest = () => { clearTimeout(quiet); quiet = setTimeout(tell, heard === "" ? 20000 : 1500, "silence"); };
  socket.setEncoding("latin1");
  socket.on("secureConnect", () => { for (const part of parts) socket.write(Buffer.from(part, "base64")); rest(); });
  socket.on("data", (data) => { heard += data; rest(); });
  socket.on("end", () => tell("end"));
  socket.on("error", (error) => tell(error.code));`;

/** What was heard (latin1), how it ended, and the statuses of HTTP/1.1 in it. */
export interface Said { readonly heard: string; readonly end: string; readonly statuses: number[] }
/** @param parts latin1. */
export async function sayOver(world: World, ca: string, name: string, parts: readonly string[]): Promise<Said> {
  const { stdout, stderr } = await world.guest.run([process.execPath, "-e", SAY, ca, name], { timeoutMs: 60_000, input: JSON.stringify(parts.map((part) => Buffer.from(part, "latin1").toString("base64"))) });
  expect(stderr).toBe("");
  const { heard, end } = JSON.parse(stdout) as { heard: string; end: string };
  return { heard, end, statuses: [...heard.matchAll(/HTTP\/1\.1 (\d+)/g)].map((match) => Number(match[1])) };
}
