/**
 * What a frame costs on a real tap: nanoseconds for each frame written to it, from the write to the verdict.
 *
 *   tap.drop          one more SYN to 10.0.0.1, denied by default
 *   tap.drop.cold     the same, each frame to another address in 10.0.0.0/8
 *   tap.established   a TCP packet of a flow in force (for the peer: one that its sets accept)
 *   tap.tso           a 64 KB TCP segment with a virtio header, of a flow in force
 *
 * Baseline: a program on the same hook that does nothing but give the same verdict. Peer: an nftables netdev ingress chain
 * with interval sets of the same prefixes (lib/nftables.mjs), without flow state, which that hook has not. ratio: what the
 * peer adds to the baseline, by what we add. @10000: 10,000 prefixes of each family. Frames that pass are then dropped by the
 * host's stack at once, as they are addressed to another MAC address than the tap's.
 */
import { BpfLink, BpfObject, Tap } from "../../native/index.js";
import { readCounters } from "../../dist/kernel/counters.js";
import { ACK, SYN, tcp, withVnetHeader } from "../lib/frames.mjs";
import { Bench, BENCH_OBJECT } from "../lib/kernel.mjs";
import { inTurns, quietHalf, row, times } from "../lib/measure.mjs";
import { nftCounts, nftPolicy } from "../lib/nftables.mjs";
import { ip, quiet, sysctl } from "../lib/place.mjs";
import { ALLOWED, policyText, PORT } from "../lib/policies.mjs";

const SAMPLES = times(31), FRAMES = 5_000, TSO_FRAMES = 500;

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  sysctl({ "ipv6/conf/default/disable_ipv6": 1 });
  const walks = BpfObject.load(BENCH_OBJECT);
  for (const [suffix, count] of /** @type {const} */ ([["", 10], ["@10000", 10_000]])) {
    for (const kind of KINDS) {
      if (suffix !== "" && kind.vnet) continue;
      for (const family of /** @type {const} */ (["v4", "v6"])) {
        const id = `${kind.id}${family === "v6" ? ".v6" : ""}${suffix}`;
        if (family === "v6" && kind.scatter) continue;
        out.say(id);
        out.row(await measure(id, kind, family, count, walks));
      }
    }
  }
  walks.close();
}

const KINDS = [
  { id: "tap.drop", drops: true, scatter: false, vnet: false },
  { id: "tap.drop.cold", drops: true, scatter: true, vnet: false },
  { id: "tap.established", drops: false, scatter: false, vnet: false },
  { id: "tap.tso", drops: false, scatter: false, vnet: true },
];

let taps = 0;

/** A tap that is up, with programs on its ingress hook, the first of them last. @param {boolean} vnet @param {readonly import("../../native/index.js").BpfProgram[]} programs */
function tapWith(vnet, programs) {
  const tap = new Tap(`bench${++taps}`, { vnetHeader: vnet });
  ip(`link set ${tap.name} address 02:fc:00:00:09:09 up`);
  const links = programs.map((program) => BpfLink.attachTcx(program, tap.ifindex, "ingress"));
  return { tap, close: () => { for (const link of links) { link.detach(); link.close(); } tap.close(); } };
}

/** @param {string} id @param {(typeof KINDS)[number]} kind @param {"v4" | "v6"} family @param {number} count @param {BpfObject} walks */
async function measure(id, { drops, scatter, vnet }, family, count, walks) {
  const first = scatter ? [walks.program("scatter")] : [];
  const destination = drops ? (family === "v6" ? "fd00:99::1" : "10.0.0.1") : ALLOWED[family];
  const payload = vnet ? Buffer.alloc(44 * 1448) : Buffer.alloc(0);
  const wrap = (/** @type {Buffer} */ frame) => (vnet ? withVnetHeader(frame, frame.length > 100 ? 1448 : 0) : frame);
  const opening = wrap(tcp({ destination, port: PORT, flags: SYN, partial: vnet }));
  const frame = wrap(tcp({ destination, port: PORT, flags: drops ? SYN : ACK, payload, partial: vnet }));
  const frames = vnet ? TSO_FRAMES : FRAMES;

  const bench = new Bench({ policy: policyText({ prefixes: count }) });
  const bare = tapWith(vnet, [drops ? walks.program("drop_all") : bench.instance.program("empty"), ...first]);
  const ours = tapWith(vnet, [bench.instance.program("from_guest"), ...first]);
  const peer = tapWith(vnet, first);
  try {
    bench.globals.setTap(ours.tap.ifindex, 0, 7);
    nftPolicy(peer.tap.name, peer.tap.name, count);
    if (!drops) ours.tap.write(opening);
    const taken = await inTurns({
      baseline: () => bare.tap.writeRepeated(frame, frames) / frames,
      ours: () => ours.tap.writeRepeated(frame, frames) / frames,
      peer: () => peer.tap.writeRepeated(frame, frames) / frames,
    }, { samples: SAMPLES, warmup: 2 });
    const written = (SAMPLES + 2) * frames;
    verify(id, "nftables", nftCounts(peer.tap.name), drops, written);
    const counters = bench.tables.inner("counters");
    const counts = counters === null ? [] : readCounters(counters);
    counters?.close();
    const of = (/** @type {string} */ verdict) => counts.filter((count) => count.verdict === verdict).reduce((sum, { packets }) => sum + Number(packets), 0);
    verify(id, "the enforcer", { passed: of("allow"), dropped: of("deny") }, drops, written);
    const quietest = quietHalf(taken);
    return row(id, "ns", { ours: quietest.ours, baseline: quietest.baseline, peer: quietest.peer, ratio: "added" });
  } finally {
    for (const one of [bare, ours, peer]) one.close();
    bench.close();
  }
}

/** A figure counts only if every frame got the verdict it is about. @param {string} id @param {string} who @param {{passed: number, dropped: number}} counts @param {boolean} drops @param {number} written */
function verify(id, who, { passed, dropped }, drops, written) {
  const right = drops ? dropped : passed, wrong = drops ? passed : dropped;
  if (right < written || wrong > 0) throw new Error(`${id}: of ${written} frames ${who} let ${passed} pass and dropped ${dropped}`);
}
