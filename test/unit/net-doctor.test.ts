import { writeFileSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";

import { kernel, runDoctor } from "../../src/net/doctor.js";

test.each([["6.1.0-28-amd64", "yes"], ["6.18.44", "yes"], ["10.0.0", "yes"], ["6.0.19", "no"], ["5.15.0", "no"], ["nonsense", "no"]] as const)("kernel %s: %s", (release, ok) => {
  expect(kernel(release).ok).toBe(ok);
});

describe("runDoctor", () => {
  const folder = mkdtempSync(join(tmpdir(), "enf-doctor-"));
  const resolvConf = (text: string): string => {
    const path = join(folder, "resolv.conf");
    writeFileSync(path, text);
    return path;
  };
  const finding = (check: string, options: Partial<Parameters<typeof runDoctor>[0]>) => runDoctor({ bpffs: folder, ...options }).find((entry) => entry.check === check);

  test("every finding that is not yes has a remedy, and no check comes twice", () => {
    const findings = runDoctor({ bpffs: folder });
    for (const { ok, remedy, detail } of findings) {
      expect(remedy === null).toBe(ok === "yes");
      expect(detail).not.toBe("");
    }
    expect(new Set(findings.map(({ check }) => check)).size).toBe(findings.length);
  });

  test("bpffs: a folder that is none, and one that is missing", () => {
    expect(finding("bpffs", {})).toMatchObject({ ok: "no", detail: `${folder} is not on a bpf file system` });
    expect(finding("bpffs", { bpffs: join(folder, "none") })).toMatchObject({ ok: "no", detail: `${join(folder, "none")} does not exist` });
  });

  test("resolvers: named, none, unreadable, partly usable", () => {
    expect(finding("resolvers", { resolvConf: resolvConf("nameserver 9.9.9.9\n") })).toMatchObject({ ok: "yes", remedy: null });
    expect(finding("resolvers", { resolvConf: resolvConf("search example\n") })).toMatchObject({ ok: "warn", detail: expect.stringContaining("names none") });
    expect(finding("resolvers", { resolvConf: join(folder, "missing") })).toMatchObject({ ok: "warn", detail: expect.stringContaining("ENOENT") });
    expect(finding("resolvers", { resolvConf: resolvConf("nameserver 9.9.9.9\nnameserver fe80::1%eth0\n") })).toMatchObject({ ok: "warn", detail: expect.stringContaining("9.9.9.9") });
  });
});
