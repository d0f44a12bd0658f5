// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/connect4, connect6: a socket that was disconnected while a message of its old peer was being delivered. That
 * sender holds the old psock; until it lets go, the socket still receives through that psock, and what is queued there
 * now belongs to the connection before. The kernel offers no way to take it away, and no program may wait here, where
 * the socket's lock is held that the sender needs. So this one connect fails: an application hears ECONNREFUSED (EPERM
 * before Linux 5.18) rather than bytes of another connection. A moment later the same connect succeeds, on TCP.
 */
#include "leave.bpf.h"

#define ECONNREFUSED 111

static __always_inline int judge_connect(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 *tainted_sk;

	if (!sk)
		return 1;
	tainted_sk = bpf_sk_storage_get(&tainted, sk, NULL, 0);
	if (!tainted_sk || !psock_of((struct sock *)*tainted_sk))
		return 1;
	count_reason(REASON_reused);
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
		bpf_set_retval(-ECONNREFUSED);
	return 0;
}

SEC("cgroup/connect4")
int shared_socket_connect4(struct bpf_sock_addr *ctx)
{
	return judge_connect(ctx);
}

SEC("cgroup/connect6")
int shared_socket_connect6(struct bpf_sock_addr *ctx)
{
	return judge_connect(ctx);
}
