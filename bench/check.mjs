#!/usr/bin/env node
/**
 * Measures again and compares with the recorded results: node bench/check.mjs [name …]. Fails when a ratio is worse than the
 * recorded one by more than the noise of both (lib/check.mjs). What seems worse is measured once more, and counts only if it is worse
 * again. The new figures go to results/local/check.json; the recorded ones stay.
 */
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { compare, twiceWorse } from "./lib/check.mjs";
import { readResults } from "./lib/results.mjs";
import { owns } from "./lib/suites.mjs";
import { runAll, suiteNames } from "./run.mjs";

const FRESH = fileURLToPath(new URL("results/local/check.json", import.meta.url));

/** @param {readonly import("./lib/measure.mjs").Row[]} recorded @param {readonly import("./lib/suites.mjs").SuiteName[]} names */
async function measured(recorded, names) {
  rmSync(FRESH, { force: true });
  const complete = await runAll(names, FRESH);
  const own = recorded.filter(({ id }) => names.some((name) => owns(name, id)));
  const lines = compare(own, readResults(FRESH)?.rows ?? []);
  for (const { id, before, now, least, worse } of lines) process.stdout.write(`${worse ? "WORSE" : "ok   "} ${id}: ratio ${now ?? "not measured"}, recorded ${before}, at least ${least.toPrecision(3)}\n`);
  return { complete, lines };
}

const names = suiteNames(process.argv.slice(2));
const recorded = readResults();
if (recorded === null) throw new Error("bench/results/latest.json is not there: run make bench first");
const first = await measured(recorded.rows, names);
const doubtful = names.filter((name) => first.lines.some(({ id, worse }) => worse && owns(name, id)));
let worse = first.lines.filter((line) => line.worse);
if (doubtful.length > 0) {
  process.stdout.write(`\nbench-check: ${doubtful.join(", ")} once more\n`);
  worse = twiceWorse(first.lines, (await measured(recorded.rows, doubtful)).lines);
}
process.stdout.write(worse.length === 0 ? `bench-check: ${first.lines.length} ratios, none worse than recorded\n` : `bench-check: ${worse.length} of ${first.lines.length} ratios worse than recorded: ${worse.map(({ id }) => id).join(", ")}\n`);
process.exitCode = worse.length > 0 || !first.complete ? 1 : 0;
