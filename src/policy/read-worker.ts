/**
 * A thread that reads one policy's text and ends: reading takes seconds where the text is long, whether it is a policy or not.
 *
 * Holds always: what it sends is what parsePolicyText gives or throws, as plain data. Changes nothing.
 */
import { workerData } from "node:worker_threads";
import { parsePolicyText } from "./parse.js";
import { answer } from "./read-apart.js";

export interface ToRead { readonly path: string; readonly text: string }

const { path, text } = workerData as ToRead;
answer(() => parsePolicyText(text, path));
