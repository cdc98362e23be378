/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Frame -> struct pkt, strictly. Only what was understood to the last header goes on.
 *
 * Drops here: VLAN tags (also those the driver took off), EtherTypes but IPv4, IPv6, ARP; lengths that disagree; IPv4
 * options; IPv6 routing headers and extension headers that are unknown, repeated or too many; first fragments without the
 * whole L4 header; partial checksums and segmentation that do not fit the headers. What a later stage needs is copied out:
 * no stage parses again.
 */
#ifndef ENFORCER_PARSE_H
#define ENFORCER_PARSE_H

#define ETH_HEADER 14
#define ETH_MIN_FRAME 60 /* without FCS: shorter payloads may be padded up to here (IEEE 802.3) */
#define EXTENSION_HEADERS_MAX 4

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY 129
#define ICMP6_ROUTER_SOLICIT 133
#define ICMP6_ROUTER_ADVERT 134
#define ICMP6_NEIGHBOUR_SOLICIT 135
#define ICMP6_NEIGHBOUR_ADVERT 136
#define ICMP6_REDIRECT 137

#define CHECKSUM_PARTIAL 3

#define GSO_UDP_FRAGMENTS 2 /* SKB_GSO_UDP: cut by the kernel into fragments of one datagram, not into datagrams */

/* What of the kernel's own sk_buff is needed and is not in struct __sk_buff. */
struct sk_buff {
	unsigned char *head;
	unsigned char *data;
	__u32 end; /* sk_buff_data_t: an offset from head on 64-bit machines */
	__u16 csum_start;
	__u16 csum_offset;
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	__u32 gso_type;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *) __ksym __weak;

inline_stage int checksum_is_partial(struct pkt *p)
{
	if (bpf_cast_to_kern_ctx) {
		struct sk_buff *skb = bpf_cast_to_kern_ctx(p->skb);

		return BPF_CORE_READ_BITFIELD(skb, ip_summed) == CHECKSUM_PARTIAL;
	}
	struct sk_buff *skb = (struct sk_buff *)p->skb;

	return BPF_CORE_READ_BITFIELD_PROBED(skb, ip_summed) == CHECKSUM_PARTIAL;
}

/*
 * The guest names csum_start and csum_offset, and the kernel writes the checksum there after this verdict. Anywhere but the
 * checksum field of the header that was judged, that is a write into a judged packet. Kernels before 6.2 have no cast to the
 * kernel's context; there the fields are read with a probe.
 */
inline_stage int partial_checksum_fits(struct pkt *p)
{
	__u32 start, offset, expected;

	if (!checksum_is_partial(p))
		return 1;
	if (bpf_cast_to_kern_ctx) {
		struct sk_buff *skb = bpf_cast_to_kern_ctx(p->skb);

		start = skb->csum_start - (__u32)(skb->data - skb->head);
		offset = skb->csum_offset;
	} else {
		struct sk_buff *skb = (struct sk_buff *)p->skb;

		start = BPF_CORE_READ(skb, csum_start) - (__u32)(BPF_CORE_READ(skb, data) - BPF_CORE_READ(skb, head));
		offset = BPF_CORE_READ(skb, csum_offset);
	}
	if (p->proto == IPPROTO_TCP)
		expected = 16;
	else if (p->proto == IPPROTO_UDP)
		expected = 6;
	else if (p->proto == IPPROTO_ICMPV6)
		expected = 2;
	else
		return 0;
	return p->l4 && p->fragment == FRAGMENT_NONE && start == p->l4 && offset == expected;
}

/*
 * The guest says how its frame is cut after this verdict. Segments and datagrams get the judged headers each. Fragments do
 * not: a size that is no multiple of eight makes offsets overlap, one below eight leaves the ports to the second fragment.
 */
inline_stage int segmentation_fits(struct pkt *p)
{
	__u32 size = p->skb->gso_size;

	if (!size)
		return 1;
	if (p->fragment || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	if (p->proto == IPPROTO_TCP || !(size & 7))
		return 1;
	/* rare: read with a probe on every kernel */
	struct sk_buff *skb = (struct sk_buff *)p->skb;
	struct skb_shared_info *shared = (struct skb_shared_info *)(BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, end));

	return !(BPF_CORE_READ(shared, gso_type) & GSO_UDP_FRAGMENTS);
}

inline_stage int is_echo(struct pkt *p)
{
	__u16 type = bpf_ntohs(p->source_port);

	return p->v6 ? type == ICMP6_ECHO_REQUEST << 8 || type == ICMP6_ECHO_REPLY << 8
		     : type == ICMP_ECHO_REQUEST << 8 || type == ICMP_ECHO_REPLY << 8;
}

inline_stage __u32 parse_l4(struct pkt *p)
{
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = pkt_at(p, p->l4, sizeof(*tcp));
		if (!tcp)
			return deny(p, p->fragment ? REASON_FRAGMENT : REASON_TRUNCATED);
		__u32 header = tcp->doff * 4;
		if (header < sizeof(*tcp) || header > p->l4_length)
			return deny(p, p->fragment ? REASON_FRAGMENT : REASON_LENGTH);
		p->source_port = tcp->source;
		p->destination_port = tcp->dest;
		p->tcp_flags = ((__u8 *)tcp)[13];
		__u8 control = p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
		if (!control || (control & TCP_SYN && control & (TCP_FIN | TCP_RST)))
			return deny(p, REASON_TCP_FLAGS);
	} else if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = pkt_at(p, p->l4, sizeof(*udp));
		if (!udp)
			return deny(p, p->fragment ? REASON_FRAGMENT : REASON_TRUNCATED);
		__u32 claimed = bpf_ntohs(udp->len);
		if (claimed < sizeof(*udp))
			return deny(p, REASON_LENGTH);
		if (p->fragment ? claimed <= p->l4_length : claimed != p->l4_length)
			return deny(p, REASON_LENGTH);
		p->source_port = udp->source;
		p->destination_port = udp->dest;
	} else if (p->proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		__u8 *icmp = pkt_at(p, p->l4, 8);
		if (!icmp)
			return deny(p, p->fragment ? REASON_FRAGMENT : REASON_TRUNCATED);
		p->source_port = bpf_htons(icmp[0] << 8 | icmp[1]);
		p->icmp_id = *(__be16 *)(icmp + 4);
	}
	return VERDICT_ALLOW;
}

inline_stage __u32 parse_ipv4(struct pkt *p)
{
	struct iphdr *ip = pkt_at(p, ETH_HEADER, sizeof(*ip));
	if (!ip)
		return deny(p, REASON_TRUNCATED);
	if (ip->version != 4 || ip->ihl < 5)
		return deny(p, REASON_LENGTH);
	if (ip->ihl > 5)
		return deny(p, REASON_IP_OPTIONS);
	__u32 total = bpf_ntohs(ip->tot_len);
	if (total < sizeof(*ip))
		return deny(p, REASON_LENGTH);
	if (total + ETH_HEADER != p->length && (total + ETH_HEADER > p->length || p->length > ETH_MIN_FRAME))
		return deny(p, REASON_LENGTH);
	map_v4(p->source, ip->saddr);
	map_v4(p->destination, ip->daddr);
	p->proto = ip->protocol;
	p->hop_limit = ip->ttl;
	p->l4 = ETH_HEADER + sizeof(*ip);
	p->l4_length = total - sizeof(*ip);

	__u16 frag = bpf_ntohs(ip->frag_off);
	if (frag & 0x8000)
		return deny(p, REASON_FRAGMENT);
	if (frag & 0x3fff) {
		p->fragment_id = ip->id;
		p->fragment_start = (frag & 0x1fff) * 8;
		if (p->fragment_start) {
			if (p->fragment_start + p->l4_length > 0xffff - sizeof(*ip))
				return deny(p, REASON_FRAGMENT);
			p->fragment = FRAGMENT_LATER;
			p->l4 = 0;
			return VERDICT_ALLOW;
		}
		p->fragment = FRAGMENT_FIRST;
	}
	return parse_l4(p);
}

inline_stage __u32 parse_ipv6(struct pkt *p)
{
	struct ipv6hdr *ip = pkt_at(p, ETH_HEADER, sizeof(*ip));
	if (!ip)
		return deny(p, REASON_TRUNCATED);
	if (ip->version != 6)
		return deny(p, REASON_LENGTH);
	__u32 total = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (total + ETH_HEADER != p->length && (total + ETH_HEADER > p->length || p->length > ETH_MIN_FRAME))
		return deny(p, REASON_LENGTH);
	__builtin_memcpy(p->source, &ip->saddr, 16);
	__builtin_memcpy(p->destination, &ip->daddr, 16);
	if (is_mapped(p->source) || is_mapped(p->destination))
		return deny(p, REASON_MAPPED_ADDRESS);
	p->hop_limit = ip->hop_limit;

	__u32 offset = ETH_HEADER + sizeof(*ip);
	__u8 next = ip->nexthdr;

#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
		if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS) {
			/* hop-by-hop stands first or not at all; after a fragment header no further header is followed */
			if ((next == IPPROTO_HOPOPTS && i) || p->fragment)
				return deny(p, REASON_EXTENSION_HEADER);
			__u8 *ext = pkt_at(p, offset, 2);
			if (!ext)
				return deny(p, REASON_EXTENSION_HEADER);
			next = ext[0];
			offset += (ext[1] + 1) * 8;
			if (offset > HEADERS_MAX || offset > total + ETH_HEADER)
				return deny(p, REASON_EXTENSION_HEADER);
		} else if (next == IPPROTO_FRAGMENT) {
			if (p->fragment || p->fragment_id)
				return deny(p, REASON_EXTENSION_HEADER);
			__u8 *ext = pkt_at(p, offset, 8);
			if (!ext || offset + 8 > total + ETH_HEADER)
				return deny(p, REASON_FRAGMENT);
			__u16 frag = bpf_ntohs(*(__be16 *)(ext + 2));
			next = ext[0];
			offset += 8;
			p->fragment_id = *(__u32 *)(ext + 4);
			p->fragment_start = frag & 0xfff8;
			if (p->fragment_start) {
				p->proto = next;
				p->l4_length = total + ETH_HEADER - offset;
				if (p->fragment_start + p->l4_length > 0xffff)
					return deny(p, REASON_FRAGMENT);
				p->fragment = FRAGMENT_LATER;
				return VERDICT_ALLOW;
			}
			/* an atomic fragment (RFC 6946) is judged as a whole datagram */
			if (frag & 1)
				p->fragment = FRAGMENT_FIRST;
			else if (next == IPPROTO_FRAGMENT || next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS)
				return deny(p, REASON_EXTENSION_HEADER);
		} else {
			break;
		}
	}
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT || next == IPPROTO_ROUTING)
		return deny(p, REASON_EXTENSION_HEADER);
	p->proto = next;
	p->l4 = offset;
	p->l4_length = total + ETH_HEADER - offset;
	return parse_l4(p);
}

inline_stage __u32 parse(struct pkt *p)
{
	struct ethhdr *eth;

	/* A tag may be in the frame or already in the metadata, and two tags with id 0 are both; see skb_vlan_untag. */
	if (p->skb->vlan_present)
		return deny(p, REASON_VLAN);
	eth = pkt_at(p, 0, sizeof(*eth));
	if (!eth)
		return deny(p, REASON_TRUNCATED);
	p->ethertype = bpf_ntohs(eth->h_proto);
	if (p->skb->protocol != eth->h_proto)
		return deny(p, REASON_ETHERTYPE);
	__u32 verdict;
	if (p->ethertype == ETH_P_IP) {
		verdict = parse_ipv4(p);
	} else if (p->ethertype == ETH_P_IPV6) {
		p->v6 = 1;
		verdict = parse_ipv6(p);
	} else if (p->ethertype == ETH_P_ARP) {
		verdict = VERDICT_ALLOW; /* it has no checksum and no segments: both are refused below */
	} else if (p->ethertype == ETH_P_8021Q || p->ethertype == ETH_P_8021AD) {
		return deny(p, REASON_VLAN);
	} else {
		return deny(p, REASON_ETHERTYPE);
	}
	if (verdict != VERDICT_ALLOW)
		return verdict;
	if (p->direction == DIR_EGRESS) {
		if (!partial_checksum_fits(p))
			return deny(p, REASON_CHECKSUM_OFFLOAD);
		if (!segmentation_fits(p))
			return deny(p, REASON_GSO);
	}
	return VERDICT_ALLOW;
}

#endif
