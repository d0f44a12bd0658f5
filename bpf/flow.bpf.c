// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Sums by pairs of workloads. What is counted here is also in `totals`, so both say the same. Global functions, as the
 * loops are: retire() is a part of many programs.
 */
#include "journal.bpf.h"

/* A new record is larger than the stack. */
static const volatile struct flow no_flow;

/* Made where there was none; where there is no room, "other". */
static __always_inline struct flow *flow_of(const struct flow_key *key)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);
	struct flow_key other = {~0ULL, ~0ULL};

	if (f)
		return f;
	bpf_map_update_elem(&flows, key, (const void *)&no_flow, BPF_NOEXIST);
	f = bpf_map_lookup_elem(&flows, key);
	return f ? f : bpf_map_lookup_elem(&flows, &other);
}

static __always_inline void add(__u64 *sum, __u64 value)
{
	if (value)
		__sync_fetch_and_add(sum, value);
}

static __always_inline void key_of_flow(const struct half *h, struct flow_key *key)
{
	key->client = h->role == ROLE_CLIENT ? h->workload : h->peer_workload;
	key->server = h->role == ROLE_CLIENT ? h->peer_workload : h->workload;
}

__noinline int flow_paired(__u64 client, __u64 server, __u32 adopted)
{
	struct flow_key key = {client, server};
	struct flow *f;

	f = flow_of(&key);
	if (!f)
		return 0;
	add(&f->pairs, 1);
	add(&f->adopted, adopted);
	return 0;
}

__noinline int flow_left(__u64 cookie)
{
	struct half *h = bpf_map_lookup_elem(&halves, &cookie);
	struct flow_key key;
	struct flow *f;

	if (!h)
		return 0;
	key_of_flow(h, &key);
	f = flow_of(&key);
	if (f)
		add(&f->left, 1);
	return 0;
}

static __always_inline void add_counters(struct counters *sum, const struct counters *c)
{
	add(&sum->fast_messages, c->fast_messages);
	add(&sum->fast_bytes, c->fast_bytes);
	add(&sum->tcp_messages, c->tcp_messages);
	add(&sum->tcp_bytes, c->tcp_bytes);
}

/* Atomics, in the totals of one CPU too: the end of another half may interrupt this one. */
__noinline int flow_retire(__u64 cookie)
{
	struct half *h = bpf_map_lookup_elem(&halves, &cookie);
	__u32 zero = 0;
	struct totals *t = bpf_map_lookup_elem(&totals, &zero);
	struct flow_key key;
	struct counters *sent;
	struct flow *f;
	__u64 lasted, messages;
	__u32 i;

	if (!h || !t)
		return 0;
	messages = h->sent.fast_messages + h->sent.tcp_messages;
	if (messages) {
		add_counters(&t->sent, &h->sent);
		add(&t->handoffs, h->handoffs);
		for (i = 0; i < REASON_SLOTS; i++)
			add(&t->reasons[i], h->reasons[i]);
	}
	key_of_flow(h, &key);
	f = flow_of(&key);
	if (!f)
		return 0;
	sent = h->role == ROLE_CLIENT ? &f->sent[ROLE_CLIENT] : &f->sent[ROLE_SERVER];
	if (messages) {
		add_counters(sent, &h->sent);
		add(&f->handoffs, h->handoffs);
		for (i = 0; i < HISTOGRAM_SLOTS; i++)
			add(&f->sizes[i], h->sizes[i]);
	}
	if (h->role == ROLE_CLIENT && h->peer_workload) {
		lasted = bpf_ktime_get_ns() - h->established_ns;
		add(&f->duration_ns, lasted);
		add(&f->durations[slot_of(lasted >> 20)], 1);
	}
	if (h->handoff_ns > h->established_ns)
		add(&f->starts[slot_of((h->handoff_ns - h->established_ns) >> 10)], 1);
	if (!h->waited)
		return 0;
	for (i = 0; i < HISTOGRAM_SLOTS; i++)
		add(&f->waits[i], h->waits[i]);
	return 0;
}
