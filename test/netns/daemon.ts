/** A running `enforcer agent` in a world's host namespace, and commands and requests that ask it. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { AgentClient } from "../../src/api/client.js";
import type { WatchQuery } from "../../src/api/schema.js";
import type { WatchEvent } from "../../src/agent/watch.js";
import { ADDRESS, ENFORCER, type Service, until, World } from "../lib/world.mjs";

export interface Ran { readonly status: number | null; readonly out: string; readonly err: string }

export class TestAgent {
  readonly world: World;
  readonly config: string;
  readonly client: AgentClient;
  service!: Service;
  /** What the agent sees as /etc/resolv.conf; null: the machine's own. */
  readonly #resolvConf: string | null;
  readonly #env: Record<string, string>;

  private constructor(world: World, resolvConf: string | null, env: Record<string, string>) {
    this.world = world;
    this.#resolvConf = resolvConf;
    this.#env = env;
    this.config = path.join(world.dir, "agent.yaml");
    this.client = new AgentClient(path.join(world.runDir, "agent.sock"));
  }

  /** @param config lines of the configuration, without run_dir and bpffs; metrics are off, and sandboxes at most 64, unless it says otherwise. */
  static async start(world: World, config = "", resolvConf: string | null = null, env: Record<string, string> = {}): Promise<TestAgent> {
    const agent = new TestAgent(world, resolvConf, env);
    agent.configure(config);
    await agent.restart();
    return agent;
  }

  configure(config: string): void {
    writeFileSync(this.config, `run_dir: ${this.world.runDir}\nbpffs: ${this.world.bpffs}\n${/^metrics:/m.test(config) ? "" : "metrics: off\n"}${/^sandboxes:/m.test(config) ? "" : "sandboxes: 64\n"}upstreams: [${ADDRESS.resolver4}]\n${config}`);
  }

  /** Starts one without waiting. */
  launch(...args: string[]): Service {
    const bound = this.#resolvConf === null ? [] : ["sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', this.#resolvConf];
    return this.world.own(this.world.host.start([...bound, ENFORCER, "agent", "--config", this.config, "--json", ...args], { env: this.#env }));
  }

  async restart(): Promise<void> {
    this.service = this.launch();
    await this.service.line((line) => line.includes('"event":"ready"'), { what: "the agent", ms: 60_000 });
  }

  /** Events of its own log. */
  get log(): Record<string, unknown>[] { return this.service.lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Record<string, unknown>); }

  notice(words: RegExp, ms = 15_000): Promise<unknown> {
    return until(`notice ${words} in\n${this.service.report()}`, () => this.log.find(({ text }) => words.test(String(text))), ms);
  }

  /** One verb of the command line. */
  async run(...args: string[]): Promise<Ran> {
    if (this.service.ended !== null) throw new Error(`the agent has ended: ${this.service.report()}`);
    const { status, stdout, stderr } = await this.world.host.run([ENFORCER, ...args, "--run-dir", this.world.runDir], { timeoutMs: 30_000 });
    return { status, out: stdout, err: stderr };
  }

  async names(): Promise<string[]> { return (await this.client.list()).map(({ name }) => name); }

  /** States by name. */
  async states(): Promise<Record<string, string>> { return Object.fromEntries((await this.client.list()).map(({ name, state }) => [name, state])); }

  /** Collects what a watcher is told until it is ended. */
  async watch(query: WatchQuery = {}): Promise<{ events: WatchEvent[]; end: () => Promise<void>; seen: (wanted: Record<string, unknown>) => Promise<WatchEvent> }> {
    const events: WatchEvent[] = [];
    const ending = new AbortController();
    const done = (async () => { for await (const event of this.client.watch(query, ending.signal)) events.push(event); })();
    done.catch(() => undefined);
    await until("watching", () => events.length > 0);
    return {
      events,
      end: async () => {
        ending.abort();
        await done;
      },
      seen: (wanted) => until(`event ${JSON.stringify(wanted)} in ${JSON.stringify(events)}`, () => events.find((event) => Object.entries(wanted).every(([key, value]) => event[key] === value)), 10_000) as Promise<WatchEvent>,
    };
  }

  kill(): Promise<number | null> { return this.service.stop("SIGKILL"); }
  stop(): Promise<number | null> { return this.service.stop("SIGTERM", 20_000); }
}

/** A world with a sibling, two names, and further taps without guests, each with a subnet; and an agent in it. */
export async function agentWithTaps(taps: readonly string[]): Promise<{ readonly world: World; readonly agent: TestAgent }> {
  const world = await World.create({ sibling: true, zone: { "site.example": { A: [ADDRESS.site4] }, "other.example": { A: [ADDRESS.site4b] } } });
  await world.host.ip(taps.map((tap, i) => `tuntap add ${tap} mode tap\nlink set ${tap} up\naddr add 10.${77 + (i >> 8)}.${i & 255}.1/30 dev ${tap}`).join("\n"));
  return { world, agent: await TestAgent.start(world) };
}
