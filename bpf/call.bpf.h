/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which system call the current task is in, and its registers: what sk_msg and tracepoints do not say themselves.
 *
 * The registers of user mode lie at the top of the task's kernel stack. Where that top is depends on the kernel's build
 * (KASAN and large pages make stacks larger, FRED keeps 16 bytes free), which BTF does not tell; so the few possible
 * places are tried until one holds what can only be user mode's code segment, and the place is kept. A kernel where
 * none does answers CALL_UNKNOWN for ever, which is no error: kinds are still judged by what they showed on TCP.
 */
#ifndef SHARED_SOCKET_CALL_H
#define SHARED_SOCKET_CALL_H

#include "kernel.h"

enum call {
	CALL_UNKNOWN = 0, /* io_uring, a kernel thread, a system call that is none of these */
	CALL_PLAIN,	  /* write, writev, sendfile, splice to the socket: no flags */
	CALL_FLAGS,	  /* sendto, sendmsg, sendmmsg */
	CALL_READ,	  /* read, recvfrom: the length is known */
	CALL_RECEIVE,	  /* recvmsg, recvmmsg */
	CALL_SPLICE,
	CALL_GETSOCKOPT,
};

#define CALL_TRIES 256 /* looks at tasks that may not be in a system call at all, before it is given up */

extern volatile __u32 registers_below; /* distance of the registers from the task's stack; 0: not found yet */
extern volatile __u32 registers_tries;

#if defined(__TARGET_ARCH_x86)

/* struct pt_regs from r10 to cs: its layout is that of the user ABI (ptrace) and does not change. */
#define REGISTERS_SIZE 168
struct registers {
	__u64 r10, r9, r8, ax, cx, dx, si, di;
	__s64 orig_ax;
	__u64 ip, cs;
};
#define REGISTERS_SKIP 56

static __always_inline bool read_registers(struct registers *r, __u64 stack, __u32 below)
{
	if (bpf_probe_read_kernel(r, sizeof(*r), (void *)(stack + below + REGISTERS_SKIP)))
		return false;
	/* __USER_CS, __USER32_CS; the upper bits are FRED's */
	return (__u16)r->cs == 0x33 || (__u16)r->cs == 0x23;
}

static __always_inline enum call classify(const struct registers *r, __u32 *flags, __u32 *length)
{
	__u32 nr = (__u32)r->orig_ax;

	if ((__u16)r->cs == 0x23) { /* the 32-bit table: ebx, ecx, edx, esi, edi, ebp */
		switch (nr) {
		case 4:
		case 146:
		case 187:
		case 239:
			return CALL_PLAIN;
		case 369:
		case 345:
			*flags = r->si;
			return CALL_FLAGS;
		case 370:
			*flags = r->dx;
			return CALL_FLAGS;
		case 371:
			*flags = r->si;
			*length = r->dx;
			return CALL_READ;
		case 3:
			*length = r->dx;
			return CALL_READ;
		case 372:
			*flags = r->dx;
			return CALL_RECEIVE;
		case 337:
		case 417:
			*flags = r->si;
			return CALL_RECEIVE;
		case 313:
			return CALL_SPLICE;
		case 365:
			return CALL_GETSOCKOPT;
		default:
			return CALL_UNKNOWN;
		}
	}
	switch (nr & ~0x40000000U) { /* x32 has its numbers above this bit, and the same ones for these */
	case 1:
	case 20:
	case 40:
		return CALL_PLAIN;
	case 44:
	case 307:
		*flags = r->r10;
		return CALL_FLAGS;
	case 46:
		*flags = r->dx;
		return CALL_FLAGS;
	case 45:
		*flags = r->r10;
		*length = r->dx;
		return CALL_READ;
	case 0:
		*length = r->dx;
		return CALL_READ;
	case 47:
		*flags = r->dx;
		return CALL_RECEIVE;
	case 299:
		*flags = r->r10;
		return CALL_RECEIVE;
	case 275:
		return CALL_SPLICE;
	case 55:
		return CALL_GETSOCKOPT;
	default:
		return CALL_UNKNOWN;
	}
}

#elif defined(__TARGET_ARCH_arm64)

/* struct user_pt_regs, the first member of arm64's struct pt_regs. */
#define REGISTERS_SIZE bpf_core_type_size(struct pt_regs___call)
struct registers {
	__u64 x[4];
	__u64 pstate;
	__s32 nr;
};

static __always_inline bool read_registers(struct registers *r, __u64 stack, __u32 below)
{
	__u64 at = stack + below;

	if (bpf_probe_read_kernel(r->x, sizeof(r->x), (void *)at) ||
	    bpf_probe_read_kernel(&r->pstate, sizeof(r->pstate), (void *)(at + 264)) ||
	    bpf_probe_read_kernel(&r->nr, sizeof(r->nr),
				  (void *)(at + bpf_core_field_offset(struct pt_regs___call, syscallno))))
		return false;
	return !(r->pstate & 0x1f) && r->nr >= 0 && r->nr < 1024; /* EL0, 64 bits, in a system call */
}

static __always_inline enum call classify(const struct registers *r, __u32 *flags, __u32 *length)
{
	switch (r->nr) {
	case 64:
	case 66:
	case 71:
		return CALL_PLAIN;
	case 206:
	case 269:
		*flags = r->x[3];
		return CALL_FLAGS;
	case 211:
		*flags = r->x[2];
		return CALL_FLAGS;
	case 207:
		*flags = r->x[3];
		*length = r->x[2];
		return CALL_READ;
	case 63:
		*length = r->x[2];
		return CALL_READ;
	case 212:
		*flags = r->x[2];
		return CALL_RECEIVE;
	case 243:
		*flags = r->x[3];
		return CALL_RECEIVE;
	case 76:
		return CALL_SPLICE;
	case 209:
		return CALL_GETSOCKOPT;
	default:
		return CALL_UNKNOWN;
	}
}

#endif

/* Tries the places where the registers may be. A function of its own, and rarely run. */
static __noinline bool find_registers(__u64 stack)
{
	struct registers r;
	__u32 i;

	if (registers_tries >= CALL_TRIES)
		return false;
	registers_tries++;
	for (i = 0; i < 6; i++) {
		/* stacks of 16, 32 and 64 KiB, each without and with FRED's 16 bytes */
		__u32 below = (16384U << (i >> 1)) - (i & 1 ? 16 : 0) - REGISTERS_SIZE;

		if (read_registers(&r, stack, below)) {
			registers_below = below;
			return true;
		}
	}
	return false;
}

/* The call that `task` (the current one) is in; its flags and its length, where it has such, are left alone otherwise. */
static __always_inline enum call current_call(__u64 task, __u32 *flags, __u32 *length)
{
	__u64 stack = (__u64)BPF_CORE_READ((struct task_struct *)task, stack);
	struct registers r;

	if (!registers_below && !find_registers(stack))
		return CALL_UNKNOWN;
	if (!read_registers(&r, stack, registers_below))
		return CALL_UNKNOWN;
	return classify(&r, flags, length);
}

#endif
