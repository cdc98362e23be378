/**
 * The world around a benchmark of forwarding or of the resolver: guests behind veth pairs, the host between, and "the
 * internet" in a namespace of its own, with public addresses.
 */
import { ip, must, namespace, sysctl } from "./place.mjs";

/** The host's address toward the internet, and the internet's router. */
export const UPLINK = /** @type {const} */ ({ host: "185.199.108.2", router: "185.199.108.1" });

/** The host forwards; behind its uplink lie these addresses. @param {readonly string[]} addresses */
export function internet(addresses) {
  sysctl({ "ipv4/ip_forward": 1 });
  namespace("internet");
  ip(`link add up0 type veth peer name eth0 netns internet
      link set up0 up
      addr add ${UPLINK.host}/24 dev up0
      route add default via ${UPLINK.router}`);
  ip(["link set eth0 up", `addr add ${UPLINK.router}/24 dev eth0`, ...addresses.map((address) => `addr add ${address}/32 dev lo`), `route add default via ${UPLINK.host}`].join("\n"), "internet");
}

/** @param {string} name of namespace and device @param {number} net third octet of its addresses, 1..9 @returns {import("./agent.mjs").Guest & {name: string}} */
export function guestBehind(name, net) {
  namespace(name);
  const mac = `02:fc:00:00:0${net}:02`, own = `172.30.${net}.2`, gateway = `172.30.${net}.1`;
  ip(`link add ${name} address 02:fc:00:00:01:01 type veth peer name eth0 address ${mac} netns ${name}
      link set ${name} up
      addr add ${gateway}/24 dev ${name}
      neigh replace ${own} lladdr ${mac} dev ${name} nud permanent`);
  ip(`link set eth0 up
      addr add ${own}/24 dev eth0
      route add default via ${gateway}
      neigh replace ${gateway} lladdr 02:fc:00:00:01:01 dev eth0 nud permanent`, name);
  const [{ ifindex }] = JSON.parse(must(["ip", "-j", "link", "show", name]));
  return { name, device: name, ifindex, mac, addresses: [own], gateways: [gateway] };
}
