/** RingBuffer: records arrive once, in order, at most 4096 a call; drain and close from within. */
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { compileProbe, native, openDescriptors, temporaryFolder, thrownBy, u32, u64, until } from "./fixture.js";

const probe = compileProbe(temporaryFolder());
const object = native.BpfObject.load(probe);
const tell = object.program("tell");
const events = object.map("events");
const tables = object.map("tables");
const inner = native.BpfMap.create({ name: "inner", ...object.innerTemplate("tables") });
tables.updateInner(0, inner);
afterAll(() => [tell, events, tables, inner, object].forEach((each) => each.close()));

let ring: native.RingBuffer | undefined;
afterEach(() => ring?.close());

const tellTimes = (count: number, value = 0) => {
  inner.update(u32(0), u64(value));
  expect(tell.testRun({ data: Buffer.alloc(64), repeat: count }).returnValue).toBe(0);
};
const valueOf = (record: Buffer) => Number(record.readBigUInt64LE(8));

describe("on the loop", () => {
  it("delivers every record once, in order, copied", async () => {
    const seen: Buffer[] = [];
    ring = new native.RingBuffer(events, (records) => { seen.push(...records); });
    for (let i = 0; i < 10; i++) tellTimes(1, i);
    await until(() => seen.length >= 10);
    for (let i = 10; i < 20; i++) tellTimes(1, i);
    await until(() => seen.length >= 20);
    expect(seen.map(valueOf)).toEqual(Array.from({ length: 20 }, (_, i) => i));
    expect(seen.every((record) => record.length === 16 && record.readBigUInt64LE(0) === 64n)).toBe(true);
  });

  it("gives at most 4096 in one call and comes back for the rest", async () => {
    const calls: number[] = [];
    ring = new native.RingBuffer(events, (records) => { calls.push(records.length); });
    tellTimes(10_000);
    const total = () => calls.reduce((sum, count) => sum + count, 0);
    await until(() => total() >= 10_000);
    expect(total()).toBe(10_000);
    expect(Math.max(...calls)).toBe(4096);
  });

  it("may be closed in its own callback", async () => {
    let calls = 0;
    const own = new native.RingBuffer(events, () => { calls++; own.close(); });
    tellTimes(5000);
    await until(() => calls > 0);
    for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(calls).toBe(1);
    let rest = 0;
    ring = new native.RingBuffer(events, (records) => { rest += records.length; });
    ring.drain();
    expect(rest).toBe(5000 - 4096);
  });
});

describe("drain", () => {
  it("takes all that waits, before it returns", () => {
    let seen = 0;
    ring = new native.RingBuffer(events, (records) => { seen += records.length; });
    ring.drain();
    expect(seen).toBe(0);
    tellTimes(9000);
    ring.drain();
    expect(seen).toBe(9000);
  });

  it("passes on what the callback throws", () => {
    ring = new native.RingBuffer(events, () => { throw new Error("mine"); });
    tellTimes(5000);
    expect(() => ring!.drain()).toThrow("mine");
    expect(() => ring!.drain()).toThrow("mine");
    ring.drain();
  });

  it("survives a close from the callback", () => {
    let calls = 0;
    const own = new native.RingBuffer(events, () => { calls++; own.close(); });
    tellTimes(5000);
    own.drain();
    expect(calls).toBe(1);
    expect(thrownBy(() => own.drain())).toMatchObject({ code: "EBADF" });
    ring = new native.RingBuffer(events, () => {});
    ring.drain();
  });
});

describe("close and checks", () => {
  it("gives back its descriptors, and outlives the map", async () => {
    const before = openDescriptors();
    const map = object.map("events");
    let seen = 0;
    const own = new native.RingBuffer(map, (records) => { seen += records.length; });
    map.close();
    tellTimes(3);
    await until(() => seen === 3);
    own.close();
    own.close();
    expect(openDescriptors()).toBe(before);
  });

  it("refuses another kind of map, a closed one, no callback", () => {
    expect(thrownBy(() => new native.RingBuffer(tables, () => {}))).toMatchObject({ code: "EINVAL", syscall: "ring_buffer__new" });
    const closed = object.map("events");
    closed.close();
    expect(() => new native.RingBuffer(closed, () => {})).toThrow(TypeError);
    expect(() => new native.RingBuffer(events, undefined as never)).toThrow(TypeError);
  });
});
