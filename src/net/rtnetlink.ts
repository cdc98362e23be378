/**
 * rtnetlink messages (linux/netlink.h, linux/rtnetlink.h, linux/if_link.h): bytes in, typed objects out, and back.
 *
 * Holds always: pure, no system call; a length that does not fit is an EnforcerError E_NETLINK, an attribute that is not
 * known is skipped, of a doubled attribute the last counts. Addresses are 16 octets, IPv4 as IPv4-mapped (RFC 4291
 * section 2.5.5.2), prefix lengths count from that form (IPv4 /24 is 120). Integers are in host order, which must be
 * little-endian. Does not: send anything (request.ts), judge anything.
 */
import { endianness } from "node:os";

import { compareBytes, fromV4, isV4, mask, prefixBits, type Address, type Prefix } from "../addresses/address.js";
import { EnforcerError } from "../errors.js";

if (endianness() !== "LE") throw new EnforcerError("E_KERNEL", "this build speaks to little-endian kernels only", { remedy: "use x86-64 or arm64" });

const MessageType = {
  newLink: 16, delLink: 17, getLink: 18, setLink: 19,
  newAddress: 20, delAddress: 21, getAddress: 22,
  newRoute: 24, delRoute: 25, getRoute: 26,
  newNeighbour: 28, getNeighbour: 30,
  newFilter: 44, getFilter: 46,
  newNexthop: 104, getNexthop: 106,
} as const;

const MessageFlag = {
  request: 0x1, ack: 0x4,
  dump: 0x300, replace: 0x100, exclusive: 0x200, create: 0x400,
} as const;

/** RTNLGRP_*: multicast groups of the routing socket. */
export const Group = { link: 1, address4: 5, route4: 7, address6: 9, route6: 11 } as const;

export const LinkFlag = { up: 0x1, loopback: 0x8, noArp: 0x80 } as const;
/** IF_OPER_UP. */
export const OPER_UP = 6;
export const RouteType = { unicast: 1, local: 2, broadcast: 3, anycast: 4, multicast: 5 } as const;
export const RouteTable = { main: 254, local: 255 } as const;
export const Scope = { universe: 0, link: 253, host: 254 } as const;
/** RTPROT_*: who made a route. */
export const RouteProtocol = { static: 4, routerAdvertisement: 9 } as const;
/** IFA_F_NODAD | IFA_F_PERMANENT | IFA_F_NOPREFIXROUTE. */
export const AddressFlag = { noDad: 0x02, permanent: 0x80, noPrefixRoute: 0x200 } as const;
const NEIGHBOUR_PERMANENT = 0x80;
const ROUTE_ONLINK = 4;
const ROUTE_CLONED = 0x200;

const AF_UNSPEC = 0, AF_INET = 2, AF_BRIDGE = 7, AF_INET6 = 10;
const NLA_F_NESTED = 0x8000, NLA_TYPE_MASK = 0x3fff;
const HEADER = 16, IFINFO = 16, IFADDR = 8, RTMSG = 12, NDMSG = 12, NHMSG = 8, RTNEXTHOP = 8, TCMSG = 20;

const IFLA = {
  address: 1, name: 3, mtu: 4, master: 10, operState: 16, linkinfo: 18, alias: 20, afSpec: 26, netnsFd: 28, extMask: 29, newNetnsId: 45, xdp: 43,
} as const;
const INFO = { kind: 1, data: 2 } as const;
const TUN_TYPE = 3, VETH_PEER = 1, XDP_ATTACHED = 2, XDP_PROGRAM = 4, INET6_ADDR_GEN_MODE = 8;
const ADDR_GEN_MODE_NONE = 1;
const RTEXT_FILTER_SKIP_STATS = 8;
const IFA = { address: 1, local: 2, broadcast: 4, flags: 8 } as const;
const RTA = { destination: 1, oif: 4, gateway: 5, priority: 6, preferredSource: 7, metrics: 8, multipath: 9, table: 15, via: 18, nexthopId: 30 } as const;
const RTAX = { lock: 1, mtu: 2 } as const;
const NDA = { destination: 1, lladdr: 2 } as const;
const NHA = { id: 1, group: 2, blackhole: 4, oif: 5, gateway: 6 } as const;

// ---- attributes -----------------------------------------------------------------------------------------------------

export interface Attribute { readonly type: number; readonly value: Uint8Array }

const align4 = (length: number): number => (length + 3) & ~3;

function u8(type: number, value: number): Attribute { return { type, value: Uint8Array.of(value) }; }
function u32(type: number, value: number): Attribute {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return { type, value: bytes };
}
function text(type: number, value: string): Attribute { return { type, value: Buffer.from(`${value}\0`, "latin1") }; }
function nested(type: number, attributes: readonly Attribute[]): Attribute { return { type: type | NLA_F_NESTED, value: encodeAttributes(attributes) }; }

/** struct rtattr, back to back, each padded to 4 octets. */
export function encodeAttributes(attributes: readonly Attribute[]): Buffer {
  const out = Buffer.alloc(attributes.reduce((sum, { value }) => sum + 4 + align4(value.length), 0));
  let at = 0;
  for (const { type, value } of attributes) {
    out.writeUInt16LE(4 + value.length, at);
    out.writeUInt16LE(type, at + 2);
    out.set(value, at + 4);
    at += 4 + align4(value.length);
  }
  return out;
}

/** Attributes by number, flags of the type taken off. @throws EnforcerError E_NETLINK when a length leaves the buffer. */
export function decodeAttributes(bytes: Buffer): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  let at = 0;
  while (at + 4 <= bytes.length) {
    const length = bytes.readUInt16LE(at);
    if (length < 4 || at + length > bytes.length) throw malformed("an attribute's length leaves its message");
    found.set(bytes.readUInt16LE(at + 2) & NLA_TYPE_MASK, bytes.subarray(at + 4, at + length));
    at += align4(length);
  }
  return found;
}

function malformed(what: string): EnforcerError {
  return new EnforcerError("E_NETLINK", `the kernel's answer cannot be read: ${what}`);
}

function readU32(bytes: Buffer | undefined): number | null {
  if (bytes === undefined) return null;
  if (bytes.length !== 4) throw malformed("a 32-bit attribute of another length");
  return bytes.readUInt32LE();
}

function readText(bytes: Buffer | undefined): string | null {
  if (bytes === undefined) return null;
  const end = bytes.indexOf(0);
  return bytes.toString("latin1", 0, end < 0 ? bytes.length : end);
}

// ---- addresses ------------------------------------------------------------------------------------------------------

/** 4 octets of IPv4 or 16 of IPv6, as 16. */
function toAddress(bytes: Buffer): Address {
  if (bytes.length === 4) return fromV4(bytes[0]!, bytes[1]!, bytes[2]!, bytes[3]!);
  if (bytes.length === 16) return Uint8Array.from(bytes);
  throw malformed("an address of neither 4 nor 16 octets");
}

function readAddress(bytes: Buffer | undefined): Address | null { return bytes === undefined ? null : toAddress(bytes); }

function wire(address: Address, family: 4 | 6): Uint8Array { return family === 4 ? address.subarray(12) : address; }

function familyOf(address: Address): 4 | 6 { return isV4(address) ? 4 : 6; }

function familyNumber(family: 4 | 6): number { return family === 4 ? AF_INET : AF_INET6; }

function familyFrom(value: number): 4 | 6 | null { return value === AF_INET ? 4 : value === AF_INET6 ? 6 : null; }

/** @param length in the address's own family. */
function toPrefix(address: Address | null, length: number, family: 4 | 6): Prefix {
  const whole = family === 4 ? length + 96 : length;
  if (whole > 128) throw malformed("a prefix longer than its address");
  const unspecified = family === 4 ? fromV4(0, 0, 0, 0) : new Uint8Array(16);
  return { bytes: mask(address ?? unspecified, whole), length: whole, family };
}

// ---- messages -------------------------------------------------------------------------------------------------------

/** nlmsg_flags of our requests; the acknowledgement marks the end of an answer that is no dump. */
const Ask = {
  one: MessageFlag.request | MessageFlag.ack,
  dump: MessageFlag.request | MessageFlag.dump,
  change: MessageFlag.request | MessageFlag.ack,
  create: MessageFlag.request | MessageFlag.ack | MessageFlag.create | MessageFlag.exclusive,
  createOrReplace: MessageFlag.request | MessageFlag.ack | MessageFlag.create | MessageFlag.replace,
} as const;

function encodeMessage(type: number, flags: number, body: Uint8Array, attributes: readonly Attribute[] = []): Buffer {
  const tail = encodeAttributes(attributes);
  const out = Buffer.alloc(HEADER + align4(body.length) + tail.length);
  out.writeUInt32LE(out.length, 0);
  out.writeUInt16LE(type, 4);
  out.writeUInt16LE(flags, 6);
  out.set(body, HEADER);
  out.set(tail, HEADER + align4(body.length));
  return out;
}

/** @throws EnforcerError E_NETLINK when nlmsg_len is not the buffer's length. */
function messageType(message: Buffer): number {
  if (message.length < HEADER) throw malformed("a message shorter than its header");
  const length = message.readUInt32LE(0);
  if (length < HEADER || length > message.length) throw malformed("a message's length leaves the datagram");
  return message.readUInt16LE(4);
}

function parts(message: Buffer, bodyLength: number): { type: number; body: Buffer; attributes: Map<number, Buffer> } {
  const type = messageType(message);
  const end = message.readUInt32LE(0);
  if (end < HEADER + bodyLength) throw malformed("a message shorter than its fixed part");
  return { type, body: message.subarray(HEADER, HEADER + bodyLength), attributes: decodeAttributes(message.subarray(HEADER + align4(bodyLength), end)) };
}

// ---- links ----------------------------------------------------------------------------------------------------------

export interface Link {
  readonly ifindex: number;
  readonly name: string;
  /** IFLA_INFO_KIND, such as "tun", "veth", "bridge"; null for hardware and loopback. */
  readonly kind: string | null;
  /** IFLA_TUN_TYPE, for kind "tun". */
  readonly tunType: "tun" | "tap" | null;
  /** Null when the link has no 6-octet address. */
  readonly mac: Uint8Array | null;
  readonly mtu: number;
  /** ifindex of the bridge, bond or VRF that it is a port of. */
  readonly master: number | null;
  readonly flags: number;
  /** IF_OPER_* (RFC 2863). OPER_UP comes a moment after both the flag and the carrier; until then frames are lost. */
  readonly operState: number;
  readonly alias: string | null;
  /** IFLA_XDP_ATTACHED is not 0: a program runs before TC. */
  readonly xdp: { readonly programId: number | null } | null;
}

function ifinfo(ifindex: number, flags = 0, change = 0): Buffer {
  const body = Buffer.alloc(IFINFO);
  body.writeInt32LE(ifindex, 4);
  body.writeUInt32LE(flags, 8);
  body.writeUInt32LE(change, 12);
  return body;
}

const SKIP_STATS = u32(IFLA.extMask, RTEXT_FILTER_SKIP_STATS);

export function encodeGetLink(by: { name: string } | { ifindex: number }): Buffer {
  return "name" in by
    ? encodeMessage(MessageType.getLink, Ask.one, ifinfo(0), [text(IFLA.name, by.name), SKIP_STATS])
    : encodeMessage(MessageType.getLink, Ask.one, ifinfo(by.ifindex), [SKIP_STATS]);
}

export function encodeDumpLinks(): Buffer { return encodeMessage(MessageType.getLink, Ask.dump, ifinfo(0), [SKIP_STATS]); }

export interface LinkChange {
  readonly up?: boolean;
  readonly noArp?: boolean;
  readonly mac?: Uint8Array;
  readonly mtu?: number;
  readonly alias?: string;
  /** ifindex of a bridge; 0 takes the link out of the one it is in. */
  readonly master?: number;
  /** IN6_ADDR_GEN_MODE_NONE: the kernel makes no link-local address of its own. */
  readonly noLinkLocal?: boolean;
}

export function encodeSetLink(ifindex: number, change: LinkChange): Buffer {
  const { flags, mask } = linkFlags(change);
  return encodeMessage(MessageType.setLink, Ask.change, ifinfo(ifindex, flags, mask), linkAttributes(change));
}

function linkFlags({ up, noArp }: LinkChange): { flags: number; mask: number } {
  let flags = 0, mask = 0;
  if (up !== undefined) { mask |= LinkFlag.up; if (up) flags |= LinkFlag.up; }
  if (noArp !== undefined) { mask |= LinkFlag.noArp; if (noArp) flags |= LinkFlag.noArp; }
  return { flags, mask };
}

function linkAttributes({ mac, mtu, alias, master, noLinkLocal }: LinkChange): Attribute[] {
  const attributes: Attribute[] = [];
  if (mac !== undefined) attributes.push({ type: IFLA.address, value: mac });
  if (mtu !== undefined) attributes.push(u32(IFLA.mtu, mtu));
  if (alias !== undefined) attributes.push({ type: IFLA.alias, value: Buffer.from(alias, "latin1") });
  if (master !== undefined) attributes.push(u32(IFLA.master, master));
  if (noLinkLocal === true) attributes.push(nested(IFLA.afSpec, [nested(AF_INET6, [u8(INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE)])]));
  return attributes;
}

export interface VethEnd { readonly name: string; readonly mac?: Uint8Array; readonly mtu?: number; readonly noArp?: boolean }

/** One request makes both ends; the peer appears in the namespace that peerNetnsFd stands for, or beside the first end. */
export function encodeCreateVeth(near: VethEnd, peer: VethEnd, peerNetnsFd: number | null): Buffer {
  const peerFlags = linkFlags(peer);
  const peerAttributes = [text(IFLA.name, peer.name), ...linkAttributes(peer)];
  if (peerNetnsFd !== null) peerAttributes.push(u32(IFLA.netnsFd, peerNetnsFd));
  const peerInfo = Buffer.concat([ifinfo(0, peerFlags.flags, peerFlags.mask), encodeAttributes(peerAttributes)]);
  const nearFlags = linkFlags(near);
  return encodeMessage(MessageType.newLink, Ask.create, ifinfo(0, nearFlags.flags, nearFlags.mask), [
    text(IFLA.name, near.name), ...linkAttributes(near),
    // VETH_INFO_PEER is a struct ifinfomsg with attributes behind it, so it does not carry NLA_F_NESTED.
    nested(IFLA.linkinfo, [text(INFO.kind, "veth"), nested(INFO.data, [{ type: VETH_PEER, value: peerInfo }])]),
  ]);
}

/** A link of a kind that needs no data of its own, such as "bridge". */
export function encodeCreateLink(name: string, kind: string): Buffer {
  return encodeMessage(MessageType.newLink, Ask.create, ifinfo(0), [text(IFLA.name, name), nested(IFLA.linkinfo, [text(INFO.kind, kind)])]);
}

export function encodeDeleteLink(ifindex: number): Buffer { return encodeMessage(MessageType.delLink, Ask.change, ifinfo(ifindex)); }

/**
 * RTM_NEWLINK or RTM_DELLINK. Null for messages of another type and for those of family AF_BRIDGE: they speak of a port's
 * membership, and RTM_DELLINK among them does not mean that the link is gone.
 */
export function decodeLink(message: Buffer): { deleted: boolean; movedAway: boolean; link: Link } | null {
  const type = messageType(message);
  if (type !== MessageType.newLink && type !== MessageType.delLink) return null;
  const { body, attributes } = parts(message, IFINFO);
  if (body[0] === AF_BRIDGE) return null;
  const name = readText(attributes.get(IFLA.name));
  if (name === null) throw malformed("a link without a name");
  const info = attributes.get(IFLA.linkinfo);
  const infoAttributes = info === undefined ? null : decodeAttributes(info);
  const kind = infoAttributes === null ? null : readText(infoAttributes.get(INFO.kind));
  let tunType: Link["tunType"] = null;
  if (kind === "tun") {
    const data = infoAttributes?.get(INFO.data);
    const value = data === undefined ? undefined : decodeAttributes(data).get(TUN_TYPE)?.[0];
    tunType = value === 1 ? "tun" : value === 2 ? "tap" : null;
  }
  const mac = attributes.get(IFLA.address);
  const xdpData = attributes.get(IFLA.xdp);
  const xdpAttributes = xdpData === undefined ? null : decodeAttributes(xdpData);
  const attached = xdpAttributes?.get(XDP_ATTACHED)?.[0] ?? 0;
  return {
    deleted: type === MessageType.delLink,
    movedAway: type === MessageType.delLink && attributes.has(IFLA.newNetnsId),
    link: {
      ifindex: body.readInt32LE(4), name, kind, tunType,
      mac: mac?.length === 6 ? Uint8Array.from(mac) : null,
      mtu: readU32(attributes.get(IFLA.mtu)) ?? 0,
      master: readU32(attributes.get(IFLA.master)),
      flags: body.readUInt32LE(8),
      operState: attributes.get(IFLA.operState)?.[0] ?? 0,
      alias: readText(attributes.get(IFLA.alias)),
      xdp: xdpAttributes === null || attached === 0 ? null : { programId: readU32(xdpAttributes.get(XDP_PROGRAM)) },
    },
  };
}

// ---- addresses of links ---------------------------------------------------------------------------------------------

export interface InterfaceAddress {
  readonly family: 4 | 6;
  readonly ifindex: number;
  /** The host's own address. */
  readonly local: Address;
  /** The other end of a point-to-point address. */
  readonly peer: Address | null;
  /** Of the 16-octet form: IPv4 /24 is 120. For a point-to-point address it belongs to the peer. */
  readonly prefixLength: number;
  readonly broadcast: Address | null;
  readonly scope: number;
  readonly flags: number;
}

function ifaddr(family: number, prefixLength: number, scope: number, ifindex: number, flags = 0): Buffer {
  const body = Buffer.alloc(IFADDR);
  body[0] = family;
  body[1] = prefixLength;
  body[2] = flags & 0xff;
  body[3] = scope;
  body.writeUInt32LE(ifindex, 4);
  return body;
}

/** @param ifindex 0 for all; a kernel that does not filter sends all, so the caller filters too. */
export function encodeDumpAddresses(ifindex = 0): Buffer {
  return encodeMessage(MessageType.getAddress, Ask.dump, ifaddr(AF_UNSPEC, 0, 0, ifindex));
}

/** @param prefixLength in the address's own family: 0..32 or 0..128. No broadcast address is set. */
export function encodeAddAddress(ifindex: number, address: Address, prefixLength: number, flags = 0): Buffer {
  const family = familyOf(address);
  const own = { value: wire(address, family) };
  return encodeMessage(MessageType.newAddress, Ask.create,
    ifaddr(familyNumber(family), prefixLength, Scope.universe, ifindex, flags),
    [{ type: IFA.local, ...own }, { type: IFA.address, ...own }, u32(IFA.flags, flags)]);
}

/** RTM_NEWADDR or RTM_DELADDR; null for other messages and families. */
export function decodeAddress(message: Buffer): { deleted: boolean; address: InterfaceAddress } | null {
  const type = messageType(message);
  if (type !== MessageType.newAddress && type !== MessageType.delAddress) return null;
  const { body, attributes } = parts(message, IFADDR);
  const family = familyFrom(body[0]!);
  if (family === null) return null;
  const address = readAddress(attributes.get(IFA.address));
  // IFA_LOCAL is the own address where it is given; IPv6 gives it only for point-to-point addresses.
  const local = readAddress(attributes.get(IFA.local)) ?? address;
  if (local === null) throw malformed("an address message without an address");
  return {
    deleted: type === MessageType.delAddress,
    address: {
      family, ifindex: body.readUInt32LE(4), local,
      peer: address !== null && compareBytes(address, local) !== 0 ? address : null,
      prefixLength: family === 4 ? body[1]! + 96 : body[1]!,
      broadcast: readAddress(attributes.get(IFA.broadcast)),
      scope: body[3]!,
      flags: readU32(attributes.get(IFA.flags)) ?? body[2]!,
    },
  };
}

// ---- routes ---------------------------------------------------------------------------------------------------------

export interface NextHop { readonly ifindex: number | null; readonly gateway: Address | null }

export interface Route {
  readonly family: 4 | 6;
  readonly destination: Prefix;
  readonly table: number;
  readonly type: number;
  readonly scope: number;
  readonly protocol: number;
  /** More than one for multipath routes; empty for blackholes and for nexthop objects not yet resolved. */
  readonly hops: readonly NextHop[];
  readonly nexthopId: number | null;
}

/** A route this wide leads to the Internet: default, or a half or an eighth by which VPN clients override it (128.0.0.0/1, 2000::/3). */
export function isDefaultRoute({ family, destination }: Route): boolean { return prefixBits(destination) <= (family === 4 ? 1 : 3); }

function rtmsg(fields: { family: number; length?: number; table?: number; protocol?: number; scope?: number; type?: number; flags?: number }): Buffer {
  const body = Buffer.alloc(RTMSG);
  body[0] = fields.family;
  body[1] = fields.length ?? 0;
  body[4] = fields.table ?? 0;
  body[5] = fields.protocol ?? 0;
  body[6] = fields.scope ?? 0;
  body[7] = fields.type ?? 0;
  body.writeUInt32LE(fields.flags ?? 0, 8);
  return body;
}

/** @param ifindex null for all, @param type of RouteType, null for all; a kernel that does not filter sends all, so the caller filters too. */
export function encodeDumpRoutes(family: 4 | 6, ifindex: number | null = null, type: number | null = null): Buffer {
  return encodeMessage(MessageType.getRoute, Ask.dump, rtmsg({ family: familyNumber(family), type: type ?? 0 }), ifindex === null ? [] : [u32(RTA.oif, ifindex)]);
}

export interface NewRoute {
  readonly destination: Prefix;
  readonly ifindex: number;
  /** Taken as on-link: no route to the gateway itself is needed. */
  readonly gateway?: Address;
  readonly preferredSource?: Address;
  /** RTAX_MTU, locked: path MTU discovery cannot change it. Octets. */
  readonly mtu?: number;
}

export function encodeAddRoute(route: NewRoute): Buffer {
  const { family } = route.destination;
  const attributes: Attribute[] = [{ type: RTA.destination, value: wire(route.destination.bytes, family) }, u32(RTA.oif, route.ifindex)];
  if (route.gateway !== undefined) attributes.push({ type: RTA.gateway, value: wire(route.gateway, family) });
  if (route.preferredSource !== undefined) attributes.push({ type: RTA.preferredSource, value: wire(route.preferredSource, family) });
  if (route.mtu !== undefined) attributes.push(nested(RTA.metrics, [u32(RTAX.lock, 1 << RTAX.mtu), u32(RTAX.mtu, route.mtu)]));
  return encodeMessage(MessageType.newRoute, Ask.create, rtmsg({
    family: familyNumber(family), length: prefixBits(route.destination),
    table: RouteTable.main, protocol: RouteProtocol.static, type: RouteType.unicast,
    scope: route.gateway === undefined && family === 4 ? Scope.link : Scope.universe,
    flags: route.gateway === undefined ? 0 : ROUTE_ONLINK,
  }), attributes);
}

function decodeGateway(attributes: Map<number, Buffer>): Address | null {
  const gateway = readAddress(attributes.get(RTA.gateway));
  if (gateway !== null) return gateway;
  // RTA_VIA: a gateway of the other family (RFC 5549): family (16 bits), address.
  const via = attributes.get(RTA.via);
  return via === undefined ? null : toAddress(via.subarray(2));
}

/** RTM_NEWROUTE or RTM_DELROUTE of IPv4 or IPv6; null for other messages and for cached clones (RTM_F_CLONED). */
export function decodeRoute(message: Buffer): { deleted: boolean; route: Route } | null {
  const type = messageType(message);
  if (type !== MessageType.newRoute && type !== MessageType.delRoute) return null;
  const { body, attributes } = parts(message, RTMSG);
  const family = familyFrom(body[0]!);
  if (family === null || (body.readUInt32LE(8) & ROUTE_CLONED) !== 0) return null;
  const hops: NextHop[] = [];
  const oif = readU32(attributes.get(RTA.oif));
  const gateway = decodeGateway(attributes);
  if (oif !== null || gateway !== null) hops.push({ ifindex: oif, gateway });
  const multipath = attributes.get(RTA.multipath);
  for (let at = 0; multipath !== undefined && at + RTNEXTHOP <= multipath.length;) {
    const length = multipath.readUInt16LE(at);
    if (length < RTNEXTHOP || at + length > multipath.length) throw malformed("a next hop's length leaves its route");
    hops.push({ ifindex: multipath.readInt32LE(at + 4), gateway: decodeGateway(decodeAttributes(multipath.subarray(at + RTNEXTHOP, at + length))) });
    at += align4(length);
  }
  return {
    deleted: type === MessageType.delRoute,
    route: {
      family, destination: toPrefix(readAddress(attributes.get(RTA.destination)), body[1]!, family),
      table: readU32(attributes.get(RTA.table)) ?? body[4]!, type: body[7]!, scope: body[6]!, protocol: body[5]!, hops,
      nexthopId: readU32(attributes.get(RTA.nexthopId)),
    },
  };
}

// ---- nexthop objects ------------------------------------------------------------------------------------------------

export interface NexthopObject { readonly id: number; readonly hop: NextHop | null; readonly group: readonly number[] }

export function encodeDumpNexthops(): Buffer { return encodeMessage(MessageType.getNexthop, Ask.dump, Buffer.alloc(NHMSG)); }

/** RTM_NEWNEXTHOP: what routes name by id where the kernel does not spell it out (nexthop_compat_mode 0). */
export function decodeNexthop(message: Buffer): NexthopObject | null {
  if (messageType(message) !== MessageType.newNexthop) return null;
  const { attributes } = parts(message, NHMSG);
  const id = readU32(attributes.get(NHA.id));
  if (id === null) throw malformed("a nexthop without an id");
  const members = attributes.get(NHA.group);
  const group: number[] = [];
  // struct nexthop_grp: id (32 bits), weight, weight_high, reserved (16 bits)
  for (let at = 0; members !== undefined && at + 8 <= members.length; at += 8) group.push(members.readUInt32LE(at));
  const oif = readU32(attributes.get(NHA.oif));
  const gateway = readAddress(attributes.get(NHA.gateway));
  return { id, hop: attributes.has(NHA.blackhole) || (oif === null && gateway === null) ? null : { ifindex: oif, gateway }, group };
}

// ---- filters of clsact ----------------------------------------------------------------------------------------------

const TCA = { kind: 1, options: 2 } as const;
const TCA_BPF = { name: 7, id: 11 } as const;
/** TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and _EGRESS. */
const CLSACT_PARENT = { ingress: 0xfffffff2, egress: 0xfffffff3 } as const;

export interface Filter {
  /** Such as "bpf", "u32", "flower". */
  readonly kind: string;
  /** For kind "bpf". */
  readonly programId: number | null;
  readonly name: string | null;
}

export function encodeDumpFilters(ifindex: number, hook: keyof typeof CLSACT_PARENT): Buffer {
  const body = Buffer.alloc(TCMSG);
  body.writeInt32LE(ifindex, 4);
  body.writeUInt32LE(CLSACT_PARENT[hook], 12);
  return encodeMessage(MessageType.getFilter, Ask.dump, body);
}

/** RTM_NEWTFILTER; null for other messages and for those that announce a priority and not a filter (handle 0). */
export function decodeFilter(message: Buffer): Filter | null {
  if (messageType(message) !== MessageType.newFilter) return null;
  const { body, attributes } = parts(message, TCMSG);
  if (body.readUInt32LE(8) === 0) return null;
  const kind = readText(attributes.get(TCA.kind));
  if (kind === null) throw malformed("a filter without a kind");
  const options = attributes.get(TCA.options);
  const bpf = kind === "bpf" && options !== undefined ? decodeAttributes(options) : null;
  return { kind, programId: readU32(bpf?.get(TCA_BPF.id)), name: readText(bpf?.get(TCA_BPF.name)) };
}

// ---- neighbours -----------------------------------------------------------------------------------------------------

/** NUD_PERMANENT: never asked for on the wire, never collected. */
export function encodeAddNeighbour(ifindex: number, address: Address, mac: Uint8Array): Buffer {
  const family = familyOf(address);
  const body = Buffer.alloc(NDMSG);
  body[0] = familyNumber(family);
  body.writeInt32LE(ifindex, 4);
  body.writeUInt16LE(NEIGHBOUR_PERMANENT, 8);
  return encodeMessage(MessageType.newNeighbour, Ask.createOrReplace, body,
    [{ type: NDA.destination, value: wire(address, family) }, { type: NDA.lladdr, value: mac }]);
}
