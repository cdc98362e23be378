/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * ARP (RFC 826) and neighbour discovery (RFC 4861) at the tap.
 *
 * Holds always: a guest can teach the host only its own addresses with its own MAC, and asks only for its gateway, itself
 * (address conflict detection) and addresses that a rule lets it reach. It sends no router message. Nothing of it leaves the
 * link: a router forwards neighbour discovery like any other packet, only its receiver looks at the hop limit. And no more
 * passes in it than it needs: a message is no place for other octets.
 */
#ifndef ENFORCER_NEIGHBOUR_H
#define ENFORCER_NEIGHBOUR_H

#define ND_OPTIONS_MAX 4
#define ND_SOURCE_LINK_ADDRESS 1
#define ND_TARGET_LINK_ADDRESS 2
#define ND_NONCE 14 /* RFC 7527: Linux sends it with duplicate address detection */

struct arp_ipv4 {
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

inline_stage __u32 arp_egress(struct pkt *p)
{
	struct arp_ipv4 *arp = pkt_at(p, ETH_HEADER, sizeof(*arp));
	if (!arp)
		return deny(p, REASON_TRUNCATED);
	if (p->length > ETH_MIN_FRAME)
		return deny(p, REASON_LENGTH);
	if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != 6 ||
	    arp->protocol_length != 4 || (arp->operation != bpf_htons(1) && arp->operation != bpf_htons(2)))
		return deny(p, REASON_ARP_SPOOF);
	__be32 sender, target;
	__builtin_memcpy(&sender, arp->sender, 4);
	__builtin_memcpy(&target, arp->target, 4);
	__u16 request = arp->operation == bpf_htons(1);
	map_v4(p->source, sender);
	map_v4(p->destination, target);
	if (mac_word(arp->sender_mac) != guest_mac(p))
		return deny(p, REASON_ARP_SPOOF);
	if (sender) {
		__u8 own = guest_index4(p, sender);
		if (own == GUEST_NONE)
			own = learn4(p, sender);
		if (own == GUEST_NONE)
			return deny(p, REASON_ARP_SPOOF);
		if (use_address(p, own, p->source) != VERDICT_ALLOW)
			return VERDICT_DENY;
	} else if (!request) {
		return deny(p, REASON_ARP_SPOOF);
	}
	if (!request)
		return allow(p, REASON_NEIGHBOUR);
	if (is_gateway4(p->sandbox, target) || guest_index4(p, target) != GUEST_NONE)
		return allow(p, REASON_NEIGHBOUR);
	/* a probe for the address the guest is about to take (RFC 5227), while none is known */
	if (!sender && learnable4(p, target)) {
		struct learned *l = learned_of(p);
		if (l && !l->addr4)
			return allow(p, REASON_NEIGHBOUR);
	}
	return may_ask_for(ask(p, DIR_EGRESS, p->destination, 0, 1)) ? allow(p, REASON_NEIGHBOUR) : deny(p, REASON_ARP_TARGET);
}

/* Options of an ND message: well formed to the end, of those that hosts send, and any link-layer address in them the guest's. */
inline_stage int nd_options_fit(struct pkt *p, __u32 offset, int link_address_allowed)
{
	__u32 end = p->l4 + p->l4_length;
	__u64 mac = guest_mac(p);

#pragma unroll
	for (int i = 0; i < ND_OPTIONS_MAX; i++) {
		if (offset == end)
			return 1;
		__u8 *option = pkt_at(p, offset, 8);
		if (!option || option[1] != 1)
			return 0;
		if (option[0] == ND_SOURCE_LINK_ADDRESS || option[0] == ND_TARGET_LINK_ADDRESS) {
			if (!link_address_allowed || mac_word(option + 2) != mac)
				return 0;
		} else if (option[0] != ND_NONCE) {
			return 0;
		}
		offset += 8;
		if (offset > end)
			return 0;
	}
	return offset == end;
}

/* Who can be spoken to without a router: link-local addresses, the gateways, and the prefixes of the tap or its bridge. */
inline_stage int is_on_link6(const struct sandbox *sb, const __u64 *addr)
{
	if (is_link_local6(addr) || is_gateway6(sb, addr))
		return 1;
#pragma unroll
	for (int i = 0; i < LEARN_PREFIXES; i++)
		if (in_net6(&sb->learn6[i], addr))
			return 1;
	return 0;
}

/*
 * The destination that RFC 4861 gives a message: of a solicitation the target's solicited-node group, or the target itself
 * where a known neighbour is tried again; of an advertisement all nodes, or who asked.
 */
inline_stage int nd_destination_fits(struct pkt *p, __u8 type, const __u64 *target)
{
	const __u64 *to = p->destination;

	if ((__u8)to[0] != 0xff)
		return (type == ICMP6_NEIGHBOUR_ADVERT || same16(to, target)) && is_on_link6(p->sandbox, to);
	if (to[0] != bpf_cpu_to_be64(0xff02000000000000ULL))
		return 0;
	return to[1] == (type == ICMP6_NEIGHBOUR_ADVERT ? bpf_cpu_to_be64(1) : bpf_cpu_to_be64(0x1ff000000ULL) | (target[1] & bpf_cpu_to_be64(0xffffff)));
}

/*
 * May the guest ask whether anybody has the address that it is about to take? Whoever hears that while it asks the same itself
 * does without its own. Of link-local addresses a guest has one, and asking takes it; others only while none is known.
 */
inline_stage int may_take6(struct pkt *p, const __u64 *target)
{
	if (is_link_local6(target))
		return learn6(p, target) != GUEST_NONE;
	if (!learnable6(p, target))
		return 0;
	struct learned *l = learned_of(p);
	return l && !l->state6;
}

inline_stage int is_nd(__u8 type)
{
	return type >= ICMP6_ROUTER_SOLICIT && type <= ICMP6_REDIRECT;
}

/* An ICMPv6 message of types 133..137 from the guest. */
inline_stage __u32 nd_egress(struct pkt *p)
{
	__u8 type = bpf_ntohs(p->source_port) >> 8;
	int unspecified = !(p->source[0] | p->source[1]);

	/* a solicitation too: routers advertise unasked, and what asks for one teaches it the asker's address */
	if (type == ICMP6_ROUTER_ADVERT || type == ICMP6_REDIRECT || type == ICMP6_ROUTER_SOLICIT)
		return deny(p, REASON_ROUTER_MESSAGE);
	if (p->hop_limit != 255 || bpf_ntohs(p->source_port) & 0xff || p->fragment || p->l4 != ETH_HEADER + sizeof(struct ipv6hdr))
		return deny(p, REASON_ND_SPOOF);
	if (!unspecified && check_source(p) != VERDICT_ALLOW)
		return deny(p, REASON_ND_SPOOF);

	/* copied by the kernel: Linux 6.1 loses sight of a pointer that is kept across the questions below */
	__u64 target[2];
	if (p->l4_length < 24 || bpf_skb_load_bytes(p->skb, p->l4 + 8, target, sizeof(target)))
		return deny(p, REASON_TRUNCATED);
	if (is_mapped(target) || !nd_destination_fits(p, type, target) || !nd_options_fit(p, p->l4 + 24, !unspecified))
		return deny(p, REASON_ND_SPOOF);
	__u8 own = guest_index6(p, target);
	if (type == ICMP6_NEIGHBOUR_ADVERT) {
		if (own == GUEST_NONE || unspecified)
			return deny(p, REASON_ND_SPOOF);
		/* it tells of the target, whoever sends it */
		return use_address(p, own, target) == VERDICT_ALLOW ? allow(p, REASON_NEIGHBOUR) : VERDICT_DENY;
	}
	if (!unspecified && use_address(p, p->guest, p->source) != VERDICT_ALLOW)
		return VERDICT_DENY;
	if (own != GUEST_NONE)
		return allow(p, REASON_NEIGHBOUR);
	if (unspecified)
		return may_take6(p, target) ? allow(p, REASON_NEIGHBOUR) : deny(p, REASON_ND_SPOOF);
	if (is_gateway6(p->sandbox, target) || may_ask_for(ask(p, DIR_EGRESS, target, 0, 1)))
		return allow(p, REASON_NEIGHBOUR);
	return deny(p, REASON_ARP_TARGET);
}

#endif
