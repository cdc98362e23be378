/** BpfObject: opening, overriding, loading, layouts, and what a refusal says. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { compileProbe, native, temporaryFolder, thrownBy, u32, withBpffs } from "./fixture.js";

const folder = temporaryFolder();
const probe = compileProbe(folder);
const bpffs = withBpffs();
const open: { close(): void }[] = [];
const keep = <T extends { close(): void }>(object: T): T => (open.push(object), object);
afterEach(() => open.splice(0).forEach((object) => object.close()));

describe("load", () => {
  it("names the maps and programs", () => {
    const object = keep(native.BpfObject.load(probe));
    expect([...object.maps].sort()).toEqual(["counts", "events", "prefixes", "shapes", "tables"]);
    expect(object.programs).toEqual(["pass", "drop", "tell"]);
    expect(keep(object.map("shapes")).info).toMatchObject({ type: "hash", name: "shapes", keySize: 4, valueSize: 32, maxEntries: 16, flags: 0 });
    expect(keep(object.map("prefixes")).info).toMatchObject({ type: "lpm_trie", keySize: 8, valueSize: 4, flags: 1 });
    expect(keep(object.map("tables")).info).toMatchObject({ type: "array_of_maps", maxEntries: 4 });
    expect(keep(object.map("events")).info).toMatchObject({ type: "ringbuf", maxEntries: 1 << 20 });
  });

  it("takes other sizes by map name", () => {
    const object = keep(native.BpfObject.load(probe, { maxEntries: { tables: 7, shapes: 100 } }));
    expect(keep(object.map("tables")).info.maxEntries).toBe(7);
    expect(keep(object.map("shapes")).info.maxEntries).toBe(100);
  });

  it("leaves out disabled programs", () => {
    const object = keep(native.BpfObject.load(probe, { disabledPrograms: ["tell"] }));
    expect(object.programs).toEqual(["pass", "drop"]);
    expect(thrownBy(() => object.program("tell"))).toMatchObject({ code: "EBADF" });
  });

  it("takes a map from its pin, and only one of the same shape", () => {
    const path = join(bpffs.path, "shapes");
    const first = keep(native.BpfObject.load(probe, { maxEntries: { shapes: 20 } }));
    const map = keep(first.map("shapes"));
    map.pin(path);
    map.update(u32(5), Buffer.alloc(32, 9));
    const second = keep(native.BpfObject.load(probe, { maxEntries: { shapes: 20 }, pinnedMaps: { shapes: path } }));
    expect(keep(second.map("shapes")).info.id).toBe(map.info.id);
    expect(keep(second.map("shapes")).lookup(u32(5))).toEqual(Buffer.alloc(32, 9));
    expect(thrownBy(() => native.BpfObject.load(probe, { pinnedMaps: { shapes: path } })))
      .toMatchObject({ code: "EINVAL", syscall: "bpf_map__reuse_fd", path });
    expect(thrownBy(() => native.BpfObject.load(probe, { pinnedMaps: { counts: path } })))
      .toMatchObject({ code: "EINVAL", path });
    expect(thrownBy(() => native.BpfObject.load(probe, { pinnedMaps: { shapes: join(bpffs.path, "nothing") } })))
      .toMatchObject({ code: "ENOENT", syscall: "bpf(BPF_OBJ_GET)", path: join(bpffs.path, "nothing") });
  });

  it("gives the verifier's line, and the source line it is about", () => {
    const refused = compileProbe(folder, "REFUSED");
    const error = thrownBy(() => native.BpfObject.load(refused));
    expect(error).toMatchObject({ code: "EACCES", syscall: "bpf(BPF_PROG_LOAD)", path: refused, verifier: "R0 invalid mem access 'map_value_or_null'" });
    expect(error.message).toContain("prog 'refused'");
    expect(error.message).toContain("not checked for null");
    expect(keep(native.BpfObject.load(refused, { disabledPrograms: ["refused"] })).programs).not.toContain("refused");
  });

  it("says which file, map or program is wrong", () => {
    expect(thrownBy(() => native.BpfObject.load(join(folder, "nothing.o"))))
      .toMatchObject({ code: "ENOENT", syscall: "bpf_object__open_file", path: join(folder, "nothing.o") });
    const garbage = join(folder, "garbage.o");
    writeFileSync(garbage, "not an object");
    expect(thrownBy(() => native.BpfObject.load(garbage))).toMatchObject({ syscall: "bpf_object__open_file", path: garbage });
    expect(thrownBy(() => native.BpfObject.load(probe, { maxEntries: { nobody: 1 } })).message).toContain("no map nobody");
    expect(thrownBy(() => native.BpfObject.load(probe, { disabledPrograms: ["nobody"] })).message).toContain("no program nobody");
    const object = keep(native.BpfObject.load(probe));
    expect(thrownBy(() => object.map("nobody"))).toMatchObject({ code: "ENOENT", path: probe });
    expect(thrownBy(() => object.program("nobody"))).toMatchObject({ code: "ENOENT" });
  });

  it.each([
    ["no path", () => native.BpfObject.load(undefined as never), TypeError],
    ["a path with NUL", () => native.BpfObject.load("a\0b"), RangeError],
    ["size 0", () => native.BpfObject.load(probe, { maxEntries: { shapes: 0 } }), RangeError],
    ["a size beyond 32 bits", () => native.BpfObject.load(probe, { maxEntries: { shapes: 2 ** 32 } }), RangeError],
    ["half an entry", () => native.BpfObject.load(probe, { maxEntries: { shapes: 1.5 } }), RangeError],
    ["NaN", () => native.BpfObject.load(probe, { maxEntries: { shapes: NaN } }), RangeError],
    ["a size as text", () => native.BpfObject.load(probe, { maxEntries: { shapes: "9" as never } }), TypeError],
    ["programs that are no list", () => native.BpfObject.load(probe, { disabledPrograms: "tell" as never }), TypeError],
  ])("refuses %s", (_name, call, kind) => expect(call).toThrow(kind));
});

describe("BTF", () => {
  it("gives offsets and sizes", () => {
    const object = keep(native.BpfObject.load(probe));
    expect(object.layout("shape")).toEqual({
      size: 32,
      fields: {
        wide: { offset: 0, size: 8 },
        part: { offset: 8, size: 4 }, "part.low": { offset: 8, size: 2 }, "part.high": { offset: 10, size: 2 },
        bytes: { offset: 12, size: 12 },
        word: { offset: 24, size: 4 }, halves: { offset: 24, size: 4 },
        tail: { offset: 28, size: 4 },
      },
    });
    expect(object.layout("lpm_key").size).toBe(8);
    expect(thrownBy(() => object.layout("nobody"))).toMatchObject({ code: "ENOENT" });
  });

  it("gives the inner map's definition, and such a map fits", () => {
    const object = keep(native.BpfObject.load(probe));
    const template = object.innerTemplate("tables");
    expect(template).toEqual({ type: "hash", keySize: 4, valueSize: 8, maxEntries: 8, flags: 0 });
    keep(object.map("tables")).updateInner(0, keep(native.BpfMap.create({ name: "inner", ...template, maxEntries: 3 })));
    expect(thrownBy(() => object.innerTemplate("shapes"))).toMatchObject({ code: "ENOENT" });
  });
});

describe("close", () => {
  it("may be called twice, and leaves maps and programs that were handed out", () => {
    const object = native.BpfObject.load(probe);
    const map = keep(object.map("shapes"));
    const program = keep(object.program("pass"));
    object.close();
    object.close();
    for (const use of [() => object.maps, () => object.programs, () => object.map("shapes"), () => object.layout("shape")]) {
      expect(thrownBy(use)).toMatchObject({ code: "EBADF" });
    }
    map.update(u32(1), Buffer.alloc(32));
    expect(program.testRun({ data: Buffer.alloc(64) }).returnValue).toBe(0xffffffff);
  });
});
