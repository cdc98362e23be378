/**
 * The benchmarks by name, the rows that each owns and the Debian packages whose programs it runs.
 */
export const SUITES = /** @type {const} */ ({
  prog: { rows: ["prog"], about: "the kernel programs alone, by BPF_PROG_TEST_RUN" },
  tap: { rows: ["tap"], about: "frames written to a real tap, beside nftables" },
  tcp: { rows: ["tcp"], about: "TCP through a forwarded path" },
  dns: { rows: ["dns"], about: "the resolver, beside dnsmasq" },
  attach: { rows: ["attach", "detach", "mem", "swap"], about: "attaching, detaching, memory and policy swap with 1,000 taps" },
  tls: { rows: ["tls"], about: "TLS looked into, beside mitmproxy" },
  churn: { rows: ["churn"], about: "memory over a million names" },
});

/** @typedef {keyof typeof SUITES} SuiteName */

/** @param {SuiteName} name @param {string} id */
export function owns(name, id) {
  return /** @type {readonly string[]} */ (SUITES[name].rows).includes(id.split(".")[0]);
}
