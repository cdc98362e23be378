/**
 * Before "enforcing" is said: packets through the loaded programs, and their verdicts.
 *
 * The programs run (BPF_PROG_TEST_RUN) as if the packets came from the resolver's device, which for that moment carries a
 * sandbox in the spare slot with a policy of its own; the guest's tap, its tables and its counters are not touched. The
 * last step takes the tap itself: a frame of an EtherType that no policy can allow.
 *
 * Holds always: any verdict but the expected one is an error, and nothing was put in force.
 */
import { fromV4, parseAddress, type Address } from "../addresses/address.js";
import { EnforcerError } from "../errors.js";
import { compilePolicy } from "../policy/compile.js";
import { buildPolicy } from "../policy/build.js";
import { reasonName, type Count } from "./counters.js";
import type { PacketEvent } from "./events.js";
import { ethernet, tcpSyn, udp } from "./frames.js";
import type { Globals } from "./globals.js";
import type { Instance } from "./instance.js";
import { Reason, layouts } from "./layout.gen.js";
import { SandboxTables, slotKey } from "./sandbox-tables.js";
import type { HookProgram, Programs } from "./tap-link.js";
import { possibleCpus } from "../../native/index.js";

const GUEST_MAC = Uint8Array.of(2, 0, 0, 0, 0, 2), GATEWAY_MAC = Uint8Array.of(2, 0, 0, 0, 0, 1), OTHER_MAC = Uint8Array.of(2, 0, 0, 0, 0, 3);
const GUEST4 = fromV4(10, 0, 0, 2), GATEWAY4 = fromV4(10, 0, 0, 1);
const GUEST6 = address("fd00::2"), GATEWAY6 = address("fd00::1");
/** Local experimental EtherType (IEEE 802). */
const EXPERIMENTAL = 0x88b5;
/** Offset of ifindex in struct __sk_buff (linux/bpf.h). */
const SKB_IFINDEX = 40, SKB_SIZE = 192;

const NEXT = -1, DROP = 2, REDIRECT = 7;

interface Step { readonly what: string; readonly program: HookProgram; readonly frame: Buffer; readonly expected: number }

function address(text: string): Address {
  const parsed = parseAddress(text);
  if (parsed === null) throw new Error(`${text} is no address`);
  return parsed;
}

const from4 = { sourceMac: GUEST_MAC, destinationMac: GATEWAY_MAC, source: GUEST4 };
const from6 = { sourceMac: GUEST_MAC, destinationMac: GATEWAY_MAC, source: GUEST6 };
const public4 = address("93.184.215.14"), public6 = address("2606:2800:21f:cb07:6820:80da:af6b:8b2c");

const steps: readonly Step[] = [
  { what: "TCP to 169.254.169.254", program: "from_guest", frame: tcpSyn({ ...from4, destination: address("169.254.169.254") }, 80), expected: DROP },
  { what: "TCP to 10.1.2.3", program: "from_guest", frame: tcpSyn({ ...from4, destination: address("10.1.2.3") }, 80), expected: DROP },
  { what: "TCP to fd00:ec2::254", program: "from_guest", frame: tcpSyn({ ...from6, destination: address("fd00:ec2::254") }, 80), expected: DROP },
  { what: "TCP to 64:ff9b::a9fe:a9fe", program: "from_guest", frame: tcpSyn({ ...from6, destination: address("64:ff9b::a9fe:a9fe") }, 80), expected: DROP },
  { what: "TCP to a public IPv4 address", program: "from_guest", frame: tcpSyn({ ...from4, destination: public4 }, 443), expected: NEXT },
  { what: "TCP to a public IPv6 address", program: "from_guest", frame: tcpSyn({ ...from6, destination: public6 }, 443), expected: NEXT },
  { what: "DNS over UDP to a public address", program: "from_guest", frame: udp({ ...from4, destination: public4 }, 53), expected: REDIRECT },
  { what: "another source MAC", program: "from_guest", frame: tcpSyn({ ...from4, sourceMac: OTHER_MAC, destination: public4 }, 443), expected: DROP },
  { what: "another source address", program: "from_guest", frame: tcpSyn({ ...from4, source: fromV4(10, 0, 0, 3), destination: public4 }, 443), expected: DROP },
  { what: "an unknown EtherType", program: "from_guest", frame: ethernet(GUEST_MAC, GATEWAY_MAC, EXPERIMENTAL, new Uint8Array(46)), expected: DROP },
  { what: "inbound TCP that no rule allows", program: "to_guest", frame: tcpSyn({ sourceMac: GATEWAY_MAC, destinationMac: GUEST_MAC, source: public4, destination: GUEST4 }, 22), expected: DROP },
];

function run(programs: Programs, program: HookProgram, frame: Buffer, ifindex: number): number {
  const context = Buffer.alloc(SKB_SIZE);
  context.writeUInt32LE(ifindex, SKB_IFINDEX);
  return programs.program(program).testRun({ data: frame, context }).returnValue | 0;
}

/**
 * @param ifindex the resolver's near device: it exists, and no guest is behind it.
 * @param place its namespace, with the programs of its devices; absent: the agent's own.
 * @throws EnforcerError E_SELF_TEST.
 */
export function selfTest(instance: Instance, globals: Globals, ifindex: number, place: (Programs & { readonly number: number }) | null = null): void {
  const { policy } = buildPolicy({});
  const generation = 1;
  const tables = SandboxTables.make(instance, instance.spareSlot, generation, {
    ifindex, place: place?.number ?? 0, tapMac: GATEWAY_MAC, mac: GUEST_MAC, dhcp: false, learnPrefixes: [], gateways: [GATEWAY4, GATEWAY6],
    guest: [{ bytes: GUEST4, length: 128, family: 4 }, { bytes: GUEST6, length: 128, family: 6 }],
  }, { flows: 16, pins: 16, eventsPerSecond: 0, queriesPerSecond: 16, connectionsPerSecond: 16, addresses: 16 });
  try {
    const uid = tables.nextUid();
    tables.stage(compilePolicy(policy, { uid }), uid, 16).close();
    tables.commit(uid);
    tables.enforce();
    globals.setTap(ifindex, instance.spareSlot, generation, place?.number);
    for (const { what, program, frame, expected } of steps) {
      const code = run(place ?? instance, program, frame, ifindex);
      if (code !== expected) throw new EnforcerError("E_SELF_TEST", `self-test: ${what} got TC code ${code}, ${expected} expected`);
    }
  } finally {
    globals.clearTap(ifindex, place?.number);
    tables.clear();
  }
}

/** The frame of selfTestTap. */
const tapFrame = ethernet(OTHER_MAC, GATEWAY_MAC, EXPERIMENTAL, new Uint8Array(46));

/**
 * The tap's own way: a frame that no policy can allow must be dropped and counted in this sandbox. The kernel cannot tell it from a
 * guest's; countsOfGuest takes such frames out of what is shown.
 * @throws EnforcerError E_SELF_TEST.
 */
export function selfTestTap(instance: Instance, programs: Programs, slot: number, ifindex: number, name: string): void {
  const before = denialsByEtherType(instance, slot);
  const code = run(programs, "from_guest", tapFrame, ifindex);
  if (code !== DROP) throw new EnforcerError("E_SELF_TEST", `self-test on ${name}: an unknown EtherType got TC code ${code}, ${DROP} expected`);
  if (denialsByEtherType(instance, slot) === before) throw new EnforcerError("E_SELF_TEST", `self-test on ${name}: the drop was not counted for this sandbox`);
}

/**
 * A sandbox's counters without the frames of selfTestTap: by number, so that nothing that a guest sends, of whatever form, is taken out with them.
 * @param tests how many such frames are known to have been counted in it.
 */
export function countsOfGuest(counts: readonly Count[], tests: number): Count[] {
  return counts.flatMap((row) => {
    if (row.direction !== "egress" || row.reason !== reasonName(Reason.REASON_ETHERTYPE) || row.packets < BigInt(tests)) return [row];
    const packets = row.packets - BigInt(tests);
    return packets === 0n ? [] : [{ ...row, packets, bytes: row.bytes - BigInt(tests * tapFrame.length) }];
  });
}

/** Whether an event is as the one of selfTestTap; a guest can bring about the same. */
export function isAsTapTest({ direction, reason, etherType, length }: PacketEvent): boolean {
  return direction === "egress" && reason === reasonName(Reason.REASON_ETHERTYPE) && etherType === EXPERIMENTAL && length === tapFrame.length;
}

function denialsByEtherType(instance: Instance, slot: number): bigint {
  const counters = SandboxTables.adopt(instance, slot)?.inner("counters");
  if (counters === null || counters === undefined) return 0n;
  try {
    const values = counters.lookup(slotKey(Reason.REASON_ETHERTYPE));
    let sum = 0n;
    for (let cpu = 0; values !== null && cpu < possibleCpus(); cpu++) sum += values.readBigUInt64LE(cpu * layouts.counter.size);
    return sum;
  } finally {
    counters.close();
  }
}
