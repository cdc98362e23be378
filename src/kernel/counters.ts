/**
 * Packets and octets of one sandbox by direction and reason, summed over CPUs.
 *
 * Holds always: numbers are the kernel's; a reason's name is its enumerator in bpf/abi.h, lower case with dashes.
 */
import { BpfMap, possibleCpus } from "../../native/index.js";
import { Direction, layouts, Reason } from "./layout.gen.js";

export type DirectionName = "egress" | "ingress";
export type VerdictName = "allow" | "deny" | "redirect";

export interface Count { readonly direction: DirectionName; readonly reason: string; readonly verdict: VerdictName; readonly packets: bigint; readonly bytes: bigint }

const names = new Map<number, string>();
for (const [enumerator, number] of Object.entries(Reason)) names.set(number, enumerator.slice("REASON_".length).toLowerCase().replaceAll("_", "-"));

/** Name of a reason by number; "unknown" for one that this version has not. */
export function reasonName(reason: number): string { return names.get(reason) ?? "unknown"; }

/** Every reason but the never counted REASON_UNKNOWN, in order. */
export const reasonNames: readonly string[] = [...names].filter(([number]) => number > 0 && number < Reason.REASON_MAX).map(([, name]) => name);

const redirects: ReadonlySet<number> = new Set([Reason.REASON_DNS_REDIRECT, Reason.REASON_INTERCEPTED]);

/** The reasons before REASON_RULE_DENY let the packet on, those from it on do not. */
export function verdictOf(reason: number): VerdictName {
  if (redirects.has(reason)) return "redirect";
  return reason < Reason.REASON_RULE_DENY ? "allow" : "deny";
}

/** Those that are not zero. */
export function readCounters(map: BpfMap): Count[] {
  const { keys, values, count } = map.entries();
  const cpus = possibleCpus();
  const rows: Count[] = [];
  for (let i = 0; i < count; i++) {
    const index = keys.readUInt32LE(i * 4);
    let packets = 0n, bytes = 0n;
    for (let cpu = 0; cpu < cpus; cpu++) {
      const at = (i * cpus + cpu) * layouts.counter.size;
      packets += values.readBigUInt64LE(at + layouts.counter.fields.packets.offset);
      bytes += values.readBigUInt64LE(at + layouts.counter.fields.bytes.offset);
    }
    if (packets === 0n) continue;
    const reason = index % Reason.REASON_MAX;
    const direction = Math.floor(index / Reason.REASON_MAX) === Direction.DIR_EGRESS ? "egress" : "ingress";
    rows.push({ direction, reason: reasonName(reason), verdict: verdictOf(reason), packets, bytes });
  }
  return rows;
}
