// @ts-check
/**
 * What is tried on each kernel, run on that kernel: in a guest by ./init, on this machine by run.mjs itself.
 *   suite.mjs PART...    parts: load, self-test, load-object, or a folder or file of tests, such as test/prog
 *
 * Holds always: each part gives one line "@JSON" on standard output, {part, ok, ...}; a part that throws is not ok, and the
 * next one runs all the same. The exit status is 0 when all were ok. What else there is to say goes to standard error.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");

/** Every program through the verifier, and what it counted. */
async function load() {
  const { Instance } = await import("../../dist/kernel/instance.js");
  const { tcMechanism } = await import("../../dist/kernel/tap-link.js");
  const native = await import("../../native/index.js");
  const instance = Instance.open({ directory: null, sandboxes: 4096 });
  try {
    const programs = Object.fromEntries(/** @type {const} */ (["from_guest", "to_guest", "from_resolver"]).map((name) => {
      const { verifiedInstructions, jited, tag } = instance.program(name).info;
      return [name, { verifiedInstructions, jited, tag }];
    }));
    await loadObject(); // with those of other namespaces' devices
    return { release: os.release(), mechanism: tcMechanism(), hz: Math.round(1e9 / native.tickNanoseconds()), cpus: os.cpus().length, programs };
  } finally {
    instance.close();
  }
}

/** The object alone, whatever the agent thinks of its layouts; where it is refused, with the verifier's last lines. */
async function loadObject() {
  const native = await import("../../native/index.js");
  const file = path.join(ROOT, "bpf/build/enforcer.bpf.o");
  try {
    const object = native.BpfObject.load(file, { disabledPrograms: ["abi_types"] });
    const programs = Object.fromEntries(object.programs.map((name) => [name, object.program(name).info.verifiedInstructions]));
    object.close();
    return { release: os.release(), programs };
  } catch (error) {
    const { stderr } = spawnSync("bpftool", ["prog", "loadall", file, "/sys/fs/bpf/load-object"], { encoding: "utf8", maxBuffer: 1 << 30 });
    const lines = (stderr ?? "").split("\n").filter((line) => line !== "");
    throw new Error([error instanceof Error ? error.message : String(error), ...lines.slice(-60)].join("\n"));
  }
}

/** The self-test that every start runs before it says that it enforces, on a device of its own. */
async function selfTest() {
  const { Instance } = await import("../../dist/kernel/instance.js");
  const { Globals } = await import("../../dist/kernel/globals.js");
  const self = await import("../../dist/kernel/self-test.js");
  const { groupTable } = await import("../../dist/addresses/groups.js");
  const native = await import("../../native/index.js");
  const home = native.openNetns();
  const own = native.createNetns();
  native.setNetns(own);
  const device = new native.Tap("selftest");
  const instance = Instance.open({ directory: null, sandboxes: 4 });
  try {
    const globals = new Globals(instance);
    globals.setGroups(groupTable({ hostAddresses: [], connectedPrefixes: [], broadcasts: [], extra: {}, nat64Prefixes: [] }));
    globals.setResolver(/** @type {any} */ ({
      nearIfindex: device.ifindex, addr4: new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 240, 0, 0, 1]), addr6: new Uint8Array(16).fill(0xfd, 0, 1),
      farMac: Uint8Array.of(2, 0, 0, 0, 83, 2), nearMac: Uint8Array.of(2, 0, 0, 0, 83, 1),
      net4: { bytes: new Uint8Array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 240, 0, 0, 0]) }, net6: { bytes: new Uint8Array(16).fill(0xfd, 0, 1) },
    }));
    self.selfTest(instance, globals, device.ifindex);
    return {};
  } finally {
    instance.close();
    device.close();
    native.setNetns(home);
    native.closeFd(own);
    native.closeFd(home);
  }
}

/** @param {string} folder */
function tests(folder) {
  const report = path.join(os.tmpdir(), `suite-${process.pid}.json`);
  const began = Date.now();
  const { status } = spawnSync(process.execPath, [path.join(ROOT, "node_modules/vitest/vitest.mjs"), "run", "--maxWorkers=1", "--reporter=verbose", "--reporter=json", `--outputFile.json=${report}`, folder], { cwd: ROOT, stdio: ["ignore", 2, 2], env: { ...process.env, CI: "1", NO_COLOR: "1" } });
  const result = JSON.parse(readFileSync(report, "utf8"));
  rmSync(report, { force: true });
  const failures = result.testResults.flatMap((/** @type {any} */ file) => {
    const failed = file.assertionResults.filter((/** @type {any} */ test) => test.status === "failed");
    if (file.status === "failed" && failed.length === 0) return [`${path.basename(file.name)}: ${String(file.message).split("\n")[0]}`];
    return failed.map((/** @type {any} */ test) => `${test.fullName}: ${String(test.failureMessages[0]).split("\n").slice(0, 12).join(" | ").slice(0, 900)}`);
  });
  const skipped = result.numPendingTests + (result.numTodoTests ?? 0);
  return {
    ok: status === 0 && failures.length === 0 && skipped === 0 && result.numPassedTests > 0,
    passed: result.numPassedTests, failed: failures.length, skipped, failures, seconds: Math.round((Date.now() - began) / 1000),
  };
}

const alone = new Map([["load", load], ["self-test", selfTest], ["load-object", loadObject]]);

let all = true;
for (const part of process.argv.slice(2)) {
  /** @type {Record<string, unknown>} */
  let record;
  try {
    record = { part, ok: true, ...await (alone.get(part)?.() ?? tests(part)) };
  } catch (error) {
    record = { part, ok: false, error: error instanceof Error ? `${error.message}` : String(error) };
  }
  all &&= record.ok === true;
  process.stdout.write(`@${JSON.stringify(record)}\n`);
}
process.exitCode = all ? 0 : 1;
