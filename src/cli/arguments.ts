/**
 * Arguments that several verbs take, and how they are read.
 *
 * Holds always: an argument that cannot be read is refused with what would be, before anything is done.
 */
import { InvalidArgumentError, Option, type Command } from "commander";
import { parseAddress, parsePrefix, type Address, type Prefix } from "../addresses/address.js";
import type { Listen } from "../agent/metrics.js";
import { DEFAULT_BPFFS, DEFAULT_METRICS, DEFAULT_RUN_DIRECTORY, parseListen } from "../config/agent-config.js";
import { EnforcerError } from "../errors.js";
import { parseUpstream } from "../policy/parse.js";

export function collect<T>(parse: (text: string) => T): (text: string, former: T[] | undefined) => T[] {
  return (text, former) => [...(former ?? []), parse(text)];
}

/** Nothing is what a variable of a script holds that was never set. */
export function word(text: string): string {
  if (text === "") throw new InvalidArgumentError("it is empty");
  return text;
}

export function address(text: string): Address {
  const parsed = parseAddress(text);
  if (parsed === null) throw new InvalidArgumentError("an IPv4 or IPv6 address is wanted, such as 172.30.0.1 or fd00::1");
  return parsed;
}

export function guestPrefix(text: string): Prefix {
  const single = parseAddress(text);
  const parsed = parsePrefix(text) ?? null;
  if (single === null && parsed === null) throw new InvalidArgumentError("an address or a prefix is wanted, such as 172.30.0.2 or fd00:1::/64");
  return parsed ?? { bytes: single!, length: 128, family: text.includes(":") ? 6 : 4 };
}

export function mac(text: string): Uint8Array {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) throw new InvalidArgumentError("six octets are wanted, such as 02:fc:00:00:00:05");
  const octets = Uint8Array.from(text.split(":"), (octet) => Number.parseInt(octet, 16));
  if (octets[0]! & 1 || octets.every((octet) => octet === 0)) throw new InvalidArgumentError("the address of one device is wanted, not of a group or of nobody");
  return octets;
}

export function upstream(text: string): { address: Address; port: number } {
  const parsed = parseUpstream(text);
  if (!parsed.ok) throw new InvalidArgumentError(`${parsed.refusal.message}; ${parsed.refusal.remedy}`);
  return parsed.value;
}

/** "off" stays a word: commander takes null for "no value". */
export function listen(text: string): Listen | "off" {
  if (text === "off") return "off";
  const parsed = parseListen(text);
  if (parsed === null) throw new InvalidArgumentError(`ADDR:PORT or "off" is wanted, such as ${DEFAULT_METRICS} or [::1]:9469`);
  return parsed;
}

export function port(text: string): number {
  const number = Number(text);
  if (!/^\d{1,5}$/.test(text) || number > 65535) throw new InvalidArgumentError("a port is wanted, 0 to 65535");
  return number;
}

export function count(text: string): number {
  if (!/^[1-9]\d{0,6}$/.test(text)) throw new InvalidArgumentError("a number from 1 on is wanted");
  return Number(text);
}

export function requireRoot(doing: string): void {
  if (process.geteuid?.() !== 0) throw new EnforcerError("E_NOT_ROOT", `${doing} needs root`);
}

export interface PolicyFlags { policy?: string; rule?: string[]; netDefaultEgress?: "allow" | "deny"; netDefaultIngress?: "allow" | "deny"; net: boolean; dnsRebindProtection: boolean }

export const policyOptions = (command: Command): Command => command
  .option("--policy <file>", "policy file, YAML or JSON; without one: deny all but public addresses, nothing inbound", word)
  .option("--rule <token>", "rule before those of the file, in order, such as allow@public:tcp:443, deny@metadata, allow@*.example.com:tcp:443, allow:ingress@any:tcp:8080 (repeatable)", collect(String))
  .addOption(new Option("--net-default-egress <action>", "what no rule matches, outward").choices(["allow", "deny"]))
  .addOption(new Option("--net-default-ingress <action>", "what no rule matches, inward").choices(["allow", "deny"]))
  .option("--no-net", "nothing passes in either direction, no name is resolved")
  .option("--no-dns-rebind-protection", "let names have addresses outside the public ones");

/** Flags of verbs that ask the agent. */
export interface AgentFlags { json?: boolean; runDir: string }

export const agentOptions = (command: Command): Command => command
  .option("--json", "JSON instead of text")
  .option("--run-dir <dir>", "the agent's run directory: its socket is in it", word, DEFAULT_RUN_DIRECTORY);

export const bpffsOption = (command: Command): Command => command.option("--bpffs <dir>", "where the BPF file system is mounted, or a directory in it", word, DEFAULT_BPFFS);
