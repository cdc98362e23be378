/**
 * SVCB and HTTPS record data (RFC 9460): read strictly, `ech` removed, address hints laid open for the rebind check; and the
 * same once more without HTTP/3, for sandboxes whose TLS is looked at and whose QUIC is refused.
 *
 * Holds always: keys ascend, none twice, lengths agree, or the record counts as malformed; what is written again has no ech
 * and names no removed key as mandatory. The target name's octets are kept as they came.
 * Does not: decide whether hints may stay, or who gets which form.
 */
import { isV4 } from "../addresses/address.js";
import { readName } from "./wire.js";

const Key = { mandatory: 0, alpn: 1, noDefaultAlpn: 2, ipv4hint: 4, ech: 5, ipv6hint: 6 } as const;

export interface ServiceBinding {
  /** data without ech; the octets that came when there was none. */
  readonly data: Uint8Array;
  /** data without ech and HTTP/3; `data` itself when that is the same; null when nothing is left to connect by. */
  readonly withoutQuic: Uint8Array | null;
  /** 16-byte addresses of ipv4hint (IPv4-mapped) and ipv6hint. */
  readonly hints: readonly Uint8Array[];
  /** an IPv6 hint that is an IPv4-mapped address, if there is one. */
  readonly mapped: Uint8Array | null;
}

interface Param { readonly key: number; readonly value: Uint8Array }

/** @returns null when the data is malformed (RFC 9460 sections 2.2 and 8). */
export function readServiceBinding(data: Uint8Array): ServiceBinding | null {
  const target = readName(data, 0, 2, data.length, false);
  if (target === null) return null;
  const params: Param[] = [];
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
  let mapped: Uint8Array | null = null;
  let protocols: Uint8Array[] | null = null;
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
    } else if (key === Key.alpn) {
      protocols = readProtocols(value);
      if (protocols === null) return null;
    } else if (key === Key.noDefaultAlpn && (value.length > 0 || protocols === null)) return null;
    else if (key === Key.mandatory && (value.length === 0 || value.length % 2 !== 0)) return null;
  }
  const head = data.subarray(0, target.next);
  const plain = params.some(({ key }) => key === Key.ech) ? write(head, without(params, [Key.ech])) : data;
  return { data: plain, withoutQuic: withoutQuic(head, params, protocols, plain), hints, mapped };
}

/** Protocol names of an alpn value (RFC 9460 section 7.1.1), or null. */
function readProtocols(value: Uint8Array): Uint8Array[] | null {
  const found: Uint8Array[] = [];
  for (let at = 0; at < value.length; at += 1 + value[at]!) {
    const length = value[at]!;
    if (length === 0 || at + 1 + length > value.length) return null;
    found.push(value.subarray(at + 1, at + 1 + length));
  }
  return found.length === 0 ? null : found;
}

/** h3 and its drafts (h3-29 …). */
function isHttp3(protocol: Uint8Array): boolean {
  return protocol[0] === 0x68 && protocol[1] === 0x33 && (protocol.length === 2 || protocol[2] === 0x2d);
}

function withoutQuic(head: Uint8Array, params: readonly Param[], protocols: readonly Uint8Array[] | null, plain: Uint8Array): Uint8Array | null {
  const kept = protocols?.filter((protocol) => !isHttp3(protocol)) ?? [];
  if (protocols === null || kept.length === protocols.length) return plain;
  if (kept.length > 0) {
    const alpn = Uint8Array.from(kept.flatMap((protocol) => [protocol.length, ...protocol]));
    return write(head, without(params, [Key.ech]).map((param) => (param.key === Key.alpn ? { key: Key.alpn, value: alpn } : param)));
  }
  // Without alpn the scheme's default protocol stands, unless the record says that it does not.
  if (params.some(({ key }) => key === Key.noDefaultAlpn)) return null;
  return write(head, without(params, [Key.ech, Key.alpn]));
}

/** The parameters less those keys, which then are not mandatory either. */
function without(params: readonly Param[], keys: readonly number[]): Param[] {
  const kept: Param[] = [];
  for (const param of params) {
    if (keys.includes(param.key)) continue;
    if (param.key !== Key.mandatory) {
      kept.push(param);
      continue;
    }
    const value: number[] = [];
    for (let i = 0; i < param.value.length; i += 2) {
      if (!keys.includes((param.value[i]! << 8) | param.value[i + 1]!)) value.push(param.value[i]!, param.value[i + 1]!);
    }
    if (value.length > 0) kept.push({ key: Key.mandatory, value: Uint8Array.from(value) });
  }
  return kept;
}

function write(head: Uint8Array, params: readonly Param[]): Uint8Array {
  const out = new Uint8Array(head.length + params.reduce((sum, { value }) => sum + 4 + value.length, 0));
  out.set(head);
  let n = head.length;
  for (const { key, value } of params) {
    out.set([key >> 8, key & 255, value.length >> 8, value.length & 255], n);
    out.set(value, n + 4);
    n += 4 + value.length;
  }
  return out;
}
