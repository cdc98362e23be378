/** A running `enforcer agent` in a world's host namespace, and commands that ask it. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { ADDRESS, ENFORCER, type Service, until, type World } from "../lib/world.mjs";

export interface Ran { readonly status: number | null; readonly out: string; readonly err: string }

export class TestAgent {
  readonly world: World;
  readonly config: string;
  service!: Service;

  private constructor(world: World, config: string) {
    this.world = world;
    this.config = config;
  }

  /** @param config lines of the configuration, without run_dir, bpffs and metrics. */
  static async start(world: World, config = ""): Promise<TestAgent> {
    const agent = new TestAgent(world, path.join(world.dir, "agent.yaml"));
    agent.configure(config);
    await agent.restart();
    return agent;
  }

  configure(config: string): void {
    writeFileSync(this.config, `run_dir: ${this.world.runDir}\nbpffs: ${this.world.bpffs}\nmetrics: off\nsandboxes: 64\nupstreams: [${ADDRESS.resolver4}]\n${config}`);
  }

  /** Starts one without waiting. */
  launch(...args: string[]): Service {
    return this.world.own(this.world.host.start([ENFORCER, "agent", "--config", this.config, "--json", ...args]));
  }

  async restart(): Promise<void> {
    this.service = this.launch();
    await this.service.line((line) => line.includes('"event":"ready"'), { what: "the agent", ms: 60_000 });
  }

  /** Events of its own log. */
  get log(): Record<string, unknown>[] { return this.service.lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as Record<string, unknown>); }

  notice(words: RegExp, ms = 10_000): Promise<unknown> {
    return until(`notice ${words} in\n${this.service.report()}`, () => this.log.find(({ text }) => words.test(String(text))), ms);
  }

  async run(...args: string[]): Promise<Ran> {
    const { status, stdout, stderr } = await this.world.host.run([ENFORCER, ...args, "--run-dir", this.world.runDir], { timeoutMs: 30_000 });
    return { status, out: stdout, err: stderr };
  }

  /** Runs it with --json; it must end with 0. */
  async json<T = any>(...args: string[]): Promise<T> {
    const { status, out, err } = await this.run(...args, "--json");
    if (status !== 0) throw new Error(`enforcer ${args.join(" ")}: status ${status}\n${out}${err}\n${this.service.report()}`);
    return JSON.parse(out) as T;
  }

  kill(): Promise<number | null> { return this.service.stop("SIGKILL"); }
  stop(): Promise<number | null> { return this.service.stop("SIGTERM"); }
}
