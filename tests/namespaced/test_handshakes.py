"""Handshakes out of the ordinary: whatever is not announced in order stays TCP, with the right bytes."""
import socket
import time

import pytest
from lab import RemoteError, hold_syns, let_go


def test_syn_cookies(lab, pods):
    """SYN cookies for every connection: no request socket, so no announcement: TCP, correct, no errors."""
    a, b = pods
    b.sysctl(tcp_syncookies=2)
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    before = b.netstat("SyncookiesRecv")
    with lab.expect_tcp():
        for stream in range(30):
            client.call("echo_client", b.ip, ear.port, rounds=10, stream=stream)
    assert b.netstat("SyncookiesRecv") - before >= 30, "the test did not use SYN cookies"
    assert server.call("echo_errors") == []
    lab.wait_empty()


def test_fast_open(lab, pods):
    """TCP Fast Open: data in the SYN, PASSIVE before ACTIVE. Correct bytes; nothing on the fast path by mistake."""
    a, b = pods
    for pod in pods:
        pod.sysctl(tcp_fastopen=3)
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip, opts=[(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 128)])
    server.call("echo_start", ear.name)
    assert client.call("fast_open_client", b.ip, ear.port, b"cookie please") == b"cookie please and more"
    before = b.netstat("TCPFastOpenPassive")
    for number in range(30):
        text = (b"%d " % number) * (1 + number * 20)
        assert client.call("fast_open_client", b.ip, ear.port, text) == text + b" and more"
    assert b.netstat("TCPFastOpenPassive") - before >= 25, "the test did not use Fast Open"
    assert server.call("echo_errors") == []
    lab.wait_empty()
    with lab.expect_fast(20):  # the same listener, opened the usual way
        client.call("echo_client", b.ip, ear.port, rounds=20)
    lab.wait_empty()


def test_connect_refused_and_unreachable(lab, pods):
    """Connects that come to nothing leave nothing in the maps."""
    a, b = pods
    lab.attach(a, b)
    client = a.peer()
    for number in range(50):
        with pytest.raises(RemoteError) as refused:
            client.connect(b.ip, 6000 + number)
        assert refused.value.kind == "ConnectionRefusedError"
    lab.wait_empty()


def test_backlog_overflow(lab, pods):
    """A listener whose queue is full drops final ACKs: the client is established before the server; then all drain."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip, backlog=2)
    held = []
    for number in range(3):
        c = client.connect(b.ip, ear.port)
        c.send(b"hello %d" % number)
        held.append(c)
    late = client.post("connect", "late", b.ip, ear.port)
    time.sleep(0.5)
    for number in range(3):
        s = ear.accept()
        assert s.read(7) == b"hello %d" % number
        s.send(b"welcome")
        held[number] = (held[number], s)
    late.result(20)
    s = ear.accept()
    client.call("sock_send", "late", b"hello late")
    assert s.read(10) == b"hello late"
    for c, s in held:
        assert c.read(7) == b"welcome"
        c.close()
        assert s.read_all() == b""
        s.close()
    client.call("sock_close", "late")


def test_simultaneous_open(lab, pods):
    """Both ends connect to each other from fixed ports and the SYNs cross: PASSIVE fires on both. Whatever the
    handshake becomes, bytes are right."""
    a, b = pods
    lab.attach(a, b)
    one, two = a.peer(), b.peer()
    for number in range(6):
        port, x, y = 20000 + number, f"x{number}", f"y{number}"
        hold_syns(a, b)
        hold_syns(b, a)
        first = one.post("connect", x, b.ip, port, bind=[a.ip, port])
        second = two.post("connect", y, a.ip, port, bind=[b.ip, port])
        time.sleep(0.1)  # both in SYN_SENT, both SYNs held
        let_go(a, b)
        time.sleep(0.02)
        let_go(b, a)
        first.result()
        second.result()  # refused would mean that they did not cross
        for _ in range(3):
            one.call("sock_send", x, b"from x")
            assert two.call("sock_read", y, 6) == b"from x"
            two.call("sock_send", y, b"from y")
            assert one.call("sock_read", x, 6) == b"from y"
        one.call("sock_close", x)
        assert two.call("sock_read_all", y) == b""
        two.call("sock_close", y)
    lab.wait_empty()


@pytest.mark.parametrize("client_protocol", [0, 262], ids=["tcp-client", "mptcp-client"])
def test_mptcp_listener(lab, pods, client_protocol):
    """A listener of MPTCP (Go's default), reached by TCP (it falls back) and by MPTCP: right bytes, orderly ends."""
    a, b = pods
    server, client = b.peer(), a.peer()
    try:
        ear = server.listen(b.ip, protocol=262)
    except RemoteError as err:
        pytest.skip(f"no MPTCP here: {err}")
    lab.attach(a, b)
    server.call("echo_start", ear.name)
    for stream in range(20):
        client.call("echo_client", b.ip, ear.port, rounds=10, stream=stream, protocol=client_protocol,
                    nodelay=not client_protocol)
    assert server.call("echo_errors") == []
    lab.wait_empty()


def test_self_connect(lab, pods):
    """A socket that connects to its own address and port: one socket is both ends. It reads what it wrote."""
    a, _ = pods
    lab.attach(a)
    client = a.peer()
    for number in range(5):
        c = client.connect("127.0.0.1", 21000 + number, bind=["127.0.0.1", 21000 + number])
        for _ in range(5):
            c.send(b"to myself")
            assert c.read(9) == b"to myself"
        assert c.pending() == b""
        c.shutdown()
        assert c.read_all() == b""
        c.close()
    lab.wait_empty()
