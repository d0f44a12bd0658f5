/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's types as far as we read them. CO-RE relocates each access to the running kernel's layout, so only names
 * matter here; a member that a kernel lacks is guarded with bpf_core_field_exists where it is read.
 */
#ifndef SHARED_SOCKET_KERNEL_H
#define SHARED_SOCKET_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define AF_INET 2
#define AF_INET6 10
#define SOCK_RCVBUF_LOCK 2
#define O_NONBLOCK 04000
#define MSG_OOB 0x01
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000
#define SK_USER_DATA_PSOCK_FLAG 4UL
#define SK_USER_DATA_MASK (~7UL)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;
typedef struct {
	__s64 counter;
} atomic64_t;
typedef struct {
	atomic_t refs;
} refcount_t;

struct list_head {
	struct list_head *next, *prev;
};

struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;

struct kernfs_node {
	__u64 id;
};
struct cgroup {
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[];
};
/* 5.10 to 6.0 */
struct cgroup___old {
	__u64 ancestor_ids[1];
};
struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sock;
struct sock_common {
	unsigned short skc_family;
	volatile unsigned char skc_state;
	atomic64_t skc_cookie;
	possible_net_t skc_net;
	struct sock *skc_listener;
};

struct wait_queue_head {
	struct list_head head;
};
typedef struct wait_queue_head wait_queue_head_t;
struct wait_queue_entry {
	void *private;
	struct list_head entry;
};
struct socket_wq {
	wait_queue_head_t wait;
};

typedef struct {
	long counter;
} atomic_long_t;
struct page_counter {
	atomic_long_t usage; /* pages */
	unsigned long max;   /* pages */
	struct page_counter *parent;
};
struct mem_cgroup {
	struct page_counter memory;
	struct page_counter tcpmem; /* cgroup v1 */
	_Bool tcpmem_active;
};

struct file {
	unsigned int f_flags;
};
struct socket {
	struct file *file;
};

struct sock {
	struct sock_common __sk_common;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	int sk_err;
	struct socket_wq *sk_wq;
	struct socket *sk_socket;
	void *sk_user_data;
	struct sock_cgroup_data sk_cgrp_data;
	struct mem_cgroup *sk_memcg;
	__u16 sk_protocol;
	__u8 sk_kern_sock : 1;
	__u8 sk_userlocks : 4;
};

struct inet_sock {
	struct sock sk;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 write_seq;
	__u32 copied_seq;
	__u8 repair : 1;
	_Bool is_mptcp;
};
struct request_sock {
	struct sock_common __req_common;
};
struct tcp_request_sock {
	__u32 rcv_isn;
	__u32 snt_isn;
};

struct bpf_sock_ops_kern {
	struct sock *sk;
};

struct sk_psock {
	struct list_head ingress_msg;
	refcount_t refcnt;
};

#pragma clang attribute pop

/* Contexts, laid out by the ABI of iterators. */
struct bpf_iter__sockmap {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(void *, key);
	__bpf_md_ptr(struct sock *, sk);
};

/* enum of include/net/tcp_states.h; the UAPI has it as BPF_TCP_* */
#endif
