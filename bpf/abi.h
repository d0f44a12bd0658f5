/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel half and userspace agree on. Rust gets these types through BTF (the `abi` variable in main of the
 * linked object makes clang emit them), so there is one definition. Change a size or a meaning: raise ABI_VERSION.
 */
#ifndef SHARED_SOCKET_ABI_H
#define SHARED_SOCKET_ABI_H

#define ABI_VERSION 1
#define REASON_SLOTS 32 /* room for reasons to come without a new ABI */

enum reason {
#define REASON(number, name, text) REASON_##name = number,
#include "reasons.h"
	REASON_COUNT,
};
_Static_assert(REASON_COUNT <= REASON_SLOTS, "reasons outgrew their slots");

/* `path` is a list that will grow (DESIGN section 6): a number, never a flag. */
enum half_path {
	PATH_TCP = 0,  /* in the sockhash, messages go by TCP for now */
	PATH_FAST = 1, /* in the sockhash, messages are redirected */
	PATH_LEFT = 2, /* out of the sockhash: plain TCP for good */
};

enum role {
	ROLE_CLIENT = 0,
	ROLE_SERVER = 1,
};

enum eligibility {
	ELIGIBILITY_SAFE = 0, /* only kinds that were observed to be safe */
	ELIGIBILITY_ALL = 1,  /* every pair: the owner knows the workload */
};

/*
 * The gate of a half governs its own sends: open means no bit but TOUCHED. Every bit is set with a fetching atomic, and
 * the verdict passes it with one; see leave.bpf.h for why.
 */
enum gate {
	GATE_TOUCHED = 1,      /* no meaning: what the verdict's fetch_or stores */
	GATE_UNTIED = 2,       /* the peer is not known yet */
	GATE_PEER_LEAVING = 4, /* the peer closes or leaves: nothing may be queued to it any more */
	GATE_CLOSING = 8,      /* this half closes or leaves */
	GATE_DETACH = 16,      /* a workload of the pair is being detached */
	GATE_HAZARD = 64,      /* the application showed a hazard on either half */
	GATE_RELEASED = 128,   /* the application has closed its last descriptor */
	GATE_DEAD = 256,       /* TCP_CLOSE was seen */
	GATE_LEFT = 512,       /* out of the sockhash */
	GATE_RETIRED = 1024,   /* its sums have moved to the totals */
};
#define GATE_SHUT (GATE_UNTIED | GATE_PEER_LEAVING | GATE_CLOSING | GATE_DETACH | GATE_HAZARD | GATE_DEAD | GATE_LEFT)
#define GATE_MUST_LEAVE (GATE_DETACH | GATE_HAZARD)

/* Key of the sockhash. A socket that is disconnected and connected again keeps its cookie: the generation tells. */
struct half_key {
	__u64 cookie;
	__u32 generation;
	__u32 pad;
};
_Static_assert(sizeof(struct half_key) == 16, "half_key");

struct counters {
	__u64 fast_messages;
	__u64 fast_bytes; /* bytes */
	__u64 tcp_messages;
	__u64 tcp_bytes; /* bytes */
};

struct endpoint {
	__u8 addr[16]; /* network order; IPv4 in the first four */
	__u16 port;    /* host order */
	__u16 family;  /* AF_INET, AF_INET6 */
	__u32 pad;
};
_Static_assert(sizeof(struct endpoint) == 24, "endpoint");

/* One established TCP socket of a workload, in the sockhash. Times in nanoseconds of CLOCK_BOOTTIME or MONOTONIC. */
struct half {
	struct half_key self;
	struct half_key peer; /* zero until tied */
	__u64 sk;	      /* own struct sock: an address to probe-read, never to trust */
	__u64 peer_sk;	      /* the peer's, likewise */
	__u64 gate;	      /* enum gate; fetching atomics only */
	__u64 inflight;	      /* task whose redirect may not have been delivered yet; 1: several tasks */
	__u64 workload;	      /* cgroup id of the attached workload */
	__u64 cgroup;	      /* cgroup id of the socket */
	__u64 established_ns; /* CLOCK_MONOTONIC */
	__u64 handoff_ns;     /* CLOCK_MONOTONIC, 0: never fast */
	__u64 tcp_due;	      /* jiffies: when a message goes by TCP for conntrack's sake */
	struct counters sent;
	struct endpoint local;
	struct endpoint remote;
	__u32 netns; /* inode number of the network namespace */
	__u32 isn_local;
	__u32 isn_remote;
	__u32 drained_seq;  /* our write_seq when the peer was last seen to have read everything */
	__s32 credit_bytes; /* what may be sent before the peer's queue is looked at again */
	__s32 credit_messages;
	__u32 queued_messages; /* an upper bound of what the peer has in its ingress queue */
	__u8 role;	       /* enum role */
	__u8 path;	       /* enum half_path */
	__u8 eligibility;      /* enum eligibility, of the workload */
	__u8 reason;	       /* enum reason of the last message */
	__u8 drained;	       /* drained_seq is valid */
	__u8 pad[7];
	__u64 handoffs;
	__u64 reasons[REASON_SLOTS]; /* messages, by reason */
};

/* An attached cgroup. */
struct workload {
	__u64 attached_ns; /* CLOCK_REALTIME */
	__u32 eligibility; /* enum eligibility */
	__u32 draining;	   /* no new pairs; live ones leave */
};

enum handshake_state {
	HANDSHAKE_PUBLISHED = 0, /* the SYN is on its way */
	HANDSHAKE_ANNOUNCED = 1, /* a listener of ours has seen it: both ends are here */
	HANDSHAKE_ENTERED = 2,	 /* the client half is in the sockhash */
	HANDSHAKE_DECLINED = 3,	 /* the client half stays on TCP */
	HANDSHAKE_AMBIGUOUS = 4, /* two of one number at one time */
};

/* A connect() on its way; key: the client's initial sequence number. */
struct handshake {
	__u64 client_cookie;
	__u64 client_sk;
	__u32 client_generation;
	__u32 server_isn; /* valid from HANDSHAKE_ANNOUNCED on */
	__u32 state;	  /* enum handshake_state */
	__u32 server_ok;  /* the listener's kind may be accelerated */
};

/* What is known of a kind: accepted sockets of a listener, or connections of a workload to a destination. */
struct kind_key {
	__u64 cgroup;
	__u8 addr[16]; /* destination; zero for a listener */
	__u16 port;
	__u8 role; /* enum role */
	__u8 pad[5];
};
_Static_assert(sizeof(struct kind_key) == 32, "kind_key");

struct kind {
	__u32 good;    /* connections that showed only what is safe */
	__u32 hazards; /* calls that showed a hazard; one is enough for ever */
	__u32 last_flags;
	__u32 lives;	/* connections whose length was measured */
	__u32 messages; /* messages a connection, a moving average, times 16 */
	__u32 skipped;	/* connections left on TCP since the last that was measured */
};

/* Per socket, while its kind is learned or its pair is live (BPF_MAP_TYPE_SK_STORAGE). */
struct observed {
	struct kind_key kind;
	__u32 calls;
	__u32 hazards;
	__u32 counted;
	__u32 pad;
};

/* Sums over pairs that are gone, and events; per CPU. */
struct totals {
	struct counters sent;
	__u64 pairs;	/* tied since load */
	__u64 handoffs; /* of pairs that are gone */
	__u64 retiring; /* records whose sums are being moved here, */
	__u64 retired;	/* and those whose have been: equal when nothing is counted twice */
	__u64 left;	/* halves taken out of the sockhash by protocol */
	__u64 reasons[REASON_SLOTS];
};

/* Read-only to the programs after load. */
struct settings {
	__u32 abi_version;
	__u32 budget_bytes;    /* per peer */
	__u32 budget_messages; /* per peer */
	__u32 keepalive_jiffies;
	__u32 learn_connections; /* good connections before a kind is eligible */
	__u32 learn_calls;	 /* receive calls that make a connection count */
	__u32 min_messages;	 /* kinds whose connections carry fewer on average stay on TCP; 0: none does */
	__u32 learn_by_flags;	 /* no sock_recv_length tracepoint: judge by O_NONBLOCK of the file */
	__u32 spin;		 /* debug: iterations to spin where races are closed, to force them open */
};

/* Never read: carries the types above into BTF. */
struct abi {
	enum gate gate;
	struct half half;
	struct workload workload;
	struct handshake handshake;
	struct kind_key kind_key;
	struct kind kind;
	struct totals totals;
	struct settings settings;
};

#endif
