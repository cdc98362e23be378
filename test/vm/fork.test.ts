/**
 * A microVM's snapshot that goes on twice, each copy on a tap of its own, as platforms make guests from one: the second comes with the
 * first one's connections, DNS answers, CA and placeholder, and gets nothing by any of them. TLS test 40.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Vm } from "../lib/vm.mjs";
import { ADDRESS, MAC, must, Namespace, run, type Service, until, type World } from "../lib/world.mjs";
import { TestAgent } from "../netns/daemon.js";
import { openWorld } from "../netns/tls-world.js";

const VALUE = "sk-realvalue-7777777777-forkabcdefghijklmnopq";

/** Tells every connection, request and piece of a body. */
const ORIGIN = `
  const { readFileSync } = require("node:fs");
  let connections = 0;
  const server = require("node:https").createServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem") }, (request, response) => {
    console.log(JSON.stringify({ path: request.url, key: request.headers["x-api-key"] ?? null }));
    request.on("data", (data) => console.log(JSON.stringify({ connection: request.socket.number, piece: data.toString() })));
    request.on("end", () => response.end("ok"));
    request.on("error", () => {});
  });
  server.on("secureConnection", (socket) => { socket.number = ++connections; console.log(JSON.stringify({ connection: connections })); });
  server.listen({ host: "::", port: 443 }, () => console.log("ready"));`;

let world: World, origin: Service, agent: TestAgent, first: Vm, copy: Vm, jail: Namespace;
const policy = (): { file: { path: string; text: string } } => ({ file: { path: path.join(world.dir, "policy.yaml"), text: `
rules:
  - allow: shop.example
tls: {intercept: true, upstream_ca: [root.pem]}
secrets:
  KEY: {from: {file: token}, allowed_hosts: [shop.example]}
` } });
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: ORIGIN, guest: "vm" }));
  writeFileSync(path.join(world.dir, "token"), VALUE, { mode: 0o600 });
  jail = new Namespace(`${world.id}-jail`);
  [first, agent] = await Promise.all([Vm.boot(world), TestAgent.start(world)]);
  await agent.client.attach({ tap: "tap0", policy: policy() });
}, 240_000);
afterAll(async () => {
  await copy?.stop();
  await first?.stop();
  await agent?.service.stop();
  await world?.close();
  await run(["ip", "netns", "del", jail.name]);
});

const told = (from: number): Record<string, unknown>[] => origin.lines.slice(from).map((line) => JSON.parse(line) as Record<string, unknown>);
const give = async (vm: Vm, file: string, text: string): Promise<void> => {
  expect(await vm.run(`echo ${Buffer.from(text).toString("base64")} | base64 -d > ${file}`)).toEqual({ status: 0, output: "" });
};
const curl = (vm: Vm, ca: string, ...args: string[]): Promise<{ status: number; output: string }> => vm.run(`curl -sS --max-time 30 --cacert ${ca} ${args.join(" ")} https://shop.example/get`);

/** Waits in the guest: a serial line that is asked all the time loses letters. */
const ENDED = "n=0; while [ ! -s /tmp/status ] && [ $n -lt 40 ]; do sleep 1; n=$((n+1)); done; cat /tmp/status";

test("TLS test 40: of two copies of one microVM the second gets nothing by the first one's connections, DNS answers, CA and placeholder", async () => {
  await give(first, "/tmp/ca.pem", await agent.client.ca("tap0"));
  const placeholder = (await agent.client.secrets("tap0")).environment["KEY"] as string, key = `-H 'x-api-key: ${placeholder}'`;
  expect(await curl(first, "/tmp/ca.pem", key)).toEqual({ status: 0, output: "ok" });
  expect(told(1).at(-1)).toEqual({ path: "/get", key: VALUE });
  // One that says something each second, until it is told to end.
  await first.run("(while [ ! -e /tmp/enough ]; do echo piece; sleep 1; done | curl -sS --no-buffer -T - --cacert /tmp/ca.pem https://shop.example/long > /tmp/long 2>&1; echo $? > /tmp/status) > /dev/null 2>&1 &");
  await origin.line((line) => line.includes("piece"));
  const file = path.join(world.dir, "snapshot");
  await first.snapshot(file);
  const before = origin.lines.length;

  await must(["ip", "netns", "add", jail.name]);
  await jail.ip(`link set lo up\ntuntap add tap0 mode tap vnet_hdr\nlink set tap0 address ${MAC.tap0}\nlink set tap0 up\naddr add ${ADDRESS.gateway4}/30 dev tap0\naddr add ${ADDRESS.gateway6}/64 dev tap0 nodad`);
  await agent.client.attach({ tap: "tap0", netns: jail.name, policy: policy() });
  const there = `${jail.name}/tap0`;
  copy = await Vm.resume(world, jail, "copy", first, file);

  // The copy's own sending goes nowhere; the first one's goes on.
  const pieces = (): number => told(before).filter(({ piece }) => piece !== undefined).length, now = pieces();
  await until("five more pieces of the first", () => pieces() >= now + 5);
  expect(told(before).filter(({ connection, piece }) => connection !== undefined && piece === undefined)).toEqual([]);
  // What it was told was told to the other.
  const untold = await curl(copy, "/tmp/ca.pem", "--connect-timeout 3", `--resolve shop.example:443:${ADDRESS.site4}`);
  expect(untold.status).not.toBe(0);
  expect(told(before).filter(({ path: target, connection, piece }) => target !== undefined || (connection !== undefined && piece === undefined))).toEqual([]);
  // It asks for itself: then the connection that it thinks it has is ended, and the former CA vouches for nobody.
  expect((await curl(copy, "/tmp/ca.pem")).status).toBe(60);
  expect((await copy.run(ENDED)).status).toBe(0);
  expect(Number((await copy.run("cat /tmp/status")).output)).not.toBe(0);
  expect(told(before).filter(({ path: target }) => target !== undefined)).toEqual([]);
  await give(copy, "/tmp/own.pem", await agent.client.ca(there));
  expect(await curl(copy, "/tmp/own.pem", key)).toEqual({ status: 0, output: "ok" });
  // The other's placeholder is text like any other.
  expect(told(before).filter(({ path: target }) => target !== undefined)).toEqual([{ path: "/get", key: placeholder }]);
  const own = (await agent.client.secrets(there)).environment["KEY"] as string;
  expect(own).not.toBe(placeholder);
  expect(await curl(copy, "/tmp/own.pem", `-H 'x-api-key: ${own}'`)).toEqual({ status: 0, output: "ok" });
  expect(told(before).filter(({ path: target }) => target !== undefined).at(-1)).toEqual({ path: "/get", key: VALUE });
  // The first has noticed nothing.
  await first.run("touch /tmp/enough");
  expect((await first.run(ENDED)).status).toBe(0);
  expect(await first.run("cat /tmp/status /tmp/long")).toEqual({ status: 0, output: "0\nok" });
  expect(await curl(first, "/tmp/ca.pem", key)).toEqual({ status: 0, output: "ok" });
  expect(told(before).at(-1)).toEqual({ path: "/get", key: VALUE });
}, 240_000);
