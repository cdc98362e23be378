/**
 * Where a sandbox's CA lies between two lives of the agent: `<name>.ca.key` and `<name>.ca.pem` in the run directory.
 *
 * Holds always: the key's file is 0600 from its first octet and written whole (made beside, renamed); a key and a certificate
 * that do not belong together, or that cannot be read, count as absent and are replaced by a new CA, so a sandbox never runs
 * with half of one. Of a CA that a policy names only the certificate is kept here. Removal is complete. Does not: hand the key to anybody but CertificateAuthority.
 */
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { readBounded } from "../../bounded-file.js";
import { EnforcerError } from "../../errors.js";
import type { CaFiles } from "../../policy/types.js";
import { AUTHORITY_MS, CertificateAuthority } from "./authority.js";

/** Largest file of the operator's CA. */
const FILE_OCTETS = 1024 * 1024;
/** Less than this part of its time left: a kept CA gets a new certificate, of the same key. */
const RENEW_BELOW = 1 / 4;

/**
 * The CA of a sandbox: the one kept in `directory`, or a new one, which is then kept.
 * @param directory the run directory, 0700. @param onLost there was one, which was not whole or not made here: the guest trusts what vouches for nothing any more.
 * @throws EnforcerError E_STATE when it cannot be kept.
 */
export function keptAuthority(directory: string, sandbox: string, now = Date.now(), onLost = (): void => undefined): CertificateAuthority {
  const kept = read(directory, sandbox, now);
  if (kept !== null && kept.notAfter - now > AUTHORITY_MS * RENEW_BELOW) return kept;
  if (kept === null && (["key", "pem"] as const).some((ending) => existsSync(path(directory, sandbox, ending)))) onLost();
  const authority = kept?.renewed(now) ?? CertificateAuthority.generate(sandbox, now);
  replace(path(directory, sandbox, "key"), authority.exportKey());
  replace(path(directory, sandbox, "pem"), authority.certificate);
  return authority;
}

/** The certificate that a sandbox's guest must trust, without its key; null: there is none. */
export function keptCertificate(directory: string, sandbox: string): string | null {
  try {
    return readFileSync(path(directory, sandbox, "pem"), "utf8");
  } catch {
    return null;
  }
}

export function forgetAuthority(directory: string, sandbox: string): void {
  for (const ending of ["key", "pem"] as const) for (const suffix of ["", ".new"]) rmSync(path(directory, sandbox, ending) + suffix, { force: true });
}

/** The operator's own CA. @throws EnforcerError E_CA naming the files, never their content. */
export function operatorAuthority({ certificate, key }: CaFiles, now = Date.now()): CertificateAuthority {
  try {
    return CertificateAuthority.load(readBounded(certificate, FILE_OCTETS).toString("utf8"), readBounded(key, FILE_OCTETS).toString("utf8"), now);
  } catch (error) {
    throw new EnforcerError("E_CA", `tls.ca (${certificate}, ${key}): ${(error as Error).message}`);
  }
}

/** Keeps the certificate of the operator's CA as the one that the guest must trust, and no key beside it. @throws EnforcerError E_STATE. */
export function keepOperators(directory: string, sandbox: string, authority: CertificateAuthority): void {
  rmSync(path(directory, sandbox, "key"), { force: true });
  replace(path(directory, sandbox, "pem"), authority.certificate);
}

function read(directory: string, sandbox: string, now: number): CertificateAuthority | null {
  try {
    return CertificateAuthority.load(readFileSync(path(directory, sandbox, "pem"), "utf8"), readFileSync(path(directory, sandbox, "key"), "utf8"), now);
  } catch {
    return null;
  }
}

function replace(file: string, content: string): void {
  const beside = `${file}.new`;
  try {
    rmSync(beside, { force: true });
    const fd = openSync(beside, "wx", 0o600);
    try {
      writeSync(fd, content);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(beside, file);
  } catch (cause) {
    throw new EnforcerError("E_STATE", `${file} cannot be written: ${(cause as NodeJS.ErrnoException).code ?? "error"}`);
  }
}

function path(directory: string, sandbox: string, ending: "key" | "pem"): string { return join(directory, `${encodeURIComponent(sandbox)}.ca.${ending}`); }
