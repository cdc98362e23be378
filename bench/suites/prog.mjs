/**
 * What the kernel programs cost by themselves: nanoseconds a packet by BPF_PROG_TEST_RUN, baseline the program `empty` of the
 * same object, in turns.
 *
 *   prog.established       a TCP packet of a flow in force
 *   prog.drop.metadata     one more SYN to 169.254.169.254 / fd00:ec2::254 (metadata group); the denial is remembered
 *   prog.drop.private      one more SYN to 10.0.0.1 / fd00:99::1; the denial is remembered
 *   prog.drop.private.cold a SYN to another private address each time: no cache knows it, groups and policy are asked
 *   prog.new_flow          first packet of a new flow to an allowed address, another source port each time: judged, flow made
 *   prog.new_flow.cold     the same to another address each time: the range tries are asked as well
 *   prog.pin.hit           first packet of a new flow to an address pinned to a name, another source port each time
 *   prog.long.*            the same packets on the way that has no short cuts (from_guest_long): what a first packet pays
 *
 * Where each repetition must be another packet, a program before the measured one makes it so (bpf/walk.bpf.c); it stands
 * before the baseline too. Every kind of row is measured with policies of 10, 1,000 and 10,000 prefixes of each family and of
 * 1,000 names whose addresses are all pinned.
 */
import { BpfObject } from "../../native/index.js";
import { ACK, SYN, tcp } from "../lib/frames.mjs";
import { Bench, BENCH_OBJECT } from "../lib/kernel.mjs";
import { inTurns, quietHalf, row, times } from "../lib/measure.mjs";
import { ALLOWED, NAMED, policyText, PORT } from "../lib/policies.mjs";

const NEXT = -1, DROP = 2;
const SAMPLES = 41;
/** Repetitions of one sample: a millisecond or less, so that most samples are disturbed by nobody. New flows are freed after each. */
const REPEAT = 10_000, FLOWS = 500;

const POLICIES = [
  { suffix: "", prefixes: 10, names: 1 },
  { suffix: "@1000", prefixes: 1_000, names: 1 },
  { suffix: "@10000", prefixes: 10_000, names: 1 },
  { suffix: "@names1000", prefixes: 10, names: 1_000 },
];

/** @param {"v4" | "v6"} family */
function kinds(family) {
  const v6 = family === "v6", digit = v6 ? 6 : 4;
  const allowed = ALLOWED[family], metadata = v6 ? "fd00:ec2::254" : "169.254.169.254", closed = v6 ? "fd00:99::1" : "10.0.0.1";
  const syn = (/** @type {string} */ destination, port = PORT) => tcp({ destination, port, sourcePort: 2_000, flags: SYN });
  const established = tcp({ destination: allowed, port: PORT, flags: ACK });
  return [
    { id: "prog.established", frame: established, code: NEXT, opens: true },
    { id: "prog.drop.metadata", frame: syn(metadata, 80), code: DROP },
    { id: "prog.drop.private", frame: syn(closed, 80), code: DROP },
    { id: "prog.drop.private.cold", frame: syn(closed, 80), code: DROP, walk: `walk_address${digit}` },
    { id: "prog.new_flow", frame: syn(allowed), code: NEXT, walk: `walk_port${digit}`, flows: true },
    { id: "prog.new_flow.cold", frame: syn(v6 ? ALLOWED.walk6 : ALLOWED.walk4), code: NEXT, walk: `walk_address${digit}`, flows: true },
    { id: "prog.pin.hit", frame: syn(NAMED[family]), code: NEXT, walk: `walk_port${digit}`, flows: true },
    { id: "prog.long.established", frame: established, code: NEXT, opens: true, long: true },
    { id: "prog.long.drop.metadata", frame: syn(metadata, 80), code: DROP, long: true },
    { id: "prog.long.drop.private", frame: syn(closed, 80), code: DROP, long: true },
  ];
}

/** One policy in force, with a walk before its programs. @param {(typeof POLICIES)[number]} policy */
function open({ suffix, prefixes, names }) {
  const bench = new Bench({ policy: policyText({ prefixes, names }) });
  bench.pin(NAMED.v4);
  bench.pin(NAMED.v6);
  for (let i = 1; i < names / 2; i++) {
    bench.pin(`151.101.${i >> 8}.${i & 255}`);
    bench.pin(`2a04:4e42:${i.toString(16)}::1`);
  }
  return { suffix, bench, walks: BpfObject.load(BENCH_OBJECT) };
}

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  const places = POLICIES.map(open);
  try {
    /** @type {import("../lib/measure.mjs").Row[]} */
    const rows = [];
    for (const family of /** @type {const} */ (["v4", "v6"])) {
      for (const kind of kinds(family)) {
        out.say(`${kind.id}${family === "v6" ? ".v6" : ""}`);
        rows.push(...await measure(`${kind.id}${family === "v6" ? ".v6" : ""}`, places, kind));
      }
    }
    // One policy after the other reads better than one packet after the other.
    for (const { suffix } of POLICIES) for (const row of rows) if (suffixOf(row.id) === suffix) out.row(row);
  } finally {
    for (const { bench, walks } of places) {
      walks.close();
      bench.close();
    }
  }
}

const suffixOf = (/** @type {string} */ id) => (id.includes("@") ? id.slice(id.indexOf("@")) : "");

/** @param {string} id @param {readonly ReturnType<typeof open>[]} places @param {ReturnType<typeof kinds>[number]} kind */
async function measure(id, places, { frame, code, walk, long = false, flows = false, opens = false }) {
  const repeat = flows ? FLOWS : REPEAT;
  const subjects = places.map(({ suffix, bench, walks }) => {
    const empty = bench.instance.program("empty"), program = bench.instance.program(long ? "from_guest_long" : "from_guest");
    bench.forgetFlows();
    if (opens) {
      const first = Buffer.from(frame);
      first[(frame.readUInt16BE(12) === 0x86dd ? 54 : 34) + 13] = SYN;
      expect(id, bench.run(program, first).code, NEXT);
    }
    let entry = program, base = empty;
    if (walk !== undefined) {
      entry = base = walks.program(walk);
      const key = Buffer.alloc(4), value = Buffer.alloc(4);
      for (const [place, target] of [empty, program].entries()) {
        key.writeUInt32LE(place);
        value.writeUInt32LE(target.fd);
        walks.map("next").update(key, value);
      }
    }
    return {
      suffix,
      baseline: () => bench.run(base, frame, { repeat, place: 0 }).ns,
      ours: () => {
        const result = bench.run(entry, frame, { repeat, place: 1 });
        expect(id, result.code, code);
        if (flows) {
          const made = bench.forgetFlows();
          if (made !== repeat) throw new Error(`${id}: ${repeat} packets made ${made} flows`);
        }
        return result.ns;
      },
    };
  });
  const taken = quietHalf(await inTurns(/** @type {Record<string, () => number>} */ ({ baseline: subjects[0].baseline, ...Object.fromEntries(subjects.map(({ suffix, ours }) => [`ours${suffix}`, ours])) }), { samples: times(SAMPLES), warmup: 2 }));
  return subjects.map(({ suffix }) => row(`${id}${suffix}`, "ns", { ours: taken[`ours${suffix}`], baseline: taken.baseline, difference: true }));
}

/** @param {string} id @param {number} code @param {number} expected */
function expect(id, code, expected) {
  if (code !== expected) throw new Error(`${id}: TC code ${code}, ${expected} expected`);
}
