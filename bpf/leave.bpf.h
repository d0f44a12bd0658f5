/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The leave protocol: the only way in which a half is taken out of the sockhash while it may still be read or written.
 *
 * Deleting half A purges what A has not read, and a sender B that stands between its verdict and the delivery loses its
 * message with success reported. So A may go only when (1) no message can be queued to A any more and (2) A's ingress
 * queue is empty. The only writer of that queue is B's redirect.
 *
 *   B, in the verdict, under B's socket lock        the leaver of A, in any context
 *   ----------------------------------------        -------------------------------
 *   S1  B.inflight = current                        L1  fetch_or(B.gate, PEER_LEAVING)
 *   S2  g = fetch_or(B.gate, TOUCHED)               L2  read B.inflight, B.psock.refcnt, B's sleepers
 *   S3  shut(g) ? TCP : redirect                    L3  read A's ingress queue
 *       (B's lock is released, A's is taken,        L4  quiet and empty ? delete A : stay marked, try again
 *       the message is queued)
 *
 * Store-then-load on both sides (Dekker): S2 and L1 are atomics that return a value, hence fully ordered, on x86 (lock
 * prefix) and on arm64 (LSE acquire+release, or LL/SC followed by dmb ish, as the kernel's memory model demands of
 * value-returning atomics). S2 and L1 are on one word, so one comes first:
 *   - L1 before S2: S2 sees the bit; B goes by TCP; nothing is queued.
 *   - S2 before L1: S1 is visible at L2, and B counts as in flight until one of these is seen:
 *       a. B.inflight is 0. It is cleared in B's next verdict, by the same task: that task has come back from the
 *          delivery. When a second task redirects meanwhile, inflight becomes 1 (several) and a. and c. never hold.
 *       b. B's psock has its base reference count. tcp_bpf_sendmsg holds one from before the verdict until after the
 *          delivery (sk_psock_get ... sk_psock_put). The count is 1 while B is in the sockhash, 0 (or no psock) after.
 *          The increment precedes S2 in program order and S2 is a full barrier.
 *       c. the task of B.inflight sleeps on B's own wait queue (blocked in recv or in sk_stream_wait_memory; between
 *          verdict and delivery it could sleep only on A's lock). Whatever it does when it wakes passes S2 again.
 * From L2 on, then, nothing is queued to A, so the queue can only shrink, and L3 needs no lock: empty stays empty. A
 * reader of A that runs at the same time holds A's psock until it returns; the delete only drops the map's reference.
 *
 * Being wrong at L2 or L3 towards "not yet" costs a retry; probe reads of freed memory are caught by the cookie, which
 * is read last (TCP sockets are SLAB_TYPESAFE_BY_RCU).
 */
#ifndef SHARED_SOCKET_LEAVE_H
#define SHARED_SOCKET_LEAVE_H

#include "common.bpf.h"

enum leave_result {
	LEAVE_DONE = 0,
	LEAVE_IN_FLIGHT = 1,
	LEAVE_UNREAD = 2,
};

#define INFLIGHT_SEVERAL 1ULL

/* Of a half that the caller holds, or of its own in a verdict. */
static __always_inline void shut_gate(struct half *h, __u64 bits)
{
	gate_or(h, bits);
}

/* Case c: does `task` sleep on the wait queue of this socket? */
static __always_inline bool sleeps_on(struct sock *sk, __u64 task)
{
	struct socket_wq *wq = BPF_CORE_READ(sk, sk_wq);
	struct list_head *head = &wq->wait.head, *at = BPF_CORE_READ(wq, wait.head.next);
	int i;

	for (i = 0; i < 16; i++) {
		struct wait_queue_entry *entry;

		if (!at || at == head)
			return false;
		entry = (void *)at - bpf_core_field_offset(struct wait_queue_entry, entry);
		if ((__u64)BPF_CORE_READ(entry, private) == task)
			return true;
		at = BPF_CORE_READ(at, next);
	}
	return false;
}

static __always_inline bool is_quiet(struct half *sender)
{
	__u64 task = *(volatile __u64 *)&sender->inflight;
	struct sock *sk = (void *)sender->sk;
	struct sk_psock *psock;
	bool quiet;
	int refs;

	if (!task)
		return true;
	psock = psock_of(sk);
	if (!psock) {
		quiet = true; /* no psock: no thread is inside tcp_bpf_sendmsg */
	} else {
		refs = BPF_CORE_READ(psock, refcnt.refs.counter);
		quiet = refs <= (sender->gate & GATE_LEFT ? 0 : 1);
		if (!quiet && task != INFLIGHT_SEVERAL)
			quiet = sleeps_on(sk, task);
	}
	return quiet && cookie_of(sk) == sender->self.cookie;
}

static __always_inline bool is_unread(struct half *h)
{
	struct sock *sk = (void *)h->sk;
	struct sk_psock *psock = psock_of(sk);
	struct list_head *head = &psock->ingress_msg;
	bool unread = psock && BPF_CORE_READ(psock, ingress_msg.next) != head;

	/* another cookie: that socket is gone, and its queue with it */
	return unread && cookie_of(sk) == h->self.cookie;
}

/* Of a half whose peer's gate is shut: is something queued, or a message on its way that passed its verdict before? */
static __always_inline bool may_be_unread(struct half *h, struct half *peer)
{
	return is_unread(h) || (peer && !is_quiet(peer)) || is_unread(h);
}

static __always_inline enum reason leave_reason(const struct half *h, __u64 why)
{
	if (why & GATE_DETACH)
		return REASON_detach;
	return why & GATE_HAZARD ? hazard_reason(h->hazards) : REASON_bulk;
}

/* The caller holds it. */
static __always_inline enum leave_result try_leave(struct half *h, __u64 why)
{
	struct half_key key = h->self, peer_key = h->peer;
	struct half *peer HELD = hold(&peer_key);
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);
	bool held, quiet;

	if (h->gate & GATE_LEFT)
		return LEAVE_DONE;
	shut_gate(h, why);
	if (peer) {
		shut_gate(peer, GATE_PEER_LEAVING); /* L1 */
		held = hold_open(WINDOW_LEAVE);
		quiet = is_quiet(peer); /* L2 */
		if (held)
			count_held(WINDOW_LEAVE, !quiet);
		if (!quiet) {
			if (t)
				t->in_flight++;
			return LEAVE_IN_FLIGHT;
		}
	}
	if (is_unread(h)) { /* L3 */
		if (t)
			t->unread++;
		return LEAVE_UNREAD;
	}
	shut_gate(h, GATE_LEFT); /* before the delete: is_quiet's base count errs on the safe side */
	if (hold_open(WINDOW_DELETE))
		count_held(WINDOW_DELETE,
			   *(volatile __u64 *)&h->gate & (GATE_RELEASED | GATE_DEAD | GATE_PEER_LEAVING));
	bpf_map_delete_elem(&sockets, &key); /* L4 */
	give_back(h);
	if (t)
		t->left++;
	flow_left(key.cookie);
	if (why & GATE_MUST_LEAVE)
		journal_half(key.cookie, JOURNAL_LEFT, leave_reason(h, why), h->hazards);
	return LEAVE_DONE;
}

#endif
