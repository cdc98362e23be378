/** The part of dns-packet that the tests use; the package brings no types of its own. */
declare module "dns-packet" {
  export interface DecodedRecord {
    name: string;
    type: string;
    ttl?: number;
    data?: unknown;
  }
  export interface DecodedPacket {
    id?: number;
    rcode?: string;
    questions?: { name: string; type: string }[];
    answers?: DecodedRecord[];
    authorities?: DecodedRecord[];
    additionals?: DecodedRecord[];
  }
  export function encode(packet: object): Buffer;
  export function decode(message: Uint8Array): DecodedPacket;
}
