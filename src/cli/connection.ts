/** The agent that a command talks to. */
import { existsSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { AgentClient } from "../api/client.js";
import { requireRoot } from "./arguments.js";

export const SOCKET_NAME = "agent.sock";

export function agentAt(runDirectory: string): AgentClient {
  requireRoot("asking the agent");
  return new AgentClient(join(runDirectory, SOCKET_NAME));
}

/** Whether an agent answers there: a socket that a dead one has left does not count. */
export async function agentRuns(runDirectory: string): Promise<boolean> {
  const path = join(runDirectory, SOCKET_NAME);
  if (!existsSync(path)) return false;
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
