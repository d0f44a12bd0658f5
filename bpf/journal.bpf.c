// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Writing the journal (journal.bpf.h). Global functions: the verifier looks at each once, whoever calls it. */
#include "sockops.h"

static __always_inline struct journal_head *own_head(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&journal_heads, &zero);
}

static __always_inline bool admit(struct journal_head *head, __u64 cookie, __u32 kind)
{
	struct journal_bucket *b;
	__u64 now = bpf_jiffies64(), elapsed, tokens, most = (__u64)settings.journal_burst << 8;

	if (kind >= JOURNAL_SLOTS)
		return false;
	b = &head->buckets[kind];
	if (kind == JOURNAL_CONNECT || kind == JOURNAL_ACCEPT) {
		if (b->last == cookie)
			return false;
		b->last = cookie;
	}
	elapsed = now - b->filled;
	tokens = most;
	/* an unused bucket is full, and so is one that nobody looked at for long: no product overflows */
	if (b->written && elapsed < 1 << 20) {
		tokens = b->tokens + elapsed * settings.journal_refill;
		if (tokens > most)
			tokens = most;
	}
	b->filled = now;
	b->written = 1;
	if (tokens < 256) {
		b->tokens = tokens;
		b->suppressed++;
		return false;
	}
	b->tokens = tokens - 256;
	return true;
}

/* The entry is this writer's until published(). NULL: not on this CPU, or not now. */
static __always_inline struct journal_entry *claim(struct journal_head *head, __u64 *position)
{
	__u32 at, mask = settings.journal_mask;
	struct journal_entry *e;

#ifdef OLD_KERNEL
	if (head->writing++) {
		head->writing--;
		head->lost++;
		return NULL;
	}
	*position = head->next++;
#else
	*position = __sync_fetch_and_add(&head->next, 1);
#endif
	at = bpf_get_smp_processor_id() * (mask + 1) + ((__u32)*position & mask);
	e = bpf_map_lookup_elem(&journal, &at);
	if (e)
		*(volatile __u64 *)&e->sequence = 0;
#ifdef OLD_KERNEL
	else
		head->writing--;
#else
	/* a full barrier: a reader that sees what is written below sees no old sequence before it */
	if (e)
		FETCHED(__sync_lock_test_and_set(&e->sequence, 0));
#endif
	return e;
}

static __always_inline void published(struct journal_head *head, struct journal_entry *e, __u64 position)
{
#ifdef OLD_KERNEL
	barrier_var(position);
	*(volatile __u64 *)&e->sequence = position + 1;
	head->writing--;
#else
	FETCHED(__sync_lock_test_and_set(&e->sequence, position + 1));
#endif
}

__noinline int journal_half(__u64 cookie, __u32 kind, __u32 reason, __u32 hazards)
{
	struct journal_head *head = own_head();
	struct journal_entry *e;
	struct half *h;
	__u64 position;

	if (!head || !admit(head, cookie, kind))
		return 0;
	h = bpf_map_lookup_elem(&halves, &cookie);
	if (!h)
		return 0;
	e = claim(head, &position);
	if (!e)
		return 0;
	e->time_ns = bpf_ktime_get_ns();
	e->cookie = cookie;
	e->peer_cookie = h->peer.cookie;
	e->cgroup = h->cgroup;
	e->workload = h->workload;
	e->peer_cgroup = h->peer_cgroup;
	e->peer_workload = h->peer_workload;
	__builtin_memcpy(e->local_addr, h->local.addr, sizeof(e->local_addr));
	__builtin_memcpy(e->remote_addr, h->remote.addr, sizeof(e->remote_addr));
	e->local_port = h->local.port;
	e->remote_port = h->remote.port;
	e->family = h->local.family;
	e->kind = kind;
	e->role = h->role;
	e->reason = reason;
	e->netns = h->netns;
	e->hazards = hazards;
	e->generation = h->self.generation;
	e->duration_ns = e->time_ns - h->established_ns;
	e->sent = h->sent;
	e->got = h->got;
	published(head, e, position);
	return 0;
}

__noinline int journal_socket(struct bpf_sock_ops *ops, __u32 kind, __u32 reason, __u64 peer_cookie)
{
	struct journal_head *head = own_head();
	__u64 cookie = bpf_get_socket_cookie(ops), position, workload;
	struct sock *sk = kernel_sock(ops);
	struct journal_entry *e;
	struct workload *w;

	if (!head || !admit(head, cookie, kind))
		return 0;
	workload = find_workload(cgroup_of(sk), &w);
	e = claim(head, &position);
	if (!e)
		return 0;
	e->time_ns = bpf_ktime_get_ns();
	e->cookie = cookie;
	e->peer_cookie = peer_cookie;
	e->cgroup = cgroup_id_of(sk);
	e->workload = workload;
	e->peer_cgroup = 0;
	e->peer_workload = 0;
	__builtin_memset(e->local_addr, 0, sizeof(e->local_addr));
	__builtin_memset(e->remote_addr, 0, sizeof(e->remote_addr));
	if (ops->family == AF_INET6) {
		__u32 *l = (__u32 *)e->local_addr, *r = (__u32 *)e->remote_addr;

		l[0] = ops->local_ip6[0];
		l[1] = ops->local_ip6[1];
		l[2] = ops->local_ip6[2];
		l[3] = ops->local_ip6[3];
		r[0] = ops->remote_ip6[0];
		r[1] = ops->remote_ip6[1];
		r[2] = ops->remote_ip6[2];
		r[3] = ops->remote_ip6[3];
	} else {
		*(__u32 *)e->local_addr = ops->local_ip4;
		*(__u32 *)e->remote_addr = ops->remote_ip4;
	}
	e->local_port = ops->local_port;
	e->remote_port = bpf_ntohl(ops->remote_port);
	e->family = ops->family;
	e->kind = kind;
	e->role = kind == JOURNAL_ACCEPT ? ROLE_SERVER : ROLE_CLIENT;
	e->reason = reason;
	e->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	e->hazards = 0;
	e->generation = 0;
	e->duration_ns = 0;
	__builtin_memset(&e->sent, 0, sizeof(e->sent));
	__builtin_memset(&e->got, 0, sizeof(e->got));
	published(head, e, position);
	return 0;
}
