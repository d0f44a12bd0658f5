// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Adoption of connections that were established before: iterators, driven from userspace (adopt.rs).
 *
 *   1. candidates  iter/tcp, in every network namespace: tells of each established socket of an attached workload the
 *                  numbers that it was born with. Userspace finds those that are two ends of one connection.
 *   2. adopt       iter/tcp, in every network namespace: those enter the sockhash, gate shut (untied, adopting), each with
 *                  its peer's key already in the record.
 *   3. tie         iter/sockmap: opens what has both its halves in, and takes out what has not.
 *
 * iter/tcp holds the socket's lock while the program runs (lock_sock: a call of the application waits, a packet goes to the
 * backlog), so 2 sees and changes one socket as if it were a call on it. It writes no record but the socket's own. Between
 * the passes nothing is locked: a socket may close, be connected anew, or be half-closed. Then its cookie, its numbers or
 * its state are not what was seen, and it is left alone, or it is gone when 3 comes, and its peer is taken out again. Nothing
 * can be queued to a half before 3, as no gate is open. Whoever dies between the passes leaves halves that go by TCP; the
 * next 3 finishes them, or their close.
 *
 * Before 6.5 (9378096e8a65) iter/tcp holds the spinlock of the socket instead, which an update of the sockhash takes
 * again: never to return. sk_lock.owned tells, on any kernel.
 */
#include "adopt.bpf.h"
#include "clean.bpf.h"
#include "sockops.h"

/* A record is larger than the stack: it starts as a copy of this. */
static const volatile struct half blank_adopted = {.gate = GATE_UNTIED | GATE_ADOPTING, .adopted = 1};

static __always_inline void destination_of(const struct sock *sk, struct kind_key *kind)
{
	kind->port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6)
		BPF_CORE_READ_INTO(&kind->addr, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr32);
	else
		BPF_CORE_READ_INTO((__u32 *)kind->addr, sk, __sk_common.skc_daddr);
}

static __always_inline void endpoints_of(const struct sock *sk, struct half *h)
{
	struct kind_key there = {};
	__u32 here[4] = {};

	destination_of(sk, &there);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6)
		BPF_CORE_READ_INTO(&here, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32);
	else
		BPF_CORE_READ_INTO(&here[0], sk, __sk_common.skc_rcv_saddr);
	h->local.family = h->remote.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	h->local.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	h->remote.port = there.port;
	__builtin_memcpy(h->local.addr, here, sizeof(here));
	__builtin_memcpy(h->remote.addr, there.addr, sizeof(there.addr));
}

static __always_inline void kind_of_socket(const struct sock *sk, __u8 role, struct kind_key *kind)
{
	kind->cgroup = cgroup_id_of(sk);
	kind->role = role;
	if (role == ROLE_CLIENT)
		destination_of(sk, kind);
	else
		kind->port = BPF_CORE_READ(sk, __sk_common.skc_num);
}

/* Its kind: proven, declared, or why not. */
static __noinline enum reason judge_socket(struct sock *sk, const struct workload *w, __u8 role)
{
	struct kind_key key = {};
	struct kind *kind;

	if (!w)
		return REASON_detach;
	kind_of_socket(sk, role, &key);
	kind = bpf_map_lookup_elem(&kinds, &key);
	if (role == ROLE_CLIENT && lives_short(kind))
		return REASON_short_lived;
	return judge(w, &key);
}

/* A function of its own: a kernel without CONFIG_RPS has no such member. */
static __noinline __u32 rxhash_of(const struct sock *sk)
{
	if (!bpf_core_field_exists(sk->__sk_common.skc_rxhash))
		return 0;
	return BPF_CORE_READ(sk, __sk_common.skc_rxhash);
}

/* What refuses it for good, then its kind. Nothing is marked here: which role it has is not known. */
static __always_inline enum reason refuse_existing(struct sock *sk, const struct workload *w, __u8 role)
{
	enum reason reason = refuse(sk, NULL);

	/* its listener may speak MPTCP, which looks at the struct proto when it accepts */
	if (reason == REASON_fast && !is_accepted(sk))
		reason = REASON_untied;
	return reason == REASON_fast ? judge_socket(sk, w, role) : reason;
}

SEC("iter/tcp")
int shared_socket_candidates(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct candidate c = {};
	struct tcp_sock *tp;
	struct workload *w;
	struct sock *sk;
	struct half *h;

	if (!skc || skc->skc_state != BPF_TCP_ESTABLISHED)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return 0;
	sk = (void *)tp;
	c.workload = find_workload(cgroup_of(sk), &w);
	if (!w || w->draining)
		return 0;
	c.cookie = bpf_get_socket_cookie(skc);
	h = bpf_map_lookup_elem(&halves, &c.cookie);
	if (h && !(h->gate & GATE_LEFT))
		return 0; /* in already */
	c.sk = (__u64)sk;
	c.generation = (__u32)bpf_ktime_get_ns() | 1;
	c.sent_isn = tp->snd_una - (__u32)tp->bytes_acked;
	c.peer_isn = tp->rcv_nxt - (__u32)tp->bytes_received - 1;
	c.hashed = bpf_core_field_exists(sk->__sk_common.skc_rxhash);
	c.sent_hash = BPF_CORE_READ(sk, sk_txhash);
	c.got_hash = rxhash_of(sk);
	c.as_client = refuse_existing(sk, w, ROLE_CLIENT);
	c.as_server = refuse_existing(sk, w, ROLE_SERVER);
	bpf_seq_write(ctx->meta->seq, &c, sizeof(c));
	return 0;
}

/* From now on its receive calls are seen: for learning, or to know when it may be fast. */
static __always_inline bool watch(struct sock_common *skc, const struct sock *sk, const struct workload *w, __u8 role,
				  bool adopting)
{
	struct kind_key kind = {};
	struct observed *o;

	kind_of_socket(sk, role, &kind);
	o = OBSERVED_ANEW(skc, cookie_of(sk));
	if (!o)
		return false;
	o->kind = kind;
	if (w->eligibility == ELIGIBILITY_ALL)
		o->counted = 1; /* it speaks for no kind */
	if (adopting)
		*(volatile __u32 *)&o->adopting = 1;
	return true;
}

/* Closing is seen by STATE_CB, a half that must leave by RTT_CB. Settable from here since 6.12. */
static __always_inline bool set_callbacks(struct sock_common *skc)
{
	int flags = 0;

	if (bpf_getsockopt(skc, IPPROTO_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return false;
	flags |= BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;
	return !bpf_setsockopt(skc, IPPROTO_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}

static __always_inline bool never_mixes(void)
{
	return settings.fionread & FIONREAD_MISSES_TCP || !(settings.fionread & FIONREAD_MISSES_FAST);
}

/* A pair that may not have messages on TCP while it is in the sockhash (adopt.bpf.h). */
static __always_inline bool is_at_once(const struct adoption *a)
{
	return a->strict && never_mixes();
}

/*
 * Nothing unread, nobody asleep in a call. Under the socket's lock. Whether all that it has sent was read is asked when the
 * pair is tied; that it was acknowledged is not: in a busy exchange that comes with the next message only.
 */
static __always_inline bool is_idle(struct tcp_sock *tp)
{
	struct sock *sk = (void *)tp;
	__u64 address = (__u64)BPF_CORE_READ(sk, sk_socket, sk); /* a number, as global functions want it */

	return tp->rcv_nxt == tp->copied_seq && !adopt_slept_on(address, 0);
}

/* Nothing was ever queued to it: its gate, or its peer's, has never been open. The caller holds it. */
static __always_inline void take_out(struct half *h)
{
	struct half_key key = h->self;

	shut_gate(h, GATE_LEFT);
	bpf_map_delete_elem(&sockets, &key);
}

static __always_inline void tell_adopted(const struct half *h)
{
	if (h->role == ROLE_CLIENT)
		flow_paired(h->workload, h->peer_workload, 1);
	else
		flow_paired(h->peer_workload, h->workload, 1);
	journal_half(h->self.cookie, JOURNAL_ADOPTED, REASON_fast, 0);
}

/*
 * The second half of a strict pair has entered, and its lock is held: its write_seq stands, and so does what it has read.
 * The first has been in for a moment, in which messages may have come and gone. If both have read all that the other has
 * sent, both gates open now; the first message finds the pair drained. Else both go, and are roused.
 */
static __always_inline enum reason tie_at_once(struct half *h, struct tcp_sock *tp)
{
	struct tcp_sock *there = (void *)h->peer_sk;
	struct half_key peer_key = h->peer;
	struct half *peer HELD = hold(&peer_key);
	__u32 zero = 0, read, sent;
	struct totals *t;
	bool asleep;

	if (!peer)
		return REASON_fast; /* the first of the two: the second ties, or the next tie takes this one out */
	read = BPF_CORE_READ(there, copied_seq);
	sent = BPF_CORE_READ(there, write_seq);
	asleep = adopt_slept_on((__u64)there, 0);
	if (cookie_of((void *)there) != peer_key.cookie || read != tp->write_seq || sent != tp->copied_seq || asleep ||
	    peer->gate & (GATE_SHUT & ~(GATE_UNTIED | GATE_ADOPTING))) {
		take_out(h);
		take_out(peer);
		return REASON_not_drained;
	}
	know_each_other(h, peer);
	/* what a verdict reads is in both records; a peer that closes from here on finds our key in its own, and marks us */
	gate_clear(h, GATE_UNTIED | GATE_ADOPTING);
	if (gate_clear(peer, GATE_UNTIED | GATE_ADOPTING) & (GATE_SHUT & ~(GATE_UNTIED | GATE_ADOPTING)))
		shut_gate(h, GATE_PEER_LEAVING); /* it closed meanwhile */
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t) {
		t->pairs++;
		t->adopted++;
	}
	tell_adopted(h);
	return REASON_fast;
}

/*
 * While this socket was in the sockhash, FIONREAD did not count what came by TCP, and its application may have believed it
 * and be waiting for an edge that has passed. Setting the low-water mark to what it is makes TCP say once more that the
 * socket is readable, if it is (tcp_set_rcvlowat); to an application that knows, that is a wake-up too many.
 */
static __always_inline void rouse(struct sock_common *skc)
{
	int mark = 1; /* no other was ever set: `refuse` looks at it */

	bpf_setsockopt(skc, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof(mark));
}

static __always_inline enum reason enter(struct sock_common *skc, struct tcp_sock *tp, const struct adoption *a)
{
	struct sock *sk = (void *)tp;
	struct half_key key = a->self;
	struct kind_key kind = {};
	struct workload *w;
	struct half *h HELD = NULL, *old HELD = NULL;
	enum reason reason;
	__u64 workload;

	if (!BPF_CORE_READ(sk, sk_lock.owned))
		return REASON_kernel;
	if (tp->snd_una - (__u32)tp->bytes_acked != a->sent_isn ||
	    tp->rcv_nxt - (__u32)tp->bytes_received - 1 != a->peer_isn)
		return REASON_reused;
	workload = find_workload(cgroup_of(sk), &w);
	if (!w || w->draining)
		return REASON_detach;
	kind_of_socket(sk, a->role, &kind);
	reason = is_accepted(sk) ? refuse(sk, &kind) : REASON_untied;
	old = hold_socket(key.cookie);
	if (old && !(old->gate & GATE_LEFT))
		/* the iterator shows a socket twice when its buffer is full */
		return old->self.generation == key.generation ? REASON_fast : REASON_reused;
	if (reason != REASON_fast)
		return reason;
	if (a->what == ADOPT_OBSERVE)
		return watch(skc, sk, w, a->role, false) ? REASON_learning : REASON_map_full;
	reason = judge_socket(sk, w, a->role);
	if (reason != REASON_fast)
		return reason;
	if (bpf_sk_storage_get(&tainted, skc, NULL, 0))
		return REASON_reused; /* close.bpf.c: a message of its connection before may still arrive */
	if (is_at_once(a) && !is_idle(tp))
		return REASON_not_drained;
	if (!set_callbacks(skc))
		return REASON_kernel;
	if (old) { /* of before it left; close and reuse take this lock first */
		retire(old);
		let_go(old);
		old = NULL;
	}
	/* no room, or a record that somebody still holds: a later pass tries again */
	if (bpf_map_update_elem(&halves, &key.cookie, (const void *)&blank_adopted, BPF_NOEXIST))
		return REASON_map_full;
	h = bpf_map_lookup_elem(&halves, &key.cookie);
	if (!h)
		return REASON_map_full;
	/* no way out of here before it is published, and so held */
	fill_half(h, sk, a->role, workload, w);
	h->peer = a->peer;
	h->peer_sk = a->peer_sk;
	h->isn_local = a->role == ROLE_CLIENT ? a->sent_isn : a->sent_isn - 1;
	h->isn_remote = a->peer_isn;
	endpoints_of(sk, h);
	if (a->strict)
		make_strict(h);
	h->self = key;
	publish(h, GATE_UNTIED | GATE_ADOPTING);
	if (bpf_map_update_elem(&sockets, &key, skc, BPF_NOEXIST)) {
		discard(h);
		return REASON_insert_failed;
	}
	/* after the struct proto: a call that ends and sees `adopting` is followed by calls that see the new one */
	gate_or(h, GATE_TOUCHED);
	if (!watch(skc, sk, w, a->role, !is_at_once(a))) {
		take_out(h);
		return REASON_memory;
	}
	return is_at_once(a) ? tie_at_once(h, tp) : REASON_fast;
}

SEC("iter/tcp")
int shared_socket_adopt(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct adoption_result result = {};
	struct adoption *a;
	struct tcp_sock *tp;

	if (!skc || skc->skc_state != BPF_TCP_ESTABLISHED)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return 0;
	result.cookie = cookie_of((void *)tp);
	a = bpf_map_lookup_elem(&adoptions, &result.cookie);
	if (!a)
		return 0;
	if (a->what == ADOPT_ROUSE) {
		if (tp->inet_conn.icsk_inet.sk.sk_rcvlowat == 1)
			rouse(skc);
		result.reason = REASON_not_drained;
	} else {
		result.reason = enter(skc, tp, a);
	}
	bpf_seq_write(ctx->meta->seq, &result, sizeof(result));
	return 0;
}

/* Holds no socket lock and needs none: the peer's record is read, this half's gate is changed by an atomic. */
SEC("iter/sockmap")
int shared_socket_tie(struct bpf_iter__sockmap *ctx)
{
	struct half *h HELD = NULL, *peer HELD = NULL;
	struct half_key key, peer_key;
	__u32 zero = 0;
	struct totals *t;

	if (!ctx->key || !ctx->sk)
		return 0;
	key = *(struct half_key *)ctx->key;
	h = hold(&key);
	if (!h || !h->adopted || !(h->gate & GATE_UNTIED))
		return 0;
	if (h->strict && never_mixes()) {
		take_out(h); /* its other half did not come */
		return 0;
	}
	peer_key = h->peer;
	peer = hold(&peer_key);
	if (!peer || !peer->adopted || peer->peer.cookie != key.cookie || peer->peer.generation != key.generation ||
	    peer->gate & (GATE_SHUT & ~(GATE_UNTIED | GATE_ADOPTING))) {
		try_leave(h, GATE_DETACH);
		return 0;
	}
	know_each_other(h, peer);
	/* a peer that closes from here on finds our key in its record, and marks us */
	gate_clear(h, GATE_UNTIED);
	t = bpf_map_lookup_elem(&totals, &zero);
	if (t && h->role == ROLE_CLIENT) {
		t->pairs++;
		t->adopted++;
	}
	if (h->role == ROLE_CLIENT)
		tell_adopted(h);
	return 0;
}
