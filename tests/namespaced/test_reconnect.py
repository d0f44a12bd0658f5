"""One socket, several connections: connect(AF_UNSPEC) and again. Old bytes never come out of a new connection."""
import time

import pytest


def warm(c, s):
    for _ in range(4):
        c.send(b"ping")
        assert s.read(4) == b"ping"
        s.send(b"pong")
        assert c.read(4) == b"pong"


@pytest.mark.parametrize("unread", ["client", "server", "both", "none"])
def test_disconnect_and_reconnect(lab, pods, unread):
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    with lab.expect_fast(20):
        c = client.connect(b.ip, ear.port)
        s = ear.accept()
        for number in range(12):
            warm(c, s)
            if unread in ("client", "both"):
                for _ in range(5):
                    s.send(b"OLD to client")
            if unread in ("server", "both"):
                for _ in range(5):
                    c.send(b"OLD to server")
            c.disconnect()
            if number % 2:
                time.sleep(0.01)
            c.reconnect(b.ip, ear.port)
            new = ear.accept()
            text = b"NEW %d" % number
            new.send(text)
            assert c.read(len(text)) == text
            c.send(text)
            assert new.read(len(text)) == text
            assert c.pending(0.002) == b"" and new.pending() == b""
            if unread in ("server", "both") and number % 3 == 0:
                assert s.read(65) == b"OLD to server" * 5  # arrived before the RST: stays readable, as in TCP
            s.close()
            s = new
        warm(c, s)
        c.close()
        s.close()
    lab.wait_empty()


def test_disconnected_socket_connects_elsewhere(lab, pods):
    """The second connection goes to another pod, or out of the workloads: nothing of the first is in it."""
    a, b = pods
    third, outside = lab.pod("p3"), lab.pod("out")
    lab.attach(a, b, third)
    client = a.peer()
    places = [(pod, peer, peer.listen(pod.ip)) for pod in (b, third, outside) for peer in (pod.peer(),)]
    c = None
    with lab.expect_fast(20):
        for number in range(18):
            pod, _, ear = places[number % 3]
            if c is None:
                c = client.connect(pod.ip, ear.port)
            else:
                c.disconnect()
                c.reconnect(pod.ip, ear.port)
            s = ear.accept()
            warm(c, s)
            s.send(b"unread from %s" % pod.name.encode())
            c.send(b"unread")
            s.close()
    c.close()


def test_disconnected_socket_becomes_a_listener(lab, pods):
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    for number in range(5):
        c = client.connect(b.ip, ear.port)
        s = ear.accept()
        warm(c, s)
        s.send(b"OLD")
        c.disconnect()
        c.relisten(7000 + number)
        back = server.connect(a.ip, 7000 + number)
        child = c.accept()
        with lab.expect_fast(1):
            warm(back, child)
        assert child.pending() == b"" and back.pending() == b""
        for one in (back, child, c, s):
            one.close()
    lab.wait_empty()


def test_same_client_port_again(lab, pods):
    """The same 4-tuple, connection after connection: each sees its own bytes only."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    with lab.expect_fast(20):
        for number in range(20):
            c = client.connect(b.ip, ear.port, bind=[a.ip, 33333])
            s = ear.accept()
            warm(c, s)
            s.send(b"unread %d" % number)
            c.send(b"unread %d" % number)
            (c.reset if number % 2 else s.reset)()
            (s.close if number % 2 else c.close)()
    lab.wait_empty()
