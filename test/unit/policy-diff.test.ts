/** Two texts line by line: whatever they are, both can be read out of the difference. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { lineDiff } from "../../src/policy/diff.js";

const of = (lines: readonly string[], marks: string): string[] => lines.filter((line) => marks.includes(line[0]!)).map((line) => line.slice(2));

describe("the difference of two policies", () => {
  it("holds both texts, in order", () => {
    const text = fc.array(fc.constantFrom("a", "b", "c", "d"), { maxLength: 12 });
    fc.assert(fc.property(text, text, (before, after) => {
      const lines = lineDiff(before, after);
      expect(of(lines, "- ")).toEqual(before);
      expect(of(lines, "+ ")).toEqual(after);
    }));
  });

  it("is no longer than it must be, and bounded", () => {
    expect(lineDiff(["a", "b", "c"], ["a", "x", "c"])).toEqual(["  a", "- b", "+ x", "  c"]);
    expect(lineDiff(["a"], ["a"])).toEqual(["  a"]);
    const many = (prefix: string): string[] => Array.from({ length: 5000 }, (_, i) => `${prefix}${i}`);
    expect(lineDiff(["same", ...many("a"), "end"], ["same", ...many("b"), "end"])).toHaveLength(10_002);
  });
});
