/**
 * Attack rows A01–A04, A07–A20 and A61: frames from a guest on a real tap, routed and bridged, IPv4 and IPv6 alike.
 * Each test is one row; see stage.ts for what it takes to pass.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  addTags, arpFrame, type Bytes, chain, concat, decode, destinationOptions, echoFrame, type Endpoints, ethernet, ETHERTYPE, type Extension, filler, fragment,
  fragmentHeader, fragments, fromHex, hopByHop, icmp, icmpv6, ip, ipFrame, ipText, ipv4, ipv6, isV6, neighbourAdvertisement, neighbourSolicitation, PROTOCOL, redirect6,
  routerAdvertisement, routerSolicitation, routingHeader, TCP, tcp, tcpFrame, tunePartialChecksum, u16, u32, udp, udpFrame, vnetHeader, VNET,
} from "../lib/frames.js";
import { ADDRESS, MAC, ROOT, tool, until, type World } from "../lib/world.mjs";
import { contains, controlsOnly, type Item, type Mark, nextMark, SINK, Stage, type Stimulus } from "./stage.js";

const LINK_LOCAL = "fe80::fc:ff:fe00:2";

/** Address `base + offset` of a prefix in the data tables. */
function addressIn(prefix: string, offset: number): string {
  const [base = "", length = "0"] = prefix.split("/");
  const raw = ip(base).slice();
  if (Number(length) < raw.length * 8) raw[raw.length - 1] = (raw[raw.length - 1]! + offset) & 255;
  return ipText(raw);
}

function table(name: string): string[][] {
  return readFileSync(path.join(ROOT, "data", name), "utf8").split("\n").filter((line) => line !== "" && !line.startsWith("#")).slice(1).map((line) => line.split("\t"));
}

/** What must not change on the host, whatever the guest says: addresses, routes, neighbours, resolver configuration. */
async function hostState(world: World): Promise<string> {
  const text = async (...command: string[]): Promise<string> => world.host.must(command);
  const parts = await Promise.all([
    text("ip", "-o", "addr", "show"), text("ip", "route", "show", "table", "all"), text("ip", "-6", "route", "show", "table", "all"),
    text("ip", "neigh", "show", "nud", "all"), text("ip", "route", "show", "cache"), text("ip", "-6", "route", "show", "cache"),
  ]);
  // Lifetimes and states tick by themselves; the uplink's own neighbours come and go.
  return `${parts.join("\n")}\n${readFileSync("/etc/resolv.conf", "utf8")}`.split("\n").filter((line) => !/ dev (up0|lan0) /.test(line))
    .map((line) => line.replace(/\b(REACHABLE|STALE|DELAY|PROBE|NOARP|FAILED|INCOMPLETE)\b|expires \S+|valid_lft.*/g, "")).sort().join("\n");
}

describe.each([["routed", false], ["bridged", true]] as const)("%s tap", (_name, bridged) => {
  let stage: Stage;

  beforeAll(async () => {
    stage = await Stage.open({
      bridged,
      prepare: async (world) => {
        // Large frames shall not be stopped by the MTU of the path, and source routes not by the host's defaults.
        for (const device of ["tap0", ...(bridged ? ["br0"] : []), "up0", "lan0"]) await world.host.ip(`link set ${device} mtu 9500`);
        for (const namespace of [world.internet, world.lan]) await namespace.ip("link set eth0 mtu 9500");
        await world.host.sysctl({ "ipv4/conf/all/accept_source_route": 1, [`ipv4/conf/${bridged ? "br0" : "tap0"}/accept_source_route`]: 1 });
        // A network behind a VPN, with a public prefix routed into it.
        await world.host.ip(`
          link add vpn0 type veth peer name vpn0 netns ${world.lan.name}
          link set vpn0 address 02:fc:00:00:04:02
          link set vpn0 up
          addr add 10.8.0.1/24 dev vpn0
          addr add fd08::1/64 dev vpn0 nodad
          route add 151.101.64.0/22 dev vpn0
          route add 2a04:4e42::/32 dev vpn0
          neigh replace 151.101.65.1 lladdr ${MAC.lan} dev vpn0 nud permanent
          neigh replace 2a04:4e42::1 lladdr ${MAC.lan} dev vpn0 nud permanent
        `);
        await world.lan.ip("link set vpn0 up"); // its far end is seen by the LAN's sink
      },
    });
  });
  afterAll(() => stage?.close());

  test("A01 two and more VLAN tags around a denied packet", async () => {
    const stacks: { tpid?: number }[][] = [
      [{}, {}], [{ tpid: 0x88a8 }, {}], [{}, { tpid: 0x88a8 }], [{ tpid: 0x88a8 }, { tpid: 0x88a8 }], [{}, {}, {}, {}, {}],
    ];
    // Where the host takes the tags off and routes: not known for every mix, so the plain pair is the control.
    const stimuli = [ADDRESS.metadata4, ADDRESS.metadata6, ADDRESS.private4, ADDRESS.host4, ADDRESS.host6, ADDRESS.gateway4, ADDRESS.sibling4, stage.held.sibling6]
      .flatMap((destination) => stacks.map((tags, index): Stimulus => {
        const plain = stage.syn("", destination, null);
        const toHost = [ADDRESS.host4, ADDRESS.host6, ADDRESS.gateway4].includes(destination as never);
        const toSibling = destination === ADDRESS.sibling4 || destination === stage.held.sibling6;
        return {
          name: `${tags.map((tag) => (tag.tpid ?? 0x8100).toString(16)).join("/")} to ${destination}`,
          build: (mark) => addTags(plain.build(mark) as Bytes, tags),
          escapes: index > 0 ? null : toHost ? "reply" : toSibling ? "sibling" : "uplink",
        };
      }));
    const before = controlsOnly ? "" : await hostState(stage.held);
    await stage.show({ stimuli, reasons: ["vlan", "ethertype"] });
    if (!controlsOnly) expect(await hostState(stage.held)).toBe(before);
  });

  test("A02 one VLAN tag around an allowed and a denied packet", async () => {
    const stimuli = [SINK.v4, SINK.v6, ADDRESS.metadata4, ADDRESS.metadata6].flatMap((destination) => [0, 0x2000].map((tci): Stimulus => {
      const plain = stage.syn("", destination, null);
      return { name: `tag ${tci} to ${destination}`, build: (mark) => addTags(plain.build(mark) as Bytes, [{ tci }]), escapes: tci === 0 ? "uplink" : null };
    }));
    await stage.show({ stimuli, reasons: ["vlan", "ethertype"] });
  });

  test("A03 virtio header length that leaves the headers outside the linear part", async () => {
    const big = (destination: string, hdrLen: number): Stimulus => ({
      name: `hdr_len ${hdrLen} to ${destination}`, escapes: hdrLen > 0 && hdrLen < 14 ? null : "uplink", // less than an Ethernet header: the tap refuses it
      build: (mark) => ({
        vnet: vnetHeader({ hdrLen }),
        frame: udpFrame(stage.to(destination), { sourcePort: mark.port, destinationPort: 9000, payload: concat([mark.bytes, filler(9000)]) }),
      }),
    });
    const lengths = [0, 1, 13, 14, 15, 20, 34, 42];
    await stage.show({ stimuli: [ADDRESS.private4, ADDRESS.private6].flatMap((to) => lengths.map((hdrLen) => big(to, hdrLen))), reasons: ["default-private", "truncated"] });
    // To a public address: dropped, or passed on to that address and no other.
    const allowed = [SINK.v4, SINK.v6].flatMap((to) => lengths.map((hdrLen) => ({ to, mark: nextMark(), stimulus: big(to, hdrLen) })));
    for (const world of stage.worlds) {
      const { captured } = await stage.inject(world, allowed.flatMap((one) => one.stimulus.build(one.mark)));
      for (const one of allowed) {
        const seen = captured.uplink.filter((frame) => contains(frame, one.mark.bytes)).map((frame) => decode(frame).destination);
        expect(new Set([...seen, one.to]), one.stimulus.name).toEqual(new Set([one.to]));
      }
      expect(captured.lan.length + captured.sibling.length).toBe(0);
    }
  });

  test("A04 segmentation offload passes to an allowed address and not to a denied one", async () => {
    const segments = (destination: string): Stimulus => ({
      name: `64 KB to ${destination}`, escapes: "uplink",
      build: (mark) => {
        const ends = stage.to(destination);
        const head = isV6(destination) ? 74 : 54;
        const payload = concat([mark.bytes, filler(62000)]);
        const data = tcpFrame(ends, { sourcePort: mark.port, destinationPort: 443, seq: 1001, ack: 1, flags: TCP.ack | TCP.psh, payload, checksum: "partial" });
        return [
          tcpFrame(ends, { sourcePort: mark.port, destinationPort: 443, seq: 1000 }),
          {
            vnet: vnetHeader({ flags: VNET.needsChecksum, gsoType: isV6(destination) ? VNET.gsoTcp6 : VNET.gsoTcp4, hdrLen: head, gsoSize: 1400, csumStart: head - 20, csumOffset: 16 }),
            frame: data,
          },
        ];
      },
    });
    await stage.show({ stimuli: [segments(ADDRESS.private4), segments(ADDRESS.private6)], reasons: ["default-private"] });
    for (const world of stage.worlds) {
      for (const destination of [SINK.v4, SINK.v6]) {
        const mark = nextMark();
        const { captured, errors } = await stage.inject(world, segments(destination).build(mark) as Item[]);
        expect(errors).toEqual([0, 0]);
        const sent = captured.uplink.map(decode).filter((one) => one.sourcePort === mark.port);
        expect(sent.reduce((sum, one) => sum + one.payload.length, 0), `octets to ${destination}`).toBe(62000 + mark.bytes.length);
      }
    }
  });

  test("A61 a partial checksum that would be written over judged fields", async () => {
    // Each case names what the kernel would write over, and the value that it would come to.
    const cases: { name: string; destination: string; start: number; offset: number; wanted: number; escapes: boolean }[] = [
      { name: "IPv6 destination to fd00::", destination: "2606:ec2::254", start: 38, offset: 0, wanted: 0xfd00, escapes: true },
      { name: "IPv6 source", destination: SINK.v6, start: 22, offset: 0, wanted: 0x2606, escapes: true },
      { name: "IPv6 destination port to 22", destination: SINK.v6, start: 54, offset: 2, wanted: 22, escapes: true },
      { name: "IPv6 source port", destination: SINK.v6, start: 54, offset: 0, wanted: 22, escapes: true },
      { name: "IPv4 destination to 10.0.216.99", destination: SINK.v4, start: 30, offset: 0, wanted: 0x0a00, escapes: true },
      { name: "IPv4 source", destination: SINK.v4, start: 26, offset: 0, wanted: 0x0808, escapes: true },
      { name: "IPv4 destination port to 22", destination: SINK.v4, start: 34, offset: 2, wanted: 22, escapes: true },
      { name: "UDP length", destination: SINK.v4, start: 34, offset: 4, wanted: 9, escapes: true },
      { name: "start before the destination", destination: SINK.v4, start: 14, offset: 16, wanted: 0x0a00, escapes: false },
      { name: "payload", destination: SINK.v4, start: 42, offset: 0, wanted: 0x4141, escapes: true },
    ];
    const build = (one: (typeof cases)[number], mark: Mark): Item => {
      const frame = udpFrame(stage.to(one.destination), { sourcePort: mark.port, destinationPort: 443, payload: concat([new Uint8Array(4), mark.bytes, new Uint8Array(16)]), checksum: 0x1111 });
      return {
        vnet: vnetHeader({ flags: VNET.needsChecksum, csumStart: one.start, csumOffset: one.offset }),
        frame: tunePartialChecksum(frame, one.start, frame.length - 4 - ((frame.length - one.start) % 2), one.wanted),
      };
    };
    const marked = cases.map((one) => ({ one, mark: nextMark() }));
    for (const world of stage.worlds) {
      const { captured } = await stage.inject(world, marked.map(({ one, mark }) => build(one, mark)));
      const out = marked.map(({ one, mark }) => captured.uplink.filter((frame) => contains(frame, mark.bytes)).map((frame) => ({ one, seen: decode(frame), frame })));
      if (world === stage.control) {
        expect(marked.filter(({ one }, index) => one.escapes && out[index]!.length === 0).map(({ one }) => one.name), "control: not seen").toEqual([]);
        const at = cases.findIndex((one) => one.name.startsWith("IPv6 destination to"));
        expect(out[at]![0]!.seen.destination, "control: the kernel writes over the destination").toBe("fd00:ec2::254");
      } else {
        expect(out.flat().map(({ one }) => one.name)).toEqual([]);
      }
      expect(captured.lan.length + captured.sibling.length).toBe(0);
    }
    // Outside the packet the kernel refuses the frame, or it is dropped.
    const mark = nextMark();
    const odd = [[2000, 0], [34, 2000], [34, 65534], [65535, 65535]].map(([csumStart, csumOffset]): Item => ({
      vnet: vnetHeader({ flags: VNET.needsChecksum, csumStart: csumStart!, csumOffset: csumOffset! }),
      frame: udpFrame(stage.to(ADDRESS.private4), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes }),
    }));
    if (!controlsOnly) expect((await stage.inject(stage.held, odd)).captured.uplink.length).toBe(0);
    // The legitimate one passes, and its checksum is right on the wire.
    for (const world of stage.worlds) {
      for (const destination of [SINK.v4, SINK.v6]) {
        for (const protocol of ["tcp", "udp"] as const) {
          const fair = nextMark();
          const start = isV6(destination) ? 54 : 34;
          const fields = { sourcePort: fair.port, destinationPort: 443, payload: fair.bytes } as const;
          const make = protocol === "tcp" ? tcpFrame : udpFrame;
          const { captured } = await stage.inject(world, [{
            vnet: vnetHeader({ flags: VNET.needsChecksum, csumStart: start, csumOffset: protocol === "tcp" ? 16 : 6 }), frame: make(stage.to(destination), { ...fields, checksum: "partial" }),
          }]);
          const seen = captured.uplink.filter((frame) => contains(frame, fair.bytes));
          expect(seen.length, `${protocol} to ${destination}`).toBe(1);
          expect(seen[0]!.subarray(start)).toEqual(make(stage.to(destination), fields).subarray(start));
        }
      }
    }
  });

  test("A07 router advertisements and redirects from the guest", async () => {
    const device = bridged ? "br0" : "tap0";
    for (const world of stage.worlds) {
      // The host would believe them: only the packet filter stands between.
      await world.host.sysctl({ [`ipv6/conf/${device}/accept_ra`]: 2, [`ipv6/conf/${device}/accept_redirects`]: 1, [`ipv6/conf/${device}/autoconf`]: 1 });
    }
    const advert = routerAdvertisement(LINK_LOCAL, "ff02::1", { sourceMac: MAC.guest, prefix: { address: "2a01:dead::", length: 64 }, dns: ["2a01:dead::53"] });
    const ends: Endpoints = { sourceMac: MAC.guest, destinationMac: "33:33:00:00:00:01", source: LINK_LOCAL, destination: "ff02::1" };
    const behind = (extensions: Extension[]): Bytes => ipFrame(ends, PROTOCOL.icmpv6, advert, { extensions, ipv6: { hopLimit: 255 } });
    const pieces = [0, 24].map((start) => {
      const end = start === 0 ? 24 : advert.length;
      return ipFrame(ends, PROTOCOL.icmpv6, advert.subarray(start, end), { extensions: [fragmentHeader(start / 8, start === 0, 77)], ipv6: { hopLimit: 255 } });
    });
    const hostLinkLocal = "fe80::1"; // no address of the host: the state must not change in any case
    const attacks: Bytes[] = [
      behind([]), behind([destinationOptions()]), behind([hopByHop()]), behind([fragmentHeader(0, false, 78)]), ...pieces,
      ipFrame({ ...ends, source: ADDRESS.guest6 }, PROTOCOL.icmpv6, routerAdvertisement(ADDRESS.guest6, "ff02::1", { sourceMac: MAC.guest }), { ipv6: { hopLimit: 255 } }),
      ipFrame({ ...ends, destination: ADDRESS.gateway6, destinationMac: stage.gatewayMac }, PROTOCOL.icmpv6, routerAdvertisement(LINK_LOCAL, ADDRESS.gateway6, { sourceMac: MAC.guest }), { ipv6: { hopLimit: 255 } }),
      ipFrame({ ...ends, destination: ADDRESS.gateway6, destinationMac: stage.gatewayMac }, PROTOCOL.icmpv6, redirect6(LINK_LOCAL, ADDRESS.gateway6, LINK_LOCAL, SINK.v6), { ipv6: { hopLimit: 255 } }),
      ipFrame({ ...ends, source: hostLinkLocal }, PROTOCOL.icmpv6, routerAdvertisement(hostLinkLocal, "ff02::1", { sourceMac: MAC.guest }), { ipv6: { hopLimit: 255 } }),
    ];
    const before = await hostState(stage.control);
    await stage.inject(stage.control, [attacks[0]!]);
    expect(await hostState(stage.control), "control: the host believes the advertisement").not.toBe(before);
    // The control must be a host again that routes by itself.
    await stage.control.host.sysctl({ [`ipv6/conf/${device}/accept_ra`]: 0 });
    await stage.control.host.must(["sh", "-c", `ip -6 route flush proto ra; ip -6 addr flush dev ${device} dynamic; true`]);
    if (stage.enforcer === null) return;
    const held = await hostState(stage.held);
    const events = stage.enforcer.events.length;
    await stage.inject(stage.held, attacks);
    expect(await hostState(stage.held)).toBe(held);
    await stage.alive();
    await expect.poll(() => stage.enforcer!.events.slice(events).map((event) => event.reason)).toContain("router-message");
  });

  test("A08 ARP and neighbour discovery in the name of others", async () => {
    const request = (senderIp: string, targetIp: string, change: { senderMac?: string; operation?: number; source?: string } = {}): Bytes =>
      arpFrame({ senderMac: change.senderMac ?? MAC.guest, senderIp, targetIp, operation: change.operation ?? 1 }, { source: change.source ?? MAC.guest });
    const solicit = (source: string, target: string, mac: string = MAC.guest): Bytes =>
      ipFrame({ sourceMac: MAC.guest, destinationMac: "33:33:ff:00:00:01", source, destination: "ff02::1:ff00:1" }, PROTOCOL.icmpv6,
        neighbourSolicitation(source, "ff02::1:ff00:1", target, mac), { ipv6: { hopLimit: 255 } });
    const advertise = (source: string, target: string, mac: string = MAC.guest): Bytes =>
      ipFrame({ sourceMac: MAC.guest, destinationMac: stage.gatewayMac, source, destination: ADDRESS.gateway6 }, PROTOCOL.icmpv6,
        neighbourAdvertisement(source, ADDRESS.gateway6, target, mac), { ipv6: { hopLimit: 255 } });
    const stranger = "172.30.0.3"; // on the link, owned by nobody
    const poison: Bytes[] = [
      request(stranger, ADDRESS.gateway4), request(ADDRESS.sibling4, ADDRESS.gateway4), request(ADDRESS.gateway4, ADDRESS.gateway4), request(ADDRESS.host4, ADDRESS.gateway4),
      request(ADDRESS.guest4, ADDRESS.gateway4, { senderMac: "02:fc:00:00:00:66" }), request(ADDRESS.guest4, ADDRESS.gateway4, { source: "02:fc:00:00:00:66", senderMac: "02:fc:00:00:00:66" }),
      request(ADDRESS.sibling4, ADDRESS.gateway4, { operation: 2 }), request(ADDRESS.gateway4, ADDRESS.guest4, { operation: 2 }), request(ADDRESS.sibling4, ADDRESS.sibling4, { operation: 2 }),
      solicit("fd00:30:0:1::77", ADDRESS.gateway6), solicit(ADDRESS.guest6, ADDRESS.gateway6, "02:fc:00:00:00:66"), solicit(ADDRESS.gateway6, ADDRESS.gateway6),
      advertise(ADDRESS.guest6, "fd00:30:0:1::77"), advertise(ADDRESS.guest6, stage.held.sibling6), advertise(ADDRESS.guest6, ADDRESS.gateway6), advertise(ADDRESS.guest6, ADDRESS.guest6, "02:fc:00:00:00:66"),
    ];
    const before = await hostState(stage.control);
    await stage.inject(stage.control, [request(stranger, ADDRESS.gateway4)]);
    expect(await hostState(stage.control), "control: the host learns a stranger").not.toBe(before);
    const hostAddresses = [ADDRESS.host4, ADDRESS.hostLan4, ADDRESS.docker4];
    const answersFor = (frames: Bytes[]): string[] =>
      frames.filter((frame) => decode(frame).type === ETHERTYPE.arp && frame[21] === 2).map((frame) => ipText(frame.slice(28, 32)));
    const asked = hostAddresses.map((address) => request(ADDRESS.guest4, address));
    expect(answersFor((await stage.inject(stage.control, asked)).received), "control: the host answers for all its addresses").toEqual(hostAddresses);
    if (stage.enforcer === null) return;

    const events = stage.enforcer.events.length;
    const held = await hostState(stage.held);
    await stage.inject(stage.held, poison);
    for (let round = 0; round < 3; round++) await stage.held.frames.send({ repeat: 500, frame: request(ADDRESS.sibling4, ADDRESS.gateway4, { operation: 2 }) });
    expect(await hostState(stage.held)).toBe(held);
    expect(answersFor((await stage.inject(stage.held, [...asked, request(ADDRESS.guest4, ADDRESS.gateway4)])).received)).toEqual([ADDRESS.gateway4]);
    await stage.alive();
    const reasons = new Set(stage.enforcer.events.slice(events).filter((event) => event.event === "denied").map((event) => String(event.reason)));
    expect([...reasons].filter((reason) => !["arp-spoof", "arp-target", "nd-spoof", "source-mac", "source-address"].includes(reason))).toEqual([]);
  });

  // An ARP message has no checksum of its own: what the kernel writes after the verdict is the sender, or the target.
  if (bridged) test("A61 a partial checksum that would be written over the sender of an ARP message", async () => {
    const reply = concat([arpFrame({ operation: 2, senderMac: MAC.guest, senderIp: ADDRESS.guest4, targetMac: MAC.sibling, targetIp: ADDRESS.sibling4 }, { destination: MAC.sibling }), new Uint8Array(18)]);
    const forged = { vnet: vnetHeader({ flags: VNET.needsChecksum, csumStart: 28, csumOffset: 2 }), frame: tunePartialChecksum(reply, 28, 58, 0x0001) };
    for (const world of stage.worlds) {
      await world.host.run(["ethtool", "-K", "tap1", "tx", "off"]); // the sibling sees what a wire would carry
      const sniffer = world.sibling!.start([tool("frames"), "--packet", "eth0"], { keep: false });
      const senders: string[] = [];
      let ready = false;
      sniffer.onLine = (line) => {
        if (line === "ready") ready = true;
        // replies (operation 2) of the guest's MAC
        const frame = line.startsWith("r ") ? fromHex(line.slice(2)) : new Uint8Array();
        if (frame.length >= 42 && decode(frame).type === ETHERTYPE.arp && decode(frame).sourceMac === MAC.guest && frame[21] === 2) senders.push(ipText(frame.slice(28, 32)));
      };
      try {
        await until("the sniffer is ready", () => ready);
        expect((await stage.inject(world, [forged, reply])).errors).toEqual([0, 0]);
        await until("the fair one is seen", () => senders.includes(ADDRESS.guest4));
        expect(senders).toEqual(world === stage.control ? [ADDRESS.gateway4, ADDRESS.guest4] : [ADDRESS.guest4]);
      } finally {
        await sniffer.stop();
        await world.host.run(["ethtool", "-K", "tap1", "tx", "on"]);
      }
    }
  });

  test("A09 source addresses that are not the guest's", async () => {
    const from = (source: string, escapes: Stimulus["escapes"], change: Partial<Endpoints> = {}): Stimulus =>
      ({ ...stage.syn("", isV6(source) ? SINK.v6 : SINK.v4, escapes, { source, ...change }), name: `from ${source} ${change.sourceMac ?? ""}` });
    await stage.show({
      stimuli: [
        from(ADDRESS.sibling4, "uplink"), from(stage.held.sibling6, "uplink"), from("45.33.32.156", "uplink"), from("2600:3c01::1", "uplink"),
        from(ADDRESS.host4, null), from(ADDRESS.host6, null), from(ADDRESS.gateway4, null), from(ADDRESS.gateway6, null), from("127.0.0.1", null), from("::1", null),
        from("169.254.7.7", "uplink"), from("fe80::1234", null), from("0.0.0.0", null), from("::", null), from("224.0.0.1", null), from("ff02::1", null), from("255.255.255.255", null),
        from(`::ffff:${ADDRESS.guest4}`, null), from(ADDRESS.guest4, "uplink", { sourceMac: "02:fc:00:00:00:66" }), from(ADDRESS.guest6, "uplink", { sourceMac: "02:fc:00:00:00:66" }),
        from(ADDRESS.guest4, null, { sourceMac: "01:00:5e:00:00:01" }), from(ADDRESS.guest4, null, { sourceMac: stage.gatewayMac }),
      ],
      reasons: ["source-address", "source-mac", "mapped-address"],
    });
  });

  test("A10 every address of the host, also one that comes while it runs", async () => {
    const reply = (destination: string, port: number): Stimulus => stage.syn(`port ${port} of`, destination, "reply", {}, port);
    const addresses = [ADDRESS.host4, ADDRESS.host6, ADDRESS.gateway4, ADDRESS.gateway6, ADDRESS.hostLan4, ADDRESS.hostLan6, ADDRESS.docker4];
    const udpTo = (destination: string): Stimulus => ({
      name: `udp ${destination}`, escapes: null, build: (mark) => udpFrame(stage.to(destination), { sourcePort: mark.port, destinationPort: 9469, payload: mark.bytes }),
    });
    await stage.show({ stimuli: [...addresses.flatMap((address) => [22, 80, 9469].map((port) => reply(address, port))), ...addresses.map(udpTo)], reasons: ["default-host"] });

    const fresh = ["81.2.69.142", "2a02:cf40::1"];
    for (const world of stage.worlds) await world.host.ip(`addr add ${fresh[0]}/32 dev lo\naddr add ${fresh[1]}/128 dev lo nodad`);
    if (stage.enforcer !== null) {
      // Until the enforcer has followed, they count as public: no packet is promised about before that.
      for (const address of fresh) {
        await until(`${address} in group host`, async () => {
          const mark = nextMark();
          await stage.inject(stage.held, [stage.syn("", address, null).build(mark) as Bytes]);
          return stage.enforcer!.denials({ destination: address, reason: "default-host" }).length > 0;
        }, 3000);
      }
    }
    await stage.show({ stimuli: fresh.map((address) => reply(address, 22)), reasons: ["default-host"] });
    for (const world of stage.worlds) await world.host.ip(`addr del ${fresh[0]}/32 dev lo\naddr del ${fresh[1]}/128 dev lo`);
  });

  test("A10 a flow to an address that the host takes while it lasts", async () => {
    const taken = ["81.2.69.143", "2a02:cf40::2"];
    const marks = taken.map(() => nextMark());
    const ping = (index: number): Bytes => echoFrame(stage.to(taken[index]!), { id: marks[index]!.port, payload: marks[index]!.bytes });
    const knock = (index: number): Bytes => udpFrame(stage.to(taken[index]!), { sourcePort: marks[index]!.port, destinationPort: 9469, payload: marks[index]!.bytes });
    const talk = (index: number, flags: number): Bytes => tcpFrame(stage.to(taken[index]!), { sourcePort: marks[index]!.port, destinationPort: 9469, flags, payload: marks[index]!.bytes });
    const frames = (flags: number): Bytes[] => taken.flatMap((_, index) => [ping(index), knock(index), talk(index, flags)]);
    const of = (seen: readonly Bytes[]): string[] => seen.map(decode).filter((one) => taken.includes(one.source ?? "")).map((one) => `${one.source} ${one.protocol}`).sort();
    for (const world of stage.worlds) {
      // Port unreachable is an answer too, and a host gives one a second (icmp(7)).
      await world.host.must(["sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratemask && echo 0 > /proc/sys/net/ipv6/icmp/ratelimit"]);
      // Twice: the second time the flows are established, and their packets go the short way.
      for (let round = 0; round < 2; round++) expect((await stage.inject(world, frames(TCP.syn))).captured.uplink.filter((frame) => marks.some((mark) => contains(frame, mark.bytes))).length).toBe(6);
      // What comes to the host's own stack.
      await world.host.must(["nft", "-f", "-"], { input: `table inet taken {\n chain seen {\n type filter hook input priority 0;\n ip daddr ${taken[0]} meta l4proto tcp counter\n ip6 daddr ${taken[1]} meta l4proto tcp counter\n }\n}` });
      const seen = async (): Promise<number[]> => [...(await world.host.must(["nft", "list", "table", "inet", "taken"])).matchAll(/packets (\d+)/g)].map(([, count]) => Number(count));
      await world.host.ip(`addr add ${taken[0]}/32 dev lo\naddr add ${taken[1]}/128 dev lo nodad`);
      if (world === stage.control) {
        expect(of((await stage.inject(world, frames(TCP.ack))).received), "control: the host answers").toEqual(
          [`${taken[0]} ${PROTOCOL.icmp}`, `${taken[0]} ${PROTOCOL.icmp}`, `${taken[0]} ${PROTOCOL.tcp}`, `${taken[1]} ${PROTOCOL.icmpv6}`, `${taken[1]} ${PROTOCOL.icmpv6}`, `${taken[1]} ${PROTOCOL.tcp}`].sort());
        expect(await seen(), "control: they come to the host's stack").toEqual([1, 1]);
      } else {
        for (const address of taken) {
          await until(`${address} in group host`, async () => {
            await stage.inject(world, [stage.syn("", address, null).build(nextMark()) as Bytes]);
            return stage.enforcer!.denials({ destination: address, reason: "default-host" }).length > 0;
          }, 3000);
        }
        // The guest is told that its connections are over, and nobody else is. What asked whether the host's addresses are known may have come to it.
        const before = await seen();
        expect(of((await stage.inject(world, frames(TCP.ack))).received)).toEqual(taken.map((address) => `${address} ${PROTOCOL.tcp}`).sort());
        for (let round = 0; round < 3; round++) expect(of((await stage.inject(world, frames(TCP.ack))).received)).toEqual([]);
        expect(await seen()).toEqual(before);
        await stage.alive();
      }
      await world.host.must(["nft", "delete", "table", "inet", "taken"]);
      await world.host.ip(`addr del ${taken[0]}/32 dev lo\naddr del ${taken[1]}/128 dev lo`);
    }
  });

  test("A11 public addresses on a link of the host or behind its VPN", async () => {
    await stage.show({
      stimuli: [
        stage.syn("neighbour", ADDRESS.neighbour4, "uplink"), stage.syn("neighbour", ADDRESS.neighbour6, "uplink"), stage.syn("router", ADDRESS.router4, "uplink"),
        stage.syn("VPN", "151.101.65.1", "lan"), stage.syn("VPN", "2a04:4e42::1", "lan"), stage.syn("broadcast", "185.199.108.255", null),
      ],
      reasons: ["default-private", "default-multicast"],
    });
  });

  test("A12 every special-purpose prefix", async () => {
    const verdict = table("special_purpose.tsv").filter((row) => row[11]?.startsWith("deny") === true).map((row) => row[0]!);
    expect(verdict.length).toBeGreaterThan(40);
    const destinations = [...new Set(verdict.flatMap((prefix) => [addressIn(prefix, 0), addressIn(prefix, 1)]))];
    // What the host itself would not route, or sends elsewhere than to its uplink, is no control.
    const local = /^(0\.|127\.|192\.168\.50\.|172\.(17|30)\.|255\.|22[4-9]\.|23\d\.|::$|::1$|fe[89a-f]|ff)/;
    const stimuli = destinations.map((to) => stage.syn("", to, local.test(to) ? null : "uplink"));
    expect(stimuli.filter((one) => one.escapes !== null).length).toBeGreaterThan(40);
    await stage.show({ stimuli });
  });

  test("A13 IPv6 forms that carry an IPv4 address or lie outside global unicast", async () => {
    const forms = ["::ffff:10.0.0.1", "::8.8.8.8", "::ffff:0:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "fec0::1", "4000::1", "5f00::1",
      "::ffff:8.8.8.8", "64:ff9b::10.0.0.1", "2002:a00:1::1", "2001:0:a9fe:a9fe::1", "2001:0:808:808:0:0:f5ff:fffe", "2606:2800::5efe:10.0.0.1", "2606:2800::200:5efe:169.254.169.254", "100::1", "3fff::1", "2001:db8::1"];
    await stage.show({ stimuli: forms.map((form) => stage.syn("", ipText(ip(form)), "uplink")) });
  });

  test("A14 metadata and credential endpoints of the clouds", async () => {
    const known = ["168.63.129.16", "192.80.8.124", "161.26.0.10", "166.9.0.1", "100.100.100.200", "192.0.0.192", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe", "169.254.169.254", "169.254.170.2", "fd00:ec2::254"];
    const listed = table("metadata_endpoints.tsv").map((row) => row[1]?.split("/")[0] ?? "").filter((text) => /^[\d.]+$|:/.test(text) && !text.includes(" "));
    expect(listed.length).toBeGreaterThan(10);
    await stage.show({
      stimuli: [...new Set([...known, ...listed])].map((to) => stage.syn("", to, /^(fe80|127\.)/.test(to) ? null : "uplink", {}, 80)),
      reasons: ["default-metadata", "default-link-local", "default-loopback"],
    });
  });

  test("A15 IPv4 options", async () => {
    const withOptions = (name: string, options: Bytes, escapes: Stimulus["escapes"]): Stimulus => ({
      name, escapes, build: (mark) => tcpFrame(stage.to(SINK.v4), { sourcePort: mark.port, destinationPort: 22, payload: mark.bytes }, { ipv4: { options } }),
    });
    await stage.show({
      stimuli: [
        // A source route is acted on by the host that it is addressed to: the packet goes on to 10.0.0.1.
        {
          name: "LSRR by way of the host", escapes: "uplink",
          build: (mark) => tcpFrame(stage.to(ADDRESS.gateway4), { sourcePort: mark.port, destinationPort: 22, payload: mark.bytes }, { ipv4: { options: concat([fromHex("018307 04"), ip("10.0.0.1")]) } }),
        },
        withOptions("LSRR in passing", concat([fromHex("01830704"), ip("10.0.0.1")]), "uplink"),
        withOptions("SSRR in passing", concat([fromHex("01890704"), ip("10.0.0.1")]), null),
        withOptions("40 octets that read as port 443", concat([fromHex("010101bb24"), new Uint8Array(34), fromHex("01")]), "uplink"),
        withOptions("record route", concat([fromHex("01070704"), new Uint8Array(4)]), "uplink"),
        withOptions("router alert", fromHex("94040000"), null),
        withOptions("no operation", fromHex("01010101"), "uplink"),
        withOptions("end of list", fromHex("00000000"), "uplink"),
      ],
      reasons: ["ip-options"],
    });
  });

  test("A17 IPv6 fragment headers and long chains", async () => {
    const behind = (name: string, extensions: readonly Extension[], escapes: Stimulus["escapes"] = "uplink", destination: string = ADDRESS.private6): Stimulus => ({
      name, escapes,
      build: (mark) => ipFrame(stage.to(destination), PROTOCOL.udp, udp(ADDRESS.guest6, destination, { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes }), { extensions }),
    });
    const many = (count: number, make: () => Extension): Extension[] => Array.from({ length: count }, make);
    await stage.show({
      stimuli: [
        behind("atomic fragment", [fragmentHeader(0, false, 1)]),
        behind("20 destination options", many(20, destinationOptions)),
        behind("20 destination options to a public address", many(20, destinationOptions), "uplink", SINK.v6),
        behind("8 destination options", many(8, destinationOptions)),
        behind("200 fragment headers", many(200, () => fragmentHeader(0, false, 2)), "uplink", SINK.v6),
        behind("two fragment headers", many(2, () => fragmentHeader(0, false, 3)), "uplink", SINK.v6),
        behind("hop-by-hop in second place", [destinationOptions(), hopByHop()], "uplink", SINK.v6),
        behind("200 destination options", many(200, destinationOptions), "uplink", SINK.v6),
        {
          name: "first fragment without a transport header", escapes: "uplink",
          build: (mark) => ipFrame(stage.to(SINK.v6), PROTOCOL.tcp, tcp(ADDRESS.guest6, SINK.v6, { sourcePort: mark.port, destinationPort: 443 }).slice(0, 8), { extensions: [destinationOptions(concat([Uint8Array.of(0x1e, mark.bytes.length), mark.bytes])), fragmentHeader(0, true, 4)] }),
        },
        {
          name: "later fragment alone", escapes: "uplink",
          build: (mark) => fragment(stage.to(SINK.v6), PROTOCOL.udp, concat([mark.bytes, new Uint8Array(4)]), 64, false, 5),
        },
        {
          name: "chain that ends in the fragment", escapes: "uplink",
          build: (mark) => {
            const { nextHeader, payload } = chain([fragmentHeader(0, true, 6), destinationOptions(concat([Uint8Array.of(0x1e, mark.bytes.length), mark.bytes]))], PROTOCOL.udp, new Uint8Array(0));
            return ethernet({ destination: stage.gatewayMac, source: MAC.guest, type: ETHERTYPE.ipv6 }, ipv6({ source: ADDRESS.guest6, destination: SINK.v6, nextHeader }, payload));
          },
        },
        {
          name: "extension header that is longer than the packet", escapes: "uplink",
          build: (mark) => ipFrame(stage.to(SINK.v6), PROTOCOL.udp, udp(ADDRESS.guest6, SINK.v6, { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes }), { extensions: [{ type: PROTOCOL.destinationOptions, body: new Uint8Array(6), length: 250 }] }),
        },
      ],
    });
  });

  test("A18 IPv6 routing headers", async () => {
    await stage.show({
      stimuli: [0, 2, 3, 4, 253].flatMap((type) => [1, 0].map((left): Stimulus => ({
        name: `type ${type}, ${left} left`, escapes: "uplink",
        build: (mark) => ipFrame(stage.to(SINK.v6), PROTOCOL.tcp, tcp(ADDRESS.guest6, SINK.v6, { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes }), { extensions: [routingHeader(type, left, [ADDRESS.private6])] }),
      }))),
      reasons: ["extension-header"],
    });
  });

  test("A19 every IP protocol and next header", async () => {
    const allowed: number[] = [PROTOCOL.tcp, PROTOCOL.udp];
    const any = (destination: string, protocol: number): Stimulus => ({
      name: `protocol ${protocol} to ${destination}`, escapes: [0, 43, 44, 60].includes(protocol) || (protocol === PROTOCOL.igmp && destination === SINK.v4) ? null : "uplink",
      build: (mark) => ipFrame(stage.to(destination), protocol, concat([Uint8Array.of(13, 0, 0, 0), mark.bytes, new Uint8Array(12)])),
    });
    const numbers = Array.from({ length: 256 }, (_, protocol) => protocol).filter((protocol) => !allowed.includes(protocol));
    await stage.show({ stimuli: [SINK.v4, SINK.v6].flatMap((destination) => numbers.map((protocol) => any(destination, protocol))) });
    for (const world of stage.worlds) {
      for (const destination of [SINK.v4, SINK.v6]) {
        const mark = nextMark();
        const { captured } = await stage.inject(world, [echoFrame(stage.to(destination), { payload: mark.bytes })]);
        expect(captured.uplink.filter((frame) => contains(frame, mark.bytes)).length, `echo to ${destination}`).toBe(1);
      }
    }
  });

  test("A19 every EtherType", async () => {
    // A bridge carries any EtherType to the sibling; a router knows three.
    const frame = (type: number, mark: Mark): Bytes =>
      ethernet({ destination: bridged ? MAC.sibling : stage.gatewayMac, source: MAC.guest, type }, concat([mark.bytes, ipv4({ source: ADDRESS.guest4, destination: SINK.v4, protocol: PROTOCOL.udp }, udp(ADDRESS.guest4, SINK.v4, { sourcePort: mark.port, destinationPort: 443 }))]));
    const mark = nextMark();
    const types = Array.from({ length: 65536 }, (_, type) => type).filter((type) => type !== ETHERTYPE.ipv4 && type !== ETHERTYPE.ipv6 && type !== ETHERTYPE.arp);
    const control = await stage.inject(stage.control, [0x88cc, 0x8863, 0x1234, 0x9000].map((type) => frame(type, mark)));
    if (bridged) expect(control.captured.sibling.filter((one) => contains(one, mark.bytes)).length, "control").toBeGreaterThan(1);
    if (controlsOnly) return;
    const { captured, received } = await stage.inject(stage.held, types.map((type) => frame(type, mark)));
    for (const frames of [captured.uplink, captured.lan, captured.sibling, received]) expect(frames.filter((one) => contains(one, mark.bytes)).map((one) => decode(one).type)).toEqual([]);
    await stage.alive();
  });

  test("A20 ICMP other than echo", async () => {
    const quoted4 = (source: string, destination: string): Bytes => ipv4({ source, destination, protocol: PROTOCOL.tcp }, tcp(source, destination, { sourcePort: 40000, destinationPort: 443 }).slice(0, 8));
    const message4 = (name: string, type: number, code: number, rest: Bytes, body: Bytes, destination: string, escapes: Stimulus["escapes"]): Stimulus => ({
      name, escapes, build: (mark) => ipFrame(stage.to(destination), PROTOCOL.icmp, icmp({ type, code, rest, payload: concat([body, mark.bytes]) })),
    });
    const message6 = (name: string, type: number, code: number, rest: Bytes, body: Bytes, destination: string, escapes: Stimulus["escapes"]): Stimulus => ({
      name, escapes, build: (mark) => ipFrame(stage.to(destination), PROTOCOL.icmpv6, icmpv6(ADDRESS.guest6, destination, { type, code, rest, payload: concat([body, mark.bytes]) })),
    });
    const quoted6 = (source: string, destination: string): Bytes => ipv6({ source, destination, nextHeader: PROTOCOL.tcp }, tcp(source, destination, { sourcePort: 40000, destinationPort: 443 }).slice(0, 8));
    const before = controlsOnly ? "" : await hostState(stage.held);
    await stage.show({
      stimuli: [
        message4("redirect to the host", 5, 1, ip(ADDRESS.guest4), quoted4(ADDRESS.gateway4, SINK.v4), ADDRESS.gateway4, null),
        message4("redirect outward", 5, 1, ip(ADDRESS.guest4), quoted4(SINK.v4, "1.1.1.1"), SINK.v4, "uplink"),
        message4("fragmentation needed, MTU 68, of a flow of the host", 3, 4, concat([u16(0), u16(68)]), quoted4(ADDRESS.host4, ADDRESS.site4), ADDRESS.host4, null),
        message4("fragmentation needed outward", 3, 4, concat([u16(0), u16(68)]), quoted4(SINK.v4, ADDRESS.host4), SINK.v4, "uplink"),
        message4("unreachable of a sibling's flow", 3, 1, u32(0), quoted4(SINK.v4, ADDRESS.sibling4), SINK.v4, "uplink"),
        message4("time exceeded", 11, 0, u32(0), quoted4(SINK.v4, ADDRESS.guest4), SINK.v4, "uplink"),
        message4("timestamp", 13, 0, u32(0), new Uint8Array(12), SINK.v4, "uplink"),
        message4("timestamp of the host", 13, 0, u32(0), new Uint8Array(12), ADDRESS.gateway4, null),
        message4("address mask", 17, 0, u32(0), new Uint8Array(4), SINK.v4, "uplink"),
        message4("router solicitation", 10, 0, u32(0), new Uint8Array(0), SINK.v4, "uplink"),
        message4("echo reply that nobody asked for", 0, 0, u32(7), new Uint8Array(8), SINK.v4, "uplink"),
        message6("packet too big, MTU 1280, of a flow of the host", 2, 0, u32(1280), quoted6(ADDRESS.host6, ADDRESS.site6), ADDRESS.host6, null),
        message6("packet too big outward", 2, 0, u32(1280), quoted6(SINK.v6, ADDRESS.host6), SINK.v6, "uplink"),
        message6("unreachable", 1, 0, u32(0), quoted6(SINK.v6, stage.held.sibling6), SINK.v6, "uplink"),
        message6("parameter problem", 4, 0, u32(0), quoted6(SINK.v6, ADDRESS.guest6), SINK.v6, "uplink"),
        message6("node information query", 139, 0, u32(0), new Uint8Array(8), SINK.v6, "uplink"),
        {
          name: "router solicitation, IPv6: the host would learn the sender", escapes: null,
          build: () => ipFrame({ sourceMac: MAC.guest, destinationMac: "33:33:00:00:00:02", source: LINK_LOCAL, destination: "ff02::2" }, PROTOCOL.icmpv6, routerSolicitation(LINK_LOCAL, MAC.guest), { ipv6: { hopLimit: 255 } }),
        },
        message6("echo reply that nobody asked for", 129, 0, u32(7), new Uint8Array(8), SINK.v6, "uplink"),
      ],
    });
    if (!controlsOnly) expect(await hostState(stage.held)).toBe(before);
  });

  test("A20 neighbour discovery is no way past the link", async () => {
    // A router forwards it like anything else; what the option holds would be out.
    const smuggle = (name: string, type: number, target: string, destination: string, escapes: Stimulus["escapes"]): Stimulus => ({
      name: `${name} to ${destination}`, escapes,
      build: (mark) => ipFrame(stage.to(destination), PROTOCOL.icmpv6, icmpv6(ADDRESS.guest6, destination, {
        type, payload: concat([ip(target), Uint8Array.of(200, 2), mark.bytes, new Uint8Array(14 - mark.bytes.length)]),
      }), { ipv6: { hopLimit: 255 } }),
    });
    const plain = (name: string, destination: string, upper: Bytes): Stimulus => ({
      name: `${name} to ${destination}`, escapes: null, build: () => ipFrame(stage.to(destination), PROTOCOL.icmpv6, upper, { ipv6: { hopLimit: 255 } }),
    });
    const places: [string, Stimulus["escapes"]][] = [
      [SINK.v6, "uplink"], [ADDRESS.private6, "uplink"], [ADDRESS.metadata6, "uplink"], ["2a04:4e42::1", "lan"], [stage.held.sibling6, "sibling"], [ADDRESS.host6, null],
    ];
    await stage.show({
      stimuli: places.flatMap(([destination, escapes]) => [
        smuggle("solicitation", 135, ADDRESS.gateway6, destination, escapes), smuggle("advertisement", 136, ADDRESS.guest6, destination, escapes),
        plain("solicitation without options", destination, neighbourSolicitation(ADDRESS.guest6, destination, ADDRESS.gateway6)),
      ]),
      reasons: ["nd-spoof"],
    });
    if (stage.enforcer === null) return;
    const { captured } = await stage.inject(stage.held, places.filter(([place]) => place !== stage.held.sibling6).map(([destination]) =>
      ipFrame(stage.to(destination), PROTOCOL.icmpv6, neighbourAdvertisement(ADDRESS.guest6, destination, ADDRESS.guest6, MAC.guest), { ipv6: { hopLimit: 255 } })));
    expect([...captured.uplink, ...captured.lan].filter((frame) => decode(frame).protocol === PROTOCOL.icmpv6).map((frame) => decode(frame).destination)).toEqual([]);
  });

  test("name services other than DNS, and answers of a DHCP server", async () => {
    const to = (destination: string, protocol: "tcp" | "udp", port: number, reasons: Stimulus["escapes"] = "uplink", sourcePort?: number): Stimulus => ({
      name: `${protocol}/${port} to ${destination}`, escapes: reasons,
      build: (mark) => (protocol === "tcp" ? tcpFrame : udpFrame)(stage.to(destination), { sourcePort: sourcePort ?? mark.port, destinationPort: port, payload: mark.bytes }),
    });
    await stage.show({
      stimuli: [SINK.v4, SINK.v6].flatMap((destination) => [to(destination, "udp", 853), to(destination, "udp", 5353), to(destination, "udp", 5355), to(destination, "udp", 137)]),
      reasons: ["name-service"],
    });
    // DNS over TLS is answered with a reset, so that clients fall back; nothing of it leaves.
    for (const destination of [SINK.v4, SINK.v6]) {
      const mark = nextMark(), frame = tcpFrame(stage.to(destination), { sourcePort: mark.port, destinationPort: 853, payload: mark.bytes });
      const seen = async (world: World): Promise<boolean> => (await stage.inject(world, [frame])).captured.uplink.some((one) => contains(one, mark.bytes) || decode(one).sourcePort === mark.port);
      expect(await seen(stage.control), "control").toBe(true);
      if (!controlsOnly) expect(await seen(stage.held)).toBe(false);
    }
    await stage.show({ stimuli: [to(SINK.v4, "udp", 68, "uplink", 67), to(SINK.v6, "udp", 546, "uplink", 547), to(SINK.v4, "udp", 68), to(SINK.v6, "udp", 546)], reasons: ["dhcp-server"] });
  });

  test("headers that lie, and TCP flags that no stack sends", async () => {
    const lying = (name: string, make: (mark: Mark) => Bytes, escapes: Stimulus["escapes"] = null): Stimulus => ({ name, escapes, build: make });
    const plain = (mark: Mark, destination: string, change: Parameters<typeof udpFrame>[2]): Bytes =>
      udpFrame(stage.to(destination), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes }, change);
    const flags = (destination: string, value: number): Stimulus => ({
      name: `TCP flags ${value} to ${destination}`, escapes: "uplink",
      build: (mark) => tcpFrame(stage.to(destination), { sourcePort: mark.port, destinationPort: 443, flags: value, payload: mark.bytes }),
    });
    await stage.show({
      stimuli: [
        lying("IPv4 total length beyond the frame", (mark) => plain(mark, SINK.v4, { ipv4: { totalLength: 400 } })),
        lying("IPv4 total length below the header", (mark) => plain(mark, SINK.v4, { ipv4: { totalLength: 19 } })),
        lying("IPv4 header of 4 words", (mark) => plain(mark, SINK.v4, { ipv4: { ihl: 4 } })),
        lying("IPv4 version 6", (mark) => plain(mark, SINK.v4, { ipv4: { version: 6 } })),
        lying("IPv4 behind the EtherType of IPv6", (mark) => plain(mark, SINK.v4, { type: ETHERTYPE.ipv6 })),
        lying("IPv6 payload length beyond the frame", (mark) => plain(mark, SINK.v6, { ipv6: { payloadLength: 400 } })),
        lying("IPv6 payload length 0", (mark) => plain(mark, SINK.v6, { ipv6: { payloadLength: 0 } })),
        lying("IPv6 version 4", (mark) => plain(mark, SINK.v6, { ipv6: { version: 4 } })),
        lying("UDP length beyond the packet", (mark) => udpFrame(stage.to(SINK.v4), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes, length: 400 }), "uplink"),
        lying("UDP length below its header", (mark) => udpFrame(stage.to(SINK.v6), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes, length: 7 }), "uplink"),
        lying("TCP data offset beyond the packet", (mark) => tcpFrame(stage.to(SINK.v4), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes, dataOffset: 15 }), "uplink"),
        lying("TCP data offset below its header", (mark) => tcpFrame(stage.to(SINK.v6), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes, dataOffset: 4 }), "uplink"),
        ...[SINK.v4, SINK.v6].flatMap((destination) => [0, TCP.syn | TCP.fin, TCP.syn | TCP.rst].map((value) => flags(destination, value))),
      ],
      reasons: ["length", "truncated", "tcp-flags", "ip-options", "ethertype", "extension-header", "protocol"],
    });
    // Frames that are cut short anywhere never do harm, whatever is left of them.
    if (controlsOnly) return;
    const mark = nextMark();
    const whole = [SINK.v4, SINK.v6].flatMap((destination) => [
      tcpFrame(stage.to(destination), { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes }), echoFrame(stage.to(destination), { payload: mark.bytes }),
    ]);
    const cut = whole.flatMap((frame) => Array.from({ length: frame.length - 15 }, (_, length) => frame.slice(0, 14 + length)));
    const { captured } = await stage.inject(stage.held, [...cut, ...whole.map((frame) => frame.slice(0, 14))]);
    expect(captured.uplink.length + captured.lan.length + captured.sibling.length).toBe(0);
    await stage.alive();
  });
});

describe("A16 fragments under a policy with ports", () => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await Stage.open({ policy: "rules:\n  - allow: public\n    proto: [tcp, udp]\n    ports: [443]\n" });
  });
  afterAll(() => stage?.close());

  /** The datagrams that a receiver could put together from the captured frames: destination ports of all readable first fragments. */
  const openings = (frames: readonly Bytes[], id: number): { offset: number; port: number | undefined; length: number }[] =>
    frames.map(decode).filter((one) => one.fragment?.id === id).map((one) => ({ offset: one.fragment!.offset, port: one.destinationPort, length: one.payload.length }));

  test.each([["IPv4", SINK.v4], ["IPv6", SINK.v6]] as const)("A16 %s: tiny, overlapping and doubled fragments", async (_name, destination) => {
    const ends = stage.to(destination);
    const source = ends.source;
    let id = 0x5100;
    const segment = (port: number, mark: Mark): Bytes => tcp(source, destination, { sourcePort: mark.port, destinationPort: port, payload: concat([mark.bytes, filler(24)]) });

    const cases: { name: string; build: (mark: Mark, id: number) => Bytes[]; allowed: number[] }[] = [
      { name: "8-octet fragments of a SYN to a denied port", allowed: [], build: (mark, n) => fragments(ends, PROTOCOL.tcp, segment(22, mark), [8, 16, 24, 32], n) },
      { name: "8-octet fragments of a SYN to an allowed port", allowed: [], build: (mark, n) => fragments(ends, PROTOCOL.tcp, segment(443, mark), [8, 16, 24, 32], n) },
      { name: "whole first fragment to a denied port", allowed: [], build: (mark, n) => fragments(ends, PROTOCOL.tcp, segment(22, mark), [32], n) },
      {
        name: "second fragment at offset 1 over the first", allowed: [0],
        build: (mark, n) => [fragment(ends, PROTOCOL.tcp, segment(443, mark).slice(0, 32), 0, true, n), fragment(ends, PROTOCOL.tcp, segment(22, mark).slice(8), 8, false, n)],
      },
      {
        name: "two first fragments, allowed and then denied", allowed: [0],
        build: (mark, n) => [fragment(ends, PROTOCOL.tcp, segment(443, mark).slice(0, 32), 0, true, n), fragment(ends, PROTOCOL.tcp, segment(22, mark).slice(0, 32), 0, true, n)],
      },
      {
        name: "two first fragments, denied and then allowed", allowed: [0],
        build: (mark, n) => [fragment(ends, PROTOCOL.tcp, segment(22, mark).slice(0, 32), 0, true, n), fragment(ends, PROTOCOL.tcp, segment(443, mark).slice(0, 32), 0, true, n)],
      },
      { name: "later fragments before the first", allowed: [0], build: (mark, n) => fragments(ends, PROTOCOL.tcp, segment(443, mark), [32], n).reverse() },
    ];
    for (const one of cases) {
      const mark = nextMark();
      const number = ++id;
      const frames = one.build(mark, number);
      const control = openings((await stage.inject(stage.control, frames)).captured.uplink, number);
      expect(control.length, `control: ${one.name}`).toBe(frames.length);
      if (stage.enforcer === null) continue;
      const held = openings((await stage.inject(stage.held, frames)).captured.uplink, number);
      expect(held.filter((seen) => seen.offset === 0 && seen.port !== 443), `${one.name}: a first fragment to a denied port`).toEqual([]);
      expect(held.map((seen) => seen.offset).filter((offset) => !one.allowed.includes(offset)), `${one.name}: offsets that left`).toEqual([]);
      expect(held.length, `${one.name}: nothing twice`).toBeLessThan(2);
    }
    // The same, cut by the kernel after the verdict (VIRTIO_NET_HDR_GSO_UDP): sizes that put two fragments over one another, or the
    // ports into another fragment than the first, are refused; a fair size passes.
    const head = isV6(destination) ? 54 : 34;
    for (const gsoSize of [1, 4, 7, 9, 12, 20, 8, 16]) {
      const mark = nextMark(), fair = gsoSize % 8 === 0;
      const fields = { sourcePort: mark.port, destinationPort: 443, payload: concat([mark.bytes, filler(24)]) };
      const frame = udpFrame(ends, { ...fields, checksum: "partial" });
      const item = { vnet: vnetHeader({ flags: VNET.needsChecksum, gsoType: VNET.gsoUdp, hdrLen: head + 8, gsoSize, csumStart: head, csumOffset: 6 }), frame };
      for (const world of stage.worlds) {
        // The second time the flow is established: its packets go the short way.
        const { captured } = await stage.inject(world, [udpFrame(ends, fields), item]);
        const seen = captured.uplink.map(decode).filter((one) => one.fragment !== undefined && one.destination === ipText(ip(destination)));
        if (world === stage.control || fair) expect(seen.length, `${gsoSize} octets, ${world === stage.control ? "control" : "fair"}`).toBeGreaterThan(1);
        else expect(seen.map((one) => [one.fragment!.offset, one.destinationPort]), `fragments of ${gsoSize} octets`).toEqual([]);
      }
    }
    if (stage.enforcer === null) return;
    // And a fair datagram in three fragments arrives whole.
    const fair = nextMark();
    const number = ++id;
    const whole = udp(source, destination, { sourcePort: fair.port, destinationPort: 443, payload: concat([fair.bytes, filler(100)]) });
    const seen = openings((await stage.inject(stage.held, fragments(ends, PROTOCOL.udp, whole, [40, 80], number))).captured.uplink, number);
    expect(seen.map((part) => part.offset)).toEqual([0, 40, 80]);
    await stage.alive();
  });
});
