// Holds the documents to the tree: what they name must exist and what they show must be so. Needs a build; run by hand
// (node scripts/check-docs.mjs) and by test/unit/docs.test.ts, which gives it the modules of src/ instead of dist/.
//
// Checks: pages that are generated are up to date; every test named exists; every make target, command and option named
// exists; every command shown is checked or is run by the test that SHOWN names; policies shown are understood, or refused
// where they say so; links lead somewhere; limits and attack rows are complete; nothing points outside the tree.
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { built, outcomesOf, pages, reasonsOf, root, sources } from "./gen-docs.mjs";

/** Commands of other programs that documents show, and the test that runs each as it stands there. */
const RUN = "test/netns/documents.test.ts";
const SHOWN = [
  [/^ip (tuntap add tap0 mode tap|addr add 172\.30\.0\.1\/\d+ dev (tap0|br0)|link set (tap0|br0) up|link set tap0 master br0|link add br0 type bridge)$/, RUN, /## A routed tap[\s\S]*## A bridged tap/],
  [/^ip (netns add vm1|-n vm1 (tuntap add tap0 mode tap|addr add 172\.30\.0\.1\/30 dev tap0|link set tap0 up))$/, RUN, /## The jailer, and other network namespaces/],
  [/^rm -r \/sys\/fs\/bpf\/enforcer \/run\/enforcer$/, RUN, /## Taking it off/],
  [/^systemctl disable --now enforcer-agent$/, "packaging/debian/prerm", /systemctl disable --now enforcer-agent/],
  [/^apt-get purge enforcer$/, "test/packages/try.sh", /apt-get purge -y enforcer/],
  [/^sysctl -w net\.ipv4\.ip_forward=1$/, RUN, /## A routed tap/],
  [/^mount -t bpf bpf \/sys\/fs\/bpf$/, RUN, /mount -t bpf bpf \/sys\/fs\/bpf/],
  [/^curl -s http:\/\/127\.0\.0\.1:9469\/metrics$/, RUN, /## When something does not work/],
  [/^apt-get install \.\/enforcer_[\d.]+_amd64\.deb \.\/enforcer-node_[\d.]+_amd64\.deb$/, "test/packages/try.sh", /apt-get install -y --no-install-recommends \.\/enforcer_\*\.deb \.\/enforcer-node_\*\.deb/],
  [/^npm pack$/, "test/packages/npm.mjs", /"npm", "pack"/],
  [/^systemctl enable --now enforcer-agent$/, "test/packages/try.sh", /systemctl enable --now enforcer-agent/],
];

const read = (name) => readFileSync(join(root, name), "utf8");

/** Every document of the product, as paths in the tree. */
export const documents = () => [
  ...readdirSync(root).filter((name) => name.endsWith(".md")),
  ...readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md")).map((name) => `docs/${name}`),
].sort();

/** Fenced blocks of a document: {language, line, text}. */
function blocks(text) {
  const found = [];
  let open = null;
  text.split("\n").forEach((line, i) => {
    const fence = /^```(.*)$/.exec(line);
    if (fence === null) return void open?.lines.push(line);
    if (open === null) open = { language: fence[1].trim(), line: i + 1, lines: [] };
    else {
      found.push({ language: open.language, line: open.line, text: `${open.lines.join("\n")}\n` });
      open = null;
    }
  });
  return found;
}

/** Code in a line of running text. */
const spans = (line) => [...line.matchAll(/`([^`]+)`/g)].map((match) => match[1]);

/**
 * What the command line offers: verb ("attach", "policy check") → options. Asks for help as a person would.
 * @param main of src/cli/main.ts.
 */
export async function offered(main) {
  const verbs = new Map();
  const walk = async (words) => {
    const text = await output(() => main([...words, "--help"]));
    verbs.set(words.join(" "), new Set([...text.matchAll(/^ {2}(?:-\w, )?(--[\w-]+)/gm)].map((match) => match[1])));
    const commands = /\nCommands:\n([\s\S]*)$/.exec(text)?.[1] ?? "";
    for (const [, name] of commands.matchAll(/^ {2}([a-z][\w-]*)/gm)) if (name !== "help") await walk([...words, name]);
  };
  await walk([]);
  return verbs;
}

/** What a call writes to standard output. */
async function output(call) {
  const write = process.stdout.write;
  let text = "";
  process.stdout.write = (chunk) => { text += String(chunk); return true; };
  try {
    await call();
  } finally {
    process.stdout.write = write;
  }
  return text;
}

/** Splits as a shell would, as far as documents need it. */
const words = (command) => [...command.matchAll(/'([^']*)'|"([^"]*)"|(\S+)/g)].map((match) => match[1] ?? match[2] ?? match[3]);

/** Faults of a command of ours, without running it. */
function enforcerFaults(parts, verbs) {
  let verb = "";
  let at = 1;
  while (at < parts.length && verbs.has(`${verb} ${parts[at]}`.trim())) verb = `${verb} ${parts[at++]}`.trim();
  if (verb === "" && at < parts.length && !parts[at].startsWith("-")) return [`enforcer has no command ${parts[at]}`];
  return parts.slice(at).filter((part) => part.startsWith("--")).map((part) => part.split("=")[0])
    .filter((option) => !verbs.get(verb).has(option)).map((option) => `enforcer ${verb} has no option ${option}`);
}

/** Title of a test as its file has it: a literal, or `first: second` of a row in a table of tests. */
function hasTest(source, title) {
  const quoted = (text) => ["\"", "'", "`"].map((quote) => `${quote}${text}${quote}`);
  if (quoted(title).some((literal) => source.includes(`(${literal}`))) return true;
  const colon = title.indexOf(": ");
  return colon > 0 && [`("${title.slice(0, colon)}", "${title.slice(colon + 2)}"`].some((row) => source.includes(row));
}

/**
 * @param modules errors, counters, Reason, metrics (see gen-docs.mjs), main (cli/main), limitKinds (policy/types).
 * @returns problems, each with its place; empty when all is well.
 */
export async function checkDocs(modules) {
  const problems = [];
  for (const [name, text] of Object.entries(await pages(modules))) {
    if (!existsSync(join(root, name)) || read(name) !== text) problems.push(`${name} is out of date: run node scripts/gen-docs.mjs`);
  }
  const verbs = await offered(modules.main);
  const every = new Set([...verbs.values()].flatMap((options) => [...options]));
  const targets = new Set([...read("Makefile").matchAll(/^([a-z][a-z0-9 -]*):/gm)].flatMap((match) => match[1].split(" ")));
  let tests = 0;

  for (const name of documents()) {
    const text = read(name);
    const problem = (line, what) => problems.push(`${name}:${line}: ${what}`);
    let fenced = false;
    text.split("\n").forEach((line, i) => {
      const at = i + 1;
      if (line.startsWith("```")) fenced = !fenced;
      if (/\.\.\/shared|\/work\/|\/tmp\/|\/root\//.test(line)) problem(at, "names a path outside the tree");
      if (fenced) return;
      for (const [, target] of line.matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^https?:/.test(target) || target.startsWith("#")) continue;
        if (!existsSync(normalize(join(root, dirname(name), target.split("#")[0])))) problem(at, `link to ${target}, which is not there`);
      }
      // A test: `file` or `file` "title" "title" …
      for (const match of line.matchAll(/`(test\/[\w./-]+)`((?:,? "[^"]+")*)/g)) {
        const [, file, titles] = match;
        if (!existsSync(join(root, file))) { problem(at, `${file} does not exist`); continue; }
        for (const [, title] of titles.matchAll(/"([^"]+)"/g)) {
          tests++;
          if (!hasTest(read(file), title)) problem(at, `${file} has no test "${title}"`);
        }
      }
      for (const code of spans(line)) {
        for (const [, target] of code.matchAll(/^(?:sudo )?make ([a-z-]+)/g)) if (!targets.has(target)) problem(at, `there is no make ${target}`);
        if (/^(sudo )?(bin\/)?enforcer /.test(code)) for (const fault of enforcerFaults(words(code.replace(/^sudo /, "")), verbs)) problem(at, fault);
        else if (/^--[a-z]/.test(code) && !every.has(code.split(/[ =]/)[0])) problem(at, `no command has the option ${code}`);
        // Files and folders of the tree.
        if (/^(bpf|native|src|test|demo|bench|scripts|data|docs)\/[\w./-]*$/.test(code) && !existsSync(join(root, code)) && !/\/build(\/|$)|\.gen\.ts$/.test(code)) problem(at, `${code} does not exist`);
      }
    });
    for (const block of blocks(text)) {
      if (block.language === "sh") {
        block.text.split("\n").forEach((raw, i) => {
          const command = raw.replace(/\s+#.*$/, "").replace(/^\$ /, "").replace(/^sudo /, "").trim();
          if (command === "" || command.startsWith("#")) return;
          const at = block.line + 1 + i;
          const make = /^make ([a-z-]+)$/.exec(command);
          if (make !== null) { if (!targets.has(make[1])) problem(at, `there is no make ${make[1]}`); return; }
          if (/^(bin\/)?enforcer( |$)/.test(command)) { for (const fault of enforcerFaults(words(command), verbs)) problem(at, fault); return; }
          const shown = SHOWN.find(([form]) => form.test(command));
          if (shown === undefined) problem(at, `no test runs this, and nothing checks it: ${command}`);
          else if (!shown[2].test(read(shown[1]))) problem(at, `${shown[1]} does not run this any more: ${command}`);
        });
      }
      // ```yaml: a policy, understood without a warning. ```yaml warning: with one. ```yaml error: refused.
      const policy = /^yaml( warning| error)?$/.exec(block.language);
      if (policy !== null) {
        const found = await checkPolicy(modules.main, block.text);
        const wanted = policy[1]?.trim() ?? "valid";
        if (found.kind !== wanted) problem(block.line, `the policy is ${wanted} by its mark, and the checker says ${found.kind}${found.text === "" ? "" : `: ${found.text}`}`);
      }
      // ```text lines: what attach prints.
      if (block.language === "text lines") {
        const words = new Set([...reasonsOf(sources().abi), ...outcomesOf(sources().outcomes)].map((entry) => entry.name));
        block.text.trimEnd().split("\n").forEach((line, i) => {
          const match = /^\d\d:\d\d:\d\d\.\d{3} \S+ (?:denied (?:egress|ingress) \S+ \S+ → \S+(?: \(\S+\))?: ([\w-]+)(?:, rule.*)?|refused dns \S+ [A-Z0-9]+: ([\w-]+)(?: \(\S+\))?)$/.exec(line);
          if (match === null || !words.has(match[1] ?? match[2])) problem(block.line + 1 + i, `no line that attach prints: ${line}`);
        });
      }
      // ```yaml agent: a configuration of the agent, with the policy files that it names.
      if (block.language === "yaml agent") {
        const directory = mkdtempSync(join(tmpdir(), "enforcer-docs-"));
        try {
          for (const [, file] of block.text.matchAll(/\b([\w-]+\.yaml)\b/g)) writeFileSync(join(directory, file), "rules: []\n");
          modules.config.parseAgentConfig(block.text, join(directory, "agent.yaml"));
        } catch (error) {
          problem(block.line, `the configuration shown is refused: ${error.message}`);
        } finally {
          rmSync(directory, { recursive: true, force: true });
        }
      }
      // ```token: one --rule argument a line; those behind `!` are refused.
      if (block.language === "token") {
        for (const [i, raw] of block.text.split("\n").entries()) {
          const line = raw.replace(/\s+#.*$/, "").trim();
          if (line === "") continue;
          const refused = line.startsWith("! ");
          const status = await quiet(() => modules.main(["policy", "check", "--rule", refused ? line.slice(2) : line]));
          if ((status !== 0) !== refused) problem(block.line + 1 + i, `the token ${line} ends with status ${status}`);
        }
      }
    }
    if (name === "docs/POLICY.md") {
      for (const [key, { key: word, min, max, standard }] of Object.entries(modules.limitKinds)) {
        const number = (value) => value.toLocaleString("en");
        if (!text.includes(`| \`${word}\` | ${number(min)} | ${number(max)} | ${number(standard)} |`)) problem(1, `limit ${key} is not described as | \`${word}\` | ${number(min)} | ${number(max)} | ${number(standard)} |`);
      }
      await checkShownReport(modules.main, text, problem);
    }
    if (name === "docs/OPERATIONS.md") {
      for (const [, family, setting, value, why] of read("src/net/tap.ts").matchAll(/\{ family: "(ipv\d)", setting: "(\w+)", value: "(-?\d+)", why: "([^"]+)" \}/g)) {
        if (!text.includes(`| \`net.${family}.conf.TAP.${setting}\` | ${value} | ${why} |`)) problem(1, `the setting net.${family}.conf.TAP.${setting} is not described: ${value}, ${why}`);
      }
      for (const option of verbs.get("attach")) if (option !== "--help" && !text.includes(`\`${option}`)) problem(1, `attach's option ${option} is not described`);
    }
    if (name === "ARCHITECTURE.md") {
      for (const [, map] of read("bpf/maps.h").matchAll(/^\} (\w+) SEC\("\.maps"\);/gm)) if (!text.includes(`\`${map}\``)) problem(1, `the map ${map} of bpf/maps.h is not described`);
      for (const folder of readdirSync(join(root, "src"), { withFileTypes: true })) if (folder.isDirectory() && !text.includes(`\`src/${folder.name}/\``)) problem(1, `the folder src/${folder.name} is not described`);
    }
    if (name === "docs/THREATS.md") for (let row = 1; row <= 61; row++) if (!text.includes(`| A${String(row).padStart(2, "0")} |`)) problem(1, `no row A${String(row).padStart(2, "0")}`);
    if (name === "README.md" && text.split("\n").length > 120) problem(121, "the README has more than 120 lines");
  }
  if (tests < 60) problems.push(`only ${tests} tests are named: SPECIFICATION.md must name the test of each promise`);
  return problems;
}

async function quiet(call) {
  const write = process.stderr.write;
  process.stderr.write = () => true;
  let status;
  try {
    await output(async () => { status = await call(); });
  } finally {
    process.stderr.write = write;
  }
  return status;
}

/** What `enforcer policy check` says of a policy. */
async function checkPolicy(main, text) {
  const directory = mkdtempSync(join(tmpdir(), "enforcer-docs-"));
  try {
    const file = join(directory, "policy.yaml");
    writeFileSync(file, text);
    writeFileSync(join(directory, "blocklist.txt"), "ads.example\n");
    let status;
    const json = await output(async () => { status = await quietErrors(() => main(["policy", "check", file, "--json"])); });
    if (status !== 0) return { kind: "error", text: json.slice(0, 300) };
    const { warnings } = JSON.parse(json);
    return warnings.length === 0 ? { kind: "valid", text: "" } : { kind: "warning", text: warnings[0].message };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function quietErrors(call) {
  const write = process.stderr.write;
  process.stderr.write = () => true;
  try {
    return await call();
  } finally {
    process.stderr.write = write;
  }
}

/** The report shown under "policy check" must be that of the policy shown before it. */
async function checkShownReport(main, text, problem) {
  const all = blocks(text);
  const at = all.findIndex(({ language }) => language === "text report");
  if (at < 1) return void problem(1, "no block `text report` behind a policy");
  const directory = mkdtempSync(join(tmpdir(), "enforcer-docs-"));
  try {
    const file = join(directory, "policy.yaml");
    writeFileSync(file, all[at - 1].text);
    const shown = await output(() => main(["policy", "check", file]));
    if (shown !== all[at].text) problem(all[at].line, `the report shown is not what policy check prints now:\n${shown}`);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [cli, types] = await Promise.all(["cli/main", "policy/types"].map((name) => import(new URL(`../dist/${name}.js`, import.meta.url).href)));
  const problems = await checkDocs({ ...(await built()), main: cli.main, limitKinds: types.limitKinds });
  for (const problem of problems) console.error(problem);
  if (problems.length === 0) console.log(`${documents().length} documents agree with the tree`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
