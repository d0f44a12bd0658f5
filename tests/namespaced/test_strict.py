"""Programs that trust FIONREAD (H7): `safe` must never leave one waiting for bytes that are there.

On this kernel a half in the sockhash does not count bytes that came by TCP, so a strict pair that becomes a stream leaves
at a clean moment instead of mixing the paths (bpf/clean.bpf.h).
"""
import json
import threading

import pytest
from lab import KERNEL, RemoteError, wait_until
from test_hazards import Pair

SIZES = [100, 5_000, 70_000, 1_000_000, 12_000_000]


def misses_tcp(lab):
    """Whether FIONREAD of this kernel does not count what came by TCP."""
    return json.loads(lab.cli("check", "-o", "json").stdout)["datapath"]["fionread"] & 1


def learn(server, client, host, port):
    for i in range(4):
        assert client.call("upload", host, port, 700, 700, i)


@pytest.mark.parametrize("buffer", [1024, 16384])
def test_uploads_to_a_reader_that_asks(lab, pods, buffer):
    if KERNEL < (6, 3):
        pytest.skip("this server ends with a blocking file, by which kinds are judged before Linux 6.3")
    lab.attach(*pods, eligibility="safe")
    client, server = pods[0].peer(), pods[1].peer()
    ear = server.listen(pods[1].ip)
    server.call("inquiring_server", ear.name, buffer)
    learn(server, client, pods[1].ip, ear.port)
    with lab.expect_fast(20):
        for number, total in enumerate(SIZES * 3):
            for size in (997, 65_536):
                if total // size > 4000:
                    continue
                assert client.call("upload", pods[1].ip, ear.port, total, size, number, timeout_=40)
    assert server.call("echo_errors") == []
    if lab.attached and misses_tcp(lab):
        reasons = lab.status()["reasons"]
        if buffer == 1024:  # a reader with larger bites may keep up: then the queue never grows into a stream
            assert reasons.get("bulk"), reasons  # the kind has become one of streams
        assert not reasons.get("backed_up"), reasons  # and none was mixed
    lab.wait_empty()


@pytest.mark.product
def test_without_the_rule_a_reader_waits_for_ever(lab, pods):
    """What the rule is for: where the kernel's FIONREAD is not exact, textbook fallback to TCP starves the reader."""
    if not misses_tcp(lab):
        pytest.skip("FIONREAD of this kernel is exact")
    lab.attach(*pods, eligibility="safe", options=("--debug-fionread", "0"))
    client, server = pods[0].peer(), pods[1].peer()
    ear = server.listen(pods[1].ip)
    server.call("inquiring_server", ear.name, 1024)
    learn(server, client, pods[1].ip, ear.port)
    with pytest.raises(RemoteError, match="no answer|BrokenPipe|ConnectionReset"):
        for number in range(10):
            client.call("upload", pods[1].ip, ear.port, 12_000_000, 65_536, number, timeout_=60)


def test_only_small_messages_one_at_a_time(lab, pods):
    """Where redirected bytes are the ones that are not counted."""
    lab.attach(*pods, eligibility="safe", options=("--debug-fionread", "2"))
    client, server = pods[0].peer(), pods[1].peer()
    ear = server.listen(pods[1].ip)
    server.call("epoll_echo_start", ear.name)
    client.call("epoll_client", pods[1].ip, ear.port, 5, 10, 200)
    with lab.expect_fast(80):
        client.call("epoll_client", pods[1].ip, ear.port, 1, 50, 200)
    with lab.expect_tcp():
        client.call("epoll_client", pods[1].ip, ear.port, 1, 50, 600)
    if lab.attached:
        assert lab.status()["reasons"]["bulk"] >= 100
    lab.wait_empty()


@pytest.mark.parametrize("fionread", ["as it is", "2"])
def test_a_recv_ends_where_the_bytes_end(lab, pods, fionread):
    """Whoever waits for edges takes a short read for the end of what has come: so one recv takes all, as on TCP."""
    lab.attach(*pods, eligibility="safe", options=() if fionread == "as it is" else ("--debug-fionread", fionread))
    pair = Pair(lab, pods)
    pair.run(times=4)

    def several(c, s, *sizes):
        for size in sizes:
            c.send(bytes(size))
        wait_until("all of it has come", lambda: c.peer.call("hz_unsent", c.name) == 0)
        assert len(s.peer.call("hz_recv", s.name, 65536, 0)) == sum(sizes)
    c, s = pair.open()
    with lab.expect_fast(10):
        pair.talk(c, s)
    with lab.expect_fast(3):
        several(c, s, 100, 100, 100)
    with lab.expect_fast(2):  # the second does not fit behind the first, and goes there all the same
        several(c, s, 100, 5000)
    several(c, s, 5000, 100, 5000, 100)
    several(c, s, 100, 100)
    pair.end(c, s)
    if lab.attached and fionread == "2":
        with lab.expect_tcp():  # the kind has become one of streams
            pair.run(times=2)
        assert "stream" in pair.shown()
        reasons = lab.status()["reasons"]
        assert reasons["bulk"] >= 2 and not reasons.get("backed_up"), reasons
    lab.wait_empty()


@pytest.mark.product
def test_a_stream_without_a_timer_leaves_at_the_next_chance(lab, pods):
    """The kernel had no memory for the pair's timer when it was made. Its stream stays fast until a message goes by TCP, whose
    ACK makes the timer; then it leaves for good at a moment at which nothing is queued."""
    if KERNEL < (5, 15):
        pytest.skip("no timers before Linux 5.15")
    no_timer = 1 << 6
    lab.attach(*pods, eligibility="safe", options=("--debug-fionread", "1", "--debug-spin", "1", "--debug-windows", no_timer,
                                                   "--debug-keepalive-ms", "1000"))
    pair = Pair(lab, pods)
    pair.run(times=4)
    c, s = pair.open()
    with lab.expect_fast(10):
        pair.talk(c, s)
    size = 1 << 16
    with lab.expect_fast(5):
        for _ in range(6):  # more than STREAM_BYTES
            c.send(bytes(size))
        assert s.gather(6 * size) == bytes(6 * size)
    assert "stream" in pair.shown()
    assert [lab.connections()[0][end]["path"] for end in ("client", "server")] != ["left", "left"]

    def left():
        pair.talk(c, s)  # one of them goes by TCP, as it is time for conntrack
        return lab.connections()[0]["path"] == "left"
    wait_until("the stream has left", left, 20)
    pair.talk(c, s)
    pair.end(c, s)
    lab.wait_empty()


def test_detach_in_the_middle_of_uploads(lab, pods):
    lab.attach(*pods, eligibility="safe")
    server = pods[1].peer()
    ear = server.listen(pods[1].ip)
    server.call("inquiring_server", ear.name, 1024)
    clients = [pods[0].peer() for _ in range(3)]
    learn(server, clients[0], pods[1].ip, ear.port)
    results = []

    def work(peer, number):
        for i in range(12):
            results.append(peer.call("upload", pods[1].ip, ear.port, 200_000, 20_000, 100 * number + i, timeout_=40))
    threads = [threading.Thread(target=work, args=(peer, n)) for n, peer in enumerate(clients)]
    with lab.expect_fast(20):
        for thread in threads:
            thread.start()
        for _ in range(4):
            lab.detach("--cgroup", str(pods[0].cgroup), "--timeout", "10")
            lab.attach(pods[0], eligibility="safe")
        for thread in threads:
            thread.join()
    assert results == [True] * 36 and server.call("echo_errors") == []
    lab.wait_empty()
