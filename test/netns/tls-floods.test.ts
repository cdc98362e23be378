/**
 * HTTP/2 by the frame, from a guest on a real tap at the thread that intercepts: row A54 of docs/THREATS.md and TLS tests 21, 23 and 29. A
 * hundred thousand streams of one guest cost bounded memory and leave the sandbox beside it as it was. In detail in test/unit/http2.test.ts.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Service, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

/**
 * By hand: the preface, and then as many streams as it was told, whatever the other side grants: left open, taken back at once, or one for each
 * head that was given. Each session is given a thousand, and when it has said what becomes of them another one follows. Says how many it began,
 * how many sessions that took, and what it heard.
 */
const FRAMES = `
  const [ca, what, ...rest] = process.argv.slice(1);
  const frame = (type, flags, stream, payload) => { const head = Buffer.alloc(9); head.writeUIntBE(payload.length, 0, 3); head[3] = type; head[4] = flags; head.writeUInt32BE(stream, 5); return Buffer.concat([head, payload]); };
  const text = (value) => Buffer.concat([Buffer.of(value.length), Buffer.from(value, "latin1")]);
  const block = (fields) => Buffer.concat(fields.flatMap(([name, value]) => [Buffer.of(0), text(name), text(value)]));
  const good = block([[":method", "GET"], [":scheme", "https"], [":authority", "shop.example"], [":path", "/flood"]]);
  const heard = {};
  let begun = 0, sessions = 0;
  const total = what === "heads" ? rest.length : +rest[0];
  const over = () => { console.log(JSON.stringify({ begun, sessions, heard })); process.exit(); };
  const session = () => {
    sessions++;
    const socket = require("node:tls").connect({ port: 443, host: "${ADDRESS.site4}", servername: "shop.example", ca: require("node:fs").readFileSync(ca), ALPNProtocols: ["h2"] });
    let held = Buffer.alloc(0), id = 1, mine = 0;
    const note = (word) => { heard[word] = (heard[word] ?? 0) + 1; };
    socket.on("data", (data) => {
      held = Buffer.concat([held, data]);
      for (let length; held.length >= 9 && held.length >= (length = 9 + held.readUIntBE(0, 3)); held = held.subarray(length)) {
        const type = held[3], stream = held.readUInt32BE(5);
        if (type === 3) { note("reset " + held.readUInt32BE(9)); if (what === "heads") answered(); }
        if (type === 7) { note("goaway " + held.readUInt32BE(13)); if (what !== "heads") return void socket.destroy(); }
        if (type === 1 && what === "heads") { note("head " + stream); answered(); }
        // All that were begun were read.
        if (type === 6 && held[4] === 1) return void socket.destroy();
      }
    });
    let left = total;
    const answered = () => { if (--left === 0) over(); };
    socket.on("error", () => {});
    socket.on("close", () => { if (begun >= total) over(); else session(); });
    const more = () => {
      if (socket.destroyed) return;
      if (begun >= total || mine >= 1000) { socket.write(frame(6, 0, 0, Buffer.alloc(8))); return; }
      const parts = [];
      for (let i = 0; i < 500 && begun < total; i++, begun++, mine++, id += 2) {
        parts.push(frame(1, what === "open" ? 4 : 5, id, good));
        if (what === "reset") parts.push(frame(3, 0, id, Buffer.of(0, 0, 0, 8)));
      }
      socket.write(Buffer.concat(parts), () => setImmediate(more));
    };
    socket.on("secureConnect", () => {
      socket.write(Buffer.concat([Buffer.from("PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"), frame(4, 0, 0, Buffer.alloc(0))]));
      if (what !== "heads") return more();
      for (const fields of rest) { socket.write(frame(1, 5, id, block(JSON.parse(fields)))); id += 2; }
      begun = total;
    });
  };
  session();`;

let world: World, origin: Service, agent: TestAgent;
const policy = (): { file: { path: string; text: string } } => ({ file: { path: path.join(world.dir, "policy.yaml"), text: "rules:\n  - {allow: shop.example, proto: tcp, ports: [443]}\ntls: {intercept: true, upstream_ca: [root.pem]}\n" } });
beforeAll(async () => {
  ({ world, origin } = await openWorld({ sibling: true }));
  agent = await TestAgent.start(world);
  for (const [tap, guest] of [["tap0", world.guest], ["tap1", world.sibling!]] as const) {
    await agent.client.attach({ tap, policy: policy() });
    await tell(world, "shop.example", guest);
  }
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});
const ca = (tap: string): string => path.join(world.runDir, "agent", `${tap}.ca.pem`);
interface Flood { readonly begun: number; readonly sessions: number; readonly heard: Record<string, number> }
async function frames(...args: string[]): Promise<Flood> {
  const { stdout, stderr } = await world.guest.run([process.execPath, "-e", FRAMES, ca("tap0"), ...args], { timeoutMs: 200_000 });
  expect(stderr).toBe("");
  return JSON.parse(stdout) as Flood;
}
const beside = async (): Promise<void> => {
  const { stdout } = await world.sibling!.run(["curl", "-sS", "--max-time", "100", "--cacert", ca("tap1"), "--resolve", `shop.example:443:${ADDRESS.site4}`, "https://shop.example/beside"], { timeoutMs: 110_000 });
  expect(stdout).toBe("origin shop.example /beside");
};
/** MiB that the agent has in memory. */
const memory = (): number => Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${agent.service.pid}/status`, "latin1"))?.[1]) / 1024;

test.each([["left open, whatever was granted", "open"], ["taken back at once", "reset"]])("A54, TLS test 29: a hundred thousand streams %s: bounded memory, the sandbox beside it is served, and so is the next connection", async (_how, what) => {
  await beside();
  const before = memory();
  const flood = frames(what, "100000");
  let over = false;
  void flood.finally(() => { over = true; }).catch(() => undefined);
  let most = 0;
  do {
    await beside();
    most = Math.max(most, memory());
  } while (!over);
  const { begun, sessions, heard } = await flood;
  expect(begun).toBe(100_000);
  // Refused one by one, or with the session.
  expect([heard["reset 7"] ?? 0, heard["goaway 11"] ?? 0].some((count) => count >= sessions)).toBe(true);
  // The buffers of one sandbox may come to 64 MiB, and what JavaScript has let go of stays until it is collected.
  expect(most - before).toBeLessThan(300);
  const after = await world.guest.run(["curl", "-sS", "--max-time", "100", "--cacert", ca("tap0"), "--resolve", `shop.example:443:${ADDRESS.site4}`, "https://shop.example/after"], { timeoutMs: 110_000 });
  expect(after.stdout).toBe("origin shop.example /after");
}, 600_000);

test("A54, TLS tests 21, 23: heads with line ends, plain HTTP's scheme, a target in absolute form, CONNECT and its extension: refused, or what no field can have left out; nothing of it reaches the origin", async () => {
  const base: [string, string][] = [[":method", "GET"], [":scheme", "https"], [":authority", "shop.example"], [":path", "/odd"]];
  const changed = (name: string, value: string): [string, string][] => base.map(([one, was]) => (one === name ? [one, value] : [one, was]));
  const heads: [string, string][][] = [
    [...base, ["x-a", "b\r\nhost: tenant.example"]], [...base, ["x-a\r\nhost", "b"]], [...base, ["X-Upper", "b"]], [...base, ["x-a", "b\0c"]],
    changed(":path", "https://tenant.example/"), changed(":path", "odd"), changed(":path", ""), changed(":path", "/a b"), changed(":scheme", "http"), changed(":scheme", "ftp"),
    changed(":authority", "shop.example\r\nx: y"), changed(":authority", "tenant.example"), changed(":authority", ""), changed(":method", "GET /x"), changed(":method", "TRACE"),
    [...base, [":authority", "tenant.example"]], [["x-a", "b"], ...base], [...base, ["connection", "close"]], [...base, ["transfer-encoding", "chunked"]], [...base, ["te", "gzip"]],
    [[":method", "CONNECT"], [":authority", "tenant.example:443"]], [...changed(":method", "CONNECT"), [":protocol", "websocket"]], [...base, ["content-length", "5"]],
  ];
  const arrived = origin.lines.length;
  for (const head of heads) {
    const { heard } = await frames("heads", JSON.stringify(head));
    expect([head, Object.keys(heard)]).not.toEqual([head, []]);
  }
  // Fields that nghttp2 takes out by itself, names and values that no field can have: what reaches the origin has none of them.
  for (const line of origin.lines.slice(arrived)) {
    const { headers, host } = JSON.parse(line) as { headers: Record<string, string>; host: string };
    expect([host, Object.keys(headers).filter((name) => !name.startsWith(":"))]).toEqual(["shop.example", []]);
  }
});
