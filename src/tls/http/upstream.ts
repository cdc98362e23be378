/**
 * The far side of an intercepted connection: dialled, verified, and only then spoken to.
 *
 * Holds always: no octet of a request leaves before the certificate was verified for the judged name, by the sandbox's trust,
 * whatever the environment says; a name must stand in subjectAltName. Each connection verifies anew: no session is resumed, so
 * a change of trust takes force at once; and once: the far side cannot begin another handshake. One connection of a guest has one of its own here; none is shared.
 * Does not: choose the address (the caller dials the original destination), check revocation (Node does not).
 */
import type { Socket } from "node:net";
import { checkServerIdentity, connect, type ConnectionOptions, type PeerCertificate, type SecureContext, type TLSSocket } from "node:tls";
import type { FarSides } from "./far-sides.js";
import type { HttpReason } from "./refusal.js";

/** What is offered of what the guest offered, in its order: no translation between versions is done. */
export const spoken: readonly string[] = ["h2", "http/1.1"];

export class UpstreamError extends Error {
  constructor(readonly reason: HttpReason, message: string) {
    super(message);
    this.name = "UpstreamError";
  }
}

export interface UpstreamOptions {
  /** connects to the original destination, from the host's namespace. */
  readonly dial: () => Promise<Socket>;
  /** canonical; must be a host name, not an address. */
  readonly name: string;
  readonly offer: readonly string[];
  readonly context: SecureContext;
  /** of the sandbox. */
  readonly farSides: FarSides;
  /** for connecting and shaking hands together, ms. */
  readonly limitMs: number;
}

/** @returns a verified connection; its alpnProtocol is what the guest is to be answered. @throws UpstreamError. */
export async function dialUpstream(options: UpstreamOptions): Promise<TLSSocket> {
  const deadline = performance.now() + options.limitMs;
  const raw = await within(options.dial(), options.limitMs).catch((error: unknown) => {
    throw new UpstreamError("upstream-unreachable", `${options.name} did not accept the connection (${codeOf(error)})`);
  });
  const left = (): number => Math.max(0, deadline - performance.now());
  const leave = await options.farSides.enter(left());
  if (leave === null) {
    raw.destroy();
    throw new UpstreamError("upstream-failed", `${options.name} was not asked in time: too many servers that this sandbox spoke to did not complete a handshake`);
  }
  const verified = new Promise<TLSSocket>((resolve, reject) => {
    const fail = (error: unknown): void => {
      clearTimeout(timer);
      socket.destroy();
      raw.destroy();
      reject(describe(options.name, error));
    };
    let asked = false;
    const settings: ConnectionOptions = {
      socket: raw, servername: options.name, secureContext: options.context, rejectUnauthorized: true,
      // Node asks again when the far side begins another handshake, which the context refuses (trust.ts): mostly one with a client's certificate.
      checkServerIdentity: (name, certificate) => {
        const error = asked ? Object.assign(new Error("the far side began another handshake"), { code: "ERR_SSL_NO_RENEGOTIATION" }) : named(name, certificate);
        asked = true;
        return error;
      },
      ...(options.offer.length > 0 ? { ALPNProtocols: [...options.offer] } : {}),
    };
    const socket = connect(settings);
    // Node asks for the whole chain in every detail before it calls `named`: a tenth of the handshake, for one field.
    socket.getPeerCertificate = () => ({ subject: {}, subjectaltname: socket.getPeerX509Certificate()?.subjectAltName }) as never;
    const timer = setTimeout(() => fail({ code: "ETIMEDOUT" }), left());
    socket.once("error", fail);
    socket.once("close", () => fail({ code: "ECONNRESET" }));
    socket.once("secureConnect", () => {
      if (!socket.authorized) {
        fail({ code: String(socket.authorizationError) });
        return;
      }
      clearTimeout(timer);
      socket.removeAllListeners("close");
      socket.off("error", fail);
      // An alert after the handshake (RFC 8446 section 4.4.2.4: no client certificate) is an error that does not end the socket.
      socket.on("error", (late) => { if (!socket.destroyed) socket.destroy(late); });
      resolve(socket);
    });
  });
  verified.then(() => leave(true), () => leave(false));
  return verified;
}

/** Node's check, without its fall-back to the common name (RFC 9110 section 4.3.4). */
function named(name: string, certificate: PeerCertificate): Error | undefined {
  if (!/(^|, )DNS:/.test(certificate.subjectaltname ?? "")) return Object.assign(new Error("the certificate names no host"), { code: "ERR_TLS_CERT_ALTNAME_INVALID" });
  return checkServerIdentity(name, certificate);
}

/** Codes of OpenSSL's verification (X509_V_ERR_…) and Node's own. */
const untrusted = /^(CERT_|UNABLE_TO_|SELF_SIGNED|DEPTH_ZERO|INVALID_|PATH_LENGTH|HOSTNAME_MISMATCH|ERR_TLS_CERT|CRL_|ERROR_IN_CERT|EE_KEY|CA_KEY|CA_MD|UNSPECIFIED)|CERTIFICATE_VERIFY_FAILED|(EE|CA)_KEY_TOO_SMALL|MD_TOO_WEAK/;

/** What went wrong, for people: codes of Node and OpenSSL, nothing that the far side wrote. */
export function describe(name: string, error: unknown): UpstreamError {
  const code = codeOf(error);
  if (untrusted.test(code)) return new UpstreamError("upstream-untrusted", `the certificate of ${name} does not hold (${code}); to trust its issuer, name it under tls.upstream_ca`);
  if (/NO_APPLICATION_PROTOCOL/.test(code)) return new UpstreamError("upstream-alpn", `${name} speaks none of the protocols that the client offered`);
  if (wantsCertificate(code)) return new UpstreamError("upstream-failed", `${name} refused the handshake (${code}); if it wants a client certificate, name it under tls.bypass`);
  if (code === "ETIMEDOUT" || code === "ECONNREFUSED" || code === "EHOSTUNREACH" || code === "ENETUNREACH") return new UpstreamError("upstream-unreachable", `${name} did not answer (${code})`);
  return new UpstreamError("upstream-failed", `${name} broke off (${code})`);
}

function wantsCertificate(code: string): boolean { return /ALERT_(HANDSHAKE_FAILURE|CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)|HANDSHAKE_FAILURE|NO_RENEGOTIATION/.test(code); }

export function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" && /^[\w-]{1,64}$/.test(code) ? code : "error";
}

function within<T extends { destroy(): void }>(promise: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      reject(Object.assign(new Error("too late"), { code: "ETIMEDOUT" }));
    }, ms);
    promise.then((value) => {
      clearTimeout(timer);
      if (late) value.destroy();
      else resolve(value);
    }, (error: unknown) => {
      clearTimeout(timer);
      reject(error as Error);
    });
  });
}
