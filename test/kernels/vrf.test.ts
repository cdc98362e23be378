/**
 * Taps and uplinks in VRFs. Not every kernel has them: node test/kernels/run.mjs 6.1 --part test/kernels/vrf.test.ts
 */
import { expect, test, vi } from "vitest";
import { PATIENCE } from "../lib/processes.mjs";
import { ADDRESS, ENFORCER, MAC, World } from "../lib/world.mjs";

vi.setConfig({ testTimeout: 240_000 * PATIENCE });

const ZONE = { "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] } };
const POLICY = `rules:\n  - {allow: site.example, proto: tcp, ports: [80]}\n  - {allow: ${ADDRESS.site4b}}\n  - {allow: "${ADDRESS.site6b}"}\n`;
const ARGS = ["--guest-ip", ADDRESS.guest4, "--guest-ip", ADDRESS.guest6, "--guest-mac", MAC.guest];
const GUEST4 = "172.30.0.0/30", GUEST6 = "fd00:30:0:1::/64";
/** Of the host in either VRF, its metadata service, and a neighbour: none of them is for a guest. */
const CLOSED = [ADDRESS.gateway4, ADDRESS.gateway6, ADDRESS.host4, ADDRESS.host6, ADDRESS.hostLan4, ADDRESS.metadata4, ADDRESS.neighbour4];

/** Devices into a VRF; what the kernel takes away with that, IPv6 addresses and neighbours, is given again. */
const vrf = (...devices: ("tap0" | "up0")[]): string => `
  link add red type vrf table 100
  link set red up
  route add table 100 unreachable default metric 4278198272
  route add table 100 unreachable ::/0 metric 4278198272
  ${devices.map((device) => `link set ${device} master red`).join("\n")}
  addr replace ${ADDRESS.gateway6}/64 dev tap0 nodad
  addr replace ${ADDRESS.host6}/64 dev up0 nodad
  neigh replace ${ADDRESS.router4} lladdr ${MAC.router} dev up0 nud permanent
  neigh replace ${ADDRESS.router6} lladdr ${MAC.router} dev up0 nud permanent`;
const out = (table = ""): string => `route replace default via ${ADDRESS.router4} dev up0 ${table}\nroute replace ::/0 via ${ADDRESS.router6} dev up0 ${table}`;
const back = (table = ""): string => `route replace ${GUEST4} dev tap0 ${table}\nroute replace ${GUEST6} dev tap0 ${table}`;
/** Sockets of the default VRF take what comes in by another. */
const accept = (world: World): Promise<unknown> => world.host.sysctl({ "ipv4/tcp_l3mdev_accept": 1, "ipv4/udp_l3mdev_accept": 1 });

async function inWorld(prepare: string, work: (world: World) => Promise<void>): Promise<void> {
  const world = await World.create({ zone: ZONE });
  try {
    await world.host.ip(prepare);
    await work(world);
  } finally {
    await world.close();
  }
}

/** What the guest reaches of `addresses`. */
async function reached(world: World, addresses: readonly string[], ms: number): Promise<string[]> {
  const all = await Promise.all(addresses.map(async (address) => ((await world.guest.probe(["http", address, "80", "x", "/"], ms)).ok ? [address] : [])));
  return all.flat();
}

/** Names as the guest sees them: what it fetched, or why not. */
async function names(world: World): Promise<string[]> {
  return Promise.all(["A", "AAAA"].map(async (type) => (await world.guest.probe(["fetch", "8.8.8.8", "site.example", "80", "/", type], 3000)).saw));
}

const FETCHED = [`HTTP 200: internet ${ADDRESS.site4}`, `HTTP 200: internet ${ADDRESS.site6}`];

test.each([
  ["a tap in a VRF, with routes between it and the default one", `${vrf("tap0")}\n${out("table 100")}\n${back()}`, true, FETCHED, true],
  ["an uplink in a VRF, with routes between it and the default one", `${vrf("up0")}\n${out("table 100")}\n${out()}\n${back("table 100")}`, true, FETCHED, false],
  ["tap and uplink in a VRF, and the default one has a way out by it", `${vrf("tap0", "up0")}\n${out("table 100")}\n${out()}`, true, FETCHED, true],
  ["tap and uplink in a VRF, and the default one has no way out: what is allowed by address passes", `${vrf("tap0", "up0")}\n${out("table 100")}`, false, [expect.stringContaining("SERVFAIL"), expect.stringContaining("SERVFAIL")], true],
])("%s", async (_name, prepare, accepts, seen, noted) => {
  await inWorld(prepare, async (world) => {
    if (accepts) await accept(world);
    // Services of the host hear a VRF only where sockets take what comes in by it.
    const free = [ADDRESS.site4b, ADDRESS.site6b, ADDRESS.metadata4, ...(accepts ? [ADDRESS.gateway4] : [])];
    expect(await reached(world, free, 3000), "control").toEqual(free);
    const enforcer = await world.enforce({ policy: POLICY, args: ARGS, json: false });
    expect(await names(world)).toEqual(seen);
    expect(await reached(world, [ADDRESS.site4b, ADDRESS.site6b], 3000)).toEqual([ADDRESS.site4b, ADDRESS.site6b]);
    expect(await reached(world, CLOSED, 500)).toEqual([]);
    expect(await enforcer.stop()).toBe(0);
    expect(enforcer.service.report().includes("is in VRF red")).toBe(noted);
    expect(await reached(world, free, 3000)).toEqual(free);
  });
});

test("an enforcer that ip vrf exec starts says why it does not, and leaves nothing", async () => {
  await inWorld(`${vrf("tap0", "up0")}\n${out("table 100")}`, async (world) => {
    const { status, stderr } = await world.host.run(["ip", "vrf", "exec", "red", ENFORCER, "attach", "tap0", "--run-dir", world.runDir, "--bpffs", world.bpffs, "--upstream", ADDRESS.resolver4, "--metrics", "off"]);
    expect([status, stderr]).toEqual([71, expect.stringContaining("started in VRF red")]);
    expect(await reached(world, [ADDRESS.metadata4], 3000)).toEqual([ADDRESS.metadata4]);
  });
});
