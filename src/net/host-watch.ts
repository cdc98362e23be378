/**
 * Follows the host's network configuration while the enforcer runs: its view of itself (host-view.ts) and its devices.
 *
 * Holds always: a change that the kernel notifies is read and told within READ_PAUSE of the one before, the first at
 * once; when notifications were lost everything is read anew; every REREAD interval everything is read anew in any case.
 * Reading is whole and never patched together from notifications. Where it takes longer than READ_APART, a thread of its own
 * does it, if the caller can give one; what comes of it is told here all the same. A callback comes only when something
 * differs. The namespace is the one given, or that of the thread that made the watch. Does not: change anything in the kernel.
 */
import { closeFd, NetlinkMonitor, openNetns } from "../../native/index.js";
import { HostReader, linkKey, type DeviceTexts, type Reading } from "./host-reading.js";
import { unpackView, type HostView } from "./host-view.js";
import { findLinkByIndex, listLinks } from "./links.js";
import { inNetns } from "./request.js";
import { decodeLink, Group, type Link } from "./rtnetlink.js";

/** Milliseconds between two readings at least; PAUSE_RATIO times what a reading takes where routes are many; the most after a failure. */
const READ_PAUSE = 50, PAUSE_RATIO = 4, PAUSE_MOST = 500;
/** Milliseconds between two readings that nothing asked for. */
const REREAD = 10_000;
/** Milliseconds of the calling thread that a reading may take: some hundred devices. */
const READ_APART = 10;

export type LinkEvent =
  /** Gone from this namespace: deleted, or moved to another (movedAway). A tap made again under its name is another link. */
  | { readonly type: "removed"; readonly link: Link; readonly movedAway: boolean }
  | { readonly type: "added"; readonly link: Link }
  /** Renamed, other master, other MAC, up or down, MTU, XDP. */
  | { readonly type: "changed"; readonly before: Link; readonly link: Link };

/** Readings by another thread. */
export interface ApartReader {
  /** As HostReader.read. */
  read(known: string): Promise<Reading>;
  /** Readings under way are of no use any more. */
  stop(): void;
}

export interface HostWatchOptions {
  /** Namespace to watch; the caller keeps it open. Absent: that of the calling thread. */
  readonly netnsFd?: number;
  /** When it throws, the view counts as not taken and is given again. */
  readonly onView: (view: HostView) => void;
  /** After every reading. @param changed devices whose addresses or routes differ from the reading before. */
  readonly onRead?: (changed: ReadonlySet<number>) => void;
  /** In the order in which the kernel tells them. An event is given once, whatever it throws. */
  readonly onLink?: (event: LinkEvent) => void;
  /**
   * Starts a thread that reads this namespace (the watch keeps it open), having read `devices` last; it calls `ended` when it ends by
   * itself, and from then on every reading is made here. Absent: so it is from the start.
   */
  readonly apart?: (netnsFd: number, devices: DeviceTexts, ended: () => void) => ApartReader;
  /** Milliseconds that a reading may take here, instead of READ_APART. */
  readonly apartAfter?: number;
  /** A reading or a callback failed; reading is tried again. Without onError the error is thrown out of the event loop. */
  readonly onError?: (error: unknown) => void;
}

export class HostWatch {
  readonly #options: HostWatchOptions;
  readonly #monitor: NetlinkMonitor;
  readonly #reread: NodeJS.Timeout;
  readonly #reader: HostReader;
  readonly #netnsFd: number | null;
  readonly #links = new Map<number, Link>();
  readonly #linkKeys = new Map<number, string>();
  #view: HostView;
  #key: string;
  /** Devices that differ and were not told yet. */
  readonly #untold = new Set<number>();
  #apart: { readonly reader: ApartReader; readonly ownFd: number | null } | null = null;
  #apartEnded = false;
  /** A reading is being made by the other thread. */
  #asked = false;
  #pause: NodeJS.Timeout | null = null;
  #again = false;
  #closed = false;

  /**
   * Reads everything; `view` and `links` are valid from then on, and callbacks come for later changes only.
   * @throws EnforcerError E_NETLINK, NativeError when the socket cannot be made.
   */
  constructor(options: HostWatchOptions) {
    this.#options = options;
    this.#netnsFd = options.netnsFd ?? null;
    this.#reader = new HostReader(this.#netnsFd);
    // The socket first, then the reading: a change between the two is notified.
    this.#monitor = this.#there(() => new NetlinkMonitor([Group.link, Group.address4, Group.address6, Group.route4, Group.route6], (messages) => this.#onMessages(messages)));
    try {
      const { view, key } = this.#reader.read("");
      this.#view = unpackView(view!);
      this.#key = key;
      for (const link of this.#there(listLinks)) this.#keep(link, linkKey(link));
    } catch (error) {
      this.#monitor.close();
      throw error;
    }
    this.#reread = setInterval(() => this.refresh(), REREAD);
    this.#reread.unref();
  }

  get view(): HostView { return this.#view; }
  get links(): ReadonlyMap<number, Link> { return this.#links; }

  /** Reads everything now and calls back for what differs: before it returns, unless another thread reads. */
  refresh(): void {
    if (this.#closed) return;
    if (this.#apart !== null) {
      if (this.#asked) this.#again = true;
      else void this.#readApart(this.#apart.reader);
      return;
    }
    const started = performance.now();
    let pause = PAUSE_MOST;
    try {
      this.#drain();
      const reading = this.#reader.read(this.#key), took = performance.now() - started;
      this.#take(reading);
      if (took > (this.#options.apartAfter ?? READ_APART)) this.#moveApart();
      pause = pauseAfter(started);
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
    this.#endApart();
  }

  async #readApart(reader: ApartReader): Promise<void> {
    this.#asked = true;
    const started = performance.now();
    let pause = PAUSE_MOST;
    try {
      this.#drain();
      const reading = await reader.read(this.#key);
      if (this.#closed) return;
      this.#take(reading);
      pause = pauseAfter(started);
    } catch (error) {
      if (this.#closed) return;
      this.#again = true;
      this.#failed(error);
    } finally {
      this.#asked = false;
      this.#startPause(pause);
    }
  }

  #moveApart(): void {
    const { apart } = this.#options;
    if (apart === undefined || this.#apartEnded) return;
    const ownFd = this.#netnsFd === null ? openNetns() : null;
    const ended = (): void => {
      this.#apartEnded = true;
      this.#endApart();
    };
    try {
      this.#apart = { reader: apart((this.#netnsFd ?? ownFd)!, this.#reader.devices, ended), ownFd };
    } catch (error) {
      this.#apartEnded = true;
      if (ownFd !== null) closeFd(ownFd);
      throw error;
    }
  }

  #endApart(): void {
    if (this.#apart === null) return;
    const { reader, ownFd } = this.#apart;
    this.#apart = null;
    reader.stop();
    if (ownFd !== null) closeFd(ownFd);
  }

  /** What was notified says more than a reading: that a link which is gone was moved, or made again meanwhile. */
  #drain(): void { for (const message of this.#monitor.drain()) this.#onLinkMessage(message); }

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
    this.#linkKeys.delete(link.ifindex);
    if (this.#links.delete(link.ifindex)) this.#tell({ type: "removed", link, movedAway });
  }

  #learn(link: Link): void {
    const before = this.#links.get(link.ifindex), keyBefore = this.#linkKeys.get(link.ifindex), key = linkKey(link);
    this.#keep(link, key);
    if (before === undefined) this.#tell({ type: "added", link });
    else if (keyBefore !== key) this.#tell({ type: "changed", before, link });
  }

  #keep(link: Link, key: string): void {
    this.#links.set(link.ifindex, link);
    this.#linkKeys.set(link.ifindex, key);
  }

  #tell(event: LinkEvent): void { this.#options.onLink?.(event); }

  #there<T>(read: () => T): T { return this.#netnsFd === null ? read() : inNetns(this.#netnsFd, read); }

  #take({ view, key, changed, links }: Reading): void {
    for (const ifindex of changed) this.#untold.add(ifindex);
    this.#checkLinks(links);
    if (view !== null && key !== this.#key) {
      const unpacked = unpackView(view);
      this.#view = unpacked;
      this.#options.onView(unpacked);
      this.#key = key;
    }
    const told = new Set(this.#untold);
    this.#untold.clear();
    this.#options.onRead?.(told);
  }

  /** A reading may be older than what was notified since: where the two differ, the device itself is asked. */
  #checkLinks(read: ReadonlyMap<number, string>): void {
    this.#drain();
    const differing = [...read].filter(([ifindex, key]) => this.#linkKeys.get(ifindex) !== key).map(([ifindex]) => ifindex);
    for (const ifindex of this.#links.keys()) if (!read.has(ifindex)) differing.push(ifindex);
    for (const ifindex of differing) {
      const link = this.#there(() => findLinkByIndex(ifindex));
      if (link !== null) {
        this.#learn(link);
        continue;
      }
      this.#drain();
      const gone = this.#links.get(ifindex);
      if (gone !== undefined) this.#forget(gone, false);
    }
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

function pauseAfter(started: number): number { return Math.min(PAUSE_MOST, Math.max(READ_PAUSE, (performance.now() - started) * PAUSE_RATIO)); }
