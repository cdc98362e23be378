/** The block list: forms of lines, kinds of entries, a million names. */
import { createHash } from "node:crypto";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isLong } from "../../src/agent/policy-source.js";
import { BLOCK_NAMES, BlockJudge, type BlockList, BlockListBuilder, blockCount, emptyBlockList } from "../../src/policy/blocklist.js";
import { PolicyError, Report, formatDiagnostic } from "../../src/policy/diagnostics.js";
import { matchesPattern, parsePattern } from "../../src/policy/names.js";

/** Milliseconds: a busy machine must not fail a test. */
const SLOW = 120_000;

function build(text: string | Uint8Array): { list: BlockList; errors: string[] } {
  const report = new Report();
  const builder = new BlockListBuilder(report);
  builder.addText(typeof text === "string" ? new TextEncoder().encode(text) : text, "list.txt");
  const list = builder.finish();
  let errors: string[] = [];
  try {
    report.throwIfFailed();
  } catch (error) {
    errors = (error as PolicyError).diagnostics.map(formatDiagnostic);
  }
  return { list, errors };
}
const blocks = (list: BlockList, name: string): boolean => new BlockJudge(list).blocks(name.split("."));

describe("lines", () => {
  it("plain names, patterns, hosts files, comments, blank lines, either line end", () => {
    const { list, errors } = build([
      "# a list", "", "ads.example", "  spaced.example  ", "comment.example # why", "UPPER.Example.", "*.below.example", "suffix:both.example", "münchen.example", "xn--mnchen-3ya.de", "crlf.example\r",
      "0.0.0.0 one.example", "127.0.0.1\ttwo.example three.example # both", ":: six.example", "192.0.2.1 four.example", "127.0.0.1 localhost", "::1 ip6-localhost", "fe80::1%lo0 localhost", "0.0.0.0 0.0.0.0", "255.255.255.255 broadcasthost", "_tcp.dashed--x.example", "*.zip", "single",
    ].join("\n"));
    expect(errors).toEqual([]);
    for (const name of ["ads.example", "spaced.example", "comment.example", "upper.example", "a.below.example", "a.b.below.example", "both.example", "a.both.example", "xn--mnchen-3ya.example", "xn--mnchen-3ya.de", "crlf.example", "one.example", "two.example", "three.example", "six.example", "four.example", "_tcp.dashed--x.example", "a.zip", "single"]) expect(blocks(list, name), name).toBe(true);
    for (const name of ["example", "x.ads.example", "below.example", "localhost", "ip6-localhost", "broadcasthost", "zip", "dsone.example", "a.single"]) expect(blocks(list, name), name).toBe(false);
  });
  it("a byte order mark and a last line without an end", () => {
    const { list, errors } = build(Uint8Array.of(0xef, 0xbb, 0xbf, ...new TextEncoder().encode("a.example\nb.example")));
    expect(errors).toEqual([]);
    expect(blocks(list, "a.example") && blocks(list, "b.example")).toBe(true);
  });
  it.each([
    ["||ads.example^", '"||ads.example^" has characters that no host name has; use the list\'s plain or hosts edition; filter syntax is not read'],
    ["a.example b.example", 'more than one word: "a.example b.example"; write one name a line, or lines of a hosts file'],
    ["1.2.3.4", '"1.2.3.4" is an address, not a name; write the address alone, in a rule'],
    ["a..example", '"a..example" has an empty label; remove the doubled, leading or second trailing dot'],
    [".example", '".example" has an empty label; remove the doubled, leading or second trailing dot'],
    [`${"a".repeat(64)}.example`, `"${"a".repeat(64)}.example" has a label longer than 63 octets; write the name as it is in DNS`],
    ["xn--a.example", '"xn--a.example": xn--a is not a valid A-label; write the name as it is in DNS'],
    ["a.*.example", '"a.*.example": `*` stands only at the front, as a whole label; write *.example.com (below the name), or suffix:example.com (the name too)'],
  ])("%j is an error with its line", (line, message) => {
    expect(build(`ok.example\n${line}\nok.example`).errors).toEqual([`list.txt:2: error: ${message}`]);
  });
  it("octets that are not UTF-8", () => {
    expect(build(Uint8Array.of(0x61, 0xff, 0x0a)).errors).toEqual(["list.txt:1: error: the line is not UTF-8; save the list as UTF-8"]);
  });
  it("many errors are counted", () => {
    const { errors } = build("||x^\n".repeat(100));
    expect(errors).toHaveLength(11);
    expect(errors.at(-1)).toBe("list.txt: error: 90 more lines are not understood; mend these first; the format is one name a line, or a hosts file");
  });
});

describe("whatever a file is, reading it ends", () => {
  it("a line without an end is not quoted, and not turned into text", () => {
    const { errors } = build(Buffer.alloc(200 << 20));
    expect(errors).toEqual(["list.txt:1: error: the line has more than 65,536 octets; name a list: one name a line, or a hosts file"]);
  }, SLOW);
  it("of what is no list a thousand lines are read", () => {
    const { errors } = build("||x^\n".repeat(1_000) + "a.example\n".repeat(10));
    expect(errors).toHaveLength(11);
    expect(errors.at(-1)).toBe("list.txt:1000: error: it is not read further: 1,000 lines are not understood; name a list: one name a line, or a hosts file");
  });
  it("names may repeat ten million times", () => {
    expect(build(Buffer.alloc(4 * 10_000_000, "a.b\n")).errors).toEqual([]);
    expect(build(Buffer.alloc(4 * 10_000_001, "a.b\n")).errors).toEqual(["list.txt:10000001: error: the block lists have more than 10,000,000 entries, names that repeat among them; leave lists out, or make one of them that names each once"]);
  }, SLOW);
  it("comments, also long ones, and empty lines are no entries", () => {
    const { list, errors } = build(`#${"x".repeat(70_000)}\n\r\n\n#\r\na.example\n`);
    expect(errors).toEqual([]);
    expect(blocks(list, "a.example")).toBe(true);
  });
  it.each([
    ["dns: {block: [{file: x}]}", true], ["dns:\n  block:\n  - 'file' : x", true], ['dns: {"bl\\x6fck": [{"f\\x69le": x}]}', true], ["tls: {upstream_ca: x.pem}", true], [`# ${"x".repeat(8192)}`, true],
    ["rules: [{allow: public}]", false], ["dns: {block: [ads.example]}", false], ["secrets: {A: {from: {file: x}, allowed_hosts: [a.example]}}", false],
  ])("the agent reads it in a thread of its own where it may take long: %j, %s", (text, apart) => {
    expect(isLong({ file: { path: "/p.yaml", text } })).toBe(apart);
  });
});

describe("matching", () => {
  it("is that of patterns", () => {
    const name = fc.array(fc.constantFrom("a", "b", "ab", "x1"), { minLength: 1, maxLength: 4 }).map((parts) => [...parts, "example"].join("."));
    const entry = fc.tuple(fc.constantFrom("", "*.", "suffix:"), name).map(([form, base]) => form + base);
    fc.assert(fc.property(fc.array(entry, { maxLength: 6 }), name, (entries, asked) => {
      const { list } = build(entries.join("\n"));
      const expected = entries.some((text) => {
        const pattern = parsePattern(text);
        return pattern.ok && matchesPattern(pattern.value, asked.split("."));
      });
      expect(blocks(list, asked)).toBe(expected);
    }), { numRuns: 500 });
  });
  it("an empty list blocks nothing", () => {
    expect(blocks(emptyBlockList(), "a.example")).toBe(false);
    expect(blockCount(emptyBlockList())).toBe(0);
  });
});

describe("a million names", () => {
  const pseudo = (i: number): string => createHash("md5").update(String(i)).digest("hex").slice(0, 12);
  const names = Array.from({ length: BLOCK_NAMES }, (_, i) => `${pseudo(i)}.n${i}.example`);
  it("are held in tens of megabytes, found, and nothing else is", () => {
    const { list, errors } = build(names.join("\n"));
    expect(errors).toEqual([]);
    expect(blockCount(list)).toBe(BLOCK_NAMES);
    expect(list.exact.byteLength + list.below.byteLength + list.suffix.byteLength).toBe(8 * BLOCK_NAMES);
    const judge = new BlockJudge(list);
    for (let i = 0; i < BLOCK_NAMES; i += 97) expect(judge.blocks((names[i] as string).split("."))).toBe(true);
    for (let i = 0; i < 20000; i++) expect(judge.blocks([pseudo(i), `n${i + 1}`, "example"])).toBe(false);
  }, SLOW);
  it("one more is refused, repetitions are not counted", () => {
    expect(build([...names, ...names.slice(0, 1000)].join("\n")).errors).toEqual([]);
    expect(build([...names, "one.more.example"].join("\n")).errors).toEqual([expect.stringMatching(/the block list holds more than 1,000,000 names; leave names out/)]);
  }, SLOW);
});

it("crosses to a worker thread without copying", async () => {
  const { list } = build("a.example\nsuffix:b.example");
  const worker = new Worker("const { parentPort, workerData } = require('node:worker_threads'); parentPort.postMessage([workerData.exact.length, workerData.suffix.length, workerData.exact.buffer instanceof SharedArrayBuffer])", { eval: true, workerData: list });
  const answer = await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
  expect(answer).toEqual([1, 1, true]);
  await worker.terminate();
});
