"""What a peer can be asked to do. Plain functions: arguments and results are JSON (bytes are packed).

Sockets block unless a function says otherwise; SO_RCVTIMEO and SO_SNDTIMEO (which leave a socket blocking) bound a hang.
Stream contents come from one pool of random bytes, at an offset of the stream's own: a byte that is lost, doubled,
out of order, or of another connection is seen where it arrives.
"""
import ctypes
import errno
import fcntl
import hashlib
import os
import random
import resource
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections import Counter

LIBC = ctypes.CDLL(None, use_errno=True)
SOCKETS = {}
BACKGROUND = []
POOL_SIZE = 1 << 20
POOL = random.Random(20261123).randbytes(POOL_SIZE) * 2
TIMEOUT = struct.pack("ll", 60 if "SHARED_SOCKET_VM" in os.environ else 10, 0)
IPPROTO_TCP = socket.IPPROTO_TCP


def ping():
    return os.getpid()


# ---- stream contents

def offset(stream):
    return (stream * 2654435761 + 12345) % POOL_SIZE


def piece(stream, at, size):
    """Bytes at .. at+size of a stream (size <= 1 MiB)."""
    start = (offset(stream) + at) % POOL_SIZE
    return POOL[start:start + size]


class Check:
    """The receiving end of a stream."""

    def __init__(self, stream):
        self.stream, self.at = stream, 0

    def feed(self, data):
        if data != piece(self.stream, self.at, len(data)):
            want = piece(self.stream, self.at, len(data))
            first = next(i for i in range(len(data)) if data[i] != want[i])
            found = POOL.find(data[first:first + 32])
            where = "not from any stream" if found < 0 else f"from position {(found - offset(self.stream)) % POOL_SIZE} (mod 1 MiB)"
            raise ValueError(f"stream {self.stream}: wrong byte at {self.at + first}: {where}")
        self.at += len(data)


# ---- one socket at a time

def prepare(s, opts=()):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TIMEOUT)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEOUT)
    for level, option, value in opts:
        s.setsockopt(level, option, value)
    return s


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def info(s):
    def name(fn):
        try:
            return list(fn())
        except OSError:
            return None
    return {"local": name(s.getsockname), "remote": name(s.getpeername)}


def listen(name, host, port=0, backlog=1024, opts=(), mapped=False, protocol=0):
    s = prepare(socket.socket(family(host), socket.SOCK_STREAM, protocol))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if mapped:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for level, option, value in opts:
        s.setsockopt(level, option, value)
    s.bind((host, port))
    s.listen(backlog)
    SOCKETS[name] = s
    return info(s)


def dial(host, port, bind=None, opts=(), nodelay=True, protocol=0):
    s = prepare(socket.socket(family(host), socket.SOCK_STREAM, protocol), opts)
    if nodelay:
        s.setsockopt(IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if bind:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(tuple(bind))
    s.connect((host, port))
    return s


def connect(name, host, port, **kw):
    SOCKETS[name] = s = dial(host, port, **kw)
    return info(s)


def accept(name, listener, opts=()):
    s, _ = SOCKETS[listener].accept()
    SOCKETS[name] = prepare(s, opts)
    return info(s)


def sock_send(name, data):
    SOCKETS[name].sendall(data)


def sock_send_many(name, data, count):
    for _ in range(count):
        SOCKETS[name].sendall(data)


def sock_recv(name, size=65536):
    return SOCKETS[name].recv(size)


def read_exact(s, size):
    got = bytearray()
    while len(got) < size:
        data = s.recv(size - len(got))
        if not data:
            raise EOFError(f"end of stream after {len(got)} of {size} bytes: {bytes(got[:80])!r}")
        got += data
    return bytes(got)


def sock_read(name, size):
    """Exactly so many bytes."""
    return read_exact(SOCKETS[name], size)


def sock_read_all(name):
    """Everything until the other end says it is done."""
    got = bytearray()
    while data := SOCKETS[name].recv(1 << 16):
        got += data
    return bytes(got)


def begin_at(at):
    """Two peers act at one moment of the machine's clock: without sleeping, as a wake-up takes its time."""
    while time.monotonic() < at:
        pass


def sock_drain(name, size=1 << 20, patience=4.0, at=0.0):
    """Everything, in large calls, until end of stream, reset, or nothing for some seconds: (bytes, how it ended)."""
    buffer, got = bytearray(size), 0
    begin_at(at)
    moved = time.monotonic()
    while time.monotonic() - moved < patience:
        try:
            count = SOCKETS[name].recv_into(buffer)
        except ConnectionResetError:
            return got, "reset"
        except BlockingIOError:  # SO_RCVTIMEO, or what `all` is known to do when a RST comes
            continue
        if not count:
            return got, "eof"
        got, moved = got + count, time.monotonic()
    return got, "nothing came"


def sock_pending(name, wait=0.0):
    """What can be read now, without waiting for more; None for a stream that has ended."""
    time.sleep(wait)
    got = bytearray()
    while True:
        try:
            data = SOCKETS[name].recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return bytes(got)
        if not data:
            return bytes(got) or None
        got += data


def sock_shutdown(name):
    SOCKETS[name].shutdown(socket.SHUT_WR)


def sock_close(name):
    SOCKETS.pop(name).close()


def sock_reset(name, at=0.0):
    """Close with RST, at a time of the machine's clock."""
    s = SOCKETS.pop(name)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    begin_at(at)
    s.close()


def sock_set(name, level, option, value):
    SOCKETS[name].setsockopt(level, option, value)


def sock_nonblocking(name, on=True):
    s = SOCKETS[name]
    s.setblocking(not on)
    if not on:
        prepare(s)


def disconnect_fd(s):
    address = struct.pack("=H14x", socket.AF_UNSPEC)
    if LIBC.connect(s.fileno(), address, len(address)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sock_disconnect(name):
    """connect(AF_UNSPEC)."""
    disconnect_fd(SOCKETS[name])


def sock_reconnect(name, host, port):
    SOCKETS[name].connect((host, port))
    return info(SOCKETS[name])


def sock_relisten(name, port):
    """A socket that was a connection becomes a listener."""
    s = SOCKETS[name]
    s.bind(("", port))
    s.listen(16)


# ---- echo

def serve(listener, handler):
    """Accept in the background, a thread for each connection (that socket has one thread: it reads, then writes)."""
    s = SOCKETS[listener]
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))

    def accepting():
        while True:
            try:
                connection, _ = s.accept()
            except OSError:
                return
            connection.setsockopt(IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=handler, args=(connection,), daemon=True).start()
    threading.Thread(target=accepting, daemon=True).start()


ECHO_ERRORS = []


def echo_one(s):
    try:
        while data := s.recv(65536):
            s.sendall(data)
    except ConnectionResetError:
        pass
    except OSError as err:
        ECHO_ERRORS.append(f"{type(err).__name__}: {err}")
    finally:
        s.close()


def echo_start(listener):
    serve(listener, echo_one)


def echo_errors():
    return list(ECHO_ERRORS)


def exchange(s, stream, rounds, low=1, high=4096, seed=0):
    rng, at = random.Random(stream * 7919 + seed), 0
    check = Check(stream)
    for _ in range(rounds):
        size = rng.randint(low, high)
        s.sendall(piece(stream, at, size))
        at += size
        check.feed(read_exact(s, size))


def echo_client(host, port, rounds=20, stream=1, low=1, high=4096, **kw):
    """One connection: random sizes out, the same bytes back, then an orderly end."""
    s = dial(host, port, **kw)
    exchange(s, stream, rounds, low, high)
    s.shutdown(socket.SHUT_WR)
    try:
        rest = s.recv(1)
    except BlockingIOError:
        # H4 in `all`: the peer's thread was still inside its last send. A matter of microseconds, but not where the
        # processor is an emulated one; test_half_close_then_blocking_read looks at H4 itself
        if "SHARED_SOCKET_VM" not in os.environ:
            raise
        rest = s.recv(1)
    s.close()
    if rest:
        raise ValueError(f"{rest!r} after the end")
    return rounds


def sock_exchange(name, rounds=20, stream=1, low=1, high=4096):
    exchange(SOCKETS[name], stream, rounds, low, high)


def echo_many(host, port, count, rounds):
    """All open at once, every one right."""
    held = [dial(host, port) for _ in range(count)]
    for step in range(rounds):
        for number, s in enumerate(held):
            exchange(s, number, 1, seed=step)
    for s in held:
        s.close()


# ---- non-blocking, epoll

def epoll_echo_start(listener):
    """An echo server of the usual event-loop kind: accept4, O_NONBLOCK before the first read, epoll."""
    ear = SOCKETS[listener]
    ear.setblocking(False)
    poller, held = select.epoll(), {}
    poller.register(ear.fileno(), select.EPOLLIN)

    def loop():
        while True:
            for number, _ in poller.poll():
                if number == ear.fileno():
                    try:
                        s, _ = ear.accept()
                    except BlockingIOError:
                        continue
                    s.setblocking(False)
                    held[s.fileno()] = s
                    poller.register(s.fileno(), select.EPOLLIN)
                    continue
                s = held[number]
                try:
                    data = s.recv(65536)
                    if data:
                        s.sendall(data)  # small messages: never full
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                poller.unregister(number)
                held.pop(number).close()
    threading.Thread(target=loop, daemon=True).start()


def epoll_client(host, port, connections=1, rounds=10, size=200):
    """Connections one after the other: non-blocking from birth, read only when epoll says so."""
    for number in range(connections):
        s = socket.socket(family(host), socket.SOCK_STREAM)
        s.setblocking(False)
        poller = select.epoll()
        code = s.connect_ex((host, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        poller.register(s.fileno(), select.EPOLLOUT)
        poller.poll(10)
        poller.modify(s.fileno(), select.EPOLLIN)
        check, at = Check(number), 0
        for _ in range(rounds):
            if s.send(piece(number, at, size)) != size:
                raise OSError("short write")
            at += size
            while check.at < at:
                if not poller.poll(10):
                    raise TimeoutError(f"epoll silent, {at - check.at} bytes missing")
                try:
                    data = s.recv(65536)
                except BlockingIOError:
                    continue
                if not data:
                    raise EOFError("early end")
                check.feed(data)
        poller.close()
        s.close()


# ---- full duplex, asyncio (duplex.py; read only where it is needed, as asyncio takes half of the time that a peer needs to start)

def duplex_serve(listener, count, seed):
    import duplex
    return duplex.serve(SOCKETS[listener], count, seed)


def duplex_connect(host, port, count, seed):
    import duplex
    return duplex.connect(host, port, count, seed)


# ---- churn: non-blocking under Python's own poll (settimeout), a connection has one thread; half-closes and closes while
# the other end is sending

HEAD = struct.Struct(">IBII")


def workers(count, body):
    errors, total = [], [0]
    lock = threading.Lock()

    def run(index):
        try:
            done = body(index, errors)
            with lock:
                total[0] += done
        except Exception as err:
            errors.append(f"worker {index}: {type(err).__name__}: {err}")
    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
        if t.is_alive():
            errors.append("a worker hangs")
    return {"done": total[0], "failed": len(errors), "errors": Counter(errors).most_common(10)}


def in_pieces(s, stream, total, rng):
    at = 0
    while at < total:
        size = min(total - at, rng.choice([1, 64, 1000, 4096, 16384]))
        s.sendall(piece(stream, at, size))
        at += size


def until_end(s, stream, total, what):
    check, began = Check(stream), time.monotonic()
    try:
        while data := s.recv(65536):
            check.feed(data)
            began = time.monotonic()
    except OSError as err:
        raise OSError(err.errno, f"{what}: recv {'at once' if time.monotonic() - began < 9 else 'after 10 s'} at the "
                                 f"{'end' if check.at == total else 'middle'}: {type(err).__name__}") from err
    if check.at != total:
        raise EOFError(f"{what}: {check.at} of {total} bytes")


def churn_server_one(s):
    number, mode, ask, reply = HEAD.unpack(read_exact(s, HEAD.size))
    rng = random.Random(number)
    in_pieces(s, 2 * number + 1, reply, rng)
    if mode == 1:
        s.shutdown(socket.SHUT_WR)
    until_end(s, 2 * number, ask, f"server, mode {mode}")
    s.close()


def churn_serve(listener, count, threads):
    ear, left, lock = SOCKETS[listener], [count], threading.Lock()

    def body(_, errors):
        done = 0
        while True:
            with lock:
                if not left[0]:
                    return done
                left[0] -= 1
            s, _ = ear.accept()
            prepare(s)
            s.settimeout(10)
            try:
                churn_server_one(s)
                done += 1
            except Exception as err:
                s.close()
                errors.append(f"{type(err).__name__}: {err}")
    return workers(threads, body)


def churn_client_one(host, port, number):
    rng = random.Random(number + 77)
    mode = number % 3
    ask = rng.choice([1, rng.randint(1, 2000), rng.randint(1, 40000)])
    reply = 0 if mode == 2 else rng.choice([1, rng.randint(1, 2000), rng.randint(1, 40000)])
    s = dial(host, port)
    s.settimeout(10)
    s.sendall(HEAD.pack(number, mode, ask, reply))
    in_pieces(s, 2 * number, ask, rng)
    if mode == 0:      # half-close while the server is sending
        s.shutdown(socket.SHUT_WR)
    if mode in (0, 1):  # in mode 1 the server half-closes while we are sending, then we close
        until_end(s, 2 * number + 1, reply, f"client, mode {mode}")
    s.close()          # mode 2: close right after the last write


def churn_connect(host, port, count, threads):
    def body(index, errors):
        done = 0
        for number in range(index, count, threads):
            try:
                churn_client_one(host, port, number)
                done += 1
            except Exception as err:
                errors.append(f"{type(err).__name__}: {err}")
        return done
    return workers(threads, body)


# ---- half-close, then a blocking read

def half_close_serve(listener, count):
    for _ in range(count):
        s, _ = SOCKETS[listener].accept()
        prepare(s)
        data = bytearray()
        while part := s.recv(65536):
            data += part
        time.sleep(0.003)  # our ACK of the FIN is there long before the reply
        s.sendall(b"reply to " + data)
        s.close()


def half_close_clients(host, port, count, warm):
    bad = []
    for number in range(count):
        s = dial(host, port)
        text = b"question %d" % number
        for at in range(len(text) if warm else 0):
            s.sendall(text[at:at + 1])
        if not warm:
            s.sendall(text)
        s.shutdown(socket.SHUT_WR)
        try:
            got = bytearray()
            while part := s.recv(65536):
                got += part
            if bytes(got) != b"reply to " + text:
                bad.append(f"{number}: {bytes(got)!r}")
        except OSError as err:
            bad.append(f"{number}: {type(err).__name__}: {err}")
        s.close()
    return bad


# ---- close right after write

def write_close(host, port, count):
    for number in range(count):
        s = dial(host, port)
        s.sendall(b"x")
        read_exact(s, 1)
        for at in range(0, 4000, 400):
            s.sendall(piece(number, at, 400))
        s.close()


def write_close_serve(listener, count, pause):
    bad = []
    for number in range(count):
        s, _ = SOCKETS[listener].accept()
        prepare(s)
        read_exact(s, 1)
        s.sendall(b"x")
        time.sleep(pause)
        try:
            until_end(s, number, 4000, f"connection {number}")
        except (OSError, EOFError, ValueError) as err:
            bad.append(f"{type(err).__name__}: {err}")
        s.close()
    return bad


# ---- slow reader

def sock_flood(name, stream, size, seconds, at=0, most=1 << 62):
    """Non-blocking writes of one size for so long, or of so many bytes. Anything but EAGAIN is an error."""
    s = SOCKETS[name]
    start_at, end, calls, full = at, time.monotonic() + seconds, 0, 0
    while at - start_at < most:
        calls += 1
        if not calls & 255 and time.monotonic() > end:
            break
        try:
            at += s.send(piece(stream, at, size), socket.MSG_DONTWAIT)
        except BlockingIOError:
            full += 1
            left = end - time.monotonic()
            if left <= 0:
                break
            select.select([], [s], [], min(left, 0.05))
            if time.monotonic() > end:
                break
    return {"bytes": at - start_at, "calls": calls, "full": full}


def sock_verify(name, stream, total, at=0):
    """Read so many bytes of a stream, exactly."""
    check = Check(stream)
    check.at = at
    s = SOCKETS[name]
    while check.at < at + total:
        data = s.recv(min(1 << 18, at + total - check.at))
        if not data:
            raise EOFError(f"end at {check.at} of {at + total}")
        check.feed(data)
    return check.at


# ---- traffic that must not notice

STOP = threading.Event()


def traffic_start(host, port, steady, fresh, nonblocking=False):
    """`steady` connections that live for all of it, `fresh` threads that connect anew every few messages."""
    STOP.clear()
    stats = {"rounds": 0, "connections": 0, "errors": []}
    lock = threading.Lock()
    together = threading.Barrier(steady) if steady else None  # on a busy machine one must not be old when another connects

    def run(index, lasting):
        rng, number = random.Random(index), index * 100_000
        try:
            while not STOP.is_set():
                s, rounds = dial(host, port), 0
                if lasting:
                    together.wait(30)
                if nonblocking:
                    s.settimeout(10)
                with lock:
                    stats["connections"] += 1
                number += 1
                at, check = 0, Check(number)
                while not STOP.is_set() and (lasting or rounds < 20):
                    size = rng.choice([1, 64, rng.randint(1, 4096), rng.randint(1, 4000 if nonblocking else 30_000)])
                    s.sendall(piece(number, at, size))
                    at += size
                    check.feed(read_exact(s, size))
                    rounds += 1
                s.shutdown(socket.SHUT_WR)
                if s.recv(1):
                    raise ValueError("bytes after the end")
                s.close()
                with lock:
                    stats["rounds"] += rounds
        except Exception as err:
            stats["errors"].append(f"{'steady' if lasting else 'fresh'} {index}: {type(err).__name__}: {err}")
    threads = [threading.Thread(target=run, args=(i, i < steady), daemon=True) for i in range(steady + fresh)]
    for t in threads:
        t.start()
    BACKGROUND.append((threads, stats))


def traffic_stop():
    STOP.set()
    threads, stats = BACKGROUND.pop()
    for t in threads:
        t.join(15)
        if t.is_alive():
            stats["errors"].append("a thread hangs")
    return stats


# ---- connection storm

def storm_serve(listener, count):
    ear = SOCKETS[listener]
    for _ in range(count):
        s, _ = ear.accept()
        data = s.recv(16)
        if data:
            s.sendall(data)
            s.recv(1)
        s.close()
    return count


def storm_connect(host, port, count):
    for number in range(count):
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.connect((host, port))
        if number % 4 == 0:
            text = b"%d" % number
            s.sendall(text)
            if s.recv(16) != text:
                raise ValueError("wrong echo")
        s.close()
    return count


# ---- Fast Open, REDIRECT

def fast_open_client(host, port, data):
    s = prepare(socket.socket(family(host), socket.SOCK_STREAM))
    s.sendto(data, socket.MSG_FASTOPEN, (host, port))
    s.sendall(b" and more")
    s.shutdown(socket.SHUT_WR)
    got = bytearray()
    while part := s.recv(65536):
        got += part
    s.close()
    return bytes(got)


def proxy_start(listener, host, port):
    """A proxy of one thread a connection; it reads only what select says is there."""
    def one(near):
        far = dial(host, port)
        ends = {near: far, far: near}
        while ends:
            for s in select.select(list(ends), [], [])[0]:
                data = s.recv(65536)
                other = far if s is near else near
                if data:
                    other.sendall(data)
                else:
                    other.shutdown(socket.SHUT_WR)
                    del ends[s]
        near.close()
        far.close()
    serve(listener, one)


def sock_gather(name, size, timeout=10.0):
    """So many bytes from a non-blocking socket, or what came before its end."""
    s, got, end = SOCKETS[name], bytearray(), time.monotonic() + timeout
    poller = select.epoll()
    poller.register(s.fileno(), select.EPOLLIN)
    while len(got) < size:
        if not poller.poll(max(0, end - time.monotonic())):
            raise TimeoutError(f"epoll silent after {len(got)} of {size} bytes")
        try:
            data = s.recv(size - len(got))
        except BlockingIOError:
            continue
        if not data:
            break
        got += data
    poller.close()
    return bytes(got)


def sock_shutdown_and_read_all(name):
    """shutdown(SHUT_WR), and at once blocking reads to the end."""
    s, got = SOCKETS[name], bytearray()
    s.shutdown(socket.SHUT_WR)
    while data := s.recv(65536):
        got += data
    return bytes(got)


# ---- thousands of connections that are all busy

def busy_start(host, port, count, stream=0):
    """`count` non-blocking connections of one epoll loop, each with one message out at any time, echoed and checked."""
    held = {}
    poller = select.epoll()
    stats = {"rounds": 0, "errors": [], "least": 0}
    for number in range(count):
        s = dial(host, port)
        s.setblocking(False)
        held[s.fileno()] = [s, Check(stream + number), 0, 0]
    for fd in held:
        poller.register(fd, select.EPOLLIN)
    STOP.clear()

    def ask(row):
        s, check, at, rounds = row
        size = 1 + (rounds * 37) % 200
        s.sendall(piece(check.stream, at, size))
        row[2], row[3] = at + size, rounds + 1
        stats["rounds"] += 1

    def loop():
        try:
            for row in held.values():
                ask(row)
            while not STOP.is_set():
                for fd, _ in poller.poll(10):
                    row = held[fd]
                    try:
                        data = row[0].recv(65536)
                    except BlockingIOError:
                        continue
                    if not data:
                        raise EOFError("early end")
                    row[1].feed(data)
                    if row[1].at == row[2]:
                        ask(row)
            stats["least"] = min(row[3] for row in held.values())
            for row in held.values():  # what is on its way still comes
                row[0].setblocking(True)
                row[1].feed(read_exact(row[0], row[2] - row[1].at))
                row[0].close()
        except Exception as err:
            stats["errors"].append(f"{type(err).__name__}: {err}")
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    BACKGROUND.append(([thread], stats))
    return count


# ---- readers that are asleep

READERS = {}


def readers_start(name, count):
    """So many threads, all in a blocking recv on one socket."""
    s = SOCKETS[name]
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    READERS[name] = got = []

    def one():
        while data := s.recv(4096):
            got.append(data)
    for _ in range(count):
        threading.Thread(target=one, daemon=True).start()


def readers_wait(name, size, timeout=5.0):
    """Until so many bytes have come; what came, in the order in which the calls ended."""
    end = time.monotonic() + timeout
    while sum(map(len, READERS[name])) < size and time.monotonic() < end:
        time.sleep(0.002)
    return b"".join(READERS[name])


def sock_read_waitall(name, size):
    return SOCKETS[name].recv(size, socket.MSG_WAITALL)


def sock_splice(name, size):
    """Read by splice(2) through a pipe."""
    ours, theirs = os.pipe()
    try:
        got = os.splice(SOCKETS[name].fileno(), theirs, size)
        return os.read(ours, got) if got else b""
    finally:
        os.close(ours)
        os.close(theirs)


# ---- very many connections, held

HELD = []


def readable(s, timeout=10.0):
    poller = select.poll()
    poller.register(s.fileno(), select.POLLIN)
    return poller.poll(timeout * 1000)


def raise_files(count):
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))


def held_connect(host, port, count):
    for _ in range(count):
        s = dial(host, port)
        s.setblocking(False)
        HELD.append([s, 0])
    return len(HELD)


def held_exchange():
    """One message each way on all; byte-exact."""
    for number, held in enumerate(HELD):
        held[0].sendall(piece(number, held[1], 100))
    for number, held in enumerate(HELD):
        s, check = held[0], Check(number)
        check.at = held[1]
        while check.at < held[1] + 100:
            if not readable(s):
                raise TimeoutError(f"connection {number}: silent")
            try:
                data = s.recv(4096)
            except BlockingIOError:
                continue
            if not data:
                raise EOFError(f"connection {number}: early end")
            check.feed(data)
        held[1] += 100
    return len(HELD)


def held_close():
    while HELD:
        HELD.pop()[0].close()


from hazards import *  # noqa: E402,F401,F403


# ---- who asks FIONREAD, as nginx does: edges, and after a read that filled the buffer the question what is left

def inquiring_server(listener, buffer):
    """Reads uploads: 8 bytes of length, then as many; answers with their checksum. Waits for the next edge when FIONREAD
    says that nothing is left."""
    ear = SOCKETS[listener]

    def serve_one(s):
        poller = select.epoll()
        poller.register(s.fileno(), select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
        digest, got, total = hashlib.sha256(), b"", None
        count = 0
        while total is None or count < total:
            if not poller.poll(8):
                raise TimeoutError(f"no edge; {count} of {total} bytes read")
            left = -1
            while left and (total is None or count < total):
                try:
                    data = s.recv(buffer)
                except BlockingIOError:
                    break
                if not data:
                    raise EOFError(f"early end; {count} of {total} bytes read")
                if left > 0:
                    left = max(0, left - len(data))
                elif len(data) == buffer:
                    left = int.from_bytes(fcntl.ioctl(s, termios.FIONREAD, bytes(4)), sys.byteorder)
                else:
                    left = 0
                if total is None:
                    got += data
                    if len(got) < 8:
                        continue
                    total, data = int.from_bytes(got[:8], "big"), got[8:]
                digest.update(data)
                count += len(data)
        poller.close()
        s.setblocking(True)
        s.sendall(digest.digest())
        s.close()

    def loop():
        while True:
            s, _ = ear.accept()
            s.setblocking(False)
            try:
                serve_one(s)
            except Exception as err:
                ECHO_ERRORS.append(repr(err))
                s.close()
    threading.Thread(target=loop, daemon=True).start()


def upload(host, port, total, size, stream):
    """One upload, non-blocking with polls; true when the server's checksum is right."""
    s = socket.socket(family(host), socket.SOCK_STREAM)
    s.settimeout(0)
    code = s.connect_ex((host, port))
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
    digest, at = hashlib.sha256(), 0
    header = total.to_bytes(8, "big")
    while at < total + 8:
        start = (stream * 7919 + at) % POOL_SIZE
        part = header if at == 0 else POOL[start:start + min(size, total + 8 - at)]
        select.select([], [s], [], 10)
        try:
            sent = s.send(part)
        except BlockingIOError:
            continue
        if at:
            digest.update(part[:sent])
        at += sent
    answer = b""
    while True:
        if not select.select([s], [], [], 15)[0]:
            raise TimeoutError(f"no answer to {total} bytes")
        data = s.recv(64)
        if not data:
            break
        answer += data
    s.close()
    return answer == digest.digest()


# ---- kTLS: TLS 1.2, AES-128-GCM, the same fixed key both ways

SOL_TLS, TLS_TX, TLS_RX, TCP_ULP = 282, 1, 2, 31
KTLS_INFO = struct.pack("HH", 0x0303, 51) + b"\x11" * 8 + b"\x22" * 16 + b"\x33" * 4 + bytes(8)


def has_ktls():
    ear = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(ear.getsockname())
    try:
        near.setsockopt(IPPROTO_TCP, TCP_ULP, b"tls")
        return True
    except OSError as err:
        if err.errno == errno.ENOENT:
            return False
        raise
    finally:
        near.close()
        ear.close()


def sock_ktls(name):
    """TLS by the kernel from here on, both directions."""
    s = SOCKETS[name]
    s.setsockopt(IPPROTO_TCP, TCP_ULP, b"tls")
    s.setsockopt(SOL_TLS, TLS_TX, KTLS_INFO)
    s.setsockopt(SOL_TLS, TLS_RX, KTLS_INFO)
