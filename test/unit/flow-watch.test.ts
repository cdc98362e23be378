/** Who begins to watch what is let through: what many sandboxes' tables hold is looked at a part at a time, and told as if at once. */
import { describe, expect, test } from "vitest";
import type { Engine } from "../../src/agent/engine.js";
import { FlowWatch, type Watched } from "../../src/agent/flow-watch.js";
import type { Sandbox } from "../../src/agent/sandbox.js";
import { layouts } from "../../src/kernel/layout.gen.js";

/** Milliseconds that the reading of one table takes here: as one of some thousand flows does. */
const SLOW = 5;

/** Sandboxes whose tables are as the kernel's, and the flows in them. */
class Host {
  readonly told: string[] = [];
  readonly unseen: string[] = [];
  readonly sandboxes: Watched[] = [];
  readonly #flows = new Map<string, { readonly port: number; readonly tick: bigint }[]>();
  /** Opened so far, whether still there or not. */
  readonly #opened = new Map<string, number>();
  #tick = 1000n;
  wanted = true;
  readonly watch = new FlowWatch({
    known: () => this.sandboxes, wanted: () => this.wanted,
    onAllowed: ({ sandbox }, { remotePort }) => this.told.push(`${sandbox.name}:${remotePort}`),
    onUnseen: (name, count) => this.unseen.push(`${name} ${count}`),
    onError: (name, error) => { throw new Error(name, { cause: error }); },
  });

  constructor(count: number) { for (let slot = 0; slot < count; slot++) this.attach(`tap${slot}`, slot, 2); }

  attach(name: string, slot: number, generation: number): void {
    const enforcer = {
      sandboxAt: (at: number, of: number) => this.sandboxes.find(({ sandbox }) => sandbox.slot === at && sandbox.generation === of)?.sandbox ?? null,
      counters: () => [{ reason: "rule-allow", packets: BigInt(this.#opened.get(name) ?? 0) }],
    };
    const sandbox = { name, slot, generation, adopted: false, tables: { inner: (map: string) => (map === "flows" ? this.#table(name) : null) } };
    this.sandboxes.push({ engine: { enforcer } as unknown as Engine, sandbox: sandbox as unknown as Sandbox });
  }

  detach(name: string): void {
    this.sandboxes.splice(this.sandboxes.findIndex(({ sandbox }) => sandbox.name === name), 1);
    this.#flows.delete(name);
    this.#opened.delete(name);
  }

  open(name: string, port: number): void {
    this.#flows.set(name, [...(this.#flows.get(name) ?? []), { port, tick: this.#tick++ }]);
    this.#opened.set(name, (this.#opened.get(name) ?? 0) + 1);
  }

  #table(name: string): object {
    const { flow_key: key, flow } = layouts, rows = this.#flows.get(name) ?? [];
    return {
      close: () => undefined,
      page: () => {
        for (const end = performance.now() + SLOW; performance.now() < end;);
        const keys = Buffer.alloc(rows.length * key.size), values = Buffer.alloc(rows.length * flow.size);
        rows.forEach(({ port, tick }, i) => {
          keys.writeUInt16BE(port, i * key.size + key.fields.remote_port.offset);
          values.writeBigUInt64LE(tick, i * flow.size + flow.fields.created_ticks.offset);
        });
        return { keys, values, count: rows.length, next: null };
      },
    };
  }
}

describe("who begins to watch", () => {
  test("holds nobody up, and is told of what is opened from then on, and of nothing before", async () => {
    const COUNT = 60, host = new Host(COUNT);
    for (let i = 0; i < COUNT; i++) host.open(`tap${i}`, 1);
    let turns = 0, over = false;
    const begun = host.watch.joined().then(() => { over = true; });
    const turning = (async () => {
      for (; !over; turns++) await new Promise((resolve) => setImmediate(resolve));
    })();
    await Promise.all([begun, turning]);
    expect(turns).toBeGreaterThan(COUNT / 2);
    for (const i of [0, 7, COUNT - 1]) host.open(`tap${i}`, 2);
    host.watch.start();
    await expect.poll(() => host.told.length, { timeout: 200_000 }).toBe(3);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    host.watch.stop();
    expect(host.told.sort()).toEqual(["tap0:2", `tap${COUNT - 1}:2`, "tap7:2"].sort());
    expect(host.unseen).toEqual([]);
  });

  test("while its tables are looked at no reading tells what was there, and a sandbox that another takes the place of is told whole", async () => {
    const COUNT = 300, host = new Host(COUNT);
    for (let i = 0; i < COUNT; i++) host.open(`tap${i}`, 1);
    // The reading begins while most tables are still to be looked at.
    host.watch.start();
    const begun = host.watch.joined(), second = host.watch.joined();
    host.detach("tap290");
    host.attach("tap290", 290, 3);
    host.open("tap290", 9);
    await Promise.all([begun, second]);
    await expect.poll(() => host.told.length, { timeout: 200_000 }).toBe(1);
    host.open("tap5", 2);
    await expect.poll(() => host.told.length, { timeout: 200_000 }).toBe(2);
    host.watch.stop();
    expect(host.told).toEqual(["tap290:9", "tap5:2"]);
    expect(host.unseen).toEqual([]);
  });

  test("looks at no more tables when nobody wants them any more", async () => {
    const host = new Host(20);
    host.open("tap19", 1);
    const begun = host.watch.joined();
    host.wanted = false;
    await begun;
    host.wanted = true;
    host.open("tap19", 2);
    await host.watch.joined();
    host.open("tap19", 3);
    host.watch.start();
    await expect.poll(() => host.told, { timeout: 200_000 }).toEqual(["tap19:3"]);
    host.watch.stop();
  });
});
