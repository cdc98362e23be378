/** `enforcer flows <name>`: the flows in the kernel's table. */
import { agentAt } from "./connection.js";
import { printJson, tableText } from "./table.js";

export async function flows(name: string, { json, runDir, limit }: { json: boolean; runDir: string; limit: number }): Promise<void> {
  const answer = await (await agentAt(runDir)).flows(name, limit);
  if (json) return printJson(answer);
  if (answer.flows.length === 0) return void process.stdout.write("no flows\n");
  process.stdout.write(tableText(["", "protocol", "guest", "remote", "name", "lasted", "rule"], answer.flows.map((flow) => {
    const ports = flow.protocol === "tcp" || flow.protocol === "udp";
    return [flow.direction === "egress" ? "→" : "←", flow.protocol, String(flow.guest_port), ports ? `${flow.remote.includes(":") ? `[${flow.remote}]` : flow.remote}:${flow.remote_port}` : flow.remote, flow.name ?? "-", flow.lasted === null ? "-" : `${flow.lasted}s`, `${flow.rule ?? (flow.intercepted ? "" : "default")}${flow.intercepted ? `${flow.rule === null ? "" : "; "}looked into by the agent` : ""}`];
  })));
  if (answer.total > answer.flows.length) process.stdout.write(`and ${answer.total - answer.flows.length} more (--limit)\n`);
}
