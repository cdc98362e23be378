/** `enforcer explain <name> <destination> [proto] [port]`: the verdict and the whole why. Exit status 0 when it is let through, 1 when not. */
import type { ExplainQuery } from "../api/schema.js";
import { visibleLine } from "../errors.js";
import { questionText, type Explanation } from "../explain/explain.js";
import { agentAt } from "./connection.js";
import { printJson } from "./table.js";

/** @returns whether it is let through. */
export async function explainCommand(name: string, query: ExplainQuery, { json, runDir }: { json: boolean; runDir: string }): Promise<boolean> {
  const explanation = await (await agentAt(runDir)).explain(name, query);
  if (json) printJson(explanation);
  else process.stdout.write(explanationText(explanation));
  return explanation.verdict !== "deny";
}

export function explanationText(explanation: Explanation): string {
  const words = { allow: "allowed", deny: "denied", redirect: "answered by the agent" } as const;
  return [
    `${explanation.sandbox} ${questionText(explanation)}: ${words[explanation.verdict]} (${explanation.reason})`, "",
    ...explanation.why.map((sentence) => `  ${sentence}`),
    ...(explanation.change.length === 0 ? [] : ["", "To change that:", ...explanation.change.map((sentence) => `  - ${sentence}`)]),
  ].map((line) => `${visibleLine(line)}\n`).join("");
}
