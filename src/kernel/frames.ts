/**
 * The few frames that the agent makes itself: those that the self-test sends through the programs, and those by which a silent
 * connection hears that it is over.
 *
 * Holds always: headers are well formed and checksums of IPv4 headers are right; payloads are empty. TCP and UDP checksums are 0: what
 * leaves of these frames is written anew by the kernel program, or completed here (tcpProbe).
 */
import { isV4, type Address } from "../addresses/address.js";

export interface Endpoints {
  readonly sourceMac: Uint8Array;
  readonly destinationMac: Uint8Array;
  readonly source: Address;
  readonly destination: Address;
}

const TCP = 6, UDP = 17, SYN = 0x02, ACK = 0x10;

export function tcpSyn(ends: Endpoints, port: number): Buffer {
  const tcp = Buffer.alloc(20);
  tcp.writeUInt16BE(40_000, 0);
  tcp.writeUInt16BE(port, 2);
  tcp[12] = 5 << 4;
  tcp[13] = SYN;
  return packet(ends, TCP, tcp);
}

/** A segment without payload, with its checksum. */
export function tcpProbe(ends: Endpoints, sourcePort: number, destinationPort: number, sequence: number): Buffer {
  const tcp = Buffer.alloc(20);
  tcp.writeUInt16BE(sourcePort, 0);
  tcp.writeUInt16BE(destinationPort, 2);
  tcp.writeUInt32BE(sequence, 4);
  tcp.writeUInt32BE(sequence, 8);
  tcp[12] = 5 << 4;
  tcp[13] = ACK;
  tcp.writeUInt16BE(1024, 14);
  const from = isV4(ends.source) ? 12 : 0;
  const pseudo = Buffer.concat([ends.source.subarray(from), ends.destination.subarray(from), Buffer.from([0, TCP, 0, tcp.length])]);
  tcp.writeUInt16BE(headerChecksum(Buffer.concat([pseudo, tcp])), 16);
  return packet(ends, TCP, tcp);
}

export function udp(ends: Endpoints, port: number): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt16BE(40_000, 0);
  header.writeUInt16BE(port, 2);
  header.writeUInt16BE(8, 4);
  return packet(ends, UDP, header);
}

/** @param type EtherType. */
export function ethernet(sourceMac: Uint8Array, destinationMac: Uint8Array, type: number, payload: Uint8Array): Buffer {
  const header = Buffer.alloc(14);
  header.set(destinationMac, 0);
  header.set(sourceMac, 6);
  header.writeUInt16BE(type, 12);
  return Buffer.concat([header, payload]);
}

function packet(ends: Endpoints, proto: number, l4: Buffer): Buffer {
  const { sourceMac, destinationMac, source, destination } = ends;
  if (isV4(source)) {
    const ip = Buffer.alloc(20);
    ip[0] = 0x45;
    ip.writeUInt16BE(20 + l4.length, 2);
    ip[8] = 64;
    ip[9] = proto;
    ip.set(source.subarray(12), 12);
    ip.set(destination.subarray(12), 16);
    ip.writeUInt16BE(headerChecksum(ip), 10);
    return ethernet(sourceMac, destinationMac, 0x0800, Buffer.concat([ip, l4]));
  }
  const ip = Buffer.alloc(40);
  ip[0] = 0x60;
  ip.writeUInt16BE(l4.length, 4);
  ip[6] = proto;
  ip[7] = 64;
  ip.set(source, 8);
  ip.set(destination, 24);
  return ethernet(sourceMac, destinationMac, 0x86dd, Buffer.concat([ip, l4]));
}

/** RFC 1071. */
function headerChecksum(header: Buffer): number {
  let sum = 0;
  for (let at = 0; at < header.length; at += 2) sum += header.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
