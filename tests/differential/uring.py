"""io_uring for Python: one request at a time, through the raw system calls (Python has none, liburing is not needed)."""
import ctypes
import errno
import mmap
import os
import select
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
SETUP, ENTER = 425, 426
OP_POLL_ADD, OP_ASYNC_CANCEL, OP_SEND, OP_RECV = 6, 14, 26, 27
SQE = struct.Struct("<BBHiQQIIQHHiQQ")
OFF_SQES = 0x10000000
FEAT_SINGLE_MMAP = 1


def syscall(number, *args):
    done = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def refused():
    """Why there is no io_uring here; None where there is."""
    try:
        Ring().close()
    except OSError as err:
        return f"io_uring_setup: {errno.errorcode.get(err.errno, err.errno)}"
    return None


class Ring:
    ENTRIES = 8

    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = syscall(SETUP, self.ENTRIES, params)
        head = struct.unpack_from("<10I8IQ8IQ", params.raw)
        self.sq, self.cq = head[10:18], head[19:27]
        if not head[5] & FEAT_SINGLE_MMAP:
            os.close(self.fd)
            raise OSError(errno.ENOSYS, "before IORING_FEAT_SINGLE_MMAP")
        size = max(self.sq[6] + head[0] * 4, self.cq[5] + head[1] * 16)
        self.ring = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self.sqes = mmap.mmap(self.fd, head[0] * 64, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=OFF_SQES)
        self.serial = 0
        self.poller = select.poll()
        self.poller.register(self.fd, select.POLLIN)

    def close(self):
        self.ring.close()
        self.sqes.close()
        os.close(self.fd)

    def u32(self, at, value=None):
        if value is None:
            return struct.unpack_from("<I", self.ring, at)[0]
        struct.pack_into("<I", self.ring, at, value & 0xFFFFFFFF)

    def submit(self, opcode, fd, addr=0, size=0, flags=0):
        """The system call that follows each store, and precedes each load, is the barrier."""
        self.serial += 1
        tail, mask = self.u32(self.sq[1]), self.u32(self.sq[2])
        slot = tail & mask
        SQE.pack_into(self.sqes, slot * 64, opcode, 0, 0, fd, 0, addr, size, flags, self.serial, 0, 0, 0, 0, 0)
        self.u32(self.sq[6] + 4 * slot, slot)
        self.u32(self.sq[1], tail + 1)
        syscall(ENTER, self.fd, 1, 0, 0, ctypes.c_void_p(), 0)
        return self.serial

    def complete(self, serial, timeout):
        """The result of a request, or None when it does not come in time."""
        while True:
            head = self.u32(self.cq[0])
            if head != self.u32(self.cq[1]):
                at = self.cq[5] + 16 * (head & self.u32(self.cq[2]))
                who, result, _ = struct.unpack_from("<QiI", self.ring, at)
                self.u32(self.cq[0], head + 1)
                if who == serial:
                    return result
                continue
            if not self.poller.poll(timeout * 1000):
                return None

    def run(self, opcode, fd, addr=0, size=0, flags=0, timeout=3.0):
        """One request from start to end; TimeoutError when nothing came (it is cancelled then)."""
        serial = self.submit(opcode, fd, addr, size, flags)
        result = self.complete(serial, timeout)
        if result is None:
            self.submit(OP_ASYNC_CANCEL, -1, serial)
            if self.complete(serial, 1.0) in (None, -errno.ECANCELED):
                raise TimeoutError("no completion")
            raise TimeoutError("completed only when it was cancelled")
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result
