/** Hosts, targets, paths and fields (A42, A48, A53): pure. */
import { describe, expect, it } from "vitest";
import { isDnsContent, isDnsMessage, requestFields, responseFields } from "../../src/tls/http/fields.js";
import { bodyOf } from "../../src/tls/http/framing.js";
import { parseHost, parseTarget, plainPath } from "../../src/tls/http/identity.js";
import { httpReasons } from "../../src/tls/http/refusal.js";


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
  it.each([["/a/b", "/a/b"], ["/a?x=/../y", "/a"], ["/a%20b", "/a%20b"], ["/%C3%A9", "/%C3%A9"], ["/%e0%a4%85%f0%9f%98%80", "/%e0%a4%85%f0%9f%98%80"], ["/a...b/.well-known/x.%20", "/a...b/.well-known/x.%20"], ["/", "/"]])("%s is plain", (target, path) => { expect(plainPath(target)).toBe(path); });
  it.each(["/a/%c0%ae%C0%AE/b", "/a%e0%80%af", "/a%F0%80%80%af", "/a/..%20/b", "/a/%20./b", "/a/.../b", "/a/../b", "/..", "/./a", "/a/.", "//a", "/a//b", "/a\\b", "/%2e%2e/a", "/%2E/a", "/a%2fb", "/a%2Fb", "/a%5cb", "/a%00b", "/a%0d", "/a%252e", "/a%", "/a%2", "/a%zz", "/a;b=c/d", "/%61dmin", "/a%7eb", "*"])("%s is not", (target) => { expect(plainPath(target)).toBeNull(); });
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
    for (const query of ["%64ns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxl", "a=b&dns=%41AABAAABAAAAAAAAA3d3dwdleGFtcGxl", "name=a.example&ct=application%2Fdns-json"]) expect(isDnsMessage([], `/q?${query}`)).toBe(true);
    for (const type of ["Application/DNS-Message", "text/html, application/dns-json;q=0.5", "application/dns-udpwireformat", "application/oblivious-dns-message"]) expect([isDnsMessage(["Accept", type], "/"), isDnsContent(["Content-Type", type])]).toEqual([true, true]);
    for (const type of ["application/json", "application/dns", "text/plain; a=application/dns-message"]) expect(isDnsContent(["Content-Type", type])).toBe(false);
  });
  it("bodies", () => {
    expect(bodyOf(["Content-Length", "5"])).toEqual({ kind: "length", octets: 5 });
    expect(bodyOf(["Transfer-Encoding", "Chunked"])).toEqual({ kind: "chunked" });
    expect(bodyOf(["Content-Length", "5", "content-length", "5"])).toBeNull();
    expect(bodyOf(["Content-Length", "5", "Transfer-Encoding", "chunked"])).toBeNull();
  });
  it("every reason has its words", () => { for (const words of Object.values(httpReasons)) expect(words.length).toBeGreaterThan(10); });
});
