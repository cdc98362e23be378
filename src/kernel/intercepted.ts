/**
 * What a connection that reached the agent was meant for: the kernel's table of intercepted connections of one sandbox.
 *
 * Holds always: reads only; an entry is good while its connection lives, and the port that the agent sees is its index
 * (struct redirect in bpf/abi.h). Any thread: a map's id or descriptor may be opened there.
 */
import type { BpfMap } from "../../native/index.js";
import type { Address } from "../addresses/address.js";
import { AbiLimit, layouts, RedirectState } from "./layout.gen.js";
import { slotKey } from "./sandbox-tables.js";

const field = layouts.redirect.fields;

export interface Intercepted {
  /** The guest's own address and port. */
  readonly guest: Address;
  readonly guestPort: number;
  /** What the guest aimed at. */
  readonly remote: Address;
  readonly remotePort: number;
}

/** @param port source port of the connection as the agent sees it. null: no such connection. */
export function interceptedAt(map: BpfMap, port: number): Intercepted | null {
  const index = port - AbiLimit.INTERCEPTED_PORT_BASE;
  if (index < 0 || index >= AbiLimit.INTERCEPTED) return null;
  const entry = map.lookup(slotKey(index));
  if (entry === null || entry.readUInt32LE(field.state.offset) !== RedirectState.REDIRECT_LIVE) return null;
  return {
    guest: Uint8Array.from(entry.subarray(field.guest_addr.offset, field.guest_addr.offset + 16)),
    guestPort: entry.readUInt16BE(field.guest_port.offset),
    remote: Uint8Array.from(entry.subarray(field.remote.offset, field.remote.offset + 16)),
    remotePort: entry.readUInt16BE(field.remote_port.offset),
  };
}
