#!/usr/bin/env node
/**
 * Measures again and compares with the recorded results: node bench/check.mjs [name …]. Fails when a ratio is worse than the
 * recorded one by more than the noise of both. The new figures go to results/local/check.json; the recorded ones stay.
 */
import { fileURLToPath } from "node:url";
import { readResults } from "./lib/results.mjs";
import { owns } from "./lib/suites.mjs";
import { runAll, suiteNames } from "./run.mjs";

const FRESH = fileURLToPath(new URL("results/local/check.json", import.meta.url));

/**
 * Spread as a part of what the ratio is made of: of what lies above the baseline, where ratio is of costs that come on top.
 * @param {import("./lib/measure.mjs").Row} row
 */
export function noise({ value, spread, baseline, peer, ratio }) {
  const added = baseline !== null && peer !== null && ratio !== null && Math.abs(ratio - (peer - baseline) / (value - baseline)) < 0.01 * Math.abs(ratio);
  return spread / Math.max(Math.abs(added ? value - baseline : value), Number.MIN_VALUE);
}

/** @param {readonly import("./lib/measure.mjs").Row[]} recorded @param {readonly import("./lib/measure.mjs").Row[]} fresh */
export function compare(recorded, fresh) {
  const byId = new Map(fresh.map((row) => [row.id, row]));
  return recorded.flatMap((before) => {
    const now = byId.get(before.id);
    if (before.ratio === null) return [];
    if (now === undefined || now.ratio === null) return [{ id: before.id, before: before.ratio, now: null, least: before.ratio, worse: true }];
    const least = before.ratio * (1 - noise(before)) / (1 + noise(now));
    return [{ id: before.id, before: before.ratio, now: now.ratio, least, worse: now.ratio < least }];
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const names = suiteNames(process.argv.slice(2));
  const recorded = readResults();
  if (recorded === null) throw new Error("bench/results/latest.json is not there: run make bench first");
  const complete = await runAll(names, FRESH);
  const own = (/** @type {import("./lib/measure.mjs").Row} */ { id }) => names.some((name) => owns(name, id));
  const lines = compare(recorded.rows.filter(own), (readResults(FRESH)?.rows ?? []).filter(own));
  for (const { id, before, now, least, worse } of lines) process.stdout.write(`${worse ? "WORSE" : "ok   "} ${id}: ratio ${now ?? "not measured"}, recorded ${before}, at least ${least.toPrecision(3)}\n`);
  const worse = lines.filter((line) => line.worse).length;
  process.stdout.write(worse === 0 ? `bench-check: ${lines.length} ratios, none worse than recorded\n` : `bench-check: ${worse} of ${lines.length} ratios worse than recorded\n`);
  process.exitCode = worse > 0 || !complete ? 1 : 0;
}
