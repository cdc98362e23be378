/** Warnings: rules that can never match, and rules that cover less or more than they seem to. */
import fc from "fast-check";
import { parse } from "tldts";
import { describe, expect, it } from "vitest";
import { parseAddress } from "../../src/addresses/address.js";
import { groupTable } from "../../src/addresses/groups.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import { suffixHolders } from "../../src/policy/suffixes.gen.js";
import { type PacketFacts, referenceName, referenceVerdict } from "../lib/model.js";

/** Milliseconds: a busy machine must not fail a property. */
const SLOW = 120_000;
const NEVER = "the rule can never match: ";
const build = (text: string) => buildPolicy({ file: parsePolicyText(text, "p.yaml") });
const warnings = (rules: string): string[] => build(`rules: [${rules}]`).warnings.map(({ rule, message }) => `${rule ?? "-"}: ${message}`);
const never = (rules: string): string[] => warnings(rules).filter((line) => line.includes(NEVER)).map((line) => line.replace(NEVER, ""));

it("shortens a flood of warnings", () => {
  const all = warnings(Array.from({ length: 200 }, () => "{allow: public}").join(", "));
  expect(all).toHaveLength(51);
  expect(all.at(-1)).toContain("149 more warnings");
});

describe("shadowed", () => {
  it.each([
    ["{allow: public}, {allow: public}", ["2: rule 1 covers all of it"]],
    ["{allow: public}, {deny: public, ports: [80]}", ["2: rule 1 covers all of it"]],
    ["{allow: public, ports: [80]}, {allow: public}", []],
    ["{allow: public, proto: tcp}, {allow: public, proto: udp}, {deny: public, ports: [80]}", ["3: rule 1, rule 2 cover all of it"]],
    ["{allow: public, ports: [1-79]}, {allow: public, ports: [80-443]}, {deny: public, proto: tcp, ports: [22, 443]}", ["3: rule 1, rule 2 cover all of it"]],
    ["{allow: public, ports: [1-79]}, {allow: public, ports: [81-443]}, {deny: public, proto: tcp, ports: [22-443]}", []],
    ["{deny: any}, {allow: host}, {allow: 10.0.0.1}, {allow: a.example}, {allow: doh}", ["2: rule 1 covers all of it", "3: rule 1 covers all of it", "4: rule 1 covers all of it", "5: rule 1 covers all of it"]],
    ["{allow: any}, {deny: private}, {deny: host}, {deny: metadata}, {deny: loopback}, {deny: 10.0.0.1}, {allow: any}", ["2: rule 1 covers all of it", "7: rule 1 covers all of it"]],
    ["{allow: any}, {deny: any}", []],
    ["{deny: private}, {allow: 10.0.0.0/8}, {allow: 10.0.0.1}, {deny: 10.0.0.0/8}", ["2: rule 1 covers all of it"]],
    ["{deny: public}, {allow: 93.184.216.0/24}, {allow: a.example}", ["2: rule 1 covers all of it"]],
    ["{deny: 10.0.0.0/8}, {allow: 10.1.0.0/16}, {allow: 11.0.0.0/8}", ["2: rule 1 covers all of it"]],
    ["{allow: 10.0.0.0/8}, {deny: 10.1.0.0/16}", []],
    ["{allow: 0.0.0.0/0}, {allow: 10.0.0.0/8}, {allow: 93.0.0.0/8}, {allow: 93.1.1.1}", ["3: rule 1 covers all of it"]],
    ["{allow: '*.example.net'}, {deny: a.example.net}, {deny: example.net}, {deny: suffix:a.example.net}, {deny: '*.a.example.net'}", ["2: rule 1 covers all of it", "4: rule 1 covers all of it", "5: rule 1 covers all of it"]],
    ["{allow: suffix:example.net}, {deny: '*.example.net'}, {deny: example.net}, {deny: suffix:example.net}", ["2: rule 1 covers all of it", "3: rule 1 covers all of it", "4: rule 1 covers all of it"]],
    ["{deny: a.example, proto: [tcp, udp, icmp, icmpv6]}, {deny: a.example}", []],
    ["{deny: a.example}, {deny: a.example, ports: [80]}", ["2: rule 1 covers all of it"]],
    ["{allow: any, direction: ingress}, {allow: host, direction: ingress}, {allow: 10.0.0.1, direction: ingress}, {allow: public}", ["2: rule 1 covers all of it", "3: rule 1 covers all of it"]],
    ["{allow: doh}, {deny: doh}", []],
    ["{deny: doh}, {allow: doh}", ["2: rule 1 covers all of it"]],
    ["{allow: public, proto: 47}, {deny: public}, {deny: public, proto: 47}", ["3: rule 1 covers all of it"]],
    ["{allow: public}, {deny: public, proto: 47}", []],
  ])("%s", (rules, expected) => {
    expect(never(rules)).toEqual(expected);
  });

  it("names rules of other sources by where they stand", () => {
    const { warnings: list } = buildPolicy({ file: parsePolicyText("rules: [{allow: any}]", "p.yaml"), tokens: ["deny@any"] });
    expect(list.map(({ file, rule, message }) => `${file} ${rule} ${message}`)).toContain('p.yaml 1 the rule can never match: --rule "deny@any" covers all of it');
  });

  it("a rule called unmatchable decides nothing, whatever the host owns", () => {
    const destination = fc.constantFrom("any", "public", "private", "host", "metadata", "loopback", "doh", "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1", "93.0.0.0/8", "93.184.216.34", "1.1.1.1", "169.254.0.0/16", "169.254.169.254", "a.example.net", "'*.example.net'", "suffix:example.net", "suffix:a.example.net");
    const shape = fc.constantFrom("", "", "", ", proto: tcp", ", ports: [80]", ", ports: [1-100]", ", proto: udp", ", proto: icmp", ", proto: [tcp, udp]", ", proto: [tcp, udp, icmp, icmpv6]", ", proto: tcp, ports: [443]");
    const rule = fc.tuple(fc.constantFrom("allow", "deny"), destination, shape, fc.boolean()).map(([action, to, form, ingress]) => `{${action}: ${to}${form}${ingress ? ", direction: ingress" : ""}}`);
    const address = (text: string): Uint8Array => parseAddress(text) as Uint8Array;
    const tables = [groupTable(), groupTable({ hostAddresses: [address("10.0.0.1"), address("93.184.216.34"), address("1.1.1.1")] })];
    const packet = fc.record({
      direction: fc.constantFrom("egress" as const, "ingress" as const), remote: fc.constantFrom("10.0.0.1", "10.0.0.2", "93.184.216.34", "1.1.1.1", "169.254.169.254", "169.254.1.1", "127.0.0.1", "224.0.0.1").map(address),
      proto: fc.constantFrom(6, 17, 1), port: fc.constantFrom(1, 80, 99, 443, 5000),
      pins: fc.array(fc.record({ address: fc.constantFrom("10.0.0.1", "93.184.216.34", "169.254.169.254").map(address), name: fc.constantFrom("a.example.net", "example.net", "b.a.example.net").map((name) => name.split(".")), expired: fc.constant(false) }), { maxLength: 2 }),
    });
    fc.assert(fc.property(fc.array(rule, { minLength: 2, maxLength: 6 }), fc.array(packet, { minLength: 20, maxLength: 30 }), (rules, packets: PacketFacts[]) => {
      const { policy, warnings: list } = build(`rules: [${rules.join(", ")}]`);
      const idle = list.filter(({ message }) => message.includes("never match") && message.includes("cover")).map(({ rule: number }) => (number as number) - 1);
      for (const facts of packets) {
        // A pin needs a lookup that was allowed; one that the policy refuses cannot be there.
        const pins = facts.pins.filter(({ name }) => referenceName(policy, name).allowed);
        for (const table of tables) expect(idle, rules.join(", ")).not.toContain(referenceVerdict(policy, table, { ...facts, pins }).rule);
        for (const { name } of facts.pins) expect(idle, rules.join(", ")).not.toContain(referenceName(policy, name).rule);
      }
    }), { numRuns: 400 });
  }, SLOW);
});

describe("others", () => {
  it.each([
    ["{allow: 8.8.8.8, proto: udp, ports: [53]}", ["1: the rule can never match: DNS and other name services (port 53) never reach the rules"]],
    ["{allow: public, proto: tcp, ports: [853]}", ["1: the rule can never match: DNS and other name services (port 853) never reach the rules"]],
    ["{allow: public, ports: [53, 443]}", []],
    ["{allow: 192.0.2.1, proto: icmpv6}", ["1: the rule can never match: icmpv6 is not spoken over IPv4"]],
    ["{allow: '2001:db8::1', proto: icmp}", ["1: the rule can never match: icmp is not spoken over IPv6"]],
    ["{allow: '2001:db8::1', proto: [44, 43]}", ["1: the rule can never match: 43, 44 are not spoken over IPv6"]],
    ["{allow: 192.0.2.1, proto: 44}", []],
    ["{allow: 0.0.0.0/0}", ["1: 0.0.0.0/0 covers only the public addresses in it"]],
    ["{allow: '::/0'}", ["1: ::/0 covers only the public addresses in it"]],
    ["{allow: 8.0.0.0/5}", ["1: 8.0.0.0/5 covers only the public addresses in it"]],
    ["{allow: 93.184.216.0/24}, {allow: 10.0.0.0/8}", []],
    ["{deny: 0.0.0.0/0}, {allow: public}, {allow: 0.0.0.0/0, direction: ingress}", []],
    ["{allow: a.example, direction: ingress}, {allow: public}", ["1: a name in a rule of direction ingress stands only for addresses that the guest itself has resolved"]],
    ["{allow: '*.github.io'}", ['1: "*.github.io": customers of github.io can all create names there']],
    ["{deny: '*.github.io'}, {allow: public}", []],
    ["{allow: '*.amazonaws.com'}", ['1: "*.amazonaws.com" covers s3.amazonaws.com and the like: customers of amazonaws.com can all create names there']],
    ["{allow: suffix:eu-west-1.amazonaws.com}", ['1: "suffix:eu-west-1.amazonaws.com" covers s3.eu-west-1.amazonaws.com and the like: customers of eu-west-1.amazonaws.com can all create names there']],
    ["{allow: amazonaws.com}, {allow: '*.example.com'}, {deny: '*.amazonaws.com'}", []],
    ["{allow: public}, {deny: ads.example}", ["2: the rule comes too late for lookups: rule 1 before it lets every name be resolved"]],
    ["{allow: any}, {deny: doh}", ["2: the rule comes too late for lookups: rule 1 before it lets every name be resolved"]],
    ["{allow: public, ports: [443]}, {allow: a.example, ports: [22]}, {deny: b.example, ports: [22]}", []],
    ["{deny: public}, {allow: a.example}", ["2: the rule comes too late for lookups: rule 1 before it refuses every name"]],
    ["{deny: metadata}", ["-: nothing is allowed outward: no rule of direction egress allows and the default denies"]],
  ])("%s", (rules, expected) => {
    expect(warnings(rules)).toEqual(expected);
  });
  it("names that the block list holds", () => {
    const list = (rules: string, block: string): string[] => build(`rules: [${rules}]\ndns: {block: [${block}]}`).warnings.map(({ rule, message }) => `${rule}: ${message}`);
    const one = "the rule can never match: dns.block holds the name", all = "the rule can never match: dns.block holds every name that it covers";
    for (const [rule, block, message] of [
      ["{allow: a.example}", "a.example", one], ["{allow: a.example}", "'*.example.org', suffix:a.example", one], ["{allow: a.b.example, direction: ingress}", "'*.b.example'", one],
      ["{allow: '*.b.example'}", "'*.b.example'", all], ["{allow: '*.a.b.example'}", "suffix:b.example", all], ["{allow: suffix:b.example}", "suffix:b.example", all],
      ["{allow: suffix:b.example}", "'*.b.example', b.example", all], ["{allow: suffix:b.example}", "'*.b.example'", null], ["{allow: '*.b.example'}", "b.example, a.b.example", null],
      ["{allow: a.example}", "'*.a.example', b.a.example", null], ["{deny: a.example}", "a.example", null], ["{allow: 192.0.2.1}", "a.example", null],
    ] as const) expect(list(`{allow: public}, ${rule}`, block).filter((text) => text.includes("block")), `${rule} ${block}`).toEqual(message === null ? [] : [`2: ${message}`]);
  });
  it("names that hold public suffixes are none themselves, and the one that is told is one", () => {
    for (const [section, names] of Object.entries(suffixHolders)) {
      expect(Object.keys(names).length, section).toBeGreaterThan(5);
      for (const [name, suffix] of Object.entries(names)) {
        // tldts takes a top-level label that it has no rule for as a suffix, of no section.
        expect(parse(name, { allowPrivateDomains: true }), name).not.toMatchObject({ publicSuffix: name, isIcann: true });
        const facts = parse(suffix.replace("*", "x"), { allowPrivateDomains: true });
        expect([suffix, facts.publicSuffix, facts.isIcann, facts.isPrivate]).toEqual([suffix, suffix.replace("*", "x"), section === "icann", section === "private"]);
        expect(suffix.endsWith(`.${name}`), suffix).toBe(true);
      }
    }
  });
  it("a default that allows", () => {
    const list = (text: string): string[] => build(text).warnings.map(({ message }) => message);
    expect(list("default_egress: allow")).toEqual(["default_egress: allow opens host, metadata, loopback as well"]);
    expect(list("default_egress: allow\nrules: [{deny: metadata}, {deny: host, ports: [22]}]")).toEqual(["default_egress: allow opens host, loopback as well"]);
    expect(list("default_egress: allow\nrules: [{deny: metadata}, {deny: host}, {deny: loopback}]")).toEqual([]);
  });
  it("tls settings without interception", () => {
    expect(build("rules: [{allow: public}]\ntls: {intercept: false, verify_names: true}").warnings).toEqual([]);
    expect(build("rules: [{allow: public}]\ntls: {bypass: [a.example.com]}").warnings.map(({ message }) => message)).toEqual(["parts of the tls section have no effect while intercept is false"]);
  });
});
