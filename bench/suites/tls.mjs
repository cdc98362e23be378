/**
 * TLS looked into, beside mitmproxy: clients and a server on loopback, one process of ours, one of theirs, one after the other.
 *
 *   tls.handshakes        new connections a second, each with a full handshake on both sides and one request (h2load)
 *   tls.requests.h1, .h2  requests a second on 8 kept connections, over HTTP/1.1, and HTTP/2 with 10 streams each
 *   tls.download, .upload Gbit/s of one body of 128 MiB (curl)
 *   tls.splice            Gbit/s of the same download where the name is checked and nothing is decrypted
 *                         Of all of these the baseline is the same work without us: client and server alone.
 *   *.cpu                 CPU time that our process, and the peer's, spends for one connection, request, or GB of it
 *   tls.splice.times      how many times the interception's that is
 *   tls.added.p50         ms until the first octet of an answer over a new connection, name checked; baseline: without us
 *   tls.idle              KiB of memory for one idle intercepted connection
 *   tls.requests.crowd    requests a second beside 1,000 idle connections; baseline: without these
 *
 * ours: the agent's TLS thread as a process of its own (lib/tls-gate.mjs), without the kernel's redirection, which costs the
 * same whatever stands behind it. peer: mitmdump in reverse mode, streaming bodies, verifying the same server. The server is
 * nginx, with one worker. All of it shares the machine's CPUs, as it would: rates count what client and server spend as well, CPU
 * times do not.
 */
import { execFileSync } from "node:child_process";
import { connect } from "node:tls";
import { readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { createInterface } from "node:readline";
import { CertificateAuthority } from "../../dist/tls/certificates/authority.js";
import { inTurns, median, quantile, row, times } from "../lib/measure.mjs";
import { file, folder, quiet, run as command, start, stop } from "../lib/place.mjs";

const GATE = fileURLToPath(new URL("../lib/tls-gate.mjs", import.meta.url));
const NAME = "bench.test";
const ORIGIN = 4430, INTERCEPT = 4431, SPLICE = 4432, PEER = 4433;
const SIZE = 128 << 20, IDLE = times(1_000);

/** @param {{row: (row: import("../lib/measure.mjs").Row) => void, say: (text: string) => void}} out */
export async function run(out) {
  quiet();
  const place = folder();
  const authority = CertificateAuthority.generate("bench origin", Date.now());
  const leaf = authority.issue({ kind: "name", labels: NAME.split(".") }, Date.now());
  const ca = file("origin-ca.pem", authority.certificate);
  writeFileSync(path.join(place, "origin.pem"), leaf.certificate);
  writeFileSync(path.join(place, "origin.key"), leaf.key);
  writeFileSync(path.join(place, "small"), "ok");
  writeFileSync(path.join(place, "large"), "");
  truncateSync(path.join(place, "large"), SIZE);
  await start(["nginx", "-p", place, "-c", file("nginx.conf", `
    daemon off; user root; worker_processes 1; pid ${place}/pid; error_log stderr;
    events { worker_connections 8192; }
    http {
      access_log off; client_max_body_size 0; keepalive_requests 1000000; ssl_session_cache off; ssl_session_tickets off;
      client_body_temp_path ${place}; fastcgi_temp_path ${place}; proxy_temp_path ${place}; scgi_temp_path ${place}; uwsgi_temp_path ${place};
      server { listen 127.0.0.1:${ORIGIN} ssl http2 backlog=4096; root ${place};
        ssl_certificate ${place}/origin.pem; ssl_certificate_key ${place}/origin.key; location = /up { return 200; } }
    }`)], undefined);
  const gate = (/** @type {string} */ mode, /** @type {number} */ port) => start([process.execPath, "--expose-gc", GATE, mode, String(port), String(ORIGIN), ca, place], undefined, (line) => line === "ready");
  const ours = await gate("intercept", INTERCEPT);
  const splicing = await gate("splice", SPLICE);
  const peer = await start(["mitmdump", "-q", "--mode", `reverse:https://127.0.0.1:${ORIGIN}`, "--listen-host", "127.0.0.1", "--listen-port", String(PEER), "--set", `confdir=${folder()}`, "--set", `ssl_verify_upstream_trusted_ca=${ca}`,
    "--set", "keep_host_header=true", "--set", "stream_large_bodies=1m", "--set", "connection_strategy=lazy", "--set", "flow_detail=0"], undefined);
  for (const port of [ORIGIN, INTERCEPT, SPLICE, PEER]) await answers(port);

  const load = (/** @type {number} */ port, /** @type {readonly string[]} */ args) => async () => {
    const text = await command(["h2load", ...args, "--connect-to", `127.0.0.1:${port}`, `https://${NAME}:${port === PEER ? ORIGIN : port}/small`]);
    const [, total, good] = /requests: (\d+) total.* (\d+) succeeded/.exec(text) ?? [], rate = Number(/finished in \S+, ([\d.]+) req\/s/.exec(text)?.[1]);
    if (total === undefined || total !== good) throw new Error(`port ${port}: ${text.slice(-600)}`);
    return rate;
  };
  // Both have warmed up when it counts.
  for (const [port, n] of [[INTERCEPT, times(8_000)], [PEER, 200]]) for (const args of [["--h1", "-n", String(n), "-c", "8"], ["-n", String(n / 2), "-c", "8", "-m", "10"], ["--h1", "-n", "100", "-c", "100"]]) await load(port, args)();
  const fresh = ["--h1", "-n", "100", "-c", "100"];
  for (let i = 0; i < times(10); i++) await load(INTERCEPT, fresh)();
  out.say("tls.handshakes");
  const shaken = await withCpu({ ours: [load(INTERCEPT, fresh), ours, 100], peer: [load(PEER, fresh), peer, 100], bare: [load(ORIGIN, fresh), null, 1] }, 5);
  out.row(row("tls.handshakes", "connections/s", { ours: shaken.ours, baseline: shaken.bare, peer: shaken.peer, ratio: "rate" }));
  out.row(row("tls.handshakes.cpu", "ms", { ours: shaken.cpu.ours, peer: shaken.cpu.peer, ratio: "cost" }));

  const kept = { h1: (/** @type {number} */ n) => ["--h1", "-n", String(n), "-c", "8"], h2: (/** @type {number} */ n) => ["-n", String(n), "-c", "8", "-m", "10"] };
  for (const version of /** @type {const} */ (["h1", "h2"])) {
    out.say(`tls.requests.${version}`);
    const [many, few] = [4_000, 300];
    const taken = await withCpu({ ours: [load(INTERCEPT, kept[version](many)), ours, many], peer: [load(PEER, kept[version](few)), peer, few], bare: [load(ORIGIN, kept[version](many)), null, 1] }, 5);
    out.row(row(`tls.requests.${version}`, "requests/s", { ours: taken.ours, baseline: taken.bare, peer: taken.peer, ratio: "rate" }));
    out.row(row(`tls.requests.${version}.cpu`, "ms", { ours: taken.cpu.ours, peer: taken.cpu.peer, ratio: "cost" }));
  }

  const trusted = [path.join(place, "bench.ca.pem"), ca];
  const curl = async (/** @type {number} */ port, /** @type {readonly string[]} */ args, /** @type {string} */ target) => {
    const trust = port === INTERCEPT ? ["--cacert", trusted[0]] : port === PEER ? ["--insecure"] : ["--cacert", trusted[1]];
    const text = await command(["curl", "-sS", "-o", "/dev/null", "-H", "Expect:", ...trust, "--connect-to", `${NAME}:${port === PEER ? ORIGIN : port}:127.0.0.1:${port}`, ...args, "-w", "%{http_code} %{size_download} %{size_upload} %{time_total} %{time_starttransfer}",
      `https://${NAME}:${port === PEER ? ORIGIN : port}${target}`]);
    const [code, down, up, total, first] = text.split(" ").map(Number);
    if (code !== 200) throw new Error(`port ${port}: status ${code}`);
    return { octets: Math.max(down, up), total, first };
  };
  const gbits = (/** @type {number} */ port, /** @type {readonly string[]} */ args, /** @type {string} */ target) => async () => {
    const { octets, total } = await curl(port, args, target);
    if (octets < SIZE) throw new Error(`port ${port}: ${octets} octets`);
    return octets * 8 / total / 1e9;
  };
  out.say("tls.download");
  const large = (/** @type {number} */ port) => gbits(port, ["--http1.1"], "/large"), GB = SIZE / 1e9;
  const down = await withCpu({ ours: [large(INTERCEPT), ours, GB], peer: [large(PEER), peer, GB], splice: [large(SPLICE), splicing, GB], bare: [large(ORIGIN), null, 1] }, 5);
  out.row(row("tls.download", "Gbit/s", { ours: down.ours, baseline: down.bare, peer: down.peer, ratio: "rate" }));
  out.row(row("tls.download.cpu", "ms/GB", { ours: down.cpu.ours, peer: down.cpu.peer, ratio: "cost" }));
  out.row(row("tls.splice", "Gbit/s", { ours: down.splice, baseline: down.bare, ratio: "bare" }));
  out.row(row("tls.splice.cpu", "ms/GB", { ours: down.cpu.splice }));
  out.row(row("tls.splice.times", "Gbit/s", { ours: down.splice, peer: down.ours, ratio: "rate" }));
  const large2 = (/** @type {number} */ port) => gbits(port, ["--http2"], "/large");
  const down2 = await withCpu({ ours: [large2(INTERCEPT), ours, GB], peer: [large2(PEER), peer, GB], bare: [large2(ORIGIN), null, 1] }, 3);
  out.row(row("tls.download.h2", "Gbit/s", { ours: down2.ours, baseline: down2.bare, peer: down2.peer, ratio: "rate" }));
  out.row(row("tls.download.h2.cpu", "ms/GB", { ours: down2.cpu.ours, peer: down2.cpu.peer, ratio: "cost" }));
  out.say("tls.upload");
  const send = ["--http1.1", "-T", path.join(place, "large")];
  const up = await withCpu({ ours: [gbits(INTERCEPT, send, "/up"), ours, GB], peer: [gbits(PEER, send, "/up"), peer, GB], bare: [gbits(ORIGIN, send, "/up"), null, 1] }, 3);
  out.row(row("tls.upload", "Gbit/s", { ours: up.ours, baseline: up.bare, peer: up.peer, ratio: "rate" }));
  out.row(row("tls.upload.cpu", "ms/GB", { ours: up.cpu.ours, peer: up.cpu.peer, ratio: "cost" }));

  out.say("tls.added.p50");
  const first = (/** @type {number} */ port) => async () => {
    const waits = [];
    for (let i = 0; i < 30; i++) waits.push(await once(port, authority.certificate));
    return quantile(waits, 0.5);
  };
  for (let i = 0; i < times(500); i++) await once(SPLICE, authority.certificate);
  const late = await inTurns({ ours: first(SPLICE), baseline: first(ORIGIN) }, { samples: 5 });
  out.row(row("tls.added.p50", "ms", { ours: late.ours, baseline: late.baseline, difference: true }));

  out.say("tls.idle");
  const lines = createInterface({ input: /** @type {import("node:stream").Readable} */ (ours.stdout) })[Symbol.asyncIterator]();
  const memory = async () => {
    ours.stdin?.write("\n");
    return Number((await lines.next()).value);
  };
  const alone = await inTurns({ rate: load(INTERCEPT, kept.h1(4_000)) }, { samples: 3 });
  const before = await memory();
  const idle = await Promise.all(Array.from({ length: IDLE }, () => idling(INTERCEPT)));
  const after = await memory();
  out.row(row("tls.idle", "KiB", { ours: [(after - before) / IDLE] }));
  const crowded = await inTurns({ rate: load(INTERCEPT, kept.h1(4_000)) }, { samples: 3 });
  out.row(row("tls.requests.crowd", "requests/s", { ours: crowded.rate, baseline: alone.rate, ratio: "bare" }));
  for (const socket of idle) socket.destroy();
  if (median(crowded.rate) === 0) throw new Error("no request was answered");
  await stop(ours);
}

/**
 * As inTurns(), and of each the CPU time, ms, that a process spent for one unit of it.
 * @template {string} K
 * @param {Record<K, readonly [work: () => Promise<number>, process: import("node:child_process").ChildProcess | null, units: number]>} subjects
 * @param {number} samples
 * @returns {Promise<Record<K, number[]> & {cpu: Record<K, number[]>}>}
 */
async function withCpu(subjects, samples) {
  const names = /** @type {K[]} */ (Object.keys(subjects));
  const cpu = /** @type {Record<K, number[]>} */ (/** @type {unknown} */ (Object.fromEntries(names.map((name) => [name, []]))));
  const measured = names.map((name) => {
    const [work, process, units] = subjects[name];
    return [name, async () => {
      const before = process === null ? 0 : spent(process);
      const value = await work();
      if (process !== null) cpu[name].push((spent(process) - before) / units);
      return value;
    }];
  });
  const taken = await inTurns(/** @type {Record<K, () => Promise<number>>} */ (Object.fromEntries(measured)), { samples });
  for (const name of names) cpu[name].splice(0, cpu[name].length - samples); // the warming up
  return { ...taken, cpu };
}

/** CPU time of a process and its threads until now, ms. @param {import("node:child_process").ChildProcess} child */
function spent({ pid }) {
  return readdirSync(`/proc/${pid}/task`).reduce((sum, task) => sum + Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "utf8").split(" ")[0]), 0) / 1e6;
}

/** Waits until a port answers a request. @param {number} port */
async function answers(port) {
  for (let i = 0; ; i++) {
    try {
      execFileSync("curl", ["-sSk", "-o", "/dev/null", "--fail", "--max-time", "10", "--connect-to", `${NAME}:${port === PEER ? ORIGIN : port}:127.0.0.1:${port}`, `https://${NAME}:${port === PEER ? ORIGIN : port}/small`], { stdio: "pipe" });
      return;
    } catch (error) {
      if (i > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

/** ms from connecting to the answer's first octet. @param {number} port @param {string} ca @returns {Promise<number>} */
function once(port, ca) {
  const begun = performance.now();
  return new Promise((resolve, reject) => {
    const socket = connect({ host: "127.0.0.1", port, servername: NAME, ca, ALPNProtocols: ["http/1.1"] }, () => socket.write(`GET /small HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`));
    socket.setNoDelay(true);
    socket.once("data", () => {
      resolve(performance.now() - begun);
      socket.destroy();
    });
    socket.once("error", reject);
  });
}

/** A connection that has had one answer. @param {number} port @returns {Promise<import("node:tls").TLSSocket>} */
function idling(port) {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: "127.0.0.1", port, servername: NAME, rejectUnauthorized: false, ALPNProtocols: ["http/1.1"] }, () => socket.write(`GET /small HTTP/1.1\r\nHost: ${NAME}:${port}\r\n\r\n`));
    socket.once("data", () => resolve(socket));
    socket.once("error", reject);
  });
}
