/**
 * Follows the host's network configuration while the enforcer runs: its view of itself (host-view.ts) and its devices.
 *
 * Holds always: a change that the kernel notifies is read and told within READ_PAUSE of the one before, the first at
 * once; when notifications were lost everything is read anew; every REREAD interval everything is read anew in any case.
 * Reading is whole and never patched together from notifications. A callback comes only when something differs. The
 * namespace is the one given, or that of the thread that made the watch. Does not: change anything in the kernel.
 */
import { NetlinkMonitor } from "../../native/index.js";
import { hostView, hostViewKey, type HostView } from "./host-view.js";
import { listAddresses, listLinks, listRoutes } from "./links.js";
import { inNetns } from "./request.js";
import { decodeLink, Group, type Link } from "./rtnetlink.js";

/** Milliseconds between two readings at least; PAUSE_RATIO times what a reading takes where routes are many; the most after a failure. */
const READ_PAUSE = 50, PAUSE_RATIO = 4, PAUSE_MOST = 500;
/** Milliseconds between two readings that nothing asked for. */
const REREAD = 10_000;

export type LinkEvent =
  /** Gone from this namespace: deleted, or moved to another (movedAway). A tap made again under its name is another link. */
  | { readonly type: "removed"; readonly link: Link; readonly movedAway: boolean }
  | { readonly type: "added"; readonly link: Link }
  /** Renamed, other master, other MAC, up or down, MTU, XDP. */
  | { readonly type: "changed"; readonly before: Link; readonly link: Link };

export interface HostWatchOptions {
  /** Namespace to watch; the caller keeps it open. Absent: that of the calling thread. */
  readonly netnsFd?: number;
  /** When it throws, the view counts as not taken and is given again. */
  readonly onView: (view: HostView) => void;
  /** After every reading. @param changed devices whose addresses or routes differ from the reading before. */
  readonly onRead?: (changed: ReadonlySet<number>) => void;
  /** In the order in which the kernel tells them. An event is given once, whatever it throws. */
  readonly onLink?: (event: LinkEvent) => void;
  /** A reading or a callback failed; reading is tried again. Without onError the error is thrown out of the event loop. */
  readonly onError?: (error: unknown) => void;
}

/** Reads what is there now, once. @throws EnforcerError E_NETLINK. */
export function readHostView(): HostView { return readHost().view; }

/** The view, and what each device has of it as text: equal where nothing changed. */
function readHost(): { readonly view: HostView; readonly devices: Map<number, string> } {
  const addresses = listAddresses(), routes = [...listRoutes(4), ...listRoutes(6)];
  const devices = new Map<number, string>();
  const add = (ifindex: number, text: string): void => void devices.set(ifindex, (devices.get(ifindex) ?? "") + text);
  const octets = (bytes: Uint8Array | null): string => (bytes === null ? "-" : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1"));
  for (const { ifindex, local, peer, prefixLength, broadcast } of addresses) add(ifindex, `a${octets(local)}${octets(peer)}${octets(broadcast)}${prefixLength}`);
  for (const { destination, type, hops } of routes) for (const { ifindex, gateway } of hops) if (ifindex !== null) add(ifindex, `r${octets(destination.bytes)}${destination.length}.${type}${octets(gateway)}`);
  return { view: hostView(addresses, routes), devices };
}

export class HostWatch {
  readonly #options: HostWatchOptions;
  readonly #monitor: NetlinkMonitor;
  readonly #reread: NodeJS.Timeout;
  #links = new Map<number, Link>();
  #view: HostView;
  #key: string;
  #devices: Map<number, string>;
  #pause: NodeJS.Timeout | null = null;
  #again = false;
  #closed = false;

  /**
   * Reads everything; `view` and `links` are valid from then on, and callbacks come for later changes only.
   * @throws EnforcerError E_NETLINK, NativeError when the socket cannot be made.
   */
  constructor(options: HostWatchOptions) {
    this.#options = options;
    // The socket first, then the reading: a change between the two is notified.
    this.#monitor = this.#there(() => new NetlinkMonitor([Group.link, Group.address4, Group.address6, Group.route4, Group.route6], (messages) => this.#onMessages(messages)));
    try {
      const { view, devices } = this.#there(readHost);
      this.#view = view;
      this.#devices = devices;
      this.#key = hostViewKey(this.#view);
      for (const link of this.#there(listLinks)) this.#links.set(link.ifindex, link);
    } catch (error) {
      this.#monitor.close();
      throw error;
    }
    this.#reread = setInterval(() => this.refresh(), REREAD);
    this.#reread.unref();
  }

  get view(): HostView { return this.#view; }
  get links(): ReadonlyMap<number, Link> { return this.#links; }

  /** Reads everything now and calls back for what differs. */
  refresh(): void {
    if (this.#closed) return;
    const started = performance.now();
    let pause = PAUSE_MOST;
    try {
      // What was notified says more than the reading will: that a link which is gone was moved, or made again meanwhile.
      for (const message of this.#monitor.drain()) this.#onLinkMessage(message);
      this.#readLinks();
      this.#readView();
      pause = Math.min(PAUSE_MOST, Math.max(READ_PAUSE, (performance.now() - started) * PAUSE_RATIO));
    } catch (error) {
      this.#again = true;
      this.#failed(error);
    } finally {
      this.#startPause(pause);
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#reread);
    if (this.#pause !== null) clearTimeout(this.#pause);
    this.#monitor.close();
  }

  #onMessages(messages: Buffer[] | null): void {
    if (this.#closed) return;
    try {
      // Links are told from the messages themselves: a tap deleted and made again between two readings must not be missed.
      if (messages !== null) for (const message of messages) this.#onLinkMessage(message);
    } catch (error) {
      this.#failed(error);
    }
    if (this.#pause === null) this.refresh();
    else this.#again = true;
  }

  #onLinkMessage(message: Buffer): void {
    const decoded = decodeLink(message);
    if (decoded === null) return;
    const { link, deleted, movedAway } = decoded;
    if (deleted) this.#forget(link, movedAway);
    else this.#learn(link);
  }

  #forget(link: Link, movedAway: boolean): void {
    if (this.#links.delete(link.ifindex)) this.#tell({ type: "removed", link, movedAway });
  }

  #learn(link: Link): void {
    const before = this.#links.get(link.ifindex);
    this.#links.set(link.ifindex, link);
    if (before === undefined) this.#tell({ type: "added", link });
    else if (linkKey(before) !== linkKey(link)) this.#tell({ type: "changed", before, link });
  }

  #tell(event: LinkEvent): void { this.#options.onLink?.(event); }

  #there<T>(read: () => T): T { return this.#options.netnsFd === undefined ? read() : inNetns(this.#options.netnsFd, read); }

  #readLinks(): void {
    const now = new Map(this.#there(listLinks).map((link) => [link.ifindex, link]));
    for (const link of [...this.#links.values()]) if (!now.has(link.ifindex)) this.#forget(link, false);
    for (const link of now.values()) this.#learn(link);
  }

  #readView(): void {
    const { view, devices } = this.#there(readHost);
    const changed = new Set([...devices.keys(), ...this.#devices.keys()].filter((ifindex) => devices.get(ifindex) !== this.#devices.get(ifindex)));
    const key = hostViewKey(view);
    if (key !== this.#key) {
      this.#view = view;
      this.#options.onView(view);
      this.#key = key;
    }
    this.#devices = devices;
    this.#options.onRead?.(changed);
  }

  #startPause(milliseconds: number): void {
    if (this.#closed) return;
    if (this.#pause !== null) clearTimeout(this.#pause);
    this.#pause = setTimeout(() => {
      this.#pause = null;
      if (!this.#again) return;
      this.#again = false;
      this.refresh();
    }, milliseconds);
    this.#pause.unref();
  }

  #failed(error: unknown): void {
    if (this.#options.onError === undefined) throw error;
    this.#options.onError(error);
  }
}

/** What of a link is worth an event; its flags only as far as up and running go. */
function linkKey({ name, kind, tunType, mac, mtu, master, flags, xdp }: Link): string {
  return JSON.stringify([name, kind, tunType, mac === null ? null : Buffer.from(mac).toString("hex"), mtu, master, flags & 0x41, xdp]);
}
