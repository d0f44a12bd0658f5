"""Differences from plain TCP that are known.

KNOWN: what `--eligibility all` does differently, by design, with the hazard's number (docs/hazards.md) and its cause in
the kernel. Only the named calls may differ; a hang, a wrong or missing byte is never among them. In `safe` nothing is
allowed; but where a kind was well-behaved for long and then shows a hazard for the first time (`turned`), the first
connection that does so may see these too.
FAILURES: what is wrong and not yet mended, in either mode. The test is expected to fail, strictly: one that passes says
so, and its line here has to go.
"""
from dataclasses import dataclass


@dataclass
class Known:
    hazard: str
    cause: str
    calls: tuple      # operations whose results may differ; "*": from the first of them on, everything follows from it
    sometimes: bool = False  # a race: it need not show


@dataclass
class Failure:
    cause: str
    sometimes: bool = False


H4 = ("tcp_bpf_recvmsg returns EAGAIN when tcp_msg_wait_data is woken by anything but data: an ACK of the FIN, write space, "
      "a signal, an error, a shutdown")
H5 = "tcp_bpf_recvmsg returns what one pass of sk_msg_recvmsg gave: it knows no MSG_WAITALL"
H6 = "tcp_splice_read and tcp_zerocopy_receive look at sk_receive_queue only, poll at the ingress queue too"
H7 = "tcp_bpf_ioctl answers FIONREAD from the psock alone (6.6.128, 6.12.75, 6.18.14, 6.19.4 until a fix of July 2026)"
H9 = "sock_map_close throws the ingress queue away before tcp_close looks for unread bytes"
RESET = ("await_mask", "masks", "read_to_end", "send_call", "so_error")

# (case, style or "*")
KNOWN = {
    ("half_close_while_reading", "blocking"): Known("H4", H4, ("finish",), sometimes=True),
    # two threads at the peer: its sleeping reader keeps us from leaving at FIN_WAIT1 (leave.bpf.h, L2)
    ("half_close_then_recv_at_once", "blocking"): Known("H4", H4, ("finish",), sometimes=True),
    ("reset_wakes_reader", "blocking"): Known("H4", H4, ("finish", "so_error")),
    ("own_shutdown_wakes_reader", "blocking"): Known("H4", H4, ("finish",)),
    ("two_threads_bulk", "blocking"): Known("H4", H4, ("finish", "waiting"), sometimes=True),
    ("two_threads_each_way", "blocking"): Known("H4", H4, ("finish",), sometimes=True),
    ("many_readers", "blocking"): Known("H4, H11", H4, ("after one message", "after the end")),
    ("signal_without_restart", "blocking"): Known("H4", H4, ("finish",)),
    ("signal_with_restart", "blocking"): Known("H4", H4, ("finish", "waiting")),
    ("waitall", "blocking"): Known("H5", H5, ("finish", "recv")),
    ("waitall_until_end", "blocking"): Known("H5", H5, ("finish", "recv")),
    ("waitall_until_reset", "blocking"): Known("H5", H5, ("finish", "recv"), sometimes=True),
    ("waitall_peek", "blocking"): Known("H5", H5, ("finish",)),
    ("fionread", "*"): Known("H7, H8", H7, ("fionread",), sometimes=True),
    ("fionread_of_tcp_bytes", "*"): Known("H7", H7, ("fionread",), sometimes=True),
    ("oob", "*"): Known("H8", "a redirect has no urgent pointer: the byte comes in line",
                        ("at_mark", "await_mask", "masks", "recv_call", "recv_now")),
    ("oob_inline", "*"): Known("H8", "a redirect has no urgent pointer: the byte comes in line",
                               ("at_mark", "await_mask", "recv_call", "recv_now")),
    ("oob_receive_without", "nonblocking"): Known("H8", "tcp_bpf_recvmsg ignores MSG_OOB", ("recv_call", "recv_now")),
    ("zero_length", "*"): Known("none yet", "tcp_bpf_recvmsg answers a length of 0 with 0 before it looks for data", ("recv_now",)),
    ("truncated", "*"): Known("none yet", "sk_msg_recvmsg ignores MSG_TRUNC and copies",
                              ("recv_into_marked", "recv_now", "recv_nowhere")),
    ("bad_address", "*"): Known("none yet", "tcp_bpf_sendmsg answers a bad address with 0; nothing is sent, as on TCP",
                                ("sendmsg_fault",)),
    ("close_unread", "*"): Known("H9", H9, RESET),
    ("close_unread_with_last_words", "*"): Known("H9", H9, RESET),
    ("close_partly_read", "*"): Known("H9", H9, RESET),
    ("close_read_by_peek_only", "*"): Known("H9", H9, RESET),
    ("killed_client_with_unread", "*"): Known("H9", H9, RESET),
    ("fork_child_keeps_it_open", "*"): Known("H9", H9, RESET),
}

# (case, style or "*", mode or "*")
FAILURES = {
    # A hang or a spin is allowed nowhere.
    # with trampolines the call itself is seen (splice.bpf.c), and only bytes that were unread by then are missed
    **{(name, style, "all"): Failure(f"H6: {H6}: it sleeps, or spins, for ever", sometimes=True)
       for name, style in (("splice_in", "*"), ("splice_in_blocking", "*"), ("splice_in_empty", "*"), ("splice_across", "*"),
                           ("zerocopy_receive", "*"))},
    ("oob_receive_without", "blocking", "all"): Failure("H8: tcp_bpf_recvmsg ignores MSG_OOB and sleeps, where TCP says EINVAL"),
    **{(name, style, "turned"): Failure(f"H6: {H6}: it spins until it has left the fast path", sometimes=True)
       for name, style in (("splice_in", "*"), ("splice_in_empty", "*"), ("splice_across", "*"), ("zerocopy_receive", "*"))},
    # `safe` must be equal, always.
    ("zerocopy_receive", "nonblocking", "safe"): Failure("H6: getsockopt(TCP_ZEROCOPY_RECEIVE) is not learned without trampolines",
                                                          sometimes=True),
    ("bad_address", "nonblocking", "safe"): Failure("tcp_bpf_sendmsg answers a bad address with 0, TCP with EFAULT"),
}


# What `safe` still does differently on kernels before 6.6.128, 6.12.75, 6.18.14 (seen on 6.1): FIONREAD does not count
# redirected bytes there, so that only one small message at a time is redirected and the next goes by TCP behind it.
OLD = {
    "fionread": "H7: FIONREAD counts none of the redirected bytes",
}

# Cases that are a hazard on those kernels only: there they stay on TCP.
OLD_HAZARDS = ("peek",)


def known(case, style):
    return KNOWN.get((case, style)) or KNOWN.get((case, "*"))


def failure(case, style, mode):
    for key in ((case, style, mode), (case, "*", mode), (case, style, "*"), (case, "*", "*")):
        if key in FAILURES:
            return FAILURES[key]
    return None
