/** Policy files and tokens: what is understood, and the exact words of every refusal. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { LineCounter } from "yaml";
import { EnforcerError } from "../../src/errors.js";
import { formatAddress } from "../../src/addresses/address.js";
import { buildPolicy, parseRuleToken } from "../../src/policy/build.js";
import { PolicyError, formatDiagnostic, nearest } from "../../src/policy/diagnostics.js";
import { formatPattern } from "../../src/policy/names.js";
import { parsePolicyFile, parsePolicyText, parseUpstream } from "../../src/policy/parse.js";
// Threads run what was built.
import { readPolicyApart } from "../../dist/policy/read-apart.js";
import { formatDestination, formatPorts } from "../../src/policy/rules.js";
import { ERRORS_MAX, readYaml } from "../../src/policy/yaml.js";

/** Texts that nest deeper than any policy; each would use up the stack of whoever recurses over it. */
const deep: readonly [string, string][] = [
  ["flow lists", "[".repeat(100_000)], ["flow maps", "{a: ".repeat(100_000)], ["lists on one line", "- ".repeat(100_000)], ["keys that are maps", "? ".repeat(100_000)],
  ["lists that end", `rules: ${"[".repeat(50_000)}${"]".repeat(50_000)}`], ["indentation", Array.from({ length: 2_000 }, (_, i) => `${" ".repeat(i)}a:`).join("\n")],
];

/** Milliseconds: a busy machine must not fail a property. */
const SLOW = 120_000;

function errorsOf(run: () => unknown): string[] {
  try {
    run();
  } catch (error) {
    if (error instanceof PolicyError) return error.diagnostics.map(formatDiagnostic);
    throw error;
  }
  return [];
}
const inFile = (text: string): string[] => errorsOf(() => parsePolicyText(text, "p.yaml"));
const inRule = (fields: string): string[] => inFile(`rules: [{${fields}}]`).map((line) => line.replace("p.yaml:1: error: rule 1: ", ""));
const inToken = (token: string): string[] => errorsOf(() => parseRuleToken(token, 1)).map((line) => line.replace(`--rule ${JSON.stringify(token)}: error: rule 1: `, ""));

describe("files: refusals", () => {
  it.each([
    ["default_egres: deny", 'p.yaml:1: error: unknown key "default_egres" in the policy; did you mean default_egress?'],
    ["default_egress: Allow", 'p.yaml:1: error: default_egress must be allow or deny, not "Allow"; did you mean allow?'],
    ["default_egress: [deny]", 'p.yaml:1: error: default_egress must be allow or deny, not ""; write one of: allow, deny'],
    ["\nrules: {allow: public}", "p.yaml:2: error: rules must be a list; write rules: [ … ]"],
    ["rules:\n  - deny: metadata\n  - public", "p.yaml:3: error: rule 2: a rule must be a mapping of keys to values; its keys are: allow, deny, direction, proto, ports, methods, paths"],
    ["rules:\n  - allow: *.example.com", 'p.yaml:2: error: rule 1: allow is a YAML alias; put quotes around it: "*.example.com"'],
    ["rules: [&a {allow: public}, *a]", "p.yaml:1: error: rule 2: a rule is a YAML alias; write the value itself; aliases are not read"],
    ["rules: [{allow: !!str public}]", "p.yaml:1: error: rule 1: allow has a YAML tag; remove the tag"],
    ["rules: [{allow: !foo public}]", "p.yaml:1: error: not valid YAML: Unresolved tag: !foo; mend the YAML; names that begin with `*` need quotes"],
    ["default_egress: deny\ndefault_egress: allow", "p.yaml:2: error: not valid YAML: Map keys must be unique; remove one of the two"],
    ['{"rules": [{"allow": "a.example", "allow": "b.example"}]}', "p.yaml:1: error: not valid YAML: Map keys must be unique; remove one of the two"],
    ["rules: []\n---\nrules: []", "p.yaml:2: error: not valid YAML: the source has more than one document; keep one document in the file"],
    ["\t- x", "p.yaml:1: error: not valid YAML: Tabs are not allowed as indentation; indent with spaces"],
    ["[]", "p.yaml:1: error: the policy must be a mapping of keys to values; its keys are: default_egress, default_ingress, rules, dns, tls, secrets, limits"],
    ["dns:", "p.yaml:1: error: dns must be a mapping of keys to values; its keys are: upstreams, block, rebind_protection, allow_private, on_blocked, on_rebind"],
    ["__proto__: {}", 'p.yaml:1: error: unknown key "__proto__" in the policy; write one of: default_egress, default_ingress, rules, dns, tls, secrets, limits'],
    ["dns: {rebind_protection: yes}", "p.yaml:1: error: rebind_protection must be true or false; write true or false"],
    ["dns: {on_blocked: drop}", 'p.yaml:1: error: on_blocked must be nxdomain or refused, not "drop"; write one of: nxdomain, refused'],
    ["dns: {upstreams: [dns.google]}", 'p.yaml:1: error: "dns.google" is not the address of a resolver; write an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53'],
    ["dns: {upstreams: [224.0.0.251]}", 'p.yaml:1: error: "224.0.0.251" is no host\'s address; write the address of a resolver'],
    ["dns: {upstreams: []}", "p.yaml:1: error: upstreams is empty; name at least one, or remove `upstreams`"],
    ["dns: {block: ['*.zip']}", 'p.yaml:1: error: "*.zip" covers a public suffix: anybody can register names there; name the domains you mean; to refuse all of zip, put the pattern into a file and name that under dns.block'],
    ["dns: {block: [{url: x}]}", 'p.yaml:1: error: unknown key "url" in a block list entry; write one of: file'],
    ["dns: {allow_private: [x]}", 'p.yaml:1: error: allow_private must be a mapping of names to prefixes; write allow_private: {"*.corp.example": [10.0.0.0/8]}'],
    ["dns: {allow_private: {'*.com': [10.0.0.0/8]}}", 'p.yaml:1: error: "*.com" covers a public suffix: anybody can register names there; name the domains you mean, such as *.example.com'],
    ["dns: {allow_private: {a.example: [10.0.0.1/8]}}", 'p.yaml:1: error: "10.0.0.1/8" has bits set behind its length; write 10.0.0.0/8, or the address without a length'],
    ["limits: {flows: 1}", "p.yaml:1: error: flows must be a whole number from 16 to 1048576; write flows: 16"],
    ["limits: {queries_per_second: 1.5}", "p.yaml:1: error: queries_per_second must be a whole number from 1 to 1000000; write queries_per_second: 2"],
    ["limits: {pin: 100}", 'p.yaml:1: error: unknown key "pin" in limits; did you mean pins?'],
    ["tls: {ports: [53]}", "p.yaml:1: error: port 53 is the resolver's; name ports on which TLS servers are reached"],
    ["tls: {upstream_ca: [/nowhere.pem]}", "p.yaml:1: error: /nowhere.pem cannot be read: ENOENT: no such file or directory, open '/nowhere.pem'; name a file with certificates in PEM form"],
    ["tls: {dot: maybe}", 'p.yaml:1: error: dot must be terminate or refuse, not "maybe"; write one of: terminate, refuse'],
    ["tls: {intercept: maybe}", "p.yaml:1: error: intercept must be true or false; write true or false"],
    ["secrets:\n  A: {from: {env: A}}", "p.yaml:2: error: the secret A has no allowed_hosts; name the hosts that may get it"],
    ["secrets:\n  A: {allowed_hosts: [a.example.com]}", "p.yaml:2: error: the secret A does not say where its value comes from; write from: {file: PATH}, {env: NAME}, {credential: NAME} or {command: [ARGV]}"],
    ["secrets:\n  A-B: {}", 'p.yaml:2: error: "A-B" is no name of a secret; use letters, digits and underscores: it is an environment variable in the guest'],
    ["secrets:\n  A: {from: {command: [pass]}, allowed_hosts: [a.example.com]}", "p.yaml:2: error: the command is not named by an absolute path; write [/usr/bin/pass, show, token]; there is no shell and no search path"],
    ["secrets:\n  A: {from: {env: A}, allowed_hosts: [a.example.com], ports: [80]}", "p.yaml:2: error: a secret never goes out in the clear; name a port of TLS"],
    ["secrets:\n  A: {from: {env: A}, allowed_hosts: [a.example.com], inject: {headers: [Host]}}", "p.yaml:2: error: a secret cannot go into host; name a header of the application's"],
  ])("%j", (text, message) => {
    expect(inFile(text)).toEqual([message]);
  });

  it.each([
    ["alow: public", 'unknown key "alow" in a rule; did you mean allow?'],
    ["allow: public, port: 80", 'unknown key "port" in a rule; did you mean ports?'],
    ["allow: public, protocol: tcp", 'unknown key "protocol" in a rule; write one of: allow, deny, direction, proto, ports, methods, paths'],
    ["allow: public, deny: any", "the rule says allow and deny; make two rules; the first that matches wins"],
    ["proto: tcp", "the rule says neither allow nor deny; write `allow: DESTINATION` or `deny: DESTINATION`"],
    ["allow: public, direction: inbound", 'direction must be egress or ingress, not "inbound"; write one of: egress, ingress'],
    ["allow: public, methods: [GET]", "methods and paths belong to rules that allow a name outward; write them in a rule such as `allow: api.example.com`"],
    ["allow: public, paths: [/x]", "methods and paths belong to rules that allow a name outward; write them in a rule such as `allow: api.example.com`"],
    ["allow: [a.example, b.example]", "allow must be text; write one value; a list of them needs one rule (or entry) each"],
    ["allow: 1.1", 'allow must be text, not a number; put quotes around it: "1.1"'],
    ["allow: '*.com'", '"*.com" covers a public suffix: anybody can register names there; name the domains you mean, such as *.example.com'],
    ["allow: '*.za'", '"*.za" covers public suffixes such as ac.za: anybody can register names there; name the domains you mean, such as *.example.ac.za'],
    ["deny: suffix:vestfold.no", '"suffix:vestfold.no" covers public suffixes such as sande.vestfold.no: anybody can register names there; name the domains you mean; to refuse all of vestfold.no, put the pattern into a file and name that under dns.block'],
    ["allow: '*.co.uk'", '"*.co.uk" covers a public suffix: anybody can register names there; name the domains you mean, such as *.example.co.uk'],
    ["allow: suffix:com", '"suffix:com" covers a public suffix: anybody can register names there; name the domains you mean, such as *.example.com'],
    ["allow: '*.kawasaki.jp'", '"*.kawasaki.jp" covers a public suffix: anybody can register names there; name the domains you mean, such as *.example.kawasaki.jp'],
    ["allow: '*'", "`*` is every name; write the group `public` (or `any`) instead"],
    ["allow: 'a.*.example'", '"a.*.example": `*` stands only at the front, as a whole label; write *.example.com (below the name), or suffix:example.com (the name too)'],
    ["allow: '*x.example'", '"*x.example": `*` stands only at the front, as a whole label; write *.example.com (below the name), or suffix:example.com (the name too)'],
    ["allow: '*.*.example'", '"*.example": `*` stands only at the front, as a whole label; write *.example.com (below the name), or suffix:example.com (the name too)'],
    ["allow: pubic", 'unknown destination "pubic"; did you mean public? A host name of one label is written with a dot behind it: pubic.'],
    ["allow: link_local", 'unknown destination "link_local"; did you mean link-local? A host name of one label is written with a dot behind it: link_local.'],
    ["allow: Any", 'unknown destination "Any"; did you mean any? A host name of one label is written with a dot behind it: Any.'],
    ["allow: intranet", 'unknown destination "intranet"; write one of host, metadata, loopback, private, link-local, multicast, reserved, public, any, doh, an address or a name; a host name of one label is written with a dot behind it: intranet.'],
    ["allow: 10.0.0.1/8", '"10.0.0.1/8" has bits set behind its length; write 10.0.0.0/8, or the address without a length'],
    ["allow: '2001:db8::1/32'", '"2001:db8::1/32" has bits set behind its length; write 2001:db8::/32, or the address without a length'],
    ["allow: '::ffff:168.0.0.0/103'", '"::ffff:168.0.0.0/103" is an IPv4-mapped prefix; write the IPv4 form: 168.0.0.0/7'],
    ["allow: '::ffff:10.0.0.1'", '"::ffff:10.0.0.1" is an IPv4-mapped prefix; write the IPv4 form: 10.0.0.1'],
    ["allow: '::ffff:0:0/96'", '"::ffff:0:0/96" is an IPv4-mapped prefix; write the IPv4 form: 0.0.0.0/0'],
    ["allow: 300.1.1.1", '"300.1.1.1" is not an address or prefix; write an address such as 192.0.2.1 or a prefix such as 192.0.2.0/24 or 2001:db8::/32'],
    ["allow: 010.0.0.1", '"010.0.0.1" is not an address or prefix; write an address such as 192.0.2.1 or a prefix such as 192.0.2.0/24 or 2001:db8::/32'],
    ["allow: 10.0.0.0/33", '"10.0.0.0/33" is not an address or prefix; write an address such as 192.0.2.1 or a prefix such as 192.0.2.0/24 or 2001:db8::/32'],
    ["allow: '[::1]'", '"[::1]": brackets belong to tokens only; write ::1'],
    ["allow: 'fe80::1%eth0'", '"fe80::1%eth0" has characters that no host name has; write letters, digits, hyphens and underscores'],
    ["allow: 0x7f.1", '"0x7f.1" looks like an address, but is not a well-formed one; write four decimal parts without leading zeros'],
    ["allow: '*.1.2.3.4'", '"*.1.2.3.4" is an address, not a name; write the address alone, in a rule'],
    ["allow: https://example.com/", '"https://example.com/" is not a name; write the host\'s name alone, without scheme, path or port'],
    ["allow: 'example.com:443'", '"example.com:443" is not a name; write the port under `ports` (in a token: NAME:tcp:PORT)'],
    ["allow: 'exa mple.com'", '"exa mple.com" has white space or control characters; write the name alone'],
    ['allow: "localhost\\0.allowed.example"', '"localhost\\u0000.allowed.example" has white space or control characters; write the name alone'],
    ["allow: ｅxample.com", '"ｅxample.com" is ambiguous as an internationalised name; write example.com if that is the name you mean'],
    ["allow: 'example。com'", '"example。com" is ambiguous as an internationalised name; write example.com if that is the name you mean'],
    ["allow: '\u212aelvin.example'", '"\u212aelvin.example" is ambiguous as an internationalised name; write kelvin.example if that is the name you mean'],
    ["allow: xn--a.com", '"xn--a.com": xn--a is not a valid A-label; write the name as it is in DNS'],
    ["allow: a..example", '"a..example" has an empty label; remove the doubled, leading or second trailing dot'],
    ["allow: example.com..", '"example.com.." has an empty label; remove the doubled, leading or second trailing dot'],
    [`allow: ${"a".repeat(64)}.example`, `"${"a".repeat(64)}.example" has a label longer than 63 octets; write the name as it is in DNS`],
    [`allow: ${"abcdefg.".repeat(32)}example`, `"${"abcdefg.".repeat(32)}example" is longer than 253 octets; write the name as it is in DNS`],
    ["allow: public, proto: tpc", 'protocol "tpc" is unknown; did you mean tcp?'],
    ["allow: public, proto: any", 'protocol "any" is unknown; leave `proto` out: that is tcp, udp and ICMP echo'],
    ["allow: public, proto: 256", "protocol number 256 does not exist; write 0 to 255, or tcp, udp, icmp, icmpv6; ports belong under `ports`"],
    ["allow: public, proto: constructor", 'protocol "constructor" is unknown; write tcp, udp, icmp, icmpv6 or a protocol number'],
    ["allow: public, proto: []", "proto is empty; name at least one, or remove `proto`"],
    ["allow: public, ports: []", "ports is empty; name at least one, or remove `ports`"],
    ["allow: public, ports:", "ports is empty; name at least one, or remove `ports`"],
    ["allow: public, ports: [0]", '"0" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow: public, ports: [65536]", '"65536" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow: public, ports: [0x50]", '"0x50" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow: public, ports: [080]", '"080" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow: public, ports: [-1]", '"-1" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow: public, ports: ['80,443']", '"80,443" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow: public, ports: [90-80]", "the port range 90-80 runs backwards; write 80-90"],
    ["allow: public, ports: [[80]]", "a port must be a number or a range; write a port from 1 to 65535, or a range such as 8000-8999"],
    ["allow: public, proto: icmp, ports: [1]", "protocol icmp has no ports; remove `ports`, or make a rule of its own for icmp"],
    ["allow: public, proto: [tcp, 47], ports: [1]", "protocol 47 has no ports; remove `ports`, or make a rule of its own for 47"],
  ])("rule {%s}", (fields, message) => {
    expect(inRule(fields)).toEqual([message]);
  });

  it("tells every error at once, each at its line", () => {
    expect(inFile("default_egress: no\nrules:\n  - allow: pubic\n  - {deny: any, port: 1}\n  - allow: public\n    ports:\n      - 80\n      - 0\nlimit: {}\n")).toEqual([
      'p.yaml:1: error: default_egress must be allow or deny, not "no"; write one of: allow, deny',
      'p.yaml:3: error: rule 1: unknown destination "pubic"; did you mean public? A host name of one label is written with a dot behind it: pubic.',
      'p.yaml:4: error: rule 2: unknown key "port" in a rule; did you mean ports?',
      'p.yaml:8: error: rule 3: "0" is not a port; write a port from 1 to 65535, or a range such as 8000-8999',
      'p.yaml:9: error: unknown key "limit" in the policy; did you mean limits?',
    ]);
  });
  it("shortens a flood of errors", () => {
    const errors = inFile(`rules:\n${"  - {allow: pubic}\n".repeat(1000)}`);
    expect(errors).toHaveLength(51);
    expect(errors.at(-1)).toContain("950 more errors; mend these first");
  });
  it("refuses what nests without end", () => {
    expect(inFile("[".repeat(20000)).length).toBeGreaterThan(0);
    expect(inFile("a: &a [*a]").length).toBeGreaterThan(0);
  });
  it("never does anything but understand or refuse", () => {
    const pieces = fc.constantFrom("rules", "allow", "deny", ":", " ", "\n", "- ", "[", "]", "{", "}", ",", "public", "*.x.example", "'", '"', "&a", "*a", "!!", "?", "|", ">", "#", "80", "ports", "proto", "tcp", "dns", "block", "\t", "---", "null", "~", "\0");
    fc.assert(fc.property(fc.array(pieces, { maxLength: 30 }), (parts) => {
      try {
        buildPolicy({ file: parsePolicyText(parts.join(""), "p.yaml") });
      } catch (error) {
        expect(error).toBeInstanceOf(PolicyError);
      }
    }), { numRuns: 1000 });
  }, SLOW);
});

describe("files: understood", () => {
  it("the specification's example, without what this version does not have", () => {
    const source = parsePolicyText(`
default_egress: deny
default_ingress: deny
rules:
  - deny:  metadata
  - allow: api.github.com          # one exact name
    proto: tcp
    ports: [443]
  - allow: "*.githubusercontent.com"
  - allow: suffix:pypi.org
  - allow: 93.184.216.0/24
    proto: [tcp, udp]
    ports: [80, 8000-8999]
  - allow: any
    direction: ingress
    proto: tcp
    ports: [8080]
dns:
  upstreams: [1.1.1.1, "9.9.9.9:53"]
  block: [ads.example, "*.tracker.example"]
  rebind_protection: true
  allow_private:
    "*.corp.example": [10.0.0.0/8]
tls: {intercept: false}
secrets: {}
`, "p.yaml");
    const { policy, warnings } = buildPolicy({ file: source });
    expect(policy.rules.map((rule) => [rule.index, rule.place.line, rule.action, formatDestination(rule.destination), rule.direction, rule.protos, rule.ports === null ? null : formatPorts(rule.ports)])).toEqual([
      [0, 5, "deny", "metadata", "egress", null, null],
      [1, 6, "allow", "api.github.com", "egress", [6], "443"],
      [2, 9, "allow", "*.githubusercontent.com", "egress", null, null],
      [3, 10, "allow", "suffix:pypi.org", "egress", null, null],
      [4, 11, "allow", "93.184.216.0/24", "egress", [6, 17], "80,8000-8999"],
      [5, 14, "allow", "any", "ingress", [6], "8080"],
    ]);
    expect(policy.dns.upstreams?.map(({ address, port }) => [formatAddress(address), port])).toEqual([["1.1.1.1", 53], ["9.9.9.9", 53]]);
    expect(policy.dns.block.exact.length).toBe(1);
    expect(policy.dns.block.below.length).toBe(1);
    expect(policy.dns.allowPrivate.map(({ pattern }) => formatPattern(pattern))).toEqual(["*.corp.example"]);
    expect(policy.dns.rebindProtection).toBe(true);
    expect(warnings.map((warning) => warning.message)).toEqual(['"*.githubusercontent.com": customers of githubusercontent.com can all create names there']);
  });
  it("JSON, with tabs", () => {
    expect(parsePolicyText('{\n\t"rules": [\n\t\t{"allow": "public", "ports": [80, "443"]}\n\t]\n}', "p.json").rules[0]).toMatchObject({ action: "allow", ports: [{ first: 80, last: 80 }, { first: 443, last: 443 }] });
  });
  it.each([
    ["API.GitHub.COM.", "api.github.com"], ["münchen.de", "xn--mnchen-3ya.de"], ["MÜNCHEN.de", "xn--mnchen-3ya.de"], ["faß.de", "xn--fa-hia.de"], ["XN--MNCHEN-3YA.de", "xn--mnchen-3ya.de"], ["_dmarc.example.com", "_dmarc.example.com"],
    ["localhost", "localhost"], ["pubic.", "pubic"], ["r3---sn-x.googlevideo.com", "r3---sn-x.googlevideo.com"], ["'*.lan'", "*.lan"], ["suffix:Example.ORG.", "suffix:example.org"], ["'2001:DB8:0::/48'", "2001:db8::/48"], ["10.0.0.1/32", "10.0.0.1"], ["169.254.169.254", "169.254.169.254"],
  ])("A60: %s is %s", (text, canonical) => {
    const { rules } = parsePolicyText(`rules: [{allow: ${text}}]`, "p.yaml");
    expect(formatDestination((rules[0] as (typeof rules)[number]).destination)).toBe(canonical);
  });
  it("a bad policy leaves nothing, an empty one allows nothing and says so", () => {
    for (const text of ["", "null", "rules:", "rules: []", "# nothing"]) {
      const { policy, warnings } = buildPolicy({ file: parsePolicyText(text, "p.yaml") });
      expect(policy).toMatchObject({ defaultEgress: "deny", defaultIngress: "deny", rules: [] });
      expect(warnings.map((warning) => warning.message)).toEqual(["nothing is allowed outward: no rule of direction egress allows and the default denies"]);
    }
  });
});

describe("tokens", () => {
  it.each([
    ["allow@public:tcp:443", { action: "allow", direction: "egress", protos: [6], ports: [{ first: 443, last: 443 }] }, "public"],
    ["deny@metadata", { action: "deny", direction: "egress", protos: null, ports: null }, "metadata"],
    ["allow:ingress@any:tcp:8080", { action: "allow", direction: "ingress", protos: [6], ports: [{ first: 8080, last: 8080 }] }, "any"],
    ["allow@[2606:4700::]/32", { action: "allow", protos: null }, "2606:4700::/32"],
    ["allow@[2606:4700::1111]:udp:443", { protos: [17] }, "2606:4700::1111"],
    ["allow@*.example.com:tcp:443", { protos: [6] }, "*.example.com"],
    ["allow@suffix:example.com:tcp,udp:443,80-90", { protos: [6, 17], ports: [{ first: 80, last: 90 }, { first: 443, last: 443 }] }, "suffix:example.com"],
    ["allow@192.0.2.1:proto-47", { protos: [47], ports: null }, "192.0.2.1"],
    ["deny@any:icmp", { protos: [1] }, "any"],
  ])("%s", (token, expected, destination) => {
    const rule = parseRuleToken(token, 1);
    expect(rule).toMatchObject(expected);
    expect(formatDestination(rule.destination)).toBe(destination);
  });
  const form = "write ACTION[:DIRECTION]@DESTINATION[:PROTOCOL[:PORTS]], such as allow@public:tcp:443 or deny@[2001:db8::]/32";
  it.each([
    ["allow@https://example.com/", "a URL is no destination; write the host's name alone, without scheme and path; the port as :tcp:PORT"],
    ["public", `the token has no \`@\`; ${form}`],
    ["permit@any", 'unknown action "permit"; write one of: allow, deny'],
    ["alow@any", 'unknown action "alow"; did you mean allow?'],
    ["allow:ingres@any", 'unknown direction "ingres"; did you mean ingress?'],
    ["allow:egress:x@any", `too many words before \`@\`; ${form}`],
    ["allow@", `the token names no destination; ${form}`],
    ["allow@x.com:tcp:443:1", `too many words after the destination; ${form}`],
    ["allow@2606:4700::/32", "an IPv6 address needs brackets in a token; write [2606:4700::]/32"],
    ["allow@[1.2.3.4]", "only IPv6 addresses stand in brackets; write 1.2.3.4"],
    ["allow@[::1", `the bracket is not closed; ${form}`],
    ["allow@[::1]x", `"x" after the bracket; ${form}`],
    ["allow@x.com:80", '"80" could be a port or a protocol; write :tcp:80 for the port, or :proto-80 for the protocol number'],
    ["allow@x.com::80", "the protocol is empty; write it, such as :tcp:80, or leave the colon out"],
    ["allow@x.com:tcp:", '"" is not a port; write a port from 1 to 65535, or a range such as 8000-8999'],
    ["allow@x.com:proto-300", "protocol number 300 does not exist; write 0 to 255, or tcp, udp, icmp, icmpv6; ports belong under `ports`"],
    ["allow@*.com", '"*.com" covers a public suffix: anybody can register names there; name the domains you mean, such as *.example.com'],
    ["allow@1.2.3.4/24:tcp:1", '"1.2.3.4/24" has bits set behind its length; write 1.2.3.0/24, or the address without a length'],
  ])("refuses %s", (token, message) => {
    expect(inToken(token)).toEqual([message]);
  });
});

describe("one policy from several sources", () => {
  const rules = (input: Parameters<typeof buildPolicy>[0]): string[] => buildPolicy(input).policy.rules.map((rule) => `${rule.index} ${rule.action} ${rule.direction} ${formatDestination(rule.destination)}`);
  it("without anything: allow public, both defaults deny", () => {
    const { policy, warnings } = buildPolicy({});
    expect(rules({})).toEqual(["0 allow egress public"]);
    expect(policy).toMatchObject({ defaultEgress: "deny", defaultIngress: "deny", noNet: false, dns: { upstreams: null, rebindProtection: true, onBlocked: "nxdomain", onRebind: "refused" } });
    expect(policy.limits).toMatchObject({ flows: 2048, pins: 1024, addressesPerName: 64 });
    expect(warnings).toEqual([]);
  });
  it("an egress token replaces the built-in rule, an ingress token does not", () => {
    expect(rules({ tokens: ["allow@a.example"] })).toEqual(["0 allow egress a.example"]);
    expect(rules({ tokens: ["allow:ingress@any:tcp:80"] })).toEqual(["0 allow ingress any", "1 allow egress public"]);
  });
  it("tokens come before the file, flags win over it", () => {
    const file = parsePolicyText("default_egress: deny\nrules: [{allow: public}]\nlimits: {flows: 100}", "p.yaml");
    expect(rules({ file, tokens: ["deny@a.example", "deny@b.example"] })).toEqual(["0 deny egress a.example", "1 deny egress b.example", "2 allow egress public"]);
    const { policy } = buildPolicy({ file, defaultEgress: "allow", defaultIngress: "allow", noRebind: true });
    expect(policy).toMatchObject({ defaultEgress: "allow", defaultIngress: "allow", dns: { rebindProtection: false }, limits: { flows: 100, pins: 1024 } });
  });
  it("--no-net wins over everything", () => {
    const { policy, warnings } = buildPolicy({ noNet: true, defaultEgress: "allow", tokens: ["allow@any"], file: parsePolicyText("default_ingress: allow\nrules: [{allow: any}]", "p.yaml") });
    expect(policy).toMatchObject({ noNet: true, defaultEgress: "deny", defaultIngress: "deny", rules: [] });
    expect(warnings).toEqual([]);
  });
  it("errors of the file and of tokens come together", () => {
    const directory = mkdtempSync(join(tmpdir(), "policy-"));
    const path = join(directory, "p.yaml");
    writeFileSync(path, "rules: [{allow: pubic}]");
    const errors = errorsOf(() => buildPolicy({ file: path, tokens: ["x", "deny@any"] }));
    rmSync(directory, { recursive: true });
    expect(errors.map((line) => line.replace(directory, ""))).toEqual([expect.stringContaining("/p.yaml:1: error: rule 1:"), expect.stringContaining('--rule "x": error: rule 1:')]);
  });
});

describe("files on disk", () => {
  const directory = mkdtempSync(join(tmpdir(), "policy-"));
  afterAll(() => rmSync(directory, { recursive: true }));
  it("block files are relative to the policy", () => {
    writeFileSync(join(directory, "list.txt"), "ads.example\n*.x.example\nsuffix:zip\n");
    writeFileSync(join(directory, "p.yaml"), "dns: {block: [a.example, {file: list.txt}]}");
    const { dns } = parsePolicyFile(join(directory, "p.yaml"));
    expect([dns.block?.exact.length, dns.block?.below.length, dns.block?.suffix.length]).toEqual([2, 1, 1]);
  });
  it("a block file that is missing or wrong is an error at its place", () => {
    writeFileSync(join(directory, "bad.txt"), "ok.example\n||ads.example^\n");
    writeFileSync(join(directory, "q.yaml"), "dns:\n  block:\n    - {file: none.txt}\n    - {file: bad.txt}\n");
    const errors = errorsOf(() => parsePolicyFile(join(directory, "q.yaml"))).map((line) => line.replaceAll(directory, "DIR"));
    expect(errors).toEqual([
      "DIR/q.yaml:3: error: block list DIR/none.txt cannot be read: ENOENT: no such file or directory, open 'DIR/none.txt'; name a readable file; a relative path starts at the policy file's directory",
      'DIR/bad.txt:2: error: "||ads.example^" has characters that no host name has; use the list\'s plain or hosts edition; filter syntax is not read',
    ]);
  });
  it.each([["missing.yaml", /ENOENT/], [".", /directory/]])("%s: E_POLICY_FILE", (name, message) => {
    try {
      parsePolicyFile(join(directory, name));
      expect.unreachable();
    } catch (error) {
      expect((error as EnforcerError).code).toBe("E_POLICY_FILE");
      expect((error as EnforcerError).message).toMatch(message);
    }
  });
  it("text that is not UTF-8 is refused", () => {
    writeFileSync(join(directory, "latin.yaml"), Buffer.from([0x72, 0x3a, 0xff]));
    expect(() => parsePolicyFile(join(directory, "latin.yaml"))).toThrow(EnforcerError);
  });
});

describe("small parts", () => {
  it.each([["1.1.1.1", "1.1.1.1", 53], ["9.9.9.9:5353", "9.9.9.9", 5353], ["[2620:fe::fe]:53", "2620:fe::fe", 53], ["2620:fe::fe", "2620:fe::fe", 53], ["[::1]", "::1", 53]])("upstream %s", (text, address, port) => {
    const parsed = parseUpstream(text);
    expect(parsed.ok && [formatAddress(parsed.value.address), parsed.value.port]).toEqual([address, port]);
  });
  it.each(["", "1.1.1.1:0", "1.1.1.1:65536", "1.1.1.1:", "::1:53:", "[1.1.1.1]:53", "localhost", "0.0.0.0", "ff02::fb", "1.1.1.1:53x"])("not an upstream: %j", (text) => {
    expect(parseUpstream(text).ok).toBe(false);
  });
  it("suggests only what is near", () => {
    expect(nearest("dfeault_egress", ["default_egress", "rules"])).toBe("default_egress");
    expect(nearest("banana", ["allow", "deny"])).toBeNull();
  });
});

describe("tls and secrets", () => {
  const read = (text: string) => buildPolicy({ file: parsePolicyText(text, "p.yaml") }).policy;

  it("names are verified where rules are by name, and only there, unless the file says otherwise", () => {
    expect(read("rules: [{allow: public}]").tls).toMatchObject({ intercept: false, verifyNames: false, ports: [443] });
    expect(read("rules: [{allow: api.example.com}]").tls.verifyNames).toBe(true);
    expect(read("rules: [{allow: api.example.com}]\ntls: {verify_names: false, ports: [8443]}").tls).toMatchObject({ verifyNames: false, ports: [443, 8443] });
    expect(read("rules: [{allow: public}]\ntls: {intercept: true}").tls).toMatchObject({ intercept: true, verifyNames: true, dot: "terminate", denyDoh: false });
  });

  it("a secret is where it comes from, never a value", () => {
    const { secrets } = read("tls: {intercept: true}\nsecrets:\n  TOKEN: {from: {file: token.txt}, allowed_hosts: [api.example.com, '*.example.org'], inject: {headers: [X-Token], query: true}, on_violation: {pass: [llm.example.com]}, ttl: 60}");
    expect(secrets).toMatchObject([{
      name: "TOKEN", from: { kind: "file" }, ports: [443], ttl: 60, failureTtl: null, inject: { headers: ["x-token"], query: true, body: false, path: false },
      allowedHosts: [{ kind: "exact", labels: ["api", "example", "com"] }, { kind: "below", labels: ["example", "org"] }],
      onViolation: { action: "pass", hosts: [{ kind: "exact", labels: ["llm", "example", "com"] }] }, placeholder: { prefix: "", sameLength: false, jwt: false },
    }]);
  });

  it.each([
    ["rules: [{allow: api.example.com, methods: [GET]}]", "methods and paths can be seen only where TLS is intercepted"],
    ["secrets: {A: {from: {env: A}, allowed_hosts: [a.example.com]}}", "can be put in only where TLS is intercepted"],
    ["tls: {intercept: true, verify_names: false}", "verify_names: false contradicts intercept: true"],
    ["tls: {intercept: true}\nrules: [{allow: api.example.com, methods: [get]}]", "methods are upper case: get"],
    ["tls: {intercept: true}\nrules: [{allow: api.example.com, paths: [/a/../b]}]", "is not in normal form"],
    ["tls: {intercept: true}\nrules: [{allow: api.example.com, paths: ['/a/**/b']}]", "at the end only"],
    ["tls: {intercept: true}\nsecrets: {A: {from: {env: A}, allowed_hosts: ['*.github.io']}}", "others can register names there, and would get the secret A"],
    ["tls: {intercept: true}\nsecrets: {A: {from: {env: A}, allowed_hosts: ['*.amazonaws.com']}}", "others can register names there, and would get the secret A"],
    ["secrets: {A: {from: {env: A}, allowed_hosts: ['*.com']}}", "public suffix"],
  ])("%j is refused", (text, words) => {
    expect(() => read(text)).toThrow(words);
  });

  it("requests may be named by method and path", () => {
    expect(read("tls: {intercept: true}\nrules: [{allow: api.example.com, methods: [GET, HEAD], paths: [/repos/**, '/users/*/keys']}]").rules[0]?.http).toEqual({ methods: ["GET", "HEAD"], paths: ["/repos/**", "/users/*/keys"] });
  });

  it("a rule about requests speaks of the ports on which they are seen, and of no other", () => {
    const rule = (text: string, tls = "intercept: true"): unknown => read(`tls: {${tls}}\nrules: [{allow: api.example.com, methods: [GET]${text}}]`).rules[0];
    const [http, https, other] = [80, 443, 8443].map((port) => ({ first: port, last: port }));
    expect(rule("")).toMatchObject({ protos: [6], ports: [http, https] });
    expect(rule("", "intercept: true, ports: [8443]")).toMatchObject({ protos: [6], ports: [http, https, other] });
    expect(rule(", ports: [443]")).toMatchObject({ protos: [6], ports: [https] });
    expect(rule(", proto: tcp, ports: [8443]", "intercept: true, ports: [8443]")).toMatchObject({ protos: [6], ports: [other] });
    expect(() => rule(", ports: [443, 8000-8443]", "intercept: true, ports: [8443]")).toThrow("methods and paths are not seen on port 8000-8443");
    expect(() => rule(", proto: [tcp, udp]")).toThrow("methods and paths are those of TCP connections, not of udp");
    // Without them a rule is what it was.
    expect(read("tls: {intercept: true}\nrules: [{allow: api.example.com}]").rules[0]).toMatchObject({ protos: null, ports: null });
    expect(buildPolicy({ file: parsePolicyText("tls: {intercept: true, bypass: ['*.example.com']}\nrules: [{allow: api.example.com, methods: [GET]}]", "p.yaml") }).warnings.map(formatDiagnostic)).toEqual([expect.stringContaining("methods and paths of api.example.com are not seen")]);
  });
});

describe("what nests too deep is refused where it does, before anything recurses over it", () => {
  it.each(deep)("%s", (_what, text) => {
    expect(inFile(text)).toEqual([`p.yaml: error: the file cannot be parsed: it nests more than 64 levels deep; write a policy as in the documentation; it nests four levels deep at most`]);
  });
  it.each([["block", Array.from({ length: 100_000 }, (_, i) => `k${i}: 1`).join("\n")], ["flow", `{${Array.from({ length: 100_000 }, (_, i) => `k${i}: 1`).join(", ")}}`]])("so is a mapping of too many keys, each of which would be compared with all others (%s)", (_what, text) => {
    expect(inFile(text)).toEqual([expect.stringContaining("a mapping in it has more than 4096 keys")]);
  });
  it("64 levels are read", () => {
    expect(inFile(`rules: ${"[".repeat(60)}${"]".repeat(60)}`)).toEqual([expect.stringContaining("a rule must be a mapping")]);
  });
});

/** Megabytes that are no policy; each was seconds of work, one error an octet. */
const garbage: readonly [string, string, string][] = [
  ["quotes", '"'.repeat(200_000), "Unexpected double-quoted-scalar"], ["lists side by side", "[]".repeat(100_000), "Unexpected flow-seq-start"], ["closing brackets", "]".repeat(200_000), "Unexpected flow-seq-end"],
  ["commas", `[${",".repeat(200_000)}]`, "Unexpected , in flow sequence"], ["anchors", "&a ".repeat(50_000), "at most one anchor"], ["tags", "! ".repeat(50_000), "at most one tag"], ["directives", "%a b\n".repeat(50_000), "Unknown directive"],
  ["escapes", `"${"\\q".repeat(50_000)}"`, "Invalid escape"],
];

describe("what is no YAML is read no further than its first errors", () => {
  it.each(garbage)("%s", (_, text, words) => {
    const document = readYaml(text, { lineCounter: new LineCounter(), prettyErrors: false });
    expect(document.errors.length).toBeGreaterThan(0);
    expect(document.errors.length).toBeLessThanOrEqual(ERRORS_MAX);
    const told = errorsOf(() => parsePolicyText(text, "p.yaml"));
    expect(told.length).toBeLessThanOrEqual(3);
    expect(told[0]).toContain(words);
    expect(told[0]).toMatch(/^p\.yaml:\d+: error: not valid YAML: /);
  });

  it("a sentence quotes no more of a file than one reads", () => {
    for (const text of [`rules: [{allow: ${"a".repeat(500_000)}}]`, `${"k".repeat(1000)}: 1`, `rules: [{allow: "${"é".repeat(300_000)} "}]`, "!".repeat(500_000)]) for (const line of errorsOf(() => parsePolicyText(text, "p.yaml"))) expect(line.length).toBeLessThan(2500);
  });

  it("blank lines and comments around a document are nothing", () => {
    expect(parsePolicyText(`${"\n# before\n".repeat(1000)}rules: [{allow: public}]${"\n# behind\n\n".repeat(1000)}`, "p.yaml").rules).toHaveLength(1);
    expect(parsePolicyText("# nothing\n\n\n", "p.yaml").rules).toEqual([]);
  });
});

describe("a text that a thread of its own reads", () => {
  it("is understood as if it had been read here", async () => {
    const text = `default_ingress: deny\nrules:\n${Array.from({ length: 300 }, (_, i) => `  - {allow: "*.h${i}.example", proto: tcp, ports: [443, 8000-8010]}\n  - deny: 10.${i % 256}.0.0/16\n`).join("")}dns: {upstreams: [192.0.2.53], block: [ads.example, "*.ads.example"]}\nlimits: {flows: 100}\n`;
    expect(await readPolicyApart("/p.yaml", text)).toEqual(parsePolicyText(text, "/p.yaml"));
  });

  it("is refused as if it had been read here, one after the other", async () => {
    const texts = ["rules: [{alow: public}]", '"'.repeat(20_000), "limits: {flows: 0}\nrules: 7"];
    const refusals = await Promise.all(texts.map((text) => readPolicyApart("/p.yaml", text).then(() => null, (error: unknown) => error)));
    texts.forEach((text, i) => {
      expect(refusals[i]).toMatchObject({ code: "E_POLICY" });
      expect((refusals[i] as PolicyError).diagnostics.map(formatDiagnostic)).toEqual(errorsOf(() => parsePolicyText(text, "/p.yaml")));
    });
  });
});
