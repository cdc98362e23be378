/**
 * TCP through the host: a guest's namespace behind a veth pair, the host that forwards, a server beyond its uplink.
 *
 *   tcp.throughput           Gbit/s from the guest, one connection (iperf3)
 *   tcp.throughput.8         eight connections
 *   tcp.throughput.reverse   one connection, toward the guest
 *   tcp.throughput.frames    one connection whose sender cuts its segments itself: every frame has 1,500 octets
 *   tcp.rr                   µs for 64 octets there and back over one connection
 *   tcp.crr                  µs for a connection with one such exchange: each is a new flow
 *
 * Baseline: the same connection while no program of ours is on the guest's device; they are attached and taken away in turns,
 * every 140 ms for throughput, so that both see the same machine. Throughput is what passed the guest's device by the kernel's own
 * count. ratio: ours by the baseline's (rr, crr: the baseline's by ours). No peer: a bare path is what there would be.
 * A veth pair stands for the tap: a tap's user-space half would cost as much as the path that is measured.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { readCounters } from "../../dist/kernel/counters.js";
import { BareAgent } from "../lib/agent.mjs";
import { guestBehind, internet, UPLINK } from "../lib/guests.mjs";
import { inTurns, quietHalf, row, times } from "../lib/measure.mjs";
import { pause, quiet, run as command, start, stop, sysctl } from "../lib/place.mjs";

const RR = fileURLToPath(new URL("../build/rr", import.meta.url));
const SERVER = "151.101.1.6";
const IPERF = 5201, ECHO = 7007;
const POLICY = `
default_egress: deny
rules:
  - deny: metadata
  - {allow: "${SERVER}", proto: tcp, ports: [${IPERF}, ${ECHO}]}
limits: {flows: 131072}
`;

/** Columns of /proc/net/dev: what the host has from the guest, and what it sends it. */
const RX = 0, TX = 8;

const THROUGHPUT = [
  { id: "tcp.throughput", args: [], field: RX, frames: false },
  { id: "tcp.throughput.8", args: ["-P", "8"], field: RX, frames: false },
  { id: "tcp.throughput.reverse", args: ["-R"], field: TX, frames: false },
  { id: "tcp.throughput.frames", args: [], field: RX, frames: true },
];
/** Samples of each side, and ms of one; what a change leaves behind is let pass first. */
const SAMPLES = times(31), WINDOW = 120, SETTLE = 20;

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  internet([SERVER]);
  const guest = guestBehind("guest", 1);
  sysctl({ "ipv4/ip_local_port_range": "1024 65000" }, guest.name);
  const agent = await BareAgent.start({ hostAddresses: ["127.0.0.1", UPLINK.host, "172.30.1.1"], connected: ["172.30.1.0/24"], resolver: false });
  const sandbox = await agent.add(0, guest, POLICY);
  let held = true;
  const hold = (/** @type {boolean} */ wanted) => {
    if (wanted !== held) (wanted ? agent.hold(guest) : agent.release(guest));
    held = wanted;
  };

  await start(["stdbuf", "--output=L", "iperf3", "--server"], "internet", (line) => line.includes("listening"));
  for (const kind of THROUGHPUT) {
    out.say(kind.id);
    if (kind.frames) await segments(guest.name, false);
    hold(true);
    const seconds = Math.ceil((SAMPLES + 1) * 2 * (WINDOW + SETTLE) / 1_000) + 30;
    const load = await start(["stdbuf", "--output=L", "iperf3", "--client", SERVER, "--time", String(seconds), "--interval", "0", ...kind.args], guest.name, (line) => line.includes("connected to"));
    await pause(300);
    const sample = (/** @type {boolean} */ enforced) => async () => {
      hold(enforced);
      await pause(SETTLE);
      const from = process.hrtime.bigint(), before = octets(guest.device, kind.field);
      await pause(WINDOW);
      return (octets(guest.device, kind.field) - before) * 8 / Number(process.hrtime.bigint() - from);
    };
    const taken = quietHalf(await inTurns({ ours: sample(true), baseline: sample(false) }, { samples: SAMPLES }), "high");
    if (load.exitCode !== null) throw new Error(`${kind.id}: iperf3 ended early`);
    await stop(load);
    out.row(row(kind.id, "Gbit/s", { ours: taken.ours, baseline: taken.baseline, ratio: "bare" }));
    if (kind.frames) await segments(guest.name, true);
    await pause(200);
  }

  await start([RR, "serve", String(ECHO)], "internet", (line) => line === "ready");
  hold(true);
  const asker = await start([RR, "ask", SERVER, String(ECHO)], guest.name, (line) => line === "ready");
  const lines = createInterface({ input: /** @type {import("node:stream").Readable} */ (asker.stdout) })[Symbol.asyncIterator]();
  for (const [id, verb, exchanges] of /** @type {const} */ ([["tcp.rr", "rr", times(2_000)], ["tcp.crr", "crr", times(400)]])) {
    out.say(id);
    const sample = (/** @type {boolean} */ enforced) => async () => {
      hold(enforced);
      asker.stdin?.write(`${verb} ${exchanges}\n`);
      return Number((await lines.next()).value) / 1_000;
    };
    const taken = quietHalf(await inTurns({ ours: sample(true), baseline: sample(false) }, { samples: SAMPLES }));
    out.row(row(id, "µs", { ours: taken.ours, baseline: taken.baseline, ratio: "bare-cost" }));
  }
  await stop(asker);
  verify(sandbox.tables);
  hold(false);
  await agent.stop();
}

/** Octets that the device has counted. @param {string} device @param {number} column */
function octets(device, column) {
  const line = readFileSync("/proc/net/dev", "latin1").split("\n").find((text) => text.trimStart().startsWith(`${device}:`)) ?? "";
  return Number(line.slice(line.indexOf(":") + 1).trim().split(/\s+/)[column]);
}

/** Whether the guest's stack leaves cutting into frames to the device. @param {string} name @param {boolean} on */
async function segments(name, on) {
  await command(["ip", "link", "set", "eth0", "gso_max_segs", on ? "65535" : "1"], name);
}

/** The figures count only if the guest was under its policy, and everything passed. @param {import("../../dist/kernel/sandbox-tables.js").SandboxTables} tables */
function verify(tables) {
  const map = tables.inner("counters");
  const counts = map === null ? [] : readCounters(map);
  map?.close();
  const denied = counts.filter(({ verdict }) => verdict === "deny"), passed = counts.find(({ reason }) => reason === "established");
  if (denied.length > 0) throw new Error(`denied meanwhile: ${denied.map(({ reason, packets }) => `${packets} ${reason}`).join(", ")}`);
  if (Number(passed?.packets ?? 0n) < times(100_000)) throw new Error("the programs have seen next to nothing");
}
