/** The compiler held to the plain model: random policies, random packets, read through the tables as the kernel reads them. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatAddress, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { type GroupTable, groupTable, staticGroups } from "../../src/addresses/groups.js";
import { buildPolicy } from "../../src/policy/build.js";
import { compilePolicy } from "../../src/policy/compile.js";
import { NameJudge } from "../../src/policy/judge.js";
import { formatDestination, formatPorts, formatProto } from "../../src/policy/rules.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import type { Policy } from "../../src/policy/types.js";
import { type PacketFacts, covers, referenceVerdict } from "../lib/model.js";
import { tableVerdict } from "../lib/policy-tables.js";

/** Milliseconds: a busy machine must not fail a property. */
const SLOW = 120_000;
const address = (text: string): Uint8Array => {
  const parsed = parseAddress(text);
  if (parsed === null) throw new Error(`test: not an address: ${text}`);
  return parsed;
};

const fromText = (text: string, groups?: GroupTable): Policy => buildPolicy({ file: parsePolicyText(text, "test.yaml"), ...(groups === undefined ? {} : { groups }) }).policy;

const world = groupTable({
  hostAddresses: [address("10.0.0.1"), address("203.0.114.1"), address("2a00:1::1"), address("93.184.216.1"), address("8.8.8.8")],
  connectedPrefixes: [parsePrefix("203.0.114.0/24"), parsePrefix("2a00:1::/64"), parsePrefix("10.0.0.0/24")].filter((prefix) => prefix !== null),
});

const names = ["a.example.net", "b.example.net", "example.net", "x.a.example.net", "example.org", "dns.google", "foo.dns.nextdns.io", "c.test.example.org"];
const addresses = [
  "10.0.0.1", "10.0.0.2", "10.1.2.3", "169.254.169.254", "169.254.1.1", "127.0.0.1", "93.184.216.34", "93.184.216.1", "93.184.217.1", "8.8.8.8", "1.1.1.1", "203.0.114.1", "203.0.114.9",
  "224.0.0.1", "240.0.0.1", "100.100.100.200", "100.64.0.9", "161.26.0.10", "2a00:1::1", "2a00:1::9", "2a00:2::1", "2606:4700:4700::1111", "fd00::1", "fd00:ec2::254", "fe80::1", "ff02::1",
  "::1", "64:ff9b::10.0.0.1", "2002:a00:1::1", "2001:db8::1", "45.90.28.7",
];
const destinations = fc.oneof(
  fc.constantFrom("any", "public", "private", "host", "metadata", "loopback", "link-local", "multicast", "reserved", "doh"),
  fc.constantFrom(...addresses),
  fc.constantFrom("0.0.0.0/0", "::/0", "2000::/3", "8.0.0.0/5", "10.0.0.0/8", "10.0.0.0/24", "169.254.0.0/16", "93.184.216.0/24", "93.0.0.0/8", "203.0.114.0/24", "fc00::/7", "2a00:1::/64", "2a00::/16", "100.64.0.0/10", "161.26.0.0/16", "0.0.0.0/1", "::/3", "fe80::/64"),
  fc.constantFrom("a.example.net", "'*.example.net'", "suffix:example.net", "'*.a.example.net'", "example.org", "suffix:test.example.org"),
);
const ports = fc.constantFrom("[80]", "[443]", "[80, 443]", "[1-1023]", "[8000-8999, 80]", "[65535]", "[1-65535]", "[255-256]", "[1]");
const rule = fc.record({
  action: fc.constantFrom("allow", "deny"), destination: destinations, ingress: fc.boolean(),
  shape: fc.oneof(
    fc.constant(""), ports.map((p) => `, ports: ${p}`), ports.map((p) => `, proto: tcp, ports: ${p}`), ports.map((p) => `, proto: [udp], ports: ${p}`),
    fc.constantFrom(", proto: tcp", ", proto: udp", ", proto: icmp", ", proto: icmpv6", ", proto: [tcp, icmp, 47]", ", proto: 47", ", proto: [0, 255]"),
  ),
}).map(({ action, destination, ingress, shape }) => `  - {${action}: ${destination}${ingress ? ", direction: ingress" : ""}${shape}}`);
const policyText = fc.record({ egress: fc.constantFrom("allow", "deny"), ingress: fc.constantFrom("allow", "deny"), rules: fc.array(rule, { maxLength: 14 }) })
  .map(({ egress, ingress, rules }) => `default_egress: ${egress}\ndefault_ingress: ${ingress}\nrules:${rules.length === 0 ? " []" : `\n${rules.join("\n")}`}\n`);
const packets = fc.array(fc.record({
  direction: fc.constantFrom("egress" as const, "ingress" as const),
  remote: fc.constantFrom(...addresses).map(address),
  proto: fc.constantFrom(6, 6, 6, 17, 17, 1, 58, 47, 0, 255, 41),
  port: fc.constantFrom(0, 1, 79, 80, 81, 254, 255, 256, 257, 443, 1023, 1024, 8000, 8443, 8999, 9000, 65535),
  pins: fc.array(fc.record({ address: fc.constantFrom("10.0.0.1", "10.1.2.3", "93.184.216.34", "2a00:2::1", "169.254.169.254", "1.1.1.1").map(address), name: fc.constantFrom(...names).map((name) => name.split(".")), expired: fc.boolean() }), { maxLength: 4 }),
}), { minLength: 20, maxLength: 40 });

describe("the compiled tables", () => {
  it.each([["without a host", staticGroups], ["with a host", world]])("agree with the model: verdict and rule (%s)", (_, table) => {
    fc.assert(fc.property(policyText, packets, (text, list) => {
      const policy = fromText(text, table);
      const compiled = compilePolicy(policy, { uid: 7n });
      const judge = new NameJudge(policy);
      for (const packet of list) {
        const model = referenceVerdict(policy, table, packet);
        const read = tableVerdict(compiled, table, { ...packet, pins: packet.pins.map((pin) => ({ ...pin, bits: judge.judge(pin.name).bits })) });
        const about = `${text}\n${packet.direction} ${formatAddress(packet.remote)} proto ${packet.proto} port ${packet.port} pins ${packet.pins.map((pin) => `${pin.name.join(".")}@${formatAddress(pin.address)}${pin.expired ? "!" : ""}`).join(" ")}`;
        expect(read.verdict, about).toBe(model.verdict);
        if (model.rule === null) expect(read.bit, about).toBeNull();
        else expect(compiled.bits[read.bit as number]?.rules, about).toContain(model.rule);
      }
    }), { numRuns: 200 });
  }, SLOW);

  it("are the same octets for the same policy", () => {
    const text = "rules: [{allow: public, ports: [1-79, 443]}, {deny: 10.0.0.0/8}, {allow: a.example.net}]";
    expect(compilePolicy(fromText(text), { uid: 1n })).toEqual(compilePolicy(fromText(text), { uid: 1n }));
  });

  it("hold the header that abi.h describes", () => {
    const compiled = compilePolicy(fromText("default_ingress: allow\nrules: [{allow: public, ports: [80]}, {deny: 10.0.0.0/8}, {allow: a.example.net}, {allow: any, direction: ingress}, {allow: 0.0.0.0/0}]"), { uid: 0x1122334455667788n });
    const view = new DataView(compiled.pages.buffer);
    expect(view.getBigUint64(0, true)).toBe(0x1122334455667788n);
    expect(view.getUint32(8, true)).toBe(2 | 4 | 16);
    expect(view.getUint32(16, true) * 512).toBe(compiled.pages.length);
    expect(view.getBigUint64(24, true)).toBe(0b11101n);
    expect(view.getBigUint64(88, true)).toBe(0b01000n);
    expect(view.getBigUint64(152, true)).toBe(0b00100n);
    expect(view.getBigUint64(216, true)).toBe(0n);
    // page 8: what counts by prefix; 0.0.0.0/0 in group public alone
    expect([0, 1, 2, 3, 4, 5, 6, 7].map((group) => view.getBigUint64(8 * 512 + group * 64, true))).toEqual([15n, 15n, 15n, 15n, 15n, 15n, 15n, 31n]);
    // class 0 is the empty vector
    expect([...compiled.pages.subarray(view.getUint32(12, true) * 512, view.getUint32(12, true) * 512 + 64)].every((octet) => octet === 0)).toBe(true);
  });

  it.each([0n, -1n, 1n << 64n])("refuse uid %s", (uid) => {
    expect(() => compilePolicy(fromText("rules: []"), { uid })).toThrow(RangeError);
  });
});

describe("bits", () => {
  const bitsOf = (text: string) => compilePolicy(fromText(text), { uid: 1n }).bits;

  it("a thousand names under the same ports cost one bit", () => {
    const bits = bitsOf(`rules:\n${Array.from({ length: 1000 }, (_, i) => `  - {allow: n${i}.example.net, proto: tcp, ports: [443]}`).join("\n")}`);
    expect(bits).toHaveLength(1);
    expect(bits[0]?.text).toBe("rules 1-1000: allow n0.example.net, n1.example.net, n2.example.net and 997 more tcp 443");
  });
  it("names under two alternating ports cost two", () => {
    expect(bitsOf(`rules:\n${Array.from({ length: 1000 }, (_, i) => `  - {allow: n${i}.example.net, proto: tcp, ports: [${i % 2 === 0 ? 443 : 80}]}`).join("\n")}`)).toHaveLength(2);
  });
  it("ten thousand prefixes cost one", () => {
    expect(bitsOf(`rules:\n${Array.from({ length: 10000 }, (_, i) => `  - deny: 93.${i >> 8}.${i & 255}.0/24`).join("\n")}`)).toHaveLength(1);
  });
  it("a rule between that could match first keeps them apart", () => {
    expect(bitsOf("rules: [{allow: a.example.net}, {deny: b.example.net, proto: tcp}, {allow: c.example.net}]")).toHaveLength(3);
    expect(bitsOf("rules: [{allow: a.example.net}, {deny: any, direction: ingress}, {allow: c.example.net}]")).toHaveLength(2);
  });
  it("prefixes of different groups stay apart", () => {
    expect(bitsOf("rules: [{allow: 10.0.0.0/8}, {allow: 93.0.0.0/8}, {allow: 11.0.0.0/8}]").map((bit) => bit.rules)).toEqual([[0], [1, 2]]);
    expect(bitsOf("rules: [{deny: 10.0.0.0/8}, {deny: 93.0.0.0/8}]")).toHaveLength(1);
  });
  it("more than 512 are refused with a remedy", () => {
    const text = `rules:\n${Array.from({ length: 514 }, (_, i) => `  - {${i % 2 === 0 ? "allow" : "deny"}: n${i}.example.net}`).join("\n")}`;
    expect(() => bitsOf(text)).toThrow(/more than 512 bits/);
    expect(bitsOf(text.split("\n").slice(0, 513).join("\n"))).toHaveLength(512);
  });
});

describe("A60: allow by prefix and the groups that are not public", () => {
  const cases: [string, string, "allow" | "deny"][] = [
    ["0.0.0.0/0", "8.8.4.4", "allow"], ["0.0.0.0/0", "10.0.0.2", "deny"], ["0.0.0.0/0", "169.254.169.254", "deny"], ["0.0.0.0/0", "127.0.0.1", "deny"], ["0.0.0.0/0", "203.0.114.9", "deny"],
    ["::/0", "2a00:2::1", "allow"], ["::/0", "fd00::1", "deny"], ["::/0", "2a00:1::1", "deny"], ["::/0", "64:ff9b::808:808", "deny"], ["2000::/3", "2002:a00:1::1", "deny"], ["8.0.0.0/5", "10.0.0.2", "deny"], ["8.0.0.0/5", "9.9.9.9", "allow"],
    ["10.0.0.0/8", "10.1.2.3", "allow"], ["10.0.0.0/8", "10.0.0.1", "deny"], ["10.0.0.1", "10.0.0.1", "allow"], ["169.254.0.0/16", "169.254.1.1", "allow"], ["169.254.0.0/16", "169.254.169.254", "deny"],
    ["169.254.169.254", "169.254.169.254", "allow"], ["100.64.0.0/10", "100.100.100.200", "deny"], ["203.0.114.0/24", "203.0.114.9", "allow"], ["203.0.114.0/24", "203.0.114.1", "deny"], ["any", "10.1.2.3", "allow"],
    ["any", "169.254.169.254", "deny"], ["any", "10.0.0.1", "deny"], ["any", "127.0.0.1", "deny"], ["any", "224.0.0.1", "allow"], ["public", "8.8.4.4", "allow"], ["public", "203.0.114.9", "deny"],
  ];
  it.each(cases)("allow %s: %s → %s", (destination, remote, expected) => {
    const policy = fromText(`rules: [{allow: '${destination}'}]`, world);
    const packet: PacketFacts = { direction: "egress", remote: address(remote), proto: 6, port: 443, pins: [] };
    expect(referenceVerdict(policy, world, packet).verdict).toBe(expected);
    expect(tableVerdict(compilePolicy(policy, { uid: 1n }), world, { ...packet, pins: [] }).verdict).toBe(expected);
  });
  it("an empty list allows nothing", () => {
    for (const remote of addresses) expect(referenceVerdict(fromText("rules: []"), world, { direction: "egress", remote: address(remote), proto: 6, port: 443, pins: [] }).verdict).toBe("deny");
  });
  it("denies and inbound rules cover all they name", () => {
    const policy = fromText("default_egress: allow\nrules: [{deny: 0.0.0.0/0}, {allow: 0.0.0.0/0, direction: ingress}]", world);
    for (const remote of ["10.0.0.1", "8.8.4.4", "169.254.169.254"]) {
      expect(referenceVerdict(policy, world, { direction: "egress", remote: address(remote), proto: 6, port: 1, pins: [] }).verdict).toBe("deny");
      expect(referenceVerdict(policy, world, { direction: "ingress", remote: address(remote), proto: 6, port: 1, pins: [] }).verdict).toBe("allow");
    }
  });
});

describe("round trip", () => {
  it("a rule printed as a token reads back as itself", () => {
    fc.assert(fc.property(policyText, (text) => {
      const policy = fromText(text);
      for (const original of policy.rules) {
        const destination = original.destination.kind === "prefix" && original.destination.prefix.family === 6 ? formatDestination(original.destination).replace(/^([^/]*)/, "[$1]") : formatDestination(original.destination);
        const protos = original.protos?.map((proto) => (/^\d/.test(formatProto(proto)) ? `proto-${proto}` : formatProto(proto))).join(",");
        const ports = original.ports === null ? "" : `:${formatPorts(original.ports)}`;
        const token = `${original.action}:${original.direction}@${destination}${protos === undefined ? (ports === "" ? "" : ":tcp,udp") : `:${protos}`}${ports}`;
        const read = buildPolicy({ tokens: [token] }).policy.rules[0];
        expect({ ...read, place: null, index: 0, protos: null }).toEqual({ ...original, place: null, index: 0, protos: null });
      }
    }), { numRuns: 100 });
  }, SLOW);
  it("the model's pattern matching is the judge's", () => {
    expect(covers({ kind: "below", labels: ["example", "net"] }, ["example", "net"])).toBe(false);
  });
});
