/**
 * Plain HTTP of a guest (port 80), looked at request by request: Host must be allowed and pinned each time.
 *
 * Holds always: the far side is dialled at the address the guest chose, once, after the first request that may pass; what is
 * not HTTP/1 goes nowhere, and no other protocol comes through but a WebSocket. Nothing is put into a request here: without
 * TLS a placeholder is a violation (the passage's filter).
 * Does not judge (passage.ts), and reads no TLS.
 */
import type { Socket } from "node:net";
import { serveHttp1 } from "./http1.js";
import type { Passage } from "./passage.js";
import { codeOf, UpstreamError } from "./upstream.js";

export interface PlainConnection {
  /** the guest's connection, its octets unread. Taken over: it is closed here. */
  readonly guest: Socket;
  readonly dial: () => Promise<Socket>;
  /** scheme http, name null, the address of the original destination. */
  readonly passage: Passage & { readonly name: null; readonly address: string };
}

export function proxyPlainHttp(connection: PlainConnection): void {
  const { guest, dial, passage } = connection;
  guest.on("error", () => guest.destroy());
  serveHttp1(guest, passage, () => dial().catch((error: unknown) => {
    throw new UpstreamError("upstream-unreachable", `${passage.address} did not accept the connection (${codeOf(error)})`);
  }));
}
