// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/sock_release: the last descriptor is going. Runs in inet_release, before sock_map_close unlinks the socket and
 * throws away what is queued to it, so a peer that sends from now on sends by TCP and gets the RST that TCP would give.
 * What remains: a message whose verdict was before this mark and whose delivery is after the unlink. It is lost, as it
 * is in TCP when it crosses a close, but the sender may see EPIPE one call earlier than TCP's ECONNRESET.
 */
#include "leave.bpf.h"

SEC("cgroup/sock_release")
int shared_socket_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct half *h = bpf_map_lookup_elem(&halves, &cookie), *peer;
	struct observed *o = bpf_sk_storage_get(&observations, ctx, NULL, 0);
	struct half_key peer_key;

	if (o)
		count_good(o);
	if (!h)
		return 1;
	peer_key = h->peer;
	peer = half_of(&peer_key);
	if (peer)
		shut_gate(peer, GATE_PEER_LEAVING);
	if (__sync_fetch_and_or(&h->gate, GATE_RELEASED | GATE_CLOSING) & GATE_DEAD)
		retire(h); /* TCP_CLOSE came first; the kernel unlinks the socket right after this */
	return 1;
}
