// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The comparator of `shared-socket bench`: the sockmap accelerator that most projects ship, kept to its textbook form.
 *
 * Every established IPv4 socket of the cgroup enters a sockhash under its 4-tuple; every message looks up the reversed
 * tuple and, when something is there, goes straight into that socket's ingress queue. It has the hazards H1 to H17 of
 * docs/hazards.md (no handoff, no bound of the queue, keys that a NAT breaks and that two namespaces can share): it is here to
 * be measured, never to be used.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TUPLE_AF_INET 2
#define TUPLE_MAX_SOCKETS 65536

/* Addresses in network order, ports in host order, all as seen from one end. */
struct tuple {
	__u32 local_ip;
	__u32 remote_ip;
	__u32 local_port;
	__u32 remote_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, TUPLE_MAX_SOCKETS);
	__type(key, struct tuple);
	__type(value, __u64);
} tuple_sockets SEC(".maps");

SEC("sockops")
int tuple_sockops(struct bpf_sock_ops *ctx)
{
	struct tuple key = {};

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (ctx->family != TUPLE_AF_INET)
		return 1;

	key.local_ip = ctx->local_ip4;
	key.remote_ip = ctx->remote_ip4;
	key.local_port = ctx->local_port;
	key.remote_port = bpf_ntohl(ctx->remote_port);
	bpf_sock_hash_update(ctx, &tuple_sockets, &key, BPF_NOEXIST);
	return 1;
}

SEC("sk_msg")
int tuple_msg(struct sk_msg_md *msg)
{
	struct tuple peer = {};

	if (msg->family != TUPLE_AF_INET)
		return SK_PASS;

	peer.local_ip = msg->remote_ip4;
	peer.remote_ip = msg->local_ip4;
	peer.local_port = bpf_ntohl(msg->remote_port);
	peer.remote_port = msg->local_port;
	/* A miss leaves no target behind, and the message goes by TCP. */
	bpf_msg_redirect_hash(msg, &tuple_sockets, &peer, BPF_F_INGRESS);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
