/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Is this frame the sandbox's own? Source MAC and address, ARP and neighbour discovery, DHCP.
 *
 * Holds always: what was given is compared; what was not given is taken once, from the first frame in which it is plausible
 * (a unicast MAC; an address inside the tap's own prefixes that is neither the gateway's nor another of the host's), and locked
 * by compare-and-swap until the next attach. A frame seen while another CPU writes a learned address is dropped. A gateway's address is never the
 * guest's, also where it lies in a prefix that was given. Of prefixes the guest uses so many addresses at one time and no more: each
 * takes a place in the host's neighbour table, which has 1,024 for all.
 */
#ifndef ENFORCER_IDENTITY_H
#define ENFORCER_IDENTITY_H

#define GUEST_LEARNED_4 0 /* nothing is learned where one was given, so the first place is free for it */
#define GUEST_6 8
#define GUEST_LEARNED_6 8
#define GUEST_LINK_LOCAL 13
#define GUEST_NONE 255

/*
 * Seconds after which an address of a prefix that sends nothing is not in use. Longer than the host's neighbour table keeps what is not used
 * (gc_stale_time, 60, looked at every 15 or so).
 */
#define ADDRESS_IDLE 120

#define MAC_LEARNED (1ULL << 48)

#define MAC_MASK (MAC_LEARNED - 1)

inline_stage __u64 mac_word(const __u8 *mac)
{
	return (__u64) * (const __u32 *)mac | (__u64) * (const __u16 *)(mac + 4) << 32;
}

inline_stage struct learned *learned_of(struct pkt *p)
{
	return bpf_map_lookup_elem(&learned, &p->slot);
}

inline_stage int is_link_local6(const __u64 *addr)
{
	return (bpf_ntohl((__u32)addr[0]) & 0xffc00000) == 0xfe800000;
}

inline_stage int is_gateway4(const struct sandbox *sb, __be32 addr)
{
#pragma unroll
	for (int i = 0; i < GATEWAYS; i++)
		if (sb->gateway4[i] && sb->gateway4[i] == addr)
			return 1;
	return 0;
}

inline_stage int is_gateway6(const struct sandbox *sb, const __u64 *addr)
{
#pragma unroll
	for (int i = 0; i < GATEWAYS; i++)
		if ((sb->gateway6[i][0] | sb->gateway6[i][1]) && same16(sb->gateway6[i], addr))
			return 1;
	return 0;
}

inline_stage int in_net6(const struct net6 *net, const __u64 *addr)
{
	return (net->mask[0] | net->mask[1]) && (addr[0] & net->mask[0]) == net->addr[0] &&
	       (addr[1] & net->mask[1]) == net->addr[1];
}

/* Index of the guest's address, or GUEST_NONE. Learns nothing. */
inline_stage __u8 guest_index4(struct pkt *p, __be32 addr)
{
	const struct sandbox *sb = p->sandbox;

	if (is_gateway4(sb, addr))
		return GUEST_NONE;
#pragma unroll
	for (int i = 0; i < GUEST_ADDRS; i++)
		if (sb->guest4[i].mask && (addr & sb->guest4[i].mask) == sb->guest4[i].addr)
			return i;
	if (sb->flags & SANDBOX_LEARN_4) {
		struct learned *l = learned_of(p);
		if (l && addr && l->addr4 == addr)
			return GUEST_LEARNED_4;
	}
	return GUEST_NONE;
}

inline_stage __u8 guest_index6(struct pkt *p, const __u64 *addr)
{
	const struct sandbox *sb = p->sandbox;

	if (is_gateway6(sb, addr))
		return GUEST_NONE;
#pragma unroll
	for (int i = 0; i < GUEST_ADDRS; i++)
		if (in_net6(&sb->guest6[i], addr))
			return GUEST_6 + i;
	if (sb->flags & (SANDBOX_LEARN_6 | SANDBOX_LEARN_LL)) {
		struct learned *l = learned_of(p);
		if (l && l->state6 == 2 && same16(l->addr6, addr))
			return GUEST_LEARNED_6;
		if (l && l->state_ll == 2 && same16(l->addr_ll, addr))
			return GUEST_LINK_LOCAL;
	}
	return GUEST_NONE;
}

struct address_sweep {
	__u64 now;
	__u32 hz;
	__u32 freed;
};

static long sweep_address(void *map, const void *key, void *value, struct address_sweep *ctx)
{
	struct ip_address copy = *(const struct ip_address *)key;

	if (idle_ticks(ctx->now, ((const struct address_use *)value)->last_seen_ticks) > (__s64)ADDRESS_IDLE * ctx->hz) {
		bpf_map_delete_elem(map, &copy);
		ctx->freed++;
	}
	return 0;
}

/* Frees the places of addresses that are not in use any more; how many there were. full: not if it was done within the last second. */
__attribute__((noinline)) int address_reclaim(__u32 slot, int full)
{
	struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &slot);
	void *table = bpf_map_lookup_elem(&addresses, &slot);
	__u32 zero = 0;
	struct globals *global = bpf_map_lookup_elem(&globals, &zero);
	struct address_sweep ctx = { .now = bpf_jiffies64(), .hz = global ? global->hz : 0 };

	if (!limit || !table || !ctx.hz || (full && (__u32)ctx.now - limit->addresses_swept < ctx.hz))
		return 0;
	limit->addresses_swept = ctx.now;
	bpf_for_each_map_elem(table, sweep_address, &ctx, 0);
	return ctx.freed;
}

/* Has the host this very address? Not whether it is in a group of the host's for what it embeds: the guest's prefix may embed the host's address. */
inline_stage int host_has(const __u64 *addr)
{
	struct group_entry *entry;

	if (is_mapped(addr)) {
		struct lpm4 key = { .prefixlen = 32, .addr = v4_of(addr) };
		entry = bpf_map_lookup_elem(&groups4, &key);
	} else {
		struct lpm6 key = { .prefixlen = 128 };
		__builtin_memcpy(key.addr, addr, 16);
		entry = bpf_map_lookup_elem(&groups6, &key);
		barrier();
	}
	return entry && entry->group == GROUP_HOST;
}

/*
 * May the guest use this address of its own, which it has by this index? One of a prefix if the host has it not, also where it is no
 * gateway that is known, and it is in use already or there is a place for it; any other always. A global function: the verifier checks it
 * once. No more than yes or no: Linux 6.1 follows every answer to its end.
 */
__attribute__((noinline)) int address_claim(__u32 slot, __u32 guest, __u64 high, __u64 low)
{
	struct sandbox *sb = bpf_map_lookup_elem(&sandboxes, &slot);
	__u64 key[2] = { high, low };
	__u64 now = bpf_jiffies64();
	__u32 zero = 0;

	if (!sb || guest == GUEST_LINK_LOCAL)
		return !!sb;
	/* no mask: the place is that of the learned address */
	const struct net4 *four = &sb->guest4[guest & (GUEST_ADDRS - 1)];
	const struct net6 *six = &sb->guest6[guest & (GUEST_ADDRS - 1)];
	if (guest < GUEST_6 ? !four->mask || four->mask == ~0U : !six->mask[0] || six->mask[1] == ~0ULL)
		return 1;
	void *table = bpf_map_lookup_elem(&addresses, &slot);
	struct globals *global = bpf_map_lookup_elem(&globals, &zero);
	if (!table || !global)
		return 0;
	struct address_use *known = bpf_map_lookup_elem(table, key);
	/* once a second, not per packet */
	if (known && idle_ticks(now, known->last_seen_ticks) <= global->hz)
		return 1;
	if (host_has(key))
		return 0;
	if (known) {
		known->last_seen_ticks = now;
		return 1;
	}
	struct address_use use = { .last_seen_ticks = now };
	return bpf_map_update_elem(table, key, &use, BPF_ANY) == 0 ||
	       (address_reclaim(slot, 1) && bpf_map_update_elem(table, key, &use, BPF_ANY) == 0);
}

/*
 * The guest says that it has this address, by sending from it or by telling where it is. Whatever else makes the host look for one of
 * its addresses is answered here or not at all.
 */
inline_stage __u32 use_address(struct pkt *p, __u8 guest, const __u64 *addr)
{
	if (!(p->sandbox->flags & SANDBOX_PREFIXES) || address_claim(p->slot, guest, addr[0], addr[1]))
		return VERDICT_ALLOW;
	return deny(p, REASON_ADDRESS_TABLE_FULL);
}

/* Nothing that the host has is ever learned: it may have more addresses on the tap than there are places for gateways. */
inline_stage int is_of_host(struct pkt *p, __u64 high, __u64 low)
{
	p->question.remote[0] = high;
	p->question.remote[1] = low;
	p->question.v6 = p->v6;
	return group_now(&p->question) == GROUP_HOST;
}

inline_stage int learnable4(struct pkt *p, __be32 addr)
{
	const struct sandbox *sb = p->sandbox;
	__u32 host = bpf_ntohl(addr);

	if (!(sb->flags & SANDBOX_LEARN_4) || !addr || is_gateway4(sb, addr))
		return 0;
#pragma unroll
	for (int i = 0; i < LEARN_PREFIXES; i++) {
		__u32 mask = sb->learn4[i].mask;
		if (!mask || (addr & mask) != sb->learn4[i].addr)
			continue;
		/* neither the network's own address nor its broadcast, where the prefix has them (RFC 3021) */
		__u32 wild = ~bpf_ntohl(mask);
		if (wild > 1 && ((host & wild) == 0 || (host & wild) == wild))
			return 0;
		__u64 mapped[2];
		map_v4(mapped, addr);
		return !is_of_host(p, mapped[0], mapped[1]);
	}
	return 0;
}

inline_stage __u8 learn4(struct pkt *p, __be32 addr)
{
	struct learned *l;

	if (!learnable4(p, addr))
		return GUEST_NONE;
	l = learned_of(p);
	if (!l)
		return GUEST_NONE;
	__u32 before = __sync_val_compare_and_swap(&l->addr4, 0, addr);
	return before == 0 || before == addr ? GUEST_LEARNED_4 : GUEST_NONE;
}

inline_stage int learnable6(struct pkt *p, const __u64 *addr)
{
	const struct sandbox *sb = p->sandbox;

	if (is_gateway6(sb, addr))
		return 0;
	if (is_link_local6(addr))
		return sb->flags & SANDBOX_LEARN_LL && !is_of_host(p, addr[0], addr[1]);
	if (!(sb->flags & SANDBOX_LEARN_6))
		return 0;
#pragma unroll
	for (int i = 0; i < LEARN_PREFIXES; i++)
		if (in_net6(&sb->learn6[i], addr))
			/* nor the subnet-router anycast address (RFC 4291 section 2.6.1) */
			return addr[1] && !is_of_host(p, addr[0], addr[1]);
	return 0;
}

inline_stage __u8 learn6(struct pkt *p, const __u64 *addr)
{
	struct learned *l;

	if (!learnable6(p, addr))
		return GUEST_NONE;
	l = learned_of(p);
	if (!l)
		return GUEST_NONE;
	if (is_link_local6(addr)) {
		if (__sync_val_compare_and_swap(&l->state_ll, 0, 1))
			return GUEST_NONE;
		l->addr_ll[0] = addr[0];
		l->addr_ll[1] = addr[1];
		__sync_val_compare_and_swap(&l->state_ll, 1, 2);
		return GUEST_LINK_LOCAL;
	}
	if (__sync_val_compare_and_swap(&l->state6, 0, 1))
		return GUEST_NONE;
	l->addr6[0] = addr[0];
	l->addr6[1] = addr[1];
	__sync_val_compare_and_swap(&l->state6, 1, 2);
	return GUEST_LEARNED_6;
}

inline_stage __u64 guest_mac(struct pkt *p)
{
	__u64 given = mac_word(p->sandbox->mac);
	if (given)
		return given;
	struct learned *l = learned_of(p);
	return l && l->mac ? l->mac & (MAC_LEARNED - 1) : 0;
}

inline_stage __u32 check_mac(struct pkt *p)
{
	struct ethhdr *eth = pkt_at(p, 0, sizeof(*eth));
	if (!eth)
		return deny(p, REASON_TRUNCATED);
	__u64 mac = mac_word(eth->h_source);
	__u64 given = mac_word(p->sandbox->mac);
	if (given)
		return mac == given ? VERDICT_ALLOW : deny(p, REASON_SOURCE_MAC);
	if (!(p->sandbox->flags & SANDBOX_LEARN_MAC) || !mac || eth->h_source[0] & 1)
		return deny(p, REASON_SOURCE_MAC);
	struct learned *l = learned_of(p);
	if (!l)
		return deny(p, REASON_MAP_MISSING);
	__u64 known = l->mac;
	if (!known) {
		known = __sync_val_compare_and_swap(&l->mac, 0, mac | MAC_LEARNED);
		if (!known)
			return VERDICT_ALLOW;
	}
	return known == (mac | MAC_LEARNED) ? VERDICT_ALLOW : deny(p, REASON_SOURCE_MAC);
}

/* DHCP and DHCPv6 as a client. From the guest: to the broadcast address or the gateway; to it: from the gateway. */
inline_stage int is_dhcp_egress(struct pkt *p)
{
	if (!(p->sandbox->flags & SANDBOX_DHCP) || p->proto != IPPROTO_UDP || p->fragment)
		return 0;
	if (p->v6)
		return p->source_port == bpf_htons(546) && p->destination_port == bpf_htons(547) &&
		       is_link_local6(p->source) && p->destination[0] == bpf_cpu_to_be64(0xff02000000000000ULL) &&
		       p->destination[1] == bpf_cpu_to_be64(0x10002ULL);
	if (p->source_port != bpf_htons(68) || p->destination_port != bpf_htons(67))
		return 0;
	return v4_of(p->destination) == 0xffffffff || is_gateway4(p->sandbox, v4_of(p->destination));
}

inline_stage int is_dhcp_ingress(struct pkt *p)
{
	if (!(p->sandbox->flags & SANDBOX_DHCP) || p->proto != IPPROTO_UDP || p->fragment)
		return 0;
	if (p->v6)
		return p->source_port == bpf_htons(547) && p->destination_port == bpf_htons(546) && is_link_local6(p->source);
	return p->source_port == bpf_htons(67) && p->destination_port == bpf_htons(68) &&
	       is_gateway4(p->sandbox, v4_of(p->source));
}

/* From a server's port, or from any to a client's: most clients look at nothing but their own port. */
inline_stage int is_dhcp_server(struct pkt *p)
{
	if (p->proto != IPPROTO_UDP || !p->l4)
		return 0;
	return p->v6 ? p->source_port == bpf_htons(547) || p->destination_port == bpf_htons(546)
		     : p->source_port == bpf_htons(67) || p->destination_port == bpf_htons(68);
}

/* The source of an IP packet from the guest. The unspecified address is judged where it may stand (DHCP, DAD), not here. */
inline_stage __u32 check_source(struct pkt *p)
{
	if (p->v6) {
		p->guest = guest_index6(p, p->source);
		if (p->guest == GUEST_NONE)
			p->guest = learn6(p, p->source);
	} else {
		p->guest = guest_index4(p, v4_of(p->source));
		if (p->guest == GUEST_NONE)
			p->guest = learn4(p, v4_of(p->source));
	}
	if (p->guest != GUEST_NONE)
		return VERDICT_ALLOW;
	const struct sandbox *sb = p->sandbox;
	int given = p->v6 ? !!(sb->guest6[0].mask[0] | sb->guest6[0].mask[1]) : !!sb->guest4[0].mask;
	int learns = p->v6 ? sb->flags & SANDBOX_LEARN_6 && (sb->learn6[0].mask[0] | sb->learn6[0].mask[1])
			   : sb->flags & SANDBOX_LEARN_4 && sb->learn4[0].mask;
	return deny(p, given || learns ? REASON_SOURCE_ADDRESS : REASON_ADDRESS_UNKNOWN);
}

#endif
