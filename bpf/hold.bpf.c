// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Holding a record (hold.bpf.h). A global function: the verifier looks at its loop once. */
#include "words.bpf.h"

#ifndef OLD_KERNEL

#define HOLD_TRIES 64 /* each that fails is another program's success */

__noinline int gate_try_hold(__u64 *gate, __u64 generation)
{
	__u64 old, seen;
	int i;

	if (!gate)
		return 0;
	old = *(volatile __u64 *)gate;
	for (i = 0; i < HOLD_TRIES; i++) {
		if (!may_hold(old, generation))
			return 0;
		seen = __sync_val_compare_and_swap(gate, old, old + GATE_HOLD);
		if (seen == old)
			return 1;
		old = seen;
	}
	return 0;
}

#endif
