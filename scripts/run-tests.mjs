// Runs every test layer in order, cheap ones first, and ends with one line: N passed, N failed, N skipped.
// A skipped test is a failure here: whatever this machine should be able to run has to run.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";

// The storm has a target of its own, make test-storm: it is a search for faults by chance, minutes long.
const layers = ["unit", "native", "prog", "netns", "vm"];
const directory = mkdtempSync(join(tmpdir(), "enforcer-test-"));
const sum = { passed: 0, failed: 0, skipped: 0 };
/** @type {string[]} */
const failures = [];
let broken = false;

for (const layer of layers) {
  const report = join(directory, `${layer}.json`);
  console.log(`\n== test/${layer}`);
  const { status } = spawnSync("npx", ["vitest", "run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`, `test/${layer}`], { stdio: "inherit" });
  let result = null;
  try {
    result = JSON.parse(readFileSync(report, "utf8"));
  } catch {
    console.log(`test/${layer} gave no report`);
  }
  if (result === null || result.numTotalTests === 0) broken = true;
  else {
    sum.passed += result.numPassedTests;
    sum.failed += result.numFailedTests;
    sum.skipped += result.numPendingTests + (result.numTodoTests ?? 0);
    // A file that could not be loaded or set up fails without a failed test.
    const files = result.testResults.filter((file) => file.status === "failed" && file.assertionResults.every((test) => test.status !== "failed"));
    sum.failed += files.length;
    failures.push(...files.map((file) => `${relative(process.cwd(), file.name)}: ${firstLines(file.message)}`));
    for (const file of result.testResults)
      for (const test of file.assertionResults)
        if (test.status === "failed") failures.push(`${relative(process.cwd(), file.name)} "${test.fullName}": ${firstLines(test.failureMessages.join("\n"))}`);
  }
  if (status !== 0) broken = true;
}
rmSync(directory, { recursive: true, force: true });
// Told once more at the end: what comes out in between is long.
for (const failure of failures) console.log(`\nfailed: ${failure}`);
if (sum.skipped > 0) console.log("\nskipped tests count as a failure: each must run on this machine or be taken out");
console.log(`${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`);
process.exitCode = broken || sum.failed > 0 || sum.skipped > 0 ? 1 : 0;

/** @param {string} message the beginning of it, with the place in our tests */
function firstLines(message) {
  const lines = message.replace(/\x1b\[[0-9;]*m/g, "").split("\n").filter((line) => !line.includes("node_modules"));
  return lines.slice(0, 8).join("\n  ").slice(0, 1500);
}
