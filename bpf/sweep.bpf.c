// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Driven from userspace over `halves`: retires the records that no hook of ours will. Their socket is
 * gone and the hooks were not there to see it (links lost or cut off), or it has left the sockhash and its workload is no
 * longer attached. And it finds the halves whose peer has reset the connection without their being told (close.bpf.c).
 */
#include "hazard.bpf.h"
#include "step.bpf.h"

/* The memory of a TCP socket is only reused for another, with another cookie; one that is free has no references. */
static __always_inline bool is_gone(const struct half *h)
{
	const struct sock *sk = (const void *)h->sk;
	int refs = BPF_CORE_READ(sk, __sk_common.skc_refcnt.refs.counter);

	return cookie_of(sk) != h->self.cookie || refs <= 0;
}

#define TOLD_NS 1000000000ULL /* a RST takes microseconds; the reader may be kept from running for long */

/* The state that a half is in which has heard neither of a FIN nor of a RST. */
static __always_inline bool is_untold(const struct half *h)
{
	const struct sock *sk = (const void *)h->sk;
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (cookie_of(sk) != h->self.cookie)
		return false;
	return state == BPF_TCP_ESTABLISHED || state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2;
}

/* Nothing more will come, and nobody says so: the half is stuck (reset.bpf.c). What is unread stays readable. */
static __always_inline void find_untold(struct half *h)
{
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);

	if (!h->reset_ns || h->gate & (GATE_LEFT | GATE_RELEASED | GATE_DEAD | GATE_STUCK) ||
	    bpf_ktime_get_ns() - h->reset_ns < TOLD_NS || !is_untold(h))
		return;
	h->stuck_ns = h->reset_ns;
	if (gate_or(h, GATE_STUCK) & GATE_STUCK)
		return;
	if (t)
		t->stuck++;
	tell(h, EVENT_UNTOLD, 0);
}

static __always_inline void sweep(__u64 cookie)
{
	struct half *h HELD = hold_socket(cookie), *peer HELD = NULL;
	struct half_key peer_key;
	struct workload *w;
	__u64 workload;

	if (!h) /* being made, or going */
		return;
	if (is_gone(h)) {
		peer_key = h->peer;
		peer = hold(&peer_key);
		if (peer)
			shut_gate(peer, GATE_PEER_LEAVING);
		shut_gate(h, GATE_DEAD | GATE_LEFT);
		retire(h);
		return;
	}
	find_untold(h);
	workload = h->workload;
	w = bpf_map_lookup_elem(&workloads, &workload);
	if (!w && h->gate & GATE_LEFT)
		retire(h);
}

#ifdef OLD_KERNEL
SEC("tc")
int shared_socket_sweep(struct __sk_buff *skb)
{
	__u64 cookie;

	if (key_of_step(skb, &cookie, sizeof(cookie)))
		sweep(cookie);
	return 0;
}
#else
SEC("iter/bpf_map_elem")
int shared_socket_sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	if (ctx->key)
		sweep(*(__u64 *)ctx->key);
	return 0;
}
#endif
