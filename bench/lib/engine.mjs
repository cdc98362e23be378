/**
 * The agent's engine in this process, as the daemon starts it, on a run directory and a BPF file system of the benchmark's own.
 */
import { Enforcer } from "../../dist/agent/enforcer.js";
import { RunDirectory } from "../../dist/agent/run-directory.js";
import { bpffs, folder } from "./place.mjs";

/** @param {{sandboxes: number, say: (text: string) => void}} options */
export function startEngine({ sandboxes, say }) {
  return Enforcer.start({
    run: new RunDirectory(folder()), bpffs: bpffs(), instance: "bench", sandboxes, tlsThreads: 1, resolverDevice: "enf0", resolvConf: null, netnsFd: null, beside: null, extraGroups: {}, nat64Prefixes: [], heldPatterns: [], adoptable: () => [],
    onPackets: () => undefined, onQueries: () => undefined, onDenials: () => undefined, onLink: () => undefined, onView: () => undefined, onNotice: say, onTerminate: () => undefined, onFailure: (error) => { throw error; },
  });
}

/** Attaches a tap with nothing but a policy. @param {Enforcer} enforcer @param {string} tap @param {import("../../dist/policy/types.js").Policy} policy */
export function attachTap(enforcer, tap, policy) {
  return enforcer.attach({ name: tap, tap, policy, source: null, spec: null, incomplete: false, gateways: [], guest: [], mac: null, upstreams: [] });
}
