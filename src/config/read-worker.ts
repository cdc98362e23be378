/**
 * A thread that reads the agent's configuration, with the files that it names, and ends.
 *
 * Holds always: what it sends is what readAgentConfig gives or throws, as plain data. Changes nothing.
 */
import { workerData } from "node:worker_threads";
import { answer } from "../policy/read-apart.js";
import { readAgentConfig } from "./agent-config.js";

answer(() => readAgentConfig(workerData as string | null));
