/**
 * The short way (bpf/fast.h) and the long way say the same: two sandboxes with the same identity and policy live through the same
 * random history, one by from_guest and one by from_guest_long, and never differ in verdict, reason, rule, flow table or what
 * becomes of the frame.
 *
 * A history: frames out and in, whole and damaged; flows that age; policies swapped; pins added; groups changed.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { formatAddress } from "../../src/addresses/address.js";
import {
  addTags, arpFrame, type Bytes, concat, destinationOptions, echoFrame, filler, fragments, hex, hopByHop, icmp, icmpv6, ipFrame, neighbourAdvertisement, PROTOCOL, TCP, tcpFrame, udp, udpFrame,
} from "../lib/frames.js";
import { address, GUEST, HOST, hostGroups, Lab, type LabSandbox, nowSeconds, type Outcome, prefix, SITE } from "./lab.js";

const POLICIES = [
  "rules: [{allow: public}]",
  "rules: [{allow: public, proto: tcp}]",
  "rules: [{deny: 93.184.216.0/24, proto: tcp, ports: [443]}, {allow: public, ports: [80, 443]}, {allow: any, direction: ingress, proto: tcp, ports: [8080]}]",
  "rules: [{allow: api.example.com, ports: [443]}, {deny: private}, {allow: any, direction: ingress}]",
  "default_egress: allow\nrules: [{deny: api.example.com, ports: [80]}, {deny: private}]",
  "default_ingress: allow\nrules: [{allow: 10.9.0.0/16}, {allow: \"fd01::/16\", ports: [1-500]}]",
  "rules: []",
];
const REMOTES = [SITE.v4, SITE.v6, SITE.other4, SITE.other6, "10.9.9.9", "fd01::9", "169.254.169.254", HOST.gateway4, HOST.gateway6, "239.1.1.1", "64:ff9b::a09:909", "8.8.8.8"];
const PORTS = [80, 443, 22, 8080, 53, 853, 5353];
const GUEST_PORTS = [1111, 2222, 8080, 67, 547, 53];
const TCP_FLAGS = [TCP.syn, TCP.ack, TCP.ack | TCP.psh, TCP.syn | TCP.ack, TCP.fin | TCP.ack, TCP.rst, TCP.rst | TCP.ack, TCP.syn | TCP.fin, 0, TCP.psh, TCP.syn | TCP.ece | TCP.cwr];
/** Values that mean something somewhere in a header. */
const OCTETS = [0, 1, 2, 4, 5, 6, 8, 16, 17, 20, 43, 44, 58, 60, 64, 0x40, 0x45, 0x46, 0x60, 0x7f, 0x80, 0xff];

const pickFrame = fc.record({
  shape: fc.constantFrom(...[
    "tcp", "tcp", "tcp", "tcp", "tcp", "udp", "udp", "udp", "echo", "reply", "fragment0", "fragment1", "options", "extensions", "arp", "nd", "error", "gre", "vlan", "mac", "source", "link-local", "dhcp", "short",
  ] as const),
  remote: fc.nat({ max: REMOTES.length - 1 }), port: fc.constantFrom(...PORTS), guestPort: fc.constantFrom(...GUEST_PORTS), flags: fc.constantFrom(...TCP_FLAGS), payload: fc.constantFrom(0, 0, 1, 6, 20, 100),
  damage: fc.oneof({ weight: 3, arbitrary: fc.constant(null) }, { weight: 2, arbitrary: fc.record({
    how: fc.constantFrom("flip", "set", "set", "cut", "grow", "pad"), where: fc.oneof(fc.nat({ max: 80 }), fc.integer({ min: 12, max: 54 })), value: fc.oneof(fc.constantFrom(...OCTETS), fc.nat({ max: 255 })),
  }) }),
  gso: fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 10),
});
type FramePick = typeof pickFrame extends fc.Arbitrary<infer T> ? T : never;
const step = fc.oneof(
  { weight: 24, arbitrary: pickFrame.map((frame) => ({ kind: "out" as const, frame })) },
  { weight: 8, arbitrary: pickFrame.map((frame) => ({ kind: "in" as const, frame })) },
  { weight: 6, arbitrary: pickFrame.map((frame) => ({ kind: "exchange" as const, frame })) },
  { weight: 5, arbitrary: pickFrame.map((frame) => ({ kind: "knock" as const, frame })) },
  { weight: 2, arbitrary: pickFrame.map((frame) => ({ kind: "datagram" as const, frame })) },
  { weight: 2, arbitrary: fc.constantFrom(1, 11, 70, 200, 8000).map((seconds) => ({ kind: "age" as const, seconds })) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("pin" as const), remote: fc.nat({ max: REMOTES.length - 1 }) }) },
  { weight: 1, arbitrary: fc.boolean().map((more) => ({ kind: "groups" as const, more })) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("policy" as const), policy: fc.nat({ max: POLICIES.length - 1 }), frame: pickFrame }) },
);

/**
 * Every way there is, once: where chance alone chose, some seeds missed a reason. Each shape has its own guest port: a flow that a SYN
 * opens anew while the old one is still remembered is marked as answered up to half a second later on the short way (fast.h).
 */
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
const TOUR = (["tcp", "udp", "fragment0", "fragment1", "mac", "source"] as const).flatMap((shape, i) => REMOTES.flatMap((_, remote): Step[] => {
  const frame: FramePick = { shape, remote, port: 443, guestPort: 3000 + i, flags: TCP.syn, payload: 0, damage: null, gso: 0 };
  const cut: FramePick = { ...frame, damage: { how: "cut", where: 30, value: 0 } };
  return [{ kind: "out", frame }, { kind: "in", frame }, { kind: "out", frame: cut }, { kind: "exchange", frame }];
})).concat(POLICIES.map((_, policy): Step => ({ kind: "policy", policy, frame: { shape: "tcp", remote: 0, port: 443, guestPort: 2222, flags: TCP.syn, payload: 0, damage: null, gso: 0 } })));

function shape(sandbox: LabSandbox, pick: FramePick, out: boolean): Bytes {
  const remote = REMOTES[pick.remote]!;
  const ends = out ? sandbox.to(remote) : sandbox.from(remote);
  const v6 = remote.includes(":");
  const fields = { sourcePort: out ? pick.guestPort : pick.port, destinationPort: out ? pick.port : pick.guestPort, payload: filler(pick.payload) };
  const datagram = () => fragments(ends, PROTOCOL.udp, udp(ends.source, ends.destination, { ...fields, payload: filler(64) }), [32]);
  switch (pick.shape) {
    case "tcp": return tcpFrame(ends, { ...fields, flags: pick.flags });
    case "udp": return udpFrame(ends, fields);
    case "echo": return echoFrame(ends, { id: pick.guestPort });
    case "reply": return echoFrame(ends, { id: pick.guestPort, reply: true });
    case "fragment0": return datagram()[0]!;
    case "fragment1": return datagram()[1]!;
    case "options": return tcpFrame(ends, { ...fields, flags: pick.flags, options: filler(12) });
    case "extensions": return udpFrame(ends, fields, { extensions: [hopByHop(), destinationOptions()] });
    case "arp": return arpFrame({ senderMac: GUEST.mac, senderIp: GUEST.v4, targetIp: v6 ? HOST.gateway4 : remote });
    case "nd": return ipFrame(out ? sandbox.to("fd00::1") : sandbox.from("fd00::1"), PROTOCOL.icmpv6, neighbourAdvertisement(GUEST.v6, "fd00::1", GUEST.v6, GUEST.mac), { ipv6: { hopLimit: 255 } });
    case "error": {
      const quoted = tcpFrame(sandbox.to(remote), { sourcePort: pick.guestPort, destinationPort: pick.port }).subarray(14);
      return v6 ? ipFrame(ends, PROTOCOL.icmpv6, icmpv6(ends.source, ends.destination, { type: 2, payload: quoted })) : ipFrame(ends, PROTOCOL.icmp, icmp({ type: 3, code: 4, payload: quoted }));
    }
    case "gre": return ipFrame(ends, PROTOCOL.gre, filler(24));
    case "vlan": return addTags(tcpFrame(ends, fields), [{}]);
    case "mac": return tcpFrame({ ...ends, sourceMac: "02:00:00:00:00:09" }, { ...fields, flags: pick.flags });
    case "source": return tcpFrame({ ...ends, [out ? "source" : "destination"]: v6 ? "fd00::9" : "10.0.0.9" }, { ...fields, flags: pick.flags });
    case "link-local": return v6 ? udpFrame({ ...ends, [out ? "source" : "destination"]: GUEST.linkLocal }, fields) : udpFrame(ends, fields);
    case "dhcp": return udpFrame(sandbox.to("255.255.255.255", { source: "0.0.0.0" }), { sourcePort: 68, destinationPort: 67, payload: filler(40) });
    case "short": return ipFrame(ends, PROTOCOL.tcp, filler(10));
  }
}

function damaged(frame: Bytes, damage: FramePick["damage"]): Bytes {
  if (damage === null) return frame;
  const at = Math.min(damage.where, frame.length - 1);
  const copy = frame.slice();
  switch (damage.how) {
    case "flip": copy[at]! ^= 1 << (damage.value & 7); return copy;
    case "set": copy[at] = damage.value; return copy;
    case "cut": return copy.subarray(0, Math.max(14, frame.length - 1 - (damage.value & 31)));
    case "grow": return concat([copy, filler(1 + (damage.value & 31))]);
    case "pad": return concat([copy, new Uint8Array(Math.max(0, 60 - copy.length))]);
  }
}

/** The kernel refuses to run programs on less than the network header that the EtherType promises. */
function runnable(frame: Bytes): boolean {
  const type = (frame[12]! << 8) | frame[13]!;
  return frame.length >= (type === 0x0800 ? 34 : type === 0x86dd ? 54 : 15);
}

describe("what the cache of denials remembers", () => {
  let lab: Lab;
  let sandbox: LabSandbox;
  beforeAll(() => {
    lab = Lab.open(1);
    sandbox = lab.sandbox();
  });
  afterAll(() => lab?.close());

  const knock = (port: number) => sandbox.out(tcpFrame(sandbox.to(SITE.v4), { sourcePort: 1111, destinationPort: port }));

  test("ends with a pin that grants, with a change of groups and with a policy swap", () => {
    sandbox.setPolicy("rules: [{allow: api.example.com}]");
    for (let i = 0; i < 3; i++) expect(knock(443).reason).toBe("no-pin");
    sandbox.pin({ address: SITE.v4, names: ["api.example.com"] });
    expect(knock(443).reason).toBe("rule-allow");

    sandbox.setPolicy("rules: [{allow: public}, {allow: host, ports: [80]}]");
    lab.groups = hostGroups([SITE.v4]);
    for (let i = 0; i < 3; i++) expect(knock(444).reason).toBe("default-host");
    lab.groups = hostGroups();
    expect(knock(444).reason).toBe("rule-allow");

    sandbox.setPolicy("rules: []");
    for (let i = 0; i < 3; i++) expect(knock(445).reason).toBe("default-public");
    sandbox.setPolicy("rules: [{allow: public}]");
    expect(knock(445).reason).toBe("rule-allow");
  });

  test("is no flow: one goes on while the group of its address stays the same, and not when it changes", () => {
    for (const [v6, site] of [[false, SITE.v4], [true, SITE.v6]] as const) {
      const out = (flags: number): string => sandbox.out(tcpFrame(sandbox.to(site), { sourcePort: 2222, destinationPort: 443, flags })).reason;
      const back = (): string => sandbox.in(tcpFrame(sandbox.from(site), { sourcePort: 443, destinationPort: 2222, flags: TCP.ack })).reason;
      const said = (): string[] => [out(TCP.ack), back()];
      sandbox.setPolicy("rules: [{allow: api.example.com}]");
      const open = (): void => {
        sandbox.pin({ address: site, names: ["api.example.com"] });
        expect(out(TCP.syn)).toBe("rule-allow");
      };
      open();
      for (let i = 0; i < 3; i++) expect(said()).toEqual(["established", "established"]);
      // The pin is gone, as after its lease; the host gains other addresses, and loses them.
      const pins = sandbox.tables.pins()!;
      pins.delete(address(site));
      pins.close();
      lab.groups = hostGroups([SITE.other4, SITE.other6]);
      for (let i = 0; i < 3; i++) expect(said()).toEqual(["established", "established"]);
      lab.groups = hostGroups();
      for (let i = 0; i < 3; i++) expect(said()).toEqual(["established", "established"]);
      // A route to it comes, into a network of the host's, and goes again: out of reach meanwhile, and nobody is told that it is over.
      lab.groups = hostGroups([], [v6 ? `${site}/128` : `${site}/32`]);
      for (let i = 0; i < 3; i++) expect(said()).toEqual(["default-private", "default-private"]);
      lab.groups = hostGroups();
      for (let i = 0; i < 3; i++) expect(said()).toEqual(["established", "established"]);
      // The address becomes the host's own: whoever speaks first.
      open();
      expect(said()).toEqual(["established", "established"]);
      lab.groups = hostGroups([site]);
      expect(back()).toBe("policy-changed");
      expect(out(TCP.ack)).toBe("policy-changed");
      expect(said()).toEqual(["default-host", "ingress-default"]);
      lab.groups = hostGroups();
      // Where a rule names it as the host's, it goes on.
      sandbox.setPolicy(`rules: [{allow: public}, {allow: ${v6 ? `"${site}"` : site}}]`);
      expect(out(TCP.syn)).toBe("rule-allow");
      lab.groups = hostGroups([site]);
      sandbox.setPolicy(`rules: [{allow: public}, {allow: ${v6 ? `"${site}"` : site}}]`);
      for (let i = 0; i < 3; i++) expect(said()).toEqual(["established", "established"]);
      lab.groups = hostGroups();
    }
  });

  test("ends with the pin under which a name is denied", () => {
    sandbox.setPolicy("rules: [{deny: bad.example.com, ports: [25]}, {allow: public}]");
    const [bit] = sandbox.bitsOf("bad.example.com");
    sandbox.pin({ address: SITE.v4, names: ["bad.example.com"] });
    for (let i = 0; i < 3; i++) expect(knock(25).reason).toBe("rule-deny");
    // As time does it: nothing is written but the clock's hand.
    sandbox.pinBits(address(SITE.v4), [{ bit: bit!, expires: nowSeconds() - 1 }], false);
    expect(sandbox.outLong(tcpFrame(sandbox.to(SITE.v4), { sourcePort: 1112, destinationPort: 25 })).reason).toBe("rule-allow");
    expect(knock(25).reason).toBe("rule-allow");
  });
});

describe.each([
  ["given", {}],
  ["learned", { mac: null, guest: [], learnPrefixes: [prefix("10.0.0.0/24"), prefix("fd00::/64")] }],
] as const)("with identity %s, short and long way", (_name, identity) => {
  let lab: Lab;
  let twins: readonly [LabSandbox, LabSandbox];
  const seen = new Map<string, number>();
  beforeAll(() => {
    lab = Lab.open(2);
    twins = [lab.sandbox({ identity, flows: 64 }), lab.sandbox({ identity, flows: 64 })];
  });
  afterAll(() => lab?.close());

  const both = <T>(what: (sandbox: LabSandbox) => T): [T, T] => [what(twins[0]), what(twins[1])];

  function compare(frame: Bytes, out: boolean, gsoSize: number): string | null {
    if (!runnable(frame)) return null;
    const options = gsoSize === 0 ? {} : { gsoSize };
    const [short, long] = out ? [twins[0].out(frame, options), twins[1].outLong(frame, options)] : [twins[0].in(frame, options), twins[1].in(frame, options)];
    const told = (outcome: Outcome) => ({ code: outcome.code, reason: outcome.reason, rule: outcome.event?.rule, ports: [outcome.event?.sourcePort, outcome.event?.destinationPort], proto: outcome.event?.proto });
    expect(told(short), `${out ? "out" : "in"} ${hex(frame)}`).toEqual(told(long));
    // Rewritten for the resolver, the two differ in the sandbox's address; otherwise in nothing.
    if (short.verdict !== "redirect") expect(hex(short.frame)).toBe(hex(long.frame));
    seen.set(short.reason, (seen.get(short.reason) ?? 0) + 1);
    return short.reason;
  }

  const table = (sandbox: LabSandbox) => sandbox.flows().map(({ remote, lastSeen: _, ...flow }) => ({ ...flow, policy: String(flow.policy), remote: formatAddress(remote) })).sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));

  test("agree in every state", () => {
    fc.assert(fc.property(fc.nat({ max: POLICIES.length - 1 }), fc.array(step, { minLength: 40, maxLength: 90 }), (first, history) => {
      lab.groups = hostGroups();
      // Learned anew in each history: a first frame that was damaged would stand for the guest in all that follow.
      both((sandbox) => { sandbox.unlearn(); sandbox.forget(); sandbox.setPolicy(POLICIES[first]!); });
      for (const one of history) {
        switch (one.kind) {
          case "out": case "in":
            compare(damaged(shape(twins[0], one.frame, one.kind === "out"), one.frame.damage), one.kind === "out", one.frame.gso);
            break;
          case "exchange": {
            // Out, answered, out again: what the short way is for.
            const pick = { ...one.frame, shape: one.frame.flags === 0 ? "udp" as const : "tcp" as const };
            compare(shape(twins[0], { ...pick, flags: TCP.syn }, true), true, 0);
            compare(shape(twins[0], { ...pick, flags: TCP.syn | TCP.ack }, false), false, 0);
            for (let i = 0; i < 2; i++) compare(shape(twins[0], { ...pick, flags: TCP.ack }, true), true, 0);
            compare(damaged(shape(twins[0], { ...pick, flags: TCP.ack }, true), one.frame.damage), true, 0);
            break;
          }
          case "knock": {
            // The same again and again: the later ones are answered from the cache of denials.
            const frame = shape(twins[0], one.frame, true);
            for (let i = 0; i < 3; i++) compare(frame, true, 0);
            break;
          }
          case "datagram": {
            const out = (one.frame.port & 1) === 0;
            for (const part of ["fragment0", "fragment1"] as const) compare(shape(twins[0], { ...one.frame, shape: part }, out), out, 0);
            break;
          }
          case "age": both((sandbox) => sandbox.ageFlows(one.seconds)); break;
          case "pin": both((sandbox) => { if (sandbox.bitsOf("api.example.com").length > 0) sandbox.pin({ address: REMOTES[one.remote]!, names: ["api.example.com"] }); }); break;
          case "groups": lab.groups = one.more ? hostGroups([SITE.v4, SITE.other6]) : hostGroups(); break;
          case "policy": {
            const tcp = { ...one.frame, shape: "tcp" as const };
            compare(shape(twins[0], { ...tcp, flags: TCP.syn }, true), true, 0);
            both((sandbox) => sandbox.setPolicy(POLICIES[one.policy]!));
            for (let i = 0; i < 2; i++) compare(shape(twins[0], { ...tcp, flags: TCP.ack }, true), true, 0);
            break;
          }
        }
      }
      expect(table(twins[0])).toEqual(table(twins[1]));
    }), { numRuns: POLICIES.length + RUNS, examples: POLICIES.map((_, policy) => [policy, TOUR]) });
    // Of this test, not of the product: the histories went everywhere.
    for (const reason of ["established", "rule-allow", "rule-deny", "default-allow", "default-private", "default-public", "policy-changed", "no-pin", "fragment", "fragment-follows", "length", "source-mac", "source-address", "ingress-default"]) {
      expect([...seen.keys()]).toContain(reason);
    }
  });
});

const RUNS = 25;
