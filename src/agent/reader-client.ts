/** The reading thread (src/net/read-worker.ts) seen from the main thread. If it dies, the host watch reads on the main thread again. */
import type { DeviceTexts, Reading } from "../net/host-reading.js";
import type { ApartReader } from "../net/host-watch.js";
import type { ReadReplies, ReadRequest } from "../net/read-worker.js";
import { WorkerClient } from "./worker-client.js";

export class ReaderClient implements ApartReader {
  readonly #client: WorkerClient<ReadRequest, ReadReplies, never>;
  readonly #started: Promise<null>;

  /** @param netnsFd as HostReader. @param onFailure the thread has ended by itself. */
  constructor(netnsFd: number, devices: DeviceTexts, onFailure: (error: Error) => void) {
    this.#client = new WorkerClient<ReadRequest, ReadReplies, never>({ url: new URL("../net/read-worker.js", import.meta.url), what: "the reading thread", error: "E_NETLINK", onTold: () => undefined, onFailure });
    this.#started = this.#client.ask({ kind: "start", netnsFd, devices });
    // read() tells of it.
    this.#started.catch(() => undefined);
  }

  async read(known: string): Promise<Reading> {
    await this.#started;
    return this.#client.ask({ kind: "read", known });
  }

  stop(): void { void this.#client.stop(); }
}
