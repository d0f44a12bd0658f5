// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The end of a connection, as sockops sees it: under the socket's lock, in tcp_set_state. A close() has unlinked the
 * socket by now (sock_map_close) and was marked by release.bpf.c before that.
 */
#include "clean.bpf.h"
#include "sockops.h"

/*
 * The socket may serve another connection from now on. A sender that has passed its verdict holds no key but the socket:
 * the kernel delivers into whatever psock that has by then, and were it in the sockhash again, bytes of this connection
 * would be read in the next. So unless the sender is seen to be quiet behind a shut gate (leave.bpf.h, L1 and L2), the
 * socket never enters again, nor connects while that sender holds its psock (reconnect.bpf.c). A peer whose record is gone
 * cannot be asked: any doubt is the TCP path.
 */
static __always_inline void taint_unless_quiet(struct bpf_sock_ops *ops, struct half *h)
{
	struct half_key peer_key = h->peer;
	struct half *peer HELD = hold(&peer_key);
	struct bpf_sock *sk = ops->sk;
	__u64 address = h->sk;

	if (!peer_key.cookie || !sk)
		return; /* never tied: nothing was ever redirected to it */
	if (peer) {
		shut_gate(peer, GATE_PEER_LEAVING);
		if (is_quiet(peer))
			return;
	}
	bpf_sk_storage_get(&tainted, sk, &address, BPF_SK_STORAGE_GET_F_CREATE);
}

/*
 * The half ends by a RST: connect(AF_UNSPEC), SO_LINGER 0, or a close with bytes unread. The kernel drops a RST that finds
 * the peer in a call with more than twice its SO_RCVBUF unread (tcp_add_backlog), and sends none twice; where that is because
 * of redirected bytes, the peer shall not wait for ever. sweep.bpf.c looks whether it was told. A connection that ended
 * in order passes here, too (FIN_WAIT2 becomes TIME_WAIT by way of TCP_CLOSE): there the peer's state says so. One that
 * gave up (an error is set) has sent nothing, and its peer waits on plain TCP as well.
 */
static __always_inline void expect_told(struct half *h, __u32 before)
{
	struct half_key peer_key = h->peer;
	struct half *peer HELD = NULL;
	struct sock *sk = (void *)h->sk;

	if (before != BPF_TCP_ESTABLISHED && before != BPF_TCP_CLOSE_WAIT && before != BPF_TCP_FIN_WAIT1 &&
	    before != BPF_TCP_FIN_WAIT2)
		return;
	if (BPF_CORE_READ(sk, sk_err))
		return;
	peer = hold(&peer_key);
	if (peer && !(peer->gate & GATE_LEFT))
		peer->reset_ns = bpf_ktime_get_ns();
}

/* Takes a half out whatever is unread: for a socket that serves another connection from now on. */
static __always_inline void purge(struct half *h)
{
	struct half_key key = h->self, peer_key = h->peer;
	struct half *peer HELD = hold(&peer_key);

	if (peer)
		shut_gate(peer, GATE_PEER_LEAVING);
	shut_gate(h, GATE_DEAD | GATE_LEFT);
	bpf_map_delete_elem(&sockets, &key);
}

/* A connect that failed, or one whose server half never came. */
static __always_inline void forget_handshake(struct bpf_sock_ops *ops, __u64 cookie)
{
	/* in SYN_SENT nothing is acked, and both are the number that was published */
	__u32 isn = ops->snd_una - (__u32)ops->bytes_acked;
	struct handshake *hs = bpf_map_lookup_elem(&handshakes, &isn);

	if (hs && hs->client_cookie == cookie)
		bpf_map_delete_elem(&handshakes, &isn);
}

__noinline int close_state(struct bpf_sock_ops *ops)
{
	__u32 before = ops->args[0], now = ops->args[1];
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct half *h HELD = hold_socket(cookie);
	struct sock *sk;

	if (now == BPF_TCP_CLOSE)
		forget_handshake(ops, cookie);
	if (!h)
		return 0;
	switch (now) {
	case BPF_TCP_FIN_WAIT1:
		/*
		 * Our FIN goes out. When it is acked, a recv that blocks in tcp_bpf_recvmsg would return EAGAIN (H4): be on
		 * plain TCP before the application can get there. Halves proven non-blocking have no such recv.
		 */
		if (h->eligibility == ELIGIBILITY_ALL)
			try_leave(h, GATE_CLOSING);
		break;
	case BPF_TCP_CLOSE:
		sk = (void *)h->sk;
		expect_told(h, before);
		if (gate_or(h, GATE_DEAD) & GATE_RELEASED) {
			/* no descriptor is left: nobody will read */
			purge(h);
			retire(h);
		} else if ((before == BPF_TCP_ESTABLISHED || before == BPF_TCP_CLOSE_WAIT) &&
			   !BPF_CORE_READ(sk, sk_err)) {
			/*
			 * connect(AF_UNSPEC): the socket and its cookie live on, its unread bytes must not (tcp_disconnect
			 * purges them). Every other way here is a RST or the end of a handshake of FINs, after which what
			 * has arrived stays readable.
			 */
			taint_unless_quiet(ops, h);
			purge(h);
			retire(h);
		} else {
			taint_unless_quiet(ops, h);
			if (try_leave(h, GATE_DEAD) == LEAVE_DONE)
				retire(h);
			/* else: what is unread stays readable; release.bpf.c or close_reused() ends it */
		}
		break;
	default:
		break;
	}
	return 0;
}

/* A socket is connected or listens (again): whatever it was before ends here. */
__noinline int close_reused(struct bpf_sock_ops *ops)
{
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct half *h HELD = hold_socket(cookie);

	if (h) {
		taint_unless_quiet(ops, h);
		purge(h);
		retire(h);
	}
	return 0;
}

/*
 * Kernels without the receive tracepoint: each ACK of a connection on TCP is a look at O_NONBLOCK, the first of them
 * after accept. True while there is more to learn.
 */
static __always_inline bool learn_on_ack(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct observed *o;
	struct sock *ksk = kernel_sock(ops);

	if (!settings.learn_by_flags || !sk)
		return false;
	o = OBSERVED(sk, bpf_get_socket_cookie(ops));
	if (!o || o->counted || o->hazards)
		return false;
	if (!BPF_CORE_READ(ksk, sk_socket, file))
		return true;
	o->calls++;
	if (is_blocking(ksk)) {
		o->hazards |= HAZARD_blocking;
		mark_kind(&o->kind, HAZARD_blocking, 0);
		return false;
	}
	if (o->calls >= CALLS_OF_A_LONG_LIFE)
		count_good(o);
	return true;
}

/* RTT callbacks run on every ACK, but a fast pair has none: they only come while a pair is on TCP. */
__noinline int leave_on_ack(struct bpf_sock_ops *ops)
{
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct half *h HELD = hold_socket(cookie), *peer HELD = NULL;
	struct half_key peer_key;

	if (!h || h->gate & GATE_LEFT) {
		if (!h && learn_on_ack(ops))
			return 0;
		drop_callbacks(ops, BPF_SOCK_OPS_RTT_CB_FLAG);
		return 0;
	}
	take_notice(h);
	if (!(h->gate & GATE_MUST_LEAVE)) {
		arm_late(h);
		return 0;
	}
	try_leave(h, h->gate & GATE_MUST_LEAVE);
	peer_key = h->peer;
	peer = hold(&peer_key);
	if (peer)
		try_leave(peer, h->gate & GATE_MUST_LEAVE);
	return 0;
}
