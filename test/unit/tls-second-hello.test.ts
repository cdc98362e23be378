/** What passes after the first hello, until no second one can follow. TLS test 8, row A43. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { SecondHello } from "../../src/tls/second-hello.js";
import { helloRecords } from "../lib/hello.js";

const RETRY = Buffer.from("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c", "hex");
const serverHello = (random: Buffer): Buffer => Buffer.concat([Buffer.of(22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3), random, Buffer.alloc(52)]);
const CIPHER_SPEC = Buffer.of(20, 3, 3, 0, 1, 1), EARLY = Buffer.concat([Buffer.of(23, 3, 3, 0, 50), Buffer.alloc(50, 22)]);
const good = helloRecords({ names: ["shop.example"] }), bad = helloRecords({ names: ["other.example"] });

/** What the far side gets of it; null: the connection was ended. */
function passed(watch: SecondHello, octets: Buffer, sizes: readonly number[]): Buffer | null {
  const out: Buffer[] = [];
  for (let at = 0, i = 0; at < octets.length; i++) {
    const size = sizes[i % sizes.length] as number;
    const result = watch.fromGuest(octets.subarray(at, at + size));
    if (result === "refuse") return null;
    out.push(result.pass);
    at += size;
  }
  return Buffer.concat(out);
}
const watching = (): SecondHello => new SecondHello("shop.example");
const segments = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 6 });

test("a second hello with the same name passes, in any pieces, unaltered; with another, none, or one in pieces it does not", () => {
  fc.assert(fc.property(segments, fc.constantFrom(Buffer.alloc(0), CIPHER_SPEC, EARLY, Buffer.concat([EARLY, CIPHER_SPEC])), fc.integer({ min: 1, max: 300 }), (sizes, before, cut) => {
    const stream = Buffer.concat([before, good, EARLY, Buffer.from("anything")]);
    expect(passed(watching(), stream, sizes)?.equals(stream)).toBe(true);
    for (const hello of [bad, helloRecords({ names: ["other.example"] }, [cut]), helloRecords({}), helloRecords({ names: ["shop.example", "other.example"] })]) {
      expect(passed(watching(), Buffer.concat([before, hello]), sizes)).toBeNull();
    }
  }));
});

test("not one octet of a second hello passes before it is whole", () => {
  const watch = watching();
  expect(passed(watch, Buffer.concat([CIPHER_SPEC, bad.subarray(0, -1)]), [1])?.equals(CIPHER_SPEC)).toBe(true);
  expect(watch.fromGuest(bad.subarray(-1))).toBe("refuse");
});

test("a ServerHello ends the look, a HelloRetryRequest does not, in whatever pieces they come", () => {
  fc.assert(fc.property(segments, (sizes) => {
    for (const [hello, looked] of [[serverHello(Buffer.alloc(32, 1)), false], [serverHello(RETRY), true]] as const) {
      const watch = watching();
      for (let at = 0, i = 0; at < hello.length; i++) {
        const size = sizes[i % sizes.length] as number;
        watch.fromServer(hello.subarray(at, at + size));
        at += size;
      }
      expect(watch.done).toBe(!looked);
      expect(passed(watch, bad, sizes) === null).toBe(looked);
    }
  }));
});

test("a handshake message that is no hello, with one behind it, passes neither before an answer nor after a retry; TLS 1.2 goes on with it", () => {
  // HelloRequest, NewSessionTicket, ClientKeyExchange, Finished: empty, in a record of their own and in one with the hello.
  for (const type of [0, 4, 16, 20]) {
    const other = Buffer.of(type, 0, 0, 0), alone = Buffer.concat([Buffer.of(22, 3, 3, 0, 4), other, bad]);
    const length = bad.readUInt16BE(3) + 4, together = Buffer.concat([Buffer.of(22, 3, 3, length >> 8, length & 255), other, bad.subarray(5)]);
    for (const stream of [alone, together, Buffer.concat([CIPHER_SPEC, alone])]) {
      for (const answer of [Buffer.alloc(0), serverHello(RETRY).subarray(0, 42), serverHello(RETRY)]) {
        const watch = watching();
        watch.fromServer(answer);
        expect(passed(watch, stream, [7])).toBeNull();
      }
    }
  }
  // However an answer is cut into records, it is known what it is; a warning may come before it.
  const retry = serverHello(RETRY).subarray(5), pieces = (message: Buffer, size: number): Buffer => Buffer.concat(Array.from({ length: Math.ceil(message.length / size) }, (_, i) => {
    const part = message.subarray(size * i, size * (i + 1));
    return Buffer.concat([Buffer.of(22, 3, 3, 0, part.length), part]);
  }));
  for (const answer of [pieces(retry, 1), pieces(retry, 10), Buffer.concat([Buffer.of(21, 3, 3, 0, 2, 1, 112), pieces(retry, 37)])]) {
    for (const type of [0, 16, 20]) {
      const watch = watching();
      watch.fromServer(answer);
      expect(watch.done).toBe(false);
      expect(passed(watch, Buffer.concat([Buffer.of(22, 3, 3, 0, 4, type, 0, 0, 0), bad]), [7])).toBeNull();
    }
  }
  const hello = serverHello(Buffer.alloc(32, 1)).subarray(5), exchange = Buffer.concat([Buffer.of(22, 3, 3, 0, 4, 16, 0, 0, 0), EARLY]);
  for (const answer of [serverHello(Buffer.alloc(32, 1)), pieces(hello, 10), pieces(hello, 1), Buffer.concat([Buffer.of(21, 3, 3, 0, 2, 1, 112), serverHello(Buffer.alloc(32, 1))])]) {
    const watch = watching();
    watch.fromServer(answer);
    expect(passed(watch, exchange, [3])?.equals(exchange)).toBe(true);
  }
});

test("a ServerHello that comes while a second hello is on its way does not let that through", () => {
  const watch = watching();
  expect(passed(watch, bad.subarray(0, 20), [20])?.length).toBe(0);
  watch.fromServer(serverHello(Buffer.alloc(32, 1)));
  expect(passed(watch, bad.subarray(20), [20])).toBeNull();
});

test("what is no TLS record ends the connection", () => {
  for (const octets of [Buffer.from("GET / HTTP/1.1\r\n"), Buffer.of(22, 3, 3, 0, 0, 1), Buffer.of(23, 3, 3, 255, 255, 1)]) expect(passed(watching(), octets, [octets.length])).toBeNull();
});

test("any octets of both sides: what passes is a beginning of what came, and nothing throws", () => {
  fc.assert(fc.property(fc.array(fc.tuple(fc.boolean(), fc.uint8Array({ maxLength: 80 })), { maxLength: 12 }), (chunks) => {
    const watch = watching();
    const given: Buffer[] = [], out: Buffer[] = [];
    for (const [guest, octets] of chunks) {
      const chunk = Buffer.from(octets);
      if (!guest) {
        watch.fromServer(chunk);
        continue;
      }
      const result = watch.fromGuest(chunk);
      if (result === "refuse") break;
      given.push(chunk);
      out.push(result.pass);
    }
    const all = Buffer.concat(given), through = Buffer.concat(out);
    expect(all.subarray(0, through.length).equals(through)).toBe(true);
  }));
});
