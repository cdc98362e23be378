/**
 * Under the programs: a drop that hangs on a tap's name and not on its ifindex. A device that a VMM deletes and makes again
 * under the same name has no program until it is attached again; what it sends lacks the mark that from_guest puts on every
 * packet it allows (globals.mark), and nftables drops it, in the IP layers, in ARP and in bridges. The same for taps that a
 * name pattern is to attach and that are not there yet: by the beginning of the name, and only where the device is a tap.
 *
 * Holds always: the tables are this instance's own, made and changed in one transaction each; while a name is in them, only
 * marked packets come in from it. They outlive the process, like the programs, and go with close(). The namespace is that of
 * the calling thread, every time.
 * Does not: touch any table of the host's, or judge anything. What takes a frame from the tap before these hooks (an XDP
 * program, a macvlan, Open vSwitch) is not held by it.
 */
import { execFile, spawnSync } from "node:child_process";
import { netlinkBatch } from "../../native/index.js";
import { EnforcerError } from "../errors.js";
import { expedited } from "../kernel/grace-period.js";
import { checkInterfaceName } from "./links.js";
import { errnoOf } from "./request.js";
import { encodeAttributes, type Attribute } from "./rtnetlink.js";

/** One bit of the packet mark, away from those of Docker, Kubernetes (0x4000, 0x8000), Calico (0xffff0000 by default) and Cilium (0x0f00). */
export const ALLOWED_MARK = 0x0000_2000;

/** Where a frame of the tap can come in; a kernel may lack some of it. */
const FAMILIES = ["inet", "arp", "bridge"] as const;
type Family = (typeof FAMILIES)[number];

export class BaseDrop {
  readonly #table: string;
  readonly #families: readonly Family[];
  readonly #names = new Set<string>();
  readonly #free = new Set<string>();
  #patterns: readonly string[];

  private constructor(table: string, families: readonly Family[], names: readonly string[], patterns: readonly string[]) {
    this.#table = table;
    this.#families = families;
    this.#patterns = patterns;
    for (const name of names) this.#names.add(name);
  }

  /**
   * Makes the tables, or takes over those of a former process with the names in them.
   * @param instance unique in the namespace.
   * @param patterns see holdPatterns(); those of a former process are held until these are.
   * @returns what cannot be held, with the reason, where nftables or a part of it is not there.
   */
  static open(instance: string, patterns: readonly string[] = []): { readonly base: BaseDrop | null; readonly missing: string | null } {
    const table = `enforcer_${instance.replaceAll(/[^A-Za-z0-9_]/g, (letter) => `_${letter.charCodeAt(0).toString(16)}_`)}`;
    const failure = nft(FAMILIES.map((family) => tableOf(family, table, patterns)).join("\n"));
    if (failure === null) return { base: new BaseDrop(table, FAMILIES, namesIn("inet", table), patterns), missing: null };
    // All or nothing was refused: what this kernel has.
    const families = FAMILIES.filter((family) => nft(tableOf(family, table, patterns)) === null);
    if (families.length === 0) return { base: null, missing: failure };
    return { base: new BaseDrop(table, families, namesIn(families[0]!, table), patterns), missing: `${FAMILIES.filter((family) => !families.includes(family)).join(", ")}: ${failure}` };
  }

  /**
   * From now on nothing comes in from a tap of such a name but what was allowed, whether it is there yet or not; instead of the
   * patterns of before. @param patterns that holdable() takes. @throws EnforcerError E_ATTACH; then those of before hold.
   */
  holdPatterns(patterns: readonly string[]): void {
    if (patterns.join(" ") === this.#patterns.join(" ")) return;
    const failure = nft(this.#families.map((family) => rulesOf(family, this.#table, patterns)).join("\n"));
    if (failure !== null) throw new EnforcerError("E_ATTACH", `nftables refused the drop beneath ${patterns.join(", ")}: ${failure}`);
    this.#patterns = patterns;
  }

  /** A tap that was taken out from under its policy is free, although a pattern holds its name. @throws EnforcerError E_ATTACH. */
  free(tap: string): void {
    if (this.#free.has(tap) || !this.#patterns.some((pattern) => (pattern.endsWith("*") ? tap.startsWith(pattern.slice(0, -1)) : tap === pattern))) return;
    this.#change("free", Message.newSetElement, tap, Flag.create);
    this.#free.add(tap);
  }

  /** It is held again like any other. No error when it was not free. @throws EnforcerError E_ATTACH. */
  unfree(tap: string): void {
    if (!this.#free.has(tap)) return;
    this.#change("free", Message.deleteSetElement, tap, 0, "ENOENT");
    this.#free.delete(tap);
  }

  /** Names that are held. */
  get names(): ReadonlySet<string> { return this.#names; }

  /** From now on nothing comes in from a device of this name but what was allowed. @throws EnforcerError E_ATTACH. */
  add(tap: string): void {
    if (this.#names.has(tap)) return;
    this.#change("taps", Message.newSetElement, tap, Flag.create);
    this.#names.add(tap);
  }

  /** No error when it was not there. @throws EnforcerError E_ATTACH. */
  remove(tap: string): void {
    if (!this.#names.has(tap)) return;
    this.#change("taps", Message.deleteSetElement, tap, 0, "ENOENT");
    this.#names.delete(tap);
  }

  /** Packets that the tables dropped, for the metrics. */
  async dropped(): Promise<number> {
    // Each process takes the calling thread's namespace when it is started, which is before the first await.
    const texts = await Promise.all(this.#families.map((family) => new Promise<string>((resolve) => {
      execFile("nft", ["-j", "list", "chain", family, this.#table, "unjudged"], (error, stdout) => resolve(error === null ? stdout : ""));
    })));
    let sum = 0;
    for (const text of texts) for (const match of text.matchAll(/"packets":\s*(\d+)/g)) sum += Number(match[1]);
    return sum;
  }

  /** Nothing is held any more. */
  close(): void { nft(this.#families.map((family) => `table ${family} ${this.#table}\ndelete table ${family} ${this.#table}`).join("\n")); }

  /** One transaction for all families, without a process: an attach has a few milliseconds. */
  #change(set: string, type: number, tap: string, flags: number, tolerated?: string): void {
    checkInterfaceName(tap);
    try {
      expedited(() => netlinkBatch(transaction(this.#families, this.#table, set, type, tap, flags)));
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
const NFPROTO = { unspecified: 0, inet: 1, arp: 3, bridge: 7 } as const;
const ELEMENTS = { table: 1, set: 2, elements: 3 } as const;
const LIST_ELEMENT = 1, ELEMENT_KEY = 1, DATA_VALUE = 1, NESTED = 0x8000, NAME_OCTETS = 16;

function transaction(families: readonly Family[], table: string, set: string, type: number, tap: string, flags: number): Buffer {
  const name = Buffer.alloc(NAME_OCTETS);
  name.write(tap, "latin1");
  const nest = (number: number, inner: readonly Attribute[]): Attribute => ({ type: number | NESTED, value: encodeAttributes(inner) });
  const attributes = encodeAttributes([
    { type: ELEMENTS.table, value: Buffer.from(`${table}\0`, "latin1") },
    { type: ELEMENTS.set, value: Buffer.from(`${set}\0`, "latin1") },
    nest(ELEMENTS.elements, [nest(LIST_ELEMENT, [nest(ELEMENT_KEY, [{ type: DATA_VALUE, value: name }])])]),
  ]);
  const none = Buffer.alloc(0);
  return Buffer.concat([
    message(Message.batchBegin, Flag.request, NFPROTO.unspecified, SUBSYSTEM, 0, none),
    ...families.map((family, i) => message(type, Flag.request | Flag.ack | flags, NFPROTO[family], 0, i + 1, attributes)),
    message(Message.batchEnd, Flag.request, NFPROTO.unspecified, SUBSYSTEM, families.length + 1, none),
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

/** Whether nftables can hold taps by this pattern: a name, or the beginning of one and an asterisk. */
export function holdable(pattern: string): boolean { return /^[\w.:@+-]{0,15}\*$|^[\w.:@+-]{1,15}$/.test(pattern); }

/** ARP has no hook before input. What was free is not any more: who opens the table attaches by pattern again. */
function tableOf(family: Family, table: string, patterns: readonly string[]): string {
  const hook = family === "arp" ? "input priority -350" : "prerouting priority -350";
  return `
    table ${family} ${table} {
      set taps { type ifname; }
      set free { type ifname; }
      chain unjudged {
        type filter hook ${hook}; policy accept;
      }
    }
    flush set ${family} ${table} free
    ${rulesOf(family, table, patterns)}`;
}

function rulesOf(family: Family, table: string, patterns: readonly string[]): string {
  const unmarked = `meta mark & 0x${ALLOWED_MARK.toString(16)} == 0 counter drop`;
  const rules = [`iifname @taps ${unmarked}`];
  if (patterns.length > 0) rules.push("iifname @free accept");
  // A tap and nothing else: neither a veth of that name nor a tun of a VPN, which no pattern attaches.
  for (const pattern of patterns) rules.push(`${pattern === "*" ? "" : `iifname "${pattern}" `}meta iifkind "tun" meta iiftype ether ${unmarked}`);
  return [`flush chain ${family} ${table} unjudged`, ...rules.map((rule) => `add rule ${family} ${table} unjudged ${rule}`)].join("\n");
}

/** Names in a set that a former process may have left. */
function namesIn(family: Family, table: string): string[] {
  const { status, stdout } = spawnSync("nft", ["-j", "list", "set", family, table, "taps"], { encoding: "utf8" });
  if (status !== 0) return [];
  const { nftables } = JSON.parse(stdout) as { nftables: readonly { set?: { elem?: readonly string[] } }[] };
  return nftables.flatMap(({ set }) => set?.elem ?? []);
}

/** Runs one transaction. @returns null, or why it failed. */
function nft(script: string): string | null {
  const { status, stderr, error } = expedited(() => spawnSync("nft", ["-f", "-"], { input: script, encoding: "utf8" }));
  if (error !== undefined) return (error as NodeJS.ErrnoException).code === "ENOENT" ? "nft is not installed (apt-get install nftables)" : error.message;
  return status === 0 ? null : (stderr.trim().split("\n")[0] ?? `nft ended with ${status}`);
}
