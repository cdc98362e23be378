/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * First match, in constant time: what the address satisfies, what the pins satisfy and what protocol and port satisfy are
 * bit vectors over the rules; the lowest bit of their intersection is the first matching rule.
 *
 * Holds always: one packet sees one policy (the uid is read once); a table that is missing denies; an expired pin grants
 * nothing to a new flow.
 */
#ifndef ENFORCER_POLICY_H
#define ENFORCER_POLICY_H

#define PIN_NONE 0
#define PIN_LIVE 1
#define PIN_STALE 2

inline_stage void *policy_of(__u32 slot, __u64 uid)
{
	__u32 index = policy_index(slot, uid);

	return bpf_map_lookup_elem(&policies, &index);
}

/*
 * Adds the rule bits that pins of this address grant now. keep: a flow that was allowed under a pin outlives it. Written
 * without branches in the loop: the verifier would follow each of them on its own. addr is the address cache's copy of the
 * address: Linux 6.1 takes a map's memory as a key, and not what a global function was handed.
 */
inline_stage int pin_rules(struct question *q, const __u64 *addr, __u64 *bits)
{
	__u32 index = policy_index(q->slot, q->uid);
	void *pinned = bpf_map_lookup_elem(&pins, &index);
	if (!pinned)
		return PIN_NONE;
	struct pin *pin = bpf_map_lookup_elem(pinned, addr);
	if (!pin)
		return PIN_NONE;
	__u64 now = q->keep ? 0 : bpf_ktime_get_coarse_ns() / 1000000000;
	__u64 granted = 0;
	__builtin_memset(bits, 0, RULE_WORDS * sizeof(*bits));
#pragma unroll
	for (int i = 0; i < PIN_SLOTS; i++) {
		__u64 live = (now - pin->expires[i]) >> 63; /* 1 while expires > now */
		__u32 bit = pin->bit[i];

		bits[bit >> 6 & (RULE_WORDS - 1)] |= live << (bit & 63);
		granted |= live;
	}
	barrier();
	/* an element freed and used again under our hands carries another address by now; the address is written first */
	if (!same16((const __u64 *)pin->addr, q->remote))
		return PIN_NONE;
	return granted ? PIN_LIVE : PIN_STALE;
}

/* Rule vector of protocol and port in one direction, or NULL when the policy is torn. */
inline_stage __u64 *port_rules(void *policy, struct policy_header *header, __u32 direction, __u8 proto, __be16 port)
{
	__u32 base = direction == DIR_EGRESS ? POLICY_PAGE_EGRESS : POLICY_PAGE_INGRESS;
	__u32 class_id;

	if (proto == IPPROTO_TCP || proto == IPPROTO_UDP) {
		__u32 host_port = bpf_ntohs(port);
		/* Linux 6.1 does not know that a byte swap leaves 16 bits; the compiler, which does, would drop the mask below. */
		barrier_var(host_port);
		union policy_page *directory = policy_page(policy, base + (proto == IPPROTO_UDP));
		if (!directory)
			return 0;
		class_id = directory->cells[host_port >> 8 & 255];
		if (class_id & POLICY_LEAF) {
			union policy_page *leaf = policy_page(policy, class_id & (POLICY_LEAF - 1));
			if (!leaf)
				return 0;
			class_id = leaf->cells[host_port & 255];
		}
	} else {
		union policy_page *protocols = policy_page(policy, base + 2);
		if (!protocols)
			return 0;
		class_id = protocols->cells[proto];
	}
	return class_vector(policy, header, class_id);
}

inline_stage __u32 lowest_bit(__u64 word)
{
	__u32 n = 0;

	if (!(word & 0xffffffff)) { n += 32; word >>= 32; }
	if (!(word & 0xffff)) { n += 16; word >>= 16; }
	if (!(word & 0xff)) { n += 8; word >>= 8; }
	if (!(word & 0xf)) { n += 4; word >>= 4; }
	if (!(word & 3)) { n += 2; word >>= 2; }
	return n + !(word & 1);
}

/*
 * Ports that carry other name services, which would let a guest hear names that nobody judged; and DNS itself, where it was not
 * sent to the resolver: to a group, a broadcast or no address, from where the answer could not be its.
 */
inline_stage int is_name_service(__u8 proto, __be16 port)
{
	if (port == bpf_htons(53))
		return proto == IPPROTO_UDP || proto == IPPROTO_TCP;
	if (proto == IPPROTO_UDP)
		return port == bpf_htons(853) || port == bpf_htons(5353) || port == bpf_htons(5355) || port == bpf_htons(137);
	return proto == IPPROTO_TCP && (port == bpf_htons(853) || port == bpf_htons(5355));
}

inline_stage __u32 answer(struct question *q, __u32 verdict, __u32 reason)
{
	q->reason = reason;
	return verdict;
}

/* The policy's first page, or NULL when the policy in the slot is not the one with this uid. */
inline_stage struct policy_header *header_of(void *policy, __u64 uid)
{
	union policy_page *first = policy_page(policy, POLICY_PAGE_HEADER);

	return first && first->header.uid == uid ? &first->header : 0;
}

/* Must the agent look at what was allowed to this port? For UDP that means QUIC, which it cannot look into. */
inline_stage int inspected_port(const struct policy_header *header, const struct question *q)
{
	__u16 port = bpf_ntohs(q->port);
	int found = 0;

	if (q->direction != DIR_EGRESS || (q->proto != IPPROTO_TCP && q->proto != IPPROTO_UDP) || !port)
		return 0;
#pragma unroll
	for (int i = 0; i < INSPECT_PORTS; i++)
		found |= header->inspect_ports[i] == port;
	return found;
}

/* What is allowed goes on, goes to the agent, or, where the agent could not look into it, is refused. */
inline_stage __u32 allowed(struct question *q, struct policy_header *header, int inspect, __u32 reason)
{
	q->floor = !!(header->flags & POLICY_HAS_FLOOR);
	if (!inspect || !inspected_port(header, q))
		return answer(q, VERDICT_ALLOW, reason);
	if (q->proto == IPPROTO_UDP)
		return answer(q, VERDICT_DENY, REASON_QUIC);
	q->inspect = 1;
	return answer(q, VERDICT_ALLOW, reason);
}

/*
 * Judges one flow. A global function: the verifier checks it once, for any question, and not once per caller and path.
 * Sets q->rule and q->reason; returns enum verdict.
 */
__attribute__((noinline)) int judge(struct question *q)
{
	if (!q)
		return VERDICT_DENY;
	q->rule = MAX_RULES;
	q->lapses = q->inspect = q->floor = 0;
	void *policy = policy_of(q->slot, q->uid);
	struct policy_header *header = policy ? header_of(policy, q->uid) : 0;
	if (!header)
		return answer(q, VERDICT_DENY, REASON_MAP_MISSING);
	if (q->proto == (q->v6 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return answer(q, VERDICT_DENY, REASON_PROTOCOL);
	if (q->direction == DIR_EGRESS && is_name_service(q->proto, q->port))
		return answer(q, VERDICT_DENY, REASON_NAME_SERVICE);
	struct addr_cache *known = address_rules(q, policy, header);
	__u64 *by_port = port_rules(policy, header, q->direction, q->proto, q->port);
	if (!known || !by_port)
		return answer(q, VERDICT_DENY, REASON_MAP_MISSING);
	q->group = known->group;

	__u32 zero = 0;
	int pinned = PIN_NONE;
	__u64 *pin_bits = 0;
	if (header->flags & POLICY_HAS_PINS) {
		struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
		if (!room)
			return answer(q, VERDICT_DENY, REASON_MAP_MISSING);
		pinned = pin_rules(q, known->addr, room->pin_bits);
		q->lapses = pinned == PIN_LIVE;
		/* what the host owns, its metadata and its loopback are never reached by name */
		if (pinned == PIN_LIVE && known->group > GROUP_LOOPBACK)
			pin_bits = room->pin_bits;
	}
#pragma unroll
	for (int w = 0; w < RULE_WORDS; w++) {
		__u64 match = (pin_bits ? known->bits[w] | pin_bits[w] : known->bits[w]) & by_port[w];
		if (match) {
			__u64 lowest = match & -match;
			q->rule = w * 64 + lowest_bit(match);
			return header->allow[w] & lowest ? allowed(q, header, !!(header->inspect[w] & lowest), REASON_RULE_ALLOW)
							 : answer(q, VERDICT_DENY, REASON_RULE_DENY);
		}
	}
	if (q->proto != IPPROTO_TCP && q->proto != IPPROTO_UDP && q->proto != IPPROTO_ICMP && q->proto != IPPROTO_ICMPV6)
		return answer(q, VERDICT_DENY, REASON_PROTOCOL);
	if (q->direction == DIR_INGRESS)
		return header->flags & POLICY_DEFAULT_ALLOW_INGRESS ? allowed(q, header, 0, REASON_DEFAULT_ALLOW)
								    : answer(q, VERDICT_DENY, REASON_INGRESS_DEFAULT);
	if (header->flags & POLICY_DEFAULT_ALLOW_EGRESS)
		return allowed(q, header, !!(header->flags & POLICY_INSPECT_DEFAULT), REASON_DEFAULT_ALLOW);
	/* told at once, so that the client falls back to what can be looked into */
	if (q->proto == IPPROTO_UDP && known->group == GROUP_PUBLIC && inspected_port(header, q))
		return answer(q, VERDICT_DENY, REASON_QUIC);
	if (pinned == PIN_STALE)
		return answer(q, VERDICT_DENY, REASON_PIN_EXPIRED);
	if (known->group == GROUP_PUBLIC && header->flags & POLICY_HAS_PINS && pinned == PIN_NONE)
		return answer(q, VERDICT_DENY, REASON_NO_PIN);
	return answer(q, VERDICT_DENY, REASON_DEFAULT_HOST + known->group);
}

/*
 * Could any packet to this address be allowed outward by a rule? For ARP and neighbour solicitation: whoever may be spoken to may be
 * asked for. Asked with keep: flows outlive their pin, and need their neighbour.
 */
__attribute__((noinline)) int reachable(struct question *q)
{
	if (!q)
		return 0;
	void *policy = policy_of(q->slot, q->uid);
	struct policy_header *header = policy ? header_of(policy, q->uid) : 0;
	struct addr_cache *known = header ? address_rules(q, policy, header) : 0;
	if (!known)
		return 0;
	q->floor = !!(header->flags & POLICY_HAS_FLOOR);
	__u64 *pin_bits = 0;
	if (header->flags & POLICY_HAS_PINS && known->group > GROUP_LOOPBACK) {
		__u32 zero = 0;
		struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
		if (room && pin_rules(q, known->addr, room->pin_bits) == PIN_LIVE)
			pin_bits = room->pin_bits;
	}
#pragma unroll
	for (int w = 0; w < RULE_WORDS; w++)
		if ((pin_bits ? known->bits[w] | pin_bits[w] : known->bits[w]) & header->allow[w] & ~header->ingress[w])
			return 1;
	return 0;
}

/* Fills in the packet's question. */
inline_stage struct question *ask(struct pkt *p, __u32 direction, const __u64 *remote, __be16 port, int keep)
{
	struct question *q = &p->question;

	q->uid = p->sandbox->policy;
	q->remote[0] = remote[0];
	q->remote[1] = remote[1];
	q->slot = p->slot;
	q->generation = p->sandbox->generation;
	q->port = port;
	q->rule = MAX_RULES;
	q->proto = p->proto;
	q->v6 = p->v6;
	q->direction = direction;
	q->keep = keep;
	q->reason = REASON_UNKNOWN;
	q->lapses = q->inspect = q->floor = 0;
	q->group = GROUP_HOST;
	return q;
}

/*
 * The sandbox's policy, and where it allows, the operator's floor: both must. The rule that is told is the policy's own.
 */
inline_stage __u32 verdict_of(struct question *q)
{
	__u32 verdict = judge(q);

	if (verdict != VERDICT_ALLOW || !q->floor)
		return verdict;
	__u16 rule = q->rule;
	__u32 reason = q->reason;
	__u8 inspect = q->inspect, lapses = q->lapses;

	q->uid |= POLICY_FLOOR_UID;
	verdict = judge(q);
	q->uid &= ~POLICY_FLOOR_UID;
	q->rule = rule;
	q->inspect |= inspect;
	q->lapses |= lapses;
	if (verdict == VERDICT_ALLOW)
		q->reason = reason;
	else if (q->reason != REASON_QUIC && q->reason != REASON_MAP_MISSING)
		q->reason = REASON_FLOOR;
	return verdict;
}

inline_stage int may_ask_for(struct question *q)
{
	if (!reachable(q))
		return 0;
	if (!q->floor)
		return 1;
	q->uid |= POLICY_FLOOR_UID;
	int both = reachable(q);
	q->uid &= ~POLICY_FLOOR_UID;
	return both;
}

#endif
