/**
 * What passed a device of a world's namespace, as tcpdump wrote it: TCP conversations put together again, and whole files to search.
 * Reads only pcap files with Ethernet frames, as tcpdump makes them of veth and tap devices.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { type Namespace, type Service, until, type World } from "./world.mjs";

export class Capture {
  private constructor(readonly file: string, private readonly service: Service) {}

  /** Captures from when it resolves on. @param filter of tcpdump, such as "tcp port 443". */
  static async start(world: World, namespace: Namespace, device: string, filter: string): Promise<Capture> {
    const file = path.join(world.dir, `${namespace.name}-${device}-${Math.random().toString(36).slice(2)}.pcap`);
    // As root: the folder is root's alone.
    const service = world.own(namespace.start(["tcpdump", "-i", device, "-n", "-U", "--immediate-mode", "-B", "65536", "-Z", "root", "-s", "0", "-w", file, ...filter.split(" ")]));
    await until("tcpdump listens", () => {
      if (service.ended !== null) throw new Error(service.report());
      return service.errors.some((line) => line.includes("listening on"));
    });
    return new Capture(file, service);
  }

  /** Octets that one side said in each conversation that it began, by its port. @param from the address, as octets in hexadecimal. */
  said(from: string): Map<number, Buffer> {
    const pieces = new Map<number, Map<number, Buffer>>();
    for (const frame of frames(readFileSync(this.file))) {
      const segment = tcp(frame);
      if (segment === null || segment.source !== from || segment.octets.length === 0) continue;
      const of = pieces.get(segment.port) ?? new Map<number, Buffer>();
      if ((of.get(segment.sequence)?.length ?? 0) < segment.octets.length) of.set(segment.sequence, segment.octets);
      pieces.set(segment.port, of);
    }
    return new Map([...pieces].map(([port, of]) => {
      // Conversations here are short: their numbers wrap in one of a million.
      let end = 0;
      const parts: Buffer[] = [];
      for (const [at, octets] of [...of].sort(([a], [b]) => a - b)) {
        const fresh = end === 0 ? octets : octets.subarray(Math.max(0, end - at));
        parts.push(fresh);
        end = Math.max(end, at + octets.length);
      }
      return [port, Buffer.concat(parts)];
    }));
  }

  /** Ends it; all that passed before is in the file. */
  async stop(): Promise<void> { await this.service.stop("SIGINT"); }
}

function* frames(file: Buffer): Generator<Buffer> {
  for (let at = 24; at + 16 <= file.length;) {
    const length = file.readUInt32LE(at + 8);
    yield file.subarray(at + 16, at + 16 + length);
    at += 16 + length;
  }
}

function tcp(frame: Buffer): { readonly source: string; readonly port: number; readonly sequence: number; readonly octets: Buffer } | null {
  const six = frame.readUInt16BE(12) === 0x86dd, ip = frame.subarray(14);
  if (!six && frame.readUInt16BE(12) !== 0x0800) return null;
  if ((six ? ip[6] : ip[9]) !== 6) return null;
  const header = six ? 40 : ((ip[0] as number) & 15) * 4, end = six ? 40 + ip.readUInt16BE(4) : ip.readUInt16BE(2);
  const segment = ip.subarray(header, end);
  return { source: (six ? ip.subarray(8, 24) : ip.subarray(12, 16)).toString("hex"), port: segment.readUInt16BE(0), sequence: segment.readUInt32BE(4), octets: segment.subarray(((segment[12] as number) >> 4) * 4) };
}
