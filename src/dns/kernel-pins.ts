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

/** The slots of a struct pin that are used; none for null. */
export function decodePin(value: Uint8Array | null): PinEntry[] {
  if (value === null) return [];
  const { expires, bit } = layouts.pin.fields;
  const view = new DataView(value.buffer, value.byteOffset, value.length);
  const entries: PinEntry[] = [];
  for (let i = 0; i < AbiLimit.PIN_SLOTS; i++) {
    const end = view.getUint32(expires.offset + 4 * i, true);
    if (end > 0) entries.push({ bit: view.getUint16(bit.offset + 2 * i, true), expires: end });
  }
  return entries;
}

/**
 * One sandbox's number in the map `pin_epochs`. This thread alone writes it, but during a policy swap through two of these:
 * the number is read each time.
 */
export class PinEpoch {
  private readonly key = new Uint8Array(4);
  private readonly value = Buffer.alloc(8);

  constructor(private readonly map: Pick<BpfMap, "lookupInto" | "update" | "close">, slot: number) {
    new DataView(this.key.buffer).setUint32(0, slot, true);
  }

  advance(): void {
    this.map.lookupInto(this.key, this.value);
    this.value.writeBigUInt64LE(BigInt.asUintN(64, this.value.readBigUInt64LE() + 1n));
    this.map.update(this.key, this.value);
  }

  close(): void {
    this.map.close();
  }
}

export class MapPinWriter implements AddressWriter {
  private readonly value = new Uint8Array(layouts.pin.size);

  /** @param epoch tells the kernel's cache of denials that a pin grants something new; null: there is none (tests). */
  constructor(private readonly map: Pick<BpfMap, "update" | "delete" | "close">, private readonly epoch: PinEpoch | null = null) {}

  write(address: Uint8Array, entries: readonly PinEntry[]): void {
    this.map.update(address, encodePin(address, entries, this.value));
  }

  granted(): void {
    this.epoch?.advance();
  }

  remove(address: Uint8Array): void {
    this.map.delete(address);
  }

  close(): void {
    this.map.close();
    this.epoch?.close();
  }
}

/** Remote addresses of the flows in a sandbox's flow table; what is idle is swept from it (kernel program `sweep`). */
export function addressesInUse(flows: Pick<BpfMap, "entries">): Set<string> {
  const { keys, count } = flows.entries();
  const used = new Set<string>();
  const remote = layouts.flow_key.fields.remote.offset;
  for (let i = 0; i < count; i++) {
    const at = i * layouts.flow_key.size + remote;
    used.add(keys.toString("latin1", at, at + 16));
  }
  return used;
}
