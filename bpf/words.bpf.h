/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The words that several programs change at the same time: a record's gate and its reservation, the sum of all
 * reservations, the hazards of a kind. Each change is one step, returns what was there, and orders what is before it
 * against what is after it; leave.bpf.h, hold.bpf.h and budget.bpf.h rest on that.
 *
 * Since Linux 5.12 these are fetching atomics. Before, BPF has none, and the second build of all this (OLD_KERNEL; build.rs
 * makes both, load.rs chooses) takes the spin lock of the record instead: two programs that change one gate do so one
 * after the other, and the second sees all that the first did before it took the lock. Tracing programs, iterators among
 * them, may not take it: what they learn goes into a word of its own (half.turned), and what iterators do elsewhere is
 * done by programs that userspace runs key by key (drain.bpf.c, sweep.bpf.c).
 *
 * Those kernels free the memory of a deleted element after a grace period, so that a pointer to a record is good for as
 * long as a program runs, and nothing needs to be held.
 */
#ifndef SHARED_SOCKET_WORDS_H
#define SHARED_SOCKET_WORDS_H

#include "maps.h"

/* The gate's word: generation, 32 bits; holds, 12 bits; enum gate, 20 bits (hold.bpf.h). */
#define GATE_FLAGS 0xfffffULL
#define GATE_HOLD (1ULL << 20)
#define GATE_HOLDS (0xfffULL << 20)

static __always_inline __u64 gate_generation(__u64 gate)
{
	return gate >> 32;
}

static __always_inline bool may_hold(__u64 gate, __u64 generation)
{
	return gate_generation(gate) == generation && !(gate & GATE_RETIRED) && (gate & GATE_HOLDS) != GATE_HOLDS;
}

#ifdef OLD_KERNEL

/* `change` is made to the gate of `h` under its lock; the value is the gate from before. */
#define WITH_LOCK(h, change)                                                                                           \
	({                                                                                                             \
		__u64 before_;                                                                                         \
		bpf_spin_lock(&(h)->lock);                                                                             \
		before_ = (h)->gate;                                                                                   \
		change;                                                                                                \
		bpf_spin_unlock(&(h)->lock);                                                                           \
		before_;                                                                                               \
	})

static __always_inline __u64 gate_or(struct half *h, __u64 bits)
{
	return WITH_LOCK(h, h->gate = before_ | bits);
}

static __always_inline __u64 gate_clear(struct half *h, __u64 bits)
{
	return WITH_LOCK(h, h->gate = before_ & ~bits);
}

static __always_inline void gate_set(struct half *h, __u64 gate)
{
	WITH_LOCK(h, h->gate = gate);
}

static __always_inline bool gate_hold(struct half *h, __u64 generation)
{
	return may_hold(*(volatile __u64 *)&h->gate, generation);
}

static __always_inline void gate_let_go(struct half *h)
{
}

/* Of a record that is retired: it goes now. */
static __always_inline void drop_retired(__u64 cookie)
{
	bpf_map_delete_elem(&halves, &cookie);
}

/* A tracing program saw a hazard; the half's next verdict, or ACK, shuts the gate. */
static __always_inline void turn(struct half *h)
{
	*(volatile __u8 *)&h->turned = 1;
}

static __always_inline void take_notice(struct half *h)
{
	if (*(volatile __u8 *)&h->turned)
		gate_or(h, GATE_HAZARD);
}

static __always_inline __u64 swap_reserved(struct half *h, __u64 bytes)
{
	__u64 had;

	bpf_spin_lock(&h->lock);
	had = h->reserved;
	h->reserved = bytes;
	bpf_spin_unlock(&h->lock);
	return had;
}

/* An addition returns nothing here. What is read afterwards may have others' in it, too: it is never too little. */
static __always_inline __u64 add_used(struct budget *b, __u64 bytes)
{
	__sync_fetch_and_add(&b->used, bytes);
	return *(volatile __u64 *)&b->used;
}

static __always_inline __u64 add_hand(struct budget *b, __u64 slots)
{
	__u64 at = b->hand;

	__sync_fetch_and_add(&b->hand, slots);
	return at;
}

/* Of two that take a place at the same time one is not swept: it is settled at its own next look. */
static __always_inline bool take_place(__u64 *place, __u64 cookie)
{
	*(volatile __u64 *)place = cookie;
	return true;
}

/* Adoption, which takes Linux 6.12, is not in this build. */
static __always_inline __u64 first_reader(struct half *h, __u64 task)
{
	return 0;
}

/* Two at the same time may leave one of the two hazards; one is enough to keep a kind on TCP. */
static __always_inline void add_hazard(struct kind *kind, __u32 hazard)
{
	*(volatile __u32 *)&kind->hazards |= hazard;
}

static __always_inline struct observed *observed_by_cookie(__u64 cookie)
{
	return bpf_map_lookup_elem(&observations, &cookie);
}

static __always_inline struct observed *observe_cookie(__u64 cookie)
{
	struct observed fresh = {};

	bpf_map_update_elem(&observations, &cookie, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&observations, &cookie);
}

/* What is observed of a socket, given as the hook has it, and its cookie, of which one is used; NULL: nothing. */
#define OBSERVED(sk, cookie) observed_by_cookie(cookie)
/* The same, made where there was none. */
#define OBSERVED_ANEW(sk, cookie) observe_cookie(cookie)

static __always_inline void forget_observed(__u64 cookie)
{
	bpf_map_delete_elem(&observations, &cookie);
}

#else

#define OBSERVED(sk, cookie) ((struct observed *)bpf_sk_storage_get(&observations, sk, NULL, 0))
#define OBSERVED_ANEW(sk, cookie)                                                                                      \
	((struct observed *)bpf_sk_storage_get(&observations, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE))

static __always_inline void forget_observed(__u64 cookie)
{
}

/*
 * clang turns an atomic whose result nobody uses into one that does not fetch, and such a one orders nothing on arm64.
 * Where the order is what counts, this keeps the result in use.
 */
#define FETCHED(atomic)                                                                                                \
	({                                                                                                             \
		__u64 fetched_ = (atomic);                                                                             \
		asm volatile("" : : "r"(fetched_));                                                                    \
		fetched_;                                                                                              \
	})

static __always_inline __u64 gate_or(struct half *h, __u64 bits)
{
	return FETCHED(__sync_fetch_and_or(&h->gate, bits));
}

static __always_inline __u64 gate_clear(struct half *h, __u64 bits)
{
	return FETCHED(__sync_fetch_and_and(&h->gate, ~bits));
}

static __always_inline void gate_set(struct half *h, __u64 gate)
{
	FETCHED(__sync_lock_test_and_set(&h->gate, gate));
}

/* hold.bpf.c: 1 when it is held. A global function, because of its loop. */
int gate_try_hold(__u64 *gate, __u64 generation);

static __always_inline bool gate_hold(struct half *h, __u64 generation)
{
	return gate_try_hold(&h->gate, generation);
}

/* Holds - 1; who brings it to none and finds RETIRED deletes the record. */
static __always_inline void gate_let_go(struct half *h)
{
	__u64 cookie = h->self.cookie; /* read while it is held */
	__u64 gate = __sync_fetch_and_add(&h->gate, -GATE_HOLD);

	if ((gate & (GATE_HOLDS | GATE_RETIRED)) == (GATE_HOLD | GATE_RETIRED))
		bpf_map_delete_elem(&halves, &cookie);
}

static __always_inline void drop_retired(__u64 cookie)
{
}

static __always_inline void turn(struct half *h)
{
	gate_or(h, GATE_HAZARD);
}

static __always_inline void take_notice(struct half *h)
{
}

static __always_inline __u64 swap_reserved(struct half *h, __u64 bytes)
{
	return __sync_lock_test_and_set(&h->reserved, bytes);
}

static __always_inline __u64 add_used(struct budget *b, __u64 bytes)
{
	return __sync_fetch_and_add(&b->used, bytes) + bytes;
}

static __always_inline __u64 add_hand(struct budget *b, __u64 slots)
{
	return __sync_fetch_and_add(&b->hand, slots);
}

static __always_inline bool take_place(__u64 *place, __u64 cookie)
{
	return !__sync_val_compare_and_swap(place, 0, cookie);
}

/* The reader from before, 0 when `task` is the first. */
static __always_inline __u64 first_reader(struct half *h, __u64 task)
{
	return __sync_val_compare_and_swap(&h->reader, 0, task);
}

static __always_inline void add_hazard(struct kind *kind, __u32 hazard)
{
	__sync_fetch_and_or(&kind->hazards, hazard);
}

#endif

#endif
