/** Completion scripts: what the shells make of them. zsh and fish are among the packages that tests need (scripts/install-packages.sh). */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { completionScript } from "../../src/cli/completion.js";
import { program } from "../../src/cli/main.js";

const folder = mkdtempSync(path.join(tmpdir(), "enforcer-completion-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
// Devices as ip(8) shows them.
writeFileSync(path.join(folder, "ip"), "#!/bin/sh\necho '5: fc-tap0: <BROADCAST> mtu 1500'; echo '6: fc-tap1: <BROADCAST> mtu 1500'\n", { mode: 0o755 });

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
    const complete = (...words: string[]): string[] => execFileSync("bash", ["-c", `source ${file}; COMP_WORDS=(enforcer ${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length}; compopt() { :; }; _enforcer 2>&1; printf '%s\\n' "\${COMPREPLY[@]}"`],
      { encoding: "utf8", env: { ...process.env, PATH: `${folder}:${process.env.PATH}` } }).split("\n").filter((word) => word !== "");
    // What the script says on standard error stands in the person's line; it is among the words here.
    expect(complete("at")).toEqual(["attach"]);
    expect(complete("policy", "sho")).toEqual(["show"]);
    expect(complete("policy", "")).toEqual(expect.arrayContaining(["show", "set", "check", "diff"]));
    expect(complete("attach", "--guest")).toEqual(["--guest-ip", "--guest-mac"]);
    expect(complete("attach", "--netns", "jail", "")).toEqual(["fc-tap0", "fc-tap1"]);
    expect(complete("doctor", "fc-tap0", "fc")).toEqual(["fc-tap0", "fc-tap1"]);
    expect(complete("attach", "--net-default-egress", "")).toEqual(["allow", "deny"]);
    expect(complete("detach", "")).toEqual(["tap0", "jail/tap1"]);
    expect(complete("policy", "set", "t")).toEqual(["tap0"]);
    expect(complete("completion", "")).toEqual(["bash", "zsh", "fish"]);
    expect(complete("detach", "tap0", "")).toEqual([]);
    expect(complete("--json", "")).toContain("attach");
    expect(complete("explain", "tap0", "")).toEqual([]);
    expect(complete("explain", "--run-dir", "/run/x", "tap0", "site.example", "ic")).toEqual(["icmp", "icmpv6"]);
    expect(complete("explain", "tap0", "--in")).toEqual(["--ingress"]);
    // A file is the shell's own to complete.
    expect(complete("policy", "check", "")).toEqual([]);
    expect(complete("policy", "set", "tap0", "")).toEqual([]);
  });

  it("is valid in zsh", () => {
    const file = path.join(folder, "_enforcer");
    writeFileSync(file, completionScript(program(), "zsh"));
    execFileSync("zsh", ["-n", file]);
  });

  it("completes in zsh", () => {
    const file = path.join(folder, "enforcer.zsh");
    writeFileSync(file, completionScript(program(), "zsh"));
    // What the shell's own helpers are given.
    const complete = (...words: string[]): string[] => execFileSync("zsh", ["-f", "-c", `
      compdef() { : }; compadd() { shift; print -rl -- "$@" }; _files() { print -r -- FILES }; _describe() { print -rl -- "\${(@P)2%%:*}" }
      source ${file}; words=(enforcer ${words.map((word) => `'${word}'`).join(" ")}); CURRENT=${words.length + 1}; PREFIX='${words.at(-1)}'; _enforcer`],
      { encoding: "utf8", env: { ...process.env, PATH: `${folder}:${process.env.PATH}` } }).split("\n").filter((word) => word !== "");
    expect(complete("")).toEqual(expect.arrayContaining(["attach", "policy", "watch"]));
    expect(complete("policy", "")).toEqual(["show", "set", "check", "diff"]);
    expect(complete("detach", "")).toEqual(["tap0", "jail/tap1"]);
    expect(complete("detach", "tap0", "")).toEqual([]);
    expect(complete("attach", "")).toEqual(["fc-tap0", "fc-tap1"]);
    expect(complete("doctor", "fc-tap0", "")).toEqual(["fc-tap0", "fc-tap1"]);
    expect(complete("policy", "set", "tap0", "")).toEqual(["FILES"]);
    expect(complete("policy", "check", "")).toEqual(["FILES"]);
    expect(complete("agent", "--config", "")).toEqual(["FILES"]);
    expect(complete("attach", "--net-default-egress", "")).toEqual(["allow", "deny"]);
    expect(complete("attach", "--gu")).toEqual(expect.arrayContaining(["--guest-ip", "--guest-mac"]));
    expect(complete("explain", "tap0", "site.example", "")).toEqual(["tcp", "udp", "icmp", "icmpv6"]);
    expect(complete("completion", "")).toEqual(["bash", "zsh", "fish"]);
  });

  it("is valid in fish", () => {
    const file = path.join(folder, "enforcer.fish");
    writeFileSync(file, completionScript(program(), "fish"));
    execFileSync("fish", ["-n", file]);
  });

  it("completes in fish", () => {
    const file = path.join(folder, "enforcer.fish");
    writeFileSync(file, completionScript(program(), "fish"));
    const complete = (line: string): string[] => execFileSync("fish", ["--no-config", "-c", `source ${file}; complete -C '${line}'`], { encoding: "utf8", cwd: folder, env: { ...process.env, HOME: folder, PATH: `${folder}:${process.env.PATH}` } })
      .split("\n").filter((word) => word !== "").map((one) => one.split("\t")[0]!);
    expect(complete("enforcer at")).toEqual(["attach"]);
    expect(complete("enforcer policy ")).toEqual(expect.arrayContaining(["show", "set", "check", "diff"]));
    expect(complete("enforcer detach ").sort()).toEqual(["jail/tap1", "tap0"]);
    expect(complete("enforcer attach --guest")).toEqual(expect.arrayContaining(["--guest-ip", "--guest-mac"]));
    expect(complete("enforcer attach ")).toEqual(expect.arrayContaining(["fc-tap0", "fc-tap1"]));
    expect(complete("enforcer policy check enf")).toContain("enforcer.fish");
    expect(complete("enforcer completion ").sort()).toEqual(["bash", "fish", "zsh"]);
  });
});
