/**
 * The flows of one sandbox as the kernel's table holds them.
 *
 * Holds always: numbers are the kernel's; an entry that is past its time and not yet swept is shown too. The kernel's ticks are
 * counted from a moment that user space does not know, so only differences of them are told.
 */
import { tickNanoseconds, type BpfMap } from "../../native/index.js";
import type { Address } from "../addresses/address.js";
import { Proto } from "../policy/types.js";
import type { DirectionName } from "./counters.js";
import { AbiLimit, Closing, Direction, FlowFlag, layouts, RedirectState } from "./layout.gen.js";

const key = layouts.flow_key.fields, value = layouts.flow.fields;

export interface FlowRow {
  readonly protocol: number;
  /** Who opened it: egress: the guest. */
  readonly direction: DirectionName;
  readonly remote: Address;
  /** 0 for protocols without ports. */
  readonly remotePort: number;
  /** Of ICMP echo: its identifier. */
  readonly guestPort: number;
  /** Rule bit that allowed it; null: the default. */
  readonly rule: number | null;
  /** uid of the policy under which it was last allowed. */
  readonly policy: bigint;
  /** Seconds between its first packet and its last one so far; null: not known. */
  readonly lasted: number | null;
  /** The kernel's tick at which it was opened; null: not known. */
  readonly opened: bigint | null;
  /** Which of the guest's addresses: `guest` of flow_key; null: not known. */
  readonly guest: number | null;
  /** Its packets go to the agent. */
  readonly inspected: boolean;
  /** It goes through the agent, which looks who is meant. */
  readonly intercepted: boolean;
}

function rowOf(keys: Buffer, values: Buffer, i: number): FlowRow {
  const k = i * layouts.flow_key.size, v = i * layouts.flow.size;
  const rule = values.readUInt16LE(v + value.rule.offset);
  const created = values.readBigUInt64LE(v + value.created_ticks.offset), seen = values.readBigUInt64LE(v + value.last_seen_ticks.offset);
  return {
    protocol: keys[k + key.proto.offset]!, direction: values[v + value.origin.offset] === Direction.DIR_EGRESS ? "egress" : "ingress",
    remote: Uint8Array.from(keys.subarray(k + key.remote.offset, k + key.remote.offset + 16)),
    remotePort: keys.readUInt16BE(k + key.remote_port.offset), guestPort: keys.readUInt16BE(k + key.guest_port.offset),
    rule: rule >= AbiLimit.MAX_RULES ? null : rule, policy: values.readBigUInt64LE(v + value.policy.offset),
    lasted: Number(seen - created) * tickNanoseconds() / 1e9, opened: created, guest: keys[k + key.guest.offset]!, inspected: isInspected(values, i), intercepted: false,
  };
}

function isInspected(values: Buffer, i: number): boolean { return (values[i * layouts.flow.size + value.flags.offset]! & FlowFlag.FLOW_INSPECT) !== 0; }

/** Entries of one part. */
const PART = 4096;

/**
 * What one map holds, in parts of a few milliseconds each: a table may hold a million, and who reads it all at once does nothing else
 * for seconds. What comes in between may be missed. Closes the map.
 */
function* parts(map: BpfMap): Generator<{ readonly keys: Buffer; readonly values: Buffer; readonly count: number }> {
  try {
    for (let after: Buffer | null = null; ;) {
      const { keys, values, count, next } = map.page(after, PART);
      yield { keys, values, count };
      if (next === null) return;
      after = next;
    }
  } finally {
    map.close();
  }
}

/** TCP flows that another policy than this one has judged last. */
export function* formerTcp(tables: { inner(name: "flows"): BpfMap | null }, uid: bigint): Generator<FlowRow[]> {
  const map = tables.inner("flows");
  if (map === null) return;
  for (const { keys, values, count } of parts(map)) {
    const rows: FlowRow[] = [];
    for (let i = 0; i < count; i++) {
      if (keys[i * layouts.flow_key.size + key.proto.offset] === Proto.tcp && values.readBigUInt64LE(i * layouts.flow.size + value.policy.offset) !== uid) rows.push(rowOf(keys, values, i));
    }
    yield rows;
  }
}

/** Connections that go through the agent, as one row each, whose tick and rule are not known. A sandbox has 2,048 at most. */
export function interceptedOf(tables: { inner(name: "intercepted"): BpfMap | null }): FlowRow[] { return conversationsOf(tables).map(({ row }) => row); }

/** opening: the guest has only knocked; the agent's kernel may have given it up, and tells nobody. */
function conversationsOf(tables: { inner(name: "intercepted"): BpfMap | null }): { readonly row: FlowRow; readonly opening: boolean }[] {
  const map = tables.inner("intercepted");
  if (map === null) return [];
  const { size, fields } = layouts.redirect;
  const rows: { row: FlowRow; opening: boolean }[] = [];
  for (const { values, count } of parts(map)) {
    for (let i = 0; i < count; i++) {
      const entry = values.subarray(i * size, (i + 1) * size);
      if (entry.readUInt32LE(fields.state.offset) !== RedirectState.REDIRECT_LIVE) continue;
      const closing = entry[fields.closing.offset]!;
      if ((closing & ~Closing.CLOSING_OPENING) !== 0) continue;
      rows.push({ opening: closing !== 0, row: {
        protocol: entry[fields.proto.offset]!, direction: "egress", remote: Uint8Array.from(entry.subarray(fields.remote.offset, fields.remote.offset + 16)),
        remotePort: entry.readUInt16BE(fields.remote_port.offset), guestPort: entry.readUInt16BE(fields.guest_port.offset), rule: null, policy: 0n, lasted: null, opened: null, guest: null, inspected: true, intercepted: true,
      } });
    }
  }
  return rows;
}

const keyOf = ({ protocol, guestPort, remotePort, remote }: FlowRow): string => `${protocol} ${guestPort} ${remotePort} ${Buffer.from(remote).toString("hex")}`;

export interface FlowPart {
  /** Those of the part that are wanted. */
  readonly rows: readonly FlowRow[];
  /** All of the part. */
  readonly count: number;
  /** The latest tick at which one of the part was opened; 0n: not known. */
  readonly newest: bigint;
}

/**
 * Flows of both kinds, of one sandbox's tables, in parts; see parts(). A connection that goes through the agent may stand in both: it
 * is one flow, with the rule that allowed it.
 * @param wanted asked of each flow, in the order in which they are told. `opened`: see FlowRow.
 */
export function* flowParts(tables: { inner(name: "flows" | "intercepted"): BpfMap | null }, wanted: (opened: bigint | null) => boolean): Generator<FlowPart> {
  const through = new Map(conversationsOf(tables).map((one) => [keyOf(one.row), one]));
  const flows = tables.inner("flows");
  if (flows !== null) {
    for (const { keys, values, count } of parts(flows)) {
      const rows: FlowRow[] = [];
      let newest = 0n;
      for (let i = 0; i < count; i++) {
        const opened = values.readBigUInt64LE(i * layouts.flow.size + value.created_ticks.offset);
        if (opened > newest) newest = opened;
        const intercepted = through.size > 0 && isInspected(values, i) && through.delete(keyOf(rowOf(keys, values, i)));
        if (wanted(opened)) rows.push({ ...rowOf(keys, values, i), intercepted });
      }
      yield { rows, count, newest };
    }
  }
  // One that has only begun lives as long as the flow that allowed it.
  const left = [...through.values()].flatMap(({ row, opening }) => (opening ? [] : [row]));
  yield { rows: left.filter(() => wanted(null)), count: left.length, newest: 0n };
}
