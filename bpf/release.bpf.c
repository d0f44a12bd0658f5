// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/sock_release: the last descriptor is going. Runs in inet_release, before sock_map_close unlinks the socket and
 * throws away what is queued to it, so a peer that sends from now on sends by TCP and gets the RST that TCP would give.
 * What remains: a message whose verdict was before this mark and whose delivery is after the unlink. It is lost, as it
 * is in TCP when it crosses a close, but the sender may see EPIPE one call earlier than TCP's ECONNRESET.
 */
#include "hazard.bpf.h"

/* Bytes that TCP received and nobody has read; the FIN counts in rcv_nxt until an end of stream was read. */
static __always_inline bool is_unread_by_tcp(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;
	__s32 fin = BPF_CORE_READ(sk, sk_shutdown) & RCV_SHUTDOWN ? 1 : 0;

	return (__s32)(BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq)) > fin;
}

SEC("cgroup/sock_release")
int shared_socket_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct half *h HELD = hold_socket(cookie), *peer HELD = NULL;
	struct observed *o = OBSERVED(ctx, cookie);
	struct half_key peer_key;
	struct kind_key kind;

	/*
	 * The context of this hook is the socket. H9: TCP answers a close with unread bytes by RST, the fast path by FIN. That
	 * is too late for this connection, but not for the next ones of its kind.
	 */
	if (o && !o->hazards && is_unread_by_tcp((struct sock *)ctx)) {
		o->hazards |= HAZARD_close_unread;
		mark_kind(&o->kind, HAZARD_close_unread, 0);
	}
	if (h && h->eligibility == ELIGIBILITY_SAFE && is_unread(h)) {
		kind_of(h, &kind);
		mark_kind(&kind, HAZARD_close_unread, 0);
		if (o)
			o->hazards |= HAZARD_close_unread;
	}
	if (o) {
		count_good(o);
		forget_observed(cookie);
	}
	if (!h)
		return 1;
	peer_key = h->peer;
	peer = hold(&peer_key);
	if (peer)
		shut_gate(peer, GATE_PEER_LEAVING);
	if (peer && hold_open(WINDOW_RELEASE))
		count_held(WINDOW_RELEASE, !is_quiet(peer));
	if (gate_or(h, GATE_RELEASED | GATE_CLOSING) & GATE_DEAD)
		retire(h); /* TCP_CLOSE came first; the kernel unlinks the socket right after this */
	else
		give_back(h); /* the FINs may take minutes, but the queue goes now */
	return 1;
}
