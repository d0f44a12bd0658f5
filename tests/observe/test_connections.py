"""`shared-socket connections`: names, filters, order, states; the columns that people read."""
import json
import time

import pytest

pytestmark = pytest.mark.product


def rows(lab, *words):
    done = lab.cli("connections", "-n", "-o", "json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def talk(c, s, rounds, size):
    for _ in range(rounds):
        c.send(bytes(size))
        assert s.read(size) == bytes(size)
        s.send(b"y")
        assert c.read(1) == b"y"


@pytest.fixture
def three(lab, pods):
    """Three fast pairs to two listeners, the second the busiest."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ears = server.listen(b.ip), server.listen(b.ip6)
    made = []
    for ear, ip, rounds in ((ears[0], b.ip, 3), (ears[0], b.ip, 30), (ears[1], b.ip6, 10)):
        c = client.connect(ip, ear.port)
        s = ear.accept()
        talk(c, s, rounds, 1000)
        made.append((c, s))
    return ears, made


def test_filters(lab, pods, three):
    (first, second), made = three
    ports = [c.local[1] for c, _ in made]

    def found(*words):
        return [row["client"]["port"] for row in rows(lab, *words)]
    assert found() == ports  # the oldest first
    assert found("dport", str(first.port)) == ports[:2]
    assert found(f"dport {second.port} or sport {ports[0]}") == [ports[0], ports[2]]
    assert found(f"not port {first.port}") == [ports[2]]
    assert found("bytes > 20k") == [ports[1]]
    assert found("messages < 10 and path fast") == [ports[0]]
    assert found("host", f"{pods[1].ip6}/64") == [ports[2]]
    assert found("src", pods[0].ip, "state", "established") == ports[:2]
    assert found("name", f"*/{pods[0].cgroup.name}") == ports
    assert found("dst name", f"*/{pods[0].cgroup.name}") == []
    assert found("process python3") == ports
    assert found("age > 1h") == []
    assert found("--sort", "bytes") == [ports[1], ports[2], ports[0]]
    assert found("--sort", "port,messages", "--reverse", "--limit", "2") in ([ports[2], ports[0]], [ports[0], ports[1]])
    assert found("--limit", "1") == ports[:1]


def test_filter_that_is_wrong(lab, pods):
    done = lab.cli("connections", "port", "http")
    assert done.returncode == 1
    assert done.stderr.strip() == ("error: the filter `port http` is not understood: at column 6: expected a port, 0 to 65535, "
                                   "found `http`")


def test_what_a_row_says(lab, pods, three):
    _, made = three
    c, s = made[0]
    s.shutdown()
    row = next(r for r in rows(lab) if r["client"]["port"] == c.local[1])
    states = {row["client"]["state"], row["server"]["state"]}
    assert states == {"close-wait", "fin-wait-2"}, row
    assert row["client"]["workload"]["name"] == f"/{pods[0].lab.tag}/{pods[0].name}"
    assert row["server"]["command"] == "python3" and row["server"]["pid"] == s.peer.pid
    wide = lab.cli("connections", "-n", "-o", "wide").stdout.splitlines()
    assert "STATES" in wide[0] and "RESERVED" in wide[0]
    assert any("close-wait fin-wait-2" in line for line in wide[1:]), wide
    plain = lab.cli("connections", "-n").stdout.splitlines()
    assert "STATES" not in plain[0] and len(plain) == len(wide) == 4
    assert all(f"/{lab.tag}/p1" in line and f"/{lab.tag}/p2" in line for line in plain[1:])


def test_thousands(lab, pods):
    """3,000 pairs are listed in a moment."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    for peer in (server, client):
        peer.call("raise_files", 20_000)
    ear = server.listen(b.ip, backlog=4096)
    server.call("epoll_echo_start", ear.name)
    client.call("held_connect", b.ip, ear.port, 3000, timeout_=120)
    began = time.monotonic()
    assert len(rows(lab, "dport", str(ear.port))) == 3000
    assert time.monotonic() - began < 10
    assert len(rows(lab, "--limit", "7")) == 7
