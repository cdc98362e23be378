/** `enforcer pins <name>`: what the sandbox was told, and until when it counts. */
import { agentAt } from "./connection.js";
import { printJson, span, tableText } from "./table.js";

export async function pins(name: string, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const answer = await (await agentAt(runDir)).pins(name);
  if (json) return printJson(answer);
  if (answer.pins.length + answer.former.length === 0) return void process.stdout.write("no pins\n");
  process.stdout.write(tableText(["name", "address", "state", "rules"], [
    ...answer.pins.map((pin) => [pin.name, pin.address, pin.left > 0 ? `${span(pin.left)} left` : "kept for a flow", pin.rules.join("; ") || "none by name"]),
    ...answer.former.map((pin) => [pin.name, pin.address, `expired ${span(pin.expired)} ago`, ""]),
  ]));
}
