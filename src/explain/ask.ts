/**
 * The facts of one question to `explain`, gathered from a running agent.
 *
 * Holds always: reads only; a question that cannot be understood is refused with what would be; nothing is resolved.
 */
import { clockMonotonicCoarse } from "../../native/index.js";
import { parseAddress, type Address } from "../addresses/address.js";
import type { Agent } from "../agent/daemon.js";
import { protocolName } from "../agent/verdicts.js";
import type { ExplainQuery } from "../api/schema.js";
import { readHostResolvers } from "../dns/host-resolvers.js";
import { labelsOf } from "../dns/wire.js";
import { EnforcerError } from "../errors.js";
import { parseName } from "../policy/names.js";
import { parseProto } from "../policy/rules.js";
import { Proto } from "../policy/types.js";
import { explain, type Explanation, type ExplainQuestion, type PinFact } from "./explain.js";

const schemes: Readonly<Record<string, number>> = { "http:": 80, "https:": 443, "ws:": 80, "wss:": 443, "ftp:": 21, "ssh:": 22, "git:": 9418, "postgres:": 5432, "postgresql:": 5432, "redis:": 6379, "mysql:": 3306, "amqp:": 5672, "mongodb:": 27017 };

/** Which the agent's resolver follows. */
const RESOLV_CONF = "/etc/resolv.conf";

/** @throws EnforcerError E_REQUEST. */
export function readQuestion({ destination, protocol, port, direction = "egress" }: ExplainQuery): ExplainQuestion {
  let host = destination, proto: number = Proto.tcp, chosen = port ?? 443;
  /** The port that the destination names. */
  let named: number | null = null;
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(destination)) {
    let url: URL;
    try {
      url = new URL(destination);
    } catch (cause) {
      throw new EnforcerError("E_REQUEST", `${destination} is not a URL`, { cause, remedy: "write a URL, a name or an address" });
    }
    const standard = schemes[url.protocol];
    if (url.port === "" && standard === undefined && port === undefined) throw new EnforcerError("E_REQUEST", `${url.protocol} has no port that is known here`, { remedy: "give protocol and port" });
    host = url.hostname.startsWith("[") ? url.hostname.slice(1, -1) : url.hostname;
    // A URL parser leaves the port out that its scheme has by itself.
    named = url.port !== "" ? Number(url.port) : /^[^/]*\/\/[^/?#]*:\d+(?:[/?#]|$)/.test(destination) ? standard ?? null : null;
    chosen = port ?? named ?? standard!;
  } else {
    // As in a URL: NAME:PORT, [ADDRESS] or [ADDRESS]:PORT. An IPv6 address alone has more colons, and no brackets.
    const ended = /^(\[[0-9a-f:.]+\]|[^:[\]]+)(?::(\d{1,5}))?$/i.exec(destination);
    if (ended !== null) {
      host = ended[1]!.startsWith("[") ? ended[1]!.slice(1, -1) : ended[1]!;
      if (ended[2] !== undefined && Number(ended[2]) > 65535) throw new EnforcerError("E_REQUEST", `${destination} has no port`, { remedy: "a port is 0 to 65535" });
      if (ended[2] !== undefined) named = Number(ended[2]);
      chosen = port ?? named ?? chosen;
    }
  }
  if (protocol !== undefined) {
    const parsed = parseProto(/^\d+$/.test(protocol) ? Number(protocol) : protocol);
    if (!parsed.ok) throw new EnforcerError("E_REQUEST", parsed.refusal.message, { remedy: "write tcp, udp, icmp, icmpv6 or a number from 0 to 255; a port comes behind it" });
    proto = parsed.value;
  }
  if (port !== undefined && proto !== Proto.tcp && proto !== Proto.udp) throw new EnforcerError("E_REQUEST", `${protocolName(proto)} has no ports`, { remedy: "leave the port out, or ask about tcp or udp" });
  if (port !== undefined && named !== null && named !== port) throw new EnforcerError("E_REQUEST", `two ports: ${named} of ${destination}, and ${port}`, { remedy: "name one" });
  const address = parseAddress(host);
  if (address !== null) return { direction, address, name: null, protocol: proto, port: chosen };
  const name = parseName(host);
  if (!name.ok) throw new EnforcerError("E_REQUEST", name.refusal.message, { remedy: "write a URL, a name or an address" });
  if (direction === "ingress") throw new EnforcerError("E_REQUEST", "inbound traffic comes from an address, not from a name", { remedy: "give the address of the far side" });
  return { direction, address: null, name: name.value, protocol: proto, port: chosen };
}

/** @throws EnforcerError E_NO_SANDBOX, E_REQUEST. */
export async function explainQuestion(agent: Agent, name: string, query: ExplainQuery): Promise<Explanation> {
  const { engine, sandbox } = agent.enforced(name);
  const question = readQuestion(query);
  const now = Number(clockMonotonicCoarse() / 1_000_000_000n);
  const [live, former] = await Promise.all([engine.enforcer.pins(sandbox), engine.enforcer.formerPins(sandbox)]);
  const pins: PinFact[] = [
    ...live.map(({ labels, address, expires }) => ({ labels, address, left: expires - now })),
    ...former.map((pin) => ({ labels: pin.name.split("."), address: pin.address, left: Math.min(0, pin.expired - now) })),
  ];
  return explain({
    sandbox: name, policy: sandbox.policy, floor: agent.floor?.policy ?? null, groups: engine.enforcer.groups, pins,
    others: question.address === null ? [] : await others(agent, name, question.address), configured: agent.config.groups,
    localSuffixes: readHostResolvers(RESOLV_CONF).searchDomains.map(labelsOf),
    hostAddresses: [...agent.engines].flatMap(({ enforcer }) => [...enforcer.view.addresses, ...enforcer.gateways]),
  }, question);
}

/** Who else was told the address. */
async function others(agent: Agent, name: string, address: Address): Promise<{ sandbox: string; name: string }[]> {
  const found = await Promise.all(agent.known().map(async (known) => {
    if (known.state !== "enforced" || known.name === name) return null;
    const names = await known.engine.enforcer.namesOf(known.sandbox, address).catch(() => []);
    return names[0] === undefined ? null : { sandbox: known.name, name: names[0] };
  }));
  return found.filter((other) => other !== null);
}
