import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { EnforcerError } from "../../src/errors.js";
import { interfaceNameFault } from "../../src/net/links.js";
import {
  decodeAddress, decodeAttributes, decodeFilter, decodeLink, decodeNexthop, decodeRoute, encodeAddAddress, encodeAddNeighbour, encodeAddRoute, encodeAttributes,
  encodeCreateVeth, encodeDumpAddresses, encodeDumpRoutes, encodeGetLink, encodeSetLink, isDefaultRoute, type Route,
} from "../../src/net/rtnetlink.js";

/**
 * Answers of Linux 6.18, taken with the addon in a namespace that had tap0 in br0, 192.0.2.1/24, 10.0.0.1 peer 10.0.0.2 and
 * 2001:db8::1/64 on br0, a multipath route, one by an IPv6 gateway and one by nexthop object.
 */
const captured = JSON.parse(readFileSync(new URL("fixtures/rtnetlink.json", import.meta.url), "utf8")) as Record<string, string[]>;
const messages = (name: string): Buffer[] => captured[name]!.map((text) => Buffer.from(text, "hex"));
const all = Object.keys(captured).flatMap(messages);

describe("decoders on captured answers", () => {
  test("links", () => {
    const links = messages("links").map((message) => decodeLink(message)!.link);
    expect(links.map(({ ifindex, name, kind, tunType, master, mtu }) => [ifindex, name, kind, tunType, master, mtu])).toEqual([
      [1, "lo", null, null, null, 65536], [2, "tap0", "tun", "tap", 3, 1500], [3, "br0", "bridge", null, null, 1500], [4, "v1", "veth", null, null, 1500],
    ]);
    expect(links[1]!.mac).toEqual(Uint8Array.of(2, 0, 0, 0, 0, 0xa0));
    expect(links.every(({ xdp, alias }) => xdp === null && alias === null)).toBe(true);
  });

  test("addresses: own, peer, broadcast, and IPv6", () => {
    const addresses = messages("addresses").map((message) => decodeAddress(message)!.address);
    expect(addresses.map(({ family, local, peer, broadcast, prefixLength, ifindex }) => [family, formatAddress(local), peer && formatAddress(peer), broadcast && formatAddress(broadcast), prefixLength, ifindex])).toEqual([
      [4, "192.0.2.1", null, "192.0.2.255", 120, 3], [4, "10.0.0.1", "10.0.0.2", null, 128, 3],
      [6, expect.stringMatching(/^fe80::/), null, null, 64, 2], [6, "2001:db8::1", null, null, 64, 3],
    ]);
  });

  const shown = ({ destination, table, type, hops, nexthopId }: Route) => [formatPrefix(destination), table, type, hops.map(({ ifindex, gateway }) => `${ifindex} ${gateway && formatAddress(gateway)}`).join(), nexthopId];

  test("IPv4 routes: default in a table above 255, host, subnet, multipath, IPv6 gateway, nexthop object, local, broadcast", () => {
    expect(messages("routes4").map((message) => shown(decodeRoute(message)!.route))).toEqual([
      ["0.0.0.0/0", 1000, 1, "3 192.0.2.9", null],
      ["10.0.0.2", 254, 1, "3 null", null],
      ["192.0.2.0/24", 254, 1, "3 null", null],
      ["198.51.100.0/24", 254, 1, "3 192.0.2.7,3 192.0.2.6", null],
      ["203.0.113.0/24", 254, 1, "3 2001:db8::9", null],
      ["203.0.114.0/24", 254, 1, "3 192.0.2.8", 8],
      ["10.0.0.1", 255, 2, "3 null", null],
      ["192.0.2.1", 255, 2, "3 null", null],
      ["192.0.2.255", 255, 3, "3 null", null],
    ]);
    expect(messages("routes4WithoutHops").map((message) => shown(decodeRoute(message)!.route))).toEqual([["203.0.114.0/24", 254, 1, "", 8]]);
    expect(messages("nexthops").map((message) => decodeNexthop(message))).toEqual([
      { id: 7, hop: { ifindex: 3, gateway: parseAddress("192.0.2.8") }, group: [] }, { id: 8, hop: null, group: [7] },
    ]);
  });

  test("IPv6 routes", () => {
    expect(messages("routes6").map((message) => shown(decodeRoute(message)!.route))).toEqual([
      ["2001:db8::/64", 254, 1, "3 null", null], ["2001:db8::1", 255, 2, "3 null", null], ["ff00::/8", 255, 5, "2 null", null],
    ]);
  });

  test("filters: the announcement of a priority is none", () => {
    expect(messages("filters").map((message) => decodeFilter(message))).toEqual([null, { kind: "bpf", programId: null, name: null }]);
  });

  test("messages of another kind are not taken for one", () => {
    for (const decode of [decodeLink, decodeAddress, decodeRoute, decodeNexthop, decodeFilter]) expect(all.filter((message) => decode(message) !== null).length).toBeLessThan(all.length);
    const port = Buffer.from(messages("links")[1]!);
    port.writeUInt16LE(17, 4);
    expect(decodeLink(port)).toMatchObject({ deleted: true, movedAway: false, link: { name: "tap0" } });
    // RTM_DELLINK of family AF_BRIDGE: the port left its bridge and lives on.
    port[16] = 7;
    expect(decodeLink(port)).toBeNull();
  });

  test("a damaged message is E_NETLINK or still well-formed, never another error and never endless", () => {
    fc.assert(fc.property(fc.constantFrom(...all), fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }), fc.option(fc.nat()), (message, changes, cut) => {
      const damaged = Buffer.from(message);
      for (const [at, value] of changes) damaged[at % damaged.length] = value;
      const bytes = cut === null ? damaged : damaged.subarray(0, cut % (damaged.length + 1));
      for (const decode of [decodeLink, decodeAddress, decodeRoute, decodeNexthop, decodeFilter]) {
        try { decode(bytes); } catch (error) { if (!(error instanceof EnforcerError) || error.code !== "E_NETLINK") throw error; }
      }
    }), { numRuns: 2000 });
  });
});

describe("encoders", () => {
  const hex = (bytes: Buffer): string => bytes.toString("hex");

  test("attributes are padded, and come back", () => {
    const bytes = encodeAttributes([{ type: 3, value: Buffer.from("tap0\0") }, { type: 0x8004, value: Uint8Array.of(1, 2, 3, 4) }]);
    expect(hex(bytes)).toBe("090003007461703000000000" + "0800048001020304");
    expect([...decodeAttributes(bytes)]).toEqual([[3, Buffer.from("tap0\0")], [4, Buffer.from([1, 2, 3, 4])]]);
  });

  test.each<[string, Buffer, string]>([
    ["RTM_GETLINK by name", encodeGetLink({ name: "tap0" }), "34000000" + "1200" + "0500" + "0000000000000000" + "00".repeat(16) + "090003007461703000000000" + "08001d0008000000"],
    ["RTM_GETADDR of one device", encodeDumpAddresses(5), "18000000" + "1600" + "0103" + "0000000000000000" + "0000000005000000"],
    ["RTM_GETROUTE by device and type", encodeDumpRoutes(4, 5, 1), "24000000" + "1a00" + "0103" + "0000000000000000" + "020000000000000100000000" + "0800040005000000"],
    ["RTM_GETROUTE by device", encodeDumpRoutes(4, 5), "24000000" + "1a00" + "0103" + "0000000000000000" + "020000000000000000000000" + "0800040005000000"],
    ["RTM_SETLINK up, without ARP", encodeSetLink(5, { up: true, noArp: true, mtu: 1280 }), "28000000" + "1300" + "0500" + "0000000000000000" + "00000000" + "05000000" + "81000000" + "81000000" + "0800040000050000"],
    ["RTM_SETLINK without link-local address", encodeSetLink(5, { noLinkLocal: true }), "30000000" + "1300" + "0500" + "0000000000000000" + "00000000" + "05000000" + "0000000000000000" + "10001a80" + "0c000a80" + "0500080001000000"],
    ["RTM_NEWADDR", encodeAddAddress(5, parseAddress("240.0.0.1")!, 32), "30000000" + "1400" + "0506" + "0000000000000000" + "0220000005000000" + "08000200f0000001" + "08000100f0000001" + "0800080000000000"],
    ["RTM_NEWROUTE by a gateway", encodeAddRoute({ destination: parsePrefix("240.0.0.0/4")!, ifindex: 5, gateway: parseAddress("240.0.0.2")! }), "34000000" + "1800" + "0506" + "0000000000000000" + "02040000fe040001" + "04000000" + "08000100f0000000" + "0800040005000000" + "08000500f0000002"],
    ["RTM_NEWNEIGH", encodeAddNeighbour(5, parseAddress("240.0.0.2")!, Uint8Array.of(2, 0, 0, 0, 0, 9)), "30000000" + "1c00" + "0505" + "0000000000000000" + "02000000" + "05000000" + "80000000" + "08000100f0000002" + "0a000200020000000009" + "0000"],
  ])("%s", (_name, bytes, expected) => {
    expect(hex(bytes)).toBe(expected);
  });

  test("RTM_NEWLINK of a veth pair carries the peer's name and namespace", () => {
    const bytes = encodeCreateVeth({ name: "a" }, { name: "b", mtu: 1280 }, 9);
    const info = decodeAttributes(decodeAttributes(bytes.subarray(32)).get(18)!);
    expect(info.get(1)!.toString()).toBe("veth\0");
    const peer = decodeAttributes(decodeAttributes(info.get(2)!).get(1)!.subarray(16));
    expect([peer.get(3)!.toString(), peer.get(4)!.readUInt32LE(), peer.get(28)!.readUInt32LE()]).toEqual(["b\0", 1280, 9]);
  });
});

test.each([["0.0.0.0/0", true], ["128.0.0.0/1", true], ["192.0.0.0/2", false], ["::/0", true], ["2000::/3", true], ["2000::/4", false]])("%s is a default route: %s", (prefix, expected) => {
  const destination = parsePrefix(prefix)!;
  expect(isDefaultRoute({ family: destination.family, destination, table: 254, type: 1, scope: 0, protocol: 4, hops: [], nexthopId: null })).toBe(expected);
});

test.each(["", ".", "..", "all", "default", "a/b", "a:b", "a b", "a\tb", "a\0b", "../x", "sixteen-octets-x", "é"])("%j cannot name a device", (name) => {
  expect(interfaceNameFault(name)).not.toBeNull();
});

test.each(["tap0", "tap.0", "...", "a..b", "-x", "fifteen-octets", "vm@1", "%n"])("%j can", (name) => {
  expect(interfaceNameFault(name)).toBeNull();
});
