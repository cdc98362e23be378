/**
 * From an upstream's reply to what may be said of it: the chain of CNAMEs that starts at the question, the records at its
 * end, every address that any section shows, and how long it may be kept.
 *
 * Holds always: only owners on the chain are answered, and what proves it to who asked for DNSSEC; addresses to be pinned
 * are those of the question's type at the chain's end and hints of its HTTPS/SVCB records; an error code carries no answers;
 * over 8 links or 64 addresses the whole reply is refused, never cut short silently. Pure.
 * Does not: judge addresses or names (rebind.ts, judge.ts).
 */
import { isV4 } from "../addresses/address.js";
import { readServiceBinding, type ServiceBinding } from "./svcb.js";
import type { Reply } from "./message.js";
import { Class, Flag, Rcode, Type, isWithin, labelsOf, readName, type Name, type Record } from "./wire.js";

export const MAX_LINKS = 8;
export const MAX_ADDRESSES = 64;
/** Longest time a positive answer is kept, seconds. */
export const MAX_TTL = 86_400;
/** Longest time a negative answer is kept, seconds (RFC 2308 section 5 advises 1 to 3 hours). */
export const MAX_NEGATIVE_TTL = 3_600;

/** What must be judged of an answer, whoever gets it. */
export interface Told {
  /** 16-byte addresses that the answer tells the guest: to be checked and pinned. */
  readonly addresses: readonly Uint8Array[];
  /** every other address in the reply, in whatever section: to be checked, never told. */
  readonly others: readonly Uint8Array[];
  /**
   * an IPv4-mapped address in a AAAA record or IPv6 hint of any section, if there is one: no host answers IPv6 under it,
   * and inside it could not be told from the IPv4 address it holds, so the answer is refused.
   */
  readonly mapped: Uint8Array | null;
  /** names the guest is led to: CNAME targets on the chain, SVCB/HTTPS targets. */
  readonly targets: readonly Name[];
  /** seconds: least of the answered records, or the negative TTL; 0: not to be kept. */
  readonly ttl: number;
}

export interface Resolved {
  readonly told: Told;
  /** NOERROR or NXDOMAIN. */
  readonly rcode: number;
  /** upstream said AD and nothing was changed. */
  readonly authentic: boolean;
  readonly answers: readonly Record[];
  readonly authority: readonly Record[];
  /** the answer for a sandbox that has no QUIC; null: the same. */
  readonly withoutQuic: { readonly authentic: boolean; readonly answers: readonly Record[] } | null;
}

export type ChainFault = "chain-length" | "chain-loop" | "address-count" | "malformed";

function fromV4(data: Uint8Array, at: number): Uint8Array {
  const out = new Uint8Array(16);
  out[10] = 255;
  out[11] = 255;
  for (let i = 0; i < 4; i++) out[12 + i] = data[at + i]!;
  return out;
}

/** Addresses in a record's data, of the types whose data is an address; hints are added by the caller. */
function addressesIn(record: Record): Uint8Array[] {
  const { type, data } = record;
  if (type === Type.A) return [fromV4(data, 0)];
  if (type === Type.AAAA) return [data];
  if (type === Type.WKS && data.length >= 4) return [fromV4(data, 0)];
  if (type === Type.A6 && data.length >= 17 && data[0] === 0) return [data.slice(1, 17)];
  if (type === Type.IPSECKEY && data.length >= 3) {
    if (data[1] === 1 && data.length >= 7) return [fromV4(data, 3)];
    if (data[1] === 2 && data.length >= 19) return [data.slice(3, 19)];
  }
  if (type === Type.AMTRELAY && data.length >= 2) {
    const kind = data[1]! & 0x7f;
    if (kind === 1 && data.length >= 6) return [fromV4(data, 2)];
    if (kind === 2 && data.length >= 18) return [data.slice(2, 18)];
  }
  return [];
}

function distinct(addresses: readonly Uint8Array[]): Uint8Array[] {
  if (addresses.length < 2) return [...addresses];
  const seen = new Map<string, Uint8Array>();
  for (const address of addresses) seen.set(Buffer.from(address.buffer, address.byteOffset, address.length).toString("latin1"), address);
  return [...seen.values()];
}

/**
 * The records with the data that `form` gives for service bindings, null leaving one out; signatures over what is changed
 * are left out too.
 */
function rewritten(
  told: ReadonlySet<Record>, bindings: ReadonlyMap<Record, ServiceBinding>, form: (binding: ServiceBinding) => Uint8Array | null,
): { answers: Record[]; changed: boolean } {
  const types = new Set<number>();
  for (const [record, binding] of bindings) if (told.has(record) && form(binding) !== record.data) types.add(record.type);
  const answers: Record[] = [];
  for (const record of told) {
    if (record.type === Type.RRSIG && types.has(typeCovered(record))) continue;
    const binding = bindings.get(record);
    const data = binding === undefined ? record.data : form(binding);
    if (data !== null) answers.push(data === record.data ? record : { ...record, data });
  }
  return { answers, changed: types.size > 0 };
}

const typeCovered = (signature: Record): number => (signature.data[0]! << 8) | signature.data[1]!;
const isProof = ({ type, class: cls }: Record): boolean => cls === Class.IN && (type === Type.NSEC || type === Type.NSEC3 || type === Type.RRSIG);

/** The DNAME above `owner` by which its CNAME to `target` was made (RFC 6672 section 2.2), if the reply has it. */
function dnameOf(answers: readonly Record[], owner: Name, target: Name): Record | undefined {
  return answers.find((r) => r.type === Type.DNAME && r.owner.wire !== owner.wire && isWithin(owner, r.owner)
    && owner.wire.slice(0, owner.wire.length - r.owner.wire.length) + r.target!.wire === target.wire);
}

/** The zones whose wildcards signed records were made of (RFC 4035 section 5.3.2: fewer labels signed than there are), one for each owner. */
function wildcardZones(records: readonly Record[]): Name[] {
  const zones = new Map<string, Name>();
  for (const { type, owner, data } of records) {
    if (type !== Type.RRSIG || zones.has(owner.wire) || data[3]! >= labelsOf(owner).length) continue;
    const signer = readName(data, 0, 18, data.length, false)?.name;
    if (signer !== undefined && isWithin(owner, signer)) zones.set(owner.wire, signer);
  }
  return [...zones.values()];
}

/**
 * @param rcode of the reply must be NOERROR or NXDOMAIN.
 * @param dnssec the guest asked for DNSSEC records: signatures on the chain and proofs of absence are kept.
 */
export function followChain(reply: Reply, name: Name, type: number, dnssec: boolean): Resolved | ChainFault {
  if (reply.answers.some((r) => r.class !== Class.IN)) return "malformed";
  const others: Uint8Array[] = [];
  const addresses: Uint8Array[] = [];
  const targets: Name[] = [];
  let ttl = MAX_TTL;

  const bindings = new Map<Record, ServiceBinding>();
  for (const section of [reply.answers, reply.authority, reply.additional]) {
    for (const record of section) {
      if (record.type !== Type.SVCB && record.type !== Type.HTTPS || record.class !== Class.IN) continue;
      const binding = readServiceBinding(record.data);
      if (binding === null) return "malformed";
      bindings.set(record, binding);
      if (bindings.size > MAX_ADDRESSES) return "address-count";
    }
  }

  const told = new Set<Record>();
  let owner = name;
  if (reply.rcode === Rcode.NOERROR) {
    for (let links = 0; ; links++) {
      const here = reply.answers.filter((r) => r.owner.wire === owner.wire);
      const cname = type === Type.CNAME ? undefined : here.find((r) => r.type === Type.CNAME);
      const wanted = cname === undefined ? type : Type.CNAME;
      const dname = cname === undefined || !dnssec ? undefined : dnameOf(reply.answers, owner, cname.target!);
      if (dname !== undefined) {
        // What is signed of the link; the CNAME is not.
        for (const r of reply.answers) if (r === dname || (r.type === Type.RRSIG && r.owner.wire === dname.owner.wire && typeCovered(r) === Type.DNAME)) told.add(r);
      }
      for (const record of here) {
        const signature = record.type === Type.RRSIG && dnssec && typeCovered(record) === wanted;
        if (record.type !== wanted && !signature) continue;
        // Two CNAMEs at one owner are no chain (RFC 2181 section 10.1).
        if (cname !== undefined && record.type === Type.CNAME && record !== cname) {
          if (record.target!.wire !== cname.target!.wire) return "malformed";
          continue;
        }
        told.add(record);
      }
      if (cname === undefined) break;
      if (links + 1 > MAX_LINKS) return "chain-length";
      const next = cname.target!;
      if (next.wire === name.wire || targets.some((target) => target.wire === next.wire)) return "chain-loop";
      owner = next;
      targets.push(next);
    }
  }
  const plain = bindings.size === 0 ? { answers: [...told], changed: false } : rewritten(told, bindings, (binding) => binding.data);
  const { answers } = plain;
  const quicless = [...bindings].some(([record, { data, withoutQuic }]) => data !== withoutQuic && told.has(record))
    ? rewritten(told, bindings, (binding) => binding.withoutQuic) : null;
  for (const record of told) {
    const binding = bindings.get(record);
    if (binding === undefined) {
      if (record.type === Type.A || record.type === Type.AAAA) addresses.push(...addressesIn(record));
      else others.push(...addressesIn(record));
    } else {
      addresses.push(...binding.hints);
      if (record.target!.wire !== "\0" && record.target!.wire !== record.owner.wire) targets.push(record.target!);
    }
    ttl = Math.min(ttl, record.ttl);
  }
  for (const section of [reply.answers, reply.authority, reply.additional]) {
    for (const record of section) {
      if (told.has(record)) continue;
      others.push(...addressesIn(record), ...(bindings.get(record)?.hints ?? []));
    }
  }
  const tell = distinct(addresses);
  let mapped: Uint8Array | null = null;
  for (const section of [reply.answers, reply.authority, reply.additional]) {
    for (const record of section) if (record.type === Type.AAAA && record.class === Class.IN && isV4(record.data)) mapped = record.data;
  }
  for (const binding of bindings.values()) mapped = binding.mapped ?? mapped;
  if (tell.length > MAX_ADDRESSES) return "address-count";

  const found = answers.some((r) => r.type === type && r.owner.wire === owner.wire);
  const authority: Record[] = [];
  // Zones whose proofs go with the answer: that a name is not there, or (RFC 4035 section 3.1.3.3) that no closer one is than a wildcard.
  const zones = dnssec ? wildcardZones(answers) : [];
  if (!found) {
    // RFC 2308 section 5: a negative answer lives as long as the lesser of the SOA's TTL and its MINIMUM; without a SOA
    // it is not kept.
    const soa = reply.authority.find((r) => r.type === Type.SOA && r.class === Class.IN && isWithin(owner, r.owner));
    if (soa === undefined) ttl = 0;
    else {
      const d = soa.data;
      const n = d.length;
      const minimum = ((d[n - 4]! << 24) | (d[n - 3]! << 16) | (d[n - 2]! << 8) | d[n - 1]!) >>> 0;
      const negative = Math.min(soa.ttl, minimum, MAX_NEGATIVE_TTL);
      authority.push({ ...soa, ttl: negative });
      ttl = Math.min(ttl, negative);
      if (dnssec) zones.push(soa.owner);
    }
  }
  if (zones.length > 0) {
    const proofs = reply.authority.filter((r) => isProof(r) && zones.some((zone) => isWithin(r.owner, zone)));
    authority.push(...proofs);
    if (found) for (const r of proofs) ttl = Math.min(ttl, r.ttl);
  }
  const authentic = (reply.flags & Flag.AD) !== 0;
  return {
    rcode: reply.rcode, authentic: authentic && !plain.changed,
    answers, authority,
    withoutQuic: quicless === null ? null : { authentic: authentic && !quicless.changed, answers: quicless.answers },
    told: { addresses: tell, others: distinct(others), mapped, targets, ttl },
  };
}
