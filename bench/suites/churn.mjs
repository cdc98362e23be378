/**
 * What a million names leave behind: the agent as it is run, 100 sandboxes on real taps, each asking names under an allowed
 * wildcard that nobody asked before.
 *
 *   churn.rss        MiB of resident memory of the agent after a million names; baseline: after the first 100,000
 *   churn.answered   per cent of those questions that were answered with an address
 *   churn.qps        questions a second meanwhile
 *
 * The policy has the limits that it has without any being written, so that a guest is told no more than 1,024 names within
 * the minute that a pin lasts at least: beyond that a question is answered SERVFAIL, and churn.answered says how many were
 * not. Each figure is the median of a second's readings after the last answer, garbage and all. No peer.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { internet } from "../lib/guests.mjs";
import { row, times } from "../lib/measure.mjs";
import { bpffs, file, folder, ip, pause, quiet, start, stop } from "../lib/place.mjs";

const ASK = fileURLToPath(new URL("../build/ask", import.meta.url)), ANSWER = fileURLToPath(new URL("../build/answer", import.meta.url));
const ENFORCER = fileURLToPath(new URL("../../bin/enforcer", import.meta.url));
const UPSTREAM = "9.9.9.9";
const SANDBOXES = 100, STEP = times(100_000), STEPS = 10;
const POLICY = `
default_egress: deny
rules:
  - {allow: "*.example.net", proto: tcp, ports: [443]}
`;

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  internet([UPSTREAM]);
  await start([ANSWER, UPSTREAM], "internet", (line) => line === "ready");
  const guests = await start([ASK, String(SANDBOXES)], undefined, (line) => line === "ready");
  ip(Array.from({ length: SANDBOXES }, (_, n) => `link set g${n} address 02:fc:00:00:01:01 up\naddr add 10.9.${n}.1/30 dev g${n}`).join("\n"));
  const config = file("agent.yaml", [
    `run_dir: ${folder()}`, `bpffs: ${bpffs()}`, "metrics: off", `policy: ${file("policy.yaml", POLICY)}`, `upstreams: [${UPSTREAM}]`, "attach: [{match: \"g*\"}]", "",
  ].join("\n"));
  const agent = await start([ENFORCER, "agent", "--config", config], undefined, (line) => line.includes("agent is ready"));

  const lines = createInterface({ input: /** @type {import("node:stream").Readable} */ (guests.stdout) })[Symbol.asyncIterator]();
  const resident = async () => {
    const readings = [];
    for (let i = 0; i < 10; i++) {
      await pause(100);
      readings.push(Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${agent.pid}/status`, "latin1"))?.[1]) / 1024);
    }
    return readings;
  };
  let answered = 0, asked = 0, ms = 0;
  let first = /** @type {number[]} */ ([]), last = /** @type {number[]} */ ([]);
  for (let step = 0; step < STEPS; step++) {
    const began = performance.now();
    guests.stdin?.write(`${STEP}\n`);
    const match = /^answered (\d+) refused (\d+)$/.exec((await lines.next()).value ?? "");
    if (match === null) throw new Error("the guests have ended");
    ms += performance.now() - began;
    answered += Number(match[1]);
    asked += Number(match[1]) + Number(match[2]);
    last = await resident();
    if (step === 0) first = last;
    out.say(`${asked} names, ${answered} answered, ${Math.round(last[0])} MiB`);
  }
  out.row(row("churn.rss", "MiB", { ours: last, baseline: first }));
  out.row(row("churn.answered", "%", { ours: [100 * answered / asked] }));
  out.row(row("churn.qps", "queries/s", { ours: [asked * 1_000 / ms] }));
  await stop(guests);
  await stop(agent);
}
