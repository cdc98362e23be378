/** ClientHellos: whole, in pieces, odd and hostile. Tests 1, 2, 4 and 6 of the TLS part of docs/THREATS.md, rows A39 and A41. */
import { createServer, type AddressInfo } from "node:net";
import { connect } from "node:tls";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { canonicalLabels, HELLO_MAX, HelloReader, type HelloState, parseClientHello, RAW_MAX, type ServerName } from "../../src/tls/hello.js";
import { clientHello, helloRecords, records, serverNames } from "../lib/hello.js";

const named = (name: string): ServerName => ({ kind: "name", labels: name.split(".") });

function read(octets: Buffer, sizes: readonly number[] = [octets.length]): HelloReader {
  const reader = new HelloReader();
  for (let at = 0, i = 0; at < octets.length; i++) {
    const size = Math.max(1, sizes[i % sizes.length] as number);
    reader.push(octets.subarray(at, at + size));
    at += size;
  }
  return reader;
}

describe("one hello, however it comes", () => {
  const parts = { names: ["Shop.Example"], alpn: ["h2", "http/1.1"], ech: true };
  const whole = read(helloRecords(parts));

  test("its facts", () => {
    expect(whole.state).toBe("hello");
    expect(whole.hello).toEqual({ serverName: named("shop.example"), alpn: ["h2", "http/1.1"], ech: true, earlyData: false, modern: true });
  });

  test("A39, TLS test 1: in one-octet records, in one-octet segments, in both", () => {
    for (const octets of [helloRecords(parts), helloRecords(parts, [1])]) {
      for (const reader of [read(octets), read(octets, [1])]) {
        expect(reader.hello).toEqual(whole.hello);
        expect(reader.octets.equals(octets)).toBe(true);
      }
    }
  });

  test("A39: any cut into records and segments reads the same, and not one octet before its end", () => {
    fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 80 }), { minLength: 1, maxLength: 8 }), fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 8 }), (cuts, segments) => {
      const octets = helloRecords(parts, cuts);
      expect(read(octets, segments).hello).toEqual(whole.hello);
      expect(read(octets.subarray(0, -1), segments).state).toBe("more");
    }));
  });

  test("TLS test 2: a name behind 20 KB of other extensions", () => {
    const reader = read(helloRecords({ ...parts, padding: 20_000 }), [1400]);
    expect(reader.hello?.serverName).toEqual(named("shop.example"));
  });

  test("what follows the hello is told apart from it", () => {
    const hello = helloRecords(parts), second = helloRecords({ names: ["other.example"] });
    const reader = read(Buffer.concat([hello, second]));
    expect(reader.read.equals(hello)).toBe(true);
    expect(reader.after.equals(second)).toBe(true);
  });

  test("a real client's: Node", async () => {
    const server = createServer();
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const octets = new Promise<Buffer>((resolve) => server.once("connection", (socket) => socket.once("data", (data) => { resolve(data); socket.destroy(); })));
    const client = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", servername: "shop.example", ALPNProtocols: ["h2"] });
    client.on("error", () => undefined);
    const reader = read(await octets);
    server.close();
    expect(reader.hello).toMatchObject({ serverName: named("shop.example"), alpn: ["h2"], modern: true });
  });

  test("extensions that nobody knows, as GREASE has them", () => {
    const grease = [[0x0a0a, Buffer.alloc(0)], [0xfafa, Buffer.of(0)]] as const;
    expect(read(helloRecords({ ...parts, more: grease })).hello).toEqual(whole.hello);
  });
});

describe("what is none", () => {
  test.each<[string, Buffer, HelloState]>([
    ["TLS test 4: a record of more than 16 KiB and 256", Buffer.of(22, 3, 1, 0x41, 1, 1), "too-large"],
    ["TLS test 4: a hello of 70 KB", helloRecords({ names: ["a.example"], padding: 65_000, more: [[99, Buffer.alloc(5_000)]] }), "too-large"],
    ["A45 SSH", Buffer.from("SSH-2.0-OpenSSH_9.6\r\n"), "not-tls"],
    ["A45 SOCKS5", Buffer.of(5, 1, 0), "not-tls"],
    ["A45 plain HTTP", Buffer.from("GET / HTTP/1.1\r\n"), "not-tls"],
    ["A45 OpenVPN", Buffer.of(0, 14, 0x38, 1, 2, 3), "not-tls"],
    ["an SSLv2 hello", Buffer.of(0x80, 46, 1, 3, 1, 0, 21), "not-tls"],
    ["another version of records", Buffer.of(22, 2, 0, 0, 1, 1), "not-tls"],
    ["an alert", Buffer.of(21, 3, 1, 0, 2, 1, 0), "not-tls"],
    ["an empty record", Buffer.of(22, 3, 1, 0, 0), "malformed"],
    ["a ServerHello", Buffer.of(22, 3, 1, 0, 4, 2, 0, 0, 0), "malformed"],
    ["a hello that is cut by another kind of record", Buffer.concat([helloRecords({ names: ["a.example"] }, [50]).subarray(0, 55), Buffer.of(21, 3, 1, 0, 2, 1, 0)]), "malformed"],
    ["a hello with a second message in its record", records(Buffer.concat([clientHello({ names: ["a.example"] }), clientHello({ names: ["b.example"] })])), "malformed"],
    ["a second server_name extension", helloRecords({ names: ["a.example"], more: [[0, serverNames(["b.example"])]] }), "malformed"],
    ["an ALPN without a protocol", helloRecords({ names: ["a.example"], alpn: [] }), "malformed"],
    ["a hello of four octets", records(Buffer.of(1, 0, 0, 0)), "malformed"],
  ])("%s", (_what, octets, state) => expect(read(octets).state).toBe(state));

  test("nothing is kept beyond the bound, in whatever records it comes", () => {
    const message = clientHello({ names: ["a.example"], padding: 65_000 });
    message[1] = 0;
    message.writeUInt16BE(65_530, 2);
    const reader = read(Buffer.concat([records(message, [1]), Buffer.alloc(0)]), [1448]);
    expect(reader.octets.length).toBeLessThanOrEqual(RAW_MAX + 1448);
    expect(HELLO_MAX).toBe(65_536);
  });

  test("any octets give a result and no exception", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 2_000 }), (octets) => { read(Buffer.from(octets)); }));
    fc.assert(fc.property(fc.uint8Array({ maxLength: 500 }), (octets) => { parseClientHello(Buffer.from(octets)); }));
    const hello = helloRecords({ names: ["shop.example"], alpn: ["h2"], ech: true, earlyData: true });
    fc.assert(fc.property(fc.array(fc.tuple(fc.nat(hello.length - 1), fc.nat(255)), { maxLength: 12 }), fc.nat(hello.length), (changes, cut) => {
      const octets = Buffer.from(hello);
      for (const [at, value] of changes) octets[at] = value;
      const { state, hello: facts } = read(octets.subarray(0, cut), [7, 100]);
      expect(facts === null).toBe(state !== "hello");
    }), { numRuns: 2_000 });
  });
});

describe("A41, TLS test 6: names", () => {
  const nameOf = (...names: string[]): ServerName | undefined => read(helloRecords({ names })).hello?.serverName;

  test.each([["ALLOWED.Example", "allowed.example"], ["xn--bcher-kva.example", "xn--bcher-kva.example"], ["_dmarc.a_b.example", "_dmarc.a_b.example"], ["a--b.example", "a--b.example"]])("%s is %s", (said, is) => {
    expect(nameOf(said)).toEqual(named(is));
  });

  test.each(["", ".", "allowed.example.", ".allowed.example", "a..b", "*.example", "allowed.example\0.evil", "a/../b c:80@x", "b\xfccher.example", "\u212aelvin.example", "1.2.3.4", "127.1", "2130706433", "0x7f.1", "0x7f000001", "::1", "[::1]", "a.0x1", "1.1.1.1\t",
    "-a.example", "a-.example", `${"a".repeat(64)}.example`, `${"a.".repeat(127)}example`, "a".repeat(300), "example.123"])("%j is none", (said) => {
    expect(nameOf(said)).toEqual({ kind: "unreadable" });
    expect(canonicalLabels(said)).toBeNull();
  });

  test("two names, an empty list, another kind of name, a list that is cut", () => {
    expect(nameOf("a.example", "b.example")).toEqual({ kind: "unreadable" });
    expect(nameOf()).toEqual({ kind: "unreadable" });
    for (const content of [Buffer.alloc(0), Buffer.of(0, 4, 1, 0, 1, 97), Buffer.of(0, 9, 0, 0, 1, 97)]) {
      expect(read(helloRecords({ more: [[0, content]] })).hello?.serverName).toEqual({ kind: "unreadable" });
    }
    expect(read(helloRecords({})).hello?.serverName).toEqual({ kind: "absent" });
  });

  test("what is a name is never an address, nor anything but letters, digits, hyphens and underscores", () => {
    fc.assert(fc.property(fc.string({ unit: fc.constantFrom(..."aZ09-_.x\0 :@/é%[]"), maxLength: 30 }), (text) => {
      const labels = canonicalLabels(text);
      if (labels !== null) expect(labels.join(".")).toMatch(/^[a-z0-9_.-]*[a-z_-][a-z0-9_.-]*$/);
    }), { numRuns: 2_000 });
  });
});
