/** The method that a request's body names, where rules speak of methods (A47): every way of writing it, however it is split. */
import { Readable } from "node:stream";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { guardMethods } from "../../src/tls/http/form.js";
import { isRefusal, type RequestFacts } from "../../src/tls/http/passage.js";
import { refuse, type Refusal } from "../../src/tls/http/refusal.js";
import { SandboxSecrets } from "../../src/secrets/sandbox-secrets.js";
import { stopOf } from "../../src/secrets/exchange.js";
import { secretSpec } from "../lib/secrets.js";
import { answering, NAME, until, World, type WorldOptions } from "./http-world.js";

const mayBe = (method: string): Refusal | null => (["GET", "POST"].includes(method) ? null : refuse(403, "rule-method"));
const FORM = "application/x-www-form-urlencoded", MULTIPART = "multipart/form-data; boundary=b", JSONS = "application/json; charset=utf-8";
const facts = (type: string | null, body: RequestFacts["body"], ...fields: string[]): RequestFacts => ({ host: NAME, method: "POST", target: "/", fields: [...(type === null ? [] : ["Content-Type", type]), ...fields], body });

/** What becomes of a body in pieces: null, it is refused; else what came out. */
async function through(type: string | null, pieces: readonly string[]): Promise<string | null> {
  const filter = guardMethods(null, facts(type, { kind: "chunked" }), mayBe, {});
  if (filter === null || isRefusal(filter)) throw new Error("not looked through");
  const body = filter.body as NonNullable<typeof filter.body>;
  const out: Buffer[] = [];
  const over = new Promise<string | null>((resolve, reject) => {
    body.on("data", (piece: Buffer) => out.push(piece));
    body.once("end", () => resolve(Buffer.concat(out).toString("latin1")));
    body.once("error", (error) => (stopOf(error).reason === "rule-method" ? resolve(null) : reject(error)));
  });
  for (const piece of pieces) {
    if (body.destroyed) break;
    await new Promise<void>((resolve) => body.write(Buffer.from(piece, "latin1"), () => resolve()));
  }
  if (!body.destroyed) body.end();
  return over;
}
const part = (head: string, value: string): string => `--b\r\n${head}\r\n\r\n${value}\r\n`;
const multipart = (head: string, value: string): string => `${part('Content-Disposition: form-data; name="a"', "1")}${part(head, value)}--b--\r\n`;

const named: [string, string | null, string][] = [
  ["a form", FORM, "_method=DELETE"], ["behind others", FORM, "a=b&c&_method=delete&d=e"], ["in escapes", `${FORM}; charset=utf-8`, "a=b&%5F%6dethod=%44ELETE"], ["behind a semicolon", FORM, "a=b;_method=PUT"],
  ["twice, the second time another", FORM, "_method=GET&_method=PUT"], ["as PHP reads names", FORM, "a=b&++%20.method=DELETE"], ["as PHP reads them too", FORM, "%5Bmethod=DELETE"], ["up to a NUL", FORM, "_method%00x=DELETE"],
  ["a value that is too long", FORM, `_method=${"%20".repeat(400)}DELETE`], ["a POST of no type", null, "_method=DELETE"], ["behind a long field", FORM, `a=${"x".repeat(9_000)}&_method=DELETE`], ["behind many blanks", FORM, `a=&${"+".repeat(9_000)}_method=DELETE`],
  ["a part", MULTIPART, multipart('Content-Disposition: form-data; name="_method"', "DELETE")], ["a part without quotes, line feeds alone", MULTIPART, multipart("content-disposition:form-data;name=_method", "delete").replaceAll("\r", "")],
  ["a folded head", MULTIPART, multipart('Content-Disposition: form-data;\r\n  filename="x";\r\n\tname="_method"\r\nContent-Type: text/plain', "PUT")], ["in RFC 5987's way", MULTIPART, multipart("Content-Disposition: form-data; name*=utf-8''%5fmethod", "PUT")],
  ["with quoted pairs", MULTIPART, multipart('Content-Disposition: form-data; name="\\_m\\ethod"', "PUT")], ["a line end before the value", MULTIPART, multipart('Content-Disposition: form-data; name="_method"', "\r\nDELETE\r\n")],
  ["a part without an end", MULTIPART, multipart('Content-Disposition: form-data; name="_method"', "DELETE").split("\r\n--b--")[0] as string], ["a head that does not end", MULTIPART, part(`Content-Disposition: form-data; x="${"x".repeat(20_000)}"; name="_method"`, "PUT")],
  ["JSON", JSONS, '{"a":1,"_method":"DELETE"}'], ["JSON in escapes and blanks", JSONS, '{"\\u005f\\u006Dethod" \r\n:\t"\\u0044elete"}'], ["JSON with a wide gap", JSONS, `{"_method":${" ".repeat(5_000)}"DELETE"}`],
];
const others: [string, string, string][] = [
  ["an allowed one", FORM, "_method=post&a=b"], ["an empty one", FORM, "_method=&a=b"], ["no value", FORM, "_method&a=b"], ["other names", FORM, "method=DELETE&x_method=DELETE&a_methods=b&_methods=PUT&__method=PUT"], ["as a value", FORM, "a=_method=DELETE"],
  ["an allowed part", MULTIPART, multipart('Content-Disposition: form-data; name="_method"', "POST")], ["other parts", MULTIPART, multipart('Content-Disposition: form-data; name="_methods"; filename="_method"', "DELETE")],
  ["a file that speaks of it", MULTIPART, multipart('Content-Disposition: form-data; name="f"; filename="a.erb"', '<input type="hidden" name="_method" value="delete">\r\n')],
  ["a long line of a file", MULTIPART, multipart('Content-Disposition: form-data; name="f"', `x("Content-Disposition: attachment");${"y".repeat(40_000)}`)],
  ["JSON that says another's methods", JSONS, '{"_method":"getUser","a":"_method","b":"\\"_method\\":\\"DELETE\\""}'], ["JSON with something else", JSONS, '{"_method":5,"_methods":"DELETE","x":{"_method":null}}'],
];

describe("A47: _method in a body", () => {
  it.each(named)("%s: refused, in one piece, octet by octet, and cut anywhere", async (_what, type, body) => {
    expect(await through(type, [body])).toBeNull();
    expect(await through(type, body.match(/[^]{1,977}/g) as string[])).toBeNull();
    if (body.length < 2_000) {
      expect(await through(type, [...body])).toBeNull();
      for (let at = 1; at < body.length; at++) expect(await through(type, [body.slice(0, at), body.slice(at)]), `cut at ${at}`).toBeNull();
    }
  });
  it.each(others)("%s: passes as it came", async (_what, type, body) => {
    expect(await through(type, [body])).toBe(body);
    if (body.length < 2_000) expect(await through(type, [...body])).toBe(body);
  });
  it("any octets pass as they came, however they are cut", async () => {
    const words = fc.array(fc.oneof(fc.constantFrom("_metho", "%5", "&", "=", ";", "+", "\r\n", "\r\n\r\n", "--b", "Content-Disposition: form-data; ", 'name="', '"_metho"', ":", '"'), fc.uint8Array({ maxLength: 8 }).map((octets) => Buffer.from(octets).toString("latin1"))), { maxLength: 30 });
    await fc.assert(fc.asyncProperty(fc.constantFrom(FORM, MULTIPART, JSONS), words, async (type, pieces) => {
      const body = pieces.join("");
      expect(await through(type, pieces)).toBe(body);
    }), { numRuns: 150 });
  });
  it.each([["fields", FORM, "&_"], ["blanks", FORM, "+"], ["words", MULTIPART, "content-disposition:"], ["words in one head", MULTIPART, "content-disposition:\n"], ["blanks in a head", MULTIPART, `x content-disposition: ;name=${" ".repeat(16_000)}x\r\n\r\n`], ["quotes", MULTIPART, `x content-disposition: ${";name='".repeat(2_000)}\r\n\r\n`], ["names", JSONS, '"_method":'], ["names, of text", JSONS, '"_method":"x'], ["backslashes", JSONS, "\\u005f\\"]])("A54: a body of many %s is read in little time", async (_what, type, some) => {
    const body = some.repeat(Math.ceil(1_000_000 / some.length));
    const before = process.cpuUsage().user;
    // Some are refused; what is looked at is what it takes.
    await through(type, body.match(/[^]{1,65536}/g) as string[]);
    expect(process.cpuUsage().user - before).toBeLessThan(10_000_000);
  });
  it("other bodies, and where nothing is said of methods, are nobody's business", () => {
    expect(guardMethods(null, facts("text/plain", { kind: "chunked" }), mayBe, {})).toBeNull();
    expect(guardMethods(null, facts(FORM, { kind: "none" }), mayBe, {})).toBeNull();
    expect(guardMethods(null, facts(FORM, { kind: "chunked" }), null, {})).toBeNull();
    expect(guardMethods(null, facts(JSONS, { kind: "chunked" }, "Content-Encoding", "gzip"), mayBe, {})).toBeNull();
    expect(guardMethods(null, facts(FORM, { kind: "chunked" }, "Content-Encoding", "gzip"), mayBe, {})).toMatchObject({ status: 415, reason: "rule-method" });
  });
  it("a short body is held until it has been looked through", async () => {
    const filter = guardMethods(null, facts(FORM, { kind: "length", octets: 14 }), mayBe, {});
    if (filter === null || isRefusal(filter)) throw new Error("not looked through");
    expect(await filter.whole?.(Readable.from([Buffer.from("_method=DELETE")]))).toMatchObject({ status: 403, reason: "rule-method", close: false });
  });
});

describe("A47: on the wire", () => {
  const VALUE = "sk-real-value-0123456789abcdef", OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
  const worlds: World[] = [];
  afterEach(async () => { for (const world of worlds.splice(0)) await world.stop(); });
  async function world(secrets: SandboxSecrets | null, options: WorldOptions = {}): Promise<World> {
    const made = new World({ ...options, filter: (request) => {
      const found = secrets?.exchange({ labels: NAME.split("."), port: 443, intercepted: true, verified: true, pinned: true }, request) ?? null;
      // As the service does: a source may be asked first.
      return Promise.resolve(found).then((filter) => (isRefusal(filter) ? filter : guardMethods(filter, request, mayBe, made))) as never;
    } });
    worlds.push(made);
    return made.start();
  }
  const post = (type: string, length: number | null): string => `POST / HTTP/1.1\r\nHost: ${NAME}\r\nContent-Type: ${type}\r\n${length === null ? "Transfer-Encoding: chunked" : `Content-Length: ${length}`}\r\n\r\n`;

  it("a short one: 403, nothing leaves, and the connection goes on", async () => {
    const answers: string[] = [];
    const w = await world(null, { onOrigin: answering([OK], answers) });
    const guest = await w.guest();
    guest.write(`${post(FORM, 14)}_method=`);
    guest.write("DELETE");
    expect(await guest.until(/\}\n$/)).toMatch(/^HTTP\/1\.1 403 [^]*rule-method/);
    guest.write(`${post(FORM, 12)}_method=POST`);
    await guest.until("ok");
    expect(answers.join("").match(/POST/g)).toHaveLength(2); // of one request: its method, and what its body says
    expect(answers.join("")).toContain("Content-Length: 12\r\n");
    expect(w.refusals).toEqual(["rule-method"]);
  });
  it("what is kept of a part whose head goes on is counted", async () => {
    const w = await world(null), guest = await w.guest();
    guest.write(`${post(MULTIPART, null)}3000\r\nContent-Disposition:${"x".repeat(0x3000 - 20)}\r\n`);
    await until(() => w.seen.join("").includes("xxx"));
    expect(w.held()).toBeGreaterThan(0x2fff);
  });
  it("a long one never ends at the far side", async () => {
    const w = await world(null);
    const guest = await w.guest();
    guest.write(`${post(FORM, null)}a\r\na=b&_metho\r\na\r\nd=DELETE&a\r\n0\r\n\r\n`);
    expect(await guest.all()).toMatch(/^HTTP\/1\.1 403 [^]*rule-method/);
    expect(w.seen.join("")).not.toMatch(/DELETE|0\r\n\r\n$/);
  });
  it.each([true, false])("beside secrets: the value goes in, another method does not (length told: %s)", async (sized) => {
    const secrets = await SandboxSecrets.open([secretSpec("TOKEN", { inject: { headers: null, query: false, body: true, path: false } })], { path: null, environment: { TOKEN: VALUE }, clock: { now: () => 0 }, onPassed: () => undefined });
    const P = secrets.environment()["TOKEN"] as string, answers: string[] = [];
    const w = await world(secrets, { onOrigin: (socket) => {
      socket.once("data", () => socket.write(OK));
      socket.on("data", (chunk: Buffer) => answers.push(chunk.toString("latin1")));
    } });
    const send = async (body: string): Promise<string> => {
      const guest = await w.guest();
      guest.write(`${post(FORM, sized ? body.length : null)}${sized ? body : `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`}`);
      return guest.until(/\bok\b|\}\n$/);
    };
    expect(await send(`_method=post&k=${P}`)).toContain("200");
    expect(answers.join("")).toContain(`_method=post&k=${VALUE}`);
    expect(await send(`k=${P}&_method=put`)).toContain("rule-method");
    expect(answers.join("")).not.toContain("put");
  });
});
