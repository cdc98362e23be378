/**
 * Attaching and detaching one tap more where many are held, and the memory that a sandbox takes: the agent's own class
 * Enforcer in this process, real taps, each with a /30, the built-in policy (deny metadata and all that is not public).
 *
 *   attach.p50, attach.p99, detach.p99   with 1,000 taps attached: from the call to the verdict of the self-test on the tap
 *   …@1, …@100                           with so many
 *   attach.fresh.p99                     the tap was made a moment before: the host's addresses are read anew meanwhile
 *   mem.sandbox.kernel                   KiB of kernel memory of one sandbox whose tables of flows and pins are full, as the
 *                                        kernel counts its maps
 *   mem.sandbox.kernel.idle              the same of one that has just been attached
 *   mem.sandbox.agent                    KiB of resident memory of the agent's process by sandbox, over those of 1,000
 *   swap.p99                             one policy of 500 rules in the place of another, while the guest sends: from the call
 *                                        until the former one is freed; no frame of a flow that both allow may be lost meanwhile
 *
 * Baseline of attach: two TCX links with an empty program, and nothing else. Peer: nft(8) loading a netdev chain with the
 * same policy for a tap, beside as many others, in a namespace of its own with as many taps: who uses the one does not have the
 * other; of detach: nft(8) deleting it; of swap: nft(8) putting one chain of the same 500 rules in the place of another.
 */
import { BpfLink, createNetns, Tap } from "../../native/index.js";
import { readCounters } from "../../dist/kernel/counters.js";
import { Instance } from "../../dist/kernel/instance.js";
import { layouts } from "../../dist/kernel/layout.gen.js";
import { inNetns } from "../../dist/net/request.js";
import { buildPolicy } from "../../dist/policy/build.js";
import { policyOf } from "../lib/kernel.mjs";
import { attachTap, startEngine } from "../lib/engine.mjs";
import { GATEWAY } from "../lib/frames.mjs";
import { median, quantile, row, times } from "../lib/measure.mjs";
import { ip, must, quiet, run as command } from "../lib/place.mjs";
import { prefixes } from "../lib/policies.mjs";
import { Traffic } from "../lib/traffic.mjs";

const COUNTS = [1, times(100), times(1_000)];
const CYCLES = times(100), SWAPS = times(100, 20);

/** @param {number} i */
const gateway = (i) => `10.${1 + (i >> 12)}.${(i >> 4) & 255}.${(i & 15) * 16 + 1}`;

/** Makes taps with an address each, in one run of ip(8). @param {number} from @param {number} count */
function makeTaps(from, count) {
  const taps = Array.from({ length: count }, (_, k) => new Tap(`t${from + k}`, { vnetHeader: true }));
  ip(taps.map((tap, k) => `link set ${tap.name} up\naddr add ${gateway(from + k)}/30 dev ${tap.name}`).join("\n"));
  return taps;
}

/** What the built-in policy is in nftables. @param {string} device */
const nftTable = (device) => `
  table netdev ${device} {
    set closed4 { type ipv4_addr; flags interval; elements = { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3 } }
    set closed6 { type ipv6_addr; flags interval; elements = { ::/3, 4000::/2, 8000::/1, 2001::/32, 2001:db8::/32, 2002::/16 } }
    chain guest {
      type filter hook ingress device ${device} priority 0; policy accept;
      ip daddr @closed4 counter drop
      ip6 daddr @closed6 counter drop
    }
  }`;

/** @param {() => unknown} work @returns {Promise<number>} ms */
async function timed(work) {
  const start = process.hrtime.bigint();
  await work();
  return Number(process.hrtime.bigint() - start) / 1e6;
}

const p99 = (/** @type {readonly number[]} */ values) => quantile(values, 0.99);

/** Percentiles over all cycles; their spread by cutting the cycles into ten runs. @param {readonly number[]} values @param {(values: readonly number[]) => number} of */
function runs(values, of) {
  const size = Math.max(1, Math.floor(values.length / 10));
  const parts = Array.from({ length: Math.min(10, values.length) }, (_, i) => of(values.slice(i * size, (i + 1) * size)));
  return { value: of(values), parts };
}

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  const { policy } = buildPolicy({});
  const enforcer = await startEngine({ sandboxes: 1_100, say: out.say });
  const attach = (/** @type {string} */ tap) => attachTap(enforcer, tap, policy);
  const plain = Instance.open({ directory: null, sandboxes: 1 });
  const empty = plain.program("empty");
  const before = await settledRss();

  const [cycled, barePlace, ...held] = makeTaps(0, 3);
  const peers = createNetns();
  const [peerPlace, ...peerTaps] = inNetns(peers, () => makeTaps(2, 2));
  const nft = (/** @type {readonly string[]} */ args, input = "") => inNetns(peers, () => must(["nft", ...args], input));
  let attached = 0;
  /** @type {import("../lib/measure.mjs").Row[]} */
  const rows = [];
  for (const count of COUNTS) {
    const more = count - held.length, next = 3 + held.length;
    if (more > 0) {
      held.push(...makeTaps(next, more));
      peerTaps.push(...inNetns(peers, () => makeTaps(next, more)));
    }
    for (; attached < count; attached++) {
      await attach(held[attached].name);
      if (attached % 50 === 0) nft(["-f", "-"], Array.from({ length: Math.min(50, count - attached) }, (_, i) => nftTable(peerTaps[attached + i].name)).join("\n"));
    }
    out.say(`${count} attached`);
    const taken = /** @type {Record<"attach" | "detach" | "bare" | "nftOn" | "nftOff", number[]>} */ ({ attach: [], detach: [], bare: [], nftOn: [], nftOff: [] });
    for (let cycle = -5; cycle < CYCLES; cycle++) {
      const one = {
        attach: await timed(() => attach(cycled.name)),
        detach: await timed(() => enforcer.detach(cycled.name)),
        // Their grace periods are not shortened, and nft(8) is a process a time: some of the cycles are enough.
        bare: cycle % 5 === 0 ? await timed(() => bareLinks(empty, barePlace.ifindex)) : NaN,
        nftOn: cycle % 10 === 0 ? await timed(() => nft(["-f", "-"], nftTable(peerPlace.name))) : NaN,
        nftOff: cycle % 10 === 0 ? await timed(() => nft(["delete", "table", "netdev", peerPlace.name])) : NaN,
      };
      if (cycle >= 0) for (const [name, value] of Object.entries(one)) if (!Number.isNaN(value)) taken[/** @type {keyof typeof taken} */ (name)].push(value);
    }
    const suffix = count === COUNTS.at(-1) ? "" : count === 1 ? "@1" : "@100";
    for (const [id, ours, base, peer, of] of /** @type {const} */ ([
      ["attach.p50", taken.attach, taken.bare, taken.nftOn, median], ["attach.p99", taken.attach, taken.bare, taken.nftOn, p99], ["detach.p99", taken.detach, null, taken.nftOff, p99],
    ])) {
      const { value, parts } = runs(ours, of);
      const made = row(`${id}${suffix}`, "ms", { ours: [value], baseline: base === null ? null : [of(base)], peer: [of(peer)], ratio: "cost" });
      rows.push({ ...made, spread: row("", "", { ours: parts }).spread });
    }
  }
  const agentKib = (await settledRss() - before) / 1024 / attached;

  out.say("fresh taps");
  const fresh = [];
  for (let i = 0; i < times(40); i++) {
    const [tap] = makeTaps(3_000 + i, 1);
    fresh.push(await timed(() => attach(tap.name)));
    await enforcer.detach(tap.name);
    tap.close();
  }
  rows.push({ ...row("attach.fresh.p99", "ms", { ours: [p99(fresh)] }), spread: row("", "", { ours: fresh }).spread });

  const sandbox = enforcer.sandboxes.get(held[0].name);
  if (sandbox === undefined) throw new Error("the first sandbox has gone");
  const idle = sandbox.tables.memory() / 1024;
  fill(sandbox.tables);
  const full = sandbox.tables.memory() / 1024;
  rows.push(row("mem.sandbox.kernel", "KiB", { ours: [full] }), row("mem.sandbox.kernel.idle", "KiB", { ours: [idle] }), row("mem.sandbox.agent", "KiB", { ours: [agentKib] }));
  out.say("swap");
  rows.push(await swap(enforcer));
  // In the order of the table, not of the measurement.
  for (const name of ["attach.p50", "attach.p99", "attach.fresh", "detach", "mem", "swap"]) for (const made of rows.filter(({ id }) => id.startsWith(name)).reverse()) out.row(made);
  await enforcer.stop();
  plain.close();
}

/** Addresses and ports of 500 rules that share no bit; the first allows what the traffic is. @param {number} variant */
function fiveHundred(variant) {
  const { v4 } = prefixes(1_000 + variant);
  return v4.slice(variant).slice(0, 500).map((prefix, i) => (i === 0 ? { prefix: "93.184.216.0/24", port: 443 } : { prefix, port: 1_024 + i }));
}

/** @param {import("../../dist/agent/enforcer.js").Enforcer} enforcer */
async function swap(enforcer) {
  const traffic = await Traffic.start("swap0");
  ip(`link set swap0 address ${GATEWAY.mac} up\naddr add ${GATEWAY.v4}/30 dev swap0`);
  const rules = [0, 500].map(fiveHundred);
  const policies = rules.map((list) => policyOf(["default_egress: deny", "rules:", ...list.map(({ prefix, port }) => `  - {allow: "${prefix}", proto: tcp, ports: [${port}]}`), ""].join("\n")));
  const tables = rules.map((list) => `table netdev swap { chain guest { type filter hook ingress device swap1 priority 0; policy drop\n${list.map(({ prefix, port }) => `ip daddr ${prefix} tcp dport ${port} counter accept\n`).join("")} }\n}`);
  const [idle] = [new Tap("swap1", { vnetHeader: true })];
  const sandbox = await attachTap(enforcer, "swap0", policies[0]);
  // The self-test of the attach was counted as well.
  const before = countsOf(sandbox.tables);
  traffic.go();
  /** @type {number[]} */
  const ours = [], peer = [];
  must(["nft", "-f", "-"], tables[0]);
  for (let i = 1; i <= SWAPS; i++) {
    ours.push(await timed(() => enforcer.setPolicy("swap0", policies[i % 2], null)));
    if (i % 10 === 0) peer.push(await timed(() => must(["nft", "-f", "-"], `delete table netdev swap\n${tables[(i / 10) % 2]}`)));
  }
  const sent = await traffic.stop();
  const after = countsOf(sandbox.tables);
  const passed = after.allow - before.allow, denied = after.deny - before.deny;
  if (sent < 10_000 || denied > 0 || passed < sent) throw new Error(`of ${sent} frames sent during ${SWAPS} swaps ${passed} passed and ${denied} were denied`);
  await enforcer.detach("swap0");
  idle.close();
  const { value, parts } = runs(ours, p99);
  return { ...row("swap.p99", "ms", { ours: [value], peer: [p99(peer)], ratio: "cost" }), spread: row("", "", { ours: parts }).spread };
}

/** What the guest's frames met so far. @param {import("../../dist/kernel/sandbox-tables.js").SandboxTables} tables */
function countsOf(tables) {
  const map = tables.inner("counters");
  if (map === null) throw new Error("the counters are missing");
  const sums = { allow: 0, deny: 0, redirect: 0 };
  for (const { direction, verdict, packets } of readCounters(map)) if (direction === "egress") sums[verdict] += Number(packets);
  map.close();
  return sums;
}

/** @param {import("../../native/index.js").BpfProgram} program @param {number} ifindex */
function bareLinks(program, ifindex) {
  const links = /** @type {const} */ (["ingress", "egress"]).map((hook) => BpfLink.attachTcx(program, ifindex, hook));
  for (const link of links) {
    link.detach();
    link.close();
  }
}

/** Fills the tables of flows and pins to the last entry. @param {import("../../dist/kernel/sandbox-tables.js").SandboxTables} tables */
function fill(tables) {
  for (const [map, keySize, valueSize] of /** @type {const} */ ([[tables.inner("flows"), layouts.flow_key.size, layouts.flow.size], [tables.pins(), 16, layouts.pin.size]])) {
    if (map === null) throw new Error("a table is missing");
    const count = map.info.maxEntries;
    const keys = Buffer.alloc(count * keySize);
    for (let i = 0; i < count; i++) keys.writeUInt32LE(i, i * keySize);
    map.updateBatch(keys, Buffer.alloc(count * valueSize), count);
    map.close();
  }
}

/** Resident octets once garbage is collected and pages have come back. */
async function settledRss() {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await command(["sleep", "0.2"]);
  }
  return process.memoryUsage.rss();
}
