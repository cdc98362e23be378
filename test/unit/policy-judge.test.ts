/** Verdicts on names: rules in order, special names, the block list, and which bits a pin of the name carries. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseAddress } from "../../src/addresses/address.js";
import { groupTable, staticGroups } from "../../src/addresses/groups.js";
import { metadataNames } from "../../src/addresses/tables.gen.js";
import { assignBits } from "../../src/policy/bits.js";
import { buildPolicy } from "../../src/policy/build.js";
import { addressAllowedByRule } from "../../src/policy/coverage.js";
import { NameJudge, type NameVerdict } from "../../src/policy/judge.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import type { Policy } from "../../src/policy/types.js";
import { referenceName } from "../lib/model.js";

/** Milliseconds: a busy machine must not fail a property. */
const SLOW = 120_000;
const policy = (text: string): Policy => buildPolicy({ file: parsePolicyText(text, "p.yaml") }).policy;
const labels = (name: string): string[] => (name === "" ? [] : name.split("."));
const judge = (text: string, name: string, options?: ConstructorParameters<typeof NameJudge>[1]): NameVerdict => new NameJudge(policy(text), options).judge(labels(name));

describe("rules on names", () => {
  it.each([
    ["[{allow: api.example.net}]", "api.example.net", true, "rule", 0],
    ["[{allow: api.example.net}]", "x.api.example.net", false, "default", null],
    ["[{allow: api.example.net}]", "example.net", false, "default", null],
    ["[{allow: '*.example.net'}]", "a.b.example.net", true, "rule", 0],
    ["[{allow: '*.example.net'}]", "example.net", false, "default", null],
    ["[{allow: '*.example.net'}]", "notexample.net", false, "default", null],
    ["[{allow: suffix:example.net}]", "example.net", true, "rule", 0],
    ["[{allow: suffix:example.net}]", "a.b.example.net", true, "rule", 0],
    ["[{deny: a.example.net}, {allow: '*.example.net'}]", "a.example.net", false, "rule", 0],
    ["[{allow: '*.example.net'}, {deny: a.example.net}]", "a.example.net", true, "rule", 0],
    ["[{deny: a.example.net, ports: [22]}, {allow: '*.example.net'}]", "a.example.net", true, "rule", 1],
    ["[{deny: a.example.net, proto: udp}, {allow: public}]", "a.example.net", true, "open", 1],
    ["[{deny: a.example.net, ports: [22]}]", "a.example.net", false, "default", null],
    ["[{allow: public}]", "a.example.net", true, "open", 0],
    ["[{allow: public, proto: tcp, ports: [443]}]", "a.example.net", true, "open", 0],
    ["[{allow: any}]", "a.example.net", true, "open", 0],
    ["[{allow: 0.0.0.0/0}]", "a.example.net", true, "open", 0],
    ["[{allow: 93.184.216.0/24}]", "a.example.net", false, "default", null],
    ["[{allow: private}]", "a.example.net", false, "default", null],
    ["[{deny: any}, {allow: a.example.net}]", "a.example.net", false, "rule", 0],
    ["[{deny: public}, {allow: a.example.net}]", "a.example.net", false, "rule", 0],
    ["[{deny: any, ports: [80]}, {allow: a.example.net}]", "a.example.net", true, "rule", 1],
    ["[{deny: 0.0.0.0/0}, {allow: a.example.net}]", "a.example.net", true, "rule", 1],
    ["[{allow: any, direction: ingress}]", "a.example.net", false, "default", null],
    ["[{allow: a.example.net, direction: ingress}]", "a.example.net", false, "default", null],
    ["[{deny: any, direction: ingress}, {allow: a.example.net}]", "a.example.net", true, "rule", 1],
    ["[{deny: doh}, {allow: public}]", "dns.google", false, "rule", 0],
    ["[{deny: doh}, {allow: public}]", "abc.dns.nextdns.io", false, "rule", 0],
    ["[{deny: doh, ports: [443]}, {allow: public}]", "dns.google", true, "open", 1],
    ["[{allow: doh}]", "dns.google", true, "rule", 0],
    ["[{allow: doh}]", "www.google", false, "default", null],
    ["[]", "a.example.net", false, "default", null],
    ["[{allow: public}]", "", true, "open", 0],
    ["[]", "", false, "default", null],
  ] as const)("%s: %s → %s", (rules, name, allowed, reason, rule) => {
    expect(judge(`rules: ${rules}`, name)).toMatchObject({ allowed, reason, rule });
  });
  it("default_egress: allow", () => {
    expect(judge("default_egress: allow\nrules: [{deny: a.example.net}]", "b.example.net")).toMatchObject({ allowed: true, reason: "default", rule: null });
    expect(judge("default_egress: allow\nrules: [{deny: a.example.net}]", "a.example.net")).toMatchObject({ allowed: false, reason: "rule" });
  });
  it("--no-net refuses every name", () => {
    const none = new NameJudge(buildPolicy({ noNet: true, tokens: ["allow@any"] }).policy);
    for (const name of ["a.example.net", "localhost", "", "com"]) expect(none.judge(labels(name))).toEqual({ allowed: false, bits: [], rule: null, reason: "default" });
  });
  it("gives the bits of every rule by name that covers it, both directions and actions", () => {
    const text = "rules: [{deny: a.example.net, ports: [22]}, {allow: public}, {allow: '*.example.net', ports: [80]}, {allow: suffix:example.net, direction: ingress}, {deny: b.example.net}]";
    const { bitOf } = assignBits(policy(text));
    expect(judge(text, "a.example.net").bits).toEqual([bitOf[0], bitOf[2], bitOf[3]]);
    expect(judge(text, "example.net").bits).toEqual([bitOf[3]]);
    expect(judge(text, "example.org").bits).toEqual([]);
  });
  it("agrees with the model on random policies", () => {
    const destination = fc.constantFrom("a.example.net", "'*.example.net'", "suffix:example.net", "'*.a.example.net'", "x.a.example.net", "suffix:example.org", "any", "public", "private", "doh", "0.0.0.0/0", "::/0", "10.0.0.0/8");
    const rule = fc.tuple(fc.constantFrom("allow", "deny"), destination, fc.boolean(), fc.constantFrom("", "", ", ports: [80]", ", proto: tcp")).map(([action, to, ingress, shape]) => `{${action}: ${to}${ingress ? ", direction: ingress" : ""}${shape}}`);
    const name = fc.constantFrom("a.example.net", "b.example.net", "example.net", "x.a.example.net", "y.x.a.example.net", "example.org", "www.example.org", "dns.google", "www.dns.google", "q.dns.nextdns.io", "other.test.example");
    fc.assert(fc.property(fc.array(rule, { maxLength: 8 }), fc.constantFrom("allow", "deny"), fc.array(name, { minLength: 5, maxLength: 10 }), (rules, byDefault, names) => {
      const built = policy(`default_egress: ${byDefault}\nrules: [${rules.join(", ")}]`);
      const judging = new NameJudge(built);
      for (const asked of names) {
        const verdict = judging.judge(labels(asked));
        expect({ allowed: verdict.allowed, rule: verdict.rule }, `${rules.join(", ")} ${asked}`).toEqual(referenceName(built, labels(asked)));
      }
    }), { numRuns: 500 });
  }, SLOW);
});

describe("A28: labels that could be read two ways", () => {
  it.each([["a.b", "net"], ["evil.allowed", "example"], ["a\0", "example", "net"], ["a\\", "example", "net"], ["a b", "example", "net"], ["ä", "example", "net"], ["", "example", "net"], ["a\u007f", "example", "net"]])("%j.%s never match, whatever is allowed", (...name) => {
    for (const text of ["rules: [{allow: any}]", "default_egress: allow", "rules: [{allow: suffix:example.net}, {allow: suffix:allowed.example}]"]) {
      expect(new NameJudge(policy(text)).judge(name)).toMatchObject({ allowed: false, bits: [], special: "malformed" });
    }
  });
});

describe("A35: names of the host, its network and metadata endpoints", () => {
  const open = ["rules: [{allow: public}]", "rules: [{allow: any}]", "default_egress: allow"];
  const concrete = metadataNames.map((name) => name.replaceAll("*", "x1"));
  it.each([
    ...concrete, "deep.er.private.cloud.ibm.com", "localhost", "a.localhost", "printer", "com", "printer.local", "a.b.local", "1.0.0.10.in-addr.arpa", "10.in-addr.arpa", "254.169.254.169.in-addr.arpa",
    "16.172.in-addr.arpa", "0-127.1.168.192.in-addr.arpa", "16.129.63.168.in-addr.arpa", "1.0.0.127.in-addr.arpa", "0.ip6.arpa", "d.f.ip6.arpa", "1.0.0.0.d.f.ip6.arpa", "0.8.e.f.ip6.arpa", "8.b.d.0.1.0.0.2.ip6.arpa",
  ])("%s is refused under every open policy", (name) => {
    for (const text of open) expect(judge(text, name), text).toMatchObject({ allowed: false, rule: null, reason: "default", special: expect.any(String) });
  });
  it.each(["metadata.google.com", "xmetadata.google.internal.example.net", "x.metadata.google.internal", "ts.net", "vpc-lattice-svcs.x1.on.aws", "a.vpc-lattice-svcs.b.c.on.aws", "www.googleapis.com", "4.4.8.8.in-addr.arpa", "8.in-addr.arpa", "172.in-addr.arpa", "in-addr.arpa", "6.2.ip6.arpa", "2.ip6.arpa", "ip6.arpa", "x.8.in-addr.arpa", "example.arpa", "local.example.net", "localhost.example.net"])("%s is an ordinary name", (name) => {
    expect(judge("rules: [{allow: public}]", name)).toMatchObject({ allowed: true });
  });
  it.each([
    ["metadata.google.internal", "metadata.google.internal", true], ["suffix:google.internal", "metadata.google.internal", false], ["'*.internal'", "metadata.google.internal", false],
    ["'*.foo.ts.net'", "db.foo.ts.net", true], ["'*.ts.net'", "db.foo.ts.net", true], ["localhost", "localhost", true], ["suffix:localhost", "localhost", false], ["printer.", "printer", true],
    ["'*.corp.local'", "db.corp.local", true], ["suffix:local", "db.corp.local", true], ["suffix:10.in-addr.arpa", "1.0.0.10.in-addr.arpa", true], ["suffix:192.in-addr.arpa", "1.1.168.192.in-addr.arpa", false],
    ["suffix:ibm.com", "x.private.cloud.ibm.com", false], ["suffix:private.cloud.ibm.com", "x.private.cloud.ibm.com", true], ["suffix:googleapis.com", "restricted.googleapis.com", false], ["1.0.0.10.in-addr.arpa", "1.0.0.10.in-addr.arpa", true],
  ] as const)("allow %s: %s → %s, also behind an open rule", (destination, name, allowed) => {
    expect(judge(`rules: [{allow: ${destination}}]`, name).allowed).toBe(allowed);
    expect(judge(`rules: [{allow: public}, {allow: ${destination}}]`, name).allowed).toBe(allowed);
    expect(judge(`rules: [{deny: any}, {allow: ${destination}}]`, name).allowed).toBe(false);
    expect(judge(`rules: [{allow: public}, {deny: ${destination}}, {allow: ${destination}}]`, name).allowed).toBe(false);
  });
  it("the host's own search domains", () => {
    const options = { localSuffixes: () => [["corp", "example"]] };
    expect(judge("rules: [{allow: public}]", "db.corp.example", options)).toMatchObject({ allowed: false, special: "local" });
    expect(judge("rules: [{allow: public}]", "corp.example", options)).toMatchObject({ allowed: false, special: "local" });
    expect(judge("rules: [{allow: '*.corp.example'}]", "db.corp.example", options)).toMatchObject({ allowed: true });
    expect(judge("rules: [{allow: public}]", "other.example", options)).toMatchObject({ allowed: true });
  });
  it("reverse names of the host's own public addresses", () => {
    const host = parseAddress("93.184.216.1") as Uint8Array;
    expect(judge("rules: [{allow: public}]", "1.216.184.93.in-addr.arpa", { groups: groupTable({ hostAddresses: [host] }) })).toMatchObject({ allowed: false, special: "reverse" });
    expect(judge("rules: [{allow: public}]", "1.216.184.93.in-addr.arpa")).toMatchObject({ allowed: true });
  });
});

describe("the block list wins over every allow", () => {
  const text = "rules: [{allow: suffix:example.net}, {allow: public}]\ndns: {block: [ads.example.net, '*.track.example.net', suffix:evil.example]}";
  it("a blocked name carries the bits of rules that deny it, and no other", () => {
    expect(judge("rules: [{allow: a.example, ports: [1]}, {deny: a.example, ports: [2]}]\ndns: {block: [a.example]}", "a.example")).toEqual({ allowed: false, bits: [1], rule: null, reason: "blocked" });
    expect(judge("rules: [{allow: 'suffix:internal'}, {deny: metadata.google.internal, ports: [2]}]", "metadata.google.internal")).toMatchObject({ allowed: false, bits: [1], special: "metadata" });
  });
  it.each([["ads.example.net", false], ["x.ads.example.net", true], ["track.example.net", true], ["a.track.example.net", false], ["a.b.track.example.net", false], ["evil.example", false], ["a.evil.example", false], ["notevil.example", true], ["example.net", true]])("%s → %s", (name, allowed) => {
    const verdict = judge(text, name);
    expect(verdict.allowed).toBe(allowed);
    if (!allowed) expect(verdict).toEqual({ allowed: false, bits: [], rule: null, reason: "blocked" });
  });
});

describe("addressAllowedByRule: rebind protection's exception", () => {
  const host = groupTable({ hostAddresses: [parseAddress("10.0.0.1") as Uint8Array] });
  it.each([
    ["[{allow: private}]", "10.0.0.2", true], ["[{allow: private}]", "10.0.0.1", false], ["[{allow: 10.0.0.0/8}]", "10.0.0.2", true], ["[{allow: 10.0.0.0/8}]", "10.0.0.1", false], ["[{allow: 10.0.0.1}]", "10.0.0.1", true],
    ["[{allow: 10.0.0.0/8, ports: [80]}]", "10.0.0.2", false], ["[{allow: 10.0.0.0/8, proto: tcp}]", "10.0.0.2", false], ["[{deny: 10.0.0.2}, {allow: private}]", "10.0.0.2", false], ["[{deny: 10.0.0.2, ports: [22]}, {allow: private}]", "10.0.0.2", true],
    ["[{allow: 0.0.0.0/0}]", "10.0.0.2", false], ["[{allow: public}]", "10.0.0.2", false], ["[{allow: any}]", "10.0.0.2", false], ["[{allow: any}, {allow: private}]", "10.0.0.2", true], ["[{deny: any}, {allow: private}]", "10.0.0.2", false], ["[{allow: private, direction: ingress}]", "10.0.0.2", false], ["[{allow: a.example.net}]", "10.0.0.2", false], ["[]", "10.0.0.2", false],
  ])("%s: %s → %s", (rules, text, allowed) => {
    expect(addressAllowedByRule(policy(`rules: ${rules}`), parseAddress(text) as Uint8Array, host)).toBe(allowed);
  });
  it("without a table judges without a host", () => {
    expect(addressAllowedByRule(policy("rules: [{allow: private}]"), parseAddress("10.0.0.1") as Uint8Array)).toBe(true);
    expect(staticGroups.v4.length).toBeGreaterThan(20);
  });
});
