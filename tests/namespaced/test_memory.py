"""A reader that does not read costs what it costs on TCP: a bounded queue, EAGAIN, and later every byte."""
from pathlib import Path

import pytest
from lab import warm

MIB = 1 << 20


def slab():
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["Slab"].split()[0]) * 1024


def flood(ear, client, host, stream, size):
    """A warm pair, then 3 s of non-blocking writes while nobody reads."""
    c = client.connect(host, ear.port)
    s = ear.accept()
    warm(c, s, 5)
    before = slab()
    wrote = c.flood(stream, size, 3.0)
    return c, s, wrote, slab() - before


@pytest.mark.parametrize("size", [65536, 1], ids=["64KiB", "1B"])
def test_slow_reader(lab, pods, size):
    """3 s of writes with nobody reading: accepted bytes <= 3 x plain TCP in the same run + 16 MiB, slab < 64 MiB,
    nothing but EAGAIN, and all of it byte-exact when it is read at last."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    c, s, plain, _ = flood(ear, client, b.ip, 7, size)
    s.verify(7, plain["bytes"], timeout_=60)
    c.close()
    s.close()
    lab.attach(a, b)
    with lab.expect_fast(1):
        c, s, wrote, grew = flood(ear, client, b.ip, 8, size)
    assert wrote["bytes"] <= 3 * plain["bytes"] + 16 * MIB, (wrote, plain)
    assert grew < 64 * MIB, f"slab grew by {grew / MIB:.0f} MiB for {wrote}"
    assert s.verify(8, wrote["bytes"], timeout_=60) == wrote["bytes"]
    for _ in range(20):
        c.send(b"after")
        assert s.read(5) == b"after"
    c.shutdown()
    assert s.read_all() == b""
    c.close()
    s.close()
    lab.wait_empty()


@pytest.mark.parametrize("size", [65536, 200], ids=["64KiB", "200B"])
def test_slow_reader_in_a_memory_cgroup(lab, pods, size):
    """The same with both ends in a memory cgroup whose limits are close (v1: TCP memory 4 MiB; v2: 64 MiB in all): the application sees
    EAGAIN, never ENOMEM, and every byte arrives."""
    memcg = lab.new_memcg(256 * MIB, 4 * MIB)
    if memcg is None:
        pytest.skip("no memory controller")
    a, b = pods
    lab.attach(a, b, *([memcg] if (memcg / "memory.max").exists() else []))
    server, client = b.peer(memcg=memcg), a.peer(memcg=memcg)
    ear = server.listen(b.ip)
    with lab.expect_fast(1):
        c, s, wrote, grew = flood(ear, client, b.ip, 9, size)
    assert wrote["bytes"] > 0 and grew < 64 * MIB
    assert s.verify(9, wrote["bytes"], timeout_=60) == wrote["bytes"]
    c.close()
    s.close()
    lab.wait_empty()


def charged(memcg):
    """Bytes on the account of a memory cgroup (v1: of its TCP)."""
    v2 = memcg / "memory.current"
    value = int((v2 if v2.exists() else memcg / "memory.kmem.tcp.usage_in_bytes").read_text())
    return value - (1 << 64 if value >> 63 else 0)  # Linux 5.10 shows what has fallen below zero like this


def test_bytes_sent_before_accept_and_the_memory_cgroup(lab, pods):
    """A child is charged to its memory cgroup when it is accepted: for what it holds then. What it gives back later is no more."""
    memcg = lab.new_memcg(256 * MIB, 64 * MIB)
    if memcg is None:
        pytest.skip("no memory controller")
    a, b = pods
    server, client = b.peer(memcg=memcg), a.peer()
    ear = server.listen(b.ip)

    def run():
        before = charged(memcg)
        clients = [client.connect(b.ip, ear.port) for _ in range(30)]
        wrote = [c.flood(i, 4096, 0.03)["bytes"] for i, c in enumerate(clients)]
        for i, c in enumerate(clients):
            s = ear.accept()
            assert s.verify(i, wrote[i]) == wrote[i]
            s.send(b"so much")
            assert c.read(7) == b"so much"
            c.close()
            s.close()
        return charged(memcg) - before
    run()
    plain = run()
    lab.attach(a, b, *([memcg] if (memcg / "memory.max").exists() else []))
    with lab.expect_fast(30):
        fast = [run() for _ in range(3)]
    assert sum(fast) > 3 * min(plain, 0) - MIB, f"{fast} bytes stay charged; on TCP {plain}"
    lab.wait_empty()


def test_many_slow_readers(lab, pods):
    """40 pairs at once, each flooded with 1-byte writes: the bound is per peer, so the sum stays bounded too, and each
    stream is exact."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    pairs = [(client.connect(b.ip, ear.port), ear.accept()) for _ in range(40)]
    before = slab()
    with lab.expect_fast(40):
        wrote = [c.flood(i, 1, 0.1)["bytes"] for i, (c, _) in enumerate(pairs)]
    grew = slab() - before
    assert grew < 40 * 16 * MIB, f"{grew / MIB:.0f} MiB"
    for i, (c, s) in enumerate(pairs):
        assert s.verify(i, wrote[i]) == wrote[i]
        c.close()
        s.close()
    lab.wait_empty()
