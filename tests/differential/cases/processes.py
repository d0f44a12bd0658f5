"""Several descriptors, several processes, one connection."""
from socket import SHUT_WR

from arena import case

IN, RDHUP = 1, 0x2000
TWO = ("blocking", "nonblocking")


@case(styles=TWO)
def duplicate(t, c, s):
    """A duplicate is the same socket; it lives until the last descriptor is closed."""
    d = c.dup()
    d.send(b"from the duplicate")
    s.read(18)
    s.send(b"to either")
    d.await_mask(IN)
    c.recv_now(2)
    d.recv_now(100)
    c.close()
    s.mask()
    d.send(b"the other one is closed")
    s.read(23)
    s.send(b"still here")
    d.read(10)
    d.shutdown(SHUT_WR)
    s.read_to_end()
    d.close()


@case(core=True, styles=TWO)
def fork_child_reads(t, c, s):
    s.send(b"for the child, ")
    s.quiet.settle()
    c.await_mask(IN)
    t.note("child", t.call(c.peer, "in_child", [["recv_now", c.name, 64]]))
    s.send(b"for the parent")
    c.read(14)
    c.close()
    s.read_to_end()


@case(styles=TWO, fast=None)
def fork_child_keeps_it_open(t, c, s):
    """The parent closes; the stream ends when the child does."""
    t.call(c.peer, "idle_child")
    c.close()
    t.pause(0.03)
    s.mask()
    s.send(b"nobody reads, but it is open")
    t.pause()
    s.mask()
    t.call(c.peer, "end_children")
    s.await_mask(RDHUP)
    s.read_to_end()


@case(styles=TWO)
def fork_child_shuts_down(t, c, s):
    t.note("child", t.call(c.peer, "in_child", [["shutdown", c.name, 1]]))
    s.read_to_end()
    c.send_call(b"x", 0x4000)
    s.send(b"to the parent")
    c.read(13)


@case(core=True, styles=TWO, raw=True)
def passed_to_another_cgroup(t):
    """SCM_RIGHTS: a process of another cgroup goes on with the connection, half of a message still unread."""
    other = t.other_process()
    c, s = t.connect()
    s.send(b"half of it, the other half")
    c.read(11)
    pass_on(t, c, other)
    c.read(15)
    c.send(b"hello from here")
    s.read(15)
    for _ in range(5):
        s.send(b"ping")
        c.read(4)
        c.send(b"pong")
        s.read(4)
    c.shutdown(SHUT_WR)
    s.read_to_end()
    s.send(b"bye")
    s.close()
    c.read_to_end()


@case(styles=TWO, raw=True)
def passed_and_killed(t):
    other = t.other_process()
    c, s = t.connect()
    pass_on(t, c, other)
    c.send(b"last words")
    other.process.kill()
    other.process.wait()
    s.read_to_end()


def pass_on(t, c, other):
    path = t.path()
    giving = c.peer.post("do", "give", c.name, path)
    t.write("c", "take", [], t.call(other, "take", c.name, path, t.style))
    t.write("c", "give", [], giving.result(9))
    c.peer = other
