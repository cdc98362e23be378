/** BpfMap: every operation on every kind the enforcer uses, the ways without a kernel batch, and the checks. */
import { existsSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import type { MapType } from "../../native/index.js";
import { native, thrownBy, u32, u64, withBpffs } from "./fixture.js";

const bpffs = withBpffs();
const open: { close(): void }[] = [];
const keep = <T extends { close(): void }>(object: T): T => (open.push(object), object);
afterEach(() => open.splice(0).forEach((object) => object.close()));

const make = (type: MapType | "cpumap", keySize: number, valueSize: number, maxEntries: number, flags = 0) =>
  keep(native.BpfMap.create({ type: type as MapType, name: "t", keySize, valueSize, maxEntries, flags }));

const sortedPairs = (map: native.BpfMap) => {
  const { keys, values, count } = map.entries();
  const { keySize } = map.info;
  const size = count === 0 ? 0 : values.length / count;
  return Array.from({ length: count }, (_, i) => [
    keys.subarray(i * keySize, (i + 1) * keySize).toString("hex"), values.subarray(i * size, (i + 1) * size).toString("hex"),
  ]).sort();
};

describe("a hash", () => {
  it("updates by flag, looks up, walks and deletes", () => {
    const map = make("hash", 4, 8, 2);
    expect(map.lookup(u32(1))).toBeNull();
    map.update(u32(1), u64(10), 1);
    expect(thrownBy(() => map.update(u32(1), u64(11), 1))).toMatchObject({ code: "EEXIST", syscall: "bpf(BPF_MAP_UPDATE_ELEM)" });
    expect(thrownBy(() => map.update(u32(2), u64(11), 2))).toMatchObject({ code: "ENOENT" });
    map.update(u32(1), u64(12), 2);
    expect(map.lookup(u32(1))).toEqual(u64(12));
    const out = Buffer.alloc(8);
    expect(map.lookupInto(u32(1), out)).toBe(true);
    expect(out).toEqual(u64(12));
    expect(map.lookupInto(u32(9), out)).toBe(false);
    map.update(u32(2), u64(20));
    expect(thrownBy(() => map.update(u32(3), u64(30)))).toMatchObject({ code: "E2BIG" });
    const first = map.nextKey(null)!;
    const second = map.nextKey(first)!;
    expect([first, second].map((key) => key.readUInt32LE()).sort()).toEqual([1, 2]);
    expect(map.nextKey(second)).toBeNull();
    expect(map.delete(u32(1))).toBe(true);
    expect(map.delete(u32(1))).toBe(false);
    expect(map.memory()).toBeGreaterThan(0);
  });

  it("takes and gives many at once", () => {
    const count = 10_000;
    const map = make("hash", 4, 8, count);
    const keys = u32(...Array.from({ length: count }, (_, i) => i));
    const values = u64(...Array.from({ length: count }, (_, i) => 3 * i));
    map.updateBatch(keys, values, count);
    const entries = map.entries();
    expect(entries.count).toBe(count);
    const seen = new Map<number, number>();
    for (let i = 0; i < count; i++) seen.set(entries.keys.readUInt32LE(4 * i), Number(entries.values.readBigUInt64LE(8 * i)));
    expect(seen.size).toBe(count);
    for (const [key, value] of seen) if (value !== 3 * key) expect(value).toBe(3 * key);
    // Every third of these is not there: the kernel's batch stops at each, ours goes on.
    const half = u32(...Array.from({ length: 3000 }, (_, i) => (i % 3 === 0 ? count + i : i)));
    expect(map.deleteBatch(half, 3000)).toBe(2000);
    expect(map.entries().count).toBe(count - 2000);
    expect(map.deleteBatch(half, 3000)).toBe(0);
  });

  it("honours flags in a batch, which the kernel's batch does not", () => {
    const map = make("hash", 4, 8, 8);
    map.updateBatch(u32(1, 2), u64(1, 2), 2, 1);
    const error = thrownBy(() => map.updateBatch(u32(3, 2), u64(3, 9), 2, 1));
    expect(error.code).toBe("EEXIST");
    expect(error.message).toContain("element 1 of 2");
    expect(sortedPairs(map).length).toBe(3);
    expect(map.lookup(u32(2))).toEqual(u64(2));
  });

  it("says where a batch broke off", () => {
    const map = make("hash", 4, 8, 2);
    const error = thrownBy(() => map.updateBatch(u32(1, 2, 3, 4), u64(1, 2, 3, 4), 4));
    expect(error).toMatchObject({ code: "E2BIG", syscall: "bpf(BPF_MAP_UPDATE_BATCH)" });
    expect(error.message).toContain("element 2 of 4");
  });

  it("is empty", () => {
    const map = make("hash", 4, 8, 8);
    expect(map.entries()).toEqual({ keys: Buffer.alloc(0), values: Buffer.alloc(0), count: 0 });
    expect(map.nextKey(null)).toBeNull();
    map.updateBatch(Buffer.alloc(0), Buffer.alloc(0), 0);
    expect(map.deleteBatch(Buffer.alloc(0), 0)).toBe(0);
  });
});

describe("other kinds", () => {
  it("array: all elements exist, none can be deleted", () => {
    const map = make("array", 4, 4, 5);
    map.updateBatch(u32(0, 4), u32(7, 9), 2);
    expect(sortedPairs(map)).toEqual([0, 1, 2, 3, 4].map((i) => [u32(i).toString("hex"), u32({ 0: 7, 4: 9 }[i] ?? 0).toString("hex")]));
    expect(thrownBy(() => map.delete(u32(0)))).toMatchObject({ code: "EINVAL" });
    expect(thrownBy(() => map.update(u32(5), u32(0)))).toMatchObject({ code: "E2BIG" });
  });

  it.each(["percpu_hash", "percpu_array"] as const)("%s: a value is one per CPU, each rounded up to 8 octets", (type) => {
    const map = make(type, 4, 12, 2);
    const size = 16 * native.possibleCpus();
    const value = Buffer.alloc(size);
    for (let cpu = 0; cpu < native.possibleCpus(); cpu++) value.writeUInt32LE(cpu + 1, 16 * cpu);
    map.update(u32(1), value);
    expect(map.lookup(u32(1))).toEqual(value);
    expect(map.info.valueSize).toBe(12);
    const entries = map.entries();
    expect(entries.values.length).toBe(entries.count * size);
    expect(() => map.update(u32(1), Buffer.alloc(12))).toThrow(RangeError);
    map.updateBatch(u32(0, 1), Buffer.concat([value, value]), 2);
    expect(map.lookup(u32(0))).toEqual(value);
  });

  it("a large hash is read in parts: each entry once, and no part grows with the table", () => {
    const count = 20_000;
    const map = make("hash", 4, 4, count);
    const all = Buffer.concat(Array.from({ length: count }, (_, i) => u32(i)));
    map.updateBatch(all, all, count);
    const seen = new Set<number>();
    let parts = 0;
    for (let after: Buffer | null = null; ;) {
      const page: ReturnType<typeof map.page> = map.page(after, 1024);
      expect(page.keys).toEqual(page.values);
      expect(page.count).toBeLessThanOrEqual(1024);
      for (let i = 0; i < page.count; i++) seen.add(page.keys.readUInt32LE(i * 4));
      parts++;
      if (page.next === null) break;
      after = page.next;
    }
    expect(seen.size).toBe(count);
    expect(parts).toBeGreaterThanOrEqual(20);
    // One bucket may hold more than was asked for; an empty map has one part.
    expect(map.page(null, 1).count).toBeGreaterThanOrEqual(1);
    expect(make("hash", 4, 4, 16).page(null, 8)).toEqual({ keys: Buffer.alloc(0), values: Buffer.alloc(0), count: 0, next: null });
    expect(() => map.page(Buffer.alloc(3), 8)).toThrow(RangeError);
    expect(() => map.page(null, 0)).toThrow(RangeError);
  });

  it("lru_hash: takes more than it holds", () => {
    const map = make("lru_hash", 4, 4, 64);
    for (let i = 0; i < 1000; i++) map.update(u32(i), u32(i));
    expect(map.entries().count).toBeLessThanOrEqual(64);
  });

  it("lpm_trie: the longest prefix answers", () => {
    const map = make("lpm_trie", 8, 4, 16, 1);
    const key = (length: number, ...octets: number[]) => Buffer.concat([u32(length), Buffer.from(octets)]);
    map.updateBatch(Buffer.concat([key(8, 10, 0, 0, 0), key(24, 10, 1, 2, 0)]), u32(8, 24), 2);
    expect(map.lookup(key(32, 10, 1, 2, 3))).toEqual(u32(24));
    expect(map.lookup(key(32, 10, 9, 9, 9))).toEqual(u32(8));
    expect(map.lookup(key(32, 11, 0, 0, 0))).toBeNull();
    expect(sortedPairs(map).length).toBe(2);
    expect(map.deleteBatch(Buffer.concat([key(8, 10, 0, 0, 0), key(9, 10, 0, 0, 0)]), 2)).toBe(1);
    expect(map.lookup(key(32, 10, 9, 9, 9))).toBeNull();
  });

  it("map-in-map: inner maps come and go", () => {
    const inner = make("hash", 4, 8, 4);
    for (const type of ["array_of_maps", "hash_of_maps"] as const) {
      const outer = keep(native.BpfMap.create({ type, name: "outer", keySize: 4, valueSize: 4, maxEntries: 3, innerFd: inner.fd }));
      outer.updateInner(2, inner);
      expect(outer.lookup(u32(2))).toEqual(u32(inner.info.id));
      expect(sortedPairs(outer)).toEqual([[u32(2).toString("hex"), u32(inner.info.id).toString("hex")]]);
      expect(thrownBy(() => outer.updateInner(0, make("hash", 4, 4, 4)))).toMatchObject({ code: "EINVAL" });
      expect(outer.delete(u32(2))).toBe(true);
      expect(outer.lookup(u32(2))).toBeNull();
    }
    expect(() => inner.updateInner(0, inner)).toThrow(TypeError);
    const reached = native.BpfMap.fromId(inner.info.id);
    expect(reached.info).toEqual(inner.info);
    reached.close();
  });

  it("a type without batch operations is walked one by one", () => {
    // The CPU map is the one kind the kernel gives lookup but no batch; its value is a queue length.
    const map = make("cpumap", 4, 4, 4);
    map.updateBatch(u32(0, 1), u32(16, 32), 2);
    expect(sortedPairs(map)).toEqual([0, 1].map((cpu) => [u32(cpu).toString("hex"), u32(16 * (cpu + 1)).toString("hex")]));
    expect(map.deleteBatch(u32(0, 1), 2)).toBe(2);
    expect(map.entries().count).toBe(0);
  });
});

describe("ways to a map", () => {
  it("by pin, by id, by descriptor", () => {
    const map = make("hash", 4, 4, 4);
    const path = join(bpffs.path, "map");
    map.pin(path);
    map.update(u32(1), u32(2));
    for (const other of [native.BpfMap.fromPin(path), native.BpfMap.fromId(map.info.id), native.BpfMap.fromFd(map.fd)]) {
      expect(other.fd).not.toBe(map.fd);
      expect(other.lookup(u32(1))).toEqual(u32(2));
      other.close();
    }
    expect(thrownBy(() => map.pin(path))).toMatchObject({ code: "EEXIST", syscall: "bpf(BPF_OBJ_PIN)", path });
    expect(thrownBy(() => native.BpfMap.fromPin(join(bpffs.path, "nothing")))).toMatchObject({ code: "ENOENT", path: join(bpffs.path, "nothing") });
    expect(thrownBy(() => native.BpfMap.fromId(0xffffffff))).toMatchObject({ code: "ENOENT" });
    expect(thrownBy(() => native.BpfMap.fromFd(0))).toMatchObject({ code: "EINVAL" });
    expect(thrownBy(() => native.BpfProgram.fromPin(path))).toMatchObject({ code: "EINVAL" });
    expect(thrownBy(() => native.BpfLink.fromPin(path))).toMatchObject({ code: "EINVAL" });
  });

  it("closes once, and is unusable afterwards", () => {
    const map = native.BpfMap.create({ type: "hash", name: "t", keySize: 4, valueSize: 4, maxEntries: 1 });
    // By its number, not by how many there are: what was collected meanwhile closes its own.
    const own = `/proc/self/fd/${map.fd}`;
    expect(readlinkSync(own)).toBe("anon_inode:bpf-map");
    map.close();
    map.close();
    expect(existsSync(own)).toBe(false);
    for (const use of [
      () => map.fd, () => map.info, () => map.memory(), () => map.lookup(u32(0)), () => map.lookupInto(u32(0), u32(0)),
      () => map.update(u32(0), u32(0)), () => map.updateInner(0, map), () => map.delete(u32(0)), () => map.nextKey(null),
      () => map.updateBatch(u32(0), u32(0), 1), () => map.entries(), () => map.page(null, 1), () => map.deleteBatch(u32(0), 1), () => map.pin("/x"),
    ]) expect(thrownBy(use)).toMatchObject({ code: "EBADF" });
  });
});

describe("checks", () => {
  const map = native.BpfMap.create({ type: "hash", name: "t", keySize: 4, valueSize: 8, maxEntries: 4 });
  it.each<[string, () => unknown, ErrorConstructor]>([
    ["a short key", () => map.lookup(Buffer.alloc(3)), RangeError],
    ["a long key", () => map.delete(Buffer.alloc(5)), RangeError],
    ["a short value", () => map.update(u32(1), Buffer.alloc(7)), RangeError],
    ["a short result buffer", () => map.lookupInto(u32(1), Buffer.alloc(7)), RangeError],
    ["flags 3", () => map.update(u32(1), u64(1), 3), RangeError],
    ["flags -1", () => map.update(u32(1), u64(1), -1), RangeError],
    ["a key of 32-bit words", () => map.lookup(new Uint32Array(1) as never), TypeError],
    ["a key as text", () => map.lookup("key!" as never), TypeError],
    ["no key", () => map.lookup(undefined as never), TypeError],
    ["a batch with too few keys", () => map.updateBatch(u32(1), u64(1, 2), 2), RangeError],
    ["a batch with too few values", () => map.updateBatch(u32(1, 2), u64(1), 2), RangeError],
    ["a negative count", () => map.deleteBatch(u32(1), -1), RangeError],
    ["a fractional count", () => map.deleteBatch(u32(1), 0.5), RangeError],
    ["an inner map that is none", () => map.updateInner(0, {} as never), TypeError],
    ["an index beyond 32 bits", () => map.updateInner(2 ** 32, map), RangeError],
    ["an id below 0", () => native.BpfMap.fromId(-1), RangeError],
    ["a descriptor below 0", () => native.BpfMap.fromFd(-1), RangeError],
    ["a name of 16 octets", () => native.BpfMap.create({ type: "hash", name: "0123456789abcdef", keySize: 4, valueSize: 4, maxEntries: 1 }), RangeError],
    ["an unknown type", () => native.BpfMap.create({ type: "cupboard" as never, name: "t", keySize: 4, valueSize: 4, maxEntries: 1 }), RangeError],
    ["construction", () => new (native.BpfMap as never as new () => unknown)(), TypeError],
    ["another object's method", () => map.lookup.call({} as never, u32(1)), TypeError],
  ])("refuses %s", (_name, call, kind) => expect(call).toThrow(kind));

  it("refuses a detached buffer", () => {
    const key = new Uint8Array(4);
    structuredClone(key.buffer, { transfer: [key.buffer] });
    expect(() => map.lookup(key)).toThrow(RangeError);
  });
});
