/**
 * Policies that change while guests send, and guests that abuse what they have: no packet is judged by parts of two policies,
 * a flow that is forbidden from now on ends, pins live on, and a sibling notices nothing.
 */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Namespace, type Service, until, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";

const X = ADDRESS.site4, Y = ADDRESS.site4b;
let world: World;
let agent: TestAgent;
beforeAll(async () => {
  world = await World.create({ sibling: true, zone: { "site.example": { A: [X] }, "other.example": { A: [Y] } } });
  await world.internet.must(["nft", "-f", "-"], { input: `table netdev sink {
    chain arrivals {
      type filter hook ingress device eth0 priority 0; policy accept;
      ip daddr ${X} udp dport 1001 counter comment "one"
      ip daddr ${Y} udp dport 1002 counter comment "other"
      ip daddr ${X} udp dport 1002 counter comment "mix"
      ip daddr ${Y} udp dport 1001 counter comment "mix"
    }
  }` });
  agent = await TestAgent.start(world);
});
afterEach(async () => { for (const name of await agent.names()) await agent.client.detach(name); });
afterAll(async () => {
  await agent?.stop();
  await world?.close();
});

async function seen(comment: string): Promise<number> {
  const { nftables } = JSON.parse(await world.internet.must(["nft", "-j", "list", "ruleset"])) as { nftables: { rule?: { comment?: string; expr: { counter?: { packets: number } }[] } }[] };
  return nftables.flatMap(({ rule }) => (rule?.comment === comment ? rule.expr : [])).reduce((sum, { counter }) => sum + (counter?.packets ?? 0), 0);
}

/** Sends datagrams to all of them without end, each from a new port at times: known flows and new ones. */
async function datagrams(from: Namespace, targets: readonly (readonly [address: string, port: number])[]): Promise<Service> {
  const service = world.own(from.start([process.execPath, "-e", `
    const { createSocket } = require("node:dgram");
    const targets = ${JSON.stringify(targets)};
    let sockets = [];
    const send = () => {
      if (sockets.length < 40 || Math.random() < 0.05) sockets.push(createSocket("udp4").on("error", () => undefined));
      if (sockets.length > 200) sockets.shift().close();
      for (const socket of sockets.slice(-20)) for (const [address, port] of targets) socket.send("x", port, address, () => undefined);
      setTimeout(send, 1);
    };
    console.log("ready");
    send();`]));
  await service.line((line) => line === "ready");
  return service;
}

/** A connection that echoes. */
async function connection(from: Namespace, address: string, port: number): Promise<{ echo: (text: string) => Promise<unknown>; ended: () => string | undefined; stop: () => Promise<unknown> }> {
  const client = world.own(from.start([process.execPath, "-e", `
    const socket = require("node:net").connect(${port}, "${address}", () => console.log("ready"));
    socket.on("data", (data) => console.log("echo " + data.toString().trim()));
    socket.on("error", (error) => console.log("ended " + error.code));
    socket.on("close", () => console.log("ended"));
    process.stdin.pipe(socket);`]));
  await client.line((line) => line === "ready");
  return {
    echo: (text) => {
      client.write(text);
      return client.line((line) => line === `echo ${text}`);
    },
    ended: () => {
      client.write("again");
      return client.lines.find((line) => line.startsWith("ended"));
    },
    stop: () => client.stop("SIGKILL"),
  };
}

test("A21 a policy is swapped again and again while the guest sends: no packet sees a mix of two", async () => {
  const policies = [{ rules: [`allow@${X}/32:udp:1001`] }, { rules: [`allow@${Y}/32:udp:1002`] }];
  await agent.client.attach({ tap: "tap0", policy: policies[0]! });
  const writer = await datagrams(world.guest, [[X, 1001], [Y, 1002], [X, 1002], [Y, 1001]]);
  for (let round = 1; round <= 40; round++) {
    const [comment, count] = round % 2 === 1 ? ["one", await seen("one")] as const : ["other", await seen("other")] as const;
    await until(`packets under policy ${round}`, async () => (await seen(comment)) > count);
    await agent.client.setPolicy("tap0", policies[round % 2]!);
  }
  await writer.stop("SIGKILL");
  expect(await seen("mix")).toBe(0);
  // The control: without a policy they arrive.
  await agent.client.detach("tap0");
  const free = await datagrams(world.guest, [[X, 1002], [Y, 1001]]);
  await until("the control's packets", async () => (await seen("mix")) > 0);
  await free.stop("SIGKILL");
});

test("A21 a connection whose rule is taken away is reset at both ends; one that is still allowed goes on, and pins live on", async () => {
  const server = world.internet.start([process.execPath, "-e", `
    require("node:net").createServer((socket) => { socket.on("error", (error) => console.log("far " + error.code)); socket.pipe(socket); }).listen(7777, () => console.log("ready"))`]);
  await server.line((line) => line === "ready");
  const both = { rules: ["allow@site.example:tcp:7777", "allow@site.example:tcp:80", "allow@other.example:tcp:7777"] };
  await agent.client.attach({ tap: "tap0", policy: both });
  for (const name of ["site.example", "other.example"]) expect((await world.guest.probe(["dns", "udp", "8.8.8.8", name, "A"], 3000)).ok).toBe(true);
  const [kept, cut] = [await connection(world.guest, X, 7777), await connection(world.guest, Y, 7777)];
  await kept.echo("one");
  await cut.echo("two");
  await agent.client.setPolicy("tap0", { rules: ["allow@site.example:tcp:7777"] });
  await until("the guest's end is reset", () => cut.ended()?.includes("ECONNRESET") === true);
  await server.line((line) => line === "far ECONNRESET", { what: "the far end's reset" });
  await kept.echo("three");
  // The pin was not asked for again.
  const again = await connection(world.guest, X, 7777);
  await again.echo("four");
  for (const one of [kept, cut, again]) await one.stop();
  await server.stop("SIGKILL");
});

test("A21 a connection that is silent ends as well, at both ends, IPv4 and IPv6; one that is still allowed stays", async () => {
  const server = world.own(world.internet.start([process.execPath, "-e", `
    require("node:net").createServer((socket) => { socket.on("error", (error) => console.log("far " + error.code + " " + socket.remotePort)); socket.on("data", () => undefined); }).listen({ port: 7779, host: "::" }, () => console.log("ready"))`]));
  await server.line((line) => line === "ready");
  const rules = ["allow@93.184.216.34/32:tcp:7779", `allow@[${ADDRESS.site6}]:tcp:7779`, `allow@${Y}/32:tcp:7779`];
  await agent.client.attach({ tap: "tap0", policy: { rules } });
  // Node's clients speak nothing after they have connected, and have no keep-alive.
  const silent = async (address: string): Promise<Service> => {
    const client = world.own(world.guest.start([process.execPath, "-e", `
      const socket = require("node:net").connect(7779, "${address}", () => console.log("ready"));
      socket.on("error", (error) => console.log("near " + error.code));`]));
    await client.line((line) => line === "ready");
    return client;
  };
  const [four, six, kept] = [await silent(X), await silent(ADDRESS.site6), await silent(Y)];
  expect((await agent.client.flows("tap0")).total).toBe(3);
  await agent.client.setPolicy("tap0", { rules: rules.slice(2) });
  for (const client of [four, six]) await client.line((line) => line === "near ECONNRESET", { what: "the reset at the guest" });
  await until("both resets at the far end", () => server.lines.filter((line) => line.startsWith("far ECONNRESET")).length === 2);
  expect(kept.ended).toBe(null);
  expect((await agent.client.flows("tap0")).flows.map(({ remote }) => remote)).toEqual([Y]);
  for (const client of [four, six, kept]) await client.stop("SIGKILL");
  await server.stop("SIGKILL");
});

test("A21 a silent connection ends by whichever of the guest's addresses it was made: the second that was given, or one that was learned beside a link-local one", async () => {
  const server = world.own(world.internet.start([process.execPath, "-e", `
    require("node:net").createServer((socket) => { socket.on("error", () => console.log("far")); socket.on("data", () => undefined); }).listen({ port: 7780, host: "::" }, () => console.log("ready"))`]));
  await server.line((line) => line === "ready");
  for (const [guest, address] of [[["172.30.0.3", ADDRESS.guest4], X], [[ADDRESS.guest4, "fe80::1234"], ADDRESS.site6]] as const) {
    await agent.client.attach({ tap: "tap0", guest: [...guest], policy: { rules: [`allow@${X}/32:tcp:7780`, `allow@[${ADDRESS.site6}]:tcp:7780`] } });
    const client = world.own(world.guest.start([process.execPath, "-e", `
      const socket = require("node:net").connect(7780, "${address}", () => console.log("ready"));
      socket.on("error", (error) => console.log("near " + error.code));`]));
    await client.line((line) => line === "ready");
    await agent.client.setPolicy("tap0", { rules: [`allow@${Y}/32:tcp:7780`] });
    await client.line((line) => line === "near ECONNRESET", { what: `the reset of the connection to ${address}` });
    await client.stop("SIGKILL");
    await agent.client.detach("tap0");
  }
  await server.stop("SIGKILL");
});

test("A21 a silent connection from the world ends as well, at both ends", async () => {
  const server = world.own(world.guest.start([process.execPath, "-e", `
    require("node:net").createServer((socket) => { socket.on("error", (error) => console.log("near " + error.code)); socket.on("data", () => undefined); }).listen({ port: 8088, host: "::" }, () => console.log("ready"))`]));
  await server.line((line) => line === "ready");
  await agent.client.attach({ tap: "tap0", guest: [ADDRESS.guest4], policy: { rules: ["allow:ingress@any:tcp:8088"] } });
  const client = world.own(world.internet.start([process.execPath, "-e", `
    const socket = require("node:net").connect(8088, "${ADDRESS.guest4}", () => console.log("ready"));
    socket.on("error", (error) => console.log("far " + error.code));`]));
  await client.line((line) => line === "ready");
  await agent.client.setPolicy("tap0", { rules: ["allow:ingress@any:tcp:8089"] });
  for (const [end, line] of [[server, "near ECONNRESET"], [client, "far ECONNRESET"]] as const) await end.line((seen) => seen === line, { what: line });
  for (const end of [server, client]) await end.stop("SIGKILL");
});

test("A21 a request whose head is not whole ends when its policy goes, although the agent has not seen for whom it is", async () => {
  await agent.client.attach({ tap: "tap0", policy: { rules: ["allow@site.example:tcp:80"] } });
  expect((await world.guest.probe(["dns", "udp", "8.8.8.8", "site.example", "A"], 3000)).ok).toBe(true);
  const client = world.own(world.guest.start([process.execPath, "-e", `
    const socket = require("node:net").connect(80, "${X}", () => socket.write("GET / HTTP/1.1\\r\\nHost: site.exa", () => console.log("ready")));
    socket.on("error", (error) => console.log("near " + error.code)); socket.on("close", () => console.log("closed"));`]));
  await client.line((line) => line === "ready");
  await until("it is one flow, and the agent looks into it", async () => {
    const { total, flows } = await agent.client.flows("tap0");
    return total === 1 && flows[0]!.intercepted && flows[0]!.rule?.includes("site.example") === true;
  });
  await agent.client.setPolicy("tap0", { rules: ["allow@other.example:tcp:80"] });
  await client.line((line) => line === "near ECONNRESET", { what: "the reset at the guest" });
  await client.stop("SIGKILL");
});

test("A21 a name that was told and that the new policy denies is denied at its address, also where another name or a prefix opens it", async () => {
  const far = world.own(world.internet.start([process.execPath, "-e", `require("node:net").createServer((socket) => { socket.on("error", () => undefined); socket.pipe(socket); }).listen(7778, () => console.log("ready"))`]));
  await far.line((line) => line === "ready");
  const tcp = async (): Promise<boolean> => (await world.guest.probe(["tcp", X, "7778"], 700)).ok;
  await agent.client.attach({ tap: "tap0", policy: {} });
  expect((await world.guest.probe(["dns", "udp", "8.8.8.8", "site.example", "A"], 3000)).ok).toBe(true);
  expect((await world.guest.probe(["tcp", X, "7778"], 3000)).ok).toBe(true);
  for (const rules of [["deny@site.example", `allow@${X}/32`], ["deny@site.example:tcp:7778", "allow@public"], ["deny@suffix:example", "allow@public"]]) {
    await agent.client.setPolicy("tap0", { rules });
    expect(await tcp(), rules.join(" ")).toBe(false);
    expect(await agent.client.explain("tap0", { destination: X, port: 7778 })).toMatchObject({ verdict: "deny", reason: "rule-deny" });
  }
  // Also after a restart of the agent.
  await agent.kill();
  await agent.restart();
  expect(await tcp()).toBe(false);
  await agent.client.setPolicy("tap0", { rules: ["allow@public"] });
  expect((await world.guest.probe(["tcp", X, "7778"], 3000)).ok).toBe(true);
  await far.stop("SIGKILL");
});

test("A23 a guest that opens flows and asks names without end is limited itself; its sibling keeps pins, flows and answers", async () => {
  const server = world.internet.start([process.execPath, "-e", 'require("node:net").createServer((socket) => socket.pipe(socket)).listen(7777, () => console.log("ready"))']);
  await server.line((line) => line === "ready");
  await agent.client.attach({ tap: "tap0", policy: { rules: ["allow@public"] } });
  await agent.client.attach({ tap: "tap1", policy: { rules: ["allow@site.example:tcp"] } });
  expect((await world.sibling!.probe(["dns", "udp", "8.8.8.8", "site.example", "A"], 3000)).ok).toBe(true);
  const line = await connection(world.sibling!, X, 7777);
  await line.echo("before");
  const flood = world.own(world.guest.start([process.execPath, "-e", `
    const { createSocket } = require("node:dgram");
    const { Resolver } = require("node:dns");
    const resolver = new Resolver({ timeout: 1000, tries: 1 });
    resolver.setServers(["8.8.8.8"]);
    const socket = createSocket("udp4");
    let n = 0;
    const send = () => {
      for (let k = 0; k < 200; k++, n++) socket.send("x", 1024 + n % 60000, "93.184.217." + (1 + (n / 60000 | 0) % 250), () => undefined);
      for (let k = 0; k < 20; k++) resolver.resolve4("n" + n + "x" + k + ".flood.example", () => undefined);
      setTimeout(send, 1);
    };
    socket.bind(() => { console.log("ready"); send(); });`]));
  await flood.line((text) => text === "ready");
  const refused = async (): Promise<number> => {
    const { counters } = await agent.client.sandbox("tap0") as unknown as { counters: { reason: string; packets: number }[] };
    return counters.filter(({ reason }) => reason === "flow-table-full").reduce((sum, { packets }) => sum + Number(packets), 0);
  };
  await until("the flood meets its own limit", async () => (await refused()) > 1000, 60_000);
  await line.echo("during");
  expect((await world.sibling!.probe(["dns", "udp", "8.8.8.8", "site.example", "A"], 5000)).ok).toBe(true);
  const second = await connection(world.sibling!, X, 7777);
  await second.echo("another");
  await flood.stop("SIGKILL");
  await line.echo("after");
  for (const one of [line, second]) await one.stop();
  await server.stop("SIGKILL");
});

test("a rule's prefix that lies on a link of the host from now on is judged as one, without being given again", async () => {
  await agent.client.attach({ tap: "tap0", policy: { rules: ["allow@45.10.1.0/24:udp"] } });
  await agent.client.attach({ tap: "tap1", policy: { rules: ["allow@public"] } });
  const uid = async (tap: string): Promise<string> => (await agent.client.sandbox(tap) as unknown as { policy: { uid: string } }).policy.uid;
  const [before, other] = [await uid("tap0"), await uid("tap1")];
  await world.host.ip("addr add 45.10.1.1/16 dev docker0");
  await until("the policy is put in force anew", async () => (await uid("tap0")) !== before);
  expect(await agent.client.explain("tap0", { destination: "45.10.1.9", protocol: "udp", port: 53000 })).toMatchObject({ verdict: "allow", flows: [{ group: "private" }] });
  expect(await uid("tap1")).toBe(other);
  await world.host.ip("addr del 45.10.1.1/16 dev docker0");
});
