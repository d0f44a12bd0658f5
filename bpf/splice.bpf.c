// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * fentry of tcp_splice_read and tcp_getsockopt: splice(2) and TCP_ZEROCOPY_RECEIVE, seen when they are called (H6). The
 * tracepoint of learn.bpf.c sees them only when they find bytes, and cgroup hooks are kept away from the second. Both
 * read TCP's queue alone, so the pair goes back to TCP before the call has looked: what is sent from here on, it finds.
 *
 * What was redirected before and is unread, such a call never finds: the half is stuck. An application that also reads
 * by recv gets it; one that does not is reset by userspace (reset.bpf.c) rather than left to hang.
 *
 * These need a kernel that can make trampolines; where it cannot, they are not loaded.
 */
#include "hazard.bpf.h"

#define TCP_ZEROCOPY_RECEIVE 35

static __always_inline void blind(struct sock *sk, __u32 hazard)
{
	__u64 cookie = cookie_of(sk);
	struct observed *o = OBSERVED(sk, cookie);
	struct half_key peer_key;
	struct half *h HELD = NULL, *peer HELD = NULL;
	__u32 zero = 0;
	struct totals *t;

	if (o && !(o->hazards & hazard))
		poison(sk, o, hazard, 0);
	h = hold_socket(cookie);
	if (!h || h->gate & (GATE_LEFT | GATE_STUCK))
		return;
	/* in every mode: it would sleep, or spin, for ever */
	poison_half(h, hazard, 0);
	peer_key = h->peer;
	peer = hold(&peer_key);
	if (!may_be_unread(h, peer))
		return;
	h->stuck_ns = bpf_ktime_get_ns();
	if (gate_or(h, GATE_STUCK) & GATE_STUCK)
		return;
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t)
		t->stuck++;
	tell(h, EVENT_STUCK, hazard);
}

SEC("fentry/tcp_splice_read")
int BPF_PROG(shared_socket_splice, struct socket *sock)
{
	struct sock *sk = sock->sk;

	if (sk)
		blind(sk, HAZARD_splice);
	return 0;
}

SEC("fentry/tcp_getsockopt")
int BPF_PROG(shared_socket_zerocopy, struct sock *sk, int level, int name)
{
	if (level == SOL_TCP && name == TCP_ZEROCOPY_RECEIVE)
		blind(sk, HAZARD_zerocopy_receive);
	return 0;
}
