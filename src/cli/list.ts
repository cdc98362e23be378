/** `enforcer list`: the sandboxes that the agent holds. */
import { agentAt } from "./connection.js";
import { ago, printJson, tableText } from "./table.js";

export async function list({ json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const sandboxes = await (await agentAt(runDir)).list();
  if (json) return printJson({ sandboxes });
  if (sandboxes.length === 0) return void process.stdout.write("no sandboxes\n");
  process.stdout.write(tableText(["name", "tap", "netns", "state", "how", "rules", "since", ""], sandboxes.map((one) => [
    one.name, one.tap, one.netns ?? "-", one.state, one.mechanism ?? "-", one.rules === null ? "-" : String(one.rules), one.since === null ? "-" : ago(one.since), one.note ?? (one.origin === "pattern" ? "by pattern" : ""),
  ])));
}
