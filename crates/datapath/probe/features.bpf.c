// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * One program a feature; `shared-socket check` loads each of them alone, so that a kernel which lacks one says so about
 * that one. The names are the rows of crates/shared-socket/src/check/features.rs.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} feature_words SEC(".maps");

SEC("sockops")
int feature_sockops(struct bpf_sock_ops *ctx)
{
	return 1;
}

SEC("sk_msg")
int feature_sk_msg(struct sk_msg_md *ctx)
{
	return SK_PASS;
}

SEC("cgroup/sock_release")
int feature_sock_release(struct bpf_sock *ctx)
{
	return 1;
}

SEC("cgroup/setsockopt")
int feature_setsockopt(struct bpf_sockopt *ctx)
{
	return 1;
}

SEC("cgroup/getsockopt")
int feature_getsockopt(struct bpf_sockopt *ctx)
{
	return 1;
}

SEC("tp_btf/sock_recv_length")
int feature_sock_recv_length(void *ctx)
{
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int feature_rcv_space_adjust(void *ctx)
{
	return 0;
}

SEC("fentry/tcp_splice_read")
int feature_splice_read(void *ctx)
{
	return 0;
}

SEC("fentry/tcp_getsockopt")
int feature_tcp_getsockopt(void *ctx)
{
	return 0;
}

SEC("iter/sockmap")
int feature_iter_sockmap(void *ctx)
{
	return 0;
}

SEC("iter/tcp")
int feature_iter_tcp(void *ctx)
{
	return 0;
}

/* Fetching atomics, on which the leave protocol stands. */
SEC("sk_msg")
int feature_atomics(struct sk_msg_md *ctx)
{
	__u32 zero = 0;
	__u64 *word = bpf_map_lookup_elem(&feature_words, &zero);

	if (word && __sync_fetch_and_or(word, 1) & 2)
		__sync_fetch_and_and(word, ~1ULL);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
