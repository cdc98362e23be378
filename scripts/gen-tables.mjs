/**
 * Turns the address tables of data/ into src/addresses/tables.gen.ts.
 *
 * Holds always: every row is understood or the build fails. Cells that are prose stand in an explicit list below with what
 * they mean, so that a row added to a table tomorrow is never left out in silence.
 * Usage: node scripts/gen-tables.mjs [OUTPUT]
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { isIPv4, isIPv6 } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const output = process.argv[2] ?? join(root, "src/addresses/tables.gen.ts");

/** Group of each special prefix that is not simply `reserved`. AS112 sinks ("either" in the table) are reserved as well. */
const groupOfSpecial = new Map(Object.entries({
  "127.0.0.0/8": "loopback", "::1/128": "loopback",
  "10.0.0.0/8": "private", "172.16.0.0/12": "private", "192.168.0.0/16": "private", "100.64.0.0/10": "private", "fc00::/7": "private",
  "169.254.0.0/16": "link-local", "fe80::/10": "link-local",
  "224.0.0.0/4": "multicast", "ff00::/8": "multicast", "255.255.255.255/32": "multicast",
}));

/** Address cells that are prose, and the prefixes they hold. Loopback endpoints stay in the group `loopback`. */
const proseAddresses = new Map(Object.entries({
  "169.254.129.0/24 and 127.0.0.1:41xxx": ["169.254.129.0/24"],
  "<DHCP server / default gateway>": [], // the host itself, or a private address
  "unix socket": [],
  "<first service CIDR address, often 10.96.0.1>": [], // private
  "127.0.0.1 / gateway": [], // loopback, host
}));

/** Name cells that are not simply names, and the names they hold. */
const proseNames = new Map(Object.entries({
  "metadata.google.internal (AAAA)": ["metadata.google.internal"],
  "IDENTITY_ENDPOINT": [], // an environment variable
}));

/** What the verdict column of the special-purpose table may say; each means "not public". */
const verdicts = [
  /^deny(: .+| \(embeds an IPv4 address or is deprecated\))?$/,
  /^either: AS112 sink$/,
  /^decode the low 32 bits and apply the IPv4 verdict, or deny all$/,
];

const problems = [];

function table(name, columns) {
  const lines = readFileSync(join(root, "data", name), "utf8").split("\n");
  const source = lines[0].startsWith("# source: ") ? lines[0].slice(2) : fail(name, 1, "the first line must be `# source: …`");
  if (lines[1] !== columns.join("\t")) fail(name, 2, `columns must be: ${columns.join(", ")}`);
  const rows = [];
  lines.forEach((text, i) => {
    if (i < 2 || text === "") return;
    const cells = text.split("\t");
    // Trailing empty cells may be left out; more cells than columns may not be.
    if (cells.length > columns.length) return void fail(name, i + 1, `${cells.length} cells, but ${columns.length} columns`);
    rows.push({ line: i + 1, file: name, ...Object.fromEntries(columns.map((column, j) => [column, cells[j]?.trim() ?? ""])) });
  });
  return { name, source, rows };
}

function fail(name, line, message) {
  problems.push(`data/${name}:${line}: ${message}`);
  return "";
}

function isPrefix(text) {
  const [address, length, ...rest] = text.split("/");
  const width = isIPv4(address) ? 32 : isIPv6(address) && !address.includes("%") ? 128 : -1;
  return width > 0 && rest.length === 0 && (length === undefined || (/^\d{1,3}$/.test(length) && Number(length) <= width));
}

function isName(text) {
  return text.length <= 253 && text.split(".").every((label, i) => label === "*" || (i >= 0 && /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(label))) && !text.endsWith("*");
}

const list = (cell) => cell.split(";").map((part) => part.trim()).filter((part) => part !== "");

const special = table("special_purpose.tsv", ["cidr", "name", "rfc", "globally_reachable", "source", "destination", "forwardable", "reserved_by_protocol", "termination", "family", "registry", "suggested_verdict"]);
const metadata = table("metadata_endpoints.tsv", ["provider", "address", "port", "names", "covered_by", "source"]);
const doh = table("doh.tsv", ["operator", "names", "addresses"]);

const specialPurpose = special.rows.map((row) => {
  if (!row.cidr.includes("/") || !isPrefix(row.cidr)) fail(row.file, row.line, `not a prefix: ${row.cidr}`);
  if (row.family !== (row.cidr.includes(":") ? "6" : "4")) fail(row.file, row.line, `family ${row.family} is not that of ${row.cidr}`);
  if (!verdicts.some((verdict) => verdict.test(row.suggested_verdict))) fail(row.file, row.line, `unknown verdict: ${row.suggested_verdict}`);
  return { prefix: row.cidr, group: groupOfSpecial.get(row.cidr) ?? "reserved", name: row.name };
});
for (const cidr of groupOfSpecial.keys()) {
  if (!specialPurpose.some((row) => row.prefix === cidr)) fail(special.name, 0, `no row for ${cidr}, which the address groups need`);
}

const metadataPrefixes = [];
const metadataNames = new Set();
for (const row of metadata.rows) {
  for (const address of proseAddresses.get(row.address) ?? list(row.address)) {
    if (!isPrefix(address)) fail(row.file, row.line, `neither an address nor a known exception: ${address}`);
    else if (!/^127\./.test(address)) metadataPrefixes.push({ prefix: address, name: row.provider });
  }
  for (const cell of list(row.names)) {
    for (const name of proseNames.get(cell) ?? [cell]) {
      if (isName(name)) metadataNames.add(name);
      else fail(row.file, row.line, `neither a name nor a known exception: ${name}`);
    }
  }
}

const dohPrefixes = new Set();
const dohNames = new Set();
for (const row of doh.rows) {
  for (const address of list(row.addresses)) {
    if (isPrefix(address)) dohPrefixes.add(address);
    else fail(row.file, row.line, `not an address: ${address}`);
  }
  for (const name of list(row.names)) {
    if (isName(name) && name.lastIndexOf("*") <= 0 && name.includes(".")) dohNames.add(name);
    else fail(row.file, row.line, `not a name: ${name}`);
  }
}

if (problems.length > 0) {
  process.stderr.write(`gen-tables: ${problems.length} problem(s); mend the row, or say in scripts/gen-tables.mjs what it means\n${problems.map((p) => `  ${p}\n`).join("")}`);
  process.exit(1);
}

const rows = (values) => values.map((value) => `  ${JSON.stringify(value)},\n`).join("");
mkdirSync(dirname(output), { recursive: true });
writeFileSync(output, `/**
 * Address tables. Generated by scripts/gen-tables.mjs; do not edit, edit data/*.tsv.
 *
${[special, metadata, doh].map((t) => ` * data/${t.name}: ${t.source.replaceAll("*/", "* /")}\n`).join("")} */

/** Prefixes that no public host can own, with their group. */
export const specialPurpose: readonly { readonly prefix: string; readonly group: "loopback" | "private" | "link-local" | "multicast" | "reserved"; readonly name: string }[] = [
${rows(specialPurpose)}];

/** Cloud metadata and credential endpoints. */
export const metadataPrefixes: readonly { readonly prefix: string; readonly name: string }[] = [
${rows(metadataPrefixes)}];

/** Their names. A leading \`*\` stands for one or more labels, a later one for exactly one. */
export const metadataNames: readonly string[] = [
${rows([...metadataNames])}];

/** Resolvers that speak DNS over HTTPS. */
export const dohPrefixes: readonly string[] = [
${rows([...dohPrefixes])}];

/** Their names; \`*.\` in front stands for one or more labels. */
export const dohNames: readonly string[] = [
${rows([...dohNames])}];
`);
