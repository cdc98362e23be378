/**
 * Rebind protection: an answer may lead a guest to public addresses only, save where the policy names the exception.
 *
 * Holds always: every address of every section and every hint is judged, those that will not be told too; one that may not
 * be had refuses the whole answer. Embedded forms are judged by the classification. Pure.
 * Does not: stop packets; the kernel judges every packet by its address whatever was answered.
 */
import type { Resolved } from "./chain.js";
import type { Classify, SandboxPolicy } from "./judge.js";

/** The first address that the sandbox may not have from an answer to this name, or null. */
export function refusedAddress(policy: SandboxPolicy, labels: readonly string[], resolved: Resolved, classify: Classify): Uint8Array | null {
  if (resolved.mapped !== null) return resolved.mapped;
  if (!policy.rebindProtection) return null;
  for (const list of [resolved.addresses, resolved.others]) {
    for (const address of list) {
      if (classify(address) !== "public" && !policy.privateAllowed(labels, address)) return address;
    }
  }
  return null;
}
