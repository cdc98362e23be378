/** A floor that looks into requests, from a guest on a real tap: whatever the sandbox's own policy says of TLS, of names or of addresses. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ADDRESS, type Service, type World } from "../lib/world.mjs";
import { TestAgent } from "./daemon.js";
import "./stage.js"; // its bounds for tests and hooks
import { openWorld, tell } from "./tls-world.js";

const FLOOR = `
default_ingress: allow
rules:
  - {allow: shop.example, methods: [GET], paths: ["/open/**"]}
  - {allow: tenant.example, proto: tcp, ports: [443]}
tls: {intercept: true, upstream_ca: [root.pem]}
`;
const POLICIES = {
  "a rule by name": "rules: [{allow: shop.example, proto: tcp, ports: [443]}, {allow: tenant.example}]",
  "everything public": "rules: [{allow: public}]",
  "everything": "default_egress: allow\nrules: []",
  "the address": `rules: [{allow: ${ADDRESS.site4}, proto: tcp}, {allow: shop.example}, {allow: tenant.example}]`,
  "names that are not verified": "rules: [{allow: shop.example}, {allow: tenant.example}]\ntls: {verify_names: false}",
  "interception with a bypass": "rules: [{allow: shop.example}, {allow: tenant.example}]\ntls: {intercept: true, upstream_ca: [root.pem], bypass: [shop.example, \"*.example\"]}",
};
let world: World, origin: Service, agent: TestAgent;

beforeAll(async () => {
  ({ world, origin } = await openWorld());
  writeFileSync(path.join(world.dir, "floor.yaml"), FLOOR);
  agent = await TestAgent.start(world, `floor: ${path.join(world.dir, "floor.yaml")}\n`);
  await agent.client.attach({ tap: "tap0", policy: { rules: ["deny@any"] } });
});
afterAll(async () => {
  await agent?.service.stop();
  await world?.close();
});

const curl = async (target: string, ...args: string[]): Promise<string> => {
  const { stdout } = await world.guest.run(["curl", "-sS", "--max-time", "10", "--cacert", path.join(world.runDir, "agent", "tap0.ca.pem"), "--resolve", `shop.example:443:${ADDRESS.site4}`, "--resolve", `tenant.example:443:${ADDRESS.site4}`, "-w", " %{http_code}", ...args, target], { timeoutMs: 20_000 });
  return stdout;
};

test.each(Object.entries(POLICIES))("methods and paths hold under a policy of %s", async (_what, text) => {
  await agent.client.setPolicy("tap0", { file: { path: path.join(world.dir, "policy.yaml"), text } });
  for (const name of ["shop.example", "tenant.example"]) await tell(world, name);
  for (const version of ["--http2", "--http1.1"]) {
    const before = origin.lines.length;
    expect(await curl("https://shop.example/open/a", version)).toBe("origin shop.example /open/a 200");
    expect(await curl("https://tenant.example/x", version, "-d", "body")).toBe("origin tenant.example /x 200");
    expect(origin.lines.length).toBe(before + 2);
    for (const args of [["-d", "body"], ["-X", "DELETE"]]) expect(await curl("https://shop.example/open/a", version, ...args), args.join(" ")).toMatch(/ 403$/);
    expect(await curl("https://shop.example/closed", version)).toMatch(/ 403$/);
    expect(await curl("https://shop.example/open/../closed", version, "--path-as-is")).toMatch(/ 40[03]$/);
    // Another's name on the same address, which both let through: the request says whose it is.
    expect(await curl("https://tenant.example/closed", version, "-H", "Host: shop.example")).toMatch(/ 421$/);
    expect(origin.lines.length, "nothing else came to the server").toBe(before + 2);
  }
});

test("whose certificates count is the floor's to say, and who answers for its names: a policy's authorities and resolvers do not", async () => {
  const floor = path.join(world.dir, "floor.yaml");
  const policy = (text: string) => ({ file: { path: path.join(world.dir, "policy.yaml"), text } });
  const own = "rules: [{allow: tenant.example}]\ntls: {intercept: true, upstream_ca: [root.pem]}\ndns: {upstreams: [1.1.1.1]}\n";
  try {
    writeFileSync(floor, FLOOR.replace(", upstream_ca: [root.pem]", ""));
    await agent.client.reload();
    world.services.internet.clear();
    const { warnings } = await agent.client.setPolicy("tap0", policy(own));
    expect(warnings.join("\n")).toMatch(/dns\.upstreams are not asked.*floor\.yaml[\s\S]*upstream_ca and trust_host_cas count only/);
    await tell(world, "tenant.example");
    expect(world.services.internet.seen("dns").map(({ server }) => String(server)).every((server) => server === ADDRESS.resolver4)).toBe(true);
    const before = origin.lines.length;
    expect(await curl("https://tenant.example/x")).toMatch(/ 502$/);
    expect(origin.lines.length).toBe(before);
    // Names that the floor passes on are the policy's own matter; so are all resolvers where no address opens by a name.
    writeFileSync(floor, "default_ingress: allow\nrules: [{allow: public}]\ntls: {intercept: true, bypass: [tenant.example]}\n");
    await agent.client.reload();
    world.services.internet.clear();
    const { warnings: fewer } = await agent.client.setPolicy("tap0", policy(own));
    expect(fewer.join("\n")).not.toMatch(/upstreams/);
    await tell(world, "tenant.example");
    expect(world.services.internet.seen("dns").map(({ server }) => String(server)).every((server) => server === "1.1.1.1")).toBe(true);
    expect(await curl("https://tenant.example/x")).toBe("origin tenant.example /x 200");
  } finally {
    writeFileSync(floor, FLOOR);
    await agent.client.reload();
  }
});
