/** The generator of the address tables: a row that it does not understand stops the build. */
import { execFile } from "node:child_process";
import { appendFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../../", import.meta.url));
const run = promisify(execFile);
let directory = "";

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "tables-"));
  cpSync(join(root, "data"), join(directory, "data"), { recursive: true });
  cpSync(join(root, "scripts/gen-tables.mjs"), join(directory, "scripts/gen-tables.mjs"));
});
afterEach(() => rmSync(directory, { recursive: true }));

async function generate(): Promise<string> {
  const output = join(directory, "out.ts");
  try {
    await run(process.execPath, [join(directory, "scripts/gen-tables.mjs"), output]);
  } catch (error) {
    return (error as { stderr: string }).stderr;
  }
  return readFileSync(output, "utf8");
}

describe("gen-tables", () => {
  it("keeps each file's source line and every row", async () => {
    const text = await generate();
    for (const name of ["special_purpose.tsv", "metadata_endpoints.tsv", "doh.tsv"]) {
      const [source] = readFileSync(join(root, "data", name), "utf8").split("\n") as [string];
      expect(text).toContain(source.slice(2));
    }
    expect(text.match(/"group":/g)).toHaveLength(readFileSync(join(root, "data/special_purpose.tsv"), "utf8").trim().split("\n").length - 2);
    expect(text).toContain('"169.254.129.0/24"');
    expect(text).not.toContain('"127.0.0.1"');
  });

  const special = "\tNew\t[RFC1]\tFalse\tTrue\tTrue\tTrue\tFalse\tN/A";
  it.each([
    ["special_purpose.tsv", `198.51.100.0${special}\t4\tx\tdeny`, "not a prefix: 198.51.100.0"],
    ["special_purpose.tsv", `2001:db8::/32${special}\t4\tx\tdeny`, "family 4 is not that of 2001:db8::/32"],
    ["special_purpose.tsv", `198.51.100.0/24${special}\t4\tx\tallow`, "unknown verdict: allow"],
    ["special_purpose.tsv", `198.51.100.0/24${special}\t4\tx\tdeny\textra`, "13 cells, but 12 columns"],
    ["metadata_endpoints.tsv", "New cloud\tthe gateway\t80/tcp\t\tlink-local\tdocs", "neither an address nor a known exception: the gateway"],
    ["metadata_endpoints.tsv", "New cloud\t192.0.2.1 or 192.0.2.2\t80/tcp\t\tlink-local\tdocs", "neither an address nor a known exception: 192.0.2.1 or 192.0.2.2"],
    ["metadata_endpoints.tsv", "New cloud\t192.0.2.1\t80/tcp\tmeta data\tlink-local\tdocs", "neither a name nor a known exception: meta data"],
    ["doh.tsv", "New\tdns.example.net\tanycast", "not an address: anycast"],
    ["doh.tsv", "New\tdns.*.net\t192.0.2.1", "not a name: dns.*.net"],
  ])("%s: a row that is not understood is an error", async (name, row, message) => {
    appendFileSync(join(directory, "data", name), `${row}\n`);
    const answer = await generate();
    expect(answer).toContain(`data/${name}:`);
    expect(answer).toContain(message);
  });

  it("a prefix that the groups need may not disappear", async () => {
    const path = join(directory, "data/special_purpose.tsv");
    writeFileSync(path, readFileSync(path, "utf8").split("\n").filter((line) => !line.startsWith("100.64.0.0/10")).join("\n"));
    expect(await generate()).toContain("no row for 100.64.0.0/10, which the address groups need");
  });
  it.each(["source", "columns"])("the line of %s is required", async (what) => {
    const path = join(directory, "data/doh.tsv");
    const lines = readFileSync(path, "utf8").split("\n");
    lines[what === "source" ? 0 : 1] = "something else";
    writeFileSync(path, lines.join("\n"));
    expect(await generate()).toMatch(/data\/doh\.tsv:[12]: /);
  });
});
