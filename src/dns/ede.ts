/**
 * Extended DNS errors (RFC 8914): the codes that the agent sends, and why.
 *
 * Holds always: the text is fixed per reason and short, so that an answer never carries what the guest should not learn.
 * Does not: decide when one is sent; that is the resolver's.
 */

export const Ede = {
  other: 0,
  blocked: 15,
  censored: 16,
  filtered: 17,
  prohibited: 18,
  notSupported: 21,
  noReachableAuthority: 22,
  networkError: 23,
  invalidData: 24,
} as const;
export type EdeCode = (typeof Ede)[keyof typeof Ede];

export interface EdeInfo { readonly code: EdeCode; readonly text: string }

const textEncoder = new TextEncoder();

/** The EDNS option's octets: code 15, length, INFO-CODE, EXTRA-TEXT. */
export function edeOption(info: EdeInfo): Uint8Array {
  const text = textEncoder.encode(info.text);
  const out = new Uint8Array(6 + text.length);
  out[1] = 15;
  out[2] = (2 + text.length) >> 8;
  out[3] = (2 + text.length) & 255;
  out[4] = info.code >> 8;
  out[5] = info.code & 255;
  out.set(text, 6);
  return out;
}
