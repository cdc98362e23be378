/**
 * The host's neighbour table, which has room for 1,024 of all guests together: a guest whose address is a prefix takes of it what its policy
 * gives it, by what it says itself and by answers that it has sent to it.
 */
import { expect, test, vi } from "vitest";
import { arpFrame, type Bytes, echoFrame, type Endpoints, ipFrame, ipText, neighbourSolicitation, PROTOCOL, solicitedNode, TCP, tcpFrame, udpFrame } from "../lib/frames.js";
import { PATIENCE } from "../lib/processes.mjs";
import { ADDRESS, MAC, World } from "../lib/world.mjs";
import { controlsOnly } from "./stage.js";

vi.setConfig({ testTimeout: 240_000 * PATIENCE });

const NET4 = "10.77.0.0/16", GATEWAY4 = "10.77.0.1", NET6 = "fd00:30:0:1::/64";
/** Addresses that the guest may have in use, and that it tries, for each kind of frame. */
const LIMIT = 16, TRIED = 40;
const from4 = (n: number): string => `10.77.${1 + (n >> 8)}.${n & 255}`;
const from6 = (n: number): string => `fd00:30:0:1::a${n.toString(16)}:1`;
const ends = (source: string, destination: string): Endpoints => ({ sourceMac: MAC.guest, destinationMac: MAC.tap0, source, destination });
const asked = ipText(solicitedNode(ADDRESS.gateway6));

/** What makes the host look for the sender, or believe it: the guest's word for it, and packets that are answered. */
const kinds: readonly ((n: number) => Bytes)[] = [
  (n) => arpFrame({ senderMac: MAC.guest, senderIp: from4(n), targetIp: GATEWAY4 }, { source: MAC.guest }),
  (n) => ipFrame(ends(from6(n), asked), PROTOCOL.icmpv6, neighbourSolicitation(from6(n), asked, ADDRESS.gateway6, MAC.guest), { ipv6: { hopLimit: 255 } }),
  (n) => echoFrame(ends(from4(n), ADDRESS.site4)),
  (n) => echoFrame(ends(from6(n), ADDRESS.site6)),
  (n) => udpFrame(ends(from4(n), ADDRESS.site4), { sourcePort: 4000, destinationPort: 4001 }),
  (n) => udpFrame(ends(from6(n), ADDRESS.site6), { sourcePort: 4000, destinationPort: 4001 }),
  (n) => tcpFrame(ends(from4(n), ADDRESS.site4), { sourcePort: 4000, destinationPort: 4001, flags: TCP.ack }),
  (n) => tcpFrame(ends(from6(n), ADDRESS.site6), { sourcePort: 4000, destinationPort: 4001, flags: TCP.ack }),
];

/** Sends each kind of frame from addresses of their own, numbered from a first one; which of those the host has then, or looks for, as neighbours. */
async function flood(world: World, first: number): Promise<string[]> {
  const numbers = Array.from({ length: TRIED * kinds.length }, (_, n) => first + n);
  await world.frames.send(...numbers.map((n) => kinds[n % kinds.length]!(n)));
  const own = new Set(numbers.flatMap((n) => [from4(n), from6(n)]));
  return (await world.host.must(["ip", "neigh", "show", "dev", "tap0"])).split("\n").map((line) => line.split(" ")[0]!).filter((text) => own.has(text));
}

test("A08 a guest with a prefix takes no more of the host's neighbour table than it may, and its sibling still finds its neighbours", async () => {
  const world = await World.create({ guest: "vnet", sibling: true, quiet: true });
  try {
    await world.host.ip(`addr add ${GATEWAY4}/16 dev tap0`);
    // The control: addresses have entries, but for answers that are still under way or are not given so fast.
    expect((await flood(world, 0)).length).toBeGreaterThan((kinds.length * TRIED) / 2);
    if (controlsOnly) return;
    const enforcer = await world.enforce({
      args: ["--guest-ip", ADDRESS.guest4, "--guest-ip", NET4, "--guest-ip", NET6, "--guest-mac", MAC.guest], policy: `rules:\n  - allow: public\nlimits:\n  guest_addresses: ${LIMIT}\n`,
    });
    // First a flow of each kind that the others would use: what they send is of a flow in force.
    const there = await flood(world, 1_000);
    expect(there.length).toBeGreaterThan(0);
    expect(there.length).toBeLessThanOrEqual(LIMIT);
    expect((await enforcer.denied({ reason: "address-table-full" })).direction).toBe("egress");
    await world.host.must(["sh", "-c", "ip neigh flush dev tap1 nud permanent; ip -6 neigh flush dev tap1 nud permanent"]);
    for (const site of [ADDRESS.site4, ADDRESS.site6]) expect((await world.sibling!.probe(["ping", site], 3000)).ok).toBe(true);
  } finally {
    await world.close();
  }
});
