/**
 * One TLS connection of a guest, opened and closed again on the other side: upstream first, then the guest, then requests.
 *
 * Holds always: the far side is dialled at the address the guest chose and verified for the judged name before the guest's
 * handshake begins; the guest is answered with the protocol the far side chose, so nothing is translated; what fails is told
 * to the guest, as an HTTP answer where its protocols allow that, else as an alert. There is no way on without verification.
 * Does not: read the ClientHello, judge names, or decide what is intercepted.
 */
import type { Socket } from "node:net";
import type { SecureContext } from "node:tls";
import { HandshakeError, serverHandshake, type HandshakeFailure } from "../certificates/handshake.js";
import type { SandboxCertificates } from "../certificates/leaves.js";
import type { FarSides } from "./far-sides.js";
import { serveHttp1 } from "./http1.js";
import { openHttp2, serveHttp2 } from "./http2.js";
import { countRefusal, type Passage } from "./passage.js";
import { refuse } from "./refusal.js";
import { describe, dialUpstream, spoken, UpstreamError } from "./upstream.js";

export interface Interception {
  /** the guest's connection, its ClientHello unread. Taken over: it is closed here. */
  readonly guest: Socket;
  /** protocols that the guest's hello offers; empty: no ALPN. */
  readonly alpn: readonly string[];
  readonly labels: readonly string[];
  readonly certificates: SandboxCertificates;
  readonly context: SecureContext;
  readonly farSides: FarSides;
  readonly dial: () => Promise<Socket>;
  /** name is that of `labels`. */
  readonly passage: Passage & { readonly name: string };
  /** Told why the guest's handshake did not end well. */
  readonly handshakeFailed: (reason: HandshakeFailure) => void;
}

/** TLS alert records (RFC 8446 section 6): fatal. */
const NO_APPLICATION_PROTOCOL = Buffer.of(0x15, 3, 3, 0, 2, 2, 120);

/** Serves the connection; resolves when the guest's handshake is done or has failed. Never rejects. */
export async function interceptTls(interception: Interception): Promise<void> {
  const { guest, alpn, passage } = interception;
  const { name, limits } = passage;
  guest.on("error", () => guest.destroy());
  const offer = alpn.filter((protocol) => spoken.includes(protocol));
  if (alpn.length > 0 && offer.length === 0) {
    fail(interception, new UpstreamError("upstream-alpn", `the client offers neither h2 nor http/1.1; for another protocol, name ${name} under tls.bypass`));
    guest.end(NO_APPLICATION_PROTOCOL);
    return;
  }
  let upstream;
  try {
    upstream = await dialUpstream({ dial: interception.dial, name, offer, context: interception.context, farSides: interception.farSides, limitMs: limits.upstreamMs });
  } catch (error) {
    await apologise(interception, offer, error instanceof UpstreamError ? error : describe(name, error));
    return;
  }
  const closeUpstream = (): void => { upstream.destroy(); };
  guest.once("close", closeUpstream);
  const chosen = upstream.alpnProtocol === false || upstream.alpnProtocol === null ? null : upstream.alpnProtocol;
  try {
    if (chosen === "h2") {
      const session = await openHttp2(upstream, name, limits);
      guest.once("close", () => session.destroy());
      const socket = await accept(interception, ["h2"]);
      if (session.destroyed) socket.destroy();
      else serveHttp2(socket, guest, passage, session);
      return;
    }
    if (chosen === null && offer.length > 0 && !offer.includes("http/1.1")) {
      upstream.destroy();
      await apologise(interception, offer, new UpstreamError("upstream-alpn", `${name} speaks none of the protocols that the client offered`));
      return;
    }
    const socket = await accept(interception, offer.includes("http/1.1") ? ["http/1.1"] : []);
    guest.off("close", closeUpstream);
    serveHttp1(socket, passage, upstream);
  } catch (error) {
    upstream.destroy();
    if (error instanceof UpstreamError) await apologise(interception, offer, error);
  }
}

/** @throws HandshakeError, after it was told. */
async function accept(interception: Interception, protocols: readonly string[]): ReturnType<typeof serverHandshake> {
  const { guest, certificates, labels, passage } = interception;
  try {
    return await serverHandshake(guest, certificates.server({ kind: "name", labels }, protocols), passage.name, passage.limits.handshakeMs);
  } catch (error) {
    if (error instanceof HandshakeError) interception.handshakeFailed(error.reason);
    guest.destroy();
    throw error;
  }
}

/** The guest gets to know why there is no far side: a 502 to whatever it asks. */
async function apologise(interception: Interception, offer: readonly string[], error: UpstreamError): Promise<void> {
  const { passage, guest } = interception;
  if (guest.destroyed) return;
  fail(interception, error);
  if (error.reason === "upstream-alpn") {
    guest.end(NO_APPLICATION_PROTOCOL);
    return;
  }
  try {
    if (offer.length > 0 && !offer.includes("http/1.1")) serveHttp2(await accept(interception, ["h2"]), guest, passage, error);
    else serveHttp1(await accept(interception, offer.length > 0 ? ["http/1.1"] : []), passage, error);
  } catch {
    // The guest does not even shake hands.
  }
}

function fail(interception: Interception, error: UpstreamError): void {
  countRefusal(interception.passage.counters, error.reason);
  interception.passage.refused(refuse(502, error.reason, error.message), { method: "", host: interception.passage.name });
}
