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

#endif
