/**
 * Taps that come and go: what is deleted and made again carries nothing before it is judged, and is attached again.
 *
 * Each look is a frame with a mark of its own, and the same frames are seen to get out where nothing lies beneath the tap.
 */
import { afterEach, describe, expect, test, vi } from "vitest";
import { arpFrame, type Bytes, decode, ETHERTYPE, isV6, tcpFrame } from "../lib/frames.js";
import { PATIENCE } from "../lib/processes.mjs";
import { ADDRESS, type Enforcer, MAC, must, until, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import { contains, type Mark, nextMark, SINK } from "./stage.js";

vi.setConfig({ testTimeout: 300_000 * PATIENCE, hookTimeout: 300_000 * PATIENCE });

const FORBIDDEN = [ADDRESS.metadata4, ADDRESS.metadata6, ADDRESS.lan4, ADDRESS.lan6];

describe.each([["routed", false], ["bridged", true]])("a %s tap", (_, bridged) => {
  let world: World;
  let enforcer: Enforcer;
  let agent: TestAgent | null = null;
  afterEach(async () => {
    await agent?.stop();
    agent = null;
    await enforcer?.stop();
    await world?.close();
  });

  const syn = (destination: string, mark: Mark): Bytes => tcpFrame({
    sourceMac: MAC.guest, destinationMac: bridged ? MAC.bridge : MAC.tap0, source: isV6(destination) ? ADDRESS.guest6 : ADDRESS.guest4, destination,
  }, { sourcePort: mark.port, destinationPort: 443, payload: mark.bytes });
  const whoHas = (): Bytes => arpFrame({ senderMac: MAC.guest, senderIp: ADDRESS.guest4, targetIp: ADDRESS.gateway4, operation: 1 }, { source: MAC.guest });

  /** Sends a frame to each destination and an ARP request. @returns destinations that were seen outside, and "arp" for an answer. */
  async function escapes(destinations: readonly string[]): Promise<string[]> {
    const sent = destinations.map((destination) => ({ destination, mark: nextMark() }));
    world.frames.received.length = 0;
    const seen = await world.watch(async () => { await world.frames.send(whoHas(), ...sent.map(({ destination, mark }) => syn(destination, mark))); });
    const out = sent.filter(({ mark }) => [...seen.uplink, ...seen.lan].some((frame) => contains(frame, mark.bytes))).map(({ destination }) => destination);
    const answered = world.frames.received.some((frame) => decode(frame).type === ETHERTYPE.arp && frame[21] === 2);
    return answered ? [...out, "arp"] : out;
  }
  const args = ["--guest-ip", ADDRESS.guest4, "--guest-ip", ADDRESS.guest6, "--guest-mac", MAC.guest];
  const tables = async (): Promise<string> => world.host.must(["nft", "list", "tables"]);
  const again = async (): Promise<void> => {
    await world.removeTap();
    await world.makeTap();
  };
  const enforcing = (count: number): Promise<unknown> => until("enforcing again", () => enforcer.events.filter(({ event }) => event === "enforcing").length >= count, 30_000);

  test("A06 made again while nobody serves it: nothing comes in, until it is attached again", async () => {
    world = await World.create({ guest: "vnet", quiet: true, bridged });
    enforcer = await world.enforce({ args });
    expect(await escapes([SINK.v4, SINK.v6])).toEqual([SINK.v4, SINK.v6, "arp"]);
    await enforcer.service.stop("SIGKILL");
    expect(await escapes([SINK.v4, ...FORBIDDEN])).toEqual([SINK.v4, "arp"]);
    await again();
    expect(await escapes([SINK.v4, SINK.v6, ...FORBIDDEN])).toEqual([]);

    enforcer = await world.enforce({ args });
    expect(await escapes([SINK.v4, SINK.v6, ...FORBIDDEN])).toEqual([SINK.v4, SINK.v6, "arp"]);
    expect(await enforcer.stop()).toBe(0);
    expect(await tables()).toBe("");
    // The control: with nothing beneath it, a tap that is made again is free.
    await again();
    expect(await escapes([...FORBIDDEN])).toEqual([...FORBIDDEN, "arp"]);
  });

  test("A06 made again under a living enforcer, sending all the while: nothing forbidden comes in, and it is attached again", async () => {
    world = await World.create({ guest: "vnet", quiet: true, bridged });
    enforcer = await world.enforce({ args });
    const marks: Mark[] = [];
    const seen = await world.watch(async () => {
      for (let round = 2; round < 5; round++) {
        await world.removeTap();
        // The host gives it its addresses while the guest sends already.
        const made = world.makeTap();
        await until("the tap", () => world.frames.isReady);
        let done = false;
        void made.then(() => (done = true));
        while (!done || enforcer.events.filter(({ event }) => event === "enforcing").length < round) {
          const mark = nextMark();
          marks.push(mark);
          await world.frames.send(...FORBIDDEN.map((destination) => syn(destination, mark)));
          await new Promise((resolve) => setTimeout(resolve, 2));
        }
        await made;
      }
    });
    expect(marks.length).toBeGreaterThan(3);
    expect([...seen.uplink, ...seen.lan].filter((frame) => marks.some((mark) => contains(frame, mark.bytes)))).toEqual([]);
    expect(enforcer.events.filter(({ event }) => event === "waiting").length).toBeGreaterThan(0);
    await until("allowed frames get out again", async () => (await escapes([SINK.v4, SINK.v6])).length === 3, 10_000);
  });

  test("attach --wait: closed before it exists, attached when it appears", async () => {
    world = await World.create({ guest: "none", quiet: true, bridged });
    enforcer = world.startEnforcer({ args: [...args, "--wait"] });
    await until("waiting", () => enforcer.events.some(({ event }) => event === "waiting"), 30_000);
    expect(await tables()).toContain("enforcer_tap0");
    world.options.guest = "vnet";
    await world.makeTap();
    expect((await escapes(FORBIDDEN)).filter((one) => one !== "arp")).toEqual([]);
    await enforcing(1);
    await until("allowed frames get out", async () => (await escapes([SINK.v4, SINK.v6])).length === 3, 10_000);
    expect(await escapes(FORBIDDEN)).toEqual(["arp"]);
    expect(await enforcer.stop()).toBe(0);
    expect(await tables()).toBe("");
  });

  test("A06 a pattern of the configuration holds a tap that was never there before", async () => {
    world = await World.create({ guest: "none", quiet: true, bridged });
    world.options.guest = "vnet";
    // The control.
    await world.makeTap();
    expect(await escapes(FORBIDDEN)).toEqual([...FORBIDDEN, "arp"]);
    await world.removeTap();

    agent = await TestAgent.start(world, 'attach: [{match: "tap*"}]\n');
    const held = async (): Promise<void> => {
      await until("attached", async () => (await agent!.states()).tap0 === "enforced");
      await until("allowed frames get out", async () => (await escapes([SINK.v4])).length === 2);
      expect(await escapes([SINK.v4, ...FORBIDDEN])).toEqual([SINK.v4, "arp"]);
    };
    await agent.kill();
    await world.makeTap();
    expect(await escapes([SINK.v4, SINK.v6, ...FORBIDDEN])).toEqual([]);
    await agent.restart();
    await held();
    // Taken out by hand it is free; the next one of the name is not.
    await agent.client.detach("tap0");
    expect(await escapes(FORBIDDEN)).toEqual([...FORBIDDEN, "arp"]);
    await again();
    await held();
    // A device of another kind has nothing to do with it: its frames come to the host.
    await world.host.ip(`link add tapx type veth peer name eth9 netns ${world.lan.name}\nlink set tapx up\naddr add 10.99.0.1/24 dev tapx`);
    await world.lan.ip("link set eth9 up\naddr add 10.99.0.2/24 dev eth9");
    expect((await world.lan.probe(["ping", "10.99.0.1"], 3000)).ok).toBe(true);
    // Without the pattern nothing is held that is not attached.
    agent.configure("");
    await agent.client.reload();
    await agent.client.detach("tap0");
    await again();
    expect(await escapes(FORBIDDEN)).toEqual([...FORBIDDEN, "arp"]);
  });

  test("a tap with several queues: every queue is judged", async () => {
    world = await World.create({ guest: "vnet", quiet: true, bridged, queues: 3 });
    // Each frame goes to the next queue: three of each destination come to all of them, in an order that is not the queues'.
    const three = (destinations: readonly string[]): string[] => destinations.flatMap((destination) => [destination, destination, destination]);
    const wanted = [...FORBIDDEN, SINK.v4, SINK.v6, SINK.v4];
    expect(await escapes(three(wanted))).toEqual([...three(wanted), "arp"]);
    enforcer = await world.enforce({ args });
    expect(await escapes(three(wanted))).toEqual([...three([SINK.v4, SINK.v6, SINK.v4]), "arp"]);
    await enforcer.service.stop("SIGKILL");
    expect(await escapes(three(wanted))).toEqual([...three([SINK.v4, SINK.v6, SINK.v4]), "arp"]);
    enforcer = await world.enforce({ args });
    expect(await escapes(three(wanted))).toEqual([...three([SINK.v4, SINK.v6, SINK.v4]), "arp"]);
  });

  test("A06 moved to another network namespace: what was its is freed, and its name is closed until the next one is attached", async () => {
    world = await World.create({ guest: "vnet", quiet: true, bridged });
    enforcer = await world.enforce({ args });
    const place = `${world.id}-moved`;
    await must(["ip", "netns", "add", place]);
    const first = world.frames.service;
    try {
      await world.host.ip(`link set tap0 netns ${place}`);
      // "deleted" where the device was seen to be missing before the kernel said where it went.
      await until("it is said", () => enforcer.events.some(({ event, why }) => event === "waiting" && /moved|deleted/.test(String(why))));
      await until("its hooks are free", async () => !/from_guest|to_guest/.test(await must(["ip", "netns", "exec", place, "bpftool", "net", "show"])));
      world.frames.service = first;
      const made = world.makeTap();
      await until("the tap", () => world.frames.isReady && world.frames.service !== first);
      await made;
      await enforcing(2);
      await until("allowed frames get out", async () => (await escapes([SINK.v4, SINK.v6])).length === 3);
      expect(await escapes([SINK.v4, ...FORBIDDEN])).toEqual([SINK.v4, "arp"]);
    } finally {
      await first.stop("SIGKILL");
      await must(["ip", "netns", "del", place]);
    }
    // The end of the one that was moved takes nothing of the other's away.
    expect(await escapes([SINK.v4, ...FORBIDDEN])).toEqual([SINK.v4, "arp"]);
    expect(await enforcer.stop()).toBe(0);
    expect(await tables()).toBe("");
  });

  test("renamed: it is followed, and its new name is held", async () => {
    world = await World.create({ guest: "vnet", quiet: true, bridged });
    enforcer = await world.enforce({ args });
    await world.host.ip("link set tap0 down\nlink set tap0 name other0\nlink set other0 up");
    await until("the new name is held", async () => (await world.host.must(["nft", "list", "ruleset"])).includes("other0"), 10_000);
    expect(await escapes(FORBIDDEN)).toEqual(["arp"]);
    expect(await enforcer.stop()).toBe(0);
    expect(await tables()).toBe("");
  });
});
