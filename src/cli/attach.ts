/**
 * `enforcer attach <tap>`: asks the agent that runs, or is itself the agent of that tap in the foreground (foreground.ts).
 *
 * Holds always: "enforcing" is printed only after enforcement is in force and tested.
 */
import { formatAddress, formatPrefix } from "../addresses/address.js";
import type { SandboxStatus } from "../api/schema.js";
import { EnforcerError } from "../errors.js";
import { checkInterfaceName } from "../net/links.js";
import { agentAt, agentServes } from "./connection.js";
import { attachForeground, type AttachArguments } from "./foreground.js";
import { policyRequestOf } from "./policy.js";

export interface AttachFlags extends AttachArguments {
  readonly name: string | null;
  readonly netns: string | null;
  readonly foreground: boolean;
  /** Options that were given and that the agent's configuration decides where one runs. */
  readonly agentsOwn: readonly string[];
}

/** @throws EnforcerError. */
export async function attach(options: AttachFlags): Promise<void> {
  if (options.foreground || !(await agentServes(options.runDirectory))) {
    const only = options.netns !== null ? "--netns" : options.name !== null ? "--name" : null;
    if (only !== null) throw new EnforcerError("E_NO_AGENT", `${only} needs the agent, and none answers in ${options.runDirectory}`);
    return attachForeground(options);
  }
  if (options.agentsOwn.length > 0) process.stderr.write(`enforcer: ${options.agentsOwn.join(" and ")} ${options.agentsOwn.length > 1 ? "are" : "is"} the agent's to say (its configuration), and not regarded\n`);
  const { tap, name, netns, wait, gateways, guest, mac, upstreams } = options;
  checkInterfaceName(tap);
  const policy = policyRequestOf(options);
  const { sandbox, warnings } = await (await agentAt(options.runDirectory)).attach({
    tap, ...(name === null ? {} : { name }), ...(netns === null ? {} : { netns }), ...(wait ? { wait } : {}),
    ...(policy === null ? {} : { policy }),
    ...(gateways.length === 0 ? {} : { gateways: gateways.map(formatAddress) }),
    ...(guest.length === 0 ? {} : { guest: guest.map((prefix) => (prefix.length === 128 ? formatAddress(prefix.bytes) : formatPrefix(prefix))) }),
    ...(mac === null ? {} : { mac: [...mac].map((octet) => octet.toString(16).padStart(2, "0")).join(":") }),
    ...(upstreams.length === 0 ? {} : { upstreams: upstreams.map(({ address, port }) => `${formatAddress(address).includes(":") ? `[${formatAddress(address)}]` : formatAddress(address)}:${port}`) }),
  });
  report(sandbox, warnings, options.json);
}

function report(sandbox: SandboxStatus, warnings: readonly string[], json: boolean): void {
  if (json) {
    process.stdout.write(`${JSON.stringify({ event: sandbox.state === "waiting" ? "waiting" : "enforcing", time: new Date().toISOString(), sandbox: sandbox.name, warnings, ...sandbox })}\n`);
    return;
  }
  for (const warning of warnings) process.stderr.write(`enforcer: ${warning}\n`);
  if (sandbox.state === "waiting") {
    process.stdout.write(`waiting for ${sandbox.tap} (${sandbox.name})\n`);
    return;
  }
  const where = sandbox.bridge === null ? "routed" : `port of bridge ${sandbox.bridge}`;
  process.stdout.write(`enforcing ${sandbox.name} (${where}, ${sandbox.mechanism}, ${sandbox.rules} rule${sandbox.rules === 1 ? "" : "s"}${sandbox.adopted ? ", taken over from a former process" : ""})\n`);
  for (const { family, setting, before, after, why } of sandbox.settings) process.stderr.write(`enforcer: set net.${family}.conf.${sandbox.tap}.${setting} ${before} → ${after}: ${why}\n`);
  for (const note of sandbox.notes) process.stderr.write(`enforcer: ${note}\n`);
}
