"""Run by peer/agent.py in the place of ops.py: many messages, many connections, and readers that are late."""
import os
import resource
import select
import socket
import sys
import threading
import time

SOCKETS = {}
HELD = []
EAR = None
SIZES = (1, 7, 64, 65, 127, 300, 1024, 1500)


def ping():
    return os.getpid()


def listen_pump(host):
    global EAR
    EAR = socket.create_server((host, 0), backlog=4096)
    return EAR.getsockname()[1]


def drain(s, sums, index):
    into = bytearray(1 << 18)
    while True:
        n = s.recv_into(into)
        sums[index] += n
        if n and into[n - 1] == 255:  # the last byte of all
            return


def together(bodies):
    threads = [threading.Thread(target=body) for body in bodies]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def serve_pump(connections):
    sums = [0] * connections
    for _ in range(connections):
        HELD.append(EAR.accept()[0])
    together([lambda i=i, s=s: drain(s, sums, i) for i, s in enumerate(HELD)])
    return {"bytes": sum(sums)}


def pump(host, port, connections, messages):
    sums = [0] * connections

    def one(index, s):
        parts = [bytes(size) for size in SIZES]
        for number in range(messages - 1):
            part = parts[(number + index) % len(parts)]
            s.sendall(part)
            sums[index] += len(part)
        s.sendall(b"\xff")
        sums[index] += 1
    for _ in range(connections):
        HELD.append(socket.create_connection((host, port)))
    together([lambda i=i, s=s: one(i, s) for i, s in enumerate(HELD)])
    return {"messages": messages * connections, "bytes": sum(sums)}


def close_pump():
    for s in HELD:
        s.close()
    HELD.clear()


def many():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))


def accept_many(count):
    many()
    for _ in range(count):
        HELD.append(EAR.accept()[0])


def connect_many(host, port, count):
    many()
    for _ in range(count):
        HELD.append(socket.create_connection((host, port)))


def read_exact(s, poll, size):
    data = b""
    while len(data) < size:
        poll.poll(10_000)
        data += s.recv(size - len(data))
    return data


def late_echo(rounds, late):
    s = EAR.accept()[0]
    s.setblocking(False)
    poll = select.poll()
    poll.register(s, select.POLLIN)
    for _ in range(rounds):
        poll.poll(10_000)
        time.sleep(late)
        s.send(read_exact(s, poll, 8))
    s.close()


def late_ask(host, port, rounds):
    s = socket.create_connection((host, port))
    s.setblocking(False)
    poll = select.poll()
    poll.register(s, select.POLLIN)
    for _ in range(rounds):
        s.send(b"question")
        read_exact(s, poll, 8)
    s.close()
