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

#define CLOCK_MONOTONIC 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_RCVBUF_LOCK 2
#define O_NONBLOCK 04000
#define EAGAIN 11
#define RCV_SHUTDOWN 1
#define SOL_SOCKET 1
#define SOL_TCP 6
#define SO_RCVLOWAT 18
#define MSG_OOB 0x01
#define MSG_PEEK 0x02
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000
#define MSG_SOCK_DEVMEM 0x2000000
#define MSG_ZEROCOPY 0x4000000
#define MSG_FASTOPEN 0x20000000
#define IPPROTO_TCP 6
#ifndef TCP_BPF_SOCK_OPS_CB_FLAGS
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
#endif
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
/* before 5.15: the cgroup's address, or, with one of the lowest two bits, what net_prio and net_cls put there instead */
struct sock_cgroup_data___old {
	__u64 val;
};

struct sock;
struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};
struct proto {
	atomic64_t *memory_allocated; /* atomic_long_t */
	unsigned long *memory_pressure;
	long *sysctl_mem;
};
struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport; /* network order */
	__u16 skc_num;	 /* host order */
	unsigned short skc_family;
	volatile unsigned char skc_state;
	atomic64_t skc_cookie;
	struct proto *skc_prot;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
	__u32 skc_rxhash; /* skb->hash of the last packet that it got; CONFIG_RPS */
	struct sock *skc_listener;
	refcount_t skc_refcnt;
};

struct wait_queue_head {
	struct list_head head;
};
typedef struct wait_queue_head wait_queue_head_t;
struct wait_queue_entry {
	void *private;
	void *func;
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
	struct sock *sk;
};

enum sock_flags {
	SOCK_RCVTSTAMP,
	SOCK_RCVTSTAMPNS,
	SOCK_ZEROCOPY,
};

typedef struct {
	int owned;
} socket_lock_t;

struct sk_filter;
struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	int sk_err;
	int sk_rcvlowat;
	int sk_peek_off;
	__u16 sk_tsflags; /* 32 bits wide on newer kernels: the lower ones are all that is read */
	__u8 sk_shutdown;
	struct sk_filter *sk_filter;
	struct socket_wq *sk_wq;
	struct socket *sk_socket;
	void *sk_user_data;
	struct sock_cgroup_data sk_cgrp_data;
	struct mem_cgroup *sk_memcg;
	__u16 sk_protocol;
	__u32 sk_txhash; /* of all packets that it sends: random, made at connect */
	__u8 sk_kern_sock : 1;
	__u8 sk_userlocks : 4;
};

/* there with CONFIG_RPS */
struct rps_sock_flow_table {
	__u32 mask;
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
	__u32 snd_una;
	__u32 rcv_nxt;
	__u32 rcv_wnd;
	__u32 rcv_wup;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u16 urg_data;
	__u8 recvmsg_inq : 1; /* a bool of its own on older kernels */
	__u8 repair : 1;
	_Bool is_mptcp;
};
struct task_struct {
	void *stack;
};
/* arm64; x86's is read by its ABI (call.bpf.h) */
struct pt_regs___call {
	__s32 syscallno;
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
struct bpf_sockopt_kern {
	struct sock *sk;
};

struct scatterlist {
	unsigned long page_link; /* struct page *, and two bits that mark the ends of lists */
	unsigned int offset;
	unsigned int length;
};
struct sk_msg_sg {
	__u32 start;
	__u32 size;
	struct scatterlist data[1]; /* a ring of all but the last */
};
struct sk_msg {
	struct sk_msg_sg sg;
	void *data; /* of the first element; NULL where its page is not the kernel's own */
	struct list_head list;
};
/* only its size matters */
struct page {
	unsigned long flags;
};
struct sk_psock {
	struct list_head ingress_msg;
	refcount_t refcnt;
};

#pragma clang attribute pop

/* Contexts, laid out by the ABI of iterators. */
struct bpf_iter_meta {
	__bpf_md_ptr(struct seq_file *, seq);
};
struct bpf_iter__sockmap {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(void *, key);
	__bpf_md_ptr(struct sock *, sk);
};

struct bpf_iter__bpf_map_elem {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct bpf_map *, map);
	__bpf_md_ptr(void *, key);
	__bpf_md_ptr(void *, value);
};

struct bpf_iter__tcp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct sock_common *, sk_common);
	__u32 uid;
};

/* enum of include/net/tcp_states.h; the UAPI has it as BPF_TCP_* */
#endif
