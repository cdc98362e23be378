/**
 * Reads a compiled policy as the kernel program does: pages, directories, leaves, classes, tries; bpf/abi.h at struct
 * policy_header is the layout. For tests that hold the compiler to the model without a kernel.
 */
import { type Address, isV4 } from "../../src/addresses/address.js";
import { type GroupTable, classify, groupNumber } from "../../src/addresses/groups.js";
import type { CompiledPolicy, PrefixTable } from "../../src/policy/compile.js";
import type { Direction } from "../../src/policy/types.js";

export interface PinBits { readonly address: Address; readonly bits: readonly number[]; readonly expired: boolean }

export interface TablePacket {
  readonly direction: Direction;
  readonly remote: Address;
  readonly family?: 4 | 6;
  readonly proto: number;
  readonly port: number;
  readonly pins: readonly PinBits[];
}

const PAGE = 512;
const WORDS = 8;

function page(compiled: CompiledPolicy, number: number): DataView {
  const offset = number * PAGE;
  if (offset + PAGE > compiled.pages.length) throw new Error(`no page ${number}`);
  return new DataView(compiled.pages.buffer, compiled.pages.byteOffset + offset, PAGE);
}

function words(view: DataView, offset: number): bigint[] {
  return Array.from({ length: WORDS }, (_, i) => view.getBigUint64(offset + 8 * i, true));
}

function classVector(compiled: CompiledPolicy, classId: number): bigint[] {
  const classPage = page(compiled, 0).getUint32(12, true);
  return words(page(compiled, classPage + (classId >> 3)), (classId & 7) * 8 * WORDS);
}

function lookup(table: PrefixTable, address: Address, family: 4 | 6): number | null {
  const octets = family === 4 ? 4 : 16;
  const keys = new DataView(table.keys.buffer, table.keys.byteOffset);
  const values = new DataView(table.values.buffer, table.values.byteOffset);
  const target = address.subarray(16 - octets);
  let best = -1;
  let found: number | null = null;
  for (let i = 0; i < table.count; i++) {
    const length = keys.getUint32(i * (4 + octets), true);
    let equal = 0;
    while (equal < length && bit(target, equal) === bit(table.keys.subarray(i * (4 + octets) + 4), equal)) equal++;
    if (equal < length || length <= best) continue;
    best = length;
    found = values.getUint32(i * 4, true);
  }
  return found;
}

function bit(bytes: Uint8Array, index: number): number {
  return ((bytes[index >> 3] as number) >> (7 - (index & 7))) & 1;
}

/** @returns the verdict and the bit that decided (null: default). */
export function tableVerdict(compiled: CompiledPolicy, groups: GroupTable, packet: TablePacket): { verdict: "allow" | "deny"; bit: number | null } {
  const family = packet.family ?? (isV4(packet.remote) ? 4 : 6);
  if (packet.proto === (family === 4 ? 58 : 1)) return { verdict: "deny", bit: null };
  const header = page(compiled, 0);
  const flags = header.getUint32(8, true);
  const group = groupNumber(classify(groups, packet.remote, family));
  const address = words(page(compiled, 1), group * 8 * WORDS);
  const counted = words(page(compiled, 8), group * 8 * WORDS);
  const table = family === 4 ? compiled.prefixes4 : compiled.prefixes6;
  if ((flags & (family === 4 ? 4 : 8)) !== 0) {
    const classId = lookup(table, packet.remote, family);
    if (classId !== null) classVector(compiled, classId).forEach((word, i) => { address[i] = (address[i] as bigint) | (word & (counted[i] as bigint)); });
  }
  if ((flags & 16) !== 0) {
    for (const pin of packet.pins) {
      if (pin.expired || !pin.address.every((octet, i) => octet === packet.remote[i])) continue;
      for (const number of pin.bits) address[number >> 6] = (address[number >> 6] as bigint) | (1n << BigInt(number & 63));
    }
  }
  const base = packet.direction === "egress" ? 2 : 5;
  let classId: number;
  if (packet.proto === 6 || packet.proto === 17) {
    classId = page(compiled, base + (packet.proto === 17 ? 1 : 0)).getUint16(2 * (packet.port >> 8), true);
    if ((classId & 0x8000) !== 0) classId = page(compiled, classId & 0x7fff).getUint16(2 * (packet.port & 255), true);
  } else {
    classId = page(compiled, base + 2).getUint16(2 * packet.proto, true);
  }
  const ports = classVector(compiled, classId);
  for (let i = 0; i < WORDS; i++) {
    const match = (address[i] as bigint) & (ports[i] as bigint);
    if (match === 0n) continue;
    let low = 0;
    while (((match >> BigInt(low)) & 1n) === 0n) low++;
    const allowed = ((words(header, 24)[i] as bigint) >> BigInt(low)) & 1n;
    return { verdict: allowed === 1n ? "allow" : "deny", bit: 64 * i + low };
  }
  if (![1, 6, 17, 58].includes(packet.proto)) return { verdict: "deny", bit: null };
  const byDefault = packet.direction === "egress" ? flags & 1 : flags & 2;
  return { verdict: byDefault !== 0 ? "allow" : "deny", bit: null };
}
