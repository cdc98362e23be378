/** The judge of one flow held to the plain model: random policies, flows and pins. The kernel is held to it in test/prog. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatAddress, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { groupTable } from "../../src/addresses/groups.js";
import { buildPolicy } from "../../src/policy/build.js";
import { judgeFlow } from "../../src/policy/flow-judge.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import type { Policy } from "../../src/policy/types.js";
import { referenceVerdict } from "../lib/model.js";

const address = (text: string): Uint8Array => {
  const parsed = parseAddress(text);
  if (parsed === null) throw new Error(`test: not an address: ${text}`);
  return parsed;
};

const world = groupTable({
  hostAddresses: ["10.0.0.1", "203.0.114.1", "2a00:1::1", "8.8.8.8"].map(address),
  connectedPrefixes: ["203.0.114.0/24", "2a00:1::/64", "10.0.0.0/24"].map((text) => parsePrefix(text)).filter((prefix) => prefix !== null),
});
const policyOf = (text: string): Policy => buildPolicy({ file: parsePolicyText(text, "test.yaml"), groups: world }).policy;

const names = ["a.example.net", "example.net", "x.a.example.net", "example.org", "dns.google", "foo.dns.nextdns.io", "c.test.example.org", "other.example"].map((name) => name.split("."));
const addresses = ["10.0.0.1", "10.0.0.2", "169.254.169.254", "169.254.1.1", "127.0.0.1", "93.184.216.34", "8.8.8.8", "1.1.1.1", "203.0.114.9", "224.0.0.1", "240.0.0.1", "2a00:1::1", "2a00:2::1", "2606:4700:4700::1111", "fd00::1", "fe80::1", "::1", "64:ff9b::10.0.0.1", "2002:a00:1::1", "45.90.28.7"].map(address);
const rule = fc.record({
  action: fc.constantFrom("allow", "deny"),
  destination: fc.constantFrom("any", "public", "private", "host", "metadata", "loopback", "doh", "10.0.0.1", "93.184.216.34", "0.0.0.0/0", "::/0", "10.0.0.0/8", "169.254.0.0/16", "8.0.0.0/5", "fc00::/7", "2a00::/16", "a.example.net", "'*.example.net'", "suffix:example.net", "example.org", "suffix:test.example.org"),
  ingress: fc.boolean(),
  shape: fc.constantFrom("", ", ports: [80]", ", ports: [1-1023]", ", proto: tcp, ports: [443]", ", proto: [udp], ports: [53, 853]", ", proto: tcp", ", proto: icmp", ", proto: [tcp, icmp, 47]", ", proto: [0, 255]"),
}).map(({ action, destination, ingress, shape }) => `  - {${action}: ${destination}${ingress ? ", direction: ingress" : ""}${shape}}`);
const policies = fc.record({ egress: fc.constantFrom("allow", "deny"), ingress: fc.constantFrom("allow", "deny"), rules: fc.array(rule, { maxLength: 10 }) })
  .map(({ egress, ingress, rules }) => `default_egress: ${egress}\ndefault_ingress: ${ingress}\nrules:${rules.length === 0 ? " []" : `\n${rules.join("\n")}`}\n`);
const questions = fc.array(fc.record({
  direction: fc.constantFrom("egress" as const, "ingress" as const), address: fc.constantFrom(...addresses), protocol: fc.constantFrom(6, 6, 17, 1, 58, 47, 0, 255),
  port: fc.constantFrom(0, 1, 80, 137, 443, 853, 1023, 1024, 5353, 65535), names: fc.array(fc.constantFrom(...names), { maxLength: 3 }), expired: fc.array(fc.constantFrom(...names), { maxLength: 2 }),
}), { minLength: 20, maxLength: 40 });

describe("the judge of one flow", () => {
  it("agrees with the plain model on verdict, rule and group", () => {
    const reasons = new Set<string>();
    fc.assert(fc.property(policies, questions, (text, list) => {
      const policy = policyOf(text);
      for (const question of list) {
        const judged = judgeFlow(policy, world, question);
        reasons.add(judged.reason);
        const { direction, protocol: proto, port } = question;
        const about = `${text}\n${direction} ${formatAddress(question.address)} proto ${proto} port ${port} names ${question.names.map((name) => name.join("."))}`;
        // The model knows neither of ports that are refused before the rules, nor that pins open no strict group: the test says it.
        if (judged.reason === "name-service") {
          expect([137, 853, 5353], about).toContain(port);
          continue;
        }
        if (judged.reason === "extension-header") {
          expect([question.address.subarray(0, 12).some((octet, i) => octet !== (i < 10 ? 0 : 255)), proto], about).toEqual([true, 0]);
          continue;
        }
        const pins = ["host", "metadata", "loopback"].includes(judged.group) ? [] : question.names.map((name) => ({ address: question.address, name, expired: false }));
        const model = referenceVerdict(policy, world, { direction, remote: question.address, proto, port, pins });
        expect({ verdict: judged.verdict, rule: judged.rule, group: judged.group }, about).toEqual(model);
      }
    }), { numRuns: 300 });
    for (const reason of ["rule-allow", "rule-deny", "default-allow", "no-pin", "pin-expired", "ingress-default", "protocol", "name-service", "default-host", "default-public", "default-private"]) expect([...reasons]).toContain(reason);
  });

  it("counts only the names that a rule covers, and says which", () => {
    const policy = policyOf("rules: [{allow: a.example.net, ports: [443]}]");
    const flow = { direction: "egress" as const, address: address("93.184.216.34"), protocol: 6, port: 443 };
    const name = ["a", "example", "net"], other = ["b", "example", "net"];
    expect(judgeFlow(policy, world, { ...flow, names: [other, name] })).toMatchObject({ verdict: "allow", rule: 0, counted: [name] });
    expect(judgeFlow(policy, world, { ...flow, names: [other] })).toMatchObject({ verdict: "deny", reason: "no-pin", counted: [] });
    expect(judgeFlow(policy, world, { ...flow, names: [], expired: [name] })).toMatchObject({ reason: "pin-expired" });
    expect(judgeFlow(policy, world, { ...flow, names: [name], port: 80 })).toMatchObject({ reason: "default-public" });
    // A label with a dot in it is another name than it looks like.
    expect(judgeFlow(policy, world, { ...flow, names: [["a.example", "net"]] })).toMatchObject({ reason: "no-pin" });
  });
});
