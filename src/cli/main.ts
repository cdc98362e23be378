/**
 * The command line: verbs, options, exit statuses.
 *
 * Holds always: an error is one message with its code and remedy on stderr (or one JSON object with --json) and an exit
 * status of src/errors.ts; a fault of the program itself shows its stack and ends with 70. Each verb is loaded when it is called.
 */
import { Argument, Command, CommanderError, Option } from "commander";
import type { Address, Prefix } from "../addresses/address.js";
import type { Listen } from "../agent/metrics.js";
import { DEFAULT_BPFFS, DEFAULT_CONFIG, DEFAULT_METRICS, DEFAULT_RUN_DIRECTORY } from "../config/agent-config.js";
import { EnforcerError, ExitStatus } from "../errors.js";
import { version } from "../version.js";
import { address, agentOptions, bpffsOption, collect, count, guestPrefix, listen, mac, policyOptions, port, requireRoot, upstream, word, type AgentFlags, type PolicyFlags } from "./arguments.js";
import { SHELLS, completionScript, type Shell } from "./completion.js";

interface AttachFlags extends PolicyFlags {
  gateway?: Address[]; guestIp?: Prefix[]; guestMac?: Uint8Array; upstream?: { address: Address; port: number }[]; metrics: Listen | "off"; json?: boolean; runDir: string; bpffs: string;
  name?: string; netns?: string; wait?: boolean; foreground?: boolean;
}

/** The whole command line; nothing is done until it is parsed. */
export function program(): Command {
  const root = new Command("enforcer")
    .description("Holds a sandbox's guest to a network policy, in the kernel, at its tap device.")
    .version(version)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({ outputError: () => undefined });
  const sandbox = (): Argument => new Argument("<sandbox>", "its name: the tap's, unless another was given").argParser(word);
  const asked = ({ json, runDir }: AgentFlags): { json: boolean; runDir: string } => ({ json: json === true, runDir });

  root.command("agent").description("run the host's agent until SIGTERM; the kernel goes on enforcing afterwards")
    .option("--config <file>", `configuration; ${DEFAULT_CONFIG} where it exists`, word)
    .option("--run-dir <dir>", "directory for socket, locks and state, instead of the configuration's", word)
    .option("--bpffs <dir>", "where the BPF file system is mounted, instead of the configuration's", word)
    .option("--json", "one JSON object a line")
    .action(async (flags: { config?: string; runDir?: string; bpffs?: string; json?: boolean }) => {
      requireRoot("the agent");
      const { runAgent } = await import("./agent.js");
      await runAgent({ config: flags.config ?? null, runDirectory: flags.runDir ?? null, bpffs: flags.bpffs ?? null, json: flags.json === true });
    });

  policyOptions(root.command("attach").description("enforce a policy on a tap: asks the agent, or, where none runs, does it itself until SIGINT or SIGTERM, and then detaches").argument("<tap>", "the guest's tap device"))
    .option("--name <name>", "the sandbox's name, where it is not to be the tap's (agent)", word)
    .option("--netns <name>", "network namespace of the tap, a name as of ip netns, or a path (agent)", word)
    .option("--wait", "take the tap when it appears, and again when it goes and comes back")
    .option("--foreground", "do not ask the agent")
    .option("--gateway <addr>", "the guest's gateway, where the tap or its bridge has no address (repeatable)", collect(address))
    .option("--guest-ip <addr>", "the guest's address, or a prefix of them; without one it is learned from its first packet (repeatable)", collect(guestPrefix))
    .option("--guest-mac <mac>", "the guest's MAC; without one it is learned from its first frame", mac)
    .option("--upstream <addr[:port]>", "resolver to ask instead of the policy's or the host's (repeatable)", collect(upstream))
    .addOption(new Option("--metrics <addr:port>", `where to serve Prometheus metrics, or "off", where no agent runs`).argParser(listen).default(listen(DEFAULT_METRICS), DEFAULT_METRICS))
    .option("--json", "one JSON object a line")
    .option("--run-dir <dir>", "directory for locks and state, and of the agent's socket", word, DEFAULT_RUN_DIRECTORY)
    .option("--bpffs <dir>", "where the BPF file system is mounted, or a directory in it, where no agent runs", word, DEFAULT_BPFFS)
    .action(async (tap: string, flags: AttachFlags, command: Command) => {
      requireRoot("attaching");
      const { attach } = await import("./attach.js"), { policyArguments } = await import("./policy.js");
      await attach({
        tap, ...policyArguments(null, flags), gateways: flags.gateway ?? [], guest: flags.guestIp ?? [], mac: flags.guestMac ?? null,
        upstreams: flags.upstream ?? [], metrics: flags.metrics === "off" ? null : flags.metrics, metricsAsked: command.getOptionValueSource("metrics") === "cli", json: flags.json === true, runDirectory: flags.runDir, bpffs: flags.bpffs,
        name: flags.name ?? null, netns: flags.netns ?? null, wait: flags.wait === true, foreground: flags.foreground === true,
        agentsOwn: (["metrics", "bpffs"] as const).filter((name) => command.getOptionValueSource(name) === "cli").map((name) => `--${name}`),
      });
    });

  bpffsOption(agentOptions(root.command("detach").description("take a sandbox out from under its policy; its guest is free from then on").addArgument(sandbox())))
    .action(async (name: string, flags: AgentFlags & { bpffs: string }) => { await (await import("./detach.js")).detach(name, { ...asked(flags), bpffs: flags.bpffs }); });

  agentOptions(root.command("list").description("the sandboxes that the agent holds"))
    .action(async (flags: AgentFlags) => { await (await import("./list.js")).list(asked(flags)); });

  agentOptions(root.command("status").description("the agent, or one sandbox: hooks, policy, identity, counters, limits").addArgument(new Argument("[sandbox]", "its name").argParser(word)))
    .action(async (name: string | undefined, flags: AgentFlags) => { await (await import("./status.js")).status(name ?? null, asked(flags)); });

  const policy = root.command("policy").description("look at policies, and change them").action(() => {
    throw new EnforcerError("E_USAGE", policy.args.length === 0 ? "policy what? show, set, check or diff" : `unknown command 'policy ${policy.args[0]}'`, { remedy: "see enforcer policy --help" });
  });
  agentOptions(policy.command("show").description("the policy in force, as it was understood").addArgument(sandbox()))
    .action(async (name: string, flags: AgentFlags) => { await (await import("./policy.js")).showPolicy(name, asked(flags)); });
  agentOptions(policyOptions(policy.command("set").description("put another policy in force, whole and at once").addArgument(sandbox()).argument("[file]", "policy file", word)))
    .action(async (name: string, file: string | undefined, flags: AgentFlags & PolicyFlags) => {
      const { policyArguments, setPolicy } = await import("./policy.js");
      await setPolicy(name, policyArguments(file ?? null, flags), asked(flags));
    });
  policyOptions(policy.command("check").description("print what a policy was understood as, and what is wrong with it").argument("[file]", "policy file", word))
    .option("--json", "one JSON object")
    .action(async (file: string | undefined, flags: PolicyFlags & { json?: boolean }) => {
      const { checkPolicy, policyArguments } = await import("./policy.js");
      checkPolicy(policyArguments(file ?? null, flags), flags.json === true);
    });
  agentOptions(policyOptions(policy.command("diff").description("what another policy would change; ends with 1 when it would").addArgument(sandbox()).argument("[file]", "policy file", word)))
    .action(async (name: string, file: string | undefined, flags: AgentFlags & PolicyFlags) => {
      const { diffPolicy, policyArguments } = await import("./policy.js");
      if (!(await diffPolicy(name, policyArguments(file ?? null, flags), asked(flags)))) process.exitCode = ExitStatus.failed;
    });

  // For the message above alone: a command that is made under one that takes them would take them, and read the first of two files.
  policy.allowExcessArguments();

  agentOptions(root.command("pins").description("what a sandbox was told in answers, and until when it counts").addArgument(sandbox()))
    .action(async (name: string, flags: AgentFlags) => { await (await import("./pins.js")).pins(name, asked(flags)); });

  agentOptions(root.command("secrets").description("what a guest's environment is to hold for the secrets of its policy: placeholders").addArgument(sandbox()))
    .action(async (name: string, flags: AgentFlags) => { await (await import("./secrets.js")).secrets(name, asked(flags)); });

  agentOptions(root.command("ca").description("the certificate that a guest must trust where its TLS is intercepted").addArgument(sandbox()))
    .action(async (name: string, flags: AgentFlags) => { await (await import("./ca.js")).ca(name, asked(flags)); });

  agentOptions(root.command("flows").description("a sandbox's flows in the kernel's table").addArgument(sandbox()))
    .option("--limit <n>", "flows at most", count, 1000)
    .action(async (name: string, flags: AgentFlags & { limit: number }) => { await (await import("./flows.js")).flows(name, { ...asked(flags), limit: flags.limit }); });

  agentOptions(root.command("watch").description("live verdicts and changes, until SIGINT").addArgument(new Argument("[sandbox]", "only this one").argParser(word)))
    .addOption(new Option("--verdict <verdict>", "what is let through, or what is denied (which is the default)").choices(["allow", "deny"]))
    .option("--reason <reason>", "only this reason, such as default-metadata")
    .option("--destination <what>", "only this address, prefix or name (*.example.com: below it)")
    .action(async (name: string | undefined, flags: AgentFlags & { verdict?: "allow" | "deny"; reason?: string; destination?: string }) => {
      const { watch } = await import("./watch.js");
      await watch({ ...(name === undefined ? {} : { sandbox: name }), ...(flags.verdict === undefined ? {} : { verdict: flags.verdict }), ...(flags.reason === undefined ? {} : { reason: flags.reason }), ...(flags.destination === undefined ? {} : { destination: flags.destination }) }, asked(flags));
    });

  agentOptions(root.command("explain").description("whether a sandbox may reach something, and the whole why; ends with 1 when it may not").addArgument(sandbox())
    .argument("<destination>", "name, address or URL", word).argument("[proto]", "tcp (the default), udp, icmp, icmpv6 or a number").argument("[port]", "443 where neither this nor the URL says another", port))
    .option("--ingress", "from there to the guest; the port is the guest's")
    .action(async (name: string, destination: string, protocol: string | undefined, number: number | undefined, flags: AgentFlags & { ingress?: boolean }) => {
      const { explainCommand } = await import("./explain.js");
      const allowed = await explainCommand(name, { destination, ...(protocol === undefined ? {} : { protocol }), ...(number === undefined ? {} : { port: number }), ...(flags.ingress === true ? { direction: "ingress" as const } : {}) }, asked(flags));
      if (!allowed) process.exitCode = ExitStatus.failed;
    });

  bpffsOption(root.command("doctor").description("whether this machine can enforce, and what to do where it cannot").argument("[tap...]", "taps to look at for programs of others")
    .option("--json", "one JSON object"))
    .action(async (taps: string[], flags: { json?: boolean; bpffs: string }) => {
      const { doctor } = await import("./doctor.js");
      process.exitCode = doctor({ taps, bpffs: flags.bpffs, json: flags.json === true });
    });

  agentOptions(root.command("reload").description("have the agent read its configuration again"))
    .action(async (flags: AgentFlags) => { if (!(await (await import("./reload.js")).reload(asked(flags)))) process.exitCode = ExitStatus.failed; });

  agentOptions(root.command("version").description("of this program and of the agent"))
    .action(async (flags: AgentFlags) => { await (await import("./version.js")).version(asked(flags)); });

  root.command("completion").description("a completion script for the shell").addArgument(new Argument("<shell>").choices(SHELLS))
    .action((shell: Shell) => { process.stdout.write(completionScript(root, shell)); });
  return root;
}

/** main() runs more than once in one process where pages are made of what it says. */
let outlived = false;

/**
 * Whoever reads the output may end first, as head does: that is no fault, and what was asked for is done all the same. Output that
 * cannot be written for another reason is an error, but for who stays: an enforcer goes on without its log.
 */
function outliveReaders(stays: boolean): void {
  if (outlived) return;
  outlived = true;
  process.stdout.on("error", ({ code, message }: NodeJS.ErrnoException) => {
    if (code === "EPIPE" || stays) return;
    process.stderr.write(`enforcer: the output cannot be written: ${message}\n`);
    process.once("exit", () => { process.exitCode = ExitStatus.osError; });
  });
  process.stderr.on("error", () => undefined);
}

/** Runs the command line and resolves with the exit status. */
export async function main(argv: readonly string[]): Promise<number> {
  outliveReaders(argv[0] === "agent" || argv[0] === "attach");
  const json = argv.includes("--json"), root = program();
  try {
    await root.parseAsync([...argv], { from: "user" });
    return Number(process.exitCode ?? ExitStatus.ok);
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return ExitStatus.ok;
      if (error.code === "commander.help") return ExitStatus.usage;
      return fail(new EnforcerError("E_USAGE", error.message.replace(/^error: /, ""), { remedy: `see ${verbOf(root, argv)} --help` }), json);
    }
    if (error instanceof EnforcerError) return fail(error, json);
    process.stderr.write(`enforcer: a fault of the program itself: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
    return ExitStatus.software;
  }
}

/** The verb that a command line begins with, as it is asked for help. */
function verbOf(root: Command, argv: readonly string[]): string {
  const words = [root.name()];
  for (let at: Command | undefined = root, i = 0; (at = at.commands.find((command) => command.name() === argv[i])) !== undefined; i++) words.push(at.name());
  return words.join(" ");
}

function fail(error: EnforcerError, json: boolean): number {
  if (json) process.stdout.write(`${JSON.stringify({ event: "error", code: error.code, message: error.message, remedy: error.remedy })}\n`);
  process.stderr.write(`enforcer: ${error.message}\n  remedy: ${error.remedy} [${error.code}]\n`);
  return error.exit;
}
