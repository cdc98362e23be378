/**
 * What the figures have to be, each as one line: rows it reads, limit, and whether it is met. Missing rows are "not measured".
 */

/** @typedef {import("./lib/measure.mjs").Row} Row */
/** @typedef {(id: string) => Row | undefined} Rows */
/** @typedef {{what: string, limit: string, measured: (row: Rows) => number | null, met: (value: number) => boolean, digits?: number, unit?: string}} Target */

/** What lies above the baseline. @param {Row | undefined} row */
const over = (row) => (row === undefined || row.baseline === null ? null : row.value - row.baseline);

/** @param {Rows} row @param {string} id */
const ratio = (row, id) => row(id)?.ratio ?? null;

/** Of several ids the largest. @param {readonly string[]} ids */
const worst = (ids) => (/** @type {Rows} */ row) => {
  const values = ids.map((id) => over(row(id)));
  return values.some((value) => value === null) ? null : Math.max(.../** @type {number[]} */ (values));
};

/** How much dearer the second is than the first, whole packets compared. @param {readonly string[]} kinds @param {string} suffix */
const growth = (kinds, suffix) => (/** @type {Rows} */ row) => {
  const values = kinds.map((kind) => { const small = row(kind), large = row(`${kind}${suffix}`); return small === undefined || large === undefined ? null : large.value / small.value; });
  return values.some((value) => value === null) ? null : Math.max(.../** @type {number[]} */ (values));
};

const KINDS = ["prog.established", "prog.drop.metadata", "prog.drop.private", "prog.new_flow", "prog.pin.hit"].flatMap((kind) => [kind, `${kind}.v6`]);
const DROPS = ["prog.drop.metadata", "prog.drop.private", "prog.drop.metadata.v6", "prog.drop.private.v6"];

/** @type {readonly Target[]} */
export const TARGETS = [
  { what: "established, over the empty program", limit: "≤ 60 ns", measured: worst(["prog.established", "prog.established.v6"]), met: (ns) => ns <= 60, unit: "ns" },
  { what: "drop, over the empty program", limit: "≤ 80 ns", measured: worst(DROPS), met: (ns) => ns <= 80, unit: "ns" },
  { what: "drop on the tap at 10,000 prefixes: what nftables adds, against what we add", limit: "≥ 4×", measured: (row) => ratio(row, "tap.drop@10000"), met: (times) => times >= 4, digits: 2, unit: "×" },
  { what: "growth from 10 to 10,000 prefixes", limit: "≤ 1.15×", measured: growth(KINDS, "@10000"), met: (times) => times <= 1.15, digits: 2, unit: "×" },
  { what: "growth from 1 to 1,000 names", limit: "≤ 1.15×", measured: growth(KINDS, "@names1000"), met: (times) => times <= 1.15, digits: 2, unit: "×" },
  { what: "TCP throughput, of the bare path's", limit: "≥ 0.97", measured: (row) => { const all = ["tcp.throughput", "tcp.throughput.8", "tcp.throughput.reverse"].map((id) => ratio(row, id)); return all.some((value) => value === null) ? null : Math.min(.../** @type {number[]} */ (all)); }, met: (part) => part >= 0.97, digits: 3 },
  { what: "DNS from cache, queries a second against dnsmasq", limit: "≥ 1.0×", measured: (row) => ratio(row, "dns.cached.qps"), met: (times) => times >= 1, digits: 2, unit: "×" },
  { what: "DNS from cache, 99th percentile against dnsmasq", limit: "≥ 1.0×", measured: (row) => ratio(row, "dns.cached.p99"), met: (times) => times >= 1, digits: 2, unit: "×" },
  { what: "DNS asked upstream, queries a second against dnsmasq with nftset", limit: "≥ 2.0×", measured: (row) => ratio(row, "dns.miss.qps"), met: (times) => times >= 2, digits: 2, unit: "×" },
  { what: "TLS intercepted, new connections a second against mitmproxy", limit: "≥ 10×", measured: (row) => ratio(row, "tls.handshakes"), met: (times) => times >= 10, digits: 1, unit: "×" },
  { what: "TLS intercepted, requests a second on kept connections against mitmproxy", limit: "≥ 10×", measured: (row) => { const all = [ratio(row, "tls.requests.h1"), ratio(row, "tls.requests.h2")]; return all.some((value) => value === null) ? null : Math.min(.../** @type {number[]} */ (all)); }, met: (times) => times >= 10, digits: 1, unit: "×" },
  { what: "TLS intercepted, one large body against mitmproxy", limit: "≥ 3×", measured: (row) => { const all = [ratio(row, "tls.download"), ratio(row, "tls.upload")]; return all.some((value) => value === null) ? null : Math.min(.../** @type {number[]} */ (all)); }, met: (times) => times >= 3, digits: 1, unit: "×" },
  { what: "TLS name verified, throughput of the bare path's", limit: "≥ 0.5", measured: (row) => ratio(row, "tls.splice"), met: (part) => part >= 0.5, digits: 2 },
  { what: "TLS name verified, throughput against intercepted", limit: "≥ 2×", measured: (row) => ratio(row, "tls.splice.times"), met: (times) => times >= 2, digits: 1, unit: "×" },
  { what: "TLS name verified, time to the first octet added, median", limit: "≤ 1 ms", measured: (row) => over(row("tls.added.p50")), met: (ms) => ms <= 1, digits: 2, unit: "ms" },
  { what: "memory of one idle intercepted connection", limit: "≤ 128 KiB", measured: (row) => row("tls.idle")?.value ?? null, met: (kib) => kib <= 128, unit: "KiB" },
  { what: "attach with 1,000 taps, 99th percentile", limit: "≤ 5 ms", measured: (row) => row("attach.p99")?.value ?? null, met: (ms) => ms <= 5, digits: 2, unit: "ms" },
  { what: "kernel memory of one sandbox", limit: "≤ 512 KiB", measured: (row) => row("mem.sandbox.kernel")?.value ?? null, met: (kib) => kib <= 512, unit: "KiB" },
  { what: "agent's memory over a million names, after the first 100,000", limit: "< 10 %", measured: (row) => { const churn = row("churn.rss"); return churn === undefined || churn.baseline === null ? null : (churn.value / churn.baseline - 1) * 100; }, met: (percent) => percent < 10, digits: 1, unit: "%" },
];

/** @param {readonly Row[]} rows */
export function judged(rows) {
  const byId = new Map(rows.map((row) => [row.id, row]));
  return TARGETS.map(({ what, limit, measured, met, digits = 0, unit = "" }) => {
    const value = measured((id) => byId.get(id));
    return { what, limit, measured: value === null ? "not measured" : `${value.toFixed(digits)}${unit === "×" || unit === "" ? unit : ` ${unit}`}`, met: value === null ? null : met(value) };
  });
}
