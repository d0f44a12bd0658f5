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
	struct tcp_sock *tp = (void *)sk;
	struct published value = {}, *other;
	struct workload *w;
	__u32 isn;

	if (!find_workload(BPF_CORE_READ(sk, sk_cgrp_data.cgroup), &w) || w->draining)
		return 0;
	isn = BPF_CORE_READ(tp, write_seq);
	value.cookie = bpf_get_socket_cookie(ops);
	other = bpf_map_lookup_elem(&published, &isn);
	if (other && other->cookie != value.cookie) {
		/* two connects with one number at one time: neither may be paired by it */
		other->ambiguous = 1;
		count_reason(REASON_ambiguous);
		return 0;
	}
	bpf_map_update_elem(&published, &isn, &value, BPF_ANY);
	add_callbacks(ops, BPF_SOCK_OPS_STATE_CB_FLAG); /* a connect that fails takes its number back */
	return 0;
}

__noinline int announce_syn(struct bpf_sock_ops *ops)
{
	struct sock *sk = kernel_sock(ops), *listener;
	struct tcp_request_sock *req = (void *)sk;
	struct announced value = {};
	struct kind_key kind = {};
	struct published *pub;
	struct isn_pair pair;
	struct workload *w;

	/* RWND_INIT also comes for full sockets (a connect): only a request socket is a SYN */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) != BPF_TCP_NEW_SYN_RECV)
		return 0;
	pair.client = BPF_CORE_READ(req, rcv_isn);
	pair.server = BPF_CORE_READ(req, snt_isn);
	pub = bpf_map_lookup_elem(&published, &pair.client);
	if (!pub || pub->ambiguous)
		return 0;

	/* a request socket has no cgroup: its listener's counts, and children inherit it */
	listener = BPF_CORE_READ(sk, __sk_common.skc_listener);
	if (!find_workload(BPF_CORE_READ(listener, sk_cgrp_data.cgroup), &w) || w->draining)
		return 0;
	if (BPF_CORE_READ((struct tcp_sock *)listener, is_mptcp)) {
		count_reason(REASON_mptcp);
		return 0;
	}
	kind.cgroup = cgroup_id_of(listener);
	kind.port = ops->local_port;
	kind.role = ROLE_SERVER;
	value.client_cookie = pub->cookie;
	value.server_ok = is_eligible(w, &kind);
	bpf_map_update_elem(&announced, &pair, &value, BPF_ANY);
	return 0;
}
