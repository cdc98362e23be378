/** Following the host's resolv.conf: written in place, replaced, a link that comes to lead elsewhere, none and some again. */
import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { followFile, readHostResolvers } from "../../src/dns/host-resolvers.js";
import { showName } from "../../src/dns/wire.js";

let folder: string;
let stop: (() => void) | null = null;
beforeEach(() => { folder = mkdtempSync(join(tmpdir(), "resolv-")); });
afterEach(() => {
  stop?.();
  stop = null;
  rmSync(folder, { recursive: true, force: true });
});

/** Follows the path; `next` is fulfilled when what it says is so. */
function follow(path: string): { next: (server: string | null) => Promise<void> } {
  let wake = (): void => undefined;
  stop = followFile(path, () => wake());
  return {
    next: async (server) => {
      while ((readHostResolvers(path).servers[0]?.host ?? null) !== server || !woken()) await new Promise<void>((resolve) => { wake = () => { seen = true; resolve(); }; });
      seen = false;
    },
  };
}
let seen = false;
const woken = (): boolean => seen;

describe("resolv.conf is followed", () => {
  it("written, replaced, removed and made again", async () => {
    const path = join(folder, "resolv.conf");
    const { next } = follow(path);
    writeFileSync(path, "nameserver 192.0.2.1\n");
    await next("192.0.2.1");
    writeFileSync(`${path}.new`, "nameserver 192.0.2.2\nsearch a.test\n");
    renameSync(`${path}.new`, path);
    await next("192.0.2.2");
    expect(readHostResolvers(path).searchDomains.map(showName)).toEqual(["a.test"]);
    unlinkSync(path);
    await next(null);
    writeFileSync(path, "nameserver 2001:db8::1\n");
    await next("2001:db8::1");
  });

  it("a link that comes to lead into another directory, and what is written there afterwards", async () => {
    for (const name of ["one", "two"]) {
      mkdirSync(join(folder, name));
      writeFileSync(join(folder, name, "stub"), `nameserver 192.0.2.${name === "one" ? 1 : 2}\n`);
    }
    const path = join(folder, "resolv.conf");
    symlinkSync("one/stub", path);
    const { next } = follow(path);
    symlinkSync("two/stub", join(folder, "new"));
    renameSync(join(folder, "new"), path);
    await next("192.0.2.2");
    writeFileSync(join(folder, "two", "stub"), "nameserver 192.0.2.3 # changed\n");
    await next("192.0.2.3");
  }, 30_000);
});
