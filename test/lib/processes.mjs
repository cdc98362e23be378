// @ts-check
/**
 * Child processes and waiting for the test worlds.
 *
 * Holds always: every wait has a deadline and says what it waited for; every child is ended by its own id, and all that
 * are left end with this process. It knows nothing of networks.
 */
import { spawn, spawnSync } from "node:child_process";
import { createInterface } from "node:readline";

/** Times every wait by so much: for machines that are slow throughout, such as a guest without KVM (test/kernels). */
export const PATIENCE = Number(process.env.ENFORCER_TEST_PATIENCE ?? "1");

/**
 * No wait for something that must come gives up before this, ms: what is there in a moment here takes a minute on a machine that
 * is shared with others, and a test that gives up early has found nothing.
 */
const LEAST_WAIT = 60_000;

/** @type {Set<Service>} */
const running = new Set();

/**
 * @typedef {{status: number | null, signal: NodeJS.Signals | null, stdout: string, stderr: string}} Result
 */

/**
 * Polls until `probe` gives something truthy.
 * @template T
 * @param {string} what said in the error
 * @param {() => T | Promise<T>} probe
 * @param {number} [ms] milliseconds until it gives up; never less than LEAST_WAIT
 * @returns {Promise<NonNullable<T>>}
 */
export async function until(what, probe, ms = LEAST_WAIT) {
  const deadline = Date.now() + Math.max(ms, LEAST_WAIT) * PATIENCE;
  for (;;) {
    const value = await probe();
    if (value) return /** @type {NonNullable<T>} */ (value);
    if (Date.now() > deadline) throw new Error(`gave up after ${Math.max(ms, LEAST_WAIT)} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/**
 * Runs a command to its end without blocking the event loop. Does not throw on a status other than 0.
 * @param {readonly string[]} command
 * @param {{input?: string, timeoutMs?: number, env?: Record<string, string>}} [options]
 * @returns {Promise<Result>}
 */
export function run(command, options = {}) {
  return new Promise((resolve, reject) => {
    const [file, ...args] = command;
    const child = spawn(/** @type {string} */ (file), args, { env: { ...process.env, ...options.env }, stdio: ["pipe", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`did not end within ${Math.max(options.timeoutMs ?? 0, LEAST_WAIT)} ms: ${command.join(" ")}\n${stdout}${stderr}`));
    }, Math.max(options.timeoutMs ?? 0, LEAST_WAIT) * PATIENCE);
    child.stdout.setEncoding("utf8").on("data", (/** @type {string} */ text) => { stdout += text; });
    child.stderr.setEncoding("utf8").on("data", (/** @type {string} */ text) => { stderr += text; });
    child.stdin.on("error", () => undefined);
    child.on("error", (error) => { clearTimeout(timer); reject(error); });
    child.on("close", (status, signal) => { clearTimeout(timer); resolve({ status, signal, stdout, stderr }); });
    child.stdin.end(options.input ?? "");
  });
}

/**
 * Like run(), and throws when the status is not 0.
 * @param {readonly string[]} command
 * @param {Parameters<typeof run>[1]} [options]
 */
export async function must(command, options) {
  const result = await run(command, options);
  if (result.status !== 0)
    throw new Error(`${command.join(" ")}: status ${result.status ?? result.signal}\n${options?.input ?? ""}${result.stdout}${result.stderr}`);
  return result.stdout;
}

/** A child that stays: its lines are kept, and it can be spoken to. */
export class Service {
  /** Standard output, line by line. @type {string[]} */
  lines = [];
  /** Standard error, line by line. @type {string[]} */
  errors = [];
  /** @type {{status: number | null, signal: NodeJS.Signals | null} | null} */
  ended = null;
  /** Called with each line of standard output. @type {((line: string) => void) | null} */
  onLine = null;

  /**
   * @param {readonly string[]} command
   * @param {{env?: Record<string, string>, keep?: boolean}} [options] keep: whether lines are kept (default) or only given to onLine
   */
  constructor(command, options = {}) {
    this.command = command.join(" ");
    const [file, ...args] = command;
    this.child = spawn(/** @type {string} */ (file), args, { env: { ...process.env, ...options.env }, stdio: ["pipe", "pipe", "pipe"] });
    running.add(this);
    createInterface({ input: this.child.stdout, crlfDelay: Infinity }).on("line", (line) => {
      if (options.keep !== false) this.lines.push(line);
      this.onLine?.(line);
    });
    createInterface({ input: this.child.stderr, crlfDelay: Infinity }).on("line", (line) => this.errors.push(line));
    this.child.stdin.on("error", () => undefined);
    this.child.on("error", (error) => {
      this.errors.push(String(error));
      this.ended ??= { status: null, signal: null };
      running.delete(this);
    });
    this.child.on("close", (status, signal) => {
      this.ended = { status, signal };
      running.delete(this);
    });
  }

  get pid() {
    return this.child.pid;
  }

  /** @param {string} line without its end */
  write(line) {
    this.child.stdin.write(`${line}\n`);
  }

  /** What it said, for error messages. */
  report() {
    return `${this.command}${this.ended === null ? "" : ` (ended: ${this.ended.status ?? this.ended.signal})`}\n${[...this.lines.slice(-40), ...this.errors.slice(-40)].join("\n")}`;
  }

  /**
   * Waits for a line of standard output (from line number `from` on) that the predicate takes; throws when the child ends first.
   * @param {(line: string) => boolean} predicate
   * @param {{ms?: number, from?: number, what?: string}} [options]
   * @returns {Promise<string>}
   */
  async line(predicate, options = {}) {
    let at = options.from ?? 0;
    for (const deadline = Date.now() + Math.max(options.ms ?? 0, LEAST_WAIT) * PATIENCE; ;) {
      for (; at < this.lines.length; at++) {
        const line = /** @type {string} */ (this.lines[at]);
        if (predicate(line)) return line;
      }
      if (this.ended !== null) throw new Error(`ended before ${options.what ?? "the line that was waited for"}: ${this.report()}`);
      if (Date.now() > deadline) throw new Error(`gave up waiting for ${options.what ?? "a line"}: ${this.report()}`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }

  /**
   * Ends it: the signal, then SIGKILL after `ms`, which only close() of a world makes short. Gives the exit status, null when a signal ended it.
   * @param {NodeJS.Signals} [signal]
   * @param {number} [ms]
   */
  async stop(signal = "SIGTERM", ms = LEAST_WAIT) {
    if (this.ended === null) {
      this.child.kill(signal);
      for (const deadline = Date.now() + ms * PATIENCE; this.ended === null && Date.now() < deadline;) await new Promise((resolve) => setTimeout(resolve, 5));
      if (this.ended === null) {
        this.child.kill("SIGKILL");
        await until(`end of ${this.command} after SIGKILL`, () => this.ended !== null);
      }
    }
    return /** @type {{status: number | null}} */ (this.ended).status;
  }
}

/** For the end of the process, when nothing can be awaited any more. */
export function killAllNow() {
  for (const service of running) service.child.kill("SIGKILL");
}

/**
 * @param {readonly string[]} command
 * @returns {boolean} whether it ended with status 0
 */
export function runNow(command) {
  const [file, ...args] = command;
  return spawnSync(/** @type {string} */ (file), args, { stdio: "ignore", timeout: 10_000 * PATIENCE }).status === 0;
}
