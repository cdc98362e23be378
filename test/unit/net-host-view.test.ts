import { describe, expect, test } from "vitest";

import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { hostView, hostViewKey, packView, unpackView } from "../../src/net/host-view.js";
import type { InterfaceAddress, NextHop, Route } from "../../src/net/rtnetlink.js";
import { addressFacts } from "../../src/net/tap.js";

const eth0 = 2, tun0 = 3, wwan0 = 4, tap0 = 5;

function address(text: string, ifindex: number, more: Partial<InterfaceAddress> = {}): InterfaceAddress {
  const { bytes, length, family } = parsePrefix(text)!;
  return { family, ifindex, local: bytes, peer: null, prefixLength: length, broadcast: null, scope: 0, flags: 0x80, ...more };
}

function route(text: string, hops: (number | [number | null, string])[], more: Partial<Route> = {}): Route {
  const destination = parsePrefix(text)!;
  return {
    family: destination.family, destination, table: 254, type: 1, scope: 0, protocol: 4, nexthopId: null,
    hops: hops.map((hop): NextHop => (typeof hop === "number" ? { ifindex: hop, gateway: null } : { ifindex: hop[0], gateway: parseAddress(hop[1])! })), ...more,
  };
}

const local = (text: string, ifindex: number): Route => route(text, [ifindex], { table: 255, type: 2 });
const default4 = route("0.0.0.0/0", [[eth0, "192.0.2.1"]]), default6 = route("::/0", [[eth0, "fe80::1"]]);

function shown(addresses: InterfaceAddress[], routes: Route[]) {
  const view = hostView(addresses, routes);
  return {
    addresses: view.addresses.map(formatAddress), local: view.localPrefixes.map(formatPrefix),
    broadcasts: view.broadcasts.map(formatAddress), connected: view.connectedPrefixes.map(formatPrefix),
  };
}

describe("hostView", () => {
  test("addresses of every device count, loopback does not", () => {
    expect(shown([address("127.0.0.1/8", 1), address("::1/128", 1), address("192.0.2.10/24", eth0), address("2001:db8::10/64", eth0), address("fe80::10/64", eth0), address("10.255.0.1/32", 1)], [])).toMatchObject({
      addresses: ["10.255.0.1", "192.0.2.10", "2001:db8::10", "fe80::10"], broadcasts: ["192.0.2.255"],
    });
  });

  test("a link-local address of the host is the host's, its prefix stays link-local", () => {
    expect(shown([address("169.254.7.7/16", eth0)], [route("169.254.0.0/16", [eth0]), route("fe80::/64", [eth0])])).toEqual({ addresses: ["169.254.7.7"], local: [], broadcasts: ["169.254.255.255"], connected: [] });
  });

  test("broadcast addresses: configured, implied, none on /31, /32 and point-to-point", () => {
    const list = [
      address("10.0.0.1/24", 2, { broadcast: parseAddress("10.0.0.128")! }), address("10.1.0.0/31", 2), address("10.2.0.1/32", 2),
      address("10.3.0.1/24", 2, { peer: parseAddress("10.4.0.2")! }), address("10.5.0.1/30", 2),
    ];
    expect(shown(list, [route("10.6.0.255/32", [2], { table: 255, type: 3 })]).broadcasts).toEqual(["10.0.0.128", "10.0.0.255", "10.5.0.3", "10.6.0.255"]);
  });

  test("what the local table answers to is the host's, whole prefixes too", () => {
    expect(shown([], [local("192.0.2.10/32", eth0), local("198.51.100.0/24", 1), local("127.0.0.0/8", 1), route("2001:db8::/128", [eth0], { table: 255, type: 4 }), route("ff00::/8", [eth0], { table: 255, type: 5 })])).toEqual({
      addresses: ["192.0.2.10", "2001:db8::"], local: ["198.51.100.0/24"], broadcasts: [], connected: ["198.51.100.0/24"],
    });
  });

  test("connected prefixes count, in any table; the default does not", () => {
    expect(shown([], [default4, default6, route("203.0.113.0/24", [eth0], { scope: 253 }), route("198.51.100.0/24", [eth0], { table: 1000 }), route("2001:db8:1::/64", [eth0])]).connected).toEqual(["198.51.100.0/24", "203.0.113.0/24", "2001:db8:1::/64"]);
  });

  test("A11: a public prefix routed into a VPN counts, one routed to the Internet does not", () => {
    expect(shown([], [default4, route("8.8.8.0/24", [[tun0, "10.8.0.1"]]), route("9.9.9.0/24", [[eth0, "192.0.2.254"]]), route("1.1.1.0/24", [tun0])]).connected).toEqual(["1.1.1.0/24", "8.8.8.0/24"]);
  });

  test("a VPN that takes over the default by halves is the way to the Internet", () => {
    expect(shown([], [default4, route("0.0.0.0/1", [[tun0, "10.8.0.1"]]), route("128.0.0.0/1", [[tun0, "10.8.0.1"]]), route("9.9.9.0/24", [[tun0, "10.8.0.1"]]), route("2000::/3", [tun0])]).connected).toEqual([]);
  });

  test("a default of another table does not make its device an uplink of the main one", () => {
    const other = route("0.0.0.0/0", [[wwan0, "198.18.0.1"]], { table: 100 });
    expect(shown([], [default4, other, route("9.9.9.0/24", [[wwan0, "198.18.0.1"]])]).connected).toEqual(["9.9.9.0/24"]);
    expect(shown([], [default4, other, route("9.9.9.0/24", [[wwan0, "198.18.0.1"]], { table: 100 })]).connected).toEqual([]);
  });

  test("multipath counts as soon as one hop stays, and a route of unknown hops counts", () => {
    expect(shown([], [default4, route("9.9.9.0/24", [[eth0, "192.0.2.1"], [tun0, "10.8.0.1"]]), route("8.8.8.0/24", [], { nexthopId: 7 }), route("7.7.7.0/24", [[null, "10.8.0.1"]])]).connected).toEqual(["7.7.7.0/24", "8.8.8.0/24", "9.9.9.0/24"]);
  });

  test("without a default route everything routed stays with the host", () => {
    expect(shown([], [route("9.9.9.0/24", [[eth0, "192.0.2.1"]])]).connected).toEqual(["9.9.9.0/24"]);
  });

  test("blackholes and multicast routes are no places", () => {
    expect(shown([], [route("9.9.9.0/24", [], { type: 6 }), route("224.0.0.0/4", [eth0])]).connected).toEqual([]);
  });

  test("the key does not depend on order and tells every change", () => {
    const a = [address("192.0.2.10/24", 2), address("192.0.2.11/24", 2)];
    const key = (addresses: InterfaceAddress[], routes: Route[] = []): string => hostViewKey(packView(hostView(addresses, routes)));
    expect(key(a)).toBe(key([...a].reverse()));
    const others = [key(a), key(a.slice(1)), key([]), key(a, [route("9.9.9.0/24", [eth0])]), key(a, [route("9.9.9.0/25", [eth0])]), key([], [route("192.0.2.10/32", [eth0])])];
    expect(new Set(others).size).toBe(others.length);
  });

  test("packed and unpacked it is the same", () => {
    const view = hostView([address("192.0.2.10/24", eth0), address("2001:db8::10/64", eth0)], [default4, default6, local("198.51.100.0/24", 1), route("9.9.9.0/24", [tun0]), route("2001:db8:9::/48", [tun0])]);
    expect(view.localPrefixes.length * view.connectedPrefixes.length * view.broadcasts.length).toBeGreaterThan(0);
    const packed = packView(view);
    expect(unpackView(packed)).toEqual(view);
    expect(packView(unpackView(packed))).toEqual(packed);
    const none = hostView([], []);
    expect(unpackView(packView(none))).toEqual(none);
  });
});

describe("addressFacts", () => {
  function facts(addresses: InterfaceAddress[], routes: Route[]) {
    const found = addressFacts(addresses, routes, tap0);
    return {
      gateways: found.gateways.map(formatAddress), subnets: found.subnets.map(formatPrefix), learn: found.learnPrefixes.map(formatPrefix),
      broadcasts: found.broadcasts.map(formatAddress), routers: found.routers.map(formatAddress),
    };
  }

  test("an ordinary routed tap", () => {
    expect(facts([address("fe80::1/64", tap0), address("172.16.0.1/30", tap0), address("2001:db8:5::1/64", tap0)], [route("172.16.0.0/30", [tap0]), route("2001:db8:5::/64", [tap0]), route("fe80::/64", [tap0]), local("172.16.0.1/32", tap0)])).toEqual({
      gateways: ["172.16.0.1", "2001:db8:5::1", "fe80::1"], subnets: ["172.16.0.0/30", "2001:db8:5::/64"], learn: ["172.16.0.0/30", "2001:db8:5::/64"],
      broadcasts: ["172.16.0.3"], routers: [],
    });
  });

  test("a /32 on the tap with the guest behind a host route", () => {
    expect(facts([address("169.254.0.1/32", tap0)], [route("10.9.0.2/32", [tap0]), route("10.9.1.0/24", [[tap0, "10.9.0.2"]])])).toEqual({
      gateways: ["169.254.0.1"], subnets: [], learn: ["10.9.0.2", "10.9.1.0/24"], broadcasts: [], routers: [],
    });
  });

  test("a point-to-point address: the peer is the guest", () => {
    expect(facts([address("10.0.0.1/32", tap0, { peer: parseAddress("10.0.0.2")! })], [])).toMatchObject({ gateways: ["10.0.0.1"], subnets: [], learn: ["10.0.0.2"] });
  });

  test("a bridge with an uplink names the router behind it and does not learn the whole Internet", () => {
    expect(facts([address("192.0.2.5/24", tap0)], [route("0.0.0.0/0", [[tap0, "192.0.2.1"]]), route("192.0.2.0/24", [tap0])])).toMatchObject({ gateways: ["192.0.2.5"], learn: ["192.0.2.0/24"], routers: ["192.0.2.1"] });
  });

  test("routes by another device are not the tap's", () => {
    expect(facts([], [route("10.0.0.0/8", [eth0])])).toEqual({ gateways: [], subnets: [], learn: [], broadcasts: [], routers: [] });
  });
});
