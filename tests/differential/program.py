"""The program under test: system calls on sockets that have a name, one result for each.

Loaded by tests/peer/agent.py inside a pod. Nothing is hidden or retried here unless a function says so: what the kernel
answered is what goes into the transcript. A result is a number, a list, `text` (received bytes, or their length and hash
when they are many), or `-ERRNO`.

A socket has a style, which is how the application waits:
  blocking     the system call itself waits
  nonblocking  O_NONBLOCK, and poll(2) when there is nothing
  edge         O_NONBLOCK, and one edge-triggered epoll that is made with the socket
  uring        io_uring's RECV and SEND on a blocking socket
"""
import array
import ctypes
import errno
import fcntl
import faulthandler
import hashlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import uring  # noqa: E402

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
PATIENCE = 2.5  # seconds of silence that count as "never"
SPINS = 100     # times that polling may say "readable" and recv EAGAIN
SOCKS, JOBS, CHILDREN = {}, {}, []
SIGNALS = {}
TASTE = 40      # bytes shown as they are
SIOCATMARK, SIOCOUTQ, SIOCOUTQNSD = 0x8905, 0x5411, 0x894B
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
TCP_INQ, TCP_ZEROCOPY_RECEIVE, TCP_ULP, SOL_TLS = 36, 35, 31, 282
POLLRDHUP = 0x2000
STATES = {1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
          8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING"}
FLAGS = [(1, "IN"), (2, "PRI"), (4, "OUT"), (8, "ERR"), (16, "HUP"), (0x2000, "RDHUP")]

faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)


class Silence(Exception):
    pass


class Sock:
    def __init__(self, s, style):
        self.s, self.style, self.poller, self.rings = s, style, None, {}
        s.setblocking(style in ("blocking", "uring"))
        if style == "edge":
            self.poller = select.epoll()
            self.poller.register(s.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)

    @property
    def ring(self):
        """Each thread has its own."""
        if self.style != "uring":
            return None
        if threading.get_ident() not in self.rings:
            self.rings[threading.get_ident()] = uring.Ring()
        return self.rings[threading.get_ident()]

    @property
    def fd(self):
        return self.s.fileno()

    def close(self):
        if self.poller:
            self.poller.close()
            self.poller = None
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()
        self.s.close()

    def wait(self, events):
        """Until the style's way of waiting says something; Silence if it never does."""
        if self.poller:
            if not self.poller.poll(PATIENCE):
                raise Silence("no edge")
            return
        poller = select.poll()
        poller.register(self.fd, events)
        if not poller.poll(PATIENCE * 1000):
            raise Silence("poll is silent")


def check(done):
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def raw_recv(fd, size, flags=0):
    buffer = ctypes.create_string_buffer(size or 1)
    done = check(LIBC.recv(fd, buffer, ctypes.c_size_t(size), flags))
    return buffer.raw[:done]


def raw_send(fd, data, flags=0):
    return check(LIBC.send(fd, data, ctypes.c_size_t(len(data)), flags))


def receive(k, size, flags=0):
    if ring := k.ring:
        buffer = ctypes.create_string_buffer(size or 1)
        try:
            done = ring.run(uring.OP_RECV, k.fd, ctypes.addressof(buffer), size, flags, PATIENCE)
        except TimeoutError as err:
            raise Silence(str(err)) from None
        return buffer.raw[:done]
    for _ in range(SPINS):
        try:
            return raw_recv(k.fd, size, flags)
        except BlockingIOError:
            if k.style == "blocking" or flags & socket.MSG_DONTWAIT:
                raise
        k.wait(select.POLLIN)
    raise Silence("readable, but EAGAIN")


def transmit(k, data, flags=0):
    """All of it, as the style does it."""
    view, at, ring = memoryview(data), 0, k.ring
    for _ in range(1 << 20):
        if at == len(data) and at:
            return at
        part = bytes(view[at:])
        try:
            if ring:
                buffer = ctypes.create_string_buffer(part, len(part))
                at += ring.run(uring.OP_SEND, k.fd, ctypes.addressof(buffer), len(part), flags | socket.MSG_NOSIGNAL, PATIENCE)
            else:
                at += raw_send(k.fd, part, flags)
            if not data:
                return 0
        except TimeoutError as err:
            raise Silence(str(err)) from None
        except BlockingIOError:
            if k.style == "blocking":
                raise
            k.wait(select.POLLOUT)
    raise Silence("writable, but EAGAIN")


def show(data):
    if len(data) <= TASTE:
        return data.decode("latin-1")
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}"


def guarded(op, *args, **kw):
    try:
        value = globals()[op](*args, **kw)
        return show(bytes(value)) if isinstance(value, (bytes, bytearray)) else value
    except OSError as err:
        return "-" + errno.errorcode.get(err.errno, str(err.errno))
    except Silence as err:
        return f"-silence: {err}"


def ping():
    return os.getpid()


def do(op, *args, **kw):
    return guarded(op, *args, **kw)


def reset(keep=()):
    """The end of a connection: nothing is left open but the listeners."""
    for pid in CHILDREN:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    CHILDREN.clear()
    for name in [n for n in SOCKS if n not in keep]:
        SOCKS.pop(name).close()
    alive = [tag for tag, job in JOBS.items() if job["thread"].is_alive()]
    JOBS.clear()
    return alive


# ---- making sockets

def options(s, opts):
    for level, option, value in opts:
        s.setsockopt(level, option, value)


def listen(name, host, port, opts=(), protocol=0, backlog=64, style="blocking"):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, protocol)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    options(s, opts)
    s.bind((host, port))
    s.listen(backlog)
    SOCKS[name] = Sock(s, style)


def connect(name, host, port, style="blocking", opts=(), protocol=0, bind=None):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, protocol)
    try:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        options(s, opts)
        if bind:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(tuple(bind))
        s.settimeout(5)
        s.connect((host, port))
    except BaseException:
        s.close()
        raise
    SOCKS[name] = Sock(s, style)


def accept(name, listener, style="blocking", opts=()):
    ear = SOCKS[listener]
    poller = select.poll()
    poller.register(ear.fd, select.POLLIN)
    if not poller.poll(PATIENCE * 1000):
        raise Silence("nobody connects")
    s, _ = ear.s.accept()
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options(s, opts)
    SOCKS[name] = Sock(s, style)


def warm(name, rounds, first):
    """Ping-pong of small messages: learning, and the handoff to the fast path."""
    k, text = SOCKS[name], b"w" * 100
    for _ in range(rounds):
        if first:
            transmit(k, text)
        left = 100
        while left:
            data = receive(k, left)
            if not data:
                raise OSError(errno.EPIPE, "end of stream while warming up")
            left -= len(data)
        if not first:
            transmit(k, text)
    return rounds


# ---- plain use

def recv(name, size=65536, flags=0):
    return receive(SOCKS[name], size, flags)


def recv_now(name, size=65536, flags=0):
    """What is there, no waiting."""
    return raw_recv(SOCKS[name].fd, size, flags | socket.MSG_DONTWAIT)


def recv_call(name, size=65536, flags=0):
    """The bare system call, whatever the style."""
    return raw_recv(SOCKS[name].fd, size, flags)


def read(name, size):
    """Exactly so many bytes: how a stream is cut is TCP's business; then what ended it, if it ended early."""
    k, got = SOCKS[name], bytearray()
    try:
        while len(got) < size:
            data = receive(k, size - len(got))
            if not data:
                return [show(bytes(got)), "end"]
            got += data
    except OSError as err:
        return [show(bytes(got)), "-" + errno.errorcode[err.errno]]
    return bytes(got)


def read_to_end(name, size=65536):
    """Everything, and how it ended."""
    k, got = SOCKS[name], bytearray()
    try:
        while data := receive(k, size):
            got += data
    except OSError as err:
        return [show(bytes(got)), "-" + errno.errorcode[err.errno]]
    return [show(bytes(got)), "end"]


def send(name, data, flags=0):
    return transmit(SOCKS[name], data, flags)


def send_call(name, data, flags=0):
    return raw_send(SOCKS[name].fd, data, flags)


def send_zeros(name, size):
    """One call, whatever the style."""
    return raw_send(SOCKS[name].fd, bytes(size))


def pattern(size, seed):
    block = hashlib.shake_128(seed.to_bytes(4, "big")).digest(65521)  # a prime: shifted pieces never look alike
    return (block * (size // len(block) + 1))[:size]


def send_stream(name, size, chunk, seed=1):
    k, data, at = SOCKS[name], pattern(size, seed), 0
    while at < size:
        at += transmit(k, data[at:at + chunk])
    return at


def recv_stream(name, size, chunk=65536, seed=1, pause=0.0):
    """Reads a stream and says whether it was the right one, up to its end if size is 0."""
    k, got = SOCKS[name], bytearray()
    while not size or len(got) < size:
        data = receive(k, min(chunk, size - len(got)) if size else chunk)
        if not data:
            break
        got += data
        if pause:
            time.sleep(pause)
    right = bytes(got) == pattern(len(got), seed)
    return [len(got), "right" if right else "WRONG BYTES"]


def count_stream(name):
    k, got = SOCKS[name], 0
    while data := receive(k, 1000):
        got += len(data)
    return got


def shutdown(name, how):
    return check(LIBC.shutdown(SOCKS[name].fd, how))


def close(name):
    SOCKS.pop(name).close()


def linger(name, on, seconds):
    SOCKS[name].s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, seconds))


def reset_close(name):
    linger(name, 1, 0)
    close(name)


def disconnect(name):
    """connect(AF_UNSPEC)."""
    address = struct.pack("=H14x", socket.AF_UNSPEC)
    return check(LIBC.connect(SOCKS[name].fd, address, len(address)))


def reconnect(name, host, port):
    k = SOCKS[name]
    k.s.settimeout(5)
    k.s.connect((host, port))
    k.s.setblocking(k.style in ("blocking", "uring"))


# ---- looking

def number(name, request):
    buffer = array.array("i", [0])
    fcntl.ioctl(SOCKS[name].fd, request, buffer)
    return buffer[0]


def fionread(name):
    return number(name, termios.FIONREAD)


def outq(name):
    return number(name, SIOCOUTQ)


def outq_unsent(name):
    return number(name, SIOCOUTQNSD)


def at_mark(name):
    return number(name, SIOCATMARK)


def settle(name):
    """Until the other end's TCP has acknowledged everything: what was sent by TCP has arrived."""
    end = time.monotonic() + 1
    while number(name, SIOCOUTQ) and time.monotonic() < end:
        time.sleep(0.001)


def masked(mask):
    return "|".join(text for bit, text in FLAGS if mask & bit) or "-"


ALL_EVENTS = 1 | 2 | 4 | POLLRDHUP


def mask(name, events=ALL_EVENTS, timeout=0.0):
    """What poll(2) says."""
    poller = select.poll()
    poller.register(SOCKS[name].fd, events)
    return masked(sum(m for _, m in poller.poll(timeout * 1000)))


def masks(name):
    """select, poll and a fresh level-triggered epoll, all at once."""
    fd = SOCKS[name].fd
    poller = select.epoll()
    poller.register(fd, ALL_EVENTS)
    got = poller.poll(0)
    poller.close()
    return {"poll": mask(name), "epoll": masked(sum(m for _, m in got)),
            "select": "".join("rwx"[i] for i, part in enumerate(select.select([fd], [fd], [fd], 0)) if part)}


def await_mask(name, events, timeout=PATIENCE):
    """Until poll says one of these; then everything it says. (HUP and ERR always count.)"""
    poller = select.poll()
    poller.register(SOCKS[name].fd, events)
    if not poller.poll(timeout * 1000):
        raise Silence("poll is silent")
    return mask(name)


def edges(name, timeout=0.05):
    """What the socket's own edge-triggered epoll has to say: the masks of the events, one after the other."""
    got = []
    while events := SOCKS[name].poller.poll(timeout if not got else 0):
        got += [masked(m) for _, m in events]
    return got


def so_error(name):
    code = SOCKS[name].s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode.get(code, code)


def set_option(name, level, option, value):
    SOCKS[name].s.setsockopt(level, option, value)


def get_option(name, level, option, size=0):
    got = SOCKS[name].s.getsockopt(level, option, size) if size else SOCKS[name].s.getsockopt(level, option)
    return got.rstrip(b"\0").decode("latin-1") if size else got


def names(name):
    s = SOCKS[name].s
    try:
        peer = s.getpeername()
    except OSError as err:
        peer = "-" + errno.errorcode[err.errno]
    return [s.getsockname(), peer]


def info(name, *fields):
    raw = SOCKS[name].s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    raw += bytes(256 - len(raw))
    words = struct.unpack_from("<24I", raw, 8)
    value = {"state": STATES.get(raw[0], raw[0]), "ca_state": raw[1], "retransmits": raw[2], "probes": raw[3],
             "backoff": raw[4], "options": raw[5], "rto": words[0], "ato": words[1], "snd_mss": words[2], "rcv_mss": words[3],
             "unacked": words[4], "sacked": words[5], "lost": words[6], "retrans": words[7], "rtt": words[15],
             "rttvar": words[16], "snd_ssthresh": words[17], "snd_cwnd": words[18], "advmss": words[19],
             "total_retrans": words[23]}
    if len(raw) >= 200:
        value["bytes_acked"], value["bytes_received"] = struct.unpack_from("<QQ", raw, 120)
        value["notsent"] = struct.unpack_from("<I", raw, 144)[0]
        value["bytes_sent"], value["bytes_retrans"] = struct.unpack_from("<QQ", raw, 200)
    return {f: value[f] for f in fields} if fields else value


def meminfo(name):
    """SO_MEMINFO: of what changes by the moment, only whether there is any."""
    words = struct.unpack("<9I", SOCKS[name].s.getsockopt(socket.SOL_SOCKET, 55, 36))
    return {"rmem": bool(words[0]), "rcvbuf": words[1], "wmem": bool(words[2]), "sndbuf": words[3], "backlog": bool(words[7])}


# ---- the less usual calls

class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class Msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(Iovec)),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int)]


class Mmsghdr(ctypes.Structure):
    _fields_ = [("hdr", Msghdr), ("size", ctypes.c_uint)]


def vector(buffers):
    return (Iovec * len(buffers))(*(Iovec(ctypes.addressof(b) if b else 8, len(b) if b else 16) for b in buffers))


CMSGS = {(socket.SOL_SOCKET, 29): "TIMESTAMP", (socket.SOL_SOCKET, 35): "TIMESTAMPNS", (socket.SOL_SOCKET, 37): "TIMESTAMPING",
         (socket.IPPROTO_TCP, TCP_INQ): "TCP_INQ"}


def recvmsg(name, sizes, flags=0):
    """Into several buffers, with address and control: what the header says afterwards. A TCP_INQ shows its number, a
    timestamp only that it is there (its value is the clock's business)."""
    k = SOCKS[name]
    if k.style != "blocking" and not flags & socket.MSG_DONTWAIT:
        k.wait(select.POLLIN)
    s = k.s
    buffers = [bytearray(n) for n in sizes]
    got, control, out, address = s.recvmsg_into(buffers, 512, flags)
    notes = sorted(f"{CMSGS.get((level, kind), (level, kind))}"
                   + (f"={struct.unpack('<I', data)[0]}" if (level, kind) == (socket.IPPROTO_TCP, TCP_INQ) else "")
                   for level, kind, data in control)
    return [got, [show(bytes(b)) for b in buffers], notes, out, address]


def recvmmsg(name, count, size, flags=0):
    buffers = [ctypes.create_string_buffer(size) for _ in range(count)]
    vectors = [vector([b]) for b in buffers]
    heads = (Mmsghdr * count)()
    for head, v in zip(heads, vectors):
        head.hdr.iov, head.hdr.iovlen = v, 1
    done = check(LIBC.recvmmsg(SOCKS[name].fd, heads, count, flags, None))
    return [done] + [show(buffers[i].raw[:heads[i].size]) for i in range(done)]


def sendmmsg(name, parts, flags=0):
    buffers = [ctypes.create_string_buffer(p, len(p)) for p in parts]
    vectors = [vector([b]) for b in buffers]
    heads = (Mmsghdr * len(parts))()
    for head, v in zip(heads, vectors):
        head.hdr.iov, head.hdr.iovlen = v, 1
    done = check(LIBC.sendmmsg(SOCKS[name].fd, heads, len(parts), flags))
    return [done] + [heads[i].size for i in range(done)]


def sendmsg_fault(name, parts):
    """One of the buffers (an empty one) is at an address that is not mapped."""
    buffers = [ctypes.create_string_buffer(p, len(p)) if p else None for p in parts]
    v = vector(buffers)
    head = Msghdr(iov=v, iovlen=len(parts))
    return check(LIBC.sendmsg(SOCKS[name].fd, ctypes.byref(head), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT))


def recv_fault(name, size, flags=0):
    """Into an address that is not mapped."""
    return check(LIBC.recv(SOCKS[name].fd, ctypes.c_void_p(8), ctypes.c_size_t(size), flags | socket.MSG_DONTWAIT))


def recv_nowhere(name, size, flags=0):
    """recv(fd, NULL, size): how a program throws bytes away with MSG_TRUNC."""
    return check(LIBC.recv(SOCKS[name].fd, None, ctypes.c_size_t(size), flags))


def recv_into_marked(name, size, flags):
    """The result, and whether the buffer was written to."""
    buffer = ctypes.create_string_buffer(b"\xaa" * size, size)
    done = check(LIBC.recv(SOCKS[name].fd, buffer, ctypes.c_size_t(size), flags))
    return [done, "untouched" if buffer.raw == b"\xaa" * size else "written"]


def readv(name, *sizes):
    buffers = [bytearray(n) for n in sizes]
    return [os.readv(SOCKS[name].fd, buffers)] + [show(bytes(b)) for b in buffers]


def writev(name, *parts):
    return os.writev(SOCKS[name].fd, parts)


def os_read(name, size):
    return os.read(SOCKS[name].fd, size)


def os_write(name, data):
    return os.write(SOCKS[name].fd, data)


def splice_in(name, size, flags=2, await_readable=True, patience=PATIENCE):
    """Socket to pipe to us. SPLICE_F_NONBLOCK unless told otherwise: polling first, as everybody does."""
    k, (out, into) = SOCKS[name], os.pipe()
    try:
        got = bytearray()
        for _ in range(SPINS):
            if await_readable:
                poller = select.poll()
                poller.register(k.fd, select.POLLIN)
                if not poller.poll(patience * 1000):
                    raise Silence("poll is silent")
            try:
                done = os.splice(k.fd, into, size - len(got), flags=flags)
            except BlockingIOError:
                continue
            if not done:
                return [show(bytes(got)), "end"]
            got += os.read(out, done)
            if len(got) >= size:
                return bytes(got)
        raise Silence(f"readable, but splice says EAGAIN after {len(got)} bytes")
    finally:
        os.close(out)
        os.close(into)


def splice_out(name, data):
    """Us to pipe to socket."""
    out, into = os.pipe()
    try:
        os.write(into, data)
        return os.splice(out, SOCKS[name].fd, len(data))
    finally:
        os.close(out)
        os.close(into)


def splice_across(name, other, size):
    """Socket to socket through a pipe: what Go's io.Copy does between two TCP connections."""
    (out, into), moved = os.pipe(), 0
    try:
        for _ in range(SPINS):
            poller = select.poll()
            poller.register(SOCKS[name].fd, select.POLLIN)
            if not poller.poll(PATIENCE * 1000):
                raise Silence("poll is silent")
            try:
                done = os.splice(SOCKS[name].fd, into, size - moved, flags=2)
            except BlockingIOError:
                continue
            moved += done
            while done:
                done -= os.splice(out, SOCKS[other].fd, done)
            if moved >= size:
                return moved
        raise Silence("readable, but splice says EAGAIN")
    finally:
        os.close(out)
        os.close(into)


def sendfile(name, size, seed=1):
    k, at = SOCKS[name], 0
    with tempfile.TemporaryFile() as f:
        f.write(pattern(size, seed))
        f.flush()
        while at < size:
            try:
                at += os.sendfile(k.fd, f.fileno(), at, size - at)
            except BlockingIOError:
                k.wait(select.POLLOUT)
    return at


def zerocopy_send(name, data):
    """MSG_ZEROCOPY, and the completion from the error queue: [sent, first, last]; whether it was copied after all is the
    route's business."""
    k = SOCKS[name]
    buffer = ctypes.create_string_buffer(data, len(data))
    sent = check(LIBC.send(k.fd, buffer, ctypes.c_size_t(len(data)), MSG_ZEROCOPY))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        poller = select.poll()
        poller.register(k.fd, 0)
        poller.poll(50)
        try:
            _, control, _, _ = k.s.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            continue
        for level, kind, payload in control:
            code, origin, _, _, _, low, high = struct.unpack_from("<IBBBBII", payload)
            if origin == 5:
                return [sent, code, low, high]
    return [sent, "-silence: no completion"]


def zerocopy_receive(name, size):
    """TCP_ZEROCOPY_RECEIVE into a mapping of the socket: [bytes mapped, bytes to be read by recv]. Then all of it."""
    k, area = SOCKS[name], 1 << 16
    address = LIBC.mmap(None, ctypes.c_size_t(area), mmap.PROT_READ, mmap.MAP_SHARED, k.fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        k.wait(select.POLLIN)
        ask = ctypes.create_string_buffer(struct.pack("<QIIIiQIIQQII", address, area, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        length = ctypes.c_uint32(len(ask.raw) - 1)
        check(LIBC.getsockopt(k.fd, socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, ask, ctypes.byref(length)))
        _, mapped, hint = struct.unpack_from("<QII", ask.raw)
        return [mapped, hint]
    finally:
        LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(area))


def tls(name, ways, version=0x0303):
    """kTLS with fixed keys: ways is any of 't' (transmit) and 'r' (receive)."""
    s = SOCKS[name].s
    s.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    keys = struct.pack("<HH", version, 51) + b"i" * 8 + b"k" * 16 + b"s" * 4 + bytes(8)
    for way in ways:
        s.setsockopt(SOL_TLS, {"t": 1, "r": 2}[way], keys)


def set_zerocopy(name):
    SOCKS[name].s.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)


def dup(name, copy):
    SOCKS[copy] = Sock(SOCKS[name].s.dup(), SOCKS[name].style)


def flood(name, chunk=65536, limit=64 << 20, seed=1):
    """Non-blocking writes until the socket is full and stays so: how much went in."""
    k, at, block, still = SOCKS[name], 0, pattern(1 << 20, seed), 0
    block = block + block[:chunk]
    while at < limit:
        try:
            start = at % (1 << 20)
            at += raw_send(k.fd, block[start:start + chunk], socket.MSG_DONTWAIT)
            still = 0
        except BlockingIOError:
            still += 1
            if still > 3:
                break
            time.sleep(0.03)
    return at


def drain_flood(name, size, seed=1):
    k, block, at = SOCKS[name], pattern(1 << 20, seed), 0
    block = block + block
    while at < size:
        data = receive(k, min(1 << 18, size - at))
        if not data:
            return [at, "early end"]
        start = at % (1 << 20)
        if data != block[start:start + len(data)]:
            return [at, "WRONG BYTES"]
        at += len(data)
    return "right"


def elapsed(name, op, low, high, *args):
    """A call, and whether it took between so many seconds."""
    began = time.monotonic()
    got = guarded(op, name, *args)
    took = time.monotonic() - began
    return [got, "in time" if low <= took <= high else f"after {took:.2f} s"]


# ---- threads, signals, processes

def start(tag, op, *args, **kw):
    job = {"result": None}

    def run():
        job["ident"] = threading.get_ident()
        job["result"] = guarded(op, *args, **kw)
    job["thread"] = threading.Thread(target=run, daemon=True)
    JOBS[tag] = job
    job["thread"].start()
    time.sleep(0.02)  # it is in its system call


def finish(tag, timeout=4.0):
    job = JOBS[tag]
    job["thread"].join(timeout)
    return "-hang" if job["thread"].is_alive() else job["result"]


def waiting(tag, timeout=0.0):
    """Is that thread still in its call?"""
    JOBS[tag]["thread"].join(timeout)
    return JOBS[tag]["thread"].is_alive() or JOBS[tag]["result"]


def count_signal(number, _):
    SIGNALS[number] = SIGNALS.get(number, 0) + 1


def on_signal(which, restart):
    signal.signal(which, count_signal)
    signal.siginterrupt(which, not restart)
    SIGNALS[which] = 0


def poke(tag, which, times=1):
    for _ in range(times):
        signal.pthread_kill(JOBS[tag]["ident"], which)
        time.sleep(0.02)


def signals(which):
    return SIGNALS.get(which, 0)


def signal_off(which):
    signal.signal(which, signal.SIG_IGN if which == signal.SIGPIPE else signal.SIG_DFL)


def async_signals(name, which):
    """SIGIO and its like for this socket."""
    on_signal(which, True)
    fd = SOCKS[name].fd
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, 10, which)  # F_SETSIG
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def in_child(steps):
    """Forks; the child does the steps on what it inherited, answers and exits."""
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(into, json.dumps([guarded(op, *args) for op, *args in steps]).encode())
        finally:
            os._exit(0)
    CHILDREN.append(pid)
    os.close(into)
    with os.fdopen(out) as f:
        poller = select.poll()
        poller.register(f, select.POLLIN)
        text = f.read() if poller.poll(5000) else '"-hang"'
    return json.loads(text or '"-died"')


def idle_child():
    """A child that holds copies of everything, until reset()."""
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    CHILDREN.append(pid)


def end_children():
    for pid in CHILDREN:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    CHILDREN.clear()


def give(name, path):
    """Sends the descriptor to whoever connects to this Unix socket, and closes ours."""
    with socket.socket(socket.AF_UNIX) as way:
        way.bind(path)
        way.listen(1)
        poller = select.poll()
        poller.register(way, select.POLLIN)
        if not poller.poll(5000):
            raise Silence("nobody takes it")
        to, _ = way.accept()
        with to:
            socket.send_fds(to, [b"x"], [SOCKS[name].fd])
            to.recv(1)
    close(name)


def take(name, path, style):
    end = time.monotonic() + 5
    while True:
        try:
            way = socket.socket(socket.AF_UNIX)
            way.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            way.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.005)
    with way:
        _, fds, _, _ = socket.recv_fds(way, 1, 1)
        SOCKS[name] = Sock(socket.socket(fileno=fds[0]), style)
        way.send(b"x")


def fast_open(name, host, port, data, style):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sent = s.sendto(data, socket.MSG_FASTOPEN, (host, port))
    SOCKS[name] = Sock(s, style)
    return sent


def wide_connect(name, host, port, style, bind):
    """One end of a simultaneous open: non-blocking, the SYN goes out at once."""
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(tuple(bind))
    s.setblocking(False)
    s.connect_ex((host, port))
    poller = select.poll()
    poller.register(s, select.POLLOUT)
    if not poller.poll(3000):
        raise Silence("not connected")
    code = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    SOCKS[name] = Sock(s, style)
    return errno.errorcode.get(code, code)


def connect_code(name, host, port):
    """A non-blocking connect: its first answer, what polling says, SO_ERROR."""
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setblocking(False)
    first = s.connect_ex((host, port))
    SOCKS[name] = Sock(s, "nonblocking")
    return [errno.errorcode.get(first, first), await_mask(name, 4), so_error(name), so_error(name)]


def refusal(what):
    """Why a feature is not here; None where it is."""
    try:
        if what == "uring":
            return uring.refused()
        if what == "mptcp":
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
        if what == "tls":
            with socket.socket() as ear, socket.socket() as c:
                ear.bind(("127.0.0.1", 0))
                ear.listen()
                c.connect(ear.getsockname())
                c.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as err:
        return f"{what}: {errno.errorcode.get(err.errno, err.errno)}"
    return None
