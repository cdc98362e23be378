/** `enforcer ca <name>`: the certificate that the guest must trust where its TLS is intercepted, PEM. Its key is never shown. */
import { EnforcerError } from "../errors.js";
import { keptCertificate } from "../tls/certificates/store.js";
import { agentAt } from "./connection.js";
import { printJson } from "./table.js";

export async function ca(name: string, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const certificate = await certificateOf(name, runDir);
  if (json) return printJson({ certificate });
  process.stdout.write(certificate.endsWith("\n") ? certificate : `${certificate}\n`);
}

async function certificateOf(name: string, runDir: string): Promise<string> {
  try {
    return await (await agentAt(runDir)).ca(name);
  } catch (error) {
    // `enforcer attach` in the foreground answers no questions, and keeps the certificate at the same place.
    const kept = error instanceof EnforcerError && error.code === "E_NO_AGENT" ? keptCertificate(runDir, name) : null;
    if (kept === null) throw error;
    return kept;
  }
}
