/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What an application can do with a socket that the fast path would answer differently from TCP. A kind carries the set
 * of those that were seen; one is enough, for ever.
 *
 * Append-only, like reasons.h: the numbers are bits of `struct kind.hazards` and names in the file that remembers them.
 * build.rs reads this file too: one HAZARD(bit, name, reason, "text") a line, the reason being what is counted when a
 * connection of such a kind is refused.
 */
#ifndef HAZARD
#define HAZARD(bit, name, reason, text)
#endif
HAZARD(0, blocking, not_eligible, "a receive call that may block")
HAZARD(1, waitall, not_eligible, "recv with MSG_WAITALL")
HAZARD(2, urgent, send_flags, "urgent data (MSG_OOB)")
HAZARD(3, truncate, not_eligible, "recv with MSG_TRUNC, which discards bytes without copying them")
HAZARD(4, empty_read, not_eligible, "recv of no bytes at all, from a stream that has not ended")
HAZARD(5, splice, splice, "splice(2) from the socket")
HAZARD(6, zerocopy_receive, splice, "TCP_ZEROCOPY_RECEIVE")
HAZARD(7, send_flags, send_flags, "a send flag that a redirect cannot serve (MSG_OOB, MSG_ZEROCOPY, MSG_FASTOPEN)")
HAZARD(8, zerocopy_send, socket_option, "SO_ZEROCOPY")
HAZARD(9, low_water, socket_option, "SO_RCVLOWAT above 1")
HAZARD(10, timestamps, socket_option, "SO_TIMESTAMP, SO_TIMESTAMPNS or SO_TIMESTAMPING")
HAZARD(11, queue_length, socket_option, "TCP_INQ")
HAZARD(12, peek_offset, socket_option, "SO_PEEK_OFF")
HAZARD(13, filter, socket_option, "SO_ATTACH_FILTER or SO_ATTACH_BPF")
HAZARD(14, ulp, ulp, "TCP_ULP (kTLS)")
HAZARD(15, repair, repair, "TCP_REPAIR (checkpoint and restore)")
HAZARD(16, family, socket_option, "IPV6_ADDRFORM")
HAZARD(17, close_unread, not_eligible, "close with unread bytes, where TCP answers with RST")
HAZARD(18, stream, bulk, "a stream, whose bytes would wait on both paths at once")
HAZARD(19, peek, not_eligible, "recv with MSG_PEEK, which counts only where FIONREAD does not count redirected bytes")
#undef HAZARD
