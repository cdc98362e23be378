/**
 * Addresses of UDP peers in the addon's form of 20 octets: family (u16 LE, 4 or 6), port (u16 LE), address (16 octets).
 *
 * Holds always: IPv4 stands IPv4-mapped; nothing here depends on how a socket names its peers.
 */

export const PEER = 20;

/** @param address 16 octets, @param port 0..65535. */
export function encodePeer(family: 4 | 6, address: Uint8Array, port: number): Buffer {
  const peer = Buffer.alloc(PEER);
  peer.writeUInt16LE(family, 0);
  peer.writeUInt16LE(port, 2);
  peer.set(address, 4);
  return peer;
}

export function samePeer(a: Uint8Array, aIndex: number, b: Uint8Array, bIndex: number): boolean {
  const p = aIndex * PEER;
  const q = bIndex * PEER;
  for (let i = 0; i < PEER; i++) if (a[p + i] !== b[q + i]) return false;
  return true;
}

/** A UDP socket in batches: what the addon's UdpBatch is, as far as the resolver uses it. */
export interface DatagramSocket {
  send(data: Uint8Array, offset: number, length: number, peers: Buffer, peerIndex: number): void;
  flush(): void;
  readonly dropped: number;
  close(): void;
}

/**
 * Called with count datagrams; datagram i is at i * cell of data, lengths[i] octets long (more than cell: cut short), from
 * the peer at PEER * i of peers. Nothing of it may be kept after the call.
 */
export type OnBatch = (count: number, data: Buffer, lengths: Uint32Array, peers: Buffer) => void;
