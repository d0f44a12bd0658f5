// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Learning that both ends of a connection are here, before it is established. The client publishes its initial sequence
 * number; a SYN that carries a published number comes from this kernel (or was made to look so, which the pair of both
 * numbers settles in pair.bpf.c). A SYN from elsewhere finds nothing and writes nothing.
 */
#include "sockops.h"

__noinline int announce_connect(struct bpf_sock_ops *ops)
{
	struct sock *sk = kernel_sock(ops);
	struct handshake value = {}, *other;
	struct kind_key kind = {};
	struct workload *w;
	__u32 isn;

	kind.cgroup = cgroup_id_of(sk);
	kind.role = ROLE_CLIENT;
	fill_destination(ops, &kind);
	if (is_short_lived(&kind)) {
		count_reason(REASON_short_lived);
		journal_socket(ops, JOURNAL_CONNECT, REASON_short_lived, 0);
		return 0;
	}
	if (!find_workload(cgroup_of(sk), &w) || w->draining)
		return 0;
	isn = BPF_CORE_READ((struct tcp_sock *)sk, write_seq);
	value.client_cookie = bpf_get_socket_cookie(ops);
	value.published_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&handshakes, &isn, &value, BPF_NOEXIST)) {
		other = bpf_map_lookup_elem(&handshakes, &isn);
		if (!other) {
			count_reason(REASON_map_full);
		} else if (other->client_cookie != value.client_cookie) {
			/* neither may be paired by a number that both chose */
			other->state = HANDSHAKE_AMBIGUOUS;
			count_reason(REASON_ambiguous);
		} /* else: this hook runs twice, for a cgroup and one above it */
		return 0;
	}
	add_callbacks(ops, BPF_SOCK_OPS_STATE_CB_FLAG); /* a connect that fails takes its number back */
	return 0;
}

__noinline int announce_syn(struct bpf_sock_ops *ops)
{
	struct sock *sk = kernel_sock(ops), *listener;
	struct tcp_request_sock *req = (void *)sk;
	struct kind_key kind = {};
	struct handshake *hs;
	struct workload *w;
	__u32 isn, server;
	__u64 cookie;

	/* RWND_INIT also comes for full sockets (a connect): only a request socket is a SYN */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_NEW_SYN_RECV)
		return 0;
	isn = BPF_CORE_READ(req, rcv_isn);
	hs = bpf_map_lookup_elem(&handshakes, &isn);
	if (!hs)
		return 0;
	server = BPF_CORE_READ(req, snt_isn);
	cookie = bpf_get_socket_cookie(ops); /* the child's too */
	if (hs->state != HANDSHAKE_PUBLISHED) {
		/* a SYN that was answered twice, or one with a number that is not its own */
		if (hs->state == HANDSHAKE_ANNOUNCED && hs->server_cookie != cookie)
			hs->state = HANDSHAKE_AMBIGUOUS;
		return 0;
	}

	/* a request socket has no cgroup: its listener's counts, and children inherit it */
	listener = BPF_CORE_READ(sk, __sk_common.skc_listener);
	if (!find_workload(cgroup_of(listener), &w) || w->draining)
		return 0;
	if (is_mptcp(listener)) {
		count_reason(REASON_mptcp);
		return 0;
	}
	kind.cgroup = cgroup_id_of(listener);
	kind.port = ops->local_port;
	kind.role = ROLE_SERVER;
	hs->server_isn = server;
	hs->server_cookie = cookie;
	hs->server_reason = judge(w, &kind);
	hs->state = HANDSHAKE_ANNOUNCED;
	return 0;
}
