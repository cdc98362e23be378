/**
 * The engines of an agent by their network namespaces: begun when a sandbox needs one, ended when it holds nothing.
 *
 * Holds always: a namespace is known by its inode, whatever name it was asked by, and has one engine at most; the agent's own is the
 * first, and is there until the end. Of a namespace that has gone nothing is taken off its taps. Called by one operation at a time.
 * Does not: know sandboxes by name, or taps that are waited for (daemon.ts).
 */
import { formerPlaces, type FormerPlace } from "../kernel/place.js";
import { findNamespace, inodeNamed, inodeOf, namespacePaths, removeFormer, startEngine, type Engine, type EngineOptions } from "./engine.js";

export interface NamespacesOptions {
  /** For the engine of a namespace; `engine` gives it once it is begun. */
  readonly engine: (netns: string | null, inode: number, engine: () => Engine | null) => EngineOptions;
  /** Another one than the agent's own was begun: the host's addresses are more. */
  readonly onStarted: () => void;
  /** Whether it is watched although it holds nothing. */
  readonly watched: (engine: Engine) => boolean;
  readonly onNotice: (text: string) => void;
}

export class Namespaces {
  readonly #options: NamespacesOptions;
  readonly #engines = new Map<number, Engine>();
  #own: Engine | null = null;

  constructor(options: NamespacesOptions) { this.#options = options; }

  get engines(): Iterable<Engine> { return this.#engines.values(); }
  /** Of the agent's own namespace. @throws Error before it is begun. */
  get own(): Engine {
    if (this.#own === null) throw new Error("the agent's own namespace has no engine yet");
    return this.#own;
  }

  has(inode: number): boolean { return this.#engines.has(inode); }

  /** Begins the agent's own. @throws EnforcerError. */
  async startOwn(): Promise<void> { await this.#start(null); }

  /**
   * Its engine, begun where there is none yet.
   * @param inode of the namespace that is meant, where it is known: its name may be another's by now, and the process that it was named
   * after may have ended; then it is looked for. Where it has gone, the one of that name is taken.
   * @throws EnforcerError E_NETNS.
   */
  async engineOf(netns: string | null, inode?: number): Promise<Engine> {
    const known = inode === undefined ? undefined : this.#engines.get(inode);
    if (known !== undefined) return known;
    if (inode !== undefined && inodeNamed(netns) !== inode) {
      const at = findNamespace(inode);
      if (at !== null) return this.#start(netns, at);
    }
    return this.#engines.get(inodeOf(netns)) ?? this.#start(netns);
  }

  /** Engines for what a former agent left in force in other namespaces; what it left of those that have gone is removed. */
  async findFormer(): Promise<void> {
    const { common } = this.own.enforcer;
    for (const former of this.#formerPlaces()) {
      const { netns, inode } = former;
      try {
        if (inodeNamed(netns) === inode || findNamespace(inode) !== null) await this.engineOf(netns, inode);
        else if (!removeFormer(common, former)) this.#options.onNotice(`${netns}: what is in force there goes on being so, but the namespace cannot be found: name it under /run/netns and start the agent anew`);
      } catch (error) {
        this.#options.onNotice(`${netns}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    common.refreshGroups();
  }

  /**
   * Looks where each is now. A namespace that nobody is in but this agent, which holds it open, has gone: so have its taps.
   * @returns engines of such, which are none of this agent's any more; the caller forgets and closes them.
   */
  takeGone(): Engine[] {
    const find = finder();
    return [...this.#engines.values()].filter((engine) => {
      if (engine === this.#own || inodeNamed(engine.at) === engine.inode) return false;
      const at = find(engine.inode);
      if (at !== null) {
        engine.at = at;
        return false;
      }
      return this.#engines.delete(engine.inode);
    });
  }

  /** Removes what a former agent left of namespaces that have gone since. */
  removeFormer(): void {
    const { common } = this.own.enforcer, find = finder();
    for (const place of this.#formerPlaces()) {
      try {
        if (inodeNamed(place.netns) !== place.inode && find(place.inode) === null && removeFormer(common, place)) common.refreshGroups();
      } catch {
        // It is tried again, and a start says why.
      }
    }
  }

  /** Ends engines of other namespaces that hold nothing. */
  async closeIdle(): Promise<void> {
    for (const engine of [...this.#engines.values()]) {
      const { enforcer } = engine;
      if (engine === this.#own || this.#options.watched(engine) || enforcer.sandboxes.size + enforcer.kept.size > 0 || enforcer.awaited.size > 0) continue;
      this.#engines.delete(engine.inode);
      await enforcer.stop().finally(engine.close);
    }
  }

  /** Ends serving in all of them; the kernel goes on enforcing. */
  async release(): Promise<void> {
    // Not one namespace after another; and the first engine has what all share.
    try {
      this.#own?.enforcer.expectSuccessor();
    } catch (error) {
      this.#options.onNotice(error instanceof Error ? error.message : String(error));
    }
    for (const engine of [...this.#engines.values()].reverse()) {
      await engine.enforcer.release();
      engine.close();
    }
    this.#engines.clear();
  }

  /** Of which no engine has taken the place over. */
  #formerPlaces(): FormerPlace[] {
    const held = new Set([...this.#engines.values()].map(({ enforcer }) => enforcer.place));
    return formerPlaces(this.own.enforcer.common.instance).filter(({ number }) => !held.has(number));
  }

  async #start(netns: string | null, at = netns): Promise<Engine> {
    const inode = inodeOf(at);
    let engine: Engine | null = null;
    engine = await startEngine(netns, at, this.#options.engine(netns, inode, () => engine), netns === null ? null : this.own.enforcer.common);
    this.#engines.set(engine.inode, engine);
    if (netns === null) this.#own = engine;
    else this.#options.onStarted();
    return engine;
  }
}

/** Looks for namespaces at one moment: what is open where is read once, and only when it is asked for. */
function finder(): (inode: number) => string | null {
  let paths: ReadonlyMap<number, string> | null = null;
  return (inode) => findNamespace(inode, (paths ??= namespacePaths()));
}

export function sameNamespace(netns: string | null, engine: Engine): boolean { return sameInode(netns, engine.inode); }

export function sameInode(netns: string | null, inode: number): boolean { return inodeNamed(netns) === inode; }
