/**
 * The flows of one sandbox as the kernel's table holds them.
 *
 * Holds always: numbers are the kernel's; an entry that is past its time and not yet swept is shown too. The kernel's ticks are
 * counted from a moment that user space does not know, so only differences of them are told.
 */
import { tickNanoseconds, type BpfMap } from "../../native/index.js";
import type { Address } from "../addresses/address.js";
import type { DirectionName } from "./counters.js";
import { AbiLimit, Direction, layouts } from "./layout.gen.js";

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
  /** Seconds between its first packet and its last one so far. */
  readonly lasted: number;
}

/** @param limit entries at most; `total` counts all. */
export function readFlows(map: BpfMap, limit: number): { readonly rows: FlowRow[]; readonly total: number } {
  const { keys, values, count } = map.entries();
  const tick = tickNanoseconds();
  const rows: FlowRow[] = [];
  for (let i = 0; i < Math.min(count, limit); i++) {
    const k = i * layouts.flow_key.size, v = i * layouts.flow.size;
    const rule = values.readUInt16LE(v + value.rule.offset);
    const created = values.readBigUInt64LE(v + value.created_ticks.offset), seen = values.readBigUInt64LE(v + value.last_seen_ticks.offset);
    rows.push({
      protocol: keys[k + key.proto.offset]!, direction: values[v + value.origin.offset] === Direction.DIR_EGRESS ? "egress" : "ingress",
      remote: Uint8Array.from(keys.subarray(k + key.remote.offset, k + key.remote.offset + 16)),
      remotePort: keys.readUInt16BE(k + key.remote_port.offset), guestPort: keys.readUInt16BE(k + key.guest_port.offset),
      rule: rule >= AbiLimit.MAX_RULES ? null : rule, policy: values.readBigUInt64LE(v + value.policy.offset),
      lasted: Number(seen - created) * tick / 1e9,
    });
  }
  return { rows, total: count };
}
