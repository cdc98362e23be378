/**
 * The host's own resolvers and search list (resolv.conf(5)), followed when the file changes.
 *
 * Holds always: the host's stub on a loopback address is as good as any (sockets stand in the host's namespace); a file that
 * cannot be read gives no resolvers, and queries fail closed. Does not: ask anybody.
 */
import { readFileSync, realpathSync, unwatchFile, watch, watchFile, type FSWatcher } from "node:fs";
import { hostname } from "node:os";
import { basename, dirname } from "node:path";
import { formatAddress, isV4 } from "../addresses/address.js";
import { parseResolvConf } from "../net/resolv-conf.js";
import { parseName, publicSuffix } from "../policy/names.js";
import type { UpstreamServer } from "./upstream.js";
import { nameOf, type Name } from "./wire.js";

export interface HostResolvers {
  readonly servers: readonly UpstreamServer[];
  readonly searchDomains: readonly Name[];
}

/** @param address 16 octets. */
export function upstreamServer(address: Uint8Array, port: number): UpstreamServer {
  return { family: isV4(address) ? 4 : 6, address, port, host: formatAddress(address) };
}

/**
 * The host's search domains: names of the `search` and `domain` lines, or without such a line the domain of the host's own
 * name (resolv.conf(5)). A public suffix (`search com`) and what is no name are left out.
 */
export function searchDomains(text: string, hostname: string): Name[] {
  const found = new Map<string, Name>();
  let some = false;
  for (const line of text.split("\n")) {
    const words = /^(?:search|domain)[ \t]+(.*)$/.exec(line)?.[1]?.split(/[ \t]+/) ?? [];
    some ||= words.length > 0;
    for (const word of words) add(found, word);
  }
  const dot = hostname.indexOf(".");
  if (!some && dot >= 0) add(found, hostname.slice(dot + 1));
  return [...found.values()];
}

function add(found: Map<string, Name>, text: string): void {
  const parsed = parseName(text);
  if (!parsed.ok || publicSuffix({ kind: "suffix", labels: parsed.value }) === "icann") return;
  const name = nameOf(parsed.value);
  if (name !== null) found.set(name.wire, name);
}

export function readHostResolvers(path: string): HostResolvers {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return { servers: [], searchDomains: searchDomains("", hostname()) };
  }
  return { servers: parseResolvConf(text).nameservers.map((address) => upstreamServer(address, 53)), searchDomains: searchDomains(text, hostname()) };
}

/** Whatever the directories tell, the file itself is looked at this often, ms. */
const LOOK_MS = 5_000;

/**
 * Calls back after the file was written or replaced. The directory is watched, because the file is mostly replaced by
 * renaming: that of the name given, and that of the file a symbolic link leads to at first. What these do not tell (the link
 * leads elsewhere now, a directory was made anew) the file's own times do, a little later.
 * @returns a function that ends it.
 */
export function followFile(path: string, onChange: () => void): () => void {
  let timer: NodeJS.Timeout | null = null;
  const later = (): void => {
    timer ??= setTimeout(() => {
      timer = null;
      onChange();
    }, 100);
  };
  const watchers: FSWatcher[] = [];
  const places = new Set([path]);
  try {
    places.add(realpathSync(path));
  } catch {
    // Not there yet: the directory tells when it comes.
  }
  for (const place of places) {
    try {
      const watcher = watch(dirname(place), { persistent: false }, (_event, file) => {
        if (file === null || file === basename(place)) later();
      });
      watcher.on("error", () => undefined);
      watchers.push(watcher);
    } catch {
      // No such directory: nothing to follow; a message can still ask for a new reading.
    }
  }
  watchFile(path, { persistent: false, interval: LOOK_MS }, later);
  return () => {
    if (timer !== null) clearTimeout(timer);
    unwatchFile(path, later);
    for (const watcher of watchers) watcher.close();
  };
}
