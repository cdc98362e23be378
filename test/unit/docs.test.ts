/**
 * The documents agree with the tree: see scripts/check-docs.mjs for what is checked. Here it is given the sources, so that
 * an old build cannot hide a difference.
 */
import { describe, expect, test } from "vitest";
import { checkDocs, documents } from "../../scripts/check-docs.mjs";
import * as metrics from "../../src/agent/metrics.js";
import { main } from "../../src/cli/main.js";
import * as config from "../../src/config/agent-config.js";
import * as errors from "../../src/errors.js";
import * as counters from "../../src/kernel/counters.js";
import { Reason } from "../../src/kernel/layout.gen.js";
import { limitKinds } from "../../src/policy/types.js";
import * as httpRefusal from "../../src/tls/http/refusal.js";
import * as tlsReasons from "../../src/tls/reasons.js";

describe("documents", () => {
  test("say what is so: generated pages, tests, targets, commands, options, policies, links, rows", async () => {
    expect(await checkDocs({ errors, counters, Reason, metrics, config, main, limitKinds, tlsReasons, httpRefusal })).toEqual([]);
  });

  test("all that should be there is", () => {
    expect(documents()).toEqual(expect.arrayContaining([
      "ARCHITECTURE.md", "CHANGELOG.md", "README.md", "SPECIFICATION.md", "docs/BENCHMARKS.md", "docs/DNS.md", "docs/ERRORS.md", "docs/METRICS.md", "docs/OPERATIONS.md",
      "docs/POLICY.md", "docs/REASONS.md", "docs/THREATS.md",
    ]));
  });
});
