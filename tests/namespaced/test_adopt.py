"""Connections that existed before attach: adopted while they are used, without a byte lost, and only when it is safe."""
import hashlib
import json
import subprocess
import time

import pytest
from lab import KERNEL, RemoteError, sh, wait_until
from test_reconnect import warm

pytestmark = pytest.mark.product
GRACE = 1.1  # a second after it was adopted a half may be fast
# what FIONREAD of the kernel does not count: nothing, bytes by TCP, redirected bytes (`safe` adopts in three ways)
FIONREAD = pytest.mark.parametrize("fionread", ["0", "1", "2"], ids=["exact", "misses-tcp", "misses-fast"])


@pytest.fixture(autouse=True)
def _kernel(request):
    if KERNEL < (6, 12) and request.function is not test_where_it_is_not_possible:
        pytest.skip("no adoption before Linux 6.12")


def pair(lab, a, b, host=None):
    server, client = b.peer(), a.peer()
    ear = server.listen(host or b.ip)
    c = client.connect(host or b.ip, ear.port)
    return server, client, ear, c, ear.accept()


def adopted(lab):
    return lab.totals()["adopted"]


def open_connections(pod):
    text = sh("nsenter", f"--net=/run/netns/{pod.ns}", "cat", "/proc/net/tcp").stdout
    return sum(line.split()[3] == "01" for line in text.splitlines()[1:])


def becomes_fast(lab, c, s, rounds=6):
    """The first messages after the grace go by TCP, then both ways are fast."""
    time.sleep(GRACE)
    warm(c, s)
    with lab.expect_fast(2 * rounds - 2):
        for _ in range(rounds // 2):
            warm(c, s)


def test_idle_connection(lab, pods):
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    done = lab.attach(*pods)
    assert "1 existing connections adopted" in done.stdout, done.stdout + done.stderr
    assert adopted(lab) == 1 and lab.totals()["pairs_live"] == 1
    becomes_fast(lab, c, s)
    c.close()
    s.close()
    lab.wait_empty()


def test_traffic_while_attach_runs_blocking(lab, pods):
    """Eight streams of blocking ping-pong do not notice that they are adopted, and are fast afterwards, byte-exact."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 8, 0)
    time.sleep(0.5)
    lab.attach(a, b)
    assert adopted(lab) == 8, lab.status()
    time.sleep(GRACE)
    with lab.expect_fast(200):
        time.sleep(1)
    before = lab.status()
    with lab.expect_fast(200):
        time.sleep(0.5)
    after = lab.status()
    slow = after["totals"]["tcp_messages"] - before["totals"]["tcp_messages"]
    quick = after["totals"]["fast_messages"] - before["totals"]["fast_messages"]
    assert slow * 10 < quick, (before, after)
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 500, stats
    assert server.call("echo_errors") == []
    lab.wait_empty()


@FIONREAD
def test_traffic_while_attach_runs_non_blocking_safe(lab, pods, fionread):
    """`safe`: attach watches the kinds of what exists, finds them non-blocking, and adopts them."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 6, 0, nonblocking=True)
    time.sleep(0.3)
    done = lab.attach(a, b, eligibility="safe", options=("--adopt-wait", "5", "--debug-fionread", fionread))
    assert adopted(lab) == 6, done.stdout + str(lab.status())
    time.sleep(GRACE)
    with lab.expect_fast(200):
        time.sleep(1)
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 500, stats
    lab.wait_empty()


@FIONREAD
def test_safe_learns_first_and_a_later_attach_adopts(lab, pods, fionread):
    """Without waiting: observed on TCP, and the next attach finds what has been proven. A blocking kind never is."""
    a, b = pods
    server, client, blocking = b.peer(), a.peer(), b.peer()
    ear, other = server.listen(b.ip), blocking.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    blocking.call("echo_start", other.name)
    client.call("traffic_start", b.ip, ear.port, 4, 0, nonblocking=True)
    client.call("traffic_start", b.ip, other.port, 3, 0, nonblocking=True)
    with lab.expect_tcp(no_halves=True):
        done = lab.attach(a, b, eligibility="safe", options=("--adopt-wait", "0", "--debug-fionread", fionread))
        assert "7 left on TCP (learning 7)" in done.stdout, done.stdout
        time.sleep(1)
    done = lab.attach(a, b, eligibility="safe", options=("--adopt-wait", "3", "--debug-fionread", fionread))
    assert "4 existing connections adopted, 3 left on TCP (not_eligible 3)" in done.stdout, done.stdout
    time.sleep(GRACE)
    with lab.expect_fast(200):
        time.sleep(1)
    for _ in range(2):
        stats = client.call("traffic_stop")
        assert stats["errors"] == [], stats
    lab.wait_empty()


@FIONREAD
def test_born_observed_is_adopted_later(lab, pods, fionread):
    """`safe`: a connection that was young when its kind was unknown stays on TCP; the next attach adopts it."""
    a, b = pods
    lab.attach(a, b, eligibility="safe", options=("--debug-fionread", fionread, "--adopt-wait", "5"))
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    with lab.expect_tcp(no_halves=True):
        client.call("traffic_start", b.ip, ear.port, 4, 0, nonblocking=True)
        time.sleep(1)
    lab.attach(a, b, eligibility="safe", options=("--debug-fionread", fionread, "--adopt-wait", "5"))
    assert adopted(lab) == 4
    time.sleep(GRACE)
    with lab.expect_fast(200):
        time.sleep(1)
    assert client.call("traffic_stop")["errors"] == []


@pytest.mark.parametrize("first", [b"1", b"x" * 3000])
def test_reader_asleep_at_adoption(lab, pods, first):
    """A blocking recv that began before attach gets the first message (by TCP), later ones are fast; both ends asleep."""
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    at_server = s.peer.post("sock_read", s.name, len(first))
    time.sleep(0.1)
    lab.attach(*pods)
    time.sleep(GRACE)
    assert adopted(lab) == 1
    with lab.expect_tcp():
        c.send(first)
        assert at_server.result() == first
    at_client = c.peer.post("sock_read", c.name, 5)
    time.sleep(0.1)
    s.send(b"reply")
    assert at_client.result() == b"reply"
    warm(c, s)
    with lab.expect_fast(8):
        for _ in range(4):
            sleeper = s.peer.post("sock_read", s.name, 4)
            time.sleep(0.05)
            c.send(b"ping")
            assert sleeper.result() == b"ping"
            sleeper = c.peer.post("sock_read", c.name, 4)
            time.sleep(0.05)
            s.send(b"pong")
            assert sleeper.result() == b"pong"


def test_waitall_reader_asleep_at_adoption(lab, pods):
    """A recv that waits for more than comes in one message: it stays in plain TCP until it is full."""
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    at_server = s.peer.post("sock_read_waitall", s.name, 10)
    time.sleep(0.1)
    lab.attach(*pods)
    time.sleep(GRACE)
    with lab.expect_tcp():
        for number in range(5):
            c.send(b"%02d" % number)
            time.sleep(0.1)
        assert at_server.result() == b"0001020304"
    warm(c, s)
    with lab.expect_fast(4):
        warm(c, s)


def test_splice_reader_asleep_at_adoption(lab, pods):
    """A socket that is only read by splice(2) never becomes fast: what it is sent always comes by TCP."""
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    spliced = s.peer.post("sock_splice", s.name, 100)
    time.sleep(0.1)
    lab.attach(*pods)
    time.sleep(GRACE)
    with lab.expect_tcp():
        for number in range(5):
            c.send(b"message %d" % number)
            assert spliced.result() == b"message %d" % number
            spliced = s.peer.post("sock_splice", s.name, 100)
            time.sleep(0.05)
    c.send(b"end")
    assert spliced.result() == b"end"
    assert lab.status()["reasons"].get("adopting", 0) >= 6


def test_two_readers_asleep_at_adoption(lab, pods):
    """Two threads in a blocking recv on one socket: each message reaches one of them, whichever slept on."""
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    s.peer.call("readers_start", s.name, 2)
    time.sleep(0.2)
    lab.attach(*pods)
    assert adopted(lab) == 1
    text = b""
    for number in range(60):
        text += b"%02d" % number
        c.send(b"%02d" % number)
        assert s.peer.call("readers_wait", s.name, len(text)) == text
        time.sleep(0.03)
    assert lab.status()["reasons"].get("adopting", 0) >= 30
    c.close()


@pytest.mark.parametrize("sizes", [(5, 7), (100_000, 1)])
def test_unread_data_at_adoption(lab, pods, sizes):
    """Bytes in both receive queues when attach comes: they come out first, in order."""
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    there, back = bytes(range(256)) * 400, bytes(range(255, -1, -1)) * 400
    c.send(there[:sizes[0]])
    s.send(back[:sizes[1]])
    lab.attach(*pods)
    time.sleep(GRACE)
    with lab.expect_tcp():
        c.send(b"second")
        s.send(b"zweite")
    assert s.read(sizes[0] + 6) == there[:sizes[0]] + b"second"
    assert c.read(sizes[1] + 6) == back[:sizes[1]] + b"zweite"
    becomes_fast(lab, c, s)


def test_half_closed_is_not_adopted(lab, pods):
    _, _, _, c, s = pair(lab, *pods)
    warm(c, s)
    c.shutdown()
    time.sleep(0.1)
    with lab.expect_tcp(no_halves=True):
        lab.attach(*pods)
        assert adopted(lab) == 0
        s.send(b"rest")
        assert c.read(4) == b"rest"
        assert s.read_all() == b""


def test_one_end_then_the_other(lab, pods):
    """One attached end is nothing; the attach of the other adopts."""
    a, b = pods
    _, _, _, c, s = pair(lab, a, b)
    warm(c, s)
    with lab.expect_tcp(no_halves=True):
        done = lab.attach(a)
        assert "1 go elsewhere" in done.stdout
        time.sleep(GRACE)
        warm(c, s)
    done = lab.attach(b)
    assert "1 existing connections adopted" in done.stdout
    becomes_fast(lab, c, s)


def test_no_adopt(lab, pods):
    _, _, _, c, s = pair(lab, *pods)
    with lab.expect_tcp(no_halves=True):
        lab.attach(*pods, options=("--no-adopt",))
        time.sleep(GRACE)
        warm(c, s)
    assert adopted(lab) == 0


def test_attach_twice_adopts_once(lab, pods):
    _, _, _, c, s = pair(lab, *pods)
    lab.attach(*pods)
    becomes_fast(lab, c, s)
    done = lab.attach(*pods)
    assert "existing" not in done.stdout and adopted(lab) == 1
    with lab.expect_fast(7):
        warm(c, s)


def test_behind_nat_ipv6_and_loopback(lab, pods):
    """DNAT + masquerade, DNAT in the pod, IPv6, v4-mapped, 127.0.0.1 inside each pod with one 4-tuple in both."""
    a, b = pods
    server, client = b.peer(), a.peer()
    near, far = server.listen(b.ip), server.listen(b.ip)
    lab.router_iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", "10.96.0.9", "--dport", "80", "-j", "DNAT",
                        "--to-destination", f"{b.ip}:{near.port}")
    lab.router_iptables("-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-j", "MASQUERADE", "--random")
    a.iptables("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "10.96.0.8", "--dport", "80", "-j", "DNAT",
               "--to-destination", f"{b.ip}:{far.port}")
    held = []
    for ear, host, port in ((near, "10.96.0.9", 80), (far, "10.96.0.8", 80)):
        c = client.connect(host, port)
        held.append((c, ear.accept()))
    ear = server.listen(b.ip6)
    c = client.connect(b.ip6, ear.port)
    held.append((c, ear.accept()))
    ear = server.listen("::", mapped=True)
    c = client.connect(b.ip, ear.port)
    held.append((c, ear.accept()))
    for pod in pods:
        one, two = pod.peer(), pod.peer()
        ear = one.listen("127.0.0.1", 4444)
        c = two.connect("127.0.0.1", 4444, bind=("127.0.0.1", 5555))
        held.append((c, ear.accept()))
    for c, s in held:
        warm(c, s)
    done = lab.attach(a, b)
    assert adopted(lab) == len(held), done.stdout
    time.sleep(GRACE)
    for number, (c, s) in enumerate(held):
        warm(c, s)
        with lab.expect_fast(8):
            warm(c, s)
            c.send(b"%02d" % number)
            assert s.read(2) == b"%02d" % number
    for c, s in held:
        c.close()
        s.close()
    lab.wait_empty()


def test_close_reset_and_reconnect_of_adopted(lab, pods):
    """Every end of an adopted connection: orderly, with unread, RST, half-close, connect(AF_UNSPEC). Maps empty after."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    ends = []
    for _ in range(6):
        c = client.connect(b.ip, ear.port)
        ends.append((c, ear.accept()))
    lab.attach(a, b)
    assert adopted(lab) == 6
    time.sleep(GRACE)
    for c, s in ends:
        warm(c, s)
        with lab.expect_fast(7):
            warm(c, s)
    (c, s), *ends = ends
    c.close()
    assert s.read_all() == b""
    s.close()
    (c, s), *ends = ends
    c.send(b"unread")
    s.send(b"unread")
    c.close()
    s.close()
    (c, s), *ends = ends
    c.reset()
    with pytest.raises(RemoteError) as err:
        s.read(1)
    assert err.value.kind == "ConnectionResetError"
    s.close()
    (c, s), *ends = ends
    c.send(b"question")
    c.shutdown()
    assert s.read_all() == b"question"
    s.send(b"answer")
    s.close()
    assert c.read_all() == b"answer"
    c.close()
    (c, s), *ends = ends
    s.send(b"OLD")
    c.disconnect()
    c.reconnect(b.ip, ear.port)
    new = ear.accept()
    new.send(b"NEW")
    assert c.read(3) == b"NEW"
    with lab.expect_fast(7):
        warm(c, new)
    for x in (c, new, s):
        x.close()
    (c, s), *ends = ends
    server.close()
    assert c.read_all() == b""
    c.close()
    lab.wait_empty()


def test_detach_right_after_adoption_and_adopt_again(lab, pods):
    """Detach of one workload while all is still adopting, then attach again, many times, under traffic."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 6, 0)
    lab.attach(a, b)
    for number in range(6):
        time.sleep(0.05 if number % 2 else 1.5)
        lab.detach("--cgroup", str(b.cgroup), "--timeout", "5", ok=(0, 4))
        lab.attach(b)
    assert adopted(lab) >= 6 * 4
    time.sleep(GRACE)
    with lab.expect_fast(200):
        time.sleep(1)
    lab.detach("--all", "--timeout", "5")
    time.sleep(0.2)
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 500, stats
    assert server.call("echo_errors") == []


@pytest.mark.parametrize("traffic", [True, False])
def test_killed_between_the_passes(lab, pods, traffic):
    """kill -9 of attach when halves have entered and are not tied: they go by TCP, close cleanly, or are finished next."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    _, _, _, c, s = pair(lab, a, b)
    server.call("echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 4 if traffic else 0, 0)
    lab.attached = True
    argv = lab.argv(*lab.attach_args((a, b), "all", "--debug-adopt-delay", "60000"))
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lab.extra.append(process)
    try:
        wait_until("the halves have entered", lambda: lab.totals()["halves"] == (10 if traffic else 2))
    finally:
        process.kill()
        process.wait()
    with lab.expect_tcp():
        time.sleep(GRACE)
        warm(c, s)
    assert lab.totals()["pairs_live"] == 0
    assert lab.status()["reasons"].get("untied", 0) > 0
    if not traffic:
        c.close()
        s.close()
        lab.wait_empty()
        return
    lab.attach(a, b)
    assert adopted(lab) == 5
    time.sleep(GRACE)
    warm(c, s)
    with lab.expect_fast(50):
        warm(c, s)
        time.sleep(0.5)
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 100, stats
    c.close()
    s.close()
    lab.wait_empty()


def test_killed_and_one_end_gone(lab, pods):
    """As above, and then one end closes: the next attach takes the other out."""
    a, b = pods
    _, _, _, c, s = pair(lab, a, b)
    lab.attached = True
    argv = lab.argv(*lab.attach_args((a, b), "all", "--debug-adopt-delay", "60000"))
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lab.extra.append(process)
    try:
        wait_until("the halves have entered", lambda: lab.totals()["halves"] == 2)
    finally:
        process.kill()
        process.wait()
    c.send(b"last")
    c.close()
    lab.attach(a, b)
    assert adopted(lab) == 0
    assert s.read_all() == b"last"
    s.close()
    lab.wait_empty()


@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_ten_thousand(lab, pods, eligibility):
    """10,000 live connections; the time that attach takes with and without them."""
    count = 10_000
    a, b = pods
    server, client = b.peer(), a.peer()
    for peer in (server, client):
        peer.call("raise_files", 20_000)
    ear = server.listen(b.ip, backlog=4096)
    server.call("epoll_echo_start", ear.name)
    client.call("held_connect", b.ip, ear.port, count, timeout_=120)
    client.call("held_exchange", timeout_=60)
    began = time.monotonic()
    lab.attach(a, b, options=("--no-adopt",), eligibility=eligibility)
    plain = time.monotonic() - began
    if eligibility == "safe":
        client.call("epoll_client", b.ip, ear.port, 5, 10, 200)  # from which the kinds are known
    began = time.monotonic()
    done = lab.attach(a, b, eligibility=eligibility, options=("--adopt-wait", "0"))
    took = time.monotonic() - began
    print(f"{count} connections adopted in {took:.2f} s; attach without adoption: {plain:.2f} s")
    assert f"{count} existing connections adopted" in done.stdout, done.stdout
    assert adopted(lab) == count
    time.sleep(GRACE)
    client.call("held_exchange", timeout_=60)
    with lab.expect_fast(2 * count - 20):
        client.call("held_exchange", timeout_=60)
    client.call("held_close")
    lab.wait_empty(60)
    assert took < 10, took  # two seconds on a machine that does nothing else


def test_duplex_streams_while_attached_again_and_again(lab, pods):
    """Non-blocking streams, both directions at once, adopted and detached at any moment: byte-exact, in order."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    lab.attach(lab.new_cgroup("other"))  # the programs are there; what follows is quick
    for _ in range(5):  # they may be over before anybody has seen them flow
        serving = server.post("duplex_serve", ear.name, 300, 5)
        talking = client.post("duplex_connect", b.ip, ear.port, 300, 5)
        wait_until("the streams flow, or have ended", lambda: open_connections(b) >= 100 or client.lines.qsize(), pause=0.01)
        if not client.lines.qsize():
            break
        assert talking.result(90) == serving.result(90)
    lab.attach(a, b)
    for number in range(8):
        time.sleep(0.3)
        lab.detach("--cgroup", str((a, b)[number % 2].cgroup), "--timeout", "3", ok=(0, 4))
        lab.attach(a, b)
    assert talking.result(90) == serving.result(90)
    assert adopted(lab) > 0
    lab.wait_empty()


def test_no_more_than_fits(lab, pods):
    """A map for two pairs, five connections: two are adopted, the others stay on TCP with a reason, no half is left over."""
    _, _, ear, c, s = pair(lab, *pods)
    ends = [(c, s)]
    for _ in range(4):
        c = ends[0][0].peer.connect(pods[1].ip, ear.port)
        ends.append((c, ear.accept()))
    done = lab.attach(*pods, options=("--max-pairs", "2"))
    assert "2 existing connections adopted, 3 left on TCP (map_full 3)" in done.stdout, done.stdout
    assert lab.totals()["halves"] == 4 and lab.totals()["left"] == 0
    time.sleep(GRACE)
    for c, s in ends:
        warm(c, s)
    with lab.expect_fast(2 * 8 - 2):
        for c, s in ends:
            warm(c, s)
    for c, s in ends:
        c.close()
        s.close()
    lab.wait_empty()


def test_json_row(lab, pods):
    """What scripts read: numbers by workload; a connection to elsewhere is counted as that."""
    a, b = pods
    outside = lab.pod("p3")
    _, _, _, c, s = pair(lab, a, b)
    _, _, _, c2, s2 = pair(lab, a, outside)
    lab.attached = True
    done = lab.cli(*lab.attach_args(pods), "-o", "json")
    rows = {row["cgroup_id"]: row for row in json.loads(done.stdout)}
    mine, other = rows[a.cgroup.stat().st_ino], rows[b.cgroup.stat().st_ino]
    assert (mine["adopted"], mine["on_tcp"], mine["elsewhere"]) == (1, {}, 1)
    assert (other["adopted"], other["on_tcp"], other["elsewhere"]) == (1, {}, 0)
    with lab.expect_tcp():
        warm(c2, s2)


def test_reconnected_between_the_passes(lab, pods):
    """The socket is another connection by the time its pair would be tied: never tied to the old peer, which is let go."""
    a, b = pods
    _, client, ear, c, s = pair(lab, a, b)
    lab.attached = True
    process = subprocess.Popen(lab.argv(*lab.attach_args((a, b), "all", "--debug-adopt-delay", "3000")),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lab.extra.append(process)
    wait_until("the halves have entered", lambda: lab.totals()["halves"] == 2)
    c.disconnect()
    c.reconnect(b.ip, ear.port)
    new = ear.accept()
    with lab.expect_fast(7):
        warm(c, new)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 0, said
    assert adopted(lab) == 0 and lab.totals()["pairs_total"] == 1
    with pytest.raises(RemoteError) as err:
        s.read(1)
    assert err.value.kind == "ConnectionResetError"
    with lab.expect_fast(7):
        warm(c, new)
    for x in (c, new, s):
        x.close()
    lab.wait_empty()


def test_where_it_is_not_possible(lab, pods):
    """Without the receive tracepoint (and on kernels before 6.12): said, not an error; what is new is fast."""
    a, b = pods
    server, client, ear, c, s = pair(lab, a, b)
    with lab.expect_tcp(no_halves=True):
        done = lab.attach(a, b, options=("--debug-no-receive-trace",))
        assert "cannot be adopted" in done.stderr and "existing" not in done.stdout
        warm(c, s)
    c = client.connect(b.ip, ear.port)
    s = ear.accept()
    with lab.expect_fast(7):
        warm(c, s)
    c.close()
    s.close()


def proven(lab, a, b, ear, client):
    """The kinds of both ends have been learned; the client's cgroup is not attached any more."""
    lab.attach(a, b, eligibility="safe")
    for number in range(4):
        assert client.call("upload", b.ip, ear.port, 6000, 700, number)
    lab.detach("--cgroup", str(a.cgroup), "--timeout", "10")


@pytest.mark.parametrize("first", ["reader", "writer"])
@pytest.mark.parametrize("size", [700, 5000])
def test_message_between_the_two_halves_of_a_strict_pair(lab, first, size):
    """`safe`, FIONREAD misses what came by TCP: the window between the two halves is held open, bytes come by TCP, and the
    reader goes by FIONREAD. It is roused: nothing waits, whichever half enters first, and the pair is adopted later."""
    names = ("p1", "p2")
    one, other = lab.pod(names[0]), lab.pod(names[1])
    a, b = (other, one) if first == "reader" else (one, other)  # namespaces are visited in the order of their cgroups
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("inquiring_server", ear.name, 1024)
    proven(lab, a, b, ear, client)
    c = client.connect(b.ip, ear.port)
    c.nonblocking()
    time.sleep(0.2)
    process = subprocess.Popen(lab.argv(*lab.attach_args((a,), "safe", "--debug-fionread", "1", "--adopt-wait", "0",
                                                         "--debug-adopt-delay", "1500")),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lab.extra.append(process)
    wait_until("the first half has entered", lambda: lab.totals()["halves"] or process.poll() is not None)
    assert lab.totals()["halves"] == 1, process.communicate()[0] + str(lab.kinds())
    began = time.monotonic()
    c.send(size.to_bytes(8, "big") + bytes(size))
    answer = c.gather(32)
    took = time.monotonic() - began
    assert process.wait(20) == 0
    assert answer == hashlib.sha256(bytes(size)).digest() and took < 6, took
    assert server.call("echo_errors") == []
    c.close()
    lab.wait_empty()


def test_strict_pair_is_fast_at_once(lab, pods):
    """Idle and proven: from the first message on, both ways, nothing by TCP in between."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    lab.attach(a, b, eligibility="safe")
    for _ in range(4):
        c = client.connect(b.ip, ear.port)
        s = ear.accept()
        c.nonblocking()
        s.nonblocking()
        for _ in range(3):
            c.send(b"question")
            assert s.gather(8) == b"question"
            s.send(b"answer")
            assert c.gather(6) == b"answer"
        c.close()
        assert s.gather(1) == b""
        s.close()
    lab.detach("--cgroup", str(a.cgroup), "--timeout", "10")
    c = client.connect(b.ip, ear.port)
    s = ear.accept()
    c.nonblocking()
    s.nonblocking()
    done = lab.attach(a, eligibility="safe", options=("--debug-fionread", "1"))
    assert "1 existing connections adopted" in done.stdout, done.stdout
    before = lab.totals()["tcp_messages"]
    with lab.expect_fast(4):
        for _ in range(2):
            c.send(b"question")
            assert s.gather(8) == b"question"
            s.send(b"answer")
            assert c.gather(6) == b"answer"
    assert lab.totals()["tcp_messages"] == before
    c.close()
    s.close()
    lab.wait_empty()
