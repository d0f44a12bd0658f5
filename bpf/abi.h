/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel half and userspace agree on. Rust gets these types through BTF (the `abi` variable in main of the
 * linked object makes clang emit them), so there is one definition. Change a size or a meaning: raise ABI_VERSION.
 */
#ifndef SHARED_SOCKET_ABI_H
#define SHARED_SOCKET_ABI_H

enum abi {
	ABI_VERSION = 3,
	REASON_SLOTS = 48,	 /* room for reasons to come without a new ABI */
	PORTS = 1024,		 /* that may be left alone */
	HISTOGRAM_SLOTS = 32,	 /* slot n counts values of [2^n, 2^(n+1)); the first also 0, the last all above */
	JOURNAL_SLOTS = 24,	 /* room for kinds of events to come */
	JOURNAL_ENTRIES = 32768, /* in all, about: each CPU has the same power of two */
	VERDICT_SAMPLES = 256,	 /* of so many messages of a half, the verdict on one is timed; a power of two */
	STAMPS = 4096,		 /* messages whose wait may be measured at one time; a power of two */
};

enum reason {
#define REASON(number, name, text) REASON_##name = number,
#include "reasons.h"
	REASON_COUNT,
};
_Static_assert((int)REASON_COUNT <= (int)REASON_SLOTS, "reasons outgrew their slots");

/* Slots of `verdicts`. Each before the last holds the verdict too, or a tap, which goes on to the slot behind it. */
enum verdict_slot {
	VERDICT_FIRST = 0, /* what the stub calls */
	VERDICT_LAST = 3,  /* the verdict, always */
	VERDICT_SLOTS = 4,
};

/* Bits of a set. */
enum hazard {
#define HAZARD(bit, name, reason, text) HAZARD_##name = 1 << bit,
#include "hazards.h"
};

/* `path` is a list that will grow: a number, never a flag. */
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
 * the verdict passes it with one; see leave.bpf.h for why. The word holds more than these: hold.bpf.h.
 */
enum gate {
	GATE_TOUCHED = 1,      /* no meaning: what the verdict's fetch_or stores */
	GATE_UNTIED = 2,       /* the peer is not known yet */
	GATE_PEER_LEAVING = 4, /* the peer closes or leaves: nothing may be queued to it any more */
	GATE_CLOSING = 8,      /* this half closes or leaves */
	GATE_DETACH = 16,      /* a workload of the pair is being detached */
	GATE_STUCK = 32,       /* no meaning for sends: unread redirected bytes, and a call that cannot see them */
	GATE_HAZARD = 64,      /* the application showed a hazard on either half */
	GATE_RELEASED = 128,   /* the application has closed its last descriptor */
	GATE_DEAD = 256,       /* TCP_CLOSE was seen */
	GATE_LEFT = 512,       /* out of the sockhash */
	GATE_RETIRED = 1024,   /* its sums have moved to the totals; it goes with its last holder (hold.bpf.h) */
	GATE_STREAM = 4096,    /* a strict pair that TCP carries from here on (clean.bpf.h) */
	GATE_SETTLING = 2048,  /* somebody takes back what it has not used of its credit (budget.bpf.h) */
	GATE_ADOPTING = 65536, /* adopted: the peer may still be read by a call that began before (adopt.bpf.h) */
};
#define GATE_SHUT                                                                                                      \
	(GATE_UNTIED | GATE_PEER_LEAVING | GATE_CLOSING | GATE_DETACH | GATE_HAZARD | GATE_DEAD | GATE_LEFT |          \
	 GATE_RETIRED | GATE_STREAM | GATE_ADOPTING)
#define GATE_MUST_LEAVE (GATE_DETACH | GATE_HAZARD | GATE_STREAM)

/*
 * What FIONREAD does not count on a half in the sockhash (H7), and what holds on every kernel: a recv ends where redirected
 * bytes end, and returns less than was asked for, while bytes that came by TCP are there. Bits.
 */
enum fionread {
	FIONREAD_EXACT = 0,
	FIONREAD_MISSES_TCP = 1,  /* bytes that came by TCP */
	FIONREAD_MISSES_FAST = 2, /* bytes that were redirected */
	FIONREAD_SHORT_READS = 4,
};

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
	__u64 gate;	      /* generation, holds, enum gate (hold.bpf.h); fetching atomics only */
	__u64 inflight;	      /* task whose redirect may not have been delivered yet; 1: several tasks */
	__u64 workload;	      /* cgroup id of the attached workload */
	__u64 cgroup;	      /* cgroup id of the socket */
	__u64 reader;	      /* adopted: the task whose receive calls have ended since; 1: several tasks */
	__u64 established_ns; /* CLOCK_MONOTONIC; of an adopted half: when it was adopted */
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
	__u8 grant;	       /* size of the last grant of credit: doublings of the least */
	__u8 leaving;	       /* enum leaving */
	__u8 strict;	       /* of a `safe` workload (clean.bpf.h) */
	__u8 adopted;	       /* it was established before its workload was attached */
	__u8 turned;	       /* a hazard that a tracing program saw, where it may not shut the gate (words.bpf.h) */
	__u8 waited;	       /* there is something in `waits` */
	__u8 pad;
	__u32 refilled; /* jiffies of the last grant */
	__u32 slot;	/* its place in `reservers`, plus 1 */
	__u64 reserved; /* bytes that its ingress queue may come to hold, overhead included; atomics only */
	__u64 handoffs;
	__u64 reasons[REASON_SLOTS]; /* messages, by reason */
	__u64 stuck_ns;		     /* CLOCK_MONOTONIC: when GATE_STUCK was set */
	__u64 reset_ns;		     /* CLOCK_MONOTONIC: when the peer ended the connection by a RST; 0: it has not */
	struct counters got;	     /* what the peer had sent when its record went */
	__u64 peer_workload;	     /* as workload and cgroup, of the peer; 0 until tied */
	__u64 peer_cgroup;
	__u64 sizes[HISTOGRAM_SLOTS]; /* messages that it sent, by their size in bytes */
	__u32 waits
		[HISTOGRAM_SLOTS]; /* sampled messages that it received by the fast path, by nanoseconds in its queue */
	__u32 hazards;		   /* enum hazard: what shut the gate, on this half or its peer */
#ifdef OLD_KERNEL
	struct bpf_spin_lock lock; /* words.bpf.h */
#else
	__u32 pad2;
#endif
	struct bpf_timer timer; /* of a strict half: leaves at a moment at which nothing is queued */
};

/* A strict half whose stream has to leave (clean.bpf.h). */
enum leaving {
	LEAVING_NO = 0,
	LEAVING_ARMED = 1,   /* its timer looks for the moment */
	LEAVING_WAITING = 2, /* there was no memory for a timer: the next ACK tries again */
};

enum draining {
	DRAINING_NO = 0,
	DRAINING_LEAVE = 1, /* no new pairs; live ones leave */
	DRAINING_KEEP = 2,  /* no new pairs; live ones stay: a newer generation makes the pairs */
	DRAINING_CLEAN = 3, /* as LEAVE, but strict pairs wait for a moment at which nothing is queued (clean.bpf.h) */
};

/* An attached cgroup. Never changes: every version marks the workloads of others as draining. */
struct workload {
	__u64 attached_ns; /* CLOCK_REALTIME */
	__u32 eligibility; /* enum eligibility */
	__u32 draining;	   /* enum draining */
};
_Static_assert(sizeof(struct workload) == 16 && __builtin_offsetof(struct workload, draining) == 12, "workload");

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
	__u64 server_cookie; /* of the request socket that was announced, and of its child */
	__u32 client_generation;
	__u32 server_isn;    /* valid from HANDSHAKE_ANNOUNCED on */
	__u32 state;	     /* enum handshake_state */
	__u32 server_reason; /* enum reason: why the listener's kind may not be accelerated, or fast */
	__u64 published_ns;  /* CLOCK_MONOTONIC */
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
	__u32 hazards; /* enum hazard: all that were seen; one is enough for ever */
	__u32 last_flags;
	__u32 lives;	/* connections whose length was measured */
	__u32 messages; /* messages a connection, a moving average, times 16 */
	__u32 skipped;	/* connections left on TCP since the last that was measured */
};

/* Per socket, while its kind is learned or its pair is live (BPF_MAP_TYPE_SK_STORAGE). */
struct observed {
	struct kind_key kind;
	__u32 calls;
	__u32 hazards; /* enum hazard; an option may be set before the connection is established */
	__u32 counted;
	__u32 adopting; /* the record wants to know who reads */
};

enum event_what {
	EVENT_STUCK = 1,   /* redirected bytes are unread, and the application reads in a way that does not see them */
	EVENT_REFUSED = 2, /* an option was refused (EBUSY), as it would have hidden redirected bytes that are unread */
	EVENT_RESET = 3,   /* a stuck half was still stuck after a while, and its connection was reset */
	EVENT_UNTOLD = 4,  /* the peer has ended the connection by a RST, which the kernel has dropped: a stuck half */
};

/* Told to userspace through the ring buffer `events`. */
struct event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	struct half_key half;
	struct kind_key kind;
	__u32 what;    /* enum event_what */
	__u32 hazards; /* enum hazard */
};

/* What an entry of the journal tells. Append-only, as reasons are. */
enum journal_kind {
	JOURNAL_NONE = 0,
	JOURNAL_CONNECT = 1, /* a client's socket is established, or stays on TCP as its kind is not worth it; reason */
	JOURNAL_ACCEPT = 2,  /* a server's socket is established; reason */
	JOURNAL_PAIRED = 3,  /* the two ends of a connection were tied */
	JOURNAL_ADOPTED = 4, /* the same, of a connection that was established before its workload was attached */
	JOURNAL_HANDOFF = 5, /* what a half sends goes by the fast path from now on */
	JOURNAL_FELL_BACK = 6, /* what a half sends goes by TCP again; reason */
	JOURNAL_LEFT = 7,      /* a half was taken out of the sockhash; reason */
	JOURNAL_CLOSED = 8,    /* the last half of a pair is gone; totals */
	JOURNAL_UNWATCHED = 9, /* the same, but the connection goes on: its workload is no longer attached */
	JOURNAL_STUCK = 10,    /* as EVENT_STUCK */
	JOURNAL_UNTOLD = 11,   /* as EVENT_UNTOLD */
	JOURNAL_REFUSED = 12,  /* as EVENT_REFUSED */
	JOURNAL_RESET = 13,    /* as EVENT_RESET */
	JOURNAL_ATTACH = 14,   /* by userspace, of a workload */
	JOURNAL_DETACH = 15,   /* likewise */
	JOURNAL_UPGRADE = 16,  /* by userspace: other programs are in force */
	JOURNAL_KINDS = 17,
};
_Static_assert((int)JOURNAL_KINDS <= (int)JOURNAL_SLOTS, "kinds of events outgrew their slots");

/* One event (journal.bpf.h). The totals are of JOURNAL_CLOSED and JOURNAL_UNWATCHED. */
struct journal_entry {
	__u64 sequence; /* its position in its segment, plus 1: written last, and 0 before it is written anew */
	__u64 time_ns;	/* CLOCK_MONOTONIC */
	__u64 cookie;
	__u64 peer_cookie;
	__u64 cgroup; /* of the socket; of userspace's entries, what was attached */
	__u64 workload;
	__u64 peer_cgroup;
	__u64 peer_workload;
	__u8 local_addr[16]; /* as in struct endpoint */
	__u8 remote_addr[16];
	__u16 local_port;
	__u16 remote_port;
	__u16 family;
	__u8 kind;    /* enum journal_kind */
	__u8 role;    /* enum role */
	__u32 reason; /* enum reason */
	__u32 netns;
	__u32 hazards; /* enum hazard */
	__u32 generation;
	__u64 duration_ns;
	struct counters sent; /* by this end, */
	struct counters got;  /* and by the other */
};
_Static_assert(sizeof(struct journal_entry) == 192, "journal_entry");

/* How many of a kind may be written: a token bucket. */
struct journal_bucket {
	__u64 filled;	  /* jiffies of the last look */
	__u64 suppressed; /* events that found it empty */
	__u64 last;	  /* cookie of the last event: this hook may run twice, for a cgroup and one above it */
	__u32 tokens;	  /* times 256 */
	__u32 written;	  /* 0: the bucket was never used, and is full */
};

/* Of one CPU. */
struct journal_head {
	__u64 next; /* position of the next entry */
	__u64 lost; /* events that interrupted another, where those cannot be told apart (before 5.12) */
	__u32 writing;
	__u32 pad;
	struct journal_bucket buckets[JOURNAL_SLOTS];
};

/* A message whose wait is measured; its slot is a hash of the reader's cookie. */
struct stamp {
	__u64 cookie;  /* of the reader */
	__u64 time_ns; /* CLOCK_MONOTONIC: when it was sent; 0: none */
};

/* A pair of workloads; both ~0: those for which the map had no room. */
struct flow_key {
	__u64 client; /* id of the attached cgroup */
	__u64 server; /* 0: never tied */
};
_Static_assert(sizeof(struct flow_key) == 16, "flow_key");

/* Sums of the halves of connections between two workloads that are gone; atomics. Pairs are counted when they are tied. */
struct flow {
	struct counters sent[2]; /* by enum role */
	__u64 pairs;
	__u64 adopted;
	__u64 handoffs;
	__u64 left;			  /* halves */
	__u64 duration_ns;		  /* of connections that are gone, by their clients' halves */
	__u64 durations[HISTOGRAM_SLOTS]; /* the same, by their length in 2^20 ns */
	__u64 sizes[HISTOGRAM_SLOTS];
	__u64 waits[HISTOGRAM_SLOTS];
	__u64 starts[HISTOGRAM_SLOTS]; /* halves that became fast, by the time from their birth to that, in 2^10 ns */
};

/* Bits of struct tapped. */
enum tapped_flags {
	TAPPED_MORE = 1,   /* another piece of the message follows */
	TAPPED_HIDDEN = 2, /* the rest of its bytes could not be read */
};

/* A piece of a message, for who captures (tap.bpf.c). Its bytes follow, and perhaps some of no meaning. */
struct tapped {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 cookie;
	__u64 peer_cookie; /* 0: not tied yet */
	__u64 number;	   /* messages that the half had sent before */
	__u64 offset;	   /* bytes that the half had sent before */
	__u64 workload;
	__u64 cgroup;
	__u64 peer_workload;
	__u64 peer_cgroup;
	struct endpoint local;
	struct endpoint remote;
	__u32 generation;
	__u32 netns;
	__u32 isn_local;
	__u32 isn_remote;
	__u32 size;   /* bytes of the message */
	__u32 at;     /* bytes of the message before this piece */
	__u32 length; /* bytes of this piece */
	__u8 role;    /* enum role */
	__u8 reason;  /* enum reason of the message before, if there was one */
	__u8 flags;   /* enum tapped_flags */
	__u8 pad;
};
_Static_assert(sizeof(struct tapped) == 152, "tapped");

/* How a tap is set up; read-only to it. */
struct tap_settings {
	__u64 first_bytes; /* of what each end sends, no more than so many from its start */
	__u32 snaplen;	   /* bytes of each message */
	__u32 next;	   /* enum verdict_slot: where it goes on */
	__u32 roles;	   /* bit n: what ends of the enum role n send */
	__u32 page_bytes;  /* size of a page */
};

/* Whether a tap shall copy what a half sends; key: its cookie. */
struct tap_choice {
	__u32 generation;
	__u32 wanted;
};

/* Sums of a tap; per CPU. */
struct tap_counts {
	__u64 messages; /* copied, whole or in part */
	__u64 pieces;
	__u64 lost;	/* pieces for which its ring buffer had no room */
	__u64 withheld; /* messages of workloads that may not be captured */
	__u64 hidden;	/* messages whose bytes could not be read, or not all */
};

/* Where a race is closed: a debug build of the settings may spin there, so that tests can get in between. */
enum window {
	WINDOW_DELIVERY = 0, /* verdict ... delivery */
	WINDOW_LEAVE = 1,    /* the leaver's mark ... its look at the sender */
	WINDOW_ENTER = 2,    /* the client is in the sockhash ... its handshake says so */
	WINDOW_TIE = 3,	     /* the server is in the sockhash ... the two are tied */
	WINDOW_DELETE = 4,   /* the half counts as left ... it is out of the sockhash */
	WINDOW_RELEASE = 5,  /* the peer's gate is shut at close ... the kernel unlinks the socket */
	WINDOW_COUNT = 6,
	WINDOW_NO_TIMER = 6, /* no window: a strict half finds no memory for its timer when it enters */
};

/* How often a window was held open, and how often something came in between. */
struct held {
	__u64 passed;
	__u64 hit;
};

/* Adoption, first pass: what the kernel tells of an established socket of an attached workload. */
struct candidate {
	__u64 cookie;
	__u64 sk;
	__u64 workload;
	__u32 generation; /* the one it gets when it is adopted */
	__u32 sent_isn;	  /* snd_una - bytes_acked: a client's own number, a server's plus one */
	__u32 peer_isn;	  /* rcv_nxt - bytes_received - 1: the peer's number, in both roles */
	__u32 sent_hash;  /* what all its packets carry, */
	__u32 got_hash;	  /* and what the last one that it got carried */
	__u16 as_client;  /* enum reason: fast when it may be adopted as a client, */
	__u16 as_server;  /* and as a server */
	__u8 hashed;	  /* the kernel remembers got_hash */
	__u8 pad[3];
};
_Static_assert(sizeof(struct candidate) == 56, "candidate");

enum adoption_what {
	ADOPT_OBSERVE = 0, /* only observe it from now on */
	ADOPT_ENTER = 1,
	ADOPT_ROUSE = 2, /* it was in and had to go again: let the application look (adopt.bpf.c) */
};

/* Adoption, second pass: what userspace has found out; key: cookie. */
struct adoption {
	struct half_key self;
	struct half_key peer;
	__u64 peer_sk;
	__u32 sent_isn; /* as they were seen: another connection of the same socket has others */
	__u32 peer_isn;
	__u32 role;   /* enum role */
	__u32 what;   /* enum adoption_what */
	__u32 strict; /* a workload of the pair is `safe`, and FIONREAD of this kernel is not exact */
	__u32 pad;
};

/* Adoption, second pass: how it went. */
struct adoption_result {
	__u64 cookie;
	__u32 reason; /* enum reason: fast when it is in the sockhash */
	__u32 pad;
};

/* Sums over pairs that are gone, and events; per CPU. */
struct totals {
	struct counters sent;
	__u64 pairs;			/* tied since load */
	__u64 handoffs;			/* of pairs that are gone */
	__u64 retiring;			/* records whose sums are being moved here, */
	__u64 retired;			/* and those whose have been: equal when nothing is counted twice */
	__u64 left;			/* halves taken out of the sockhash by protocol */
	__u64 adopted;			/* of the pairs: established before */
	__u64 stuck;			/* halves that were found stuck (EVENT_STUCK), */
	__u64 refused;			/* options that were refused, */
	__u64 reset;			/* and connections that were reset */
	__u64 events;			/* told to userspace, */
	__u64 lost;			/* and those for which the ring buffer had no room */
	__u64 in_flight;		/* tries to leave that were put off: a message of the peer was on its way, */
	__u64 unread;			/* or something was unread */
	struct held held[WINDOW_COUNT]; /* only while `spin` is set */
	__u64 reasons[REASON_SLOTS];
	__u64 verdicts[HISTOGRAM_SLOTS]; /* runs of the verdict, one in VERDICT_SAMPLES, by nanoseconds */
};

/* What all ingress queues together may hold. */
struct budget {
	__u64 used; /* sum of half.reserved; atomics only */
	__u64 hand; /* where the next sweep of `reservers` starts */
};

/* What `shared-socket check` found this kernel to do; docs/hazards.md. Bit n is hazard Hn; a set bit may be a doubt. */
enum kernel_hazard {
	KERNEL_REORDER = 1 << 1,
	KERNEL_UNBOUNDED = 1 << 2,
	KERNEL_LOST_ON_DELETE = 1 << 3,
	KERNEL_SPURIOUS_EAGAIN = 1 << 4,
	KERNEL_SHORT_WAITALL = 1 << 5,
	KERNEL_BLIND_SPLICE = 1 << 6,
	KERNEL_FIONREAD = 1 << 7,
	KERNEL_SOCKET_OPTIONS = 1 << 8,
	KERNEL_FIN_FOR_RST = 1 << 9,
	KERNEL_PLAINTEXT_TO_TLS = 1 << 10,
	KERNEL_ASLEEP = 1 << 11,
	KERNEL_SILENT = 1 << 12,
	KERNEL_BUSY = 1 << 13,
	KERNEL_CONNTRACK_HELPERS = 1 << 14,
	KERNEL_KEPT_MEMORY = 1 << 15,
	KERNEL_PURGED_AT_CLOSE = 1 << 16,
	KERNEL_CROSSED = 1 << 17,
};

/* Read-only to the programs after load. Append only: an upgrade takes over what it finds. */
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
	__u32 total_budget_kib;	 /* all peers together, overhead included */
	__u32 fionread;		 /* enum fionread, of this kernel */
	__u32 reserver_mask;	 /* slots of `reservers`, minus 1 */
	__u32 spin_windows;	 /* debug: in which of them; a bit for each enum window */
	__u32 rmem_counts;	 /* redirected bytes count in the receiver's sk_rmem_alloc */
	__u32 past_rcvbuf;	 /* TCP goes on without a stall where they fill it past SO_RCVBUF */
	__u32 kernel_hazards;	 /* enum kernel_hazard: what this kernel was found to do */
	__u32 journal_mask;	 /* entries of each CPU, minus 1 */
	__u32 journal_burst;	 /* events of one kind that a CPU may write at once, */
	__u32 journal_refill;	 /* and 256ths of one a jiffy after that */
	__u32 sample_mask; /* of so many messages, minus 1, the wait of one is measured (a power of two); ~0: of none */
	__u32 sample_all;  /* also where --eligibility all is attached */
};

/* Never read: carries the types above into BTF. */
struct abi_types {
	enum abi abi;
	enum gate gate;
	enum fionread fionread;
	enum role role;
	enum reason reason;
	enum hazard hazard;
	enum event_what event_what;
	enum journal_kind journal_kind;
	struct journal_entry journal_entry;
	struct journal_head journal_head;
	struct stamp stamp;
	struct flow_key flow_key;
	struct flow flow;
	enum verdict_slot verdict_slot;
	enum tapped_flags tapped_flags;
	struct tapped tapped;
	struct tap_settings tap_settings;
	struct tap_choice tap_choice;
	struct tap_counts tap_counts;
	enum adoption_what adoption_what;
	struct event event;
	enum window window;
	struct half half;
	enum draining draining;
	enum leaving leaving;
	struct workload workload;
	struct handshake handshake;
	struct kind_key kind_key;
	struct kind kind;
	struct totals totals;
	struct budget budget;
	struct settings settings;
	enum kernel_hazard kernel_hazard;
	struct candidate candidate;
	struct adoption adoption;
	struct adoption_result adoption_result;
};

#endif
