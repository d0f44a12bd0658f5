"""How connections end: half-closes, closes, resets, in every order with data."""
from socket import SHUT_RD, SHUT_RDWR, SHUT_WR

from arena import STYLES, case

IN, OUT, RDHUP = 1, 4, 0x2000
POLLED = ("nonblocking", "edge", "uring")


@case(core=True)
def half_close(t, c, s):
    c.send(b"question")
    c.shutdown(SHUT_WR)
    s.read_to_end()
    t.pause()
    s.send(b"a late answer")
    s.send(b", in two parts")
    s.close()
    c.read_to_end()
    c.await_mask(RDHUP)
    c.send_call(b"x", 0x4000)


@case(styles=("blocking", "uring"))
def half_close_while_reading(t, c, s):
    """The reader is asleep when its own FIN is acknowledged (H4)."""
    c.start("r", "read_to_end")
    c.shutdown(SHUT_WR)
    s.read_to_end()
    t.pause(0.06)  # the ACK of our FIN may be a delayed one, 40 ms
    s.send(b"late")
    s.close()
    c.finish("r")


@case()
def half_close_then_recv_at_once(t, c, s):
    s.start("r", "read_to_end")
    c.send(b"question")
    c.shutdown(SHUT_WR)
    c.start("r", "read", 6)
    s.finish("r")
    s.send(b"answer")
    c.finish("r")


@case()
def half_close_with_unread(t, c, s):
    """Our FIN goes out while something is waiting to be read here."""
    s.send(b"one")
    s.send(b"two")
    s.quiet.settle()
    c.await_mask(IN)
    c.shutdown(SHUT_WR)
    s.read_to_end()
    t.pause(0.05)
    c.read(6)
    s.send(b"three")
    c.read(5)
    s.close()
    c.read_to_end()


@case(core=True)
def close_after_write(t, c, s):
    for n in range(5):
        c.send(b"last words %d;" % n)
    c.close()
    s.await_mask(RDHUP)
    s.read_to_end()
    s.so_error()


@case()
def close_after_big_write(t, c, s):
    s.start("r", "recv_stream", 0)
    c.send_stream(300_000, 10_000)
    c.close()
    s.finish("r")


@case(core=True, fast=None)
def close_unread(t, c, s):
    """H9: whoever closes with unread bytes sends RST."""
    s.send(b"never read")
    s.quiet.settle()
    c.await_mask(IN)
    c.close()
    s.await_mask(RDHUP)
    s.so_error()
    s.read_to_end()
    s.send_call(b"x", 0x4000)
    s.masks()


@case(fast=None)
def close_unread_with_last_words(t, c, s):
    c.send(b"last words")
    s.send(b"never read")
    s.quiet.settle()
    c.quiet.settle()
    c.await_mask(IN)
    c.close()
    s.await_mask(RDHUP)
    s.read_to_end()
    s.read_to_end()


@case(fast=None)
def close_partly_read(t, c, s):
    s.send(b"read this, not that")
    c.read(9)
    c.close()
    s.await_mask(RDHUP)
    s.read_to_end()


@case(fast=None)
def close_read_by_peek_only(t, c, s):
    s.send(b"peeked")
    c.await_mask(IN)
    c.recv_now(6, 2)
    c.close()
    s.await_mask(RDHUP)
    s.read_to_end()


@case(core=True)
def write_after_peer_close(t, c, s):
    s.close()
    c.read_to_end()
    c.mask()
    c.send_call(b"answered by RST", 0x4000)
    c.await_mask(0)  # ERR or HUP
    c.masks()
    c.send_call(b"x", 0x4000)
    c.send_call(b"x", 0x4000)
    c.so_error()
    c.read_to_end()


@case()
def write_after_peer_close_not_noticed(t, c, s):
    """As a program that never looks: two writes, then a read."""
    s.close()
    t.pause(0.02)
    c.send_call(b"one", 0x4000)
    t.pause(0.02)
    c.send_call(b"two", 0x4000)
    c.read_to_end()
    c.so_error()


@case()
def data_and_write_after_peer_close(t, c, s):
    """What came before the end of the peer stays readable until the RST; after it, too."""
    s.send(b"before the end")
    s.close()
    c.await_mask(RDHUP)
    c.send_call(b"answered by RST", 0x4000)
    t.pause(0.1)
    c.masks()
    c.read_to_end()
    c.read_to_end()


@case(core=True)
def reset(t, c, s):
    c.reset_close()
    s.await_mask(0)
    s.masks()
    s.read_to_end()
    s.read_to_end()
    s.send_call(b"x", 0x4000)
    s.masks()


@case()
def reset_so_error_first(t, c, s):
    c.reset_close()
    s.await_mask(0)
    s.so_error()
    s.so_error()
    s.read_to_end()
    s.send_call(b"x", 0x4000)


@case()
def reset_send_first(t, c, s):
    c.reset_close()
    s.await_mask(0)
    s.send_call(b"x", 0x4000)
    s.send_call(b"x", 0x4000)
    s.read_to_end()


@case(core=True)
def reset_after_data(t, c, s):
    c.send(b"what came before the RST stays")
    c.quiet.settle()
    c.reset_close()
    s.await_mask(0)
    s.masks()
    s.recv(4)
    s.read_to_end()
    s.read_to_end()


@case(fast=None)
def reset_with_unread_both_ways(t, c, s):
    c.send(b"to the server")
    s.send(b"to the client")
    c.quiet.settle()
    s.quiet.settle()
    c.reset_close()
    s.await_mask(0)
    s.read_to_end()


@case(styles=("blocking", "uring"))
def reset_wakes_reader(t, c, s):
    s.start("r", "recv")
    c.reset_close()
    s.finish("r")
    s.so_error()


@case(styles=("blocking", "uring"))
def end_wakes_reader(t, c, s):
    s.start("r", "recv")
    c.close()
    s.finish("r")


@case(styles=("blocking", "uring"))
def own_shutdown_wakes_reader(t, c, s):
    """shutdown(SHUT_RD) in another thread ends a recv that is asleep."""
    s.start("r", "recv")
    s.shutdown(SHUT_RD)
    s.finish("r")


@case()
def shutdown_read(t, c, s):
    """SHUT_RD: what was there stays readable, what comes later too, then the end."""
    s.send(b"before")
    c.await_mask(IN)
    c.shutdown(SHUT_RD)
    c.masks()
    c.recv_now()
    c.recv_now()
    s.send(b"after")
    s.quiet.settle()
    t.pause()
    c.recv_now()
    c.recv_now()
    c.send(b"the other way")
    s.read(13)
    c.mask()


@case()
def shutdown_write(t, c, s):
    c.send(b"before")
    c.shutdown(SHUT_WR)
    c.send_call(b"after", 0x4000)
    c.masks()
    s.read_to_end()
    s.masks()
    s.send(b"the other way")
    c.read(13)
    s.shutdown(SHUT_WR)
    c.read_to_end()
    c.masks()
    s.masks()
    c.shutdown(SHUT_WR)
    c.shutdown(SHUT_RDWR)
    s.send_call(b"x", 0x4000)


@case()
def shutdown_both(t, c, s):
    s.send(b"unread when it is shut")
    c.send(b"before")
    c.await_mask(IN)
    c.shutdown(SHUT_RDWR)
    c.masks()
    c.recv_now()
    c.recv_now()
    c.send_call(b"after", 0x4000)
    s.read_to_end()
    s.masks()
    s.send_call(b"to one who does not read", 0x4000)
    t.pause(0.02)
    s.masks()
    s.send_call(b"and again", 0x4000)
    c.masks()
    c.recv_now()


@case()
def shutdown_both_then_close(t, c, s):
    c.send(b"the end")
    c.shutdown(SHUT_RDWR)
    c.close()
    s.read_to_end()
    s.close()


@case()
def shutdown_of_a_closed_connection(t, c, s):
    c.shutdown(SHUT_WR)
    s.read_to_end()
    s.shutdown(SHUT_WR)
    c.read_to_end()
    t.pause(0.02)
    s.info("state")
    s.shutdown(SHUT_RDWR)
    s.recv_now()
    s.send_call(b"x", 0x4000)
    s.masks()


@case()
def simultaneous_close(t, c, s):
    c.send(b"from c")
    s.send(b"from s")
    c.shutdown(SHUT_WR)
    s.shutdown(SHUT_WR)
    c.read_to_end()
    s.read_to_end()
    c.masks()
    s.masks()
    c.so_error()


@case()
def simultaneous_close_at_once(t, c, s):
    c.start("x", "shutdown", SHUT_WR)
    s.start("x", "shutdown", SHUT_WR)
    c.finish("x")
    s.finish("x")
    c.read_to_end()
    s.read_to_end()


@case(core=True)
def masks_of_a_life(t, c, s):
    """Readiness at every stage."""
    c.masks()
    s.send(b"data")
    c.await_mask(IN)
    c.masks()
    c.recv_now(2)
    c.masks()
    c.recv_now(2)
    c.masks()
    s.shutdown(SHUT_WR)
    c.await_mask(RDHUP)
    c.masks()
    c.recv_now()
    c.masks()
    c.send(b"back")
    s.await_mask(IN)
    s.masks()
    s.recv_now()
    s.masks()
    c.shutdown(SHUT_WR)
    s.await_mask(RDHUP)
    s.masks()
    s.recv_now()
    t.pause(0.02)
    s.masks()
    c.masks()
    s.so_error()
    c.so_error()


@case(styles=POLLED, fast=None)
def masks_with_unread_at_the_end(t, c, s):
    """The end of the stream is behind bytes that have not been read."""
    s.send(b"unread")
    s.shutdown(SHUT_WR)
    c.await_mask(RDHUP)
    c.masks()
    c.fionread()
    c.recv_now(3)
    c.masks()
    c.recv_now(3)
    c.masks()
    c.recv_now(3)


@case(styles=("blocking", "nonblocking"))
def linger_close(t, c, s):
    """SO_LINGER with a time: close waits until all is acknowledged."""
    c.linger(1, 2)
    c.send(b"before a lingering close")
    c.close()
    s.read_to_end()


@case(styles=("blocking", "edge"), raw=True)
def killed_client(t):
    """kill -9 of one end: FIN."""
    victim = t.victim()
    c, s = t.connect(peer=victim)
    c.send(b"before the kill")
    s.read(15)
    victim.process.kill()
    victim.process.wait()
    s.await_mask(RDHUP)
    s.read_to_end()
    s.send_call(b"x", 0x4000)
    s.await_mask(0)
    s.read_to_end()


@case(styles=("blocking", "edge"), raw=True, fast=None)
def killed_client_with_unread(t):
    """kill -9 of one end that had something to read: RST."""
    victim = t.victim()
    c, s = t.connect(peer=victim)
    s.send(b"never read")
    s.quiet.settle()
    c.await_mask(IN)
    victim.process.kill()
    victim.process.wait()
    s.await_mask(RDHUP)
    s.masks()
    s.read_to_end()


@case(styles=("blocking",), raw=True)
def killed_while_reading(t):
    victim = t.victim()
    c, s = t.connect(peer=victim)
    c.start("r", "recv")
    t.pause(0.02)
    victim.process.kill()
    victim.process.wait()
    s.await_mask(RDHUP)
    s.read_to_end()


@case(styles=("blocking", "nonblocking"))
def sigpipe(t, c, s):
    t.call(c.peer, "on_signal", 13, True)
    c.shutdown(SHUT_WR)
    c.send_call(b"x")
    t.note("SIGPIPE", t.call(c.peer, "signals", 13))
    c.send_call(b"x", 0x4000)
    t.note("SIGPIPE", t.call(c.peer, "signals", 13))
    t.call(c.peer, "signal_off", 13)


@case(core=True, styles=STYLES)
def disconnect_and_reconnect(t, c, s):
    """connect(AF_UNSPEC): nothing of the old connection comes out of the new one."""
    s.send(b"OLD")
    s.quiet.settle()
    c.await_mask(IN)
    c.disconnect()
    s.await_mask(RDHUP)
    s.read_to_end()
    c.recv_now()
    c.mask()
    ear, port = t.listener()
    t.write("c", "reconnect", [], t.call(c.peer, "reconnect", c.name, t.pair.server_ip, port))
    s2 = t.accept(ear, "s2")
    s2.send(b"NEW")
    c.read(3)
    t.warm(c, s2, 4)
    c.close()
    s2.read_to_end()
