// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * iter/tcp, driven from userspace (events.rs): ends connections that are stuck. Redirected bytes are unread, and the
 * application waits for them in a call that cannot see them (splice.bpf.c); or the peer has reset the connection and the
 * kernel has dropped that RST (sweep.bpf.c). It would hang; a reset it understands.
 *
 * The iterator holds the socket's lock, and a call of the application that could still read the bytes takes it too.
 */
#include "hazard.bpf.h"

#define STUCK_NS 1000000000ULL /* an application may turn to recv in the next moment */

extern int bpf_sock_destroy(struct sock_common *sock) __ksym __weak; /* 6.5 */

SEC("iter/tcp")
int shared_socket_reset(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;
	__u32 zero = 0;
	struct totals *t;
	struct half *h HELD = NULL;
	__u64 cookie;

	if (!skc || !bpf_ksym_exists(bpf_sock_destroy))
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return 0;
	cookie = cookie_of((void *)tp);
	h = hold_socket(cookie);
	if (!h || !(h->gate & GATE_STUCK) || h->gate & (GATE_LEFT | GATE_RELEASED | GATE_DEAD) ||
	    !(h->reset_ns || is_unread(h)) || bpf_ktime_get_ns() - h->stuck_ns < STUCK_NS)
		return 0;
	tell(h, EVENT_RESET, h->hazards);
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t)
		t->reset++;
	bpf_seq_write(ctx->meta->seq, &cookie, sizeof(cookie));
	bpf_sock_destroy(skc);
	return 0;
}
