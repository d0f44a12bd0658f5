// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Driven from userspace over the sockhash: makes the pairs of draining workloads leave. It holds no socket lock, which the
 * leave protocol does not need (leave.bpf.h).
 */
#include "clean.bpf.h"
#include "step.bpf.h"

static __always_inline __u32 draining(__u64 workload)
{
	struct workload *w = bpf_map_lookup_elem(&workloads, &workload);

	return w ? w->draining : DRAINING_LEAVE;
}

/* True when it could not leave yet. */
static __always_inline bool drain(struct half_key key)
{
	struct half *h HELD = NULL, *peer HELD = NULL;
	struct half_key peer_key;
	__u32 own, other;
	__u64 must;

	h = hold(&key);
	if (!h) {
		/* never, but for a moment: the record goes last */
		if (!half_of(&key))
			bpf_map_delete_elem(&sockets, &key);
		return false;
	}
	take_notice(h);
	peer_key = h->peer;
	peer = hold(&peer_key);
	must = *(volatile __u64 *)&h->gate & GATE_MUST_LEAVE;
	own = draining(h->workload);
	other = peer ? draining(peer->workload) : DRAINING_NO;
	if (own == DRAINING_LEAVE || other == DRAINING_LEAVE) {
		must |= GATE_DETACH;
	} else if (own == DRAINING_CLEAN || other == DRAINING_CLEAN) {
		if (!must && h->strict && peer && !((h->gate | peer->gate) & GATE_DETACH))
			return !leave_if_clean(h, peer, GATE_DETACH);
		must |= GATE_DETACH;
	}
	if (!must)
		return false;
	if (peer)
		shut_gate(peer, must);
	return try_leave(h, must) != LEAVE_DONE;
}

#ifdef OLD_KERNEL
SEC("tc")
int shared_socket_drain(struct __sk_buff *skb)
{
	struct half_key key;

	return key_of_step(skb, &key, sizeof(key)) && drain(key);
}
#else
/* Writes one byte for each half that could not leave yet: versions of other ABIs count them. */
SEC("iter/sockmap")
int shared_socket_drain(struct bpf_iter__sockmap *ctx)
{
	char mark = 'x';

	if (ctx->key && ctx->sk && drain(*(struct half_key *)ctx->key))
		bpf_seq_write(ctx->meta->seq, &mark, 1);
	return 0;
}
#endif
