/** The codec: limits row by row, agreement with dns-packet on benign messages, and fuzzing (A30) of both ways in. */
import dnsPacket from "dns-packet";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeAnswer, buildMessage } from "../../src/dns/answer.js";
import { encodeQuery, parseReply } from "../../src/dns/message.js";
import { parseQuery } from "../../src/dns/question.js";
import { isWithin, labelsOf, nameOf, readName, showName } from "../../src/dns/wire.js";
import { a, aaaa, always, cname, ip, opt, readName as readNameText, query, replyTo, rr, see, soa, u16, wireName, World } from "./dns-world.js";

const at = (b: Buffer, position = 0) => readName(b, 0, position, b.length, true);

describe("names", () => {
  it("63 octets a label, 255 a name", () => {
    const label = "a".repeat(63);
    expect(at(wireName([label]))).not.toBeNull();
    expect(at(Buffer.concat([Buffer.from([64]), Buffer.alloc(64, 97), Buffer.from([0])]))).toBeNull();
    const longest = wireName([label, label, label, "a".repeat(61)]);
    expect(longest).toHaveLength(255);
    expect(at(longest)!.name.wire).toHaveLength(255);
    expect(at(wireName([label, label, label, "a".repeat(62)]))).toBeNull();
    expect(at(wireName(Array.from({ length: 127 }, () => "a")))).not.toBeNull();
    expect(at(wireName(Array.from({ length: 128 }, () => "a")))).toBeNull();
    expect(nameOf([label, label, label, "a".repeat(61)])).not.toBeNull();
    expect(nameOf([label, label, label, "a".repeat(62)])).toBeNull();
    expect(nameOf(["a".repeat(64)])).toBeNull();
    expect(nameOf([""])).toBeNull();
  });

  it("pointers go backwards only, not into the header, and the walk ends", () => {
    const head = Buffer.alloc(12);
    const ok = Buffer.concat([head, wireName("b.c"), Buffer.from([1, 97, 0xc0, 12])]);
    expect(labelsOf(at(ok, 17)!.name)).toEqual(["a", "b", "c"]);
    expect(at(ok, 17)!.next).toBe(21);
    for (const bad of [[0xc0, 17], [0xc0, 12, 0], [0xc0, 19], [0xc0, 4], [0xc0], [0x80, 0], [0x40, 1, 0]]) {
      const b = Buffer.concat([head, wireName("b.c"), Buffer.from(bad)]);
      if (bad[1] === 12) expect(at(b, 17)).not.toBeNull();
      else expect(at(b, 17)).toBeNull();
    }
    // A ladder of pointers, each to the one before, is walked once; a loop through labels is none, because it would go forward.
    const ladder: Buffer[] = [Buffer.alloc(12), Buffer.from([0])];
    for (let i = 0; i < 1_000; i++) ladder.push(u16(0xc000 | (i === 0 ? 12 : 13 + 2 * (i - 1))));
    const b = Buffer.concat(ladder);
    expect(at(b, b.length - 2)!.name.wire).toBe("\0");
    const loop = Buffer.concat([head, Buffer.from([1, 97, 0xc0, 12])]);
    expect(at(loop, 12)).toBeNull();
  });

  it("shows octets that are no text as escapes", () => {
    expect(showName(at(wireName(["a.b", "c\\d", "e\0f", "\xff g"]))!.name)).toBe("a\\.b.c\\\\d.e\\000f.\\255\\032g");
    expect(showName(nameOf([])!)).toBe(".");
  });

  it("isWithin goes by labels, not by octets", () => {
    const name = (text: string) => nameOf(text === "" ? [] : text.split("."))!;
    expect(isWithin(name("a.example"), name("example"))).toBe(true);
    expect(isWithin(name("example"), name("example"))).toBe(true);
    expect(isWithin(name("example"), name(""))).toBe(true);
    expect(isWithin(name("badexample"), name("example"))).toBe(false);
    // A label that ends in the octets of a length and a name.
    expect(isWithin(at(wireName(["x\x07example"]))!.name, name("example"))).toBe(false);
  });
});

const label = fc.stringMatching(/^[a-z0-9_-]{1,20}$/);
const hostname = fc.array(label, { minLength: 1, maxLength: 6 }).map((labels) => labels.join("."));
const ttl = fc.integer({ min: 0, max: 0x7fffffff });
const v4 = fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255), fc.nat(255)).map((x) => x.join("."));
const record = (owner: string) => fc.oneof(
  fc.record({ type: fc.constant("A" as const), name: fc.constant(owner), ttl, data: v4 }),
  fc.record({ type: fc.constant("CNAME" as const), name: fc.constant(owner), ttl, data: hostname }),
  fc.record({ type: fc.constant("NS" as const), name: fc.constant(owner), ttl, data: hostname }),
  fc.record({ type: fc.constant("PTR" as const), name: fc.constant(owner), ttl, data: hostname }),
  fc.record({ type: fc.constant("TXT" as const), name: fc.constant(owner), ttl, data: fc.array(fc.stringMatching(/^[ -~]{1,40}$/), { minLength: 1, maxLength: 3 }) }),
  fc.record({ type: fc.constant("MX" as const), name: fc.constant(owner), ttl, data: fc.record({ preference: fc.nat(65_535), exchange: hostname }) }),
  fc.record({ type: fc.constant("SRV" as const), name: fc.constant(owner), ttl, data: fc.record({ priority: fc.nat(65_535), weight: fc.nat(65_535), port: fc.nat(65_535), target: hostname }) }),
  fc.record({ type: fc.constant("SOA" as const), name: fc.constant(owner), ttl, data: fc.record({ mname: hostname, rname: hostname, serial: fc.nat(), refresh: fc.nat(), retry: fc.nat(), expire: fc.nat(), minimum: fc.nat() }) }),
);

describe("dns-packet agrees on benign messages", () => {
  it("queries", () => {
    fc.assert(fc.property(hostname, fc.boolean(), (name, dnssec) => {
      const decoded = dnsPacket.decode(encodeQuery(nameOf(name.split("."))!, 28, dnssec));
      expect(decoded.questions).toEqual([{ name, type: "AAAA", class: "IN" }]);
      const b = dnsPacket.encode({ type: "query", id: 1, flags: 256, questions: [{ name, type: "A" }], additionals: [{ type: "OPT", name: ".", udpPayloadSize: 1400, flags: dnssec ? 32_768 : 0 } as never] });
      const mine = parseQuery(b, 0, b.length);
      expect(mine.kind).toBe("question");
      if (mine.kind !== "question") return;
      expect(labelsOf(mine.question.name).join(".")).toBe(name);
      expect(mine.edns).toEqual({ size: 1400, version: 0, dnssec, options: false });
    }), { numRuns: 300 });
  });

  it("replies, read and encoded again", () => {
    fc.assert(fc.property(hostname.chain((name) => fc.tuple(fc.constant(name), fc.array(record(name), { maxLength: 8 }))), ([name, answers]) => {
      const b = dnsPacket.encode({ type: "response", id: 7, flags: 0x0180, questions: [{ name, type: "A" }], answers } as never);
      const reply = parseReply(b, 0, b.length);
      expect(reply).not.toBeNull();
      const question = nameOf(name.split("."))!;
      const wire = encodeAnswer(question, 0, false, reply!.answers, reply!.authority)!;
      const q = query(name);
      const out = Buffer.alloc(65_535 + 512);
      const { length } = buildMessage(out, q, 0, q.length, 0, wire, 0, 0x7fffffff, null, null, 65_535);
      const decoded = dnsPacket.decode(out.subarray(0, length));
      const want = dnsPacket.decode(b);
      expect(decoded.answers).toEqual(want.answers);
    }), { numRuns: 300 });
  });
});

/** Mutations that keep much of a message: flips, cuts, insertions, copies of parts. */
const mutate = (b: Buffer): fc.Arbitrary<Buffer> => fc.array(fc.tuple(fc.nat(5), fc.nat(0xffff), fc.nat(255)), { minLength: 1, maxLength: 6 }).map((steps) => {
  let out: Buffer = Buffer.from(b);
  for (const [kind, where, value] of steps) {
    const p = out.length === 0 ? 0 : where % out.length;
    if (kind === 0 && out.length > 0) out[p] = value;
    else if (kind === 1) out = out.subarray(0, p);
    else if (kind === 2) out = Buffer.concat([out.subarray(0, p), Buffer.from([value]), out.subarray(p)]);
    else if (kind === 3) out = Buffer.concat([out, out.subarray(p, p + (value & 31))]);
    else if (kind === 4 && out.length > 1) out.writeUInt16BE(0xc000 | (where & 0x3fff), Math.min(p, out.length - 2));
    else if (kind === 5 && out.length >= 12) out.writeUInt16BE(value, 4 + 2 * (where % 4));
  }
  return out.subarray(0, 2_000);
});

describe("A30: fuzz", () => {
  const queries = [
    query("allowed.example", 1, { edns: { dnssec: true, options: Buffer.from("000a0008a1a2a3a4a5a6a7a8", "hex") } }), query("x.y.z.example", 65), query("allowed.example", 255),
    query(["evil.allowed", "example"], 28, { additional: [opt(), opt()] }), query("", 2),
  ];

  it("queries: no fault, every answer well formed and to this id, nothing asked or pinned under a policy that allows nothing", async () => {
    const world = new World({ tokens: ["deny@any"], limits: { queriesPerSecond: 1e9, burst: 1e9 } });
    await fc.assert(fc.asyncProperty(fc.oneof(fc.constantFrom(...queries).chain(mutate), fc.uint8Array({ maxLength: 600 }).map((x) => Buffer.from(x))), fc.boolean(), async (b, stream) => {
      const got: Buffer[] = [];
      world.service.resolver.handle(world.sandbox, b, 0, b.length, { stream, waited: 0, send: (m, n) => { got.push(Buffer.from(m.subarray(0, n))); }, retain() { return this; } });
      const silent = b.length < 2 || (b.length > 2 && (b[2]! & 0x80) !== 0);
      expect(got).toHaveLength(silent ? 0 : 1);
      if (silent) return;
      const seen = see(got[0]!);
      expect(seen.id).toBe(b.readUInt16BE(0));
      expect(seen.flags & 0x8000).toBe(0x8000);
      expect(seen.records.every((r) => r.type === 6)).toBe(true);
      if (!stream) expect(got[0]!.length).toBeLessThanOrEqual(1_232);
    }), { numRuns: 4_000 });
    expect(world.service.faults).toBe(0);
    expect(world.asked).toEqual([]);
    expect(world.kernel.writes).toBe(0);
  });

  it("replies: no fault, an answer each time, and only addresses that were told are pinned", async () => {
    const name = "allowed.example";
    const plain = query(name, 1, { id: 0 });
    const replies = [
      replyTo(plain, { answers: [a(name, "93.184.216.34"), a(name, "93.184.216.35")], opt: true }),
      replyTo(plain, { answers: [cname(name, "b.test"), cname("b.test", "c.test"), a("c.test", "93.184.216.34")], authority: [soa("test")], additional: [aaaa("ns.test", "2606:4700::1")] }),
      replyTo(plain, { rcode: 3, authority: [soa("example")] }),
      replyTo(plain, { answers: [{ name, type: 65, data: Buffer.concat([u16(1), wireName(""), u16(4), u16(4), Buffer.from([93, 184, 216, 34])]) }] }),
    ];
    const world = new World({ tokens: ["allow@allowed.example:tcp:443"], limits: { queriesPerSecond: 1e9, burst: 1e9, addresses: 1e6, names: 1e6, addressesPerName: 1e6 } });
    await fc.assert(fc.asyncProperty(fc.constantFrom(...replies).chain(mutate), fc.constantFrom(1, 65, 28), async (b, type) => {
      world.service.flushCache();
      world.kernel.entries.clear();
      world.kernel.writes = 0;
      // Id and question are kept right more often than not, or every reply would end at the matching.
      world.upstream = (q, send) => { if (b.length >= 2) q.copy(b, 0, 0, 2); if (b.length >= 33 && type !== 1) q.copy(b, 12, 12, 33); send(b); };
      world.tcp = world.upstream;
      const got: Buffer[] = [];
      world.service.resolver.handle(world.sandbox, query(name, type), 0, query(name, type).length, { stream: true, waited: 0, send: (m, n) => { got.push(Buffer.from(m.subarray(0, n))); }, retain() { return this; } });
      for (let i = 0; i < 12 && got.length === 0; i++) await new Promise((resolve) => setImmediate(resolve));
      if (got.length === 0) {
        // It matched nothing: the ask waits for the true answer.
        expect(world.kernel.writes).toBe(0);
        world.upstream = always({ rcode: 3 });
        return;
      }
      const seen = see(got[0]!);
      const told = seen.records.filter((r) => r.section === 1).map((r) => r.data.toString("hex")).join(" ");
      for (const key of world.kernel.entries.keys()) {
        if (key.includes(":")) continue;
        expect(told).toContain(Buffer.from(key.split(".").map(Number)).toString("hex"));
      }
      expect(world.kernel.entries.size === 0 || seen.rcode === 0).toBe(true);
    }), { numRuns: 1_500 });
    expect(world.service.faults).toBe(0);
    world.service.upstream.close();
  });

  it("replies made of whole records, in every section: told is pinned, pinned is told, and neither is private, of another owner, ech or h3", async () => {
    const name = "allowed.example";
    const names = [name, "b.test", "c.test", "x.allowed.example", "localhost", "denied.example", "*.allowed.example", ""];
    // Mostly what may pass, or nothing would.
    const mostly = <T>(good: readonly T[], bad: readonly T[], weight = 30): fc.Arbitrary<T> => fc.oneof({ weight, arbitrary: fc.constantFrom(...good) }, { weight: 1, arbitrary: fc.constantFrom(...bad) });
    const address4 = mostly(["93.184.216.34", "93.184.216.35", "8.8.8.8"], ["10.0.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0", "255.255.255.255"]).map(ip);
    const address6 = mostly(["2606:4700::1", "2606:4700::2"], ["::1", "fe80::1", "fd00::1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "2002:a00:1::"]).map(ip);
    const protocol = mostly(["h2", "h3", "h3-29", "http/1.1"], [""]);
    const target = mostly(["b.test", "c.test", "x.allowed.example", ""], ["localhost", "denied.example", name], 12);
    const param = fc.oneof(
      fc.array(fc.constantFrom(1, 2, 3, 4, 5), { minLength: 1, maxLength: 3 }).map((keys): [number, Buffer] => [0, Buffer.concat(keys.map(u16))]),
      fc.array(protocol, { minLength: 1, maxLength: 3 }).map((list): [number, Buffer] => [1, Buffer.concat(list.map((text) => Buffer.concat([Buffer.of(text.length), Buffer.from(text)])))]),
      fc.constant<[number, Buffer]>([2, Buffer.alloc(0)]), fc.constant<[number, Buffer]>([3, u16(8443)]),
      fc.array(address4, { minLength: 1, maxLength: 3 }).map((list): [number, Buffer] => [4, Buffer.concat(list)]),
      fc.uint8Array({ maxLength: 8 }).map((octets): [number, Buffer] => [5, Buffer.from(octets)]),
      fc.array(address6, { minLength: 1, maxLength: 2 }).map((list): [number, Buffer] => [6, Buffer.concat(list)]),
      fc.tuple(fc.nat(70_000), fc.uint8Array({ maxLength: 8 })).map(([key, octets]): [number, Buffer] => [key & 0xffff, Buffer.from(octets)]),
    );
    const binding = fc.tuple(fc.nat(2), target, fc.array(param, { maxLength: 5 }), mostly([true], [false], 12)).map(([priority, target, params, sorted]) => {
      const list = sorted ? [...new Map(params)].sort(([p], [q]) => p - q) : params;
      return Buffer.concat([u16(priority), wireName(target), ...list.map(([key, value]) => Buffer.concat([u16(key), u16(value.length), value]))]);
    });
    const data: [number, fc.Arbitrary<Buffer>][] = [
      [1, address4], [28, address6], [5, target.map((text) => wireName(text === "" ? "b.test" : text))], [65, binding], [64, binding], [2, fc.constantFrom(...names).map((target) => wireName(target))],
      [6, fc.constant(soa("test").data)], [16, fc.constant(Buffer.from("\x03abc"))], [46, fc.constantFrom(1, 5, 28, 65).map((type) => Buffer.concat([u16(type), Buffer.alloc(16), wireName("example"), Buffer.alloc(8)]))],
      [39, fc.constant(wireName("b.test"))], [99, fc.uint8Array({ maxLength: 12 }).map((x) => Buffer.from(x))], [65_280, fc.uint8Array({ maxLength: 40 }).map((x) => Buffer.from(x))],
    ];
    const one = fc.oneof(...data.map(([type, octets]) => fc.record({ name: fc.oneof({ weight: 3, arbitrary: fc.constant(name) }, { weight: 2, arbitrary: fc.constantFrom(...names) }), type: fc.constant(type), data: octets, ttl: fc.constantFrom(0, 1, 60, 300, 86_400, 0x7fffffff, 0xffffffff), class: fc.oneof({ weight: 100, arbitrary: fc.constant(1) }, { weight: 1, arbitrary: fc.constantFrom(3, 255) }) })));
    const section = fc.array(one, { maxLength: 4 });
    const aside = fc.array(one, { maxLength: 1 });
    const plan = fc.record({ rcode: fc.oneof({ weight: 8, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.constantFrom(1, 2, 3, 5, 15) }), flags: fc.constantFrom(0x8180, 0x81a0, 0x8580), answers: section, authority: aside, additional: aside, opt: fc.boolean() });
    const world = new World({ yaml: "rules: [{deny: denied.example}, {allow: allowed.example, proto: tcp, ports: [443]}]", limits: { queriesPerSecond: 1e9, burst: 1e9 } });
    let answered = 0;
    await fc.assert(fc.asyncProperty(plan, fc.constantFrom(1, 28, 5, 64, 65, 16, 46), fc.boolean(), async (reply, type, dnssec) => {
      world.service.flushCache();
      world.pass(10_000);
      world.sandbox.pins.sweep(world.seconds, () => false);
      world.kernel.entries.clear();
      world.upstream = (q, send) => send(replyTo(q, reply));
      const seen = await world.ask(name, type, { edns: { dnssec } }, world.sandbox, true);
      if (seen.rcode === 0 && seen.records.length > 0) answered++;
      const told = new Set<string>();
      const owners = new Set([name]);
      for (const { section: where, owner, type: kind, data: octets } of seen.records) {
        if (where !== 1) {
          expect([6, 46, 47, 50]).toContain(kind);
          continue;
        }
        expect(owners).toContain(owner);
        if (kind === 5 && type !== 5) owners.add(readNameText(seen.raw, octets.byteOffset - seen.raw.byteOffset)[0]);
        if (kind === 1) told.add([...octets].join("."));
        if (kind === 28) told.add(octets.toString("hex"));
        if (kind === 64 || kind === 65) {
          let at = readName(octets, 0, 2, octets.length, false)!.next;
          for (; at < octets.length; at += 4 + octets.readUInt16BE(at + 2)) {
            const key = octets.readUInt16BE(at);
            const value = octets.subarray(at + 4, at + 4 + octets.readUInt16BE(at + 2));
            expect(key).not.toBe(5);
            if (key === 1) expect(value.toString("latin1")).not.toMatch(/\x02h3|h3-/);
            if (key === 4) for (let i = 0; i < value.length; i += 4) told.add([...value.subarray(i, i + 4)].join("."));
            if (key === 6) for (let i = 0; i < value.length; i += 16) told.add(value.toString("hex", i, i + 16));
          }
        }
      }
      const publicOnes = ["93.184.216.34", "93.184.216.35", "8.8.8.8", ip("2606:4700::1").toString("hex"), ip("2606:4700::2").toString("hex")];
      const pinned = [...world.kernel.entries.keys()].map((key) => (key.includes(":") ? ip(key).toString("hex") : key));
      for (const each of told) expect(publicOnes).toContain(each);
      for (const each of told) expect(pinned).toContain(each);
      for (const each of pinned) expect(publicOnes).toContain(each);
      if (seen.rcode !== 0) expect(pinned).toEqual([]);
    }), { numRuns: 800 });
    expect(world.service.faults).toBe(0);
    expect(answered).toBeGreaterThan(50);
  });

  it("a reply of thousands of records with names that point and point is read or refused, not walked for ever", () => {
    const q = query("allowed.example");
    const one = rr({ name: "x.allowed.example", type: 1, data: Buffer.alloc(4) });
    const b = Buffer.concat([q.subarray(0, 2), u16(0x8180), u16(1), u16(4_096), u16(0), u16(0), q.subarray(12), ...Array.from({ length: 4_096 }, () => Buffer.concat([u16(0xc00c), one.subarray(19)]))]);
    expect(parseReply(b, 0, b.length)?.answers).toHaveLength(4_096);
    const over = Buffer.from(b);
    over.writeUInt16BE(4_097, 6);
    expect(parseReply(over, 0, over.length)).toBeNull();
  });

  const long = `${"a.".repeat(90)}allowed.example`;
  const reply = (type: number, n: number, data: (i: number) => Buffer, owner: (i: number) => Buffer = () => u16(0xc00c)): Buffer => {
    const q = query(long, type);
    return Buffer.concat([q.subarray(0, 2), u16(0x8180), u16(1), u16(n), u16(0), u16(0), q.subarray(12), ...Array.from({ length: n }, (_, i) => {
      const octets = data(i);
      return Buffer.concat([owner(i), u16(type), u16(1), Buffer.alloc(4), u16(octets.length), octets]);
    })]);
  };
  const label = (i: number): Buffer => Buffer.from(`\x04${i.toString(36).padStart(4, "0")}`, "latin1");

  it.each<[string, Buffer, number]>([
    ["addresses of one long name", reply(1, 4_000, () => Buffer.alloc(4)), 4_000],
    ["mail servers with names of their own below a common one", reply(15, 2_000, (i) => Buffer.concat([u16(10), label(i), Buffer.from("\x20abcdefghijklmnopqrstuvwxyz012345\xc0", "latin1"), Buffer.from([12 + 180])])), 2_000],
    ["reverse names of one address", reply(12, 1_000, (i) => wireName(`host-${i}.customers.provider.example`)), 1_000],
    ["owners of their own with a long name's end", reply(1, 200, () => Buffer.alloc(4), (i) => Buffer.concat([label(i), u16(0xc00c + 2 * 60)])), 200],
  ])("large and honest is read: %s", (_what, b, count) => {
    expect(parseReply(b, 0, b.length)?.answers).toHaveLength(count);
  });

  it.each<[string, Buffer]>([
    ["two long names in each record's data", reply(14, 3_500, () => Buffer.from([0xc0, 12, 0xc0, 12]))],
    ["one in each", reply(2, 4_000, () => u16(0xc00c))],
    ["a long owner of its own for each", reply(1, 3_000, () => Buffer.alloc(4), (i) => Buffer.concat([label(i), u16(0xc00c)]))],
  ])("what comes to many times its own octets when read is refused before it has: %s", (_what, b) => {
    expect(parseReply(b, 0, b.length)).toBeNull();
    // The same with as many records as a server may well send.
    const few = Buffer.from(b);
    few.writeUInt16BE(20, 6);
    let at = 12 + long.length + 2 + 4;
    for (let i = 0; i < 20; i++) {
      at = readName(few, 0, at, few.length)!.next + 8;
      at += 2 + few.readUInt16BE(at);
    }
    expect(parseReply(few, 0, at)?.answers).toHaveLength(20);
  });
});
