/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The one place where a verdict becomes a TC code.
 *
 * TCX knows -1 (next program), 0, 2 (drop) and 7 (redirect), and treats every other code as "next": a wrong code is a hole,
 * so only constants leave here and refuse.h. "Allow" is "next", not "pass": whoever stands behind us in the chain still has its say.
 */
#ifndef ENFORCER_VERDICT_H
#define ENFORCER_VERDICT_H

inline_stage int finish(struct pkt *p, __u32 verdict)
{
	/* what the agent answers is counted where it passes the tap */
	if (verdict != VERDICT_REDIRECT || p->direction == DIR_EGRESS)
		count(p);
	if (verdict == VERDICT_ALLOW) {
		/* a device that was made again under the tap's name has no program that would do this */
		if (p->direction == DIR_EGRESS && p->global->mark)
			p->skb->mark |= p->global->mark;
		return CODE_NEXT;
	}
	if (verdict == VERDICT_REDIRECT)
		return bpf_redirect(p->redirect_ifindex, 0) == TC_ACT_REDIRECT ? TC_ACT_REDIRECT : CODE_DROP;
	report(p, verdict);
	return refuse(p);
}

#endif
