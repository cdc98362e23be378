/**
 * Whether fresh results are worse than recorded ones. Pure.
 *
 * Holds always: only what has a ratio is compared, for everything else depends on the machine; worse is what lies below the
 * recorded ratio by more than the noise of both together; a row that is missing or has lost its ratio is worse.
 */

/** @typedef {import("./measure.mjs").Row} Row */
/** @typedef {{id: string, before: number, now: number | null, least: number, worse: boolean}} Comparison */

/**
 * Spread as a part of what the ratio is made of: of what lies above the baseline, where it compares costs that come on top.
 * @param {Row} row
 */
export function noise({ value, spread, baseline, peer, ratio }) {
  const added = baseline !== null && peer !== null && ratio !== null && Math.abs(ratio - (peer - baseline) / (value - baseline)) < 0.01 * Math.abs(ratio);
  return spread / Math.max(Math.abs(added ? value - baseline : value), Number.MIN_VALUE);
}

/** @param {readonly Row[]} recorded @param {readonly Row[]} fresh @returns {Comparison[]} in the order of the recorded rows */
export function compare(recorded, fresh) {
  const byId = new Map(fresh.map((row) => [row.id, row]));
  return recorded.flatMap(/** @returns {Comparison[]} */ (before) => {
    if (before.ratio === null) return [];
    const now = byId.get(before.id);
    if (now === undefined || now.ratio === null) return [{ id: before.id, before: before.ratio, now: null, least: before.ratio, worse: true }];
    const least = before.ratio * (1 - noise(before)) / (1 + noise(now));
    return [{ id: before.id, before: before.ratio, now: now.ratio, least, worse: now.ratio < least }];
  });
}

/** What was worse both times: once may be the machine's other work. @param {readonly Comparison[]} first @param {readonly Comparison[]} second */
export function twiceWorse(first, second) {
  const again = new Map(second.map((one) => [one.id, one]));
  return first.filter(({ id, worse }) => worse && (again.get(id)?.worse ?? true));
}
