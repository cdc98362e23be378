// @ts-check
/**
 * A virtual machine on a world's tap0: Debian's kernel and a small initramfs (test/vm) under QEMU without KVM.
 *
 * Holds always: one command at a time goes in by the second serial port, its answer comes back the same way, so nothing
 * of the control channel goes over the network under test. Needs a world made with guest: "vm".
 */
import { existsSync } from "node:fs";
import { connect } from "node:net";
import path from "node:path";
import { must, run, Service, until } from "./processes.mjs";
import { ADDRESS, MAC, ROOT } from "./world.mjs";

const BUILD = path.join(ROOT, "test/vm/build");

/** Fetches the kernel and makes the initramfs, where they are missing. @returns {Promise<string[]>} what it had to do, one line each */
export async function buildVm() {
  // A machine whose package lists are empty does not know the kernel's package.
  if (!existsSync(path.join(BUILD, "vmlinuz")) && (await run(["apt-cache", "show", "linux-image-cloud-amd64"])).status !== 0)
    await must(["apt-get", "-q", "update"], { timeoutMs: 300_000 });
  const output = await must([path.join(ROOT, "test/vm/build.sh")], { timeoutMs: 300_000 });
  return output.split("\n").filter((line) => line !== "");
}

export class Vm {
  #turn = 0;

  /** @param {Service} service @param {string} kernel @param {string} consoleLog @param {string} monitor */
  constructor(service, kernel, consoleLog, monitor) {
    this.service = service;
    /** release of the guest's kernel */
    this.kernel = kernel;
    this.consoleLog = consoleLog;
    this.monitor = monitor;
  }

  /**
   * Boots on tap0 with the guest's addresses of the world; ready when its init takes commands.
   * @param {import("./world.mjs").World} world
   */
  static async boot(world) {
    await buildVm();
    const [service, consoleLog, monitor] = Vm.#start(world, world.host, "vm", []);
    const line = await service.line((text) => text.startsWith("@ready"), { ms: 120_000, what: "the guest" });
    return new Vm(service, line.split(" ")[2] ?? "?", consoleLog, monitor);
  }

  /**
   * A copy of a machine that goes on where the file was written, on the tap0 of a namespace: with its memory, addresses and connections.
   * @param {import("./world.mjs").World} world @param {import("./world.mjs").Namespace} namespace @param {string} name of its files
   * @param {Vm} of @param {string} file of snapshot()
   */
  static async resume(world, namespace, name, of, file) {
    const [service, consoleLog, monitor] = Vm.#start(world, namespace, name, ["-incoming", `exec:cat ${file}`]);
    const vm = new Vm(service, of.kernel, consoleLog, monitor);
    vm.#turn = of.#turn;
    // It stands still, as what it is a copy of did.
    await until("the copy", async () => {
      if (service.ended !== null) throw new Error(service.report());
      return existsSync(monitor) && /VM status: paused(?! \(inmigrate)/.test(await vm.#ask("info status"));
    });
    await vm.#ask("cont");
    return vm;
  }

  /** Writes all of the machine into a file while it stands still; it goes on afterwards. @param {string} file */
  async snapshot(file) {
    await this.#ask("stop");
    await this.#ask(`migrate "exec:cat > ${file}"`);
    await until("the snapshot", async () => /Migration status: completed/.test(await this.#ask("info migrate")));
    await this.#ask("cont");
  }

  /** One command of QEMU's monitor. @param {string} command @returns {Promise<string>} */
  #ask(command) {
    return new Promise((resolve, reject) => {
      let said = "";
      const socket = connect(this.monitor);
      socket.setEncoding("utf8").on("data", (text) => {
        said += text;
        // The prompt before it, and the one behind it.
        if (said.split("(qemu) ").length > 2) socket.destroy();
      });
      socket.on("connect", () => socket.write(`${command}\n`)).on("error", reject).on("close", () => resolve(said));
    });
  }

  /** @param {import("./world.mjs").World} world @param {import("./world.mjs").Namespace} namespace @param {string} name @param {string[]} more @returns {[Service, string, string]} */
  static #start(world, namespace, name, more) {
    const consoleLog = path.join(world.dir, `${name}-console.log`), monitor = path.join(world.dir, `${name}-monitor`);
    const size = world.options.bridged ? 24 : 30;
    const service = world.own(namespace.start([
      "qemu-system-x86_64", "-accel", process.env.ENFORCER_TEST_ACCEL ?? "tcg", "-machine", "q35", "-cpu", "max", "-m", "256",
      "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
      "-kernel", path.join(BUILD, "vmlinuz"), "-initrd", path.join(BUILD, "initramfs.gz"),
      "-append", `console=ttyS0 quiet panic=-1 enf.ip4=${ADDRESS.guest4}/${size} enf.gw4=${ADDRESS.gateway4} enf.ip6=${ADDRESS.guest6}/64 enf.gw6=${ADDRESS.gateway6}`,
      "-serial", `file:${consoleLog}`, "-serial", "stdio", "-monitor", `unix:${monitor},server,nowait`,
      "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no", "-device", `virtio-net-pci,netdev=net,mac=${MAC.guest},romfile=`, ...more,
    ]));
    return [service, consoleLog, monitor];
  }

  /**
   * Runs one line of shell in the guest.
   * @param {string} command
   * @param {number} [ms] how long it may take
   */
  async run(command, ms = 60_000) {
    const id = `@${++this.#turn} `;
    const from = this.service.lines.length;
    this.service.write(`${this.#turn} ${command}`);
    const line = await this.service.line((text) => text.startsWith(id), { ms, from, what: `the guest's answer to: ${command}` });
    const [, status, ...rest] = line.split(" ");
    return { status: Number(status), output: rest.join(" ").replaceAll("\x1f", "\n").replaceAll("\r", "") };
  }

  /**
   * One attempt with the probe, as Namespace.probe().
   * @param {readonly string[]} args
   * @param {number} [timeoutMs]
   * @returns {Promise<import("./world.mjs").Seen>}
   */
  async probe(args, timeoutMs = 2000) {
    const { output } = await this.run(`PROBE_TIMEOUT_MS=${timeoutMs} probe ${args.map((word) => `'${word}'`).join(" ")}`);
    try {
      return JSON.parse(output);
    } catch {
      throw new Error(`the guest's probe said: ${output}`);
    }
  }

  /**
   * One attempt with curl; what was seen as by a probe: the status and the body, or why there was none.
   * @param {readonly string[]} args
   * @returns {Promise<import("./world.mjs").Seen>}
   */
  async curl(args) {
    const { status, output } = await this.run(`curl -sS --max-time 15 -w '\\n%{http_code}' ${args.map((word) => `'${word}'`).join(" ")}`);
    const lines = output.trim().split("\n");
    const code = Number(lines.at(-1));
    const body = lines.slice(0, -1).join(" ").trim();
    if (status === 0) return { ok: code >= 200 && code < 300, saw: `HTTP ${code}: ${/^\{"error":"enforcer","reason":"([a-z-]+)"/.exec(body)?.[1] ?? body}` };
    const alert = /unrecognized name|access denied/i.exec(output)?.[0];
    return { ok: false, saw: alert === undefined ? (lines.find((line) => line.startsWith("curl:")) ?? `curl ended with ${status}`) : `TLS alert: ${alert}` };
  }

  async stop() {
    if (this.service.ended === null) this.service.write("0 poweroff -f");
    await this.service.stop("SIGTERM", 3000);
  }
}

/** Whether QEMU is on this machine. */
export function hasQemu() {
  return (process.env.PATH ?? "").split(":").some((folder) => existsSync(path.join(folder, "qemu-system-x86_64")));
}
