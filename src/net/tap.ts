/**
 * What attaching needs to know of a tap, and what it sets on it.
 *
 * Holds always: facts are read from the kernel at the time of asking; settings that are changed are returned as data and
 * can be taken back, also by another process. A bridge that the tap is a port of is reported and never changed.
 * Does not: attach programs, forward, or touch proxy_arp and forwarding: those are the operator's.
 */
import { parsePrefix, prefixWithin, type Address, type Prefix } from "../addresses/address.js";
import { broadcastsOf } from "./broadcast.js";
import { findLinkByIndex, findTap, listAddresses, listRoutes } from "./links.js";
import { PrefixSet } from "./prefix-set.js";
import { isDefaultRoute, LinkFlag, RouteProtocol, RouteType, type InterfaceAddress, type Route } from "./rtnetlink.js";
import { applySysctl, kernelHasIpv6, plannedSysctl, readSysctl, revertSysctls, type SysctlChange, type SysctlFamily } from "./sysctl.js";

export interface TapBridge {
  readonly ifindex: number;
  readonly name: string;
  readonly mac: Uint8Array | null;
}

export interface TapFacts {
  readonly name: string;
  readonly ifindex: number;
  readonly mac: Uint8Array;
  readonly mtu: number;
  readonly up: boolean;
  /** Null for a routed tap. */
  readonly bridge: TapBridge | null;
  /** True when the master is no bridge (a VRF, a bond, Open vSwitch): addresses are then looked for on the tap alone. */
  readonly otherMaster: string | null;
  /** Its name, where that is a VRF. */
  readonly vrf: string | null;
  /** Own addresses of the host on the tap, or on its bridge; IPv6 link-local ones last. */
  readonly gateways: readonly Address[];
  /** Prefixes of those addresses, without link-local ones. */
  readonly subnets: readonly Prefix[];
  /**
   * Where a guest's address may be learned: subnets, the other ends of point-to-point addresses, and routes that lead to
   * the tap or its bridge, direct ones first, longest first. Without default routes and link-local prefixes.
   */
  readonly learnPrefixes: readonly Prefix[];
  /** Directed broadcast addresses of the IPv4 subnets. */
  readonly broadcasts: readonly Address[];
  /**
   * Routers that default routes reach through the bridge: where it has an uplink, the guest's real gateway. None for a
   * routed tap: behind that is the guest itself.
   */
  readonly routers: readonly Address[];
  /** A program at XDP sees the guest's frames before ours does. */
  readonly xdp: { readonly programId: number | null } | null;
  /** Whether the host has IPv6 routes by the tap itself that a router advertisement made. */
  readonly advertisedRoutes: boolean;
}

/** @throws EnforcerError E_TAP_MISSING, E_TAP_KIND, E_NETLINK. */
export function tapFacts(name: string): TapFacts {
  const tap = findTap(name);
  const master = tap.master === null ? null : findLinkByIndex(tap.master);
  const bridge = master?.kind === "bridge" ? master : null;
  const device = bridge ?? tap;
  const addresses = listAddresses(device.ifindex);
  const routes6 = listRoutes(6, device.ifindex, RouteType.unicast);
  const found = addressFacts(addresses, [...listRoutes(4, device.ifindex, RouteType.unicast), ...routes6], device.ifindex);
  const byTap = bridge === null ? routes6 : listRoutes(6, tap.ifindex, RouteType.unicast);
  return {
    name: tap.name, ifindex: tap.ifindex, mac: tap.mac!, mtu: tap.mtu, up: (tap.flags & LinkFlag.up) !== 0,
    bridge: bridge === null ? null : { ifindex: bridge.ifindex, name: bridge.name, mac: bridge.mac },
    otherMaster: master === null || bridge !== null ? null : master.name, vrf: master?.kind === "vrf" ? master.name : null,
    ...found, routers: bridge === null ? [] : found.routers,
    xdp: tap.xdp, advertisedRoutes: byTap.some(({ protocol }) => protocol === RouteProtocol.routerAdvertisement),
  };
}

/** The pure part of tapFacts: addresses and routes of the tap, or of its bridge. */
export function addressFacts(addresses: readonly InterfaceAddress[], routes: readonly Route[], ifindex: number): Pick<TapFacts, "gateways" | "subnets" | "learnPrefixes" | "broadcasts" | "routers"> {
  const gateways = new PrefixSet(), linkLocalGateways = new PrefixSet(), subnets = new PrefixSet(), broadcasts = new PrefixSet(), routers = new PrefixSet();
  const direct: Prefix[] = [], behind: Prefix[] = [];
  for (const address of addresses) {
    const { family, local, peer, prefixLength } = address;
    const prefix: Prefix = { bytes: peer ?? local, length: prefixLength, family };
    if (isLinkLocal6(prefix)) { linkLocalGateways.addAddress(local); continue; }
    gateways.addAddress(local);
    for (const broadcast of broadcastsOf(address)) broadcasts.addAddress(broadcast);
    // A /32 or /128 of the host's own is no place for a guest; the other end of a point-to-point address is.
    if (peer !== null) direct.push(prefix);
    else if (prefixLength < 128) { subnets.add(prefix); direct.push(prefix); }
  }
  for (const route of routes) {
    const { destination, type, hops } = route;
    if (type !== RouteType.unicast) continue;
    for (const hop of hops) {
      if (hop.ifindex !== ifindex) continue;
      if (isDefaultRoute(route)) { if (hop.gateway !== null) routers.addAddress(hop.gateway); }
      else if (!isLinkLocal6(destination) && !prefixWithin(destination, MULTICAST6)) (hop.gateway === null ? direct : behind).push(destination);
    }
  }
  const learn = new PrefixSet();
  for (const list of [direct, behind]) for (const prefix of list.sort((a, b) => b.length - a.length)) learn.add(prefix);
  return {
    gateways: [...gateways.addresses, ...linkLocalGateways.addresses], subnets: subnets.prefixes, learnPrefixes: learn.prefixes,
    broadcasts: broadcasts.addresses, routers: routers.addresses,
  };
}

const LINK_LOCAL6 = parsePrefix("fe80::/10")!, MULTICAST6 = parsePrefix("ff00::/8")!;

function isLinkLocal6(prefix: Prefix): boolean { return prefixWithin(prefix, LINK_LOCAL6); }

// ---- hygiene --------------------------------------------------------------------------------------------------------

/** What a tap gets, each with its reason: it is printed. A fresh tap has accept_ra 1, rp_filter 0, arp_ignore 0. */
const HYGIENE: readonly { family: SysctlFamily; setting: string; value: string; why: string }[] = [
  { family: "ipv6", setting: "accept_ra", value: "0", why: "a guest's router advertisement does not configure the host" },
  { family: "ipv6", setting: "autoconf", value: "0", why: "nor give it addresses" },
  { family: "ipv6", setting: "accept_redirects", value: "0", why: "a guest does not change the host's routes" },
  { family: "ipv6", setting: "accept_source_route", value: "-1", why: "no routing headers" },
  { family: "ipv4", setting: "accept_redirects", value: "0", why: "a guest does not change the host's routes" },
  { family: "ipv4", setting: "secure_redirects", value: "0", why: "not even towards a known gateway" },
  { family: "ipv4", setting: "send_redirects", value: "0", why: "a guest is not told about siblings" },
  { family: "ipv4", setting: "accept_source_route", value: "0", why: "no source routes" },
  { family: "ipv4", setting: "rp_filter", value: "1", why: "a source address is taken only from where it is routed" },
  { family: "ipv4", setting: "arp_ignore", value: "1", why: "ARP is answered only for the tap's own addresses" },
  { family: "ipv4", setting: "arp_announce", value: "2", why: "ARP names only the tap's own addresses" },
];

export interface TapChange extends SysctlChange { readonly why: string }

export interface TapPreparation {
  readonly name: string;
  readonly ifindex: number;
  /** For printing, and to keep in the run directory: plain data. */
  readonly changes: readonly TapChange[];
  /** Sentences: where something on the host makes a setting of the tap weaker than it reads. */
  readonly notes: readonly string[];
}

/** What prepareTap would change now: to be written down before it does, so that a kill in between loses no former value. */
export function plannedChanges(name: string): TapChange[] {
  const ipv6 = kernelHasIpv6();
  return HYGIENE.flatMap(({ family, setting, value, why }) => {
    const change = family === "ipv6" && !ipv6 ? null : plannedSysctl(family, name, setting, value);
    return change === null ? [] : [{ ...change, why }];
  });
}

/**
 * Sets the tap's protocol settings, without touching forwarding or proxy_arp. All or nothing: on an error what was set is
 * taken back first.
 * @param tap its name, or what is known of it since a moment.
 * @param planned what plannedChanges() said of it just now.
 * @throws EnforcerError E_NETLINK, E_TAP_MISSING, E_TAP_KIND.
 */
export function prepareTap(tap: string | TapFacts, planned?: readonly TapChange[]): TapPreparation {
  const facts = typeof tap === "string" ? tapFacts(tap) : tap;
  const changes: TapChange[] = [];
  try {
    for (const change of planned ?? plannedChanges(facts.name)) {
      applySysctl(facts.name, change);
      changes.push(change);
    }
  } catch (error) {
    revertSysctls(facts.name, changes);
    throw error;
  }
  return { name: facts.name, ifindex: facts.ifindex, changes, notes: weaknesses(facts) };
}

function weaknesses({ name, bridge, vrf, advertisedRoutes }: TapFacts): string[] {
  const notes: string[] = [];
  // Reverse path: the greater of "all" and the device counts, and 2 is the looser one.
  if (readSysctl("ipv4", "all", "rp_filter") === "2") notes.push("net.ipv4.conf.all.rp_filter is 2 (loose) and overrides the strict setting of the tap; source addresses are checked by the enforcer all the same");
  // What a guest advertised before it was attached stays when the setting changes.
  if (advertisedRoutes) notes.push(`the host has routes from router advertisements that came in by ${name}; take them away: ip -6 route flush dev ${name} proto ra`);
  if (vrf !== null) notes.push(`${name} is in VRF ${vrf}: what its guest asks of DNS, and connections that are looked into, go out by the default VRF and not by ${vrf}`);
  if (bridge !== null) {
    if (kernelHasIpv6() && (readSysctl("ipv6", bridge.name, "accept_ra") ?? "0") !== "0") notes.push(`bridge ${bridge.name} accepts router advertisements (net.ipv6.conf.${bridge.name}.accept_ra); those of this guest are dropped, those of other ports are not`);
    if (readSysctl("ipv4", bridge.name, "arp_ignore") === "0" && readSysctl("ipv4", "all", "arp_ignore") === "0") notes.push(`bridge ${bridge.name} answers ARP for every address of the host (net.ipv4.conf.${bridge.name}.arp_ignore is 0); this guest may ask for its gateway only`);
  }
  return notes;
}

/**
 * Takes a preparation back: settings that still read as they were set get their former value. A tap that is gone, or is
 * another device under the same name by now, is left alone.
 * @param name where nothing else shows that the number is still this tap's: one that has another name is then left alone too.
 * @returns whether the tap was still there.
 */
export function restoreTap({ ifindex, changes, name }: Pick<TapPreparation, "ifindex" | "changes"> & { readonly name?: string }): boolean {
  // By index: the tap may have been renamed, and another may have its name.
  const tap = findLinkByIndex(ifindex);
  if (tap === null || (name !== undefined && (tap.name !== name || tap.tunType !== "tap"))) return false;
  revertSysctls(tap.name, changes);
  return true;
}
