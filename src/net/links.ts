/**
 * Network devices of the calling thread's namespace: find, make, change, delete; their addresses, routes, neighbours.
 *
 * Holds always: a name is checked before it reaches the kernel or a path; a change that the kernel refuses is an
 * EnforcerError E_NETLINK; a veth pair that was made but is not as asked is deleted before the error leaves.
 * Does not: decide which addresses mean what (tap.ts, host-view.ts).
 */
import { formatAddress, formatPrefix, type Address } from "../addresses/address.js";
import { EnforcerError } from "../errors.js";
import { dump, errnoOf, request, requestUnless } from "./request.js";
import {
  decodeAddress, decodeFilter, decodeLink, decodeNexthop, decodeRoute, encodeAddAddress, encodeAddNeighbour, encodeAddRoute, encodeCreateLink,
  encodeCreateVeth, encodeDeleteLink, encodeDumpAddresses, encodeDumpFilters, encodeDumpLinks, encodeDumpNexthops, encodeDumpRoutes, encodeGetLink,
  encodeSetLink, type Filter, type InterfaceAddress, type Link, type LinkChange, type NewRoute, type NextHop, type Route, type VethEnd,
} from "./rtnetlink.js";

/** IFNAMSIZ - 1. */
const NAME_OCTETS = 15;

/**
 * Why a text cannot be the name of a device, or null when it can: the kernel's rule (dev_valid_name) and, because names
 * become path components under /proc/sys/net, the two directories there that are no devices.
 */
export function interfaceNameFault(name: string): string | null {
  if (name === "") return "is empty";
  if (Buffer.byteLength(name) > NAME_OCTETS) return `is longer than ${NAME_OCTETS} octets`;
  if (name === "." || name === ".." || name === "all" || name === "default") return "is reserved";
  for (const character of name) {
    const code = character.codePointAt(0)!;
    if (code <= 0x20 || code === 0x7f || code > 0x7e) return "holds a character that is not printable ASCII";
    if (character === "/" || character === ":") return `holds "${character}"`;
  }
  return null;
}

/** @throws EnforcerError E_USAGE. */
export function checkInterfaceName(name: string): void {
  const fault = interfaceNameFault(name);
  if (fault !== null) throw new EnforcerError("E_USAGE", `interface name ${JSON.stringify(name)} ${fault}`, { remedy: "name a device as ip link shows it" });
}

/** Null when there is none. The kernel also finds a link by its alternative names; Link.name is the real one. */
export function findLink(name: string): Link | null {
  checkInterfaceName(name);
  return getLink({ name }, name);
}

export function findLinkByIndex(ifindex: number): Link | null { return getLink({ ifindex }, `device ${ifindex}`); }

function getLink(by: { name: string } | { ifindex: number }, label: string): Link | null {
  const answers = requestUnless(encodeGetLink(by), "ENODEV", `look up ${label}`);
  for (const answer of answers ?? []) {
    const found = decodeLink(answer);
    if (found !== null) return found.link;
  }
  return null;
}

/**
 * The guest's tap device.
 * @throws EnforcerError E_TAP_MISSING, E_TAP_KIND (tun, macvtap, veth …), E_USAGE for a name that cannot be one.
 */
export function findTap(name: string): Link {
  const link = findLink(name);
  if (link === null) throw new EnforcerError("E_TAP_MISSING", `there is no device ${name} in this network namespace`, { remedy: `create the tap first: ip tuntap add ${name} mode tap` });
  // What is held is held by the name that frames come in by; another of the same device would hold nothing.
  if (link.name !== name) throw new EnforcerError("E_TAP_MISSING", `there is no device ${name} in this network namespace: it is another name of ${link.name}`, { remedy: `name ${link.name} itself` });
  if (!isTap(link)) throw new EnforcerError("E_TAP_KIND", `${name} is ${describeKind(link)}, not a tap`);
  return link;
}

export function isTap(link: Link): boolean { return link.kind === "tun" && link.tunType === "tap" && link.mac !== null; }

function describeKind(link: Link): string {
  if (link.kind === "tun") return link.tunType === "tun" ? "a tun device (layer 3)" : "a tun device of unknown type";
  return link.kind === null ? "a hardware or loopback device" : `a device of kind ${link.kind}`;
}

export function listLinks(): Link[] {
  return dump(encodeDumpLinks(), (message) => decodeLink(message)?.link ?? null, "list the network devices");
}

/** @param ifindex only of this device. */
export function listAddresses(ifindex?: number): InterfaceAddress[] {
  const all = dump(encodeDumpAddresses(ifindex), (message) => decodeAddress(message)?.address ?? null, "list the addresses");
  return ifindex === undefined ? all : all.filter((address) => address.ifindex === ifindex);
}

/**
 * Routes of all tables, nexthop objects resolved. The kernel goes through all that it has to find a device's; by type it passes three
 * of four without a look at where they lead, for each device has its own local, broadcast and multicast ones.
 * @param ifindex only those that lead to this device, @param type only those of this RouteType.
 */
export function listRoutes(family: 4 | 6, ifindex?: number, type?: number): Route[] {
  // A kernel without the family answers EOPNOTSUPP: then there are no such routes.
  let routes: Route[];
  try {
    routes = dump(encodeDumpRoutes(family, ifindex ?? null, type ?? null), (message) => decodeRoute(message)?.route ?? null, `list the IPv${family} routes`);
  } catch (error) {
    if (errnoOf(error) === "EOPNOTSUPP" || errnoOf(error) === "EAFNOSUPPORT") return [];
    throw error;
  }
  if (routes.some(lacksHops)) routes = resolveNexthops(routes);
  return routes.filter((route) => (type === undefined || route.type === type) && (ifindex === undefined || route.hops.some((hop) => hop.ifindex === ifindex)));
}

function lacksHops(route: Route): boolean { return route.nexthopId !== null && route.hops.length === 0; }

function resolveNexthops(routes: Route[]): Route[] {
  const objects = new Map(dump(encodeDumpNexthops(), decodeNexthop, "list the nexthop objects").map((object) => [object.id, object]));
  return routes.map((route) => {
    if (!lacksHops(route)) return route;
    const object = objects.get(route.nexthopId!);
    const members = object === undefined ? [] : object.group.length === 0 ? [object] : object.group.map((id) => objects.get(id));
    const hops: NextHop[] = [];
    for (const member of members) if (member?.hop) hops.push(member.hop);
    return { ...route, hops };
  });
}

/** Filters on a device's clsact hook, whoever put them there; empty where there is no clsact. */
export function listFilters(ifindex: number, hook: "ingress" | "egress"): Filter[] {
  return dump(encodeDumpFilters(ifindex, hook), decodeFilter, `list the filters of device ${ifindex}`);
}

export function setLink(ifindex: number, change: LinkChange, label = `device ${ifindex}`): void {
  request(encodeSetLink(ifindex, change), `set ${label}: ${Object.keys(change).join(", ")}`);
}

/** false when it was gone already. */
export function deleteLink(ifindex: number): boolean {
  return requestUnless(encodeDeleteLink(ifindex), "ENODEV", `delete device ${ifindex}`) !== null;
}

/** Makes a device of a kind without data of its own ("bridge"). @returns it as the kernel shows it. */
export function createLink(name: string, kind: string): Link {
  checkInterfaceName(name);
  request(encodeCreateLink(name, kind), `create ${name}`);
  return mustFind(name);
}

/**
 * Makes a veth pair, both ends down. The peer appears in the namespace of peerNetnsFd, or beside the near end for null.
 * @returns the near end as the kernel shows it.
 */
export function createVeth(near: VethEnd, peer: VethEnd, peerNetnsFd: number | null): Link {
  checkInterfaceName(near.name);
  checkInterfaceName(peer.name);
  request(encodeCreateVeth(near, peer, peerNetnsFd), `create the veth pair ${near.name}, ${peer.name}`);
  return mustFind(near.name);
}

function mustFind(name: string): Link {
  const link = findLink(name);
  if (link === null) throw new EnforcerError("E_NETLINK", `${name} was made and is gone again: something else deletes or renames devices here`);
  return link;
}

/** @param prefixLength in the address's own family: 0..32 or 0..128. */
export function addAddress(ifindex: number, address: Address, prefixLength: number, flags = 0): void {
  request(encodeAddAddress(ifindex, address, prefixLength, flags), `add address ${formatAddress(address)}/${prefixLength} to device ${ifindex}`);
}

export function addRoute(route: NewRoute): void {
  request(encodeAddRoute(route), `add a route to ${formatPrefix(route.destination)} by device ${route.ifindex}`);
}

/** Permanent: never asked for on the wire, never collected. */
export function addNeighbour(ifindex: number, address: Address, mac: Uint8Array): void {
  request(encodeAddNeighbour(ifindex, address, mac), `add neighbour ${formatAddress(address)} to device ${ifindex}`);
}
