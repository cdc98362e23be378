/**
 * `explain` held to the kernel program: the same question, put to both, has the same verdict and the same reason, with a floor and
 * without, for every state that a pin can be in, and for policies, pins, protocols and fragments drawn at random. (It found that a
 * policy whose default lets everything in was not held to the floor, that a rule for all protocol numbers was said to open IPv6's
 * own headers, and that an expired pin of a name that is blocked by now was said to be what is missing.)
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Address, formatAddress, isV4 } from "../../src/addresses/address.js";
import { groupTable } from "../../src/addresses/groups.js";
import { explainFlow, type PinFact } from "../../src/explain/explain.js";
import { Proto } from "../../src/policy/types.js";
import { echo, fragments, ipFrame, PROTOCOL, tcp, tcpFrame, udp, udpFrame, type Endpoints, ip } from "../lib/frames.js";
import { address, GUEST, hostGroups, HOST, Lab, prefix, SITE, type LabSandbox, policyOf } from "./lab.js";
import { Seeded } from "../lib/random.js";

const groups = hostGroups(["93.184.216.1"]);

const policies = [
  "rules: [{allow: public}]",
  "rules: [{allow: site.example, proto: tcp, ports: [443]}]",
  "rules: [{deny: site.example, proto: tcp, ports: [80]}, {allow: 'suffix:example', ports: [80, 443]}, {allow: 10.0.0.0/8, ports: [22]}]",
  "default_egress: allow\nrules: [{deny: metadata}, {deny: 93.184.216.0/24, proto: udp}, {allow: any, direction: ingress, proto: tcp, ports: [8080]}]",
  "default_ingress: allow\nrules: [{allow: site.example, proto: icmp}, {allow: private, proto: [47]}, {allow: 169.254.169.254}]",
  "rules: []",
  "tls: {intercept: true, ports: [443, 8443]}\nrules: [{deny: other.example}, {allow: public}, {allow: site.example, ports: [8443]}]",
];
const floors = [null, "rules: [{deny: private}, {allow: public, ports: [1-1023]}]", "default_egress: allow\ndefault_ingress: allow\nrules: [{deny: other.example}, {deny: metadata}]"];
const destinations = [SITE.v4, SITE.v6, SITE.other4, "10.0.0.1", "10.1.2.3", "169.254.169.254", "127.0.0.1", "224.0.0.9", "240.0.0.9", "fd00::9", "64:ff9b::a9fe:a9fe", "203.0.114.9"];
/** Where pins are tried: public, private and the host's. */
const PINNED = [SITE.v4, SITE.v6, "10.1.2.3", "10.0.0.1"];
const shapes = [[PROTOCOL.tcp, 443], [PROTOCOL.tcp, 80], [PROTOCOL.tcp, 22], [PROTOCOL.tcp, 53], [PROTOCOL.tcp, 853], [PROTOCOL.udp, 443], [PROTOCOL.udp, 5353], [PROTOCOL.icmp, 0], [47, 0]] as const;
const pinnings: readonly (readonly { name: string; seconds: number }[])[] = [
  [], [{ name: "site.example", seconds: 300 }], [{ name: "site.example", seconds: -5 }], [{ name: "other.example", seconds: 300 }],
];

describe.each(floors)("explain under the floor %s", (floor) => {
  let lab: Lab;
  let sandbox: LabSandbox;
  beforeAll(() => {
    lab = Lab.open(2);
    lab.groups = groups;
    sandbox = lab.sandbox({ inspect: true, ...(floor === null ? {} : { floor }) });
  });
  afterAll(() => lab?.close());

  test.each(policies)("says what the kernel program says: %s", (text) => {
    const policy = policyOf(text, groups);
    const seen = new Set<string>();
    for (const pinning of pinnings) {
      sandbox.setPolicy(policy);
      for (const destination of pinning.length === 0 ? destinations : PINNED) {
        const where = address(destination);
        sandbox.unpin(destination);
        for (const { name, seconds } of pinning) sandbox.pin({ address: destination, names: [name], seconds });
        const facts: PinFact[] = pinning.map(({ name, seconds }) => ({ labels: name.split("."), address: where, left: seconds }));
        for (const direction of ["egress", "ingress"] as const) {
          shapes.forEach(([shape, port], i) => {
            const v4 = isV4(where);
            const protocol = shape === PROTOCOL.icmp && !v4 ? Proto.icmpv6 : shape;
            sandbox.clearFlows();
            const raw = ip(destination), guest = ip(v4 ? GUEST.v4 : GUEST.v6);
            const ends: Endpoints = direction === "egress" ? { ...sandbox.to(destination), destinationMac: HOST.tapMac, source: guest, destination: raw } : { sourceMac: HOST.tapMac, destinationMac: GUEST.mac, source: raw, destination: guest };
            const ports = { sourcePort: 20_000 + i, destinationPort: port };
            const frame = protocol === PROTOCOL.tcp ? tcpFrame(ends, ports) : protocol === PROTOCOL.udp ? udpFrame(ends, ports)
              : protocol === 47 ? ipFrame(ends, 47, new Uint8Array(24)) : ipFrame(ends, protocol, echo(ends.source, ends.destination, { id: i }));
            const outcome = direction === "egress" ? sandbox.out(frame) : sandbox.in(frame);
            const explained = explainFlow({ sandbox: "tap0", policy, floor: floor === null ? null : policyOf(floor, groups), groups, pins: facts, others: [], configured: {}, hostAddresses: [], localSuffixes: [] }, { direction, address: where, name: null, protocol, port }, where);
            expect({ verdict: explained.verdict, reason: explained.reason }, `${direction} ${destination} ${protocol} ${port}, pinned ${JSON.stringify(pinning)}`).toEqual({ verdict: outcome.verdict, reason: outcome.reason });
            seen.add(explained.reason);
          });
        }
      }
    }
    // Of this test: it does not always say the same.
    expect(seen.size).toBeGreaterThan(3);
  });
});

/* ---- at random ---- */

const seeded = new Seeded("EXPLAIN_SEED", 20_261_127), SEED = seeded.seed, POLICIES = 60, QUESTIONS = 60;
const random = (bound: number): number => seeded.below(bound);
const pick = <T>(list: readonly T[]): T => seeded.pick(list);

const wide = groupTable({
  hostAddresses: [HOST.gateway4, HOST.gateway6, HOST.uplink4, HOST.uplink6, "93.184.216.1", "8.8.8.8"].map(address),
  connectedPrefixes: ["10.0.0.0/24", "203.0.114.0/24", "2a00:1::/64", "fd00::/64"].map(prefix), broadcasts: ["10.0.0.255", "203.0.114.255"].map(address),
  nat64Prefixes: ["2a01:96::/96", "2a01:48:1::/48"],
});
const EXAMPLES = {
  names: ["site.example", "other.example", "a.site.example", "dns.google", "printer", "metadata.google.internal", "blocked.example", "localhost", "x.local"],
  rules: [
    ["site.example", "'*.site.example'", "suffix:example", "other.example", "printer.", "metadata.google.internal", "blocked.example", "localhost", "suffix:site.example", "'*.local'"],
    ["93.184.216.0/24", SITE.v4, SITE.v6, "10.0.0.0/8", "10.1.2.3", "10.0.0.1", "169.254.169.254", "169.254.0.0/16", "0.0.0.0/0", "'::/0'", "'2606:4700::/32'", "'64:ff9b::/96'", "'2002::/16'", "'fd00::/8'", "224.0.0.0/4", "'2001::/32'", "'::/96'"],
    ["public", "any", "doh", "private", "host", "metadata", "loopback", "link-local", "multicast", "reserved"],
  ],
  protocols: ["tcp", "udp", "icmp", "icmpv6", "[tcp, udp]", "[tcp, icmp, 47]", "47", "0", "43", "44", "50", "60", "[1, 58]", "59", "255"],
  ports: ["[80]", "[443]", "[80, 443]", "[1-1023]", "[8443]", "[1-65535]", "[53]", "[853]", "[440-450, 8000-9000]", "[67]"],
  // IPv4 addresses of many groups, alone and within the IPv6 forms that carry them.
  destinations: [
    SITE.v4, SITE.v6, SITE.other4, SITE.other6, "10.0.0.1", "10.1.2.3", "10.0.0.255", "169.254.169.254", "169.254.1.1", "127.0.0.1", "224.0.0.251", "240.0.0.9", "255.255.255.255", "0.0.0.1", "100.64.0.9", "8.8.8.8", "8.8.4.4", "203.0.114.9",
    "fd00::9", "fd00:ec2::254", "fe80::9", "ff02::fb", "ff02::1:2", "::1", "::", "2001:4860:4860::8888", "2a00:1::5", "5f00::1", "::5db8:d822", "::a9fe:a9fe", "::ffff:0:5db8:d822", "::ffff:0:a9fe:a9fe", "64:ff9b::5db8:d822", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe", "2002:5db8:d822::1", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::9", "2001:0:5db8:d822:0:0:5601:5601", "2a00:7::5efe:a9fe:a9fe", "2a00:7::200:5efe:5db8:d822", "2a01:96::5db8:d822", "2a01:96::a00:1", "2a01:48:1:a9fe:a9:fe00::",
  ],
} as const;

function anyPolicy(): string {
  const rules = Array.from({ length: random(8) }, () => {
    const shape = pick(["", "", `, ports: ${pick(EXAMPLES.ports)}`, `, proto: tcp, ports: ${pick(EXAMPLES.ports)}`, `, proto: udp, ports: ${pick(EXAMPLES.ports)}`, `, proto: ${pick(EXAMPLES.protocols)}`]);
    return `  - {${pick(["allow", "allow", "deny"])}: ${pick(pick([...EXAMPLES.rules, EXAMPLES.rules[0]]))}${random(5) === 0 ? ", direction: ingress" : ""}${shape}}`;
  });
  const tls = pick(["", "", "tls: {intercept: true}\n", "tls: {intercept: true, ports: [8443], dot: refuse}\n", "tls: {verify_names: false}\n", "tls: {ports: [8443]}\n"]);
  const dns = pick(["", "dns: {block: [blocked.example, '*.site.example']}\n"]);
  return `default_egress: ${pick(["allow", "deny", "deny"])}\ndefault_ingress: ${pick(["allow", "deny"])}\n${tls}${dns}rules:${rules.length === 0 ? " []" : `\n${rules.join("\n")}`}\n`;
}

test.each([false, true])("explain says what the kernel program says, at random; under a floor: %s", (floored) => {
  const lab = Lab.open(2);
  try {
    lab.groups = wide;
    const seen = new Set<string>();
    for (let i = 0; i < POLICIES; i++) {
      const text = anyPolicy(), floorText = floored ? anyPolicy() : null;
      const policy = policyOf(text, wide), floor = floorText === null ? null : policyOf(floorText, wide);
      const sandbox = lab.sandbox({ inspect: true, ...(floor === null ? {} : { floor }) });
      sandbox.setPolicy(policy);
      const pins = new Map<string, PinFact>();
      for (let k = 0; k < 8; k++) {
        const where = pick(EXAMPLES.destinations), name = pick(EXAMPLES.names), left = pick([300, 300, 300, -5]);
        sandbox.unpin(where);
        sandbox.pin({ address: where, names: [name], seconds: left });
        pins.set(where, { labels: name.split("."), address: address(where), left });
      }
      for (let q = 0; q < QUESTIONS; q++) {
        const destination = random(3) === 0 ? pick([...pins.keys()]) : pick(EXAMPLES.destinations), direction = pick(["egress", "egress", "ingress"] as const);
        const where: Address = address(destination), v4 = isV4(where), echoes = v4 ? Proto.icmp : Proto.icmpv6;
        const protocol = pick([PROTOCOL.tcp, PROTOCOL.tcp, PROTOCOL.udp, PROTOCOL.udp, echoes, pick([v4 ? Proto.icmpv6 : Proto.icmp, 0, 2, 41, 43, 44, 47, 50, 51, 59, 60, 132, 135, 255])]);
        const port = pick([443, 80, 8443, 22, 53, 853, 5353, 137, 67, 68, 546, 547, 65535, 445]);
        sandbox.clearFlows();
        const ends = direction === "egress" ? sandbox.to(destination) : sandbox.from(destination), ports = { sourcePort: 20_000 + q, destinationPort: port }, payload = new Uint8Array(64);
        const ported = protocol === PROTOCOL.tcp || protocol === PROTOCOL.udp, cut = ported && random(4) === 0;
        const frames = cut ? fragments(ends, protocol, protocol === PROTOCOL.tcp ? tcp(ends.source, ends.destination, { ...ports, payload }) : udp(ends.source, ends.destination, { ...ports, payload }), [40], 1000 + q)
          : [ported ? (protocol === PROTOCOL.tcp ? tcpFrame : udpFrame)(ends, ports) : ipFrame(ends, protocol, protocol === echoes ? echo(ends.source, ends.destination, { id: q }) : new Uint8Array(24))];
        const [first, second] = frames.map((frame) => (direction === "egress" ? sandbox.out(frame) : sandbox.in(frame)));
        const explained = explainFlow({ sandbox: "tap0", policy, floor, groups: wide, pins: [...pins.values()], others: [], configured: {}, hostAddresses: [], localSuffixes: [] }, { direction, address: where, name: null, protocol, port }, where);
        seen.add(explained.reason);
        // The agent is sent no pieces: what goes to it is refused where it comes in fragments.
        const { verdict, reason } = cut && explained.verdict === "redirect" ? { verdict: "deny", reason: "fragment" } : explained;
        const about = `seed ${SEED}: ${direction} ${destination} protocol ${protocol} port ${port}${cut ? ", in fragments" : ""}\n${text}floor: ${floorText}\npins: ${[...pins.values()].map((pin) => `${pin.labels.join(".")}@${formatAddress(pin.address)} ${pin.left}`).join(", ")}`;
        expect({ verdict: first!.verdict, reason: first!.reason }, about).toEqual({ verdict, reason });
        if (second !== undefined) expect(second, about).toMatchObject(verdict === "allow" ? { verdict: "allow", reason: "fragment-follows" } : { verdict: "deny", reason: "fragment" });
      }
      sandbox.close();
    }
    // Of this test: it gets to what can be said.
    for (const reason of ["rule-allow", "rule-deny", "default-allow", "ingress-default", "protocol", "extension-header", "dns-redirect", "intercepted", "quic", "no-pin", "name-service", "default-metadata", ...(floored ? ["floor"] : ["pin-expired"])]) expect([...seen], `seed ${SEED}`).toContain(reason);
  } finally {
    lab.close();
  }
});
