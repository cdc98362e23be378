/**
 * The reading thread: reads the configuration of one network namespace (host-reading.ts) for a host watch on the main thread.
 *
 * Holds always: requests are done one after the other; a failure is a reply, never the end of the thread. Changes nothing.
 */
import { parentPort } from "node:worker_threads";
import { HostReader, type DeviceTexts, type Reading } from "./host-reading.js";

interface StartReading {
  readonly kind: "start";
  /** namespace to read; it stays the sender's. */
  readonly netnsFd: number;
  readonly devices: DeviceTexts;
}
export type ReadRequest = StartReading | { readonly kind: "read"; readonly known: string } | { readonly kind: "stop" };
export interface ReadReplies { readonly start: null; readonly read: Reading; readonly stop: null }
type FromReader =
  | { readonly kind: "reply"; readonly id: number; readonly ok: true; readonly value: ReadReplies[keyof ReadReplies] }
  | { readonly kind: "reply"; readonly id: number; readonly ok: false; readonly code: string; readonly message: string };

if (parentPort !== null) {
  const port = parentPort;
  let reader: HostReader | null = null;
  const perform = (request: ReadRequest): ReadReplies[keyof ReadReplies] => {
    if (request.kind === "read") {
      if (reader === null) throw new Error("nothing is to be read yet");
      return reader.read(request.known);
    }
    reader = request.kind === "start" ? new HostReader(request.netnsFd, request.devices) : null;
    return null;
  };
  port.on("message", ({ id, request }: { readonly id: number; readonly request: ReadRequest }) => {
    let reply: FromReader;
    try {
      reply = { kind: "reply", id, ok: true, value: perform(request) };
    } catch (error) {
      reply = { kind: "reply", id, ok: false, code: "E_NETLINK", message: error instanceof Error ? error.message : String(error) };
    }
    port.postMessage(reply);
  });
}
