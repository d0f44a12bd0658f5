"""What a hostile container does: many sockets that nobody reads, forged segments, TCP_REPAIR, connects to nowhere."""
import os
import random
import resource
import select
import socket
import struct
import threading
import time

import ops

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
TCP_SEND_QUEUE, TCP_RECV_QUEUE = 2, 1
CROWD = []
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def room_for_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---- a crowd of sockets

def crowd_connect(host, port, count):
    room_for_files()
    for _ in range(count):
        s = socket.create_connection((host, port))
        s.setblocking(False)
        CROWD.append(s)
    return len(CROWD)


def crowd_accept(listener, count):
    room_for_files()
    for _ in range(count):
        s, _ = ops.SOCKETS[listener].accept()
        s.setblocking(False)
        CROWD.append(s)
    return len(CROWD)


def crowd_ports(side):
    """Ports by which the two ends of a connection find each other's index."""
    return [(s.getsockname() if side == "local" else s.getpeername())[1] for s in CROWD]


def crowd_write(total, size):
    """Each socket is written to until it refuses or has taken `total`; nobody reads. Stream: its number."""
    taken = []
    for number, s in enumerate(CROWD):
        at = 0
        try:
            while at < total:
                at += s.send(ops.piece(number, at, min(size, total - at)))
        except BlockingIOError:
            pass
        taken.append(at)
    return taken


def crowd_verify(order, taken):
    """Socket i reads the stream of number order[i], as much as was taken."""
    for s, stream in zip(CROWD, order):
        check = ops.Check(stream)
        s.settimeout(10)
        while check.at < taken[stream]:
            data = s.recv(1 << 18)
            if not data:
                raise EOFError(f"stream {stream}: end at {check.at} of {taken[stream]}")
            check.feed(data)
    return sum(taken)


def crowd_end(how="close"):
    for number, s in enumerate(CROWD):
        way = ("close", "reset", "shutdown", "unspec")[number % 4] if how == "mixed" else how
        try:
            if way == "reset":
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif way == "shutdown":
                s.shutdown(socket.SHUT_RDWR)
            elif way == "unspec":
                ops.disconnect_fd(s)
        except OSError:
            pass
        s.close()
    CROWD.clear()


def crowd_nowhere(host, ports, each):
    """Connects that get no answer. How many are on their way."""
    room_for_files()
    for port in range(ports[0], ports[1]):
        for _ in range(each):
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex((host, port))
            CROWD.append(s)
    return len(CROWD)


def shutdown_storm(host, port, count, threads, seed):
    """Connections on which threads send, shut down and close at random, several on one socket."""
    def body(index, errors):
        rng, done = random.Random(seed * 100 + index), 0
        for _ in range(count // threads):
            s = socket.create_connection((host, port))
            s.settimeout(5)

            def meddle():
                try:
                    for _ in range(3):
                        s.send(b"m" * rng.randint(1, 3000))
                        s.shutdown(rng.choice([socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR]))
                except OSError:
                    pass
            t = threading.Thread(target=meddle)
            t.start()
            try:
                s.send(b"x" * rng.randint(1, 9000))
                s.recv(100)
            except OSError:
                pass
            s.close()
            t.join()
            done += 1
        return done
    return ops.workers(threads, body)


def exhaust_files(host, port, limit):
    """Opens connections until there is no descriptor left; how many, and the error."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    opened = []
    try:
        while True:
            opened.append(socket.create_connection((host, port)))
            opened[-1].send(b"x" * 3000)
    except OSError as err:
        number = err.errno
    for s in opened:
        s.close()
    return len(opened), number


def move_to(cgroup):
    """This process goes to another cgroup."""
    with open(f"{cgroup}/cgroup.procs", "w") as f:
        f.write(str(os.getpid()))


# ---- twins: one 4-tuple in two namespaces at one instant

def twin_serve(host, port, count, mark):
    ear = socket.socket()
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ear.bind((host, port))
    ear.listen(64)

    def run():
        for _ in range(count):
            s, _ = ear.accept()
            s.settimeout(10)
            try:
                while data := s.recv(100):
                    s.sendall(mark + data)
            except OSError:
                pass
            s.close()
    threading.Thread(target=run, daemon=True).start()


def twin_connect(host, port, source, count, mark, begin, every):
    """Connects at begin + n * every (CLOCK_REALTIME, seconds), the other namespace does the same. Wrong answers."""
    wrong = []
    for number in range(count):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.bind((host, source + number % 1000))
        s.settimeout(10)
        at = begin + number * every
        if time.time() < at - 0.001:
            time.sleep(at - 0.001 - time.time())
        while time.time() < at:
            pass
        s.connect((host, port))
        for step in range(4):
            text = b"<%s %d %d>" % (mark, number, step)
            s.sendall(text)
            got = ops.read_exact(s, len(mark) + len(text))
            if got != mark + text:
                wrong.append((number, step, got))
        s.close()
    return wrong


# ---- sequence numbers of one's own choice

def repair_connect(name, host, port, isn, keep=False):
    """connect() with a chosen initial sequence number: TCP_REPAIR is off again before, unless `keep`."""
    s = socket.socket()
    s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)
    s.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("I", isn))
    if not keep:
        s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    ops.prepare(s)
    s.connect((host, port))
    ops.SOCKETS[name] = s
    return ops.info(s)


def repair_pair(name, local, remote, send, recv):
    """An established socket out of nothing: both sequence numbers chosen, no handshake."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue, number in ((TCP_SEND_QUEUE, send), (TCP_RECV_QUEUE, recv)):
        s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        s.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("I", number))
    s.bind(tuple(local))
    s.connect(tuple(remote))
    ops.SOCKETS[name] = s


def repair_off(name):
    s = ops.SOCKETS[name]
    s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    ops.prepare(s)


def repair_toggle(name):
    s = ops.SOCKETS[name]
    s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)


# ---- raw segments

def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def segment(source, sport, dest, dport, seq, ack, flags, data=b""):
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xffffffff, ack & 0xffffffff, 5 << 4, flags, 65535, 0, 0) + data
    a, b = socket.inet_aton(source), socket.inet_aton(dest)
    total = checksum(a + b + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, a, b) + tcp


def forge(source, sport, dest, dport, seq, ack, flags, data=b""):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(segment(source, sport, dest, dport, seq, ack, flags, data), (dest, 0))


SNIFFERS = {}


def sniff_start(name):
    SNIFFERS[name] = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))


def sniff(name, sport=None, dport=None, flags=None, timeout=5.0):
    """The next TCP segment of these ports and flags, in or out: addresses, ports, numbers, data."""
    end, s = time.monotonic() + timeout, SNIFFERS[name]
    while (left := end - time.monotonic()) > 0:
        if not select.select([s], [], [], left)[0]:
            break
        p = s.recv(65536)
        if p[9] != 6:
            continue
        t = (p[0] & 15) * 4
        sp, dp, seq, ack, off, fl = struct.unpack("!HHIIBB", p[t:t + 14])
        if sport not in (None, sp) or dport not in (None, dp) or (flags is not None and fl != flags):
            continue
        size = struct.unpack("!H", p[2:4])[0]
        return {"source": socket.inet_ntoa(p[12:16]), "sport": sp, "dest": socket.inet_ntoa(p[16:20]), "dport": dp,
                "seq": seq, "ack": ack, "flags": fl, "data": p[t + (off >> 4) * 4:size]}
    raise TimeoutError("nothing of that kind was seen")


def spray(source, dest, dport, count):
    """SYNs with random numbers."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for _ in range(count):
            raw.sendto(segment(source, random.randint(1024, 65535), dest, dport, random.getrandbits(32), 0, SYN), (dest, 0))
    return count
