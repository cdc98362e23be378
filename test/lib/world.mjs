// @ts-check
/**
 * A small world of network namespaces for a guest behind a real tap:
 *
 *     guest ── tap0 ┐                     ┌ internet   whatever public addresses a test wants, DNS, HTTP
 *                   ├ host (the enforcer) ┤
 *   sibling ── tap1 ┘                     └ lan        192.168.50.10, fd00:50::10
 *
 * Holds always: no namespace has a link to the machine's own network, so no packet leaves the world; names are unique, so
 * worlds run side by side; all of it goes away with close(), and on exit, SIGINT or SIGTERM too. What a killed run left
 * behind is removed by the next one.
 * The guest is a namespace behind a wire between two taps, frames written by hand, or a virtual machine; or the test opens
 * the tap itself. Without an enforcer nothing is filtered: that is the control.
 * Needs root. Runs under vitest and under plain node.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { killAllNow, must, PATIENCE, run, runNow, Service, until } from "./processes.mjs";

export { must, run, Service, until };

const here = path.dirname(fileURLToPath(import.meta.url));
export const ROOT = path.resolve(here, "../..");
const TOOLS = path.join(ROOT, "test/tools/build");
export const ENFORCER = path.join(ROOT, "bin/enforcer");

/** Addresses that every world has. */
export const ADDRESS = /** @type {const} */ ({
  gateway4: "172.30.0.1", gateway6: "fd00:30:0:1::1",
  guest4: "172.30.0.2", guest6: "fd00:30:0:1::2",
  sibling4: "172.30.0.6",
  /** the host's uplink: a public address, on a link with a public neighbour */
  host4: "185.199.108.2", host6: "2a01:4f8:1:2::2",
  router4: "185.199.108.1", router6: "2a01:4f8:1:2::1",
  neighbour4: "185.199.108.77", neighbour6: "2a01:4f8:1:2::77",
  hostLan4: "192.168.50.1", hostLan6: "fd00:50::1",
  lan4: "192.168.50.10", lan6: "fd00:50::10",
  docker4: "172.17.0.1",
  site4: "93.184.216.34", site6: "2606:2800:220:1::1",
  site4b: "140.82.112.3", site6b: "2a0a:a440::3",
  resolver4: "9.9.9.9", resolver6: "2620:fe::fe",
  metadata4: "169.254.169.254", metadata6: "fd00:ec2::254",
  private4: "10.0.0.1", private6: "fd00:99::1",
});
export const MAC = /** @type {const} */ ({
  guest: "02:fc:00:00:00:02", sibling: "02:fc:00:00:00:06", tap0: "02:fc:00:00:01:01", tap1: "02:fc:00:00:01:05", bridge: "02:fc:00:00:01:00",
  router: "02:fc:00:00:02:01", uplink: "02:fc:00:00:02:02", lan: "02:fc:00:00:03:01", hostLan: "02:fc:00:00:03:02",
});
/** DNS servers of the internet, each with a log of what it was asked. */
export const RESOLVERS = /** @type {const} */ (["9.9.9.9", "2620:fe::fe", "8.8.8.8", "2001:4860:4860::8888", "1.1.1.1", "2606:4700:4700::1111", "185.228.168.9"]);

/**
 * @typedef {object} WorldOptions
 * @property {"namespace" | "frames" | "vnet" | "vm" | "none"} [guest] default "namespace"; "vnet": frames with a virtio header
 * @property {number} [queues] of tap0, where the guest is frames
 * @property {boolean} [bridged] tap0 is a port of br0, which has the gateway's addresses
 * @property {boolean} [tls] port 443 of the internet is left to the test
 * @property {boolean} [sibling] a second sandbox (a namespace) on tap1
 * @property {readonly string[]} [internet] further addresses that answer in the internet
 * @property {Record<string, import("./services.mjs").Entry | import("./services.mjs").Entry[]>} [zone] what the internet's DNS servers know
 * @property {boolean} [quiet] no services: for tests of frames only
 */

/** @typedef {{uplink: Uint8Array[], lan: Uint8Array[], sibling: Uint8Array[]}} Captured whole frames, in order of arrival */

let worlds = 0;
/** @type {Set<World>} */
const alive = new Set();
let hooked = false;

function hook() {
  if (hooked) return;
  hooked = true;
  process.once("exit", () => { for (const world of alive) world.closeNow(); });
  for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"])) {
    process.once(signal, () => {
      for (const world of alive) world.closeNow();
      process.kill(process.pid, signal);
    });
  }
}

/** Removes what runs that were killed have left: namespaces and folders named after a process that is no more. */
function sweep() {
  const dead = (/** @type {string} */ name) => {
    const match = /^enf-w(\d+)-/.exec(name);
    return match !== null && !existsSync(`/proc/${match[1]}`);
  };
  for (const name of existsSync("/run/netns") ? readdirSync("/run/netns") : []) if (dead(name)) removeNamespace(name);
  for (const name of readdirSync(os.tmpdir())) if (dead(name)) removeFolder(path.join(os.tmpdir(), name));
}

/** @param {string} name */
function removeNamespace(name) {
  // A namespace lives as long as a process is in it; these are ours, whoever started them inside.
  runNow(["sh", "-c", `ip netns pids ${name} | xargs -r kill -9`]);
  runNow(["ip", "netns", "del", name]);
}

/** @param {string} folder */
function removeFolder(folder) {
  runNow(["umount", path.join(folder, "bpffs")]);
  rmSync(folder, { recursive: true, force: true });
}

/** Builds the test tools where they are missing or old; safe to call from several processes at once. */
export async function buildTools() {
  mkdirSync(TOOLS, { recursive: true });
  await must(["flock", path.join(TOOLS, "lock"), "make", "-s", "-C", path.dirname(TOOLS)], { timeoutMs: 120_000 });
}

/** @param {string} name of a tool in test/tools */
export function tool(name) {
  return path.join(TOOLS, name);
}

export class Namespace {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
  }

  /** @param {readonly string[]} command @param {Parameters<typeof run>[1]} [options] */
  run(command, options) {
    return run(["ip", "netns", "exec", this.name, ...command], options);
  }

  /** Throws when the status is not 0. @param {readonly string[]} command @param {Parameters<typeof run>[1]} [options] */
  must(command, options) {
    return must(["ip", "netns", "exec", this.name, ...command], options);
  }

  /** @param {readonly string[]} command @param {ConstructorParameters<typeof Service>[1]} [options] */
  start(command, options) {
    return new Service(["ip", "netns", "exec", this.name, ...command], options);
  }

  /** Lines of ip(8) commands, done in one process. @param {string} lines */
  ip(lines) {
    return must(["ip", "-n", this.name, "-batch", "-"], { input: lines.split("\n").map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#")).join("\n") });
  }

  /** @param {Record<string, string | number>} values by path under /proc/sys/net, such as "ipv4/ip_forward" */
  sysctl(values) {
    return this.must(["sh", "-c", Object.entries(values).map(([name, value]) => `echo ${value} > /proc/sys/net/${name}`).join(" && ")]);
  }

  /**
   * One attempt with the guest's probe (test/tools/probe.c). A time-out of two seconds or more is for an answer that must come:
   * then it is waited for long. A shorter one is for what must not come, and is what the test costs.
   * @param {readonly string[]} args
   * @param {number} [timeoutMs]
   * @returns {Promise<Seen>}
   */
  async probe(args, timeoutMs = 700) {
    const output = await this.must([tool("probe"), ...args], { env: { PROBE_TIMEOUT_MS: String((timeoutMs < 2000 ? timeoutMs : Math.max(timeoutMs, 20_000)) * PATIENCE) } });
    return JSON.parse(output);
  }
}

/**
 * What a probe saw.
 * @typedef {{ok: boolean, saw: string, rcode?: string, addresses?: string[], records?: number, truncated?: boolean, ede?: number}} Seen
 */

/** Services of one namespace (services.mjs) and what arrived at them. */
export class Services {
  /** @type {Record<string, any>[]} */
  log = [];

  /** @param {Namespace} namespace @param {import("./services.mjs").Config} config */
  constructor(namespace, config) {
    this.service = namespace.start([process.execPath, path.join(here, "services.mjs"), JSON.stringify(config)]);
    this.service.onLine = (line) => this.log.push(JSON.parse(line));
  }

  ready() {
    return this.service.line((line) => line.includes('"ready"'), { what: "services" });
  }

  /** Adds or replaces names of the DNS zone. @param {Record<string, import("./services.mjs").Entry | import("./services.mjs").Entry[]>} zone */
  async zone(zone) {
    const before = this.log.filter((entry) => entry.event === "changed").length;
    this.service.write(JSON.stringify({ zone }));
    await until("change of the zone", () => this.log.filter((entry) => entry.event === "changed").length > before);
  }

  /** Arrivals of one kind. @param {string} event @param {Record<string, unknown>} [match] */
  seen(event, match = {}) {
    return this.log.filter((entry) => entry.event === event && Object.entries(match).every(([key, value]) => entry[key] === value));
  }

  clear() {
    this.log = [];
  }
}

/** The guest whose frames a test writes itself (test/tools/frames.c). */
export class FramesGuest {
  /** Frames that the host sent to the guest. @type {Uint8Array[]} */
  received = [];
  /** @type {((result: string) => void)[]} */
  #waiting = [];

  /** @param {Namespace} namespace @param {string} tap @param {boolean} vnet @param {number} [queues] */
  constructor(namespace, tap, vnet, queues = 1) {
    this.vnet = vnet;
    this.service = namespace.start([tool("frames"), tap, ...(vnet ? ["--vnet"] : []), ...(queues > 1 ? ["--queues", String(queues)] : [])], { keep: false });
    this.service.onLine = (line) => {
      if (line === "ready") this.isReady = true;
      else if (line.startsWith("r ")) this.received.push(new Uint8Array(Buffer.from(line.slice(line.lastIndexOf(" ") + 1), "hex")));
      else this.#waiting.shift()?.(line);
    };
    this.isReady = false;
  }

  ready() {
    return until("frames tool", () => {
      if (this.service.ended !== null) throw new Error(this.service.report());
      return this.isReady;
    });
  }

  /**
   * Writes frames in order and gives for each 0 or the errno of the write (EINVAL 22: the kernel refused the virtio header).
   * @param {(Uint8Array | {vnet: Uint8Array, frame: Uint8Array} | {repeat: number, frame: Uint8Array})[]} frames
   * @returns {Promise<number[]>}
   */
  async send(...frames) {
    const results = frames.map((item) => new Promise((/** @type {(result: string) => void} */ resolve) => {
      this.#waiting.push(resolve);
      const text = (/** @type {Uint8Array} */ data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("hex");
      if (item instanceof Uint8Array) this.service.write(text(item));
      else if ("vnet" in item) this.service.write(`vnet:${text(item.vnet)} ${text(item.frame)}`);
      else this.service.write(`repeat ${item.repeat} ${text(item.frame)}`);
    }));
    const timer = new Promise((_, reject) => { setTimeout(() => reject(new Error(`frames not taken: ${this.service.report()}`)), 20_000 * PATIENCE).unref(); });
    const lines = /** @type {string[]} */ (await Promise.race([Promise.all(results), timer]));
    return lines.map((line) => (line.startsWith("e ") ? Number(line.slice(2)) : 0));
  }
}

/** A running `enforcer attach`. */
export class Enforcer {
  /** Lines that were JSON objects. @type {Record<string, any>[]} */
  events = [];

  /** @param {Service} service @param {string} tap */
  constructor(service, tap) {
    this.service = service;
    this.tap = tap;
    service.onLine = (line) => {
      if (!line.startsWith("{")) return;
      try {
        this.events.push(JSON.parse(line));
      } catch {
        service.errors.push(`not JSON: ${line}`);
      }
    };
  }

  async ready() {
    await this.service.line((line) => line.startsWith(`enforcing ${this.tap}`) || (line.startsWith("{") && JSON.parse(line).event === "enforcing"),
      { what: `"enforcing ${this.tap}"`, ms: 30_000 });
    return this;
  }

  /** @param {Record<string, unknown>} [match] fields that must be equal */
  denials(match = {}) {
    return this.events.filter((event) => /denied$/.test(event.event) && Object.entries(match).every(([key, value]) => event[key] === value));
  }

  /** Waits for a denial. @param {Record<string, unknown>} match @param {number} [ms] */
  denied(match, ms = 5000) {
    return until(`denial ${JSON.stringify(match)} in\n${this.service.report()}`, () => this.denials(match).at(-1), ms);
  }

  stop() {
    return this.service.stop();
  }
}

export class World {
  /** @type {Namespace} */ host;
  /** @type {Namespace} */ internet;
  /** @type {Namespace} */ lan;
  /** The guest's namespace (guest: "namespace"). @type {Namespace} */ guest;
  /** @type {Namespace | null} */ sibling = null;
  /** The guest's frames (guest: "frames" or "vnet"). @type {FramesGuest} */ frames;
  /** @type {Record<"internet" | "lan" | "host" | "sibling", Services>} */
  // @ts-expect-error filled by create()
  services = {};
  sibling6 = "";
  closed = false;
  /** @type {Service[]} */
  #children = [];
  /** @type {Map<keyof Captured, {service: Service, frames: Uint8Array[]}>} */
  #sinks = new Map();
  #sentinels = 0;

  /** Use World.create(). @param {WorldOptions} options */
  constructor(options) {
    this.options = options;
    this.id = `enf-w${process.pid}-${++worlds}`;
    this.dir = mkdtempSync(path.join(os.tmpdir(), `${this.id}-`));
    this.host = new Namespace(`${this.id}-host`);
    this.internet = new Namespace(`${this.id}-internet`);
    this.lan = new Namespace(`${this.id}-lan`);
    this.guest = new Namespace(`${this.id}-guest`);
    if (options.sibling) this.sibling = new Namespace(`${this.id}-sibling`);
    this.frames = /** @type {FramesGuest} */ (/** @type {unknown} */ (null));
    this.bpffs = path.join(this.dir, "bpffs");
    this.runDir = path.join(this.dir, "run");
  }

  /** @param {WorldOptions} [options] */
  static async create(options = {}) {
    if (process.getuid?.() !== 0) throw new Error("a test world is made of network namespaces: run as root");
    hook();
    if (worlds === 0) sweep();
    await buildTools();
    const world = new World(options);
    alive.add(world);
    try {
      await world.#build();
    } catch (error) {
      await world.close();
      throw error;
    }
    return world;
  }

  get #namespaces() {
    return [this.host, this.internet, this.lan, this.guest, ...(this.sibling === null ? [] : [this.sibling])];
  }

  async #build() {
    const { bridged = false, quiet = false } = this.options;
    await Promise.all(this.#namespaces.map(async (namespace) => {
      await must(["ip", "netns", "add", namespace.name]);
      // No duplicate address detection and no router advertisements: addresses work at once, and nothing comes by itself.
      await namespace.sysctl({ "ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0, "ipv6/conf/all/accept_ra": 0 });
      await namespace.ip("link set lo up");
    }));
    mkdirSync(this.bpffs);
    mkdirSync(this.runDir);
    await must(["mount", "-t", "bpf", "bpf", this.bpffs]);
    await this.host.sysctl({ "ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1 });

    await this.host.ip(`
      link add up0 address ${MAC.uplink} type veth peer name eth0 address ${MAC.router} netns ${this.internet.name}
      link add lan0 address ${MAC.hostLan} type veth peer name eth0 address ${MAC.lan} netns ${this.lan.name}
      link add docker0 type bridge
      link set up0 up
      link set lan0 up
      link set docker0 up
      addr add ${ADDRESS.host4}/24 dev up0
      addr add ${ADDRESS.host6}/64 dev up0 nodad
      addr add ${ADDRESS.hostLan4}/24 dev lan0
      addr add ${ADDRESS.hostLan6}/64 dev lan0 nodad
      addr add ${ADDRESS.docker4}/16 dev docker0
      route add default via ${ADDRESS.router4}
      ${bridged ? `link add br0 address ${MAC.bridge} type bridge
      link set br0 up
      addr add ${ADDRESS.gateway4}/24 dev br0
      addr add ${ADDRESS.gateway6}/64 dev br0 nodad` : ""}
    `);
    const [v6, v4] = [/** @type {string[]} */ ([]), /** @type {string[]} */ ([])];
    for (const address of [ADDRESS.site4, ADDRESS.site6, ADDRESS.site4b, ADDRESS.site6b, ADDRESS.metadata4, ADDRESS.metadata6, ADDRESS.private4,
      ADDRESS.private6, ...RESOLVERS, ...(this.options.internet ?? [])]) (address.includes(":") ? v6 : v4).push(address);
    await Promise.all([
      this.internet.ip(`
        link set eth0 up
        addr add ${ADDRESS.router4}/24 dev eth0
        addr add ${ADDRESS.neighbour4}/24 dev eth0
        addr add ${ADDRESS.router6}/64 dev eth0 nodad
        addr add ${ADDRESS.neighbour6}/64 dev eth0 nodad
        ${[...new Set(v4)].map((address) => `addr add ${address}/32 dev lo`).join("\n")}
        ${[...new Set(v6)].map((address) => `addr add ${address}/128 dev lo nodad`).join("\n")}
        route add default via ${ADDRESS.host4}
        route add default via ${ADDRESS.host6}
      `),
      this.lan.ip(`
        link set eth0 up
        addr add ${ADDRESS.lan4}/24 dev eth0
        addr add ${ADDRESS.lan6}/64 dev eth0 nodad
        route add default via ${ADDRESS.hostLan4}
        route add default via ${ADDRESS.hostLan6}
      `),
    ]);
    // The next hops are known beforehand: no packet has to wait for neighbour discovery, and none can come late to a sink.
    await this.host.ip(`
      route add default via ${ADDRESS.router6}
      ${[ADDRESS.router4, ADDRESS.router6].map((address) => `neigh replace ${address} lladdr ${MAC.router} dev up0 nud permanent`).join("\n")}
      ${[ADDRESS.lan4, ADDRESS.lan6].map((address) => `neigh replace ${address} lladdr ${MAC.lan} dev lan0 nud permanent`).join("\n")}
    `);
    // Without offload a veth completes checksums and segments as a real card would: the sink sees what a wire would carry.
    await this.host.run(["ethtool", "-K", "up0", "tx", "off"]);

    this.sibling6 = bridged ? "fd00:30:0:1::6" : "fd00:30:0:2::2";
    if (this.sibling !== null) {
      await this.#wire("tap1", this.sibling);
      await this.#hostSide("tap1", MAC.tap1, "172.30.0.5", "fd00:30:0:2::1");
      await this.#guestSide(this.sibling, MAC.sibling, ADDRESS.sibling4, bridged ? ADDRESS.gateway4 : "172.30.0.5", this.sibling6, bridged ? ADDRESS.gateway6 : "fd00:30:0:2::1");
      await this.host.ip([ADDRESS.sibling4, this.sibling6].map((address) => `neigh replace ${address} lladdr ${MAC.sibling} dev ${bridged ? "br0" : "tap1"} nud permanent`).join("\n"));
    }
    await this.makeTap();

    if (quiet) return;
    this.services.internet = new Services(this.internet, {
      label: "internet", http: [80, 8080], tcp: [22, 853, ...(this.options.tls === true ? [] : [443])], udp: [9999], dns: { addresses: [...RESOLVERS], zone: this.options.zone ?? {} },
    });
    this.services.lan = new Services(this.lan, { label: "lan", http: [80], tcp: [22], udp: [9999] });
    this.services.host = new Services(this.host, { label: "host", http: [80], tcp: [22], udp: [9999] });
    if (this.sibling !== null) this.services.sibling = new Services(this.sibling, { label: "sibling", http: [80], tcp: [22], udp: [9999] });
    await Promise.all(Object.values(this.services).map((services) => {
      this.#children.push(services.service);
      return services.ready();
    }));
  }

  /** Makes tap0 and what is behind it: at the start, and again after removeTap(). */
  async makeTap() {
    const { guest = "namespace", bridged = false } = this.options;
    if (guest === "none") return;
    if (guest === "vm") {
      await this.host.ip("tuntap add tap0 mode tap vnet_hdr");
    } else if (guest === "namespace") {
      await this.#wire("tap0", this.guest);
    } else {
      this.frames = new FramesGuest(this.host, "tap0", guest === "vnet", this.options.queues);
      this.#children.push(this.frames.service);
      await this.frames.ready();
    }
    await this.#hostSide("tap0", MAC.tap0, ADDRESS.gateway4, ADDRESS.gateway6);
    if (guest === "namespace") await this.#guestSide(this.guest, MAC.guest, ADDRESS.guest4, ADDRESS.gateway4, ADDRESS.guest6, ADDRESS.gateway6);
    if (guest === "frames" || guest === "vnet") {
      // Nobody answers for the guest: the host knows it beforehand.
      const device = bridged ? "br0" : "tap0";
      await this.host.ip(`
        neigh replace ${ADDRESS.guest4} lladdr ${MAC.guest} dev ${device} nud permanent
        neigh replace ${ADDRESS.guest6} lladdr ${MAC.guest} dev ${device} nud permanent
      `);
    }
  }

  /** Ends what holds tap0, and the tap with it: what a VMM's end does. */
  async removeTap() {
    const { guest = "namespace" } = this.options;
    if (guest === "vm") return void await this.host.ip("link del tap0");
    const holder = guest === "namespace" ? this.#children.find((child) => child.command.includes("tapwire tap0")) : this.frames.service;
    await holder?.stop("SIGKILL");
    this.#children = this.#children.filter((child) => child !== holder);
    await until("tap0 gone", async () => (await this.host.run(["ip", "link", "show", "tap0"])).status !== 0);
  }

  /** @param {string} tap @param {Namespace} namespace */
  async #wire(tap, namespace) {
    const wire = this.host.start([tool("tapwire"), tap, namespace.name, "eth0"]);
    this.#children.push(wire);
    await wire.line((line) => line === "ready", { what: "tap wire" });
  }

  /** @param {string} tap @param {string} mac @param {string} gateway4 @param {string} gateway6 */
  async #hostSide(tap, mac, gateway4, gateway6) {
    await this.host.ip(this.options.bridged ? `
      link set ${tap} address ${mac}
      link set ${tap} master br0
      link set ${tap} up
    ` : `
      link set ${tap} address ${mac}
      link set ${tap} up
      addr add ${gateway4}/30 dev ${tap}
      addr add ${gateway6}/64 dev ${tap} nodad
    `);
  }

  /** @param {Namespace} namespace @param {string} mac @param {string} address4 @param {string} gateway4 @param {string} address6 @param {string} gateway6 */
  async #guestSide(namespace, mac, address4, gateway4, address6, gateway6) {
    await namespace.ip(`
      link set eth0 address ${mac}
      link set eth0 up
      addr add ${address4}/${this.options.bridged ? 24 : 30} dev eth0
      addr add ${address6}/64 dev eth0 nodad
      route add default via ${gateway4}
      route add default via ${gateway6}
    `);
  }

  /* ---- the enforcer -------------------------------------------------------------------------------------------- */

  /**
   * Starts `enforcer attach` in the host's namespace and waits until it enforces.
   * @param {{tap?: string, policy?: string, args?: readonly string[], json?: boolean}} [options]
   *   policy: text of a policy file; args: further arguments (an --upstream is given unless there is one)
   */
  async enforce(options = {}) {
    const enforcer = this.startEnforcer(options);
    return enforcer.ready();
  }

  /** The same without waiting. @param {Parameters<World["enforce"]>[0]} [options] */
  startEnforcer(options = {}) {
    if (!existsSync(ENFORCER)) throw new Error("bin/enforcer is not there: run make build");
    const tap = options.tap ?? "tap0";
    const args = [...(options.args ?? [])];
    if (options.policy !== undefined) {
      const file = path.join(this.dir, `policy-${tap}.yaml`);
      writeFileSync(file, options.policy);
      args.push("--policy", file);
    }
    if (!args.includes("--upstream")) args.push("--upstream", ADDRESS.resolver4);
    if (!args.includes("--metrics")) args.push("--metrics", "off");
    if (options.json !== false) args.push("--json");
    const service = this.host.start([ENFORCER, "attach", tap, "--run-dir", this.runDir, "--bpffs", this.bpffs, ...args]);
    this.#children.push(service);
    return new Enforcer(service, tap);
  }

  /* ---- what got out ------------------------------------------------------------------------------------------- */

  /**
   * Does something and gives all frames that came out of the host meanwhile: at the far end of the uplink, at the LAN, and
   * at the sibling. Left out is what the host's own stack says by itself (ARP, neighbour discovery, multicast listener
   * reports) and the enforcer's own DNS queries to its upstream. Complete: a sentinel is sent after it and awaited.
   * @param {() => Promise<unknown>} action
   * @returns {Promise<Captured>}
   */
  async watch(action) {
    await this.#openSinks();
    await this.#settle();
    for (const sink of this.#sinks.values()) sink.frames.length = 0;
    await action();
    await this.#settle();
    const captured = (/** @type {keyof Captured} */ name) => (this.#sinks.get(name)?.frames ?? []).filter((frame) => !isOwnNoise(frame));
    return { uplink: captured("uplink"), lan: captured("lan"), sibling: captured("sibling") };
  }

  async #openSinks() {
    const places = /** @type {[keyof Captured, Namespace | null][]} */ ([["uplink", this.internet], ["lan", this.lan], ["sibling", this.sibling]]);
    for (const [name, namespace] of places) {
      if (namespace === null || this.#sinks.has(name)) continue;
      const frames = /** @type {Uint8Array[]} */ ([]);
      const service = namespace.start([tool("sink"), "any"], { keep: false });
      this.#children.push(service);
      let ready = false;
      service.onLine = (line) => {
        if (line === "ready") ready = true;
        else if (line.startsWith("lost")) throw new Error(`the sink on ${name} ${line} frames`);
        else frames.push(new Uint8Array(Buffer.from(line, "hex")));
      };
      this.#sinks.set(name, { service, frames });
      await until(`sink on ${name}`, () => ready);
    }
  }

  /** Sends a datagram with a mark from the host to each sink and waits until they have seen it: all before it has been seen too. */
  async #settle() {
    const targets = { uplink: ADDRESS.router4, lan: ADDRESS.lan4, sibling: ADDRESS.sibling4 };
    await Promise.all([...this.#sinks].map(async ([name, sink]) => {
      const mark = `sentinel ${this.id} ${++this.#sentinels}.`;
      const wanted = Buffer.from(mark);
      await this.host.run([tool("probe"), "udp", targets[name], "9", mark], { env: { PROBE_TIMEOUT_MS: "1" } });
      let at = 0;
      await until(`sentinel at the sink on ${name}`, () => {
        for (; at < sink.frames.length; at++) if (Buffer.from(/** @type {Uint8Array} */ (sink.frames[at])).includes(wanted)) return true;
        return false;
      });
    }));
  }

  /* ---- the end -------------------------------------------------------------------------------------------------- */

  /** Keeps a child for close(). @template {Service} T @param {T} child @returns {T} */
  own(child) {
    this.#children.push(child);
    return child;
  }

  async close() {
    if (this.closed) return;
    await Promise.allSettled([...this.#children].reverse().map((child) => child.stop("SIGTERM", 5000)));
    this.closeNow();
  }

  /** The same at once, for the end of the process. */
  closeNow() {
    if (this.closed) return;
    this.closed = true;
    alive.delete(this);
    for (const child of this.#children) if (child.ended === null) child.child.kill("SIGKILL");
    for (const namespace of this.#namespaces) removeNamespace(namespace.name);
    removeFolder(this.dir);
    if (alive.size === 0) killAllNow();
  }
}

/** @param {Uint8Array} frame */
function isOwnNoise(frame) {
  const data = Buffer.from(frame);
  const type = data.readUInt16BE(12);
  if (type === 0x0806) return true;
  const upper = type === 0x0800 ? 14 + ((data[14] ?? 0) & 15) * 4 : 54;
  if (type === 0x86dd) {
    // The host's own neighbour discovery and listener reports, the latter behind a hop-by-hop header.
    const ownSource = data[22] === 0xfe || data.subarray(22, 38).every((octet) => octet === 0) || data.subarray(22, 38).equals(OWN_UPLINK6) || data.subarray(22, 38).equals(OWN_LAN6);
    const at = data[20] === 0 ? 62 : 54;
    const protocol = data[20] === 0 ? data[54] : data[20];
    if (ownSource && protocol === 58 && [130, 131, 132, 133, 135, 136, 143].includes(data[at] ?? 0)) return true;
  }
  if (data.includes("sentinel enf-w")) return true;
  const protocol = type === 0x0800 ? data[23] : type === 0x86dd ? data[20] : -1;
  const source = type === 0x0800 ? data.subarray(26, 30) : data.subarray(22, 38);
  const destination = type === 0x0800 ? data.subarray(30, 34) : data.subarray(38, 54);
  const own = source.equals(OWN_UPLINK4) || source.equals(OWN_UPLINK6);
  const upstream = destination.equals(UPSTREAM4) || destination.equals(UPSTREAM6);
  return own && upstream && (protocol === 17 || protocol === 6) && data.length >= upper + 4 && data.readUInt16BE(upper + 2) === 53;
}

const OWN_UPLINK4 = Buffer.from([185, 199, 108, 2]);
const OWN_UPLINK6 = Buffer.from("2a0104f8000100020000000000000002", "hex");
const OWN_LAN6 = Buffer.from("fd000050000000000000000000000001", "hex");
const UPSTREAM4 = Buffer.from([9, 9, 9, 9]);
const UPSTREAM6 = Buffer.from("262000fe0000000000000000000000fe", "hex");
