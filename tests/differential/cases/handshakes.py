"""How connections begin."""
from socket import IPPROTO_TCP, SHUT_WR, SO_REUSEPORT, SOL_SOCKET

from arena import STYLES, Side, case

IN, RDHUP = 1, 0x2000
TWO = ("blocking", "nonblocking")
MPTCP, TCP_DEFER_ACCEPT, TCP_FASTOPEN = 262, 9, 23


def talk(t, c, s):
    for n in range(4):
        c.send(b"question %d" % n)
        s.read(10)
        s.send(b"answer %d" % n)
        c.read(8)


@case(core=True, raw=True, styles=STYLES, fast=None)
def defer_accept(t):
    """H1: the first bytes come by TCP before there is a socket to accept. (In `safe` it stays TCP.)"""
    ear, port = t.listener(opts=[(IPPROTO_TCP, TCP_DEFER_ACCEPT, 5)])
    c = t.dial(port)
    c.send(b"FIRST ")
    c.quiet.settle()
    t.pause()
    c.send(b"SECOND ")
    c.send(b"THIRD")
    s = t.accept(ear)
    s.read(18)
    talk(t, c, s)
    c.close()
    s.read_to_end()


@case(core=True, raw=True, styles=STYLES)
def accepted_late(t):
    """Bytes wait in a socket that nobody has accepted."""
    ear, port = t.listener()
    c = t.dial(port)
    for part in (b"FIRST ", b"SECOND ", b"THIRD"):
        c.send(part)
        t.pause(0.005)
    c.quiet.settle()
    s = t.accept(ear)
    s.read(18)
    talk(t, c, s)
    c.shutdown(SHUT_WR)
    s.read_to_end()
    s.close()
    c.read_to_end()


@case(core=True, raw=True, styles=STYLES, fast=None)
def fionread_of_tcp_bytes(t):
    """H7: bytes that came by TCP, in a socket of the fast path."""
    ear, port = t.listener(opts=[(IPPROTO_TCP, TCP_DEFER_ACCEPT, 5)])
    c = t.dial(port)
    c.send(b"0123456789")
    c.quiet.settle()
    t.pause()
    s = t.accept(ear)
    s.await_mask(IN)
    s.fionread()
    s.recv(4)
    s.fionread()
    c.send(b"more")
    c.quiet.settle()
    t.pause()
    s.fionread()
    s.read(10)
    s.fionread()
    t.warm(c, s)


@case(raw=True, styles=TWO, fast=None)
def accepted_after_the_end(t):
    """Write and close before anybody accepts."""
    ear, port = t.listener()
    c = t.dial(port)
    c.send(b"all of it")
    c.close()
    t.pause(0.02)
    s = t.accept(ear)
    s.read_to_end()


@case(raw=True, styles=TWO, fast=None)
def accepted_after_a_reset(t):
    ear, port = t.listener()
    c = t.dial(port)
    c.send(b"lost or not")
    c.quiet.settle()
    c.reset_close()
    t.pause(0.02)
    s = t.accept(ear)
    s.read_to_end()


@case(raw=True, styles=TWO, fast=None)
def listener_closed(t):
    """Whoever waits in a listener that is closed is reset."""
    ear, port = t.listener(key=f"closed{t.number}")
    c = t.dial(port)
    c.send(b"x")
    c.quiet.settle()
    ear.close()
    c.await_mask(0)
    c.read_to_end()


@case(raw=True, styles=("nonblocking",), fast=False)
def refused(t):
    t.note("connect", t.call(t.pair.client, "connect_code", f"n{t.number}", t.pair.server_ip, 9))


@case(core=True, raw=True, styles=TWO, fast=None)
def fast_open(t):
    """The first connection gets a cookie in an ordinary handshake, and may be fast; the others bring data in the SYN."""
    ear, port = t.listener(opts=[(IPPROTO_TCP, TCP_FASTOPEN, 16)])

    c = Side(t, t.pair.client, "c")
    t.write("c", "fast_open", [], t.call(c.peer, "fast_open", c.name, t.pair.server_ip, port, b"in the SYN", t.style))
    s = t.accept(ear)
    s.read(10)
    talk(t, c, s)
    c.shutdown(SHUT_WR)
    s.read_to_end()
    s.send(b"bye")
    s.close()
    c.read_to_end()


def mptcp_life(t, c, s):
    t.warm(c, s)
    talk(t, c, s)
    s.start("r", "recv_stream", 200_000)
    c.send_stream(200_000, 10_000)
    s.finish("r")
    c.shutdown(SHUT_WR)
    s.read_to_end()
    s.send(b"late")
    s.close()
    c.read_to_end()


@case(raw=True, styles=TWO, needs="mptcp", fast=False)
def mptcp_both(t):
    ear, port = t.listener(protocol=MPTCP)
    c = t.dial(port, protocol=MPTCP)
    mptcp_life(t, c, t.accept(ear))


@case(core=True, raw=True, styles=TWO, needs="mptcp", fast=False)
def mptcp_listener(t):
    """As Go listens."""
    ear, port = t.listener(protocol=MPTCP)
    c = t.dial(port)
    mptcp_life(t, c, t.accept(ear))


@case(raw=True, styles=TWO, needs="mptcp", fast=None)
def mptcp_client(t):
    ear, port = t.listener()
    c = t.dial(port, protocol=MPTCP)
    mptcp_life(t, c, t.accept(ear))


@case(raw=True, styles=TWO)
def reuseport(t):
    """Two listeners on one port: whichever has it, the connection is right."""
    one, port = t.listener(key="one", opts=[(SOL_SOCKET, SO_REUSEPORT, 1)])
    two, _ = t.listener(key="two", opts=[(SOL_SOCKET, SO_REUSEPORT, 1)], same_port_as="one")
    c = t.dial(port)
    t.pause()
    ear = one if "IN" in one.quiet.mask() else two
    s = t.accept(ear)
    t.warm(c, s)
    talk(t, c, s)
    c.close()
    s.read_to_end()


@case(raw=True, styles=TWO, fast=False)
def connected_to_itself(t):
    """A simultaneous open of one socket with itself."""

    c, port = Side(t, t.pair.client, "c"), t.run.new_port()
    t.write("c", "wide_connect", [], t.call(c.peer, "wide_connect", c.name, t.pair.client_ip, port, t.style, [t.pair.client_ip, port]))
    c.send(b"to myself")
    c.read(9)
    c.send(b"again")
    c.read(5)
    c.shutdown(SHUT_WR)
    c.read_to_end()


@case(raw=True, styles=TWO, fast=None)
def simultaneous_open(t):
    """Both connect to each other, and the SYNs cross."""

    port = t.run.new_port()
    c, s = Side(t, t.pair.client, "c"), Side(t, t.pair.server, "s")
    with t.pair.crossing():
        first = c.peer.post("do", "wide_connect", c.name, t.pair.server_ip, port, t.style, [t.pair.client_ip, port])
        second = s.peer.post("do", "wide_connect", s.name, t.pair.client_ip, port, t.style, [t.pair.server_ip, port])
        t.pause(0.1)  # both SYNs are held
    t.write("c", "wide_connect", [], first.result(9))
    t.write("s", "wide_connect", [], second.result(9))
    talk(t, c, s)
    c.close()
    s.read_to_end()


@case(raw=True, styles=("nonblocking",))
def ipv6(t):
    ear, port = t.listener(host=t.pair.b.ip6)
    c = t.dial(port, host=t.pair.b.ip6)
    s = t.accept(ear)
    t.warm(c, s)
    c.names()
    s.names()
    talk(t, c, s)
    c.close()
    s.read_to_end()


@case(raw=True, styles=("nonblocking",))
def loopback(t):
    """Both ends in one pod."""
    ear, port = t.listener(host="127.0.0.1")
    c = t.dial(port, host="127.0.0.1", peer=t.pair.extra(pod=t.pair.b))
    s = t.accept(ear)
    t.warm(c, s)
    talk(t, c, s)
    c.close()
    s.read_to_end()
