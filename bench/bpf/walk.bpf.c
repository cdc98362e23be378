// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Makes each repetition of a test run another packet, and hands it on to the program under test.
 *
 * BPF_PROG_TEST_RUN repeats a program on one packet, and the second time that packet is no first packet any more. Each of
 * these takes the next source port or the next destination address and calls the program in `next` whose place is
 * skb->priority (not skb->mark: an allowed packet is given one): 0 the empty program, 1 the one measured. What the step itself
 * costs is in both, and falls out of the difference.
 * The IPv4 header checksum is left as it is: no program under test looks at it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

#define NEXT (-1)
#define DROP 2

/* Adds one to a number of the packet in network order. */
static __always_inline int step16(struct __sk_buff *skb, __u32 at)
{
	__u8 *data = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;
	__be16 *field = (__be16 *)(data + at);

	if ((__u8 *)(field + 1) <= end) {
		*field = bpf_htons(bpf_ntohs(*field) + 1);
		bpf_tail_call(skb, &next, skb->priority);
	}
	return DROP;
}

static __always_inline int step32(struct __sk_buff *skb, __u32 at)
{
	__u8 *data = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;
	__be32 *field = (__be32 *)(data + at);

	if ((__u8 *)(field + 1) <= end) {
		*field = bpf_htonl(bpf_ntohl(*field) + 1);
		bpf_tail_call(skb, &next, skb->priority);
	}
	return DROP;
}

SEC("tc")
int walk_port4(struct __sk_buff *skb)
{
	return step16(skb, ETH_HLEN + sizeof(struct iphdr));
}

SEC("tc")
int walk_port6(struct __sk_buff *skb)
{
	return step16(skb, ETH_HLEN + sizeof(struct ipv6hdr));
}

SEC("tc")
int walk_address4(struct __sk_buff *skb)
{
	return step32(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, daddr));
}

SEC("tc")
int walk_address6(struct __sk_buff *skb)
{
	return step32(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr) + 12);
}

/* The same verdict as a denial and nothing else: what a denied frame costs on a tap without us. */
SEC("tc")
int drop_all(struct __sk_buff *skb __attribute__((unused)))
{
	return DROP;
}

/* How many packets `scatter` has seen. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} seen SEC(".maps");

/* First on a tap: gives each IPv4 frame another destination in the same /8, and lets whoever comes next decide. */
SEC("tc")
int scatter(struct __sk_buff *skb)
{
	__u8 *data = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;
	struct iphdr *ip = (struct iphdr *)(data + ETH_HLEN);
	__u32 zero = 0;
	__u32 *count = bpf_map_lookup_elem(&seen, &zero);

	if ((__u8 *)(ip + 1) <= end && count)
		ip->daddr = (ip->daddr & bpf_htonl(0xff000000)) | bpf_htonl(++*count * 2654435761u >> 8);
	return NEXT;
}

char LICENSE[] SEC("license") = "GPL";
