/**
 * The frames that the benchmarks write: TCP and UDP over IPv4 and IPv6, well formed, with right checksums.
 */
import net from "node:net";

export const SYN = 2, ACK = 16;

export const GUEST = /** @type {const} */ ({ mac: "02:fc:00:00:00:02", v4: "172.30.0.2", v6: "fd00:30:0:1::2" });
export const GATEWAY = /** @type {const} */ ({ mac: "02:fc:00:00:01:01", v4: "172.30.0.1", v6: "fd00:30:0:1::1" });

/** @param {string} text */
export const macBytes = (text) => Buffer.from(text.replaceAll(":", ""), "hex");

/** 4 or 16 octets. @param {string} text */
export function addressBytes(text) {
  if (net.isIPv4(text)) return Buffer.from(text.split(".").map(Number));
  const [head, tail] = text.split("::");
  const groups = (/** @type {string | undefined} */ part) => (part === undefined || part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16)));
  const before = groups(head), after = groups(tail);
  const all = [...before, ...Array(8 - before.length - after.length).fill(0), ...after];
  const bytes = Buffer.alloc(16);
  all.forEach((group, i) => bytes.writeUInt16BE(group, 2 * i));
  return bytes;
}

/** RFC 1071. @param {Buffer} data @param {number} sum */
function onesSum(data, sum = 0) {
  for (let at = 0; at < data.length; at += 2) sum += at + 1 < data.length ? data.readUInt16BE(at) : data[at] << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return sum;
}

/**
 * @typedef {object} Packet
 * @property {string} destination
 * @property {number} port
 * @property {number} [sourcePort]
 * @property {number} [flags] of TCP
 * @property {Buffer} [payload]
 * @property {boolean} [partial] the checksum field holds the sum of the pseudo header, for the receiver to complete
 */

/** @param {Packet} packet */
export function tcp({ destination, port, sourcePort = 40_000, flags = SYN, payload = Buffer.alloc(0), partial = false }) {
  const segment = Buffer.alloc(20 + payload.length);
  segment.writeUInt16BE(sourcePort, 0);
  segment.writeUInt16BE(port, 2);
  segment.writeUInt32BE(1, 4);
  segment.writeUInt32BE(flags & ACK ? 1 : 0, 8);
  segment[12] = 5 << 4;
  segment[13] = flags;
  segment.writeUInt16BE(0xffff, 14);
  payload.copy(segment, 20);
  return ipFrame(destination, 6, segment, 16, partial);
}

/** @param {string} destination @param {number} protocol @param {Buffer} segment @param {number} checksumAt @param {boolean} partial */
function ipFrame(destination, protocol, segment, checksumAt, partial) {
  const v6 = net.isIPv6(destination);
  const source = addressBytes(v6 ? GUEST.v6 : GUEST.v4), target = addressBytes(destination);
  const pseudo = onesSum(Buffer.concat([source, target, Buffer.from([0, 0, segment.length >> 8, segment.length & 255, 0, 0, 0, protocol])]));
  segment.writeUInt16BE(partial ? pseudo : ~onesSum(segment, pseudo) & 0xffff, checksumAt);
  const ethernet = Buffer.concat([macBytes(GATEWAY.mac), macBytes(GUEST.mac), Buffer.from(v6 ? [0x86, 0xdd] : [0x08, 0x00])]);
  if (v6) {
    const header = Buffer.alloc(40);
    header[0] = 0x60;
    header.writeUInt16BE(segment.length, 4);
    header[6] = protocol;
    header[7] = 64;
    source.copy(header, 8);
    target.copy(header, 24);
    return Buffer.concat([ethernet, header, segment]);
  }
  const header = Buffer.alloc(20);
  header[0] = 0x45;
  header.writeUInt16BE(20 + segment.length, 2);
  header[8] = 64;
  header[9] = protocol;
  source.copy(header, 12);
  target.copy(header, 16);
  header.writeUInt16BE(~onesSum(header) & 0xffff, 10);
  return Buffer.concat([ethernet, header, segment]);
}

/** struct virtio_net_hdr for one TCP segment that the receiver cuts up. @param {Buffer} frame @param {number} size of the pieces */
export function withVnetHeader(frame, size) {
  const v6 = frame.readUInt16BE(12) === 0x86dd;
  const l4 = v6 ? 54 : 34;
  const header = Buffer.alloc(10);
  header[0] = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
  header[1] = size === 0 ? 0 : v6 ? 4 : 1; // GSO_NONE, TCPV6, TCPV4
  header.writeUInt16LE(l4 + 20, 2);
  header.writeUInt16LE(size, 4);
  header.writeUInt16LE(l4, 6);
  header.writeUInt16LE(16, 8);
  return Buffer.concat([header, frame]);
}
