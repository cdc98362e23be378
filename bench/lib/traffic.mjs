/**
 * A guest that sends without pause: a thread of its own writes frames of one TCP flow into a tap that it made.
 *
 * The tap goes when the thread has ended.
 */
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { fileURLToPath } from "node:url";
import { Tap } from "../../native/index.js";
import { ACK, SYN, tcp } from "./frames.mjs";
import { ALLOWED, PORT } from "./policies.mjs";

const BATCH = 50;

export class Traffic {
  #worker;
  /** Set to 1: send; to 2: end. */
  #state = new Int32Array(new SharedArrayBuffer(4));

  /** @param {string} tap */
  constructor(tap) { this.#worker = new Worker(fileURLToPath(import.meta.url), { workerData: { tap, state: this.#state } }); }

  /** Resolves when the tap is there; nothing is sent yet. @param {string} tap */
  static async start(tap) {
    const traffic = new Traffic(tap);
    await traffic.#said();
    return traffic;
  }

  go() {
    Atomics.store(this.#state, 0, 1);
    Atomics.notify(this.#state, 0);
  }

  /** @returns {Promise<number>} frames sent */
  async stop() {
    const sent = this.#said();
    Atomics.store(this.#state, 0, 2);
    Atomics.notify(this.#state, 0);
    return Number(await sent);
  }

  /** @returns {Promise<unknown>} */
  #said() {
    return new Promise((resolve, reject) => {
      this.#worker.once("message", resolve);
      this.#worker.once("error", reject);
    });
  }
}

if (!isMainThread && workerData?.tap !== undefined) {
  const { tap: name, state } = /** @type {{tap: string, state: Int32Array}} */ (workerData);
  const tap = new Tap(name, { vnetHeader: false });
  parentPort?.postMessage("ready");
  Atomics.wait(state, 0, 0);
  const frame = tcp({ destination: ALLOWED.v4, port: PORT, flags: ACK });
  tap.write(tcp({ destination: ALLOWED.v4, port: PORT, flags: SYN }));
  let sent = 1;
  for (; Atomics.load(state, 0) === 1; sent += BATCH) tap.writeRepeated(frame, BATCH);
  parentPort?.postMessage(sent);
  tap.close();
}
