/**
 * Hand-made frames for tests: builders from the inside out, and a small decoder for what a sink captured.
 *
 * Holds always: lengths and checksums are right unless the caller sets them to be wrong; every builder returns a new
 * Uint8Array; addresses are text or raw bytes and the family follows the address (4 or 16 octets).
 * It does not judge anything and does not reassemble: a frame that cannot be decoded gives what was understood so far.
 */
import { isIPv4, isIPv6 } from "node:net";

export type Bytes = Uint8Array;
/** Text or raw octets. */
export type Address = string | Bytes;

export const ETHERTYPE = { ipv4: 0x0800, arp: 0x0806, ipv6: 0x86dd, vlan: 0x8100, qinq: 0x88a8 } as const;
/** IP protocol numbers and IPv6 next headers (IANA assigned internet protocol numbers). */
export const PROTOCOL = {
  hopByHop: 0, icmp: 1, igmp: 2, ipip: 4, tcp: 6, udp: 17, ipv6: 41, routing: 43, fragment: 44, gre: 47, esp: 50, ah: 51,
  icmpv6: 58, none: 59, destinationOptions: 60, sctp: 132, mobility: 135,
} as const;
export const TCP = { fin: 1, syn: 2, rst: 4, psh: 8, ack: 16, urg: 32, ece: 64, cwr: 128 } as const;
export const BROADCAST_MAC = "ff:ff:ff:ff:ff:ff";

/* ---- octets ---------------------------------------------------------------------------------------------------- */

export function bytes(...parts: (number | Bytes | string)[]): Bytes {
  return concat(parts.map((part) =>
    typeof part === "number" ? Uint8Array.of(part) : typeof part === "string" ? new TextEncoder().encode(part) : part));
}

export function concat(parts: readonly Bytes[]): Bytes {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export function u16(value: number): Bytes {
  return Uint8Array.of((value >>> 8) & 255, value & 255);
}

export function u32(value: number): Bytes {
  return Uint8Array.of((value >>> 24) & 255, (value >>> 16) & 255, (value >>> 8) & 255, value & 255);
}

export function hex(data: Bytes): string {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("hex");
}

export function fromHex(text: string): Bytes {
  return new Uint8Array(Buffer.from(text.replace(/[\s:]/g, ""), "hex"));
}

/** A payload of the given length with a recognisable pattern. */
export function filler(length: number, first = 0): Bytes {
  return Uint8Array.from({ length }, (_, index) => (first + index) & 255);
}

/* ---- addresses ------------------------------------------------------------------------------------------------- */

export function mac(value: Address): Bytes {
  if (typeof value !== "string") return value;
  const out = fromHex(value);
  if (out.length !== 6) throw new TypeError(`not a MAC address: ${value}`);
  return out;
}

export function macText(value: Bytes): string {
  return Array.from(value, (octet) => octet.toString(16).padStart(2, "0")).join(":");
}

/** 4 octets for an IPv4 address, 16 for an IPv6 address (RFC 4291 section 2.2, with a dotted quad at the end too). */
export function ip(value: Address): Bytes {
  if (typeof value !== "string") return value;
  if (isIPv4(value)) return Uint8Array.from(value.split(".").map(Number));
  if (!isIPv6(value)) throw new TypeError(`not an address: ${value}`);
  const quad = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(value);
  let text = value;
  if (quad !== null) {
    const last = ip(quad[2]!);
    text = `${quad[1]}${((last[0]! << 8) | last[1]!).toString(16)}:${((last[2]! << 8) | last[3]!).toString(16)}`;
  }
  const [left, right] = text.split("::");
  const groups = (part: string | undefined): number[] =>
    part === undefined || part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16));
  const head = groups(left);
  const tail = groups(right);
  const middle = right === undefined ? [] : new Array<number>(8 - head.length - tail.length).fill(0);
  return concat([...head, ...middle, ...tail].map(u16));
}

export function isV6(value: Address): boolean {
  return ip(value).length === 16;
}

/** Dotted quad, or RFC 5952 text. */
export function ipText(value: Bytes): string {
  if (value.length === 4) return Array.from(value).join(".");
  const groups = Array.from({ length: 8 }, (_, index) => (value[index * 2]! << 8) | value[index * 2 + 1]!);
  let best = { at: -1, length: 1 };
  for (let at = 0; at < 8; at++) {
    let length = 0;
    while (at + length < 8 && groups[at + length] === 0) length++;
    if (length > best.length) best = { at, length };
  }
  const text = (part: number[]): string => part.map((group) => group.toString(16)).join(":");
  return best.at < 0 ? text(groups) : `${text(groups.slice(0, best.at))}::${text(groups.slice(best.at + best.length))}`;
}

/** The solicited-node multicast address (RFC 4291 section 2.7.1). */
export function solicitedNode(target: Address): Bytes {
  return concat([fromHex("ff0200000000000000000001ff"), ip(target).subarray(13)]);
}

/** The Ethernet address of a multicast destination (RFC 1112 section 6.4, RFC 2464 section 7). */
export function multicastMac(group: Address): Bytes {
  const raw = ip(group);
  return raw.length === 4
    ? Uint8Array.of(0x01, 0x00, 0x5e, raw[1]! & 0x7f, raw[2]!, raw[3]!)
    : concat([Uint8Array.of(0x33, 0x33), raw.subarray(12)]);
}

/* ---- checksums ------------------------------------------------------------------------------------------------- */

/** One's complement sum of 16-bit words, folded, not complemented (RFC 1071). */
export function onesSum(data: Bytes, start = 0): number {
  let sum = start;
  for (let at = 0; at < data.length; at += 2) sum += (data[at]! << 8) | (data[at + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return sum;
}

export function checksum(data: Bytes, start = 0): number {
  return ~onesSum(data, start) & 0xffff;
}

/** Sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1), not complemented: also what a partial checksum holds. */
export function pseudoSum(source: Address, destination: Address, protocol: number, length: number): number {
  return onesSum(concat([ip(source), ip(destination), u32(length), u32(protocol)]));
}

/** A number is put as it is; "partial" leaves the pseudo-header sum (CHECKSUM_PARTIAL); absent means the right one. */
export type ChecksumField = number | "partial" | undefined;

function putChecksum(segment: Bytes, at: number, field: ChecksumField, source: Address, destination: Address, protocol: number): Bytes {
  const pseudo = pseudoSum(source, destination, protocol, segment.length);
  let value = field === "partial" ? pseudo : field ?? checksum(segment, pseudo);
  if (field === undefined && value === 0 && protocol === PROTOCOL.udp) value = 0xffff; // RFC 768: 0 means none
  segment.set(u16(value), at);
  return segment;
}

/* ---- layer 2 --------------------------------------------------------------------------------------------------- */

export interface Ethernet {
  destination: Address;
  source: Address;
  /** EtherType of the innermost payload. */
  type: number;
  /** VLAN tags, outermost first. */
  tags?: readonly { tpid?: number; tci?: number }[];
}

export function ethernet(header: Ethernet, payload: Bytes): Bytes {
  const tags = (header.tags ?? []).map((tag) => concat([u16(tag.tpid ?? ETHERTYPE.vlan), u16(tag.tci ?? 0)]));
  return concat([mac(header.destination), mac(header.source), ...tags, u16(header.type), payload]);
}

/** Puts VLAN tags into a frame made without. */
export function addTags(frame: Bytes, tags: NonNullable<Ethernet["tags"]>): Bytes {
  return concat([frame.subarray(0, 12), ...tags.map((tag) => concat([u16(tag.tpid ?? ETHERTYPE.vlan), u16(tag.tci ?? 0)])), frame.subarray(12)]);
}

export interface Arp {
  /** 1 request, 2 reply (RFC 826). */
  operation?: number;
  senderMac: Address;
  senderIp: Address;
  targetMac?: Address;
  targetIp: Address;
}

export function arp(fields: Arp): Bytes {
  return concat([
    u16(1), u16(ETHERTYPE.ipv4), Uint8Array.of(6, 4), u16(fields.operation ?? 1),
    mac(fields.senderMac), ip(fields.senderIp), mac(fields.targetMac ?? "00:00:00:00:00:00"), ip(fields.targetIp),
  ]);
}

/* ---- layer 3 --------------------------------------------------------------------------------------------------- */

export interface Ipv4 {
  source: Address;
  destination: Address;
  protocol: number;
  tos?: number;
  id?: number;
  ttl?: number;
  dontFragment?: boolean;
  moreFragments?: boolean;
  /** In units of 8 octets, 0..8191. */
  fragmentOffset?: number;
  /** Raw options; padded with end-of-list to a multiple of 4. */
  options?: Bytes;
  /** Overrides, to make a header that lies. */
  version?: number;
  ihl?: number;
  totalLength?: number;
  checksum?: number;
  reservedFlag?: boolean;
}

export function ipv4(header: Ipv4, payload: Bytes): Bytes {
  const options = concat([header.options ?? new Uint8Array(0), new Uint8Array((4 - ((header.options?.length ?? 0) % 4)) % 4)]);
  const ihl = header.ihl ?? 5 + options.length / 4;
  const flags = (header.reservedFlag === true ? 0x8000 : 0) | (header.dontFragment === true ? 0x4000 : 0) |
    (header.moreFragments === true ? 0x2000 : 0) | (header.fragmentOffset ?? 0);
  const out = concat([
    Uint8Array.of(((header.version ?? 4) << 4) | ihl, header.tos ?? 0),
    u16(header.totalLength ?? 20 + options.length + payload.length),
    u16(header.id ?? 0x1234), u16(flags), Uint8Array.of(header.ttl ?? 64, header.protocol), u16(0),
    ip(header.source), ip(header.destination), options,
  ]);
  out.set(u16(header.checksum ?? checksum(out)), 10);
  return concat([out, payload]);
}

export interface Ipv6 {
  source: Address;
  destination: Address;
  nextHeader: number;
  hopLimit?: number;
  trafficClass?: number;
  flowLabel?: number;
  /** Overrides, to make a header that lies. */
  version?: number;
  payloadLength?: number;
}

export function ipv6(header: Ipv6, payload: Bytes): Bytes {
  const first = (((header.version ?? 6) << 28) | ((header.trafficClass ?? 0) << 20) | (header.flowLabel ?? 0)) >>> 0;
  return concat([
    u32(first), u16(header.payloadLength ?? payload.length), Uint8Array.of(header.nextHeader, header.hopLimit ?? 64),
    ip(header.source), ip(header.destination), payload,
  ]);
}

/** One extension header of a chain; `type` is its own next-header number, `body` what follows its first two octets. */
export interface Extension {
  type: number;
  body: Bytes;
  /** Header Extension Length, where the right one is not wanted. */
  length?: number;
}

/** Hop-by-hop or destination options (RFC 8200 section 4.2), padded to 8 octets with PadN. */
export function optionsHeader(type: number, options: Bytes = new Uint8Array(0)): Extension {
  const room = (8 - ((2 + options.length) % 8)) % 8;
  const pad = room === 0 ? new Uint8Array(0) : room === 1 ? Uint8Array.of(0) : concat([Uint8Array.of(1, room - 2), new Uint8Array(room - 2)]);
  return { type, body: concat([options, pad]) };
}

export function hopByHop(options?: Bytes): Extension {
  return optionsHeader(PROTOCOL.hopByHop, options);
}

export function destinationOptions(options?: Bytes): Extension {
  return optionsHeader(PROTOCOL.destinationOptions, options);
}

/** Routing header (RFC 8200 section 4.4); hops are the addresses that it lists. */
export function routingHeader(routingType: number, segmentsLeft: number, hops: readonly Address[]): Extension {
  // RFC 8754 (type 4): last entry, flags, tag stand where type 0 and 2 have four reserved octets.
  const reserved = routingType === 4 ? Uint8Array.of(Math.max(0, hops.length - 1), 0, 0, 0) : new Uint8Array(4);
  return { type: PROTOCOL.routing, body: concat([Uint8Array.of(routingType, segmentsLeft), reserved, ...hops.map(ip)]) };
}

/** Fragment header (RFC 8200 section 4.5); offset in units of 8 octets. */
export function fragmentHeader(offset: number, more: boolean, id: number): Extension {
  // Its second octet is reserved, which chain() writes as length 0.
  return { type: PROTOCOL.fragment, body: concat([u16((offset << 3) | (more ? 1 : 0)), u32(id)]), length: 0 };
}

/** Links extension headers in order before the upper layer; gives the first next-header number and the octets. */
export function chain(extensions: readonly Extension[], upperType: number, upper: Bytes): { nextHeader: number; payload: Bytes } {
  const parts = extensions.map((extension, index) => {
    const next = extensions[index + 1]?.type ?? upperType;
    const length = extension.length ?? (extension.body.length + 2) / 8 - 1;
    return concat([Uint8Array.of(next, length), extension.body]);
  });
  return { nextHeader: extensions[0]?.type ?? upperType, payload: concat([...parts, upper]) };
}

/* ---- layer 4 --------------------------------------------------------------------------------------------------- */

export interface Tcp {
  sourcePort: number;
  destinationPort: number;
  seq?: number;
  ack?: number;
  /** Bits of TCP; default SYN. */
  flags?: number;
  window?: number;
  /** Raw options, padded with end-of-list to a multiple of 4. */
  options?: Bytes;
  payload?: Bytes;
  dataOffset?: number;
  checksum?: ChecksumField;
}

export function tcp(source: Address, destination: Address, fields: Tcp): Bytes {
  const options = concat([fields.options ?? new Uint8Array(0), new Uint8Array((4 - ((fields.options?.length ?? 0) % 4)) % 4)]);
  const segment = concat([
    u16(fields.sourcePort), u16(fields.destinationPort), u32(fields.seq ?? 1000), u32(fields.ack ?? 0),
    Uint8Array.of((fields.dataOffset ?? 5 + options.length / 4) << 4, fields.flags ?? TCP.syn),
    u16(fields.window ?? 64240), u16(0), u16(0), options, fields.payload ?? new Uint8Array(0),
  ]);
  return putChecksum(segment, 16, fields.checksum, source, destination, PROTOCOL.tcp);
}

export interface Udp {
  sourcePort: number;
  destinationPort: number;
  payload?: Bytes;
  length?: number;
  checksum?: ChecksumField;
}

export function udp(source: Address, destination: Address, fields: Udp): Bytes {
  const payload = fields.payload ?? new Uint8Array(0);
  const segment = concat([u16(fields.sourcePort), u16(fields.destinationPort), u16(fields.length ?? 8 + payload.length), u16(0), payload]);
  return putChecksum(segment, 6, fields.checksum, source, destination, PROTOCOL.udp);
}

export interface Icmp {
  type: number;
  code?: number;
  /** The four octets after the checksum. */
  rest?: Bytes;
  payload?: Bytes;
  checksum?: number;
}

export function icmp(fields: Icmp): Bytes {
  const out = concat([Uint8Array.of(fields.type, fields.code ?? 0), u16(0), fields.rest ?? new Uint8Array(4), fields.payload ?? new Uint8Array(0)]);
  out.set(u16(fields.checksum ?? checksum(out)), 2);
  return out;
}

export function icmpv6(source: Address, destination: Address, fields: Icmp): Bytes {
  const out = concat([Uint8Array.of(fields.type, fields.code ?? 0), u16(0), fields.rest ?? new Uint8Array(4), fields.payload ?? new Uint8Array(0)]);
  return putChecksum(out, 2, fields.checksum, source, destination, PROTOCOL.icmpv6);
}

/** Echo request of the family of the addresses (type 8 or 128); `reply` makes the answer (0 or 129). */
export function echo(source: Address, destination: Address, fields: { id?: number; seq?: number; payload?: Bytes; reply?: boolean } = {}): Bytes {
  const rest = concat([u16(fields.id ?? 1), u16(fields.seq ?? 1)]);
  const payload = fields.payload ?? filler(16);
  return isV6(destination)
    ? icmpv6(source, destination, { type: fields.reply === true ? 129 : 128, rest, payload })
    : icmp({ type: fields.reply === true ? 0 : 8, rest, payload });
}

/* ---- neighbour discovery (RFC 4861) ---------------------------------------------------------------------------- */

/** Source (1) or target (2) link-layer address option. */
export function linkLayerOption(type: 1 | 2, address: Address): Bytes {
  return concat([Uint8Array.of(type, 1), mac(address)]);
}

export function neighbourSolicitation(source: Address, destination: Address, target: Address, sourceMac?: Address): Bytes {
  return icmpv6(source, destination, { type: 135, payload: concat([ip(target), sourceMac === undefined ? new Uint8Array(0) : linkLayerOption(1, sourceMac)]) });
}

/** flags: 0x80 router, 0x40 solicited, 0x20 override. */
export function neighbourAdvertisement(source: Address, destination: Address, target: Address, targetMac?: Address, flags = 0x60): Bytes {
  return icmpv6(source, destination, {
    type: 136, rest: Uint8Array.of(flags, 0, 0, 0),
    payload: concat([ip(target), targetMac === undefined ? new Uint8Array(0) : linkLayerOption(2, targetMac)]),
  });
}

export function routerSolicitation(source: Address, sourceMac?: Address): Bytes {
  return icmpv6(source, "ff02::2", { type: 133, payload: sourceMac === undefined ? new Uint8Array(0) : linkLayerOption(1, sourceMac) });
}

export interface RouterAdvertisement {
  /** Seconds; more than 0 offers a default route. */
  lifetime?: number;
  sourceMac?: Address;
  prefix?: { address: Address; length: number };
  /** RDNSS servers (RFC 8106). */
  dns?: readonly Address[];
}

export function routerAdvertisement(source: Address, destination: Address, fields: RouterAdvertisement = {}): Bytes {
  const options: Bytes[] = [];
  if (fields.sourceMac !== undefined) options.push(linkLayerOption(1, fields.sourceMac));
  if (fields.prefix !== undefined)
    options.push(concat([Uint8Array.of(3, 4, fields.prefix.length, 0xc0), u32(86400), u32(14400), u32(0), ip(fields.prefix.address)]));
  if (fields.dns !== undefined) options.push(concat([Uint8Array.of(25, 1 + 2 * fields.dns.length), u16(0), u32(600), ...fields.dns.map(ip)]));
  return icmpv6(source, destination, {
    type: 134, rest: concat([Uint8Array.of(64, 0), u16(fields.lifetime ?? 1800)]), payload: concat([u32(0), u32(0), ...options]),
  });
}

/** ICMPv6 redirect (type 137): `destination` shall from now on be reached by way of `target`. */
export function redirect6(source: Address, to: Address, target: Address, destination: Address): Bytes {
  return icmpv6(source, to, { type: 137, payload: concat([ip(target), ip(destination)]) });
}

/* ---- whole frames ---------------------------------------------------------------------------------------------- */

/** What does not change from one frame of a guest to the next. */
export interface Endpoints {
  sourceMac: Address;
  destinationMac: Address;
  source: Address;
  destination: Address;
}

export interface FrameOptions {
  tags?: NonNullable<Ethernet["tags"]>;
  type?: number;
  ipv4?: Partial<Ipv4>;
  ipv6?: Partial<Ipv6>;
  extensions?: readonly Extension[];
}

/** Any upper layer over the family of the addresses. */
export function ipFrame(ends: Endpoints, protocol: number, upper: Bytes, options: FrameOptions = {}): Bytes {
  let packet: Bytes;
  if (isV6(ends.destination)) {
    const { nextHeader, payload } = chain(options.extensions ?? [], protocol, upper);
    packet = ipv6({ source: ends.source, destination: ends.destination, nextHeader, ...options.ipv6 }, payload);
  } else {
    packet = ipv4({ source: ends.source, destination: ends.destination, protocol, ...options.ipv4 }, upper);
  }
  return ethernet({
    destination: ends.destinationMac, source: ends.sourceMac, type: options.type ?? (isV6(ends.destination) ? ETHERTYPE.ipv6 : ETHERTYPE.ipv4),
    ...(options.tags === undefined ? {} : { tags: options.tags }),
  }, packet);
}

export function tcpFrame(ends: Endpoints, fields: Tcp, options?: FrameOptions): Bytes {
  return ipFrame(ends, PROTOCOL.tcp, tcp(ends.source, ends.destination, fields), options);
}

export function udpFrame(ends: Endpoints, fields: Udp, options?: FrameOptions): Bytes {
  return ipFrame(ends, PROTOCOL.udp, udp(ends.source, ends.destination, fields), options);
}

export function echoFrame(ends: Endpoints, fields?: Parameters<typeof echo>[2], options?: FrameOptions): Bytes {
  return ipFrame(ends, isV6(ends.destination) ? PROTOCOL.icmpv6 : PROTOCOL.icmp, echo(ends.source, ends.destination, fields), options);
}

export function arpFrame(fields: Arp, header: Partial<Ethernet> = {}): Bytes {
  return ethernet({ destination: BROADCAST_MAC, source: fields.senderMac, type: ETHERTYPE.arp, ...header }, arp(fields));
}

/**
 * Cuts the transport part of a datagram at the given octet offsets (multiples of 8) and gives the fragments in order.
 * The caller may change, drop, double or reorder them.
 */
export function fragments(ends: Endpoints, protocol: number, upper: Bytes, cuts: readonly number[], id = 0x4242): Bytes[] {
  const edges = [0, ...cuts, upper.length];
  return edges.slice(0, -1).map((start, index) => {
    const end = edges[index + 1]!;
    return fragment(ends, protocol, upper.subarray(start, end), start, end < upper.length, id);
  });
}

/** One fragment: `start` in octets (a multiple of 8). */
export function fragment(ends: Endpoints, protocol: number, part: Bytes, start: number, more: boolean, id = 0x4242): Bytes {
  return isV6(ends.destination)
    ? ipFrame(ends, protocol, part, { extensions: [fragmentHeader(start / 8, more, id)] })
    : ipFrame(ends, protocol, part, { ipv4: { id: id & 0xffff, moreFragments: more, fragmentOffset: start / 8 } });
}

/* ---- virtio_net_hdr (VIRTIO 1.2 section 5.1.6), the 10-octet legacy form, little-endian -------------------------- */

export const VNET = { needsChecksum: 1, dataValid: 2, gsoNone: 0, gsoTcp4: 1, gsoUdp: 3, gsoTcp6: 4, gsoUdpL4: 5, gsoEcn: 0x80 } as const;

export interface VnetHeader {
  flags?: number;
  gsoType?: number;
  hdrLen?: number;
  gsoSize?: number;
  csumStart?: number;
  csumOffset?: number;
}

export function vnetHeader(fields: VnetHeader = {}): Bytes {
  const out = new DataView(new ArrayBuffer(10));
  out.setUint8(0, fields.flags ?? 0);
  out.setUint8(1, fields.gsoType ?? 0);
  out.setUint16(2, fields.hdrLen ?? 0, true);
  out.setUint16(4, fields.gsoSize ?? 0, true);
  out.setUint16(6, fields.csumStart ?? 0, true);
  out.setUint16(8, fields.csumOffset ?? 0, true);
  return new Uint8Array(out.buffer);
}

/**
 * Writes two octets at `tuneAt` (even distance from csumStart, outside the checksum field) so that completing the partial
 * checksum from csumStart to the end of the frame puts `wanted` at csumStart + csumOffset: how a guest chooses what the
 * kernel writes after the verdict.
 */
export function tunePartialChecksum(frame: Bytes, csumStart: number, tuneAt: number, wanted: number): Bytes {
  if ((tuneAt - csumStart) % 2 !== 0 || tuneAt < csumStart || tuneAt + 2 > frame.length) throw new RangeError("tuneAt does not lie on a word of the sum");
  const out = frame.slice();
  out.set(u16(0), tuneAt);
  // The kernel writes ~sum; the sum shall be ~wanted, so the word is ~wanted minus the sum of all others.
  const others = onesSum(out.subarray(csumStart));
  let word = (~wanted & 0xffff) - others;
  if (word < 0) word += 0xffff;
  out.set(u16(word), tuneAt);
  return out;
}

/* ---- decoding -------------------------------------------------------------------------------------------------- */

export interface Decoded {
  destinationMac: string;
  sourceMac: string;
  tags: { tpid: number; tci: number }[];
  type: number;
  source?: string;
  destination?: string;
  /** Upper protocol behind all extension headers; undefined where the chain could not be walked. */
  protocol?: number;
  extensions?: number[];
  fragment?: { offset: number; more: boolean; id: number };
  sourcePort?: number;
  destinationPort?: number;
  tcpFlags?: number;
  icmpType?: number;
  icmpCode?: number;
  payload: Bytes;
  frame: Bytes;
}

export function decode(frame: Bytes): Decoded {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const out: Decoded = { destinationMac: macText(frame.subarray(0, 6)), sourceMac: macText(frame.subarray(6, 12)), tags: [], type: 0, payload: new Uint8Array(0), frame };
  let at = 12;
  const left = (need: number): boolean => at + need <= frame.length;
  if (!left(2)) return out;
  out.type = view.getUint16(at);
  while ((out.type === ETHERTYPE.vlan || out.type === ETHERTYPE.qinq) && left(6)) {
    out.tags.push({ tpid: out.type, tci: view.getUint16(at + 2) });
    at += 4;
    out.type = view.getUint16(at);
  }
  at += 2;
  out.payload = frame.subarray(at);
  let next: number;
  if (out.type === ETHERTYPE.ipv4 && left(20)) {
    out.source = ipText(frame.subarray(at + 12, at + 16));
    out.destination = ipText(frame.subarray(at + 16, at + 20));
    next = frame[at + 9]!;
    const flags = view.getUint16(at + 6);
    if ((flags & 0x3fff) !== 0) out.fragment = { offset: (flags & 0x1fff) * 8, more: (flags & 0x2000) !== 0, id: view.getUint16(at + 4) };
    const end = Math.min(frame.length, at + view.getUint16(at + 2)); // leaves Ethernet padding out
    at += (frame[at]! & 15) * 4;
    out.payload = frame.subarray(at, Math.max(at, end));
  } else if (out.type === ETHERTYPE.ipv6 && left(40)) {
    out.source = ipText(frame.subarray(at + 8, at + 24));
    out.destination = ipText(frame.subarray(at + 24, at + 40));
    next = frame[at + 6]!;
    const end = Math.min(frame.length, at + 40 + view.getUint16(at + 4));
    at += 40;
    out.extensions = [];
    const walked: readonly number[] = [PROTOCOL.hopByHop, PROTOCOL.routing, PROTOCOL.fragment, PROTOCOL.destinationOptions];
    while (walked.includes(next) && left(8)) {
      out.extensions.push(next);
      if (next === PROTOCOL.fragment) out.fragment = { offset: view.getUint16(at + 2) & 0xfff8, more: (view.getUint16(at + 2) & 1) === 1, id: view.getUint32(at + 4) };
      const length = next === PROTOCOL.fragment ? 8 : (frame[at + 1]! + 1) * 8;
      next = frame[at]!;
      at += length;
    }
    out.payload = frame.subarray(Math.min(at, frame.length), Math.max(at, end));
  } else {
    return out;
  }
  out.protocol = next;
  if (out.fragment !== undefined && out.fragment.offset > 0) return out;
  const header = out.payload;
  if ((next === PROTOCOL.tcp || next === PROTOCOL.udp) && header.length >= 4) {
    out.sourcePort = (header[0]! << 8) | header[1]!;
    out.destinationPort = (header[2]! << 8) | header[3]!;
    if (next === PROTOCOL.tcp && header.length >= 20) {
      out.tcpFlags = header[13]!;
      out.payload = header.subarray(Math.min(header.length, (header[12]! >> 4) * 4));
    } else if (next === PROTOCOL.udp && header.length >= 8) {
      out.payload = header.subarray(8);
    }
  } else if ((next === PROTOCOL.icmp || next === PROTOCOL.icmpv6) && header.length >= 2) {
    out.icmpType = header[0]!;
    out.icmpCode = header[1]!;
    out.payload = header.subarray(Math.min(8, header.length));
  }
  return out;
}
