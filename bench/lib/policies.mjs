/**
 * The policies that are measured: so many prefixes of each family, and so many names.
 *
 * Holds always: the prefixes are the same in every run (a fixed sequence), public, of lengths as a routing table has them,
 * and the same set is given to the peer.
 */

/** Addresses that every policy allows by prefix, and one it allows by name. */
export const ALLOWED = /** @type {const} */ ({ v4: "93.184.216.34", v6: "2606:2800:220:1::22", walk4: "45.0.0.1", walk6: "2a02:6b8::1" });
export const NAMED = /** @type {const} */ ({ name: "site.example.net", v4: "140.82.112.3", v6: "2a0a:a440::3" });
export const PORT = 443;

/** Lengths, each as often as it is written: mostly /24 and /48, some shorter and some single addresses. */
const LENGTHS4 = [16, 18, 19, 20, 21, 22, 22, 23, 23, 24, 24, 24, 24, 24, 24, 28, 32];
const LENGTHS6 = [32, 32, 36, 40, 44, 48, 48, 48, 48, 48, 56, 64, 128];
/** First octets whose whole /8 is public. */
const PUBLIC8 = [1, 5, 8, 13, 18, 23, 31, 34, 35, 37, 40, 43, 49, 52, 54, 57, 63, 66, 72, 79, 80, 82, 85, 91, 95, 99, 104, 107, 117, 129, 137, 149, 151, 157, 162, 173, 185, 194, 204, 207, 212, 216];

/** xorshift32 with a fixed seed. */
function numbers() {
  let state = 0x9e3779b9;
  return (/** @type {number} */ below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/**
 * @param {number} count of each family
 * @returns {{v4: string[], v6: string[]}}
 */
export function prefixes(count) {
  const next = numbers();
  const v4 = new Set(["93.184.216.0/24", "45.0.0.0/12"]), v6 = new Set(["2606:2800:220::/48", "2a02:6b8::/32"]);
  while (v4.size < count) {
    const length = LENGTHS4[next(LENGTHS4.length)];
    const mask = length === 32 ? 0xffffffff : (0xffffffff << (32 - length)) >>> 0;
    const address = ((((PUBLIC8[next(PUBLIC8.length)] << 24) | next(1 << 24)) >>> 0) & mask) >>> 0;
    v4.add(`${address >>> 24}.${(address >>> 16) & 255}.${(address >>> 8) & 255}.${address & 255}/${length}`);
  }
  while (v6.size < count) {
    const length = LENGTHS6[next(LENGTHS6.length)];
    const words = [0x2a00 + next(0x10), next(0x10000), next(0x10000), next(0x10000), next(0x10000), next(0x10000), next(0x10000), next(0x10000)];
    const masked = words.map((word, i) => (length >= 16 * (i + 1) ? word : length <= 16 * i ? 0 : word & (0xffff << (16 * (i + 1) - length)) & 0xffff));
    v6.add(`${masked.map((word) => word.toString(16)).join(":")}/${length}`);
  }
  return { v4: [...v4], v6: [...v6] };
}

const single = (/** @type {string} */ prefix) => /:.*\/128$|\.\d+\/32$/.test(prefix);

/**
 * Text of a policy file: so many prefixes of each family, so many names, all under TCP 443. Single addresses stand last:
 * prefixes in a row and single addresses in a row cost one bit of a rule vector each.
 * @param {{prefixes: number, names?: number, limits?: Record<string, number>}} size
 */
export function policyText({ prefixes: count, names = 1, limits = {} }) {
  const { v4, v6 } = prefixes(count);
  const allow = (/** @type {string} */ destination) => `  - {allow: "${destination}", proto: tcp, ports: [${PORT}]}`;
  return [
    "default_egress: deny", "rules:", "  - deny: metadata",
    ...[...v4, ...v6].filter((prefix) => !single(prefix)).map(allow), ...[...v4, ...v6].filter(single).map(allow),
    ...Array.from({ length: names }, (_, i) => allow(i === 0 ? NAMED.name : `name${i}.example.org`)),
    ...(Object.keys(limits).length === 0 ? [] : ["limits:", ...Object.entries(limits).map(([key, value]) => `  ${key}: ${value}`)]),
    "",
  ].join("\n");
}
