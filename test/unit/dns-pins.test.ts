/** The pin book: leases, bounds, grace, swaps; a plain model of it on random steps; and the value the kernel reads. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MapPinWriter, PinEpoch, addressesInUse, encodePin } from "../../src/dns/kernel-pins.js";
import { defaultLimits, TokenBucket, type DnsLimits } from "../../src/dns/limits.js";
import { GRACE, PinBook, leaseOf } from "../../src/dns/pins.js";
import { nameOf } from "../../src/dns/wire.js";
import { layouts } from "../../src/kernel/layout.gen.js";
import { ip, KernelPins } from "./dns-world.js";

const name = (text: string) => nameOf(text.split("."))!;
const v4 = (text: string): Uint8Array => new Uint8Array(Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), ip(text)]));
const make = (limits: Partial<DnsLimits> = {}) => {
  const kernel = new KernelPins();
  return { kernel, book: new PinBook([kernel], { ...defaultLimits, ...limits }) };
};
const A = v4("93.0.0.1");
const B = v4("93.0.0.2");
const none = (): boolean => false;
const used = (): boolean => true;

describe("leases", () => {
  it("one address under two names carries the later expiry per bit", () => {
    const { kernel, book } = make();
    book.pin(name("a.test"), [[1, 2]], [A], 200, 100);
    book.pin(name("b.test"), [[2, 3]], [A], 300, 100);
    expect(kernel.entries.get("93.0.0.1")).toEqual([{ bit: 1, expires: 200 }, { bit: 2, expires: 300 }, { bit: 3, expires: 300 }]);
    book.pin(name("b.test"), [[2, 3]], [A], 250, 100);
    expect(kernel.entries.get("93.0.0.1")).toContainEqual({ bit: 3, expires: 300 });
  });

  it("when one name's lease ends, its bits go and the other's stay; when the last ends, the address goes", () => {
    const { kernel, book } = make();
    book.pin(name("a.test"), [[1]], [A], 200, 100);
    book.pin(name("b.test"), [[2]], [A], 300, 100);
    book.sweep(250, none);
    expect(kernel.entries.get("93.0.0.1")).toEqual([{ bit: 2, expires: 300 }]);
    book.sweep(300, none);
    expect(kernel.entries.size).toBe(0);
    expect(book.counters).toMatchObject({ names: 0, addresses: 0, added: 2, expired: 2 });
  });

  it.each([[0, 60], [60, 60], [61, 61], [3_600, 3_600], [3_601, 3_600]])("TTL %i gives %i", (ttl, lease) => expect(leaseOf(ttl)).toBe(lease));
});

describe("grace", () => {
  it("a pin in use outlives its lease, by GRACE at most, without a gap", () => {
    const { kernel, book } = make();
    book.pin(name("a.test"), [[1]], [A], 200, 100);
    let last = 0;
    for (let now = 100; now < 200 + GRACE + 100; now += 5) {
      book.sweep(now, used);
      const entry = kernel.entries.get("93.0.0.1");
      if (entry !== undefined && entry[0]!.expires > now) last = now;
      if (now < 200 + GRACE - 5) expect(entry![0]!.expires).toBeGreaterThan(now);
    }
    expect(last).toBeLessThan(200 + GRACE);
    expect(kernel.entries.size).toBe(0);
    expect(book.counters.names).toBe(0);
  });

  it("a pin out of use ends with its lease; one that has ended is not brought back", () => {
    const { kernel, book } = make();
    book.pin(name("a.test"), [[1]], [A], 200, 100);
    book.sweep(190, none);
    expect(kernel.entries.get("93.0.0.1")).toEqual([{ bit: 1, expires: 200 }]);
    book.sweep(200, used);
    expect(kernel.entries.size).toBe(0);
  });

  it.each([30, 45, 50, 55, 300])("each name has its own grace, whatever another name asked every %i s does at the same address", (period) => {
    for (const start of [145, 160, 190]) {
      const { kernel, book } = make();
      book.pin(name("old.test"), [[1]], [A], 160, 100);
      let last = 0;
      for (let now = 100; now < 160 + 3 * GRACE; now += 5) {
        if (now >= start && (now - start) % period === 0) book.pin(name("new.test"), [[2]], [A], now + 61, now);
        book.sweep(now, used);
        if (kernel.entries.get("93.0.0.1")?.some(({ bit, expires }) => bit === 1 && expires > now) === true) last = now;
        expect(book.pinned(name("old.test"), A, now)).toBe(last === now);
      }
      expect(last).toBe(160 + GRACE - 5);
    }
  });

  it("flows are looked at only when a pin is near its end", () => {
    const { book } = make();
    book.pin(name("a.test"), [[1]], [A], 1_000, 100);
    let asked = 0;
    book.sweep(500, () => { asked++; return true; });
    expect(asked).toBe(0);
  });
});

describe("bounds", () => {
  it.each<[string, Partial<DnsLimits>, () => [string, Uint8Array[]][], string]>([
    ["names", { names: 2 }, () => [["a.test", [A]], ["b.test", [A]], ["c.test", [A]]], "names"],
    ["addresses", { addresses: 1 }, () => [["a.test", [A]], ["a.test", [B]]], "addresses"],
    ["addresses per name", { addressesPerName: 2 }, () => [["a.test", [A, B]], ["a.test", [v4("93.0.0.3")]]], "addresses-per-name"],
  ])("%s: refused, counted, nothing evicted, a renewal still passes", (_what, limits, steps, result) => {
    const { kernel, book } = make(limits);
    const all = steps();
    for (const [n, addresses] of all.slice(0, -1)) expect(book.pin(name(n), [[1]], addresses, 200, 100)).toBe("ok");
    const before = new Map(kernel.entries);
    const [n, addresses] = all.at(-1)!;
    expect(book.pin(name(n), [[1]], addresses, 200, 100)).toBe(result);
    expect(kernel.entries).toEqual(before);
    expect(book.pin(name(all[0]![0]), [[1]], all[0]![1], 300, 150)).toBe("ok");
    // What has expired makes room without waiting for the sweeper.
    expect(book.pin(name(n), [[1]], addresses, 2_000, 1_000)).toBe("ok");
  });

  it("nine bits for one address are refused, eight pass, however many names bring them", () => {
    const { kernel, book } = make();
    for (let bit = 0; bit < 8; bit++) expect(book.pin(name(`n${bit}.test`), [[bit]], [A], 200, 100)).toBe("ok");
    expect(book.pin(name("n8.test"), [[8]], [A], 200, 100)).toBe("bits");
    expect(book.pin(name("n9.test"), [[7, 6]], [A], 200, 100)).toBe("ok");
    expect(kernel.entries.get("93.0.0.1")).toHaveLength(8);
    expect(book.pin(name("m.test"), [[1, 2, 3, 4, 5, 6, 7, 8, 9]], [B], 200, 100)).toBe("bits");
    expect(book.counters.refusedBits).toBe(2);
  });

  it("a half refused answer leaves nothing of itself", () => {
    const { kernel, book } = make({ addresses: 2 });
    book.pin(name("a.test"), [[1]], [A], 200, 100);
    expect(book.pin(name("b.test"), [[1]], [B, v4("93.0.0.3")], 200, 100)).toBe("addresses");
    expect([...kernel.entries.keys()]).toEqual(["93.0.0.1"]);
    expect(book.counters).toMatchObject({ names: 1, addresses: 1 });
  });

  it("names without bits are forgotten oldest first and never touch the kernel", () => {
    const { kernel, book } = make({ shownNames: 3 });
    for (const n of ["a", "b", "c"]) book.pin(name(`${n}.test`), [[]], [A], 200, 100);
    book.pin(name("a.test"), [[]], [A], 200, 100);
    book.pin(name("d.test"), [[]], [A], 200, 100);
    expect(book.namesOf(A).map((n) => n.wire[1])).toEqual(["c", "a", "d"]);
    expect(kernel.writes).toBe(0);
    book.sweep(200, none);
    expect(book.list()).toEqual([]);
  });

  it("a write that fails leaves the book as it was", () => {
    const { kernel, book } = make();
    kernel.fail = () => true;
    expect(book.pin(name("a.test"), [[1]], [A], 200, 100)).toBe("write");
    expect(book.counters).toMatchObject({ names: 0, addresses: 0, writeErrors: 1 });
    kernel.fail = null;
    book.pin(name("a.test"), [[1]], [A], 200, 100);
    kernel.fail = () => true;
    expect(book.pin(name("a.test"), [[1]], [A], 300, 150)).toBe("write");
    expect(book.list()[0]!.expires).toBe(200);
  });
});

describe("swap", () => {
  it("a failing write of the new map calls the swap off", () => {
    const { kernel, book } = make();
    book.pin(name("a.test"), [[1]], [A], 200, 100);
    const next = new KernelPins();
    next.fail = () => true;
    expect(() => book.beginSwap([next], () => [[5]])).toThrow("map is full");
    book.pin(name("b.test"), [[1]], [B], 200, 100);
    expect(kernel.entries.size).toBe(2);
    expect(next.entries.size).toBe(0);
  });

  it("an address over eight bits under the new policy is left out and counted", () => {
    const { book } = make();
    for (let i = 0; i < 9; i++) book.pin(name(`n${i}.test`), [[1]], [A], 200, 100);
    const next = new KernelPins();
    let bit = 0;
    expect(book.beginSwap([next], () => [[bit++]])).toEqual({ written: 0, left: 1 });
    expect(next.entries.size).toBe(0);
  });
});

/** What the kernel must hold, worked out afresh from everything that was ever pinned. */
describe("the book and a plain model agree", () => {
  it("on random pins, sweeps and swaps", () => {
    const names = ["a.test", "b.test", "c.test", "d.test"];
    const addresses = [A, B, v4("93.0.0.3")];
    const texts = ["93.0.0.1", "93.0.0.2", "93.0.0.3"];
    const step = fc.oneof(
      fc.record({ kind: fc.constant("pin" as const), name: fc.nat(3), which: fc.subarray([0, 1, 2], { minLength: 1 }), ttl: fc.integer({ min: 60, max: 400 }) }),
      fc.record({ kind: fc.constant("pass" as const), seconds: fc.integer({ min: 1, max: 200 }), parts: fc.boolean() }),
      // One or two views; a name may have no bits in one, or be refused by them (null).
      fc.record({ kind: fc.constant("swap" as const), confirm: fc.boolean(), views: fc.integer({ min: 1, max: 2 }).chain((n) => fc.array(fc.option(fc.array(fc.subarray([1, 2, 3]), { minLength: n, maxLength: n })), { minLength: 4, maxLength: 4 })) }),
      fc.record({ kind: fc.constant("begin" as const), fail: fc.nat(6) }),
      fc.record({ kind: fc.constant("revoke" as const), name: fc.nat(3), which: fc.nat(2) }),
    );
    fc.assert(fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      let kernels = [new KernelPins(), new KernelPins()];
      const book = new PinBook(kernels, defaultLimits);
      const nameAt = (n: { wire: string }): number => names.findIndex((text) => name(text).wire === n.wire);
      let bits: number[][][] = [[[1], [2]], [[1, 2], []], [[], [3]], [[2], [2]]];
      let leases = new Map<string, number>();
      let now = 1_000;
      for (const s of steps) {
        if (s.kind === "pin") {
          const expires = now + s.ttl;
          expect(book.pin(name(names[s.name]!), bits[s.name]!, s.which.map((i) => addresses[i]!), expires, now)).toBe("ok");
          for (const i of s.which) leases.set(`${s.name} ${i}`, Math.max(expires, leases.get(`${s.name} ${i}`) ?? 0));
        } else if (s.kind === "pass") {
          now += s.seconds;
          if (s.parts) do book.sweepSome(now, none, 1); while (book.sweeping);
          else book.sweep(now, none);
          leases = new Map([...leases].filter(([, expires]) => expires > now));
        } else if (s.kind === "revoke") {
          book.revoke(() => true, (n, address) => nameAt(n) === s.name && Buffer.from(address).equals(addresses[s.which]!));
          leases.delete(`${s.name} ${s.which}`);
        } else if (s.kind === "begin") {
          const next = new KernelPins();
          let left = s.fail;
          next.fail = () => left-- <= 0;
          try {
            book.beginSwap([next], () => [[1]]);
            book.abortSwap();
          } catch {
            // called off by itself
          }
        } else {
          const count = s.views.find((each) => each !== null)?.length ?? 1;
          if (s.views.some((each) => each !== null && each.length !== count)) continue;
          const next = Array.from({ length: count }, () => new KernelPins());
          book.beginSwap(next, (n) => s.views[nameAt(n)] ?? null);
          if (s.confirm) {
            book.confirmSwap();
            kernels = next;
            bits = s.views.map((each) => each ?? Array.from({ length: count }, () => []));
          } else book.abortSwap();
        }
        for (const [view, kernel] of kernels.entries()) {
          for (const [i, text] of texts.entries()) {
            const want = new Map<number, number>();
            for (const [key, expires] of leases) {
              const [n, which] = key.split(" ").map(Number) as [number, number];
              if (which === i) for (const bit of bits[n]![view]!) want.set(bit, Math.max(expires, want.get(bit) ?? 0));
            }
            const held = new Map((kernel.entries.get(text) ?? []).filter((e) => e.expires > now).map((e) => [e.bit, e.expires]));
            expect(held).toEqual(want);
          }
        }
      }
    }), { numRuns: 300 });
  });
});

describe("the kernel's octets", () => {
  it("struct pin by the generated layout", () => {
    const out = encodePin(A, [{ bit: 511, expires: 0xfffffffe }, { bit: 1, expires: 60 }]);
    expect(out).toHaveLength(layouts.pin.size);
    const view = new DataView(out.buffer);
    const { addr, expires, bit } = layouts.pin.fields;
    expect(out.subarray(addr.offset, addr.offset + 16)).toEqual(A);
    expect([0, 1, 2, 7].map((i) => view.getUint32(expires.offset + 4 * i, true))).toEqual([0xfffffffe, 60, 0, 0]);
    expect([0, 1, 2].map((i) => view.getUint16(bit.offset + 2 * i, true))).toEqual([511, 1, 0]);
    expect(() => encodePin(A, Array.from({ length: 9 }, (_, i) => ({ bit: i, expires: 1 })))).toThrow(RangeError);
  });

  it("addresses in use are those of the flow table", () => {
    const keys = Buffer.alloc(2 * layouts.flow_key.size);
    keys.set(A, layouts.flow_key.fields.remote.offset);
    keys.set(B, layouts.flow_key.size + layouts.flow_key.fields.remote.offset);
    const entries = { keys, values: Buffer.alloc(0), count: 2 };
    expect([...addressesInUse({ entries: () => entries })]).toEqual([A, B].map((x) => Buffer.from(x).toString("latin1")));
  });

  it("the epoch moves once for each answer that grants something, after its pins, and not for a renewal", () => {
    const steps: string[] = [];
    const map = { update: () => { steps.push("pin"); }, delete: () => true, close: () => undefined };
    let number = 41;
    const epoch = {
      lookupInto: (_key: Uint8Array, out: Uint8Array) => { out[0] = number; return true; },
      update: (key: Uint8Array, value: Uint8Array) => { number = value[0]!; steps.push(`epoch ${key[0]} ${number}`); }, close: () => undefined,
    };
    const book = new PinBook([new MapPinWriter(map, new PinEpoch(epoch, 7))], defaultLimits);
    book.pin(name("a.test"), [[1]], [A, B], 200, 100);
    expect(steps).toEqual(["pin", "pin", "epoch 7 42"]);
    book.pin(name("a.test"), [[1]], [A, B], 300, 150);
    expect(steps.slice(3)).toEqual(["pin", "pin"]);
    // Not swept yet, but over: the kernel has said no meanwhile.
    book.pin(name("a.test"), [[1]], [A], 500, 400);
    expect(steps.slice(5)).toEqual(["pin", "epoch 7 43"]);
    book.pin(name("b.test"), [[2]], [A], 400, 400);
    expect(steps.slice(7)).toEqual(["pin", "epoch 7 44"]);
  });

  it("an epoch that cannot be moved keeps the answer back, and is owed to the next one", () => {
    let moved = 0;
    let fail = true;
    const epoch = { lookupInto: () => true, update: () => { if (fail) throw new Error("no"); moved++; }, close: () => undefined };
    const book = new PinBook([new MapPinWriter({ update: () => undefined, delete: () => true, close: () => undefined }, new PinEpoch(epoch, 7))], defaultLimits);
    expect(book.pin(name("a.test"), [[1]], [A], 200, 100)).toBe("write");
    fail = false;
    expect(book.pin(name("a.test"), [[1]], [A], 200, 100)).toBe("ok");
    expect(moved).toBe(1);
  });
});

describe("token bucket", () => {
  it("gives the burst, then the rate, and does not save beyond the burst", () => {
    const bucket = new TokenBucket(10, 3, 0);
    expect([0, 0, 0, 0].map((t) => bucket.take(t))).toEqual([true, true, true, false]);
    expect(bucket.take(99)).toBe(false);
    expect(bucket.take(100)).toBe(true);
    expect([10_000, 10_000, 10_000, 10_000].map((t) => bucket.take(t))).toEqual([true, true, true, false]);
    expect(bucket.take(0)).toBe(false);
  });
});
