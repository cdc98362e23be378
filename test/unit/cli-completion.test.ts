/** Completion scripts: what the shells make of them. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { completionScript } from "../../src/cli/completion.js";
import { program } from "../../src/cli/main.js";

const folder = mkdtempSync(path.join(tmpdir(), "enforcer-completion-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const there = (shell: string): boolean => spawnSync(shell, ["-c", "true"]).status === 0;

describe("completion", () => {
  it("names every verb and option in every shell", () => {
    for (const shell of ["bash", "zsh", "fish"] as const) {
      const script = completionScript(program(), shell);
      for (const verb of ["agent", "attach", "detach", "list", "status", "policy", "pins", "flows", "watch", "explain", "doctor", "reload", "version", "completion"]) expect(script, `${shell} ${verb}`).toMatch(new RegExp(`\\b${verb}\\b`));
      for (const option of ["guest-ip", "no-net", "run-dir", "net-default-egress"]) expect(script, `${shell} ${option}`).toContain(option);
    }
  });

  it("completes in bash", () => {
    const file = path.join(folder, "enforcer.bash");
    writeFileSync(file, completionScript(program(), "bash"));
    // A program that stands for enforcer, with two sandboxes.
    writeFileSync(path.join(folder, "enforcer"), "#!/bin/sh\necho '{\"sandboxes\":[{\"name\":\"tap0\",\"tap\":\"tap0\"},{\"name\":\"jail/tap1\",\"tap\":\"tap1\"}]}'\n", { mode: 0o755 });
    const complete = (...words: string[]): string[] => execFileSync("bash", ["-c", `source ${file}; COMP_WORDS=(enforcer ${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length}; _enforcer 2>/dev/null; printf '%s\\n' "\${COMPREPLY[@]}"`],
      { encoding: "utf8", env: { ...process.env, PATH: `${folder}:${process.env.PATH}` } }).split("\n").filter((word) => word !== "");
    expect(complete("at")).toEqual(["attach"]);
    expect(complete("policy", "")).toEqual(expect.arrayContaining(["show", "set", "check", "diff"]));
    expect(complete("attach", "--guest")).toEqual(["--guest-ip", "--guest-mac"]);
    expect(complete("attach", "--net-default-egress", "")).toEqual(["allow", "deny"]);
    expect(complete("detach", "")).toEqual(["tap0", "jail/tap1"]);
    expect(complete("policy", "set", "t")).toEqual(["tap0"]);
    expect(complete("completion", "")).not.toContain("tap0");
  });

  it.skipIf(!there("zsh"))("is valid in zsh", () => {
    const file = path.join(folder, "_enforcer");
    writeFileSync(file, completionScript(program(), "zsh"));
    execFileSync("zsh", ["-n", file]);
  });

  it.skipIf(!there("fish"))("is valid in fish", () => {
    const file = path.join(folder, "enforcer.fish");
    writeFileSync(file, completionScript(program(), "fish"));
    execFileSync("fish", ["-n", file]);
  });
});
