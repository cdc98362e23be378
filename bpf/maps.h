/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Every map of the packet path, each with its key, value, writer, reader, why this size, and what happens when it is full.
 *
 * Holds always: what grants access (policies, pins, flows) is per sandbox, in an inner map of its own, so that no sandbox
 * can fill, evict or read another's; it is never an LRU. What is per sandbox and is missing means: drop.
 * Inner maps state sizes and not types: Linux 6.1 takes no map made without BTF where the template was made with it.
 */
#ifndef ENFORCER_MAPS_H
#define ENFORCER_MAPS_H

/* ifindex & globals.tap_mask -> which sandbox. Written by the agent, read by the tap programs. A tap that is neither in here
 * nor in taps_more passes nothing. A power of two, twice the sandboxes at least. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__type(key, __u32);
	__type(value, struct tap);
} taps SEC(".maps");

/* ifindex -> the same, for devices whose place in `taps` is another's. Full: the attach fails. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct tap);
} taps_more SEC(".maps");

/* Namespace and ifindex -> the same, for taps in other namespaces than the agent's own. Written by the agent, read by the tap programs.
 * Full: the attach fails. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tap_key);
	__type(value, struct tap);
} taps_within SEC(".maps");

/* Place -> its interception device. Written by the agent, read by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PLACES);
	__type(key, __u32);
	__type(value, struct place);
} places SEC(".maps");

/* enum within -> the program that a device's program of another namespace goes on in. Written by the agent; a place that is empty drops. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, WITHIN_MAX);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} within SEC(".maps");

/* slot -> identity, limits and the policy in force. Written by the agent, read by every program. An array: cannot be full;
 * a host with more sandboxes than slots gets an error at attach. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__type(value, struct sandbox);
} sandboxes SEC(".maps");

/* slot -> addresses learned from the guest's first frames. Written here once per attach, zeroed and read by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__type(value, struct learned);
} learned SEC(".maps");

/* slot -> how many denial events went out this second, how many did not, when its flows were swept, how many of its DNS
   queries wait for the resolver, and what it began this second that the agent has to serve. Written here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__type(value, struct event_limit);
} event_limits SEC(".maps");

/* The one record of settings for the whole host. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct globals);
} globals SEC(".maps");

/* policy_index(slot, uid) -> compiled policy, an array of pages as abi.h describes. Made by the agent before the uid in
 * `sandboxes` is changed; its size is that of the policy. */
struct policy_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POLICY_PAGE_FIRST_FREE);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(union policy_page));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__type(key, __u32);
	__array(values, struct policy_map);
} policies SEC(".maps");

/* policy_index(slot, uid) -> configured prefixes of the policy, per family. Written by the agent before the policy is in force;
 * absent when the policy has none (its flags say so). Sized to the policy. */
struct prefix4_map {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct lpm4));
	__uint(value_size, sizeof(struct prefix_entry));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__type(key, __u32);
	__array(values, struct prefix4_map);
} prefixes4 SEC(".maps");

struct prefix6_map {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct lpm6));
	__uint(value_size, sizeof(struct prefix_entry));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__type(key, __u32);
	__array(values, struct prefix6_map);
} prefixes6 SEC(".maps");

/* policy_index(slot, uid) -> pins: address (16 octets) -> rule bits with their expiry. Written by the agent before the answer
 * leaves, read on a flow's first packet. Full: the agent answers SERVFAIL and counts. */
struct pin_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PINS_DEFAULT);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct ip_address));
	__uint(value_size, sizeof(struct pin));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES * 4);
	__type(key, __u32);
	__array(values, struct pin_map);
} pins SEC(".maps");

/* slot -> flows. Written and read here; swept by the agent, and here when full. Preallocated: a new flow needs no memory.
 * Full of living flows: the new flow is denied and counted. */
struct flow_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS_DEFAULT);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__array(values, struct flow_map);
} flows SEC(".maps");

/* slot -> addresses of its prefixes that the guest uses. Written and read here; swept by the agent, and here when full. Absent where
 * it has single addresses only. Full of addresses in use: packets of one more are denied and counted. */
struct address_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ADDRESSES_DEFAULT);
	__uint(key_size, sizeof(struct ip_address));
	__uint(value_size, sizeof(struct address_use));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__array(values, struct address_map);
} addresses SEC(".maps");

/* slot -> datagrams whose first fragment passed. Written and read here. An LRU: forgetting one drops the rest of that
 * datagram, nothing else. */
struct fragment_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_DEFAULT);
	__uint(key_size, sizeof(struct fragment_key));
	__uint(value_size, sizeof(struct fragment));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__array(values, struct fragment_map);
} fragments SEC(".maps");

/* slot -> conversations with the resolver; the index is the source port that the resolver sees. Written and read here, read
 * by the agent. All places near a conversation's hash taken: its packet is dropped and counted. */
struct redirect_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REDIRECTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct redirect));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__array(values, struct redirect_map);
} redirects SEC(".maps");

/* slot -> connections that the agent looks into; the index is the source port that it sees. Written and read here, read by the
 * agent. Absent while the policy needs none. All places near a conversation's hash taken: its packet is dropped and counted. */
struct intercepted_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INTERCEPTED);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct redirect));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__array(values, struct intercepted_map);
} intercepted SEC(".maps");

/* slot -> packets and octets by direction and reason. Written here, read by the agent. */
struct counter_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * REASON_MAX);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct counter));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__array(values, struct counter_map);
} counters SEC(".maps");

/* Packets that belong to no sandbox, by direction and reason. Written here, read by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * REASON_MAX);
	__type(key, __u32);
	__type(value, struct counter);
} orphans SEC(".maps");

/* Address groups of the host: prefix -> group. Written by the agent at start and whenever the host's addresses or routes
 * change. Sized for the registry's rows, the metadata list and a busy host's addresses; full: the agent says so and keeps
 * what was in force. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm4);
	__type(value, struct group_entry);
} groups4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm6);
	__type(value, struct group_entry);
} groups6 SEC(".maps");

/* What the tries said of an address lately. Direct-mapped and per CPU: an entry that is overwritten is computed again. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ADDR_CACHE);
	__type(key, __u32);
	__type(value, struct addr_cache);
} addr_cache SEC(".maps");

/* Flows found established lately. Direct-mapped and per CPU: an entry that is overwritten is looked up again. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT_FLOWS);
	__type(key, __u32);
	__type(value, struct recent_flow);
} recent SEC(".maps");

/* What was denied lately. Direct-mapped and per CPU: an entry that is overwritten is judged again. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DENIAL_CACHE);
	__type(key, __u32);
	__type(value, struct denial);
} denials SEC(".maps");

/* slot -> a number that the agent changes whenever a pin grants something new. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SANDBOXES);
	__type(key, __u32);
	__type(value, __u64);
} pin_epochs SEC(".maps");

/* What a packet is rewritten to. */
struct rewrite {
	__u64 after[4]; /* source, destination; IPv4: mapped */
	__u8 macs[12];  /* destination, source */
	__be16 source_port;
	__be16 destination_port;
};

#define REJECT_ROOM 112 /* octets of the longest frame that refuses: Ethernet, IPv6, ICMPv6, IPv6, eight more; rounded up */

/* What one packet needs while it is judged and the stack has no room for. Per CPU; nothing in it outlives the packet. */
struct scratch {
	__u64 pin_bits[RULE_WORDS];
	struct rewrite rewrite;
	__u8 frame[REJECT_ROOM];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

/* Denials for the agent to show. Full, or a sandbox over its rate: the event is lost and counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Where a sandbox's tables of the policy or floor with this uid are in policies, prefixes4, prefixes6 and pins. */
static __always_inline __u32 policy_index(__u32 slot, __u64 uid)
{
	return slot * 4 + (uid >> 63) * 2 + (uid & 1);
}

#endif
