import { setTimeout } from "node:timers/promises";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";

import { closeFd, createNetns, openNetns, setNetns, Tap } from "../../native/index.js";
import { formatAddress, formatPrefix, parseAddress } from "../../src/addresses/address.js";
import { addAddress, createVeth, findLink, listAddresses, listRoutes, setLink } from "../../src/net/links.js";
import { prepareTap, tapFacts } from "../../src/net/tap.js";
import { arpFrame, ethernet, ETHERTYPE, ipText, ipv6, PROTOCOL, routerAdvertisement } from "../lib/frames.js";

/** What prepareTap alone achieves, without the programs: the ground under A07 and A08. Each case has its control on a fresh tap. */
const home = openNetns();
let host: number;
let tap: Tap;
let frames: Buffer[];
const guestMac = "02:00:00:00:00:05";

beforeEach(() => {
  host = createNetns();
  setNetns(host);
  tap = new Tap("tap0");
  setLink(tap.ifindex, { up: true });
  addAddress(tap.ifindex, parseAddress("172.16.0.1")!, 24);
  const uplink = createVeth({ name: "up0" }, { name: "up1" }, null);
  for (const name of ["up0", "up1"]) setLink(findLink(name)!.ifindex, { up: true });
  addAddress(uplink.ifindex, parseAddress("198.51.100.7")!, 24);
  frames = [];
  tap.onFrames((more) => frames.push(...more));
});
afterEach(() => {
  tap.close();
  setNetns(home);
  closeFd(host);
});
afterAll(() => closeFd(home));

/** Asks for each address, the gateway last, and gives those that were answered once the gateway's answer is there. */
async function answered(...targets: string[]): Promise<string[]> {
  for (const targetIp of targets) tap.write(arpFrame({ senderMac: guestMac, senderIp: "172.16.0.2", targetIp }));
  const replies = (): string[] => frames.filter((frame) => frame.readUInt16BE(12) === ETHERTYPE.arp && frame.readUInt16BE(20) === 2).map((frame) => ipText(frame.subarray(28, 32)));
  while (!replies().includes(targets.at(-1)!)) await setTimeout(2);
  return replies();
}

describe("A08: who-has for the host's other addresses", () => {
  test("control: a fresh tap answers for all of them", async () => {
    expect(await answered("198.51.100.7", "172.16.0.1")).toEqual(["198.51.100.7", "172.16.0.1"]);
  });

  test("a prepared tap answers for its gateway alone", async () => {
    prepareTap("tap0");
    expect(await answered("198.51.100.7", "172.16.0.1")).toEqual(["172.16.0.1"]);
  });
});

describe("A07: a router advertisement from the guest", () => {
  const advertisement = ethernet({ destination: "33:33:00:00:00:01", source: guestMac, type: ETHERTYPE.ipv6 },
    ipv6({ source: "fe80::5", destination: "ff02::1", nextHeader: PROTOCOL.icmpv6, hopLimit: 255 },
      routerAdvertisement("fe80::5", "ff02::1", { sourceMac: guestMac, prefix: { address: "2001:db8:bad::", length: 64 } })));

  const defaults = (): string[] => listRoutes(6, tap.ifindex).filter(({ destination }) => destination.length === 0).map(({ hops }) => hops.map(({ gateway }) => gateway && formatAddress(gateway)).join());
  const prefixes = (): string[] => listRoutes(6, tap.ifindex).map(({ destination }) => formatPrefix(destination)).filter((text) => text.startsWith("2001:db8:bad"));

  /** The device takes advertisements once it has its link-local address to itself. */
  async function linkLocal(): Promise<void> {
    while (!listAddresses(tap.ifindex).some(({ family, flags }) => family === 6 && (flags & 0x40) === 0)) await setTimeout(5);
  }

  test("control: a fresh tap gives the host a default route and an address", async () => {
    await linkLocal();
    tap.write(advertisement);
    while (defaults().length === 0) await setTimeout(2);
    expect(defaults()).toEqual(["fe80::5"]);
    expect(prefixes()).not.toEqual([]);
    expect(prepareTap("tap0").notes).toEqual([expect.stringContaining("ip -6 route flush dev tap0 proto ra")]);
    expect(tapFacts("tap0").routers).toEqual([]);
  });

  test("a prepared tap ignores it", async () => {
    prepareTap("tap0");
    await linkLocal();
    tap.write(advertisement);
    // The gateway's answer to a later frame shows that the earlier one was worked off.
    await answered("172.16.0.1");
    expect([defaults(), prefixes()]).toEqual([[], []]);
  });
});
