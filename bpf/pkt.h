/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The one context that every stage takes, and the only way to octets of the packet.
 *
 * Holds always: packet pointers come from pkt_refresh alone; a stage that may have moved the data calls it again. A stage
 * that fails sets p->reason and returns VERDICT_DENY; there is no other way to say no.
 */
#ifndef ENFORCER_PKT_H
#define ENFORCER_PKT_H

#define HEADERS_MAX 128 /* octets made linear before parsing: Ethernet, IPv6, four extension headers or a quoted header, TCP */

#define inline_stage static __always_inline

/* What the policy is asked about a flow, and what it said. Scalars only, so that it can cross into a global function. */
struct question {
	__u64 uid;
	__u64 remote[2];
	__u32 slot;
	__u32 generation;
	__be16 port;      /* remote port for egress, the guest's for ingress */
	__u16 rule;       /* answer */
	__u8 proto;
	__u8 v6;
	__u8 direction;
	__u8 keep;        /* a flow allowed under a pin is judged again: the pin's expiry does not count */
	__u32 reason;     /* answer */
	__u8 lapses;      /* answer: live pins had a say, so that time alone may change it */
	__u8 inspect;     /* answer: allowed, and the agent must look who is meant */
	__u8 floor;       /* answer: the floor must be asked too */
	__u8 group;       /* answer: enum group of the remote */
};

struct pkt {
	struct question question; /* one for all stages: stack is short */
	struct __sk_buff *skb;
	const struct sandbox *sandbox;
	const struct globals *global;
	__u8 *data;
	__u8 *end;
	__u32 slot;
	__u32 length;         /* octets of the frame */
	__u32 direction;      /* enum direction */
	__u32 reason;         /* enum reason */
	__u64 source[2];      /* IPv4: mapped */
	__u64 destination[2];
	__u32 l4;             /* offset of the L4 header; 0: none in this frame */
	__u32 l4_length;      /* octets from there to the end of the datagram or fragment */
	__u32 fragment_id;
	union {
		__u32 fragment_start;   /* octets; of the payload after the fragment header */
		__u32 redirect_ifindex; /* with VERDICT_REDIRECT: a fragment is never redirected */
	};
	__u16 ethertype;      /* host order */
	__be16 source_port;   /* ICMP: type << 8 | code */
	__be16 destination_port;
	__be16 icmp_id;
	__u16 rule;
	__u8 proto;
	__u8 tcp_flags;
	__u8 v6;
	__u8 fragment;        /* FRAGMENT_* */
	__u8 guest;           /* index of the guest's address */
	__u8 hop_limit;
	__u32 place;          /* see struct tap_key */
};

/*
 * Linux before 6.8 follows a value in an aligned eight octets of the stack, but not through a pointer into another function: it would
 * take what holds on one way for all, and cut the other ways out of that function. What refuse.h branches by is not there.
 */
_Static_assert(__builtin_offsetof(struct pkt, reason) % 8 == 4, "the reason is in the upper half");

/* What a stage says beside enum verdict. */
#define TO_FLOW 3   /* form and identity are right: flow table and policy decide */
#define TO_AGENT 5  /* allowed by address: the agent decides by name */
#define TO_RESOLVER 6
#define UNDECIDED 4 /* the short way does not know */

/* TC codes, see verdict.h */
#define CODE_NEXT (-1)
#define CODE_DROP 2

#define FRAGMENT_NONE 0
#define FRAGMENT_FIRST 1
#define FRAGMENT_LATER 2

inline_stage __u32 deny(struct pkt *p, __u32 reason)
{
	p->reason = reason;
	return VERDICT_DENY;
}

inline_stage __u32 allow(struct pkt *p, __u32 reason)
{
	p->reason = reason;
	return VERDICT_ALLOW;
}

/* The near end of the veth pair in the packet's namespace; 0: none. within: known to the compiler, as everywhere: in another than the agent's own. */
inline_stage __u32 resolver_ifindex(struct pkt *p, int within)
{
	if (!within)
		return p->global->resolver_ifindex;
	const struct place *place = bpf_map_lookup_elem(&places, &p->place);
	return place ? place->resolver_ifindex : 0;
}

inline_stage void pkt_refresh(struct pkt *p)
{
	p->data = (__u8 *)(long)p->skb->data;
	p->end = (__u8 *)(long)p->skb->data_end;
}

/* Makes the headers linear; the guest chooses how much of its frame is (virtio_net_hdr.hdr_len). 0 or -1. */
inline_stage int pkt_pull(struct pkt *p)
{
	__u32 want = p->length < HEADERS_MAX ? p->length : HEADERS_MAX;

	pkt_refresh(p);
	if (p->data + want > p->end) {
		if (bpf_skb_pull_data(p->skb, want))
			return -1;
		pkt_refresh(p);
		if (p->data + want > p->end)
			return -1;
	}
	return 0;
}

/* Pointer to n octets at offset, or NULL. Offsets are bounded by HEADERS_MAX: what lies beyond is not parsed. */
inline_stage void *pkt_at(struct pkt *p, __u32 offset, __u32 n)
{
	if (offset > HEADERS_MAX)
		return 0;
	__u8 *at = p->data + offset;
	if (at + n > p->end)
		return 0;
	return at;
}

#define MAPPED_PREFIX bpf_htonl(0xffff)

inline_stage void map_v4(__u64 *out, __be32 addr)
{
	out[0] = 0;
	out[1] = (__u64)addr << 32 | MAPPED_PREFIX;
}

/* Inside, an IPv4 address is written so; no IPv6 packet may carry one, or it would share the other's pins and flows. */
inline_stage int is_mapped(const __u64 *addr)
{
	return addr[0] == 0 && (__u32)addr[1] == MAPPED_PREFIX;
}

inline_stage __be32 v4_of(const __u64 *addr)
{
	return (__be32)(addr[1] >> 32);
}

/*
 * Ticks since a table's entry was used. Signed: another CPU may have used it after `now` was read, above all during a walk through a
 * large table, and then it has not been idle for ages but not at all.
 */
inline_stage __s64 idle_ticks(__u64 now, __u64 last_seen)
{
	return (__s64)(now - last_seen);
}

inline_stage int same16(const __u64 *a, const __u64 *b)
{
	return a[0] == b[0] && a[1] == b[1];
}

#endif
