/** netlinkRequest and NetlinkMonitor against a real rtnetlink, in a namespace of the file's own. */
import { describe, expect, it } from "vitest";
import { inNewNamespace, ip, native, thrownBy, until } from "./fixture.js";

inNewNamespace();

const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const NLM_F_DUMP = 0x300;
const RTNLGRP_LINK = 1;

/** A struct nlmsghdr with a struct ifinfomsg and attributes. */
function linkMessage(type: number, flags: number, ifindex = 0, attributes: [number, Buffer][] = []): Buffer {
  const body = attributes.map(([kind, value]) => {
    const out = Buffer.alloc((4 + value.length + 3) & ~3);
    out.writeUInt16LE(4 + value.length, 0);
    out.writeUInt16LE(kind, 2);
    value.copy(out, 4);
    return out;
  });
  const out = Buffer.concat([Buffer.alloc(32), ...body]);
  out.writeUInt32LE(out.length, 0);
  out.writeUInt16LE(type, 4);
  out.writeUInt16LE(flags | 1, 6);
  out.writeUInt32LE(4711, 8);
  out.writeInt32LE(ifindex, 20);
  return out;
}

const typeOf = (message: Buffer) => message.readUInt16LE(4);
const linkIndexOf = (message: Buffer) => message.readInt32LE(20);

describe("a request", () => {
  it("returns one answer to a question", () => {
    const answers = native.netlinkRequest(linkMessage(RTM_GETLINK, 0, 1));
    expect(answers.map(typeOf)).toEqual([RTM_NEWLINK]);
    expect(answers.map(linkIndexOf)).toEqual([1]);
    expect(answers[0]!.readUInt32LE(0)).toBe(answers[0]!.length);
    expect(answers[0]!.includes("lo\0")).toBe(true);
  });

  it("returns a dump whole, however many datagrams it takes", () => {
    for (let i = 0; i < 50; i++) ip("link", "add", `d${i}`, "type", "veth", "peer", "name", `e${i}`);
    const answers = native.netlinkRequest(linkMessage(RTM_GETLINK, NLM_F_DUMP));
    expect(answers.length).toBe(101);
    expect(new Set(answers.map(linkIndexOf)).size).toBe(101);
    expect(new Set(answers.map(typeOf))).toEqual(new Set([RTM_NEWLINK]));
    ip("link", "del", "d0");
    expect(native.netlinkRequest(linkMessage(RTM_GETLINK, NLM_F_DUMP)).length).toBe(99);
  });

  it("returns nothing where the kernel only acknowledges", () => {
    ip("link", "add", "gone", "type", "veth", "peer", "name", "gone1");
    const { ifindex } = (JSON.parse(ip("-j", "link", "show", "gone")) as { ifindex: number }[])[0]!;
    expect(native.netlinkRequest(linkMessage(RTM_DELLINK, 0, ifindex))).toEqual([]);
    expect(thrownBy(() => native.netlinkRequest(linkMessage(RTM_GETLINK, 0, ifindex))))
      .toMatchObject({ code: "ENODEV", syscall: "netlink(0, type 18)" });
  });

  it("gives the kernel's own words where it has some", () => {
    const kind = Buffer.concat([Buffer.from([12, 0, 1, 0]), Buffer.from("nothing\0")]);
    const message = linkMessage(RTM_NEWLINK, 0x600, 0, [[3, Buffer.from("x0\0")], [18, kind]]);
    const error = thrownBy(() => native.netlinkRequest(message));
    expect(error).toMatchObject({ code: "EOPNOTSUPP" });
    expect(error.message).toContain("Unknown device type");
  });

  it.each<[string, () => unknown, ErrorConstructor]>([
    ["no message", () => native.netlinkRequest(undefined as never), TypeError],
    ["a short message", () => native.netlinkRequest(Buffer.alloc(15)), RangeError],
    ["a length that is not the message's", () => native.netlinkRequest(Buffer.concat([linkMessage(RTM_GETLINK, 0, 1), Buffer.alloc(4)])), RangeError],
    ["protocol 32", () => native.netlinkRequest(linkMessage(RTM_GETLINK, 0, 1), 32), RangeError],
  ])("refuses %s", (_name, call, kind) => expect(call).toThrow(kind));
});

describe("a monitor", () => {
  it("tells of changes, in whole messages", async () => {
    const seen: (Buffer | null)[] = [];
    const monitor = new native.NetlinkMonitor([RTNLGRP_LINK], (messages) => { seen.push(...(messages ?? [null])); });
    ip("link", "add", "new0", "type", "veth", "peer", "name", "new0p");
    ip("link", "del", "new0");
    await until(() => seen.some((message) => message !== null && typeOf(message) === RTM_DELLINK));
    const types = seen.map((message) => typeOf(message!));
    expect(types[0]).toBe(RTM_NEWLINK);
    expect(types.at(-1)).toBe(RTM_DELLINK);
    for (const message of seen) expect(message!.readUInt32LE(0)).toBe(message!.length);
    monitor.close();
    monitor.close();
    const before = seen.length;
    ip("link", "set", "lo", "mtu", "1500");
    for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(seen.length).toBe(before);
  });

  it("drain() gives what has come, and the callback does not get it again", async () => {
    const seen: (Buffer | null)[] = [];
    const monitor = new native.NetlinkMonitor([RTNLGRP_LINK], (messages) => { seen.push(...(messages ?? [null])); });
    ip("link", "add", "new1", "type", "veth", "peer", "name", "new1p");
    const drained = monitor.drain();
    expect(drained.map((message) => typeOf(message))).toContain(RTM_NEWLINK);
    expect(monitor.drain()).toEqual([]);
    ip("link", "del", "new1");
    await until(() => seen.some((message) => message !== null && typeOf(message) === RTM_DELLINK));
    for (const message of drained) expect(seen).not.toContainEqual(message);
    monitor.close();
    expect(monitor.drain()).toEqual([]);
  });

  it("says null when it has lost some", async () => {
    const seen: (Buffer[] | null)[] = [];
    const monitor = new native.NetlinkMonitor([RTNLGRP_LINK], (messages) => { seen.push(messages); });
    // Nothing reads meanwhile: these calls do not return to the loop.
    const { ifindex } = (JSON.parse(ip("-j", "link", "show", "d1")) as { ifindex: number }[])[0]!;
    for (let i = 0; i < 3000; i++) native.netlinkRequest(linkMessage(RTM_NEWLINK, 0, ifindex, [[4, Buffer.from([0xdc, 5 + (i % 2), 0, 0])]]));
    await until(() => seen.includes(null));
    expect(seen.filter((batch) => batch !== null).every((batch) => batch.length <= 4096)).toBe(true);
    monitor.close();
  });

  it("refuses groups that are none", () => {
    expect(() => new native.NetlinkMonitor([0], () => {})).toThrow(RangeError);
    expect(() => new native.NetlinkMonitor("1" as never, () => {})).toThrow(TypeError);
    expect(() => new native.NetlinkMonitor([1], null as never)).toThrow(TypeError);
    expect(thrownBy(() => new native.NetlinkMonitor([1000], () => {}))).toMatchObject({ code: "EINVAL" });
  });
});
