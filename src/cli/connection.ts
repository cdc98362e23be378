/**
 * The agent that a command talks to.
 *
 * Holds always: an agent that is on its way (it starts, or one ends and its successor is about to start) is waited for, and said to be; the
 * wait is bounded. Looking for it takes nothing that it needs: its lock is read of, never tried.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { agentDirectory, lockHeld, lockNames, stateNames } from "../agent/run-directory.js";
import { AgentClient } from "../api/client.js";
import { DEFAULT_RUN_DIRECTORY } from "../config/agent-config.js";
import { EnforcerError } from "../errors.js";
import { requireRoot } from "./arguments.js";

export const SOCKET_NAME = "agent.sock";
const UNIT = "enforcer-agent.service";
/** For how long an agent that holds its lock may not answer, ms: TimeoutStartSec of its unit. */
const START_WITHIN = 60_000;
/** For how long there may be no agent between two, ms: RestartSec of its unit, and the start of Node.js on a busy machine. */
const SUCCESSOR_WITHIN = 5_000;
const POLL = 50;

/**
 * Root is wanted; an agent that starts is waited for.
 * @param alone whether the caller has an answer of its own where taps are held without an agent.
 * @throws EnforcerError E_NOT_ROOT, E_NO_AGENT.
 */
export async function agentAt(runDirectory: string, alone = false): Promise<AgentClient> {
  requireRoot("asking the agent");
  const path = join(runDirectory, SOCKET_NAME);
  const served = await waitFor(runDirectory, false), taps = served || alone ? [] : foregroundTaps(runDirectory);
  if (taps.length > 0) {
    throw new EnforcerError("E_NO_AGENT", `no agent answers at ${path}: ${taps.slice(0, 3).join(", ")}${taps.length > 3 ? ", …" : ""} ${taps.length === 1 ? "is" : "are"} held by enforcer attach alone, which answers no questions`, {
      remedy: "what it denies stands in its lines and metrics; to ask, end it, start an agent (systemctl start enforcer-agent, or enforcer agent), and attach again",
    });
  }
  return new AgentClient(path);
}

/** Taps that an `enforcer attach` serves in the foreground. */
function foregroundTaps(runDirectory: string): string[] {
  return lockNames(runDirectory).filter((name) => lockHeld(runDirectory, name));
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

/** Whether an agent serves this host, or will in a moment: between two agents there is none. @throws EnforcerError E_NO_AGENT when one is there and does not answer. */
export function agentServes(runDirectory: string): Promise<boolean> { return waitFor(runDirectory, true); }

/** @param left whether sandboxes that a former agent left are a sign that there will be another. */
async function waitFor(runDirectory: string, left: boolean): Promise<boolean> {
  const begun = Date.now();
  let said = false, due: boolean | null = null, alone: number | null = null;
  for (;;) {
    if (await agentRuns(runDirectory)) return true;
    const held = lockHeld(agentDirectory(runDirectory), "agent");
    if (held) {
      // Whoever ends has a successor, as far as anybody can tell.
      due = true;
      alone = null;
      if (Date.now() - begun > START_WITHIN) {
        throw new EnforcerError("E_NO_AGENT", `an agent holds ${agentDirectory(runDirectory)} and has not answered within ${START_WITHIN / 1000} s`, { remedy: `look at what it says (journalctl -u enforcer-agent), or end it` });
      }
    } else {
      if (!(due ??= (left && stateNames(agentDirectory(runDirectory)).length > 0) || unitStarts(runDirectory))) return false;
      alone ??= Date.now();
      if (Date.now() - alone > SUCCESSOR_WITHIN) {
        process.stderr.write("enforcer: no agent has come\n");
        return false;
      }
    }
    if (!said) process.stderr.write(held ? "enforcer: an agent starts or ends: it is waited for\n" : "enforcer: an agent was here and may be back in a moment: it is waited for\n");
    said = true;
    await sleep(POLL);
  }
}

/** Whether the service manager is about to start one. */
function unitStarts(runDirectory: string): boolean {
  if (runDirectory !== DEFAULT_RUN_DIRECTORY || !existsSync("/run/systemd/system")) return false;
  const { status, stdout } = spawnSync("systemctl", ["show", "--property=ActiveState,Job", UNIT], { encoding: "utf8", timeout: 2000 });
  return status === 0 && /^(ActiveState=(activating|deactivating|reloading)|Job=[1-9]\d*)$/m.test(stdout);
}
