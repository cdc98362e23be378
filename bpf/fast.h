/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The short way for what makes up nearly all traffic: a plain TCP or UDP packet of a flow in force, and one more packet to
 * what was denied a moment ago.
 *
 * Holds always: it says allow only where the long way would say REASON_ESTABLISHED, and deny only what denial.h remembers
 * from the long way. A plain packet of the sandbox's own for which neither holds goes on to flow table and policy, where
 * the long way would have sent it too; at the first thing out of the ordinary the answer is UNDECIDED, and the long way
 * begins from nothing. It writes no table but its own memory of recent flows.
 */
#ifndef ENFORCER_FAST_H
#define ENFORCER_FAST_H

/* Ports whose packets have their own place on the long way: DNS, DNS over TLS, DHCP, DHCPv6. To a DHCP client from any port: see is_dhcp_server. */
inline_stage int has_own_way(__be16 source, __be16 destination)
{
	return destination == bpf_htons(53) || destination == bpf_htons(853) || destination == bpf_htons(67) || destination == bpf_htons(547) || source == bpf_htons(67) ||
	       source == bpf_htons(547) || destination == bpf_htons(68) || destination == bpf_htons(546);
}

inline_stage int fast_mac(struct pkt *p, const __u8 *source)
{
	__u64 mac = mac_word(source);
	__u64 given = mac_word(p->sandbox->mac);

	if (given)
		return given == mac;
	struct learned *l = learned_of(p);
	return l && l->mac == (mac | MAC_LEARNED);
}

inline_stage int fast_guest(struct pkt *p, const __u64 *addr)
{
	const struct sandbox *sb = p->sandbox;

	if (p->v6) {
		p->guest = GUEST_6;
		if (in_net6(&sb->guest6[0], addr))
			return sb->guest6[0].mask[1] == ~0ULL || !is_gateway6(sb, addr);
		if (!(sb->flags & SANDBOX_LEARN_6))
			return 0;
		struct learned *l = learned_of(p);
		return l && l->state6 == 2 && same16(l->addr6, addr);
	}
	p->guest = 0;
	if (sb->guest4[0].mask)
		return (v4_of(addr) & sb->guest4[0].mask) == sb->guest4[0].addr &&
		       (sb->guest4[0].mask == ~0U || !is_gateway4(sb, v4_of(addr)));
	struct learned *l = learned_of(p);
	return l && l->addr4 && l->addr4 == v4_of(addr);
}

/*
 * A look-up in the flow table costs half of what an established packet costs. What it said is remembered per CPU and direction,
 * until the table's entry wants to be touched again: half a second at most. Within that time a flow that is closing passes as
 * it would have, and one that the agent or a policy took away has another uid or generation. Other groups: another scope.
 */
inline_stage struct recent_flow *recent_place(struct pkt *p, const struct flow_key *key)
{
	const __u64 *words = (const __u64 *)key;
	__u64 hash = (words[0] ^ words[1] * 0x9e3779b97f4a7c15ULL ^ words[2] ^ p->direction) * 0xff51afd7ed558ccdULL;
	__u32 at = hash >> 40 & (RECENT_FLOWS - 1);

	return bpf_map_lookup_elem(&recent, &at);
}

inline_stage __u32 recent_scope(const struct pkt *p, __u64 epoch)
{
	return p->direction | (__u32)epoch << 1;
}

inline_stage int seen_lately(struct pkt *p, const struct recent_flow *recent, const struct flow_key *key, const __u64 *own, __u64 now)
{
	const __u64 *words = (const __u64 *)key, *known = (const __u64 *)&recent->key;

	return recent->policy == p->sandbox->policy && same16(recent->own, own) && recent->generation == p->sandbox->generation && recent->scope == recent_scope(p, p->global->groups_epoch) &&
	       known[0] == words[0] && known[1] == words[1] && known[2] == words[2] && (__s64)(recent->until_ticks - now) > 0;
}

inline_stage void remember_flow(struct pkt *p, struct recent_flow *recent, const struct flow_key *key, const __u64 *own, const struct flow *flow, __u64 epoch)
{
	recent->policy = 0;
	barrier();
	recent->key = *key;
	recent->own[0] = own[0];
	recent->own[1] = own[1];
	recent->generation = p->sandbox->generation;
	recent->scope = recent_scope(p, epoch);
	recent->until_ticks = flow->last_seen_ticks + p->global->hz / 2;
	barrier();
	recent->policy = flow->policy;
}

inline_stage __u32 fast(struct pkt *p, int within)
{
	struct __sk_buff *skb = p->skb;
	int out = p->direction == DIR_EGRESS;
	__u8 *data = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;
	struct ethhdr *eth = (struct ethhdr *)data;
	__u8 *l4;

	if (data + ETH_HEADER + sizeof(struct iphdr) + sizeof(struct tcphdr) > end || skb->vlan_present || skb->protocol != eth->h_proto)
		return UNDECIDED;
	p->fragment = FRAGMENT_NONE;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (struct iphdr *)(data + ETH_HEADER);
		__u32 total = bpf_ntohs(ip->tot_len);

		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0xbfff) || total + ETH_HEADER != p->length)
			return UNDECIDED;
		p->v6 = 0;
		p->ethertype = ETH_P_IP;
		p->proto = ip->protocol;
		map_v4(p->source, ip->saddr);
		map_v4(p->destination, ip->daddr);
		p->l4 = ETH_HEADER + sizeof(*ip);
		p->l4_length = total - sizeof(*ip);
		l4 = data + ETH_HEADER + sizeof(*ip);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (struct ipv6hdr *)(data + ETH_HEADER);

		if (data + ETH_HEADER + sizeof(*ip) + sizeof(struct tcphdr) > end)
			return UNDECIDED;
		__u32 payload = bpf_ntohs(ip->payload_len);
		if (*(__u8 *)ip >> 4 != 6 || payload + ETH_HEADER + sizeof(*ip) != p->length)
			return UNDECIDED;
		p->v6 = 1;
		p->ethertype = ETH_P_IPV6;
		p->proto = ip->nexthdr;
		__builtin_memcpy(p->source, &ip->saddr, 16);
		__builtin_memcpy(p->destination, &ip->daddr, 16);
		if (is_mapped(p->source) || is_mapped(p->destination))
			return UNDECIDED;
		p->l4 = ETH_HEADER + sizeof(*ip);
		p->l4_length = payload;
		l4 = data + ETH_HEADER + sizeof(*ip);
	} else {
		return UNDECIDED;
	}

	int opens = 0;
	p->tcp_flags = 0;
	if (p->proto == IPPROTO_TCP) {
		__u32 header = (l4[12] >> 4) * 4;
		__u8 control = l4[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);

		if (header < sizeof(struct tcphdr) || header > p->l4_length || (control != TCP_ACK && control != TCP_SYN))
			return UNDECIDED;
		opens = control == TCP_SYN;
		p->tcp_flags = l4[13];
	} else if (p->proto == IPPROTO_UDP) {
		if (bpf_ntohs(*(__be16 *)(l4 + 4)) != p->l4_length || (out && skb->gso_size))
			return UNDECIDED;
	} else {
		return UNDECIDED;
	}
	p->source_port = *(__be16 *)l4;
	p->destination_port = *(__be16 *)(l4 + 2);
	if (has_own_way(p->source_port, p->destination_port))
		return UNDECIDED;
	if (out) {
		if (!fast_mac(p, eth->h_source) || !fast_guest(p, p->source) || !partial_checksum_fits(p))
			return UNDECIDED;
	} else {
		/* an answer of the resolver is no flow; see ingress() */
		if (skb->ingress_ifindex == resolver_ifindex(p, within) || !fast_guest(p, p->destination))
			return UNDECIDED;
	}

	const __u64 *remote = out ? p->destination : p->source, *own = out ? p->source : p->destination;
	if (!opens) {
		struct flow_key key = {
			.remote_port = out ? p->destination_port : p->source_port,
			.guest_port = out ? p->source_port : p->destination_port,
			.proto = p->proto,
			.guest = p->guest,
			.remote = { remote[0], remote[1] },
		};
		__u64 now = bpf_jiffies64();
		struct recent_flow *recent = recent_place(p, &key);
		if (!recent)
			return UNDECIDED;
		if (seen_lately(p, recent, &key, own, now))
			return allow(p, REASON_ESTABLISHED);
		if (out && use_address(p, p->guest, own) != VERDICT_ALLOW)
			return VERDICT_DENY;
		void *table = bpf_map_lookup_elem(&flows, &p->slot);
		if (!table)
			return UNDECIDED;
		struct flow *flow = bpf_map_lookup_elem(table, &key);
		if (flow) {
			__u64 epoch = p->global->groups_epoch;

			if (flow->policy != p->sandbox->policy || !knows_groups(flow, epoch) || flow->flags & (FLOW_CLOSING | FLOW_INSPECT) ||
			    (flow->origin != p->direction && !(flow->flags & FLOW_REPLIED)) ||
			    now - flow->last_seen_ticks > p->global->hz / 2)
				return TO_FLOW;
			remember_flow(p, recent, &key, own, flow, epoch);
			return allow(p, REASON_ESTABLISHED);
		}
	} else if (out && use_address(p, p->guest, own) != VERDICT_ALLOW) {
		return VERDICT_DENY;
	}
	return denied_lately(p, remote, p->destination_port, p->proto) ? VERDICT_DENY : TO_FLOW;
}

#endif
