/**
 * One reading of the host's network configuration: the view (host-view.ts), what each device has of it, and the devices.
 *
 * Holds always: everything is read whole, nothing is patched; what is returned is what differs from the view the caller names
 * and from the reading before. The namespace is the one given, or the calling thread's. Does not: follow changes (host-watch.ts).
 */
import { hostView, hostViewKey, packView, type HostView, type PackedView } from "./host-view.js";
import { listAddresses, listLinks, listRoutes } from "./links.js";
import { inNetns } from "./request.js";
import type { Link } from "./rtnetlink.js";

/** What of addresses and routes each device has, as text by ifindex: equal where nothing changed. */
export type DeviceTexts = ReadonlyMap<number, string>;

export interface Reading {
  /** Null: it is the one that the caller knows. */
  readonly view: PackedView | null;
  readonly key: string;
  /** ifindexes of devices whose addresses or routes differ from the reading before. */
  readonly changed: readonly number[];
  /** linkKey of every device by ifindex. */
  readonly links: ReadonlyMap<number, string>;
}

function readHost(): { readonly view: HostView; readonly devices: DeviceTexts } {
  const addresses = listAddresses(), routes = [...listRoutes(4), ...listRoutes(6)];
  const devices = new Map<number, string>();
  const add = (ifindex: number, text: string): void => void devices.set(ifindex, (devices.get(ifindex) ?? "") + text);
  const octets = (bytes: Uint8Array | null): string => (bytes === null ? "-" : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1"));
  for (const { ifindex, local, peer, prefixLength, broadcast } of addresses) add(ifindex, `a${octets(local)}${octets(peer)}${octets(broadcast)}${prefixLength}`);
  for (const { destination, type, hops } of routes) for (const { ifindex, gateway } of hops) if (ifindex !== null) add(ifindex, `r${octets(destination.bytes)}${destination.length}.${type}${octets(gateway)}`);
  return { view: hostView(addresses, routes), devices };
}

export class HostReader {
  readonly #netnsFd: number | null;
  #devices: DeviceTexts;

  /** @param netnsFd namespace to read, which the caller keeps open; null: the calling thread's. @param devices of the reading before; of none, every device differs. */
  constructor(netnsFd: number | null, devices: DeviceTexts = new Map()) {
    this.#netnsFd = netnsFd;
    this.#devices = devices;
  }

  get devices(): DeviceTexts { return this.#devices; }

  /** @param known key of the view that the caller has. @throws EnforcerError E_NETLINK: then nothing counts as read. */
  read(known: string): Reading {
    const { view, devices, links } = this.#there(() => ({ ...readHost(), links: new Map(listLinks().map((link) => [link.ifindex, linkKey(link)])) }));
    const packed = packView(view), key = hostViewKey(packed);
    const changed = [...new Set([...devices.keys(), ...this.#devices.keys()])].filter((ifindex) => devices.get(ifindex) !== this.#devices.get(ifindex));
    this.#devices = devices;
    return { view: key === known ? null : packed, key, changed, links };
  }

  #there<T>(read: () => T): T { return this.#netnsFd === null ? read() : inNetns(this.#netnsFd, read); }
}

/** What of a link is worth an event; its flags only as far as up and running go. */
export function linkKey({ name, kind, tunType, mac, mtu, master, flags, xdp }: Link): string {
  return JSON.stringify([name, kind, tunType, mac === null ? null : Buffer.from(mac).toString("hex"), mtu, master, flags & 0x41, xdp]);
}
