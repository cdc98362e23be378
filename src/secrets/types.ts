/**
 * What secrets, the HTTP legs and the agent say to each other.
 *
 * Holds always: a violation names the secret and never holds a value or a placeholder; counters are by secret name, which the
 * policy bounds.
 */

/** What is known of a connection and its request when it is asked whether a secret may go in: all of it must hold. */
export interface Gate {
  /** Canonical labels of the judged name; empty: an address. */
  readonly labels: readonly string[];
  readonly port: number;
  /** The guest's side is TLS that ends here. */
  readonly intercepted: boolean;
  /** The far side showed a certificate for the name, from an authority that counts. */
  readonly verified: boolean;
  /** This sandbox was told, in an answer for the name, that it is at the address that was dialled. */
  readonly pinned: boolean;
}

export type Place = "method" | "path" | "query" | "field-name" | "field" | "body" | "trailer" | "websocket" | "server-name" | "dns-name";
/** How it was written: as it is, in percent escapes, in JSON escapes, in base64, as Basic credentials; in names also in hexadecimal or base32. */
export type Form = "raw" | "percent" | "json" | "base64" | "basic" | "hex" | "base32";

export interface Violation {
  readonly secret: string;
  /** placeholder: harmless by itself; value: the guest has got hold of the real one. */
  readonly what: "placeholder" | "value";
  readonly place: Place;
  /** Name of the header field, lower case, when it is one that a header may have; else null. */
  readonly field: string | null;
  readonly form: Form;
  /** What was done: stopped, only told of, let pass as the policy says, or stopped and the sandbox cut off. */
  readonly action: "block" | "log" | "pass" | "terminate";
  readonly host: string;
  readonly port: number;
  readonly method: string;
}

export interface SecretCounters {
  /** Requests that a value was put into. */
  injected: number;
  blocked: number;
  logged: number;
  passed: number;
  /** Values that were taken out of responses. */
  scrubbed: number;
  /** Responses that were stopped because a value could not be taken out. */
  stopped: number;
  /** Requests that were stopped because there was no value to be had. */
  unavailable: number;
}

export const noCounts = (): SecretCounters => ({ injected: 0, blocked: 0, logged: 0, passed: 0, scrubbed: 0, stopped: 0, unavailable: 0 });
