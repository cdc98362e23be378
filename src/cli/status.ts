/** `enforcer status [tap]`: the agent, or one sandbox whole: hooks, policy, identity, counters, limits. */
import type { AgentStatus, SandboxStatus } from "../api/schema.js";
import { agentAt } from "./connection.js";
import { ago, factsText, printJson, tableText } from "./table.js";

export async function status(name: string | null, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const agent = await agentAt(runDir);
  const found = name === null ? await agent.status() : await agent.sandbox(name);
  if (json) return printJson(found);
  process.stdout.write(name === null ? agentText(found as AgentStatus) : sandboxText(found as SandboxStatus));
}

function agentText(agent: AgentStatus): string {
  const { enforced, kept, waiting, most } = agent.sandboxes;
  return factsText([
    ["agent", `${agent.version}, pid ${agent.pid}, up ${ago(agent.since)}`], ["config", agent.config ?? "none: built-in settings"], ["mechanism", `${agent.mechanism}, layout ${agent.abi}`],
    ["sandboxes", `${enforced} enforced, ${kept} kept, ${waiting} waiting; at most ${most}`], ["metrics", agent.metrics === null ? "off" : `http://${agent.metrics}/metrics`],
    ["floor", agent.floor ?? "none"], ["run dir", agent.run_dir], ["bpffs", agent.bpffs], ["watchers", String(agent.watchers)],
  ]);
}

function sandboxText(one: SandboxStatus): string {
  const { learned, given, mac } = one.guest;
  const addresses = [...given, ...[learned?.address4, learned?.address6].filter((found) => found !== null && found !== undefined).map((found) => `${found} (learned)`)];
  const parts = [factsText([
    ["sandbox", `${one.name}: ${one.state}${one.note === null ? "" : `, ${one.note}`}`], ["tap", `${one.tap}${one.ifindex === null ? "" : `, ifindex ${one.ifindex}`}${one.netns === null ? "" : `, in ${one.netns}`}${one.bridge === null ? "" : `, port of ${one.bridge}`}`],
    ...(one.state === "waiting" ? [] : [
      ["since", one.since === null ? "unknown" : `${one.since}${one.adopted ? ", taken over from a former process" : ""}`] as const,
      ["slot", `${one.slot}, generation ${one.generation}`] as const,
      ["guest", `${addresses.length === 0 ? "no address yet" : addresses.join(", ")}; ${mac ?? (learned?.mac === null || learned?.mac === undefined ? "no MAC yet" : `${learned.mac} (learned)`)}`] as const,
      ["gateways", one.gateways.join(", ") || "none"] as const,
      ["policy", one.policy === null ? "unknown" : `${one.policy.file ?? (one.state === "kept" ? "unknown" : "of the command line")}, ${one.rules ?? "?"} rule${one.rules === 1 ? "" : "s"}, uid ${one.policy.uid}${one.policy.floor === null ? "" : `, under the floor ${one.policy.floor}`}`] as const,
    ]),
  ])];
  if (one.hooks.length > 0) parts.push(tableText(["hook", "how", "program", "id", "tag", "place", "chain"], one.hooks.map((hook) => [hook.hook, one.mechanism ?? "-", hook.program, String(hook.id), hook.tag, hook.position < 0 ? "NOT THERE" : `${hook.position + 1} of ${hook.chain.length}`, hook.chain.join(", ")])));
  if (one.limits.length > 0) parts.push(tableText(["limit", "used", "most"], one.limits.map(({ what, used, limit }) => [what, String(used), String(limit)])));
  if (one.counters.length > 0) parts.push(tableText(["direction", "verdict", "reason", "packets", "bytes"], one.counters.map((row) => [row.direction, row.verdict, row.reason, String(row.packets), String(row.bytes)])));
  for (const [head, counts] of [["query", one.queries], ["connection", one.connections]] as const) {
    if (Object.keys(counts).length > 0) parts.push(tableText([head, "count"], Object.entries(counts).map(([outcome, count]) => [outcome, String(count)])));
  }
  if (one.events_lost > 0) parts.push(`${one.events_lost === 1 ? "1 denial was" : `${one.events_lost} denials were`} not reported, over the rate\n`);
  for (const note of one.notes) parts.push(`${note}\n`);
  return parts.join("\n");
}
