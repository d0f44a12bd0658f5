/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who may use a record, and when it goes. The words of a record that several programs change: words.bpf.h.
 *
 * A pointer that a lookup in `halves` has given does not keep the record: another processor may delete it, and since
 * Linux 6.1 the memory of a deleted element is given to the next insert at once, not after a grace period (bpf_mem_alloc).
 * Whoever goes on writing then writes into the record of another connection: a close that set its bits late marked a
 * stranger as closed, and what the stranger had not read was thrown away. So whoever writes to a record, or relies on it
 * while it does several things, holds it:
 *
 *   gate word   | generation, 32 bits | holds, 12 bits | enum gate, 20 bits |
 *
 *   hold()      compare-and-swap: holds + 1, if the word still has the generation that was asked for, and not RETIRED.
 *               Memory that serves another record by now has another generation, so the swap fails.
 *   let_go()    holds - 1. Who brings it to none and finds RETIRED deletes the record.
 *   retire()    of a held record: sets RETIRED, once; from then on nobody holds it anew (common.bpf.h).
 *
 * A variable declared HELD is let go wherever its scope ends. Not held are: the record of the socket itself in its verdict
 * (redirect.bpf.c says why), and records of which only something is read that does no harm when it is another's.
 */
#ifndef SHARED_SOCKET_HOLD_H
#define SHARED_SOCKET_HOLD_H

#include "words.bpf.h"

static __always_inline void let_go(struct half *h)
{
	gate_let_go(h);
}

/* The compiler may remember in a flag of its own whether a pointer is NULL, which verifiers do not follow: ask it again. */
#define ASK_AGAIN(pointer) asm volatile("" : "+r"(pointer))

static __always_inline void let_go_of(struct half **held)
{
	struct half *h = *held;

	ASK_AGAIN(h);
	if (h)
		let_go(h);
}

#define HELD __attribute__((cleanup(let_go_of)))

/* The record of a key, held; NULL when it is gone or going. */
static __always_inline struct half *hold(const struct half_key *key)
{
	struct half *h;

	if (!key->cookie)
		return NULL;
	h = bpf_map_lookup_elem(&halves, &key->cookie);
	if (h && !gate_hold(h, key->generation))
		h = NULL;
	ASK_AGAIN(h);
	return h;
}

/* The record of a socket, whatever its generation, held. */
static __always_inline struct half *hold_socket(__u64 cookie)
{
	struct half *h = cookie ? bpf_map_lookup_elem(&halves, &cookie) : NULL;
	__u64 generation;

	if (!h)
		return NULL;
	generation = gate_generation(*(volatile __u64 *)&h->gate);
	if (!generation || !gate_hold(h, generation)) /* 0: it is being made */
		return NULL;
	if (h->self.cookie == cookie)
		return h;
	let_go(h); /* it has become another's between the lookup and the hold */
	return NULL;
}

/* A new record, filled, with `self`: from here on it can be found, and its maker holds it. */
static __always_inline void publish(struct half *h, __u64 bits)
{
	gate_set(h, (__u64)h->self.generation << 32 | GATE_HOLD | bits);
}

/* Of a new record whose socket did not get into the sockhash: it goes when it is let go, and counts for nothing. */
static __always_inline void discard(struct half *h)
{
	gate_or(h, GATE_LEFT | GATE_RETIRED);
	drop_retired(h->self.cookie);
}

#endif
