/** Directed broadcast addresses (RFC 919, RFC 922) of an address on a link. Pure. */
import type { Address } from "../addresses/address.js";
import type { InterfaceAddress } from "./rtnetlink.js";

/** The one that is configured and the one that the prefix implies; none for IPv6, for /31 (RFC 3021) and for /32. */
export function broadcastsOf({ family, local, peer, prefixLength, broadcast }: InterfaceAddress): Address[] {
  const found = broadcast === null ? [] : [broadcast];
  if (family === 4 && peer === null && prefixLength < 127) {
    const last = Uint8Array.from(local);
    for (let bit = prefixLength; bit < 128; bit++) last[bit >> 3]! |= 0x80 >> (bit & 7);
    found.push(last);
  }
  return found;
}
