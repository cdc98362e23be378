// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The data path. Three programs, loaded once, serve every tap of a namespace, and three more those of all other namespaces:
 *
 *   from_guest     TC ingress of a tap:   guest -> world
 *   to_guest       TC egress of a tap:    world -> guest
 *   from_resolver  TC ingress of the veth's near end: what the agent answers -> guest
 *
 * Those of other namespaces, which the programs on their devices go on in, are from_guest_in, to_guest_in and from_agent_in; and
 *
 *   to_place       TC egress of the veth's far end: what the agent answers -> the pair of the guest's namespace
 *
 * A packet goes: pull headers, parse, identity, then port 53 to the resolver, everything else to flow table and policy,
 * and from there to the agent where a name must be looked at; then count, and tell of a denial. Each step is the header of that name. Whatever is not understood is dropped.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"
#include "pkt.h"
#include "parse.h"
#include "address.h"
#include "identity.h"
#include "policy.h"
#include "neighbour.h"
#include "denial.h"
#include "flow.h"
#include "fragment.h"
#include "intercept.h"
#include "events.h"
#include "refuse.h"
#include "verdict.h"
#include "fast.h"

char LICENSE[] SEC("license") = "GPL";

/* Finds the sandbox of the device the packet passes. */
inline_stage __u32 enter(struct pkt *p, int within)
{
	__u32 ifindex = p->skb->ifindex;
	__u32 index = ifindex & p->global->tap_mask;
	struct tap *tap;

	if (within) {
		struct tap_key key = { .place = p->place, .ifindex = ifindex };
		tap = bpf_map_lookup_elem(&taps_within, &key);
	} else {
		tap = bpf_map_lookup_elem(&taps, &index);
		if (!tap || tap->ifindex != ifindex)
			tap = bpf_map_lookup_elem(&taps_more, &ifindex);
	}
	if (!tap)
		return deny(p, REASON_NOT_ENFORCED);
	p->slot = tap->slot;
	struct sandbox *sandbox = bpf_map_lookup_elem(&sandboxes, &p->slot);
	if (!sandbox || sandbox->state != SANDBOX_ENFORCED || sandbox->generation != tap->generation)
		return deny(p, REASON_NOT_ENFORCED);
	p->sandbox = sandbox;
	return VERDICT_ALLOW;
}

/* The long way's beginning: what the short way may have filled in is not believed. */
inline_stage __u32 read_headers(struct pkt *p)
{
	p->l4 = p->l4_length = p->fragment_id = p->fragment_start = 0;
	p->source[0] = p->source[1] = p->destination[0] = p->destination[1] = 0;
	p->ethertype = p->source_port = p->destination_port = p->icmp_id = 0;
	p->proto = p->tcp_flags = p->v6 = p->fragment = p->hop_limit = 0;
	p->guest = GUEST_NONE;
	p->rule = MAX_RULES;
	if (pkt_pull(p))
		return deny(p, REASON_TRUNCATED);
	return parse(p);
}

inline_stage __u32 is_icmp(struct pkt *p)
{
	return p->proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

inline_stage __u32 egress(struct pkt *p)
{
	if (read_headers(p) != VERDICT_ALLOW)
		return VERDICT_DENY;
	if (check_mac(p) != VERDICT_ALLOW)
		return VERDICT_DENY;
	if (p->ethertype == ETH_P_ARP)
		return arp_egress(p);
	if (p->v6 && is_icmp(p) && p->l4 && is_nd(bpf_ntohs(p->source_port) >> 8))
		return nd_egress(p);
	int dhcp = is_dhcp_egress(p);
	if (dhcp && !p->v6 && !v4_of(p->source))
		return allow(p, REASON_DHCP);
	if (check_source(p) != VERDICT_ALLOW || use_address(p, p->guest, p->source) != VERDICT_ALLOW)
		return VERDICT_DENY;
	if (dhcp)
		return allow(p, REASON_DHCP);
	if (p->fragment == FRAGMENT_LATER)
		return fragment_later(p);
	if (is_icmp(p) && !is_echo(p))
		return deny(p, REASON_ICMP_TYPE);
	if (is_dhcp_server(p))
		return deny(p, REASON_DHCP_SERVER);
	if (p->destination_port == DNS_PORT && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) && unicast(p) &&
	    p->sandbox->flags & SANDBOX_REDIRECT_DNS)
		return TO_RESOLVER;
	if (p->destination_port == DOT_PORT && p->proto == IPPROTO_TCP && unicast(p) && p->sandbox->flags & SANDBOX_REDIRECT_DOT)
		return TO_AGENT;
	return TO_FLOW;
}

inline_stage __u32 ingress(struct pkt *p, int within)
{
	if (read_headers(p) != VERDICT_ALLOW)
		return VERDICT_DENY;
	/* the near end of the resolver's veth forwards nothing but from_resolver's answers */
	__u32 resolver = resolver_ifindex(p, within);
	if (resolver && p->skb->ingress_ifindex == resolver)
		return allow(p, is_icmp(p) ? REASON_REFUSAL : p->source_port == DNS_PORT ? REASON_DNS_ANSWER : REASON_INTERCEPT_ANSWER);
	if (is_refusal(p))
		return allow(p, REASON_REFUSAL);
	if (p->ethertype == ETH_P_ARP)
		return allow(p, REASON_NEIGHBOUR);
	if (p->v6 && is_icmp(p) && p->l4 && is_nd(bpf_ntohs(p->source_port) >> 8))
		return p->hop_limit == 255 && !p->fragment ? allow(p, REASON_NEIGHBOUR) : deny(p, REASON_ND_SPOOF);
	if (is_dhcp_ingress(p))
		return allow(p, REASON_DHCP);
	p->guest = p->v6 ? guest_index6(p, p->destination) : guest_index4(p, v4_of(p->destination));
	if (p->guest == GUEST_NONE)
		return deny(p, REASON_NOT_FOR_GUEST);
	if (p->fragment == FRAGMENT_LATER)
		return fragment_later(p);
	if (is_icmp(p) && !is_echo(p)) {
		__u8 type = bpf_ntohs(p->source_port) >> 8;
		int error = p->v6 ? type >= 1 && type <= 4 : type == 3 || type == 11 || type == 12;

		return error ? icmp_error_ingress(p) : deny(p, REASON_ICMP_TYPE);
	}
	return TO_FLOW;
}

/* What form and identity left open, flow table and policy decide. */
inline_stage __u32 decide(struct pkt *p, __u32 verdict, int within)
{
	__u32 policy = p->sandbox->policy;

	if (verdict == TO_FLOW)
		verdict = flow_verdict(p);
	if (verdict == TO_RESOLVER || verdict == TO_AGENT)
		return p->direction == DIR_EGRESS ? redirect_to_agent(p, verdict == TO_RESOLVER, within) : deny(p, REASON_UNSOLICITED_ANSWER);
	return verdict == VERDICT_ALLOW && p->fragment == FRAGMENT_FIRST ? fragment_first(p, policy) : verdict;
}

inline_stage __u32 begin(struct pkt *p, struct __sk_buff *skb, __u32 direction, __u32 place)
{
	__u32 zero = 0;

	p->skb = skb;
	p->sandbox = 0;
	p->slot = 0;
	p->place = place;
	p->length = skb->len;
	p->direction = direction;
	p->reason = REASON_UNKNOWN;
	p->question.group = GROUP_HOST; /* until somebody asks */
	p->global = bpf_map_lookup_elem(&globals, &zero);
	return p->global ? VERDICT_ALLOW : deny(p, REASON_MAP_MISSING);
}

inline_stage int leaving(struct __sk_buff *skb, __u32 place, int within)
{
	struct pkt p;

	if (begin(&p, skb, DIR_EGRESS, place) != VERDICT_ALLOW || enter(&p, within) != VERDICT_ALLOW)
		return finish(&p, VERDICT_DENY);
	__u32 verdict = fast(&p, within);
	return finish(&p, decide(&p, verdict == UNDECIDED ? egress(&p) : verdict, within));
}

inline_stage int arriving(struct __sk_buff *skb, __u32 place, int within)
{
	struct pkt p;

	if (begin(&p, skb, DIR_INGRESS, place) != VERDICT_ALLOW || enter(&p, within) != VERDICT_ALLOW)
		return finish(&p, VERDICT_DENY);
	__u32 verdict = fast(&p, within);
	return finish(&p, decide(&p, verdict == UNDECIDED ? ingress(&p, within) : verdict, within));
}

inline_stage int answering(struct __sk_buff *skb, __u32 place)
{
	struct pkt p;

	if (begin(&p, skb, DIR_INGRESS, place) != VERDICT_ALLOW || read_headers(&p) != VERDICT_ALLOW)
		return finish(&p, VERDICT_DENY);
	if (p.ethertype == ETH_P_ARP)
		return finish(&p, deny(&p, REASON_UNSOLICITED_ANSWER));
	return finish(&p, is_icmp(&p) ? nobody_listens(&p) : redirect_to_guest(&p));
}

SEC("tc")
int from_guest(struct __sk_buff *skb)
{
	return leaving(skb, 0, 0);
}

SEC("tc")
int to_guest(struct __sk_buff *skb)
{
	return arriving(skb, 0, 0);
}

SEC("tc")
int from_resolver(struct __sk_buff *skb)
{
	return answering(skb, 0);
}

/* The same for devices in other namespaces, whose own programs say which: see struct tap_key. Loaded with the first of those. */
SEC("tc")
int from_guest_in(struct __sk_buff *skb)
{
	return leaving(skb, skb->cb[0], 1);
}

SEC("tc")
int to_guest_in(struct __sk_buff *skb)
{
	return arriving(skb, skb->cb[0], 1);
}

SEC("tc")
int from_agent_in(struct __sk_buff *skb)
{
	return answering(skb, skb->cb[0]);
}

/* TC egress of the veth's far end, in the resolver's namespace, once other namespaces have taps. */
SEC("tc")
int to_place(struct __sk_buff *skb)
{
	__u32 far = 0, verdict = way_out(skb, &far);

	if (verdict == VERDICT_ALLOW)
		return CODE_NEXT;
	return verdict == VERDICT_REDIRECT && bpf_redirect(far, 0) == TC_ACT_REDIRECT ? TC_ACT_REDIRECT : CODE_DROP;
}

/* The long way alone: tests hold it and the short way to the same verdicts. Never attached. */
SEC("tc")
int from_guest_long(struct __sk_buff *skb)
{
	struct pkt p;

	if (begin(&p, skb, DIR_EGRESS, 0) != VERDICT_ALLOW || enter(&p, 0) != VERDICT_ALLOW)
		return finish(&p, VERDICT_DENY);
	return finish(&p, decide(&p, egress(&p), 0));
}

/*
 * Never attached: the agent runs it (BPF_PROG_TEST_RUN) to free the expired flows of the sandbox whose slot is in skb->mark, and the places of
 * addresses that it does not use any more, so that when either is over is written once, here. Returns how many flows there were.
 */
SEC("tc")
int sweep(struct __sk_buff *skb)
{
	address_reclaim(skb->mark, 0);
	return flow_reclaim(skb->mark, 0);
}

/*
 * Never attached: the agent runs it to learn how many places the sandbox whose slot is in skb->mark takes in its tables of conversations:
 * those of `redirects` in the low half, those of `intercepted` in the high one. Which are free again is so written once, too.
 */
SEC("tc")
int taken(struct __sk_buff *skb)
{
	return places_taken(skb->mark, 1) | places_taken(skb->mark, 0) << 16;
}

/*
 * Never attached: the agent runs it so that the frame it gives passes the egress hook of the device in skb->ifindex, as if it came from
 * the world. A connection that a new policy forbids and that is silent hears of it so; see refuse.h.
 */
SEC("tc")
int nudge(struct __sk_buff *skb)
{
	return bpf_clone_redirect(skb, skb->ifindex, 0);
}

/* The same way in and out with nothing between: what bench/ measures against. */
SEC("tc")
int empty(struct __sk_buff *skb __attribute__((unused)))
{
	return CODE_NEXT;
}

/*
 * Never attached: naming the types here makes the compiler describe them in full in the object's BTF, from which the agent
 * takes every layout and libbpf the sizes of inner maps.
 */
SEC("tc")
int abi_types(struct __sk_buff *skb __attribute__((unused)))
{
	return bpf_core_type_id_local(struct tap) + bpf_core_type_id_local(struct tap_key) + bpf_core_type_id_local(struct place) + bpf_core_type_id_local(enum within) + bpf_core_type_id_local(struct sandbox) + bpf_core_type_id_local(struct learned) +
	       bpf_core_type_id_local(struct lpm4) + bpf_core_type_id_local(struct lpm6) + bpf_core_type_id_local(struct group_entry) +
	       bpf_core_type_id_local(union policy_page) + bpf_core_type_id_local(struct policy_header) +
	       bpf_core_type_id_local(struct prefix_entry) + bpf_core_type_id_local(struct ip_address) + bpf_core_type_id_local(struct address_use) + bpf_core_type_id_local(struct pin) + bpf_core_type_id_local(struct flow_key) +
	       bpf_core_type_id_local(struct flow) + bpf_core_type_id_local(struct fragment_key) + bpf_core_type_id_local(struct fragment) +
	       bpf_core_type_id_local(struct redirect) + bpf_core_type_id_local(struct counter) + bpf_core_type_id_local(struct event_limit) +
	       bpf_core_type_id_local(struct addr_cache) + bpf_core_type_id_local(struct recent_flow) + bpf_core_type_id_local(struct denial) + bpf_core_type_id_local(struct globals) + bpf_core_type_id_local(struct event) +
	       bpf_core_type_id_local(enum reason) + bpf_core_type_id_local(enum group) + bpf_core_type_id_local(enum embed) +
	       bpf_core_type_id_local(enum verdict) + bpf_core_type_id_local(enum direction) + bpf_core_type_id_local(enum abi_limit) +
	       bpf_core_type_id_local(enum sandbox_flag) + bpf_core_type_id_local(enum sandbox_state) + bpf_core_type_id_local(enum policy_flag) +
	       bpf_core_type_id_local(enum policy_layout) + bpf_core_type_id_local(enum flow_flag) + bpf_core_type_id_local(enum redirect_state) + bpf_core_type_id_local(enum closing);
}
