/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Fragments: the first one carries the L4 header and is judged; the rest pass only behind it and never over it.
 *
 * Holds always: a later fragment whose first has not passed under the policy in force, or that starts inside what the first one
 * held, is dropped (RFC 1858, RFC 5722). First fragments of the same datagram narrow nothing: the highest end seen stays.
 */
#ifndef ENFORCER_FRAGMENT_H
#define ENFORCER_FRAGMENT_H

#define FRAGMENT_LIFETIME 30 /* seconds, as net.ipv4.ipfrag_time */

inline_stage void fragment_key_of(struct pkt *p, struct fragment_key *key)
{
	const __u64 *remote = p->direction == DIR_EGRESS ? p->destination : p->source;

	key->remote[0] = remote[0];
	key->remote[1] = remote[1];
	key->id = p->fragment_id;
	key->proto = p->proto;
	key->guest = p->guest;
	key->direction = p->direction;
	key->_pad = 0;
}

inline_stage __u32 fragment_later(struct pkt *p)
{
	struct fragment_key key;
	void *table = bpf_map_lookup_elem(&fragments, &p->slot);
	if (!table)
		return deny(p, REASON_MAP_MISSING);
	fragment_key_of(p, &key);
	struct fragment *known = bpf_map_lookup_elem(table, &key);
	if (!known || known->expires_ticks < bpf_jiffies64() || p->fragment_start < known->first_end || known->policy != (__u32)p->sandbox->policy)
		return deny(p, REASON_FRAGMENT);
	return allow(p, REASON_FRAGMENT_FOLLOWS);
}

/* After the verdict allow on a first fragment. policy: low half of the uid, read before it was judged. */
inline_stage __u32 fragment_first(struct pkt *p, __u32 policy)
{
	struct fragment_key key;
	void *table = bpf_map_lookup_elem(&fragments, &p->slot);
	if (!table)
		return deny(p, REASON_MAP_MISSING);
	fragment_key_of(p, &key);
	__u64 now = bpf_jiffies64();
	struct fragment fresh = {
		.expires_ticks = now + (__u64)FRAGMENT_LIFETIME * p->global->hz,
		.first_end = p->l4_length,
		.policy = policy,
	};
	struct fragment *known = bpf_map_lookup_elem(table, &key);
	if (known && known->expires_ticks >= now && known->first_end > fresh.first_end)
		fresh.first_end = known->first_end;
	if (bpf_map_update_elem(table, &key, &fresh, BPF_ANY))
		return deny(p, REASON_FRAGMENT_TABLE_FULL);
	return VERDICT_ALLOW;
}

#endif
