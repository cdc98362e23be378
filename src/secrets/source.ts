/**
 * Reading a secret's value: a variable of the agent's environment, a file, a systemd credential, or what a command prints.
 *
 * Holds always: a value is not empty, at most 8 KiB, without control octets (so that it can stand in a header and never be taken
 * for another one); one final line end is taken off. A file must belong to root or to the agent's user and be closed to everybody
 * else. A command has no shell, no search path, a bare environment, ten seconds and 8 KiB. No error says anything of a value.
 */
import { spawn } from "node:child_process";
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { EnforcerError } from "../errors.js";
import type { SecretSource } from "../policy/types.js";

export const VALUE_OCTETS = 8 * 1024;
const COMMAND_MS = 10_000;

export interface SourceOptions {
  /** Default: the process's. */
  readonly environment?: NodeJS.ProcessEnv;
  readonly commandMs?: number;
}

/** A value with what tells whether its source has changed; null: nothing does. */
export interface Read { readonly value: Buffer; readonly version: string | null }

/** @throws EnforcerError E_SECRET, with the secret's name. */
export async function readValue(name: string, source: SecretSource, options: SourceOptions = {}): Promise<Read> {
  const read = await readSource(name, source, options);
  const wrong = unusable(read.value);
  if (wrong !== null) {
    read.value.fill(0);
    throw fault(name, `${place(source)}: the value ${wrong}`);
  }
  return read;
}

/** What tells a changed file from the one that was read; null for other sources, or when it is gone. */
export async function versionOf(source: SecretSource, options: SourceOptions = {}): Promise<string | null> {
  const path = pathOf(source, options);
  if (path === null) return null;
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return version(await file.stat({ bigint: true }));
    } finally {
      await file.close();
    }
  } catch {
    return "gone";
  }
}

async function readSource(name: string, source: SecretSource, options: SourceOptions): Promise<Read> {
  switch (source.kind) {
    case "env": {
      const value = (options.environment ?? process.env)[source.variable];
      if (value === undefined) throw fault(name, `${place(source)} is not set`);
      return { value: Buffer.from(value, "utf8"), version: null };
    }
    case "file": case "credential": {
      const path = pathOf(source, options);
      if (path === null) throw fault(name, `${place(source)}: the agent has no CREDENTIALS_DIRECTORY`);
      return readFile(name, path);
    }
    case "command": return { value: await run(name, source.argv, options.commandMs ?? COMMAND_MS), version: null };
  }
}

function pathOf(source: SecretSource, options: SourceOptions): string | null {
  if (source.kind === "file") return source.path;
  if (source.kind !== "credential") return null;
  const directory = (options.environment ?? process.env)["CREDENTIALS_DIRECTORY"];
  return directory === undefined || directory === "" ? null : join(directory, source.name);
}

async function readFile(name: string, path: string): Promise<Read> {
  let file;
  try {
    // A pipe would make the open wait for a writer.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw fault(name, `file ${path} cannot be read (${codeOf(error)})`);
  }
  try {
    const facts = await file.stat({ bigint: true });
    if (!facts.isFile()) throw fault(name, `${path} is not a file`);
    if ((facts.mode & 0o077n) !== 0n) throw fault(name, `file ${path} is open to others (mode ${(facts.mode & 0o777n).toString(8)})`, `chmod 600 ${path}`);
    if (facts.uid !== 0n && facts.uid !== BigInt(process.geteuid?.() ?? 0)) throw fault(name, `file ${path} belongs to another user (uid ${facts.uid})`, `chown root ${path}`);
    if (facts.size > BigInt(VALUE_OCTETS + 2)) throw fault(name, `file ${path} is larger than ${VALUE_OCTETS / 1024} KiB`);
    const held = Buffer.alloc(VALUE_OCTETS + 3);
    let length = 0;
    while (length < held.length) {
      const { bytesRead } = await file.read(held, length, held.length - length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    return { value: trimmed(held, length), version: version(facts) };
  } finally {
    await file.close();
  }
}

/** Standard error is not read: some commands print there what they should not. */
function run(name: string, argv: readonly string[], limitMs: number): Promise<Buffer> {
  const [command, ...rest] = argv as [string, ...string[]];
  return new Promise((resolve, reject) => {
    const child = spawn(command, rest, { shell: false, stdio: ["ignore", "pipe", "ignore"], env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", LANG: "C.UTF-8" }, detached: true });
    const held = Buffer.alloc(VALUE_OCTETS + 3);
    let length = 0, why: string | null = null;
    const stop = (reason: string): void => {
      why ??= reason;
      // The whole group: what the command itself started as well.
      try { if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL"); } catch { /* it has gone */ }
    };
    const timer = setTimeout(() => stop(`did not end within ${limitMs / 1000} s`), limitMs);
    child.stdout.on("data", (chunk: Buffer) => {
      length += chunk.copy(held, Math.min(length, held.length));
      chunk.fill(0);
      if (length >= held.length) stop(`printed more than ${VALUE_OCTETS / 1024} KiB`);
    });
    child.once("error", (error) => {
      clearTimeout(timer);
      held.fill(0);
      reject(fault(name, `command ${command} cannot be run (${codeOf(error)})`));
    });
    child.once("close", (code, signal) => {
      clearTimeout(timer);
      if (why === null && code !== 0) why = code === null ? `ended by ${signal ?? "a signal"}` : `ended with status ${code}`;
      if (why === null) resolve(trimmed(held, length));
      else {
        held.fill(0);
        reject(fault(name, `command ${command} ${why}`));
      }
    });
  });
}

/** Without one final line end, in memory of its own. */
function trimmed(held: Buffer, octets: number): Buffer {
  let length = octets;
  if (length > 0 && held[length - 1] === 10) length -= length > 1 && held[length - 2] === 13 ? 2 : 1;
  const value = Buffer.alloc(length);
  held.copy(value, 0, 0, length);
  held.fill(0);
  return value;
}

/** Why a value cannot be used; null: it can. */
export function unusable(value: Buffer): string | null {
  if (value.length === 0) return "is empty";
  if (value.length > VALUE_OCTETS) return `is longer than ${VALUE_OCTETS / 1024} KiB`;
  if (value.some((octet) => octet < 0x20 || octet === 0x7f)) return "has control characters: more than one line, or a tab";
  if (value[0] === 0x20 || value[value.length - 1] === 0x20) return "begins or ends with a space, which a header would lose";
  return null;
}

function place(source: SecretSource): string {
  switch (source.kind) {
    case "env": return `environment variable ${source.variable}`;
    case "file": return `file ${source.path}`;
    case "credential": return `credential ${source.name}`;
    case "command": return `command ${source.argv[0] ?? ""}`;
  }
}

function version({ dev, ino, mtimeNs, ctimeNs, size }: { readonly dev: bigint; readonly ino: bigint; readonly mtimeNs: bigint; readonly ctimeNs: bigint; readonly size: bigint }): string {
  return [dev, ino, mtimeNs, ctimeNs, size].join(":");
}

function codeOf(error: unknown): string { return (error as { code?: string }).code ?? "failed"; }

function fault(name: string, text: string, remedy?: string): EnforcerError {
  return new EnforcerError("E_SECRET", `secret ${name}: ${text}`, remedy === undefined ? {} : { remedy });
}
