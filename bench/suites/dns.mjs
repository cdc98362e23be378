/**
 * The resolver beside dnsmasq: dnsperf in a guest's namespace, each guest behind a veth pair of its own, one under the
 * enforcer and asking 8.8.8.8, one with a dnsmasq on its gateway.
 *
 *   dns.cached.qps   queries a second, 1,000 names over and over, all known
 *   dns.cached.p99   99th percentile of the answer time, ms, both asked at the same rate: half of the lower dns.cached.qps
 *   dns.miss.qps     50,000 distinct names, each once, asked upstream, pinned, answered; both begin with nothing known
 *   dns.tcp.qps      the cached names over TCP, 10 connections at a time, pipelined; those to dnsmasq are made anew after 100
 *                    queries, for it ends them then; ours are kept
 *   dns.tcp.anew.qps the same with every connection made anew after 100 queries on both sides (tools/dnstcp.c)
 *
 * Both sides let names under *.example.net be resolved and write each address they tell into the kernel before they answer:
 * the enforcer a pin, dnsmasq an element of an nft set (--nftset), and both refuse private addresses (--stop-dns-rebind). The
 * upstream is the same (tools/answer.c), beyond a third veth pair. Every answer must be NOERROR and none may be lost, or there
 * is no figure. No baseline: a resolver's queries do not exist without a resolver.
 */
import { openSync, closeSync, readFileSync } from "node:fs";
import path from "node:path";
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { BareAgent } from "../lib/agent.mjs";
import { guestBehind, internet, UPLINK } from "../lib/guests.mjs";
import { inTurns, median, quantile, row, times } from "../lib/measure.mjs";
import { file, folder, inside, must, quiet, run as command, start, stop } from "../lib/place.mjs";

const ANSWER = fileURLToPath(new URL("../build/answer", import.meta.url));
const DNSTCP = fileURLToPath(new URL("../build/dnstcp", import.meta.url));
const UPSTREAM = "9.9.9.9";
const MISSES = times(50_000);

const POLICY = `
default_egress: deny
rules:
  - {allow: "*.example.net", proto: tcp, ports: [443]}
limits: {queries_per_second: 1000000, queries_in_flight: 4096, names: 65536, pins: 262144}
`;

/**
 * @param {string} guest @param {string} server @param {string} data
 * @param {readonly string[]} args
 * @returns {Promise<{qps: number, latencies: number[]}>}
 */
async function dnsperf(guest, server, data, args) {
  const verbose = args.includes("-v");
  const output = verbose ? path.join(folder(), "dnsperf") : null;
  let text;
  if (output === null) text = await command(["dnsperf", "-s", server, "-d", data, ...args], guest);
  else {
    // Its lines go to a file: whoever read them meanwhile would take from the CPU that is measured.
    const out = openSync(output, "w");
    await new Promise((resolve, reject) => {
      const [program, ...rest] = [...inside(guest), "dnsperf", "-s", server, "-d", data, ...args];
      spawn(/** @type {string} */ (program), rest, { stdio: ["ignore", out, "inherit"] }).on("error", reject).on("close", (status) => (status === 0 ? resolve(null) : reject(new Error(`dnsperf ended with ${status}`))));
    });
    closeSync(out);
    text = readFileSync(output, "latin1");
  }
  const of = (/** @type {RegExp} */ pattern) => pattern.exec(text)?.[1] ?? "";
  const lost = Number(of(/Queries lost:\s+(\d+)/)), codes = of(/Response codes:\s+(.*)/), qps = Number(of(/Queries per second:\s+([\d.]+)/));
  if (lost > 0 || !/^NOERROR \d+ \(100\.00%\)$/.test(codes.trim())) throw new Error(`${server}: ${lost} queries lost, answers: ${codes}`);
  const latencies = verbose ? [...text.matchAll(/^> NOERROR \S+ \S+ ([\d.]+)$/gm)].map((match) => Number(match[1]) * 1_000) : [];
  return { qps, latencies };
}

/** dnsperf itself ends now and then with "Bad file descriptor" where a server closes connections: then once more. @param {() => Promise<number>} sample */
async function patiently(sample) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await sample();
    } catch (error) {
      if (attempt === 5 || !String(error).includes("Bad file descriptor")) throw error;
    }
  }
}

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  internet([UPSTREAM]);
  await start([ANSWER, UPSTREAM], "internet", (line) => line === "ready");

  const ours = guestBehind("guest", 1);
  guestBehind("peer", 2);
  const agent = await BareAgent.start({ hostAddresses: ["127.0.0.1", UPLINK.host, "172.30.1.1", "172.30.2.1"], connected: ["172.30.1.0/24", "172.30.2.0/24"] });
  let sandbox = await agent.add(0, ours, POLICY, [UPSTREAM]);

  must(["nft", "-f", "-"], "table inet names { set v4 { type ipv4_addr; }; set v6 { type ipv6_addr; }; }");
  const dnsmasq = () => start([
    "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--no-poll",
    `--server=${UPSTREAM}`, "--port=53", "--listen-address=172.30.2.1", "--bind-interfaces", "--no-dhcp-interface=peer", "--cache-size=10000",
    "--dns-forward-max=10000", "--stop-dns-rebind", "--nftset=/example.net/4#inet#names#v4,6#inet#names#v6", "--max-cache-ttl=3600",
  ], undefined, (line) => line.includes("started"));
  let peer = await dnsmasq();

  const known = file("known", Array.from({ length: 1_000 }, (_, i) => `host${i}.example.net A`).join("\n") + "\n");
  const ask = { ours: ["guest", "8.8.8.8"], peer: ["peer", "172.30.2.1"] };
  for (const [guest, server] of Object.values(ask)) await dnsperf(guest, server, known, ["-n", "2", "-q", "50"]);
  const elements = () => JSON.parse(must(["nft", "-j", "list", "set", "inet", "names", "v4"])).nftables.find((/** @type {any} */ item) => item.set !== undefined).set.elem?.length ?? 0;
  if (elements() < 900) throw new Error(`dnsmasq has put ${elements()} addresses into its set: it is not doing its part`);
  const pins = sandbox.tables.pins();
  const pinned = pins?.entries().count ?? 0;
  pins?.close();
  if (pinned < 900) throw new Error(`${pinned} addresses are pinned`);

  const sides = (/** @type {readonly string[]} */ args, /** @type {string} */ data) => ({
    ours: async () => (await dnsperf("guest", "8.8.8.8", data, args)).qps,
    peer: async () => (await dnsperf("peer", "172.30.2.1", data, args)).qps,
  });
  out.say("dns.cached");
  const cached = await inTurns(sides(["-l", "1", "-q", "100", "-c", "10"], known), { samples: times(7) });
  out.row(row("dns.cached.qps", "queries/s", { ours: cached.ours, peer: cached.peer, ratio: "rate" }));

  const rate = Math.floor(Math.min(median(cached.ours), median(cached.peer)) / 2);
  const percentile = (/** @type {string} */ guest, /** @type {string} */ server) => async () => quantile((await dnsperf(guest, server, known, ["-l", "1", "-q", "100", "-c", "10", "-Q", String(rate), "-v"])).latencies, 0.99);
  const late = await inTurns({ ours: percentile("guest", "8.8.8.8"), peer: percentile("peer", "172.30.2.1") }, { samples: times(7) });
  out.row(row("dns.cached.p99", "ms", { ours: late.ours, peer: late.peer, ratio: "cost" }));

  out.say("dns.tcp");
  // Where the server does not end the connections, num-queries-per-conn has dnsperf sleep for 100 ms each time that all of them
  // have had their queries: that would be what is measured.
  const overTcp = ["-m", "tcp", "-l", "1", "-q", "100", "-c", "10"];
  const tcp = await inTurns({ ours: sides(overTcp, known).ours, peer: () => patiently(sides([...overTcp, "-O", "num-queries-per-conn=100"], known).peer) }, { samples: times(5) });
  out.row(row("dns.tcp.qps", "queries/s", { ours: tcp.ours, peer: tcp.peer, ratio: "rate" }));

  const anew = (/** @type {string} */ guest, /** @type {string} */ server) => async () => {
    const match = /^qps (\d+) failed (\d+)$/m.exec(await command([DNSTCP, server, known, "1000", "10", "10", "100"], guest));
    if (match === null || match[2] !== "0") throw new Error(`${server}: ${match?.[2] ?? "all"} queries over TCP failed`);
    return Number(match[1]);
  };
  const short = await inTurns({ ours: anew("guest", "8.8.8.8"), peer: anew("peer", "172.30.2.1") }, { samples: times(5) });
  out.row(row("dns.tcp.anew.qps", "queries/s", { ours: short.ours, peer: short.peer, ratio: "rate" }));

  out.say("dns.miss");
  const fresh = file("fresh", Array.from({ length: MISSES }, (_, i) => `n${i}.zone${i % 97}.example.net A`).join("\n") + "\n");
  const misses = await inTurns({
    ours: async () => {
      await sandbox.remove();
      sandbox = await agent.add(0, ours, POLICY, [UPSTREAM]);
      return (await dnsperf("guest", "8.8.8.8", fresh, ["-n", "1", "-q", "100", "-c", "10"])).qps;
    },
    peer: async () => {
      await stop(peer);
      must(["nft", "flush", "ruleset"]);
      must(["nft", "-f", "-"], "table inet names { set v4 { type ipv4_addr; }; set v6 { type ipv6_addr; }; }");
      peer = await dnsmasq();
      return (await dnsperf("peer", "172.30.2.1", fresh, ["-n", "1", "-q", "100", "-c", "10"])).qps;
    },
  }, { samples: times(3), warmup: 0 });
  out.row(row("dns.miss.qps", "queries/s", { ours: misses.ours, peer: misses.peer, ratio: "rate" }));
  await stop(peer);
  await sandbox.remove();
  await agent.stop();
}
