/** What counts as this user's own on a file system, and what as a network namespace. Needs root to make what is another's. */
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, lchownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { closeFd } from "../../native/index.js";
import { openNamespace, requireNetwork } from "../../src/agent/engine.js";
import { RunDirectory } from "../../src/agent/run-directory.js";
import { directoryFault, readOwn } from "../../src/kernel/ownership.js";

const folder = mkdtempSync(path.join(tmpdir(), "enforcer-own-"));
afterAll(() => { rmSync(folder, { recursive: true, force: true }); });
const at = (name: string): string => path.join(folder, name);

describe("directories", () => {
  it("are this user's, and nobody else can write them", () => {
    mkdirSync(at("good"), { mode: 0o755 });
    symlinkSync(at("good"), at("link"));
    expect([directoryFault(at("good")), directoryFault(at("link")), directoryFault(at("none"))]).toEqual([null, null, null]);
    symlinkSync(at("none"), at("nowhere"));
    symlinkSync(at("good"), at("theirs"));
    lchownSync(at("theirs"), 65534, 65534);
    mkdirSync(at("group"));
    chmodSync(at("group"), 0o775);
    mkdirSync(at("sticky"));
    chmodSync(at("sticky"), 0o1777);
    mkdirSync(at("other"));
    chownSync(at("other"), 65534, 65534);
    writeFileSync(at("file"), "");
    expect(["nowhere", "theirs", "group", "sticky", "other", "file"].map((name) => directoryFault(at(name)))).toEqual([
      "it is a symbolic link to nowhere", "it is a symbolic link that belongs to another user (65534)", "it may be written to by others (mode 0775)", "it may be written to by others (mode 1777)", "it belongs to another user (65534)", "it is no directory",
    ]);
    expect(() => new RunDirectory(at("sticky"))).toThrow(/sticky is not root's alone: it may be written to by others/);
  });
});

describe("files", () => {
  it("are read where nobody else can have written them", () => {
    const made = (name: string, mode: number, uid = 0): string => {
      writeFileSync(at(name), "text");
      chmodSync(at(name), mode);
      chownSync(at(name), uid, uid);
      return at(name);
    };
    expect(readOwn(made("mine", 0o600))).toEqual({ text: "text" });
    expect(readOwn(made("seen", 0o644))).toEqual({ text: "text" });
    symlinkSync(at("mine"), at("mine.link"));
    execFileSync("mkfifo", [at("pipe")]);
    expect([made("world", 0o666), made("group.file", 0o660), made("foreign", 0o600, 65534), at("mine.link"), at("pipe"), at("good"), at("missing")].map(readOwn)).toEqual([
      "it may be written to by others (mode 0666)", "it may be written to by others (mode 0660)", "it belongs to another user (65534)", "it is a symbolic link", "it is no ordinary file", "it is no ordinary file", "it is missing",
    ].map((fault) => ({ fault })));
  });
});

describe("network namespaces", () => {
  it("are opened; what is none is refused, and a pipe is not waited for", () => {
    const own = openNamespace("/proc/self/ns/net");
    expect(() => requireNetwork(own, "own")).not.toThrow();
    closeFd(own);
    execFileSync("mkfifo", [at("pipe.ns")]);
    for (const none of [at("pipe.ns"), "/etc/passwd", "/dev/zero", folder, "nobody-made-this", "../x"]) expect(() => openNamespace(none), none).toThrow(expect.objectContaining({ code: "E_NETNS" }) as Error);
    const mount = openNamespace("/proc/self/ns/mnt");
    expect(() => requireNetwork(mount, "/proc/self/ns/mnt")).toThrow(expect.objectContaining({ code: "E_NETNS", message: expect.stringContaining("no network namespace") as string }) as Error);
    closeFd(mount);
  });
});
