/**
 * Hellos and connections that no ordinary client sends, from a guest on a real tap, at the thread that verifies names; and DNS
 * over TLS. Rows A39, A41, A43, A45, A52, A53 of docs/THREATS.md, and the number of the TLS test where it has one.
 */
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Enforcer, type Service, type World } from "../lib/world.mjs";
import { AbiLimit } from "../../src/kernel/layout.gen.js";
import { svcb } from "../lib/dns-message.mjs";
import { helloRecords, type HelloParts, records } from "../lib/hello.js";
import { GuestResolver } from "./resolver.js";
import "./stage.js"; // its bounds for tests and hooks
import { dialled, openWorld, resident, tell } from "./tls-world.js";

/** Says octets, which come in chunks on standard input, the first at once, each further after something was heard; then tells what was heard and how it ended. */
const TALK = `
  const [host, port, segment] = process.argv.slice(1), chunks = require("node:fs").readFileSync(0, "latin1").split(" ");
  const socket = require("node:net").connect({ host, port: +port, noDelay: true });
  const heard = [];
  const tell = (end) => { console.log(JSON.stringify({ heard: Buffer.concat(heard).toString("hex"), end })); process.exit(); };
  const say = () => {
    const chunk = Buffer.from(chunks.shift() ?? "", "hex");
    const step = +segment || chunk.length;
    let at = 0;
    const next = () => { if (at < chunk.length) { socket.write(chunk.subarray(at, (at += step)), () => setImmediate(next)); } };
    next();
  };
  socket.on("connect", say);
  socket.on("data", (data) => { heard.push(data); if (chunks.length > 0) say(); else if (data[0] === 22) tell("talking"); });
  socket.on("end", () => tell("end"));
  socket.on("error", (error) => tell(error.code));
  setTimeout(() => tell("silence"), 12000);`;

interface Heard { readonly heard: string; readonly end: string }
async function talk(world: World, chunks: readonly Buffer[], { port = 443, segment = 0, host = ADDRESS.site4 as string } = {}): Promise<Heard> {
  const { stdout, stderr } = await world.guest.run([process.execPath, "-e", TALK, host, String(port), String(segment)], { timeoutMs: 30_000, input: chunks.map((chunk) => chunk.toString("hex")).join(" ") });
  expect(stderr).toBe("");
  return JSON.parse(stdout) as Heard;
}
/** One that the far side answers (by asking again). */
const welcome = (parts: HelloParts, sizes?: readonly number[]): Buffer => helloRecords({ retry: true, ...parts }, sizes);
const UNRECOGNIZED = "15030100020270", UNREADABLE = "15030100020232";
/** A client whose hello is answered by another question; its answer is that of the second name. */
async function retrying(world: World, second: string, ...more: string[]): Promise<{ retried: boolean; finished: boolean; answer: string }> {
  const { stdout, stderr } = await world.guest.run([process.execPath, path.join(import.meta.dirname, "../lib/retry-client.mjs"), ADDRESS.site4, "443", "shop.example", second, ...more], { timeoutMs: 30_000 });
  expect(stderr).toBe("");
  return JSON.parse(stdout) as never;
}
const SERVED = { retried: true, finished: true, answer: expect.stringContaining("origin shop.example /again") as string };
/** 70 KB, of which each record is as long as may be. */
const HUGE = records(Buffer.concat([Buffer.of(1, 1, 0x11, 0x70, 3, 3), Buffer.alloc(70_000)]));
const ECH = "ec40ec41ec42ec43";
/** By the octet a second, no end in sight. */
const DRIBBLE = Buffer.from(helloRecords({ names: ["shop.example"] })).toString("hex");

describe("names verified", () => {
  let world: World, origin: Service, enforcer: Enforcer;

  beforeAll(async () => {
    ({ world, origin } = await openWorld({ zone: { "tenant.example": { A: [ADDRESS.site4], HTTPS: [svcb({ alpn: ["h2", "h3"], ech: ECH })] } } }));
    enforcer = await world.enforce({ policy: "rules:\n  - {allow: shop.example, proto: tcp, ports: [80, 443]}\n  - {allow: tenant.example}\n" });
    await tell(world, "shop.example");
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });
  const seen = (reason: string): Promise<unknown> => enforcer.denied({ event: "tls-denied", reason });

  test("A39, TLS test 1: in one-octet records, in one-octet segments, and with the name behind 20 KB", async () => {
    const names = ["shop.example"];
    for (const [hello, segment] of [[welcome({ names }, [1]), 0], [welcome({ names }), 1], [welcome({ names, padding: 20_000 }), 1_000]] as const) {
      expect(await talk(world, [hello], { segment })).toMatchObject({ end: "talking" });
    }
    for (const [hello, segment] of [[helloRecords({ names: ["other.example"] }, [1]), 0], [helloRecords({ names: ["other.example"], padding: 20_000 }, [500]), 7]] as const) {
      expect(await talk(world, [hello], { segment })).toEqual({ heard: UNRECOGNIZED, end: "end" });
    }
  });

  test.each(["allowed\0.shop.example", "shop.example.", "*.example", ADDRESS.site4, `[${ADDRESS.site6}]`, "2130706433", "0x7f.1", "a/../shop.example", "sh\xf6p.example", "a".repeat(300)])("A41, A53, TLS test 6: %j as a server name is refused", async (name) => {
    expect(await talk(world, [helloRecords({ names: [name] })])).toEqual({ heard: UNRECOGNIZED, end: "end" });
    await seen("name-unreadable");
  });

  test("A41: two names are refused, upper case is the same name", async () => {
    expect(await talk(world, [helloRecords({ names: ["shop.example", "other.example"] })])).toEqual({ heard: UNRECOGNIZED, end: "end" });
    expect(await talk(world, [welcome({ names: ["SHOP.Example"] })])).toMatchObject({ end: "talking" });
  });

  test("TLS test 9: an encrypted hello goes by its outer name", async () => {
    expect(await talk(world, [helloRecords({ names: ["cloudflare-ech.com"], ech: true })])).toEqual({ heard: UNRECOGNIZED, end: "end" });
    expect(await talk(world, [welcome({ names: ["shop.example"], ech: true })])).toMatchObject({ end: "talking" });
  });

  test("TLS test 9: a record of type HTTPS has neither keys for an Encrypted Client Hello nor HTTP/3", async () => {
    const hex = (await (await GuestResolver.open(world)).ask("tenant.example", "HTTPS"))?.raw.toString("hex") ?? "";
    expect(hex).toContain(Buffer.from("\x02h2").toString("hex"));
    for (const hidden of [ECH, Buffer.from("\x02h3").toString("hex")]) expect(hex).not.toContain(hidden);
  });

  test("A43, TLS test 8: another name after a HelloRetryRequest, waited for or not, never reaches the far side", async () => {
    const first = helloRecords({ names: ["shop.example"], retry: true }), second = helloRecords({ names: ["other.example"] });
    const before = origin.lines.length;
    expect((await talk(world, [first, second])).end).toBe("ECONNRESET");
    await seen("name-changed");
    expect((await talk(world, [Buffer.concat([first, second])])).end).toBe("ECONNRESET");
    // Behind a Finished, in whose place only a hello may come.
    const finished = Buffer.concat([Buffer.of(22, 3, 3, 0, 4, 20, 0, 0, 0), second]);
    for (const chunks of [[first, finished], [Buffer.concat([first, finished])]]) expect((await talk(world, chunks)).end).toBe("ECONNRESET");
    expect(origin.lines.length).toBe(before);
  });

  test("A45: other protocols on 443", async () => {
    for (const octets of ["SSH-2.0-x\r\n", "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n", "\x05\x01\x00", "\x00\x0e8\x01\x02\x03\x04\x05"]) {
      expect((await talk(world, [Buffer.from(octets, "latin1")])).end).toBe("ECONNRESET");
      await seen("not-tls");
    }
  });

  test("A39, TLS test 4: a hello of 70 KB, or a record longer than TLS has, ends the connection, and the far side is not dialled", async () => {
    const before = await dialled(world);
    // Of a record that is too long its first five octets are enough.
    for (const octets of [HUGE, Buffer.of(22, 3, 1, 0x41, 0x01), Buffer.of(22, 3, 1, 0xff, 0xff)]) {
      expect(await talk(world, [octets])).toEqual({ heard: UNREADABLE, end: "end" });
    }
    await seen("too-large");
    expect((await talk(world, [records(Buffer.concat([Buffer.of(1, 1, 0, 0), Buffer.alloc(60_000)]), [1])])).heard).toBe(UNREADABLE);
    expect(await dialled(world)).toBe(before);
  });

  test("A39, TLS test 2: a hello as browsers say it, with a post-quantum share that pushes the name behind octet 1500, is read whole and passed on", async () => {
    expect(await retrying(world, "shop.example", "browser")).toMatchObject(SERVED);
    expect(await retrying(world, "other.example", "browser")).toMatchObject({ finished: false, answer: "" });
  });

  test("A45, TLS test 3: silence and dribbling end at the deadline, a thousand such connections delay nobody and cost little memory", async () => {
    const pid = enforcer.service.pid as number, before = resident(pid);
    const silent = world.guest.start([process.execPath, "-e", `
      const hello = Buffer.from("${DRIBBLE}", "hex");
      let begun = 0, ended = 0;
      for (let i = 0; i < 1000; i++) {
        const socket = require("node:net").connect({ port: 443, host: "${ADDRESS.site4}", noDelay: true });
        socket.once("connect", () => socket.emit("begun")).once("close", () => socket.emit("begun")).once("begun", () => { if (++begun === 1000) console.log("open"); });
        let at = 0;
        const dribble = i % 2 ? setInterval(() => { socket.write(hello.subarray(at, ++at)); }, 1000) : null;
        socket.on("error", () => undefined);
        socket.on("close", () => { clearInterval(dribble); if (++ended === 1000) { console.log("ended"); process.exit(); } });
      }`]);
    await silent.line((line) => line === "open");
    expect(await talk(world, [welcome({ names: ["shop.example"] })])).toMatchObject({ end: "talking" });
    const during = resident(pid);
    await silent.line((line) => line === "ended");
    await seen("hello-limit");
    await seen("timeout");
    expect(await talk(world, [welcome({ names: ["shop.example"] })])).toMatchObject({ end: "talking" });
    for (const memory of [during, resident(pid)]) expect(memory - before).toBeLessThan(48 << 20);
  });

  test("A52: the agent's own addresses are not there for the guest", async () => {
    // Its near and far end, and the host, at the ports that its threads listen on.
    const ports = Array.from({ length: AbiLimit.INTERCEPTED_PORTS }, (_, i) => AbiLimit.INTERCEPTED_PORT + i);
    for (const host of ["240.0.0.1", "240.0.0.2", ADDRESS.gateway4, ADDRESS.host4]) {
      const open = await Promise.all(ports.map(async (port) => (await world.guest.probe(["tcp", host, String(port)], 1500)).ok));
      expect([host, ports.filter((_, i) => open[i])]).toEqual([host, []]);
    }
  });

  test("A52: it is no proxy: CONNECT to anybody, itself included, is refused, nested too, and nobody is dialled", async () => {
    const before = [world.services.internet.seen("http").length, origin.lines.length];
    for (const target of ["evil.example:443", "shop.example:22", "127.0.0.1:80", "[::1]:443", `240.0.0.1:${AbiLimit.INTERCEPTED_PORT}`, `${ADDRESS.site4}:443`]) {
      const connect = `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`;
      for (const octets of [connect, connect + connect, `CONNECT ${target} HTTP/1.1\r\nHost: shop.example\r\n\r\n${connect}GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n`]) {
        const { heard } = await talk(world, [Buffer.from(octets)], { port: 80 });
        expect([target, Buffer.from(heard, "hex").toString().split("\r\n")[0]]).toEqual([target, "HTTP/1.1 405 Method Not Allowed"]);
        expect(Buffer.from(heard, "hex").toString()).not.toMatch(/ 200 /);
      }
    }
    expect([world.services.internet.seen("http").length, origin.lines.length]).toEqual(before);
  });

  test("A53: odd spellings of addresses as Host reach nobody", async () => {
    const before = world.services.internet.seen("http").length;
    for (const host of ["2130706433", "0x7f.1", "127.1", "1.1.1.1\t", "[::ffff:7f00:1]", "localhost", "shop.example:8080", "a@shop.example"]) {
      const { stdout } = await world.guest.run(["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", `Host: ${host}`, `http://${ADDRESS.site4}/`], { timeoutMs: 20_000 });
      expect([host, stdout]).toEqual([host, expect.stringMatching(/^4(00|21)$/) as unknown]);
    }
    expect(world.services.internet.seen("http").length).toBe(before);
  });

  test("real clients: python3, openssl, Node", async () => {
    const ca = path.join(world.dir, "root.pem");
    const python = `import http.client, socket, ssl, sys
c = ssl.create_default_context(cafile=${JSON.stringify(ca)})
s = c.wrap_socket(socket.create_connection((sys.argv[1], 443)), server_hostname=sys.argv[2])
s.sendall(b"GET /p HTTP/1.1\\r\\nhost: shop.example\\r\\nconnection: close\\r\\n\\r\\n")
print(s.makefile().read())`;
    expect((await world.guest.run(["python3", "-c", python, ADDRESS.site4, "shop.example"], { timeoutMs: 20_000 })).stdout).toContain("origin shop.example /p");
    expect((await world.guest.run(["python3", "-c", python, ADDRESS.site4, "other.example"], { timeoutMs: 20_000 })).stderr).toMatch(/UNRECOGNIZED_NAME|unrecognized name/i);
    for (const version of ["-tls1_2", "-tls1_3"]) {
      const { stdout } = await world.guest.run(["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-servername", "shop.example", "-CAfile", ca, "-verify_return_error", version], { input: "", timeoutMs: 20_000 });
      expect(stdout).toMatch(/Verify return code: 0|Verification: OK/);
    }
    const node = `require("node:https").get({ host: ${JSON.stringify(ADDRESS.site6)}, servername: "shop.example", headers: { host: "shop.example" }, path: "/n", ca: require("node:fs").readFileSync(${JSON.stringify(ca)}) }, (r) => r.pipe(process.stdout));`;
    expect((await world.guest.run([process.execPath, "-e", node], { timeoutMs: 20_000 })).stdout).toBe("origin shop.example /n");
  });

  test("TLS test 31: DNS over TLS is reset at once where nothing is intercepted", async () => {
    expect((await talk(world, [helloRecords({ names: ["dns.google"] })], { port: 853, host: "8.8.8.8" })).end).toBe("ECONNREFUSED");
  });
});

describe("under interception", () => {
  let world: World, origin: Service, enforcer: Enforcer;
  beforeAll(async () => {
    ({ world, origin } = await openWorld());
    enforcer = await world.enforce({ policy: "rules:\n  - allow: shop.example\n  - allow: tenant.example\ntls: {intercept: true, upstream_ca: [root.pem], ports: [8443]}\n" });
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });

  const python = `import socket, ssl, struct, sys
ca, address, name, hosts = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
c = ssl.create_default_context(cafile=ca)
s = c.wrap_socket(socket.create_connection((address, 853)), server_hostname=name)
def query(i, host): 
    m = struct.pack(">6H", i, 0x0100, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l.encode() for l in host.split(".")) + b"\\0" + struct.pack(">2H", 1, 1)
    return struct.pack(">H", len(m)) + m
s.sendall(b"".join(query(i, h) for i, h in enumerate(hosts)))
f = s.makefile("rb")
got = {}
for _ in hosts:
    m = f.read(struct.unpack(">H", f.read(2))[0])
    got[struct.unpack(">H", m[:2])[0]] = "%d %d" % (m[3] & 15, struct.unpack(">H", m[6:8])[0])
print([got[i] for i in range(len(hosts))])`;

  test.each([["by address", "8.8.8.8"], ["by name", "dns.google"]])("TLS test 31, DNS over TLS, %s: pipelined, with the answers and the pins of port 53, whatever resolver is meant", async (_what, name) => {
    const ca = path.join(world.runDir, "tap0.ca.pem");
    const { stdout, stderr } = await world.guest.run(["python3", "-c", python, ca, "8.8.8.8", name, "shop.example", "other.example"], { timeoutMs: 20_000 });
    expect(stderr).toBe("");
    expect(stdout.trim()).toBe("['0 1', '3 0']");
    const got = await world.guest.run(["curl", "-sS", "--max-time", "10", "--cacert", ca, "--resolve", `shop.example:443:${ADDRESS.site4}`, "https://shop.example/d"], { timeoutMs: 20_000 });
    expect(got.stdout).toBe("origin shop.example /d");
  });

  test.each(["-tls1_2", "-tls1_3"])("A43, TLS test 15: a session is taken up again under its own name only, and without early data (%s)", async (version) => {
    const ca = path.join(world.runDir, "tap0.ca.pem"), session = path.join(world.dir, `session${version}`);
    for (const name of ["shop.example", "tenant.example"]) await tell(world, name);
    const connect = async (name: string, ...more: string[]): Promise<string> => {
      const args = ["openssl", "s_client", "-connect", `${ADDRESS.site4}:443`, "-servername", name, "-CAfile", ca, "-verify_return_error", version, "-alpn", "http/1.1", "-ign_eof", ...more];
      const { stdout } = await world.guest.run(args, { input: `GET /s HTTP/1.1\r\nhost: ${name}\r\nconnection: close\r\n\r\n`, timeoutMs: 20_000 });
      expect(stdout).toContain(`origin ${name} /s`);
      return stdout;
    };
    expect(await connect("shop.example", "-sess_out", session)).toMatch(/^New, TLS/m);
    const again = await connect("shop.example", "-sess_in", session, ...(version === "-tls1_3" ? ["-early_data", ca] : []));
    expect(again).toMatch(/^Reused, TLS/m);
    expect(again).not.toMatch(/Early data was accepted/);
    expect(await connect("tenant.example", "-sess_in", session)).toMatch(/^New, TLS/m);
  });

  test("A43, TLS test 8: another name after a HelloRetryRequest ends the connection when the handshake is over, before any request", async () => {
    for (const name of ["shop.example", "tenant.example"]) await tell(world, name);
    expect(await retrying(world, "shop.example")).toMatchObject(SERVED);
    const before = origin.lines.length;
    expect(await retrying(world, "tenant.example")).toMatchObject({ retried: true, finished: true, answer: "" });
    await enforcer.denied({ event: "tls-denied", reason: "name-changed", name: "shop.example" });
    expect(origin.lines.length).toBe(before);
  });

  test("TLS tests 2, 9: a hello as browsers say it, with a GREASE Encrypted Client Hello and the name behind octet 1500, is served", async () => {
    await tell(world, "shop.example");
    expect(await retrying(world, "shop.example", "browser")).toMatchObject(SERVED);
  });

  test.each([["443", ADDRESS.site4], ["853", "8.8.8.8"]])("TLS test 4: a hello of 70 KB is not taken at port %s", async (port, host) => {
    expect((await talk(world, [HUGE], { port: Number(port), host })).heard).toBe(UNREADABLE);
  });

  test("ports of the policy are looked into, others pass untouched", async () => {
    await tell(world, "shop.example");
    expect(await talk(world, [helloRecords({ names: ["other.example"] })], { port: 8443 })).toEqual({ heard: UNRECOGNIZED, end: "end" });
    expect((await world.guest.probe(["tcp", ADDRESS.site4, "22"], 3_000)).ok).toBe(true);
    // A46: nor QUIC there.
    for (const address of [ADDRESS.site4, ADDRESS.site6]) {
      expect((await world.guest.probe(["udp", address, "8443", "quic"], 3_000)).saw).toMatch(/refused/i);
      await enforcer.service.line((line) => line.includes('"reason":"quic"') && line.includes(address) && line.includes("8443"));
    }
  });
});
