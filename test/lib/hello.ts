/** ClientHellos written by hand, so that a test says what no client would: odd names, odd records, a second hello. */
export interface HelloParts {
  /** server_name entries as octets (latin1); absent: no extension. */
  names?: readonly string[];
  alpn?: readonly string[];
  /** octets of padding (RFC 7685), before the name. */
  padding?: number;
  ech?: boolean;
  earlyData?: boolean;
  /** with a key share that no server takes, so that it asks again (HelloRetryRequest). */
  retry?: boolean;
  /** further extensions, type and content. */
  more?: readonly (readonly [number, Buffer])[];
}

const u8 = (n: number): Buffer => Buffer.of(n);
const u16 = (n: number): Buffer => Buffer.of(n >> 8, n & 255);
const vector8 = (content: Buffer): Buffer => Buffer.concat([u8(content.length), content]);
const vector16 = (content: Buffer): Buffer => Buffer.concat([u16(content.length), content]);

export function serverNames(names: readonly string[]): Buffer {
  return vector16(Buffer.concat(names.map((name) => Buffer.concat([u8(0), vector16(Buffer.from(name, "latin1"))]))));
}

/** The handshake message, with its header: TLS 1.3 and 1.2, P-256 and P-384. */
export function clientHello({ names, alpn, padding, ech, earlyData, retry, more = [] }: HelloParts): Buffer {
  const extensions: (readonly [number, Buffer])[] = [];
  if (padding !== undefined) extensions.push([21, Buffer.alloc(padding)]);
  if (names !== undefined) extensions.push([0, serverNames(names)]);
  if (alpn !== undefined) extensions.push([16, vector16(Buffer.concat(alpn.map((protocol) => vector8(Buffer.from(protocol)))))]);
  extensions.push([43, vector8(Buffer.of(3, 4, 3, 3))], [10, vector16(Buffer.of(0, 23, 0, 24))], [13, vector16(Buffer.of(4, 3, 8, 4, 4, 1))], [11, Buffer.of(1, 0)]);
  if (retry === true) extensions.push([51, vector16(Buffer.alloc(0))]);
  if (ech === true) extensions.push([0xfe0d, Buffer.alloc(60, 1)]);
  if (earlyData === true) extensions.push([42, Buffer.alloc(0)]);
  extensions.push(...more);
  const body = Buffer.concat([
    Buffer.of(3, 3), Buffer.alloc(32, 7), vector8(Buffer.alloc(32, 9)), vector16(Buffer.of(0x13, 1, 0xc0, 0x2b)), vector8(Buffer.of(0)),
    vector16(Buffer.concat(extensions.map(([type, content]) => Buffer.concat([u16(type), vector16(content)])))),
  ]);
  return Buffer.concat([u8(1), Buffer.of(body.length >> 16), u16(body.length & 0xffff), body]);
}

/** @param sizes of the records' contents, the last one for all that follow. */
export function records(message: Buffer, sizes: readonly number[] = [16_384]): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0, i = 0; at < message.length; i++) {
    const content = message.subarray(at, at + (sizes[Math.min(i, sizes.length - 1)] as number));
    parts.push(Buffer.of(22, 3, 1), vector16(content));
    at += content.length;
  }
  return Buffer.concat(parts);
}

export const helloRecords = (parts: HelloParts, sizes?: readonly number[]): Buffer => records(clientHello(parts), sizes);
