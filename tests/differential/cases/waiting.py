"""Waiting: epoll's edges, level triggers, signals, several threads on one socket."""
from socket import SHUT_WR

from arena import STYLES, case

IN, OUT, RDHUP = 1, 4, 0x2000
SIGUSR1, SIGRT = 10, 40


@case(core=True, styles=("edge",))
def edges(t, c, s):
    """One event for each arrival, none for what was there before; and the ends."""
    c.quiet.edges()
    for part in (b"one", b"two", b"three"):
        s.send(part)
        s.quiet.settle()
        c.edges()
        c.edges(0)
    c.recv_now(4)
    c.edges()
    c.recv_now(100)
    c.edges()
    s.send(b"four")
    c.edges()
    c.recv_now(100)
    s.shutdown(SHUT_WR)
    c.edges()
    c.recv_now()
    c.edges()
    c.shutdown(SHUT_WR)
    t.pause(0.06)
    t.note("edges after both FINs", sorted(set("|".join(c.quiet.edges()).split("|")) - {""}))


@case(styles=("edge",))
def edges_of_a_reset(t, c, s):
    c.quiet.edges()
    s.reset_close()
    c.edges()
    c.recv_now()
    c.edges()


@case(styles=("edge",), connections=6)
def edge_of_room(t, c, s):
    """A writer that was told EAGAIN gets an event when there is room."""
    c.quiet.edges()
    sent = c.quiet.flood()
    c.quiet.edges(0)
    s.start("r", "drain_flood", sent)
    s.finish("r", 15)
    t.note("room", "OUT" in "|".join(c.quiet.edges(1.0)))


@case(styles=("nonblocking",))
def level(t, c, s):
    """Level-triggered: readable for as long as anything is left."""
    s.send(b"0123456789")
    c.await_mask(IN)
    for _ in range(5):
        c.recv_now(2)
        c.masks()


@case(styles=("blocking", "nonblocking"))
def poll_wakes(t, c, s):
    """A poll that sleeps is woken by data, by the end, and by nothing else."""
    c.start("p", "await_mask", IN | RDHUP)
    c.still("p", 0.03)
    c.send(b"our own traffic")
    s.read(15)
    c.still("p", 0.03)
    s.send(b"data")
    c.finish("p")
    c.recv_now()
    c.start("p", "await_mask", IN | RDHUP)
    s.close()
    c.finish("p")


@case(core=True, styles=("blocking", "uring"))
def two_threads(t, c, s):
    """One sleeps in recv while the other sends (H4)."""
    c.start("r", "recv")
    for _ in range(20):
        c.send(b"from another thread")
        s.read(19)
    c.still("r")
    s.send(b"for the reader")
    c.finish("r")


@case(core=True, styles=("blocking", "uring"), connections=6)
def two_threads_bulk(t, c, s):
    """The same with so much that the sender sleeps and is woken by write space."""
    c.start("r", "recv")
    c.start("w", "send_stream", 8 << 20, 200_000)
    s.start("r", "recv_stream", 8 << 20, 300_000)
    c.finish("w", 15)
    s.finish("r", 15)
    c.still("r")
    s.send(b"for the reader")
    c.finish("r")


@case(styles=STYLES)
def two_threads_each_way(t, c, s):
    """Full duplex, a thread for each direction at each end."""
    for side in (c, s):
        side.start("r", "recv_stream", 300_000, 10_000)
        side.start("w", "send_stream", 300_000, 7_000)
    for side in (c, s):
        side.finish("w")
        side.finish("r")


@case(styles=("blocking",))
def many_readers(t, c, s):
    """Three threads asleep in recv on one socket: each message wakes one; the end wakes all. Which thread gets which
    message is the scheduler's business."""
    for n in range(3):
        c.start(f"r{n}", "recv", 10)
    s.send(b"0123456789")
    t.pause(0.03)
    waiting = [t.call(c.peer, "waiting", f"r{n}") for n in range(3)]
    t.note("after one message", sorted(map(str, waiting)))
    s.close()
    t.note("after the end", sorted(str(t.call(c.peer, "finish", f"r{n}")) for n in range(3)))


@case(styles=("nonblocking",))
def many_readers_of_a_stream(t, c, s):
    """Three threads drain one socket: every byte once."""
    total = 60_000
    for n in range(3):
        c.start(f"r{n}", "count_stream")
    s.send_stream(total, 1000)
    s.close()
    counts = [t.call(c.peer, "finish", f"r{n}") for n in range(3)]
    t.note("bytes", sum(counts) if all(isinstance(n, int) for n in counts) else counts)


@case(styles=("blocking",))
def signal_without_restart(t, c, s):
    t.call(c.peer, "on_signal", SIGUSR1, False)
    c.start("r", "recv")
    t.call(c.peer, "poke", "r", SIGUSR1)
    c.finish("r")
    t.note("signals", t.call(c.peer, "signals", SIGUSR1) > 0)
    s.send(b"data")
    c.recv()


@case(core=True, styles=("blocking", "uring"))
def signal_with_restart(t, c, s):
    """H4: SA_RESTART."""
    t.call(c.peer, "on_signal", SIGUSR1, True)
    c.start("r", "recv")
    t.call(c.peer, "poke", "r", SIGUSR1, 3)
    c.still("r")
    t.note("signals", t.call(c.peer, "signals", SIGUSR1) > 0)
    s.send(b"data")
    c.finish("r")


@case(styles=("blocking",), connections=4)
def signal_while_sending(t, c, s):
    """A send that sleeps for room: a part went out, which is the answer."""
    t.call(c.peer, "on_signal", SIGUSR1, False)
    c.start("w", "send_zeros", 32 << 20)
    t.pause(0.3)
    t.call(c.peer, "poke", "w", SIGUSR1)
    sent = t.call(c.peer, "finish", "w")
    t.note("a part", isinstance(sent, int) and 0 < sent < 32 << 20)
    s.quiet.read(sent)
    c.send(b"on")
    s.read(2)


@case(styles=("nonblocking",))
def signal_driven(t, c, s):
    """O_ASYNC: a signal when data comes and when the end comes."""
    c.quiet.async_signals(SIGRT)
    s.send(b"data")
    c.await_mask(IN)
    t.pause(0.02)
    t.note("a signal", t.call(c.peer, "signals", SIGRT) > 0)
    c.recv_now()
    before = t.call(c.peer, "signals", SIGRT)
    s.close()
    c.await_mask(RDHUP)
    t.pause(0.02)
    t.note("another", t.call(c.peer, "signals", SIGRT) > before)
