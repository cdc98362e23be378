/** The run directory and who may write there. Its files in a running agent are in test/netns/crash-files.test.ts. */
import { chmodSync, chownSync, lchownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { RunDirectory } from "../../src/agent/run-directory.js";

const folder = mkdtempSync(path.join(os.tmpdir(), "enforcer-run-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("the run directory", () => {
  const run = path.join(folder, "run"), link = path.join(folder, "link");
  beforeEach(() => {
    for (const one of [run, link]) rmSync(one, { recursive: true, force: true });
  });

  test("is made for root alone, and taken as it stands where only root may write", () => {
    new RunDirectory(path.join(run, "agent"));
    chmodSync(run, 0o755);
    symlinkSync(run, link);
    expect([run, path.join(run, "agent"), link].map((one) => new RunDirectory(one).path)).toEqual([run, path.join(run, "agent"), link]);
  });

  test.each<[string, RegExp, () => void]>([
    ["open to a group", /may be written to by others/, () => chmodSync(run, 0o770)],
    ["open to all", /may be written to by others/, () => chmodSync(run, 0o1777)],
    ["another user's", /belongs to another user/, () => chownSync(run, 4242, 0)],
    ["behind another user's link", /belongs to another user/, () => lchownSync(link, 4242, 0)],
    ["behind a link, and open to all", /may be written to by others/, () => chmodSync(run, 0o777)],
  ])("is refused when it is %s", (what, words, change) => {
    mkdirSync(run, { mode: 0o700 });
    symlinkSync(run, link);
    change();
    const at = what.startsWith("behind") ? link : run;
    expect(() => new RunDirectory(at)).toThrow(expect.objectContaining({ code: "E_STATE", message: expect.stringMatching(words) as string, remedy: expect.stringContaining(`chmod 700 ${at}`) as string }));
  });

  test("is no file", () => {
    expect(() => new RunDirectory("/dev/null")).toThrow(expect.objectContaining({ code: "E_STATE" }));
  });
});
