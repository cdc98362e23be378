// @ts-check
/**
 * bundle.mjs TREE: makes one file of each dependency that comes in dozens, in the guest's copy of the tree.
 * Without KVM, opening and compiling zod's hundred files, yaml's seventy and prom-client's ninety takes a guest ten seconds
 * at every start of the enforcer, and a file of tests starts it many times.
 *
 * Holds always: what a dependency exports stays the same, by name, or this fails. The tree's own code is left as it is.
 */
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { rolldown } from "rolldown";

const tree = /** @type {string} */ (process.argv[2]);

for (const name of ["zod", "yaml", "commander", "prom-client", "tldts"]) {
  const folder = path.join(tree, "node_modules", name);
  const names = Object.keys(await import(name)).filter((one) => /^[A-Za-z_$][\w$]*$/.test(one) && one !== "default");
  // Names that are also words of the language (enum, null) can be exported, but not declared.
  const entry = [`import * as all from ${JSON.stringify(name)};`, `const { ${names.map((one, index) => `${one}: v${index}`).join(", ")} } = all;`, `export { ${names.map((one, index) => `v${index} as ${one}`).join(", ")} };`].join("\n");
  const build = await rolldown({
    input: "entry", platform: "node", cwd: tree, logLevel: "silent",
    plugins: [{ name: "entry", resolveId: (id) => (id === "entry" ? path.join(tree, "entry.mjs") : null), load: (id) => (id === path.join(tree, "entry.mjs") ? entry : null) }],
  });
  await build.write({ file: path.join(folder, "bundle.mjs"), format: "esm" });
  await build.close();
  const manifest = JSON.parse(readFileSync(path.join(folder, "package.json"), "utf8"));
  writeFileSync(path.join(folder, "package.json"), JSON.stringify({ name, version: manifest.version, type: "module", exports: "./bundle.mjs" }));
  const made = Object.keys(await import(pathToFileURL(path.join(folder, "bundle.mjs")).href));
  const missing = names.filter((one) => !made.includes(one));
  if (missing.length > 0) throw new Error(`${name}: the bundle lacks ${missing.join(", ")}`);
}
