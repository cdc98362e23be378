// @ts-check
/**
 * make deb: Debian packages of the built tree, in packaging/build.
 *   enforcer_VERSION_ARCH.deb        agent, command line, addon, kernel programs, unit, man page, completion, documents
 *   enforcer-node_VERSION_ARCH.deb   the Node.js that this machine runs, for systems whose own is older than 20 (Debian 12)
 *
 * Holds always: nothing is fetched and nothing outside packaging/build is changed; files belong to root; times are those of
 * the last commit, so that the same tree gives the same package; every library that the addon is linked to is one that the
 * package depends on, or the run ends.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { manualPage, offeredVerbs } from "./pages.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.resolve(HERE, "..");
const BUILD = path.join(HERE, "build");
const { version, description } = JSON.parse(readFileSync(path.join(ROOT, "package.json"), "utf8"));
const run = (/** @type {string} */ file, /** @type {string[]} */ ...args) => execFileSync(file, args, { encoding: "utf8", cwd: ROOT }).trim();
const architecture = run("dpkg", "--print-architecture");
const maintainer = "The enforcer authors <enforcer@localhost>";
/** Without a repository (a source archive) the changelog's own time has to do. */
const seconds = (() => {
  try {
    return run("git", "log", "-1", "--format=%ct");
  } catch {
    return String(Math.floor(lstatSync(path.join(ROOT, "CHANGELOG.md")).mtimeMs / 1000));
  }
})();

/** Libraries of the addon by the packages that hold them; dlopen'd ones are none. */
const libraries = new Map([
  ["libbpf.so.1", "libbpf1 (>= 1:1.1)"], ["libelf.so.1", "libelf1 (>= 0.188)"], ["libz.so.1", "zlib1g"], ["libstdc++.so.6", "libstdc++6 (>= 12)"],
  ["libc.so.6", "libc6 (>= 2.36)"], ["libm.so.6", "libc6 (>= 2.36)"], ["libgcc_s.so.1", "libgcc-s1"], ["libdl.so.2", "libc6 (>= 2.36)"], ["libpthread.so.0", "libc6 (>= 2.36)"],
]);

/** What a file is linked to, as packages. @param {string} file */
function dependencies(file) {
  const names = run("ldd", file).split("\n").map((line) => /^\s*(lib\S+) => /.exec(line)?.[1]).filter((name) => name !== undefined);
  const unknown = names.filter((name) => !libraries.has(name));
  if (unknown.length > 0) throw new Error(`${file} is linked to ${unknown.join(", ")}: say in packaging/deb.mjs which package holds it`);
  return [...new Set(names.map((name) => libraries.get(name)))].sort();
}

/** @param {string} root @param {string} to @param {string | Buffer} text @param {number} [mode] */
function put(root, to, text, mode = 0o644) {
  const file = path.join(root, to);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
  chmodSync(file, mode);
}

/** @param {string} root @param {string} from in the tree @param {string} to @param {(file: string) => boolean} [filter] */
function copy(root, from, to, filter = () => true) {
  cpSync(path.resolve(ROOT, from), path.join(root, to), { recursive: true, dereference: true, filter });
}

/** Octets below a folder; every folder and file gets its plain mode. @param {string} folder @returns {number} */
function settle(folder) {
  let octets = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name);
    if (entry.isDirectory()) {
      chmodSync(file, 0o755);
      octets += settle(file);
    } else if (entry.isFile()) {
      const { mode, size } = lstatSync(file);
      chmodSync(file, mode & 0o100 ? 0o755 : 0o644);
      octets += size;
    }
  }
  return octets;
}

/**
 * @param {string} name @param {string} release @param {(root: string) => {depends: readonly (string | undefined)[], summary: string, text: string, scripts?: Record<string, string>, conffiles?: readonly string[], more?: string}} fill
 */
function build(name, release, fill) {
  const root = path.join(BUILD, name);
  rmSync(root, { recursive: true, force: true });
  mkdirSync(root, { recursive: true });
  const { depends, summary, text, scripts = {}, conffiles = [], more = "" } = fill(root);
  chmodSync(root, 0o755);
  const size = Math.ceil(settle(root) / 1024);
  put(root, "DEBIAN/control", [
    `Package: ${name}`, `Version: ${release}`, `Architecture: ${architecture}`, `Maintainer: ${maintainer}`, `Installed-Size: ${size}`,
    `Depends: ${depends.join(", ")}`, ...(more === "" ? [] : [more]), "Section: net", "Priority: optional", `Description: ${summary}`,
    ...text.trim().split("\n").map((line) => (line === "" ? " ." : ` ${line}`)), "",
  ].join("\n"));
  if (conffiles.length > 0) put(root, "DEBIAN/conffiles", `${conffiles.join("\n")}\n`);
  for (const [script, body] of Object.entries(scripts)) put(root, `DEBIAN/${script}`, body, 0o755);
  const file = path.join(BUILD, `${name}_${release}_${architecture}.deb`);
  execFileSync("find", [root, "-exec", "touch", "-h", "-d", `@${seconds}`, "{}", "+"]);
  execFileSync("dpkg-deb", ["--root-owner-group", "-Zxz", "--build", root, file], { stdio: ["ignore", "ignore", "inherit"], env: { ...process.env, SOURCE_DATE_EPOCH: seconds } });
  rmSync(root, { recursive: true, force: true });
  console.log(`${path.relative(ROOT, file)}: ${(lstatSync(file).size / 1048576).toFixed(1)} MiB, ${(size / 1024).toFixed(0)} MiB installed`);
}

/** Packages that run with it, by npm's own account; the one that only the addon's build needs stays out. */
function modules() {
  const listed = run("npm", "ls", "--omit=dev", "--all", "--parseable").split("\n").slice(1);
  return listed.map((folder) => path.relative(ROOT, folder)).filter((folder) => folder !== "node_modules/node-addon-api");
}

const documents = (/** @type {string} */ name) => [
  ...readdirSync(path.join(ROOT, "docs")).map((file) => [`docs/${file}`, `usr/share/doc/${name}/${file}`]),
  ...["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "NOTICE"].map((file) => [file, `usr/share/doc/${name}/${file}`]),
];

for (const needed of ["dist/cli/main.js", "bpf/build/enforcer.bpf.o", "native/build/Release/enforcer_native.node"]) {
  if (!existsSync(path.join(ROOT, needed))) throw new Error(`${needed} is missing: make build`);
}
mkdirSync(BUILD, { recursive: true });

const home = "usr/lib/enforcer";
const verbs = await offeredVerbs();
build("enforcer", version, (root) => {
  for (const part of ["dist", "data", "package.json", "native/index.js", "native/package.json", "bpf/build/enforcer.bpf.o", "native/build/Release/enforcer_native.node"]) {
    if (existsSync(path.join(ROOT, part))) copy(root, part, `${home}/${part}`, (file) => !/\.(d\.ts|map|tsbuildinfo)$/.test(file));
  }
  run("strip", "--strip-unneeded", path.join(root, home, "native/build/Release/enforcer_native.node"));
  copy(root, "scripts/enforcer.in", `${home}/bin/enforcer`);
  for (const folder of modules()) copy(root, folder, `${home}/${folder}`, (file) => !/\.(d\.ts|d\.mts|d\.cts|map|md|markdown)$/i.test(file) && !/\/(test|tests|\.github)(\/|$)/.test(file.slice(file.indexOf(folder))));
  put(root, "usr/bin/enforcer", readFileSync(path.join(HERE, "debian/enforcer")), 0o755);
  put(root, "usr/lib/systemd/system/enforcer-agent.service", readFileSync(path.join(HERE, "enforcer-agent.service")));
  put(root, "etc/enforcer/agent.yaml", readFileSync(path.join(HERE, "agent.yaml")));
  copy(root, "packaging/examples", "usr/share/doc/enforcer/examples");
  for (const [from, to] of documents("enforcer")) copy(root, /** @type {string} */ (from), /** @type {string} */ (to));
  put(root, "usr/share/doc/enforcer/changelog.gz", gzipSync(readFileSync(path.join(ROOT, "CHANGELOG.md")), { level: 9 }));
  put(root, "usr/share/doc/enforcer/copyright", `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: The enforcer authors\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0; notices are in NOTICE beside this file.\n\nFiles: usr/lib/enforcer/bpf/*\nCopyright: The enforcer authors\nLicense: Apache-2.0 or GPL-2.0-only\n The texts are in /usr/share/common-licenses/Apache-2.0 and /usr/share/common-licenses/GPL-2.\n\nFiles: usr/lib/enforcer/node_modules/*\nCopyright: see LICENSE and package.json in each folder\nLicense: see LICENSE in each folder\n`);
  put(root, "usr/share/man/man8/enforcer.8.gz", gzipSync(manualPage(verbs, { version, seconds: Number(seconds) }), { level: 9 }));
  put(root, "usr/share/bash-completion/completions/enforcer", run("bin/enforcer", "completion", "bash") + "\n");
  return {
    depends: ["nodejs (>= 20) | enforcer-node", ...dependencies(path.join(ROOT, "native/build/Release/enforcer_native.node"))],
    summary: description,
    text: readFileSync(path.join(HERE, "debian/description"), "utf8"),
    conffiles: ["/etc/enforcer/agent.yaml"],
    scripts: Object.fromEntries(["postinst", "prerm", "postrm"].map((name) => [name, readFileSync(path.join(HERE, "debian", name), "utf8")])),
  };
});

build("enforcer-node", process.versions.node, (root) => {
  copy(root, process.execPath, "usr/lib/enforcer-node/bin/node");
  run("strip", "--strip-unneeded", path.join(root, "usr/lib/enforcer-node/bin/node"));
  const licence = ["/usr/share/doc/nodejs/LICENSE", path.join(path.dirname(process.execPath), "../LICENSE")].find((file) => existsSync(file));
  if (licence === undefined) throw new Error("the licence of Node.js is not on this machine, so it cannot be passed on");
  copy(root, licence, "usr/share/doc/enforcer-node/copyright");
  return {
    depends: dependencies(process.execPath),
    summary: "Node.js for the enforcer, where the system has none of version 20 or later",
    text: "The enforcer's command runs on this one when it is installed, and on the system's nodejs when it is not. Nothing else uses it:\nit is not on the path.",
  };
});
