"""--eligibility safe: only what has been seen to be harmless, over several finished connections, is fast."""
import pytest
from lab import PLAIN, VM

EVIDENCE = pytest.mark.parametrize("evidence", [(), ("--debug-no-receive-trace",)], ids=["calls", "file-flags"])


def epoll_pair(lab, pods):
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    return server, client, ear


@EVIDENCE
def test_blocking_pair_stays_tcp(lab, pods, evidence):
    a, b = pods
    lab.attach(a, b, eligibility="safe", options=evidence)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    with lab.expect_tcp():
        for stream in range(30):
            client.call("echo_client", b.ip, ear.port, rounds=10, stream=stream)
    lab.wait_empty()


@EVIDENCE
@pytest.mark.parametrize("blocking", ["server", "client"])
def test_one_blocking_end_is_enough_for_tcp(lab, pods, blocking, evidence):
    a, b = pods
    lab.attach(a, b, eligibility="safe", options=evidence)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start" if blocking == "server" else "epoll_echo_start", ear.name)
    with lab.expect_tcp():
        for stream in range(30):
            if blocking == "client":
                client.call("echo_client", b.ip, ear.port, rounds=10, stream=stream, high=200)
            else:
                client.call("epoll_client", b.ip, ear.port, 1, 10)


@EVIDENCE
def test_epoll_pair_becomes_fast(lab, pods, evidence):
    """TCP while nothing is known; fast after several finished connections."""
    lab.attach(*pods, eligibility="safe", options=evidence)
    _, client, ear = epoll_pair(lab, pods)
    with lab.expect_tcp():
        client.call("epoll_client", pods[1].ip, ear.port, 1, 10)  # one look is not enough
    client.call("epoll_client", pods[1].ip, ear.port, 8, 10)
    # Judged by the file's flags, a connection whose server stands between accept and fcntl is taken off; an emulated
    # processor stands there long.
    with lab.expect_fast(50):
        for _ in range(8 if VM else 1):
            client.call("epoll_client", pods[1].ip, ear.port, 8, 10)
    lab.wait_empty()


def test_listener_once_seen_blocking_stays_off(lab, pods):
    """A port whose server is seen to block in one accepted socket is off from then on, however well the rest behave."""
    a, b = pods
    lab.attach(a, b, eligibility="safe")
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)

    def connection(block):
        c = client.connect(b.ip, ear.port)
        c.nonblocking()
        s = ear.accept()
        if not block:
            s.nonblocking()
        for _ in range(10):
            c.send(b"question")
            assert (s.read(8) if block else s.gather(8)) == b"question"
            s.send(b"answer")
            assert c.gather(6) == b"answer"
        c.close()
        s.close()
    for _ in range(9):
        connection(block=False)
    with lab.expect_fast(5):
        connection(block=False)
    connection(block=True)
    connection(block=True)
    with lab.expect_tcp():
        for _ in range(20):
            connection(block=False)
    lab.wait_empty()


def test_live_half_that_turns_blocking_leaves(lab, pods):
    """A half that is fast and clears O_NONBLOCK: from its next messages on TCP, nothing lost."""
    a, b = pods
    lab.attach(a, b, eligibility="safe")
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)

    def opened():
        c = client.connect(b.ip, ear.port)
        c.nonblocking()
        s = ear.accept()
        s.nonblocking()
        return c, s

    def talk(c, s, rounds=10):
        for _ in range(rounds):
            c.send(b"question")
            assert s.gather(8) == b"question"
            s.send(b"answer")
            assert c.gather(6) == b"answer"
    for _ in range(9):
        c, s = opened()
        talk(c, s)
        c.close()
        s.close()
    c, s = opened()
    with lab.expect_fast(5):
        talk(c, s)
    c.nonblocking(False)
    for _ in range(3):
        c.send(b"question")
        assert s.gather(8) == b"question"
        s.send(b"answer")
        assert c.read(6) == b"answer"
    with lab.expect_tcp():
        for _ in range(20):
            c.send(b"question")
            assert s.gather(8) == b"question"
            s.send(b"answer")
            assert c.read(6) == b"answer"
    c.shutdown()
    assert s.gather(1) == b""
    s.send(b"bye")
    assert c.read(3) == b"bye"


def test_short_lived_kinds_stay_on_tcp(lab, pods):
    """Connections of one message each way are not worth the entry (H15): after a few their kind stays on TCP."""
    if PLAIN:
        pytest.skip("nothing is attached")
    a, b = pods
    lab.attach(a, b, options=("--min-messages", "8"))
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    for _ in range(100):
        client.call("echo_client", b.ip, ear.port, rounds=1)
    status = lab.status()
    assert status["reasons"].get("short_lived", 0) >= 60, status
    assert status["totals"]["fast_messages"] >= 16, status
    lab.wait_empty()


def test_parent_and_child_cgroup_both_attached(lab, pods):
    """The hooks run twice for a socket below two attached cgroups: learned once, paired once."""
    a, b = pods
    inner = lab.new_cgroup("p2/inner")
    lab.attach(a, b, inner, eligibility="safe")
    server, client = b.peer(cgroup=inner), a.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    client.call("epoll_client", b.ip, ear.port, 8, 10)
    with lab.expect_fast(50):
        client.call("epoll_client", b.ip, ear.port, 8, 10)
    lab.wait_empty()
