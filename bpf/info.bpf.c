// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/getsockopt: runs after the kernel has answered. TCP_INFO counts what TCP carried; what was redirected is added
 * here, so that an application that measures its traffic reads what it would read on plain TCP (H8). Bytes are exact; a
 * message counts as one segment. Nothing else is touched, and an error stays an error.
 */
#include "common.bpf.h"

#define TCP_INFO 11

/* struct tcp_info of the UAPI, which is only ever appended to: offsets of what is added to. */
enum info_offset {
	INFO_bytes_acked = 120,
	INFO_bytes_received = 128,
	INFO_segs_out = 136,
	INFO_segs_in = 140,
	INFO_data_segs_in = 152,
	INFO_data_segs_out = 156,
	INFO_delivered = 192,
	INFO_bytes_sent = 200,
};

/* The application's struct may be older and shorter than the kernel's. */
#define ADD(type, name, more)                                                                                          \
	do {                                                                                                           \
		if (value + INFO_##name + sizeof(type) <= end && length >= INFO_##name + sizeof(type))                 \
			*(type *)(value + INFO_##name) += (more);                                                      \
	} while (0)

SEC("cgroup/getsockopt")
int shared_socket_info(struct bpf_sockopt *ctx)
{
	void *value = ctx->optval, *end = ctx->optval_end;
	struct bpf_sock *bsk = ctx->sk;
	struct half_key peer_key;
	struct counters got = {};
	struct half *h, *peer;
	__u32 length;
	__u64 cookie;

	/* as in option.bpf.c: what is longer than a page is the kernel's own answer, not a copy of it */
	if (ctx->optlen > 0 && ctx->optlen > (long)(end - value)) {
		ctx->optlen = 0;
		return 1;
	}
	if (ctx->level != SOL_TCP || ctx->optname != TCP_INFO || ctx->retval)
		return 1;
	if (!bsk || bsk->protocol != IPPROTO_TCP)
		return 1;
	length = ctx->optlen;
	cookie = cookie_of(BPF_CORE_READ((struct bpf_sockopt_kern *)ctx, sk));
	h = cookie ? bpf_map_lookup_elem(&halves, &cookie) : NULL;
	if (!h)
		return 1;
	peer_key = h->peer;
	peer = half_of(&peer_key);
	got.fast_bytes = peer ? peer->sent.fast_bytes : h->got.fast_bytes;
	got.fast_messages = peer ? peer->sent.fast_messages : h->got.fast_messages;
	ADD(__u64, bytes_sent, h->sent.fast_bytes);
	ADD(__u64, bytes_acked, h->sent.fast_bytes);
	ADD(__u64, bytes_received, got.fast_bytes);
	ADD(__u32, segs_out, (__u32)h->sent.fast_messages);
	ADD(__u32, data_segs_out, (__u32)h->sent.fast_messages);
	ADD(__u32, delivered, (__u32)h->sent.fast_messages);
	ADD(__u32, segs_in, (__u32)got.fast_messages);
	ADD(__u32, data_segs_in, (__u32)got.fast_messages);
	return 1;
}
