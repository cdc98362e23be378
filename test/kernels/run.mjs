// @ts-check
/**
 * make test-kernels: the programs and the packet tests on other kernels (Debian's, in QEMU without KVM) and on this one.
 *   run.mjs [KERNEL...] [--part PART]... [--replace FILE=PATH]...
 * KERNEL is a name in `kernels` or `realTime` below, or "here"; without any it is all of `kernels`, and "here". PART is what suite.mjs takes. --replace puts
 * FILE at PATH of the guest's copy of the tree, such as another bpf/build/enforcer.bpf.o.
 *
 * Holds always: the guest's disk is thrown away with it; a guest that does not end by itself is ended; a kernel on which any
 * part failed makes the exit status 1. What a part of PARTS gave is kept in results.json with the commit it ran at, as soon as
 * it is known, and docs/KERNELS.md is made from that; a part that was not run anew keeps its former entry.
 * It does not build the tree (make build does) and installs nothing.
 */
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.resolve(HERE, "../..");
const BUILD = path.join(HERE, "build");
/** A guest that says nothing for so long hangs. Without KVM a file of tests may take minutes before its line comes. */
const SILENCE_MS = 40 * 60_000;

/** Debian's kernels: name → package. The package that depends on the newest one stands for it. */
const kernels = new Map([["6.1", "linux-image-cloud-amd64"], ["6.12", "linux-image-6.12-cloud-amd64"]]);
/** The same with PREEMPT_RT, where spin locks sleep and programs can be preempted; tried when named. */
const realTime = new Map([["6.1-rt", "linux-image-rt-amd64"], ["6.12-rt", "linux-image-6.12-rt-amd64"]]);

/** What is tried everywhere. */
export const PARTS = ["load", "self-test", "test/prog/reasons.test.ts", "test/netns/clsact.test.ts", "test/netns/works.test.ts", "test/netns/sandboxes.test.ts", "test/netns/packets.test.ts", "test/netns/taps.test.ts", "test/netns/namespaces.test.ts"];
const RESULTS = path.join(HERE, "results.json");

/**
 * @typedef {{part: string, ok: boolean, error?: string, failures?: string[], passed?: number, failed?: number, skipped?: number, seconds?: number,
 *   release?: string, mechanism?: string, programs?: Record<string, {verifiedInstructions: number, jited: boolean}>}} Part
 * @typedef {{kernel: string, parts: Part[], fault: string | null}} Row
 */

/** @param {string[]} command */
function must(command) {
  const { status, error } = spawnSync(/** @type {string} */ (command[0]), command.slice(1), { stdio: ["ignore", 2, 2] });
  if (status !== 0) throw new Error(`${command.join(" ")}: ${error?.message ?? `status ${status}`}`);
}

/** The commit, with a plus where the tree has changes that are not in it. */
function commit() {
  const git = (/** @type {string[]} */ ...words) => spawnSync("git", words, { cwd: ROOT, encoding: "utf8" }).stdout?.trim() ?? "";
  return git("rev-parse", "--short", "HEAD") + (git("status", "--porcelain", "--untracked-files=no", "--", "src", "bpf", "native", "test", ":!test/kernels/results.json") === "" ? "" : "+");
}

/**
 * Results by kernel and part. @returns {Record<string, Record<string, Part & {commit: string}>>}
 */
export function results() {
  return existsSync(RESULTS) ? JSON.parse(readFileSync(RESULTS, "utf8")) : {};
}

/** @param {string} kernel @param {Part} part @param {string} at */
function keep(kernel, part, at) {
  const all = results();
  const { failures: _, ...facts } = part;
  all[kernel] = { ...all[kernel], [part.part]: { ...facts, commit: at } };
  writeFileSync(RESULTS, `${JSON.stringify(all, null, 1)}\n`);
}

/** @param {string} kernel @param {string} text */
const say = (kernel, text) => process.stderr.write(`${kernel}: ${text}\n`);

/** Reads "@JSON" lines as they come. @param {string} kernel @param {Row} row @param {boolean} kept */
function reader(kernel, row, kept) {
  const at = commit();
  let rest = "";
  return (/** @type {string} */ text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines.map((one) => one.trim())) {
      if (line.startsWith("@{")) {
        const part = /** @type {Part} */ (JSON.parse(line.slice(1)));
        row.parts.push(part);
        if (kept && PARTS.includes(part.part)) keep(kernel, part, at);
        say(kernel, `${part.ok ? "ok    " : "NOT OK"} ${part.part}${part.passed === undefined ? "" : `: ${part.passed} passed, ${part.failed} failed, ${part.skipped} skipped, ${part.seconds} s`}`);
        if (part.part === "load-object" && part.programs !== undefined) say(kernel, `       ${JSON.stringify(part.programs)}`);
        for (const failure of [...(part.error === undefined ? [] : [part.error]), ...(part.failures ?? [])]) say(kernel, `       ${failure}`);
      } else if (line.startsWith("@end")) row.fault = null;
    }
  };
}

/**
 * Waits for a process whose standard output carries the suite's lines; ends it when it has been silent for too long.
 * @param {import("node:child_process").ChildProcess} child @param {string} kernel @param {Row} row @param {boolean} kept
 */
async function follow(child, kernel, row, kept) {
  const read = reader(kernel, row, kept);
  const hangs = () => {
    row.fault = `silent for ${SILENCE_MS / 60_000} minutes`;
    child.kill("SIGKILL");
  };
  let timer = setTimeout(hangs, SILENCE_MS);
  child.stdout?.setEncoding("utf8").on("data", (text) => {
    clearTimeout(timer);
    timer = setTimeout(hangs, SILENCE_MS);
    read(text);
  });
  await new Promise((resolve, reject) => child.on("close", resolve).on("error", reject));
  clearTimeout(timer);
}

/** @param {string} kernel @param {string[]} parts @param {[string, string][]} replaced @returns {Promise<Row>} */
async function guest(kernel, parts, replaced) {
  /** @type {Row} */
  const row = { kernel, parts: [], fault: "the guest did not come to its end; see console.log" };
  const folder = path.join(BUILD, kernel);
  must([path.join(HERE, "kernel.sh"), /** @type {string} */ (kernels.get(kernel) ?? realTime.get(kernel)), folder]);
  must(["make", "-s", "-C", path.join(ROOT, "test/tools")]); // the guest has no compiler
  must([path.join(HERE, "userland.sh"), path.join(BUILD, "disk.img")]);
  const overlay = mkdtempSync(path.join(os.tmpdir(), "enforcer-kernel-"));
  const ended = () => {
    child.kill("SIGKILL");
    rmSync(overlay, { recursive: true, force: true });
  };
  /** @type {string[]} */
  let second = [];
  if (replaced.length > 0) {
    const tree = path.join(overlay, "tree");
    for (const [file, to] of replaced) {
      mkdirSync(path.dirname(path.join(tree, to)), { recursive: true });
      copyFileSync(file, path.join(tree, to));
    }
    must(["tar", "-b", "1024", "-C", tree, "-cf", path.join(overlay, "tree.tar"), "."]);
    second = ["-drive", `file=${path.join(overlay, "tree.tar")},if=virtio,format=raw,readonly=on`];
  }
  say(kernel, "booting (QEMU without KVM)");
  const child = spawn("qemu-system-x86_64", [
    "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "2048",
    "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    "-kernel", path.join(folder, "vmlinuz"), "-initrd", path.join(folder, "initramfs.cpio"),
    "-append", `console=ttyS0 quiet panic=-1 mitigations=off enf.parts=${parts.join(",")}`,
    "-serial", `file:${path.join(folder, "console.log")}`, "-serial", "stdio",
    "-drive", `file=${path.join(BUILD, "disk.img")},if=virtio,format=raw,snapshot=on`, ...second,
  ], { stdio: ["ignore", "pipe", "inherit"] });
  process.once("exit", ended);
  await follow(child, kernel, row, replaced.length === 0);
  process.off("exit", ended);
  ended();
  return row;
}

/** @param {string[]} parts @returns {Promise<Row>} */
async function here(parts) {
  /** @type {Row} */
  const row = { kernel: "here", parts: [], fault: null };
  const child = spawn(process.execPath, [path.join(HERE, "suite.mjs"), ...parts], { stdio: ["ignore", "pipe", "ignore"], env: { ENFORCER_TEST_PATIENCE: "3", ...process.env } });
  await follow(child, "here", row, true);
  return row;
}

/** The table, as it is printed and as docs/KERNELS.md carries it. @param {ReturnType<typeof results>} all */
export function table(all) {
  const cell = (/** @type {Part | undefined} */ part) => {
    if (part === undefined) return "not run";
    if (part.passed === undefined) return part.ok ? "yes" : "**no**";
    const text = `${part.passed} of ${part.passed + (part.failed ?? 0) + (part.skipped ?? 0)}`;
    return part.ok ? text : `**${text}**`;
  };
  const order = [...kernels.keys(), ...realTime.keys(), "here"].filter((name) => all[name] !== undefined);
  const lines = [["kernel", ...order.map((name) => all[name]?.load?.release ?? name)], order.concat("").map(() => "---"),
    ["hook", ...order.map((name) => all[name]?.load?.mechanism ?? "?")],
    ["instructions verified", ...order.map((name) => Object.values(all[name]?.load?.programs ?? {}).map(({ verifiedInstructions }) => verifiedInstructions).reduce((sum, one) => sum + one, 0).toLocaleString("en"))],
    ...PARTS.map((part) => [part === "load" ? "the programs load" : part === "self-test" ? "self-test of a start" : `\`${part}\``, ...order.map((name) => cell(all[name]?.[part]))]),
    ["at commit", ...order.map((name) => [...new Set(Object.values(all[name] ?? {}).map((part) => part.commit))].join(", "))]];
  return lines.map((line) => `| ${line.join(" | ")} |`).join("\n");
}

async function main() {
  // A guest ends with this process, also when it is ended by a signal.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { part: { type: "string", multiple: true }, replace: { type: "string", multiple: true } } });
  const parts = values.part ?? PARTS;
  const names = positionals.length > 0 ? positionals : [...kernels.keys(), "here"];
  const replaced = (values.replace ?? []).map((pair) => /** @type {[string, string]} */ (pair.split("=")));
  for (const name of names) if (name !== "here" && !kernels.has(name) && !realTime.has(name)) throw new Error(`no such kernel: ${name} (${[...kernels.keys(), ...realTime.keys()].join(", ")}, here)`);
  mkdirSync(BUILD, { recursive: true });

  /** @type {Row[]} */
  const rows = [];
  for (const name of names) {
    rows.push(name === "here" ? await here(parts) : await guest(name, parts, replaced));
    const row = /** @type {Row} */ (rows.at(-1));
    if (row.fault !== null) say(name, row.fault);
  }
  const good = rows.every((row) => row.fault === null && row.parts.length === parts.length && row.parts.every((part) => part.ok));
  if (replaced.length === 0) console.log(`\n${table(results())}\n\nkept in test/kernels/results.json; docs/KERNELS.md is made from it by scripts/gen-docs.mjs`);
  process.exitCode = good ? 0 : 1;
}

if (process.argv[1] !== undefined && existsSync(process.argv[1]) && path.resolve(process.argv[1]) === fileURLToPath(import.meta.url)) await main();
