/**
 * A host with hundreds of devices whose network never rests: what it gains (addresses, routes into a tunnel) is closed to guests all the
 * same, and a tap that is made again is seen. Reading takes some tens of milliseconds there, so that a thread of its own does it
 * (READ_APART in src/net/host-watch.ts).
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Service, type World } from "../lib/world.mjs";
import { agentWithTaps, type TestAgent } from "./daemon.js";

const TAPS = Array.from({ length: 300 }, (_, i) => `many${i}`);
/** Public addresses that are nobody's at first. */
const GAINED = ["93.184.216.77", "93.184.216.78", "93.184.216.79"];

describe("A10 A11 a host with hundreds of devices", () => {
  let world: World;
  let agent: TestAgent;
  let churn: Service;
  beforeAll(async () => {
    ({ world, agent } = await agentWithTaps(TAPS));
    await agent.client.attach({ tap: "tap0", policy: { rules: ["allow@public"] } });
    // Links, addresses and routes that come and go faster than a table is read.
    churn = world.host.start(["sh", "-c", `set -e; ip link add churn0 type veth peer name churn1; ip link set churn0 up; ip link set churn1 up; ip addr add 10.200.251.1/24 dev churn0; ip route add 10.201.251.0/24 dev churn0; set +e; echo ready
      i=0; while :; do i=$((i+1)); printf 'addr add 10.200.%d.1/24 dev churn0\\nroute add 10.201.%d.0/24 dev churn0\\naddr del 10.200.%d.1/24 dev churn0\\nlink set churn0 mtu %d\\n' $((i%250)) $((i%250)) $((i%250)) $((1300+i%100)) | ip -force -batch - 2>/dev/null; done`]);
    await churn.line((line) => line === "ready");
  });
  // What fails of a batch, a route that is there already, is not told; so it is looked whether anything changes at all.
  const mtu = async (): Promise<string> => /mtu (\d+)/.exec(await world.host.must(["ip", "link", "show", "churn0"]))![1]!;
  afterEach(async () => {
    const before = await mtu();
    await expect.poll(mtu, { timeout: 60_000 }).not.toBe(before);
  });
  afterAll(async () => {
    await churn?.stop("SIGKILL");
    await agent?.stop();
    await world?.close();
  });

  const verdict = async (address: string): Promise<string> => { const { verdict: said, reason } = await agent.client.explain("tap0", { destination: address, protocol: "tcp", port: 8080 }) as never as { verdict: string; reason: string }; return `${said} ${reason}`; };
  const reach = async (address: string): Promise<boolean> => (await world.guest.probe(["http", address, "8080", "site.example", "/"], 1000)).ok;

  test("addresses that it gains under churn are the host's, for the guest's packets, and are free again when it loses them", async () => {
    const server = world.host.start([process.execPath, "-e", 'require("node:http").createServer((_, response) => response.end("the host")).listen(8080, "0.0.0.0", () => console.log("ready"))']);
    await server.line((line) => line === "ready");
    expect(await reach(ADDRESS.site4)).toBe(true);
    for (const address of GAINED) {
      await world.host.ip(`addr add ${address}/32 dev many7`);
      await expect.poll(() => verdict(address), { timeout: 60_000 }).toMatch(/^deny .*host/);
      expect(await reach(address)).toBe(false);
    }
    await world.host.ip(GAINED.map((address) => `addr del ${address}/32 dev many7`).join("\n"));
    await expect.poll(() => verdict(GAINED[0]!), { timeout: 60_000 }).toMatch(/^allow/);
    await server.stop("SIGKILL");
  });

  test("a route into a tunnel that it gains under churn is private", async () => {
    await world.host.ip("link add tunnel0 type veth peer name tunnel1\nlink set tunnel0 up\nlink set tunnel1 up\nroute add 9.9.9.0/24 dev tunnel0");
    await expect.poll(() => verdict("9.9.9.9"), { timeout: 60_000 }).toMatch(/^deny .*private/);
    await world.host.ip("link del tunnel0");
    await expect.poll(() => verdict("9.9.9.9"), { timeout: 60_000 }).toMatch(/^allow/);
  });

  test("a tap that is deleted and made again under churn is attached again, each time", async () => {
    await agent.client.attach({ tap: "many9", wait: true });
    for (let round = 0; round < 5; round++) {
      const before = (await agent.client.sandbox("many9") as never as { ifindex: number }).ifindex;
      await world.host.ip("link del many9\ntuntap add many9 mode tap\nlink set many9 up\naddr add 10.77.9.1/30 dev many9");
      await expect.poll(async () => { const { state, ifindex } = await agent.client.sandbox("many9") as never as { state: string; ifindex: number | null }; return state === "enforced" && ifindex !== null && ifindex !== before; }, { timeout: 60_000 }).toBe(true);
    }
  });
});
