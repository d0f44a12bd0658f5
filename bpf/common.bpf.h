/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What several hooks need: counting, reading sockets, finding the workload. */
#ifndef SHARED_SOCKET_COMMON_H
#define SHARED_SOCKET_COMMON_H

#include "hold.bpf.h"
#include "journal.bpf.h"

extern const volatile struct settings settings;

static __always_inline void count_reason(enum reason reason)
{
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);

	if (t && reason < REASON_SLOTS)
		t->reasons[reason]++;
}

/* Debug: holds a race open. True when it did: then say what came in between with count_held(). */
static __always_inline bool hold_open(enum window window)
{
	__u32 i;

	if (!settings.spin || !(settings.spin_windows & 1 << window))
		return false;
	for (i = 0; i < settings.spin && i < 4096; i++)
		bpf_ktime_get_ns();
	return true;
}

static __always_inline void count_held(enum window window, bool hit)
{
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);

	if (!t)
		return;
	t->held[window].passed++;
	if (hit)
		t->held[window].hit++;
}

static __always_inline __u64 cookie_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

static __always_inline struct sk_psock *psock_of(const struct sock *sk)
{
	return (void *)((unsigned long)BPF_CORE_READ(sk, sk_user_data) & SK_USER_DATA_MASK);
}

/* To read something of it that does no harm when it is another's by then; else hold() (hold.bpf.h). */
static __always_inline struct half *half_of(const struct half_key *key)
{
	struct half *h;

	if (!key->cookie)
		return NULL;
	h = bpf_map_lookup_elem(&halves, &key->cookie);
	return h && h->self.generation == key->generation ? h : NULL;
}

/* Or a listener that answers MPTCP. A function of its own: a kernel may be built without. */
static __noinline __attribute__((unused)) bool is_mptcp(const struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp);
}

/* What is counted for a connection whose kind has shown these. */
static __always_inline enum reason hazard_reason(__u32 hazards)
{
	enum reason reason = REASON_hazard;

#define HAZARD(bit, name, why, text)                                                                                   \
	if (hazards & HAZARD_##name)                                                                                   \
		reason = REASON_##why;
#include "hazards.h"
	return reason;
}

/* The cgroup that a socket was made in. A branch of its own, as below. */
static __noinline __attribute__((unused)) struct cgroup *cgroup_of(const struct sock *sk)
{
	struct sock_cgroup_data___old *old;
	__u64 val = 0;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	old = (void *)sk + bpf_core_field_offset(struct sock, sk_cgrp_data);
	val = BPF_CORE_READ(old, val);
	return val & 3 ? NULL : (void *)val;
}

static __always_inline __u64 cgroup_id_of(const struct sock *sk)
{
	return BPF_CORE_READ(cgroup_of(sk), kn, id);
}

/* Cgroup id of the ancestor at a level. A branch of its own: a poisoned relocation must not be hoisted over the test. */
static __noinline __u64 ancestor_id(struct cgroup *cgrp, int level)
{
	__u64 id = 0;

	if (bpf_core_field_exists(cgrp->ancestors)) {
		struct cgroup *a = NULL;

		bpf_probe_read_kernel(&a, sizeof(a),
				      (void *)cgrp + bpf_core_field_offset(struct cgroup, ancestors) + level * 8);
		id = BPF_CORE_READ(a, kn, id);
	} else {
		bpf_probe_read_kernel(&id, sizeof(id),
				      (void *)cgrp + bpf_core_field_offset(struct cgroup___old, ancestor_ids) +
					      level * 8);
	}
	return id;
}

/* The attached cgroup that `cgrp` lies in: the deepest one. Sockets keep the cgroup they were made in. */
static __always_inline __u64 find_workload(struct cgroup *cgrp, struct workload **found)
{
	int level = BPF_CORE_READ(cgrp, level);
	int i;

	*found = NULL;
	for (i = 0; i < 16; i++) {
		__u64 id;

		if (level < 0)
			break;
		id = ancestor_id(cgrp, level);
		*found = bpf_map_lookup_elem(&workloads, &id);
		if (*found)
			return id;
		level--;
	}
	return 0;
}

/* accept() attaches the socket last, after it has charged the child to its memory cgroup. */
static __always_inline bool is_accepted(const struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_socket) != NULL;
}

/*
 * Before 6.3 no tracepoint shows the flags of a receive call; the file's are the next best. A socket that has no file
 * (not accepted yet) says nothing.
 */
static __always_inline bool is_blocking(struct sock *sk)
{
	struct file *file = BPF_CORE_READ(sk, sk_socket, file);

	return file && !(BPF_CORE_READ(file, f_flags) & O_NONBLOCK);
}

/* Long-lived connections need not end to count. */
#define CALLS_OF_A_LONG_LIFE 64

/* One hazard is enough for a kind, for ever. */
static __always_inline void mark_kind(const struct kind_key *key, __u32 hazard, int flags)
{
	struct kind fresh = {}, *kind;

	if (!key->cgroup)
		return; /* an option set before the connection has a kind: its entry reads it (options_of) */
	kind = bpf_map_lookup_elem(&kinds, key);
	if (!kind) {
		bpf_map_update_elem(&kinds, key, &fresh, BPF_NOEXIST);
		kind = bpf_map_lookup_elem(&kinds, key);
	}
	if (kind) {
		kind->last_flags = flags;
		add_hazard(kind, hazard);
	}
}

/* A connection that made enough receive calls, and showed only what is safe, speaks for its kind: once. */
static __always_inline void count_good(struct observed *o)
{
	struct kind fresh = {}, *kind;

	if (o->counted || o->hazards || o->calls < settings.learn_calls)
		return;
	o->counted = 1;
	bpf_map_update_elem(&kinds, &o->kind, &fresh, BPF_NOEXIST);
	kind = bpf_map_lookup_elem(&kinds, &o->kind);
	if (kind)
		__sync_fetch_and_add(&kind->good, 1);
}

/* How long connections of a kind live, in messages both ways; the client's kind keeps it. */
static __always_inline void measure_life(struct half *h)
{
	struct half_key peer_key = h->peer;
	struct half *peer = half_of(&peer_key);
	struct kind_key key = {};
	struct kind fresh = {}, *kind;
	__u64 messages = h->sent.fast_messages + h->sent.tcp_messages;

	if (!settings.min_messages)
		return;
	if (peer)
		messages += peer->sent.fast_messages + peer->sent.tcp_messages;
	if (messages > 1024)
		messages = 1024; /* one long life must not outweigh a thousand short ones for ever */
	key.cgroup = h->cgroup;
	__builtin_memcpy(key.addr, h->remote.addr, sizeof(key.addr));
	key.port = h->remote.port;
	key.role = ROLE_CLIENT;
	bpf_map_update_elem(&kinds, &key, &fresh, BPF_NOEXIST);
	kind = bpf_map_lookup_elem(&kinds, &key);
	if (!kind)
		return;
	kind->messages =
		kind->lives ? kind->messages - (kind->messages >> 3) + ((__u32)messages << 1) : (__u32)messages << 4;
	kind->lives++;
}

/*
 * The queue of this half is empty for good, or gone: what was reserved for it is free again. A sender that reserves at the
 * same time looks at the gate afterwards, and we come here after its bit is set (budget.bpf.h), so one of us does it.
 */
static __always_inline void give_back(struct half *h)
{
	__u32 zero = 0;
	struct budget *b = bpf_map_lookup_elem(&budget, &zero);
	__u64 had = swap_reserved(h, 0);

	if (b && had)
		add_used(b, -had);
}

/* Nothing of a half is lost when its record goes: its sums move to the totals. The caller holds it. */
static __always_inline void retire(struct half *h)
{
	struct half_key key = h->self, peer_key = h->peer;
	struct half *peer HELD = NULL;
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);

	/* before the bit, from which on userspace does not count the record: between the two it looks again (view.rs) */
	if (t)
		__sync_fetch_and_add(&t->retiring, 1);
	/* release and TCP_CLOSE can come together: one of them does it */
	if (gate_or(h, GATE_RETIRED) & GATE_RETIRED) {
		if (t)
			__sync_fetch_and_add(&t->retired, 1);
		return;
	}
	give_back(h);
	peer = hold(&peer_key);
	if (peer) /* its TCP_INFO goes on to count what we sent, and the journal tells of both at its end */
		peer->got = h->sent;
	if (h->slot) {
		__u32 slot = h->slot - 1;
		__u64 *reserver = bpf_map_lookup_elem(&reservers, &slot);

		if (reserver && *reserver == key.cookie)
			*reserver = 0;
	}
	if (h->role == ROLE_CLIENT)
		measure_life(h);
	flow_retire(key.cookie);
	if (!peer)
		journal_half(key.cookie, h->gate & (GATE_DEAD | GATE_RELEASED) ? JOURNAL_CLOSED : JOURNAL_UNWATCHED,
			     h->gate & GATE_DETACH ? REASON_detach : REASON_fast, h->hazards);
	drop_retired(key.cookie);
	if (t)
		__sync_fetch_and_add(&t->retired, 1);
}

#endif
