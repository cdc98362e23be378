/**
 * SVCB and HTTPS record data (RFC 9460): read strictly, `ech` removed, address hints laid open for the rebind check.
 *
 * Holds always: keys ascend, none twice, lengths agree, or the record counts as malformed; what is written again has no ech
 * and names no removed key as mandatory. The target name's octets are kept as they came.
 * Does not: decide whether hints may stay.
 */
import { isV4 } from "../addresses/address.js";
import { readName } from "./wire.js";

const Key = { mandatory: 0, ipv4hint: 4, ech: 5, ipv6hint: 6 } as const;

export interface ServiceBinding {
  /** data without ech. */
  readonly data: Uint8Array;
  /** true when data is not what came: signatures over the record no longer hold. */
  readonly changed: boolean;
  /** 16-byte addresses of ipv4hint (IPv4-mapped) and ipv6hint. */
  readonly hints: readonly Uint8Array[];
  /** an IPv6 hint that is an IPv4-mapped address, if there is one. */
  readonly mapped: Uint8Array | null;
}

/** @returns null when the data is malformed (RFC 9460 sections 2.2 and 8). */
export function readServiceBinding(data: Uint8Array): ServiceBinding | null {
  const target = readName(data, 0, 2, data.length, false);
  if (target === null) return null;
  const params: { key: number; value: Uint8Array }[] = [];
  let last = -1;
  let at = target.next;
  while (at < data.length) {
    if (at + 4 > data.length) return null;
    const key = (data[at]! << 8) | data[at + 1]!;
    const length = (data[at + 2]! << 8) | data[at + 3]!;
    if (key <= last || at + 4 + length > data.length) return null;
    params.push({ key, value: data.subarray(at + 4, at + 4 + length) });
    last = key;
    at += 4 + length;
  }
  const hints: Uint8Array[] = [];
  let changed = false;
  let mapped: Uint8Array | null = null;
  for (const { key, value } of params) {
    if (key === Key.ipv4hint) {
      if (value.length === 0 || value.length % 4 !== 0) return null;
      for (let i = 0; i < value.length; i += 4) {
        const address = new Uint8Array(16);
        address[10] = 255;
        address[11] = 255;
        address.set(value.subarray(i, i + 4), 12);
        hints.push(address);
      }
    } else if (key === Key.ipv6hint) {
      if (value.length === 0 || value.length % 16 !== 0) return null;
      for (let i = 0; i < value.length; i += 16) {
        const address = value.slice(i, i + 16);
        if (isV4(address)) mapped = address;
        hints.push(address);
      }
    } else if (key === Key.ech) changed = true;
    else if (key === Key.mandatory && (value.length === 0 || value.length % 2 !== 0)) return null;
  }
  if (!changed) return { data, changed, hints, mapped };
  const kept: { key: number; value: Uint8Array }[] = [];
  for (const param of params) {
    if (param.key === Key.ech) continue;
    if (param.key !== Key.mandatory) {
      kept.push(param);
      continue;
    }
    const keys: number[] = [];
    for (let i = 0; i < param.value.length; i += 2) {
      if (((param.value[i]! << 8) | param.value[i + 1]!) !== Key.ech) keys.push(param.value[i]!, param.value[i + 1]!);
    }
    if (keys.length > 0) kept.push({ key: Key.mandatory, value: Uint8Array.from(keys) });
  }
  const out = new Uint8Array(target.next + kept.reduce((sum, param) => sum + 4 + param.value.length, 0));
  out.set(data.subarray(0, target.next));
  let n = target.next;
  for (const { key, value } of kept) {
    out.set([key >> 8, key & 255, value.length >> 8, value.length & 255], n);
    out.set(value, n + 4);
    n += 4 + value.length;
  }
  return { data: out, changed, hints, mapped };
}
