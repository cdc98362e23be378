/** What `explain` says, by case: a table of policies, pins and questions, each with its verdict, its words and its advice. */
import { describe, expect, it } from "vitest";
import { parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { groupTable } from "../../src/addresses/groups.js";
import { readQuestion } from "../../src/explain/ask.js";
import { explain, type ExplainFacts, type PinFact } from "../../src/explain/explain.js";
import { explanationText } from "../../src/cli/explain.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";

const address = (text: string): Uint8Array => parseAddress(text)!;
const hostAddresses = ["10.0.0.1", "203.0.114.1"].map(address);
const configured = { metadata: ["198.51.100.7/32"] } as const;
const groups = groupTable({ hostAddresses, connectedPrefixes: [parsePrefix("203.0.114.0/24")!], extra: configured });
const policyOf = (text: string, file = "policy.yaml") => buildPolicy({ file: parsePolicyText(text, file), groups }).policy;
const pin = (name: string, where: string, left: number): PinFact => ({ labels: name.split("."), address: address(where), left });

const POLICY = "rules:\n  - deny: tracker.example\n  - allow: api.example\n    proto: tcp\n    ports: [443]\n  - allow: 10.0.0.0/8\n    ports: [22]\n  - allow: any\n    direction: ingress\n    proto: tcp\n    ports: [8080]\n";
const facts = (more: Partial<ExplainFacts> = {}): ExplainFacts => ({ sandbox: "tap0", policy: policyOf(POLICY), floor: null, groups, pins: [], others: [], configured, hostAddresses, localSuffixes: [], ...more });

describe("explain", () => {
  it.each<[string, Parameters<typeof readQuestion>[0], Partial<ExplainFacts>, { verdict: string; reason: string; pin?: string; why?: RegExp; change?: RegExp | null }]>([
    ["a name that is allowed and was never asked for", { destination: "https://api.example/x" }, {}, { verdict: "allow", reason: "intercepted", why: /never asked for by this sandbox.*\n.*would be allowed under that name: rule 2 .*policy\.yaml:3/, change: null }],
    ["a live pin", { destination: "api.example" }, { pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "allow", reason: "intercepted", pin: "live", why: /pinned as api\.example for another 5 min/ }],
    ["an expired pin", { destination: "93.184.216.34", port: 443 }, { pins: [pin("api.example", "93.184.216.34", -30)] }, { verdict: "deny", reason: "pin-expired", pin: "expired", why: /expired 30 s ago: new flows need a new answer/, change: /look api\.example up again/ }],
    ["a pin under another name", { destination: "93.184.216.34" }, { pins: [pin("other.example", "93.184.216.34", 300)] }, { verdict: "deny", reason: "no-pin", pin: "live" }],
    ["another port", { destination: "api.example", port: 80 }, { pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "deny", reason: "default-public", why: /rule 2 .* speaks of port 443 of tcp/, change: /add tcp port 80 to rule 2/ }],
    ["another protocol", { destination: "api.example", protocol: "udp" }, { pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "deny", reason: "quic", change: /fall back to TCP/ }],
    ["what another sandbox was told", { destination: "93.184.216.34" }, { others: [{ sandbox: "tap1", name: "api.example" }] }, { verdict: "deny", reason: "no-pin", pin: "other-sandbox", why: /told to tap1 \(api\.example\): that grants tap0 nothing/ }],
    ["what nobody was told", { destination: "93.184.216.34" }, {}, { verdict: "deny", reason: "no-pin", pin: "never-asked", why: /never told 93\.184\.216\.34/, change: /allow: 93\.184\.216\.34/ }],
    ["a name that a rule denies", { destination: "tracker.example" }, {}, { verdict: "deny", reason: "lookup", why: /does not let tracker\.example be looked up: rule 1 .*policy\.yaml:2/, change: /put `allow: tracker\.example` before it/ }],
    ["a name that no rule names", { destination: "nobody.example" }, {}, { verdict: "deny", reason: "lookup", why: /no rule names it/, change: /add `allow: nobody\.example`/ }],
    ["a name of a metadata endpoint", { destination: "metadata.google.internal", port: 80 }, { policy: policyOf("rules: [{allow: public}]") }, { verdict: "deny", reason: "lookup", why: /names a metadata endpoint/ }],
    ["a blocked name", { destination: "ads.example" }, { policy: policyOf("rules: [{allow: public}]\ndns: {block: [ads.example]}") }, { verdict: "deny", reason: "lookup", why: /on the block list/, change: /off the block list/ }],
    ["a pinned address of the host's", { destination: "api.example" }, { pins: [pin("api.example", "203.0.114.1", 300)] }, { verdict: "deny", reason: "default-host", why: /names never open addresses of group host/, change: /allow the address itself/ }],
    ["a metadata endpoint", { destination: "169.254.169.254", port: 80 }, {}, { verdict: "deny", reason: "default-metadata", why: /group metadata: 169\.254\.169\.254, AWS EC2 IMDS \(data\/metadata_endpoints\.tsv\)/, change: /leave it/ }],
    ["a prefix of the configuration", { destination: "198.51.100.7" }, {}, { verdict: "deny", reason: "default-metadata", why: /configuration adds 198\.51\.100\.7\/32 \(groups\.metadata\)/ }],
    ["a private address by rule", { destination: "10.1.2.3", port: 22 }, {}, { verdict: "allow", reason: "rule-allow", why: /10\.0\.0\.0\/8, Private-Use.*\n.*by rule 3/ }],
    ["a network on a link", { destination: "203.0.114.9" }, {}, { verdict: "deny", reason: "default-private", why: /203\.0\.114\.0\/24 is on a link of the host/ }],
    ["an embedded address", { destination: "64:ff9b::a9fe:a9fe" }, {}, { verdict: "deny", reason: "default-metadata", why: /it embeds 169\.254\.169\.254/ }],
    ["port 53", { destination: "8.8.8.8", protocol: "udp", port: 53 }, {}, { verdict: "redirect", reason: "dns-redirect", why: /port 53 goes to the agent's resolver/ }],
    ["DNS over TLS", { destination: "8.8.8.8", port: 853 }, {}, { verdict: "deny", reason: "name-service", change: /ordinary DNS on port 53/ }],
    ["a protocol by number", { destination: "93.184.216.34", protocol: "47" }, {}, { verdict: "deny", reason: "protocol", change: /proto: 47/ }],
    ["ICMP beside a rule with ports", { destination: "api.example", protocol: "icmp" }, { pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "deny", reason: "default-public", why: /speaks of port 443 of tcp/, change: /^allow the name: `\{allow: api\.example, proto: icmp\}`\nallow the address: `\{allow: 93\.184\.216\.34, proto: icmp\}`$/ }],
    ["an echo request to a name with addresses of both families", { destination: "api.example", protocol: "icmp" }, { policy: policyOf("rules: [{allow: api.example}]"), pins: [pin("api.example", "2606:2800:220:1::1", 300), pin("api.example", "93.184.216.34", 300)] }, { verdict: "allow", reason: "rule-allow" }],
    ["an echo request to a name, of the family that it was not told of", { destination: "api.example", protocol: "icmpv6" }, { policy: policyOf("rules: [{allow: api.example}]"), pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "allow", reason: "rule-allow", why: /told no IPv6 address of api\.example\na public address that it has would be allowed/ }],
    ["an IPv6 echo request to a name that was never asked for", { destination: "api.example", protocol: "icmpv6" }, { policy: policyOf("rules: [{allow: api.example}]") }, { verdict: "allow", reason: "rule-allow", why: /never asked for/ }],
    ["DHCP", { destination: "10.0.0.1", protocol: "udp", port: 67 }, {}, { verdict: "deny", reason: "default-host", why: /a DHCP client \(from port 68\) reaches its gateway and the broadcast address whatever the rules say/ }],
    ["DHCPv6", { destination: "ff02::1:2", protocol: "udp", port: 547 }, {}, { verdict: "deny", reason: "default-multicast", why: /a DHCP client \(from port 546\) reaches it/ }],
    ["another protocol and port", { destination: "10.1.2.3", protocol: "udp", port: 53000 }, { policy: policyOf("rules: [{allow: 10.0.0.0/8, proto: tcp, ports: [22, 80-90]}]") }, { verdict: "deny", reason: "default-private", why: /speaks of ports 22,80-90 of tcp/, change: /add udp and port 53000 to rule 1/ }],
    ["another protocol, all ports", { destination: "10.1.2.3", protocol: "udp", port: 9 }, { policy: policyOf("rules: [{allow: 10.0.0.0/8, proto: tcp}]") }, { verdict: "deny", reason: "default-private", why: /speaks of tcp$/, change: /add udp to rule 1/ }],
    ["a port of another protocol", { destination: "10.1.2.3", protocol: "udp", port: 22 }, { policy: policyOf("rules: [{allow: 10.0.0.0/8, proto: tcp, ports: [22]}]") }, { verdict: "deny", reason: "default-private", change: /add udp to rule 1/ }],
    ["an IPv6 address that ends in a colon", { destination: "fd00:9::", port: 22 }, {}, { verdict: "deny", reason: "default-private", change: /`\{allow: "fd00:9::", proto: tcp, ports: \[22\]\}`/ }],
    ["inbound to a named port", { destination: "93.184.216.34", port: 8080, direction: "ingress" }, {}, { verdict: "allow", reason: "rule-allow" }],
    ["inbound to another", { destination: "93.184.216.34", port: 22, direction: "ingress" }, {}, { verdict: "deny", reason: "ingress-default", change: /direction: ingress/ }],
    ["what the floor denies", { destination: "10.1.2.3", port: 22 }, { floor: policyOf("rules: [{deny: private}, {allow: public}]", "floor.yaml") }, { verdict: "deny", reason: "floor", why: /the policy allows .*\n?.*the floor denies 10\.1\.2\.3 tcp 22 by rule 1 .*floor\.yaml:1/s, change: /in the floor, change rule 1/ }],
    ["what both deny", { destination: "10.1.2.3", port: 80 }, { floor: policyOf("rules: [{deny: private}]", "floor.yaml") }, { verdict: "deny", reason: "default-private", why: /the floor denies/ }],
    ["a rule that stands before", { destination: "10.9.9.9", port: 22 }, { policy: policyOf("rules:\n  - deny: 10.9.0.0/16\n  - allow: 10.0.0.0/8\n    ports: [22]\n") }, { verdict: "deny", reason: "rule-deny", change: /put rule 2 .* before it/ }],
    ["a name at an address that was told for another", { destination: "api.example" }, { policy: policyOf("tls: {verify_names: true}\nrules: [{allow: public}, {deny: bad.example}]") }, { verdict: "allow", reason: "rule-allow" }],
    ["QUIC", { destination: "api.example", protocol: "udp" }, { policy: policyOf("rules: [{allow: api.example}]"), pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "deny", reason: "quic", why: /QUIC does not show it/, change: /fall back to TCP/ }],
    ["an address whose names are looked at", { destination: "93.184.216.34" }, { pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "redirect", reason: "intercepted", why: /looks at the server name.*\n.*let through is what names api\.example/ }],
    ["a method that a rule speaks of", { destination: "api.example" }, { policy: policyOf("tls: {intercept: true}\nrules: [{allow: api.example, proto: tcp, ports: [443], methods: [GET]}]"), pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "allow", reason: "intercepted", why: /ended by the agent and begun again[\s\S]*held to rule 1/ }],
    ["plain HTTP", { destination: "http://api.example/" }, { policy: policyOf("rules: [{allow: api.example, ports: [80]}]"), pins: [pin("api.example", "93.184.216.34", 300)] }, { verdict: "allow", reason: "intercepted", why: /looks at the Host of each request/ }],
    ["a name in the host's search list", { destination: "intranet.corp.example" }, { policy: policyOf("rules: [{allow: public}]"), localSuffixes: [["corp", "example"]] }, { verdict: "deny", reason: "lookup", why: /names the host or its network/, change: /add `allow: intranet\.corp\.example`: a name of this kind needs a rule of its own/ }],
    ["a pin of a name in the host's search list", { destination: "93.184.216.34", port: 22 }, { policy: policyOf("rules: [{allow: 'suffix:example'}]"), localSuffixes: [["corp", "example"]], pins: [pin("git.corp.example", "93.184.216.34", 300)] }, { verdict: "deny", reason: "no-pin", change: /allow the name: `\{allow: git\.corp\.example/ }],
    ["an expired pin of a name that is blocked now", { destination: "93.184.216.34", port: 22 }, { policy: policyOf("rules: [{allow: ads.example}]\ndns: {block: [ads.example]}"), pins: [pin("ads.example", "93.184.216.34", -30)] }, { verdict: "deny", reason: "no-pin", why: /told for ads\.example opens nothing: it is on the block list/, change: /^take ads\.example off the block list\nallow the address/ }],
    ["a live pin of a name that is blocked now", { destination: "93.184.216.34", port: 22 }, { policy: policyOf("rules: [{allow: ads.example}]\ndns: {block: [ads.example]}"), pins: [pin("ads.example", "93.184.216.34", 30)] }, { verdict: "deny", reason: "no-pin", why: /told for ads\.example opens nothing: it is on the block list/, change: /^take ads\.example off the block list\nallow the address/ }],
    ["a blocked name at an address that another name opens", { destination: "https://ads.example/" }, { policy: policyOf("rules: [{allow: 'suffix:example', proto: tcp}]\ndns: {block: [ads.example]}"), pins: [pin("ads.example", "93.184.216.34", 30), pin("shop.example", "93.184.216.34", 30)] }, { verdict: "deny", reason: "lookup", why: /a connection that names ads\.example is refused: the name is on the block list/, change: /^take ads\.example off the block list$/ }],
    ["a header of IPv6", { destination: "2606:2800:220:1::1", protocol: "44" }, { policy: policyOf("rules: [{allow: public, proto: [44, 47]}]") }, { verdict: "deny", reason: "extension-header", why: /a header of IPv6 itself/, change: /names no protocol in an IPv6 packet/ }],
    ["the same number over IPv4", { destination: "93.184.216.34", protocol: "44" }, { policy: policyOf("rules: [{allow: public, proto: [44, 47]}]") }, { verdict: "allow", reason: "rule-allow" }],
    ["no network at all", { destination: "api.example" }, { policy: buildPolicy({ noNet: true }).policy }, { verdict: "deny", reason: "lookup", change: /without --no-net/ }],
  ])("%s", (_, query, more, want) => {
    const explained = explain(facts(more), readQuestion(query));
    const said = `${explanationText(explained)}`;
    expect({ verdict: explained.verdict, reason: explained.reason }, said).toEqual({ verdict: want.verdict, reason: want.reason });
    if (want.pin !== undefined) expect(explained.flows[0]?.pin, said).toBe(want.pin);
    if (want.why !== undefined) expect(explained.why.join("\n"), said).toMatch(want.why);
    if (want.change instanceof RegExp) expect(explained.change.join("\n"), said).toMatch(want.change);
    // What it advises as a rule is one, and changes what it says it would.
    for (const line of explained.change) {
      const [, of, rule] = /^(in the floor, )?.*?`(.*?)`/.exec(line) ?? [];
      if (rule === undefined) continue;
      const advised = `{${rule.replace(/^\{|\}$/g, "")}}`, { policy, floor } = facts(more);
      const withRule = (one: typeof policy, what: string): typeof policy => ({ ...one, rules: [...policyOf(`tls: {intercept: ${one.tls.intercept}}\nrules: [${what}]`).rules, ...one.rules].map((each, index) => ({ ...each, index })) });
      const changed = explain(facts({ ...more, policy: of === undefined ? withRule(policy, advised) : policy, floor: floor === null ? null : withRule(floor, of === undefined ? "{allow: any}, {allow: any, proto: [icmp, icmpv6]}" : advised) }), readQuestion(query));
      expect(changed.verdict, `${line}\n${said}\n${explanationText(changed)}`).not.toBe("deny");
    }
    if (explained.verdict === "allow") expect(explained.change).toEqual([]);
    else if (explained.verdict === "deny") expect(explained.change.length, said).toBeGreaterThan(0);
  });

  it.each([
    ["https://api.example/x?y", { port: 443, protocol: 6 }], ["http://api.example", { port: 80 }], ["http://api.example:8080/", { port: 8080 }], ["ssh://git.example", { port: 22 }],
    ["https://[2606:4700::1]/", { port: 443 }], ["2606:4700::1", { port: 443 }], ["API.Example.", { name: ["api", "example"] }],
    ["[2606:4700::1]", { port: 443, name: null }], ["[2606:4700::1]:8443", { port: 8443, name: null }], ["192.0.2.1:22", { port: 22, name: null }], ["api.example:8443", { port: 8443, name: ["api", "example"] }],
    ["https://b\u00fccher.example/", { port: 443, name: ["xn--bcher-kva", "example"] }], ["b\u00fccher.example:80", { port: 80, name: ["xn--bcher-kva", "example"] }],
  ])("reads %s", (destination, want) => {
    expect(readQuestion({ destination })).toMatchObject(want);
  });

  it.each([
    [{ destination: "192.0.2.1", protocol: "icmp", port: 5 }, /icmp has no ports/], [{ destination: "192.0.2.1", protocol: "47", port: 5 }, /has no ports/], [{ destination: "192.0.2.1:80", port: 443 }, /two ports: 80 of 192\.0\.2\.1:80, and 443/],
    [{ destination: "https://a.example:443/", port: 80 }, /two ports/], [{ destination: "foo://a.example:9/x", port: 80 }, /two ports/], [{ destination: "[2606:4700::1]:80", port: 443 }, /two ports/],
    [{ destination: "https://a.example/", port: 8443 }, null], [{ destination: "https://u:9@a.example/", port: 8443 }, null], [{ destination: "https://[2606:4700::1]/", port: 8443 }, null], [{ destination: "a.example:80", port: 80 }, null], [{ destination: "http://a.example:8080/", protocol: "icmp" }, null],
  ])("a port that is not one, or one of two: %j", (query, words) => {
    if (words === null) expect(readQuestion(query).port).toBe("port" in query ? query.port : 8080);
    else expect(() => readQuestion(query)).toThrow(expect.objectContaining({ code: "E_REQUEST", message: expect.stringMatching(words) as string }) as Error);
  });

  it.each([["not a name"], ["foo://x"], ["http://"], ["1.2.3"], ["*.example.com"], ["[2606:4700::1]:99999"], ["[nothing]"], ["api.example:99999"], ["1.2.3.4:x"]])("refuses %s", (destination) => {
    expect(() => readQuestion({ destination })).toThrow(expect.objectContaining({ code: "E_REQUEST" }) as Error);
  });
});
