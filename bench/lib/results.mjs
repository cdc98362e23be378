/**
 * The file of results: {machine, git, rows}, rows in the order of the benchmarks.
 *
 * Holds always: a benchmark that ran alone replaces its own rows only; a row that it no longer has goes. `git.earlier` names the commit of
 * the other rows, by the first word of their ids, where that is not git.commit.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const LATEST = fileURLToPath(new URL("../results/latest.json", import.meta.url));

/** @typedef {import("./measure.mjs").Row} Row */
/** @typedef {{machine: Record<string, unknown>, git: Record<string, unknown>, rows: Row[]}} Results */

/** @param {string} [file] @returns {Results | null} */
export function readResults(file = LATEST) {
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : null;
}

/**
 * @param {string} file
 * @param {Omit<Results, "rows">} facts
 * @param {ReadonlyMap<string, {rows: readonly Row[], owns: (id: string) => boolean}>} measured by benchmark, in order
 */
export function writeResults(file, facts, measured) {
  const former = /** @type {any} */ (readResults(file));
  const kept = /** @type {Row[]} */ (former?.rows ?? []).filter(({ id }) => ![...measured.values()].some(({ owns }) => owns(id)));
  const rows = [...kept, ...[...measured.values()].flatMap(({ rows }) => rows)];
  const parts = [...new Set(inOrder([...kept]).map(({ id }) => id.split(".")[0]))].map((part) => [part, former.git.earlier?.[part] ?? former.git.commit]);
  const earlier = Object.fromEntries(parts.filter(([, commit]) => commit !== facts.git.commit));
  const git = Object.keys(earlier).length === 0 ? facts.git : { ...facts.git, earlier };
  mkdirSync(path.dirname(file), { recursive: true });
  const text = `{\n  "machine": ${JSON.stringify(facts.machine)},\n  "git": ${JSON.stringify(git)},\n  "rows": [\n${inOrder(rows).map((row) => `    ${JSON.stringify(row)}`).join(",\n")}\n  ]\n}\n`;
  writeFileSync(`${file}.new`, text);
  renameSync(`${file}.new`, file);
}

const ORDER = ["prog", "tap", "tcp", "dns", "attach", "detach", "mem", "swap", "churn", "tls"];

/** By benchmark; within one, as measured. @param {Row[]} rows */
export function inOrder(rows) {
  const place = (/** @type {Row} */ { id }) => { const at = ORDER.indexOf(id.split(".")[0]); return at < 0 ? ORDER.length : at; };
  return rows.map((row, i) => ({ row, i })).sort((a, b) => place(a.row) - place(b.row) || a.i - b.i).map(({ row }) => row);
}
