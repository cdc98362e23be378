/** TCX links and clsact filters, on a veth pair in a namespace of the file's own. */
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { TcHook } from "../../native/index.js";
import { compileProbe, inNewNamespace, ip, native, temporaryFolder, thrownBy, withBpffs } from "./fixture.js";

const probe = compileProbe(temporaryFolder());
const bpffs = withBpffs();
inNewNamespace();

const hooks: TcHook[] = ["ingress", "egress"];
let object: native.BpfObject;
let pass: native.BpfProgram;
let drop: native.BpfProgram;
let ifindex = 0;
const missing = 0x7fffffff;

beforeEach(() => {
  ip("link", "add", "a0", "type", "veth", "peer", "name", "a1");
  ifindex = (JSON.parse(ip("-j", "link", "show", "a0")) as { ifindex: number }[])[0]!.ifindex;
  object = native.BpfObject.load(probe);
  pass = object.program("pass");
  drop = object.program("drop");
});
afterEach(() => {
  [pass, drop, object].forEach((each) => each.close());
  ip("link", "del", "a0");
});

describe.each(hooks)("TCX on %s", (hook) => {
  it("stands at the head of the chain", () => {
    expect(native.queryTcx(ifindex, hook)).toEqual([]);
    const first = native.BpfLink.attachTcx(pass, ifindex, hook);
    const second = native.BpfLink.attachTcx(drop, ifindex, hook);
    expect(native.queryTcx(ifindex, hook)).toEqual([
      { programId: drop.info.id, linkId: second.info.id }, { programId: pass.info.id, linkId: first.info.id },
    ]);
    expect(native.queryTcx(ifindex, hook === "ingress" ? "egress" : "ingress")).toEqual([]);
    expect(first.info).toEqual({ id: first.info.id, programId: pass.info.id, ifindex, hook });
    first.close();
    expect(native.queryTcx(ifindex, hook).map((entry) => entry.programId)).toEqual([drop.info.id]);
    second.close();
    second.close();
    expect(native.queryTcx(ifindex, hook)).toEqual([]);
    for (const use of [() => second.info, () => second.fd, () => second.update(pass), () => second.detach(), () => second.pin("/x")]) {
      expect(thrownBy(use)).toMatchObject({ code: "EBADF" });
    }
  });

  it("replaces its program", () => {
    const link = native.BpfLink.attachTcx(pass, ifindex, hook);
    link.update(drop);
    expect(link.info.programId).toBe(drop.info.id);
    expect(native.queryTcx(ifindex, hook)).toEqual([{ programId: drop.info.id, linkId: link.info.id }]);
    link.close();
  });

  it("lives on in a pin, and is detached through it", () => {
    const path = join(bpffs.path, `link-${hook}`);
    const link = native.BpfLink.attachTcx(pass, ifindex, hook);
    const { id } = link.info;
    link.pin(path);
    link.close();
    expect(native.queryTcx(ifindex, hook)).toEqual([{ programId: pass.info.id, linkId: id }]);
    const byId = native.BpfLink.fromId(id);
    const byPin = native.BpfLink.fromPin(path);
    expect(byId.info).toEqual(byPin.info);
    byPin.detach();
    expect(native.queryTcx(ifindex, hook)).toEqual([]);
    expect(byId.info.ifindex).toBe(0);
    expect(thrownBy(() => byId.update(drop))).toMatchObject({ code: "ENOLINK", syscall: "bpf(BPF_LINK_UPDATE)" });
    byId.close();
    byPin.close();
  });

  it("says which device is missing, and that a program stands there already", () => {
    expect(thrownBy(() => native.BpfLink.attachTcx(pass, missing, hook))).toMatchObject({ code: "ENODEV", syscall: "bpf(BPF_LINK_CREATE)", ifindex: missing });
    expect(thrownBy(() => native.queryTcx(missing, hook))).toMatchObject({ code: "ENODEV", ifindex: missing });
    const link = native.BpfLink.attachTcx(pass, ifindex, hook);
    expect(thrownBy(() => native.BpfLink.attachTcx(pass, ifindex, hook))).toMatchObject({ code: "EEXIST", ifindex });
    link.close();
  });
});

describe.each(hooks)("clsact on %s", (hook) => {
  it("attaches, is read back, replaced and removed", () => {
    expect(native.queryClsact(ifindex, hook)).toBeNull();
    expect(native.removeClsact(ifindex)).toBe(false);
    native.attachClsact(pass, ifindex, hook);
    expect(native.queryClsact(ifindex, hook)).toEqual({ programId: pass.info.id });
    expect(native.queryClsact(ifindex, hook === "ingress" ? "egress" : "ingress")).toBeNull();
    expect(thrownBy(() => native.attachClsact(drop, ifindex, hook))).toMatchObject({ code: "EEXIST", syscall: "bpf_tc_attach", ifindex });
    native.attachClsact(drop, ifindex, hook, { replace: true });
    expect(native.queryClsact(ifindex, hook)).toEqual({ programId: drop.info.id });
    expect(native.removeClsact(ifindex)).toBe(false);
    native.detachClsact(ifindex, hook);
    expect(native.queryClsact(ifindex, hook)).toBeNull();
    expect(thrownBy(() => native.detachClsact(ifindex, hook))).toMatchObject({ code: "ENOENT", syscall: "bpf_tc_detach", ifindex });
    expect(native.removeClsact(ifindex)).toBe(true);
    expect(native.removeClsact(ifindex)).toBe(false);
  });

  it("keeps filters of another handle and priority apart", () => {
    native.attachClsact(pass, ifindex, hook, { handle: 7, priority: 9 });
    expect(native.queryClsact(ifindex, hook)).toBeNull();
    expect(native.queryClsact(ifindex, hook, { handle: 8, priority: 9 })).toBeNull();
    native.attachClsact(drop, ifindex, hook);
    native.detachClsact(ifindex, hook);
    expect(native.queryClsact(ifindex, hook, { handle: 7, priority: 9 })).toEqual({ programId: pass.info.id });
    expect(native.removeClsact(ifindex)).toBe(false);
  });

  it("does not take another qdisc for clsact", () => {
    ip("link", "set", "a0", "up");
    expect(native.removeClsact(ifindex)).toBe(false);
  });

  it("says which device is missing", () => {
    expect(thrownBy(() => native.attachClsact(pass, missing, hook))).toMatchObject({ code: "ENODEV", ifindex: missing });
    expect(thrownBy(() => native.queryClsact(missing, hook))).toMatchObject({ code: "ENODEV", ifindex: missing });
    expect(thrownBy(() => native.detachClsact(missing, hook))).toMatchObject({ code: "ENODEV", ifindex: missing });
  });
});

describe("checks", () => {
  it.each<[string, () => unknown, ErrorConstructor]>([
    ["ifindex 0", () => native.BpfLink.attachTcx(pass, 0, "ingress"), RangeError],
    ["ifindex -1", () => native.queryTcx(-1, "ingress"), RangeError],
    ["ifindex 2^31", () => native.queryTcx(2 ** 31, "ingress"), RangeError],
    ["an unknown hook", () => native.queryTcx(1, "sideways" as never), RangeError],
    ["a map as a program", () => native.BpfLink.attachTcx(object.map("shapes") as never, 1, "ingress"), TypeError],
    ["a bare object as a program", () => native.attachClsact({} as never, 1, "ingress"), TypeError],
    ["handle 0", () => native.queryClsact(1, "ingress", { handle: 0 }), RangeError],
    ["priority 65536", () => native.queryClsact(1, "ingress", { priority: 65536 }), RangeError],
    ["replace as a number", () => native.attachClsact(pass, 1, "ingress", { replace: 1 as never }), TypeError],
  ])("refuses %s", (_name, call, kind) => expect(call).toThrow(kind));

  it("refuses a closed program", () => {
    pass.close();
    expect(() => native.BpfLink.attachTcx(pass, ifindex, "ingress")).toThrow(TypeError);
    expect(() => native.attachClsact(pass, ifindex, "ingress")).toThrow(TypeError);
  });
});
