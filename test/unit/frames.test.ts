/** The frame builders themselves: checksums, lengths and the partial-checksum tuning that the attack rows rest on. */
import { describe, expect, test } from "vitest";
import {
  addTags, checksum, decode, destinationOptions, echoFrame, type Endpoints, ETHERTYPE, fragments, fromHex, hex, hopByHop, ip, ipText, onesSum,
  PROTOCOL, pseudoSum, routingHeader, TCP, tcpFrame, tunePartialChecksum, udp, udpFrame, vnetHeader, VNET,
} from "../lib/frames.js";

const v4: Endpoints = { sourceMac: "02:00:00:00:00:02", destinationMac: "02:00:00:00:00:01", source: "172.30.0.2", destination: "93.184.216.34" };
const v6: Endpoints = { ...v4, source: "fd00:30::2", destination: "2606:2800:220:1::1" };

describe("frames", () => {
  test("addresses go to octets and back", () => {
    for (const text of ["1.2.3.4", "::", "::1", "fe80::1", "2001:db8::1:0:0:1", "64:ff9b::a9fe:a9fe", "1:2:3:4:5:6:7:8"]) expect(ipText(ip(text))).toBe(text);
    expect(ipText(ip("::ffff:10.0.0.1"))).toBe("::ffff:a00:1");
  });

  test("a known IPv4 header has its checksum (RFC 1071 example by hand)", () => {
    const frame = udpFrame(v4, { sourcePort: 1000, destinationPort: 53 });
    expect(onesSum(frame.subarray(14, 34))).toBe(0xffff);
    expect(hex(frame.subarray(12, 14))).toBe("0800");
  });

  test.each([["IPv4", v4], ["IPv6", v6]] as const)("%s: transport checksums verify and decode gives the fields back", (_name, ends) => {
    for (const frame of [tcpFrame(ends, { sourcePort: 40000, destinationPort: 443 }), udpFrame(ends, { sourcePort: 40000, destinationPort: 443, payload: fromHex("010203") })]) {
      const seen = decode(frame);
      const l4 = frame.subarray(ends === v4 ? 34 : 54);
      expect(onesSum(l4, pseudoSum(ends.source, ends.destination, seen.protocol!, l4.length))).toBe(0xffff);
      expect(seen).toMatchObject({ source: ends.source, destination: ends.destination, sourcePort: 40000, destinationPort: 443, tags: [] });
    }
    expect(decode(tcpFrame(ends, { sourcePort: 1, destinationPort: 2 })).tcpFlags).toBe(TCP.syn);
    expect(decode(echoFrame(ends)).icmpType).toBe(ends === v4 ? 8 : 128);
  });

  test("tags stand between the addresses and the type", () => {
    const seen = decode(addTags(tcpFrame(v4, { sourcePort: 1, destinationPort: 2 }), [{}, { tpid: ETHERTYPE.qinq, tci: 5 }]));
    expect(seen.tags).toEqual([{ tpid: 0x8100, tci: 0 }, { tpid: 0x88a8, tci: 5 }]);
    expect(seen.destinationPort).toBe(2);
  });

  test("extension headers are linked in order", () => {
    const frame = udpFrame(v6, { sourcePort: 1, destinationPort: 2 }, { extensions: [hopByHop(), routingHeader(0, 1, ["::1"]), destinationOptions()] });
    expect(decode(frame)).toMatchObject({ extensions: [0, 43, 60], protocol: PROTOCOL.udp, destinationPort: 2 });
  });

  test.each([["IPv4", v4], ["IPv6", v6]] as const)("%s: fragments hold the whole datagram", (_name, ends) => {
    const upper = udp(ends.source, ends.destination, { sourcePort: 7, destinationPort: 9, payload: new Uint8Array(40).fill(7) });
    const seen = fragments(ends, PROTOCOL.udp, upper, [8, 24]).map(decode);
    expect(seen.map((one) => [one.fragment!.offset, one.fragment!.more])).toEqual([[0, true], [8, true], [24, false]]);
  });

  test("a tuned partial checksum comes out as wanted", () => {
    const frame = udpFrame(v6, { sourcePort: 1, destinationPort: 443, payload: new Uint8Array(32), checksum: "partial" });
    const csumStart = 14 + 24; // the destination address
    const tuned = tunePartialChecksum(frame, csumStart, 70, 0xfd00);
    expect(checksum(tuned.subarray(csumStart))).toBe(0xfd00);
    expect(hex(vnetHeader({ flags: VNET.needsChecksum, csumStart, csumOffset: 0 }))).toBe("01000000000026000000");
  });
});
