/**
 * The enforcer on devices that are no taps: programs, resolver thread and sandboxes, put together from the agent's own parts.
 *
 * A benchmark of the resolver or of forwarding puts its guest behind a veth pair: the user-space half of a tap would cost as
 * much as what is to be measured. The agent itself takes taps only.
 */
import { closeFd, createNetns, openNetns } from "../../native/index.js";
import { ResolverClient } from "../../dist/agent/resolver-client.js";
import { sizesOf } from "../../dist/agent/sandbox.js";
import { formatAddress } from "../../dist/addresses/address.js";
import { groupTable, packGroups } from "../../dist/addresses/groups.js";
import { Globals } from "../../dist/kernel/globals.js";
import { Instance } from "../../dist/kernel/instance.js";
import { SandboxTables } from "../../dist/kernel/sandbox-tables.js";
import { attachHooks, detachHooks, RESOLVER_HOOKS, TAP_HOOKS } from "../../dist/kernel/tap-link.js";
import { createResolverLink } from "../../dist/net/resolver-link.js";
import { compilePolicy } from "../../dist/policy/compile.js";
import { macBytes } from "./frames.mjs";
import { address, policyOf, prefix } from "./kernel.mjs";

/**
 * @typedef {object} Guest
 * @property {string} device
 * @property {number} ifindex
 * @property {string} mac
 * @property {readonly string[]} addresses
 * @property {readonly string[]} gateways
 */

export class BareAgent {
  /** @param {{sandboxes?: number, hostAddresses: readonly string[], connected: readonly string[], resolver?: boolean}} options */
  static async start({ sandboxes = 4, hostAddresses, connected, resolver = true }) {
    const agent = new BareAgent(sandboxes, groupTable({ hostAddresses: hostAddresses.map(address), connectedPrefixes: connected.map(prefix), broadcasts: [], extra: {} }));
    if (resolver) await agent.#startResolver();
    return agent;
  }

  /** @type {ResolverClient | null} */ resolver = null;
  /** @type {import("../../dist/net/resolver-link.js").ResolverLink | null} */ link = null;
  #generation = 0;

  /** @param {number} sandboxes @param {import("../../dist/addresses/groups.js").GroupTable} groups */
  constructor(sandboxes, groups) {
    this.instance = Instance.open({ directory: null, sandboxes });
    this.globals = new Globals(this.instance);
    this.groups = groups;
    this.globals.setGroups(groups);
  }

  async #startResolver() {
    this.agentNetns = createNetns();
    this.hostNetns = openNetns();
    this.link = createResolverLink({ agentNetnsFd: this.agentNetns, names: { near: "enf0", far: "enf1" } });
    attachHooks(this.instance, this.link.nearIfindex, "enf0", RESOLVER_HOOKS);
    this.globals.setResolver(this.link);
    this.resolver = new ResolverClient({ onDenied: () => undefined, onResolvers: () => undefined, onFailure: (error) => { throw error; } });
    await this.resolver.ask({
      kind: "start", listen: { netnsFd: this.agentNetns, address4: formatAddress(this.link.addr4), address6: this.link.ipv6 ? formatAddress(this.link.addr6) : null, port: 53, receiveBuffer: 4 << 20 },
      hostNetnsFd: this.hostNetns, sandboxNet6: this.link.ipv6 ? this.link.net6.bytes : null, groups: packGroups(this.groups), resolvConf: null,
    });
  }

  /**
   * Puts a guest under a policy.
   * @param {number} slot @param {Guest} guest @param {string} policyText @param {readonly string[]} upstreams
   */
  async add(slot, guest, policyText, upstreams = []) {
    const policy = policyOf(policyText);
    const sizes = sizesOf(policy);
    const generation = ++this.#generation;
    const tables = SandboxTables.make(this.instance, slot, generation, {
      ifindex: guest.ifindex, tapMac: macBytes("02:fc:00:00:01:01"), mac: macBytes(guest.mac), guest: guest.addresses.map((text) => prefix(`${text}/${text.includes(":") ? 128 : 32}`)),
      learnPrefixes: [], gateways: guest.gateways.map(address), dhcp: false,
    }, sizes);
    const uid = tables.nextUid();
    const pins = tables.stage(compilePolicy(policy, { uid }), uid, sizes.pins);
    const flows = tables.inner("flows");
    await this.resolver?.ask({
      kind: "addSandbox", slot, generation, name: guest.device, policy, floor: null, compiledGroups: this.groups, pinsFd: pins.fd, floorPinsFd: null, flowsFd: flows?.fd ?? null,
      pinEpochsFd: this.instance.map("pin_epochs").fd, upstreams: upstreams.map((text) => ({ address: address(text), port: 53 })),
    });
    pins.close();
    flows?.close();
    tables.commit(uid);
    tables.enforce();
    this.globals.setTap(guest.ifindex, slot, generation);
    this.hold(guest);
    return {
      tables, generation,
      remove: async () => {
        this.release(guest);
        this.globals.clearTap(guest.ifindex);
        await this.resolver?.ask({ kind: "removeSandbox", slot, generation });
        tables.clear();
      },
    };
  }

  /** Programs on the guest's device. @param {Guest} guest */
  hold(guest) { attachHooks(this.instance, guest.ifindex, guest.device, TAP_HOOKS); }

  /** None there: the bare path. @param {Guest} guest */
  release(guest) { detachHooks(this.instance, guest.ifindex, TAP_HOOKS); }

  async stop() {
    await this.resolver?.stop();
    if (this.link !== null) detachHooks(this.instance, this.link.nearIfindex, RESOLVER_HOOKS);
    for (const fd of [this.agentNetns, this.hostNetns]) if (fd !== undefined) closeFd(fd);
    this.instance.close();
  }
}
