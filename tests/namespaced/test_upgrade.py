"""New programs under live connections: not a byte is lost, no connection is reset, and what was fast is fast."""
import json
import os
import subprocess
import time

import pytest
from lab import sh, wait_until
from test_detach import pair
from test_reconnect import warm

pytestmark = pytest.mark.product

OTHER_ABI = {"SHARED_SOCKET_DEBUG_ABI": "99"}


def upgrade(lab, *options, ok=(0,), **env):
    done = subprocess.run(lab.argv("upgrade", "-o", "json", *options), capture_output=True, text=True, timeout=60,
                          env={**os.environ, **env})
    assert done.returncode in ok, f"upgrade: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout) if done.returncode == 0 else None


def segments(pod):
    """TCP segments that this namespace has sent: it does not grow by what goes by the fast path."""
    text = sh("nsenter", f"--net=/run/netns/{pod.ns}", "cat", "/proc/net/snmp").stdout
    rows = [line.split() for line in text.splitlines() if line.startswith("Tcp:")]
    return int(dict(zip(rows[0], rows[1]))["OutSegs"])


def assert_fast(pods, c, s):
    """Whatever version serves the pair: its messages make no segments."""
    time.sleep(0.1)  # late acknowledgements
    before = [segments(p) for p in pods]
    warm(c, s)
    assert [segments(p) for p in pods] == before


def numbers(lab):
    return [g["number"] for g in lab.status()["generations"]]


def test_in_place(lab, pods):
    """The live pair stays fast without a handoff, unread bytes stay, and the new settings are in force for it."""
    lab.attach(*pods, options=("--budget-messages", 16))  # so that credit is soon used up
    _, _, _, c, s = pair(lab, pods)
    warm(c, s)
    warm(c, s)
    c.send(b"before the upgrade")
    before = lab.connections()[0]
    assert before["path"] == "fast"
    assert upgrade(lab, "--budget-messages", 2)["result"] == "in place"
    assert numbers(lab) == [1]
    assert s.read(18) == b"before the upgrade"
    assert_fast(pods, c, s)
    after = lab.connections()[0]
    assert after["client"]["fast_messages"] == before["client"]["fast_messages"] + 4, (before, after)
    assert after["client"]["handoffs"] == before["client"]["handoffs"]
    warm(c, s)
    warm(c, s)
    for number in range(6):
        c.send(b"%d" % number)
    assert s.read(6) == b"012345"
    assert lab.status()["reasons"].get("backed_up", 0) > 0, "the live pair does not have the new settings"
    upgrade(lab, "--budget-messages", 4096)
    warm(c, s)
    assert_fast(pods, c, s)
    with lab.expect_fast(8):
        _, _, _, c2, s2 = pair(lab, pods)
        warm(c2, s2)
    c.close()
    assert s.read_all() == b""


def test_in_place_keeps_what_was_learned(lab, pods):
    """`safe` goes on being safe: a blocking server does not become eligible by an upgrade, an event loop stays it."""
    a, b = pods
    lab.attach(a, b, eligibility="safe")
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    for _ in range(6):
        client.call("epoll_client", b.ip, ear.port)
    with lab.expect_fast(5):
        client.call("epoll_client", b.ip, ear.port)
    for options, result in (((), "in place"), (("--max-pairs", 1000), "new generation")):
        assert upgrade(lab, *options)["result"] == result
        with lab.expect_fast(5):
            client.call("epoll_client", b.ip, ear.port)
        with lab.expect_tcp():
            _, _, _, c, s = pair(lab, pods)
            warm(c, s)


@pytest.mark.parametrize("options", [(), ("--max-pairs",)], ids=["in place", "new maps"])
def test_under_traffic(lab, pods, options):
    """Eight upgrades with steady and reconnecting streams: byte-exact, no reset, fast before and after."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 6, 4)
    for number in range(8):
        with lab.expect_fast(20):
            time.sleep(0.3)
        upgrade(lab, *options, *([1000 + number] if options else []))
    with lab.expect_fast(20):
        time.sleep(0.3)
    # the first serves the steady ones; one before the last may serve those of a moment ago
    generations = lab.status()["generations"]
    assert len(generations) in ((2, 3) if options else (1,)), generations
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 500, stats
    assert server.call("echo_errors") == []
    lab.wait_empty()
    lab.attach(a, b)
    assert len(numbers(lab)) == 1


@pytest.mark.parametrize("abi", [False, True], ids=["other sizes", "other ABI"])
def test_new_generation(lab, pods, monkeypatch, abi):
    """Maps that cannot be taken over: the old pair stays fast in the old ones and keeps its unread bytes, a new pair is
    fast in the new ones, and the old ones go with their last half."""
    a, b = pods
    lab.attach(a, b)
    server, client, ear, c, s = pair(lab, pods)
    warm(c, s)
    c.send(b"unread")
    if abi:
        monkeypatch.setenv("SHARED_SOCKET_DEBUG_ABI", "99")
        assert lab.cli("status").returncode == 3
        refused = lab.cli(*lab.attach_args((a, b)))
        assert refused.returncode == 3 and "upgrade" in refused.stderr
    assert upgrade(lab, *(() if abi else ("--max-pairs", 1000)))["result"] == "new generation"
    generations = lab.status()["generations"]
    assert [(g["number"], g["current"], g["sockets"]) for g in generations] == [(1, False, 2), (2, True, 0)]
    assert s.read(6) == b"unread"
    assert_fast(pods, c, s)
    c2, s2 = client.connect(b.ip, ear.port), ear.accept()
    with lab.expect_fast(7):
        warm(c2, s2)
    assert [g["sockets"] for g in lab.status()["generations"]] == [2, 2]
    assert lab.status()["totals"]["pairs_live"] == (1 if abi else 2)
    assert_fast(pods, c, s)
    assert_fast(pods, c2, s2)
    # once more, in place, with the old one still there
    assert upgrade(lab)["result"] == "in place"
    assert numbers(lab) == [1, 2]
    c.send(b"last words")
    c.close()
    assert s.read_all() == b"last words"
    s.close()
    lab.attach(a, b)
    assert numbers(lab) == [2] and os.listdir(lab.pin_dir) == ["g2"]
    assert_fast(pods, c2, s2)


@pytest.mark.parametrize("unread", [False, True], ids=["idle", "unread"])
def test_detach_with_two_generations(lab, pods, monkeypatch, unread):
    a, b = pods
    lab.attach(a, b)
    server, client, ear, c, s = pair(lab, pods)
    warm(c, s)
    for key, value in OTHER_ABI.items():
        monkeypatch.setenv(key, value)
    upgrade(lab)
    c2, s2 = client.connect(b.ip, ear.port), ear.accept()
    warm(c2, s2)
    if unread:
        c.send(b"old")
        c2.send(b"new")
        done = lab.detach("--all", "--timeout", "1", "-o", "json", ok=(4,))
        assert json.loads(done.stdout)["remaining_halves"] == 2
        assert s.read(3) == b"old" and s2.read(3) == b"new"
    lab.detach("--cgroup", str(a.cgroup), "--timeout", "5")  # the peers of its pairs leave too
    assert [w["cgroup_id"] for w in lab.status()["workloads"]] == [b.cgroup.stat().st_ino]
    before = segments(a)
    warm(c, s)
    warm(c2, s2)
    assert segments(a) >= before + 8
    lab.detach("--all", "--timeout", "5")
    assert not os.path.exists(lab.pin_dir)
    warm(c, s)
    warm(c2, s2)
    c.close()
    assert s.read_all() == b""


def test_detach_one_workload_leaves_the_old_pairs_of_others(lab, pods):
    """In the old generation too only the pairs of the detached workload leave."""
    a, b = pods
    other = lab.pod("p3")
    lab.attach(a, b, other)
    _, _, _, c, s = pair(lab, pods)
    inside = other.peer()
    ear = inside.listen(other.ip)
    c3, s3 = inside.connect(other.ip, ear.port), ear.accept()
    warm(c, s)
    warm(c3, s3)
    upgrade(lab, "--max-pairs", 1000)
    lab.detach("--cgroup", str(other.cgroup))
    assert_fast(pods, c, s)
    before = segments(other)
    warm(c3, s3)
    assert segments(other) > before
    lab.attach(*pods)
    assert lab.totals()["halves"] == 2, "the records of what has left go with its workload"


def test_nothing_to_upgrade(lab):
    done = lab.cli("upgrade")
    assert done.returncode == 1 and "attach" in done.stderr
    assert not os.path.exists(lab.pin_dir)


def test_reconnect_across_generations(lab, pods):
    """A socket of an old pair is disconnected and connected again: its new life is a pair of the new generation."""
    a, b = pods
    lab.attach(a, b)
    server, client, ear, c, s = pair(lab, pods)
    warm(c, s)
    upgrade(lab, "--max-pairs", 1000)
    s.send(b"never read")
    c.disconnect()
    s.close()
    c.reconnect(b.ip, ear.port)
    s2 = ear.accept()
    with lab.expect_fast(7):
        warm(c, s2)
    wait_until("the old generation is empty", lambda: lab.status()["generations"][0]["sockets"] == 0)
    lab.attach(a, b)
    assert numbers(lab) == [2]
    assert_fast(pods, c, s2)
