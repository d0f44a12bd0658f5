"""Full duplex on asyncio: non-blocking sockets, each end reads and writes at the same time."""
import asyncio
import random
import socket

from ops import Check, family, piece


def total_of(stream, seed):
    rng = random.Random(stream * 31 + seed)
    return rng.choice([0, 1, rng.randint(1, 5000), rng.randint(1, 300_000)])


async def end(s, out, back, seed):
    loop = asyncio.get_running_loop()
    rng = random.Random(out * 17 + seed)

    async def write():
        at, total = 0, total_of(out, seed)
        while at < total:
            size = min(total - at, rng.choice([1, 7, 100, 1448, rng.randint(1, 9000), rng.randint(1, 65536)]))
            await loop.sock_sendall(s, piece(out, at, size))
            at += size
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.02)
        s.shutdown(socket.SHUT_WR)
        return at

    async def read():
        check, pauses = Check(back), random.Random(back)
        while data := await loop.sock_recv(s, pauses.choice([1, 333, 4096, 65536])):
            check.feed(data)
            if pauses.random() < 0.1:
                await asyncio.sleep(pauses.random() * 0.02)
        if check.at != total_of(back, seed):
            raise EOFError(f"stream {back}: {check.at} of {total_of(back, seed)} bytes")
        return check.at
    sent, got = await asyncio.gather(write(), read())
    s.close()
    return sent + got


async def serve_all(ear, count, seed):
    loop = asyncio.get_running_loop()
    ear.setblocking(False)

    async def one(s):
        head = b""
        while len(head) < 4:
            data = await loop.sock_recv(s, 4 - len(head))
            if not data:
                raise EOFError("no header")
            head += data
        number = int.from_bytes(head, "big")
        return await end(s, 2 * number + 1, 2 * number, seed)
    tasks = []
    for _ in range(count):
        s, _ = await loop.sock_accept(ear)
        s.setblocking(False)
        tasks.append(asyncio.create_task(one(s)))
    return sum(await asyncio.gather(*tasks))


def serve(ear, count, seed):
    return asyncio.run(asyncio.wait_for(serve_all(ear, count, seed), 60))


async def connect_all(host, port, count, seed):
    loop = asyncio.get_running_loop()

    async def one(number):
        s = socket.socket(family(host), socket.SOCK_STREAM)
        s.setblocking(False)
        await loop.sock_connect(s, (host, port))
        await loop.sock_sendall(s, number.to_bytes(4, "big"))
        return await end(s, 2 * number, 2 * number + 1, seed)
    return sum(await asyncio.gather(*(one(n) for n in range(count))))


def connect(host, port, count, seed):
    return asyncio.run(asyncio.wait_for(connect_all(host, port, count, seed), 60))
