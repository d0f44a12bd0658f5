/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Strict pairs: those of `safe` workloads. In one half, bytes that were redirected and bytes that came by TCP must not wait
 * together, for two reasons.
 *
 * A recv ends where the redirected bytes end (tcp_bpf_recvmsg), and so returns less than was asked for while TCP's bytes are
 * there. Whoever waits for edges takes that for the end of what has come, and the edge has been (nginx, tokio, Netty).
 *
 * And FIONREAD is not exact for a half in the sockhash on many kernels (H7).
 * No hook tells who calls FIONREAD (that takes a trampoline or a kprobe, which not every kernel has), and programs use it
 * rarely, late and fatally: nginx asks it after a recv that filled its buffer, and takes 0 for "wait for the next edge".
 *
 * Exact, or FIONREAD_MISSES_TCP (6.6.128, 6.12.75, 6.18.14 and newer, until a fix): redirected bytes are counted, and bytes
 * that came by TCP may not be. A strict pair does not go by TCP because its queue is long, as
 * others do: from STREAM_BYTES on it waits for a moment at which nothing is queued either way and leaves for good. A
 * timer looks for that moment, because no callback comes on the fast path. Until then it may pass its budget, by
 * OVERDRAFT_SHIFT, within the budget of all; only a reader that leaves that much unread gets bytes of both kinds. The
 * next connections of these kinds stay on TCP (hazard `stream`), so that it happens to the first stream of a kind at most.
 *
 * FIONREAD_MISSES_FAST (older): redirected bytes are not counted. Only what a reader takes with one recv is redirected:
 * SMALL_BYTES, in one message or several. What does not fit behind unread bytes is redirected all the same, as TCP would
 * mix; but from then on each direction goes by TCP as soon as nothing in it is unread, and the kinds are those of a stream.
 */
#ifndef SHARED_SOCKET_CLEAN_H
#define SHARED_SOCKET_CLEAN_H

#include "budget.bpf.h"
#include "hazard.bpf.h"

#define STREAM_BYTES (256 << 10)
#define OVERDRAFT_SHIFT 2 /* 16 MiB by default: what TCP itself holds in its two buffers, about twice */
#define SMALL_BYTES 512
#define LOOK_NS 1000000ULL /* how often the moment is looked for */
#define KEEPALIVES_SKIPPED 9

/* Timers are there since 5.15. FIONREAD_MISSES_TCP, for which they are, came later; an older kernel does without. */
static __always_inline bool start_timer(struct half *h)
{
#ifdef OLD_KERNEL
	return false;
#else
	return !bpf_timer_start(&h->timer, LOOK_NS, 0);
#endif
}

/* The kinds are marked, and the timer that pair.bpf.c gave the half is armed. */
static __always_inline void stream_begins(struct half *h, struct half *reader)
{
	struct kind_key kind;

	if (h->leaving)
		return;
	kind_of(h, &kind);
	mark_kind(&kind, HAZARD_stream, 0);
	kind_of(reader, &kind);
	mark_kind(&kind, HAZARD_stream, 0);
	h->leaving = start_timer(h) ? LEAVING_ARMED : LEAVING_WAITING;
}

/* Would this message be all that waits at the peer, and small? */
static __always_inline bool is_alone(struct half *h, __u32 size)
{
	struct half_key peer_key = h->peer;
	struct half *peer;

	if (size > SMALL_BYTES)
		return false;
	peer = half_of(&peer_key);
	return peer && !is_unread(peer);
}

/*
 * FIONREAD_MISSES_FAST: does TCP carry this message? Never behind redirected bytes that are unread. That nothing is unread
 * stays so until we send: the peer's queue has no other writer. (A second task's message may be on its way to that queue.
 * Whoever writes to one socket from two tasks at once has no order to lose, but its reader may see a short read.)
 */
static __always_inline bool belongs_on_tcp(struct half *h, __u32 size)
{
	struct half_key peer_key = h->peer;
	struct half *peer = half_of(&peer_key);

	if (!peer)
		return true;
	if (!is_unread(peer))
		return size > SMALL_BYTES || h->leaving;
	if (!h->leaving && budget_bytes((__u64)psock_of((void *)peer->sk)) + size > SMALL_BYTES)
		stream_begins(h, peer);
	return false;
}

/* The message that goes by TCP once a minute: of a strict pair only one that nobody asks FIONREAD about. */
static __always_inline bool may_keep_alive(struct half *h, __u32 size, __u64 now)
{
	if (!h->strict || now - h->tcp_due > (__u64)KEEPALIVES_SKIPPED * settings.keepalive_jiffies)
		return true;
	return is_alone(h, size);
}

/* Both halves leave if this is the moment. It looks before it marks: a mark alone would send the next message by TCP. */
static __always_inline bool leave_if_clean(struct half *h, struct half *peer, __u64 why)
{
	if (!is_quiet(h) || !is_quiet(peer) || is_unread(h) || is_unread(peer))
		return false;
	shut_gate(h, why);
	shut_gate(peer, why);
	try_leave(h, why);
	try_leave(peer, why);
	return true;
}

/* Runs in a softirq, without the socket's lock, which the leave protocol does not need. */
static __attribute__((unused)) int leave_by_timer(void *map, __u64 *cookie, struct half *armed)
{
	struct half *h HELD = hold_socket(*cookie), *peer HELD = NULL;
	struct half_key peer_key;
	__u64 gate;

	if (!h || h != armed)
		return 0; /* it was retired while the timer fired */
	peer_key = h->peer;
	peer = hold(&peer_key);
	gate = *(volatile __u64 *)&h->gate;
	if (!peer || gate & (GATE_LEFT | GATE_DEAD | GATE_RELEASED))
		return 0; /* it goes, or has gone, another way */
	if (gate & GATE_STREAM) {
		/* marked, and then something came in between after all: as soon as it can */
		try_leave(h, GATE_STREAM);
		try_leave(peer, GATE_STREAM);
	} else {
		leave_if_clean(h, peer, GATE_STREAM);
	}
	if (!(*(volatile __u64 *)&h->gate & *(volatile __u64 *)&peer->gate & GATE_LEFT))
		start_timer(h);
	return 0;
}

/*
 * The timer may find no memory: 6.18 takes it without waiting for any lock, and runs out in bursts (of 2,000 pairs one in
 * ten; adopting, all after the first hundred). Such a half is strict all the same, but its stream stays fast until an
 * ACK, which a message by TCP brings, finds memory (arm_late).
 */
static __always_inline bool make_timer(struct half *h)
{
#ifdef OLD_KERNEL
	return false;
#else
	return !bpf_timer_init(&h->timer, &halves, CLOCK_MONOTONIC) &&
	       !bpf_timer_set_callback(&h->timer, leave_by_timer);
#endif
}

static __always_inline void make_strict(struct half *h)
{
	h->strict = 1;
	if (!settings.spin || !(settings.spin_windows & 1 << WINDOW_NO_TIMER))
		make_timer(h);
}

/* sk_msg may not make the timer, as its callback deletes from the sockhash. */
static __always_inline void arm_late(struct half *h)
{
	if (h->leaving == LEAVING_WAITING && make_timer(h) && start_timer(h))
		h->leaving = LEAVING_ARMED;
}

#endif
