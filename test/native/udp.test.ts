/** UdpBatch against node:dgram, over both families, in a namespace of the file's own. */
import dgram from "node:dgram";
import { once } from "node:events";
import { afterEach, describe, expect, it } from "vitest";
import { inNewNamespace, ip, native, openDescriptors, thrownBy, until } from "./fixture.js";

inNewNamespace();

const open: { close(): void }[] = [];
const keep = <T extends { close(): void }>(object: T): T => (open.push(object), object);
afterEach(() => open.splice(0).forEach((object) => object.close()));

async function client(family: 4 | 6, address: string): Promise<dgram.Socket> {
  const socket = keep(dgram.createSocket(family === 4 ? "udp4" : "udp6"));
  socket.bind(0, address);
  await once(socket, "listening");
  return socket;
}

/** Answers every datagram with itself. */
function echo(options: Partial<ConstructorParameters<typeof native.UdpBatch>[0]> & { address: string }, onBatch = (_count: number) => {}): native.UdpBatch {
  const cellSize = options.cellSize ?? 2048;
  const server: native.UdpBatch = keep(new native.UdpBatch({ port: 0, ...options }, (count, data, lengths, peers) => {
    onBatch(count);
    for (let i = 0; i < count; i++) server.send(data, i * cellSize, Math.min(lengths[i]!, cellSize), peers, i);
  }));
  return server;
}

function peer(family: 4 | 6, port: number, octets: number[]): Buffer {
  const out = Buffer.alloc(20);
  out.writeUInt16LE(family, 0);
  out.writeUInt16LE(port, 2);
  Buffer.from(family === 4 ? [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, ...octets] : octets).copy(out, 4);
  return out;
}

const loopback6 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

describe.each([[4, "127.0.0.1", [127, 0, 0, 1]], [6, "::1", loopback6]] as const)("over IPv%i", (family, address, octets) => {
  it("echoes, many at a time", async () => {
    const batches: number[] = [];
    const server = echo({ address, receiveBuffer: 1 << 22 }, (count) => batches.push(count));
    expect(server.address).toEqual({ address, port: server.address.port, family });
    const socket = await client(family, address);
    const seen = new Set<string>();
    socket.on("message", (message, from) => {
      expect(from.port).toBe(server.address.port);
      seen.add(message.toString());
    });
    const { port } = server.address;
    for (let i = 0; i < 200; i++) socket.send(`datagram ${i}`, port, address);
    await until(() => seen.size === 200);
    expect(batches.reduce((sum, count) => sum + count, 0)).toBe(200);
    expect(Math.max(...batches)).toBeGreaterThan(1);
    expect(Math.max(...batches)).toBeLessThanOrEqual(64);
    expect(server.dropped).toBe(0);
  });

  it("tells who asked", async () => {
    let seen: Buffer | undefined;
    const server = keep(new native.UdpBatch({ address, port: 0 }, (_count, _data, _lengths, peers) => { seen = Buffer.from(peers.subarray(0, 20)); }));
    const socket = await client(family, address);
    socket.send("x", server.address.port, address);
    await until(() => seen !== undefined);
    expect(seen).toEqual(peer(family, socket.address().port, [...octets]));
  });

  it("sends unasked, from any buffer, after flush", async () => {
    const server = keep(new native.UdpBatch({ address, port: 0 }, () => {}));
    const socket = await client(family, address);
    const seen: string[] = [];
    socket.on("message", (message) => seen.push(message.toString()));
    const peers = Buffer.concat([peer(family, 9, [...octets]), peer(family, socket.address().port, [...octets])]);
    server.send(Buffer.from("..hello.."), 2, 5, peers, 1);
    server.send(new Uint8Array(0), 0, 0, peers, 1);
    server.flush();
    server.flush();
    await until(() => seen.length === 2);
    expect(seen).toEqual(["hello", ""]);
  });

  it("marks a datagram longer than its cell, and takes one of nothing", async () => {
    const seen: { length: number; start: string }[] = [];
    const server = keep(new native.UdpBatch({ address, port: 0, cellSize: 64, batch: 8 }, (count, data, lengths) => {
      for (let i = 0; i < count; i++) seen.push({ length: lengths[i]!, start: data.toString("latin1", i * 64, i * 64 + Math.min(lengths[i]!, 64)) });
    }));
    const socket = await client(family, address);
    socket.send("a".repeat(3000), server.address.port, address);
    socket.send("b".repeat(64), server.address.port, address);
    socket.send("", server.address.port, address);
    await until(() => seen.length === 3);
    expect(seen).toEqual([{ length: 3000, start: "a".repeat(64) }, { length: 64, start: "b".repeat(64) }, { length: 0, start: "" }]);
  });

  it("carries the largest datagram", async () => {
    const server = echo({ address, cellSize: 65536, batch: 2 });
    const socket = await client(family, address);
    const big = Buffer.alloc(65507, 7);
    socket.send(big, server.address.port, address);
    const [answer] = await once(socket, "message") as [Buffer];
    expect(answer.equals(big)).toBe(true);
  });

  it("counts what it could not send, and goes on", () => {
    const server = keep(new native.UdpBatch({ address, port: 0 }, () => {}));
    const nowhere = family === 4 ? [203, 0, 113, 1] : [0x20, 1, 0xd, 0xb8, ...new Array<number>(11).fill(0), 1];
    server.send(Buffer.from("x"), 0, 1, peer(family, 9, nowhere), 0);
    server.send(Buffer.from("x"), 0, 1, peer(family, server.address.port, [...octets]), 0);
    server.flush();
    expect(server.dropped).toBe(1);
  });

  it("sends more than its queue holds", async () => {
    const server = keep(new native.UdpBatch({ address, port: 0 }, () => {}));
    let got = 0;
    const sink = keep(new native.UdpBatch({ address, port: 0, receiveBuffer: 1 << 24 }, (count) => { got += count; }));
    const to = peer(family, sink.address.port, [...octets]);
    for (let i = 0; i < 1000; i++) server.send(Buffer.alloc(1000), 0, 1000, to, 0);
    server.flush();
    await until(() => got + server.dropped === 1000);
    expect(got).toBeGreaterThan(0);
  });
});

describe("sharing and devices", () => {
  it("shares a port when asked to", () => {
    const first = keep(new native.UdpBatch({ address: "127.0.0.1", port: 0, reusePort: true }, () => {}));
    const { port } = first.address;
    expect(keep(new native.UdpBatch({ address: "127.0.0.1", port, reusePort: true }, () => {})).address.port).toBe(port);
    const error = thrownBy(() => new native.UdpBatch({ address: "127.0.0.1", port }, () => {}));
    expect(error).toMatchObject({ code: "EADDRINUSE", syscall: "bind" });
    expect(error.message).toContain(`127.0.0.1:${port}`);
  });

  it("is bound to a device", async () => {
    ip("link", "add", "u0", "type", "veth", "peer", "name", "u1");
    ip("addr", "add", "198.51.100.1/24", "dev", "u0");
    ip("link", "set", "u0", "up");
    let seen = 0;
    const server = keep(new native.UdpBatch({ address: "0.0.0.0", port: 0, device: "u0" }, (count) => { seen += count; }));
    const everywhere = echo({ address: "127.0.0.1" });
    const socket = await client(4, "127.0.0.1");
    socket.send("x", server.address.port, "127.0.0.1"); // comes in on lo
    socket.send("x", everywhere.address.port, "127.0.0.1");
    await once(socket, "message");
    expect(seen).toBe(0);
    expect(thrownBy(() => new native.UdpBatch({ address: "0.0.0.0", port: 0, device: "nobody" }, () => {})))
      .toMatchObject({ code: "ENODEV", syscall: "setsockopt(SO_BINDTODEVICE)" });
  });

  it("keeps IPv4 off an IPv6 socket", async () => {
    const six = keep(new native.UdpBatch({ address: "::", port: 0 }, () => {}));
    const four = keep(new native.UdpBatch({ address: "0.0.0.0", port: six.address.port }, () => {}));
    expect(four.address).toEqual({ address: "0.0.0.0", port: six.address.port, family: 4 });
  });
});

describe("close and checks", () => {
  it("closes once, and is unusable afterwards", async () => {
    const before = openDescriptors();
    const server = new native.UdpBatch({ address: "127.0.0.1", port: 0 }, () => {});
    server.close();
    server.close();
    expect(openDescriptors()).toBe(before);
    for (const use of [() => server.address, () => server.flush(), () => server.send(Buffer.alloc(1), 0, 1, Buffer.alloc(20), 0)]) {
      expect(thrownBy(use)).toMatchObject({ code: "EBADF" });
    }
    expect(server.dropped).toBe(0);
  });

  it("may be closed in its own callback, and the answers still leave", async () => {
    const server: native.UdpBatch = new native.UdpBatch({ address: "127.0.0.1", port: 0 }, (_count, data, lengths, peers) => {
      server.send(data, 0, lengths[0]!, peers, 0);
      server.close();
    });
    const socket = await client(4, "127.0.0.1");
    socket.send("last", server.address.port, "127.0.0.1");
    const [answer] = await once(socket, "message") as [Buffer];
    expect(answer.toString()).toBe("last");
  });

  it("does not let its memory be taken away", async () => {
    const sizes: number[] = [];
    const server = keep(new native.UdpBatch({ address: "127.0.0.1", port: 0 }, (_count, data, lengths, peers) => {
      for (const view of [data, lengths, peers]) {
        try {
          structuredClone(view.buffer, { transfer: [view.buffer as ArrayBuffer] }); // Node 20 copies, later ones throw
        } catch {}
        sizes.push(view.byteLength);
      }
    }));
    const socket = await client(4, "127.0.0.1");
    socket.send("x", server.address.port, "127.0.0.1");
    await until(() => sizes.length > 0);
    expect(sizes).toEqual([64 * 2048, 64 * 4, 64 * 20]);
  });

  const to4 = peer(4, 9, [127, 0, 0, 1]);
  const data = Buffer.alloc(10);
  it.each<[string, (server: native.UdpBatch) => unknown, ErrorConstructor]>([
    ["an offset beyond the data", (server) => server.send(data, 11, 0, to4, 0), RangeError],
    ["a length beyond the data", (server) => server.send(data, 5, 6, to4, 0), RangeError],
    ["a negative offset", (server) => server.send(data, -1, 1, to4, 0), RangeError],
    ["more than a datagram carries", (server) => server.send(Buffer.alloc(70000), 0, 65508, to4, 0), RangeError],
    ["a peer beyond the peers", (server) => server.send(data, 0, 1, to4, 1), RangeError],
    ["peers of 19 octets", (server) => server.send(data, 0, 1, to4.subarray(0, 19), 0), RangeError],
    ["a peer of the other family", (server) => server.send(data, 0, 1, peer(6, 9, loopback6), 0), RangeError],
    ["a peer that is not IPv4-mapped", (server) => server.send(data, 0, 1, Buffer.concat([to4.subarray(0, 4), Buffer.alloc(16)]), 0), RangeError],
    ["data as text", (server) => server.send("x" as never, 0, 1, to4, 0), TypeError],
  ])("send refuses %s", (_name, call, kind) => {
    const server = keep(new native.UdpBatch({ address: "127.0.0.1", port: 0 }, () => {}));
    expect(() => call(server)).toThrow(kind);
  });

  it.each<[string, object, ErrorConstructor]>([
    ["a name", { address: "localhost", port: 0 }, RangeError],
    ["a zone", { address: "fe80::1%lo", port: 0 }, RangeError],
    ["port 65536", { address: "::1", port: 65536 }, RangeError],
    ["no port", { address: "::1" }, TypeError],
    ["cells of 63 octets", { address: "::1", port: 0, cellSize: 63 }, RangeError],
    ["cells of 65537 octets", { address: "::1", port: 0, cellSize: 65537 }, RangeError],
    ["a batch of 0", { address: "::1", port: 0, batch: 0 }, RangeError],
    ["a batch of 1025", { address: "::1", port: 0, batch: 1025 }, RangeError],
    ["a device name of 16 octets", { address: "::1", port: 0, device: "0123456789abcdef" }, RangeError],
  ])("construction refuses %s", (_name, options, kind) => expect(() => new native.UdpBatch(options as never, () => {})).toThrow(kind));
});
