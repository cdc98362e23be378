/**
 * What may come of a connection that the agent looks into; labels of counters and events, explained in docs/TLS.md.
 */
export const connectionOutcomes = {
  "spliced": "name verified, passed on as it is",
  "intercepted": "name verified, TLS ended here and begun again",
  "plain-http": "plain HTTP, each request's Host verified",
  "dot": "DNS over TLS, answered here",
  "no-name": "refused: no server name, and the policy needs one",
  "name-unreadable": "refused: a server name that is none, or more than one",
  "name-denied": "refused: the policy does not allow the name on this port",
  "not-pinned": "refused: this sandbox was not told that the name is at the address",
  "not-tls": "refused: not TLS on a port of TLS",
  "malformed": "refused: a ClientHello that cannot be read",
  "too-large": "refused: a ClientHello of more than 64 KiB",
  "timeout": "refused: the ClientHello did not come in time",
  "name-changed": "refused: a second ClientHello named another server",
  "limit": "refused: more connections than the sandbox may have",
  "hello-limit": "refused: too many or too large ClientHellos of the sandbox that were not whole yet",
  "rate": "refused: more connections a second than the sandbox may begin",
  "handshake-limit": "refused: too many handshakes of the sandbox under way, for ten seconds",
  "buffer-limit": "ended: what it kept under way was the most of a sandbox that kept more than it may",
  "no-upstream": "the far side did not accept the connection",
  "stranger": "refused: not a redirected connection of a sandbox",
  "secret-in-name": "refused: a secret's placeholder in the server name",
  "policy-changed": "ended: the policy no longer allows it",
} as const;

export type ConnectionOutcome = keyof typeof connectionOutcomes;

/** Outcomes that are refusals, which events tell. */
export const refusedOutcomes: ReadonlySet<ConnectionOutcome> = new Set([
  "no-name", "name-unreadable", "name-denied", "not-pinned", "not-tls", "malformed", "too-large", "timeout", "name-changed", "limit", "hello-limit", "rate", "handshake-limit", "buffer-limit", "policy-changed",
] as const);
