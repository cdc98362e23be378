/**
 * What of the host's own network a guest must not reach under "public": its addresses, its links, what it routes elsewhere
 * than to the Internet. Input for the address groups (addresses/groups.ts).
 *
 * Holds always: pure; a route or address that cannot be placed counts as the host's. Loopback, multicast and link-local
 * prefixes are left out: the address tables name them already, and a connected 169.254.0.0/16 must stay in its own group.
 * Does not: read the kernel (host-watch.ts).
 */
import { createHash } from "node:crypto";
import { addressPrefix, parsePrefix, prefixWithin, type Address, type Prefix } from "../addresses/address.js";
import { broadcastsOf } from "./broadcast.js";
import { PrefixSet } from "./prefix-set.js";
import { isDefaultRoute, RouteTable, RouteType, type InterfaceAddress, type Route } from "./rtnetlink.js";

export interface HostView {
  /** Every address that the host answers to, on any device, up or down: group host. Without loopback. */
  readonly addresses: readonly Address[];
  /** Whole prefixes that the host answers to (ip route add local 192.0.2.0/24 dev lo): group host. */
  readonly localPrefixes: readonly Prefix[];
  /** Directed broadcast addresses: group multicast. */
  readonly broadcasts: readonly Address[];
  /**
   * Group private: prefixes on a link of the host, prefixes routed by a device that no default route uses (a VPN, another
   * guest's tap), and localPrefixes once more.
   */
  readonly connectedPrefixes: readonly Prefix[];
}

export function hostView(addresses: readonly InterfaceAddress[], routes: readonly Route[]): HostView {
  const own = new PrefixSet(), broadcasts = new PrefixSet(), local = new PrefixSet(), connected = new PrefixSet();

  for (const address of addresses) {
    if (inTables(addressPrefix(address.local))) continue;
    own.addAddress(address.local);
    for (const broadcast of broadcastsOf(address)) broadcasts.addAddress(broadcast);
  }

  const uplinks = new Uplinks(routes);
  for (const route of routes) {
    const { destination, type } = route;
    const single = destination.length === 128;
    if (inTables(destination) || (!single && LINK_LOCAL.some((prefix) => prefixWithin(destination, prefix)))) continue;
    if (type === RouteType.local || type === RouteType.anycast) {
      if (single) own.add(destination);
      else { local.add(destination); connected.add(destination); }
    } else if (type === RouteType.broadcast && single) {
      broadcasts.add(destination);
    } else if ((type === RouteType.unicast || type === RouteType.broadcast) && !isDefaultRoute(route) && !uplinks.leadOut(route)) {
      connected.add(destination);
    }
  }
  return { addresses: own.sortedAddresses, localPrefixes: local.sortedPrefixes, broadcasts: broadcasts.sortedAddresses, connectedPrefixes: connected.sortedPrefixes };
}

/** Which devices default routes use, by table: a host may keep another default for some of its traffic. */
class Uplinks {
  readonly #devices = new Map<string, Set<number>>();

  constructor(routes: readonly Route[]) {
    for (const route of routes) {
      if (route.type !== RouteType.unicast || !isDefaultRoute(route)) continue;
      const key = `${route.family} ${route.table}`;
      const devices = this.#devices.get(key) ?? new Set<number>();
      for (const { ifindex } of route.hops) if (ifindex !== null) devices.add(ifindex);
      this.#devices.set(key, devices);
    }
  }

  /** True when every hop goes through a router, by a device by which a default route of its table (or the main one) goes as well. */
  leadOut({ family, table, hops }: Route): boolean {
    const devices = this.#devices.get(`${family} ${table}`) ?? this.#devices.get(`${family} ${RouteTable.main}`);
    // A route of which no hop is known cannot be shown to lead to the Internet.
    return devices !== undefined && hops.length > 0 && hops.every(({ ifindex, gateway }) => gateway !== null && ifindex !== null && devices.has(ifindex));
  }
}

function prefixes(...texts: string[]): Prefix[] {
  return texts.map((text) => {
    const prefix = parsePrefix(text);
    if (prefix === null) throw new Error(`${text} is no prefix`);
    return prefix;
  });
}

/** Unspecified, loopback, multicast, limited broadcast. */
const IN_TABLES = prefixes("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255", "::/128", "::1", "ff00::/8");
const LINK_LOCAL = prefixes("169.254.0.0/16", "fe80::/10");

function inTables(inner: Prefix): boolean { return IN_TABLES.some((outer) => prefixWithin(inner, outer)); }

/** A view as octets, for another thread: a fraction of what its thousands of little arrays cost to clone. Equal for equal views. */
export interface PackedView {
  /** 16 octets each. */
  readonly addresses: Uint8Array;
  readonly broadcasts: Uint8Array;
  /** 18 octets each: 16 of the prefix, its length, its family. */
  readonly localPrefixes: Uint8Array;
  readonly connectedPrefixes: Uint8Array;
}

const PREFIX_OCTETS = 18;

export function packView({ addresses, localPrefixes, broadcasts, connectedPrefixes }: HostView): PackedView {
  return { addresses: packAddresses(addresses), localPrefixes: packPrefixes(localPrefixes), broadcasts: packAddresses(broadcasts), connectedPrefixes: packPrefixes(connectedPrefixes) };
}

export function unpackView({ addresses, localPrefixes, broadcasts, connectedPrefixes }: PackedView): HostView {
  return { addresses: unpackAddresses(addresses), localPrefixes: unpackPrefixes(localPrefixes), broadcasts: unpackAddresses(broadcasts), connectedPrefixes: unpackPrefixes(connectedPrefixes) };
}

/** Equal for equal views: what tells whether anything changed. */
export function hostViewKey({ addresses, localPrefixes, broadcasts, connectedPrefixes }: PackedView): string {
  const hash = createHash("sha256");
  for (const part of [addresses, localPrefixes, broadcasts, connectedPrefixes]) hash.update(`${part.length} `).update(part);
  return hash.digest("base64");
}

function packAddresses(addresses: readonly Address[]): Uint8Array {
  const out = new Uint8Array(addresses.length * 16);
  addresses.forEach((address, i) => out.set(address, i * 16));
  return out;
}

function unpackAddresses(packed: Uint8Array): Address[] { return Array.from({ length: packed.length / 16 }, (_, i) => packed.subarray(i * 16, (i + 1) * 16)); }

function packPrefixes(list: readonly Prefix[]): Uint8Array {
  const out = new Uint8Array(list.length * PREFIX_OCTETS);
  list.forEach(({ bytes, length, family }, i) => {
    out.set(bytes, i * PREFIX_OCTETS);
    out[i * PREFIX_OCTETS + 16] = length;
    out[i * PREFIX_OCTETS + 17] = family;
  });
  return out;
}

function unpackPrefixes(packed: Uint8Array): Prefix[] {
  return Array.from({ length: packed.length / PREFIX_OCTETS }, (_, i) => {
    const at = i * PREFIX_OCTETS;
    return { bytes: packed.subarray(at, at + 16), length: packed[at + 16]!, family: packed[at + 17] === 4 ? 4 : 6 };
  });
}
