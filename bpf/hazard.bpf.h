/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Kinds and their hazards: what every hook that sees one does with it. */
#ifndef SHARED_SOCKET_HAZARD_H
#define SHARED_SOCKET_HAZARD_H

#include "leave.bpf.h"

/* Those that are properties of the socket rather than of a call. */
#define HAZARD_OPTIONS                                                                                                 \
	(HAZARD_zerocopy_send | HAZARD_low_water | HAZARD_timestamps | HAZARD_queue_length | HAZARD_peek_offset |      \
	 HAZARD_filter | HAZARD_ulp | HAZARD_repair | HAZARD_family)

/* The kind that a half belongs to, as pair.bpf.c named it. */
static __always_inline void kind_of(const struct half *h, struct kind_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cgroup = h->cgroup;
	key->role = h->role;
	if (h->role == ROLE_SERVER) {
		key->port = h->local.port;
	} else {
		key->port = h->remote.port;
		__builtin_memcpy(key->addr, h->remote.addr, sizeof(key->addr));
	}
}

/* What userspace may want to know or do something about. Never waits; what found no room is counted. */
static __always_inline void tell(const struct half *h, enum event_what what, __u32 hazard)
{
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);
	struct event *e;

	journal_half(h->self.cookie,
		     what == EVENT_STUCK     ? JOURNAL_STUCK
		     : what == EVENT_REFUSED ? JOURNAL_REFUSED
		     : what == EVENT_RESET   ? JOURNAL_RESET
					     : JOURNAL_UNTOLD,
		     hazard ? hazard_reason(hazard) : REASON_fast, hazard);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	/* asked once: a second look at `e` loses the verifier of 6.1, and it says that a reference is not released */
	if (!e) {
		if (t)
			t->lost++;
		return;
	}
	if (t)
		t->events++;
	e->time_ns = bpf_ktime_get_ns();
	e->half = h->self;
	kind_of(h, &e->kind);
	e->what = what;
	e->hazards = hazard;
	bpf_ringbuf_submit(e, 0);
}

/* The live pair of a half goes back to TCP: nothing more is redirected from here on, and it leaves at the next chance. */
static __always_inline void shut_pair(struct half *h, __u32 hazard)
{
	struct half_key peer_key = h->peer;
	struct half *peer HELD = hold(&peer_key);

	h->hazards |= hazard; /* for the reason that is counted; the gate is what closes */
	shut_gate(h, GATE_HAZARD);
	if (peer) {
		peer->hazards |= hazard;
		shut_gate(peer, GATE_HAZARD);
	}
}

/* A half that is live showed a hazard. */
static __always_inline void poison_half(struct half *h, __u32 hazard, int flags)
{
	struct kind_key key;

	kind_of(h, &key);
	mark_kind(&key, hazard, flags);
	shut_pair(h, hazard);
}

/*
 * A tracing program saw one on a socket that is observed; it may be live. Where the owner vouches for the workload, only
 * counted.
 */
static __always_inline void poison(struct sock *sk, struct observed *o, __u32 hazard, int flags)
{
	__u64 cookie = cookie_of(sk);
	struct half *h HELD = hold_socket(cookie), *peer HELD = NULL;
	struct half_key peer_key;

	o->hazards |= hazard;
	mark_kind(&o->kind, hazard, flags);
	if (!h || h->eligibility == ELIGIBILITY_ALL)
		return;
	peer_key = h->peer;
	peer = hold(&peer_key);
	h->hazards |= hazard; /* for the reason that is counted; the gate is what closes */
	turn(h);
	if (peer) {
		peer->hazards |= hazard;
		turn(peer);
	}
}

/*
 * Options of a socket that are set already. Read where it enters; from then on option.bpf.c sees them being set. Not of
 * `struct tcp_sock *`: the caller may only have an address.
 */
static __always_inline __u32 options_of(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;
	unsigned long flags = BPF_CORE_READ(sk, __sk_common.skc_flags);
	__u32 found = 0;

	if (flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)))
		found |= HAZARD_zerocopy_send;
	if (flags & ((1UL << bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP)) |
		     (1UL << bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMPNS))) ||
	    BPF_CORE_READ(sk, sk_tsflags))
		found |= HAZARD_timestamps;
	if (BPF_CORE_READ(sk, sk_rcvlowat) > 1)
		found |= HAZARD_low_water;
	if (BPF_CORE_READ(sk, sk_filter))
		found |= HAZARD_filter;
	if (BPF_CORE_READ(sk, sk_peek_off) >= 0)
		found |= HAZARD_peek_offset;
	if (bpf_core_field_exists(tp->recvmsg_inq) && BPF_CORE_READ_BITFIELD_PROBED(tp, recvmsg_inq))
		found |= HAZARD_queue_length;
	if (BPF_CORE_READ(tp, inet_conn.icsk_ulp_ops))
		found |= HAZARD_ulp;
	if (BPF_CORE_READ_BITFIELD_PROBED(tp, repair))
		found |= HAZARD_repair;
	return found;
}

#endif
