// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* sk_msg: what happens to a message. Runs in tcp_bpf_sendmsg under the sender's socket lock. */
#include "leave.bpf.h"

/* How far the peer's queue is counted; beyond it the sender's own upper bound stands. */
#define WALK_NODES 64

extern const void tcp_memory_pressure __ksym __weak;

/* tcp_mem's second mark is passed: the next redirect might get ENOMEM, which TCP would answer by waiting. */
static __always_inline bool is_memory_tight(void)
{
	unsigned long since = 0;

	if (&tcp_memory_pressure)
		bpf_probe_read_kernel(&since, sizeof(since), &tcp_memory_pressure);
	return since;
}

#define MEMCG_DEPTH 8
#define MEMCG_RESERVE 128 /* pages kept clear of a limit: TCP's own share, and what others charge meanwhile */
#define PAGE_BYTES 4096	  /* on larger pages the answer is too careful, never too bold */

/* Pages that a counter and those above it still let in. */
static __noinline long room_below(struct page_counter *counter)
{
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
	return room_below(&memcg->tcpmem);
}

/* Bytes that the peer's memory cgroup lets in; a redirect past it would get ENOMEM where TCP waits. */
static __always_inline long memcg_room(struct sock *peer)
{
	struct mem_cgroup *memcg = BPF_CORE_READ(peer, sk_memcg);
	long room, tcp;

	if (!memcg)
		return 1L << 30;
	room = room_below(&memcg->memory);
	tcp = tcp_room(memcg);
	if (tcp < room)
		room = tcp;
	room -= MEMCG_RESERVE;
	if (room > (1L << 18))
		room = 1L << 18;
	return room * PAGE_BYTES;
}

/*
 * How much the peer may still be sent. Looked at only when the credit of the last look is used up, so that the usual
 * message costs two subtractions. Each grant is a part of what is free: the sum never exceeds the budget.
 */
static __always_inline enum reason refill(struct half *h, __u32 size)
{
	struct sock *peer = (void *)h->peer_sk;
	struct sk_psock *psock = psock_of(peer);
	struct list_head *head, *at;
	__s32 held, limit, count;
	long room;
	const void *ulp;
	int i;

	if (!psock)
		return REASON_peer_stale;
	held = BPF_CORE_READ(peer, sk_backlog.rmem_alloc.counter);
	ulp = BPF_CORE_READ((struct inet_connection_sock *)peer, icsk_ulp_ops);
	head = &psock->ingress_msg;
	at = BPF_CORE_READ(psock, ingress_msg.next);
	for (count = 0, i = 0; i < WALK_NODES; i++) {
		if (!at || at == head)
			break;
		count++;
		at = BPF_CORE_READ(at, next);
	}
	/*
	 * Redirected bytes fill the sk_rmem_alloc from which TCP computes its window, and may fill it past SO_RCVBUF: the
	 * first segment on the TCP path is still taken (an empty sk_receive_queue always takes one), its ACK closes the
	 * window, and the read that comes to it opens the window again.
	 */
	limit = settings.budget_bytes;
	/* who set SO_RCVBUF wants no more than that to wait, and a sender to notice */
	if (BPF_CORE_READ_BITFIELD_PROBED(peer, sk_userlocks) & SOCK_RCVBUF_LOCK) {
		__s32 rcvbuf = BPF_CORE_READ(peer, sk_rcvbuf);

		if (rcvbuf < limit)
			limit = rcvbuf;
	}
	room = memcg_room(peer);
	if (cookie_of(peer) != h->peer.cookie)
		return REASON_peer_stale;
	if (ulp)
		return REASON_ulp;
	/* A walk that reached the end knows; one that did not leaves the sender's own upper bound in force. */
	if (at == head)
		h->queued_messages = count;

	if (is_memory_tight())
		return REASON_memory;
	if (room < (long)size)
		return REASON_memory;
	/* One message may be larger than what is left, but never while anything is queued. */
	if (held && held + (__s32)size > limit)
		return REASON_backed_up;
	if (h->queued_messages >= settings.budget_messages)
		return REASON_backed_up;
	h->credit_bytes = (limit - held) >> 1;
	h->credit_messages = (settings.budget_messages - h->queued_messages) >> 1;
	if (h->credit_bytes > room >> 2)
		h->credit_bytes = room >> 2;
	if (h->credit_bytes < (__s32)size)
		h->credit_bytes = size;
	if (h->credit_messages < 1)
		h->credit_messages = 1;
	return REASON_fast;
}

static __always_inline enum reason gate_reason(__u64 gate)
{
	if (gate & GATE_DETACH)
		return REASON_detach;
	if (gate & GATE_HAZARD)
		return REASON_hazard;
	if (gate & GATE_PEER_LEAVING)
		return REASON_peer_leaving;
	if (gate & GATE_UNTIED)
		return REASON_untied;
	return REASON_closing;
}

static __always_inline enum reason decide(struct sk_msg_md *msg, struct half *h, struct tcp_sock *tp, __u32 size)
{
	struct sock *peer = (void *)h->peer_sk;
	__u8 state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;
	__u64 task = bpf_get_current_task();
	__u32 write_seq = tp->write_seq, i;
	enum reason reason;
	__u64 gate, now;

	/* This task is back in a verdict: what it redirected before has been delivered (leave.bpf.h, case a). */
	if (h->inflight == task)
		*(volatile __u64 *)&h->inflight = 0;

	gate = *(volatile __u64 *)&h->gate;
	if (gate & GATE_SHUT)
		return gate_reason(gate);
	/* tcp_bpf_sendmsg does not look at SEND_SHUTDOWN: plain TCP says EPIPE */
	if (state != BPF_TCP_ESTABLISHED && state != BPF_TCP_CLOSE_WAIT)
		return REASON_state;
	if (tp->inet_conn.icsk_ulp_ops)
		return REASON_ulp;

	if (settings.learn_by_flags && h->eligibility == ELIGIBILITY_SAFE &&
	    (is_blocking(&tp->inet_conn.icsk_inet.sk) || is_blocking(peer))) {
		shut_gate(h, GATE_HAZARD);
		return REASON_hazard;
	}

	now = bpf_jiffies64();
	if (now >= h->tcp_due) {
		h->tcp_due = now + settings.keepalive_jiffies;
		return REASON_keepalive;
	}

	/*
	 * Handoff only when drained: the peer's recv looks at the ingress queue before sk_receive_queue. copied_seq ==
	 * write_seq is stable under our lock, as only we can raise write_seq, so it is looked at once a handoff.
	 */
	if (!h->drained || h->drained_seq != write_seq) {
		__u32 copied = BPF_CORE_READ((struct tcp_sock *)peer, copied_seq);

		if (cookie_of(peer) != h->peer.cookie)
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
	gate = __sync_fetch_and_or(&h->gate, GATE_TOUCHED);
	if (gate & GATE_SHUT) {
		if (h->inflight == task)
			*(volatile __u64 *)&h->inflight = 0;
		return gate_reason(gate);
	}
	for (i = 0; i < settings.spin && i < 4096; i++) /* debug: hold the race open between verdict and delivery */
		bpf_ktime_get_ns();
	if (bpf_msg_redirect_hash(msg, &sockets, &h->peer, BPF_F_INGRESS) != SK_PASS)
		return REASON_peer_missing; /* a miss is the TCP path, never SK_DROP */
	h->credit_bytes -= size;
	h->credit_messages--;
	h->queued_messages++;
	return REASON_fast;
}

SEC("sk_msg")
int shared_socket_verdict(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	__u32 size = msg->size;
	struct tcp_sock *tp;
	enum reason reason;
	struct half *h;
	__u64 cookie;

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
	reason = decide(msg, h, tp, size);
	h->reason = reason;
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
	return SK_PASS;
}

/* The program that psocks hold. A swap of verdicts[0] reaches live connections; an empty slot means TCP. */
SEC("sk_msg")
int shared_socket_stub(struct sk_msg_md *msg)
{
	bpf_tail_call(msg, &verdicts, 0);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
