// @ts-check
/**
 * What the demo's guest tries, and what must come of it under which policy: the table of the demo as data.
 *
 * Each attempt is made twice: without the enforcer, where it must get through (or it would prove nothing), and with it.
 */
import { randomBytes } from "node:crypto";
import { ADDRESS } from "../test/lib/world.mjs";

/** The policies, as a user would write them. */
export const POLICIES = {
  public: `# everything public, nothing private; one name is blocked
default_egress: deny
rules:
  - allow: public
dns:
  block: [ads.example]
`,
  names: `# one site by name, and nothing else
default_egress: deny
rules:
  - allow: site.example
    proto: tcp
    ports: [80]
`,
  tls: `# two tenants of one shared address by name, and not the third; TLS stays as it is
default_egress: deny
rules:
  - {allow: shop.example, proto: tcp, ports: [443]}
  - {allow: news.example, proto: tcp, ports: [443]}
`,
  secret: `# the guest holds a placeholder; the value goes to one host only
default_egress: deny
rules:
  - {allow: shop.example, proto: tcp, ports: [443]}
  - {allow: news.example, proto: tcp, ports: [443]}
tls: {intercept: true, upstream_ca: [demo-root.pem]}
secrets:
  SHOP_TOKEN: {from: {file: shop-token}, allowed_hosts: [shop.example]}
`,
};

/** Value of the demo's secret, made for this run; nobody's. */
export const TOKEN = `demo-${randomBytes(16).toString("hex")}`;
/** What the guest's environment holds instead; the control has none and sends this. */
const PLACEHOLDER = "$SHOP_TOKEN";

/**
 * The HTTPS server of the demo's internet, one for all names: what it was asked, and whether it knows the token that came along.
 * Arguments: folder with origin.key and a certificate for each name, the token.
 */
export const ORIGIN = `
const { readFileSync } = require("node:fs");
const [folder, token] = process.argv.slice(1);
const key = readFileSync(folder + "/origin.key");
const SNICallback = (name, done) => done(null, require("node:tls").createSecureContext({ key, cert: readFileSync(folder + "/" + name + ".pem") }));
require("node:https").createServer({ SNICallback }, (request, response) => {
  const given = request.headers.authorization;
  response.end(given === undefined ? "origin " + request.headers.host : given === "Bearer " + token ? "token accepted" : "token unknown");
}).listen({ host: "::", port: 443 }, () => console.log("ready"));
`;

/** Names that the origin has a certificate for. */
export const SHARED = ["shop.example", "news.example", "rival.example"];

/** @type {Record<string, import("../test/lib/services.mjs").Entry | import("../test/lib/services.mjs").Entry[]>} */
export const ZONE = {
  "site.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] },
  "ads.example": { A: [ADDRESS.site4b], AAAA: [ADDRESS.site6b] },
  "shop.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] },
  "rival.example": { A: [ADDRESS.site4], AAAA: [ADDRESS.site6] },
  "news.example": { A: [ADDRESS.site4b], AAAA: [ADDRESS.site6b] },
  "rebind.example": [{ A: [ADDRESS.site4], AAAA: [ADDRESS.site6], ttl: 0 }, { A: [ADDRESS.metadata4], AAAA: [ADDRESS.metadata6], ttl: 0 }],
  "mixed.example": { A: [ADDRESS.site4b, ADDRESS.private4], AAAA: [ADDRESS.site6b, ADDRESS.private6] },
};

/** The metadata address inside the NAT64 prefix (RFC 6052). */
export const NAT64_METADATA = "64:ff9b::a9fe:a9fe";

/**
 * @typedef {object} Attempt
 * @property {string} what
 * @property {keyof typeof POLICIES} policy
 * @property {readonly string[]} [probe] arguments of test/tools/probe.c
 * @property {readonly string[]} [curl] arguments of curl, instead of a probe
 * @property {readonly string[]} [before] a probe made first; it must succeed in both runs
 * @property {string} [sees] what the guest must see with the enforcer, in part
 * @property {"allow" | "deny"} verdict
 * @property {string} [reason] of the denial
 * @property {Record<string, unknown>} [denial] fields of the denial line
 * @property {{server: string, name: string}} [notAsked] a resolver of the guest's choice, which must not hear of the question
 */

/** @param {string} sibling6 @returns {Attempt[]} */
export function attempts(sibling6) {
  /** @type {(what: string, address: string, reason: string, policy?: keyof typeof POLICIES) => Attempt} */
  const denied = (what, address, reason, policy = "public") =>
    ({ what: `${what}, ${address}`, policy, probe: ["http", address, "80", "guest.example", "/"], verdict: "deny", reason, denial: { destination: address, port: 80 } });
  /** @type {(what: string, name: string, type: "A" | "AAAA", reason: string, before?: readonly string[]) => Attempt} */
  const refused = (what, name, type, reason, before) => ({
    what: `${what}, ${type}`, policy: "public", probe: ["fetch", "8.8.8.8", name, "80", "/", type], verdict: "deny", reason, denial: { name, type },
    ...(before === undefined ? {} : { before }),
  });
  /** @type {(transport: "udp" | "tcp", server: string) => Attempt} */
  const dig = (transport, server) => ({
    what: `dig ${transport === "tcp" ? "+tcp " : ""}@${server} site.example`, policy: "public", probe: ["dns", transport, server, "site.example", "A"],
    verdict: "allow", notAsked: { server, name: "site.example" },
  });
  /** @type {(address: string) => Attempt} */
  const tagged = (address) => ({
    what: `frame with two VLAN tags, SYN to ${address}`, policy: "public", probe: ["vlan", "eth0", ADDRESS.gateway4, address, "80", "0x8100,0x8100"],
    verdict: "deny", reason: "vlan", denial: { reason: "vlan" },
  });
  return [
    { what: "site by name over HTTP, IPv4", policy: "public", probe: ["fetch", "8.8.8.8", "site.example", "80", "/", "A"], verdict: "allow" },
    { what: "site by name over HTTP, IPv6", policy: "public", probe: ["fetch", "2001:4860:4860::8888", "site.example", "80", "/", "AAAA"], verdict: "allow" },
    denied("cloud metadata", ADDRESS.metadata4, "default-metadata"),
    denied("cloud metadata", ADDRESS.metadata6, "default-metadata"),
    denied("metadata by NAT64", NAT64_METADATA, "default-metadata"),
    denied("LAN host", ADDRESS.lan4, "default-private"),
    denied("LAN host", ADDRESS.lan6, "default-private"),
    denied("host's uplink", ADDRESS.host4, "default-host"),
    denied("host's uplink", ADDRESS.host6, "default-host"),
    denied("host's tap", ADDRESS.gateway4, "default-host"),
    denied("host's tap", ADDRESS.gateway6, "default-host"),
    denied("sibling sandbox", ADDRESS.sibling4, "default-private"),
    denied("sibling sandbox", sibling6, "default-private"),
    refused("name on the block list", "ads.example", "A", "blocked"),
    refused("name on the block list", "ads.example", "AAAA", "blocked"),
    refused("rebinding name, second answer", "rebind.example", "A", "rebind", ["dns", "udp", "8.8.8.8", "rebind.example", "A"]),
    refused("rebinding name, second answer", "rebind.example", "AAAA", "rebind", ["dns", "udp", "8.8.8.8", "rebind.example", "AAAA"]),
    refused("answer of public and private", "mixed.example", "A", "rebind"),
    refused("answer of public and private", "mixed.example", "AAAA", "rebind"),
    dig("udp", "8.8.8.8"),
    dig("tcp", "8.8.8.8"),
    dig("udp", "2001:4860:4860::8888"),
    dig("tcp", "2001:4860:4860::8888"),
    tagged(ADDRESS.metadata4),
    tagged(ADDRESS.metadata6),
    { what: `ping ${ADDRESS.site4}`, policy: "public", probe: ["ping", ADDRESS.site4], verdict: "allow" },
    { what: `ping ${ADDRESS.site6}`, policy: "public", probe: ["ping", ADDRESS.site6], verdict: "allow" },
    denied("the site's address, not resolved", ADDRESS.site4, "no-pin", "names"),
    denied("the site's address, not resolved", ADDRESS.site6, "no-pin", "names"),
    { what: "the site by its name, IPv4", policy: "names", probe: ["fetch", "8.8.8.8", "site.example", "80", "/", "A"], verdict: "allow" },
    { what: "the site by its name, IPv6", policy: "names", probe: ["fetch", "8.8.8.8", "site.example", "80", "/", "AAAA"], verdict: "allow" },
    { what: "https://shop.example/ on a shared address", policy: "tls", curl: ["-k", "https://shop.example/"], verdict: "allow" },
    {
      what: "another tenant of that address, curl --resolve", policy: "tls", before: ["dns", "udp", "8.8.8.8", "shop.example", "A"],
      curl: ["-k", "--resolve", `rival.example:443:${ADDRESS.site4}`, "https://rival.example/"], verdict: "deny", reason: "name-denied", denial: { name: "rival.example" },
    },
    {
      what: "an allowed name at another address, --resolve", policy: "tls", before: ["dns", "udp", "8.8.8.8", "news.example", "A"],
      curl: ["-k", "--resolve", `shop.example:443:${ADDRESS.site4b}`, "https://shop.example/"], verdict: "deny", reason: "not-pinned", denial: { name: "shop.example" },
    },
    { what: "a secret's placeholder, to its host", policy: "secret", curl: ["-k", "-H", `Authorization: Bearer ${PLACEHOLDER}`, "https://shop.example/"], verdict: "allow", sees: "token accepted" },
    {
      what: "the same placeholder, to another host", policy: "secret", curl: ["-k", "-H", `Authorization: Bearer ${PLACEHOLDER}`, "https://news.example/"],
      verdict: "deny", reason: "secret", denial: { name: "news.example" },
    },
  ];
}
