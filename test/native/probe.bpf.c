/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the addon's tests load: one map of each kind the enforcer uses, a program that counts and passes, one that drops,
 * one that fills a ring buffer, and (with -DREFUSED) one that the verifier must refuse.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct inner_part {
	__u16 low;
	__u16 high;
};

struct shape {
	__u64 wide;
	struct inner_part part;
	__u8 bytes[12];
	union {
		__u32 word;
		__u16 halves[2];
	};
	__u32 tail;
};

struct lpm_key {
	__u32 prefix_length;
	__u8 address[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct shape);
} shapes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm_key);
	__type(value, __u32);
} prefixes SEC(".maps");

struct inner_hash {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner_hash);
} tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

static __always_inline void count(__u32 index)
{
	__u64 *counter = bpf_map_lookup_elem(&counts, &index);

	if (counter)
		(*counter)++;
}

SEC("tc")
int pass(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct shape *shape = bpf_map_lookup_elem(&shapes, &key);

	count(0);
	if (shape)
		skb->mark = shape->tail;
	return -1; /* TCX_NEXT, TC_ACT_UNSPEC */
}

SEC("tc")
int drop(struct __sk_buff *skb)
{
	count(1);
	return TC_ACT_SHOT;
}

/* One record for each packet: its length and the first value of table 0. */
SEC("tc")
int tell(struct __sk_buff *skb)
{
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&tables, &zero);
	__u64 *value = table ? bpf_map_lookup_elem(table, &zero) : 0;
	__u64 record[2] = { skb->len, value ? *value : 0 };

	return bpf_ringbuf_output(&events, record, sizeof(record), 0) ? 1 : 0;
}

#ifdef REFUSED
SEC("tc")
int refused(struct __sk_buff *skb)
{
	__u32 key = skb->len;
	struct shape *shape = bpf_map_lookup_elem(&shapes, &key);

	return (int)shape->tail; /* not checked for null */
}
#endif
