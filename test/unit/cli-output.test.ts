/** Output that nobody reads or that cannot be written, and verbs that are none. */
import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";

const ENFORCER = path.resolve("bin/enforcer");

function run(args: readonly string[], output: "read" | "closed" | number = "read"): Promise<{ status: number | null; out: string; err: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [ENFORCER, ...args], { stdio: ["ignore", typeof output === "number" ? output : "pipe", "pipe"] });
    let out = "", err = "";
    child.stdout?.on("data", (chunk: Buffer) => { out += chunk.toString(); });
    child.stderr!.on("data", (chunk: Buffer) => { err += chunk.toString(); });
    // Long before it writes: it has to start first.
    if (output === "closed") child.stdout?.destroy();
    child.on("close", (status) => resolve({ status, out, err }));
  });
}

describe("output", () => {
  it("that nobody reads any more is no fault", async () => {
    expect(await run(["policy", "check", "--no-net"], "closed")).toEqual({ status: 0, out: "", err: "" });
    expect(await run(["completion", "bash"], "closed")).toEqual({ status: 0, out: "", err: "" });
  });

  it("that cannot be written is an error in one line", async () => {
    const full = openSync("/dev/full", "w");
    const { status, err } = await run(["policy", "check", "--no-net"], full);
    closeSync(full);
    expect(status).toBe(71);
    expect(err).toMatch(/^enforcer: the output cannot be written: .*ENOSPC.*\n$/);
  });
});

describe("a verb that is none", () => {
  it.each([[["policy"], /policy what\? show, set, check or diff/], [["policy", "chek"], /unknown command 'policy chek'/], [["frobnicate"], /unknown command 'frobnicate'/]])("%j", async (args, words) => {
    const { status, out, err } = await run(args as string[]);
    expect([status, out]).toEqual([64, ""]);
    expect(err).toMatch(words);
    expect(err).toContain("[E_USAGE]");
  });
});

it("one word too many is refused, also behind a policy file: the second file would be taken for read", async () => {
  for (const args of [["policy", "check", "a.yaml", "b.yaml"], ["policy", "set", "tap0", "a.yaml", "b.yaml"], ["policy", "diff", "tap0", "a.yaml", "b.yaml"], ["policy", "show", "tap0", "tap1"], ["attach", "tap0", "a.yaml"]]) {
    const { status, err } = await run(args);
    expect([args, status]).toEqual([args, 64]);
    expect(err).toMatch(/too many arguments.*\n.*\[E_USAGE\]/);
  }
});

it("what is wrong with a verb's arguments leads to that verb's help", async () => {
  for (const [args, verb] of [[["policy", "check", "--frob"], "enforcer policy check"], [["explain", "tap0"], "enforcer explain"], [["attach", "tap0", "--guest-mac", "x"], "enforcer attach"], [["--frob"], "enforcer"]] as const) {
    expect((await run(args)).err).toContain(`\n  remedy: see ${verb} --help [E_USAGE]\n`);
  }
});

it("two policy files are refused: one of them would not be read", async () => {
  for (const args of [["policy", "check", "a.yaml", "--policy", "b.yaml"], ["policy", "set", "tap0", "a.yaml", "--policy", "b.yaml"], ["policy", "diff", "tap0", "a.yaml", "--policy", "b.yaml"]]) {
    const { status, err } = await run(args);
    expect([args, status]).toEqual([args, 64]);
    expect(err).toBe("enforcer: two policy files: a.yaml, and b.yaml as --policy\n  remedy: name one [E_USAGE]\n");
  }
});

it("a name that is empty, as of a variable that was never set, is refused before anything is asked", async () => {
  for (const args of [["detach", ""], ["status", ""], ["watch", ""], ["policy", "show", ""], ["explain", "", "site.example"], ["list", "--run-dir", ""], ["agent", "--config", ""]]) {
    const { status, err } = await run(args);
    expect([args, status]).toEqual([args, 64]);
    expect(err).toMatch(/it is empty\n.*\[E_USAGE\]/);
  }
});
