/**
 * The interception device: a veth pair between the taps' namespace and one of the agent's own, where the resolver listens.
 *
 *   taps' namespace                                   agent's own namespace
 *   program --bpf_redirect--> enf0 (no address)  ====  enf1 240.0.0.1, <ULA>::1   lo
 *   another taps' namespace
 *   program --bpf_redirect--> enf0 (no address)  ====  enf2 (no address): answers leave by enf1, where a program sends them here
 *
 * Holds always: only programs put frames on enf0, and what comes out of it is addressed to NOBODY_MAC, so that the host's
 * stack drops it (PACKET_OTHERHOST) wherever no program takes it. No ARP, neighbour discovery, router solicitation or
 * multicast listener report leaves either end: both have IFF_NOARP, everything in the two sandbox ranges is behind one
 * gateway with a permanent neighbour entry, and no link-local address is made. One neighbour entry serves all sandboxes,
 * so the neighbour table's limits (gc_thresh3, shared by all namespaces) do not matter. If any step fails, the pair is
 * deleted again. Does not: open sockets, load programs.
 */
import { compareBytes, fromV4, type Address, type Prefix } from "../addresses/address.js";
import { EnforcerError } from "../errors.js";
import { addAddress, addNeighbour, addRoute, createVeth, deleteLink, findLink, listRoutes, setLink } from "./links.js";
import { inNetns } from "./request.js";
import { AddressFlag, OPER_UP, RouteType } from "./rtnetlink.js";
import { kernelHasIpv6, writeSysctl, type SysctlFamily } from "./sysctl.js";

/** Marks the pair as ours (ip link shows it), so that one left over may be deleted and a stranger's is not. */
const ALIAS = "enforcer resolver";

/** Locally administered, fixed: they survive re-creation and say whose they are ("enf"). */
const NEAR_MAC = Uint8Array.of(0x02, 0x65, 0x6e, 0x66, 0x00, 0x00);
const FAR_MAC = Uint8Array.of(0x02, 0x65, 0x6e, 0x66, 0x00, 0x01);
/** Destination of all frames that leave enf1; neither end's own. */
const NOBODY_MAC = Uint8Array.of(0x02, 0x65, 0x6e, 0x66, 0xff, 0xff);

/**
 * Answers are cut to this: the least MTU that IPv6 allows (RFC 8200 section 5), so they fit any guest. It is a locked MTU
 * of the routes, not of the device, so that a guest's larger query still comes in and gets its answer.
 */
const ANSWER_MTU = 1280;
const DEVICE_MTU = 65535;
/** Milliseconds; it takes one or two. */
const READY_WITHIN = 3000;

/** fd3e:6f1b:9a47::/48 is a locally assigned prefix (RFC 4193) chosen at random for this use; subnet 0x35 (53). */
function ula(last: number): Address {
  return Uint8Array.of(0xfd, 0x3e, 0x6f, 0x1b, 0x9a, 0x47, 0, 0x35, 0, 0, 0, 0, 0, 0, 0, last);
}

/** Sandbox slot s is seen at NET4 | (s + 256): 240.0.0.0/4. */
const NET4: Prefix = { bytes: fromV4(240, 0, 0, 0), length: 96 + 4, family: 4 };
/** Sandbox slot s is seen at NET6 with the last 32 bits s + 256: fd3e:6f1b:9a47:35::/96. */
const NET6: Prefix = { bytes: ula(0), length: 96, family: 6 };
const AGENT4 = fromV4(240, 0, 0, 1), GATEWAY4 = fromV4(240, 0, 0, 2);
const AGENT6 = ula(1), GATEWAY6 = ula(2);

export interface ResolverLink {
  readonly nearName: string;
  readonly farName: string;
  readonly nearIfindex: number;
  readonly farIfindex: number;
  readonly nearMac: Uint8Array;
  readonly farMac: Uint8Array;
  /** The resolver's own addresses, on the far end. */
  readonly addr4: Address;
  readonly addr6: Address;
  readonly net4: Prefix;
  readonly net6: Prefix;
  /** false on a kernel without IPv6: addr6 is then not set on the far end. */
  readonly ipv6: boolean;
}

/**
 * Makes the pair, near end in the calling thread's namespace, far end in agentNetnsFd, both up and ready for sockets.
 * A pair that a dead agent left under the same name is replaced; the caller holds the lock that tells it that it is dead.
 * @param first the far end has the resolver's addresses and the way back; of further pairs into the same namespace it has neither, and
 * what it brings is the resolver's all the same.
 * @throws EnforcerError E_RESOLVER when the name belongs to another device, E_NETLINK; nothing is left behind.
 */
export function createResolverLink({ agentNetnsFd, names, first = true }: { agentNetnsFd: number; names: { near: string; far: string }; first?: boolean }): ResolverLink {
  removeResolverLink(names.near);
  const near = createVeth(
    { name: names.near, mac: NEAR_MAC, mtu: DEVICE_MTU, noArp: true },
    { name: names.far, mac: FAR_MAC, mtu: DEVICE_MTU, noArp: true },
    agentNetnsFd,
  );
  try {
    const ipv6 = kernelHasIpv6();
    setLink(near.ifindex, { alias: ALIAS, noLinkLocal: ipv6 }, names.near);
    if (ipv6) writeSysctl("ipv6", names.near, "disable_ipv6", "1");
    writeAll("ipv4", names.near, { forwarding: "0", rp_filter: "1", arp_ignore: "8", accept_redirects: "0", send_redirects: "0" });
    const farIfindex = inNetns(agentNetnsFd, () => setUpFarEnd(names.far, ipv6, first));
    setLink(near.ifindex, { up: true }, names.near);
    waitUntil(() => isUp(names.near), `${names.near} did not come up`);
    inNetns(agentNetnsFd, () => waitUntilReady(names.far, ipv6 && first));
    return {
      nearName: names.near, farName: names.far, nearIfindex: near.ifindex, farIfindex, nearMac: NEAR_MAC, farMac: FAR_MAC,
      addr4: AGENT4, addr6: AGENT6, net4: NET4, net6: NET6, ipv6,
    };
  } catch (error) {
    deleteLink(near.ifindex);
    throw error;
  }
}

/**
 * The kernel takes the carrier up and gives the device its queue in work of its own, and so it makes an IPv6 address one
 * to which it answers. Before that, packets are lost.
 */
function waitUntil(ready: () => boolean, what: string): void {
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  const end = performance.now() + READY_WITHIN;
  while (!ready()) {
    if (performance.now() > end) throw new EnforcerError("E_RESOLVER", `${what} within ${READY_WITHIN} ms`);
    Atomics.wait(sleeper, 0, 0, 1);
  }
}

function isUp(name: string): boolean { return findLink(name)?.operState === OPER_UP; }

function answersTo(address: Address, ifindex: number): boolean {
  return listRoutes(6, ifindex).some(({ type, destination }) => type === RouteType.local && destination.length === 128 && compareBytes(destination.bytes, address) === 0);
}

function writeAll(family: SysctlFamily, device: string, settings: Record<string, string>): void {
  for (const [setting, value] of Object.entries(settings)) writeSysctl(family, device, setting, value);
}

/** @returns its ifindex. */
function setUpFarEnd(name: string, ipv6: boolean, first: boolean): number {
  const lo = findLink("lo"), far = findLink(name);
  if (lo === null || far === null) throw new EnforcerError("E_RESOLVER", `the agent's namespace lacks ${lo === null ? "lo" : name}`);
  setLink(lo.ifindex, { up: true }, "lo");
  // rp_filter counts as the greater of "all" and the device; nothing is routed through this namespace.
  for (const device of ["all", "default", name]) writeAll("ipv4", device, { forwarding: "0", rp_filter: "0", accept_redirects: "0", send_redirects: "0", accept_source_route: "0" });
  if (ipv6) {
    for (const device of ["all", "default", "lo", name]) writeAll("ipv6", device, { disable_ipv6: "0", forwarding: "0", accept_ra: "0", autoconf: "0", accept_redirects: "0", router_solicitations: "0" });
    writeAll("ipv6", name, { accept_dad: "0", dad_transmits: "0" });
    // Before the device is up, or the kernel makes its link-local address first.
    setLink(far.ifindex, { noLinkLocal: true }, name);
  }
  setLink(far.ifindex, { up: true }, name);
  if (!first) return far.ifindex;
  addAddress(far.ifindex, AGENT4, 32);
  addNeighbour(far.ifindex, GATEWAY4, NOBODY_MAC);
  addRoute({ destination: NET4, ifindex: far.ifindex, gateway: GATEWAY4, preferredSource: AGENT4, mtu: ANSWER_MTU });
  if (!ipv6) return far.ifindex;
  addAddress(far.ifindex, AGENT6, 128, AddressFlag.noDad | AddressFlag.noPrefixRoute);
  addNeighbour(far.ifindex, GATEWAY6, NOBODY_MAC);
  addRoute({ destination: NET6, ifindex: far.ifindex, gateway: GATEWAY6, preferredSource: AGENT6, mtu: ANSWER_MTU });
  return far.ifindex;
}

function waitUntilReady(name: string, addressed: boolean): void {
  waitUntil(() => isUp(name), `${name} did not come up`);
  const { ifindex } = findLink(name)!;
  if (addressed) waitUntil(() => answersTo(AGENT6, ifindex), `${name} did not take its IPv6 address`);
}

/**
 * Deletes the pair that the near end's name stands for; false when there was none.
 * @throws EnforcerError E_RESOLVER when the device of that name is not ours.
 */
export function removeResolverLink(near: string): boolean {
  const link = findLink(near);
  if (link === null) return false;
  if (link.kind !== "veth" || link.alias !== ALIAS) throw new EnforcerError("E_RESOLVER", `a device ${near} exists and is not the enforcer's`, { remedy: `rename or delete it: ip link delete ${near}` });
  return deleteLink(link.ifindex);
}
