// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * sk_msg: what `shared-socket capture` sees. An object of its own, which is loaded while somebody captures: it takes a slot of
 * `verdicts` before the last, copies each message to a ring buffer and goes on to the next slot, whatever happens. It changes
 * nothing: neither the message nor a record.
 *
 * The bytes of a message lie in some elements of a scatterlist, of which sk_msg shows a program the first.
 * bpf_msg_pull_data() would show all, but by moving them to pages that it allocates: an application could tell. So they are
 * probe-read where they lie. The address of a page's bytes is a linear function of the address of its struct page, as the
 * kernel keeps those in one array (vmemmap); the first element, of which both are known, tells which.
 *
 * A message that is longer than 32 KiB, or lies in several elements, comes in pieces. sk_msg runs under the sender's
 * socket lock: the pieces of one half come in order, and a message's before those of what answers it.
 */
#include "maps.h"

const volatile struct tap_settings tap = {};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} tapped SEC(".maps");

/* W: userspace.  R: here. What is not in it is copied, and its first piece asks for a choice. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tap_choice);
} tap_choices SEC(".maps");

/* CLOCK_MONOTONIC, nanoseconds: nothing is copied after that. W: userspace, again and again while it lives.  R: here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} tap_lease SEC(".maps");

/* W: here.  R: userspace. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tap_counts);
} tap_counts SEC(".maps");

/*
 * Where the bytes of the page would be whose struct page is at 0: what is added to (address of a struct page) * (size of a
 * page / size of a struct page). 0: not known yet. Each writer writes the same.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} tap_anchor SEC(".maps");

#define PIECE_MOST 32768
#define ELEMENTS_MOST 48 /* MAX_MSG_FRAGS is 17, or what CONFIG_MAX_SKB_FRAGS says, 45 at most */

/*
 * A program reserves room whose size is a constant: the least of these that holds the bytes. `length` is at most `room`;
 * compared where the verifier sees it.
 */
#define RESERVE(room)                                                                                                  \
	if (length <= (room)) {                                                                                        \
		__u32 bytes = length;                                                                                  \
                                                                                                                       \
		t = bpf_ringbuf_reserve(&tapped, sizeof(*t) + (room), 0);                                              \
		if (!t)                                                                                                \
			goto lost;                                                                                     \
		barrier_var(bytes);                                                                                    \
		if (bytes > (room))                                                                                    \
			bytes = (room);                                                                                \
		if (bytes && bpf_probe_read_kernel(t + 1, bytes, (void *)from)) {                                      \
			bytes = 0;                                                                                     \
			flags = TAPPED_HIDDEN;                                                                         \
		}                                                                                                      \
		t->length = bytes;                                                                                     \
		goto describe;                                                                                         \
	}

/* `place`: bytes of the message, and in the upper half those before this piece. 1: its bytes are there. */
__noinline int tap_piece(__u64 cookie, __u64 from, __u64 place, __u32 length, __u32 flags)
{
	struct half *h = bpf_map_lookup_elem(&halves, &cookie);
	__u32 zero = 0;
	struct tap_counts *counts = bpf_map_lookup_elem(&tap_counts, &zero);
	struct tapped *t;

	if (!h || !counts)
		return 0;
	RESERVE(0)
	RESERVE(256)
	RESERVE(1024)
	RESERVE(4096)
	RESERVE(16384)
	RESERVE(PIECE_MOST)
	return 0;

describe:
	t->time_ns = bpf_ktime_get_ns();
	t->cookie = cookie;
	t->peer_cookie = h->gate & GATE_UNTIED ? 0 : h->peer.cookie;
	t->number = h->sent.fast_messages + h->sent.tcp_messages;
	t->offset = h->sent.fast_bytes + h->sent.tcp_bytes;
	t->workload = h->workload;
	t->cgroup = h->cgroup;
	t->peer_workload = h->peer_workload;
	t->peer_cgroup = h->peer_cgroup;
	t->local = h->local;
	t->remote = h->remote;
	t->generation = h->self.generation;
	t->netns = h->netns;
	t->isn_local = h->isn_local;
	t->isn_remote = h->isn_remote;
	t->size = (__u32)place;
	t->at = place >> 32;
	t->role = h->role;
	t->reason = h->reason;
	t->flags = flags;
	t->pad = 0;
	bpf_ringbuf_submit(t, BPF_RB_NO_WAKEUP); /* userspace looks often enough; waking it would cost the sender */
	counts->pieces++;
	if (!(flags & TAPPED_HIDDEN))
		return 1;
	counts->hidden++;
	return 0;

lost:
	counts->lost++;
	return 1;
}

/* Bytes of a page / bytes of a struct page; 0: it goes not without a rest, and no address can be told. */
static __always_inline __u64 scale_of_pages(void)
{
	__u32 size = bpf_core_type_size(struct page);

	return size && !(tap.page_bytes % size) ? tap.page_bytes / size : 0;
}

/* Where the page of an element (its address) would have its bytes if `tap_anchor` were 0. */
static __always_inline __u64 place_of(struct scatterlist *sge)
{
	return (BPF_CORE_READ(sge, page_link) & ~3UL) * scale_of_pages() + BPF_CORE_READ(sge, offset);
}

/*
 * One element (its address) of a message, whose bytes before it are the upper half of `place`, as for tap_piece(). How many are
 * copied with it; 0: no more can be. Global, and all are scalars, so that the verifier looks at it once and not for each round.
 */
__noinline __u32 tap_element(__u64 cookie, __u64 element, __u64 place, __u32 most)
{
	struct scatterlist *sge = (void *)element;
	__u32 zero = 0, at = place >> 32, length = BPF_CORE_READ(sge, length), taken;
	__u64 *anchor = bpf_map_lookup_elem(&tap_anchor, &zero);

	if (!anchor || at >= most)
		return 0;
	if (length > most - at)
		length = most - at;
	/* an element is no longer than the pages that the kernel takes at once, 32 KiB; those of a caller may be */
	taken = length > PIECE_MOST ? PIECE_MOST : length;
	if (taken && !tap_piece(cookie, *anchor + place_of(sge), place, taken, at + taken < most ? TAPPED_MORE : 0))
		return 0;
	return taken < length ? 0
			      : at + taken; /* else the rest is lost to who captures: TAPPED_MORE, and none follows */
}

/* `message`: the address of the struct sk_msg. */
static __always_inline void copy_message(__u64 message, __u64 cookie, __u32 size, __u32 most)
{
	struct sk_msg *m = (void *)message;
	__u32 element = bpf_core_type_size(struct scatterlist), start = BPF_CORE_READ(m, sg.start), zero = 0;
	__u32 ring = bpf_core_field_size(m->sg.data) / element - 1, at = 0, i;
	__u64 list = message + bpf_core_field_offset(m->sg.data), data = (__u64)BPF_CORE_READ(m, data);
	__u64 *anchor = bpf_map_lookup_elem(&tap_anchor, &zero);

	if (!anchor)
		return;
	if (!*anchor && data && scale_of_pages())
		*anchor = data - place_of((void *)(list + (__u64)start * element));
	if (!most || !*anchor) {
		tap_piece(cookie, 0, size, 0, most ? TAPPED_HIDDEN : 0);
		return;
	}
	for (i = 0; i < ELEMENTS_MOST && at < most; i++) {
		__u32 index = start + i;

		if (index >= ring)
			index -= ring;
		at = tap_element(cookie, list + (__u64)index * element, (__u64)at << 32 | size, most);
		if (!at)
			return;
	}
}

static __always_inline void look(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	__u64 *until, cookie, sent, message = 0;
	struct sk_msg_md *context;
	struct tap_choice *choice;
	struct tap_counts *counts;
	struct tcp_sock *tp;
	struct half *h;
	__u32 zero = 0, size = msg->size, most = size;

	until = bpf_map_lookup_elem(&tap_lease, &zero);
	if (!until || !sk || bpf_ktime_get_ns() > *until)
		return; /* who captures is gone, and had no time to take this out */
	counts = bpf_map_lookup_elem(&tap_counts, &zero);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || !counts)
		return;
	cookie = tp->inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter;
	h = bpf_map_lookup_elem(&halves, &cookie);
	if (!h || !(tap.roles & 1U << (h->role & 1)))
		return;
	choice = bpf_map_lookup_elem(&tap_choices, &cookie);
	if (choice && choice->generation == h->self.generation && !choice->wanted)
		return;
	if (bpf_map_lookup_elem(&withheld, &h->workload) || bpf_map_lookup_elem(&withheld, &h->peer_workload)) {
		counts->withheld++;
		return;
	}
	sent = h->sent.fast_bytes + h->sent.tcp_bytes;
	if (most > tap.snaplen)
		most = tap.snaplen;
	if (sent >= tap.first_bytes)
		most = 0;
	else if (most > tap.first_bytes - sent)
		most = tap.first_bytes - sent;
	counts->messages++;
	/* the context is the struct sk_msg; read back from the stack its address is a number, with which one can count */
	context = msg;
	bpf_probe_read_kernel(&message, sizeof(message), &context);
	copy_message(message, cookie, size, most);
}

SEC("sk_msg")
int shared_socket_tap(struct sk_msg_md *msg)
{
	look(msg);
	bpf_tail_call(msg, &verdicts, tap.next);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
