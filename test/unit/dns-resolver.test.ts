/** The resolver's table (SPEC: DNS), row by row, and the attack rows A26 to A38 as far as they need no packets. */
import { describe, expect, it } from "vitest";
import { searchDomains } from "../../src/dns/host-resolvers.js";
import { grants } from "../../src/dns/pins.js";
import { showName } from "../../src/dns/wire.js";
import { a, aaaa, addressesOf, always, cname, ip, opt, query, see, soa, u16, u32, wireName, World, type ReplyOptions, type Rr, type Seen, type WorldOptions } from "./dns-world.js";

const PUBLIC = "93.184.216.34";
const allowTwo = { tokens: ["allow@allowed.example:tcp:443", "allow@*.wild.example:tcp:443"] };

describe("names", () => {
  it("answers an allowed name, pins before it answers, and asks upstream in lower case with one question", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC, 300)] }) });
    const seen = await world.ask("AlLoWeD.eXaMpLe", 1, { id: 0xbeef, edns: { size: 4096, options: Buffer.from("0008000400010000", "hex") } });
    expect(seen.id).toBe(0xbeef);
    expect(seen.rcode).toBe(0);
    expect(addressesOf(seen)).toEqual([PUBLIC]);
    expect(seen.question.toString("latin1")).toContain("AlLoWeD");
    expect(seen.records[0]!.owner).toBe("AlLoWeD.eXaMpLe");
    expect(seen.edns).toMatchObject({ size: 1232 });
    expect(world.kernel.entries.get(PUBLIC)).toEqual([{ bit: 0, expires: 1_000 + 1 + 300 }]);
    expect(world.asked).toHaveLength(1);
    const up = world.asked[0]!.raw;
    expect(up.subarray(2)).toEqual(query("allowed.example", 1, { edns: {} }).subarray(2));
  });

  it("refuses a name that no rule allows with NXDOMAIN, a short SOA and EDE 15, and asks nobody (A27)", async () => {
    const world = new World(allowTwo);
    for (const type of [1, 28, 16, 65, 64, 12, 15, 33, 6, 2, 5, 43, 48, 65_280]) {
      const seen = await world.ask(`exfil-${type}.evil.example`, type, { edns: {} });
      expect(seen.rcode).toBe(3);
      expect(seen.edns!.ede[0]!.code).toBe(15);
      expect(seen.records.map((r) => [r.section, r.type])).toEqual([[2, 6]]);
      expect(seen.records[0]!.ttl).toBeLessThanOrEqual(30);
    }
    expect(world.asked).toEqual([]);
    expect(world.kernel.entries.size).toBe(0);
    expect(world.denied).toHaveLength(14);
    expect(world.count("denied")).toBe(14);
  });

  it.each([
    ["the block list, over every allow", "dns: {block: [ads.example]}\nrules: [{allow: public}]", "ads.example", "blocked"],
    ["a rule that denies the name", "rules: [{deny: ads.example}, {allow: public}]", "ads.example", "denied"],
    ["localhost", "rules: [{allow: public}]", "localhost", "blocked"],
    ["a metadata endpoint's name", "rules: [{allow: public}]", "metadata.google.internal", "blocked"],
    ["a single label", "rules: [{allow: public}]", "router", "blocked"],
    ["mDNS", "rules: [{allow: public}]", "printer.local", "blocked"],
    ["a private address's reverse name", "rules: [{allow: public}]", "1.0.0.10.in-addr.arpa", "blocked"],
    ["the wildcard's apex", "rules: [{allow: '*.wild.example'}]", "wild.example", "denied"],
  ])("refuses by %s", async (_what, yaml, name, outcome) => {
    const world = new World({ yaml, upstream: always({ answers: [a(name, PUBLIC)] }) });
    expect((await world.ask(name)).rcode).toBe(3);
    expect(world.count(outcome as "blocked")).toBe(1);
    expect(world.asked).toEqual([]);
  });

  it("refuses the reverse name of an address that the host has come to own", async () => {
    const world = new World({ yaml: "rules: [{allow: public}]", groups: { hostAddresses: [Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), ip("198.18.0.1")]), Buffer.from("00000000000000000000ffff5db8d822", "hex")] }, upstream: always({}) });
    expect((await world.ask("34.216.184.93.in-addr.arpa", 12)).rcode).toBe(3);
    expect((await world.ask("35.216.184.93.in-addr.arpa", 12)).rcode).toBe(0);
  });

  it("can answer REFUSED for refused names", async () => {
    const world = new World({ yaml: "dns: {on_blocked: refused}\nrules: []" });
    expect((await world.ask("x.example")).rcode).toBe(5);
  });
});

describe("a star in a question is a label like any other", () => {
  it.each([
    ["*.wild.example", 0], ["*.*.wild.example", 0], ["*.allowed.example", 3], ["*.example", 3], ["*", 3], ["wild.example", 3], ["*.exact.example", 3], ["x.*.example", 3], ["*.blocked.example", 3],
    ["*.only.example", 0], ["x.only.example", 0], ["*x.wild.example", 0], ["*.metadata.google.internal", 3],
  ])("%s: %i", async (name, rcode) => {
    const world = new World({
      yaml: "dns: {block: [\"*.blocked.example\", only.example]}\nrules: [{allow: \"*.wild.example\"}, {allow: exact.example}, {allow: allowed.example}, {allow: \"*.blocked.example\"}, {allow: \"suffix:only.example\"}]",
      upstream: always({ answers: [] }),
    });
    expect((await world.ask(name)).rcode).toBe(rcode);
    expect(world.asked.map((x) => x.name)).toEqual(rcode === 0 ? [name] : []);
  });

  it("it pins what was told for it, and its answers are nobody else's", async () => {
    const world = new World({ tokens: ["allow@*.wild.example:tcp:443"], upstream: always((q) => ({ answers: q[13] === 0x2a ? [a("*.wild.example", PUBLIC), a("x.wild.example", "93.184.216.35")] : [a("*.wild.example", PUBLIC)] })) });
    expect(addressesOf(await world.ask("*.wild.example"))).toEqual([PUBLIC]);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
    expect(addressesOf(await world.ask("x.wild.example"))).toEqual([]);
    expect(world.sandbox.pins.pinned({ wire: "\x01x\x04wild\x07example\0", matchable: true }, new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 93, 184, 216, 34]), world.seconds)).toBe(false);
  });
});

describe("A28: labels that are not what they look like", () => {
  const world = new World({ tokens: ["allow@evil.allowed.ex", "allow@allowed.ex", "allow@public"], upstream: always({ answers: [] }) });
  it.each<[string, (string | Buffer)[]]>([
    ["one label of 15 octets with dots", ["evil.allowed.ex"]],
    ["a label with a dot", ["evil.allowed", "ex"]],
    ["NUL", ["allowed\0", "ex"]],
    ["backslash", ["allowed\\", "ex"]],
    ["escaped dot", ["a\\.allowed", "ex"]],
    ["octet over 127", ["allowed\xe9", "ex"]],
    ["tab", ["allowed\t", "ex"]],
    ["DEL", ["allowed\x7f", "ex"]],
  ])("%s is refused", async (_what, labels) => {
    const seen = await world.ask(labels);
    expect(seen.rcode).toBe(3);
    expect(world.asked).toEqual([]);
  });

  it("0x20 letters are the same name", async () => {
    const open = new World({ tokens: ["allow@allowed.ex"], upstream: always({ answers: [a("allowed.ex", PUBLIC)] }) });
    expect((await open.ask("aLLowed.EX")).rcode).toBe(0);
    expect((await open.ask("ALLOWED.ex")).rcode).toBe(0);
    expect(open.asked).toHaveLength(1);
  });

  it("a second root octet is FORMERR", async () => {
    const b = Buffer.concat([query("allowed.ex").subarray(0, 12), wireName("allowed.ex"), Buffer.from([0]), u16(1), u16(1)]);
    expect(see((await world.send(b))!).rcode).toBe(1);
  });
});

describe("A29: what is not one plain question", () => {
  const world = new World({ ...allowTwo, upstream: always({}) });
  const two = Buffer.concat([query("allowed.example", 1, { counts: [2, 0, 0, 0] }), wireName("denied.example"), u16(1), u16(1)]);
  it.each<[string, Buffer, number]>([
    ["QDCOUNT 2", two, 1],
    ["QDCOUNT 0", query("allowed.example", 1, { counts: [0, 0, 0, 0] }).subarray(0, 12), 1],
    ["QDCOUNT 0 with a question", query("allowed.example", 1, { counts: [0, 0, 0, 0] }), 1],
    ["an answer record", query("allowed.example", 1, { counts: [1, 1, 0, 0], extra: Buffer.from("c00c000100010000003c00045db8d822", "hex") }), 1],
    ["an authority record", query("allowed.example", 1, { counts: [1, 0, 1, 0], extra: Buffer.from("c00c000100010000003c00045db8d822", "hex") }), 1],
    ["two OPT", query("allowed.example", 1, { additional: [opt(), opt()] }), 1],
    ["OPT under a name", query("allowed.example", 1, { additional: [Buffer.concat([wireName("x"), opt().subarray(1)])] }), 1],
    ["OPT whose options lie", query("allowed.example", 1, { edns: { options: Buffer.from("00080009aabb", "hex") } }), 1],
    ["OPT version 1", query("allowed.example", 1, { edns: { version: 1 } }), 16],
    ["a trailing octet", query("allowed.example", 1, { extra: Buffer.from([0]) }), 1],
    ["a missing OPT", query("allowed.example", 1, { counts: [1, 0, 0, 1] }), 1],
    ["a compressed question", Buffer.concat([query("").subarray(0, 12), Buffer.from([0xc0, 12]), u16(1), u16(1)]), 1],
    ["a header only in part", query("allowed.example").subarray(0, 7), 1],
    ["opcode UPDATE", query("allowed.example", 1, { flags: 0x2800 }), 4],
    ["opcode NOTIFY", query("allowed.example", 1, { flags: 0x2000 }), 4],
    ["class CH", query("version.bind", 16, { class: 3 }), 5],
    ["class ANY", query("allowed.example", 1, { class: 255 }), 5],
    ["AXFR", query("allowed.example", 252), 5],
    ["IXFR", query("allowed.example", 251), 5],
    ["type OPT", query("allowed.example", 41), 1],
    ["TKEY", query("allowed.example", 249), 5],
  ])("%s", async (_what, message, rcode) => {
    const seen = see((await world.send(message))!);
    expect(seen.rcode).toBe(rcode);
    expect(seen.id).toBe(0x1234);
    expect(seen.records).toEqual([]);
    expect(world.asked).toEqual([]);
  });

  it("an answer from the guest gets none, and neither does a message without an id", async () => {
    expect(await world.send(query("allowed.example", 1, { flags: 0x8180 }))).toBeNull();
    expect(await world.send(Buffer.from([1]))).toBeNull();
    expect(await world.send(Buffer.alloc(0))).toBeNull();
    expect(world.count("ignored")).toBe(3);
    expect(world.asked).toEqual([]);
  });

  it("NOTIMP keeps the opcode, and BADVERS says version 0 (RFC 6891)", async () => {
    expect(see((await world.send(query("x.example", 1, { flags: 0x2800 })))!).flags & 0x7800).toBe(0x2800);
    const bad = await world.ask("allowed.example", 1, { edns: { version: 9 } });
    expect(bad.edns).not.toBeNull();
  });
});

describe("answers", () => {
  it("NOERROR without data for a type that is not there, kept as RFC 2308 says", async () => {
    const world = new World({ ...allowTwo, upstream: always({ authority: [soa("example", 30, 300)] }) });
    const seen = await world.ask("allowed.example", 28);
    expect([seen.rcode, seen.counts[1]]).toEqual([0, 0]);
    expect(seen.records.map((r) => [r.section, r.type, r.ttl])).toEqual([[2, 6, 30]]);
    world.pass(29);
    expect((await world.ask("allowed.example", 28)).records[0]!.ttl).toBe(1);
    expect(world.asked).toHaveLength(1);
    world.pass(1);
    await world.ask("allowed.example", 28);
    expect(world.asked).toHaveLength(2);
  });

  it("NXDOMAIN of the upstream's is passed on with its SOA and kept", async () => {
    const world = new World({ ...allowTwo, upstream: always({ rcode: 3, authority: [soa("wild.example", 20)] }) });
    expect((await world.ask("no.wild.example")).rcode).toBe(3);
    expect((await world.ask("no.wild.example")).rcode).toBe(3);
    expect(world.asked).toHaveLength(1);
    expect(world.count("absent")).toBe(2);
  });

  it("a negative answer without SOA, or with another zone's, is not kept", async () => {
    for (const authority of [[], [soa("other.test")]]) {
      const world = new World({ ...allowTwo, upstream: always({ rcode: 3, authority }) });
      const seen = await world.ask("no.wild.example");
      expect([seen.rcode, seen.records]).toEqual([3, []]);
      await world.ask("no.wild.example");
      expect(world.asked).toHaveLength(2);
    }
  });

  it("ages TTLs and asks again when they are over", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC, 100)] }) });
    expect((await world.ask("allowed.example")).records[0]!.ttl).toBe(100);
    world.pass(40);
    expect((await world.ask("allowed.example")).records[0]!.ttl).toBe(60);
    expect((await world.ask("ALLOWED.example")).records[0]!.ttl).toBe(60);
    world.pass(60);
    expect((await world.ask("allowed.example")).records[0]!.ttl).toBe(100);
    expect(world.asked).toHaveLength(2);
  });

  it("ANY gets RFC 8482's answer, and a refused name's ANY is refused", async () => {
    const world = new World(allowTwo);
    const seen = await world.ask("allowed.example", 255);
    expect(seen.records.map((r) => [r.type, r.data.toString("latin1")])).toEqual([[13, "\x07RFC8482\0"]]);
    expect((await world.ask("denied.example", 255)).rcode).toBe(3);
    expect(world.asked).toEqual([]);
  });

  it("cuts short what is larger than the guest's size, and serves it whole over TCP", async () => {
    const answers = Array.from({ length: 40 }, (_, i) => a("allowed.example", `93.184.216.${i + 1}`));
    const world = new World({ ...allowTwo, upstream: always({ answers }) });
    const cut = await world.ask("allowed.example");
    expect(cut.flags & 0x0200).toBe(0x0200);
    expect(cut.counts[1]).toBe(0);
    expect(cut.raw.length).toBeLessThanOrEqual(512);
    expect((await world.ask("allowed.example", 1, { edns: { size: 1232 } })).counts[1]).toBe(40);
    expect((await world.ask("allowed.example", 1, {}, world.sandbox, true)).counts[1]).toBe(40);
    // The same octets again come from the fast table, and are cut again.
    expect((await world.ask("allowed.example")).flags & 0x0200).toBe(0x0200);
    expect(world.asked).toHaveLength(1);
  });

  it("a small or huge EDNS size is held between 512 and 1232", async () => {
    const answers = Array.from({ length: 60 }, (_, i) => aaaa("allowed.example", `2606:4700::${(i + 1).toString(16)}`));
    const world = new World({ ...allowTwo, upstream: always({ answers }) });
    expect((await world.ask("allowed.example", 28, { edns: { size: 65_535 } })).flags & 0x0200).toBe(0x0200);
    expect((await world.ask("allowed.example", 28, { edns: { size: 0 } })).flags & 0x0200).toBe(0x0200);
  });

  it("coalesces equal questions in flight, of all sandboxes", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC)] }) });
    const other = world.add(allowTwo);
    const [first, second] = await Promise.all([
      world.sendAll([1, 2, 3].map((id) => query("allowed.example", 1, { id }))), world.sendAll([query("allowed.EXAMPLE", 1, { id: 9 })], other),
    ]);
    expect(first.map((b) => see(b).id).sort()).toEqual([1, 2, 3]);
    expect(see(second[0]!).question.toString("latin1")).toContain("EXAMPLE");
    expect(world.asked).toHaveLength(1);
    expect(other.counters.coalesced).toBe(1);
  });

  it("DO has its own cache entry and goes upstream; AD comes back only to who asked for it", async () => {
    const world = new World({ ...allowTwo, upstream: always({ flags: 0x81a0, answers: [a("allowed.example", PUBLIC)] }) });
    expect((await world.ask("allowed.example")).flags & 0x20).toBe(0);
    expect((await world.ask("allowed.example", 1, { flags: 0x0120 })).flags & 0x20).toBe(0x20);
    expect((await world.ask("allowed.example", 1, { edns: { dnssec: true } })).flags & 0x20).toBe(0x20);
    expect(world.asked).toHaveLength(2);
    expect(world.asked[1]!.raw.at(-4)! & 0x80).toBe(0x80);
    const cd = await world.ask("allowed.example", 1, { flags: 0x0110 });
    expect(cd.flags & 0x10).toBe(0);
  });

  it("unknown types pass as octets (RFC 3597)", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [{ name: "allowed.example", type: 65_280, data: Buffer.from("c00c0102", "hex") }] }) });
    expect((await world.ask("allowed.example", 65_280)).records[0]!.data.toString("hex")).toBe("c00c0102");
  });
});

describe("rebind protection", () => {
  const open = { yaml: "rules: [{allow: public}]" };

  it("A32: public first, private next: the second never reaches the guest", async () => {
    let turn = 0;
    const world = new World({ ...allowTwo, upstream: always(() => ({ answers: [a("allowed.example", turn++ === 0 ? PUBLIC : "169.254.169.254", 0)] })) });
    expect(addressesOf(await world.ask("allowed.example"))).toEqual([PUBLIC]);
    const second = await world.ask("allowed.example", 1, { edns: {} });
    expect([second.rcode, second.records, second.edns!.ede[0]!.code]).toEqual([5, [], 15]);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
    expect(world.count("rebind")).toBe(1);
    expect(world.denied.at(-1)).toMatchObject({ outcome: "rebind" });
  });

  it.each([[[PUBLIC, "127.0.0.1"]], [["127.0.0.1", PUBLIC]]])("A32: mixed answer %j is refused whole", async (addresses) => {
    const world = new World({ ...allowTwo, upstream: always({ answers: addresses.map((x) => a("allowed.example", x)) }) });
    expect((await world.ask("allowed.example")).rcode).toBe(5);
    expect(world.kernel.entries.size).toBe(0);
  });

  it.each([
    "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8", "::10.0.0.1", "::ffff:0:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1",
    "2002:0a00:0001::1", "fc00::1", "fd00:ec2::254", "::", "::1", "fe80::1", "fec0::1", "4000::1", "5f00::1", "2001:0:a9fe:a9fe::1", "ff02::1", "2001:db8::1", "2606:4700::5efe:10.0.0.1",
  ])("A33: AAAA %s is refused", async (address) => {
    const world = new World({ ...open, upstream: always({ answers: [aaaa("x.example", address)] }) });
    expect((await world.ask("x.example", 28)).rcode).toBe(5);
    expect(world.kernel.entries.size).toBe(0);
  });

  it.each(["10.0.0.1", "127.0.0.1", "0.0.0.0", "100.64.0.1", "169.254.169.254", "168.63.129.16", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1"])("A %s is refused", async (address) => {
    const world = new World({ ...open, upstream: always({ answers: [a("x.example", address)] }) });
    expect((await world.ask("x.example")).rcode).toBe(5);
  });

  it("looks at every section, also at what is not passed on", async () => {
    for (const section of ["authority", "additional", "answers"] as const) {
      const world = new World({ ...open, upstream: always({ answers: [a("x.example", PUBLIC)], [section]: [...(section === "answers" ? [a("x.example", PUBLIC)] : []), a("elsewhere.test", "10.0.0.1")] }) });
      expect((await world.ask("x.example")).rcode).toBe(5);
    }
  });

  it("lets allow_private, an address rule without ports and the switch say otherwise", async () => {
    const upstream = always({ answers: [a("db.corp.example", "10.1.2.3")] });
    const cases: [object, number][] = [
      [{ yaml: "dns: {allow_private: {'*.corp.example': [10.0.0.0/8]}}\nrules: [{allow: public}]" }, 0],
      [{ yaml: "dns: {allow_private: {'*.corp.example': [10.2.0.0/16]}}\nrules: [{allow: public}]" }, 5],
      [{ yaml: "dns: {allow_private: {'*.other.example': [10.0.0.0/8]}}\nrules: [{allow: public}]" }, 5],
      [{ yaml: "rules: [{allow: 10.1.0.0/16}, {allow: public}]" }, 0],
      [{ yaml: "rules: [{allow: 10.1.0.0/16, proto: tcp, ports: [443]}, {allow: public}]" }, 5],
      [{ yaml: "rules: [{allow: public}]", noRebind: true }, 0],
      [{ yaml: "dns: {on_rebind: nxdomain}\nrules: [{allow: public}]" }, 3],
    ];
    for (const [options, rcode] of cases) expect((await new World({ ...options, upstream }).ask("db.corp.example")).rcode).toBe(rcode);
  });

  it("judges a kept answer again when the host's addresses change", async () => {
    const world = new World({ ...open, upstream: always({ answers: [a("x.example", PUBLIC)] }) });
    expect((await world.ask("x.example")).rcode).toBe(0);
    const { groupTable } = await import("../../src/addresses/groups.js");
    world.service.setGroups(groupTable({ hostAddresses: [Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), ip(PUBLIC)])] }));
    expect((await world.ask("x.example")).rcode).toBe(5);
    expect(world.asked).toHaveLength(1);
  });
});

describe("the host's addresses", () => {
  it("take back pins on an address that has become the host's, save where the policy names the exception", async () => {
    const { groupTable } = await import("../../src/addresses/groups.js");
    const mapped = (text: string) => Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), ip(text)]);
    const upstream = always((q) => ({ answers: [a(q.toString("latin1", 13, 13 + q[12]!) + ".example", q[13] === 0x61 ? PUBLIC : "93.184.216.35")] }));
    const world = new World({ tokens: ["allow@a.example:tcp:443", "allow@b.example:tcp:443"], upstream });
    await world.ask("a.example");
    await world.ask("b.example");
    world.service.setGroups(groupTable({ hostAddresses: [mapped(PUBLIC)] }));
    expect([...world.kernel.entries.keys()]).toEqual(["93.184.216.35"]);
    expect(world.sandbox.pins.counters).toMatchObject({ revoked: 1, names: 1, addresses: 1 });
    const excepted = new World({ yaml: `dns: {allow_private: {a.example: [${PUBLIC}/32]}}\nrules: [{allow: a.example}]`, upstream });
    await excepted.ask("a.example");
    excepted.service.setGroups(groupTable({ hostAddresses: [mapped(PUBLIC)] }));
    expect([...excepted.kernel.entries.keys()]).toEqual([PUBLIC]);
  });
});

describe("A34: HTTPS and SVCB", () => {
  const params = (...list: [number, Buffer][]): Buffer => Buffer.concat(list.map(([key, value]) => Buffer.concat([u16(key), u16(value.length), value])));
  const https = (target: string, rest: Buffer, priority = 1, ttl = 300) => ({ name: "allowed.example", type: 65, ttl, data: Buffer.concat([u16(priority), wireName(target), rest]) });
  const ech = Buffer.from("00112233", "hex");

  it("ech goes, also from the mandatory list; hints that pass are pinned and stay", async () => {
    const rest = params([0, Buffer.concat([u16(1), u16(5)])], [1, Buffer.from("\x02h2")], [4, ip(PUBLIC)], [5, ech], [6, ip("2606:4700::1")]);
    const world = new World({ ...allowTwo, upstream: always({ answers: [https("", rest)] }) });
    const seen = await world.ask("allowed.example", 65);
    expect(seen.records[0]!.data).toEqual(Buffer.concat([u16(1), wireName(""), params([0, u16(1)], [1, Buffer.from("\x02h2")], [4, ip(PUBLIC)], [6, ip("2606:4700::1")])]));
    expect([...world.kernel.entries.keys()].sort()).toEqual(["2606:4700::1", PUBLIC]);
  });

  it("64 records pass, 65 are refused whole", async () => {
    for (const [n, rcode, outcome] of [[64, 0, "answered"], [65, 2, "excess"]] as const) {
      const world = new World({ ...allowTwo, upstream: always({ answers: Array.from({ length: n }, (_, i) => ({ name: "allowed.example", type: 65, data: Buffer.concat([u16(i + 1), Buffer.from([0])]) })) }) });
      expect([n, (await world.ask("allowed.example", 65, {}, world.sandbox, true)).rcode, world.count(outcome)]).toEqual([n, rcode, 1]);
    }
  });

  it("one private hint in a list refuses the answer and pins nothing", async () => {
    for (const rest of [params([4, Buffer.concat([ip(PUBLIC), ip("10.0.0.1")])]), params([6, ip("::ffff:93.184.216.34")]), params([6, ip("fd00::1")])]) {
      const world = new World({ ...allowTwo, upstream: always({ answers: [https("", rest)] }) });
      const seen = await world.ask("allowed.example", 65);
      expect([seen.rcode, seen.records]).toEqual([5, []]);
      expect(world.kernel.entries.size).toBe(0);
    }
  });

  const protocols = (...names: string[]): Buffer => Buffer.concat(names.map((name) => Buffer.concat([Buffer.of(name.length), Buffer.from(name)])));
  it.each<[string, Buffer, Buffer | null]>([
    ["h3 and its drafts go, the rest stays in order", params([1, protocols("h3", "h2", "h3-29", "http/1.1", "h3x", "h30")], [3, u16(8443)], [4, ip(PUBLIC)]), params([1, protocols("h2", "http/1.1", "h3x", "h30")], [3, u16(8443)], [4, ip(PUBLIC)])],
    ["with nothing but h3 the default protocol stays", params([0, Buffer.concat([u16(1), u16(3)])], [1, protocols("h3")], [3, u16(8443)]), params([0, u16(3)], [3, u16(8443)])],
    ["what was mandatory and has gone leaves no empty list", params([0, u16(1)], [1, protocols("h3", "h3-29")]), params()],
    ["without a default protocol the record goes", params([1, protocols("h3")], [2, Buffer.alloc(0)], [3, u16(8443)]), null],
    ["with another protocol it stays without a default", params([1, protocols("h3", "h2")], [2, Buffer.alloc(0)]), params([1, protocols("h2")], [2, Buffer.alloc(0)])],
    ["ech goes beside it", params([1, protocols("h2", "h3")], [5, ech]), params([1, protocols("h2")])],
    ["no h3: as it came", params([1, protocols("h2")], [4, ip(PUBLIC)]), params([1, protocols("h2")], [4, ip(PUBLIC)])],
  ])("without QUIC: %s", async (_what, rest, want) => {
    const upstream = always({ flags: 0x81a0, answers: [https("", rest)] });
    const looking = { yaml: "rules: [{allow: allowed.example}]" };
    const notLooking = { yaml: "tls: {verify_names: false}\nrules: [{allow: allowed.example}]" };
    const world = new World({ ...looking, upstream });
    for (const _again of [1, 2]) {
      const seen = await world.ask("allowed.example", 65, { flags: 0x0120 });
      expect([seen.rcode, seen.records.map(({ data }) => data)]).toEqual([0, want === null ? [] : [Buffer.concat([u16(1), wireName(""), want])]]);
      expect((seen.flags & 0x20) !== 0).toBe(want !== null && want.equals(rest));
    }
    // A sibling whose TLS nobody looks at shares the cache, not the answer.
    const other = world.add(notLooking);
    const seen = await world.ask("allowed.example", 65, {}, other);
    const noEch = rest.indexOf(params([5, ech]));
    expect(seen.records[0]!.data).toEqual(Buffer.concat([u16(1), wireName(""), noEch < 0 ? rest : rest.subarray(0, noEch)]));
    expect(world.asked).toHaveLength(1);
    // A floor that looks at TLS is enough.
    const floored = world.add({ ...notLooking, floor: { yaml: "tls: {intercept: true}\nrules: [{allow: public}]" } });
    const under = await world.ask("allowed.example", 65, {}, floored);
    expect(under.records.map(({ data }) => data)).toEqual(want === null ? [] : [Buffer.concat([u16(1), wireName(""), want])]);
  });

  it("AliasMode to a refused name is refused", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [https("metadata.google.internal", Buffer.alloc(0), 0)] }) });
    expect((await world.ask("allowed.example", 65)).rcode).toBe(5);
    expect(world.count("target")).toBe(1);
  });

  it.each<[string, Buffer]>([
    ["keys out of order", params([4, ip(PUBLIC)], [1, Buffer.from("\x02h2")])],
    ["a key twice", params([4, ip(PUBLIC)], [4, ip(PUBLIC)])],
    ["a value past the end", Buffer.concat([u16(4), u16(99), ip(PUBLIC)])],
    ["a hint of three octets", params([4, Buffer.from([1, 2, 3])])],
    ["an empty hint", params([6, Buffer.alloc(0)])],
    ["an empty list of protocols", params([1, Buffer.alloc(0)])],
    ["a protocol without octets", params([1, Buffer.from("\x02h2\0")])],
    ["a protocol past the end", params([1, Buffer.from("\x05h2")])],
    ["no-default-alpn with a value", params([1, Buffer.from("\x02h2")], [2, u16(1)])],
    ["no-default-alpn without alpn", params([2, Buffer.alloc(0)])],
  ])("%s is malformed: SERVFAIL", async (_what, rest) => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [https("", rest)] }) });
    expect((await world.ask("allowed.example", 65)).rcode).toBe(2);
    expect(world.kernel.entries.size).toBe(0);
  });
});

describe("A35: where a chain may not lead", () => {
  it.each(["localhost", "router", "host.docker.internal", "metadata.google.internal", "printer.local", "x.localhost", "ads.example", "denied.example", "."])("CNAME to %s is refused", async (target) => {
    const world = new World({
      yaml: "dns: {block: [ads.example]}\nrules: [{deny: denied.example}, {allow: public}]",
      upstream: always({ answers: [cname("x.example", target), a(target, PUBLIC)] }),
    });
    expect((await world.ask("x.example")).rcode).toBe(5);
    expect(world.count("target")).toBe(1);
    expect(world.kernel.entries.size).toBe(0);
  });

  it("CNAME into the host's search domain is refused from outside it", async () => {
    const world = new World({ yaml: "rules: [{allow: www.corp.test}, {allow: public}]", upstream: always((q) => ({ answers: [cname(q.toString("latin1").includes("corp") ? "www.corp.test" : "x.example", "db.corp.test"), a("db.corp.test", PUBLIC)] })) });
    world.service.setHostResolvers([], searchDomains("search corp.test", "host"));
    expect((await world.ask("x.example")).rcode).toBe(5);
    expect((await world.ask("www.corp.test")).rcode).toBe(0);
  });

  it("names of the host's search domain are refused unless a rule names them, and the list is followed", async () => {
    const world = new World({ yaml: "rules: [{allow: www.corp.test}, {allow: '*.dev.corp.test'}, {allow: public}]", upstream: always({ answers: [] }) });
    const rcodes = async () => Promise.all(["x.corp.test", "corp.test", "www.corp.test", "a.dev.corp.test", "x.test", "notcorp.test", "nas.lan"].map(async (name) => (await world.ask(name)).rcode));
    expect(await rcodes()).toEqual([0, 0, 0, 0, 0, 0, 0]);
    world.service.setHostResolvers([], searchDomains("search corp.test lan", "host"));
    expect(await rcodes()).toEqual([3, 3, 0, 0, 0, 0, 3]);
    expect(world.count("blocked")).toBe(3);
    world.service.setHostResolvers([], searchDomains("nameserver 9.9.9.9", "host"));
    expect(await rcodes()).toEqual([0, 0, 0, 0, 0, 0, 0]);
  });

  it("names that lead to other resolvers are refused unless a rule names them", async () => {
    const world = new World({ yaml: "rules: [{allow: public}]", upstream: always({ answers: [] }) });
    for (const name of ["_dns.resolver.arpa", "resolver.arpa", "use-application-dns.net"]) expect((await world.ask(name, 64)).rcode).toBe(3);
    for (const name of ["x.use-application-dns.net", "resolver.arpa.example"]) expect((await world.ask(name)).rcode).toBe(0);
    const named = new World({ yaml: "rules: [{allow: suffix:resolver.arpa}, {allow: public}]", upstream: always({ answers: [] }) });
    expect((await named.ask("_dns.resolver.arpa", 64)).rcode).toBe(0);
  });

  it.each([
    ["search a.example b.example\n", ["a.example", "b.example"]], ["domain A.Example.\nsearch\tb.example", ["a.example", "b.example"]], ["search lan", ["lan"]],
    ["search com co.uk . b.example", ["b.example"]], ["nameserver 1.1.1.1", ["of.host.example"]], ["# search a.example", ["of.host.example"]], ["search .", []],
    ["search a..b *.c.example 10.0.0.1 b.example", ["b.example"]],
  ])("search domains of %j: %j", (text, domains) => {
    expect(searchDomains(text, "name.of.host.example").map(showName)).toEqual(domains);
    expect(searchDomains(text, "name").map(showName)).toEqual(domains[0] === "of.host.example" ? [] : domains);
  });

  it.each<[string, WorldOptions]>([
    ["deny@any", { tokens: ["allow@allowed.example:tcp:443", "deny@any"] }],
    ["deny@public", { tokens: ["allow@allowed.example:tcp:443", "deny@public"] }],
    ["deny@any in the floor", { ...allowTwo, floor: { tokens: ["allow@suffix:allowed.example", "deny@any"] } }],
  ])("a last rule %s is what the default is: names that no rule knows may be led to, those that one denies or that need their own may not", async (_what, options) => {
    for (const [target, rcode] of [["edge.cdn.test", 0], ["printer.local", 5], ["router", 5], ["metadata.google.internal", 5], ["denied.example", 5]] as const) {
      const world = new World({ ...options, tokens: ["deny@denied.example", ...options.tokens!], upstream: always({ answers: [cname("allowed.example", target), a(target, PUBLIC)] }) });
      expect([target, (await world.ask("allowed.example")).rcode]).toEqual([target, rcode]);
      expect(world.kernel.entries.size).toBe(rcode === 0 ? 1 : 0);
      expect((await world.ask("edge.cdn.test")).rcode).toBe(3);
    }
  });

  it("a chain through names that no rule knows is what CDNs do: answered, pinned to the question", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [cname("allowed.example", "edge.cdn.test", 30), a("edge.cdn.test", PUBLIC, 3000)] }) });
    const seen = await world.ask("allowed.example");
    expect(seen.records.map((r) => [r.owner, r.type, r.ttl])).toEqual([["allowed.example", 5, 30], ["edge.cdn.test", 1, 60]]);
    expect(world.kernel.entries.get(PUBLIC)).toEqual([{ bit: 0, expires: 1_061 }]);
  });
});

describe("A36: only the chain, only NOERROR", () => {
  const stray = "93.184.216.99";
  it.each<[string, ReplyOptions]>([
    ["an unrelated owner", { answers: [a("allowed.example", PUBLIC), a("other.example", stray)] }],
    ["glue", { answers: [a("allowed.example", PUBLIC)], additional: [a("ns.example", stray)] }],
    ["authority", { answers: [a("allowed.example", PUBLIC)], authority: [{ name: "example", type: 2, data: wireName("ns.example") }, a("ns.example", stray)] }],
    ["a chain that starts elsewhere", { answers: [a("allowed.example", PUBLIC), cname("other.example", "x.test"), a("x.test", stray)] }],
  ])("%s is neither told nor pinned", async (_what, reply) => {
    const world = new World({ ...allowTwo, upstream: always(reply) });
    const seen = await world.ask("allowed.example");
    expect(addressesOf(seen)).toEqual([PUBLIC]);
    expect(seen.records).toHaveLength(1);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
  });

  it("NXDOMAIN with answers carries none and pins none", async () => {
    const world = new World({ ...allowTwo, upstream: always({ rcode: 3, answers: [a("allowed.example", PUBLIC)] }) });
    const seen = await world.ask("allowed.example");
    expect([seen.rcode, seen.records]).toEqual([3, []]);
    expect(world.kernel.entries.size).toBe(0);
  });

  it("a record of another type at the owner is left out", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC), aaaa("allowed.example", "2606:4700::1")] }) });
    expect((await world.ask("allowed.example")).records).toHaveLength(1);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
  });

  it("8 links pass, 9 do not, a loop does not", async () => {
    const chain = (links: number) => [...Array.from({ length: links }, (_, i) => cname(i === 0 ? "allowed.example" : `l${i}.test`, `l${i + 1}.test`)), a(`l${links}.test`, PUBLIC)];
    expect((await new World({ ...allowTwo, upstream: always({ answers: chain(8) }) }).ask("allowed.example")).rcode).toBe(0);
    const over = new World({ ...allowTwo, upstream: always({ answers: chain(9) }) });
    expect((await over.ask("allowed.example")).rcode).toBe(2);
    expect(over.count("excess")).toBe(1);
    expect((await new World({ ...allowTwo, upstream: always({ answers: [cname("allowed.example", "x.test"), cname("x.test", "allowed.example")] }) }).ask("allowed.example")).rcode).toBe(2);
  });
});

describe("what a validating guest needs", () => {
  const signature = (name: string, covered: number, labels: number, zone = "wild.example", ttl = 300): Rr =>
    ({ name, type: 46, ttl, data: Buffer.concat([u16(covered), Buffer.from([13, labels]), u32(300), u32(2), u32(1), u16(7), wireName(zone), Buffer.alloc(64, 1)]) });
  const nsec = (name: string, ttl = 300): Rr => ({ name, type: 47, ttl, data: Buffer.concat([wireName("z.wild.example"), Buffer.from([0, 1, 0x40])]) });
  const dname = (name: string, target: string): Rr => ({ name, type: 39, data: wireName(target) });
  const shown = (seen: Seen): string[] => seen.records.map((r) => `${r.section} ${r.owner} ${r.type}`);
  const signed = { edns: { dnssec: true } };

  it("an answer made of a wildcard comes with the proof that there is no closer name, of the zone that signed it only, while both last", async () => {
    const world = new World({ ...allowTwo, upstream: always({
      answers: [a("x.wild.example", PUBLIC), signature("x.wild.example", 1, 2)],
      authority: [{ name: "wild.example", type: 2, data: wireName("ns.wild.example") }, nsec("wild.example", 70), signature("wild.example", 47, 2), nsec("other.example"), soa("wild.example")],
    }) });
    const seen = await world.ask("x.wild.example", 1, signed);
    expect(shown(seen)).toEqual(["1 x.wild.example 1", "1 x.wild.example 46", "2 wild.example 47", "2 wild.example 46"]);
    expect(world.kernel.entries.get(PUBLIC)).toEqual([{ bit: 0, expires: 1_071 }]);
    expect(shown(await world.ask("x.wild.example"))).toEqual(["1 x.wild.example 1"]);
  });

  it("an answer that is there by its own name needs none", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("x.wild.example", PUBLIC), signature("x.wild.example", 1, 3)], authority: [nsec("wild.example"), signature("wild.example", 47, 2)] }) });
    expect(shown(await world.ask("x.wild.example", 1, signed))).toEqual(["1 x.wild.example 1", "1 x.wild.example 46"]);
  });

  it("a link made of a wildcard brings its proof, also before an end without data", async () => {
    const world = new World({ ...allowTwo, upstream: always({
      answers: [cname("x.wild.example", "edge.cdn.test"), signature("x.wild.example", 5, 2)], authority: [nsec("wild.example"), soa("cdn.test"), nsec("edge.cdn.test"), nsec("third.test")],
    }) });
    expect(shown(await world.ask("x.wild.example", 1, signed))).toEqual(["1 x.wild.example 5", "1 x.wild.example 46", "2 cdn.test 6", "2 wild.example 47", "2 edge.cdn.test 47"]);
  });

  it("a CNAME made of a DNAME comes with it and its signature, to who asked for DNSSEC", async () => {
    const world = new World({ ...allowTwo, upstream: always({
      answers: [dname("old.wild.example", "new.cdn.test"), signature("old.wild.example", 39, 3), cname("a.old.wild.example", "a.new.cdn.test"), a("a.new.cdn.test", PUBLIC)],
    }) });
    expect(shown(await world.ask("a.old.wild.example", 1, signed))).toEqual(["1 old.wild.example 39", "1 old.wild.example 46", "1 a.old.wild.example 5", "1 a.new.cdn.test 1"]);
    expect(shown(await world.ask("a.old.wild.example"))).toEqual(["1 a.old.wild.example 5", "1 a.new.cdn.test 1"]);
    expect([...world.kernel.entries.keys()]).toEqual([PUBLIC]);
  });

  it.each<[string, Rr]>([
    ["another target", dname("old.wild.example", "b.cdn.test")],
    ["that ends inside of a label", dname("d.wild.example", "new.cdn.test")],
    ["of another name", dname("other.wild.example", "new.cdn.test")],
    ["at the name itself", dname("a.old.wild.example", "a.new.cdn.test")],
  ])("a DNAME that does not explain the CNAME is left out: %s", async (_what, lie) => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [lie, cname("a.old.wild.example", "a.new.cdn.test"), a("a.new.cdn.test", PUBLIC)] }) });
    expect(shown(await world.ask("a.old.wild.example", 1, signed))).toEqual(["1 a.old.wild.example 5", "1 a.new.cdn.test 1"]);
  });

  it("a DNAME without a CNAME leads nowhere, and one that leads to a refused name is refused by its CNAME", async () => {
    const bare = new World({ ...allowTwo, upstream: always({ answers: [dname("old.wild.example", "new.cdn.test"), a("a.new.cdn.test", PUBLIC)] }) });
    expect(shown(await bare.ask("a.old.wild.example", 1, signed))).toEqual([]);
    expect(bare.kernel.entries.size).toBe(0);
    const local = new World({ ...allowTwo, upstream: always({ answers: [dname("old.wild.example", "local"), cname("a.old.wild.example", "a.local"), a("a.local", PUBLIC)] }) });
    expect((await local.ask("a.old.wild.example", 1, signed)).rcode).toBe(5);
    expect(local.kernel.entries.size).toBe(0);
  });
});

describe("A38: bounds of pins", () => {
  const many = (n: number) => Array.from({ length: n }, (_, i) => a("allowed.example", `93.${(i >> 16) + 1}.${(i >> 8) & 255}.${i & 255}`));

  it("64 addresses pass, 65 and 1,500 are refused whole", async () => {
    const fit = new World({ ...allowTwo, upstream: always({ answers: many(64) }) });
    expect((await fit.ask("allowed.example", 1, { edns: {} }, fit.sandbox, true)).counts[1]).toBe(64);
    expect(fit.kernel.entries.size).toBe(64);
    for (const n of [65, 1_500]) {
      const world = new World({ ...allowTwo, tcp: always({ answers: many(n) }), upstream: (q, send) => send(Buffer.concat([q.subarray(0, 2), u16(0x8380), q.subarray(4, 12), q.subarray(12)])) });
      const seen = await world.ask("allowed.example", 1, {}, world.sandbox, true);
      expect([seen.rcode, seen.records]).toEqual([2, []]);
      expect(world.kernel.entries.size).toBe(0);
      expect(world.count("excess")).toBe(1);
    }
  });

  it("10,000 names: the bound holds, what is over it is refused and counted, nothing is evicted", async () => {
    const world = new World({ tokens: ["allow@*.wild.example:tcp:443"], limits: { queriesPerSecond: 1e6, burst: 1e6, names: 100, addresses: 1000 }, upstream: always((q) => ({ answers: [a(q.toString("latin1", 13, 13 + q[12]!) + ".wild.example", `93.1.${q[13]! & 63}.${q[14]! & 63}`)] })) });
    let refused = 0;
    for (let i = 0; i < 1_000; i++) if ((await world.ask(`n${i}.wild.example`, 1, { edns: {} })).rcode === 2) refused++;
    expect(refused).toBe(900);
    expect(world.sandbox.pins.counters).toMatchObject({ names: 100, refusedNames: 900 });
    expect(world.count("pin-limit")).toBe(900);
    // What could not be told was not asked for either; what is pinned already, and what takes no pin, is.
    const asked = new Set(world.asked.map(({ name }) => name));
    expect([asked.has("n99.wild.example"), asked.has("n100.wild.example")]).toEqual([true, false]);
    expect((await world.ask("n5.wild.example", 28, { edns: {} })).rcode).toBe(0);
    expect((await world.ask("n500.wild.example", 15, { edns: {} })).rcode).toBe(0);
    world.pass(400);
    world.service.sweepPart();
    expect(world.sandbox.pins.counters.names).toBe(0);
    expect(world.kernel.entries.size).toBe(0);
  });

  it("a sweep in parts comes to every sandbox, also past one with more pins than a part", async () => {
    const world = new World({ tokens: ["allow@*.wild.example"], limits: { names: 5_000, addresses: 50_000 }, upstream: always((q) => ({ answers: Array.from({ length: 60 }, (_, i) => a(`${q.toString("latin1", 13, 13 + q[12]!)}.wild.example`, `93.${q.readUInt16BE(14) % 200}.${q[16]! % 200}.${i}`, 60)) })) });
    const second = world.add({ tokens: ["allow@*.wild.example"] });
    for (let i = 0; i < 100; i++) await world.ask(`n${String(i).padStart(3, "0")}.wild.example`, 1, {}, world.sandbox, true);
    await world.ask("n000.wild.example", 1, {}, second, true);
    expect(world.sandbox.pins.counters.addresses).toBeGreaterThan(3_000);
    expect(second.pins.counters.addresses).toBe(60);
    world.pass(70);
    for (let part = 0; part < 100; part++) world.service.sweepPart();
    expect([world.sandbox.pins.counters.addresses, second.pins.counters.addresses]).toEqual([0, 0]);
  });

  it.each([[0, 60, 0], [1, 60, 1], [59, 60, 59], [61, 61, 61], [3_600, 3_600, 3_600], [86_400, 3_600, 3_600], [0x7fffffff, 3_600, 3_600], [0xffffffff, 60, 0]])("TTL %i: lease %i, shown %i", async (ttl, lease, shown) => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC, ttl)] }) });
    const seen = await world.ask("allowed.example");
    expect(seen.records[0]!.ttl).toBe(shown);
    expect(world.kernel.entries.get(PUBLIC)![0]!.expires).toBe(1_000 + 1 + lease);
  });

  it("a lease grows with later answers and never shrinks, and a repeated question costs one write a second at most", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC, 20)] }) });
    const expires = () => world.kernel.entries.get(PUBLIC)![0]!.expires;
    for (let i = 0; i < 50; i++) await world.ask("allowed.example");
    expect([world.kernel.writes, expires()]).toEqual([1, 1_061]);
    world.pass(10);
    for (let i = 0; i < 50; i++) await world.ask("allowed.example");
    expect([world.kernel.writes, expires()]).toEqual([2, 1_071]);
    expect(world.asked).toHaveLength(1);
  });

  it("when the kernel does not take the pin, the answer is SERVFAIL, from the cache too", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC, 20)] }) });
    world.kernel.fail = () => true;
    const seen = await world.ask("allowed.example", 1, { edns: {} });
    expect([seen.rcode, seen.records]).toEqual([2, []]);
    expect(world.count("pin-failed")).toBe(1);
    world.kernel.fail = null;
    expect((await world.ask("allowed.example")).rcode).toBe(0);
    expect((await world.ask("allowed.example")).rcode).toBe(0);
    world.kernel.fail = () => true;
    world.pass(2); // the lease must be renewed now
    expect((await world.ask("allowed.example")).rcode).toBe(2);
  });

  it("part of an answer that could not be pinned keeps the whole answer back", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC), a("allowed.example", "93.184.216.35")] }) });
    let writes = 0;
    world.kernel.fail = () => writes++ === 1;
    expect((await world.ask("allowed.example")).rcode).toBe(2);
  });

  it("an open policy pins nothing in the kernel and remembers names for people", async () => {
    const world = new World({ yaml: "rules: [{allow: public}]", upstream: always({ answers: [a("x.example", PUBLIC, 7_200)] }) });
    expect((await world.ask("x.example")).records[0]!.ttl).toBe(7_200);
    expect(world.kernel.writes).toBe(0);
    expect(world.sandbox.pins.namesOf(Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), ip(PUBLIC)]))).toHaveLength(1);
  });
});

describe("limits", () => {
  it("over the rate: SERVFAIL with a reason, for this sandbox only", async () => {
    const world = new World({ ...allowTwo, limits: { queriesPerSecond: 10, burst: 5 }, upstream: always({ answers: [a("allowed.example", PUBLIC)] }) });
    const other = world.add(allowTwo);
    const got = (await world.sendAll(Array.from({ length: 8 }, (_, id) => query("allowed.example", 1, { id, edns: {} })))).map(see);
    expect(got.filter((s) => s.rcode === 2)).toHaveLength(3);
    expect(got.find((s) => s.rcode === 2)!.edns!.ede[0]!.text).toContain("queries a second");
    expect((await world.ask("allowed.example", 1, {}, other)).rcode).toBe(0);
    world.pass(1);
    expect((await world.ask("allowed.example")).rcode).toBe(0);
  });

  it("over the queries in flight: SERVFAIL at once; a hanging name delays no other", async () => {
    const world = new World({
      tokens: ["allow@*.wild.example:tcp:443"], limits: { inFlight: 3 },
      upstream: (q, send) => { if (!q.toString("latin1").includes("hang")) send(replyTo(q)); },
    });
    const { replyTo } = await import("./dns-world.js");
    const got = await world.sendAll(["hang1", "hang2", "quick", "hang3", "hang4"].map((n, id) => query(`${n}.wild.example`, 1, { id, edns: {} })));
    const seen = got.map(see);
    expect(seen.map((s) => [s.id, s.rcode]).sort()).toEqual([[2, 0], [3, 2], [4, 2]]);
    expect(world.sandbox.inFlight).toBe(2);
  });
});

describe("policy swap", () => {
  it("both maps are written meanwhile, both policies must allow, and confirming leaves the new one", async () => {
    const { KernelPins, policyOf } = await import("./dns-world.js");
    const world = new World({ tokens: ["allow@one.example:tcp:443", "allow@two.example:tcp:80"], upstream: always((q) => ({ answers: [a(q.toString("latin1", 13, 16) + ".example", q[13] === 0x6f ? PUBLIC : "93.184.216.35")] })) });
    await world.ask("one.example");
    await world.ask("two.example");
    const next = new KernelPins();
    let disposed = 0;
    const result = world.service.beginSwap(0, 1, [policyOf(world, { tokens: ["deny@two.example", "allow@new.example:tcp:1", "allow@one.example:tcp:443"] })], [next], world.sandbox.upstreams.servers, () => disposed++);
    expect(result).toEqual({ written: 2, left: 0 });
    expect(next.entries.get(PUBLIC)).toEqual([{ bit: 2, expires: 1_301 }]);
    // What was told stays told: the rule that denies the name holds for its address.
    expect(next.entries.get("93.184.216.35")).toEqual([{ bit: 0, expires: 1_301 }]);
    expect((await world.ask("two.example")).rcode).toBe(3);
    expect((await world.ask("new.example")).rcode).toBe(3);
    expect((await world.ask("one.example")).rcode).toBe(0);
    world.service.confirmSwap(0, 1, world.sandbox.limits);
    expect((await world.ask("new.example")).rcode).toBe(0);
    expect(next.entries.get("93.184.216.35")).toEqual([{ bit: 0, expires: 1_301 }, { bit: 1, expires: 1_301 }]);
    expect(world.sandbox.pins.list().filter((p) => grants(p.bits))).toHaveLength(3);
    expect(disposed).toBe(0);
  });

  it("a name that the new policy blocks opens nothing at its address, and a rule that denies it still holds", async () => {
    const { KernelPins, policyOf } = await import("./dns-world.js");
    const world = new World({ yaml: "rules: [{allow: public}]", upstream: always({ answers: [a("one.example", PUBLIC)] }) });
    await world.ask("one.example");
    for (const [yaml, bits] of [
      ["rules: [{allow: one.example, ports: [443]}]", [0]], ["dns: {block: [one.example]}\nrules: [{allow: one.example, ports: [443]}]", undefined],
      ["dns: {block: [one.example]}\nrules: [{deny: one.example, ports: [22]}, {allow: one.example, ports: [443]}]", [0]], ["rules: [{deny: one.example}, {allow: 'suffix:example'}]", [0, 1]], ["rules: []", undefined],
    ] as const) {
      const next = new KernelPins();
      world.service.beginSwap(0, 1, [policyOf(world, { yaml })], [next], null, () => undefined);
      expect([yaml, next.entries.get(PUBLIC)?.map(({ bit }) => bit)]).toEqual([yaml, bits]);
      world.service.abortSwap(0, 1);
    }
  });

  it("a name that an open policy told gets its pin when a rule comes to name it", async () => {
    const { KernelPins, policyOf } = await import("./dns-world.js");
    const world = new World({ yaml: "rules: [{allow: public}]", upstream: always({ answers: [a("one.example", PUBLIC)] }) });
    await world.ask("one.example");
    const next = new KernelPins();
    world.service.beginSwap(0, 1, [policyOf(world, { tokens: ["allow@one.example:tcp:443"] })], [next], null, () => undefined);
    expect([...next.entries.keys()]).toEqual([PUBLIC]);
    world.service.abortSwap(0, 1);
    expect(world.kernel.writes).toBe(0);
    expect(world.sandbox.pins.list().map((p) => p.bits)).toEqual([[[]]]);
  });

  it("an answer that was under way is judged by what is in force when it comes", async () => {
    const { policyOf, KernelPins, replyTo } = await import("./dns-world.js");
    let release = (): void => undefined;
    const world = new World({ ...allowTwo, upstream: (q, send) => { release = () => send(replyTo(q, { answers: [a("allowed.example", PUBLIC)] })); } });
    const waiting = world.ask("allowed.example");
    await new Promise((resolve) => setImmediate(resolve));
    world.service.beginSwap(0, 1, [policyOf(world, { tokens: ["deny@allowed.example"] })], [new KernelPins()], null, () => undefined);
    release();
    expect((await waiting).rcode).toBe(3);
    expect(world.kernel.entries.size).toBe(0);
  });
});

describe("the operator's floor", () => {
  const both = always((q) => ({ answers: [a(q.toString("latin1", 13, 16) + ".example", q[13] === 0x6f ? PUBLIC : "93.184.216.35")] }));

  it.each<[string, WorldOptions, WorldOptions, string, number, number | undefined, number | undefined]>([
    ["allowed by both, with the bits of each", { tokens: ["allow@x.example", "allow@one.example:tcp:443"] }, { tokens: ["allow@one.example"] }, "one", 0, 1, 0],
    ["not allowed by the floor", { tokens: ["allow@one.example"] }, { tokens: ["allow@two.example"] }, "one", 3, undefined, undefined],
    ["not allowed by its own", { tokens: ["allow@two.example"] }, { tokens: ["allow@one.example"] }, "one", 3, undefined, undefined],
    ["denied by the floor", { tokens: ["allow@one.example"] }, { tokens: ["deny@one.example", "allow@public"] }, "one", 3, undefined, undefined],
    ["on the floor's block list", { tokens: ["allow@one.example"] }, { yaml: "dns: {block: [one.example]}\nrules: [{allow: public}]" }, "one", 3, undefined, undefined],
    ["under an open floor a pin in the own map alone", { tokens: ["allow@one.example:tcp:443"] }, { tokens: ["allow@public"] }, "one", 0, 0, undefined],
    ["under an open policy a pin in the floor's map alone", { tokens: ["allow@public"] }, { tokens: ["allow@one.example:tcp:443"] }, "one", 0, undefined, 0],
  ])("%s", async (_what, own, floor, name, rcode, ownBit, floorBit) => {
    const world = new World({ ...own, floor, upstream: both });
    expect((await world.ask(`${name}.example`)).rcode).toBe(rcode);
    expect(world.asked).toHaveLength(rcode === 0 ? 1 : 0);
    expect([world.kernel, world.floorKernel].map((kernel) => kernel.entries.get(PUBLIC)?.map(({ bit }) => bit))).toEqual([ownBit, floorBit].map((bit) => (bit === undefined ? undefined : [bit])));
  });

  it("an exception to rebind protection must stand in both", async () => {
    const exception = "dns: {allow_private: {one.example: [10.0.0.0/8]}}\nrules: [{allow: one.example}]";
    const without = "rules: [{allow: one.example}]";
    const off = "dns: {rebind_protection: false}\nrules: [{allow: one.example}]";
    const upstream = always({ answers: [a("one.example", "10.1.2.3")] });
    for (const [own, floor, rcode] of [[exception, exception, 0], [exception, without, 5], [without, exception, 5], [off, without, 5], [off, exception, 0], [exception, off, 0], [off, off, 0]] as const) {
      const world = new World({ yaml: own, floor: { yaml: floor }, upstream });
      expect([own, floor, (await world.ask("one.example")).rcode]).toEqual([own, floor, rcode]);
      expect([world.kernel.entries.size, world.floorKernel.entries.size]).toEqual(rcode === 0 ? [1, 1] : [0, 0]);
    }
  });

  it("a name that an answer leads to must be refused by neither", async () => {
    const upstream = always({ answers: [cname("one.example", "bad.example"), a("bad.example", PUBLIC)] });
    const world = new World({ tokens: ["allow@one.example"], floor: { tokens: ["deny@bad.example", "allow@public"] }, upstream });
    expect((await world.ask("one.example")).rcode).toBe(5);
    expect(world.kernel.entries.size).toBe(0);
  });

  it("a write that the floor's map refuses keeps the answer back and leaves nothing behind", async () => {
    const world = new World({ tokens: ["allow@one.example"], floor: { tokens: ["allow@one.example"] }, upstream: both });
    world.floorKernel.fail = () => true;
    expect((await world.ask("one.example")).rcode).toBe(2);
    expect([world.kernel.entries.size, world.floorKernel.entries.size]).toEqual([0, 0]);
    world.floorKernel.fail = null;
    expect((await world.ask("one.example")).rcode).toBe(0);
    expect([world.kernel.entries.size, world.floorKernel.entries.size]).toEqual([1, 1]);
  });

  it("comes, changes and goes with a swap; meanwhile all must allow and all maps are written", async () => {
    const { KernelPins, policyOf } = await import("./dns-world.js");
    const world = new World({ tokens: ["allow@one.example", "allow@two.example"], upstream: both });
    const policy = (...tokens: string[]) => policyOf(world, { tokens });
    const { servers } = world.sandbox.upstreams;
    await world.ask("one.example");
    const maps = Array.from({ length: 5 }, () => new KernelPins());
    const sizes = (): number[] => [world.kernel, ...maps].map((kernel) => kernel.entries.size);
    world.service.beginSwap(0, 1, [policy("allow@one.example", "allow@two.example"), policy("allow@one.example")], [maps[0]!, maps[1]!], servers, () => undefined);
    expect(sizes()).toEqual([1, 1, 1, 0, 0, 0]);
    expect((await world.ask("two.example")).rcode).toBe(3);
    world.service.confirmSwap(0, 1, world.sandbox.limits);
    expect((await world.ask("two.example")).rcode).toBe(3);
    world.service.beginSwap(0, 1, [policy("allow@one.example", "allow@two.example"), policy("allow@two.example:tcp:80", "allow@one.example")], [maps[2]!, maps[3]!], servers, () => undefined);
    expect(maps[3]!.entries.get(PUBLIC)?.map(({ bit }) => bit)).toEqual([1]);
    world.service.confirmSwap(0, 1, world.sandbox.limits);
    expect((await world.ask("two.example")).rcode).toBe(0);
    expect(sizes()).toEqual([1, 1, 1, 2, 2, 0]);
    world.service.beginSwap(0, 1, [policy("allow@two.example")], [maps[4]!], servers, () => undefined);
    world.service.confirmSwap(0, 1, world.sandbox.limits);
    expect(sizes()).toEqual([1, 1, 1, 2, 2, 1]);
    expect((await world.ask("one.example")).rcode).toBe(3);
    expect(world.sandbox.judges).toHaveLength(1);
  });
});

describe("octets that are told", () => {
  it("keeps record order and says TTL 0 for what is not kept", async () => {
    const world = new World({ ...allowTwo, upstream: always({ answers: [a("allowed.example", PUBLIC, 0), a("allowed.example", "93.184.216.35", 0)] }) });
    const seen = await world.ask("allowed.example");
    expect(addressesOf(seen)).toEqual([PUBLIC, "93.184.216.35"]);
    await world.ask("allowed.example");
    expect(world.asked).toHaveLength(2);
    expect(u32(0)).toHaveLength(4);
  });
});
