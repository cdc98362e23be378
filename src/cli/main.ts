/**
 * The command line: verbs, options, exit statuses.
 *
 * Holds always: an error is one message with its code and remedy on stderr (or one JSON object with --json) and an exit
 * status of src/errors.ts; a fault of the program itself shows its stack and ends with 70.
 */
import { readFileSync } from "node:fs";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { parseAddress, parsePrefix, type Address, type Prefix } from "../addresses/address.js";
import type { Listen } from "../agent/metrics.js";
import { EnforcerError, ExitStatus } from "../errors.js";
import { parseUpstream } from "../policy/parse.js";
import type { AttachArguments } from "./attach.js";

const DEFAULT_METRICS = "127.0.0.1:9469";
const DEFAULT_RUN_DIRECTORY = "/run/enforcer";
const DEFAULT_BPFFS = "/sys/fs/bpf";

const version = (JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string }).version;

function collect<T>(parse: (text: string) => T): (text: string, former: T[] | undefined) => T[] {
  return (text, former) => [...(former ?? []), parse(text)];
}

function address(text: string): Address {
  const parsed = parseAddress(text);
  if (parsed === null) throw new InvalidArgumentError("an IPv4 or IPv6 address is wanted, such as 172.30.0.1 or fd00::1");
  return parsed;
}

function guestPrefix(text: string): Prefix {
  const single = parseAddress(text);
  const parsed = parsePrefix(text) ?? null;
  if (single === null && parsed === null) throw new InvalidArgumentError("an address or a prefix is wanted, such as 172.30.0.2 or fd00:1::/64");
  return parsed ?? { bytes: single!, length: 128, family: text.includes(":") ? 6 : 4 };
}

function mac(text: string): Uint8Array {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) throw new InvalidArgumentError("six octets are wanted, such as 02:fc:00:00:00:05");
  const octets = Uint8Array.from(text.split(":"), (octet) => Number.parseInt(octet, 16));
  if (octets[0]! & 1 || octets.every((octet) => octet === 0)) throw new InvalidArgumentError("the address of one device is wanted, not of a group or of nobody");
  return octets;
}

function upstream(text: string): { address: Address; port: number } {
  const parsed = parseUpstream(text);
  if (!parsed.ok) throw new InvalidArgumentError(`${parsed.refusal.message}; ${parsed.refusal.remedy}`);
  return parsed.value;
}

/** "off" stays a word: commander takes null for "no value". */
function listen(text: string): Listen | "off" {
  if (text === "off") return "off";
  const match = /^(?:\[([0-9a-f:.]+)\]|([0-9.]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2], port = Number(match?.[3]);
  if (host === undefined || parseAddress(host) === null || port > 65535) throw new InvalidArgumentError(`ADDR:PORT or "off" is wanted, such as ${DEFAULT_METRICS} or [::1]:9469`);
  return { host, port };
}

function requireRoot(): void {
  if (process.geteuid?.() !== 0) throw new EnforcerError("E_NOT_ROOT", "attaching needs root");
}

const policyOptions = (command: Command): Command => command
  .option("--policy <file>", "policy file, YAML or JSON; without one: deny all but public addresses, nothing inbound")
  .option("--rule <token>", "rule before those of the file, in order, such as allow@public:tcp:443, deny@metadata, allow@*.example.com:tcp:443, allow:ingress@any:tcp:8080 (repeatable)", collect(String))
  .addOption(new Option("--net-default-egress <action>", "what no rule matches, outward").choices(["allow", "deny"]))
  .addOption(new Option("--net-default-ingress <action>", "what no rule matches, inward").choices(["allow", "deny"]))
  .option("--no-net", "nothing passes in either direction, no name is resolved")
  .option("--no-dns-rebind-protection", "let names have addresses outside the public ones");

interface PolicyFlags { policy?: string; rule?: string[]; netDefaultEgress?: "allow" | "deny"; netDefaultIngress?: "allow" | "deny"; net: boolean; dnsRebindProtection: boolean }
interface AttachFlags extends PolicyFlags { gateway?: Address[]; guestIp?: Prefix[]; guestMac?: Uint8Array; upstream?: { address: Address; port: number }[]; metrics: Listen | "off"; json?: boolean; runDir: string; bpffs: string }

function program(): Command {
  const root = new Command("enforcer")
    .description("Holds a sandbox's guest to a network policy, in the kernel, at its tap device.")
    .version(version)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({ outputError: () => undefined });

  policyOptions(root.command("attach").description("enforce a policy on a tap until SIGINT or SIGTERM, then detach").argument("<tap>", "the guest's tap device"))
    .option("--gateway <addr>", "the guest's gateway, where the tap or its bridge has no address (repeatable)", collect(address))
    .option("--guest-ip <addr>", "the guest's address, or a prefix of them; without one it is learned from its first packet (repeatable)", collect(guestPrefix))
    .option("--guest-mac <mac>", "the guest's MAC; without one it is learned from its first frame", mac)
    .option("--upstream <addr[:port]>", "resolver to ask instead of the policy's or the host's (repeatable)", collect(upstream))
    .addOption(new Option("--metrics <addr:port>", `where to serve Prometheus metrics, or "off"`).argParser(listen).default(listen(DEFAULT_METRICS), DEFAULT_METRICS))
    .option("--json", "one JSON object a line")
    .option("--run-dir <dir>", "directory for locks and state", DEFAULT_RUN_DIRECTORY)
    .option("--bpffs <dir>", "where the BPF file system is mounted, or a directory in it", DEFAULT_BPFFS)
    .action(async (tap: string, flags: AttachFlags) => {
      requireRoot();
      const { attach } = await import("./attach.js");
      const options: AttachArguments = {
        tap, policy: flags.policy ?? null, rules: flags.rule ?? [], defaultEgress: flags.netDefaultEgress ?? null, defaultIngress: flags.netDefaultIngress ?? null,
        noNet: !flags.net, noRebindProtection: !flags.dnsRebindProtection, gateways: flags.gateway ?? [], guest: flags.guestIp ?? [], mac: flags.guestMac ?? null,
        upstreams: flags.upstream ?? [], metrics: flags.metrics === "off" ? null : flags.metrics, json: flags.json === true, runDirectory: flags.runDir, bpffs: flags.bpffs,
      };
      await attach(options);
    });

  const policy = root.command("policy").description("look at policies");
  policyOptions(policy.command("check").description("print what a policy was understood as, and what is wrong with it").argument("[file]", "policy file"))
    .option("--json", "one JSON object")
    .action(async (file: string | undefined, flags: PolicyFlags & { json?: boolean }) => {
      const { checkPolicy } = await import("./policy-check.js");
      checkPolicy({ file: file ?? flags.policy ?? null, rules: flags.rule ?? [], defaultEgress: flags.netDefaultEgress ?? null, defaultIngress: flags.netDefaultIngress ?? null, noNet: !flags.net, noRebindProtection: !flags.dnsRebindProtection, json: flags.json === true });
    });

  root.command("doctor").description("whether this machine can enforce, and what to do where it cannot").argument("[tap...]", "taps to look at for programs of others")
    .option("--json", "one JSON object")
    .option("--bpffs <dir>", "where the BPF file system is mounted", DEFAULT_BPFFS)
    .action(async (taps: string[], flags: { json?: boolean; bpffs: string }) => {
      const { doctor } = await import("./doctor.js");
      process.exitCode = doctor({ taps, bpffs: flags.bpffs, json: flags.json === true });
    });
  return root;
}

/** Runs the command line and resolves with the exit status. */
export async function main(argv: readonly string[]): Promise<number> {
  const json = argv.includes("--json");
  try {
    await program().parseAsync([...argv], { from: "user" });
    return Number(process.exitCode ?? ExitStatus.ok);
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return ExitStatus.ok;
      if (error.code === "commander.help") return ExitStatus.usage;
      return fail(new EnforcerError("E_USAGE", error.message.replace(/^error: /, "")), json);
    }
    if (error instanceof EnforcerError) return fail(error, json);
    process.stderr.write(`enforcer: a fault of the program itself: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
    return ExitStatus.software;
  }
}

function fail(error: EnforcerError, json: boolean): number {
  if (json) process.stdout.write(`${JSON.stringify({ event: "error", code: error.code, message: error.message, remedy: error.remedy })}\n`);
  process.stderr.write(`enforcer: ${error.message}\n  remedy: ${error.remedy} [${error.code}]\n`);
  return error.exit;
}
