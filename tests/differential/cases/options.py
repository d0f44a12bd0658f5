"""Socket options, and what the kernel tells about a connection."""
from socket import (IPPROTO_TCP, SO_ACCEPTCONN, SO_KEEPALIVE, SO_RCVBUF, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDBUF, SO_SNDTIMEO,
                    SOL_SOCKET)
from struct import pack

from arena import case

IN, OUT, RDHUP = 1, 4, 0x2000
TWO = ("blocking", "nonblocking")
POLLED = ("nonblocking", "edge")
SO_TIMESTAMPNS, SO_TIMESTAMPING, SO_PROTOCOL, SO_DOMAIN, SO_TYPE = 35, 37, 38, 39, 3
TCP_INQ = 36
SHORT = pack("ll", 0, 150_000)


@case(core=True, styles=("blocking", "nonblocking"), fast=None)
def rcvlowat(t, c, s):
    """H8: SO_RCVLOWAT. Polling says readable only when so much is there."""
    c.set_option(SOL_SOCKET, SO_RCVLOWAT, 10)
    s.send(b"01234")
    s.quiet.settle()
    t.pause(0.02)
    c.mask()
    s.send(b"56789")
    s.quiet.settle()
    t.pause(0.02)
    c.mask()
    c.recv_now(64)
    s.send(b"abc")
    s.close()
    c.await_mask(RDHUP)
    c.recv_now(64)


@case(styles=("blocking", "edge"), fast=None)
def rcvlowat_wakes(t, c, s):
    c.set_option(SOL_SOCKET, SO_RCVLOWAT, 10)
    c.start("r", "recv", 64)
    s.send(b"01234")
    c.still("r", 0.05)
    s.send(b"56789")
    c.finish("r")


@case(styles=("blocking",), connections=4)
def rcvtimeo(t, c, s):
    c.set_option(SOL_SOCKET, SO_RCVTIMEO, SHORT)
    c.elapsed("recv", 0.1, 0.6, 10)
    s.send(b"there")
    c.recv(10)
    s.close()
    c.recv(10)


@case(styles=("blocking",), connections=4)
def rcvtimeo_with_interruptions(t, c, s):
    """What wakes a sleeper without data for it (our own traffic) does not end its wait."""
    c.set_option(SOL_SOCKET, SO_RCVTIMEO, SHORT)
    c.start("r", "elapsed", "recv", 0.1, 0.6, 10)
    for _ in range(3):
        c.send(b"x")
        s.read(1)
    c.finish("r")


@case(styles=("blocking",), connections=4)
def sndtimeo(t, c, s):
    """Nobody reads: send gives up with EAGAIN, having sent a part first."""
    c.set_option(SOL_SOCKET, SO_SNDTIMEO, SHORT)
    sent = c.quiet.elapsed("send_zeros", 0.1, 3.0, 64 << 20)
    t.note("a part, in time", [isinstance(sent[0], int) and 0 < sent[0] < 64 << 20, sent[1]])
    t.note("bounded", isinstance(sent[0], int) and sent[0] < 32 << 20)
    s.quiet.read(sent[0])
    c.send(b"on")
    s.read(2)


@case(core=True, styles=POLLED)
def tcp_info(t, c, s):
    """State and health. (Times are the clock's business: only that there are any.)"""
    for side in (c, s):
        side.info("state", "ca_state", "retransmits", "probes", "backoff", "options", "sacked", "lost", "retrans",
                  "advmss", "snd_mss", "total_retrans", "notsent")
        seen = side.quiet.info()
        t.note("times", [seen["rtt"] > 0, seen["rto"] >= 200_000, seen["snd_cwnd"] >= 10])
    s.shutdown(1)
    c.read_to_end()
    t.pause(0.06)
    c.info("state")
    s.info("state")
    c.shutdown(1)
    s.read_to_end()
    t.pause(0.06)
    s.info("state")
    c.info("state")


@case(styles=POLLED, core=True)
def tcp_info_bytes(t, c, s):
    """The counters of bytes: what was redirected is added (info.bpf.c)."""
    before, there = c.quiet.info(), s.quiet.info()
    c.send(b"x" * 1000)
    s.read(1000)
    c.quiet.settle()
    after, then = c.quiet.info(), s.quiet.info()
    t.note("grew", [after["bytes_sent"] - before["bytes_sent"], after["bytes_acked"] - before["bytes_acked"],
                    then["bytes_received"] - there["bytes_received"]])


@case(styles=TWO)
def buffers(t, c, s):
    """Sizes as they are reported, fresh and set; memory in use only while something waits."""
    for option in (SO_RCVBUF, SO_SNDBUF):
        c.get_option(SOL_SOCKET, option)
    c.set_option(SOL_SOCKET, SO_RCVBUF, 50_000)
    c.set_option(SOL_SOCKET, SO_SNDBUF, 60_000)
    for option in (SO_RCVBUF, SO_SNDBUF):
        c.get_option(SOL_SOCKET, option)
    c.meminfo()
    s.send(b"x" * 1000)
    s.quiet.settle()
    c.await_mask(IN)
    t.pause()
    c.meminfo()
    c.read(1000)
    c.meminfo()


@case(styles=POLLED, connections=6, listen=[(SOL_SOCKET, SO_RCVBUF, 8192)])
def small_receive_buffer(t, c, s):
    """A receiver that wants little: the sender stops early, and nothing is lost."""
    sent = c.quiet.flood(4096)
    t.note("bounded", sent < 16 << 20)
    s.start("r", "drain_flood", sent)
    s.finish("r", 15)
    c.send(b"on")
    s.read(2)


@case(styles=TWO)
def names(t, c, s):
    for side in (c, s):
        side.names()
        for option in (SO_DOMAIN, SO_TYPE, SO_PROTOCOL, SO_ACCEPTCONN):
            side.get_option(SOL_SOCKET, option)
    s.close()
    c.read_to_end()
    c.names()
    c.shutdown(1)
    t.pause(0.02)
    c.names()


@case(styles=TWO)
def option_values(t, c, s):
    """What is set is what is read, and setting it harms nobody."""
    for option, value in ((1, 0), (1, 1), (4, 100), (5, 10), (6, 3), (7, 3), (8, 10), (11, 4096), (18, 30_000), (25, 16384)):
        c.set_option(IPPROTO_TCP, option, value)
        c.get_option(IPPROTO_TCP, option)
    for option in (2, 7, 9, 17):
        c.get_option(IPPROTO_TCP, option)
    c.get_option(IPPROTO_TCP, 13, 16)
    c.get_option(IPPROTO_TCP, 31, 16)
    c.set_option(IPPROTO_TCP, 13, b"reno")
    c.get_option(IPPROTO_TCP, 13, 16)
    c.send(b"still fine")
    s.read(10)
    s.send(b"this way too")
    c.read(12)


@case(styles=("nonblocking",), connections=6)
def keepalive(t, c, s):
    """Probes of an idle connection are answered; nothing ends."""
    for side in (c, s):
        side.set_option(SOL_SOCKET, SO_KEEPALIVE, 1)
        side.set_option(IPPROTO_TCP, 4, 1)
        side.set_option(IPPROTO_TCP, 5, 1)
        side.set_option(IPPROTO_TCP, 6, 1)
        side.set_option(IPPROTO_TCP, 18, 1500)
    t.pause(0.2 if t.number < 5 else 2.2)
    c.mask()
    c.send(b"alive")
    s.read(5)
    s.send(b"so am I")
    c.read(7)


@case(styles=("nonblocking",), connections=6)
def user_timeout_unread(t, c, s):
    """TCP_USER_TIMEOUT is about what is not acknowledged: unread bytes are."""
    c.set_option(IPPROTO_TCP, 18, 200)
    c.send(b"unread for a while")
    c.quiet.settle()
    t.pause(0.4)
    c.mask()
    s.read(18)
    c.send(b"on")
    s.read(2)


@case(styles=("blocking", "nonblocking"), fast=None)
def receive_timestamps(t, c, s):
    """H8: SO_TIMESTAMPNS."""
    c.set_option(SOL_SOCKET, SO_TIMESTAMPNS, 1)
    t.pause(0.05)  # the kernel turns the stamping of packets on a little later
    s.send(b"stamped")
    c.await_mask(IN)
    c.recvmsg([100])


@case(styles=("blocking", "nonblocking"), fast=None)
def transmit_timestamps(t, c, s):
    """H8: SO_TIMESTAMPING of what was sent and acknowledged comes back on the error queue."""
    c.set_option(SOL_SOCKET, SO_TIMESTAMPING, 1 << 9 | 1 << 4 | 1 << 7 | 1 << 11)  # TX_ACK, SOFTWARE, OPT_ID, OPT_TSONLY
    c.send(b"stamped")
    s.read(7)
    c.quiet.settle()
    c.await_mask(0)
    c.recvmsg([0], 0x2000 | 0x40)


@case(styles=("blocking", "nonblocking"), fast=None)
def tcp_inq(t, c, s):
    """H8: TCP_INQ says how much is left."""
    c.set_option(IPPROTO_TCP, TCP_INQ, 1)
    s.send(b"0123456789")
    s.quiet.settle()
    c.await_mask(IN)
    c.recvmsg([4])
    c.recvmsg([100])
    s.close()
    c.await_mask(RDHUP)
    c.recvmsg([100])


@case(raw=True, styles=("nonblocking",), needs="tls", fast=False)
def ktls_both(t):
    """H10: kTLS at both ends."""
    c, s = t.connect()
    c.tls("tr")
    s.tls("tr")
    c.send(b"a secret")
    s.read(8)
    s.send(b"another one")
    c.read(11)
    c.send_stream(100_000, 5_000)
    s.recv_stream(100_000)
    c.close()


@case(raw=True, styles=("nonblocking",), needs="tls", fast=False)
def ktls_one(t):
    """H10: one end encrypts in the kernel, the other reads the records: ciphertext, exactly as on plain TCP."""
    c, s = t.connect()
    c.tls("t")
    c.send(b"a secret")
    s.read(8 + 5 + 8 + 16)
    s.send(b"in the clear")
    c.read(12)
