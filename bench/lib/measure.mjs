/**
 * Samples and what is made of them.
 *
 * Holds always: what is compared is sampled in turns, one sample of each after the other and in changing order, so that
 * whatever else the machine does falls on all of them alike; what is reported is the median, and beside it the spread:
 * the distance between the first and the third quartile.
 */

/** run.mjs --quick: a tenth of everything, to see that it works. Such figures mean nothing and are not recorded. */
export const QUICK = process.env.BENCH_QUICK === "1";

/** How many of something to measure: n, and a tenth of it when it has to be quick. @param {number} n @param {number} [least] */
export const times = (n, least = 3) => (QUICK ? Math.max(least, Math.round(n / 10)) : n);

/** @param {readonly number[]} values @param {number} q 0..1 */
export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * q, low = Math.floor(at), high = Math.ceil(at);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}

export const median = (/** @type {readonly number[]} */ values) => quantile(values, 0.5);

/** Distance between the quartiles. @param {readonly number[]} values */
export const spreadOf = (values) => quantile(values, 0.75) - quantile(values, 0.25);

/**
 * Samples every subject `samples` times, in turns.
 * @template {string} K
 * @param {Record<K, () => number | Promise<number>>} subjects
 * @param {{samples: number, warmup?: number}} options warmup: turns that do not count, default 1
 * @returns {Promise<Record<K, number[]>>}
 */
export async function inTurns(subjects, { samples, warmup = 1 }) {
  const names = /** @type {K[]} */ (Object.keys(subjects));
  const taken = /** @type {Record<K, number[]>} */ (/** @type {unknown} */ (Object.fromEntries(names.map((name) => [name, []]))));
  for (let turn = -warmup; turn < samples; turn++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + turn + warmup) % names.length];
      const value = await subjects[name]();
      if (!Number.isFinite(value)) throw new Error(`${name} gave ${value}`);
      if (turn >= 0) taken[name].push(value);
    }
  }
  return taken;
}

/**
 * The half of the turns that were best as a whole: on a machine that has other work, those that were least disturbed. Every subject
 * counts alike in the choice, each by its own median, so that it favours none.
 * @template {Record<string, number[]>} T
 * @param {T} taken by inTurns()
 * @param {"low" | "high"} [best] which figures are good: "low" for costs, "high" for rates
 * @returns {T}
 */
export function quietHalf(taken, best = "low") {
  const scaled = Object.values(taken).map((values) => { const middle = median(values); return values.map((value) => (middle === 0 ? 0 : value / middle)); });
  const totals = (scaled[0] ?? []).map((_, turn) => scaled.reduce((sum, values) => sum + values[turn], 0));
  const limit = median(totals);
  const quiet = totals.map((total) => (best === "low" ? total <= limit : total >= limit));
  return /** @type {T} */ (Object.fromEntries(Object.entries(taken).map(([name, values]) => [name, values.filter((_, i) => quiet[i])])));
}

/**
 * @typedef {{id: string, unit: string, value: number, spread: number, baseline: number | null, peer: number | null, ratio: number | null}} Row
 * value, baseline and peer in the unit; spread in the unit: that of value, or with a baseline that is taken off, of the difference.
 */

/**
 * How ratio comes about; each says how many times better than the peer we are, or for "bare" which part of the bare figure is left.
 *   added   (peer - baseline) / (value - baseline): what both add to the same work without either
 *   cost    peer / value
 *   rate    value / peer
 *   bare    value / baseline: the median of the turns' own quotients, for both samples of a turn saw the same machine
 *   bare-cost  baseline / value, likewise
 *   none    null
 * @typedef {"added" | "cost" | "rate" | "bare" | "bare-cost" | "none"} RatioKind
 */

/**
 * @param {string} id @param {string} unit
 * @param {{ours: readonly number[], baseline?: readonly number[] | null, peer?: readonly number[] | null, ratio?: RatioKind, difference?: boolean}} samples
 *   difference: the baseline is the same work without us, and what counts is what lies above it
 * @returns {Row}
 */
export function row(id, unit, { ours, baseline = null, peer = null, ratio = "none", difference = ratio === "added" }) {
  const value = median(ours);
  const base = baseline === null ? null : median(baseline);
  const other = peer === null ? null : median(peer);
  const spread = spreadOf(difference && baseline !== null && baseline.length === ours.length ? ours.map((sample, i) => sample - baseline[i]) : ours);
  return { id, unit, value: shown(value), spread: shown(spread), baseline: base === null ? null : shown(base), peer: other === null ? null : shown(other), ratio: inPairs(ratio, ours, baseline) ?? ratioOf(ratio, value, base, other) };
}

/** @param {RatioKind} kind @param {readonly number[]} ours @param {readonly number[] | null} baseline */
function inPairs(kind, ours, baseline) {
  if (!kind.startsWith("bare") || baseline === null || baseline.length !== ours.length) return null;
  return shown(median(ours.map((sample, i) => (kind === "bare" ? sample / baseline[i] : baseline[i] / sample))));
}

/** @param {RatioKind} kind @param {number} value @param {number | null} baseline @param {number | null} peer */
export function ratioOf(kind, value, baseline, peer) {
  const need = (/** @type {number | null} */ n) => {
    if (n === null) throw new Error(`a ratio of kind ${kind} lacks a figure`);
    return n;
  };
  switch (kind) {
    case "none": return null;
    case "added": return peer === null ? null : shown((peer - need(baseline)) / Math.max(value - need(baseline), Number.MIN_VALUE));
    case "cost": return peer === null ? null : shown(peer / value);
    case "rate": return peer === null ? null : shown(value / peer);
    case "bare": return shown(value / need(baseline));
    case "bare-cost": return shown(need(baseline) / value);
  }
}

/** Four significant digits: more would pretend. @param {number} value */
export function shown(value) {
  return value === 0 || !Number.isFinite(value) ? value : Number(value.toPrecision(4));
}
