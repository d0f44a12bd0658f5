// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What applications do with their sockets, seen by tracepoints. Only sockets that pair.bpf.c chose have an observation;
 * the rest of the machine leaves at the first lookup.
 */
#include "adopt.bpf.h"
#include "call.bpf.h"
#include "hazard.bpf.h"

volatile __u32 registers_below;
volatile __u32 registers_tries;

/*
 * tp_btf/sock_recv_length (6.3+): the flags of every receive call, MSG_DONTWAIT already folded in from O_NONBLOCK.
 * tcp_bpf_recvmsg serves MSG_PEEK, MSG_CMSG_CLOEXEC and MSG_ERRQUEUE as tcp_recvmsg does; it returns EAGAIN from a
 * blocking call, knows neither MSG_WAITALL nor MSG_OOB nor MSG_TRUNC (which means: discard), and answers 0 to a call
 * for 0 bytes where TCP answers EAGAIN or waits.
 */
static __always_inline __u32 receive_hazards(struct sock *sk, int flags)
{
	__u32 hazard = 0;

	if (flags & MSG_WAITALL)
		hazard |= HAZARD_waitall;
	/* urgent data that has arrived and that this call did not pass: the receiver's kind speaks for the pair */
	if (flags & MSG_OOB || BPF_CORE_READ((struct tcp_sock *)sk, urg_data))
		hazard |= HAZARD_urgent;
	if (flags & MSG_TRUNC)
		hazard |= HAZARD_truncate;
	/* there what was redirected and what came by TCP may wait together (clean.bpf.h), and a peek shows the first only */
	if (flags & MSG_PEEK && settings.fionread & FIONREAD_MISSES_FAST)
		hazard |= HAZARD_peek;
	return hazard;
}

/* A message that redirect.bpf.c has stamped was read. Every receive call of the machine comes here: one look at an array. */
static __always_inline void measure_wait(struct sock *sk, int ret, int flags)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter, sent;
	__u32 at = cookie & (STAMPS - 1);
	struct stamp *s = bpf_map_lookup_elem(&stamps, &at);
	struct half *h HELD = NULL;

	if (!s || !s->time_ns || s->cookie != cookie || ret <= 0 || flags & (MSG_PEEK | MSG_ERRQUEUE))
		return;
	sent = *(volatile __u64 *)&s->time_ns;
	*(volatile __u64 *)&s->time_ns = 0;
	h = hold_socket(cookie);
	if (!h || !sent)
		return;
	h->waits[slot_of(bpf_ktime_get_ns() - sent)]++;
	h->waited = 1;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(shared_socket_recv, struct sock *sk, int ret, int flags)
{
	struct observed *o = OBSERVED(sk, cookie_of(sk));
	__u32 hazard, length = 1, unused;

	if (settings.sample_mask != ~0U)
		measure_wait(sk, ret, flags);
	if (!o || flags & MSG_ERRQUEUE)
		return 0;
	if (o->adopting)
		note_reader(sk, o);
	o->calls++;
	hazard = receive_hazards(sk, flags);
	if (!(flags & MSG_DONTWAIT))
		hazard |= HAZARD_blocking;
	if (!ret && !sk->sk_shutdown && sk->__sk_common.skc_state == BPF_TCP_ESTABLISHED)
		hazard |= HAZARD_empty_read;
	else if (ret == -EAGAIN && o->calls < CALLS_OF_A_LONG_LIFE &&
		 current_call(bpf_get_current_task(), &unused, &length) == CALL_READ && !length)
		hazard |= HAZARD_empty_read;
	if (hazard & ~o->hazards) {
		poison(sk, o, hazard, flags);
		return 0;
	}
	/* a life that ends is counted at its release */
	if (o->calls >= CALLS_OF_A_LONG_LIFE)
		count_good(o);
	return 0;
}

/*
 * tp_btf/tcp_rcv_space_adjust: bytes were taken from TCP's receive queue, by whatever call. Those that are not receive
 * calls never look at the ingress queue (H6) and never pass sock_recv_length: a socket that is only read by them makes
 * no receive call, so it never speaks for its kind.
 *
 * Where there is no sock_recv_length (before 6.3), the flags of receive calls that took bytes are read here.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(shared_socket_space, struct sock *sk)
{
	struct observed *o = OBSERVED(sk, cookie_of(sk));
	__u32 flags = 0, length, hazard = 0;

	if (!o || o->hazards & (HAZARD_splice | HAZARD_zerocopy_receive))
		return 0;
	switch (current_call(bpf_get_current_task(), &flags, &length)) {
	case CALL_SPLICE:
		hazard = HAZARD_splice;
		break;
	case CALL_GETSOCKOPT:
		hazard = HAZARD_zerocopy_receive;
		break;
	case CALL_READ:
	case CALL_RECEIVE:
		if (settings.learn_by_flags)
			hazard = receive_hazards(sk, flags);
		break;
	default:
		break;
	}
	if (hazard & ~o->hazards)
		poison(sk, o, hazard, flags);
	return 0;
}
