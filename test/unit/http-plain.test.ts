/** Plain HTTP (A48, A50, A52, A57): each request judged by its Host, one far side, nothing but HTTP. */
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { httpLimits } from "../../src/tls/http/limits.js";
import type { HttpCounters, RequestFacts } from "../../src/tls/http/passage.js";
import { proxyPlainHttp } from "../../src/tls/http/plain.js";
import { refuse } from "../../src/tls/http/refusal.js";
import { Watch } from "../../src/tls/http/watch.js";
import { Guest, until } from "./http-world.js";

const open: { close(): void }[] = [];
const sockets = new Set<Socket>();
afterEach(() => {
  for (const socket of sockets) socket.destroy();
  for (const one of open.splice(0)) one.close();
});
const keep = (socket: Socket): Socket => {
  sockets.add(socket);
  socket.on("error", () => undefined);
  return socket;
};
async function listen(server: Server): Promise<number> {
  open.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as AddressInfo).port;
}

interface Plain { port: number; counters: HttpCounters; judged: RequestFacts[]; dialled: () => number; seen: () => string; watch: Watch }
async function plain(allowed: readonly string[], options: { address?: string; refuseDial?: boolean } = {}): Promise<Plain> {
  let dialled = 0, seen = "";
  const judged: RequestFacts[] = [];
  const counters: HttpCounters = { requests: 0, refused: {}, upgrades: 0 };
  const watch = new Watch(20);
  const originPort = await listen(createServer((socket) => {
    keep(socket);
    dialled++;
    socket.on("data", (chunk) => {
      seen += chunk.toString("latin1");
      for (const _ of chunk.toString("latin1").matchAll(/\r\n\r\n/g)) socket.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
  }));
  const port = await listen(createServer({ allowHalfOpen: true }, (guest) => {
    keep(guest);
    proxyPlainHttp({
      guest,
      dial: () => new Promise((resolve, reject) => {
        const socket = keep(connect(options.refuseDial === true ? 1 : originPort, "127.0.0.1"));
        socket.once("connect", () => resolve(socket));
        socket.once("error", reject);
      }),
      passage: {
        scheme: "http", name: null, port: 80, address: options.address ?? "192.0.2.1", limits: httpLimits, counters, watch, holds: () => undefined,
        judge: async (request) => {
          judged.push(request);
          await Promise.resolve();
          return allowed.includes(request.host) ? null : refuse(403, "host-denied", undefined, true);
        },
        filter: (request) => (request.fields.some((field) => field.includes("PLACEHOLDER")) ? refuse(403, "secret") : null), refused: () => undefined,
      },
    });
  }));
  return { port, counters, judged, dialled: () => dialled, seen: () => seen, watch };
}
const guestOf = (p: Plain): Guest => new Guest(keep(connect({ port: p.port, host: "127.0.0.1", allowHalfOpen: true })));

describe("plain HTTP", () => {
  it("an allowed host passes, over one connection to the far side", async () => {
    const p = await plain(["a.example", "b.example"]);
    const guest = guestOf(p);
    guest.write("GET /1 HTTP/1.1\r\nHost: A.example\r\n\r\nGET /2 HTTP/1.1\r\nHost: b.example:80\r\n\r\n");
    await guest.until(/ok[^]*ok/);
    expect(p.dialled()).toBe(1);
    expect(p.seen()).toBe("GET /1 HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\nGET /2 HTTP/1.1\r\nHost: b.example:80\r\nConnection: keep-alive\r\n\r\n");
  });
  it("A50: then a denied host: refused, and the connection ends", async () => {
    const p = await plain(["a.example"]);
    const guest = guestOf(p);
    guest.write("GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /3 HTTP/1.1\r\nHost: a.example\r\n\r\n");
    expect((await guest.all()).match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 403"]);
    expect(p.seen()).not.toMatch(/evil|\/3/);
  });
  it("a denied host first: nobody is dialled", async () => {
    const p = await plain(["a.example"]);
    const guest = guestOf(p);
    guest.write("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 403 /);
    expect(p.dialled()).toBe(0);
  });
  it("A57: a placeholder is a violation", async () => {
    const p = await plain(["a.example"]);
    const guest = guestOf(p);
    guest.write("GET / HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer PLACEHOLDER\r\n\r\n");
    await guest.until(/secret/);
    expect(p.seen()).toBe("");
  });
  it.each([["its own address", "192.0.2.1", "192.0.2.1", 200], ["with the port", "192.0.2.1", "192.0.2.1:80", 200], ["another address", "192.0.2.1", "192.0.2.2", 400], ["an IPv6 address", "2001:db8::1", "[2001:DB8:0::1]", 200], ["another spelling of IPv4", "192.0.2.1", "192.0.2.01", 400], ["a number", "192.0.2.1", "3221225985", 400], ["another port", "192.0.2.1", "192.0.2.1:81", 400]])("Host as address: %s", async (_, address, host, status) => {
    const p = await plain([address], { address });
    const guest = guestOf(p);
    guest.write(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
    expect(await guest.until(/\r\n\r\n/)).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  });
  it.each([["TLS", "\x16\x03\x01\x00\x05hello"], ["SSH", "SSH-2.0-OpenSSH_9.2\r\n"], ["SOCKS5", "\x05\x01\x00"], ["h2 prior knowledge (A51)", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ["CONNECT (A52)", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n"], ["CONNECT inside (A52)", "CONNECT [::1]:443 HTTP/1.1\r\nHost: a.example\r\n\r\n"], ["h2c (A51)", "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n"], ["an https target", "GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"], ["absolute form of another", "GET http://evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"], ["HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n"]])("A45, A48: %s goes nowhere", async (_, octets) => {
    const p = await plain(["a.example"]);
    const guest = guestOf(p);
    guest.write(octets);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 4\d\d /);
    expect(p.dialled()).toBe(0);
  });
  it("a far side that does not answer is a 502 with a reason", async () => {
    const p = await plain(["a.example"], { refuseDial: true });
    const guest = guestOf(p);
    guest.write("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 502 [^]*upstream-unreachable[^]*ECONNREFUSED/);
    await until(() => p.watch.size === 0);
  });
});
