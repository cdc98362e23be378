/**
 * Which certificate authorities vouch for an upstream.
 *
 * Holds always: Mozilla's list as Node carries it, and what the policy adds, for all hosts or for one; the host's own store only
 * with `trust_host_cas`, and never what environment variables of the agent name. Contexts are shared by those who trust the
 * same; building one reads the whole list, some 15 ms.
 */
import { constants, createHash, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext, rootCertificates, type SecureContext } from "node:tls";
import { EnforcerError } from "../../errors.js";
import { CIPHERS, GROUPS } from "../certificates/leaves.js";

/** What a sandbox trusts for one upstream. */
export interface Trust {
  /** the host's store too. */
  readonly hostCas: boolean;
  /** PEM, any number of certificates each. */
  readonly extra: readonly string[];
}

/** Bundles of the distributions, in the order of Go's crypto/x509. */
const HOST_STORES = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem"];
/** Kept contexts: some megabytes each. */
const CONTEXTS = 16;

const contexts = new Map<string, SecureContext>();

/** The context for upstreams under `trust`. @throws EnforcerError E_CA when an added certificate cannot be read. */
export function trustContext(trust: Trust): SecureContext {
  const id = createHash("sha256").update(JSON.stringify([trust.hostCas, trust.extra])).digest("base64");
  const kept = contexts.get(id);
  if (kept !== undefined) {
    contexts.delete(id);
    contexts.set(id, kept);
    return kept;
  }
  const added = trust.extra.flatMap((pem) => certificatesOf(pem));
  if (trust.extra.length > 0 && added.length === 0) throw new EnforcerError("E_CA", "an upstream CA named in the policy holds no PEM certificate");
  const context = createSecureContext({
    ca: [...rootCertificates, ...added, ...(trust.hostCas ? hostCertificates() : [])], minVersion: "TLSv1.2",
    // What was verified is the certificate of the first handshake, and a further one costs this thread as much as a new connection.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
    // Level 2: no RSA below 2048 bits, no SHA-1 (SSL_CTX_set_security_level(3)).
    ciphers: `${CIPHERS}:@SECLEVEL=2`, ecdhCurve: GROUPS,
  });
  contexts.set(id, context);
  if (contexts.size > CONTEXTS) contexts.delete(contexts.keys().next().value as string);
  return context;
}

/** Certificates of the host's store; none when it has none. Read anew each time: it may change. */
export function hostCertificates(): string[] {
  for (const path of HOST_STORES) {
    try {
      return certificatesOf(readFileSync(path, "utf8"));
    } catch {
      // The next one.
    }
  }
  return [];
}

/** CERTIFICATE blocks alone, each one that can be read. */
function certificatesOf(pem: string): string[] {
  return (pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []).filter((block) => {
    try {
      return new X509Certificate(block).raw.length > 0;
    } catch {
      return false;
    }
  });
}
