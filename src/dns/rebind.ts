/**
 * Rebind protection: an answer may lead a guest to public addresses only, save where the policy names the exception.
 *
 * Holds always: every address of every section and every hint is judged, those that will not be told too; one that may not
 * be had refuses the whole answer. Embedded forms are judged by the classification. Pure.
 * Does not: stop packets; the kernel judges every packet by its address whatever was answered.
 */
import type { Told } from "./chain.js";
import type { Classify, SandboxPolicy } from "./judge.js";

/** The first address that the sandbox may not have from an answer to this name, or null. */
export function refusedAddress(policy: SandboxPolicy, labels: readonly string[], told: Told, classify: Classify): Uint8Array | null {
  if (told.mapped !== null) return told.mapped;
  if (!policy.rebindProtection) return null;
  for (const list of [told.addresses, told.others]) {
    for (const address of list) {
      if (classify(address) !== "public" && !policy.privateAllowed(labels, address)) return address;
    }
  }
  return null;
}
