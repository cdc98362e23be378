/** How tests run: in processes of their own (the addon changes namespaces of threads), a file at a time per worker. */
import { defineConfig } from "vitest/config";

/** As in test/lib/processes.mjs. */
const patience = Number(process.env.ENFORCER_TEST_PATIENCE ?? "1");

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 240_000 * patience,
    hookTimeout: 240_000 * patience,
    allowOnly: false,
    passWithNoTests: false,
    // A failure is told whole: who reads it may have nothing but the last lines of a run on another machine.
    chaiConfig: { truncateThreshold: 2000 },
  },
});
