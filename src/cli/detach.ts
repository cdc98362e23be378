/** `enforcer detach <name>`: the guest is free from then on. */
import { agentAt } from "./connection.js";
import { printJson } from "./table.js";

export async function detach(name: string, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  await agentAt(runDir).detach(name);
  if (json) return printJson({ event: "detached", sandbox: name });
  process.stdout.write(`detached ${name}\n`);
}
