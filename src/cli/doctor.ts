/** `enforcer doctor`: prints whether this machine can enforce. Exit status 0 when it can, 69 when something is missing. */
import { ExitStatus } from "../errors.js";
import { runDoctor } from "../net/doctor.js";

const MARKS = { yes: "ok  ", warn: "warn", no: "NO  " } as const;

export function doctor({ taps, bpffs, json }: { taps: readonly string[]; bpffs: string; json: boolean }): ExitStatus {
  const findings = runDoctor({ bpffs, taps });
  const status = findings.some(({ ok }) => ok === "no") ? ExitStatus.unavailable : ExitStatus.ok;
  if (json) {
    process.stdout.write(`${JSON.stringify({ able: status === ExitStatus.ok, findings })}\n`);
    return status;
  }
  const width = Math.max(...findings.map(({ check }) => check.length));
  for (const { check, ok, detail, remedy } of findings) {
    process.stdout.write(`${MARKS[ok]} ${check.padEnd(width)}  ${detail}\n`);
    if (remedy !== null && ok !== "yes") process.stdout.write(`     ${"".padEnd(width)}  → ${remedy}\n`);
  }
  return status;
}
