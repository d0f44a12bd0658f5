/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map, with who writes it (W) and who reads it (R). Sizes that depend on --max-pairs are set at load. Weak: each
 * object of bpf/ has a copy of the definition and the linker keeps one.
 */
#ifndef SHARED_SOCKET_MAPS_H
#define SHARED_SOCKET_MAPS_H

#include "kernel.h"
#include "abi.h"

/* W: pair (insert), leave (delete), the kernel on close.  R: redirect, the leave iterator. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 131072);
	__type(key, struct half_key);
	__type(value, __u64);
} sockets SEC(".maps") __weak;

/*
 * Key: socket cookie. W: pair (insert, tie), redirect (own counters, under the socket's lock), leave, learn and release
 * (gate bits), pair and release (delete).  R: all, and userspace. Present whenever the socket is in `sockets`.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct half);
} halves SEC(".maps") __weak;

/* W: userspace.  R: announce, pair, leave. Key: cgroup id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct workload);
} workloads SEC(".maps") __weak;

/* Ports that stay on TCP, as the client or the server sees them. W: userspace.  R: announce, pair, adopt. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u16);
	__type(value, __u8);
} ports SEC(".maps") __weak;

/*
 * Key: the client's initial sequence number. W: announce at connect (insert) and at SYN, pair, close (delete).
 * R: announce, pair. LRU: whoever fills it with connects to nowhere evicts his own, as those of others last for less
 * than a millisecond. An entry may therefore become another's at any moment: what it says is checked again before use.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct handshake);
} handshakes SEC(".maps") __weak;

/*
 * W: learn, option, release, redirect, pair; userspace (hazards that it remembers).  R: announce, pair, userspace.
 * LRU: a kind that is pushed out is learned anew, on TCP.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct kind_key);
	__type(value, struct kind);
} kinds SEC(".maps") __weak;

/*
 * W: pair, option (create), learn.  R: learn, pair, release. Freed with the socket. Before 5.11 tracing programs cannot use
 * socket storage; there the key is the socket's cookie, and what is pushed out speaks for no kind.
 */
#ifdef OLD_KERNEL
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct observed);
} observations SEC(".maps") __weak;
#else
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct observed);
} observations SEC(".maps") __weak;
#endif

/* struct event. W: option, splice, sweep, reset.  R: userspace (guard); `totals` counts what it had no room for. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} events SEC(".maps") __weak;

/*
 * Events for people (journal.bpf.h): a segment of settings.journal_mask + 1 entries for each CPU, and one for userspace. W:
 * journal, userspace (its own segment).  R: userspace, any number of readers.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, JOURNAL_ENTRIES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct journal_entry);
} journal SEC(".maps") __weak;

/* W: journal.  R: journal, userspace. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct journal_head);
} journal_heads SEC(".maps") __weak;

/*
 * Sums by pairs of workloads. W: pair, adopt (insert), retire, leave, userspace (the entry of what had no room, at load;
 * what is put together when its workloads are gone).  R: userspace.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps") __weak;

/* Key: a hash of the reader's cookie. W: redirect, learn.  R: learn. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STAMPS);
	__type(key, __u32);
	__type(value, struct stamp);
} stamps SEC(".maps") __weak;

/*
 * Sockets to which a message of an old connection may still be on its way; the value is the socket's address. W: close.
 * R: pair, adopt, reconnect. Freed with the socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} tainted SEC(".maps") __weak;

/* W: all programs.  R: userspace. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps") __weak;

/* W: redirect, leave, release, retire (all by budget.bpf.h).  R: redirect, userspace. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct budget);
} budget SEC(".maps") __weak;

/* Cookies of halves that hold a reservation, for the sweep. W: redirect (insert), retire (delete).  R: redirect. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, __u64);
} reservers SEC(".maps") __weak;

/*
 * Key: enum verdict_slot. W: userspace (load, upgrade, capture).  R: the stub, the tap. A psock keeps the program it was
 * linked with: it only ever holds the stub.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, VERDICT_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} verdicts SEC(".maps") __weak;

/* Workloads whose messages no tap may copy; key: cgroup id. W: userspace.  R: taps. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} withheld SEC(".maps") __weak;

/* W: userspace, while it adopts.  R: adopt. Key: socket cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct adoption);
} adoptions SEC(".maps") __weak;

/* W: userspace, once and last at load: its pin says that the load was complete.  R: userspace. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} about SEC(".maps") __weak;

#endif
