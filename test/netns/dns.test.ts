/**
 * Attack rows A25–A36: DNS from a guest on a real tap, against a scripted upstream whose log shows what it was asked.
 *
 * The control is a world without the enforcer: there the same question reaches the server that the guest chose, or the
 * same answer reaches the guest.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nameBytes, svcb, TYPES } from "../lib/dns-message.mjs";
import type { Entry } from "../lib/services.mjs";
import { ADDRESS, type Enforcer, RESOLVERS, World } from "../lib/world.mjs";
import { addresses, framed, GuestResolver, OPT, query, RCODE, rcode } from "./resolver.js";
import { controlsOnly, SINK } from "./stage.js";

const POLICY = `
rules:
  - allow: site.example
  - allow: "*.allowed.example"
  - allow: suffix:pins.example
    proto: tcp
    ports: [80]
  - allow: suffix:rebind.test
  - allow: suffix:odd.test
tls: {verify_names: false} # here the pins are looked at, by clients that name the address as Host
`;

/** Each pin case has addresses of its own, all of which answer HTTP. */
const PIN = Array.from({ length: 12 }, (_, index) => `93.184.217.${10 + index}`);
const PIN6 = ["2606:2800:220:2::10", "2606:2800:220:2::11"];

/** IPv6 forms of addresses that a guest may not have. */
const FORMS = ["::ffff:10.0.0.1", "::ffff:169.254.169.254", "::10.0.0.1", "::ffff:0:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1",
  "fc00::1", "fd00:ec2::254", "fdff::1", "::", "::1", "fe80::1", "fec0::1", "ff02::1", "4000::1", "2001:db8::1"];

const ECH = "ec40ec41ec42ec43";

const ZONE: Record<string, Entry | Entry[]> = {
  "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6], TXT: ["hello"] },
  "*.allowed.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] },
  "*.evil.example": { A: [ADDRESS.site4b], TXT: ["exfil"] },
  "evil.example": { A: [ADDRESS.site4b] },
  "allowed.example": { A: [ADDRESS.site4b] },
  // rebinding
  "flip.rebind.test": [{ A: [ADDRESS.site4], ttl: 0 }, { A: ["169.254.169.254"], ttl: 0 }],
  "flip6.rebind.test": [{ AAAA: [ADDRESS.site6], ttl: 0 }, { AAAA: ["fd00:ec2::254"], ttl: 0 }],
  "first.rebind.test": { A: [ADDRESS.site4, "127.0.0.1"] },
  "last.rebind.test": { A: ["127.0.0.1", ADDRESS.site4] },
  "host.rebind.test": { A: [ADDRESS.host4] },
  "glue.rebind.test": { A: [ADDRESS.site4], additional: [{ name: "ns.rebind.test", type: "A", data: "10.0.0.1" }] },
  "authority.rebind.test": { A: [ADDRESS.site4], authority: [{ name: "rebind.test", type: "A", data: "10.0.0.1" }] },
  "chain.rebind.test": { CNAME: "inner.rebind.test" },
  "inner.rebind.test": { A: ["10.0.0.1"] },
  ...Object.fromEntries(FORMS.map((form, index) => [`form${index}.rebind.test`, { AAAA: [form] }])),
  ...Object.fromEntries(FORMS.map((form, index) => [`mixed${index}.rebind.test`, { AAAA: [ADDRESS.site6, form] }])),
  "svcb.rebind.test": { HTTPS: [svcb({ alpn: ["h2", "h3"], ipv4hint: [ADDRESS.site4, "10.0.0.1"], ipv6hint: [ADDRESS.site6], ech: ECH })] },
  "svcb6.rebind.test": { HTTPS: [svcb({ alpn: ["h2"], ipv6hint: [ADDRESS.site6, "fd00:ec2::254"] })] },
  "ech.rebind.test": { HTTPS: [svcb({ alpn: ["h2"], ech: ECH })] },
  "alias.rebind.test": { HTTPS: [svcb({ priority: 0, target: "metadata.google.internal" })] },
  "local.rebind.test": { CNAME: "localhost" },
  localhost: { A: [ADDRESS.site4], AAAA: ["::1"] },
  "single.rebind.test": { CNAME: "intranet" },
  intranet: { A: [ADDRESS.site4] },
  "docker.rebind.test": { CNAME: "host.docker.internal" },
  "host.docker.internal": { A: [ADDRESS.site4] },
  "mdns.rebind.test": { CNAME: "printer.local" },
  "printer.local": { A: [ADDRESS.site4] },
  "1.0.0.10.in-addr.arpa": { answer: [{ name: "1.0.0.10.in-addr.arpa", type: "PTR", data: "secret.corp.example" }] },
  // pins
  "fair.pins.example": { A: [PIN[0]!], AAAA: [PIN6[0]!] },
  "unrelated.pins.example": { answer: [{ name: "unrelated.pins.example", type: "A", data: PIN[1]! }, { name: "other.example", type: "A", data: PIN[2]! }] },
  "glue.pins.example": { A: [PIN[3]!], additional: [{ name: "ns.pins.example", type: "A", data: PIN[4]! }] },
  "authority.pins.example": { A: [PIN[5]!], authority: [{ name: "pins.example", type: "NS", data: "ns.pins.example" }, { name: "ns.pins.example", type: "A", data: PIN[6]! }] },
  "nx.pins.example": { rcode: 3, answer: [{ name: "nx.pins.example", type: "A", data: PIN[7]! }] },
  "chain.pins.example": { CNAME: "edge.cdn.test" },
  "edge.cdn.test": { A: [PIN[8]!], AAAA: [PIN6[1]!] },
  "outside.pins.example": { answer: [{ name: "edge2.cdn.test", type: "A", data: PIN[9]! }] },
  // forged answers come first, the true one after them
  "forged.pins.example": {
    A: [PIN[10]!],
    forgeries: [
      { wrongId: true, A: [PIN[11]!] }, { question: "other.pins.example", A: [PIN[11]!] }, { from: "8.8.8.8", A: [PIN[11]!] }, { port: 5353, A: [PIN[11]!] },
      ...Array.from({ length: 200 }, () => ({ from: "1.1.1.1", A: [PIN[11]!] })),
    ],
  },
  // malformed replies, after the id
  "short.odd.test": { raw: "8180" },
  "header.odd.test": { raw: "81800001000100000000" },
  "loop.odd.test": { raw: "81800001000100000000c00c00010001c00c000100010000003c00045db8d822" },
  "counts.odd.test": { raw: "8180ffffffffffffffff" },
  "empty.odd.test": { raw: "" },
  "overlong.odd.test": { raw: `81800001000100000000${"3f".padEnd(128, "61")}00` },
};

describe("DNS rows", () => {
  let control: World;
  let held: World;
  let enforcer: Enforcer | null = null;
  let free: GuestResolver;
  let guest: GuestResolver;

  beforeAll(async () => {
    const make = (): Promise<World> => World.create({ sibling: true, zone: ZONE, internet: [...PIN, ...PIN6] });
    [control, held] = await Promise.all([make(), make()]);
    if (!controlsOnly) enforcer = await held.enforce({ policy: POLICY });
    [free, guest] = await Promise.all([GuestResolver.open(control), GuestResolver.open(held)]);
  });
  afterAll(async () => {
    await enforcer?.stop();
    await Promise.all([control?.close(), held?.close()]);
  });

  /** Names (lower case) that any server of the world was asked for. */
  const askedFor = (world: World, part: string): string[] =>
    world.services.internet.seen("dns").map((entry) => String(entry.name).toLowerCase()).filter((name) => name.includes(part));

  /** It still answers a fair question: nothing of a row has stopped it. */
  const alive = async (): Promise<void> => {
    for (const transport of ["udp", "tcp"] as const) {
      expect((await guest.ask("site.example", "A", { transport }))?.answers?.map((record) => (record as { data: unknown }).data)).toEqual([ADDRESS.site4]);
    }
    expect(enforcer?.service.ended ?? null).toBeNull();
  };
  const reaches = async (world: World, address: string): Promise<boolean> => (await world.guest.probe(["http", address, "80", "x", "/"], 400)).ok;

  test("A25 any resolver, UDP and TCP: answered from the address that was asked, and only our upstream is asked", async () => {
    const servers = ["1.1.1.1", "2606:4700:4700::1111", "8.8.8.8", "2001:4860:4860::8888"];
    for (const [index, server] of servers.entries()) {
      for (const transport of ["udp", "tcp"] as const) expect((await free.ask(`c${index}.allowed.example`, "A", { server, transport }))?.from).toBe(server);
      expect(control.services.internet.seen("dns", { server, client: server.includes(":") ? ADDRESS.guest6 : ADDRESS.guest4 }).length).toBeGreaterThan(0);
    }
    if (controlsOnly) return;
    const everywhere = [...servers, SINK.v4, SINK.v6, ADDRESS.gateway4, ADDRESS.gateway6, ADDRESS.lan4, "169.254.169.254"];
    const { uplink, lan } = await held.watch(async () => {
      for (const [index, server] of everywhere.entries()) {
        for (const transport of ["udp", "tcp"] as const) {
          const reply = await guest.ask(`${transport}${index}.allowed.example`, "A", { server, transport });
          expect(reply === null ? null : { from: reply.from, data: addresses(reply) }, `${transport} to ${server}`).toEqual({ from: server, data: [ADDRESS.site4] });
        }
      }
    });
    expect(uplink.length + lan.length).toBe(0);
    const asked = held.services.internet.seen("dns");
    expect(asked.length).toBeGreaterThan(0);
    expect([...new Set(asked.map((entry) => `${entry.server} from ${entry.client}`))]).toEqual([`${ADDRESS.resolver4} from ${ADDRESS.host4}`]);
    await alive();
  });

  test("A26 messages over TCP: two in one segment, a thousand pipelined, length prefixes that lie", async () => {
    const both = Buffer.concat([framed(query("two.allowed.example", "A", { id: 1 })), framed(query("a26.evil.example", "A", { id: 2 }))]);
    await free.send([both], { transport: "tcp", expect: 2 });
    expect(askedFor(control, "a26.evil").length, "control").toBe(1);
    if (controlsOnly) return;
    const { answers } = await guest.send([both], { transport: "tcp", expect: 2 });
    expect(Object.fromEntries(answers.map((answer) => [answer.readUInt16BE(0), rcode(answer)]))).toEqual({ 1: RCODE.noError, 2: RCODE.nxDomain });

    const thousand = Array.from({ length: 1000 }, (_, index) => framed(query(index % 2 === 0 ? "site.example" : `p${index}.a26.evil.example`, "A", { id: index })));
    const pipelined = await guest.send([Buffer.concat(thousand)], { transport: "tcp", expect: 1000, waitMs: 10_000 });
    expect(new Set(pipelined.answers.map((answer) => answer.readUInt16BE(0))).size).toBe(1000);
    expect(pipelined.answers.filter((answer) => answer.readUInt16BE(0) % 2 === 1 && rcode(answer) === RCODE.noError)).toEqual([]);

    const fair = query("site.example", "A");
    const denied = query("lie.a26.evil.example", "A");
    for (const chunk of [framed(denied, denied.length - 4), framed(denied, 65535), framed(denied, 0), framed(denied, 11), Buffer.of(0), Buffer.concat([framed(fair), framed(denied, 12)])])
      await guest.send([chunk], { transport: "tcp", expect: 3, waitMs: 300 });
    // Octet by octet is fair.
    const slow = await guest.send([...framed(fair)].map((octet) => Buffer.of(octet)), { transport: "tcp", expect: 1 });
    expect(slow.answers.map(rcode)).toEqual([RCODE.noError]);
    expect(askedFor(held, "a26.evil")).toEqual([]);
    await alive();
  });

  test("A27 names that are not allowed, unique labels, every type: nothing reaches an authoritative server", async () => {
    const types = [...Object.values(TYPES).filter((type) => type !== TYPES.OPT), 13, 35, 37, 39, 43, 44, 46, 48, 52, 99, 249, 251, 252, 257, 0, 65280, 65535];
    await free.ask("c.exfil.evil.example", "TXT");
    expect(askedFor(control, "exfil").length, "control").toBe(1);
    if (controlsOnly) return;
    for (const type of types) {
      for (const transport of ["udp", "tcp"] as const) {
        const reply = await guest.ask(`d${type}-${transport}.exfil.evil.example`, type, { transport });
        expect(reply === null ? null : rcode(reply.raw), `type ${type} over ${transport}`).not.toBe(RCODE.noError);
        expect(reply).not.toBeNull();
      }
    }
    // A name just above or beside an allowed one is another name.
    for (const name of ["allowed.example", "xallowed.example", "site.example.evil.example", "xsite.example", "a.site.example", "example"])
      expect(rcode((await guest.ask(name, "A"))!.raw), name).toBe(RCODE.nxDomain);
    expect(askedFor(held, "exfil")).toEqual([]);
    expect(askedFor(held, "").filter((name) => !/^(site\.example|.*\.allowed\.example)$/.test(name))).toEqual([]);
    await alive();
  });

  test("A28 labels that only look like an allowed name", async () => {
    const label = (text: string): Buffer => Buffer.concat([Buffer.of(Buffer.byteLength(text, "latin1")), Buffer.from(text, "latin1")]);
    const wire = (...labels: string[]): Buffer => Buffer.concat([...labels.map(label), Buffer.of(0)]);
    const names: [string, Buffer][] = [
      ["one label with a dot", wire("site.example")], ["label with a dot below an allowed name", wire("evil.allowed.ex", "ample")], ["dot inside the first label", wire("a.allowed", "example")],
      ["NUL after the name", wire("site", "example\0")], ["NUL inside", wire("site\0", "example")], ["NUL and another name", wire("site", "example\0.evil", "example")],
      ["backslash", wire("site\\", "example")], ["escaped dot", wire("site\\.example")], ["backslash digits", wire("s\\105te", "example")], ["octet over 127", wire("s\xeete", "example")],
      ["blank", wire("site ", "example")], ["empty first label by a pointer", Buffer.from("c00c", "hex")],
    ];
    // Control: these octets reach the server that the guest chose.
    await free.send([query("", "A", { wireName: names[0]![1] })]);
    expect(askedFor(control, "site.example").length, "control").toBeGreaterThan(0);
    if (controlsOnly) return;
    const before = held.services.internet.seen("dns").length;
    for (const [what, wireName] of names) {
      for (const transport of ["udp", "tcp"] as const) {
        const message = query("", "A", { wireName });
        const { answers } = await guest.send([transport === "tcp" ? framed(message) : message], { transport });
        expect(answers.length, what).toBe(1);
        expect([RCODE.formErr, RCODE.nxDomain, RCODE.refused], `${what}: rcode`).toContain(rcode(answers[0]!));
        expect(answers[0]!.readUInt16BE(6), `${what}: no answer records`).toBe(0);
      }
    }
    // Two root labels: what follows the name is not a type any more.
    const doubled = await guest.send([query("", "A", { wireName: Buffer.concat([nameBytes("site.example"), Buffer.of(0)]) })]);
    expect(doubled.answers.map(rcode)).toEqual([RCODE.formErr]);
    expect(held.services.internet.seen("dns").length).toBe(before);
    // Mixed case is the same name; its case comes back, and does not go upstream.
    const mixed = await guest.ask("MiXeD.aLLoWeD.exAMple", "A");
    expect(mixed?.raw.includes(nameBytes("MiXeD.aLLoWeD.exAMple"))).toBe(true);
    expect(mixed === null ? null : addresses(mixed)).toEqual([ADDRESS.site4]);
    expect(held.services.internet.seen("dns").at(-1)?.name).toBe("mixed.allowed.example");
    await alive();
  });

  test("A29 messages that are not one ordinary question", async () => {
    const question = (name: string): Buffer => Buffer.concat([nameBytes(name), Buffer.from("00010001", "hex")]);
    const cases: [string, Buffer, number[]][] = [
      ["two questions", query("site.example", "A", { questions: 2, tail: question("a29.evil.example"), additional: 0 }), [RCODE.formErr]],
      ["two questions, denied first", query("a29.evil.example", "A", { questions: 2, tail: question("site.example"), additional: 0 }), [RCODE.formErr]],
      ["no question", query("site.example", "A", { questions: 0 }), [RCODE.formErr]],
      ["opcode UPDATE", query("a29.allowed.example", "A", { flags: 0x2900 }), [RCODE.notImp]],
      ["opcode NOTIFY", query("a29.allowed.example", "SOA", { flags: 0x2100 }), [RCODE.notImp]],
      ["opcode IQUERY", query("a29.allowed.example", "A", { flags: 0x0900 }), [RCODE.notImp]],
      ["class CH", query("a29.allowed.example", "TXT", { class: 3 }), [RCODE.refused]],
      ["class ANY", query("a29.allowed.example", "A", { class: 255 }), [RCODE.refused]],
      ["two OPT records", query("a29.allowed.example", "A", { additional: 2, tail: Buffer.concat([OPT, OPT]) }), [RCODE.formErr]],
      ["octets behind the message", query("a29.allowed.example", "A", { tail: Buffer.concat([OPT, Buffer.from("trailing")]) }), [RCODE.formErr]],
      ["count without a record", query("a29.allowed.example", "A", { additional: 2 }), [RCODE.formErr]],
    ];
    await free.send([cases[1]![1]]);
    expect(askedFor(control, "a29.evil").length, "control").toBe(1);
    if (controlsOnly) return;
    for (const [what, message, expected] of cases) {
      for (const transport of ["udp", "tcp"] as const) {
        const { answers } = await guest.send([transport === "tcp" ? framed(message) : message], { transport });
        expect(answers.map(rcode), `${what} over ${transport}`).toEqual(expected);
      }
    }
    // An answer is no question: it gets none.
    for (const transport of ["udp", "tcp"] as const) {
      const message = query("a29.allowed.example", "A", { flags: 0x8180 });
      const { answers } = await guest.send([transport === "tcp" ? framed(message) : message], { transport, waitMs: 300 });
      expect(answers.filter((answer) => rcode(answer) === RCODE.noError)).toEqual([]);
    }
    expect(askedFor(held, "a29")).toEqual([]);
    await alive();
  });

  test("A30 malformed messages by the hundred, as questions and as replies", async () => {
    // A small generator with a fixed seed (xorshift32), so that a failure can be repeated.
    let state = 0x9e3779b9;
    const random = (below: number): number => {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) % below;
    };
    const broken = (): Buffer => {
      const message = Buffer.from(query("a30.allowed.example", "A"));
      for (let change = 0; change <= random(6); change++) message[2 + random(message.length - 2)] = random(256);
      return random(3) === 0 ? message.subarray(0, 1 + random(message.length)) : message;
    };
    const replies = ["short", "header", "loop", "counts", "empty", "overlong"];
    for (const name of replies) expect((await free.send([query(`${name}.odd.test`, "A")], { waitMs: 500 })).answers.length, `control: ${name}`).toBe(1);
    if (controlsOnly) return;
    for (let round = 0; round < 4; round++) {
      const messages = Array.from({ length: 100 }, broken);
      await guest.send(messages, { waitMs: 400, expect: 101 });
      await Promise.all(messages.slice(0, 25).map((message) => guest.send([framed(message)], { transport: "tcp", expect: 2, waitMs: 400 })));
    }
    await alive();
    await Promise.all(replies.map(async (name) => {
      const reply = await guest.ask(`${name}.odd.test`, "A", { waitMs: 10_000 });
      expect(reply === null ? null : { rcode: rcode(reply.raw), answers: addresses(reply) }, name).toEqual({ rcode: RCODE.servFail, answers: [] });
    }));
    // What went upstream was made anew from what was judged: one question, RD, one OPT, nothing behind.
    for (const entry of held.services.internet.seen("dns")) {
      const message = Buffer.from(String(entry.hex), "hex");
      expect([message.readUInt16BE(2) & 0xff00, message.readUInt16BE(4), message.readUInt16BE(6), message.readUInt16BE(8), message.readUInt16BE(10)]).toEqual([0x0100, 1, 0, 0, 1]);
    }
    await alive();
  });

  test("A31 forged replies: wrong id, wrong question, other server, other port", async () => {
    const first = await free.send([query("forged.pins.example", "A")], { expect: 1 });
    expect(first.answers.length, "control: the forgery arrives first").toBe(1);
    if (controlsOnly) return;
    const reply = await guest.ask("forged.pins.example", "A", { waitMs: 6000 });
    expect(reply === null ? null : addresses(reply)).toEqual([PIN[10]]);
    expect(await reaches(held, PIN[10]!)).toBe(true);
    expect(await reaches(held, PIN[11]!)).toBe(false);
  });

  test("A32 rebinding: public first and private next, and both in one answer", async () => {
    for (const [name, type, bad] of [["flip.rebind.test", "A", "169.254.169.254"], ["flip6.rebind.test", "AAAA", "fd00:ec2::254"]] as const) {
      await free.ask(name, type);
      expect(addresses((await free.ask(name, type))!), "control").toEqual([bad]);
      if (controlsOnly) continue;
      for (let turn = 0; turn < 3; turn++) {
        const reply = await guest.ask(name, type);
        expect(reply === null ? ["no answer"] : addresses(reply).filter((address) => address === bad)).toEqual([]);
      }
      expect(await reaches(held, bad)).toBe(false);
    }
    const mixed = ["first", "last", "host", "glue", "authority", "chain"];
    for (const name of mixed) {
      expect(addresses((await free.ask(`${name}.rebind.test`, "A"))!).length, `control: ${name}`).toBeGreaterThan(0);
      if (controlsOnly) continue;
      const reply = await guest.ask(`${name}.rebind.test`, "A");
      expect(reply === null ? null : [rcode(reply.raw), addresses(reply)], name).toEqual([RCODE.refused, []]);
    }
    if (controlsOnly) return;
    for (const address of ["127.0.0.1", "10.0.0.1", ADDRESS.host4]) expect(await reaches(held, address)).toBe(false);
    expect(enforcer!.events.some((event) => event.event === "dns-denied" && event.name === "first.rebind.test")).toBe(true);
    await alive();
  });

  test("A33 IPv6 answers that carry or are something else than a public address", async () => {
    expect(addresses((await free.ask("form0.rebind.test", "AAAA"))!).length, "control").toBe(1);
    if (controlsOnly) return;
    for (const [index, form] of FORMS.entries()) {
      for (const name of [`form${index}`, `mixed${index}`]) {
        const reply = await guest.ask(`${name}.rebind.test`, "AAAA");
        expect(reply === null ? null : [rcode(reply.raw), addresses(reply)], `${name}: ${form}`).toEqual([RCODE.refused, []]);
      }
    }
    await alive();
  });

  test("A34 HTTPS records: private hints, alias to a metadata name, ech", async () => {
    const names = ["svcb", "svcb6", "ech", "alias"];
    for (const name of names) expect((await free.send([query(`${name}.rebind.test`, "HTTPS")])).answers.length, "control").toBe(1);
    expect((await free.send([query("ech.rebind.test", "HTTPS")])).answers[0]!.toString("hex"), "control").toContain(ECH);
    if (controlsOnly) return;
    const forbidden = [ECH, "0a000001", "fd000ec2", Buffer.from("metadata").toString("hex")];
    for (const name of names) {
      const { answers } = await guest.send([query(`${name}.rebind.test`, "HTTPS")]);
      expect(answers.length, name).toBe(1);
      for (const octets of forbidden) expect(answers[0]!.toString("hex"), `${name} must not hold ${octets}`).not.toContain(octets);
      // An alias in a hint must not have opened anything.
      expect(await reaches(held, "10.0.0.1")).toBe(false);
    }
    await alive();
  });

  test("A35 names of the host, of the link and of private ranges", async () => {
    const chains = ["local", "single", "docker", "mdns"];
    for (const name of chains) {
      expect(addresses((await free.ask(`${name}.rebind.test`, "A"))!).length, `control: ${name}`).toBeGreaterThan(0);
      if (controlsOnly) continue;
      const reply = await guest.ask(`${name}.rebind.test`, "A");
      expect(reply === null ? null : addresses(reply), name).toEqual([]);
      expect(rcode(reply!.raw), name).not.toBe(RCODE.noError);
    }
    const direct: [string, string][] = [["localhost", "A"], ["localhost", "AAAA"], ["intranet", "A"], ["host.docker.internal", "A"], ["printer.local", "A"], ["metadata.google.internal", "A"],
      ["1.0.0.10.in-addr.arpa", "PTR"], ["254.169.254.169.in-addr.arpa", "PTR"], ["1.0.0.127.in-addr.arpa", "PTR"],
      ["1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", "PTR"]];
    expect((await free.ask("1.0.0.10.in-addr.arpa", "PTR"))?.answers?.length, "control").toBe(1);
    if (controlsOnly) return;
    const before = held.services.internet.seen("dns").length;
    for (const [name, type] of direct) {
      const reply = await guest.ask(name, type);
      expect(reply === null ? null : [rcode(reply.raw) === RCODE.noError, reply.answers?.length ?? 0], name).toEqual([false, 0]);
    }
    expect(held.services.internet.seen("dns").length).toBe(before);
    await alive();
  });

  test("A36 only owners on the chain of the question are pinned, and only with NOERROR", async () => {
    for (const address of PIN) expect(await reaches(control, address), `control: ${address}`).toBe(true);
    if (controlsOnly) return;
    const get = async (name: string, type = "A"): Promise<string[]> => {
      const reply = await guest.ask(name, type);
      return reply === null ? ["no answer"] : addresses(reply);
    };
    const all = [...PIN.slice(0, 10), ...PIN6];
    const reached = async (): Promise<string[]> => {
      const results = await Promise.all(all.map((address) => reaches(held, address)));
      return all.filter((_, index) => results[index]);
    };
    expect(await reached(), "before any question").toEqual([]);
    expect(await get("fair.pins.example")).toEqual([PIN[0]]);
    expect(await get("fair.pins.example", "AAAA")).toEqual([PIN6[0]]);
    expect(await get("chain.pins.example")).toEqual([PIN[8]]);
    expect(await get("chain.pins.example", "AAAA")).toEqual([PIN6[1]]);
    await get("unrelated.pins.example");
    await get("glue.pins.example");
    await get("authority.pins.example");
    expect(await get("nx.pins.example")).toEqual([]);
    expect(await get("outside.pins.example")).toEqual([]);
    expect(await reached()).toEqual([PIN[0], PIN[1], PIN[3], PIN[5], PIN[8], ...PIN6]);
    // A pin opens what its rule says and no more.
    expect((await held.guest.probe(["tcp", PIN[0]!, "8080"], 400)).ok).toBe(false);
    expect((await held.guest.probe(["udp", PIN[0]!, "9999", "x"], 400)).ok).toBe(false);
    expect((await held.guest.probe(["ping", PIN[0]!], 400)).ok).toBe(false);
  });

  test("no row made the upstream hear from anybody but the enforcer", () => {
    if (controlsOnly) return;
    expect([...new Set(held.services.internet.seen("dns").map((entry) => `${entry.server} from ${entry.client}`))]).toEqual([`${RESOLVERS[0]} from ${ADDRESS.host4}`]);
  });
});
