import { execFileSync } from "node:child_process";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import { closeFd, createNetns, openNetns, setNetns, Tap } from "../../native/index.js";
import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../src/addresses/address.js";
import { runDoctor } from "../../src/net/doctor.js";
import { addAddress, addRoute, createLink, deleteLink, listFilters, setLink } from "../../src/net/links.js";
import { readSysctl, writeSysctl, type SysctlFamily } from "../../src/net/sysctl.js";
import { prepareTap, restoreTap, tapFacts, type TapFacts } from "../../src/net/tap.js";

const home = openNetns();
const host = createNetns();
let taps: Tap[] = [];
let made: number[] = [];

beforeAll(() => setNetns(host));
afterAll(() => {
  setNetns(home);
  closeFd(host);
  closeFd(home);
});
afterEach(() => {
  for (const tap of taps) tap.close();
  for (const ifindex of made) deleteLink(ifindex);
  taps = [];
  made = [];
});

function makeTap(name: string): Tap {
  const tap = new Tap(name);
  taps.push(tap);
  setLink(tap.ifindex, { up: true });
  return tap;
}

function text(facts: TapFacts) {
  return { gateways: facts.gateways.map(formatAddress), subnets: facts.subnets.map(formatPrefix), learn: facts.learnPrefixes.map(formatPrefix), broadcasts: facts.broadcasts.map(formatAddress) };
}

const HYGIENE: [SysctlFamily, string, string, string][] = [
  ["ipv6", "accept_ra", "1", "0"], ["ipv6", "autoconf", "1", "0"], ["ipv6", "accept_redirects", "1", "0"], ["ipv4", "rp_filter", "0", "1"],
  ["ipv4", "arp_ignore", "0", "1"], ["ipv4", "arp_announce", "0", "2"], ["ipv4", "accept_redirects", "1", "0"], ["ipv4", "send_redirects", "1", "0"],
];

describe("tapFacts", () => {
  test("routed: addresses of the tap are the gateways", () => {
    const tap = makeTap("tap0");
    addAddress(tap.ifindex, parseAddress("172.16.0.1")!, 30);
    addAddress(tap.ifindex, parseAddress("2001:db8:5::1")!, 64, 2);
    addRoute({ destination: parsePrefix("10.77.0.0/24")!, ifindex: tap.ifindex });
    const facts = tapFacts("tap0");
    expect(facts).toMatchObject({ name: "tap0", ifindex: tap.ifindex, up: true, mtu: 1500, bridge: null, otherMaster: null, routers: [], xdp: null });
    expect(text(facts)).toEqual({
      gateways: ["172.16.0.1", "2001:db8:5::1", expect.stringMatching(/^fe80::/)], subnets: ["172.16.0.0/30", "2001:db8:5::/64"],
      learn: ["172.16.0.0/30", "10.77.0.0/24", "2001:db8:5::/64"], broadcasts: ["172.16.0.3"],
    });
  });

  test("bridged: addresses of the bridge are", () => {
    const bridge = createLink("br0", "bridge");
    made.push(bridge.ifindex);
    setLink(bridge.ifindex, { up: true });
    addAddress(bridge.ifindex, parseAddress("10.1.0.1")!, 24);
    const tap = makeTap("tap0");
    setLink(tap.ifindex, { master: bridge.ifindex });
    const facts = tapFacts("tap0");
    expect(facts.bridge).toMatchObject({ name: "br0", ifindex: bridge.ifindex });
    expect(text(facts)).toMatchObject({ gateways: ["10.1.0.1", expect.stringMatching(/^fe80::/)], subnets: ["10.1.0.0/24"], learn: ["10.1.0.0/24"] });
  });

  test("A06: another name of the tap is not taken for its name: what is held by name would hold nothing", () => {
    makeTap("tap0");
    execFileSync("ip", ["link", "property", "add", "dev", "tap0", "altname", "othername"]);
    expect(() => tapFacts("othername")).toThrow(expect.objectContaining({ code: "E_TAP_MISSING", message: expect.stringContaining("another name of tap0"), remedy: "name tap0 itself" }));
    expect(tapFacts("tap0").name).toBe("tap0");
  });

  test("a tap without any address has no gateway", () => {
    const tap = makeTap("tap0");
    setLink(tap.ifindex, { up: false });
    expect(tapFacts("tap0")).toMatchObject({ up: false, gateways: [], subnets: [], learnPrefixes: [] });
  });
});

describe("prepareTap", () => {
  test.each(["tap0", "tap.0", "vm-1.eth0@x", "a..b"])("%s: settings are made, told and taken back", (name) => {
    makeTap(name);
    for (const [family, setting, fresh] of HYGIENE) expect([setting, readSysctl(family, name, setting)]).toEqual([setting, fresh]);
    const preparation = prepareTap(name);
    for (const [family, setting, before, after] of HYGIENE) {
      expect([setting, readSysctl(family, name, setting)]).toEqual([setting, after]);
      expect(preparation.changes).toContainEqual(expect.objectContaining({ family, setting, before, after, why: expect.any(String) }));
    }
    expect(prepareTap(name).changes).toEqual([]);
    expect(restoreTap(JSON.parse(JSON.stringify(preparation)))).toBe(true);
    for (const [family, setting, fresh] of HYGIENE) expect([setting, readSysctl(family, name, setting)]).toEqual([setting, fresh]);
  });

  test("forwarding and proxy_arp stay as they are", () => {
    makeTap("tap0");
    writeSysctl("ipv4", "tap0", "proxy_arp", "1");
    writeSysctl("ipv4", "tap0", "forwarding", "1");
    prepareTap("tap0");
    expect([readSysctl("ipv4", "tap0", "proxy_arp"), readSysctl("ipv4", "tap0", "forwarding")]).toEqual(["1", "1"]);
  });

  test("taking back leaves what somebody changed since, and another device of the name", () => {
    const tap = makeTap("tap0");
    const preparation = prepareTap("tap0");
    writeSysctl("ipv4", "tap0", "rp_filter", "2");
    expect(restoreTap(preparation)).toBe(true);
    expect(readSysctl("ipv4", "tap0", "rp_filter")).toBe("2");
    const again = prepareTap("tap0");
    tap.close();
    makeTap("tap0");
    prepareTap("tap0");
    expect(restoreTap(again)).toBe(false);
    expect(readSysctl("ipv4", "tap0", "rp_filter")).toBe("1");
  });

  test("a loose host-wide reverse path filter is noted", () => {
    makeTap("tap0");
    writeSysctl("ipv4", "all", "rp_filter", "2");
    expect(prepareTap("tap0").notes).toEqual([expect.stringContaining("net.ipv4.conf.all.rp_filter is 2")]);
    writeSysctl("ipv4", "all", "rp_filter", "0");
  });

  test("a bridge is noted and not changed", () => {
    const bridge = createLink("br0", "bridge");
    made.push(bridge.ifindex);
    const tap = makeTap("tap0");
    setLink(tap.ifindex, { master: bridge.ifindex });
    const preparation = prepareTap("tap0");
    expect(preparation.notes).toHaveLength(2);
    expect(readSysctl("ipv6", "br0", "accept_ra")).toBe("1");
    expect(readSysctl("ipv6", "tap0", "accept_ra")).toBe("0");
  });

  test.each(["../all", "..", ".", "", "all", "default", "a b", "a/b", "a\nb", "sixteen-octets-x", "täp"])("the name %j is refused before it is used", (name) => {
    expect(() => prepareTap(name)).toThrow(expect.objectContaining({ code: "E_USAGE" }));
    expect(() => tapFacts(name)).toThrow(expect.objectContaining({ code: "E_USAGE" }));
    expect(() => readSysctl("ipv4", name === "all" || name === "default" ? "." : name, "rp_filter")).toThrow(expect.objectContaining({ code: "E_USAGE" }));
  });
});

test("doctor names filters that others put on a tap", () => {
  const tap = makeTap("tap0");
  execFileSync("tc", ["qdisc", "add", "dev", "tap0", "clsact"]);
  expect(listFilters(tap.ifindex, "ingress")).toEqual([]);
  execFileSync("tc", ["filter", "add", "dev", "tap0", "ingress", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0"]);
  expect(listFilters(tap.ifindex, "ingress")).toEqual([{ kind: "bpf", programId: null, name: null }]);
  expect(runDoctor({ bpffs: "/sys/fs/bpf", taps: ["tap0"] }).filter(({ check }) => check === "tap tap0")).toEqual([
    expect.objectContaining({ ok: "warn", detail: "programs of others at TC: bpf (clsact ingress)" }),
  ]);
});

test("doctor looks at taps and finds what is wrong with each", () => {
  makeTap("tap0");
  const findings = runDoctor({ bpffs: "/proc", taps: ["tap0", "lo", "tap9"] });
  expect(findings.find(({ check }) => check === "bpffs")).toMatchObject({ ok: "no", detail: "/proc is not on a bpf file system" });
  expect(findings.filter(({ check }) => check.startsWith("tap "))).toEqual([
    { check: "tap tap0", ok: "yes", detail: "no programs", remedy: null },
    expect.objectContaining({ check: "tap lo", ok: "no", detail: "is not a tap" }),
    expect.objectContaining({ check: "tap tap9", ok: "no", detail: "does not exist" }),
  ]);
  for (const { ok, remedy } of findings) expect(remedy === null).toBe(ok === "yes");
});
