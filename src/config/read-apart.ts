/**
 * Reads the agent's configuration in a thread of its own, for an agent that serves meanwhile: it, or a file that it names, may be
 * megabytes of anything.
 */
import { readApart } from "../policy/read-apart.js";
import { DEFAULT_CONFIG, type AgentConfig } from "./agent-config.js";

/** As readAgentConfig. @throws EnforcerError E_CONFIG, E_GROUPS, E_LIMIT. */
export function readAgentConfigApart(file: string | null): Promise<AgentConfig> {
  return readApart<AgentConfig>({ url: new URL("./read-worker.js", import.meta.url), what: file ?? DEFAULT_CONFIG, data: file });
}
