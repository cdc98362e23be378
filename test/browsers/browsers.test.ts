/**
 * make test-browsers: Chromium, Firefox and Deno (rustls) in a guest behind a real tap, with the sandbox's CA in their own trust stores
 * and names found by DNS: tests 2, 9, 10 and 12 of TLS. Not a part of `make test`, for what it installs is half a gigabyte.
 */
import { readFileSync, mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ClientHello, HelloReader } from "../../src/tls/hello.js";
import { type Enforcer, must, type Service, until, type World } from "../lib/world.mjs";
import "../netns/stage.js"; // its bounds for tests and hooks
import { byDns, openWorld } from "../netns/tls-world.js";

const NAME = "shop.example", BYPASSED = "bank.example", DENIED = "other.example";
const DENO = path.join(import.meta.dirname, "build/node_modules/.bin/deno");
let world: World, origin: Service, enforcer: Enforcer, ca: string, own: string;
beforeAll(async () => {
  ({ world, origin } = await openWorld({ script: readFileSync(path.join(import.meta.dirname, "origin.cjs"), "utf8") }));
  enforcer = await world.enforce({ policy: `rules: [{allow: ${NAME}}, {allow: ${BYPASSED}}]\ntls: {intercept: true, upstream_ca: [root.pem], bypass: [${BYPASSED}]}\n` });
  ca = path.join(world.runDir, "tap0.ca.pem");
  own = path.join(world.dir, "root.pem");
});
afterAll(async () => {
  await enforcer?.stop();
  await world?.close();
});

interface Said { event: string; octets?: string; name?: string | null; host?: string; version?: string; path?: string; agent?: string; told?: Record<string, unknown> }
/** What the origin says from now on. */
function saying(): () => Said[] {
  const from = origin.lines.length;
  return () => origin.lines.slice(from).filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Said);
}
/** A database of NSS that trusts these authorities. */
async function trusting(folder: string, ...authorities: string[]): Promise<void> {
  mkdirSync(folder, { recursive: true });
  await must(["certutil", "-N", "-d", `sql:${folder}`, "--empty-password"]);
  for (const [i, file] of authorities.entries()) await must(["certutil", "-A", "-d", `sql:${folder}`, "-n", `ca${i}`, "-t", "C,,", "-i", file]);
}
let homes = 0;
/** A command that opens a page in a browser that has never run before and trusts these authorities. */
const BROWSERS: Record<string, (url: string, ...authorities: string[]) => Promise<string[]>> = {
  async Chromium(url, ...authorities) {
    const home = path.join(world.dir, `home${homes++}`);
    await trusting(path.join(home, ".pki/nssdb"), ...authorities);
    return ["env", `HOME=${home}`, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run", `--user-data-dir=${home}/profile`, "--remote-debugging-port=0", url];
  },
  async Firefox(url, ...authorities) {
    const home = path.join(world.dir, `home${homes++}`), profile = path.join(home, "profile");
    await trusting(profile, ...authorities);
    writeFileSync(path.join(profile, "user.js"), `user_pref("network.trr.mode", 5);\nuser_pref("datareporting.policy.dataSubmissionEnabled", false);\nuser_pref("browser.aboutwelcome.enabled", false);\n`);
    return ["env", `HOME=${home}`, "firefox-esr", "--headless", "--no-remote", "--profile", profile, url];
  },
};
/** Opens a page until something is so. */
async function browse<T>(browser: string, url: string, authorities: readonly string[], what: string, probe: () => T | undefined): Promise<T> {
  const command = await (BROWSERS[browser] as (url: string, ...authorities: string[]) => Promise<string[]>)(url, ...authorities);
  const running = world.own(world.guest.start(byDns(world, command)));
  try {
    return await until(`${what} in\n${origin.lines.slice(-20).map((line) => line.slice(0, 300)).join("\n")}\n`, () => {
      const seen = probe();
      if (seen === undefined && running.ended !== null) throw new Error(running.report());
      return seen;
    }) as T;
  } finally {
    await running.stop();
  }
}
const WHOLE = { get: `origin ${NAME} /get`, upload: "3000000", download: 3_000_000, events: "1 2 3", socket: "hello", many: 50 };

describe.each(Object.keys(BROWSERS))("%s", (browser) => {
  test("TLS tests 10, 12: a page with uploads, events, a WebSocket and fifty requests at once comes whole, over HTTP/2", async () => {
    const said = saying();
    const { told } = await browse(browser, `https://${NAME}/page`, [ca], "what the page tells", () => said().find(({ event }) => event === "told"));
    expect(told).toEqual(WHOLE);
    const requests = said().filter(({ event }) => event === "request");
    expect(requests.every(({ host, name }) => host === NAME && name === NAME)).toBe(true);
    expect(requests.filter(({ path: at }) => at !== "/socket").map(({ version }) => version)).toEqual(requests.filter(({ path: at }) => at !== "/socket").map(() => "2.0"));
    expect(requests[0]?.agent).toMatch(browser === "Chromium" ? /Chrome/ : /Firefox/);
  });

  test("TLS tests 2, 9: its own hello, with a GREASE Encrypted Client Hello and a post-quantum share, passes to a host in bypass", async () => {
    const said = saying();
    await browse(browser, `https://${BYPASSED}/b`, [own], "the request", () => said().find(({ event, path: at, host }) => event === "request" && at === "/b" && host === BYPASSED));
    const raw = Buffer.from(said().find(({ event }) => event === "hello")?.octets ?? "", "hex"), reader = new HelloReader();
    expect(reader.push(raw)).toBe("hello");
    const hello = reader.hello as ClientHello;
    console.log(`${browser}: a hello of ${raw.length} octets, the name at ${raw.indexOf(BYPASSED)}, ECH ${hello.ech}, X25519MLKEM768 share ${raw.includes(Buffer.of(0x11, 0xec, 0x04, 0xc0))}, ALPN ${hello.alpn.join(", ")}`);
    expect(hello).toMatchObject({ ech: true, alpn: ["h2", "http/1.1"], serverName: { kind: "name", labels: BYPASSED.split(".") } });
    expect(raw.includes(Buffer.of(0x11, 0xec, 0x04, 0xc0))).toBe(true);
  });

  test("TLS test 12: without the sandbox's CA it ends the handshake and asks nothing", async () => {
    const said = saying();
    // The far side is verified before the guest is answered: a connection there that ends is one that the browser gave up.
    await browse(browser, `https://${NAME}/distrusted`, [], "an ended connection", () => said().find(({ event }) => event === "closed"));
    expect(said().map(({ event }) => event)).toContain("hello");
    expect(said().filter(({ event }) => event === "request")).toEqual([]);
  });

  test("a name that is not allowed is not even found", async () => {
    const said = saying(), before = enforcer.events.length;
    await browse(browser, `https://${DENIED}/denied`, [ca], "a denied question", () => enforcer.events.slice(before).find(({ event, name }) => event === "dns-denied" && name === DENIED));
    expect(said()).toEqual([]);
  });
});

describe("Deno (rustls)", () => {
  const deno = async (trusted: string, clock: string | null = null): Promise<{ stdout: string; stderr: string }> => {
    const script = path.join(world.dir, "client.ts"), home = path.join(world.dir, "deno");
    writeFileSync(script, `
      for (let i = 0; i < 3; i++) console.log(await (await fetch("https://${NAME}/" + i)).text());
      console.log(await (await fetch("https://${NAME}/upload", { method: "POST", body: new Uint8Array(3000000) })).text());
      console.log((await (await fetch("https://${NAME}/download")).arrayBuffer()).byteLength);
      const socket = new WebSocket("wss://${NAME}/socket");
      socket.onopen = () => socket.send("hello");
      socket.onmessage = ({ data }) => { console.log(data); Deno.exit(); };
      socket.onerror = (event) => { console.error(event.message); Deno.exit(1); };`);
    const command = ["env", `DENO_DIR=${home}`, "NO_COLOR=1", DENO, "run", "--allow-net", "--cert", trusted, script];
    return world.guest.run(byDns(world, clock === null ? command : ["faketime", "-f", clock, ...command]), { timeoutMs: 60_000 });
  };
  const served = [...[0, 1, 2].map((i) => `origin ${NAME} /${i}`), "3000000", "3000000", "hello"];
  test.each([null, "-5m", "-12h", "+6d"])("TLS test 12: is served, its clock off by %s", async (clock) => {
    const said = saying();
    const { stdout, stderr } = await deno(ca, clock);
    expect([stderr, ...stdout.trim().split("\n")]).toEqual(["", ...served]);
    expect(said().filter(({ event }) => event === "request").map(({ version }) => version)).toEqual(["2.0", "2.0", "2.0", "2.0", "2.0"]);
  });
  test("TLS test 12: refuses what another CA has signed", async () => {
    const said = saying();
    expect((await deno(own)).stderr).toMatch(/UnknownIssuer|invalid peer certificate/);
    expect(said().filter(({ event }) => event === "request")).toEqual([]);
  });
});
