/**
 * Pins in the kernel: the value of struct pin, written into one sandbox's inner map of `pins`; and which addresses its
 * flows use now.
 *
 * Holds always: offsets come from the generated layout, never from here; a written value has every unused slot zero.
 * Does not: choose what is written.
 */
import type { BpfMap } from "../../native/index.js";
import { AbiLimit, layouts } from "../kernel/layout.gen.js";
import type { AddressWriter, PinEntry } from "./pins.js";

/** @throws RangeError for more entries than a pin has slots. */
export function encodePin(address: Uint8Array, entries: readonly PinEntry[], out: Uint8Array = new Uint8Array(layouts.pin.size)): Uint8Array {
  if (entries.length > AbiLimit.PIN_SLOTS) throw new RangeError(`${entries.length} rule bits for one address; a pin has ${AbiLimit.PIN_SLOTS}`);
  const { addr, expires, bit } = layouts.pin.fields;
  const view = new DataView(out.buffer, out.byteOffset, out.length);
  out.fill(0);
  out.set(address, addr.offset);
  entries.forEach((entry, i) => {
    view.setUint32(expires.offset + 4 * i, entry.expires, true);
    view.setUint16(bit.offset + 2 * i, entry.bit, true);
  });
  return out;
}

export class MapPinWriter implements AddressWriter {
  private readonly value = new Uint8Array(layouts.pin.size);

  constructor(private readonly map: Pick<BpfMap, "update" | "delete" | "close">) {}

  write(address: Uint8Array, entries: readonly PinEntry[]): void {
    this.map.update(address, encodePin(address, entries, this.value));
  }

  remove(address: Uint8Array): void {
    this.map.delete(address);
  }

  close(): void {
    this.map.close();
  }
}

/**
 * Remote addresses of the flows in a sandbox's flow table that carried a packet within the last `withinNs`.
 * @param nowNs CLOCK_MONOTONIC.
 */
export function addressesInUse(flows: Pick<BpfMap, "entries">, nowNs: bigint, withinNs: bigint): Set<string> {
  const { keys, values, count } = flows.entries();
  const used = new Set<string>();
  const remote = layouts.flow_key.fields.remote.offset;
  for (let i = 0; i < count; i++) {
    const seen = values.readBigUInt64LE(i * layouts.flow.size + layouts.flow.fields.last_seen_ns.offset);
    if (nowNs - seen > withinNs) continue;
    const at = i * layouts.flow_key.size + remote;
    used.add(keys.toString("latin1", at, at + 16));
  }
  return used;
}
