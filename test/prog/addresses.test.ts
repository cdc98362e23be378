/**
 * What a guest may use of its prefixes at one time: by whatever frame it says that an address is its own, and however it is judged otherwise.
 * Each takes a place in the host's neighbour table, which is everybody's.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  arpFrame, type Bytes, echoFrame, filler, fragments, ipFrame, ipText, neighbourAdvertisement, neighbourSolicitation, PROTOCOL, solicitedNode, TCP, tcpFrame, udp, udpFrame,
} from "../lib/frames.js";
import { GUEST, HOST, hostGroups, Lab, type LabSandbox, prefix, SITE } from "./lab.js";

const LIMIT = 4;
/** Beside prefixes a single address in each family, which is always the guest's. */
const GIVEN = ["10.7.0.0/16", "fd00:7::/64", `${GUEST.v4}/32`, `${GUEST.v6}/128`, `${GUEST.linkLocal}/128`].map(prefix);
const at = (v6: boolean, n: number): string => (v6 ? `fd00:7::${n.toString(16)}` : `10.7.${n >> 8}.${n & 255}`);
const alone = (v6: boolean): string => (v6 ? GUEST.v6 : GUEST.v4);
const site = (v6: boolean): string => (v6 ? SITE.v6 : SITE.v4);
const gateway = (v6: boolean): string => (v6 ? HOST.gateway6 : HOST.gateway4);
const group = (target: string): string => ipText(solicitedNode(target));
const nd = (source: string, destination: string, upper: Bytes): Bytes => ipFrame({ sourceMac: GUEST.mac, destinationMac: HOST.tapMac, source, destination }, PROTOCOL.icmpv6, upper, { ipv6: { hopLimit: 255 } });

type Speak = (sandbox: LabSandbox, source: string, v6: boolean) => Bytes;
const ends = (sandbox: LabSandbox, source: string, v6: boolean, to = site(v6)) => sandbox.to(to, { source });
/** Frames that tell of an address: name, frame, families, reason where there is a place. */
const frames: readonly (readonly [string, Speak, readonly boolean[], string])[] = [
  ["a new connection", (s, from, v6) => tcpFrame(ends(s, from, v6), { sourcePort: 40000, destinationPort: 443 }), [false, true], "rule-allow"],
  // One flow for all: its key says of which prefix the guest's address is, not which one it is.
  ["a datagram of a flow that another of its addresses has begun", (s, from, v6) => udpFrame(ends(s, from, v6), { sourcePort: 5000, destinationPort: 443 }), [false, true], "established"],
  ["a segment of such a connection", (s, from, v6) => tcpFrame(ends(s, from, v6), { sourcePort: 5000, destinationPort: 443, flags: TCP.ack }), [false, true], "established"],
  ["a datagram that policy denies", (s, from, v6) => udpFrame(ends(s, from, v6, v6 ? "fd01::9" : "10.9.9.9"), { sourcePort: 40000, destinationPort: 443 }), [false, true], "default-private"],
  ["an echo request", (s, from, v6) => echoFrame(ends(s, from, v6)), [false, true], "established"],
  ["a query", (s, from, v6) => udpFrame(ends(s, from, v6), { sourcePort: 5000, destinationPort: 53, payload: filler(30) }), [false, true], "dns-redirect"],
  ["a first fragment", (s, from, v6) => fragments(ends(s, from, v6), PROTOCOL.udp, udp(from, site(v6), { sourcePort: 5000, destinationPort: 443, payload: filler(100) }), [64])[0]!, [false, true], "established"],
  ["a later fragment", (s, from, v6) => fragments(ends(s, from, v6), PROTOCOL.udp, udp(from, site(v6), { sourcePort: 5000, destinationPort: 443, payload: filler(100) }), [64])[1]!, [false, true], "fragment-follows"],
  ["an ARP request", (_s, from) => arpFrame({ senderMac: GUEST.mac, senderIp: from, targetIp: HOST.gateway4 }, { source: GUEST.mac }), [false], "neighbour"],
  ["an ARP request for itself", (_s, from) => arpFrame({ senderMac: GUEST.mac, senderIp: from, targetIp: from }, { source: GUEST.mac }), [false], "neighbour"],
  ["an ARP reply", (_s, from) => arpFrame({ senderMac: GUEST.mac, senderIp: from, targetIp: HOST.gateway4, operation: 2 }, { source: GUEST.mac }), [false], "neighbour"],
  ["a neighbour solicitation", (_s, from) => nd(from, group(HOST.gateway6), neighbourSolicitation(from, group(HOST.gateway6), HOST.gateway6, GUEST.mac)), [true], "neighbour"],
  ["a neighbour solicitation without its link address", (_s, from) => nd(from, group(HOST.gateway6), neighbourSolicitation(from, group(HOST.gateway6), HOST.gateway6)), [true], "neighbour"],
  ["a neighbour advertisement", (_s, from) => nd(from, HOST.gateway6, neighbourAdvertisement(from, HOST.gateway6, from, GUEST.mac)), [true], "neighbour"],
  ["a neighbour advertisement from another of its addresses", (_s, from) => nd(GUEST.linkLocal, HOST.gateway6, neighbourAdvertisement(GUEST.linkLocal, HOST.gateway6, from, GUEST.mac)), [true], "neighbour"],
];

describe("addresses of a guest's prefixes", () => {
  let lab: Lab;
  beforeAll(() => { lab = Lab.open(4); });
  afterAll(() => lab?.close());
  const sandboxes = (count: number): LabSandbox[] => Array.from({ length: count }, () => lab.sandbox({ identity: { guest: GIVEN }, addresses: LIMIT }));

  test.each(frames.flatMap(([name, frame, families, reason]) => families.map((v6) => [name, v6 ? "IPv6" : "IPv4", frame, v6, reason] as const)))("a guest uses so many at one time and no more, whether it tells of one by %s (%s)", (_name, _family, frame, v6, passes) => {
    const [sandbox, sibling] = sandboxes(2) as [LabSandbox, LabSandbox];
    try {
      // What the flow of the frame needs, from the single address and from one of the prefix.
      for (const from of [alone(v6), at(v6, 1)]) {
        sandbox.out(udpFrame(ends(sandbox, from, v6), { sourcePort: 5000, destinationPort: 443 }));
        sandbox.out(tcpFrame(ends(sandbox, from, v6), { sourcePort: 5000, destinationPort: 443 }));
        sandbox.out(echoFrame(ends(sandbox, from, v6)));
        sandbox.out(fragments(ends(sandbox, from, v6), PROTOCOL.udp, udp(from, site(v6), { sourcePort: 5000, destinationPort: 443, payload: filler(100) }), [64])[0]!);
      }
      expect(sandbox.addresses()).toEqual([at(v6, 1)]);
      const ask = (n: number): string => {
        const outcome = sandbox.out(frame(sandbox, at(v6, n), v6));
        if (outcome.reason === "address-table-full") expect([outcome.code, outcome.event?.reason]).toEqual([2, outcome.reason]);
        // The long way, asked the same, says the same.
        expect(sandbox.outLong(frame(sandbox, at(v6, n), v6)).reason).toBe(outcome.reason);
        return outcome.reason;
      };
      for (let n = 2; n <= LIMIT; n++) expect(ask(n)).toBe(passes);
      for (let n = LIMIT + 1; n < LIMIT + 40; n++) expect(ask(n)).toBe("address-table-full");
      // What is in use goes on, and so do single addresses and siblings.
      for (let n = 2; n <= LIMIT; n++) expect(ask(n)).toBe(passes);
      expect(sandbox.out(tcpFrame(ends(sandbox, alone(v6), v6), { sourcePort: 40001, destinationPort: 443 })).reason).toBe("rule-allow");
      expect(sibling.out(tcpFrame(ends(sibling, at(v6, LIMIT + 1), v6), { sourcePort: 40000, destinationPort: 443 })).reason).toBe("rule-allow");
      expect(sandbox.addresses()).toEqual(Array.from({ length: LIMIT }, (_, i) => at(v6, i + 1)));

      // One that is silent for long enough leaves its place to another, and no other does.
      sandbox.ageAddresses(110);
      expect(ask(90)).toBe("address-table-full");
      sandbox.ageAddresses(20, [at(v6, 3)]);
      expect(ask(90)).toBe(passes);
      expect(ask(91)).toBe("address-table-full");
      expect(ask(3)).toBe("address-table-full");
      expect(sandbox.addresses()).toEqual([1, 2, 4, 90].map((n) => at(v6, n)).sort());
      sandbox.ageAddresses(130, [at(v6, 1), at(v6, 2)]);
      expect(ask(2)).toBe(passes);
      sandbox.sweep();
      expect(sandbox.addresses()).toEqual([2, 4, 90].map((n) => at(v6, n)).sort());
    } finally {
      for (const one of [sandbox, sibling]) one.close();
    }
  });

  test.each([["IPv4", false], ["IPv6", true]])("what comes in, and asking whether anybody has an address, takes no place (%s)", (_family, v6) => {
    const [sandbox] = sandboxes(1) as [LabSandbox];
    try {
      for (let n = 1; n < 20; n++) {
        const target = at(v6, n);
        expect(sandbox.in(udpFrame(sandbox.from(site(v6), { destination: target }), { sourcePort: 443, destinationPort: 5000 })).reason).toBe("ingress-default");
        const asked = v6 ? nd("::", group(target), neighbourSolicitation("::", group(target), target)) : arpFrame({ senderMac: GUEST.mac, senderIp: "0.0.0.0", targetIp: target }, { source: GUEST.mac });
        expect(sandbox.out(asked).reason).toBe("neighbour");
        const resolving = v6 ? ipFrame(sandbox.from(gateway(v6), { destination: target }), PROTOCOL.icmpv6, neighbourSolicitation(gateway(v6), target, target, HOST.tapMac), { ipv6: { hopLimit: 255 } }) : arpFrame({ senderMac: HOST.tapMac, senderIp: HOST.gateway4, targetIp: target });
        expect(sandbox.in(resolving).reason).toBe("neighbour");
      }
      expect(sandbox.addresses()).toEqual([]);
    } finally {
      sandbox.close();
    }
  });

  test("a guest without prefixes has no such table; one whose prefix is taken away or given, or whose limit changes, is held to what it has then", () => {
    const sandbox = lab.sandbox();
    try {
      const sizes = { flows: 2048, pins: 1024, eventsPerSecond: 1000, queriesPerSecond: 1000, connectionsPerSecond: 1000, addresses: 2 };
      const used = (count: number): string[] => Array.from({ length: count }, (_, n) => sandbox.out(tcpFrame(ends(sandbox, at(true, n + 1), true), { sourcePort: 40000, destinationPort: 443 })).reason);
      expect(sandbox.tables.inner("addresses")).toBe(null);
      expect(used(1)).toEqual(["source-address"]);
      sandbox.tables.describe(sandbox.identity({ guest: GIVEN }), sizes);
      expect(used(3)).toEqual(["rule-allow", "rule-allow", "address-table-full"]);
      sandbox.tables.describe(sandbox.identity({ guest: GIVEN }), sizes);
      expect(sandbox.addresses()).toEqual([at(true, 1), at(true, 2)]);
      sandbox.tables.describe(sandbox.identity({ guest: GIVEN }), { ...sizes, addresses: 3 });
      expect(used(4)).toEqual(["rule-allow", "rule-allow", "rule-allow", "address-table-full"]);
      sandbox.tables.describe(sandbox.identity(), sizes);
      expect(sandbox.tables.inner("addresses")).toBe(null);
      expect(sandbox.out(tcpFrame(ends(sandbox, GUEST.v6, true), { sourcePort: 40000, destinationPort: 443 })).reason).toBe("rule-allow");
    } finally {
      sandbox.close();
    }
  });

  test("without the table nothing of a prefix passes", () => {
    const [sandbox] = sandboxes(1) as [LabSandbox];
    try {
      lab.instance.map("addresses").delete(Buffer.from(Uint32Array.of(sandbox.slot).buffer));
      const from = (source: string): string => sandbox.out(tcpFrame(ends(sandbox, source, true), { sourcePort: 40000, destinationPort: 443 })).reason;
      expect([from(at(true, 1)), from(GUEST.v6)]).toEqual(["address-table-full", "rule-allow"]);
    } finally {
      sandbox.close();
    }
  });

  test("an address of the host's in a prefix is not the guest's, also one that is no gateway, and one that it takes later", () => {
    const [sandbox] = sandboxes(1) as [LabSandbox], former = lab.groups;
    try {
      lab.groups = hostGroups([at(false, 9), at(true, 9)]);
      const from = (v6: boolean, n: number): string => sandbox.out(tcpFrame(ends(sandbox, at(v6, n), v6), { sourcePort: 40000, destinationPort: 443 })).reason;
      for (const v6 of [false, true]) {
        expect([from(v6, 9), from(v6, 1)]).toEqual(["address-table-full", "rule-allow"]);
        const told = v6 ? nd(GUEST.linkLocal, "ff02::1", neighbourAdvertisement(GUEST.linkLocal, "ff02::1", at(v6, 9), GUEST.mac)) : arpFrame({ senderMac: GUEST.mac, senderIp: at(v6, 9), targetIp: HOST.gateway4 }, { source: GUEST.mac });
        expect(sandbox.out(told).reason).toBe("address-table-full");
      }
      lab.groups = hostGroups([at(false, 1), at(true, 1)]);
      sandbox.ageAddresses(2);
      expect([from(false, 1), from(true, 1), from(false, 9), from(true, 9)]).toEqual(["address-table-full", "address-table-full", "rule-allow", "rule-allow"]);
    } finally {
      lab.groups = former;
      sandbox.close();
    }
  });

  test("an address that was learned takes no place beside a prefix of the other family", () => {
    const sandbox = lab.sandbox({ identity: { guest: [prefix("fd00:7::/64")], learnPrefixes: [prefix("10.0.0.0/24")] }, addresses: 1 });
    try {
      const from = (source: string, v6: boolean): string => sandbox.out(tcpFrame(ends(sandbox, source, v6), { sourcePort: 40000, destinationPort: 443 })).reason;
      expect([from(at(true, 1), true), from(at(true, 2), true), from(GUEST.v4, false), from(GUEST.v4, false)]).toEqual(["rule-allow", "address-table-full", "rule-allow", "rule-allow"]);
      expect(sandbox.addresses()).toEqual([at(true, 1)]);
    } finally {
      sandbox.close();
    }
  });
});
