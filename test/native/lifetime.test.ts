/**
 * Threads and ends: workers that stop, are terminated or throw, a process that exits or runs out of work with everything
 * open, objects that are forgotten. Each in a process of its own, which must end by itself, with the status expected and
 * nothing on stderr.
 */
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { addonUrl, compileProbe, temporaryFolder, type Finished } from "./fixture.js";

const folder = temporaryFolder();
const probe = compileProbe(folder);

/** What each script begins with: a namespace of its own and one of every object with a handle on the loop. */
const prelude = `
import * as native from ${JSON.stringify(addonUrl)};
import { readdirSync, readFileSync } from "node:fs";
import { createServer, connect } from "node:net";
import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";
const descriptors = () => readdirSync("/proc/self/fd").length;
function openAll(onRecords = () => {}) {
  const before = native.openNetns(), made = native.createNetns();
  native.setNetns(made);
  const object = native.BpfObject.load(${JSON.stringify(probe)});
  const events = object.map("events"), tell = object.program("tell");
  const all = { object, events, tell,
    ring: new native.RingBuffer(events, onRecords),
    monitor: new native.NetlinkMonitor([1], () => {}),
    udp: new native.UdpBatch({ address: "0.0.0.0", port: 0 }, () => {}),
    tap: new native.Tap("t0"),
    pump: new native.SplicePump(() => {}),
  };
  all.tap.onFrames(() => {});
  all.link = native.BpfLink.attachTcx(tell, all.tap.ifindex, "ingress");
  native.setNetns(before); native.closeFd(before); native.closeFd(made);
  return all;
}
// Pairs with octets under way in a pump, and what is at their other ends.
async function spliced(pump, count) {
  const home = native.openNetns(), made = native.createNetns(); native.setNetns(made);
  const { execFileSync } = await import("node:child_process"); execFileSync("ip", ["link", "set", "lo", "up"]);
  const server = createServer({ pauseOnConnect: true });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const make = async () => {
    const outer = connect(server.address().port, "127.0.0.1");
    const taken = await new Promise((done) => server.once("connection", done));
    outer.on("error", () => {}); taken.on("error", () => {});
    return { outer, taken };
  };
  const outers = [];
  for (let i = 0; i < count; i++) {
    const [a, b] = [await make(), await make()];
    const id = pump.add(i, a.taken._handle.fd, b.taken._handle.fd, new Uint8Array(10), new Uint8Array(0));
    a.taken.destroy(); b.taken.destroy();
    a.outer.write(Buffer.alloc(32 << 20));
    while (pump.counters(id).held === 0) await new Promise((done) => setTimeout(done, 1));
    outers.push(a.outer, b.outer.pause());
  }
  server.close();
  native.setNetns(home); native.closeFd(home); native.closeFd(made);
  return outers;
}
const fire = (all, count = 1) => all.tell.testRun({ data: new Uint8Array(64), repeat: count });
const turns = async (count) => { for (let i = 0; i < count; i++) await new Promise((done) => setImmediate(done)); };
`;

let scripts = 0;
function run(script: string, ...flags: string[]): Promise<Finished> {
  const file = join(folder, `script${scripts++}.mjs`);
  writeFileSync(file, prelude + script);
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...flags, file], { stdio: ["ignore", "pipe", "pipe"] });
    const out: Finished = { status: null, signal: null, stdout: "", stderr: "" };
    child.stdout.on("data", (data: Buffer) => { out.stdout += data.toString(); });
    child.stderr.on("data", (data: Buffer) => { out.stderr += data.toString(); });
    child.on("error", reject);
    child.on("close", (status, signal) => resolve({ ...out, status, signal }));
  });
}

const quietly = { status: 0, signal: null, stderr: "" };

describe("a process", () => {
  it("exits with everything open", async () => {
    expect(await run(`openAll(); process.exit(0);`)).toMatchObject(quietly);
  });

  it("exits in the middle of a callback", async () => {
    expect(await run(`fire(openAll(() => { console.log("called"); process.exit(0); }));`)).toMatchObject({ ...quietly, stdout: "called\n" });
  });

  it("ends by itself once everything is closed, and is held by what is open", async () => {
    const script = `
      const all = openAll((records) => {
        console.log(records.length);
        for (const object of Object.values(all)) { object.close(); object.close(); }
      });
      await turns(100);
      setTimeout(() => fire(all, 3), 10);`;
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "3\n" });
  });

  it("hears of what a callback throws as an uncaught exception", async () => {
    const script = `
      process.on("uncaughtException", (error) => { console.log(error.message); if (error.message === "second") process.exit(0); });
      let calls = 0;
      const all = openAll(() => { throw new Error(calls++ === 0 ? "first" : "second"); });
      fire(all); await turns(20); fire(all);`;
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "first\nsecond\n" });
    const uncaught = await run(`fire(openAll(() => { throw new Error("mine"); }));`);
    expect(uncaught).toMatchObject({ status: 1, signal: null });
    expect(uncaught.stderr).toContain("Error: mine");
  });

  it("runs microtasks after a callback", async () => {
    const script = `fire(openAll(() => { process.nextTick(() => console.log("tick")); Promise.resolve().then(() => { console.log("micro"); process.exit(0); }); }));`;
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "tick\nmicro\n" });
  });

  it("gets descriptors back from objects it has forgotten", async () => {
    const script = `
      const object = native.BpfObject.load(${JSON.stringify(probe)});
      object.map("events").close();
      const before = descriptors();
      for (let i = 0; i < 50; i++) { object.map("events"); object.program("pass"); native.BpfMap.create({ type: "hash", name: "x", keySize: 4, valueSize: 4, maxEntries: 1 }); }
      for (let i = 0; i < 100 && descriptors() > before; i++) { globalThis.gc(); await turns(2); }
      console.log(descriptors() - before);`;
    expect(await run(script, "--expose-gc")).toMatchObject({ ...quietly, stdout: "0\n" });
  });

  it("keeps what is on the loop although nobody holds it", async () => {
    const script = `
      const kept = (() => { const { tell } = openAll((records) => { console.log(records.length); process.exit(0); }); return { tell }; })();
      for (let i = 0; i < 10; i++) { globalThis.gc(); await turns(2); }
      fire(kept);`;
    expect(await run(script, "--expose-gc")).toMatchObject({ ...quietly, stdout: "1\n" });
  });

  it("forgets what was closed, although its callback holds it", async () => {
    const script = `
      const watched = [];
      (() => {
        const home = native.openNetns(), made = native.createNetns(); native.setNetns(made);
        const object = native.BpfObject.load(${JSON.stringify(probe)});
        for (const make of [
          (callback) => new native.RingBuffer(object.map("events"), callback),
          (callback) => new native.NetlinkMonitor([1], callback),
          (callback) => new native.UdpBatch({ address: "0.0.0.0", port: 0 }, callback),
          (callback) => { const tap = new native.Tap("t1"); tap.onFrames(callback); return tap; },
          (callback) => new native.SplicePump(callback),
        ]) {
          const holder = { self: null };
          holder.self = make(() => holder.self);
          watched.push(new WeakRef(holder.self));
          holder.self.close();
        }
        native.setNetns(home); native.closeFd(home); native.closeFd(made);
      })();
      for (let i = 0; i < 100 && watched.some((one) => one.deref() !== undefined); i++) { await turns(2); globalThis.gc(); }
      console.log(watched.map((one) => one.deref() === undefined).join());`;
    expect(await run(script, "--expose-gc")).toMatchObject({ ...quietly, stdout: "true,true,true,true,true\n" });
  });

  it("loses nothing when it forgets a batch's memory first", async () => {
    const script = `
      let view;
      (() => {
        const udp = new native.UdpBatch({ address: "127.0.0.1", port: 0 }, (count, data) => { view = data; udp.close(); });
        const { port } = udp.address;
        const from = new native.UdpBatch({ address: "127.0.0.1", port: 0 }, () => {});
        const peer = Buffer.alloc(20); peer.writeUInt16LE(4, 0); peer.writeUInt16LE(port, 2); peer.set([255, 255, 127, 0, 0, 1], 14);
        from.send(Buffer.from("kept"), 0, 4, peer, 0); from.flush(); from.close();
      })();
      while (view === undefined) await turns(1);
      for (let i = 0; i < 20; i++) { globalThis.gc(); await turns(2); }
      console.log(view.toString("latin1", 0, 4));`;
    expect(await run(`
      const before = native.openNetns(), made = native.createNetns(); native.setNetns(made);
      const { execFileSync } = await import("node:child_process"); execFileSync("ip", ["link", "set", "lo", "up"]);
      ${script}`, "--expose-gc")).toMatchObject({ ...quietly, stdout: "kept\n" });
  });
});

describe("a splicing thread", () => {
  it("ends with a process that exits while octets are stuck in it", async () => {
    expect(await run(`const pump = new native.SplicePump(() => {}); await spliced(pump, 3); process.exit(0);`)).toMatchObject(quietly);
  });

  it("is closed within its own callback, and tells the last of what is left once", async () => {
    expect(await run(`
      let told = 0, left;
      const pump = new native.SplicePump((ended) => { told += ended.length; left ??= pump.close(); console.log(pump.close().length, pump.size); });
      const outers = await spliced(pump, 3);
      outers[0].resetAndDestroy();
      while (left === undefined) await turns(1);
      for (const outer of outers) outer.destroy();
      await turns(20);
      console.log(told, left.map(({ id, forth, back }) => [id, forth > 0, back].join(":")).sort().join(" "));
    `)).toMatchObject({ ...quietly, stdout: "0 0\n1 2:true:0 3:true:0\n" });
  });

  it("is ended with the worker, octets stuck in it", async () => {
    expect(await run(`
      if (isMainThread) {
        void process.stdout; void process.stderr;
        const before = descriptors(), tasks = readdirSync("/proc/self/task").length;
        for (let round = 0; round < 3; round++) {
          const worker = new Worker(new URL(import.meta.url));
          await new Promise((done) => worker.once("message", done));
          await worker.terminate();
        }
        console.log("left", descriptors() - before, readdirSync("/proc/self/task").filter((task) => readFileSync("/proc/self/task/" + task + "/comm", "utf8") === "enf-splice\\n").length);
      } else {
        globalThis.pump = new native.SplicePump(() => {});
        globalThis.outers = await spliced(globalThis.pump, 3);
        parentPort.postMessage("up");
      }`)).toMatchObject({ ...quietly, stdout: "left 0 0\n" });
  });
});

describe("workers", () => {
  const inWorkers = (body: string, then: string) => `
    if (isMainThread) {
      void process.stdout; void process.stderr; // libuv keeps a descriptor for a stream that is a pipe
      const before = descriptors();
      const start = () => new Worker(new URL(import.meta.url), { workerData: null });
      const ended = (worker) => new Promise((done) => worker.once("exit", done));
      const told = (worker) => new Promise((done) => worker.once("message", done));
      ${then}
      console.log("left", descriptors() - before);
    } else { ${body} }`;

  it("load the addon side by side, work, and end", async () => {
    const script = inWorkers(
      `const all = openAll((records) => { parentPort.postMessage(records.length); for (const object of Object.values(all)) object.close(); });
       fire(all, 5);`,
      `for (let round = 0; round < 2; round++) {
         const workers = [start(), start(), start(), start()];
         const ends = workers.map(ended);
         console.log((await Promise.all(workers.map(told))).join(), (await Promise.all(ends)).join());
       }`);
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "5,5,5,5 0,0,0,0\n5,5,5,5 0,0,0,0\nleft 0\n" });
  });

  it("are terminated with everything open, and leave no descriptor", async () => {
    const script = inWorkers(
      `globalThis.all = openAll(); parentPort.postMessage("up"); setInterval(() => fire(globalThis.all, 10), 0);`,
      `for (let round = 0; round < 5; round++) { const worker = start(); await told(worker); await worker.terminate(); }`);
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "left 0\n" });
  });

  it("end with process.exit and everything open", async () => {
    const script = inWorkers(`openAll(); process.exit(7);`, `console.log(await ended(start()));`);
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "7\nleft 0\n" });
  });

  it("are terminated in the middle of a callback", async () => {
    const script = inWorkers(
      `const all = openAll(() => { parentPort.postMessage("in"); for (;;); }); fire(all);`,
      `const worker = start(); await told(worker); await worker.terminate();`);
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "left 0\n" });
  });

  it("have their callback's exception reported to the main thread", async () => {
    const script = inWorkers(
      `fire(openAll(() => { throw new Error("mine"); }));`,
      `const worker = start(); const end = ended(worker); worker.once("error", (error) => console.log(error.message)); console.log(await end);`);
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "mine\n1\nleft 0\n" });
  });

  it("open a map of the main thread by its descriptor", async () => {
    const script = `
      if (isMainThread) {
        const map = native.BpfMap.create({ type: "array", name: "shared", keySize: 4, valueSize: 4, maxEntries: 1 });
        const worker = new Worker(new URL(import.meta.url), { workerData: map.fd });
        await new Promise((done) => worker.once("exit", done));
        console.log(map.lookup(new Uint8Array(4)).readUInt32LE());
        map.close();
      } else {
        const map = native.BpfMap.fromFd(workerData);
        map.update(new Uint8Array(4), new Uint8Array([42, 0, 0, 0]));
        map.close();
      }`;
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "42\n" });
  });

  it("have a namespace of their own", async () => {
    const script = `
      const inode = () => { const fd = native.openNetns(); const out = native.netnsInode(fd); native.closeFd(fd); return out; };
      if (isMainThread) {
        const before = inode();
        const worker = new Worker(new URL(import.meta.url));
        const inside = await new Promise((done) => worker.once("message", done));
        console.log(inside !== before, inode() === before);
      } else {
        native.setNetns(native.createNetns());
        parentPort.postMessage(inode());
      }`;
    expect(await run(script)).toMatchObject({ ...quietly, stdout: "true true\n" });
  });
});
