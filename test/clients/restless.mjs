/**
 * A guest that never rests: connections of their own for each request, HTTP/2 sessions whose streams are taken back, bodies that are
 * given up in the middle, and hellos that never come to an end.
 *
 *   node restless.mjs ADDRESS NAME ...
 *
 * Prints what it has seen once a second: "seen {right, other, wrong}". An answer that is another request's, or another name's, is wrong.
 */
import http2 from "node:http2";
import https from "node:https";
import net from "node:net";
import tls from "node:tls";

const [host, ...names] = process.argv.slice(2);
const seen = { right: 0, other: 0, wrong: 0 };
const below = (n) => Math.floor(Math.random() * n);
const chance = (part) => Math.random() < part;
const to = (servername, protocol) => ({ host, port: 443, servername, rejectUnauthorized: false, ALPNProtocols: [protocol] });
let asked = 0;

function judge(name, path, status, text) {
  if (status === 200 && text === `origin ${name} ${path}`) seen.right++;
  else if (status === 200) {
    seen.wrong++;
    console.log(`wrong: ${name} ${path} got ${text.slice(0, 100)}`);
  } else seen.other++;
}

const alone = () => new Promise((done) => {
  const name = names[below(names.length)], path = `/${++asked}`;
  const request = https.request({ ...to(name, "http/1.1"), agent: false, path, method: "POST", headers: { host: name }, timeout: 8_000 }, (response) => {
    let text = "";
    response.on("data", (chunk) => {
      text += chunk;
      if (chance(0.02)) request.destroy();
    });
    response.on("end", () => judge(name, path, response.statusCode, text));
    response.on("error", () => undefined);
  });
  request.on("error", () => seen.other++);
  request.on("timeout", () => request.destroy());
  request.on("close", done);
  request.end(chance(0.2) ? Buffer.alloc(below(300_000)) : "x");
});

const together = () => new Promise((done) => {
  const name = names[below(names.length)];
  const session = http2.connect(`https://${name}`, { createConnection: () => tls.connect(to(name, "h2")) });
  const timer = setTimeout(() => session.destroy(), 10_000);
  session.on("error", () => seen.other++);
  session.on("close", () => {
    clearTimeout(timer);
    done();
  });
  let left = 20;
  const over = () => { if (--left === 0) session[chance(0.5) ? "destroy" : "close"](); };
  for (let i = 0; i < 20; i++) {
    const path = `/${++asked}`;
    const stream = session.request({ ":path": path, ":method": "POST", ":authority": name });
    let text = "", status = 0;
    stream.setEncoding("utf8");
    stream.on("response", (head) => { status = head[":status"]; });
    stream.on("data", (chunk) => { text += chunk; });
    stream.on("end", () => { if (stream.rstCode === 0) judge(name, path, status, text); });
    stream.on("error", () => seen.other++);
    stream.on("close", over);
    if (chance(0.1)) setTimeout(() => stream.close(http2.constants.NGHTTP2_CANCEL), below(20));
    stream.end(chance(0.1) ? Buffer.alloc(200_000) : "y");
  }
});

const unfinished = () => new Promise((done) => {
  const socket = net.connect(443, host, () => {
    socket.write(Buffer.of(0x16, 3, 1, 0xff, 0xff).subarray(0, 1 + below(5)));
    setTimeout(() => socket.destroy(), below(300));
  });
  socket.on("error", () => undefined);
  socket.on("close", done);
});

async function forEver(what) {
  for (;;) {
    await what();
    await new Promise((resolve) => { setTimeout(resolve, 1); });
  }
}
for (const what of [alone, together, unfinished]) for (let i = 0; i < 4; i++) void forEver(what);
setInterval(() => console.log(`seen ${JSON.stringify(seen)}`), 1_000);
