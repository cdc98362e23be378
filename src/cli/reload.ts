/** `enforcer reload`: the agent reads its configuration again. Exit status 0, 1 when a sandbox keeps its former policy, 78 when the configuration is wrong. */
import { agentAt } from "./connection.js";
import { printJson } from "./table.js";

/** @returns whether all of it is in force. */
export async function reload({ json, runDir }: { json: boolean; runDir: string }): Promise<boolean> {
  const answer = await (await agentAt(runDir)).reload();
  if (json) printJson(answer);
  else {
    process.stdout.write(`${answer.config ?? "built-in settings"}: ${answer.changed.length === 0 ? "nothing changed" : `${answer.changed.join(", ")} changed`}\n`);
    if (answer.restart.length > 0) process.stdout.write(`${answer.restart.join(", ")}: at the next start\n`);
    for (const { sandbox, message } of answer.failed) process.stderr.write(`enforcer: ${sandbox} keeps its former policy: ${message}\n`);
  }
  return answer.failed.length === 0;
}
