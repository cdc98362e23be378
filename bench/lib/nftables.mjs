/**
 * The peer on a tap: an nftables netdev ingress chain that does what the policy of the benchmark says.
 *
 * It does less than the enforcer: no flows, no names, no learned identity, no walk over extension headers, no events; what
 * it judges is judged in the order of the policy, with interval sets for the prefixes.
 */
import { GUEST } from "./frames.mjs";
import { must } from "./place.mjs";
import { PORT, prefixes } from "./policies.mjs";

/** @param {string} table @param {string} device @param {number} count of prefixes of each family */
export function nftPolicy(table, device, count) {
  const { v4, v6 } = prefixes(count);
  must(["nft", "-f", "-"], `
    table netdev ${table} {
      counter passed {}
      counter dropped {}
      set allowed4 { type ipv4_addr; flags interval; auto-merge; elements = { ${v4.join(", ")} } }
      set allowed6 { type ipv6_addr; flags interval; auto-merge; elements = { ${v6.join(", ")} } }
      set metadata4 { type ipv4_addr; elements = { 169.254.169.254, 169.254.170.2, 169.254.169.253, 100.100.100.200, 168.63.129.16 } }
      set metadata6 { type ipv6_addr; elements = { fd00:ec2::254, fd00:ec2::23, fd20:ce::254 } }
      chain guest {
        type filter hook ingress device ${device} priority 0; policy drop;
        ether saddr != ${GUEST.mac} counter name dropped drop
        ether type arp counter name passed accept
        ip saddr ${GUEST.v4} jump guest4
        ip6 saddr ${GUEST.v6} jump guest6
        counter name dropped drop
      }
      chain guest4 {
        ip daddr @metadata4 counter name dropped drop
        ip daddr @allowed4 tcp dport ${PORT} counter name passed accept
      }
      chain guest6 {
        ip6 daddr @metadata6 counter name dropped drop
        ip6 daddr @allowed6 tcp dport ${PORT} counter name passed accept
      }
    }
  `);
}

/** Packets that the chain let on and dropped. @param {string} table */
export function nftCounts(table) {
  const { nftables } = JSON.parse(must(["nft", "-j", "list", "counters", "table", "netdev", table]));
  const of = (/** @type {string} */ name) => nftables.find((/** @type {any} */ item) => item.counter?.name === name).counter.packets;
  return { passed: of("passed"), dropped: of("dropped") };
}
