/**
 * What may be said of a guest's identity: refused is what no guest can have, or what would be more than was meant.
 */
import { describe, expect, test } from "vitest";
import { formatAddress, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { gatewaysLeftOut, identityOf } from "../../src/agent/sandbox.js";
import { knownGateways } from "../../src/kernel/sandbox-tables.js";
import type { TapFacts } from "../../src/net/tap.js";

const facts: TapFacts = {
  name: "tap0", ifindex: 7, mac: Uint8Array.of(2, 0, 0, 0, 0, 1), mtu: 1500, up: true, bridge: null, otherMaster: null, vrf: null, broadcasts: [], routers: [], xdp: null, advertisedRoutes: false,
  gateways: [parseAddress("172.30.0.1")!, parseAddress("fd00:30::1")!], subnets: [], learnPrefixes: [parsePrefix("172.30.0.0/24")!],
};
const given = (guest: readonly string[], more: { gateways?: readonly string[]; mac?: Uint8Array } = {}): void => {
  identityOf(facts, { guest: guest.map((one) => parsePrefix(one)!), gateways: (more.gateways ?? []).map((one) => parseAddress(one)!), mac: more.mac ?? null, incomplete: false });
};

describe("identity", () => {
  test.each(["172.30.0.2", "172.30.0.0/24", "fd00:30::/64", "fd00:30::2", "fe80::2", "::/3", "10.0.0.0/8"])("a guest may have %s", (text) => { given([text]); });

  test.each([
    ["0.0.0.0/0", "every address"], ["::/0", "every address"], ["0.0.0.0", "nobody's"], ["::", "nobody's"], ["127.0.0.1", "loopback"], ["::1", "loopback"], ["224.0.0.1", "no host's"],
    ["255.255.255.255", "no host's"], ["ff02::1", "group"], ["ff00::/8", "group"], ["::ffff:172.30.0.2", "IPv4-mapped"], ["172.30.0.1", "gateway"], ["fd00:30::1", "gateway"],
  ])("a guest cannot have %s", (text, why) => { expect(() => given([text])).toThrow(expect.objectContaining({ code: "E_USAGE", message: expect.stringContaining(why) as string })); });

  test("an address with the length of its subnet is not taken for the whole subnet", () => {
    expect(() => given(["172.30.0.2/24"])).toThrow(expect.objectContaining({ code: "E_USAGE", remedy: "write 172.30.0.2 for that address alone, or 172.30.0.0/24 if all of it is the guest's" }));
    expect(() => given(["fd00:30::2/64"])).toThrow(/bits set behind its length/);
  });

  test.each(["0.0.0.0", "224.0.0.1", "127.0.0.1", "::", "ff02::1"])("%s is no gateway", (text) => { expect(() => given(["172.30.0.2"], { gateways: [text] })).toThrow(/--gateway/); });

  test("more gateways than the kernel can know: named ones are refused, of a tap's own it is said which are left out, and a link-local one never is", () => {
    const addresses = (...texts: string[]): Uint8Array[] => texts.map((text) => parseAddress(text)!);
    const four = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
    given(["172.30.0.2"], { gateways: [...four, "fd00::1", "fd00::2", "fd00::3", "fe80::1"] });
    expect(() => given(["172.30.0.2"], { gateways: [...four, "10.0.0.5"] })).toThrow(expect.objectContaining({ code: "E_LIMIT", message: "5 IPv4 gateways for one guest; 4 can be held" }));
    const said = (...gateways: string[]): string | null => gatewaysLeftOut("tap0", identityOf({ ...facts, gateways: addresses(...gateways) }, { guest: [parsePrefix("172.30.0.2")!], gateways: [], mac: null, incomplete: false }));
    expect(said(...four, "fd00::1", "fd00::2", "fd00::3", "fe80::1")).toBe(null);
    expect(said(...four, "10.0.0.5", "10.0.0.6")).toBe("tap0: 6 IPv4 addresses could be the guest's gateway, and 4 can be held: not 10.0.0.5, 10.0.0.6. --gateway names those that the guest uses");
    expect(said("fd00::1", "fd00::2", "fd00::3", "fd00::4", "fe80::1")).toMatch(/5 IPv6 .* not fd00::4\. /);
    expect(knownGateways(addresses("fd00::1", "fd00::2", "fd00::3", "fd00::4", "fe80::1", "fe80::2")).map(formatAddress)).toEqual(["fd00::1", "fd00::2", "fd00::3", "fe80::1"]);
  });

  test("a MAC of a group is no guest's", () => { expect(() => given(["172.30.0.2"], { mac: Uint8Array.of(1, 0, 0, 0, 0, 1) })).toThrow(/MAC/); });
});
