// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Entering the sockhash and tying two halves together. The client enters first (ACTIVE comes before PASSIVE unless Fast
 * Open or a simultaneous open is at work, which stay TCP); the server enters and ties, or takes the client out again.
 */
#include "sockops.h"

/* A generation tells the connections of one socket apart; any number that is not used twice in a row will do. */
static __always_inline __u32 new_generation(void)
{
	return (__u32)bpf_ktime_get_ns() | 1;
}

static __always_inline void fill_endpoints(struct bpf_sock_ops *ops, struct half *h)
{
	h->local.family = h->remote.family = ops->family;
	h->local.port = ops->local_port;
	h->remote.port = bpf_ntohl(ops->remote_port);
	if (ops->family == AF_INET6) {
		__u32 *l = (__u32 *)h->local.addr, *r = (__u32 *)h->remote.addr;

		l[0] = ops->local_ip6[0];
		l[1] = ops->local_ip6[1];
		l[2] = ops->local_ip6[2];
		l[3] = ops->local_ip6[3];
		r[0] = ops->remote_ip6[0];
		r[1] = ops->remote_ip6[1];
		r[2] = ops->remote_ip6[2];
		r[3] = ops->remote_ip6[3];
	} else {
		*(__u32 *)h->local.addr = ops->local_ip4;
		*(__u32 *)h->remote.addr = ops->remote_ip4;
	}
}

/* Reasons to leave a socket alone that hold in every mode. */
static __always_inline enum reason refuse(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;

	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock))
		return REASON_kernel_socket;
	if (BPF_CORE_READ(tp, is_mptcp))
		return REASON_mptcp;
	if (BPF_CORE_READ_BITFIELD_PROBED(tp, repair))
		return REASON_repair;
	if (BPF_CORE_READ(tp, inet_conn.icsk_ulp_ops))
		return REASON_ulp;
	if (BPF_CORE_READ(sk, sk_user_data))
		return REASON_insert_failed;
	return REASON_fast;
}

static __always_inline void observe(struct bpf_sock_ops *ops, const struct workload *w, const struct kind_key *kind)
{
	struct observed init = {};
	struct bpf_sock *sk = ops->sk;

	if (w->eligibility == ELIGIBILITY_ALL || !sk)
		return;
	init.kind = *kind;
	bpf_sk_storage_get(&observations, sk, &init, BPF_SK_STORAGE_GET_F_CREATE);
	if (settings.learn_by_flags)
		add_callbacks(ops, BPF_SOCK_OPS_RTT_CB_FLAG); /* where learn_on_ack looks at the file */
}

/* A record is larger than the stack: it starts as a copy of this, its gate shut, and is filled in place. */
static const volatile struct half blank = {.gate = GATE_UNTIED};

static __always_inline struct half *new_half(struct bpf_sock_ops *ops, struct sock *sk, __u8 role, __u64 workload,
					     const struct workload *w)
{
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct half *h;

	if (bpf_map_update_elem(&halves, &cookie, (const void *)&blank, BPF_NOEXIST))
		return NULL;
	h = bpf_map_lookup_elem(&halves, &cookie);
	if (!h)
		return NULL;
	h->sk = (__u64)sk;
	h->workload = workload;
	h->cgroup = cgroup_id_of(sk);
	h->eligibility = w->eligibility;
	h->established_ns = bpf_ktime_get_ns();
	h->tcp_due = bpf_jiffies64() + settings.keepalive_jiffies;
	h->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	h->role = role;
	fill_endpoints(ops, h);
	h->self.cookie = cookie;
	h->self.generation = new_generation(); /* last: from here on half_of() finds it */
	return h;
}

/* Puts the socket of `ops` into the sockhash; its record is there first, so that a verdict always finds it. */
static __always_inline enum reason enter(struct bpf_sock_ops *ops, struct half *h)
{
	struct half_key key = h->self;

	if (bpf_sock_hash_update(ops, &sockets, &key, BPF_NOEXIST)) {
		bpf_map_delete_elem(&halves, &key.cookie);
		return REASON_insert_failed;
	}
	add_callbacks(ops, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
	return REASON_fast;
}

__noinline int pair_active(struct bpf_sock_ops *ops)
{
	struct sock *sk = kernel_sock(ops);
	struct kind_key kind = {};
	__u32 isn, server_isn;
	struct handshake *hs;
	struct workload *w;
	__u64 workload;
	enum reason reason;
	struct half *h;

	/* the SYN counts in bytes_acked of a client */
	isn = ops->snd_una - (__u32)ops->bytes_acked;
	server_isn = ops->rcv_nxt - (__u32)ops->bytes_received - 1;
	hs = bpf_map_lookup_elem(&handshakes, &isn);
	if (!hs || hs->client_cookie != bpf_get_socket_cookie(ops))
		return 0; /* not published */
	if (hs->state == HANDSHAKE_ENTERED || hs->state == HANDSHAKE_DECLINED)
		return 0; /* this hook runs twice, for a cgroup and one above it */
	if (hs->state != HANDSHAKE_ANNOUNCED || hs->server_isn != server_isn) {
		/* the other end is elsewhere, or may not be known: this connection costs nothing from here on */
		bpf_map_delete_elem(&handshakes, &isn);
		drop_callbacks(ops, BPF_SOCK_OPS_STATE_CB_FLAG);
		return 0;
	}
	kind.cgroup = cgroup_id_of(sk);
	kind.role = ROLE_CLIENT;
	fill_destination(ops, &kind);
	workload = find_workload(BPF_CORE_READ(sk, sk_cgrp_data.cgroup), &w);
	if (!w || w->draining) {
		reason = REASON_detach;
		goto decline;
	}
	observe(ops, w, &kind);
	reason = refuse(sk);
	if (reason != REASON_fast)
		goto decline;
	if (!is_eligible(w, &kind)) {
		reason = REASON_learning;
		goto decline;
	}
	if (!hs->server_ok) {
		reason = REASON_peer_declined;
		goto decline;
	}
	h = new_half(ops, sk, ROLE_CLIENT, workload, w);
	if (!h) {
		reason = REASON_map_full;
		goto decline;
	}
	h->isn_local = isn;
	h->isn_remote = server_isn;
	hs->client_sk = (__u64)sk;
	hs->client_generation = h->self.generation;
	reason = enter(ops, h);
	if (reason != REASON_fast)
		goto decline;
	hs->state = HANDSHAKE_ENTERED;
	return 0;
decline:
	/* the handshake stays for the server's half, which learns too; STATE_CB takes it away if that never comes */
	count_reason(reason);
	hs->state = HANDSHAKE_DECLINED;
	return 0;
}

/* The client entered and the server will not: nothing was ever redirected to or from it, so it can just go. */
static __always_inline void take_out_client(const struct half_key *client)
{
	struct half_key key = *client;
	struct half *h = half_of(&key);

	if (!h)
		return;
	shut_gate(h, GATE_PEER_LEAVING | GATE_LEFT);
	bpf_map_delete_elem(&sockets, &key);
}

__noinline int pair_passive(struct bpf_sock_ops *ops)
{
	struct sock *sk = kernel_sock(ops);
	struct half_key client_key = {};
	struct kind_key kind = {};
	struct half *h, *client;
	__u32 isn, server_isn;
	struct handshake *hs, seen;
	struct workload *w;
	__u64 workload;
	enum reason reason;
	__u32 zero = 0;
	struct totals *t;

	server_isn = ops->snd_una - (__u32)ops->bytes_acked - 1;
	isn = ops->rcv_nxt - (__u32)ops->bytes_received - 1;
	hs = bpf_map_lookup_elem(&handshakes, &isn);
	if (!hs || hs->state == HANDSHAKE_PUBLISHED || hs->state == HANDSHAKE_AMBIGUOUS || hs->server_isn != server_isn)
		return 0;
	seen = *hs;
	/* taking it away makes a late ACTIVE (Fast Open) find nothing and a second PASSIVE (simultaneous open) too */
	bpf_map_delete_elem(&handshakes, &isn);

	workload = find_workload(BPF_CORE_READ(sk, sk_cgrp_data.cgroup), &w);
	if (!w)
		return 0;
	kind.cgroup = cgroup_id_of(sk);
	kind.port = ops->local_port;
	kind.role = ROLE_SERVER;
	observe(ops, w, &kind);

	client_key.cookie = seen.client_cookie;
	client_key.generation = seen.client_generation;
	if (seen.state != HANDSHAKE_ENTERED) {
		count_reason(seen.state == HANDSHAKE_ANNOUNCED ? REASON_out_of_order : REASON_peer_declined);
		return 0;
	}
	reason = w->draining ? REASON_detach : refuse(sk);
	if (reason != REASON_fast)
		goto decline;
	if (!is_eligible(w, &kind)) {
		reason = REASON_not_eligible;
		goto decline;
	}
	client = half_of(&client_key);
	if (!client) {
		reason = REASON_peer_missing; /* closed already */
		goto decline;
	}
	h = new_half(ops, sk, ROLE_SERVER, workload, w);
	if (!h) {
		reason = REASON_map_full;
		goto decline;
	}
	h->isn_local = server_isn;
	h->isn_remote = isn;
	h->peer = client_key;
	h->peer_sk = seen.client_sk;
	reason = enter(ops, h);
	if (reason != REASON_fast)
		goto decline;

	/* Tie: what a verdict reads is written before its gate opens (the atomics are full barriers). */
	client->peer = h->self;
	client->peer_sk = (__u64)sk;
	__sync_fetch_and_and(&h->gate, ~(__u64)GATE_UNTIED);
	if (__sync_fetch_and_and(&client->gate, ~(__u64)GATE_UNTIED) & (GATE_SHUT & ~GATE_UNTIED))
		shut_gate(h, GATE_PEER_LEAVING); /* it closed or left meanwhile: nothing may be queued to it */
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t)
		t->pairs++;
	return 0;
decline:
	count_reason(reason);
	take_out_client(&client_key);
	return 0;
}
