/**
 * What stands for a secret in the guest: random text in the shape that programs expect of the real one.
 *
 * Holds always: at least 128 bits are random and nothing of the value is in it, but its length where the policy asks for that;
 * letters, digits, `_`, `-` (and `.` in a JWT) only, so that no context escapes it by itself; all placeholders of a sandbox hold
 * its marker, so that one search finds any of them; none is a part of another. They are kept in a file, 0600, that outlives the
 * agent; a removed secret's placeholder is kept too, because the guest may still send it, and with them the hosts that each secret
 * was ever for: what they were given they may still tell.
 */
import { randomInt } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { EnforcerError } from "../errors.js";
import { formatPattern, parsePattern } from "../policy/names.js";
import type { SecretSpec } from "../policy/types.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/** 71 bits, shared by the sandbox's placeholders. */
const MARKER = 12;
/** 142 bits of a placeholder's own. */
const OWN = 24;
/** The last of 43 base64url digits for 32 octets has two zero bits. */
const LAST_OF_SIGNATURE = "AEIMQUYcgkosw048";
const JWT_HEAD = `${encode('{"alg":"HS256","typ":"JWT"}')}.${encode('{"sub":"placeholder","iat":1700000000,"exp":4102444800}')}.`;
/** Removed secrets whose placeholders are remembered. */
const REMOVED = 256;
/** Hosts of all secrets that are remembered; the oldest goes first. */
const HOSTS = 16_384;
/** Largest file that is read, octets. */
const FILE_MAX = 16 << 20;

interface Entry { readonly placeholder: string; readonly removed: boolean }
/** hosts: of secrets, `pattern:port`, oldest first; absent in files of former versions. */
interface Kept { readonly version: 1; readonly marker: string; readonly secrets: Readonly<Record<string, Entry>>; readonly hosts?: readonly (readonly [secret: string, host: string])[] }

/** Where a secret was, or is, allowed to go. */
export type Entrusted = Pick<SecretSpec, "allowedHosts" | "ports">;

/** Where a sandbox's placeholders are kept. */
export function placeholderPath(runDirectory: string, sandbox: string): string { return join(runDirectory, `${encodeURIComponent(sandbox)}.placeholders`); }

/** The placeholders of a sandbox by secret name, as its guest is to have them; empty: none were made. Reads nothing else. */
export function keptEnvironment(runDirectory: string, sandbox: string): Record<string, string> {
  const kept = readKept(placeholderPath(runDirectory, sandbox));
  return Object.fromEntries(Object.entries(kept?.secrets ?? {}).filter(([, { removed }]) => !removed).map(([name, { placeholder }]) => [name, placeholder]));
}

export function forgetPlaceholders(runDirectory: string, sandbox: string): void { rmSync(placeholderPath(runDirectory, sandbox), { force: true }); }

/** A sandbox's placeholders. */
export class PlaceholderBook {
  readonly marker: string;
  readonly #path: string | null;
  readonly #entries = new Map<string, Entry>();
  /** By secret and host. */
  #hosts = new Map<string, readonly [secret: string, host: string]>();

  /** @param path null: they are kept nowhere. A file that cannot be read, or that others could write, counts as absent. */
  constructor(path: string | null) {
    this.#path = path;
    const kept = path === null ? null : readKept(path);
    this.marker = kept?.marker ?? makeMarker();
    for (const [name, entry] of Object.entries(kept?.secrets ?? {})) this.#entries.set(name, entry);
    for (const host of kept?.hosts ?? []) this.#hosts.set(host.join(" "), host);
  }

  /** It may go there from now on. */
  entrust({ name, allowedHosts, ports }: SecretSpec): void {
    for (const pattern of allowedHosts) {
      for (const port of ports) {
        const host = [name, `${formatPattern(pattern)}:${port}`] as const, key = host.join(" ");
        this.#hosts.delete(key);
        this.#hosts.set(key, host);
      }
    }
    for (const [oldest] of [...this.#hosts].slice(0, Math.max(0, this.#hosts.size - HOSTS))) this.#hosts.delete(oldest);
  }

  /** Where the secret was ever allowed to go. */
  entrusted(secret: string): Entrusted[] {
    return [...this.#hosts.values()].flatMap(([name, host]) => (name === secret ? [entrustedOf(host) as Entrusted] : []));
  }

  /** The secret's placeholder: the one it had, or a new one. @param length of the value, for `same_length`. */
  take({ name, placeholder: shape }: SecretSpec, length: number): string {
    const kept = this.#entries.get(name);
    if (kept !== undefined && fits(kept.placeholder, shape)) {
      this.#entries.set(name, { ...kept, removed: false });
      return kept.placeholder;
    }
    // One of another shape is still in the guest: it stays known, as of a secret that is gone.
    if (kept !== undefined) this.#entries.set(`${name}#${randomText(6)}`, { ...kept, removed: true });
    let made: string;
    do made = this.#make(shape, length); while ([...this.#entries.values()].some(({ placeholder }) => placeholder.includes(made) || made.includes(placeholder)));
    this.#entries.set(name, { placeholder: made, removed: false });
    return made;
  }

  /** The guest may still have it. */
  remove(name: string): void {
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    this.#entries.delete(name);
    this.#entries.set(name, { ...entry, removed: true });
    const removed = [...this.#entries].filter(([, { removed: gone }]) => gone);
    for (const [oldest] of removed.slice(0, Math.max(0, removed.length - REMOVED))) this.#entries.delete(oldest);
  }

  /** By secret name; of those that are there. */
  environment(): Record<string, string> {
    return Object.fromEntries([...this.#entries].filter(([, { removed }]) => !removed).map(([name, { placeholder }]) => [name, placeholder]));
  }

  /** Every placeholder that the guest may have, with the secret's name. */
  all(): { readonly name: string; readonly placeholder: string }[] {
    return [...this.#entries].map(([name, { placeholder }]) => ({ name: name.split("#", 1)[0] as string, placeholder }));
  }

  /** Changes and saves, or leaves all as it was. @throws EnforcerError E_STATE. */
  change(work: () => void): void {
    const before = [...this.#entries], hosts = new Map(this.#hosts);
    try {
      work();
      this.save();
    } catch (error) {
      this.#entries.clear();
      for (const [name, entry] of before) this.#entries.set(name, entry);
      this.#hosts = hosts;
      throw error;
    }
  }

  /** @throws EnforcerError E_STATE. */
  save(): void {
    if (this.#path === null) return;
    const kept: Kept = { version: 1, marker: this.marker, secrets: Object.fromEntries(this.#entries), hosts: [...this.#hosts.values()] };
    try {
      rmSync(`${this.#path}.new`, { force: true });
      const fd = openSync(`${this.#path}.new`, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
      try {
        writeSync(fd, JSON.stringify(kept));
      } finally {
        closeSync(fd);
      }
      renameSync(`${this.#path}.new`, this.#path);
    } catch (cause) {
      throw new EnforcerError("E_STATE", `${this.#path} cannot be written: ${(cause as Error).message}`, { cause });
    }
  }

  #make({ prefix, sameLength, jwt }: SecretSpec["placeholder"], length: number): string {
    if (jwt) return JWT_HEAD + this.marker + randomText(43 - MARKER - 1) + (LAST_OF_SIGNATURE[randomInt(LAST_OF_SIGNATURE.length)] as string);
    const own = sameLength ? Math.max(OWN - 2, length - prefix.length - MARKER) : OWN;
    return prefix + this.marker + randomText(own);
  }
}

function fits(placeholder: string, { prefix, jwt }: SecretSpec["placeholder"]): boolean {
  return jwt ? placeholder.startsWith(JWT_HEAD) : placeholder.startsWith(prefix) && !placeholder.includes(".");
}

/** Such that none of its base64 forms has a digit that the two alphabets write differently. */
function makeMarker(): string {
  for (;;) {
    const marker = randomText(MARKER);
    if ([0, 1, 2].every((shift) => !/[+/]/.test(Buffer.concat([Buffer.alloc(shift), Buffer.from(marker)]).toString("base64")))) return marker;
  }
}

function randomText(length: number): string {
  let text = "";
  for (let i = 0; i < length; i++) text += LETTERS[randomInt(LETTERS.length)] as string;
  return text;
}

/** Of `pattern:port`; null: it is none. */
function entrustedOf(host: string): Entrusted | null {
  const at = host.lastIndexOf(":"), pattern = parsePattern(host.slice(0, at)), port = Number(host.slice(at + 1));
  return pattern.ok && Number.isInteger(port) && port > 0 && port < 65_536 ? { allowedHosts: [pattern.value], ports: [port] } : null;
}

function encode(text: string): string { return Buffer.from(text, "utf8").toString("base64url"); }

function readKept(path: string): Kept | null {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch {
    return null;
  }
  try {
    const facts = fstatSync(fd);
    if (!facts.isFile() || (facts.mode & 0o022) !== 0 || facts.uid !== process.geteuid!() || facts.size > FILE_MAX) return null;
    const kept = JSON.parse(readFileSync(fd, "utf8")) as Partial<Kept> | null;
    if (kept?.version !== 1 || typeof kept.marker !== "string" || !/^[A-Za-z0-9]{12}$/.test(kept.marker) || typeof kept.secrets !== "object") return null;
    const { marker } = kept;
    const sound = Object.values(kept.secrets).every((entry: Entry) => typeof entry === "object" && typeof entry.placeholder === "string" && /^[A-Za-z0-9._-]{34,8192}$/.test(entry.placeholder)
      && entry.placeholder.includes(marker) && typeof entry.removed === "boolean");
    const { hosts = [] } = kept;
    return sound && Array.isArray(hosts) && hosts.length <= HOSTS && hosts.every((one) => Array.isArray(one) && one.length === 2 && one.every((part) => typeof part === "string") && entrustedOf(one[1] as string) !== null) ? (kept as Kept) : null;
  } catch {
    return null;
  } finally {
    closeSync(fd);
  }
}
