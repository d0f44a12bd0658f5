/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The journal: what happened, for people (`shared-socket events`). Written at transitions and never for a message that goes the
 * way of the one before it; nothing waits for it, and nothing depends on it.
 *
 * Each CPU has a segment of the array `journal` and a position in it, which only grows; entry p is at p modulo the
 * segment's size, and says p + 1 when it is complete. So a writer overwrites the oldest entry and never waits, and any number of
 * readers keep positions of their own: what they find overwritten they count as lost.
 *
 * A hook may interrupt another on the same CPU (sockops runs in softirq), or take its place while it is preempted: the
 * position is claimed by a fetching atomic. Before 5.12 there is none, but there nothing is preempted either, and who
 * interrupts another has ended before that goes on: it sees `writing`, and is counted as lost.
 *
 * A token bucket for each kind and CPU keeps a storm of one kind from pushing out the rest.
 */
#ifndef SHARED_SOCKET_JOURNAL_H
#define SHARED_SOCKET_JOURNAL_H

#include "maps.h"

/* journal.bpf.c: an event of a half, which the caller holds; its cookie. */
int journal_half(__u64 cookie, __u32 kind, __u32 reason, __u32 hazards);
/* May one more of a kind be written on this CPU? `cookie` is whose it is: the second of two in a row is not told. */
int journal_admit(__u64 cookie, __u32 kind);
/* A socket that has no record. */
int journal_socket(struct bpf_sock_ops *ops, __u32 kind, __u32 reason, __u64 peer_cookie);

/* flow.bpf.c: the sums of a half that is retired, and held, move to the totals and to its flow. */
int flow_retire(__u64 cookie);
/* Two workloads have one pair more. */
int flow_paired(__u64 client, __u64 server, __u32 adopted);
int flow_left(__u64 cookie);

/*
 * The slot of a histogram: floor(log2(value)), 0 for 0, the last for all above. No jumps: the verifier would follow each way
 * through all that comes after it.
 */
static __always_inline __u32 slot_of(__u64 value)
{
	__u64 v = value, r, s;

	barrier_var(v);		      /* what is known of it would make comparisons, and so jumps, of this */
	s = (0ULL - (v >> 32)) >> 63; /* 1: above all slots */
	v = (v | (0ULL - s)) & 0xffffffff;
	barrier_var(v);
	s = (0xffffULL - v) >> 63 << 4;
	r = s;
	v >>= s;
	s = (0xffULL - v) >> 63 << 3;
	r |= s;
	v >>= s;
	s = (0xfULL - v) >> 63 << 2;
	r |= s;
	v >>= s;
	s = (0x3ULL - v) >> 63 << 1;
	r |= s;
	v >>= s;
	r |= v >> 1;
	barrier_var(r); /* or the compiler bounds the parts, and Linux 5.10 does not see that it bounds the whole */
	return r & (HISTOGRAM_SLOTS - 1);
}

#endif
