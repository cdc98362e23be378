/** Tap: frames in and out of a real device, in a namespace of the file's own. */
import { afterEach, describe, expect, it } from "vitest";
import { inNewNamespace, ip, native, thrownBy, until } from "./fixture.js";

inNewNamespace();

const open: { close(): void }[] = [];
const keep = <T extends { close(): void }>(object: T): T => (open.push(object), object);
afterEach(() => open.splice(0).forEach((object) => object.close()));

const guest = [2, 0, 0, 0, 0, 1];
/** An ARP request for 192.0.2.1, as a guest at 192.0.2.2 sends it. */
const request = Buffer.from([255, 255, 255, 255, 255, 255, ...guest, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, ...guest, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
const isReply = (frame: Buffer) => frame.readUInt16BE(12) === 0x0806 && frame.readUInt16BE(20) === 2;

function up(tap: native.Tap): native.Tap {
  ip("addr", "add", "192.0.2.1/24", "dev", tap.name);
  ip("link", "set", tap.name, "up");
  return tap;
}

describe("a tap", () => {
  it("carries frames both ways, by read", async () => {
    const tap = up(keep(new native.Tap("tap-a")));
    expect(tap.name).toBe("tap-a");
    expect(tap.ifindex).toBe((JSON.parse(ip("-j", "link", "show", "tap-a")) as { ifindex: number }[])[0]!.ifindex);
    tap.write(request);
    let reply: Buffer | undefined;
    await until(() => {
      const frame = tap.read();
      if (frame !== null && isReply(frame)) reply = frame;
      return reply !== undefined;
    });
    expect([...reply!.subarray(0, 6)]).toEqual(guest);
    while (tap.read() !== null);
    expect(tap.read()).toBeNull();
  });

  it("calls back for frames", async () => {
    const tap = up(keep(new native.Tap("tap-b")));
    const seen: Buffer[] = [];
    tap.onFrames((frames) => seen.push(...frames));
    tap.write(request);
    await until(() => seen.some(isReply));
    const replaced: Buffer[] = [];
    tap.onFrames((frames) => replaced.push(...frames));
    tap.write(request);
    await until(() => replaced.some(isReply));
    tap.close();
  });

  it("puts struct virtio_net_hdr before every frame when asked", async () => {
    const tap = up(keep(new native.Tap("tap-c", { vnetHeader: true })));
    tap.write(Buffer.concat([Buffer.alloc(10), request]));
    let reply: Buffer | undefined;
    await until(() => {
      const frame = tap.read();
      if (frame !== null && isReply(frame.subarray(10))) reply = frame;
      return reply !== undefined;
    });
    expect([...reply!.subarray(10, 16)]).toEqual(guest);
    expect(thrownBy(() => tap.write(Buffer.alloc(9)))).toMatchObject({ code: "EINVAL", syscall: "write", path: "tap-c", ifindex: tap.ifindex });
  });

  it("writes many in one call", () => {
    const tap = up(keep(new native.Tap("tap-d")));
    const received = () => (JSON.parse(ip("-j", "-s", "link", "show", "tap-d")) as { stats64: { rx: { packets: number } } }[])[0]!.stats64.rx.packets;
    const before = received();
    expect(tap.writeRepeated(request, 500)).toBeGreaterThan(0);
    expect(received() - before).toBe(500);
  });

  it("says what is wrong", () => {
    const tap = keep(new native.Tap("tap-e"));
    expect(thrownBy(() => tap.write(request))).toMatchObject({ code: "EIO", syscall: "write", path: "tap-e", ifindex: tap.ifindex });
    expect(thrownBy(() => new native.Tap("tap-e"))).toMatchObject({ code: "EBUSY", syscall: "ioctl(TUNSETIFF)", path: "tap-e" });
    expect(thrownBy(() => new native.Tap("lo"))).toMatchObject({ syscall: "ioctl(TUNSETIFF)", path: "lo" });
    expect(() => new native.Tap("0123456789abcdef")).toThrow(RangeError);
    expect(() => new native.Tap("")).toThrow(RangeError);
    expect(() => tap.writeRepeated(request, 0)).toThrow(RangeError);
    expect(() => tap.onFrames(undefined as never)).toThrow(TypeError);
  });

  it("opens a second queue, and a device that stays", () => {
    const first = keep(new native.Tap("tap-f", { multiQueue: true }));
    expect(keep(new native.Tap("tap-f", { multiQueue: true })).ifindex).toBe(first.ifindex);
    const lasting = new native.Tap("tap-g", { persist: true });
    lasting.close();
    lasting.close();
    for (const use of [() => lasting.fd, () => lasting.read(), () => lasting.write(request), () => lasting.onFrames(() => {})]) {
      expect(thrownBy(use)).toMatchObject({ code: "EBADF" });
    }
    expect(keep(new native.Tap("tap-g")).ifindex).toBe(lasting.ifindex);
    ip("link", "del", "tap-g");
  });

  it("stops when its device is deleted", async () => {
    const tap = up(keep(new native.Tap("tap-h")));
    tap.onFrames(() => {});
    ip("link", "del", "tap-h");
    for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(thrownBy(() => tap.write(request))).toMatchObject({ code: "EBADFD" });
  });
});
