// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The sockops hook: which callback leads where. Always 1, and never a reply: other programs' replies stay theirs. */
#include "sockops.h"

SEC("sockops")
int shared_socket_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		close_reused(ops);
		announce_connect(ops);
		break;
	case BPF_SOCK_OPS_RWND_INIT:
		announce_syn(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		pair_active(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		pair_passive(ops);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		close_state(ops);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		leave_on_ack(ops);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		close_reused(ops);
		break;
	default:
		break;
	}
	return 1;
}
