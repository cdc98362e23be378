/**
 * Two policies as text, line by line: `- ` only before, `+ ` only after, two blanks in both.
 *
 * Holds always: pure; the lines with `- ` and blanks are the first text, those with `+ ` and blanks the second; time and memory are
 * bounded, at the price of a longer answer for texts that differ in thousands of lines.
 */

/** Lines that differ of both, multiplied: beyond it nothing common is looked for between them. */
const DIFF_CELLS = 4_000_000;

/** Lines of both: where both agree at the ends, and between them by the longest common subsequence, or, where that is too much, all. */
export function lineDiff(before: readonly string[], after: readonly string[]): string[] {
  let head = 0, tail = 0;
  while (head < before.length && before[head] === after[head]) head++;
  while (tail < before.length - head && tail < after.length - head && before.at(-1 - tail) === after.at(-1 - tail)) tail++;
  const old = before.slice(head, before.length - tail), young = after.slice(head, after.length - tail);
  const lines = before.slice(0, head).map((line) => `  ${line}`);
  if (old.length * young.length > DIFF_CELLS) lines.push(...old.map((line) => `- ${line}`), ...young.map((line) => `+ ${line}`));
  else {
    const lengths = Array.from({ length: old.length + 1 }, () => new Uint32Array(young.length + 1));
    for (let i = old.length - 1; i >= 0; i--) for (let j = young.length - 1; j >= 0; j--) lengths[i]![j] = old[i] === young[j] ? lengths[i + 1]![j + 1]! + 1 : Math.max(lengths[i + 1]![j]!, lengths[i]![j + 1]!);
    for (let i = 0, j = 0; i < old.length || j < young.length;) {
      if (i < old.length && j < young.length && old[i] === young[j]) {
        lines.push(`  ${old[i++]}`);
        j++;
      } else if (j >= young.length || (i < old.length && lengths[i + 1]![j]! >= lengths[i]![j + 1]!)) lines.push(`- ${old[i++]}`);
      else lines.push(`+ ${young[j++]}`);
    }
  }
  return [...lines, ...before.slice(before.length - tail).map((line) => `  ${line}`)];
}
