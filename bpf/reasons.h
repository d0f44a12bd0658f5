/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Why a message or a connection is not on the fast path.
 *
 * Append-only: a number, once given, keeps its meaning for ever; pinned maps, metrics and users' scripts hold it.
 * build.rs reads this file as well: one REASON(number, name, "text") a line.
 */
#ifndef REASON
#define REASON(number, name, text)
#endif
REASON(0, fast, "on the fast path")
REASON(1, no_record, "the socket has no record: it is leaving, or was never ours")
REASON(2, untied, "the peer has not been accepted yet")
REASON(3, not_drained, "bytes that went by TCP have not been read yet")
REASON(4, backed_up, "the peer's queue holds its budget of bytes or messages")
REASON(5, peer_leaving, "the peer is closing or leaves the sockhash")
REASON(6, closing, "this half is closing or leaves the sockhash")
REASON(7, keepalive, "one message a minute goes by TCP, so that conntrack sees the connection live")
REASON(8, ulp, "a ULP (kTLS) is on the socket")
REASON(9, peer_stale, "the peer could not be read, or is another socket by now")
REASON(10, peer_missing, "the peer is no longer in the sockhash")
REASON(11, state, "the TCP state does not allow a redirect")
REASON(12, bulk, "a stream of a `safe` pair: TCP carries it, so that no bytes wait on both paths at once")
REASON(13, detach, "its workload is being detached")
REASON(14, hazard, "the application used the socket in a way that the fast path cannot serve")
REASON(15, not_eligible, "its kind is not proven safe")
REASON(16, learning, "its kind is still observed on TCP")
REASON(17, map_full, "no room for another pair")
REASON(18, insert_failed, "the kernel refused the socket (another sockmap or ULP holds it)")
REASON(19, mptcp, "an MPTCP socket or listener")
REASON(20, repair, "TCP_REPAIR is on")
REASON(21, kernel_socket, "a socket of the kernel's own")
REASON(22, out_of_order, "accepted before the client was established (Fast Open, simultaneous open)")
REASON(23, ambiguous, "two clients chose one initial sequence number at the same time")
REASON(24, peer_declined, "the other end may not or cannot be accelerated")
REASON(25, reused, "the same socket served another connection before and could not be cleaned")
REASON(26, memory, "the kernel is short of socket memory")
REASON(27, short_lived, "connections of its kind carry too few messages to be worth it")
REASON(28, send_flags, "the call asks for what a redirect cannot do (MSG_OOB, MSG_ZEROCOPY)")
REASON(29, socket_option, "a socket option that the fast path cannot serve (zero copy, low-water mark, timestamps)")
REASON(30, splice, "the application reads by splice(2) or TCP_ZEROCOPY_RECEIVE")
REASON(31, global_budget, "all queues together hold the budget of the whole datapath")
REASON(32, adopting, "adopted: what was on its way when the pair was adopted has to be read first")
REASON(33, kernel, "this kernel cannot do it safely")
REASON(34, version, "the other end belongs to another version of the datapath")
REASON(35, unproven, "the packets of the handshake do not show that they came from the other end: altered, or forged")
REASON(36, port, "its port is one that is left alone")
REASON(37, elsewhere,
       "the other end is not in an attached workload of this machine, or the handshake did not show that it is")
#undef REASON
