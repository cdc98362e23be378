/** The TLS worker seen from the main thread (src/tls/protocol.ts). If it dies, what needs a look at its name no longer passes. */
import type { Violation } from "../secrets/types.js";
import type { FromTls, TlsDenial, TlsReplies, TlsRequest } from "../tls/protocol.js";
import { WorkerClient } from "./worker-client.js";

type Told = Exclude<FromTls, { kind: "reply" }>;

export class TlsClient extends WorkerClient<TlsRequest, TlsReplies, Told> {
  constructor(events: { readonly onDenied: (denials: readonly TlsDenial[]) => void; readonly onTerminate: (slot: number, generation: number, violation: Violation) => void; readonly onNotice: (text: string) => void; readonly onFailure: (error: Error) => void }) {
    super({ url: new URL("../tls/worker.js", import.meta.url), what: "the TLS worker", error: "E_TLS", onFailure: events.onFailure, onTold: (told) => {
      if (told.kind === "denied") events.onDenied(told.denials);
      else if (told.kind === "notice") events.onNotice(told.text);
      else events.onTerminate(told.slot, told.generation, told.violation);
    } });
  }
}
