/** Whom a connection may be for: policy and floor, names and pins. */
import { describe, expect, test } from "vitest";
import { parseAddress } from "../../src/addresses/address.js";
import { groupTable } from "../../src/addresses/groups.js";
import { buildPolicy } from "../../src/policy/build.js";
import { parsePolicyText } from "../../src/policy/parse.js";
import type { Policy } from "../../src/policy/types.js";
import { ConnectionJudge, type NameReason, pathMatches } from "../../src/tls/judge.js";

const groups = groupTable({ hostAddresses: [], connectedPrefixes: [] });
const policyOf = (text: string): Policy => buildPolicy({ file: parsePolicyText(text, "test.yaml"), groups }).policy;
const ask = (policy: string, name: string, { pinned = true, port = 443, floor = null as string | null, address = "93.184.216.34" } = {}): NameReason =>
  new ConnectionJudge(policyOf(policy), floor === null ? null : policyOf(floor)).judge(groups, { address: parseAddress(address)!, port, labels: name.split("."), pinned }).reason;

const SHOP = "rules:\n  - allow: shop.example\n  - {allow: 'suffix:cdn.example', ports: [443]}\n";

describe("policy and pin", () => {
  test.each<[string, boolean, number, NameReason]>([
    ["shop.example", true, 443, "allowed"], ["shop.example", false, 443, "not-pinned"],
    ["other.example", true, 443, "name-denied"], ["other.example", false, 443, "name-denied"],
    ["a.cdn.example", true, 443, "allowed"], ["a.cdn.example", true, 8443, "name-denied"],
    ["sub.shop.example", true, 443, "name-denied"],
  ])("%s, pinned %s, port %i: %s", (name, pinned, port, reason) => expect(ask(SHOP, name, { pinned, port })).toBe(reason));

  test("a name that is denied is denied wherever it is said to be, one that nothing speaks of goes by address", () => {
    const policy = "rules:\n  - deny: evil.example\n  - allow: public\n";
    for (const pinned of [true, false]) {
      expect(ask(policy, "evil.example", { pinned })).toBe("name-denied");
      expect(ask(policy, "any.example", { pinned })).toBe("allowed");
    }
  });

  test("the floor holds beside the policy", () => {
    const floor = "default_egress: allow\nrules:\n  - deny: shop.example\n";
    expect(ask(SHOP, "shop.example", { floor })).toBe("name-denied");
    expect(ask(SHOP, "a.cdn.example", { floor })).toBe("allowed");
  });

  test("no rule by name opens a name on the block list, though it was told before it came there; what an address opens stays open", () => {
    const block = "dns: {block: [bad.cdn.example]}\n";
    for (const pinned of [true, false]) {
      expect(ask(SHOP + block, "bad.cdn.example", { pinned })).toBe("name-denied");
      expect(ask(SHOP, "bad.cdn.example", { pinned, floor: `rules: [{allow: public}]\n${block}` })).toBe(pinned ? "allowed" : "not-pinned");
      expect(ask(SHOP, "bad.cdn.example", { pinned, floor: SHOP + block })).toBe(pinned ? "name-denied" : "not-pinned");
    }
    expect(ask(SHOP + block, "a.cdn.example")).toBe("allowed");
    expect(ask(`tls: {intercept: true}\nrules: [{allow: public}]\n${block}`, "bad.cdn.example")).toBe("allowed");
  });

  test("a pin opens nothing in a group that names do not open", () => expect(ask(SHOP, "shop.example", { address: "169.254.169.254" })).toBe("name-denied"));
});

describe("methods and paths", () => {
  const judge = new ConnectionJudge(policyOf("rules:\n  - {allow: api.example, methods: [GET], paths: [/repos/**, /me]}\n  - {allow: api.example, methods: [POST], paths: [/issues]}\n  - {allow: other.example}\ntls: {intercept: true}\n"), null);
  const stopped = (name: string, method: string, target: string, ...fields: string[]): string | null =>
    judge.request({ address: parseAddress("93.184.216.34")!, port: 443, labels: name.split("."), pinned: true }, { method, target, fields })?.why ?? null;

  test.each<[string, string, string, string | null]>([
    ["api.example", "GET", "/repos/a/b?x=1", null], ["api.example", "GET", "/repos", null], ["api.example", "GET", "/me", null], ["api.example", "GET", "/me/x", "rule-path"],
    ["api.example", "GET", "/reposx", "rule-path"], ["api.example", "POST", "/issues", null], ["api.example", "DELETE", "/repos/a", "rule-method"],
    ["api.example", "GET", "/repos/../admin", "path-ambiguous"], ["api.example", "GET", "/repos/%2e%2e/admin", "path-ambiguous"], ["other.example", "DELETE", "/", null],
  ])("%s %s %s: %s", (name, method, target, why) => expect(stopped(name, method, target)).toBe(why));

  test.each<[string, string, string, string[], string | null]>([
    ["api.example", "POST", "/issues", ["X-HTTP-Method-Override", "DELETE"], "rule-method"], ["api.example", "POST", "/issues", ["x_http_method", "delete"], "rule-method"], ["api.example", "POST", "/issues", ["X-Method-Override", "POST, DELETE"], "rule-method"],
    ["api.example", "POST", "/issues", ["X-HTTP-Method-Override", "post"], null], ["api.example", "POST", "/issues?_method=DELETE", [], "rule-method"], ["api.example", "POST", "/issues?a=b&%5Fmethod=put", [], "rule-method"], ["api.example", "POST", "/issues?method=DELETE", [], null],
    ["api.example", "POST", "/issues?a;_method=DELETE", [], "rule-method"], ["api.example", "POST", "/issues?+.method=DELETE", [], "rule-method"], ["api.example", "POST", "/issues?%5bmethod%00x=DELETE", [], "rule-method"], ["api.example", "POST", "/issues?a.method=DELETE", [], null],
    ["api.example", "GET", "/me", ["X-Original-URL", "/admin"], "path-ambiguous"], ["api.example", "GET", "/me", ["X_Rewrite-Url", "/me"], "path-ambiguous"], ["other.example", "GET", "/me", ["X-Original-URL", "/admin", "X-HTTP-Method-Override", "DELETE"], null],
  ])("A47: %s %s %s with %j: %s", (name, method, target, fields, why) => expect(stopped(name, method, target, ...fields)).toBe(why));

  test.each<[string, string, boolean]>([["/a/*/c", "/a/b/c", true], ["/a/*/c", "/a/b/d/c", false], ["/a*z", "/abcz", true], ["/a*b*c", "/aXbXbc", true], ["/**", "/", true], ["/a/**", "/a", true], ["/a/**", "/ab", false]])("%s and %s", (pattern, path, matches) => expect(pathMatches(pattern, path)).toBe(matches));
});
