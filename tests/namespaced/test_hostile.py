"""A hostile container: it can take the budget, never more; it can spoil its own connections, never another's; it gets
nobody's bytes. docs/security.md has the reasoning."""
import ctypes
import errno
import os
import struct
import threading
import time
from pathlib import Path

import pytest
from lab import PLAIN, RemoteError, sh, wait_until

MIB = 1 << 20
SYN, RST, PSH, ACK = 2, 4, 8, 16
product = pytest.mark.product


def kernel_memory():
    """Slab, and what TCP holds in pages."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    sockstat = Path("/proc/net/sockstat").read_text().split("TCP: ")[1].split("\n")[0].split()
    pages = int(dict(zip(sockstat[::2], sockstat[1::2]))["mem"])
    return int(meminfo["Slab"].split()[0]) * 1024 + pages * os.sysconf("SC_PAGE_SIZE")


def reserved(lab):
    return lab.status()["budget"]["total_reserved_bytes"]


def wait_returned(lab):
    """Every map empty and nothing reserved."""
    lab.wait_empty()
    if not PLAIN:
        wait_until("the budget returned", lambda: reserved(lab) == 0, 10)


class Watch:
    """The highest reservation that was seen meanwhile."""

    def __init__(self, lab):
        self.lab, self.most, self.done = lab, 0, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        if not PLAIN:
            self.thread.start()
        return self

    def run(self):
        while not self.done.wait(0.02):
            self.most = max(self.most, reserved(self.lab))

    def __exit__(self, *_):
        self.done.set()
        if not PLAIN:
            self.thread.join()


def crowd(server, client, host, count):
    """Connections with nobody reading; for each server socket the number of its client."""
    ear = server.listen(host, backlog=4096)
    accepted = server.post("crowd_accept", ear.name, count)
    client.call("crowd_connect", host, ear.port, count, timeout_=120)
    accepted.result(120)
    numbers = {port: n for n, port in enumerate(client.call("crowd_ports", "local"))}
    return [numbers[port] for port in server.call("crowd_ports", "remote")]


def fill(server, client, total, size):
    """Both ends write until refused; what was taken, and what it cost the kernel."""
    before = kernel_memory()
    ways = client.post("crowd_write", total, size), server.post("crowd_write", total, size)
    taken = [w.result(120) for w in ways]
    return taken, kernel_memory() - before


@product
@pytest.mark.parametrize("count,total,size,budget", [(2000, 65536, 16384, 32), (150, 4096, 1, 16)],
                         ids=["2000-pairs", "1-byte-writes"])
def test_nobody_reads(lab, pods, count, total, size, budget):
    """Thousands of connections, both ends write and none reads: what is queued stays inside the global budget at every
    moment, the rest goes by TCP (global_budget), the kernel's memory is plain TCP's and the budget at most, and every
    byte arrives. When they are gone, nothing is reserved."""
    a, b = pods
    server, client = b.peer(), a.peer()
    crowd(server, client, b.ip, count)
    _, plain = fill(server, client, total, size)
    for peer in (client, server):
        peer.call("crowd_end", timeout_=60)
    time.sleep(1)  # RCU
    lab.attach(a, b, options=("--total-budget-bytes", str(budget * MIB)))
    order = crowd(server, client, b.ip, count)
    with lab.expect_fast(100), Watch(lab) as watch:
        (from_client, from_server), ours = fill(server, client, total, size)
    status = lab.status()
    assert status["budget"]["total_bytes"] == budget * MIB
    assert 0 < watch.most <= budget * MIB, watch.most / MIB
    assert status["reasons"].get("global_budget", 0) > 0, status["reasons"]
    # 64 MiB for what the rest of the machine does meanwhile; without the budget it would be 256 and 1,200 MiB more
    assert ours <= max(plain, 0) * 1.25 + (budget + 64) * MIB, f"{ours / MIB:.0f} MiB, plain {plain / MIB:.0f} MiB"
    print(f"plain {plain / MIB:.0f} MiB, attached {ours / MIB:.0f} MiB, most reserved {watch.most / MIB:.1f} of {budget}")
    server.call("crowd_verify", order, from_client, timeout_=120)
    back = {n: i for i, n in enumerate(order)}
    client.call("crowd_verify", [back[n] for n in range(count)], from_server, timeout_=120)
    for peer in (client, server):
        peer.call("crowd_end", timeout_=60)
    wait_returned(lab)


@product
def test_idle_pairs_do_not_hog(lab, pods):
    """Pairs that were busy and fell silent give up what they hold: a later one gets its share."""
    a, b = pods
    lab.attach(a, b, options=("--total-budget-bytes", str(4 * MIB), "--max-pairs", "512"))
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip, backlog=1024)
    server.call("echo_start", ear.name)
    held = [client.connect(b.ip, ear.port) for _ in range(150)]
    for n, c in enumerate(held):
        c.exchange(rounds=40, stream=n, low=1, high=2000)
    before = reserved(lab)
    assert 0 < before <= 4 * MIB
    time.sleep(0.5)
    late = client.connect(b.ip, ear.port)
    with lab.expect_fast(1500):
        late.exchange(rounds=1000, stream=900, low=100, high=3000)
    for n, c in enumerate(held):
        c.exchange(rounds=5, stream=n + 1000, low=1, high=2000)
        c.close()
    late.close()
    assert server.call("echo_errors") == []
    wait_returned(lab)


@product
@pytest.mark.parametrize("how", ["close", "reset", "mixed"])
def test_nothing_stays_reserved(lab, pods, how):
    """Full queues and then every way to end: close, RST, shutdown, AF_UNSPEC, more pairs than the map holds."""
    a, b = pods
    lab.attach(a, b, options=("--max-pairs", "100", "--total-budget-bytes", str(8 * MIB)))
    for first in ("client", "server", "both"):
        server, client = b.peer(), a.peer()
        crowd(server, client, b.ip, 150)
        with lab.expect_fast(50):
            fill(server, client, 20000, 2000)
        assert reserved(lab) > 0
        for peer in {"client": (client, server), "server": (server, client)}.get(first, ()):
            peer.call("crowd_end", how, timeout_=60)
        for peer in (client, server):
            peer.close()  # both: killed with all of it unread
        wait_returned(lab)


@product
def test_detach_with_full_queues(lab, pods):
    """Detach while queues are full, then read, then detach again: what left holds nothing."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    order = crowd(server, client, b.ip, 20)
    (taken, back), _ = fill(server, client, 20000, 2000)
    lab.detach("--cgroup", str(a.cgroup), "--timeout", "0.5", ok=(4,))
    server.call("crowd_verify", order, taken)
    places = {n: i for i, n in enumerate(order)}
    client.call("crowd_verify", [places[n] for n in range(20)], back)
    lab.detach("--cgroup", str(a.cgroup), "--timeout", "5")
    assert reserved(lab) == 0
    for peer in (client, server):
        peer.call("crowd_end")


@product
def test_unaccepted_children(lab, pods):
    """Connections that are never accepted, full of data, and then their listener goes."""
    a, b = pods
    lab.attach(a, b)
    for _ in range(3):
        server, client = b.peer(), a.peer()
        ear = server.listen(b.ip, backlog=256)
        client.call("crowd_connect", b.ip, ear.port, 200)
        with lab.expect_fast(100):
            client.call("crowd_write", 30000, 3000)
        ear.close()
        time.sleep(0.1)
        client.call("crowd_end")
        wait_returned(lab)


@product
def test_connects_to_nowhere(lab, pods):
    """More half-open connects than the handshake map has room for: others are accelerated as before, and when they are
    given up nothing is left."""
    a, b = pods
    nowhere = lab.pod("nowhere")
    nowhere.iptables("-A", "INPUT", "-p", "tcp", "-j", "DROP")
    lab.attach(a, b, options=("--max-pairs", "100"))
    bad, server, client = a.peer(), b.peer(), b.peer()
    for base in (2000, 2004, 2008):
        bad.call("crowd_nowhere", nowhere.ip, [base, base + 4], 1500, timeout_=120)
    assert lab.totals()["published"] > 10_000
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    with lab.expect_fast(200):
        for stream in range(20):
            client.call("echo_client", b.ip, ear.port, rounds=10, stream=stream)
    assert server.call("echo_errors") == []
    bad.close()
    wait_returned(lab)


@product
def test_storm_of_shutdowns(lab, pods):
    """Several threads send, shut down and close on one socket at random: no leak, and others are not touched."""
    a, b = pods
    lab.attach(a, b)
    server, client, good = b.peer(), a.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    other = good.connect(b.ip, ear.port)
    storm = client.post("shutdown_storm", b.ip, ear.port, 600, 6, 1)
    for n in range(20):
        other.exchange(rounds=20, stream=n)
    done = storm.result(120)
    assert done["done"] == 600, done
    other.close()
    wait_returned(lab)


@product
def test_no_descriptors_left(lab, pods):
    """A client without descriptors, and a server that cannot accept for want of one."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip, backlog=64)
    opened, number = client.call("exhaust_files", b.ip, ear.port, 40)
    assert number == errno.EMFILE and opened > 10
    ear.close()
    wait_returned(lab)


@product
def test_a_process_that_moves(lab, pods):
    """A socket belongs to the cgroup it was made in, wherever its process goes."""
    a, b = pods
    lab.attach(a, b)
    outside = lab.new_cgroup("elsewhere")
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    c = client.connect(b.ip, ear.port)
    with lab.expect_fast(20):
        c.exchange(rounds=20)
    client.call("move_to", str(outside))
    with lab.expect_fast(20):
        c.exchange(rounds=20, stream=2)
    d = client.connect(b.ip, ear.port)
    with lab.expect_tcp():
        d.exchange(rounds=20, stream=3)
    c.close()
    d.close()
    wait_returned(lab)


def test_one_tuple_at_one_instant(lab, pods):
    """The same 4-tuple in two namespaces, connected in the same microsecond, over and over: initial sequence numbers are
    made of a key that both share, the tuple, and a clock of 64 ns, so they are equal or close. Never another's byte."""
    lab.attach(*pods)
    count, every = 1500, 0.002
    peers = [(pod.peer(), pod.peer(), pod.name.encode()) for pod in pods]
    for server, _, mark in peers:
        server.call("twin_serve", "127.0.0.1", 9100, count, mark)
    begin = time.time() + 0.5
    with lab.expect_fast(count):
        runs = [client.post("twin_connect", "127.0.0.1", 9100, 30000, count, mark, begin, every)
                for _, client, mark in peers]
        assert [run.result(60) for run in runs] == [[], []]
    if not PLAIN:
        print(lab.status()["reasons"])
    wait_returned(lab)


# ---- forging

class Pinned:
    """Keys of a pinned map, by bpf(2): the test knows more than any attacker could."""

    def __init__(self, path, key_size):
        self.libc, self.size = ctypes.CDLL(None, use_errno=True), key_size
        name = ctypes.create_string_buffer(str(path).encode())
        self.fd = self.bpf(7, struct.pack("QII", ctypes.addressof(name), 0, 0))

    def bpf(self, command, attr):
        buffer = ctypes.create_string_buffer(attr, 128)
        done = self.libc.syscall(321 if os.uname().machine == "x86_64" else 280, command, buffer, 128)
        if done < 0:
            raise OSError(ctypes.get_errno(), f"bpf({command})")
        return done

    def keys(self):
        found, key, following = [], None, ctypes.create_string_buffer(self.size)
        while True:
            at = ctypes.addressof(key) if key else 0
            try:
                self.bpf(4, struct.pack("IIQQ", self.fd, 0, at, ctypes.addressof(following)))
            except OSError as err:
                if err.errno == errno.ENOENT:
                    os.close(self.fd)
                    return found
                raise
            found.append(following.raw)
            key = ctypes.create_string_buffer(following.raw, self.size)


def published(lab):
    """Initial sequence numbers of connects that are on their way."""
    [pin] = Path(lab.pin_dir).rglob("map_handshakes")
    return [struct.unpack("=I", k)[0] for k in Pinned(pin, 4).keys()]


def no_resets(pod):
    """The pod's kernel does not answer for ports that only a forger uses."""
    pod.iptables("-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")


@product
def test_forged_server(lab, pods):
    """The strongest forger: it knows the victim's number, has a listener of its own in an attached workload, and a remote
    accomplice that answers the victim with the number that this listener chose. Both numbers agree at both ends; but the
    victim's packets never were at that listener, so nothing is tied: what the victim says goes where it was sent."""
    a, b = pods
    remote = lab.pod("remote")
    no_resets(b)
    no_resets(remote)
    lab.attach(a, b)
    victim, forger, accomplice = a.peer(), b.peer(), remote.peer()
    ear = forger.listen("127.0.0.1")
    accomplice.call("sniff_start", "r")
    forger.call("sniff_start", "f")
    # the accomplice's kernel has no listener and may not send RST: the SYN stays unanswered until we answer it
    connecting = victim.post("connect", "v", remote.ip, 7000)
    syn = accomplice.call("sniff", "r", dport=7000)
    assert syn["seq"] in published(lab)
    forger.call("forge", "127.0.0.9", 5555, "127.0.0.1", ear.port, syn["seq"], 0, SYN)
    answer = forger.call("sniff", "f", sport=ear.port, dport=5555)
    assert answer["flags"] == SYN | ACK and lab.totals()["announced"] == 1
    accomplice.call("forge", remote.ip, 7000, a.ip, syn["sport"], answer["seq"], syn["seq"] + 1, SYN | ACK)
    connecting.result()
    assert lab.totals()["halves"] == 1, f"the test has not forged enough: {lab.status()}"
    forger.call("forge", "127.0.0.9", 5555, "127.0.0.1", ear.port, syn["seq"] + 1, answer["seq"] + 1, ACK)
    s = ear.accept()
    assert lab.status()["reasons"].get("unproven") == 1
    with lab.expect_tcp():
        victim.call("sock_send", "v", b"for the remote end")
        got = accomplice.call("sniff", "r", dport=7000, flags=PSH | ACK)
        assert got["data"] == b"for the remote end"
        assert s.pending(0.1) == b""
        s.send(b"from the forger")
        assert victim.call("sock_pending", "v", 0.1) == b""
    s.reset()
    victim.call("sock_reset", "v")
    wait_returned(lab)


@product
def test_forged_client(lab, pods):
    """The other way: a local forger connects to a remote accomplice, which opens a connection to the victim's listener with
    the forger's number, and answers the forger with the number that the victim chose. The victim's connection is the
    accomplice's and stays so."""
    a, b = pods
    remote = lab.pod("remote")
    no_resets(remote)
    lab.attach(a, b)
    forger, victim, accomplice = a.peer(), b.peer(), remote.peer()
    ear = victim.listen(b.ip)
    accomplice.call("sniff_start", "r")
    connecting = forger.post("connect", "f", remote.ip, 7100)
    syn = accomplice.call("sniff", "r", dport=7100)
    isn = syn["seq"]
    assert isn in published(lab)
    accomplice.call("forge", remote.ip, 5556, b.ip, ear.port, isn, 0, SYN)
    answer = accomplice.call("sniff", "r", sport=ear.port, dport=5556)
    assert lab.totals()["announced"] == 1
    accomplice.call("forge", remote.ip, 7100, a.ip, syn["sport"], answer["seq"], isn + 1, SYN | ACK)
    connecting.result()
    assert lab.totals()["halves"] == 1, f"the test has not forged enough: {lab.status()}"
    accomplice.call("forge", remote.ip, 5556, b.ip, ear.port, isn + 1, answer["seq"] + 1, ACK)
    s = ear.accept()
    assert lab.status()["reasons"].get("unproven") == 1
    with lab.expect_tcp():
        forger.call("sock_send", "f", b"from the forger")
        assert s.pending(0.1) == b""
        s.send(b"for the remote end")
        assert accomplice.call("sniff", "r", sport=ear.port, flags=PSH | ACK)["data"] == b"for the remote end"
        assert forger.call("sock_pending", "f", 0.1) == b""
    s.reset()
    forger.call("sock_reset", "f")
    wait_returned(lab)


@product
def test_spoiled_handshake(lab, pods):
    """A third pod that knows the victim's number can keep the connection on TCP, and that is all."""
    a, b = pods
    third = lab.pod("third")
    lab.attach(a, b, third)
    victim, server, forger = a.peer(), b.peer(), third.peer()
    no_resets(third)
    ear, own = server.listen(b.ip), forger.listen("127.0.0.1")
    b.iptables("-A", "INPUT", "-p", "tcp", "--dport", str(ear.port), "-j", "DROP")  # the SYN is lost once
    connecting = victim.post("connect", "v", b.ip, ear.port)
    isn = wait_until("a number published", lambda: published(lab))[0]
    forger.call("forge", "127.0.0.9", 5557, "127.0.0.1", own.port, isn, 0, SYN)
    b.iptables("-D", "INPUT", "-p", "tcp", "--dport", str(ear.port), "-j", "DROP")
    connecting.result()
    s = ear.accept()
    with lab.expect_tcp():
        for _ in range(5):
            victim.call("sock_send", "v", b"to the right one")
            assert s.read(16) == b"to the right one"
    with pytest.raises(RemoteError):  # the listener of the forger has nothing to accept
        forger.call("sock_recv", own.name)
    victim.call("sock_close", "v")
    s.close()
    own.close()
    wait_returned(lab)


def test_repair(lab, pods):
    """TCP_REPAIR: sockets made established out of nothing with chosen numbers talk to each other, by TCP; a fast pair
    that is put into repair and out of it goes on."""
    a, b = pods
    lab.attach(a, b)
    one, two = a.peer(), b.peer()
    with lab.expect_tcp(no_halves=True):
        one.call("repair_pair", "x", [a.ip, 6001], [b.ip, 6002], 1000, 2000)
        two.call("repair_pair", "y", [b.ip, 6002], [a.ip, 6001], 2000, 1000)
        for peer, name in ((one, "x"), (two, "y")):
            peer.call("repair_off", name)
        one.call("sock_send", "x", b"out of nothing")
        assert two.call("sock_read", "y", 14) == b"out of nothing"
        two.call("sock_send", "y", b"and back")
        assert one.call("sock_read", "x", 8) == b"and back"
    ear = two.listen(b.ip)
    with lab.expect_tcp(no_halves=True):  # a number of one's choice: in repair before the connect, and out of it again
        one.call("repair_connect", "z", b.ip, ear.port, 0x12345678)
        z = ear.accept()
        one.call("sock_send", "z", b"chosen")
        assert z.read(6) == b"chosen"
        one.call("sock_reset", "z")
        z.reset()
    assert PLAIN or lab.status()["reasons"]["repair"] == 1
    c = one.connect(b.ip, ear.port)
    s = ear.accept()
    with lab.expect_fast(5):
        for n in range(5):
            c.send(b"before")
            assert s.read(6) == b"before"
    one.call("repair_toggle", c.name)
    for n in range(5):
        c.send(b"after")
        assert s.read(5) == b"after"
        s.send(b"back")
        assert c.read(4) == b"back"
    for peer, name in ((one, "x"), (two, "y"), (one, c.name), (two, s.name)):
        peer.call("sock_reset", name)
    wait_returned(lab)


@product
def test_guessed_numbers(lab, pods):
    """20,000 SYNs with random numbers at a listener of one's own write nothing; connections made meanwhile are right."""
    a, b = pods
    lab.attach(a, b)
    no_resets(a)
    forger, server, client = a.peer(), b.peer(), a.peer()
    own, ear = forger.listen("127.0.0.1"), server.listen(b.ip)
    server.call("echo_start", ear.name)
    spray = forger.post("spray", "127.0.0.9", "127.0.0.1", own.port, 20_000)
    with lab.expect_fast(100):
        for n in range(10):
            client.call("echo_client", b.ip, ear.port, rounds=10, stream=n)
    assert spray.result(60) == 20_000
    assert lab.totals()["announced"] == 0 and server.call("echo_errors") == []
    own.close()
    wait_returned(lab)
