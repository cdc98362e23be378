/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Counting every packet by direction and reason, and telling the agent of denials, within the sandbox's rate.
 *
 * Holds always: what is not told is counted as lost; neither can change the verdict.
 */
#ifndef ENFORCER_EVENTS_H
#define ENFORCER_EVENTS_H

inline_stage void count(struct pkt *p)
{
	__u32 index = p->direction * REASON_MAX + p->reason;
	struct counter *counter;

	if (p->sandbox) {
		void *table = bpf_map_lookup_elem(&counters, &p->slot);
		if (!table)
			return;
		counter = bpf_map_lookup_elem(table, &index);
		if (counter) {
			counter->packets++;
			counter->bytes += p->length;
		}
		/* two look-ups merged into one of either map would cost an indirect call */
		barrier();
	} else {
		counter = bpf_map_lookup_elem(&orphans, &index);
		if (counter) {
			counter->packets++;
			counter->bytes += p->length;
		}
	}
}

inline_stage void report(struct pkt *p, __u32 verdict)
{
	if (!p->sandbox)
		return;
	struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &p->slot);
	if (!limit)
		return;
	__u64 now = bpf_jiffies64();
	if (now - limit->since_ticks >= p->global->hz) {
		limit->since_ticks = now;
		limit->sent = 0;
	}
	if (limit->sent >= p->sandbox->event_rate) {
		__sync_fetch_and_add(&limit->lost, 1);
		return;
	}
	limit->sent++;
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&limit->lost, 1);
		return;
	}
	event->time_ns = bpf_ktime_get_coarse_ns();
	event->slot = p->slot;
	event->generation = p->sandbox->generation;
	event->verdict = verdict;
	event->reason = p->reason;
	event->direction = p->direction;
	event->proto = p->proto;
	event->ethertype = p->ethertype;
	event->rule = p->rule;
	__builtin_memcpy(event->source, p->source, 16);
	__builtin_memcpy(event->destination, p->destination, 16);
	event->source_port = bpf_ntohs(p->source_port);
	event->destination_port = bpf_ntohs(p->destination_port);
	event->length = p->length;
	event->policy = p->sandbox->policy;
	bpf_ringbuf_submit(event, 0);
}

#endif
