/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What policy denied lately, so that a guest that knocks again costs no second judgement.
 *
 * Holds always: an entry is good only for the sandbox, policy, groups and pins under which it was made, and none is made
 * where the end of a pin could change the verdict; it can deny and never allow. It is asked after the flow table: an
 * established flow is not in its reach.
 */
#ifndef ENFORCER_DENIAL_H
#define ENFORCER_DENIAL_H

inline_stage struct denial *denial_place(__u64 uid, const __u64 *remote, __be16 port)
{
	__u64 hash = (remote[0] ^ remote[1] * 0x9e3779b97f4a7c15ULL ^ uid ^ (__u64)port << 32) * 0xff51afd7ed558ccdULL;
	__u32 at = hash >> 40 & (DENIAL_CACHE - 1);

	return bpf_map_lookup_elem(&denials, &at);
}

inline_stage __u64 pin_epoch(__u32 slot)
{
	__u64 *epoch = bpf_map_lookup_elem(&pin_epochs, &slot);

	return epoch ? *epoch : 0;
}

/* After judge() denied. The epochs were read before it: what changes meanwhile makes the entry stale, not wrong. */
inline_stage void remember_denial(struct pkt *p, const __u64 *remote, __be16 port, __u64 groups, __u64 pinned)
{
	if ((p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP) || p->reason == REASON_MAP_MISSING || p->question.lapses)
		return;
	struct denial *d = denial_place(p->question.uid, remote, port);
	if (!d)
		return;
	d->policy = 0;
	barrier();
	d->epoch = groups;
	d->pins = pinned;
	d->remote[0] = remote[0];
	d->remote[1] = remote[1];
	d->generation = p->sandbox->generation;
	d->port = port;
	d->rule = p->rule;
	d->proto = p->proto;
	d->direction = p->direction;
	d->reason = p->reason;
	barrier();
	d->policy = p->question.uid;
}

inline_stage int denied_lately(struct pkt *p, const __u64 *remote, __be16 port, __u8 proto)
{
	__u64 uid = p->sandbox->policy;
	struct denial *d = denial_place(uid, remote, port);

	if (!d || d->policy != uid || d->generation != p->sandbox->generation || !same16(d->remote, remote) || d->port != port ||
	    d->proto != proto || d->direction != p->direction || d->epoch != p->global->groups_epoch || d->pins != pin_epoch(p->slot))
		return 0;
	p->rule = d->rule;
	p->reason = d->reason;
	return 1;
}

#endif
