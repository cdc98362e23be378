/** Files that a policy or a command line names, and that are none. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { readBounded } from "../../src/bounded-file.js";
import { parsePolicyText, readPolicyFile } from "../../src/policy/parse.js";
import { operatorAuthority } from "../../src/tls/certificates/store.js";

const folder = mkdtempSync(path.join(tmpdir(), "enforcer-files-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string): string => path.join(folder, name);
writeFileSync(at("some"), "0123456789");
writeFileSync(at("none"), "");
execFileSync("mkfifo", [at("pipe")]);
execFileSync("truncate", ["-s", "5G", at("giant")]);

describe("a file", () => {
  it("is read whole, up to as much as was asked for", () => {
    expect(readBounded(at("some"), 10).toString()).toBe("0123456789");
    expect(readBounded(at("none"), 10)).toHaveLength(0);
    expect(() => readBounded(at("some"), 9)).toThrow(/larger than/);
    // What says that it has no octets, and has some.
    expect(readBounded("/proc/self/status", 100_000).toString()).toMatch(/^Name:/);
  });

  it.each([["a pipe", "pipe", /no ordinary file/], ["a folder", ".", /a directory/], ["five gigabytes", "giant", /larger than 1 MiB/], ["a device without end", "/dev/zero", /no ordinary file/], ["what is not there", "nobody", /ENOENT/]])("%s is refused at once", (_, name, words) => {
    expect(() => readBounded(path.resolve(folder, name), 1 << 20)).toThrow(words);
  });
});

describe("what a policy or a command line names", () => {
  it("is refused where it has no end, wherever it is named", () => {
    for (const name of [at("pipe"), "/dev/zero"]) {
      expect(() => parsePolicyText(`dns: {block: [{file: ${name}}]}`, at("p.yaml")), name).toThrow(/cannot be read: it is no ordinary file/);
      expect(() => parsePolicyText(`tls: {upstream_ca: [${name}]}`, at("p.yaml")), name).toThrow(/cannot be read: it is no ordinary file/);
      expect(() => operatorAuthority({ certificate: name, key: name }), name).toThrow(/no ordinary file/);
    }
    expect(() => readPolicyFile("/dev/zero")).toThrow(/larger than 4 MiB/);
    expect(() => readPolicyFile(at("giant"))).toThrow(/larger than 4 MiB/);
  });

  it("certificates that never end are looked through once", () => {
    writeFileSync(at("begun.pem"), "-----BEGIN CERTIFICATE-----".repeat(38_000));
    // Twenty of them: each took nine seconds.
    expect(() => parsePolicyText(`tls: {upstream_ca: [${Array(20).fill(at("begun.pem")).join(", ")}]}`, at("p.yaml"))).toThrow(/holds no certificate/);
  });

  it("may be a pipe where a person names a policy", () => {
    expect(execFileSync("bash", ["-c", 'bin/enforcer policy check <(echo "rules: [{deny: private}]")'], { encoding: "utf8" })).toContain("private");
  });
});
