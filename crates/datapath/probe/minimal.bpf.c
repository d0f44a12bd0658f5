// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The least that can be called a sockmap: `shared-socket check` puts the sockets of its own throw-away connections in
 * and looks at what an application sees. Keys are ports, which tell enough apart inside one network namespace; nothing
 * else would be right outside of it. Needs no BTF, so that it loads wherever sockhashes exist.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* As one end sees it, both in host order. */
struct minimal_key {
	__u32 local_port;
	__u32 remote_port;
};

/* W: userspace (redirect), the program (the rest).  R: both. */
struct minimal_state {
	__u32 redirect; /* 1: into the peer's ingress queue; 0: every message goes by TCP */
	__u32 pad;
	__u64 messages;
	__u64 redirected;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 256);
	__type(key, struct minimal_key);
	__type(value, __u64);
} minimal_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct minimal_state);
} minimal_states SEC(".maps");

SEC("sk_msg")
int minimal_verdict(struct sk_msg_md *msg)
{
	struct minimal_key peer = {};
	struct minimal_state *state;
	__u32 zero = 0;

	state = bpf_map_lookup_elem(&minimal_states, &zero);
	if (!state)
		return SK_PASS;
	__sync_fetch_and_add(&state->messages, 1);
	if (!state->redirect)
		return SK_PASS;
	peer.local_port = bpf_ntohl(msg->remote_port);
	peer.remote_port = msg->local_port;
	if (bpf_msg_redirect_hash(msg, &minimal_sockets, &peer, BPF_F_INGRESS) == SK_PASS)
		__sync_fetch_and_add(&state->redirected, 1);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
