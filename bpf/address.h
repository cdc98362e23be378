/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Which group an address belongs to, and which rules name it by group or prefix.
 *
 * Holds always: an address that embeds an IPv4 address gets the stricter of both groups; an address that no table knows
 * gets the strictest group of all. The tries are asked once per address, policy and CPU and remembered in addr_cache, so
 * that the cost of a packet does not depend on how many prefixes there are.
 */
#ifndef ENFORCER_ADDRESS_H
#define ENFORCER_ADDRESS_H

inline_stage __u32 group_of4(__be32 addr)
{
	struct lpm4 key = { .prefixlen = 32, .addr = addr };
	struct group_entry *entry = bpf_map_lookup_elem(&groups4, &key);

	return entry ? entry->group : GROUP_HOST;
}

inline_stage __u32 stricter(__u32 a, __u32 b)
{
	return a < b ? a : b;
}

inline_stage __be32 bytes4(const __u8 *a, int i, int j, int k, int l)
{
	return bpf_htonl((__u32)a[i] << 24 | (__u32)a[j] << 16 | (__u32)a[k] << 8 | a[l]);
}

inline_stage __u32 group_of6(const __u64 *addr)
{
	struct lpm6 key = { .prefixlen = 128 };

	__builtin_memcpy(key.addr, addr, 16);
	struct group_entry *entry = bpf_map_lookup_elem(&groups6, &key);
	if (!entry)
		return GROUP_HOST;
	__u32 group = entry->group;
	const __u8 *a = key.addr;
	__be32 inner = 0;

	switch (entry->embed) {
	case EMBED_NONE:
		break;
	case EMBED_96:
		inner = bytes4(a, 12, 13, 14, 15);
		break;
	case EMBED_6TO4:
		inner = bytes4(a, 2, 3, 4, 5);
		break;
	case EMBED_TEREDO:
		group = stricter(group, group_of4(bytes4(a, 4, 5, 6, 7)));
		inner = ~bytes4(a, 12, 13, 14, 15);
		break;
	case EMBED_32:
		inner = bytes4(a, 4, 5, 6, 7);
		break;
	case EMBED_40:
		inner = bytes4(a, 5, 6, 7, 9);
		break;
	case EMBED_48:
		inner = bytes4(a, 6, 7, 9, 10);
		break;
	case EMBED_56:
		inner = bytes4(a, 7, 9, 10, 11);
		break;
	case EMBED_64:
		inner = bytes4(a, 9, 10, 11, 12);
		break;
	default:
		return GROUP_HOST;
	}
	if (entry->embed)
		group = stricter(group, group_of4(inner));
	/* ISATAP (RFC 5214 section 6.1): interface identifier [02]00:5efe and the IPv4 address, under any prefix */
	if ((bpf_ntohl((__u32)addr[1]) & 0xfdffffff) == 0x00005efe)
		group = stricter(group, group_of4(v4_of(addr)));
	return group;
}

/* The group in which the question's remote address lies now. A global function, as judge (policy.h) is. */
__attribute__((noinline)) int group_now(struct question *q)
{
	if (!q)
		return GROUP_HOST;
	return q->v6 ? group_of6(q->remote) : group_of4(v4_of(q->remote));
}

inline_stage union policy_page *policy_page(void *policy, __u32 number)
{
	return bpf_map_lookup_elem(policy, &number);
}

/* The rule vector of a class, as abi.h lays it out; NULL when the policy has no such class. */
inline_stage __u64 *class_vector(void *policy, struct policy_header *header, __u32 class_id)
{
	union policy_page *page = policy_page(policy, header->class_page + (class_id >> 3));

	if (!page)
		return 0;
	barrier_var(page); /* or the compiler adds the offset first and asks afterwards, which Linux 6.1 refuses */
	return page->vectors[class_id & 7];
}

/*
 * Entry of the address cache with the group of the address and the bits of the group and prefix rules that name it. NULL
 * when a table is missing.
 */
inline_stage struct addr_cache *address_rules(struct question *q, void *policy, struct policy_header *header)
{
	const __u64 *addr = q->remote;
	__u32 zero = 0;
	struct globals *global = bpf_map_lookup_elem(&globals, &zero);
	if (!global)
		return 0;
	__u64 hash = (addr[0] ^ addr[1] * 0x9e3779b97f4a7c15ULL ^ header->uid) * 0xff51afd7ed558ccdULL;
	__u32 at = (hash >> 40) & (ADDR_CACHE - 1);
	struct addr_cache *entry = bpf_map_lookup_elem(&addr_cache, &at);
	if (!entry)
		return 0;
	__u64 epoch = global->groups_epoch;
	if (entry->policy == header->uid && entry->epoch == epoch && same16(entry->addr, addr) &&
	    entry->generation == q->generation)
		return entry;

	entry->policy = 0;
	barrier();
	__u32 group = q->v6 ? group_of6(addr) : group_of4(v4_of(addr));
	union policy_page *groups = policy_page(policy, POLICY_PAGE_GROUPS);
	union policy_page *scopes = policy_page(policy, POLICY_PAGE_PREFIX_GROUPS);
	if (!groups || !scopes || group >= GROUP_MAX)
		return 0;
	/* Both rows at once: the verifier of Linux 6.1 forgets the bound of a number that it sees stored, but not a pointer's. */
	barrier_var(group);
	group &= GROUP_MAX - 1;
	const __u64 *group_bits = groups->group_bits[group], *scope_bits = scopes->group_bits[group];
	__u64 *prefix_bits = 0;
	if (header->flags & (q->v6 ? POLICY_HAS_PREFIXES6 : POLICY_HAS_PREFIXES4)) {
		__u32 index = policy_index(q->slot, header->uid);
		struct prefix_entry *prefix;

		if (q->v6) {
			void *tries = bpf_map_lookup_elem(&prefixes6, &index);
			struct lpm6 key = { .prefixlen = 128 };
			if (!tries)
				return 0;
			__builtin_memcpy(key.addr, addr, 16);
			prefix = bpf_map_lookup_elem(tries, &key);
		} else {
			void *tries = bpf_map_lookup_elem(&prefixes4, &index);
			struct lpm4 key = { .prefixlen = 32, .addr = v4_of(addr) };
			if (!tries || !is_mapped(addr))
				return 0;
			prefix = bpf_map_lookup_elem(tries, &key);
		}
		if (prefix) {
			prefix_bits = class_vector(policy, header, prefix->class_id);
			if (!prefix_bits)
				return 0;
		}
	}
#pragma unroll
	for (int i = 0; i < RULE_WORDS; i++) {
		__u64 bits = group_bits[i];
		if (prefix_bits)
			bits |= prefix_bits[i] & scope_bits[i];
		entry->bits[i] = bits;
	}
	entry->group = group;
	entry->generation = q->generation;
	entry->epoch = epoch;
	entry->addr[0] = addr[0];
	entry->addr[1] = addr[1];
	barrier();
	entry->policy = header->uid;
	return entry;
}

#endif
