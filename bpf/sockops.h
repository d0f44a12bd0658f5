/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The steps of the sockops hook, a file each; sockops.bpf.c calls them. */
#ifndef SHARED_SOCKET_SOCKOPS_H
#define SHARED_SOCKET_SOCKOPS_H

#include "leave.bpf.h"

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

static __always_inline void drop_callbacks(struct bpf_sock_ops *ops, int flags)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~flags);
}

/* Proven by connections that ran on TCP (learn.bpf.c), or declared by the owner. */
static __always_inline bool is_eligible(const struct workload *w, const struct kind_key *key)
{
	struct kind *kind;

	if (w->eligibility == ELIGIBILITY_ALL)
		return true;
	kind = bpf_map_lookup_elem(&kinds, key);
	return kind && !kind->hazards && kind->good >= settings.learn_connections;
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
	if (!kind || kind->lives < 16 || kind->messages >= settings.min_messages << 4)
		return false;
	return ++kind->skipped & 63;
}

#endif
