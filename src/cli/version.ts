/** `enforcer version`: of this program, and of the agent where one answers. Exit status 0. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { AgentClient } from "../api/client.js";
import type { VersionAnswer } from "../api/schema.js";
import { versionView } from "../api/views.js";
import { SOCKET_NAME } from "./connection.js";
import { factsText, printJson } from "./table.js";

export async function version({ json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const own = versionView();
  const path = join(runDir, SOCKET_NAME);
  let agent: VersionAnswer | null = null;
  if (existsSync(path)) agent = await new AgentClient(path).version().catch(() => null);
  if (json) return printJson({ ...own, agent });
  const text = (one: VersionAnswer): string => `${one.version} (API ${one.api}, layout ${one.abi}, libbpf ${one.libbpf}, node ${one.node})`;
  process.stdout.write(factsText([["enforcer", text(own)], ["agent", agent === null ? "none answers" : text(agent)]]));
}
