/**
 * Every reason by at least one frame: what is sent under which policy, the verdict and the reason that is counted. IPv4 and
 * IPv6 alike wherever both can have it.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { reasonNames } from "../../src/kernel/counters.js";
import type { ProgramName } from "../../src/kernel/instance.js";
import { slotKey } from "../../src/kernel/sandbox-tables.js";
import {
  addTags, arpFrame, type Bytes, concat, destinationOptions, echoFrame, ethernet, filler, fragment, fragmentHeader, fragments, hopByHop, icmp, icmpv6, ip, ipFrame,
  neighbourAdvertisement, neighbourSolicitation, PROTOCOL, redirect6, routerAdvertisement, routerSolicitation, routingHeader, solicitedNode, TCP, tcp, tcpFrame, udp, udpFrame,
} from "../lib/frames.js";
import { CODE, GUEST, HOST, hostGroups, Lab, type LabPin, type LabSandbox, type Outcome, prefix, RESOLVER, type RunOptions, SITE, type SandboxOptions } from "./lab.js";

/** Reasons that no test run can bring about, and where they are tested. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  "checksum-offload": "test/netns/packets.test.ts: A11, frames with a virtio header; a test run has no partial checksum",
  "fragment-table-full": "nowhere: the table forgets its eldest entry instead (flows.test.ts)",
  rewrite: "nowhere: the helpers fail only where no memory is left for a copy of the frame, which was parsed to its end before",
};

/** Sandboxes at one time. */
const SLOTS = 8;

interface Step { readonly frame: Bytes; readonly program?: ProgramName; readonly options?: RunOptions }
interface Row {
  readonly name: string;
  readonly reason: string;
  readonly sandbox?: SandboxOptions;
  readonly pins?: readonly LabPin[];
  /** Needs tables of its own, because `prepare` breaks them. */
  readonly fresh?: boolean;
  /** Before the frame that counts: whatever is done to the tables or sent. */
  readonly prepare?: (sandbox: LabSandbox, lab: Lab) => void;
  readonly step: (sandbox: LabSandbox) => Step;
}

const out = (frame: Bytes, options?: RunOptions): Step => ({ frame, ...(options === undefined ? {} : { options }) });
const into = (frame: Bytes, options?: RunOptions): Step => ({ frame, program: "to_guest", ...(options === undefined ? {} : { options }) });
const answer = (frame: Bytes): Step => ({ frame, program: "from_resolver" });

const rows: Row[] = [];
const row = (reason: string, name: string, step: Row["step"], more: Partial<Row> = {}): void => { rows.push({ reason, name, step, ...more }); };
/** The same for both families: `at` picks by family. */
const twins = (reason: string, name: string, step: (sandbox: LabSandbox, v6: boolean) => Step, more: (v6: boolean) => Partial<Row> = () => ({})): void => {
  for (const v6 of [false, true]) row(reason, `${name} (${v6 ? "IPv6" : "IPv4"})`, (sandbox) => step(sandbox, v6), more(v6));
};
const site = (v6: boolean): string => (v6 ? SITE.v6 : SITE.v4);
const other = (v6: boolean): string => (v6 ? SITE.other6 : SITE.other4);
const own = (v6: boolean): string => (v6 ? GUEST.v6 : GUEST.v4);
const gateway = (v6: boolean): string => (v6 ? HOST.gateway6 : HOST.gateway4);
const https = { sourcePort: 40000, destinationPort: 443 } as const;
const policy = (rules: string, more = ""): Partial<Row> => ({ sandbox: { policy: `${more}${more === "" ? "" : "\n"}rules: [${rules}]` } });
const learns = { guest: [], learnPrefixes: [prefix("10.0.0.0/24"), prefix("fd00::/64")], mac: null };
const resolverOf = (v6: boolean): string => (v6 ? RESOLVER.v6 : RESOLVER.v4);
/** A slot's address behind the resolver's device. */
const shown = (v6: boolean, slot: number): string => (v6 ? `fdee::${(256 + slot).toString(16)}` : `240.0.${1 + (slot >> 8)}.${slot & 255}`);
const fromAgent = (sandbox: LabSandbox, v6: boolean, port: number, more: { slot?: number; source?: string; sourcePort?: number } = {}): Bytes => udpFrame(
  { sourceMac: RESOLVER.farMac, destinationMac: RESOLVER.nearMac, source: more.source ?? resolverOf(v6), destination: shown(v6, more.slot ?? sandbox.slot) },
  { sourcePort: more.sourcePort ?? 53, destinationPort: port, payload: filler(30) },
);
const dnsQuery = (sandbox: LabSandbox, v6: boolean): Bytes => udpFrame(sandbox.to(v6 ? "2620:fe::fe" : "9.9.9.9"), { sourcePort: 5000, destinationPort: 53, payload: filler(30) });
const arpFrom = (fields: { targetIp: string; senderIp?: string; senderMac?: string; operation?: number }): Bytes => arpFrame({ senderMac: GUEST.mac, senderIp: GUEST.v4, ...fields }, { source: GUEST.mac });
const nd = (sandbox: LabSandbox, upper: (source: string, destination: string) => Bytes, destination = "ff02::1", more: { source?: string; hopLimit?: number } = {}): Bytes => {
  const ends = sandbox.to(destination, { source: more.source ?? GUEST.v6 });
  return ipFrame(ends, PROTOCOL.icmpv6, upper(ends.source as string, destination), { ipv6: { hopLimit: more.hopLimit ?? 255 } });
};

/** A solicitation (135) or advertisement (136) with any options. */
const ndWith = (sandbox: LabSandbox, type: number, target: string, options: Bytes, destination: string, source: string = GUEST.v6): Bytes =>
  nd(sandbox, (from, to) => icmpv6(from, to, { type, payload: concat([ip(target), options]) }), destination, { source });

/* ---- allowed ---- */
twins("rule-allow", "first matching rule allows", (s, v6) => out(tcpFrame(s.to(site(v6)), https)));
twins("rule-allow", "inbound to a named port", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 40000, destinationPort: 8080 })), () => policy("{allow: any, direction: ingress, proto: tcp, ports: [8080]}"));
twins("rule-allow", "a pinned address", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({ ...policy("{allow: api.example.com, proto: tcp, ports: [443]}"), pins: [{ address: site(v6), names: ["api.example.com"] }] }));
twins("default-allow", "no rule and default_egress: allow", (s, v6) => out(udpFrame(s.to(site(v6)), https)), () => policy("", "default_egress: allow"));
twins("default-allow", "no rule and default_ingress: allow", (s, v6) => into(udpFrame(s.from(site(v6)), https)), () => policy("", "default_ingress: allow"));
twins("established", "the answer to what the guest sent", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.syn | TCP.ack })), (v6) => ({ prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
twins("established", "the next packet of a flow", (s, v6) => out(udpFrame(s.to(site(v6)), https)), (v6) => ({ prepare: (s) => { s.out(udpFrame(s.to(site(v6)), https)); } }));
twins("icmp-related", "port unreachable for a flow of the guest", (s, v6) => into(errorFor(s, v6)), (v6) => ({ prepare: (s) => { s.out(udpFrame(s.to(site(v6)), https)); } }));
twins("fragment-follows", "second fragment behind the first", (s, v6) => out(pieces(s, v6)[1]!), (v6) => ({ prepare: (s) => { s.out(pieces(s, v6)[0]!); } }));
twins("dns-redirect", "UDP 53 to any resolver", (s, v6) => out(dnsQuery(s, v6)));
twins("dns-redirect", "TCP 53 to any resolver", (s, v6) => out(tcpFrame(s.to(site(v6)), { sourcePort: 5000, destinationPort: 53 })));
twins("dns-redirect", "UDP 53 to the gateway, without any rule", (s, v6) => out(udpFrame(s.to(gateway(v6)), { sourcePort: 5000, destinationPort: 53 })), () => policy(""));
twins("dns-answer", "the agent's answer", (s, v6) => answer(fromAgent(s, v6, 16384 + s.redirects()[0]!.index)), (v6) => ({ prepare: (s) => { s.out(dnsQuery(s, v6)); } }));
twins("dns-answer", "the agent's answer in a conversation that another CPU has just used", (s, v6) => answer(fromAgent(s, v6, 16384 + s.redirects()[0]!.index)), (v6) => ({ fresh: true, prepare: (s) => { s.out(dnsQuery(s, v6)); s.ageRedirects(-5); } }));
twins("dns-answer", "the answer at the tap, come in by the resolver's device", (s, v6) => into(udpFrame(s.from(site(v6)), { sourcePort: 53, destinationPort: 5000 }), { ingressIfindex: RESOLVER.near }));
const named = (more = ""): string => `{allow: api.example.com}, {allow: "198.51.0.0/16"}${more}`;
const inspected = (rules: string, more = ""): Partial<Row> => ({ sandbox: { ...policy(rules, more).sandbox, inspect: true } });
const pinned = (v6: boolean): Partial<Row> => ({ ...inspected(named()), pins: [{ address: site(v6), names: ["api.example.com"] }] });
/** @param thread of the agent; its own has the sandbox's number, as the others have theirs. */
const agentTcp = (s: LabSandbox, v6: boolean, port: number, flags: number, thread = s.slot): Bytes => tcpFrame(
  { sourceMac: RESOLVER.farMac, destinationMac: RESOLVER.nearMac, source: resolverOf(v6), destination: shown(v6, s.slot) }, { sourcePort: 443 + thread % 16, destinationPort: port, flags });
twins("intercepted", "TLS to an address that a name allows", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), pinned);
twins("intercepted", "HTTP to the same", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, destinationPort: 80 })), pinned);
twins("intercepted", "the next packet of such a flow", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, flags: TCP.ack })), (v6) => ({ ...pinned(v6), prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
twins("intercepted", "what the default allows behind a name that is denied", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => inspected("{deny: bad.example.com}", "default_egress: allow"));
twins("rule-allow", "a port nobody looks into", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, destinationPort: 22 })), pinned);
twins("rule-allow", "an address that an address rule allows, beside names", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => inspected("{allow: api.example.com}, {allow: public}"));
twins("intercept-answer", "the agent's side", (s, v6) => answer(agentTcp(s, v6, 32768 + s.redirects("intercepted")[0]!.index, TCP.syn | TCP.ack)), (v6) => ({ ...pinned(v6), prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
twins("unsolicited-answer", "another thread's than the sandbox's", (s, v6) => answer(agentTcp(s, v6, 32768 + s.redirects("intercepted")[0]!.index, TCP.syn | TCP.ack, s.slot + 1)), (v6) => ({ ...pinned(v6), prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
twins("intercept-answer", "the same at the tap", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.syn | TCP.ack }), { ingressIfindex: RESOLVER.near }));
twins("unsolicited-answer", "somebody else than the agent speaks in such a connection", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.ack })), (v6) => ({ ...pinned(v6), prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
twins("unsolicited-answer", "the agent's TLS port with an entry of DNS", (s, v6) => answer(agentTcp(s, v6, 16384 + s.redirects()[0]!.index, TCP.ack)), (v6) => ({ ...pinned(v6), prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), { sourcePort: 5000, destinationPort: 53 })); } }));
twins("refusal", "a reset on its way to the guest", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.rst }), { ingressIfindex: s.ifindex, mark: 0x52535421 }));
twins("ingress-default", "the mark of a refusal on a packet from elsewhere", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.rst }), { ingressIfindex: 4242, mark: 0x52535421 }));
row("neighbour", "ARP for the gateway", () => out(arpFrom({ targetIp: HOST.gateway4 })));
row("neighbour", "ARP reply of the guest", () => out(arpFrom({ targetIp: HOST.gateway4, operation: 2 })));
row("neighbour", "ARP to the guest", () => into(arpFrame({ senderMac: HOST.tapMac, senderIp: HOST.gateway4, targetIp: GUEST.v4 })));
row("neighbour", "neighbour solicitation for the gateway", (s) => out(nd(s, (source, destination) => neighbourSolicitation(source, destination, HOST.gateway6, GUEST.mac), solicited(HOST.gateway6))));
row("neighbour", "neighbour advertisement of the guest", (s) => out(nd(s, (source, destination) => neighbourAdvertisement(source, destination, GUEST.v6, GUEST.mac), HOST.gateway6)));
row("neighbour", "duplicate address detection", (s) => out(nd(s, (source, destination) => neighbourSolicitation(source, destination, GUEST.v6), solicited(GUEST.v6), { source: "::" })));
row("neighbour", "neighbour solicitation to the guest", (s) => into(ipFrame(s.from(HOST.gateway6), PROTOCOL.icmpv6, neighbourSolicitation(HOST.gateway6, GUEST.v6, GUEST.v6, HOST.tapMac), { ipv6: { hopLimit: 255 } })));
row("dhcp", "DHCP discover", (s) => out(udpFrame(s.to("255.255.255.255", { source: "0.0.0.0" }), { sourcePort: 68, destinationPort: 67, payload: filler(240) })));
row("dhcp", "DHCP offer of the gateway", (s) => into(udpFrame(s.from(HOST.gateway4), { sourcePort: 67, destinationPort: 68, payload: filler(240) })));
row("dhcp", "DHCPv6 solicit", (s) => out(udpFrame(s.to("ff02::1:2", { source: GUEST.linkLocal }), { sourcePort: 546, destinationPort: 547, payload: filler(40) })));
row("dhcp", "DHCPv6 advertise", (s) => into(udpFrame(s.from("fe80::1"), { sourcePort: 547, destinationPort: 546, payload: filler(40) })));

/* ---- denied: policy ---- */
twins("rule-deny", "first matching rule denies", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => policy(`{deny: "${v6 ? "2606:4700::/32" : "93.184.216.0/24"}"}, {allow: public}`));
twins("rule-deny", "a second knock, from the cache of denials", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => ({ ...policy("{deny: any}"), prepare: (s) => { for (const v6 of [false, true]) s.out(tcpFrame(s.to(site(v6)), https)); } }));
for (const [group, v4, v6] of [
  ["host", HOST.uplink4, HOST.uplink6], ["metadata", "169.254.169.254", "fd00:ec2::254"], ["loopback", "127.0.0.1", "::1"], ["private", "10.9.9.9", "fd01::9"], ["link-local", "169.254.7.7", "fe80::77"],
  ["multicast", "239.1.1.1", "ff05::1"], ["reserved", "240.7.7.7", "2001:db8::1"], ["public", SITE.v4, SITE.v6],
] as const) {
  const rules = group === "public" ? "" : "{allow: public}";
  twins(`default-${group}`, `TCP to ${group}`, (s, six) => out(tcpFrame(s.to(six ? v6 : v4), https)), () => policy(rules));
  twins(`default-${group}`, `echo to ${group}`, (s, six) => out(echoFrame(s.to(six ? v6 : v4))), () => policy(rules));
}
for (const [name, to, reason] of [
  ["a subnet's broadcast", "203.0.114.255", "default-multicast"], ["the broadcast of a private subnet", "10.0.0.255", "default-private"], ["NAT64 of a metadata address", "64:ff9b::a9fe:a9fe", "default-metadata"], ["6to4 of a private address", "2002:a09:909::1", "default-private"],
  ["Teredo of a private client", "2001:0:c000:201::f5f6:f6f6", "default-private"], ["ISATAP of the gateway", "2a00:7::5efe:a00:1", "default-host"],
  ["a sibling in the tap's own network", "10.0.0.77", "default-private"], ["a host on the uplink's network", "203.0.114.9", "default-private"],
] as const) row(reason, `TCP to ${name}`, (s) => out(tcpFrame(s.to(to), https)));
twins("no-pin", "an address that no name was given for", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({ ...policy("{allow: api.example.com}"), pins: [{ address: other(v6), names: ["api.example.com"] }] }));
twins("pin-expired", "the lease has ended", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({ ...policy("{allow: api.example.com}"), pins: [{ address: site(v6), names: ["api.example.com"], seconds: -1 }] }));
twins("default-public", "pinned under another port", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, destinationPort: 80 })), (v6) => ({ ...policy("{allow: api.example.com, proto: tcp, ports: [443]}"), pins: [{ address: site(v6), names: ["api.example.com"] }] }));
for (const [group, v4, v6] of [["host", HOST.uplink4, HOST.uplink6], ["metadata", "169.254.169.254", "fd00:ec2::254"], ["loopback", "127.0.0.1", "::1"]] as const) {
  twins(`default-${group}`, `a pin of ${group} opens nothing`, (s, six) => out(tcpFrame(s.to(six ? v6 : v4), https)), (six) => ({ ...policy("{allow: api.example.com}"), pins: [{ address: six ? v6 : v4, names: ["api.example.com"] }] }));
}
twins("ingress-default", "inbound to a port that no rule names", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 40000, destinationPort: 22 })));
twins("ingress-default", "inbound echo", (s, v6) => into(echoFrame(s.from(site(v6)))));
twins("ingress-default", "inbound without a flow, as if it were an answer", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.ack })));
twins("policy-changed", "a flow that the new policy forbids", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, flags: TCP.ack })), (v6) => ({ fresh: true, prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); s.setPolicy("rules: []"); } }));
twins("policy-changed", "the far end of such a flow speaks", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.ack, payload: filler(50) })), (v6) => ({ fresh: true, prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); s.setPolicy("rules: []"); } }));
twins("policy-changed", "a flow that somebody must look into from now on", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, flags: TCP.ack })), (v6) => ({ fresh: true, sandbox: { inspect: true }, prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); s.setPolicy("rules: [{deny: bad.example.com}, {allow: public}]"); } }));
twins("quic", "UDP 443 to an address that a name allows", (s, v6) => out(udpFrame(s.to(site(v6)), { ...https, payload: filler(200) })), pinned);
twins("quic", "a second time", (s, v6) => out(udpFrame(s.to(site(v6)), https)), (v6) => ({ ...pinned(v6), prepare: (s) => { s.out(udpFrame(s.to(site(v6)), https)); } }));
const floored = (rules: string, floor: string): Partial<Row> => ({ sandbox: { policy: `rules: [${rules}]`, floor: `rules: [${floor}]`, inspect: true } });
twins("floor", "the policy allows and the floor denies", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => floored("{allow: public}", `{deny: "${site(v6)}"}, {allow: public}`));
twins("floor", "the floor's default", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => floored("{allow: public}", "{allow: 198.51.0.0/16}"));
twins("floor", "a name that only the policy knows", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, destinationPort: 22 })), (v6) => ({ ...floored("{allow: api.example.com}", "{allow: other.example.com}"), pins: [{ address: site(v6), names: ["api.example.com"] }] }));
twins("rule-allow", "a name that both allow", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, destinationPort: 22 })), (v6) => ({ ...floored("{allow: api.example.com}", "{allow: suffix:example.com}"), pins: [{ address: site(v6), names: ["api.example.com"] }] }));
twins("intercepted", "the floor is by name, the policy by address", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({ ...floored("{allow: public}", "{allow: suffix:example.com}"), pins: [{ address: site(v6), names: ["api.example.com"] }] }));
twins("default-public", "the policy denies, whatever the floor", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => floored("", "{allow: public}"));
for (const [proto, port] of [["udp", 853], ["udp", 5353], ["udp", 5355], ["udp", 137], ["tcp", 853], ["tcp", 5355]] as const) {
  const build = proto === "udp" ? udpFrame : tcpFrame;
  twins("name-service", `${proto} ${port}, whatever the rules`, (s, v6) => out(build(s.to(site(v6)), { sourcePort: 40000, destinationPort: port })), () => policy("{allow: any}", "default_egress: allow"));
}
for (const [what, to] of [["no address", "::"], ["a group", "ff02::1"], ["this network", "0.0.0.1"], ["everybody", "255.255.255.255"], ["a group", "224.0.0.1"]] as const) {
  row("name-service", `DNS to ${what} (${to}), which the resolver cannot answer for`, (s) => out(udpFrame(s.to(to), { sourcePort: 40000, destinationPort: 53 })), policy("{allow: any}", "default_egress: allow"));
}
row("name-service", "multicast DNS", (s) => out(udpFrame(s.to("224.0.0.251"), { sourcePort: 5353, destinationPort: 5353 })), policy("{allow: any}", "default_egress: allow"));
row("icmp-type", "timestamp request", (s) => out(ipFrame(s.to(SITE.v4), PROTOCOL.icmp, icmp({ type: 13, payload: filler(12) }))));
row("icmp-type", "echo with a code", (s) => out(ipFrame(s.to(SITE.v4), PROTOCOL.icmp, icmp({ type: 8, code: 1 }))));
row("icmp-type", "redirect to the guest", (s) => into(ipFrame(s.from(SITE.v4), PROTOCOL.icmp, icmp({ type: 5, code: 1, rest: concat([Uint8Array.of(10, 0, 0, 9)]), payload: filler(28) }))));
row("icmp-type", "ICMPv6 multicast listener report", (s) => out(ipFrame(s.to(SITE.v6), PROTOCOL.icmpv6, icmpv6(GUEST.v6, SITE.v6, { type: 143, payload: filler(4) }))));
twins("icmp-type", "echo reply to a request that never was", (s, v6) => out(echoFrame(s.to(site(v6)), { reply: true })));
twins("icmp-type", "error that quotes no flow", (s, v6) => into(errorFor(s, v6)));
twins("icmp-type", "error of the guest", (s, v6) => out(v6
  ? ipFrame(s.to(SITE.v6), PROTOCOL.icmpv6, icmpv6(GUEST.v6, SITE.v6, { type: 1, code: 4, payload: filler(48) })) : ipFrame(s.to(SITE.v4), PROTOCOL.icmp, icmp({ type: 3, code: 3, payload: filler(28) }))));
for (const [name, proto] of [["GRE", PROTOCOL.gre], ["IP in IP", PROTOCOL.ipip], ["6in4", PROTOCOL.ipv6], ["ESP", PROTOCOL.esp], ["SCTP", PROTOCOL.sctp]] as const) {
  twins("protocol", name, (s, v6) => out(ipFrame(s.to(site(v6)), proto, filler(40))));
}
twins("protocol", "ICMP of the other family", (s, v6) => out(ipFrame(s.to(site(v6)), v6 ? PROTOCOL.icmp : PROTOCOL.icmpv6, icmp({ type: v6 ? 8 : 128 }))), () => policy("{allow: any, proto: [1, 58]}"));
twins("rule-allow", "GRE, named by its number", (s, v6) => out(ipFrame(s.to(site(v6)), PROTOCOL.gre, filler(40))), () => policy("{allow: public, proto: 47}"));

/* ---- denied: identity ---- */
twins("source-mac", "another MAC", (s, v6) => out(tcpFrame(s.to(site(v6), { sourceMac: "02:00:00:00:00:09" }), https)));
twins("source-mac", "another MAC than the learned one", (s, v6) => out(tcpFrame(s.to(site(v6), { sourceMac: "02:00:00:00:00:09" }), https)), (v6) => ({ fresh: true, sandbox: { identity: learns }, prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
row("source-mac", "a group MAC is not learned", (s) => out(tcpFrame(s.to(SITE.v4, { sourceMac: "03:00:00:00:00:09" }), https)), { fresh: true, sandbox: { identity: learns } });
twins("source-address", "another source address", (s, v6) => out(tcpFrame(s.to(site(v6), { source: v6 ? "fd00::9" : "10.0.0.9" }), https)));
twins("source-address", "another than the learned one", (s, v6) => out(tcpFrame(s.to(site(v6), { source: v6 ? "fd00::9" : "10.0.0.9" }), https)), (v6) => ({ fresh: true, sandbox: { identity: learns }, prepare: (s) => { s.out(tcpFrame(s.to(site(v6)), https)); } }));
twins("source-address", "the gateway's is not learned", (s, v6) => out(tcpFrame(s.to(site(v6), { source: gateway(v6) }), https)), () => ({ fresh: true, sandbox: { identity: learns } }));
twins("source-address", "the unspecified address", (s, v6) => out(udpFrame(s.to(site(v6), { source: v6 ? "::" : "0.0.0.0" }), https)));
// The lab's groups say that the host has these two.
twins("source-address", "another address of the host in the tap's prefix is not learned", (s, v6) => out(tcpFrame(s.to(site(v6), { source: v6 ? HOST.gateway6 : HOST.gateway4 }), https)), () => ({ fresh: true, sandbox: { identity: { ...learns, gateways: [] } } }));
row("arp-spoof", "ARP for another address of the host, which is not learned", () => out(arpFrame({ operation: 2, senderMac: GUEST.mac, senderIp: HOST.gateway4, targetIp: "10.0.0.9" })), { fresh: true, sandbox: { identity: { ...learns, gateways: [] } } });
row("source-address", "DHCPv6 from a link-local address that is not the guest's", (s) => out(udpFrame(s.to("ff02::1:2", { source: "fe80::bad" }), { sourcePort: 546, destinationPort: 547, payload: filler(40) })));
twins("address-unknown", "nothing given and nothing to learn from", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => ({ sandbox: { identity: { guest: [], learnPrefixes: [] } } }));
const wide = { sandbox: { identity: { guest: [prefix("10.0.0.0/24"), prefix("fd00::/64")] } } };
twins("rule-allow", "any address of a prefix that was given", (s, v6) => out(tcpFrame(s.to(site(v6), { source: v6 ? "fd00::77" : "10.0.0.77" }), https)), () => wide);
twins("source-address", "the gateway's address, in a prefix that was given", (s, v6) => out(tcpFrame(s.to(site(v6), { source: gateway(v6) }), https)), () => wide);
twins("source-address", "the same, in a flow of another address of it", (s, v6) => out(tcpFrame(s.to(site(v6), { source: gateway(v6) }), { ...https, flags: TCP.ack })), (v6) => ({ ...wide, prepare: (s) => { s.out(tcpFrame(s.to(site(v6), { source: v6 ? "fd00::77" : "10.0.0.77" }), https)); } }));
row("arp-spoof", "ARP in the name of the gateway, in a prefix that was given", () => out(arpFrom({ targetIp: "10.0.0.77", senderIp: HOST.gateway4, operation: 2 })), wide);
row("nd-spoof", "advertisement of the gateway's address, in a prefix that was given", (s) => out(nd(s, (source, to) => neighbourAdvertisement(source, to, HOST.gateway6, GUEST.mac))), wide);
row("arp-spoof", "ARP with another sender address", () => out(arpFrom({ targetIp: HOST.gateway4, senderIp: "10.0.0.9" })));
row("arp-spoof", "ARP with another sender MAC", () => out(arpFrom({ targetIp: HOST.gateway4, senderMac: "02:00:00:00:00:09" })));
row("arp-spoof", "ARP reply for the gateway", () => out(arpFrom({ targetIp: GUEST.v4, senderIp: HOST.gateway4, operation: 2 })));
row("arp-target", "ARP for a sibling", () => out(arpFrom({ targetIp: "10.0.0.77" })));
row("arp-target", "neighbour solicitation for a sibling", (s) => out(nd(s, (source, destination) => neighbourSolicitation(source, destination, "fd00::77", GUEST.mac), solicited("fd00::77"))));
row("neighbour", "ARP for an address that a rule allows", () => out(arpFrom({ targetIp: "10.0.0.77" })), policy("{allow: 10.0.0.77}"));
row("nd-spoof", "advertisement of the gateway's address", (s) => out(nd(s, (source, destination) => neighbourAdvertisement(source, destination, HOST.gateway6, GUEST.mac))));
row("nd-spoof", "advertisement with another MAC", (s) => out(nd(s, (source, destination) => neighbourAdvertisement(source, destination, GUEST.v6, "02:00:00:00:00:09"))));
row("nd-spoof", "solicitation from another source", (s) => out(nd(s, (source, destination) => neighbourSolicitation(source, destination, HOST.gateway6, GUEST.mac), "ff02::1", { source: "fd00::9" })));
row("nd-spoof", "solicitation with a hop limit below 255", (s) => out(nd(s, (source, destination) => neighbourSolicitation(source, destination, HOST.gateway6, GUEST.mac), "ff02::1", { hopLimit: 64 })));
row("nd-spoof", "solicitation to the guest from further away", (s) => into(ipFrame(s.from(SITE.v6), PROTOCOL.icmpv6, neighbourSolicitation(SITE.v6, GUEST.v6, GUEST.v6))));
row("neighbour", "a known neighbour is tried again by its own address", (s) => out(nd(s, (source, destination) => neighbourSolicitation(source, destination, HOST.gateway6, GUEST.mac), HOST.gateway6)));
row("neighbour", "advertisement to a link-local address that asked", (s) => out(nd(s, (source, destination) => neighbourAdvertisement(source, destination, GUEST.v6, GUEST.mac), "fe80::1")));
row("neighbour", "advertisement to a neighbour in the tap's prefix", (s) => out(nd(s, (source, destination) => neighbourAdvertisement(source, destination, GUEST.v6, GUEST.mac), "fd00::77")), { sandbox: { identity: { learnPrefixes: [prefix("fd00::/64")] } } });
// Who asks in its place makes a sibling do without its address.
const detect = (s: LabSandbox, target: string): Bytes => nd(s, (source, destination) => neighbourSolicitation(source, destination, target), solicited(target), { source: "::" });
row("neighbour", "duplicate address detection of a link-local address, again", (s) => out(detect(s, "fe80::a")), { fresh: true, sandbox: { identity: learns }, prepare: (s) => { s.out(detect(s, "fe80::a")); } });
row("neighbour", "duplicate address detection of another address in the prefix, while none is known", (s) => out(detect(s, "fd00::b")), { fresh: true, sandbox: { identity: learns }, prepare: (s) => { s.out(detect(s, "fd00::a")); } });
row("nd-spoof", "duplicate address detection of a second link-local address", (s) => out(detect(s, "fe80::b")), { fresh: true, sandbox: { identity: learns }, prepare: (s) => { s.out(detect(s, "fe80::a")); } });
row("nd-spoof", "duplicate address detection of another address, when one is known", (s) => out(detect(s, "fd00::b")), { fresh: true, sandbox: { identity: learns }, prepare: (s) => { s.out(tcpFrame(s.to(SITE.v6), https)); } });
row("neighbour", "duplicate address detection with a nonce", (s) => out(ndWith(s, 135, GUEST.v6, Uint8Array.of(14, 1, 1, 2, 3, 4, 5, 6), solicited(GUEST.v6), "::")));
// A router forwards neighbour discovery like anything else: only its receiver looks at the hop limit.
for (const [where, destination] of [["a public address", SITE.v6], ["a metadata endpoint", "fd00:ec2::254"], ["a private address", "fd99::1"], ["the host's other address", HOST.uplink6], ["a group beyond the link", "ff05::1"], ["all nodes", "ff02::1"]] as const) {
  row("nd-spoof", `solicitation for the gateway to ${where}`, (s) => out(nd(s, (source, to) => neighbourSolicitation(source, to, HOST.gateway6, GUEST.mac), destination)));
  row("nd-spoof", `solicitation to ${where}, of nobody's`, (s) => out(nd(s, (source, to) => neighbourSolicitation(source, to, GUEST.v6), destination, { source: "::" })));
  if (destination !== "ff02::1") row("nd-spoof", `advertisement of the guest to ${where}`, (s) => out(nd(s, (source, to) => neighbourAdvertisement(source, to, GUEST.v6, GUEST.mac), destination)));
}
row("nd-spoof", "solicitation for a reachable address beyond the link, to itself", (s) => out(nd(s, (source, to) => neighbourSolicitation(source, to, SITE.v6, GUEST.mac), SITE.v6)));
row("nd-spoof", "an option that no host sends, with octets of the guest's choice", (s) => out(ndWith(s, 136, GUEST.v6, concat([Uint8Array.of(200, 2), filler(14)]), HOST.gateway6)));
row("nd-spoof", "a nonce that is longer than one", (s) => out(ndWith(s, 135, HOST.gateway6, concat([Uint8Array.of(14, 2), filler(14)]), solicited(HOST.gateway6))));
row("length", "ARP with more behind it than padding", () => out(concat([arpFrom({ targetIp: HOST.gateway4 }), filler(19)])));
row("neighbour", "ARP with padding", () => out(concat([arpFrom({ targetIp: HOST.gateway4 }), new Uint8Array(18)])));
const told = (address: string, rule: string, seconds = 60): Partial<Row> => ({ ...policy(rule), pins: [{ address, names: ["db.corp.example"], seconds }] });
const database = "{allow: db.corp.example, proto: tcp, ports: [5432]}";
const askFor4 = (): Step => out(arpFrom({ targetIp: "10.0.0.78" }));
const askFor6 = (s: LabSandbox): Step => out(nd(s, (source, to) => neighbourSolicitation(source, to, "fd00::78", GUEST.mac), solicited("fd00::78")));
row("neighbour", "ARP for an address that was told for an allowed name", askFor4, told("10.0.0.78", database));
row("neighbour", "neighbour solicitation for an address that was told for an allowed name", askFor6, told("fd00::78", database));
row("neighbour", "ARP for an address whose pin has expired: its flows live on", askFor4, told("10.0.0.78", database, -60));
row("arp-target", "ARP for an address that was told for a name of an ingress rule", askFor4, told("10.0.0.78", "{allow: db.corp.example, direction: ingress, proto: tcp, ports: [5432]}"));
row("arp-target", "neighbour solicitation for an address that was told for a name that is denied", askFor6, told("fd00::78", "{deny: db.corp.example, proto: tcp, ports: [5432]}"));
row("router-message", "router advertisement", (s) => out(nd(s, (source, destination) => routerAdvertisement(source, destination, { sourceMac: GUEST.mac, prefix: { address: "fd00::", length: 64 } }), "ff02::1", { source: GUEST.linkLocal })));
row("router-message", "redirect", (s) => out(nd(s, (source, destination) => redirect6(source, destination, GUEST.linkLocal, SITE.v6), "ff02::1", { source: GUEST.linkLocal })));
row("router-message", "router solicitation", (s) => out(nd(s, (source) => routerSolicitation(source, GUEST.mac), "ff02::2", { source: GUEST.linkLocal })));
row("dhcp-server", "DHCP offer of the guest", (s) => out(udpFrame(s.to("255.255.255.255"), { sourcePort: 67, destinationPort: 68, payload: filler(240) })));
row("dhcp-server", "DHCPv6 advertise of the guest", (s) => out(udpFrame(s.to("fe80::1"), { sourcePort: 547, destinationPort: 546, payload: filler(40) })));
// Most clients look at the port to which it goes, and not at where it comes from.
row("dhcp-server", "DHCP offer of the guest from another port", (s) => out(udpFrame(s.to(SITE.v4), { sourcePort: 6767, destinationPort: 68, payload: filler(240) })));
row("dhcp-server", "DHCPv6 advertise of the guest from another port", (s) => out(udpFrame(s.to(SITE.v6), { sourcePort: 6767, destinationPort: 546, payload: filler(40) })));
twins("not-for-guest", "inbound to another address", (s, v6) => into(tcpFrame(s.from(site(v6), { destination: v6 ? "fd00::9" : "10.0.0.9" }), https)));
row("not-for-guest", "inbound broadcast", (s) => into(udpFrame(s.from(SITE.v4, { destination: "255.255.255.255" }), https)));

/* ---- denied: form ---- */
twins("vlan", "one tag", (s, v6) => out(addTags(tcpFrame(s.to(site(v6)), https), [{}])));
twins("vlan", "two tags", (s, v6) => out(addTags(tcpFrame(s.to(site(v6)), https), [{ tpid: 0x88a8 }, {}])));
twins("vlan", "a tag, inbound", (s, v6) => into(addTags(tcpFrame(s.from(site(v6)), https), [{ tci: 5 }])));
for (const [name, type] of [["MPLS", 0x8847], ["PPPoE", 0x8864], ["LLDP", 0x88cc], ["an experimental EtherType", 0x88b5], ["IEEE 802.3 with a length", 0x0040]] as const) {
  row("ethertype", name, () => out(ethernet({ destination: HOST.tapMac, source: GUEST.mac, type }, filler(64))));
}
row("ethertype", "an EtherType of no meaning, inbound", () => into(ethernet({ destination: GUEST.mac, source: HOST.tapMac, type: 0x88b5 }, filler(64))));
twins("truncated", "TCP header cut short, lengths in agreement", (s, v6) => out(ipFrame(s.to(site(v6)), PROTOCOL.tcp, filler(8))));
twins("truncated", "UDP header cut short", (s, v6) => out(ipFrame(s.to(site(v6)), PROTOCOL.udp, filler(4))));
twins("truncated", "ICMP header cut short", (s, v6) => out(ipFrame(s.to(site(v6)), v6 ? PROTOCOL.icmpv6 : PROTOCOL.icmp, Uint8Array.of(v6 ? 128 : 8, 0, 0, 0))));
row("truncated", "ARP cut short", () => out(arpFrom({ targetIp: HOST.gateway4 }).subarray(0, 36)));
twins("length", "more octets than the header says", (s, v6) => out(concat([tcpFrame(s.to(site(v6)), { ...https, payload: filler(40) }), filler(5)])));
twins("length", "fewer octets than the header says", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, payload: filler(40) }).subarray(0, -1)));
twins("length", "UDP length below eight", (s, v6) => out(udpFrame(s.to(site(v6)), { ...https, length: 7 })));
twins("length", "UDP length that is not the datagram's", (s, v6) => out(udpFrame(s.to(site(v6)), { ...https, length: 9 })));
twins("length", "TCP data offset below five", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, dataOffset: 4 })));
twins("length", "TCP data offset beyond the segment", (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, dataOffset: 6 })));
twins("length", "another version in the header", (s, v6) => out(tcpFrame(s.to(site(v6)), https, v6 ? { ipv6: { version: 4 } } : { ipv4: { version: 6 } })));
row("length", "IPv4 header length below five", (s) => out(tcpFrame(s.to(SITE.v4), https, { ipv4: { ihl: 4 } })));
row("mapped-address", "IPv4-mapped destination in an IPv6 header", (s) => out(tcpFrame(s.to("::ffff:93.184.216.34"), https)), { prepare: (s) => { s.out(tcpFrame(s.to("93.184.216.34"), https)); } });
row("mapped-address", "IPv4-mapped source in an IPv6 header", (s) => out(tcpFrame(s.to(SITE.v6, { source: "::ffff:10.0.0.2" }), https)));
row("mapped-address", "the same, inbound", (s) => into(tcpFrame(s.from("::ffff:93.184.216.34"), https)));
row("ip-options", "a source route", (s) => out(tcpFrame(s.to(SITE.v4), https, { ipv4: { options: Uint8Array.of(131, 7, 4, 10, 0, 0, 1) } })));
row("extension-header", "routing header", (s) => out(tcpFrame(s.to(SITE.v6), https, { extensions: [routingHeader(0, 1, [SITE.other6])] })));
row("extension-header", "hop-by-hop options in second place", (s) => out(tcpFrame(s.to(SITE.v6), https, { extensions: [destinationOptions(), hopByHop()] })));
row("extension-header", "two fragment headers", (s) => out(tcpFrame(s.to(SITE.v6), https, { extensions: [fragmentHeader(0, false, 1), fragmentHeader(0, false, 2)] })));
row("extension-header", "more than four", (s) => out(tcpFrame(s.to(SITE.v6), https, { extensions: [1, 2, 3, 4, 5].map(() => destinationOptions()) })));
row("extension-header", "options longer than the packet", (s) => out(tcpFrame(s.to(SITE.v6), https, { extensions: [{ ...destinationOptions(), length: 200 }] })));
row("rule-allow", "hop-by-hop and destination options are walked", (s) => out(tcpFrame(s.to(SITE.v6), https, { extensions: [hopByHop(), destinationOptions()] })));
twins("fragment", "a first fragment without the whole TCP header", (s, v6) => out(fragment(s.to(site(v6)), PROTOCOL.tcp, tcp(own(v6), site(v6), https).subarray(0, 16), 0, true)));
twins("fragment", "a later one without a first", (s, v6) => out(pieces(s, v6)[1]!));
twins("fragment", "a later one behind a first that passed under a former policy", (s, v6) => out(pieces(s, v6)[1]!), (v6) => ({ fresh: true, prepare: (s) => { s.out(pieces(s, v6)[0]!); s.setPolicy("rules: []"); } }));
twins("fragment", "a later one that starts inside the first", (s, v6) => out(fragment(s.to(site(v6)), PROTOCOL.udp, filler(64), 8, false)), (v6) => ({ prepare: (s) => { s.out(pieces(s, v6)[0]!); } }));
twins("fragment", "port 53 in fragments", (s, v6) => out(fragments(s.to(site(v6)), PROTOCOL.udp, udp(own(v6), site(v6), { sourcePort: 5000, destinationPort: 53, payload: filler(100) }), [32])[0]!));
twins("fragment", "beyond the largest datagram", (s, v6) => out(fragment(s.to(site(v6)), PROTOCOL.udp, filler(64), 65528, false)));
row("fragment", "the reserved flag", (s) => out(tcpFrame(s.to(SITE.v4), https, { ipv4: { reservedFlag: true } })));
for (const [name, flags] of [["no flags", 0], ["SYN and FIN", TCP.syn | TCP.fin], ["SYN and RST", TCP.syn | TCP.rst], ["only PSH and URG", TCP.psh | TCP.urg]] as const) {
  twins("tcp-flags", name, (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, flags })));
}
twins("gso", "segmentation of an echo", (s, v6) => out(echoFrame(s.to(site(v6)), { payload: filler(200) }), { gsoSize: 100 }));
twins("gso", "segmentation of a fragment", (s, v6) => out(pieces(s, v6)[0]!, { gsoSize: 100 }));
twins("fragment", "segmentation of a query", (s, v6) => out(dnsQuery(s, v6), { gsoSize: 10 }));

/* ---- denied: resources and faults ---- */
twins("flow-table-full", "one flow more than there is room for", (s, v6) => out(udpFrame(s.to(site(v6)), { sourcePort: 9999, destinationPort: 443 })), (v6) => ({ sandbox: { flows: 16 }, prepare: (s) => { for (let i = 0; i < 16; i++) s.out(udpFrame(s.to(site(v6)), { sourcePort: 1000 + i, destinationPort: 443 })); } }));
// Another CPU used the flow after this one had read the time: as seen from here, in the moment to come.
twins("established", "a flow that another CPU has just used", (s, v6) => into(tcpFrame(s.from(site(v6)), { sourcePort: 443, destinationPort: 40000, flags: TCP.ack })), () => ({ fresh: true, prepare: (s) => {
  for (const v6 of [false, true]) s.out(tcpFrame(s.to(site(v6)), https));
  s.ageFlows(-5);
} }));
twins("flow-table-full", "flows that other CPUs use while room is looked for keep their places", (s, v6) => out(udpFrame(s.to(site(v6)), { sourcePort: 9999, destinationPort: 443 })), (v6) => ({ sandbox: { flows: 16 }, fresh: true, prepare: (s) => {
  for (let i = 0; i < 16; i++) s.out(udpFrame(s.to(site(v6)), { sourcePort: 1000 + i, destinationPort: 443 }));
  s.ageFlows(-5);
} }));
for (const [name, seconds, reason] of [["make room after a second", 2, "rule-allow"], ["keep their places for a second", 0, "flow-table-full"]] as const) {
  twins(reason, `in a full table closing flows ${name}`, (s, v6) => out(tcpFrame(s.to(site(v6)), { ...https, sourcePort: 9999 })), (v6) => ({ sandbox: { flows: 16 }, fresh: true, prepare: (s) => {
    for (let i = 0; i < 16; i++) for (const flags of [TCP.syn, TCP.rst]) s.out(tcpFrame(s.to(site(v6)), { ...https, sourcePort: 1000 + i, flags }));
    s.ageFlows(seconds);
  } }));
}
twins("redirect-table-full", "more queries at a time than there are places", (s, v6) => out(dnsQuery(s, v6)), (v6) => ({ prepare: (s) => fillRedirects(s, v6) }));
twins("dns-redirect", "a connection that was reset leaves its place at once", (s, v6) => out(dnsQuery(s, v6)), (v6) => ({ fresh: true, prepare: (s) => {
  fillRedirects(s, v6);
  for (const { guestPort } of s.redirects()) s.out(tcpFrame(s.to(v6 ? "2620:fe::fe" : "9.9.9.9"), { sourcePort: guestPort, destinationPort: 53, flags: TCP.rst }));
} }));
twins("intercepted", "connections that were only begun leave their places when the agent has given them up", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({ ...pinned(v6), sandbox: { ...pinned(v6).sandbox, flows: 65_536 }, fresh: true, prepare: (s) => {
  fillIntercepted(s, v6);
  s.ageRedirects(75, "intercepted");
} }));
twins("redirect-table-full", "connections that stand keep their places for as long", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({ ...pinned(v6), sandbox: { ...pinned(v6).sandbox, flows: 65_536 }, fresh: true, prepare: (s) => {
  fillIntercepted(s, v6);
  for (const { guestPort } of s.redirects("intercepted")) s.out(tcpFrame(s.to(site(v6)), { ...https, sourcePort: guestPort, flags: TCP.ack }));
  s.ageRedirects(75, "intercepted");
} }));
twins("redirect-table-full", "more queries under way than the resolver's queue has room for", (s, v6) => out(dnsQuery(s, v6)), (v6) => ({ fresh: true, prepare: (s) => { for (let i = 0; i < 512; i++) s.out(dnsQuery(s, v6)); } }));
twins("dns-redirect", "an answer makes room for the next query", (s, v6) => out(dnsQuery(s, v6)), (v6) => ({ fresh: true, prepare: (s, lab) => {
  for (let i = 0; i < 512; i++) s.out(dnsQuery(s, v6));
  lab.run("from_resolver", fromAgent(s, v6, 16384 + s.redirects()[0]!.index));
} }));
twins("address-table-full", "one address more of its prefix than it may have in use", (s, v6) => out(tcpFrame(s.to(site(v6), { source: v6 ? "fd00:7::5" : "10.7.0.5" }), https)), (v6) => ({
  sandbox: { identity: { guest: ["10.7.0.0/16", "fd00:7::/64"].map(prefix) }, addresses: 4 }, fresh: true, prepare: (s) => { for (let i = 1; i < 5; i++) s.out(tcpFrame(s.to(site(v6), { source: v6 ? `fd00:7::${i}` : `10.7.0.${i}` }), https)); },
}));
twins("not-enforced", "a device that carries no sandbox", (s, v6) => out(tcpFrame(s.to(site(v6)), https), { ifindex: 1 }));
twins("not-enforced", "the same, inbound", (s, v6) => into(tcpFrame(s.from(site(v6)), https), { ifindex: 1 }));
twins("not-enforced", "a slot out of force", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => ({ fresh: true, prepare: (s, lab) => { lab.instance.map("sandboxes").update(slotKey(s.slot), Buffer.alloc(lab.instance.map("sandboxes").info.valueSize)); } }));
twins("not-enforced", "a device of a former generation", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => ({ fresh: true, prepare: (s, lab) => lab.globals.setTap(s.ifindex, s.slot, s.tables.generation + 1) }));
twins("not-enforced", "an answer for a slot that is empty", (s, v6) => answer(fromAgent(s, v6, 16384, { slot: SLOTS })));
for (const name of ["flows", "policies", "prefixes"] as const) {
  twins("map-missing", `no ${name}`, (s, v6) => out(tcpFrame(s.to(site(v6)), https)), (v6) => ({
    ...policy(`{allow: "${v6 ? "2606:4700::/32" : "93.184.216.0/24"}"}`), fresh: true, prepare: (s, lab) => {
      lab.instance.map(name === "flows" ? "flows" : name === "policies" ? "policies" : v6 ? "prefixes6" : "prefixes4").delete(slotKey(name === "flows" ? s.slot : s.slot * 4 + 1));
    },
  }));
}
twins("map-missing", "no table of fragments", (s, v6) => out(pieces(s, v6)[1]!), () => ({ fresh: true, prepare: (s, lab) => { lab.instance.map("fragments").delete(slotKey(s.slot)); } }));
twins("agent-gone", "a query while no agent runs", (s, v6) => out(dnsQuery(s, v6)), () => ({ prepare: (_s, lab) => lab.setResolver(false) }));
twins("agent-gone", "a query over TCP", (s, v6) => out(tcpFrame(s.to(site(v6)), { sourcePort: 40000, destinationPort: 53 })), () => ({ prepare: (_s, lab) => lab.setResolver(false) }));
twins("agent-gone", "what the agent's namespace says of a query that no socket takes", (s, v6) => answer(unheard(s, v6, 16384 + s.redirects()[0]!.index)), (v6) => ({ prepare: (s) => { s.out(dnsQuery(s, v6)); } }));
twins("unsolicited-answer", "the same of a query that was never asked", (s, v6) => answer(unheard(s, v6, 16384 + 7)));
twins("unsolicited-answer", "the same of another port", (s, v6) => answer(unheard(s, v6, 16384 + s.redirects()[0]!.index, { port: 443 })), (v6) => ({ prepare: (s) => { s.out(dnsQuery(s, v6)); } }));
twins("unsolicited-answer", "another error than that nobody listens", (s, v6) => answer(unheard(s, v6, 16384 + s.redirects()[0]!.index, { code: 1 })), (v6) => ({ prepare: (s) => { s.out(dnsQuery(s, v6)); } }));
twins("map-missing", "the policy in the slot is another", (s, v6) => out(tcpFrame(s.to(site(v6)), https)), () => ({ fresh: true, prepare: (s, lab) => {
  const record = lab.instance.map("sandboxes").lookup(slotKey(s.slot))!;
  record.writeBigUInt64LE(record.readBigUInt64LE(8) + 2n, 8);
  lab.instance.map("sandboxes").update(slotKey(s.slot), record);
} }));
twins("unsolicited-answer", "an answer that nobody waits for", (s, v6) => answer(fromAgent(s, v6, 16384 + 7)));
twins("unsolicited-answer", "the same answer twice", (s, v6) => answer(fromAgent(s, v6, 16384 + s.redirects()[0]!.index)), (v6) => ({ prepare: (s, lab) => {
  s.out(dnsQuery(s, v6));
  lab.run("from_resolver", fromAgent(s, v6, 16384 + s.redirects()[0]!.index));
} }));
twins("unsolicited-answer", "from another port", (s, v6) => answer(fromAgent(s, v6, 16384 + s.redirects()[0]!.index, { sourcePort: 54 })), (v6) => ({ prepare: (s) => { s.out(dnsQuery(s, v6)); } }));
twins("unsolicited-answer", "from another address", (s, v6) => answer(fromAgent(s, v6, 16384 + s.redirects()[0]!.index, { source: v6 ? "fdee::7" : "240.0.0.7" })), (v6) => ({ prepare: (s) => { s.out(dnsQuery(s, v6)); } }));
row("unsolicited-answer", "ARP at the resolver's device", () => answer(arpFrame({ senderMac: RESOLVER.farMac, senderIp: RESOLVER.v4, targetIp: "240.0.1.0" })));

function solicited(target: string): string { return Array.from({ length: 8 }, (_, i) => ((solicitedNode(target)[2 * i]! << 8) | solicitedNode(target)[2 * i + 1]!).toString(16)).join(":"); }

/** A datagram to port 443 in two fragments. */
function pieces(sandbox: LabSandbox, v6: boolean): Bytes[] {
  return fragments(sandbox.to(site(v6)), PROTOCOL.udp, udp(own(v6), site(v6), { ...https, payload: filler(100) }), [64]);
}

/** A router's unreachable for the guest's UDP packet to port 443. */
function errorFor(sandbox: LabSandbox, v6: boolean): Bytes {
  const quoted = udpFrame(sandbox.to(site(v6)), https).subarray(14);
  const ends = sandbox.from(other(v6));
  return v6 ? ipFrame(ends, PROTOCOL.icmpv6, icmpv6(other(v6), GUEST.v6, { type: 1, code: 4, payload: quoted })) : ipFrame(ends, PROTOCOL.icmp, icmp({ type: 3, code: 3, payload: quoted }));
}

/** A port unreachable from the agent's namespace, for a query that it was shown from this port. */
function unheard(sandbox: LabSandbox, v6: boolean, shownPort: number, { port = 53, code = v6 ? 4 : 3 } = {}): Bytes {
  const agent = resolverOf(v6), guest = shown(v6, sandbox.slot);
  const quoted = udpFrame({ sourceMac: RESOLVER.nearMac, destinationMac: RESOLVER.farMac, source: guest, destination: agent }, { sourcePort: shownPort, destinationPort: port, payload: filler(30) }).subarray(14);
  const ends = { sourceMac: RESOLVER.farMac, destinationMac: RESOLVER.nearMac, source: agent, destination: guest };
  return v6 ? ipFrame(ends, PROTOCOL.icmpv6, icmpv6(agent, guest, { type: 1, code, payload: quoted })) : ipFrame(ends, PROTOCOL.icmp, icmp({ type: 3, code, payload: quoted }));
}

function fillRedirects(sandbox: LabSandbox, v6: boolean): void {
  // The place of a query depends on its port: until every place is taken, some find theirs full. Over TCP they keep it for minutes.
  for (let port = 6000; sandbox.redirects().length < 512; port += 64) {
    sandbox.nextSecond();
    for (let i = 0; i < 64; i++) sandbox.out(tcpFrame(sandbox.to(v6 ? "2620:fe::fe" : "9.9.9.9"), { sourcePort: port + i, destinationPort: 53 }));
  }
  sandbox.nextSecond();
}

/** Every place, where it depends on the port which one it is; the flows need a larger table. */
function fillIntercepted(sandbox: LabSandbox, v6: boolean): void {
  for (let port = 1024; sandbox.redirects("intercepted").length < 2_048 && port < 40_000; port += 256) for (let i = 0; i < 256; i++) sandbox.out(tcpFrame(sandbox.to(site(v6)), { ...https, sourcePort: port + i }));
}

describe("reasons", () => {
  let lab: Lab;
  /** Making tables waits for the kernel's grace periods: rows with the same sandbox share one. */
  const shared = new Map<string, LabSandbox>();
  beforeAll(() => { lab = Lab.open(SLOTS); });
  afterAll(() => lab?.close());

  test.each(rows.map((entry) => [entry.reason, entry.name, entry] as const))("%s: %s", (reason, _name, { sandbox: options = {}, pins = [], fresh = false, prepare, step }) => {
    const key = JSON.stringify(options);
    const known = fresh ? undefined : shared.get(key);
    for (const [other, idle] of shared) {
      if (lab.sandboxes.size < SLOTS - 1 || known !== undefined) break;
      idle.close();
      shared.delete(other);
    }
    const sandbox = known ?? lab.sandbox(options);
    if (!fresh) shared.set(key, sandbox);
    try {
      sandbox.forget();
      for (const pin of pins) sandbox.pin(pin);
      prepare?.(sandbox, lab);
      sandbox.counted();
      const { program = "from_guest", frame, options: how } = step(sandbox);
      const outcome = lab.run(program, frame, { ifindex: sandbox.ifindex, ...how });
      expect(outcome.reason).toBe(reason);
      if (outcome.verdict === "deny" && outcome.slot !== null) expect(outcome.event?.reason).toBe(reason);
      // The long way, asked the same in the same state, says the same.
      if (program === "from_guest" && outcome.verdict === "deny") expect(lab.run("from_guest_long", frame, { ifindex: sandbox.ifindex, ...how }).reason).toBe(reason === "policy-changed" ? (sandbox.compiled.intercepts ? "intercepted" : "default-public") : reason);
    } finally {
      lab.setResolver(true);
      if (fresh) sandbox.close();
    }
  });

  test("agent-gone: not told while a successor is expected, and told again afterwards", () => {
    const sandbox = lab.sandbox();
    try {
      const query = dnsQuery(sandbox, false);
      const ask = (): number => lab.run("from_guest", query, { ifindex: sandbox.ifindex }).code;
      lab.globals.expectSuccessor(3_600_000);
      expect(ask()).toBe(CODE.drop);
      // Over by more than a tick: the kernel reads the coarse clock, which is behind by up to one.
      lab.globals.expectSuccessor(-100);
      expect(ask()).toBe(CODE.redirect);
      lab.globals.expectSuccessor(3_600_000);
      lab.setResolver(true);
      lab.setResolver(false);
      expect(ask()).toBe(CODE.redirect);
      // The query itself, its headers alone, is what the guest is told about.
      const left = lab.run("from_guest", query, { ifindex: sandbox.ifindex }).frame;
      expect(Buffer.from(left.subarray(42, 70))).toEqual(Buffer.from(query.subarray(14, 42)));
    } finally {
      lab.setResolver(true);
      sandbox.close();
    }
  });

  test.each([["IPv4", false], ["IPv6", true]])("what a guest may begin in a second that the agent has to serve is bounded, apart for each kind, and what stands goes on (%s)", (_family, v6) => {
    const options = pinned(v6), resolver = v6 ? "2620:fe::fe" : "9.9.9.9";
    const [sandbox, sibling] = [0, 1].map(() => lab.sandbox({ ...options.sandbox, queriesPerSecond: 3, connectionsPerSecond: 4 })) as [LabSandbox, LabSandbox];
    for (const one of [sandbox, sibling]) for (const pin of options.pins ?? []) one.pin(pin);
    let port = 10_000;
    const kinds = {
      query: (one: LabSandbox) => one.out(dnsQuery(one, v6)).reason,
      dns: (one: LabSandbox, flags: number = TCP.syn, from = ++port) => one.out(tcpFrame(one.to(resolver), { sourcePort: from, destinationPort: 53, flags })).reason,
      https: (one: LabSandbox, flags: number = TCP.syn, from = ++port) => one.out(tcpFrame(one.to(site(v6)), { sourcePort: from, destinationPort: 443, flags })).reason,
    };
    /** How many pass before one does not. */
    const most = (ask: () => string, passes: string): number => {
      for (let count = 0; count < 2_000; count++) {
        const reason = ask();
        if (reason === passes) continue;
        expect(reason).toBe("redirect-table-full");
        return count;
      }
      return Infinity;
    };
    try {
      lab.setSecond(1 << 28);
      const first = { dns: port + 1 };
      expect(most(() => kinds.query(sandbox), "dns-redirect")).toBe(3);
      // On one port again and again, so that no table is full: a SYN makes the agent's kernel work whether or not it is known.
      expect(most(() => kinds.dns(sandbox, TCP.syn, first.dns), "dns-redirect")).toBe(512);
      const standing = port + 1;
      expect(most(() => kinds.https(sandbox), "intercepted")).toBe(4);
      // What is of no connection is answered by the agent's kernel: it counts as one.
      expect(kinds.dns(sandbox, TCP.ack)).toBe("redirect-table-full");
      for (const flags of [TCP.ack, TCP.ack | TCP.fin]) expect([kinds.dns(sandbox, flags, first.dns), kinds.https(sandbox, flags, standing)]).toEqual(["dns-redirect", "intercepted"]);
      expect([kinds.query(sibling), kinds.dns(sibling), kinds.https(sibling)]).toEqual(["dns-redirect", "dns-redirect", "intercepted"]);
      sandbox.nextSecond();
      expect([kinds.query(sandbox), kinds.dns(sandbox), kinds.https(sandbox)]).toEqual(["dns-redirect", "dns-redirect", "intercepted"]);
    } finally {
      lab.setSecond();
      for (const one of [sandbox, sibling]) one.close();
    }
  });

  test.each([["IPv4", false], ["IPv6", true]])("places of conversations are counted as taken for as long as nobody else can have them (%s)", (_family, v6) => {
    const options = pinned(v6), sandbox = lab.sandbox(options.sandbox), sibling = lab.sandbox(options.sandbox), resolver = v6 ? "2620:fe::fe" : "9.9.9.9";
    try {
      for (const pin of options.pins ?? []) sandbox.pin(pin);
      expect(sandbox.taken()).toEqual({ redirects: 0, intercepted: 0 });
      for (let i = 0; i < 3; i++) sandbox.out(dnsQuery(sandbox, v6));
      sandbox.out(tcpFrame(sandbox.to(resolver), { sourcePort: 5001, destinationPort: 53 }));
      for (const sourcePort of [5002, 5003, 5004]) sandbox.out(tcpFrame(sandbox.to(site(v6)), { sourcePort, destinationPort: 443 }));
      expect(sandbox.taken()).toEqual({ redirects: 2, intercepted: 3 });
      sandbox.out(tcpFrame(sandbox.to(site(v6)), { sourcePort: 5003, destinationPort: 443, flags: TCP.rst }));
      expect(sandbox.taken()).toEqual({ redirects: 2, intercepted: 2 });
      sandbox.ageRedirects(20);
      expect(sandbox.taken()).toEqual({ redirects: 1, intercepted: 2 });
      expect(sibling.taken()).toEqual({ redirects: 0, intercepted: 0 });
      sandbox.tables.clear();
      expect(sandbox.taken()).toEqual({ redirects: 0, intercepted: 0 });
    } finally {
      for (const one of [sandbox, sibling]) one.close();
    }
  });

  test.each([["IPv4", false], ["IPv6", true]])("a connection to an address that the host has taken is reset at the guest alone: nothing of it goes into the host's own stack (%s)", (_family, v6) => {
    const frame = (one: LabSandbox, flags: number): Outcome => one.out(tcpFrame(one.to(site(v6)), { ...https, flags }));
    const cut = (change: (one: LabSandbox) => void): number => {
      const sandbox = lab.sandbox();
      try {
        expect(frame(sandbox, TCP.syn).reason).toBe("rule-allow");
        change(sandbox);
        const { reason, code } = frame(sandbox, TCP.ack);
        expect(reason).toBe("policy-changed");
        return code;
      } finally {
        lab.groups = hostGroups();
        sandbox.close();
      }
    };
    // The packet itself goes on as the far end's reset, or is the guest's.
    expect(cut((sandbox) => sandbox.setPolicy("rules: []"))).toBe(CODE.next);
    expect(cut(() => { lab.groups = hostGroups([site(v6)]); })).toBe(CODE.redirect);
    expect(cut((sandbox) => { lab.groups = hostGroups([site(v6)]); sandbox.setPolicy("rules: []"); })).toBe(CODE.redirect);
  });

  test("none is without a row, and none is listed as tested elsewhere that has one", () => {
    const here = new Set(rows.map(({ reason }) => reason));
    const missing = reasonNames.filter((name) => !here.has(name) && !(name in ELSEWHERE));
    expect(missing).toEqual([]);
    expect(Object.keys(ELSEWHERE).filter((name) => here.has(name))).toEqual([]);
    expect([...here, ...Object.keys(ELSEWHERE)].filter((name) => !reasonNames.includes(name))).toEqual([]);
  });
});
