/**
 * The host's resolvers, as resolv.conf(5) names them.
 *
 * Holds always: pure; only literal addresses are taken, never names; what cannot be used is told with its line. Options
 * and search lists do not concern the enforcer: its names are whole. Does not: follow the file (the agent does).
 */
import { formatAddress, parseAddress } from "../addresses/address.js";

export interface ResolvConf {
  /** In the order of the file, each once. 16 octets, IPv4 as IPv4-mapped. */
  readonly nameservers: readonly Uint8Array[];
  /** One sentence per nameserver line that is not used. */
  readonly ignored: readonly string[];
}

/**
 * @param text the file. An empty list of nameservers is not replaced by 127.0.0.1, as resolv.conf(5) would have it: the
 *   caller says that there is none.
 */
export function parseResolvConf(text: string): ResolvConf {
  const nameservers = new Map<string, Uint8Array>();
  const ignored: string[] = [];
  for (const [index, line] of text.split("\n").entries()) {
    // The keyword begins the line; comments begin with # or ; there. What follows the address is not looked at.
    const value = /^nameserver[ \t]+([^\s#;]+)/.exec(line)?.[1];
    if (value === undefined) {
      if (/^nameserver\s*$/.test(line)) ignored.push(`line ${index + 1}: nameserver without an address`);
      continue;
    }
    if (value.includes("%")) {
      ignored.push(`line ${index + 1}: ${value} has a zone, which belongs to one device; name another resolver with --upstream`);
      continue;
    }
    const address = parseAddress(value);
    if (address === null) ignored.push(`line ${index + 1}: ${value} is not an address`);
    else nameservers.set(formatAddress(address), address);
  }
  return { nameservers: [...nameservers.values()], ignored };
}
