/** The agent's configuration file: what is understood, and what is refused with its place. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { agentConfigJsonSchema, parseAgentConfig, readAgentConfig } from "../../src/config/agent-config.js";
import type { EnforcerError } from "../../src/errors.js";

const folder = mkdtempSync(path.join(tmpdir(), "enforcer-config-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const file = path.join(folder, "agent.yaml");
writeFileSync(path.join(folder, "floor.yaml"), "rules: [{deny: private}, {allow: public}]\n");
writeFileSync(path.join(folder, "bad.yaml"), "rules: [{alow: private}]\n");

const fault = (text: string): EnforcerError => {
  try {
    parseAgentConfig(text, file);
  } catch (error) {
    return error as EnforcerError;
  }
  throw new Error(`taken: ${text}`);
};

describe("the agent's configuration", () => {
  it("is what the built-in settings are where nothing is written", () => {
    for (const text of ["", "# nothing\n", "{}"]) {
      expect(parseAgentConfig(text, file)).toMatchObject({ runDirectory: "/run/enforcer", bpffs: "/sys/fs/bpf", metrics: { host: "127.0.0.1", port: 9469 }, sandboxes: 1024, floor: null, policy: null, attach: [], upstreams: [] });
    }
  });

  it("is read whole, with the files that it names", () => {
    const config = parseAgentConfig(`
run_dir: /run/other
metrics: "[::1]:9000"
groups: {metadata: [192.0.2.7/32], private: ["2001:db8:1::/48"]}
nat64_prefixes: ["2001:db8:64::/96"]
floor: floor.yaml
limits: {pins: 100}
upstreams: [192.0.2.53, "192.0.2.54:5353"]
attach:
  - {match: "fc-tap?", policy: floor.yaml, netns: jail}
  - {match: "a.b*"}
`, file);
    expect(config).toMatchObject({ runDirectory: "/run/other", metrics: { host: "::1", port: 9000 }, floor: { path: path.join(folder, "floor.yaml") }, limits: { pins: 100 } });
    expect(config.upstreams.map(({ port }) => port)).toEqual([53, 5353]);
    const [first, second] = config.attach;
    expect(first).toMatchObject({ netns: "jail", policy: { path: path.join(folder, "floor.yaml") } });
    expect(["fc-tap1", "fc-tap", "fc-tap12", "xfc-tap1"].map((name) => first!.pattern.test(name))).toEqual([true, false, false, false]);
    expect(["a.b", "a.bc", "axb"].map((name) => second!.pattern.test(name))).toEqual([true, true, false]);
    expect(parseAgentConfig("metrics: off", file).metrics).toBe(null);
    expect(parseAgentConfig('{"sandboxes": 7}', file).sandboxes).toBe(7);
  });

  it.each([
    ["polcy: x", /agent\.yaml:1: polcy: unknown key; did you mean policy/],
    ["a: 1\nsandboxs: 3", /agent\.yaml:2: sandboxs: unknown key; did you mean sandboxes/],
    ["limits:\n  pns: 100", /:2: limits\.pns: unknown key; did you mean pins/],
    ["attach:\n  - match: tap*\n    polcy: x", /:3: attach\.0\.polcy: unknown key; did you mean policy/],
    ["sandboxes: 0", /:1: sandboxes/], ["sandboxes: 5000", /sandboxes/], ["sandboxes: 1.5", /sandboxes/], ["metrics: 9469", /metrics/], ["metrics: localhost:9469", /ADDR:PORT/],
    ["attach: tap*", /attach/], ["attach: [{policy: floor.yaml}]", /attach\.0\.match/], ["upstreams: [dns.example]", /upstreams\.0/], ["groups: {publik: [1.2.3.0/24]}", /groups/],
    ["groups: {private: [1.2.3.4.5]}", /groups\.private\.0/], ["floor: bad.yaml", /bad\.yaml:1.*did you mean allow/s], ["policy: absent.yaml", /absent\.yaml cannot be read/],
    ["- tap0", /the file/], ["a: b: c", /not valid YAML/], ["sandboxes: 3\nsandboxes: 4", /not valid YAML/], ["a: &x [1]\nb: *x", /:2: an alias/], ["sandboxes: 3\n---\nsandboxes: 4", /not valid YAML/],
  ])("%s is refused with its place", (text, words) => {
    const error = fault(text);
    expect(error.code).toBe("E_CONFIG");
    expect(error.message).toMatch(words);
  });

  it("names every fault at once", () => {
    expect(fault("sandboxes: many\nmetrics: 1\npolcy: x").message.split("\n")).toHaveLength(3);
  });

  it("leaves to the groups what only they know", () => {
    expect(fault("groups: {metadata: [10.0.0.1/8]}").code).toBe("E_GROUPS");
    expect(fault("nat64_prefixes: [10.0.0.0/8]").code).toBe("E_GROUPS");
  });

  it("that is named must be there", () => {
    expect(() => readAgentConfig(path.join(folder, "absent.yaml"))).toThrow(expect.objectContaining({ code: "E_CONFIG" }) as Error);
  });

  it("has a JSON schema that refuses unknown keys and describes each", () => {
    const schema = agentConfigJsonSchema() as { additionalProperties: boolean; properties: Record<string, { description?: string }> };
    expect(schema.additionalProperties).toBe(false);
    for (const [key, { description }] of Object.entries(schema.properties)) expect(description, key).toMatch(/\.$/);
  });
});
