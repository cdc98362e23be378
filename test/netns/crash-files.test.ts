/**
 * What a successor makes of files that no agent wrote so: state files of every kind of damage, and a BPF file system on which things
 * are missing or are another's. It starts, or says why not and what to do; the kernel goes on; nothing is wiped and nothing is open.
 */
import { chmodSync, chownSync, lchownSync, lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, rmdirSync, rmSync, statSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BpfMap } from "../../native/index.js";
import { slotKey } from "../../src/kernel/sandbox-tables.js";
import { ADDRESS, type World } from "../lib/world.mjs";
import { agentWithTaps, type TestAgent } from "./daemon.js";

type State = Record<string, unknown>;
const policy = { rules: ["allow@site.example:tcp:8080"] };

/** By what it is: a change of what the file says, or of the file itself. */
const damages: readonly [string, (file: string, state: State) => unknown][] = [
  ["missing", (file) => rmSync(file)],
  ["empty", (file) => writeFileSync(file, "")],
  ["no JSON", (file) => writeFileSync(file, Buffer.of(0, 255, 1, 123, 34))],
  ["cut off", (file) => writeFileSync(file, readFileSync(file).subarray(0, 100))],
  ["a list", (file) => writeFileSync(file, "[]")],
  ["null", (file) => writeFileSync(file, "null")],
  ["nested beyond reason", (file) => writeFileSync(file, `${"[".repeat(300_000)}`)],
  ["a directory", (file) => { rmSync(file); mkdirSync(file); }],
  ["a link to itself", (file) => { rmSync(file); symlinkSync(file, file); }],
  ["a link to one elsewhere", (file) => { renameSync(file, `${file}.away`); symlinkSync(`${file}.away`, file); }],
  ["another user's", (file) => chownSync(file, 4242, 0)],
  ["open to a group", (file) => chmodSync(file, 0o660)],
  ["open to all", (file) => chmodSync(file, 0o602)],
  ["a later version's", (_, state) => ({ ...state, version: 2 })],
  ["of another name", (_, state) => ({ ...state, name: "other" })],
  ["of a number that is no device's", (_, state) => ({ ...state, ifindex: 99_999_999 })],
  ["of a negative number", (_, state) => ({ ...state, ifindex: -1 })],
  ["of another device's name", (_, state) => ({ ...state, device: "../../etc/passwd" })],
  ["of a slot beyond all", (_, state) => ({ ...state, slot: 1e9 })],
  ["of another generation", (_, state) => ({ ...state, generation: 0.5 })],
  ["of no phase that is known", (_, state) => ({ ...state, phase: "asleep" })],
  ["settings that are none", (_, state) => ({ ...state, changes: [null, 7, {}] })],
  ["settings elsewhere", (_, state) => ({ ...state, changes: [{ family: "../../../../tmp", setting: "../x", before: "1", after: "0" }] })],
  ["being detached, with settings that are none", (_, state) => ({ ...state, phase: "detaching", changes: [null] })],
  ["without what was asked for", (_, state) => ({ ...state, spec: {} })],
  ["a policy that cannot be built", (_, state) => ({ ...state, policy: { ...(state["policy"] as State), source: { request: { rules: ["allow@@"] } } } })],
  ["a policy of nothing", (_, state) => ({ ...state, policy: { ...(state["policy"] as State), source: null } })],
  ["a policy about to come that is none", (_, state) => ({ ...state, next: { uid: "99999999999999999999999999", digest: "x", source: { request: { rules: [] } } } })],
];
const TAPS = damages.map((_, i) => `many${i}`);

describe("A05 files that no agent wrote so", () => {
  let world: World;
  let agent: TestAgent;
  beforeAll(async () => {
    ({ world, agent } = await agentWithTaps(TAPS));
  });
  afterAll(async () => {
    await agent?.stop();
    await world?.close();
  });

  const file = (name: string, ending = "json"): string => path.join(world.runDir, "agent", `${name}.${ending}`);
  const instance = (...parts: string[]): string => path.join(world.bpffs, "enforcer/agent-of-the-host", ...parts);
  const maps = (): string => instance(readdirSync(instance()).find((name) => name.startsWith("maps-"))!);
  const reach = async (address: string, port: string): Promise<boolean> => (await world.guest.probe(["http", address, port, "site.example", "/"], 1000)).ok;
  const pinned = async (): Promise<boolean> => (await world.guest.probe(["fetch", "8.8.8.8", "site.example", "8080", "/", "A"], 3000)).ok;
  const held = async (): Promise<void> => {
    expect(await Promise.all([reach(ADDRESS.metadata4, "80"), reach(ADDRESS.site4b, "8080"), world.sibling!.probe(["http", ADDRESS.metadata4, "80", "x", "/"], 1000).then(({ ok }) => ok)])).toEqual([false, false, false]);
  };
  const firstOnHooks = async (name: string): Promise<number> => (await agent.client.sandbox(name)).hooks.filter(({ position }) => position === 0).length;
  const base = (): Promise<string> => world.host.must(["nft", "list", "ruleset"]);

  test("state files: every tap stays under its programs, the agent starts, and what it cannot read is kept and can be attached", async () => {
    await agent.client.attach({ tap: "tap0", policy });
    await agent.client.attach({ tap: "tap1" });
    for (const tap of TAPS) await agent.client.attach({ tap, policy: { rules: [`allow@${tap}.example:tcp:443`] } });
    expect(await pinned()).toBe(true);
    await agent.kill();
    damages.forEach(([, change], i) => {
      const name = file(TAPS[i]!);
      const changed = change(name, JSON.parse(readFileSync(name, "utf8")) as State);
      if (typeof changed === "object") writeFileSync(name, JSON.stringify(changed));
    });
    // Beside them what is no state file at all, and pins of nobody.
    writeFileSync(file("%zz"), "{}");
    writeFileSync(file("nobody"), JSON.stringify({ version: 1 }));
    writeFileSync(file("tap0", "pins"), JSON.stringify({ generation: JSON.parse(readFileSync(file("tap0"), "utf8")).generation as number, pins: [null, [["a"], "zz", 1], ["site", "00", "never"], [[1, 2], {}, null]] }));
    await held();
    await agent.restart();
    await held();
    const states = await agent.states();
    for (const [i, [what]] of damages.entries()) {
      const name = TAPS[i]!;
      expect(states[name], what).toMatch(/^(enforced|kept)$/);
      expect(await firstOnHooks(name), what).toBe(2);
      expect(await base(), what).toContain(`"${name}"`);
      if (states[name] !== "kept") continue;
      expect((await agent.client.sandbox(name)).note, what).toMatch(/state file|policy/);
      const said = ({ "a link to one elsewhere": /symbolic link/, "another user's": /belongs to another user \(4242\)/, "open to a group": /written to by others \(mode 0660\)/, "open to all": /written to by others \(mode 0602\)/, "missing": /missing/, "cut off": /torn/ } as Record<string, RegExp>)[what];
      if (said !== undefined) expect((await agent.client.sandbox(name)).note, what).toMatch(said);
      // A directory in the place of a state file has to be taken away first, and that is said.
      if (what === "a directory") {
        await expect(agent.client.attach({ tap: name }), what).rejects.toMatchObject({ code: "E_STATE", message: expect.stringContaining(`${name}.json`) as string });
        expect((await agent.states())[name], what).toBe("kept");
        rmdirSync(file(name));
      }
      await agent.client.attach({ tap: name, policy: { rules: [`allow@${name}.example:tcp:443`] } });
      expect((await agent.client.sandbox(name)).state, what).toBe("enforced");
    }
    expect(states).toMatchObject({ tap0: "enforced", tap1: "enforced" });
    for (const what of ["a link to one elsewhere", "another user's", "open to a group", "open to all"]) {
      const name = TAPS[damages.findIndex(([one]) => one === what)]!;
      expect(states[name], what).toBe("kept");
      // What the agent writes is its own again, and goes nowhere else.
      expect(lstatSync(file(name)), what).toMatchObject({ uid: 0, mode: 0o100600 });
    }
    await held();
    expect(await pinned()).toBe(true);
    for (const name of await agent.names()) if (name.startsWith("many")) await agent.client.detach(name);
  });

  test("directories that another user owns or can write, or that are links of his: it does not start and says which, and the kernel goes on", async () => {
    await agent.kill();
    const refused = async (pattern: RegExp): Promise<void> => {
      const failed = agent.launch();
      await expect(failed.line((line) => line.includes('"ready"'))).rejects.toThrow(pattern);
      await held();
    };
    const aside = `${world.runDir}.aside`;
    for (const [folder, code] of [[world.runDir, "E_STATE"], [path.join(world.runDir, "agent"), "E_STATE"], [path.join(world.bpffs, "enforcer"), "E_BPFFS"], [instance(), "E_BPFFS"]] as const) {
      const { mode } = statSync(folder);
      chmodSync(folder, 0o777);
      await refused(new RegExp(`${folder}.*may be written to by others \\(mode 0777\\).*${code}`, "s"));
      chmodSync(folder, mode & 0o7777);
      chownSync(folder, 65534, 0);
      await refused(new RegExp(`${folder}.*belongs to another user.*65534.*${code}`, "s"));
      chownSync(folder, 0, 0);
    }
    renameSync(world.runDir, aside);
    symlinkSync(aside, world.runDir);
    lchownSync(world.runDir, 65534, 65534);
    await refused(new RegExp(`${world.runDir}.*symbolic link that belongs to another user .65534.*E_STATE`, "s"));
    unlinkSync(world.runDir);
    renameSync(aside, world.runDir);
    await agent.restart();
    expect(await agent.states()).toMatchObject({ tap0: "enforced", tap1: "enforced" });
    expect(statSync(world.runDir).mode & 0o777).toBe(0o700);
  });

  test("links that are gone: their taps are closed until the successor has them again", async () => {
    const links = async (): Promise<string[]> => {
      const { ifindex } = await agent.client.sandbox("tap0") as never as { ifindex: number };
      return readdirSync(instance("links")).filter((name) => name.startsWith(`${ifindex}-`)).map((name) => instance("links", name));
    };
    const all = await links();
    if ((await agent.client.sandbox("tap0")).mechanism === "tcx") expect(all.length).toBe(2);
    for (const gone of [all.filter((name) => name.includes("-ingress")), all.filter((name) => name.includes("-egress")), all]) {
      await agent.kill();
      for (const name of gone) unlinkSync(name);
      await held();
      if (gone.some((name) => name.includes("-ingress"))) expect(await reach(ADDRESS.site4, "8080")).toBe(false);
      await agent.restart();
      expect(await agent.states()).toMatchObject({ tap0: "enforced", tap1: "enforced" });
      expect(await firstOnHooks("tap0")).toBe(2);
      expect(await pinned()).toBe(true);
      await held();
    }
  });

  test("tables of a sandbox that are gone: its guest is closed, and the successor makes them again", async () => {
    for (const [name, index] of [["flows", 1], ["counters", 1], ["policies", 4], ["pins", 4]] as const) {
      const { slot } = await agent.client.sandbox("tap0") as never as { slot: number };
      await agent.kill();
      const map = BpfMap.fromPin(path.join(maps(), name));
      for (let part = 0; part < index; part++) map.delete(slotKey(slot * index + part));
      map.close();
      await held();
      await agent.restart();
      expect((await agent.states())["tap0"], name).toBe("enforced");
      expect(await firstOnHooks("tap0"), name).toBe(2);
      expect(await pinned(), name).toBe(true);
      await held();
    }
  });

  test("maps that are gone or no maps: it does not start and says which, and the kernel goes on", async () => {
    await agent.kill();
    const refused = async (pattern: RegExp): Promise<void> => {
      const failed = agent.launch();
      await expect(failed.line((line) => line.includes('"ready"'))).rejects.toThrow(pattern);
      await held();
      expect(await reach(ADDRESS.site4, "8080")).toBe(true);
    };
    // Kept by the programs: the pin alone is gone, and comes back.
    const standing = BpfMap.fromPin(path.join(maps(), "event_limits"));
    unlinkSync(path.join(maps(), "event_limits"));
    await refused(/E_UPGRADE.*event_limits/s);
    mkdirSync(path.join(maps(), "event_limits"));
    await refused(/E_(UPGRADE|BPFFS).*event_limits/s);
    rmdirSync(path.join(maps(), "event_limits"));
    standing.pin(path.join(maps(), "event_limits"));
    standing.close();
    // What is nobody's stays where it is.
    mkdirSync(path.join(maps(), "stranger"));
    mkdirSync(instance("links", "stranger"));
    await agent.restart();
    expect(await agent.states()).toMatchObject({ tap0: "enforced", tap1: "enforced" });
    expect(await reach(ADDRESS.site4, "8080")).toBe(true);
    await held();
    rmdirSync(path.join(maps(), "stranger"));
    rmdirSync(instance("links", "stranger"));
  });
});
