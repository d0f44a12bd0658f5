// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/setsockopt: runs before the option takes effect. An option that the fast path cannot serve shuts the gates of
 * the live pair first, so that nothing is redirected under it, and marks the kind. The call itself goes on as it would,
 * and neither level, name nor value are touched.
 *
 * A program of this type may not delete from a sockhash, so the half stays in it until the next ACK; what its
 * application was sent by the fast path before stays readable by recv. Not so behind kTLS, TCP_REPAIR and SO_PEEK_OFF,
 * which would read something else or nothing. They are refused (EBUSY; EPERM before 5.18) while redirected bytes are unread,
 * which an event tells: a library then encrypts by itself, and a checkpoint fails, where otherwise a stream would break.
 *
 * System calls of 32-bit programs do not run this hook; what they set before the connection is established is read
 * where it enters.
 */
#include "hazard.bpf.h"

#define SOL_IPV6 41
#define IPV6_ADDRFORM 1
#define SO_ATTACH_FILTER 26
#define SO_TIMESTAMP_OLD 29
#define SO_TIMESTAMPNS_OLD 35
#define SO_TIMESTAMPING_OLD 37
#define SO_PEEK_OFF 42
#define SO_ATTACH_BPF 50
#define SO_ZEROCOPY 60
#define SO_TIMESTAMP_NEW 63
#define SO_TIMESTAMPNS_NEW 64
#define SO_TIMESTAMPING_NEW 65
#define TCP_REPAIR 19
#define TCP_ULP 31
#define TCP_INQ 36
#define EBUSY 16

/* What the option is, were it given a value that turns it on. */
static __always_inline __u32 hazard_of(int level, int name)
{
	if (level == SOL_TCP) {
		switch (name) {
		case TCP_ULP:
			return HAZARD_ulp;
		case TCP_INQ:
			return HAZARD_queue_length;
		case TCP_REPAIR:
			return HAZARD_repair;
		default:
			return 0;
		}
	}
	if (level == SOL_IPV6)
		return name == IPV6_ADDRFORM ? HAZARD_family : 0;
	if (level != SOL_SOCKET)
		return 0;
	switch (name) {
	case SO_ZEROCOPY:
		return HAZARD_zerocopy_send;
	case SO_RCVLOWAT:
		return HAZARD_low_water;
	case SO_PEEK_OFF:
		return HAZARD_peek_offset;
	case SO_ATTACH_FILTER:
	case SO_ATTACH_BPF:
		return HAZARD_filter;
	case SO_TIMESTAMP_OLD:
	case SO_TIMESTAMP_NEW:
	case SO_TIMESTAMPNS_OLD:
	case SO_TIMESTAMPNS_NEW:
	case SO_TIMESTAMPING_OLD:
	case SO_TIMESTAMPING_NEW:
		return HAZARD_timestamps;
	default:
		return 0;
	}
}

/* Does this value turn it on? */
static __always_inline bool turns_on(__u32 hazard, int value)
{
	switch (hazard) {
	case HAZARD_ulp:
	case HAZARD_filter:
	case HAZARD_family:
		return true; /* the value is a name, a program, a family */
	case HAZARD_low_water:
		return value > 1 || value < 0;
	case HAZARD_peek_offset:
		return value >= 0;
	case HAZARD_repair:
		return value == 1;
	default:
		return value;
	}
}

#define BLIND (HAZARD_ulp | HAZARD_repair | HAZARD_peek_offset)

SEC("cgroup/setsockopt")
int shared_socket_option(struct bpf_sockopt *ctx)
{
	__u32 hazard = hazard_of(ctx->level, ctx->optname);
	void *value = ctx->optval, *end = ctx->optval_end;
	struct bpf_sock *bsk;
	struct half_key peer_key;
	struct half *h HELD = NULL, *peer HELD = NULL;
	struct observed *o;
	bool refused = false;
	struct totals *t;
	struct sock *sk;
	__u32 zero = 0;
	__u64 cookie;

	/*
	 * The kernel hands over one page at most, and before 6.4 a program that leaves the length of a larger value as it is
	 * makes the call fail. 0 means: take the application's own. A program before us that has cut it to size is respected.
	 */
	if (ctx->optlen > 0 && ctx->optlen > (long)(end - value))
		ctx->optlen = 0;
	if (!hazard)
		return 1;
	if (value + 4 <= end && !turns_on(hazard, *(int *)value))
		return 1;
	bsk = ctx->sk;
	if (!bsk || bsk->protocol != IPPROTO_TCP)
		return 1;
	sk = BPF_CORE_READ((struct bpf_sockopt_kern *)ctx, sk);
	cookie = cookie_of(sk);
	h = hold_socket(cookie);
	if (h) {
		/* in every mode: the application asks for what only TCP has */
		poison_half(h, hazard, 0);
		peer_key = h->peer;
		peer = hold(&peer_key);
		if (hazard & BLIND && !(h->gate & GATE_LEFT) && may_be_unread(h, peer)) {
			refused = true;
			t = bpf_map_lookup_elem(&totals, &zero);
			if (t)
				t->refused++;
			tell(h, EVENT_REFUSED, hazard);
		}
	}
	/* created where there is none: the connection may be established between this hook and the option's effect */
	o = OBSERVED_ANEW(bsk, cookie);
	if (o) {
		o->hazards |= hazard;
		mark_kind(&o->kind, hazard, 0);
	}
	if (!refused)
		return 1;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
		bpf_set_retval(-EBUSY);
	return 0;
}
