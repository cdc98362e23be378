/**
 * The kernel programs with one sandbox, without an agent: loaded, not pinned, filled by the classes that the agent uses.
 */
import { fileURLToPath } from "node:url";
import { parseAddress, parsePrefix } from "../../dist/addresses/address.js";
import { groupTable } from "../../dist/addresses/groups.js";
import { encodePin } from "../../dist/dns/kernel-pins.js";
import { Globals } from "../../dist/kernel/globals.js";
import { Instance } from "../../dist/kernel/instance.js";
import { SandboxTables } from "../../dist/kernel/sandbox-tables.js";
import { buildPolicy } from "../../dist/policy/build.js";
import { compilePolicy } from "../../dist/policy/compile.js";
import { parsePolicyText } from "../../dist/policy/parse.js";
import { GATEWAY, GUEST, macBytes } from "./frames.mjs";

export const BENCH_OBJECT = fileURLToPath(new URL("../build/walk.bpf.o", import.meta.url));
/** Offsets in struct __sk_buff (linux/bpf.h). */
const SKB_PRIORITY = 32, SKB_IFINDEX = 40, SKB_SIZE = 192;

/** @param {string} text */
export function address(text) {
  const parsed = parseAddress(text);
  if (parsed === null) throw new Error(`${text} is no address`);
  return parsed;
}

/** @param {string} text */
export function prefix(text) {
  const parsed = parsePrefix(text);
  if (parsed === null) throw new Error(`${text} is no prefix`);
  return parsed;
}

/** @param {string} text of a policy file */
export function policyOf(text) {
  return buildPolicy({ file: parsePolicyText(text, "bench.yaml") }).policy;
}

/** Address groups of a host that owns the gateway and one public address. */
export function hostGroups() {
  return groupTable({
    hostAddresses: [GATEWAY.v4, GATEWAY.v6, "185.199.108.2", "127.0.0.1"].map(address), connectedPrefixes: [prefix("172.30.0.0/30"), prefix("fd00:30:0:1::/64")],
    broadcasts: [], extra: {},
  });
}

/** One sandbox in slot 0 whose tap is a device of this namespace. */
export class Bench {
  /** @param {{policy: string, ifindex?: number, eventsPerSecond?: number}} options ifindex: default the loopback device, where test runs begin */
  constructor({ policy, ifindex = 1, eventsPerSecond = 100 }) {
    this.instance = Instance.open({ directory: null, sandboxes: 4 });
    this.globals = new Globals(this.instance);
    this.globals.setGroups(hostGroups());
    this.ifindex = ifindex;
    const built = policyOf(policy);
    const sizes = { flows: built.limits.flows, pins: built.limits.pins, eventsPerSecond, queriesPerSecond: 2 ** 32 - 1, connectionsPerSecond: 2 ** 32 - 1, addresses: built.limits.guestAddresses };
    this.tables = SandboxTables.make(this.instance, 0, 7, {
      ifindex, tapMac: macBytes(GATEWAY.mac), mac: macBytes(GUEST.mac), guest: [prefix(`${GUEST.v4}/32`), prefix(`${GUEST.v6}/128`)],
      learnPrefixes: [], gateways: [address(GATEWAY.v4), address(GATEWAY.v6)], dhcp: true,
    }, sizes);
    const uid = this.tables.nextUid();
    this.compiled = compilePolicy(built, { uid });
    this.pins = this.tables.stage(this.compiled, uid, sizes.pins);
    this.tables.commit(uid);
    this.tables.enforce();
    this.globals.setTap(ifindex, 0, 7);
  }

  /** Pins an address under every rule by name. @param {string} text */
  pin(text) {
    const bits = this.compiled.bits.filter(({ domain }) => domain).map(({ bit }) => ({ bit, expires: 0xffffffff }));
    this.pins.update(address(text), encodePin(address(text), bits.slice(0, 8)));
  }

  /** Frees all flows. */
  forgetFlows() {
    const flows = this.tables.inner("flows");
    if (flows === null) throw new Error("the table of flows is missing");
    const { keys, count } = flows.entries();
    if (count > 0) flows.deleteBatch(keys, count);
    flows.close();
    return count;
  }

  /**
   * @param {import("../../native/index.js").BpfProgram} program
   * @param {Buffer} data
   * @param {{repeat?: number, place?: number}} [options] place: in `next` of bpf/walk.bpf.c
   */
  run(program, data, { repeat = 1, place = 0 } = {}) {
    const context = Buffer.alloc(SKB_SIZE);
    context.writeUInt32LE(place, SKB_PRIORITY);
    context.writeUInt32LE(this.ifindex, SKB_IFINDEX);
    const { returnValue, durationNs } = program.testRun({ data, context, repeat });
    return { code: returnValue | 0, ns: durationNs };
  }

  close() {
    this.pins.close();
    this.tables.clear();
    this.instance.close();
  }
}
