/** What `enforcer policy check` shows, and that a policy crosses to another thread whole. */
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { buildPolicy } from "../../src/policy/build.js";
import { policyReport, policyText } from "../../src/policy/check.js";
import { NameJudge } from "../../src/policy/judge.js";
import { parsePolicyText } from "../../src/policy/parse.js";

const file = parsePolicyText(`rules:
  - deny: metadata
  - allow: API.github.com
    proto: tcp
    ports: [443]
  - allow: 10.0.0.0/8
  - allow: 0.0.0.0/0
    ports: [80, 8000-8999]
  - deny: 10.0.0.7
  - allow: any
    proto: [udp, 47]
dns:
  upstreams: [1.1.1.1, "[2620:fe::fe]:5353"]
  block: [ads.example]
  allow_private: {"*.corp.example": [10.0.0.0/8]}
`, "policy.yaml");

it("the policies that a package has as examples are understood, and what is to be said of them is meant", () => {
  const said = readdirSync("packaging/examples").sort().map((name) => [name, buildPolicy({ file: parsePolicyText(readFileSync(path.join("packaging/examples", name), "utf8"), name) }).warnings.map(({ message }) => message)]);
  expect(said).toEqual([["build-worker.yaml", []], ["no-network.yaml", ["nothing is allowed outward: no rule of direction egress allows and the default denies"]], ["web-service.yaml", []]]);
});

describe("policy check", () => {
  it("for people", () => {
    const { policy, warnings } = buildPolicy({ file, tokens: ["allow:ingress@any:tcp:8080"] });
    expect(policyText(policyReport(policy, warnings))).toBe(`default egress   deny
default ingress  deny

rule  direction  action  destination     protocol      ports         covers
1     ingress    allow   any             tcp           8080          all addresses
2     egress     deny    metadata        tcp,udp,ping  any
3     egress     allow   api.github.com  tcp           443           addresses this sandbox got for the name
4     egress     allow   10.0.0.0/8      tcp,udp,ping  any           private addresses in it
5     egress     allow   0.0.0.0/0       tcp,udp       80,8000-8999  public addresses in it
6     egress     deny    10.0.0.7        tcp,udp,ping  any
7     egress     allow   any             udp,47        any           all addresses but host, metadata, loopback

rule bits   7 of 512
upstreams   1.1.1.1:53, [2620:fe::fe]:5353
rebinding   refused (REFUSED)
block list  1 of 1,000,000 names, answered NXDOMAIN
private     *.corp.example: 10.0.0.0/8
tls         names verified, nothing decrypted; ports 443, and 80 for plain HTTP
limits      flows 2048, pins 1024, names 1024, addresses_per_name 64, queries_in_flight 128, queries_per_second 500, events_per_second 100, connections_per_second 100, buffered_kib 65536, guest_addresses 64

policy.yaml:7: warning: rule 4: 0.0.0.0/0 covers only the public addresses in it; allow private, metadata or other groups by rules of their own, if they are meant
`);
  });
  it("without rules, without a network", () => {
    const { policy, warnings } = buildPolicy({ noNet: true, noRebind: true });
    const text = policyText(policyReport(policy, warnings));
    expect(text).toContain("no network: nothing passes in either direction and no name is resolved\n");
    expect(text).toContain("\nno rules\n");
    expect(text).toContain("rebinding   NOT refused");
    expect(text).toContain("block list  empty");
  });
  it("as JSON", () => {
    const { policy, warnings } = buildPolicy({ file });
    const report = JSON.parse(JSON.stringify(policyReport(policy, warnings)));
    expect(report).toMatchObject({ default_egress: "deny", no_net: false, bits: { used: 6, available: 512 }, dns: { block: 1, upstreams: ["1.1.1.1:53", "[2620:fe::fe]:5353"], allow_private: { "*.corp.example": ["10.0.0.0/8"] } }, limits: { flows: 2048 } });
    expect(report.rules[1]).toEqual({ number: 2, bit: 1, action: "allow", direction: "egress", destination: "api.github.com", kind: "name", proto: ["tcp"], ports: "443", counts_for: "addresses this sandbox got for the name", file: "policy.yaml", line: 3, methods: null, paths: null });
    expect(report.warnings).toHaveLength(1);
  });
});

describe("what a policy's author wrote reaches no terminal and no log as it is", () => {
  // Erases the screen by C0 and by C1, begins a line of its own, and turns the direction of writing.
  const written = "\\e[2J\\u009b2J\\nrule 1\\u202e", obeyed = /[^\P{Cc}\n]|\u202e/u;
  const policies = [
    `"${written}": 1`, `rules: [{allow: "${written}"}]`, `rules: [{allow: any, proto: "${written}"}]`, `rules: [{allow: any, "${written}": 1}]`, `dns: {block: [{file: "${written}"}]}`, `tls: {upstream_ca: ["${written}"]}`,
    `secrets: {A: {from: {env: A}, allowed_hosts: [a.example], on_violation: "${written}"}}`, `limits: {"${written}": 1}`,
  ];
  it.each(policies)("in what is said against %j", (text) => {
    let said = "";
    try {
      buildPolicy({ file: parsePolicyText(text, "policy.yaml") });
    } catch (error) {
      said = String(error);
    }
    expect(said).toMatch(/policy\.yaml:1: error: .*2J/);
    expect(said).not.toMatch(obeyed);
    expect(said).not.toContain("\nrule 1");
  });
  it("in what it was understood as", () => {
    const { policy, warnings } = buildPolicy({ file: parsePolicyText(`tls: {intercept: true}\nsecrets: {A: {from: {file: "/${written}"}, allowed_hosts: [a.example]}}`, "policy.yaml") });
    const text = policyText(policyReport(policy, warnings));
    expect(text).toMatch(/^secret {6}A from .*\\u001b\[2J\\u009b2J\\u000arule 1\\u202e/m);
    expect(text).not.toMatch(obeyed);
  });
});

it("a policy crosses by structured clone and judges the same", () => {
  const { policy } = buildPolicy({ file });
  // Shared memory stays with the process; a port to a worker takes it as it is.
  const { port1, port2 } = new MessageChannel();
  return new Promise<void>((resolve) => {
    port2.onmessage = ({ data }) => {
      for (const name of ["api.github.com", "ads.example", "other.example"]) expect(new NameJudge(data).judge(name.split("."))).toEqual(new NameJudge(policy).judge(name.split(".")));
      expect(data.rules).toEqual(policy.rules);
      port1.close();
      resolve();
    };
    port1.postMessage(policy);
  });
});
