/**
 * Under the programs: a drop that hangs on a tap's name and not on its ifindex. A device that a VMM deletes and makes again
 * under the same name has no program until it is attached again; what it sends lacks the mark that from_guest puts on every
 * packet it allows (globals.mark), and nftables drops it, in the IP layers and in bridges.
 *
 * Holds always: the tables are this instance's own, made and changed in one transaction each; while a name is in them, only
 * marked packets come in from it. They outlive the process, like the programs, and go with close().
 * Does not: touch any table of the host's, or judge anything.
 */
import { spawnSync } from "node:child_process";
import { netlinkBatch } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { checkInterfaceName } from "./links.js";
import { errnoOf } from "./request.js";
import { encodeAttributes, type Attribute } from "./rtnetlink.js";

/** One bit of the packet mark, away from those of Docker, Kubernetes (0x4000, 0x8000), Calico (0xffff0000 by default) and Cilium (0x0f00). */
export const ALLOWED_MARK = 0x0000_2000;

const FAMILIES = ["inet", "bridge"] as const;

export class BaseDrop {
  readonly #table: string;

  private constructor(table: string) { this.#table = table; }

  /**
   * Makes the tables, or takes over those of a former process with the names in them.
   * @param instance letters, digits, dots, dashes and underscores.
   * @returns null, with the reason, where nftables cannot be used.
   */
  static open(instance: string): BaseDrop | { readonly missing: string } {
    const table = `enforcer_${instance.replaceAll(/[^A-Za-z0-9_]/g, (letter) => `_${letter.charCodeAt(0).toString(16)}_`)}`;
    const mark = `0x${ALLOWED_MARK.toString(16)}`;
    const script = FAMILIES.map((family) => `
      table ${family} ${table} {
        set taps { type ifname; }
        chain unjudged {
          type filter hook prerouting priority -350; policy accept;
        }
      }
      flush chain ${family} ${table} unjudged
      add rule ${family} ${table} unjudged iifname @taps meta mark & ${mark} == 0 counter drop`).join("\n");
    const failure = nft(script);
    return failure === null ? new BaseDrop(table) : { missing: failure };
  }

  /** From now on nothing comes in from a device of this name but what was allowed. @throws EnforcerError E_ATTACH. */
  add(tap: string): void { this.#change(Message.newSetElement, tap, Flag.create); }

  /** No error when it was not there. @throws EnforcerError E_ATTACH. */
  remove(tap: string): void { this.#change(Message.deleteSetElement, tap, 0, "ENOENT"); }

  /** Packets that the tables dropped, for the metrics. */
  dropped(): number {
    let sum = 0;
    for (const family of FAMILIES) {
      const { status, stdout } = spawnSync("nft", ["-j", "list", "chain", family, this.#table, "unjudged"], { encoding: "utf8" });
      if (status !== 0) continue;
      for (const match of stdout.matchAll(/"packets":\s*(\d+)/g)) sum += Number(match[1]);
    }
    return sum;
  }

  close(): void { nft(FAMILIES.map((family) => `table ${family} ${this.#table}\ndelete table ${family} ${this.#table}`).join("\n")); }

  /** One transaction for both families, without a process: an attach has a few milliseconds. */
  #change(type: number, tap: string, flags: number, tolerated?: string): void {
    checkInterfaceName(tap);
    try {
      netlinkBatch(transaction(this.#table, type, tap, flags));
    } catch (cause) {
      if (tolerated !== undefined && errnoOf(cause) === tolerated) return;
      throw new EnforcerError("E_ATTACH", `nftables refused the drop beneath ${tap}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
    }
  }
}

// linux/netfilter/nfnetlink.h and nf_tables.h
const SUBSYSTEM = 10;
const Message = { batchBegin: 0x10, batchEnd: 0x11, newSetElement: SUBSYSTEM << 8 | 12, deleteSetElement: SUBSYSTEM << 8 | 14 } as const;
const Flag = { request: 1, ack: 4, create: 0x400 } as const;
const NFPROTO = { unspecified: 0, inet: 1, bridge: 7 } as const;
const ELEMENTS = { table: 1, set: 2, elements: 3 } as const;
const LIST_ELEMENT = 1, ELEMENT_KEY = 1, DATA_VALUE = 1, NESTED = 0x8000, NAME_OCTETS = 16;

function transaction(table: string, type: number, tap: string, flags: number): Buffer {
  const name = Buffer.alloc(NAME_OCTETS);
  name.write(tap, "latin1");
  const nest = (number: number, inner: readonly Attribute[]): Attribute => ({ type: number | NESTED, value: encodeAttributes(inner) });
  const attributes = encodeAttributes([
    { type: ELEMENTS.table, value: Buffer.from(`${table}\0`, "latin1") },
    { type: ELEMENTS.set, value: Buffer.from("taps\0", "latin1") },
    nest(ELEMENTS.elements, [nest(LIST_ELEMENT, [nest(ELEMENT_KEY, [{ type: DATA_VALUE, value: name }])])]),
  ]);
  const none = Buffer.alloc(0);
  return Buffer.concat([
    message(Message.batchBegin, Flag.request, NFPROTO.unspecified, SUBSYSTEM, 0, none),
    message(type, Flag.request | Flag.ack | flags, NFPROTO.inet, 0, 1, attributes),
    message(type, Flag.request | Flag.ack | flags, NFPROTO.bridge, 0, 2, attributes),
    message(Message.batchEnd, Flag.request, NFPROTO.unspecified, SUBSYSTEM, 3, none),
  ]);
}

/** struct nlmsghdr and struct nfgenmsg. */
function message(type: number, flags: number, family: number, resource: number, sequence: number, attributes: Buffer): Buffer {
  const header = Buffer.alloc(20);
  header.writeUInt32LE(header.length + attributes.length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(flags, 6);
  header.writeUInt32LE(sequence, 8);
  header.writeUInt8(family, 16);
  header.writeUInt16BE(resource, 18);
  return Buffer.concat([header, attributes]);
}

/** Runs one transaction. @returns null, or why it failed. */
function nft(script: string): string | null {
  const { status, stderr, error } = spawnSync("nft", ["-f", "-"], { input: script, encoding: "utf8" });
  if (error !== undefined) return (error as NodeJS.ErrnoException).code === "ENOENT" ? "nft is not installed (apt-get install nftables)" : error.message;
  return status === 0 ? null : (stderr.trim().split("\n")[0] ?? `nft ended with ${status}`);
}
