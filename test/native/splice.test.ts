/** SplicePump between real sockets on loopback, in a namespace of the file's own: client ─ a ═ pump ═ b ─ server. */
import { createHash, randomBytes } from "node:crypto";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, connect, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { addonUrl, inNewNamespace, native, openDescriptors, temporaryFolder, thrownBy } from "./fixture.js";

inNewNamespace();
const folder = temporaryFolder();

type Ended = Parameters<ConstructorParameters<typeof native.SplicePump>[0]>[0][number];
let pump: native.SplicePump, ended: Map<number, Ended>, sockets: Socket[], servers: Server[];
beforeEach(() => {
  [ended, sockets, servers] = [new Map(), [], []];
  pump = new native.SplicePump((list) => { for (const one of list) ended.set(one.id, one); });
});
afterEach(async () => {
  pump.close();
  for (const socket of sockets) socket.destroy();
  await Promise.all(servers.map((server) => new Promise((done) => server.close(done))));
});

/**
 * Waits between its looks, so that other threads and processes run on a machine with one CPU; of the test that called it only:
 * what it waits for in vain is not met by the pump of a later one.
 */
async function until(check: () => boolean): Promise<void> {
  const own = pump, end = Date.now() + 120_000;
  while (!check()) {
    if (pump !== own) throw new Error("the test is over");
    if (Date.now() > end) throw new Error(`in vain for two minutes: ${String(check)}; ${sockets.length} sockets, ${openDescriptors()} descriptors, pairs ${JSON.stringify(Array.from({ length: 200 }, (_, id) => pump.counters(id + 1)).filter((one) => one !== null).slice(0, 8))}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
const descriptorOf = (socket: Socket): number => (socket as unknown as { _handle: { fd: number } })._handle.fd;
const pipes = (): number => readdirSync("/proc/self/fd").filter((fd) => { try { return readlinkSync(`/proc/self/fd/${fd}`).startsWith("pipe:"); } catch { return false; } }).length;

/** Two ends of one connection, paused; `taken` is what the pump gets. */
async function connection(): Promise<{ outer: Socket; taken: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, resolve));
  const outer = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
  const [taken] = (await once(server, "connection")) as [Socket];
  server.close();
  servers.pop();
  if (outer.connecting) await once(outer, "connect");
  for (const socket of [outer, taken]) socket.on("error", () => undefined);
  sockets.push(outer, taken);
  return { outer, taken };
}

interface Path { client: Socket; server: Socket; id: number }
async function path(forth = "", back = "", owner = 0): Promise<Path> {
  const [a, b] = [await connection(), await connection()];
  const id = pump.add(owner, descriptorOf(a.taken), descriptorOf(b.taken), Buffer.from(forth), Buffer.from(back));
  a.taken.destroy();
  b.taken.destroy();
  return { client: a.outer, server: b.outer, id };
}

/** What a socket gets until its other end has ended or broken, and the latter's code. */
function heard(socket: Socket): { octets: () => Buffer; end: Promise<string>; reset: () => Promise<boolean> } {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk) => chunks.push(chunk));
  // libuv tells a reset behind octets as an end; who writes then is told.
  const reset = (): Promise<boolean> => new Promise((resolve) => {
    socket.once("error", () => resolve(true));
    if (socket.destroyed) resolve(socket.errored !== null);
    else if (socket.readableEnded) socket.write("?");
    else socket.once("end", () => socket.write("?"));
  });
  const end = new Promise<string>((resolve) => {
    socket.once("end", () => resolve("end"));
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? "error"));
  });
  return { octets: () => Buffer.concat(chunks), end, reset };
}

/** Sends octets in pieces with pauses, and ends. @returns their hash. */
async function send(socket: Socket, octets: Buffer): Promise<void> {
  for (let at = 0; at < octets.length;) {
    const size = 1 + Math.floor(Math.random() * (Math.random() < 0.5 ? 100 : 300_000));
    if (!socket.write(octets.subarray(at, at + size))) await once(socket, "drain");
    at += size;
    if (Math.random() < 0.1) await new Promise((resolve) => setTimeout(resolve, Math.random() * 5));
  }
  socket.end();
}

/** Takes all with pauses. (An iterator would destroy the socket, whose other half may be busy.) @returns its hash. */
function take(socket: Socket): Promise<string> {
  const hash = createHash("sha256");
  socket.on("data", (chunk: Buffer) => {
    hash.update(chunk);
    if (Math.random() >= 0.1) return;
    socket.pause();
    setTimeout(() => socket.resume(), Math.random() * 5);
  });
  return new Promise((resolve, reject) => {
    socket.once("end", () => resolve(hash.digest("hex")));
    socket.once("close", () => reject(new Error("closed before its end")));
  });
}
const hashOf = (octets: Buffer): string => createHash("sha256").update(octets).digest("hex");

describe("octets", () => {
  it.each([1, 8])("pass both ways at once, unaltered and in order, with pauses on every side (%i at a time)", async (count) => {
    await Promise.all(Array.from({ length: count }, async () => {
      const { client, server, id } = await path();
      const up = randomBytes((12 << 20) / count), down = randomBytes((16 << 20) / count);
      const [gotUp, gotDown] = await Promise.all([take(server), take(client), send(client, up), send(server, down)]);
      expect([gotUp, gotDown]).toEqual([hashOf(up), hashOf(down)]);
      await until(() => ended.has(id));
      expect(ended.get(id)).toEqual({ id, forth: up.length, back: down.length });
      expect(pump.counters(id)).toBeNull();
    }));
    expect(pump.size).toBe(0);
  });

  it("that were read before go first", async () => {
    const { client, server, id } = await path("before ", "vorher ");
    client.end("after");
    server.end("nachher");
    const [up, down] = [heard(server), heard(client)];
    expect(await Promise.all([up.end, down.end])).toEqual(["end", "end"]);
    expect([up.octets().toString(), down.octets().toString()]).toEqual(["before after", "vorher nachher"]);
    await until(() => ended.has(id));
    expect(ended.get(id)).toEqual({ id, forth: 12, back: 14 });
  });

  it("wait for a slow reader, a bounded number of them, and arrive", async () => {
    const { client, server, id } = await path();
    const octets = randomBytes(32 << 20);
    const sent = send(client, octets);
    // Buffers of the kernel and of the pump are full when nothing moves any more.
    for (let last = -1; ;) {
      const { forth, held } = pump.counters(id)!;
      expect(held).toBeLessThanOrEqual(256 << 10);
      if (forth === last && held > 0) break;
      last = forth;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(pump.counters(id)!.forth).toBeLessThan(octets.length);
    // The other direction does not wait for it.
    server.write("meanwhile");
    expect((await once(client, "data") as [Buffer])[0].toString()).toBe("meanwhile");
    expect(await take(server)).toBe(hashOf(octets));
    await sent;
  });

  it("are copied where no pipe can be had", async () => {
    // In a process of its own, whose limit of descriptors nobody else has to live with.
    const file = join(folder, "without-pipes.mjs");
    writeFileSync(file, `
      import * as native from ${JSON.stringify(addonUrl)};
      import { execFileSync } from "node:child_process";
      import { createHash, randomBytes } from "node:crypto";
      import { once } from "node:events";
      import { createServer, connect } from "node:net";
      import { readdirSync, readlinkSync } from "node:fs";
      const descriptors = () => readdirSync("/proc/self/fd").map(Number);
      const pipes = () => descriptors().filter((fd) => { try { return readlinkSync("/proc/self/fd/" + fd).startsWith("pipe:"); } catch { return false; } }).length;
      const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
      await new Promise((done) => server.listen(0, "127.0.0.1", done));
      const make = async () => { const outer = connect({ port: server.address().port, host: "127.0.0.1", allowHalfOpen: true }); const [taken] = await once(server, "connection"); if (outer.connecting) await once(outer, "connect"); return { outer, taken }; };
      const pump = new native.SplicePump(() => undefined), none = new Uint8Array();
      const path = async () => {
        const [a, b] = [await make(), await make()];
        const id = pump.add(0, a.taken._handle.fd, b.taken._handle.fd, none, none);
        a.taken.destroy(); b.taken.destroy();
        return { client: a.outer, server: b.outer, id };
      };
      const take = async (socket) => { const hash = createHash("sha256"); for await (const chunk of socket.iterator({ destroyOnReturn: false })) hash.update(chunk); return hash.digest("hex"); };
      const hashOf = (octets) => createHash("sha256").update(octets).digest("hex");
      const pass = async ({ client, server }, octets) => { const got = Promise.all([take(server), take(client)]); client.end(octets[0]); server.end(octets[1]); return (await got).map((hash, i) => hash === hashOf(octets[i])); };
      const limit = (soft) => execFileSync("prlimit", ["--pid", String(process.pid), "--nofile=" + soft + ":"]);
      const before = execFileSync("prlimit", ["--pid", String(process.pid), "--nofile", "--noheadings", "--output", "SOFT"], { encoding: "utf8" }).trim();
      // What is stuck here has the one pipe that there is.
      const [stuck, without] = [await path(), await path()];
      stuck.client.on("error", () => undefined).write(Buffer.alloc(32 << 20));
      for (let last = -1, now = pump.counters(stuck.id); now.held === 0 || now.forth !== last; last = now.forth, now = pump.counters(stuck.id)) await new Promise((done) => setTimeout(done, 20));
      const open = pipes();
      const spare = Array.from({ length: 64 }, () => native.openNetns()); // for prlimit and /proc, where no other is free
      limit(Math.max(...descriptors()) + 1);
      const filled = []; // gaps below the highest
      try { for (;;) filled.push(native.openNetns()); } catch (error) { console.log(error.code); }
      try { pump.add(0, without.client._handle.fd, without.server._handle.fd, none, none); } catch (error) { console.log(error.code, error.syscall); }
      const arrived = await pass(without, [randomBytes(3 << 20), randomBytes(3 << 20)]);
      for (const fd of [...spare, ...filled]) native.closeFd(fd);
      console.log(...arrived, pipes() - open);
      limit(before);
      console.log(...await pass(await path(), [Buffer.from("and now with one"), none]), pipes() > open);
      pump.close(); server.close(); stuck.client.destroy(); stuck.server.destroy();`);
    const child = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "pipe"] });
    const out = { stdout: "", stderr: "" };
    child.stdout.on("data", (data: Buffer) => { out.stdout += data.toString(); });
    child.stderr.on("data", (data: Buffer) => { out.stderr += data.toString(); });
    const late = setTimeout(() => child.kill("SIGKILL"), 120_000);
    const code = await once(child, "close");
    clearTimeout(late);
    expect({ code, ...out }).toEqual({ code: [0, null], stdout: "EMFILE\nEMFILE fcntl(F_DUPFD_CLOEXEC)\ntrue true 0\ntrue true true\n", stderr: "" });
  });

  it("are copied beyond an owner's share of pipes; another owner has its own, and all arrive", async () => {
    // Small buffers, so that a few octets get a direction stuck.
    const buffers = ["tcp_rmem", "tcp_wmem"].map((name) => `/proc/sys/net/ipv4/${name}`);
    const normal = buffers.map((file) => readFileSync(file, "utf8"));
    for (const file of buffers) writeFileSync(file, "4096 16384 16384");
    const octets = randomBytes(1 << 20), hash = hashOf(octets), open = pipes();
    const stuck = await Promise.all(Array.from({ length: 140 }, () => path("", "", 1)));
    for (const { client } of stuck) client.end(octets);
    const holding = (): number => stuck.filter(({ id }) => pump.counters(id)!.held > 0).length;
    await until(() => holding() === 128 && stuck.every(({ id }) => pump.counters(id)!.forth > 0));
    expect(pipes() - open).toBeLessThanOrEqual(2 * (128 + 16));
    const sibling = await path("", "", 2);
    sibling.client.end(octets);
    await until(() => pump.counters(sibling.id)!.held > 0);
    expect(await take(sibling.server)).toBe(hash);
    expect(holding()).toBe(128);
    // Larger ones would take up what is stuck, by themselves.
    buffers.forEach((file, i) => writeFileSync(file, normal[i] as string));
    expect(new Set(await Promise.all(stuck.map(({ server }) => take(server))))).toEqual(new Set([hash]));
    for (const { server } of [...stuck, sibling]) server.end();
    await until(() => ended.size === stuck.length + 1);
    expect(pipes() - open).toBeLessThanOrEqual(2 * 16);
  });

  it("are copied where the kernel refuses to splice", async () => {
    // seccomp(2), by Python: the call gets ENOSYS, in this process and what it starts.
    const without = `
import ctypes, os, platform, struct, sys
number = {"x86_64": 275, "aarch64": 76}[platform.machine()]
code = b"".join(struct.pack("HBBI", *one) for one in [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7fff0000)])
libc = ctypes.CDLL(None, use_errno=True)
text = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(text)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])`;
    const file = join(folder, "without-splice.mjs");
    writeFileSync(file, `
      import * as native from ${JSON.stringify(addonUrl)};
      import { createServer, connect } from "node:net";
      import { readdirSync, readlinkSync } from "node:fs";
      const server = createServer({ pauseOnConnect: true });
      await new Promise((done) => server.listen(0, "127.0.0.1", done));
      const make = async () => { const outer = connect(server.address().port, "127.0.0.1"); const taken = await new Promise((done) => server.once("connection", done)); return { outer, taken }; };
      const pump = new native.SplicePump((ended) => { console.log(JSON.stringify(ended)); pump.close(); server.close(); });
      const [a, b] = [await make(), await make()];
      pump.add(0, a.taken._handle.fd, b.taken._handle.fd, Buffer.from("x"), Buffer.alloc(0));
      a.taken.destroy(); b.taken.destroy();
      b.outer.on("data", () => {}).on("end", () => b.outer.end("bye"));
      a.outer.on("data", (chunk) => console.log(String(chunk)));
      a.outer.end(Buffer.alloc(3_000_000));`);
    const child = spawn("python3", ["-c", without, process.execPath, file], { stdio: ["ignore", "pipe", "pipe"] });
    const out = { stdout: "", stderr: "" };
    child.stdout.on("data", (data: Buffer) => { out.stdout += data.toString(); });
    child.stderr.on("data", (data: Buffer) => { out.stderr += data.toString(); });
    expect(await once(child, "close")).toEqual([0, null]);
    expect(out).toEqual({ stdout: `bye\n${JSON.stringify([{ id: 1, forth: 3_000_001, back: 3 }])}\n`, stderr: "" });
  });

  it("pass although some of them are urgent", async () => {
    const { client, server } = await path();
    const got = heard(server);
    const { port } = client.address() as AddressInfo;
    // Only Python has MSG_OOB at hand: it sends on a descriptor that it inherits.
    const sender = spawn("python3", ["-c", `
import socket
s = socket.socket(fileno=3)
s.setblocking(True)
for i in range(50):
    s.sendall(b"a" * 1000)
    s.send(b"!", socket.MSG_OOB)
s.sendall(b"end")
s.shutdown(socket.SHUT_WR)`], { stdio: ["ignore", "ignore", "inherit", descriptorOf(client)] });
    expect(await once(sender, "exit")).toEqual([0, null]);
    expect(port).toBeGreaterThan(0);
    expect(await got.end).toBe("end");
    expect(got.octets().toString()).toBe(`${`${"a".repeat(1000)}!`.repeat(50)}end`);
  });
});

describe("ends", () => {
  it("of one direction leave the other open", async () => {
    for (const first of ["client", "server"] as const) {
      const { client, server, id } = await path();
      const [from, to] = first === "client" ? [client, server] : [server, client];
      const [gotTo, gotFrom] = [heard(to), heard(from)];
      from.end("last words");
      expect(await gotTo.end).toBe("end");
      expect(gotTo.octets().toString()).toBe("last words");
      expect(pump.counters(id)).not.toBeNull();
      for (let i = 0; i < 3; i++) {
        to.write(`answer ${i};`);
        await until(() => gotFrom.octets().includes(`answer ${i};`));
      }
      to.end();
      expect(await gotFrom.end).toBe("end");
      await until(() => ended.has(id));
    }
  });

  it("are passed on after what was sent before them, to a reader that comes late", async () => {
    const { client, server } = await path();
    const octets = randomBytes(8 << 20);
    const sent = send(client, octets);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(await take(server)).toBe(hashOf(octets));
    await sent;
  });

  it.each(["client", "server"] as const)("by reset of the %s reset the other side", async (first) => {
    const { client, server, id } = await path();
    const [from, to] = first === "client" ? [client, server] : [server, client];
    const got = heard(to);
    from.write("said before");
    await until(() => got.octets().length > 0);
    from.resetAndDestroy();
    expect(await got.reset()).toBe(true);
    expect(got.octets().toString()).toBe("said before");
    await until(() => ended.has(id));
  });

  it("by reset are passed on although the other side takes nothing", async () => {
    const { client, server, id } = await path();
    const filling = randomBytes(32 << 20);
    client.write(filling);
    await until(() => pump.counters(id)!.held > 0);
    client.resetAndDestroy();
    await until(() => ended.has(id));
    expect(await heard(server).reset()).toBe(true);
  });

  it("on demand reset both sides, whatever is under way", async () => {
    const { client, server, id } = await path();
    const both = [heard(client), heard(server)];
    client.write(randomBytes(4 << 20));
    await until(() => pump.counters(id)!.forth > 0);
    pump.end(id);
    expect(await Promise.all(both.map(({ reset }) => reset()))).toEqual([true, true]);
    await until(() => ended.has(id));
    pump.end(id);
    pump.end(id + 1000);
  });

  it("of the pump itself reset what it has, and nothing is told", async () => {
    const paths = await Promise.all([path(), path(), path()]);
    const ends = paths.flatMap(({ client, server }) => [heard(client).reset(), heard(server).reset()]);
    pump.close();
    pump.close();
    expect(new Set(await Promise.all(ends))).toEqual(new Set([true]));
    expect(ended.size).toBe(0);
    expect(pump.counters((paths[0] as Path).id)).toBeNull();
    const { taken } = await connection();
    expect(thrownBy(() => pump.add(0, descriptorOf(taken), descriptorOf(taken), new Uint8Array(), new Uint8Array()))).toMatchObject({ code: "EBADF" });
  });
});

describe("turns", () => {
  it("are an owner's, not a pair's: who has forty busy pairs holds up neither a large transfer of another owner nor a small one", async () => {
    // Buffers that take everything at once, so that nothing of the order depends on when a socket is read or fed.
    const buffers = ["tcp_rmem", "tcp_wmem"].map((name) => `/proc/sys/net/ipv4/${name}`);
    const normal = buffers.map((file) => readFileSync(file, "utf8"));
    for (const file of buffers) writeFileSync(file, "4096 33554432 33554432");
    /** Octets and the ends of both sides that lie at a socket of ours, unread: /proc/net/tcp of this thread's namespace. */
    const unread = (): Map<string, number> => new Map(readFileSync("/proc/thread-self/net/tcp", "utf8").trim().split("\n").slice(1).map((line) => {
      const [, local, remote, state, queues] = line.trim().split(/\s+/) as [string, string, string, string, string];
      return [[local, remote].map((end) => Number.parseInt(end.split(":")[1] as string, 16)).join(), state === "08" ? Number.parseInt(queues.split(":")[1] as string, 16) : -1];
    }));
    const filled = async (octets: number): Promise<[Socket, Socket]> => {
      const [a, b] = [await connection(), await connection()];
      a.outer.end(Buffer.alloc(octets));
      b.outer.end();
      a.outer.resume();
      await until(() => [[a.taken, octets], [b.taken, 0]].every(([socket, count]) => { const { localPort, remotePort } = socket as Socket; return unread().get([localPort, remotePort].join()) === count as number + 1; }));
      return [a.taken, b.taken];
    };
    const many = await Promise.all(Array.from({ length: 40 }, () => filled(1 << 20))), large = await filled(4 << 20), small = await filled(1);
    buffers.forEach((file, i) => writeFileSync(file, normal[i] as string));
    // The thread stands while all are handed over, and begins with all of them: ptrace(2), by Python.
    const thread = readdirSync("/proc/self/task").find((task) => readFileSync(`/proc/self/task/${task}/comm`, "utf8") === "enf-splice\n") as string;
    const holder = spawn("python3", ["-c", `
import ctypes, os, sys
ptrace, tid = ctypes.CDLL(None, use_errno=True).ptrace, int(sys.argv[1])
ptrace.argtypes = [ctypes.c_long] * 4
assert ptrace(16, tid, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.waitpid(tid, 0x40000000)
print("held", flush=True)
sys.stdin.read()
assert ptrace(17, tid, 0, 0) == 0`, thread], { stdio: ["pipe", "pipe", "inherit"] });
    const gone = once(holder, "exit");
    const held = await Promise.race([once(holder.stdout, "data").then(() => true), gone]);
    const add = (owner: number, [a, b]: [Socket, Socket]): number => {
      const id = pump.add(owner, descriptorOf(a), descriptorOf(b), new Uint8Array(), new Uint8Array());
      a.destroy();
      b.destroy();
      return id;
    };
    const busy = many.map((sides) => add(1, sides)), others = [add(2, large), add(3, small)];
    const begun = busy.filter((id) => pump.counters(id)?.forth !== 0);
    // Before anything may fail: nobody joins a thread that stands.
    holder.stdin.end();
    expect([held, begun, await gone]).toEqual([true, [], [0, null]]);
    await until(() => ended.size === 42);
    // In the order in which the thread was done with them. Of 256 KiB a turn (and at most as much beyond) the large one needs 8 to 16, the forty 80 to 160.
    expect([...ended.keys()].slice(0, 2)).toEqual(others.reverse());
    expect([...ended.values()].reduce((sum, { forth }) => sum + forth, 0)).toBe((44 << 20) + 1);
  });
});

describe("what it costs", () => {
  it("an idle pair keeps two descriptors and no pipe, a thousand of them too; all are back when pairs have ended", async () => {
    const settled = (): number => pipes();
    const before = openDescriptors(), pipesBefore = settled();
    const paths: Path[] = [];
    for (let i = 0; i < 1_000; i++) paths.push(await path("hello", "hallo"));
    await Promise.all(paths.flatMap(({ client, server }) => [once(client, "data"), once(server, "data")]));
    // Two ends here, two that the pump has, and the few pipes that it keeps ready.
    await until(() => openDescriptors() - before - (pipes() - pipesBefore) === 4 * paths.length);
    expect(pipes() - pipesBefore).toBeLessThanOrEqual(32);
    for (const { client } of paths) client.end();
    for (const { server } of paths) server.end();
    await until(() => ended.size === paths.length);
    expect(pump.size).toBe(0);
    for (const socket of sockets) socket.destroy();
    pump.close();
    await until(() => openDescriptors() <= before);
  });

  it("a thousand idle pairs and a busy one do not hold up another", async () => {
    for (let i = 0; i < 1_000; i++) await path();
    const busy = await path();
    busy.server.resume();
    let going = true;
    const flood = (async () => { while (going) if (!busy.client.write(Buffer.alloc(1 << 20))) await once(busy.client, "drain"); })();
    const { client, server } = await path();
    server.on("data", (chunk) => server.write(chunk));
    for (let i = 0; i < 200; i++) {
      client.write(`ping ${i}`);
      expect(String((await once(client, "data") as [Buffer])[0])).toBe(`ping ${i}`);
    }
    expect(pump.counters(busy.id)!.forth).toBeGreaterThan(0);
    going = false;
    busy.server.on("error", () => undefined);
    await flood;
  });

  it("no time while nothing moves", async () => {
    for (let i = 0; i < 20; i++) await path("x", "y");
    const half = await path();
    half.client.end();
    await until(() => sockets.length > 0);
    const [busiest] = readdirSync("/proc/self/task").filter((task) => execFileSync("cat", [`/proc/self/task/${task}/comm`.replace("self", String(process.pid))], { encoding: "utf8" }) === "enf-splice\n");
    const switches = (): number => Number(/voluntary_ctxt_switches:\s+(\d+)/.exec(execFileSync("cat", [`/proc/${process.pid}/task/${busiest}/status`], { encoding: "utf8" }))![1]);
    let before = -1;
    for (let now = switches(); now !== before; now = switches()) {
      before = now;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    expect(before).toBeGreaterThan(0);
  });
});

it("takes stream sockets only, and descriptors that are open", async () => {
  const { taken } = await connection();
  const nothing = new Uint8Array();
  expect(thrownBy(() => pump.add(0, descriptorOf(taken), 0x7fff, nothing, nothing))).toMatchObject({ code: "EBADF" });
  const file = native.openNetns();
  expect(thrownBy(() => pump.add(0, descriptorOf(taken), file, nothing, nothing))).toMatchObject({ code: "ENOTSOCK" });
  native.closeFd(file);
  expect(thrownBy(() => pump.add(0, -1, descriptorOf(taken), nothing, nothing))).toBeInstanceOf(RangeError);
  expect(thrownBy(() => pump.add(0, descriptorOf(taken), descriptorOf(taken), "x" as never, nothing))).toBeInstanceOf(TypeError);
  expect(thrownBy(() => pump.end(0))).toBeInstanceOf(RangeError);
  expect(thrownBy(() => new native.SplicePump(undefined as never))).toBeInstanceOf(TypeError);
  expect(pump.size).toBe(0);
});

it("ends with the worker that made it, under load, and leaves nothing", async () => {
  const script = `
    import * as native from ${JSON.stringify(addonUrl)};
    import { readdirSync } from "node:fs";
    import { createServer, connect } from "node:net";
    import { Worker, isMainThread, parentPort } from "node:worker_threads";
    const descriptors = () => readdirSync("/proc/self/fd").length, tasks = () => readdirSync("/proc/self/task").length;
    if (isMainThread) {
      void process.stdout; void process.stderr;
      const first = new Worker(new URL(import.meta.url)); // what the first one makes for all stays
      await new Promise((done) => first.once("message", done)); await first.terminate();
      const before = [descriptors(), tasks()];
      for (let round = 0; round < 5; round++) {
        const worker = new Worker(new URL(import.meta.url));
        await new Promise((done) => worker.once("message", done));
        await worker.terminate();
      }
      // A thread that was joined is listed a moment longer.
      for (const end = Date.now() + 60_000; tasks() > before[1] && Date.now() < end;) await new Promise((done) => setTimeout(done, 5));
      console.log("left", descriptors() - before[0], tasks() - before[1]);
    } else {
      const server = createServer({ pauseOnConnect: true });
      await new Promise((done) => server.listen(0, "127.0.0.1", done));
      const make = async () => { const outer = connect(server.address().port, "127.0.0.1"); const taken = await new Promise((done) => server.once("connection", done)); outer.on("error", () => {}); return { outer, taken }; };
      const pump = new native.SplicePump(() => {});
      for (let i = 0; i < 5; i++) {
        const a = await make(), b = await make();
        pump.add(0, a.taken._handle.fd, b.taken._handle.fd, new Uint8Array(), new Uint8Array());
        a.taken.destroy(); b.taken.destroy();
        const write = () => { while (a.outer.write(Buffer.alloc(65536))); };
        a.outer.on("drain", write); write();
        b.outer.once("data", () => i === 4 && parentPort.postMessage("up"));
      }
    }`;
  const file = join(folder, "worker.mjs");
  writeFileSync(file, script);
  const child = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "pipe"] });
  const out = { stdout: "", stderr: "" };
  child.stdout.on("data", (data: Buffer) => { out.stdout += data.toString(); });
  child.stderr.on("data", (data: Buffer) => { out.stderr += data.toString(); });
  expect(await once(child, "close")).toEqual([0, null]);
  expect(out).toEqual({ stdout: "left 0 0\n", stderr: "" });
});
