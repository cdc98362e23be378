/** Hosts, targets, paths and rules about requests (A42, A48, A53): pure. */
import { describe, expect, it } from "vitest";
import { parseAddress, type Address } from "../../src/addresses/address.js";
import { staticGroups } from "../../src/addresses/groups.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import { isDnsMessage, requestFields, responseFields } from "../../src/tls/http/fields.js";
import { bodyOf } from "../../src/tls/http/framing.js";
import { parseHost, parseTarget, plainPath } from "../../src/tls/http/identity.js";
import { judgeRequest, matchesPath } from "../../src/tls/http/rules.js";
import { SandboxHttp, type ExchangeFacts } from "../../src/tls/http/sandbox-http.js";
import { httpReasons } from "../../src/tls/http/refusal.js";
import { Watch } from "../../src/tls/http/watch.js";

const policy = (text: string) => buildPolicy({ file: parsePolicyText(text, "p.yaml") }).policy;
const PUBLIC = parseAddress("93.184.216.34") as Address;

describe("A48, A53: hosts", () => {
  it.each([["a.example", "a.example", null], ["A.Example.", "a.example", null], ["a.example:443", "a.example", 443], ["under_score.example", "under_score.example", null], ["xn--bcher-kva.example", "xn--bcher-kva.example", null], ["localhost", "localhost", null]])("%s is %s", (text, name, port) => {
    expect(parseHost(text)).toEqual({ name, port });
  });
  it.each(["", ".", "a..b", ".a", "a.example..", "a b", "a\tb", " a", "a ", "a,b", "a@b", "a:b@c", "a:", "a:0", "a:65536", "a:+1", "a:1e1", "a/b", "a?b", "a#b", "a%2eb", "a\\b", "[::1]", "::1", "1.2.3.4", "127.1", "2130706433", "0x7f.1", "0x7f000001", "a.0x1", "a.1", "1.1.1.1\t", "[::ffff:7f00:1]", "localhost\0.allowed.example", "ａ.example", "a\u00adb.example", "a\u2024example", "\u212a.example", `${"a".repeat(64)}.b`, `${"a.".repeat(127)}a`, "*.example"])("%j is none", (text) => {
    expect(parseHost(text)).toBeNull();
  });
});

describe("targets and paths", () => {
  it.each([["GET", "/a?b", { kind: "origin", path: "/a?b" }], ["OPTIONS", "*", { kind: "asterisk" }], ["GET", "https://a/b?c", { kind: "absolute", scheme: "https", authority: "a", path: "/b?c" }], ["GET", "HTTPS://a", { kind: "absolute", scheme: "https", authority: "a", path: "/" }], ["GET", "https://a?b", { kind: "absolute", scheme: "https", authority: "a", path: "/?b" }]])("%s %s", (method, target, expected) => {
    expect(parseTarget(method, target)).toEqual(expected);
  });
  it.each([["GET", "*"], ["GET", ""], ["GET", "a"], ["GET", "/a#b"], ["GET", "/a b"], ["GET", "/\x00"], ["GET", "/é"], ["GET", "//a"].slice(0, 0), ["GET", "a:443"], ["GET", "https:/a"]].filter((row) => row.length > 0))("%s %j is none", (method, target) => {
    expect(parseTarget(method as string, target as string)).toBeNull();
  });
  it.each([["/a/b", "/a/b"], ["/a?x=/../y", "/a"], ["/a%20b", "/a%20b"], ["/%C3%A9", "/%C3%A9"], ["/", "/"]])("%s is plain", (target, path) => { expect(plainPath(target)).toBe(path); });
  it.each(["/a/../b", "/..", "/./a", "/a/.", "//a", "/a//b", "/a\\b", "/%2e%2e/a", "/%2E/a", "/a%2fb", "/a%2Fb", "/a%5cb", "/a%00b", "/a%0d", "/a%252e", "/a%", "/a%2", "/a%zz", "/a;b=c/d", "/%61dmin", "/a%7eb", "*"])("%s is not", (target) => { expect(plainPath(target)).toBeNull(); });
  it.each([["/repos/**", "/repos/a/b", true], ["/repos/**", "/repos/", true], ["/repos/**", "/repos", false], ["/repos/**", "/reposx", false], ["/repos/*", "/repos/a", true], ["/repos/*", "/repos/a/b", false], ["/repos/*/issues", "/repos/a/issues", true], ["/v*/x", "/v1/x", true], ["/a*b*c", "/aXbYc", true], ["/a*b*c", "/abc", true], ["/a*b*c", "/ac", false], ["/a*a", "/a", false], ["/**", "/", true], ["/**", "/a/b", true], ["/", "/", true], ["/", "/a", false], ["/a.b", "/axb", false], ["/*", "/", true]])("%s and %s: %s", (pattern, path, matches) => {
    expect(matchesPath(pattern, path)).toBe(matches);
  });
});

describe("rules about requests", () => {
  const text = `
tls: {intercept: true}
rules:
  - allow: api.example.com
    methods: [GET, HEAD]
    paths: ["/repos/**", /user]
  - allow: api.example.com
    methods: [POST]
    paths: [/graphql]
  - deny: "*.example.com"
  - allow: public
`;
  const judged = (method: string, target: string, name: string | null = "api.example.com", port = 443) =>
    judgeRequest(policy(text), staticGroups, { address: PUBLIC, port, labels: name === null ? null : name.split("."), method, target })?.reason ?? null;
  it.each([
    ["GET", "/repos/a", null], ["HEAD", "/user", null], ["GET", "/user?x", null], ["POST", "/graphql", null],
    ["POST", "/repos/a", "rule-method"], ["GET", "/graphql", "rule-path"], ["DELETE", "/user", "rule-method"], ["GET", "/", "rule-path"],
    ["GET", "/repos/../admin", "path-ambiguous"], ["GET", "/repos/%2e%2e/admin", "path-ambiguous"], ["OPTIONS", "*", "rule-method"],
  ])("%s %s: %s", (method, target, reason) => { expect(judged(method, target)).toBe(reason); });
  it("a broader rule behind does not open what the scoped ones left out; other hosts are its business", () => {
    expect(judged("DELETE", "/", "other.example.net")).toBeNull();
    expect(judged("DELETE", "/", null)).toBeNull();
    expect(judged("GET", "/", "x.example.com")).toBe("policy");
  });
  it("names the rule, and nothing of the host", () => {
    const refusal = judgeRequest(policy(text), staticGroups, { address: PUBLIC, port: 443, labels: ["api", "example", "com"], method: "PUT", target: "/" });
    expect(refusal).toMatchObject({ status: 403, close: false, message: "rule 1 (allow api.example.com) does not allow PUT" });
  });
});

describe("a sandbox's passages", () => {
  const make = (yaml: string, pinned = true, floor: string | null = null) => {
    const facts: ExchangeFacts[] = [];
    const http = new SandboxHttp({ policy: policy(yaml), floor: floor === null ? null : policy(floor), groups: staticGroups, watch: new Watch(), pinned: () => Promise.resolve(pinned), filter: (fact) => { facts.push(fact); return null; }, refused: () => undefined });
    return { http, facts };
  };
  const request = (host: string, method = "GET", fields: string[] = [], target = "/") => ({ host, method, target, fields, body: { kind: "none" } as const });
  it("a policy that changed holds for the next request; the floor beside it", async () => {
    const { http } = make("rules: [{allow: a.example}]");
    const passage = http.tlsPassage(["a", "example"], PUBLIC, 443);
    expect(await passage.judge(request("a.example"))).toBeNull();
    http.floor = policy("rules: [{deny: a.example}, {allow: public}]");
    expect(await passage.judge(request("a.example"))).toMatchObject({ reason: "policy", close: true });
    http.floor = null;
    http.policy = policy("rules: [{allow: b.example}]");
    expect(await passage.judge(request("a.example"))).toMatchObject({ reason: "policy", close: true });
  });
  it("plain HTTP: the host must be pinned; an address needs a rule of its own", async () => {
    expect(await make("rules: [{allow: a.example}]").http.plainPassage(PUBLIC, 80).judge(request("a.example"))).toBeNull();
    expect(await make("rules: [{allow: a.example}]", false).http.plainPassage(PUBLIC, 80).judge(request("a.example"))).toMatchObject({ reason: "host-denied" });
    expect(await make("rules: [{allow: a.example}]").http.plainPassage(PUBLIC, 80).judge(request("93.184.216.34"))).toMatchObject({ reason: "policy" });
    expect(await make("rules: [{deny: a.example}, {allow: public}]").http.plainPassage(PUBLIC, 80).judge(request("93.184.216.34"))).toBeNull();
  });
  it("DNS over HTTPS is refused where the policy says so", async () => {
    const doh = ["Content-Type", "application/dns-message"];
    expect(await make("tls: {intercept: true, deny_doh: true}\nrules: [{allow: a.example}]").http.tlsPassage(["a", "example"], PUBLIC, 443).judge(request("a.example", "POST", doh))).toMatchObject({ reason: "dns-message" });
    expect(await make("tls: {intercept: true}\nrules: [{allow: a.example}]").http.tlsPassage(["a", "example"], PUBLIC, 443).judge(request("a.example", "GET"))).toBeNull();
  });
  it("facts for the secrets' gate say what was checked", () => {
    const { http, facts } = make("rules: [{allow: a.example}]");
    void http.tlsPassage(["a", "example"], PUBLIC, 443).filter(request("a.example"));
    expect(facts[0]).toMatchObject({ tls: true, port: 443, labels: ["a", "example"], host: "a.example" });
  });
});

describe("fields", () => {
  it("leave out what is of one hop", () => {
    expect(requestFields(["Host", "x", "Connection", "close, X-A", "x-a", "1", "TE", "trailers, deflate", "Expect", "100-continue", "B", "2"], "h")).toEqual(["Host", "h", "TE", "trailers", "B", "2"]);
    expect(requestFields(["Connection", "cookie"], "h")).toBeNull();
    expect(responseFields(["Alt-Svc", "h3", "Connection", "X-A", "X-A", "1", "Content-Length", "5", "B", "2"])).toEqual(["Content-Length", "5", "B", "2"]);
  });
  it("DNS messages", () => {
    expect(isDnsMessage(["Accept", "application/dns-message"], "/")).toBe(true);
    expect(isDnsMessage([], "/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxl")).toBe(true);
    expect(isDnsMessage(["Content-Type", "application/json"], "/?dns=1")).toBe(false);
  });
  it("bodies", () => {
    expect(bodyOf(["Content-Length", "5"])).toEqual({ kind: "length", octets: 5 });
    expect(bodyOf(["Transfer-Encoding", "Chunked"])).toEqual({ kind: "chunked" });
    expect(bodyOf(["Content-Length", "5", "content-length", "5"])).toBeNull();
    expect(bodyOf(["Content-Length", "5", "Transfer-Encoding", "chunked"])).toBeNull();
  });
  it("every reason has its words", () => { for (const words of Object.values(httpReasons)) expect(words.length).toBeGreaterThan(10); });
});
