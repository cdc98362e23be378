/**
 * The parts of a rule, as text: destination, protocols, ports, and the short token of the command line.
 *
 * Holds always: each part is read strictly, and what is refused comes with what to write instead. Files and tokens share
 * these readings, so both mean the same.
 */
import { formatPrefix, hasHostBits, isV4, maskPrefix, parsePrefix } from "../addresses/address.js";
import { groupOfPrefix, groups, staticGroups } from "../addresses/groups.js";
import { type Report, nearest, suggest } from "./diagnostics.js";
import { type Parsed, accepted, formatPattern, parsePattern, publicSuffix, refused, suffixBelow } from "./names.js";
import { type Action, type Destination, type Direction, type NamePattern, type Place, type PortRange, Proto, type Rule } from "./types.js";
import type { Prefix } from "../addresses/address.js";

/** A rule before it has its position in the policy. */
export type UnplacedRule = Omit<Rule, "index">;

const groupWords: readonly string[] = [...groups, "any", "doh"];
const protoWords: Readonly<Record<string, number>> = { tcp: Proto.tcp, udp: Proto.udp, icmp: Proto.icmp, icmpv6: Proto.icmpv6 };

/** A prefix as policies write it: no bits behind its length, no IPv4-mapped form. */
export function parsePolicyPrefix(text: string): Parsed<Prefix> {
  const quoted = JSON.stringify(text);
  const prefix = parsePrefix(text);
  if (prefix === null) return refused(`${quoted} is not an address or prefix`, "write an address such as 192.0.2.1 or a prefix such as 192.0.2.0/24 or 2001:db8::/32");
  if (hasHostBits(prefix)) return refused(`${quoted} has bits set behind its length`, `write ${formatPrefix(maskPrefix(prefix))}, or the address without a length`);
  // One address must have one form: a mapped prefix would otherwise be an IPv6 rule about addresses that packets carry as IPv4.
  if (prefix.family === 6 && prefix.length >= 96 && isV4(prefix.bytes)) {
    return refused(`${quoted} is an IPv4-mapped prefix`, `write the IPv4 form: ${formatPrefix({ ...prefix, family: 4 })}`);
  }
  return accepted(prefix);
}

/** A pattern that may stand in a rule, for an action; notes private public suffixes of an allow as a warning. */
export function parseRulePattern(text: string, action: Action, place: Place, report: Report): NamePattern | null {
  const pattern = parsePattern(text);
  if (!pattern.ok) {
    report.error(place, pattern.refusal.message, pattern.refusal.remedy);
    return null;
  }
  const suffix = publicSuffix(pattern.value);
  const name = pattern.value.labels.join("."), deeper = suffixBelow(pattern.value);
  if (suffix === "icann") {
    report.error(place, `${JSON.stringify(text)} covers ${deeper === null ? "a public suffix" : `public suffixes such as ${deeper.name}`}: anybody can register names there`, action === "allow"
      ? `name the domains you mean, such as *.example.${deeper?.name ?? name}`
      : `name the domains you mean; to refuse all of ${name}, put the pattern into a file and name that under dns.block`);
    return null;
  }
  if (suffix === "private" && action === "allow") {
    report.warn(place, `${JSON.stringify(text)}${deeper === null ? "" : ` covers ${deeper.name} and the like`}: customers of ${name} can all create names there`, "name the ones you mean if you can");
  }
  return pattern.value;
}

/** What a rule is about. Null after an error was reported. */
export function parseDestination(text: string, action: Action, place: Place, report: Report): Destination | null {
  if (text === "any") return { kind: "any" };
  if (text === "doh") return { kind: "doh" };
  const group = groups.find((known) => known === text);
  if (group !== undefined) return { kind: "group", group };
  const named = text.startsWith("suffix:") || text.startsWith("*");
  if (!named && (/^[\d.]+(\/.*)?$/.test(text) || /^[0-9a-f.]*:[0-9a-f:.]*(\/.*)?$/i.test(text) || parsePrefix(text) !== null)) {
    const prefix = parsePolicyPrefix(text);
    if (prefix.ok) return { kind: "prefix", prefix: prefix.value, group: groupOfPrefix(staticGroups, prefix.value) };
    report.error(place, prefix.refusal.message, prefix.refusal.remedy);
    return null;
  }
  if (text.startsWith("[")) {
    report.error(place, `${JSON.stringify(text)}: brackets belong to tokens only`, `write ${text.replaceAll(/[[\]]/g, "")}`);
    return null;
  }
  if (!text.includes(".") && !named) {
    const near = nearest(text, groupWords);
    if (near !== null) {
      report.error(place, `unknown destination ${JSON.stringify(text)}`, `did you mean ${near}? A host name of one label is written with a dot behind it: ${text}.`);
      return null;
    }
    // Without the dot a word that was meant as a group would be a host that nobody has, and the rule would do nothing.
    if (text !== "localhost" && parsePattern(text).ok) {
      report.error(place, `unknown destination ${JSON.stringify(text)}`, `write one of ${groupWords.join(", ")}, an address or a name; a host name of one label is written with a dot behind it: ${text}.`);
      return null;
    }
  }
  const pattern = parseRulePattern(text, action, place, report);
  return pattern === null ? null : { kind: "name", pattern };
}

/** Text of a destination, as it would be written in a file. */
export function formatDestination(destination: Destination): string {
  switch (destination.kind) {
    case "group": return destination.group;
    case "prefix": return formatPrefix(destination.prefix);
    case "name": return formatPattern(destination.pattern);
    case "any": case "doh": return destination.kind;
  }
}

/** A protocol by name or number. */
export function parseProto(value: string | number): Parsed<number> {
  if (typeof value === "number") {
    return Number.isInteger(value) && value >= 0 && value <= 255 ? accepted(value) : refused(`protocol number ${value} does not exist`, "write 0 to 255, or tcp, udp, icmp, icmpv6; ports belong under `ports`");
  }
  const number = Object.hasOwn(protoWords, value) ? protoWords[value] : undefined;
  if (number !== undefined) return accepted(number);
  if (value === "any" || value === "all") return refused(`protocol ${JSON.stringify(value)} is unknown`, "leave `proto` out: that is tcp, udp and ICMP echo");
  return refused(`protocol ${JSON.stringify(value)} is unknown`, nearest(value, Object.keys(protoWords)) === null ? "write tcp, udp, icmp, icmpv6 or a protocol number" : suggest(value, Object.keys(protoWords)));
}

export function formatProto(number: number): string {
  return Object.entries(protoWords).find(([, known]) => known === number)?.[0] ?? String(number);
}

/** `443` or `8000-8999`. */
export function parsePorts(text: string): Parsed<PortRange> {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text);
  const remedy = "write a port from 1 to 65535, or a range such as 8000-8999";
  if (match === null) return refused(`${JSON.stringify(text)} is not a port`, remedy);
  const [whole, from, to = from] = match as unknown as [string, string, string | undefined];
  if ([from, to].some((digits) => (digits as string).startsWith("0") || Number(digits) > 65535)) return refused(`${JSON.stringify(whole)} is not a port`, remedy);
  const range = { first: Number(from), last: Number(to) };
  return range.first <= range.last ? accepted(range) : refused(`the port range ${whole} runs backwards`, `write ${range.last}-${range.first}`);
}

/** Sorted, overlapping and adjoining ranges made one. */
export function mergePorts(ranges: readonly PortRange[]): PortRange[] {
  const merged: PortRange[] = [];
  for (const range of [...ranges].sort((a, b) => a.first - b.first)) {
    const last = merged.at(-1);
    if (last !== undefined && range.first <= last.last + 1) merged[merged.length - 1] = { first: last.first, last: Math.max(last.last, range.last) };
    else merged.push(range);
  }
  return merged;
}

export function formatPorts(ranges: readonly PortRange[]): string {
  return ranges.map(({ first, last }) => (first === last ? String(first) : `${first}-${last}`)).join(",");
}

/** Puts a rule's parts together and checks what only the whole shows. Null after an error was reported. */
export function assembleRule(
  parts: { action: Action; direction: Direction; destination: Destination; protos: readonly number[] | null; ports: readonly PortRange[] | null },
  place: Place, report: Report,
): UnplacedRule | null {
  const { action, direction, destination } = parts;
  const protos = parts.protos === null ? null : [...new Set(parts.protos)].sort((a, b) => a - b);
  const portless = parts.ports === null ? undefined : protos?.find((proto) => proto !== Proto.tcp && proto !== Proto.udp);
  if (portless !== undefined) {
    const name = formatProto(portless);
    report.error(place, `protocol ${name} has no ports`, `remove \`ports\`, or make a rule of its own for ${name}`);
    return null;
  }
  return { action, direction, destination, protos, ports: parts.ports === null ? null : mergePorts(parts.ports), place };
}

const tokenForm = "write ACTION[:DIRECTION]@DESTINATION[:PROTOCOL[:PORTS]], such as allow@public:tcp:443 or deny@[2001:db8::]/32";

/**
 * A rule of the command line: `allow@public:tcp:443`, `deny@metadata`, `allow:ingress@any:tcp:8080-8089,9000`,
 * `allow@[2606:4700::]/32`, `allow@suffix:example.com:tcp,udp:443`, `allow@192.0.2.1:proto-47`.
 * @param number the token's place on the command line, from 1.
 * @returns null after an error was reported.
 */
export function readRuleToken(token: string, number: number, report: Report): UnplacedRule | null {
  const place: Place = { file: `--rule ${JSON.stringify(token)}`, line: null, rule: number };
  const failed = (message: string, remedy: string): null => {
    report.error(place, message, remedy);
    return null;
  };
  const at = token.indexOf("@");
  if (at < 0) return failed("the token has no `@`", tokenForm);
  const [actionText, directionText, ...more] = token.slice(0, at).split(":") as [string, ...string[]];
  if (more.length > 0) return failed("too many words before `@`", tokenForm);
  if (actionText !== "allow" && actionText !== "deny") return failed(`unknown action ${JSON.stringify(actionText)}`, suggest(actionText, ["allow", "deny"]));
  if (directionText !== undefined && directionText !== "egress" && directionText !== "ingress") {
    return failed(`unknown direction ${JSON.stringify(directionText)}`, suggest(directionText, ["egress", "ingress"]));
  }
  const body = token.slice(at + 1);
  let destinationText: string;
  let rest: string;
  if (body.startsWith("[")) {
    const match = /^\[([^\]]*)\](\/[^:]*)?(.*)$/.exec(body);
    if (match === null) return failed("the bracket is not closed", tokenForm);
    if (!(match[1] as string).includes(":")) return failed("only IPv6 addresses stand in brackets", `write ${(match[1] as string) + (match[2] ?? "")}`);
    destinationText = (match[1] as string) + (match[2] ?? "");
    rest = match[3] as string;
    if (rest !== "" && !rest.startsWith(":")) return failed(`${JSON.stringify(rest)} after the bracket`, tokenForm);
  } else if (/^[a-z][a-z0-9+.-]*:\/\//i.test(body)) {
    return failed("a URL is no destination", "write the host's name alone, without scheme and path; the port as :tcp:PORT");
  } else {
    const colon = body.indexOf(":", body.startsWith("suffix:") ? 7 : 0);
    destinationText = colon < 0 ? body : body.slice(0, colon);
    rest = colon < 0 ? "" : body.slice(colon);
  }
  if (parsePrefix(body) !== null && body.includes(":") && !body.startsWith("[")) return failed("an IPv6 address needs brackets in a token", `write [${body.split("/")[0] as string}]${body.includes("/") ? `/${body.split("/")[1] as string}` : ""}`);
  if (destinationText === "") return failed("the token names no destination", tokenForm);
  const words = rest === "" ? [] : rest.slice(1).split(":");
  if (words.length > 2) return failed("too many words after the destination", tokenForm);
  const destination = parseDestination(destinationText, actionText, place, report);
  if (destination === null) return null;
  let protos: number[] | null = null;
  if (words[0] === "") return failed("the protocol is empty", `write it, such as :tcp:${words[1] ?? "443"}, or leave the colon out`);
  if (words[0] !== undefined) {
    protos = [];
    for (const word of words[0].split(",")) {
      // A bare number would be read as a port by one and as a protocol by another.
      if (/^[\d-]+$/.test(word)) return failed(`${JSON.stringify(word)} could be a port or a protocol`, `write :tcp:${word} for the port, or :proto-${word} for the protocol number`);
      const proto = parseProto(/^proto-\d{1,3}$/.test(word) ? Number(word.slice(6)) : word);
      if (!proto.ok) return failed(proto.refusal.message, proto.refusal.remedy);
      protos.push(proto.value);
    }
  }
  let ports: PortRange[] | null = null;
  if (words[1] !== undefined) {
    ports = [];
    for (const word of words[1].split(",")) {
      const range = parsePorts(word);
      if (!range.ok) return failed(range.refusal.message, range.refusal.remedy);
      ports.push(range.value);
    }
  }
  return assembleRule({ action: actionText, direction: directionText ?? "egress", destination, protos, ports }, place, report);
}
