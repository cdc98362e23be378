/**
 * The other side of the attack rows: what must keep working for a guest on a real tap, routed and bridged, and that
 * nothing is left when the enforcer ends.
 */
import { readdirSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Enforcer, MAC, until, World } from "../lib/world.mjs";
import { controlsOnly } from "./stage.js"; // and its bounds for tests and hooks

const ZONE = {
  "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6], HTTPS: [] },
  "ads.example": { A: [ADDRESS.site4b] },
  "long.example": { TXT: Array.from({ length: 12 }, (_, index) => `${index}`.padEnd(200, "x")) },
};

const POLICY = `
rules:
  - allow: public
  - allow: any
    direction: ingress
    proto: tcp
    ports: [8080]
dns:
  block: [ads.example]
`;

/** Transfers in the guest, by a client that is not ours. */
async function transfer(world: World, address: string, upload: number, download: number): Promise<{ up: number; down: number }> {
  const host = address.includes(":") ? `[${address}]` : address;
  const script = `
    const put = await (await fetch("http://${host}/", { method: "PUT", body: Buffer.alloc(${upload}) })).text();
    const got = await (await fetch("http://${host}/octets/${download}")).arrayBuffer();
    console.log(JSON.stringify({ up: Number(put), down: got.byteLength }));`;
  return JSON.parse(await world.guest.must([process.execPath, "--input-type=module", "-e", script], { timeoutMs: 60_000 })) as { up: number; down: number };
}

describe.each([["routed", false], ["bridged", true]] as const)("%s tap", (_name, bridged) => {
  let world: World;
  let enforcer: Enforcer | null = null;

  beforeAll(async () => {
    world = await World.create({ bridged, sibling: true, zone: ZONE });
    if (!controlsOnly) enforcer = await world.enforce({ policy: POLICY }); // identity is learned: nothing is given
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });

  test("names resolve and sites are reached, IPv4 and IPv6", async () => {
    for (const [type, address] of [["A", ADDRESS.site4], ["AAAA", ADDRESS.site6]] as const) {
      for (const resolver of ["8.8.8.8", "2001:4860:4860::8888"])
        expect((await world.guest.probe(["fetch", resolver, "site.example", "80", "/", type], 3000)).saw).toBe(`HTTP 200: internet ${address}`);
    }
  });

  test("ping, UDP and TCP to public addresses", async () => {
    for (const address of [ADDRESS.site4, ADDRESS.site6]) {
      expect((await world.guest.probe(["ping", address], 3000)).saw).toBe("echo reply");
      expect((await world.guest.probe(["udp", address, "9999", "hello"], 3000)).saw).toBe(`internet ${address}`);
      expect((await world.guest.probe(["tcp", address, "22"], 3000)).saw).toBe("connected");
    }
  });

  test("large transfers with segmentation offload, both ways", async () => {
    for (const address of [ADDRESS.site4, ADDRESS.site6]) expect(await transfer(world, address, 8_000_000, 8_000_000)).toEqual({ up: 8_000_000, down: 8_000_000 });
  });

  test("path MTU discovery: errors for the guest's own flows reach it", async () => {
    // The far end of the link knows its MTU as well: what it sent beyond that, the host's device would drop unseen. It still
    // tells the guest that it takes whole segments, so the guest finds out by the host's errors only.
    const back = (mtu: number): Promise<string> => world.internet.ip(`route replace default via ${ADDRESS.host4} mtu ${mtu} advmss 1460\nroute replace default via ${ADDRESS.host6} mtu ${mtu} advmss 1440`);
    await world.host.ip("link set up0 mtu 1300");
    await back(1300);
    try {
      for (const address of [ADDRESS.site4b, ADDRESS.site6b]) expect(await transfer(world, address, 300_000, 300_000)).toEqual({ up: 300_000, down: 300_000 });
      for (const address of [ADDRESS.site4b, ADDRESS.site6b]) {
        const routes = await world.guest.must(["ip", "route", "get", address]);
        expect(routes).toContain("mtu 1300");
      }
    } finally {
      await world.host.ip("link set up0 mtu 1500");
      await back(1500);
    }
  });

  test("an answer that is too large for UDP is truncated and comes over TCP", async () => {
    const udp = await world.guest.probe(["dns", "udp", "8.8.8.8", "long.example", "TXT"], 3000);
    expect({ truncated: udp.truncated, records: udp.records }).toEqual({ truncated: true, records: 0 });
    expect((await world.guest.probe(["dns", "tcp", "8.8.8.8", "long.example", "TXT"], 3000)).records).toBe(12);
  });

  test("neighbour entries come and go, and the guest stays reachable", async () => {
    const device = bridged ? "br0" : "tap0";
    for (const [site, own] of [[ADDRESS.site4, ADDRESS.guest4], [ADDRESS.site6, ADDRESS.guest6]]) {
      await world.guest.must(["ip", "neigh", "flush", "dev", "eth0"]);
      await world.host.must(["ip", "neigh", "flush", "dev", device]);
      expect((await world.guest.probe(["ping", site!], 3000)).saw).toBe("echo reply");
      expect(await world.host.must(["ip", "neigh", "show", "dev", device])).toContain(`${own} lladdr ${MAC.guest}`);
    }
  });

  test("inbound: only the port that a rule names", async () => {
    const server = world.own(world.guest.start([process.execPath, "-e",
      "for (const port of [8080, 8081]) require('http').createServer((q, r) => r.setHeader('connection', 'close').end('guest')).listen(port, '::', () => console.log('up', port))"]));
    await until("servers in the guest", () => server.lines.length === 2);
    for (const address of [ADDRESS.guest4, ADDRESS.guest6]) {
      for (const from of [world.lan, world.internet]) {
        expect((await from.probe(["http", address, "8080", "guest", "/"], 3000)).saw).toBe("HTTP 200: guest");
        if (enforcer !== null) expect((await from.probe(["http", address, "8081", "guest", "/"], 400)).ok).toBe(false);
      }
    }
    await server.stop();
  });

  test("a guest without an address gets one by DHCP", async () => {
    const device = bridged ? "br0" : "tap0";
    const server = world.own(world.host.start(["dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--no-ping", "--log-dhcp", `--interface=${device}`, "--bind-dynamic",
      `--dhcp-range=${ADDRESS.guest4},${ADDRESS.guest4},255.255.255.252`, `--dhcp-leasefile=${world.dir}/leases`, `--pid-file=${world.dir}/dnsmasq.pid`, "--log-facility=-", "--user=root"]));
    await world.guest.must(["ip", "-4", "addr", "flush", "dev", "eth0"]);
    const script = `${world.dir}/udhcpc.sh`;
    writeFileSync(script, `#!/bin/sh\n[ "$1" = bound ] || exit 0\nip addr add $ip/${bridged ? 24 : 30} dev eth0\nip route replace default via $router\n`, { mode: 0o755 });
    const client = await world.guest.run(["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", script], { timeoutMs: 20_000 });
    expect(client.status, client.stderr + server.report()).toBe(0);
    expect(await world.guest.must(["ip", "-4", "addr", "show", "dev", "eth0"])).toContain(ADDRESS.guest4);
    expect((await world.guest.probe(["ping", ADDRESS.site4], 3000)).saw).toBe("echo reply");
    await server.stop();
  });

  test("what the policy denies stays denied", async () => {
    if (enforcer === null) return;
    for (const address of [ADDRESS.metadata4, ADDRESS.metadata6, ADDRESS.lan4, ADDRESS.lan6, ADDRESS.host4, ADDRESS.host6, ADDRESS.gateway4, ADDRESS.gateway6, ADDRESS.sibling4, world.sibling6])
      expect((await world.guest.probe(["http", address, "80", "x", "/"], 300)).ok, address).toBe(false);
    const blocked = await world.guest.probe(["dns", "udp", "8.8.8.8", "ads.example", "A"], 3000);
    expect([blocked.rcode, blocked.ede]).toEqual(["NXDOMAIN", 15]);
    await enforcer.denied({ destination: ADDRESS.metadata4, port: 80, protocol: "tcp", direction: "egress", reason: "default-metadata", sandbox: "tap0" });
  });

  test("nothing is left at the end, and the guest is free again", async () => {
    if (enforcer === null) return;
    const before = new Set(["up0", "lan0", "docker0", "br0", "tap0", "tap1", "lo"]);
    expect(await enforcer.stop()).toBe(0);
    const links = JSON.parse(await world.host.must(["ip", "-j", "link"])) as { ifname: string }[];
    expect(links.map((link) => link.ifname).filter((name) => !before.has(name))).toEqual([]);
    expect((await world.host.must(["tc", "qdisc", "show", "dev", "tap0"])).includes("clsact")).toBe(false);
    expect(readdirSync(world.bpffs).filter((name) => !name.endsWith(".debug"))).toEqual([]); // the kernel's own two iterators are in every bpffs
    expect(readdirSync(world.runDir)).toEqual([]);
    expect((await world.guest.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 3000)).ok).toBe(true);
    expect((await world.guest.probe(["http", ADDRESS.metadata6, "80", "x", "/"], 3000)).ok).toBe(true);
  });
});
