// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * tp_btf/sock_recv_length (6.3+): the flags of every receive call, MSG_DONTWAIT already folded in from O_NONBLOCK. Only
 * sockets that pair.bpf.c chose have an observation; the rest of the machine leaves at the first lookup.
 */
#include "leave.bpf.h"

static __always_inline void poison(struct sock *sk, struct observed *o, int flags)
{
	__u64 cookie = cookie_of(sk);
	struct half *h = bpf_map_lookup_elem(&halves, &cookie), *peer;
	struct half_key peer_key;

	count_hazard(o, flags);
	if (!h || h->eligibility == ELIGIBILITY_ALL)
		return;
	/* live and hazardous: nothing more by the fast path; it leaves at the next ACK */
	peer_key = h->peer;
	peer = half_of(&peer_key);
	shut_gate(h, GATE_HAZARD);
	if (peer)
		shut_gate(peer, GATE_HAZARD);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(shared_socket_recv, struct sock *sk, int ret, int flags)
{
	struct observed *o = bpf_sk_storage_get(&observations, sk, NULL, 0);

	if (!o || flags & MSG_ERRQUEUE)
		return 0;
	o->calls++;
	if (!(flags & MSG_DONTWAIT) || flags & (MSG_WAITALL | MSG_OOB)) {
		if (!o->hazards++)
			poison(sk, o, flags);
		return 0;
	}
	/* a life that ends is counted at its release */
	if (o->calls >= CALLS_OF_A_LONG_LIFE)
		count_good(o);
	return 0;
}
