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
 *
 * Baseline of attach: two TCX links with an empty program, and nothing else. Peer: nft(8) loading a netdev chain with the
 * same policy for the tap, beside as many others; of detach: nft(8) deleting it.
 */
import { Tap, BpfLink } from "../../native/index.js";
import { Enforcer } from "../../dist/agent/enforcer.js";
import { Instance } from "../../dist/kernel/instance.js";
import { layouts } from "../../dist/kernel/layout.gen.js";
import { buildPolicy } from "../../dist/policy/build.js";
import { median, quantile, row } from "../lib/measure.mjs";
import { bpffs, folder, ip, must, quiet, run as command } from "../lib/place.mjs";

const COUNTS = [1, 100, 1_000];
const CYCLES = 150;

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
  const size = Math.floor(values.length / 10);
  const parts = Array.from({ length: 10 }, (_, i) => of(values.slice(i * size, (i + 1) * size)));
  return { value: of(values), parts };
}

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  const { policy } = buildPolicy({});
  const enforcer = await Enforcer.start({
    runDirectory: folder(), bpffs: bpffs(), instance: "bench", sandboxes: 1_100, resolverDevice: "enf0", resolvConf: null,
    onPackets: () => undefined, onQueries: () => undefined, onLink: () => undefined, onNotice: (text) => out.say(text), onFailure: (error) => { throw error; },
  });
  const attach = (/** @type {string} */ tap) => enforcer.attach({ tap, policy, gateways: [], guest: [], mac: null, upstreams: [] });
  const plain = Instance.open({ directory: null, sandboxes: 1 });
  const empty = plain.program("empty");
  const before = await settledRss();

  let taps = makeTaps(0, 4);
  const [cycled, barePlace, peerPlace, ...held] = taps;
  let attached = 0;
  /** @type {import("../lib/measure.mjs").Row[]} */
  const rows = [];
  for (const count of COUNTS) {
    if (held.length < count) held.push(...makeTaps(3 + held.length, count - held.length));
    for (; attached < count; attached++) {
      await attach(held[attached].name);
      must(["nft", "-f", "-"], attached % 50 === 0 ? Array.from({ length: Math.min(50, count - attached) }, (_, i) => nftTable(held[attached + i].name)).join("\n") : "");
    }
    out.say(`${count} attached`);
    const taken = /** @type {Record<"attach" | "detach" | "bare" | "nftOn" | "nftOff", number[]>} */ ({ attach: [], detach: [], bare: [], nftOn: [], nftOff: [] });
    for (let cycle = -5; cycle < CYCLES; cycle++) {
      const one = {
        attach: await timed(() => attach(cycled.name)),
        detach: await timed(() => enforcer.detach(cycled.name)),
        bare: await timed(() => bareLinks(empty, barePlace.ifindex)),
        // A process a time: a tenth of the cycles is enough, and the rest repeat it.
        nftOn: cycle % 10 === 0 ? await timed(() => must(["nft", "-f", "-"], nftTable(peerPlace.name))) : NaN,
        nftOff: cycle % 10 === 0 ? await timed(() => must(["nft", "delete", "table", "netdev", peerPlace.name])) : NaN,
      };
      if (cycle >= 0) for (const [name, value] of Object.entries(one)) if (!Number.isNaN(value)) taken[/** @type {keyof typeof taken} */ (name)].push(value);
    }
    const suffix = count === 1_000 ? "" : `@${count}`;
    for (const [id, ours, base, peer, of] of /** @type {const} */ ([
      ["attach.p50", taken.attach, taken.bare, taken.nftOn, median], ["attach.p99", taken.attach, taken.bare, taken.nftOn, p99], ["detach.p99", taken.detach, null, taken.nftOff, p99],
    ])) {
      const { value, parts } = runs(ours, of);
      const made = row(`${id}${suffix}`, "ms", { ours: [value], baseline: base === null ? null : [of(base)], peer: [of(peer)], ratio: "cost" });
      rows.push({ ...made, spread: row("", "", { ours: parts }).spread });
    }
  }
  const agentKib = (await settledRss() - before) / 1024 / 1_000;

  out.say("fresh taps");
  const fresh = [];
  for (let i = 0; i < 40; i++) {
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
  // In the order of the table, not of the measurement.
  for (const name of ["attach.p50", "attach.p99", "attach.fresh", "detach", "mem"]) for (const made of rows.filter(({ id }) => id.startsWith(name)).reverse()) out.row(made);
  await enforcer.stop();
  plain.close();
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
