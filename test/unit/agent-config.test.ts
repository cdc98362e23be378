/** The agent's configuration file: what is understood, and what is refused with its place. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { isV4, parseAddress, parsePrefix } from "../../src/addresses/address.js";
// Threads run what was built.
import { readAgentConfigApart } from "../../dist/config/read-apart.js";
import { Readings, buildRequested, requestOfText } from "../../dist/agent/policy-source.js";
import { groupTable } from "../../src/addresses/groups.js";
import { agentConfigJsonSchema, agentConfigSchema, parseAgentConfig, readAgentConfig } from "../../src/config/agent-config.js";
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

  it.each([["metrics: 5", "1: metrics: a text is wanted"], ["\nsandboxes: many", "2: sandboxes: a number is wanted"], ["sandboxes: 1.5", "1: sandboxes: a whole number is wanted"], ["sandboxes: 5000", "1: sandboxes: at most 4096 is wanted"],
    ["limits: {flows: 1}", "1: limits.flows: at least 16 is wanted"], ["upstreams: []", "1: upstreams: 1 entry at least is wanted"], ["attach: {match: x}", "1: attach: a list is wanted"], ["attach: [{}]", "1: attach.0.match: a text is wanted, and it is missing"],
    ["run_dir: ''", "1: run_dir: it is empty"], ["- a", "1: the file: a mapping of keys to values is wanted"], ["expedite_rcu: 1", "1: expedite_rcu: true or false is wanted"]])("%j: says what is wanted", (text, words) => {
    expect(fault(text).message).toBe(`${file}:${words}`);
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
    ["- tap0", /the file/], ["a: b: c", /not valid YAML/], ["[".repeat(100_000), /nests more than 64 levels deep/], ["sandboxes: 3\nsandboxes: 4", /not valid YAML/], ["a: &x [1]\nb: *x", /:2: an alias/], ["sandboxes: 3\n---\nsandboxes: 4", /not valid YAML/],
  ])("%s is refused with its place", (text, words) => {
    const error = fault(text);
    expect(error.code).toBe("E_CONFIG");
    expect(error.message).toMatch(words);
  });

  it("names every fault at once", () => {
    expect(fault("sandboxes: many\nmetrics: 1\npolcy: x").message.split("\n")).toHaveLength(3);
  });

  it("takes no floor that puts secrets into requests: it would not", () => {
    writeFileSync(path.join(folder, "secret.yaml"), "rules: [{allow: api.example.com}]\ntls: {intercept: true}\nsecrets: {TOKEN: {from: {env: TOKEN}, allowed_hosts: [api.example.com]}}\n");
    expect(fault("metrics: off\nfloor: secret.yaml")).toMatchObject({ code: "E_CONFIG", message: expect.stringMatching(/agent\.yaml:2: floor: .*secret\.yaml: a floor puts no secrets into requests/) as string, remedy: expect.stringMatching(/policies of the sandboxes/) as string });
    expect(parseAgentConfig("policy: secret.yaml", file).policy).not.toBeNull();
  });

  it("leaves to the groups what only they know", () => {
    expect(fault("groups: {metadata: [10.0.0.1/8]}").code).toBe("E_GROUPS");
    expect(fault("nat64_prefixes: [10.0.0.0/8]").code).toBe("E_GROUPS");
  });

  it("that is named must be there", () => {
    expect(() => readAgentConfig(path.join(folder, "absent.yaml"))).toThrow(expect.objectContaining({ code: "E_CONFIG" }) as Error);
  });

  describe("by its JSON schema", () => {
    const json = agentConfigJsonSchema() as { properties: Record<string, { pattern?: string; items?: { pattern?: string }; additionalProperties?: { items: { pattern: string } } }> };
    const schema = z.fromJSONSchema(json as never);
    const patterns = { metrics: json.properties.metrics!.pattern!, upstreams: json.properties.upstreams!.items!.pattern!, groups: json.properties.groups!.additionalProperties!.items.pattern, nat64: json.properties.nat64_prefixes!.items!.pattern! };
    const octets = (text: string): number[] => [...(parseAddress(text) ?? [])];

    const v4 = fc.ipV4(), v6 = fc.oneof(fc.ipV6(), fc.constantFrom("::", "::1", "1::", "2001:db8::1", "::ffff:192.0.2.1", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:1.2.3.4", "64:ff9b::"));
    const port = fc.integer({ min: 1, max: 65_535 }).map(String);
    const file = fc.constantFrom("floor.yaml", path.join(folder, "floor.yaml"));
    const prefix = fc.oneof(v4, v6, fc.tuple(fc.constantFrom("10.0.0.0", "192.0.2.0", "172.16.0.0"), fc.integer({ min: 24, max: 32 })).map(([address, length]) => `${address}/${length}`), fc.tuple(fc.constantFrom("2001:db8::", "fd00::"), fc.integer({ min: 32, max: 128 })).map(([address, length]) => `${address}/${length}`));
    const usable = (text: string): boolean => { const [a = 0, ...rest] = octets(text); return a !== 0xff && octets(text).some((octet) => octet !== 0) && !(rest[9] === 0xff && rest[10] === 0xff && (rest[11]! >= 224 || rest[11] === 0)); };
    const name = fc.string({ minLength: 1, maxLength: 64 });
    const config = fc.record({
      run_dir: fc.string({ minLength: 1, maxLength: 50 }), bpffs: fc.string({ minLength: 1, maxLength: 50 }),
      metrics: fc.oneof(fc.constant("off"), fc.tuple(v4, port).map((one) => one.join(":")), fc.tuple(v6, port).map(([address, number]) => `[${address}]:${number}`)),
      expedite_rcu: fc.boolean(), sandboxes: fc.integer({ min: 1, max: 4096 }),
      groups: fc.dictionary(fc.constantFrom("host", "metadata", "loopback", "private", "link-local", "multicast", "reserved"), fc.array(prefix.filter((text) => !text.includes(":") || !isV4(parsePrefix(text)!.bytes)), { maxLength: 4 })),
      nat64_prefixes: fc.constantFrom([], ["2001:db8:64::/96"], ["2001:db8::/32", "2001:db9:1::/48"]),
      policy: file, floor: file, limits: fc.record({ flows: fc.integer({ min: 16, max: 1_048_576 }), pins: fc.integer({ min: 16, max: 262_144 }), events_per_second: fc.integer({ min: 0, max: 10_000 }) }, { requiredKeys: [] }),
      upstreams: fc.array(fc.oneof(v4, v6, fc.tuple(v4, port).map((one) => one.join(":")), fc.tuple(v6, port).map(([address, number]) => `[${address}]:${number}`)).filter((text) => usable(/^\[(.*)\]/.exec(text)?.[1] ?? (parseAddress(text) === null ? text.split(":")[0]! : text))), { minLength: 1, maxLength: 4 }),
      attach: fc.array(fc.record({ match: name, policy: file, netns: name }, { requiredKeys: ["match"] }), { maxLength: 3 }),
    }, { requiredKeys: [] });
    const parse = (value: unknown): unknown => parseAgentConfig(JSON.stringify(value), file0);
    const file0 = path.join(folder, "agent.json");

    it("what it allows is taken", () => {
      fc.assert(fc.property(config, (value) => {
        expect(schema.safeParse(value).error).toBe(undefined);
        parse(value);
      }), { numRuns: 400 });
    });

    it("a key that it does not know is refused by both, wherever it stands", () => {
      fc.assert(fc.property(config, fc.stringMatching(/^[a-z_]{3,12}$/), fc.anything({ maxDepth: 1 }).map((one) => (one === undefined ? null : one)), fc.nat(), (value, key, stranger, where) => {
        const places: object[] = [value, ...(value.limits === undefined ? [] : [value.limits]), ...(value.groups === undefined ? [] : [value.groups]), ...(value.attach ?? [])];
        const place = places[where % places.length]! as Record<string, unknown>;
        fc.pre(!(key in place) && !Object.hasOwn(agentConfigSchema.shape, key) && !["flows", "pins", "names", "match", "host", "metadata", "loopback", "private", "multicast", "reserved"].includes(key));
        place[key] = stranger;
        expect(schema.safeParse(value).success).toBe(false);
        expect(() => parse(value)).toThrow(expect.objectContaining({ code: "E_CONFIG", message: expect.stringContaining(key) as string }) as Error);
        delete place[key];
      }), { numRuns: 300 });
    });

    it("its patterns are the forms that are read", () => {
      const one = <T,>(work: () => T): boolean => {
        try {
          work();
          return true;
        } catch {
          return false;
        }
      };
      const near = fc.tuple(fc.oneof(v4, v6, prefix, fc.tuple(v4, fc.integer({ min: 0, max: 70_000 })).map((two) => two.join(":")), fc.tuple(v6, fc.integer({ min: 0, max: 70_000 })).map(([address, number]) => `[${address}]:${number}`)), fc.nat(), fc.constantFrom("", "", "0", ":", ".", "/", "9", "[", "f", "g", "::", "256")).map(([text, at, mark]) => text.slice(0, at % (text.length + 1)) + mark + text.slice(at % (text.length + 1) + (mark === "9" ? 1 : 0)));
      fc.assert(fc.property(near, (text) => {
        expect([text, "metrics", new RegExp(patterns.metrics).test(text)]).toEqual([text, "metrics", one(() => parse({ metrics: text }))]);
        expect([text, "groups", new RegExp(patterns.groups).test(text)]).toEqual([text, "groups", parseAddress(text) !== null || parsePrefix(text) !== null]);
        const taken = one(() => parse({ upstreams: [text] }));
        // An address that is no host's has the form all the same.
        if (taken) expect([text, new RegExp(patterns.upstreams).test(text)]).toEqual([text, true]);
        else if (new RegExp(patterns.upstreams).test(text)) expect([text, /^(\[?[0:]*\]?|\[?ff|0\.|2[2-5]|\[?(0*:)*:?ffff:)|:0+$/i.test(text)]).toEqual([text, true]);
      }), { numRuns: 3000 });
    });
  });

  it("has a JSON schema that refuses unknown keys and describes each", () => {
    const schema = agentConfigJsonSchema() as { additionalProperties: boolean; properties: Record<string, { description?: string }> };
    expect(schema.additionalProperties).toBe(false);
    for (const [key, { description }] of Object.entries(schema.properties)) expect(description, key).toMatch(/\.$/);
  });
});

describe("what a configuration names is told with its place", () => {
  it.each<[string, RegExp]>([
    ["metrics: off\nfloor: nofile.yaml", /agent\.yaml:2: floor: policy .*nofile\.yaml cannot be read/], ["policy: /dev/zero", /agent\.yaml:1: policy: policy \/dev\/zero cannot be read: it is no ordinary file/],
    ["attach:\n  - {match: a}\n  - match: b\n    policy: nofile.yaml", /agent\.yaml:4: attach\.1\.policy: policy .*nofile\.yaml cannot be read/], ["\ngroups: {metadata: [1.2.3.4/24]}", /agent\.yaml:2: groups\.metadata: 1\.2\.3\.4\/24 has bits/],
    ['nat64_prefixes: ["64:ff9b::/95"]', /agent\.yaml:1: nat64_prefixes: 64:ff9b::\/95 cannot/], ["groups: {metdata: []}", /agent\.yaml:1: groups\.metdata: unknown key; did you mean metadata\?/],
  ])("%j", (text, words) => {
    expect(() => parseAgentConfig(text, "/none/agent.yaml")).toThrow(words);
  });

  it("a configuration that is a pipe, a directory or a device is not read", () => {
    // Which stands for an empty one.
    expect(readAgentConfig("/dev/null").attach).toEqual([]);
    for (const [file, words] of [["/dev/zero", /no ordinary file/], ["/tmp", /a directory/]] as const) expect(() => readAgentConfig(file)).toThrow(expect.objectContaining({ code: "E_CONFIG", message: expect.stringMatching(words) as string }));
  });
});

describe("a configuration that is read again", () => {
  /** Turns of the event loop until it is done: none where the thread that serves has read it by itself. */
  const turnsUntil = async (done: Promise<unknown>): Promise<number> => {
    let turns = 0, over = false;
    done.then(() => { over = true; }, () => { over = true; });
    while (!over) {
      await new Promise((resolve) => setImmediate(resolve));
      turns++;
    }
    return turns;
  };
  const written = (name: string, text: string): string => {
    writeFileSync(path.join(folder, name), text);
    return path.join(folder, name);
  };

  it("is understood as at a start, with patterns that match and addresses", async () => {
    const config = written("again.yaml", "floor: floor.yaml\nupstreams: [192.0.2.53]\nlimits: {pins: 100}\nattach: [{match: 'fc-?'}]\n");
    const read = await readAgentConfigApart(config);
    expect(read).toEqual(readAgentConfig(config));
    expect(read.attach[0]!.pattern.test("fc-1")).toBe(true);
  });

  it.each([
    ["a floor of a million quotes", "floor", '"'.repeat(1_000_000)], ["a policy of a million lists", "policy", `rules: ${"[".repeat(1_000_000)}`], ["no configuration at all", null, '"'.repeat(1_000_000)],
    ["an unknown key", null, "polcy: x"], ["a floor that is none", "floor", "rules: [{alow: private}]\n"],
  ] as const)("%s is refused as at a start, and nobody waits for it", async (_, key, text) => {
    const config = key === null ? written("again.yaml", text) : written("again.yaml", `${key}: ${path.basename(written("giant.yaml", text))}\n`);
    const reading = readAgentConfigApart(config), said = reading.then(() => null, (error: unknown) => error as EnforcerError);
    expect(await turnsUntil(reading)).toBeGreaterThan(1);
    let wanted: EnforcerError | null = null;
    try {
      readAgentConfig(config);
    } catch (error) {
      wanted = error as EnforcerError;
    }
    expect(await said).toMatchObject({ code: wanted!.code, message: wanted!.message, remedy: wanted!.remedy });
  });

  it("a long text that many sandboxes have is read once, and built as if it had been read for each", async () => {
    const text = `rules:\n${Array.from({ length: 300 }, (__, i) => `  - {allow: "*.h${i}.example", ports: [443]}\n`).join("")}`, readings = new Readings(), groups = groupTable({});
    const requests = [1, 2, 3].map(() => requestOfText({ path: "/p.yaml", text }));
    for (const request of requests) await readings.ahead(request);
    expect(await readings.source({ path: "/p.yaml", text })).toBe(await readings.source({ path: "/p.yaml", text }));
    const [first, second, third] = requests.map((request) => buildRequested(request, groups, {}, null).policy);
    expect(first).toEqual(buildRequested(requestOfText({ path: "/p.yaml", text }), groups, {}, null).policy);
    expect([second, third]).toEqual([first, first]);
  });
});
