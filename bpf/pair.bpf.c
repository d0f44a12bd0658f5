// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Entering the sockhash and tying two halves together. The client enters first (ACTIVE comes before PASSIVE unless Fast
 * Open or a simultaneous open is at work, which stay TCP); the server enters and ties, or takes the client out again.
 */
#include "clean.bpf.h"
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

/* The socket's observation starts, or starts anew when it served another connection before. REASON_fast: nothing known. */
static __always_inline enum reason observe(struct bpf_sock_ops *ops, const struct workload *w,
					   const struct kind_key *kind)
{
	struct bpf_sock *sk = ops->sk;
	struct observed *o;

	if (!sk)
		return REASON_fast;
	if (w->eligibility == ELIGIBILITY_ALL) {
		o = OBSERVED(sk, bpf_get_socket_cookie(ops));
		return o && o->hazards & HAZARD_OPTIONS ? hazard_reason(o->hazards & HAZARD_OPTIONS) : REASON_fast;
	}
	o = OBSERVED_ANEW(sk, bpf_get_socket_cookie(ops));
	if (!o)
		return REASON_fast;
	o->kind = *kind;
	o->calls = o->counted = 0;
	/* what its application does is asked anew; an option that it set stays set */
	o->hazards &= HAZARD_OPTIONS;
	if (settings.learn_by_flags)
		add_callbacks(ops, BPF_SOCK_OPS_RTT_CB_FLAG); /* where learn_on_ack looks at the file */
	if (!o->hazards)
		return REASON_fast;
	mark_kind(kind, o->hazards, 0);
	return hazard_reason(o->hazards);
}

/* A record is larger than the stack: it starts as a copy of this, its gate shut, and is filled in place. */
static const volatile struct half blank = {.gate = GATE_UNTIED};

/* The caller holds what it gets. */
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
	fill_half(h, sk, role, workload, w);
	fill_endpoints(ops, h);
	h->self.cookie = cookie;
	h->self.generation = new_generation();
	publish(h, GATE_UNTIED);
	return h;
}

/* Puts the socket of `ops` into the sockhash; its record is there first, so that a verdict always finds it. */
static __always_inline enum reason enter(struct bpf_sock_ops *ops, struct half *h)
{
	struct half_key key = h->self;

	if (bpf_sock_hash_update(ops, &sockets, &key, BPF_NOEXIST)) {
		discard(h);
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
	struct half *h HELD = NULL;

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
		journal_socket(ops, JOURNAL_CONNECT,
			       hs->state == HANDSHAKE_AMBIGUOUS ? REASON_ambiguous : REASON_elsewhere, 0);
		bpf_map_delete_elem(&handshakes, &isn);
		drop_callbacks(ops, BPF_SOCK_OPS_STATE_CB_FLAG);
		return 0;
	}
	kind.cgroup = cgroup_id_of(sk);
	kind.role = ROLE_CLIENT;
	fill_destination(ops, &kind);
	workload = find_workload(cgroup_of(sk), &w);
	if (!w || w->draining) {
		reason = REASON_detach;
		goto decline;
	}
	reason = observe(ops, w, &kind);
	if (reason == REASON_fast)
		reason = refuse(sk, &kind);
	if (reason == REASON_fast)
		reason = judge(w, &kind);
	if (reason != REASON_fast)
		goto decline;
	/* only a socket that connects can have had a life before; what is accepted is new */
	if (ops->sk && bpf_sk_storage_get(&tainted, ops->sk, NULL, 0)) {
		reason = REASON_reused;
		goto decline;
	}
	if (hs->server_reason) {
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
	hs->client_generation = h->self.generation;
	reason = enter(ops, h);
	if (reason != REASON_fast)
		goto decline;
	if (hold_open(WINDOW_ENTER))
		count_held(WINDOW_ENTER,
			   *(volatile __u64 *)&h->gate & GATE_FLAGS & ~(__u64)(GATE_UNTIED | GATE_TOUCHED));
	hs->state = HANDSHAKE_ENTERED;
	journal_half(h->self.cookie, JOURNAL_CONNECT, REASON_fast, 0);
	return 0;
decline:
	/* the handshake stays for the server's half, which learns too; STATE_CB takes it away if that never comes */
	count_reason(reason);
	journal_socket(ops, JOURNAL_CONNECT, reason, hs->server_cookie);
	hs->state = HANDSHAKE_DECLINED;
	return 0;
}

/* The client entered and the server will not: nothing was ever redirected to or from it, so it can just go. */
static __always_inline void take_out_client(const struct half_key *client)
{
	struct half_key key = *client;
	struct half *h HELD = hold(&key);

	if (!h)
		return;
	shut_gate(h, GATE_PEER_LEAVING | GATE_LEFT);
	bpf_map_delete_elem(&sockets, &key);
}

/*
 * Who can see or guess initial sequence numbers can make a request socket that carries them. So the packets must prove
 * that they were made by the other end's own socket: each socket gives all its packets one random number (sk_txhash,
 * skb->hash), which stays with a packet for as long as it stays in this kernel, goes over no wire, and cannot be set
 * from userspace. The ACK that made the server's socket carried the client's, the SYN-ACK that the client got the server's.
 */
static __always_inline bool is_proven(struct sock *client, __u64 client_cookie, struct sock *server)
{
	__u32 from_client, from_server;

	if (!bpf_core_type_exists(struct rps_sock_flow_table))
		return true; /* a kernel without CONFIG_RPS does not remember it */
	from_client = BPF_CORE_READ(client, sk_txhash);
	from_server = BPF_CORE_READ(server, sk_txhash);
	return from_client && from_client == BPF_CORE_READ(server, __sk_common.skc_rxhash) &&
	       from_server == BPF_CORE_READ(client, __sk_common.skc_rxhash) && cookie_of(client) == client_cookie;
}

__noinline int pair_passive(struct bpf_sock_ops *ops)
{
	struct sock *sk = kernel_sock(ops);
	struct half_key client_key = {};
	struct kind_key kind = {};
	struct half *h HELD = NULL, *client HELD = NULL;
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
	if (!hs) {
		journal_socket(ops, JOURNAL_ACCEPT, REASON_elsewhere, 0);
		return 0;
	}
	seen = *hs;
	if (seen.state == HANDSHAKE_PUBLISHED || seen.state == HANDSHAKE_AMBIGUOUS || seen.server_isn != server_isn ||
	    seen.server_cookie != bpf_get_socket_cookie(ops)) {
		journal_socket(ops, JOURNAL_ACCEPT,
			       seen.state == HANDSHAKE_AMBIGUOUS ? REASON_ambiguous : REASON_elsewhere, 0);
		return 0;
	}
	/* taking it away makes a late ACTIVE (Fast Open) find nothing and a second PASSIVE (simultaneous open) too */
	bpf_map_delete_elem(&handshakes, &isn);

	workload = find_workload(cgroup_of(sk), &w);
	if (!w)
		return 0;
	kind.cgroup = cgroup_id_of(sk);
	kind.port = ops->local_port;
	kind.role = ROLE_SERVER;
	reason = observe(ops, w, &kind);
	if (reason == REASON_fast)
		reason = refuse(sk, &kind);
	if (reason == REASON_fast)
		reason = judge(w, &kind);
	if (w->draining)
		reason = REASON_detach;

	client_key.cookie = seen.client_cookie;
	client_key.generation = seen.client_generation;
	if (seen.state != HANDSHAKE_ENTERED) {
		if (seen.state == HANDSHAKE_ANNOUNCED)
			reason = REASON_out_of_order;
		if (reason == REASON_fast)
			reason = REASON_peer_declined;
		count_reason(reason);
		journal_socket(ops, JOURNAL_ACCEPT, reason, seen.client_cookie);
		return 0;
	}
	if (reason != REASON_fast)
		goto decline;
	client = hold(&client_key); /* its record stays its own while it is tied */
	if (!client) {
		reason = REASON_peer_missing; /* closed already */
		goto decline;
	}
	/* its record holds what its own socket said: the handshake's may have become another's meanwhile */
	if (client->isn_local != isn || client->isn_remote != server_isn ||
	    !is_proven((void *)client->sk, client_key.cookie, sk)) {
		reason = REASON_unproven;
		goto decline;
	}
	h = new_half(ops, sk, ROLE_SERVER, workload, w);
	if (!h) {
		reason = REASON_map_full;
		goto decline;
	}
	if (settings.fionread && (client->eligibility == ELIGIBILITY_SAFE || w->eligibility == ELIGIBILITY_SAFE)) {
		if (client->sent.tcp_messages) {
			reason = REASON_not_drained; /* it sent before this socket was there: those bytes came by TCP */
			discard(h);
			goto decline;
		}
		make_strict(client);
		make_strict(h);
	}
	h->isn_local = server_isn;
	h->isn_remote = isn;
	h->peer = client_key;
	h->peer_sk = client->sk;
	reason = enter(ops, h);
	if (reason != REASON_fast)
		goto decline;

	if (hold_open(WINDOW_TIE))
		count_held(WINDOW_TIE,
			   *(volatile __u64 *)&client->gate & GATE_FLAGS & ~(__u64)(GATE_UNTIED | GATE_TOUCHED));
	/* Tie: what a verdict reads is written before its gate opens (the atomics are full barriers). */
	client->peer = h->self;
	client->peer_sk = (__u64)sk;
	know_each_other(client, h);
	gate_clear(h, GATE_UNTIED);
	if (gate_clear(client, GATE_UNTIED) & (GATE_SHUT & ~GATE_UNTIED))
		shut_gate(h, GATE_PEER_LEAVING); /* it closed or left meanwhile: nothing may be queued to it */
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t)
		t->pairs++;
	flow_paired(h->peer_workload, h->workload, 0);
	journal_half(h->self.cookie, JOURNAL_ACCEPT, REASON_fast, 0);
	journal_half(h->self.cookie, JOURNAL_PAIRED, REASON_fast, 0);
	return 0;
decline:
	count_reason(reason);
	journal_socket(ops, JOURNAL_ACCEPT, reason, client_key.cookie);
	take_out_client(&client_key);
	return 0;
}
