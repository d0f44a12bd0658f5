"""What can be done with bytes: every way to send and to receive them."""
from socket import (MSG_DONTWAIT, MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, SHUT_WR, SO_OOBINLINE,
                    SOL_SOCKET)

from arena import STYLES, case

IN, PRI, OUT, RDHUP = 1, 2, 4, 0x2000
MSG_MORE, MSG_EOR, NOSIGNAL = 0x8000, 0x80, 0x4000
POLLED = ("nonblocking", "edge", "uring")
TWO = ("blocking", "nonblocking")


@case(core=True, styles=STYLES, fast=None)
def fionread(t, c, s):
    """H7, H8."""
    c.fionread()
    s.send(b"0123456789")
    s.quiet.settle()
    c.await_mask(IN)
    c.fionread()
    c.recv(4)
    c.fionread()
    s.send(b"0123456789")
    s.quiet.settle()
    t.pause()
    c.fionread()
    c.read(16)
    c.fionread()


@case(styles=TWO)
def outq(t, c, s):
    c.outq()
    c.outq_unsent()
    c.send(b"x" * 1000)
    c.quiet.settle()
    c.outq()
    s.read(1000)
    c.outq_unsent()


@case(core=True)
def peek(t, c, s):
    s.send(b"hello")
    c.recv(3, MSG_PEEK)
    c.recv(5, MSG_PEEK)
    s.send(b" world")
    s.quiet.settle()
    t.pause()
    c.recv(64, MSG_PEEK)
    c.recv(8)
    c.recv_now(64, MSG_PEEK)
    c.recv_now(64)
    c.recv_now(64, MSG_PEEK)
    s.close()
    c.await_mask(RDHUP)
    c.recv_now(64, MSG_PEEK)


@case(styles=TWO, fast=None)
def peek_offset(t, c, s):
    """SO_PEEK_OFF, on TCP since 6.9."""
    c.set_option(SOL_SOCKET, 42, 0)
    s.send(b"0123456789")
    c.await_mask(IN)
    c.recv_now(3, MSG_PEEK)
    c.recv_now(3, MSG_PEEK)
    c.recv_now(3)
    c.recv_now(3, MSG_PEEK)
    c.recv_now(64)


@case(core=True, styles=("blocking", "uring"), fast=None)
def waitall(t, c, s):
    """H5."""
    c.start("r", "recv", 50, MSG_WAITALL)
    for _ in range(5):
        s.send(b"0123456789")
        t.pause(0.015)
    c.finish("r")
    s.send(b"abc")
    c.recv(3, MSG_WAITALL)


@case(styles=("blocking", "uring"), fast=None)
def waitall_until_end(t, c, s):
    c.start("r", "recv", 50, MSG_WAITALL)
    s.send(b"0123456789")
    t.pause(0.015)
    s.send(b"only twenty")
    s.close()
    c.finish("r")
    c.recv(1)


@case(styles=("blocking", "uring"), fast=None)
def waitall_until_reset(t, c, s):
    c.start("r", "recv", 50, MSG_WAITALL)
    s.send(b"0123456789")
    s.quiet.settle()
    t.pause(0.015)
    s.reset_close()
    c.finish("r")
    c.recv(1)


@case(styles=("nonblocking",), fast=None)
def waitall_nonblocking(t, c, s):
    s.send(b"0123456789")
    c.await_mask(IN)
    c.recv_now(50, MSG_WAITALL)
    c.recv_now(50, MSG_WAITALL)


@case(styles=("blocking",), fast=None)
def waitall_peek(t, c, s):
    c.start("r", "recv", 20, MSG_WAITALL | MSG_PEEK)
    s.send(b"0123456789")
    t.pause(0.015)
    s.send(b"abcdefghij")
    c.finish("r")
    c.read(20)


@case(core=True, styles=("blocking", "nonblocking", "edge"), fast=None)
def oob(t, c, s):
    """H8: urgent data out of line."""
    s.send(b"before")
    s.send_call(b"!", MSG_OOB)
    s.send(b"after")
    s.quiet.settle()
    c.await_mask(PRI)
    c.masks()
    c.at_mark()
    c.recv_now(64)
    c.at_mark()
    c.recv_call(1, MSG_OOB)
    c.recv_call(1, MSG_OOB)
    c.recv_now(64)
    c.at_mark()
    c.mask()


@case(styles=TWO, fast=None)
def oob_inline(t, c, s):
    c.set_option(SOL_SOCKET, SO_OOBINLINE, 1)
    s.send(b"before")
    s.send_call(b"12!", MSG_OOB)
    s.send(b"after")
    s.quiet.settle()
    c.await_mask(PRI)
    c.recv_now(64)
    c.at_mark()
    c.recv_now(64)
    c.at_mark()
    c.recv_call(1, MSG_OOB)


@case(styles=TWO, fast=None)
def oob_receive_without(t, c, s):
    c.recv_call(1, MSG_OOB)
    s.send(b"x")
    c.await_mask(IN)
    c.recv_call(1, MSG_OOB)
    c.recv_now(1)


@case(styles=TWO)
def errqueue_empty(t, c, s):
    s.send(b"x")
    c.await_mask(IN)
    c.recv_call(64, MSG_ERRQUEUE)
    c.recv_call(64, MSG_ERRQUEUE | MSG_DONTWAIT)
    c.recv_now(1)


@case()
def dontwait_on_empty(t, c, s):
    c.recv_now(10)
    c.recv_now(10, MSG_PEEK)
    s.send(b"x")
    c.recv(10)
    c.recv_now(10)


@case(styles=TWO, fast=None)
def zero_length(t, c, s):
    c.recv_now(0)
    c.send_call(b"")
    s.send(b"x")
    c.await_mask(IN)
    c.recv_now(0)
    c.recv_now(0, MSG_PEEK)
    c.os_read(0)
    c.recv_now(1)
    s.close()
    c.await_mask(RDHUP)
    c.recv_now(0)
    c.os_write(b"")


@case()
def coalesced(t, c, s):
    """Three sends that have all arrived are one recv; small receives cut them anywhere."""
    for part in (b"one", b"two", b"three"):
        s.send(part)
    s.quiet.settle()
    t.pause()
    c.recv(64)
    for part in (b"four", b"five", b"six"):
        s.send(part)
    s.quiet.settle()
    t.pause()
    c.recv(6)
    c.recv(1)
    c.recv(64)


@case(styles=TWO, fast=None)
def truncated(t, c, s):
    """MSG_TRUNC: TCP throws the bytes away and touches no buffer; NULL will do."""
    s.send(b"0123456789abcdef")
    c.await_mask(IN)
    c.recv_into_marked(4, MSG_TRUNC)
    c.recv_nowhere(4, MSG_TRUNC)
    c.recv_now(2)
    c.recv_nowhere(100, MSG_TRUNC)
    c.recv_now(2)


@case(styles=TWO)
def bad_address(t, c, s):
    """EFAULT, and no byte is lost."""
    s.send(b"still here")
    c.await_mask(IN)
    c.recv_fault(10)
    c.recv_fault(10, MSG_PEEK)
    c.recv_now(64)
    c.sendmsg_fault([b""])
    c.sendmsg_fault([b"whole", b""])
    c.send(b"next")
    c.shutdown(SHUT_WR)
    s.read_to_end()


@case(core=True)
def one_byte_writes(t, c, s):
    s.start("r", "recv_stream", 2000, 1000)
    c.send_stream(2000, 1)
    s.finish("r")
    c.send(b"x")
    s.read(1)


@case(styles=POLLED)
def one_byte_reads(t, c, s):
    s.send(b"0123456789" * 5)
    s.send(b"abcdefghij" * 5)
    for _ in range(5):
        c.recv(1)
    c.read(95)


@case(core=True, connections=6)
def big_write(t, c, s):
    """16 MiB."""
    s.start("r", "recv_stream", 16 << 20, 1 << 20)
    c.start("w", "send_stream", 16 << 20, 16 << 20)
    c.finish("w", 15)
    s.finish("r", 15)
    s.send(b"got it")
    c.read(6)


@case(styles=("nonblocking", "edge"), connections=6)
def big_both_ways(t, c, s):
    for side in (c, s):
        side.start("r", "recv_stream", 4 << 20, 65536)
        side.start("w", "send_stream", 4 << 20, 70_000)
    for side in (c, s):
        side.finish("w", 15)
        side.finish("r", 15)


@case(core=True, connections=6)
def slow_reader(t, c, s):
    """Nobody reads for a while: the writer has to stop, and nothing is lost or out of order."""
    sent = c.quiet.flood()
    t.note("bounded", sent < 32 << 20)
    c.quiet.mask()
    s.start("r", "drain_flood", sent)
    s.finish("r", 15)
    c.await_mask(OUT)
    c.send(b"and on")
    s.read(6)


@case(styles=("nonblocking", "edge"), connections=6)
def slow_reader_of_small_writes(t, c, s):
    sent = c.quiet.flood(100, 2 << 20)
    s.start("r", "drain_flood", sent)
    s.finish("r", 15)
    c.send(b"and on")
    s.read(6)


@case(styles=("nonblocking", "edge"), connections=5)
def pausing_reader(t, c, s):
    s.start("r", "recv_stream", 400_000, 20_000, 1, 0.005)
    c.send_stream(400_000, 8000)
    s.finish("r", 15)


@case(styles=TWO)
def more(t, c, s):
    """MSG_MORE holds bytes back, MSG_EOR does not; in the end all is there, in order."""
    c.send(b"held", MSG_MORE)
    c.send(b" let go")
    s.read(11)
    c.send(b"a record", MSG_EOR)
    s.read(8)
    c.send(b"held until the end", MSG_MORE)
    c.shutdown(SHUT_WR)
    s.read_to_end()


@case(styles=TWO)
def cork(t, c, s):
    c.set_option(6, 3, 1)
    c.get_option(6, 3)
    for _ in range(5):
        c.send(b"corked ")
    c.set_option(6, 3, 0)
    s.read(35)
    c.send(b"free")
    s.read(4)


@case(styles=TWO)
def vectors(t, c, s):
    """readv, writev, read, write; the positioned ones are ESPIPE."""
    c.writev(b"one", b"", b"two", b"three")
    s.await_mask(IN)
    c.quiet.settle()
    s.readv(2, 5, 100)
    c.os_write(b"written")
    s.await_mask(IN)
    s.os_read(3)
    s.os_read(100)
    c.writev(*[b"%d," % n for n in range(100)])
    s.read(290)


@case(styles=TWO)
def recvmsg(t, c, s):
    """Flags, address and control data that come back."""
    s.send(b"0123456789")
    c.await_mask(IN)
    c.recvmsg([3, 4, 100])
    s.send(b"0123456789")
    c.await_mask(IN)
    c.recvmsg([4], MSG_PEEK)
    c.recvmsg([100])
    s.close()
    c.await_mask(RDHUP)
    c.recvmsg([10])


@case(styles=TWO)
def many_messages(t, c, s):
    """sendmmsg, recvmmsg."""
    c.sendmmsg([b"one", b"two", b"three"])
    c.quiet.settle()
    s.await_mask(IN)
    t.pause()
    s.recvmmsg(5, 4, MSG_DONTWAIT)
    s.recvmmsg(2, 4, MSG_DONTWAIT)


@case(core=True, styles=TWO, fast=None)
def splice_in(t, c, s):
    """H6."""
    s.send(b"0123456789" * 10)
    c.splice_in(100)
    s.send(b"then a recv")
    c.read(11)
    s.send(b"then a splice")
    c.splice_in(13)
    s.close()
    c.await_mask(RDHUP)
    c.splice_in(1)


@case(styles=("blocking",), fast=None)
def splice_in_blocking(t, c, s):
    """No polling: splice itself waits."""
    c.start("r", "splice_in", 10, 0, False)
    s.send(b"0123456789")
    c.finish("r")


@case(styles=("nonblocking",), fast=None, never=True)
def splice_in_empty(t, c, s):
    c.splice_in(10, 2, True, 0.1)
    s.send(b"x")
    c.splice_in(1)


@case(styles=TWO, connections=6, fast=None)
def splice_across(t, c, s):
    """Go's io.Copy between two TCP connections: one is read by splice, the other written."""
    c2, s2 = t.connect()
    c2.start("r", "recv_stream", 50_000)
    s.start("x", "splice_across", s2.name, 50_000)
    c.send_stream(50_000, 5_000)
    s.finish("x")
    c2.finish("r")


@case(core=True, styles=TWO)
def splice_out(t, c, s):
    c.splice_out(b"through a pipe")
    s.read(14)
    c.send(b"and as ever")
    s.read(11)
    c.splice_out(b"p" * 30_000)
    s.read(30_000)


@case(core=True, styles=("blocking", "nonblocking", "edge"))
def sendfile(t, c, s):
    s.start("r", "recv_stream", 500_000)
    c.sendfile(500_000)
    s.finish("r")
    c.sendfile(10)
    s.read(10)
    c.send(b"and as ever")
    s.read(11)


@case(core=True, styles=TWO, fast=None)
def zerocopy_send(t, c, s):
    """H8: the completion comes, and says which calls it is for."""
    c.set_zerocopy()
    c.zerocopy_send(b"z" * 20_000)
    s.read(20_000)
    c.zerocopy_send(b"y" * 100)
    s.read(100)
    c.send(b"as ever")
    s.read(7)


@case(styles=TWO)
def zerocopy_send_without_option(t, c, s):
    """MSG_ZEROCOPY without SO_ZEROCOPY is an ordinary send."""
    c.send_call(b"z" * 1000, 0x4000000)
    s.read(1000)
    c.recv_call(1, MSG_ERRQUEUE)


@case(styles=TWO, fast=None)
def zerocopy_receive(t, c, s):
    """H6: so little that it has to be read with recv, as the call says."""
    s.send(b"0123456789")
    s.quiet.settle()
    c.zerocopy_receive(10)
    c.recv_now(64)


@case(styles=TWO)
def close_with_data_under_way(t, c, s):
    """Both write, one closes without reading what may still come: what was sent before is there."""
    c.send(b"c1")
    s.read(2)
    s.send(b"s1")
    c.read(2)
    c.send(b"c2")
    c.close()
    s.read(2)
    s.read_to_end()
