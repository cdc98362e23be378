/**
 * Two sandboxes on one host, each held to a policy of its own by an enforcer of its own: neither reaches the other, and
 * neither has what the other was told. Also identities that are learned and then locked.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Enforcer, World } from "../lib/world.mjs";
import { controlsOnly, Stage } from "./stage.js";

const ZONE = { "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] }, "other.example": { A: [ADDRESS.site4b], AAAA: [ADDRESS.site6b] } };
const only = (name: string): string => `rules:\n  - allow: ${name}\n    proto: tcp\n    ports: [80]\n`;

describe.each([["routed", false], ["bridged", true]] as const)("two sandboxes, %s", (_name, bridged) => {
  let world: World;
  let enforcers: Enforcer[] = [];
  beforeAll(async () => {
    world = await World.create({ bridged, sibling: true, zone: ZONE });
    if (!controlsOnly) enforcers = [await world.enforce({ policy: only("site.example") }), await world.enforce({ tap: "tap1", policy: only("other.example") })];
  });
  afterAll(async () => {
    for (const enforcer of enforcers) await enforcer.stop();
    await world?.close();
  });

  test("each has the names of its own policy", async () => {
    const guests = [[world.guest, "site.example", "other.example"], [world.sibling!, "other.example", "site.example"]] as const;
    for (const [guest, own, foreign] of guests) {
      for (const type of ["A", "AAAA"]) {
        expect((await guest.probe(["fetch", "8.8.8.8", own, "80", "/", type], 3000)).saw).toContain("HTTP 200: internet");
        if (!controlsOnly) expect((await guest.probe(["fetch", "8.8.8.8", foreign, "80", "/", type], 3000)).rcode).toBe("NXDOMAIN");
      }
    }
  });

  test("a pin of one is none of the other's", async () => {
    if (controlsOnly) return;
    for (const [guest, foreign] of [[world.guest, [ADDRESS.site4b, ADDRESS.site6b]], [world.sibling!, [ADDRESS.site4, ADDRESS.site6]]] as const)
      for (const address of foreign) expect((await guest.probe(["http", address, "80", "x", "/"], 400)).ok, address).toBe(false);
  });

  test("A24 neither reaches the other", async () => {
    const ways = [[world.guest, [ADDRESS.sibling4, world.sibling6]], [world.sibling!, [ADDRESS.guest4, ADDRESS.guest6]]] as const;
    for (const [guest, addresses] of ways) {
      for (const address of addresses) {
        if (controlsOnly) expect((await guest.probe(["ping", address], 1000)).ok, `control: ${address}`).toBe(true);
        else for (const attempt of [["ping", address], ["http", address, "80", "x", "/"], ["udp", address, "9999", "x"]]) expect((await guest.probe(attempt, 300)).ok, attempt.join(" ")).toBe(false);
      }
    }
  });

  test("one ends, the other is still held", async () => {
    if (controlsOnly) return;
    expect(await enforcers[0]!.stop()).toBe(0);
    expect((await world.guest.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 3000)).ok).toBe(true);
    expect((await world.sibling!.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 400)).ok).toBe(false);
    expect((await world.sibling!.probe(["fetch", "8.8.8.8", "other.example", "80", "/", "A"], 3000)).ok).toBe(true);
  });
});

describe.each([["routed", false], ["bridged", true]] as const)("A09 identity that is learned, %s", (_name, bridged) => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await Stage.open({ bridged, learn: true });
  });
  afterAll(() => stage?.close());

  test("A09 once the guest has spoken, nobody else may speak from its tap", async () => {
    if (!controlsOnly) await stage.alive(); // the guest's first frames
    await stage.show({
      stimuli: [
        stage.syn("sibling's address to", "93.184.216.99", "uplink", { source: ADDRESS.sibling4 }),
        stage.syn("stranger's address to", "93.184.216.99", "uplink", { source: "172.30.0.3" }),
        stage.syn("public source to", "93.184.216.99", "uplink", { source: "45.33.32.156" }),
        stage.syn("sibling's address to", "2606:2800:220:1::99", "uplink", { source: stage.held.sibling6 }),
        stage.syn("other address of the prefix to", "2606:2800:220:1::99", "uplink", { source: "fd00:30:0:1::9" }),
        stage.syn("public source to", "2606:2800:220:1::99", "uplink", { source: "2600:3c01::1" }),
        stage.syn("other MAC to", "93.184.216.99", "uplink", { sourceMac: "02:fc:00:00:00:66" }),
        stage.syn("other MAC to", "2606:2800:220:1::99", "uplink", { sourceMac: "02:fc:00:00:00:66" }),
      ],
      reasons: ["source-address", "source-mac"],
    });
  });
});
