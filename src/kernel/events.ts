/**
 * Denials as the kernel tells them: struct event of the ring buffer.
 *
 * Holds always: a record of another size is an error, never guessed at.
 */
import { RingBuffer } from "../../native/index.js";
import type { Address } from "../addresses/address.js";
import { reasonName, type DirectionName } from "./counters.js";
import type { Instance } from "./instance.js";
import { AbiLimit, Direction, layouts } from "./layout.gen.js";

const field = layouts.event.fields;

export interface PacketEvent {
  readonly slot: number;
  readonly generation: number;
  /** CLOCK_MONOTONIC, ns, to the tick. */
  readonly timeNs: bigint;
  readonly direction: DirectionName;
  readonly reason: string;
  /** IP protocol; 0: none. */
  readonly proto: number;
  readonly etherType: number;
  /** Rule bit; null: the default, or none. */
  readonly rule: number | null;
  readonly source: Address;
  readonly destination: Address;
  /** ICMP: type and code in one. */
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly length: number;
  /** uid of the policy. */
  readonly policy: bigint;
}

export function decodeEvent(record: Buffer): PacketEvent {
  if (record.length !== layouts.event.size) throw new Error(`an event of ${record.length} octets, ${layouts.event.size} expected`);
  const rule = record.readUInt16LE(field.rule.offset);
  return {
    slot: record.readUInt32LE(field.slot.offset),
    generation: record.readUInt32LE(field.generation.offset),
    timeNs: record.readBigUInt64LE(field.time_ns.offset),
    direction: record[field.direction.offset] === Direction.DIR_EGRESS ? "egress" : "ingress",
    reason: reasonName(record[field.reason.offset]!),
    proto: record[field.proto.offset]!,
    etherType: record.readUInt16LE(field.ethertype.offset),
    rule: rule >= AbiLimit.MAX_RULES ? null : rule,
    source: Uint8Array.from(record.subarray(field.source.offset, field.source.offset + 16)),
    destination: Uint8Array.from(record.subarray(field.destination.offset, field.destination.offset + 16)),
    sourcePort: record.readUInt16LE(field.source_port.offset),
    destinationPort: record.readUInt16LE(field.destination_port.offset),
    length: record.readUInt32LE(field.length.offset),
    policy: record.readBigUInt64LE(field.policy.offset),
  };
}

/** Calls back with each batch that the kernel told. Close the returned buffer. */
export function followEvents(instance: Instance, onEvents: (events: PacketEvent[]) => void): RingBuffer {
  return new RingBuffer(instance.map("events"), (records) => onEvents(records.map(decodeEvent)));
}
