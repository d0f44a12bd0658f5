// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Taking back credit that nobody uses: bounded work, done by whoever finds the budget running low (budget.bpf.h). */
#include "budget.bpf.h"

#define IDLE_JIFFIES 64 /* who had a grant more recently is at work */
#define SWEEP_SLOTS 64	/* places of `reservers` that one sweep looks at */

__noinline int budget_count(__u64 address)
{
	struct sk_psock *psock = (void *)address;
	struct list_head *head = &psock->ingress_msg, *at = BPF_CORE_READ(psock, ingress_msg.next);
	int i;

	for (i = 0; i < WALK_NODES; i++) {
		if (!at || at == head)
			break;
		at = BPF_CORE_READ(at, next);
	}
	return at == head ? i : -1;
}

__noinline int budget_bytes(__u64 address)
{
	struct sk_psock *psock = (void *)address;
	struct list_head *head = &psock->ingress_msg, *at = BPF_CORE_READ(psock, ingress_msg.next);
	__u32 bytes = 0;
	int i;

	for (i = 0; i < WALK_NODES; i++) {
		struct sk_msg *msg;

		if (!at || at == head)
			break;
		msg = (void *)at - bpf_core_field_offset(struct sk_msg, list);
		bytes += BPF_CORE_READ(msg, sg.size);
		at = BPF_CORE_READ(at, next);
	}
	return bytes > (1U << 30) ? 1U << 30 : bytes;
}

__noinline int budget_settle(__u64 cookie)
{
	struct half *reader HELD = hold_socket(cookie), *sender HELD = NULL;
	struct half_key sender_key;
	struct queue q;
	__u64 holds;

	if (!reader || !reader->reserved)
		return 0;
	sender_key = reader->peer;
	sender = hold(&sender_key);
	if (sender) {
		if ((__u32)bpf_jiffies64() - sender->refilled < IDLE_JIFFIES)
			return 0;
		if (gate_or(sender, GATE_SETTLING) & GATE_SETTLING)
			return 0;
		if (!is_quiet(sender))
			goto out;
	}
	if (look_at_queue((void *)reader->sk, cookie, &q)) {
		if (!q.counted) {
			if (!sender)
				return 0;
			q.messages = sender->queued_messages;
		}
		holds = (__u64)q.bytes + (__u64)q.messages * MESSAGE_COST;
	} else {
		holds = 0; /* no psock, or another socket: the queue is gone */
	}
	if (holds < reader->reserved)
		reserve(reader, holds);
	if (sender) {
		*(volatile __s32 *)&sender->credit_bytes = 0;
		*(volatile __s32 *)&sender->credit_messages = 0;
	}
	/* whoever retires it sets the bit first and gives back afterwards: we look the other way round */
	if (gate_or(reader, GATE_TOUCHED) & GATE_QUEUE_GONE)
		give_back(reader);
out:
	if (sender)
		gate_clear(sender, GATE_SETTLING);
	return 0;
}

__noinline int budget_settle_slot(__u32 slot)
{
	__u64 *cookie;

	slot &= settings.reserver_mask;
	cookie = bpf_map_lookup_elem(&reservers, &slot);
	if (cookie && *cookie)
		budget_settle(*cookie);
	return 0;
}

__noinline int budget_sweep(void)
{
	struct budget *b = total_budget();
	__u32 at, i;

	if (!b)
		return 0;
	at = (__u32)add_hand(b, SWEEP_SLOTS);
	for (i = 0; i < SWEEP_SLOTS; i++)
		budget_settle_slot(at + i);
	return 0;
}
