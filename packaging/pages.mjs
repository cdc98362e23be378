// @ts-check
/**
 * The manual page, made from what the command line itself says with --help, so that it cannot say something else. Needs a build.
 */
import { main } from "../dist/cli/main.js";

/**
 * @typedef {{words: string[], usage: string, summary: string, args: [string, string][], options: [string, string][]}} Verb
 */

/** What a call writes to standard output. @param {() => Promise<unknown>} call */
async function output(call) {
  const write = process.stdout.write;
  const columns = process.stdout.columns;
  let text = "";
  process.stdout.columns = 10_000; // nothing is wrapped
  process.stdout.write = /** @type {typeof process.stdout.write} */ ((/** @type {unknown} */ chunk) => { text += String(chunk); return true; });
  try {
    await call();
  } finally {
    process.stdout.write = write;
    process.stdout.columns = columns;
  }
  return text;
}

/** "  --name <x>   text" lines below a heading; what is indented further goes on. @param {string} text @param {string} heading @returns {[string, string][]} */
function section(text, heading) {
  const body = new RegExp(`^${heading}:\\n((?: .*\\n?)+)`, "m").exec(text)?.[1] ?? "";
  /** @type {[string, string][]} */
  const rows = [];
  for (const line of body.split("\n")) {
    const row = /^ {2}(\S.*?)(?: {2,}(.*))?$/.exec(line);
    if (row !== null) rows.push([row[1] ?? "", row[2] ?? ""]);
    else if (line.trim() !== "" && rows.length > 0) /** @type {[string, string]} */ (rows.at(-1))[1] = `${rows.at(-1)?.[1]} ${line.trim()}`.trim();
  }
  return rows;
}

/** Every verb, the command itself first. @returns {Promise<Verb[]>} */
export async function offeredVerbs() {
  /** @type {Verb[]} */
  const verbs = [];
  const walk = async (/** @type {string[]} */ words) => {
    const text = await output(() => main([...words, "--help"]));
    verbs.push({
      words, usage: /^Usage: (.*)$/m.exec(text)?.[1] ?? "", summary: /^Usage: .*\n\n([\s\S]*?)\n\n/.exec(text)?.[1]?.replace(/\s+/g, " ") ?? "",
      args: section(text, "Arguments"), options: section(text, "Options"),
    });
    for (const [name] of section(text, "Commands")) {
      const word = name.split(/[ |]/)[0] ?? "";
      if (word !== "help") await walk([...words, word]);
    }
  };
  await walk([]);
  return verbs;
}

const roff = (/** @type {string} */ text) => text.replace(/\\/g, "\\e").replace(/-/g, "\\-").replace(/^([.'])/gm, "\\&$1");

/** @param {readonly Verb[]} verbs @param {{version: string, seconds: number}} of */
export function manualPage(verbs, { version, seconds }) {
  const date = new Date(seconds * 1000).toISOString().slice(0, 10);
  const lines = [
    `.TH ENFORCER 8 "${date}" "enforcer ${version}" "System administration"`, ".SH NAME", "enforcer \\- holds the guest behind a tap device to a network policy",
    ".SH SYNOPSIS",
    ...verbs.slice(1).filter(({ words }) => !verbs.some((other) => other.words.length > words.length && words.every((word, i) => other.words[i] === word))).flatMap(({ usage }) => [`.B ${roff(usage)}`, ".br"]),
    ".SH DESCRIPTION",
    roff("Programs in the kernel, on the tap, judge every packet of the guest, and a resolver of the enforcer's own answers its DNS questions and tells the kernel which addresses it gave. What is not allowed is dropped with a reason. When the enforcer ends without detaching, the kernel goes on enforcing."),
    ".PP", roff("enforcer agent holds many guests and is spoken to by the other commands; systemd runs it as enforcer-agent.service. Without it, enforcer attach holds one tap until it is ended."),
    ".SH COMMANDS",
  ];
  for (const { words, usage, summary, args, options } of verbs) {
    if (words.length > 0) lines.push(`.SS ${roff(usage.replace(/^enforcer /, ""))}`, roff(summary));
    else lines.push(roff(summary));
    for (const [name, text] of [...args, ...options]) if (name !== "-h, --help") lines.push(".TP", `.B ${roff(name)}`, roff(text));
  }
  lines.push(
    ".SH FILES",
    ...[["/etc/enforcer/agent.yaml", "configuration of the agent"], ["/run/enforcer", "socket, locks and state"], ["/sys/fs/bpf/enforcer", "pinned programs and maps: what is in force"],
      ["/usr/share/doc/enforcer", "policy language, operations, reasons, errors, metrics; examples of policies"]].flatMap(([file, text]) => [".TP", `.I ${roff(file ?? "")}`, roff(text ?? "")]),
    ".SH EXIT STATUS", roff("0 when it went well; 1 when the answer is no (explain, policy diff, reload that could not put all in force); 64 for a wrong command line, 65 for a policy or a name that is wrong, 69 when something is not there or is taken, 70 for a fault of the enforcer, 71 when the kernel refused something, 77 without root, 78 when the machine or the configuration must be changed first. /usr/share/doc/enforcer/ERRORS.md lists every error."),
    ".SH SEE ALSO", ".BR bpf (2), .BR tc (8), .BR tuntap (8), .BR systemctl (1)".replace(/, \.BR /g, ",\n.BR "), "",
  );
  return lines.join("\n");
}
