/**
 * What a guest is told instead of being left to wait, on a real tap: a connection that the policy no longer allows ends on
 * both sides, and DNS over TLS is refused at once. Checksums as the kernel's own stack leaves them: partial.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ADDRESS, type Enforcer, type Service, World } from "../lib/world.mjs";
import "./stage.js"; // its bounds for tests and hooks

const ECHO = `
  const server = require("node:net").createServer((socket) => {
    console.log("open");
    socket.on("data", (data) => socket.write(data));
    socket.on("error", (error) => console.log("error " + error.code));
    socket.on("close", () => console.log("closed"));
    process.stdin.on("data", (text) => socket.write(text));
  }).listen({ host: "::", port: 7777 }, () => console.log("ready"));`;
const client = (address: string): string => `
  const socket = require("node:net").connect(7777, "${address}", () => console.log("ready"));
  socket.on("data", (data) => console.log("got " + data.toString().trim()));
  socket.on("error", (error) => console.log("error " + error.code));
  process.stdin.on("data", (text) => socket.write(text));`;

describe.each([["routed", false], ["bridged", true]] as const)("%s tap", (_name, bridged) => {
  let world: World;
  let enforcer: Enforcer;

  beforeAll(async () => {
    world = await World.create({ bridged });
    enforcer = await world.enforce({ policy: "rules: [{allow: public}]" });
  });
  afterAll(async () => {
    await enforcer?.stop();
    await world?.close();
  });

  /** The successor of a killed enforcer has another policy: the flows that it finds are judged again. */
  async function successor(policy: string): Promise<void> {
    await enforcer.service.stop("SIGKILL");
    enforcer = await world.enforce({ policy });
  }

  async function conversation(address: string): Promise<{ server: Service; guest: Service }> {
    const server = world.internet.start([process.execPath, "-e", ECHO]);
    await server.line((line) => line === "ready");
    const guest = world.guest.start([process.execPath, "-e", client(address)]);
    await guest.line((line) => line === "ready");
    guest.write("first");
    await guest.line((line) => line === "got first");
    return { server, guest };
  }

  for (const [family, address] of [["IPv4", ADDRESS.site4], ["IPv6", ADDRESS.site6]] as const) {
    test.each([["the guest", true], ["the far end", false]] as const)(`A21 a connection that is no longer allowed is reset on both sides when %s speaks (${family})`, async (_who, guestSpeaks) => {
      const { server, guest } = await conversation(address);
      await successor("rules: []");
      (guestSpeaks ? guest : server).write("second");
      await guest.line((line) => line === "error ECONNRESET");
      await server.line((line) => line === "error ECONNRESET");
      expect(guest.lines).not.toContain("got second");
      await guest.stop("SIGKILL");
      await server.stop("SIGKILL");
      await successor("rules: [{allow: public}]");
    });
  }

  test("DNS over TLS is refused at once, IPv4 and IPv6", async () => {
    for (const address of [ADDRESS.resolver4, ADDRESS.resolver6]) expect((await world.guest.probe(["tcp", address, "853"], 3000)).saw).toMatch(/refused/i);
  });
});
