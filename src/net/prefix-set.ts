/** Prefixes, each once. Holds always: prefixes are masked when they come in. Does not merge or compare coverage. */
import { addressPrefix, comparePrefixes, maskPrefix, type Address, type Prefix } from "../addresses/address.js";

export class PrefixSet {
  readonly #found = new Map<string, Prefix>();

  add(prefix: Prefix): void {
    const masked = maskPrefix(prefix);
    const { bytes } = masked;
    this.#found.set(`${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1")}${masked.length} ${masked.family}`, masked);
  }

  addAddress(address: Address): void { this.add(addressPrefix(address)); }

  /** In the order of adding. */
  get prefixes(): Prefix[] { return [...this.#found.values()]; }
  get addresses(): Address[] { return this.prefixes.map(({ bytes }) => bytes); }
  get sortedPrefixes(): Prefix[] { return this.prefixes.sort(comparePrefixes); }
  get sortedAddresses(): Address[] { return this.sortedPrefixes.map(({ bytes }) => bytes); }
}
