import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { closeFd, createNetns, openNetns, setNetns, Tap } from "../../native/index.js";
import { parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { addAddress, addNeighbour, addRoute, createLink, createVeth, deleteLink, findLink, findTap, listAddresses, listLinks, listRoutes, setLink } from "../../src/net/links.js";
import { inNetns } from "../../src/net/request.js";

const home = openNetns();
const host = createNetns();
beforeAll(() => setNetns(host));
afterAll(() => {
  setNetns(home);
  closeFd(host);
  closeFd(home);
});

describe("links", () => {
  test("a new namespace has lo alone, and no device is found by another name", () => {
    expect(listLinks().map(({ name }) => name)).toEqual(["lo"]);
    expect(findLink("lo")).toMatchObject({ ifindex: 1, kind: null, master: null, flags: expect.any(Number) });
    expect(findLink("eth0")).toBeNull();
  });

  test("a tap is told from a tun, a veth and lo", () => {
    const tap = new Tap("tap0");
    expect(findTap("tap0")).toMatchObject({ name: "tap0", ifindex: tap.ifindex, kind: "tun", tunType: "tap", mtu: 1500 });
    const veth = createVeth({ name: "v0" }, { name: "v1" }, null);
    expect(() => findTap("v0")).toThrow(expect.objectContaining({ code: "E_TAP_KIND", message: "v0 is a device of kind veth, not a tap" }));
    expect(() => findTap("lo")).toThrow(expect.objectContaining({ code: "E_TAP_KIND" }));
    expect(() => findTap("tap1")).toThrow(expect.objectContaining({ code: "E_TAP_MISSING" }));
    expect(deleteLink(veth.ifindex)).toBe(true);
    expect(deleteLink(veth.ifindex)).toBe(false);
    expect(findLink("v1")).toBeNull();
    tap.close();
    expect(findLink("tap0")).toBeNull();
  });

  test("a veth peer appears in the namespace of the descriptor", () => {
    const other = createNetns();
    const near = createVeth({ name: "v0", mac: Uint8Array.of(2, 0, 0, 0, 0, 1), mtu: 2000, noArp: true }, { name: "v9", mac: Uint8Array.of(2, 0, 0, 0, 0, 2), mtu: 3000 }, other);
    expect(near).toMatchObject({ mac: Uint8Array.of(2, 0, 0, 0, 0, 1), mtu: 2000, kind: "veth", alias: null });
    expect(near.flags & 0x80).toBe(0x80);
    expect(findLink("v9")).toBeNull();
    inNetns(other, () => expect(findLink("v9")).toMatchObject({ mac: Uint8Array.of(2, 0, 0, 0, 0, 2), mtu: 3000 }));
    expect(findLink("v0")).not.toBeNull();
    closeFd(other);
    deleteLink(near.ifindex);
  });

  test("a pair whose peer cannot be made leaves nothing", () => {
    expect(() => createVeth({ name: "v0" }, { name: "lo" }, null)).toThrow(expect.objectContaining({ code: "E_NETLINK" }));
    expect(listLinks().map(({ name }) => name)).toEqual(["lo"]);
  });

  test("addresses, routes and neighbours are added and read back", () => {
    const near = createVeth({ name: "v.0" }, { name: "v1" }, null);
    setLink(near.ifindex, { up: true, mtu: 1400, alias: "a test" });
    setLink(findLink("v1")!.ifindex, { up: true });
    expect(findLink("v.0")).toMatchObject({ mtu: 1400, alias: "a test" });
    addAddress(near.ifindex, parseAddress("192.0.2.1")!, 24);
    addAddress(near.ifindex, parseAddress("2001:db8::1")!, 64, 2);
    addNeighbour(near.ifindex, parseAddress("192.0.2.9")!, Uint8Array.of(2, 0, 0, 0, 0, 9));
    addRoute({ destination: parsePrefix("198.51.100.0/24")!, ifindex: near.ifindex });
    addRoute({ destination: parsePrefix("203.0.113.0/24")!, ifindex: near.ifindex, gateway: parseAddress("192.0.2.9")!, preferredSource: parseAddress("192.0.2.1")!, mtu: 1280 });
    addRoute({ destination: parsePrefix("2001:db8:1::/48")!, ifindex: near.ifindex, gateway: parseAddress("2001:db8::9")! });
    expect(listAddresses(near.ifindex).filter(({ scope }) => scope === 0)).toMatchObject([
      { family: 4, local: parseAddress("192.0.2.1"), prefixLength: 120, peer: null },
      { family: 6, local: parseAddress("2001:db8::1"), prefixLength: 64, peer: null },
    ]);
    const shown = [...listRoutes(4, near.ifindex), ...listRoutes(6, near.ifindex)].filter(({ type }) => type === 1).map(({ destination, hops }) => [destination, hops]);
    expect(shown).toEqual(expect.arrayContaining([
      [parsePrefix("192.0.2.0/24"), [{ ifindex: near.ifindex, gateway: null }]],
      [parsePrefix("198.51.100.0/24"), [{ ifindex: near.ifindex, gateway: null }]],
      [parsePrefix("203.0.113.0/24"), [{ ifindex: near.ifindex, gateway: parseAddress("192.0.2.9") }]],
      [parsePrefix("2001:db8:1::/48"), [{ ifindex: near.ifindex, gateway: parseAddress("2001:db8::9") }]],
    ]));
    deleteLink(near.ifindex);
  });

  test("a port of a bridge names its master", () => {
    const bridge = createLink("br0", "bridge");
    const tap = new Tap("tap0");
    setLink(tap.ifindex, { master: bridge.ifindex });
    expect(findTap("tap0").master).toBe(bridge.ifindex);
    setLink(tap.ifindex, { master: 0 });
    expect(findTap("tap0").master).toBeNull();
    tap.close();
    deleteLink(bridge.ifindex);
  });
});
