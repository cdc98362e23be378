/** `enforcer watch [name]`: live verdicts and changes until SIGINT or SIGTERM (exit status 0), or until the agent ends (69). */
import type { WatchQuery } from "../api/schema.js";
import { allowedLine, clock, connectionLine, packetLine, queryLine, type Allowed, type Denial, type RefusedConnection, type RefusedQuery } from "../agent/verdicts.js";
import type { WatchEvent } from "../agent/watch.js";
import { EnforcerError, visibleLine } from "../errors.js";
import { agentAt } from "./connection.js";

export async function watch(query: WatchQuery, { json, runDir }: { json: boolean; runDir: string }): Promise<void> {
  const ending = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => ending.abort());
  // Whoever reads may end first, as head does.
  process.stdout.on("error", () => ending.abort());
  for await (const event of (await agentAt(runDir)).watch(query, ending.signal)) {
    if (json) process.stdout.write(`${JSON.stringify(event)}\n`);
    else if (event.event !== "watching") process.stdout.write(`${visibleLine(line(event))}\n`);
  }
  if (!ending.signal.aborted) throw new EnforcerError("E_NO_AGENT", "the agent has ended; the kernel goes on enforcing");
}

function line(event: WatchEvent): string {
  switch (event.event) {
    case "denied": return packetLine(event as unknown as Denial);
    case "tls-denied": return connectionLine(event as unknown as RefusedConnection);
    case "dns-denied": return queryLine(event as unknown as RefusedQuery);
    case "allowed": return allowedLine(event as unknown as Allowed);
    case "unseen": return `${clock(event.time)} ${String(event.sandbox)} ${String(event.count)} more flow${event.count === 1 ? " was" : "s were"} let through, and over before the next look`;
    case "lost": return `${clock(event.time)} ${String(event.count)} events were not told: this end reads too slowly, or there are too many`;
    case "notice": return `${clock(event.time)} ${String(event.text)}`;
    default: return `${clock(event.time)}${event.sandbox === undefined ? "" : ` ${event.sandbox}`} ${event.event}${event.why === undefined ? "" : ` (${String(event.why)})`}`;
  }
}
