// @ts-check
/**
 * The npm package in an empty folder: packed, installed from its file, run, and imported. Part of make test-packages; takes the
 * packages that it depends on from the registry.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const folder = mkdtempSync(path.join(os.tmpdir(), "enforcer-npm-"));
const run = (/** @type {string} */ cwd, /** @type {string} */ file, /** @type {string[]} */ ...args) => execFileSync(file, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

/** @param {boolean} good @param {string} what */
function say(good, what) {
  console.log(`${good ? "ok" : "not ok"} ${what}`);
  if (!good) process.exitCode = 1;
}

try {
  const file = path.join(folder, run(ROOT, "npm", "pack", "--silent", "--pack-destination", folder).trim().split("\n").at(-1) ?? "");
  const place = path.join(folder, "place");
  mkdirSync(place);
  run(place, "npm", "init", "--yes");
  run(place, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error", file);
  say(/^enforcer +\d/.test(run(place, "npx", "enforcer", "version")), "npm install of the packed file, and enforcer version");
  say(run(place, process.execPath, "--input-type=module", "-e", 'console.log(typeof (await import("enforcer")).AgentClient)').trim() === "function", "the client is exported");
} finally {
  rmSync(folder, { recursive: true, force: true });
}
