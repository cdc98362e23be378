/**
 * The TLS servers that guests of one sandbox meet: one per name and ALPN choice, made when first needed, a bounded number.
 *
 * Holds always: a server has one leaf and ticket keys of its own, so a session ticket is good for the same name of the same
 * sandbox only (with one server for all names OpenSSL would resume a session of one name under another). The least recently
 * used one goes first; its tickets die, which costs the guest one full handshake. A leaf that has less than a quarter of its
 * time left is made anew. TLS 1.2 at least, no renegotiation, no early data (Node's servers accept none).
 * Servers never listen: connections are handed to them (handshake.ts).
 */
import { constants } from "node:crypto";
import { createSecureContext, createServer, DEFAULT_CIPHERS, type Server } from "node:tls";
import { formatAddress } from "../../addresses/address.js";
import { LEAF_MS, type CertificateAuthority, type LeafSubject } from "./authority.js";

/**
 * Node's list, AES-128 before AES-256: as good as long as the other key has 128 bits of strength, and a third faster. Without key
 * exchange in finite fields, for which a far side chooses the prime: one of 10,000 bits takes two thirds of a second, as many handshakes
 * with a curve take a millisecond each, and browsers have long given it up.
 */
export const CIPHERS = `TLS_AES_128_GCM_SHA256:${DEFAULT_CIPHERS}:!DHE`;
const CURVES = "X25519:P-256:P-384:P-521";
/** What keys are exchanged in, with both sides: curves, and the post-quantum group where this OpenSSL has it; ffdhe8192 takes a hundred milliseconds. */
export const GROUPS = [`*X25519MLKEM768:*${CURVES}`, CURVES].find(known) as string;

function known(groups: string): boolean {
  try {
    createSecureContext({ ecdhCurve: groups });
    return true;
  } catch {
    return false;
  }
}

/** Servers of one sandbox that are kept: some 15 KiB each. */
export const LEAVES_KEPT = 256;
const RENEW_BELOW_MS = LEAF_MS / 4;

export interface LeafCounters {
  issued: number;
  hits: number;
  evicted: number;
}

interface Kept { readonly server: Server; readonly renewAt: number }

export class SandboxCertificates {
  readonly counters: LeafCounters = { issued: 0, hits: 0, evicted: 0 };
  /** In the order of use, oldest first. */
  readonly #kept = new Map<string, Kept>();

  /** @param now wall clock, ms. */
  constructor(readonly authority: CertificateAuthority, private readonly capacity = LEAVES_KEPT, private readonly now: () => number = Date.now) {}

  /** PEM, for the guest's trust store. */
  get certificate(): string { return this.authority.certificate; }

  get size(): number { return this.#kept.size; }

  /**
   * The server for a name or an address that chooses among these protocols.
   * @param labels or address as judged and pinned. @param alpn what may be chosen; empty: ALPN is not answered.
   */
  server(subject: LeafSubject, alpn: readonly string[]): Server {
    const id = `${subject.kind === "name" ? subject.labels.join(".") : `[${formatAddress(subject.address)}]`} ${alpn.join(",")}`;
    const now = this.now();
    const found = this.#kept.get(id);
    if (found !== undefined) this.#kept.delete(id);
    if (found !== undefined && now < found.renewAt) {
      this.counters.hits++;
      this.#kept.set(id, found);
      return found.server;
    }
    const leaf = this.authority.issue(subject, now);
    const server = createServer({
      key: leaf.key, cert: leaf.certificate, minVersion: "TLSv1.2", secureOptions: constants.SSL_OP_NO_RENEGOTIATION, honorCipherOrder: true, ciphers: CIPHERS, ecdhCurve: GROUPS,
      // Time limits are the caller's own: this one would begin anew with every octet.
      handshakeTimeout: 0,
      ...(alpn.length > 0 ? { ALPNProtocols: [...alpn] } : {}),
    });
    this.counters.issued++;
    this.#kept.set(id, { server, renewAt: leaf.notAfter - RENEW_BELOW_MS });
    if (this.#kept.size > this.capacity) {
      const [oldest] = this.#kept.keys();
      this.#kept.delete(oldest as string);
      this.counters.evicted++;
    }
    return server;
  }

  /** Forgets every leaf: their tickets are good no more. */
  clear(): void { this.#kept.clear(); }
}
