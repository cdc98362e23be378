/** Scrapes that come together, and work in slices: what the agent's main thread does while a thousand sandboxes are counted. */
import { request } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { Counter, Registry } from "prom-client";
import { expect, test, vi } from "vitest";
import { serveMetrics } from "../../src/agent/metrics.js";
import { Slices } from "../../src/agent/slices.js";

function get(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    request({ host: "127.0.0.1", port, path: "/metrics" }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (part: string) => { body += part; }).on("end", () => resolve(body));
    }).on("error", reject).end();
  });
}

test("scrapes that come while one is made share the next: a counter is filled by one at a time", async () => {
  const registry = new Registry();
  let readings = 0;
  new Counter({
    name: "frames_total", help: "of a source that takes a while", registers: [registry],
    async collect() {
      this.reset();
      readings++;
      await new Promise((resolve) => setTimeout(resolve, 20));
      this.inc(7);
    },
  });
  const server = await serveMetrics(registry, { host: "127.0.0.1", port: 0 });
  const { port } = server.address() as AddressInfo;
  const bodies = await Promise.all(Array.from({ length: 12 }, () => get(port)));
  expect(bodies.map((body) => /^frames_total (\d+)$/m.exec(body)?.[1])).toEqual(Array(12).fill("7"));
  expect(readings).toBeLessThan(12);
  expect(await get(port)).toContain("frames_total 7");
  server.close();
});

test("a scrape that fails is an answer, and the next one is made", async () => {
  let fails = true;
  const server = await serveMetrics({ contentType: "text/plain", metrics: async () => { if (fails) throw new Error("the worker has ended"); return "up 1\n"; } } as never, { host: "127.0.0.1", port: 0 });
  const { port } = server.address() as AddressInfo;
  expect(await Promise.all([get(port), get(port), get(port)])).toEqual(Array(3).fill("the worker has ended\n"));
  fails = false;
  expect(await get(port)).toBe("up 1\n");
  server.close();
});

test("connections that are held open are bounded, whoever on the host holds them, and their places come back", async () => {
  const server = await serveMetrics({ contentType: "text/plain", metrics: async () => "up 1\n" } as never, { host: "127.0.0.1", port: 0 });
  const { port } = server.address() as AddressInfo;
  const held = Array.from({ length: 200 }, () => connect(port, "127.0.0.1").on("error", () => undefined));
  const over = (): number => held.filter(({ destroyed }) => destroyed).length;
  await vi.waitFor(() => expect(over()).toBe(136), { timeout: 30_000 });
  for (const socket of held) socket.destroy();
  await vi.waitFor(async () => expect(await get(port)).toBe("up 1\n"), { timeout: 30_000 });
  server.close();
});

test("work in slices lets the event loop in, also when several pieces share one", async () => {
  const slices = new Slices();
  let turns = 0, done = false;
  const count = (): void => {
    turns++;
    if (!done) setImmediate(count);
  };
  setImmediate(count);
  const busy = (ms: number): void => { for (const end = performance.now() + ms; performance.now() < end;); };
  const piece = async (): Promise<void> => { for (let i = 0; i < 40; i++) { await slices.pause(); busy(1); } };
  await Promise.all([piece(), piece(), piece()]);
  done = true;
  // 120 ms of work: without pauses not one turn.
  expect(turns).toBeGreaterThan(5);
});
