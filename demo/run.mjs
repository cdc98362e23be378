// @ts-check
/**
 * `make demo`: a real microVM on a real tap tries to get out, first without the enforcer and then with it.
 *
 * All of it happens in network namespaces of its own, which are gone at the end. The exit status is 0 only if every
 * attempt came out as expected, and got through without the enforcer. The make target has installed and built before.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { CertificateAuthority } from "../dist/tls/certificates/authority.js";
import { attempts, NAT64_METADATA, ORIGIN, POLICIES, SHARED, TOKEN, ZONE } from "./attempts.mjs";
import { buildVm, Vm } from "../test/lib/vm.mjs";
import { buildTools, ENFORCER, World } from "../test/lib/world.mjs";

const METRICS = "127.0.0.1:9469";
const PROBE_MS = 1000;
const colour = process.stdout.isTTY === true;
/** @param {number} code @param {string} text */
const paint = (code, text) => (colour ? `\x1b[${code}m${text}\x1b[0m` : text);

/**
 * @typedef {object} Row
 * @property {import("./attempts.mjs").Attempt} attempt
 * @property {import("../test/lib/world.mjs").Seen} control
 * @property {import("../test/lib/world.mjs").Seen} seen
 * @property {string} verdict
 * @property {string} reason
 * @property {string[]} wrong what is not as expected; empty if all is
 */

/** Packets from the guest that were let through, by verdict and reason, from the metrics page. @param {World} world */
async function passed(world) {
  const page = await world.host.run([process.execPath, "-e", `fetch("http://${METRICS}/metrics").then((r) => r.text()).then((t) => process.stdout.write(t))`]);
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const line of page.stdout.split("\n")) {
    const match = /^\w*packets\w*\{(.*)\} (\S+)$/.exec(line);
    if (match === null) continue;
    const label = (/** @type {string} */ name) => new RegExp(`${name}="([^"]*)"`).exec(/** @type {string} */ (match[1]))?.[1];
    if (label("direction") === "egress" && label("verdict") !== "deny") counts.set(label("reason") ?? "?", Number(match[2]));
  }
  return counts;
}

/** What the guest's environment holds for the demo's secret. */
let placeholder = "none";

/** @param {Vm} vm @param {import("./attempts.mjs").Attempt} attempt */
async function attemptOnce(vm, attempt) {
  if (attempt.before !== undefined) {
    const first = await vm.probe(attempt.before, PROBE_MS);
    if (!first.ok) return { ok: false, saw: `first question: ${first.saw}` };
  }
  return attempt.curl === undefined ? vm.probe(attempt.probe ?? [], PROBE_MS) : vm.curl(attempt.curl.map((word) => word.replace("$SHOP_TOKEN", placeholder)));
}

/**
 * One attempt with the enforcer in force.
 * @param {World} world @param {Vm} vm @param {import("../test/lib/world.mjs").Enforcer} enforcer @param {import("./attempts.mjs").Attempt} attempt
 * @param {import("../test/lib/world.mjs").Seen} control @param {boolean} controlAsked @returns {Promise<Row>}
 */
async function judge(world, vm, enforcer, attempt, control, controlAsked) {
  const events = enforcer.events.length;
  const before = await passed(world);
  const seen = await attemptOnce(vm, attempt);
  const wrong = [];
  let verdict;
  let reason;
  if (attempt.verdict === "deny") {
    const match = () => enforcer.events.slice(events).find((event) => /denied$/.test(event.event) &&
      Object.entries(attempt.denial ?? {}).every(([key, value]) => event[key] === value));
    for (const deadline = Date.now() + 3000; match() === undefined && Date.now() < deadline;) await new Promise((resolve) => setTimeout(resolve, 20));
    const event = match();
    verdict = event === undefined ? "none seen" : "deny";
    reason = String(event?.reason ?? "");
    if (seen.ok) wrong.push("got through");
    if (event === undefined) wrong.push("no denial was reported");
    else if (reason !== attempt.reason) wrong.push(`reason should be ${attempt.reason}`);
  } else {
    const after = await passed(world);
    const reasons = [...after].filter(([name, count]) => count > (before.get(name) ?? 0)).map(([name]) => name);
    // The reason of the first packet says why it may; those of later packets and of the lookup before it only follow.
    const first = reasons.filter((name) => !["established", "neighbour", ...(attempt.notAsked === undefined ? ["dns-redirect"] : [])].includes(name));
    verdict = seen.ok ? "allow" : "none seen";
    reason = first.join(", ");
    if (!seen.ok) wrong.push("did not get through");
    if (attempt.sees !== undefined && !seen.saw.includes(attempt.sees)) wrong.push(`should see: ${attempt.sees}`);
  }
  if (attempt.notAsked !== undefined) {
    const asked = world.services.internet.seen("dns", attempt.notAsked).length > 0;
    if (asked) wrong.push(`${attempt.notAsked.server} was asked`);
    if (!controlAsked) wrong.push(`control: ${attempt.notAsked.server} was not asked`);
    verdict = seen.ok ? "redirect" : verdict;
  }
  if (!control.ok) wrong.push("control did not get through");
  return { attempt, control, seen, verdict, reason, wrong };
}

/** What was seen, without what the row says already: the address that answered, and the words of an extended DNS error. @param {string} saw */
function brief(saw) {
  return saw.replace(/^lookup: /, "").replace(/(HTTP \d+: (?:internet|lan|host|sibling|origin)) \S+$/, "$1").replace(/(EDE \d+):.*\)/, "$1)");
}

/** @param {readonly (readonly string[])[]} lines */
function table(lines) {
  const limit = [50, 40, 40, 9, 34, 60];
  const cut = lines.map((line) => line.map((cell, column) => {
    const most = limit[column] ?? 60;
    return cell.length > most ? `${cell.slice(0, most - 3)}...` : cell;
  }));
  const width = limit.map((_, column) => Math.max(...cut.map((line) => (line[column] ?? "").length)));
  return cut.map((line) => line.map((cell, column) => cell.padEnd(width[column] ?? 0)).join("  ").trimEnd());
}

/** An HTTPS server for several names on every address of the internet, with a root that the policy's file names. @param {World} world */
async function openOrigin(world) {
  const root = CertificateAuthority.generate("demo", Date.now());
  const file = (/** @type {string} */ name, /** @type {string} */ text, mode = 0o600) => writeFileSync(path.join(world.dir, name), text, { mode });
  const leaves = SHARED.map((name) => ({ name, ...root.issue({ kind: "name", labels: name.split(".") }, Date.now()) }));
  file("demo-root.pem", root.certificate);
  for (const { name, key, certificate } of leaves) {
    file("origin.key", key); // one for all
    file(`${name}.pem`, certificate);
  }
  file("shop-token", `${TOKEN}\n`);
  const origin = world.own(world.internet.start([process.execPath, "-e", ORIGIN, world.dir, TOKEN]));
  await origin.line((line) => line === "ready");
}

/** What `enforcer secrets` says that the guest's environment is to hold. @param {World} world */
async function placeholderOf(world) {
  const said = await world.host.must([ENFORCER, "secrets", "tap0", "--run-dir", world.runDir]);
  return /^SHOP_TOKEN=(\S+)$/m.exec(said)?.[1] ?? "none";
}

async function main() {
  if (process.getuid?.() !== 0) {
    console.error("The demo makes network namespaces, taps and BPF programs, which only root may do. Please run: sudo make demo");
    return 1;
  }
  console.log("==> Building the tools of the demo, and the guest: Debian's kernel, unpacked here and not installed, and a small initramfs");
  await buildTools();
  for (const line of await buildVm()) console.log(`    ${line}`);

  console.log("==> Making the namespaces: host, internet, LAN, a sibling sandbox");
  const world = await World.create({ guest: "vm", sibling: true, zone: ZONE, tls: true, internet: [NAT64_METADATA] });
  try {
    await openOrigin(world);
    console.log("==> Booting the guest on tap0");
    const vm = await Vm.boot(world);
    console.log(`    Linux ${vm.kernel} under QEMU`);
    const list = attempts(world.sibling6);

    console.log(`==> ${list.length} attempts without the enforcer`);
    /** @type {Map<import("./attempts.mjs").Attempt, {seen: import("../test/lib/world.mjs").Seen, asked: boolean}>} */
    const controls = new Map();
    for (const attempt of list) {
      world.services.internet.clear();
      await world.services.internet.zone(ZONE);
      const seen = await attemptOnce(vm, attempt);
      const asked = attempt.notAsked !== undefined && world.services.internet.seen("dns", attempt.notAsked).length > 0;
      controls.set(attempt, { seen, asked });
    }

    /** @type {Row[]} */
    const rows = [];
    for (const [name, policy] of Object.entries(POLICIES)) {
      console.log(`==> enforcer attach tap0 --policy ${name}.yaml\n${policy.replace(/^/gm, "      ").trimEnd()}`);
      const enforcer = await world.enforce({ policy, args: ["--metrics", METRICS] });
      try {
        if (name === "secret") placeholder = await placeholderOf(world);
        for (const attempt of list.filter((one) => one.policy === name)) {
          world.services.internet.clear();
          await world.services.internet.zone(ZONE);
          const control = controls.get(attempt);
          rows.push(await judge(world, vm, enforcer, attempt, control?.seen ?? { ok: false, saw: "not tried" }, control?.asked ?? false));
        }
      } finally {
        const status = await enforcer.stop();
        if (status !== 0) rows.at(-1)?.wrong.push(`enforcer ended with status ${status}`);
      }
      if (rows.some((row) => row.wrong.length > 0)) console.log(`\nWhat this enforcer said last:\n${enforcer.service.report()}`);
    }

    const lines = table([
      ["attempt", "without the enforcer", "with it, the guest saw", "verdict", "reason", "as expected"],
      ...rows.map((row) => [row.attempt.what, brief(row.control.saw), brief(row.seen.saw), row.verdict, row.reason, row.wrong.length === 0 ? "yes" : `NO: ${row.wrong.join("; ")}`]),
    ]);
    console.log("");
    lines.forEach((line, index) => console.log(index === 0 ? paint(1, line) : paint((rows[index - 1]?.wrong.length ?? 0) === 0 ? 32 : 31, line)));
    const failed = rows.filter((row) => row.wrong.length > 0).length;
    console.log(failed === 0
      ? `\nAll ${rows.length} attempts came out as expected: all got through without the enforcer, ${rows.filter((row) => row.attempt.verdict === "deny").length} were stopped with it.`
      : `\n${failed} of ${rows.length} attempts did not come out as expected.`);
    await vm.stop();
    return failed === 0 ? 0 : 1;
  } finally {
    await world.close();
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(`\ndemo: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
