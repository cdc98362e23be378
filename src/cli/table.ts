/**
 * Tables and JSON for people and programs.
 *
 * Holds always: what is told is visible, whoever wrote it; columns are as wide as their widest cell; the last one is not padded; nothing is cut; no colour.
 */
import { visibleLine } from "../errors.js";

/** Rows under a head; nothing but the head's words when there are no rows is never printed: the caller says what is missing. */
export function tableText(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head.map((word) => word.toUpperCase()), ...rows.map((row) => row.map(visibleLine))];
  const widths = head.map((_, column) => Math.max(...all.map((row) => (row[column] ?? "").length)));
  return all.map((row) => `${row.map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column]!))).join("  ").trimEnd()}\n`).join("");
}

/** Name and value, one a line. */
export function factsText(facts: readonly (readonly [string, string])[]): string {
  const width = Math.max(...facts.map(([name]) => name.length));
  return facts.map(([name, value]) => `${name.padEnd(width)}  ${visibleLine(value)}`.trimEnd() + "\n").join("");
}

export function printJson(value: unknown): void { process.stdout.write(`${JSON.stringify(value)}\n`); }

export function ago(iso: string): string { return span((Date.now() - Date.parse(iso)) / 1000); }

/** Seconds as one reads them: 42s, 5m, 3h, 2d. */
export function span(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  return s < 120 ? `${s}s` : s < 7200 ? `${Math.floor(s / 60)}m` : s < 172_800 ? `${Math.floor(s / 3600)}h` : `${Math.floor(s / 86_400)}d`;
}
