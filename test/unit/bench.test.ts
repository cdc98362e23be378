/**
 * The pure parts of bench/: how figures, ratios and their noise come about, that a benchmark replaces its own rows only, and
 * that the documents show what is recorded. Speed itself is not tested.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { compare, noise, twiceWorse } from "../../bench/lib/check.mjs";
import { inTurns, quantile, quietHalf, ratioOf, row, shown } from "../../bench/lib/measure.mjs";
import { policyText, prefixes } from "../../bench/lib/policies.mjs";
import { LATEST, readResults, writeResults } from "../../bench/lib/results.mjs";
import { owns, SUITES } from "../../bench/lib/suites.mjs";
import { document, documents, summary, textTable, withGenerated } from "../../bench/table.mjs";
import { judged } from "../../bench/targets.mjs";

type RatioKind = Parameters<typeof ratioOf>[0];
type Results = NonNullable<ReturnType<typeof readResults>>;
type SuiteName = keyof typeof SUITES;
/** Of a file that was written before. */
const recordedIn = (file?: string): Results => {
  const results = readResults(file);
  if (results === null) throw new Error("no results are recorded");
  return results;
};

interface Row { id: string; unit: string; value: number; spread: number; baseline: number | null; peer: number | null; ratio: number | null }

const folder = mkdtempSync(join(tmpdir(), "enforcer-bench-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

const aRow = (id: string, more: Partial<Row> = {}): Row => ({ id, unit: "ns", value: 100, spread: 5, baseline: null, peer: null, ratio: null, ...more });

describe("ratio: how many times better we are", () => {
  test.each([
    ["added", 110, 100, 140, 4],
    ["cost", 2, null, 8, 4],
    ["rate", 8, null, 2, 4],
    ["bare", 9.7, 10, null, 0.97],
    ["bare-cost", 20, 10, null, 0.5],
    ["none", 20, 10, 5, null],
    ["added", 110, 100, null, null],
    ["cost", 2, null, null, null],
    ["rate", 2, null, null, null],
  ])("%s of %d, baseline %s, peer %s: %s", (kind, value, baseline, peer, ratio) => {
    expect(ratioOf(kind as RatioKind, value, baseline, peer)).toBe(ratio);
  });

  test("what is worse has the smaller ratio, whatever is compared", () => {
    for (const [kind, better, worse] of [["added", 110, 120], ["cost", 10, 20], ["rate", 20, 10], ["bare", 20, 10], ["bare-cost", 10, 20]] as const) {
      expect(ratioOf(kind, better, 100, 200)).toBeGreaterThan(ratioOf(kind, worse, 100, 200) ?? NaN);
    }
  });

  test("without the figure it needs, no ratio is made up", () => {
    expect(() => ratioOf("bare", 1, null, null)).toThrow("lacks a figure");
    expect(() => ratioOf("added", 1, null, 3)).toThrow("lacks a figure");
  });
});

describe("a row", () => {
  test("has exactly the fields of the results, medians, and the distance of the quartiles", () => {
    expect(row("a.b", "ns", { ours: [1, 2, 3, 4, 100], baseline: [1, 1, 1, 1, 1], peer: [5, 6, 7, 8, 9], ratio: "cost" }))
      .toEqual({ id: "a.b", unit: "ns", value: 3, spread: 2, baseline: 1, peer: 7, ratio: 2.333 });
  });

  test("whose baseline is taken off has the spread of the difference", () => {
    const together = { ours: [110, 120, 130, 140, 150], baseline: [10, 20, 30, 40, 50] };
    expect(row("a", "ns", { ...together, difference: true }).spread).toBe(0);
    expect(row("a", "ns", together).spread).toBe(20);
  });

  test("quantiles lie between the samples", () => {
    expect([0, 0.25, 0.5, 1].map((q) => quantile([4, 1, 3, 2], q))).toEqual([1, 1.75, 2.5, 4]);
    expect([shown(1234.56), shown(0.00123456), shown(0)]).toEqual([1235, 0.001235, 0]);
  });
});

describe("samples", () => {
  test("are taken in turns, each first as often as the others, and the warm-up does not count", async () => {
    const order: string[] = [];
    const taken = await inTurns({ a: () => order.push("a"), b: () => order.push("b"), c: () => order.push("c") }, { samples: 3, warmup: 1 });
    expect(order.join("")).toBe("abcbcacababc");
    expect(taken).toEqual({ a: [6, 8, 10], b: [4, 9, 11], c: [5, 7, 12] });
  });

  test("that are no numbers are an error", async () => {
    await expect(inTurns({ a: () => Number.NaN }, { samples: 1 })).rejects.toThrow("a gave NaN");
  });

  test("of disturbed turns are left out, and the choice favours nobody", () => {
    const taken = { baseline: [10, 30, 11, 10], ours: [100, 100, 101, 300] };
    expect(quietHalf(taken)).toEqual({ baseline: [10, 11], ours: [100, 101] });
    expect(quietHalf(taken, "high")).toEqual({ baseline: [30, 10], ours: [100, 300] });
  });
});

describe("results", () => {
  const facts = { machine: { cpus: 2 }, git: { commit: "abc", changed: false } };
  const of = (name: SuiteName, ids: string[]): [string, unknown] => [name, { rows: ids.map((id) => aRow(id)), owns: (id: string) => owns(name, id) }];

  test("of one benchmark replace its own rows only, and rows that it no longer has go", () => {
    const file = join(folder, "latest.json");
    writeResults(file, facts, new Map([of("tap", ["tap.drop", "tap.gone"]), of("prog", ["prog.established"]), of("attach", ["attach.p50", "mem.sandbox.kernel"])] as never));
    writeResults(file, { ...facts, git: { commit: "def", changed: true } }, new Map([of("tap", ["tap.drop", "tap.new"])] as never));
    const results = recordedIn(file);
    expect(Object.keys(results)).toEqual(["machine", "git", "rows"]);
    expect(results.git).toEqual({ commit: "def", changed: true, earlier: { prog: facts.git.commit, attach: facts.git.commit, mem: facts.git.commit } });
    expect(document(results as never)).toContain(`### prog, measured at commit ${facts.git.commit}\n`);
    expect(document(results as never)).toContain("### tap\n");
    // Measured anew, all of it is of one commit.
    writeResults(file, { ...facts, git: { commit: "def", changed: false } }, new Map([of("prog", ["prog.established"]), of("attach", ["attach.p50", "mem.sandbox.kernel"])] as never));
    expect(recordedIn(file).git).toEqual({ commit: "def", changed: false });
    expect(results.rows.map(({ id }: Row) => id)).toEqual(["prog.established", "tap.drop", "tap.new", "attach.p50", "mem.sandbox.kernel"]);
  });

  test("every row belongs to one benchmark", () => {
    for (const id of ["prog.new_flow.v6@1000", "tap.tso", "tcp.rr", "dns.miss.qps", "attach.p99@100", "detach.p99", "mem.sandbox.agent", "swap.p99", "churn.rss"]) {
      expect((Object.keys(SUITES) as SuiteName[]).filter((name) => owns(name, id))).toHaveLength(1);
    }
  });
});

describe("bench-check", () => {
  const recorded = [aRow("dns.cached.qps", { value: 100, spread: 10, peer: 50, ratio: 2 })];

  test("is content with a ratio within the noise of both, and with a better one", () => {
    for (const ratio of [1.7, 2, 5]) expect(compare(recorded, [aRow("dns.cached.qps", { value: 100, spread: 10, peer: 50, ratio })])[0]?.worse).toBe(false);
  });

  test("finds a ratio that is worse by more than the noise of both", () => {
    expect(compare(recorded, [aRow("dns.cached.qps", { value: 100, spread: 10, peer: 50, ratio: 1.6 })])).toMatchObject([{ id: "dns.cached.qps", before: 2, now: 1.6, worse: true }]);
    expect(compare(recorded, [aRow("dns.cached.qps", { value: 100, spread: 0, peer: 50, ratio: 1.7 })])[0]?.worse).toBe(true);
  });

  test("takes a row that is missing, or has no ratio any more, for worse", () => {
    expect(compare(recorded, [])[0]?.worse).toBe(true);
    expect(compare(recorded, [aRow("dns.cached.qps")])[0]?.worse).toBe(true);
  });

  test("compares nothing that depends on the machine alone", () => {
    expect(compare([aRow("prog.established", { baseline: 40 })], [])).toEqual([]);
  });

  test("where ratio is of what is added, noise is a part of that", () => {
    expect(noise(aRow("tap.drop", { value: 110, spread: 5, baseline: 100, peer: 140, ratio: 4 }))).toBeCloseTo(0.5);
    expect(noise(aRow("tcp.rr", { value: 110, spread: 11, baseline: 100, ratio: 0.909 }))).toBeCloseTo(0.1);
  });

  test("believes only what is worse twice", () => {
    const line = (id: string, worse: boolean): ReturnType<typeof compare>[number] => ({ id, before: 2, now: 1, least: 1.5, worse });
    expect(twiceWorse([line("a", true), line("b", true), line("c", false)], [line("a", true), line("b", false), line("c", true)]).map(({ id }: { id: string }) => id)).toEqual(["a"]);
    expect(twiceWorse([line("a", true)], [])).toHaveLength(1);
  });
});

describe("targets", () => {
  const lineOf = (rows: Row[], what: string): { measured: string; met: boolean | null } | undefined => judged(rows).find((target: { what: string }) => target.what.startsWith(what));

  test("are not measured without their rows", () => {
    for (const { measured, met } of judged([])) expect([measured, met]).toEqual(["not measured", null]);
  });

  test("are met and missed by what is recorded", () => {
    const established = (value: number): Row[] => [aRow("prog.established", { value, baseline: 40 }), aRow("prog.established.v6", { value: 80, baseline: 40 })];
    expect(lineOf(established(99), "established")).toMatchObject({ measured: "59 ns", met: true });
    expect(lineOf(established(101), "established")).toMatchObject({ measured: "61 ns", met: false });
    const churn = (value: number): Row[] => [aRow("churn.rss", { unit: "MiB", value, baseline: 200 })];
    expect(lineOf(churn(219), "agent's memory")).toMatchObject({ measured: "9.5 %", met: true });
    expect(lineOf(churn(220), "agent's memory")).toMatchObject({ met: false });
  });
});

describe("tables", () => {
  test("show numbers a person can read", () => {
    expect(textTable([aRow("dns.miss.qps", { unit: "queries/s", value: 43210.5, peer: 20000, ratio: 2.16 })]).split("\n")[1]).toMatch(/dns\.miss\.qps +queries\/s +43,211 +5 +20,000 +2\.16×/);
    expect(summary({ machine: {}, git: {}, rows: [aRow("tap.drop@10000", { value: 1071, baseline: 1000, peer: 2000, ratio: 14.1 })] })).toContain("| a packet denied, 10,000 prefixes | +71 ns | nftables +1,000 ns | 14.1× |");
  });

  test("go between their markers and nowhere else", () => {
    const text = "a\n<!-- begin: generated by bench/table.mjs from bench/results/latest.json -->\nold\n<!-- end -->\nb\n";
    expect(withGenerated("x", text, "new")).toBe("a\n<!-- begin: generated by bench/table.mjs from bench/results/latest.json -->\nnew\n<!-- end -->\nb\n");
    expect(() => withGenerated("x", "nothing", "new")).toThrow("x lacks its markers");
  });

  test("in the documents are those of the recorded results", () => {
    for (const { path, text, wanted } of documents(recordedIn())) expect(text, path).toBe(wanted);
  });

  test("recorded results name no machine, person or path", () => {
    const text = readFileSync(LATEST, "utf8");
    expect(Object.keys(JSON.parse(text))).toEqual(["machine", "git", "rows"]);
    for (const one of JSON.parse(text).rows) expect(Object.keys(one)).toEqual(["id", "unit", "value", "spread", "baseline", "peer", "ratio"]);
    expect(text).not.toMatch(/\/(home|root|tmp|work|usr)\b|@[a-z]+\.|hostname/);
  });
});

describe("policies that are measured", () => {
  test("have as many prefixes of each family as they say, the same in every run", () => {
    for (const count of [10, 1_000]) {
      const { v4, v6 } = prefixes(count);
      expect([v4.length, v6.length, new Set([...v4, ...v6]).size]).toEqual([count, count, 2 * count]);
    }
    expect(prefixes(1_000)).toEqual(prefixes(1_000));
  });

  test("have as many rules as prefixes and names, and the one for metadata", () => {
    expect(policyText({ prefixes: 10, names: 7 }).match(/ {2}- \{allow/g)).toHaveLength(27);
  });
});
