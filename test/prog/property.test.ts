/**
 * The kernel program held to the plain model of the policy: random policies, random packets, verdict, rule and reason.
 *
 * Addresses lie at the borders of the policy's prefixes and of the address groups, or embed IPv4 addresses from there; ports lie at
 * the borders of the rules' ranges. What the kernel decides before policy is written out in `expected`.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Address, formatAddress, isV4, type Prefix } from "../../src/addresses/address.js";
import { type GroupTable, groupTable } from "../../src/addresses/groups.js";
import { dohNames } from "../../src/addresses/tables.gen.js";
import { prefixesOf } from "../../src/policy/coverage.js";
import { judgeFlow } from "../../src/policy/flow-judge.js";
import type { Policy } from "../../src/policy/types.js";
import { arpFrame, type Bytes, echo, filler, type Endpoints, icmp, ip, ipFrame, multicastMac, neighbourSolicitation, PROTOCOL, solicitedNode, tcpFrame, udpFrame } from "../lib/frames.js";
import { type ModelPin, referenceVerdict } from "../lib/model.js";
import { address, GUEST, HOST, Lab, type LabSandbox, nowSeconds, policyOf, prefix, SITE } from "./lab.js";

/** A host with translators of every form (RFC 6052) and a few addresses added to groups. */
const world: GroupTable = groupTable({
  hostAddresses: [HOST.gateway4, HOST.gateway6, HOST.uplink4, HOST.uplink6, "93.184.216.1", "8.8.8.8"].map(address),
  connectedPrefixes: ["203.0.114.0/24", "2a00:1::/64", "10.0.0.0/24", "fd00::/64"].map(prefix),
  broadcasts: ["203.0.114.255", "10.0.0.255"].map(address),
  extra: { metadata: ["198.18.7.7", "2a00:3::/48"], reserved: ["151.101.0.0/24"] },
  nat64Prefixes: ["2a01:32::/32", "2a01:40:100::/40", "2a01:48:1::/48", "2a01:56:1:100::/56", "2a01:64:1:1::/64", "2a01:96::/96"],
});
const groupPrefixes = [...world.v4, ...world.v6].map((entry) => entry.prefix);
const names = ["a.example.net", "b.example.net", "example.net", "x.a.example.net", "example.org", "dns.google", "foo.dns.nextdns.io", "c.test.example.org"];

/* ---- policies ---- */

const prefixes = [
  "0.0.0.0/0", "::/0", "2000::/3", "8.0.0.0/5", "10.0.0.0/8", "10.0.0.0/24", "169.254.0.0/16", "93.184.216.0/24", "93.0.0.0/8", "203.0.114.0/24", "fc00::/7", "2a00:1::/64", "2a00::/16", "100.64.0.0/10", "0.0.0.0/1", "::/3",
  "fe80::/64", "64:ff9b::/96", "2002::/16", "2a01:32::/32", "93.184.216.34", "2606:4700::34", "10.0.0.1", "169.254.169.254", "fd00::1", "224.0.0.0/4", "ff02::/16", "127.0.0.1", "::1", "93.184.216.32/31", "2606:4700::/127",
];
const destinations = fc.oneof(
  fc.constantFrom("any", "public", "private", "host", "metadata", "loopback", "link-local", "multicast", "reserved", "doh"),
  fc.constantFrom(...prefixes),
  fc.constantFrom("a.example.net", "'*.example.net'", "suffix:example.net", "'*.a.example.net'", "example.org", "suffix:test.example.org", "'*.dns.nextdns.io'", "dns.google"),
);
const ports = fc.oneof(
  fc.constantFrom("[80]", "[443]", "[80, 443]", "[1-1023]", "[8000-8999, 80]", "[65535]", "[1-65535]", "[255-256]", "[1]", "[53]", "[853]", "[5353]"),
  fc.uniqueArray(fc.integer({ min: 1, max: 65535 }), { minLength: 2, maxLength: 2 }).map(([a, b]) => `[${Math.min(a!, b!)}-${Math.max(a!, b!)}]`),
);
const rule = fc.record({
  action: fc.constantFrom("allow", "deny"), destination: destinations, ingress: fc.boolean(),
  shape: fc.oneof(
    fc.constant(""), ports.map((p) => `, ports: ${p}`), ports.map((p) => `, proto: tcp, ports: ${p}`), ports.map((p) => `, proto: [udp], ports: ${p}`),
    fc.constantFrom(", proto: tcp", ", proto: udp", ", proto: icmp", ", proto: icmpv6", ", proto: [tcp, icmp, 47]", ", proto: 47", ", proto: [0, 255]", ", proto: [1, 58]"),
  ),
}).map(({ action, destination, ingress, shape }) => `  - {${action}: "${destination.replaceAll("'", "")}"${ingress ? ", direction: ingress" : ""}${shape}}`);
const policyText = fc.record({
  egress: fc.constantFrom("allow", "deny"), ingress: fc.constantFrom("allow", "deny"), rules: fc.array(rule, { maxLength: 14 }),
  // Rules that no packet meets but that push the others into other words of the vectors.
  ahead: fc.constantFrom(0, 0, 0, 63, 130, 450),
}).map(({ egress, ingress, rules, ahead }) => {
  const filled = [...Array.from({ length: ahead }, (_, i) => `  - {${i % 2 === 0 ? "allow" : "deny"}: 198.51.100.7, proto: tcp, ports: [${30000 + i}]}`), ...rules];
  return `default_egress: ${egress}\ndefault_ingress: ${ingress}\nrules:${filled.length === 0 ? " []" : `\n${filled.join("\n")}`}\n`;
});

/* ---- packets: picks that become addresses and ports once the policy is known ---- */

const pickAddress = fc.record({
  from: fc.constantFrom("policy", "policy", "group", "pin", "site"), which: fc.nat(), border: fc.constantFrom("first", "last", "before", "behind", "inside"), inside: fc.uint8Array({ minLength: 16, maxLength: 16 }),
  embed: fc.constantFrom(...[null, null, null, "compatible", "translated", "nat64", "local-nat64", "6to4", "teredo-server", "teredo-client", "isatap", "isatap-global", "mapped", 32, 40, 48, 56, 64, 96] as const),
});
const pickPort = fc.record({ from: fc.constantFrom("rule", "rule", "special", "any"), which: fc.nat(), border: fc.constantFrom(-1, 0, 1) });
const pickPacket = fc.record({
  ingress: fc.boolean(), remote: pickAddress, port: pickPort, proto: fc.constantFrom(6, 6, 6, 17, 17, 1, 58, 47, 0, 255, 41, 132, 50),
});
const pickPin = fc.record({ remote: pickAddress, name: fc.constantFrom(...names, ...dohNames.filter((name) => !name.startsWith("*")).slice(0, 2)), expired: fc.boolean() });
type AddressPick = typeof pickAddress extends fc.Arbitrary<infer T> ? T : never;
type PortPick = typeof pickPort extends fc.Arbitrary<infer T> ? T : never;

const specialPorts = [0, 1, 52, 53, 54, 67, 68, 136, 137, 138, 546, 547, 852, 853, 854, 5352, 5353, 5354, 5355, 5356, 65534, 65535];

function add(where: Uint8Array, step: number): Address {
  const out = Uint8Array.from(where);
  for (let i = 15, carry = step; i >= 0 && carry !== 0; i--) {
    const sum = out[i]! + carry;
    out[i] = sum & 255;
    carry = sum >> 8;
  }
  return out;
}

function at({ bytes, length }: Prefix, border: AddressPick["border"], inside: Uint8Array): Address {
  const fill = (chosen: (i: number) => number): Uint8Array => bytes.map((octet, i) => {
    const free = 0xff >> Math.min(8, Math.max(0, length - 8 * i));
    return (octet & ~free) | (chosen(i) & free);
  });
  switch (border) {
    case "first": return fill(() => 0);
    case "last": return fill(() => 255);
    case "before": return add(fill(() => 0), -1);
    case "behind": return add(fill(() => 255), 1);
    case "inside": return fill((i) => inside[i]!);
  }
}

/** An IPv6 address that carries an IPv4 address. */
function embed(v4: Address, how: NonNullable<AddressPick["embed"]>, noise: Uint8Array): Address {
  const [a, b, c, d] = v4.subarray(12) as unknown as [number, number, number, number];
  const put = (text: string, ...octets: readonly (readonly [number, number])[]): Address => {
    const out = Uint8Array.from(address(text));
    for (const [place, octet] of octets) out[place] = octet;
    return out;
  };
  const last = [[12, a], [13, b], [14, c], [15, d]] as const;
  switch (how) {
    case "compatible": return put("::", ...last);
    case "translated": return put("::ffff:0:0:0", ...last);
    case "mapped": return put("::ffff:0:0", ...last);
    case "nat64": return put("64:ff9b::", ...last);
    case "local-nat64": return put("64:ff9b:1::", ...last);
    case "6to4": return put("2002::9", [2, a], [3, b], [4, c], [5, d]);
    case "teredo-server": return put("2001:0::", [4, a], [5, b], [6, c], [7, d], [12, 0x9f], [13, 0x9f]);
    case "teredo-client": return put("2001:0:0909:0909::", [12, a ^ 255], [13, b ^ 255], [14, c ^ 255], [15, d ^ 255]);
    case "isatap": return put("2a00:7::5efe:0:0", ...last);
    case "isatap-global": return put("2a00:7::200:5efe:0:0", ...last);
    case 32: return put("2a01:32::", [4, a], [5, b], [6, c], [7, d], [15, noise[0]!]);
    case 40: return put("2a01:40:100::", [5, a], [6, b], [7, c], [9, d], [15, noise[0]!]);
    case 48: return put("2a01:48:1::", [6, a], [7, b], [9, c], [10, d], [15, noise[0]!]);
    case 56: return put("2a01:56:1:100::", [7, a], [9, b], [10, c], [11, d], [15, noise[0]!]);
    case 64: return put("2a01:64:1:1::", [9, a], [10, b], [11, c], [12, d], [15, noise[0]!]);
    case 96: return put("2a01:96::", ...last);
  }
}

/** The address, and the IP version of the packet that carries it. */
function resolveAddress(pick: AddressPick, policy: Policy, pins: readonly ModelPin[]): { remote: Address; family: 4 | 6 } {
  const own = policy.rules.flatMap(prefixesOf);
  let remote: Address;
  if (pick.from === "pin" && pins.length > 0) remote = pins[pick.which % pins.length]!.address;
  else if (pick.from === "site" || (pick.from === "policy" && own.length === 0)) remote = address([SITE.v4, SITE.v6, SITE.other4, SITE.other6, "1.1.1.1", "2606:4700:4700::1111"][pick.which % 6]!);
  else {
    const list = pick.from === "policy" ? own : groupPrefixes;
    remote = at(list[pick.which % list.length]!, pick.border, pick.inside);
  }
  // Over the end of ::ffff:0:0/96 one comes out of IPv4, and is mapped by chance only where it is meant.
  if (isV4(remote) && pick.embed !== null) return { remote: embed(remote, pick.embed, pick.inside), family: 6 };
  return { remote, family: isV4(remote) ? 4 : 6 };
}

function resolvePort(pick: PortPick, policy: Policy): number {
  const ranges = policy.rules.flatMap(({ ports }) => ports ?? []);
  if (pick.from === "special") return specialPorts[pick.which % specialPorts.length]!;
  if (pick.from === "any" || ranges.length === 0) return pick.which & 0xffff;
  const range = ranges[(pick.which >> 1) % ranges.length]!;
  return ((pick.which & 1) === 0 ? range.first : range.last) + pick.border & 0xffff;
}

interface Packet { readonly direction: "egress" | "ingress"; readonly remote: Address; readonly family: 4 | 6; readonly proto: number; readonly port: number }

/** The guest's port, or the far side's for ingress; unused by the picks above. */
const freePort = (i: number): number => 20_000 + i;

function build(packet: Packet, i: number): Bytes {
  const remote = packet.family === 4 ? packet.remote.subarray(12) : packet.remote;
  const guest = ip(packet.family === 4 ? GUEST.v4 : GUEST.v6);
  const out = packet.direction === "egress";
  const ends: Endpoints = {
    sourceMac: out ? GUEST.mac : HOST.tapMac, destinationMac: out ? HOST.tapMac : GUEST.mac, source: out ? guest : remote, destination: out ? remote : guest,
  };
  const fields = { sourcePort: freePort(i), destinationPort: packet.port };
  if (packet.proto === PROTOCOL.tcp) return tcpFrame(ends, fields);
  if (packet.proto === PROTOCOL.udp) return udpFrame(ends, fields);
  if (packet.proto === (packet.family === 4 ? PROTOCOL.icmp : PROTOCOL.icmpv6)) return ipFrame(ends, packet.proto, echo(ends.source, ends.destination, { id: i }));
  return ipFrame(ends, packet.proto, packet.proto === PROTOCOL.icmp || packet.proto === PROTOCOL.icmpv6 ? icmp({ type: 8 }) : filler(24));
}

const NAME_SERVICES: ReadonlyMap<number, readonly number[]> = new Map([[PROTOCOL.udp, [53, 853, 5353, 5355, 137]], [PROTOCOL.tcp, [53, 853, 5355]]]);
/** Extension headers (RFC 8200) stand for no protocol in an IPv6 packet. */
const WALKED: readonly number[] = [PROTOCOL.hopByHop, PROTOCOL.routing, PROTOCOL.fragment, PROTOCOL.destinationOptions];

function expected(policy: Policy, table: GroupTable, packet: Packet, pins: readonly ModelPin[]): { verdict: string; reason: string; rule: number | null } {
  const { direction, remote, family, proto, port } = packet;
  const out = direction === "egress";
  const ported = proto === PROTOCOL.tcp || proto === PROTOCOL.udp;
  if (family === 6 && isV4(remote)) return { verdict: "deny", reason: "mapped-address", rule: null };
  if (family === 6 && WALKED.includes(proto)) return { verdict: "deny", reason: proto === PROTOCOL.fragment ? "fragment" : "extension-header", rule: null };
  const first = family === 4 ? remote[12]! : remote[0]!;
  const unicast = family === 4 ? first > 0 && first < 224 : first !== 0xff && remote.some((octet) => octet !== 0);
  if (out && ported && port === 53 && unicast) return { verdict: "redirect", reason: "dns-redirect", rule: null };
  if (proto === (family === 4 ? PROTOCOL.icmpv6 : PROTOCOL.icmp)) return { verdict: "deny", reason: "protocol", rule: null };
  if (out && proto === PROTOCOL.udp && port === (family === 4 ? 68 : 546)) return { verdict: "deny", reason: "dhcp-server", rule: null };
  if (out && NAME_SERVICES.get(proto)?.includes(port) === true) return { verdict: "deny", reason: "name-service", rule: null };
  const { group } = referenceVerdict(policy, table, { ...packet, pins: [] });
  // What the host owns, its metadata and its loopback are never reached by name.
  const model = referenceVerdict(policy, table, { ...packet, pins: ["host", "metadata", "loopback"].includes(group) ? [] : pins });
  if (model.rule !== null || model.verdict === "allow") return { verdict: model.verdict, rule: model.rule, reason: `${model.rule === null ? "default" : "rule"}-${model.verdict}` };
  const reason = (): string => {
    if (![PROTOCOL.tcp, PROTOCOL.udp, PROTOCOL.icmp, PROTOCOL.icmpv6].includes(proto as never)) return "protocol";
    if (!out) return "ingress-default";
    const here = pins.filter((pin) => Buffer.compare(pin.address, remote) === 0);
    if (here.length > 0 && here.every(({ expired }) => expired)) return "pin-expired";
    const named = policy.rules.some(({ destination }) => destination.kind === "name" || destination.kind === "doh");
    return group === "public" && named && here.length === 0 ? "no-pin" : `default-${group}`;
  };
  return { verdict: "deny", reason: reason(), rule: null };
}

/** Writes the pins that fit, one entry an address; gives them as the model sees them. Pins without a rule bit are none. */
function writePins(sandbox: LabSandbox, pins: readonly ModelPin[]): ModelPin[] {
  const byAddress = new Map<string, { address: Address; bits: Map<number, boolean>; pins: ModelPin[] }>();
  const kept: ModelPin[] = [];
  for (const pin of pins) {
    const bits = sandbox.bitsOf(pin.name.join("."));
    if (bits.length === 0) continue;
    const key = Buffer.from(pin.address).toString("hex");
    const entry = byAddress.get(key) ?? { address: pin.address, bits: new Map<number, boolean>(), pins: [] };
    const merged = new Map(entry.bits);
    for (const bit of bits) merged.set(bit, (merged.get(bit) ?? false) || !pin.expired);
    if (merged.size > 8) continue;
    byAddress.set(key, { ...entry, bits: merged });
    kept.push(pin);
  }
  const now = nowSeconds();
  for (const { address: where, bits } of byAddress.values()) sandbox.pinBits(where, [...bits].map(([bit, live]) => ({ bit, expires: live ? now + 3600 : now - 1 })));
  return kept;
}

describe("the kernel program", () => {
  let lab: Lab;
  let sandbox: LabSandbox;
  beforeAll(() => {
    lab = Lab.open(2);
    lab.groups = world;
    sandbox = lab.sandbox();
  });
  afterAll(() => lab?.close());

  test("agrees with the model: verdict, rule and reason", () => {
    const reasons = new Map<string, number>();
    fc.assert(fc.property(policyText, fc.array(pickPin, { maxLength: 6 }), fc.array(pickPacket, { minLength: 20, maxLength: 40 }), (text, pinPicks, packets) => {
      const policy = policyOf(text, world);
      sandbox.setPolicy(policy);
      sandbox.forget();
      const pins = writePins(sandbox, pinPicks.map(({ remote, name, expired }) => ({ address: resolveAddress({ ...remote, from: remote.from === "pin" ? "site" : remote.from }, policy, []).remote, name: name.split("."), expired })));
      packets.forEach((pick, i) => {
        const packet: Packet = { direction: pick.ingress ? "ingress" : "egress", ...resolveAddress(pick.remote, policy, pins), proto: pick.proto, port: resolvePort(pick.port, policy) };
        const ported = packet.proto === PROTOCOL.tcp || packet.proto === PROTOCOL.udp;
        // Without ports, one flow an address and protocol: what was allowed before would be established.
        if (!ported) sandbox.clearFlows();
        const want = expected(policy, world, packet, pins);
        const frame = build(packet, i);
        const outcome = pick.ingress ? sandbox.in(frame) : sandbox.out(frame);
        const about = () => `${text}\n${packet.direction} ${formatAddress(packet.remote)} IPv${packet.family} proto ${packet.proto} port ${packet.port}; pins ${pins.map((pin) => `${pin.name.join(".")}@${formatAddress(pin.address)}${pin.expired ? " (expired)" : ""}`).join(", ")}`;
        expect({ verdict: outcome.verdict, reason: outcome.reason }, about()).toEqual({ verdict: want.verdict, reason: want.reason });
        reasons.set(want.reason, (reasons.get(want.reason) ?? 0) + 1);
        if (want.verdict === "redirect") return;
        // What explains a verdict, and what TLS asks, says the same as the kernel. Form is judged before it.
        if (!["mapped-address", "extension-header", "fragment"].includes(want.reason)) {
          const here = pins.filter((pin) => Buffer.compare(pin.address, packet.remote) === 0);
          const judged = judgeFlow(policy, world, { direction: packet.direction, address: packet.remote, protocol: packet.proto, port: packet.port, names: here.filter(({ expired }) => !expired).map(({ name }) => name), expired: here.filter(({ expired }) => expired).map(({ name }) => name) });
          expect({ verdict: judged.verdict, reason: judged.reason, rule: judged.rule }, about()).toEqual({ verdict: outcome.verdict, reason: outcome.reason, rule: want.rule });
        }
        const echoes = packet.proto === PROTOCOL.icmp || packet.proto === PROTOCOL.icmpv6;
        const bit = outcome.verdict === "deny" ? outcome.event!.rule : sandbox.flowRule(
          packet.remote, packet.proto,
          ported ? (pick.ingress ? freePort(i) : packet.port) : echoes ? (pick.ingress ? 0 : GUEST_ASKS) : 0,
          ported ? (pick.ingress ? packet.port : freePort(i)) : echoes ? i : 0,
          packet.family === 4 ? 0 : 8,
        );
        if (want.rule === null) expect(bit, about()).toBeNull();
        else expect(sandbox.compiled.bits[bit as number]?.rules, about()).toContain(want.rule);
      });
    }), { numRuns: RUNS });
    // Not a property of the product but of this test: it gets to all that policy can say.
    const seen = [...reasons.keys()];
    for (const reason of ["rule-allow", "rule-deny", "default-allow", "no-pin", "pin-expired", "ingress-default", "protocol", "name-service", "dns-redirect", "mapped-address", "default-host", "default-public", "default-private"]) expect(seen).toContain(reason);
  });

  test("lets ask for the neighbours that some rule lets reach by address, and no others", () => {
    fc.assert(fc.property(policyText, fc.array(pickAddress, { minLength: 10, maxLength: 20 }), (text, picks) => {
      const policy = policyOf(text, world);
      sandbox.setPolicy(policy);
      for (const pick of picks) {
        const { remote, family } = resolveAddress(pick, policy, []);
        if (family === 6 && (isV4(remote) || remote[0] === 0xff)) continue;
        const target = formatAddress(remote);
        if ([GUEST.v4, GUEST.v6, GUEST.linkLocal, HOST.gateway4, HOST.gateway6].includes(target as never)) continue;
        const reachable = policy.rules.some((one) => one.action === "allow" && one.direction === "egress" &&
          referenceVerdict({ ...policy, defaultEgress: "deny", rules: [{ ...one, protos: null, ports: null }] }, world, { direction: "egress", remote, family, proto: 6, port: 443, pins: [] }).verdict === "allow");
        const group = family === 6 ? solicitedNode(remote) : remote;
        const frame = family === 4 ? arpFrame({ senderMac: GUEST.mac, senderIp: GUEST.v4, targetIp: remote.subarray(12) })
          : ipFrame({ sourceMac: GUEST.mac, destinationMac: multicastMac(group), source: ip(GUEST.v6), destination: group }, PROTOCOL.icmpv6, neighbourSolicitation(GUEST.v6, group, remote, GUEST.mac), { ipv6: { hopLimit: 255 } });
        expect(sandbox.out(frame).reason, `${text}\n${target}`).toBe(reachable ? "neighbour" : "arp-target");
      }
    }), { numRuns: RUNS / 3 });
  });
});

/** remote_port in the key of the guest's own echoes: a flag in the machine's order, read as a port. */
const GUEST_ASKS = 0x100;
/** Policies. */
const RUNS = 150;
