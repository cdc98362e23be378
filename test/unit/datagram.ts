/**
 * node:dgram in the form of the addon's batches, where a test does without the addon.
 *
 * Holds always: the callback sees what UdpBatch would show it, one datagram a batch. Does not: batch.
 */
import { createSocket } from "node:dgram";
import { formatAddress, parseAddress } from "../../src/addresses/address.js";
import { PEER, encodePeer, type DatagramSocket, type OnBatch } from "../../src/dns/peer.js";

export interface NodeDatagram extends DatagramSocket {
  /** Resolves to the port once bound. */
  readonly port: Promise<number>;
}

/** @param address numeric; @param port 0 for any. */
export function openDatagram(family: 4 | 6, address: string, port: number, onBatch: OnBatch): NodeDatagram {
  const socket = createSocket(family === 4 ? "udp4" : "udp6");
  socket.on("error", () => undefined);
  const lengths = new Uint32Array(1);
  socket.on("message", (message, from) => {
    lengths[0] = message.length;
    onBatch(1, message, lengths, encodePeer(from.family === "IPv4" ? 4 : 6, parseAddress(from.address)!, from.port));
  });
  const bound = new Promise<number>((resolve, reject) => {
    socket.once("error", reject);
    socket.bind(port, address, () => resolve(socket.address().port));
  });
  bound.catch(() => undefined);
  let closed = false;
  return {
    port: bound,
    dropped: 0,
    send(data, offset, length, peers, peerIndex) {
      if (closed) return;
      const p = peerIndex * PEER;
      const copy = Buffer.from(data.subarray(offset, offset + length)); // the caller writes its buffer again at once
      socket.send(copy, peers.readUInt16LE(p + 2), formatAddress(peers.subarray(p + 4, p + 20)), () => undefined);
    },
    flush() { /* each datagram left at once */ },
    close() {
      if (closed) return;
      closed = true;
      socket.close();
    },
  };
}
