// @ts-check
/**
 * Installs and builds what the demo needs, and shows each step. Only what is missing is installed, with apt-get.
 * It changes nothing when all is there. On a system without apt-get it says what is missing and stops.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { ROOT } from "../test/lib/world.mjs";

/** What is looked for (a command or a file, alternatives allowed), and the Debian package that brings it. */
const NEEDED = /** @type {const} */ ([
  [["ip"], "iproute2"], [["flock"], "util-linux"], [["make"], "make"], [["gcc"], "gcc"], [["g++"], "g++"], [["/usr/include/stdio.h"], "libc6-dev"],
  [["clang-19"], "clang-19"], [["bpftool", "/usr/sbin/bpftool"], "bpftool"], [["/usr/include/bpf/libbpf.h"], "libbpf-dev"], [["python3"], "python3"],
  [["qemu-system-x86_64"], "qemu-system-x86"], [["busybox"], "busybox-static"], [["cpio"], "cpio"], [["xz"], "xz-utils"],
]);

/** @param {string} what */
function isThere(what) {
  if (what.startsWith("/")) return existsSync(what);
  return `${process.env.PATH ?? ""}:/usr/sbin:/sbin`.split(":").some((folder) => folder !== "" && existsSync(path.join(folder, what)));
}

/** Runs a step in sight of the user. @param {string} title @param {readonly string[]} command */
function step(title, command) {
  console.log(`\n==> ${title}\n    ${command.join(" ")}`);
  const [file, ...args] = command;
  const { status, error } = spawnSync(/** @type {string} */ (file), args, { cwd: ROOT, stdio: "inherit", env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" } });
  if (status !== 0) throw new Error(`${command.join(" ")} failed${error === undefined ? ` with status ${status}` : `: ${error.message}`}`);
}

export function install() {
  const missing = NEEDED.filter(([alternatives]) => !alternatives.some(isThere)).map(([, name]) => name);
  if (missing.length > 0) {
    if (!isThere("apt-get")) throw new Error(`missing, and there is no apt-get to install it: ${missing.join(", ")}`);
    step(`Installing ${missing.length} package(s)`, ["apt-get", "update", "-q"]);
    step("", ["apt-get", "install", "-y", "-q", "--no-install-recommends", ...missing]);
  }
  if (!existsSync(path.join(ROOT, "node_modules"))) step("Fetching the JavaScript dependencies", ["npm", "ci", "--no-audit", "--no-fund"]);
  step("Building the enforcer", ["make", "--no-print-directory", "build"]);
  step("Building the test tools", ["make", "--no-print-directory", "-C", "test/tools"]);
  if (!existsSync(path.join(ROOT, "test/vm/build/vmlinuz")) && spawnSync("apt-cache", ["show", "linux-image-cloud-amd64"], { stdio: "ignore" }).status !== 0)
    step("Fetching the package lists", ["apt-get", "update", "-q"]);
  step("Preparing the virtual machine (Debian's kernel, unpacked here, not installed)", ["test/vm/build.sh"]);
}
