// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * iter/sockmap over the sockhash, driven from userspace: makes the pairs of draining workloads leave. It holds no socket
 * lock, which the leave protocol does not need (leave.bpf.h). Prints a line for each half that could not leave yet.
 */
#include "leave.bpf.h"

static __always_inline bool is_draining(__u64 workload)
{
	struct workload *w = bpf_map_lookup_elem(&workloads, &workload);

	return !w || w->draining;
}

SEC("iter/sockmap")
int shared_socket_drain(struct bpf_iter__sockmap *ctx)
{
	struct half_key key, peer_key;
	struct half *h, *peer;
	__u64 must;

	if (!ctx->key || !ctx->sk)
		return 0;
	key = *(struct half_key *)ctx->key;
	h = half_of(&key);
	if (!h) {
		bpf_map_delete_elem(&sockets, &key); /* never: the record goes last */
		return 0;
	}
	peer_key = h->peer;
	peer = half_of(&peer_key);
	must = *(volatile __u64 *)&h->gate & GATE_MUST_LEAVE;
	if (is_draining(h->workload) || (peer && is_draining(peer->workload)))
		must |= GATE_DETACH;
	if (!must)
		return 0;
	if (peer)
		shut_gate(peer, must);
	try_leave(h, must);
	return 0;
}
