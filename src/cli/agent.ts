/**
 * `enforcer agent`: the host's one agent, until SIGTERM or SIGINT.
 *
 * Holds always: it is ready (systemd's READY=1, the line on standard output, the socket) only after everything that it takes over or
 * attaches by itself is in force; its end leaves the kernel enforcing, so that a restart is an upgrade; SIGHUP reads the
 * configuration again, and a bad one changes nothing.
 */
import { join } from "node:path";
import { forbidCore } from "../../native/index.js";
import { Agent } from "../agent/daemon.js";
import { notifyReady, notifyReloading, notifyStatus, notifyStopping } from "../agent/notify.js";
import { serveApi, type ApiServer } from "../api/server.js";
import { EnforcerError } from "../errors.js";
import { SOCKET_NAME } from "./connection.js";

export interface AgentArguments { readonly config: string | null; readonly runDirectory: string | null; readonly bpffs: string | null; readonly json: boolean }

/** Resolves when a signal ended it. @throws EnforcerError. */
export async function runAgent({ config, runDirectory, bpffs, json }: AgentArguments): Promise<void> {
  forbidCore();
  const say = (event: string, text: string, more: object = {}): void => {
    if (json) process.stdout.write(`${JSON.stringify({ event, time: new Date().toISOString(), text, ...more })}\n`);
    else process.stderr.write(`enforcer: ${text}\n`);
  };
  let stop!: () => void, fail!: (error: Error) => void;
  const ended = new Promise<void>((resolve, reject) => { stop = resolve; fail = reject; });
  ended.catch(() => undefined);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stop());
  // Before it is ready a reload would be lost, and by default it would end the process.
  let reload = (): void => undefined;
  process.on("SIGHUP", () => reload());

  const agent = await Agent.start({
    configFile: config, runDirectory, bpffs, onNotice: (text) => say("notice", text),
    onFailure: (error) => fail(new EnforcerError("E_RESOLVER", `the agent cannot go on: ${error.message}`, { cause: error, remedy: "the kernel goes on enforcing, and no name is resolved: start it again, and report this" })),
  });
  let api: ApiServer | null = null;
  try {
    api = await serveApi(agent, join(agent.config.runDirectory, SOCKET_NAME));
    const status = (): string => {
      const known = agent.known();
      const count = (state: string): number => known.filter((one) => one.state === state).length;
      return `${count("enforced")} enforced${count("kept") > 0 ? `, ${count("kept")} kept` : ""}${count("waiting") > 0 ? `, ${count("waiting")} waiting` : ""}`;
    };
    reload = () => {
      notifyReloading();
      agent.reload().then(({ changed, restart, failed }) => {
        say("reloaded", `configuration read again: ${changed.length === 0 ? "nothing changed" : `${changed.join(", ")} changed`}${restart.length > 0 ? `; ${restart.join(", ")} at the next start` : ""}`, { changed, restart });
        for (const { sandbox, message } of failed) say("notice", `${sandbox} keeps its former policy: ${message}`);
      }, (error: unknown) => say("error", `the configuration was not taken, nothing has changed: ${error instanceof Error ? error.message : String(error)}`, { code: error instanceof EnforcerError ? error.code : "E_FAULT" }))
        .finally(() => notifyReady(status()));
    };
    say("ready", `agent is ready: ${status()}; ${api.path}`, { socket: api.path, pid: process.pid });
    notifyReady(status());
    const timer = setInterval(() => notifyStatus(status()), 10_000);
    timer.unref();
    await ended;
    clearInterval(timer);
  } finally {
    notifyStopping();
    await api?.close();
    await agent.release();
  }
  say("ended", "agent ended; the kernel goes on enforcing");
}
