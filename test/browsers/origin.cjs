// What a browser meets in the internet, on port 443: a page that does what pages do and tells what came of it, and the ClientHello that
// each connection began with. Run as `node -e TEXT DIRECTORY`, the directory of a world of test/netns/tls-world.ts.
"use strict";
const { createHash } = require("node:crypto"), { readFileSync } = require("node:fs");
const say = (what) => console.log(JSON.stringify(what));
const PAGE = `<!doctype html><title>page</title><script>
(async () => {
  const told = {};
  const done = (name, work) => work().then((value) => { told[name] = value; }, (error) => { told[name] = "failed: " + error; });
  await done("get", async () => (await fetch("/get?" + Math.random())).text());
  await done("upload", async () => (await fetch("/upload", { method: "POST", body: new Uint8Array(3000000).fill(7) })).text());
  await done("download", async () => (await (await fetch("/download")).arrayBuffer()).byteLength);
  await done("events", () => new Promise((resolve, reject) => {
    const source = new EventSource("/events"), seen = [];
    source.onmessage = ({ data }) => { seen.push(data); if (seen.length === 3) { source.close(); resolve(seen.join(" ")); } };
    source.onerror = () => reject(new Error("EventSource"));
  }));
  await done("socket", () => new Promise((resolve, reject) => {
    const socket = new WebSocket("wss://" + location.host + "/socket");
    socket.onopen = () => socket.send("hello");
    socket.onmessage = ({ data }) => { socket.close(); resolve(data); };
    socket.onerror = () => reject(new Error("WebSocket"));
  }));
  await done("many", async () => (await Promise.all(Array.from({ length: 50 }, (_, i) => fetch("/many/" + i).then((answer) => answer.text())))).length);
  await fetch("/told", { method: "POST", body: JSON.stringify(told) });
  document.title = "told";
})();
</script>`;

function answer(request, response) {
  const body = [];
  request.on("data", (chunk) => body.push(chunk));
  request.on("end", () => {
    const octets = Buffer.concat(body), path = request.url.split("?")[0];
    say({ event: "request", name: request.socket.servername ?? null, host: request.headers[":authority"] ?? request.headers.host, version: request.httpVersion, path, agent: request.headers["user-agent"] ?? null });
    if (path === "/page") { response.setHeader("content-type", "text/html"); response.setHeader("alt-svc", 'h3=":443"; ma=3600'); response.end(PAGE); }
    else if (path === "/told") { say({ event: "told", told: JSON.parse(octets.toString()) }); response.end(); }
    else if (path === "/upload") response.end(String(octets.length));
    else if (path === "/download") response.end(Buffer.alloc(3000000, 7));
    else if (path === "/events") {
      response.setHeader("content-type", "text/event-stream");
      let sent = 0;
      const timer = setInterval(() => { response.write("data: " + ++sent + "\n\n"); if (sent === 5) { clearInterval(timer); response.end(); } }, 30);
    } else response.end("origin " + (request.headers[":authority"] ?? request.headers.host) + " " + path);
  });
}
/** A WebSocket that gives one short text message back (RFC 6455). */
function upgrade(request, socket) {
  const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
  socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + "\r\n\r\n");
  socket.on("error", () => {});
  socket.on("data", (frame) => {
    const length = frame[1] & 127;
    if ((frame[0] & 15) !== 1 || length > 125) { socket.end(); return; }
    const text = Buffer.from(frame.subarray(6, 6 + length)).map((octet, i) => octet ^ frame[2 + (i & 3)]);
    socket.write(Buffer.concat([Buffer.of(0x81, length), text]));
  });
}

const tls = require("node:http2").createSecureServer({ key: readFileSync(process.argv[1] + "/origin.key"), cert: readFileSync(process.argv[1] + "/origin.pem"), allowHTTP1: true }, answer);
tls.on("sessionError", () => {});
tls.on("upgrade", upgrade);
tls.on("tlsClientError", (error) => say({ event: "failed", code: error.code }));
require("node:net").createServer((socket) => {
  let hello = Buffer.alloc(0);
  socket.on("error", () => {});
  socket.on("close", () => say({ event: "closed" }));
  socket.on("data", function more(chunk) {
    hello = Buffer.concat([hello, chunk]);
    if (hello.length < 5 || hello.length < 5 + hello.readUInt16BE(3)) return;
    socket.off("data", more);
    socket.pause();
    say({ event: "hello", octets: hello.toString("hex") });
    socket.unshift(hello);
    tls.emit("connection", socket);
  });
}).listen({ host: "::", port: 443 }, () => console.log("ready"));
