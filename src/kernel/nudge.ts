/**
 * Silent connections that a policy forbids from now on: each end hears of it without saying anything first.
 *
 * A frame as if from the far side, without payload and with a sequence number that fits nowhere, passes the tap's egress hook. Where the
 * flow is forbidden the kernel program makes the guest's own stack answer, and cuts that answer with numbers that both sides accept
 * (bpf/refuse.h). Where it is not, the guest says once more what it had acknowledged.
 *
 * Holds always: nothing but such a frame is sent, to the guest alone; the caller bounds how many. A connection of a guest whose
 * address is not known by itself (a prefix was given) is left to its next packet.
 */
import { isV4, type Address, type Prefix } from "../addresses/address.js";
import { tcpProbe } from "./frames.js";
import type { FlowRow } from "./flows.js";
import type { Instance } from "./instance.js";

const TCP = 6;
/** Places of addresses in flow_key (bpf/identity.h): those that were given in their order, IPv6 ones from here on. */
const GUEST_6 = 8;
/** Offset of ifindex in struct __sk_buff (linux/bpf.h). */
const SKB_IFINDEX = 40, SKB_SIZE = 192;

export interface NudgedGuest {
  readonly ifindex: number;
  /** What the guest takes for its gateway's. */
  readonly tapMac: Uint8Array;
  readonly mac: Uint8Array;
  readonly guest: readonly Prefix[];
  readonly learned: { readonly address4: Address | null; readonly address6: Address | null };
}

/** The guest's address at a place of flow_key; null: it could be several, or is not known any more. */
export function guestAddress({ guest, learned }: Pick<NudgedGuest, "guest" | "learned">, place: number): Address | null {
  // A family's first place is that of the address that was learned, where one was: nothing was given then, or link-local ones alone.
  const found = place === 0 ? learned.address4 : place === GUEST_6 ? learned.address6 : null;
  if (found !== null) return found;
  const family = place >= GUEST_6 ? 6 : 4;
  const prefix = guest.filter((one) => one.family === family)[place >= GUEST_6 ? place - GUEST_6 : place];
  return prefix?.length === 128 ? prefix.bytes : null;
}

/**
 * Called with the thread in the tap's namespace.
 * @param turn another one each time: a number that fits by chance does not fit twice.
 * @returns frames sent, one a row at most.
 */
export function nudgeFlows(instance: Instance, guest: NudgedGuest, rows: readonly FlowRow[], turn: number): number {
  const context = Buffer.alloc(SKB_SIZE);
  context.writeUInt32LE(guest.ifindex, SKB_IFINDEX);
  let sent = 0;
  for (const row of rows) {
    const address = row.protocol !== TCP || row.guest === null ? null : guestAddress(guest, row.guest);
    if (address === null || isV4(address) !== isV4(row.remote)) continue;
    const data = tcpProbe({ sourceMac: guest.tapMac, destinationMac: guest.mac, source: row.remote, destination: address }, row.remotePort, row.guestPort, (turn * 0x40000000 + 1) >>> 0);
    instance.program("nudge").testRun({ data, context });
    sent++;
  }
  return sent;
}
