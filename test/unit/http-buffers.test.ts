/** Buffers of bodies on their way: what has passed is given back long before V8 would go through its whole heap for it. */
import { getHeapStatistics } from "node:v8";
import { expect, test } from "vitest";
import { passing } from "../../src/tls/http/buffers.js";

test("a gigabyte that passes keeps some megabytes of buffers", () => {
  const external = (): number => getHeapStatistics().external_memory;
  const before = external();
  let most = 0;
  for (let i = 0; i < 16_384; i++) {
    passing(Buffer.allocUnsafeSlow(65_536));
    if (i % 16 === 0) most = Math.max(most, external() - before);
  }
  expect(most).toBeLessThan(32 << 20);
  // New contexts get no gc() because of it.
  expect((globalThis as { gc?: unknown }).gc).toBeUndefined();
});
