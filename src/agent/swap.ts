/**
 * One policy in the place of another, whole and at once: no packet is judged by parts of both.
 *
 * Order: tables beside those in force → the workers know both policies, the resolver writes pins to both → state names both → one
 * 8-byte write puts the new one in force → the workers drop the old one → state names the new one. A process that dies anywhere in
 * between leaves either policy whole, and its successor reads in the kernel which. Flows are judged again by the kernel; silent
 * ones that are forbidden now are told by nudge().
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { BpfMap } from "../../native/index.js";
import { formatAddress } from "../addresses/address.js";
import type { GroupTable } from "../addresses/groups.js";
import { formerTcp, type FlowRow } from "../kernel/flows.js";
import { nudgeFlows } from "../kernel/nudge.js";
import { judgeFlow } from "../policy/flow-judge.js";
import { Proto, type Policy } from "../policy/types.js";
import type { PinRow } from "../dns/protocol.js";
import { quietly, type Parts } from "./parts.js";
import { compiledAs } from "./predecessor.js";
import type { PolicyState, SandboxState } from "./run-directory.js";
import { digestOf, sizesOf, type Sandbox } from "./sandbox.js";
import type { Told } from "./workers.js";

/** Silent connections that are told at one time. */
const NUDGES = 4096;

/** Pins written for the new policy, and pins that it has no place for. */
export interface Swapped { readonly uid: bigint; readonly written: number; readonly left: number }

/**
 * @param policy its prefixes in the groups of now, as those of floor.
 * @param source what it was made from; kept in the state file as it is.
 * @throws EnforcerError; then the old policy is in force as before.
 */
export async function swap({ run, workers }: Parts, sandbox: Sandbox, policy: Policy, floor: Policy | null, source: unknown): Promise<Swapped> {
  const { name, tables, slot, generation, options } = sandbox;
  const uid = tables.nextUid();
  const { compiled, compiledFloor } = compiledAs(uid, policy, floor);
  const sizes = sizesOf(policy);
  const state = run.read(name) ?? stateOf(sandbox);
  const next: PolicyState = { uid: uid.toString(), digest: digestOf(policy, floor), source };
  const former = toldOf(sandbox);
  let begun = false, written = 0, left = 0;
  try {
    const pins = tables.stage(compiled, uid, sizes.pins);
    let floorPins: BpfMap | null = null;
    try {
      if (compiledFloor !== null) floorPins = tables.stageFloor(compiledFloor, uid, sizes.pins);
    } catch (error) {
      pins.close();
      throw error;
    }
    ({ written, left } = await workers.beginSwap({ ...former, policy, compiled, floor, compiledFloor }, { pins, floorPins }, former));
    begun = true;
    run.write({ ...state, next });
    tables.commit(uid);
  } catch (error) {
    if (begun) await workers.abortSwap(former);
    if (tables.uid !== uid) await quietly(() => tables.discard(uid));
    await quietly(() => run.write(state));
    throw error;
  }
  sandbox.former = sandbox.compiled;
  sandbox.compiled = compiled;
  sandbox.policy = policy;
  sandbox.floor = floor;
  sandbox.compiledFloor = compiledFloor;
  sandbox.options = { ...options, policy, source, floor };
  await workers.confirmSwap(slot, generation);
  tables.describe(sandbox.identity, sizes);
  run.write({ ...state, policy: next, next: null });
  return { uid, written, left };
}

function toldOf({ name, slot, generation, tables, policy, compiled, floor, compiledFloor, options: { upstreams } }: Sandbox): Told {
  return { name, slot, generation, tables, policy, compiled, floor, compiledFloor, upstreams };
}

/** For a state file that has gone. */
function stateOf({ name, facts, slot, generation, compiled, policy, floor, options, preparation, tests }: Sandbox): SandboxState {
  return {
    version: 1, name, phase: "enforced", device: facts.name, ifindex: facts.ifindex, slot, generation, next: null, changes: preparation.changes, spec: options.spec, tests,
    policy: { uid: compiled.uid.toString(), digest: digestOf(policy, floor), source: options.source },
  };
}

/** A moment at which the sandbox's silent connections are looked at. */
export interface NudgeOptions {
  readonly groups: () => GroupTable;
  readonly pins: () => Promise<readonly PinRow[]>;
  readonly learned: () => { mac: Uint8Array | null; address4: Uint8Array | null; address6: Uint8Array | null };
  /** Whether the device still carries our programs. */
  readonly carries: () => boolean;
  /** Whether the sandbox is still in force under the policy that was swapped in. */
  readonly current: () => boolean;
  /** The n-th look since the swap, from 0. */
  readonly turn: number;
}

/** Connections that nothing has passed since the swap to policy `uid`, and that it forbids, end as busy ones do: both ends are told. */
export async function nudge({ instance, inside }: Parts, sandbox: Sandbox, uid: bigint, { groups, pins, learned, carries, current, turn }: NudgeOptions): Promise<void> {
  if (!current()) return;
  const names = new Map<string, (readonly string[])[]>();
  for (const { address, labels } of await pins()) {
    const key = formatAddress(address);
    names.set(key, [...(names.get(key) ?? []), labels]);
  }
  const policies = [sandbox.policy, ...(sandbox.floor === null ? [] : [sandbox.floor])];
  const forbidden = ({ direction, remote, remotePort, guestPort, inspected }: FlowRow): boolean => {
    const port = direction === "egress" ? remotePort : guestPort;
    const judged = policies.map((policy) => judgeFlow(policy, groups(), { direction, address: remote, protocol: Proto.tcp, port, names: names.get(formatAddress(remote)) ?? [], inspect: true }));
    // One that the agent has to look into from now on, or no more, ends as well.
    return judged.some(({ verdict }) => verdict === "deny") || judged.some((one) => one.inspected) !== inspected;
  };
  let left = NUDGES;
  for (const former of formerTcp(sandbox.tables, uid)) {
    // Others have their turn between the parts of a large table; and the policy, the sandbox or the device may be another after it.
    await nextTurn();
    if (!current()) return;
    const { identity: { ifindex, tapMac, guest, mac } } = sandbox, seen = learned();
    const known = mac ?? seen.mac;
    if (known === null || !carries()) return;
    const told = former.filter(forbidden).slice(0, left);
    left -= inside(() => nudgeFlows(instance, { ifindex, tapMac, mac: known, guest, learned: seen }, told, turn));
    if (left === 0) return;
  }
}
