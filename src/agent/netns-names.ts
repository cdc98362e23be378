/**
 * Tells soon after a network namespace got a name under /run/netns or lost it (ip-netns(8)), so that nobody has to wait for the
 * next look at all of them.
 *
 * Holds always: whoever makes a name makes a file first and mounts the namespace on it afterwards, which nothing tells of: after a change it
 * calls back several times, the last one half a second later. It may miss changes: the directory may not be there yet, and inotify has
 * limits; so it does not take the place of looking now and then.
 */
import { existsSync, watch, type FSWatcher } from "node:fs";

const DIRECTORY = "/run/netns";
/** After a change, ms. */
const CALLS = [5, 50, 500];

export class NetnsNames {
  #watcher: FSWatcher | null = null;
  /** By place in CALLS. */
  readonly #timers = new Map<number, NodeJS.Timeout>();

  /** Does not keep the process alive. */
  constructor(private readonly onChange: () => void, private readonly directory = DIRECTORY) { this.begin(); }

  /** Where the directory was not there, or cannot be watched any more: tried again. */
  begin(): void {
    if (this.#watcher !== null) return;
    try {
      const watcher = this.#watcher = watch(this.directory, { persistent: false }, () => this.#changed());
      watcher.on("error", () => this.#drop(watcher));
    } catch {
      this.#watcher = null;
    }
  }

  close(): void {
    if (this.#watcher !== null) this.#drop(this.#watcher);
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }

  #changed(): void {
    if (this.#watcher !== null && !existsSync(this.directory)) this.#drop(this.#watcher);
    CALLS.forEach((ms, i) => {
      const pending = this.#timers.get(i);
      // Only the last call is put off by the next change: without end they come, and somebody waits.
      if (pending !== undefined && i < CALLS.length - 1) return;
      clearTimeout(pending);
      this.#timers.set(i, setTimeout(() => {
        this.#timers.delete(i);
        this.onChange();
      }, ms).unref());
    });
  }

  #drop(watcher: FSWatcher): void {
    watcher.close();
    if (this.#watcher === watcher) this.#watcher = null;
  }
}
