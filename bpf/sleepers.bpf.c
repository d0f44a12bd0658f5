// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who sleeps on a socket (adopt.bpf.h). A global function, as every loop on the way of a message is. */
#include "adopt.bpf.h"

#define SLEEPERS_SEEN 32

/*
 * What tasks that sleep in a call of TCP wait with (sk_wait_data, sk_stream_wait_memory, tcp_msg_wait_data). Used in one
 * object only: libbpf's linker cannot merge two.
 */
extern const void woken_wake_function __ksym __weak;

/* A queue that moves under the walk counts as yes, and so does a kernel that does not tell. */
__noinline int adopt_slept_on(__u64 socket, __u64 reader)
{
	struct sock *sk = (void *)socket;
	struct socket_wq *wq = BPF_CORE_READ(sk, sk_wq);
	struct list_head *head = &wq->wait.head, *at = BPF_CORE_READ(wq, wait.head.next);
	int i;

	if (!&woken_wake_function)
		return 1;
	for (i = 0; i < SLEEPERS_SEEN; i++) {
		struct wait_queue_entry *entry;

		if (at == head)
			return 0;
		if (!at)
			return 1;
		entry = (void *)at - bpf_core_field_offset(struct wait_queue_entry, entry);
		if (BPF_CORE_READ(entry, func) == (void *)&woken_wake_function &&
		    (__u64)BPF_CORE_READ(entry, private) != reader)
			return 1;
		at = BPF_CORE_READ(at, next);
	}
	return 1;
}
