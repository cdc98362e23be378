/**
 * What the benchmarks do to the namespaces they run in. run.mjs has made those; they end with the process.
 */
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";

/** @param {readonly string[]} command @param {string} [input] @returns {string} its standard output */
export function must([file, ...args], input = "") {
  const { status, stdout, stderr, error } = spawnSync(/** @type {string} */ (file), args, { input, encoding: "utf8", stdio: ["pipe", "pipe", "pipe"], maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(`${[file, ...args].join(" ")}: ${error?.message ?? stderr.slice(0, 500)}`);
  return stdout;
}

/** Lines of ip(8) commands. @param {string} lines @param {string} [namespace] */
export function ip(lines, namespace) {
  must(["ip", ...(namespace === undefined ? [] : ["-n", namespace]), "-batch", "-"], lines.split("\n").map((line) => line.trim()).filter((line) => line !== "").join("\n"));
}

/** @param {Record<string, string | number>} values by path under /proc/sys/net @param {string} [namespace] */
export function sysctl(values, namespace) {
  const script = Object.entries(values).map(([name, value]) => `echo ${value} > /proc/sys/net/${name}`).join(" && ");
  must([...inside(namespace), "sh", "-c", script]);
}

/** @param {string} [namespace] */
export function inside(namespace) {
  return namespace === undefined ? [] : ["ip", "netns", "exec", namespace];
}

/** @param {number} ms */
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let named = false;

/** A namespace beside this one, known by its name in here only. @param {string} name */
export function namespace(name) {
  if (!named) {
    // ip(8) keeps names as files: these are to be seen by nobody outside, and to go with the mount namespace.
    must(["mkdir", "-p", "/run/netns"]);
    must(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
    named = true;
  }
  must(["ip", "netns", "add", name]);
  quiet(name);
  return name;
}

/** Addresses work at once and nothing is sent by itself. @param {string} [name] */
export function quiet(name) {
  sysctl({ "ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0, "ipv6/conf/all/accept_ra": 0, "ipv6/conf/default/accept_ra": 0, "ipv6/conf/default/router_solicitations": 0 }, name);
  ip("link set lo up", name);
}

let parent = "";
let folders = 0;

/** An empty folder on a file system that ends with this mount namespace. */
export function folder() {
  if (parent === "") {
    parent = mkdtempSync(path.join(os.tmpdir(), "enforcer-bench-"));
    must(["mount", "-t", "tmpfs", "tmpfs", parent]);
    process.on("exit", () => {
      spawnSync("umount", ["--lazy", parent]);
      spawnSync("rmdir", [parent]);
    });
  }
  const made = path.join(parent, String(++folders));
  mkdirSync(made);
  return made;
}

/** A BPF file system of this process's own. */
export function bpffs() {
  const made = path.join(folder(), "bpffs");
  mkdirSync(made);
  must(["mount", "-t", "bpf", "bpf", made]);
  return made;
}

/** @param {string} name @param {string} text */
export function file(name, text) {
  const made = path.join(folder(), name);
  writeFileSync(made, text);
  return made;
}

/**
 * Starts a program that stays until the end of the benchmark.
 * @param {readonly string[]} command @param {string} [name] namespace
 * @param {(line: string) => boolean} [ready] of its output; without it, it is ready at once
 */
export function start(command, name, ready) {
  const [program, ...args] = [...inside(name), ...command];
  const child = spawn(/** @type {string} */ (program), args, { stdio: ["pipe", "pipe", "pipe"] });
  let output = "";
  let waiting = ready === undefined;
  /** @type {Promise<import("node:child_process").ChildProcess>} */
  const started = new Promise((resolve, reject) => {
    const look = (/** @type {Buffer} */ data) => {
      output = (output + data.toString()).slice(-10_000);
      if (ready !== undefined && !waiting && output.split("\n").some(ready)) {
        waiting = true;
        resolve(child);
      }
    };
    child.stdout.on("data", look);
    child.stderr.on("data", look);
    child.on("error", reject);
    child.on("exit", (status, signal) => reject(new Error(`${command.join(" ")} ended with ${signal ?? status}: ${output}`)));
    if (ready === undefined) resolve(child);
  });
  return started;
}

/** Ends a program. @param {import("node:child_process").ChildProcess} child */
export async function stop(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), 3_000);
  await ended;
  clearTimeout(timer);
}

/** @param {readonly string[]} command @param {string} [name] namespace @returns {Promise<string>} its standard output */
export function run(command, name) {
  const [program, ...args] = [...inside(name), ...command];
  return new Promise((resolve, reject) => {
    const child = spawn(/** @type {string} */ (program), args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "", errors = "";
    child.stdout.on("data", (data) => { output += data; });
    child.stderr.on("data", (data) => { errors += data; });
    child.on("error", reject);
    child.on("close", (status, signal) => (status === 0 ? resolve(output) : reject(new Error(`${command.join(" ")} ended with ${signal ?? status}: ${errors}${output.slice(-2_000)}`))));
  });
}
