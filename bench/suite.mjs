/**
 * One benchmark in this process, which run.mjs has put into namespaces of its own: node suite.mjs NAME. Prints each row as
 * a line of JSON; everything else goes to standard error.
 */
import { SUITES } from "./lib/suites.mjs";

const name = process.argv[2] ?? "";
if (!(name in SUITES)) throw new Error(`no benchmark is named ${name}`);
const { run } = await import(`./suites/${name}.mjs`);
await run({
  row: (/** @type {import("./lib/measure.mjs").Row} */ row) => {
    process.stdout.write(`${JSON.stringify(row)}\n`);
    if (process.env.BENCH_VERBOSE) process.stderr.write(`  ${JSON.stringify(row)}\n`);
  },
  say: (/** @type {string} */ text) => process.stderr.write(`  ${text}\n`),
});
// What a benchmark left open must not keep it.
process.stdout.write("", () => process.exit(process.exitCode ?? 0));
