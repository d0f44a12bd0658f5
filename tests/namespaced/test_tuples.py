"""The same 127.0.0.1 4-tuple in two namespaces at once, in every state: never a byte crosses (hazard H17)."""
import socket

import pytest

SERVER, CLIENT = 9000, 40000
DEFER = [(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)]


class Twin:
    """One namespace's side: a listener and a client on fixed ports of 127.0.0.1."""

    def __init__(self, pod, server_cgroup=None, client_cgroup=None, opts=()):
        self.mark = pod.name.encode()
        self.server, self.client = pod.peer(server_cgroup), pod.peer(client_cgroup)
        self.ear = self.server.listen("127.0.0.1", SERVER, opts=opts)
        self.said = 0

    def connect(self):
        self.c = self.client.connect("127.0.0.1", SERVER, bind=["127.0.0.1", CLIENT])

    def accept(self):
        self.s = self.ear.accept()

    def text(self, way):
        self.said += 1
        return b"<%s %s %d>" % (self.mark, way, self.said)

    def talk(self, rounds=5):
        for _ in range(rounds):
            for sender, reader, way in ((self.c, self.s, b"c-s"), (self.s, self.c, b"s-c")):
                text = self.text(way)
                sender.send(text)
                assert reader.read(len(text)) == text

    def silent(self):
        assert self.c.pending(0.01) == b"" and self.s.pending() == b""


def twins(pods, **kw):
    return Twin(pods[0], **kw), Twin(pods[1], **kw)


def test_both_open(lab, pods):
    lab.attach(*pods)
    x, y = twins(pods)
    for t in (x, y):
        t.connect()
        t.accept()
    with lab.expect_fast(20):
        for _ in range(5):
            x.talk(2)
            y.talk(2)
    # both unread at the same time, then read
    for t in (x, y):
        t.one, t.two = t.text(b"c-s"), t.text(b"s-c")
        t.c.send(t.one)
        t.s.send(t.two)
    for t in (y, x):
        assert t.s.read(len(t.one)) == t.one and t.c.read(len(t.two)) == t.two
        t.silent()


def test_opened_in_turns(lab, pods):
    """Handshakes interleaved: connect, connect, accept, accept, in both orders."""
    lab.attach(*pods)
    x, y = twins(pods)
    with lab.expect_fast(10):
        x.connect()
        y.connect()
        y.accept()
        x.accept()
        x.c.send(b"early-x")
        y.c.send(b"early-y")
        assert y.s.read(7) == b"early-y" and x.s.read(7) == b"early-x"
        x.talk()
        y.talk()
        x.silent()
        y.silent()


@pytest.mark.parametrize("closer", ["client", "server"])
def test_one_end_lingers(lab, pods, closer):
    """In one namespace an end has closed and the other lingers, with bytes unread; the twin opens the same tuple."""
    lab.attach(*pods)
    x, y = twins(pods)
    x.connect()
    x.accept()
    x.talk()
    unread = x.text(b"unread")
    gone, left = (x.c, x.s) if closer == "client" else (x.s, x.c)
    gone.send(unread)
    gone.close()
    y.connect()
    y.accept()
    with lab.expect_fast(10):
        y.talk()
    for number in range(3):  # the lingering end goes on sending, to nobody
        try:
            left.send(b"<to nobody>")
        except Exception as err:
            assert err.kind in ("BrokenPipeError", "ConnectionResetError"), err
        y.talk(2)
    y.silent()
    try:
        got = left.pending(0.01)
    except Exception as err:
        assert err.kind in ("ConnectionResetError", "BrokenPipeError"), err
        got = unread
    assert got in (unread, None, b""), got
    y.talk(2)
    left.close()
    y.talk(2)
    y.silent()


def test_lingering_unread_is_kept(lab, pods):
    """The lingering end reads what it was sent before the close, and then the end, while the twin talks."""
    lab.attach(*pods)
    x, y = twins(pods)
    x.connect()
    x.accept()
    x.talk()
    unread = [x.text(b"unread") for _ in range(5)]
    for text in unread:
        x.c.send(text)
    x.c.close()
    y.connect()
    y.accept()
    with lab.expect_fast(10):
        y.talk()
    assert x.s.read_all() == b"".join(unread)
    y.talk()
    y.silent()


@pytest.mark.parametrize("who", ["one", "both"])
def test_deferred_accept(lab, pods, who):
    """A deferred accept: the client is established, its server's half does not exist yet; the twin's does."""
    lab.attach(*pods)
    x = Twin(pods[0], opts=DEFER)
    y = Twin(pods[1], opts=DEFER if who == "both" else ())
    x.connect()
    y.connect()
    if who == "one":
        y.accept()
        y.talk()
    first = [x.text(b"first"), x.text(b"second"), x.text(b"third")]
    for text in first:
        x.c.send(text)
    if who == "both":
        mine = y.text(b"first")
        y.c.send(mine)
        y.accept()
        assert y.s.read(len(mine)) == mine
    with lab.expect_fast(5):
        y.talk()
    x.accept()
    assert x.s.read(sum(map(len, first))) == b"".join(first)
    with lab.expect_fast(10):
        for _ in range(3):
            x.talk(2)
            y.talk(2)
    x.silent()
    y.silent()


@pytest.mark.parametrize("end", ["server", "client"])
@pytest.mark.parametrize("order", ["outside-first", "inside-first"])
def test_one_end_outside(lab, pods, end, order):
    """In one namespace one end is outside the workloads; in the other both are inside."""
    lab.attach(*pods)
    outside = lab.new_cgroup("outside")
    x = Twin(pods[0], **{f"{end}_cgroup": outside})
    y = Twin(pods[1])
    for t in (x, y) if order == "outside-first" else (y, x):
        t.connect()
        t.accept()
    with lab.expect_tcp():
        x.talk()
    with lab.expect_fast(10):
        y.talk()
    with lab.expect_tcp():
        x.talk()
    x.silent()
    y.silent()
    y.c.close()
    assert y.s.read_all() == b""
    with lab.expect_tcp():
        x.talk()
    x.silent()


def test_tuple_moves_between_namespaces(lab, pods):
    """The tuple opens and closes alternately in both, 20 times, with bytes left unread each time."""
    lab.attach(*pods)
    x, y = twins(pods)
    with lab.expect_fast(100):
        for number in range(10):
            for t in (x, y):
                t.connect()
                t.accept()
                t.talk(3)
                t.silent()
                t.c.send(t.text(b"left"))
                t.s.send(t.text(b"left"))
                t.c.reset()
                t.s.close()
    lab.wait_empty()
