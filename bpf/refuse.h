/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Some of what is dropped is answered, so that nobody waits for a time-out: a connection that the policy no longer allows
 * ends on both sides, DNS over TLS and QUIC are refused so that clients fall back at once, and so is what needs the agent while
 * there is none.
 *
 *   TCP, from the guest   RST to the guest; where a connection was cut, the packet itself becomes a RST to the far end, unless that
 *                         is the host by now, which never had the connection and to which nothing may come
 *   TCP, from outside     of a connection that was cut: becomes a keep-alive without payload, which the guest answers; that
 *                         answer is cut as above, with numbers that both sides accept
 *   UDP, from the guest   ICMP port unreachable
 *
 * Holds always: nothing of the dropped packet's payload goes on, and all headers that leave are written here. What cannot be
 * written is dropped silently. The answer reaches the guest by redirection to its own tap, known there by mark and device.
 */
#ifndef ENFORCER_REFUSE_H
#define ENFORCER_REFUSE_H

#define REFUSAL_MARK 0x52535421
#define IP4_HEADER 20
#define IP6_HEADER 40
#define TCP_HEADER 20
#define UDP_HEADER 8
#define ICMP_HEADER 8
#define QUOTED_L4 8 /* RFC 792; RFC 4443 lets us quote as little */

struct refusal {
	__u8 macs[12]; /* of the dropped frame: destination, source */
	__be32 seq;
	__be32 ack;
	__u32 ip;      /* octets of the IP header */
	__u8 partial;  /* the checksum is completed by the kernel after us, at the place of the dropped packet's */
	__u8 back;     /* toward where the packet came from */
	__u8 flags;    /* TCP */
	__u8 _pad;
};

inline_stage __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Sum of n octets (a multiple of four) from seed on, as the Internet checksum adds. */
inline_stage __u32 sum_of(const void *octets, __u32 n, __u32 seed)
{
	return bpf_csum_diff(0, 0, (__be32 *)octets, n, seed);
}

/* Ethernet and IP header into the frame; the sum of the pseudo header. */
inline_stage __u32 write_ip(struct pkt *p, const struct refusal *r, __u8 *frame, __u8 proto, __u32 payload)
{
	const __u64 *from = r->back ? p->destination : p->source, *to = r->back ? p->source : p->destination;
	__be32 pseudo[2] = { bpf_htonl(payload), bpf_htonl(proto) };
	__u32 sum = sum_of(pseudo, sizeof(pseudo), 0);

	__builtin_memcpy(frame, r->macs + (r->back ? 6 : 0), 6);
	__builtin_memcpy(frame + 6, r->macs + (r->back ? 0 : 6), 6);
	*(__be16 *)(frame + 12) = bpf_htons(p->v6 ? ETH_P_IPV6 : ETH_P_IP);
	if (p->v6) {
		struct ipv6hdr *ip = (struct ipv6hdr *)(frame + ETH_HEADER);

		*(__be32 *)ip = bpf_htonl(6U << 28);
		ip->payload_len = bpf_htons(payload);
		ip->nexthdr = proto;
		ip->hop_limit = 64;
		__builtin_memcpy(&ip->saddr, from, 16);
		__builtin_memcpy(&ip->daddr, to, 16);
		return sum_of(&ip->saddr, 32, sum);
	}
	struct iphdr *ip = (struct iphdr *)(frame + ETH_HEADER);

	*(__be32 *)ip = bpf_htonl(0x45000000 | (IP4_HEADER + payload));
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = proto;
	ip->check = 0;
	ip->saddr = v4_of(from);
	ip->daddr = v4_of(to);
	ip->check = ~fold(sum_of(ip, IP4_HEADER, 0));
	return sum_of(&ip->saddr, 8, sum);
}

/* Makes the packet a TCP segment without payload. 0 or -1. */
static __attribute__((noinline)) int become_tcp(struct pkt *p, struct refusal *r, struct scratch *room)
{
	__u8 *frame = room->frame;
	__u32 sum = write_ip(p, r, frame, IPPROTO_TCP, TCP_HEADER);
	__u8 *at = frame + ETH_HEADER + (p->v6 ? IP6_HEADER : IP4_HEADER);
	struct tcphdr *tcp = (struct tcphdr *)at;

	tcp->source = r->back ? p->destination_port : p->source_port;
	tcp->dest = r->back ? p->source_port : p->destination_port;
	tcp->seq = r->seq;
	tcp->ack_seq = r->flags & TCP_ACK ? r->ack : 0;
	at[12] = TCP_HEADER / 4 << 4;
	at[13] = r->flags;
	tcp->window = 0;
	tcp->check = 0;
	tcp->urg_ptr = 0;
	tcp->check = r->partial ? fold(sum) : ~fold(sum_of(tcp, TCP_HEADER, sum));
	if (p->v6)
		return bpf_skb_change_tail(p->skb, ETH_HEADER + IP6_HEADER + TCP_HEADER, 0) ||
		       bpf_skb_store_bytes(p->skb, 0, frame, ETH_HEADER + IP6_HEADER + TCP_HEADER, 0) ? -1 : 0;
	return bpf_skb_change_tail(p->skb, ETH_HEADER + IP4_HEADER + TCP_HEADER, 0) ||
	       bpf_skb_store_bytes(p->skb, 0, frame, ETH_HEADER + IP4_HEADER + TCP_HEADER, 0) ? -1 : 0;
}

/*
 * Makes the packet an ICMP error about itself: port unreachable. Where the kernel completes a partial UDP checksum after us,
 * it writes into octets 6 and 7 of the ICMP header, which mean nothing here (RFC 792, RFC 4443): what it writes there makes
 * the sum right, and the checksum field proper stays zero. 0 or -1.
 */
static __attribute__((noinline)) int become_unreachable(struct pkt *p, struct refusal *r, struct scratch *room)
{
	__u8 *frame = room->frame;
	__u8 *icmp = frame + ETH_HEADER + (p->v6 ? IP6_HEADER : IP4_HEADER);
	__u32 sum;

	if (p->v6) {
		if (bpf_skb_load_bytes(p->skb, ETH_HEADER, icmp + ICMP_HEADER, IP6_HEADER + QUOTED_L4))
			return -1;
		sum = write_ip(p, r, frame, IPPROTO_ICMPV6, ICMP_HEADER + IP6_HEADER + QUOTED_L4);
	} else {
		if (bpf_skb_load_bytes(p->skb, ETH_HEADER, icmp + ICMP_HEADER, IP4_HEADER + QUOTED_L4))
			return -1;
		write_ip(p, r, frame, IPPROTO_ICMP, ICMP_HEADER + IP4_HEADER + QUOTED_L4);
		sum = 0; /* no pseudo header */
	}
	icmp[0] = p->v6 ? 1 : 3;
	icmp[1] = p->v6 ? 4 : 3;
	__builtin_memset(icmp + 2, 0, 6);
	if (r->partial)
		*(__be16 *)(icmp + 6) = fold(sum);
	else
		*(__be16 *)(icmp + 2) = ~fold(p->v6 ? sum_of(icmp, ICMP_HEADER + IP6_HEADER + QUOTED_L4, sum)
						  : sum_of(icmp, ICMP_HEADER + IP4_HEADER + QUOTED_L4, sum));
	if (p->v6)
		return bpf_skb_change_tail(p->skb, ETH_HEADER + 2 * IP6_HEADER + ICMP_HEADER + QUOTED_L4, 0) ||
		       bpf_skb_store_bytes(p->skb, 0, frame, ETH_HEADER + 2 * IP6_HEADER + ICMP_HEADER + QUOTED_L4, 0) ? -1 : 0;
	return bpf_skb_change_tail(p->skb, ETH_HEADER + 2 * IP4_HEADER + ICMP_HEADER + QUOTED_L4, 0) ||
	       bpf_skb_store_bytes(p->skb, 0, frame, ETH_HEADER + 2 * IP4_HEADER + ICMP_HEADER + QUOTED_L4, 0) ? -1 : 0;
}

/*
 * From the agent's namespace, which says by itself that nobody takes a query: the agent has just ended, and its end of the veth
 * has not gone yet. The packet becomes the guest's query again, headers only, and is refused like one that comes later.
 */
static __attribute__((noinline)) __u32 nobody_listens(struct pkt *p)
{
	__u32 zero = 0, quoted = p->l4 + ICMP_HEADER, ip = p->v6 ? IP6_HEADER : IP4_HEADER;
	__u8 version, proto;
	__be16 ports[2];
	struct refusal r = {};

	if (p->fragment || p->source_port != bpf_htons(p->v6 ? 1 << 8 | 4 : 3 << 8 | 3) || answered_sandbox(p) != VERDICT_ALLOW)
		return deny(p, REASON_UNSOLICITED_ANSWER);
	if (bpf_skb_load_bytes(p->skb, quoted, &version, 1) || bpf_skb_load_bytes(p->skb, quoted + (p->v6 ? 6 : 9), &proto, 1) ||
	    bpf_skb_load_bytes(p->skb, quoted + ip, ports, sizeof(ports)))
		return deny(p, REASON_TRUNCATED);
	void *table = bpf_map_lookup_elem(&redirects, &p->slot);
	__u32 index = bpf_ntohs(ports[0]) - REDIRECT_PORT_BASE;
	struct redirect *e = table ? bpf_map_lookup_elem(table, &index) : 0;
	struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
	if (!e || !room || proto != IPPROTO_UDP || (!p->v6 && version != 0x45) || ports[1] != DNS_PORT || e->state != REDIRECT_LIVE ||
	    e->proto != IPPROTO_UDP || !e->outstanding || is_mapped((__u64 *)e->remote) == p->v6)
		return deny(p, REASON_UNSOLICITED_ANSWER);
	__sync_fetch_and_add(&e->outstanding, -1);
	dns_answered(p, bpf_jiffies64());
	__builtin_memcpy(p->source, e->guest_addr, 16);
	__builtin_memcpy(p->destination, e->remote, 16);
	__builtin_memcpy(r.macs, e->gateway_mac, 6);
	__builtin_memcpy(r.macs + 6, e->guest_mac, 6);
	p->source_port = e->guest_port;
	p->destination_port = e->remote_port;
	p->proto = IPPROTO_UDP;
	p->l4 = ETH_HEADER + ip;
	p->direction = DIR_EGRESS;

	__u8 *frame = room->frame;
	write_ip(p, &r, frame, IPPROTO_UDP, UDP_HEADER);
	struct udphdr *udp = (struct udphdr *)(frame + ETH_HEADER + (p->v6 ? IP6_HEADER : IP4_HEADER));
	udp->source = p->source_port;
	udp->dest = p->destination_port;
	udp->len = bpf_htons(UDP_HEADER);
	udp->check = 0;
	if (p->v6 ? bpf_skb_change_tail(p->skb, ETH_HEADER + IP6_HEADER + UDP_HEADER, 0) || bpf_skb_store_bytes(p->skb, 0, frame, ETH_HEADER + IP6_HEADER + UDP_HEADER, 0)
		  : bpf_skb_change_tail(p->skb, ETH_HEADER + IP4_HEADER + UDP_HEADER, 0) || bpf_skb_store_bytes(p->skb, 0, frame, ETH_HEADER + IP4_HEADER + UDP_HEADER, 0))
		return deny(p, REASON_REWRITE);
	return deny(p, REASON_AGENT_GONE);
}

inline_stage int is_refusal(struct pkt *p)
{
	return p->skb->mark == REFUSAL_MARK && p->skb->ingress_ifindex == p->skb->ifindex;
}

/* The TC code of a packet that was denied. */
static __attribute__((noinline)) int refuse(struct pkt *p)
{
	struct __sk_buff *skb = p->skb;
	__u32 zero = 0;
	int cut = p->reason == REASON_POLICY_CHANGED, out = p->direction == DIR_EGRESS, gone = p->reason == REASON_AGENT_GONE;
	struct refusal r = { .ip = p->v6 ? IP6_HEADER : IP4_HEADER };

	if (!p->global || !p->sandbox || (!cut && !gone && p->reason != REASON_QUIC && p->reason != REASON_NAME_SERVICE))
		return CODE_DROP;
	/* a client that hears nothing asks again, and then the successor is there */
	if (gone && bpf_ktime_get_coarse_ns() < p->global->silent_until_ns)
		return CODE_DROP;
	/* the writers keep to the plain form: no options, no extension headers, no fragments */
	if (p->fragment || p->l4 != ETH_HEADER + r.ip || (!out && !cut))
		return CODE_DROP;
	struct scratch *room = bpf_map_lookup_elem(&scratch, &zero);
	if (!room || bpf_skb_load_bytes(skb, 0, r.macs, 12))
		return CODE_DROP;
	r.partial = checksum_is_partial(p);

	if (p->proto == IPPROTO_UDP) {
		r.back = 1;
		if ((!gone && p->reason != REASON_QUIC) || become_unreachable(p, &r, room))
			return CODE_DROP;
	} else if (p->proto == IPPROTO_TCP && !(p->tcp_flags & TCP_RST)) {
		__be32 numbers[2];

		if (bpf_skb_load_bytes(skb, p->l4 + 4, numbers, 8))
			return CODE_DROP;
		if (!out) {
			r.seq = bpf_htonl(bpf_ntohl(numbers[0]) - 1);
			r.ack = numbers[1];
			r.flags = TCP_ACK;
			return become_tcp(p, &r, room) ? CODE_DROP : CODE_NEXT;
		}
		r.back = 1;
		if (p->tcp_flags & TCP_ACK) {
			r.seq = numbers[1];
			r.flags = TCP_RST;
		} else {
			r.ack = bpf_htonl(bpf_ntohl(numbers[0]) + !!(p->tcp_flags & TCP_SYN));
			r.flags = TCP_RST | TCP_ACK;
		}
		if (become_tcp(p, &r, room))
			return CODE_DROP;
		if (cut && p->question.group != GROUP_HOST) {
			skb->mark = REFUSAL_MARK;
			bpf_clone_redirect(skb, skb->ifindex, 0);
			r.back = 0;
			r.seq = numbers[0];
			r.ack = numbers[1];
			r.flags = p->tcp_flags & TCP_ACK ? TCP_RST | TCP_ACK : TCP_RST;
			if (become_tcp(p, &r, room))
				return CODE_DROP;
			skb->mark = p->global->mark;
			return CODE_NEXT;
		}
	} else {
		return CODE_DROP;
	}
	skb->mark = REFUSAL_MARK;
	return bpf_redirect(p->sandbox->ifindex, 0) == TC_ACT_REDIRECT ? TC_ACT_REDIRECT : CODE_DROP;
}

#endif
