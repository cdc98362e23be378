#!/usr/bin/env node
/**
 * Runs benchmarks: node bench/run.mjs [--quick] [--output FILE] [name …]; without a name all of them. --quick takes few samples of
 * everything, to see that it works; its figures mean nothing and are not recorded.
 *
 * Each runs in a process of its own, in network, mount and PID namespaces of its own: no packet reaches the machine's
 * networks, and whatever a benchmark started ends with it. Needs root. Writes results/latest.json and prints the table.
 */
import { spawn, spawnSync } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { git, machine } from "./lib/machine.mjs";
import { LATEST, writeResults } from "./lib/results.mjs";
import { owns, SUITES } from "./lib/suites.mjs";
import { textTable } from "./table.mjs";

const QUICK = fileURLToPath(new URL("results/local/quick.json", import.meta.url));
const HERE = fileURLToPath(new URL(".", import.meta.url));
const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** Programs that the benchmarks and their peers run, by Debian package. */
const PROGRAMS = { nft: "nftables", dnsmasq: "dnsmasq-base", dnsperf: "dnsperf", iperf3: "iperf3", h2load: "nghttp2-client", mitmdump: "mitmproxy", nginx: "nginx-light" };

/** Builds the small C programs, installs what is missing. */
export function prepare() {
  if (process.getuid?.() !== 0) throw new Error("benchmarks load programs into the kernel and make network namespaces: run them as root");
  const missing = Object.keys(PROGRAMS).filter((program) => spawnSync("sh", ["-c", `command -v ${program}`]).status !== 0);
  if (missing.length > 0) spawnSync("bash", [`${ROOT}scripts/install-packages.sh`, "bench"], { stdio: "inherit" });
  for (const folder of [HERE, `${ROOT}test/tools`]) {
    const { status } = spawnSync("make", ["-s", "-C", folder], { stdio: "inherit" });
    if (status !== 0) throw new Error(`the tools in ${folder.slice(ROOT.length)} do not build`);
  }
}

/**
 * One benchmark in its own namespaces.
 * @param {import("./lib/suites.mjs").SuiteName} name
 * @returns {Promise<import("./lib/measure.mjs").Row[]>}
 */
export function runSuite(name) {
  return new Promise((resolve, reject) => {
    const child = spawn("unshare", ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", process.execPath, "--expose-gc", `${HERE}suite.mjs`, name], { stdio: ["ignore", "pipe", "inherit"] });
    /** @type {import("./lib/measure.mjs").Row[]} */
    const rows = [];
    createInterface({ input: child.stdout, crlfDelay: Infinity }).on("line", (line) => {
      if (line.startsWith('{"id":')) rows.push(JSON.parse(line));
      else process.stderr.write(`${line}\n`);
    });
    // Its namespaces end with this process, also when it is ended by a signal.
    const ended = () => child.kill("SIGKILL");
    process.once("exit", ended);
    child.on("error", reject);
    child.on("close", () => process.off("exit", ended));
    child.on("close", (status, signal) => (status === 0 ? resolve(rows) : reject(new Error(`benchmark ${name} ended with ${signal ?? `status ${status}`}`))));
  });
}

/** @param {readonly string[]} args */
export function suiteNames(args) {
  const names = /** @type {import("./lib/suites.mjs").SuiteName[]} */ (Object.keys(SUITES));
  for (const name of args) if (!names.includes(/** @type {any} */ (name))) throw new Error(`no benchmark is named ${name}; there are ${names.join(", ")}`);
  return args.length === 0 ? names : names.filter((name) => args.includes(name));
}

/** @param {readonly import("./lib/suites.mjs").SuiteName[]} names @param {string} output */
export async function runAll(names, output) {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));
  prepare();
  const facts = { machine: machine(), git: git() };
  /** @type {unknown[]} */
  const failures = [];
  for (const name of names) {
    const start = Date.now();
    process.stderr.write(`bench ${name}: ${SUITES[name].about}\n`);
    try {
      const rows = await runSuite(name);
      writeResults(output, facts, new Map([[name, { rows, owns: (/** @type {string} */ id) => owns(name, id) }]]));
      process.stdout.write(`\n${textTable(rows)}\n`);
    } catch (error) {
      failures.push(error);
      process.stderr.write(`bench ${name}: ${error instanceof Error ? error.message : error}\n`);
    }
    process.stderr.write(`bench ${name}: ${Math.round((Date.now() - start) / 1000)} s\n\n`);
  }
  return failures.length === 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const args = process.argv.slice(2);
  let output = LATEST;
  if (args[0] === "--quick") {
    args.shift();
    process.env.BENCH_QUICK = "1";
    output = QUICK;
  }
  if (args[0] === "--output") output = args.splice(0, 2)[1] ?? LATEST;
  try {
    process.exitCode = (await runAll(suiteNames(args), output)) ? 0 : 1;
  } catch (error) {
    process.stderr.write(`bench: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode = 1;
  }
}
