/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The budget of all peers together. Each half carries a reservation, `reserved`: what its ingress queue holds at most
 * until its sender looks at it again, that is, what was there at the last look and the credit that was granted then.
 * budget.used is the sum of them, so it is never less than what is queued in all. It is touched at a look and not for
 * each message.
 *
 * The reservation belongs to the reader and goes when its queue goes: when it leaves, closes, or is retired. A sender
 * that grants itself credit at that moment reserves first and looks at the reader's gate afterwards; the other side sets
 * the gate first and gives back afterwards. Both use fetching atomics, so one of them sees the other.
 *
 * A sender that fell silent keeps its credit until somebody needs it: when the budget runs low, a sweep takes back what
 * has not been used. It may do that only while no message is between verdict and delivery, which is the question that
 * leave.bpf.h answers, in the same way:
 *
 *   sender, in the verdict                           sweep
 *   ----------------------                           -----
 *   write credit; xchg(reader.reserved)  (grant)     fetch_or(sender.gate, SETTLING)
 *   S1  inflight = current                           sender quiet? else leave it alone
 *   S2  g = fetch_or(gate, TOUCHED)                  look at the queue; xchg(reader.reserved, what it holds)
 *       SETTLING in g, or no credit: TCP             credit = 0
 *                                                    fetch_and(sender.gate, ~SETTLING)
 *
 * S2 before the fetch_or: the sender is not quiet. S2 in between: it sees the bit. S2 after: it sees the credit that is
 * gone. A grant at the same time writes the credit before the reservation and the sweep the other way round, so that a
 * credit that stays has its reservation.
 */
#ifndef SHARED_SOCKET_BUDGET_H
#define SHARED_SOCKET_BUDGET_H

#include "leave.bpf.h"

#define MESSAGE_COST 1024 /* bytes of slab that a queued message takes besides its data */
#define WALK_NODES 64	  /* how far a queue is counted; beyond it the sender's own upper bound stands */

#define GATE_QUEUE_GONE (GATE_RETIRED | GATE_LEFT | GATE_RELEASED)

/* budget.bpf.c: take back unused credit, of some idle pairs or of the one whose reader has this cookie. */
int budget_sweep(void);
int budget_settle(__u64 cookie);
int budget_settle_slot(__u32 slot);
/* Messages in the ingress queue of a psock (its address), WALK_NODES at most; -1: there are more. */
int budget_count(__u64 psock);
/* Their bytes. */
int budget_bytes(__u64 psock);

struct queue {
	__s32 bytes;
	__u32 messages;
	bool counted; /* the walk reached the end */
};

/* What a half has in its ingress queue; false when the socket is another by now. */
static __always_inline bool look_at_queue(struct sock *reader, __u64 cookie, struct queue *q)
{
	struct sk_psock *psock = psock_of(reader);
	int count;

	if (!psock)
		return false;
	q->bytes = BPF_CORE_READ(reader, sk_backlog.rmem_alloc.counter);
	/* kernels where redirected bytes do not count in sk_rmem_alloc: what the messages say */
	if (!settings.rmem_counts)
		q->bytes += budget_bytes((__u64)psock);
	count = budget_count((__u64)psock);
	q->counted = count >= 0;
	q->messages = q->counted ? count : 0;
	return cookie_of(reader) == cookie;
}

static __always_inline struct budget *total_budget(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&budget, &zero);
}

/* Sets a half's reservation; false when more was asked for than there is. */
static __always_inline bool reserve(struct half *reader, __u64 bytes)
{
	struct budget *b = total_budget();
	__u64 had, used;

	if (!b)
		return false;
	had = swap_reserved(reader, bytes);
	used = add_used(b, bytes - had);
	return bytes <= had || used <= (__u64)settings.total_budget_kib << 10;
}

#endif
