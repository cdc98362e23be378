/**
 * A guest that speaks DNS by hand, and a reader for what it gets: for the DNS rows.
 *
 * Holds always: messages go out as given, also malformed ones. The reader (dns-packet) is not ours, so it checks ours.
 */
import { decode as decodeMessage, type DecodedPacket } from "dns-packet";
import path from "node:path";
import { nameBytes, typeNumber } from "../lib/dns-message.mjs";
import { ROOT, type Service, type World } from "../lib/world.mjs";

export interface Exchange {
  answers: Buffer[];
  /** where each answer came from */
  from: string[];
  closed: boolean;
}

export interface AskOptions {
  transport?: "udp" | "tcp";
  server?: string;
  /** how many answers to wait for; default one for each chunk */
  expect?: number;
  waitMs?: number;
}

export class GuestResolver {
  #id = 0;
  readonly #waiting = new Map<number, (result: Exchange) => void>();
  readonly #service: Service;

  private constructor(world: World) {
    this.#service = world.own(world.guest.start([process.execPath, path.join(ROOT, "test/lib/dns-client.mjs")]));
    this.#service.onLine = (line) => {
      const result = JSON.parse(line) as { id: number; answers?: string[]; from?: string[]; closed?: boolean };
      this.#waiting.get(result.id)?.({
        answers: (result.answers ?? []).map((text) => Buffer.from(text, "hex")),
        from: (result.from ?? []).map((text) => text.replace(/%.*/, "")), closed: result.closed ?? false,
      });
      this.#waiting.delete(result.id);
    };
  }

  static async open(world: World): Promise<GuestResolver> {
    const guest = new GuestResolver(world);
    await guest.#service.line((line) => line.includes('"id":0'), { what: "DNS client" });
    return guest;
  }

  /** UDP: one datagram per chunk. TCP: the chunks as they are. */
  send(chunks: readonly Uint8Array[], options: AskOptions = {}): Promise<Exchange> {
    const id = ++this.#id;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      this.#service.write(JSON.stringify({
        id, transport: options.transport ?? "udp", server: options.server ?? "8.8.8.8", chunks: chunks.map((chunk) => Buffer.from(chunk).toString("hex")),
        expect: options.expect ?? chunks.length, waitMs: options.waitMs ?? 3000,
      }));
    });
  }

  /** A fair question; null when no answer came. */
  async ask(name: string, type: string | number, options: AskOptions = {}): Promise<(DecodedPacket & { raw: Buffer; from: string }) | null> {
    const message = query(name, type);
    const { answers, from } = await this.send([options.transport === "tcp" ? framed(message) : message], { expect: 1, ...options });
    const raw = answers[0];
    return raw === undefined ? null : { ...decodeMessage(raw), raw, from: from[0]! };
  }
}

let ids = 1;

export interface QueryFields {
  id?: number;
  flags?: number;
  class?: number;
  /** raw name instead of text */
  wireName?: Uint8Array;
  questions?: number;
  /** octets after the question, counted as `additional` records */
  tail?: Uint8Array;
  additional?: number;
}

export const OPT = Buffer.from([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);

export function query(name: string, type: string | number, fields: QueryFields = {}): Buffer {
  const header = Buffer.alloc(12);
  header.writeUInt16BE(fields.id ?? (ids++ & 0xffff), 0);
  header.writeUInt16BE(fields.flags ?? 0x0100, 2);
  header.writeUInt16BE(fields.questions ?? 1, 4);
  header.writeUInt16BE(fields.additional ?? 1, 10);
  const end = Buffer.alloc(4);
  end.writeUInt16BE(typeNumber(type), 0);
  end.writeUInt16BE(fields.class ?? 1, 2);
  return Buffer.concat([header, fields.wireName ?? nameBytes(name), end, fields.tail ?? OPT]);
}

/** With the length prefix of DNS over TCP (RFC 1035 section 4.2.2); `length` to make one that lies. */
export function framed(message: Uint8Array, length = message.length): Buffer {
  return Buffer.concat([Buffer.of(length >> 8, length & 255), message]);
}

export function rcode(message: Buffer): number {
  return message.readUInt16BE(2) & 15;
}

export const RCODE = { noError: 0, formErr: 1, servFail: 2, nxDomain: 3, notImp: 4, refused: 5 } as const;

/** Addresses of all A and AAAA records in any section. */
export function addresses(packet: DecodedPacket): string[] {
  return [...(packet.answers ?? []), ...(packet.authorities ?? []), ...(packet.additionals ?? [])].flatMap((record) => (record.type === "A" || record.type === "AAAA" ? [String(record.data)] : []));
}
