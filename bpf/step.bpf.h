/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where iterators may not do what they have to (words.bpf.h), userspace walks the map itself and runs a program of type
 * `tc` once for each key (BPF_PROG_TEST_RUN): a type that may take spin locks and delete from a sockhash. The key comes
 * as the contents of a packet that goes nowhere, behind an Ethernet header.
 */
#ifndef SHARED_SOCKET_STEP_H
#define SHARED_SOCKET_STEP_H

#include "kernel.h"

#define STEP_HEADER 14

static __always_inline bool key_of_step(struct __sk_buff *skb, void *key, __u32 size)
{
	return !bpf_skb_load_bytes(skb, STEP_HEADER, key, size);
}

#endif
