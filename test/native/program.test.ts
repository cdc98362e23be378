/** BpfProgram: facts, test runs, pins. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { compileProbe, native, temporaryFolder, thrownBy, u32, withBpffs } from "./fixture.js";

const object = native.BpfObject.load(compileProbe(temporaryFolder()));
const bpffs = withBpffs();
const pass = object.program("pass");
const drop = object.program("drop");
afterAll(() => [pass, drop, object].forEach((each) => each.close()));

/** A struct __sk_buff with only mark (offset 8) set. */
function context(mark: number): Buffer {
  const out = Buffer.alloc(192);
  out.writeUInt32LE(mark, 8);
  return out;
}

describe("test run", () => {
  it("returns the code and the packet", () => {
    const data = Buffer.from(Array.from({ length: 100 }, (_, i) => i));
    expect(pass.testRun({ data })).toMatchObject({ returnValue: 0xffffffff, data, context: null });
    expect(drop.testRun({ data })).toMatchObject({ returnValue: 2 });
  });

  it("repeats: the program runs as often as asked", () => {
    const counts = object.map("counts");
    const total = () => {
      const value = counts.lookup(u32(1))!;
      let sum = 0n;
      for (let i = 0; i < value.length; i += 8) sum += value.readBigUInt64LE(i);
      return sum;
    };
    const before = total();
    expect(drop.testRun({ data: Buffer.alloc(64), repeat: 1000 }).durationNs).toBeGreaterThan(0);
    expect(total() - before).toBe(1000n);
    counts.close();
  });

  it("passes the context in and out", () => {
    const shapes = object.map("shapes");
    expect(pass.testRun({ data: Buffer.alloc(64), context: context(5) }).context!.readUInt32LE(8)).toBe(5);
    const shape = Buffer.alloc(32);
    shape.writeUInt32LE(77, 28);
    shapes.update(u32(0), shape);
    expect(pass.testRun({ data: Buffer.alloc(64), context: context(5) }).context!.readUInt32LE(8)).toBe(77);
    shapes.close();
  });

  it("says when the kernel refuses", () => {
    expect(thrownBy(() => pass.testRun({ data: Buffer.alloc(13) }))).toMatchObject({ code: "EINVAL", syscall: "bpf(BPF_PROG_TEST_RUN)" });
    const wrong = context(0);
    wrong.writeUInt32LE(1, 0); // len may not be set
    expect(thrownBy(() => pass.testRun({ data: Buffer.alloc(64), context: wrong }))).toMatchObject({ code: "EINVAL" });
  });

  it.each<[string, object, ErrorConstructor]>([
    ["no data", {}, TypeError],
    ["repeat 0", { data: Buffer.alloc(64), repeat: 0 }, RangeError],
    ["repeat beyond 1e9", { data: Buffer.alloc(64), repeat: 1e9 + 1 }, RangeError],
    ["a context of 5 KiB", { data: Buffer.alloc(64), context: Buffer.alloc(5000) }, RangeError],
    ["more than 1 MiB", { data: Buffer.alloc((1 << 20) + 1) }, RangeError],
  ])("refuses %s", (_name, options, kind) => expect(() => pass.testRun(options as never)).toThrow(kind));
});

describe("facts and pins", () => {
  it("tells what the kernel knows", () => {
    const shapes = object.map("shapes");
    const { info } = pass;
    expect(info.name).toBe("pass");
    expect(info.tag).toMatch(/^[0-9a-f]{16}$/);
    expect(info.verifiedInstructions).toBeGreaterThan(5);
    expect(info.memlock).toBeGreaterThan(0);
    expect(info.mapIds).toContain(shapes.info.id);
    expect(drop.info.tag).not.toBe(info.tag);
    shapes.close();
  });

  it("is found again by pin and by id", () => {
    const path = join(bpffs.path, "pass");
    pass.pin(path);
    for (const other of [native.BpfProgram.fromPin(path), native.BpfProgram.fromId(pass.info.id)]) {
      expect(other.info).toEqual(pass.info);
      other.close();
      other.close();
      expect(thrownBy(() => other.info)).toMatchObject({ code: "EBADF" });
      expect(thrownBy(() => other.testRun({ data: Buffer.alloc(64) }))).toMatchObject({ code: "EBADF" });
    }
    expect(thrownBy(() => native.BpfProgram.fromId(0xffffffff))).toMatchObject({ code: "ENOENT" });
    expect(thrownBy(() => native.BpfMap.fromPin(path))).toMatchObject({ code: "EINVAL" });
  });
});
