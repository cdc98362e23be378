/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the agent must see goes to it over a veth pair, and what it answers comes back from the address that was asked: port
 * 53, whatever resolver was meant; DNS over TLS, where the agent ends it; and connections that are allowed by address but
 * whose name the agent must look at.
 *
 * Out: the packet's source becomes the sandbox's own address in 240.0.0.0/4 (or the ULA /96) and a port that is an index
 * into one of the sandbox's two tables; its destination becomes the agent. So the agent sees an address that no guest can
 * choose, and reads in the table what was meant. Back: the index gives everything that was replaced.
 *
 * Holds always: once a packet was changed, every later error drops it. Nothing leaves the veth's near end but answers to
 * live entries, and nothing reaches the agent but what was rewritten here. DNS has a table of its own, so that connections
 * cannot use up its places.
 */
#ifndef ENFORCER_INTERCEPT_H
#define ENFORCER_INTERCEPT_H

#define DNS_PORT bpf_htons(53)
#define DOT_PORT bpf_htons(853)
#define REDIRECT_PROBES 8
/* seconds */
#define REDIRECT_UDP_IDLE 6   /* the agent answers within five seconds or not at all */
#define REDIRECT_TCP_IDLE 130 /* longer than the agent keeps an idle connection */
#define REDIRECT_TCP_CLOSING 2
#define REDIRECT_TCP_OPENING 70 /* longer than the agent's kernel asks again for the last of the three packets; it tells nobody when it gives up */

inline_stage int redirect_expired(const struct redirect *e, __u64 now, __u32 hz)
{
	__s64 idle = idle_ticks(now, e->last_seen_ticks);

	if (e->proto == IPPROTO_TCP)
		return e->closing & CLOSING_RESET || idle > (e->closing == (CLOSING_GUEST | CLOSING_AGENT) ? REDIRECT_TCP_CLOSING :
			e->closing & CLOSING_OPENING ? REDIRECT_TCP_OPENING : e->closing ? TCP_HALF_CLOSED : e->remote_port == DNS_PORT ? REDIRECT_TCP_IDLE : TCP_IDLE) * (__s64)hz;
	return !e->outstanding || idle > REDIRECT_UDP_IDLE * (__s64)hz;
}

struct occupancy {
	__u64 now;
	__u32 hz;
	__u32 taken;
};

static long count_taken(void *map __attribute__((unused)), const void *key __attribute__((unused)), void *value, struct occupancy *ctx)
{
	const struct redirect *e = value;

	ctx->taken += e->state == REDIRECT_CLAIMED || (e->state == REDIRECT_LIVE && !redirect_expired(e, ctx->now, ctx->hz));
	return 0;
}

/* Places of a sandbox's table of conversations that nobody else could have now. Global: the verifier checks it once. */
__attribute__((noinline)) int places_taken(__u32 slot, int dns)
{
	struct sandbox *sandbox = bpf_map_lookup_elem(&sandboxes, &slot);
	__u32 zero = 0;
	struct globals *global = bpf_map_lookup_elem(&globals, &zero);
	struct occupancy ctx = { .now = bpf_jiffies64(), .hz = global ? global->hz : 0 };
	void *table;

	if (!sandbox || sandbox->state != SANDBOX_ENFORCED)
		return 0;
	/* a call of its own for each map: Linux 6.1 takes none for either */
	if (dns) {
		table = bpf_map_lookup_elem(&redirects, &slot);
		if (table)
			bpf_for_each_map_elem(table, count_taken, &ctx, 0);
	} else {
		table = bpf_map_lookup_elem(&intercepted, &slot);
		if (table)
			bpf_for_each_map_elem(table, count_taken, &ctx, 0);
		barrier();
	}
	return ctx.taken;
}

inline_stage int redirect_is(const struct redirect *e, struct pkt *p)
{
	return e->state == REDIRECT_LIVE && e->proto == p->proto && e->guest_port == p->source_port &&
	       e->remote_port == p->destination_port && same16((const __u64 *)e->remote, p->destination) && same16((const __u64 *)e->guest_addr, p->source);
}

/*
 * What makes the agent work, whether or not it is refused there, is counted by the second: a query over UDP, and the begin of a
 * connection, or what would be one. The agent's own rates are lower, and say why; what is over these is dropped without a word, so that
 * a guest's flood costs its siblings nothing. A stack sends its SYN again after a second.
 */
inline_stage int may_begin(struct pkt *p, int dns, __u64 now)
{
	struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &p->slot);

	if (!limit)
		return 0;
	if (now - limit->begun_ticks >= p->global->hz) {
		limit->begun_ticks = now;
		limit->queries = limit->dns_connections = limit->connections = 0;
	}
	if (!dns)
		return limit->connections < p->sandbox->connection_rate && ++limit->connections;
	if (p->proto == IPPROTO_TCP)
		return limit->dns_connections < DNS_CONNECTIONS && ++limit->dns_connections;
	return limit->queries < p->sandbox->query_rate && ++limit->queries;
}

/*
 * Entry for this conversation, found or claimed; its index in *index. NULL: no place. A UDP query is
 * counted as outstanding here: an entry without one is anybody's. Look-up and claim are not one step, so either is looked at once
 * more: where another CPU was in between, this packet is dropped, and no answer of one conversation goes to another. Two CPUs
 * may take two places for one conversation: the agent sees two, and either place leads back to the same guest and ports.
 * begins: it was counted already (may_begin).
 */
inline_stage struct redirect *redirect_entry(struct pkt *p, void *table, int dns, int begins, __u32 *index, __u64 now)
{
	__u64 mix = p->destination[0] ^ p->destination[1] ^ p->source[1] ^ (__u64)p->source_port << 16 ^ (__u64)p->destination_port << 32 ^ p->proto;
	__u32 hash = (mix * 0x9e3779b97f4a7c15ULL) >> 40;
	struct redirect *free_entry = 0;
	__u32 free_index = 0, free_state = 0, mask = dns ? REDIRECTS - 1 : INTERCEPTED - 1;

	for (int i = 0; i < REDIRECT_PROBES; i++) {
		__u32 at = (hash + i) & mask;
		struct redirect *e = bpf_map_lookup_elem(table, &at);
		if (!e)
			return 0;
		if (redirect_is(e, p)) {
			if (p->proto == IPPROTO_UDP)
				__sync_fetch_and_add(&e->outstanding, 1);
			*index = at;
			return redirect_is(e, p) ? e : 0;
		}
		__u32 state = e->state;
		if (!free_entry && (state == REDIRECT_FREE || (state == REDIRECT_LIVE && redirect_expired(e, now, p->global->hz)))) {
			free_entry = e;
			free_index = at;
			free_state = state;
		}
	}
	/* no SYN, and of no connection: the agent's kernel answers it */
	if (!free_entry || (!begins && !may_begin(p, dns, now)) || __sync_val_compare_and_swap(&free_entry->state, free_state, REDIRECT_CLAIMED) != free_state)
		return 0;
	if (free_state == REDIRECT_LIVE && !redirect_expired(free_entry, now, p->global->hz)) {
		__sync_val_compare_and_swap(&free_entry->state, REDIRECT_CLAIMED, REDIRECT_LIVE);
		return 0;
	}
	free_entry->outstanding = p->proto == IPPROTO_UDP;
	free_entry->last_seen_ticks = now;
	__builtin_memcpy(free_entry->guest_addr, p->source, 16);
	__builtin_memcpy(free_entry->remote, p->destination, 16);
	free_entry->guest_port = p->source_port;
	free_entry->remote_port = p->destination_port;
	free_entry->guest = p->guest;
	free_entry->proto = p->proto;
	free_entry->closing = 0;
	__sync_val_compare_and_swap(&free_entry->state, REDIRECT_CLAIMED, REDIRECT_LIVE);
	*index = free_index;
	return free_entry;
}

/*
 * Writes addresses, ports and MACs into the packet and mends both checksums. Not inlined: its frame would not fit beside
 * the caller's and judge's.
 */
static __attribute__((noinline)) int rewrite(struct pkt *p, struct rewrite *r)
{
	struct __sk_buff *skb = p->skb;
	__u32 checksum = p->l4 + (p->proto == IPPROTO_TCP ? 16 : 6);
	__u64 udp = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (p->v6) {
		__u64 before[4] = { p->source[0], p->source[1], p->destination[0], p->destination[1] };
		__s64 diff = bpf_csum_diff((__be32 *)before, 32, (__be32 *)r->after, 32, 0);

		if (bpf_l4_csum_replace(skb, checksum, 0, diff, BPF_F_PSEUDO_HDR | udp) ||
		    bpf_skb_store_bytes(skb, ETH_HEADER + 8, r->after, 32, 0))
			return -1;
	} else {
		__be32 before[2] = { v4_of(p->source), v4_of(p->destination) };
		__be32 after[2] = { v4_of(r->after), v4_of(r->after + 2) };
		__s64 diff = bpf_csum_diff(before, 8, after, 8, 0);

		if (bpf_l4_csum_replace(skb, checksum, 0, diff, BPF_F_PSEUDO_HDR | udp) ||
		    bpf_l3_csum_replace(skb, ETH_HEADER + 10, 0, diff, 0) || bpf_skb_store_bytes(skb, ETH_HEADER + 12, after, 8, 0))
			return -1;
	}
	if (bpf_l4_csum_replace(skb, checksum, p->source_port, r->source_port, udp | 2) ||
	    bpf_l4_csum_replace(skb, checksum, p->destination_port, r->destination_port, udp | 2) ||
	    bpf_skb_store_bytes(skb, p->l4, &r->source_port, 4, 0) || bpf_skb_store_bytes(skb, 0, r->macs, 12, 0))
		return -1;
	return 0;
}

/* One more UDP query on its way. Refused while the sandbox has too many there; when none was answered for long, none will be. */
inline_stage int dns_may_wait(struct pkt *p, __u64 now)
{
	struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &p->slot);

	if (!limit)
		return 0;
	if (limit->dns_waiting >= DNS_WAITING) {
		if (now - limit->dns_moved_ticks < REDIRECT_UDP_IDLE * p->global->hz)
			return 0;
		limit->dns_waiting = 0;
	}
	/* below 0: answers that came after the count had begun anew */
	if (limit->dns_waiting <= 0) {
		limit->dns_waiting = 0;
		limit->dns_moved_ticks = now;
	}
	__sync_fetch_and_add(&limit->dns_waiting, 1);
	return 1;
}

inline_stage void dns_answered(struct pkt *p, __u64 now)
{
	struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &p->slot);

	if (!limit)
		return;
	limit->dns_moved_ticks = now;
	__sync_fetch_and_add(&limit->dns_waiting, -1);
}

/* A destination that a resolver can have: the answer will carry it as its source. */
inline_stage int unicast(struct pkt *p)
{
	if (p->v6)
		return (__u8)p->destination[0] != 0xff && (p->destination[0] | p->destination[1]);
	__u8 first = (__u8)v4_of(p->destination);
	return first && first < 224;
}

/* Where the thread that has this sandbox's connections listens. */
inline_stage __be16 intercepted_port(struct pkt *p) { return bpf_htons(INTERCEPTED_PORT + (p->slot & (INTERCEPTED_PORTS - 1))); }

/* From the guest. dns: port 53. VERDICT_REDIRECT: the packet is rewritten and p->sandbox's table remembers it. */
inline_stage __u32 redirect_to_agent(struct pkt *p, int dns, int within)
{
	__u32 zero = 0, index = 0, mtu = 0;
	const struct globals *global = p->global;
	__u32 resolver = resolver_ifindex(p, within);
	void *table = dns ? bpf_map_lookup_elem(&redirects, &p->slot) : bpf_map_lookup_elem(&intercepted, &p->slot);

	/* the near end goes with the process that made it, by whatever way that ends */
	if (!resolver || bpf_check_mtu(p->skb, resolver, &mtu, 0, 0) == -ENODEV)
		return deny(p, REASON_AGENT_GONE);
	if (!table)
		return deny(p, REASON_MAP_MISSING);
	/* the short way left its pointers behind */
	if (pkt_pull(p))
		return deny(p, REASON_TRUNCATED);
	if (p->fragment || (p->proto == IPPROTO_UDP && p->skb->gso_size))
		return deny(p, REASON_FRAGMENT);
	__u64 now = bpf_jiffies64();
	int begins = p->proto == IPPROTO_UDP || p->tcp_flags & TCP_SYN;
	struct redirect *e = begins && !may_begin(p, dns, now) ? 0 : redirect_entry(p, table, dns, begins, &index, now);
	if (!e)
		return deny(p, REASON_REDIRECT_TABLE_FULL);
	if (dns && p->proto == IPPROTO_UDP && !dns_may_wait(p, now)) {
		__sync_fetch_and_add(&e->outstanding, -1);
		return deny(p, REASON_REDIRECT_TABLE_FULL);
	}
	struct ethhdr *eth = pkt_at(p, 0, sizeof(*eth));
	if (!eth)
		return deny(p, REASON_TRUNCATED);
	__builtin_memcpy(e->guest_mac, eth->h_source, 6);
	__builtin_memcpy(e->gateway_mac, eth->h_dest[0] & 1 ? p->sandbox->tap_mac : eth->h_dest, 6);
	e->last_seen_ticks = now;
	if (p->proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_RST)
			e->closing = CLOSING_RESET;
		else if (p->tcp_flags & TCP_FIN)
			e->closing = (e->closing & ~CLOSING_OPENING) | CLOSING_GUEST;
		else if (p->tcp_flags & TCP_SYN)
			e->closing = CLOSING_OPENING;
		else if (e->closing & CLOSING_OPENING)
			e->closing &= ~CLOSING_OPENING;
	}

	struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
	if (!room)
		return deny(p, REASON_MAP_MISSING);
	struct rewrite *r = &room->rewrite;
	r->source_port = bpf_htons((dns ? REDIRECT_PORT_BASE : INTERCEPTED_PORT_BASE) + index);
	r->destination_port = dns ? DNS_PORT : intercepted_port(p);
	__be32 id = bpf_htonl(p->slot + SANDBOX_ADDR_OFFSET);

	if (p->v6) {
		__builtin_memcpy(r->after, global->sandbox_net6, 16);
		r->after[1] = (r->after[1] & 0xffffffff) | (__u64)id << 32;
		__builtin_memcpy(r->after + 2, global->resolver_addr6, 16);
	} else {
		map_v4(r->after, global->sandbox_net4 | id);
		map_v4(r->after + 2, global->resolver_addr4);
	}
	__builtin_memcpy(r->macs, global->resolver_mac, 6);
	__builtin_memcpy(r->macs + 6, global->near_mac, 6);
	if (rewrite(p, r))
		return deny(p, REASON_REWRITE);
	p->redirect_ifindex = resolver;
	p->reason = dns ? REASON_DNS_REDIRECT : REASON_INTERCEPTED;
	return VERDICT_REDIRECT;
}

/* The flow of an intercepted connection learns what the agent's side does, which the tap's own programs do not see. */
inline_stage void note_agent(struct pkt *p, const struct redirect *e, __u64 now)
{
	void *table = bpf_map_lookup_elem(&flows, &p->slot);
	struct flow_key key = {
		.remote_port = e->remote_port,
		.guest_port = e->guest_port,
		.proto = p->proto,
		.guest = e->guest,
	};
	__builtin_memcpy(key.remote, e->remote, 16);
	struct flow *flow = table ? bpf_map_lookup_elem(table, &key) : 0;

	if (flow && flow->flags & FLOW_INSPECT)
		flow_note(p, flow, now);
}

/* The sandbox that a packet of the agent's is for: by the address that only redirect_to_agent hands out. */
inline_stage __u32 answered_sandbox(struct pkt *p)
{
	const struct globals *global = p->global;
	__u32 id = bpf_ntohl((__u32)(p->destination[1] >> 32));
	if (p->v6) {
		__u64 net[2];
		__builtin_memcpy(net, global->sandbox_net6, 16);
		if (p->destination[0] != net[0] || (__u32)p->destination[1] != (__u32)net[1] ||
		    !same16(p->source, (const __u64 *)global->resolver_addr6))
			return deny(p, REASON_UNSOLICITED_ANSWER);
	} else {
		__u32 net = bpf_ntohl(global->sandbox_net4);
		if ((id & net) != net || v4_of(p->source) != global->resolver_addr4)
			return deny(p, REASON_UNSOLICITED_ANSWER);
		id &= ~net;
	}
	p->slot = id - SANDBOX_ADDR_OFFSET;
	if (p->slot >= (1 << 20))
		return deny(p, REASON_UNSOLICITED_ANSWER);
	p->sandbox = bpf_map_lookup_elem(&sandboxes, &p->slot);
	/* its tap's number means another device in another namespace */
	if (!p->sandbox || p->sandbox->state != SANDBOX_ENFORCED || p->sandbox->place != p->place) {
		p->sandbox = 0;
		return deny(p, REASON_NOT_ENFORCED);
	}
	return VERDICT_ALLOW;
}

/*
 * What the agent answers leaves its namespace by one device, whichever the sandbox's is. VERDICT_ALLOW: it leads to the sandbox's
 * namespace. VERDICT_REDIRECT: another pair does, whose far end is in *far.
 */
inline_stage __u32 way_out(struct __sk_buff *skb, __u32 *far)
{
	__u32 zero = 0, id = 0;
	const struct globals *global = bpf_map_lookup_elem(&globals, &zero);

	if (!global || bpf_skb_load_bytes(skb, ETH_HEADER + (skb->protocol == bpf_htons(ETH_P_IP) ? 16 : 36), &id, 4))
		return VERDICT_DENY;
	id = bpf_ntohl(id);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		id &= ~bpf_ntohl(global->sandbox_net4);
	id -= SANDBOX_ADDR_OFFSET;
	const struct sandbox *sandbox = bpf_map_lookup_elem(&sandboxes, &id);
	if (!sandbox)
		return VERDICT_DENY;
	if (!sandbox->place)
		return VERDICT_ALLOW;
	__u32 at = sandbox->place;
	const struct place *place = bpf_map_lookup_elem(&places, &at);
	if (!place || !place->far_ifindex)
		return VERDICT_DENY;
	*far = place->far_ifindex;
	return VERDICT_REDIRECT;
}

/* From the agent, at the veth's near end: gives the packet back its guest. This program serves all taps. */
inline_stage __u32 redirect_to_guest(struct pkt *p)
{
	__u32 zero = 0;
	int dns = p->source_port == DNS_PORT;
	if (p->fragment || (p->proto != IPPROTO_TCP && (p->proto != IPPROTO_UDP || !dns)))
		return deny(p, REASON_UNSOLICITED_ANSWER);
	if (answered_sandbox(p) != VERDICT_ALLOW)
		return VERDICT_DENY;
	if (!dns && p->source_port != intercepted_port(p))
		return deny(p, REASON_UNSOLICITED_ANSWER);
	void *table = dns ? bpf_map_lookup_elem(&redirects, &p->slot) : bpf_map_lookup_elem(&intercepted, &p->slot);
	__u32 index = bpf_ntohs(p->destination_port) - (dns ? REDIRECT_PORT_BASE : INTERCEPTED_PORT_BASE);
	struct redirect *e = table ? bpf_map_lookup_elem(table, &index) : 0;
	if (!e || e->state != REDIRECT_LIVE || e->proto != p->proto)
		return deny(p, REASON_UNSOLICITED_ANSWER);
	__u64 now = bpf_jiffies64();
	if (p->proto == IPPROTO_UDP) {
		if (!e->outstanding || redirect_expired(e, now, p->global->hz))
			return deny(p, REASON_UNSOLICITED_ANSWER);
		__sync_fetch_and_add(&e->outstanding, -1);
		dns_answered(p, now);
	} else {
		if (p->tcp_flags & TCP_RST)
			e->closing = CLOSING_RESET;
		else if (p->tcp_flags & TCP_FIN)
			e->closing |= CLOSING_AGENT;
		e->last_seen_ticks = now;
		if (!dns && p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
			note_agent(p, e, now);
	}
	struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
	if (!room)
		return deny(p, REASON_MAP_MISSING);
	struct rewrite *r = &room->rewrite;
	r->source_port = e->remote_port;
	r->destination_port = e->guest_port;

	__builtin_memcpy(r->after, e->remote, 16);
	__builtin_memcpy(r->after + 2, e->guest_addr, 16);
	__builtin_memcpy(r->macs, e->guest_mac, 6);
	__builtin_memcpy(r->macs + 6, e->gateway_mac, 6);
	barrier();
	/* claimed by another conversation while it was read: nobody waits for this answer any more */
	if (e->state != REDIRECT_LIVE || e->guest_port != r->destination_port)
		return deny(p, REASON_UNSOLICITED_ANSWER);
	if (is_mapped(r->after) == p->v6)
		return deny(p, REASON_UNSOLICITED_ANSWER);
	if (rewrite(p, r))
		return deny(p, REASON_REWRITE);
	p->redirect_ifindex = p->sandbox->ifindex;
	p->reason = dns ? REASON_DNS_ANSWER : REASON_INTERCEPT_ANSWER;
	return VERDICT_REDIRECT;
}

#endif
