/** `enforcer secrets <name>`: the placeholders that the guest's environment is to hold, as a shell reads them. */
import { EnforcerError } from "../errors.js";
import { keptEnvironment } from "../secrets/placeholder.js";
import { agentAt } from "./connection.js";
import { printJson } from "./table.js";

export async function secrets(name: string, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const environment = await environmentOf(name, runDir);
  if (json) return printJson({ environment });
  if (Object.keys(environment).length === 0) process.stderr.write(`enforcer: the policy of ${name} names no secrets\n`);
  // Letters, digits, `_`, `-` and `.` only: nothing that a shell reads otherwise.
  for (const [variable, placeholder] of Object.entries(environment)) process.stdout.write(`${variable}=${placeholder}\n`);
}

async function environmentOf(name: string, runDir: string): Promise<Readonly<Record<string, string>>> {
  try {
    return (await (await agentAt(runDir)).secrets(name)).environment;
  } catch (error) {
    // `enforcer attach` in the foreground answers no questions, and keeps placeholders at the same place.
    if (!(error instanceof EnforcerError) || error.code !== "E_NO_AGENT") throw error;
    const environment = keptEnvironment(runDir, name);
    if (Object.keys(environment).length === 0) throw error;
    return environment;
  }
}
