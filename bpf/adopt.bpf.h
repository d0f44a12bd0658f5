/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Adoption: a connection that was established before its workload was attached enters the sockhash (adopt.bpf.c), and
 * when it may be fast (here).
 *
 * Entering changes the socket's struct proto under its socket lock, between two calls of the application as far as the
 * lock is concerned. Nothing is redirected yet, so nothing is lost, reordered or doubled by that alone: a call that is
 * inside plain TCP ends as plain TCP, the next one comes through tcp_bpf_*, which with an empty ingress queue is TCP.
 *
 * Half A, read by the application; half B, its peer, whose sends are redirected to A. A receive call that entered plain
 * tcp_recvmsg before A was adopted, and has not returned, never looks at the ingress queue: it would sleep on, or take
 * what came by TCP behind what was redirected (H11). So B's gate is shut (GATE_ADOPTING) until no such call can be left
 * on A. B sends by TCP meanwhile, which wakes those calls and ends them. The evidence:
 *
 *   1. A receive call on A has ended since A was adopted (tp_btf/sock_recv_length, which every way into recvmsg passes at
 *      its end). An application that reads A with one thread cannot be in an older call then, whatever that call was
 *      doing when A was adopted: calls of one thread end in the order in which they begin. Splice and zero-copy receives
 *      do not end there and prove nothing, and a socket read only by them never becomes fast.
 *   2. If any task sleeps on A's wait queue in a call of TCP, it must be the only task whose calls have ended, that is,
 *      the one of 1, in a newer call. Two readers that both sleep keep the connection on TCP for as long as they do. The
 *      sleepers of poll, select and epoll have another wake function and do not count: a poll that was asleep asks the
 *      struct proto of now when it wakes.
 *   3. A second has passed. That is for several threads that read one socket without sleeping in it: one of them may have
 *      loaded the old struct proto and been preempted before it took the socket lock. It is the only step here that rests
 *      on time; with one reading thread 1 is proof.
 *
 * Then the gate opens, and the handoff rule (drained: A's copied_seq equals B's write_seq) makes sure that all that went
 * by TCP before, whether sent before or after the adoption, has been read before anything is redirected.
 *
 * Strict pairs (clean.bpf.h) on a kernel whose FIONREAD misses what came by TCP cannot wait in this way, with their halves
 * in the sockhash and their messages on TCP. They enter only while they are idle: nothing unread, nobody asleep in a call.
 * They are tied in the moment in which the second half enters, with both gates open, or taken out at once when something
 * has come in between; a later pass tries again. 1 is not needed for them: their kinds are proven not to
 * block, so a call that began before finds nothing, says EAGAIN, and the message that is queued meanwhile makes the socket
 * readable as ever. What remains is a FIONREAD while one half is in and the other is not yet, some milliseconds at most:
 * bytes that came by TCP in just that time do not count. A program that goes by it and waits for the next edge would wait
 * for ever, so a half that is taken out again is made to tell that it is readable (rouse(), adopt.bpf.c).
 *
 * Sends that entered plain tcp_sendmsg of B before B was adopted need no such care: what they send goes by TCP behind
 * what was redirected, the order in which it was sent; a part that waits for memory is not drained.
 */
#ifndef SHARED_SOCKET_ADOPT_H
#define SHARED_SOCKET_ADOPT_H

#include "leave.bpf.h"

#define READERS_SEVERAL 1ULL
#define ADOPT_GRACE_NS 1000000000ULL

/* At the end of a receive call, by the task that made it. */
static __noinline __attribute__((unused)) int note_reader(struct sock *sk, struct observed *o)
{
	__u64 cookie = cookie_of(sk), task = bpf_get_current_task(), seen;
	struct half *h HELD = hold_socket(cookie), *peer;
	struct half_key peer_key;

	if (!o)
		return 0;
	if (!h) {
		o->adopting = 0;
		return 0;
	}
	/* fetching, hence a full barrier: this task's next call sees the struct proto that adoption set before `adopting` */
	seen = first_reader(h, task);
	if (seen && seen != task)
		*(volatile __u64 *)&h->reader = READERS_SEVERAL;
	peer_key = h->peer;
	peer = half_of(&peer_key);
	if (peer && !(peer->gate & GATE_ADOPTING))
		o->adopting = 0;
	return 0;
}

/* sleepers.bpf.c: does anybody but `reader` (0: nobody) sleep in a call on this socket (its address)? */
int adopt_slept_on(__u64 socket, __u64 reader);

/*
 * May B, in its verdict, open its gate? A task in a call is off the wait queue only while it holds A's lock, so a queue
 * walked twice with the lock free before, between and after was not caught while somebody moved.
 */
static __noinline __attribute__((unused)) bool is_adopted(struct half *h)
{
	struct half_key peer_key;
	struct half *peer;
	struct sock *sk;
	__u64 reader;
	int i;

	if (!h)
		return false;
	peer_key = h->peer;
	peer = half_of(&peer_key);
	if (!peer || bpf_ktime_get_ns() - peer->established_ns < ADOPT_GRACE_NS)
		return false;
	reader = *(volatile __u64 *)&peer->reader;
	if (!reader)
		return false;
	sk = (void *)h->peer_sk;
	for (i = 0; i < 2; i++) {
		if (BPF_CORE_READ(sk, sk_lock.owned) || adopt_slept_on((__u64)sk, reader))
			return false;
	}
	if (BPF_CORE_READ(sk, sk_lock.owned) || *(volatile __u64 *)&peer->reader != reader ||
	    cookie_of(sk) != h->peer.cookie)
		return false;
	gate_clear(h, GATE_ADOPTING);
	return true;
}

#endif
