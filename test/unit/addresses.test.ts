/** Addresses as bytes, and the groups they belong to: every row of the tables, every embedding, the host's own prefixes. */
import { readFileSync } from "node:fs";
import { isIPv6 } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  addressPrefix, formatAddress, formatPrefix, hasHostBits, isV4, mask, maskPrefix, parseAddress, parsePrefix, prefixContains, prefixWithin,
} from "../../src/addresses/address.js";
import { type GroupInput, classify, encodeGroups, groupNumber, groupOfPrefix, groupTable, groups, packGroups, staticGroups, unpackGroups } from "../../src/addresses/groups.js";
import { Group as KernelGroup } from "../../src/kernel/layout.gen.js";
import { dohPrefixes, metadataNames } from "../../src/addresses/tables.gen.js";

const address = (text: string): Uint8Array => {
  const parsed = parseAddress(text);
  if (parsed === null) throw new Error(`test: not an address: ${text}`);
  return parsed;
};
const prefix = (text: string) => {
  const parsed = parsePrefix(text);
  if (parsed === null) throw new Error(`test: not a prefix: ${text}`);
  return parsed;
};
const group = (text: string, input?: GroupInput): string => classify(input === undefined ? staticGroups : groupTable(input), address(text), text.includes(":") ? 6 : 4);

describe("parseAddress", () => {
  it.each([
    ["1.2.3.4", "1.2.3.4"], ["255.255.255.255", "255.255.255.255"], ["0.0.0.0", "0.0.0.0"],
    ["::", "::"], ["::1", "::1"], ["1::", "1::"], ["2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"], ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"], ["::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"], ["::ffff:10.0.0.1", "10.0.0.1"], ["64:ff9b::10.0.0.1", "64:ff9b::a00:1"],
    ["1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:102:304"], ["::1.2.3.4", "::102:304"], ["2001:0:0:1:0:0:0:1", "2001:0:0:1::1"], ["fe80::0001", "fe80::1"],
  ])("%s is %s", (text, canonical) => {
    expect(formatAddress(address(text))).toBe(canonical);
  });

  it.each([
    "", "1", "127.1", "0x7f.0.0.1", "2130706433", "01.2.3.4", "1.2.3.04", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.4 ", " 1.2.3.4", "1.2.3.+4", "１.2.3.4",
    ":", ":::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "::1::2", "12345::", "g::", "fe80::1%eth0", "[::1]", ":1:2:3:4:5:6:7", "1:2:3:4:5:6:7:",
    "::1.2.3", "1.2.3.4::", "::ffff:1.2.3.4:1", "::01.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "::1\0", "1:::2", "::1.2.3.4.5",
  ])("refuses %j", (text) => {
    expect(parseAddress(text)).toBeNull();
  });

  it("reads back what it wrote, as Node does", () => {
    fc.assert(fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.array(fc.integer({ min: 0, max: 15 })), (bytes, zeros) => {
      for (const i of zeros) bytes[i] = 0;
      const text = formatAddress(bytes);
      expect(parseAddress(text)).toEqual(bytes);
      if (!isV4(bytes)) expect(isIPv6(text)).toBe(true);
    }));
  });

  it("agrees with Node on which IPv6 texts are addresses", () => {
    const texts = fc.array(fc.constantFrom(":", "::", "0", "1", "ff", "12ab", "1.2.3.4", "255", ".", "x"), { minLength: 1, maxLength: 12 }).map((parts) => parts.join(""));
    fc.assert(fc.property(texts, (text) => {
      if (text.includes(":")) expect(parseAddress(text) !== null).toBe(isIPv6(text));
    }), { numRuns: 2000 });
  });
});

describe("prefixes", () => {
  it.each([["10.0.0.0/8", 104, 4], ["10.0.0.1", 128, 4], ["0.0.0.0/0", 96, 4], ["::/0", 0, 6], ["2000::/3", 3, 6], ["::ffff:168.0.0.0/103", 103, 6]])("%s", (text, length, family) => {
    expect(prefix(text)).toMatchObject({ length, family });
  });
  it.each(["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/08", "10.0.0.0/-1", "::/129", "::/1e1", "/8", "10.0.0.0/8/8", "a/8"])("refuses %s", (text) => {
    expect(parsePrefix(text)).toBeNull();
  });
  it("masks and compares", () => {
    expect(hasHostBits(prefix("10.0.0.1/8"))).toBe(true);
    expect(formatPrefix(maskPrefix(prefix("10.255.3.1/9")))).toBe("10.128.0.0/9");
    expect(formatPrefix(maskPrefix(prefix("2001:db8:ffff::/33")))).toBe("2001:db8:8000::/33");
    expect(prefixWithin(prefix("10.1.0.0/16"), prefix("10.0.0.0/8"))).toBe(true);
    expect(prefixWithin(prefix("10.0.0.0/8"), prefix("::/0"))).toBe(false);
    expect(prefixContains(prefix("::/0"), address("10.0.0.1"))).toBe(false);
    expect(prefixContains(prefix("::/0"), address("::ffff:10.0.0.1"), 6)).toBe(true);
    expect(formatPrefix(addressPrefix(address("10.0.0.1")))).toBe("10.0.0.1");
  });
});

describe("the tables", () => {
  const rows = (name: string): string[][] => readFileSync(new URL(`../../data/${name}`, import.meta.url), "utf8").split("\n").slice(2).filter((line) => line !== "").map((line) => line.split("\t"));
  const special: Record<string, string> = {
    "127.0.0.0/8": "loopback", "::1/128": "loopback", "10.0.0.0/8": "private", "172.16.0.0/12": "private", "192.168.0.0/16": "private", "100.64.0.0/10": "private",
    "fc00::/7": "private", "169.254.0.0/16": "link-local", "fe80::/10": "link-local", "224.0.0.0/4": "multicast", "ff00::/8": "multicast", "255.255.255.255/32": "multicast",
  };
  const last = (text: string): Uint8Array => {
    const { bytes, length } = prefix(text);
    return bytes.map((octet, i) => octet | (0xff >> Math.min(8, Math.max(0, length - 8 * i))));
  };

  it.each(rows("special_purpose.tsv").map((row) => row[0] as string))("A12: %s is not public, first and last address", (cidr) => {
    expect(groupOfPrefix(staticGroups, prefix(cidr))).toBe(special[cidr] ?? "reserved");
    for (const bytes of [prefix(cidr).bytes, last(cidr)]) expect(classify(staticGroups, bytes, cidr.includes(":") ? 6 : 4)).not.toBe("public");
  });

  it.each(rows("metadata_endpoints.tsv").flatMap((row) => (row[1] as string).replace(":41xxx", "").match(/[0-9a-f.:]*[.:][0-9a-f.:]+(\/\d+)?/g) ?? []))("A14: metadata endpoint %s is not public", (text) => {
    const found = classify(staticGroups, prefix(text).bytes);
    if (text.startsWith("127.")) expect(found).toBe("loopback");
    else if (text === "10.96.0.1") expect(found).toBe("private");
    else expect(found).toBe("metadata");
    expect(classify(staticGroups, last(text))).toBe(found);
  });

  it.each([
    "::ffff:10.0.0.1", "::8.8.8.8", "::ffff:0:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "fec0::1", "4000::1", "5f00::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:808:808::1", "1000::1", "8000::1", "e000::1", "100::1", "3fff:fff::1", "2001:db8::1",
  ])("A13: %s is not public", (text) => {
    expect(group(text)).not.toBe("public");
  });

  it.each([
    ["168.63.129.16", "metadata"], ["192.80.8.124", "metadata"], ["161.26.0.10", "metadata"], ["166.9.0.1", "metadata"], ["100.100.100.200", "metadata"],
    ["192.0.0.192", "metadata"], ["fd00:ec2::23", "metadata"], ["fd20:ce::254", "metadata"], ["fe80::a9fe:a9fe", "metadata"], ["169.254.169.254", "metadata"],
    ["169.254.1.1", "link-local"], ["100.64.0.1", "private"], ["255.255.255.255", "multicast"], ["240.0.0.1", "reserved"], ["0.0.0.0", "reserved"], ["::", "reserved"],
    ["192.31.196.1", "reserved"], ["8.8.8.8", "public"], ["2606:4700::1111", "public"], ["11.0.0.0", "public"], ["172.32.0.0", "public"], ["192.0.1.0", "public"], ["2001:200::1", "public"],
  ])("%s is %s", (text, expected) => {
    expect(group(text)).toBe(expected);
  });

  it("knows the names and the DoH resolvers", () => {
    expect(metadataNames).toContain("metadata.google.internal");
    expect(dohPrefixes).toContain("8.8.8.8");
    for (const text of dohPrefixes) expect(groupOfPrefix(staticGroups, prefix(text))).toBe("public");
  });
});

describe("embedded addresses", () => {
  const kinds: readonly (readonly [string, (v4: string) => string])[] = [
    ["mapped", (v4) => `::ffff:${v4}`], ["compatible", (v4) => `::${v4}`], ["SIIT", (v4) => `::ffff:0:${v4}`], ["NAT64", (v4) => `64:ff9b::${v4}`],
    ["local NAT64", (v4) => `64:ff9b:1::${v4}`], ["ISATAP", (v4) => `2606:4700::5efe:${v4}`], ["ISATAP, universal", (v4) => `2606:4700::200:5efe:${v4}`],
    ["6to4", (v4) => { const b = address(v4); return formatAddress(Uint8Array.of(0x20, 2, ...b.subarray(12), 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)); }],
    ["Teredo client", (v4) => { const b = address(v4).map((o) => o ^ 255); return formatAddress(Uint8Array.of(0x20, 1, 0, 0, 8, 8, 8, 8, 0, 0, 0, 0, ...b.subarray(12))); }],
    ["Teredo server", (v4) => { const b = address(v4); return formatAddress(Uint8Array.of(0x20, 1, 0, 0, ...b.subarray(12), 0, 0, 0, 0, 247, 247, 247, 247)); }],
  ];
  const host: GroupInput = { hostAddresses: [address("203.0.114.7")] };
  it.each(kinds)("%s is judged by the inner address, the stricter wins", (_, embed) => {
    const outer = embed("203.0.114.7");
    expect(classify(groupTable(host), address(outer), 6)).toBe("host");
    expect(classify(staticGroups, address(embed("169.254.169.254")), 6)).toBe("metadata");
    expect(classify(staticGroups, address(embed("127.0.0.1")), 6)).toBe("loopback");
    expect(classify(staticGroups, address(embed("10.0.0.1")), 6)).toBe("private");
  });
  it("an ISATAP identifier around a public address changes nothing", () => {
    expect(group("2606:4700::5efe:8.8.8.8")).toBe("public");
    expect(group("2606:4700::100:5efe:10.0.0.1")).toBe("public");
  });
  it.each([
    ["2a00:64::/32", "2a00:64:a00:1::"], ["2a00:64:100::/40", "2a00:64:10a:0:1::"], ["2a00:64:100::/48", "2a00:64:100:a00:0:100::"],
    ["2a00:64:100:100::/56", "2a00:64:100:10a:0:1::"], ["2a00:64:100:100::/64", "2a00:64:100:100:a:0:100:0"], ["2a00:64::/96", "2a00:64::10.0.0.1"],
  ])("RFC 6052 prefix %s: %s embeds 10.0.0.1", (nat64, text) => {
    expect(group(text, { nat64Prefixes: [nat64] })).toBe("private");
    expect(group(text)).toBe("public");
  });
  it("a configured NAT64 prefix is public by what it embeds", () => {
    const input: GroupInput = { nat64Prefixes: ["64:ff9b::/96"] };
    expect(group("64:ff9b::8.8.8.8", input)).toBe("public");
    expect(group("64:ff9b::10.0.0.1", input)).toBe("private");
    expect(group("64:ff9b::169.254.169.254", input)).toBe("metadata");
    expect(group("64:ff9b::8.8.8.8")).toBe("reserved");
    expect(group("64:ff9b:0:0:1::8.8.8.8", input)).toBe("reserved");
    expect(group("fd00:64::8.8.8.8", { nat64Prefixes: ["fd00:64::/96"] })).toBe("private");
  });
  it.each(["2002::/16", "::/96", "10.0.0.0/8", "64:ff9b::/95", "64:ff9b::1/96", "2000::/32x"])("refuses %s as a NAT64 prefix", (text) => {
    expect(() => groupTable({ nat64Prefixes: [text] })).toThrow(/nat64_prefixes: /);
  });
});

describe("the host", () => {
  const input: GroupInput = {
    hostAddresses: [address("10.0.0.1"), address("203.0.114.7"), address("2a00::7"), address("127.0.0.1"), address("169.254.169.254")],
    connectedPrefixes: [prefix("203.0.114.0/24"), prefix("fe80::/64"), prefix("169.254.0.0/16"), prefix("2a00::7/64"), prefix("0.0.0.0/0"), prefix("192.0.0.0/8")],
    broadcasts: [address("203.0.114.255"), address("203.0.113.255")],
    extra: { metadata: ["192.0.2.7"], private: ["198.18.0.0/15", "11.0.0.0/8"] },
  };
  it.each([
    ["10.0.0.1", "host"], ["203.0.114.7", "host"], ["2a00::7", "host"], ["127.0.0.1", "host"], ["127.0.0.2", "loopback"], ["169.254.169.254", "host"],
    ["203.0.114.8", "private"], ["203.0.114.255", "multicast"], ["203.0.113.255", "multicast"], ["fe80::1", "link-local"], ["169.254.9.9", "link-local"], ["2a00::8", "private"],
    ["2a00:0:0:1::8", "public"], ["8.8.8.8", "public"], ["192.1.1.1", "private"], ["192.0.2.1", "reserved"], ["192.0.2.7", "metadata"], ["198.18.3.3", "private"],
    ["11.2.3.4", "private"], ["2002:cb00:7207::1", "host"], ["192.168.1.1", "private"],
  ])("%s is %s", (text, expected) => {
    expect(group(text, input)).toBe(expected);
  });
  it.each([
    [{ extra: { public: ["1.1.1.1"] } }, /nothing can be added to `public`/],
    [{ extra: { private: ["10.0.0.1/8"] } }, /groups\.private: 10\.0\.0\.1\/8 has bits set/],
    [{ extra: { private: ["::ffff:10.0.0.0/104"] } }, /IPv4-mapped/],
    [{ extra: { metadata: ["lan"] } }, /groups\.metadata: not an address or prefix: "lan"/],
  ] as const)("refuses a wrong configuration", (wrong, message) => {
    expect(() => groupTable(wrong)).toThrow(message);
  });
});

describe("the kernel's form", () => {
  it("numbers the groups as the kernel does", () => {
    const names = Object.keys(KernelGroup).slice(0, -1).map((name) => name.replace("GROUP_", "").replace("_", "-").toLowerCase());
    expect(names).toEqual([...groups]);
    expect(Object.values(KernelGroup)).toEqual([...groups.map(groupNumber), groups.length]);
  });
  it("is the longest-prefix match over strictest-so-far entries", () => {
    const sources = fc.array(fc.tuple(fc.constantFrom(...groups.filter((g) => g !== "public")), fc.constantFrom("10.1.0.0", "10.1.2.3", "2a00:1::", "2a00:1:2::", "8.8.0.0", "2002:808::"), fc.integer({ min: 0, max: 128 })), { maxLength: 12 });
    fc.assert(fc.property(sources, fc.constantFrom("10.1.2.3", "10.1.2.4", "8.8.8.8", "2a00:1:2::3", "2a00:1::1", "2002:a01:203::1"), (list, text) => {
      const extra: Record<string, string[]> = {};
      const covering: number[] = [groupNumber(group(text) as never)];
      for (const [name, base, length] of list) {
        const family = base.includes(":") ? 6 : 4;
        const bits = family === 4 ? length % 33 : length;
        const masked = { bytes: mask(address(base), family === 4 ? bits + 96 : bits), length: family === 4 ? bits + 96 : bits, family } as const;
        (extra[name] ??= []).push(formatPrefix(masked));
        if (prefixContains(masked, address(text))) covering.push(groupNumber(name));
        // 6to4: the embedded address is judged as well
        if (text.startsWith("2002:") && prefixContains(masked, address("10.1.2.3"))) covering.push(groupNumber(name));
      }
      expect(groupNumber(classify(groupTable({ extra }), address(text)))).toBe(Math.min(...covering));
    }));
  });
  it("a table packed and unpacked is the same", () => {
    const table = groupTable({ hostAddresses: [parseAddress("192.0.2.1")!, parseAddress("2001:db8::1")!], connectedPrefixes: [parsePrefix("9.9.9.0/24")!], nat64Prefixes: ["2001:db8:64::/96"] });
    expect(unpackGroups(packGroups(table))).toEqual(table);
  });

  it("encodes keys and values", () => {
    const { groups4, groups6 } = encodeGroups(staticGroups);
    expect(groups4.keys.length).toBe(groups4.count * 8);
    expect(groups6.keys.length).toBe(groups6.count * 20);
    expect([...groups4.keys.subarray(0, 8)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
    expect([...groups4.values.subarray(0, 4)]).toEqual([7, 0, 0, 0]);
    const index = staticGroups.v6.findIndex((entry) => formatPrefix(entry.prefix) === "2002::/16");
    expect([...groups6.values.subarray(index * 4, index * 4 + 4)]).toEqual([6, 2, 0, 0]);
    expect([...groups6.keys.subarray(index * 20, index * 20 + 6)]).toEqual([16, 0, 0, 0, 0x20, 2]);
  });
});
