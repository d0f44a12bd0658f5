/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The steps of the sockops hook, a file each; sockops.bpf.c calls them. */
#ifndef SHARED_SOCKET_SOCKOPS_H
#define SHARED_SOCKET_SOCKOPS_H

#include "hazard.bpf.h"

int announce_connect(struct bpf_sock_ops *ops);
int announce_syn(struct bpf_sock_ops *ops);
int pair_active(struct bpf_sock_ops *ops);
int pair_passive(struct bpf_sock_ops *ops);
int close_state(struct bpf_sock_ops *ops);
int close_reused(struct bpf_sock_ops *ops);
int leave_on_ack(struct bpf_sock_ops *ops);

/* bpf_sock_ops.sk is NULL for a request socket; the kernel's own context has it, on every kernel. */
static __always_inline struct sock *kernel_sock(struct bpf_sock_ops *ops)
{
	return BPF_CORE_READ((struct bpf_sock_ops_kern *)ops, sk);
}

/* bpf_sock_ops_cb_flags_set assigns: keep what other programs have set. */
static __always_inline void add_callbacks(struct bpf_sock_ops *ops, int flags)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | flags);
}

/* Not from a socket with a psock: another generation of ours, or another product, may count on them. */
static __always_inline void drop_callbacks(struct bpf_sock_ops *ops, int flags)
{
	if (psock_of(kernel_sock(ops)))
		return;
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~flags);
}

/* Proven by connections that ran on TCP (learn.bpf.c), or declared by the owner: REASON_fast. Else why not. */
static __always_inline enum reason judge(const struct workload *w, const struct kind_key *key)
{
	struct kind *kind;

	if (bpf_map_lookup_elem(&ports, &key->port))
		return REASON_port;
	if (w->eligibility == ELIGIBILITY_ALL)
		return REASON_fast;
	kind = bpf_map_lookup_elem(&kinds, key);
	if (kind) {
		__u32 hazards = kind->hazards;

		if (!settings.fionread)
			hazards &= ~HAZARD_stream;
		if (!(settings.fionread & FIONREAD_MISSES_FAST))
			hazards &= ~HAZARD_peek;
		if (hazards)
			return hazard_reason(hazards);
	}
	return kind && kind->good >= settings.learn_connections ? REASON_fast : REASON_learning;
}

/* Reasons to leave a socket alone that hold in every mode. Options that only TCP serves speak for the kind as well. */
static __always_inline enum reason refuse(struct sock *sk, const struct kind_key *kind)
{
	__u32 options;

	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock))
		return REASON_kernel_socket;
	if (is_mptcp(sk))
		return REASON_mptcp;
	options = options_of(sk);
	if (options) {
		if (kind)
			mark_kind(kind, options, 0);
		return hazard_reason(options);
	}
	if (BPF_CORE_READ(sk, sk_user_data))
		return REASON_insert_failed;
	return REASON_fast;
}

/* Whose flow it is, before it can be retired. */
static __always_inline void know_each_other(struct half *a, struct half *b)
{
	a->peer_workload = b->workload;
	a->peer_cgroup = b->cgroup;
	b->peer_workload = a->workload;
	b->peer_cgroup = a->cgroup;
}

/* Port and address of the other end, in the form of a kind. */
static __always_inline void fill_destination(struct bpf_sock_ops *ops, struct kind_key *kind)
{
	__u32 *addr = (__u32 *)kind->addr;

	kind->port = bpf_ntohl(ops->remote_port);
	if (ops->family == AF_INET6) {
		addr[0] = ops->remote_ip6[0];
		addr[1] = ops->remote_ip6[1];
		addr[2] = ops->remote_ip6[2];
		addr[3] = ops->remote_ip6[3];
	} else {
		addr[0] = ops->remote_ip4;
	}
}

/* What is known of a half from its socket alone; its gate is shut, and `self` is written last by the caller. */
static __always_inline void fill_half(struct half *h, struct sock *sk, __u8 role, __u64 workload,
				      const struct workload *w)
{
	h->sk = (__u64)sk;
	h->workload = workload;
	h->cgroup = cgroup_id_of(sk);
	h->eligibility = w->eligibility;
	h->established_ns = bpf_ktime_get_ns();
	h->tcp_due = bpf_jiffies64() + settings.keepalive_jiffies;
	h->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	h->role = role;
}

/* Whether connections of a kind carry fewer messages than are worth it. */
static __always_inline bool lives_short(const struct kind *kind)
{
	return kind && kind->lives >= 16 && kind->messages < settings.min_messages << 4;
}

/*
 * Entering and leaving the sockhash costs more than a handful of messages gains (and RCU keeps the socket's memory past
 * close). A kind of short lives stays on TCP; one in 64 is let in, to see whether it has changed.
 */
static __always_inline bool is_short_lived(const struct kind_key *key)
{
	struct kind *kind;

	if (!settings.min_messages)
		return false;
	kind = bpf_map_lookup_elem(&kinds, key);
	return lives_short(kind) && ++kind->skipped & 63;
}

#endif
