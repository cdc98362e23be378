/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the kernel programs and the agent agree on: every shared struct, enum, map name, size and the version.
 *
 * Holds always: fixed widths, no implicit padding, sizes asserted below. The TypeScript layouts are generated from the
 * BTF of the built object (scripts/gen-layout.mjs) and compared with the loaded object's BTF before anything is attached;
 * nothing here is typed a second time. Addresses are in network byte order; an IPv4 address in a 16-byte field is
 * IPv4-mapped (::ffff:a.b.c.d). Times are CLOCK_MONOTONIC in the unit the field's name says, or the kernel's ticks
 * (jiffies64, globals.hz a second): the verifier turns reading those into one load, where a clock costs 20 ns.
 */
#ifndef ENFORCER_ABI_H
#define ENFORCER_ABI_H

/* Limits that shape a map or a loop. Those marked (default) may be set smaller or larger at load or attach time. */
enum abi_limit {
	ABI_VERSION = 5,
	MAX_SANDBOXES = 4096,       /* (default) slots in `sandboxes` and in every outer map */
	MAX_RULES = 512,            /* bits of a rule vector: distinct rules after the compiler has merged equal ones */
	RULE_WORDS = 8,             /* MAX_RULES / 64 */
	GUEST_ADDRS = 4,            /* configured guest addresses or prefixes per family */
	GATEWAYS = 4,               /* gateway addresses per family */
	LEARN_PREFIXES = 4,         /* prefixes per family in which an address may be learned */
	PIN_SLOTS = 8,              /* distinct domain-rule bits that one address may carry */
	POLICY_PAGE = 512,          /* octets in one page of a compiled policy */
	FLOWS_DEFAULT = 2048,       /* (default) flows per sandbox */
	PINS_DEFAULT = 1024,        /* (default) pinned addresses per sandbox */
	FRAGMENTS_DEFAULT = 256,    /* (default) datagrams in fragments per sandbox */
	ADDRESSES_DEFAULT = 64,     /* (default) addresses of its prefixes that a sandbox may have in use at one time */
	REDIRECTS = 512,            /* intercepted DNS conversations per sandbox at one time; power of two */
	DNS_WAITING = 512,          /* UDP queries of one sandbox that may wait for the resolver: its socket has one queue for all sandboxes */
	DNS_CONNECTIONS = 512,      /* TCP connections to port 53 that one sandbox may begin a second: the resolver's thread serves all sandboxes */
	REDIRECT_PORT_BASE = 16384, /* source port that entry 0 of `redirects` shows to the agent */
	INTERCEPTED = 2048,         /* connections per sandbox that the agent looks into at one time; power of two */
	INTERCEPTED_PORT_BASE = 32768, /* source port that entry 0 of `intercepted` shows to the agent */
	INTERCEPTED_PORT = 443,     /* where the agent takes them, whatever port the guest aimed at: this, or one of the next */
	INTERCEPTED_PORTS = 16,     /* a sandbox's is slot % INTERCEPTED_PORTS: its thread listens there; power of two */
	INSPECT_PORTS = 16,         /* ports of one policy whose connections may need a look */
	ADDR_CACHE = 1024,          /* per-CPU entries of the address cache; power of two */
	RECENT_FLOWS = 512,         /* per-CPU entries of flows seen lately; power of two */
	DENIAL_CACHE = 512,         /* per-CPU entries of the denial cache; power of two */
	MAX_PLACES = 4096,          /* network namespaces with taps, the agent's own (0) included */
	SANDBOX_ADDR_OFFSET = 256,  /* keeps slot 0 away from the resolver subnet's own first addresses */
};

/* ---- verdicts and reasons ------------------------------------------------------------------------------------ */

enum verdict {
	VERDICT_DENY = 0,
	VERDICT_ALLOW = 1,
	VERDICT_REDIRECT = 2,
};

enum direction {
	DIR_EGRESS = 0,  /* guest -> world: the tap's TC ingress hook, program from_guest */
	DIR_INGRESS = 1, /* world -> guest: the tap's TC egress hook, program to_guest */
};

/* One enum for the counter index, the event field, the metric label and the row in the docs. Changed only with ABI_VERSION. */
enum reason {
	REASON_UNKNOWN = 0, /* never counted: a packet left without a reason is a bug */
	/* allowed or redirected */
	REASON_RULE_ALLOW,        /* first matching rule allows */
	REASON_DEFAULT_ALLOW,     /* no rule matches, default allows */
	REASON_ESTABLISHED,       /* packet of a flow that was allowed */
	REASON_NEIGHBOUR,         /* ARP or neighbour discovery that agrees with the sandbox's identity */
	REASON_DHCP,              /* DHCP or DHCPv6, guest as client */
	REASON_ICMP_RELATED,      /* ICMP error that quotes a known flow, inward */
	REASON_FRAGMENT_FOLLOWS,  /* later fragment of a datagram whose first fragment passed */
	REASON_DNS_REDIRECT,      /* port 53, to the agent's resolver */
	REASON_DNS_ANSWER,        /* the resolver's answer, to the guest */
	REASON_INTERCEPTED,       /* allowed by address, and to the agent, which looks who is meant */
	REASON_INTERCEPT_ANSWER,  /* the agent's side of such a connection, to the guest */
	REASON_REFUSAL,           /* what tells the guest that it was refused: RST, ICMP port unreachable */
	/* denied: policy */
	REASON_RULE_DENY,         /* first matching rule denies */
	REASON_DEFAULT_HOST,      /* default denies; destination in group host */
	REASON_DEFAULT_METADATA,
	REASON_DEFAULT_LOOPBACK,
	REASON_DEFAULT_PRIVATE,
	REASON_DEFAULT_LINK_LOCAL,
	REASON_DEFAULT_MULTICAST,
	REASON_DEFAULT_RESERVED,
	REASON_DEFAULT_PUBLIC,
	REASON_NO_PIN,            /* default denies; domain rules exist and the address is not pinned under any of them */
	REASON_PIN_EXPIRED,       /* default denies; the pin that would have allowed it has expired */
	REASON_INGRESS_DEFAULT,   /* inbound, no rule allows the port */
	REASON_POLICY_CHANGED,    /* flow was allowed once and is not under the policy and address groups in force */
	REASON_FLOOR,             /* the operator's floor does not allow what the sandbox's policy would */
	REASON_QUIC,              /* UDP to a port where the agent must look who is meant */
	REASON_NAME_SERVICE,      /* DoT, DoQ, mDNS, LLMNR, NetBIOS name service; DNS to a group or a broadcast */
	REASON_ICMP_TYPE,         /* ICMP other than echo */
	REASON_PROTOCOL,          /* IP protocol that no rule names */
	/* denied: identity */
	REASON_SOURCE_MAC,
	REASON_SOURCE_ADDRESS,
	REASON_ADDRESS_UNKNOWN,   /* no guest address given and this one cannot be learned */
	REASON_ARP_SPOOF,         /* ARP sender is not the sandbox's own */
	REASON_ARP_TARGET,        /* ARP for an address the guest has no business with */
	REASON_ND_SPOOF,          /* neighbour discovery that does not agree with the sandbox's identity */
	REASON_ROUTER_MESSAGE,    /* router solicitation, advertisement or redirect from a guest */
	REASON_DHCP_SERVER,       /* DHCP server answer from a guest */
	REASON_NOT_FOR_GUEST,     /* inbound, destination is not the guest's */
	/* denied: form */
	REASON_VLAN,
	REASON_ETHERTYPE,
	REASON_TRUNCATED,         /* shorter than its headers say, or headers could not be pulled */
	REASON_LENGTH,            /* length fields disagree */
	REASON_IP_OPTIONS,
	REASON_EXTENSION_HEADER,  /* routing header, unknown or repeated or too many extension headers */
	REASON_MAPPED_ADDRESS,    /* IPv4-mapped address in an IPv6 header: it has no business on a wire (RFC 4291, RFC 4942) */
	REASON_FRAGMENT,          /* first fragment without whole L4 header, overlap, or no first fragment seen */
	REASON_CHECKSUM_OFFLOAD,  /* partial checksum that does not lie on the judged L4 checksum field */
	REASON_TCP_FLAGS,         /* flag combinations no stack sends: no flags, SYN+FIN, SYN+RST */
	REASON_GSO,               /* segmentation metadata that disagrees with the headers */
	/* denied: resources and faults */
	REASON_FLOW_TABLE_FULL,
	REASON_FRAGMENT_TABLE_FULL,
	REASON_REDIRECT_TABLE_FULL,
	REASON_ADDRESS_TABLE_FULL,/* one more address of the guest's prefixes than it may have in use, or one that the host has */
	REASON_AGENT_GONE,        /* port 53, or a connection that the agent looks into, while no agent runs: refused at once */
	REASON_NOT_ENFORCED,      /* tap has no sandbox, or its slot is not in force */
	REASON_MAP_MISSING,       /* a table that must be there is not */
	REASON_REWRITE,           /* a packet could not be rewritten for the resolver */
	REASON_UNSOLICITED_ANSWER,/* packet from the resolver's device that answers nothing */
	REASON_MAX,
};

/* Address groups, strictest first: the order is that of the specification, the lowest number wins. */
enum group {
	GROUP_HOST = 0,
	GROUP_METADATA = 1,
	GROUP_LOOPBACK = 2,
	GROUP_PRIVATE = 3,
	GROUP_LINK_LOCAL = 4,
	GROUP_MULTICAST = 5,
	GROUP_RESERVED = 6,
	GROUP_PUBLIC = 7,
	GROUP_MAX = 8,
};

/* Where an IPv6 prefix carries an IPv4 address (value of group_entry.embed). */
enum embed {
	EMBED_NONE = 0,
	EMBED_96 = 1,     /* bytes 12..15: mapped, compatible, SIIT, RFC 6052 /96 */
	EMBED_6TO4 = 2,   /* bytes 2..5 (RFC 3056) */
	EMBED_TEREDO = 3, /* bytes 4..7 server, 12..15 client inverted (RFC 4380); the stricter of both */
	EMBED_32 = 4,     /* RFC 6052 section 2.2, prefix /32: bytes 4..7 */
	EMBED_40 = 5,     /* bytes 5..7, 9 */
	EMBED_48 = 6,     /* bytes 6, 7, 9, 10 */
	EMBED_56 = 7,     /* bytes 7, 9..11 */
	EMBED_64 = 8,     /* bytes 9..12 */
};

/* ---- shared structs ------------------------------------------------------------------------------------------ */

/*
 * Which sandbox a device carries. `taps` is direct-mapped: the place of a device is ifindex & globals.tap_mask. Where two
 * devices want one place, the later one is in the hash `taps_more`.
 */
struct tap {
	__u32 ifindex;    /* 0: empty */
	__u32 slot;       /* index into `sandboxes` and the outer maps */
	__u32 generation; /* must equal sandboxes[slot].generation, or nothing passes */
	__u32 _pad;
};

/*
 * A network namespace other than the agent's own has a number, its place, from 1 on: devices' numbers are each namespace's own. The
 * programs on its devices put it into skb->cb[0] and go on in those that serve all namespaces (`within`).
 */
struct tap_key {
	__u32 place;
	__u32 ifindex;
};

/* The interception device of a place. That of the agent's own namespace is in `globals`. */
struct place {
	__u32 resolver_ifindex; /* near end, in the namespace; 0: none */
	__u32 far_ifindex;      /* far end, in the resolver's */
};

/* Places in `within`. */
enum within {
	WITHIN_FROM_GUEST = 0,
	WITHIN_TO_GUEST = 1,
	WITHIN_FROM_RESOLVER = 2,
	WITHIN_MAX = 3,
};

enum sandbox_state {
	SANDBOX_FREE = 0,  /* nothing passes */
	SANDBOX_ENFORCED = 1,
};

enum sandbox_flag {
	SANDBOX_LEARN_MAC = 1, /* take the first unicast source MAC and lock it */
	SANDBOX_LEARN_4 = 2, /* take the first IPv4 source inside learn4 and lock it */
	SANDBOX_LEARN_6 = 4, /* the same for IPv6 inside learn6 */
	SANDBOX_LEARN_LL = 8, /* the same for one IPv6 link-local address */
	SANDBOX_REDIRECT_DNS = 16,
	SANDBOX_DHCP = 32, /* guest may act as DHCP and DHCPv6 client */
	SANDBOX_REDIRECT_DOT = 64, /* TCP 853 goes to the agent, as port 53 does; else it is refused */
	SANDBOX_PREFIXES = 128, /* some guest address is a prefix: what is used of it is in `addresses` */
};

struct net4 {
	__u32 addr; /* network order, masked */
	__u32 mask; /* network order; 0 with addr 0: unused */
};

struct net6 {
	__u64 addr[2]; /* network order, masked */
	__u64 mask[2]; /* network order; all zero: unused */
};

/*
 * `sandboxes`: everything the packet path needs to know of one sandbox that only the agent writes. Array values are
 * copied in 8-byte words, so rewriting the struct with one word changed is atomic for that word: a policy swap changes
 * `policy` alone, and its lowest bit says which entries in the outer maps belong to it.
 */
struct sandbox {
	__u32 state;        /* enum sandbox_state */
	__u32 generation;   /* of the attach; never 0 when enforced */
	__u64 policy;       /* uid of the policy in force; see POLICY_FLOOR_UID for its entries in policies, prefixes4/6 and pins */
	__u32 event_rate;   /* denial events a second at most */
	__u32 ifindex;      /* the tap */
	__u32 flags;        /* SANDBOX_* */
	__u32 query_rate;   /* UDP queries a second that go to the resolver at most */
	__u32 connection_rate; /* connections that the agent looks into, begun a second at most */
	__u32 place;        /* of the tap's namespace; 0: the agent's own */
	__u8 mac[6];        /* guest's MAC; all zero when learned */
	__u8 _pad0[2];
	__u8 tap_mac[6];    /* source MAC of frames the resolver sends when the guest's frame gave none */
	__u8 _pad1[2];
	struct net4 guest4[GUEST_ADDRS];
	struct net4 learn4[LEARN_PREFIXES];
	__u32 gateway4[GATEWAYS];
	struct net6 guest6[GUEST_ADDRS];
	struct net6 learn6[LEARN_PREFIXES];
	__u64 gateway6[GATEWAYS][2];
};

/* `learned`: what the kernel took from the guest's first frames. The agent zeroes it at attach and otherwise only reads. */
struct learned {
	__u64 mac;     /* 0: none yet; else bytes 0..5 in memory are the MAC, byte 6 is 1 */
	__u32 addr4;   /* 0: none yet */
	__u32 state6;  /* 0 none, 1 being written, 2 valid: addr6 */
	__u64 addr6[2];
	__u32 state_ll;
	__u32 _pad;
	__u64 addr_ll[2];
};

/* key of `groups4` / `groups6` and of the inner maps of `prefixes4` / `prefixes6` */
struct lpm4 {
	__u32 prefixlen; /* 0..32 */
	__u32 addr;
};

struct lpm6 {
	__u32 prefixlen; /* 0..128 */
	__u8 addr[16];
};

/* value of `groups4` / `groups6`: already the strictest of all prefixes that cover this one */
struct group_entry {
	__u8 group; /* enum group */
	__u8 embed; /* enum embed; groups6 only */
	__u8 _pad[2];
};

/*
 * A compiled policy is an array of 512-byte pages (inner map of `policies`, value union policy_page). Page numbers:
 *   0        struct policy_header
 *   1        rule bits per address group: group_bits[GROUP_MAX], both directions together
 *   2, 3, 4  egress:  TCP port directory, UDP port directory, protocol table
 *   5, 6, 7  ingress: the same
 *   8        per address group, the rules whose prefixes count there: a prefix that spans groups opens only `public`, one
 *            inside a group only that group (an address may change its group when the host takes it)
 *   9 ...    class pages (8 rule vectors each) from header.class_page on, port leaves anywhere
 * A cell of a port directory (index: port >> 8) or of a protocol table (index: IP protocol number) is a class number,
 * or, in a directory only, POLICY_LEAF | page number of a leaf whose cell (index: port & 255) is a class number.
 * Class c is the rule vector number (c & 7) of page header.class_page + (c >> 3). Class 0 is the empty vector.
 * Bit i of a vector (word i / 64, bit i % 64) is rule i; port tables of a direction hold only rules of that direction.
 * ICMP echo is looked up in the protocol table (1, 58); a rule with ports is in no protocol-table cell.
 */
enum policy_layout {
	POLICY_PAGE_HEADER = 0,
	POLICY_PAGE_GROUPS = 1,
	POLICY_PAGE_EGRESS = 2,  /* +0 TCP, +1 UDP, +2 protocols */
	POLICY_PAGE_INGRESS = 5, /* the same */
	POLICY_PAGE_PREFIX_GROUPS = 8,
	POLICY_PAGE_FIRST_FREE = 9,
	POLICY_LEAF = 0x8000,
};

enum policy_flag {
	POLICY_DEFAULT_ALLOW_EGRESS = 1,
	POLICY_DEFAULT_ALLOW_INGRESS = 2,
	POLICY_HAS_PREFIXES4 = 4,
	POLICY_HAS_PREFIXES6 = 8,
	POLICY_HAS_PINS = 16, /* some rule is by name: pins are asked */
	POLICY_HAS_FLOOR = 32, /* what this policy allows, the floor beside it must allow too */
	POLICY_INSPECT_DEFAULT = 64, /* what the default allows outward needs a look on the inspected ports */
};

/*
 * A sandbox's policy and the operator's floor are two sets of tables under one uid. The floor's carries this bit in its
 * header's uid. Entry slot * 4 + (floor ? 2 : 0) + (uid & 1) of policies, prefixes4, prefixes6 and pins is the set's own.
 */
#define POLICY_FLOOR_UID (1ULL << 63)

struct policy_header {
	__u64 uid; /* unique over the life of the pinned maps, never 0; flows and cache entries carry it */
	__u32 flags; /* POLICY_* */
	__u32 class_page;
	__u32 pages; /* in this policy */
	__u32 classes;
	__u64 allow[RULE_WORDS];   /* bit i: rule i allows; else it denies */
	__u64 ingress[RULE_WORDS]; /* bit i: rule i is of direction ingress */
	__u64 domain[RULE_WORDS];  /* bit i: rule i is by name (its address bits come from pins) */
	__u64 inspect[RULE_WORDS]; /* bit i: what rule i allows needs a look on the inspected ports */
	__u16 inspect_ports[INSPECT_PORTS]; /* host order; 0: unused */
	__u8 _pad[200];
};

union policy_page {
	struct policy_header header;
	__u64 group_bits[GROUP_MAX][RULE_WORDS];
	__u64 vectors[8][RULE_WORDS];
	__u16 cells[256];
	__u8 bytes[POLICY_PAGE];
};

/* key of the inner maps of `pins`; IPv4: mapped */
struct ip_address {
	__u8 octets[16];
};

/* value of the inner maps of `addresses`: key is struct ip_address */
struct address_use {
	__u64 last_seen_ticks;
};

/* value of the inner maps of `prefixes4` / `prefixes6`: class whose vector is the union over all covering prefixes */
struct prefix_entry {
	__u32 class_id;
};

/* value of the inner maps of `pins`: key is struct ip_address */
struct pin {
	__u8 addr[16];            /* the key again: an element may be reused under a reader's hands, this shows it */
	__u32 expires[PIN_SLOTS]; /* CLOCK_MONOTONIC seconds; 0: unused */
	__u16 bit[PIN_SLOTS];     /* rule bit that the slot grants */
};

enum flow_flag {
	FLOW_REPLIED = 1, /* the other side answered */
	FLOW_CLOSING = 2, /* RST, or FIN from both sides: short timeout, no new use */
	FLOW_FIN_GUEST = 4, /* half closed */
	FLOW_FIN_REMOTE = 8,
	FLOW_INSPECT = 16, /* its packets go to the agent */
};

struct flow_key {
	__u64 remote[2];
	__be16 remote_port; /* 0 for ICMP */
	__be16 guest_port;  /* ICMP: echo identifier */
	__u8 proto;
	__u8 guest;         /* which of the guest's addresses: 0..3 guest4 (0 also the learned one), 8..11 guest6 (8 too), 13 link-local */
	__u8 _pad[2];
};

struct flow {
	__u64 last_seen_ticks;
	__u64 created_ticks;
	__u64 policy;  /* uid under which it was allowed */
	__u16 rule;    /* bit that allowed it; MAX_RULES: the default */
	__u8 origin;   /* enum direction */
	__u8 flags;    /* FLOW_* */
	__u32 groups;  /* the remote's enum group in the low octet, and the groups_epoch of which it holds above it; 0: not known */
};

struct fragment_key {
	__u64 remote[2];
	__u32 id;       /* IPv4: 16 bits, IPv6: 32 bits, as on the wire */
	__u8 proto;
	__u8 guest;     /* as in flow_key */
	__u8 direction;
	__u8 _pad;
};

struct fragment {
	__u64 expires_ticks;
	__u32 first_end; /* octets of payload that the first fragment held: no later fragment may start below it */
	__u32 policy;    /* low half of the uid under which the first fragment passed */
};

enum redirect_state {
	REDIRECT_FREE = 0,
	REDIRECT_CLAIMED = 1,
	REDIRECT_LIVE = 2,
};

enum closing {
	CLOSING_GUEST = 1, /* FIN from the guest */
	CLOSING_AGENT = 2, /* FIN from the agent */
	CLOSING_RESET = 4, /* RST from either: its place is free at once */
	CLOSING_OPENING = 8, /* SYN from the guest, and nothing else since: the agent may never have seen a connection */
};

/*
 * inner arrays of `redirects` (DNS) and `intercepted` (everything else): entry i is shown to the agent as source port
 * REDIRECT_PORT_BASE + i or INTERCEPTED_PORT_BASE + i
 */
struct redirect {
	__u32 state;        /* REDIRECT_*; claimed by compare-and-swap */
	__u32 outstanding;  /* UDP queries without their answer yet */
	__u64 last_seen_ticks;
	__u8 guest_addr[16];
	__u8 remote[16];    /* address the guest aimed at */
	__be16 guest_port;
	__be16 remote_port;
	__u8 proto;
	__u8 closing;       /* TCP: CLOSING_* */
	__u8 guest_mac[6];
	__u8 gateway_mac[6];
	__u8 guest;         /* as in flow_key */
	__u8 _pad[5];
};

/* inner per-CPU array of `counters`: index direction * REASON_MAX + reason */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* `event_limits`: per sandbox, written by the kernel */
struct event_limit {
	__u64 since_ticks; /* start of the second that `sent` counts */
	__u64 swept_ticks; /* when a full flow table was last swept in the kernel */
	__u32 sent;
	__s32 dns_waiting; /* UDP queries under way to the resolver, over all conversations */
	__u64 lost; /* events not sent, over the rate or with the ring full */
	__u64 dns_moved_ticks; /* when the resolver last answered one of them, or the first began to wait */
	__u64 begun_ticks; /* start of the second that the following count: what went to the agent and makes it work */
	__u32 queries; /* over UDP */
	__u32 dns_connections;
	__u32 connections; /* that the agent looks into */
	__u32 addresses_swept; /* low half of the ticks at which full `addresses` were last swept */
};

/* per-CPU `addr_cache`: address -> rule bits without pins; can always be computed again */
struct addr_cache {
	__u64 policy; /* uid; 0: empty */
	__u64 epoch;  /* globals.groups_epoch */
	__u64 addr[2];
	__u32 group;
	__u32 generation;
	__u64 bits[RULE_WORDS];
};

/*
 * per-CPU `recent`: flows that were found established lately, one entry per direction, in front of the flow table. Good for
 * the same policy, groups and address of the guest only, and not beyond the moment at which the table's own entry wants to be
 * touched again.
 */
struct recent_flow {
	struct flow_key key;
	__u64 own[2];      /* the guest's address: of a prefix, the key does not say which */
	__u64 policy;      /* uid; 0: empty */
	__u64 until_ticks;
	__u32 generation;
	__u32 scope;       /* enum direction in the lowest bit, groups_epoch above it */
};

/*
 * per-CPU `denials`: what was denied lately by policy, so that the next packet of the same kind need not be judged. Good only
 * for the same policy, groups and pins.
 */
struct denial {
	__u64 policy;     /* uid; 0: empty */
	__u64 epoch;      /* globals.groups_epoch */
	__u64 remote[2];
	__u64 pins;       /* pin_epochs[slot] */
	__u32 generation;
	__be16 port;
	__u16 rule;
	__u8 proto;
	__u8 direction;
	__u8 reason;
	__u8 _pad[5];
};

/* `globals`: one entry, written by the agent only */
struct globals {
	__u64 groups_epoch;      /* changes whenever groups4/6 change */
	__u32 resolver_ifindex;  /* enf0, the near end of the agent's own namespace's veth pair; it goes with the agent's process. 0: none yet */
	__u32 resolver_addr4;    /* agent's address on enf1 */
	__u8 resolver_addr6[16];
	__u8 resolver_mac[6];    /* enf1 */
	__u8 near_mac[6];        /* enf0 */
	__u32 sandbox_net4;      /* 240.0.0.0 in network order: sandbox slot s is this | htonl(s + 256) */
	__u8 sandbox_net6[16];   /* /96 of the ULA: sandbox slot s is this with the last 32 bits s + 256 */
	__u32 hz;                /* ticks a second: the resolution of CLOCK_MONOTONIC_COARSE */
	__u32 tap_mask;          /* entries of `taps` - 1 */
	__u32 mark;              /* set in skb->mark of what a guest may send, so that the host's rules can drop the rest; 0: none */
	__u32 _pad;
	__u64 silent_until_ns;   /* CLOCK_MONOTONIC: until then nobody is told that the agent is gone; a successor is about to come */
};

/* `events`: one record per reported denial (or other verdict, where asked for) */
struct event {
	__u64 time_ns;     /* CLOCK_MONOTONIC, coarse */
	__u32 slot;
	__u32 generation;
	__u8 verdict;      /* enum verdict */
	__u8 reason;       /* enum reason */
	__u8 direction;    /* enum direction */
	__u8 proto;        /* IP protocol, 0 if none */
	__u16 ethertype;   /* host order */
	__u16 rule;        /* rule bit; MAX_RULES: default or none */
	__u8 source[16];
	__u8 destination[16];
	__u16 source_port; /* host order; ICMP: type << 8 | code */
	__u16 destination_port;
	__u32 length;      /* octets on the wire of this frame */
	__u64 policy;      /* uid */
};

#define ABI_ASSERT(cond) _Static_assert(cond, #cond)
ABI_ASSERT(sizeof(struct tap) == 16);
ABI_ASSERT(sizeof(struct net4) == 8);
ABI_ASSERT(sizeof(struct net6) == 32);
ABI_ASSERT(sizeof(struct sandbox) == 40 + 16 + 32 + 32 + 16 + 128 + 128 + 64);
ABI_ASSERT(sizeof(struct learned) == 56);
ABI_ASSERT(sizeof(struct policy_header) == POLICY_PAGE);
ABI_ASSERT(sizeof(union policy_page) == POLICY_PAGE);
ABI_ASSERT(sizeof(struct pin) == 64);
ABI_ASSERT(sizeof(struct flow_key) == 24);
ABI_ASSERT(sizeof(struct flow) == 32);
ABI_ASSERT(sizeof(struct fragment_key) == 24);
ABI_ASSERT(sizeof(struct fragment) == 16);
ABI_ASSERT(sizeof(struct redirect) == 72);
ABI_ASSERT(sizeof(struct counter) == 16);
ABI_ASSERT(sizeof(struct event_limit) == 64);
ABI_ASSERT(sizeof(struct addr_cache) == 104);
ABI_ASSERT(sizeof(struct recent_flow) == 64);
ABI_ASSERT(sizeof(struct denial) == 56);
ABI_ASSERT(sizeof(struct globals) == 88);
ABI_ASSERT(sizeof(struct event) == 72);
ABI_ASSERT(MAX_RULES == RULE_WORDS * 64);

#endif
