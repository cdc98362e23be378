/**
 * What the agent may do to the machine: six capabilities and no more, from its first moment on.
 *
 * Holds always: the process that goes on has no capability outside `needed`, on any thread, and can gain none by executing
 * something. Under the systemd unit that is so already and nothing happens here.
 * Does not: give any capability; whoever lacks one that is needed hears of it where it is used.
 */
import { effectiveCapabilities, execConfined } from "../../native/index.js";

/**
 * BPF and PERFMON: programs and maps. SYS_ADMIN: namespaces; maps and programs by their ids. NET_ADMIN: devices and hooks.
 * NET_BIND_SERVICE: port 53 in its own namespace. SYS_PTRACE: namespaces named by /proc/PID/ns/net. Each is needed whenever a
 * sandbox comes, so none can be dropped after the start. The unit in packaging/ has the same.
 */
const capabilities = { CAP_NET_BIND_SERVICE: 10n, CAP_NET_ADMIN: 12n, CAP_SYS_PTRACE: 19n, CAP_SYS_ADMIN: 21n, CAP_PERFMON: 38n, CAP_BPF: 39n } as const;

export const needed: bigint = Object.values(capabilities).reduce((mask, bit) => mask | (1n << bit), 0n);

/** Executes this very command anew with what is needed, once; returns when there is nothing to give up. */
export function giveUpCapabilities(): void {
  const held = effectiveCapabilities();
  if ((held & ~needed) === 0n || process.geteuid?.() !== 0) return;
  execConfined(process.execPath, [process.execPath, ...process.execArgv, ...process.argv.slice(1)], held & needed);
}
