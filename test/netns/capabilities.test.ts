/** What a running agent may do, and what it needs for it: started by hand, without systemd's help. */
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, expect, test } from "vitest";
import { needed } from "../../src/agent/capabilities.js";
import { inNewNamespace, withBpffs } from "../native/fixture.js";
import { ENFORCER } from "../lib/world.mjs";

inNewNamespace();
const bpffs = withBpffs();
const folder = mkdtempSync(path.join(tmpdir(), "capabilities-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("the agent keeps six capabilities, gains none, and leaves no core", async () => {
  const agent = spawn(ENFORCER, ["agent", "--config", "/dev/null", "--run-dir", folder, "--bpffs", bpffs.path, "--json"], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<void>((resolve) => agent.once("exit", () => resolve()));
  try {
    let said = "";
    await new Promise<void>((resolve, reject) => {
      agent.stdout.setEncoding("utf8").on("data", (text: string) => { said += text; if (said.includes('"event":"ready"')) resolve(); });
      void ended.then(() => reject(new Error(`it ended: ${said}`)));
    });
    const status = readFileSync(`/proc/${agent.pid}/status`, "utf8");
    const set = (name: string): bigint => BigInt(`0x${new RegExp(`^${name}:\\s*(\\S+)`, "m").exec(status)?.[1]}`);
    for (const name of ["CapPrm", "CapEff", "CapBnd"]) expect(set(name), name).toBe(needed);
    expect(set("CapAmb")).toBe(0n);
    expect(status).toMatch(/^NoNewPrivs:\s*1$/m);
    expect(readFileSync(`/proc/${agent.pid}/limits`, "utf8")).toMatch(/core file size +0 +0/);
    expect(BigInt(/^CapabilityBoundingSet=(.*)$/m.exec(readFileSync(new URL("../../packaging/enforcer-agent.service", import.meta.url), "utf8"))?.[1]?.split(" ").length ?? 0), "the unit has as many").toBe(6n);
  } finally {
    agent.kill("SIGTERM");
    await ended;
  }
});

test.each([["the agent", ["agent", "--config", "/dev/null"]], ["enforcer attach in the foreground", ["attach", "tap9", "--wait", "--metrics", "off"]]])("TLS test 39: %s that is made to dump core leaves none, also where the shell allows it", async (what, args) => {
  const cwd = path.join(folder, what.replaceAll(" ", "-"));
  mkdirSync(cwd);
  const program = spawn("prlimit", ["--core=unlimited", ENFORCER, ...args, "--run-dir", path.join(cwd, "run"), "--bpffs", bpffs.path, "--json"], { cwd, stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<NodeJS.Signals | null>((resolve) => program.once("exit", (_status, signal) => resolve(signal)));
  await Promise.race([new Promise<void>((resolve) => { program.stdout.setEncoding("utf8").once("data", () => resolve()); }), ended.then(() => { throw new Error("it ended"); })]);
  expect(readFileSync(`/proc/${program.pid}/limits`, "utf8")).toMatch(/core file size +0 +0/);
  program.kill("SIGABRT");
  expect(await ended).toBe("SIGABRT");
  expect(readdirSync(cwd)).toEqual(["run"]);
});
