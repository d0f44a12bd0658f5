// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Driven from userspace over `halves`: retires the records that no hook of ours will. Their socket is
 * gone and the hooks were not there to see it (links lost or cut off), or it has left the sockhash and its workload is no
 * longer attached.
 */
#include "leave.bpf.h"
#include "step.bpf.h"

/* The memory of a TCP socket is only reused for another, with another cookie; one that is free has no references. */
static __always_inline bool is_gone(const struct half *h)
{
	const struct sock *sk = (const void *)h->sk;
	int refs = BPF_CORE_READ(sk, __sk_common.skc_refcnt.refs.counter);

	return cookie_of(sk) != h->self.cookie || refs <= 0;
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
