import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { once } from "node:events";
import { createServer, type Server } from "node:net";
import { setTimeout } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { closeFd, createNetns, openNetns, setNetns, Tap } from "../../native/index.js";
import { formatAddress, formatPrefix } from "../../src/addresses/address.js";
import { createLink, createVeth, deleteLink, findLink, listAddresses, listLinks, listRoutes, setLink } from "../../src/net/links.js";
import { inNetns } from "../../src/net/request.js";
import { createResolverLink, removeResolverLink, type ResolverLink } from "../../src/net/resolver-link.js";
import { readSysctl, writeSysctl } from "../../src/net/sysctl.js";
import { filler, macText, PROTOCOL, TCP, tcpFrame, udpFrame } from "../lib/frames.js";

const names = { near: "enf0", far: "enf1" };
const home = openNetns();
const host = createNetns();
let agent: number;

beforeAll(() => setNetns(host));
afterAll(() => {
  setNetns(home);
  closeFd(host);
  closeFd(home);
});
beforeEach(() => { agent = createNetns(); });
afterEach(() => {
  removeResolverLink(names.near);
  closeFd(agent);
});

describe("createResolverLink", () => {
  test("gives a near end without addresses and a far end with one of each family", () => {
    const link = createResolverLink({ agentNetnsFd: agent, names });
    expect(findLink("enf0")).toMatchObject({ ifindex: link.nearIfindex, kind: "veth", mac: link.nearMac, alias: "enforcer resolver" });
    expect(findLink("enf0")!.flags & 0x81).toBe(0x81);
    expect(listAddresses(link.nearIfindex)).toEqual([]);
    expect([...listRoutes(4), ...listRoutes(6)].filter(({ hops }) => hops.some(({ ifindex }) => ifindex === link.nearIfindex))).toEqual([]);
    expect(readSysctl("ipv6", "enf0", "disable_ipv6")).toBe("1");
    expect(readSysctl("ipv4", "enf0", "forwarding")).toBe("0");
    expect([formatPrefix(link.net4), formatPrefix(link.net6), formatAddress(link.addr4), formatAddress(link.addr6)]).toEqual(
      ["240.0.0.0/4", "fd3e:6f1b:9a47:35::/96", "240.0.0.1", "fd3e:6f1b:9a47:35::1"]);
    inNetns(agent, () => {
      const far = findLink("enf1")!;
      expect(far.mac).toEqual(link.farMac);
      expect(listAddresses(far.ifindex).map(({ local }) => formatAddress(local))).toEqual(["240.0.0.1", "fd3e:6f1b:9a47:35::1"]);
      expect(findLink("lo")!.flags & 1).toBe(1);
      expect(readSysctl("ipv4", "enf1", "rp_filter")).toBe("0");
      expect(readSysctl("ipv4", "all", "rp_filter")).toBe("0");
      expect(readSysctl("ipv6", "enf1", "accept_ra")).toBe("0");
    });
  });

  test("replaces a pair of its own and refuses a stranger's device", () => {
    const first = createResolverLink({ agentNetnsFd: agent, names });
    const next = createNetns();
    const second = createResolverLink({ agentNetnsFd: next, names });
    inNetns(agent, () => expect(findLink("enf1")).toBeNull());
    closeFd(next);
    expect(second.nearIfindex).not.toBe(first.nearIfindex);
    expect(removeResolverLink("enf0")).toBe(true);
    expect(removeResolverLink("enf0")).toBe(false);
    const strange = createVeth({ name: "enf0" }, { name: "other" }, null);
    expect(() => createResolverLink({ agentNetnsFd: agent, names })).toThrow(expect.objectContaining({ code: "E_RESOLVER" }));
    expect(findLink("enf0")!.ifindex).toBe(strange.ifindex);
    deleteLink(strange.ifindex);
  });

  test("leaves nothing when a step fails", () => {
    // The far end's name is taken in the agent's namespace.
    inNetns(agent, () => createLink("enf1", "bridge"));
    expect(() => createResolverLink({ agentNetnsFd: agent, names })).toThrow(expect.objectContaining({ code: "E_NETLINK" }));
    expect(findLink("enf0")).toBeNull();
    expect(listLinks().map(({ name }) => name)).toEqual(["lo"]);
  });

  test("two agents in namespaces of their own use the same names", () => {
    const elsewhere = createNetns(), itsAgent = createNetns();
    createResolverLink({ agentNetnsFd: agent, names });
    inNetns(elsewhere, () => {
      createResolverLink({ agentNetnsFd: itsAgent, names });
      expect(removeResolverLink("enf0")).toBe(true);
    });
    expect(findLink("enf0")).not.toBeNull();
    closeFd(elsewhere);
    closeFd(itsAgent);
  });
});

/** The place of the programs is taken by a bridge between enf0 and a tap: what the tap writes reaches enf1, what enf1 sends the tap reads. */
describe("sockets behind the resolver's device", () => {
  let link: ResolverLink, tap: Tap, bridge: number;
  const frames: Buffer[] = [];

  beforeEach(() => {
    const made = createLink("br0", "bridge");
    bridge = made.ifindex;
    tap = new Tap("tap0");
    // Or it takes that of its lowest port, which may be enf0.
    setLink(bridge, { mac: Uint8Array.of(2, 0, 0, 0, 0, 0xb0) });
    for (const name of ["br0", "tap0"]) {
      writeSysctl("ipv6", name, "disable_ipv6", "1");
      setLink(findLink(name)!.ifindex, { up: true, ...(name === "tap0" ? { master: bridge, mtu: 9000 } : { mtu: 9000 }) });
    }
    frames.length = 0;
    tap.onFrames((more) => frames.push(...more));
    // A bridge forwards to a port from the moment it is operational: the pair is when it is returned.
    link = createResolverLink({ agentNetnsFd: agent, names });
    setLink(link.nearIfindex, { master: bridge });
  });
  afterEach(() => {
    tap.close();
    deleteLink(bridge);
  });

  const sandbox = { 4: "240.0.1.7", 6: "fd3e:6f1b:9a47:35::107" } as const, far4 = "240.200.255.254", far6 = "fd3e:6f1b:9a47:35::f0ff:1";

  /** The first frame that is as wanted; the test's own limit ends a vain wait. */
  async function frame(wanted: (frame: Buffer) => boolean): Promise<Buffer> {
    for (;;) {
      const found = frames.find(wanted);
      if (found !== undefined) return found;
      await setTimeout(2);
    }
  }

  test.each([["IPv4", sandbox[4], 4], ["IPv4, far away", far4, 4], ["IPv6", sandbox[6], 6], ["IPv6, far away", far6, 6]] as const)("UDP over %s is answered, and nothing is resolved on the wire", async (_name, source, family) => {
    const address = formatAddress(family === 4 ? link.addr4 : link.addr6);
    const seen: string[] = [];
    const socket = await bind(agent, address, 53);
    socket.on("message", (data, peer) => {
      seen.push(`${peer.address} ${data.length}`);
      socket.send(data.subarray(0, 1200), peer.port, peer.address);
    });
    // Larger than any answer may be: it must come in all the same.
    for (const length of [40, 1400]) tap.write(udpFrame({ sourceMac: link.nearMac, destinationMac: link.farMac, source, destination: address }, { sourcePort: 16384, destinationPort: 53, payload: filler(length) }));
    const ipHeader = family === 4 ? 20 : 40;
    const answer = await frame((bytes) => bytes.length === 14 + ipHeader + 8 + 1200);
    expect(seen).toEqual([`${source} 40`, `${source} 1400`]);
    expect(macText(answer.subarray(0, 6))).toBe("02:65:6e:66:ff:ff");
    expect(macText(answer.subarray(6, 12))).toBe(macText(link.farMac));
    // Only the two answers ever left enf1: no ARP, no neighbour or router solicitation, no listener report.
    expect(frames.filter((bytes) => macText(bytes.subarray(6, 12)) === macText(link.farMac)).map((bytes) => bytes.length)).toEqual([40, 1200].map((n) => 14 + ipHeader + 8 + n));
    expect(frames.some((bytes) => macText(bytes.subarray(6, 12)) === macText(link.nearMac))).toBe(false);
    socket.close();
  });

  test.each([["IPv4", sandbox[4], 4], ["IPv6", sandbox[6], 6]] as const)("TCP over %s opens, with segments that fit any guest", async (_name, source, family) => {
    const address = formatAddress(family === 4 ? link.addr4 : link.addr6);
    const server = await listen(agent, address, 53);
    const accepted = once(server, "connection");
    const ends = { sourceMac: link.nearMac, destinationMac: link.farMac, source, destination: address };
    tap.write(tcpFrame(ends, { sourcePort: 16385, destinationPort: 53, seq: 1000, flags: TCP.syn, options: Uint8Array.of(2, 4, 0x05, 0xb4) }));
    const ipHeader = family === 4 ? 20 : 40, at = 14 + ipHeader;
    const protocolAt = family === 4 ? 14 + 9 : 14 + 6;
    const synAck = await frame((bytes) => bytes[protocolAt] === PROTOCOL.tcp && (bytes[at + 13]! & 0x12) === 0x12);
    // RFC 9293 section 3.7.1: MSS is the first option; 1280 less the headers.
    expect(synAck.subarray(at + 20, at + 22)).toEqual(Buffer.from([2, 4]));
    expect(synAck.readUInt16BE(at + 22)).toBe(1280 - ipHeader - 20);
    const seq = synAck.readUInt32BE(at + 4);
    tap.write(tcpFrame(ends, { sourcePort: 16385, destinationPort: 53, seq: 1001, ack: seq + 1, flags: TCP.ack }));
    const [connection] = await accepted;
    expect(connection.remoteAddress).toBe(source);
    connection.write(Buffer.alloc(6000, 0x41));
    await expect.poll(() => frames.filter((bytes) => bytes[protocolAt] === PROTOCOL.tcp).reduce((sum, bytes) => sum + Math.max(0, bytes.length - at - 20), 0), { interval: 5, timeout: 5000 }).toBeGreaterThanOrEqual(6000);
    expect(Math.max(...frames.map((bytes) => bytes.length))).toBeLessThanOrEqual(14 + 1280);
    connection.destroy();
    server.close();
  });

  test("the agent's namespace routes the two ranges and nothing else", () => {
    inNetns(agent, () => expect(listRoutes(4).filter(({ table }) => table === 254).map(({ destination }) => formatPrefix(destination))).toEqual(["240.0.0.0/4"]));
    inNetns(agent, () => expect(listRoutes(6).filter(({ table, type }) => table === 254 && type === 1).map(({ destination }) => formatPrefix(destination))).toEqual(["fd3e:6f1b:9a47:35::/96"]));
  });
});

/** Node's sockets bind in a later turn of the loop, so the thread stays in the namespace until they listen. */
async function within<T>(netns: number, work: () => Promise<T>): Promise<T> {
  setNetns(netns);
  try {
    return await work();
  } finally {
    setNetns(host);
  }
}

function listen(netns: number, address: string, port: number): Promise<Server> {
  return within(netns, async () => {
    const server = createServer();
    server.listen(port, address);
    await once(server, "listening");
    return server;
  });
}

function bind(netns: number, address: string, port: number): Promise<UdpSocket> {
  return within(netns, async () => {
    const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
    socket.bind(port, address);
    await once(socket, "listening");
    return socket;
  });
}
