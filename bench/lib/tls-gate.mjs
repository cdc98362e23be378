/**
 * The agent's TLS thread as a process of its own, on loopback and without the kernel's redirection: hello, judge, interception or
 * splice, each request judged, put together from the agent's own parts.
 *
 *   node tls-gate.mjs intercept|splice PORT ORIGIN-PORT ORIGIN-CA DIRECTORY
 *
 * Prints "ready" when it listens; writes the sandbox's CA certificate to DIRECTORY/bench.ca.pem. A line on standard input is
 * answered with the resident memory in KiB, after a collection.
 */
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { setDefaultHighWaterMark } from "node:stream";
import { parseAddress } from "../../dist/addresses/address.js";
import { groupTable } from "../../dist/addresses/groups.js";
import { SandboxCertificates } from "../../dist/tls/certificates/leaves.js";
import { keptAuthority } from "../../dist/tls/certificates/store.js";
import { HelloReader } from "../../dist/tls/hello.js";
import { FarSides } from "../../dist/tls/http/far-sides.js";
import { interceptTls } from "../../dist/tls/http/intercept.js";
import { httpLimits } from "../../dist/tls/http/limits.js";
import { refuse } from "../../dist/tls/http/refusal.js";
import { trustContext } from "../../dist/tls/http/trust.js";
import { Watch } from "../../dist/tls/http/watch.js";
import { ConnectionJudge } from "../../dist/tls/judge.js";
import { Pump, PumpHolder } from "../../dist/tls/pump.js";
import { SecondHello } from "../../dist/tls/second-hello.js";
import { splice } from "../../dist/tls/splice.js";
import { policyOf } from "./kernel.mjs";

setDefaultHighWaterMark(false, 65_536); // as the worker does
const [mode, port, originPort, originCa, directory] = /** @type {[string, string, string, string, string]} */ (/** @type {unknown} */ (process.argv.slice(2)));
const ADDRESS = /** @type {Uint8Array} */ (parseAddress("93.184.216.34"));
const judge = new ConnectionJudge(policyOf(`tls: {intercept: ${mode === "intercept"}}\nrules:\n  - {allow: "*.test", proto: tcp, ports: [443]}\n`), null);
const groups = groupTable({});
const certificates = new SandboxCertificates(keptAuthority(directory, "bench"));
const context = trustContext({ hostCas: false, extra: [readFileSync(originCa, "utf8")] });
const pump = new PumpHolder({ start: Pump.start, onChange: (failure) => { if (failure !== null) throw failure; } });
const farSides = new FarSides(), watch = new Watch(), counters = { requests: 0, refused: {}, upgrades: 0 };

/** @param {readonly string[]} labels */
const allowed = (labels) => judge.judge(groups, { address: ADDRESS, port: 443, labels, pinned: true }).reason === "allowed";

const dial = () => new Promise((/** @type {(socket: import("node:net").Socket) => void} */ resolve, reject) => {
  const upstream = connect(/** @type {import("node:net").TcpNetConnectOpts} */ ({ host: "127.0.0.1", port: Number(originPort), allowHalfOpen: true, readableHighWaterMark: 65_536 }));
  upstream.setNoDelay(true);
  upstream.once("error", reject);
  upstream.once("connect", () => {
    upstream.off("error", reject);
    upstream.on("error", () => undefined);
    upstream.pause();
    resolve(upstream);
  });
});

const server = createServer(/** @type {import("node:net").ServerOpts} */ ({ allowHalfOpen: true, pauseOnConnect: true, highWaterMark: 65_536 }), (guest) => {
  guest.setNoDelay(true);
  guest.on("error", () => guest.destroy());
  const reader = new HelloReader();
  const data = (/** @type {Buffer} */ chunk) => {
    if (reader.push(chunk) === "more") return;
    guest.off("data", data);
    guest.pause();
    const { hello } = reader;
    if (hello === null || hello.serverName.kind !== "name" || !allowed(hello.serverName.labels)) {
      guest.destroy();
      return;
    }
    const { labels } = hello.serverName;
    if (mode === "splice") {
      dial().then((upstream) => splice({ guest, upstream, hello: reader.read, after: reader.after, watch: new SecondHello(labels.join(".")), refused: () => undefined, owner: 0, pump, pumped: () => undefined, over: () => undefined }), () => guest.destroy());
      return;
    }
    guest.unshift(reader.octets);
    void interceptTls({
      guest, alpn: hello.alpn, labels, certificates, context, farSides, dial, handshakeFailed: () => undefined,
      passage: {
        scheme: "https", name: labels.join("."), port: Number(port), address: null, limits: httpLimits, counters, watch, holds: () => undefined,
        judge: (request) => (allowed(labels) ? judge.request({ address: ADDRESS, port: 443, labels, pinned: true }, request) === null ? null : refuse(403, "rule-method") : refuse(403, "policy")),
        filter: () => null, refused: () => undefined,
      },
    });
  };
  guest.on("data", data);
  guest.resume();
});
server.listen({ host: "127.0.0.1", port: Number(port), backlog: 4096 }, () => process.stdout.write("ready\n"));
process.stdin.on("data", () => {
  /** @type {{gc?: () => void}} */ (globalThis).gc?.();
  process.stdout.write(`${Math.round(process.memoryUsage.rss() / 1024)}\n`);
});
process.stdin.on("end", () => process.exit());
