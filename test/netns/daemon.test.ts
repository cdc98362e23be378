/**
 * The agent over real taps: verbs and requests, policies and floor, configuration, watching, explaining, taps that come and go.
 * What a kill leaves and a successor takes over is in daemon-crash.test.ts.
 */
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { request as httpRequest } from "node:http";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { BpfMap } from "../../native/index.js";
import type { AttachRequest, PolicyRequest } from "../../src/api/schema.js";
import { layouts } from "../../src/kernel/layout.gen.js";
import { slotKey } from "../../src/kernel/sandbox-tables.js";
import { ADDRESS, ENFORCER, MAC, must, Namespace, run, type Service, tool, until, World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";

const rules = (...tokens: string[]): PolicyRequest => ({ rules: tokens });
const ZONE = { "site.example": { A: [ADDRESS.site4] }, "other.example": { A: [ADDRESS.site4b] } };

const pinned = (world: World, name = "site.example"): Promise<{ ok: boolean }> => world.guest.probe(["fetch", "8.8.8.8", name, "80", "/", "A"], 3000);
const reach = async (world: World, address: string): Promise<boolean> => (await world.guest.probe(["http", address, "80", "site.example", "/"], 1500)).ok;

describe("the agent", () => {
  let world: World;
  let agent: TestAgent;
  beforeAll(async () => {
    world = await World.create({ sibling: true, zone: ZONE });
    agent = await TestAgent.start(world);
  });
  let afterwards = (): void => undefined;
  afterEach(() => afterwards());
  afterEach(async () => { for (const name of await agent.names()) await agent.client.detach(name); });
  afterAll(async () => {
    await agent?.stop();
    await world?.close();
  });

  const attach = (tap: string, more: Partial<AttachRequest> = {}) => agent.client.attach({ tap, ...more });

  test("verbs: attach, list, status, policy, pins, flows, detach", async () => {
    expect(await reach(world, ADDRESS.metadata4)).toBe(true);
    const attached = await agent.run("attach", "tap0", "--rule", "allow@site.example:tcp:80", "--rule", "allow@site.example:tcp:8080", "--metrics", "off");
    expect(attached.err).toContain("--metrics is the agent's to say");
    expect(attached.status, attached.err).toBe(0);
    expect(attached.out).toMatch(/^enforcing tap0 \(routed, (tcx|clsact), 2 rules\)/);
    expect(await reach(world, ADDRESS.metadata4)).toBe(false);
    expect((await pinned(world)).ok).toBe(true);
    // A connection that stays: of those that end the table's entries are soon freed.
    const staying = world.own(world.guest.start([process.execPath, "-e", `require("node:net").connect(8080, "${ADDRESS.site4}", () => console.log("ready"));`]));
    await staying.line((line) => line === "ready");

    const list = await agent.run("list");
    expect(list.out).toMatch(/tap0 +tap0 +- +enforced/);
    const status = await agent.run("status", "tap0", "--json");
    expect(JSON.parse(status.out)).toMatchObject({
      name: "tap0", state: "enforced", slot: 0, policy: { floor: null }, hooks: [{ hook: "ingress", program: "from_guest", position: 0 }, { hook: "egress", program: "to_guest" }],
    });
    expect((JSON.parse(status.out) as { hooks: { tag: string }[] }).hooks[0]!.tag).toMatch(/^[0-9a-f]{16}$/);
    expect((await agent.run("status")).out).toMatch(/1 enforced, 0 kept, 0 waiting; at most 64/);
    expect((await agent.run("pins", "tap0")).out).toMatch(/site\.example +93\.184\.216\.34 +\d+[sm] left +rule 1/);
    expect((await agent.run("flows", "tap0")).out).toMatch(/→ +tcp +\d+ +93\.184\.216\.34:8080 +site\.example/);
    await staying.stop("SIGKILL");

    const file = path.join(world.dir, "next.yaml");
    writeFileSync(file, "rules: [{allow: other.example, proto: tcp, ports: [80]}]\n");
    expect((await agent.run("ca", "tap0")).err).toMatch(/does not intercept TLS.*E_CA/s);
    await agent.client.setPolicy("tap0", { file: { path: file, text: "tls: {intercept: true}\nrules: [{allow: site.example, proto: tcp}]\n" } });
    expect((await agent.run("ca", "tap0")).out).toMatch(/^-----BEGIN CERTIFICATE-----[\s\S]*-----END CERTIFICATE-----\n$/);
    await agent.client.setPolicy("tap0", rules("allow@site.example:tcp:80"));
    expect((await agent.client.sandbox("tap0")).queries).toMatchObject({ answered: expect.any(Number) });
    const diff = await agent.run("policy", "diff", "tap0", file);
    expect(diff.status).toBe(1);
    expect(diff.out).toMatch(/^- .*site\.example.*\n\+ .*other\.example/m);
    expect((await agent.run("policy", "set", "tap0", file)).out).toMatch(/policy of tap0 is in force \(0 pins kept\)/);
    expect((await agent.run("policy", "diff", "tap0", file)).status).toBe(0);
    expect((await agent.run("policy", "show", "tap0")).out).toContain("other.example");
    expect(await reach(world, ADDRESS.site4)).toBe(false);
    expect((await pinned(world, "other.example")).ok).toBe(true);

    expect((await agent.run("detach", "tap0")).out).toBe("detached tap0\n");
    expect(await agent.names()).toEqual([]);
    expect(await reach(world, ADDRESS.metadata4)).toBe(true);
  });

  test("errors have codes, remedies and exit statuses, and change nothing", async () => {
    const missing = await agent.run("status", "nothere");
    expect(missing).toMatchObject({ status: 65 });
    expect(missing.err).toMatch(/no sandbox nothere\n {2}remedy: .*\[E_NO_SANDBOX\]/);
    expect(await agent.run("attach", "tap9")).toMatchObject({ status: 69 });
    expect((await agent.run("attach", "up0")).err).toMatch(/E_TAP_KIND/);
    await attach("tap0", { policy: rules("allow@site.example:tcp:80") });
    expect((await agent.run("attach", "tap0")).err).toMatch(/E_NAME_TAKEN/);
    await expect(attach("tap0", { name: "again" })).rejects.toMatchObject({ code: "E_TAP_TAKEN" });
    const bad = path.join(world.dir, "bad.yaml");
    writeFileSync(bad, "rules:\n  - allow: public\n  - alow: any\n");
    expect((await agent.run("policy", "set", "tap0", bad)).err).toMatch(/bad\.yaml:3.*E_POLICY/s);
    expect((await agent.client.policy("tap0")).request).toEqual(rules("allow@site.example:tcp:80"));
    await agent.client.detach("tap0");
    const alone = await world.host.run([ENFORCER, "list", "--run-dir", path.join(world.dir, "nobody")]);
    expect(alone.status).toBe(69);
    expect(alone.stderr).toMatch(/E_NO_AGENT/);
  });

  test("the socket is root's, and requests are read strictly", async () => {
    expect(statSync(agent.client.socket).mode & 0o777).toBe(0o600);
    expect(statSync(world.runDir).mode & 0o777).toBe(0o700);
    const ask = (method: string, target: string, body?: string, type = "application/json") => new Promise<{ status: number; body: Record<string, unknown> }>((resolve, reject) => {
      const sent = httpRequest({ socketPath: agent.client.socket, method, path: target, headers: body === undefined ? {} : { "content-type": type } }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => { text += chunk; }).on("end", () => resolve({ status: response.statusCode!, body: JSON.parse(text) as Record<string, unknown> }));
      });
      sent.on("error", reject);
      sent.end(body);
    });
    const refusals: readonly [number, RegExp, Parameters<typeof ask>][] = [
      [404, /version 1/, ["GET", "/v2/status"]],
      [404, /no \/v1\/nothing/, ["GET", "/v1/nothing"]],
      [405, /takes GET, POST|takes GET/, ["PATCH", "/v1/sandboxes"]],
      [400, /unknown: speed/, ["POST", "/v1/sandboxes", JSON.stringify({ tap: "tap0", speed: 9 })]],
      [400, /unknown: filee/, ["POST", "/v1/sandboxes", JSON.stringify({ tap: "tap0", policy: { filee: 1 } })]],
      [400, /not JSON/, ["POST", "/v1/sandboxes", "{"]],
      [400, /application\/json/, ["POST", "/v1/sandboxes", "{}", "text/plain"]],
      [400, /parameter: unknown: verbose/, ["GET", "/v1/status?verbose=1"]],
      [400, /twice/, ["GET", "/v1/sandboxes/tap0/flows?limit=1&limit=2"]],
      [400, /limit/, ["GET", "/v1/sandboxes/tap0/flows?limit=0"]],
      [400, /no body/, ["POST", "/v1/reload", "{}"]],
      [404, /no sandbox a\/b/, ["GET", "/v1/sandboxes/a%2Fb"]],
      [400, /percent/, ["GET", "/v1/sandboxes/%ff"]],
      [422, /line|rule/, ["POST", "/v1/policy/check", JSON.stringify({ rules: ["allow@nonsense:tcp:99999"] })]],
    ];
    for (const [status, words, args] of refusals) {
      const answer = await ask(...args);
      expect({ status: answer.status, words: words.test(String(answer.body.message)) }, `${args.join(" ")} → ${JSON.stringify(answer.body)}`).toEqual({ status, words: true });
      expect(typeof answer.body.code === "string" && typeof answer.body.remedy === "string", args.join(" ")).toBe(true);
    }
  });

  test("two sandboxes, each with its own policy and pins", async () => {
    await attach("tap0", { policy: rules("allow@site.example:tcp:80") });
    await attach("tap1", { policy: rules("allow@other.example:tcp:80") });
    expect((await pinned(world)).ok).toBe(true);
    expect((await world.sibling!.probe(["fetch", "8.8.8.8", "other.example", "80", "/", "A"], 3000)).ok).toBe(true);
    expect((await world.sibling!.probe(["fetch", "8.8.8.8", "site.example", "80", "/", "A"], 3000)).ok).toBe(false);
    expect(await reach(world, ADDRESS.site4b)).toBe(false);
    expect((await agent.client.pins("tap0")).pins.map(({ name }) => name)).toEqual(["site.example"]);
    await agent.client.detach("tap0");
    expect((await world.sibling!.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 400)).ok).toBe(false);
    await agent.client.detach("tap1");
  });

  test("requests at one time are worked off one after another, and none is lost", async () => {
    const answers = await Promise.allSettled([
      attach("tap0", { policy: rules("allow@site.example:tcp:80") }), attach("tap1", { policy: rules("allow@public") }), attach("tap0"),
      agent.client.setPolicy("tap0", rules("allow@other.example:tcp:80")), agent.client.detach("tap1"), agent.client.detach("tap1"),
    ]);
    expect(answers.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "rejected", "fulfilled", "fulfilled", "rejected"]);
    expect(await agent.states()).toEqual({ tap0: "enforced" });
    expect((await agent.client.policy("tap0")).request).toEqual(rules("allow@other.example:tcp:80"));
    await agent.client.detach("tap0");
  });

  test("watch tells verdicts and changes, filtered", async () => {
    const all = await agent.watch(), metadata = await agent.watch({ reason: "default-metadata" }), names = await agent.watch({ destination: "*.blocked.example" }), allowed = await agent.watch({ verdict: "allow" });
    await attach("tap0", { policy: { ...rules("allow@site.example:tcp:80") } });
    await all.seen({ event: "attached", sandbox: "tap0" });
    await reach(world, ADDRESS.metadata4);
    await reach(world, ADDRESS.private4);
    await world.guest.probe(["dns", "udp", "8.8.8.8", "x.blocked.example", "A"], 2000);
    await pinned(world);
    await all.seen({ event: "denied", destination: ADDRESS.metadata4, reason: "default-metadata", port: 80 });
    await all.seen({ event: "denied", destination: ADDRESS.private4, reason: "default-private" });
    await metadata.seen({ event: "denied", destination: ADDRESS.metadata4 });
    await names.seen({ event: "dns-denied", name: "x.blocked.example" });
    await allowed.seen({ event: "allowed", destination: ADDRESS.site4, port: 80, name: "site.example" });
    await agent.client.detach("tap0");
    await all.seen({ event: "detached", sandbox: "tap0" });
    for (const one of [all, metadata, allowed, names]) await one.end();
    expect(metadata.events.filter(({ event }) => event !== "watching").every(({ reason }) => reason === "default-metadata")).toBe(true);
    expect(allowed.events.filter(({ event }) => event !== "watching").every(({ event }) => event === "allowed")).toBe(true);
    expect(names.events.some(({ destination }) => destination === ADDRESS.metadata4)).toBe(false);
    expect((await agent.client.status()).watchers).toBe(0);
  });

  test("watch tells flows that are let through once each, and how many others there were; filters that could never match are refused", async () => {
    await attach("tap0", { policy: rules("allow@site.example:tcp:8080", "allow@93.184.216.0/24:udp:7000-7001") });
    const send = (count: number): Promise<string> => world.guest.must([process.execPath, "-e", `
      const dgram = require("node:dgram"); let left = ${count};
      for (let i = 0; i < ${count}; i++) { const socket = dgram.createSocket("udp4"); socket.send("x", 7000, "${ADDRESS.site4}", () => { socket.close(); if (--left === 0) console.log("sent"); }); }`]);
    await send(3);
    const allowed = await agent.watch({ sandbox: "tap0", reason: "rule-allow" }), other = await agent.watch({ verdict: "allow", destination: "192.0.2.0/24" });
    await send(5);
    await expect.poll(() => allowed.events.filter(({ event }) => event === "allowed").length, { timeout: 60_000 }).toBe(5);
    // More than it tells of one look: what it does not tell is a number.
    agent.service.child.kill("SIGSTOP");
    await send(1300);
    agent.service.child.kill("SIGCONT");
    await until("1,000 more flows told", () => allowed.events.filter(({ event }) => event === "allowed").length === 1005);
    // As many as the kernel opened since the first three; of so many datagrams at once some may not reach it.
    await until("the number of the others", async () => {
      const { counters } = await agent.client.sandbox("tap0");
      const opened = counters.find(({ direction, reason }) => direction === "egress" && reason === "rule-allow")!.packets;
      const others = allowed.events.filter(({ event }) => event === "unseen").reduce((sum, { count }) => sum + Number(count), 0);
      return others > 0 && 3 + 1005 + others === opened;
    });
    expect(allowed.events.filter(({ event }) => event === "allowed").length).toBe(1005);
    expect(allowed.events.filter(({ event }) => event === "allowed").every(({ destination, port, reason }) => destination === ADDRESS.site4 && port === 7000 && reason === "rule-allow")).toBe(true);
    expect(other.events.some(({ event }) => event === "allowed")).toBe(false);
    for (const one of [allowed, other]) await one.end();

    for (const [args, words] of [
      [["watch", "nobody"], /no sandbox nobody.*E_NO_SANDBOX/s], [["watch", "--reason", "default-metadta"], /did you mean default-metadata/], [["watch", "--verdict", "allow", "--reason", "no-pin"], /no-pin is no reason for which anything is let through/],
      [["watch", "--destination", "a/b/c"], /destination: .*E_REQUEST/s],
    ] as const) expect((await agent.run(...args)).err, args.join(" ")).toMatch(words);
  });

  test("a table of hundreds of thousands of flows: all are counted, and who watches is told of a new one, once, and of no other", async () => {
    await attach("tap0", { policy: { file: { path: "/large.yaml", text: "rules:\n  - {allow: 93.184.216.0/24, proto: udp, ports: [7000-7001]}\nlimits: {flows: 400000}\n" } } });
    const send = (port: number): Promise<string> => world.guest.must([process.execPath, "-e", `const socket = require("node:dgram").createSocket("udp4"); socket.send("x", ${port}, "${ADDRESS.site4}", () => socket.close());`]);
    await send(7000);
    await until("the first flow", async () => (await agent.client.flows("tap0")).total === 1);
    const { slot } = await agent.client.sandbox("tap0");
    const instance = path.join(world.bpffs, "enforcer", "agent-of-the-host");
    const outer = BpfMap.fromPin(path.join(instance, readdirSync(instance).find((entry) => entry.startsWith("maps-"))!, "flows"));
    const flows = BpfMap.fromId(outer.lookup(slotKey(slot!))!.readUInt32LE(0));
    const one = flows.entries(), OTHERS = 300_000;
    const keys = Buffer.alloc(OTHERS * layouts.flow_key.size, one.keys), values = Buffer.alloc(OTHERS * layouts.flow.size, one.values);
    // As many flows to other ports of other addresses, opened one after another before it.
    const { created_ticks: created } = layouts.flow.fields;
    const opened = one.values.readBigUInt64LE(created.offset);
    for (let i = 0; i < OTHERS; i++) {
      keys.writeUInt16BE(1 + (i % 60_000), i * layouts.flow_key.size + layouts.flow_key.fields.remote_port.offset);
      keys[i * layouts.flow_key.size + layouts.flow_key.fields.remote.offset + 15] = 100 + i / 60_000;
      values.writeBigUInt64LE(opened - BigInt(i), i * layouts.flow.size + created.offset);
    }
    flows.updateBatch(keys, values, OTHERS);
    for (const map of [flows, outer]) map.close();

    expect((await agent.client.flows("tap0", 3)).flows).toHaveLength(3);
    expect((await agent.client.flows("tap0")).total).toBe(OTHERS + 1);
    const watched = await agent.watch({ sandbox: "tap0", verdict: "allow" });
    await send(7001);
    await until("the new flow is told", () => watched.events.some(({ event, port }) => event === "allowed" && port === 7001));
    await agent.client.flows("tap0");
    await send(7000);
    await until("the one after it is told", () => watched.events.filter(({ event }) => event === "allowed").length === 2);
    expect(watched.events.filter(({ event }) => event === "allowed").map(({ destination, port }) => [destination, port])).toEqual([[ADDRESS.site4, 7001], [ADDRESS.site4, 7000]]);
    expect(watched.events.filter(({ event }) => event === "unseen")).toEqual([]);
    await watched.end();
  });

  test("explain names group, rule, pin state and what would have to change, and says what the kernel does", async () => {
    const file = path.join(world.dir, "explained.yaml");
    const text = "rules:\n  - deny: 10.0.0.0/8\n  - allow: site.example\n    proto: tcp\n    ports: [80]\n";
    writeFileSync(file, text);
    await attach("tap0", { policy: { file: { path: file, text } } });
    await attach("tap1", { policy: rules("allow@other.example:tcp:80") });
    await world.sibling!.probe(["fetch", "8.8.8.8", "other.example", "80", "/", "A"], 3000);
    const ask = (destination: string, port?: number) => agent.client.explain("tap0", { destination, ...(port === undefined ? {} : { port }) });

    expect(await ask(ADDRESS.site4, 80)).toMatchObject({ verdict: "deny", reason: "no-pin", flows: [{ group: "public", pin: "never-asked" }] });
    expect(await reach(world, ADDRESS.site4)).toBe(false);
    expect(await ask("http://site.example/x")).toMatchObject({ verdict: "allow", lookup: { allowed: true }, flows: [] });
    expect(await ask("https://site.example/x")).toMatchObject({ verdict: "deny", reason: "default-public" });
    expect((await pinned(world)).ok).toBe(true);
    expect(await ask("http://site.example/x")).toMatchObject({ verdict: "allow", reason: "intercepted", flows: [{ address: ADDRESS.site4, pin: "live", connection: "allowed", judged: [{ rule: { number: 2, line: 3, file } }] }] });
    // A name that was not told for the address is refused by the agent, whatever the kernel says of the address.
    expect((await world.guest.probe(["http", ADDRESS.site4, "80", "other.example", "/"], 1500)).ok).toBe(false);
    const port = await ask("https://site.example/x");
    expect(port).toMatchObject({ verdict: "deny", reason: "default-public", flows: [{ pin: "live" }] });
    expect(port.why.join("\n")).toMatch(/rule 2 .*explained\.yaml:3\) speaks of port 80/);
    expect(port.change.join("\n")).toMatch(/add tcp port 443 to rule 2/);

    const foreign = await ask(ADDRESS.site4b, 80);
    expect(foreign).toMatchObject({ verdict: "deny", flows: [{ pin: "other-sandbox" }] });
    expect(foreign.why.join("\n")).toMatch(/was told to tap1 \(other\.example\): that grants tap0 nothing/);
    const denied = await ask("10.9.9.9", 80);
    expect(denied).toMatchObject({ reason: "rule-deny", flows: [{ group: "private", group_source: expect.stringMatching(/10\.0\.0\.0\/8.*special_purpose/), judged: [{ rule: { number: 1, line: 2 } }] }] });
    expect(await ask(ADDRESS.metadata4, 80)).toMatchObject({ reason: "default-metadata", flows: [{ group_source: expect.stringMatching(/AWS EC2 IMDS/) }] });
    expect(await ask(ADDRESS.gateway4, 80)).toMatchObject({ flows: [{ group: "host", group_source: "an address of the host" }] });
    expect(await ask("nobody.example", 80)).toMatchObject({ verdict: "deny", reason: "lookup", lookup: { allowed: false } });
    const shown = await agent.run("explain", "tap0", "https://site.example/x");
    expect(shown.status).toBe(1);
    expect(shown.out).toMatch(/^tap0 → site\.example:443 tcp: denied \(default-public\)[\s\S]*To change that:/);

    // The kernel's own word for each of these, from its counters.
    const counted = async (reason: string): Promise<number> => (await agent.client.sandbox("tap0")).counters.filter((row) => row.reason === reason && row.direction === "egress").reduce((sum, { packets }) => sum + packets, 0);
    for (const [address, number] of [[ADDRESS.site4, 443], [ADDRESS.site4b, 80], ["10.9.9.9", 80], [ADDRESS.metadata4, 80], [ADDRESS.site4, 80]] as const) {
      const { reason } = await agent.client.explain("tap0", { destination: address, port: number });
      const before = await counted(reason);
      await world.guest.probe(["tcp", address, String(number)], 700);
      expect(await counted(reason), `${address} ${number} ${reason}`).toBeGreaterThan(before);
    }
    await agent.client.detach("tap0");
    await agent.client.detach("tap1");
  });

  test("the floor narrows every policy, and reload puts another one in force", async () => {
    const floor = path.join(world.dir, "floor.yaml");
    writeFileSync(floor, "default_ingress: allow\nrules: [{deny: other.example}, {allow: public, proto: tcp, ports: [80]}]\nlimits: {pins: 100}\n");
    agent.configure(`floor: ${floor}\n`);
    expect((await agent.client.reload()).changed).toEqual(["floor"]);
    await attach("tap0", { policy: rules("allow@site.example", "allow@other.example") });
    expect((await agent.client.sandbox("tap0"))).toMatchObject({ policy: { floor }, limits: expect.arrayContaining([expect.objectContaining({ what: "pins", limit: 100 })]) });
    expect((await pinned(world)).ok).toBe(true);
    expect((await pinned(world, "other.example")).ok).toBe(false);
    expect((await world.guest.probe(["tcp", ADDRESS.site4, "443"], 700)).ok).toBe(false);
    const explained = await agent.client.explain("tap0", { destination: "https://site.example" });
    expect(explained).toMatchObject({ verdict: "deny", reason: "floor" });
    expect(explained.why.join("\n")).toMatch(/the floor denies/);

    writeFileSync(floor, "default_ingress: allow\nrules: [{deny: site.example}, {allow: public}]\n");
    expect((await agent.client.reload()).changed).toEqual(["floor"]);
    expect(await reach(world, ADDRESS.site4)).toBe(false);
    expect((await pinned(world, "other.example")).ok).toBe(true);

    // A floor that is wrong changes nothing.
    writeFileSync(floor, "rules: [{alow: public}]\n");
    await expect(agent.client.reload()).rejects.toMatchObject({ code: "E_CONFIG" });
    expect(await reach(world, ADDRESS.site4)).toBe(false);
    agent.configure("");
    expect((await agent.client.reload()).changed).toEqual(["floor"]);
    expect((await pinned(world)).ok).toBe(true);
    await agent.client.detach("tap0");
  });

  test("a bad configuration changes nothing, by reload and by SIGHUP", async () => {
    await attach("tap0", { policy: rules("allow@site.example:tcp:80") });
    const good = readFileSync(agent.config, "utf8");
    afterwards = () => writeFileSync(agent.config, good);
    for (const [text, words] of [
      ["metrics: nowhere", /metrics/], ["polcy: x.yaml", /did you mean policy/], ["groups: {public: [1.2.3.0/24]}", /groups/], ["groups: {metadata: [10.0.0.1/8]}", /bits set behind/],
      ["floor: absent.yaml", /absent\.yaml/], ["sandboxes: many", /sandboxes/], ["attach: [{mach: tap*}]", /did you mean match/], ["limits: {pins: 1}", /limits\.pins/], ["a: &x 1\nb: *x", /alias/],
    ] as const) {
      const key = text.split(":")[0]!;
      writeFileSync(agent.config, `${good.split("\n").filter((line) => !line.startsWith(`${key}:`)).join("\n")}${text}\n`);
      const error = await agent.client.reload().then(() => null, (thrown: { code: string; message: string }) => thrown);
      expect(error?.message, text).toMatch(words);
      expect(["E_CONFIG", "E_GROUPS"], text).toContain(error?.code);
    }
    agent.service.child.kill("SIGHUP");
    await agent.notice(/not taken, nothing has changed/);
    expect(await agent.states()).toEqual({ tap0: "enforced" });
    writeFileSync(agent.config, `${good}groups: {metadata: [${ADDRESS.site4}/32]}\n`);
    agent.service.child.kill("SIGHUP");
    await agent.notice(/groups changed/);
    expect(await agent.client.explain("tap0", { destination: ADDRESS.site4, port: 80 })).toMatchObject({ flows: [{ group: "metadata", group_source: expect.stringMatching(/configuration adds/) }] });
    writeFileSync(agent.config, good);
    const { changed, restart } = await agent.client.reload();
    expect({ changed, restart }).toEqual({ changed: ["groups"], restart: [] });
    writeFileSync(agent.config, good.replace("sandboxes: 64", "sandboxes: 65"));
    expect((await agent.run("reload")).out).toMatch(/sandboxes: at the next start/);
    writeFileSync(agent.config, good);
    await agent.client.detach("tap0");
  });

  test("a second agent is refused, with the same run directory or another", async () => {
    for (const args of [[], ["--run-dir", path.join(world.dir, "run2")]]) {
      const second = agent.launch(...args);
      await expect(second.line((line) => line.includes('"ready"'))).rejects.toThrow(/E_AGENT_RUNS/);
      expect(second.ended?.status).toBe(69);
    }
    expect(await agent.names()).toEqual([]);
  });

  test("attach in the foreground and the agent respect each other", async () => {
    const alone = await world.enforce({ args: ["--foreground"] });
    await expect(attach("tap0")).rejects.toMatchObject({ code: "E_TAP_TAKEN" });
    expect(await alone.stop()).toBe(0);
    await attach("tap0");
    const refused = world.startEnforcer({ args: ["--foreground"] });
    await expect(refused.ready()).rejects.toThrow(/E_TAP_TAKEN/);
    expect(await reach(world, ADDRESS.metadata4)).toBe(false);
    await agent.client.detach("tap0");
  });

  test("attach while the agent is started anew waits for it, and does not become an enforcer in the foreground", async () => {
    await attach("tap1");
    const ask = (): Service => world.own(world.host.start([ENFORCER, "attach", "tap0", "--run-dir", world.runDir, "--bpffs", world.bpffs]));
    const waits = (service: Service): Promise<unknown> => until(`waiting: ${service.report()}`, () => service.errors.some((line) => line.includes("waited for")));
    const through = async (service: Service): Promise<void> => {
      await until(`end of ${service.report()}`, () => service.ended !== null);
      expect(service.ended?.status, service.report()).toBe(0);
      expect(service.lines.join("\n")).toMatch(/^enforcing tap0 /);
      expect(await agent.states()).toEqual({ tap0: "enforced", tap1: "enforced" });
      await agent.client.detach("tap0");
    };
    // Between two agents: what the first has left says that there will be another.
    await agent.kill();
    const between = ask();
    await waits(between);
    await agent.restart();
    await through(between);
    // One that starts, or ends, holds its lock and has no socket.
    await agent.stop();
    const lock = path.join(world.runDir, "agent", "agent.lock");
    const holder = world.own(world.host.start(["flock", "--no-fork", lock, "sh", "-c", "echo held; exec sleep 600"]));
    await holder.line((line) => line === "held");
    const starting = ask(), listing = world.own(world.host.start([ENFORCER, "list", "--run-dir", world.runDir]));
    await waits(starting);
    await waits(listing);
    // Looking at the lock does not take it: a start beside it is refused by its holder only.
    await holder.stop("SIGKILL");
    await agent.restart();
    await through(starting);
    await until("the list", () => listing.ended !== null);
    expect(listing.lines.join("\n")).toContain("tap1");
    await agent.client.detach("tap1");
  });

  test("attach where an agent was and none comes holds the tap itself", async () => {
    await attach("tap1");
    await agent.stop();
    const alone = world.own(world.host.start([ENFORCER, "attach", "tap0", "--run-dir", world.runDir, "--bpffs", world.bpffs, "--metrics", "off"]));
    await alone.line((line) => line.startsWith("enforcing tap0"));
    expect(alone.errors.join("\n")).toMatch(/waited for[\s\S]*no agent has come/);
    expect(await alone.stop()).toBe(0);
    await agent.restart();
    expect(await agent.states()).toEqual({ tap1: "enforced" });
    await agent.client.detach("tap1");
  });

  test("detach takes away what an enforcer in the foreground left when it was killed", async () => {
    const killed = await world.enforce({ args: ["--foreground"] });
    expect((await agent.run("detach", "tap0", "--bpffs", world.bpffs)).err).toMatch(/serves it in the foreground.*E_TAP_TAKEN/s);
    await killed.service.stop("SIGKILL");
    expect(await reach(world, ADDRESS.metadata4)).toBe(false);
    await expect(attach("tap0")).rejects.toMatchObject({ code: "E_TAP_TAKEN" });
    const detached = await agent.run("detach", "tap0", "--bpffs", world.bpffs);
    expect(detached.out, detached.err).toBe("detached tap0\n");
    expect(await reach(world, ADDRESS.metadata4)).toBe(true);
    expect((await world.host.must(["cat", "/proc/sys/net/ipv4/conf/tap0/rp_filter"])).trim()).toBe("0");
    await attach("tap0");
    await agent.client.detach("tap0");
  });

  test("A22 a sandbox with the tap, the name, the address and the ifindex of a former one has nothing of it", async () => {
    const policy = rules("allow@site.example:tcp:80");
    await attach("tap0", { policy });
    const first = await agent.client.sandbox("tap0");
    expect((await pinned(world)).ok).toBe(true);
    expect((await agent.client.pins("tap0")).pins).toHaveLength(1);
    await agent.client.detach("tap0");
    await attach("tap0", { policy });
    const second = await agent.client.sandbox("tap0");
    expect({ ifindex: second.ifindex, slot: second.slot, adopted: second.adopted }).toEqual({ ifindex: first.ifindex, slot: first.slot, adopted: false });
    expect(second.generation).not.toBe(first.generation);
    expect(await agent.client.pins("tap0")).toEqual({ pins: [], former: [] });
    expect((await agent.client.flows("tap0")).total).toBe(0);
    expect(second.counters.filter(({ reason }) => reason === "rule-allow")).toEqual([]);
    expect(await reach(world, ADDRESS.site4)).toBe(false);
    expect((await agent.client.explain("tap0", { destination: ADDRESS.site4, port: 80 })).flows[0]).toMatchObject({ pin: "never-asked" });
    await agent.client.detach("tap0");
  });
});

describe("taps that come and go", () => {
  let world: World;
  let agent: TestAgent;
  beforeAll(async () => {
    world = await World.create({ zone: ZONE });
    agent = await TestAgent.start(world);
  });
  afterAll(async () => {
    await agent?.stop();
    await world?.close();
  });
  const tap = (line: string): Promise<string> => world.host.ip(line);

  test("attach --wait takes the tap when it appears, and when it comes back", async () => {
    const waiting = await agent.run("attach", "late0", "--wait", "--rule", "allow@public:tcp:443");
    expect(waiting).toMatchObject({ status: 0, out: "waiting for late0 (late0)\n" });
    expect(await agent.states()).toEqual({ late0: "waiting" });
    expect((await agent.run("policy", "set", "late0", "--rule", "allow@public:tcp:443")).out).toBe("policy of late0 is noted, for when its tap is there\n");
    expect((await agent.run("policy", "diff", "late0", "--rule", "allow@public:tcp:443")).status).toBe(0);
    expect(await agent.run("policy", "diff", "late0", "--rule", "deny@public")).toMatchObject({ status: 1, out: expect.stringMatching(/^- 1 +egress +allow +public +tcp +443$/m) });
    for (let round = 0; round < 2; round++) {
      await tap("tuntap add late0 mode tap");
      const watching = await agent.watch();
      await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ late0: "enforced" });
      expect((await agent.client.sandbox("late0")).hooks.every(({ position }) => position === 0)).toBe(true);
      expect((await agent.client.policy("late0")).request).toEqual(rules("allow@public:tcp:443"));
      await tap("link del late0");
      await watching.seen({ event: "detached", sandbox: "late0", why: "deleted" });
      await watching.end();
      await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ late0: "waiting" });
    }
    await agent.client.detach("late0");
    expect(await agent.names()).toEqual([]);
  });

  test("a device is not a sandbox: who names a renamed tap, or one that was deleted, is told whose it is", async () => {
    await tap("tuntap add name0 mode tap\naddr add 10.67.0.1/30 dev name0\nlink set name0 up");
    await agent.client.attach({ tap: "name0" });
    await tap("link set name0 name name1");
    await expect.poll(async () => (await agent.client.sandbox("name0")).tap, { timeout: 60_000 }).toBe("name1");
    for (const verb of ["status", "detach"]) expect(await agent.run(verb, "name1")).toMatchObject({ status: 65, err: expect.stringMatching(/the device is that of the sandbox name0\n {2}remedy: name name0/) });
    expect((await agent.client.sandbox("name0")).hooks.map(({ position }) => position)).toEqual([0, 0]);
    await tap("link set name1 name name0");
    await expect.poll(async () => (await agent.client.sandbox("name0")).tap, { timeout: 60_000 }).toBe("name0");
    await tap("link del name0");
    await expect.poll(() => agent.names(), { timeout: 60_000 }).toEqual([]);
    expect(await agent.run("status", "name0")).toMatchObject({ status: 65, err: expect.stringMatching(/was deleted under its policy.*\n {2}remedy: attach it, or open the name with enforcer detach name0/) });
    expect((await agent.run("detach", "name0")).status).toBe(0);
    expect((await agent.run("status", "name0")).err).toMatch(/there is no sandbox name0\n/);
  });

  test("patterns of the configuration attach by themselves, with their policy; what does not match is left alone", async () => {
    const file = path.join(world.dir, "pattern.yaml");
    writeFileSync(file, "rules: [{allow: public, proto: tcp, ports: [443]}]\n");
    await tap("tuntap add vm-0 mode tap");
    agent.configure(`attach: [{match: "vm-*", policy: pattern.yaml}]\n`);
    expect((await agent.client.reload()).changed).toEqual(["attach"]);
    expect(await agent.states()).toEqual({ "vm-0": "enforced" });
    await tap("tuntap add vm-1 mode tap\ntuntap add other0 mode tap\nlink add vm-br type bridge");
    await expect.poll(() => agent.states(), { timeout: 60_000 }).toEqual({ "vm-0": "enforced", "vm-1": "enforced" });
    expect(await agent.client.sandbox("vm-1")).toMatchObject({ origin: "pattern", policy: { file } });
    // Its policy is the configuration's: a reload changes it.
    writeFileSync(file, "rules: [{allow: public, proto: tcp, ports: [8443]}]\n");
    await agent.client.reload();
    expect(JSON.stringify((await agent.client.policy("vm-1")).report)).toContain("8443");
    await tap("link set vm-1 name vm-2");
    await expect.poll(async () => (await agent.client.sandbox("vm-1")).tap, { timeout: 60_000 }).toBe("vm-2");
    await tap("link del vm-0\nlink del vm-2\nlink del other0\nlink del vm-br");
    await expect.poll(() => agent.names(), { timeout: 60_000 }).toEqual([]);
    agent.configure("");
    await agent.client.reload();
  });

  test("A22 another device gets a tap's ifindex, with the agent and without: it has nothing of the sandbox", async () => {
    const number = 4711;
    // As the enforcer would set them: what is somebody else's is not taken back to what the sandbox's tap had.
    const settings = ["ipv4/conf/other0/rp_filter", "ipv4/conf/other0/arp_ignore", "ipv4/conf/other0/arp_announce"];
    const untouched = async (): Promise<void> => expect((await world.host.must(["cat", ...settings.map((one) => `/proc/sys/net/${one}`)])).trim().split("\n")).toEqual(["1", "1", "2"]);
    const make = async (name: string): Promise<Service> => {
      const service = world.own(world.host.start([tool("frames"), name, "--ifindex", String(number)]));
      await service.line((line) => line === "ready");
      await tap(`link set ${name} up\naddr add 10.66.0.1/30 dev ${name}`);
      return service;
    };
    const gone = (name: string): Promise<unknown> => until(`${name} gone`, async () => (await world.host.run(["ip", "link", "show", name])).status !== 0);
    const slots = async (): Promise<number[]> => {
      const dump = JSON.parse(await world.host.must(["bpftool", "-j", "map", "dump", "pinned", path.join(world.bpffs, "enforcer", "agent-of-the-host", maps, "taps")])) as { formatted?: { value: { ifindex: number; slot: number } } }[];
      return dump.flatMap(({ formatted }) => (formatted?.value.ifindex === number ? [formatted.value.slot] : []));
    };
    const maps = readdirSync(path.join(world.bpffs, "enforcer", "agent-of-the-host")).find((entry) => entry.startsWith("maps-"))!;
    for (const alive of [true, false]) {
      const first = await make("reuse0");
      await agent.client.attach({ tap: "reuse0", policy: rules("allow@public") });
      const before = await agent.client.sandbox("reuse0");
      expect(before.ifindex).toBe(number);
      if (alive) agent.service.child.kill("SIGSTOP");
      else await agent.kill();
      await first.stop("SIGKILL");
      await gone("reuse0");
      const second = await make("other0");
      await world.host.sysctl(Object.fromEntries(settings.map((one) => [one, one.endsWith("announce") ? 2 : 1])));
      if (alive) agent.service.child.kill("SIGCONT");
      else {
        // Killed while it detached.
        const file = path.join(world.runDir, "agent", "reuse0.json");
        writeFileSync(file, JSON.stringify({ ...(JSON.parse(readFileSync(file, "utf8")) as object), phase: "detaching" }));
      }
      if (alive) await expect.poll(() => agent.names(), { timeout: 60_000 }).toEqual([]);
      else await agent.restart();
      expect(await agent.names()).toEqual([]);
      expect(await slots()).toEqual([]);
      await untouched();
      await agent.client.attach({ tap: "other0", policy: rules("allow@public:tcp:443") });
      const after = await agent.client.sandbox("other0");
      expect({ ifindex: after.ifindex, adopted: after.adopted }).toEqual({ ifindex: number, adopted: false });
      expect(after.generation).not.toBe(before.generation);
      expect(after.hooks.map(({ position }) => position)).toEqual([0, 0]);
      expect((await slots()).length).toBe(1);
      await agent.client.detach("other0");
      await second.stop("SIGKILL");
      await gone("other0");
    }
  });

  test("A24 two guests with the same address and the same MAC, in two namespaces: each has its own names and its own ways", async () => {
    const jail = new Namespace(`${world.id}-jail2`), twin = new Namespace(`${world.id}-twin`);
    for (const { name } of [jail, twin]) await must(["ip", "netns", "add", name]);
    try {
      const wire = world.own(jail.start([tool("tapwire"), "tap0", twin.name, "eth0"]));
      await wire.line((line) => line === "ready");
      // The jail's way out is translated, as jailers do it: the host cannot tell the two guests by their address either.
      await world.host.ip(`link add jail0 type veth peer name eth0 netns ${jail.name}\nlink set jail0 up\naddr add 10.201.0.1/30 dev jail0`);
      await jail.ip(`link set lo up\nlink set eth0 up\naddr add 10.201.0.2/30 dev eth0\nroute add default via 10.201.0.1\nlink set tap0 address ${MAC.tap0}\nlink set tap0 up\naddr add ${ADDRESS.gateway4}/30 dev tap0`);
      await jail.sysctl({ "ipv4/ip_forward": 1 });
      await jail.must(["nft", "-f", "-"], { input: "table ip out {\nchain post {\ntype nat hook postrouting priority 100;\noifname \"eth0\" masquerade\n}\n}" });
      await world.host.must(["nft", "-f", "-"], { input: "table ip jails {\nchain post {\ntype nat hook postrouting priority 100;\nip saddr 10.201.0.0/30 masquerade\n}\n}" });
      await twin.ip(`link set eth0 address ${MAC.guest}\nlink set eth0 up\naddr add ${ADDRESS.guest4}/30 dev eth0\nroute add default via ${ADDRESS.gateway4}`);
      const there = `${jail.name}/tap0`;
      await agent.client.attach({ tap: "tap0", policy: rules("allow@site.example:tcp:8080", "allow@other.example:tcp:8080") });
      await agent.client.attach({ tap: "tap0", netns: jail.name, policy: rules("allow@site.example:tcp:8080", "allow@site.example:tcp:80") });
      const ask = async (guest: Namespace, name: string): Promise<boolean> => (await guest.probe(["fetch", "8.8.8.8", name, "8080", "/", "A"], 3000)).ok;
      const reach = async (guest: Namespace, address: string, ms: number): Promise<boolean> => (await guest.probe(["tcp", address, "8080"], ms)).ok;
      const apart = async (): Promise<void> => {
        expect(await reach(world.guest, ADDRESS.site4, 3000)).toBe(true);
        expect(await reach(twin, ADDRESS.site4b, 400)).toBe(false);
        expect(await ask(twin, "other.example")).toBe(false);
      };
      // What one was told opens nothing for the other.
      expect(await ask(world.guest, "site.example")).toBe(true);
      expect(await ask(world.guest, "other.example")).toBe(true);
      expect(await reach(twin, ADDRESS.site4, 400)).toBe(false);
      expect((await agent.client.pins(there)).pins).toEqual([]);
      expect((await agent.client.explain(there, { destination: ADDRESS.site4, port: 8080 })).flows[0]).toMatchObject({ pin: "other-sandbox" });
      await apart();
      expect(await ask(twin, "site.example")).toBe(true);
      expect((await agent.client.pins(there)).pins.map(({ name }) => name)).toEqual(["site.example"]);
      await agent.kill();
      await apart();
      await agent.restart();
      expect(await agent.states()).toEqual({ tap0: "enforced", [there]: "enforced" });
      await apart();
      expect(await ask(twin, "site.example")).toBe(true);
      // What the agent ends itself finds its way back as well, and is each one's own: DNS over TCP, and a name that is looked at.
      for (const family of ["udp", "tcp"]) expect((await twin.probe(["dns", family, "9.9.9.9", "site.example", "A"], 3000)).ok, family).toBe(true);
      expect((await twin.probe(["http", ADDRESS.site4, "80", "site.example", "/"], 3000)).ok).toBe(true);
      expect((await twin.probe(["http", ADDRESS.site4, "80", "other.example", "/"], 3000)).ok).toBe(false);
      expect((await agent.client.sandbox(there)).counters.filter(({ reason }) => reason === "intercepted").length).toBeGreaterThan(0);
      expect((await agent.client.sandbox("tap0")).counters.filter(({ reason }) => reason === "intercepted")).toEqual([]);
      // The end of one is not the other's.
      await agent.client.detach("tap0");
      expect(await reach(twin, ADDRESS.site4b, 400)).toBe(false);
      await agent.client.detach(there);
      await wire.stop("SIGKILL");
    } finally {
      // Not by who is in them: the agent's own thread may be, for a moment.
      for (const { name } of [jail, twin]) await run(["ip", "netns", "del", name]);
    }
  });

  test("a tap in another network namespace, with an address that the host has too", async () => {
    const name = `${world.id}-jail`;
    await must(["ip", "netns", "add", name]);
    try {
      await must(["ip", "-n", name, "tuntap", "add", "tap0", "mode", "tap"]);
      await must(["ip", "-n", name, "addr", "add", `${ADDRESS.gateway4}/30`, "dev", "tap0"]);
      await must(["ip", "-n", name, "link", "set", "tap0", "up"]);
      const attached = await agent.run("attach", "tap0", "--netns", name);
      expect(attached.out, attached.err).toMatch(new RegExp(`^enforcing ${name}/tap0 `));
      await agent.client.attach({ tap: "tap0" });
      expect(await agent.states()).toEqual({ [`${name}/tap0`]: "enforced", tap0: "enforced" });
      expect(await agent.client.sandbox(`${name}/tap0`)).toMatchObject({ tap: "tap0", hooks: [{ position: 0 }, { position: 0 }] });
      // The host's own addresses are the host's there too.
      expect(await agent.client.explain(`${name}/tap0`, { destination: ADDRESS.host4 })).toMatchObject({ flows: [{ group: "host" }] });
      await expect(agent.client.attach({ tap: "tap0", netns: "nothere" })).rejects.toMatchObject({ code: "E_NETNS" });
      await agent.kill();
      await agent.restart();
      expect(await agent.states()).toEqual({ [`${name}/tap0`]: "enforced", tap0: "enforced" });
      expect(await agent.client.sandbox(`${name}/tap0`)).toMatchObject({ adopted: true });
      await agent.client.detach(`${name}/tap0`);
      await agent.client.detach("tap0");
    } finally {
      await must(["ip", "netns", "del", name]);
    }
  });
});
