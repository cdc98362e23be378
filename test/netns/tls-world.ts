/** A world whose internet has one shared HTTPS address for several names, as a CDN has, with certificates of a root of its own. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { expect } from "vitest";
import { ADDRESS, must, type Namespace, type Service, World } from "../lib/world.mjs";

const NAMES = ["shop.example", "tenant.example", "other.example", "bank.example", "odd.example"] as const;
const ZONE = Object.fromEntries(NAMES.map((name) => [name, { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] }]));

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

/** @param options.script of the origin, instead of ORIGIN; it says "ready" when it listens. */
export async function openWorld({ script = ORIGIN, ...options }: { sibling?: boolean; script?: string } = {}): Promise<{ world: World; origin: Service }> {
  const world = await World.create({ zone: ZONE, tls: true, ...options });
  const key = path.join(world.dir, "root.key"), root = path.join(world.dir, "root.pem");
  await must(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", root, "-days", "2", "-subj", "/CN=Test root", "-addext", "keyUsage=critical,keyCertSign"]);
  const request = path.join(world.dir, "origin.csr"), extensions = path.join(world.dir, "origin.ext");
  writeFileSync(extensions, `subjectAltName=${NAMES.map((name) => `DNS:${name}`).join(",")}\nextendedKeyUsage=serverAuth\n`);
  await must(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path.join(world.dir, "origin.key"), "-out", request, "-subj", "/CN=origin"]);
  await must(["openssl", "x509", "-req", "-in", request, "-CA", root, "-CAkey", key, "-days", "2", "-extfile", extensions, "-out", path.join(world.dir, "origin.pem")]);
  const origin = world.internet.start([process.execPath, "-e", script, world.dir]);
  await origin.line((line) => line === "ready");
  return { world, origin };
}

/** The guest asks for a name and is told where it is. */
export const tell = async (world: World, name: string, guest: Namespace = world.guest): Promise<void> => {
  for (const type of ["A", "AAAA"]) expect((await guest.probe(["dns", "udp", "8.8.8.8", name, type], 3000)).ok).toBe(true);
};
