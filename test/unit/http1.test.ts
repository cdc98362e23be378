/** HTTP/1.1 through the interceptor (A42, A47–A52, TLS.md tests 17–25, 27, 28): raw octets at both ends. */
import { createHash } from "node:crypto";
import { ServerResponse } from "node:http";
import { Transform } from "node:stream";
import type { TLSSocket } from "node:tls";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { ExchangeFilter, RequestFacts } from "../../src/tls/http/passage.js";
import { refuse } from "../../src/tls/http/refusal.js";
import { answering, NAME, until, World, type WorldOptions } from "./http-world.js";

const worlds: World[] = [];
afterEach(async () => { for (const world of worlds.splice(0)) await world.stop(); });
async function world(options: WorldOptions = {}): Promise<World> {
  const made = new World(options);
  worlds.push(made);
  return made.start();
}
const GET = `GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`;
const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

describe("what reaches the far side", () => {
  it("fields keep order, case and doubles; those of one hop are left out, framing is written anew", async () => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`POST /a?b=c HTTP/1.1\r\nhOsT: Origin.TEST.:443\r\nX-b: 1\r\nx-A: 2\r\nX-b: 3\r\nConnection: keep-alive, X-Hop\r\nX-Hop: gone\r\nKeep-Alive: 1\r\nProxy-Authorization: x\r\nTE: gzip, trailers\r\nContent-Length: 5\r\nUpgrade: h2c\r\n\r\nhello`);
    await until(() => w.seen.length === 1 && (w.seen[0] as string).endsWith("hello"));
    expect(w.seen[0]).toBe(`POST /a?b=c HTTP/1.1\r\nhOsT: ${NAME}:443\r\nX-b: 1\r\nx-A: 2\r\nX-b: 3\r\nTE: trailers\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello`);
  });
  it("a POST without a body has a length of none, a GET has none at all", async () => {
    const w = await world({ onOrigin: undefined as never });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    await until(() => (w.seen[0] ?? "").includes("\r\n\r\n"));
    expect(w.seen[0]).toBe(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n`);
  });
  it("chunked stays chunked, without extensions, with its trailers", async () => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`PUT / HTTP/1.1\r\nHost: ${NAME}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n`);
    await until(() => (w.seen[0] ?? "").endsWith("X-Sum: 7\r\n\r\n"));
    expect(w.seen[0]).toBe(`PUT / HTTP/1.1\r\nHost: ${NAME}\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n`);
  });
  it("19: an absolute target of the same host goes out in origin form", async () => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`GET https://${NAME.toUpperCase()}/x?y HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    await until(() => (w.seen[0] ?? "").includes("\r\n\r\n"));
    expect(w.seen[0]).toMatch(/^GET \/x\?y HTTP\/1\.1\r\n/);
  });
  it("two spaces in a request line are one", async () => {
    const w = await world();
    const guest = await w.guest();
    guest.write(GET.replace("GET ", "GET  "));
    await until(() => (w.seen[0] ?? "").includes("\r\n\r\n"));
    expect(w.seen[0]).toMatch(/^GET \/ HTTP\/1\.1\r\n/);
  });
  it("OPTIONS * and methods of WebDAV pass", async () => {
    const w = await world({ onOrigin: undefined as never });
    for (const line of ["OPTIONS *", "PROPFIND /d", "M-SEARCH *"].slice(0, 2)) {
      const guest = await w.guest();
      guest.write(`${line} HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
      await until(() => w.seen.some((seen) => seen.startsWith(`${line} HTTP/1.1\r\n`)));
    }
  });
  it("A47: empty lines before a request change nothing", async () => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`\r\n\r\n${GET}`);
    await until(() => (w.seen[0] ?? "").includes("\r\n\r\n"));
    expect(w.seen[0]).toMatch(/^GET \/ HTTP/);
  });
});

describe("A42, A48, 18, 19: a request for another host is refused and nothing of it reaches the far side", () => {
  const rows: [string, string, number][] = [
    ["another host", `GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n`, 421],
    ["a host below", `GET / HTTP/1.1\r\nHost: x.${NAME}\r\n\r\n`, 421],
    ["two equal hosts", `GET / HTTP/1.1\r\nHost: ${NAME}\r\nHost: ${NAME}\r\n\r\n`, 400],
    ["two hosts", `GET / HTTP/1.1\r\nHost: ${NAME}\r\nhost: evil.test\r\n\r\n`, 400],
    ["a list", `GET / HTTP/1.1\r\nHost: ${NAME}, evil.test\r\n\r\n`, 400],
    ["userinfo", `GET / HTTP/1.1\r\nHost: ${NAME}@evil.test\r\n\r\n`, 400],
    ["userinfo first", `GET / HTTP/1.1\r\nHost: user@${NAME}\r\n\r\n`, 400],
    ["an empty host", `GET / HTTP/1.1\r\nHost:\r\n\r\n`, 400],
    ["another port", `GET / HTTP/1.1\r\nHost: ${NAME}:444\r\n\r\n`, 421],
    ["a port of nothing", `GET / HTTP/1.1\r\nHost: ${NAME}:\r\n\r\n`, 400],
    ["port zero", `GET / HTTP/1.1\r\nHost: ${NAME}:0\r\n\r\n`, 400],
    ["an address", `GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`, 400],
    ["brackets", `GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n`, 400],
    ["a zone", `GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]:443\r\n\r\n`, 400],
    ["a path in it", `GET / HTTP/1.1\r\nHost: ${NAME}/evil\r\n\r\n`, 400],
    ["a percent sign", `GET / HTTP/1.1\r\nHost: origin%2etest\r\n\r\n`, 400],
    ["two final dots", `GET / HTTP/1.1\r\nHost: ${NAME}..\r\n\r\n`, 400],
    ["octets over 127", `GET / HTTP/1.1\r\nHost: or\xedgin.test\r\n\r\n`, 400],
    ["no host at all", `GET / HTTP/1.1\r\n\r\n`, 400],
    ["no host, a body", `POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc`, 400],
    ["no host, an expectation", `POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n`, 400],
    ["no host, an upgrade", `GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`, 400],
    ["no host", `GET / HTTP/1.1\r\nX: y\r\n\r\n`, 400],
    ["HTTP/1.0 without host", `GET / HTTP/1.0\r\n\r\n`, 400],
    ["leading CRLF and another host (A47)", `\r\nGET / HTTP/1.1\r\nHost: evil.test\r\nAuthorization: Bearer PLACEHOLDER\r\n\r\n`, 421],
    ["absolute form of another host", `GET https://evil.test/ HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 421],
    ["absolute form without TLS", `GET http://${NAME}/ HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 421],
    ["absolute form with userinfo", `GET https://${NAME}@evil.test/ HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 400],
    ["absolute form, Host of another", `GET https://${NAME}/ HTTP/1.1\r\nHost: evil.test\r\n\r\n`, 421],
    ["a target without a slash", `GET evil.test HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 400],
    ["a fragment", `GET /#x HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 400],
    ["asterisk of GET", `GET * HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 400],
  ];
  it.each(rows)("%s", async (_, request, status) => {
    const w = await world();
    const guest = await w.guest();
    guest.write(request + GET); // what is smuggled behind must not pass either
    const got = await guest.all();
    expect(got).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(got.match(/HTTP\/1\.1 \d{3} /g)).toHaveLength(1);
    expect(w.seen.join("")).toBe("");
    // Whatever is refused, and by whomever of us, says so in one form.
    expect(got).toMatch(/\r\nContent-Type: application\/json\r\n(.*\r\n)*\r\n\{"error":"enforcer","reason":"[a-z-]+","message":".+"\}\n$/);
    expect(w.refusals).toHaveLength(1);
  });
});

describe("A49, 22: framing that two readers could take differently is refused and nothing reaches the far side", () => {
  const post = (fields: string, body = ""): string => `POST / HTTP/1.1\r\nHost: ${NAME}\r\n${fields}\r\n${body}`;
  const rows: [string, string][] = [
    ["CL and TE", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")],
    ["TE and CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")],
    ["two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello")],
    ["two equal lengths", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")],
    ["a list of lengths", post("Content-Length: 5, 5\r\n", "hello")],
    ["a plus sign", post("Content-Length: +5\r\n", "hello")],
    ["hexadecimal", post("Content-Length: 0x5\r\n", "hello")],
    ["negative", post("Content-Length: -1\r\n")],
    ["huge", post("Content-Length: 99999999999999999999\r\n")],
    ["gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")],
    ["chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")],
    ["two TE", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")],
    ["xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")],
    ["identity", post("Transfer-Encoding: identity\r\n")],
    ["TE in HTTP/1.0", `POST / HTTP/1.0\r\nHost: ${NAME}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`],
    ["Content_Length", post("Content_Length: 5\r\n")],
    ["Transfer_Encoding", post("transfer_encoding: chunked\r\nContent-Length: 5\r\n", "hello")],
    ["space before the colon", post("Content-Length : 5\r\n", "hello")],
    ["a folded line", post("X: a\r\n b\r\nContent-Length: 0\r\n")],
    ["a line without a colon", post("Junk\r\nContent-Length: 0\r\n")],
    ["bare LF", `GET / HTTP/1.1\nHost: ${NAME}\n\n`],
    ["bare CR in a value", post("X: a\rHost: evil.test\r\nContent-Length: 0\r\n")],
    ["NUL in a value", post("X: a\0b\r\nContent-Length: 0\r\n")],
    ["HTTP/0.9", `GET /\r\n\r\n`],
    ["HTTP/1.2", `GET / HTTP/1.2\r\nHost: ${NAME}\r\n\r\n`],
    ["HTTP/2.0", `GET / HTTP/2.0\r\nHost: ${NAME}\r\n\r\n`],
    ["a prior-knowledge preface (A51)", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ["a method of lower case", `get / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`],
    ["a space in the target", `GET /a b HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`],
    ["a TLS record", "\x16\x03\x01\x02\x00"],
    ["Connection that names Host", post("Connection: host\r\nContent-Length: 0\r\n")],
    ["Connection that names Authorization", post("Connection: close, Authorization\r\nContent-Length: 0\r\n")],
    ["a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n")],
  ];
  it.each(rows)("%s", async (_, request) => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`${request}GET /denied HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    const got = await guest.all();
    expect(got).toMatch(/^HTTP\/1\.1 400 /);
    expect(got.match(/HTTP\/1\.1 \d{3} /g)).toHaveLength(1);
    expect(w.seen.join("")).toBe("");
    expect(w.refusals.length).toBe(1);
  });
  it.each([["size of hexadecimal prefix", "0x5\r\nhello\r\n0\r\n\r\n"], ["a plus sign", "+5\r\nhello\r\n0\r\n\r\n"], ["a bare LF", "5\nhello\r\n0\r\n\r\n"], ["a bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"], ["no CRLF after the data", "5\r\nhelloXX0\r\n\r\n"], ["a trailer that is Host", "5\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n"], ["a trailer that authorises", "0\r\nAuthorization: Bearer PLACEHOLDER\r\n\r\n"]])("a chunk with %s: the far side never sees the end of the request", async (_, body) => {
    const w = await world();
    const guest = await w.guest();
    guest.write(`${post("Transfer-Encoding: chunked\r\n")}`);
    guest.write(`${body}GET /denied HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 400 /);
    await until(() => w.origins.every((socket) => socket.destroyed));
    expect(w.seen.join("")).not.toMatch(/0\r\n\r\n$|denied|evil|PLACEHOLDER/);
  });
  it("25: a head of more than 64 KiB is 431, more than 256 fields too", async () => {
    const w = await world();
    for (const fields of [`X: ${"a".repeat(66_000)}\r\n`, "X: a\r\n".repeat(257)]) {
      const guest = await w.guest();
      guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n${fields}\r\n`);
      expect(await guest.all()).toMatch(/^HTTP\/1\.1 431 /);
    }
    expect(w.seen.join("")).toBe("");
  });
});

describe("23, A51, A52: no other protocol inside", () => {
  const rows: [string, string, number][] = [
    ["TRACE", `TRACE / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 405],
    ["CONNECT of another host", `CONNECT evil.test:443 HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 405],
    ["CONNECT of this host", `CONNECT ${NAME}:443 HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`, 405],
    ["CONNECT of the host itself", `CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: ${NAME}\r\n\r\nGET / HTTP/1.1\r\n\r\n`, 405],
    ["h2c", `GET / HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n`, 400],
    ["an upgrade list", `GET / HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\n`, 400],
    ["a WebSocket with a body", `GET / HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\nabc`, 400],
    ["a WebSocket by POST", `POST / HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\n`, 400],
    ["a WebSocket of another host", `GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\n`, 421],
    ["an expectation", `POST / HTTP/1.1\r\nHost: ${NAME}\r\nExpect: x\r\nContent-Length: 3\r\n\r\nabc`, 417],
    ["an expectation beside the known one", `POST / HTTP/1.1\r\nHost: ${NAME}\r\nExpect: 100-continue, x\r\nContent-Length: 3\r\n\r\nabc`, 417],
  ];
  it.each(rows)("%s is refused", async (_, request, status) => {
    const w = await world();
    const guest = await w.guest();
    guest.write(request);
    expect(await guest.all()).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(w.seen.join("")).toBe("");
  });
});

describe("20, A50: several requests of one connection", () => {
  it("the first is served, the second for another host refused, the third never read", async () => {
    const w = await world({ onOrigin: answering([OK, OK, OK]) });
    const guest = await w.guest();
    guest.write(`${GET}GET /2 HTTP/1.1\r\nHost: evil.test\r\nAuthorization: PLACEHOLDER\r\n\r\n${GET}`);
    const got = await guest.all();
    expect(got.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 421"]);
    expect(w.counters.requests).toBe(2);
  });
  it("answers come in the order of the requests, one request at a time", async () => {
    const seen: string[] = [];
    const w = await world({ onOrigin: (socket) => {
      socket.on("data", (chunk: Buffer) => {
        const text = chunk.toString("latin1");
        seen.push(text);
        const path = /^GET (\S+)/.exec(text)?.[1] as string;
        setTimeout(() => socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${path.length}\r\n\r\n${path}`), path === "/0" ? 20 : 0);
      });
    } });
    const guest = await w.guest();
    guest.write(Array.from({ length: 100 }, (_, i) => `GET /${i} HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`).join(""));
    await guest.until(/\/99$/);
    expect(guest.got.match(/\r\n\r\n\/\d+/g)).toEqual(Array.from({ length: 100 }, (_, i) => `\r\n\r\n/${i}`));
    expect(seen).toHaveLength(100); // each segment of the far side holds one request
  });
  it("rubbish behind a good request: that one is answered, then 400", async () => {
    const w = await world({ onOrigin: answering([OK]) });
    const guest = await w.guest();
    guest.write(`${GET}\x01\x02\x03 rubbish\r\n\r\n`);
    expect((await guest.all()).match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 400"]);
  });
  it("a policy that changed holds for the next request", async () => {
    let denied = false;
    const w = await world({ onOrigin: answering([OK, OK]), judge: () => (denied ? refuse(403, "policy", undefined, true) : null) });
    const guest = await w.guest();
    guest.write(GET);
    await guest.until(/ok$/);
    denied = true;
    guest.write(GET);
    expect((await guest.all()).match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 403"]);
  });
  it("a refusal by a rule leaves the connection open, its body is not passed on", async () => {
    const w = await world({ onOrigin: answering([OK]), judge: (request) => (request.method === "POST" ? refuse(403, "rule-method") : null) });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: 5\r\n\r\nhello${GET}`);
    await guest.until(/ok$/);
    expect(guest.got.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 403", "HTTP/1.1 200"]);
  });
});

describe("a request that is refused while its body comes", () => {
  it("is read to its end: a guest that writes first and reads then finds the answer, and the connection ends", async () => {
    const w = await world({ onOrigin: answering([OK]), limits: { lingerMs: 100_000 } });
    const guest = await w.guest();
    guest.socket.pause();
    const size = 20_000_000;
    guest.write(`POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: ${size}\r\n\r\n`);
    await new Promise<void>((resolve) => { guest.socket.write(Buffer.alloc(size), () => resolve()); guest.socket.once("close", () => resolve()); });
    guest.socket.resume();
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 421 [^]*"host-mismatch"/);
    expect(w.seen.join("")).toBe("");
  });
  it("is left when it does not end", async () => {
    const w = await world({ onOrigin: answering([OK]), limits: { lingerMs: 100 } });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: 5\r\n\r\n`);
    await guest.until("HTTP/1.1 421");
    await guest.closed;
    await until(() => w.watch.size === 0);
  });
});

describe("27: Expect", () => {
  const head = `POST / HTTP/1.1\r\nHost: ${NAME}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n`;
  it("100 comes from the far side, and the body goes only then", async () => {
    let origin: TLSSocket | undefined, seen = "";
    const w = await world({ onOrigin: (socket) => { origin = socket; socket.on("data", (chunk: Buffer) => { seen += chunk.toString("latin1"); }); } });
    const guest = await w.guest();
    guest.write(head);
    await until(() => seen.includes("\r\n\r\n"));
    expect(seen).toContain("Expect: 100-continue\r\n");
    expect(guest.got).toBe("");
    origin?.write("HTTP/1.1 100 Continue\r\n\r\n");
    await guest.until("HTTP/1.1 100 Continue\r\n\r\n");
    guest.write("hello");
    await until(() => seen.endsWith("\r\n\r\nhello"));
    origin?.write(OK);
    await guest.until(/ok$/);
  });
  it.each([417, 401])("a final %i ends it: the body is never sent", async (status) => {
    let seen = "";
    const w = await world({ onOrigin: (socket) => socket.on("data", (chunk: Buffer) => { seen += chunk.toString("latin1"); socket.write(`HTTP/1.1 ${status} No\r\nContent-Length: 0\r\n\r\n`); }) });
    const guest = await w.guest();
    guest.write(head);
    expect(await guest.all()).toMatch(new RegExp(`^HTTP/1.1 ${status} No\r\n`));
    guest.write("hello");
    expect(seen).not.toContain("hello");
  });
  it("a guest that does not wait is not held up", async () => {
    const w = await world({ onOrigin: (socket) => {
      let seen = "";
      socket.on("data", (chunk: Buffer) => { seen += chunk.toString("latin1"); if (seen.endsWith("hello")) socket.write(OK); });
    } });
    const guest = await w.guest();
    guest.write(head);
    guest.write("hello");
    await guest.until(/ok$/);
  });
});

describe("28: answers as they were", () => {
  const exchange = async (answer: string, request = GET): Promise<string> => {
    // The answer to a second request stands behind all of the first.
    const w = await world({ onOrigin: answering([answer, "HTTP/1.1 299 Behind\r\nContent-Length: 0\r\n\r\n"]) });
    const guest = await w.guest();
    guest.write(request + GET);
    const got = await guest.until("HTTP/1.1 299 Behind");
    return got.slice(0, got.indexOf("HTTP/1.1 299 Behind"));
  };
  it("fields keep order, case and doubles; a Date is not invented", async () => {
    expect(await exchange("HTTP/1.1 298 Odd Phrase\r\nx-B: 1\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 2\r\n\r\nok"))
      .toBe("HTTP/1.1 298 Odd Phrase\r\nx-B: 1\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok");
  });
  it("30: Alt-Svc is taken out", async () => {
    expect(await exchange("HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":443\"\r\nContent-Length: 2\r\n\r\nok")).not.toMatch(/alt-svc/i);
  });
  it("HEAD, 204 and 304", async () => {
    expect(await exchange("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", GET.replace("GET", "HEAD"))).toBe("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nConnection: keep-alive\r\n\r\n");
    expect(await exchange("HTTP/1.1 204 No Content\r\nX: y\r\n\r\n")).toBe("HTTP/1.1 204 No Content\r\nX: y\r\nConnection: keep-alive\r\n\r\n");
    expect(await exchange("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 7\r\n\r\n")).toBe("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n");
  });
  it("chunks with trailers", async () => {
    expect(await exchange("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"))
      .toBe("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n");
  });
  it("103 Early Hints come before the answer", async () => {
    const got = await exchange(`HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload; as=style\r\nLink: </b.js>; rel=preload\r\n\r\n${OK}`);
    expect(got).toMatch(/^HTTP\/1\.1 103 Early Hints\r\n[^]*<\/a\.css>[^]*<\/b\.js>[^]*\r\n\r\nHTTP\/1\.1 200 OK\r\n/);
  });
  it("A54: interim answers pass as they came, also those whose Link takes Node's own expression for ever, and without a length", async () => {
    const started = vi.spyOn(ServerResponse.prototype, "writeEarlyHints");
    // The first takes that one twice as long with each parameter: forty, and nobody would be served again.
    const odd = [`<a>${";x=y".repeat(40)}"`, `<a>${";x=\"y\"".repeat(40)} "`, `<a>${";==".repeat(40)}"`, "<a>;rel=a=b", "a", "<a>; rel=preload, <b>; rel=preload"];
    const interim = [`HTTP/1.1 103 Early Hints\r\n${odd.map((value) => `Link: ${value}\r\n`).join("")}\r\n`, "HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nX-a: 1\r\nX-A: 2\r\n\r\n", "HTTP/1.1 199 Odd\r\nX: y\r\n\r\n"];
    expect(await exchange(`${interim.join("")}HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nAlt-Svc: h3\r\nX: y\r\n\r\n${OK}`)).toBe(`${interim.join("")}HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n${await exchange(OK)}`);
    expect(started).not.toHaveBeenCalled();
    vi.restoreAllMocks();
  });
  it("server-sent events pass one by one", async () => {
    let origin: TLSSocket | undefined;
    const w = await world({ onOrigin: (socket) => {
      origin = socket;
      socket.once("data", () => socket.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"));
    } });
    const guest = await w.guest();
    guest.write(GET);
    await guest.until(/event-stream\r\n[^]*\r\n\r\n$/); // the head alone, before any event
    for (let i = 0; i < 3; i++) {
      origin?.write(`data: ${i}\n\n`);
      await guest.until(`data: ${i}\n\n`);
    }
    origin?.end();
    expect(await guest.all()).toMatch(/\r\n0\r\n\r\n$/);
  });
  it("a body that breaks off breaks off at the guest", async () => {
    for (const answer of ["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]) {
      const w = await world({ onOrigin: (socket) => socket.once("data", () => socket.end(answer)) });
      const guest = await w.guest();
      guest.write(GET);
      const got = await guest.all();
      expect(got).not.toMatch(/0\r\n\r\n$/);
    }
  });
  it("a guest of HTTP/1.0 gets no chunks", async () => {
    const w = await world({ onOrigin: answering(["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]) });
    const guest = await w.guest();
    guest.write(`GET / HTTP/1.0\r\nHost: ${NAME}\r\n\r\n`);
    expect(await guest.all()).toMatch(/\r\n\r\nok$/);
    expect(guest.got).not.toContain("chunked");
  });
});

describe("answers that are refused", () => {
  const rows: [string, string][] = [
    ["CL and TE", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
    ["gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"],
    ["not HTTP", "SSH-2.0-OpenSSH\r\n"],
    ["an unasked 101 (A51)", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"],
    ["a head of 70 KB", `HTTP/1.1 200 OK\r\nX: ${"a".repeat(70_000)}\r\n\r\n`],
  ];
  it.each(rows)("%s: 502, and the connection ends", async (_, answer) => {
    const w = await world({ onOrigin: answering([answer]) });
    const guest = await w.guest();
    guest.write(GET);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 502 /);
  });
  it("one that comes before any request: the first is told so at once, and it is nobody's answer", async () => {
    const w = await world({ onOrigin: (socket) => { socket.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"); } });
    const guest = await w.guest();
    await until(() => w.origins[0]?.destroyed === true);
    guest.write(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 502 [^]*spoke before it was asked/);
    expect(guest.got).not.toContain("evil");
  });
  it("a second answer that nobody asked for never becomes the next request's", async () => {
    const w = await world({ onOrigin: answering([`${OK}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison`]) });
    const guest = await w.guest();
    guest.write(GET);
    await guest.until(/ok$/);
    await new Promise((resolve) => setTimeout(resolve, 30));
    guest.write(GET);
    expect(await guest.all()).not.toContain("poison");
  });
});

describe("24, A51: WebSocket", () => {
  const key = "dGhlIHNhbXBsZSBub25jZQ==";
  const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  const ask = `GET /chat HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n\r\n`;
  const agree = `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`;
  it("frames pass both ways after 101, and half-close too", async () => {
    let origin: TLSSocket | undefined, seen = "";
    const w = await world({ onOrigin: (socket) => {
      origin = socket;
      socket.on("data", (chunk: Buffer) => {
        seen += chunk.toString("latin1");
        if (seen.endsWith("\r\n\r\n")) socket.write(agree);
      });
    } });
    const guest = await w.guest();
    guest.write(ask);
    await guest.until(/Accept: \S+\r\n\r\n$/);
    guest.write("\x82\x7f\0\0\0\0\0\0\0\x05hello");
    await until(() => seen.endsWith("hello"));
    origin?.write("\x81\x05world");
    await guest.until(/world$/);
    guest.socket.end();
    await until(() => origin?.readableEnded === true || origin?.destroyed === true);
    expect(w.counters.upgrades).toBe(1);
  });
  it("octets before the consent wait; a refusal then ends the connection, and none of them reach the far side", async () => {
    let seen = "";
    const w = await world({ onOrigin: (socket) => socket.on("data", (chunk: Buffer) => { seen += chunk.toString("latin1"); socket.write(OK); }) });
    const guest = await w.guest();
    guest.write(`${ask}GET /denied HTTP/1.1\r\nHost: evil.test\r\n\r\n`);
    const got = await guest.all();
    expect(got).not.toContain("200 OK");
    expect(seen).not.toMatch(/denied|evil/);
  });
  it("a refusal is passed on, and the connection ends", async () => {
    const w = await world({ onOrigin: answering(["HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"]) });
    const guest = await w.guest();
    guest.write(ask);
    expect(await guest.all()).toBe("HTTP/1.1 403 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
  });
  it.each([["another protocol", agree.replace("Upgrade: websocket", "Upgrade: x")], ["a wrong accept", agree.replace(accept, "AAAA")]])("a 101 with %s makes no tunnel", async (_, answer) => {
    let seen = "";
    const w = await world({ onOrigin: (socket) => socket.on("data", (chunk: Buffer) => { seen += chunk.toString("latin1"); socket.write(answer); }) });
    const guest = await w.guest();
    guest.write(ask);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 502 /);
    expect(w.counters.upgrades).toBe(0);
    expect(seen.match(/HTTP\/1\.1/g)).toHaveLength(1);
  });
});

describe("25: own time limits", () => {
  it("a head that does not end is cut, whatever comes octet by octet", async () => {
    const w = await world({ limits: { headMs: 200 } });
    const guest = await w.guest();
    guest.write("GET / HTTP/1.1\r\nHost:");
    const dribble = setInterval(() => { if (guest.socket.writable) guest.write("a"); }, 20);
    const got = await guest.all();
    clearInterval(dribble);
    expect(got).toMatch(/^HTTP\/1\.1 408 /);
    expect(w.seen.join("")).toBe("");
  });
  it("a second head too; a request under way is not cut by it", async () => {
    const w = await world({ limits: { headMs: 100 }, onOrigin: (socket) => socket.on("data", () => setTimeout(() => socket.write(OK), 400)) });
    const guest = await w.guest();
    guest.write(GET);
    await guest.until(/ok$/);
    guest.write("GET / HT");
    expect(await guest.all()).toMatch(/ok[^]*408/);
  });
  it("an idle connection, a body that stalls, and a guest that does not read", async () => {
    const idle = await world({ limits: { idleMs: 50 } });
    await (await idle.guest()).all();
    const stall = await world({ limits: { stallMs: 50 } });
    const guest = await stall.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: 10\r\n\r\nab`);
    await guest.all();
    await until(() => stall.origins.every((socket) => socket.destroyed));
  });
  it("nothing is left when connections have ended", async () => {
    const w = await world({ onOrigin: answering([OK]) });
    const guest = await w.guest();
    guest.write(GET);
    await guest.until(/ok$/);
    guest.socket.destroy();
    await until(() => w.watch.size === 0 && w.origins.every((socket) => socket.destroyed));
  });
});

describe("large bodies", () => {
  it("16 MB each way, held back where the other side does not read", async () => {
    const SIZE = 16 << 20, block = Buffer.alloc(1 << 16, "x");
    let got = 0;
    const w = await world({ onOrigin: (socket) => {
      let head = true;
      socket.on("data", (chunk: Buffer) => {
        got += chunk.length;
        if (head) {
          head = false;
          got -= chunk.indexOf("\r\n\r\n") + 4;
        }
        if (got < SIZE) return;
        socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${SIZE}\r\n\r\n`);
        let sent = 0;
        const more = (): void => {
          while (sent < SIZE) {
            sent += block.length;
            if (!socket.write(block)) {
              socket.once("drain", more);
              return;
            }
          }
        };
        more();
      });
    } });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: ${SIZE}\r\n\r\n`);
    let back = 0;
    guest.socket.removeAllListeners("data");
    guest.socket.on("data", (chunk: Buffer) => { back += chunk.length; });
    for (let sent = 0; sent < SIZE; sent += block.length) if (!guest.socket.write(block)) await new Promise((resolve) => guest.socket.once("drain", resolve));
    await until(() => back > SIZE);
    expect(got).toBe(SIZE);
  });
  it("an answer before the end of a large request: the rest goes on, and the connection is good for the next", async () => {
    const SIZE = 4 << 20;
    let got = 0;
    const w = await world({ limits: { headMs: 200 }, onOrigin: (socket) => {
      socket.once("data", () => socket.write(OK));
      socket.on("data", (chunk: Buffer) => {
        got += chunk.length;
        if (chunk.toString("latin1").includes("GET /next")) socket.write(OK);
      });
    } });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: ${SIZE}\r\n\r\n`);
    await guest.until(/ok$/);
    const block = Buffer.alloc(1 << 16, "x");
    for (let sent = 0; sent < SIZE; sent += block.length) {
      if (!guest.socket.write(block)) await new Promise((resolve) => guest.socket.once("drain", resolve));
      if (sent === SIZE / 2) await new Promise((resolve) => setTimeout(resolve, 500)); // longer than a head may take
    }
    await until(() => got > SIZE);
    guest.write(GET.replace("/ ", "/next "));
    await guest.until(/ok[^]*ok$/);
  });
  it("the next request waits for one that was answered while its body is still looked through; a far side that goes away then ends the connection, and nothing else (A50)", async () => {
    const thrown: unknown[] = [], caught = (error: unknown): void => { thrown.push(error); };
    process.on("uncaughtException", caught);
    try {
      for (const goes of ["stays", "ends", "resets"]) {
        const seen: string[] = [];
        let letGo = (): void => undefined;
        const slow = (request: RequestFacts): ExchangeFilter => ({
          target: request.target, fields: request.fields, bodyLength: null, requestTrailers: (fields) => [...fields], responseHead: (_status, phrase, fields) => ({ phrase, fields: [...fields] }), responseBody: () => null, responseTrailers: (fields) => [...fields], done: () => undefined,
          body: request.body.kind === "none" ? null : new Transform({ transform: (chunk, _encoding, done) => { letGo = () => done(null, chunk); } }),
        });
        const w = await world({ filter: slow, onOrigin: answering([OK, OK], seen) });
        const guest = await w.guest();
        guest.write(`POST /1 HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: 4\r\n\r\nbody${GET.replace("/", "/2")}`);
        await guest.until("ok");
        // The second has been taken, and waits.
        await until(() => w.counters.requests === 2);
        await new Promise((resolve) => setImmediate(resolve));
        if (goes === "stays") {
          letGo();
          await guest.until(/ok[^]*ok/);
        } else {
          if (goes === "ends") w.origins[0]?.destroy();
          else w.raws[0]?.resetAndDestroy();
          await guest.closed;
        }
        expect(seen.join("")).toContain("POST /1");
        expect(seen.join("").includes("GET /2")).toBe(goes === "stays");
      }
      expect(thrown).toEqual([]);
    } finally {
      process.off("uncaughtException", caught);
    }
  });
  it("an answer before the end of a request whose far side then goes away reaches the guest", async () => {
    const w = await world({ onOrigin: (socket) => socket.once("data", () => socket.end("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")) });
    const guest = await w.guest();
    guest.write(`POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Length: 1000000\r\n\r\n`);
    guest.write("x".repeat(10_000));
    await guest.until(/413[^]*no$/);
    await guest.closed;
    await until(() => w.watch.size === 0);
  });
  it("a guest that does not read holds the far side back", async () => {
    let sent = 0, stopped = false;
    const block = Buffer.alloc(1 << 16, "x");
    const w = await world({ onOrigin: (socket) => socket.once("data", () => {
      socket.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
      const more = (): void => {
        for (;;) {
          socket.write("10000\r\n");
          const on = socket.write(block);
          socket.write("\r\n");
          sent += block.length;
          if (!on) {
            stopped = true;
            socket.once("drain", () => { stopped = false; more(); });
            return;
          }
        }
      };
      more();
    }) });
    const guest = await w.guest();
    guest.socket.pause();
    guest.write(GET);
    let last = -1;
    await until(() => sent > 0);
    while (last !== sent || !stopped) {
      last = sent;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(sent).toBeLessThan(32 << 20);
  });
});

describe("one side goes away in the middle of a body", () => {
  const endless = (socket: TLSSocket): void => {
    const block = Buffer.alloc(1 << 16, "x");
    socket.once("data", () => {
      socket.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
      const more = (): void => {
        while (!socket.destroyed) {
          socket.write("10000\r\n");
          const on = socket.write(block);
          socket.write("\r\n");
          if (!on) {
            socket.once("drain", more);
            return;
          }
        }
      };
      more();
    });
  };
  it.each(["guest", "far side", "both"].flatMap((who) => [true, false].map((reads) => [who, reads] as const)))("%s, and the guest reads: %s", async (who, reads) => {
    for (const delay of [0, 5, 30]) {
      const w = await world({ onOrigin: endless });
      const guest = await w.guest();
      if (!reads) guest.socket.pause();
      guest.write(GET);
      await until(() => w.origins.length > 0);
      await new Promise((resolve) => setTimeout(resolve, delay));
      if (who !== "far side") guest.socket.destroy();
      if (who !== "guest") w.origins[0]?.destroy();
      guest.socket.resume();
      await until(() => w.watch.size === 0 && w.origins.every((socket) => socket.destroyed));
    }
  });
});
