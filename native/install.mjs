/**
 * Run by npm when the package is installed: the addon that came with it is tried, and built here where it does not load
 * (another libc, another processor). In a checkout it does nothing: make builds there.
 *
 * Holds always: it ends with 0 only when the addon loads, and says what is missing otherwise.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));

/** In a process of its own: a library that is found only after the build is not looked for twice in one. */
function fault() {
  const { status, stderr } = spawnSync(process.execPath, ["-e", `require(${JSON.stringify(`${here}build/Release/enforcer_native.node`)})`], { encoding: "utf8" });
  return status === 0 ? null : (/^Error: (.*)$/m.exec(stderr)?.[1] ?? stderr.trim());
}

if (!existsSync(new URL("../Makefile", import.meta.url))) {
  const before = fault();
  if (before !== null) {
    console.error(`enforcer: the addon that came with the package does not load here (${before}); building it`);
    // Headers that lie beside this node need not be fetched.
    const home = join(dirname(process.execPath), "..");
    const headers = existsSync(join(home, "include/node/node_api.h")) ? ["--nodedir", home] : [];
    const { error, status } = spawnSync("node-gyp", ["rebuild", "-C", here, ...headers], { stdio: "inherit" });
    const after = error === undefined && status === 0 ? fault() : error?.message ?? before;
    if (after !== null) {
      console.error(`enforcer: the addon does not load: ${after}`);
      console.error("  remedy: apt-get install libbpf1, and where that is not enough g++ make python3 pkg-config libbpf-dev, then npm install again");
      process.exitCode = 1;
    }
  }
}
