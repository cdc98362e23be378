/** What src/tls/pump.ts adds to the addon's splicing thread: the hand-over of Node's sockets and the octets told of them. On loopback. */
import { once } from "node:events";
import { readdirSync, readlinkSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { isPumped, Pump, PumpHolder, type Pumped, RETRY_MS } from "../../src/tls/pump.js";

let pump: Pump, sockets: Socket[];
beforeEach(() => {
  sockets = [];
  pump = Pump.start();
});
afterEach(() => {
  pump.close();
  for (const socket of sockets) socket.destroy();
});

/** However slow the machine is. */
const seen = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 60_000, interval: 5 });

async function connection(): Promise<{ outer: Socket; inner: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const outer = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
  const [inner] = (await once(server, "connection")) as [Socket];
  server.close();
  if (outer.connecting) await once(outer, "connect");
  for (const socket of [outer, inner]) sockets.push(socket.on("error", () => undefined));
  return { outer, inner };
}

async function taken(up = "", down = "", over = (): void => undefined): Promise<{ client: Socket; server: Socket; pumped: Pumped }> {
  const [a, b] = [await connection(), await connection()];
  const pumped = pump.take(7, a.inner, b.inner, Buffer.from(up), Buffer.from(down), over);
  if (!isPumped(pumped)) throw new Error("not taken");
  return { client: a.outer, server: b.outer, pumped };
}

const heard = async (socket: Socket, octets: string): Promise<void> => {
  let got = "";
  const data = (chunk: Buffer): void => { got += chunk.toString(); };
  socket.on("data", data);
  await seen(() => expect(got).toBe(octets));
  socket.off("data", data);
};

test("octets that were read before are not counted again of the guest, and are counted to it", async () => {
  const { client, server, pumped } = await taken("read before", "said before");
  // Never less than what was told before, whether the thread has passed them on or not.
  expect(pumped.octets().up).toBe(0);
  await Promise.all([heard(server, "read before"), heard(client, "said before")]);
  expect(pumped.octets()).toEqual({ up: 0, down: 11 });
  client.write("1234");
  server.write("123456");
  await Promise.all([heard(server, "1234"), heard(client, "123456")]);
  await seen(() => expect(pumped.octets()).toEqual({ up: 4, down: 17 }));
});

test("of several that end at once, each is told with its octets before any is over", async () => {
  const COUNT = 20;
  const told: { up: number; down: number }[] = [], all: Pumped[] = [];
  const sum = (): { up: number; down: number } => all.map((one) => one.octets()).reduce((a, b) => ({ up: a.up + b.up, down: a.down + b.down }));
  for (let i = 0; i < COUNT; i++) {
    const { client, server, pumped } = await taken("", "", () => told.push(sum()));
    all.push(pumped);
    client.write("up");
    server.write("back");
    await Promise.all([heard(server, "up"), heard(client, "back")]);
  }
  await seen(() => expect(sum()).toEqual({ up: 2 * COUNT, down: 4 * COUNT }));
  // The event loop stands until the thread is done with all, so that they come in one go.
  const open = (): number => readdirSync("/proc/self/fd").filter((fd) => { try { return readlinkSync(`/proc/self/fd/${fd}`).startsWith("socket:"); } catch { return false; } }).length;
  const before = open();
  for (const one of all) one.end();
  while (open() > before - 2 * COUNT);
  expect(sum()).toEqual({ up: 2 * COUNT, down: 4 * COUNT });
  await seen(() => expect(told).toHaveLength(COUNT));
  expect(told).toEqual(Array.from({ length: COUNT }, () => ({ up: 2 * COUNT, down: 4 * COUNT })));
  expect(pump.size).toBe(0);
});

test("octets stay when the thread is ended", async () => {
  const { client, server, pumped } = await taken("", "", () => { throw new Error("told to be over"); });
  client.write("up");
  server.write("back");
  await Promise.all([heard(server, "up"), heard(client, "back")]);
  await seen(() => expect(pumped.octets()).toEqual({ up: 2, down: 4 }));
  pump.close();
  expect(pumped.octets()).toEqual({ up: 2, down: 4 });
  expect(pumped.held()).toBe(0);
  pumped.end();
  pump.close();
  expect(pump.size).toBe(0);
});

test("sockets that have something to write, or have ended, are not taken; nothing is lost of them", async () => {
  const [a, b] = [await connection(), await connection()];
  while (b.inner.write(Buffer.alloc(1 << 20)));
  a.outer.write("of the guest");
  a.inner.resume().pause();
  const busy = pump.take(7, a.inner, b.inner, Buffer.from("up"), Buffer.from("down"), () => undefined);
  expect(busy).toMatchObject({ again: true });
  expect(isPumped(busy) ? null : [busy.up, busy.down].map(String)).toEqual(["up", "down"]);
  const [c, d] = [await connection(), await connection()];
  c.inner.end();
  expect(isPumped(pump.take(7, c.inner, d.inner, Buffer.alloc(0), Buffer.alloc(0), () => undefined))).toBe(false);
  pump.close();
  const [e, f] = [await connection(), await connection()];
  const listener = vi.fn();
  e.inner.on("data", listener);
  const closed = pump.take(7, e.inner, f.inner, Buffer.from("up"), Buffer.from("down"), () => undefined);
  expect(closed).toMatchObject({ again: false });
  expect(isPumped(closed) ? null : [closed.up, closed.down].map(String)).toEqual(["up", "down"]);
  expect(e.inner.listeners("data")).toContain(listener);
});

test("a thread that cannot be made is tried again, at most once in a while, and each change is told once; none is made after the end", () => {
  let now = 0, made: Pump | Error = new Error("EMFILE"), attempts = 0;
  const told: (string | null)[] = [];
  const holder = new PumpHolder({
    now: () => now, onChange: (failure) => told.push(failure?.message ?? null),
    start: () => {
      attempts++;
      if (made instanceof Error) throw made;
      return made;
    },
  });
  expect(holder).toMatchObject({ failing: false, failures: 0 });
  for (now = 0; now < 3 * RETRY_MS; now += RETRY_MS / 50) expect(holder.get()).toBeNull();
  expect([attempts, holder.failures, holder.failing, told]).toEqual([3, 3, true, ["EMFILE"]]);
  made = pump;
  expect(holder.get()).toBe(pump);
  expect(holder.get()).toBe(pump);
  expect([attempts, holder.failures, holder.failing, told]).toEqual([4, 3, false, ["EMFILE", null]]);
  holder.close();
  expect(holder.get()).toBeNull();
  expect(attempts).toBe(4);
  // Nothing is told of one that comes at once.
  const other = new PumpHolder({ start: () => pump, onChange: () => told.push("more") });
  expect(other.get()).toBe(pump);
  expect(told).toHaveLength(2);
});
