/**
 * A thread that reads one policy's text and ends: reading takes seconds where the text is long, whether it is a policy or not.
 *
 * Holds always: what it sends is what parsePolicyText gives or throws, as plain data. Changes nothing.
 */
import { parentPort, workerData } from "node:worker_threads";
import { EnforcerError, type ErrorCode } from "../errors.js";
import { type Diagnostic, PolicyError } from "./diagnostics.js";
import { parsePolicyText, type PolicySource } from "./parse.js";

export interface ToRead { readonly path: string; readonly text: string }
export type ReadPolicy =
  | { readonly kind: "source"; readonly source: PolicySource }
  | { readonly kind: "refused"; readonly diagnostics: readonly Diagnostic[] }
  | { readonly kind: "error"; readonly code: ErrorCode; readonly message: string; readonly remedy: string };

function read({ path, text }: ToRead): ReadPolicy {
  try {
    return { kind: "source", source: parsePolicyText(text, path) };
  } catch (error) {
    if (error instanceof PolicyError) return { kind: "refused", diagnostics: error.diagnostics };
    if (error instanceof EnforcerError) return { kind: "error", code: error.code, message: error.message, remedy: error.remedy };
    throw error;
  }
}

parentPort?.postMessage(read(workerData as ToRead));
