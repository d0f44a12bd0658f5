// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * iter/sockmap over the sockhash, driven from userspace: makes the pairs of draining workloads leave. It holds no socket
 * lock, which the leave protocol does not need (leave.bpf.h). Writes one byte for each half that could not leave yet:
 * versions of other ABIs count them.
 */
#include "clean.bpf.h"

static __always_inline __u32 draining(__u64 workload)
{
	struct workload *w = bpf_map_lookup_elem(&workloads, &workload);

	return w ? w->draining : DRAINING_LEAVE;
}

SEC("iter/sockmap")
int shared_socket_drain(struct bpf_iter__sockmap *ctx)
{
	struct half_key key, peer_key;
	struct half *h HELD = NULL, *peer HELD = NULL;
	__u32 own, other;
	__u64 must;

	if (!ctx->key || !ctx->sk)
		return 0;
	key = *(struct half_key *)ctx->key;
	h = hold(&key);
	if (!h) {
		/* never, but for a moment: the record goes last */
		if (!half_of(&key))
			bpf_map_delete_elem(&sockets, &key);
		return 0;
	}
	peer_key = h->peer;
	peer = hold(&peer_key);
	must = *(volatile __u64 *)&h->gate & GATE_MUST_LEAVE;
	own = draining(h->workload);
	other = peer ? draining(peer->workload) : DRAINING_NO;
	if (own == DRAINING_LEAVE || other == DRAINING_LEAVE) {
		must |= GATE_DETACH;
	} else if (own == DRAINING_CLEAN || other == DRAINING_CLEAN) {
		if (!must && h->strict && peer && !((h->gate | peer->gate) & GATE_DETACH)) {
			if (!leave_if_clean(h, peer, GATE_DETACH))
				bpf_seq_write(ctx->meta->seq, "x", 1);
			return 0;
		}
		must |= GATE_DETACH;
	}
	if (!must)
		return 0;
	if (peer)
		shut_gate(peer, must);
	if (try_leave(h, must) != LEAVE_DONE)
		bpf_seq_write(ctx->meta->seq, "x", 1);
	return 0;
}
