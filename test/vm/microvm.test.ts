/**
 * A microVM on a real tap, with a kernel that is not the host's: the smoke test of the whole way. The demo tries more.
 * Needs qemu-system-x86_64; without it the test fails, it is not skipped.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Vm } from "../lib/vm.mjs";
import { ADDRESS, type Enforcer, World } from "../lib/world.mjs";

const ZONE = { "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] }, "mixed.example": { A: [ADDRESS.site4b, ADDRESS.private4] } };
const controlsOnly = process.env.ENFORCER_TEST_CONTROLS === "only";

describe("microVM", () => {
  let world: World;
  let vm: Vm;

  beforeAll(async () => {
    world = await World.create({ guest: "vm", zone: ZONE });
    vm = await Vm.boot(world);
  }, 180_000);
  afterAll(() => world?.close());

  const denied = [ADDRESS.metadata4, ADDRESS.metadata6, ADDRESS.lan4, ADDRESS.lan6, ADDRESS.host4, ADDRESS.gateway6];

  test("without the enforcer everything is reached", async () => {
    for (const address of denied) expect((await vm.probe(["http", address, "80", "x", "/"])).ok, address).toBe(true);
    expect((await vm.probe(["vlan", "eth0", ADDRESS.gateway4, ADDRESS.metadata4, "80", "0x8100,0x8100"])).ok).toBe(true);
    expect((await vm.probe(["dns", "udp", "8.8.8.8", "mixed.example", "A"])).addresses).toEqual([ADDRESS.site4b, ADDRESS.private4]);
  }, 60_000);

  test("with it only what the policy allows", async () => {
    if (controlsOnly) return;
    const enforcer: Enforcer = await world.enforce();
    try {
      expect((await vm.probe(["fetch", "8.8.8.8", "site.example", "80", "/", "A"])).saw).toBe(`HTTP 200: internet ${ADDRESS.site4}`);
      expect((await vm.probe(["fetch", "8.8.8.8", "site.example", "80", "/", "AAAA"])).saw).toBe(`HTTP 200: internet ${ADDRESS.site6}`);
      expect((await vm.probe(["ping", ADDRESS.site4])).ok).toBe(true);
      for (const address of denied) expect((await vm.probe(["http", address, "80", "x", "/"], 600)).ok, address).toBe(false);
      expect((await vm.probe(["vlan", "eth0", ADDRESS.gateway4, ADDRESS.metadata4, "80", "0x8100,0x8100"], 600)).ok).toBe(false);
      expect((await vm.probe(["dns", "tcp", "8.8.8.8", "mixed.example", "A"])).rcode).toBe("REFUSED");
      await enforcer.denied({ reason: "vlan" });
      await enforcer.denied({ destination: ADDRESS.metadata4, reason: "default-metadata" });
    } finally {
      expect(await enforcer.stop()).toBe(0);
    }
  }, 60_000);
});
