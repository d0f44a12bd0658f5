// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* sk_msg: what happens to a message. Runs in tcp_bpf_sendmsg under the sender's socket lock. */
#include "adopt.bpf.h"
#include "budget.bpf.h"
#include "call.bpf.h"
#include "clean.bpf.h"
#include "hazard.bpf.h"

/*
 * TCP's memory and its marks (tcp_mem) by way of the socket's struct proto: kernels without CONFIG_KALLSYMS_ALL do not list
 * the variables themselves.
 */
static __always_inline long tcp_memory(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_prot, memory_allocated, counter);
}

/* tcp_mem's second mark is passed: the next redirect might get ENOMEM, which TCP would answer by waiting. */
static __always_inline bool is_memory_tight(struct sock *sk)
{
	unsigned long *since = BPF_CORE_READ(sk, __sk_common.skc_prot, memory_pressure), value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), since);
	return value;
}

/* tcp_mem's first mark is passed: TCP raises no SO_RCVBUF any more for what has come already (tcp_clamp_window). */
static __always_inline bool is_rcvbuf_stuck(struct sock *sk)
{
	long *marks = BPF_CORE_READ(sk, __sk_common.skc_prot, sysctl_mem), first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), marks);
	return tcp_memory(sk) >= first;
}

#define MEMCG_DEPTH 8
#define MEMCG_RESERVE 128 /* pages kept clear of a limit: TCP's own share, and what others charge meanwhile */
#define PAGE_BYTES 4096	  /* on larger pages the answer is too careful, never too bold */

/*
 * Pages that a counter (its address) and those above it still let in. Global, as is every loop of the verdict: the
 * verifier looks at it once, by itself. A static function is followed at each call, and Linux 6.1 takes each number of
 * rounds as a different path through all that follows: 800,000 steps instead of some thousand, of 1,000,000 allowed.
 */
__noinline long room_below(__u64 address)
{
	struct page_counter *counter = (void *)address;
	long room = 1L << 30;
	int i;

	for (i = 0; i < MEMCG_DEPTH && counter; i++) {
		long left = BPF_CORE_READ(counter, max) - BPF_CORE_READ(counter, usage.counter);

		if (left < room)
			room = left;
		counter = BPF_CORE_READ(counter, parent);
	}
	return room;
}

/* The v1 controller counts TCP's memory apart. A function of its own: newer kernels may be built without the member. */
static __noinline long tcp_room(struct mem_cgroup *memcg)
{
	if (!bpf_core_field_exists(memcg->tcpmem) || !BPF_CORE_READ(memcg, tcpmem_active))
		return 1L << 30;
	return room_below((__u64)&memcg->tcpmem);
}

/* Bytes that the peer's memory cgroup lets in; a redirect past it would get ENOMEM where TCP waits. */
static __always_inline long memcg_room(struct sock *peer)
{
	struct mem_cgroup *memcg = BPF_CORE_READ(peer, sk_memcg);
	long room, tcp;

	if (!memcg)
		return 1L << 30;
	room = room_below((__u64)&memcg->memory);
	tcp = tcp_room(memcg);
	if (tcp < room)
		room = tcp;
	room -= MEMCG_RESERVE;
	if (room > (1L << 18))
		room = 1L << 18;
	return room * PAGE_BYTES;
}

#define GRANT_LEAST 4 /* KiB and messages of the first grant; it doubles with use */
#define GRANT_DOUBLINGS 12
#define GRANT_IDLE_JIFFIES 16 /* grants that come more rarely shrink */

/* Where the sweep finds a half that holds a reservation. No place free: it is settled at its own next look only. */
static __always_inline void register_reserver(struct half *reader)
{
	__u64 cookie = reader->self.cookie;
	__u32 start = (__u32)((cookie * 0x9E3779B97F4A7C15ULL) >> 32), i;

	for (i = 0; i < 8; i++) {
		__u32 slot = (start + i) & settings.reserver_mask;
		__u64 *place = bpf_map_lookup_elem(&reservers, &slot);

		if (place && !*place && take_place(place, cookie)) {
			reader->slot = slot + 1;
			return;
		}
	}
}

/*
 * How large a grant of credit is. It follows the use: one that lasts for less than a tick is doubled the next time, so
 * that a busy sender looks about once a tick, and thousands of idle ones hold little of the budget of all.
 */
static __always_inline void size_grant(struct half *h, __s32 *bytes, __s32 *messages)
{
	__u32 now = (__u32)bpf_jiffies64(), ticks = now - h->refilled;

	if (ticks <= 1) {
		if (h->grant < GRANT_DOUBLINGS)
			h->grant++;
	} else if (ticks > GRANT_IDLE_JIFFIES) {
		h->grant >>= 1;
	}
	h->refilled = now;
	*messages = GRANT_LEAST << (h->grant & 15);
	*bytes = *messages << 10;
}

#define QUEUE_SHIFT 1
#define LONE_SHIFT 2

struct bounds {
	__s32 queue; /* bytes that may wait */
	__s32 lone;  /* bytes of a message that waits alone */
};

/*
 * Where redirected bytes count in sk_rmem_alloc, no more may wait than by TCP, so that TCP drops no segment because of
 * them. TCP sends again what was dropped, but not a RST: its reader would wait for ever.
 * - What arrives while the reader is in a call waits in the socket's backlog, which takes nothing when sk_rmem_alloc is
 *   above twice SO_RCVBUF and a little (tcp_add_backlog). So less than SO_RCVBUF waits, and what comes by TCP on top of
 *   that is within SO_RCVBUF too.
 * - A segment behind another is dropped when sk_rmem_alloc is above SO_RCVBUF and that cannot grow, because it was set or
 *   TCP holds more memory than it likes (tcp_prune_queue). It shuts the window, and a RST behind it is outside of that. TCP
 *   may always send what its window allows, so there is room for that: a quarter more, for what its packets take besides
 *   their data. (A SO_RCVBUF that has grown to tcp_rmem[2] cannot grow either; there the window is some megabytes.)
 *
 * Half of SO_RCVBUF, and a quarter for one message, as a stream shall begin on TCP: that raises SO_RCVBUF of a reader that
 * keeps up to some megabytes, and then there is room for the fast path. With more at the start a stream kept falling back
 * to a TCP whose window never grew (64 KiB, one core: 0.83 x TCP, and 3.0 x with these).
 *
 * A strict pair goes past both all the same (clean.bpf.h): the first stream of its kind, to a reader that does not keep up.
 */
static __always_inline void bound(const struct half *h, struct sock *peer, struct bounds *b)
{
	struct tcp_sock *tp = (void *)peer;
	/* who set SO_RCVBUF wants no more than that to wait, and a sender to notice */
	bool chosen = BPF_CORE_READ_BITFIELD_PROBED(peer, sk_userlocks) & SOCK_RCVBUF_LOCK;
	__s32 rcvbuf = BPF_CORE_READ(peer, sk_rcvbuf), window;

	b->queue = settings.budget_bytes;
	b->lone = 1 << 30;
	if (h->strict || !settings.rmem_counts) {
		if ((chosen || !settings.past_rcvbuf) && rcvbuf < b->queue)
			b->queue = rcvbuf;
		return;
	}
	if (rcvbuf >> QUEUE_SHIFT < b->queue)
		b->queue = rcvbuf >> QUEUE_SHIFT;
	b->lone = rcvbuf >> LONE_SHIFT;
	if (!chosen && !is_rcvbuf_stuck(peer))
		return;
	window = BPF_CORE_READ(tp, rcv_wup) + BPF_CORE_READ(tp, rcv_wnd) - BPF_CORE_READ(tp, rcv_nxt);
	if (window > 0)
		rcvbuf -= window + (window >> 2);
	if (rcvbuf < b->queue)
		b->queue = rcvbuf > 0 ? rcvbuf : 0;
	b->lone = b->queue;
}

/*
 * How much the peer may still be sent. Looked at only when the credit of the last look is used up, so that the usual
 * message costs two subtractions. Each grant is a part of what is free: the sum never exceeds the budget.
 */
static __always_inline enum reason refill(struct half *h, __u32 size)
{
	struct sock *peer = (void *)h->peer_sk;
	struct half_key peer_key = h->peer;
	struct half *reader HELD = hold(&peer_key);
	struct budget *total = total_budget();
	__s32 limit, bytes, messages;
	__u32 overdraft = 0;
	__s64 holds, cost, least, free;
	struct queue q;
	const void *ulp;
	struct bounds b;
	bool accepted;
	__u32 most;
	long room;

	/* what is left of the last credit is not kept: each way out of here goes by what was seen now */
	h->credit_bytes = 0;
	h->credit_messages = 0;
	if (!reader || !total)
		return REASON_peer_missing;
	ulp = BPF_CORE_READ((struct inet_connection_sock *)peer, icsk_ulp_ops);
	bound(h, peer, &b);
	limit = b.queue;
	room = memcg_room(peer);
	/*
	 * A child belongs to no memory cgroup before accept(), which then charges it for its sk_rmem_alloc (inet_csk_accept).
	 * Redirected bytes that are not in there would never be charged and yet be uncharged when they are read: the counter
	 * of the cgroup falls below what is used, and where Linux 5.10's falls below zero, the machine is "out of memory".
	 */
	accepted = settings.rmem_counts || is_accepted(peer);
	if (!look_at_queue(peer, h->peer.cookie, &q)) /* reads the cookie last */
		return REASON_peer_stale;
	if (ulp)
		return REASON_ulp;
	if (!accepted)
		return REASON_untied;
	/* A walk that reached the end knows; one that did not leaves the sender's own upper bound in force. */
	if (q.counted)
		h->queued_messages = q.messages;
	holds = (__s64)q.bytes + (__s64)h->queued_messages * MESSAGE_COST;

	if (is_memory_tight(peer) || room < (long)size) {
		reserve(reader, holds);
		return REASON_memory;
	}
	if (h->strict && q.bytes + (__s32)size > STREAM_BYTES) {
		stream_begins(h, reader);
		limit = limit > (1 << 28) ? limit : limit << OVERDRAFT_SHIFT;
		overdraft = OVERDRAFT_SHIFT;
	}
	most = settings.budget_messages << overdraft;
	/* where sk_rmem_alloc does not tell, bytes are known as far as the walk goes: no more messages than that may wait */
	if (!settings.rmem_counts && most > WALK_NODES)
		most = WALK_NODES;
	if ((__s32)size > b.lone || (q.bytes && q.bytes + (__s32)size > limit) || h->queued_messages >= most) {
		reserve(reader, holds);
		return REASON_backed_up;
	}

	size_grant(h, &bytes, &messages);
	if (bytes > (limit - q.bytes) >> 1)
		bytes = (limit - q.bytes) >> 1;
	if (bytes > room >> 2)
		bytes = room >> 2;
	if (bytes < (__s32)size)
		bytes = size;
	if (messages > (__s32)(most - h->queued_messages) >> 1)
		messages = (most - h->queued_messages) >> 1;
	if (h->strict && bytes > STREAM_BYTES - (overdraft ? 0 : q.bytes))
		bytes = STREAM_BYTES - (overdraft ? 0 : q.bytes); /* so that a stream is noticed */
	if (messages < 1)
		messages = 1;

	/* The budget of all: an eighth of what is free at most, but this one message if it fits at all. */
	free = ((__s64)settings.total_budget_kib << 10) - *(volatile __s64 *)&total->used;
	if (free < (__s64)settings.total_budget_kib << 8) {
		budget_sweep();
		free = ((__s64)settings.total_budget_kib << 10) - *(volatile __s64 *)&total->used;
	}
	free += *(volatile __s64 *)&reader->reserved - holds;
	least = (__s64)size + MESSAGE_COST;
	cost = (__s64)bytes + (__s64)messages * MESSAGE_COST;
	if (cost > free >> 3) {
		if (bytes > free >> 4)
			bytes = free >> 4;
		if (messages > free >> 14)
			messages = free >> 14;
		if (bytes < (__s32)size || messages < 1) {
			bytes = size;
			messages = 1;
		}
		cost = (__s64)bytes + (__s64)messages * MESSAGE_COST;
	}
	if (least > free) {
		reserve(reader, holds);
		return REASON_global_budget;
	}
	if (!reader->slot)
		register_reserver(reader);
	/* the credit before its reservation (budget.bpf.h) */
	*(volatile __s32 *)&h->credit_bytes = bytes;
	*(volatile __s32 *)&h->credit_messages = messages;
	if (!reserve(reader, holds + cost)) {
		h->credit_bytes = 0;
		h->credit_messages = 0;
		reserve(reader, holds);
		return REASON_global_budget;
	}
	if (*(volatile __u64 *)&reader->gate & GATE_QUEUE_GONE) {
		give_back(reader);
		return REASON_peer_leaving;
	}
	return REASON_fast;
}

/* Of a half that was live when its application showed a hazard. */
static __always_inline enum reason live_reason(__u32 hazards)
{
	enum reason reason = hazard_reason(hazards);

	return reason == REASON_not_eligible ? REASON_hazard : reason;
}

#define SEND_FLAGS (MSG_OOB | MSG_FASTOPEN | MSG_SOCK_DEVMEM)

/* Flags of the call, which sk_msg does not show. A call that is not understood is judged by its kind alone. */
static __always_inline bool asks_for_more(struct tcp_sock *tp, __u64 task)
{
	__u32 flags = 0, length;

	if (current_call(task, &flags, &length) != CALL_FLAGS)
		return false;
	/* TCP, too, ignores MSG_ZEROCOPY where SO_ZEROCOPY is not set */
	if (flags & SEND_FLAGS)
		return true;
	return flags & MSG_ZEROCOPY && tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags &
					       (1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY));
}

/*
 * How long a message waits for its reader is measured for one of many, and only for one that finds the queue empty: the
 * next receive call that returns bytes has taken it (learn.bpf.c). A call that is on its way out at that moment takes it too
 * early, which makes a few of the waits of a busy stream too short.
 */
static __always_inline bool is_sampled(const struct half *h)
{
	if (settings.sample_mask == ~0U || (h->eligibility == ELIGIBILITY_ALL && !settings.sample_all))
		return false;
	return ((__u32)h->sent.fast_messages & settings.sample_mask) == settings.sample_mask;
}

/* Before the message is delivered, which is after the verdict. The reader's socket (its address) and cookie. */
__noinline int sample_message(__u64 reader, __u64 cookie)
{
	struct sk_psock *psock = psock_of((void *)reader);
	struct list_head *head = &psock->ingress_msg;
	__u32 at = cookie & (STAMPS - 1);
	struct stamp *s;

	if (!psock || BPF_CORE_READ(psock, ingress_msg.next) != head)
		return 0;
	s = bpf_map_lookup_elem(&stamps, &at);
	if (!s)
		return 0;
	*(volatile __u64 *)&s->time_ns = 0;
	*(volatile __u64 *)&s->cookie = cookie;
	*(volatile __u64 *)&s->time_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline enum reason gate_reason(const struct half *h, __u64 gate)
{
	if (gate & GATE_DETACH)
		return REASON_detach;
	if (gate & GATE_HAZARD)
		return h->hazards ? live_reason(h->hazards) : REASON_hazard;
	if (gate & GATE_STREAM)
		return REASON_bulk;
	if (gate & GATE_PEER_LEAVING)
		return REASON_peer_leaving;
	if (gate & GATE_UNTIED)
		return REASON_untied;
	if ((gate & GATE_SHUT) == GATE_ADOPTING)
		return REASON_adopting;
	return REASON_closing;
}

/*
 * The verdict does not hold the record of its own socket (hold.bpf.h), as that would cost two atomics a message. Its sockops
 * callbacks and adoption wait for the socket's lock, which the sender has, and no release comes while a call uses the
 * descriptor. So only a record that has left can be swept away under a verdict. S2 tells: the gate has LEFT, or the cookie
 * that is read behind it is another's. If it is ours, the record was ours all along, and so is the peer's key.
 */
static __always_inline enum reason decide(struct sk_msg_md *msg, struct half *h, struct tcp_sock *tp, __u32 size)
{
	struct half_key peer_key = h->peer;
	struct sock *peer = (void *)h->peer_sk;
	__u8 state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;
	__u64 cookie = tp->inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter;
	__u64 task = bpf_get_current_task();
	__u32 write_seq = tp->write_seq;
	enum reason reason;
	__u64 gate, now;

	/* This task is back in a verdict: what it redirected before has been delivered (leave.bpf.h, case a). */
	if (h->inflight == task)
		*(volatile __u64 *)&h->inflight = 0;

	take_notice(h);
	gate = *(volatile __u64 *)&h->gate;
	if ((gate & GATE_SHUT) == GATE_ADOPTING && is_adopted(h))
		gate &= ~(__u64)GATE_ADOPTING;
	if (gate & GATE_SHUT)
		return gate_reason(h, gate);
	if (h->strict && settings.fionread & FIONREAD_MISSES_FAST && belongs_on_tcp(h, size))
		return REASON_bulk;
	/* tcp_bpf_sendmsg does not look at SEND_SHUTDOWN: plain TCP says EPIPE */
	if (state != BPF_TCP_ESTABLISHED && state != BPF_TCP_CLOSE_WAIT)
		return REASON_state;
	if (tp->inet_conn.icsk_ulp_ops)
		return REASON_ulp;
	/* its FIN is here, and it has said that it will not read either: TCP answers with RST, an ingress queue would not */
	if (state == BPF_TCP_CLOSE_WAIT && BPF_CORE_READ_BITFIELD_PROBED(peer, sk_shutdown) & RCV_SHUTDOWN)
		return REASON_peer_leaving;

	if (settings.learn_by_flags && h->eligibility == ELIGIBILITY_SAFE) {
		if (is_blocking(&tp->inet_conn.icsk_inet.sk)) {
			poison_half(h, HAZARD_blocking, 0);
			return REASON_hazard;
		}
		/* not held against the peer's kind: it may stand between accept and fcntl. Its own sends speak for it */
		if (is_blocking(peer)) {
			shut_gate(h, GATE_HAZARD);
			return REASON_hazard;
		}
	}
	if (asks_for_more(tp, task)) {
		struct kind_key kind;

		kind_of(h, &kind);
		mark_kind(&kind, HAZARD_send_flags, 0);
		if (h->eligibility == ELIGIBILITY_SAFE)
			shut_pair(h, HAZARD_send_flags);
		return REASON_send_flags;
	}

	now = bpf_jiffies64();
	if (now >= h->tcp_due && may_keep_alive(h, size, now)) {
		h->tcp_due = now + settings.keepalive_jiffies;
		return REASON_keepalive;
	}

	/*
	 * Handoff only when drained: the peer's recv looks at the ingress queue before sk_receive_queue. copied_seq ==
	 * write_seq is stable under our lock, as only we can raise write_seq, so it is looked at once a handoff.
	 */
	if (!h->drained || h->drained_seq != write_seq) {
		__u32 copied = BPF_CORE_READ((struct tcp_sock *)peer, copied_seq);

		if (cookie_of(peer) != peer_key.cookie)
			return REASON_peer_stale;
		if (copied != write_seq)
			return REASON_not_drained;
		h->drained_seq = write_seq;
		h->drained = 1;
		h->handoffs++;
		if (!h->handoff_ns)
			h->handoff_ns = bpf_ktime_get_ns();
		h->credit_bytes = 0;
		/* everything that was redirected before the TCP bytes was read before them */
		h->queued_messages = 0;
	}

	if (h->credit_bytes < (__s32)size || h->credit_messages < 1) {
		reason = refill(h, size);
		if (reason != REASON_fast)
			return reason;
	}

	/* S1, S2, S3 of leave.bpf.h. Nothing may be read before S2 that lets a message pass after it. */
	*(volatile __u64 *)&h->inflight = h->inflight ? INFLIGHT_SEVERAL : task;
	gate = gate_or(h, GATE_TOUCHED);
	if (*(volatile __u64 *)&h->self.cookie != cookie)
		return REASON_no_record;
	if (gate & (GATE_SHUT | GATE_SETTLING) || *(volatile __s32 *)&h->credit_messages < 1) {
		if (h->inflight == task)
			*(volatile __u64 *)&h->inflight = 0;
		return gate & GATE_SHUT ? gate_reason(h, gate) : REASON_global_budget; /* a sweep took the credit */
	}
	if (hold_open(WINDOW_DELIVERY))
		count_held(WINDOW_DELIVERY, *(volatile __u64 *)&h->gate & GATE_SHUT);
	if (bpf_msg_redirect_hash(msg, &sockets, &peer_key, BPF_F_INGRESS) != SK_PASS)
		return REASON_peer_missing; /* a miss is the TCP path, never SK_DROP */
	if (is_sampled(h))
		sample_message((__u64)peer, peer_key.cookie);
	h->credit_bytes -= size;
	h->credit_messages--;
	h->queued_messages++;
	return REASON_fast;
}

/*
 * The message before went by `path` because of `before`, this one goes because of `reason`. A message a minute for conntrack's
 * sake is no change. A global function, as above: only where the way changes.
 */
__noinline int way_changed(__u64 cookie, __u32 before, __u32 reason)
{
	struct half *h = bpf_map_lookup_elem(&halves, &cookie);

	if (!h || reason == REASON_keepalive)
		return 0;
	if (reason != REASON_fast)
		return journal_half(cookie, JOURNAL_FELL_BACK, reason, h->hazards);
	if (before == REASON_keepalive && h->handoffs > 1)
		return 0;
	return journal_half(cookie, JOURNAL_HANDOFF, REASON_fast, 0);
}

/* How long verdicts take is measured for one message of many. */
__noinline int verdict_ends(__u64 began)
{
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);

	if (t)
		t->verdicts[slot_of(bpf_ktime_get_ns() - began)]++;
	return 0;
}

SEC("sk_msg")
int shared_socket_verdict(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	__u32 size = msg->size;
	struct tcp_sock *tp;
	enum reason reason;
	__u8 path, before;
	struct half *h;
	__u64 cookie, began;

	if (!sk)
		return SK_PASS;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return SK_PASS;
	cookie = tp->inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter;
	h = bpf_map_lookup_elem(&halves, &cookie);
	if (!h) {
		count_reason(REASON_no_record);
		return SK_PASS;
	}
	/* the verifier comes to the message that is timed first, and then sees that a 0 is no news */
	began = 0;
	if (((__u32)(h->sent.fast_messages + h->sent.tcp_messages) & (VERDICT_SAMPLES - 1)) == VERDICT_SAMPLES - 1)
		began = bpf_ktime_get_ns();
	h->sizes[slot_of(size)]++;
	path = h->path;
	before = h->reason;
	*(volatile __u8 *)&h->reason = decide(msg, h, tp, size);
	/* read back: the verifier forgets which of the reasons it is, and follows what is below once and not for each */
	reason = *(volatile __u8 *)&h->reason;
	/* fast before and not now, or the other way round; one jump, for the verifier's sake */
	if (path + ((0ULL - reason) >> 63) != 1)
		way_changed(cookie, before, reason);
	if (reason < REASON_SLOTS)
		h->reasons[reason]++;
	if (reason == REASON_fast) {
		h->path = PATH_FAST;
		h->sent.fast_messages++;
		h->sent.fast_bytes += size;
	} else {
		h->path = PATH_TCP;
		h->sent.tcp_messages++;
		h->sent.tcp_bytes += size;
	}
	if (began)
		verdict_ends(began);
	return SK_PASS;
}

/* The program that psocks hold. A swap of the slot reaches live connections; an empty slot means TCP. */
SEC("sk_msg")
int shared_socket_stub(struct sk_msg_md *msg)
{
	bpf_tail_call(msg, &verdicts, VERDICT_FIRST);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
