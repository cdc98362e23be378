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
import { AbiLimit, Direction, FlowFlag, layouts, RedirectState } from "./layout.gen.js";

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

/** @param limit rows at most, and those that the agent looks into where these are wanted as well; `total` counts all. */
function readFlows(map: BpfMap, limit: number, inspected: boolean): { readonly rows: FlowRow[]; readonly total: number } {
  const { keys, values, count } = map.entries();
  const rows: FlowRow[] = [];
  for (let i = 0; i < count; i++) {
    if (i < limit || (inspected && isInspected(values, i))) rows.push(rowOf(keys, values, i));
    else if (!inspected) break;
  }
  return { rows, total: count };
}

/** Entries of one part of formerTcp. */
const PART = 4096;

/**
 * TCP flows that another policy than this one has judged last, in parts of a few milliseconds each: a table may hold a million, and
 * who reads it all at once does nothing else for seconds.
 */
export function* formerTcp(tables: { inner(name: "flows"): BpfMap | null }, uid: bigint): Generator<FlowRow[]> {
  const map = tables.inner("flows");
  if (map === null) return;
  try {
    for (let after: Buffer | null = null; ;) {
      const { keys, values, count, next } = map.page(after, PART);
      const rows: FlowRow[] = [];
      for (let i = 0; i < count; i++) {
        if (keys[i * layouts.flow_key.size + key.proto.offset] === Proto.tcp && values.readBigUInt64LE(i * layouts.flow.size + value.policy.offset) !== uid) rows.push(rowOf(keys, values, i));
      }
      yield rows;
      if (next === null) return;
      after = next;
    }
  } finally {
    map.close();
  }
}

/** Connections that go through the agent. @param map `intercepted` of the slot. */
function readIntercepted(map: BpfMap, limit: number): { readonly rows: FlowRow[]; readonly total: number } {
  const { values, count } = map.entries();
  const { size, fields } = layouts.redirect;
  const rows: FlowRow[] = [];
  let total = 0;
  for (let i = 0; i < count; i++) {
    const entry = values.subarray(i * size, (i + 1) * size);
    if (entry.readUInt32LE(fields.state.offset) !== RedirectState.REDIRECT_LIVE || entry[fields.closing.offset] !== 0) continue;
    if (total++ >= limit) continue;
    rows.push({
      protocol: entry[fields.proto.offset]!, direction: "egress", remote: Uint8Array.from(entry.subarray(fields.remote.offset, fields.remote.offset + 16)),
      remotePort: entry.readUInt16BE(fields.remote_port.offset), guestPort: entry.readUInt16BE(fields.guest_port.offset), rule: null, policy: 0n, lasted: null, opened: null, guest: null, inspected: true, intercepted: true,
    });
  }
  return { rows, total };
}

const keyOf = ({ protocol, guestPort, remotePort, remote }: FlowRow): string => `${protocol} ${guestPort} ${remotePort} ${Buffer.from(remote).toString("hex")}`;

/** Both kinds, of one sandbox's tables. A connection that goes through the agent may stand in both: it is one flow, with the rule that allowed it. */
export function flowsOf(tables: { inner(name: "flows" | "intercepted"): BpfMap | null }, limit: number): { readonly rows: FlowRow[]; readonly total: number } {
  const read = (name: "flows" | "intercepted", of: (map: BpfMap) => ReturnType<typeof readFlows>): ReturnType<typeof readFlows> => {
    const map = tables.inner(name);
    if (map === null) return { rows: [], total: 0 };
    try {
      return of(map);
    } finally {
      map.close();
    }
  };
  const looked = read("intercepted", (map) => readIntercepted(map, Infinity));
  const flows = read("flows", (map) => readFlows(map, limit, looked.total > 0));
  const through = new Map(looked.rows.map((row) => [keyOf(row), row]));
  const rows = looked.total === 0 ? flows.rows : flows.rows.map((row) => (row.inspected && through.delete(keyOf(row)) ? { ...row, intercepted: true } : row));
  return { rows: [...rows, ...through.values()].slice(0, limit), total: flows.total + through.size };
}
