/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The flow table of a sandbox: what was allowed goes on, both ways, until it is idle or the policy changes.
 *
 * Holds always: an entry grants access only under the policy uid that it carries; under another it is judged again, as the
 * direction that opened it, and so it is where its remote address has come into another address group: the host may take an
 * address that was somebody else's. A SYN is always a new flow. Time-outs are counted here, whether or not the agent sweeps.
 */
#ifndef ENFORCER_FLOW_H
#define ENFORCER_FLOW_H

/* Idle time-outs in seconds: RFC 5382 (TCP, two hours four minutes), RFC 4787 (UDP), RFC 5508 (ICMP); short while nobody
 * answered. */
#define TCP_IDLE 7440
#define TCP_OPENING 60
#define TCP_HALF_CLOSED 240
#define TCP_CLOSING 10
#define TCP_CLOSING_FULL 1 /* the same where the table is full and somebody needs the place */
#define UDP_IDLE 180
#define UDP_OPENING 60
#define OTHER_IDLE 60

inline_stage __u32 flow_lifetime(__u8 proto, __u8 flags)
{
	if (proto == IPPROTO_TCP)
		return flags & FLOW_CLOSING ? TCP_CLOSING : !(flags & FLOW_REPLIED) ? TCP_OPENING :
		       flags & (FLOW_FIN_GUEST | FLOW_FIN_REMOTE) ? TCP_HALF_CLOSED : TCP_IDLE;
	if (proto == IPPROTO_UDP)
		return flags & FLOW_REPLIED ? UDP_IDLE : UDP_OPENING;
	return OTHER_IDLE;
}

inline_stage int flow_expired(__u8 proto, const struct flow *flow, __u64 now, __u32 hz)
{
	return idle_ticks(now, flow->last_seen_ticks) > (__s64)flow_lifetime(proto, flow->flags) * hz;
}

/* Key of the packet's flow, the same from both directions. An echo's key says which side asks. */
inline_stage void flow_key_of(struct pkt *p, struct flow_key *key)
{
	int out = p->direction == DIR_EGRESS;
	const __u64 *remote = out ? p->destination : p->source;

	key->remote[0] = remote[0];
	key->remote[1] = remote[1];
	key->proto = p->proto;
	key->guest = p->guest;
	key->_pad[0] = key->_pad[1] = 0;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
		key->remote_port = out ? p->destination_port : p->source_port;
		key->guest_port = out ? p->source_port : p->destination_port;
	} else if (p->proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		__u8 type = bpf_ntohs(p->source_port) >> 8;
		int request = type == (p->v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST);
		key->remote_port = request == out;
		key->guest_port = p->icmp_id;
	} else {
		key->remote_port = key->guest_port = 0;
	}
}

struct reclaim {
	__u64 now;
	__u32 hz;
	__u32 freed;
	__u32 full;
};

static long reclaim_one(void *map, const void *key, void *value, struct reclaim *ctx)
{
	struct flow_key copy = *(const struct flow_key *)key;

	const struct flow *flow = value;

	if (flow_expired(copy.proto, flow, ctx->now, ctx->hz) ||
	    (ctx->full && flow->flags & FLOW_CLOSING && idle_ticks(ctx->now, flow->last_seen_ticks) > (__s64)TCP_CLOSING_FULL * ctx->hz)) {
		bpf_map_delete_elem(map, &copy);
		ctx->freed++;
	}
	return 0;
}

/*
 * Frees what has expired in a sandbox's table; how many there were. full: closing flows go before their time, so that a guest
 * with many short connections is not held up by those that are over; but not if it was done within the last second. Global: the
 * verifier checks it once.
 */
__attribute__((noinline)) int flow_reclaim(__u32 slot, int full)
{
	struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &slot);
	void *table = bpf_map_lookup_elem(&flows, &slot);
	__u32 zero = 0;
	struct globals *global = bpf_map_lookup_elem(&globals, &zero);
	struct reclaim ctx = { .now = bpf_jiffies64(), .hz = global ? global->hz : 0, .full = full };

	if (!limit || !table || !ctx.hz || (full && ctx.now - limit->swept_ticks < ctx.hz))
		return 0;
	limit->swept_ticks = ctx.now;
	bpf_for_each_map_elem(table, reclaim_one, &ctx, 0);
	return ctx.freed;
}

/* flow.groups: 24 bits of the epoch are enough, for a flow ends long before as many changes. */
inline_stage __u32 groups_word(__u64 epoch, __u32 group)
{
	return (__u32)epoch << 8 | (group & 0xff);
}

inline_stage int knows_groups(const struct flow *flow, __u64 epoch)
{
	return flow->groups >> 8 == ((__u32)epoch & 0xffffff);
}

/*
 * The address groups changed since the flow was judged: does what was said of its remote address still hold? Whatever is of the
 * host's now is judged again; else only what changed its group is, for the pin that opened a flow may be gone meanwhile.
 */
inline_stage int group_holds(struct pkt *p, struct flow *flow, __u32 origin, const __u64 *remote, __be16 port)
{
	__u64 epoch = p->global->groups_epoch;

	if (knows_groups(flow, epoch))
		return 1;
	__u32 group = group_now(ask(p, origin, remote, port, 1)), before = flow->groups;
	if (group <= GROUP_LOOPBACK || (before && (before & 0xff) != group))
		return 0;
	flow->groups = groups_word(epoch, group);
	return 1;
}

/* A new flow, or a new one in the place of an old one with the same key. groups: epoch, read before it was judged. */
inline_stage __u32 flow_open(struct pkt *p, void *table, struct flow_key *key, struct flow *old, __u32 origin, __u64 groups)
{
	__u64 now = bpf_jiffies64();

	__u32 opened = p->question.inspect ? TO_AGENT : VERDICT_ALLOW;
	__u8 flags = p->question.inspect ? FLOW_INSPECT : 0;

	if (old) {
		old->last_seen_ticks = now;
		old->created_ticks = now;
		old->policy = p->question.uid;
		old->rule = p->rule;
		old->origin = origin;
		old->flags = flags;
		old->groups = groups_word(groups, p->question.group);
		return opened;
	}
	struct flow flow = {
		.last_seen_ticks = now,
		.created_ticks = now,
		.policy = p->question.uid,
		.rule = p->rule,
		.origin = origin,
		.flags = flags,
		.groups = groups_word(groups, p->question.group),
	};

	if (bpf_map_update_elem(table, key, &flow, BPF_ANY) == 0)
		return opened;
	/* Full. The agent sweeps every few seconds; without it, or faster than it, room is made here. */
	if (flow_reclaim(p->slot, 1) && bpf_map_update_elem(table, key, &flow, BPF_ANY) == 0)
		return opened;
	return deny(p, REASON_FLOW_TABLE_FULL);
}

/* The TCP state of a living flow, as far as its time-outs need it. */
inline_stage void flow_note(struct pkt *p, struct flow *flow, __u64 now)
{
	__u8 flags = flow->flags;

	if (p->proto == IPPROTO_TCP && p->tcp_flags & (TCP_FIN | TCP_RST)) {
		if (p->tcp_flags & TCP_FIN)
			flags |= p->direction == DIR_EGRESS ? FLOW_FIN_GUEST : FLOW_FIN_REMOTE;
		if (p->tcp_flags & TCP_RST || (flags & FLOW_FIN_GUEST && flags & FLOW_FIN_REMOTE))
			flags |= FLOW_CLOSING;
	}
	if (flow->origin != p->direction)
		flags |= FLOW_REPLIED;
	if (flags != flow->flags) {
		/* bits are only added: the entry may be another flow's by now, and must not lose what is its own */
		__sync_fetch_and_or((__u32 *)&flow->rule, (__u32)flags << 24);
		flow->last_seen_ticks = now;
	}
	/* a busy flow's entry is written twice a second, not per packet */
	if (idle_ticks(now, flow->last_seen_ticks) > p->global->hz / 2)
		flow->last_seen_ticks = now;
}

/* Verdict on an IP packet by flow table and policy. The caller has checked identity and form. */
inline_stage __u32 flow_verdict(struct pkt *p)
{
	void *table = bpf_map_lookup_elem(&flows, &p->slot);
	if (!table)
		return deny(p, REASON_MAP_MISSING);
	struct flow_key key;
	flow_key_of(p, &key);
	__u64 now = bpf_jiffies64();
	__u32 hz = p->global->hz; /* before the agent has said it, every entry is over at once and is judged anew */
	__u64 uid = p->sandbox->policy;
	/* a SYN is always a new flow: what it replaces need not be looked up */
	int opens = p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	struct flow *flow = opens ? 0 : bpf_map_lookup_elem(table, &key);

	if (flow && !flow_expired(p->proto, flow, now, hz)) {
		__u32 origin = flow->origin;
		__be16 port = origin == DIR_EGRESS ? key.remote_port : key.guest_port;
		const __u64 *remote = p->direction == DIR_EGRESS ? p->destination : p->source;

		int swapped = flow->policy != uid;

		if (swapped || !group_holds(p, flow, origin, remote, port)) {
			__u64 groups = p->global->groups_epoch;
			__u32 verdict = verdict_of(ask(p, origin, remote, port, 1));
			p->rule = p->question.rule;
			/*
			 * Gone into another network, as when a route comes: out of reach, and no more than that, for a policy that names the
			 * address is about to follow.
			 */
			if (verdict != VERDICT_ALLOW && !swapped && p->question.group > GROUP_LOOPBACK)
				return deny(p, p->question.reason);
			if (verdict != VERDICT_ALLOW || p->question.inspect != !!(flow->flags & FLOW_INSPECT)) {
				/* what the remote sends only makes the guest speak, and then both are told; see reject.h */
				if (p->direction == DIR_EGRESS)
					bpf_map_delete_elem(table, &key);
				return deny(p, REASON_POLICY_CHANGED);
			}
			flow->rule = p->rule;
			flow->groups = groups_word(groups, p->question.group);
			flow->policy = uid;
		}
		p->rule = flow->rule;
		if (flow->flags & FLOW_INSPECT && p->direction == DIR_INGRESS)
			return deny(p, REASON_UNSOLICITED_ANSWER); /* only the agent may speak for the other side */
		flow_note(p, flow, now);
		return flow->flags & FLOW_INSPECT ? TO_AGENT : allow(p, REASON_ESTABLISHED);
	}

	if (p->proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		/* a request may open a flow; a reply without one answers nothing */
		__u16 request = p->v6 ? ICMP6_ECHO_REQUEST << 8 : ICMP_ECHO_REQUEST << 8;
		if (bpf_ntohs(p->source_port) != request)
			return deny(p, REASON_ICMP_TYPE);
	}
	const __u64 *remote = p->direction == DIR_EGRESS ? p->destination : p->source;
	__be16 port = p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP ? p->destination_port : 0;
	__u64 groups = p->global->groups_epoch, pinned = pin_epoch(p->slot);
	__u32 verdict = verdict_of(ask(p, p->direction, remote, port, 0));
	p->rule = p->question.rule;
	p->reason = p->question.reason;
	if (verdict != VERDICT_ALLOW) {
		remember_denial(p, remote, port, groups, pinned);
		return VERDICT_DENY;
	}
	return flow_open(p, table, &key, flow, p->direction, groups);
}

/* An ICMP error toward the guest passes when it quotes a packet of a living flow that the guest sent (RFC 5508). */
inline_stage __u32 icmp_error_ingress(struct pkt *p)
{
	struct flow_key key = {};
	__u64 inner_source[2];
	__u32 inner = p->l4 + 8, ports;
	__u8 proto;

	if (p->v6) {
		struct ipv6hdr *ip = pkt_at(p, inner, sizeof(*ip));
		if (!ip || ip->version != 6)
			return deny(p, REASON_ICMP_TYPE);
		__builtin_memcpy(inner_source, &ip->saddr, 16);
		__builtin_memcpy(key.remote, &ip->daddr, 16);
		proto = ip->nexthdr;
		ports = inner + sizeof(*ip);
		key.guest = guest_index6(p, inner_source);
	} else {
		struct iphdr *ip = pkt_at(p, inner, sizeof(*ip));
		if (!ip || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(0x1fff))
			return deny(p, REASON_ICMP_TYPE);
		__u64 remote[2];
		map_v4(remote, ip->daddr);
		__builtin_memcpy(key.remote, remote, 16);
		proto = ip->protocol;
		ports = inner + sizeof(*ip);
		key.guest = guest_index4(p, ip->saddr);
	}
	if (key.guest == GUEST_NONE || key.guest != p->guest)
		return deny(p, REASON_ICMP_TYPE);
	/* copied: Linux 6.1 loses sight of a pointer at a second varying offset */
	__be16 l4[4];
	if (bpf_skb_load_bytes(p->skb, ports, l4, sizeof(l4)))
		return deny(p, REASON_ICMP_TYPE);
	key.proto = proto;
	if (proto == IPPROTO_TCP || proto == IPPROTO_UDP) {
		key.guest_port = l4[0];
		key.remote_port = l4[1];
	} else if (proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		key.remote_port = bpf_ntohs(l4[0]) >> 8 == (p->v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST);
		key.guest_port = l4[2];
	}
	void *table = bpf_map_lookup_elem(&flows, &p->slot);
	struct flow *flow = table ? bpf_map_lookup_elem(table, &key) : 0;
	if (!flow || flow->policy != p->sandbox->policy || flow->flags & FLOW_INSPECT || flow_expired(proto, flow, bpf_jiffies64(), p->global->hz))
		return deny(p, REASON_ICMP_TYPE);
	return allow(p, REASON_ICMP_RELATED);
}

#endif
