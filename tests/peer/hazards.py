"""Calls and options that the fast path answers differently from TCP; each returns what the application sees."""
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time

import ops

SPLICE_NONBLOCK = 2
TCP_ZEROCOPY_RECEIVE = 35


def hz_wait(name, events=select.POLLIN, timeout=5000):
    poller = select.poll()
    poller.register(ops.SOCKETS[name].fileno(), events)
    return bool(poller.poll(timeout))


def hz_send(name, data, flags=0):
    return ops.SOCKETS[name].send(data, flags)


def hz_sendmsg(name, data, flags=0):
    return ops.SOCKETS[name].sendmsg([data], [], flags)


def hz_recv(name, size, flags=0):
    hz_wait(name, select.POLLPRI if flags & socket.MSG_OOB else select.POLLIN)
    return ops.SOCKETS[name].recv(size, flags)


def hz_unsent(name):
    """Bytes that the peer's TCP has not acknowledged (SIOCOUTQ); redirected ones never wait."""
    buffer = bytearray(4)
    fcntl.ioctl(ops.SOCKETS[name].fileno(), termios.TIOCOUTQ, buffer)
    return int.from_bytes(buffer, sys.byteorder)


def hz_recv_nothing(name):
    """recv of 0 bytes while nothing is there."""
    buffer = ctypes.create_string_buffer(1)
    got = ops.LIBC.recv(ops.SOCKETS[name].fileno(), buffer, 0, 0)  # Python's own would not make the call
    return got if got >= 0 else errno.errorcode[ctypes.get_errno()]


def hz_truncate(name, size):
    """recv with MSG_TRUNC: how many bytes were discarded."""
    hz_wait(name)
    got = ops.LIBC.recv(ops.SOCKETS[name].fileno(), None, size, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
    return got if got >= 0 else os.strerror(ctypes.get_errno())


def hz_splice(name, size):
    """splice from the socket into a pipe; what came through."""
    hz_wait(name)
    r, w = os.pipe()
    try:
        got, end = b"", time.monotonic() + 5
        while len(got) < size and time.monotonic() < end:
            count = ops.LIBC.splice(ops.SOCKETS[name].fileno(), None, w, None, ctypes.c_size_t(size - len(got)),
                                    SPLICE_NONBLOCK)
            if count > 0:
                got += os.read(r, count)
            elif count == 0:
                break
            else:
                time.sleep(0.01)
        return got
    finally:
        os.close(r)
        os.close(w)


def hz_splice_now(name, size):
    """One splice that does not wait: how many bytes, or the error."""
    r, w = os.pipe()
    try:
        got = ops.LIBC.splice(ops.SOCKETS[name].fileno(), None, w, None, ctypes.c_size_t(size), SPLICE_NONBLOCK)
        return got if got >= 0 else errno.errorcode[ctypes.get_errno()]
    finally:
        os.close(r)
        os.close(w)


def hz_zerocopy_receive(name, size):
    """TCP_ZEROCOPY_RECEIVE with a copy buffer for what fills no page."""
    hz_wait(name)
    return hz_zerocopy_receive_now(name, size)


def hz_zerocopy_receive_now(name, size):
    s = ops.SOCKETS[name]
    buffer = ctypes.create_string_buffer(size)
    # struct tcp_zerocopy_receive: address, length, recv_skip_hint, inq, err, copybuf_address, copybuf_len, flags
    zc = ctypes.create_string_buffer(struct.pack("=QIIIiQiI", 0, 0, 0, 0, 0, ctypes.addressof(buffer), size, 0), 40)
    length = ctypes.c_uint32(40)
    if ops.LIBC.getsockopt(s.fileno(), socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, zc, ctypes.byref(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[:struct.unpack_from("=i", zc.raw, 32)[0]]


def hz_option_big(name, size):
    """An option whose value is larger than a page: what the kernel says, as TCP would."""
    value = ctypes.create_string_buffer(size)
    if ops.LIBC.setsockopt(ops.SOCKETS[name].fileno(), socket.IPPROTO_IP, 41, value, size):  # IP_MSFILTER
        return os.strerror(ctypes.get_errno())
    return "ok"


def hz_get(name, level, option):
    return ops.SOCKETS[name].getsockopt(level, option)


def hz_dup_read_in_child(name, size):
    """A forked child reads from the inherited socket, blocking."""
    s = ops.SOCKETS[name]
    r, w = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            s.setblocking(True)
            os.write(w, s.recv(size))
        finally:
            os._exit(0)
    os.close(w)
    try:
        return os.read(r, size)
    finally:
        os.close(r)
        os.waitpid(child, 0)


def hz_filter(name):
    """A classic BPF filter that takes every packet whole."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF), 8)
    program = struct.pack("@HP", 1, ctypes.addressof(code))
    ops.SOCKETS[name].setsockopt(socket.SOL_SOCKET, 26, program)
