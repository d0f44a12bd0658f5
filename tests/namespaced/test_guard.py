"""What an application does on a fast connection that would hide redirected bytes: refused, seen at once, or reset; never a
hang. `guard` tells of it."""
import errno
import json
import subprocess
import threading
import time

import pytest
from lab import KERNEL, RemoteError, wait_until
from test_hazards import SO_PEEK_OFF, SOL, TCP, Pair

pytestmark = pytest.mark.product
TCP_REPAIR = 19


@pytest.fixture
def guard(lab):
    """Starts a guard of this lab; a function that says what it has told so far."""
    lines = []

    def start():
        process = subprocess.Popen(lab.argv("-o", "json", "guard"), stdout=subprocess.PIPE, text=True)
        lab.extra.append(process)
        threading.Thread(target=lambda: lines.extend(map(json.loads, process.stdout)), daemon=True).start()
        return process
    start.lines = lines
    return start


def fast_pair(lab, pods, eligibility="safe"):
    lab.attach(*pods, eligibility=eligibility)
    pair = Pair(lab, pods)
    pair.run(times=4)
    c, s = pair.open()
    with lab.expect_fast(8):
        pair.talk(c, s)
    return pair, c, s


FEATURES = {}


def traced(lab, feature):
    if KERNEL < (5, 12):
        pytest.skip("the programs for this kernel use no trampolines (docs/kernels.md)")
    if not FEATURES:
        FEATURES.update({row["id"]: row for row in json.loads(lab.cli("check", "-o", "json").stdout)["features"]})
    rows = FEATURES
    if rows[f"program.{feature}"]["state"] != "works":
        pytest.skip(f"{rows[f'program.{feature}']['what']}: {rows[f'program.{feature}']['found']}")


@pytest.mark.parametrize("eligibility", ["safe", "all"])
@pytest.mark.parametrize("option", [(SOL, SO_PEEK_OFF, 0), (TCP, TCP_REPAIR, 1)], ids=["SO_PEEK_OFF", "TCP_REPAIR"])
def test_option_that_hides_unread_bytes_is_refused(lab, pods, guard, eligibility, option):
    """EBUSY while redirected bytes are unread, nothing is lost, and the same option is taken a moment later."""
    if option[1] == SO_PEEK_OFF and KERNEL < (6, 9):
        pytest.skip("no SO_PEEK_OFF on TCP before Linux 6.9")
    pair, c, s = fast_pair(lab, pods, eligibility)
    guard()
    with lab.expect_fast():
        c.send(b"unread")
    assert s.peer.call("hz_wait", s.name)
    with pytest.raises(RemoteError) as err:
        s.set(*option)
    assert err.value.errno in (errno.EBUSY, errno.EPERM), err.value
    with lab.expect_tcp():
        c.send(b", and by TCP")
        assert s.gather(18) == b"unread, and by TCP"
    s.set(*option)
    s.set(option[0], option[1], -1 if option[1] == SO_PEEK_OFF else 0)
    with lab.expect_tcp():
        pair.talk(c, s)
    assert lab.totals()["refused_options"] == 1
    wait_until("the guard tells", lambda: guard.lines)
    assert [line["what"] for line in guard.lines] == ["refused"]
    assert guard.lines[0]["local"]["port"] == pair.ear.port, guard.lines
    pair.end(c, s)
    lab.wait_empty()


def test_guard_serves_what_is_attached_later_and_ends_with_it(lab, pods, guard):
    process = guard()  # nothing is pinned yet
    pair, c, s = fast_pair(lab, pods)
    c.send(b"unread")
    assert s.peer.call("hz_wait", s.name)
    with pytest.raises(RemoteError):
        s.set(SOL, SO_PEEK_OFF, 0)
    wait_until("the guard tells", lambda: guard.lines, 20)
    assert s.gather(6) == b"unread"
    pair.end(c, s)
    lab.wait_empty()
    once = subprocess.run(lab.argv("guard", "--while-attached", "--pin-dir", lab.pin_dir + "-none"), timeout=30)
    assert once.returncode == 0 and process.poll() is None
    lab.detach()
    assert process.poll() is None


@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_splice_on_a_fast_pair(lab, pods, eligibility):
    """From the call on nothing is redirected, so the splice finds what comes; the kind stays on TCP."""
    traced(lab, "splice_read")
    pair, c, s = fast_pair(lab, pods, eligibility)
    s.peer.call("hz_splice_now", s.name, 16)  # nothing there yet
    with lab.expect_tcp():
        c.send(b"through a pipe")
        assert s.peer.call("hz_splice", s.name, 14) == b"through a pipe"
        pair.talk(c, s)
    assert "splice" in pair.shown(), lab.kinds()
    pair.end(c, s)
    if eligibility == "safe":
        with lab.expect_tcp():
            pair.run(times=3)
    assert lab.totals()["stuck"] == 0
    lab.wait_empty()


def test_zerocopy_receive_on_a_fast_pair(lab, pods):
    traced(lab, "tcp_getsockopt")
    pair, c, s = fast_pair(lab, pods)
    assert s.peer.call("hz_zerocopy_receive_now", s.name, 16) == b""
    with lab.expect_tcp():
        c.send(b"mapped or copied")
        assert s.peer.call("hz_zerocopy_receive", s.name, 16) == b"mapped or copied"
    assert "zerocopy_receive" in pair.shown(), lab.kinds()
    pair.end(c, s)
    lab.wait_empty()


@pytest.mark.parametrize("by", ["guard", "next command"])
def test_stuck_connection_is_reset(lab, pods, guard, by):
    """Redirected bytes are unread and the application only splices: both ends hear of a reset, and an event says so."""
    traced(lab, "splice_read")
    if KERNEL < (6, 5):
        pytest.skip("no bpf_sock_destroy before Linux 6.5")
    pair, c, s = fast_pair(lab, pods)
    if by == "guard":
        guard()
    c.send(b"never to be seen by splice")
    assert s.peer.call("hz_wait", s.name)
    assert s.peer.call("hz_splice_now", s.name, 64) == "EAGAIN"
    if by == "guard":
        wait_until("the reset", lambda: lab.totals()["reset"] == 1, 20)
        wait_until("the guard tells", lambda: len(guard.lines) == 2)
        assert [line["what"] for line in guard.lines] == ["stuck", "reset"]
        assert guard.lines[1]["hazards"] == ["splice"]
    else:
        assert lab.totals()["stuck"] == 1 and lab.totals()["reset"] == 0
        time.sleep(1.1)
        lab.attach(*pods, eligibility="safe")
        assert lab.totals()["reset"] == 1
    with pytest.raises(RemoteError) as err:
        c.gather(1)
    assert err.value.kind == "ConnectionResetError"
    assert s.peer.call("hz_splice_now", s.name, 64) in ("ECONNABORTED", "ECONNRESET", "ENOTCONN", 0)
    c.close()
    s.close()
    lab.wait_empty()


def test_splice_then_recv_is_not_reset(lab, pods, guard):
    """An application that splices in vain and then reads by recv gets every byte."""
    traced(lab, "splice_read")
    pair, c, s = fast_pair(lab, pods)
    guard()
    c.send(b"unread")
    assert s.peer.call("hz_wait", s.name)
    assert s.peer.call("hz_splice_now", s.name, 64) == "EAGAIN"
    assert s.gather(6) == b"unread"
    time.sleep(1.5)
    with lab.expect_tcp():
        pair.talk(c, s)
    assert lab.totals()["stuck"] == 1 and lab.totals()["reset"] == 0
    pair.end(c, s)
    lab.wait_empty()


@pytest.mark.parametrize("by", ["guard", "next command"])
def test_reset_that_never_arrives(lab, pods, guard, by):
    """The kernel drops a RST that finds its reader in a call with a long queue, and sends none twice. Here the reader's
    firewall drops it. What had come stays readable, and then the reader hears of it, instead of waiting for ever."""
    if KERNEL < (6, 5):
        pytest.skip("no bpf_sock_destroy before Linux 6.5")
    pair, c, s = fast_pair(lab, pods)
    if by == "guard":
        guard()
    pods[1].iptables("-A", "INPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")
    with lab.expect_fast():
        c.send(b"last words")
    c.reset()
    if by == "guard":
        wait_until("the reset", lambda: lab.totals()["reset"] == 1, 20)
        wait_until("the guard tells", lambda: len(guard.lines) == 2)
        assert [line["what"] for line in guard.lines] == ["untold", "reset"]
    else:
        time.sleep(1.1)
        assert lab.totals()["reset"] == 0
        lab.attach(*pods, eligibility="safe")
        assert lab.totals()["reset"] == 1
    assert s.gather(10) == b"last words"
    with pytest.raises(RemoteError) as err:
        s.gather(1)
    assert err.value.errno in (errno.ECONNABORTED, errno.ECONNRESET), err.value
    s.close()
    lab.wait_empty()


def test_ends_that_were_told_are_left_alone(lab, pods, guard):
    """Ends of every kind whose application does not look for a while: an end of stream, a reset, a half-closed one. And one
    whose peer has left the fast path and closed."""
    pair, c, s = fast_pair(lab, pods)
    guard()
    closed, half, reset = (pair.open() for _ in range(3))
    for a, b in (closed, half, reset):
        pair.talk(a, b)
    closed[0].send(b"to be read later")
    closed[0].close()
    half[0].shutdown()
    reset[0].reset()
    time.sleep(7)  # more than a sweep and its grace
    assert closed[1].gather(17) == b"to be read later"
    closed[1].send(b"late")
    half[1].send(b"still open")
    assert half[0].gather(10) == b"still open" and half[1].gather(1) == b""
    with pytest.raises(RemoteError) as err:
        reset[1].gather(1)
    assert err.value.errno == errno.ECONNRESET
    pair.talk(c, s)
    assert lab.totals()["stuck"] == lab.totals()["reset"] == 0 and not guard.lines
    for end in (closed[1], *half, reset[1], c, s):
        end.close()
    lab.wait_empty()
