// @ts-check
/**
 * make test-packages: the Debian packages on a bare Debian 12, installed and run under its systemd, in namespaces of their own
 * on this machine's kernel. What is tried is in try.sh.
 *
 * Holds always: the bare system is fetched once (build/bare.tar) and unpacked anew for each run; the machine has no network
 * but its own taps, so whatever an installation needs has to be there; every process of it ends with it, and so does its
 * control group. Exit status 0 when every line of try.sh was "ok".
 */
import { spawn, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.resolve(HERE, "../..");
const BARE = path.join(HERE, "build/bare.tar");
const TIMEOUT_MS = 20 * 60_000;
/** What a small server has; nothing of the enforcer's, no compiler, no Node.js. */
const bare = "systemd,systemd-sysv,iproute2,procps,kmod,bash-completion,man-db";

/** @param {string[]} command */
function must(command) {
  const { status, error } = spawnSync(/** @type {string} */ (command[0]), command.slice(1), { stdio: ["ignore", 2, 2] });
  if (status !== 0) throw new Error(`${command.join(" ")}: ${error?.message ?? `status ${status}`}`);
}

/** A control group goes when those below it are gone; systemd leaves its own. @param {string} folder */
function clearGroup(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) if (entry.isDirectory()) clearGroup(path.join(folder, entry.name));
  rmdirSync(folder);
}

mkdirSync(path.dirname(BARE), { recursive: true });
if (!existsSync(BARE)) {
  console.log("fetching a bare Debian 12");
  must(["mmdebstrap", "--quiet", "--variant=minbase", `--include=${bare}`, "bookworm", `${BARE}.tmp.tar`]);
  must(["mv", `${BARE}.tmp.tar`, BARE]);
}

const packages = readdirSync(path.join(ROOT, "packaging/build")).filter((name) => name.endsWith(".deb"));
const machine = mkdtempSync(path.join(os.tmpdir(), "enforcer-packages-"));
const group = path.join(/ (\S+) cgroup2 /.exec(readFileSync("/proc/mounts", "utf8"))?.[1] ?? "/sys/fs/cgroup", path.basename(machine));
const report = path.join(machine, "root/report");
try {
  must(["tar", "-C", machine, "-xf", BARE]);
  for (const name of packages) cpSync(path.join(ROOT, "packaging/build", name), path.join(machine, "root", name));
  cpSync(path.join(HERE, "try.sh"), path.join(machine, "root/try.sh"));
  writeFileSync(report, "");
  writeFileSync(path.join(machine, "etc/systemd/system/try.service"), "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/bin/bash /root/try.sh\nStandardOutput=append:/root/report\nStandardError=append:/root/log\nEnvironment=HOME=/root\n");
  mkdirSync(path.join(machine, "etc/systemd/system/multi-user.target.wants"), { recursive: true });
  symlinkSync("../try.service", path.join(machine, "etc/systemd/system/multi-user.target.wants/try.service"));

  mkdirSync(group);
  const child = spawn("sh", ["-c", `echo $$ > ${group}/cgroup.procs && exec unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child sh ${path.join(HERE, "machine.sh")} ${machine}`], { stdio: ["ignore", "ignore", "ignore"] });
  const timer = setTimeout(() => child.kill("SIGKILL"), TIMEOUT_MS);
  await new Promise((resolve, reject) => child.on("close", resolve).on("error", reject));
  clearTimeout(timer);

  const lines = readFileSync(report, "utf8").split("\n").filter((line) => line !== "");
  console.log(lines.join("\n"));
  const tried = lines.filter((line) => /^(not )?ok /.test(line)), failed = tried.filter((line) => line.startsWith("not ok "));
  const ended = lines.at(-1) === "end";
  if (!ended || failed.length > 0) console.log(readFileSync(path.join(machine, "root/log"), "utf8").split("\n").slice(-60).join("\n"));
  console.log(`${tried.length - failed.length} ok, ${failed.length} not ok${ended ? "" : "; it did not come to its end"}`);
  process.exitCode = ended && failed.length === 0 ? 0 : 1;
} finally {
  rmSync(machine, { recursive: true, force: true });
  if (existsSync(group)) clearGroup(group);
}
