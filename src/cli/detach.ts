/**
 * `enforcer detach <name>`: the guest is free from then on. Asks the agent; what an `enforcer attach` in the foreground left when it
 * was killed is nobody's, and is taken away here.
 */
import { existsSync } from "node:fs";
import { Enforcer } from "../agent/enforcer.js";
import { RunDirectory } from "../agent/run-directory.js";
import { EnforcerError } from "../errors.js";
import { instanceDirectory } from "../kernel/instance.js";
import { agentAt, agentRuns } from "./connection.js";
import { printJson } from "./table.js";

/** Octets of a device's name, without the final NUL (IFNAMSIZ). */
const TAP_NAME = 15;

export async function detach(name: string, { json, runDir, bpffs }: { json: boolean; runDir: string; bpffs: string }): Promise<void> {
  const agent = await agentAt(runDir, true);
  // Only a tap's name can be a foreground's; the agent's own instances have longer ones.
  const left = Buffer.byteLength(name) <= TAP_NAME && existsSync(instanceDirectory(bpffs, name));
  if (!left || ((await agentRuns(runDir)) && (await agent.list()).some((one) => one.name === name))) await agent.detach(name);
  else await detachLeft(name, runDir, bpffs);
  if (json) return printJson({ event: "detached", sandbox: name });
  process.stdout.write(`detached ${name}\n`);
}

/** @throws EnforcerError E_TAP_TAKEN when an enforcer serves it in the foreground. */
async function detachLeft(name: string, runDir: string, bpffs: string): Promise<void> {
  const run = new RunDirectory(runDir);
  const unlock = run.lock(name, `${name}: an enforcer serves it in the foreground; end that one`);
  try {
    const enforcer = await Enforcer.start({
      run, bpffs, instance: name, sandboxes: 1, tlsThreads: 1, resolverDevice: `enfd${process.pid}`, resolvConf: null, netnsFd: null, beside: null, extraGroups: {}, nat64Prefixes: [], heldPatterns: [], adoptable: () => [],
      onPackets: () => undefined, onQueries: () => undefined, onDenials: () => undefined, onTerminate: () => undefined, onLink: () => undefined, onView: () => undefined, onNotice: () => undefined,
      onFailure: (error) => { throw new EnforcerError("E_RESOLVER", error.message, { cause: error }); },
    });
    await enforcer.settle(() => name);
    await enforcer.stop();
  } finally {
    unlock();
    run.removeIfEmpty();
  }
}
